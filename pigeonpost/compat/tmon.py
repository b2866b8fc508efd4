"""Transport of the older system "tmon": a cron job posts one temperature with its token to `/temp`.

    POST /temp  {"type": "temperature", "token": "<32 hex>", "data": {"temperature": "20812"}}  ->  {"success": true}

The value is the content of the 1-wire file: a whole number of thousandths of a degree Celsius, as text. The token alone
identifies the node. Clients of tmon need no change (docs/coming-from-tmon.md).

The functions run in the threads of the web server. Errors are answered as tmon clients expect, always with a body:
`{"success": false, "error": ...}`. Success is reported only after the reading has been stored.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pigeonpost.compat import wrong_secrets
from pigeonpost.core.errors import BadArgument, NotStored
from pigeonpost.core.strict_json import read_json
from pigeonpost.http.message import JSON, Endpoint, Request, Response
from pigeonpost.server.unnumbered_sources import Claim, ExternalReading
from pigeonpost.transports.contract import PassiveTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

SENSOR, UNIT = "temperature", "°C"
_BODY_BYTES = 16 << 10
_LOWEST, _HIGHEST = -273_150, 2_000_000  # accepted range of temperatures, in thousandths of a degree Celsius
_RETRY_S = 10
_LAST_S = 253_402_300_800  # the year 10000, in seconds since 1970

_MILLI_DEGREES = re.compile(r"[+-]?[0-9]{1,9}").fullmatch
_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?").fullmatch
_FALSE = (None, False, 0, "", "0", "false", "no", "off")


class BadTmonReport(ValueError):
    """Invalid request.

    Args:
        text: Text of the response.
        status: HTTP status of the response.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Report:
    """Decoded request.

    Args:
        token: Token of the node.
        temperature_c: Temperature in °C.
        time_ms: Time of the measurement in milliseconds since 1970 (UTC), or None if the request does not contain it.
        is_test: True if the request must be checked and answered but not stored.
    """

    def __init__(self, token: str, temperature_c: float, time_ms: int | None, is_test: bool) -> None:
        self.token = token
        self.temperature_c = temperature_c
        self.time_ms = time_ms
        self.is_test = is_test


def read_report(body: bytes) -> Report:
    """Return the report in the request body `body`. Raise BadTmonReport if it is invalid."""
    try:
        content = read_json(body.decode("utf-8").strip())
    except (UnicodeDecodeError, BadArgument) as error:
        raise BadTmonReport(f"not JSON: {error}") from None
    if type(content) is not dict:
        raise BadTmonReport("a JSON object was expected")
    token, data = content.get("token"), content.get("data")
    if not token:
        raise BadTmonReport("token not set", 200)
    if type(token) is not str:
        raise BadTmonReport("token must be a string")
    value = data.get(SENSOR) if type(data) is dict else None
    if value is None or value == "":
        raise BadTmonReport("No temperature given", 200)
    if content.get("type", SENSOR) != SENSOR:
        raise BadTmonReport('type must be "temperature"')
    return Report(token, _celsius(value), _time_ms(content.get("time")), content.get("test") not in _FALSE)


def _celsius(value: Any) -> float:
    """Return the temperature in °C for a whole number of thousandths of a degree, as a string or a number."""
    text = value.strip() if type(value) is str else str(value) if type(value) is int else ""
    if not _MILLI_DEGREES(text) or not _LOWEST <= int(text) <= _HIGHEST:
        raise BadTmonReport('temperature must be in thousandths of a degree Celsius, such as "20812"')
    return int(text) / 1000


def _time_ms(value: Any) -> int | None:
    """Return the time of the measurement in milliseconds since 1970 (UTC), or None if it is missing.

    The request contains seconds since 1970 or an ISO date. A date without an offset is in this server's local time,
    since clients write it with `strftime`.
    """
    if value is None or value == "":
        return None
    text = value.strip() if type(value) is str else str(value) if type(value) in (int, float) else ""
    try:
        time_s = float(text) if _SECONDS(text) else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):  # OverflowError, OSError: a year that the C library cannot convert
        time_s = -1.0
    if not 0 <= time_s < _LAST_S:
        raise BadTmonReport("time must be seconds since 1970 or a date such as 2026-11-20T15:36:10Z")
    return round(time_s * 1000)


class TmonTransport(PassiveTransport):
    """Transport with the endpoint `POST /temp`.

    Args:
        context: Context of the server.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self.endpoints: Sequence[Endpoint] = [Endpoint("POST", "/temp", self.answer, _BODY_BYTES)]

    def answer(self, request: Request) -> Response:
        """Store the report in `request` and return the response. A BadTmonReport becomes an error response."""
        try:
            report = read_report(request.body)
            node = self._context.tokens.node_of(report.token)
            if node is None:
                wrong_secrets.refuse_later(self._context, log, request.peer, "a tmon report with an unknown token")
                raise BadTmonReport("unknown token")
            if not report.is_test:
                values, units = {SENSOR: report.temperature_c}, {SENSOR: UNIT}
                claim = Claim(node, "tmon", is_proven=True)
                self._context.unnumbered_sources.store(ExternalReading(claim, values, units, report.time_ms))
        except BadTmonReport as error:
            return _answer(error.status, success=False, error=str(error))
        except NotStored as error:
            text = f"not stored, try again later: {error}"
            return _answer(503, success=False, error=text)._replace(headers={"Retry-After": str(_RETRY_S)})
        return _answer(200, success=True)


def _answer(status: int, **content: Any) -> Response:
    return Response(json.dumps(content).encode(), JSON, status, {"Cache-Control": "no-store"})
