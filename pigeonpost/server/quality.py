"""Quality checks of readings: range, rate of change, flat line, saturation, staleness. Values are never changed.

Runs in any thread: `on_commit` in the ingestor's writer, `of` in those of the pages. `_lock` guards all that is kept,
  and is held while a commit is checked, or one sensor looked up.
Errors: SettingsError for a [[limits]] table; none for what a node tells, of which only numbers are taken that are some.

A node tells the limits of its sensors in HELLO, as `"limits": {"low": -10, "high": 35, "jump": 0.5, "stuck": 3600,
"rail": [-50, 279.68]}` with a sensor (docs/protocol.md). Where it cannot, or the server knows better, server.toml does:

    [[limits]]
    node = "greenhouse"
    sensor = "temperature"
    low = 2
    every = 60

    range    below `low` or above `high`
    jump     changed by more than `jump` a second since the value before; what lies closer together counts as a second
    stuck    not changed at all for `stuck` seconds in which there were values
    rail     at one end of what the sensor can show
    stale    no value for longer than three intervals and five seconds (`every`, or the node's own interval)

Nothing is done for sensors without limits. Samples are judged in the order in which they were committed, once each.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
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
    from pigeonpost.server.node_status import NodeLink, NodeState

KINDS = ("range", "jump", "stuck", "rail", "stale")
LATE_INTERVALS, LATE_S = 3, 5.0  # what is older than so many intervals and seconds is late
_FLOAT_MAX = sys.float_info.max
_AT_LEAST_S = 1.0  # for a jump: noise between samples of a fast node is no fast change


class QualityFlag(NamedTuple):
    """One check that the present value does not pass.

    kind   one of KINDS
    limit  which one it is over: the limit itself, of a rail the end that was reached; seconds, for stuck and stale
    found  what was found in its place: the value; the change; seconds
    """

    kind: str
    limit: float
    found: float


class JudgedValue(NamedTuple):
    """A sensor with limits: its present flags, how often each was set in this run, and the limits."""

    findings: Sequence[QualityFlag]
    counts: Mapping[str, int]
    limits: Mapping[str, Any]


def _rail(value: Any) -> Sequence[float]:
    if not isinstance(value, list) or _limits_told({"rail": value}) == {}:
        raise ValueError("takes the two ends of a scale, the lower first, as [0, 1023]")
    return value


OPTIONS = (
    Option("node", matching(NODE_NAME, NODE_NAME_TAKES), None, "the node's name"),
    Option("sensor", matching(SENSOR_NAME, SENSOR_NAME_TAKES), None, "the sensor's name"),
    Option("low", number(-1e15, 1e15), None, "less is out of range,"),
    Option("high", number(-1e15, 1e15), None, "and so is more than this"),
    Option("jump", number(1e-9, 1e15), None, "the most that it changes in a second"),
    Option("stuck", number(1, 864_000), None, "seconds without any change"),
    Option("rail", _rail, None, "the ends of the scale, [low, high]"),
    Option("every", number(0.01, 864_000), None, "seconds in which a value is expected, where the node's differ"),
)
Rules = Mapping[tuple[str, str], Mapping[str, Any]]


def read_rules(tables: Iterable[Mapping[str, Any]], where: str) -> Rules:
    """The [[limits]] tables, by node and sensor. Raises SettingsError, which begins with `where`."""
    rules: dict[tuple[str, str], Mapping[str, Any]] = {}
    for count, table in enumerate(tables, 1):
        here = f"{where}: [[limits]] {count}"
        chosen = {key: value for key, value in read_options(table, OPTIONS, here).items() if value is not None}
        try:
            key = chosen.pop("node"), chosen.pop("sensor")
        except KeyError as error:
            raise SettingsError(f"{here}: {error.args[0]} is missing: whose limits are these?") from None
        if not chosen:
            raise SettingsError(f"{here}: no limit is set: low, high, jump, stuck, rail or every")
        if key in rules:
            raise SettingsError(f"{here}: there are limits for {key[1]} of {key[0]} already")
        if chosen.get("low", -math.inf) > chosen.get("high", math.inf):
            raise SettingsError(f"{here}: low is above high")
        rules[key] = chosen
    return rules


def _limits_told(told: Any) -> dict[str, Any]:
    """Return the limits that a node reports of a sensor, as far as they are valid: it is untrusted input."""
    if not isinstance(told, dict):
        return {}
    limits: dict[str, Any] = {key: told[key] for key in ("low", "high") if _is_finite(told.get(key))}
    limits |= {key: told[key] for key in ("jump", "stuck") if _is_finite(told.get(key)) and told[key] > 0}
    rail = told.get("rail")
    if isinstance(rail, list) and len(rail) == 2 and all(map(_is_finite, rail)) and rail[0] < rail[1]:
        limits["rail"] = rail
    return limits


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e300


class QualityChecks:
    """The present quality flags of every sensor that has limits, and the counts of this run."""

    def __init__(self, links: Sequence[NodeLink], rules: Rules | None = None) -> None:
        """links: everybody who is collected from; it may grow"""
        self._links = links
        self._rules: dict[str, dict[str, Mapping[str, Any]]] = {}
        for (node, sensor), limits in (rules or {}).items():
            self._rules.setdefault(node, {})[sensor] = limits
        self._lock = threading.Lock()
        self._nodes: dict[str, _Node] = {}

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Judge what was committed. For Ingestor.subscribe."""
        with self._lock:
            for epoch_commit in epoch_commits:
                node = self._node(epoch_commit.node)
                if node is None or not node.tracks:
                    continue
                for item in epoch_commit.items:
                    if isinstance(item, SampleBatch):
                        node.judge(epoch_commit.epoch, item)

    def on_rename(self, node: str, new: str) -> None:
        """Know the limits and flags of a node by its new name."""
        with self._lock:
            move_key(self._rules, node, new)
            move_key(self._nodes, node, new)

    def of(self, node: str, sensor: str, now_ms: int, is_expected: bool = True) -> JudgedValue | None:
        """How a sensor is; None for one without limits.

        now_ms       now, by the node's clock
        is_expected  False: the node need not send anything now, so that nothing of it is stale
        """
        with self._lock:
            its = self._node(node)
            track = its.tracks.get(sensor) if its else None
            if its is None or track is None:
                return None
            track.look(now_ms, its.late_s(track) if is_expected else None)
            return JudgedValue(list(track.findings), dict(track.counts), track.limits)

    def _node(self, name: str) -> _Node | None:
        """What is kept of a node, by the limits that are in force now. None: it has never had any."""
        node = self._nodes.get(name)
        if node is None or node.state is None or node.state.name != name or not node.state.sensors:
            states = [link.state for link in self._links if link.state.name == name]
            # It may be known by two transports, of which it has used one.
            state = next((state for state in states if state.sensors), states[0] if states else None)
            if state is None and name not in self._rules:
                return None
            if node is None:
                self._forget_renamed()
                node = self._nodes[name] = _Node(self._rules.get(name, {}))
            node.state = state
        if node.state is not None and node.told is not node.state.sensors:
            node.hear(node.state.sensors)
        return node

    def _forget_renamed(self) -> None:
        """Keep no more nodes than there are links and rules: a link's other end may take a new name each time."""
        if len(self._nodes) > len(self._links) + len(self._rules):
            for name, node in list(self._nodes.items()):
                if name not in self._rules and (node.state is None or node.state.name != name):
                    del self._nodes[name]


