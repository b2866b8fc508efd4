"""The default store: one SQLite file, `pigeonpost.sqlite3`, which needs no other software.

The file is in WAL mode with synchronous=FULL, so a commit is on the disk when it returns.

Samples are stored in rows of up to several thousand consecutive samples (see storage.chunks). A commit appends rows to
the table `fresh`, where the id of a row is its filing number. Compaction later turns them into rows of `chunks`. Gaps
have filing numbers too. The last number in use is the highest of `fresh`, `gaps` and the recorded position of the CSV
log. Rows are deleted from `fresh` only after the log contains them, so no filing number is ever used twice. SQL views
show one row per value or per sample to users.

Threads: one connection writes; only the Ingestor's writer thread uses it. No other connection writes or runs a
checkpoint, because SQLite 3.7.0 to 3.51.2 can damage a file when two connections do so at the same time. A reader
borrows a read-only connection for one short query from `_idle`, a deque whose append and pop are atomic. The semaphore
`_room` limits the number of simultaneous readers.

Errors: NotStored for a full disk or a locked file. StoreDamaged for a damaged file (see integrity); after that no new
transaction begins. DiskError for I/O errors and for a file that was removed or replaced.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.errors import DiskError, NotStored, PigeonpostError, SettingsError, StoreDamaged
from pigeonpost.core.files import give_to_owner
from pigeonpost.link.samples import Gap, SampleBatch
from pigeonpost.storage.chunks import COLUMNS, MARKS, ChunkRow, DamagedRow
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.format import lacking
from pigeonpost.storage.models import (
    Bucket,
    EpochCommit,
    EpochMark,
    HighWaterMark,
    LogEntry,
    LogMark,
    NodeRecords,
    NodeUsage,
    Rollup,
    StoredBatch,
    StoredSample,
    Window,
)
from pigeonpost.storage.node_records import RecordTables
from pigeonpost.storage.shapes import ShapeIds, ShapeNames, StoredUnits
from pigeonpost.storage.sqlite import buckets, counts, integrity, migration, pieces, queries, rollups, wal
from pigeonpost.storage.sqlite.compaction import Compactor, Rewrite, rewrite
from pigeonpost.storage.sqlite.fresh import FreshIndex
from pigeonpost.storage.sqlite.runs import RunReader
from pigeonpost.storage.sqlite.schema import bring_up_to_date, make_tables, refuse_headless, refuse_other

log = logging.getLogger(__name__)

_INSERT = f"INSERT INTO fresh (id, {COLUMNS}) VALUES (?,{MARKS})"
_INSERT_GAP = "INSERT INTO gaps VALUES (?, ?, ?, ?, ?, ?, ?)"
_MOST_READERS = 8  # each keeps two files open and some pages in memory
_READER_PAGES_KIB = 512  # page cache of each read-only connection
_LOGGED_TOGETHER = 64  # entries that the CSV log lacks, read per query: a few MiB at most
_OLDEST = 3, 38, 0  # SQLite library: the views use its operator ->>
_TRY_AGAIN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class SqliteStore(Store):
    """A store in one SQLite file, which is created if it is missing.

    Args:
        folder: Data folder that contains the file.
        look_only: True to change nothing and create no file. For use while a server is running.

    Attributes:
        on_begin: Called with the connection in each transaction that writes. The demonstration fills the disk here.

    Raises:
        SettingsError: The file was written by a newer program, or the SQLite library is too old.
        StoreDamaged: The file cannot be opened, or is not a store of this program. A damaged file that can be opened
            is opened; the attribute `damage` then contains the reason.
        DiskError: The file cannot be used.
    """

    description = f"SQLite, {DATABASE} in the data folder"
    is_checked = True
    on_begin: Callable[[sqlite3.Connection], object] = staticmethod(lambda db: None)
    _filed: int | None  # the last filing number in use; None if it must be read first

    def __init__(self, folder: str, look_only: bool = False) -> None:
        if sqlite3.sqlite_version_info < _OLDEST:
            raise SettingsError(f"the database needs SQLite 3.38 or newer; this Python has {sqlite3.sqlite_version}")
        self._folder, self._path = folder, os.path.join(folder, DATABASE)
        self._idle: deque[sqlite3.Connection] = deque()
        self._room = threading.Semaphore(_MOST_READERS)
        self._marks = rollups.DirtyWindows()
        self._shape_names = ShapeNames("?")
        self._fresh = FreshIndex()
        self._compactor = Compactor(self._shape_names, self._record_invalid_row)
        self._records = RecordTables("?")
        self._files: wal.OpenFiles | None = None
        self._lost: integrity.Damage | None = None  # damage of the WAL, found by the migration
        self._clear_caches()
        integrity.refuse_empty(folder)
        with self._sqlite_errors():
            is_new = not os.path.lexists(self._path)
            if not look_only:
                integrity.refuse_foreign_wal(folder)
                if migration.is_old(self._path):
                    self._lost = migration.migrate(self._path)
            self._db = self._open_to_read() if look_only else self._connect(self._path)
            try:
                if look_only:
                    refuse_other(self._db, self._path)
                else:
                    self._prepare(is_new)
                with contextlib.suppress(sqlite3.Error):  # even a damaged file is opened, for reading
                    self.unlogged = queries.unlogged(self._db)
                self._files = wal.OpenFiles(self._path, not look_only)
            except BaseException:
                self._db.close()
                raise

    def _prepare(self, is_new: bool) -> None:
        give_to_owner(self._path)  # must be done first, because SQLite creates the WAL with the same owner
        if not is_new:
            refuse_headless(self._db, self._path)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        # Checkpoint every 16 MiB of WAL instead of every 4 MiB: 15 % faster, and less wear of an SD card.
        self._db.execute("PRAGMA wal_autocheckpoint = 4000")
        bring_up_to_date(self._db, self._path)
        self.identity = queries.identity(self._db) or os.urandom(8).hex()
        if lost := self._lost or wal.lost_commits(self._db, self._path):
            self.found_at_start = self._record_damage(lost)
        elif is_new and integrity.has_rows(self._folder):
            self.found_at_start = integrity.missing_text(self._folder)
        elif fault := queries.unlogged_fault(self._db):
            self.found_at_start = self._record_damage(integrity.Damage(fault, False))
        for fault in integrity.start_faults(self._db, make_tables):
            self._record_damage(integrity.Damage(fault, True))

    def _record_damage(self, found: integrity.Damage) -> str:
        """Record damage and return its text. Damage of the file's structure ends all writing."""
        text = integrity.damage_text(self._folder, found.text, found.ends_writing)
        if found.ends_writing:
            self.damage = self.damage or text
        self.on_damage(self.damage or text)
        return text

    def _record_invalid_row(self, text: str) -> str:
        return self._record_damage(
            integrity.Damage(f"a row has a form that Pigeonpost never writes: {text:.200}", False)
        )

    # -------------------------------------------------------------------------------------------- writing

    @contextmanager
    def writing(self, epochs: Iterable[tuple[str, str]]) -> Iterator[Mapping[tuple[str, str], HighWaterMark]]:
        if self.damage:
            raise StoreDamaged(self.damage)
        self._refuse_removed()
        with self._sqlite_errors():
            if saved := wal.save(self._db, self._path):
                self._record_damage(saved)
            self._db.execute("BEGIN IMMEDIATE")
            self._marks.begin()
            try:
                self.on_begin(self._db)
                yield {key: mark for key in epochs if (mark := queries.mark(self._db, *key))}
                self._db.execute("COMMIT")
            except BaseException:
                self._clear_caches()
                self._marks.undo()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def put(self, epoch_commits: Sequence[EpochCommit], noted_ms: int, log: LogMark | None) -> int:
        rows: list[tuple[int | str | None, ...]] = []
        if self._filed is None:
            self._filed = queries.last_filed(self._db)
        for epoch_commit in epoch_commits:
            node, epoch = self._put_marks(epoch_commit)
            for item in epoch_commit.items:
                self._filed += 1
                if isinstance(item, Gap):
                    self._db.execute(_INSERT_GAP, (self._filed, epoch, *item, noted_ms))
                else:
                    rows.append((self._filed, *self._fresh_row(node, epoch, item, noted_ms)))
        self._db.executemany(_INSERT, rows)
        if log is not None:
            queries.put_log_mark(self._db, log, self.unlogged)
        return self._filed

    def _put_marks(self, epoch_commit: EpochCommit) -> tuple[int, int]:
        node = self._node(epoch_commit.node)
        epoch = queries.put_mark(self._db, node, epoch_commit)
        if self._units.get(epoch_commit.node) is not epoch_commit.units:
            units = [(node, name, unit) for name, unit in epoch_commit.units.items()]
            self._db.executemany("INSERT OR REPLACE INTO sensors VALUES (?, ?, ?)", units)
            self._units.keep(epoch_commit.node, epoch_commit.units)
        return node, epoch

    def _fresh_row(self, node: int, epoch: int, batch: SampleBatch, noted_ms: int) -> ChunkRow:
        """Return the row of a batch, and store its error texts and dirty windows."""
        names, first = batch.names, batch.seq
        for name, errors in batch.errors.items():
            self._db.executemany(
                "INSERT INTO failures VALUES (?, ?, ?, ?)",
                [(epoch, first + index, name, error) for index, error in errors.items()],
            )
        self._marks.touch(self._db, node, batch.times, self._filed or 0)
        return ChunkRow.pack(node, epoch, self._shapes.get(names) or self._shape(names), batch, noted_ms)

    def _node(self, name: str) -> int:
        if name not in self._nodes:
            self._db.execute("INSERT OR IGNORE INTO nodes (name) VALUES (?)", (name,))
            (self._nodes[name],) = self._db.execute("SELECT id FROM nodes WHERE name = ?", (name,)).fetchone()
        return self._nodes[name]

    def _shape(self, names: tuple[str, ...]) -> int:
        text = json.dumps(names)
        self._db.execute("INSERT OR IGNORE INTO shapes (names) VALUES (?)", (text,))
        return self._shapes.keep(names, *self._db.execute("SELECT id FROM shapes WHERE names = ?", (text,)).fetchone())

    def _clear_caches(self) -> None:
        """Clear all caches. They may contain data of a transaction that was rolled back."""
        self._nodes: dict[str, int] = {}
        self._shapes = ShapeIds()
        self._units = StoredUnits()
        self._filed = None

    def _refuse_removed(self) -> None:
        if self._files is not None and (path := self._files.replaced()):
            text = (
                f"{path} was removed or replaced while it was in use. The next start uses the file that it finds there"
            )
            self.on_damage(text)
            raise DiskError(text)

    def replace_rollups(self, window: Window, summaries: Mapping[str, Rollup]) -> None:
        rollups.put(self._db, self._marks, window, summaries)

    def merge_late_rollups(self, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]) -> bool:
        with self._row_errors():
            return rollups.merge_late_rollups(self._db, self._marks, window, parts)

    def delete_expired(self, before_ms: int, most: int) -> int:
        with self._row_errors():
            return rollups.delete_expired(self._db, before_ms, most)

    def compaction(self, now_ms: int) -> Callable[[], int] | None:
        with self._reading() as db:
            found = self._compactor.next_part(db, now_ms)
        return (lambda: self._rewrite(found)) if found else None

    def _rewrite(self, found: Sequence[Rewrite]) -> int:
        with self._row_errors():
            count = rewrite(self._db, found)
        if not count:
            self._compactor.give_up()
        return count

    def rename(self, node: str, new: str, now_ms: int) -> None:
        self._clear_caches()  # they contain names of nodes
        self._records.rename(self._db, node, new, now_ms)

    def release(self, name: str) -> None:
        self._records.release(self._db, name)

    def retire(self, node: str, at_ms: int | None) -> None:
        self._records.retire(self._db, node, at_ms)

    def relabel(self, node: str, sensor: str, label: str) -> None:
        self._records.relabel(self._db, node, sensor, label)

    def close(self) -> None:
        for db in self._idle:
            db.close()
        self._db.close()

    # -------------------------------------------------------------------------------------------- reading

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, HighWaterMark]]:
        with self._reading() as db:
            top = queries.top(db, node, outbox)
            return top, {e: mark for e in epochs if (mark := queries.mark(db, node, e))}

    def log_mark(self) -> LogMark | None:
        with self._reading() as db:
            return queries.log_mark(db)

    def logged_after(self, filed: int) -> Iterator[LogEntry]:
        with self._reading() as db:
            pending = queries.pending_after(db, filed)
        for start in range(0, len(pending), _LOGGED_TOGETHER):  # in parts, so that no snapshot stays open for long
            yield from self._logged(pending[start : start + _LOGGED_TOGETHER])

    def _logged(self, pending: Sequence[tuple[int, bool]]) -> list[LogEntry]:
        try:
            with self._reading() as db:
                return queries.entries(db, self._shape_names, pending, self._record_invalid_row)
        except StoreDamaged:  # for example an unreadable sector: the other rows are read one by one
            if self.damage:
                raise
        if len(pending) == 1:
            return [queries.lost(pending[0][0])]
        return [entry for one in pending for entry in self._logged([one])]

    def nodes(self) -> list[dict[str, Any]]:
        with self._reading_runs() as reader:
            return integrity.plain_nodes(counts.nodes(reader.db, reader.ends))

    def usage(self, node: str) -> NodeUsage:
        with self._reading() as db:
            return counts.usage(db, node)

    def channels(self, node: str, most: int) -> set[str]:
        with self._reading() as db:
            return counts.channels(db, node, most)

    def points(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[StoredSample]:
        with self._reading_runs() as reader:
            return reader.newest(node, from_ms, to_ms, limit)

    def stored_batches(self, node: str, from_ms: int, to_ms: int) -> Iterator[StoredBatch]:
        with self._reading_runs() as reader:
            yield from reader.batches(node, from_ms, to_ms)

    def every_batch(self) -> Iterator[StoredBatch]:
        with self._reading_runs() as reader:
            yield from reader.every_batch()

    def epoch_marks(self) -> dict[tuple[str, str], EpochMark]:
        with self._reading() as db:
            return queries.epoch_marks(db)

    def batches_of_epoch(self, node: str, epoch: str, after: int, most: int) -> list[StoredBatch]:
        with self._reading_runs() as reader:
            return list(reader.of_epoch(node, epoch, after, most))

    def downsample(self, node: str, sensor: str, from_ms: int, to_ms: int, count: int) -> list[Bucket]:
        return self.downsample_several(node, from_ms, to_ms, count, (sensor,))[sensor]

    def downsample_several(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        with self._reading_runs() as reader:
            return buckets.downsample(reader, node, from_ms, to_ms, count, sensors)

    def downsample_all(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        with self._reading_runs() as reader:
            return buckets.downsample_all(reader, node, from_ms, to_ms, count, sensors)

    def dirty_windows(self, before_ms: int, most: int) -> list[Window]:
        with self._reading() as db:
            return rollups.dirty_windows(db, before_ms, most, queries.last_filed(db))

    def summaries(self, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
        with self._reading() as db:
            return integrity.plain_numbers(rollups.summaries(db, node, sensor, span_ms, from_ms, to_ms))

    def dirty_ends(self, node: str, span_ms: int, from_ms: int, to_ms: int) -> list[int]:
        with self._reading() as db:
            return rollups.dirty_ends(db, node, span_ms, from_ms, to_ms)

    def gaps(self, limit: int) -> list[dict[str, Any]]:
        with self._reading() as db:
            return integrity.plain_gaps(queries.gaps(db, limit))

    def node_records(self) -> NodeRecords:
        with self._reading() as db:
            return self._records.read(db)

    def known_units(self) -> dict[str, dict[str, str]]:
        with self._reading() as db:
            return integrity.known_units(db)

    def check_pieces(self) -> Iterator[str]:
        yield from pieces.check(self._new_reading)
        if self.unlogged:
            yield lacking(self.unlogged)

    @contextmanager
    def _new_reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a new read-only connection, which has no pages in memory."""
        self._refuse_removed()
        with self._sqlite_errors(reads=True), contextlib.closing(self._open_to_read()) as db:
            db.execute("BEGIN")
            if db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone() != (self.identity,):
                what = "another database was copied over it while it was in use"
                raise StoreDamaged(self._record_damage(integrity.Damage(what, True)))
            yield db

    def verify(self) -> Iterator[str]:
        with self._reading() as db:
            yield from pieces.verify(db)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a read-only connection with a snapshot of the database, for one short query."""
        self._refuse_removed()
        with self._room, self._sqlite_errors(reads=True), self._row_errors():
            try:
                db = self._idle.pop()
            except IndexError:
                db = self._open_to_read()
            try:
                db.execute("BEGIN")
                yield db
                db.execute("ROLLBACK")
            except BaseException:
                db.close()  # after an error the content of its cache is unknown
                raise
            self._idle.append(db)

    @contextmanager
    def _reading_runs(self) -> Iterator[RunReader]:
        """Lend a RunReader with a snapshot of the database."""
        index = self._fresh  # fetched before the snapshot begins: see fresh
        with self._reading() as db:
            yield RunReader(db, index, self._shape_names)
        if index.is_stale and index is self._fresh:
            self._fresh = FreshIndex()

    @contextmanager
    def _row_errors(self) -> Iterator[None]:
        """Convert Python errors to StoreDamaged. Rows of an unexpected form cause them."""
        try:
            yield
        except PigeonpostError:
            raise
        except (ValueError, TypeError, LookupError, StopIteration, OverflowError) as error:
            text = self._record_invalid_row(repr(error))
            if not isinstance(error, DamagedRow):  # a traceback adds nothing to that error
                log.error("%s", error, exc_info=True)
            raise StoreDamaged(text) from error

    def _open_to_read(self) -> sqlite3.Connection:
        db = self._connect(f"file:{quote(self._path)}?mode=ro", uri=True)
        try:
            db.execute(f"PRAGMA cache_size = -{_READER_PAGES_KIB}")
        except BaseException:  # PRAGMA reads the file, so it can fail
            db.close()
            raise
        return db

    @staticmethod
    def _connect(path: str, uri: bool = False) -> sqlite3.Connection:
        return sqlite3.connect(path, uri=uri, isolation_level=None, check_same_thread=False)

    @contextmanager
    def _sqlite_errors(self, reads: bool = False) -> Iterator[None]:
        """Convert errors of SQLite to those of this program.

        For a reader (`reads` is True), an I/O error counts as damage of the rows that were read. For the writer it is a
        DiskError, after which the program ends.
        """
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            # The file was open before, so SQLITE_CANTOPEN means that there are no free file descriptors.
            if code in _TRY_AGAIN or (code == sqlite3.SQLITE_CANTOPEN and self._files):
                raise NotStored(f"{self._path}: {error}") from error
            if found := integrity.reported_damage(error, reads):
                raise StoreDamaged(self._record_damage(found)) from error
            text = f"{self._path}: {error}; `dmesg` shows the disk's error"
            self.on_damage(text)
            raise DiskError(text) from error
