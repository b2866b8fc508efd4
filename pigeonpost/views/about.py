"""About page: the promise of Pigeonpost, data about this server, licences, and links to other pages."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pigeonpost.core.clock import parse_rfc3339, rfc3339
from pigeonpost.core.container import in_container
from pigeonpost.core.format import age, aligned, clock, counted, size, zone_name
from pigeonpost.core.html import Html, join_html
from pigeonpost.core.version import VERSION
from pigeonpost.http.message import Response
from pigeonpost.server.damage_check import DATABASE_FAULT, LOGS_FAULT
from pigeonpost.server.disk_usage import written_words
from pigeonpost.views.context import RequestContext
from pigeonpost.views.html import html_page, json_answer, text_page

PROMISE = (
    "A sample is accepted when the node has written it to its outbox and the card has confirmed the write.",
    "From then on it appears in the server's log exactly once and in its node's order, or as a numbered, visible gap:"
    " it is never silently missing.",
)
_LIBRARIES = (
    ("Python", "PSF-2.0", "always"),
    ("SQLite", "public domain", "always, with Python"),
    ("OpenSSL", "Apache-2.0", "always, with Python"),
    ("spidev", "MIT", "on a node with an MCP3008"),
    ("smbus2", "MIT", "on a node with chips on I2C"),
    ("paho-mqtt", "EPL-2.0 or BSD-3-Clause", "with MQTT"),
    ("psycopg", "LGPL-3.0", "with a store in PostgreSQL"),
)
_MORE = (
    ("/gaps", "Gaps: missing samples, with reasons"),
    ("/happenings", "Events: starts, lost and reconnected nodes, faults"),
    ("/log", "Log Check: the last ten samples of this run"),
    ("/integrations", "Integrations: exchange of data with other systems"),
    ("/bus", "Multicast bus: components and packets"),
    ("/password", "Change your password"),
    ("/api/v1/openapi.json", "JSON API, described by OpenAPI"),
    ("/metrics", "Metrics for Prometheus"),
)


def about(context: RequestContext) -> Response:
    """Return the page for `context`: `/about`, or `/about.json` for programs."""
    if context.request.path.endswith(".json"):
        return json_answer(_for_programs(context))
    info = list(_info(context))
    more = [(path, words) for path, words in _MORE if _is_useful(context, path)]
    if not context.request.wants_html:
        lines = [textwrap.fill(" ".join(PROMISE), 79), "", *(f"{name:<12}{value}" for name, value in info), ""]
        lines += [f"{path:<24}{words}" for path, words in more]
        lines += ["", *aligned(("LIBRARY", "LICENCE", "USED"), _LIBRARIES, "<<<")]
        return text_page("\n".join(lines) + "\n")
    body = Html(
        "<h1>About this server</h1>\n<blockquote><p>{promise}</p></blockquote>\n"
        '<ul class="ways">{ways}</ul>\n<h2>This server</h2>\n<table class="facts">{info}</table>\n'
        '<h2>Libraries</h2>\n<table class="list"><thead><tr><th>library</th><th>licence</th><th>used</th></tr></thead>'
        "<tbody>{libraries}</tbody></table>\n"
    ).format(
        promise=" ".join(PROMISE),
        ways=join_html(Html('<li><a href="{}">{}</a></li>\n').format(*way) for way in more),
        info=join_html(Html("<tr><th>{}</th><td>{}</td></tr>\n").format(*fact) for fact in info),
        libraries=join_html(
            Html('<tr><td>{}</td><td data-label="licence">{}</td><td data-label="used">{}</td></tr>').format(*one)
            for one in _LIBRARIES
        ),
    )  # fmt: skip
    return html_page("About", body, context)


def _is_useful(context: RequestContext, path: str) -> bool:
    """Return True if the page at `path` is useful to this user."""
    if path == "/bus":
        return "bus" in context.app.transports
    return path != "/password" or context.app.users.find(context.user) is not None


def _info(context: RequestContext) -> Iterator[tuple[str, str]]:
    app, use = context.app, context.app.disk.use()
    now_ms = app.clock.wall_ms()
    yield "version", f"Pigeonpost {VERSION}, Python {platform.python_version()}"
    yield "name", app.name
    since = clock(app.started_ms, now_ms)
    yield "started", f"{since}, {age((now_ms - app.started_ms) / 1000)} ago"
    yield "time zone", zone_name(now_ms) + _zone_hint()
    yield "data", app.data
    yield "store", app.store.description
    yield "checked", _checked(context)
    if (backups := app.transports.get("backup")) is not None:
        yield "backup", _last_backup(backups.report() or {}, now_ms)
    duplicates = counted(app.ingestor.repeated, "duplicate")
    yield "this run", f"{counted(app.ingestor.stored, 'sample')} stored, {duplicates} received"
    yield "disk", f"{size(use.stored)} stored, {size(use.free)} free"
    if use.days is not None:
        yield "space for", "years" if use.days > 1000 else f"{use.days:.0f} days, at the rate of the last day"
    if use.written is not None:
        yield "written", f"{written_words(use)} per day"


def _last_backup(report: Mapping[str, Any], now_ms: int) -> str:
    """Return the path and the time of the last backup, as text."""
    if report["made"] is None:
        return f"none yet in {report['to']}"
    made_ms = parse_rfc3339(report["made"])
    where = f"{report['file']}, checked; made {clock(made_ms, now_ms)}, {age((now_ms - made_ms) / 1000)} ago"
    return where + ("; on the same disk as the data: a disk failure would lose both" if report["same_disk"] else "")


def _zone_hint() -> str:
    """Return a hint to set TZ, if the server runs in a container without it. Container images use UTC."""
    return ". To change it, set TZ, for example TZ=Europe/Vienna" if in_container() and not os.environ.get("TZ") else ""


def _checked(context: RequestContext) -> str:
    """Return the time and the result of the last complete check of the stored data, as text."""
    app, now_ms = context.app, context.app.clock.wall_ms()
    present = app.faults.present()
    if damage := "; ".join(present[subject] for subject in (DATABASE_FAULT, LOGS_FAULT) if subject in present):
        return damage
    if app.check is None or app.check.checked_ms is None:
        return "the first check of this run is not finished"
    what = "no damage" if app.store.is_checked else "no damage in the CSV logs"
    return f"{clock(app.check.checked_ms, now_ms)}: {what}"


def _for_programs(context: RequestContext) -> dict[str, object]:
    app, use = context.app, context.app.disk.use()
    return {
        "version": VERSION, "server": app.name, "started": rfc3339(app.started_ms), "data": app.data,
        "store": app.store.description,
        "backup": backups.report() if (backups := app.transports.get("backup")) is not None else None,
        "checked": rfc3339(app.check.checked_ms) if app.check and app.check.checked_ms else None,
        "promise": " ".join(PROMISE), "samples_stored": app.ingestor.stored,
        "samples_repeated": app.ingestor.repeated, "stored_bytes": use.stored, "free_bytes": use.free,
        "grows_bytes_a_day": use.grows, "written_bytes_a_day": use.written, "days_left": use.days,
    }  # fmt: skip
