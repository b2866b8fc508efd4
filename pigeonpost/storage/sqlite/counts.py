"""Counts of the SQLite store: nodes with their samples and gaps, and usage. Functions on an open connection.

Errors: those of SQLite.

SQLite ends a query with "integer overflow" when a sum of integers leaves 64 bits. A client chooses the numbers of its
epochs and gaps, and stores of before these were limited have any; so every sum of such numbers is that of two halves.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from pigeonpost.storage.contract import MOST_LISTED
from pigeonpost.storage.models import NodeUsage


def halves(expression: str) -> str:
    """Return SQL for two sums of 32 bits each, which `whole` makes one number of."""
    return f"coalesce(sum(({expression}) >> 32), 0), coalesce(sum(({expression}) & 4294967295), 0)"


def whole(high: int, low: int) -> int:
    return (high << 32) + low


def nodes(db: sqlite3.Connection, ends: Callable[[str], tuple[int, int] | None]) -> list[dict[str, Any]]:
    """Return what is stored of every node, for Store.nodes.

    ends  returns the first and the last time of a node's samples; None: it has none
    """
    counted = {node: rest for node, *rest in db.execute(
        f"SELECT node, {halves('seq')}, {halves('forgotten')} FROM epochs GROUP BY node"
    )}  # fmt: skip
    lost = {node: rest for node, *rest in db.execute(
        f"SELECT e.node, {halves('g.last - g.first + 1')}, {halves('g.before')}"
        " FROM gaps g JOIN epochs e ON e.id = g.epoch GROUP BY e.node"
    )}  # fmt: skip
    nothing = (0, 0, 0, 0)
    found = []
    rows = db.execute("SELECT id, name, kept_from, old_edges FROM nodes ORDER BY name").fetchall()
    for id, name, kept_from_ms, old_edges_ms in rows:
        seqs, gaps = counted.get(id, nothing), lost.get(id, nothing)
        within = whole(*gaps[:2])
        first_ms, last_ms = ends(name) or (None, None)
        found.append({
            "name": name, "samples": whole(*seqs[:2]) - within, "missing": within + whole(*gaps[2:]),
            "forgotten": whole(*seqs[2:]), "kept_from_ms": kept_from_ms,
            "old_edges_ms": old_edges_ms, "first_ms": first_ms, "last_ms": last_ms,
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
        f"SELECT count(*), {halves('g.last - g.first + 1')}, {halves('g.before')} FROM gaps g"
        " JOIN epochs e ON e.id = g.epoch WHERE e.node = (SELECT id FROM nodes WHERE name = ?)",
        (node,),
    ).fetchone()
    return NodeUsage(count, epochs, gaps, whole(*missing[:2]) + whole(*missing[2:]))


def channels(db: sqlite3.Connection, node: str, most: int) -> set[str]:
    """Return the names of a node's channels, for Store.channels."""
    rows = db.execute(
        "SELECT name FROM sensors WHERE node = (SELECT id FROM nodes WHERE name = ?) ORDER BY name LIMIT ?",
        (node, most),
    )
    return {name for (name,) in rows}
