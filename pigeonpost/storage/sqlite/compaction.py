"""Compaction: turns rows of the table `fresh` into rows of `chunks`, each of up to STRETCH_SAMPLES samples.

`next_part` reads and calculates on a read-only connection, outside the writer's transaction. The job that it returns
inserts and deletes within a transaction. The job changes exactly the rows that were read, and none that the CSV log
still lacks. If any row has changed since it was read, the job does nothing, and compaction tries again later.

A chunk is a run of consecutive samples of one epoch, hour, shape (list of sensors) and clock state. Late rows are
merged with a chunk only if their sequence numbers directly follow or precede those of the chunk. During its hour a
chunk is rewritten only if the rewrite fills it. After the hour all rows of the hour become as few chunks as possible.
So each sample is written to `chunks` at most twice, and once more if rows of its hour arrive late.

Errors: sqlite3.Error. A row whose data cannot be read is moved to `chunks` unchanged, and is reported to `on_damage`.
Rows with columns of an invalid type, and rows that the CSV log lacks, stay in `fresh`.
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

# Delay after the end of an hour. With one commit per minute the last rows of the hour arrive late, and the CSV log
# records only minutes later that it contains them. Rows that arrive after this delay rewrite the hour.
_GRACE_MS = 360_000
# Limit for the rows of all nodes. Beyond it, the nodes with the most rows are compacted before their hour is over.
_MOST_FRESH = 50_000
# Limit for the rows of one node. Beyond it, they are compacted before their hour is over, because each query about the
# node reads all of them, which takes 8 µs per row. With one commit per second, a node that sends eight samples per
# second or more fills a chunk before it reaches this limit.
_MOST_OF_NODE = 512
_LOOK_ROWS = 128  # new rows before the next search for work, or an eighth of all rows if that is more
_MOST_LISTED = 100_000  # maximum number of rows that one search lists in memory, without their data, oldest first
_TOGETHER = 65_536  # samples rewritten in one transaction, which then takes a few tens of milliseconds
_SAMPLE_BYTES = 16  # length of the text of a sample with two values
_ROW_SAMPLES = 8  # minimum cost of a row, in samples: each row of a node is on a page of its own, which is written too
_FEW = 64  # rows looked up in one query


class _ChangedError(Exception):
    """A row that was listed no longer exists."""


class Piece(NamedTuple):
    """A row of `fresh` or `chunks`, without its data.

    Attributes:
        table: Name of the table.
        id: Id of the row.
        first: Sequence number of its first sample.
        samples: Number of samples.
        shape: Id of the shape.
        clock: Clock state, or None for the node's own clock.
    """

    table: str
    id: int
    first: int
    samples: int
    shape: int
    clock: str | None


_PIECE = "id, first, count, shape, clock"
# Rows with columns of an invalid type, or of an unknown shape, stay where they are; `verify` reports them.
_NUMBERS = "node", "low", "epoch", "first", "count", "high", "step", "shape", "crc"
# Text counts as 0 in a sum, but max() ranks it above every number: so the types of both results are checked.
_IS_WHOLE = (
    f"typeof({' + '.join(_NUMBERS)}) = 'integer' AND typeof(max({', '.join(_NUMBERS)})) = 'integer'"
    " AND typeof(data) = 'text' AND typeof(arrived) IN ('integer', 'null')"
    " AND coalesce(clock, 'unset') IN ('unset', 'server') AND shape IN (SELECT id FROM shapes)"
)
# Rows that the CSV log lacks stay too.
_MAY_GO = f"id <= ? AND {_IS_WHOLE} AND id NOT IN ({UNLOGGED})"
_HOUR = f"(low / {HOUR_MS} - (low % {HOUR_MS} < 0))"  # rounded down, also before 1970


class Due(Enum):
    """Reason why rows of `fresh` are rewritten. The values describe the result."""

    PAST = "the hour is over: its rows and chunks become as few chunks as possible"
    MUCH = "the node or the table has too many rows: they become full chunks and a partly filled one"
    FULL = "there are enough rows for a full chunk: only full chunks are made"


class Group(NamedTuple):
    """Rows of `fresh` of one node, epoch and hour, in the order of their sequence numbers.

    Attributes:
        node: Id of the node.
        epoch: Id of the epoch.
        hour: Number of the hour since 1970 (UTC).
        due: Reason for the rewrite.
        pieces: The rows.
    """

    node: int
    epoch: int
    hour: int
    due: Due
    pieces: list[Piece]


class Rewrite(NamedTuple):
    """Rows that become one chunk.

    Attributes:
        epoch: Id of the epoch.
        pieces: The rows, in the order of their sequence numbers.
        row: The chunk, or None if a single row is moved unchanged.
    """

    epoch: int
    pieces: Sequence[Piece]
    row: ChunkRow | None


class Compactor:
    """Finds the rows to compact, and prepares the chunks one part at a time. Used by one thread.

    Args:
        names: Cache of the shapes' sensor names.
        on_damage: Called with a text for each damaged row.
    """

    def __init__(self, names: ShapeNames, on_damage: Callable[[str], object]) -> None:
        self._names = names
        self._on_damage = on_damage
        self._groups: deque[Group] = deque()  # groups to compact, whose rows are not yet divided into chunks
        self._bins: deque[tuple[Group, list[Piece]]] = deque()  # the rows of each new chunk
        # The next search for work begins when a row has the id `_next`, or at the time `_due_ms` (ms since 1970, UTC).
        self._next = self._due_ms = 0

    def next_part(self, db: sqlite3.Connection, now_ms: int) -> list[Rewrite]:
        """Return the next rows to rewrite, or an empty list if there are none.

        Args:
            db: Read-only connection with a snapshot.
            now_ms: Current time in milliseconds since 1970 (UTC).
        """
        if not self._groups and not self._bins:
            self._search(db, now_ms)
        found: list[Rewrite] = []
        count = 0
        try:
            while count < _TOGETHER and (self._bins or self._groups):
                if not self._bins:
                    self._divide(db, self._groups.popleft())
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
        """Discard the prepared work and search again: the rows have changed since they were read."""
        self._groups.clear()
        self._bins.clear()
        self._next = self._due_ms = 0

    # ---------------------------------------------------------------------------------------- search for work

    def _search(self, db: sqlite3.Connection, now_ms: int) -> None:
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
            for key in sorted(groups):  # in this order, chunks that are adjacent on the disk are deleted together
                group = groups[key]
                if group.due is Due.MUCH and len(group.pieces) > 1:
                    # The last row stays in `fresh`, so that a search after the end of the hour finds this hour again. A
                    # single row is moved, because only further rows can make another rewrite of the hour useful.
                    del group.pieces[-1]
                self._groups.append(group)

    # ------------------------------------------------------------------------------------ preparation of chunks

    def _divide(self, db: sqlite3.Connection, group: Group) -> None:
        """Divide the rows of a group into chunks."""
        try:
            self._bins += [(group, pieces) for pieces in _bins_of(db, group)]
        # A number was changed on the disk: continue with the other groups.
        except (ValueError, TypeError, LookupError) as error:
            self._on_damage(f"rows of epoch {group.epoch} cannot be divided into chunks: {error}")

    def _rewrites(self, db: sqlite3.Connection, group: Group, pieces: Sequence[Piece]) -> list[Rewrite]:
        """Return the rewrites for the rows of one chunk.

        If one of the rows is damaged, the rows before and after it become chunks of their own.
        """
        if len(pieces) == 1:
            return [Rewrite(group.epoch, pieces, None)] if pieces[0].table == "fresh" else []
        rows = list(_read(db, pieces))
        names = self._names.one(db, pieces[0].shape)
        try:
            return [Rewrite(group.epoch, pieces, _merged(group, rows, names))]
        except (ValueError, TypeError) as error:
            self._on_damage(str(error))
        found: list[Rewrite] = []
        for is_readable, part in groupby(zip(pieces, rows, strict=True), lambda one: _is_readable(one[1], names)):
            some = [piece for piece, _ in part]
            parts = [some] if is_readable and len(some) < len(pieces) else [[piece] for piece in some]
            found += [rewrite for one in parts for rewrite in self._rewrites(db, group, one)]
        return found


def _merged(group: Group, rows: Sequence[ChunkRow], names: Sequence[str]) -> ChunkRow:
    """Return the chunk made of several rows. Raise ValueError if one of them cannot be read."""
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
    """Return the groups (node, epoch, hour) to compact, each with its reason.

    Args:
        rows: (node, epoch, hour, number of rows, number of samples, first arrival) of each group; those with the most
            rows first.
        now_ms: Current time in milliseconds since 1970 (UTC).
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
    """Yield the rows of each new chunk, from a group and from the existing chunks of its hour.

    During its hour a chunk is rewritten only if the rewrite fills it. Otherwise each part of the hour that arrives
    would rewrite all earlier samples of the hour.
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
    """Return the cost of a rewrite as an equivalent number of samples with two values."""
    samples = sum(piece.samples for piece in rewrite.pieces)
    text = len(rewrite.row.data) if rewrite.row else 0
    return max(samples, text // _SAMPLE_BYTES, len(rewrite.pieces) * _ROW_SAMPLES)


def _is_past(hour: int, arrived_ms: int | None, now_ms: int) -> bool:
    """Return True if the hour in which most of a group's samples arrive is over.

    For samples that arrive in time this is their own hour. For late samples it is the hour in which the first of them
    arrived. For samples with future times it is the hour after their arrival.
    """
    if arrived_ms is None or arrived_ms > now_ms + HOUR_MS:  # the clock of this machine was set back since
        return True
    arrived = (arrived_ms - _GRACE_MS) // HOUR_MS
    return (min(max(arrived, hour), arrived + 1) + 1) * HOUR_MS + _GRACE_MS <= now_ms


def _runs(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield runs of rows: consecutive, with the same shape and clock state. `pieces` are in the order of seq."""
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
    """Return the existing chunks of a group's hour."""
    begin_ms = group.hour * HOUR_MS
    rows = db.execute(
        f"SELECT {_PIECE} FROM chunks WHERE node = ? AND low >= ? AND low < ? AND epoch = ? AND {_IS_WHOLE}",
        (group.node, begin_ms, begin_ms + HOUR_MS, group.epoch),
    )
    return [Piece("chunks", *row) for row in rows]


