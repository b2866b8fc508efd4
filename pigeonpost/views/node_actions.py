"""Commands to nodes from the buttons and the JSON API: turn sampling on or off, request the status.

The module webui has already checked the access. The thread of the request waits for the reply of the node. Errors:
HTTPError.
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
    """Turn sampling of a node on for `context`: `POST /nodes/NAME/on`. Return a redirect to its page."""
    return _back(context, "on", _ask(context, "SEND", True))


def switch_off(context: RequestContext) -> Response:
    """Turn sampling of a node off for `context`: `POST /nodes/NAME/off`. Return a redirect to its page."""
    return _back(context, "off", _ask(context, "SEND", False))


def ask_status(context: RequestContext) -> Response:
    """Request the status of a node for `context`: `POST /nodes/NAME/status`. Return a redirect to its page."""
    return _back(context, "status", _ask(context, "CHECK"))


def _back(context: RequestContext, notice: str, answered: bool) -> Response:
    return see_other(f"/nodes/{context.args[0]}?notice={notice if answered else 'silent'}")


# ------------------------------------------------------------------------------------------------ the JSON interface


def send(context: RequestContext) -> Response:
    """Turn sampling of a node on or off for `context`: `POST /api/v1/nodes/NAME/send {"on": true}`. Return its state.

    Raises:
        HTTPError: 400 for an invalid body, 503 if the node does not reply.
    """
    on = json_body(context.request).get("on")
    if type(on) is not bool:
        raise HTTPError(400, 'The body must be {"on": true} or {"on": false}.', "on")
    if not _ask(context, "SEND", on):
        raise _silent(context)
    return json_answer({"node": context.args[0], "on": _link(context).state.on})


def check(context: RequestContext) -> Response:
    """Request the status of a node and return it for `context`: `POST /api/v1/nodes/NAME/check`.

    Raises HTTPError 503 if the node does not reply.
    """
    if not _ask(context, "CHECK"):
        raise _silent(context)
    state = _link(context).state
    details: Mapping[str, Any] = state.details
    checked = rfc3339(state.checked_ms) if state.checked_ms is not None else None
    return json_answer({
        "node": context.args[0], "on": state.on, "last_sent": state.last_sent, "details": details, "checked": checked,
        "round_trip_ms": state.round_trip_ms,
    })  # fmt: skip


def _ask(context: RequestContext, word: str, *arguments: bool) -> bool:
    """Send a command to the node, and return True if it replied in time."""
    return _link(context).ask(word, *arguments)


def _link(context: RequestContext) -> NodeLink:
    name = context.args[0]
    links = [link for link in context.app.links if link.state.name == name]
    if links:  # a node may have several links: use a connected one
        return max(links, key=lambda link: (link.state.connected, not link.state.calls_in))
    raise HTTPError(404, "This server does not collect from a node with that name.", "unknown-node")


def _silent(context: RequestContext) -> HTTPError:
    state = _link(context).state
    late = "it receives the command when it connects next" if state.takes_orders else "no answer in time"
    why = state.fault if not state.connected else late
    return HTTPError(503, f"The node did not answer: {why}.", "not-connected", {"Retry-After": "5"})
