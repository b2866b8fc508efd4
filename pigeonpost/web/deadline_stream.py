"""The rfile and wfile of a connection: buffered streams over a socket on which every operation has a deadline.

Threads: a stream belongs to the thread of its connection.
Errors: TimeoutError at the deadline; HTTPError from `RequestReader.readline`, for a head that is refused.
"""

from __future__ import annotations

import io
import select
import socket
import time
from typing import Any, TypeAlias

from pigeonpost.http.message import HTTPError, head_end

Buffer: TypeAlias = Any  # an object with the buffer protocol, for which Python 3.11 has no type


class DeadlineStream(io.RawIOBase):
    """A socket as a raw stream. A socket's own timeout starts again with every byte; this deadline does not.

    Each operation is tried first, and waited for with poll where it has to be. With socket.settimeout each would take
    three system calls (ioctl, poll, recv), and between any two of them another thread may take the interpreter's lock.

    sock        the socket; it becomes non-blocking, and closing the stream leaves it open
    deadline_s  the time.monotonic() by which all reads and writes that follow must be done
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.deadline_s = 0.0
        sock.setblocking(False)

    def allow(self, limit_s: float) -> None:
        """Set the deadline to `limit_s` seconds from now."""
        self.deadline_s = time.monotonic() + limit_s

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        while True:
            left_s = self._left_s()
            try:
                return self.sock.recv_into(buffer)
            except BlockingIOError:
                self._wait(select.POLLIN, left_s)

    def write(self, data: Buffer, /) -> int:
        while True:
            left_s = self._left_s()
            try:
                return self.sock.send(data)
            except BlockingIOError:
                self._wait(select.POLLOUT, left_s)

    def _left_s(self) -> float:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        return left_s

    def _wait(self, event: int, limit_s: float) -> None:
        poll = select.poll()
        poll.register(self.sock, event)
        poll.poll(limit_s * 1000)


class TlsStream(DeadlineStream):
    """The same for TLS, where a read may have to write and the reverse: ssl does the waiting."""

    def readinto(self, buffer: Buffer, /) -> int:
        self.sock.settimeout(self._left_s())
        return self.sock.recv_into(buffer)

    def write(self, data: Buffer, /) -> int:
        self.sock.settimeout(self._left_s())
        return self.sock.send(data)


class RequestReader(io.BufferedReader):
    """An rfile whose `readline`, with which BaseHTTPRequestHandler asks for a request line, returns the whole head.

    ahead  the number of bytes behind that head that have already been received
    """

    ahead = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the head of the next request with its empty line; nothing where the client sends no more.

        Raises HTTPError at the deadline, and as soon as what has come can no longer become a valid head.
        """
        head, end = b"", 0
        try:
            while not end:
                received = self.peek()
                if not received:
                    return b""
                begin, head = len(head), head + received
                end = head_end(head)
                self.read(end - begin if end else len(received))
        except TimeoutError:
            if not head:
                return b""
            raise HTTPError(408, "The request did not come whole in time.", closes=True) from None
        self.ahead = len(head) - end
        return head[:end]
