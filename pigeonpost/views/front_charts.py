"""Charts of sensors side by side; on the front page each can be folded and moved, and stays so for its user."""

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

MOST_CHARTS = 200  # on the front page, of nodes that fit on one page,
CHARTS_OF_MANY = 12  # and of more nodes
_SPANS_MS = {"24h": 86_400_000, "7d": 7 * 86_400_000, "30d": 30 * 86_400_000}


def chart_images(sensors: Sequence[SensorView], span: str = "") -> Html:
    """Return charts of the last `span`; where nothing is said, of the time that there is something of."""
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
    """Return the shortest usual span that shows what there is of a sensor: of a new one, or of one long lost."""
    if sensor.columns or sensor.taken_ms is None:
        return {600_000: "10m", 3_600_000: "1h"}.get(sensor.span_ms, "24h")
    age_ms = sensor.now_ms - sensor.taken_ms
    return next((span for span, span_ms in _SPANS_MS.items() if age_ms < span_ms), "366d")


# --------------------------------------------------------------------------------------------------- the front page


def front_charts(context: RequestContext, listed: NodeList, query: FrontQuery) -> Html:
    """Return the section of charts of the nodes on this page, in the user's order, with a span to choose for all."""
    shown = _shown(listed, context.preferences.order)
    if not shown:
        return Html('<section id="charts"></section>')  # the script fills it when there are some
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
    """Return the sensors whose charts this page has: first those that the user has put in order, then the others."""
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
    """`POST /charts` with one of `up`, `down`, `fold`, `unfold`, each a NODE/SENSOR; leads back to the front page."""
    fields = form_of(context.request)
    query = read_query(parse_form(fields.get("back", "")))
    action = next((name for name in ("up", "down", "fold", "unfold") if name in fields), "")
    listed, key = choose_nodes(context.snapshot(), query), fields.get(action, "")
    if not action or key not in map(_key, _shown(listed, ())):
        raise HTTPError(400, "A chart is moved up or down, folded or unfolded.", "chart")
    context.save_preferences(lambda preferences: _arranged(preferences, listed, action, key))
    return see_other(query.path() + "#charts")


def _arranged(preferences: Preferences, listed: NodeList, action: str, key: str) -> Preferences:
    if action in ("up", "down"):
        shown = [_key(sensor) for sensor in _shown(listed, preferences.order)]
        return preferences._replace(order=_moved(shown, key, action == "up", preferences.order))
    folded = preferences.folded | {key} if action == "fold" else preferences.folded - {key}
    return preferences._replace(folded=folded)


def _moved(shown: Sequence[str], key: str, is_up: bool, order: Sequence[str]) -> tuple[str, ...]:
    """Return the whole order after one chart has changed places with its neighbour."""
    moved = list(shown)
    place = moved.index(key)
    other = place - 1 if is_up else place + 1
    if 0 <= other < len(moved):
        moved[place], moved[other] = moved[other], moved[place]
    known = set(moved)
    return (*moved, *(one for one in order if one not in known))  # those of other pages keep their order
