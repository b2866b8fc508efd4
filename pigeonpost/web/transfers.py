"""Uploads and downloads: long bodies moved block by block, at a minimum pace, and never held in memory.

Threads: that of the connection.
Errors: TimeoutError where the client makes no progress, or too little; ConnectionAbortedError for a file that has
  become shorter than was promised; HTTPError for an upload that is cut short.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING

from pigeonpost.http.message import HTTPError

if TYPE_CHECKING:
    from io import BufferedIOBase

    from pigeonpost.http.message import BodyConsumer, FilePart
    from pigeonpost.web.deadline_stream import DeadlineStream

_STALL_S = 30.0  # a download or an upload that makes no progress for so long is cut off,
_SLOWEST_BYTES_S = 4096.0  # and so is one that is slower than this, after its first minute
_BLOCK_BYTES = 256 << 10  # of an upload at once
_TLS_BLOCK_BYTES = 64 << 10  # of a download over TLS at once


def receive(stream: DeadlineStream, reader: BufferedIOBase, length: int, consumer: BodyConsumer) -> None:
    """Pass `length` bytes of body on to their consumer as they come, which abandons what is cut short."""
    began_s, received = time.monotonic(), 0
    try:
        while received < length:
            stream.deadline_s = _deadline_s(began_s, received)
            block = reader.read1(min(length - received, _BLOCK_BYTES))
            if not block:
                raise cut_body()
            received += len(block)
            consumer.take(block)
    except BaseException as error:
        consumer.abandon()
        if isinstance(error, TimeoutError):
            raise cut_body() from None
        if isinstance(error, HTTPError):
            error.closes = True  # what else of the body comes would be taken for a request
        raise


def send_file(sock: socket.socket, part: FilePart) -> None:
    """Send a file from the page cache inside the kernel, as socket.sendfile does, but at a minimum pace."""
    sent, began_s = 0, time.monotonic()
    writable = select.poll()
    writable.register(sock, select.POLLOUT)
    while sent < part.length:
        left_s = _deadline_s(began_s, sent) - time.monotonic()
        if left_s <= 0 or not writable.poll(left_s * 1000):
            raise TimeoutError("the client reads too slowly")
        try:
            step = os.sendfile(sock.fileno(), part.fd, part.start + sent, part.length - sent)
        except BlockingIOError:
            continue
        if not step:
            raise _shortened()
        sent += step


def send_file_over_tls(stream: DeadlineStream, writer: BufferedIOBase, part: FilePart) -> None:
    """Send a file through this program's memory, where TLS is made."""
    sent, began_s = 0, time.monotonic()
    while sent < part.length:
        block = os.pread(part.fd, min(_TLS_BLOCK_BYTES, part.length - sent), part.start + sent)
        if not block:
            raise _shortened()
        stream.deadline_s = _deadline_s(began_s, sent)
        writer.write(block)
        writer.flush()
        sent += len(block)


def cut_body() -> HTTPError:
    """Return the error for a body of which a part is missing."""
    return HTTPError(408, "The body did not come whole in time.", closes=True)


def _deadline_s(began_s: float, moved_bytes: int) -> float:
    """Return the time.monotonic() by which the next block must have moved."""
    return min(began_s + 60 + moved_bytes / _SLOWEST_BYTES_S, time.monotonic() + _STALL_S)


def _shortened() -> ConnectionAbortedError:
    return ConnectionAbortedError("the file has become shorter")
