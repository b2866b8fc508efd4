"""Quality checks of readings: range, rate of change, flat line, saturation and staleness. Values are never changed.

`on_commit` runs in the Ingestor's writer thread, and `of` in the threads of the pages. `_lock` guards all attributes.
It is held while a commit is checked or one sensor is looked up.
Errors: SettingsError for an invalid [[limits]] table. Invalid limits of a node are ignored.

A node reports the limits of its sensors in HELLO, for example `"limits": {"low": -10, "high": 35, "jump": 0.5, "stuck":
3600, "rail": [-50, 279.68]}` with a sensor (docs/protocol.md). Limits in server.toml take precedence over these. They
are also needed for nodes that report none:

    [[limits]]
    node = "greenhouse"
    sensor = "temperature"
    low = 2
    every = 60

The checks, named by their quality flags:

    range    the value is below `low` or above `high`
    jump     it changed by more than `jump` per second since the previous value; a shorter time counts as one second
    stuck    it did not change for `stuck` seconds, although values arrived
    rail     it is at or beyond one end of the sensor's scale
    stale    there was no value for three intervals (`every`, or the node's own interval) plus five seconds, or plus the
             interval of the commits if that is longer

Values are checked after calibration. Limits in server.toml are for calibrated values, those of a node for raw values,
so the latter are converted.

Sensors without limits are not checked. Each sample is checked once, in the order of the commits.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import compress, islice, repeat
from operator import ne, sub
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.config import Option, matching, number, read_options
from pigeonpost.core.errors import SettingsError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.node_register import move_key
from pigeonpost.storage.models import EpochCommit
from protocol import NODE_NAME, NODE_NAME_TAKES, SENSOR_NAME, SENSOR_NAME_TAKES, Number

if TYPE_CHECKING:
    from pigeonpost.server.ingest import Ingestor
    from pigeonpost.server.node_status import NodeLink, NodeState
    from pigeonpost.storage.calibration import Timelines

KINDS = ("range", "jump", "stuck", "rail", "stale")
LATE_INTERVALS, LATE_S = 3, 5.0  # number of intervals, plus seconds, after which a value is late
_FLOAT_MAX = sys.float_info.max
_AT_LEAST_S = 1.0  # minimum time for the check `jump`: noise between samples of a fast node is not a fast change


def late_after_s(every_s: float, commit_s: float = 0.0) -> float:
    """Return the time without a new value in seconds after which a node, or a sensor, is late.

    Args:
        every_s: Interval between two values in seconds.
        commit_s: Interval between two commits in seconds, if samples count as received when they are committed.
    """
    return LATE_INTERVALS * every_s + max(LATE_S, commit_s)


class QualityFlag(NamedTuple):
    """Quality flag: a check that the current value has failed.

    Attributes:
        kind: One of KINDS.
        limit: The limit: a value for "range" and "jump", the end of the scale for "rail", seconds for "stuck" and
            "stale".
        found: The value for "range" and "rail", the change for "jump", seconds for "stuck" and "stale".
    """

    kind: str
    limit: float
    found: float


class JudgedValue(NamedTuple):
    """Result of the checks of one sensor.

    Attributes:
        findings: Current quality flags.
        counts: Number of values with each flag in this run, by kind; for "stale", the number of times that it was set.
        limits: Limits of the sensor.
    """

    findings: Sequence[QualityFlag]
    counts: Mapping[str, int]
    limits: Mapping[str, Any]


def _rail(value: Any) -> Sequence[float]:
    if not isinstance(value, list) or _reported_limits({"rail": value}) == {}:
        raise ValueError("takes the two ends of a scale, lower end first, such as [0, 1023]")
    return value


OPTIONS = (
    Option("node", matching(NODE_NAME, NODE_NAME_TAKES), None, "the node's name"),
    Option("sensor", matching(SENSOR_NAME, SENSOR_NAME_TAKES), None, "the sensor's name"),
    Option("low", number(-1e15, 1e15), None, "lowest value in the range"),
    Option("high", number(-1e15, 1e15), None, "highest value in the range"),
    Option("jump", number(1e-9, 1e15), None, "maximum change per second"),
    Option("stuck", number(1, 864_000), None, "time without any change, in seconds"),
    Option("rail", _rail, None, "ends of the scale, [low, high]"),
    Option(
        "every", number(0.01, 864_000), None, "expected interval of values, in seconds (default: the node's interval)"
    ),
)
Rules = Mapping[tuple[str, str], Mapping[str, Any]]


def read_rules(tables: Iterable[Mapping[str, Any]], where: str) -> Rules:
    """Return the limits in the [[limits]] `tables`, by (node, sensor).

    Raises:
        SettingsError: A table is invalid. The text begins with `where`.
    """
    rules: dict[tuple[str, str], Mapping[str, Any]] = {}
    for count, table in enumerate(tables, 1):
        location = f"{where}: [[limits]] {count}"
        chosen = {key: value for key, value in read_options(table, OPTIONS, location).items() if value is not None}
        try:
            key = chosen.pop("node"), chosen.pop("sensor")
        except KeyError as error:
            raise SettingsError(f"{location}: {error.args[0]} is missing") from None
        if not chosen:
            raise SettingsError(f"{location}: no limit is set; set low, high, jump, stuck, rail or every")
        if key in rules:
            raise SettingsError(f"{location}: a table for {key[1]} of {key[0]} exists already; put both into one")
        if chosen.get("low", -math.inf) > chosen.get("high", math.inf):
            raise SettingsError(f"{location}: low is above high")
        rules[key] = chosen
    return rules


def _reported_limits(reported: Any) -> dict[str, Any]:
    """Return the valid limits among those that a node reports for a sensor, which are untrusted input."""
    if not isinstance(reported, dict):
        return {}
    limits: dict[str, Any] = {key: reported[key] for key in ("low", "high") if _is_finite(reported.get(key))}
    limits |= {key: reported[key] for key in ("jump", "stuck") if _is_finite(reported.get(key)) and reported[key] > 0}
    rail = reported.get("rail")
    if isinstance(rail, list) and len(rail) == 2 and all(map(_is_finite, rail)) and rail[0] < rail[1]:
        limits["rail"] = rail
    return limits


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e300


class QualityChecks:
    """Quality flags of all sensors that have limits, and their counts in this run."""

    def __init__(
        self,
        links: Sequence[NodeLink],
        rules: Rules | None = None,
        timelines_of: Callable[[str], Timelines] = lambda node: {},
        ingestor: Ingestor | None = None,
    ) -> None:
        """Initialise the checks.

        Args:
            links: Links to the nodes. The sequence may grow.
            rules: Limits in the settings, for calibrated values.
            timelines_of: Function that returns the calibrated sensors of a node, whose own limits are for raw values.
            ingestor: The ingestor. Its newest values show which data is late: this is counted, but does not change the
                current flags. By its clock values become stale. None if all data is in order; then values become stale
                by their dates.
        """
        self._newest = ingestor.newest if ingestor else None
        self._clock = ingestor.clock if ingestor else None
        self._commit_s = ingestor.commit_s if ingestor else 0.0
        self._links = links
        self._timelines_of = timelines_of
        self._rules: dict[str, dict[str, Mapping[str, Any]]] = {}
        for (node, sensor), limits in (rules or {}).items():
            self._rules.setdefault(node, {})[sensor] = limits
        self._lock = threading.Lock()
        self._nodes: dict[str, _Node] = {}

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Check the samples in `epoch_commits`. Called with each commit (see Ingestor.subscribe)."""
        with self._lock:
            for epoch_commit in epoch_commits:
                node = self._node(epoch_commit.node)
                if node is None or not node.tracks:
                    continue
                now_s = self._clock.monotonic() if self._clock else 0.0
                for item in epoch_commit.items:
                    if isinstance(item, SampleBatch):
                        node.check(epoch_commit.epoch, item, now_s, self._late_sensors(epoch_commit.node, item))

    def _late_sensors(self, node: str, samples: SampleBatch) -> Collection[str]:
        """Return the sensors with newer values from an earlier commit than those of `samples`."""
        if self._newest is None:
            return ()
        latest, received_s = self._newest.samples.get(node), self._newest.received_s.get(node, 0.0)
        if latest is None:
            return samples.names
        if not latest.older and latest.received_s == received_s:
            return ()
        return [name for name in samples.names if (latest.of(name).received_s or 0.0) < received_s]

    def on_rename(self, node: str, new: str) -> None:
        """Assign the limits and flags of `node` to its new name `new`."""
        with self._lock:
            move_key(self._rules, node, new)
            move_key(self._nodes, node, new)

    def on_calibration(self, node: str) -> None:
        """Convert the limits of `node` again, and compare its next values only with each other."""
        with self._lock:
            if node in self._nodes:
                self._nodes[node].reported = None
                for track in self._nodes[node].tracks.values():
                    track.value, track.findings = None, []

    def of(self, node: str, sensor: str, now_ms: int, is_expected: bool = True) -> JudgedValue | None:
        """Return the result of the checks of a sensor; None if the sensor has no limits.

        Args:
            node: Name of the node.
            sensor: Name of the sensor.
            now_ms: Current time by the node's clock, in ms since 1970 (UTC). It is used without a `clock` only.
            is_expected: False if the node need not send samples now, so that nothing is stale.
        """
        with self._lock:
            entry = self._node(node)
            track = entry.tracks.get(sensor) if entry else None
            if entry is None or track is None:
                return None
            if self._clock is not None:
                now_ms = track.time_ms + round(1000 * (self._clock.monotonic() - track.received_s))
            track.update_stale(now_ms, entry.late_s(track, self._commit_s) if is_expected else None)
            return JudgedValue(list(track.findings), dict(track.counts), track.limits)

    def sensors(self, node: str) -> list[str]:
        """Return the names of the sensors of `node` that have limits."""
        with self._lock:
            entry = self._node(node)
            return list(entry.tracks) if entry else []

    def _node(self, name: str) -> _Node | None:
        """Return the tracks of a node, updated to its current limits; None if it has no link and no limits."""
        node = self._nodes.get(name)
        if node is None or node.state is None or node.state.name != name or not node.state.sensors:
            states = [link.state for link in self._links if link.state.name == name]
            # The node may have two links and use only one of them.
            state = next((state for state in states if state.sensors), states[0] if states else None)
            if state is None and name not in self._rules:
                return None
            if node is None:
                self._remove_renamed()
                node = self._nodes[name] = _Node(self._rules.get(name, {}))
            node.state = state
        if node.state is not None and node.reported is not node.state.sensors:
            node.update_limits(node.state.sensors, self._timelines_of(name))
        return node

    def _remove_renamed(self) -> None:
        """Remove entries of former names if there are many: a node may report a new name at each connection."""
        if len(self._nodes) > len(self._links) + len(self._rules):
            for name, node in list(self._nodes.items()):
                if name not in self._rules and (node.state is None or node.state.name != name):
                    del self._nodes[name]


