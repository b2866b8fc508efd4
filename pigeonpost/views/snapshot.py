"""Builder of the status snapshot: which nodes report, what their sensors say, and a one-sentence summary.

May be used by any thread. `_lock` guards the last snapshot, and is held while a new one is made, so that many requests
at once cost one. Errors: NotStored; of a damaged store it shows what it knows.

What a node reports in STATUS is untrusted input: numbers are used only where they are numbers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pigeonpost.core.errors import DiskError, StoreDamaged
from pigeonpost.core.format import age, clock, number, with_unit
from pigeonpost.server.quality import LATE_INTERVALS, LATE_S
from pigeonpost.server.recent_cache import RecentColumns
from pigeonpost.views.context import WebContext
from pigeonpost.views.models import Level, NodeStatus, NodeView, SensorView, StatusSnapshot
from protocol import Sample

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeLink, NodeState
    from pigeonpost.server.quality import QualityFlag

log = logging.getLogger(__name__)

FRESH_S = 1.0  # a snapshot is made again after so long, or when something was stored
_FAR_MS = 1 << 52  # after every date
_USUAL_EVERY_S = 60.0  # for a node that was not reached, so that nobody knows its interval
_CALLS_EVERY_S = 3600.0  # and for one that calls in, and has called once so far
_DAY_MS = 86_400_000
_LOW, _HIGH = attrgetter("low"), attrgetter("high")
_STEADY = 0.05  # of the day's range: a change below it is no trend


class SnapshotBuilder:
    """Makes snapshots, and keeps the last one while it is valid."""

    def __init__(self, app: WebContext, day: Callable[[str, int | None, int, Iterable[str]], RecentColumns]) -> None:
        """day: the last day of a node, as RecentCache.day."""
        self._app = app
        self._day = day
        self._lock = threading.Lock()
        self._snapshot: StatusSnapshot | None = None
        self._made_s = 0.0
        self._stored: dict[str, dict[str, Any]] = {}  # what the store said last of each node
        self._last: dict[str, Sample] = {}  # of nodes that nothing came from in this run
        self.changes = 0  # grows with every change that a snapshot may show

    def on_commit(self, _: object) -> None:
        """Discard the snapshot: samples were committed."""
        self.invalidate()

    def invalidate(self) -> None:
        """Discard the snapshot; the next one shows what has changed."""
        self.changes += 1
        self._made_s = 0.0

    def snapshot(self) -> StatusSnapshot:
        """Return the snapshot, at most FRESH_S old."""
        with self._lock:
            now_s = self._app.clock.monotonic()
            if self._snapshot is None or not 0 <= now_s - self._made_s < FRESH_S:
                self._made_s = now_s  # first, so that a change meanwhile is not overlooked
                self._snapshot = self._take()
            return self._snapshot

    def _take(self) -> StatusSnapshot:
        app, now_ms = self._app, self._app.clock.wall_ms()
        try:
            self._stored = {about["name"]: about for about in app.store.nodes()}
        except (StoreDamaged, DiskError) as error:  # which is among the faults: the page shows that, and what it knows
            log.debug("the page shows what was known before: %s", error)
        stored = dict(self._stored)
        nodes = [self._node(link.state, stored.pop(link.state.name, {}), now_ms) for link in _one_each(app.links)]
        nodes += [self._node(None, about, now_ms) for about in stored.values()]
        faults = [fault for fault in (app.ingestor.fault, app.csv.fault) if fault]
        faults += [f"{subject}: {text}" for subject, text in app.faults.present().items()]
        level, summary = _summary(nodes, faults, now_ms)
        watched = [node.last_ms for node in nodes if node.last_ms is not None and node.state != "past"]
        return StatusSnapshot(now_ms, summary, level, max(watched, default=None), faults, nodes)

    def _node(self, state: NodeState | None, about: Mapping[str, Any], now_ms: int) -> NodeView:
        name = state.name if state else about["name"]
        sample = self._last_sample(name, about)
        shift_ms = state.offset_ms if state else None
        last_ms = sample.time_ms - (shift_ms or 0) if sample else None
        age_s = max(0.0, (now_ms - last_ms) / 1000) if last_ms is not None else None
        every_s = state.every_s if state else None
        is_late = age_s is None or age_s * 1000 > _wait_ms(state)
        kind, words, since_ms = _condition(state, last_ms, is_late, now_ms)
        details: Mapping[str, Any] = state.details if state else {}
        names = [*(sensor["name"] for sensor in (state.sensors if state else ())), *about.get("sensors", ())]
        try:
            day = self._day(name, about.get("first_ms"), now_ms, dict.fromkeys(names))
        except (StoreDamaged, DiskError) as error:
            log.debug("no columns of %s: %s", name, error)
            day = RecentColumns(now_ms, _DAY_MS, _DAY_MS, {})
        return NodeView(
            name=name, address=state.address if state else "", state=kind, words=words, since_ms=since_ms,
            connected=bool(state and state.connected and (state.takes_orders or not state.calls_in)),
            on=state.on if state else None,
            every_s=every_s, last_ms=last_ms, age_s=age_s, held=_count(details, "held"), slots=_count(details, "slots"),
            samples=about.get("samples", 0), missing=about.get("missing", 0), shift_ms=shift_ms,
            round_trip_ms=state.round_trip_ms if state else None, version=str(details.get("version", ""))[:20],
            last_sent=(state.last_sent or "") if state else "", machine=_machine(details),
            warnings=list(state.warnings.values()) if state else (),
            certificate=state.fingerprint if state else "",
            sensors=[
                self._judged(sensor, now_ms + (shift_ms or 0), state is not None and state.on is not False)
                for sensor in _sensors(name, state, about, sample, is_late, day, now_ms)
            ],
        )  # fmt: skip

    def _judged(self, sensor: SensorView, now_ms: int, is_expected: bool) -> SensorView:
        """Return the sensor with its quality flags; `now_ms` by its node's clock."""
        quality = self._app.quality
        judged = quality.of(sensor.node, sensor.name, now_ms, is_expected) if quality else None
        if judged is None:
            return sensor
        odd = {finding.kind: _odd(finding, sensor.unit) for finding in judged.findings}
        return sensor._replace(odd=odd, counts=judged.counts, limits=judged.limits)

    def _last_sample(self, name: str, about: Mapping[str, Any]) -> Sample | None:
        """Return the last sample received; after a restart the stored one with the latest date."""
        latest = self._app.ingestor.latest.get(name)
        if latest is not None:
            return latest.sample
        last_ms, known = about.get("last_ms"), self._last.get(name)
        if last_ms is not None and (known is None or known.time_ms != last_ms):  # by an import it may become later
            try:
                for point in self._app.store.points(name, 0, _FAR_MS, 1):
                    self._last[name] = Sample(point.seq, point.time_ms, 0, point.values, {}, point.clock)
            except (StoreDamaged, DiskError) as error:
                log.debug("no last sample of %s: %s", name, error)
        return self._last.get(name)


