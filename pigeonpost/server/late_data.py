"""Tracker of time ranges with late or unsynchronised samples, for the charts.

Any thread may use it. `on_commit` runs in the Ingestor's writer thread. `_lock` guards the ranges, and is held while
they are changed or read. Only one thread calls `save`.

A sample is late if it is stored more than five minutes after it was taken, because it was buffered or imported. Its
time is uncertain if the node's clock was not set and was not set later in the same boot. If the difference between the
node's clock and the server's is known, it is taken into account.

The ranges are kept in the data folder, in `late_ranges.json`, so that they survive a restart. The store cannot replace
this file: a chunk contains only the time at which its last sample arrived.
Errors: none. If the file cannot be read or written, a warning is logged.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pigeonpost.core.files import replace_file
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.node_register import move_key
from pigeonpost.storage.models import EpochCommit, LateRange

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.node_status import NodeLink

log = logging.getLogger(__name__)

LATE_MS = 300_000
_JOIN_MS = 600_000  # ranges that are at most this far apart are merged
_MOST_SPANS = 100  # ranges per node; the oldest ones are removed
_MOST_NODES = 1000  # further nodes are not tracked
# Minimum time between two writes of the file, in seconds: if there is a new range, and if a range only became longer.
_SAVE_S, _SAVE_LONGER_S = 10.0, 600.0


class LateDataTracker:
    """Tracker of the late and unsynchronised time ranges of all nodes."""

    def __init__(self, clock: Clock, links: Sequence[NodeLink] = (), path: str = "") -> None:
        """Initialise the tracker with the ranges of earlier runs.

        Args:
            clock: Clock of the server.
            links: Links to the nodes, which contain the offsets of their clocks. The sequence may grow.
            path: Path of the file; empty to keep the ranges in memory only.
        """
        self._clock = clock
        self._links = links
        self._path = path
        self._lock = threading.Lock()
        self._spans: dict[str, list[LateRange]] = _read(path) if path else {}
        self._is_new = self._is_longer = False  # changes since the file was written
        self._saved_s = clock.monotonic() - _SAVE_LONGER_S

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Add the late and unsynchronised ranges in `epoch_commits`.

        Called with each commit (see Ingestor.subscribe).
        """
        now_ms = self._clock.wall_ms()
        for epoch_commit in epoch_commits:
            for item in epoch_commit.items:
                if isinstance(item, SampleBatch):
                    for span in self._ranges_of(epoch_commit.node, item, now_ms):
                        self._add(epoch_commit.node, span)

    def on_rename(self, node: str, new: str) -> None:
        """Assign the ranges of `node` to its new name `new`."""
        with self._lock:
            move_key(self._spans, node, new)
            self._is_new = True

    def save(self, now: bool = False) -> None:
        """Write the ranges to the file if they have changed, but not too often unless `now` is True."""
        waited_s = self._clock.monotonic() - self._saved_s
        with self._lock:
            is_due = (self._is_new and waited_s >= _SAVE_S) or (self._is_longer and waited_s >= _SAVE_LONGER_S)
            if not self._path or not (is_due or (now and (self._is_new or self._is_longer))):
                return
            spans = {node: list(found) for node, found in self._spans.items()}
            self._is_new = self._is_longer = False
        self._saved_s = self._clock.monotonic()
        try:
            replace_file(self._path, json.dumps(spans).encode() + b"\n")
        except OSError as error:
            log.warning("the ranges of late samples are not saved yet: %s", error)
            with self._lock:
                self._is_longer = True

    def within(self, node: str, from_ms: int, to_ms: int) -> list[LateRange]:
        """Return the ranges of `node` that overlap [from_ms, to_ms), the oldest first."""
        with self._lock:
            return [span for span in self._spans.get(node, ()) if span.last_ms >= from_ms and span.first_ms < to_ms]

    def _ranges_of(self, node: str, samples: SampleBatch, now_ms: int) -> Iterable[LateRange]:
        times = samples.times
        if samples.clock == "unset":
            yield LateRange(min(times), max(times), False)
        elif times[0] < now_ms - LATE_MS:  # a quick test before the offset of the clock is considered
            before_ms = now_ms + self._shift_ms(node) - LATE_MS
            if max(times) >= before_ms:
                times = [time_ms for time_ms in times if time_ms < before_ms]
            if times:
                yield LateRange(min(times), max(times), True)

    def _shift_ms(self, node: str) -> int:
        """Return the node's clock minus the server's in ms; 0 if it is unknown."""
        states = (link.state for link in self._links if link.state.name == node)  # a node may have two links
        return next((state.offset_ms for state in states if state.offset_ms is not None), 0)

    def _add(self, node: str, span: LateRange) -> None:
        with self._lock:
            kept = self._spans.get(node)
            if kept is None:
                if len(self._spans) >= _MOST_NODES:
                    return
                kept = self._spans[node] = []
            others = []
            for other in kept:
                if _is_near(span, other):
                    first_ms, last_ms = min(span.first_ms, other.first_ms), max(span.last_ms, other.last_ms)
                    span = LateRange(first_ms, last_ms, span.is_late)
                else:
                    others.append(other)
            spans = sorted([*others, span])[-_MOST_SPANS:]
            if spans != kept:  # a backlog is often inside a known range, and the file is not written for it
                self._spans[node] = spans
                self._is_new = self._is_new or len(others) == len(kept)
                self._is_longer = True


def _is_near(span: LateRange, other: LateRange) -> bool:
    """Return True if two ranges are merged."""
    is_near = other.first_ms - _JOIN_MS <= span.last_ms and span.first_ms <= other.last_ms + _JOIN_MS
    return is_near and other.is_late == span.is_late


def _read(path: str) -> dict[str, list[LateRange]]:
    """Return the ranges in the file; none if it is missing or damaged, because they only mark parts of charts."""
    try:
        with open(path, "rb") as file:
            return {str(node): list(map(_late_range, found)) for node, found in json.load(file).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s cannot be read, so late samples of earlier runs are not marked: %s", path, error)
        return {}


def _late_range(entry: Sequence[object]) -> LateRange:
    first_ms, last_ms, is_late = entry
    if type(first_ms) is not int or type(last_ms) is not int or type(is_late) is not bool:
        raise ValueError("an entry is not a range")
    return LateRange(first_ms, last_ms, is_late)
