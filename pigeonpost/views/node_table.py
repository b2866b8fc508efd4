"""Nodes on the front page: selection of those on one page, table, search, counts by state, links to other pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple
from urllib.parse import quote

from pigeonpost.core.format import age, counted
from pigeonpost.core.html import Html, join_html
from pigeonpost.views.context import RequestContext
from pigeonpost.views.front_query import STATES, FrontQuery
from pigeonpost.views.models import UNWATCHED, NodeNow, NodeView, StatusSnapshot
from pigeonpost.views.node_buttons import node_buttons

PAGE_NODES = 50
_MOST_RETIRED = 10  # retired nodes that are listed by name
STATE_WORDS = {
    "lost": "not reporting", "trouble": "with a fault", "waiting": "waiting", "off": "switched off",
    "reporting": "reporting", "past": "former",
}  # fmt: skip


class NodeList(NamedTuple):
    """Nodes on one page of the front page, and the counts of all nodes.

    Attributes:
        nodes: Nodes on this page.
        found: Number of nodes found by the search.
        total: Number of all nodes except retired ones.
        pages: Number of pages of the found nodes.
        counts: Number of found nodes by state.
        retired: Names of retired nodes.
    """

    nodes: Sequence[NodeView]
    found: int
    total: int
    pages: int
    counts: dict[str, int]
    retired: Sequence[str]

    @property
    def is_paged(self) -> bool:
        """True if there are more nodes than fit on one page."""
        return self.total > PAGE_NODES


def choose_nodes(snapshot: StatusSnapshot, query: FrontQuery) -> NodeList:
    """Return the nodes of `snapshot` that `query` selects.

    If not all nodes fit on one page, those with a fault are on the first pages.
    """
    shown = [(place, one) for place, one in enumerate(snapshot.summaries) if one.condition != "retired"]
    wanted = query.q.casefold()
    by_state: dict[str, list[int]] = {state: [] for state in STATES}
    for place, one in shown:
        if not wanted or wanted in (one.name or one.address).casefold():
            by_state[_state_of(one)].append(place)
    found = by_state[query.state] if query.state else list(chain.from_iterable(by_state.values()))
    if len(shown) <= PAGE_NODES:
        found.sort()
    pages = max(1, -(-len(found) // PAGE_NODES))
    first = (min(query.page, pages) - 1) * PAGE_NODES
    return NodeList(
        [snapshot.nodes[place] for place in found[first : first + PAGE_NODES]], len(found), len(shown), pages,
        {state: len(places) for state, places in by_state.items() if places},
        [one.name for one in snapshot.summaries if one.condition == "retired"],
    )  # fmt: skip


def _state_of(node: NodeNow) -> str:
    """Return the state, one of STATES, under which a node is counted."""
    condition = node.condition
    if condition in ("late", "lost"):
        return "lost"
    if node.troubles or (node.warnings and condition not in UNWATCHED):
        return "trouble"
    return condition


# ------------------------------------------------------------------------------------------------------- the table


def node_table(context: RequestContext, listed: NodeList, query: FrontQuery) -> Html:
    """Return the section with the table of nodes; empty if there are no nodes.

    Args:
        context: The request.
        listed: The nodes on this page.
        query: The query of the front page.
    """
    if not listed.total and not listed.retired:
        return Html("")
    has_buttons = not listed.is_paged and sum(node.state not in UNWATCHED for node in listed.nodes) > 1
    head = ("node", "state", "last sample", "unsent", "missing", "clock", "round trip")
    rows = join_html(
        Html("<tr>{}{}</tr>\n").format(
            join_html(Html('<td data-label="{}">{}</td>').format(*cell) for cell in zip(head, _cells(node))),
            Html('<td><div class="buttons small">{}</div></td>').format(node_buttons(context, node))
            if has_buttons else "",
        )
        for node in listed.nodes
    )  # fmt: skip
    titles = join_html(Html("<th>{}</th>").format(text) for text in [*head, *(["buttons"] if has_buttons else [])])
    table = Html('<table class="nodes"><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table>').format(titles, rows)
    return Html('<section data-piece="nodes" id="nodes"><h2>Nodes</h2>{}{}{}</section>').format(
        table if rows else Html("<p>No node found.</p>") if listed.total else "",
        _pager(listed, query), _retired(listed.retired),
    )  # fmt: skip


def _cells(node: NodeView) -> Iterator[object]:
    link = Html('<a href="/nodes/{}">{}</a>').format(quote(node.name), node.name)
    yield link if node.name else node.address
    yield Html('<span class="{}">{}</span>').format(*_state_words(node))
    yield f"{age(node.age_s)} ago" if node.age_s is not None else "–"
    yield backlog(node)
    yield Html('<a class="bad" href="/gaps">{}</a>').format(f"{node.missing:,}") if node.missing else "none"
    yield clock_offset(node.shift_ms)
    yield f"{node.round_trip_ms:.0f} ms" if node.round_trip_ms is not None else "–"


def _state_words(node: NodeView) -> tuple[str, str]:
    """Return the CSS class and the text of a node's state. For a reporting node with a fault, the text is the fault."""
    if node.state != "reporting":
        return node_level(node), node.words
    if node.warnings:
        return "bad", node.warnings[0]
    if not node.troubles:
        return "good", node.words
    return "wait", trouble_words(node)


