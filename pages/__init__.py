"""What people see: the house as the pages may look at it, and what every page is made with.

Runs on: server.  Reached from: webui, which has the routes; server.py, which fills in the House; the members.
Members: one file a page or a piece of one; `style.css` and `script.js` are served as they stand.
Hands on to: nobody.
Threads: every request has its own; what stands in the House may be read by all of them.
Errors: none of their own.

A member has functions that take a Visit and give an Answer. What it needs of another member webui hands to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.errors import BadArgument
from pigeonpost.core.format import clock, number
from pigeonpost.core.html import Html
from pigeonpost.core.strict_json import read_json, write_json
from pigeonpost.http.message import HTML, JSON, TEXT, Answer, Refusal, Request

if TYPE_CHECKING:
    from csvbuffer import CsvLog
    from pigeonpost.auth.users import Users
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.disk_usage import Disk
    from pigeonpost.server.ingest import Intake
    from pigeonpost.server.quality import Verdicts
    from pigeonpost.storage.contract import Store
    from pigeonpost.storage.models import Column
    from pigeonpost.transports.contract import End
    from pigeonpost.transports.tcp_server import ServerEnd


class House(NamedTuple):
    """The server's parts, as they are handed to the pages. Nothing is fetched from anywhere else.

    name      this server's name
    data      the folder of its data
    links     one for each node it collects from: `state` (session_server.NodeState) to read, `ask` to send
    users     who may come in; without any, only this machine
    control   the key by which control.py on this machine is known (Authorization: Bearer ...)
    names     by which browsers may call this server, beside the usual ones
    stop      asks the program to end; the reason is logged
    disk      how full the disk is
    roads     the server's end of each open road beside TCP, by its name: `report` tells how it is
    verdicts  what is odd about the values; None: nobody judges
    """

    name: str
    data: str
    clock: Clock
    store: Store
    csv: CsvLog
    intake: Intake
    links: Sequence[ServerEnd]
    users: Users
    control: str
    started_ms: int
    names: Sequence[str]
    stop: Callable[[str], object]
    disk: Disk
    roads: Mapping[str, End] = MappingProxyType({})
    verdicts: Verdicts | None = None


class Visit(NamedTuple):
    """One request to one page, let in.

    args     what the route's pattern found in the path
    picture  how things are now
    role     "look" or "control"
    user     who is there, for people
    csrf     what forms carry; empty where none is needed
    """

    house: House
    request: Request
    args: Sequence[str]
    picture: Callable[[], Picture]
    role: str = "control"
    user: str = ""
    csrf: str = ""


# ---------------------------------------------------------------------------------------------------- how things are


class SensorView(NamedTuple):
    """One sensor now, and its last day in columns.

    value    of its last sample; None: it failed, and `fault` says how
    low, high  of today; None: nothing today
    low_ms, high_ms  when that was: where the column of the day begins that it fell into
    trend    1 rising, -1 falling, 0 steady, None not known
    columns  places 0 to `span_ms // width_ms` - 1, the last of them now; empty ones are absent
    number   of the sensor in its node, for its colour
    odd      what is odd about the value, by kind, in words; counts of each kind in this run; the limits that it is
             judged by. A sensor without limits has none of them
    """

    node: str
    name: str
    unit: str
    number: int
    simulated: bool
    value: int | float | None
    fault: str
    time_ms: int | None
    is_late: bool
    low: float | None
    high: float | None
    trend: int | None
    columns: Sequence[Column]
    width_ms: int
    span_ms: int
    odd: Mapping[str, str] = MappingProxyType({})
    counts: Mapping[str, int] = MappingProxyType({})
    limits: Mapping[str, Any] = MappingProxyType({})
    low_ms: int | None = None
    high_ms: int | None = None


class NodeView(NamedTuple):
    """One node now.

    name     empty while a node that the settings do not name was not reached
    state    "reporting", "waiting" (for its first sample), "late", "off", "lost", or "past" (nobody collects from it)
    words    the same for people, with the reason
    since_ms when that began, where it is known
    shift_ms its clock minus ours        held, slots  samples in its outbox, and how many have room
    missing  samples that are known to be lost for ever
    machine  of its computer: cpu_temperature (°C), load, memory_free, disk_free (MiB), as far as it tells them
    last_sent  when it last sent one, HH:MM:SS by its own clock, as STATUS said; empty: not asked, or none yet
    """

    name: str
    address: str
    state: str
    words: str
    since_ms: int | None
    connected: bool
    on: bool | None
    every_s: float | None
    last_ms: int | None
    age_s: float | None
    held: int | None
    slots: int | None
    samples: int
    missing: int
    shift_ms: int | None
    round_trip_ms: float | None
    version: str
    last_sent: str
    sensors: Sequence[SensorView]
    machine: Mapping[str, float] = MappingProxyType({})


class Picture(NamedTuple):
    """The house at one moment.

    verdict  one sentence, without its last full stop and without the age of the last sample
    level    "good", "wait" (nothing is wrong, but something is missing), "bad"
    faults   of this server itself
    """

    now_ms: int
    verdict: str
    level: str
    last_ms: int | None
    faults: Sequence[str]
    nodes: Sequence[NodeView]

    def node(self, name: str) -> NodeView | None:
        return next((node for node in self.nodes if node.name == name), None)


# ------------------------------------------------------------------------------------------------------------ markup


# The meta element named referrer: under `no-referrer`, as the header has it, browsers say `Origin: null` with our own
# forms (Fetch standard, "append a request Origin header"), and the door would take each button for another site's.
# Other sites still hear nothing.
_FRAME = Html(
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title} – Pigeonpost</title>\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><meta name="referrer" content="same-origin">\n'
    '<link rel="icon" href="/favicon.svg" type="image/svg+xml"><link rel="stylesheet" href="/style.css">'
    '<script src="/script.js" defer></script></head>\n'
    "<body{live}>\n<header><a class=brand href=/>{brand}</a>{nav}</header>\n"
    "<main>\n{body}\n</main>\n{foot}</body></html>\n"
)
_NAV = Html(
    '<nav><a href="/">Now</a> <a href="/graphs">Graphs</a> <a href="/logs">Logs</a> <a href="/files">Files</a>'
    ' <a href="/about">About</a></nav>'
)


def html_page(
    title: str, body: Html, visit: Visit | None = None, live: bool = False, foot: object = "", status: int = 200
) -> Answer:
    """A page.

    visit  whose it is; None: somebody's who is not let in, and sees nothing of the house
    live   the script keeps it up to date
    """
    text = _FRAME.format(
        title=title, body=body, foot=foot,
        brand=f"Pigeonpost {visit.house.name}" if visit else "Pigeonpost",
        nav=_NAV if visit else "",
        live=Html(' data-now="{}"').format(visit.house.clock.wall_ms()) if live and visit else "",
    )  # fmt: skip
    return Answer(text.encode(), HTML, status, PAGE_HEADERS)


def text_page(text: str, status: int = 200) -> Answer:
    """A page for a terminal."""
    return Answer(text.encode(), TEXT, status, PAGE_HEADERS)


def see_other(path: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Behind a change: the browser shows the page at `path`, and reloading that repeats nothing."""
    return text_page(f"see {path}\n", 303)._replace(headers={**PAGE_HEADERS, "Location": path, **(headers or {})})


