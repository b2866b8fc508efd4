"""Alert rules: a value above or below a threshold, or a node that sends no samples.

The Ingestor's writer thread calls `on_commit`, and the Notifier's thread calls `look`. `_lock` guards the state of the
rules; both methods hold it.
Errors: SettingsError for an invalid [[alert]] table.

An alert is sent when its condition has lasted for the time `for`. It is repeated at the interval `again` while the
condition lasts, and another message is sent when the condition ends. A value is checked when it is stored. A value that
arrives late is checked too, unless it is older than the last value checked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.alerts.contract import AlertMessage
from pigeonpost.core.clock import rfc3339
from pigeonpost.core.config import Option, matching, number, read_options
from pigeonpost.core.errors import SettingsError
from pigeonpost.link.samples import Number, SampleBatch
from pigeonpost.server.node_register import move_key
from protocol import NODE_NAME, NODE_NAME_TAKES, SENSOR_NAME, SENSOR_NAME_TAKES

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.node_register import NodeRegister
    from pigeonpost.server.node_status import NodeLink
    from pigeonpost.storage.models import EpochCommit

OPTIONS = (
    Option("node", matching(NODE_NAME, NODE_NAME_TAKES), "", "name of the node; without it: every node"),
    Option("sensor", matching(SENSOR_NAME, SENSOR_NAME_TAKES), "", "name of the sensor"),
    Option("above", number(-1e15, 1e15), None, "alert if the value is above this"),
    Option("below", number(-1e15, 1e15), None, "alert if the value is below this"),
    Option(
        "silent",
        number(1, 8_640_000),
        None,
        "instead of `sensor`: seconds without a sample of the node",
    ),
    Option("for", number(0, 864_000), 0.0, "seconds for which the condition must last before the alert is sent"),
    Option(
        "again",
        number(0, 8_640_000),
        0.0,
        "seconds after which the alert is repeated; 0: never",
    ),
)


class Rule(NamedTuple):
    """Contents of an [[alert]] table. Times are in seconds."""

    node: str
    sensor: str
    above: float | None
    below: float | None
    silent_s: float | None
    for_s: float
    again_s: float

    def is_met(self, value: float) -> bool:
        """Return True if `value` is above the upper or below the lower threshold."""
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)


class _RuleState:
    """State of one rule for one node. Times are those of the monotonic clock, in seconds.

    Attributes:
        since_s: Time at which the condition began, or None if it is not met.
        sent_s: Time of the last alert, or None.
        words: Text about the latest value, or about the time without samples.
        peak: Text about the last value that met the condition, if the rule has no `for` and no alert has been sent yet;
            otherwise an empty string. Without it, a short peak between two checks would be overlooked.
    """

    def __init__(self) -> None:
        self.since_s: float | None = None
        self.sent_s: float | None = None
        self.words = self.peak = ""


class _Readings(NamedTuple):
    """Values of one sensor in the order of their times, and the times in milliseconds since 1970 (UTC)."""

    times: Sequence[int]
    values: Sequence[Number]

    def words(self, index: int, node: str, sensor: str, unit: str) -> str:
        value = f"{self.values[index]:g}{f' {unit}' if unit else ''}"
        return f"{sensor} of {node} is {value} at {rfc3339(self.times[index])}"


def _newer(times: Sequence[int], column: Sequence[Number | None], latest_ms: int) -> _Readings:
    """Return the values of a column, except None and values that are older than a previous one or than `latest_ms`."""
    if times[0] >= latest_ms and None not in column and times == sorted(times):
        return _Readings(times, column)  # type: ignore[arg-type]  # there is no None
    kept: list[tuple[int, Number]] = []
    for time_ms, value in zip(times, column, strict=True):
        if value is not None and time_ms >= latest_ms:
            kept.append((time_ms, value))
            latest_ms = time_ms
    return _Readings([time_ms for time_ms, _ in kept], [value for _, value in kept])


def read_rules(tables: Iterable[Mapping[str, Any]], where: str) -> list[Rule]:
    """Return the rules in [[alert]] tables.

    Args:
        tables: The tables.
        where: Path of the settings file, for error messages.

    Raises:
        SettingsError: A table is invalid.
    """
    rules = []
    for count, table in enumerate(tables, 1):
        here = f"{where}: [[alert]] {count}"
        rule = Rule(*read_options(table, OPTIONS, here).values())
        has_threshold = rule.above is not None or rule.below is not None
        if (rule.silent_s is not None) == has_threshold:
            raise SettingsError(f"{here}: must have either `sensor` with `above` or `below`, or `silent`")
        if has_threshold != bool(rule.sensor):
            raise SettingsError(f"{here}: `above` and `below` require `sensor`; `silent` must not be used with it")
        rules.append(rule)
    return rules


class Alerts:
    """All alert rules, with the state of each rule for each node."""

    def __init__(
        self, rules: Sequence[Rule], links: Sequence[NodeLink], clock: Clock, names: NodeRegister | None = None
    ) -> None:
        """Create the rules without state.

        Args:
            rules: The rules.
            links: Connections to the nodes, each with the `state` of its node. The list can grow.
            clock: Clock of the server.
            names: Register of renamed and retired nodes; None if there are none.
        """
        self._rules, self._links, self._clock, self._names = rules, links, clock, names
        if names is not None:
            names.on_rename.append(self._on_rename)
        self._lock = threading.Lock()
        self._states: dict[tuple[Rule, str], _RuleState] = {}
        self._latest_ms: dict[tuple[str, str], int] = {}  # time of the last value checked, by node and sensor
        self._received_s: dict[str, float] = {}
        self._began_s = clock.monotonic()

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Check the values in `epoch_commits` against the rules; called after each commit."""
        now_s = self._clock.monotonic()
        with self._lock:
            for epoch_commit in epoch_commits:
                for item in epoch_commit.items:
                    if isinstance(item, SampleBatch):
                        self._received_s[epoch_commit.node] = now_s
                        self._record(epoch_commit.node, item, epoch_commit.units, now_s)

    def _on_rename(self, node: str, new: str) -> None:
        with self._lock:
            self._states = {(rule, new if name == node else name): one for (rule, name), one in self._states.items()}
            latest = self._latest_ms.items()
            self._latest_ms = {(new if name == node else name, sensor): ms for (name, sensor), ms in latest}
            move_key(self._received_s, node, new)

    def _is_about(self, rule: Rule, node: str) -> bool:
        return rule.node in ("", node) or self._present(rule.node) == node

    def _present(self, node: str) -> str:
        return node if self._names is None else self._names.current(node)

    def _is_retired(self, node: str) -> bool:
        return self._names is not None and self._names.retired_ms(node) is not None

    def _record(self, node: str, samples: SampleBatch, units: Mapping[str, str], now_s: float) -> None:
        rules = [rule for rule in self._rules if rule.sensor in samples.values and self._is_about(rule, node)]
        for sensor in dict.fromkeys([rule.sensor for rule in rules]):
            newer = _newer(samples.times, samples.values[sensor], self._latest_ms.get((node, sensor), 0))
            if newer.values:
                self._latest_ms[node, sensor] = newer.times[-1]
                for rule in rules:
                    if rule.sensor == sensor:
                        self._judge(rule, node, newer, units.get(sensor, ""), now_s)

    def _judge(self, rule: Rule, node: str, newer: _Readings, unit: str, now_s: float) -> None:
        """Update the state of one rule with the new values of one sensor."""
        state = self._states.setdefault((rule, node), _RuleState())
        state.words = newer.words(-1, node, rule.sensor, unit)
        if not (rule.is_met(min(newer.values)) or rule.is_met(max(newer.values))):
            state.since_s = None
            return
        met = list(map(rule.is_met, newer.values))
        last = len(met) - 1 - met[::-1].index(True)
        state.peak = "" if rule.for_s or state.sent_s is not None else newer.words(last, node, rule.sensor, unit)
        if not met[-1]:
            state.since_s = None
        elif state.since_s is None or not all(met):
            state.since_s = now_s

    def look(self) -> list[AlertMessage]:
        """Return the messages that are due now."""
        now_s = self._clock.monotonic()
        with self._lock:
            for rule in self._rules:
                if rule.silent_s is not None:
                    self._look_for_silence(rule, rule.silent_s, now_s)
            for key in [key for key in self._states if self._is_retired(key[1])]:
                del self._states[key]
            found = [self._message_about(rule, node, state, now_s) for (rule, node), state in self._states.items()]
        return [message for message in found if message is not None]

    def _look_for_silence(self, rule: Rule, silent_s: float, now_s: float) -> None:
        states = [link.state for link in list(self._links)]
        names = [self._present(rule.node)] if rule.node else [state.name for state in states if state.name]
        for name in names:
            if self._is_retired(name):
                self._received_s[name] = now_s  # if the node is used again, its time without samples begins at zero
                continue
            received_s = self._received_s.get(name, self._began_s)
            state = self._states.setdefault((rule, name), _RuleState())
            if now_s - received_s < silent_s:
                state.since_s = None
            elif state.since_s is None:
                state.since_s = received_s + silent_s
            state.words = f"no sample of {name} for {now_s - received_s:.0f} s"

    def _message_about(self, rule: Rule, node: str, state: _RuleState, now_s: float) -> AlertMessage | None:
        if state.peak and state.sent_s is None:
            words, state.peak, state.sent_s = state.peak, "", now_s
            return _message("alert", rule, node, words)
        if state.since_s is None:
            if state.sent_s is None:
                return None
            state.sent_s = None
            return _message("over", rule, node, state.words if rule.sensor else f"{node} sends samples again")
        is_due = now_s - state.since_s >= rule.for_s if state.sent_s is None else (
            rule.again_s > 0 and now_s - state.sent_s >= rule.again_s
        )  # fmt: skip
        if not is_due:
            return None
        state.sent_s = now_s
        return _message("alert", rule, node, state.words)


def _message(kind: str, rule: Rule, node: str, words: str) -> AlertMessage:
    limit = " or ".join(
        f"{name} {value:g}" for name, value in (("above", rule.above), ("below", rule.below)) if value is not None
    )
    condition = f"{rule.sensor} {limit}" if rule.sensor else f"{rule.silent_s:g} s without a sample"
    subject = f"{'Resolved' if kind == 'over' else 'Alert'}: {words}"
    info = {"kind": kind, "node": node, "sensor": rule.sensor, "above": rule.above, "below": rule.below,
             "silent": rule.silent_s}  # fmt: skip
    return AlertMessage(subject, f"{words}.\nCondition of the alert: {condition}.\n", info)
