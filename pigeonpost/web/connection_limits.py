"""Limits on connections to the web server and requests in progress, and the choice of what is cut off at a limit.

May be used by any thread; `_changed` (a Condition and its lock) guards everything.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

_STUCK_S = 1.0  # so long in one send: the client does not read


class Limits(NamedTuple):
    """Limits of time and number; tests have smaller ones.

    head_s     seconds for a whole head          at_work    requests being answered at once
    body_s     seconds for a whole body          queue_s    seconds that one more waits for its slot
    idle_s     seconds until the next request    open       connections at once
    send_s     seconds for sending an answer     downloads  files being sent at once, beside those at work
    """

    head_s: float = 5.0
    body_s: float = 10.0
    idle_s: float = 30.0
    send_s: float = 10.0
    at_work: int = 32
    queue_s: float = 0.5
    open: int = 256
    downloads: int = 8


class Connection(Protocol):
    """The part of a connection that is used here.

    request        its socket
    host           the client's address
    waiting_since  when it began to wait for its client to say something, time.monotonic(); None: it does not wait
    sending_since  when it began to send what it sends now
    is_proven      the client that sends a body has proven who it is
    """

    request: socket.socket
    host: str
    waiting_since: float | None
    sending_since: float | None
    is_proven: bool


class Connections:
    """The open connections, and the requests in progress."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Guards everything below. Held to count, to choose and to shut a socket down, never while bytes are moved:
        # a connection leaves before its socket is closed, so none that is in `_all` has a number that is used again.
        self._changed = threading.Condition()
        self._all: set[Connection] = set()
        self._at_work = 0
        self._downloads = 0
        self._stopping = False
        self._answers: Counter[int] = Counter()
        self._cut_off = 0

    def enter(self, connection: Connection) -> bool:
        """Add a connection, at the limit in place of an idle one. Returns False where there is no room for it."""
        with self._changed:
            if len(self._all) >= self._limits.open:
                self._cut(self._longest_waiting())
            if self._stopping or len(self._all) >= self._limits.open:
                return False
            self._all.add(connection)
            return True

    def leave(self, connection: Connection) -> None:
        """Remove a connection, before its socket is closed."""
        with self._changed:
            self._all.discard(connection)

    def acquire_slot(self) -> bool:
        """Acquire a slot for a request in progress, after a short wait if need be. Returns False when there is none."""
        with self._changed:
            for _ in range(2):
                if self._changed.wait_for(self._has_slot, self._limits.queue_s / 2):
                    self._at_work += 1
                    return True
                self._cut(self._longest_sending())
            return False

    def release_slot(self) -> None:
        """Release the slot of a request that was answered."""
        with self._changed:
            self._at_work -= 1
            self._changed.notify_all()

    def count(self, status: int) -> None:
        """Count a response."""
        with self._changed:
            self._answers[status] += 1

    def begin_download(self) -> bool:
        with self._changed:
            if self._downloads >= self._limits.downloads:
                return False
            self._downloads += 1
            return True

    def end_download(self) -> None:
        with self._changed:
            self._downloads -= 1

    def stop(self, limit_s: float) -> str | None:
        """Close idle connections, let requests in progress finish within `limit_s` seconds, and cut off the rest."""
        with self._changed:
            self._stopping = True
            for connection in [one for one in self._all if one.waiting_since is not None]:
                self._cut(connection)
            done = self._changed.wait_for(lambda: not self._at_work, limit_s)
            left = len(self._all)
            for connection in list(self._all):
                self._cut(connection)
        return None if done else f"{left} connections were cut off"

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def counts(self) -> Mapping[str, Any]:
        """Return the numbers of connections open, at work and cut off, of downloads, and of responses by status."""
        with self._changed:
            return {
                "open": len(self._all), "at_work": self._at_work, "downloads": self._downloads,
                "answers": dict(self._answers), "cut_off": self._cut_off,
            }  # fmt: skip

    def _has_slot(self) -> bool:
        return self._at_work < self._limits.at_work

    def _longest_waiting(self) -> Connection | None:
        """Return, of the address with the most connections, the one that has waited for its client for longest.

        One that receives the body of a client that has proven who it is comes last: a long body takes its time, and
        silent connections from many addresses would cut off each node that pushes over a slow link.
        """
        waiting = [one for one in self._all if one.waiting_since is not None]
        if not waiting:
            return None
        of_host = Counter(one.host for one in self._all)
        return max(waiting, key=lambda one: (not one.is_proven, of_host[one.host], -(one.waiting_since or 0.0)))

    def _longest_sending(self) -> Connection | None:
        before = time.monotonic() - _STUCK_S
        stuck = [(since, id(one), one) for one in self._all if (since := one.sending_since) and since < before]
        return min(stuck)[2] if stuck else None

    def _cut(self, connection: Connection | None) -> None:
        if connection is None:
            return
        self._all.discard(connection)
        self._cut_off += not self._stopping
        try:
            # Not the socket's own shutdown: one that speaks TLS would go on in plain text in its thread.
            socket.socket.shutdown(connection.request, socket.SHUT_RDWR)
        except OSError:
            pass  # the client was quicker
