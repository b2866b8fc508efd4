"""How things are now: the front page, and the page of one node; as HTML, and as text for a terminal.

Runs on: server.  Reached from: webui.  Hands on to: the picture that each Visit brings.
Threads: none of its own.  Errors: Refusal for a node that nobody knows.

The page is whole without its script. That puts new values in (`data-live`), counts ages on (`data-time`), and exchanges
the pieces that it finds in a fresh copy of the page (`data-piece`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from pigeonpost.charts.sparkline import sparkline
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import age, aligned, clock, number, size, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.version import VERSION
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.server.disk_usage import DiskUsage
from pigeonpost.views.context import RequestContext
from pigeonpost.views.gap_text import gap_words
from pigeonpost.views.html import button, html_page, sensor_path, text_page
from pigeonpost.views.models import NodeView, SensorView, StatusSnapshot

_CHARTS = 4  # on the front page; each node's page has all of its own
_SPANS = (("10m", "10 minutes"), ("1h", "hour"), ("24h", "day"), ("7d", "week"), ("30d", "30 days"), ("366d", "year"))
_TRENDS = {1: "↗", 0: "→", -1: "↘", None: ""}
_TREND_WORDS = {1: "rising", 0: "steady", -1: "falling", None: ""}

_KINDS = {
    "range": "out of range", "jump": "jumped", "stuck": "stuck", "rail": "at the rail", "stale": "without a value",
}  # fmt: skip
_ON_OFF = {True: "on", False: "off", None: "not known"}
_NOTICES = {
    "on": "{node} is on: it samples.",
    "off": "{node} is off: it takes no samples. What it holds still comes.",
    "status": "{node} answered: sampling is {on}, its last sample was sent at {sent} by its own clock.",
    "silent": "{node} did not answer. It will be asked again when it is connected.",
}


def front(context: RequestContext) -> Response:
    """`/`: the verdict, a card a sensor, charts, the nodes and their buttons."""
    snapshot = context.snapshot()
    if not context.request.wants_html:
        return text_page(_front_text(context, snapshot))
    sensors = [sensor for node in snapshot.nodes for sensor in node.sensors if node.state != "past"]
    body = join_html((
        _verdict(snapshot),
        _house_buttons(context, snapshot),
        Html('<section class="cards" aria-label="Sensors" data-piece="cards">{}</section>').format(
            join_html(_card(sensor, len(snapshot.nodes) > 1) for sensor in sensors)
        ),
        _charts(sensors[:_CHARTS]),
        _node_table(context, snapshot),
    ), "\n")  # fmt: skip
    return html_page("Now", body, context, live=True, foot=_foot(context))


def node_page(context: RequestContext) -> Response:
    """`/nodes/NAME`: the same of one node, all that it says of itself, and what is missing of it."""
    snapshot = context.snapshot()
    node = snapshot.node(context.args[0])
    if node is None or not node.name:
        raise HTTPError(404, "There is no node of that name.", "unknown-node")
    missing = [gap for gap in context.app.store.gaps(200) if gap["node"] == node.name]
    if not context.request.wants_html:
        return text_page(_node_text(context, snapshot, node, missing))
    span = context.request.query.get("span", "")
    span = span if span in dict(_SPANS) else _usual_span(node.sensors[0]) if node.sensors else "24h"
    body = join_html((
        Html("<h1>{}</h1>").format(node.name),
        _notice(context, node),
        Html('<p class="verdict {}" data-piece="verdict">{}.</p>').format(_level(node), _says(node)),
        Html('<div class="buttons" data-piece="buttons">{}</div>').format(_node_buttons(context, node)),
        Html('<section class="cards" aria-label="Sensors" data-piece="cards">{}</section>').format(
            join_html(_card(sensor, False) for sensor in node.sensors)
        ),
        _span_links(node, span),
        _charts(node.sensors, span),
        judged(node.sensors),
        Html('<section data-piece="about"><h2>About this node</h2><table class="facts">{}</table></section>').format(
            join_html(Html("<tr><th>{}</th><td>{}</td></tr>").format(*fact) for fact in _info(node, snapshot.now_ms))
        ),
        _missing(missing, snapshot.now_ms),
    ), "\n")  # fmt: skip
    return html_page(node.name, body, context, live=True, foot=_foot(context))


# ------------------------------------------------------------------------------------------------------------ pieces


def _verdict(snapshot: StatusSnapshot) -> Html:
    last = Html("")
    if snapshot.last_ms is not None:
        last = Html('; last sample <span data-live="last" data-time="{}">{} ago</span>').format(
            snapshot.last_ms, age((snapshot.now_ms - snapshot.last_ms) / 1000)
        )
    return Html('<h1 class="verdict {}" data-piece="verdict">{}{}.</h1>').format(snapshot.level, snapshot.verdict, last)


def _house_buttons(context: RequestContext, snapshot: StatusSnapshot) -> Html:
    """With one node all six buttons stand in one row; with more the node's own three stand beside each node."""
    watched = [node for node in snapshot.nodes if node.name and node.state != "past"]
    own = _node_buttons(context, watched[0]) if len(watched) == 1 else Html("")
    return Html(
        '<div class="buttons" data-piece="buttons">{own}<a class="button" href="/log">Log Check</a>'
        '<a class="button" href="/log.csv">Log Download</a>{exit}</div>'
    ).format(own=own, exit=button("/exit", "Exit", context, "stop the server") if context.role == "control" else "")


