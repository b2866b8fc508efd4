"""Page of one sensor: value, chart, limits, and statistics of a day to a year.

It is available as HTML, text for a terminal, JSON and CSV. Values are calibrated: by the node, with the settings of its
source, and then by this server (storage/calibration.py). Errors: HTTPError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import age, number, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.units import conversion
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.views.calibration_part import calibration_lines, calibration_table, calibrations_json, raw_value
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import html_page, json_answer, sensor_path, span_links, text_page
from pigeonpost.views.models import SensorView
from pigeonpost.views.quality_flags import flags_table, flags_text
from pigeonpost.views.sensor_units import in_units, statistics_in
from pigeonpost.views.statistics import (
    Row,
    Statistics,
    StatisticsReader,
    statistics_json,
    statistics_table,
    statistics_text,
)
from protocol import SENSOR_NAME

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
SPANS = (("day", "last 24 hours", 1), ("week", "last 7 days", 7), ("month", "last 30 days", 30),
         ("year", "last 365 days", 365))  # fmt: skip
_CHARTS = (("1h", "hour"), ("24h", "day"), ("7d", "week"), ("30d", "30 days"), ("366d", "year"), ("1830d", "5 years"))
_KINDS = (".json", ".csv", ".html")
Figures = Sequence[tuple[str, "Statistics | None"]]  # text about each range, and its statistics


class SensorPages:
    """The page of a sensor, in all its formats."""

    def __init__(self, statistics: StatisticsReader, chart: Callable[[RequestContext, str, str, str], Html]) -> None:
        """Create the pages.

        Args:
            statistics: Reader of the statistics.
            chart: Function that returns the chart of a sensor, as ChartPage.part.
        """
        self._statistics_reader = statistics
        self._chart = chart

    def answer(self, context: RequestContext) -> Response:
        """Return the page for `context`: `/nodes/NAME/SENSOR`, also with `.json` or `.csv`.

        `?span=` is the range of the chart.
        """
        node, word = context.args
        kind = next((end for end in _KINDS if word.endswith(end)), "")
        view = _found(context, node, word.removesuffix(kind))
        if kind == ".json":
            return self._json(context, view)
        if kind == ".csv":
            return self._csv(context, view)
        units = context.preferences.units
        to = conversion(view.unit, units)
        figures = [(words, statistics_in(found, to)) for _, words, found in self._statistics(context, view)]
        shown = in_units(view, units)
        if not context.request.wants_html:
            return text_page("\n".join(_text(context, shown, figures)) + "\n", context=context)
        title = f"{view.title} of {node}"
        return html_page(title, self._body(context, shown, figures), context, live=True)

    def _statistics(self, context: RequestContext, view: SensorView) -> list[tuple[str, str, Statistics | None]]:
        now_ms = context.app.clock.wall_ms()
        return [
            (name, words, self._statistics_reader.of(view.node, view.name, now_ms - days * _DAY_MS, now_ms))
            for name, words, days in SPANS
        ]

    def _body(self, context: RequestContext, view: SensorView, figures: Figures) -> Html:
        span = context.request.query.get("span", "")
        span = span if span in dict(_CHARTS) else "24h" if view.span_ms > _HOUR_MS else "1h"
        path, now_ms = sensor_path(view.node, view.name), context.app.clock.wall_ms()
        data = f"/nodes/{view.node}/{view.name}"
        rows = [(words, found, view.unit) for words, found in figures]
        return join_html((
            Html('<h1>{} of <a href="/nodes/{}">{}</a></h1>').format(view.title, view.node, view.node),
            _now(view, now_ms),
            span_links(((f"{path}?span={key}", words, key == span) for key, words in _CHARTS), "chart"),
            self._chart(context, view.node, view.name, span),
            Html('<section data-piece="figures"><h2>Statistics</h2>{}<p class=links>Download: '
                 '<a href="{}.csv">CSV</a> · <a href="{}.json">JSON</a> {}</p></section>').format(
                statistics_table("time range", rows, now_ms), data, data, _about(rows)),
            calibration_table(context.app.timelines(view.node).get(view.name), raw_value(context, view), now_ms),
            flags_table([view]),
        ), "\n")  # fmt: skip

    def _json(self, context: RequestContext, view: SensorView) -> Response:
        return json_answer({
            "node": view.node, "sensor": view.name, "unit": view.unit, "simulated": view.simulated,
            "value": view.value, "stale": view.is_stale, "fault": view.fault,
            "time": rfc3339(view.time_ms) if view.time_ms is not None else None,
            "verdicts": [{"kind": kind, "text": text} for kind, text in view.flag_texts.items()],
            "verdict_counts": dict(view.counts), "limits": dict(view.limits),
            "raw": raw_value(context, view),
            "calibrations": calibrations_json(context.app.timelines(view.node).get(view.name)),
            "statistics": {name: statistics_json(found) for name, _, found in self._statistics(context, view)},
        })  # fmt: skip

    def _csv(self, context: RequestContext, view: SensorView) -> Response:
        """Return one line per range. Unknown values are empty cells. No cell needs quotes."""
        lines = ["span,from,to,count,mean,median,mode,low,low_time,high,high_time,deviation,median_is_exact"]
        for name, _, found in self._statistics(context, view):
            values = statistics_json(found)
            if values is not None:
                lines.append(",".join([name, *map(_csv_text, values.values())]))
        headers = {"Cache-Control": "no-store"}
        return Response(("\n".join(lines) + "\n").encode(), "text/csv; charset=utf-8", headers=headers)


def _text(context: RequestContext, view: SensorView, figures: Figures) -> Iterator[str]:
    now_ms = context.app.clock.wall_ms()
    site = context.request.site
    stale = " (stale)" if view.is_stale and view.value is not None else ""
    yield f"{view.title} of {view.node}: {_value(view)}{stale}{_age(view, now_ms)}."
    yield ""
    yield from statistics_text("time range", [(words, found, "") for words, found in figures], now_ms)
    judged = flags_text(view)
    yield from ["", *judged] if judged else []
    yield from calibration_lines(context.app.timelines(view.node).get(view.name), raw_value(context, view), now_ms)
    yield ""
    yield f"Values of the last day:    curl '{site}/chart?series={view.node}/{view.name}'"
    yield f"For programs:              curl {site}/nodes/{view.node}/{view.name}.json"


def _csv_text(value: Any) -> str:
    return "" if value is None else str(value).lower() if type(value) is bool else str(value)


def _found(context: RequestContext, node: str, name: str) -> SensorView:
    """Return the sensor, even if its node no longer has it, as long as samples are stored. Raises HTTPError 404."""
    snapshot = context.snapshot()
    view = snapshot.node(node)
    known = next((one for one in view.sensors if one.name == name), None) if view else None
    if known is not None:
        return known
    about: dict[str, Any] = next((one for one in context.app.store.nodes() if one["name"] == node), {})
    if view is None or not SENSOR_NAME(name) or name not in about.get("sensors", {}):
        raise HTTPError(404, "There is no sensor with that name.", "unknown-sensor")
    return SensorView(
        node=node, name=name, unit=about["sensors"][name], number=0, simulated=False, value=None,
        fault="the node no longer has this sensor", time_ms=None, is_stale=True, low=None, high=None, trend=None,
        columns=(), width_ms=1, span_ms=1,
    )  # fmt: skip


def _now(view: SensorView, now_ms: int) -> Html:
    """Return the value as on a card; the script keeps it up to date."""
    words = [*(["stale"] if view.is_stale and view.value is not None else []), *view.flag_texts.values()]
    flags = join_html((Html('<span class="odd">{}</span>').format(text) for text in words), " ")
    return Html(
        '<p class="now {}" data-piece="now"><b data-live="{}/{}">{}</b> <span class="unit">{}</span> {}'
        "{}{}</p>"
    ).format(
        "stale" if view.is_stale or view.value is None else "", view.node, view.name, number(view.value),
        view.unit if view.value is not None else "", Html("{} ").format(flags) if flags else "",
        Html('<span class="fault">{}</span> ').format(view.fault) if view.fault else "",
        Html('<span class="day">{}</span>').format(_age(view, now_ms).removeprefix(", ")),
    )  # fmt: skip


def _value(view: SensorView) -> str:
    return view.fault or with_unit(number(view.value), view.unit)


def _age(view: SensorView, now_ms: int) -> str:
    taken_ms = view.time_ms if view.taken_ms is None else view.taken_ms
    return f", {age(max(0, now_ms - taken_ms) / 1000)} ago" if taken_ms is not None else ""


def _about(rows: Sequence[Row]) -> str:
    if all(found is None or found.is_exact for _, found, _ in rows):
        return ""
    return "≈: weighted median and mode of windows of ten minutes (up to 14 days) or one hour; other values are exact."
