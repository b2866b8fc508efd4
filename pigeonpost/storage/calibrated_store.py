"""View of a store with calibrated values, through which pages, the JSON API, exports and reports read.

Any thread may use it. The writer thread, maintenance, CSV logs and verification use the store itself, which contains
raw values only. Errors: those of the store.

Samples are converted value by value. Buckets and rollups are converted without reading their samples if the curve is
straight between their lowest and highest value, and the same calibration is valid for all of them. Then all statistics
are exact. Otherwise, they are derived from shorter windows, and those of the remaining windows from their samples. Only
if these samples are deleted, or are more than MOST_READ, the mean is the true value of the raw mean. The lowest and the
highest value are exact in any case, except in a window that contains the date of a calibration.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, cast

from pigeonpost.core.errors import StoreDamaged
from pigeonpost.link.samples import Number
from pigeonpost.storage.calibration import (
    CalibrationTimeline,
    Curve,
    Timelines,
    calibrated_batch,
    calibrated_units,
    calibrated_values,
)
from pigeonpost.storage.contract import Store
from pigeonpost.storage.maintenance import rollup
from pigeonpost.storage.models import SPANS_MS, Bucket, Rollup, StoredBatch, StoredSample, bucket, window_end

MOST_READ = 200_000  # samples that one request reads in order to derive buckets or rollups
_QUERY_SAMPLES = 100  # one query counts as this number of samples


def calibrated(raw: Store, timelines_of: Callable[[str], Timelines]) -> Store:
    """Return a store with the data of `raw` and calibrated values.

    Args:
        raw: The store with the raw values.
        timelines_of: Function that returns the calibrated sensors of a node.
    """
    return cast("Store", _CalibratedStore(raw, timelines_of))


def raw_store(store: Store) -> Store:
    """Return the store with the raw values of `store`, or `store` itself if its values are raw."""
    return store.raw if isinstance(store, _CalibratedStore) else store


class _Budget:
    """Number of samples that one request may still read."""

    def __init__(self) -> None:
        self.left = MOST_READ

    def take(self, samples: int) -> bool:
        """Subtract `samples`. Return False if they are more than are left."""
        self.left -= samples
        return self.left >= 0


class _CalibratedStore:
    """Store with calibrated values. Methods and attributes that are not defined here are those of the raw store."""

    def __init__(self, raw: Store, timelines_of: Callable[[str], Timelines]) -> None:
        self.raw = raw
        self._of = timelines_of

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    # ---------------------------------------------------------------------------------------------- units and samples

    def nodes(self) -> list[dict[str, Any]]:
        """Return Store.nodes with the units of the calibrations."""
        found = self.raw.nodes()
        for about in found:
            if timelines := self._of(about["name"]):
                about["sensors"] = calibrated_units(about["sensors"], timelines)
        return found

    def known_units(self) -> dict[str, dict[str, str]]:
        """Return Store.known_units with the units of the calibrations."""
        return {node: calibrated_units(units, self._of(node)) for node, units in self.raw.known_units().items()}

    def points(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[StoredSample]:
        """Return Store.points with calibrated values."""
        found, timelines = self.raw.points(node, from_ms, to_ms, limit), self._of(node)
        if not timelines:
            return found
        return [
            point._replace(values=calibrated_values(point.time_ms, point.values, timelines)) for point in found
        ]  # fmt: skip

    def stored_batches(self, node: str, from_ms: int, to_ms: int) -> Iterator[StoredBatch]:
        """Yield Store.stored_batches with calibrated values."""
        return self._batches(self.raw.stored_batches(node, from_ms, to_ms))

    def every_batch(self) -> Iterator[StoredBatch]:
        """Yield Store.every_batch with calibrated values."""
        return self._batches(self.raw.every_batch())

    def batches_of_epoch(self, node: str, epoch: str, after: int, most: int) -> list[StoredBatch]:
        """Return Store.batches_of_epoch with calibrated values."""
        return list(self._batches(self.raw.batches_of_epoch(node, epoch, after, most)))

    def _batches(self, batches: Iterable[StoredBatch]) -> Iterator[StoredBatch]:
        for stored in batches:
            timelines = self._of(stored.node)
            yield stored._replace(samples=calibrated_batch(stored.samples, timelines)) if timelines else stored

    # ------------------------------------------------------------------------------------------------------- buckets

    def downsample(self, node: str, sensor: str, from_ms: int, to_ms: int, count: int) -> list[Bucket]:
        """Return Store.downsample with calibrated values."""
        return self.downsample_several(node, from_ms, to_ms, count, (sensor,))[sensor]

    def downsample_several(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        """Return Store.downsample_several with calibrated values."""
        found, timelines = self.raw.downsample_several(node, from_ms, to_ms, count, sensors), self._of(node)
        for sensor in timelines.keys() & found.keys():
            grid = _Grid(self.raw, node, sensor, timelines[sensor], from_ms, to_ms, count, _Budget())
            found[sensor] = grid.calibrated(found[sensor])
        return found

    def downsample_all(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        """Return Store.downsample_all with calibrated values."""
        found, timelines = self.raw.downsample_all(node, from_ms, to_ms, count, sensors), self._of(node)
        for sensor in timelines.keys() & found.keys():
            grid = _Grid(
                self.raw, node, sensor, timelines[sensor], from_ms, to_ms, count, _Budget(), uses_rollups=False
            )
            found[sensor] = grid.calibrated(found[sensor])
        return found

    # ------------------------------------------------------------------------------------------------------- rollups

    def summaries(self, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
        """Return Store.summaries with calibrated values."""
        found, timeline = self.raw.summaries(node, sensor, span_ms, from_ms, to_ms), self._of(node).get(sensor)
        if timeline is None:
            return found
        budget, result = _Budget(), []
        for is_exact, group in groupby(found, lambda one: _is_exact(timeline, one, one.end_ms - span_ms, one.end_ms)):
            windows = list(group)
            values = {} if is_exact else self._values_of(node, sensor, timeline, span_ms, windows, budget)
            for one in windows:
                if len(of_window := values.get(one.end_ms, ())) >= one.values:
                    result.append(rollup(list(of_window), one.end_ms))
                else:
                    curve = timeline.curve(one.end_ms - span_ms)
                    result.append(one if curve is None else curve.rollup(one))
        return result

    def _values_of(
        self, node: str, sensor: str, timeline: CalibrationTimeline, span_ms: int, windows: Sequence[Rollup],
        budget: _Budget,
    ) -> dict[int, list[float]]:  # fmt: skip
        """Return the values in `windows` of `span_ms` by the end of the window; none of those that are not read."""
        found: dict[int, list[float]] = {one.end_ms: [] for one in windows}
        first_ms, last_ms = windows[0].end_ms - span_ms, windows[-1].end_ms
        for times, values in _columns(self.raw, node, sensor, timeline, first_ms, last_ms, budget):
            for time_ms, value in zip(times, values):
                end_ms = (time_ms // span_ms + 1) * span_ms
                if value is not None and end_ms in found:
                    found[end_ms].append(value)
        return found


def _is_exact(timeline: CalibrationTimeline, raw: Bucket | Rollup, from_ms: int, to_ms: int) -> bool:
    """Return True if the statistics of values in [from_ms, to_ms) can be converted without their samples."""
    if not timeline.is_uniform(from_ms, to_ms - 1):
        return False
    curve = timeline.curve(from_ms)
    return curve is None or curve.is_straight(raw.low, raw.high)


def _columns(
    raw: Store, node: str, sensor: str, timeline: CalibrationTimeline, from_ms: int, to_ms: int, budget: _Budget
) -> Iterator[tuple[list[int], list[Number | None]]]:
    """Yield times and true values in [from_ms, to_ms), until the budget is used up or a row is damaged."""
    if not budget.take(_QUERY_SAMPLES):
        return
    try:
        for _, _, batch in raw.stored_batches(node, from_ms, to_ms):
            if not budget.take(len(batch)):
                return
            column = batch.values.get(sensor)
            if column:
                yield batch.times, timeline.column(batch.times, column)
    except StoreDamaged:  # of one hour: the store reports it, and the bucket or rollup is converted without its samples
        if raw.damage:
            raise


class _Grid:
    """Buckets of equal width of one sensor, as of Store.downsample: see there for the arguments."""

    def __init__(
        self, raw: Store, node: str, sensor: str, timeline: CalibrationTimeline, from_ms: int, to_ms: int, count: int,
        budget: _Budget, uses_rollups: bool = True,
    ) -> None:  # fmt: skip
        self._source = raw, node, sensor, timeline
        self._timeline = timeline
        self._from_ms, self._to_ms, self._count = from_ms, to_ms, count
        self._budget = budget
        width_ms = (to_ms - from_ms) / count
        # Windows from whose rollups the buckets were made: a value counts in the bucket of the start of its window.
        self._span_ms = max((span for span in SPANS_MS if span <= width_ms), default=0) if uses_rollups else 0
        # Windows that are shorter than a bucket; 0 if there are none.
        self._finer_ms = max((span for span in SPANS_MS if 2 * span <= width_ms), default=0) if uses_rollups else 0

    def calibrated(self, found: Sequence[Bucket]) -> list[Bucket]:
        """Return the raw buckets `found` with calibrated values."""
        result: list[Bucket] = []
        # Adjacent buckets that must be derived are derived together. `place` minus index is the same for them.
        ranked = enumerate(found)
        for (is_exact, _), group in groupby(ranked, lambda one: (self._is_exact(one[1]), one[1].place - one[0])):
            buckets = [one for _, one in group]
            derived = {} if is_exact else self._derived(buckets)
            result += [derived.get(one.place) or self._converted(one) for one in buckets]
        return result

    def _is_exact(self, one: Bucket) -> bool:
        end_ms = self._edge_ms(one.place + 1) + self._span_ms  # the last window may end later than its bucket
        return _is_exact(self._timeline, one, self._edge_ms(one.place), end_ms)

    def _converted(self, one: Bucket) -> Bucket:
        curve: Curve | None = self._timeline.curve(self._edge_ms(one.place))
        return one if curve is None else curve.bucket(one)

    def _edge_ms(self, place: int) -> int:
        """Return the start of the bucket `place`."""
        return self._from_ms - (-place * (self._to_ms - self._from_ms) // self._count)

    @functools.cached_property
    def _dirty(self) -> Collection[int]:
        """Ends of the windows from whose samples the buckets were made: a value counts at its own time."""
        raw, node, _, _ = self._source
        return frozenset(raw.dirty_ends(node, self._span_ms, self._from_ms, self._to_ms) if self._span_ms else ())

    def _is_dirty(self, from_ms: int, to_ms: int) -> bool:
        return any(from_ms < end_ms < to_ms + self._span_ms for end_ms in self._dirty)

    def _start_ms(self, place: int) -> int:
        """Return the time of the first value that counts in the bucket `place`."""
        edge_ms = self._edge_ms(place)
        if not self._span_ms or not 0 < place < self._count:
            return edge_ms
        window_ms = -(-edge_ms // self._span_ms) * self._span_ms
        return edge_ms if window_ms in self._dirty else min(self._to_ms, window_ms)

    def _place(self, time_ms: int) -> int:
        """Return the place of the bucket in which a value at `time_ms` counts."""
        if self._span_ms and window_end(time_ms, self._span_ms) not in self._dirty:
            time_ms = max(self._from_ms, time_ms // self._span_ms * self._span_ms)
        return (time_ms - self._from_ms) * self._count // (self._to_ms - self._from_ms)

    def _derived(self, buckets: Sequence[Bucket]) -> dict[int, Bucket]:
        """Return calibrated buckets by place. A bucket is missing if not all of its values can be read."""
        found: dict[int, Bucket] = {}
        if not self._finer_ms:
            found = self._of_samples(self._start_ms(buckets[0].place), self._start_ms(buckets[-1].place + 1))
        else:  # a dirty window may be divided between two buckets, so these are derived one by one
            for is_dirty, group in groupby(
                buckets, lambda one: self._is_dirty(self._edge_ms(one.place), self._edge_ms(one.place + 1))
            ):
                adjacent = list(group)
                for part in [[one] for one in adjacent] if is_dirty else [adjacent]:
                    found |= self._of_windows(part[0].place, part[-1].place)
        return {one.place: new for one in buckets if (new := found.get(one.place)) and new.values >= one.values}

    def _of_windows(self, first: int, last: int) -> dict[int, Bucket]:
        """Return the buckets at the places `first` to `last`, derived from shorter windows."""
        raw, node, sensor, _ = self._source
        from_ms, to_ms = self._start_ms(first), self._start_ms(last + 1)
        low_ms = min(to_ms, -(-from_ms // self._finer_ms) * self._finer_ms)
        high_ms = max(low_ms, to_ms // self._finer_ms * self._finer_ms)
        found: dict[int, Bucket] = {}
        for start_ms, end_ms in ((from_ms, low_ms), (low_ms, high_ms), (high_ms, to_ms)):
            if start_ms >= end_ms or not self._budget.take(_QUERY_SAMPLES):
                continue
            count = max(1, (end_ms - start_ms) // self._finer_ms)
            grid = _Grid(*self._source, start_ms, end_ms, count, self._budget)
            for one in grid.calibrated(raw.downsample(node, sensor, start_ms, end_ms, count)):
                place = first if first == last else self._place(start_ms + one.place * (end_ms - start_ms) // count)
                other = found.get(place)
                found[place] = other.with_other(one) if other else one._replace(place=place)
        return found

    def _of_samples(self, from_ms: int, to_ms: int) -> dict[int, Bucket]:
        """Return buckets that are derived from the samples in [from_ms, to_ms)."""
        found: dict[int, list[float]] = {}
        for times, values in _columns(*self._source, from_ms, to_ms, self._budget):
            for place, value in zip(map(self._place, times), values):
                if value is not None:
                    found.setdefault(place, []).append(value)
        return {place: _bucket_of(place, values) for place, values in found.items()}


def _bucket_of(place: int, values: Sequence[Number]) -> Bucket:
    count = len(values)
    mean = math.fsum([value / count for value in values])  # the sum of huge values would be infinite
    return bucket(place, count, min(values), max(values), mean)
