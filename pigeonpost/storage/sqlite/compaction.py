"""Compaction: rows of the table `fresh` become rows of `chunks`, each of up to STRETCH_SAMPLES samples.

`next_part` reads and calculates outside of the writer's transaction, on a connection that only reads; the job that it
returns inserts and deletes within one. The job changes exactly the rows that were read, and only what the CSV log no
longer owes: where something has changed meanwhile it does nothing, and it is tried later.

A chunk is a run of consecutive samples of one epoch, hour, shape and clock state. Late rows are merged with a chunk
only when their seqs follow those of the chunk, or precede them.
Errors: those of SQLite. A row that cannot be read is moved as it is, where it fits a chunk, and `on_damage` is told.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pigeonpost.storage.chunks import COLUMNS, MARKS, ChunkRow, unpack
from pigeonpost.storage.models import HOUR_MS, STRETCH_SAMPLES, stretch_samples
from pigeonpost.storage.shapes import ShapeNames
from pigeonpost.storage.sqlite.rollups import logged

_GRACE_MS = 120_000  # after an hour: what a server that commits once a minute gets late is merged at once
_MOST_FRESH = 50_000  # rows; above, those of the nodes with most are merged although their hours are not past
# Rows of a node; from here on they are merged, since a question about the node reads each of them, in 8 µs. With a
# commit each second, a node of eight samples a second or more fills a chunk before.
_MOST_OF_NODE = 512
_LOOK_ROWS = 128  # that came since the last look, or an eighth of all: then it is worth another one
_MOST_LISTED = 100_000  # of these rows, without their data, in memory: the oldest
_TOGETHER = 65_536  # samples rewritten in one transaction: some milliseconds
_SAMPLE_BYTES = 16  # of text, with two values
_ROW_SAMPLES = 48  # that are written in the time in which a row is found and deleted
_FEW = 64  # rows looked up at once


class _ChangedError(Exception):
    """A row is not there any more."""


class Piece(NamedTuple):
    """A row of `fresh` or `chunks` without its data."""

    table: str
    id: int
    first: int
    samples: int
    shape: int
    clock: str | None


_PIECE = "id, first, count, shape, clock"
# Not of rows that fit no chunk, or whose numbers fit no sum: they stay where they are, and `verify` names them.
_IS_WHOLE = (
    "typeof(node + low + epoch + first + count + high + step + shape + crc) = 'integer' AND typeof(data) = 'text'"
    " AND typeof(arrived) IN ('integer', 'null')"
)
_HOUR = f"(low / {HOUR_MS} - (low % {HOUR_MS} < 0))"  # rounded down, also before 1970


class Group(NamedTuple):
    """Rows of `fresh` of one node, epoch and hour.

    is_whole  their hour is past, or there are too many, of the node or in all: then the last chunk need not be full
    """

    node: int
    epoch: int
    hour: int
    is_whole: bool
    pieces: list[Piece]


class Rewrite(NamedTuple):
    """What becomes one chunk, in the order of seq; `row` is None where a single row is moved as it is."""

    epoch: int
    pieces: Sequence[Piece]
    row: ChunkRow | None


class Compactor:
    """Finds what is due, and prepares it a part at a time. Used by one thread."""

    def __init__(self, names: ShapeNames, on_damage: Callable[[str], object]) -> None:
        self._names = names
        self._on_damage = on_damage
        self._groups: deque[Group] = deque()  # that are due,
        self._bins: deque[tuple[Group, list[Piece]]] = deque()  # and the rows of each chunk that is to be made
        self._next = 0  # from this id on it is worth another look,
        self._due_ms = 0  # or at this time

    def next_part(self, db: sqlite3.Connection, now_ms: int) -> list[Rewrite]:
        """Return what to rewrite now; empty: nothing. `db` reads a snapshot."""
        if not self._groups and not self._bins:
            self._look(db, now_ms)
        found: list[Rewrite] = []
        count = 0
        try:
            while count < _TOGETHER and (self._bins or self._groups):
                if not self._bins:
                    group = self._groups.popleft()
                    self._bins.extend((group, pieces) for pieces in _bins_of(db, group))
                    continue
                group, pieces = self._bins.popleft()
                rewrites = self._rewrites(db, group, pieces)
                found += rewrites
                count += sum(map(_weight, rewrites))
        except _ChangedError:
            self.give_up()
            return []
        return found

    def give_up(self) -> None:
        """Look again, from the beginning: what was read has changed meanwhile."""
        self._groups.clear()
        self._bins.clear()
        self._next = self._due_ms = 0

    # ----------------------------------------------------------------------------------------- what is due

    def _look(self, db: sqlite3.Connection, now_ms: int) -> None:
        filed = logged(db)
        (last,) = db.execute("SELECT max(id) FROM fresh WHERE id <= ?", (filed,)).fetchone()
        is_early = 0 < self._due_ms - now_ms <= HOUR_MS + _GRACE_MS
        if last is None or (last < self._next and is_early):
            return
        listed = "SELECT id FROM fresh WHERE id <= ? ORDER BY id LIMIT ?"
        (last,) = db.execute(f"SELECT max(id) FROM ({listed})", (filed, _MOST_LISTED)).fetchone()
        rows = db.execute(
            f"SELECT node, epoch, {_HOUR}, count(*), sum(count), min(arrived) FROM fresh WHERE id <= ?"
            f" AND {_IS_WHOLE} GROUP BY 1, 2, 3 ORDER BY 4 DESC",
            (last,),
        ).fetchall()
        self._next = last + max(_LOOK_ROWS, sum(row[3] for row in rows) // 8)
        self._due_ms = (now_ms - _GRACE_MS) // HOUR_MS * HOUR_MS + HOUR_MS + _GRACE_MS
        groups = {key: Group(*key, is_whole, []) for key, is_whole in _due(rows, now_ms).items()}
        if groups:
            for node, epoch, hour, *piece in db.execute(
                f"SELECT node, epoch, {_HOUR}, {_PIECE} FROM fresh WHERE id <= ? AND {_IS_WHOLE} ORDER BY epoch, first",
                (last,),
            ):
                if group := groups.get((node, epoch, hour)):
                    group.pieces.append(Piece("fresh", *piece))
            self._groups.extend(groups.values())

    # -------------------------------------------------------------------------------------- what becomes of it

    def _rewrites(self, db: sqlite3.Connection, group: Group, pieces: Sequence[Piece]) -> list[Rewrite]:
        if len(pieces) == 1:
            return [Rewrite(group.epoch, pieces, None)]
        try:
            return [Rewrite(group.epoch, pieces, self._merged(db, group, pieces))]
        except ValueError as error:
            self._on_damage(str(error))
            return [Rewrite(group.epoch, [piece], None) for piece in pieces if piece.table == "fresh"]

    def _merged(self, db: sqlite3.Connection, group: Group, pieces: Sequence[Piece]) -> ChunkRow:
        """Return the chunk of several rows. Raises ValueError where one cannot be read."""
        rows = list(_read(db, pieces))
        for one, other in pairwise(rows):
            if not one.is_followed_by(other):
                raise ValueError(f"sample {other.first} of epoch {other.epoch} does not follow those before it")
        merged = unpack(rows, self._names.one(db, pieces[0].shape))
        arrived = [row.arrived for row in rows if row.arrived is not None]
        return ChunkRow.pack(group.node, group.epoch, pieces[0].shape, merged, max(arrived, default=None))


def _due(rows: Sequence[tuple[Any, ...]], now_ms: int) -> dict[tuple[int, int, int], bool]:
    """Return (node, epoch, hour) of groups that are due; True: all of them, False: as many as fill chunks.

    rows  node, epoch, hour, rows, samples and first arrival of each group; those with most rows first
    """
    of_node: Counter[int] = Counter()
    for node, _, _, count, _, _ in rows:
        of_node[node] += count
    excess = sum(of_node.values()) - _MOST_FRESH
    left = excess + _MOST_FRESH // 2
    found: dict[tuple[int, int, int], bool] = {}
    for node, epoch, hour, count, samples, arrived_ms in rows:
        is_past = _is_past(hour, arrived_ms, now_ms)
        is_much = of_node[node] >= _MOST_OF_NODE or (excess > 0 and left > 0)
        if is_past or is_much:
            left -= count
        if is_past or is_much or samples >= STRETCH_SAMPLES:
            found[node, epoch, hour] = is_past or is_much
    return found


def _bins_of(db: sqlite3.Connection, group: Group) -> Iterator[list[Piece]]:
    """Yield the rows of each chunk that is to be made of a group, and of the chunks beside it."""
    beside: dict[int, Piece] = {}  # a chunk may be between two runs
    for run in _runs(group.pieces):
        beside |= {piece.id: piece for piece in _neighbours(db, group, run)}
    for run in _runs(sorted([*group.pieces, *beside.values()], key=lambda piece: piece.first)):
        (sensors,) = db.execute("SELECT json_array_length(names) FROM shapes WHERE id = ?", (run[0].shape,)).fetchone()
        most = min(STRETCH_SAMPLES, stretch_samples(sensors))
        bins = list(_bins(run, most))
        if not group.is_whole and sum(piece.samples for piece in bins[-1]) < most:
            del bins[-1]
        yield from (pieces for pieces in bins if len(pieces) > 1 or pieces[0].table == "fresh")


def _weight(rewrite: Rewrite) -> int:
    """Return how many samples of two values, in rows of many, this is as much work as."""
    samples = sum(piece.samples for piece in rewrite.pieces)
    text = len(rewrite.row.data) if rewrite.row else 0
    return max(samples, text // _SAMPLE_BYTES, len(rewrite.pieces) * _ROW_SAMPLES)


def _is_past(hour: int, arrived_ms: int | None, now_ms: int) -> bool:
    """Return True if the hour is past in which most samples of an hour arrive: their own; of what comes late, that in
    which the first of them came; of what is dated ahead, the one after that."""
    if arrived_ms is None or arrived_ms > now_ms + HOUR_MS:  # the clock of this machine was set back
        return True
    arrived = (arrived_ms - _GRACE_MS) // HOUR_MS
    return (min(max(arrived, hour), arrived + 1) + 1) * HOUR_MS + _GRACE_MS <= now_ms


def _runs(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield runs of rows, which are in the order of seq: alike, and none missing between them."""
    run: list[Piece] = []
    for piece in pieces:
        if run and _follows(run[-1], piece):
            run.append(piece)
        else:
            if run:
                yield run
            run = [piece]
    if run:
        yield run


