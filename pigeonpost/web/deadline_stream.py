"""Streams of a connection (rfile and wfile), with a deadline for every operation on the socket.

A stream belongs to the thread of its connection.
Errors: TimeoutError at the deadline; HTTPError from `RequestReader.readline` for an invalid head.
"""

from __future__ import annotations

import io
import select
import socket
import time
from typing import Any, TypeAlias

from pigeonpost.http.message import HTTPError, head_end

Buffer: TypeAlias = Any  # an object with the buffer protocol; Python 3.11 has no type for it


class DeadlineStream(io.RawIOBase):
    """Raw stream over a socket with a deadline. The timeout of a socket would restart with every byte.

    Each operation is tried first, and poll is called only if it would block. With socket.settimeout, each operation
    would take three system calls (ioctl, poll, recv), and another thread could take the interpreter lock between them.

    Args:
        sock: The socket. It is set to non-blocking mode. Closing the stream does not close it.

    Attributes:
        deadline_s: `time.monotonic()` by which all further reads and writes must be done.
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
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read into `buffer` and return the number of bytes. Raise TimeoutError at the deadline."""
        while True:
            left_s = self._left_s()
            try:
                return self.sock.recv_into(buffer)
            except BlockingIOError:
                self._wait(select.POLLIN, left_s)

    def write(self, data: Buffer, /) -> int:
        """Write from `data` and return the number of bytes written. Raise TimeoutError at the deadline."""
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
    """Raw stream over a TLS socket with a deadline.

    A TLS read can require a write and vice versa, so the ssl module does the waiting.
    """

    def readinto(self, buffer: Buffer, /) -> int:
        self.sock.settimeout(self._left_s())
        return self.sock.recv_into(buffer)

    def write(self, data: Buffer, /) -> int:
        self.sock.settimeout(self._left_s())
        return self.sock.send(data)


class RequestReader(io.BufferedReader):
    """Reader whose `readline`, which BaseHTTPRequestHandler calls for the request line, returns the complete head.

    Attributes:
        ahead: Number of bytes after that head that have already been received.
    """

    ahead = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the head of the next request with its empty line.

        Args:
            size: Ignored.

        Returns:
            The head, or no bytes if the client has sent no further request.

        Raises:
            HTTPError: The head is invalid, or incomplete at the deadline.
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
            raise HTTPError(408, "The request was not received completely in time.", closes=True) from None
        self.ahead = len(head) - end
        return head[:end]
