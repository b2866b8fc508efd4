"""In-memory cache of each node's last 24 h, downsampled for the dashboard.

`_lock` guards the cache. It is held while the cache is updated, including reads of the store. Only buckets with new
samples are read. `_touched_lock` guards the time ranges of the samples that were committed since the last update. It is
never held while the store is read, so the writer thread does not wait for readers.
Errors: those of the store.

    age of a node's first sample     under 10 min    under 1 h    1 h or more
    time range                       10 min          1 h          24 h
    width of a bucket                10 s            1 min        10 min
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import Bucket, EpochCommit

_SPANS = ((600_000, 10_000), (3_600_000, 60_000), (86_400_000, 600_000))  # ms
_PLACE = attrgetter("place")
MOST_SENSORS = 100  # cached sensors per node: a day of one sensor takes up to 60 KiB
_RELOAD_MS = 3_600_000  # interval at which everything is read again: this limits errors after a clock stepped back


class RecentColumns(NamedTuple):
    """Buckets of a node's last 24 h, or of a shorter range if the node is new.

    Attributes:
        from_ms: Start of the first bucket, in ms since 1970 (UTC).
        span_ms: Length of the time range, in ms.
        width_ms: Width of a bucket, in ms.
        columns: Buckets that are not empty, by sensor. The `place` of the first possible bucket is 0.
    """

    from_ms: int
    span_ms: int
    width_ms: int
    columns: dict[str, list[Bucket]]


class _NodeCache:
    """Cached buckets of one node. The place (index) of a bucket counts from 1970, so it does not change with time."""

    def __init__(self, span_ms: int, width_ms: int, made_ms: int, sensors: Collection[str]) -> None:
        self.span_ms = span_ms
        self.width_ms = width_ms
        self.made_ms = made_ms
        self.sensors = sensors
        self.last = -1  # last place that was read; if the node's clock is ahead, later places may have samples too
        self.columns: dict[str, dict[int, Bucket]] = {}
        self._result: dict[str, list[Bucket]] = {}  # last result of `buckets`; its place 0 is `_result_first`
        self._result_first = -1

    def buckets(self, first: int, last: int, changed: int) -> dict[str, list[Bucket]]:
        """Return the buckets from `first` to `last`, renumbered from 0. Those before `changed` have not changed."""
        if first != self._result_first:
            self._result, changed = {}, first
        fresh = range(changed, last + 1)
        result = {}
        for sensor, places in self.columns.items():
            columns = self._result.get(sensor, [])
            kept = columns[: bisect_left(columns, changed - first, key=_PLACE)]
            result[sensor] = kept + [Bucket(at - first, *places[at][1:]) for at in fresh if at in places]
        self._result, self._result_first = result, first
        return result

    def read(self, store: Store, node: str, first: int, last: int) -> None:
        """Read the buckets at the places `first` to `last` again."""
        width = self.width_ms
        found = store.downsample_all(node, first * width, (last + 1) * width, last + 1 - first, self.sensors)
        self.last = max(self.last, last)
        for columns in self.columns.values():
            for place in range(first, last + 1):
                columns.pop(place, None)
        for sensor, fresh in found.items():
            columns = self.columns.setdefault(sensor, {})
            columns.update({first + column.place: column for column in fresh})

    def remove_before(self, first: int) -> None:
        for columns in self.columns.values():
            for place in [place for place in columns if place < first]:
                del columns[place]


class RecentCache:
    """Cached buckets of all nodes."""

    def __init__(self, store: Store) -> None:
        """Initialise an empty cache of `store`."""
        self._store = store
        self._lock = threading.Lock()
        self._nodes: dict[str, _NodeCache] = {}
        self._touched_lock = threading.Lock()
        self._touched: dict[str, tuple[int, int]] = {}  # earliest and latest time of the new samples of each node

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Record the time ranges of new samples in `epoch_commits`.

        Called with each commit (see Ingestor.subscribe) in the writer thread, so the store is not read here.
        """
        for epoch_commit in epoch_commits:
            batches = [item.times for item in epoch_commit.items if isinstance(item, SampleBatch)]
            if batches:
                first, last = min(map(min, batches)), max(map(max, batches))
                with self._touched_lock:
                    low, high = self._touched.get(epoch_commit.node, (first, last))
                    self._touched[epoch_commit.node] = min(low, first), max(high, last)

    def on_rename(self, node: str, new: str) -> None:
        """Remove `node`, which is now named `new`. Its data is then read again."""
        self.forget(node)

    def forget(self, node: str) -> None:
        """Remove `node`, for example because its calibrations have changed. Its data is then read again."""
        with self._touched_lock:
            self._touched.pop(node, None)
        with self._lock:
            self._nodes.pop(node, None)

    def day(self, node: str, first_ms: int | None, now_ms: int, sensors: Iterable[str]) -> RecentColumns:
        """Return the buckets of a node's last 24 h.

        Args:
            node: Name of the node.
            first_ms: Time of its first sample, in ms since 1970 (UTC); None if there is none.
            now_ms: Current time, in ms since 1970 (UTC).
            sensors: Names of its sensors, the most important one first. Only the first MOST_SENSORS are included.
        """
        included = frozenset(islice(sensors, MOST_SENSORS))
        age_ms = 0 if first_ms is None else max(0, now_ms - first_ms)
        span_ms, width_ms = next((span for span in _SPANS if age_ms < span[0]), _SPANS[-1])
        last = now_ms // width_ms
        first = last + 1 - span_ms // width_ms
        with self._lock:
            with self._touched_lock:
                low_ms, high_ms = self._touched.pop(node, (now_ms, 0))
            cache = self._nodes.pop(node, None)  # added again after the update, and not if reading fails
            if (
                cache is None
                or cache.sensors != included
                or cache.width_ms != width_ms
                or not 0 <= now_ms - cache.made_ms < _RELOAD_MS
            ):
                cache = _NodeCache(span_ms, width_ms, now_ms, included)
            low, high = max(min(low_ms // width_ms, cache.last + 1), first), min(high_ms // width_ms, last)
            if last > cache.last:  # new buckets have begun: they may contain samples whose times were in the future
                high = last
            changed = low if low <= high else last + 1
            if low <= high:
                cache.read(self._store, node, low, high)
            cache.remove_before(first)
            self._nodes[node] = cache
            columns = cache.buckets(first, last, changed)
        return RecentColumns(first * width_ms, span_ms, width_ms, columns)
