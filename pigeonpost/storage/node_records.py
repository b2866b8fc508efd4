"""SQL for the records that operators make about nodes: former names, retirements and labels.

The SQL is the same for SQLite and PostgreSQL. All methods work on an open connection. Those that change something must
run within a transaction of the writer thread.
Errors: those of the database; LookupError for a node without stored data; ValueError for a new name that is in use.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pigeonpost.storage.models import FormerName, NodeRecords


class RecordTables:
    """Access to the tables `retired`, `former_names` and `labels`.

    The argument `db` of each method is an open connection to the database.
    """

    def __init__(self, parameter: str) -> None:
        """Initialise the queries. `parameter` is the placeholder of the database, "?" or "%s"."""
        self._parameter = parameter

    def read(self, db: Any) -> NodeRecords:
        """Return all records in the database `db`, for Store.node_records."""
        former = self._rows(
            db,
            # A node that has a former name now received it through its own token or through a release. In both cases
            # the name counts as released.
            "SELECT f.name, n.name, f.until, CASE WHEN o.id IS NULL THEN f.released ELSE 1 END"
            " FROM former_names f JOIN nodes n ON n.id = f.node LEFT JOIN nodes o ON o.name = f.name"
            " ORDER BY f.until, f.name, n.name",
        )
        retired = self._rows(db, "SELECT n.name, r.at FROM retired r JOIN nodes n ON n.id = r.node")
        labels = self._rows(db, "SELECT n.name, l.sensor, l.label FROM labels l JOIN nodes n ON n.id = l.node")
        return NodeRecords(
            [FormerName(name, node, until_ms, bool(released)) for name, node, until_ms, released in former],
            dict(retired),
            {(node, sensor): label for node, sensor, label in labels},
        )

    def unreleased(self, db: Any, names: Collection[str]) -> set[str]:
        """Return those of `names` that are former names and are not yet released for another node, read from `db`."""
        rows = self._rows(db, "SELECT DISTINCT name FROM former_names WHERE released = 0")
        return {name for (name,) in rows if name in names}

    def rename(self, db: Any, node: str, new: str, now_ms: int) -> None:
        """Rename a node, for Store.rename.

        Args:
            db: Open connection, in a transaction.
            node: Current name.
            new: New name.
            now_ms: Current time, in ms since 1970 (UTC).

        Raises:
            LookupError: Nothing is stored for `node`.
            ValueError: Something is stored for `new`.
        """
        id = self._id(db, node)
        if self._rows(db, "SELECT id FROM nodes WHERE name = ?", new):
            raise ValueError(f"data is already stored for a node named {new}")
        self._run(db, "UPDATE nodes SET name = ? WHERE id = ?", new, id)
        self._run(db, "DELETE FROM former_names WHERE name = ? AND node = ?", new, id)
        # Earlier owners of this name lose it. After a clock step, `until` would not show which node had it last.
        self.release(db, node)
        self._run(
            db,
            "INSERT INTO former_names (name, node, until, released) VALUES (?, ?, ?, 0)"
            " ON CONFLICT (name, node) DO UPDATE SET until = excluded.until, released = 0",
            node, id, now_ms,
        )  # fmt: skip

    def release(self, db: Any, name: str) -> None:
        """Release the former name `name` in `db`, for Store.release."""
        self._run(db, "UPDATE former_names SET released = 1 WHERE name = ?", name)

    def retire(self, db: Any, node: str, at_ms: int | None) -> None:
        """Record in `db` that `node` is retired since `at_ms`, or in use if that is None, for Store.retire.

        Raises:
            LookupError: Nothing is stored for `node`.
        """
        id = self._id(db, node)
        self._run(db, "DELETE FROM retired WHERE node = ?", id)
        if at_ms is not None:
            self._run(db, "INSERT INTO retired (node, at) VALUES (?, ?)", id, at_ms)

    def relabel(self, db: Any, node: str, sensor: str, label: str) -> None:
        """Record the `label` of a `sensor` of `node` in `db`; an empty label removes it. For Store.relabel.

        Raises:
            LookupError: Nothing is stored for `node`.
        """
        id = self._id(db, node)
        self._run(db, "DELETE FROM labels WHERE node = ? AND sensor = ?", id, sensor)
        if label:
            self._run(db, "INSERT INTO labels (node, sensor, label) VALUES (?, ?, ?)", id, sensor, label)

    def _id(self, db: Any, node: str) -> int:
        rows = self._rows(db, "SELECT id FROM nodes WHERE name = ?", node)
        if not rows:
            raise LookupError(f"nothing is stored for a node {node}")
        return int(rows[0][0])

    def _rows(self, db: Any, query: str, *values: Any) -> list[Any]:
        found: list[Any] = self._run(db, query, *values).fetchall()
        return found

    def _run(self, db: Any, query: str, *values: Any) -> Any:
        return db.execute(query.replace("?", self._parameter), values)
