"""Buttons that control nodes: three for each node, and the row of six on the front page with a list of nodes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from urllib.parse import quote

from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import HTTPError, Response, form_of, parse_form
from pigeonpost.views import node_actions
from pigeonpost.views.context import RequestContext
from pigeonpost.views.front_query import FrontQuery, read_query
from pigeonpost.views.html import button, disabled, see_other
from pigeonpost.views.models import UNWATCHED, NodeView, StatusSnapshot

log = logging.getLogger(__name__)

ON_OFF = {True: "on", False: "off", None: "not known"}
_AWAY = "Disabled: the node is not connected"
_ACTIONS = {"on": node_actions.switch_on, "off": node_actions.switch_off, "status": node_actions.ask_status}


def node_buttons(context: RequestContext, node: NodeView) -> Html:
    """Return the three buttons of `node`, each in its own form; empty for a viewer, or a former or retired node.

    Without the one-time key, `context` gets disabled buttons.
    """
    if not has_buttons(context) or not node.name or node.state in UNWATCHED:
        return Html("")
    path, away = f"/nodes/{quote(node.name)}", "" if node.connected else _AWAY
    return join_html((
        button(f"{path}/on", "Sensor On", context, node.name, "chosen" if node.on else "", away),
        button(f"{path}/off", "Sensor Off", context, node.name, "chosen" if node.on is False else "", away),
        button(f"{path}/status", "Status", context, node.name, off=away),
    ))  # fmt: skip


def has_buttons(context: RequestContext) -> bool:
    """Return True if `context` may control nodes, or could with the one-time key: its buttons are then disabled."""
    return context.role == "operator" or context.needs_key


def server_buttons(
    context: RequestContext, snapshot: StatusSnapshot, listed: Sequence[NodeView], query: FrontQuery
) -> Html:
    """Return the row of six buttons. With several nodes, the first three control the chosen node.

    Args:
        context: The request.
        snapshot: State of all nodes.
        listed: The nodes on this page, from which one can be chosen.
        query: The query of the front page.
    """
    own = Html("")
    watched = [one.name for one in snapshot.summaries if one.name and one.condition not in UNWATCHED]
    if watched and has_buttons(context):
        names = [one.name for one in listed if one.name and one.state not in UNWATCHED]
        node = snapshot.node(_chosen(context, query, [*names, *watched]))
        assert node is not None, "it is one of the snapshot"
        own = node_buttons(context, node) if len(watched) == 1 else _chooser(context, node, names, query)
    return Html(
        '<div class="buttons" data-piece="buttons">{own}<a class="button" href="/log">Log Check</a>'
        '<a class="button" href="/log.csv">Log Download</a>{exit}</div>'
    ).format(own=own, exit=button("/exit", "Exit", context, "stop the server") if has_buttons(context) else "")


def _chosen(context: RequestContext, query: FrontQuery, watched: Sequence[str]) -> str:
    """Return the node for the buttons: the requested one, the last chosen one, or the first."""
    known = set(watched)
    return next((name for name in (query.node, context.preferences.node) if name in known), watched[0])


def _chooser(context: RequestContext, node: NodeView, names: Sequence[str], query: FrontQuery) -> Html:
    """Return one form with the list and the buttons, so that a button controls the node that the list shows.

    The rest of the page may still show another node as the chosen one.
    """
    away = "" if node.connected else _AWAY
    options = join_html(
        Html("<option{}>{}</option>").format(Html(" selected") if name == node.name else "", name)
        for name in dict.fromkeys([*names, node.name])
    )
    actions = join_html(
        Html('<button name="do" value="{}" class="{}"{}>{}</button>').format(
            action, "chosen" if is_chosen else "", disabled(context, away), label
        )
        for action, label, is_chosen in (
            ("on", "Sensor On", node.on is True), ("off", "Sensor Off", node.on is False), ("status", "Status", False),
        )
    )  # fmt: skip
    return Html(
        '<form class="chooser" method="post" action="/nodes"><input type="hidden" name="csrf" value="{csrf}">'
        '<input type="hidden" name="back" value="{back}"><label class="of-node">Node <select name="node"{off}>{options}'
        '</select></label><button name="do" value="choose" class="plain"{off}>Choose</button>'
        '<span class="own" data-piece="node-buttons">{actions}</span></form>'
    ).format(
        csrf=context.csrf, back=query.path().partition("?")[2], off=disabled(context), options=options, actions=actions,
    )  # fmt: skip


def act(context: RequestContext) -> Response:
    """Control or choose a node of the front page for `context`: `POST /nodes` with `node` and `do`. Return a redirect.

    `do` is on, off, status or choose. Each action saves the node as the chosen one. If it cannot be saved, only
    `choose` fails. Raises HTTPError 404 for an unknown node, 400 for an unknown action.
    """
    fields = form_of(context.request)
    query = read_query(parse_form(fields.get("back", "")))
    name, action = fields.get("node", ""), fields.get("do", "")
    if name not in context.snapshot().places:
        raise HTTPError(404, "There is no node with that name.", "unknown-node")
    if action == "choose":
        _choose(context, name)
        return see_other(query.path(node=name))
    if action not in _ACTIONS:
        raise HTTPError(400, "`do` must be on, off, status or choose.", "do")
    answer = _ACTIONS[action](context._replace(args=(name,)))
    try:
        _choose(context, name)
    except HTTPError as error:
        log.warning("%s: cannot save the choice of node %s: %s", context.request.peer, name, error)
    return answer


def _choose(context: RequestContext, name: str) -> None:
    context.save_preferences(lambda preferences: preferences._replace(node=name))