def json_answer(value: Any, status: int = 200) -> Answer:
    """`value` for programs."""
    return Answer(write_json(value).encode() + b"\n", JSON, status, {"Cache-Control": "no-store"})


def json_body(request: Request) -> dict[str, Any]:
    """The JSON object that a program has sent; Refusal 400 when it is none."""
    try:
        value = read_json(request.body.decode("utf-8").strip())
    except (BadArgument, UnicodeDecodeError) as error:
        raise Refusal(400, f"The body does not read as JSON: {error}.", "json") from None
    if not isinstance(value, dict):
        raise Refusal(400, "The body is a JSON object.", "json")
    return value


# Pages carry who is logged in, so nobody between keeps them.
PAGE_HEADERS: Mapping[str, str] = {"Vary": "Accept", "Cache-Control": "no-store"}


def button(path: str, label: str, visit: Visit, what: str = "", kind: str = "", off: bool = False) -> Html:
    """A button that changes something: a form of its own. `what` tells a screen reader what it is for."""
    return Html(
        '<form method="post" action="{path}"><input type="hidden" name="csrf" value="{csrf}">'
        '<button class="{kind}"{label}{off}>{text}</button></form>'
    ).format(
        path=path, csrf=visit.csrf, kind=kind, text=label,
        label=Html(' aria-label="{}"').format(f"{label}, {what}") if what else "",
        off=Html(" disabled") if off else "",
    )  # fmt: skip


def sensor_path(node: str, sensor: str) -> str:
    """Where the page of a sensor is. The buttons of its node have three of these addresses."""
    return f"/nodes/{node}/{sensor}{'.html' if sensor in ('on', 'off', 'status') else ''}"


# ------------------------------------------------------------------------------------------------- words and numbers


def gap_words(gap: Mapping[str, Any]) -> str:
    """Which samples a gap of the store leaves out."""
    own = [f"{gap['from']} to {gap['to']} of epoch {gap['epoch']}"] if gap["to"] >= gap["from"] else []
    earlier = [f"{gap['before']} of earlier epochs"] if gap["before"] else []
    return " and ".join(own + earlier)


# ------------------------------------------------------------------------------------------------ what a query may say


def moment(text: str) -> int:
    """A time in a query, in ms since 1970: RFC 3339, or those milliseconds themselves. Refusal 400 for others."""
    try:
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else parse_rfc3339(text)
    except (ValueError, OverflowError):
        raise Refusal(400, "A time is like 2026-11-20T15:36:10Z, or milliseconds since 1970.", "time") from None


def span_ms(text: str) -> int:
    """A length of time in a query, as `90s`, `10m`, `24h`, `7d`, in ms; a bare number is seconds. Refusal 400."""
    unit = _UNITS_MS.get(text[-1:], 0)
    digits = text[:-1] if unit else text
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits)):
        raise Refusal(400, "A length of time is like 90s, 10m, 24h or 7d.", "span")
    return int(digits) * (unit or 1000)


def name_in(query: Mapping[str, str], key: str, match: Callable[[str], object]) -> str:
    """The name that a query gives under `key`, empty without one; Refusal 400 when it cannot be one."""
    name = query.get(key, "")
    if name and not match(name):
        raise Refusal(400, f"That is no name for a {key}.", "name")
    return name


_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
