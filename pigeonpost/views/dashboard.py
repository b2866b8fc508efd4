"""Dashboard: the front page, as HTML, and as text for a terminal.

The page is complete without its script. The script updates values (`data-live`) and ages (`data-time`), and replaces
parts of the page (`data-piece`) with those of a newly requested copy.
"""

from __future__ import annotations

from collections.abc import Sequence

from pigeonpost.core.format import age, aligned, counted, size, stamp, zone_minutes, zone_name
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.version import VERSION
from pigeonpost.http.message import Response
from pigeonpost.server.disk_usage import DiskUsage, written_words
from pigeonpost.views.alerts_page import alerts_notice, alerts_sentence
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.front_charts import arrange, front_charts
from pigeonpost.views.front_query import FrontQuery, read_query
from pigeonpost.views.html import button, html_page, key_notice, text_page
from pigeonpost.views.integrations_page import integrations_notice, integrations_sentence
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

MOST_CARDS = 100  # cards of one node on the front page
CARDS_OF_ONE_PAGE = 200  # cards of all nodes, if the nodes fit on one page
CARDS_OF_MANY = 24  # cards on each page, if they do not


def front(context: RequestContext) -> Response:
    """Return the front page for `context`: summary, buttons, a card per sensor, charts and nodes."""
    snapshot, query = context.snapshot(), read_query(context.request.query)
    listed = choose_nodes(snapshot, query)
    if not context.request.wants_html:
        return text_page(_front_text(context, snapshot, listed, query), context=context)
    cards, has_more = _cards(context, listed)
    body = join_html((
        _summary(snapshot),
        alerts_notice(context),
        integrations_notice(context),
        server_buttons(context, snapshot, listed.nodes, query),
        key_notice(context),
        *(Html('<p class="more"><a href="{}">{}</a></p>').format(*link) for link in context.app.more),
        _FIRST_STEPS if not snapshot.nodes else "",
        node_search(listed, query),
        cards_section(cards, zone_minutes(snapshot.now_ms), _names(listed) if listed.is_paged else ()),
        MORE_SENSORS if has_more else "",
        node_table(context, listed, query) if listed.is_paged else "",
        front_charts(context, listed, query),
        "" if listed.is_paged else node_table(context, listed, query),
    ), "\n")  # fmt: skip
    return html_page("Dashboard", body, context, live=True, foot=footer(context))


MORE_SENSORS = Html('<p class="more">The other sensors are on the pages of their nodes.</p>')
_FIRST_STEPS = Html(
    '<section class="notice"><p>Start a node on the Pi with the sensors: <code>python3 node.py</code>. It prints the'
    " port on which it listens, 5003.</p><p>Then start this server with the address of that Pi:"
    " <code>python3 server.py --node NAME@ADDRESS:5003</code>.</p><p>To try it without sensors:"
    " <code>python3 server.py --demo</code>.</p></section>"
)


def _summary(snapshot: StatusSnapshot) -> Html:
    last = Html("")
    if snapshot.last_ms is not None and not _contains_age(snapshot):
        last = Html('; last sample <span data-live="last" data-time="{}">{} ago</span>').format(
            snapshot.last_ms, age((snapshot.now_ms - snapshot.last_ms) / 1000)
        )
    return Html('<h1 class="verdict {}" data-piece="verdict">{}{}.</h1>').format(snapshot.level, snapshot.summary, last)


def _contains_age(snapshot: StatusSnapshot) -> bool:
    """Return True if no age of the last sample must follow the summary.

    It then contains the age of a node's last sample, or ends with one of several nodes that cannot be reached: the age
    of the last sample of all nodes would seem to be that of this node.
    """
    conditions = [node.condition for node in snapshot.summaries if node.condition not in UNWATCHED]
    return not snapshot.faults and ("late" in conditions or ("lost" in conditions and len(conditions) > 1))


def _cards(context: RequestContext, listed: NodeList) -> tuple[list[Html], bool]:
    """Return the cards of this page, and True if there are more sensors than cards."""
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
                '<a class="card" href="/nodes/{0}"><span class="name">{1} of {0}</span></a>\n'
            ).format(node.name, counted(len(node.sensors) - room, "more sensor")))  # fmt: skip
    return cards, False


def _names(listed: NodeList) -> list[str]:
    return [node.name for node in listed.nodes if node.name and node.state not in UNWATCHED]