def _bins(pieces: Iterable[Piece], most: int) -> Iterator[list[Piece]]:
    """Yield the rows of each chunk: as many rows as fit into `most` samples."""
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
    """Yield the rows with their data, in the order of `pieces`."""
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
    """Insert the chunks and delete the rows that they were made of, within the writer's transaction.

    Args:
        db: The writer's connection.
        rewrites: Rewrites that `Compactor.next_part` returned.

    Returns:
        The number of samples in the chunks, or 0 if a row has changed since it was read; then nothing was changed.
    """
    # In the order of their pages in the file.
    old_rows = sorted((piece, one.epoch) for one in rewrites for piece in one.pieces)
    if not _are_unchanged(db, old_rows):
        return 0
    for _, pieces, row in rewrites:
        if row is None:
            db.execute(f"INSERT INTO chunks ({COLUMNS}) SELECT {COLUMNS} FROM fresh WHERE id = ?", (pieces[0].id,))
    for table in ("fresh", "chunks"):
        db.executemany(
            f"DELETE FROM {table} WHERE id = ?", [(piece.id,) for piece, _ in old_rows if piece.table == table]
        )
    db.executemany(
        f"INSERT INTO chunks ({COLUMNS}) VALUES ({MARKS})", [row for _, _, row in rewrites if row is not None]
    )
    return sum(piece.samples for piece, _ in old_rows)


def _are_unchanged(db: sqlite3.Connection, old_rows: Sequence[tuple[Piece, int]]) -> bool:
    """Return True if all rows are as they were read, and the CSV log lacks none of them.

    `old_rows` are pairs of a row and the id of its epoch.
    """
    filed, lacking = logged(db), unlogged(db)
    for table in ("fresh", "chunks"):
        expected = [(one.id, epoch, one.first, one.samples) for one, epoch in old_rows if one.table == table]
        if table == "fresh" and any(id > filed or id in lacking for id, *_ in expected):
            return False
        for start in range(0, len(expected), _FEW):
            some = expected[start : start + _FEW]
            query = f"SELECT id, epoch, first, count FROM {table} WHERE id IN ({','.join('?' * len(some))}) ORDER BY id"
            if db.execute(query, [id for id, *_ in some]).fetchall() != some:
                return False
    return True