def _node_buttons(context: RequestContext, node: NodeView) -> Html:
    if context.role != "control" or not node.name or node.state == "past":
        return Html("")
    path, away = f"/nodes/{quote(node.name)}", not node.connected
    return join_html((
        button(f"{path}/on", "Sensor On", context, node.name, "chosen" if node.on else "", away),
        button(f"{path}/off", "Sensor Off", context, node.name, "chosen" if node.on is False else "", away),
        button(f"{path}/status", "Status", context, node.name, off=away),
    ))  # fmt: skip


def _card(sensor: SensorView, names_node: bool) -> Html:
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
        day=sensor.fault or _today(sensor), odd=_odd(sensor),
    )  # fmt: skip


def _today(sensor: SensorView) -> Html:
    if sensor.low is None or sensor.low_ms is None or sensor.high_ms is None:
        return Html("nothing today")
    low, high = clock(sensor.low_ms, sensor.low_ms), clock(sensor.high_ms, sensor.high_ms)
    return Html("low {} at {}<br>high {} at {}").format(number(sensor.low), low, number(sensor.high), high)


def _odd(sensor: SensorView) -> Html:
    """What is odd about the value, a word or two each."""
    if not sensor.odd:
        return Html("")
    words = join_html((Html('<span class="odd">{}</span>').format(text) for text in sensor.odd.values()), " ")
    return Html('<span class="odds">{}</span>').format(words)


def judged(sensors: Sequence[SensorView]) -> Html:
    """What the values are judged by, and how often each was odd."""
    rows = join_html(
        Html('<tr><th>{}</th><td data-label="limits">{}</td><td data-label="now">{}</td><td data-label="in this run">{}'
             "</td></tr>").format(
            sensor.name.replace("_", " "), _limits(sensor), _odd(sensor) or "as it should be", _counts(sensor))
        for sensor in sensors if sensor.limits
    )  # fmt: skip
    if not rows:
        return Html("")
    return Html(
        '<section data-piece="verdicts"><h2>Limits, and what was beyond them</h2><table class="judged"><thead><tr>'
        "<th>sensor</th><th>limits</th><th>now</th><th>in this run</th></tr></thead><tbody>{}</tbody></table></section>"
    ).format(rows)


def _limits(sensor: SensorView) -> str:
    limits, unit = sensor.limits, sensor.unit
    low, high, rail = limits.get("low"), limits.get("high"), limits.get("rail")
    parts = []
    if low is not None and high is not None:
        parts.append(f"{number(low)} to {with_unit(number(high), unit)}")
    elif low is not None or high is not None:
        parts.append(f"{'at least' if high is None else 'at most'} {with_unit(number(low or high or 0), unit)}")
    parts += [f"{with_unit(number(limits['jump']), unit)} a second"] if "jump" in limits else []
    parts += [f"changes within {age(limits['stuck'])}"] if "stuck" in limits else []
    parts += [f"rail at {number(rail[0])} and {with_unit(number(rail[1]), unit)}"] if rail else []
    parts += [f"a value every {age(limits['every'])}"] if "every" in limits else []
    return "; ".join(parts)


def judged_words(sensor: SensorView) -> list[str]:
    """The same for a terminal, of one sensor; nothing where it has no limits."""
    if not sensor.limits:
        return []
    return [f"limits: {_limits(sensor)}", f"beyond them, in this run: {_counts(sensor)}"]


