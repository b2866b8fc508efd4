r"""Strict sequential reader of tar archives with regular files in ustar or pax format. It rejects everything else.

Errors: BadArchive, which names the archive, the member and the reason; OSError of the disk.

An archive is untrusted input, so the module `tarfile` is not used. In Python 3.11.2 (Raspberry Pi OS bookworm) it has
no extraction filters, needs quadratic time for crafted headers (CVE-2024-6232), can loop without end on negative
offsets (CVE-2025-8194), and keeps pax headers and GNU long names of any length in memory.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header". An archive is a sequence of blocks of
512 bytes. Records and content are padded to full blocks:

    header, type x    optional; the size of the records
    records           "LENGTH KEYWORD=VALUE\n" each; they replace fields of the header that follows
    header, type 0    name, size, modification time, checksum
    content           of the file; its length is the size in the header
    end               two blocks of zeros, then zeros up to a multiple of the record size
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from pigeonpost.core.errors import PigeonpostError

BLOCK_BYTES = 512
PAX_BYTES = 8 << 10  # maximum size of the pax records of a file: a path has at most 4096 bytes (PATH_MAX)
PADDING_BYTES = 1 << 20  # maximum padding after the end: a record has 10 KiB, or the size set with `tar -b`
MEMBERS = 500_000  # maximum number of files

# name, _NUMBERS, checksum, type, magic with version, prefix. Link, owner name and device are not used.
_FIELDS = struct.Struct("100s 8s 8s 8s 12s 12s 8s c 100x 8s 80x 155s 12x")
_NUMBERS = "mode", "uid", "gid", "size", "mtime"
_OCTAL = re.compile(rb"([0-7]+)[ \0]+").fullmatch
_RECORD_LENGTH = re.compile(rb"([1-9][0-9]{0,3}) ").match
_CHARACTERS = re.compile(r"[^\0\\\ud800-\udfff]*").fullmatch  # surrogates: bytes that are not UTF-8
# Keywords of pax records, with their valid values. Those in the last line are ignored, because they change neither the
# content nor the path of a file. GNU tar always writes atime and ctime. Every other keyword is rejected, because it may
# change them: hdrcharset changes the name, GNU.sparse.* the size and content, and vendor keywords anything.
_KEYWORDS = {
    b"path": re.compile("(?s:.+)").fullmatch,  # checked like every name
    b"size": re.compile(r"0|[1-9][0-9]{0,17}").fullmatch,
    b"mtime": re.compile(r"-?[0-9]{1,12}(?:\.[0-9]{1,20})?").fullmatch,
    **dict.fromkeys((b"atime", b"ctime", b"comment", b"uid", b"gid", b"uname", b"gname"), re.compile("").match),
}
_REMEDY = "extract it, and pack it again in that folder: find * -type f | tar --format=pax -cf ../NEW.tar -T -"
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device",
    b"5": f"a directory: {_REMEDY}", b"6": "a FIFO", b"7": "a contiguous file", b"g": "a pax global header",
    b"K": "a GNU long link name", b"L": "a GNU long name", b"S": "a GNU sparse file",
}  # fmt: skip


class BadArchive(PigeonpostError, ValueError):
    """File that is not a tar archive, is damaged, or contains something that this reader rejects."""


class Member(NamedTuple):
    """File in an archive.

    Attributes:
        name: Relative path. No component is empty, "." or "..", and it contains no backslash and no NUL.
        size: Size of the content, in bytes.
        mtime: Time of the last modification, in seconds since 1970 (UTC); negative for earlier times.
        source: Content, which can be read until the next member is requested.
    """

    name: str
    size: int
    mtime: float
    source: Content


def read_members(file: IO[bytes], path: str, most: int = MEMBERS) -> Iterator[Member]:
    """Yield the files of a tar archive, from the current position of `file` to its end, in order.

    A name may occur twice. Source: POSIX.1-2017, pax, "ustar Interchange Format".

    Args:
        file: Binary file. If it is seekable, content that the caller does not read is skipped.
        path: Name of the archive for error messages.
        most: Maximum number of members, 1 or more.

    Raises:
        BadArchive: The archive is rejected. This may also happen while content is read.
    """
    archive, count = _Archive(file, path), 0
    while (header := _next_header(archive)) is not None:
        if (count := count + 1) > most:
            raise archive.error(f"contains more than {most:,} files")
        member = _member(archive, header)
        yield member
        archive.skip(member.source.left + -member.size % BLOCK_BYTES)
        archive.place = f"after {member.name!r:.100}"


class Content:
    """Content of one member.

    Attributes:
        left: Number of bytes that have not been read yet.
    """

    def __init__(self, archive: _Archive, size: int) -> None:
        """Initialise the content of `size` bytes at the current position of `archive`."""
        self._archive = archive
        self.left = size

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes, or none at the end of the member.

        Raises:
            BadArchive: The archive is truncated.
        """
        block = self._archive.read(min(size, self.left)) if self.left else b""
        self.left -= len(block)
        return block


