"""Names of nodes: which link has one, and whether two senders use one at the same time.

A node program draws an epoch at its start, and its samples come epoch by epoch. So new samples of an epoch after new
ones of a later epoch have another sender: a live copy of the card, or another node of the same name.

Runs in any thread. `_lock` of NodeNames guards who has which name, and is held for one look at the links; CopyWatch is
called by the ingestor's writer alone.
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

RETURNS = 3  # of an earlier sender, until two are taken for certain: a broker may turn a few messages round,
RETURNS_S = 3600.0  # all in this time; and so long a warning stays after the last one
MOST_SENDERS = 8  # of one node that are remembered
MOST_NAMES = 16  # without proof, of one address for which the settings give no name: each would be a node of ours


class NodeNames:
    """Which link has which name, of those on which this server connects to a node."""

    def __init__(self, links: Sequence[NodeLink], current: Callable[[str], str] = lambda name: name) -> None:
        """current: returns the present name of a node that says it has this one; see NodeRegister"""
        self._links, self.current = links, current
        self._lock = threading.Lock()
        self._owners: dict[str, NodeState] = {}
        self._owned: dict[NodeState, str] = {}  # the same, by link
        self._used: dict[NodeState, set[str]] = {}  # names that a link had without proof, in this run

    def claim(self, state: NodeState, name: str, is_proven: bool) -> str:
        """Give `name` to the link with `state`. Returns why it cannot have it; empty when it has it from now on.

        name       its present one, where it says a former one
        is_proven  the node has proved the token of that name: it may have moved from an address that is silent now

        The settings decide; between links without a name in the settings the first one has it.
        """
        with self._lock:
            is_expected = bool(state.expected) and self.current(state.expected) == name
            if not is_expected:
                for other in [link.state for link in list(self._links)]:
                    if other is not state and other.address and self._has(other, name, is_proven):
                        return (
                            f"calls itself {name}, which is the node at {other.address}: give it another name"
                            f" (--name), or name it in the settings"
                        )
            if not is_proven and not is_expected:
                used = self._used.setdefault(state, set())
                if len(used | {name}) > MOST_NAMES:
                    return f"calls itself {name} after {MOST_NAMES} other names: name the node here in the settings"
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
        """Know the links to a node by its new name."""
        with self._lock:
            move_key(self._owners, node, new)
            if new in self._owners:
                self._owned[self._owners[new]] = new
            for state in [link.state for link in list(self._links)]:
                if state.name == node:
                    state.name = new


class Alternation(Generic[T]):
    """Tells from the senders of one node, in the order in which they were heard, whether two are there in turn."""

    def __init__(self) -> None:
        # Not deques: there is one of these for each node, and an empty deque has 600 bytes.
        self._senders: list[T] = []  # the latest last
        self._returns_s: list[float] = []

    def note(self, sender: T, now_s: float) -> None:
        """Take note of the sender that was heard now."""
        if self._senders and self._senders[-1] == sender:
            return
        if sender in self._senders:
            self._returns_s = [*self._returns_s, now_s][-RETURNS:]
            self._senders.remove(sender)
        self._senders = [*self._senders, sender][-MOST_SENDERS:]

    def has_returned(self, now_s: float) -> bool:
        """Return True if an earlier sender has come again within RETURNS_S."""
        return bool(self._returns_s) and now_s - self._returns_s[-1] <= RETURNS_S

    def senders(self, now_s: float) -> list[T]:
        """Return the two last senders while they come in turn; else nothing."""
        is_often = len(self._returns_s) == RETURNS and self._returns_s[-1] - self._returns_s[0] <= RETURNS_S
        return self._senders[-2:] if is_often and self.has_returned(now_s) else []


class CopyWatch:
    """Warns of a node name that two senders use at the same time, whatever transports they come by."""

    def __init__(self, links: Sequence[NodeLink], clock: Clock) -> None:
        self._links, self._clock = links, clock
        self._nodes: dict[str, Alternation[tuple[str, str]]] = {}  # by epoch and outbox
        self._suspects: set[str] = set()  # nodes that have an earlier sender again: alone looked at in a commit

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Take a commit of the Ingestor."""
        now_s = self._clock.monotonic()
        for commit in epoch_commits:
            if commit.count and commit.outbox != IMPORTED:
                node = self._nodes.setdefault(commit.node, Alternation())
                node.note((commit.epoch, commit.outbox), now_s)
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
            same = "two copies of one card send" if outbox == other else "two programs send"
            text = f"{same} as {state.name} at the same time; {remedy_of(state.name)}"
            if state.warnings.get("copy") != text:
                state.warn("copy", text)
        elif "copy" in state.warnings:
            state.warn("copy", "")


def remedy_of(name: str) -> str:
    """Return what to do about two senders of one name."""
    return f"give one of them another name than {name} (--name), and a token of its own (control.py token NAME)"
