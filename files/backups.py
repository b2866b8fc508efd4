"""A copy of everything that a server keeps: made while it runs, looked at, unpacked again.

Runs on: server.  Reached from: commands/data.  Hands on to: SQLite's backup, tar, the disk.
Threads: none.  Errors: BadBackup, with what is wrong with a file; OSError and sqlite3.Error of the disk.

Two forms. A `.sqlite3` is the database alone. Anything else is a tar file:

    pigeonpost.sqlite3              the database as it was at one moment
    logs/, files/                   the CSV logs as far as that database knows them; files that Pis dropped
    tokens.json, users.json, ...    whom the nodes and the page know: so it is a file for its owner's eyes only
    SHA256SUMS                      of all these, as `sha256sum -c` reads it

The database is read over a connection that cannot write, so it never checkpoints either (see stores/sqlite). It sees
one moment until the end, so a server that commits meanwhile does not make it begin anew; its WAL grows by what it
commits until then.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple
from urllib.parse import quote

from base.errors import PigeonpostError
from csvbuffer import FOLDER as LOGS
from files.log_sums import FILE as SUMS
from files.log_sums import read_sums, sums_text
from files.received import FOLDER as FILES
from files.received import IDS
from stores import LogMark
from stores.sqlite import FILE as DATABASE
from stores.sqlite import SqliteStore
from stores.sqlite_schema import VERSION

KEPT = ("tokens.json", "users.json", "graphs.json", IDS)  # small files, beside the database
_MEMBER = re.compile(rf"(?:{LOGS}|{FILES})/[^./\0\n\\][^/\0\n\\]{{0,250}}|{'|'.join(map(re.escape, KEPT))}").fullmatch
_PAGES_AT_ONCE = 1024
_BLOCK_BYTES = 1 << 20
_SUMS_BYTES = 64 << 20  # of a manifest at most: half a million files

Progress = Callable[[str, int, int], None]  # of what, how many of how many


class BadBackup(PigeonpostError, ValueError):
    """A file that is no backup of ours, or is damaged."""


# ------------------------------------------------------------------------------------------------- the database


def copy_database(source: str, target: str, progress: Progress) -> None:
    """Copy a database as it is now, whoever writes to it meanwhile, and have the copy on the disk."""
    with contextlib.closing(open_to_read(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.execute("BEGIN")
        old.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # from here on it sees this moment
        # The copy is used only when it is finished: it needs no journal meanwhile, and is synced at the end.
        new.execute("PRAGMA synchronous = OFF")
        old.backup(
            new,
            pages=_PAGES_AT_ONCE,
            progress=lambda _, left, total: progress("database", total - left, total),
        )
        # A file by itself, which any program reads, also from where nothing can be written. The server undoes it.
        new.execute("PRAGMA journal_mode = DELETE")
    _sync(target)


def open_to_read(path: str) -> sqlite3.Connection:
    """A connection that cannot write."""
    return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)


def fold_in_wal(path: str) -> None:
    """Make a database that nobody uses one file, as far as that is possible: of a damaged one all stays as it is."""
    if os.path.exists(path):
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def version_of(folder: str) -> int:
    """The format of the database in `folder`; 0: it is none of ours."""
    with contextlib.closing(open_to_read(os.path.join(folder, DATABASE))) as db:
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        return version


def faults_of(folder: str) -> Iterator[str]:
    """Look at everything in the database of `folder`; a line for each fault. Nothing is changed.

    Of an older format, which the server's next start brings up to date, only what SQLite itself can say.
    """
    if version_of(folder) < VERSION:
        with contextlib.closing(open_to_read(os.path.join(folder, DATABASE))) as db:
            yield from (f"SQLite: {line}" for (line,) in db.execute("PRAGMA integrity_check") if line != "ok")
        return
    with contextlib.closing(SqliteStore(folder, look_only=True)) as store:
        yield from store.verify()


def log_mark(folder: str) -> LogMark | None:
    """How far the last log is written, as the database of `folder`, which may be an older one, knows it."""
    with contextlib.closing(open_to_read(os.path.join(folder, DATABASE))) as db:
        row = db.execute("SELECT name, size, tail, filed FROM logs ORDER BY id DESC LIMIT 1").fetchone()
        return LogMark(*row) if row else None


# ------------------------------------------------------------------------------------------------------ packing


class Entry(NamedTuple):
    """One file for the tar: its name there, and how many bytes of it (-1: all)."""

    name: str
    path: str
    size: int = -1


def pack(data: str, copy: str, logs: list[str], archive: str, progress: Progress) -> None:
    """Write `archive` from a copy of the database, and the other files in `data`.

    copy  the folder of the copy
    logs  those that there were before the copy was made: one that has begun since has nothing that the copy knows of
    """
    mark = log_mark(copy)
    entries = [entry for entry in _entries(data, copy, logs, mark) if entry.name == DATABASE or _MEMBER(entry.name)]
    total = sum(map(_size_of, entries))
    found: dict[str, str] = {}
    fd = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            checksum = _add(tar, entry)
            if checksum:
                found[entry.name] = checksum
            progress("archive", file.tell(), total)
        closed = {
            name: checksum
            for name, checksum in read_sums(os.path.join(data, LOGS)).items()
            # The last log may have been closed since, and got more before that.
            if found.get(f"{LOGS}/{name}", "")
            and (found[f"{LOGS}/{name}"] == checksum or not mark or name != mark.name)
        }
        found[f"{LOGS}/{SUMS}"] = _add_text(tar, f"{LOGS}/{SUMS}", sums_text(closed))
        _add_text(tar, SUMS, sums_text(found))
    _sync(archive)


def _entries(data: str, copy: str, logs: list[str], mark: LogMark | None) -> Iterator[Entry]:
    yield Entry(DATABASE, os.path.join(copy, DATABASE))
    for name in sorted({*logs, mark.name} if mark and mark.name else logs):
        path = os.path.join(data, LOGS, name)
        # What the last log has beyond the copy's mark the copy owes it: the next start writes it there.
        if os.path.exists(path):
            yield Entry(f"{LOGS}/{name}", path, mark.size if mark and mark.name == name else -1)
    for name in KEPT:
        if os.path.exists(os.path.join(data, name)):
            yield Entry(name, os.path.join(data, name))
    folder = os.path.join(data, FILES)
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if not name.endswith(".new") and os.path.isfile(os.path.join(folder, name)):
            yield Entry(f"{FILES}/{name}", os.path.join(folder, name))


def _size_of(entry: Entry) -> int:
    try:
        return os.stat(entry.path).st_size
    except FileNotFoundError:
        return 0  # it has just gone, as a dropped file may


class _Summed:
    """A file as the tar reads it, summed up on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sum = hashlib.sha256()

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.sum.update(block)
        return block


