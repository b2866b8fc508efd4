"""Alert rules: a value beyond a threshold, a node that is silent.

`on_commit` is called in the Ingestor's writer thread, `look` in the Notifier's. `_lock` guards the state of the rules;
both hold it. Errors: SettingsError for an invalid [[alert]] table.

An alert is raised once its condition has lasted for long enough (`for`), repeated while it lasts (`again`), and its end
is reported. A value counts when it is stored: late ones too, as long as they are newer than the last one seen.
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
    Option("node", matching(NODE_NAME, NODE_NAME_TAKES), "", "whose; without one that of every node"),
    Option("sensor", matching(SENSOR_NAME, SENSOR_NAME_TAKES), "", "which value is looked at,"),
    Option("above", number(-1e15, 1e15), None, "and what it must not be above,"),
    Option("below", number(-1e15, 1e15), None, "or below"),
    Option("silent", number(1, 8_640_000), None, "instead: seconds without any sample of the node"),
    Option("for", number(0, 864_000), 0.0, "seconds that it must last before anybody is told"),
    Option("again", number(0, 8_640_000), 0.0, "seconds after which it is said again while it lasts; 0: never"),
)


class Rule(NamedTuple):
    """One [[alert]] table."""

    node: str
    sensor: str
    above: float | None
    below: float | None
    silent_s: float | None
    for_s: float
    again_s: float

    def is_met(self, value: float) -> bool:
        """Return True if a value is beyond the thresholds."""
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)


class _RuleState:
    """One rule and one node. Times are the monotonic clock's, in s.

    since_s  since when the condition is met; None: it is not
    said_s   when that was last reported; None: not yet
    words    the present value, as text
    peak     the text of a value that was beyond the threshold between two checks only; empty: none
    """

    def __init__(self) -> None:
        self.since_s: float | None = None
        self.said_s: float | None = None
        self.words = self.peak = ""


class _Readings(NamedTuple):
    """Values of one sensor, in the order in which they were taken, and their times in ms since 1970."""

    times: Sequence[int]
    values: Sequence[Number]

    def words(self, place: int, node: str, sensor: str, unit: str) -> str:
        value = f"{self.values[place]:g}{f' {unit}' if unit else ''}"
        return f"{sensor} of {node} is {value} at {rfc3339(self.times[place])}"


def _newer(times: Sequence[int], column: Sequence[Number | None], latest_ms: int) -> _Readings:
    """Return the values in a column, each of which was not taken before any that comes before it, or `latest_ms`."""
    if times[0] >= latest_ms and None not in column and times == sorted(times):
        return _Readings(times, column)  # type: ignore[arg-type]  # there is no None
    kept: list[tuple[int, Number]] = []
    for time_ms, value in zip(times, column, strict=True):
        if value is not None and time_ms >= latest_ms:
            kept.append((time_ms, value))
            latest_ms = time_ms
    return _Readings([time_ms for time_ms, _ in kept], [value for _, value in kept])


def read_rules(tables: Iterable[Mapping[str, Any]], where: str) -> list[Rule]:
    """Return the rules in [[alert]] tables. Raises SettingsError, which begins with `where`."""
    rules = []
    for count, table in enumerate(tables, 1):
        here = f"{where}: [[alert]] {count}"
        rule = Rule(*read_options(table, OPTIONS, here).values())
        has_threshold = rule.above is not None or rule.below is not None
        if (rule.silent_s is not None) == has_threshold:
            raise SettingsError(f"{here}: takes above or below with a sensor, or silent")
        if has_threshold != bool(rule.sensor):
            raise SettingsError(f"{here}: above and below are of a sensor, silent is of a node")
        rules.append(rule)
    return rules


class Alerts:
    """The rules, with the state of each for each node."""

    def __init__(
        self, rules: Sequence[Rule], links: Sequence[NodeLink], clock: Clock, names: NodeRegister | None = None
    ) -> None:
        """
        links  each with the `state` of a node; may grow
        names  which nodes were renamed or retired; None: none was
        """
        self._rules, self._links, self._clock, self._names = rules, links, clock, names
        if names is not None:
            names.on_rename.append(self._on_rename)
        self._lock = threading.Lock()
        self._states: dict[tuple[Rule, str], _RuleState] = {}
        self._latest_ms: dict[tuple[str, str], int] = {}  # of node and sensor, when the value that was seen was taken
        self._heard_s: dict[str, float] = {}
        self._began_s = clock.monotonic()

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Check committed values against the rules; for Ingestor.subscribe."""
        now_s = self._clock.monotonic()
        with self._lock:
            for epoch_commit in epoch_commits:
                for item in epoch_commit.items:
                    if isinstance(item, SampleBatch):
                        self._heard_s[epoch_commit.node] = now_s
                        self._record(epoch_commit.node, item, epoch_commit.units, now_s)

    def _on_rename(self, node: str, new: str) -> None:
        with self._lock:
            self._states = {(rule, new if name == node else name): one for (rule, name), one in self._states.items()}
            latest = self._latest_ms.items()
            self._latest_ms = {(new if name == node else name, sensor): ms for (name, sensor), ms in latest}
            move_key(self._heard_s, node, new)

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
        """Take the values of one sensor for one rule."""
        state = self._states.setdefault((rule, node), _RuleState())
        state.words = newer.words(-1, node, rule.sensor, unit)
        if not (rule.is_met(min(newer.values)) or rule.is_met(max(newer.values))):
            state.since_s = None
            return
        met = list(map(rule.is_met, newer.values))
        last = len(met) - 1 - met[::-1].index(True)
        state.peak = "" if rule.for_s or state.said_s is not None else newer.words(last, node, rule.sensor, unit)
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
                self._heard_s[name] = now_s  # one that is in use again has its time
                continue
            heard_s = self._heard_s.get(name, self._began_s)
            state = self._states.setdefault((rule, name), _RuleState())
            if now_s - heard_s < silent_s:
                state.since_s = None
            elif state.since_s is None:
                state.since_s = heard_s + silent_s
            state.words = f"no sample of {name} for {now_s - heard_s:.0f} s"

    def _message_about(self, rule: Rule, node: str, state: _RuleState, now_s: float) -> AlertMessage | None:
        if state.peak and state.said_s is None:
            words, state.peak, state.said_s = state.peak, "", now_s
            return _message("alert", rule, node, words)
        if state.since_s is None:
            if state.said_s is None:
                return None
            state.said_s = None
            return _message("over", rule, node, state.words if rule.sensor else f"{node} sends samples again")
        is_due = now_s - state.since_s >= rule.for_s if state.said_s is None else (
            rule.again_s > 0 and now_s - state.said_s >= rule.again_s
        )  # fmt: skip
        if not is_due:
            return None
        state.said_s = now_s
        return _message("alert", rule, node, state.words)


def _message(kind: str, rule: Rule, node: str, words: str) -> AlertMessage:
    limit = " or ".join(
        f"{name} {value:g}" for name, value in (("above", rule.above), ("below", rule.below)) if value is not None
    )
    asked = f"{rule.sensor} {limit}" if rule.sensor else f"{rule.silent_s:g} s without a sample"
    subject = f"{'Over' if kind == 'over' else 'Alert'}: {words}"
    info = {"kind": kind, "node": node, "sensor": rule.sensor, "above": rule.above, "below": rule.below,
             "silent": rule.silent_s}  # fmt: skip
    return AlertMessage(subject, f"{words}.\nThe alert is for {asked}.\n", info)
