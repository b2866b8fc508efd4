"""Detection of replayed MQTT bodies: signed bodies that were published before.

Any client that can read a broker's topics can publish an old body again. Its signature is valid, but the state of the
node that it contains is out of date. A body is regarded as old if

- its session has ended, or
- it is identical to one of the last accepted bodies, or
- all its samples and gaps are already stored, and by the node's clock it was created before the last accepted body.

A body with new samples must come from the node itself, so a node whose clock was set back is accepted again with its
next sample.

Unsigned bodies are not checked, since any client may write them. No I/O; belongs to the thread that reads from the
broker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.transports.payload import BatchPayload

MOST_REMEMBERED = 64  # maximum number of remembered bodies of a node, and of its remembered ended sessions
AHEAD_MS = 300_000  # a time further ahead of a set clock is ignored; otherwise all later bodies would be old


class ReplayGuard:
    """Detects old bodies of one node by comparison with those accepted since the start of the server."""

    def __init__(self) -> None:
        self._last_created_ms: int | None = None  # creation time of the last accepted body, None if not known
        self._macs: deque[str] = deque(maxlen=MOST_REMEMBERED)
        self._session = ""
        self._ended: deque[str] = deque(maxlen=MOST_REMEMBERED)

    def is_old(
        self, mac: str, session: str, payload: BatchPayload, stored_seq: Callable[[], int], now_ms: int | None
    ) -> bool:
        """Return True if a body with a valid signature is old; otherwise remember it as the last accepted one.

        Args:
            mac: Signature of the body.
            session: Session of the body, or empty if the body names none.
            payload: The decoded body.
            stored_seq: Function that returns the highest seq stored of the body's epoch, or 0 if there is none.
            now_ms: Time of this server in milliseconds since 1970 (UTC), or None if its clock is not set.
        """
        created_ms = _created_ms(payload)
        if created_ms is not None and now_ms is not None and created_ms > now_ms + AHEAD_MS:
            created_ms = None
        if session in self._ended or mac in self._macs:
            return True
        if created_ms is not None and created_ms < (self._last_created_ms or 0) and payload.last <= stored_seq():
            return True
        if session != self._session:
            if self._session:
                self._ended.append(self._session)
            self._session = session
        self._last_created_ms = created_ms
        self._macs.append(mac)
        return False


def _created_ms(payload: BatchPayload) -> int | None:
    """Return when the body was created, by the node's clock, or None if it does not contain the time."""
    try:
        return parse_rfc3339(payload.fields["time"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
