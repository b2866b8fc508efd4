"""The answers of servers on a node's MQTT topic: their shapes, and how they are read.

No I/O and no clock. Errors: ValueError (BadArgument among them), TypeError, KeyError, AttributeError and OverflowError
for what is no answer (NOT_AN_ANSWER). Source: docs/protocol.md, section MQTT.
"""

from __future__ import annotations

from collections.abc import Mapping

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.errors import BadArgument
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from protocol import HEX_16, is_count

if TYPE_CHECKING:
    from typing import Any

NOT_AN_ANSWER = (ValueError, TypeError, KeyError, AttributeError, OverflowError)
_LONGEST_COMMIT_S = 3600.0


class Resume(NamedTuple):
    """What a server has of all that the node holds.

    number    the highest running number stored from this outbox; None: the server does not know it
    have      epoch to the highest sequence number stored
    up_ms     epoch to the uptime of that sample, as the server sent it
    ledger    id of the server's store; empty: it has none
    commit_s  how long an acknowledgement may take; 0: not told
    time_ms   the server's date; None: its clock is not set
    columns   it takes samples by column
    """

    number: int | None
    have: Mapping[str, int]
    up_ms: Mapping[str, object]
    ledger: str
    server: str
    commit_s: float
    time_ms: int | None
    columns: bool


class Ack(NamedTuple):
    """Everything of `epoch` up to `seq` is durable. `has_ledger`: by a server that also answers with Resume."""

    epoch: str
    seq: int
    has_ledger: bool


class Hole(NamedTuple):
    """The body began behind what the server has: `have`, by epoch; None where that is no number."""

    have: Mapping[str, int] | None


class Rejection(NamedTuple):
    """The server does not take a body. `code`: of the error; empty: none was told."""

    error: str
    code: str


class Order(NamedTuple):
    """Sampling is to be switched on or off, or only to be reported (None). `identity` tells a repetition."""

    identity: object
    on: bool | None


Answer = Resume | Ack | Hole | Rejection | Order


def read_answer(message: Mapping[str, Any]) -> Answer:
    """Return the answer in a JSON object. Raises one of NOT_AN_ANSWER."""
    if "error" in message:
        error = message["error"]
        return Rejection(str(error)[:300], str(error.get("code", "")) if type(error) is dict else "")
    if "resume" in message:
        return _read_resume(message)
    if "have" in message:
        return Hole({message["epoch"]: message["have"]} if is_count(message["have"]) else None)
    if "order" in message:
        return Order(message["order"], message["on"] if type(message.get("on")) is bool else None)
    epoch, seq = message["epoch"], message["ack"]
    if type(epoch) is not str or not is_count(seq):
        raise BadArgument(f"epoch {epoch!r:.40} up to {seq!r:.40}")
    return Ack(epoch, seq, bool(message.get("ledger")))


def _read_resume(message: Mapping[str, Any]) -> Resume:
    have: dict[str, int] = {}
    up_ms: dict[str, object] = {}
    number = message["resume"].get("id")
    for epoch, mark in message["resume"].items():
        if epoch == "id":
            continue
        have[epoch], up_ms[epoch] = mark
        if not HEX_16(epoch) or not is_count(have[epoch]):
            raise BadArgument(f"epoch {epoch!r:.40} up to {have[epoch]!r:.40}")
    commit_s = message.get("commit")
    return Resume(
        number if is_count(number) else None,
        have,
        up_ms,
        message["ledger"] if HEX_16(message["ledger"]) else "",
        str(message.get("server", "a server"))[:63],
        commit_s if isinstance(commit_s, int | float) and commit_s < _LONGEST_COMMIT_S else 0.0,
        parse_rfc3339(message["time"]) if message.get("clock") == "set" else None,
        message.get("columns") is True,
    )
