"""Builder of the status snapshot: state of the nodes and their sensors, and a summary in one sentence.

Any thread may use it. `_lock` guards the last snapshot. It is held while a new one is made, so that many simultaneous
requests share one. Errors: NotStored. If the store is damaged, the snapshot contains the data known before.

A snapshot contains the current state of every node. The rest, with the last day of its sensors, is made only for the
nodes that a page shows. With thousands of nodes, the front page shows fifty.

The content of STATUS is untrusted input: a field that should be a number is ignored if it is not one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.clock import FIRST_MS
from pigeonpost.core.errors import DiskError, NotStored, StoreDamaged
from pigeonpost.core.format import number, with_unit
from pigeonpost.server.flag_words import flag_words
from pigeonpost.server.latest_samples import LatestSample
from pigeonpost.server.liveness import wait_s
from pigeonpost.server.recent_cache import RecentColumns
from pigeonpost.storage.calibration import calibrated_units
from pigeonpost.views.context import WebContext
from pigeonpost.views.failures import FailureTracker
from pigeonpost.views.lazy import LazyItems, LazyWhole
from pigeonpost.views.models import UNWATCHED, NodeNow, NodeView, SensorFault, SensorView, StatusSnapshot
from pigeonpost.views.node_now import AHEAD_MS, Moment, failing, is_out_of_range, node_now
from pigeonpost.views.sensor_views import sensor_views
from pigeonpost.views.summary import summary
from protocol import Number, Sample

if TYPE_CHECKING:
    from pigeonpost.alerts.rules import Rule
    from pigeonpost.server.node_status import NodeLink, NodeState
    from pigeonpost.server.quality import JudgedValue
    from pigeonpost.storage.models import EpochCommit

log = logging.getLogger(__name__)

FRESH_S = 1.0  # a new snapshot is made after this time, or after a commit
MANY_NODES = 200  # with more nodes, counts are read from the store only every COUNTS_S, since each node takes 20 µs
COUNTS_S = 10.0
_NEVER = float("-inf")
_FAR_MS = 1 << 52  # a time after all samples
_DAY_MS = 86_400_000


class _Known(NamedTuple):
    """Cached state of a reporting node, with the input from which it was made and the end of its validity."""

    signature: tuple[object, ...]
    until_s: float
    now: NodeNow


class SnapshotBuilder:
    """Builder of status snapshots, with a cache of the last one."""

    def __init__(self, app: WebContext, day: Callable[[str, int | None, int, Iterable[str]], RecentColumns]) -> None:
        """Create a builder without a snapshot.

        Args:
            app: The parts of the server.
            day: Function that returns the last day of a node, as RecentCache.day.
        """
        self._app = app
        self._day = day
        self._lock = threading.Lock()
        self._snapshot: StatusSnapshot | None = None
        self._made_s = 0.0
        self._stored: dict[str, dict[str, Any]] = {}  # counts of each node from the store
        self._stored_s = _NEVER  # time at which these counts were read
        # Last stored sample of each node without one in this run.
        self._last: dict[str, tuple[object, LatestSample]] = {}
        self._started_s, self._started_ms = app.clock.monotonic(), app.clock.wall_ms()
        self._known: dict[str, _Known] = {}  # cached states of reporting nodes
        self._failures = FailureTracker(app.store)
        self.changes = 0  # incremented by every change that a snapshot may show

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Discard the snapshot, since the samples of `epoch_commits` were committed."""
        self._failures.on_commit(epoch_commits)
        self._discard()

    def invalidate(self) -> None:
        """Discard the snapshot, so that the next one shows a change."""
        self._stored_s, self._known, self._last = _NEVER, {}, {}
        self._discard()

    def _discard(self) -> None:
        self.changes += 1
        self._made_s = 0.0

    def snapshot(self) -> StatusSnapshot:
        """Return the last snapshot, or a new one if it is older than FRESH_S or was discarded."""
        with self._lock:
            now_s = self._app.clock.monotonic()
            if self._snapshot is None or not 0 <= now_s - self._made_s < FRESH_S:
                self._made_s = now_s  # before reading, so that a concurrent change is not overlooked
                self._snapshot = self._take(now_s)
            return self._snapshot

    def _take(self, now_s: float) -> StatusSnapshot:
        app, now_ms = self._app, self._app.clock.wall_ms()
        if len(self._stored) <= MANY_NODES or self._stored_s == _NEVER:
            self._read_counts(now_s)
        elif now_s - self._stored_s >= COUNTS_S:
            self._stored_s = now_s
            threading.Thread(target=self._read_counts_aside, args=(now_s,), name="counts", daemon=True).start()
        moment = Moment(now_ms, now_s, self._started_s, app.ingestor.commit_s)
        nodes = [self._now(link.state.name, link.state, moment) for link in _one_each(app.links)]
        present = {node.name for node in nodes}
        nodes += [self._now(name, None, moment) for name in self._stored if name not in present]
        if len(self._known) > len(nodes):  # some nodes were renamed
            self._known = {name: known for name, known in self._known.items() if name in present}
        faults = [fault for fault in (app.ingestor.fault, app.csv.fault) if fault]
        faults += [f"{subject}: {text}" for subject, text in app.faults.present().items()]
        level, sentence = summary(nodes, faults, now_ms)
        watched = [node.last_ms for node in nodes if node.last_ms is not None and node.condition not in UNWATCHED]
        return StatusSnapshot(
            now_ms, sentence, level, max(watched, default=None), faults,
            nodes=LazyItems(len(nodes), lambda place: self._node(nodes[place], now_ms)),
            summaries=nodes,
            places={node.name: place for place, node in enumerate(nodes) if node.name},
        )  # fmt: skip

    def _read_counts(self, now_s: float) -> None:
        try:
            self._stored = {about["name"]: about for about in self._app.store.nodes()}
            self._stored_s = now_s
        except (StoreDamaged, DiskError) as error:  # the pages show this fault, and the earlier counts
            log.debug("the page shows the earlier counts: %s", error)

    def _read_counts_aside(self, now_s: float) -> None:
        """Read the counts in a separate thread, so that no page waits for them."""
        try:
            self._read_counts(now_s)
        except NotStored as error:  # the pages show the earlier counts
            log.debug("the page shows the earlier counts: %s", error)

    # -------------------------------------------------------------------------------------------- of every node

    def _now(self, name: str, state: NodeState | None, moment: Moment) -> NodeNow:
        """Return the state of a node: the cached one if its input has not changed."""
        latest, received_s = self._latest(name, moment.now_ms), self._app.ingestor.received_s.get(name)
        known, signature = None, None
        if state is not None and name and received_s is not None:
            # The last item changes if this server's clock is set.
            signature = (*_signature(state, latest), received_s, round(moment.now_ms / 1000 - moment.now_s))
            known = self._known.get(name)
        if known is not None and known.signature == signature and moment.now_s <= known.until_s:
            return known.now
        retired_ms = self._app.ingestor.names.retired_ms(name)
        now = node_now(name, state, latest, received_s, retired_ms, moment)
        if now.condition != "reporting" or state is None:
            return now
        troubles, has_limits = self._troubles(now, state, moment.now_ms)
        now = now._replace(troubles=troubles)
        # With limits, or values of several messages, a single sensor may become stale without a new sample.
        is_steady = not has_limits and not (latest is not None and latest.older)
        if is_steady and signature is not None and received_s is not None:
            self._known[name] = _Known(signature, received_s + wait_s(state, moment.commit_s), now)
        return now

    def _troubles(self, now: NodeNow, state: NodeState, now_ms: int) -> tuple[list[SensorFault], bool]:
        """Return the faults of the sensors of a reporting node, and True if any sensor has limits."""
        found = [SensorFault(now.name, self._title(now.name, sensor), fault) for sensor, fault in failing(now)]
        has_limits = False
        units = {sensor["name"]: str(sensor.get("unit", "")) for sensor in state.sensors}
        units = calibrated_units(units, self._app.timelines(now.name))
        for name, value in now.sample.values.items() if now.sample else ():
            judged = self._judged(now, name, now_ms)
            has_limits = has_limits or judged is not None
            if value is not None:
                flags = judged.findings if judged else ()
                unit = units.get(name, "")
                words = [flag_words(flag, unit) for flag in flags if is_out_of_range(flag)]
                words = words or self._alerts(now.name, name, value, unit)
                found += [SensorFault(now.name, self._title(now.name, name), text) for text in words]
        return found, has_limits

    def _alerts(self, node: str, sensor: str, value: Number, unit: str) -> list[str]:
        """Return one text per alert rule whose condition a value meets, such as `above 40 °C`."""
        return [
            with_unit(f"above {number(rule.above)}" if rule.above is not None and value > rule.above
                      else f"below {number(rule.below)}", unit)
            for rule in self._app.rules
            if rule.sensor == sensor and self._is_about(rule, node) and rule.is_met(value)
        ]  # fmt: skip

    def _is_about(self, rule: Rule, node: str) -> bool:
        return rule.node in ("", node) or self._app.ingestor.names.current(rule.node) == node

    def _judged(self, now: NodeNow, sensor: str, now_ms: int) -> JudgedValue | None:
        quality, state = self._app.quality, now.state
        if quality is None:
            return None
        node_ms = now_ms + ((state.offset_ms if state else None) or 0)
        return quality.of(now.name, sensor, node_ms, state is not None and state.on is not False)

    def _title(self, node: str, sensor: str) -> str:
        return self._app.ingestor.names.label(node, sensor) or sensor.replace("_", " ")

    def _latest(self, name: str, now_ms: int) -> LatestSample | None:
        """Return the newest values received; after a restart the stored sample with the latest time.

        A sample whose time is in the future was dated by a wrong clock, so an earlier one is preferred.
        """
        latest: LatestSample | None = self._app.ingestor.latest.get(name)
        if latest is not None:
            return latest
        about, known = self._stored.get(name, {}), self._last.get(name)
        key = about.get("last_ms"), about.get("samples")  # an import or another server may change them
        if key[0] is not None and (known is None or known[0] != key):
            try:
                points = self._app.store.points(name, FIRST_MS, now_ms + AHEAD_MS, 1)
                for point in points or self._app.store.points(name, FIRST_MS, _FAR_MS, 1):
                    sample = Sample(point.seq, point.time_ms, 0, point.values, {}, point.clock)
                    stored_ms = now_ms if point.time_ms <= now_ms else self._started_ms
                    self._last[name] = key, LatestSample(sample, {}, stored_ms)
            except (StoreDamaged, DiskError) as error:
                log.debug("the last sample of %s cannot be read: %s", name, error)
        return self._last[name][1] if name in self._last else None

    # ------------------------------------------------------------------------------- of a node on the page

    def _node(self, now: NodeNow, now_ms: int) -> NodeView:
        state, about = now.state, self._stored.get(now.name, {})
        details: Mapping[str, Any] = state.details if state else {}
        return NodeView(
            name=now.name, address=now.address, state=now.condition, words=now.words, since_ms=now.since_ms,
            connected=now.is_connected,
            on=state.on if state else None,
            every_s=state.every_s if state else None, last_ms=now.last_ms, age_s=now.age_s(now_ms),
            received_ms=now.received_ms, checked_ms=state.checked_ms if state else None,
            held=_count(details, "held"), slots=_count(details, "slots"),
            samples=about.get("samples", 0), missing=about.get("missing", 0),
            shift_ms=state.offset_ms if state else None,
            round_trip_ms=state.round_trip_ms if state else None, version=str(details.get("version", ""))[:20],
            last_sent=(state.last_sent or "") if state else "", machine=_machine(details),
            warnings=now.warnings,
            certificate=state.fingerprint if state else "",
            sensors=LazyWhole(lambda: self._sensors(now, now_ms)),
            readings=LazyWhole(lambda: self._readings(now, now_ms)),
            waiting=_waiting(now, details), troubles=now.troubles,
        )  # fmt: skip

    def _sensors(self, now: NodeNow, now_ms: int) -> list[SensorView]:
        reported = [sensor["name"] for sensor in (now.state.sensors if now.state else ())]
        about = self._stored.get(now.name, {})
        units: Mapping[str, str] = about.get("sensors", {})
        try:
            day = self._day(now.name, about.get("first_ms"), now_ms, dict.fromkeys([*reported, *units]))
        except (StoreDamaged, DiskError) as error:
            log.debug("the last day of %s cannot be read: %s", now.name, error)
            day = _no_day(now_ms)
        kept = {name for name, columns in day.columns.items() if columns}
        return [
            sensor._replace(since_ms=self._failing_since_ms(sensor, now))
            if sensor.value is None and now.sample is not None else sensor
            for sensor in self._completed(sensor_views(now, units, day, kept, now_ms), now, now_ms)
        ]  # fmt: skip

    def _readings(self, now: NodeNow, now_ms: int) -> list[SensorView]:
        units: Mapping[str, str] = self._stored.get(now.name, {}).get("sensors", {})
        kept = {name for name, value in now.sample.values.items() if value is not None} if now.sample else ()
        return list(self._completed(sensor_views(now, units, _no_day(now_ms), kept, now_ms), now, now_ms))

    def _completed(self, sensors: Iterable[SensorView], now: NodeNow, now_ms: int) -> Iterator[SensorView]:
        """Yield the sensors with labels, calibrations and quality flags."""
        timelines = self._app.timelines(now.name)
        for sensor in sensors:
            labelled = sensor._replace(label=self._app.ingestor.names.label(now.name, sensor.name))
            if sensor.name in timelines:
                timeline = timelines[sensor.name]
                labelled = labelled._replace(unit=timeline.unit or sensor.unit, calibration=timeline.at(now_ms))
            yield self._flagged(labelled, now, now_ms)

    def _flagged(self, sensor: SensorView, now: NodeNow, now_ms: int) -> SensorView:
        judged = self._judged(now, sensor.name, now_ms)
        if judged is None:
            return sensor
        texts = {flag.kind: flag_words(flag, sensor.unit) for flag in judged.findings}
        return sensor._replace(flag_texts=texts, counts=judged.counts, limits=judged.limits, flags=judged.findings)

    def _failing_since_ms(self, sensor: SensorView, now: NodeNow) -> int | None:
        try:
            since_ms = self._failures.since_ms(now.name, sensor.name)
        except (StoreDamaged, DiskError) as error:
            log.debug("the start of the failure of %s of %s cannot be read: %s", sensor.name, now.name, error)
            return None
        return None if since_ms is None else since_ms - ((now.state.offset_ms if now.state else None) or 0)


