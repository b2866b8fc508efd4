"""Dashboard: the front page, as HTML, and as text for a terminal.

The page is complete without its script, which updates values (`data-live`) and ages (`data-time`), and replaces the
parts that it finds in a fresh copy of the page (`data-piece`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pigeonpost.core.format import age, aligned, size, zone_minutes, zone_name
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.version import VERSION
from pigeonpost.http.message import Response
from pigeonpost.server.disk_usage import DiskUsage
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.front_charts import arrange, front_charts
from pigeonpost.views.front_query import FrontQuery, read_query
from pigeonpost.views.html import button, html_page, key_notice, text_page
from pigeonpost.views.models import UNWATCHED, NodeView, SensorView, StatusSnapshot
from pigeonpost.views.node_buttons import act, server_buttons
from pigeonpost.views.node_table import (
    PAGE_NODES,
    STATE_WORDS,
    NodeList,
    backlog,
    choose_nodes,
    node_search,
    node_table,
)
from pigeonpost.views.sensor_card import cards_section, sensor_card, sensor_lines
from pigeonpost.views.sensor_units import in_units
from pigeonpost.web.access import LOCAL, ONE_TIME_KEY

MOST_CARDS = 100  # of a node on the front page,
CARDS_OF_ONE_PAGE = 200  # of nodes that fit on one page,
CARDS_OF_MANY = 24  # and of more nodes


def front(context: RequestContext) -> Response:
    """`/`: the summary, the buttons, a card for each sensor, charts, the nodes."""
    snapshot, query = context.snapshot(), read_query(context.request.query)
    listed = choose_nodes(snapshot, query)
    if not context.request.wants_html:
        return text_page(_front_text(context, snapshot, listed, query))
    cards, has_more = _cards(context, listed)
    body = join_html((
        _summary(snapshot),
        server_buttons(context, snapshot, listed.nodes, query),
        key_notice(context),
        _FIRST_STEPS if not snapshot.nodes else "",
        node_search(listed, query),
        cards_section(cards, zone_minutes(snapshot.now_ms), _names(listed) if listed.is_paged else ()),
        MORE_SENSORS if has_more else "",
        node_table(context, listed, query) if listed.is_paged else "",
        front_charts(context, listed, query),
        "" if listed.is_paged else node_table(context, listed, query),
    ), "\n")  # fmt: skip
    return html_page("Now", body, context, live=True, foot=footer(context))


MORE_SENSORS = Html('<p class="more">The other sensors are on the pages of their nodes.</p>')
_FIRST_STEPS = Html(
    '<section class="notice"><p>Start a node on the Pi with the sensors: <code>python3 node.py</code>. It prints the'
    " port on which it listens, 5003.</p><p>Then start this server with the address of that Pi:"
    " <code>python3 server.py --node NAME@ADDRESS:5003</code>.</p><p>To look around without any sensor:"
    " <code>python3 server.py --demo</code>.</p></section>"
)


def _summary(snapshot: StatusSnapshot) -> Html:
    last = Html("")
    if snapshot.last_ms is not None and not _tells_age(snapshot):
        last = Html('; last sample <span data-live="last" data-time="{}">{} ago</span>').format(
            snapshot.last_ms, age((snapshot.now_ms - snapshot.last_ms) / 1000)
        )
    return Html('<h1 class="verdict {}" data-piece="verdict">{}{}.</h1>').format(snapshot.level, snapshot.summary, last)


def _tells_age(snapshot: StatusSnapshot) -> bool:
    """Return True if the summary says of a node how long nothing came: another age beside it would contradict it."""
    return not snapshot.faults and any(node.condition == "late" for node in snapshot.summaries)


def _cards(context: RequestContext, listed: NodeList) -> tuple[list[Html], bool]:
    """Return the cards of this page, and whether sensors are left out; of a node with many its page has the others."""
    most = CARDS_OF_MANY if listed.is_paged else CARDS_OF_ONE_PAGE
    units, names_node = context.preferences.units, listed.total > 1
    cards: list[Html] = []
    for node in listed.nodes:
        if node.state in UNWATCHED:
            continue
        room = min(MOST_CARDS, most - len(cards))
        if room <= 0:
            return cards, True
        cards += [sensor_card(in_units(sensor, units), names_node) for sensor in _foremost(node, room)]
        if len(node.sensors) > room:
            cards.append(Html(
                '<a class="card" href="/nodes/{0}"><span class="name">{1} more of {0}</span></a>\n'
            ).format(node.name, len(node.sensors) - room))  # fmt: skip
    return cards, False


def _names(listed: NodeList) -> list[str]:
    return [node.name for node in listed.nodes if node.name and node.state not in UNWATCHED]


def _foremost(node: NodeView, most: int) -> Sequence[SensorView]:
    """Return so many sensors of a node; those with a fault first, where not all have room."""
    if len(node.sensors) <= most:
        return node.sensors
    return sorted(node.sensors, key=lambda sensor: not (sensor.fault or sensor.odd))[:most]


def _how_signed_in(user: str, role: str) -> str:
    """Return how a principal came in: not all are users of users.json, and being on this machine is no signing in."""
    if user == LOCAL.name:
        return "Reading from this machine; nobody is signed in."
    how = "with the one-time key" if user == ONE_TIME_KEY else f"as {user}"
    return f"Signed in {how} ({role})."


def footer(context: RequestContext) -> Html:
    """Return the foot of a page: version, disk, time zone, and who is signed in."""
    out = button("/logout", "Log out", context, kind="quiet") if context.csrf else Html("")
    who = _how_signed_in(context.user, context.role) if context.user else ""
    zone = zone_name(context.app.clock.wall_ms())
    return Html("<footer>Pigeonpost {}, server {}. {} Times are {}. {} {}</footer>\n").format(
        VERSION, context.app.name, _disk_words(context.app.disk.use()), zone, who, out
    )


def _disk_words(use: DiskUsage) -> str:
    """Return sentences about the usage of the disk."""
    left = ""
    if use.days is not None:
        left = ", room for years" if use.days > 1000 else f", room for {use.days:.0f} days"
    written = f" {size(use.written)} are written a day." if use.written is not None else ""
    return f"{size(use.stored)} stored, {size(use.free)} free{left}.{written}"


# -------------------------------------------------------------------------------------------------- for a terminal


def _front_text(context: RequestContext, snapshot: StatusSnapshot, listed: NodeList, query: FrontQuery) -> str:
    here = context.request.site
    last = (
        f"; last sample {age((snapshot.now_ms - snapshot.last_ms) / 1000)} ago"
        if snapshot.last_ms is not None and not _tells_age(snapshot)
        else ""
    )
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.now_ms // 1000))
    lines = [f"{f'Pigeonpost {context.app.name}'[:58]:<60}{stamp:>19}", "", f"{snapshot.summary}{last}.", ""]
    watched = [node for node in listed.nodes if node.state not in UNWATCHED]
    units = context.preferences.units
    lines += sensor_lines(in_units(sensor, units) for node in watched for sensor in _foremost(node, MOST_CARDS))
    nodes = [(node.name or node.address, node.words, *_numbers(node)) for node in listed.nodes]
    if nodes:
        lines += ["", *aligned(("NODE", "STATE", "UNSENT", "MISSING"), nodes, "<<>>")]
    lines += _text_pages(listed, query, here)
    lines += [
        "",
        _disk_words(context.app.disk.use()),
        "",
        f"The last ten samples:  curl {here}/log",
        f"All of this run:       curl -O {here}/log.csv",
    ]
    lines += [f"A node, in full:       curl {here}/nodes/{node.name}" for node in listed.nodes[:1] if node.name]
    return "\n".join(lines) + "\n"


def _text_pages(listed: NodeList, query: FrontQuery, here: str) -> list[str]:
    """Return the counts by state, and how to see other nodes than these."""
    if not listed.is_paged:
        return []
    before = (min(query.page, listed.pages) - 1) * PAGE_NODES
    counts = ", ".join(f"{count:,} {STATE_WORDS[state]}" for state, count in listed.counts.items())
    shown = f"Nodes {before + bool(listed.nodes)} to {before + len(listed.nodes)} of {listed.found:,}"
    lines = ["", f"{shown}: {counts}."]
    if query.page < listed.pages:
        lines.append(f"The next ones:         curl '{here}{query.path(page=query.page + 1)}'")
    return [*lines, f"Nodes by name:         curl '{here}/?q=NAME'"]


def _numbers(node: NodeView) -> tuple[str, str]:
    return backlog(node), f"{node.missing:,}" if node.missing else "none"


ROUTES = (
    Route("GET", "/", "viewer", front, kept=True),
    Route("POST", "/nodes", "operator", act, changes=True),
    Route("POST", "/charts", "viewer", arrange, changes=True),
)
