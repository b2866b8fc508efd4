"""Rollups, buckets and expiry in the SQLite store: functions on an open connection.

`DirtyWindows` belongs to the Ingestor's writer thread. Errors: those of SQLite.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pigeonpost.storage.models import (
    SPANS_MS,
    Bucket,
    Rollup,
    Window,
    bucket,
    merge_rollups,
    pieces_to_read,
    whole_hours,
    window_end,
)
from pigeonpost.storage.shapes import MOST_PLACES, ShapeNames

_NODE = "(SELECT id FROM nodes WHERE name = ?)"
_SUMMARY = '"end", "values", mean, median, mode, low, high, deviation'
MOST_WINDOWS, MOST_WINDOWS_IN_ALL = 5_000, 50_000
_SMALL = 2.0**-64
Key = tuple[int, int, int]  # node, span, end
Row = tuple[Any, ...]


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

    def touch(self, db: sqlite3.Connection, node: int, times_ms: Iterable[int], filed: int) -> None:
        """Mark the windows of samples of these times, which have the filing number `filed`."""
        short, *longer = SPANS_MS
        ends = {-(-time_ms // short) * short for time_ms in times_ms}
        keys = [(node, short, end) for end in ends]
        keys += [(node, span, end) for span in longer for end in {window_end(end, span) for end in ends}]
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


def dirty_windows(db: sqlite3.Connection, before_ms: int, most: int) -> list[Window]:
    """Return dirty windows, for Store.dirty_windows: of each node that has some, so that none waits for another."""
    (as_of,) = db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'filings'").fetchone()
    nodes = db.execute('SELECT DISTINCT node FROM unsummed WHERE "end" < ? LIMIT ?', (before_ms, most)).fetchall()
    found: list[Window] = []
    for place, (node,) in enumerate(nodes):
        rows = db.execute(
            'SELECT n.name, u.span, u."end", u."end" <= n.kept_from FROM unsummed u JOIN nodes n ON n.id = u.node'
            ' WHERE u.node = ? AND u."end" < ? LIMIT ?',
            (node, before_ms, (most - len(found)) // (len(nodes) - place)),
        )
        found += [Window(name, span, end, as_of or 0, bool(is_late)) for name, span, end, is_late in rows]
    return found


def put(db: sqlite3.Connection, marks: DirtyWindows, window: Window, found: Mapping[str, Rollup]) -> None:
    """Replace the rollups of a window, for Store.replace_rollups."""
    (node,) = db.execute(f"SELECT {_NODE}", (window.node,)).fetchone()
    if node is None:
        return  # renamed since `dirty_windows`, which finds the window again
    key = node, window.span_ms, window.end_ms
    sensors = [name for (name,) in db.execute("SELECT name FROM sensors WHERE node = ?", (node,))]
    db.executemany(
        'DELETE FROM summaries WHERE node = ? AND sensor = ? AND span = ? AND "end" = ?',
        [(node, sensor, *key[1:]) for sensor in {*sensors, *found}],
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
    owed = db.execute(
        "SELECT 1 FROM filings f JOIN epochs e ON e.id = f.epoch WHERE e.node = ? AND f.low <= ? AND f.high > ?",
        (node, end, start),
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
    _delete(db, node, db.execute(
        "SELECT time, epoch, seq FROM samples WHERE node = ? AND time > ? AND time <= ?", (node, start, end)
    ).fetchall())  # fmt: skip
    for key in keys:
        marks.clear(db, key)
    return True


def delete_expired(db: sqlite3.Connection, before_ms: int, most: int) -> int:
    """Delete expired samples for Store.delete_expired: whole hours, of one node at a time."""
    (owed_ms,) = db.execute("SELECT min(low) FROM filings").fetchone()
    last_ms = min(before_ms, before_ms if owed_ms is None else owed_ms) - 1
    left = most
    for node, kept_from in db.execute("SELECT id, kept_from FROM nodes").fetchall():
        (unsummed_ms,) = db.execute('SELECT min("end" - span) FROM unsummed WHERE node = ?', (node,)).fetchone()
        until_ms = min(last_ms, last_ms if unsummed_ms is None else unsummed_ms)
        until_ms = until_ms // SPANS_MS[-1] * SPANS_MS[-1]
        if left <= 0 or until_ms <= 0:
            continue
        ask = "SELECT time, epoch, seq FROM samples WHERE node = ? AND time <= ? ORDER BY time, epoch, seq LIMIT ?"
        rows = db.execute(ask, (node, until_ms, left)).fetchall()
        if not rows:
            continue
        if len(rows) == left:
            until_ms = whole_hours(rows[0][0], rows[-1][0])
            rows = db.execute(ask, (node, until_ms, -1)).fetchall()
        if until_ms > kept_from:
            db.execute("UPDATE nodes SET kept_from = ? WHERE id = ?", (until_ms, node))
        _delete(db, node, rows)
        left -= len(rows)
    return most - left


def _delete(db: sqlite3.Connection, node: int, rows: list[tuple[int, int, int]]) -> None:
    db.executemany(
        "DELETE FROM samples WHERE node = ? AND time = ? AND epoch = ? AND seq = ?", [(node, *row) for row in rows]
    )
    db.executemany("DELETE FROM failures WHERE epoch = ? AND seq = ?", [row[1:] for row in rows])
    of_epoch = Counter(epoch for _, epoch, _ in rows)
    db.executemany(
        "UPDATE epochs SET forgotten = forgotten + ? WHERE id = ?",
        [(count, epoch) for epoch, count in of_epoch.items()],
    )


def summaries(db: sqlite3.Connection, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
    """Return the rollups of one sensor, for Store.summaries."""
    rows = db.execute(
        f'SELECT {_SUMMARY} FROM summaries WHERE node = {_NODE} AND sensor = ? AND span = ? AND "end" > ?'
        ' AND "end" <= ? ORDER BY "end"',
        (node, sensor, span_ms, from_ms, to_ms),
    )
    return [Rollup(*row) for row in rows]


def downsample(
    db: sqlite3.Connection, shapes: ShapeNames, node: str, sensor: str, from_ms: int, to_ms: int, count: int
) -> list[Bucket]:
    """Return the buckets of one sensor, for Store.downsample."""
    if to_ms <= from_ms:
        return []
    found: dict[int, Bucket] = {}
    (kept_from,) = db.execute("SELECT max(kept_from) FROM nodes WHERE name = ?", (node,)).fetchone()
    dirty_ends = partial(_dirty_ends, db, node)
    for span_ms, after_ms, until_ms in pieces_to_read(from_ms, to_ms, count, kept_from or 0, dirty_ends):
        ask = (from_ms, to_ms, count, node, sensor, after_ms, until_ms)
        read = partial(_of_windows, db, *ask, span_ms) if span_ms else partial(_of_samples, db, shapes, *ask)
        for row in with_finite_means(read):
            column = bucket(*row)
            other = found.get(column.place)
            found[column.place] = column.with_other(other) if other else column
    return [found[place] for place in sorted(found)]


def with_finite_means(read: Callable[[float], Iterable[Row]]) -> Sequence[Row]:
    """Return the rows of `read`, whose last value is a mean.

    read  takes a factor for the values that are summed up: the sum of values near the largest float is infinite, and
          that of both infinities nothing. Then it is called again with a small one.
    """
    rows = list(read(1.0))
    if all(row[-1] is not None and row[-1] - row[-1] == 0 for row in rows):
        return rows
    return [(*row, mean / _SMALL) for *row, mean in read(_SMALL)]


def _dirty_ends(db: sqlite3.Connection, node: str, span_ms: int, after_ms: int, until_ms: int) -> list[int]:
    rows = db.execute(
        f'SELECT "end" FROM unsummed WHERE node = {_NODE} AND span = ? AND "end" > ? AND "end" <= ? ORDER BY "end"',
        (node, span_ms, after_ms, until_ms),
    )
    return [end_ms for (end_ms,) in rows]


def _of_windows(
    db: sqlite3.Connection, from_ms: int, to_ms: int, count: int, node: str, sensor: str, after_ms: int, until_ms: int,
    span_ms: int, scale: float,
) -> Iterable[Row]:  # fmt: skip
    return db.execute(
        'SELECT ("end" - ?8 - ?1) * ?3 / (?2 - ?1) AS i, sum("values"), min(low), max(high),'
        ' sum(mean * ?9 * "values") / sum("values")'
        " FROM summaries WHERE node = (SELECT id FROM nodes WHERE name = ?4) AND sensor = ?5 AND span = ?8"
        ' AND "end" > ?6 AND "end" <= ?7 GROUP BY i ORDER BY i',
        (from_ms, to_ms, count, node, sensor, after_ms, until_ms, span_ms, scale),
    )


def _of_samples(
    db: sqlite3.Connection, shapes: ShapeNames, from_ms: int, to_ms: int, count: int, node: str, sensor: str,
    after_ms: int, until_ms: int, scale: float,
) -> Iterable[Row]:  # fmt: skip
    rows = db.execute(
        f"SELECT DISTINCT shape FROM samples WHERE node = {_NODE} AND time > ? AND time <= ?",
        (node, after_ms, until_ms),
    )
    places = shapes.places(db, [id for (id,) in rows], sensor)
    if not places:
        return ()
    # Of its own shapes the sensor's place in the array is known: no search for its name in every row.
    value = " ".join([f"""WHEN {id} THEN json_extract("values", '$[{place}]')""" for id, place in places])
    value = f"CASE shape {value} END" if len(places) <= MOST_PLACES else (
        """(SELECT json_extract("values", '$[' || j.key || ']') FROM shapes p, json_each(p.names) j"""
        " WHERE p.id = shape AND j.value = ?7)"
    )  # fmt: skip
    return db.execute(
        "SELECT (time - ?1) * ?3 / (?2 - ?1) AS i, count(v), min(v), max(v), avg(v * ?8) FROM ("
        f"  SELECT time, {value} AS v FROM samples"
        "   WHERE node = (SELECT id FROM nodes WHERE name = ?4) AND time > ?5 AND time <= ?6"
        ") WHERE v IS NOT NULL GROUP BY i ORDER BY i",
        (from_ms, to_ms, count, node, after_ms, until_ms, sensor, scale),
    )


def downsample_all(
    db: sqlite3.Connection, shapes: ShapeNames, node: str, from_ms: int, to_ms: int, count: int,
    sensors: Collection[str],
) -> dict[str, list[Bucket]]:  # fmt: skip
    """Return the buckets of several sensors, for Store.downsample_all."""
    for scale in (1.0, _SMALL):
        found: dict[str, list[Bucket]] = {}
        is_finite = True
        for place, shape, key, values, low, high, mean in db.execute(
            "SELECT (time - ?1) * ?3 / (?2 - ?1) AS i, shape, j.key, count(*), min(j.value), max(j.value),"
            ' avg(j.value * ?5) FROM samples, json_each("values") j'
            " WHERE node = (SELECT id FROM nodes WHERE name = ?4) AND time >= ?1 AND time < ?2"
            " AND j.value IS NOT NULL GROUP BY i, shape, j.key ORDER BY i",
            (from_ms, to_ms, count, node, scale),
        ):
            if mean is None or mean - mean != 0:
                is_finite = False
                break
            name = shapes.one(db, shape)[key]
            if name not in sensors:
                continue
            columns = found.setdefault(name, [])
            column = bucket(place, values, low, high, mean / scale)
            if columns and columns[-1].place == place:  # of two shapes, as after a sensor was added
                column = columns.pop().with_other(column)
            columns.append(column)
        if is_finite:
            return found
    raise ValueError("a mean that is no number, although the values are small")
