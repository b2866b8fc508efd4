"""Client of a server's JSON interface, for scripts and notebooks: reads stored readings, and sends new ones.

    from pigeonpost.client import Client

    client = Client("http://pi2.local:8080", token="...")
    columns = client.readings("basement", ["temperature", "humidity"], "-24h")
    pandas.DataFrame(columns)          # or polars.DataFrame(columns)

It needs only the standard library. One thread at a time may use a Client; it keeps one connection.

Times: all results are aware datetimes in UTC. An argument is a datetime or a text in ISO 8601; without a zone, it is in
the local time of this machine. A text such as "-24h" (s, m, h, d) and a timedelta are relative to the present time.

Errors: ClientError and its subclasses, whose texts contain the remedy. A request that fails because of the connection,
or because the server is busy, is repeated up to ATTEMPTS times; a reading has an id, so it is stored once nevertheless.
"""

from __future__ import annotations

import json
import os
import re
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import PigeonpostError
from pigeonpost.core.http_client import (
    CertificateMismatch,
    CertificateNotTrusted,
    HttpConnection,
    HttpError,
    HttpResponse,
    ServerTrust,
    split_url,
)
from pigeonpost.core.retry_after import retry_after_s

ATTEMPTS = 4  # attempts for a request
LONGEST_WAIT_S = 10.0  # longest pause before another attempt
_FIRST_WAIT_S = 0.5  # pause before another attempt; it doubles
_TIMEOUT_S = 30.0
_PAGE = 10_000  # samples or windows in one request: the maximum of the server
_ANSWER_BYTES = 1 << 28
_SPANS = {"10m": timedelta(minutes=10), "1h": timedelta(hours=1)}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_LAST_MS = 253_402_300_799_999  # end of the year 9999

Moment = datetime | timedelta | str
Columns = dict[str, list[Any]]


class ClientError(PigeonpostError):
    """A request failed."""


class NotReachable(ClientError, ConnectionError):
    """The server does not answer, or is busy."""


class NotTrusted(ClientError, ConnectionError):
    """The certificate of the server is not trusted."""


class NotAllowed(ClientError, PermissionError):
    """The token is missing or wrong, or its role does not allow the request (401, 403)."""


class NotFound(ClientError, LookupError):
    """There is no such node or address (404)."""


class Rejected(ClientError, ValueError):
    """The server does not accept the arguments (other statuses from 400 to 499)."""


class Sensor(NamedTuple):
    """A sensor of a node.

    Attributes:
        name: Name of the sensor.
        label: Label that an operator has set, or an empty string.
        unit: Unit of its values.
        value: Current value, or None.
        time: Time of the current value, or None.
        is_stale: True if the current value is too old to be current.
    """

    name: str
    label: str
    unit: str
    value: float | None
    time: datetime | None
    is_stale: bool


class Node(NamedTuple):
    """A node.

    Attributes:
        name: Name of the node.
        state: State of the node, for example "reporting", "late" or "lost".
        fault: Why it does not report, or an empty string.
        samples: Number of its stored samples.
        missing: Number of its samples that are lost.
        sensors: Its sensors.
    """

    name: str
    state: str
    fault: str
    samples: int
    missing: int
    sensors: Sequence[Sensor]


