"""In-memory index of the table `fresh`, which has none in the file: it would be written with every commit.

It is made of committed rows only: each reader adds what its snapshot has beyond the last row known. Nothing is ever
removed from one, so it may name rows that are gone; where these are many, a new index takes its place. Rows leave
`fresh` only into `chunks`, or for ever. A reader takes the index, and its snapshot begins in `catch_up`, under the
lock: so no later snapshot was added before it, and it misses nothing. What the index does not name then was gone, or
already in `chunks`, when the index was made, and so when the snapshot began.

`_lock` guards all of an index, and is held while rows are added or looked up. Errors: those of SQLite.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from bisect import bisect_left
from typing import Any, NamedTuple

from pigeonpost.storage.models import HOUR_MS

_GONE_ROWS = 1000  # rows that readers look for in vain, before there is a new index
_ADDED_ROWS = 20_000  # rows that are added to an index, beyond twice as many as it was made of, before there is one
_ANY_MS = -(1 << 62), 1 << 62  # of a damaged row: whoever asks for its node meets it


class Place(NamedTuple):
    """Where a run of samples is: in the order in which runs are read."""

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
        self.is_rising = True  # whether `lows` rise: usual, but for late data and clocks that step back

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
        """Return the places of the rows from the id `oldest` on that may have samples taken in [from_ms, to_ms); all of
        them, where the times do not rise. A row is of one hour."""
        start, stop = bisect_left(self.ids, oldest), len(self.ids)
        if self.is_rising:
            start = bisect_left(self.lows, from_ms // HOUR_MS * HOUR_MS, start)
            stop = bisect_left(self.lows, to_ms, start)
        return slice(start, stop)


class FreshIndex:
    """Rows of `fresh` by the id of their node."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[Any, _Columns] = {}
        self._last = 0  # the highest id that was added
        self._count = self._made_of = self._gone = 0

    @property
    def is_worn(self) -> bool:
        """Whether it names so many rows that are gone that a new one is better."""
        return self._gone > _GONE_ROWS or self._count > 2 * self._made_of + _ADDED_ROWS

    def catch_up(self, db: sqlite3.Connection) -> None:
        """Add the rows that came since. `db` has begun a transaction and read nothing: its snapshot begins here."""
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
                self._made_of = self._count

    def between(self, db: sqlite3.Connection, node: int, from_ms: int, to_ms: int) -> list[Place]:
        """Return the rows of a node that may have samples taken in [from_ms, to_ms), by id. Some may be gone."""
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
        """Return the first and the last time of a node's rows; None: there is none. `is_worn` when one of them is gone:
        then only a new index knows."""
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
                    self._gone = _GONE_ROWS + 1
            return found

    def note_gone(self, count: int) -> None:
        """Note that `count` of the rows were looked for in vain."""
        with self._lock:
            self._gone += count
