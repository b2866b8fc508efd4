"""Store in one SQLite file, `pigeonpost.sqlite3`: the default, which needs nothing installed.

WAL mode with synchronous=FULL: a commit is on the disk when it returns.

One connection writes, and belongs to the Ingestor's writer thread. No other ever writes or checkpoints: SQLite 3.7.0 to
3.51.2 can damage a file when two connections checkpoint at once. A reader borrows a read-only connection for one short
query from `_idle`, a deque whose append and pop are atomic; `_room` limits how many readers query at once.
Errors: NotStored for a full disk or a locked file; StoreDamaged for a file that is damaged (see integrity), after which
no transaction begins any more; DiskError for I/O errors, and a file that was removed or replaced.

Samples are one row each, in the order in which they are queried, node and time; their values are a JSON array beside
the id of their `shape`, the list of their names. Measured: 17 bytes per value, against 25 with one row per value, and
twice as fast to write. The view `readings` shows one row per value to people.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.errors import DiskError, NotStored, PigeonpostError, StoreDamaged
from pigeonpost.core.files import give_to_owner
from pigeonpost.link.samples import Gap, SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import (
    Bucket,
    EpochCommit,
    HighWaterMark,
    LogEntry,
    LogMark,
    NodeRecords,
    NodeUsage,
    Rollup,
    StoredSample,
    Window,
)
from pigeonpost.storage.node_records import RecordTables
from pigeonpost.storage.shapes import ShapeIds, ShapeNames, StoredUnits
from pigeonpost.storage.sqlite import counts, integrity, queries, rollups, wal
from pigeonpost.storage.sqlite.schema import bring_up_to_date, make_tables, refuse_headless, refuse_other

log = logging.getLogger(__name__)

_SAMPLE = "(?,?,?,?,?,?,?)"
# Many rows in one statement: SQLite then works through them without Python's lock, and other threads go on.
_INSERTS = [(rows, f"INSERT INTO samples VALUES {','.join([_SAMPLE] * rows)}") for rows in (256, 32, 4, 1)]
_VALUES: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # as loads, of what we wrote ourselves
_MOST_READERS = 8  # each keeps two files open and some pages in memory
_READER_PAGES_KIB = 512
_TRY_AGAIN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class SqliteStore(Store):
    """A store in the file in `folder`, which is made when it is missing."""

    description = f"SQLite, {DATABASE} in the data folder"
    is_checked = True

    def __init__(self, folder: str, look_only: bool = False) -> None:
        """
        look_only  change nothing, not even by making the file: for looking beside a server that runs

        Raises SettingsError for a file of a newer program, StoreDamaged for one that cannot be opened or is no store of
        ours, DiskError for one that cannot be used. One that opens and has damage is opened: `damage` says what.
        """
        self._folder, self._path = folder, os.path.join(folder, DATABASE)
        self._idle: deque[sqlite3.Connection] = deque()
        self._room = threading.Semaphore(_MOST_READERS)
        self._marks = rollups.DirtyWindows()
        self._shape_names = ShapeNames("?")
        self._records = RecordTables("?")
        self._files: wal.OpenFiles | None = None
        self._forget()
        integrity.refuse_empty(folder)
        with self._our_errors():
            is_new = not os.path.lexists(self._path)
            if not look_only:
                integrity.refuse_foreign_wal(folder)
            self._db = self._open_to_read() if look_only else self._connect(self._path)
            try:
                if look_only:
                    refuse_other(self._db, self._path)
                else:
                    self._prepare(is_new)
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
        row = self._db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        self.identity = str(row[0]) if row else os.urandom(8).hex()
        if lost := wal.lost_commits(self._db, self._path):
            self.found_at_start = self._note_damage(lost)
        elif is_new and integrity.has_rows(self._folder):
            self.found_at_start = integrity.missing_text(self._folder)
        for fault in integrity.start_faults(self._db, make_tables):
            self._note_damage(integrity.Damage(fault, True))

    def _note_damage(self, found: integrity.Damage) -> str:
        """Remember damage, after which nothing is written any more where it is in the structure. Returns the text."""
        text = integrity.damage_text(self._folder, found.text, found.ends_writing)
        if found.ends_writing:
            self.damage = self.damage or text
        self.on_damage(self.damage or text)
        return text

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
        rows: list[Any] = []
        for epoch_commit in epoch_commits:
            node, epoch = self._put_marks(epoch_commit)
            for item in epoch_commit.items:
                if isinstance(item, Gap):
                    self._put_gap(epoch, item, noted_ms)
                else:
                    self._put_samples(rows, node, epoch, item)
        for many, insert in _INSERTS:
            size = many * _SAMPLE.count("?")
            whole = len(rows) // size * size
            for start in range(0, whole, size):
                self._db.execute(insert, rows[start : start + size])
            rows = rows[whole:]
        if log is not None:
            self._db.execute(
                "INSERT INTO logs (name, size, tail, filed) VALUES (?, ?, ?, ?) ON CONFLICT (name)"
                " DO UPDATE SET size = excluded.size, tail = excluded.tail, filed = excluded.filed",
                log,
            )
            self._db.execute("DELETE FROM filings WHERE id <= ?", (log.filed,))
        (last,) = self._db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'filings'").fetchone()
        return last or 0

    def _put_marks(self, epoch_commit: EpochCommit) -> tuple[int, int]:
        node = self._node(epoch_commit.node)
        (epoch,) = self._db.execute(
            "INSERT INTO epochs (node, epoch, seq, up) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET seq = excluded.seq, up = excluded.up RETURNING id",
            (node, epoch_commit.epoch, *epoch_commit.mark),
        ).fetchone()
        if epoch_commit.top:
            self._db.execute(
                "INSERT INTO outboxes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET top = max(top, excluded.top)",
                (node, epoch_commit.outbox, epoch_commit.top),
            )
        if self._units.get(epoch_commit.node) is not epoch_commit.units:
            self._db.executemany(
                "INSERT OR REPLACE INTO sensors VALUES (?, ?, ?)",
                [(node, name, unit) for name, unit in epoch_commit.units.items()],
            )
            self._units.keep(epoch_commit.node, epoch_commit.units)
        return node, epoch

    def _put_samples(self, rows: list[Any], node: int, epoch: int, sample_batch: SampleBatch) -> None:
        names, times, first = sample_batch.names, sample_batch.times, sample_batch.seq
        shape, clock = self._shapes.get(names) or self._shape(names), sample_batch.clock or None
        for seq, (time_ms, texts) in enumerate(zip(times, zip(*sample_batch.texts)), first):
            text = f"[{','.join(texts)}]"
            rows += (node, time_ms, epoch, seq, shape, clock, text.replace("None", "null"))
        for name, errors in sample_batch.errors.items():
            self._db.executemany(
                "INSERT INTO failures VALUES (?, ?, ?, ?)",
                [(epoch, first + place, name, error) for place, error in errors.items()],
            )
        filed = self._db.execute(
            "INSERT INTO filings (epoch, first, last, low, high) VALUES (?, ?, ?, ?, ?)",
            (epoch, first, sample_batch.last, min(times), max(times)),
        ).lastrowid
        self._marks.touch(self._db, node, times, filed or 0)

    def _put_gap(self, epoch: int, gap: Gap, noted_ms: int) -> None:
        cursor = self._db.execute(
            "INSERT INTO gaps (epoch, first, last, before, why, noted) VALUES (?, ?, ?, ?, ?, ?)",
            (epoch, *gap, noted_ms),
        )
        self._db.execute("INSERT INTO filings (epoch, gap) VALUES (?, ?)", (epoch, cursor.lastrowid))

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
        return rollups.delete_expired(self._db, before_ms, most)

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
            top = db.execute(
                "SELECT top FROM outboxes JOIN nodes ON id = node WHERE name = ? AND outbox = ?", (node, outbox)
            ).fetchone()
            return top[0] if top else 0, {e: mark for e in epochs if (mark := queries.mark(db, node, e))}

    def log_mark(self) -> LogMark | None:
        with self._reading() as db:
            row = db.execute("SELECT name, size, tail, filed FROM logs ORDER BY id DESC LIMIT 1").fetchone()
            return LogMark(*row) if row else None

    def logged_after(self, filed: int) -> Iterator[LogEntry]:
        with self._reading() as db:
            owed = db.execute("SELECT id FROM filings WHERE id > ? ORDER BY id", (filed,)).fetchall()
        for (id,) in owed:  # one at a time: there may be many, and no cursor stays open meanwhile
            with self._reading() as db:
                logged = queries.logged(db, id)
            yield logged

    def nodes(self) -> list[dict[str, Any]]:
        with self._reading() as db:
            return integrity.plain_nodes(counts.nodes(db))

    def usage(self, node: str) -> NodeUsage:
        with self._reading() as db:
            return counts.usage(db, node)

    def channels(self, node: str, most: int) -> set[str]:
        with self._reading() as db:
            return counts.channels(db, node, most)

    def points(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[StoredSample]:
        with self._reading() as db:
            rows = db.execute(
                'SELECT s.time, e.epoch, s.seq, s.shape, s."values", s.clock FROM samples s'
                " JOIN epochs e ON e.id = s.epoch"
                " WHERE s.node = (SELECT id FROM nodes WHERE name = ?) AND s.time >= ? AND s.time < ?"
                " ORDER BY s.time DESC, s.epoch DESC, s.seq DESC LIMIT ?",
                (node, from_ms, to_ms, limit),
            ).fetchall()
            named = self._shape_names.of(db, {row[3] for row in rows})
        with self._our_errors(), self._odd_rows():
            integrity.plain_numbers((row[0], row[2]) for row in rows)
            return [
                StoredSample(node, time_ms, epoch, seq, dict(zip(named[shape], _VALUES(values, 0)[0])), clock or "")
                for time_ms, epoch, seq, shape, values, clock in reversed(rows)
            ]

    def downsample(self, node: str, sensor: str, from_ms: int, to_ms: int, count: int) -> list[Bucket]:
        with self._reading() as db:
            return integrity.plain_numbers(
                rollups.downsample(db, self._shape_names, node, sensor, from_ms, to_ms, count)
            )

    def downsample_all(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        with self._reading() as db:
            found = rollups.downsample_all(db, self._shape_names, node, from_ms, to_ms, count, sensors)
            integrity.plain_numbers(column for columns in found.values() for column in columns)
            return found

    def dirty_windows(self, before_ms: int, most: int) -> list[Window]:
        with self._reading() as db:
            return rollups.dirty_windows(db, before_ms, most)

    def summaries(self, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
        with self._reading() as db:
            return integrity.plain_numbers(rollups.summaries(db, node, sensor, span_ms, from_ms, to_ms))

    def gaps(self, limit: int) -> list[dict[str, Any]]:
        with self._reading() as db:
            return queries.gaps(db, limit)

    def node_records(self) -> NodeRecords:
        with self._reading() as db:
            return self._records.read(db)

    def every_sample(self) -> Iterator[StoredSample]:
        with self._reading() as db:
            nodes = dict(db.execute("SELECT id, name FROM nodes"))
            epochs = dict(db.execute("SELECT id, epoch FROM epochs"))
            for node, time_ms, epoch, seq, shape, clock, values in db.execute("SELECT * FROM samples"):
                named = dict(zip(self._shape_names.one(db, shape), _VALUES(values, 0)[0]))
                yield StoredSample(nodes[node], time_ms, epochs[epoch], seq, named, clock or "")

    def known_units(self) -> dict[str, dict[str, str]]:
        with self._reading() as db:
            return integrity.known_units(db)

    def check_pieces(self) -> Iterator[str]:
        return integrity.check_pieces(self._new_reading)

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
            yield from counts.verify(db)

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
    def _odd_rows(self) -> Iterator[None]:
        """While rows are read: what does not fit this program's own rows is damage."""
        try:
            yield
        except PigeonpostError:
            raise
        except (ValueError, TypeError, LookupError, StopIteration) as error:
            text = self._note_damage(integrity.Damage(f"a row that Pigeonpost never writes: {error!r:.200}", False))
            log.error("%s", error, exc_info=True)
            raise StoreDamaged(text) from error

    def _open_to_read(self) -> sqlite3.Connection:
        db = self._connect(f"file:{quote(self._path)}?mode=ro", uri=True)
        db.execute(f"PRAGMA cache_size = -{_READER_PAGES_KIB}")
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
