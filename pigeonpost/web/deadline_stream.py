"""The rfile and wfile of a connection: buffered streams over a socket on which every operation has a deadline.

Threads: a stream belongs to the thread of its connection.
Errors: TimeoutError at the deadline; HTTPError from `RequestReader.readline`, for a head that is refused.
"""

from __future__ import annotations

import io
import socket
import time
from typing import TYPE_CHECKING

from pigeonpost.http.message import HTTPError, head_end

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class DeadlineStream(io.RawIOBase):
    """A socket as a raw stream. A socket's own timeout starts again with every byte; this deadline does not.

    sock        the socket, plain or TLS; closing the stream leaves it open
    deadline_s  the time.monotonic() by which all reads and writes that follow must be done
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.deadline_s = 0.0

    def allow(self, limit_s: float) -> None:
        """Set the deadline to `limit_s` seconds from now."""
        self.deadline_s = time.monotonic() + limit_s

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._set_timeout()
        return self.sock.recv_into(buffer)

    def write(self, data: ReadableBuffer, /) -> int:
        self._set_timeout()
        return self.sock.send(data)

    def _set_timeout(self) -> None:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        self.sock.settimeout(left_s)


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
