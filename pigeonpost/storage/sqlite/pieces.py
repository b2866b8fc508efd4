"""Check of the complete content of the SQLite file, in small pieces while the server is running, or all at once.

Each sample must be in exactly one row of `fresh` or `chunks`. So the ranges of sequence numbers of an epoch's rows and
gaps must not overlap, and must leave no holes except for deleted samples. Each row must be as it was written, and the
indexes must contain it.

The functions work on open connections. Errors: sqlite3.Error.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import groupby
from operator import itemgetter
from typing import Any

from pigeonpost.core.format import counted
from pigeonpost.storage.chunks import ChunkRow
from pigeonpost.storage.models import HOUR_MS, STRETCH_SAMPLES
from pigeonpost.storage.shapes import ShapeNames
from pigeonpost.storage.sqlite.queries import ROW, row_of

PIECE_ROWS = 1000  # rows per piece: a few milliseconds
_PIECE_NODES = 64  # nodes whose ranges are compared in one piece
_RUNS = {"fresh": 100, "chunks": 8}  # rows per query of these tables, whose rows may be long: a few MiB at most
_LARGE = {
    "summaries": ("node", "sensor", "span", '"end"'),
    "unsummed": ("node", "span", '"end"'),
    "failures": ("epoch", "seq", "sensor"),
}
_NUMBERS = {"summaries": ('"values"', "mean", "median", "mode", "low", "high", "deviation")}
OpenDb = Callable[[], AbstractContextManager[sqlite3.Connection]]


def check(open_db: OpenDb) -> Iterator[str]:
    """Read all large tables in pieces.

    Args:
        open_db: Function that lends a new connection for one piece. An older connection may still have pages in memory,
            and would not detect that the file has changed.

    Yields:
        After each piece, the description of a fault, or an empty string.
    """
    with open_db():
        pass  # lending a connection detects, in a millisecond, that another file was copied over this one
    yield ""
    shapes = ShapeNames("?")
    for table, size in _RUNS.items():
        last: int | None = None
        while True:
            with open_db() as db:
                rows = _rows(db, table, last, size)
                fault = next(filter(None, (_row_fault(db, shapes, table, id, row) for id, row in rows)), "")
            # No checksum includes the id, and SQLite does not find a row whose id is out of order.
            ids = [id for id, _ in rows]
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
            yield f"{name}: rows are not in order" if found is None else _number_fault(name, found)


def verify(db: sqlite3.Connection) -> Iterator[str]:
    """Yield the faults of the database `db`, for Store.verify."""
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
    # fetchall, because a cursor in the frame of a stored traceback would keep a closed connection alive.
    rows = db.execute(query, (-(1 << 63) if last is None else last, size)).fetchall()
    return [(id, row_of(row)) for id, *row in rows]


def _row_fault(db: sqlite3.Connection, shapes: ShapeNames, table: str, id: int, row: ChunkRow) -> str:
    """Return a description of the fault of a row, or an empty string if there is none."""
    try:
        batch = row.unpack(shapes.one(db, row.shape))
        (owner,) = db.execute("SELECT node FROM epochs WHERE id = ?", (row.epoch,)).fetchone()
        is_valid = (
            (row.low, row.high, row.node) == (min(batch.times), max(batch.times), owner)
            and row.low // HOUR_MS == row.high // HOUR_MS
            and row.count <= STRETCH_SAMPLES
        )
    except (ValueError, TypeError, LookupError) as error:
        return f"{table}: row {id} is damaged: {error}"
    if not is_valid:
        return f"{table}: row {id} is damaged: node {row.node}, first time {row.low} ms"
    if table == "chunks" and not all(_is_indexed(db, id, row)):
        return f"chunks: row {id} is not in the index"
    return ""


def _is_indexed(db: sqlite3.Connection, id: int, row: ChunkRow) -> Iterator[bool]:
    for index, names in (("chunks_of_node", ("node", "low", "epoch", "first")), ("chunks_by_time", ("low", "id"))):
        where = " AND ".join(f"{name} = ?" for name in names)
        values = [id if name == "id" else getattr(row, name) for name in names]
        yield db.execute(f"SELECT id FROM chunks INDEXED BY {index} WHERE {where}", values).fetchone() == (id,)


def _range_faults(db: sqlite3.Connection, first_node: int, last_node: int) -> Iterator[str]:
    """Yield the faults of the ranges of all epochs of the nodes with the ids from `first_node` to `last_node`."""
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
                yield f"samples of epoch {id}, which does not exist"
    for rest in epochs.values():
        yield from _epoch_faults((), *rest)


def _epoch_faults(ranges: Iterable[tuple[Any, ...]], node: str, name: str, mark: int, expired: int) -> Iterator[str]:
    """Yield the faults of the ranges (id, first, last, is_gap) of an epoch, which are in order."""
    where = f"node {node}, epoch {name}"
    samples = missing = twice = 0
    end, is_outside = -(1 << 63), False
    for _, first, last, is_gap in ranges:
        if not type(first) is type(last) is int:
            yield f"{where}: a range has an invalid sequence number: {first!r:.50} to {last!r:.50}"
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
        yield f"{where}: {counted(twice, 'sample')} stored twice"
    if known + missing != mark or is_outside:
        yield f"{where}: {known} samples and {missing} in gaps do not add up to {mark}"


# ---------------------------------------------------------------------------------------------------- other tables


def _number_fault(table: str, rows: list[Any]) -> str:
    """Return a description of the first row whose numbers are not numbers, or an empty string if there is none."""
    return next((f"{table}: a row has a value that is not a number: {row[:4]}" for row in rows if not row[-1]), "")


def _walk(open_db: OpenDb, table: str, key: tuple[str, ...], columns: str) -> Iterator[list[Any] | None]:
    """Yield the rows of a table in the order of its key, PIECE_ROWS at a time.

    If a row is not in order, yield None and stop. The first of the `columns` to read must be those of the key.
    """
    names, marks = ", ".join(key), ", ".join("?" * len(key))
    last: tuple[Any, ...] | None = None
    while True:
        where = f"WHERE ({names}) > ({marks})" if last is not None else ""
        with open_db() as db:
            query = f"SELECT {columns} FROM {table} {where} ORDER BY {names} LIMIT {PIECE_ROWS}"
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