def node_search(listed: NodeList, query: FrontQuery) -> Html:
    """Return the search form and the counts by state for `listed` and `query`; empty if all nodes are on one page."""
    if not listed.is_paged:
        return Html("")
    keep = join_html(
        Html('<input type="hidden" name="{}" value="{}">').format(key, value)
        for key, value in (("state", query.state), ("span", query.span), ("node", query.node)) if value
    )  # fmt: skip
    return Html(
        '<form class="fields search" method="get" action="/" role="search"><label for="q">Nodes by name</label>'
        '<input id="q" type="search" name="q" value="{}" maxlength="63" autocapitalize="off" spellcheck="false">'
        '{}<button class="plain">Search</button>{}</form>{}'
    ).format(query.q, keep, Html('<a href="{}">All nodes</a>').format(query.path(q="", state="", page=1))
             if query.q or query.state else "", _counts(listed, query))  # fmt: skip


def _counts(listed: NodeList, query: FrontQuery) -> Html:
    """Return the number of nodes in each state, as links to these nodes."""
    links = join_html((
        Html('<a href="{}"{}><b>{}</b> {}</a>').format(
            query.path(state="" if state == query.state else state, page=1),
            Html(' aria-current="true"') if state == query.state else "", f"{count:,}", STATE_WORDS[state],
        )
        for state, count in listed.counts.items()
    ), " ")  # fmt: skip
    return Html('<nav class="states" aria-label="Nodes by state" data-piece="states">{}</nav>').format(links)


def _pager(listed: NodeList, query: FrontQuery) -> Html:
    if listed.pages < 2:
        return Html("")
    page = min(query.page, listed.pages)
    first = (page - 1) * PAGE_NODES + 1
    before = Html('<a rel="prev" href="{}#nodes">Previous</a>').format(query.path(page=page - 1)) if page > 1 else ""
    after = Html('<a rel="next" href="{}#nodes">Next</a>').format(query.path(page=page + 1))
    return Html('<nav class="pager" aria-label="Pages of nodes">{} <span>{} to {} of {}</span> {}</nav>').format(
        before, f"{first:,}", f"{first + len(listed.nodes) - 1:,}", f"{listed.found:,}",
        after if page < listed.pages else "",
    )  # fmt: skip


def _retired(names: Sequence[str]) -> Html:
    if not names:
        return Html("")
    links = join_html((Html('<a href="/nodes/{}">{}</a>').format(quote(name), name)
                       for name in names[:_MOST_RETIRED]), ", ")  # fmt: skip
    more = f" and {len(names) - _MOST_RETIRED:,} more" if len(names) > _MOST_RETIRED else ""
    count = counted(len(names), "retired node")
    return Html('<p class="retired">{}: {}{}</p>').format(count, links, more)


# ------------------------------------------------------------------------------------------------------------- words


def trouble_words(node: NodeView) -> str:
    """Return the first fault of the sensors of `node`, and the number of further ones, as text."""
    more = f", and {len(node.troubles) - 1} more" if len(node.troubles) > 1 else ""
    return f"{node.troubles[0].sensor}: {node.troubles[0].words}{more}"


def backlog(node: NodeView) -> str:
    """Return the number of samples of `node` that this server has not acknowledged, as text."""
    if node.waiting is None:
        return "–"
    return f"{node.waiting:,}" if node.waiting else "none"


def node_level(node: NodeView) -> str:
    """Return the CSS class for the state of `node`: `good`, `wait` or `bad`."""
    return {"reporting": "good", "late": "bad", "lost": "bad"}.get(node.state, "wait")


def clock_offset(shift_ms: int | None) -> str:
    """Return `shift_ms`, the clock of a node minus the clock of this server, as text."""
    if shift_ms is None:
        return "–"
    if abs(shift_ms) < 1000:
        return "correct"
    return f"{age(abs(shift_ms) / 1000)} {'ahead' if shift_ms > 0 else 'behind'}"
