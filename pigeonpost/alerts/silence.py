"""Alerts about nodes that send no samples: rules with `silent`, and the default rule for all nodes.

Times are those of this server's monotonic clock, at which it received samples. So neither a wrong clock of a node nor a
correction of the server's clock causes or ends an alert. After a restart the time counts from the start.

The default rule applies to every node in the store that this server collects from, or that sends samples to it, except
imported, retired and switched-off nodes, and nodes with a rule of their own. What it has to know about a node after a
restart is stored. For data of an earlier version it is found in the store.

The Ingestor's writer thread calls `record`, and the Notifier's thread calls `look`, both with the lock of Alerts.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.alerts.rules import Rule
from pigeonpost.alerts.sample_watch import Now
from pigeonpost.alerts.states import StateTable
from pigeonpost.core.errors import DiskError, NotStored
from pigeonpost.core.format import stamp
from pigeonpost.server.liveness import UNKNOWN_EVERY_S, USUAL_EVERY_S
from pigeonpost.server.node_register import move_key
from pigeonpost.server.quality import late_after_s
from protocol import IMPORTED

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeLink, NodeState
    from pigeonpost.storage.contract import Store

log = logging.getLogger(__name__)

_HOUR_MS = 3_600_000
_READ_AGAIN_S = 60.0  # time after which the store is read again, if it could not be read


class KnownNode(NamedTuple):
    """Stored facts about a node that sends samples.

    Attributes:
        every_s: Its usual interval in seconds, or None if it is not known.
        is_off: True if it is switched off.
        calls_in: True if it connects to this server.
    """

    every_s: float | None = None
    is_off: bool = False
    calls_in: bool = True


class SilenceWatch:
    """Checks for nodes that send no samples."""

    def __init__(
        self,
        table: StateTable,
        links: Sequence[NodeLink],
        began_s: float,
        store: Store | None = None,
        tokens: Container[str] = (),
        shortest_s: float = 0.0,
    ) -> None:
        """Create the checks without rules.

        Args:
            table: The states.
            links: Connections to the nodes. The list can grow.
            began_s: Time of the start.
            store: The store, in which the nodes are found; None without the default rule.
            tokens: Names of the nodes that have a token.
            shortest_s: Shortest time after which the default rule reports a node, in seconds.
        """
        self._table, self._links, self._began_s = table, links, began_s
        self._store, self._tokens, self._shortest_s = store, tokens, shortest_s
        self._rules: list[Rule] = []
        self._received_s: dict[str, float] = {}
        self.known: dict[str, KnownNode] = {}
        self._read_s: float | None = None
        self._unread = store is not None

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Check `rules` from now on."""
        self._rules = [rule for rule in rules if rule.condition_kind == "silent"]

    def rename(self, node: str, new: str) -> None:
        """Assign what is known about `node` to its new name `new`."""
        move_key(self._received_s, node, new)
        move_key(self.known, node, new)

    def record(self, node: str, now_s: float) -> None:
        """Record that samples of `node` were received at `now_s`."""
        self._received_s[node] = now_s
        if node not in self.known:
            self.known[node] = KnownNode()

    def has_received(self, node: str) -> bool:
        """Return True if samples of `node` were received in this run."""
        return node in self._received_s

    def read_store(self, now: Now) -> None:
        """Find the nodes in the store if this is due at the time `now`. It can take seconds: call it without a lock."""
        if self._unread and self._rules and (self._read_s is None or now.s - self._read_s >= _READ_AGAIN_S):
            self._read_s = now.s
            self._read_store()

    def look(self, now: Now) -> None:
        """Check all nodes at the time `now`."""
        if not self._rules:
            return
        states = {link.state.name: link.state for link in list(self._links) if link.state.name}
        for name, state in states.items():
            self._learn(name, state)
        own = {self._table.present(rule.node) for rule in self._rules if rule.node}
        for rule in self._rules:
            if rule.node:
                names = [self._table.present(rule.node)]
            elif rule.silent_s is None:
                names = [name for name in self.known if name not in own]
            else:
                names = list(dict.fromkeys([*states, *self._collected(states)]))
            for name in names:
                self._check(rule, name, states.get(name), now)

    def _collected(self, states: dict[str, NodeState]) -> list[str]:
        return [name for name in self.known if self._is_expected(name, states.get(name))]

    def _learn(self, name: str, state: NodeState) -> None:
        known = self.known.get(name)
        if known is None:
            return
        # Test doubles and sources of older systems have no more than a name.
        every_s, on = getattr(state, "every_s", None), getattr(state, "on", None)
        calls_in = getattr(state, "calls_in", True)
        is_off = known.is_off if on is None else not on
        if every_s is None or (known.every_s is not None and abs(every_s - known.every_s) <= 0.2 * known.every_s):
            every_s = known.every_s  # small changes are not worth a write
        if (every_s, is_off, calls_in) != known:
            self.known[name] = KnownNode(every_s, is_off, calls_in)

    def _is_expected(self, name: str, state: NodeState | None) -> bool:
        """Return True if a node that sent samples still has a way to this server."""
        known = self.known[name]
        return state is not None or known.calls_in or name in self._tokens

    def _check(self, rule: Rule, name: str, node_state: NodeState | None, now: Now) -> None:
        if self._table.is_retired(name):
            self._received_s[name] = now.s  # if the node is used again, its time without samples begins at zero
            return
        silent_s = rule.silent_s
        if silent_s is None:
            known = self.known.get(name, KnownNode())
            if known.is_off or (name in self.known and not self._is_expected(name, node_state)):
                self._received_s[name] = now.s
                if (found := self._table.find(rule, name)) is not None:
                    found.end_text = f"{name} is {'switched off' if known.is_off else 'no longer collected from'}"
                    found.end()
                return
            usual_s = known.every_s or (UNKNOWN_EVERY_S if known.calls_in else USUAL_EVERY_S)
            silent_s = max(self._shortest_s, late_after_s(usual_s))
        received_s = self._received_s.get(name, self._began_s)
        state = self._table.find(rule, name)
        if state is not None and state.is_open and name not in self._received_s:
            # Reported by an earlier run; it ends with the first sample.
            state.text = f"no sample of {name} for {now.s - state.began_s:.0f} s at {stamp(now.ms)}"
            return
        if now.s - received_s < silent_s:
            if state is not None and state.since_s is not None:
                state.end_text = f"{name} sends samples again at {stamp(now.ms)}"
                state.end()
            return
        state = state or self._table.of(rule, name)
        state.value = silent_s
        state.text = f"no sample of {name} for {now.s - received_s:.0f} s at {stamp(now.ms)}"
        state.meet(received_s + silent_s, received_s)

    # ---------------------------------------------------------------------------------------------- in the store

    def _read_store(self) -> None:
        """Find the nodes in the store that have sent samples. The store is read again later if that is not possible."""
        if self._store is None:
            return
        try:
            stored = self._store.nodes()
            names = {about["name"] for about in stored}
            for name in list(self.known):  # a copy: `record` may add a node meanwhile
                if name not in names and name not in self._received_s:
                    self.known.pop(name, None)  # the database was replaced
            for about in stored:
                name, last_ms = about["name"], about["last_ms"]
                if self._store.is_shared and name not in self._tokens:
                    continue  # it may send to another server
                if name not in self.known and last_ms is not None and self._has_sent(self._store, name, last_ms):
                    self.known[name] = KnownNode()
            self._unread = False
        except (NotStored, DiskError) as error:  # the pages show this fault
            log.debug("nodes without samples are not known yet: %s", error)

    @staticmethod
    def _has_sent(store: Store, name: str, last_ms: int) -> bool:
        """Return True if the last samples of a node were sent. Samples from a file have no uptime."""
        epochs = {batch.epoch for batch in store.stored_batches(name, last_ms - _HOUR_MS, last_ms + 1)}
        marks = store.marks(name, IMPORTED, epochs)[1]
        return any(mark.up_ms != 0 for mark in marks.values())

    # ------------------------------------------------------------------------------------------------ stored form

    def stored(self, name: str) -> Any:
        """Return what is known about the node `name`, as a JSON value."""
        return list(self.known[name])

    def resume(self, name: str, stored: Any) -> None:
        """Continue with what an earlier run knew about the node `name`.

        Args:
            name: Name of the node.
            stored: Result of `stored`.

        Raises:
            TypeError: `stored` has another form.
        """
        self.known[name] = KnownNode(*stored)
