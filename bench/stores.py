"""How fast the stores take samples, durably, and what their databases could do with the same rows and nothing else.

    python3 -m bench.stores                     SQLite; and PostgreSQL where psycopg and a PostgreSQL are installed
    python3 -m bench.stores postgresql://...    another PostgreSQL than one started for the purpose, as it is set

Samples of two values, 500 of each of 20 nodes a transaction, in batches as the Ingestor has them: marks, filings for
the log and windows for the statistics are written too. Beside it the bare rows, made before: `executemany` into the
same table of SQLite (a row is a run of 500 samples), COPY into the same table of PostgreSQL with its two indexes. The
two take turns, five times each; the figures are those of the medians. So much a writer thread can do alone:
bench/ingest.py measures the whole server.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.machine import table
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.chunks import COLUMNS, MARKS, ChunkRow
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import NOTHING, EpochCommit
from pigeonpost.storage.sqlite.schema import bring_up_to_date
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch, Sample

NODES, AT_ONCE, VALUES = 20, 500, 2
TURNS, COMMITS = 5, 10  # commits in a turn
PER_TURN = COMMITS * NODES * AT_ONCE
_START_MS = 1_795_000_000_000


def samples(turn: int) -> list[list[Sample]]:
    """Of each node what one turn stores."""
    first = turn * COMMITS * AT_ONCE + 1
    return [
        [
            Sample(seq, _START_MS + seq * 10_000 + node, seq * 10_000,
                   {"temperature": 20 + seq % 97 * 0.11, "light": seq % 1024}, {}, "")
            for seq in range(first, first + COMMITS * AT_ONCE)
        ] for node in range(NODES)
    ]  # fmt: skip


def batches(made: Sequence[list[Sample]]) -> list[list[SampleBatch]]:
    """The same as the transports hand them over: of each commit one batch of each node."""
    return [
        [SampleBatch.of(of_node[start : start + AT_ONCE]) for of_node in made]
        for start in range(0, COMMITS * AT_ONCE, AT_ONCE)
    ]


def through_store(store: Store, made: Sequence[Sequence[SampleBatch]]) -> float:
    """Return the seconds of one turn, done as the Ingestor does it."""
    epochs = [(f"node{node}", f"{node:016x}") for node in range(NODES)]
    units = {"temperature": "°C"}
    began_s = time.perf_counter()
    for of_commit in made:
        with store.writing(epochs) as marks:
            epoch_commits = []
            for (name, epoch), batch in zip(epochs, of_commit):
                epoch_commit = EpochCommit(name, "f" * 16, epoch, marks.get((name, epoch), NOTHING))
                epoch_commit.units = units
                epoch_commit.add(Batch(name, "f" * 16, epoch, 0, batch, None, units, print, print), 0)
                epoch_commits.append(epoch_commit)
            store.put(epoch_commits, _START_MS, None)
    return time.perf_counter() - began_s


def rows(made: Sequence[list[Sample]]) -> list[tuple[int, int, int, int, str]]:
    """The same as node, time, epoch, seq and the values as JSON; in the order of the commits."""
    return [
        (node + 1, sample.time_ms, node + 1, sample.seq, "[%r,%r]" % tuple(sample.values.values()))
        for commit in range(COMMITS) for node, of_node in enumerate(made)
        for sample in of_node[commit * AT_ONCE : (commit + 1) * AT_ONCE]
    ]  # fmt: skip


def compare(store: Store, bare: Callable[[list[tuple[int, int, int, int, str]]], float]) -> tuple[float, float]:
    """Readings a second through the store, and bare."""
    took: list[tuple[float, float]] = []
    for turn in range(TURNS):
        made = samples(turn)
        ready = rows(made)
        took.append((through_store(store, batches(made)), bare(ready)))
    faults = list(store.verify())
    if faults:
        raise SystemExit(f"what was stored is not right: {faults[0]}")
    per_turn = PER_TURN * VALUES
    return per_turn / statistics.median(s for s, _ in took), per_turn / statistics.median(s for _, s in took)


def parts(ready: list[Any]) -> list[list[Any]]:
    """The rows of each commit."""
    size = NODES * AT_ONCE
    return [ready[start : start + size] for start in range(0, len(ready), size)]


def chunk_row(ready: list[tuple[int, int, int, int, str]]) -> ChunkRow:
    """The row that SqliteStore makes of samples of one node."""
    node, _, epoch, seq, _ = ready[0]
    columns = [list(column) for column in zip(*(json.loads(text) for *_, text in ready))]
    batch = SampleBatch(seq, [time_ms for _, time_ms, *_ in ready], [], dict(zip(("temperature", "light"), columns)))
    return ChunkRow.pack(node, epoch, 1, batch, _START_MS)


def sqlite() -> tuple[float, float]:
    """Of SQLite."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        db = sqlite3.connect(f"{other}/bare.sqlite3", isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4000"):
            db.execute(f"PRAGMA {pragma}")
        bring_up_to_date(db, f"{other}/bare.sqlite3")

        def bare(ready: list[tuple[int, int, int, int, str]]) -> float:
            blocks = [
                [chunk_row(block[start : start + AT_ONCE]) for start in range(0, len(block), AT_ONCE)]
                for block in parts(ready)
            ]
            began_s = time.perf_counter()
            for block in blocks:
                db.execute("BEGIN IMMEDIATE")
                db.executemany(f"INSERT INTO fresh ({COLUMNS}) VALUES ({MARKS})", block)
                db.execute("COMMIT")
            return time.perf_counter() - began_s

        store = SqliteStore(folder)
        try:
            return compare(store, bare)
        finally:
            store.close()
            db.close()


