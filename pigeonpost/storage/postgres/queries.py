"""Read queries of the PostgreSQL store: high-water marks, entries for the CSV log, samples, buckets and verification.

Any thread may use them. Each query borrows a connection from the pool.
Errors: those of the pool.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from pigeonpost.core.format import counted
from pigeonpost.link.samples import Gap
from pigeonpost.storage.contract import MOST_LISTED, Store
from pigeonpost.storage.models import (
    Bucket,
    EpochMark,
    HighWaterMark,
    LogEntry,
    LogMark,
    NodeRecords,
    NodeUsage,
    Rollup,
    StoredBatch,
    StoredSample,
    Window,
)
from pigeonpost.storage.node_records import RecordTables
from pigeonpost.storage.postgres import rollups as statistics
from pigeonpost.storage.postgres.pool import PostgresConnection
from pigeonpost.storage.postgres.rows import COLUMNS, Page
from pigeonpost.storage.postgres.schema import MOMENT, TAKEN
from pigeonpost.storage.shapes import ShapeNames

_AT_ONCE = 4_096  # rows in one page of a long result
_FAR_MS = 1 << 50  # later than all valid times


class Reader(Store):
    """Methods of the Store interface that any thread may call."""

    is_shared = True

    def __init__(self, link: PostgresConnection) -> None:
        """Initialise the queries. `link` provides the connections to the database."""
        self._link = link
        self._server = -1  # id of this server in the database; -1 if it has stored nothing yet
        self._shape_names = ShapeNames("%s")
        self._records = RecordTables("%s")
        self.identity = ""

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, HighWaterMark]]:
        with self._link.reading() as db:
            top = db.execute(
                "SELECT top FROM outboxes JOIN nodes ON id = node WHERE name = %s AND outbox = %s", (node, outbox)
            ).fetchone()
            rows = db.execute(
                "SELECT epoch, seq, up FROM epochs"
                " WHERE node = (SELECT id FROM nodes WHERE name = %s) AND epoch = ANY(%s)",
                (node, list(epochs)),
            ).fetchall()
        return top[0] if top else 0, {epoch: HighWaterMark(*mark) for epoch, *mark in rows}

    def usage(self, node: str) -> NodeUsage:
        with self._link.reading() as db:
            return NodeUsage(*map(int, db.execute(_USAGE, {"node": node}).fetchone()))

    def channels(self, node: str, most: int) -> set[str]:
        with self._link.reading() as db:
            rows = db.execute(
                "SELECT name FROM sensors WHERE node = (SELECT id FROM nodes WHERE name = %s) ORDER BY name LIMIT %s",
                (node, most),
            ).fetchall()
        return {name for (name,) in rows}

    def node_records(self) -> NodeRecords:
        with self._link.reading() as db:
            return self._records.read(db)

    def log_mark(self) -> LogMark | None:
        with self._link.reading() as db:
            row = db.execute(
                "SELECT name, size, tail, filed FROM logs WHERE server = %s ORDER BY id DESC LIMIT 1", (self._server,)
            ).fetchone()
        return LogMark(*row) if row else None

    def logged_after(self, filed: int) -> Iterator[LogEntry]:
        with self._link.reading() as db:
            pending = db.execute(
                "SELECT id FROM filings WHERE server = %s AND id > %s ORDER BY id", (self._server, filed)
            ).fetchall()
        for (id,) in pending:  # one entry per transaction: there may be many, and none stays open between them
            with self._link.reading() as db:
                logged = self._logged(db, id)
            yield logged

    def _logged(self, db: Any, id: int) -> LogEntry:
        node, name, epoch, code, first, last, low, high, gap = db.execute(
            "SELECT n.id, n.name, e.id, e.epoch, f.first, f.last, f.low, f.high, f.gap FROM filings f"
            " JOIN epochs e ON e.id = f.epoch JOIN nodes n ON n.id = e.node WHERE f.server = %s AND f.id = %s",
            (self._server, id),
        ).fetchone()
        units = dict(db.execute("SELECT name, unit FROM sensors WHERE node = %s", (node,)).fetchall())
        if gap is not None:
            *gap, noted_ms = db.execute(
                "SELECT first, last, before, why, noted FROM gaps WHERE id = %s", (gap,)
            ).fetchone()
            return LogEntry(id, name, code, [Gap(*gap)], noted_ms, units)
        page = Page(
            db.execute(
                f"SELECT {COLUMNS} FROM (SELECT * FROM samples WHERE epoch = %s AND seq BETWEEN %s AND %s"
                " AND time BETWEEN %s AND %s ORDER BY seq) s",
                (epoch, first, last, low, high),
            ).fetchone()
        )
        batches = sorted(page.batches(db, self._shape_names), key=lambda found: found[1].seq)
        return LogEntry(id, name, code, [batch for _, batch in batches], 0, units)

    def nodes(self) -> list[dict[str, Any]]:
        with self._link.reading() as db:
            rows = db.execute(_NODES).fetchall()
        return [
            {"name": name, "samples": int(high - within), "missing": int(within + before), "forgotten": int(expired),
             "kept_from_ms": kept_from, "old_edges_ms": old_edges, "first_ms": first, "last_ms": last,
             "sensors": dict(sorted(sensors.items()))}
            for name, kept_from, old_edges, high, expired, within, before, first, last, sensors in rows
        ]  # fmt: skip

    def points(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[StoredSample]:
        with self._link.reading() as db:
            rows = db.execute(
                'SELECT s.time, e.epoch, s.seq, s.shape, s."values", s.clock FROM samples s'
                " JOIN epochs e ON e.id = s.epoch"
                f" WHERE s.{TAKEN} ORDER BY {MOMENT} DESC, s.epoch DESC, s.seq DESC LIMIT %(limit)s",
                {"node": self._node(db, node), "from": from_ms, "to": to_ms, "limit": limit if limit >= 0 else None},
            ).fetchall()
            named = self._shape_names.of(db, {row[3] for row in rows})
        return [
            StoredSample(node, time_ms, epoch, seq, dict(zip(named[shape], values)), clock or "")
            for time_ms, epoch, seq, shape, values, clock in reversed(rows)
        ]

    def downsample(self, node: str, sensor: str, from_ms: int, to_ms: int, count: int) -> list[Bucket]:
        with self._link.reading() as db:
            return statistics.downsample(db, self._shape_names, node, sensor, from_ms, to_ms, count)

    def downsample_all(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        with self._link.reading() as db:
            return statistics.downsample_all(db, self._shape_names, node, from_ms, to_ms, count, sensors)

    def dirty_windows(self, before_ms: int, most: int) -> list[Window]:
        with self._link.reading() as db:
            return statistics.dirty_windows(db, self._server, before_ms, most)

    def summaries(self, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
        with self._link.reading() as db:
            return statistics.summaries(db, node, sensor, span_ms, from_ms, to_ms)

    def dirty_ends(self, node: str, span_ms: int, from_ms: int, to_ms: int) -> list[int]:
        with self._link.reading() as db:
            return statistics.dirty_ends(db, self._node(db, node), span_ms, from_ms, to_ms)

    def gaps(self, limit: int) -> list[dict[str, Any]]:
        with self._link.reading() as db:
            rows = db.execute(_GAPS + " ORDER BY g.id DESC LIMIT %s", (limit if limit >= 0 else None,)).fetchall()
        return [dict(zip(("node", "epoch", "from", "to", "before", "why", "noted_ms"), row)) for row in rows]

    def stored_batches(self, node: str, from_ms: int, to_ms: int) -> Iterator[StoredBatch]:
        after, id = None, 0
        while True:  # one page per transaction: none stays open between them
            with self._link.reading() as db:
                id = id or self._node(db, node)  # the node may be renamed between two pages
                page = self._page(db, id, from_ms, to_ms, after)
                epoch_names = self._epoch_names(db, page)
                found = [
                    StoredBatch(node, epoch_names[epoch], batch) for epoch, batch in page.batches(db, self._shape_names)
                ]
            yield from found
            if page.count < _AT_ONCE:
                return
            after = page.last

    def every_batch(self) -> Iterator[StoredBatch]:
        return self._all_batches("")

    def own_batches(self) -> Iterator[StoredBatch]:
        return self._all_batches(f"AND server = {self._server}")

    def _all_batches(self, which: str) -> Iterator[StoredBatch]:
        with self._link.reading() as db:  # one snapshot for all nodes
            for id, name in db.execute("SELECT id, name FROM nodes ORDER BY name").fetchall():
                page = self._page(db, id, -_FAR_MS, _FAR_MS, None, which)
                while page.count:
                    epoch_names = self._epoch_names(db, page)
                    for epoch, batch in page.batches(db, self._shape_names):
                        yield StoredBatch(name, epoch_names[epoch], batch)
                    page = self._page(db, id, -_FAR_MS, _FAR_MS, page.last, which)

    def epoch_marks(self) -> dict[tuple[str, str], EpochMark]:
        with self._link.reading() as db:
            rows = db.execute(_EPOCHS).fetchall()
        return {(node, epoch): EpochMark(*mark) for node, epoch, *mark in rows}

    def batches_of_epoch(self, node: str, epoch: str, after: int, most: int) -> list[StoredBatch]:
        with self._link.reading() as db:
            page = Page(
                db.execute(
                    f"SELECT {COLUMNS} FROM (SELECT * FROM samples WHERE epoch = (SELECT e.id FROM nodes n"
                    " JOIN epochs e ON e.node = n.id WHERE n.name = %s AND e.epoch = %s) AND seq > %s"
                    " ORDER BY seq LIMIT %s) s",
                    (node, epoch, after, most),
                ).fetchone()
            )
            found = [StoredBatch(node, epoch, batch) for _, batch in page.batches(db, self._shape_names)]
        return sorted(found, key=lambda one: one.samples.seq)

    def _node(self, db: Any, name: str) -> int:
        """Return the id of a node; 0, which is never an id, if there is no such node."""
        row = db.execute("SELECT id FROM nodes WHERE name = %s", (name,)).fetchone()
        return int(row[0]) if row else 0

    def _page(
        self, db: Any, node: int, from_ms: int, to_ms: int, after: tuple[int, int, int] | None, which: str = ""
    ) -> Page:
        """Return the first _AT_ONCE samples of a node in [from_ms, to_ms).

        Args:
            db: Open connection.
            node: Id of the node.
            from_ms: Start of the range in ms since 1970 (UTC), inclusive.
            to_ms: End of the range, exclusive.
            after: Time, epoch and seq of the last sample of the previous page; None for the first page.
            which: Additional condition in SQL, which begins with AND.
        """
        parameters = {"node": node, "from": from_ms, "to": to_ms, "most": _AT_ONCE}
        if after is not None:
            which += " AND (time, epoch, seq) > (%(time)s, %(epoch)s, %(seq)s)"
            parameters |= {"from": after[0], "time": after[0], "epoch": after[1], "seq": after[2]}
        return Page(
            db.execute(
                f"SELECT {COLUMNS} FROM (SELECT * FROM samples WHERE {TAKEN} {which}"
                f" ORDER BY {MOMENT}, epoch, seq LIMIT %(most)s) s",
                parameters,
            ).fetchone()
        )

    def _epoch_names(self, db: Any, page: Page) -> dict[int, str]:
        """Return the names of the epochs of a page, by id."""
        epochs = list(set(page.epochs))
        return dict(db.execute("SELECT id, epoch FROM epochs WHERE id = ANY(%s)", (epochs,)).fetchall())

    def own_gaps(self) -> int:
        with self._link.reading() as db:
            (count,) = db.execute("SELECT count(*) FROM gaps WHERE server = %s", (self._server,)).fetchone()
        return int(count)

    def verify(self) -> Iterator[str]:
        with self._link.reading() as db:
            for name, epoch, mark, expired, count, distinct, low, high, missing in db.execute(_MARKS).fetchall():
                where = f"node {name}, epoch {epoch}"
                if count != distinct:
                    yield f"{where}: {counted(count - distinct, 'sample')} stored twice"
                stored = distinct + expired
                if stored + missing != mark or low < 1 or high > mark:
                    yield f"{where}: {stored} samples and {missing} in gaps do not add up to {mark}"
            for epoch, count in db.execute(
                "SELECT epoch, count(*) FROM samples s WHERE NOT EXISTS (SELECT FROM epochs e WHERE e.id = s.epoch)"
                " GROUP BY epoch"
            ).fetchall():
                yield f"{counted(count, 'sample')} in the unknown epoch number {epoch}"
            for shape, count in db.execute(
                "SELECT s.shape, count(*) FROM samples s LEFT JOIN shapes p ON p.id = s.shape"
                ' WHERE json_array_length(s."values") IS DISTINCT FROM json_array_length(p.names::json)'
                " GROUP BY s.shape"
            ).fetchall():
                yield f"{counted(count, 'sample')} of shape number {shape} with a wrong number of values"


_NODES = f"""
SELECT n.name, n.kept_from, n.old_edges, e.high, e.forgotten, coalesce(g.within, 0), coalesce(g.before, 0),
    (SELECT time FROM samples WHERE node = n.id ORDER BY {MOMENT} LIMIT 1),
    (SELECT time FROM samples WHERE node = n.id ORDER BY {MOMENT} DESC LIMIT 1),
    (SELECT coalesce(json_object_agg(name, unit), '{{}}') FROM (
        SELECT name, unit FROM sensors WHERE node = n.id ORDER BY name LIMIT {MOST_LISTED}
    ) s)
