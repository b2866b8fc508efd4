"""Data types that every store accepts and returns."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from pigeonpost.link.samples import Gap, Number, SampleBatch, Values
from protocol import Batch

_FLOAT_MAX = sys.float_info.max


class LateRange(NamedTuple):
    """Time range of samples that arrived late or, if `is_late` is False, whose times are uncertain.

    Attributes:
        first_ms: Time of the first sample, in ms since 1970 (UTC).
        last_ms: Time of the last sample, in ms since 1970 (UTC).
        is_late: True if the samples arrived late; False if the node's clock was not set.
    """

    first_ms: int
    last_ms: int
    is_late: bool


class HighWaterMark(NamedTuple):
    """High-water mark of one epoch: each sample up to `seq` is stored or is part of a recorded gap.

    Attributes:
        seq: The sequence number.
        up_ms: Uptime of the node at sample `seq`, in ms; None if a gap ends there. With it a node detects that a copy
            of its SD card has sent samples.
    """

    seq: int
    up_ms: int | None


NOTHING = HighWaterMark(0, None)


class EpochMark(NamedTuple):
    """Position up to which an epoch is stored.

    Attributes:
        seq: Its high-water mark.
        outbox: Id of the outbox of the epoch, or an empty string if it is unknown.
    """

    seq: int
    outbox: str


HOUR_MS = 3_600_000
STRETCH_SAMPLES = 4_096  # maximum number of samples in a stretch
STRETCH_VALUES = 65_536  # maximum number of values in a stretch of several samples, which is always read completely


def stretch_samples(sensors: int) -> int:
    """Return the maximum number of samples in a stretch with this number of `sensors`."""
    return max(1, min(STRETCH_SAMPLES, STRETCH_VALUES // max(1, sensors)))


def stretches(batch: SampleBatch) -> list[SampleBatch]:
    """Return `batch`, divided into stretches: each is within one hour (UTC) and has at most `stretch_samples` samples.

    The times need not be in ascending order, because a clock may step back between two samples.
    """
    times = batch.times
    count, most = len(times), stretch_samples(len(batch.values))
    if min(times) // HOUR_MS == max(times) // HOUR_MS:
        cuts = list(range(0, count, most))
    else:
        cuts = [start + offset for start, stop in runs(times, HOUR_MS) for offset in range(0, stop - start, most)]
    if len(cuts) == 1:
        return [batch]
    return [batch.part(start, stop) for start, stop in zip(cuts, [*cuts[1:], count], strict=True)]


def runs(times: list[int], span_ms: int) -> list[tuple[int, int]]:
    """Return the runs in `times`, as pairs of the first index and the index after the last one.

    A run consists of consecutive samples in one window of `span_ms`.
    """
    count = len(times)
    starts = [0]
    if times == sorted(times):
        while (end_ms := window_end(times[starts[-1]], span_ms)) <= times[-1]:
            starts.append(bisect_left(times, end_ms, starts[-1]))
    else:
        windows = [time_ms // span_ms for time_ms in times]
        starts += [place for place in range(1, count) if windows[place] != windows[place - 1]]
    return list(zip(starts, [*starts[1:], count], strict=True))


class Reading(NamedTuple):
    """The newest reading of a sensor.

    Attributes:
        sensor: Name of the sensor.
        value: Its value; None if the reading failed.
        time_ms: Time of its sample, in ms since 1970 (UTC).
        unit: Unit of the value.
        error: Reason of the failure; empty if there is a value.
        clock: Source of `time_ms`, as in Sample.
    """

    sensor: str
    value: Number | None
    time_ms: int
    unit: str
    error: str
    clock: str


class EpochCommit:
    """Samples and gaps that one commit adds to one epoch.

    Attributes:
        node: Name of the node.
        outbox: Id of the node's outbox.
        epoch: Id of the epoch.
        mark: High-water mark of the epoch after `items` are stored.
        top: Highest running number of `outbox` that is accounted for; 0 if it is unknown.
        units: Units by channel.
        items: Stretches of samples and gaps, in the order of the CSV log.
        count: Number of samples in `items`.
    """

    def __init__(self, node: str, outbox: str, epoch: str, mark: HighWaterMark) -> None:
        """Initialise a commit without items. `mark` is the present high-water mark of `epoch` of `node`'s `outbox`."""
        self.node = node
        self.outbox = outbox
        self.epoch = epoch
        self.mark = mark
        self.top = 0
        self.units: Mapping[str, str] = {}
        self.items: list[SampleBatch | Gap] = []
        self.count = 0
        self._is_own = False  # True if the last item is a copy that no submitted batch shares

    def add(self, batch: Batch, known: int) -> None:
        """Add the samples or the gap of `batch`, without the first `known` samples, which are stored already."""
        if batch.gap is not None:
            gap = batch.gap
            first = min(gap.first + known, gap.last + 1)
            self.items.append(gap._replace(first=first))
            self.mark = HighWaterMark(
                max(gap.last, self.mark.seq), None if gap.last > self.mark.seq else self.mark.up_ms
            )
        elif batch.samples is not None:
            for stretch in stretches(batch.samples.part(known) if known else batch.samples):
                self._add_stretch(stretch)
        if batch.base is not None:
            self.top = max(self.top, batch.base + self.mark.seq)

    def _add_stretch(self, new: SampleBatch) -> None:
        before = self.items[-1] if self.items else None
        if (
            isinstance(before, SampleBatch)
            and before.is_followed_by(new)
            and before.times[0] // HOUR_MS == new.times[0] // HOUR_MS
            and len(before) + len(new) <= stretch_samples(len(new.values))
        ):
            if not self._is_own:  # the submitted batch must not change: the commit may have to be repeated
                before = self.items[-1] = before.part(0)
                self._is_own = True
            before.extend(new)
        else:
            self.items.append(new)
            self._is_own = False
        self.mark = HighWaterMark(new.last, new.last_up_ms)
        self.count += len(new)


