"""Data that every store takes and returns."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from pigeonpost.link.samples import Gap, SampleBatch, Values
from protocol import Batch

_FLOAT_MAX = sys.float_info.max


class LateRange(NamedTuple):
    """Time range of samples that came late; or, where `is_late` is False, whose times are uncertain."""

    first_ms: int
    last_ms: int
    is_late: bool


class HighWaterMark(NamedTuple):
    """The high-water mark of one epoch: everything up to `seq` is stored, or is a recorded gap.

    `up_ms` is sample `seq`'s, by which a node recognises that a copy of its card was here; None where a gap ended.
    """

    seq: int
    up_ms: int | None


NOTHING = HighWaterMark(0, None)


HOUR_MS = 3_600_000
STRETCH_SAMPLES = 4_096  # in a stretch at most,
STRETCH_VALUES = 65_536  # and values, unless one sample has more: a stretch is read as a whole


def stretch_samples(sensors: int) -> int:
    """Return how many samples of so many sensors a stretch has at most."""
    return max(1, min(STRETCH_SAMPLES, STRETCH_VALUES // max(1, sensors)))


def stretches(batch: SampleBatch) -> list[SampleBatch]:
    """Return a batch cut into stretches: each within one hour of UTC, of `stretch_samples` at most.

    The times need not rise: a clock may step back between two samples.
    """
    times = batch.times
    count, most = len(times), stretch_samples(len(batch.values))
    if min(times) // HOUR_MS == max(times) // HOUR_MS:
        cuts = list(range(0, count, most))
    else:
        cuts = [start + extra for start, stop in runs(times, HOUR_MS) for extra in range(0, stop - start, most)]
    if len(cuts) == 1:
        return [batch]
    return [batch.part(start, stop) for start, stop in zip(cuts, [*cuts[1:], count], strict=True)]


def runs(times: list[int], span_ms: int) -> list[tuple[int, int]]:
    """Return the places where a run begins and ends: of samples that follow each other within one window of a span."""
    count = len(times)
    starts = [0]
    if times == sorted(times):
        while (end_ms := window_end(times[starts[-1]], span_ms)) <= times[-1]:
            starts.append(bisect_left(times, end_ms, starts[-1]))
    else:
        windows = [time_ms // span_ms for time_ms in times]
        starts += [place for place in range(1, count) if windows[place] != windows[place - 1]]
    return list(zip(starts, [*starts[1:], count], strict=True))


class EpochCommit:
    """What one commit adds to one epoch, in the order of the log: stretches of samples, and gaps."""

    def __init__(self, node: str, outbox: str, epoch: str, mark: HighWaterMark) -> None:
        self.node = node
        self.outbox = outbox
        self.epoch = epoch
        self.mark = mark  # in force once `items` are stored
        self.top = 0  # the highest running number of `outbox` that is accounted for; 0: not known
        self.units: Mapping[str, str] = {}
        self.items: list[SampleBatch | Gap] = []
        self.count = 0  # samples in them
        self._is_own = False  # whether nobody else has the last of them

    def add(self, batch: Batch, known: int) -> None:
        """Add what is new in `batch`: all but the first `known` of its samples, or of its gap."""
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
            if not self._is_own:  # the batch that was submitted stays as it is: the commit may have to be repeated
                before = self.items[-1] = before.part(0)
                self._is_own = True
            before.extend(new)
        else:
            self.items.append(new)
            self._is_own = False
        self.mark = HighWaterMark(new.last, new.last_up_ms)
        self.count += len(new)


class LogMark(NamedTuple):
    """How far a CSV log is written and synced: `size` bytes, which cover everything up to the filing number `filed`.

    tail   CRC-32 of the last bytes before `size`, to see later whether somebody changed the file
    """

    name: str
    size: int
    tail: int
    filed: int


class LostRows(NamedTuple):
    """Rows of the log that nobody can write again: so many lines (0: not known) of a node, dated from first to last."""

    node: str
    lines: int
    first_ms: int
    last_ms: int


class LogEntry(NamedTuple):
    """One entry that the log owes, read back from the store: samples of one epoch, or a gap in it.

    items  one; of an entry that an older program made there may be several, and of a damaged one there are none
    lost   of a damaged entry the rows that it had
    """

    filed: int
    node: str
    epoch: str
    items: Sequence[SampleBatch | Gap]
    noted_ms: int
    units: Mapping[str, str]
    lost: LostRows | None = None


class StoredSample(NamedTuple):
    """One sample read back from the store."""

    node: str
    time_ms: int
    epoch: str
    seq: int
    values: Values
    clock: str


class StoredBatch(NamedTuple):
    """Samples of one epoch read back from the store, by column; they have no `ups`."""

    node: str
    epoch: str
    samples: SampleBatch


class FormerName(NamedTuple):
    """A name that a node had until it was renamed, and when that was (ms since 1970).

    is_released  what says that it has this name is not that node any more
    """

    name: str
    node: str
    until_ms: int
    is_released: bool = False


class NodeRecords(NamedTuple):
    """What operators have said of nodes.

    former   former names, the earliest first; the same name may be there for several nodes
    retired  since when a node is retired (ms since 1970); absent: it is in use
    labels   (node, sensor) to the text that people see in place of the sensor's name
    """

    former: Sequence[FormerName] = ()
    retired: Mapping[str, int] = MappingProxyType({})
    labels: Mapping[tuple[str, str], str] = MappingProxyType({})


class Bucket(NamedTuple):
    """Values of one of several equal spans: its place (0, 1 ...), their number, range and mean."""

    place: int
    values: int
    low: float
    high: float
    mean: float

    def with_other(self, other: Bucket) -> Bucket:
        """Return this bucket merged with another one of the same place."""
        values = self.values + other.values
        mean = (self.mean * self.values + other.mean * other.values) / values
        if mean - mean != 0:  # the sum left the range of floats
            mean = self.mean * (self.values / values) + other.mean * (other.values / values)
        return bucket(self.place, values, min(self.low, other.low), max(self.high, other.high), mean)


def bucket(place: int, values: int, low: float, high: float, mean: float) -> Bucket:
    """Return a bucket whose mean lies within its range: a rounding may lead it out, at the ends even to infinity."""
    return Bucket(place, values, low, high, min(max(mean, low), high))


class Rollup(NamedTuple):
    """One sensor's values within a window [start, end).

    values     how many there are
    median     the middle one, or the mean of the two in the middle
    mode       the most frequent value; the lowest of several
    deviation  the standard deviation of all of them (of the population, so divided by `values`)
    """

    end_ms: int
    values: int
    mean: float
    median: float
    mode: float
    low: float
    high: float
    deviation: float


SPANS_MS = (600_000, HOUR_MS)  # of the windows that are summed up: ten minutes and an hour, counted from 1970


class NodeUsage(NamedTuple):
    """What a store has of a node, as far as it is limited: see server/node_limits.py.

    nodes    nodes in the whole store
    epochs   epochs of the node
    gaps     gaps of the node
    missing  samples in them, those of earlier epochs (`before`) included
    """

    nodes: int
    epochs: int
    gaps: int
    missing: int


class Window(NamedTuple):
    """A dirty window: its rollups are to be made (again).

    as_of    what tells the store whether something came into it since
    is_late  its samples may be gone already: what is there has come later
    """

    node: str
    span_ms: int
    end_ms: int
    as_of: int
    is_late: bool = False


def is_late(end_ms: int, kept_from_ms: int) -> bool:
    """Return True if the samples of a window that ends then may have been deleted; kept_from_ms 0: none was."""
    return kept_from_ms > 0 and end_ms <= kept_from_ms


def merge_rollups(one: Rollup, other: Rollup) -> Rollup:
    """Return the rollup of two parts of one window whose samples are not available.

    Count, mean, minimum, maximum and deviation are exact (Chan, Golub and LeVeque 1979); median and mode are those of
    the larger part.
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
    """Return a power of two that brings values from `low` to `high` to between -2 and 2, exactly.

    Sums and squares of values near the ends of floats are no floats any more.
    """
    return 2.0 ** min(math.frexp(max(abs(low), abs(high)))[1], 1023)


