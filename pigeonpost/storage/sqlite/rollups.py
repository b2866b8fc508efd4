"""Rollups and retention in the SQLite store.

The functions work on an open connection. Only the Ingestor's writer thread uses `DirtyWindows`.

Errors: sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from pigeonpost.storage.models import (
    HOUR_MS,
    SPANS_MS,
    Rollup,
    Window,
    is_late,
    merge_rollups,
    window_end,
)
from pigeonpost.storage.sqlite.queries import UNLOGGED, logged

_NODE = "(SELECT id FROM nodes WHERE name = ?)"
_SUMMARY = '"end", "values", mean, median, mode, low, high, deviation'
MOST_WINDOWS, MOST_WINDOWS_IN_ALL = 5_000, 50_000
_LEAST = -(1 << 62)  # lower than the end of any window
_MANY = 64  # in a batch with at least this number of samples, all windows in its time range are marked
Key = tuple[int, int, int]  # id of the node; span and end of the window in ms


class DirtyWindows:
    """Cache of the dirty windows, each with the filing number of its last samples.

    A dirty window is marked in the table `unsummed`. A window in the cache is not written there again at each commit.

    Because a node may send samples with arbitrary times, the cache has at most MOST_WINDOWS windows of each node, and
    at most MOST_WINDOWS_IN_ALL windows in total.
    """

    def __init__(self) -> None:
        self._touched: dict[int, dict[Key, int]] = {}  # by node
        self._count = 0
        # By node: the highest filing number in a window that was removed from the cache.
        self._dropped: dict[int, int] = {}
        self._added: list[Key] = []  # in the open transaction

    def begin(self) -> None:
        """Note that a transaction begins."""
        self._added = []

    def undo(self) -> None:
        """Remove from the cache the windows that were marked in the transaction that was rolled back."""
        for key in self._added:
            self._pop(key)
        self._added = []

    def touch(self, db: sqlite3.Connection, node: int, times_ms: Sequence[int], filed: int) -> None:
        """Mark the windows of some samples as dirty.

        Args:
            db: The writer's connection.
            node: Id of the node.
            times_ms: Times of the samples in milliseconds since 1970 (UTC).
            filed: Filing number of the samples.
        """
        short, hour = SPANS_MS
        ends = {time_ms // short for time_ms in (times_ms if len(times_ms) < _MANY else _spread(times_ms))}
        keys = [(node, short, (end + 1) * short) for end in ends]
        keys += [(node, hour, end) for end in {window_end(end * short, hour) for end in ends}]
        touched = self._touched.setdefault(node, {})
        for key in keys:
            if key not in touched:
                db.execute("INSERT OR IGNORE INTO unsummed VALUES (?, ?, ?)", key)
                self._added.append(key)
                self._count += 1
            touched[key] = filed
        while len(touched) > MOST_WINDOWS:
            self._drop(next(iter(touched)))
        while self._count > MOST_WINDOWS_IN_ALL:
            self._drop(next(iter(next(iter(self._touched.values())))))

    def is_as_of(self, key: Key, as_of: int) -> bool:
        """Return True if the window `key` received no samples after the filing number `as_of`."""
        filed = self._touched.get(key[0], {}).get(key)
        return (self._dropped.get(key[0], 0) if filed is None else filed) <= as_of

    def clear(self, db: sqlite3.Connection, key: Key) -> None:
        """Remove the mark of the window `key` from `db` and from the cache, after its rollups were made."""
        db.execute('DELETE FROM unsummed WHERE node = ? AND span = ? AND "end" = ?', key)
        self._pop(key)

    def _drop(self, key: Key) -> None:
        """Remove a window from the cache, because the cache is full.

        From then on `is_as_of` assumes that it received samples up to the highest filing number of the removed windows.
        """
        self._dropped[key[0]] = max(self._dropped.get(key[0], 0), self._pop(key))

    def _pop(self, key: Key) -> int:
        touched = self._touched.get(key[0], {})
        filed = touched.pop(key, None)
        if filed is not None:
            self._count -= 1
            if not touched:
                del self._touched[key[0]]
        return filed or 0


def _spread(times_ms: Sequence[int]) -> Sequence[int]:
    """Return one time in each short window from the first to the last sample, even if the window is empty.

    A batch lies within one hour, so there are at most six windows. Making rollups of an empty window takes almost no
    time.
    """
    return range(min(times_ms) // SPANS_MS[0] * SPANS_MS[0], max(times_ms) + 1, SPANS_MS[0])


def dirty_windows(db: sqlite3.Connection, before_ms: int, most: int, as_of: int) -> list[Window]:
    """Return dirty windows, for Store.dirty_windows.

    Each node that has dirty windows gets a share of the result, so that no node waits for others.

    Args:
        db: Connection with a snapshot.
        before_ms: Return windows that end before this time, in milliseconds since 1970 (UTC).
        most: Maximum number of windows.
        as_of: Filing number of the last commit, or of an earlier one.
    """
    nodes = db.execute('SELECT DISTINCT node FROM unsummed WHERE "end" < ? LIMIT ?', (before_ms, most)).fetchall()
    found: list[Window] = []
    for index, (node,) in enumerate(nodes):
        name, kept_from = db.execute("SELECT name, kept_from FROM nodes WHERE id = ?", (node,)).fetchone()
        ends = _dirty_ends_of(db, node, before_ms, (most - len(found)) // (len(nodes) - index))
        found += [Window(name, span, end, as_of, is_late(end, kept_from)) for span, end in ends]
    return found


def _dirty_ends_of(db: sqlite3.Connection, node: int, before_ms: int, most: int) -> list[tuple[int, int]]:
    """Return (span, end) of dirty windows of a node.

    Windows of the same hour follow each other, so that the samples of an hour are read once. Short windows of
    unfinished hours come last.
    """
    short, hour = SPANS_MS
    query = 'SELECT "end" FROM unsummed WHERE node = ? AND span = ? AND "end" > ? AND "end" {} ? ORDER BY "end" LIMIT ?'
    found: dict[tuple[int, int], None] = {}
    for (end,) in db.execute(query.format("<"), (node, hour, _LEAST, before_ms, most)).fetchall():
        if len(found) >= most:
            break
        found[hour, end] = None
        inside = db.execute(query.format("<="), (node, short, end - hour, end, 6))
        found.update({(short, one): None for (one,) in inside})
    if len(found) < most:
        rest = db.execute(query.format("<"), (node, short, _LEAST, before_ms, most))
        found.update({(short, one): None for (one,) in rest})
    return list(found)[:most]


def dirty_ends(db: sqlite3.Connection, node: str, span_ms: int, from_ms: int, to_ms: int) -> list[int]:
    """Return the ends of dirty windows, for Store.dirty_ends.

    Args:
        db: Connection with a snapshot.
        node: Name of the node.
        span_ms: Width of the windows in milliseconds.
        from_ms: Return windows that end after this time, in milliseconds since 1970 (UTC).
        to_ms: Return windows that end at or before this time.
    """
    rows = db.execute(
        f'SELECT "end" FROM unsummed WHERE node = {_NODE} AND span = ? AND "end" > ? AND "end" <= ? ORDER BY "end"',
        (node, span_ms, from_ms, to_ms),
    )
    return [end_ms for (end_ms,) in rows]


def put(db: sqlite3.Connection, marks: DirtyWindows, window: Window, found: Mapping[str, Rollup]) -> None:
    """Replace the rollups of a window, for Store.replace_rollups.

    Args:
        db: The writer's connection.
        marks: Cache of the dirty windows.
        window: The window.
        found: Rollup of each sensor that has values in the window.
    """
    (node,) = db.execute(f"SELECT {_NODE}", (window.node,)).fetchone()
    if node is None:
        return  # the node was renamed since; `dirty_windows` finds the window again
    key = node, window.span_ms, window.end_ms
    sensors = [name for (name,) in db.execute("SELECT name FROM sensors WHERE node = ?", (node,))]
    db.executemany(
        'DELETE FROM summaries WHERE node = ? AND sensor = ? AND span = ? AND "end" = ?',
        [(node, sensor, *key[1:]) for sensor in sensors if sensor not in found],
    )
    db.executemany(_INSERT, [(node, sensor, window.span_ms, *summary) for sensor, summary in found.items()])
    if marks.is_as_of(key, window.as_of):
        marks.clear(db, key)


_INSERT = "INSERT OR REPLACE INTO summaries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def merge_late_rollups(
    db: sqlite3.Connection, marks: DirtyWindows, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]
) -> bool:
    """Merge late samples into the rollups of an hour, for Store.merge_late_rollups.

    Args:
        db: The writer's connection.
        marks: Cache of the dirty windows.
        window: Window of the hour.
        parts: Rollups of the late samples, by span in milliseconds and by sensor.

    Returns:
        True if the samples were merged; False if this must be tried again later.
    """
    (node,) = db.execute(f"SELECT {_NODE}", (window.node,)).fetchone()
    if node is None:
        return False  # the node was renamed since `dirty_windows`
    start, end = window.end_ms - window.span_ms, window.end_ms
    keys: list[Key] = [
        (node, span, key_end)
        for span, key_end in db.execute(
            'SELECT span, "end" FROM unsummed WHERE node = ? AND "end" > ? AND "end" <= ?', (node, start, end)
        )
    ]
    inside = node, start, end
    pending = db.execute(
        f"SELECT 1 FROM fresh WHERE {_PENDING} AND node = ? AND low >= ? AND low < ? LIMIT 1", (logged(db), *inside)
    ).fetchone()
    if pending or not all(marks.is_as_of(key, window.as_of) for key in keys):
        return False
    for span, by_sensor in parts.items():
        for sensor, found in by_sensor.items():
            for part in found:
                row = db.execute(
                    f'SELECT {_SUMMARY} FROM summaries WHERE node = ? AND sensor = ? AND span = ? AND "end" = ?',
                    (node, sensor, span, part.end_ms),
                ).fetchone()
                db.execute(_INSERT, (node, sensor, span, *(merge_rollups(Rollup(*row), part) if row else part)))
    _delete(db, [
        Run(table, *row)
        for table in ("fresh", "chunks")
        for row in db.execute(f"SELECT {_RUN} FROM {table} WHERE node = ? AND low >= ? AND low < ?", inside)
    ])  # fmt: skip
    for key in keys:
        marks.clear(db, key)
    return True


class Run(NamedTuple):
    """A row of `fresh` or `chunks`, without its data.

    Attributes:
        table: Name of the table.
        id: Id of the row.
        epoch: Id of the epoch.
        first: Sequence number of the first sample.
        samples: Number of samples.
        low: Earliest time of a sample in milliseconds since 1970 (UTC).
    """

    table: str
    id: int
    epoch: int
    first: int
    samples: int
    low: int


_RUN = "id, epoch, first, count, low"
_PENDING = f"(id > ? OR id IN ({UNLOGGED}))"  # the CSV log lacks these rows


def delete_expired(db: sqlite3.Connection, before_ms: int, most: int) -> int:
    """Delete expired samples in whole hours, for Store.delete_expired.

    Args:
        db: The writer's connection.
        before_ms: Delete samples taken before this time, in milliseconds since 1970 (UTC).
        most: Number of samples after which the function stops.

    Returns:
        The number of deleted samples.
    """
    # The time limit is calculated per node: the CSV log always lacks the last commit, and one node may send samples
    # with times far in the past, which must not stop the deletion for other nodes.
    pending = dict(
        db.execute(
            f"SELECT node, min(low) FROM fresh WHERE {_PENDING} AND low < ? GROUP BY node", (logged(db), before_ms)
        )
    )
    fresh: dict[int, list[Run]] = {}
    for node, *row in db.execute(f"SELECT node, {_RUN} FROM fresh WHERE low < ? ORDER BY low", (before_ms,)):
        fresh.setdefault(node, []).append(Run("fresh", *row))
    left = most
    for node, kept_from in db.execute("SELECT id, kept_from FROM nodes").fetchall():
        (unsummed_ms,) = db.execute('SELECT min("end" - span) FROM unsummed WHERE node = ?', (node,)).fetchone()
        limits = [before_ms, *(ms for ms in (unsummed_ms, pending.get(node)) if ms is not None)]
        until_ms = min(limits) // HOUR_MS * HOUR_MS
        if left <= 0 or until_ms <= 0:
            continue
        chunks = db.execute(f"SELECT {_RUN} FROM chunks WHERE node = ? AND low < ? ORDER BY low", (node, until_ms))
        rows = merge((run for run in fresh.get(node, ()) if run.low < until_ms),
                     (Run("chunks", *row) for row in chunks), key=_LOW)  # fmt: skip
        expired, until_ms = _whole_hours(rows, left, until_ms)
        if not expired:
            continue
        if until_ms > kept_from:
            db.execute("UPDATE nodes SET kept_from = ? WHERE id = ?", (until_ms, node))
        left -= _delete(db, expired)
    return most - left


_LOW = itemgetter(Run._fields.index("low"))


def _whole_hours(rows: Iterable[Run], most: int, until_ms: int) -> tuple[list[Run], int]:
    """Return the first `rows`, in whole hours, and the end of the last of these hours.

    The result has at most `most` samples, but always at least one hour. If it has all rows, the end is `until_ms`. Only
    whole hours are deleted, because a late sample could not be merged into the rollups of a partly deleted hour: they
    already include the remaining samples of the hour.
    """
    found: list[Run] = []
    count = 0
    for hour, of_hour in groupby(rows, lambda run: run.low // HOUR_MS):
        inside = []
        for run in of_hour:
            inside.append(run)
            count += run.samples
            if found and count > most:
                return found, hour * HOUR_MS
        found += inside
    return found, until_ms


def _delete(db: sqlite3.Connection, runs: Sequence[Run]) -> int:
    """Delete rows and the error texts of their samples. Return the number of their samples."""
    for table in ("fresh", "chunks"):
        db.executemany(f"DELETE FROM {table} WHERE id = ?", [(run.id,) for run in runs if run.table == table])
    db.executemany("DELETE FROM failures WHERE epoch = ? AND seq BETWEEN ? AND ?",
                   [(run.epoch, run.first, run.first + run.samples - 1) for run in runs])  # fmt: skip
    of_epoch: Counter[int] = Counter()
    for run in runs:
        of_epoch[run.epoch] += run.samples
    db.executemany(
        "UPDATE epochs SET forgotten = forgotten + ? WHERE id = ?",
        [(count, epoch) for epoch, count in of_epoch.items()],
    )
    return sum(of_epoch.values())


def summaries(db: sqlite3.Connection, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
    """Return the rollups of one sensor, for Store.summaries.

    Args:
        db: Connection with a snapshot.
        node: Name of the node.
        sensor: Name of the sensor.
        span_ms: Width of the windows in milliseconds.
        from_ms: Return windows that end after this time, in milliseconds since 1970 (UTC).
        to_ms: Return windows that end at or before this time.
    """
    rows = db.execute(
        f'SELECT {_SUMMARY} FROM summaries WHERE node = {_NODE} AND sensor = ? AND span = ? AND "end" > ?'
        ' AND "end" <= ? ORDER BY "end"',
        (node, sensor, span_ms, from_ms, to_ms),
    )
    return [Rollup(*row) for row in rows]