def _follows(one: Piece, other: Piece) -> bool:
    return one.first + one.samples == other.first and one.shape == other.shape and one.clock == other.clock


def _neighbours(db: sqlite3.Connection, group: Group, run: Sequence[Piece]) -> list[Piece]:
    """Return the chunk right before a run and the one right after it, as far as they are like it."""
    begin_ms = group.hour * HOUR_MS
    rows = db.execute(
        f"SELECT {_PIECE} FROM chunks WHERE node = ? AND low >= ? AND low < ? AND epoch = ?"
        " AND (first + count = ? OR first = ?)",
        (group.node, begin_ms, begin_ms + HOUR_MS, group.epoch, run[0].first, run[-1].first + run[-1].samples),
    )
    found = [Piece("chunks", *row) for row in rows]
    return [piece for piece in found if _follows(piece, run[0]) or _follows(run[-1], piece)]


def _bins(pieces: Iterable[Piece], most: int) -> Iterator[list[Piece]]:
    """Yield the rows of each chunk, of `most` samples at most: as many as there is room for."""
    found: list[Piece] = []
    count = 0
    for piece in pieces:
        if found and count + piece.samples > most:
            yield found
            found, count = [], 0
        found.append(piece)
        count += piece.samples
    yield found


def _read(db: sqlite3.Connection, pieces: Sequence[Piece]) -> Iterator[ChunkRow]:
    """Yield rows with their data, in the order of `pieces`."""
    for start in range(0, len(pieces), _FEW):
        some = pieces[start : start + _FEW]
        rows: dict[tuple[str, int], ChunkRow] = {}
        for table in {piece.table for piece in some}:
            ids = [piece.id for piece in some if piece.table == table]
            marks = ",".join("?" * len(ids))
            for id, *row in db.execute(f"SELECT id, {COLUMNS} FROM {table} WHERE id IN ({marks})", ids):
                rows[table, id] = ChunkRow(*row)
        for piece in some:
            if (piece.table, piece.id) not in rows:
                raise _ChangedError
            yield rows[piece.table, piece.id]


