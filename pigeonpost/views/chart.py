"""Charts of up to six sensors over up to twelve years: the data, as SVG, as JSON and as CSV.

May be used by any thread. `_lock` guards the cache of recent charts; `_drawing` allows two to be drawn at once, since
each reads all samples of its span. Errors: HTTPError.

The style is in the SVG file itself, so that an <img> has it; the response's Content-Security-Policy names its hash.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast
from urllib.parse import urlencode

from pigeonpost.charts.axes import LARGE, SMALL, WIDE, Frame
from pigeonpost.charts.svg import COLOURS, MOST_SERIES, STYLE, Series, draw, fitted
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.strict_json import write_json
from pigeonpost.core.units import conversion
from pigeonpost.http.message import SAFE_HEADERS, HTTPError, Response, parse_form
from pigeonpost.server.late_data import LateDataTracker
from pigeonpost.storage.csv.format import local_time
from pigeonpost.views.context import RequestContext
from pigeonpost.views.query import moment, name_in, span_ms
from pigeonpost.views.sensor_units import bucket_in
from protocol import NODE_NAME, SENSOR_NAME

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.node_status import NodeLink
    from pigeonpost.storage.models import Bucket

SPAN = "24h"  # where nothing is said
_YEAR_10_000_MS = 253_402_300_800_000
_MOST = 1e300  # of a value that is drawn
_LEAST = 1e-300  # what is nearer to 0 is drawn at 0
LONGEST_MS = 12 * 366 * 86_400_000
_KEPT = 64  # series, drawn charts, lists of numbers; up to 6 x 450 columns each
_FRAMES = {"small": SMALL, "large": LARGE}
_AS_MEASURED: Mapping[str, str] = {}
T = TypeVar("T")


class Asked(NamedTuple):
    """The request for a chart.

    names  node and sensor of each series
    span   as it was asked for; empty: from `from_ms` on
    ends   whether `to_ms` was asked for; else it is now
    """

    names: tuple[tuple[str, str], ...]
    from_ms: int
    to_ms: int
    span: str
    ends: bool

    def query(self, **more: str) -> str:
        """Return the query string of the same chart."""
        said = {"series": ",".join(f"{node}/{sensor}" for node, sensor in self.names)}
        if self.span:
            said["span"] = self.span
        else:
            said["from"] = _written(self.from_ms)
        if self.ends:
            said["to"] = _written(self.to_ms)
        return urlencode(said | more, safe="/,:")


def _written(time_ms: int) -> str:
    """Return a moment for a query string. RFC 3339 ends with the year 9999."""
    return rfc3339(time_ms) if time_ms < _YEAR_10_000_MS else str(time_ms)


class Charts:
    """Draws charts, and caches recent ones."""

    def __init__(self, clock: Clock, links: Sequence[NodeLink] = ()) -> None:
        """links: all nodes that are collected from; it may grow"""
        self.late = LateDataTracker(clock, links)
        self._lock = threading.Lock()
        self._kept: dict[object, tuple[float, object]] = {}
        self._drawing = threading.BoundedSemaphore(2)
        digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        policy = SAFE_HEADERS["Content-Security-Policy"].replace("style-src 'self'", f"style-src 'sha256-{digest}'")
        self._headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}

    def answer(self, context: RequestContext) -> Response:
        """`/chart.svg?node=&sensor=&span=24h`, or `series=NODE/SENSOR,NODE/SENSOR`; also `from=`, `to=`.

        `size=small` is for a phone, or for two side by side; `size=large` for a page of its own.
        """
        svg = self._made(
            context, "svg", lambda all_series, frame, now_ms: draw(all_series, frame, now_ms).encode(),
            context.preferences.units,
        )  # fmt: skip
        return Response(svg, "image/svg+xml", headers=self._headers)

    def as_json(self, context: RequestContext) -> Response:
        """`/chart.json?...`: the columns that the same `/chart.svg?...` draws, and where in it they are.

        Values are as measured; with `units=shown` in the units that the user has chosen, like the picture.
        """
        units = context.preferences.units if context.request.query.get("units") == "shown" else _AS_MEASURED
        body = self._made(context, "json", _json, units)
        return Response(body, "application/json", headers={"Cache-Control": "no-store"})

    def as_csv(self, context: RequestContext) -> Response:
        """`/chart.csv?...`: the same, a line a column of each series; as measured."""
        body = self._made(context, "csv", _csv, _AS_MEASURED)
        return Response(body, "text/csv; charset=utf-8", headers={"Cache-Control": "no-store"})

    def series(self, context: RequestContext, what: Asked, frame: Frame, units: Mapping[str, str]) -> list[Series]:
        """Return the series of the chart, from the cache or from the store.

        units  in which they are shown, as Preferences.units
        """
        measured = self._once(context, "series", what, frame, lambda: self._read(context, what, frame))
        return [_in_units(one, units) for one in measured]

    def _made(
        self,
        context: RequestContext,
        kind: str,
        make: Callable[[Sequence[Series], Frame, int], bytes],
        units: Mapping[str, str],
    ) -> bytes:
        what, frame = asked(context, _FRAMES.get(context.request.query.get("size", ""), WIDE), units)
        now_ms = context.app.clock.wall_ms()
        return self._once(
            context, (kind, *sorted(units.items())), what, frame,
            lambda: make(self.series(context, what, frame, units), frame, now_ms),
        )  # fmt: skip

    def _once(self, context: RequestContext, kind: object, what: Asked, frame: Frame, make: Callable[[], T]) -> T:
        """Return the result of `make`, cached for a quarter of a column's time, at most a minute."""
        now_s = context.app.clock.monotonic()
        key = kind, what.names, what.from_ms, what.to_ms, frame
        keep_s = max(1.0, min(60.0, (what.to_ms - what.from_ms) // frame.columns / 4000))
        with self._lock:
            made_s, made = self._kept.get(key, (-1.0, None))
        if made is not None and 0 <= now_s - made_s < keep_s:
            return cast("T", made)
        found = make()
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = now_s, found
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        return found

    def _read(self, context: RequestContext, what: Asked, frame: Frame) -> list[Series]:
        if not self._drawing.acquire(timeout=5):
            raise HTTPError(503, "Too many charts at once; try again in a moment.", "busy", {"Retry-After": "2"})
        try:
            store, found = context.app.store, {}
            for node in dict.fromkeys(node for node, _ in what.names):
                sensors = [sensor for other, sensor in what.names if other == node]
                found[node] = store.downsample_several(node, what.from_ms, what.to_ms, frame.columns, sensors)
            return [
                self._one(context, what, frame, place, found[node][sensor])
                for place, (node, sensor) in enumerate(what.names)
            ]
        finally:
            self._drawing.release()

    def _one(self, context: RequestContext, what: Asked, frame: Frame, place: int, found: Sequence[Bucket]) -> Series:
        node, sensor = what.names[place]
        view = context.snapshot().node(node)
        assert view is not None, "looked up before"
        known = next((one for one in view.sensors if one.name == sensor), None)
        columns = [
            column if column.high < _MOST and column.low > -_MOST and not _is_tiny(column) else _tamed(column)
            for column in found
        ]
        every_ms = view.every_s * 1000 if view.every_s else None
        unit, number = (known.unit, known.number) if known else ("", 0)
        late = self.late.within(node, what.from_ms, what.to_ms) if columns else ()
        return Series(
            node, sensor, unit, place if len(what.names) > 1 else number % COLOURS, columns, frame.columns,
            what.from_ms, what.to_ms, every_ms, late, name=known.label if known else "",
        )  # fmt: skip


def _in_units(series: Series, units: Mapping[str, str]) -> Series:
    to = conversion(series.unit, units)
    if not to.changes:
        return series
    columns = [bucket_in(column, to) for column in series.columns]
    return series._replace(unit=to.unit, columns=columns, conversion=to)


def _tamed(column: Bucket) -> Bucket:
    """Limit a bucket to values that an axis can be calculated for: near the ends of floats it is infinite, or 0."""
    if _is_tiny(column):
        return column._replace(low=0.0, high=0.0, mean=0.0)
    low, high = (min(max(value, -_MOST), _MOST) for value in (column.low, column.high))
    return column._replace(low=low, high=high, mean=min(max(column.mean, low), high))


def _is_tiny(column: Bucket) -> bool:
    return -_LEAST < column.low <= column.high < _LEAST and (column.low != 0 or column.high != 0)


# ------------------------------------------------------------------------------------------------- what is asked for


def asked(
    context: RequestContext,
    frame: Frame,
    units: Mapping[str, str],
    query: Mapping[str, str] | None = None,
    when: Callable[[str], int] = moment,
) -> tuple[Asked, Frame]:
    """Return the chart that is requested, and its frame. Raises HTTPError.

    units  in which it is shown, as Preferences.units: each has an axis
    query  None: that of the request
    when   reads a time
    """
    query = context.request.query if query is None else query
    current, now_ms = context.app.ingestor.names.current, context.app.clock.wall_ms()
    names = tuple((current(node), sensor) for node, sensor in names_in(query))
    frame = fitted(frame, len(names), len(_units(context, names, units)))
    to_ms = when(query["to"]) if "to" in query else now_ms
    from_ms = when(query["from"]) if "from" in query else to_ms - span_ms(query.get("span", SPAN))
    if not 0 <= from_ms < to_ms or to_ms - from_ms > LONGEST_MS:
        raise HTTPError(400, f"A chart shows up to {LONGEST_MS // 86_400_000} days, from before to.", "span")
    width_ms = max(1, (to_ms - from_ms) // frame.columns)
    if "to" not in query:  # whole columns, so that the same chart is asked for until the next one begins
        to_ms = -(-to_ms // width_ms) * width_ms
    from_ms = to_ms - width_ms * frame.columns if "from" not in query else from_ms
    span = "" if "from" in query else query.get("span", SPAN)
    return Asked(names, from_ms, to_ms, span, "to" in query), frame


def names_in(query: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return node and sensor of each series in a query. Raises HTTPError."""
    if "series" not in query:
        return ((name_in(query, "node", NODE_NAME), name_in(query, "sensor", SENSOR_NAME)),)
    parts = [part.partition("/") for part in query["series"].split(",")]
    names = tuple(dict.fromkeys((node, sensor) for node, _, sensor in parts))
    if len(names) > MOST_SERIES:
        raise HTTPError(400, f"A chart has at most {MOST_SERIES} series.", "series")
    if not all(NODE_NAME(node) and SENSOR_NAME(sensor) for node, sensor in names):
        raise HTTPError(400, "Series are NODE/SENSOR, with a comma between two.", "series")
    return names


def _units(context: RequestContext, names: Sequence[tuple[str, str]], shown: Mapping[str, str]) -> set[str]:
    """Return the units of the series, one per axis. Raises HTTPError for an unknown node, and for too many units."""
    snapshot, units = context.snapshot(), set()
    for node, sensor in names:
        view = snapshot.node(node) if sensor else None
        if view is None:
            raise HTTPError(404, "A chart is of a node and a sensor: /chart.svg?node=NAME&sensor=NAME", "unknown-node")
        measured = next((one.unit for one in view.sensors if one.name == sensor), "")
        units.add(conversion(measured, shown).unit)
    if len(units) > 2:
        raise HTTPError(400, "A chart has two axes, so its series have at most two units.", "units")
    return units


def plain_query(text: str) -> str:
    """Return the normal form of a chart's query, without unknown fields. Raises HTTPError."""
    query = parse_form(text)
    said = {"series": ",".join(f"{node}/{sensor}" for node, sensor in names_in(query) if sensor)}
    if not said["series"]:
        raise HTTPError(400, "A graph has at least one series.", "series")
    for key in ("from", "to"):
        if key in query:
            said[key] = _written(moment(query[key]))
    if "from" not in query:
        span = query.get("span", SPAN)
        span_ms(span)
        said["span"] = span
    return urlencode(said, safe="/,:")


# ------------------------------------------------------------------------------------------------------- for programs


def _json(all_series: Sequence[Series], frame: Frame, now_ms: int) -> bytes:
    first = all_series[0]
    return write_json({
        "from": rfc3339(first.from_ms), "to": rfc3339(first.to_ms),
        "plot": {"width": frame.width, "left": frame.left, "right": frame.left + frame.plot},
        "times": [local_time(_time_ms(first, place)) for place in range(first.places)],
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
    }).encode() + b"\n"  # fmt: skip


def _csv(all_series: Sequence[Series], frame: Frame, now_ms: int) -> bytes:
    """No cell needs quotes: names have neither commas nor quotation marks."""
    lines = ["time,node,sensor,count,low,high,mean"]
    for one in all_series:
        about = f"{one.node},{one.sensor}"
        lines += [
            f"{rfc3339(_time_ms(one, at.place))},{about},{at.values},{at.low!r},{at.high!r},{at.mean!r}"
            for at in one.columns
        ]
    return ("\n".join(lines) + "\n").encode()


def _time_ms(series: Series, place: int) -> int:
    """Return the time at which a column begins."""
    return series.from_ms + place * (series.to_ms - series.from_ms) // series.places