def postgres(address: str) -> tuple[float, float]:
    """Of the PostgreSQL at `address`, in two databases of its own."""
    import psycopg

    from pigeonpost.storage.postgres.store import PostgresStore
    from tests.libraries.databases import Database

    ours, other = Database(address), Database(address)
    try:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as its:
            PostgresStore(other.address, its).close()
            db = psycopg.connect(other.address, autocommit=True)

            def bare(ready: list[tuple[int, int, int, int, str]]) -> float:
                blocks = [
                    "".join([f"{time_ms}\t{epoch}\t{seq}\t{node}\t1\t1\t\\N\t{text}\n"
                             for node, time_ms, epoch, seq, text in block])
                    for block in parts(ready)
                ]  # fmt: skip
                began_s = time.perf_counter()
                for block in blocks:
                    with db.cursor() as cursor, cursor.copy("COPY pigeonpost.samples FROM STDIN") as copy:
                        copy.write(block)
                return time.perf_counter() - began_s

            store = PostgresStore(ours.address, folder)
            try:
                return compare(store, bare)
            finally:
                store.close()
                db.close()
    finally:
        ours.drop()
        other.drop()


def said(found: tuple[float, float]) -> str:
    store, bare = found
    return f"{store:,.0f} readings/s ({store / bare:.0%} of the bare {bare:,.0f})"


def main() -> None:
    batch = f"{NODES * AT_ONCE:,} samples of {VALUES} values a transaction"
    lines = [(f"SQLite, {batch}", said(sqlite()))]
    try:
        import psycopg
    except ImportError:
        print("without PostgreSQL: psycopg is not installed for this Python", file=sys.stderr)
    else:
        from tests.libraries.databases import Cluster

        cluster = None if sys.argv[1:] else Cluster()
        try:
            address = cluster.address if cluster else sys.argv[1]
            with psycopg.connect(address) as db:
                version = db.info.parameter_status("server_version")
            lines.append((f"PostgreSQL {version.split()[0]}, {batch}", said(postgres(address))))
        finally:
            if cluster:
                cluster.remove()
    table("stores: readings that are durable", lines)


if __name__ == "__main__":
    main()
