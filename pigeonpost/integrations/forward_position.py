"""Durable positions of the forward targets, in `forward.sqlite3` in the data folder.

For each target, node and epoch the file contains the sequence number up to which the target has certainly stored all
samples. Each change is one transaction, synced to the disk.
`forward.json` lists all targets that were ever used. So a target whose positions were lost is not mistaken for a new
one: everything stored is sent to it again.

Any thread may use it. `_lock` guards the connection; it is held for one query or transaction.
Errors: NotKept. A damaged file is renamed and replaced by an empty one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from pigeonpost.core.clock import Clock
from pigeonpost.core.data_folder import FORWARD_TARGETS, FORWARDED
from pigeonpost.core.errors import DamagedFile, DiskError, PigeonpostError
from pigeonpost.core.faults import Faults
from pigeonpost.core.files import give_to_owner
from pigeonpost.core.json_file import JsonFile

log = logging.getLogger(__name__)

_VERSION = 1  # PRAGMA user_version
_BUSY_S = 10.0  # time limit for waiting until another program finishes its query
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE targets (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE positions (
    target TEXT, node TEXT, epoch TEXT, seq INTEGER NOT NULL, PRIMARY KEY (target, node, epoch)
) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_PUT = "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)"

Key = tuple[str, str]  # node and epoch


class NotKept(PigeonpostError, OSError):
    """The positions cannot be read or written now."""


class Known(Enum):
    """State of a target in the files."""

    NEW = "it was never used"
    BEGUN = "its positions are known"
    LOST = "it was used, but its positions are lost"


class PositionFile:
    """The positions of all targets."""

    def __init__(self, data: str, faults: Faults, clock: Clock) -> None:
        """Prepare access. The file is opened at the first use.

        Args:
            data: Data folder of the server.
            faults: Receives the fault of a file that was damaged.
            clock: Clock of the server.
        """
        self._path = os.path.join(data, FORWARDED)
        self._faults, self._clock = faults, clock
        self._used = JsonFile(
            os.path.join(data, FORWARD_TARGETS), "a list of targets", dict, faults, auto_restore=True
        )  # fmt: skip
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def known(self, target: str) -> Known:
        """Return what is known about `target`."""
        with self._opened() as db:
            if db.execute("SELECT 1 FROM targets WHERE name = ?", (target,)).fetchone():
                return Known.BEGUN
        try:
            return Known.LOST if target in self._used.now() else Known.NEW
        except DamagedFile:  # better to send samples twice than never
            return Known.LOST

    def begin(self, target: str, positions: Mapping[Key, int]) -> None:
        """Record that `target` is used from now on, from these `positions` and from the beginning of other epochs.

        Raises:
            NotKept: The file cannot be written.
        """
        with self._opened(writes=True) as db:
            db.execute("INSERT OR IGNORE INTO targets VALUES (?)", (target,))
            db.executemany(_PUT, _rows(target, positions))

    def remember(self, target: str) -> None:
        """Add `target` to the list of targets that were ever used. If that is not possible, the next start does it."""
        try:
            used = self._used.now()
            if target not in used:
                self._used.write({**used, target: {"since_ms": self._clock.wall_ms()}})
        except (DamagedFile, DiskError, OSError) as error:
            log.warning("%s: %s", FORWARD_TARGETS, error)

    def read(self, target: str) -> dict[Key, int]:
        """Return all positions of `target`, by (node, epoch)."""
        with self._opened() as db:
            rows = db.execute("SELECT node, epoch, seq FROM positions WHERE target = ?", (target,)).fetchall()
        return {(node, epoch): seq for node, epoch, seq in rows}

    def find(self, target: str, key: Key) -> int | None:
        """Return the position of `target` in the node and epoch `key`, or None if it has none."""
        with self._opened() as db:
            row = db.execute(
                "SELECT seq FROM positions WHERE target = ? AND node = ? AND epoch = ?", (target, *key)
            ).fetchone()
        return int(row[0]) if row else None

    def write(self, target: str, positions: Mapping[Key, int]) -> None:
        """Store `positions` of `target`, and sync the disk."""
        if positions:
            with self._opened(writes=True) as db:
                db.executemany(_PUT, _rows(target, positions))

    def move(self, target: str, node: str, new: str) -> None:
        """Move the positions of `target` in all epochs of `node` to its new name `new`."""
        with self._opened(writes=True) as db:
            db.execute("UPDATE OR REPLACE positions SET node = ? WHERE target = ? AND node = ?", (new, target, node))

    def close(self) -> None:
        """Close the file. A second call does nothing, and a later use opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    @contextlib.contextmanager
    def _opened(self, writes: bool = False) -> Iterator[sqlite3.Connection]:
        """Lend the connection, within a transaction if `writes` is True. Errors become NotKept."""
        with self._lock:
            try:
                db = self._db = self._db or self._open()
                if not writes:
                    yield db
                    return
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException as error:
                self._close()  # this also undoes the transaction
                if not isinstance(error, sqlite3.Error | OSError):
                    raise
                if _is_damage(error):
                    self._set_aside(error)
                if isinstance(error, NotKept):
                    raise
                raise NotKept(f"{FORWARDED}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
            return _connect(self._path)

    def _set_aside(self, error: Exception) -> None:
        kept = f"{self._path}.damaged-{self._clock.wall_ms()}"
        os.rename(self._path, kept)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path + suffix)
        self._faults.set(
            FORWARDED,
            f"it was damaged ({error}) and is replaced. All stored samples are sent to the targets again. Check the"
            f" disk, and delete {kept}. This fault ends with the next start",
        )


def _rows(target: str, positions: Mapping[Key, int]) -> Iterator[tuple[Any, ...]]:
    return ((target, *key, seq) for key, seq in positions.items())


def _is_damage(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such table" in str(error)


def _connect(path: str) -> sqlite3.Connection:
    if not os.path.exists(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        give_to_owner(path)
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -256")  # KiB
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(_SCHEMA)
        elif version != _VERSION:
            raise NotKept(
                f"{path} has format {version}, and this version of Pigeonpost supports {_VERSION}: use the version"
                " that wrote it, or delete the file to send all stored samples again"
            )
    except BaseException:
        db.close()
        raise
    return db