def rewrite(db: sqlite3.Connection, rewrites: Sequence[Rewrite]) -> int:
    """Within the writer's transaction: insert the chunks, and delete what they were made of. Returns the number of
    samples in them; 0, and nothing is done, where a row is not as it was read."""
    if not _are_there(db, rewrites):
        return 0
    count = 0
    for _, pieces, row in rewrites:
        if row is None:
            db.execute(f"INSERT INTO chunks ({COLUMNS}) SELECT {COLUMNS} FROM fresh WHERE id = ?", (pieces[0].id,))
        for table in ("fresh", "chunks"):
            db.executemany(
                f"DELETE FROM {table} WHERE id = ?", [(piece.id,) for piece in pieces if piece.table == table]
            )
        if row is not None:
            db.execute(f"INSERT INTO chunks ({COLUMNS}) VALUES ({MARKS})", row)
        count += sum(piece.samples for piece in pieces)
    return count


def _are_there(db: sqlite3.Connection, rewrites: Sequence[Rewrite]) -> bool:
    """Return True if all rows are as they were read, and the log owes none of them."""
    wanted = {(one.table, one.id): (epoch, one.first, one.samples) for epoch, pieces, _ in rewrites for one in pieces}
    filed = logged(db)
    if any(table == "fresh" and id > filed for table, id in wanted):
        return False
    for table in ("fresh", "chunks"):
        ids = [id for name, id in wanted if name == table]
        for start in range(0, len(ids), _FEW):
            some = ids[start : start + _FEW]
            rows = db.execute(
                f"SELECT id, epoch, first, count FROM {table} WHERE id IN ({','.join('?' * len(some))})", some
            ).fetchall()
            if len(rows) != len(some) or any(wanted[table, row[0]] != row[1:] for row in rows):
                return False
    return True
