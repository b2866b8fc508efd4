"""Log of events: nodes that were connected, lost, switched or started, and the start and end of faults.

The last events are kept in the data folder, in `events.jsonl`, so that they survive a restart. The page shows them
together with gaps and CSV logs.
A separate thread compares the states once a second and writes new events to the file. `on_commit` runs in the
Ingestor's writer thread. `_lock` guards the events, and is held while an event is added or the events are copied.

Errors: none. If the file cannot be written, a warning is logged, and the events are written later.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.json_lines import JsonLines
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import EpochCommit

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.node_status import NodeLink, NodeState

log = logging.getLogger(__name__)

MOST = 500  # events that are kept
_END_MS = 253_402_300_800_000  # year 10000, which no text of a time can contain
_LOOK_S = 1.0
_SAVE_S = 10.0  # minimum time between two writes: a node that is lost every few seconds must not wear out an SD card


class Event(NamedTuple):
    """Event of a node or of this server.

    Attributes:
        time_ms: Time of the event, in ms since 1970 (UTC).
        node: Name of the node; empty for this server.
        kind: "reached", "lost", "on", "off", "started", "fault" or "mended"; "retired", "renamed", "relabelled" or
            "calibrated" for an action of an operator; "gap" for a recorded gap.
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
    """Log of the last events."""

    def __init__(
        self,
        links: Sequence[NodeLink],
        faults: Callable[[], Mapping[str, str]],
        clock: Clock,
        path: str = "",
        save_others: Sequence[Callable[[bool], None]] = (),
    ) -> None:
        """Initialise the log with the events of earlier runs, without starting its thread.

        Args:
            links: Links to the nodes, each with a `state`. The sequence may grow.
            faults: Function that returns the current faults by component; an empty text means no fault.
            clock: Clock of the server.
            path: Path of the file; empty to keep the events in memory only.
            save_others: Functions that save other records if they have changed. The thread calls them once a second
                with False, and at its end with True.
        """
        self._links, self._faults, self._clock = links, faults, clock
        self._lock = threading.Lock()
        self._file = JsonLines(path, MOST) if path else None
        self._save_others = save_others
        self._all: deque[Event] = deque(self._read(), maxlen=MOST)
        self._unsaved = 0  # the number of events at the end of `_all` that are not in the file
        self._is_renamed = False  # True if the file must be written again
        self._saved_s = clock.monotonic() - _SAVE_S
        self._is_failing = False
        self._seen: dict[NodeState, _Seen] = {}
        self._last_faults: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="events", daemon=True)

    def start(self) -> None:
        """Add the event of this start, and start the thread."""
        self.record("", "started", "this server was started")
        self._thread.start()

    def stop(self, limit_s: float) -> None:
        """Stop the thread, which saves the last events. Wait for it for at most `limit_s` seconds."""
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
            self._is_renamed = True

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
        is_told = now.since_ms is not None  # otherwise it is the state of a client in an earlier run
        if is_told and now.on is not None and now.on != before.on and (before.on is not None or not now.on):
            self._add(now_ms, name, "on" if now.on else "off", f"switched {'on' if now.on else 'off'}")

    def _add(self, time_ms: int, node: str, kind: str, words: str) -> None:
        with self._lock:
            self._all.append(Event(time_ms, node, kind, words[:300]))
            self._unsaved = min(self._unsaved + 1, MOST)

    def save(self, now: bool = False) -> None:
        """Write the new events to the file, at most every ten seconds unless `now` is True."""
        if self._file is None or not (now or self._clock.monotonic() - self._saved_s >= _SAVE_S):
            return
        with self._lock:
            every, unsaved, is_renamed = list(self._all), self._unsaved, self._is_renamed
            self._unsaved, self._is_renamed = 0, False
        if not (unsaved or is_renamed):
            return
        self._saved_s = self._clock.monotonic()
        try:
            if is_renamed:
                self._file.replace(every)
            else:
                self._file.append(every[len(every) - unsaved :], every)
            self._is_failing = False
        except OSError as error:
            with self._lock:
                self._unsaved, self._is_renamed = min(self._unsaved + unsaved, MOST), True
            if not self._is_failing:
                log.warning("the events are not saved yet: %s", error)
            self._is_failing = True

    def _read(self) -> list[Event]:
        """Return the events in the file. Lines that are not events are skipped."""
        try:
            return [event for line in self._file.read() if (event := _event(line))] if self._file else []
        except OSError as error:
            log.warning("the events of earlier runs are not shown: %s", error)
            return []

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            self.update()
            self.save()
            for save in self._save_others:
                save(False)
        for save in (self.save, *self._save_others):
            save(True)


def _event(line: Any) -> Event | None:
    """Return the event in the JSON value `line`, or None if it is not one."""
    is_valid = isinstance(line, list) and [type(one) for one in line] == [int, str, str, str]
    return Event(*line) if is_valid and 0 <= line[0] < _END_MS else None
