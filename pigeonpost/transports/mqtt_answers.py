"""Answers of servers on a node's MQTT topic: their types and their decoding.

No I/O and no clock. Errors: any exception of the tuple NOT_AN_ANSWER for a message that is not a valid answer.
Source: docs/protocol.md, section MQTT.
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
    """The server's high-water marks of everything that the node holds.

    Attributes:
        number: Highest running number (counted over all epochs) stored from this outbox, or None if the server did not
            send it.
        have: Highest sequence number stored of each epoch, by epoch.
        up_ms: Uptime of that sample in milliseconds, by epoch, as the server sent it (not checked).
        ledger: Identifier of the server's store, or empty if the server sent no valid one.
        server: Name of the server.
        commit_s: The server's time between two commits in seconds, or 0 if the server did not send it.
        time_ms: The server's time in milliseconds since 1970 (UTC), or None if its clock is not set.
        columns: True if the server accepts samples by column.
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
    """An acknowledgement: everything of an epoch up to a sequence number is durable.

    Attributes:
        epoch: The epoch.
        seq: The sequence number.
        has_ledger: True if the server named its ledger; such a server answers questions with Resume.
    """

    epoch: str
    seq: int
    has_ledger: bool


class Hole(NamedTuple):
    """An answer which reports that the server lacks the samples before those of a body.

    Attributes:
        have: The epoch and its highest seq stored, or None if the server sent an invalid seq.
    """

    have: Mapping[str, int] | None


class Rejection(NamedTuple):
    """An answer which reports that the server does not accept a body.

    Attributes:
        error: The reason, for the log.
        code: The error code, or empty if the server did not send one.
    """

    error: str
    code: str


class Order(NamedTuple):
    """A command to switch sampling on or off, or only to report the state.

    Attributes:
        identity: Identifier of the command, by which repetitions are recognised.
        on: The requested state, or None to report the present one.
    """

    identity: object
    on: bool | None


Answer = Resume | Ack | Hole | Rejection | Order


def read_answer(message: Mapping[str, Any]) -> Answer:
    """Return the answer in `message`, a decoded JSON object.

    Raises:
        BadArgument: The acknowledgement is not valid. Other exceptions of NOT_AN_ANSWER are possible.
    """
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
        raise BadArgument(f"invalid acknowledgement of epoch {epoch!r:.40} up to {seq!r:.40}")
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
            raise BadArgument(f"invalid mark of epoch {epoch!r:.40}: {have[epoch]!r:.40}")
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
