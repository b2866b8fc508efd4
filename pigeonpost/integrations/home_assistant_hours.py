"""Durable list of the hours whose data reached Home Assistant late, or not at all.

An hour is *due* if one of its samples was not published as a current value: the sample was too old when it was stored,
or the connection to Home Assistant was interrupted. `live_ms` of a node is the time up to which its samples were
published or are due. After a start, all hours since then are due, because it is unknown which of their samples were
published before this server ended. So a process that is killed at any time loses no hour: samples of a node arrive in
order, and both facts are in one file, which is replaced as a whole.

Any thread may use it. `_lock` guards the entries, and is held for one change; `note` runs in the Ingestor's writer
thread. Only one thread calls `save`.
Errors: DiskError from `save`; then it is written again later.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import DamagedFile
from pigeonpost.core.json_file import JsonFile
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.node_register import move_key
from pigeonpost.storage.models import HOUR_MS, EpochCommit
from protocol import IMPORTED

MOST_NODES = 1_000  # further nodes are not tracked
MOST_RANGES = 100  # ranges of hours per node; the oldest ones are removed
FINAL_MS = 900_000  # time after the end of an hour until its statistics are sent: Home Assistant makes its own before
QUIET_S = 5.0  # time without late samples of a node after which its hours are complete
SAVE_S = 600.0  # interval between two writes of the file if only `live_ms` has changed
_UNSURE_MS = 120_000  # samples of this time before a lost connection was noticed may not have arrived
_AHEAD_MS = 86_400_000  # samples that are further in the future have a wrong date


class DueHours(NamedTuple):
    """Consecutive hours of one node that are due.

    Attributes:
        node: Name of the node.
        first: First hour, in hours since 1970 (UTC).
        last: Last hour, which is included.
        version: Version of the node's entry, for `done`.
    """

    node: str
    first: int
    last: int
    version: int


class _Entry:
    """Hours of one node."""

    def __init__(self, live_ms: int | None, ranges: list[tuple[int, int]]) -> None:
        self.live_ms, self.ranges = live_ms, ranges
        self.is_live = False  # in this run
        self.version = 0
        self.late_s = -QUIET_S  # time of the last late sample

    @classmethod
    def read(cls, entry: Any) -> _Entry:
        ranges = [(int(first), int(last)) for first, last in entry["due"]]
        if any(first > last for first, last in ranges):
            raise ValueError("a range ends before it begins")
        live_ms = entry["live_ms"]
        return cls(None if live_ms is None else int(live_ms), ranges)

    def written(self) -> dict[str, Any]:
        return {"live_ms": self.live_ms, "due": self.ranges}

    def mark(self, first: int, last: int) -> int:
        """Add the hours from `first` to `last`. Return the number of removed hours."""
        self.version += 1
        merged: list[tuple[int, int]] = []
        for begin, end in sorted([*self.ranges, (first, last)]):
            if merged and begin <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        removed, self.ranges = merged[:-MOST_RANGES], merged[-MOST_RANGES:]
        return sum(end - begin + 1 for begin, end in removed)

    def contains(self, hour: int) -> bool:
        return any(first <= hour <= last for first, last in self.ranges)

    def remove(self, first: int, last: int) -> None:
        kept = []
        for begin, end in self.ranges:
            kept += [(begin, min(end, first - 1)), (max(begin, last + 1), end)]
        self.ranges = [(begin, end) for begin, end in kept if begin <= end]


class LateHours:
    """Hours of all nodes that are due.

    Args:
        path: Path of the file.
        clock: Clock of the server.

    Attributes:
        removed: Number of hours that were removed because there were too many.
        fault: Damage of the file that was found at the start; empty if there is none.
    """

    def __init__(self, path: str, clock: Clock) -> None:
        self._file = JsonFile(path, "a list of hours", _Entry.read, auto_restore=True)
        self._clock = clock
        self._lock = threading.Lock()
        self.removed = 0
        self.fault = ""
        try:
            self._entries: dict[str, _Entry] = dict(self._file.now())
        except DamagedFile as error:
            self.fault, self._entries = str(error), {}
        self._is_marked = self._is_changed = False
        self._saved_s = clock.monotonic()
        hour = clock.wall_ms() // HOUR_MS
        for entry in self._entries.values():
            if entry.live_ms is not None:
                self._mark(entry, min((entry.live_ms - _UNSURE_MS) // HOUR_MS, hour), hour)

    def note(self, commit: EpochCommit, is_live: bool, expire_s: float, offset_ms: int = 0) -> None:
        """Record the samples of a commit.

        Args:
            commit: The commit.
            is_live: True if Home Assistant receives current values now.
            expire_s: Seconds after which a value of the node is no longer current.
            offset_ms: Clock of the node minus clock of the server, in ms.
        """
        if commit.outbox == IMPORTED:
            return
        now_ms = self._clock.wall_ms()
        for item in commit.items:
            if isinstance(item, SampleBatch) and item.clock != "unset":
                node_ms = now_ms + (0 if item.clock == "server" else offset_ms)
                self._note(commit.node, item.times, is_live, node_ms, round(expire_s * 1000))

    def _note(self, node: str, times: Sequence[int], is_live: bool, now_ms: int, expire_ms: int) -> None:
        first_ms, last_ms = min(times), max(times)  # in one hour: see models.stretches
        if last_ms > now_ms + _AHEAD_MS:
            return
        with self._lock:
            entry = self._entries.get(node)
            if entry is None:
                if len(self._entries) >= MOST_NODES:
                    return
                entry = self._entries[node] = _Entry(None, [])
            if not is_live:
                self._mark_lost(entry)
            entry.is_live = is_live
            if is_live and first_ms >= now_ms - expire_ms:
                entry.live_ms = max(last_ms, entry.live_ms or last_ms)
                self._is_changed = True
            else:
                entry.late_s = self._clock.monotonic()
                entry.version += 1
                if not entry.contains(first_ms // HOUR_MS) or not entry.contains(last_ms // HOUR_MS):
                    self._mark(entry, first_ms // HOUR_MS, last_ms // HOUR_MS)

    def mark_lost(self) -> None:
        """Mark the hours of the last samples of all nodes. To be called when the connection is found to be lost."""
        with self._lock:
            for entry in self._entries.values():
                self._mark_lost(entry)

    def mark_since(self, since_ms: int) -> None:
        """Mark all hours of all nodes from `since_ms` (ms since 1970, UTC) to their last samples."""
        with self._lock:
            for entry in self._entries.values():
                if entry.live_ms is not None and entry.live_ms >= since_ms:
                    self._mark(entry, since_ms // HOUR_MS, entry.live_ms // HOUR_MS)

    def on_rename(self, node: str, new: str) -> None:
        """Assign the hours of `node` to its new name `new`."""
        with self._lock:
            move_key(self._entries, node, new)
            self._is_marked = True

    def due(self) -> list[DueHours]:
        """Return the hours whose statistics can be sent now, the oldest of each node first."""
        now_ms, now_s = self._clock.wall_ms(), self._clock.monotonic()
        last_final = (now_ms - FINAL_MS) // HOUR_MS - 1
        with self._lock:
            return [
                DueHours(node, first, min(last, last_final), entry.version)
                for node, entry in self._entries.items() if now_s - entry.late_s >= QUIET_S
                for first, last in entry.ranges if first <= last_final
            ]  # fmt: skip

    def count(self) -> int:
        """Return the number of all hours that are due."""
        with self._lock:
            return sum(last - first + 1 for entry in self._entries.values() for first, last in entry.ranges)

    def done(self, hours: DueHours) -> None:
        """Remove hours whose statistics have arrived, unless more late samples have arrived since `due`."""
        with self._lock:
            entry = self._entries.get(hours.node)
            if entry is not None and entry.version == hours.version:
                entry.remove(hours.first, hours.last)
                self._is_marked = True

    def save(self, now: bool = False) -> None:
        """Write the file if hours have changed, or if `live_ms` has changed and SAVE_S have passed, or `now` is True.

        Raises:
            DiskError: The file cannot be written.
        """
        with self._lock:
            is_due = now or self._clock.monotonic() - self._saved_s >= SAVE_S
            if not self._is_marked and not (self._is_changed and is_due):
                return
            content = {node: entry.written() for node, entry in self._entries.items()}
            self._is_marked = self._is_changed = False
        try:
            self._file.write(content)
            self.fault = ""
        except BaseException:
            with self._lock:
                self._is_marked = True
            raise
        self._saved_s = self._clock.monotonic()

    def _mark_lost(self, entry: _Entry) -> None:
        if entry.is_live and entry.live_ms is not None:  # it was lost some time before
            self._mark(entry, (entry.live_ms - _UNSURE_MS) // HOUR_MS, entry.live_ms // HOUR_MS)
        entry.is_live = False

    def _mark(self, entry: _Entry, first: int, last: int) -> None:
        self.removed += entry.mark(first, last)
        self._is_marked = True
