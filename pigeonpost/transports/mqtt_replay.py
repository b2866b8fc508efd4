"""Recognition of signed MQTT bodies that were published before, so that nobody can take a session back with one.

Whoever can read a broker's topics can publish an old body again: its signature is right. What it says of the node's
state is then as old as the body. A body counts as old if

- its session has ended, or it is one of the last that counted, or
- it brings no sample and no gap that is not stored yet, and was made before the last one that counted, by the node's
  clock. With something new nobody but the node can have made it: so a node whose clock was set back is believed again
  with its next sample.

Without a signature anybody may write for the node, so nothing is recognised there. No I/O; belongs to the thread that
reads from the broker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.transports.payload import BatchPayload

MOST_REMEMBERED = 64  # bodies of a node, and as many ended sessions
AHEAD_MS = 300_000  # a date so far ahead of a clock that is set is not compared: all that follow would be old


class ReplayGuard:
    """Recognises old bodies of one node by the last ones that counted, in this run of the server."""

    def __init__(self) -> None:
        self._made_ms: int | None = None  # when the last body that counted was made; None: that is not known
        self._macs: deque[str] = deque(maxlen=MOST_REMEMBERED)
        self._session = ""
        self._ended: deque[str] = deque(maxlen=MOST_REMEMBERED)

    def is_old(
        self, mac: str, session: str, payload: BatchPayload, stored_seq: Callable[[], int], now_ms: int | None
    ) -> bool:
        """Return True if a body with a right signature is old; else remember it as the last one that counted.

        session     of the body; empty: it names none
        stored_seq  gives the highest seq stored of the body's epoch; 0: none
        now_ms      this server's date; None: its clock is not set
        """
        made_ms = _made_ms(payload)
        if made_ms is not None and now_ms is not None and made_ms > now_ms + AHEAD_MS:
            made_ms = None
        if session in self._ended or mac in self._macs:
            return True
        if made_ms is not None and made_ms < (self._made_ms or 0) and payload.last <= stored_seq():
            return True
        if session != self._session:
            if self._session:
                self._ended.append(self._session)
            self._session = session
        self._made_ms = made_ms
        self._macs.append(mac)
        return False


def _made_ms(payload: BatchPayload) -> int | None:
    """Return when the body was made, by the node's clock; None: it does not say."""
    try:
        return parse_rfc3339(payload.said["time"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
