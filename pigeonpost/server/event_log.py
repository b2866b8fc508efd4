"""Log of the events of this run: nodes connected, lost, switched and restarted; faults, and their end.

It is kept in memory only; gaps and CSV logs, which are durable, are shown beside it.
Threads: one of its own compares the states once a second; `on_commit` runs in the ingestor's writer. `_lock` guards the
  events, held to add or to copy.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import EpochCommit

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.node_status import NodeLink, NodeState

MOST = 500
_LOOK_S = 1.0


class Event(NamedTuple):
    """One event.

    node  empty: this server
    kind  "reached", "lost", "on", "off", "started", "fault", "mended"; what an operator did: "retired", "renamed",
          "relabelled"; of what is durable also "gap"
    """

    time_ms: int
    node: str
    kind: str
    words: str


class _Seen(NamedTuple):
    connected: bool
    since_ms: int | None
    on: bool | None


class EventLog:
    """The last events of this run."""

    def __init__(self, links: Sequence[NodeLink], faults: Callable[[], Mapping[str, str]], clock: Clock) -> None:
        """
        links   each with the `state` of a node; may grow
        faults  what is wrong now, by the part it is wrong with; an empty text: nothing
        """
        self._links, self._faults, self._clock = links, faults, clock
        self._lock = threading.Lock()
        self._all: deque[Event] = deque(maxlen=MOST)
        self._seen: dict[NodeState, _Seen] = {}
        self._wrong: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="events", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self, limit_s: float) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join(limit_s)

    def all(self) -> list[Event]:
        """What happened, the latest last."""
        with self._lock:
            return list(self._all)

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Take a commit of the Ingestor: sample 1 of an epoch is the first after a start of its node."""
        for epoch_commit in epoch_commits:
            first = next((item for item in epoch_commit.items if isinstance(item, SampleBatch)), None)
            if first is not None and first.seq == 1 and epoch_commit.outbox:
                self._add(first.times[0], epoch_commit.node, "started", "the node was started")

    def note(self, node: str, kind: str, words: str) -> None:
        """Add an event that happens now."""
        self._add(self._clock.wall_ms(), node, kind, words)

    def on_rename(self, node: str, new: str) -> None:
        """Show the events of a node under its new name."""
        with self._lock:
            renamed = [event._replace(node=new) if event.node == node else event for event in self._all]
            self._all.clear()
            self._all.extend(renamed)

    def look(self) -> None:
        """Compare how things are with how they were when it last looked."""
        for state in [link.state for link in self._links]:
            now = _Seen(state.connected, state.since_ms, state.on)
            before = self._seen.get(state)
            self._seen[state] = now
            self._compare(state, before or _Seen(False, None, None), now)
        now_ms = self._clock.wall_ms()
        faults = {part: text for part, text in self._faults().items() if text}
        for part, text in faults.items():
            if part not in self._wrong:
                self._add(now_ms, "", "fault", f"{part}: {text}")
        for part in self._wrong.keys() - faults.keys():
            self._add(now_ms, "", "mended", f"{part}: works again")
        self._wrong = faults

    def _compare(self, state: NodeState, before: _Seen, now: _Seen) -> None:
        name, now_ms = state.name or state.address, self._clock.wall_ms()
        since_ms = now.since_ms if now.since_ms is not None else now_ms
        if before.connected and not now.connected:
            self._add(since_ms, name, "lost", f"lost: {state.fault or 'not connected'}")
        elif now.connected and not before.connected:
            self._add(since_ms, name, "reached", "connected")
        elif now.connected and now.since_ms != before.since_ms:
            self._add(since_ms, name, "reached", "connected anew, after less than a second")
        if now.on is not None and now.on != before.on and (before.on is not None or not now.on):
            self._add(now_ms, name, "on" if now.on else "off", f"switched {'on' if now.on else 'off'}")

    def _add(self, time_ms: int, node: str, kind: str, words: str) -> None:
        with self._lock:
            self._all.append(Event(time_ms, node, kind, words[:300]))

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            self.look()
