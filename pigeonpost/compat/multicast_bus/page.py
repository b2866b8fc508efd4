"""Web page of the multicast bus (`/bus`): the components, their last values, lost packets and round-trip times.

All data on the page is untrusted input and is shown as text of limited length. Errors: HTTPError if the bus is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigeonpost.core.format import clock, counted, number
from pigeonpost.http.message import HTTPError, Response
from pigeonpost.views.context import TABLE_FORMS, RequestContext, Route
from pigeonpost.views.html import json_answer
from pigeonpost.views.table_page import TablePage, render_table

CLOSED = "This server does not listen to the multicast bus ([bus] enabled)."
_KEYS = (
    "codifier", "value", "time_ms", "alive", "active", "data_lost", "control_lost", "round_trip_ms", "ping_ms",
    "duplicates",
)  # fmt: skip
_HEAD = ("codifier", "value", "last packet", "state", "lost", "round trip", "ping")


def bus(context: RequestContext) -> Response:
    """Return the page `/bus` for the request `context`, with a row for each codifier.

    Raises:
        HTTPError: 404: the bus is off.
    """
    transport = context.app.transports.get("bus")
    report = transport.report() if transport is not None else None
    if report is None:
        raise HTTPError(404, CLOSED, "no-bus")
    now_ms = context.app.clock.wall_ms()
    codifiers: Mapping[str, Mapping[str, Any]] = report["codifiers"]
    return render_table(context, TablePage(
        title="Bus watch",
        lead=_lead(report),
        head=_HEAD,
        rows=[_row(code, fields, now_ms) for code, fields in codifiers.items()],
        keys=_KEYS,
        data=[_data(code, fields) for code, fields in codifiers.items()],
        none="No packet has been received yet.",
        live=True,
    ))  # fmt: skip


def _lead(report: Mapping[str, Any]) -> str:
    text = (
        f"Data at {report['data']}, control at {report['control']}: {counted(report['packets'], 'packet')} received,"
        f" {counted(report['stored'], 'reading')} stored"
    )
    if report["refused"]:
        text += f"; {counted(report['refused'], 'invalid datagram')} (the last: {report['refusal'][:100]})"
    if report["ignored"]:
        text += f"; {counted(report['ignored'], 'packet')} ignored, because there are too many codifiers"
    return f"{text}{'; ' + report['fault'] if report['fault'] else ''}."


def _row(code: str, fields: Mapping[str, Any], now_ms: int) -> tuple[str, ...]:
    last_ms = _latest(fields)
    lost = fields["DPacketsLost"] + fields["CPacketsLost"]
    trip, ping = fields.get("RoundTrip"), fields.get("TDuration")
    return (
        code[:60], _value(fields.get("Value")), clock(last_ms, now_ms) if last_ms is not None else "–",
        _state(fields), f"{lost:,}" if lost else "none",
        f"{trip:,.0f} ms" if trip is not None else "–", f"{ping:,.0f} ms" if ping is not None else "–",
    )  # fmt: skip


def _value(value: Any) -> str:
    if value is None:
        return "–"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return number(value) if is_number else str(value)[:60]


def _state(fields: Mapping[str, Any]) -> str:
    parts = []
    if "Alive" in fields:
        parts.append("alive" if fields["Alive"] else "silent")
    if "IsActive" in fields:
        parts.append("active" if fields["IsActive"] else "not active")
    if fields.get("Duplicates"):
        parts.append(counted(fields["Duplicates"], "duplicate"))
    if "Note" in fields:
        parts.append(fields["Note"])
    return ", ".join(parts) or "–"


def _latest(fields: Mapping[str, Any]) -> int | None:
    """Return the time of the last packet in milliseconds since 1970 (UTC), or None."""
    times = [value for key, value in fields.items() if key.endswith("Timestamp") and isinstance(value, int)]
    return max(times, default=None)


def _data(code: str, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        code, fields.get("Value"), _latest(fields), fields.get("Alive"), fields.get("IsActive"), fields["DPacketsLost"],
        fields["CPacketsLost"], fields.get("RoundTrip"), fields.get("TDuration"), fields.get("Duplicates", 0),
    )  # fmt: skip


def as_json(context: RequestContext) -> Response:
    """Return the state of the bus as JSON for the request `context`: `GET /api/v1/bus`.

    Raises:
        HTTPError: 404: the bus is off.
    """
    transport = context.app.transports.get("bus")
    if transport is None:
        raise HTTPError(404, CLOSED, "no-bus")
    return json_answer(transport.report())


def routes() -> list[Route]:
    """Return the routes of the bus."""
    pages = [Route("GET", f"/bus{form}", "viewer", bus) for form in TABLE_FORMS]
    return [*pages, Route("GET", "/api/v1/bus", "viewer", as_json)]
