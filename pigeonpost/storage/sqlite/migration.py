"""Migration of a SQLite file of formats 1 to 3, with one row per sample, to the present format (see schema).

The data are converted into a new file, in transactions of about 20,000 samples that also store the progress. Then the
new file is renamed, and the old one is kept as `pigeonpost.sqlite3.v3`. An interrupted migration continues at the next
start.

If the disk has no space for a second file, the old file is converted in place, in transactions of the same size. Each
transaction deletes the old rows of the chunks that it stores, and SQLite reuses their pages. So the server can start in
this case too, but no copy of the old file is kept.

The caller holds the lock of the data folder, so no other program works on the file.

Errors: NotStored if there is not even space for a conversion in place, or if another program has the file open.
StoreDamaged if rows are missing or invalid. DiskError. sqlite3.Error.
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
from pigeonpost.core.format import counted
from pigeonpost.core.lifecycle import extend_start
from pigeonpost.storage.sqlite import wal
from pigeonpost.storage.sqlite.integrity import Damage, damage_text
from pigeonpost.storage.sqlite.row_conversion import Progress, RowConversion
from pigeonpost.storage.sqlite.schema import UNFINISHED, VERSION

log = logging.getLogger(__name__)

_MAGIC, _HEAD_BYTES = b"SQLite format 3\0", 100  # sqlite.org/fileformat2.html, section 1.3; at 60 the user_version
_SPARE_BYTES = 16 << 20  # free space required beyond the size of the new file
_IN_PLACE_BYTES = 32 << 20  # free space required in place: WAL of two transactions, and pages that one of them frees
_BUSY_S = 5.0  # time limit for waiting until another program finishes its query
_REPORT_S = 10.0  # time between two log lines
# Time limits: first transaction, which copies all tables except the samples; each later one.
_FIRST_S, _NEXT_S = 900.0, 120.0


def is_old(path: str) -> bool:
    """Return True if the file at `path` must be migrated before it is used.

    No connection to the file may be open in this process. If there is no WAL, the header is read directly. A read-only
    connection would refuse a file whose last transaction must be rolled back, and a read-write connection would delete
    a WAL.
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
    """Convert the file at `path`, for which `is_old` is True, to the present format.

    Args:
        path: Path of the database file.
        progress: Called after each transaction with the number of converted samples and the total; None to write a log
            line every 10 s.

    Returns:
        The damage of the file's WAL, or None. After the migration this damage can no longer be detected.

    Raises:
        NotStored: There is not enough free space, or another program has the file open.
        StoreDamaged: Rows are missing or invalid.
        DiskError: An I/O error.
    """
    path = os.path.realpath(path)  # if it is a symbolic link to another disk, the file stays there
    report = progress or _Report(path)
    try:
        with contextlib.closing(_write(path)) as db:
            lost = wal.lost_commits(db, path)
            _fold_in_wal(db, path)
            version = _version(db)
        if version == UNFINISHED:
            _in_place(path, report)
        elif needed := _lacks_space(path):
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
            damage_text(os.path.dirname(path), f"a row has a form that Pigeonpost never writes: {error!r:.200}")
        ) from error


# ---------------------------------------------------------------------- conversion into a new file, or in place


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
    if was_begun:  # the new file was begun from an older state of the old one, or is damaged
        _into_new_file(path, version, report)
    else:
        log.warning("%s", _no_space(path, os.path.getsize(path)))
        _in_place(path, report)


def _make_new_file(path: str, new: str, version: int, report: Progress) -> bool:
    """Convert the old file into a new one.

    Return False if an earlier run began the new file from another state of the old file.
    """
    if os.path.islink(new):
        os.unlink(new)  # in another user's folder, root must not write to the target of a link
    with contextlib.closing(_write(new)) as db:
        give_to_owner(new)
        db.execute("PRAGMA journal_mode = WAL")
        # NORMAL is enough: a power cut may undo the last transactions, but each together with its progress.
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
    """Move the new file to `path` and keep the old one under another name.

    At any time there is a complete file at `path`.
    """
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
    log.info("%s has the new format now; the old file is kept as %s and may be deleted", path, kept)


def _copy(path: str, target: str) -> None:
    """Copy a file durably. The copy gets its final name only when it is complete."""
    new = f"{target}.part"
    _remove(new)
    # O_NOFOLLOW, because root may work in another user's folder, where either name may be a symbolic link.
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
    """Return `name`, or `name` with a number if it belongs to another file than the one at `path`."""
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
            f"{path} must be converted to the present format, which needs {_IN_PLACE_BYTES:,} bytes of free space, but"
            f" only {free:,} are free. Nothing was changed, and the nodes keep their samples. Free some space, then"
            " start the server again"
        )
    with contextlib.closing(_write(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        version = _version(db)
        # A run that was killed in `_swap` may have left a hard link to this file. The link is not a copy, because its
        # content would change together with the file.
        if version != UNFINISHED and os.path.exists(second := _free_name(f"{path}.v{version}", path)):
            os.unlink(second)
        RowConversion(db, True, version, "", report).run()


def _lacks_space(path: str) -> str:
    """Return the text to log if there is no space for a second file, or an empty string if there is."""
    new = f"{path}.migrating"
    done = os.path.getsize(new) if os.path.exists(new) else 0
    needed = os.path.getsize(path) + _SPARE_BYTES - done
    return _no_space(path, needed) if _free_bytes(path) < needed else ""


def _no_space(path: str, needed: int) -> str:
    return (
        f"{path} is converted to the present format in place, and no copy of the old file is kept, because a copy needs"
        f" {needed:,} bytes and {_free_bytes(path):,} are free"
    )


def _free_bytes(path: str) -> int:
    disk = os.statvfs(os.path.dirname(path) or ".")
    return disk.f_bavail * disk.f_frsize


# ----------------------------------------------------------------------------------------------- common parts


class _Report:
    """Progress of the migration. Writes log lines, and extends systemd's time limit for the start."""

    def __init__(self, path: str) -> None:
        extend_start(_FIRST_S)
        self._path = path
        self._first = -1  # samples that were converted when this run began; -1 before the first call
        self._began_s = self._reported_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        extend_start(_NEXT_S)
        now_s = time.monotonic()
        if self._first < 0:
            self._first, self._began_s, self._reported_s = done, now_s, now_s
            log.info("%s: converting %s to the new format", self._path, counted(total - done, "sample"))
        elif now_s - self._reported_s >= _REPORT_S and done > self._first:
            left_s = (now_s - self._began_s) * (total - done) / (done - self._first)
            log.info("%s: %d %% converted, about %.0f s left", self._path, 100 * done // total, left_s)
            self._reported_s = now_s


def _fold_in_wal(db: sqlite3.Connection, path: str) -> None:
    """Copy the complete WAL into the file, so that the file can be read alone."""
    busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise NotStored(
            f"{path} must be converted to the present format, but another program has it open. End that program"
            f" (`fuser {path}` shows which one it is), then start the server again"
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
