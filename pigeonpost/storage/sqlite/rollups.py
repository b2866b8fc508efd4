"""Rollups and expiry in the SQLite store: functions on an open connection.

`DirtyWindows` belongs to the Ingestor's writer thread. Errors: those of SQLite.
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
_LEAST = -(1 << 62)  # before all windows
_MANY = 64  # samples of a commit: then their windows are not looked for one by one
Key = tuple[int, int, int]  # node, span, end


class DirtyWindows:
    """The windows that are marked as dirty, and the last filing number that came into each: so that a live window
    is marked once, and not at every commit.

    A node may date its samples as it likes: of each the last MOST_WINDOWS are remembered, of all MOST_WINDOWS_IN_ALL.
    """

    def __init__(self) -> None:
        self._touched: dict[int, dict[Key, int]] = {}  # by node
        self._count = 0
        self._forgotten: dict[int, int] = {}  # node to the last filing number that came into a forgotten window
        self._added: list[Key] = []  # in the transaction that is open

    def begin(self) -> None:
        """Note that a transaction begins."""
        self._added = []

    def undo(self) -> None:
        """Undo what was marked in the transaction, which was rolled back."""
        for key in self._added:
            self._pop(key)
        self._added = []

    def touch(self, db: sqlite3.Connection, node: int, times_ms: Sequence[int], filed: int) -> None:
        """Mark the windows of samples of these times, which have the filing number `filed`."""
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
            self._forget(next(iter(touched)))
        while self._count > MOST_WINDOWS_IN_ALL:
            self._forget(next(iter(next(iter(self._touched.values())))))

    def is_as_of(self, key: Key, as_of: int) -> bool:
        """Return True if no samples came into a window after the filing number `as_of`."""
        filed = self._touched.get(key[0], {}).get(key)
        return (self._forgotten.get(key[0], 0) if filed is None else filed) <= as_of

    def clear(self, db: sqlite3.Connection, key: Key) -> None:
        """Unmark a window, which has been rolled up."""
        db.execute('DELETE FROM unsummed WHERE node = ? AND span = ? AND "end" = ?', key)
        self._pop(key)

    def _forget(self, key: Key) -> None:
        """Remember less: until later than what came last, the window counts as one that something came into."""
        self._forgotten[key[0]] = max(self._forgotten.get(key[0], 0), self._pop(key))

    def _pop(self, key: Key) -> int:
        touched = self._touched.get(key[0], {})
        filed = touched.pop(key, None)
        if filed is not None:
            self._count -= 1
            if not touched:
                del self._touched[key[0]]
        return filed or 0


def _spread(times_ms: Sequence[int]) -> Sequence[int]:
    """Return times in all short windows from the first to the last one: a stretch lies in one hour and has six at most,
    and one without samples is rolled up in no time."""
    return range(min(times_ms) // SPANS_MS[0] * SPANS_MS[0], max(times_ms) + 1, SPANS_MS[0])


def dirty_windows(db: sqlite3.Connection, before_ms: int, most: int, as_of: int) -> list[Window]:
    """Return dirty windows, for Store.dirty_windows: of each node that has some, so that none waits for another.

    as_of  the filing number of the last commit, or of one before it
    """
    nodes = db.execute('SELECT DISTINCT node FROM unsummed WHERE "end" < ? LIMIT ?', (before_ms, most)).fetchall()
    found: list[Window] = []
    for place, (node,) in enumerate(nodes):
        name, kept_from = db.execute("SELECT name, kept_from FROM nodes WHERE id = ?", (node,)).fetchone()
        ends = _dirty_ends_of(db, node, before_ms, (most - len(found)) // (len(nodes) - place))
        found += [Window(name, span, end, as_of, is_late(end, kept_from)) for span, end in ends]
    return found


def _dirty_ends_of(db: sqlite3.Connection, node: int, before_ms: int, most: int) -> list[tuple[int, int]]:
    """Return (span, end) of windows of a node: hour by hour, so that an hour is read once; then those of hours that are
    not past."""
    short, hour = SPANS_MS
    ask = 'SELECT "end" FROM unsummed WHERE node = ? AND span = ? AND "end" > ? AND "end" {} ? ORDER BY "end" LIMIT ?'
    found: dict[tuple[int, int], None] = {}
    for (end,) in db.execute(ask.format("<"), (node, hour, _LEAST, before_ms, most)).fetchall():
        if len(found) >= most:
            break
        found[hour, end] = None
        found.update({(short, one): None for (one,) in db.execute(ask.format("<="), (node, short, end - hour, end, 6))})
    if len(found) < most:
        rest = db.execute(ask.format("<"), (node, short, _LEAST, before_ms, most))
        found.update({(short, one): None for (one,) in rest})
    return list(found)[:most]


def dirty_ends(db: sqlite3.Connection, node: str, span_ms: int, from_ms: int, to_ms: int) -> list[int]:
    """Return the ends of a node's dirty windows, for Store.dirty_ends."""
    rows = db.execute(
        f'SELECT "end" FROM unsummed WHERE node = {_NODE} AND span = ? AND "end" > ? AND "end" <= ? ORDER BY "end"',
        (node, span_ms, from_ms, to_ms),
    )
    return [end_ms for (end_ms,) in rows]


