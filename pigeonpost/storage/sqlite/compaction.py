"""Compaction: rows of the table `fresh` become rows of `chunks`, each of up to STRETCH_SAMPLES samples.

`next_part` reads and calculates outside of the writer's transaction, on a connection that only reads; the job that it
returns inserts and deletes within one. The job changes exactly the rows that were read, and only what the CSV log no
longer owes: where something has changed meanwhile it does nothing, and it is tried later.

A chunk is a run of consecutive samples of one epoch, hour, shape and clock state. Late rows are merged with a chunk
only when their seqs follow those of the chunk, or precede them. While an hour goes on, chunks of it stay as they are
until they are filled; once it is past they become as few as possible. So each sample is written to chunks at most
twice, and once more where rows come late.
Errors: those of SQLite. A row that cannot be read is moved as it is, where it fits a chunk, and reported to
`on_damage`; those that the CSV log lacks stay.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from pigeonpost.storage.chunks import COLUMNS, MARKS, ChunkRow, unpack
from pigeonpost.storage.models import HOUR_MS, STRETCH_SAMPLES, stretch_samples
from pigeonpost.storage.shapes import ShapeNames
from pigeonpost.storage.sqlite.queries import ROW, UNLOGGED, logged, row_of, unlogged

# After an hour: with a commit once a minute its last rows come late, and the CSV log records some minutes later that
# it has them. What comes after that rewrites the hour.
_GRACE_MS = 360_000
_MOST_FRESH = 50_000  # rows; above, those of the nodes with most are merged although their hours are not past
# Rows of a node; from here on they are merged, since a question about the node reads each of them, in 8 µs. With a
# commit each second, a node of eight samples a second or more fills a chunk before.
_MOST_OF_NODE = 512
_LOOK_ROWS = 128  # that came since the last look, or an eighth of all: then it is worth another one
_MOST_LISTED = 100_000  # of these rows, without their data, in memory: the oldest
_TOGETHER = 65_536  # samples rewritten in one transaction: some tens of milliseconds
_SAMPLE_BYTES = 16  # of text, with two values
_ROW_SAMPLES = 8  # as which each row counts at least: rows of one node are on different pages, each of which is written
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
_NUMBERS = "node", "low", "epoch", "first", "count", "high", "step", "shape", "crc"
_IS_WHOLE = (  # a text counts as 0 in a sum, but is more than all numbers
    f"typeof({' + '.join(_NUMBERS)}) = 'integer' AND typeof(max({', '.join(_NUMBERS)})) = 'integer'"
    " AND typeof(data) = 'text' AND typeof(arrived) IN ('integer', 'null')"
    " AND coalesce(clock, 'unset') IN ('unset', 'server') AND shape IN (SELECT id FROM shapes)"
)
# Nor those that the CSV log lacks.
_MAY_GO = f"id <= ? AND {_IS_WHOLE} AND id NOT IN ({UNLOGGED})"
_HOUR = f"(low / {HOUR_MS} - (low % {HOUR_MS} < 0))"  # rounded down, also before 1970


class Due(Enum):
    """Why rows of `fresh` are rewritten, and what becomes of them."""

    PAST = "their hour is past: they and all chunks of the hour become as few chunks as possible"
    MUCH = "there are too many, of the node or in all: those that fill no chunk become one that is not full"
    FULL = "they fill a chunk"


class Group(NamedTuple):
    """Rows of `fresh` of one node, epoch and hour, in the order of seq."""

    node: int
    epoch: int
    hour: int
    due: Due
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
                    self._take(db, self._groups.popleft())
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
        listed = f"SELECT id FROM fresh WHERE {_MAY_GO} ORDER BY id LIMIT ?"
        (last,) = db.execute(f"SELECT max(id) FROM ({listed})", (filed, _MOST_LISTED)).fetchone()
        if last is None:
            return
        rows = db.execute(
            f"SELECT node, epoch, {_HOUR}, count(*), sum(count), min(arrived) FROM fresh WHERE {_MAY_GO}"
            " GROUP BY 1, 2, 3 ORDER BY 4 DESC",
            (last,),
        ).fetchall()
        self._next = last + max(_LOOK_ROWS, sum(row[3] for row in rows) // 8)
        self._due_ms = (now_ms - _GRACE_MS) // HOUR_MS * HOUR_MS + HOUR_MS + _GRACE_MS
        groups = {key: Group(*key, due, []) for key, due in _due(rows, now_ms).items()}
        if groups:
            for node, epoch, hour, *piece in db.execute(
                f"SELECT node, epoch, {_HOUR}, {_PIECE} FROM fresh WHERE {_MAY_GO} ORDER BY epoch, first",
                (last,),
            ):
                if group := groups.get((node, epoch, hour)):
                    group.pieces.append(Piece("fresh", *piece))
            for key in sorted(groups):  # chunks that are next to each other on the disk are deleted together
                group = groups[key]
                if group.due is Due.MUCH and len(group.pieces) > 1:
                    # It stays, so that the hour is met again when it is past. A single row is moved: it is met again
                    # when others come.
                    del group.pieces[-1]
                self._groups.append(group)

    # -------------------------------------------------------------------------------------- what becomes of it

    def _take(self, db: sqlite3.Connection, group: Group) -> None:
        try:
            self._bins += [(group, pieces) for pieces in _bins_of(db, group)]
        except (ValueError, TypeError, LookupError) as error:  # a changed number: the other groups go on
            self._on_damage(f"rows of epoch {group.epoch} that fit no chunk: {error}")

    def _rewrites(self, db: sqlite3.Connection, group: Group, pieces: Sequence[Piece]) -> list[Rewrite]:
        """Return what becomes of rows of one chunk: those before and behind a damaged one are chunks of their own."""
        if len(pieces) == 1:
            return [Rewrite(group.epoch, pieces, None)] if pieces[0].table == "fresh" else []
        rows = list(_read(db, pieces))
        names = self._names.one(db, pieces[0].shape)
        try:
            return [Rewrite(group.epoch, pieces, _merged(group, rows, names))]
        except (ValueError, TypeError) as error:
            self._on_damage(str(error))
        found: list[Rewrite] = []
        for is_whole, part in groupby(zip(pieces, rows, strict=True), lambda one: _is_readable(one[1], names)):
            some = [piece for piece, _ in part]
            parts = [some] if is_whole and len(some) < len(pieces) else [[piece] for piece in some]
            found += [rewrite for one in parts for rewrite in self._rewrites(db, group, one)]
        return found


def _merged(group: Group, rows: Sequence[ChunkRow], names: Sequence[str]) -> ChunkRow:
    """Return the chunk of several rows. Raises ValueError where one cannot be read."""
    for one, other in pairwise(rows):
        if not one.is_followed_by(other):
            raise ValueError(f"sample {other.first} of epoch {other.epoch} does not follow those before it")
    arrived = [row.arrived for row in rows if row.arrived is not None]
    return ChunkRow.pack(group.node, group.epoch, rows[0].shape, unpack(rows, names), max(arrived, default=None))


def _is_readable(row: ChunkRow, names: Sequence[str]) -> bool:
    try:
        row.unpack(names)
    except (ValueError, TypeError):
        return False
    return True


def _due(rows: Sequence[tuple[Any, ...]], now_ms: int) -> dict[tuple[int, int, int], Due]:
    """Return which groups (node, epoch, hour) are due.

    rows  node, epoch, hour, rows, samples and first arrival of each group; those with most rows first
    """
    of_node: Counter[int] = Counter()
    for node, _, _, count, _, _ in rows:
        of_node[node] += count
    excess = sum(of_node.values()) - _MOST_FRESH
    left = excess + _MOST_FRESH // 2
    found: dict[tuple[int, int, int], Due] = {}
    for node, epoch, hour, count, samples, arrived_ms in rows:
        if _is_past(hour, arrived_ms, now_ms):
            due = Due.PAST
        elif of_node[node] >= _MOST_OF_NODE or (excess > 0 and left > 0):
            due = Due.MUCH
        elif samples >= STRETCH_SAMPLES:
            due = Due.FULL
        else:
            continue
        if due is not Due.FULL:
            left -= count
        found[node, epoch, hour] = due
    return found


def _bins_of(db: sqlite3.Connection, group: Group) -> Iterator[list[Piece]]:
    """Yield the rows of each chunk that is to be made of a group and of the chunks of its hour.

    A chunk that is not full is rewritten where that fills it, and when the hour is past, but not because more came: so
    a sample is written twice, and not once more with each part of the hour.
    """
    for run in _runs(sorted([*group.pieces, *_chunks(db, group)], key=lambda piece: piece.first)):
        (sensors,) = db.execute("SELECT json_array_length(names) FROM shapes WHERE id = ?", (run[0].shape,)).fetchone()
        most = min(STRETCH_SAMPLES, stretch_samples(sensors))
        bins = list(_bins(run, most))
        if group.due is not Due.PAST and sum(piece.samples for piece in bins[-1]) < most:
            rest = bins.pop()
            if group.due is Due.MUCH:
                bins += [list(pieces) for table, pieces in groupby(rest, lambda piece: piece.table) if table == "fresh"]
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


def _chunks(db: sqlite3.Connection, group: Group) -> list[Piece]:
    """Return the chunks that are there of a group's hour."""
    begin_ms = group.hour * HOUR_MS
    rows = db.execute(
        f"SELECT {_PIECE} FROM chunks WHERE node = ? AND low >= ? AND low < ? AND epoch = ? AND {_IS_WHOLE}",
        (group.node, begin_ms, begin_ms + HOUR_MS, group.epoch),
    )
    return [Piece("chunks", *row) for row in rows]


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
            for id, *row in db.execute(f"SELECT id, {ROW} FROM {table} WHERE id IN ({marks})", ids):
                rows[table, id] = row_of(row)
        for piece in some:
            if (piece.table, piece.id) not in rows:
                raise _ChangedError
            yield rows[piece.table, piece.id]


