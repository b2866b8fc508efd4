"""Actions: turning a node on or off, asking for its status, ending this server; for the buttons and for the JSON API.

webui has checked access before. The thread of the request waits for the node's answer. Errors: HTTPError.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import size
from pigeonpost.core.html import Html
from pigeonpost.http.message import HTTPError, Response, form_of
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import html_page, json_answer, json_body, see_other, text_page

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeLink

_FLUSH_S = 3.0


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


def leave(context: RequestContext) -> Response:
    """`POST /exit`: asks first; then has everything written that is in hand, says what, and ends the program."""
    if form_of(context.request).get("sure") != "yes":
        return _are_you_sure(context)
    report = _flush(context)
    context.app.stop(f"Exit, by {context.user or 'the page'} at {context.request.peer}")
    if not context.request.wants_html:
        return text_page(f"exited\n{report}\n")
    body = Html(
        "<h1>exited</h1>\n<p>{}</p>\n<p>The server has ended. The nodes go on sampling, and bring what they hold when"
        " it is started again.</p>"
    ).format(report)
    return html_page("exited", body)


def _are_you_sure(context: RequestContext) -> Response:
    if not context.request.wants_html:
        return text_page("This stops the server. Are you sure? Then send the form field sure=yes.\n")
    body = Html(
        "<h1>Stop this server?</h1>\n<p>It writes what it has in hand, and ends. The nodes go on sampling and keep"
        ' their samples until it is started again.</p>\n<div class="buttons"><form method="post" action="/exit">'
        '<input type="hidden" name="csrf" value="{}"><input type="hidden" name="sure" value="yes">'
        '<button class="danger">Exit</button></form><a class="button" href="/">No, go back</a></div>'
    ).format(context.csrf)
    return html_page("Exit", body, context)


def _flush(context: RequestContext) -> str:
    """Have everything stored and logged that was received. Returns a sentence about it."""
    ingestor = context.app.ingestor
    if not ingestor.flush(_FLUSH_S):
        return f"Not everything could be stored ({ingestor.fault or 'the disk is slow'}); the nodes keep the rest."
    path, length = context.app.csv.whole()
    count = "1 sample of this run is" if ingestor.stored == 1 else f"{ingestor.stored:,} samples of this run are"
    return f"Flushed: {count} stored; the log {os.path.basename(path)} is whole, {size(length)}."


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
