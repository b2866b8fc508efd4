"""Conditions that are checked with each commit: values, failed sensors, undervoltage that a node samples, and gaps.

The Ingestor's writer thread calls `record`, and the Notifier's thread calls `look`, both with the lock of Alerts.

A sample that is older than the last one checked is ignored. The ages of samples are compared by the monotonic clock of
this server, so a correction of its date changes nothing. A node sends the samples of its outbox in order, so samples
after its clock was set back are recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pigeonpost.alerts.rules import VOLTAGE, Rule
from pigeonpost.alerts.states import AlertState, StateTable
from pigeonpost.core.format import counted, stamp, with_unit
from pigeonpost.link.samples import Gap, Number, SampleBatch
from pigeonpost.server.node_register import move_key

GAP_S = 3600.0  # a gap alert ends after this time without further gaps
_STEP_MS = 60_000  # a sample that follows the last one, but is older by more than this, was taken after a clock step
_SLACK_MS = 2  # rounding of the two clocks


class _Latest(NamedTuple):
    """Last value checked of one sensor.

    Attributes:
        taken_ms: Time at which it was taken, in ms of the server's monotonic clock; never later than its arrival.
        outbox: Outbox id of its node; empty if it was read from the store.
        epoch: Epoch of its sample.
        seq: Sequence number of its sample.
        arrived_s: Time of its arrival, by the server's monotonic clock.
    """

    taken_ms: int
    outbox: str
    epoch: str
    seq: int
    arrived_s: float

    def is_before(self, outbox: str, epoch: str, seq: int) -> bool:
        """Return True if a node sends sample `seq` of `epoch` after this one: an outbox is sent in its order."""
        return self.outbox in ("", outbox) and (epoch != self.epoch or seq > self.seq)


class _Readings(NamedTuple):
    """Values of one sensor in the order of their times, and the times in milliseconds since 1970 (UTC)."""

    times: Sequence[int]
    values: Sequence[Number]


class Now(NamedTuple):
    """Current time: `s` of the monotonic clock, and `ms` since 1970 (UTC)."""

    s: float
    ms: int


class SampleWatch:
    """Checks of the samples and gaps in each commit."""

    def __init__(self, table: StateTable, own_outbox: str = "") -> None:
        """Create the checks without rules.

        Args:
            table: The states.
            own_outbox: Outbox id of samples that this server numbers in the order of their arrival.
        """
        self._table, self._own_outbox = table, own_outbox
        self._by_sensor: dict[str, list[Rule]] = {}
        self._failed: list[Rule] = []
        self._gaps: list[Rule] = []
        self.latest: dict[tuple[str, str], _Latest] = {}
        self._arrived_s: dict[str, float] = {}  # time of the last samples, by node
        self._gap_s: dict[tuple[str, str], float] = {}  # time of the last gap, by Rule.key and node

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Check `rules` from now on."""
        self._by_sensor = {}
        for rule in rules:
            if rule.condition_kind in ("value", "voltage"):
                self._by_sensor.setdefault(rule.sensor or VOLTAGE, []).append(rule)
        self._failed = [rule for rule in rules if rule.condition_kind == "failed"]
        self._gaps = [rule for rule in rules if rule.condition_kind == "gap"]

    def watches(self, sensor: str) -> bool:
        """Return True if a rule is about the values of `sensor`, or about all sensors."""
        return sensor in self._by_sensor or any(rule.sensor in ("", sensor) for rule in self._failed)

    def has_sensor(self, node: str, sensor: str) -> bool:
        """Return True if a value of this `sensor` of `node` was checked."""
        return (node, sensor) in self.latest

    def rename(self, node: str, new: str) -> None:
        """Assign what is known about `node` to its new name `new`."""
        latest = self.latest.items()
        self.latest = {(new if name == node else name, sensor): one for (name, sensor), one in latest}
        move_key(self._arrived_s, node, new)
        self._gap_s = {(key, new if name == node else name): at_s for (key, name), at_s in self._gap_s.items()}

    def latest_ms(self, now: Now) -> dict[tuple[str, str], int]:
        """Return the time of the last value of each sensor in ms since 1970 (UTC), by the clock at the time `now`."""
        return {key: self._wall_ms(one, now) for key, one in self.latest.items()}

    def resume(self, node: str, sensor: str, latest_ms: int, now: Now) -> None:
        """Continue after the last value that an earlier run has checked.

        Args:
            node: Name of the node.
            sensor: Name of the sensor.
            latest_ms: Time of the value in ms since 1970 (UTC).
            now: Current time.
        """
        self.latest[node, sensor] = _Latest(_taken_ms(latest_ms, now), "", "", 0, now.s)

    @staticmethod
    def _wall_ms(latest: _Latest, now: Now) -> int:
        return now.ms - (int(now.s * 1000) - latest.taken_ms)

    # ------------------------------------------------------------------------------------------------- samples

    def record(
        self, node: str, outbox: str, epoch: str, samples: SampleBatch, units: Mapping[str, str], now: Now
    ) -> None:
        """Check the samples of one batch.

        Args:
            node: Name of the node.
            outbox: Id of its outbox.
            epoch: Epoch of the samples.
            samples: The samples.
            units: Units by sensor.
            now: Current time.
        """
        if not self._failed and self._by_sensor.keys().isdisjoint(samples.values):
            return
        self._arrived_s[node] = now.s
        for sensor, column in samples.values.items():
            rules = [rule for rule in self._by_sensor.get(sensor, ()) if self._table.is_about(rule, node)]
            failed = [r for r in self._failed if r.sensor in ("", sensor) and self._table.is_about(r, node)]
            if not rules and not failed:
                continue
            known = self.latest.get((node, sensor))
            latest_ms = self._wall_ms(known, now) - _SLACK_MS if known else -(1 << 62)
            is_in_order = known is not None and outbox != self._own_outbox
            if known and is_in_order and known.is_before(outbox, epoch, samples.seq) and (
                samples.times[0] < latest_ms - _STEP_MS
            ):  # fmt: skip
                latest_ms = samples.times[0]
            newer = _newer(samples.times, column, latest_ms, now.ms)
            if newer.values:
                self.latest[node, sensor] = _Latest(_taken_ms(newer.times[-1], now), outbox, epoch, samples.last, now.s)
                for rule in rules:
                    self._judge(rule, node, sensor, newer, units.get(sensor, ""), now)
            is_failed = column[-1] is None and samples.times[-1] >= (newer.times[-1] if newer.values else latest_ms)
            if is_failed or newer.values:
                self._record_failure(rules, failed, node, sensor, samples, newer, units, is_failed, now)

    def _judge(self, rule: Rule, node: str, sensor: str, newer: _Readings, unit: str, now: Now) -> None:
        """Update the state of one rule with the new values of one sensor."""
        state = self._table.of(rule, node, sensor)
        state.unit, state.text, state.value = unit, _words(rule, node, sensor, newer, -1, unit), newer.values[-1]
        state.end_text = _end_words(rule, node, state.text, newer.times[-1])
        low, high = min(newer.values), max(newer.values)
        if not (rule.is_met(low) or rule.is_met(high)):
            if state.since_s is not None and not self._holds(state, newer.values):
                state.end()
            return
        met = list(map(rule.is_met, newer.values))
        last = len(met) - 1 - met[::-1].index(True)
        if not rule.for_s and not state.is_open and not state.is_told:
            state.peak = _words(rule, node, sensor, newer, last, unit)
        was_met, has_ended = state.since_s is not None, False
        is_on = was_met
        for value, is_met in zip(newer.values, met, strict=True):
            if is_on and not is_met and not self._holds(state, [value]):
                is_on, has_ended = False, True
            is_on = is_on or is_met
        if not is_on or has_ended:
            state.end()
        if is_on:
            state.meet(now.s)

    @staticmethod
    def _holds(state: AlertState, values: Sequence[Number]) -> bool:
        """Return True if none of `values`, which do not meet the condition, ends it: see the key `clear`."""
        rule = state.rule
        return bool(rule.clear) and (state.is_open or not rule.for_s) and not any(map(rule.is_cleared, values))

    def _record_failure(
        self, rules: Sequence[Rule], failed: Sequence[Rule], node: str, sensor: str, samples: SampleBatch,
        newer: _Readings, units: Mapping[str, str], is_failed: bool, now: Now,
    ) -> None:  # fmt: skip
        unit = units.get(sensor, "")
        why = samples.errors.get(sensor, {}).get(len(samples.times) - 1, "")
        text = f"{sensor} of {node} has no value at {stamp(samples.times[-1])}{f' ({why})' if why else ''}"
        for rule in rules:  # an alert about a value continues, and its next message contains the failure
            state = self._table.find(rule, node, sensor)
            if state is not None and is_failed and state.since_s is not None:
                state.text = f"{text}; last value {_value(state.value, state.unit)}"
        for rule in failed:
            state = self._table.of(rule, node, sensor) if is_failed else self._table.find(rule, node, sensor)
            if state is None:
                continue
            if newer.values:
                time = stamp(newer.times[-1])
                state.end_text = f"{sensor} of {node} has a value again: {_value(newer.values[-1], unit)} at {time}"
                state.end()
            if is_failed:
                state.text = text
                state.meet(now.s)

    # ---------------------------------------------------------------------------------------------------- gaps

    def record_gap(self, node: str, gap: Gap, now: Now) -> None:
        """Record at the time `now` that the samples in `gap` of `node` will never arrive."""
        count = gap.last - gap.first + 1 + gap.before
        for rule in self._gaps:
            if count <= 0 or not self._table.is_about(rule, node):
                continue
            state = self._table.of(rule, node)
            state.value = count + (state.value if state.since_s is not None or not state.is_idle else 0)
            why = f": {gap.why}" if gap.why else ""
            state.text = f"{counted(int(state.value), 'sample')} of {node} will never arrive{why}"
            state.meet(now.s)
            self._gap_s[rule.key, node] = now.s

    def look(self, now: Now) -> None:
        """End the alerts about gaps that are over at the time `now`, and find sensors that are no longer sent."""
        for rule in self._failed:
            if rule.sensor:
                self._find_missing(rule, now)
        for rule in self._gaps:
            for state in self._table.of_rule(rule):
                since_s = self._gap_s.setdefault((rule.key, state.key.node), now.s)
                if state.since_s is not None and now.s - since_s >= max(GAP_S, rule.for_s):
                    lost = counted(int(state.value), "sample")
                    state.end_text = f"{state.key.node} has lost no further samples for 60 min ({lost} in total)"
                    state.end()

    def _find_missing(self, rule: Rule, now: Now) -> None:
        """Find the nodes that send samples, but without the sensor of `rule`.

        A rule without a sensor ignores this: some devices send a sensor much less often than others.
        """
        for (node, sensor), latest in self.latest.items():
            if sensor != rule.sensor or not self._table.is_about(rule, node):
                continue
            silent_s = self._arrived_s.get(node, 0.0) - latest.arrived_s
            state = self._table.find(rule, node, sensor)
            if silent_s >= max(rule.for_s, 1.0) and (state is None or state.since_s is None):
                state = self._table.of(rule, node, sensor)
                state.text = f"{sensor} of {node} is not in its samples since {stamp(self._wall_ms(latest, now))}"
                state.meet(latest.arrived_s)


