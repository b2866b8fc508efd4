"""JSON API for reading (`/api/v1/...`), and the health checks.

Errors: HTTPError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import FIRST_MS, rfc3339
from pigeonpost.core.format import zone_name
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.server.calibrations import as_json
from pigeonpost.storage.calibrated_store import raw_store
from pigeonpost.views.context import RequestContext
from pigeonpost.views.gaps_and_events import recent_losses
from pigeonpost.views.html import json_answer, text_page
from pigeonpost.views.integrations_page import read_faults
from pigeonpost.views.models import NodeView, SensorView
from pigeonpost.views.query import moment, name_in, span_ms, whole_number
from pigeonpost.views.statistics import closed_left, closed_right
from protocol import NODE_NAME, SENSOR_NAME

if TYPE_CHECKING:
    from pigeonpost.storage.contract import Store
    from pigeonpost.storage.models import Bucket, StoredSample

MOST_SAMPLES, USUAL_SAMPLES = 10_000, 1000
MOST_COLUMNS = 5000
_USUAL_SPAN_MS = 24 * 3_600_000  # default range of a query with `step`
_WINDOWS_MS = {"10m": 600_000, "1h": 3_600_000}  # lengths of the windows with statistics
_FAR_MS = 1 << 52  # a time after all samples


# -------------------------------------------------------------------------------------------------------------- nodes


def nodes(context: RequestContext) -> Response:
    """Return the state of all nodes for `context`: `GET /api/v1/nodes`."""
    snapshot = context.snapshot()
    return json_answer({
        "server": context.app.name, "time": rfc3339(snapshot.now_ms), "verdict": f"{snapshot.summary}.",
        "time_zone": zone_name(snapshot.now_ms),
        "nodes": [_node(context, node) for node in snapshot.nodes],
    })  # fmt: skip


def one_node(context: RequestContext) -> Response:
    """Return the state of one node for `context`, with its own report and its gaps: `GET /api/v1/nodes/NAME`.

    Raises:
        HTTPError: 404 if there is no such node.
    """
    view = context.snapshot().node(context.args[0])
    if view is None or not view.name:
        raise HTTPError(404, "There is no node with that name.", "unknown-node")
    state = next((link.state for link in context.app.links if link.state.name == view.name), None)
    gaps = [gap for gap in context.app.store.gaps(1000) if gap["node"] == view.name]
    for gap in gaps:
        gap["noted"] = rfc3339(gap.pop("noted_ms"))
    return json_answer(_node(context, view) | {"details": state.details if state else {}, "gaps": gaps})


def _node(context: RequestContext, node: NodeView) -> dict[str, Any]:
    is_well = node.connected or node.state == "reporting"
    return {
        "name": node.name, "address": node.address, "state": node.state, "connected": node.connected,
        "fault": "" if is_well else node.words, "on": node.on, "every": node.every_s,
        "since": _time(node.since_ms), "last_sample": _last_sample(context, node), "samples": node.samples,
        "missing": node.missing, "held": node.held, "slots": node.slots, "clock_offset_ms": node.shift_ms,
        "round_trip_ms": node.round_trip_ms, "version": node.version, "warnings": list(node.warnings),
        "machine": dict(node.machine),
        "sensors": [_sensor(sensor) for sensor in node.sensors],
    }  # fmt: skip


def _last_sample(context: RequestContext, node: NodeView) -> dict[str, Any] | None:
    if node.last_ms is None:
        return None
    values = {sensor.name: sensor.value for sensor in node.sensors}
    taken_ms = next((sensor.time_ms for sensor in node.sensors if sensor.time_ms is not None), node.last_ms)
    latest = context.app.ingestor.latest.get(node.name)
    taken_ms = latest.sample.time_ms if latest else taken_ms
    more = {"seq": latest.sample.seq} if latest else {}
    times = {"time": rfc3339(taken_ms), "age_s": node.age_s, "received": _time(node.received_ms)}
    return times | {"values": values} | more


def _sensor(sensor: SensorView) -> dict[str, Any]:
    return {
        "name": sensor.name, "label": sensor.label, "unit": sensor.unit, "simulated": sensor.simulated,
        "value": sensor.value, "time": _time(sensor.time_ms), "stale": sensor.is_stale,
        "verdicts": [{"kind": kind, "text": text} for kind, text in sensor.flag_texts.items()],
        "verdict_counts": dict(sensor.counts), "limits": dict(sensor.limits),
        "fault": sensor.fault, "today": {
            "low": sensor.low, "high": sensor.high, "low_time": _time(sensor.low_ms),
            "high_time": _time(sensor.high_ms),
        }, "trend": sensor.trend,
        "calibration": as_json(sensor.calibration) if sensor.calibration is not None else None,
    }  # fmt: skip


def _time(time_ms: int | None) -> str | None:
    return rfc3339(time_ms) if time_ms is not None else None


# ------------------------------------------------------------------------------------------------------------ samples


def samples(context: RequestContext) -> Response:
    """Return stored samples: `GET /api/v1/samples?node=&sensor=&from=&to=&limit=&step=&raw=1&format=json|csv`.

    Without `step`, the response contains the last `limit` samples of the range, oldest first. With a duration as `step`
    (`10m`, `1h`), it contains count, minimum, maximum and mean for each step that has values.

    Args:
        context: The request.

    Raises:
        HTTPError: 400 for an invalid query, 404 if nothing is stored for the node.
    """
    query, store = context.request.query, requested_store(context)
    node, sensor = _named(context)
    from_ms = moment(query["from"]) if "from" in query else None
    to_ms = moment(query["to"]) if "to" in query else _FAR_MS
    form = _form(query)
    known = [about["name"] for about in store.nodes()]
    if node and node not in known:
        raise HTTPError(404, "No samples of a node with that name are stored.", "unknown-node")
    if "step" in query:
        return _downsampled(context, node, sensor, from_ms, to_ms, form)
    limit, names = whole_number(query, "limit", USUAL_SAMPLES, MOST_SAMPLES), [node] if node else known
    start_ms = FIRST_MS if from_ms is None else from_ms
    found = [point for name in names for point in store.points(name, start_ms, to_ms, limit)]
    found.sort(key=lambda point: point.time_ms)
    points = [_only(sensor, point) for point in found[-limit:] if not sensor or sensor in point.values]
    if form == "csv":
        return _csv("time,node,epoch,seq,sensor,value", (_cells(point) for point in points))
    return json_answer({"samples": [_point(point) for point in points]})


def _downsampled(
    context: RequestContext, node: str, sensor: str, from_ms: int | None, to_ms: int, form: str
) -> Response:
    if not node or not sensor:
        raise HTTPError(400, "With `step`, name one node and one sensor.", "step")
    step_ms, now_ms = span_ms(context.request.query["step"]), context.app.clock.wall_ms()
    to_ms = min(to_ms, now_ms // step_ms * step_ms + step_ms)
    if from_ms is None:
        from_ms = to_ms - _USUAL_SPAN_MS
    from_ms = from_ms // step_ms * step_ms  # columns are complete steps, aligned to 1970
    count = -(-(to_ms - from_ms) // step_ms)
    if not 0 < count <= MOST_COLUMNS:
        raise HTTPError(400, f"The range from `from` to `to` must have 1 to {MOST_COLUMNS} steps.", "step")
    columns = requested_store(context).downsample(node, sensor, from_ms, from_ms + count * step_ms, count)
    rows = [(rfc3339(from_ms + column.place * step_ms), column) for column in columns]
    if form == "csv":
        return _csv("time,count,low,high,mean", (_column_cells(*row) for row in rows))
    return json_answer({
        "node": node, "sensor": sensor, "step_s": step_ms / 1000,
        "columns": [{"time": time_text, "count": column.values, "low": column.low, "high": column.high,
                     "mean": column.mean} for time_text, column in rows],
    })  # fmt: skip


def statistics(context: RequestContext) -> Response:
    """Return the statistics of past windows, each identified by its end.

    `GET /api/v1/statistics?node=&sensor=&span=10m|1h&from=&to=&closed=left|right&raw=1&format=json|csv`. The response
    contains the windows that end in (from, to], at most 10,000. By default `to` is the current time, and `from` is 1000
    windows earlier. With `closed=left`, the default, a window is [start, end). With `closed=right` it is (start, end]
    and is calculated from the samples. Where these are deleted, the stored window is returned, with its own `closed`.

    Args:
        context: The request.

    Raises:
        HTTPError: 400 for an invalid query.
    """
    query, store = context.request.query, requested_store(context)
    node, sensor = _named(context)
    window_ms, closed = _WINDOWS_MS.get(query.get("span", "1h"), 0), query.get("closed", "left")
    if not node or not sensor:
        raise HTTPError(400, "Name one node and one sensor.", "node")
    if not window_ms:
        raise HTTPError(400, "`span` must be 10m or 1h.", "span")
    if closed not in ("left", "right"):
        raise HTTPError(400, "`closed` must be left or right.", "closed")
    to_ms = moment(query["to"]) if "to" in query else context.app.clock.wall_ms()
    from_ms = moment(query["from"]) if "from" in query else to_ms - USUAL_SAMPLES * window_ms
    if not 0 <= to_ms - from_ms <= MOST_SAMPLES * window_ms:
        raise HTTPError(400, f"The range from `from` to `to` must have at most {MOST_SAMPLES} windows.", "span")
    about: dict[str, Any] = next((one for one in store.nodes() if one["name"] == node), {})
    kept_from_ms, now_ms = about.get("kept_from_ms", 0), context.app.clock.wall_ms()
    # With closed=right, stored windows are used only where the samples are deleted.
    last_ms = min(to_ms, kept_from_ms) if closed == "right" and about else to_ms
    found = [
        (one, "right" if one.end_ms <= about.get("old_edges_ms", 0) else "left")
        for one in closed_left(store, node, sensor, window_ms, from_ms, last_ms, kept_from_ms, now_ms)
    ]
    if closed == "right" and about:
        from_ms = max(from_ms, kept_from_ms)
        found += [(one, "right") for one in closed_right(store, node, sensor, window_ms, from_ms, to_ms)]
    if _form(query) == "csv":
        lines = [",".join([rfc3339(one.end_ms), *map(str, one[1:])]) for one, _ in found]
        return _csv("time,count,mean,median,mode,low,high,deviation", [lines])
    return json_answer({
        "node": node, "sensor": sensor, "span_s": window_ms / 1000, "closed": closed,
        "windows": [{
            "time": rfc3339(one.end_ms), "count": one.values, "mean": one.mean, "median": one.median,
            "mode": one.mode, "low": one.low, "high": one.high, "deviation": one.deviation,
        } | ({"closed": edge} if edge != closed else {}) for one, edge in found],
    })  # fmt: skip


def _named(context: RequestContext) -> tuple[str, str]:
    """Return the node (by its current name) and the sensor of a query, or empty strings. Raises HTTPError 400."""
    query = context.request.query
    node = name_in(query, "node", NODE_NAME)
    return context.app.ingestor.names.current(node), name_in(query, "sensor", SENSOR_NAME)


def requested_store(context: RequestContext) -> Store:
    """Return the store with calibrated values, or the one with raw values if the query of `context` has `raw=1`.

    Raises HTTPError 400 if `raw` is invalid.
    """
    is_raw = context.request.query.get("raw", "0")
    if is_raw not in ("0", "1"):
        raise HTTPError(400, "`raw` must be 0 or 1.", "raw")
    return raw_store(context.app.store) if is_raw == "1" else context.app.store


def _form(query: Mapping[str, str]) -> str:
    form = query.get("format", "json")
    if form not in ("json", "csv"):
        raise HTTPError(400, "`format` must be json or csv.", "format")
    return form


def _only(sensor: str, point: StoredSample) -> StoredSample:
    return point._replace(values={sensor: point.values.get(sensor)}) if sensor else point


def _point(point: StoredSample) -> dict[str, Any]:
    about = {
        "node": point.node, "time": rfc3339(point.time_ms), "epoch": point.epoch, "seq": point.seq,
        "values": point.values,
    }  # fmt: skip
    return about | ({"clock": point.clock} if point.clock else {})


def _cells(point: StoredSample) -> Iterator[str]:
    for name, value in point.values.items():
        text = "" if value is None else repr(value)
        yield f"{rfc3339(point.time_ms)},{point.node},{point.epoch},{point.seq},{name},{text}"


def _column_cells(time_text: str, column: Bucket) -> Iterator[str]:
    yield f"{time_text},{column.values},{column.low!r},{column.high!r},{column.mean!r}"


def _csv(head: str, rows: Iterable[Iterable[str]]) -> Response:
    """Return rows as CSV. No cell needs quotes, since names consist of letters, digits, dots, _ and -."""
    lines = [head, *(line for row in rows for line in row)]
    return Response(
        ("\n".join(lines) + "\n").encode(), "text/csv; charset=utf-8", headers={"Cache-Control": "no-store"}
    )


# ------------------------------------------------------------------------------------------------------ health


def health(context: RequestContext) -> Response:
    """Return the current faults for `context`, one text per fault, for `control.py check`: `GET /api/v1/health`."""
    snapshot = context.snapshot()
    faults = list(snapshot.faults)
    faults += [
        f"{node.name or node.address}: {node.words}" for node in snapshot.nodes if node.state in ("late", "lost")
    ]
    faults += [f"{node.name or node.address}: {text}" for node in snapshot.nodes for text in node.warnings]
    faults += [
        f"{sensor.node} {sensor.name}: {sensor.fault}"
        for node in snapshot.nodes if node.state == "reporting"
        for sensor in node.readings if sensor.fault
    ]  # fmt: skip
    faults += read_faults(context.app.transports)
    faults += recent_losses(context)
    use = context.app.disk.use()
    disk = {
        "stored_bytes": use.stored, "free_bytes": use.free, "grows_bytes_a_day": use.grows,
        "written_bytes_a_day": use.written, "days_left": use.days,
    }  # fmt: skip
    return json_answer({
        "well": not faults, "verdict": f"{snapshot.summary}.", "faults": faults,
        "time_zone": zone_name(snapshot.now_ms), "disk": disk,
    })  # fmt: skip


def alive(context: RequestContext) -> Response:
    """Return `ok`, or the status 503 if nothing can be stored, for `context`: `GET /healthz`.

    The response contains nothing else, since any client may request it. A fault that lasts until samples are stored is
    not enough: a load balancer would then send no samples, and the fault would never end.
    """
    if context.app.ingestor.is_blocked:
        return text_page("nothing can be stored\n", 503)
    return text_page("ok\n")