def rewrite(db: sqlite3.Connection, rewrites: Sequence[Rewrite]) -> int:
    """Within the writer's transaction: insert the chunks, and delete what they were made of. Returns the number of
    samples in them; 0, and nothing is done, where a row is not as it was read."""
    gone = sorted((piece, one.epoch) for one in rewrites for piece in one.pieces)  # in the order of the pages
    if not _are_there(db, gone):
        return 0
    for _, pieces, row in rewrites:
        if row is None:
            db.execute(f"INSERT INTO chunks ({COLUMNS}) SELECT {COLUMNS} FROM fresh WHERE id = ?", (pieces[0].id,))
    for table in ("fresh", "chunks"):
        db.executemany(f"DELETE FROM {table} WHERE id = ?", [(piece.id,) for piece, _ in gone if piece.table == table])
    db.executemany(
        f"INSERT INTO chunks ({COLUMNS}) VALUES ({MARKS})", [row for _, _, row in rewrites if row is not None]
    )
    return sum(piece.samples for piece, _ in gone)


def _are_there(db: sqlite3.Connection, gone: Sequence[tuple[Piece, int]]) -> bool:
    """Return True if all rows, each with its epoch, are as they were read, and the log owes none of them."""
    filed, lacking = logged(db), unlogged(db)
    for table in ("fresh", "chunks"):
        wanted = [(one.id, epoch, one.first, one.samples) for one, epoch in gone if one.table == table]
        if table == "fresh" and any(id > filed or id in lacking for id, *_ in wanted):
            return False
        for start in range(0, len(wanted), _FEW):
            some = wanted[start : start + _FEW]
            query = f"SELECT id, epoch, first, count FROM {table} WHERE id IN ({','.join('?' * len(some))}) ORDER BY id"
            if db.execute(query, [id for id, *_ in some]).fetchall() != some:
                return False
    return True
