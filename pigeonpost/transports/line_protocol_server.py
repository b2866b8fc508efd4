"""Endpoints of InfluxDB for programs that write line protocol, such as Telegraf and the firmware of ESP modules.

    POST /write?db=any&precision=ms                  (InfluxDB 1: 204, or {"error": ...})
    POST /api/v2/write?org=any&bucket=any            (InfluxDB 2: 204, or {"code": ..., "message": ...})

`GET /ping`, `GET /health` and `POST /query` with CREATE DATABASE answer what clients ask first. As in InfluxDB, the
valid lines of a request are stored although others are not; the answer is then 400 and describes the first of these.
The answer is sent after the values are durable.

The threads of the web server run this module. Errors: HTTPError, which `refusal` turns into InfluxDB's form.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pigeonpost.core.errors import AuthFailed, BeyondLimit, DamagedFile, DiskError, NotStored
from pigeonpost.core.strict_json import write_json
from pigeonpost.http.credentials import Credentials, read_credentials
from pigeonpost.http.message import JSON, BodyConsumer, Endpoint, HTTPError, Request, Response, form_of
from pigeonpost.http.proven_body import ProvenBody, answered_by_consumer
from pigeonpost.server.timed_readings import TimedReading
from pigeonpost.transports.line_protocol import (
    PRECISIONS,
    BadLine,
    Point,
    Series,
    read_lines,
    read_series,
    sensor_name,
)
from pigeonpost.transports.line_sensors import MOST_NAMES, LineSensors
from pigeonpost.transports.senders import Sender, Tally, find_sender
from protocol import NODE_NAME

if TYPE_CHECKING:
    from pigeonpost.server.timed_readings import TimedReadings
    from pigeonpost.server.unnumbered_sources import Claim
    from pigeonpost.transports.contract import IntegrationStatus, ServerContext

BODY_BYTES = 8 << 20  # as received, and uncompressed
MOST_LINES, MOST_VALUES = 10_000, 100_000  # in one request
MOST_AT_ONCE = 4  # requests whose lines are in memory: the largest one takes about 30 MiB
LONGEST_SERIES = 300  # characters of measurement and tags, and of a field, that the file of names keeps
_PART = 40  # characters of each of their parts, and number of tags, from which the name of a sensor is made
NODE_TAGS = ("node", "host", "device")  # the first of these tags in a line names the node
NODE_TAGS_OF_A_NODE = ("node", "host")  # the same for a request with the token of a node, which otherwise names it
_PRECISIONS_2 = frozenset(("ns", "us", "ms", "s"))
_BUSY_S = 5  # Retry-After when nothing can be stored, and maximum wait for other requests, in seconds
# Clients of InfluxDB 1 show this header, and some require it. It is not the version of this program.
_PING = {"X-Influxdb-Version": "1.8-pigeonpost", "Cache-Control": "no-store"}
_HEALTH = {"name": "influxdb", "message": "ready for queries and writes", "status": "pass", "version": "v2-pigeonpost"}
_CREATE = re.compile(r"\s*create\s+database\s.{1,300}", re.IGNORECASE | re.DOTALL).fullmatch
_OTHER = re.compile(r"[^A-Za-z0-9._]+").sub
_CODES = {
    400: "invalid", 401: "unauthorized", 403: "forbidden", 413: "request too large", 422: "unprocessable entity",
    429: "too many requests", 503: "unavailable",
}  # fmt: skip


class _Head:
    """Measurement and tags of lines.

    Args:
        series: Measurement and tags.
        node_tag: Name of the tag that names the node; None if the token names it.
        claim: Identity with which the client writes as this node.
    """

    def __init__(self, series: Series, node_tag: str | None, claim: Claim) -> None:
        self.claim = claim
        tags = [(name, value) for name, value in series.tags if name != node_tag]
        # Both are short, since each field of a line repeats them.
        self._shown = Series(series.measurement[:_PART], tuple((name, value[:_PART]) for name, value in tags[:_PART]))
        self._measurement, *self._tags = series.measurement, *(f"{name}={value}" for name, value in tags)
        if sum(map(len, self._tags), len(self._measurement)) > LONGEST_SERIES:
            self._measurement, self._tags = _digest([self._measurement, *self._tags]), []
        self._keys: dict[str, tuple[str, str]] = {}

    def names_of(self, field: str) -> tuple[str, str]:
        """Return the key of a field in the file of names, and a readable name for its sensor."""
        found = self._keys.get(field)
        if found is None:
            short = field if len(field) <= LONGEST_SERIES else _digest([field])
            key = write_json([self._measurement, short, *self._tags])
            found = self._keys[field] = key, sensor_name(self._shown, field[:_PART])
        return found


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(write_json(parts).encode()).hexdigest()


class _Write:
    """The lines of one request.

    Attributes:
        points: Accepted points by client.
        readings: Their values by client.
        bad: Lines that are not accepted.
        lines: Number of accepted lines with a number.
    """

    def __init__(self) -> None:
        self.points: dict[Claim, list[tuple[Point, _Head]]] = {}
        self.readings: dict[Claim, list[TimedReading]] = {}
        self.bad: list[BadLine] = []
        self.lines = 0


class LineProtocol:
    """The endpoints, which readings_server.py offers.

    Args:
        context: The server's components.
        timed: The record of what is stored.
    """

    def __init__(self, context: ServerContext, timed: TimedReadings) -> None:
        self._context = context
        self._timed = timed
        self._sensors = LineSensors(context.data, context.faults)
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._tally = Tally("line protocol", "influxdb", "POST /write", "lines", context.clock)
        self.endpoints: Sequence[Endpoint] = [
            *(
                Endpoint("POST", path, answered_by_consumer, BODY_BYTES, receive=self._receive, takes_encoded=True,
                         refusal=refusal)
                for path, refusal in (("/write", _refusal_1), ("/api/v2/write", _refusal_2))
            ),
            *(Endpoint(method, "/query", self.query, refusal=_refusal_1) for method in ("GET", "POST")),
            *(Endpoint(method, "/ping", ping) for method in ("GET", "HEAD")),
            *(Endpoint(method, "/health", health) for method in ("GET", "HEAD")),
        ]  # fmt: skip

    def statuses(self) -> Sequence[IntegrationStatus]:
        """Return the state for the page Integrations."""
        return self._tally.statuses()

    def sender(self, request: Request) -> Sender:
        """Return the program that has sent `request`. Raise HTTPError 401, 403 or 429."""
        return find_sender(self._context, request, _credentials(request))

    def _receive(self, request: Request, length: int) -> BodyConsumer:
        """Check the token before the body is read: only an authenticated client may send a long body."""
        self.sender(request)
        known = _PRECISIONS_2 if request.path.startswith("/api/") else PRECISIONS
        if "precision" in request.query and request.query["precision"] not in known:
            raise HTTPError(400, "precision must be ns, us, ms or s.", "precision")
        is_gzip = request.headers.get("content-encoding", "identity").lower() == "gzip"
        return ProvenBody(lambda data: self.take(self.sender(request), request, data), BODY_BYTES, is_gzip)

    def take(self, sender: Sender, request: Request, data: bytearray) -> Response:
        """Make the values of all valid lines durable, and return the response 204.

        Args:
            sender: The program that has sent them.
            request: The request.
            data: The uncompressed body.

        Raises:
            HTTPError: 400 if a line is not accepted (the others are stored); 503 if nothing can be stored now.
        """
        if not self._free.acquire(timeout=_BUSY_S):
            raise _not_stored("other requests take too long")
        try:
            return self._take(sender, request, data)
        finally:
            self._free.release()

    def _take(self, sender: Sender, request: Request, data: bytearray) -> Response:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HTTPError(400, f"The body is not UTF-8: byte {error.start}.", "not-utf8") from None
        data.clear()
        try:
            write = self._read(sender, text, request.query.get("precision", ""))
            if write.readings:
                self._timed.store(write.readings)
        except BeyondLimit as error:
            self._tally.refused(1, str(error))
            raise HTTPError(422, f"{error}.", error.code) from None
        except (NotStored, DiskError, DamagedFile) as error:
            raise _not_stored(str(error)) from None
        if write.bad:
            raise self._partial(write)
        self._tally.accepted(write.lines)
        return Response(b"", JSON, 204, {"Cache-Control": "no-store"})

    def _partial(self, write: _Write) -> HTTPError:
        """Return the answer for a request with lines that are not accepted, in the words that Telegraf looks for."""
        first = write.bad[0]
        why = f"line {first.line}: {first.why}"
        self._tally.refused(len(write.bad), f"{why} ({len(write.bad)} lines of a request refused)", write.lines)
        if write.lines:
            return HTTPError(400, f"partial write: {why} dropped={len(write.bad)}", "partial")
        return HTTPError(400, f"unable to parse: {why}", "lines")

    # ------------------------------------------------------------------------------------------------ the lines

    def _read(self, sender: Sender, text: str, precision: str) -> _Write:
        """Return the values of the lines in `text`, with permanent names of their sensors."""
        write = _Write()
        self._sort(sender, text, precision, write)
        for claim, points in write.points.items():
            readings = self._named(claim, points, write.bad)
            write.lines += len(readings)
            if readings:
                write.readings[claim] = readings
        write.bad.sort()
        return write

    def _sort(self, sender: Sender, text: str, precision: str, write: _Write) -> None:
        """Add the points of `text` and the lines that are not accepted to `write`."""
        latest_ms = self._timed.latest_ms()
        heads: dict[str, _Head | str] = {}
        lines = values = 0
        for item in read_lines(text, precision):
            lines += 1
            if lines > MOST_LINES or values > MOST_VALUES:
                limit = f"{MOST_LINES:,} lines and {MOST_VALUES:,} values"
                raise HTTPError(413, f"A request can have at most {limit}: send smaller batches.", "too-many")
            if isinstance(item, BadLine):
                write.bad.append(item)
                continue
            values += len(item.fields)
            head = heads.get(item.head)
            if head is None:
                head = heads[item.head] = self._head(sender, item.head)
            if isinstance(head, str):
                write.bad.append(BadLine(item.line, head))
            elif item.time_ms is not None and not 0 <= item.time_ms <= latest_ms:
                why = "the time is before 1970 or more than a day in the future: correct the clock or `precision`"
                write.bad.append(BadLine(item.line, why))
            elif item.fields:  # a line that contains only strings is accepted, but has nothing to store
                write.points.setdefault(head.claim, []).append((item, head))

    def _head(self, sender: Sender, text: str) -> _Head | str:
        """Return the measurement and tags at the start of a line, with their node, or why they are not accepted."""
        try:
            series = read_series(text)
            tags = dict(series.tags)
            names = NODE_TAGS_OF_A_NODE if sender.node else NODE_TAGS
            tag = next((name for name in names if name in tags), None)
            if tag is None and not sender.node:
                return "no tag names the node: add the tag node, host or device, or use the token of the node"
            node = sender.node if tag is None else node_name(tags[tag])
            return _Head(series, tag, sender.claim(self._context, node, "line protocol"))
        except (ValueError, AuthFailed) as error:
            return str(error)

    def _named(self, claim: Claim, points: Sequence[tuple[Point, _Head]], bad: list[BadLine]) -> list[TimedReading]:
        """Return the readings of `points`. Points that would exceed a limit of channels are added to `bad`."""
        names_of_node = self._context.names_of(claim.node)
        wanted = dict(head.names_of(field) for point, head in points for field in point.fields)
        while True:
            names = self._sensors.of(names_of_node, wanted)
            surplus = set(self._timed.surplus(claim.node, names.values()))
            readings: list[TimedReading] = []
            refused: list[BadLine] = []
            used: set[str] = set()
            for point, head in points:
                keys = [head.names_of(field)[0] for field in point.fields]
                over = next((key for key in keys if names.get(key, "") in surplus or key not in names), None)
                if over is not None:
                    limit = "[store] channels_per_node" if over in names else f"{MOST_NAMES:,} series on this server"
                    refused.append(BadLine(point.line, f"too many sensors: {wanted[over]} would exceed {limit}"))
                    continue
                used.update(keys)
                values = dict(zip((names[key] for key in keys), point.fields.values()))
                readings.append(TimedReading(values, {}, point.time_ms))
            if self._sensors.keep(names_of_node, names, used):
                bad += refused
                return readings

    # ------------------------------------------------------------------------------------------ other endpoints

    def query(self, request: Request) -> Response:
        """Return the answer of InfluxDB 1 to CREATE DATABASE, with which clients begin. Nothing is created.

        Args:
            request: The request; its query or its body, a form, contains the statement in `q`.

        Raises:
            HTTPError: The token is not accepted, or it is another statement.
        """
        self.sender(request)
        fields: Mapping[str, str] = request.query
        if request.method == "POST" and request.body:
            fields = {**form_of(request), **fields}
        if not _CREATE(fields.get("q", "")):
            raise HTTPError(
                400, "Only CREATE DATABASE is answered here. GET /api/v1/samples returns readings.", "query"
            )
        return Response(b'{"results":[{"statement_id":0}]}\n', JSON, 200, {"Cache-Control": "no-store"})


def ping(request: Request) -> Response:
    """Return the answer to `request` of a client of InfluxDB 1 that checks the address. `verbose` asks for a body."""
    if request.query.get("verbose", "") in ("", "0", "false"):
        return Response(b"", JSON, 204, _PING)
    return Response(write_json({"version": _PING["X-Influxdb-Version"]}).encode() + b"\n", JSON, 200, _PING)


def health(request: Request) -> Response:
    """Return the answer to `request` of a client of InfluxDB 2 that checks the address."""
    return Response(write_json(_HEALTH).encode() + b"\n", JSON, 200, {"Cache-Control": "no-store"})


def node_name(text: str) -> str:
    """Return the name of a node for the value of a tag: `Living room` becomes `Living-room`.

    Raises:
        ValueError: The text contains no letter or digit.
    """
    if NODE_NAME(text):
        return text
    plain = _OTHER("-", text).strip("._-")[:63].strip("._-")
    if not plain:
        raise ValueError("the tag that names the node contains no letter or digit (A-Z, a-z, 0-9)")
    return plain


def _credentials(request: Request) -> Credentials | None:
    """Return the token in a request: in the header (Basic, Bearer, Token), or in `p`, the password of InfluxDB 1."""
    header = request.headers.get("authorization")
    if header is None:
        return Credentials("query", request.query["p"]) if "p" in request.query else None
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "token":  # `Token T`, or `Token user:T` for InfluxDB 1.8 with clients of InfluxDB 2
        return Credentials("token", rest.strip().rpartition(":")[2])
    return read_credentials(request)


def _not_stored(why: str) -> HTTPError:
    return HTTPError(503, f"Not stored, try again: {why}.", "not-stored", {"Retry-After": str(_BUSY_S)})


def _refusal_1(error: HTTPError) -> Response:
    headers = {"Cache-Control": "no-store", **error.headers}
    return Response(write_json({"error": error.text}).encode() + b"\n", JSON, error.status, headers)


def _refusal_2(error: HTTPError) -> Response:
    headers = {"Cache-Control": "no-store", **error.headers}
    content = {"code": _CODES.get(error.status, "invalid"), "message": error.text}
    return Response(write_json(content).encode() + b"\n", JSON, error.status, headers)
