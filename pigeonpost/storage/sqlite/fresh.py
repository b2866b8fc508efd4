"""In-memory index of the table `fresh`. The file has no index of it, because each commit would have to write it.

The index contains committed rows only. Each reader adds the rows of its snapshot that follow the last row in the index.
Rows are never removed from an index, so it may contain rows that no longer exist in `fresh`. If there are many of
these, a new index replaces it.

A reader finds all rows, for the following reasons. A row leaves `fresh` only when it is moved to `chunks` or deleted
permanently. A reader first fetches the index, and its snapshot then begins in `catch_up`, under the lock. So the rows
of snapshots are added to an index in the order in which the snapshots begin. If a committed row is not in the index, it
was already moved or deleted when the index was created, and therefore also when the reader's snapshot began.

`_lock` guards all data of an index. It is held while rows are added or looked up. Errors: sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from bisect import bisect_left
from typing import Any, NamedTuple

from pigeonpost.storage.models import HOUR_MS

_MISSING_ROWS = 1000  # a new index is created after readers have looked for more deleted or moved rows than this
_ADDED_ROWS = 20_000  # a new index is created when an index has this many rows more than twice its initial number
_ANY_MS = -(1 << 62), 1 << 62  # time range of a damaged row: every query for its node reads it and reports the damage


class Place(NamedTuple):
    """Position of a run of samples. The order of the fields is the order in which runs are read.

    Attributes:
        low: Earliest time of a sample in milliseconds since 1970 (UTC).
        epoch: Id of the epoch.
        first: Sequence number of the first sample.
        id: Id of the row.
        high: Latest time of a sample in milliseconds since 1970 (UTC).
        is_fresh: True for a row of `fresh`, False for a row of `chunks`.
    """

    low: int
    epoch: int
    first: int
    id: int
    high: int
    is_fresh: bool


class _Columns:
    """Rows of one node, by column."""

    __slots__ = ("epochs", "firsts", "highs", "ids", "is_rising", "lows")

    def __init__(self) -> None:
        self.ids, self.lows, self.highs = array("q"), array("q"), array("q")
        self.epochs, self.firsts = array("q"), array("q")
        # True while `lows` are in order: always, except with late data or a clock that was set back.
        self.is_rising = True

    def add(self, id: int, low: Any, high: Any, epoch: Any, first: Any) -> None:
        if not type(low) is type(high) is type(epoch) is type(first) is int:
            (low, high), epoch, first = _ANY_MS, 0, 0
            self.is_rising = False
        if self.lows and low < self.lows[-1]:
            self.is_rising = False
        self.ids.append(id)
        self.lows.append(low)
        self.highs.append(high)
        self.epochs.append(epoch)
        self.firsts.append(first)

    def part(self, oldest: int, from_ms: int, to_ms: int) -> slice:
        """Return the slice of rows, from the id `oldest` on, that may have samples taken in [from_ms, to_ms).

        If the times are not in order, the slice contains all of these rows. Each row lies within one hour.
        """
        start, stop = bisect_left(self.ids, oldest), len(self.ids)
        if self.is_rising:
            start = bisect_left(self.lows, from_ms // HOUR_MS * HOUR_MS, start)
            stop = bisect_left(self.lows, to_ms, start)
        return slice(start, stop)


class FreshIndex:
    """Index of the rows of `fresh`, by the id of their node."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[Any, _Columns] = {}
        self._last = 0  # the highest id that was added
        self._count = self._initial_count = self._missing = 0

    @property
    def is_stale(self) -> bool:
        """True if a new index should replace this one, because many of its rows probably no longer exist in `fresh`."""
        return self._missing > _MISSING_ROWS or self._count > 2 * self._initial_count + _ADDED_ROWS

    def catch_up(self, db: sqlite3.Connection) -> None:
        """Add the rows that were committed since the last call.

        Args:
            db: Connection in a transaction that has read nothing yet. Its snapshot begins here.
        """
        with self._lock:
            is_first = not self._last
            query = "SELECT id, node, low, high, epoch, first FROM fresh WHERE id > ?"
            for id, node, *rest in db.execute(query, (self._last,)):
                columns = self._nodes.get(node)
                if columns is None:
                    columns = self._nodes[node] = _Columns()
                columns.add(id, *rest)
                self._last = id
                self._count += 1
            if is_first:
                self._initial_count = self._count

    def between(self, db: sqlite3.Connection, node: int, from_ms: int, to_ms: int) -> list[Place]:
        """Return the places of the rows of a node that may have samples taken in [from_ms, to_ms), by id.

        Some of these rows may no longer exist.

        Args:
            db: Connection with the reader's snapshot.
            node: Id of the node.
            from_ms: Start of the range in milliseconds since 1970 (UTC), inclusive.
            to_ms: End of the range in milliseconds since 1970 (UTC), exclusive.
        """
        (oldest,) = db.execute("SELECT min(id) FROM fresh").fetchone()
        with self._lock:
            columns = self._nodes.get(node)
            if columns is None or oldest is None:
                return []
            part = columns.part(oldest, from_ms, to_ms)
            lows, highs = columns.lows[part], columns.highs[part]
            rest = columns.ids[part], columns.epochs[part], columns.firsts[part]
        return [
            Place(low, epoch, first, id, high, True)
            for low, high, id, epoch, first in zip(lows, highs, *rest, strict=True)
            if low < to_ms and high >= from_ms
        ]

    def ends(self, db: sqlite3.Connection, node: int) -> tuple[int, int] | None:
        """Return the first and the last time (ms since 1970, UTC) of a node's rows, or None if there are no rows.

        If the row of one of these times no longer exists, `is_stale` becomes True: only a new index has the right
        times.

        Args:
            db: Connection with the reader's snapshot.
            node: Id of the node.
        """
        (oldest,) = db.execute("SELECT min(id) FROM fresh").fetchone()
        with self._lock:
            columns = self._nodes.get(node)
            start = bisect_left(columns.ids, oldest) if columns is not None and oldest is not None else 0
            if columns is None or oldest is None or start == len(columns.ids):
                return None
            lows, highs = columns.lows[start:], columns.highs[start:]
            found = min(lows), max(highs)
            ids = {columns.ids[start + lows.index(found[0])], columns.ids[start + highs.index(found[1])]}
            for id in ids:
                if not db.execute("SELECT 1 FROM fresh WHERE id = ?", (id,)).fetchone():
                    self._missing = _MISSING_ROWS + 1
            return found

    def note_missing(self, count: int) -> None:
        """Count `count` rows that a reader looked for and did not find."""
        with self._lock:
            self._missing += count
