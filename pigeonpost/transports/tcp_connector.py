"""Non-blocking TCP connect: look up the host's name, then try each of its addresses in turn.

A Connector belongs to the thread of its ConnectionLoop; the result of the look-up wakes that thread.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable

from pigeonpost.core.name_lookup import Found
from pigeonpost.transports.connection_loop import ConnectionLoop, LoopMember

CONNECT_S = 10.0  # longest wait for each address of a host


class Connector:
    """One attempt to connect to a host.

    Args:
        address: Host name or address, and port.
        loop: The loop that serves `member`.
        member: The loop member that makes the attempt; it calls `step` whenever it is served.

    Raises:
        RuntimeError: The thread that looks up the name cannot be started.
    """

    def __init__(self, address: tuple[str, int], loop: ConnectionLoop, member: LoopMember) -> None:
        self._loop, self._member = loop, member
        self._result: Callable[[], Found] | None = None  # after the look-up: returns its result or raises its error
        self._found: Found | None = None
        self._sock: socket.socket | None = None
        self._give_up_s = 0.0
        self._error: OSError = OSError(errno.EADDRNOTAVAIL, "the host name has no address")
        loop.lookup.find(address, self._answer)

    def _answer(self, find: Callable[[], Found]) -> None:
        self._result = find
        self._loop.wake(self._member)

    def step(self) -> socket.socket | None:
        """Continue the attempt. Return the connected socket, or None if it is not connected yet.

        Raises:
            OSError: No address can be reached; the error is that of the last address.
        """
        if self._found is None:
            if self._result is None:
                return None
            self._found = self._result()
        while self._sock is None or not self._is_connected():
            if self._sock is not None:
                return None
            if not self._found:
                raise self._error
            self._begin(*self._found.pop(0))
        sock, self._sock = self._sock, None
        self._loop.unwatch(self._member)
        return sock

    def _begin(self, family: int, address: tuple[str, int]) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            number = sock.connect_ex(address)
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
            self._loop.watch(self._member, sock.fileno(), select.EPOLLOUT)
        except OSError as error:
            sock.close()
            self._error = error
            return
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        self._give_up_s = self._loop.clock.monotonic() + CONNECT_S
        self._loop.call_in(self._member, CONNECT_S)

    def _is_connected(self) -> bool:
        """Return True if the socket is connected; close it if it failed."""
        assert self._sock is not None
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._fail(OSError(number, os.strerror(number)))
            return False
        try:
            self._sock.getpeername()
            return True
        except OSError:  # ENOTCONN: not connected yet
            left_s = self._give_up_s - self._loop.clock.monotonic()
        if left_s > 0:
            self._loop.call_in(self._member, left_s)
        else:
            self._fail(TimeoutError("timed out"))
        return False

    def _fail(self, error: OSError) -> None:
        self._error = error
        self.close()

    def close(self) -> None:
        """Abandon the attempt; a second call does nothing."""
        if self._sock is not None:
            self._loop.unwatch(self._member)
            self._sock.close()
            self._sock = None
