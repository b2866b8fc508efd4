"""Charts of up to six sensors over up to twelve years: data, SVG, JSON and CSV.

Any thread may use it. `_lock` guards the cache of recent charts. The semaphore `_drawing` limits the charts drawn at
the same time to two, since each one may read all samples of its range. Errors: HTTPError.

The style is part of the SVG file, so that it also applies in an <img>. The Content-Security-Policy of the response
contains its hash.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from urllib.parse import urlencode

from pigeonpost.charts.axes import LARGE, SMALL, WIDE, Frame
from pigeonpost.charts.svg import COLOURS, MOST_SERIES, STYLE, Series, draw, fitted
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import date_and_time
from pigeonpost.core.strict_json import write_json
from pigeonpost.core.units import conversion
from pigeonpost.http.message import SAFE_HEADERS, HTTPError, Response, parse_form
from pigeonpost.server.late_data import LateDataTracker
from pigeonpost.views.context import RequestContext
from pigeonpost.views.query import moment, name_in, span_ms
from pigeonpost.views.sensor_units import bucket_in
from protocol import NODE_NAME, SENSOR_NAME

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.node_status import NodeLink
    from pigeonpost.storage.models import Bucket

SPAN = "24h"  # default length of the range
_YEAR_10_000_MS = 253_402_300_800_000
_MOST = 1e300  # the largest value that is drawn
_LEAST = 1e-300  # smaller values are drawn as 0
LONGEST_MS = 12 * 366 * 86_400_000
_KEPT = 64  # cached results: series, or charts as SVG, JSON or CSV; each has up to 6 x 450 columns
_FRAMES = {"small": SMALL, "large": LARGE}
_AS_MEASURED: Mapping[str, str] = {}
T = TypeVar("T")


class ChartRequest(NamedTuple):
    """A request for a chart.

    Attributes:
        names: Node and sensor of each series.
        from_ms: Start in ms since 1970 (UTC).
        to_ms: End in ms since 1970 (UTC).
        span: The requested length, such as `24h`; empty if the query contains a start.
        ends: True if the query contains an end; otherwise the chart ends with the current time.
    """

    names: tuple[tuple[str, str], ...]
    from_ms: int
    to_ms: int
    span: str
    ends: bool

    def query(self, **more: str) -> str:
        """Return the query string of this chart, with the further fields `more`."""
        fields = {"series": ",".join(f"{node}/{sensor}" for node, sensor in self.names)}
        if self.span:
            fields["span"] = self.span
        else:
            fields["from"] = _written(self.from_ms)
        if self.ends:
            fields["to"] = _written(self.to_ms)
        return urlencode(fields | more, safe="/,:")


def _written(time_ms: int) -> str:
    """Return a time for a query string, in RFC 3339. After the year 9999, which is its limit, use ms since 1970."""
    return rfc3339(time_ms) if time_ms < _YEAR_10_000_MS else str(time_ms)


class Charts:
    """Renderer of charts, with a cache of recent ones."""

    def __init__(self, clock: Clock, links: Sequence[NodeLink] = (), late_path: str = "") -> None:
        """Create an empty cache.

        Args:
            clock: Clock of the server.
            links: All nodes from which this server collects; the sequence may grow.
            late_path: Path of the file with the ranges of late samples; empty to keep them in memory only.
        """
        self.late = LateDataTracker(clock, links, late_path)
        self._lock = threading.Lock()
        self._kept: dict[object, tuple[float, object]] = {}
        self._calibrations = 0  # number of their changes
        self._drawing = threading.BoundedSemaphore(2)
        digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        policy = SAFE_HEADERS["Content-Security-Policy"].replace("style-src 'self'", f"style-src 'sha256-{digest}'")
        self._headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}

    def answer(self, context: RequestContext) -> Response:
        """Return the chart that `context` requests as SVG: `/chart.svg?node=&sensor=&span=24h`.

        Several series are requested with `series=NODE/SENSOR,NODE/SENSOR`, and a range with `from=` and `to=`.
        `size=small` is for phones and for charts side by side, `size=large` for the page of the chart.
        """
        svg = self._made(
            context, "svg", lambda all_series, frame, now_ms: draw(all_series, frame, now_ms).encode(),
            context.preferences.units,
        )  # fmt: skip
        return Response(svg, "image/svg+xml", headers=self._headers)

    def as_json(self, context: RequestContext) -> Response:
        """Return the data of the chart that `context` requests as JSON: `/chart.json?...`.

        It contains the position of the plot in the picture. Times are in UTC, and values in the measured units. With
        `units=shown`, values are in the units that the user has chosen, as in the SVG, and `shown_times` contains the
        times in the local time of the server. The other fields of the query are those of `/chart.svg`.
        """
        if context.request.query.get("units") == "shown":
            body = self._made(context, "shown", _json_to_show, context.preferences.units)
        else:
            body = self._made(context, "json", _json, _AS_MEASURED)
        return Response(body, "application/json", headers={"Cache-Control": "no-store"})

    def as_csv(self, context: RequestContext) -> Response:
        """Return the data of the chart that `context` requests as CSV: `/chart.csv?...`.

        There is one line per column of each series. Values are in the measured units.
        """
        body = self._made(context, "csv", _csv, _AS_MEASURED)
        return Response(body, "text/csv; charset=utf-8", headers={"Cache-Control": "no-store"})

    def series(
        self, context: RequestContext, chart: ChartRequest, frame: Frame, units: Mapping[str, str]
    ) -> list[Series]:
        """Return the series of a chart, from the cache or from the store.

        Args:
            context: The request.
            chart: The requested chart.
            frame: Dimensions of the chart.
            units: Units to convert to, as Preferences.units.
        """
        measured = self._once(context, "series", chart, frame, lambda: self._read(context, chart, frame))
        return [_in_units(one, units) for one in measured]

    def forget(self, node: str) -> None:
        """Remove all cached charts: the calibrations of `node` have changed."""
        with self._lock:
            self._calibrations += 1
            self._kept.clear()

    def _made(
        self,
        context: RequestContext,
        kind: str,
        make: Callable[[Sequence[Series], Frame, int], bytes],
        units: Mapping[str, str],
    ) -> bytes:
        chart, frame = read_chart_request(context, _FRAMES.get(context.request.query.get("size", ""), WIDE), units)
        now_ms = context.app.clock.wall_ms()
        return self._once(
            context, (kind, *sorted(units.items())), chart, frame,
            lambda: make(self.series(context, chart, frame, units), frame, now_ms),
        )  # fmt: skip

    def _once(
        self, context: RequestContext, kind: object, chart: ChartRequest, frame: Frame, make: Callable[[], T]
    ) -> T:
        """Return the result of `make`, cached for a quarter of the duration of a column (1 s to 60 s)."""
        now_s = context.app.clock.monotonic()
        key = kind, chart.names, chart.from_ms, chart.to_ms, frame
        keep_s = max(1.0, min(60.0, (chart.to_ms - chart.from_ms) // frame.columns / 4000))
        with self._lock:
            made_s, made = self._kept.get(key, (-1.0, None))
        if made is not None and 0 <= now_s - made_s < keep_s:
            return cast("T", made)
        calibrations = self._calibrations
        found = make()
        with self._lock:
            if calibrations != self._calibrations:
                return found
            self._kept.pop(key, None)
            self._kept[key] = now_s, found
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        return found

    def _read(self, context: RequestContext, chart: ChartRequest, frame: Frame) -> list[Series]:
        if not self._drawing.acquire(timeout=5):
            raise HTTPError(
                503, "Too many charts are being drawn; try again in a moment.", "busy", {"Retry-After": "2"}
            )
        try:
            store, found = context.app.store, {}
            for node in dict.fromkeys(node for node, _ in chart.names):
                sensors = [sensor for other, sensor in chart.names if other == node]
                found[node] = store.downsample_several(node, chart.from_ms, chart.to_ms, frame.columns, sensors)
            return [
                self._one(context, chart, frame, place, found[node][sensor])
                for place, (node, sensor) in enumerate(chart.names)
            ]
        finally:
            self._drawing.release()

    def _one(
        self, context: RequestContext, chart: ChartRequest, frame: Frame, place: int, found: Sequence[Bucket]
    ) -> Series:
        node, sensor = chart.names[place]
        view = context.snapshot().node(node)
        assert view is not None, "looked up before"
        known = next((one for one in view.sensors if one.name == sensor), None)
        columns = [
            column if column.high < _MOST and column.low > -_MOST and not _is_tiny(column) else _limited(column)
            for column in found
        ]
        every_ms = view.every_s * 1000 if view.every_s else None
        unit, number = (known.unit, known.number) if known else ("", 0)
        late = self.late.within(node, chart.from_ms, chart.to_ms) if columns else ()
        return Series(
            node, sensor, unit, place if len(chart.names) > 1 else number % COLOURS, columns, frame.columns,
            chart.from_ms, chart.to_ms, every_ms, late, name=known.label if known else "",
        )  # fmt: skip


def _in_units(series: Series, units: Mapping[str, str]) -> Series:
    to = conversion(series.unit, units)
    if not to.changes:
        return series
    columns = [bucket_in(column, to) for column in series.columns]
    return series._replace(unit=to.unit, columns=columns, conversion=to)


def _limited(column: Bucket) -> Bucket:
    """Limit the values of a bucket so that an axis can be calculated.

    With values near the limits of floats, intermediate results would become infinite or 0.
    """
    if _is_tiny(column):
        return column._replace(low=0.0, high=0.0, mean=0.0)
    low, high = (min(max(value, -_MOST), _MOST) for value in (column.low, column.high))
    return column._replace(low=low, high=high, mean=min(max(column.mean, low), high))


def _is_tiny(column: Bucket) -> bool:
    return -_LEAST < column.low <= column.high < _LEAST and (column.low != 0 or column.high != 0)


# ------------------------------------------------------------------------------------------------------ the request


def read_chart_request(
    context: RequestContext,
    frame: Frame,
    units: Mapping[str, str],
    query: Mapping[str, str] | None = None,
    when: Callable[[str], int] = moment,
) -> tuple[ChartRequest, Frame]:
    """Return the request for a chart that a query contains, and the frame of the chart.

    Args:
        context: The request.
        frame: Frame for one series.
        units: Units to convert to, as Preferences.units. Each unit of the chart has an axis.
        query: The query, or None for that of `context`.
        when: Function that parses a time.

    Raises:
        HTTPError: 400 for an invalid range, or too many series or units; 404 for an unknown node.
    """
    query = context.request.query if query is None else query
    current, now_ms = context.app.ingestor.names.current, context.app.clock.wall_ms()
    names = tuple((current(node), sensor) for node, sensor in names_in(query))
    frame = fitted(frame, len(names), len(_units(context, names, units)))
    to_ms = when(query["to"]) if "to" in query else now_ms
    from_ms = when(query["from"]) if "from" in query else to_ms - span_ms(query.get("span", SPAN))
    if not 0 <= from_ms < to_ms or to_ms - from_ms > LONGEST_MS:
        raise HTTPError(
            400, f"A chart shows at most {LONGEST_MS // 86_400_000} days, and `from` must be before `to`.", "span"
        )
    width_ms = max(1, (to_ms - from_ms) // frame.columns)
    if "to" not in query:  # complete columns, so that the cached chart is valid until the next column begins
        to_ms = -(-to_ms // width_ms) * width_ms
    from_ms = to_ms - width_ms * frame.columns if "from" not in query else from_ms
    span = "" if "from" in query else query.get("span", SPAN)
    return ChartRequest(names, from_ms, to_ms, span, "to" in query), frame


def names_in(query: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the node and the sensor of each series in `query`.

    Raises HTTPError 400 if a name is invalid or there are too many series.
    """
    if "series" not in query:
        return ((name_in(query, "node", NODE_NAME), name_in(query, "sensor", SENSOR_NAME)),)
    parts = [part.partition("/") for part in query["series"].split(",")]
    names = tuple(dict.fromkeys((node, sensor) for node, _, sensor in parts))
    if len(names) > MOST_SERIES:
        raise HTTPError(400, f"A chart can have at most {MOST_SERIES} series.", "series")
    if not all(NODE_NAME(node) and SENSOR_NAME(sensor) for node, sensor in names):
        raise HTTPError(400, "`series` must be a list of NODE/SENSOR, separated by commas.", "series")
    return names


