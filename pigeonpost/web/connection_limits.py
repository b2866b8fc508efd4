"""Limits on connections to the web server and on requests in progress, and the choice of connections to close.

All functions may be called from any thread. `_changed` (a Condition and its lock) guards everything.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from pigeonpost.core.format import counted

_STUCK_S = 1.0  # a response whose sending takes longer is considered stuck, because its client does not read


class Limits(NamedTuple):
    """Limits on time and number. Tests use smaller values.

    Attributes:
        head_s: Seconds for receiving a complete head.
        body_s: Seconds for receiving a complete body.
        idle_s: Seconds until the next request on a connection.
        send_s: Seconds for sending a response.
        at_work: Maximum number of requests in progress.
        queue_s: Seconds for which a further request waits for a slot.
        open: Maximum number of open connections.
        downloads: Maximum number of files being sent, in addition to the requests in progress.
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
    """Attributes of a connection that Connections uses.

    Attributes:
        request: Socket of the connection.
        host: Address of the client.
        waiting_since: `time.monotonic()` since which the server has been waiting for data of the client, or None if it
            is not waiting.
        sending_since: `time.monotonic()` at which sending the current response began, or None.
        is_proven: True if the client that is sending a body has authenticated.
    """

    request: socket.socket
    host: str
    waiting_since: float | None
    sending_since: float | None
    is_proven: bool


class Connections:
    """Open connections and requests in progress.

    Args:
        limits: Limits on time and number.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Guards everything below. It is held while counting, choosing and shutting down a socket, but never while
        # transferring data. A connection leaves before its socket is closed, so the file descriptors of the connections
        # in `_all` have not been reused.
        self._changed = threading.Condition()
        self._all: set[Connection] = set()
        self._at_work = 0
        self._downloads = 0
        self._stopping = False
        self._answers: Counter[int] = Counter()
        self._cut_off = 0

    def enter(self, connection: Connection) -> bool:
        """Add `connection`, closing an idle one at the limit. Return False if there are too many connections."""
        with self._changed:
            if len(self._all) >= self._limits.open:
                self._shut_down(self._longest_waiting())
            if self._stopping or len(self._all) >= self._limits.open:
                return False
            self._all.add(connection)
            return True

    def leave(self, connection: Connection) -> None:
        """Remove `connection`. This must be called before its socket is closed."""
        with self._changed:
            self._all.discard(connection)

    def acquire_slot(self) -> bool:
        """Acquire a slot for a request in progress, after a short wait if necessary. Return False if none is free."""
        with self._changed:
            for _ in range(2):
                if self._changed.wait_for(self._has_slot, self._limits.queue_s / 2):
                    self._at_work += 1
                    return True
                self._shut_down(self._longest_sending())
            return False

    def release_slot(self) -> None:
        """Release the slot of a request after its response."""
        with self._changed:
            self._at_work -= 1
            self._changed.notify_all()

    def count(self, status: int) -> None:
        """Count a response with the status code `status`."""
        with self._changed:
            self._answers[status] += 1

    def begin_download(self) -> bool:
        """Acquire a slot for sending a file. Return False if none is free."""
        with self._changed:
            if self._downloads >= self._limits.downloads:
                return False
            self._downloads += 1
            return True

    def end_download(self) -> None:
        """Release the slot for sending a file."""
        with self._changed:
            self._downloads -= 1

    def stop(self, limit_s: float) -> str | None:
        """Close idle connections, let requests in progress finish within `limit_s` seconds, and close the rest.

        Return a message if requests in progress were aborted, or None.
        """
        with self._changed:
            self._stopping = True
            for connection in [connection for connection in self._all if connection.waiting_since is not None]:
                self._shut_down(connection)
            done = self._changed.wait_for(lambda: not self._at_work, limit_s)
            remaining = len(self._all)
            for connection in list(self._all):
                self._shut_down(connection)
        return None if done else f"{counted(remaining, 'connection')} closed before the end of the response"

    @property
    def is_stopping(self) -> bool:
        """True after `stop` was called."""
        return self._stopping

    def counts(self) -> Mapping[str, Any]:
        """Return the numbers of open connections, requests in progress, downloads, and responses by status.

        `cut_off` is the number of connections that were closed because of a limit.
        """
        with self._changed:
            return {
                "open": len(self._all), "at_work": self._at_work, "downloads": self._downloads,
                "answers": dict(self._answers), "cut_off": self._cut_off,
            }  # fmt: skip

    def _has_slot(self) -> bool:
        return self._at_work < self._limits.at_work

    def _longest_waiting(self) -> Connection | None:
        """Return the connection that has waited longest for its client, from the address with the most connections.

        A connection that is receiving the body of an authenticated client is chosen last. A long body takes time, and
        otherwise silent connections from many addresses could disconnect each node that pushes over a slow link.
        """
        waiting = [connection for connection in self._all if connection.waiting_since is not None]
        if not waiting:
            return None
        of_host = Counter(connection.host for connection in self._all)
        return max(
            waiting,
            key=lambda connection: (
                not connection.is_proven,
                of_host[connection.host],
                -(connection.waiting_since or 0.0),
            ),
        )

    def _longest_sending(self) -> Connection | None:
        before = time.monotonic() - _STUCK_S
        stuck = [
            (since, id(connection), connection)
            for connection in self._all
            if (since := connection.sending_since) and since < before
        ]
        return min(stuck)[2] if stuck else None

    def _shut_down(self, connection: Connection | None) -> None:
        if connection is None:
            return
        self._all.discard(connection)
        self._cut_off += not self._stopping
        try:
            # Not the method of an SSLSocket, which would end TLS: its thread would continue in plain text.
            socket.socket.shutdown(connection.request, socket.SHUT_RDWR)
        except OSError:
            pass  # the client has already closed the connection
