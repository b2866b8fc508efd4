"""Queries of the SQLite store for high-water marks, rows that the CSV log lacks, and gaps.

The functions work on an open connection. Errors: sqlite3.Error.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from pigeonpost.link.samples import Gap, SampleBatch
from pigeonpost.storage.chunks import COLUMNS, ChunkRow
from pigeonpost.storage.models import EpochCommit, EpochMark, HighWaterMark, LogEntry, LogMark, LostRows
from pigeonpost.storage.shapes import ShapeNames

_MOST_MISSING = 16  # missing filing numbers reported at a time: a changed id may leave a hole of any size
ROW = f"{COLUMNS.removesuffix(', data')}, CAST(data AS BLOB)"  # for `row_of`


def row_of(columns: Iterable[Any]) -> ChunkRow:
    """Return a row from the values of its `columns`, which a query with ROW has read.

    The data are read as bytes, because text that is not valid UTF-8 would end the query, and would count as damage of
    all rows of that query. Here invalid bytes only make this row differ from its checksum.
    """
    *rest, data = columns
    return ChunkRow._make((*rest, (data or b"").decode(errors="replace")))


def identity(db: sqlite3.Connection) -> str:
    """Return the identity of the store in `db`, or an empty string if it has none."""
    row = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
    return str(row[0]) if row else ""


def mark(db: sqlite3.Connection, node: str, epoch: str) -> HighWaterMark | None:
    """Return the high-water mark of `epoch` of the node named `node` in `db`, or None if the epoch is not stored."""
    row = db.execute(
        "SELECT seq, up FROM epochs WHERE node = (SELECT id FROM nodes WHERE name = ?) AND epoch = ?", (node, epoch)
    ).fetchone()
    return HighWaterMark(*row) if row else None


def epoch_marks(db: sqlite3.Connection) -> dict[tuple[str, str], EpochMark]:
    """Return the marks of all epochs in `db`, by (node, epoch)."""
    rows = db.execute(
        "SELECT n.name, e.epoch, e.seq, coalesce(e.outbox, '') FROM epochs e JOIN nodes n ON n.id = e.node"
    )
    return {(node, epoch): EpochMark(*mark) for node, epoch, *mark in rows}


def top(db: sqlite3.Connection, node: str, outbox: str) -> int:
    """Return the highest stored running number of `outbox` of the node named `node` in `db`, or 0 if there is none."""
    of_node = "WHERE node = (SELECT id FROM nodes WHERE name = ?1) AND outbox = ?2"
    (found,) = db.execute(
        f"SELECT max(top) FROM (SELECT top FROM outboxes {of_node} UNION ALL SELECT top FROM epochs {of_node})",
        (node, outbox),
    ).fetchone()
    return found or 0


def put_mark(db: sqlite3.Connection, node: int, epoch_commit: EpochCommit) -> int:
    """Store the high-water mark of an epoch and the running number of its outbox, within the writer's transaction.

    Args:
        db: The writer's connection.
        node: Id of the node.
        epoch_commit: Epoch, mark and running number.

    Returns:
        The id of the epoch.
    """
    # The running number of the current outbox is in the epoch's own row: each commit then writes one page less.
    outbox, top = (epoch_commit.outbox, epoch_commit.top) if epoch_commit.top else (None, 0)
    db.execute(
        "INSERT INTO outboxes SELECT node, outbox, top FROM epochs WHERE node = ? AND epoch = ? AND outbox != ?"
        " ON CONFLICT DO UPDATE SET top = max(top, excluded.top)",
        (node, epoch_commit.epoch, outbox),
    )
    (epoch,) = db.execute(
        "INSERT INTO epochs (node, epoch, seq, up, outbox, top) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET seq = excluded.seq, up = excluded.up,"
        " top = CASE WHEN excluded.outbox IS NULL THEN top WHEN outbox = excluded.outbox"
        " THEN max(top, excluded.top) ELSE excluded.top END,"
        " outbox = coalesce(excluded.outbox, outbox) RETURNING id",
        (node, epoch_commit.epoch, *epoch_commit.mark, outbox, top),
    ).fetchone()
    return int(epoch)


def last_filed(db: sqlite3.Connection) -> int:
    """Return the last filing number in use in `db`: see the module `store`."""
    (found,) = db.execute(
        "SELECT max(coalesce((SELECT max(id) FROM fresh), 0), coalesce((SELECT max(id) FROM gaps), 0),"
        " coalesce((SELECT max(filed) FROM logs), 0))"
    ).fetchone()
    return int(found)


# Damaged rows that the CSV log lacks, although later rows are written to it. They stay in their table. If this list is
# damaged itself, the readable part of it is used, so that all other work continues: see `unlogged_fault`.
_LIST = "SELECT CASE WHEN typeof(value) = 'text' AND json_valid(value) THEN value END FROM meta WHERE key = 'unlogged'"
UNLOGGED = f"SELECT value FROM json_each(({_LIST})) WHERE typeof(value) = 'integer'"


def unlogged(db: sqlite3.Connection) -> frozenset[int]:
    """Return the filing numbers in the list of damaged rows that the CSV log lacks, as recorded in `db`."""
    return frozenset([id for (id,) in db.execute(UNLOGGED)])


def unlogged_fault(db: sqlite3.Connection) -> str:
    """Return a description of the fault of the list that `unlogged` reads from `db`, or an empty string."""
    row = db.execute("SELECT CAST(value AS BLOB) FROM meta WHERE key = 'unlogged'").fetchone()
    is_valid = row is None or row[0] == json.dumps(sorted(unlogged(db))).encode()
    return "" if is_valid else "meta: the list of rows that the CSV log lacks is invalid"


def put_log_mark(db: sqlite3.Connection, log: LogMark, lacking: frozenset[int]) -> None:
    """Store the position up to which the CSV log is written, within the writer's transaction.

    Args:
        db: The writer's connection.
        log: Name and size of the log, and the filing number up to which it is written.
        lacking: Filing numbers up to that number that the log lacks.
    """
    # INSERT OR REPLACE gives the new log the highest id, even if it has the name of an older log that was moved away.
    newest = "name = ? AND id = (SELECT max(id) FROM logs)"
    same = db.execute(f"UPDATE logs SET size = ?, tail = ?, filed = ? WHERE {newest}", (*log[1:], log[0]))
    if not same.rowcount:
        db.execute("INSERT OR REPLACE INTO logs (name, size, tail, filed) VALUES (?, ?, ?, ?)", log)
    if lacking != unlogged(db):
        db.execute("INSERT OR REPLACE INTO meta VALUES ('unlogged', ?)", (json.dumps(sorted(lacking)),))


def log_mark(db: sqlite3.Connection) -> LogMark | None:
    """Return the recorded position of the CSV log in `db`, or None if there was never a log. For Store.log_mark."""
    row = db.execute("SELECT name, size, tail, filed FROM logs ORDER BY id DESC LIMIT 1").fetchone()
    return LogMark(*row) if row else None


def logged(db: sqlite3.Connection) -> int:
    """Return the filing number up to which `db` records the CSV log as written, or 0 if there was never a log."""
    mark = log_mark(db)
    return mark.filed if mark else 0


def pending_after(db: sqlite3.Connection, filed: int) -> list[tuple[int, bool]]:
    """Return the filing numbers in `db` that the CSV log lacks: those after `filed`, then those of `unlogged`.

    Each filing number is in a pair with True if it belongs to a gap, or with False if it belongs to samples.
    """
    late = unlogged(db)
    found = dict.fromkeys(late, False)
    for table, is_gap in (("fresh", False), ("gaps", True)):
        query = f"SELECT id FROM {table} WHERE id > ? OR id IN ({UNLOGGED})"
        found.update(dict.fromkeys([id for (id,) in db.execute(query, (filed,))], is_gap))
    # Filing numbers are consecutive. A missing one was changed in a damaged page, so its row is not found under it. The
    # number that follows a large hole is the changed one.
    expected = max(filed, logged(db)) + 1
    for id in sorted(id for id in found if id >= expected):
        if id - expected <= _MOST_MISSING:
            found |= dict.fromkeys(range(expected, id), False)
        expected = id + 1
    return sorted(found.items(), key=lambda one: (one[0] in late, one[0]))


def entries(
    db: sqlite3.Connection, shapes: ShapeNames, pending: Iterable[tuple[int, bool]], on_damage: Callable[[str], object]
) -> list[LogEntry]:
    """Return the entries that the CSV log lacks, for Store.logged_after.

    A missing or damaged row (ValueError, TypeError or LookupError) is reported, and its entry has no items.

    Args:
        db: Connection with a snapshot.
        shapes: Cache of the shapes' sensor names.
        pending: Result of `pending_after`, or a part of it.
        on_damage: Called with a text for each missing or damaged row.
    """
    found: list[LogEntry] = []
    for id, is_gap in pending:
        try:
            entry = _logged(db, shapes, id, is_gap)
            if entry is None and (id > logged(db) or id in unlogged(db)):
                raise LookupError("its row is missing")
        except (ValueError, TypeError, LookupError) as error:
            entry = _damaged(db, id, is_gap)
            on_damage(f"filing number {id} of node {entry.node or 'unknown'}, which the CSV log may lack: {error}")
        if entry is not None:  # None: it was logged in the meantime, and moved to a chunk
            found.append(entry)
    return found


def lost(id: int) -> LogEntry:
    """Return the entry with the filing number `id` for a row that cannot be read at all."""
    return LogEntry(id, "", "", (), 0, {}, LostRows("", 0, 0, 0))


def _damaged(db: sqlite3.Connection, id: int, is_gap: bool) -> LogEntry:
    """Return the entry of a damaged row, with the parts that can still be read."""
    lines = "count * (SELECT json_array_length(names) FROM shapes WHERE id = shape), low, high FROM fresh"
    row = db.execute(
        f"SELECT n.name, e.epoch, {'1, noted, noted FROM gaps' if is_gap else lines} o"
        " LEFT JOIN epochs e ON e.id = o.epoch LEFT JOIN nodes n ON n.id = e.node WHERE o.id = ?",
        (id,),
    ).fetchone()
    if row is None:
        return lost(id)
    name, code, *numbers = row
    rows = LostRows(name or "", *(numbers if all(type(number) is int for number in numbers) else (0, 0, 0)))
    return LogEntry(id, rows.node, code or "", (), 0, {}, rows)


def _logged(db: sqlite3.Connection, shapes: ShapeNames, id: int, is_gap: bool) -> LogEntry | None:
    """Return one entry, or None if its row is not in `fresh`."""
    item: SampleBatch | Gap
    noted_ms = 0
    if is_gap:
        query = "SELECT epoch, noted, first, last, before, why FROM gaps WHERE id = ?"
        epoch, noted_ms, *gap = db.execute(query, (id,)).fetchone()
        item = Gap(*gap)
    else:
        found = db.execute(f"SELECT {ROW} FROM fresh WHERE id = ?", (id,)).fetchone()
        if found is None:
            return None
        row = row_of(found)
        epoch, item = row.epoch, row.unpack(shapes.one(db, row.shape))
    node, name, code = db.execute(
        "SELECT n.id, n.name, e.epoch FROM epochs e JOIN nodes n ON n.id = e.node WHERE e.id = ?", (epoch,)
    ).fetchone()
    units = dict(db.execute("SELECT name, unit FROM sensors WHERE node = ?", (node,)))
    return LogEntry(id, name, code, [item], noted_ms, units)


def gaps(db: sqlite3.Connection, limit: int) -> list[dict[str, Any]]:
    """Return the newest `limit` gaps in `db` (all if it is -1), for Store.gaps."""
    rows = db.execute(
        "SELECT n.name, e.epoch, g.first, g.last, g.before, g.why, g.noted FROM gaps g"
        " JOIN epochs e ON e.id = g.epoch JOIN nodes n ON n.id = e.node ORDER BY g.id DESC LIMIT ?",
        (limit,),
    ).fetchall()
    return [dict(zip(("node", "epoch", "from", "to", "before", "why", "noted_ms"), row)) for row in rows]