class _Node:
    """Sensors with limits of one node."""

    def __init__(self, rules: Mapping[str, Mapping[str, Any]]) -> None:
        self.state: NodeState | None = None
        self.reported: object = None  # the NodeState.sensors from which the limits were read
        self.tracks = {sensor: _Track(limits) for sensor, limits in rules.items()}
        self._rules = rules

    def update_limits(self, sensors: Sequence[Mapping[str, Any]], timelines: Timelines) -> None:
        """Replace the limits by those that the node reports now, and keep the counts."""
        limits = {sensor["name"]: _reported_limits(sensor.get("limits")) for sensor in sensors}
        for sensor in timelines.keys() & limits.keys():
            limits[sensor] = timelines[sensor].latest.limits(limits[sensor])
        for sensor, rule in self._rules.items():  # these take precedence over the node's limits
            limits[sensor] = {**limits.get(sensor, {}), **rule}
        before, self.tracks, self.reported = self.tracks, {}, sensors
        for sensor, sensor_limits in limits.items():
            if sensor_limits:
                track = self.tracks[sensor] = before.get(sensor) or _Track(sensor_limits)
                track.limits = sensor_limits

    def late_s(self, track: _Track, commit_s: float = 0.0) -> float | None:
        """Return the maximum age of a value in seconds; None if the interval is unknown. See `late_after_s`."""
        every_s: float | None = track.limits.get("every") or (self.state.every_s if self.state else None)
        return None if every_s is None else late_after_s(every_s, commit_s)

    def check(self, epoch: str, samples: SampleBatch, now_s: float, late: Collection[str]) -> None:
        for name, column in samples.values.items():
            track = self.tracks.get(name)
            if track is None:
                continue
            if name in late:
                aside = _Track(track.limits)
                aside.counts = track.counts
                aside.check(column, epoch, samples, None)
                continue
            track.check(column, epoch, samples, self.late_s(track))
            if any(value is not None for value in reversed(column)):
                track.received_s = now_s - track.later_ms(samples) / 1000