def _foremost(node: NodeView, most: int) -> Sequence[SensorView]:
    """Return at most `most` sensors of a node; if that is not all, those with a fault come first."""
    if len(node.sensors) <= most:
        return node.sensors
    return sorted(node.sensors, key=lambda sensor: not (sensor.fault or sensor.flag_texts))[:most]


def _how_signed_in(user: str, role: str) -> str:
    """Return a sentence about how the client is signed in. Not every client is a user with a password."""
    if user == LOCAL.name:
        return f"Signed in from this machine ({role})."
    how = "with the one-time key" if user == ONE_TIME_KEY else f"as {user}"
    return f"Signed in {how} ({role})."


def footer(context: RequestContext) -> Html:
    """Return the foot of a page for `context`: version, disk, time zone, and the signed-in user."""
    out = button("/logout", "Log out", context, kind="quiet") if context.csrf else Html("")
    who = _how_signed_in(context.user, context.role) if context.user else ""
    zone = zone_name(context.app.clock.wall_ms())
    return Html("<footer>Pigeonpost {}, server {}. {} Time zone: {}. {} {}</footer>\n").format(
        VERSION, context.app.name, _disk_words(context.app.disk.use()), zone, who, out
    )


def _disk_words(use: DiskUsage) -> str:
    """Return sentences about the usage of the disk."""
    left = ""
    if use.days is not None:
        left = ", space for years" if use.days > 1000 else f", space for {use.days:.0f} days"
    written = ""
    if use.written is not None:
        amount = written_words(use)
        written = f" {amount[0].upper()}{amount[1:]} written per day."
    return f"{size(use.stored)} stored, {size(use.free)} free{left}.{written}"


# -------------------------------------------------------------------------------------------------- for a terminal


def _front_text(context: RequestContext, snapshot: StatusSnapshot, listed: NodeList, query: FrontQuery) -> str:
    site = context.request.site
    last = (
        f"; last sample {age((snapshot.now_ms - snapshot.last_ms) / 1000)} ago"
        if snapshot.last_ms is not None and not _contains_age(snapshot)
        else ""
    )
    head = f"{f'Pigeonpost {context.app.name}'[:52]:<54}{stamp(snapshot.now_ms):>25}"
    sentences = filter(None, (alerts_sentence(context), integrations_sentence(context)))
    lines = [head, "", f"{snapshot.summary}{last}.", *sentences, ""]
    watched = [node for node in listed.nodes if node.state not in UNWATCHED]
    units = context.preferences.units
    lines += sensor_lines(in_units(sensor, units) for node in watched for sensor in _foremost(node, MOST_CARDS))
    nodes = [(node.name or node.address, node.words, *_numbers(node)) for node in listed.nodes]
    if nodes:
        lines += ["", *aligned(("NODE", "STATE", "UNSENT", "MISSING"), nodes, "<<>>")]
    lines += _text_pages(listed, query, site)
    lines += [
        "",
        _disk_words(context.app.disk.use()),
        "",
        f"Last ten samples:      curl {site}/log",
        f"Log of this run:       curl -O {site}/log.csv",
    ]
    lines += [f"{text.partition(':')[0] + ':':<23}curl {site}{path}" for path, text in context.app.more]
    lines += [f"A node in detail:      curl {site}/nodes/{node.name}" for node in listed.nodes[:1] if node.name]
    return "\n".join(lines) + "\n"


def _text_pages(listed: NodeList, query: FrontQuery, site: str) -> list[str]:
    """Return the counts by state, and the commands for other nodes."""
    if not listed.is_paged:
        return []
    before = (min(query.page, listed.pages) - 1) * PAGE_NODES
    counts = ", ".join(f"{count:,} {STATE_WORDS[state]}" for state, count in listed.counts.items())
    shown = f"Nodes {before + bool(listed.nodes)} to {before + len(listed.nodes)} of {listed.found:,}"
    lines = ["", f"{shown}: {counts}."]
    if query.page < listed.pages:
        lines.append(f"Next page:             curl '{site}{query.path(page=query.page + 1)}'")
    return [*lines, f"Nodes by name:         curl '{site}/?q=NAME'"]


def _numbers(node: NodeView) -> tuple[str, str]:
    return backlog(node), f"{node.missing:,}" if node.missing else "none"


ROUTES = (
    Route("GET", "/", "viewer", front, kept=True),
    Route("POST", "/nodes", "operator", act, changes=True),
    Route("POST", "/charts", "viewer", arrange, changes=True),
)
