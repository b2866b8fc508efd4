"""What years of samples cost: size on disk, start of the server, charts; 100 million readings.

    python3 -m bench.years                  builds the data in a temporary folder: some minutes, 0.8 GB
    python3 -m bench.years --millions 1     a small one

Ten nodes, two values every ten seconds; all samples are in chunks, except those of the last hour, each of which was a
commit of its own. The statistics of the first node are made as the server makes them; those of each other one would
take as long. Each query runs five times on a store that was just opened and has read its index of `fresh`; the table
has the median.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bench.machine import table
from pigeonpost.core.clock import Clock
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.storage.models import HOUR_MS, EpochCommit, HighWaterMark, LogMark, Window
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch

NODES, EVERY_MS = 10, 10_000
TOGETHER = 5000
DAY_MS = 86_400_000


class Direct:
    """In place of the Ingestor's writer thread: does the jobs of a MaintenanceWorker itself."""

    is_catching_up = False

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def run(self, job: Callable[[], Any], limit_s: float) -> Any:
        with self._store.writing(()):
            return job()


class OneNode(MaintenanceWorker):
    """Sums up the first node only."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(store, Direct(store), Clock())
        self._all = store.dirty_windows
        store.dirty_windows = self._of_one  # type: ignore[method-assign]

    def _of_one(self, before_ms: int, most: int) -> list[Window]:
        return [window for window in self._all(before_ms, most) if window.node == "n0"]


class Built(NamedTuple):
    """How fast a store was filled and compacted, and its size in between."""

    readings_s: float
    compacted_s: float  # samples a second
    size: int


def build(folder: str, samples: int, end_ms: int) -> Built:
    """Fill a store."""
    count, store = samples // NODES, SqliteStore(folder)
    began_s, filed = time.monotonic(), 0
    for node in range(NODES):
        for epoch_commit in epoch_commits(node, range(1, count + 1), TOGETHER, end_ms - count * EVERY_MS):
            with store.writing(()):
                filed = store.put([epoch_commit], end_ms, LogMark("a.csv", 1, 0, filed))
    stored_s, began_s = time.monotonic() - began_s, time.monotonic()
    with store.writing(()):
        store.put([], end_ms, LogMark("a.csv", 1, 0, filed))
    while job := store.compaction(end_ms + 2 * HOUR_MS):
        with store.writing(()):
            job()
    compacted_s = time.monotonic() - began_s
    store.close()
    size = os.path.getsize(os.path.join(folder, DATABASE))
    store = SqliteStore(folder)
    for node in range(NODES):
        live = range(count + 1, count + 1 + HOUR_MS // EVERY_MS)
        for epoch_commit in epoch_commits(node, live, 1, end_ms - count * EVERY_MS):
            with store.writing(()):
                filed = store.put([epoch_commit], end_ms, LogMark("a.csv", 1, 0, filed))
    with store.writing(()):
        store.put([], end_ms, LogMark("a.csv", 1, 0, filed))
    store.close()
    return Built(2 * samples / stored_s, samples / compacted_s, size)


def epoch_commits(node: int, seqs: range, together: int, zero_ms: int) -> Iterator[EpochCommit]:
    name, epoch = f"n{node}", f"{node:016x}"
    for first in seqs[::together]:
        made = range(first, min(first + together, seqs.stop))
        batch = SampleBatch(
            first, [zero_ms + seq * EVERY_MS for seq in made], list(made),
            {"temperature": [20 + seq % 1000 / 100 for seq in made], "light": [seq % 1024 for seq in made]},
        )  # fmt: skip
        epoch_commit = EpochCommit(name, epoch, epoch, HighWaterMark(first - 1, None))
        epoch_commit.units = {"temperature": "°C", "light": "counts"}
        epoch_commit.add(Batch(name, epoch, epoch, 0, batch, None, epoch_commit.units, print, print), 0)
        yield epoch_commit


def median_ms(folder: str, ask: Callable[[SqliteStore], Any]) -> float:
    """How long one question takes, of a store just opened."""
    took = []
    for _ in range(5):
        store = SqliteStore(folder, look_only=True)
        store.points("n1", 0, 1, 1)
        began_s = time.perf_counter()
        ask(store)
        took.append((time.perf_counter() - began_s) * 1000)
        store.close()
    return statistics.median(took)


def start_s(folder: str) -> float:
    """From calling the server to its page."""
    took = []
    for _ in range(3):
        began_s = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "server.py", "--data", folder, "--web", "127.0.0.1:0"], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert server.stdout is not None
        server.stdout.readline()
        took.append(time.perf_counter() - began_s)
        server.terminate()
        server.wait(60)
    return statistics.median(took)


def forgetting_ms(folder: str, end_ms: int) -> float:
    """How long collecting waits at most while samples are deleted."""
    store, took = SqliteStore(folder), []
    for _ in range(50):
        began_s = time.perf_counter()
        with store.writing(()):
            if not store.delete_expired(end_ms, 2000):
                break  # a small store
        took.append((time.perf_counter() - began_s) * 1000)
    store.close()
    return max(took)


def questions(folder: str, to_ms: int) -> list[tuple[str, Callable[[SqliteStore], Any]]]:
    """Return what else is asked, by the server and in SQL."""
    both = {"temperature", "light"}

    def sql(rest: str) -> Callable[[SqliteStore], Any]:
        def ask(_: SqliteStore) -> Any:
            with contextlib.closing(sqlite3.connect(os.path.join(folder, DATABASE))) as db:
                return db.execute(f"SELECT * FROM readings WHERE node = 'n3' {rest}").fetchall()

        return ask

    return [
        ("columns of a chart of a day, 2 series", lambda s: s.downsample_all("n0", to_ms - DAY_MS, to_ms, 327, both)),
        ("the last 100 samples of a node", lambda s: s.points("n3", 0, to_ms, 100)),
        ("what is stored of every node", lambda s: s.nodes()),
        ("in SQL: the newest hour of a node", sql(f"AND chunk_low >= {to_ms - HOUR_MS}")),
        ("in SQL: its newest 100 readings", sql("ORDER BY chunk_low DESC, time DESC LIMIT 100")),
    ]


def main() -> None:
    """Build, ask, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=100, help="of readings")
    millions = parser.parse_args().millions
    end_ms = Clock().wall_ms() // 3_600_000 * 3_600_000
    with tempfile.TemporaryDirectory() as folder:
        samples = int(millions * 500_000)
        built = build(folder, samples, end_ms)
        store = SqliteStore(folder)
        worker, began_s = OneNode(store), time.monotonic()
        while worker.work():
            pass
        summing_s = time.monotonic() - began_s
        store.close()
        rows = [
            (f"stored, two values a sample, {TOGETHER} samples a commit", f"{built.readings_s:,.0f} readings/s"),
            ("made chunks of", f"{built.compacted_s:,.0f} samples/s"),
            ("size on disk", f"{built.size / 2 / samples:.1f} bytes a reading"),
            (f"statistics of {samples // NODES:,} samples", f"{samples / NODES / summing_s:,.0f} samples/s"),
            ("start of the server, to its page", f"{start_s(folder):.2f} s"),
        ]
        to_ms = end_ms + HOUR_MS
        for words, days in (
            ("a day", 1),
            ("a month", 30),
            ("a year", 365),
            ("all", samples / NODES * EVERY_MS / DAY_MS),
        ):
            from_ms = to_ms - int(days * DAY_MS)
            took_ms = median_ms(
                folder,
                lambda asked, from_ms=from_ms: asked.downsample("n0", "temperature", from_ms, to_ms, 327),  # type: ignore[misc]
            )
            rows.append((f"columns of a chart of {words} ({days:.0f} days)", f"{took_ms:.1f} ms"))
        rows += [(words, f"{median_ms(folder, ask):.1f} ms") for words, ask in questions(folder, to_ms)]
        rows.append(
            ("deleting 2,000 old samples at once, the longest of 50", f"{forgetting_ms(folder, end_ms):.1f} ms")
        )
    table(f"{millions:g} million readings in SQLite", rows)


if __name__ == "__main__":
    main()
