"""Axes of charts: round values on the left and on the right, round local times below."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.core.format import MONTHS, offset_if_repeated, zone_of_axis
from pigeonpost.core.html import escaped

if TYPE_CHECKING:
    from pigeonpost.storage.models import Bucket

AXIS_PX = 46  # space for a second axis, right of the plot
LETTER_PX = 6.7  # usual width of a character
Scale = Callable[[float], float]  # converts a value to its distance from the top, in pixels


class Frame(NamedTuple):
    """Dimensions of a chart in pixels: total size, margins around the plot, and width of a column."""

    width: int
    height: int
    left: int = 56
    right: int = 10
    top: int = 24
    bottom: int = 22
    column_px: int = 2

    @property
    def columns(self) -> int:
        """Number of columns that fit into the plot."""
        return (self.width - self.left - self.right) // self.column_px

    @property
    def plot(self) -> int:
        """Width of the plot in pixels: that of all columns."""
        return self.columns * self.column_px


WIDE, SMALL, LARGE = Frame(720, 210), Frame(420, 190), Frame(960, 340, column_px=3)


class Axis(NamedTuple):
    """The axis of one unit: minimum, maximum, and the step between its lines."""

    unit: str
    low: float
    high: float
    step: float

    def scale(self, frame: Frame) -> Scale:
        """Return the function that converts a value to its distance from the top of `frame`, in pixels."""
        bottom = frame.height - frame.bottom
        return lambda value: bottom - (value - self.low) / (self.high - self.low) * (bottom - frame.top)

    def labels(self) -> Iterator[tuple[float, str]]:
        """Yield the round values with their labels."""
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        for k in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + k * self.step
            is_plain = abs(value) < 1e9 and decimals < 7
            yield value, f"{value:,.{decimals}f}".replace("-", "−") if is_plain else f"{value:.4g}"


def axis_of(unit: str, columns: Sequence[Bucket]) -> Axis:
    """Return the axis of `unit` for all values of `columns`."""
    return Axis(unit, *_y_range(columns))


def _y_range(columns: Sequence[Bucket]) -> tuple[float, float, float]:
    """Return minimum and maximum of the axis, and the step between its lines: 1, 2 or 5 times a power of ten."""
    low = min((column.low for column in columns), default=0.0)
    high = max((column.high for column in columns), default=1.0)
    most = max(abs(low), abs(high))
    # At least wide enough for the ends of the axis to differ after rounding.
    span = max(high - low, most * 1e-12, 1e-290) if high > low else max(most * 0.02, 1e-9 if high else 1.0)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4 * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if last == first:  # a constant value: a line at half height, but no negative axis for zero
        first, last = first - bool(first), last + 1
    return first * step, last * step, step


def left_axis(axis: Axis, frame: Frame) -> Iterator[str]:
    """Yield a horizontal line of `axis` for each round value, with its label, as SVG for `frame`."""
    y, right = axis.scale(frame), frame.width - frame.right
    for value, label in axis.labels():
        at = y(value)
        yield f'<path class="rule" d="M{frame.left} {at:.1f}H{right}"/>'
        fit = _fit(label, frame.left - 6)
        yield f'<text x="{frame.left - 6}" y="{at + 4:.0f}" text-anchor="end"{fit}>{label}</text>'


def right_axis(axis: Axis, frame: Frame) -> Iterator[str]:
    """Yield a short line of `axis` for each round value, as SVG for `frame`. Full lines belong to the left axis."""
    y, right = axis.scale(frame), frame.width - frame.right
    for value, label in axis.labels():
        at = y(value)
        fit = _fit(label, AXIS_PX - 9)
        yield f'<path class="rule" d="M{right} {at:.1f}h4"/><text x="{right + 7}" y="{at + 4:.0f}"{fit}>{label}</text>'


def _fit(label: str, room_px: int) -> str:
    """Return SVG attributes that compress a `label` wider than `room_px` pixels: `1,234,567.5` beside an axis."""
    return f' textLength="{room_px}" lengthAdjust="spacingAndGlyphs"' if len(label) * LETTER_PX > room_px else ""


def x_axis(from_ms: int, to_ms: int, frame: Frame) -> Iterator[str]:
    """Yield a short line for each round time from `from_ms` to `to_ms`, with its label, as SVG for `frame`.

    The time zone is on the left, since the file of a chart may be read without its page.
    """
    plot, bottom = frame.plot, frame.height - frame.bottom
    zone = zone_of_axis(from_ms, to_ms)
    yield f'<text class="zone" x="{frame.left - 6}" y="{bottom + 17}" text-anchor="end">{escaped(zone)}</text>'
    for time_s, label in ticks(from_ms // 1000, to_ms // 1000, plot // 80):
        x = frame.left + (time_s * 1000 - from_ms) * plot / (to_ms - from_ms)
        if frame.left <= x <= frame.left + plot:
            anchor = "end" if x > frame.width - 30 else "start" if x < frame.left + 18 else "middle"
            yield f'<path class="rule" d="M{x:.1f} {bottom}v5"/>'
            yield f'<text x="{x:.0f}" y="{bottom + 17}" text-anchor="{anchor}">{label}</text>'


def ticks(from_s: int, to_s: int, most: int) -> list[tuple[int, str]]:
    """Return about `most` round local times in [from_s, to_s] (seconds since 1970, UTC), with their labels.

    For steps of up to half a day, the local time is checked at every quarter of an hour, or at every step if that is
    shorter. Therefore an hour that is skipped at the change to summer time has no mark, and a repeated hour has two,
    with the abbreviations of their zones.
    """
    span_s = to_s - from_s
    step_s = next((step for step in _STEPS_S if span_s / step <= most), 0)
    if step_s:
        grain_s = min(step_s, 900)  # offsets from UTC are multiples of a quarter of an hour
        times = range(-(-from_s // grain_s) * grain_s, to_s + 1, grain_s)
        return [
            (time_s, _hour(time_s, t)) for time_s in times if _into_day_s(t := time.localtime(time_s)) % step_s == 0
        ]
    days = next((days for days in _STEPS_DAYS if span_s / 86_400 / days <= most), 0)
    if not days:
        return _months(from_s, to_s, most)
    t = time.localtime(from_s)
    found = []
    for day in range(span_s // 86_400 + 2):
        time_s = int(time.mktime((t.tm_year, t.tm_mon, t.tm_mday + day, 0, 0, 0, 0, 0, -1)))
        at = time.localtime(time_s)
        day_number = (time_s + at.tm_gmtoff) // 86_400  # not by datetime.date, which ends with the year 9999
        if from_s <= time_s <= to_s and (day_number + _SUNDAY) % days == 0:
            found.append((time_s, f"{at.tm_mday} {MONTHS[at.tm_mon - 1]}"))
    return found


def _months(from_s: int, to_s: int, most: int) -> list[tuple[int, str]]:
    """Return the beginnings of months or years as `ticks` does, for ranges that are too long for steps of days."""
    step = next((step for step in _STEPS_MONTHS if (to_s - from_s) / 2_629_746 / step <= most), _STEPS_MONTHS[-1])
    t = time.localtime(from_s)
    first = -(-(t.tm_year * 12 + t.tm_mon - 1) // step) * step
    found = []
    for month in range(first, first + (to_s - from_s) // 2_419_200 + 2, step):
        time_s = int(time.mktime((month // 12, month % 12 + 1, 1, 0, 0, 0, 0, 0, -1)))
        if from_s <= time_s <= to_s:
            found.append((time_s, f"{MONTHS[month % 12]} {month // 12}" if step < 12 else f"{month // 12}"))
    return found


def _into_day_s(t: time.struct_time) -> int:
    return t.tm_hour * 3600 + t.tm_min * 60 + t.tm_sec


def _hour(time_s: int, t: time.struct_time) -> str:
    zone = f" {t.tm_zone}" if offset_if_repeated(time_s * 1000) else ""
    if _into_day_s(t) == 0:
        return f"{t.tm_mday} {MONTHS[t.tm_mon - 1]}{zone}"
    seconds = f":{t.tm_sec:02d}" if t.tm_sec else ""
    return f"{t.tm_hour:02d}:{t.tm_min:02d}{seconds}{zone}"


_STEPS_S = (1, 5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)
_STEPS_DAYS = (1, 2, 7, 14)
_STEPS_MONTHS = (1, 2, 3, 6, 12, 24)
_SUNDAY = 4  # 1970-01-01 was a Thursday: with this offset, steps of 7 and 14 days begin on Sundays
