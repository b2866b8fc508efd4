"""Rollups, buckets and expiry in the PostgreSQL store.

The argument `db` of all functions is an open connection. Errors: those of psycopg.

Several servers may maintain one database. A writer locks the node's row, so the data that it has read does not change.
A window that another server has rolled up in the meantime is no longer dirty, and is skipped.

Values are summed as `numeric`, because a sum of floats that exceeds their range is an error in PostgreSQL, and nodes
may send any values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

from pigeonpost.storage.models import (
    HOUR_MS,
    SPANS_MS,
    Bucket,
    Rollup,
    Window,
    bucket,
    merge_rollups,
    pieces_to_read,
    whole_hours,
    window_end,
)
from pigeonpost.storage.postgres.rows import int_array
from pigeonpost.storage.postgres.schema import MOMENT, TAKEN, moment
from pigeonpost.storage.shapes import MOST_PLACES, ShapeNames

_SUMMARY = '"end", "values", mean, median, mode, low, high, deviation'
_ABANDONED = "30 days"  # after this time without contact, deletion no longer waits for the CSV log of a server
_DELETE_AT_ONCE = 4_000  # samples that are deleted in one transaction: it blocks storing for about 50 ms
_FAR_MS = 1 << 50  # later than all valid times
_NODES_AT_ONCE = 100  # nodes that are locked together for deletion


def touch(db: Any, stretches: Iterable[tuple[int, int, int]]) -> None:
    """Mark the windows that contain new samples as dirty.

    Args:
        db: Open connection of the writer, in a transaction.
        stretches: Triples (id of the node, earliest time, latest time in ms) of samples within one hour. All windows
            between the two times are marked, even those without samples: rolling these up takes almost no time.
    """
    ranges = {
        (node, span, window_end(low_ms, span), window_end(high_ms, span))
        for node, low_ms, high_ms in stretches for span in SPANS_MS
    }  # fmt: skip
    db.execute(
        "INSERT INTO unsummed SELECT k.*, c.change FROM (SELECT nextval('changes') AS change) c,"
        ' (SELECT DISTINCT r.node, r.span, "end" FROM unnest(%s::int[], %s::int[], %s::bigint[], %s::bigint[])'
        '  r (node, span, first, last), generate_series(first, last, span) "end") k'
        ' ON CONFLICT (node, span, "end") DO UPDATE SET change = excluded.change',
        list(map(int_array, zip(*ranges))),
    )


def dirty_windows(db: Any, server: int, before_ms: int, most: int) -> list[Window]:
    """Return up to `most` dirty windows in `db` that end before `before_ms`, for Store.dirty_windows.

    `server` is the id of this server. Each server begins with different nodes, so that the servers share the work.
    """
    rows = db.execute(
        'SELECT n.name, u.span, u."end", (SELECT max(o.change) FROM unsummed o WHERE o.node = u.node),'
        ' n.kept_from > 0 AND u."end" <= n.kept_from FROM unsummed u JOIN nodes n ON n.id = u.node'
        ' WHERE u."end" < %s ORDER BY hashint4(u.node # %s), u."end" LIMIT %s',
        (before_ms, server, most),
    )
    return [Window(*row) for row in rows]


def put(db: Any, node: int, window: Window, found: Mapping[str, Rollup]) -> None:
    """Replace the rollups of a `window` by `found`, for Store.replace_rollups.

    `db` is the connection of the writer, and `node` is the id of the node, whose row is locked.
    """
    key = node, window.span_ms, window.end_ms
    row = db.execute('SELECT change FROM unsummed WHERE node = %s AND span = %s AND "end" = %s', key).fetchone()
    if row is None:
        return
    db.execute('DELETE FROM summaries WHERE node = %s AND span = %s AND "end" = %s AND sensor IN'
               " (SELECT name FROM sensors WHERE node = %s UNION SELECT unnest(%s::text[]))",
               (*key, node, list(found)))  # fmt: skip
    for sensor, summary in found.items():
        _insert(db, node, sensor, window.span_ms, summary)
    if row[0] <= window.as_of:
        db.execute('DELETE FROM unsummed WHERE node = %s AND span = %s AND "end" = %s', key)


def _insert(db: Any, node: int, sensor: str, span_ms: int, summary: Rollup) -> None:
    end_ms, count, *figures = summary
    db.execute(
        "INSERT INTO summaries VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        ' ON CONFLICT (node, sensor, span, "end") DO UPDATE SET "values" = excluded."values", mean = excluded.mean,'
        " median = excluded.median, mode = excluded.mode, low = excluded.low, high = excluded.high,"
        " deviation = excluded.deviation",
        (node, sensor, span_ms, end_ms, count, *map(float, figures)),
    )


def merge_late_rollups(db: Any, node: int, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]) -> bool:
    """Merge the rollups `parts` of late samples in `window`, for Store.merge_late_rollups.

    `db` is the connection of the writer, and `node` is the id of the node, whose row is locked. Returns False if the
    call must be repeated later.
    """
    start, end = window.end_ms - window.span_ms, window.end_ms
    (change,) = db.execute(
        'SELECT max(change) FROM unsummed WHERE node = %s AND "end" > %s AND "end" <= %s', (node, start, end)
    ).fetchone()
    unlogged = db.execute(
        "SELECT FROM filings f JOIN epochs e ON e.id = f.epoch JOIN servers s ON s.id = f.server"
        f" WHERE e.node = %s AND f.low < %s AND f.high >= %s AND s.seen > now() - interval '{_ABANDONED}'",
        (node, end, start),
    ).fetchone()
    if change is None or change > window.as_of or unlogged is not None:
        return False
    for span, by_sensor in parts.items():
        for sensor, found in by_sensor.items():
            for part in found:
                row = db.execute(
                    f"SELECT {_SUMMARY} FROM summaries"
                    ' WHERE node = %s AND sensor = %s AND span = %s AND "end" = %s FOR UPDATE',
                    (node, sensor, span, part.end_ms),
                ).fetchone()
                _insert(db, node, sensor, span, merge_rollups(Rollup(*row), part) if row else part)
    _delete(db, node, start, end)
    db.execute('DELETE FROM unsummed WHERE node = %s AND "end" > %s AND "end" <= %s', (node, start, end))
    return True


def delete_expired(db: Any, before_ms: int, most: int) -> int:
    """Delete up to about `most` samples before `before_ms` and return their number, for Store.delete_expired.

    `db` is the connection of the writer. Only complete hours are deleted, and only some nodes at a time.
    """
    limits = {"before": before_ms, "hour": HOUR_MS, "nodes": _NODES_AT_ONCE}
    nodes = [id for (id,) in db.execute(
        f"SELECT n.id FROM {_KEPT} WHERE EXISTS"
        f" (SELECT FROM samples s WHERE s.node = n.id AND {MOMENT} < {moment(_UNTIL)}) ORDER BY n.id LIMIT %(nodes)s",
        limits,
    ).fetchall()]  # fmt: skip
    db.execute("SELECT FROM nodes WHERE id = ANY(%s) ORDER BY name FOR NO KEY UPDATE", (nodes,))
    most = left = min(most, _DELETE_AT_ONCE)
    # Read the limits again: now that the nodes are locked, no other server can change them.
    for node, kept_from, until_ms in db.execute(
        f"SELECT n.id, n.kept_from, {_UNTIL} FROM {_KEPT} WHERE n.id = ANY(%(nodes)s) ORDER BY n.id",
        limits | {"nodes": nodes},
    ).fetchall():
        if left <= 0 or until_ms <= 0:
            continue
        first_ms, last_ms, count = db.execute(
            f"SELECT min(time), max(time), count(*) FROM (SELECT time FROM samples WHERE {TAKEN}"
            f" ORDER BY {MOMENT} LIMIT %(most)s) s",
            {"node": node, "from": -_FAR_MS, "to": until_ms, "most": left},
        ).fetchone()
        if not count:
            continue
        if count == left:
            until_ms = whole_hours(first_ms, last_ms)
        if until_ms > kept_from:
            db.execute("UPDATE nodes SET kept_from = %s WHERE id = %s", (until_ms, node))
        left -= _delete(db, node, first_ms, until_ms)
    return int(most - left)


# _KEPT: all nodes, with the times before which all samples are rolled up and written to the CSV logs. _UNTIL: the time
# before which samples can be deleted, rounded down to a full hour.
_KEPT = f"""
nodes n LEFT JOIN LATERAL (SELECT min("end" - span) AS at FROM unsummed WHERE node = n.id) u ON true
LEFT JOIN LATERAL (
    SELECT min(f.low) AS at FROM filings f JOIN epochs e ON e.id = f.epoch JOIN servers s ON s.id = f.server
    WHERE e.node = n.id AND s.seen > now() - interval '{_ABANDONED}'
) f ON true"""
_UNTIL = "least(%(before)s::bigint, u.at, f.at) / %(hour)s * %(hour)s"


def _delete(db: Any, node: int, from_ms: int, to_ms: int) -> int:
    """Delete a node's samples in [from_ms, to_ms) and the texts of their errors. Return the number of samples."""
    (count,) = db.execute(
        f"WITH deleted AS (DELETE FROM samples WHERE {TAKEN} RETURNING epoch, seq),"
        " texts AS (DELETE FROM failures f USING deleted d WHERE f.epoch = d.epoch AND f.seq = d.seq),"
        " counts AS (SELECT epoch, count(*) AS count FROM deleted GROUP BY epoch),"
        " updated AS (UPDATE epochs e SET forgotten = e.forgotten + c.count FROM counts c WHERE e.id = c.epoch)"
        " SELECT coalesce(sum(count), 0) FROM counts",
        {"node": node, "from": from_ms, "to": to_ms},
    ).fetchone()
    return int(count)


