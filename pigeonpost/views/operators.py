"""What operators do to nodes over the JSON API: rename, retire, relabel; `control.py` uses it beside a running server.

The event log gets a line for each. Errors: HTTPError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pigeonpost.core.errors import NotStored
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.server.node_admin import NodeAdmin, Refused
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.html import json_answer, json_body

if TYPE_CHECKING:
    from pigeonpost.server.event_log import EventLog

Answer = Callable[[RequestContext], Response]


def routes(events: EventLog) -> list[Route]:
    """Return the addresses of these actions."""
    path = "/api/v1/nodes/NAME"
    return [
        Route("POST", f"{path}/rename", "operator", _rename(events), changes=True),
        Route("POST", f"{path}/retire", "operator", _retire(events), changes=True),
        Route("POST", f"{path}/relabel", "operator", _relabel(events), changes=True),
    ]


def _rename(events: EventLog) -> Answer:
    """`POST /api/v1/nodes/NAME/rename {"to": NEW}`, or `{"release": true}` to forget that a node was called NAME."""

    def do(admin: NodeAdmin, node: str, asked: dict[str, Any]) -> dict[str, Any]:
        if asked.get("release") is True:
            admin.release(node)
            events.note(node, "renamed", "no longer a former name of another node")
            return {"released": node}
        new = _text(asked, "to")
        admin.rename(node, new)
        events.note(new, "renamed", f"was called {node} until now")
        return {"node": new, "former": node}

    return _answering(do)


def _retire(events: EventLog) -> Answer:
    """`POST /api/v1/nodes/NAME/retire {"retired": true}`, or false."""

    def do(admin: NodeAdmin, node: str, asked: dict[str, Any]) -> dict[str, Any]:
        is_retired = asked.get("retired")
        if type(is_retired) is not bool:
            raise HTTPError(400, 'The body is {"retired": true} or {"retired": false}.', "retired")
        admin.retire(node, is_retired)
        events.note(node, "retired", "retired" if is_retired else "in use again")
        return {"node": node, "retired": is_retired}

    return _answering(do)


def _relabel(events: EventLog) -> Answer:
    """`POST /api/v1/nodes/NAME/relabel {"sensor": ..., "label": ...}`; an empty label: the sensor's name again."""

    def do(admin: NodeAdmin, node: str, asked: dict[str, Any]) -> dict[str, Any]:
        sensor, label = _text(asked, "sensor"), _text(asked, "label")
        admin.relabel(node, sensor, label)
        events.note(node, "relabelled", f"{sensor} is shown as {label.strip() or sensor}")
        return {"node": node, "sensor": sensor, "label": label.strip()}

    return _answering(do)


def _answering(do: Callable[[NodeAdmin, str, dict[str, Any]], dict[str, Any]]) -> Answer:
    """Return the answer of a route that does something to the node in its path."""

    def answer(context: RequestContext) -> Response:
        admin = context.app.admin
        if admin is None:
            raise HTTPError(404, "This server has nothing to administer.", "no-admin")
        try:
            return json_answer(do(admin, context.args[0], json_body(context.request)))
        except Refused as error:
            status, code = (404, "unknown-node") if error.is_unknown else (409, "refused")
            raise HTTPError(status, f"{error}.", code) from None
        except NotStored as error:
            raise HTTPError(503, f"{error}.", "not-stored", {"Retry-After": "5"}) from None

    return answer


def _text(asked: dict[str, Any], key: str) -> str:
    value = asked.get(key)
    if not isinstance(value, str):
        raise HTTPError(400, f"{key} is missing, or no text.", key)
    return value
