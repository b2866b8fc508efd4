"""Assignment of node names to links, and detection of two senders that use one name at the same time.

A node program creates a new epoch at its start and sends its samples epoch by epoch. So if new samples of an epoch
arrive after new samples of a later epoch, they are from another sender: a running copy of the SD card, or another node
with the same name.

Any thread may use NodeNames. Its `_lock` guards the assignment, and is held while the links are compared. Only the
Ingestor's writer thread calls CopyWatch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pigeonpost.core.clock import Clock
from pigeonpost.server.node_register import move_key
from pigeonpost.server.node_status import NodeLink, NodeState
from pigeonpost.storage.models import EpochCommit
from protocol import IMPORTED

T = TypeVar("T")

# Number of returns that prove that there are two senders. A return is a sample of an earlier sender after a sample of a
# later one. Fewer returns prove nothing, because a broker may reorder a few messages.
RETURNS = 3
RETURNS_S = 3600.0  # maximum time between the first and the last of these returns; also the duration of a warning
MOST_SENDERS = 8  # last senders of one node that are remembered
# Names that a link without a name in the settings may use without proving a token: each of them would be a new node.
MOST_NAMES = 16


class NodeNames:
    """Node names of the links on which this server connects to nodes."""

    def __init__(self, links: Sequence[NodeLink], current: Callable[[str], str] = lambda name: name) -> None:
        """Initialise without names.

        Args:
            links: The links. The sequence may grow.
            current: Function that returns the current name of the node that reports a name: see NodeRegister.
        """
        self._links, self.current = links, current
        self._lock = threading.Lock()
        self._owners: dict[str, NodeState] = {}
        self._owned: dict[NodeState, str] = {}  # the name of each link: the reverse of `_owners`
        self._used: dict[NodeState, set[str]] = {}  # names that each link used in this run without proving a token

    def claim(self, state: NodeState, name: str, is_proven: bool) -> str:
        """Assign a name to a link.

        The settings have priority. Among links without a name in the settings, the first one receives the name.

        Args:
            state: State of the link.
            name: Current name of the node, even if the node reports a former name.
            is_proven: True if the node has proved the token of that name. It may then have moved from an address that
                is not connected now.

        Returns:
            The reason why the link cannot have the name; empty if it has the name from now on.
        """
        with self._lock:
            is_expected = bool(state.expected) and self.current(state.expected) == name
            if not is_expected:
                for other in [link.state for link in list(self._links)]:
                    if other is not state and other.address and self._has(other, name, is_proven):
                        return (
                            f"reports the name {name}, which the node at {other.address} has: give it another name"
                            f" (--name), or assign the name in the settings"
                        )
            if not is_proven and not is_expected:
                used = self._used.setdefault(state, set())
                if len(used | {name}) > MOST_NAMES:
                    return f"reports the name {name} after {MOST_NAMES} other names: assign its name in the settings"
                used.add(name)
            before = self._owned.get(state)
            if before is not None and self._owners.get(before) is state:
                del self._owners[before]
            self._owners[name], self._owned[state] = state, name
        return ""

    def _has(self, other: NodeState, name: str, is_proven: bool) -> bool:
        if other.expected:
            return self.current(other.expected) == name
        return self._owners.get(name) is other and (other.connected or not is_proven)

    def on_rename(self, node: str, new: str) -> None:
        """Assign the new name `new` to the links of `node`."""
        with self._lock:
            move_key(self._owners, node, new)
            if new in self._owners:
                self._owned[self._owners[new]] = new
            for state in [link.state for link in list(self._links)]:
                if state.name == node:
                    state.name = new


class Alternation(Generic[T]):
    """Detector of two senders that alternate, for one node."""

    def __init__(self) -> None:
        """Initialise without senders."""
        # Lists and not deques: there is one detector per node, and an empty deque takes 600 bytes.
        self._senders: list[T] = []  # the latest last
        self._returns_s: list[float] = []

    def record(self, sender: T, now_s: float) -> None:
        """Record that `sender` has sent something at the time `now_s` (monotonic clock, in seconds)."""
        if self._senders and self._senders[-1] == sender:
            return
        if sender in self._senders:
            self._returns_s = [*self._returns_s, now_s][-RETURNS:]
            self._senders.remove(sender)
        self._senders = [*self._senders, sender][-MOST_SENDERS:]

    def has_returned(self, now_s: float) -> bool:
        """Return True if an earlier sender has sent again in the last RETURNS_S seconds before `now_s`."""
        return bool(self._returns_s) and now_s - self._returns_s[-1] <= RETURNS_S

    def senders(self, now_s: float) -> list[T]:
        """Return the last two senders if they are alternating at the time `now_s`; otherwise an empty list."""
        has_alternated = len(self._returns_s) == RETURNS and self._returns_s[-1] - self._returns_s[0] <= RETURNS_S
        return self._senders[-2:] if has_alternated and self.has_returned(now_s) else []


class CopyWatch:
    """Detector of node names that two senders use at the same time, on any transports."""

    def __init__(self, links: Sequence[NodeLink], clock: Clock) -> None:
        """Initialise with the `links` to all nodes, which may grow, and the server's `clock`."""
        self._links, self._clock = links, clock
        self._nodes: dict[str, Alternation[tuple[str, str]]] = {}  # by epoch and outbox
        self._suspects: set[str] = set()  # nodes whose earlier sender has returned

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Record the senders in `epoch_commits`, and set or clear the warnings.

        Called with each commit (see Ingestor.subscribe).
        """
        now_s = self._clock.monotonic()
        for commit in epoch_commits:
            if commit.count and commit.outbox != IMPORTED:
                node = self._nodes.setdefault(commit.node, Alternation())
                node.record((commit.epoch, commit.outbox), now_s)
                if node.has_returned(now_s):
                    self._suspects.add(commit.node)
        if self._suspects:
            for state in [link.state for link in list(self._links)]:
                if state.name in self._suspects:
                    self._warn(state, self._nodes[state.name].senders(now_s))
            self._suspects = {name for name in self._suspects if self._nodes[name].has_returned(now_s)}

    def _warn(self, state: NodeState, senders: Sequence[tuple[str, str]]) -> None:
        if senders:
            (_, outbox), (_, other) = senders
            senders_text = "two copies of one SD card" if outbox == other else "two programs"
            text = f"{senders_text} send under the name {state.name} at the same time; {remedy_of(state.name)}"
            if state.warnings.get("copy") != text:
                state.warn("copy", text)
        elif "copy" in state.warnings:
            state.warn("copy", "")


def remedy_of(name: str) -> str:
    """Return the remedy for two senders that use the same name `name`."""
    return f"give one of them a name other than {name} (--name), and its own token (control.py token NAME)"
