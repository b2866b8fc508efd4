"""Incremental parser of multipart/form-data (RFC 7578), which passes the content of each part to a Sink as it arrives.

A Multipart belongs to the thread that calls `take`.
Errors: BadMultipart, as soon as the received bytes cannot be the start of a valid form. Exceptions of the Sink are
passed on.

The Sink receives the same parts regardless of how the body is divided into blocks. The parser stores at most the head
of one part, or as much content as a boundary is long. It searches and copies each byte once, so its time is linear.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from pigeonpost.core.errors import PigeonpostError

MOST_PARTS = 64
PART_HEAD_BYTES = 4096  # maximum length of the headers of one part
_PADDING_BYTES = 64  # maximum number of blanks after a boundary; RFC 2046 (5.1.1) allows a mail gateway to add some


class BadMultipart(PigeonpostError, ValueError):
    """A body that is not valid or not complete multipart/form-data."""


class FormPart(NamedTuple):
    """Header of a part.

    Attributes:
        name: Name of the form's field.
        filename: Name of the file as received, or None if the part is not a file.
    """

    name: str
    filename: str | None


class Sink(Protocol):
    """Receiver of the parts."""

    def begin(self, part: FormPart) -> None:
        """Begin the part whose header is `part`."""

    def data(self, data: bytes) -> None:
        """Process `data`, the next block of the part's content."""

    def end(self) -> None:
        """End the part. It is complete."""


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary in the header value `content_type`, or None if that is not multipart/form-data.

    Raises:
        BadMultipart: The boundary is missing or invalid.
    """
    kind, _, rest = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        return None
    for name, quoted, bare in _PARAMETER(";" + rest):
        if name.lower() == "boundary":
            found = quoted or bare
            if _BOUNDARY(found):
                return str(found).encode("ascii")
            break
    raise BadMultipart("multipart/form-data must have a boundary of 1 to 70 letters, digits and '()+_,-./:=?")


class Multipart:
    """Parser of one body.

    Args:
        boundary: Boundary, as `boundary_of` returns it.
        sink: Receiver of the parts.
    """

    def __init__(self, boundary: bytes, sink: Sink) -> None:
        self._end = b"\r\n--" + boundary
        self._sink = sink
        self._buffer = b"\r\n"  # the end of an imaginary line, since the body may begin with the first boundary
        self._parts = 0
        self._step = self._skip

    def take(self, data: bytes | bytearray | memoryview) -> None:
        """Parse `data`, the next block of the body. Raise BadMultipart if it is invalid."""
        if self._step != self._ignore:
            self._buffer = self._buffer + data if self._buffer else bytes(data)
            while self._step():
                pass

    def finish(self) -> None:
        """End the body. Raise BadMultipart if it is incomplete."""
        if self._step != self._ignore:
            raise BadMultipart("the form ends before its last boundary")

    # Each step consumes a part of the buffer. It returns True if the next step can continue with the rest.

    def _skip(self) -> bool:
        """Discard what is before the first boundary."""
        at = self._buffer.find(self._end)
        if at < 0:
            self._buffer = self._buffer[self._boundary_start() :]
            return False
        self._buffer = self._buffer[at + len(self._end) :]
        self._step = self._after_boundary
        return True

    def _after_boundary(self) -> bool:
        """Parse the bytes after a boundary: two hyphens after the last boundary, otherwise the end of the line."""
        if len(self._buffer) < 2:
            return False
        if self._buffer.startswith(b"--"):
            self._buffer, self._step = b"", self._ignore
            return False
        line = self._buffer.find(b"\r\n", 0, _PADDING_BYTES + 2)
        blanks = self._buffer[: line if line >= 0 else _PADDING_BYTES + 2].removesuffix(b"\r")
        if blanks.strip(b" \t") or (line < 0 and len(self._buffer) >= _PADDING_BYTES + 2):
            raise BadMultipart("a boundary must be followed by the end of the line or by two hyphens")
        if line < 0:
            return False
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise BadMultipart(f"a form may have at most {MOST_PARTS} parts")
        self._buffer = self._buffer[line:]  # keeps the CR LF, so that a head without headers ends like any other head
        self._step = self._head
        return True

    def _head(self) -> bool:
        at = self._buffer.find(b"\r\n\r\n", 0, PART_HEAD_BYTES + 4)
        if at < 0:
            if len(self._buffer) >= PART_HEAD_BYTES + 4:
                raise BadMultipart(f"the head of a part may have at most {PART_HEAD_BYTES} bytes")
            return False
        part = _read_head(self._buffer[2:at]) if at else None
        if part is None:
            raise BadMultipart("each part must have the header Content-Disposition: form-data; name=...")
        # The CR LF before the content stays: in an empty part it belongs to the boundary that ends the part.
        self._buffer = self._buffer[at + 2 :]
        self._sink.begin(part)
        self._step = self._first
        return True

    def _first(self) -> bool:
        """Parse the beginning of the content, which follows the CR LF of the head."""
        if len(self._buffer) < len(self._end):
            if self._end.startswith(self._buffer):
                return False
        elif self._buffer.startswith(self._end):
            return self._part_ended(0)
        self._buffer = self._buffer[2:]
        self._step = self._content
        return True

    def _content(self) -> bool:
        at = self._buffer.find(self._end)
        if at >= 0:
            return self._part_ended(at)
        length = self._boundary_start()
        if length:
            content, self._buffer = self._buffer[:length], self._buffer[length:]
            self._sink.data(content)
        return False

    def _part_ended(self, at: int) -> bool:
        content, self._buffer = self._buffer[:at], self._buffer[at + len(self._end) :]
        if content:
            self._sink.data(content)
        self._sink.end()
        self._step = self._after_boundary
        return True

    def _ignore(self) -> bool:
        """Discard the bytes after the last boundary."""
        return False

    def _boundary_start(self) -> int:
        """Return the index in the buffer at which a boundary may begin, or the length of the buffer."""
        at = self._buffer.find(b"\r", max(0, len(self._buffer) - len(self._end) + 1))
        return at if at >= 0 else len(self._buffer)


def _read_head(head: bytes) -> FormPart | None:
    """Return the content of the headers of a part, or None if they do not contain the name of a field."""
    part = None
    try:
        text = head.decode()
    except UnicodeDecodeError:
        text = head.decode("latin-1")
    if _CONTROLS(text.replace("\r\n", "")):
        raise BadMultipart("the head of a part contains control characters")
    for line in text.split("\r\n"):
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or not name:
            raise BadMultipart("each header of a part must be one line of the form `Name: value`")
        if name == "content-transfer-encoding" and value.strip().lower() not in ("binary", "8bit", "7bit"):
            raise BadMultipart("the parts must be sent without Content-Transfer-Encoding")  # RFC 7578, section 4.7
        if name == "content-disposition":
            if part is not None:
                raise BadMultipart("a part may have only one Content-Disposition")
            part = _disposition(value)
    return part


def _disposition(value: str) -> FormPart | None:
    kind, _, rest = value.partition(";")
    found = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER(";" + rest)}
    if kind.strip().lower() != "form-data" or "name" not in found:
        return None
    filename = found.get("filename")
    extended = _EXTENDED(found.get("filename*", ""))
    if extended:
        try:
            filename = unquote_to_bytes(extended[2]).decode(extended[1])
        except UnicodeDecodeError:
            raise BadMultipart("the name of a file is not valid in the character set that it declares") from None
        if _CONTROLS(filename):
            raise BadMultipart("the name of a file contains control characters")
    elif filename is not None:
        filename = filename.replace('\\"', '"')  # other backslashes are literal: some clients send C:\folder\name
    return FormPart(found["name"].replace('\\"', '"'), filename)


# The quantifiers are possessive, so that no head of 4 KiB causes backtracking.
_PARAMETER = re.compile(r';[ \t]*+([A-Za-z0-9*_-]++)[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^;"\s]*+))').findall
_EXTENDED = re.compile(r"(?i)(utf-8|iso-8859-1)'[A-Za-z0-9-]{0,16}'([!-~]*)").fullmatch  # RFC 8187, section 3.2
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]").fullmatch  # RFC 2046, section 5.1.1
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search
