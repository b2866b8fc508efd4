"""Text of a file of readings, as lines: encoding, line ends, byte order mark, damaged lines.

UTF-8 and UTF-16 are recognised by their byte order mark, UTF-16 also by its zero bytes. A line that is not valid UTF-8
is decoded as Windows-1252, which contains Latin-1. Lines end with LF, CR LF or CR. Errors: RowError.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

from pigeonpost.core.format import counted
from pigeonpost.importing.cells import LINE_BYTES, Fault, RowError

_CHUNK_BYTES = 1 << 18
_NO_TEXT = (b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class TextLines:
    """Lines of a file, each with LF at its end.

    Args:
        file: The open file. It is read from its beginning.
        skip_bad: True to replace a damaged line with an empty one, and to add a Fault to `faults`. Otherwise a line
            that is too long raises RowError, and other damage is found by the reader of the cells.

    Raises:
        RowError: The file is an archive or a spreadsheet.

    Attributes:
        encoding: "utf-8", "utf-16-le" or "utf-16-be".
        not_utf8: Number of the first line that was decoded as Windows-1252, or 0.
        has_zeros: True after a zero byte was read.
        faults: Damaged lines that were replaced.
    """

    def __init__(self, file: BinaryIO, skip_bad: bool = False) -> None:
        self._file, self._skip_bad = file, skip_bad
        file.seek(0)
        head = file.read(_CHUNK_BYTES)
        if head.startswith(_NO_TEXT):
            raise RowError("this is an archive or a spreadsheet, not a text: unpack it, or save it as CSV")
        self._bom = next((bom for bom, _ in _BOMS if head.startswith(bom)), b"")
        self.encoding = dict(_BOMS).get(self._bom, "") or _guess(head)
        has_lf = ("\n".encode(self.encoding)) in head
        self._end = "\r" if not has_lf and "\r".encode(self.encoding) in head else "\n"
        self.not_utf8, self.faults = 0, list[Fault]()
        self.line, self.has_zeros = 0, False

    def __iter__(self) -> Iterator[str]:
        self._file.seek(len(self._bom))
        self.line, self.faults, self.has_zeros = 0, [], False
        for lines in self._chunks():
            if len(max(lines, key=len, default="")) >= LINE_BYTES or (self._skip_bad and _is_odd(lines)):
                for line in lines:
                    self.line += 1
                    yield self._checked(line)
            else:
                self.line += len(lines)
                yield from lines

    def _chunks(self) -> Iterator[list[str]]:
        """Yield lists of lines. A line that is longer than a chunk is shortened, so that memory is bounded."""
        decoder = codecs.getincrementaldecoder(self.encoding)("replace") if self.encoding != "utf-8" else None
        rest, is_end = b"", False
        text_rest = ""
        while not is_end:
            data = self._file.read(_CHUNK_BYTES)
            is_end = not data
            if decoder:
                text = text_rest + decoder.decode(data, is_end)
            else:
                data = rest + data
                # A part of a line stays for the next chunk. A multi-byte character cannot contain the end of a line.
                cut = len(data) if is_end else data.rfind(self._end.encode()) + 1
                rest = data[cut:]
                if len(rest) > LINE_BYTES + _CHUNK_BYTES:
                    rest = rest[: LINE_BYTES + 1]
                text = self._decoded(data[:cut])
            if self._end == "\r":
                text = text.replace("\r", "\n")
            if decoder:
                cut = len(text) if is_end else text.rfind("\n") + 1
                text, text_rest = text[:cut], text[cut:][: LINE_BYTES + 1 + _CHUNK_BYTES]
            self.has_zeros = self.has_zeros or "\0" in text
            yield io.StringIO(text, newline="\n").readlines()

    def _decoded(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if not self.not_utf8:
                self.not_utf8 = self.line + data[: error.start].count(self._end.encode()) + 1
        end = self._end.encode()
        return "".join(map(_decoded_line, [line + end for line in data.split(end)]))[: -len(end)]

    def _checked(self, line: str) -> str:
        if len(line) >= LINE_BYTES and not (len(line) == LINE_BYTES and line.endswith("\n")):
            text = f"the line is longer than {LINE_BYTES:,} bytes, which is the maximum"
            if not self._skip_bad:
                raise RowError(text)
            return self._replaced(text)
        if self._skip_bad and "\0" in line:
            return self._replaced(zero_bytes(line))
        if self._skip_bad and line.count('"') % 2:
            return self._replaced("a quotation mark is not closed")
        return line

    def _replaced(self, text: str) -> str:
        self.faults.append(Fault(f"line {self.line}", text))
        return "\n"


def zero_bytes(text: str) -> str:
    """Return the description of a damaged `text` with zero bytes."""
    return f"the row contains {counted(text.count(chr(0)), 'zero byte')}, as a power failure leaves them"


def _guess(head: bytes) -> str:
    """Return the encoding of a file without a byte order mark. Text in UTF-16 has a zero in nearly every other byte."""
    start = head[:200]
    if b"\n" in start and len(start) >= 4:
        for name, zeros, others in (("utf-16-le", start[1::2], start[::2]), ("utf-16-be", start[::2], start[1::2])):
            if zeros.count(0) > 0.9 * len(zeros) and not others.count(0):
                return name
    return "utf-8"


def _is_odd(lines: list[str]) -> bool:
    text = "".join(lines)
    return "\0" in text or any(line.count('"') % 2 for line in lines if '"' in line)


def _decoded_line(line: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return line.decode("latin-1")