class LogMark(NamedTuple):
    """Position up to which a CSV log is written and synced.

    Attributes:
        name: File name of the log.
        size: Number of bytes that are written and synced.
        tail: CRC-32 of the last bytes before `size`. With it a later change of the file is detected.
        filed: Filing number of the last entry in these bytes (see contract.py).
    """

    name: str
    size: int
    tail: int
    filed: int


class LostRows(NamedTuple):
    """Rows that are missing in the CSV log and cannot be written again.

    Attributes:
        node: Name of the node.
        lines: Number of rows; 0 if it is unknown.
        first_ms: Time of the first row, in ms since 1970 (UTC).
        last_ms: Time of the last row, in ms since 1970 (UTC).
    """

    node: str
    lines: int
    first_ms: int
    last_ms: int


class LogEntry(NamedTuple):
    """Entry that the CSV log must still write, read back from the store: samples of one epoch, or a gap.

    Attributes:
        filed: Filing number.
        node: Name of the node.
        epoch: Id of the epoch.
        items: The samples or the gap. An entry of an older version may contain several items. A damaged entry has none.
        noted_ms: Time at which a gap was recorded, in ms since 1970 (UTC).
        units: Units by channel.
        lost: Rows of a damaged entry; None if the entry is not damaged.
    """

    filed: int
    node: str
    epoch: str
    items: Sequence[SampleBatch | Gap]
    noted_ms: int
    units: Mapping[str, str]
    lost: LostRows | None = None


class StoredSample(NamedTuple):
    """Sample that was read back from the store.

    Attributes:
        node: Name of the node.
        time_ms: Time of the sample, in ms since 1970 (UTC).
        epoch: Id of the epoch.
        seq: Sequence number.
        values: Values by channel; None for a channel that failed.
        clock: Clock state: "unset", "server", or empty for the node's own clock, which was set.
    """

    node: str
    time_ms: int
    epoch: str
    seq: int
    values: Values
    clock: str


class StoredBatch(NamedTuple):
    """Batch of samples of one epoch that was read back from the store. Its `samples` have no `ups`.

    Attributes:
        node: Name of the node.
        epoch: Id of the epoch.
        samples: The samples.
    """

    node: str
    epoch: str
    samples: SampleBatch


class FormerName(NamedTuple):
    """Name that a node had until it was renamed.

    Attributes:
        name: The former name.
        node: Current name of the node.
        until_ms: Time of the renaming, in ms since 1970 (UTC).
        is_released: True if a node that reports this name is a different node.
    """

    name: str
    node: str
    until_ms: int
    is_released: bool = False


