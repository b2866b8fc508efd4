"""Store in one SQLite file, `pigeonpost.sqlite3`: the default, which needs nothing installed.

WAL mode with synchronous=FULL: a commit is on the disk when it returns.

One connection writes, and belongs to the Ingestor's writer thread. No other ever writes or checkpoints: SQLite 3.7.0 to
3.51.2 can damage a file when two connections checkpoint at once. A reader borrows a read-only connection for one short
query from `_idle`, a deque whose append and pop are atomic; `_room` limits how many readers query at once.
Errors: NotStored for a full disk or a locked file; StoreDamaged for a file that is damaged (see integrity), after which
no transaction begins any more; DiskError for I/O errors, and a file that was removed or replaced.

Samples are in rows of up to some thousand that follow each other (see storage.chunks). A commit appends to `fresh`,
where the id of a row is its filing number; compaction makes rows of `chunks` of them. Gaps have filing numbers too. The
last one given is the highest of `fresh`, `gaps` and what the CSV log is recorded to have: whatever is deleted from
`fresh` is in the log by then, so no number is ever given twice. Views show one row per value, or sample, to people.
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
_READER_PAGES_KIB = 512
_LOGGED_TOGETHER = 64  # entries that the log owes: some MiB at most
_OLDEST = 3, 38, 0  # of the library: the views need its operator ->>
_TRY_AGAIN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class SqliteStore(Store):
    """A store in the file in `folder`, which is made when it is missing."""

    description = f"SQLite, {DATABASE} in the data folder"
    is_checked = True
    _filed: int | None  # the last filing number given; None: to be read

    def __init__(self, folder: str, look_only: bool = False) -> None:
        """
        look_only  change nothing, not even by making the file: for looking beside a server that runs

        Raises SettingsError for a file of a newer program and where the library is too old, StoreDamaged for one that
        cannot be opened or is no store of ours, DiskError for one that cannot be used. One that opens and has damage is
        opened: `damage` says what.
        """
        if sqlite3.sqlite_version_info < _OLDEST:
            raise SettingsError(f"the database needs SQLite 3.38 or newer; this Python has {sqlite3.sqlite_version}")
        self._folder, self._path = folder, os.path.join(folder, DATABASE)
        self._idle: deque[sqlite3.Connection] = deque()
        self._room = threading.Semaphore(_MOST_READERS)
        self._marks = rollups.DirtyWindows()
        self._shape_names = ShapeNames("?")
        self._fresh = FreshIndex()
        self._compactor = Compactor(self._shape_names, self._note_odd_row)
        self._records = RecordTables("?")
        self._files: wal.OpenFiles | None = None
        self._lost: integrity.Damage | None = None  # of its WAL, found by the migration
        self._forget()
        integrity.refuse_empty(folder)
        with self._our_errors():
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
                with contextlib.suppress(sqlite3.Error):  # of a damaged file, which is looked at
                    self.unlogged = queries.unlogged(self._db)
                self._files = wal.OpenFiles(self._path, not look_only)
            except BaseException:
                self._db.close()
                raise

    def _prepare(self, is_new: bool) -> None:
        give_to_owner(self._path)  # before its log is made, whose owner SQLite makes the same
        if not is_new:
            refuse_headless(self._db, self._path)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        # Pages that grow are written back once in 16 MiB of log, not once in 4: 15 % faster, and kinder to a card.
        self._db.execute("PRAGMA wal_autocheckpoint = 4000")
        bring_up_to_date(self._db, self._path)
        self.identity = queries.identity(self._db) or os.urandom(8).hex()
        if lost := self._lost or wal.lost_commits(self._db, self._path):
            self.found_at_start = self._note_damage(lost)
        elif is_new and integrity.has_rows(self._folder):
            self.found_at_start = integrity.missing_text(self._folder)
        elif odd := queries.odd_unlogged(self._db):
            self.found_at_start = self._note_damage(integrity.Damage(odd, False))
        for fault in integrity.start_faults(self._db, make_tables):
            self._note_damage(integrity.Damage(fault, True))

    def _note_damage(self, found: integrity.Damage) -> str:
        """Remember damage, after which nothing is written any more where it is in the structure. Returns the text."""
        text = integrity.damage_text(self._folder, found.text, found.ends_writing)
        if found.ends_writing:
            self.damage = self.damage or text
        self.on_damage(self.damage or text)
        return text

    def _note_odd_row(self, text: str) -> str:
        return self._note_damage(integrity.Damage(f"a row that Pigeonpost never writes: {text:.200}", False))

    # -------------------------------------------------------------------------------------------- writing

    @contextmanager
    def writing(self, epochs: Iterable[tuple[str, str]]) -> Iterator[Mapping[tuple[str, str], HighWaterMark]]:
        if self.damage:
            raise StoreDamaged(self.damage)
        self._refuse_removed()
        with self._our_errors():
            if saved := wal.save(self._db, self._path):
                self._note_damage(saved)
            self._db.execute("BEGIN IMMEDIATE")
            self._marks.begin()
            try:
                yield {key: mark for key in epochs if (mark := queries.mark(self._db, *key))}
                self._db.execute("COMMIT")
            except BaseException:
                self._forget()
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
        """Return the row of a stretch, and store what else belongs to it."""
        names, first = batch.names, batch.seq
        for name, errors in batch.errors.items():
            self._db.executemany(
                "INSERT INTO failures VALUES (?, ?, ?, ?)",
                [(epoch, first + place, name, error) for place, error in errors.items()],
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

    def _forget(self) -> None:
        """Clear the caches after a rollback: what was learned in the transaction is no longer true."""
        self._nodes: dict[str, int] = {}
        self._shapes = ShapeIds()
        self._units = StoredUnits()
        self._filed = None

    def _refuse_removed(self) -> None:
        if self._files is not None and (path := self._files.replaced()):
            text = f"{path} was removed or replaced while it was in use: the next start takes what is there then"
            self.on_damage(text)
            raise DiskError(text)

    def replace_rollups(self, window: Window, summaries: Mapping[str, Rollup]) -> None:
        rollups.put(self._db, self._marks, window, summaries)

    def merge_late_rollups(self, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]) -> bool:
        with self._odd_rows():
            return rollups.merge_late_rollups(self._db, self._marks, window, parts)

    def delete_expired(self, before_ms: int, most: int) -> int:
        with self._odd_rows():
            return rollups.delete_expired(self._db, before_ms, most)

    def compaction(self, now_ms: int) -> Callable[[], int] | None:
        with self._reading() as db:
            found = self._compactor.next_part(db, now_ms)
        return (lambda: self._rewrite(found)) if found else None

    def _rewrite(self, found: Sequence[Rewrite]) -> int:
        with self._odd_rows():
            count = rewrite(self._db, found)
        if not count:
            self._compactor.give_up()
        return count

    def rename(self, node: str, new: str, now_ms: int) -> None:
        self._forget()  # its caches know nodes by their names
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
            owed = queries.owed_after(db, filed)
        for start in range(0, len(owed), _LOGGED_TOGETHER):  # there may be many, and no snapshot stays open meanwhile
            yield from self._logged(owed[start : start + _LOGGED_TOGETHER])

    def _logged(self, owed: Sequence[tuple[int, bool]]) -> list[LogEntry]:
        try:
            with self._reading() as db:
                return queries.entries(db, self._shape_names, owed, self._note_odd_row)
        except StoreDamaged:  # as where a sector cannot be read
            if self.damage:
                raise
        if len(owed) == 1:
            return [queries.lost(owed[0][0])]
        return [entry for one in owed for entry in self._logged([one])]

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
        """Lend a new connection, which has no pages in memory."""
        self._refuse_removed()
        with self._our_errors(reads=True), contextlib.closing(self._open_to_read()) as db:
            db.execute("BEGIN")
            if db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone() != (self.identity,):
                what = "another database was copied over it while it was in use"
                raise StoreDamaged(self._note_damage(integrity.Damage(what, True)))
            yield db

    def verify(self) -> Iterator[str]:
        with self._reading() as db:
            yield from pieces.verify(db)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Borrow a read-only connection with a snapshot of the database, for one short query."""
        self._refuse_removed()
        with self._room, self._our_errors(reads=True), self._odd_rows():
            try:
                db = self._idle.pop()
            except IndexError:
                db = self._open_to_read()
            try:
                db.execute("BEGIN")
                yield db
                db.execute("ROLLBACK")
            except BaseException:
                db.close()  # after an error of the file it is not known what it has in memory
                raise
            self._idle.append(db)

    @contextmanager
    def _reading_runs(self) -> Iterator[RunReader]:
        """Likewise, for samples."""
        index = self._fresh  # taken before the snapshot begins
        with self._reading() as db:
            yield RunReader(db, index, self._shape_names)
        if index.is_worn and index is self._fresh:
            self._fresh = FreshIndex()

    @contextmanager
    def _odd_rows(self) -> Iterator[None]:
        """While rows are read: what does not fit this program's own rows is damage."""
        try:
            yield
        except PigeonpostError:
            raise
        except (ValueError, TypeError, LookupError, StopIteration, OverflowError) as error:
            text = self._note_odd_row(repr(error))
            if not isinstance(error, DamagedRow):  # of those no place in the program tells more
                log.error("%s", error, exc_info=True)
            raise StoreDamaged(text) from error

    def _open_to_read(self) -> sqlite3.Connection:
        db = self._connect(f"file:{quote(self._path)}?mode=ro", uri=True)
        try:
            db.execute(f"PRAGMA cache_size = -{_READER_PAGES_KIB}")
        except BaseException:  # it reads the file
            db.close()
            raise
        return db

    @staticmethod
    def _connect(place: str, uri: bool = False) -> sqlite3.Connection:
        return sqlite3.connect(place, uri=uri, isolation_level=None, check_same_thread=False)

    @contextmanager
    def _our_errors(self, reads: bool = False) -> Iterator[None]:
        """reads: a sector that cannot be read is damage of what is on it; the writer may not go on after that"""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            # A file that was open before cannot be opened once more where there is no descriptor.
            if code in _TRY_AGAIN or (code == sqlite3.SQLITE_CANTOPEN and self._files):
                raise NotStored(f"{self._path}: {error}") from error
            if found := integrity.is_damage(error, reads):
                raise StoreDamaged(self._note_damage(found)) from error
            text = f"{self._path}: {error}; `dmesg` says what the disk did"
            self.on_damage(text)
            raise DiskError(text) from error