def _units(context: RequestContext, names: Sequence[tuple[str, str]], shown: Mapping[str, str]) -> set[str]:
    """Return the units of the series, one per axis. Raises HTTPError for an unknown node or too many units."""
    snapshot, units = context.snapshot(), set()
    for node, sensor in names:
        view = snapshot.node(node) if sensor else None
        if view is None:
            missing = (
                "There is no node with that name."
                if node and sensor
                else "Name a node and a sensor: series=NODE/SENSOR."
            )
            raise HTTPError(404, missing, "unknown-node")
        measured = next((one.unit for one in view.sensors if one.name == sensor), "")
        units.add(conversion(measured, shown).unit)
    if len(units) > 2:
        raise HTTPError(400, "A chart has two axes, so its series can have at most two units.", "units")
    return units


def plain_query(text: str) -> str:
    """Return the query string `text` of a chart in its normal form, without unknown fields.

    Raises HTTPError 400 if it has no series, or an invalid field.
    """
    query = parse_form(text)
    fields = {"series": ",".join(f"{node}/{sensor}" for node, sensor in names_in(query) if sensor)}
    if not fields["series"]:
        raise HTTPError(400, "A graph must have at least one series.", "series")
    for key in ("from", "to"):
        if key in query:
            fields[key] = _written(moment(query[key]))
    if "from" not in query:
        span = query.get("span", SPAN)
        span_ms(span)
        fields["span"] = span
    return urlencode(fields, safe="/,:")


