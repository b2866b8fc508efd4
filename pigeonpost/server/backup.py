"""Backup of a server's data: creation while the server is running, verification, and extraction.

Errors: BadBackup, with the fault of a file; OSError and sqlite3.Error of the disk.

There are two forms. A `.sqlite3` file is a copy of the database. Any other file is a tar archive with these members:

    pigeonpost.sqlite3              a snapshot of the database
    logs/                           the CSV logs, up to the position that this database records
    files/                          files that Pis uploaded
    tokens.json, users.json, ...    secrets of nodes and users: only the owner may read the archive
    SHA256SUMS                      checksums of all other members, in the format of `sha256sum -c`

The database is read through a connection that cannot write, so it never runs a checkpoint (see storage.sqlite.store).
It reads one snapshot, so commits of the server do not restart the copy. The WAL grows by these commits until the copy
is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sqlite3
import tarfile
from collections.abc import Callable, Container, Iterator
from typing import IO, NamedTuple
from urllib.parse import quote

from pigeonpost.core.data_folder import (
    ALERT_RULES,
    API_TOKENS,
    CALIBRATIONS,
    DATABASE,
    EVENTS,
    FILES,
    FORWARD_TARGETS,
    LATE_RANGES,
    LINE_SENSORS,
    LOG_CHECKSUMS,
    LOGS,
    NOTES,
    PI_IDS,
    PREFERENCES,
    REMOVED_LOGS,
    SAVED_CHARTS,
    TOKENS,
    USERS,
)
from pigeonpost.core.errors import PigeonpostError, StoreDamaged
from pigeonpost.server.tar_reader import BadArchive, Content, Member, read_members
from pigeonpost.storage.csv.checksums import read_sums, sums_text
from pigeonpost.storage.models import LogMark
from pigeonpost.storage.sqlite import queries
from pigeonpost.storage.sqlite.integrity import damage_text, refuse_foreign_wal, reported_damage
from pigeonpost.storage.sqlite.schema import VERSION
from pigeonpost.storage.sqlite.store import SqliteStore

# Small files that a backup contains.
KEPT = (
    TOKENS, USERS, API_TOKENS, ALERT_RULES, SAVED_CHARTS, PREFERENCES, PI_IDS, CALIBRATIONS, NOTES, EVENTS, LATE_RANGES,
    FORWARD_TARGETS, LINE_SENSORS,
)  # fmt: skip
_INVALID = r"/\0\n\\\ud800-\udfff"  # characters that no name contains; surrogates represent bytes that are not UTF-8
_MEMBER = re.compile(
    rf"(?:{LOGS}|{FILES})/[^.{_INVALID}][^{_INVALID}]{{0,250}}|{'|'.join(map(re.escape, KEPT))}"
).fullmatch
_PAGES_AT_ONCE = 1024
_BLOCK_BYTES = 1 << 20
_SUMS_BYTES = 64 << 20  # maximum size of SHA256SUMS: half a million files

Progress = Callable[[str, int, int], None]  # arguments: the stage, the amount done, and the total amount


class BadBackup(PigeonpostError, ValueError):
    """File that is damaged or is not a backup of Pigeonpost."""


# ------------------------------------------------------------------------------------------------- the database


def copy_database(source: str, target: str, progress: Progress) -> None:
    """Copy a snapshot of a database, which a server may be writing to, and sync the copy.

    Args:
        source: Path of the database.
        target: Path of the copy.
        progress: Called with the number of copied pages.

    Raises:
        StoreDamaged: The database is damaged.
    """
    with (
        _source_faults(source),
        contextlib.closing(open_to_read(source)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.execute("BEGIN")
        old.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # the snapshot begins here
        # The copy is used only after it is complete. So it needs no journal, and one sync at the end is enough.
        new.execute("PRAGMA synchronous = OFF")
        old.backup(
            new,
            pages=_PAGES_AT_ONCE,
            progress=lambda _, left, total: progress("database", total - left, total),
        )
        # Without WAL the copy is one file, which can be read from a read-only medium. The server enables WAL again.
        new.execute("PRAGMA journal_mode = DELETE")
    _sync(target)


@contextlib.contextmanager
def _source_faults(source: str) -> Iterator[None]:
    """Return a context in which an error that shows damage is raised as StoreDamaged, with the path of the database."""
    try:
        if os.path.getsize(source) == 0:
            raise StoreDamaged(damage_text(os.path.dirname(source), "it has 0 bytes"))
        yield
    except sqlite3.Error as error:
        if found := reported_damage(error):
            raise StoreDamaged(damage_text(os.path.dirname(source), found.text)) from error
        raise


def open_to_read(path: str) -> sqlite3.Connection:
    """Return a connection to the database `path` that cannot write."""
    return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)


def fold_in_wal(path: str) -> None:
    """Merge the WAL of the database `path` into its file. No other process may use the database.

    A damaged database and its WAL are not changed.
    """
    if os.path.exists(path) and os.path.getsize(path):  # SQLite deletes the WAL of an empty file
        with contextlib.suppress(sqlite3.Error, StoreDamaged):
            refuse_foreign_wal(os.path.dirname(path))
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def version_of(folder: str) -> int:
    """Return the number of the database format in `folder`; 0 if it is not a database of Pigeonpost."""
    with contextlib.closing(open_to_read(os.path.join(folder, DATABASE))) as db:
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        return version


def faults_of(folder: str) -> Iterator[str]:
    """Check the database in `folder` without changing it. Yield one line per fault.

    For a database of an older format, which the server converts at its next start, only SQLite's own check is made.
    """
    if version_of(folder) == 0:
        yield "it has no tables of Pigeonpost"
    elif version_of(folder) < VERSION:
        with contextlib.closing(open_to_read(os.path.join(folder, DATABASE))) as db:
            yield from (f"SQLite: {line}" for (line,) in db.execute("PRAGMA integrity_check") if line != "ok")
    else:
        with contextlib.closing(SqliteStore(folder, look_only=True)) as store:
            yield from store.verify()


def log_mark(folder: str) -> LogMark | None:
    """Return the position of the last CSV log that is recorded in the database in `folder`, also in an older format."""
    with contextlib.closing(open_to_read(os.path.join(folder, DATABASE))) as db:
        return queries.log_mark(db)


def log_names(folder: str) -> set[str]:
    """Return the names of all CSV logs that are recorded in the database in `folder`, also in an older format."""
    with contextlib.closing(open_to_read(os.path.join(folder, DATABASE))) as db:
        return {name for (name,) in db.execute("SELECT name FROM logs")}


# ------------------------------------------------------------------------------------------------------ packing


class Entry(NamedTuple):
    """File to add to the archive.

    Attributes:
        name: Name in the archive.
        path: Path of the file.
        size: Number of bytes to add, from the beginning; -1 for all bytes.
    """

    name: str
    path: str
    size: int = -1


def pack(data: str, copy: str, logs: list[str], archive: str, progress: Progress) -> None:
    """Write an archive from a copy of the database and from the other files in the data folder.

    Args:
        data: The data folder.
        copy: Folder that contains the copy of the database.
        logs: Names of the CSV logs that existed before the database was copied. Of later logs, only those that the copy
            records are added: others may contain samples that the copy lacks.
        archive: Path of the archive.
        progress: Called with the number of bytes written.
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
            # The last log may have grown and been closed after the database was copied.
            if found.get(f"{LOGS}/{name}", "")
            and (found[f"{LOGS}/{name}"] == checksum or not mark or name != mark.name)
        }
        found[f"{LOGS}/{LOG_CHECKSUMS}"] = _add_text(tar, f"{LOGS}/{LOG_CHECKSUMS}", sums_text(closed))
        _add_text(tar, LOG_CHECKSUMS, sums_text(found))
    _sync(archive)


