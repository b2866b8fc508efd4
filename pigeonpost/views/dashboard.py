"""Dashboard: the front page, and the page of one node; as HTML, and as text for a terminal.

Errors: HTTPError for an unknown node. The pages are complete without their script, which updates values (`data-live`)
and ages (`data-time`), and replaces the parts that it finds in a fresh copy of the page (`data-piece`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote, urlencode

from pigeonpost.charts.sparkline import sparkline
from pigeonpost.core.format import age, aligned, clock, number, size, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.version import VERSION
from pigeonpost.http.message import Response
from pigeonpost.server.disk_usage import DiskUsage
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import button, html_page, key_notice, sensor_path, text_page
from pigeonpost.views.models import NodeView, SensorView, StatusSnapshot
from pigeonpost.views.quality_flags import flags_of
from pigeonpost.web.access import LOCAL, ONE_TIME_KEY

MOST_CARDS = 100  # of a node on the front page
_CHARTS = 4  # on the front page; each node's page has all of its own
SPANS = (("10m", "10 minutes"), ("1h", "hour"), ("24h", "day"), ("7d", "week"), ("30d", "30 days"), ("366d", "year"))
_TRENDS = {1: "↗", 0: "→", -1: "↘", None: ""}
_TREND_WORDS = {1: "rising", 0: "steady", -1: "falling", None: ""}

ON_OFF = {True: "on", False: "off", None: "not known"}


def front(context: RequestContext) -> Response:
    """`/`: the summary, a card for each sensor, charts, the nodes and their buttons."""
    snapshot = context.snapshot()
    if not context.request.wants_html:
        return text_page(_front_text(context, snapshot))
    sensors = [sensor for node in snapshot.nodes for sensor in node.sensors if node.state != "past"]
    body = join_html((
        _summary(snapshot),
        _server_buttons(context, snapshot),
        key_notice(context),
        Html('<section class="cards" aria-label="Sensors" data-piece="cards">{}</section>').format(
            join_html(_cards(snapshot))
        ),
        chart_images(sensors[:_CHARTS]),
        _node_table(context, snapshot),
    ), "\n")  # fmt: skip
    return html_page("Now", body, context, live=True, foot=footer(context))


# ------------------------------------------------------------------------------------------------------------ pieces


def _cards(snapshot: StatusSnapshot) -> Iterator[Html]:
    """Yield a card for each sensor; of a node with many its page has the others."""
    for node in snapshot.nodes:
        sensors = node.sensors if node.state != "past" else ()
        for sensor in sensors[:MOST_CARDS]:
            yield sensor_card(sensor, len(snapshot.nodes) > 1)
        if len(sensors) > MOST_CARDS:
            yield Html('<a class="card" href="/nodes/{}"><span class="name">{} more of {}</span></a>\n').format(
                quote(node.name), len(sensors) - MOST_CARDS, node.name
            )


def _summary(snapshot: StatusSnapshot) -> Html:
    last = Html("")
    if snapshot.last_ms is not None:
        last = Html('; last sample <span data-live="last" data-time="{}">{} ago</span>').format(
            snapshot.last_ms, age((snapshot.now_ms - snapshot.last_ms) / 1000)
        )
    return Html('<h1 class="verdict {}" data-piece="verdict">{}{}.</h1>').format(snapshot.level, snapshot.summary, last)


def _server_buttons(context: RequestContext, snapshot: StatusSnapshot) -> Html:
    """With one node all six buttons stand in one row; with more the node's own three stand beside each node."""
    watched = [node for node in snapshot.nodes if node.name and node.state != "past"]
    own = node_buttons(context, watched[0]) if len(watched) == 1 else Html("")
    return Html(
        '<div class="buttons" data-piece="buttons">{own}<a class="button" href="/log">Log Check</a>'
        '<a class="button" href="/log.csv">Log Download</a>{exit}</div>'
    ).format(own=own, exit=button("/exit", "Exit", context, "stop the server") if _has_buttons(context) else "")


def _has_buttons(context: RequestContext) -> bool:
    """Return True for who may control, and for who needs to show the key first: then the buttons are disabled."""
    return context.role == "operator" or context.needs_key