def _add(tar: tarfile.TarFile, entry: Entry) -> str:
    """Add a file; its SHA-256, empty when it has just gone."""
    try:
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        about = tarfile.TarInfo(entry.name)
        about.size = status.st_size if entry.size < 0 else min(entry.size, status.st_size)
        about.mtime, about.mode = int(status.st_mtime), status.st_mode & 0o777
        summed = _Summed(file)
        tar.addfile(about, summed)  # type: ignore[arg-type]  # read is all it needs
    return summed.sum.hexdigest()


def _add_text(tar: tarfile.TarFile, name: str, text: bytes) -> str:
    about = tarfile.TarInfo(name)
    about.size, about.mode = len(text), 0o644
    tar.addfile(about, io.BytesIO(text))
    return hashlib.sha256(text).hexdigest()


# ---------------------------------------------------------------------------------------------------- unpacking


def is_database(path: str) -> bool:
    """Whether a file is an SQLite database, by its first bytes; else it should be a tar file."""
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


class _Bounded:
    """A file of which never more is read at once than a block, whatever a head in it says of its length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, _BLOCK_BYTES))


def unpack(archive: str, folder: str | None, progress: Progress) -> list[str]:
    """Compare a tar with its manifest and, with a `folder`, lay out there what is in it; the names.

    Raises BadBackup for what is not as it was written, or holds what no backup of ours holds.
    """
    found: dict[str, str] = {}
    expected: dict[str, str] | None = None
    total = os.path.getsize(archive)
    with open(archive, "rb") as file:
        for name, member, source in _members(archive, file):
            progress("archive", member.offset_data, total)
            if source is None or name in found or not (_MEMBER(name) or name in (DATABASE, SUMS)):
                raise BadBackup(f"{archive}: holds {name!r:.100}, which is no part of a backup")
            try:
                if name == SUMS:
                    expected = _read_manifest(archive, source, member.size)
                else:
                    found[name] = _lay_out(source, folder, member)
            except tarfile.TarError as error:
                raise BadBackup(f"{archive}: its end is missing, in {name}") from error
    if expected is None:
        raise BadBackup(f"{archive}: has no {SUMS}: it is no backup, or its end is missing")
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise BadBackup(f"{archive}: {name!r:.100} is not what it was when the backup was made")
    if DATABASE not in found:
        raise BadBackup(f"{archive}: there is no database in it")
    return sorted(found)


def _members(archive: str, file: IO[bytes]) -> Iterator[tuple[str, tarfile.TarInfo, IO[bytes] | None]]:
    """Name, head and content of all that a tar holds; no content where it is no plain file."""
    bounded: Any = _Bounded(file)
    try:
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            while (member := tar.next()) is not None:
                plain = member.isreg() and not member.issparse()
                source = tar.extractfile(member) if plain else None
                yield member.name, member, source
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:  # a head may say anything
        raise BadBackup(f"{archive}: is no backup, or is damaged: {str(error)!r}") from error


def _read_manifest(archive: str, source: IO[bytes], size: int) -> dict[str, str]:
    if size > _SUMS_BYTES:
        raise BadBackup(f"{archive}: its {SUMS} is too long")
    content = b""
    while block := source.read(_BLOCK_BYTES):
        content += block
    lines = content.decode(errors="replace").splitlines()
    return {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}


def _lay_out(source: IO[bytes], folder: str | None, member: tarfile.TarInfo) -> str:
    """One file out of a tar, durably; its SHA-256."""
    total = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        file = None
        if folder is not None:
            path = os.path.join(folder, member.name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if member.name in KEPT else 0o644)
            file = stack.enter_context(os.fdopen(fd, "wb"))
        while block := source.read(_BLOCK_BYTES):
            total.update(block)
            if file is not None:
                file.write(block)
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(OverflowError, ValueError):  # what is no time at all is not worth a refusal
                os.utime(file.fileno(), (member.mtime, member.mtime))
    return total.hexdigest()


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