def _no_day(now_ms: int) -> RecentColumns:
    return RecentColumns(now_ms, _DAY_MS, _DAY_MS, {})


def _signature(state: NodeState, latest: LatestSample | None) -> tuple[object, ...]:
    """Return all input from which the state of a node is made, except the time."""
    return (
        latest, state.connected, state.awaited_s, state.since_ms, state.on, state.every_s, state.offset_ms,
        state.fault, state.calls_in, state.takes_orders, state.address, state.sensors, state.warnings,
    )  # fmt: skip


def _one_each(links: Sequence[NodeLink]) -> list[NodeLink]:
    """Return one link per node: a connected one if possible, and one that can ask the node if several are connected."""
    best: dict[object, NodeLink] = {}
    for link in links:
        name = link.state.name or id(link)  # a node that was not reached yet has no name
        other = best.get(name)
        if other is None or _rank(link.state) > _rank(other.state):
            best[name] = link
    return list(best.values())


def _rank(state: NodeState) -> tuple[bool, bool]:
    return state.connected, not state.calls_in


def _count(details: Mapping[str, Any], key: str) -> int | None:
    value = details.get(key)
    return value if type(value) is int and value >= 0 else None


def _waiting(now: NodeNow, details: Mapping[str, Any]) -> int | None:
    """Return the number of unacknowledged samples in a node's outbox, or None if it is unknown.

    A node sends its oldest sample first. If its last stored sample is not late, no sample is waiting, although an older
    STATUS may contain another number. Of a STATUS that is older than the last sample, the number is unknown.
    """
    if now.state is None or not now.state.connected or _count(details, "held") is None:
        return None
    checked_ms, received_ms = now.state.checked_ms, now.received_ms
    if now.is_late and checked_ms is not None and received_ms is not None and checked_ms < received_ms:
        return None
    return 0 if not now.is_late else _count(details, "waiting")


def _machine(details: Mapping[str, Any]) -> dict[str, float]:
    """Return the reported values of a node's computer that are numbers."""
    reported = details.get("machine")
    reported = reported if isinstance(reported, dict) else {}
    known = [(name, reported.get(name)) for name in ("cpu_temperature", "load", "memory_free", "disk_free")]
    return {name: value for name, value in known if isinstance(value, int | float) and -1000 < value < 1e12}