class NodeRecords(NamedTuple):
    """Records that operators have made about nodes.

    Attributes:
        former: Former names, the earliest renaming first. Several nodes may have had the same name.
        retired: Time since which a node is retired, in ms since 1970 (UTC), by node. Nodes in use are absent.
        labels: Labels, which are displayed instead of the sensors' names, by (node, sensor).
    """

    former: Sequence[FormerName] = ()
    retired: Mapping[str, int] = MappingProxyType({})
    labels: Mapping[tuple[str, str], str] = MappingProxyType({})


class Bucket(NamedTuple):
    """Values in one of several time ranges of equal length.

    Attributes:
        place: Index of the range (0, 1, ...).
        values: Number of values.
        low: Lowest value.
        high: Highest value.
        mean: Mean of the values.
    """

    place: int
    values: int
    low: float
    high: float
    mean: float

    def with_other(self, other: Bucket) -> Bucket:
        """Return this bucket merged with the bucket `other` of the same place."""
        values = self.values + other.values
        mean = (self.mean * self.values + other.mean * other.values) / values
        if mean - mean != 0:  # infinite or NaN: the sum exceeded the range of floats
            mean = self.mean * (self.values / values) + other.mean * (other.values / values)
        return bucket(self.place, values, min(self.low, other.low), max(self.high, other.high), mean)


def bucket(place: int, values: int, low: float, high: float, mean: float) -> Bucket:
    """Return a bucket of `values` values at `place`, with `mean` limited to the range from `low` to `high`.

    Rounding can move a mean out of its range, and even to infinity near the limits of floats.
    """
    return Bucket(place, values, low, high, min(max(mean, low), high))


class Rollup(NamedTuple):
    """Statistics of one sensor's values in a window [start, end).

    Attributes:
        end_ms: End of the window, in ms since 1970 (UTC).
        values: Number of values.
        mean: Mean of the values.
        median: Middle value, or the mean of the two middle values.
        mode: Most frequent value; the lowest one if there are several.
        low: Lowest value.
        high: Highest value.
        deviation: Standard deviation of the population (the sum of squares is divided by `values`).
    """

    end_ms: int
    values: int
    mean: float
    median: float
    mode: float
    low: float
    high: float
    deviation: float


SPANS_MS = (600_000, HOUR_MS)  # lengths of the rollup windows: ten minutes and one hour, aligned to 1970 (UTC)


class NodeUsage(NamedTuple):
    """Usage of the limited resources of a store by one node: see server/node_limits.py.

    Attributes:
        nodes: Number of all nodes in the store.
        epochs: Number of epochs of the node.
        gaps: Number of gaps of the node.
        missing: Number of samples in these gaps, including those of earlier epochs (`before`).
    """

    nodes: int
    epochs: int
    gaps: int
    missing: int


class Window(NamedTuple):
    """Dirty window: its rollups must be calculated for the first time or again.

    Attributes:
        node: Name of the node.
        span_ms: Length of the window, in ms.
        end_ms: End of the window, in ms since 1970 (UTC).
        as_of: Version of the window's content. With it the store detects samples that were added later.
        is_late: True if samples of the window may have been deleted. The samples that are stored arrived after that.
    """

    node: str
    span_ms: int
    end_ms: int
    as_of: int
    is_late: bool = False


def is_late(end_ms: int, kept_from_ms: int) -> bool:
    """Return True if samples of the window that ends at `end_ms` may have been deleted.

    `kept_from_ms` is the time before which samples may have been deleted, or 0 if none were.
    """
    return kept_from_ms > 0 and end_ms <= kept_from_ms


def merge_rollups(one: Rollup, other: Rollup) -> Rollup:
    """Return the rollup of a window from the rollups `one` and `other` of its two parts, without their samples.

    Count, mean, minimum, maximum and deviation are exact (Chan, Golub and LeVeque 1979). Median and mode are taken from
    the part with more values.
    """
    values = one.values + other.values
    low, high = min(one.low, other.low), max(one.high, other.high)
    scale = scale_of(low, high)
    apart = other.mean / scale - one.mean / scale
    mean = one.mean / scale + apart * (other.values / values)
    squares = (one.deviation / scale) ** 2 * one.values + (other.deviation / scale) ** 2 * other.values
    squares += apart**2 * (one.values * other.values / values)
    larger = max(one, other, key=lambda part: part.values)
    return Rollup(
        one.end_ms, values, unscaled(mean, scale, low, high), larger.median, larger.mode, low, high,
        unscaled(math.sqrt(squares / values), scale),
    )  # fmt: skip