def _entries(data: str, copy: str, logs: list[str], mark: LogMark | None) -> Iterator[Entry]:
    yield Entry(DATABASE, os.path.join(copy, DATABASE))
    for name in sorted({*logs, *log_names(copy)} - {""}):
        path = os.path.join(data, LOGS, name)
        # The last log is only added up to the position in the copy. After a restore the next start writes the rest.
        if os.path.exists(path):
            yield Entry(f"{LOGS}/{name}", path, mark.size if mark and mark.name == name else -1)
    for name in (f"{LOGS}/{REMOVED_LOGS}", *KEPT):
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
        return 0  # it was deleted just now, which may happen to an uploaded file


class _HashingReader:
    """File that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sum = hashlib.sha256()

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.sum.update(block)
        return block


def _add(tar: tarfile.TarFile, entry: Entry) -> str:
    """Add a file, and return its SHA-256; an empty string if the file was deleted just now."""
    try:
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        info = tarfile.TarInfo(entry.name)
        info.size = status.st_size if entry.size < 0 else min(entry.size, status.st_size)
        info.mtime, info.mode = int(status.st_mtime), status.st_mode & 0o777
        reader = _HashingReader(file)
        tar.addfile(info, reader)  # type: ignore[arg-type]  # only `read` is called
    return reader.sum.hexdigest()


def _add_text(tar: tarfile.TarFile, name: str, text: bytes) -> str:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text), 0o644
    tar.addfile(info, io.BytesIO(text))
    return hashlib.sha256(text).hexdigest()


# ---------------------------------------------------------------------------------------------------- unpacking


def is_database(path: str) -> bool:
    """Return True if the file `path` begins like an SQLite database."""
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def unpack(archive: str, folder: str | None, progress: Progress) -> list[str]:
    """Compare a tar archive with its checksums and, if `folder` is not None, extract its files there.

    After an error, the files that were already extracted remain in the folder.

    Args:
        archive: Path of a regular file, which is untrusted input.
        folder: Empty folder that no one else writes to, or None to extract nothing. Nothing outside of the folder is
            changed. The files are synced to the disk.
        progress: Called at the beginning of each file, with the position in the archive.

    Returns:
        The sorted names of all members except the checksums.

    Raises:
        BadBackup: The archive is damaged, was changed, or contains something that `pack` does not write.
        OSError: A file cannot be read or written.
    """
    found: dict[str, str] = {}
    expected: dict[str, str] | None = None
    total = os.path.getsize(archive)
    with open(archive, "rb") as file, _new_files(folder) as create:
        try:
            for member in read_members(file, archive):
                progress("archive", file.tell(), total)
                _check_name(archive, member.name, found)
                if member.name != LOG_CHECKSUMS:
                    found[member.name] = _extract(member, create)
                elif expected is None:
                    expected = _read_manifest(archive, member)
                else:
                    raise BadBackup(f"{archive}: contains {LOG_CHECKSUMS} twice")
        except BadArchive as error:
            raise BadBackup(str(error)) from error
    if expected is None:
        raise BadBackup(f"{archive}: contains no {LOG_CHECKSUMS}: it is not a backup, or its end is missing")
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise BadBackup(f"{archive}: {name!r:.100} has changed since the backup was made")
    if DATABASE not in found:
        raise BadBackup(f"{archive}: contains no database")
    return sorted(found)


def _check_name(archive: str, name: str, found: Container[str]) -> None:
    if not (_MEMBER(name) or name in (DATABASE, LOG_CHECKSUMS)):
        raise BadBackup(f"{archive}: contains {name!r:.100}, which does not belong in a backup")
    if name in found:
        raise BadBackup(f"{archive}: contains {name!r:.100} twice")


def _read_manifest(archive: str, member: Member) -> dict[str, str]:
    """Return the SHA-256 of each file, by name."""
    if member.size > _SUMS_BYTES:
        raise BadBackup(f"{archive}: its {LOG_CHECKSUMS} has {member.size:,} bytes, which is more than {_SUMS_BYTES:,}")
    lines = b"".join(_blocks(member.source)).decode(errors="replace").split("\n")
    return {name: checksum for checksum, _, name in (line.partition("  ") for line in lines if line)}


def _blocks(source: Content) -> Iterator[bytes]:
    while block := source.read(_BLOCK_BYTES):
        yield block


@contextlib.contextmanager
def _new_files(folder: str | None) -> Iterator[Callable[[str], int] | None]:
    """Yield a function that creates a file in `folder`, or in a new folder directly below it; None without a folder.

    The function accepts the name of the file, returns a file descriptor for writing, and raises OSError. Each file is
    opened relative to the descriptor of its folder and must not exist. So no symbolic link is followed and nothing is
    overwritten, even if others can write to the folder. The directory entries are durable at the end of the block.
    """
    if folder is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        folders: dict[str, int] = {}

        def open_folder(name: str, path: str, parent: int | None) -> None:
            folders[name] = os.open(path, _FOLDER, dir_fd=parent)
            stack.callback(os.close, folders[name])

        def create(name: str) -> int:
            parent, _, base = name.rpartition("/")
            try:
                if parent not in folders:
                    os.mkdir(parent, dir_fd=folders[""])
                    open_folder(parent, parent, folders[""])
                return os.open(base, _NEW_FILE, 0o600 if name in KEPT else 0o644, dir_fd=folders[parent])
            except OSError as error:
                error.filename = os.path.join(folder, name)
                raise

        open_folder("", folder, None)
        yield create
        for fd in folders.values():
            os.fsync(fd)


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _extract(member: Member, create: Callable[[str], int] | None) -> str:
    """Write and sync a file, unless `create` is None, and return its SHA-256."""
    total = hashlib.sha256()
    if create is None:
        for block in _blocks(member.source):
            total.update(block)
        return total.hexdigest()
    with os.fdopen(create(member.name), "wb") as file:
        for block in _blocks(member.source):
            total.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        with contextlib.suppress(OverflowError, ValueError):  # an invalid time is ignored
            os.utime(file.fileno(), (member.mtime, member.mtime))
    return total.hexdigest()


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