class Client:
    """Client of one server.

    Args:
        url: Address of the server, such as "http://pi2.local:8080".
        token: API token (`control.py api-token NAME`), or the token of a node for `send`.
        certificate: For https: file of the certificate of the server (PEM), or the SHA-256 fingerprint that
            `control.py certificate` prints; empty if an authority known to this machine has signed it.

    Raises:
        ValueError: The address is invalid.
        NotTrusted: The file of the certificate cannot be read.
    """

    def __init__(self, url: str, token: str = "", certificate: str = "") -> None:
        parts = split_url(url)
        digits = certificate.replace(":", "").lower()
        is_fingerprint = re.fullmatch("[0-9a-f]{64}", digits) is not None
        trust = ServerTrust(digits) if is_fingerprint else ServerTrust(ca=certificate or None)
        try:
            self._connection = HttpConnection(parts, _TIMEOUT_S, trust)
        except OSError as error:
            text = "takes a PEM file, or the fingerprint that `control.py certificate` prints"
            raise NotTrusted(f"certificate {text}, not {certificate!r}: {error}") from None
        self._server, self._prefix = parts.shown, parts.target.rstrip("/")
        self._headers = {
            "Accept": "application/json",
            **({"Authorization": f"Bearer {token.strip()}"} if token else {}),
        }

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The next request opens a new one."""
        self._connection.close()

    def nodes(self) -> list[Node]:
        """Return all nodes with their sensors and current values.

        Raises:
            ClientError: The request failed.
        """
        return [
            Node(
                one["name"], one["state"], one["fault"], one["samples"], one["missing"],
                [Sensor(sensor["name"], sensor["label"], sensor["unit"], sensor["value"], _time(sensor["time"]),
                        sensor["stale"]) for sensor in one["sensors"]],
            )
            for one in self._get("/api/v1/nodes", {}, "nodes")
        ]  # fmt: skip

    def readings(
        self, node: str, sensors: str | Iterable[str], start: Moment, end: Moment | None = None, *, raw: bool = False
    ) -> Columns:
        """Return the readings of a node in [start, end) as columns, oldest first.

        A row is a sample in which at least one of the sensors occurs. A value is None if the sensor failed, or is not
        in that sample.

        Args:
            node: Name of the node.
            sensors: Name of a sensor, or several names.
            start: Start of the time range.
            end: End of the time range; None for all readings since its start.
            raw: True for the values without the calibrations of the server.

        Returns:
            A dictionary of lists with the same length: `time`, and one list per sensor. A sensor that is called `time`
            is `time (sensor)`.

        Raises:
            ValueError: A time is invalid.
            NotFound: No samples of the node are stored.
            Rejected: The server does not accept the arguments, or too many samples have the same time.
            ClientError: The request failed.
        """
        names = [sensors] if isinstance(sensors, str) else list(dict.fromkeys(sensors))
        now = datetime.now(UTC)
        from_ms = max(0, _ms(_moment(start, now)))
        to_ms = _LAST_MS if end is None else _ms(_moment(end, now))
        query = {"node": node, "from": from_ms, "limit": _PAGE, "raw": int(raw)}
        pages: list[Columns] = []
        known: set[tuple[str, int]] = set()  # samples of the last page with its first time, which is requested again
        while from_ms < to_ms:  # from the newest page to the oldest
            found = self._get("/api/v1/samples", {**query, "to": to_ms}, "samples")
            samples = [one for one in found if (one["epoch"], one["seq"]) not in known]
            pages.append(_columns(samples, names))
            if len(found) < _PAGE:
                break
            if not samples:
                raise Rejected(f"more than {_PAGE} samples of {node} have the same time, {found[0]['time']}")
            first = found[0]["time"]
            known = {(one["epoch"], one["seq"]) for one in found if one["time"] == first}
            to_ms = _ms(datetime.fromisoformat(first)) + 1
        columns = _columns([], names)
        for page in reversed(pages):
            for name, values in page.items():
                columns[name] += values
        return columns

    def statistics(
        self, node: str, sensor: str, start: Moment, end: Moment | None = None, span: str = "1h", *, raw: bool = False
    ) -> Columns:
        """Return the statistics of a sensor for windows of ten minutes or an hour that end in (start, end], as columns.

        Args:
            node: Name of the node.
            sensor: Name of the sensor.
            start: Start of the time range.
            end: End of the time range; None for the present time.
            span: Length of a window: "10m" or "1h".
            raw: True for the values without the calibrations of the server.

        Returns:
            A dictionary of lists with the same length: `time` (end of the window), `count`, `mean`, `median`, `mode`,
            `low`, `high` and `deviation`.

        Raises:
            ValueError: A time or the span is invalid.
            ClientError: The request failed.
        """
        if span not in _SPANS:
            raise ValueError(f'span must be "10m" or "1h", not {span!r}')
        now = datetime.now(UTC)
        begin, last = max(_EPOCH, _moment(start, now)), now if end is None else _moment(end, now)
        names = ("count", "mean", "median", "mode", "low", "high", "deviation")
        columns: Columns = {name: [] for name in ("time", *names)}
        query = {"node": node, "sensor": sensor, "span": span, "raw": int(raw)}
        while begin < last:
            stop = min(last, begin + _PAGE * _SPANS[span])
            found = self._get("/api/v1/statistics", {**query, "from": _ms(begin), "to": _ms(stop)}, "windows")
            columns["time"] += [_time(one["time"]) for one in found]
            for name in names:
                columns[name] += [one[name] for one in found]
            begin = stop
        return columns

    def send(
        self, node: str, values: Mapping[str, float | None], time: datetime | str | None = None, id: str | None = None
    ) -> bool:
        """Send one reading of a node, and return when the server has stored it durably.

        Args:
            node: Name of the node.
            values: Value by name of the sensor; None for a sensor that failed.
            time: Time of the reading; None for the time at which the server receives it.
            id: Any text that identifies the reading, so that it is stored once although it is sent again, also by
                another call; None for a random one, so that repetitions within this call are stored once.

        Returns:
            True if it was stored, False if the server had stored a reading with this id before, also by an attempt of
            this call whose answer was lost.

        Raises:
            ValueError: The time is invalid.
            NotAllowed: The token must have the role writer, or be the token of the node.
            ClientError: The request failed. After NotReachable it is unknown if the reading is stored.
        """
        body: dict[str, Any] = {"node": node, "values": dict(values), "id": id or os.urandom(8).hex()}
        if time is not None:
            body["time"] = rfc3339(_ms(_moment(time, datetime.now(UTC))))
        content = json.dumps(body, default=float).encode()  # numbers of numpy and decimal are not those of json
        stored: int = self._request("POST", "/api/v1/readings", "stored", content)
        return stored > 0

    def _get(self, path: str, query: Mapping[str, Any], key: str) -> Any:
        return self._request("GET", f"{path}?{urlencode(query)}" if query else path, key)

    def _request(self, method: str, target: str, key: str, body: bytes | None = None) -> Any:
        """Return the value of `key` in an answer with the status 200. Repeat the request if that can succeed."""
        headers = {**self._headers, **({"Content-Type": "application/json"} if body is not None else {})}
        pause_s = _FIRST_WAIT_S
        for attempt in range(1, ATTEMPTS + 1):
            wait_s = pause_s
            try:
                answer = self._connection.request(
                    method, self._prefix + target, headers, body, limit_bytes=_ANSWER_BYTES
                )
            except (CertificateNotTrusted, CertificateMismatch) as error:
                hint = "pass its certificate or fingerprint as `certificate` (`control.py certificate` prints it)"
                raise NotTrusted(f"{self._server}: {error}; {hint}") from None
            except HttpError as error:
                text = f"{error}; check the address, and that the server runs (`control.py check`)"
                if attempt == 1:  # the server has closed the connection after a pause
                    continue
            else:
                if answer.status == 200:
                    return _value(answer, self._server, key)
                if answer.status != 429 and answer.status < 500:
                    raise _refusal(answer, self._server)
                text = _text(answer)
                wait_s = retry_after_s(answer.headers.get("Retry-After", ""), clock.time()) or pause_s
            if attempt < ATTEMPTS:
                clock.sleep(min(wait_s, LONGEST_WAIT_S))
                pause_s *= 2
        raise NotReachable(f"{self._server}: {text}")


def _value(answer: HttpResponse, server: str, key: str) -> Any:
    try:
        return json.loads(answer.body)[key]
    except (ValueError, KeyError, TypeError):
        text = f"{server} does not answer with a JSON object that has {key!r}"
        raise Rejected(f"{text}; is it the address of a Pigeonpost server?") from None


def _refusal(answer: HttpResponse, server: str) -> ClientError:
    """Return the exception for an answer with a status below 500 other than 200."""
    text = f"{server}: {_text(answer)}"
    if answer.status == 401:
        return NotAllowed(text)
    if answer.status == 403:
        return NotAllowed(f"{text} (`send` needs a token that was created with `--role writer`)")
    if answer.status == 404:
        return NotFound(f"{text} (`nodes()` returns the names of all nodes)")
    if 300 <= answer.status < 400:
        return Rejected(f"{text} (redirects are not followed: use the new address)")
    return Rejected(text)


def _text(answer: HttpResponse) -> str:
    """Return the error text of the server, or the status if there is none."""
    try:
        text = json.loads(answer.body)["error"]["text"]
    except (ValueError, KeyError, TypeError):
        text = f"the answer is {answer.status} {answer.reason}"
    return str(text)


def _columns(samples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Columns:
    """Return the columns of the samples that contain at least one of the sensors `names`."""
    wanted = set(names)
    used = [one for one in samples if not wanted.isdisjoint(one["values"])]
    parse = datetime.fromisoformat
    columns: Columns = {"time": [parse(one["time"]) for one in used]}
    for name in names:
        values = [one["values"].get(name) for one in used]
        columns["time (sensor)" if name == "time" else name] = [
            value if value is None else float(value) for value in values
        ]
    return columns


def _moment(value: Moment, now: datetime) -> datetime:
    """Return a time argument as an aware datetime. Raise ValueError if it is invalid."""
    try:
        if isinstance(value, timedelta):
            return now + value
        relative = re.fullmatch(r"-([0-9]{1,9})([smhd])", value) if isinstance(value, str) else None
        if relative:
            return now - timedelta(**{_UNITS[relative[2]]: int(relative[1])})
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f'a time must be like "2026-11-20T15:36" or "-24h", not {value!r}') from None


def _ms(moment: datetime) -> int:
    """Return a time in ms since 1970 (UTC)."""
    return (moment - _EPOCH) // _MS


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