def unscaled(value: float, scale: float, low: float = -_FLOAT_MAX, high: float = _FLOAT_MAX) -> float:
    """Return `value` times `scale`, within `low` and `high`: a rounding may lead it out, at the ends to infinity."""
    return min(max(value * scale, low), high)


def window_end(time_ms: int, span_ms: int) -> int:
    """Return the end of the window of a sample: windows are [start, end), and have the names of their ends."""
    return (time_ms // span_ms + 1) * span_ms


def whole_hours(first_ms: int, last_ms: int) -> int:
    """Return the end of a whole hour before which samples may be deleted. If an hour lost only some of its samples, one
    that comes late could not be told from those that are left, which are in the rollups already.

    first_ms, last_ms  when the first and the last of the oldest samples were taken, of as many as are to go
    """
    end_ms = window_end(last_ms, HOUR_MS)
    start_ms = end_ms - HOUR_MS
    return start_ms if first_ms < start_ms else end_ms


def pieces_to_read(
    from_ms: int, to_ms: int, count: int, kept_from_ms: int, dirty_ends: Callable[[int, int, int], Iterable[int]]
) -> list[tuple[int, int, int]]:
    """Return what to read for `count` buckets of [from_ms, to_ms): (span, from, to), which stands for the windows of
    that span within [from, to); a span of 0 for the samples taken in [from, to).

    Rollups where buckets are as wide, and where the samples are deleted; but not the windows that are dirty. A dirty
    window whose samples are deleted is both: its rollup, and what has come since.

    kept_from_ms  samples before it may have been deleted; 0: none was
    dirty_ends    returns the ends of the dirty windows of a span that end in (after, until], oldest first
    """
    width_ms = (to_ms - from_ms) / count
    span_ms = max((span for span in SPANS_MS if span <= width_ms), default=0)
    summed_to_ms = to_ms if span_ms else min(to_ms, kept_from_ms) if kept_from_ms > 0 else from_ms
    span_ms = span_ms or SPANS_MS[0]
    low_ms = -(-from_ms // span_ms) * span_ms
    high_ms = summed_to_ms // span_ms * span_ms
    if high_ms <= low_ms:
        return [(0, from_ms, to_ms)]
    pieces, at_ms = [(0, from_ms, low_ms)], low_ms
    for end_ms in dirty_ends(span_ms, low_ms, high_ms):
        summed_ms = end_ms if is_late(end_ms, kept_from_ms) else end_ms - span_ms
        pieces += [(span_ms, at_ms, summed_ms), (0, end_ms - span_ms, end_ms)]
        at_ms = end_ms
    pieces += [(span_ms, at_ms, high_ms), (0, high_ms, to_ms)]
    found: list[tuple[int, int, int]] = []
    for piece in pieces:
        if piece[1] >= piece[2]:
            continue
        if found and not piece[0] and not found[-1][0]:  # dirty windows side by side are read at once
            found[-1] = (0, found[-1][1], piece[2])
        else:
            found.append(piece)
    return found
