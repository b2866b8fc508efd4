"""Page of a chart: the chart, links to other spans, statistics, the same as numbers, and a form to save it.

Errors: HTTPError. The page is complete without its script; with zoom.js a span can be selected in the chart, and values
can be read there.
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
from pigeonpost.storage.csv.format import local_time
from pigeonpost.storage.models import Bucket
from pigeonpost.views.chart import LONGEST_MS, Asked, Charts, asked
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
    """The page of a chart."""

    def __init__(self, charts: Charts, statistics: StatisticsReader) -> None:
        self._charts = charts
        self._statistics = statistics

    def answer(self, context: RequestContext) -> Response:
        """`/chart?series=NODE/SENSOR,...&span=24h`, or `from=` and `to=`: local time here, if no zone is said."""
        query = {key: value for key, value in context.request.query.items() if value or key not in ("from", "to")}
        units, now_ms = context.preferences.units, context.app.clock.wall_ms()
        what, frame = asked(context, LARGE, units, query, local_moment)
        all_series = self._charts.series(context, what, frame, units)
        name = title(all_series, now_ms)
        if not context.request.wants_html:
            return text_page("\n".join(self._text(context, what, all_series, now_ms)) + "\n")
        body = join_html((
            Html("<h1>{}</h1>").format(heading(all_series)),
            _span_links(what),
            _chart_image(what, all_series, now_ms),
            _ways(what, now_ms),
            _from_to(what),
            Html('<section data-piece="figures"><h2>Statistics</h2>{}<p class=links>{}</p></section>').format(
                statistics_table("series", list(self._rows(all_series)), now_ms), _links(what)),
            Html('<details><summary>The same in numbers</summary><div data-piece="numbers">{}</div></details>').format(
                _numbers(all_series, now_ms)),
            _choice(context, what),
            _save_form(context, what, heading(all_series)),
            Html('<script src="/zoom.js" defer></script>'),
        ), "\n")  # fmt: skip
        return html_page(name, body, context, live=not what.ends)

    def part(self, context: RequestContext, node: str, sensor: str, span: str) -> Html:
        """Return the chart of one sensor, for the page about it. Raises HTTPError for an invalid span."""
        query = {"series": f"{node}/{sensor}", "span": span}
        units, now_ms = context.preferences.units, context.app.clock.wall_ms()
        what, frame = asked(context, LARGE, units, query)
        all_series = self._charts.series(context, what, frame, units)
        return Html("{}\n{}<p class=links>{}</p>{}").format(
            _chart_image(what, all_series, now_ms), _ways(what, now_ms), _links(what),
            Html('<script src="/zoom.js" defer></script>'),
        )  # fmt: skip

    def _rows(self, all_series: Sequence[Series]) -> Iterator[Row]:
        """Yield name, statistics and unit of each series, as `statistics_table` takes them."""
        for series in all_series:
            text = label(series, all_series, False) if len(all_series) > 1 else series.words
            link = Html('<a href="{}">{}</a>').format(sensor_path(series.node, series.sensor), text)
            yield link, self._of(series), series.unit

    def _of(self, series: Series) -> Statistics | None:
        found = self._statistics.of(series.node, series.sensor, series.from_ms, series.to_ms)
        found = statistics_in(found, series.conversion)
        return found or statistics_of_buckets(series.columns, series.from_ms, series.to_ms, series.places)

    def _text(self, context: RequestContext, what: Asked, all_series: Sequence[Series], now_ms: int) -> Iterator[str]:
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
        here = context.request.site
        yield f"Every column:  curl '{here}/chart.csv?{what.query(size='large')}'"


def local_moment(text: str) -> int:
    """Return a time like query.moment; without a zone it is local time here, as browsers' date fields send it."""
    found = _LOCAL(text)
    if not found:
        return moment(text)
    try:
        t = datetime.fromisoformat(text)
        return int(time.mktime((*t.timetuple()[:6], 0, 0, -1))) * 1000
    except (ValueError, OverflowError):
        raise HTTPError(400, "A time is like 2026-11-20T15:36.", "time") from None


def heading(all_series: Sequence[Series]) -> str:
    """Return the heading, without the span: `temperature and light of basement`."""
    return title(all_series, 0).rpartition(", ")[0]


def _chart_image(what: Asked, all_series: Sequence[Series], now_ms: int) -> Html:
    """Return the chart, the meaning of its marks, and where zoom.js finds its numbers."""
    return Html(
        '<section class="charts single" aria-label="Chart">'
        '<figure class="plot" data-page="{page}"><picture>'
        '<source media="(max-width: 40rem)" srcset="/chart.svg?{small}" width="420" height="190">'
        '<img src="/chart.svg?{large}" alt="{said}" width="960" height="340"></picture></figure></section>'
        '{key}<p class="late" data-piece="late">{late}</p>'
    ).format(
        large=what.query(size="large"), small=what.query(size="small"), page=what.query(),
        said=description(all_series, now_ms), late=" ".join(late_words(all_series, now_ms)), key=_key(all_series),
    )  # fmt: skip


def _key(all_series: Sequence[Series]) -> Html:
    """Return the names of several series in their colours, for narrow screens: the chart itself shortens them there."""
    if len(all_series) < 2:
        return Html("")
    names = join_html(
        Html('<li class="s{}">{}</li>').format(series.colour, label(series, all_series, True)) for series in all_series
    )
    return Html('<ul class="key">{}</ul>').format(names)


def _span_links(what: Asked) -> Html:
    links = (
        (f"/chart?{what._replace(span=key, ends=False).query()}", words, key == what.span and not what.ends)
        for key, words in SPANS
    )
    return span_links(links, "chart")