def put(db: sqlite3.Connection, marks: DirtyWindows, window: Window, found: Mapping[str, Rollup]) -> None:
    """Replace the rollups of a window, for Store.replace_rollups."""
    (node,) = db.execute(f"SELECT {_NODE}", (window.node,)).fetchone()
    if node is None:
        return  # renamed since `dirty_windows`, which finds the window again
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
    """Merge late samples into the rollups of an hour, for Store.merge_late_rollups."""
    (node,) = db.execute(f"SELECT {_NODE}", (window.node,)).fetchone()
    if node is None:
        return False  # renamed since `dirty_windows`
    start, end = window.end_ms - window.span_ms, window.end_ms
    keys: list[Key] = [
        (node, span, key_end)
        for span, key_end in db.execute(
            'SELECT span, "end" FROM unsummed WHERE node = ? AND "end" > ? AND "end" <= ?', (node, start, end)
        )
    ]
    inside = node, start, end
    owed = db.execute(
        f"SELECT 1 FROM fresh WHERE {_OWED} AND node = ? AND low >= ? AND low < ? LIMIT 1", (logged(db), *inside)
    ).fetchone()
    if owed or not all(marks.is_as_of(key, window.as_of) for key in keys):
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
    """A row of `fresh` or `chunks`, without its samples."""

    table: str
    id: int
    epoch: int
    first: int
    samples: int
    low: int


_RUN = "id, epoch, first, count, low"
_OWED = f"(id > ? OR id IN ({UNLOGGED}))"  # to the CSV log


def delete_expired(db: sqlite3.Connection, before_ms: int, most: int) -> int:
    """Delete expired samples for Store.delete_expired: whole hours, of one node at a time."""
    # Of each node: the last commit is always owed, and one of them may date what it takes long ago.
    owed = dict(
        db.execute(f"SELECT node, min(low) FROM fresh WHERE {_OWED} AND low < ? GROUP BY node", (logged(db), before_ms))
    )
    fresh: dict[int, list[Run]] = {}
    for node, *row in db.execute(f"SELECT node, {_RUN} FROM fresh WHERE low < ? ORDER BY low", (before_ms,)):
        fresh.setdefault(node, []).append(Run("fresh", *row))
    left = most
    for node, kept_from in db.execute("SELECT id, kept_from FROM nodes").fetchall():
        (unsummed_ms,) = db.execute('SELECT min("end" - span) FROM unsummed WHERE node = ?', (node,)).fetchone()
        known = [before_ms, *(ms for ms in (unsummed_ms, owed.get(node)) if ms is not None)]
        until_ms = min(known) // HOUR_MS * HOUR_MS
        if left <= 0 or until_ms <= 0:
            continue
        chunks = db.execute(f"SELECT {_RUN} FROM chunks WHERE node = ? AND low < ? ORDER BY low", (node, until_ms))
        rows = merge((run for run in fresh.get(node, ()) if run.low < until_ms),
                     (Run("chunks", *row) for row in chunks), key=_LOW)  # fmt: skip
        doomed, until_ms = _whole_hours(rows, left, until_ms)
        if not doomed:
            continue
        if until_ms > kept_from:
            db.execute("UPDATE nodes SET kept_from = ? WHERE id = ?", (until_ms, node))
        left -= _delete(db, doomed)
    return most - left


_LOW = itemgetter(Run._fields.index("low"))


def _whole_hours(rows: Iterable[Run], most: int, until_ms: int) -> tuple[list[Run], int]:
    """Return the first of some rows, oldest first, of up to `most` samples, but all of an hour and one hour at least;
    and the end of the last hour: `until_ms` when these are all.

    If an hour lost only some of its samples, one that comes late could not be told from those that are left, which are
    in the rollups already.
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
    """Delete rows with the texts of their failures. Returns the number of samples in them."""
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
    """Return the rollups of one sensor, for Store.summaries."""
    rows = db.execute(
        f'SELECT {_SUMMARY} FROM summaries WHERE node = {_NODE} AND sensor = ? AND span = ? AND "end" > ?'
        ' AND "end" <= ? ORDER BY "end"',
        (node, sensor, span_ms, from_ms, to_ms),
    )
    return [Rollup(*row) for row in rows]
