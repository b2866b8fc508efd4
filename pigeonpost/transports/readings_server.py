"""Endpoint to which any program posts readings, for example with one line of curl.

    POST /api/v1/readings  {"node": "shed", "values": {"temperature": 21.5}}   ->  {"stored": 1, "repeated": 0}

The body is one reading or an array of them. `time`, `units` and `id` are optional: docs/other-devices.md describes
them. A request is stored completely or not at all, and answered after its readings are durable. This transport also
contains the endpoints of InfluxDB's line protocol (line_protocol_server.py): both share one record of what is stored.

The threads of the web server run this module. Errors: HTTPError, with the status that answers the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import LAST_MS, parse_rfc3339
from pigeonpost.core.errors import AuthFailed, BadArgument, BeyondLimit, NotStored
from pigeonpost.core.strict_json import read_json, write_json
from pigeonpost.http.credentials import read_credentials
from pigeonpost.http.message import JSON, BodyConsumer, Endpoint, HTTPError, Request, Response
from pigeonpost.http.proven_body import ProvenBody, answered_by_consumer
from pigeonpost.link.checks import check_value
from pigeonpost.server.timed_readings import TimedReading, TimedReadings
from pigeonpost.transports.contract import IntegrationStatus, PassiveTransport
from pigeonpost.transports.line_protocol_server import LineProtocol
from pigeonpost.transports.senders import Sender, Tally, find_sender
from protocol import NODE_NAME, NODE_NAME_TAKES, SENSOR_NAME, SENSOR_NAME_TAKES, UNIT, preview

if TYPE_CHECKING:
    from pigeonpost.server.unnumbered_sources import Claim
    from pigeonpost.transports.contract import ServerContext

BODY_BYTES = 1 << 20
MOST_READINGS = 10_000  # in one request
LONGEST_ID = 200  # characters
_KEYS = frozenset(("node", "values", "time", "id", "units"))
_FIRST_IN_MS = 10**11  # a number from this on is in milliseconds (since 1973), a smaller one in seconds (until 5138)
_BUSY_S = 5  # Retry-After when nothing can be stored, in seconds


class _Item:
    """A decoded reading and the name of its node; None for the node of the token."""

    def __init__(self, where: str, node: str | None, reading: TimedReading) -> None:
        self.where, self.node, self.reading = where, node, reading


class ReadingsServerTransport(PassiveTransport):
    """The endpoints `POST /api/v1/readings`, and those of the line protocol.

    Args:
        context: The server's components.
    """

    def __init__(self, context: ServerContext) -> None:
        self.context = context
        settings = context.settings
        self._timed = TimedReadings(
            context.ingestor, context.store, context.unnumbered_sources, context.clock, context.data,
            settings["store", "channels_per_sample"], settings["store", "channels_per_node"],
        )  # fmt: skip
        self._tally = Tally("readings", "http", "POST /api/v1/readings", "readings", context.clock)
        self._lines = LineProtocol(context, self._timed)
        self.endpoints: Sequence[Endpoint] = [
            Endpoint("POST", "/api/v1/readings", answered_by_consumer, BODY_BYTES, receive=self._receive),
            *self._lines.endpoints,
        ]

    def statuses(self) -> Sequence[IntegrationStatus]:
        return [*self._tally.statuses(), *self._lines.statuses()]

    def _receive(self, request: Request, length: int) -> BodyConsumer:
        """Check the token before the body is read: only an authenticated client may send a long body."""
        self._sender(request)
        return ProvenBody(lambda data: self.take(self._sender(request), data), BODY_BYTES)

    def _sender(self, request: Request) -> Sender:
        return find_sender(self.context, request, read_credentials(request))

    def take(self, sender: Sender, data: bytes | bytearray) -> Response:
        """Make the readings in the body `data` durable, and return the response with their number.

        Args:
            sender: The program that has sent them.
            data: The body.

        Raises:
            HTTPError: A reading is not accepted, or nothing can be stored now. Nothing is stored, except that a part
                of the readings may be stored with 503; a repeat stores the others only.
        """
        count = 1
        try:
            items = read_readings(data)
            count = len(items)
            claimed = self._claimed(sender, items)
            outcome = self._timed.store(claimed)
        except HTTPError as error:
            self._tally.refused(count, error.text)
            raise
        except BeyondLimit as error:
            self._tally.refused(count, str(error))
            raise HTTPError(422, f"{error}.", error.code) from None
        except NotStored as error:
            retry = {"Retry-After": str(_BUSY_S)}
            raise HTTPError(503, f"Not stored, try again: {error}.", "not-stored", retry) from None
        self._tally.accepted(outcome.stored + outcome.repeated)
        content = {"stored": outcome.stored, "repeated": outcome.repeated}
        return Response(write_json(content).encode() + b"\n", JSON, 200, {"Cache-Control": "no-store"})

    def _claimed(self, sender: Sender, items: Sequence[_Item]) -> dict[Claim, list[TimedReading]]:
        """Return the readings by client. Raise HTTPError if one is not accepted."""
        claims: dict[str | None, Claim] = {}
        found: dict[Claim, list[TimedReading]] = {}
        latest_ms = self._timed.latest_ms()
        for where, node, reading in ((item.where, item.node, item.reading) for item in items):
            claim = claims.get(node)
            if claim is None:
                claim = claims[node] = self._claim(sender, node, where)
                found.setdefault(claim, [])
            if reading.time_ms is not None and reading.time_ms > latest_ms:
                text = f"{where}time is more than a day in the future: correct the clock or the unit."
                raise HTTPError(422, text, "time")
            found[claim].append(reading)
        for claim, readings in found.items():
            surplus = self._timed.surplus(claim.node, dict.fromkeys(name for one in readings for name in one.values))
            if surplus:
                text = (
                    f"Node {claim.node} would have too many sensors: {surplus[0]} would exceed"
                    " [store] channels_per_node. Use fewer names of sensors, or another node."
                )
                raise HTTPError(422, text, "channels")
        return found

    def _claim(self, sender: Sender, node: str | None, where: str) -> Claim:
        if node is None and not sender.node:
            raise HTTPError(400, f"{where}node is missing: the name of the node ({NODE_NAME_TAKES}).", "node")
        try:
            return sender.claim(self.context, sender.node if node is None else node, "readings")
        except AuthFailed as error:
            raise HTTPError(403, f"{where}node: {error}.", "token") from None


def read_readings(data: bytes | bytearray) -> list[_Item]:
    """Return the readings in the untrusted body `data`. Raise HTTPError 400 or 413 if it is not valid."""
    try:
        content = read_json(data.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise HTTPError(400, f"The body is not UTF-8: byte {error.start}.", "not-utf8") from None
    except BadArgument as error:
        raise HTTPError(400, f"The body is not valid: {error}.", "json") from None
    if type(content) is dict:
        return [_item("", content)]
    if type(content) is not list or not content:
        raise HTTPError(400, "The body must be one reading (a JSON object) or an array of them.", "json")
    if len(content) > MOST_READINGS:
        raise HTTPError(413, f"A request can have at most {MOST_READINGS:,} readings: send several.", "too-many")
    return [_item(f"[{place}].", entry) for place, entry in enumerate(content)]


def _item(where: str, entry: Any) -> _Item:
    if type(entry) is not dict:
        raise HTTPError(
            400, f'{where.rstrip(".") or "The body"} must be an object like {{"node": ..., "values": {{...}}}}.', "json"
        )
    if not entry.keys() <= _KEYS:
        unknown = next(key for key in entry if key not in _KEYS)
        raise HTTPError(400, f"{where}{preview(unknown)} is unknown: the keys are {', '.join(sorted(_KEYS))}.", "key")
    node, name = entry.get("node"), entry.get("id", "")
    if "node" in entry and (type(node) is not str or not NODE_NAME(node)):
        raise _wrong(where, "node", f"the name of a node ({NODE_NAME_TAKES})", node)
    if type(name) is int:
        name = str(name)
    if type(name) is not str or not ("id" in entry) <= len(name) <= LONGEST_ID:
        raise _wrong(where, "id", f"a text of 1 to {LONGEST_ID} characters, or a whole number", name)
    values, units = entry.get("values"), entry.get("units", {})
    if type(values) is not dict or not values:
        raise _wrong(where, "values", 'an object of numbers like {"temperature": 21.5}', values)
    for sensor, value in values.items():
        _check_value(where, sensor, value)
    _check_units(where, units, values)
    time_ms = _time_ms(where, entry["time"]) if entry.get("time") is not None else None
    return _Item(where, node, TimedReading(values, units, time_ms, name))


def _check_value(where: str, sensor: str, value: Any) -> None:
    if not SENSOR_NAME(sensor):
        raise _wrong(where, "values: the name of a sensor", SENSOR_NAME_TAKES, sensor)
    try:
        check_value(0, sensor, value)
    except BadArgument:
        raise _wrong(where, f"values.{sensor}", "a finite number, or null for a failed reading", value) from None


def _check_units(where: str, units: Any, values: Mapping[str, Any]) -> None:
    if type(units) is not dict:
        raise _wrong(where, "units", 'an object of texts like {"temperature": "°C"}', units)
    for sensor, unit in units.items():
        if sensor not in values:
            raise HTTPError(400, f"{where}units: there is no value of {preview(sensor)}.", "reading")
        if type(unit) is not str or not UNIT(unit):
            raise _wrong(where, f"units.{sensor}", "a text of at most 32 printable characters", unit)


def _time_ms(where: str, value: Any) -> int:
    """Return a time in ms since 1970 (UTC): RFC 3339, or a number of seconds or milliseconds since 1970."""
    try:
        if type(value) is str:
            time_ms = parse_rfc3339(value)
        elif type(value) in (int, float) and 0 <= value <= LAST_MS:
            time_ms = round(value * 1000) if value < _FIRST_IN_MS else round(value)
        else:
            raise ValueError
        if time_ms < 0:
            raise ValueError
    except ValueError:
        takes = "a time like 2026-11-20T15:36:10Z, or seconds or milliseconds since 1970"
        raise _wrong(where, "time", takes, value) from None
    return time_ms


def _wrong(where: str, key: str, takes: str, value: Any) -> HTTPError:
    return HTTPError(400, f"{where}{key} must be {takes}, not {preview(value)}.", "reading")
