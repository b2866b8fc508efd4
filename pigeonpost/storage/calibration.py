"""Calibration of a sensor: points (raw value, true value), each set of points valid from a date.

Stores, CSV logs and links contain raw values only. A calibration is applied when values are read, so it can be added,
corrected and removed at any time, also for values of the past. Nothing here reads a clock or does I/O.

Between two points the curve is a straight line, and beyond the outer points their lines continue. One point is an
offset. Results are rounded to 9 decimals or 12 significant digits, which removes the rounding errors of binary
fractions: 20.4 with an offset of -0.3 is 20.1 and not 20.099999999999998.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

from pigeonpost.core.clock import FIRST_MS
from pigeonpost.link.samples import Number, SampleBatch, Values
from pigeonpost.storage.models import Bucket, EpochCommit, Rollup, bucket

BEGINNING_MS = FIRST_MS  # `from_ms` of a calibration that is valid for all values before the next one
MOST_POINTS = 64
LARGEST = 1e15  # largest absolute value of a point
_FLOAT_MAX = sys.float_info.max
_FROM_MS = attrgetter("from_ms")

Point = tuple[float, float]  # raw value, true value


class Calibration(NamedTuple):
    """Points that are valid from a date until the next calibration of the sensor.

    Attributes:
        from_ms: Start of the validity in ms since 1970 (UTC), inclusive; BEGINNING_MS for no start.
        points: Pairs of a raw and a true value, sorted by the raw value.
        unit: Unit of the true values; empty if it is that of the raw values.
        note: Note of the operator, such as the reference instrument.
        entered_ms: Time at which an operator entered it, in ms since 1970 (UTC).
    """

    from_ms: int
    points: Sequence[Point]
    unit: str = ""
    note: str = ""
    entered_ms: int = 0


def checked_points(points: Iterable[Point]) -> tuple[Point, ...]:
    """Return `points` sorted by their raw values.

    Raises:
        ValueError: They do not define a curve with a finite slope that rises throughout or falls throughout.
    """
    try:
        found = tuple(sorted((float(raw), float(true)) for raw, true in points))
    except OverflowError:  # an integer with hundreds of digits
        raise ValueError(f"a value of a point must be from {-LARGEST:g} to {LARGEST:g}") from None
    if not 1 <= len(found) <= MOST_POINTS:
        raise ValueError(f"a calibration has 1 to {MOST_POINTS} points RAW=TRUE, not {len(found)}")
    for value in (value for point in found for value in point):
        if not abs(value) <= LARGEST:  # also true for NaN
            raise ValueError(f"{value!r} is not a number from {-LARGEST:g} to {LARGEST:g}")
    for (raw, true), (next_raw, next_true) in pairwise(found):
        if raw == next_raw:
            raise ValueError(
                f"the raw value {raw:.15g} has two true values, {true:.15g} and {next_true:.15g}: keep one of them"
            )
        slope = (next_true - true) / (next_raw - raw)
        if true == next_true or slope == 0:
            raise ValueError(
                f"the raw values {raw:.15g} and {next_raw:.15g} have the same true value {true:.15g}: every value"
                " between them would become this one"
            )
        if not abs(slope) <= LARGEST**2:
            raise ValueError(f"the raw values {raw!r} and {next_raw!r} are too close together")
    if len({true < next_true for (_, true), (_, next_true) in pairwise(found)}) > 1:
        listed = ", ".join(f"{raw:.15g}={true:.15g}" for raw, true in found)
        raise ValueError(f"the true values must rise throughout or fall throughout: {listed}")
    return found


class Curve:
    """Function from raw to true values.

    Attributes:
        is_falling: True if a higher raw value is a lower true value.
    """

    __slots__ = ("_bends", "_raws", "_slopes", "_trues", "is_falling")

    def __init__(self, points: Sequence[Point]) -> None:
        """Initialise the curve through `points`, which `checked_points` has returned."""
        self._raws, self._trues = [raw for raw, _ in points], [true for _, true in points]
        self._bends = self._raws[1:-1]
        self._slopes = [(pair[1][1] - pair[0][1]) / (pair[1][0] - pair[0][0]) for pair in pairwise(points)] or [1.0]
        self.is_falling = self._slopes[0] < 0

    def of(self, value: Number) -> float:
        """Return the true value of the raw `value`."""
        line = bisect_right(self._bends, value)
        true = self._trues[line] + (value - self._raws[line]) * self._slopes[line]
        if 1.0 <= true < 100_000.0 or -100_000.0 < true <= -1.0:  # the usual case, four times as fast as the other
            return round(true * 1e9) / 1e9
        return float(f"{min(max(true, -_FLOAT_MAX), _FLOAT_MAX):.12g}")

    def column(self, values: Iterable[Number | None]) -> list[Number | None]:
        """Return the true values of a column; None stays None."""
        of = self.of
        return [None if value is None else of(value) for value in values]

    def is_straight(self, low: float, high: float) -> bool:
        """Return True if the curve has no bend between the raw values `low` and `high`."""
        return low == high or bisect_right(self._bends, low) == bisect_left(self._bends, high)

    def bucket(self, raw: Bucket) -> Bucket:
        """Return the bucket of true values. The mean is exact if the curve is straight from `raw.low` to `raw.high`."""
        low, high = self.ends(raw.low, raw.high)
        return bucket(raw.place, raw.values, low, high, self.of(raw.mean))

    def rollup(self, raw: Rollup) -> Rollup:
        """Return the rollup of true values.

        Mean, median and standard deviation are exact if the curve is straight from `raw.low` to `raw.high`.
        """
        low, high = self.ends(raw.low, raw.high)
        spread = raw.high - raw.low
        slope = (high - low) / spread if 0 < spread <= _FLOAT_MAX else 0.0
        return Rollup(
            raw.end_ms, raw.values, min(max(self.of(raw.mean), low), high), self.of(raw.median), self.of(raw.mode),
            low, high, min(raw.deviation * slope, _FLOAT_MAX),
        )  # fmt: skip

    def ends(self, low: Number, high: Number) -> tuple[float, float]:
        """Return the lowest and the highest true value of raw values from `low` to `high`."""
        return (self.of(high), self.of(low)) if self.is_falling else (self.of(low), self.of(high))

    def limits(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return limits for true values, which correspond to the limits `raw` that a node reports for raw values."""
        limits = dict(raw)
        names = ("high", "low") if self.is_falling else ("low", "high")
        for name, raw_name in zip(("low", "high"), names, strict=True):
            limits.pop(name, None)
            if raw_name in raw:
                limits[name] = self.of(raw[raw_name])
        if "rail" in raw:
            limits["rail"] = list(self.ends(*raw["rail"]))
        if "jump" in raw:
            limits["jump"] = raw["jump"] * max(map(abs, self._slopes))
        return limits


