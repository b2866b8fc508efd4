"""Throughput of the stores, compared with the maximum throughput of their databases for the same rows.

    python3 -m bench.stores                     SQLite; and PostgreSQL if psycopg and PostgreSQL are installed
    python3 -m bench.stores postgresql://...    a given PostgreSQL with its settings, instead of a temporary one

Each transaction has 500 samples of two values from each of 20 nodes, in the batches that the Ingestor submits. It
includes high-water marks, log entries and dirty windows of the statistics. The comparison writes the bare rows,
prepared in advance: `executemany` into the same table of SQLite (a row is a run of samples), COPY into the same table
of PostgreSQL with its two indexes. The store and its database alone take turns with every transaction, and the order
within each pair changes. Each of them writes three million samples. The share is the median of the pairs' ratios, with
quartiles, since other load on the machine affects both. This is the bound of a writer thread alone; bench/ingest.py
measures the complete server.
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

# Readings per second through the store and without it; quartiles of the pairs' ratios.
Figures = tuple[float, float, list[float]]


def samples(turn: int) -> list[SampleBatch]:
    """Return the batches of the transaction number `turn`, one per node, as the transports submit them."""
    seqs = range(turn * AT_ONCE + 1, (turn + 1) * AT_ONCE + 1)
    return [
        SampleBatch(
            seqs[0], [_START_MS + seq * 10_000 + node for seq in seqs], [seq * 10_000 for seq in seqs],
            {"temperature": [20 + seq % 97 * 0.11 for seq in seqs], "light": [seq % 1024 for seq in seqs]},
        ) for node in range(NODES)
    ]  # fmt: skip


def through_store(store: Store, made: Sequence[SampleBatch]) -> None:
    """Store the batches `made` in `store` in one transaction, as the Ingestor does."""
    with store.writing(_EPOCHS) as marks:
        epoch_commits = []
        for (name, epoch), batch in zip(_EPOCHS, made):
            epoch_commit = EpochCommit(name, "f" * 16, epoch, marks.get((name, epoch), NOTHING))
            epoch_commit.units = _UNITS
            epoch_commit.add(Batch(name, "f" * 16, epoch, 0, batch, None, _UNITS, print, print), 0)
            epoch_commits.append(epoch_commit)
        store.put(epoch_commits, _START_MS, None)


def compare(store: Store, ready: Callable[[int], Any], bare: Callable[[Any], object]) -> Figures:
    """Return the figures of a store compared with its database alone.

    Args:
        store: The store.
        ready: Returns the rows of a transaction, by its number.
        bare: Stores these rows in one transaction.
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
        raise SystemExit(f"the stored samples are damaged: {faults[0]}")
    ours, others = (PER_TRANSACTION * VALUES / statistics.median(column) for column in zip(*took))
    return ours, others, statistics.quantiles([other / own for own, other in took], n=4)


def sqlite() -> Figures:
    """Return the figures of SQLite."""
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
    """Return the figures of the PostgreSQL at `address`, in two databases of its own."""
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


def as_text(found: Figures) -> str:
    """Return the figures `found` as text."""
    store, bare, (low, share, high) = found
    return (
        f"{store:,.0f} readings/s; {share:.0%} ({low:.0%} to {high:.0%}) of the database alone, {bare:,.0f} readings/s"
    )


def main() -> None:
    """Run the benchmark and print the table."""
    batch = f"{PER_TRANSACTION:,} samples of {VALUES} values per transaction"
    lines = [(f"SQLite, {batch}", as_text(sqlite()))]
    try:
        import psycopg
    except ImportError:
        print("PostgreSQL is skipped: psycopg is not installed for this Python", file=sys.stderr)
    else:
        from tests.libraries.databases import Cluster

        cluster = None if sys.argv[1:] else Cluster()
        try:
            address = cluster.address if cluster else sys.argv[1]
            with psycopg.connect(address) as db:
                version = db.info.parameter_status("server_version")
            lines.append((f"PostgreSQL {version.split()[0]}, {batch}", as_text(postgres(address))))
        finally:
            if cluster:
                cluster.remove()
    table("databases: durable readings", lines)


if __name__ == "__main__":
    main()