class _Node:
    """One node and its sensors that have limits."""

    def __init__(self, rules: Mapping[str, Mapping[str, Any]]) -> None:
        self.state: NodeState | None = None
        self.told: object = None  # its NodeState.sensors when the limits were read from it
        self.tracks = {sensor: _Track(limits) for sensor, limits in rules.items()}
        self._rules = rules

    def hear(self, sensors: Sequence[Mapping[str, Any]]) -> None:
        """Take the limits that it tells now; what was counted so far stays."""
        limits = {sensor["name"]: _limits_told(sensor.get("limits")) for sensor in sensors}
        for sensor, rule in self._rules.items():  # which go before what the node says
            limits[sensor] = {**limits.get(sensor, {}), **rule}
        before, self.tracks, self.told = self.tracks, {}, sensors
        for sensor, its in limits.items():
            if its:
                track = self.tracks[sensor] = before.get(sensor) or _Track(its)
                track.limits = its

    def late_s(self, track: _Track) -> float | None:
        """How old a value may be; None: nobody knows how often one is due."""
        every_s: float | None = track.limits.get("every") or (self.state.every_s if self.state else None)
        return None if every_s is None else LATE_INTERVALS * every_s + LATE_S

    def judge(self, epoch: str, samples: SampleBatch) -> None:
        for name, column in samples.values.items():
            track = self.tracks.get(name)
            if track is not None:
                track.judge(column, epoch, samples, self.late_s(track))