def scale_of(low: float, high: float) -> float:
    """Return a power of two by which values from `low` to `high` are divided so that they are between -2 and 2.

    The division is exact. It is needed because sums and squares of very large values exceed the range of floats.
    """
    return 2.0 ** min(math.frexp(max(abs(low), abs(high)))[1], 1023)


def unscaled(value: float, scale: float, low: float = -_FLOAT_MAX, high: float = _FLOAT_MAX) -> float:
    """Return `value` times `scale`, limited to the range from `low` to `high`.

    Rounding can move the product out of the range, and even to infinity near the limits of floats.
    """
    return min(max(value * scale, low), high)


def window_end(time_ms: int, span_ms: int) -> int:
    """Return the end of the window of `span_ms` that contains `time_ms`. Windows are [start, end)."""
    return (time_ms // span_ms + 1) * span_ms


def whole_hours(first_ms: int, last_ms: int) -> int:
    """Return the time before which samples may be deleted: the end of a complete hour, in ms since 1970 (UTC).

    Only complete hours are deleted. If an hour lost only some of its samples, late samples could not be distinguished
    from the remaining ones, which are included in the rollups already.

    Args:
        first_ms: Time of the oldest sample to delete, in ms since 1970 (UTC).
        last_ms: Time of the newest sample to delete, in ms since 1970 (UTC).
    """
    end_ms = window_end(last_ms, HOUR_MS)
    start_ms = end_ms - HOUR_MS
    return start_ms if first_ms < start_ms else end_ms


def pieces_to_read(
    from_ms: int, to_ms: int, count: int, kept_from_ms: int, dirty_ends: Callable[[int, int, int], Iterable[int]]
) -> list[tuple[int, int, int]]:
    """Return the time ranges to read in order to make buckets, each from rollups or from samples.

    Rollups are used if the buckets are at least as wide as a window, and where samples are deleted. They are not used
    for dirty windows. For a dirty window whose samples are deleted, both its rollup and its late samples are read.

    Args:
        from_ms: Start of all buckets, in ms since 1970 (UTC), inclusive.
        to_ms: End of all buckets, exclusive.
        count: Number of buckets.
        kept_from_ms: Time before which samples may have been deleted; 0 if none were.
        dirty_ends: Function (span, after, until) that returns the ends of the dirty windows of this span that end in
            (after, until], oldest first. All times are in ms.

    Returns:
        Triples (span, from, to), oldest first. They select the windows of that span within [from, to) or, if the span
        is 0, the samples in [from, to).
    """
    width_ms = (to_ms - from_ms) / count
    span_ms = max((span for span in SPANS_MS if span <= width_ms), default=0)
    summed_to_ms = to_ms if span_ms else min(to_ms, kept_from_ms) if kept_from_ms > 0 else from_ms
    span_ms = span_ms or SPANS_MS[0]
    low_ms = -(-from_ms // span_ms) * span_ms
    high_ms = summed_to_ms // span_ms * span_ms
    if high_ms <= low_ms:
        return [(0, from_ms, to_ms)]
    pieces, next_ms = [(0, from_ms, low_ms)], low_ms
    for end_ms in dirty_ends(span_ms, low_ms, high_ms):
        summed_ms = end_ms if is_late(end_ms, kept_from_ms) else end_ms - span_ms
        pieces += [(span_ms, next_ms, summed_ms), (0, end_ms - span_ms, end_ms)]
        next_ms = end_ms
    pieces += [(span_ms, next_ms, high_ms), (0, high_ms, to_ms)]
    found: list[tuple[int, int, int]] = []
    for piece in pieces:
        if piece[1] >= piece[2]:
            continue
        if found and not piece[0] and not found[-1][0]:  # adjacent dirty windows are read together
            found[-1] = (0, found[-1][1], piece[2])
        else:
            found.append(piece)
    return found
