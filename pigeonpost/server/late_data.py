"""Tracker of time ranges with late or unsynchronised samples, for the charts.

Any thread may use it. `on_commit` runs in the Ingestor's writer thread. `_lock` guards the ranges, and is held while
they are changed or read.

A sample is late if it is stored more than five minutes after it was taken, because it was buffered or imported. Its
time is uncertain if the node's clock was not set and was not set later in the same boot. The store does not record when
a sample was stored, so late samples are known only for this run. If the difference between the node's clock and the
server's is known, it is taken into account.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.node_register import move_key
from pigeonpost.storage.models import EpochCommit, LateRange

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.node_status import NodeLink

LATE_MS = 300_000
_JOIN_MS = 600_000  # ranges that are at most this far apart are merged
_MOST_SPANS = 100  # ranges per node; the oldest ones are removed
_MOST_NODES = 1000  # further nodes are not tracked


class LateDataTracker:
    """Tracker of the late and unsynchronised time ranges of all nodes."""

    def __init__(self, clock: Clock, links: Sequence[NodeLink] = ()) -> None:
        """Initialise the tracker.

        Args:
            clock: Clock of the server.
            links: Links to the nodes, which contain the offsets of their clocks. The sequence may grow.
        """
        self._clock = clock
        self._links = links
        self._lock = threading.Lock()
        self._spans: dict[str, list[LateRange]] = {}

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
        return next((link.state.offset_ms or 0 for link in self._links if link.state.name == node), 0)

    def _add(self, node: str, span: LateRange) -> None:
        with self._lock:
            kept = self._spans.get(node)
            if kept is None:
                if len(self._spans) >= _MOST_NODES:
                    return
                kept = self._spans[node] = []
            joined = []
            for other in kept:
                is_near = other.first_ms - _JOIN_MS <= span.last_ms and span.first_ms <= other.last_ms + _JOIN_MS
                if is_near and other.is_late == span.is_late:
                    first_ms, last_ms = min(span.first_ms, other.first_ms), max(span.last_ms, other.last_ms)
                    span = LateRange(first_ms, last_ms, span.is_late)
                else:
                    joined.append(other)
            self._spans[node] = sorted([*joined, span])[-_MOST_SPANS:]