class _Track:
    """One sensor: its last value, and its present flags."""

    __slots__ = ("_bounds", "_limits", "counts", "epoch", "findings", "same_ms", "time_ms", "up_ms", "value")

    def __init__(self, limits: Mapping[str, Any]) -> None:
        self.limits = limits
        self.counts = dict.fromkeys(KINDS, 0)
        self.findings: list[QualityFlag] = []
        self.value: Number | None = None  # the last one that there was,
        self.epoch, self.time_ms, self.up_ms = "", 0, 0  # and where it stood
        self.same_ms = 0  # for how long it has been the same

    @property
    def limits(self) -> Mapping[str, Any]:
        """The limits in force."""
        return self._limits

    @limits.setter
    def limits(self, limits: Mapping[str, Any]) -> None:
        self._limits = limits
        ends = (limits.get("low", -math.inf), limits.get("high", math.inf), *limits.get("rail", (-math.inf, math.inf)))
        self._bounds = (*ends, limits.get("jump"), limits.get("stuck"))

    def judge(self, column: Sequence[Number | None], epoch: str, samples: SampleBatch, late_s: float | None) -> None:
        """Take the values of this sensor in samples that follow each other: `column` is theirs.

        The first is compared with the one before it. The others are looked at one by one only where one of them may be
        beyond a limit, or there is none.
        """
        times, ups = samples.times, samples.ups
        self._take(column[0], epoch, times[0], ups[0] if ups else 0, late_s)
        if len(column) == 1:
            return
        if self._are_good(column, times, ups, late_s):
            self.value, self.epoch, self.findings = column[-1], epoch, []
            self.time_ms, self.up_ms = times[-1], ups[-1] if ups else 0
            return
        for value, time_ms, up_ms in islice(zip(column, times, ups or repeat(0)), 1, None):
            self._take(value, epoch, time_ms, up_ms, late_s)

    def _are_good(
        self, column: Sequence[Number | None], times: Sequence[int], ups: Sequence[int], late_s: float | None
    ) -> bool:
        """Return True if it is certain that none of these values, after the first, is beyond a limit. The time for
        which the last one has been the same is right then.
        """
        if column[0] is None or None in column:
            return False
        values: Sequence[Number] = column  # type: ignore[assignment]
        least, most = min(values), max(values)
        low, high, rail_low, rail_high, jump, stuck = self._bounds
        if not (low <= least and most <= high and rail_low < least and most < rail_high):
            return False
        is_calm = jump is None or float(most) - float(least) <= jump * _AT_LEAST_S
        if is_calm and stuck is None:
            return True
        # The differences of `ups` are the seconds between values; of samples without them those of `times`.
        moments = ups if ups and min(ups) != max(ups) else times
        passed = list(map(sub, islice(moments, 1, None), moments))
        shortest_ms = min(passed)
        if shortest_ms <= 0:
            return False
        if not is_calm:
            steepest = max(map(abs, map(sub, map(float, islice(values, 1, None)), map(float, values))))
            if not steepest <= jump * max(shortest_ms / 1000, _AT_LEAST_S):
                return False
        return stuck is None or self._is_alive(values, moments, max(passed), stuck, late_s)

    def _is_alive(
        self, values: Sequence[Number], moments: Sequence[int], longest_ms: int, stuck: float, late_s: float | None
    ) -> bool:
        """Return True if it is certain that no value stays the same for `stuck` seconds. See _are_good.

        longest_ms  the longest time between two values
        """
        if longest_ms / 1000 > (late_s or stuck):
            return False
        changes = list(compress(range(1, len(values)), map(ne, islice(values, 1, None), values)))
        first_ms = self.same_ms + moments[changes[0] - 1 if changes else -1] - moments[0]
        most = max(map(sub, [*changes, len(values)], [0, *changes])) - 1  # steps in which nothing changes
        if max(first_ms, most * longest_ms) >= stuck * 1000:
            return False
        self.same_ms = moments[-1] - moments[changes[-1]] if changes else first_ms
        return True

    def _take(self, value: Number | None, epoch: str, time_ms: int, up_ms: int, late_s: float | None) -> None:
        """Take one value."""
        if value is None:
            self._miss(epoch, time_ms, up_ms, late_s)
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

    def look(self, now_ms: int, late_s: float | None) -> None:
        """It may have become stale since."""
        if self.value is not None:
            self._find_stale((now_ms - self.time_ms) / 1000, late_s)

    def _miss(self, epoch: str, time_ms: int, up_ms: int, late_s: float | None) -> None:
        """The sensor failed: what its last value was is no news, but it may have become stale."""
        self.findings = [finding for finding in self.findings if finding.kind == "stale"]
        passed_ms = self._since(epoch, time_ms, up_ms)
        if passed_ms is not None:
            self._find_stale(passed_ms / 1000, late_s)

    def _since(self, epoch: str, time_ms: int, up_ms: int) -> int | None:
        """From the last value to this sample, in ms; None where that is not known. Of one epoch both have a clock that
        never steps; between two there are only their dates, which may."""
        if self.value is None:
            return None
        passed_ms = up_ms - self.up_ms if epoch == self.epoch else 0
        if passed_ms <= 0:
            passed_ms = time_ms - self.time_ms
        return passed_ms if passed_ms > 0 else None

    def _is_stuck(self, value: Number, passed_ms: int | None, stuck: float, late_s: float | None) -> bool:
        if value != self.value or (passed_ms is not None and passed_ms / 1000 > (late_s or stuck)):
            self.same_ms = 0  # also after a pause without values, which says nothing of whether it would have changed
            return False
        self.same_ms += passed_ms or 0
        return self.same_ms >= stuck * 1000

    def _find_stale(self, seconds: float, late_s: float | None) -> None:
        """Counted when it begins."""
        was = any(finding.kind == "stale" for finding in self.findings)
        self.findings = [finding for finding in self.findings if finding.kind != "stale"]
        if late_s is not None and seconds > late_s:
            self.findings.append(QualityFlag("stale", late_s, seconds))
            self.counts["stale"] += not was