def _ways(what: Asked, now_ms: int) -> Html:
    """Return links to earlier, later, wider and narrower spans."""
    wide_ms = what.to_ms - what.from_ms
    more_ms = min(wide_ms // 2, (LONGEST_MS - wide_ms) // 2)
    middle_ms, quarter_ms = what.from_ms + wide_ms // 2, max(wide_ms // 4, 1)
    ways = [("← Earlier", what.from_ms - wide_ms, what.from_ms)] if what.from_ms >= wide_ms else []
    if what.to_ms < now_ms:
        ways.append(("Later →", what.to_ms, what.to_ms + wide_ms))
    if more_ms > 0 and what.from_ms > more_ms:
        ways.append(("Zoom out", what.from_ms - more_ms, min(what.to_ms + more_ms, max(now_ms, what.to_ms))))
    if wide_ms > 10_000:
        ways.append(("Zoom in", middle_ms - quarter_ms, middle_ms + quarter_ms))
    links = join_html((
        Html('<a class="button" href="/chart?{}">{}</a>').format(
            what._replace(span="", from_ms=from_ms, to_ms=to_ms, ends=True).query(), words)
        for words, from_ms, to_ms in ways
    ), " ")  # fmt: skip
    return Html('<nav class="buttons" aria-label="Through time">{}</nav>').format(links)


def _from_to(what: Asked) -> Html:
    return Html(
        '<form class="fields" method="get" action="/chart"><input type="hidden" name="series" value="{}">'
        '<label>From <input type="datetime-local" name="from" value="{}" required></label>'
        '<label>to <input type="datetime-local" name="to" value="{}"></label><button>Show</button></form>'
    ).format(",".join(f"{node}/{sensor}" for node, sensor in what.names), _field(what.from_ms), _field(what.to_ms))


def _field(time_ms: int) -> str:
    """Return a moment as the value of a browser's date field, in local time."""
    t = time.localtime(time_ms // 1000)
    return time.strftime("%Y-%m-%dT%H:%M", t) if t.tm_year < 10_000 else ""


def _links(what: Asked) -> Html:
    query = what.query(size="large")
    return Html(
        'Download: <a href="/chart.csv?{0}">CSV</a> · <a href="/chart.csv?{0}&amp;for=excel">for Excel</a>'
        ' · <a href="/chart.json?{0}">JSON</a> · <a href="/chart.svg?{0}">SVG</a>'
    ).format(query)


def _numbers(all_series: Sequence[Series], now_ms: int) -> Html:
    """Return a table with mean and range of every series, one row for each round span of time."""
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
        when = local_time(begin)[11:19] if has_seconds else clock(begin, now_ms)
        yield when, *(_cell(_between(series, begin, end)) for series in all_series)


def _between(series: Series, begin_ms: int, end_ms: int) -> list[Bucket]:
    """Return the columns whose middle is in [begin_ms, end_ms)."""
    width_ms = (series.to_ms - series.from_ms) / series.places
    return [one for one in series.columns if begin_ms <= series.from_ms + (one.place + 0.5) * width_ms < end_ms]


def _cell(columns: Sequence[Bucket]) -> str:
    if not columns:
        return "–"
    _, mean, low, high = numbers(columns)
    return number(mean) if low.low == high.high else f"{number(mean)} ({number(low.low)} to {number(high.high)})"


def _choice(context: RequestContext, what: Asked) -> Html:
    """Return links that remove a shown sensor, or add one whose unit has an axis or can get one."""
    links = join_html(Html("<li>{}</li>").format(link) for link in islice(_choices(context, what), _MOST_OFFERED))
    if not links:
        return Html("")
    return Html(
        '<details class="choice"><summary>Add or take away a series</summary><ul data-piece="choice">{}</ul></details>'
    ).format(links)


def _choices(context: RequestContext, what: Asked) -> Iterator[Html]:
    """Yield these links: to remove one first, since of many sensors only some are offered.

    A day is read of the shown nodes alone; of thousands that takes seconds.
    """
    snapshot, preferred, names = context.snapshot(), context.preferences.units, dict(what.names)
    nodes = [node for name in names if (node := snapshot.node(name))]
    known = {(node.name, one.name): one for node in nodes for one in node.sensors}
    shown = {key: known[key] for key in what.names if key in known}
    units = {conversion(one.unit, preferred).unit for one in shown.values()}
    if len(what.names) > 1:
        for key, one in shown.items():
            yield _choice_link(what, "–", one, tuple(other for other in what.names if other != key))
    if len(what.names) < MOST_SERIES:
        others = (one for node in snapshot.nodes if node.name and node.name not in names for one in node.readings)
        for one in chain(known.values(), others):
            key, fits = (one.node, one.name), len(units) < 2 or conversion(one.unit, preferred).unit in units
            if fits and key not in what.names:
                yield _choice_link(what, "+", one, (*what.names, key))


def _choice_link(what: Asked, sign: str, sensor: SensorView, names: tuple[tuple[str, str], ...]) -> Html:
    words = f"{sign} {sensor.label or sensor.name} of {sensor.node}"
    return Html('<a href="/chart?{}">{}</a>').format(what._replace(names=names).query(), words)


def _save_form(context: RequestContext, what: Asked, name: str) -> Html:
    return Html(
        '<form class="fields" method="post" action="/graphs"><input type="hidden" name="csrf" value="{}">'
        '<input type="hidden" name="query" value="{}">'
        '<label>Name <input name="name" maxlength="60" value="{}" required></label><button{}>Save this graph</button>'
        ' <a href="/graphs">Saved graphs</a></form>{}'
    ).format(context.csrf, what.query(), name[:60], disabled(context), key_notice(context))
