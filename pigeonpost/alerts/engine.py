"""All alert rules with their states: conditions in, messages out (contract.AlertEngine).

The Ingestor's writer thread calls `on_commit`, the Notifier's thread calls `look`, and pages call the methods of
AlertEngine. `_lock` guards the states and rules, and is held for one of these calls, but not while the disk is written.
`_writing` serialises changes together with their writes, so that an older state is never written after a newer one.

Alerts that become due within COLLECT_S are sent as one message, because one cause often raises many: a power failure,
a broker that is down. The same applies to their ends. After many messages this time is longer: a device that invents
nodes, or alerts that begin one after the other, must not fill a mailbox. In quiet hours, messages that are not critical
are held. Those about alerts that have ended in the meantime are never sent.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.alerts.contract import SEVERITIES, ActiveAlert, AlertMessage, AlertRule
from pigeonpost.alerts.messages import alert_message, end_message
from pigeonpost.alerts.polls import Polls
from pigeonpost.alerts.rule_sets import RuleSets
from pigeonpost.alerts.rules import Rule
from pigeonpost.alerts.sample_watch import Now, SampleWatch
from pigeonpost.alerts.silence import SilenceWatch
from pigeonpost.alerts.states import AlertState, StateTable
from pigeonpost.core.errors import DiskError, NotStored
from pigeonpost.link.samples import Gap, SampleBatch
from protocol import IMPORTED

if TYPE_CHECKING:
    from collections.abc import Container

    from pigeonpost.alerts.alert_store import AlertStore
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.node_register import NodeRegister
    from pigeonpost.server.node_status import NodeLink
    from pigeonpost.storage.contract import Store
    from pigeonpost.storage.models import EpochCommit

log = logging.getLogger(__name__)

COLLECT_S = 10.0  # time in which alerts are collected for one message
_MOST_PROMPT = 20  # messages within an hour, after which alerts are collected for longer, except critical ones
_COLLECT_MANY_S = 300.0  # the time after that
_COLLECT_SILENT_S = 60.0  # the same for silent nodes, which are noticed one after the other: a tenth of their time
KEEP_S = 600.0  # interval at which the times of the last values are stored
_REPLAYED = 4096  # samples per node that are checked again after a crash, at most
_GAPS = "gaps"  # note in the store: time of the last gap that was checked, in ms since 1970 (UTC)


class Alerts:
    """All alert rules, with the state of each rule for each node, sensor and fault."""

    def __init__(
        self,
        rules: Sequence[Rule] | RuleSets,
        links: Sequence[NodeLink],
        clock: Clock,
        names: NodeRegister | None = None,
        queue: AlertStore | None = None,
        collect_s: float = 0.0,
        quiet: str = "",
        store: Store | None = None,
        tokens: Container[str] = (),
        own_outbox: str = "",
        server: str = "",
        page: str = "",
    ) -> None:
        """Create the rules with the states that `queue` has stored.

        Args:
            rules: The rules.
            links: Connections to the nodes, each with the `state` of its node. The list can grow.
            clock: Clock of the server.
            names: Register of renamed and retired nodes; None if there are none.
            queue: Durable states and messages; None to keep the states in memory only.
            collect_s: Time in which alerts are collected for one message, in seconds.
            quiet: Quiet hours of rules without `quiet`, such as `22:00-07:00`; empty for none.
            store: The store of samples; None if nothing can be read again after a crash.
            tokens: Names of the nodes that have a token.
            own_outbox: Outbox id of the samples that this server numbers.
            server: Name of the server for the messages.
            page: Address of the server's page for the messages, or an empty string.
        """
        self._sets = rules if isinstance(rules, RuleSets) else RuleSets(rules)
        self._clock, self._queue, self._collect_s, self._quiet = clock, queue, collect_s, quiet
        self._store, self._server, self._page = store, server, page
        self._lock, self._writing = threading.Lock(), threading.Lock()
        now = self._now()
        self.table = StateTable(names)
        self._samples = SampleWatch(self.table, own_outbox)
        self._silence = SilenceWatch(self.table, links, now.s, store, tokens, self._sets.shortest_s)
        self.polls = Polls(self.table, links, self._silence.has_received, self._samples.has_sensor, now.s)
        self._written: dict[str, Any] = {}  # stored form of what is in `queue`, by its key there
        self._former: list[str] = []  # keys in `queue` that contain the former name of a node
        self._signatures: dict[str, tuple[object, ...]] = {}
        self._known_sensors = self._known_nodes = 0
        self._gaps_ms = now.ms
        self._kept_s = now.s
        self._told_s: deque[float] = deque(maxlen=_MOST_PROMPT)  # times of the last messages, without repetitions
        self._apply_rules()
        if names is not None:
            names.on_rename.append(self._on_rename)
        if queue is not None:
            self._resume(queue, now)

    # --------------------------------------------------------------------------------------------------- checks

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Check the values in `epoch_commits` against the rules; called after each commit."""
        now = self._now()
        with self._lock:
            for epoch_commit in epoch_commits:
                if epoch_commit.outbox != IMPORTED:  # imported samples are about the past
                    self._check(epoch_commit, now)

    def _check(self, epoch_commit: EpochCommit, now: Now) -> None:
        node = epoch_commit.node
        for item in epoch_commit.items:
            if isinstance(item, SampleBatch):
                self._silence.record(node, now.s)
                self._samples.record(node, epoch_commit.outbox, epoch_commit.epoch, item, epoch_commit.units, now)
            elif isinstance(item, Gap):
                self._samples.record_gap(node, item, now)
                self._gaps_ms = max(self._gaps_ms, now.ms)

    def look(self) -> list[AlertMessage]:
        """Check all conditions, and store and queue the messages that are due now.

        Returns:
            These messages.
        """
        with self._writing:
            self._silence.read_store(self._now())
            now = self._now()
            with self._lock:
                self._samples.look(now)
                self._silence.look(now)
                self.polls.look(now)
                states = self.table.states
                for key in [key for key in states if key.node and self.table.is_retired(key.node)]:
                    del states[key]
                for state in states.values():
                    state.advance(now.s, now.ms)
                    has_ended = state.is_owed and not state.is_open and self._is_quiet(state.rule, state.ended_ms)
                    if has_ended and not self._is_quiet(state.rule, now.ms):  # it has ended in the quiet hours
                        state.drop()
                messages = self._collect(now)
                for key in [key for key, state in states.items() if state.is_idle and state.since_s is None]:
                    if not states[key].peak:
                        del states[key]
                changes, notes = self._changes(now)
            self._commit(changes, messages, notes)
        return messages

    def _collect(self, now: Now) -> list[AlertMessage]:
        """Return the messages that are due, and record that they are reported."""
        found = [state for state in self.table.states.values() if not self._is_quiet(state.rule, now.ms)]
        owed = [state for state in found if state.is_owed]
        repeated = [state for state in found if state.is_repeat_due(now.s)]
        ends = [state for state in found if state.is_end_due and now.s - state.due_s >= state.calm_s]
        messages = []
        is_busy = len(self._told_s) == _MOST_PROMPT and now.s - self._told_s[0] < 3600 and self._collect_s > 0
        if any(now.s - state.due_s >= self._collect_time_s(state, is_busy) for state in owed):
            messages.append(alert_message(_sorted(owed), self._server, self._page, now.ms))
            for state in owed:
                state.told(now.s, now.ms)
                state.calm_s = self.table.calm_s(state.key, now.s)
            self._told_s.append(now.s)
        if repeated:
            messages.append(alert_message(_sorted(repeated), self._server, self._page, now.ms))
            for state in repeated:
                state.told(now.s, now.ms)
        if any(now.s - state.due_s >= self._collect_time_s(state, is_busy) for state in ends):
            messages.append(end_message(_sorted(ends), self._server, self._page, now.ms))
            for state in ends:
                state.told_end()
                self.table.count_end(state.key, now.s)
            self._told_s.append(now.s)
        return messages

    def _collect_time_s(self, state: AlertState, is_busy: bool) -> float:
        if is_busy and state.rule.severity != "critical":
            return _COLLECT_MANY_S
        if state.rule.condition_kind != "silent" or not self._collect_s or state.is_end_due:
            return self._collect_s
        silent_s = state.rule.silent_s if state.rule.silent_s is not None else state.value
        return min(0.1 * silent_s, _COLLECT_SILENT_S)

    def _is_quiet(self, rule: Rule, now_ms: int) -> bool:
        """Return True if messages about `rule` are held now. Quiet hours are in local time."""
        quiet = self._quiet if rule.quiet is None else rule.quiet
        if not quiet or rule.severity == "critical":
            return False
        t = time.localtime(now_ms // 1000)
        clock, (start, _, end) = f"{t.tm_hour:02d}:{t.tm_min:02d}", quiet.partition("-")
        return start <= clock < end if start < end else clock >= start or clock < end

    def _now(self) -> Now:
        return Now(self._clock.monotonic(), self._clock.wall_ms())

    def _on_rename(self, node: str, new: str) -> None:
        with self._lock:
            self._former += [name for name in self._written if json.loads(name)[1] == node]
            for name in self._former:
                self._written.pop(name, None)
            self.table.rename(node, new)
            self._samples.rename(node, new)
            self._silence.rename(node, new)
            self.polls.rename(node, new)

    # ------------------------------------------------------------------------------------------------ for pages

    def active(self) -> list[ActiveAlert]:
        """Return the alerts whose conditions are met now, the most severe and then the newest first."""
        now_ms = self._clock.wall_ms()
        with self._lock:
            found = [
                state.active(self._is_quiet(state.rule, now_ms))
                for state in self.table.states.values() if state.is_open and state.since_s is not None
            ]  # fmt: skip
        return sorted(found, key=lambda one: (-SEVERITIES.index(one.severity), -one.since_ms))

    def acknowledge(self, alert_id: str, user: str) -> bool:
        """Acknowledge an alert: it is not repeated until it ends. Its end is still reported.

        Args:
            alert_id: Id of the alert.
            user: Name of the user.

        Returns:
            False if there is no such alert: it has ended.
        """
        with self._writing:
            now = self._now()
            with self._lock:
                state = next((one for one in self.table.states.values() if one.id == alert_id and one.is_open), None)
                if not alert_id or state is None:
                    return False
                state.by, state.by_ms = user or "-", now.ms
                changes, notes = self._changes(now)
            self._commit(changes, [], notes)
        return True

    def rules(self) -> list[AlertRule]:
        """Return all rules: those of the settings file, those of the page, and the default rule if it applies."""
        with self._lock:
            return self._sets.listed()

    def set_rules(self, tables: Sequence[Mapping[str, Any]]) -> None:
        """Replace the rules of the page by `tables`, store them durably, and apply them immediately.

        The state of a rule that did not change is kept. If an active alert has no rule any more, its end is reported.

        Args:
            tables: Tables with the keys of [[alert]].

        Raises:
            SettingsError: A table is invalid. Nothing was changed.
            DiskError: The rules cannot be stored. Nothing was changed.
        """
        with self._writing:
            rules = self._sets.store(tables)
            with self._lock:
                self._sets.use(rules, tables)
                self._gaps_ms = max(self._gaps_ms, self._clock.wall_ms())
                self._apply_rules()

    def _apply_rules(self) -> None:
        rules = self._sets.all()
        for part in (self._samples, self._silence, self.polls):
            part.set_rules(rules)
        by_key = {rule.key: rule for rule in rules}
        for state in self.table.states.values():
            rule = by_key.get(state.key.rule)
            if rule is not None:
                state.rule = rule
            elif state.since_s is not None or state.is_open:
                state.end()
                state.end_text = f"the rule of this alert was changed or removed: {state.text}"

    # ------------------------------------------------------------------------------------------ durable content

    def close(self) -> None:
        """Store the times of the last values."""
        with self._writing:
            now = self._now()
            with self._lock:
                self._kept_s = now.s - KEEP_S
                changes, notes = self._changes(now)
            self._commit(changes, [], notes)

    def _commit(self, changes: Mapping[str, Any], messages: Sequence[AlertMessage], notes: Mapping[str, str]) -> None:
        if self._queue is not None and (changes or messages):
            self._queue.commit(changes, messages, notes)

    def _changes(self, now: Now) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what has to be stored, as the arguments of AlertStore.commit."""
        if self._queue is None:
            return {}, {}
        changes: dict[str, Any] = {}
        found = [state for state in self.table.states.values() if not state.is_idle or state.peak]
        states = {json.dumps(["state", *state.key]): state for state in found}
        nodes = {
            state.key.node for name, state in states.items()
            if self._signatures.get(name, ())[:-1] != state.signature()[:-1]
        }  # fmt: skip
        for name in self._signatures.keys() - states.keys():
            changes[name] = None
            nodes.add(json.loads(name)[2])
            del self._signatures[name]
        is_due = now.s - self._kept_s >= KEEP_S
        if is_due:
            self._kept_s = now.s
        # With the state of a node, the times up to which its values were checked. Values after that are checked again
        # after a crash.
        known = len(self._samples.latest)
        if is_due or nodes or known != self._known_sensors:
            self._known_sensors = known
            latest = self._samples.latest_ms(now)
            nodes |= {node for node, sensor in latest if json.dumps(["latest", node, sensor]) not in self._written}
            for (node, sensor), time_ms in latest.items():
                if is_due or node in nodes:  # all sensors of a node together: see _replay
                    self._change(changes, ["latest", node, sensor], time_ms)
        for name, state in states.items():
            if (is_due or state.key.node in nodes) and self._signatures.get(name) != state.signature():
                changes[name], self._signatures[name] = state.stored(), state.signature()
        for node in self._silence.known:
            self._change(changes, ["node", node], self._silence.stored(node))
        if len(self._silence.known) < self._known_nodes:
            names = {json.dumps(["node", node]) for node in self._silence.known}
            self._former += [name for name in self._written if name.startswith('["node", ') and name not in names]
            for name in self._former:
                self._written.pop(name, None)
        self._known_nodes = len(self._silence.known)
        changes |= dict.fromkeys(self._former)
        self._former = []
        return changes, {_GAPS: self._gaps_note()} if changes else {}

    def _gaps_note(self) -> str:
        """Return the note about gaps; it is empty without a rule about gaps, so that a new rule ignores older gaps."""
        return str(self._gaps_ms) if any(rule.condition_kind == "gap" for rule in self._sets.all()) else ""

    def _change(self, changes: dict[str, Any], key: list[str], value: Any) -> None:
        name = json.dumps(key)
        if self._written.get(name) != value:
            changes[name] = self._written[name] = value

    def _resume(self, queue: AlertStore, now: Now) -> None:
        """Continue with the states of an earlier run, and check what was stored in `queue` after them."""
        dropped: dict[str, Any] = {}
        latest: dict[tuple[str, str], int] = {}
        for name, value in queue.states().items():
            try:
                kind, *key = json.loads(name)
                if kind == "state":
                    state = AlertState.restored(value, now.s, now.ms)
                    self.table.states[state.key] = state
                    self._signatures[name] = state.signature()
                elif kind == "latest" and self._samples.watches(key[1]):
                    latest[key[0], key[1]] = self._written[name] = int(value)
                elif kind == "node":
                    self._silence.resume(key[0], value)
                    self._written[name] = value
                else:
                    dropped[name] = None
            except (ValueError, TypeError, KeyError, IndexError) as error:
                log.warning("a stored state of an alert cannot be read: %s", error)
                dropped[name] = None
        self._known_nodes = len(self._silence.known)
        self._apply_rules()
        noted = queue.noted(_GAPS)
        gaps_ms = int(noted) if noted.isascii() and noted.isdigit() else now.ms
        try:
            if self._store is not None:
                gone = self._replay(self._store, latest, gaps_ms, now)
                dropped |= {json.dumps(["latest", *key]): None for key in gone}
        except (NotStored, DiskError) as error:  # the pages show this fault
            log.warning("samples that were stored just before the last stop are not checked for alerts: %s", error)
        for name in dropped:
            self._written.pop(name, None)
        self._gaps_ms = max(gaps_ms, now.ms)
        queue.commit(dropped, [], {_GAPS: self._gaps_note()})

    def _replay(
        self, store: Store, latest: Mapping[tuple[str, str], int], gaps_ms: int, now: Now
    ) -> list[tuple[str, str]]:
        """Check the samples and gaps again that were stored just before a crash.

        Returns:
            The keys in `latest` of nodes that are no longer in the store.
        """
        for (node, sensor), latest_ms in latest.items():
            self._samples.resume(node, sensor, latest_ms, now)
        nodes: dict[str, int] = {}  # the time up to which all values of a node were checked
        for (node, _), latest_ms in latest.items():
            nodes[node] = max(latest_ms, nodes.get(node, latest_ms))
        stored = store.nodes() if nodes else []
        known = {about["name"] for about in stored}
        gone = [key for key in latest if key[0] not in known]  # the database was replaced
        for key in gone:
            del self._samples.latest[key]
        for about in stored:
            node, last_ms = about["name"], about["last_ms"] or 0
            if node in nodes and last_ms > nodes[node]:
                self._replay_samples(store, node, (nodes[node], last_ms + 1), about["sensors"], now)
        for gap in store.gaps(1000):
            is_own = not store.is_shared or gap["node"] in self._silence.known
            if gap["noted_ms"] > gaps_ms and is_own:
                self._samples.record_gap(gap["node"], Gap(gap["from"], gap["to"], gap["before"], gap["why"]), now)
        return gone

    def _replay_samples(
        self, store: Store, node: str, span_ms: tuple[int, int], units: Mapping[str, str], now: Now
    ) -> None:
        for point in store.points(node, *span_ms, _REPLAYED):
            columns = {sensor: [value] for sensor, value in point.values.items()}
            samples = SampleBatch(point.seq, [point.time_ms], [], columns, clock=point.clock)
            self._samples.record(node, "", "", samples, units, now)


def _sorted(states: Iterable[AlertState]) -> list[AlertState]:
    return sorted(states, key=lambda state: (-SEVERITIES.index(state.rule.severity), state.key.node, state.key.sensor))
