"""Read queries of the SQLite store: marks, rows owed to the CSV log, gaps. Functions on an open connection.

Errors: those of SQLite.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from pigeonpost.link.samples import Gap, Sample, batches_of
from pigeonpost.storage.models import HighWaterMark, LogEntry


def mark(db: sqlite3.Connection, node: str, epoch: str) -> HighWaterMark | None:
    """Return the mark of an epoch; None where the epoch is not stored."""
    row = db.execute(
        "SELECT seq, up FROM epochs WHERE node = (SELECT id FROM nodes WHERE name = ?) AND epoch = ?", (node, epoch)
    ).fetchone()
    return HighWaterMark(*row) if row else None


def logged(db: sqlite3.Connection, id: int) -> LogEntry:
    """Return what the CSV log owes under a filing number, for Store.logged_after."""
    node, name, epoch, code, first, last, low, high, gap = db.execute(
        "SELECT n.id, n.name, e.id, e.epoch, f.first, f.last, f.low, f.high, f.gap FROM filings f"
        " JOIN epochs e ON e.id = f.epoch JOIN nodes n ON n.id = e.node WHERE f.id = ?",
        (id,),
    ).fetchone()
    units = dict(db.execute("SELECT name, unit FROM sensors WHERE node = ?", (node,)))
    if gap is not None:
        *gap, noted_ms = db.execute("SELECT first, last, before, why, noted FROM gaps WHERE id = ?", (gap,)).fetchone()
        return LogEntry(id, name, code, [Gap(*gap)], noted_ms, units)
    samples = [
        Sample(seq, time_ms, 0, dict(zip(json.loads(names), json.loads(values))), {}, clock or "")
        for seq, time_ms, names, values, clock in db.execute(
            'SELECT s.seq, s.time, p.names, s."values", s.clock FROM samples s JOIN shapes p ON p.id = s.shape'
            " WHERE s.node = ? AND s.time BETWEEN ? AND ? AND s.epoch = ? AND s.seq BETWEEN ? AND ? ORDER BY s.seq",
            (node, low, high, epoch, first, last),
        )
    ]
    return LogEntry(id, name, code, batches_of(samples), 0, units)


def gaps(db: sqlite3.Connection, limit: int) -> list[dict[str, Any]]:
    """Return the newest gaps, for Store.gaps."""
    rows = db.execute(
        "SELECT n.name, e.epoch, g.first, g.last, g.before, g.why, g.noted FROM gaps g"
        " JOIN epochs e ON e.id = g.epoch JOIN nodes n ON n.id = e.node ORDER BY g.id DESC LIMIT ?",
        (limit,),
    ).fetchall()
    return [dict(zip(("node", "epoch", "from", "to", "before", "why", "noted_ms"), row)) for row in rows]
