"""Source of the samples for one forward target: the last commits, which are in memory, and the store.

The Ingestor's writer thread calls `on_commit` and `on_rename`, which only append to a limited queue and never wait for
anything else. `_lock` guards the queue. It is held while entries are added or taken, and never during a query. The
forwarder's thread calls the other methods. Further samples are read from the store.
Errors: those of the store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from pigeonpost.integrations.contract import ForwardBatch
from pigeonpost.integrations.forward_position import Key
from pigeonpost.link.samples import Gap, SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import EpochCommit, EpochMark

MOST_QUEUED = 5_000  # samples in the queues of all targets
_UNITS_S = 60.0  # minimum interval between two queries for units


class News(NamedTuple):
    """Changes since the last call of `ForwardSource.take`.

    Attributes:
        commits: The commits in the queue, oldest first.
        marks: New high-water marks, by node and epoch.
        renames: Pairs of a former and a new name.
    """

    commits: Sequence[EpochCommit]
    marks: Mapping[Key, EpochMark]
    renames: Sequence[tuple[str, str]]


class ForwardSource:
    """Samples of some nodes and sensors.

    Attributes:
        waiting: Number of samples that were committed since the last call of `take`.
    """

    def __init__(
        self,
        store: Store,
        nodes: Collection[str],
        sensors: Collection[str],
        current: Callable[[str], str],
        wake: Callable[[], object],
        most_queued: int = MOST_QUEUED,
    ) -> None:
        """Initialise the source.

        Args:
            store: The store, with calibrated values.
            nodes: Names of the nodes; empty for all nodes.
            sensors: Names of the sensors; empty for all sensors.
            current: Function that returns the current name of a node.
            wake: Called by the writer thread after it has added something.
            most_queued: Maximum number of samples in the queue.
        """
        self.waiting = 0
        self._store, self._sensors, self._wake, self._most_queued = store, sensors, wake, most_queued
        self._nodes = {*nodes, *map(current, nodes)}
        self._lock = threading.Lock()
        self._commits: list[EpochCommit] = []
        self._queued = 0  # samples in `_commits`
        self._marks: dict[Key, EpochMark] = {}
        self._renames: list[tuple[str, str]] = []
        self._units: dict[str, Mapping[str, str]] = {}
        self._units_s = -_UNITS_S  # time of the last query for units

    # ------------------------------------------------------------------------------------------- the writer thread

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Add `epoch_commits` to the queue, while it has space."""
        with self._lock:
            for commit in epoch_commits:
                if not self.is_wanted(commit.node):
                    continue
                self._marks[commit.node, commit.epoch] = EpochMark(commit.mark.seq, commit.outbox)
                self.waiting += commit.count
                count = max(1, commit.count)  # a commit can consist of gaps only
                if self._queued + count <= self._most_queued:
                    self._commits.append(commit)
                    self._queued += count
        self._wake()

    def on_rename(self, node: str, new: str) -> None:
        """Record that `node` has the name `new` now. Samples that are still in the queue are read from the store."""
        with self._lock:
            if node in self._nodes:
                self._nodes.add(new)
            self._commits.clear()
            self._queued = 0
            self._marks = {(new if key[0] == node else key[0], key[1]): mark for key, mark in self._marks.items()}
            self._renames.append((node, new))
        self._wake()

    # ---------------------------------------------------------------------------------------- the forwarder's thread

    def is_wanted(self, node: str) -> bool:
        """Return True if the samples of `node` are forwarded."""
        return not self._nodes or node in self._nodes

    def take(self) -> News:
        """Return all changes since the last call."""
        with self._lock:
            news = News(self._commits, self._marks, self._renames)
            self._commits, self._marks, self._renames = [], {}, []
            self._queued = self.waiting = 0
        for node, new in news.renames:
            if node in self._units:
                self._units[new] = self._units.pop(node)
        for commit in news.commits:
            self._units[commit.node] = commit.units
        return news

    def marks(self) -> dict[Key, EpochMark]:
        """Return the marks of all stored epochs of the nodes, by node and epoch."""
        return {key: mark for key, mark in self._store.epoch_marks().items() if self.is_wanted(key[0])}

    def stored(self, key: Key, outbox: str, after: int, most: int) -> list[ForwardBatch]:
        """Return the next stored samples of an epoch, with all of their sensors.

        Args:
            key: Node and epoch.
            outbox: Id of the outbox, or an empty string.
            after: Sequence number up to which the samples are sent.
            most: Maximum number of samples.
        """
        found = []
        for node, epoch, samples in self._store.batches_of_epoch(*key, after, most):
            found.append(ForwardBatch(node, outbox, epoch, after, samples, self._units_of(node, samples)))
            after = samples.last
        return found

    def only_wanted(self, batch: ForwardBatch) -> ForwardBatch | None:
        """Return `batch` with the sensors to forward, or None if it has none of them."""
        if not self._sensors:
            return batch
        samples = batch.samples
        values = {name: column for name, column in samples.values.items() if name in self._sensors}
        if not values:
            return None
        return batch._replace(samples=SampleBatch(samples.seq, samples.times, [], values, clock=samples.clock))

    def _units_of(self, node: str, samples: SampleBatch) -> Mapping[str, str]:
        units = self._units.get(node)
        if (units is None or not samples.values.keys() <= units.keys()) and (
            time.monotonic() - self._units_s >= _UNITS_S or units is None
        ):
            self._units_s = time.monotonic()
            self._units |= self._store.known_units()
            units = self._units.get(node)
        return units or {}


def joined(commits: Sequence[EpochCommit], after: int, most: int) -> Iterator[ForwardBatch]:
    """Yield the next samples of an epoch from its commits, while they directly follow those that are sent.

    Args:
        commits: Commits of one node and epoch, oldest first.
        after: Sequence number up to which the samples are sent.
        most: Maximum number of samples.
    """
    reach = after  # all numbers up to this one are sent or in a gap
    for commit in commits:
        for item in commit.items:
            if isinstance(item, Gap):
                if item.first > reach + 1:
                    return
                reach = max(reach, item.last)
                continue
            if item.last <= reach:
                continue
            if item.seq > reach + 1:
                return
            start = reach + 1 - item.seq
            part = item if not start and len(item) <= most else item.part(start, start + most)
            yield ForwardBatch(commit.node, commit.outbox, commit.epoch, after, part, commit.units)
            after = reach = part.last
            most -= len(part)
            if most <= 0:
                return


def sample_count(batches: Sequence[ForwardBatch]) -> int:
    """Return the number of samples in `batches`."""
    return sum(len(batch.samples) for batch in batches)


def halves(batches: Sequence[ForwardBatch]) -> tuple[list[ForwardBatch], list[ForwardBatch]]:
    """Return the first and the second half of the samples in `batches`, which are at least two."""
    left = sample_count(batches) // 2
    first: list[ForwardBatch] = []
    rest = list(batches)
    while left:
        batch = rest.pop(0)
        if len(batch.samples) > left:
            head = batch._replace(samples=batch.samples.part(0, left))
            rest.insert(0, batch._replace(samples=batch.samples.part(left), after=head.samples.last))
            batch = head
        first.append(batch)
        left -= len(batch.samples)
    return first, rest


def ends_of(batches: Sequence[ForwardBatch]) -> dict[Key, int]:
    """Return the last sequence number in `batches`, by node and epoch."""
    return {(batch.node, batch.epoch): batch.samples.last for batch in batches}
