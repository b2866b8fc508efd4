"""Actions: turning a node on or off, asking for its status; for the buttons and for the JSON API.

webui has checked access before. The thread of the request waits for the node's answer. Errors: HTTPError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import json_answer, json_body, see_other

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeLink


# ------------------------------------------------------------------------------------------------------- the buttons


def switch_on(context: RequestContext) -> Response:
    """`POST /nodes/NAME/on`"""
    return _back(context, "on", _ask(context, "SEND", True))


def switch_off(context: RequestContext) -> Response:
    """`POST /nodes/NAME/off`"""
    return _back(context, "off", _ask(context, "SEND", False))


def ask_status(context: RequestContext) -> Response:
    """`POST /nodes/NAME/status`"""
    return _back(context, "status", _ask(context, "CHECK"))


def _back(context: RequestContext, notice: str, answered: bool) -> Response:
    return see_other(f"/nodes/{context.args[0]}?notice={notice if answered else 'silent'}")


# ------------------------------------------------------------------------------------------------ the JSON interface


def send(context: RequestContext) -> Response:
    """`POST /api/v1/nodes/NAME/send {"on": true}`: answers when the node has."""
    on = json_body(context.request).get("on")
    if type(on) is not bool:
        raise HTTPError(400, 'The body is {"on": true} or {"on": false}.', "on")
    if not _ask(context, "SEND", on):
        raise _silent(context)
    return json_answer({"node": context.args[0], "on": _link(context).state.on})


def check(context: RequestContext) -> Response:
    """`POST /api/v1/nodes/NAME/check`: what the node says of itself."""
    if not _ask(context, "CHECK"):
        raise _silent(context)
    state = _link(context).state
    told: Mapping[str, Any] = state.details
    checked = rfc3339(state.checked_ms) if state.checked_ms is not None else None
    return json_answer({
        "node": context.args[0], "on": state.on, "last_sent": state.last_sent, "details": told, "checked": checked,
        "round_trip_ms": state.round_trip_ms,
    })  # fmt: skip


def _ask(context: RequestContext, word: str, *arguments: bool) -> bool:
    """Ask the node. Returns True if it answered."""
    return _link(context).ask(word, *arguments)


def _link(context: RequestContext) -> NodeLink:
    name = context.args[0]
    links = [link for link in context.app.links if link.state.name == name]
    if links:  # a node may be collected from, and call in besides: it is asked where it is connected
        return max(links, key=lambda link: (link.state.connected, not link.state.calls_in))
    raise HTTPError(404, "This server does not collect from a node of that name.", "unknown-node")


def _silent(context: RequestContext) -> HTTPError:
    state = _link(context).state
    late = "it hears of it when it calls next" if state.takes_orders else "no answer in time"
    why = state.fault if not state.connected else late
    return HTTPError(503, f"The node did not answer: {why}.", "not-connected", {"Retry-After": "5"})