FROM nodes n JOIN (
    SELECT node, sum(seq) AS high, sum(forgotten) AS forgotten FROM epochs GROUP BY node
) e ON e.node = n.id LEFT JOIN (
    SELECT e.node, sum(g.last - g.first + 1) AS within, sum(g.before) AS before
    FROM gaps g JOIN epochs e ON e.id = g.epoch GROUP BY e.node
) g ON g.node = n.id
ORDER BY n.name COLLATE "C"
"""
# An epoch does not record its outbox. It is known if the node has only one.
_EPOCHS = """
SELECT n.name, e.epoch, e.seq, coalesce(o.outbox, '') FROM epochs e JOIN nodes n ON n.id = e.node
LEFT JOIN (SELECT node, min(outbox) AS outbox FROM outboxes GROUP BY node HAVING count(*) = 1) o ON o.node = n.id
"""
# sum() of bigint is numeric, so it cannot overflow. The sum of two bigint columns could.
_USAGE = """
SELECT (SELECT count(*) FROM nodes), (SELECT count(*) FROM epochs e JOIN n ON e.node = n.id),
    count(*), coalesce(sum(last - first + 1) + sum(before), 0)
FROM gaps g JOIN epochs e ON e.id = g.epoch JOIN n ON e.node = n.id
"""
_USAGE = f"WITH n AS (SELECT id FROM nodes WHERE name = %(node)s) {_USAGE}"
_GAPS = """
SELECT n.name, e.epoch, g.first, g.last, g.before, g.why, g.noted
FROM gaps g JOIN epochs e ON e.id = g.epoch JOIN nodes n ON n.id = e.node
"""
_MARKS = """
SELECT n.name, e.epoch, e.seq, e.forgotten, coalesce(s.count, 0), coalesce(s.single, 0), coalesce(s.low, 1),
    coalesce(s.high, 0), coalesce(g.missing, 0)
FROM epochs e JOIN nodes n ON n.id = e.node LEFT JOIN (
    SELECT epoch, count(*) AS count, count(DISTINCT seq) AS single, min(seq) AS low, max(seq) AS high
    FROM samples GROUP BY epoch
) s ON s.epoch = e.id LEFT JOIN (
    SELECT epoch, sum(last - first + 1) AS missing FROM gaps GROUP BY epoch
) g ON g.epoch = e.id ORDER BY e.id
"""