class CalibrationTimeline:
    """All calibrations of one sensor.

    Attributes:
        calibrations: The calibrations, sorted by the start of their validity.
        latest: Curve of the last calibration.
        unit: Unit of the values; empty if it is that of the raw values.
    """

    __slots__ = ("_curves", "_starts", "calibrations", "latest", "unit")

    def __init__(self, calibrations: Iterable[Calibration]) -> None:
        """Initialise with `calibrations`, at least one, whose points `checked_points` has returned."""
        self.calibrations = sorted(calibrations, key=_FROM_MS)
        self._starts = [one.from_ms for one in self.calibrations]
        curves = [Curve(one.points) for one in self.calibrations]
        self._curves, self.latest = [None, *curves], curves[-1]
        self.unit = next((one.unit for one in reversed(self.calibrations) if one.unit), "")

    def at(self, time_ms: int) -> Calibration | None:
        """Return the calibration that is valid at `time_ms` (ms since 1970, UTC), or None."""
        place = bisect_right(self._starts, time_ms)
        return self.calibrations[place - 1] if place else None

    def curve(self, time_ms: int) -> Curve | None:
        """Return the curve that is valid at `time_ms` (ms since 1970, UTC); None if raw values are valid."""
        return self._curves[bisect_right(self._starts, time_ms)]

    def is_uniform(self, first_ms: int, last_ms: int) -> bool:
        """Return True if the same curve is valid for all times from `first_ms` to `last_ms`, both inclusive."""
        return bisect_right(self._starts, first_ms) == bisect_right(self._starts, last_ms)

    def value(self, time_ms: int, raw: Number) -> Number:
        """Return the true value of the value `raw` of a sample taken at `time_ms` (ms since 1970, UTC)."""
        curve = self.curve(time_ms)
        return raw if curve is None else curve.of(raw)

    def column(self, times: Sequence[int], values: list[Number | None]) -> list[Number | None]:
        """Return the true values of a column of a batch whose samples were taken at `times` (ms since 1970, UTC)."""
        if self.is_uniform(min(times), max(times)):  # a clock may step back, so the times need not be sorted
            curve = self.curve(times[0])
            return values if curve is None else curve.column(values)
        return [None if value is None else self.value(time_ms, value) for time_ms, value in zip(times, values)]


Timelines = Mapping[str, CalibrationTimeline]  # calibrated sensors of one node


def calibrated_batch(batch: SampleBatch, timelines: Timelines) -> SampleBatch:
    """Return `batch` with true values by `timelines`: the same object if none of its sensors is calibrated."""
    if not batch.times or timelines.keys().isdisjoint(batch.values):
        return batch
    values = {
        name: timelines[name].column(batch.times, column) if name in timelines else column
        for name, column in batch.values.items()
    }
    return SampleBatch(batch.seq, batch.times, batch.ups, values, batch.errors, batch.clock)


def calibrated_values(time_ms: int, values: Values, timelines: Timelines) -> Values:
    """Return the `values` of a sample taken at `time_ms` (ms since 1970, UTC) as true values by `timelines`."""
    return {
        name: timelines[name].value(time_ms, value) if name in timelines and value is not None else value
        for name, value in values.items()
    }


def calibrated_units(units: Mapping[str, str], timelines: Timelines) -> dict[str, str]:
    """Return `units` (by sensor) with the units of the calibrations in `timelines`."""
    return {name: timelines[name].unit or unit if name in timelines else unit for name, unit in units.items()}


def calibrated_commit(raw: EpochCommit, timelines: Timelines) -> EpochCommit:
    """Return a copy of `raw` with true values by `timelines`, for the subscribers of commits."""
    found = EpochCommit(raw.node, raw.outbox, raw.epoch, raw.mark)
    found.top, found.count, found.units = raw.top, raw.count, calibrated_units(raw.units, timelines)
    found.items = [calibrated_batch(item, timelines) if isinstance(item, SampleBatch) else item for item in raw.items]
    return found
