"""Strict sequential reader of tar archives: regular files in ustar or pax format, nothing else.

Errors: BadArchive, which names the archive, the member and the reason; OSError of the disk.

An archive is untrusted input. `tarfile` does not read it: in Python 3.11.2 (Raspberry Pi OS bookworm) it has no
extraction filters, needs quadratic time for crafted headers (CVE-2024-6232), can loop for ever on negative offsets
(CVE-2025-8194), and keeps pax headers and GNU long names of any length in memory.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header". An archive is a sequence of blocks of
512 bytes; records and content are padded to a whole block:

    header, type x    optional; the size of the records
    records           "LENGTH KEYWORD=VALUE\\n" each; they replace fields of the header that follows
    header, type 0    name, size, modification time, checksum
    content           of the file, as many bytes as its size says
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
PAX_BYTES = 8 << 10  # of records before a file: a path has at most 4096 bytes (PATH_MAX)
PADDING_BYTES = 1 << 20  # behind the two blocks of zeros: a record has 10 KiB, or what `tar -b` says
MEMBERS = 500_000

# name, _NUMBERS, checksum, type, magic with version, prefix; link, owner's name and device are not used
_FIELDS = struct.Struct("100s 8s 8s 8s 12s 12s 8s c 100x 8s 80x 155s 12x")
_NUMBERS = "mode", "uid", "gid", "size", "mtime"
_OCTAL = re.compile(rb"([0-7]+)[ \0]+").fullmatch
_RECORD_LENGTH = re.compile(rb"([1-9][0-9]{0,3}) ").match
_CHARACTERS = re.compile(r"[^\0\\\ud800-\udfff]*").fullmatch  # surrogates: bytes that are not UTF-8
# Keywords of pax records with the values they take. Those of the last line are not used: they do not change what a file
# has in it or where it goes, and GNU tar always writes atime and ctime. Every other keyword is refused, because it may:
# hdrcharset changes the name, GNU.sparse.* size and content, a vendor's keyword anything.
_KEYWORDS = {
    b"path": re.compile("(?s:.+)").fullmatch,  # checked as every name
    b"size": re.compile(r"0|[1-9][0-9]{0,17}").fullmatch,
    b"mtime": re.compile(r"-?[0-9]{1,12}(?:\.[0-9]{1,20})?").fullmatch,
    **dict.fromkeys((b"atime", b"ctime", b"comment", b"uid", b"gid", b"uname", b"gname"), re.compile("").match),
}
_REMEDY = "unpack it, and there pack it again: find * -type f | tar --format=pax -cf ../NEW.tar -T -"
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device",
    b"5": f"a directory: {_REMEDY}", b"6": "a FIFO", b"7": "a contiguous file", b"g": "a pax global header",
    b"K": "a GNU long link name", b"L": "a GNU long name", b"S": "a GNU sparse file",
}  # fmt: skip


class BadArchive(PigeonpostError, ValueError):
    """A file that is not a tar archive, is damaged, or has something that this reader refuses."""


class Member(NamedTuple):
    """One file of an archive.

    name    relative path; no component is empty, '.' or '..', and there is no backslash and no NUL
    size    of the content, in bytes
    mtime   time of the last modification, in seconds since 1970; negative before
    source  the content; valid until the next member is asked for
    """

    name: str
    size: int
    mtime: float
    source: Content


def read_members(file: IO[bytes], path: str, most: int = MEMBERS) -> Iterator[Member]:
    """Read a tar archive from the current position of `file` to its end.

    file  binary file; where it can seek, content that the caller does not read is skipped
    path  the archive's name in error messages
    most  number of members, 1 or more, above which the archive is refused
    Returns an iterator over the files in the order of the archive; a name may come twice.
    Raises BadArchive, also when content is read. Source: POSIX.1-2017, pax, "ustar Interchange Format".
    """
    archive, count = _Archive(file, path), 0
    while (header := _next_header(archive)) is not None:
        if (count := count + 1) > most:
            raise archive.error(f"has more than {most:,} files")
        member = _member(archive, header)
        yield member
        archive.skip(member.source.left + -member.size % BLOCK_BYTES)
        archive.place = f"after {member.name!r:.100}"


class Content:
    """The content of one member, of which `left` bytes are not read yet."""

    def __init__(self, archive: _Archive, size: int) -> None:
        self._archive = archive
        self.left = size

    def read(self, size: int) -> bytes:
        """Returns 1 to `size` bytes; none at the end of the member. Raises BadArchive where the archive is cut off."""
        block = self._archive.read(min(size, self.left)) if self.left else b""
        self.left -= len(block)
        return block


class _Archive:
    """The bytes of an archive in their order; `place` tells where the reader is, for error messages."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file, self._path = file, path
        self.place = "at its beginning"
        self._end: int | None = None  # unknown
        if file.seekable():
            at, self._end = file.tell(), file.seek(0, os.SEEK_END)
            file.seek(at)

    def error(self, reason: str, name: str | bytes = "") -> BadArchive:
        """Returns an error: a sentence about the member `name`, or about the archive, that ends with `reason`."""
        shown = name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
        return BadArchive(f"{self._path}: {f'{shown!r:.100} ' if shown else ''}{reason}")

    def read(self, size: int, exactly: bool = False) -> bytes:
        """Returns 1 to `size` bytes, or exactly as many. Raises BadArchive where there are fewer."""
        block = b""
        while len(block) < (size if exactly else 1):
            more = self._file.read(size - len(block))
            if not more:
                raise self.error(f"its end is missing: it is cut off {self.place}")
            block += more
        return block

    def skip(self, size: int) -> None:
        """Go forward by `size` bytes; that the archive is cut off there may be found by the next read."""
        if self._end is not None:
            self._file.seek(size, os.SEEK_CUR)
            return
        while size:
            size -= len(self.read(min(size, 1 << 16)))

    def check_size(self, name: str, size: int) -> None:
        """Refuse a file that is longer than the rest of the archive; so all are together not longer than it is."""
        left = size if self._end is None else max(0, self._end - self._file.tell())
        if size > left:
            raise self.error(f"is cut off: its header says {size:,} bytes, and {left:,} follow", name)

    def check_end(self) -> None:
        """Check what follows the first block of zeros: a second one, then nothing but zeros."""
        if any(self.read(BLOCK_BYTES, exactly=True)):
            raise self.error(f"is damaged: there is a single block of zeros {self.place}")
        count = 0
        while block := self._file.read(1 << 16):
            count += len(block)
            if count > PADDING_BYTES or block.count(0) < len(block):
                raise self.error(f"has more than padding behind its end, which is {self.place}")


