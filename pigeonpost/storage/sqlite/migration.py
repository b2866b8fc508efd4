"""Migration of a SQLite file of formats 1 to 3, with a row per sample, to the present one (see schema).

It goes into a new file, in transactions of some 20,000 samples, each with how far it is; then the new file is renamed,
and the old one stays as `pigeonpost.sqlite3.v3`. Whenever it is stopped, the next start goes on with it.

Where there is no room for a second file, the old one is converted in place, in the same transactions: each deletes the
rows whose chunks it stores, and SQLite uses their pages again. So collecting goes on then too, but no copy is kept.

One program works on the file: whoever calls this holds the lock of the data folder.
Errors: NotStored where there is no room at all, or another program has the file open; StoreDamaged for rows that are
not there any more; DiskError; those of SQLite.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import time
from urllib.parse import quote

from pigeonpost.core.errors import DiskError, NotStored, PigeonpostError, StoreDamaged
from pigeonpost.core.files import give_to_owner, sync_folder
from pigeonpost.core.lifecycle import extend_start
from pigeonpost.storage.sqlite import wal
from pigeonpost.storage.sqlite.integrity import Damage, damage_text
from pigeonpost.storage.sqlite.row_conversion import Progress, RowConversion
from pigeonpost.storage.sqlite.schema import UNFINISHED, VERSION

log = logging.getLogger(__name__)

_MAGIC, _HEAD_BYTES = b"SQLite format 3\0", 100  # sqlite.org/fileformat2.html, section 1.3; at 60 the user_version
_SPARE_BYTES = 16 << 20  # beyond the size of what is to be written
_IN_PLACE_BYTES = 32 << 20  # WAL of two transactions, and pages that only get free at the end of one
_BUSY_S = 5.0  # for another program to end its question
_REPORT_S = 10.0  # between two lines of the log
_FIRST_S, _NEXT_S = 900.0, 120.0  # for the first transaction, which copies all but the samples; for each of the others


def is_old(path: str) -> bool:
    """Return True if there is a file at `path` that has to be migrated before it is used.

    No connection to it is open in this process. Without a WAL the header is read directly: a connection that cannot
    write refuses a file whose last transaction has to be undone, and one that can would end a WAL.
    """
    path = os.path.realpath(path)
    try:
        if os.path.getsize(f"{path}-wal"):
            with contextlib.closing(_read(path)) as db:
                version = _version(db)
            return _is_old(version)
    except FileNotFoundError:
        pass
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return False
    return head.startswith(_MAGIC) and _is_old(int.from_bytes(head[60:64], "big"))


def _is_old(version: int) -> bool:
    return 0 < version < VERSION or version == UNFINISHED


def migrate(path: str, progress: Progress | None = None) -> Damage | None:
    """Bring the file at `path`, for which `is_old` is True, up to date.

    progress  called after each transaction; None: the log gets a line every 10 s
    Returns the damage of its WAL, if any, of which the store that is opened next can find nothing.
    """
    path = os.path.realpath(path)  # it may be a link to another disk, and stays there
    report = progress or _Report(path)
    try:
        with contextlib.closing(_write(path)) as db:
            lost = wal.lost_commits(db, path)
            _fold_in_wal(db, path)
            version = _version(db)
        if version == UNFINISHED:
            _in_place(path, report)
        elif needed := _lacks_room(path):
            log.warning("%s", needed)
            _in_place(path, report)
        else:
            _into_new_file(path, version, report)
        return lost
    except PigeonpostError:
        raise
    except OSError as error:
        raise DiskError(f"{error.filename or path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise StoreDamaged(
            damage_text(os.path.dirname(path), f"a row that Pigeonpost never writes: {error!r:.200}")
        ) from error


# ------------------------------------------------------------------------------------------- the two ways


def _into_new_file(path: str, version: int, report: Progress) -> None:
    new = f"{path}.migrating"
    was_begun = os.path.exists(new)
    try:
        is_made = _make_new_file(path, new, version, report)
    except sqlite3.Error as error:
        is_full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
        if not is_full and not was_begun:
            raise
        is_made = False
    if is_made:
        _swap(path, new, version)
        return
    _remove(new)
    if was_begun:  # from an older state of the old file, which another program has used since; or it is damaged
        _into_new_file(path, version, report)
    else:
        log.warning("%s", _no_room(path, os.path.getsize(path)))
        _in_place(path, report)


def _make_new_file(path: str, new: str, version: int, report: Progress) -> bool:
    """Return False where an earlier run has begun with it, but not from this state of the old file."""
    if os.path.islink(new):
        os.unlink(new)  # root, in a folder of somebody else, would write to what it leads to
    with contextlib.closing(_write(new)) as db:
        give_to_owner(new)
        db.execute("PRAGMA journal_mode = WAL")
        # A power cut may undo the last transactions, each with what it says of how far it is.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("ATTACH ? AS old", (f"file:{quote(path)}?immutable=1",))
        work = RowConversion(db, False, version, f"{os.path.getsize(path)} {os.stat(path).st_mtime_ns}", report)
        if not work.fits():
            return False
        work.run()
        db.execute("DETACH old")
        db.execute("PRAGMA journal_mode = DELETE")
    return True


def _swap(path: str, new: str, version: int) -> None:
    """Put the new file in its place, and the old one beside it. At each moment there is a whole one at `path`."""
    shutil.copymode(path, new)
    fd = os.open(new, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    kept = _free_name(f"{path}.v{version}", path)
    if not os.path.exists(kept):
        try:
            os.link(path, kept)
        except OSError:  # a file system without hard links
            _copy(path, kept)
        sync_folder(path)
    for left in (f"{path}-wal", f"{path}-shm"):
        if os.path.exists(left):
            os.unlink(left)  # the WAL is empty: see _fold_in_wal
    os.rename(new, path)
    sync_folder(path)
    log.info("%s is of the new format now; the old file stays as %s, and may be deleted", path, kept)


def _copy(path: str, target: str) -> None:
    """Copy a file durably; it has its name when it is whole."""
    new = f"{target}.part"
    _remove(new)
    # Neither is followed if it is a symbolic link: root may work in a folder of somebody else.
    with (
        open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as source,
        open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as copy,
    ):
        shutil.copyfileobj(source, copy)
        copy.flush()
        os.fsync(copy.fileno())
    give_to_owner(new)
    os.rename(new, target)


def _free_name(name: str, path: str) -> str:
    """Return `name`, or with a number where something else than the file at `path` has it."""
    found, number = name, 1
    while os.path.exists(found) and not os.path.samefile(found, path):
        number += 1
        found = f"{name}_{number}"
    return found


def _in_place(path: str, report: Progress) -> None:
    _remove(f"{path}.migrating")
    free = _free_bytes(path)
    if free < _IN_PLACE_BYTES:
        raise NotStored(
            f"{path} has to be brought up to date, which needs {_IN_PLACE_BYTES:,} bytes, and {free:,} are free:"
            " nothing was changed, nodes keep their samples. Make room, then start it again"
        )
    with contextlib.closing(_write(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        version = _version(db)
        # A run that was killed in `_swap` may have given the file a second name: it would be no copy any more.
        if version != UNFINISHED and os.path.exists(second := _free_name(f"{path}.v{version}", path)):
            os.unlink(second)
        RowConversion(db, True, version, "", report).run()


def _lacks_room(path: str) -> str:
    """Return what to say where there is no room for a second file; empty: there is."""
    new = f"{path}.migrating"
    done = os.path.getsize(new) if os.path.exists(new) else 0
    needed = os.path.getsize(path) + _SPARE_BYTES - done
    return _no_room(path, needed) if _free_bytes(path) < needed else ""


def _no_room(path: str, needed: int) -> str:
    return (
        f"{path} is brought up to date in place, and no copy of the old format is kept: one needs {needed:,} bytes,"
        f" and {_free_bytes(path):,} are free"
    )


def _free_bytes(path: str) -> int:
    disk = os.statvfs(os.path.dirname(path) or ".")
    return disk.f_bavail * disk.f_frsize


# ------------------------------------------------------------------------------------------ what both use


class _Report:
    """Lines in the log of how far it is, and more time from systemd, which would end a start that takes so long."""

    def __init__(self, path: str) -> None:
        extend_start(_FIRST_S)
        self._path = path
        self._first = -1  # samples that were done when this run began
        self._began_s = self._told_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        extend_start(_NEXT_S)
        now_s = time.monotonic()
        if self._first < 0:
            self._first, self._began_s, self._told_s = done, now_s, now_s
            log.info("%s: %s samples are brought into the new format", self._path, f"{total - done:,}")
        elif now_s - self._told_s >= _REPORT_S and done > self._first:
            left_s = (now_s - self._began_s) * (total - done) / (done - self._first)
            log.info("%s: %d %% are in the new format; about %.0f s left", self._path, 100 * done // total, left_s)
            self._told_s = now_s


def _fold_in_wal(db: sqlite3.Connection, path: str) -> None:
    """Make the file one that has everything, so that it can be read without its WAL."""
    busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise NotStored(
            f"{path} has to be brought up to date, but another program has it open: end that (`fuser {path}` tells"
            " which it is), then start this one again"
        )


def _write(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(path)}", uri=True, isolation_level=None, timeout=_BUSY_S)


def _read(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)


def _version(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def _remove(path: str) -> None:
    for name in (path, f"{path}-wal", f"{path}-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