def _counts(sensor: SensorView) -> str:
    told = [f"{_KINDS[kind]} {count:,} {'time' if count == 1 else 'times'}"
            for kind, count in sensor.counts.items() if count]  # fmt: skip
    return ", ".join(told) or "nothing"


def _charts(sensors: Sequence[SensorView], span: str = "") -> Html:
    """Charts of the last `span`; where nothing is said, of the time that there is something of."""
    charts = []
    for sensor in sensors:
        query = {"node": sensor.node, "sensor": sensor.name, "span": span or _usual_span(sensor), "size": "small"}
        charts.append(Html(
            '<a href="/chart?series={}/{}&amp;span={}">'
            '<img src="/chart.svg?{}" alt="{}" width="420" height="190" loading="lazy"></a>\n'
        ).format(
            sensor.node, sensor.name, query["span"],
            urlencode(query), f"{sensor.name} of {sensor.node}, last {dict(_SPANS)[query['span']]}",
        ))  # fmt: skip
    return Html('<section class="charts" aria-label="Charts">{}</section>').format(join_html(charts))


def _usual_span(sensor: SensorView) -> str:
    return {600_000: "10m", 3_600_000: "1h"}.get(sensor.span_ms, "24h")


def _span_links(node: NodeView, span: str) -> Html:
    links = join_html((
        Html('<a href="/nodes/{}?span={}"{}>{}</a>').format(
            quote(node.name), key, Html(' aria-current="true"') if key == span else "", words
        )
        for key, words in _SPANS
    ), " ")  # fmt: skip
    return Html('<nav class="spans" aria-label="Span of the charts">{}</nav>').format(links)


