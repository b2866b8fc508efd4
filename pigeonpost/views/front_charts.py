"""Charts of sensors, side by side. On the front page, each user can move and hide charts; this choice is saved."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import HTTPError, Response, form_of, parse_form
from pigeonpost.views.context import RequestContext
from pigeonpost.views.front_query import SPANS, FrontQuery, read_query
from pigeonpost.views.html import see_other, sensor_path, span_links
from pigeonpost.views.models import UNWATCHED, SensorView
from pigeonpost.views.node_table import NodeList, choose_nodes
from pigeonpost.views.preferences import Preferences

MOST_CHARTS = 200  # charts on the front page, if the nodes fit on one page
CHARTS_OF_MANY = 12  # charts on each page, if they do not
_SPANS_MS = {"24h": 86_400_000, "7d": 7 * 86_400_000, "30d": 30 * 86_400_000}


def chart_images(sensors: Sequence[SensorView], span: str = "") -> Html:
    """Return charts of `sensors` for the last `span`. If it is empty, each chart has a range that contains values."""
    charts = [_image(sensor, span or default_span(sensor)) for sensor in sensors]
    return Html('<section class="charts" aria-label="Charts">{}</section>').format(join_html(charts))


def _image(sensor: SensorView, span: str) -> Html:
    query = urlencode({"node": sensor.node, "sensor": sensor.name, "span": span, "size": "small"})
    return Html(
        '<a href="/chart?series={}/{}&amp;span={}">'
        '<img src="/chart.svg?{}" alt="{}" width="420" height="190" loading="lazy"></a>\n'
    ).format(
        sensor.node, sensor.name, span, query, f"{sensor.title} of {sensor.node}, last {dict(SPANS)[span]}",
    )  # fmt: skip


def default_span(sensor: SensorView) -> str:
    """Return the shortest selectable range that contains values of `sensor`, even if it is new or its node is lost."""
    if sensor.columns or sensor.taken_ms is None:
        return {600_000: "10m", 3_600_000: "1h"}.get(sensor.span_ms, "24h")
    age_ms = sensor.now_ms - sensor.taken_ms
    return next((span for span, span_ms in _SPANS_MS.items() if age_ms < span_ms), "366d")


# --------------------------------------------------------------------------------------------------- the front page


def front_charts(context: RequestContext, listed: NodeList, query: FrontQuery) -> Html:
    """Return the charts of the listed nodes in the user's order, with links that set the range of all charts.

    Args:
        context: The request.
        listed: The nodes on this page.
        query: The query of the front page.
    """
    shown = _shown(listed, context.preferences.order)
    if not shown:
        return Html('<section id="charts"></section>')  # the script fills it once there are charts
    spans = [query.span or default_span(sensor) for sensor in shown]
    current = spans[0] if len(set(spans)) == 1 else ""
    links = span_links(((query.path(span=key) + "#charts", words, key == current) for key, words in SPANS), "charts")
    folded, can_change = context.preferences.folded, not context.needs_key
    charts = join_html(
        _chart(sensor, spans[place], _key(sensor) in folded, can_change, place, len(shown))
        for place, sensor in enumerate(shown)
    )
    return Html(
        '<section id="charts"><h2>Charts</h2>{links}<form class="charts front" method="post" action="/charts">'
        '<input type="hidden" name="csrf" value="{csrf}"><input type="hidden" name="back" value="{back}">\n{charts}'
        "</form></section>"
    ).format(links=links, csrf=context.csrf, back=query.path().partition("?")[2], charts=charts)


def _shown(listed: NodeList, order: Sequence[str]) -> list[SensorView]:
    """Return the sensors with a chart on this page: first those in `order`, then the others."""
    most = CHARTS_OF_MANY if listed.is_paged else MOST_CHARTS
    found: list[SensorView] = []
    for node in listed.nodes:
        if node.name and node.state not in UNWATCHED and len(found) < most:
            found += node.sensors[: most - len(found)]
    places = {key: place for place, key in enumerate(order)}
    return sorted(found, key=lambda sensor: places.get(_key(sensor), len(places)))


def _key(sensor: SensorView) -> str:
    return f"{sensor.node}/{sensor.name}"


def _chart(sensor: SensorView, span: str, is_folded: bool, can_change: bool, place: int, count: int) -> Html:
    key, what = _key(sensor), f"{sensor.title} of {sensor.node}"
    tools = join_html((
        _tool("up", key, f"Move {what} up", "↑") if place else Html("<i></i>"),
        _tool("down", key, f"Move {what} down", "↓") if place < count - 1 else Html("<i></i>"),
        _tool("unfold" if is_folded else "fold", key, f"{'Show' if is_folded else 'Hide'} the chart of {what}",
              "Show" if is_folded else "Hide"),
    )) if can_change else Html("")  # fmt: skip
    return Html('<div class="chart{}" data-chart="{}"><div class="bar"><a href="{}">{}</a>{}</div>{}</div>').format(
        " folded" if is_folded else "", key, sensor_path(sensor.node, sensor.name), what, tools,
        "" if is_folded else _image(sensor, span),
    )  # fmt: skip


def _tool(action: str, key: str, label: str, text: str) -> Html:
    return Html('<button class="tool" name="{0}" value="{1}" title="{2}" aria-label="{2}">{3}</button>').format(
        action, key, label, text
    )


def arrange(context: RequestContext) -> Response:
    """Move, hide or show a chart of the front page for `context`: `POST /charts`.

    The form field `up`, `down`, `fold` or `unfold` contains NODE/SENSOR. Return a redirect to the front page. Raises
    HTTPError 400 for an unknown action or chart.
    """
    fields = form_of(context.request)
    query = read_query(parse_form(fields.get("back", "")))
    action = next((name for name in ("up", "down", "fold", "unfold") if name in fields), "")
    listed, key = choose_nodes(context.snapshot(), query), fields.get(action, "")
    if not action or key not in map(_key, _shown(listed, ())):
        raise HTTPError(400, "The action must be up, down, fold or unfold, with a chart of this page.", "chart")
    context.save_preferences(lambda preferences: _arranged(preferences, listed, action, key))
    return see_other(query.path() + "#charts")


def _arranged(preferences: Preferences, listed: NodeList, action: str, key: str) -> Preferences:
    if action in ("up", "down"):
        shown = [_key(sensor) for sensor in _shown(listed, preferences.order)]
        return preferences._replace(order=_moved(shown, key, action == "up", preferences.order))
    folded = preferences.folded | {key} if action == "fold" else preferences.folded - {key}
    return preferences._replace(folded=folded)


def _moved(shown: Sequence[str], key: str, is_up: bool, order: Sequence[str]) -> tuple[str, ...]:
    """Return the complete order after one chart has changed places with its neighbour."""
    moved = list(shown)
    place = moved.index(key)
    other = place - 1 if is_up else place + 1
    if 0 <= other < len(moved):
        moved[place], moved[other] = moved[other], moved[place]
    known = set(moved)
    return (*moved, *(one for one in order if one not in known))  # charts of other pages keep their order
