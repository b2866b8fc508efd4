"""Uploads and downloads of long bodies, which are transferred block by block with a minimum speed.

A body is never in memory completely. All functions run in the thread of the connection.
Errors: TimeoutError for a client that is too slow; ConnectionAbortedError for a file that has become shorter than the
announced length; HTTPError for an incomplete upload.
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

_STALL_S = 30.0  # a transfer without progress for this time is aborted
_SLOWEST_BYTES_S = 4096.0  # minimum speed in bytes per second, after the first minute of a transfer
_BLOCK_BYTES = 256 << 10  # block size of an upload
_TLS_BLOCK_BYTES = 64 << 10  # block size of a download over TLS


def receive(stream: DeadlineStream, reader: BufferedIOBase, length: int, consumer: BodyConsumer) -> None:
    """Receive a body and pass it on to its consumer. If the body is incomplete, call `consumer.abandon`.

    Args:
        stream: Stream of the connection, for the deadline.
        reader: Reader on top of this stream.
        length: Length of the body in bytes.
        consumer: Receiver of the body.

    Raises:
        HTTPError: The body is incomplete, or the consumer does not accept it.
    """
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
            error.closes = True  # the rest of the body would be interpreted as the next request
        raise


def send_file(sock: socket.socket, part: FilePart) -> None:
    """Send the part `part` of a file to the socket `sock` inside the kernel, as socket.sendfile does.

    Unlike socket.sendfile, this function requires a minimum speed.

    Raises:
        TimeoutError: The client reads too slowly.
        ConnectionAbortedError: The file has become shorter.
    """
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
    """Send a part of a file over TLS, for which the data must be copied into the memory of this program.

    Args:
        stream: Stream of the connection, for the deadline.
        writer: Writer on top of this stream.
        part: Part of the file.

    Raises:
        TimeoutError: The client reads too slowly.
        ConnectionAbortedError: The file has become shorter.
    """
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
    """Return the HTTPError for an incomplete body."""
    return HTTPError(408, "The body was not received completely in time.", closes=True)


def _deadline_s(began_s: float, sent_bytes: int) -> float:
    """Return the `time.monotonic()` by which the next block must have been transferred."""
    return min(began_s + 60 + sent_bytes / _SLOWEST_BYTES_S, time.monotonic() + _STALL_S)


def _shortened() -> ConnectionAbortedError:
    return ConnectionAbortedError("the file has become shorter")