def node_buttons(context: RequestContext, node: NodeView) -> Html:
    if not _has_buttons(context) or not node.name or node.state == "past":
        return Html("")
    path, away = f"/nodes/{quote(node.name)}", "" if node.connected else "Disabled: the node is not connected"
    return join_html((
        button(f"{path}/on", "Sensor On", context, node.name, "chosen" if node.on else "", away),
        button(f"{path}/off", "Sensor Off", context, node.name, "chosen" if node.on is False else "", away),
        button(f"{path}/status", "Status", context, node.name, off=away),
    ))  # fmt: skip


def sensor_card(sensor: SensorView, names_node: bool) -> Html:
    """One sensor: its value, where it is heading, its day."""
    stale = "stale" if sensor.is_late or sensor.value is None else ""
    return Html(
        '<a class="card {stale}" href="{path}"><span class="name">{name}{of}{made}</span>'
        '<span class="value"><b data-live="{key}">{value}</b> <span class="unit">{unit}</span>{trend}</span>'
        '{spark}<span class="day">{day}</span>{odd}</a>\n'
    ).format(
        stale=stale, path=sensor_path(sensor.node, sensor.name), name=sensor.name.replace("_", " "),
        of=Html(' <span class="of">{}</span>').format(sensor.node) if names_node else "",
        made=Html(' <span class="tag">simulated</span>') if sensor.simulated else "",
        key=f"{sensor.node}/{sensor.name}", value=number(sensor.value), unit=sensor.unit,
        trend=Html(' <span class="trend" title="{0}" role="img" aria-label="{0}">{1}</span>').format(
            _TREND_WORDS[sensor.trend], _TRENDS[sensor.trend]) if sensor.trend is not None else "",
        spark=sparkline(sensor.columns, sensor.span_ms // sensor.width_ms, sensor.number % 4),
        day=sensor.fault or _today(sensor), odd=flags_of(sensor),
    )  # fmt: skip


def _today(sensor: SensorView) -> Html:
    if sensor.low is None or sensor.low_ms is None or sensor.high_ms is None:
        return Html("nothing today")
    low, high = clock(sensor.low_ms, sensor.low_ms), clock(sensor.high_ms, sensor.high_ms)
    return Html("low {} at {}<br>high {} at {}").format(number(sensor.low), low, number(sensor.high), high)


def chart_images(sensors: Sequence[SensorView], span: str = "") -> Html:
    """Charts of the last `span`; where nothing is said, of the time that there is something of."""
    charts = []
    for sensor in sensors:
        query = {"node": sensor.node, "sensor": sensor.name, "span": span or default_span(sensor), "size": "small"}
        charts.append(Html(
            '<a href="/chart?series={}/{}&amp;span={}">'
            '<img src="/chart.svg?{}" alt="{}" width="420" height="190" loading="lazy"></a>\n'
        ).format(
            sensor.node, sensor.name, query["span"],
            urlencode(query), f"{sensor.name} of {sensor.node}, last {dict(SPANS)[query['span']]}",
        ))  # fmt: skip
    return Html('<section class="charts" aria-label="Charts">{}</section>').format(join_html(charts))


def default_span(sensor: SensorView) -> str:
    return {600_000: "10m", 3_600_000: "1h"}.get(sensor.span_ms, "24h")


def _node_table(context: RequestContext, snapshot: StatusSnapshot) -> Html:
    if not snapshot.nodes:
        return Html("")
    many = sum(1 for node in snapshot.nodes if node.state != "past") > 1
    head = ("node", "state", "last sample", "in its outbox", "missing", "clock", "answers in")
    rows = join_html(
        Html("<tr>{}{}</tr>\n").format(
            join_html(Html('<td data-label="{}">{}</td>').format(*cell) for cell in zip(head, _cells(node, snapshot))),
            Html('<td><div class="buttons small">{}</div></td>').format(node_buttons(context, node)) if many else "",
        )
        for node in snapshot.nodes
    )
    return Html(
        '<section data-piece="nodes"><h2>Nodes</h2><table class="nodes"><thead><tr>{}</tr></thead>'
        "<tbody>\n{}</tbody></table></section>"
    ).format(join_html(Html("<th>{}</th>").format(text) for text in [*head, *(["buttons"] if many else [])]), rows)


def _cells(node: NodeView, snapshot: StatusSnapshot) -> Iterator[object]:
    link = Html('<a href="/nodes/{}">{}</a>').format(quote(node.name), node.name)
    yield link if node.name else node.address
    yield Html('<span class="{}">{}</span>').format(node_level(node), node.words)
    yield f"{age(node.age_s)} ago" if node.age_s is not None else "–"
    yield f"{node.held:,}" if node.held is not None else "–"
    yield Html('<a class="bad" href="/gaps">{}</a>').format(f"{node.missing:,}") if node.missing else "none"
    yield clock_offset(node.shift_ms)
    yield f"{node.round_trip_ms:.0f} ms" if node.round_trip_ms is not None else "–"


def _how_signed_in(user: str, role: str) -> str:
    """Return how a principal came in: not all are users of users.json, and being on this machine is no signing in."""
    if user == LOCAL.name:
        return "Reading from this machine; nobody is signed in."
    how = "with the one-time key" if user == ONE_TIME_KEY else f"as {user}"
    return f"Signed in {how} ({role})."


def footer(context: RequestContext) -> Html:
    out = button("/logout", "Log out", context, kind="quiet") if context.csrf else Html("")
    who = _how_signed_in(context.user, context.role) if context.user else ""
    return Html("<footer>Pigeonpost {}, server {}. {} {}{}</footer>\n").format(
        VERSION, context.app.name, _disk_words(context.app.disk.use()), who, out
    )


def _disk_words(use: DiskUsage) -> str:
    """Return sentences about the usage of the disk."""
    left = ""
    if use.days is not None:
        left = ", room for years" if use.days > 1000 else f", room for {use.days:.0f} days"
    written = f" {size(use.written)} are written a day." if use.written is not None else ""
    return f"{size(use.stored)} stored, {size(use.free)} free{left}.{written}"


# ------------------------------------------------------------------------------------------------------------- words


def node_level(node: NodeView) -> str:
    return {"reporting": "good", "late": "bad", "lost": "bad"}.get(node.state, "wait")


def clock_offset(shift_ms: int | None) -> str:
    if shift_ms is None:
        return "–"
    if abs(shift_ms) < 1000:
        return "right"
    return f"{age(abs(shift_ms) / 1000)} {'ahead' if shift_ms > 0 else 'behind'}"


# -------------------------------------------------------------------------------------------------- for a terminal


def _front_text(context: RequestContext, snapshot: StatusSnapshot) -> str:
    here = context.request.headers.get("host", "localhost")
    last = (
        f"; last sample {age((snapshot.now_ms - snapshot.last_ms) / 1000)} ago" if snapshot.last_ms is not None else ""
    )
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.now_ms // 1000))
    lines = [f"{f'Pigeonpost {context.app.name}'[:58]:<60}{stamp:>19}", "", f"{snapshot.summary}{last}.", ""]
    sensors = [sensor for node in snapshot.nodes for sensor in node.sensors if node.state != "past"]
    lines += sensor_lines(sensors)
    nodes = [(node.name or node.address, node.words, *_numbers(node)) for node in snapshot.nodes]
    if nodes:
        lines += ["", *aligned(("NODE", "STATE", "HELD", "MISSING"), nodes, "<<>>")]
    lines += [
        "",
        _disk_words(context.app.disk.use()),
        "",
        f"The last ten samples:  curl http://{here}/log",
        f"All of this run:       curl -O http://{here}/log.csv",
    ]
    lines += [
        f"A node, in full:       curl http://{here}/nodes/{node.name}" for node in snapshot.nodes[:1] if node.name
    ]
    return "\n".join(lines) + "\n"


def sensor_lines(sensors: Iterable[SensorView]) -> list[str]:
    rows = [
        (
            sensor.node,
            sensor.name,
            sensor.fault or with_unit(number(sensor.value), sensor.unit),
            _TREND_WORDS[sensor.trend],
            f"{number(sensor.low)} to {number(sensor.high)}" if sensor.low is not None else "–",
            _remarks(sensor),
        )
        for sensor in sensors
    ]
    return aligned(("NODE", "SENSOR", "NOW", "", "TODAY", ""), rows, "<<><<<") if rows else ["No sensor is known yet."]


def _remarks(sensor: SensorView) -> str:
    plain = "simulated" if sensor.simulated else "late" if sensor.is_late else ""
    return ", ".join([*([plain] if plain else []), *sensor.odd.values()])


def _numbers(node: NodeView) -> tuple[str, str]:
    return f"{node.held:,}" if node.held is not None else "–", f"{node.missing:,}" if node.missing else "none"
