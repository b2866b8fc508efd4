"""Incremental parser of multipart/form-data (RFC 7578); the content of each part goes to a Sink as it arrives.

A Multipart belongs to the thread that feeds it.
Errors: BadMultipart, as soon as what was received can no longer become a valid form. Exceptions of the Sink are passed
on.

The Sink receives the same parts however a body is cut into pieces. The parser holds the head of one part, and of
content never more than the length of a boundary; its time is that of one search and one copy, whatever the body holds.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from pigeonpost.core.errors import PigeonpostError

MOST_PARTS = 64
PART_HEAD_BYTES = 4096  # of the headers of one part
_PADDING_BYTES = 64  # blanks behind a boundary, which RFC 2046 (5.1.1) lets a mail gateway add


class BadMultipart(PigeonpostError, ValueError):
    """A body that is no complete multipart/form-data."""


class FormPart(NamedTuple):
    """The header of a part: the form's field, and the file's name as received (None: it is no file)."""

    name: str
    filename: str | None


class Sink(Protocol):
    """Receiver of the parts."""

    def begin(self, part: FormPart) -> None:
        """Begin a part."""

    def data(self, data: bytes) -> None:
        """Take more of its content."""

    def end(self) -> None:
        """End the part: it is complete."""


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary in a Content-Type; None for another type. Raises BadMultipart for an invalid one."""
    kind, _, rest = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        return None
    for name, quoted, bare in _PARAMETER(";" + rest):
        if name.lower() == "boundary":
            found = quoted or bare
            if _BOUNDARY(found):
                return str(found).encode("ascii")
            break
    raise BadMultipart("multipart/form-data names its boundary, 1 to 70 plain characters")


class Multipart:
    """Parser of one body."""

    def __init__(self, boundary: bytes, sink: Sink) -> None:
        self._end = b"\r\n--" + boundary
        self._sink = sink
        self._held = b"\r\n"  # as if a line had ended: the first boundary may stand at the very beginning
        self._parts = 0
        self._step = self._skip

    def take(self, data: bytes | bytearray | memoryview) -> None:
        """Parse more of the body. Raises BadMultipart."""
        if self._step != self._ignore:
            self._held = self._held + data if self._held else bytes(data)
            while self._step():
                pass

    def finish(self) -> None:
        """End the body. Raises BadMultipart when it is incomplete."""
        if self._step != self._ignore:
            raise BadMultipart("the form ends before its last boundary")

    # Each step takes from what is held what it can; it gives whether another step may go on with the rest.

    def _skip(self) -> bool:
        """Discard what is before the first boundary."""
        at = self._held.find(self._end)
        if at < 0:
            self._held = self._held[self._unsure() :]
            return False
        self._held = self._held[at + len(self._end) :]
        self._step = self._behind_boundary
        return True

    def _behind_boundary(self) -> bool:
        """Parse what follows a boundary: two hyphens after the last, else the end of the line."""
        if len(self._held) < 2:
            return False
        if self._held.startswith(b"--"):
            self._held, self._step = b"", self._ignore
            return False
        line = self._held.find(b"\r\n", 0, _PADDING_BYTES + 2)
        blanks = self._held[: line if line >= 0 else _PADDING_BYTES + 2].removesuffix(b"\r")
        if blanks.strip(b" \t") or (line < 0 and len(self._held) >= _PADDING_BYTES + 2):
            raise BadMultipart("a boundary is followed by the end of the line, or by two hyphens")
        if line < 0:
            return False
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise BadMultipart(f"a form has at most {MOST_PARTS} parts")
        self._held = self._held[line:]  # with its CR LF, so that a head without any header ends like every other
        self._step = self._head
        return True

    def _head(self) -> bool:
        at = self._held.find(b"\r\n\r\n", 0, PART_HEAD_BYTES + 4)
        if at < 0:
            if len(self._held) >= PART_HEAD_BYTES + 4:
                raise BadMultipart(f"the head of a part has at most {PART_HEAD_BYTES} bytes")
            return False
        part = _read_head(self._held[2:at]) if at else None
        if part is None:
            raise BadMultipart("each part says what it is: Content-Disposition: form-data; name=...")
        # The CR LF before the content may be that of the boundary which ends it: a part may be empty.
        self._held = self._held[at + 2 :]
        self._sink.begin(part)
        self._step = self._first
        return True

    def _first(self) -> bool:
        """Parse the very beginning of a content, behind the CR LF of the head."""
        if len(self._held) < len(self._end):
            if self._end.startswith(self._held):
                return False
        elif self._held.startswith(self._end):
            return self._part_ended(0)
        self._held = self._held[2:]
        self._step = self._content
        return True

    def _content(self) -> bool:
        at = self._held.find(self._end)
        if at >= 0:
            return self._part_ended(at)
        sure = self._unsure()
        if sure:
            content, self._held = self._held[:sure], self._held[sure:]
            self._sink.data(content)
        return False

    def _part_ended(self, at: int) -> bool:
        content, self._held = self._held[:at], self._held[at + len(self._end) :]
        if content:
            self._sink.data(content)
        self._sink.end()
        self._step = self._behind_boundary
        return True

    def _ignore(self) -> bool:
        """Discard what is behind the last boundary."""
        return False

    def _unsure(self) -> int:
        """Return the position from which held bytes may be the beginning of a boundary."""
        at = self._held.find(b"\r", max(0, len(self._held) - len(self._end) + 1))
        return at if at >= 0 else len(self._held)


def _read_head(head: bytes) -> FormPart | None:
    """Return the headers of a part; None where they do not name a field."""
    part = None
    try:
        text = head.decode()
    except UnicodeDecodeError:
        text = head.decode("latin-1")
    if _CONTROLS(text.replace("\r\n", "")):
        raise BadMultipart("the head of a part has control characters in it")
    for line in text.split("\r\n"):
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or not name:
            raise BadMultipart("a header of a part is written `Name: value`, in one line")
        if name == "content-transfer-encoding" and value.strip().lower() not in ("binary", "8bit", "7bit"):
            raise BadMultipart("the parts come as they are, not encoded")  # RFC 7578, section 4.7
        if name == "content-disposition":
            if part is not None:
                raise BadMultipart("a part says once what it is")
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
            raise BadMultipart("the name of a file is not in the letters that it says") from None
        if _CONTROLS(filename):
            raise BadMultipart("the name of a file has control characters in it")
    elif filename is not None:
        filename = filename.replace('\\"', '"')  # other backslashes stand for themselves: some send C:\folder\name
    return FormPart(found["name"].replace('\\"', '"'), filename)


# Possessive: nothing is tried twice, whatever a head of 4 KiB says.
_PARAMETER = re.compile(r';[ \t]*+([A-Za-z0-9*_-]++)[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^;"\s]*+))').findall
_EXTENDED = re.compile(r"(?i)(utf-8|iso-8859-1)'[A-Za-z0-9-]{0,16}'([!-~]*)").fullmatch  # RFC 8187, section 3.2
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]").fullmatch  # RFC 2046, section 5.1.1
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search
