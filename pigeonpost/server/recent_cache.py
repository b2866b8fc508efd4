"""In-memory cache of each node's last 24 h, downsampled for the dashboard.

`_lock` guards the cache, and is held while it is brought up to date, reads of the store included; only buckets into
which samples came are read. `_touching` guards the record of what has changed since, so that the writer never waits for
a reader. Errors: those of the store.

    age of a node's first sample     under 10 min    under 1 h    else
    span                             10 min          1 h          24 h
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
MOST_SENSORS = 100  # of a node: a day of each takes up to 60 KiB
_FORGET_MS = 3_600_000  # all is read again so often: a clock that stepped back leaves nothing wrong for longer


class RecentColumns(NamedTuple):
    """A node's last day (or hour, or ten minutes): the buckets of each sensor that are not empty, places from 0."""

    from_ms: int
    span_ms: int
    width_ms: int
    columns: dict[str, list[Bucket]]


class _NodeCache:
    """The cached buckets of one node. Places count from 1970, so that time passing moves nothing."""

    def __init__(self, span_ms: int, width_ms: int, made_ms: int, sensors: Collection[str]) -> None:
        self.span_ms = span_ms
        self.width_ms = width_ms
        self.made_ms = made_ms
        self.sensors = sensors
        self.last = -1  # the last place that was read: later ones may have samples too, of a node whose clock is ahead
        self.columns: dict[str, dict[int, Bucket]] = {}
        self._shown: dict[str, list[Bucket]] = {}  # with places from `_shown_first` on
        self._shown_first = -1

    def shown(self, first: int, last: int, changed: int) -> dict[str, list[Bucket]]:
        """The columns from `first` to `last`, places from 0. Those before `changed` are as they were the last time."""
        if first != self._shown_first:
            self._shown, changed = {}, first
        fresh = range(changed, last + 1)
        shown = {}
        for sensor, places in self.columns.items():
            columns = self._shown.get(sensor, [])
            kept = columns[: bisect_left(columns, changed - first, key=_PLACE)]
            shown[sensor] = kept + [Bucket(at - first, *places[at][1:]) for at in fresh if at in places]
        self._shown, self._shown_first = shown, first
        return shown

    def read(self, store: Store, node: str, first: int, last: int) -> None:
        """Read places `first` to `last` again."""
        width = self.width_ms
        found = store.downsample_all(node, first * width, (last + 1) * width, last + 1 - first, self.sensors)
        self.last = max(self.last, last)
        for columns in self.columns.values():
            for place in range(first, last + 1):
                columns.pop(place, None)
        for sensor, fresh in found.items():
            columns = self.columns.setdefault(sensor, {})
            columns.update({first + column.place: column for column in fresh})

    def forget_before(self, first: int) -> None:
        for columns in self.columns.values():
            for place in [place for place in columns if place < first]:
                del columns[place]


class RecentCache:
    """The cached buckets of all nodes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._books: dict[str, _NodeCache] = {}
        self._touching = threading.Lock()
        self._touched: dict[str, tuple[int, int]] = {}  # node to the earliest and the latest time stored since

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Remember that these were stored; called by the writer, so it only notes from when to when."""
        for epoch_commit in epoch_commits:
            batches = [item.times for item in epoch_commit.items if isinstance(item, SampleBatch)]
            if batches:
                first, last = min(map(min, batches)), max(map(max, batches))
                with self._touching:
                    low, high = self._touched.get(epoch_commit.node, (first, last))
                    self._touched[epoch_commit.node] = min(low, first), max(high, last)

    def on_rename(self, node: str, new: str) -> None:
        """Forget a node that has another name now: what is shown of it is read again."""
        with self._touching:
            self._touched.pop(node, None)
        with self._lock:
            self._books.pop(node, None)

    def day(self, node: str, first_ms: int | None, now_ms: int, sensors: Iterable[str]) -> RecentColumns:
        """The last day of `node`, whose first sample is from `first_ms` (None: it has none).

        sensors  its sensors, in the order of importance: of more than MOST_SENSORS the others are left out
        """
        wanted = frozenset(islice(sensors, MOST_SENSORS))
        old_ms = 0 if first_ms is None else max(0, now_ms - first_ms)
        span_ms, width_ms = next((span for span in _SPANS if old_ms < span[0]), _SPANS[-1])
        last = now_ms // width_ms
        first = last + 1 - span_ms // width_ms
        with self._lock:
            with self._touching:
                low_ms, high_ms = self._touched.pop(node, (now_ms, 0))
            book = self._books.pop(node, None)  # and back when it is up to date, so not when reading fails
            if (
                book is None
                or book.sensors != wanted
                or book.width_ms != width_ms
                or not 0 <= now_ms - book.made_ms < _FORGET_MS
            ):
                book = _NodeCache(span_ms, width_ms, now_ms, wanted)
            low, high = max(min(low_ms // width_ms, book.last + 1), first), min(high_ms // width_ms, last)
            if last > book.last:  # columns have begun since: what was stored ahead of its time is seen in them now
                high = last
            changed = low if low <= high else last + 1
            if low <= high:
                book.read(self._store, node, low, high)
            book.forget_before(first)
            self._books[node] = book
            columns = book.shown(first, last, changed)
        return RecentColumns(first * width_ms, span_ms, width_ms, columns)
