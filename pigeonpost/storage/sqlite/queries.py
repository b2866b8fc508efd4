"""Queries of the SQLite store: marks, rows owed to the CSV log, gaps. Functions on an open connection.

Errors: those of SQLite.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from pigeonpost.link.samples import Gap, SampleBatch
from pigeonpost.storage.chunks import COLUMNS, ChunkRow
from pigeonpost.storage.models import EpochCommit, HighWaterMark, LogEntry
from pigeonpost.storage.shapes import ShapeNames


def mark(db: sqlite3.Connection, node: str, epoch: str) -> HighWaterMark | None:
    """Return the mark of an epoch; None where the epoch is not stored."""
    row = db.execute(
        "SELECT seq, up FROM epochs WHERE node = (SELECT id FROM nodes WHERE name = ?) AND epoch = ?", (node, epoch)
    ).fetchone()
    return HighWaterMark(*row) if row else None


def put_mark(db: sqlite3.Connection, node: int, epoch_commit: EpochCommit) -> int:
    """Within the writer's transaction: store the mark of an epoch, and what it says of its outbox. Returns its id."""
    # The epoch's own row has the running number too, which changes with each commit: one page less to write.
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
    """Return the last filing number given: see the module `store`."""
    (found,) = db.execute(
        "SELECT max(coalesce((SELECT max(id) FROM fresh), 0), coalesce((SELECT max(id) FROM gaps), 0),"
        " coalesce((SELECT max(filed) FROM logs), 0))"
    ).fetchone()
    return int(found)


def filed_after(db: sqlite3.Connection, filed: int) -> list[tuple[int, bool]]:
    """Return the filing numbers after `filed`, in their order, each with whether it is a gap's."""
    samples = [(id, False) for (id,) in db.execute("SELECT id FROM fresh WHERE id > ?", (filed,))]
    return sorted(samples + [(id, True) for (id,) in db.execute("SELECT id FROM gaps WHERE id > ?", (filed,))])


def logged(db: sqlite3.Connection, shapes: ShapeNames, id: int, is_gap: bool) -> LogEntry | None:
    """Return what the CSV log owes under a filing number, for Store.logged_after; None: it is owed no longer."""
    item: SampleBatch | Gap
    noted_ms = 0
    if is_gap:
        query = "SELECT epoch, noted, first, last, before, why FROM gaps WHERE id = ?"
        epoch, noted_ms, *gap = db.execute(query, (id,)).fetchone()
        item = Gap(*gap)
    else:
        found = db.execute(f"SELECT {COLUMNS} FROM fresh WHERE id = ?", (id,)).fetchone()
        if found is None:
            return None
        row = ChunkRow(*found)
        epoch, item = row.epoch, row.unpack(shapes.one(db, row.shape))
    node, name, code = db.execute(
        "SELECT n.id, n.name, e.epoch FROM epochs e JOIN nodes n ON n.id = e.node WHERE e.id = ?", (epoch,)
    ).fetchone()
    units = dict(db.execute("SELECT name, unit FROM sensors WHERE node = ?", (node,)))
    return LogEntry(id, name, code, [item], noted_ms, units)


def gaps(db: sqlite3.Connection, limit: int) -> list[dict[str, Any]]:
    """Return the newest gaps, for Store.gaps."""
    rows = db.execute(
        "SELECT n.name, e.epoch, g.first, g.last, g.before, g.why, g.noted FROM gaps g"
        " JOIN epochs e ON e.id = g.epoch JOIN nodes n ON n.id = e.node ORDER BY g.id DESC LIMIT ?",
        (limit,),
    ).fetchall()
    return [dict(zip(("node", "epoch", "from", "to", "before", "why", "noted_ms"), row)) for row in rows]
