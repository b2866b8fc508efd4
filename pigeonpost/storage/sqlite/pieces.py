"""Check of everything in the SQLite file: in pieces beside the work, and at once. Functions on open connections.

Each sample must be in exactly one row of `fresh` or `chunks`: the ranges of an epoch, with those of its gaps, neither
overlap nor leave holes, but for as many samples as were deleted. Each row must be as it was written, and found by the
indexes.
Errors: those of SQLite.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import groupby
from operator import itemgetter
from typing import Any

from pigeonpost.storage.chunks import ChunkRow
from pigeonpost.storage.models import HOUR_MS, STRETCH_SAMPLES
from pigeonpost.storage.shapes import ShapeNames
from pigeonpost.storage.sqlite.queries import ROW, row_of

PIECE_ROWS = 1000  # read at once by the check in pieces: some milliseconds
_PIECE_NODES = 64  # of which the ranges of all rows are compared at once
_RUNS = {"fresh": 100, "chunks": 8}  # rows read at once of these, which may be long: some MiB at most
_LARGE = {
    "summaries": ("node", "sensor", "span", '"end"'),
    "unsummed": ("node", "span", '"end"'),
    "failures": ("epoch", "seq", "sensor"),
}
_NUMBERS = {"summaries": ('"values"', "mean", "median", "mode", "low", "high", "deviation")}
OpenDb = Callable[[], AbstractContextManager[sqlite3.Connection]]


def check(open_db: OpenDb) -> Iterator[str]:
    """Read all large tables in pieces. Yields after each: a fault, or "".

    open_db: lends a new connection for one piece: an old one has pages in memory, as they were
    """
    with open_db():
        pass  # which finds a file that was copied over this one, at the cost of a millisecond
    yield ""
    shapes = ShapeNames("?")
    for table, size in _RUNS.items():
        last: int | None = None
        while True:
            with open_db() as db:
                rows = _rows(db, table, last, size)
                fault = next(filter(None, (_row_fault(db, shapes, table, id, row) for id, row in rows)), "")
            ids = [id for id, _ in rows]  # in no checksum; and what is not in its place, SQLite does not find
            yield fault or ("" if ids == sorted(set(ids)) else f"{table}: rows are not in order")
            if len(rows) < size:
                break
            last = rows[-1][0]
    last_node = 0
    while True:
        with open_db() as db:
            nodes = [id for (id,) in db.execute(
                "SELECT id FROM nodes WHERE id > ? ORDER BY id LIMIT ?", (last_node, _PIECE_NODES)
            )]  # fmt: skip
            faults = list(_range_faults(db, nodes[0], nodes[-1])) if nodes else []
        yield from faults or ("",)
        if not nodes:
            break
        last_node = nodes[-1]
    for name, key in _LARGE.items():
        numbers = " AND ".join(f"typeof({column}) IN ('integer', 'real')" for column in _NUMBERS.get(name, ()))
        for found in _walk(open_db, name, key, f"*, {numbers or 1}"):
            yield f"{name}: rows are not in order" if found is None else _odd_row(name, found)


def verify(db: sqlite3.Connection) -> Iterator[str]:
    """Yield the faults of the database, for Store.verify."""
    for (line,) in db.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"SQLite: {line}"
    shapes = ShapeNames("?")
    for table, size in _RUNS.items():
        last: int | None = None
        while rows := _rows(db, table, last, size):
            yield from filter(None, (_row_fault(db, shapes, table, id, row) for id, row in rows))
            last = rows[-1][0]
    yield from _range_faults(db, 0, (1 << 63) - 1)


# -------------------------------------------------------------------------------------------------- rows of samples


def _rows(db: sqlite3.Connection, table: str, last: int | None, size: int) -> list[tuple[int, ChunkRow]]:
    """Return the next rows after the id `last`."""
    query = f"SELECT id, {ROW} FROM {table} WHERE id > ? ORDER BY id LIMIT ?"
    # No cursor stays in a frame: that of an error may live long, and with it the connection, although it was closed.
    rows = db.execute(query, (-(1 << 63) if last is None else last, size)).fetchall()
    return [(id, row_of(row)) for id, *row in rows]


def _row_fault(db: sqlite3.Connection, shapes: ShapeNames, table: str, id: int, row: ChunkRow) -> str:
    """Return what is wrong with a row; empty: nothing."""
    try:
        batch = row.unpack(shapes.one(db, row.shape))
        (owner,) = db.execute("SELECT node FROM epochs WHERE id = ?", (row.epoch,)).fetchone()
        is_ours = (
            (row.low, row.high, row.node) == (min(batch.times), max(batch.times), owner)
            and row.low // HOUR_MS == row.high // HOUR_MS
            and row.count <= STRETCH_SAMPLES
        )
    except (ValueError, TypeError, LookupError) as error:
        return f"{table}: a row that Pigeonpost never writes, {id}: {error}"
    if not is_ours:
        return f"{table}: a row that Pigeonpost never writes, {id}: of node {row.node}, time {row.low}"
    if table == "chunks" and not all(_is_indexed(db, id, row)):
        return f"chunks: row {id} is not in the index"
    return ""


def _is_indexed(db: sqlite3.Connection, id: int, row: ChunkRow) -> Iterator[bool]:
    for index, names in (("chunks_of_node", ("node", "low", "epoch", "first")), ("chunks_by_time", ("low", "id"))):
        where = " AND ".join(f"{name} = ?" for name in names)
        values = [id if name == "id" else getattr(row, name) for name in names]
        yield db.execute(f"SELECT id FROM chunks INDEXED BY {index} WHERE {where}", values).fetchone() == (id,)


def _range_faults(db: sqlite3.Connection, first_node: int, last_node: int) -> Iterator[str]:
    """Compare the ranges of each epoch of these nodes with its mark."""
    nodes = first_node, last_node
    epochs = {
        id: rest
        for id, *rest in db.execute(
            "SELECT e.id, n.name, e.epoch, e.seq, e.forgotten FROM epochs e JOIN nodes n ON n.id = e.node"
            " WHERE e.node BETWEEN ? AND ?",
            nodes,
        )
    }
    cursor = db.execute(
        "SELECT * FROM (SELECT epoch, first, first + count - 1, 0 FROM chunks WHERE node BETWEEN ?1 AND ?2"
        " UNION ALL SELECT epoch, first, first + count - 1, 0 FROM fresh WHERE node BETWEEN ?1 AND ?2"
        " UNION ALL SELECT g.epoch, g.first, g.last, 1 FROM gaps g JOIN epochs e ON e.id = g.epoch"
        "   WHERE e.node BETWEEN ?1 AND ?2) ORDER BY 1, 2",
        nodes,
    )
    with contextlib.closing(cursor):
        for id, of_epoch in groupby(cursor, key=itemgetter(0)):
            if id in epochs:
                yield from _epoch_faults(of_epoch, *epochs.pop(id))
            else:
                yield f"samples of epoch {id}, which there is not"
    for rest in epochs.values():
        yield from _epoch_faults((), *rest)


def _epoch_faults(ranges: Iterable[tuple[Any, ...]], node: str, name: str, mark: int, expired: int) -> Iterator[str]:
    """Yield the faults of the ranges (id, first, last, is_gap) of an epoch, which are in order."""
    where = f"node {node}, epoch {name}"
    samples = missing = twice = 0
    end, is_outside = -(1 << 63), False
    for _, first, last, is_gap in ranges:
        if not type(first) is type(last) is int:
            yield f"{where}: a range that Pigeonpost never writes, {first!r:.50} to {last!r:.50}"
            return
        twice += max(0, min(end, last) - first + 1)
        is_outside = is_outside or first < 1 or last > mark
        if is_gap:
            missing += last - first + 1
        else:
            samples += last - first + 1
        end = max(end, last)
    known = samples + expired - twice
    if twice:
        yield f"{where}: {twice} samples are stored twice"
    if known + missing != mark or is_outside:
        yield f"{where}: {known} samples and {missing} in gaps do not add up to {mark}"


# ---------------------------------------------------------------------------------------------------- other tables


def _odd_row(table: str, rows: list[Any]) -> str:
    return next((f"{table}: a row without its numbers, {row[:4]}" for row in rows if not row[-1]), "")


def _walk(open_db: OpenDb, table: str, key: tuple[str, ...], what: str) -> Iterator[list[Any] | None]:
    """Yield the rows of a table in the order of its key, some at a time; None, as the last, where they have no order.

    what  columns; those of the key come first in the rows
    """
    names, marks = ", ".join(key), ", ".join("?" * len(key))
    last: tuple[Any, ...] | None = None
    while True:
        where = f"WHERE ({names}) > ({marks})" if last is not None else ""
        with open_db() as db:
            query = f"SELECT {what} FROM {table} {where} ORDER BY {names} LIMIT {PIECE_ROWS}"
            found = db.execute(query, last or ()).fetchall()
        for row in found:
            try:
                if last is not None and not last < row[: len(key)]:
                    yield None
                    return
            except TypeError:
                yield None
                return
            last = row[: len(key)]
        yield found
        if len(found) < PIECE_ROWS:
            return
