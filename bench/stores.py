"""How fast the stores take samples, durably, and what their databases could do with the same rows and nothing else.

    python3 -m bench.stores                     SQLite; and PostgreSQL where psycopg and a PostgreSQL are installed
    python3 -m bench.stores postgresql://...    another PostgreSQL than one started for the purpose, as it is set

Samples of two values, 500 of each of 20 nodes a transaction, in batches as the Ingestor has them: marks, filings for
the log and windows for the statistics are written too. Beside it the bare rows, made before: `executemany` into the
same table of SQLite (a row is a run of samples), COPY into the same table of PostgreSQL with its two indexes. The two
take turns with each transaction, and which is first changes: three million samples each. The share is the median of the
pairs' ratios, with the quartiles, since whatever else this machine does meets both. So much a writer thread can do
alone: bench/ingest.py measures the whole server.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from bench.machine import table
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.chunks import COLUMNS, MARKS, ChunkRow
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import NOTHING, EpochCommit, stretches
from pigeonpost.storage.sqlite.schema import bring_up_to_date
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch

NODES, AT_ONCE, VALUES = 20, 500, 2
PAIRS = 300
PER_TRANSACTION = NODES * AT_ONCE
_START_MS = 1_795_000_000_000
_UNITS = {"temperature": "°C"}
_EPOCHS = [(f"node{node}", f"{node:016x}") for node in range(NODES)]

# Readings a second through the store, and bare; the quartiles of the pairs' ratios.
Figures = tuple[float, float, list[float]]


def samples(turn: int) -> list[SampleBatch]:
    """Of each node what comes in one transaction, as the transports hand it over."""
    seqs = range(turn * AT_ONCE + 1, (turn + 1) * AT_ONCE + 1)
    return [
        SampleBatch(
            seqs[0], [_START_MS + seq * 10_000 + node for seq in seqs], [seq * 10_000 for seq in seqs],
            {"temperature": [20 + seq % 97 * 0.11 for seq in seqs], "light": [seq % 1024 for seq in seqs]},
        ) for node in range(NODES)
    ]  # fmt: skip


def through_store(store: Store, made: Sequence[SampleBatch]) -> None:
    """One transaction, done as the Ingestor does it."""
    with store.writing(_EPOCHS) as marks:
        epoch_commits = []
        for (name, epoch), batch in zip(_EPOCHS, made):
            epoch_commit = EpochCommit(name, "f" * 16, epoch, marks.get((name, epoch), NOTHING))
            epoch_commit.units = _UNITS
            epoch_commit.add(Batch(name, "f" * 16, epoch, 0, batch, None, _UNITS, print, print), 0)
            epoch_commits.append(epoch_commit)
        store.put(epoch_commits, _START_MS, None)


def compare(store: Store, ready: Callable[[int], Any], bare: Callable[[Any], object]) -> Figures:
    """
    ready  makes the rows of a turn
    bare   stores them, in one transaction
    """
    took: list[tuple[float, float]] = []
    for turn in range(PAIRS):
        made, rows = samples(turn), ready(turn)
        took_s = {}
        for is_ours in (True, False) if turn % 2 else (False, True):
            began_s = time.perf_counter()
            if is_ours:
                through_store(store, made)
            else:
                bare(rows)
            took_s[is_ours] = time.perf_counter() - began_s
        took.append((took_s[True], took_s[False]))
    faults = list(store.verify())
    if faults:
        raise SystemExit(f"what was stored is not right: {faults[0]}")
    ours, others = (PER_TRANSACTION * VALUES / statistics.median(column) for column in zip(*took))
    return ours, others, statistics.quantiles([other / own for own, other in took], n=4)


def sqlite() -> Figures:
    """Of SQLite."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        db = sqlite3.connect(f"{other}/bare.sqlite3", isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4000"):
            db.execute(f"PRAGMA {pragma}")
        bring_up_to_date(db, f"{other}/bare.sqlite3")

        def ready(turn: int) -> list[ChunkRow]:
            return [
                ChunkRow.pack(node, node, 1, stretch, _START_MS)
                for node, batch in enumerate(samples(turn), 1) for stretch in stretches(batch)
            ]  # fmt: skip

        def bare(rows: list[ChunkRow]) -> None:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(f"INSERT INTO fresh ({COLUMNS}) VALUES ({MARKS})", rows)
            db.execute("COMMIT")

        store = SqliteStore(folder)
        try:
            return compare(store, ready, bare)
        finally:
            store.close()
            db.close()


def postgres(address: str) -> Figures:
    """Of the PostgreSQL at `address`, in two databases of its own."""
    import psycopg

    from pigeonpost.storage.postgres.store import PostgresStore
    from tests.libraries.databases import Database

    ours, other = Database(address), Database(address)
    try:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as its:
            PostgresStore(other.address, its).close()
            db = psycopg.connect(other.address, autocommit=True)

            def ready(turn: int) -> str:
                return "".join([
                    f"{time_ms}\t{node}\t{seq}\t{node}\t1\t1\t\\N\t[{temperature!r},{light!r}]\n"
                    for node, batch in enumerate(samples(turn), 1)
                    for seq, time_ms, temperature, light in zip(count(batch.seq), batch.times, *batch.values.values())
                ])  # fmt: skip

            def bare(rows: str) -> None:
                with db.cursor() as cursor, cursor.copy("COPY pigeonpost.samples FROM STDIN") as copy:
                    copy.write(rows)

            store = PostgresStore(ours.address, folder)
            try:
                return compare(store, ready, bare)
            finally:
                store.close()
                db.close()
    finally:
        ours.drop()
        other.drop()


def said(found: Figures) -> str:
    store, bare, (low, share, high) = found
    return f"{store:,.0f} readings/s; {share:.0%} ({low:.0%} to {high:.0%}) of the bare {bare:,.0f}"


def main() -> None:
    batch = f"{PER_TRANSACTION:,} samples of {VALUES} values a transaction"
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