# ------------------------------------------------------------------------------------------------------- for programs


def _json(all_series: Sequence[Series], frame: Frame, now_ms: int) -> bytes:
    return write_json(_data(all_series, frame)).encode() + b"\n"


def _json_to_show(all_series: Sequence[Series], frame: Frame, now_ms: int) -> bytes:
    """Return the JSON for the script of the page, which shows the times as the server writes them."""
    first = all_series[0]
    shown = [date_and_time(_time_ms(first, place)) for place in range(first.places)]
    return write_json({**_data(all_series, frame), "shown_times": shown}).encode() + b"\n"


def _data(all_series: Sequence[Series], frame: Frame) -> dict[str, Any]:
    first = all_series[0]
    return {
        "from": rfc3339(first.from_ms), "to": rfc3339(first.to_ms),
        "plot": {"width": frame.width, "left": frame.left, "right": frame.left + frame.plot},
        "times": [rfc3339(_time_ms(first, place)) for place in range(first.places)],
        "series": [{
            "node": series.node, "sensor": series.sensor, "unit": series.unit,
            "columns": [{
                "place": column.place, "count": column.values, "low": column.low, "high": column.high,
                "mean": column.mean,
            } for column in series.columns],
            "late": [{
                "from": rfc3339(span.first_ms), "to": rfc3339(span.last_ms),
                "why": "came late" if span.is_late else "clock not set",
            } for span in series.late],
        } for series in all_series],
    }  # fmt: skip


def _csv(all_series: Sequence[Series], frame: Frame, now_ms: int) -> bytes:
    """Return the series as CSV. No cell needs quotes: names have neither commas nor quotation marks."""
    lines = ["time,node,sensor,count,low,high,mean"]
    for one in all_series:
        about = f"{one.node},{one.sensor}"
        lines += [
            f"{rfc3339(_time_ms(one, at.place))},{about},{at.values},{at.low!r},{at.high!r},{at.mean!r}"
            for at in one.columns
        ]
    return ("\n".join(lines) + "\n").encode()


def _time_ms(series: Series, place: int) -> int:
    """Return the start of the column at `place` in ms since 1970."""
    return series.from_ms + place * (series.to_ms - series.from_ms) // series.places
