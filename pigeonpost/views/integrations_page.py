"""Page `/integrations`: state of the exchange with each other system.

The states are those of all parts of the server (`Transport.statuses`). An error of one part is shown as its fault, so
that no part can break the page.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import age, counted
from pigeonpost.core.html import Html
from pigeonpost.core.redact import hide_secrets
from pigeonpost.http.message import Response
from pigeonpost.transports.contract import IntegrationStatus
from pigeonpost.views.context import TABLE_FORMS, RequestContext, Route
from pigeonpost.views.table_page import TablePage, render_table

if TYPE_CHECKING:
    from pigeonpost.transports.contract import Transport

log = logging.getLogger(__name__)

_HEAD = ("name", "direction", "place", "last success", "backlog", "exchanged", "refused", "fault")
_KEYS = (
    "name", "kind", "direction", "place", "success", "backlog", "items", "exchanged", "refused", "fault",
)  # fmt: skip
_NONE = "None is set. docs/integrations.md describes the possible ones."


def read_statuses(parts: Mapping[str, Transport]) -> list[IntegrationStatus]:
    """Return the states of all exchanges with other systems, in the order of the parts.

    A part that has a fault but no states, for example because its library is missing, has one state with this fault.

    Args:
        parts: The parts of the server by name. Parts without the method `statuses` exchange nothing.
    """
    found: list[IntegrationStatus] = []
    for name, part in parts.items():
        fault, states = _read(name, part)
        found += states or ([IntegrationStatus(name, "", "", "", None, None, fault=fault)] if fault else [])
    return found


def read_faults(parts: Mapping[str, Transport]) -> list[str]:
    """Return one text per fault of the `parts` of the server, which are keyed by name, and of their exchanges.

    A fault of an exchange that is contained in the fault of its part is not repeated.
    """
    faults = []
    for name, part in parts.items():
        own, states = _read(name, part)
        faults += [f"{name}: {own}"] if own else []
        faults += [f"{status.name}: {status.fault}" for status in states if status.fault and status.fault not in own]
    return faults


def read_fault(name: str, part: Transport) -> str:
    """Return the fault of the part `name` of the server, or an empty string if it has none."""
    return _read(name, part)[0]


def _read(name: str, part: Transport) -> tuple[str, list[IntegrationStatus]]:
    """Return the fault of a part and the states of its exchanges, without secrets."""
    try:
        states = [
            status._replace(place=hide_secrets(status.place), fault=hide_secrets(status.fault))
            for status in getattr(part, "statuses", tuple)()
        ]
        return hide_secrets(str(part.fault or "")), states
    except Exception as error:  # of one part; the others are shown
        log.warning("integration %s: its state cannot be read: %s: %s", name, type(error).__name__, error)
        log.debug("integration %s", name, exc_info=True)
        return hide_secrets(f"internal error, see the log: {type(error).__name__}: {error}"), []


def integrations_notice(context: RequestContext) -> Html:
    """Return the notice on the front page about exchanges with a fault, with a link to the page, for `context`.

    The element exists without faults, too, so that the script can show them on an open page.
    """
    text = integrations_sentence(context)
    notice = Html('<p class="notice"><a href="/integrations">{}</a></p>').format(text) if text else Html("")
    return Html('<div data-piece="integrations">{}</div>').format(notice)


def integrations_sentence(context: RequestContext) -> str:
    """Return a sentence about the exchanges that have a fault, for `context`; empty if there are none."""
    failing = [status for status in read_statuses(context.app.transports) if status.fault]
    if not failing:
        return ""
    more = f"; and {counted(len(failing) - 1, 'more integration')}" if len(failing) > 1 else ""
    return f"{failing[0].name}: {failing[0].fault[:200]}{more}."


def integrations(context: RequestContext) -> Response:
    """Return the page `/integrations` for `context`, with a row for each exchange."""
    states, now_ms = read_statuses(context.app.transports), context.app.clock.wall_ms()
    failing = sum(bool(status.fault) for status in states)
    health = f"; {counted(failing, 'has a fault', 'have a fault')}" if failing else "; none has a fault"
    return render_table(context, TablePage(
        title="Integrations",
        lead=f"{counted(len(states), 'exchange')} with other systems{health}. A fault of one does not affect"
             " the others." if states else "Exchange of data with other systems.",
        head=_HEAD,
        rows=[_row(status, now_ms) for status in states],
        keys=_KEYS,
        data=[_data(status) for status in states],
        none=_NONE,
        live=True,
    ))  # fmt: skip


def _row(status: IntegrationStatus, now_ms: int) -> tuple[str, ...]:
    last = "–" if status.success_ms is None else f"{age((now_ms - status.success_ms) / 1000)} ago"
    backlog = "–" if status.backlog is None else f"{status.backlog:,}"
    return (
        status.name, status.direction or "–", status.place or "–", last, backlog,
        counted(status.done, status.items.removesuffix("s")), f"{status.refused:,}" if status.refused else "none",
        status.fault or "none",
    )  # fmt: skip


def _data(status: IntegrationStatus) -> tuple[Any, ...]:
    success = None if status.success_ms is None else rfc3339(status.success_ms)
    return (
        status.name, status.kind, status.direction, status.place, success, status.backlog, status.items, status.done,
        status.refused, status.fault,
    )  # fmt: skip


ROUTES = tuple(Route("GET", f"/integrations{form}", "viewer", integrations) for form in TABLE_FORMS)
