"""Cost of years of samples, live and late ones mixed: size, start, checks, charts, export, late values, retention.

    python3 -m bench.years                  100 million readings in a temporary folder: a quarter of an hour, 1.1 GB
    python3 -m bench.years --millions 1     one million readings

Ten nodes with two values every ten seconds, in the order that `bench.years_mixed` describes. The stored samples are
compared with sums calculated when they were created; a difference ends the program. Each query runs five times on a
store that was just opened and has read its index of `fresh`. The table shows the median, with the processor time in
brackets.
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
from typing import Any

from bench.machine import cpu_s, rss_mib, table
from bench.years_mixed import DAY_MS, EVERY_MS, NODES, Builder, Card, Sums, build_mixed
from pigeonpost.core.clock import Clock, rfc3339
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import HOUR_MS, EpochCommit, HighWaterMark, LogMark
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch

TOGETHER = 5000
_DELETE_AT_ONCE = 20_000  # samples per transaction, as in the server's maintenance
_MONTH = 30
# ru_maxrss would include the memory of this process before fork.
_SHOW_PEAK = "; import os; from bench.machine import rss_mib; print(rss_mib(os.getpid(), peak=True), file=sys.stderr)"


def build(folder: str, samples: int, end_ms: int) -> None:
    """Fill a store in `folder` with `samples` regular samples of ten nodes, one node after another.

    They end at `end_ms` (ms since 1970). The last hour has one commit per sample.
    """
    count, store = samples // NODES, SqliteStore(folder)
    filed = 0
    for node in range(NODES):
        for epoch_commit in epoch_commits(node, range(1, count + 1), TOGETHER, end_ms - count * EVERY_MS):
            with store.writing(()):
                filed = store.put([epoch_commit], end_ms, LogMark("a.csv", 1, 0, filed))
    with store.writing(()):
        store.put([], end_ms, LogMark("a.csv", 1, 0, filed))
    while job := store.compaction(end_ms + 2 * HOUR_MS):
        with store.writing(()):
            job()
    for node in range(NODES):
        live = range(count + 1, count + 1 + HOUR_MS // EVERY_MS)
        for epoch_commit in epoch_commits(node, live, 1, end_ms - count * EVERY_MS):
            with store.writing(()):
                filed = store.put([epoch_commit], end_ms, LogMark("a.csv", 1, 0, filed))
    with store.writing(()):
        store.put([], end_ms, LogMark("a.csv", 1, 0, filed))
    store.close()


def epoch_commits(node: int, seqs: range, together: int, zero_ms: int) -> Iterator[EpochCommit]:
    """Yield commits with the samples `seqs` of node number `node`.

    Args:
        node: Number of the node.
        seqs: Sequence numbers of the samples.
        together: Samples per commit.
        zero_ms: Time of the sample 0 in ms since 1970.
    """
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


# ---------------------------------------------------------------------------------------------------- measuring


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds and the seconds of processor time that `work` takes."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began_s, time.process_time() - began_cpu_s


def text_ms(took: list[tuple[float, float]], choose: Callable[[list[float]], float] = statistics.median) -> str:
    """Return the durations `took` as text in milliseconds: the median, or the result of `choose`."""
    wall_s, busy_s = (choose(list(kind)) for kind in zip(*took))
    return f"{wall_s * 1000:.1f} ms ({busy_s * 1000:.1f})"


def query_ms(folder: str, ask: Callable[[SqliteStore], Any]) -> str:
    """Return the time of one query `ask` of the store in `folder`, just opened, as text."""
    took = []
    for _ in range(5):
        with contextlib.closing(SqliteStore(folder, look_only=True)) as store:
            store.points("n1", 0, 1, 1)
            took.append(cost(lambda store=store: ask(store)))  # type: ignore[misc]
    return text_ms(took)


def command(*arguments: str) -> tuple[float, float, float]:
    """Return the seconds, seconds of processor time and peak MiB of control.py with `arguments`."""
    return run("import sys, control; control.main(sys.argv[1:])", *arguments)


def run(code: str, *arguments: str) -> tuple[float, float, float]:
    """Return the same as `command` for Python `code`, which imports sys, with `arguments`."""
    began_s, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-c", code + _SHOW_PEAK, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr or f"{arguments} ended with {done.returncode}")
    after = os.times()
    busy_s = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began_s, busy_s, float(done.stderr.split()[-1])


def start(folder: str) -> str:
    """Return the time from starting a server with the data `folder` to its first page, as text."""
    took = []
    for _ in range(3):
        began_s = time.perf_counter()
        with open(os.devnull, "w") as nowhere:
            server = subprocess.Popen(
                [sys.executable, "server.py", "--data", folder, "--web", "127.0.0.1:0"], stdout=subprocess.PIPE,
                stderr=nowhere, text=True,
            )  # fmt: skip
        assert server.stdout is not None
        server.stdout.readline()
        took.append((time.perf_counter() - began_s, cpu_s(server.pid)))
        most_mib = rss_mib(server.pid, peak=True)
        server.terminate()
        server.wait(60)
    return f"{text_ms(took)}; {most_mib:.0f} MiB"


# ---------------------------------------------------------------------------------------------------- questions


def differences(store: SqliteStore, sums: Sums, from_day: int = 0) -> list[tuple[str, int]]:
    """Return (node, day) of each day whose stored samples in `store` differ from `sums`.

    `from_day` is the first day to compare, counted since 1970.
    """
    found = Sums()
    for node, _, batch in store.every_batch():
        found.add(node, batch)
    keys = {key for key in {*sums.found, *found.found} if key[1] >= from_day}
    return sorted(key for key in keys if sums.found.get(key) != found.found.get(key))


def checked(store: SqliteStore, sums: Sums, from_day: int = 0) -> str:
    """Compare all stored samples of `store` with `sums` and check the database; `from_day` as for `differences`.

    Returns the time as text. Ends the program with an error if a difference is found.
    """

    def check() -> None:
        if wrong := [*differences(store, sums, from_day), *store.verify()]:
            raise SystemExit(f"stored samples differ from those that were sent: {wrong[:10]}")

    wall_s, busy_s = cost(check)
    return f"{wall_s:.1f} s ({busy_s:.1f} s CPU)"


def questions(folder: str, to_ms: int, days: float) -> list[tuple[str, str]]:
    """Return rows for the server's queries, and for queries in SQL, of the store in `folder`.

    Args:
        folder: Data folder.
        to_ms: End of the samples in ms since 1970.
        days: Length of the samples in days.
    """
    both = {"temperature", "light"}

    def sql(rest: str) -> Callable[[SqliteStore], Any]:
        def ask(_: SqliteStore) -> Any:
            with contextlib.closing(sqlite3.connect(os.path.join(folder, DATABASE))) as db:
                return db.execute(f"SELECT * FROM readings WHERE node = 'n3' {rest}").fetchall()

        return ask

    def chart(span_days: float) -> Callable[[SqliteStore], Any]:
        return lambda s: s.downsample_several("n0", to_ms - int(span_days * DAY_MS), to_ms, 327, both)

    asks = [
        (f"columns of a chart of {words}, 2 series", chart(span_days))
        for words, span_days in (("an hour", 1 / 24), ("a day", 1), ("a month", 30), ("a year", 365), ("all", days))
    ]
    asks += [
        ("the last 100 samples of a node", lambda s: s.points("n3", 0, to_ms, 100)),
        ("counts of all nodes", lambda s: s.nodes()),
        ("SQL: newest hour of a node", sql(f"AND chunk_low >= {to_ms - HOUR_MS}")),
        ("SQL: its newest 100 readings", sql("ORDER BY chunk_low DESC, time DESC LIMIT 100")),
    ]
    return [(words, query_ms(folder, ask)) for words, ask in asks]


def exports(folder: str, samples: int, to_ms: int) -> Iterator[tuple[str, str]]:
    """Yield rows for an export of one day of all nodes, and of all `samples`, which end at `to_ms`, from `folder`."""
    since, until = rfc3339(to_ms - 2 * DAY_MS), rfc3339(to_ms - DAY_MS)
    for words, count, more in (
        ("a day", NODES * DAY_MS // EVERY_MS, ("--from", since, "--to", until)),
        ("everything", samples, ()),
    ):
        took_s, busy_s, most_mib = command("--data", folder, "export", *more)
        yield (
            f"`export --format csv` of {words}",
            f"{took_s:.1f} s ({busy_s:.1f} s CPU): {count / took_s:,.0f} samples/s; {most_mib:.0f} MiB",
        )


# ------------------------------------------------------------------------------------------------------ changes


def chunks(folder: str) -> set[tuple[int, int]]:
    """Return the id and the number of samples of all chunks in `folder`. The id of a deleted chunk is used again."""
    with contextlib.closing(sqlite3.connect(f"file:{folder}/{DATABASE}?mode=ro", uri=True)) as db:
        return set(db.execute("SELECT id, count FROM chunks"))


def late(folder: str, builder: Builder, day: int) -> Iterator[tuple[str, str]]:
    """Yield rows for samples of `builder` that arrive late, for the past day `day`, in the store in `folder`."""
    samples_per_day, half_an_hour = DAY_MS // EVERY_MS, HOUR_MS // EVERY_MS // 2
    whole, halves = Card("n3", 1), Card("n3", 2)
    for words, card, from_ms, count in (
        ("a day from an old card", whole, day * DAY_MS, samples_per_day),
        ("half an hour", halves, (day + 1) * DAY_MS, half_an_hour),
        ("the half hour after it", halves, (day + 1) * DAY_MS + HOUR_MS // 2, half_an_hour),
    ):
        before = chunks(folder)
        took = cost(lambda: builder.bring(card, from_ms, count)), cost(builder.maintain)  # noqa: B023
        after = chunks(folder)
        costs = "; ".join(text_ms([one]) for one in took)
        change = f"{len(before - after)} chunks deleted, {len(after - before)} new"
        yield f"late samples: {words}, {count} samples; the maintenance after it", f"{costs}; {change}"


def forgetting(store: SqliteStore, before_ms: int) -> tuple[str, int]:
    """Delete the samples of `store` taken before `before_ms`, as the server does.

    Returns:
        The time per transaction as text, and the number of deleted samples.
    """

    def delete() -> None:
        with store.writing(()):
            counts.append(store.delete_expired(before_ms, _DELETE_AT_ONCE))

    counts: list[int] = []
    took = [cost(delete)]
    while counts[-1]:
        took.append(cost(delete))
    return f"{text_ms(took)}; at most {text_ms(took, max)}; {len(took)} transactions", sum(counts)


def changes(folder: str, store: SqliteStore, builder: Builder, first_day: int, last_day: int) -> list[tuple[str, str]]:
    """Return rows for late samples and for deleting the oldest month; the store is compared with the sums after both.

    Args:
        folder: Data folder.
        store: Its open store.
        builder: Builder that created the samples.
        first_day: First day of samples, since 1970.
        last_day: Last day of samples.
    """
    rows = list(late(folder, builder, (first_day + last_day) // 2))
    rows.append(("comparison of every sample with independent sums, and `verify`", checked(store, builder.sums)))
    from_day = first_day + min(_MONTH, (last_day - first_day) // 2)
    result, deleted = forgetting(store, from_day * DAY_MS)
    if deleted != (expected := sum(day[0] for (_, number), day in builder.sums.found.items() if number < from_day)):
        raise SystemExit(f"{deleted} samples were deleted, not {expected}")
    rows.append((f"deletion of the oldest days, {deleted:,} samples: one transaction", result))
    rows.append(("the same comparison after it", checked(store, builder.sums, from_day)))
    return rows


def main() -> None:
    """Build the store, run the queries and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=100, help="millions of readings (100)")
    millions = parser.parse_args().millions
    end_ms = Clock().wall_ms() // HOUR_MS * HOUR_MS
    with tempfile.TemporaryDirectory() as folder:
        found: list[Builder] = []
        with contextlib.closing(SqliteStore(folder)) as store:
            took_s, busy_s = cost(lambda: found.append(build_mixed(store, int(millions * 500_000), end_ms)))
        builder, samples = found[0], found[0].samples
        size = os.path.getsize(os.path.join(folder, DATABASE))
        with contextlib.closing(sqlite3.connect(os.path.join(folder, DATABASE))) as db:
            (in_runs,) = db.execute(
                "SELECT sum(pgsize) FROM dbstat WHERE name GLOB 'chunks*' OR name = 'fresh'"
            ).fetchone()
        first_day, last_day = (choose(day for _, day in builder.sums.found) for choose in (min, max))
        rows = [
            ("storing, compaction and rollups", f"{samples:,} samples, {took_s:.0f} s ({busy_s:.0f} s CPU)"),
            ("duplicates", f"{builder.ingestor.repeated:,} samples"),
            ("bytes per reading: samples with indexes; complete file with statistics",
             f"{in_runs / 2 / samples:.2f}; {size / 2 / samples:.2f}"),
            ("start of the server to its first page", start(folder)),
        ]  # fmt: skip
        rows += questions(folder, end_ms, samples / NODES * EVERY_MS / DAY_MS)
        rows += exports(folder, samples, end_ms)
        with contextlib.closing(SqliteStore(folder)) as store:
            builder.reopen(store)
            rows += changes(folder, store, builder, first_day, last_day)
    table(f"{millions:g} million readings in SQLite: time (processor time)", rows)


if __name__ == "__main__":
    main()
