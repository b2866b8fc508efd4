"""Counts of the SQLite store: nodes with their samples and gaps, usage, verification. Functions on an open connection.

Errors: those of SQLite.

SQLite ends a query with "integer overflow" when a sum of integers leaves 64 bits. A client chooses the numbers of its
epochs and gaps, and stores of before these were limited have any; so every sum of such numbers is that of two halves.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from pigeonpost.storage.contract import MOST_LISTED
from pigeonpost.storage.models import NodeUsage


def _halves(expression: str) -> str:
    """Return SQL for two sums of 32 bits each, which `_whole` makes one number of."""
    return f"coalesce(sum(({expression}) >> 32), 0), coalesce(sum(({expression}) & 4294967295), 0)"


def _whole(high: int, low: int) -> int:
    return (high << 32) + low


def nodes(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """Return what is stored of every node, for Store.nodes."""
    counted = {node: rest for node, *rest in db.execute(
        f"SELECT node, {_halves('seq')}, {_halves('forgotten')} FROM epochs GROUP BY node"
    )}  # fmt: skip
    lost = {node: rest for node, *rest in db.execute(
        f"SELECT e.node, {_halves('g.last - g.first + 1')}, {_halves('g.before')}"
        " FROM gaps g JOIN epochs e ON e.id = g.epoch GROUP BY e.node"
    )}  # fmt: skip
    nothing = (0, 0, 0, 0)
    found = []
    for id, name, kept_from_ms in db.execute("SELECT id, name, kept_from FROM nodes ORDER BY name").fetchall():
        seqs, gaps = counted.get(id, nothing), lost.get(id, nothing)
        within = _whole(*gaps[:2])
        first, last = (
            db.execute(f"SELECT time FROM samples WHERE node = ? ORDER BY time {way} LIMIT 1", (id,)).fetchone()
            for way in ("ASC", "DESC")
        )
        found.append({
            "name": name, "samples": _whole(*seqs[:2]) - within, "missing": within + _whole(*gaps[2:]),
            "forgotten": _whole(*seqs[2:]), "kept_from_ms": kept_from_ms,
            "first_ms": first[0] if first else None, "last_ms": last[0] if last else None,
            "sensors": dict(db.execute(
                "SELECT name, unit FROM sensors WHERE node = ? ORDER BY name LIMIT ?", (id, MOST_LISTED)
            )),
        })  # fmt: skip
    return found


def usage(db: sqlite3.Connection, node: str) -> NodeUsage:
    """Return what is stored of a node, for Store.usage."""
    (count,) = db.execute("SELECT count(*) FROM nodes").fetchone()
    (epochs,) = db.execute(
        "SELECT count(*) FROM epochs WHERE node = (SELECT id FROM nodes WHERE name = ?)", (node,)
    ).fetchone()
    gaps, *missing = db.execute(
        f"SELECT count(*), {_halves('g.last - g.first + 1')}, {_halves('g.before')} FROM gaps g"
        " JOIN epochs e ON e.id = g.epoch WHERE e.node = (SELECT id FROM nodes WHERE name = ?)",
        (node,),
    ).fetchone()
    return NodeUsage(count, epochs, gaps, _whole(*missing[:2]) + _whole(*missing[2:]))


def channels(db: sqlite3.Connection, node: str, most: int) -> set[str]:
    """Return the names of a node's channels, for Store.channels."""
    rows = db.execute(
        "SELECT name FROM sensors WHERE node = (SELECT id FROM nodes WHERE name = ?) ORDER BY name LIMIT ?",
        (node, most),
    )
    return {name for (name,) in rows}


def verify(db: sqlite3.Connection) -> Iterator[str]:
    """Yield the faults of the database, for Store.verify."""
    for (line,) in db.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"SQLite: {line}"
    stored = {
        epoch: rest
        for epoch, *rest in db.execute(
            "SELECT epoch, count(*), count(DISTINCT seq), min(seq), max(seq) FROM samples GROUP BY epoch"
        )
    }
    missing = {
        epoch: _whole(*rest)
        for epoch, *rest in db.execute(f"SELECT epoch, {_halves('last - first + 1')} FROM gaps GROUP BY epoch")
    }
    for id, name, epoch, mark, expired in db.execute(
        "SELECT e.id, n.name, e.epoch, e.seq, e.forgotten FROM epochs e JOIN nodes n ON n.id = e.node"
    ):
        count, distinct, low, high = stored.get(id, (0, 0, 1, 0))
        where = f"node {name}, epoch {epoch}"
        if count != distinct:
            yield f"{where}: {count - distinct} samples are stored twice"
        known = distinct + expired
        if known + missing.get(id, 0) != mark or low < 1 or high > mark:
            yield f"{where}: {known} samples and {missing.get(id, 0)} in gaps do not add up to {mark}"
