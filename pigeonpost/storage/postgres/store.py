"""Store in PostgreSQL, for several servers on one database, or for more samples than one machine should keep.

Samples are written by COPY; a commit is on the database's disk when it returns (synchronous_commit). One connection
writes, and belongs to the Ingestor's writer thread; readers borrow others from the pool.
Errors: NotStored while the database cannot be reached, restarts, is locked or full: the next attempt connects again.
StoreDamaged where its data is damaged or a table is gone; DiskError for what else a retry does not repair.
SettingsError for an address, a password or privileges that do not suffice.

Several servers write to one database, and a node may move from one to another, or send to both at once. A writer first
locks the node's row and reads its marks under that lock: so the servers take turns with each node, and what the other
one has stored is a repeat. When a connection breaks during COMMIT its outcome is unknown; the batches come again, and
the marks tell.

The CSV logs belong to a server, identified by `server.id` in its data folder. What is owed to its logs is kept under
that id; a new server owes its logs nothing of what others have stored.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pigeonpost.core.data_folder import SERVER_ID
from pigeonpost.core.errors import DiskError, InUse, NotStored, StoreDamaged
from pigeonpost.core.files import replace_file
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.contract import FormerNamesUsed
from pigeonpost.storage.models import EpochCommit, HighWaterMark, LogMark, Rollup, Window
from pigeonpost.storage.postgres import rollups as statistics
from pigeonpost.storage.postgres.pool import PostgresConnection, words_of
from pigeonpost.storage.postgres.queries import Reader
from pigeonpost.storage.postgres.rows import COPY, Placed, copy_blocks, int_array, storable
from pigeonpost.storage.postgres.schema import bring_up_to_date, refuse_other
from pigeonpost.storage.shapes import ShapeIds, StoredUnits
from protocol import Gap

log = logging.getLogger(__name__)

START_S = 30.0  # that a server waits at its start for a database that is not there yet
PLACE_S = 10.0  # that the connection of this server's last run may take to be gone

Epoch = tuple[str, str]  # node and epoch, by name


class PostgresStore(Reader):
    """A store in the database at an address; its tables are made when they are missing."""

    description = "PostgreSQL"

    def __init__(self, address: str, folder: str, look_only: bool = False, start_s: float = START_S) -> None:
        """
        address    postgresql://user:password@host:port/database, or what else libpq takes
        folder     the server's data folder, by whose `server.id` the database knows it
        look_only  change nothing, not even by making tables: for looking beside a server that runs
        start_s    how long to wait for a database that cannot be reached
        """
        super().__init__(PostgresConnection(address))
        self._psycopg = self._link.psycopg
        self._link.on_damage = self._note_damage
        self._key = _server_key(folder, make=not look_only)
        self._db: Any = None  # the connection that writes
        self._filed = 0  # the last filing number that is known to be committed
        self._forget_learned()
        try:
            self._open(self._look if look_only else self._writer, start_s)
        except BaseException:
            self.close()
            raise

    # ----------------------------------------------------------------------------------------- connecting

    def _open(self, connect: Any, start_s: float) -> None:
        give_up_s = time.monotonic() + start_s
        waits = False
        while True:
            try:
                with self._link.our_errors():
                    connect()
                self._link.has_worked = True
                return
            except NotStored as error:
                if time.monotonic() >= give_up_s:
                    raise DiskError(f"{error}; the server goes on when it is started again") from None
                if not waits:
                    log.warning("%s; waiting for it", error)
                waits = True
            time.sleep(min(1.0, start_s))

    def _note_damage(self, text: str) -> None:
        self.damage = text
        self.on_damage(text)

    def _look(self) -> None:
        with self._link.reading() as db:
            refuse_other(db)
            self._learn_who(db)

    def _writer(self) -> Any:
        """The connection that writes, made again when it was lost: then nothing that was cached is certain any more."""
        if self._db is not None and not self._db.closed:
            return self._db
        self._forget_learned()
        db = self._link.connect()
        try:
            bring_up_to_date(db)
            # A database or a user may be set to be answered before the disk has it: not here.
            if db.execute("SHOW synchronous_commit").fetchone() == ("off",):
                db.execute("SET synchronous_commit = on")
            if not self.identity and db.execute("SHOW fsync").fetchone() == ("off",):
                log.warning("%s has fsync = off: a power cut costs what it has confirmed", self._link.place)
            db.execute(
                "INSERT INTO servers (key) SELECT %s WHERE NOT EXISTS (SELECT FROM servers WHERE key = %s)"
                " ON CONFLICT DO NOTHING",
                (self._key, self._key),
            )
            self._learn_who(db)
            self._take_place(db)
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    def _learn_who(self, db: Any) -> None:
        (identity,) = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        if self.identity not in ("", identity):
            raise DiskError(f"{self._link.place} is not the database that it was: its identity is another")
        self.identity = identity
        row = db.execute("SELECT id, filed FROM servers WHERE key = %s", (self._key,)).fetchone()
        self._server, filed = row or (-1, 0)
        if filed < self._filed:  # the log of this run would be given again what the nodes send again
            raise DiskError(f"{self._link.place} is in an older state again, as after a restore: restart the server")

    def _take_place(self, db: Any) -> None:
        """Lock this server's id against other processes. Our own former connection may hold it for a moment."""
        ask = "SELECT pg_try_advisory_lock(('servers'::regclass::oid::bigint << 32) | %s)"
        give_up_s = time.monotonic() + PLACE_S
        while db.execute(ask, (self._server,)).fetchone() != (True,):
            if time.monotonic() < give_up_s:
                time.sleep(0.05)
            elif self._db is not None:
                raise NotStored(f"{self._link.place} has not noticed yet that this server's old connection is gone")
            else:
                raise InUse(
                    f"{self._link.place}: another server with this one's {SERVER_ID} is at work. If the data folder was"
                    f" copied from it, remove {SERVER_ID} and logs/ from the copy"
                )

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._link.close()

    # -------------------------------------------------------------------------------------------- writing

    @contextmanager
    def writing(self, epochs: Iterable[Epoch]) -> Iterator[Mapping[Epoch, HighWaterMark]]:
        if self.damage:
            raise StoreDamaged(self.damage)
        with self._link.our_errors():
            db = self._writer()
            try:
                with self._link.at_once(db):
                    db.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
                    self._epochs.clear()
                    self._hold(epochs)
                yield {key: mark for key, (_, mark) in self._epochs.items() if mark is not None}
                if db.execute("COMMIT").statusmessage != "COMMIT":
                    raise NotStored(f"{self._link.place}: the transaction had failed")
                self._filed = max(self._filed, self._filed_here)
            except BaseException:
                self._give_up()
                raise

    def _give_up(self) -> None:
        """Leave the transaction. After an error of the database nothing is certain: the next one connects again."""
        self._forget_learned()
        if self._db.info.transaction_status == self._psycopg.pq.TransactionStatus.INTRANS:
            try:
                self._db.execute("ROLLBACK")
                return
            except self._psycopg.Error:
                pass  # what made us leave is the error to tell of
        self._db.close()

    def _hold(self, keys: Iterable[Epoch]) -> None:
        """Lock the nodes of these epochs until the end of the transaction; then read the epochs' ids and marks.

        All servers lock the nodes in the same order, so that there is no deadlock.
        """
        wanted = [key for key in keys if key not in self._epochs]
        if not wanted:
            return
        names = sorted({node for node, _ in wanted})
        new = [name for name in names if name not in self._nodes]
        if new:
            made = self._db.execute(
                "INSERT INTO nodes (name) SELECT k.name FROM unnest(%s::text[]) k (name)"
                " WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.name = k.name) ON CONFLICT DO NOTHING RETURNING name",
                (new,),
            ).fetchall()
            if made and (former := self._records.unreleased(self._db, [name for (name,) in made])):
                raise FormerNamesUsed(former)
        locking = self._db.execute(
            "SELECT name, id FROM nodes WHERE name = ANY(%s) ORDER BY name FOR NO KEY UPDATE", (names,)
        )
        marks = self._db.execute(  # a statement of its own: it sees what was committed while the one before waited
            "SELECT k.place, e.id, e.seq, e.up"
            " FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY k (node, epoch, place)"
            " JOIN nodes n ON n.name = k.node JOIN epochs e ON e.node = n.id AND e.epoch = k.epoch",
            list(map(list, zip(*wanted))),
        )
        locked = locking.fetchall()
        if len(locked) < len(names):  # renamed since they were learned
            raise FormerNamesUsed({*names}.difference(name for name, _ in locked))
        self._nodes.update(locked)
        self._epochs.update(dict.fromkeys(wanted, (0, None)))
        self._epochs.update({wanted[at - 1]: (id, HighWaterMark(seq, up)) for at, id, seq, up in marks.fetchall()})

    def put(self, epoch_commits: Sequence[EpochCommit], noted_ms: int, log: LogMark | None) -> int:
        with self._link.our_errors():
            items = [(epoch_commit, item) for epoch_commit in epoch_commits for item in epoch_commit.items]
            with self._link.at_once(self._db):
                self._hold([(epoch_commit.node, epoch_commit.epoch) for epoch_commit in epoch_commits])
                counting = self._db.execute(
                    "UPDATE servers SET filed = filed + %s, seen = now() WHERE id = %s RETURNING filed"
                    if items else "SELECT filed + %s FROM servers WHERE id = %s",
                    (len(items), self._server),
                )  # fmt: skip
                self._put_marks(epoch_commits)
                self._put_units(epoch_commits)
                samples, filings = self._place(items, noted_ms)
                if samples:
                    self._db.execute("SAVEPOINT copying")
            if samples:
                self._copy(samples)
            last = self._filed_here = int(counting.fetchone()[0])
            with self._link.at_once(self._db):
                if samples:
                    self._put_errors(samples)
                    statistics.touch(self._db, [(one.node, one.low, one.high) for one in samples])
                if filings:
                    rows = [(self._server, number, *row) for number, row in enumerate(filings, last - len(filings) + 1)]
                    self._unnest("filings", "int bigint bigint bigint bigint bigint bigint bigint", rows)
                if log is not None:
                    self._put_log(log)
            return last

    def _put_log(self, log: LogMark) -> None:
        self._db.execute(
            "INSERT INTO logs (server, name, size, tail, filed) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (server, name) DO UPDATE"
            " SET size = excluded.size, tail = excluded.tail, filed = excluded.filed",
            (self._server, *log),
        )
        self._db.execute("DELETE FROM filings WHERE server = %s AND id <= %s", (self._server, log.filed))

    def _put_marks(self, epoch_commits: Sequence[EpochCommit]) -> None:
        if not epoch_commits:
            return
        old: list[tuple[Any, ...]] = []
        new: list[tuple[Any, ...]] = []
        for epoch_commit in epoch_commits:
            id, mark = self._epochs[epoch_commit.node, epoch_commit.epoch]
            (new if mark is None else old).append(
                (id, self._nodes[epoch_commit.node], epoch_commit.epoch, *epoch_commit.mark)
            )
        if old:
            ids, _, _, seqs, ups = map(list, zip(*old))
            self._db.execute(
                "UPDATE epochs e SET seq = k.seq, up = k.up FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[])"
                " k (id, seq, up) WHERE e.id = k.id",
                (int_array(ids), int_array(seqs), int_array(ups)),
            )
        if new:
            _, nodes, epochs, seqs, ups = map(list, zip(*new))
            names = {id: name for name, id in self._nodes.items()}
            for id, node, epoch, seq, up in self._db.execute(
                "INSERT INTO epochs (node, epoch, seq, up) SELECT * FROM"
                " unnest(%s::int[], %s::text[], %s::bigint[], %s::bigint[]) RETURNING id, node, epoch, seq, up",
                (nodes, epochs, seqs, ups),
            ).fetchall():
                self._epochs[names[node], epoch] = id, HighWaterMark(seq, up)
        tops: dict[tuple[int, str], int] = {}
        for epoch_commit in epoch_commits:
            if epoch_commit.top:
                key = self._nodes[epoch_commit.node], epoch_commit.outbox
                tops[key] = max(epoch_commit.top, tops.get(key, 0))
        if tops:
            self._db.execute(
                "INSERT INTO outboxes SELECT * FROM unnest(%s::int[], %s::text[], %s::bigint[])"
                " ON CONFLICT (node, outbox) DO UPDATE SET top = greatest(outboxes.top, excluded.top)",
                ([node for node, _ in tops], [outbox for _, outbox in tops], list(tops.values())),
            )

    def _put_units(self, epoch_commits: Sequence[EpochCommit]) -> None:
        units = {}
        for epoch_commit in epoch_commits:
            if self._units.get(epoch_commit.node) is not epoch_commit.units:
                units.update(
                    {(self._nodes[epoch_commit.node], name): unit for name, unit in epoch_commit.units.items()}
                )
                self._units.keep(epoch_commit.node, epoch_commit.units)
        if units:
            self._db.execute(
                "INSERT INTO sensors SELECT * FROM unnest(%s::int[], %s::text[], %s::text[])"
                " ON CONFLICT (node, name) DO UPDATE SET unit = excluded.unit WHERE sensors.unit <> excluded.unit",
                ([node for node, _ in units], [name for _, name in units], list(units.values())),
            )

    def _place(
        self, items: Sequence[tuple[EpochCommit, SampleBatch | Gap]], noted_ms: int
    ) -> tuple[list[Placed], list[tuple[Any, ...]]]:
        """Store the gaps. Returns the samples, and what the log owes: rows of `filings` without server and number."""
        samples: list[Placed] = []
        filings: list[tuple[Any, ...]] = []
        for epoch_commit, item in items:
            node, (epoch, _) = self._nodes[epoch_commit.node], self._epochs[epoch_commit.node, epoch_commit.epoch]
            if isinstance(item, Gap):
                (gap,) = self._db.execute(
                    "INSERT INTO gaps (epoch, server, first, last, before, why, noted)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id",
                    (epoch, self._server, *item._replace(why=storable(item.why)), noted_ms),
                ).fetchone()
                filings.append((epoch, None, None, None, None, gap))
            else:
                shape = self._shapes.get(item.names) or self._shape(item.names)
                low, high = min(item.times), max(item.times)
                samples.append(Placed(item, epoch, node, shape, self._server, low, high))
                filings.append((epoch, item.seq, item.last, low, high, None))
        return samples, filings

    def _put_errors(self, samples: Iterable[Placed]) -> None:
        rows = [
            (one.epoch, one.samples.seq + place, name, storable(text))
            for one in samples for name, errors in one.samples.errors.items() for place, text in errors.items()
        ]  # fmt: skip
        if rows:
            self._unnest("failures", "bigint bigint text text", rows, "ON CONFLICT DO NOTHING")

    def _copy(self, samples: Sequence[Placed]) -> None:
        """Store new samples, after a savepoint. Any that exist in spite of the marks are left unchanged."""
        try:
            self._copy_to("samples", samples)
            return
        except self._psycopg.errors.UniqueViolation as error:
            log.warning("%s: samples that the marks do not know, as if changed by hand: %s", self._link.place,
                        words_of(error))  # fmt: skip
        self._db.execute("ROLLBACK TO copying")
        self._db.execute("CREATE TEMP TABLE copied (LIKE samples) ON COMMIT DROP")
        self._copy_to("copied", samples)
        self._db.execute("INSERT INTO samples SELECT * FROM copied ON CONFLICT DO NOTHING")

    def _copy_to(self, table: str, samples: Sequence[Placed]) -> None:
        with self._db.cursor() as cursor, cursor.copy(COPY.format(table)) as copy:
            for block in copy_blocks(samples):
                copy.write(block)

    def _unnest(self, table: str, types: str, rows: Sequence[tuple[Any, ...]], rest: str = "") -> None:
        """Insert many rows in one statement."""
        arrays = ", ".join([f"%s::{kind}[]" for kind in types.split()])
        columns = [
            list(column) if kind == "text" else int_array(column) for kind, column in zip(types.split(), zip(*rows))
        ]
        self._db.execute(f"INSERT INTO {table} SELECT * FROM unnest({arrays}) {rest}", columns)

    def _shape(self, names: tuple[str, ...]) -> int:
        text = json.dumps(names)
        self._db.execute(
            "INSERT INTO shapes (names) SELECT %s WHERE NOT EXISTS (SELECT FROM shapes WHERE names = %s)"
            " ON CONFLICT DO NOTHING",
            (text, text),
        )
        return self._shapes.keep(names, *self._db.execute("SELECT id FROM shapes WHERE names = %s", (text,)).fetchone())

    def _forget_learned(self) -> None:
        """Clear the caches after a rollback: what was learned in the transaction is no longer true."""
        self._nodes: dict[str, int] = {}
        self._epochs: dict[Epoch, tuple[int, HighWaterMark | None]] = {}  # of this transaction: id and mark
        self._shapes = ShapeIds()
        self._units = StoredUnits()
        self._filed_here = 0

    def replace_rollups(self, window: Window, summaries: Mapping[str, Rollup]) -> None:
        with self._link.our_errors():
            if (node := self._hold_node(window.node)) is not None:
                statistics.put(self._db, node, window, summaries)

    def merge_late_rollups(self, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]) -> bool:
        with self._link.our_errors():
            node = self._hold_node(window.node)
            return node is not None and statistics.merge_late_rollups(self._db, node, window, parts)

    def delete_expired(self, before_ms: int, most: int) -> int:
        with self._link.our_errors():
            return statistics.delete_expired(self._db, before_ms, most)

    def rename(self, node: str, new: str, now_ms: int) -> None:
        with self._link.our_errors():
            self._forget_learned()  # its caches know nodes by their names
            self._records.rename(self._db, node, new, now_ms)

    def release(self, name: str) -> None:
        with self._link.our_errors():
            self._records.release(self._db, name)

    def retire(self, node: str, at_ms: int | None) -> None:
        with self._link.our_errors():
            self._records.retire(self._db, node, at_ms)

    def relabel(self, node: str, sensor: str, label: str) -> None:
        with self._link.our_errors():
            self._records.relabel(self._db, node, sensor, storable(label))

    def _hold_node(self, name: str) -> int | None:
        """Lock a node's row. Returns its id; None where there is none of that name: it was renamed."""
        row = self._db.execute("SELECT id FROM nodes WHERE name = %s FOR NO KEY UPDATE", (name,)).fetchone()
        return int(row[0]) if row else None


_HEX_16 = re.compile(r"[0-9a-f]{16}").fullmatch


def _server_key(folder: str, make: bool) -> str:
    """Return the id of the server with this data folder: drawn at random when it is first needed."""
    path = os.path.join(folder, SERVER_ID)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            key = file.read(100).strip()
    except FileNotFoundError:
        if not make:
            return ""
        key = os.urandom(8).hex()
        replace_file(path, f"{key}\n".encode())
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
    if not _HEX_16(key):
        raise DiskError(f"{path} does not hold 16 hex digits; without it this server is a new one to the database")
    return key