class _Track:
    """Last value and current quality flags of one sensor."""

    __slots__ = (
        "_bounds", "_limits", "counts", "epoch", "findings", "received_s", "same_ms", "time_ms", "up_ms", "value"
    )  # fmt: skip

    def __init__(self, limits: Mapping[str, Any]) -> None:
        self.limits = limits
        self.counts = dict.fromkeys(KINDS, 0)
        self.findings: list[QualityFlag] = []
        self.value: Number | None = None  # last value that is not None
        self.epoch, self.time_ms, self.up_ms = "", 0, 0  # epoch and times of its sample
        self.received_s = 0.0  # monotonic time at which it was received
        self.same_ms = 0  # time for which the value has not changed, in ms

    @property
    def limits(self) -> Mapping[str, Any]:
        """Current limits."""
        return self._limits

    @limits.setter
    def limits(self, limits: Mapping[str, Any]) -> None:
        self._limits = limits
        ends = (limits.get("low", -math.inf), limits.get("high", math.inf), *limits.get("rail", (-math.inf, math.inf)))
        self._bounds = (*ends, limits.get("jump"), limits.get("stuck"))

    def check(self, column: Sequence[Number | None], epoch: str, samples: SampleBatch, late_s: float | None) -> None:
        """Check the values `column` of this sensor in consecutive samples.

        The first value is compared with the previous one. The others are checked individually only if one of them
        may exceed a limit or is missing. Otherwise a few operations on the complete column are enough.
        """
        times, ups = samples.times, samples.ups
        self._check_value(column[0], epoch, times[0], ups[0] if ups else 0, late_s)
        if len(column) == 1:
            return
        if self._are_in_limits(column, times, ups, late_s):
            self.value, self.epoch, self.findings = column[-1], epoch, []
            self.time_ms, self.up_ms = times[-1], ups[-1] if ups else 0
            return
        for value, time_ms, up_ms in islice(zip(column, times, ups or repeat(0)), 1, None):
            self._check_value(value, epoch, time_ms, up_ms, late_s)

    def later_ms(self, samples: SampleBatch) -> int:
        """Return the time from the last value to the last of `samples`, which contain it, in ms."""
        stamps, stamp = (samples.ups, self.up_ms) if samples.ups else (samples.times, self.time_ms)
        return max(0, stamps[-1] - stamp)

    def _are_in_limits(
        self, column: Sequence[Number | None], times: Sequence[int], ups: Sequence[int], late_s: float | None
    ) -> bool:
        """Return True if it is certain that none of these values after the first one exceeds a limit.

        In this case `same_ms` is updated.
        """
        if column[0] is None or None in column:
            return False
        values: Sequence[Number] = column  # type: ignore[assignment]
        least, most = min(values), max(values)
        low, high, rail_low, rail_high, jump, stuck = self._bounds
        if not (low <= least and most <= high and rail_low < least and most < rail_high):
            return False
        is_gradual = jump is None or float(most) - float(least) <= jump * _AT_LEAST_S
        if is_gradual and stuck is None:
            return True
        # Differences of `ups` are reliable times between values. Samples without them only have `times`.
        stamps_ms = ups if ups and min(ups) != max(ups) else times
        intervals_ms = list(map(sub, islice(stamps_ms, 1, None), stamps_ms))
        shortest_ms = min(intervals_ms)
        if shortest_ms <= 0:
            return False
        if not is_gradual:
            steepest = max(map(abs, map(sub, map(float, islice(values, 1, None)), map(float, values))))
            if not steepest <= jump * max(shortest_ms / 1000, _AT_LEAST_S):
                return False
        return stuck is None or self._is_changing(values, stamps_ms, max(intervals_ms), stuck, late_s)

    def _is_changing(
        self, values: Sequence[Number], stamps_ms: Sequence[int], longest_ms: int, stuck: float, late_s: float | None
    ) -> bool:
        """Return True if it is certain that no value is unchanged for `stuck` seconds, for `_are_in_limits`.

        `longest_ms` is the longest time between two values.
        """
        if longest_ms / 1000 > (late_s or stuck):
            return False
        changes = list(compress(range(1, len(values)), map(ne, islice(values, 1, None), values)))
        first_ms = self.same_ms + stamps_ms[changes[0] - 1 if changes else -1] - stamps_ms[0]
        most = max(map(sub, [*changes, len(values)], [0, *changes])) - 1  # consecutive steps without a change
        if max(first_ms, most * longest_ms) >= stuck * 1000:
            return False
        self.same_ms = stamps_ms[-1] - stamps_ms[changes[-1]] if changes else first_ms
        return True

    def _check_value(self, value: Number | None, epoch: str, time_ms: int, up_ms: int, late_s: float | None) -> None:
        """Check one value."""
        if value is None:
            self._process_failure(epoch, time_ms, up_ms, late_s)
            return
        low, high, rail_low, rail_high, jump, stuck = self._bounds
        findings = []
        if not low <= value <= high:
            findings.append(QualityFlag("range", low if value < low else high, value))
        if jump is not None or stuck is not None:
            passed_ms = self._since(epoch, time_ms, up_ms)
            if jump is not None and passed_ms is not None and self.value is not None:
                change = float(value) - float(self.value)
                if abs(change) > _FLOAT_MAX:
                    change = math.copysign(_FLOAT_MAX, change)
                if abs(change) > jump * max(passed_ms / 1000, _AT_LEAST_S):
                    findings.append(QualityFlag("jump", jump, change))
            if stuck is not None and self._is_stuck(value, passed_ms, stuck, late_s):
                findings.append(QualityFlag("stuck", stuck, self.same_ms / 1000))
        if not rail_low < value < rail_high:
            findings.append(QualityFlag("rail", rail_low if value <= rail_low else rail_high, value))
        self.value, self.epoch, self.time_ms, self.up_ms, self.findings = value, epoch, time_ms, up_ms, findings
        for finding in findings:
            self.counts[finding.kind] += 1

    def update_stale(self, now_ms: int, late_s: float | None) -> None:
        """Update the flag `stale` for the time `now_ms`."""
        if self.value is not None:
            self._find_stale((now_ms - self.time_ms) / 1000, late_s)

    def _process_failure(self, epoch: str, time_ms: int, up_ms: int, late_s: float | None) -> None:
        """Process a sample in which the sensor failed: clear all flags except `stale`, which is updated."""
        self.findings = [finding for finding in self.findings if finding.kind == "stale"]
        passed_ms = self._since(epoch, time_ms, up_ms)
        if passed_ms is not None:
            self._find_stale(passed_ms / 1000, late_s)

    def _since(self, epoch: str, time_ms: int, up_ms: int) -> int | None:
        """Return the time from the last value to this sample in ms; None if it is unknown.

        Within one epoch the uptime is used, because it never steps. Between epochs only the wall-clock times are known.
        """
        if self.value is None:
            return None
        passed_ms = up_ms - self.up_ms if epoch == self.epoch else 0
        if passed_ms <= 0:
            passed_ms = time_ms - self.time_ms
        return passed_ms if passed_ms > 0 else None

    def _is_stuck(self, value: Number, passed_ms: int | None, stuck: float, late_s: float | None) -> bool:
        if value != self.value or (passed_ms is not None and passed_ms / 1000 > (late_s or stuck)):
            self.same_ms = 0  # also after a pause in the values, during which the value may have changed
            return False
        self.same_ms += passed_ms or 0
        return self.same_ms >= stuck * 1000

    def _find_stale(self, seconds: float, late_s: float | None) -> None:
        """Set or clear the flag `stale`. It is counted when it is set."""
        was = any(finding.kind == "stale" for finding in self.findings)
        self.findings = [finding for finding in self.findings if finding.kind != "stale"]
        if late_s is not None and seconds > late_s:
            self.findings.append(QualityFlag("stale", late_s, seconds))
            self.counts["stale"] += not was
