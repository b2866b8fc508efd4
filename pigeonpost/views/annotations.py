"""Annotations for charts of other programs, such as Grafana: events, gaps, calibrations, and notes of operators.

Errors: HTTPError.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.errors import DamagedFile, DiskError
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.server.event_log import Event
from pigeonpost.server.node_admin import Refused
from pigeonpost.server.notes import Note, Notes, TooManyNotes
from pigeonpost.storage.calibration import BEGINNING_MS
from pigeonpost.views.context import RequestContext, Route, WebContext
from pigeonpost.views.html import json_answer, json_body
from pigeonpost.views.query import moment, moment_or_ago, names_in
from protocol import NODE_NAME

if TYPE_CHECKING:
    from pigeonpost.server.event_log import EventLog

MOST_SHOWN = 2000  # annotations in a response
MOST_NODES, MOST_KINDS = 200, 20  # in a query
_KINDS = (
    "reached", "lost", "on", "off", "started", "fault", "mended", "retired", "renamed", "relabelled", "calibrated",
    "gap", "calibration", "note",
)  # fmt: skip
_ENDS = {"lost": "reached", "off": "on", "fault": "mended"}  # kinds of events that end an earlier one


class _Annotation(NamedTuple):
    """An annotation.

    Attributes:
        time_ms: Its time in ms since 1970 (UTC).
        end_ms: Its end; the same as `time_ms` if it has no duration.
        kind: One of _KINDS.
        node: Node that it is about; empty for the server or all nodes.
        text: The text.
        tags: Tags of a note.
        id: Id of a note, otherwise empty.
    """

    time_ms: int
    end_ms: int
    kind: str
    node: str
    text: str
    tags: Sequence[str] = ()
    id: str = ""


class Annotations:
    """Annotations of a server.

    Attributes:
        notes: The notes of operators.
    """

    def __init__(self, app: WebContext, events: EventLog) -> None:
        """Initialise the annotations with the events in `events` and the notes in the data folder of `app`."""
        self.notes = Notes(app.data, app.ingestor.names.current, app.faults)
        self._events = events

    def routes(self) -> list[Route]:
        """Return the routes of the annotations."""
        path = "/api/v1/annotations"
        return [Route("GET", path, "viewer", self.listed), Route("POST", path, "operator", self.changed)]

    def listed(self, context: RequestContext) -> Response:
        """Return the newest annotations that overlap a range: `GET /api/v1/annotations?from=&to=&node=&kind=`.

        With `node`, those about the server and all nodes are included, too.

        Args:
            context: The request.

        Raises:
            HTTPError: 400 for an invalid query.
        """
        query, now_ms = context.request.query, context.app.clock.wall_ms()
        current = context.app.ingestor.names.current
        nodes = {current(name) for name in names_in(query, "node", NODE_NAME, MOST_NODES)}
        kinds = names_in(query, "kind", _KINDS.__contains__, MOST_KINDS)
        from_ms = moment_or_ago(query["from"], now_ms) if query.get("from") else None
        to_ms = moment_or_ago(query["to"], now_ms) if query.get("to") else None
        found = [
            one
            for one in itertools.chain(
                _with_ends(self._events.all(), now_ms), _of_gaps(context.app), _of_calibrations(context.app),
                self._of_notes(),
            )
            if (from_ms is None or one.end_ms >= from_ms) and (to_ms is None or one.time_ms < to_ms)
            and (not nodes or not one.node or one.node in nodes) and (not kinds or one.kind in kinds)
        ]  # fmt: skip
        found.sort(key=lambda one: one.time_ms)
        return json_answer([
            {
                "time": one.time_ms, "timeEnd": one.end_ms, "title": one.node or context.app.name, "text": one.text,
                "tags": [one.kind, *one.tags], "kind": one.kind, "node": one.node, "id": one.id,
            } for one in found[-MOST_SHOWN:]
        ])  # fmt: skip

    def changed(self, context: RequestContext) -> Response:
        """Add a note or remove one, and return its id: `POST /api/v1/annotations`.

        The body is `{"time", "timeEnd", "text", "tags", "node"}`, or `{"remove": ID}`. Only `text` is required.

        Args:
            context: The request.

        Raises:
            HTTPError: 400 if the body is invalid, 404 for an unknown note, 409 if there are too many, 503 if the disk
                does not accept the change.
        """
        body = json_body(context.request)
        try:
            if "remove" in body:
                self.notes.remove(_string(body, "remove"))
                return json_answer({"removed": body["remove"]})
            return json_answer({"id": self.notes.add(_note(context, body))})
        except Refused as error:
            status = 404 if error.is_unknown else 409 if isinstance(error, TooManyNotes) else 400
            raise HTTPError(status, f"{str(error)[:1].upper()}{str(error)[1:]}.", "note") from None
        except (DiskError, DamagedFile) as error:
            raise HTTPError(503, f"The notes cannot be saved: {error}.", "not-saved") from None

    def happenings(self) -> list[Event]:
        """Return the notes as events, for the page Events."""
        return [
            Event(note.time_ms, note.node, "note", f"note{f' of {note.user}' if note.user else ''}: {note.text}")
            for note in self.notes.all().values()
        ]

    def _of_notes(self) -> Iterator[_Annotation]:
        for id, note in self.notes.all().items():
            yield _Annotation(note.time_ms, note.end_ms, "note", note.node, note.text, note.tags, id)


def _note(context: RequestContext, body: dict[str, Any]) -> Note:
    """Return the note in the body of a request. Raises HTTPError 400."""
    now_ms = context.app.clock.wall_ms()
    time_ms = _moment(body.get("time", now_ms))
    end = body.get("timeEnd")
    tags, node = body.get("tags", []), _string(body, "node", "")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise HTTPError(400, "`tags` must be a list of strings.", "tags")
    if node and not NODE_NAME(node):
        raise HTTPError(400, "`node` must be the name of a node.", "node")
    node = context.app.ingestor.names.current(node) if node else ""
    return Note(time_ms, time_ms if end is None else _moment(end), _string(body, "text"), tags, node, context.user)


def _moment(value: Any) -> int:
    if type(value) is int and value >= 0:
        value = str(value)
    if not isinstance(value, str):
        raise HTTPError(400, "A time must be like 2026-11-20T15:36:10Z, or milliseconds since 1970.", "time")
    return moment(value)


def _string(body: dict[str, Any], key: str, default: str | None = None) -> str:
    value = body.get(key, default)
    if not isinstance(value, str):
        raise HTTPError(400, f"`{key}` must be a string.", key)
    return value


def _with_ends(events: Sequence[Event], now_ms: int) -> Iterator[_Annotation]:
    """Yield the events. An event that another one ends lasts until then, or until now."""
    ends: dict[tuple[str, str, str], int] = {}  # time of the next event of a kind, by kind, node and component
    for one in reversed(events):
        component = one.words.partition(":")[0] if one.kind in ("fault", "mended") else ""
        end_ms = one.time_ms
        if one.kind in _ENDS:
            end_ms = max(end_ms, ends.get((_ENDS[one.kind], one.node, component), now_ms))
        ends[one.kind, one.node, component] = one.time_ms
        yield _Annotation(one.time_ms, end_ms, one.kind, one.node, one.words)


def _of_gaps(app: WebContext) -> Iterator[_Annotation]:
    for gap in app.store.gaps(MOST_SHOWN):
        count = max(0, gap["to"] - gap["from"] + 1) + gap["before"]
        text = f"{count:,} samples permanently lost: {gap['why']}"
        yield _Annotation(gap["noted_ms"], gap["noted_ms"], "gap", gap["node"], text)


def _of_calibrations(app: WebContext) -> Iterator[_Annotation]:
    """Yield the times from which calibrations are valid."""
    if app.calibrations is None:
        return
    for node, timelines in app.calibrations.nodes().items():
        for sensor, timeline in timelines.items():
            for one in timeline.calibrations:
                if one.from_ms != BEGINNING_MS:
                    text = f"a calibration of {sensor} is valid from here{f': {one.note}' if one.note else ''}"
                    yield _Annotation(one.from_ms, one.from_ms, "calibration", node, text)
