"""Uploads and downloads of long bodies, which are transferred block by block with a minimum speed.

A body is never in memory completely. All functions run in the thread of the connection.
Errors: TimeoutError for a client that is too slow; ConnectionAbortedError for a file that has become shorter than the
announced length; HTTPError for an incomplete upload.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pigeonpost.http.message import HTTPError

if TYPE_CHECKING:
    from io import BufferedIOBase

    from pigeonpost.http.message import BodyConsumer, FilePart
    from pigeonpost.web.deadline_stream import DeadlineStream

_STALL_S = 30.0  # a transfer without progress for this time is aborted
_SLOWEST_BYTES_S = 4096.0  # minimum speed in bytes per second, after the first minute of a transfer
_BLOCK_BYTES = 256 << 10  # block size of an upload
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n").fullmatch
_SIZE_LINE_BYTES = 10  # maximum length of such a line
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
    with _abandoned_on_error(consumer):
        while received < length:
            received += _pass_on(stream, reader, length - received, consumer, began_s, received)


def receive_chunked(stream: DeadlineStream, reader: BufferedIOBase, most: int, consumer: BodyConsumer) -> None:
    """Receive a chunked body (RFC 9112, section 7.1) and pass it on to its consumer.

    Chunk extensions and trailers are refused: no known client sends them, and programs interpret them differently.

    Args:
        stream: Stream of the connection, for the deadline.
        reader: Reader on top of this stream.
        most: Maximum length of the body in bytes.
        consumer: Receiver of the body. If the body is incomplete, `consumer.abandon` is called.

    Raises:
        HTTPError: The body is incomplete, invalid or too long, or the consumer does not accept it.
    """
    began_s, received = time.monotonic(), 0
    with _abandoned_on_error(consumer):
        while True:
            stream.deadline_s = _deadline_s(began_s, received)
            size = _chunk_size(reader)
            if received + size > most:
                raise HTTPError(413, f"The body may have at most {most} bytes.", closes=True)
            end = received + size
            while received < end:
                received += _pass_on(stream, reader, end - received, consumer, began_s, received)
            if _exactly(reader, 2) != b"\r\n":
                raise _bad_chunk()
            if not size:
                return


@contextlib.contextmanager
def _abandoned_on_error(consumer: BodyConsumer) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        consumer.abandon()
        if isinstance(error, TimeoutError):
            raise cut_body() from None
        if isinstance(error, HTTPError):
            error.closes = True  # the rest of the body would be interpreted as the next request
        raise


def _pass_on(
    stream: DeadlineStream, reader: BufferedIOBase, most: int, consumer: BodyConsumer, began_s: float, received: int
) -> int:
    """Read up to `most` bytes, pass them on, and return their number. Raise HTTPError at the end of the connection."""
    stream.deadline_s = _deadline_s(began_s, received)
    block = reader.read1(min(most, _BLOCK_BYTES))
    if not block:
        raise cut_body()
    consumer.take(block)
    return len(block)


def _chunk_size(reader: BufferedIOBase) -> int:
    """Return the size in the line at the start of a chunk: hexadecimal digits and CR LF."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _SIZE_LINE_BYTES:
        line += _exactly(reader, 1)
    found = _SIZE_LINE(line)
    if not found:
        raise _bad_chunk()
    return int(found[1], 16)


def _exactly(reader: BufferedIOBase, count: int) -> bytes:
    data = reader.read(count)
    if len(data) < count:
        raise cut_body()
    return data


def _bad_chunk() -> HTTPError:
    return HTTPError(
        400, "The chunked body is not valid: each chunk is `SIZE CRLF DATA CRLF`, the last 0.", closes=True
    )


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
