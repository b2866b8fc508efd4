"""Page of a chart: the chart, links to other ranges, statistics, a table of values, and a form to save it.

The page is complete without its script. With zoom.js, a range can be selected in the chart, and values are shown at the
pointer. Errors: HTTPError.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain, islice

from pigeonpost.charts.axes import LARGE, ticks
from pigeonpost.charts.svg import MOST_SERIES, Series, description, label, late_words, numbers, title
from pigeonpost.core.format import clock, number
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.units import conversion
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.storage.models import Bucket
from pigeonpost.views.chart import LONGEST_MS, ChartRequest, Charts, read_chart_request
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import disabled, html_page, key_notice, sensor_path, span_links, text_page
from pigeonpost.views.models import SensorView
from pigeonpost.views.query import moment
from pigeonpost.views.sensor_units import statistics_in
from pigeonpost.views.statistics import (
    Row,
    Statistics,
    StatisticsReader,
    statistics_of_buckets,
    statistics_table,
    statistics_text,
)

SPANS = (
    ("1h", "hour"), ("6h", "6 hours"), ("24h", "day"), ("7d", "week"), ("30d", "30 days"), ("366d", "year"),
    ("1830d", "5 years"),
)  # fmt: skip
_MOST_OFFERED = 200
_HOUR_MS = 3_600_000
_LOCAL = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(:\d\d)?").fullmatch


class ChartPage:
    """Page of a chart."""

    def __init__(self, charts: Charts, statistics: StatisticsReader) -> None:
        self._charts = charts
        self._statistics = statistics

    def answer(self, context: RequestContext) -> Response:
        """Return the page for `context`: `/chart?series=NODE/SENSOR,...&span=24h`, or with `from=` and `to=`.

        Times without a zone are in the local time of the server.
        """
        query = {key: value for key, value in context.request.query.items() if value or key not in ("from", "to")}
        units, now_ms = context.preferences.units, context.app.clock.wall_ms()
        chart, frame = read_chart_request(context, LARGE, units, query, local_moment)
        all_series = self._charts.series(context, chart, frame, units)
        name = title(all_series, now_ms)
        if not context.request.wants_html:
            return text_page("\n".join(self._text(context, chart, all_series, now_ms)) + "\n", context=context)
        body = join_html((
            Html("<h1>{}</h1>").format(heading(all_series)),
            _span_links(chart),
            _chart_image(chart, all_series, now_ms),
            _time_links(chart, now_ms),
            _from_to(chart),
            Html('<section data-piece="figures"><h2>Statistics</h2>{}<p class=links>{}</p></section>').format(
                statistics_table("series", list(self._rows(all_series)), now_ms), _links(chart)),
            Html('<details><summary>Values as a table</summary><div data-piece="numbers">{}</div></details>').format(
                _numbers(all_series, now_ms)),
            _choice(context, chart),
            _save_form(context, chart, heading(all_series)),
            Html('<script src="/zoom.js" defer></script>'),
        ), "\n")  # fmt: skip
        return html_page(name, body, context, live=not chart.ends)

    def part(self, context: RequestContext, node: str, sensor: str, span: str) -> Html:
        """Return the chart of one sensor with its links, for the page of the sensor.

        Args:
            context: The request.
            node: Name of the node.
            sensor: Name of the sensor.
            span: Length of the range, such as `24h`.

        Raises:
            HTTPError: 400 for an invalid span.
        """
        query = {"series": f"{node}/{sensor}", "span": span}
        units, now_ms = context.preferences.units, context.app.clock.wall_ms()
        chart, frame = read_chart_request(context, LARGE, units, query)
        all_series = self._charts.series(context, chart, frame, units)
        return Html("{}\n{}<p class=links>{}</p>{}").format(
            _chart_image(chart, all_series, now_ms), _time_links(chart, now_ms), _links(chart),
            Html('<script src="/zoom.js" defer></script>'),
        )  # fmt: skip

    def _rows(self, all_series: Sequence[Series]) -> Iterator[Row]:
        """Yield name, statistics and unit of each series for `statistics_table`."""
        for series in all_series:
            text = label(series, all_series, False) if len(all_series) > 1 else series.words
            link = Html('<a href="{}">{}</a>').format(sensor_path(series.node, series.sensor), text)
            yield link, self._of(series), series.unit

    def _of(self, series: Series) -> Statistics | None:
        found = self._statistics.of(series.node, series.sensor, series.from_ms, series.to_ms)
        found = statistics_in(found, series.conversion)
        return found or statistics_of_buckets(series.columns, series.from_ms, series.to_ms, series.places)

    def _text(
        self, context: RequestContext, chart: ChartRequest, all_series: Sequence[Series], now_ms: int
    ) -> Iterator[str]:
        yield f"{title(all_series, now_ms)}."
        yield ""
        yield description(all_series, now_ms)
        yield ""
        names = [label(series, all_series, True) if len(all_series) > 1 else series.words for series in all_series]
        yield from statistics_text("series", [(n, self._of(one), "") for n, one in zip(names, all_series)], now_ms)
        yield ""
        rows = [("TIME", *(name.upper() for name in names)), *_number_rows(all_series, now_ms)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        for row in rows:
            yield "  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip()
        yield ""
        site = context.request.site
        yield f"All columns:  curl '{site}/chart.csv?{chart.query(size='large')}'"


def local_moment(text: str) -> int:
    """Return the time `text` in ms since 1970, as query.moment does.

    A time without a zone, as the date fields of browsers send it, is in the local time of the server. Raises HTTPError
    400 if the time is invalid.
    """
    try:
        if not _LOCAL(text):
            return moment(text)
        t = datetime.fromisoformat(text)
        return int(time.mktime((*t.timetuple()[:6], 0, 0, -1))) * 1000
    except (HTTPError, ValueError, OverflowError):
        forms = "2026-11-20T15:36 (local time), 2026-11-20T15:36:10Z, or milliseconds since 1970"
        raise HTTPError(400, f"A time must be like {forms}.", "time") from None


def heading(all_series: Sequence[Series]) -> str:
    """Return the title of the chart of `all_series` without the range: `temperature and light of basement`."""
    return title(all_series, 0).rpartition(", ")[0]


def _chart_image(chart: ChartRequest, all_series: Sequence[Series], now_ms: int) -> Html:
    """Return the chart, its legend, the explanation of its marks, and the address of its page for zoom.js."""
    return Html(
        '<section class="charts single" aria-label="Chart">'
        '<figure class="plot" data-page="{page}"><picture>'
        '<source media="(max-width: 40rem)" srcset="/chart.svg?{small}" width="420" height="190">'
        '<img src="/chart.svg?{large}" alt="{text}" width="960" height="340"></picture></figure></section>'
        '{key}<p class="late" data-piece="late">{late}</p>'
    ).format(
        large=chart.query(size="large"), small=chart.query(size="small"), page=chart.query(),
        text=description(all_series, now_ms), late=" ".join(late_words(all_series, now_ms)), key=_key(all_series),
    )  # fmt: skip


def _key(all_series: Sequence[Series]) -> Html:
    """Return the legend of several series in their colours, for narrow screens, where the chart shortens the names."""
    if len(all_series) < 2:
        return Html("")
    names = join_html(
        Html('<li class="s{}">{}</li>').format(series.colour, label(series, all_series, True)) for series in all_series
    )
    return Html('<ul class="key">{}</ul>').format(names)


def _span_links(chart: ChartRequest) -> Html:
    links = (
        (f"/chart?{chart._replace(span=key, ends=False).query()}", words, key == chart.span and not chart.ends)
        for key, words in SPANS
    )
    return span_links(links, "chart")


def _time_links(chart: ChartRequest, now_ms: int) -> Html:
    """Return links to earlier, later, longer and shorter ranges."""
    wide_ms = chart.to_ms - chart.from_ms
    more_ms = min(wide_ms // 2, (LONGEST_MS - wide_ms) // 2)
    middle_ms, quarter_ms = chart.from_ms + wide_ms // 2, max(wide_ms // 4, 1)
    ways = [("← Earlier", chart.from_ms - wide_ms, chart.from_ms)] if chart.from_ms >= wide_ms else []
    if chart.to_ms < now_ms:
        ways.append(("Later →", chart.to_ms, chart.to_ms + wide_ms))
    if more_ms > 0 and chart.from_ms > more_ms:
        ways.append(("Zoom out", chart.from_ms - more_ms, min(chart.to_ms + more_ms, max(now_ms, chart.to_ms))))
    if wide_ms > 10_000:
        ways.append(("Zoom in", middle_ms - quarter_ms, middle_ms + quarter_ms))
    links = join_html((
        Html('<a class="button" href="/chart?{}">{}</a>').format(
            chart._replace(span="", from_ms=from_ms, to_ms=to_ms, ends=True).query(), words)
        for words, from_ms, to_ms in ways
    ), " ")  # fmt: skip
    return Html('<nav class="buttons" aria-label="Time navigation">{}</nav>').format(links)


def _from_to(chart: ChartRequest) -> Html:
    return Html(
        '<form class="fields" method="get" action="/chart"><input type="hidden" name="series" value="{}">'
        '<label>From <input type="datetime-local" name="from" value="{}" required></label>'
        '<label>to <input type="datetime-local" name="to" value="{}"></label><button>Show</button></form>'
    ).format(",".join(f"{node}/{sensor}" for node, sensor in chart.names), _field(chart.from_ms), _field(chart.to_ms))


def _field(time_ms: int) -> str:
    """Return a time as the value of a date field, in local time; empty after the year 9999."""
    t = time.localtime(time_ms // 1000)
    return time.strftime("%Y-%m-%dT%H:%M", t) if t.tm_year < 10_000 else ""


def _links(chart: ChartRequest) -> Html:
    query = chart.query(size="large")
    return Html(
        'Download: <a href="/chart.csv?{0}">CSV</a> · <a href="/chart.json?{0}">JSON</a>'
        ' · <a href="/chart.svg?{0}">SVG</a> · <a href="/chart.csv?{0}&amp;for=excel">CSV for Excel</a>'
    ).format(query)


def _numbers(all_series: Sequence[Series], now_ms: int) -> Html:
    """Return a table with the mean and the range of each series; its rows begin at round local times."""
    names = [label(series, all_series, True) if len(all_series) > 1 else series.words for series in all_series]
    head = join_html(Html("<th scope=col>{}</th>").format(name) for name in ("from", *names))
    rows = join_html(
        Html("<tr><th scope=row>{}</th>{}</tr>\n").format(when, join_html(
            Html("<td>{}</td>").format(text) for text in cells))
        for when, *cells in _number_rows(all_series, now_ms)
    )  # fmt: skip
    return Html("<table class=log><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table>").format(head, rows)


def _number_rows(all_series: Sequence[Series], now_ms: int) -> Iterator[tuple[str, ...]]:
    first = all_series[0]
    most = 12 if first.to_ms - first.from_ms < _HOUR_MS else 24
    marks = [1000 * time_s for time_s, _ in ticks(first.from_ms // 1000, first.to_ms // 1000, most)]
    begins = [first.from_ms, *(mark for mark in marks if first.from_ms < mark < first.to_ms)]
    has_seconds = any(begin % 60_000 for begin in begins[1:])
    for begin, end in zip(begins, [*begins[1:], first.to_ms]):
        yield clock(begin, now_ms, has_seconds), *(_cell(_between(series, begin, end)) for series in all_series)


def _between(series: Series, begin_ms: int, end_ms: int) -> list[Bucket]:
    """Return the columns whose middle is in [begin_ms, end_ms)."""
    width_ms = (series.to_ms - series.from_ms) / series.places
    return [one for one in series.columns if begin_ms <= series.from_ms + (one.place + 0.5) * width_ms < end_ms]


def _cell(columns: Sequence[Bucket]) -> str:
    if not columns:
        return "–"
    _, mean, low, high = numbers(columns)
    return number(mean) if low.low == high.high else f"{number(mean)} ({number(low.low)} to {number(high.high)})"


def _choice(context: RequestContext, chart: ChartRequest) -> Html:
    """Return links that remove a series, or add one. A series of a third unit is not offered: a chart has two axes."""
    links = join_html(Html("<li>{}</li>").format(link) for link in islice(_choices(context, chart), _MOST_OFFERED))
    if not links:
        return Html("")
    return Html(
        '<details class="choice"><summary>Add or remove a series</summary><ul data-piece="choice">{}</ul></details>'
    ).format(links)


def _choices(context: RequestContext, chart: ChartRequest) -> Iterator[Html]:
    """Yield the links of `_choice`. Those that remove a series come first, since the number of links is limited.

    For other nodes than those in the chart, only the last sample is used: reading the last day of thousands of nodes
    takes seconds.
    """
    snapshot, preferred, names = context.snapshot(), context.preferences.units, dict(chart.names)
    nodes = [node for name in names if (node := snapshot.node(name))]
    known = {(node.name, one.name): one for node in nodes for one in node.sensors}
    shown = {key: known[key] for key in chart.names if key in known}
    units = {conversion(one.unit, preferred).unit for one in shown.values()}
    if len(chart.names) > 1:
        for key, one in shown.items():
            yield _choice_link(chart, "–", one, tuple(other for other in chart.names if other != key))
    if len(chart.names) < MOST_SERIES:
        others = (one for node in snapshot.nodes if node.name and node.name not in names for one in node.readings)
        for one in chain(known.values(), others):
            key, fits = (one.node, one.name), len(units) < 2 or conversion(one.unit, preferred).unit in units
            if fits and key not in chart.names:
                yield _choice_link(chart, "+", one, (*chart.names, key))


def _choice_link(chart: ChartRequest, sign: str, sensor: SensorView, names: tuple[tuple[str, str], ...]) -> Html:
    words = f"{sign} {sensor.label or sensor.name} of {sensor.node}"
    return Html('<a href="/chart?{}">{}</a>').format(chart._replace(names=names).query(), words)


def _save_form(context: RequestContext, chart: ChartRequest, name: str) -> Html:
    return Html(
        '<form class="fields" method="post" action="/graphs"><input type="hidden" name="csrf" value="{}">'
        '<input type="hidden" name="query" value="{}">'
        '<label>Name <input name="name" maxlength="60" value="{}" required></label><button{}>Save graph</button>'
        ' <a href="/graphs">Saved graphs</a></form>{}'
    ).format(context.csrf, chart.query(), name[:60], disabled(context), key_notice(context))
