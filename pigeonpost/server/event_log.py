"""Log of the events of this run: nodes that were connected, lost, switched or started, and the start and end of faults.

The log is in memory only. The page shows it together with gaps and CSV logs, which are durable.
A separate thread compares the states once a second. `on_commit` runs in the Ingestor's writer thread. `_lock` guards
the events, and is held while an event is added or the events are copied.
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

MOST = 500  # events in memory
_LOOK_S = 1.0


class Event(NamedTuple):
    """Event of a node or of this server.

    Attributes:
        time_ms: Time of the event, in ms since 1970 (UTC).
        node: Name of the node; empty for this server.
        kind: "reached", "lost", "on", "off", "started", "fault" or "mended"; "retired", "renamed" or "relabelled" for
            an action of an operator; "gap" for a recorded gap.
        words: Description for people.
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
    """Log of the last events of this run."""

    def __init__(self, links: Sequence[NodeLink], faults: Callable[[], Mapping[str, str]], clock: Clock) -> None:
        """Initialise an empty log without starting its thread.

        Args:
            links: Links to the nodes, each with a `state`. The sequence may grow.
            faults: Function that returns the current faults by component; an empty text means no fault.
            clock: Clock of the server.
        """
        self._links, self._faults, self._clock = links, faults, clock
        self._lock = threading.Lock()
        self._all: deque[Event] = deque(maxlen=MOST)
        self._seen: dict[NodeState, _Seen] = {}
        self._last_faults: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="events", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> None:
        """Stop the thread. Wait for it for at most `limit_s` seconds."""
        self._stopping.set()
        self._thread.join(limit_s)

    def all(self) -> list[Event]:
        """Return all events, the newest last."""
        with self._lock:
            return list(self._all)

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Add an event for each node whose first sample after a start is in `epoch_commits`.

        This is sample 1 of an epoch. Called with each commit (see Ingestor.subscribe).
        """
        for epoch_commit in epoch_commits:
            first = next((item for item in epoch_commit.items if isinstance(item, SampleBatch)), None)
            if first is not None and first.seq == 1 and epoch_commit.outbox:
                self._add(first.times[0], epoch_commit.node, "started", "the node was started")

    def record(self, node: str, kind: str, words: str) -> None:
        """Add an event of `node` at the current time, with the given `kind` and `words`."""
        self._add(self._clock.wall_ms(), node, kind, words)

    def on_rename(self, node: str, new: str) -> None:
        """Assign the events of `node` to its new name `new`."""
        with self._lock:
            renamed = [event._replace(node=new) if event.node == node else event for event in self._all]
            self._all.clear()
            self._all.extend(renamed)

    def update(self) -> None:
        """Compare all states with those of the previous call, and add events for the differences."""
        for state in [link.state for link in self._links]:
            now = _Seen(state.connected, state.since_ms, state.on)
            before = self._seen.get(state)
            self._seen[state] = now
            self._compare(state, before or _Seen(False, None, None), now)
        now_ms = self._clock.wall_ms()
        faults = {component: text for component, text in self._faults().items() if text}
        for component, text in faults.items():
            if component not in self._last_faults:
                self._add(now_ms, "", "fault", f"{component}: {text}")
        for component in self._last_faults.keys() - faults.keys():
            self._add(now_ms, "", "mended", f"{component}: works again")
        self._last_faults = faults

    def _compare(self, state: NodeState, before: _Seen, now: _Seen) -> None:
        name, now_ms = state.name or state.address, self._clock.wall_ms()
        since_ms = now.since_ms if now.since_ms is not None else now_ms
        if before.connected and not now.connected:
            self._add(since_ms, name, "lost", f"lost: {state.fault or 'not connected'}")
        elif now.connected and not before.connected:
            self._add(since_ms, name, "reached", "connected")
        elif now.connected and now.since_ms != before.since_ms:
            self._add(since_ms, name, "reached", "connected again after less than a second")
        if now.on is not None and now.on != before.on and (before.on is not None or not now.on):
            self._add(now_ms, name, "on" if now.on else "off", f"switched {'on' if now.on else 'off'}")

    def _add(self, time_ms: int, node: str, kind: str, words: str) -> None:
        with self._lock:
            self._all.append(Event(time_ms, node, kind, words[:300]))

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            self.update()