def _one_each(links: Sequence[NodeLink]) -> list[NodeLink]:
    """Return one link for each node: of several the connected one; of several connected, one that can ask the node."""
    best: dict[object, NodeLink] = {}
    for link in links:
        name = link.state.name or id(link)  # one that was not reached yet has no name
        other = best.get(name)
        if other is None or _worth(link.state) > _worth(other.state):
            best[name] = link
    return list(best.values())


def _worth(state: NodeState) -> tuple[bool, bool]:
    return state.connected, not state.calls_in


def _count(details: Mapping[str, Any], key: str) -> int | None:
    value = details.get(key)
    return value if type(value) is int and value >= 0 else None


def _machine(details: Mapping[str, Any]) -> dict[str, float]:
    """Return what a node reports of its computer, as far as these are numbers."""
    told = details.get("machine")
    told = told if isinstance(told, dict) else {}
    known = [(name, told.get(name)) for name in ("cpu_temperature", "load", "memory_free", "disk_free")]
    return {name: value for name, value in known if isinstance(value, int | float) and -1000 < value < 1e12}


# --------------------------------------------------------------------------------------------------------- sensors


def _sensors(
    node: str, state: NodeState | None, about: Mapping[str, Any], sample: Sample | None, is_late: bool,
    day: RecentColumns, now_ms: int,
) -> list[SensorView]:  # fmt: skip
    told = {sensor["name"]: sensor for sensor in (state.sensors if state else [])}
    units: Mapping[str, str] = about.get("sensors", {})
    # In the node's own order; then what it once had, as long as the day shows something of it.
    names = [*told, *(name for name in units if name not in told and (not told or day.columns.get(name)))]
    midnight = (_midnight_ms(now_ms) - day.from_ms) // day.width_ms
    views = []
    for place, name in enumerate(names):
        columns = day.columns.get(name, [])
        today = [column for column in columns if column.place >= midnight]
        lowest = min(today, key=_LOW, default=None)
        highest = max(today, key=_HIGH, default=None)
        views.append(SensorView(
            node=node, name=name, unit=str(told.get(name, {}).get("unit", units.get(name, ""))), number=place,
            simulated=told.get(name, {}).get("simulated") is True,
            value=sample.values.get(name) if sample else None,
            fault=_fault(name, sample), time_ms=sample.time_ms if sample else None, is_late=is_late,
            low=lowest.low if lowest else None, high=highest.high if highest else None,
            trend=_trend(columns, day.span_ms // day.width_ms),
            columns=columns, width_ms=day.width_ms, span_ms=day.span_ms,
            low_ms=day.from_ms + lowest.place * day.width_ms if lowest else None,
            high_ms=day.from_ms + highest.place * day.width_ms if highest else None,
        ))  # fmt: skip
    return views


def _fault(name: str, sample: Sample | None) -> str:
    if sample is None:
        return "no sample yet"
    if sample.values.get(name) is not None:
        return ""
    return str(sample.errors.get(name) or ("no reading" if name in sample.values else "not in the last sample"))[:200]


def _odd(finding: QualityFlag, unit: str) -> str:
    """Return a flag in a few words, to show beside the value."""
    if finding.kind == "range":
        side = "above" if finding.found > finding.limit else "below"
        return f"{side} {with_unit(number(finding.limit), unit)}"
    if finding.kind == "jump":
        return f"jumped by {with_unit(number(finding.found), unit)}"
    if finding.kind == "rail":
        return "at the rail"
    return f"{'stuck' if finding.kind == 'stuck' else 'no value'} for {age(finding.found)}"


def _trend(columns: Sequence[Any], count: int) -> int | None:
    """Compare the last twelfth of the day with the one before: 1 above, -1 below, 0 about equal, None unknown."""
    step = max(1, count // 12)
    latest = list(takewhile(lambda column: column.place >= count - 2 * step, reversed(columns)))
    recent = [column.mean for column in latest if column.place >= count - step]
    before = [column.mean for column in latest if column.place < count - step]
    if not recent or not before:
        return None
    change = sum(recent) / len(recent) - sum(before) / len(before)
    scale = max(map(_HIGH, columns)) - min(map(_LOW, columns))
    if change - change != 0 or scale - scale != 0:  # sums of huge values
        return None
    return 0 if abs(change) <= _STEADY * scale else 1 if change > 0 else -1


def _midnight_ms(now_ms: int) -> int:
    """Return the time at which today began, by this machine's clock and zone."""
    t = time.localtime(now_ms // 1000)
    return int(time.mktime((t.tm_year, t.tm_mon, t.tm_mday, 0, 0, 0, 0, 0, -1))) * 1000


# ------------------------------------------------------------------------------------------------------------ words


def _condition(
    state: NodeState | None, last_ms: int | None, is_late: bool, now_ms: int
) -> tuple[NodeStatus, str, int | None]:
    """Return a node's state, its text, and its beginning."""
    if state is None:
        return "past", "nobody collects from it now", last_ms
    if not state.connected and state.since_ms is None:
        return "waiting", "not reached yet", None
    if not state.connected:
        return "lost", state.fault or "not connected", state.since_ms
    if state.on is False:
        return "off", "switched off", last_ms
    if last_ms is None or (is_late and state.since_ms is not None and now_ms - state.since_ms < _wait_ms(state)):
        words = "has called, waiting for a sample" if state.calls_in else "connected, waiting for a sample"
        return "waiting", words, state.since_ms
    if is_late and state.calls_in:
        return "late", f"has brought nothing since {clock(last_ms, now_ms)}", last_ms
    if is_late:
        return "late", f"connected, but sends nothing since {clock(last_ms, now_ms)}", last_ms
    return "reporting", "reporting", state.since_ms


def _wait_ms(state: NodeState | None) -> float:
    """Return how old a node's last sample may be, which is also the time for the first one after connecting."""
    usual_s = _CALLS_EVERY_S if state and state.calls_in else _USUAL_EVERY_S
    return 1000 * (LATE_INTERVALS * ((state.every_s if state else None) or usual_s) + LATE_S)


def _summary(nodes: Sequence[NodeView], faults: Sequence[str], now_ms: int) -> tuple[Level, str]:
    """Return the level, and the summary without its full stop."""
    if faults:
        return "bad", _capital("; ".join(faults))
    watched = [node for node in nodes if node.state != "past"]
    if not watched:
        return "wait", "No node is set up: start the server with --node NAME@HOST:PORT"
    wrong = [node for node in watched if node.state in ("late", "lost")]
    if wrong:
        if len(watched) == 1:
            return "bad", _complaint(_subject(wrong), wrong[0], now_ms)
        told = "; ".join(_complaint(_called(node), node, now_ms) for node in wrong[:3])
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return "bad", f"{len(wrong)} of {len(watched)} nodes {_are(wrong)} not reporting: {told}{more}"
    warned = [node for node in watched if node.warnings]
    if warned:
        return "bad", "; ".join(f"{_called(node)}: {node.warnings[0]}" for node in warned[:3])
    resting = [node for node in watched if node.state == "off"]
    new = [node for node in watched if node.state == "waiting"]
    if resting or new:
        return "wait", _resting(watched, resting, new)
    if len(watched) == 1:
        return "good", f"Node {_called(watched[0])} is reporting"
    return "good", f"{'Both' if len(watched) == 2 else f'All {len(watched)}'} nodes are reporting"


def _complaint(subject: str, node: NodeView, now_ms: int) -> str:
    since = f" since {clock(node.since_ms, now_ms)}" if node.since_ms is not None else ""
    if node.state == "late":
        but = "is connected, but has" if node.connected else "has"
        return f"{subject} {but} sent nothing for {age(node.age_s or 0.0)}"
    if node.words.split(" ")[0] not in _VERBS:
        return f"{subject} is not connected ({node.words}){since}"
    what, colon, why = node.words.partition(": ")
    return f"{subject} {what}{since}{colon}{why}"


# A NodeState.fault that begins with one of these follows the node's name as it is; any other, "closed", needs a verb.
_VERBS = frozenset(("cannot", "refuses:", "does", "has", "is", "still", "speaks", "answers", "closes", "shows"))


def _resting(watched: Sequence[NodeView], resting: Sequence[NodeView], new: Sequence[NodeView]) -> str:
    parts = []
    if resting:
        parts.append(f"{_subject(resting)} {_are(resting)} switched off")
    if new:
        parts.append(f"waiting for the first sample of {_names(new)}")
    rest = len(watched) - len(resting) - len(new)
    if rest:
        parts.append(f"the other {'one is' if rest == 1 else f'{rest} are'} reporting")
    return _capital("; ".join(parts))


def _names(nodes: Sequence[NodeView]) -> str:
    names = [_called(node) for node in nodes[:3]] + ([f"{len(nodes) - 3} more"] if len(nodes) > 3 else [])
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _subject(nodes: Sequence[NodeView]) -> str:
    """Return the nodes as the beginning of a sentence: with a capital letter, but never in a node's name."""
    kind = "" if not nodes[0].name else "Node " if len(nodes) == 1 else "Nodes "
    return f"{kind}{_names(nodes)}" if kind else _capital(_names(nodes))


def _called(node: NodeView) -> str:
    return node.name or f"the node at {node.address}"


def _are(nodes: Sequence[NodeView]) -> str:
    return "is" if len(nodes) == 1 else "are"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