class _Archive:
    """Sequential reader of the bytes of an archive. `place` describes the position for error messages."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file, self._path = file, path
        self.place = "at its beginning"
        self._end: int | None = None  # None if it is unknown
        if file.seekable():
            at, self._end = file.tell(), file.seek(0, os.SEEK_END)
            file.seek(at)

    def error(self, reason: str, name: str | bytes = "") -> BadArchive:
        """Return an error about the member `name` or about the archive. `reason` is the end of the sentence."""
        shown = name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
        return BadArchive(f"{self._path}: {f'{shown!r:.100} ' if shown else ''}{reason}")

    def read(self, size: int, exactly: bool = False) -> bytes:
        """Return 1 to `size` bytes, or exactly `size`. Raise BadArchive if there are fewer."""
        block = b""
        while len(block) < (size if exactly else 1):
            more = self._file.read(size - len(block))
            if not more:
                raise self.error(f"its end is missing: it is truncated {self.place}")
            block += more
        return block

    def skip(self, size: int) -> None:
        """Skip `size` bytes. If the archive is truncated there, the next read may detect it."""
        if self._end is not None:
            self._file.seek(size, os.SEEK_CUR)
            return
        while size:
            size -= len(self.read(min(size, 1 << 16)))

    def check_size(self, name: str, size: int) -> None:
        """Reject a file that is larger than the rest of the archive.

        So the extracted files cannot be larger in total than the archive.
        """
        left = size if self._end is None else max(0, self._end - self._file.tell())
        if size > left:
            raise self.error(f"is truncated: its size in the header is {size:,} bytes, but only {left:,} follow", name)

    def check_end(self) -> None:
        """Check that the first block of zeros is followed by a second one, and then only by zeros."""
        if any(self.read(BLOCK_BYTES, exactly=True)):
            raise self.error(f"is damaged: a single block of zeros {self.place}")
        count = 0
        while block := self._file.read(1 << 16):
            count += len(block)
            if count > PADDING_BYTES or block.count(0) < len(block):
                raise self.error(f"contains data after its end, which is {self.place}")


class _Header(NamedTuple):
    name: bytes
    size: int
    mtime: int
    kind: bytes


def _next_header(archive: _Archive) -> _Header | None:
    """Return the next header; None at the end of the archive."""
    block = archive.read(BLOCK_BYTES, exactly=True)
    if not any(block):
        archive.check_end()
        return None
    name, *numbers, checksum, kind, magic, prefix = _FIELDS.unpack(block)
    expected = _OCTAL(checksum)
    if expected is None or int(expected[1], 8) != sum(block) - sum(checksum) + len(checksum) * ord(" "):
        raise archive.error(f"is not a tar archive, or is compressed or damaged: no header {archive.place}")
    name = (prefix.rstrip(b"\0") + b"/" + name if any(prefix) else name).rstrip(b"\0")
    if magic != b"ustar\x0000":
        form = "the GNU tar" if magic == b"ustar  \0" else "an old"
        raise archive.error(f"is in {form} format, not in ustar or pax format: {_REMEDY}", name)
    *_, size, mtime = (_number(archive, name, label, field) for label, field in zip(_NUMBERS, numbers))
    return _Header(name, size, mtime, kind)


def _number(archive: _Archive, name: bytes, label: str, field: bytes) -> int:
    """Return the value of a numeric field: octal digits, then spaces or NULs. GNU's base-256 form is rejected."""
    if number := _OCTAL(field):
        return int(number[1], 8)
    raise archive.error(f"is refused: its {label} is not an octal number: {field!r}", name)


def _member(archive: _Archive, header: _Header) -> Member:
    """Return the file that begins with `header`, with the fields that a pax header replaces."""
    records = _records(archive, header) if header.kind == b"x" else {}
    if header.kind == b"x":
        following = _next_header(archive)
        if following is None or following.kind == b"x":
            raise archive.error("is damaged: a pax header is not followed by a file", header.name)
        header = following
    name = records.get(b"path") or header.name.decode(errors="surrogateescape")
    if header.kind not in (b"0", b"\0"):
        kind = _KINDS.get(header.kind, f"of the unknown type {header.kind!r}")
        raise archive.error(f"is refused: it is not a regular file, but {kind}", name)
    if fault := _fault_of_name(name):
        raise archive.error(f"is refused: its name {fault}", name or "a file")
    size = int(records.get(b"size", header.size))
    archive.check_size(name, size)
    archive.place = f"in {name!r:.100}"
    return Member(name, size, float(records.get(b"mtime", header.mtime)), Content(archive, size))


def _fault_of_name(name: str) -> str:
    """Return what is invalid about a member's name; empty if it is valid."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "is a path outside of the folder"
    if "" in parts or "." in parts:
        return f"contains an empty component or '.': {_REMEDY}"
    return "" if _CHARACTERS(name) else "contains a NUL or a backslash, or is not in UTF-8"


def _records(archive: _Archive, header: _Header) -> dict[bytes, str]:
    """Return the records of a pax header by keyword. Source: POSIX.1-2017, pax, "pax Extended Header"."""
    if not 0 < header.size <= PAX_BYTES:
        raise archive.error(f"is refused: a pax header of {header.size:,} bytes, not 1 to {PAX_BYTES:,}", header.name)
    data = archive.read(header.size + -header.size % BLOCK_BYTES, exactly=True)[: header.size]
    records: dict[bytes, str] = {}
    at = 0
    while at < len(data):
        keyword, value, at = _record(archive, header.name, data, at)
        if keyword in records:
            raise archive.error(f"is refused: its pax header contains {keyword.decode()} twice", header.name)
        records[keyword] = text = value.decode(errors="surrogateescape")
        if not _KEYWORDS[keyword](text):
            raise archive.error(f"is refused: invalid {keyword.decode()} in a pax header: {text!r:.60}", header.name)
    return records


def _record(archive: _Archive, name: bytes, data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Return the keyword and value of the pax record at `at`, and the position of the next record."""
    length = _RECORD_LENGTH(data, at)
    end = at + int(length[1]) if length else at
    keyword, equals, value = data[length.end() if length else at : end].partition(b"=")
    if end > len(data) or not equals or not value.endswith(b"\n"):
        raise archive.error(f"is damaged: no valid record at byte {at} of its pax header", name)
    if keyword not in _KEYWORDS:
        raise archive.error(f"is refused: its pax header contains the unknown keyword {keyword!r:.60}", name)
    return keyword, value[:-1], end
