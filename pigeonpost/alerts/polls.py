"""Conditions that are checked at intervals: quality flags, disks, faults of this server, undervoltage, refusals.

The Notifier's thread calls `look`, with the lock of Alerts. Errors: none: what cannot be read now is checked later.

After a restart some conditions are found again only after a time. An alert of the earlier run continues until its
condition could be checked again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.alerts.rules import VOLTAGE, Rule
from pigeonpost.alerts.sample_watch import Now
from pigeonpost.alerts.states import AlertState, StateTable
from pigeonpost.core.format import stamp
from pigeonpost.sensors.machine import is_undervoltage
from pigeonpost.server.flag_words import flag_words
from pigeonpost.transports.tcp_faults import is_refusal

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeLink, NodeState
    from pigeonpost.server.quality import QualityChecks

RESTART_S = 600.0  # time after a restart in which an alert of the earlier run continues, until it is confirmed
_OF_NODE = re.compile(r"node (?P<node>\S+) \((?P<transport>\w+)\)").fullmatch  # subject of transports.refusals

_OF_CLIENTS = " clients"  # end of the subject of server.unnumbered_sources: too many unknown clients


class _Found(NamedTuple):
    """Condition that is met now.

    Attributes:
        node: Name of the node; empty for this server.
        sensor: Name of the sensor, or empty.
        detail: Detail of the StateKey.
        text: Text about the condition.
        end_text: Text about its end.
        unit: Unit of the value.
        is_over: True if it was met since the last check, but is not met now.
    """

    node: str
    sensor: str
    detail: str
    text: str
    end_text: str
    unit: str = ""
    is_over: bool = False


class Polls:
    """Checks at regular intervals.

    Attributes:
        quality: Quality checks, or None.
        faults: Function that returns the current faults of this server by subject; None if they are not known.
        refused_addresses: Function that returns the addresses of clients that are refused after failed attempts.
        data: The data folder, or an empty string.
        root: Folder that contains sys.
    """

    quality: QualityChecks | None = None
    faults: Callable[[], Mapping[str, str]] | None = None
    refused_addresses: Callable[[], Sequence[str]] | None = None
    data = ""
    root = "/"

    def __init__(self, table: StateTable, links: Sequence[NodeLink], has_received: Callable[[str], bool],
                 has_sensor: Callable[[str, str], bool], began_s: float) -> None:  # fmt: skip
        """Create the checks without rules.

        Args:
            table: The states.
            links: Connections to the nodes. The list can grow.
            has_received: Function that returns True if samples of a node were received in this run.
            has_sensor: Function that returns True if values of a sensor of a node are checked in each commit.
            began_s: Time of the start.
        """
        self._table, self._links, self._began_s = table, links, began_s
        self._has_received, self._has_sensor = has_received, has_sensor
        self._rules: list[Rule] = []
        self._counts: dict[tuple[str, str, str], int] = {}  # by node, sensor and quality flag
        self._unsampled: set[str] = set()  # nodes whose status contains the voltage, but not their samples
        self._has_new_rules = False  # True until the first check with rules that were changed while the server runs
        self._has_looked = False
        self._finders: Mapping[str, Callable[[Rule, Now], Iterator[_Found]]] = {
            "flag": self._flags, "disk": self._disks, "store": self._store_faults, "voltage": self._voltages,
            "refused": self._refused,
        }  # fmt: skip

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Check `rules` from now on."""
        self._rules = [rule for rule in rules if rule.condition_kind in self._finders]
        self._has_new_rules = self._has_looked

    def rename(self, node: str, new: str) -> None:
        """Assign what is known about `node` to its new name `new`."""
        counts = self._counts.items()
        self._counts = {(new if name == node else name, sensor, flag): count for (name, sensor, flag), count in counts}

    def look(self, now: Now) -> None:
        """Check all conditions at the time `now`."""
        self._has_looked = True
        for rule in self._rules:
            met: set[AlertState] = set()
            for found in self._finders[rule.condition_kind](rule, now):
                if found.node and self._table.is_retired(found.node):
                    continue
                state = self._table.of(rule, found.node, found.sensor, found.detail)
                if found.is_over:
                    if not rule.for_s and not state.is_open and not state.is_told:
                        state.text = state.peak = found.text
                        state.end_text = found.end_text
                    continue
                met.add(state)
                state.text, state.end_text, state.unit = found.text, found.end_text, found.unit
                state.meet(now.s)
            for state in self._table.of_rule(rule):
                if state not in met and self._can_end(rule, state, now):
                    state.end()
        self._has_new_rules = False

    def _can_end(self, rule: Rule, state: AlertState, now: Now) -> bool:
        """Return True if a condition that was not found is known to be over."""
        kind = rule.condition_kind
        if kind == "voltage" and self._is_sampled(state.key.node):
            return False  # checked in each commit
        if not state.is_restored or (kind == "disk" and not state.key.node):
            return True
        if kind in ("store", "refused") or (kind == "flag" and state.key.detail == "stuck"):
            return now.s - self._began_s >= RESTART_S
        return self._has_received(state.key.node) or (kind == "voltage" and not state.key.node)

    def _states(self, rule: Rule) -> Iterator[tuple[str, NodeState]]:
        for state in {link.state.name: link.state for link in list(self._links) if link.state.name}.values():
            if self._table.is_about(rule, state.name):
                yield state.name, state

    # -------------------------------------------------------------------------------------------- quality flags

    def _flags(self, rule: Rule, now: Now) -> Iterator[_Found]:
        if self.quality is None:
            return
        for node, state in self._states(rule):
            units = {sensor["name"]: str(sensor.get("unit", "")) for sensor in state.sensors}
            for sensor in [rule.sensor] if rule.sensor else self.quality.sensors(node):
                judged = self.quality.of(node, sensor, now.ms + (state.offset_ms or 0), state.on is not False)
                if judged is None:
                    continue
                flags = {flag.kind: flag for flag in judged.findings}
                for kind, count in judged.counts.items():
                    before = self._counts.get((node, sensor, kind), count if self._has_new_rules else 0)
                    self._counts[node, sensor, kind] = count
                    if rule.flags and kind not in rule.flags:
                        continue
                    end_text = f"{sensor} of {node} is no longer {_FLAGS[kind]}"
                    unit = units.get(sensor, "")
                    if kind in flags:
                        words = flag_words(flags[kind], unit)
                        yield _Found(
                            node, sensor, kind, f"{sensor} of {node}: {words} at {stamp(now.ms)}", end_text, unit
                        )
                    elif count > before:
                        text = f"{sensor} of {node} was {_FLAGS[kind]} shortly before {stamp(now.ms)}"
                        yield _Found(node, sensor, kind, text, end_text, unit, is_over=True)

    # ----------------------------------------------------------------------------------------------------- disks

    def _disks(self, rule: Rule, now: Now) -> Iterator[_Found]:
        free: list[tuple[str, float]] = []
        if not rule.node and self.data:
            try:
                status = os.statvfs(self.data)
                free.append(("", status.f_bavail * status.f_frsize / (1 << 20)))
            except OSError:
                pass  # the store reports it
        for node, node_state in self._states(rule):
            mib = _reported(node_state, "disk_free")
            if mib is None:
                yield from self._unchanged(rule, node)
            else:
                free.append((node, mib))
        for node, mib in free:
            state = self._table.find(rule, node)
            is_on = state is not None and state.since_s is not None
            text = f"{mib:.0f} MiB of disk space are free on {node or 'this server'} at {stamp(now.ms)}"
            if rule.is_met(mib) or (is_on and not rule.is_cleared(mib)):
                yield _Found(node, "", "", text, text, "MiB")
            elif state is not None:
                state.end_text = text

    def _unchanged(self, rule: Rule, node: str, sensor: str = "") -> Iterator[_Found]:
        """Yield the condition of a node that does not report the value now, if it was met before."""
        state = self._table.find(rule, node, sensor)
        if state is not None and state.since_s is not None:
            yield _Found(node, sensor, "", state.text, state.end_text, state.unit)

    # -------------------------------------------------------------------------------------------- faults, refusals

    def _store_faults(self, rule: Rule, now: Now) -> Iterator[_Found]:
        for subject, text in (self.faults() if self.faults else {}).items():
            if text and not _OF_NODE(subject) and not subject.endswith(_OF_CLIENTS):
                yield _Found("", "", subject, f"fault of this server: {subject}: {text}", f"{subject}: works again")

    def _refused(self, rule: Rule, now: Now) -> Iterator[_Found]:
        for subject, text in (self.faults() if self.faults else {}).items():
            about = _OF_NODE(subject)
            if text and about and self._table.is_about(rule, about["node"]):
                yield self._refusal(about["node"], about["transport"], text)
            elif text and subject.endswith(_OF_CLIENTS) and not rule.node:
                yield _Found("", "", subject, f"{subject}: {text}", f"{subject}: no longer refused")
        for node, state in self._states(rule):
            if state.fault and is_refusal(state.fault):
                yield self._refusal(node, "tcp", f"node {node} {state.fault}")
            if text := state.warnings.get("copy", ""):
                yield self._refusal(node, "copy", f"node {node}: {text}")
        if not rule.node:
            for address in self.refused_addresses() if self.refused_addresses else ():
                text = f"attempts from {address} are refused, because its passwords, tokens or keys were wrong"
                yield _Found("", "", address, text, f"attempts from {address} are no longer refused")

    @staticmethod
    def _refusal(node: str, detail: str, text: str) -> _Found:
        return _Found(node, "", detail, text, f"node {node} is no longer refused")

    # --------------------------------------------------------------------------------------------------- voltage

    def _voltages(self, rule: Rule, now: Now) -> Iterator[_Found]:
        low = [""] if not rule.node and is_undervoltage(self.root) else []
        self._unsampled = {node for node, state in self._states(rule) if _only_reports_voltage(state)}
        for node, state in self._states(rule):
            if self._is_sampled(node):
                continue
            reported = _reported(state, VOLTAGE)
            if reported is None:
                yield from self._unchanged(rule, node, VOLTAGE)
            elif reported:
                low.append(node)
        for node in low:
            what = f"the supply voltage of {node or 'this server'} is"
            yield _Found(
                node, VOLTAGE if node else "", "", f"{what} too low at {stamp(now.ms)}", f"{what} sufficient again"
            )

    def _is_sampled(self, node: str) -> bool:
        return self._has_sensor(node, VOLTAGE) and node not in self._unsampled


_FLAGS = {"range": "out of range", "jump": "jumping", "stuck": "stuck", "rail": "saturated", "stale": "without a value"}


def _only_reports_voltage(state: NodeState) -> bool:
    """Return True if a node has no sensor for undervoltage, or no longer has one, but reports it in its status."""
    is_sensor = any(sensor["name"] == VOLTAGE for sensor in state.sensors)
    return bool(state.sensors) and not is_sensor and _reported(state, VOLTAGE) is not None


def _reported(state: NodeState, key: str) -> float | None:
    """Return a number that a node reports about its computer, or None."""
    reported: Any = state.details.get("machine")
    value = reported.get(key) if isinstance(reported, dict) else None
    if not isinstance(value, int | float) or (isinstance(value, bool) and key != VOLTAGE):
        return None
    return float(value) if abs(value) < 1e15 else None
