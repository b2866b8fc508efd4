"""Page of one node (`/nodes/NAME`): its sensors, state and gaps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pigeonpost.core.format import age, aligned, clock, counted, size, zone_minutes
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.units import conversion
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.views.context import RequestContext
from pigeonpost.views.dashboard import footer
from pigeonpost.views.front_charts import chart_images, default_span
from pigeonpost.views.front_query import SPANS
from pigeonpost.views.gaps_and_events import gap_text
from pigeonpost.views.html import html_page, key_notice, span_links, text_page
from pigeonpost.views.models import NodeView, StatusSnapshot
from pigeonpost.views.node_buttons import ON_OFF, node_buttons
from pigeonpost.views.node_table import backlog, clock_offset, node_level, trouble_words
from pigeonpost.views.quality_flags import flag_counts, flags_table, limits_of
from pigeonpost.views.sensor_card import cards_section, sensor_card, sensor_lines
from pigeonpost.views.sensor_units import in_units

MOST_GAPS = 200  # the latest gaps of all nodes, in which those of the node are searched
_NOTICES = {
    "on": "{node} is on: it samples.",
    "off": "{node} is off: it takes no samples. Its stored samples are still delivered.",
    "status": "{node} answered: sampling is {on}, its last sample was sent at {sent} by its own clock.",
    "silent": "{node} did not answer. Check its state below, and try again when it is connected.",
}
_REMEDIES = {
    "lost": "check that the Pi is on and in the network; `python3 control.py doctor` on the Pi finds the cause",
    "late": "read the log of the node or client; `python3 control.py doctor` on the Pi finds the cause",
}


def node_page(context: RequestContext) -> Response:
    """Return the page of a node for `context`: `/nodes/NAME`. Raises HTTPError 404 if there is no such node."""
    snapshot = context.snapshot()
    node = snapshot.node(context.args[0])
    if node is None or not node.name:
        raise HTTPError(404, "There is no node with that name.", "unknown-node")
    units = context.preferences.units
    node = node._replace(sensors=[in_units(sensor, units) for sensor in node.sensors])
    missing = [gap for gap in context.app.store.gaps(MOST_GAPS) if gap["node"] == node.name]
    if not context.request.wants_html:
        return text_page(_node_text(context, snapshot, node, missing), context=context)
    span = context.request.query.get("span", "")
    span = span if span in dict(SPANS) else _usual_span(node)
    body = join_html((
        Html("<h1>{}</h1>").format(node.name),
        _notice(context, node),
        Html('<p class="verdict {}" data-piece="verdict">{}.</p>').format(_level(node), _sentence(node)),
        Html('<div class="buttons" data-piece="buttons">{}</div>').format(node_buttons(context, node)),
        key_notice(context),
        cards_section(
            [sensor_card(sensor, False) for sensor in node.sensors] or [_NO_SENSOR], zone_minutes(snapshot.now_ms)
        ),
        span_links(((f"/nodes/{quote(node.name)}?span={key}", words, key == span) for key, words in SPANS), "charts")
        if node.sensors else "",
        chart_images(node.sensors, span),
        flags_table(node.sensors),
        _about(node, snapshot.now_ms, units),
        _missing(missing, node.missing, snapshot.now_ms),
    ), "\n")  # fmt: skip
    return html_page(node.name, body, context, live=True, foot=footer(context))


def _usual_span(node: NodeView) -> str:
    """Return the default range of the charts: that of a sensor with values, if there is one."""
    shown = next((sensor for sensor in node.sensors if sensor.columns), None)
    return default_span(shown) if shown is not None else "24h"


_NO_SENSOR = Html("<p>No sensors of this node are known yet. The node reports them when it connects.</p>")


def _about(node: NodeView, now_ms: int, units: Mapping[str, str]) -> Html:
    rows = join_html(Html("<tr><th>{}</th><td>{}</td></tr>").format(*fact) for fact in _info(node, now_ms, units))
    return Html('<section data-piece="about"><h2>About this node</h2><table class="facts">{}</table></section>').format(
        rows
    )


def _missing(gaps: Sequence[dict[str, Any]], count: int, now_ms: int) -> Html:
    if not gaps and count:
        return Html("<p>Its gaps are older than the latest {} gaps of all nodes.</p>").format(MOST_GAPS)
    if not gaps:
        return Html("<p>No samples of this node are missing.</p>")
    rows = join_html(
        Html("<tr><td>{}</td><td>{}</td><td>{}</td></tr>").format(
            gap_text(gap), clock(gap["noted_ms"], now_ms), gap["why"]
        )
        for gap in gaps
    )
    return Html(
        '<section><h2>Gaps</h2><table class="facts"><thead><tr><th>numbers</th><th>recorded</th>'
        "<th>reason</th></tr></thead><tbody>{}</tbody></table></section>"
    ).format(rows)


def _notice(context: RequestContext, node: NodeView) -> Html:
    """Return the result of the button that was just pressed. The address only selects one of the fixed texts."""
    words = _NOTICES.get(context.request.query.get("notice", ""))
    if not words:
        return Html("")
    on, sent = ON_OFF[node.on], node.last_sent or "–"
    return Html('<p class="notice" role="status">{}</p>').format(words.format(node=node.name, on=on, sent=sent))


def _level(node: NodeView) -> str:
    """Return the CSS class of the sentence about a node. A reporting node can have a warning or a failing sensor."""
    level = node_level(node)
    if level != "good":
        return level
    return "bad" if node.warnings else "wait" if node.troubles else "good"


def _sentence(node: NodeView) -> str:
    """Return a sentence about a node without full stop, including the first fault of its sensors."""
    last = f"; last sample {age(node.age_s)} ago" if node.age_s is not None else ""
    trouble = f"; {trouble_words(node)}" if node.troubles else ""
    return f"{node.words[:1].upper()}{node.words[1:]}{trouble}{last}"


def _info(node: NodeView, now_ms: int, units: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "address", node.address or "–"
    is_new = node.since_ms is not None and " since " not in node.words
    yield "state", node.words + (f", since {clock(node.since_ms or 0, now_ms)}" if is_new else "")
    if node.state in ("lost", "late") and "`" not in node.words:  # otherwise the text contains the remedy
        yield "what to do", _REMEDIES[node.state]
    yield from (("warning", text) for text in node.warnings)
    yield "sampling", ON_OFF[node.on]
    yield "last sent", f"{node.last_sent} by its own clock, at its last status report" if node.last_sent else "–"
    yield "sampling interval", f"{node.every_s:g} s" if node.every_s else "–"
    yield "last sample", clock(node.last_ms, now_ms, seconds=True) if node.last_ms is not None else "–"
    yield "stored here", counted(node.samples, "sample")
    yield "missing", counted(node.missing, "sample") if node.missing else "none"
    room = f" of {node.slots:,} slots used" if node.slots else " slots used"
    yield "unsent", backlog(node)
    yield "outbox", f"{node.held:,}{room}" if node.held is not None else "–"
    yield "clock", clock_offset(node.shift_ms)
    yield "round trip", f"{node.round_trip_ms:.1f} ms" if node.round_trip_ms is not None else "–"
    if node.machine:
        at = f"; at {clock(node.checked_ms, now_ms)}" if node.checked_ms is not None else ""
        yield "computer", ", ".join(_of_machine(node, units)) + at
    if node.certificate:
        yield "link", f"TLS; SHA-256 of its certificate: {node.certificate}"
    yield "version", node.version or "–"


def _of_machine(node: NodeView, units: Mapping[str, str]) -> Iterator[str]:
    machine = node.machine
    if "cpu_temperature" in machine:
        to = conversion("°C", units)
        yield f"CPU temperature {to.value(machine['cpu_temperature']):.0f} {to.unit}"
    if "load" in machine:
        yield f"load {machine['load']:.2f}"
    for key, words in (("memory_free", "memory"), ("disk_free", "disk")):
        if key in machine:
            yield f"{words} free {size(machine[key] * 2**20)}"


def _node_text(
    context: RequestContext, snapshot: StatusSnapshot, node: NodeView, missing: Sequence[dict[str, Any]]
) -> str:
    lines = [f"{node.name}: {_sentence(node)}.", "", *sensor_lines(node.sensors), ""]
    lines += [f"{name:<20}{value}" for name, value in _info(node, snapshot.now_ms, context.preferences.units)]
    judged = [(sensor.title, limits_of(sensor), flag_counts(sensor)) for sensor in node.sensors if sensor.limits]
    lines += ["", *aligned(("SENSOR", "LIMITS", "FLAGS IN THIS RUN"), judged, "<<<")] if judged else []
    lines += ["", "Missing:", *(f"  {gap_text(gap)}: {gap['why']}" for gap in missing)] if missing else []
    lines += ["", f"Off:  python3 control.py send {node.name} off"]
    return "\n".join(lines) + "\n"