class _Header(NamedTuple):
    name: bytes
    size: int
    mtime: int
    kind: bytes


def _next_header(archive: _Archive) -> _Header | None:
    """Returns the next header; None at the end of the archive."""
    block = archive.read(BLOCK_BYTES, exactly=True)
    if not any(block):
        archive.check_end()
        return None
    name, *numbers, checksum, kind, magic, prefix = _FIELDS.unpack(block)
    expected = _OCTAL(checksum)
    if expected is None or int(expected[1], 8) != sum(block) - sum(checksum) + len(checksum) * ord(" "):
        raise archive.error(f"is no tar archive, or is compressed or damaged: there is no header {archive.place}")
    name = (prefix.rstrip(b"\0") + b"/" + name if any(prefix) else name).rstrip(b"\0")
    if magic != b"ustar\x0000":
        form = "GNU tar's own" if magic == b"ustar  \0" else "an old"
        raise archive.error(f"is in {form} format, not in ustar or pax format: {_REMEDY}", name)
    *_, size, mtime = (_number(archive, name, what, field) for what, field in zip(_NUMBERS, numbers))
    return _Header(name, size, mtime, kind)


def _number(archive: _Archive, name: bytes, what: str, field: bytes) -> int:
    """Returns the value of a numeric field: octal digits, then spaces or NULs. GNU's base-256 form is refused."""
    if number := _OCTAL(field):
        return int(number[1], 8)
    raise archive.error(f"is refused: its {what} is no octal number: {field!r}", name)


def _member(archive: _Archive, header: _Header) -> Member:
    """Returns the file that begins with `header`, with what its pax header replaces."""
    records = _records(archive, header) if header.kind == b"x" else {}
    if header.kind == b"x":
        following = _next_header(archive)
        if following is None or following.kind == b"x":
            raise archive.error("is damaged: a pax header without a file", header.name)
        header = following
    name = records.get(b"path") or header.name.decode(errors="surrogateescape")
    if header.kind not in (b"0", b"\0"):
        kind = _KINDS.get(header.kind, f"of the unknown type {header.kind!r}")
        raise archive.error(f"is refused: it is no regular file, but {kind}", name)
    if fault := _fault_of_name(name):
        raise archive.error(f"is refused: its name {fault}", name or "a file")
    size = int(records.get(b"size", header.size))
    archive.check_size(name, size)
    archive.place = f"in {name!r:.100}"
    return Member(name, size, float(records.get(b"mtime", header.mtime)), Content(archive, size))


def _fault_of_name(name: str) -> str:
    """Returns what is wrong with a member's name; empty if nothing is."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "leads out of the folder"
    if "" in parts or "." in parts:
        return f"has an empty component or '.': {_REMEDY}"
    return "" if _CHARACTERS(name) else "has a NUL or a backslash, or is not in UTF-8"


def _records(archive: _Archive, header: _Header) -> dict[bytes, str]:
    """Returns the records of a pax header by keyword. Source: POSIX.1-2017, pax, "pax Extended Header"."""
    if not 0 < header.size <= PAX_BYTES:
        raise archive.error(f"is refused: a pax header of {header.size:,} bytes, not 1 to {PAX_BYTES:,}", header.name)
    data = archive.read(header.size + -header.size % BLOCK_BYTES, exactly=True)[: header.size]
    records: dict[bytes, str] = {}
    at = 0
    while at < len(data):
        keyword, value, at = _record(archive, header.name, data, at)
        if keyword in records:
            raise archive.error(f"is refused: {keyword.decode()} is twice in a pax header", header.name)
        records[keyword] = text = value.decode(errors="surrogateescape")
        if not _KEYWORDS[keyword](text):
            raise archive.error(f"is refused: {keyword.decode()} in a pax header is {text!r:.60}", header.name)
    return records


def _record(archive: _Archive, name: bytes, data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Returns keyword and value of the pax record at `at`, and where the next one begins."""
    length = _RECORD_LENGTH(data, at)
    end = at + int(length[1]) if length else at
    keyword, equals, value = data[length.end() if length else at : end].partition(b"=")
    if end > len(data) or not equals or not value.endswith(b"\n"):
        raise archive.error(f"is damaged: at byte {at} of a pax header there is no record", name)
    if keyword not in _KEYWORDS:
        raise archive.error(f"is refused: a pax header has the unknown keyword {keyword!r:.60}", name)
    return keyword, value[:-1], end
