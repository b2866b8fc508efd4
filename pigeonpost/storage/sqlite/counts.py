"""Numbers of samples, gaps and other rows in the SQLite store. Functions on an open connection.

Errors: sqlite3.Error.

SQLite ends a query with "integer overflow" if a sum of integers exceeds 64 bits. Clients choose the numbers of their
epochs and gaps, and older versions stored such numbers without a limit. So each sum of them is calculated as two sums
of 32-bit halves.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from pigeonpost.storage.contract import MOST_LISTED
from pigeonpost.storage.models import NodeUsage


def halves(expression: str) -> str:
    """Return SQL for the sums of the upper and the lower 32-bit halves of `expression`. `whole` adds up the results."""
    return f"coalesce(sum(({expression}) >> 32), 0), coalesce(sum(({expression}) & 4294967295), 0)"


def whole(high: int, low: int) -> int:
    """Return the sum of numbers from the sum `high` of their upper halves and the sum `low` of their lower halves."""
    return (high << 32) + low


def nodes(db: sqlite3.Connection, ends: Callable[[str], tuple[int, int] | None]) -> list[dict[str, Any]]:
    """Return a summary of each node's data, for Store.nodes.

    Args:
        db: Connection with a snapshot.
        ends: Function that returns the first and the last time of a node's samples, or None if there are no samples.
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
    """Return the usage of limited resources by the node named `node` in `db`, for Store.usage."""
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
    """Return the names of up to `most` channels of the node named `node` in `db`, for Store.channels."""
    rows = db.execute(
        "SELECT name FROM sensors WHERE node = (SELECT id FROM nodes WHERE name = ?) ORDER BY name LIMIT ?",
        (node, most),
    )
    return {name for (name,) in rows}
