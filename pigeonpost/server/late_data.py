"""Tracks time ranges with late or unsynchronised samples, for the charts.

Runs in any thread: `on_commit` in the ingestor's writer. `_lock` guards the ranges, held to add or to look up.

A sample is late when it is stored more than five minutes after it was taken: it was held, or imported. Its time is not
sure when its node's clock was not set, and nobody set it later in that boot. The store does not keep when a sample was
stored, so this is known of the samples of this run only. A node whose clock is known to be wrong is judged by it.
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
_JOIN_MS = 600_000  # two spans that are no farther apart are one
_MOST_SPANS = 100  # of a node; the oldest are forgotten
_MOST_NODES = 1000


class LateDataTracker:
    """The late and unsynchronised time ranges of all nodes."""

    def __init__(self, clock: Clock, links: Sequence[NodeLink] = ()) -> None:
        """links: everybody who is collected from, to know whose clock is how wrong; it may grow"""
        self._clock = clock
        self._links = links
        self._lock = threading.Lock()
        self._spans: dict[str, list[LateRange]] = {}

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Add the late ranges of what was committed. For Ingestor.subscribe."""
        now_ms = self._clock.wall_ms()
        for epoch_commit in epoch_commits:
            for item in epoch_commit.items:
                if isinstance(item, SampleBatch):
                    for span in self._judged(epoch_commit.node, item, now_ms):
                        self._add(epoch_commit.node, span)

    def on_rename(self, node: str, new: str) -> None:
        """Know the ranges of a node by its new name."""
        with self._lock:
            move_key(self._spans, node, new)

    def within(self, node: str, from_ms: int, to_ms: int) -> list[LateRange]:
        """The spans of `node` that lie in [from_ms, to_ms) or reach into it, the oldest first."""
        with self._lock:
            return [span for span in self._spans.get(node, ()) if span.last_ms >= from_ms and span.first_ms < to_ms]

    def _judged(self, node: str, samples: SampleBatch, now_ms: int) -> Iterable[LateRange]:
        times = samples.times
        if samples.clock == "unset":
            yield LateRange(min(times), max(times), False)
        elif times[0] < now_ms - LATE_MS:  # else not even by a clock that is right
            before_ms = now_ms + self._shift_ms(node) - LATE_MS
            if max(times) >= before_ms:
                times = [time_ms for time_ms in times if time_ms < before_ms]
            if times:
                yield LateRange(min(times), max(times), True)

    def _shift_ms(self, node: str) -> int:
        """The node's clock minus ours, as far as it is known."""
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
                near = other.first_ms - _JOIN_MS <= span.last_ms and span.first_ms <= other.last_ms + _JOIN_MS
                if near and other.is_late == span.is_late:
                    first_ms, last_ms = min(span.first_ms, other.first_ms), max(span.last_ms, other.last_ms)
                    span = LateRange(first_ms, last_ms, span.is_late)
                else:
                    joined.append(other)
            self._spans[node] = sorted([*joined, span])[-_MOST_SPANS:]