def summaries(db: Any, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
    """Return the rollups of one `sensor` of `node` for windows of `span_ms` that end in (from_ms, to_ms].

    For Store.summaries; `db` is an open connection.
    """
    rows = db.execute(
        f"SELECT {_SUMMARY} FROM summaries WHERE node = (SELECT id FROM nodes WHERE name = %s) AND sensor = %s"
        ' AND span = %s AND "end" > %s AND "end" <= %s ORDER BY "end"',
        (node, sensor, span_ms, from_ms, to_ms),
    )
    return [Rollup(*row) for row in rows]


def downsample(
    db: Any, shapes: ShapeNames, node: str, sensor: str, from_ms: int, to_ms: int, count: int
) -> list[Bucket]:
    """Return the values of one `sensor` of `node` in [from_ms, to_ms), downsampled to `count` buckets.

    For Store.downsample; `db` is an open connection, and `shapes` is the cache of its shapes.
    """
    row = db.execute("SELECT id, kept_from FROM nodes WHERE name = %s", (node,)).fetchone()
    if row is None or to_ms <= from_ms:
        return []
    id, kept_from = row
    found: dict[int, Bucket] = {}
    parameters = {"start": from_ms, "width": to_ms - from_ms, "count": count, "node": id, "sensor": sensor}
    ends_of = partial(dirty_ends, db, id)
    for span_ms, first_ms, end_ms in pieces_to_read(from_ms, to_ms, count, kept_from, ends_of):
        parameters |= {"from": first_ms, "to": end_ms, "span": span_ms}
        for place, values, low, high, mean in (
            _of_windows(db, parameters) if span_ms else _of_samples(db, shapes, parameters)
        ):
            column = bucket(place, int(values), float(low), float(high), float(mean))
            other = found.get(place)
            found[place] = column.with_other(other) if other else column
    return [found[place] for place in sorted(found)]


def dirty_ends(db: Any, node: int, span_ms: int, after_ms: int, until_ms: int) -> list[int]:
    """Return the ends of the dirty windows of `span_ms` that end in (after_ms, until_ms], for Store.dirty_ends.

    `db` is an open connection, and `node` is the id of the node.
    """
    rows = db.execute(
        'SELECT "end" FROM unsummed WHERE node = %s AND span = %s AND "end" > %s AND "end" <= %s ORDER BY "end"',
        (node, span_ms, after_ms, until_ms),
    ).fetchall()
    return [end_ms for (end_ms,) in rows]


_PLACE = "* %(count)s::bigint / %(width)s::bigint"


def _of_windows(db: Any, parameters: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    rows: Iterable[tuple[Any, ...]] = db.execute(
        f'SELECT ("end" - %(span)s - %(start)s::bigint) {_PLACE} AS i, sum("values"), min(low), max(high),'
        ' sum(mean::numeric * "values") / sum("values") FROM summaries'
        " WHERE node = %(node)s AND sensor = %(sensor)s AND span = %(span)s"
        ' AND "end" > %(from)s AND "end" <= %(to)s'
        " GROUP BY i ORDER BY i",
        parameters,
    ).fetchall()
    return rows


def _of_samples(db: Any, shapes: ShapeNames, parameters: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    ids = db.execute(f"SELECT DISTINCT shape FROM samples WHERE {TAKEN}", parameters).fetchall()
    places = shapes.places(db, [id for (id,) in ids], parameters["sensor"])
    if not places:
        return ()
    # The index of the sensor in each shape is known, so SQL need not search for its name in every row.
    value = " ".join([f'WHEN {id} THEN "values" ->> {place}' for id, place in places])
    value = f"CASE shape {value} END" if len(places) <= MOST_PLACES else (
        """(SELECT "values" ->> (j.place - 1)::int FROM shapes p,"""
        " json_array_elements_text(p.names::json) WITH ORDINALITY j (name, place)"
        " WHERE p.id = shape AND j.name = %(sensor)s)"
    )  # fmt: skip
    rows: Iterable[tuple[Any, ...]] = db.execute(
        f"SELECT (time - %(start)s::bigint) {_PLACE} AS i, count(v), min(v), max(v), avg(v) FROM ("
        f"  SELECT time, ({value})::numeric AS v FROM samples WHERE {TAKEN}"
        ") s WHERE v IS NOT NULL GROUP BY i ORDER BY i",
        parameters,
    ).fetchall()
    return rows


def downsample_all(
    db: Any, shapes: ShapeNames, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
) -> dict[str, list[Bucket]]:
    """Return the values of `sensors` of `node` in [from_ms, to_ms), downsampled to `count` buckets each.

    For Store.downsample_all; `db` is an open connection, and `shapes` is the cache of its shapes.
    """
    found: dict[str, list[Bucket]] = {}
    for place, shape, key, values, low, high, mean in db.execute(
        f"SELECT (time - %(start)s::bigint) {_PLACE} AS i, shape, place, count(v), min(v), max(v), avg(v) FROM ("
        "  SELECT time, shape, j.place, j.v::numeric AS v FROM samples,"
        '   json_array_elements_text("values") WITH ORDINALITY j (v, place)'
        f"  WHERE {TAKEN.replace('%(node)s', '(SELECT id FROM nodes WHERE name = %(node)s)')}"
        ") s WHERE v IS NOT NULL GROUP BY i, shape, place ORDER BY i",
        {"start": from_ms, "width": to_ms - from_ms, "from": from_ms, "to": to_ms, "count": count, "node": node},
    ).fetchall():
        name = shapes.one(db, shape)[key - 1]
        if name not in sensors:
            continue
        columns = found.setdefault(name, [])
        column = bucket(place, values, float(low), float(high), float(mean))
        if columns and columns[-1].place == place:  # samples of two shapes, for example after a sensor was added
            column = columns.pop().with_other(column)
        columns.append(column)
    return found
