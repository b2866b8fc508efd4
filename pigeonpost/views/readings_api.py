"""Readings of several nodes and sensors as one flat table: `GET /api/v1/readings`, for Grafana and for scripts.

Any thread may use it. The semaphore `_working` limits the queries at the same time to two. A table has at most
MOST_VALUES values.
Errors: HTTPError.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.strict_json import write_json
from pigeonpost.http.message import JSON, HTTPError, Response
from pigeonpost.storage.csv.format import cell
from pigeonpost.storage.models import Bucket
from pigeonpost.views.api import requested_store
from pigeonpost.views.context import RequestContext
from pigeonpost.views.query import moment_or_ago, names_in, span_ms, whole_number
from pigeonpost.views.spool import spool
from protocol import NODE_NAME, SENSOR_NAME

if TYPE_CHECKING:
    from pigeonpost.link.samples import Number
    from pigeonpost.storage.contract import Store

MOST_NODES, MOST_SENSORS = 200, 500  # nodes in one query, and different sensors of all of them
MOST_VALUES = 100_000
MOST_POINTS, USUAL_POINTS = 10_000, 1000
_USUAL_SPAN_MS = 24 * 3_600_000
_DAY_MS = 86_400_000
# Steps from which the one of a long range is chosen. They divide a day, so that a step always starts at midnight (UTC).
_STEPS_MS = tuple(
    1000 * step_s
    for step_s in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
)
_FORMS = ("rows", "long", "csv", "long-csv")
_STATISTICS = ("mean", "low", "high")
_CSV = "text/csv; charset=utf-8"

_Cells = Mapping[int, Mapping[str, "Bucket | Number | None"]]  # by time and sensor; a Bucket if there is a step


class _Query(NamedTuple):
    """A validated query.

    Attributes:
        sensors: Wanted sensors by node, with their units.
        columns: Names of all wanted sensors.
        from_ms: Start in ms since 1970 (UTC), inclusive.
        to_ms: End in ms since 1970 (UTC), exclusive.
        step: "auto", "none" or a duration.
        points: Maximum number of rows of a node before a step is chosen.
        form: Format of the response.
        statistic: Statistic of a step that is in the columns.
    """

    sensors: Mapping[str, Mapping[str, str]]
    columns: Sequence[str]
    from_ms: int
    to_ms: int
    step: str
    points: int
    form: str
    statistic: str

    @property
    def width(self) -> int:
        """Number of values at one time."""
        if self.form.startswith("long"):
            return sum(map(len, self.sensors.values()))
        return len(self.sensors) * len(self.columns)


class ReadingsApi:
    """Reader of readings for `GET /api/v1/readings`."""

    def __init__(self) -> None:
        self._working = threading.BoundedSemaphore(2)

    def answer(self, context: RequestContext) -> Response:
        """Return readings for `context`.

        `GET /api/v1/readings?node=&sensor=&from=&to=&step=&points=&format=rows|long|csv|long-csv&value=mean&raw=1`.
        `node` and `sensor` are lists with commas; without them, all are returned.

        Raises:
            HTTPError: 400 for an invalid query or one for too many values, 404 for an unknown node, 503 if too many
                queries are waiting or the disk is full.
        """
        store = requested_store(context)
        query = _read_query(context, store)
        if not self._working.acquire(timeout=5):
            raise HTTPError(503, "Too many queries are running; try again in a moment.", "busy", {"Retry-After": "2"})
        try:
            tables = _tables(store, query)
            body, file = spool(_lines(query, tables), context.app.data)
        finally:
            self._working.release()
        kind = _CSV if query.form.endswith("csv") else JSON
        return Response(body, kind, headers={"Cache-Control": "no-store"}, file=file)


def _read_query(context: RequestContext, store: Store) -> _Query:
    """Return the query of a request. Raises HTTPError 400 or 404."""
    query, now_ms = context.request.query, context.app.clock.wall_ms()
    names = context.app.ingestor.names
    nodes = list(dict.fromkeys(map(names.current, names_in(query, "node", NODE_NAME, MOST_NODES))))
    wanted = names_in(query, "sensor", SENSOR_NAME, MOST_SENSORS)
    stored: dict[str, dict[str, Any]] = {about["name"]: about for about in store.nodes()}
    known = stored.keys() | {link.state.name for link in context.app.links}
    for node in nodes:
        if node not in known:
            raise HTTPError(404, f"No samples of the node {node} are stored.", "unknown-node")
    sensors: dict[str, Mapping[str, str]] = {}
    for node in nodes or stored:
        units = stored[node]["sensors"] if node in stored else {}
        found = {name: units[name] for name in wanted or units if name in units}
        if found:
            sensors[node] = found
    columns = wanted or sorted({name for units in sensors.values() for name in units})
    if len(sensors) > MOST_NODES or len(columns) > MOST_SENSORS:
        text = f"A query may have at most {MOST_NODES} nodes and {MOST_SENSORS} sensors: name them in `node`, `sensor`."
        raise HTTPError(400, text, "too-many")
    to_ms = moment_or_ago(query["to"], now_ms) if query.get("to") else now_ms + 1
    from_ms = moment_or_ago(query["from"], now_ms) if query.get("from") else to_ms - _USUAL_SPAN_MS
    if from_ms >= to_ms:
        raise HTTPError(400, "`from` must be before `to`.", "time")
    # Without this, the step of a range that begins in 1970 would be weeks.
    times = [(stored[node]["first_ms"], stored[node]["last_ms"]) for node in sensors if node in stored]
    first_ms = min((first for first, _ in times if first is not None), default=from_ms)
    last_ms = max((last for _, last in times if last is not None), default=to_ms - 1)
    from_ms, to_ms = max(from_ms, min(first_ms, to_ms - 1)), min(to_ms, max(last_ms, from_ms) + 1)
    return _Query(
        sensors, columns, from_ms, max(to_ms, from_ms + 1), query.get("step") or "auto",
        whole_number(query, "points", USUAL_POINTS, MOST_POINTS), _choice(query, "format", _FORMS),
        _choice(query, "value", _STATISTICS),
    )  # fmt: skip


def _choice(query: Mapping[str, str], key: str, allowed: Sequence[str]) -> str:
    value = query.get(key, allowed[0])
    if value not in allowed:
        raise HTTPError(400, f"`{key}` must be {', '.join(allowed[:-1])} or {allowed[-1]}.", key)
    return value


def _tables(store: Store, query: _Query) -> Mapping[str, _Cells]:
    """Return the cells of each node. Raises HTTPError 400 if there are too many."""
    if not query.width:
        return {}
    most = MOST_VALUES // query.width  # rows of a node for which all values fit
    if query.step in ("auto", "none"):
        limit = most if query.step == "none" else min(query.points, most)
        samples = _all_samples(store, query, limit)
        if samples is not None:
            return samples
        if query.step == "none":
            raise _too_many("choose a shorter range, or a `step`")
        step_ms = _chosen_step_ms(query.to_ms - query.from_ms, limit)
    else:
        step_ms = span_ms(query.step)
    from_ms = query.from_ms // step_ms * step_ms  # steps are complete, and aligned to 1970
    count = -(-(query.to_ms - from_ms) // step_ms)
    if count > min(MOST_POINTS, most):
        raise _too_many("choose a shorter range, a longer `step`, or fewer nodes or sensors")
    return {node: _buckets(store, node, units, from_ms, step_ms, count) for node, units in query.sensors.items()}


def _too_many(remedy: str) -> HTTPError:
    return HTTPError(400, f"This would be more than {MOST_POINTS:,} rows or {MOST_VALUES:,} values: {remedy}.", "step")


def _all_samples(store: Store, query: _Query, most: int) -> Mapping[str, _Cells] | None:
    """Return the samples of all nodes, or None if a node has more than `most` in the range."""
    found: dict[str, _Cells] = {}
    for node, units in query.sensors.items():
        rows: dict[int, dict[str, Number | None]] = {}
        left = most
        for _, _, batch in store.stored_batches(node, query.from_ms, query.to_ms):
            left -= len(batch)
            if left < 0:
                return None
            for name in units:
                for time_ms, value in zip(batch.times, batch.values.get(name, ())):
                    row = rows.setdefault(time_ms, {})
                    if value is not None or name not in row:  # several epochs may have a sample at the same time
                        row[name] = value
        found[node] = rows
    return found


def _chosen_step_ms(range_ms: int, points: int) -> int:
    """Return the shortest of the usual steps with which a range has at most `points` steps."""
    if points < 2:  # a range without complete steps needs two
        text = "A `step` cannot be chosen for a single row: increase `points`, or name fewer nodes or sensors."
        raise HTTPError(400, text, "step")
    least_ms = -(-range_ms // (points - 1))  # one step more is needed if the range does not begin with a step
    longest_ms = -(-least_ms // _DAY_MS) * _DAY_MS
    return next((step_ms for step_ms in _STEPS_MS if step_ms >= least_ms), longest_ms)


def _buckets(
    store: Store, node: str, units: Mapping[str, str], from_ms: int, step_ms: int, count: int
) -> Mapping[int, Mapping[str, Bucket]]:
    rows: dict[int, dict[str, Bucket]] = {}
    found = store.downsample_several(node, from_ms, from_ms + count * step_ms, count, list(units))
    for name, buckets in found.items():
        for one in buckets:
            rows.setdefault(from_ms + one.place * step_ms, {})[name] = one
    return rows


# ------------------------------------------------------------------------------------------------------------ formats


def _lines(query: _Query, tables: Mapping[str, _Cells]) -> Iterator[str]:
    """Yield the lines of the response, ordered by time and node."""
    order = sorted((time_ms, node) for node, rows in tables.items() for time_ms in rows)
    table = _long(query, tables, order) if query.form.startswith("long") else _wide(query, tables, order)
    keys = next(table)
    if query.form.endswith("csv"):
        yield ",".join(keys) + "\n"
        for row in table:
            yield ",".join([rfc3339(row[0]), *map(_cell, row[1:])]) + "\n"
        return
    before = "["
    for row in table:
        yield f"{before}{write_json(dict(zip(keys, row)))}"
        before = ",\n"
    yield "[]\n" if before == "[" else "]\n"


def _wide(query: _Query, tables: Mapping[str, _Cells], order: Iterable[tuple[int, str]]) -> Iterator[Sequence[Any]]:
    """Yield the names of the columns, then the rows: time, node and one column per sensor."""
    yield ["time", "node", *(f"{name} (sensor)" if name in ("time", "node") else name for name in query.columns)]
    for time_ms, node in order:
        cells = tables[node][time_ms]
        yield [time_ms, node, *(_value(cells.get(name), query.statistic) for name in query.columns)]


def _long(query: _Query, tables: Mapping[str, _Cells], order: Iterable[tuple[int, str]]) -> Iterator[Sequence[Any]]:
    """Yield the names of the columns, then one row per value. Failed readings are left out."""
    yield ["time", "node", "sensor", "value", "unit", "low", "high", "count"]
    for time_ms, node in order:
        units = query.sensors[node]
        for name, found in tables[node][time_ms].items():
            if found is None:
                continue
            value, low, high = (_value(found, statistic) for statistic in (query.statistic, "low", "high"))
            count = found.values if isinstance(found, Bucket) else 1
            yield [time_ms, node, name, value, units[name], low, high, count]


def _value(found: Bucket | Number | None, statistic: str) -> Number | None:
    return getattr(found, statistic) if isinstance(found, Bucket) else found


def _cell(value: Any) -> str:
    return "" if value is None else cell(value) if isinstance(value, str) else repr(value)
