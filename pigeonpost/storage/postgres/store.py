"""PostgreSQL store, for several servers with one database, or for more samples than one machine should keep.

Samples are written with COPY. A commit is on the database's disk when it returns (synchronous_commit). One connection
writes. It belongs to the Ingestor's writer thread. Readers borrow other connections from the pool.
Errors: NotStored while the database cannot be reached, restarts, is locked or full (the next attempt connects again);
StoreDamaged if its data is damaged or a table is missing; DiskError for other errors that a retry does not repair;
SettingsError for an invalid address, a wrong password or missing privileges.

Several servers may write to one database. A node may move from one server to another, or send to both at the same time.
A writer first locks the node's row and then reads its high-water marks. So the servers take turns with each node, and
samples that the other server has stored are recognised as repeats. If a connection breaks during COMMIT, the outcome is
unknown. The Ingestor then commits the batches again, and the high-water marks show if they are stored already.

The CSV logs belong to one server, which is identified by `server.id` in its data folder. Pending log entries are stored
with that id. A new server does not write samples of other servers to its logs.
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
from pigeonpost.storage.postgres.pool import PostgresConnection, text_of
from pigeonpost.storage.postgres.queries import Reader
from pigeonpost.storage.postgres.rows import COPY, Placed, copy_blocks, int_array, storable
from pigeonpost.storage.postgres.schema import bring_up_to_date, refuse_other
from pigeonpost.storage.shapes import ShapeIds, StoredUnits
from protocol import Gap

log = logging.getLogger(__name__)

START_S = 30.0  # maximum wait at the start for a database that cannot be reached yet
PLACE_S = 10.0  # maximum wait for the lock of this server's id, which a lost connection may still hold

Epoch = tuple[str, str]  # node and epoch, by name


class PostgresStore(Reader):
    """Store in a PostgreSQL database. Missing tables are created."""

    description = "PostgreSQL"

    def __init__(self, address: str, folder: str, look_only: bool = False, start_s: float = START_S) -> None:
        """Connect to the database.

        Args:
            address: postgresql://user:password@host:port/database, or any other connection string of libpq.
            folder: The server's data folder, which contains its id in `server.id`.
            look_only: True to change nothing and to create no tables, for example while a server is running.
            start_s: Maximum wait for a database that cannot be reached, in seconds.

        Raises:
            SettingsError: The address, the password or the privileges are not valid.
            DiskError: The database cannot be reached or used.
            InUse: Another process uses the same server id.
        """
        super().__init__(PostgresConnection(address))
        self._psycopg = self._link.psycopg
        self._link.on_damage = self._record_damage
        self._key = _server_key(folder, create=not look_only)
        self._db: Any = None  # the connection that writes
        self._filed = 0  # last filing number that is known to be committed
        self._clear_caches()
        try:
            self._open(self._check_reading if look_only else self._writer, start_s)
        except BaseException:
            self.close()
            raise

    # ----------------------------------------------------------------------------------------- connecting

    def _open(self, connect: Any, start_s: float) -> None:
        give_up_s = time.monotonic() + start_s
        waits = False
        while True:
            try:
                with self._link.translated_errors():
                    connect()
                self._link.has_worked = True
                return
            except NotStored as error:
                if time.monotonic() >= give_up_s:
                    raise DiskError(f"{error}; start the server again when the database can be reached") from None
                if not waits:
                    log.warning("%s; waiting for the database", error)
                waits = True
            time.sleep(min(1.0, start_s))

    def _record_damage(self, text: str) -> None:
        self.damage = text
        self.on_damage(text)

    def _check_reading(self) -> None:
        with self._link.reading() as db:
            refuse_other(db)
            self._read_identity(db)

    def _writer(self) -> Any:
        """Return the write connection. If it was lost, clear all caches, which may be outdated, and connect again."""
        if self._db is not None and not self._db.closed:
            return self._db
        self._clear_caches()
        db = self._link.connect()
        try:
            bring_up_to_date(db)
            # The database or the role may be configured to confirm commits before they are on disk. Then acknowledged
            # samples could be lost.
            if db.execute("SHOW synchronous_commit").fetchone() == ("off",):
                db.execute("SET synchronous_commit = on")
            if not self.identity and db.execute("SHOW fsync").fetchone() == ("off",):
                log.warning("%s has fsync = off: a power cut can destroy committed samples", self._link.place)
            db.execute(
                "INSERT INTO servers (key) SELECT %s WHERE NOT EXISTS (SELECT FROM servers WHERE key = %s)"
                " ON CONFLICT DO NOTHING",
                (self._key, self._key),
            )
            self._read_identity(db)
            self._lock_server_id(db)
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    def _read_identity(self, db: Any) -> None:
        (identity,) = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        if self.identity not in ("", identity):
            raise DiskError(
                f"{self._link.place} is a different database than before: its identity has changed. Restart the server"
            )
        self.identity = identity
        row = db.execute("SELECT id, filed FROM servers WHERE key = %s", (self._key,)).fetchone()
        self._server, filed = row or (-1, 0)
        if filed < self._filed:  # the nodes would send samples again that are already in the CSV log of this run
            raise DiskError(
                f"{self._link.place} is in an older state than before, as after a restore: restart the server"
            )

    def _lock_server_id(self, db: Any) -> None:
        """Lock this server's id against other processes. A lost connection of this server may still hold the lock."""
        query = "SELECT pg_try_advisory_lock(('servers'::regclass::oid::bigint << 32) | %s)"
        give_up_s = time.monotonic() + PLACE_S
        while db.execute(query, (self._server,)).fetchone() != (True,):
            if time.monotonic() < give_up_s:
                time.sleep(0.05)
            elif self._db is not None:
                raise NotStored(f"{self._link.place} has not yet closed the lost connection of this server")
            else:
                raise InUse(
                    f"{self._link.place}: another server with the same {SERVER_ID} is running. If this data folder is a"
                    f" copy of its data folder, remove {SERVER_ID} and logs/ from the copy"
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
        with self._link.translated_errors():
            db = self._writer()
            try:
                with self._link.pipeline(db):
                    db.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
                    self._epochs.clear()
                    self._lock_epochs(epochs)
                yield {key: mark for key, (_, mark) in self._epochs.items() if mark is not None}
                if db.execute("COMMIT").statusmessage != "COMMIT":
                    raise NotStored(f"{self._link.place}: the transaction failed")
                self._filed = max(self._filed, self._filed_here)
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        """Abandon the transaction. After an error of the database, the next one uses a new connection."""
        self._clear_caches()
        if self._db.info.transaction_status == self._psycopg.pq.TransactionStatus.INTRANS:
            try:
                self._db.execute("ROLLBACK")
                return
            except self._psycopg.Error:
                pass  # the error that ended the transaction is raised instead
        self._db.close()

    def _lock_epochs(self, keys: Iterable[Epoch]) -> None:
        """Lock the nodes of these epochs until the end of the transaction, then read the epochs' ids and marks.

        All servers lock the nodes in the same order, which prevents deadlocks.
        """
        missing = [key for key in keys if key not in self._epochs]
        if not missing:
            return
        names = sorted({node for node, _ in missing})
        new = [name for name in names if name not in self._nodes]
        if new:
            created = self._db.execute(
                "INSERT INTO nodes (name) SELECT k.name FROM unnest(%s::text[]) k (name)"
                " WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.name = k.name) ON CONFLICT DO NOTHING RETURNING name",
                (new,),
            ).fetchall()
            if created and (former := self._records.unreleased(self._db, [name for (name,) in created])):
                raise FormerNamesUsed(former)
        locking = self._db.execute(
            "SELECT name, id FROM nodes WHERE name = ANY(%s) ORDER BY name FOR NO KEY UPDATE", (names,)
        )
        marks = self._db.execute(  # a separate statement: it must see what was committed while the previous one waited
            "SELECT k.place, e.id, e.seq, e.up"
            " FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY k (node, epoch, place)"
            " JOIN nodes n ON n.name = k.node JOIN epochs e ON e.node = n.id AND e.epoch = k.epoch",
            list(map(list, zip(*missing))),
        )
        locked = locking.fetchall()
        if len(locked) < len(names):  # some were renamed since their ids were cached
            raise FormerNamesUsed({*names}.difference(name for name, _ in locked))
        self._nodes.update(locked)
        self._epochs.update(dict.fromkeys(missing, (0, None)))
        self._epochs.update(
            {missing[index - 1]: (id, HighWaterMark(seq, up)) for index, id, seq, up in marks.fetchall()}
        )

    def put(self, epoch_commits: Sequence[EpochCommit], noted_ms: int, log: LogMark | None) -> int:
        with self._link.translated_errors():
            items = [(epoch_commit, item) for epoch_commit in epoch_commits for item in epoch_commit.items]
            with self._link.pipeline(self._db):
                self._lock_epochs([(epoch_commit.node, epoch_commit.epoch) for epoch_commit in epoch_commits])
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
            with self._link.pipeline(self._db):
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
        # The new id makes it the newest log, even if it has the name of an older log that was deleted or moved away.
        self._db.execute(
            "INSERT INTO logs (server, name, size, tail, filed) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (server, name) DO UPDATE"
            " SET id = DEFAULT, size = excluded.size, tail = excluded.tail, filed = excluded.filed",
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
        """Store the gaps. Return the samples, and the entries for the CSV log: `filings` without server and number."""
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
        """Store new samples after a savepoint. Samples that exist above the high-water marks are kept."""
        try:
            self._copy_to("samples", samples)
            return
        except self._psycopg.errors.UniqueViolation as error:
            log.warning("%s: samples above the high-water mark exist, as if the tables were edited by hand: %s",
                        self._link.place, text_of(error))  # fmt: skip
        self._db.execute("ROLLBACK TO copying")
        self._db.execute("CREATE TEMP TABLE copied (LIKE samples) ON COMMIT DROP")
        self._copy_to("copied", samples)
        self._db.execute("INSERT INTO samples SELECT * FROM copied ON CONFLICT DO NOTHING")

    def _copy_to(self, table: str, samples: Sequence[Placed]) -> None:
        with self._db.cursor() as cursor, cursor.copy(COPY.format(table)) as copy:
            for block in copy_blocks(samples):
                copy.write(block)

    def _unnest(self, table: str, types: str, rows: Sequence[tuple[Any, ...]], rest: str = "") -> None:
        """Insert rows with one statement. `types` are the SQL types of the columns."""
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

    def _clear_caches(self) -> None:
        """Clear the caches, for example after a rollback: ids that were read in the transaction are no longer valid."""
        self._nodes: dict[str, int] = {}
        self._epochs: dict[Epoch, tuple[int, HighWaterMark | None]] = {}  # id and mark, in this transaction
        self._shapes = ShapeIds()
        self._units = StoredUnits()
        self._filed_here = 0

    def replace_rollups(self, window: Window, summaries: Mapping[str, Rollup]) -> None:
        with self._link.translated_errors():
            if (node := self._lock_node(window.node)) is not None:
                statistics.put(self._db, node, window, summaries)

    def merge_late_rollups(self, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]) -> bool:
        with self._link.translated_errors():
            node = self._lock_node(window.node)
            return node is not None and statistics.merge_late_rollups(self._db, node, window, parts)

    def delete_expired(self, before_ms: int, most: int) -> int:
        with self._link.translated_errors():
            return statistics.delete_expired(self._db, before_ms, most)

    def rename(self, node: str, new: str, now_ms: int) -> None:
        with self._link.translated_errors():
            self._clear_caches()  # the caches are keyed by node names
            self._records.rename(self._db, node, new, now_ms)

    def release(self, name: str) -> None:
        with self._link.translated_errors():
            self._records.release(self._db, name)

    def retire(self, node: str, at_ms: int | None) -> None:
        with self._link.translated_errors():
            self._records.retire(self._db, node, at_ms)

    def relabel(self, node: str, sensor: str, label: str) -> None:
        with self._link.translated_errors():
            self._records.relabel(self._db, node, sensor, storable(label))

    def _lock_node(self, name: str) -> int | None:
        """Lock a node's row, and return its id; None if there is no such node, because it was renamed."""
        row = self._db.execute("SELECT id FROM nodes WHERE name = %s FOR NO KEY UPDATE", (name,)).fetchone()
        return int(row[0]) if row else None


_HEX_16 = re.compile(r"[0-9a-f]{16}").fullmatch


def _server_key(folder: str, create: bool) -> str:
    """Return the id of the server with this data folder. If `create` is True, a missing id is created at random."""
    path = os.path.join(folder, SERVER_ID)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            key = file.read(100).strip()
    except FileNotFoundError:
        if not create:
            return ""
        key = os.urandom(8).hex()
        replace_file(path, f"{key}\n".encode())
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
    if not _HEX_16(key):
        raise DiskError(
            f"{path} does not contain 16 hex digits. Restore the file: without it, the database treats this server"
            " as a new one"
        )
    return key
