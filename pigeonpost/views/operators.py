"""Administration of nodes over the JSON API: rename, retire, relabel, calibrate.

`control.py` uses it while a server runs. Each action adds an entry to the event log. Errors: HTTPError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pigeonpost.core.errors import DamagedFile, DiskError, NotStored
from pigeonpost.core.format import counted
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.server.calibrations import (
    BEGINNING,
    as_json,
    parse_from,
    points_text,
    require_sensor,
    start_text,
)
from pigeonpost.server.node_admin import NodeAdmin, Refused
from pigeonpost.storage.calibration import Calibration
from pigeonpost.views.context import RequestContext, Route
from pigeonpost.views.html import json_answer, json_body

if TYPE_CHECKING:
    from pigeonpost.server.calibrations import Calibrations
    from pigeonpost.server.event_log import EventLog

Answer = Callable[[RequestContext], Response]


def routes(events: EventLog) -> list[Route]:
    """Return the routes of these actions; `events` is the event log."""
    path = "/api/v1/nodes/NAME"
    return [
        Route("POST", f"{path}/rename", "operator", _rename(events), changes=True),
        Route("POST", f"{path}/retire", "operator", _retire(events), changes=True),
        Route("POST", f"{path}/relabel", "operator", _relabel(events), changes=True),
        Route("POST", f"{path}/calibrate", "operator", _calibrate(events), changes=True),
    ]


def _rename(events: EventLog) -> Answer:
    """Return the function for `POST /api/v1/nodes/NAME/rename {"to": NEW}`.

    With `{"release": true}`, NAME stops being a former name of another node, so that a new node can have it.
    """

    def do(admin: NodeAdmin, node: str, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("release") is True:
            admin.release(node)
            events.record(node, "renamed", "no longer a former name of another node")
            return {"released": node}
        new = _text(body, "to")
        admin.rename(node, new)
        events.record(new, "renamed", f"was called {node} until now")
        return {"node": new, "former": node}

    return _answering(do)


def _retire(events: EventLog) -> Answer:
    """Return the function for `POST /api/v1/nodes/NAME/retire {"retired": true}`; with false, it is used again."""

    def do(admin: NodeAdmin, node: str, body: dict[str, Any]) -> dict[str, Any]:
        is_retired = body.get("retired")
        if type(is_retired) is not bool:
            raise HTTPError(400, 'The body must be {"retired": true} or {"retired": false}.', "retired")
        admin.retire(node, is_retired)
        events.record(node, "retired", "retired" if is_retired else "in use again")
        return {"node": node, "retired": is_retired}

    return _answering(do)


def _relabel(events: EventLog) -> Answer:
    """Return the function for `POST /api/v1/nodes/NAME/relabel {"sensor": ..., "label": ...}`.

    An empty text removes the label.
    """

    def do(admin: NodeAdmin, node: str, body: dict[str, Any]) -> dict[str, Any]:
        sensor, label = _text(body, "sensor"), _text(body, "label")
        admin.relabel(node, sensor, label)
        events.record(node, "relabelled", f"{sensor} is shown as {label.strip() or sensor}")
        return {"node": node, "sensor": sensor, "label": label.strip()}

    return _answering(do)


def _calibrate(events: EventLog) -> Answer:
    """Return the function for `POST /api/v1/nodes/NAME/calibrate {"sensor": ..., "points": [[RAW, TRUE], ...]}`.

    `from`, `unit` and `note` are optional. `{"sensor": ..., "remove": FROM}` removes the calibration from that time,
    and `{"sensor": ..., "clear": true}` removes all calibrations of the sensor.
    """

    def answer(context: RequestContext) -> Response:
        app, body = context.app, json_body(context.request)
        if app.calibrations is None:
            raise HTTPError(404, "Sensors of this server cannot be calibrated.", "no-admin")
        sensor = _text(body, "sensor")
        try:
            node = require_sensor(app.store, app.ingestor.names.current, context.args[0], sensor)
            words, found = _calibrated(app.calibrations, node, sensor, body, app.clock.wall_ms())
        except Refused as error:
            raise _refusal(error) from None
        except (DamagedFile, DiskError) as error:
            raise HTTPError(503, f"{error}.", "not-stored", {"Retry-After": "5"}) from None
        events.record(node, "calibrated", f"{sensor}: {words}")
        return json_answer({"node": node, "sensor": sensor} | found)

    return answer


def _calibrated(
    calibrations: Calibrations, node: str, sensor: str, body: dict[str, Any], now_ms: int
) -> tuple[str, dict[str, Any]]:
    """Change the calibrations of a sensor. Return a description for the event log, and fields of the answer."""
    is_clear, points = body.get("clear", False), body.get("points", [])
    if type(is_clear) is not bool:
        raise HTTPError(400, "`clear` must be true or false.", "clear")
    if not isinstance(points, list) or not all(map(_is_point, points)):
        raise HTTPError(400, "`points` must be a list of pairs of numbers, [[RAW, TRUE], ...].", "points")
    if sum((is_clear, "remove" in body, "points" in body)) != 1:
        raise HTTPError(400, "The body must contain one of `points`, `remove` and `clear`.", "points")
    unit, note = _text({"unit": "", **body}, "unit"), _text({"note": "", **body}, "note")
    from_ms = _from({"from": BEGINNING, **body}, "from")
    if is_clear:
        count = calibrations.clear(node, sensor)
        return f"{counted(count, 'calibration')} removed", {"cleared": count}
    if "remove" in body:
        removed = calibrations.remove(node, sensor, _from(body, "remove"))
        return f"calibration from {start_text(removed.from_ms)} removed", {"removed": as_json(removed)}
    new = Calibration(from_ms, [tuple(point) for point in points], unit, note)
    replaced = calibrations.add(node, sensor, new, now_ms, is_dated="from" in body)
    words = f"calibrated from {start_text(new.from_ms)}: {points_text(new.points)}"
    return words, {"replaced": as_json(replaced) if replaced is not None else None}


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(type(value) in (int, float) for value in point)


def _from(body: dict[str, Any], key: str) -> int:
    text = _text(body, key)
    try:
        return parse_from(text)
    except ValueError as error:
        raise HTTPError(400, f'`{key}` must be "{BEGINNING}" or a time: {error}.', key) from None


def _refusal(error: Refused) -> HTTPError:
    status, code = (404, "unknown-node") if error.is_unknown else (409, "refused")
    text = str(error)
    return HTTPError(status, text if text.endswith("?") else f"{text}.", code)


def _answering(do: Callable[[NodeAdmin, str, dict[str, Any]], dict[str, Any]]) -> Answer:
    """Return the function of a route that applies `do` to the node in its path."""

    def answer(context: RequestContext) -> Response:
        admin = context.app.admin
        if admin is None:
            raise HTTPError(404, "Nodes of this server cannot be renamed, retired or relabelled.", "no-admin")
        try:
            return json_answer(do(admin, context.args[0], json_body(context.request)))
        except Refused as error:
            raise _refusal(error) from None
        except NotStored as error:
            raise HTTPError(503, f"{error}.", "not-stored", {"Retry-After": "5"}) from None

    return answer


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise HTTPError(400, f"`{key}` must be a string.", key)
    return value