def _taken_ms(time_ms: int, now: Now) -> int:
    return int(now.s * 1000) - max(0, now.ms - time_ms)


def _newer(times: Sequence[int], column: Sequence[Number | None], latest_ms: int, now_ms: int) -> _Readings:
    """Return the values of a column, except None and values that are older than a previous one or than `latest_ms`.

    A time in the future counts as `now_ms`: otherwise a clock that is ahead would hide the values after its correction.
    """
    if times[0] >= latest_ms and None not in column and times == sorted(times):
        return _Readings(times, column)  # type: ignore[arg-type]  # there is no None
    kept: list[tuple[int, Number]] = []
    for time_ms, value in zip(times, column, strict=True):
        if value is not None and time_ms >= latest_ms:
            kept.append((time_ms, value))
            latest_ms = min(time_ms, now_ms)
    return _Readings([time_ms for time_ms, _ in kept], [value for _, value in kept])


def _value(value: Number, unit: str) -> str:
    return with_unit(f"{value:.10g}", unit)


def _words(rule: Rule, node: str, sensor: str, newer: _Readings, index: int, unit: str) -> str:
    time = stamp(newer.times[index])
    if rule.condition_kind == "voltage":
        return f"the supply voltage of {node} is too low at {time}"
    return f"{sensor} of {node} is {_value(newer.values[index], unit)} at {time}"


def _end_words(rule: Rule, node: str, text: str, time_ms: int) -> str:
    if rule.condition_kind == "voltage":
        return f"the supply voltage of {node} is sufficient again at {stamp(time_ms)}"
    return text