def _node_table(context: RequestContext, snapshot: StatusSnapshot) -> Html:
    if not snapshot.nodes:
        return Html("")
    many = sum(1 for node in snapshot.nodes if node.state != "past") > 1
    head = ("node", "state", "last sample", "in its outbox", "missing", "clock", "answers in")
    rows = join_html(
        Html("<tr>{}{}</tr>\n").format(
            join_html(Html('<td data-label="{}">{}</td>').format(*cell) for cell in zip(head, _cells(node, snapshot))),
            Html('<td><div class="buttons small">{}</div></td>').format(_node_buttons(context, node)) if many else "",
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
    yield Html('<span class="{}">{}</span>').format(_level(node), node.words)
    yield f"{age(node.age_s)} ago" if node.age_s is not None else "–"
    yield f"{node.held:,}" if node.held is not None else "–"
    yield Html('<a class="bad" href="/gaps">{}</a>').format(f"{node.missing:,}") if node.missing else "none"
    yield _shift(node.shift_ms)
    yield f"{node.round_trip_ms:.0f} ms" if node.round_trip_ms is not None else "–"


def _missing(gaps: Sequence[dict[str, Any]], now_ms: int) -> Html:
    if not gaps:
        return Html("<p>Nothing of this node is missing.</p>")
    rows = join_html(
        Html("<tr><td>{}</td><td>{}</td><td>{}</td></tr>").format(
            gap_words(gap), clock(gap["noted_ms"], now_ms), gap["why"]
        )
        for gap in gaps
    )
    return Html(
        '<section><h2>What is missing, and why</h2><table class="facts"><thead><tr><th>samples</th><th>known since</th>'
        "<th>why</th></tr></thead><tbody>{}</tbody></table></section>"
    ).format(rows)


def _notice(context: RequestContext, node: NodeView) -> Html:
    """What came of the button just pressed: one of our own sentences, never text of the address."""
    words = _NOTICES.get(context.request.query.get("notice", ""))
    if not words:
        return Html("")
    on, sent = _ON_OFF[node.on], node.last_sent or "–"
    return Html('<p class="notice" role="status">{}</p>').format(words.format(node=node.name, on=on, sent=sent))


def _foot(context: RequestContext) -> Html:
    out = (
        button("/logout", "Log out", context, kind="quiet")
        if context.csrf and context.user != "this machine"
        else Html("")
    )
    who = f"You are {context.user}, and may {context.role}." if context.user else ""
    return Html("<footer>Pigeonpost {}, server {}. {} {}{}</footer>\n").format(
        VERSION, context.app.name, _disk_words(context.app.disk.use()), who, out
    )


def _disk_words(use: DiskUsage) -> str:
    """How full the disk is, in a sentence or two."""
    left = ""
    if use.days is not None:
        left = ", room for years" if use.days > 1000 else f", room for {use.days:.0f} days"
    written = f" {size(use.written)} are written a day." if use.written is not None else ""
    return f"{size(use.stored)} stored, {size(use.free)} free{left}.{written}"


# ------------------------------------------------------------------------------------------------------------- words


def _level(node: NodeView) -> str:
    return {"reporting": "good", "late": "bad", "lost": "bad"}.get(node.state, "wait")


def _says(node: NodeView) -> str:
    last = f"; last sample {age(node.age_s)} ago" if node.age_s is not None else ""
    return f"{node.words[:1].upper()}{node.words[1:]}{last}"


def _shift(shift_ms: int | None) -> str:
    if shift_ms is None:
        return "–"
    if abs(shift_ms) < 1000:
        return "right"
    return f"{age(abs(shift_ms) / 1000)} {'ahead' if shift_ms > 0 else 'behind'}"


def _info(node: NodeView, now_ms: int) -> Iterator[tuple[str, str]]:
    yield "address", node.address or "–"
    yield "state", node.words + (f", since {clock(node.since_ms, now_ms)}" if node.since_ms is not None else "")
    yield "sampling", _ON_OFF[node.on]
    yield "last sent", f"{node.last_sent} by its own clock" if node.last_sent else "–"
    yield "sampling interval", f"{node.every_s:g} s" if node.every_s else "–"
    yield "last sample", rfc3339(node.last_ms) if node.last_ms is not None else "–"
    yield "stored here", f"{node.samples:,} samples"
    yield "missing", f"{node.missing:,} samples" if node.missing else "none"
    room = f" of {node.slots:,}" if node.slots else ""
    yield "in its outbox", f"{node.held:,}{room}" if node.held is not None else "–"
    yield "its clock", _shift(node.shift_ms)
    yield "answers in", f"{node.round_trip_ms:.1f} ms" if node.round_trip_ms is not None else "–"
    if node.machine:
        yield "its computer", ", ".join(_of_machine(node))
    yield "version", node.version or "–"


def _of_machine(node: NodeView) -> Iterator[str]:
    told = node.machine
    if "cpu_temperature" in told:
        yield f"processor at {told['cpu_temperature']:.0f} °C"
    if "load" in told:
        yield f"load {told['load']:.2f}"
    for key, words in (("memory_free", "memory"), ("disk_free", "disk")):
        if key in told:
            yield f"{size(told[key] * 2**20)} of {words} free"


# -------------------------------------------------------------------------------------------------- for a terminal


def _front_text(context: RequestContext, snapshot: StatusSnapshot) -> str:
    here = context.request.headers.get("host", "localhost")
    last = (
        f"; last sample {age((snapshot.now_ms - snapshot.last_ms) / 1000)} ago" if snapshot.last_ms is not None else ""
    )
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.now_ms // 1000))
    lines = [f"{f'Pigeonpost {context.app.name}'[:58]:<60}{stamp:>19}", "", f"{snapshot.verdict}{last}.", ""]
    sensors = [sensor for node in snapshot.nodes for sensor in node.sensors if node.state != "past"]
    lines += _sensor_lines(sensors)
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


def _node_text(
    context: RequestContext, snapshot: StatusSnapshot, node: NodeView, missing: Sequence[dict[str, Any]]
) -> str:
    here = context.request.headers.get("host", "localhost")
    lines = [f"{node.name}: {_says(node)}.", "", *_sensor_lines(node.sensors), ""]
    lines += [f"{name:<20}{value}" for name, value in _info(node, snapshot.now_ms)]
    judged = [(sensor.name, _limits(sensor), _counts(sensor)) for sensor in node.sensors if sensor.limits]
    lines += ["", *aligned(("SENSOR", "LIMITS", "BEYOND THEM, IN THIS RUN"), judged, "<<<")] if judged else []
    lines += ["", "Missing:", *(f"  {gap_words(gap)}: {gap['why']}" for gap in missing)] if missing else []
    lines += ["", "Off:  curl --json '{\"on\": false}' " + f"http://{here}/api/v1/nodes/{node.name}/send"]
    return "\n".join(lines) + "\n"


def _sensor_lines(sensors: Iterable[SensorView]) -> list[str]:
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
