"""Downsampling of samples and rollups to the buckets of a chart.

The functions work on the snapshot of a `RunReader`. They read samples column by column, in the order of their times, so
the values of each bucket are a slice of a column.

Errors: those of the module runs.
"""

from __future__ import annotations

import math
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from pigeonpost.link.samples import Number, SampleBatch
from pigeonpost.storage.models import Bucket, bucket, pieces_to_read
from pigeonpost.storage.sqlite.integrity import plain_numbers
from pigeonpost.storage.sqlite.rollups import dirty_ends
from pigeonpost.storage.sqlite.runs import RunReader

_SMALL = 2.0**-64  # factor that keeps sums of very large values finite; a power of two, so that scaling is exact
Row = tuple[Any, ...]


class _BucketRanges:
    """Time ranges of the buckets: [from_ms, to_ms), divided into `count` equal parts."""

    def __init__(self, from_ms: int, to_ms: int, count: int) -> None:
        self._from_ms, self._width_ms, self._count = from_ms, to_ms - from_ms, count

    def cuts(self, times: list[int]) -> Iterator[tuple[int, int, int]]:
        """Yield (place, start, stop) for each bucket that contains some of `times`, which are in ascending order.

        `place` is the index of the bucket. Its times are `times[start:stop]`.
        """
        start, end = 0, len(times)
        while start < end:
            place = (times[start] - self._from_ms) * self._count // self._width_ms
            until_ms = self._from_ms - (-(place + 1) * self._width_ms // self._count)
            stop = bisect_left(times, until_ms, start)
            yield place, start, stop
            start = stop


def downsample(
    reader: RunReader, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
) -> dict[str, list[Bucket]]:
    """Return the buckets of several sensors, for Store.downsample_several.

    Rollups are read where their windows are not wider than a bucket, and where the samples are deleted. Elsewhere the
    samples are read.

    Args:
        reader: Reader of the snapshot.
        node: Name of the node.
        from_ms: Start of the range in milliseconds since 1970 (UTC), inclusive.
        to_ms: End of the range in milliseconds since 1970 (UTC), exclusive.
        count: Number of buckets.
        sensors: Names of the sensors.

    Returns:
        The buckets that have values, by sensor, in the order of their times.
    """
    found: dict[str, dict[int, Bucket]] = {sensor: {} for sensor in sensors}
    if to_ms > from_ms:
        db, ranges = reader.db, _BucketRanges(from_ms, to_ms, count)
        (kept_from,) = db.execute("SELECT max(kept_from) FROM nodes WHERE name = ?", (node,)).fetchone()
        dirty = partial(dirty_ends, db, node)
        for span_ms, start_ms, end_ms in pieces_to_read(from_ms, to_ms, count, kept_from or 0, dirty):
            if not span_ms:
                _add_samples(reader, ranges, node, start_ms, end_ms, found)
                continue
            for sensor, of_sensor in found.items():
                query = (from_ms, to_ms, count, node, sensor, start_ms, end_ms, span_ms)
                for row in plain_numbers(with_finite_means(partial(_read_windows, db, *query))):
                    _add(of_sensor, bucket(*row))
    return {sensor: [of_sensor[place] for place in sorted(of_sensor)] for sensor, of_sensor in found.items()}


def downsample_all(
    reader: RunReader, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
) -> dict[str, list[Bucket]]:
    """Return the buckets of several sensors, from their samples alone, for Store.downsample_all.

    Args:
        reader: Reader of the snapshot.
        node: Name of the node.
        from_ms: Start of the range in milliseconds since 1970 (UTC), inclusive.
        to_ms: End of the range in milliseconds since 1970 (UTC), exclusive.
        count: Number of buckets.
        sensors: Names of the sensors.

    Returns:
        The buckets that have values, by sensor, in the order of their times. Sensors without values are missing.
    """
    found: dict[str, dict[int, Bucket]] = {sensor: {} for sensor in sensors}
    if to_ms > from_ms:
        _add_samples(reader, _BucketRanges(from_ms, to_ms, count), node, from_ms, to_ms, found)
    return {
        sensor: [of_sensor[place] for place in sorted(of_sensor)] for sensor, of_sensor in found.items() if of_sensor
    }


def _add(found: dict[int, Bucket], new: Bucket) -> None:
    other = found.get(new.place)
    found[new.place] = new.with_other(other) if other else new


def _add_samples(
    reader: RunReader, ranges: _BucketRanges, node: str, from_ms: int, to_ms: int, found: dict[str, dict[int, Bucket]]
) -> None:
    """Add the samples of a node taken in [from_ms, to_ms) to the buckets of each sensor in `found`."""
    for _, _, batch in reader.batches(node, from_ms, to_ms, found):
        times, columns = _rising(batch)
        cuts = list(ranges.cuts(times))
        for name, column in zip(batch.names, columns, strict=True):
            of_sensor, is_complete = found[name], None not in column
            for place, start, stop in cuts:
                part = column[start:stop]
                values = part if is_complete else [value for value in part if value is not None]
                if values:
                    _add(of_sensor, _bucket_of(place, values))  # type: ignore[arg-type]


def _rising(batch: SampleBatch) -> tuple[list[int], list[list[Number | None]]]:
    """Return the times of a batch in ascending order, and the columns in the same order."""
    times, columns = batch.times, list(batch.values.values())
    ordered = sorted(times)
    if ordered == times:
        return times, columns
    order = sorted(range(len(times)), key=times.__getitem__)
    return ordered, [[column[index] for index in order] for column in columns]


def _bucket_of(place: int, values: list[Number]) -> Bucket:
    count, low, high = len(values), min(values), max(values)
    mean = sum(values) / count
    if low <= mean <= high:
        return Bucket(place, count, low, high, mean)
    if mean - mean != 0:  # the sum is too large for a float
        mean = math.fsum(value * _SMALL for value in values) / count / _SMALL
    return bucket(place, count, low, high, mean)


def with_finite_means(read: Callable[[float], Iterable[Row]]) -> Sequence[Row]:
    """Return the rows of `read`, whose last values are means, with finite means only.

    A sum of values near the largest float is infinite, or not a number. In this case `read` is called again with a
    small factor, and the means are divided by it.

    Args:
        read: Function that returns the rows. It multiplies the values by its argument before it adds them.
    """
    rows = list(read(1.0))
    if all(row[-1] is not None and row[-1] - row[-1] == 0 for row in rows):
        return rows
    return [(*row, mean / _SMALL) for *row, mean in read(_SMALL)]


def _read_windows(
    db: sqlite3.Connection, from_ms: int, to_ms: int, count: int, node: str, sensor: str, start_ms: int, end_ms: int,
    span_ms: int, scale: float,
) -> Iterable[Row]:  # fmt: skip
    return db.execute(
        'SELECT ("end" - ?8 - ?1) * ?3 / (?2 - ?1) AS i, sum("values"), min(low), max(high),'
        ' sum(mean * ?9 * "values") / sum("values")'
        " FROM summaries WHERE node = (SELECT id FROM nodes WHERE name = ?4) AND sensor = ?5 AND span = ?8"
        ' AND "end" > ?6 AND "end" <= ?7 GROUP BY i ORDER BY i',
        (from_ms, to_ms, count, node, sensor, start_ms, end_ms, span_ms, scale),
    )
