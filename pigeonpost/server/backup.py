"""Backup of a server's data: made while it runs, verified, and unpacked.

Errors: BadBackup, with the fault of a file; OSError and sqlite3.Error of the disk.

Two forms: a `.sqlite3` file is the database alone; any other is a tar file:

    pigeonpost.sqlite3              the database as it was at one moment
    logs/, files/                   the CSV logs as far as that database knows them; files that Pis uploaded
    tokens.json, users.json, ...    tokens of nodes, users of the page: so only its owner may read the file
    SHA256SUMS                      of all these, in the format of `sha256sum -c`

The database is read over a connection that cannot write, so it never checkpoints either (see storage.sqlite.store). It
sees one moment until the end, so a server that commits meanwhile does not make it start again; its WAL grows by those
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
from collections.abc import Callable, Container, Iterator
from typing import IO, NamedTuple
from urllib.parse import quote

from pigeonpost.core.data_folder import (
    API_TOKENS,
    DATABASE,
    FILES,
    LOG_CHECKSUMS,
    LOGS,
    PI_IDS,
    PREFERENCES,
    SAVED_CHARTS,
    TOKENS,
    USERS,
)
from pigeonpost.core.errors import PigeonpostError, StoreDamaged
from pigeonpost.server.tar_reader import BadArchive, Content, Member, read_members
from pigeonpost.storage.csv.checksums import read_sums, sums_text
from pigeonpost.storage.models import LogMark
from pigeonpost.storage.sqlite import queries
from pigeonpost.storage.sqlite.integrity import damage_text, is_damage, refuse_foreign_wal
from pigeonpost.storage.sqlite.schema import VERSION
from pigeonpost.storage.sqlite.store import SqliteStore

KEPT = (TOKENS, USERS, API_TOKENS, SAVED_CHARTS, PREFERENCES, PI_IDS)  # small files, beside the database
_NO = r"/\0\n\\\ud800-\udfff"  # in no name; surrogates: bytes that are not UTF-8
_MEMBER = re.compile(rf"(?:{LOGS}|{FILES})/[^.{_NO}][^{_NO}]{{0,250}}|{'|'.join(map(re.escape, KEPT))}").fullmatch
_PAGES_AT_ONCE = 1024
_BLOCK_BYTES = 1 << 20
_SUMS_BYTES = 64 << 20  # of a manifest at most: half a million files

Progress = Callable[[str, int, int], None]  # of what, how many of how many


class BadBackup(PigeonpostError, ValueError):
    """A file that is no backup of ours, or is damaged."""


# ------------------------------------------------------------------------------------------------- the database


def copy_database(source: str, target: str, progress: Progress) -> None:
    """Copy a database as it is now, also while a server writes to it, and sync the copy."""
    with (
        _source_faults(source),
        contextlib.closing(open_to_read(source)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
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


@contextlib.contextmanager
def _source_faults(source: str) -> Iterator[None]:
    """Name the database that is copied where it is damaged."""
    try:
        if os.path.getsize(source) == 0:
            raise StoreDamaged(damage_text(os.path.dirname(source), "it has 0 bytes"))
        yield
    except sqlite3.Error as error:
        if found := is_damage(error):
            raise StoreDamaged(damage_text(os.path.dirname(source), found.text)) from error
        raise


def open_to_read(path: str) -> sqlite3.Connection:
    """A connection that cannot write."""
    return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)


def fold_in_wal(path: str) -> None:
    """Make a database that nobody uses one file, as far as that is possible: of a damaged one all stays as it is."""
    if os.path.exists(path) and os.path.getsize(path):  # SQLite deletes the WAL of an empty file
        with contextlib.suppress(sqlite3.Error, StoreDamaged):
            refuse_foreign_wal(os.path.dirname(path))
            with contextlib.closing(sqlite3.connect(path)) as db:
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
    if version_of(folder) == 0:
        yield "it has no tables of Pigeonpost"
    elif version_of(folder) < VERSION:
        with contextlib.closing(open_to_read(os.path.join(folder, DATABASE))) as db:
            yield from (f"SQLite: {line}" for (line,) in db.execute("PRAGMA integrity_check") if line != "ok")
    else:
        with contextlib.closing(SqliteStore(folder, look_only=True)) as store:
            yield from store.verify()


def log_mark(folder: str) -> LogMark | None:
    """How far the last log is written, as the database of `folder`, which may be an older one, knows it."""
    with contextlib.closing(open_to_read(os.path.join(folder, DATABASE))) as db:
        return queries.log_mark(db)


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
        found[f"{LOGS}/{LOG_CHECKSUMS}"] = _add_text(tar, f"{LOGS}/{LOG_CHECKSUMS}", sums_text(closed))
        _add_text(tar, LOG_CHECKSUMS, sums_text(found))
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
    """A file that is hashed while the tar reads it."""

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


def unpack(archive: str, folder: str | None, progress: Progress) -> list[str]:
    """Compare a tar archive with its manifest and, given a `folder`, extract its files there, durably.

    archive   path of a regular file; untrusted input
    folder    an empty folder that nobody else writes to, or None; nothing outside of it is touched
    progress  called as each file begins
    Returns the sorted names of all files but the manifest. Raises BadBackup for an archive that is damaged, is not as
    it was when it was made, or has anything that `pack` does not write; OSError of the disk. What was extracted until
    then stays in `folder`.
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
                    raise BadBackup(f"{archive}: has {LOG_CHECKSUMS} twice")
        except BadArchive as error:
            raise BadBackup(str(error)) from error
    if expected is None:
        raise BadBackup(f"{archive}: has no {LOG_CHECKSUMS}: it is no backup, or its end is missing")
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise BadBackup(f"{archive}: {name!r:.100} is not what it was when the backup was made")
    if DATABASE not in found:
        raise BadBackup(f"{archive}: there is no database in it")
    return sorted(found)


def _check_name(archive: str, name: str, found: Container[str]) -> None:
    if not (_MEMBER(name) or name in (DATABASE, LOG_CHECKSUMS)):
        raise BadBackup(f"{archive}: has {name!r:.100}, which is no part of a backup")
    if name in found:
        raise BadBackup(f"{archive}: has {name!r:.100} twice")


def _read_manifest(archive: str, member: Member) -> dict[str, str]:
    """Returns the SHA-256 of each file, by its name."""
    if member.size > _SUMS_BYTES:
        raise BadBackup(
            f"{archive}: its {LOG_CHECKSUMS} has {member.size:,} bytes, and at most {_SUMS_BYTES:,} are read"
        )
    lines = b"".join(_blocks(member.source)).decode(errors="replace").split("\n")
    return {name: checksum for checksum, _, name in (line.partition("  ") for line in lines if line)}


def _blocks(source: Content) -> Iterator[bytes]:
    while block := source.read(_BLOCK_BYTES):
        yield block


@contextlib.contextmanager
def _new_files(folder: str | None) -> Iterator[Callable[[str], int] | None]:
    """A function that makes a new file in `folder`, or in a new folder directly below it; None without a folder.

    It takes the file's name, returns a descriptor to write to, and raises OSError. Everything is opened relative to its
    folder's descriptor and must not exist, so that no symbolic link is followed and nothing is overwritten, also where
    somebody else can write to the folder. The directory entries are durable when the block has ended.
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
    """Write a file, unless `create` is None, and have it on the disk. Returns its SHA-256."""
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
        with contextlib.suppress(OverflowError, ValueError):  # what is no time at all is not worth a refusal
            os.utime(file.fileno(), (member.mtime, member.mtime))
    return total.hexdigest()


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
