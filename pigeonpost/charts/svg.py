"""Charts as SVG: range and mean of each column, gaps, marks for late samples, and the name of each series.

The colours are from the palette of Okabe and Ito. Those with a contrast below 3:1 on white are replaced by darker ones
of the same hue. The dark scheme uses the lighter colours. The style is in the file itself, so that it also applies in
an <img>.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.charts.axes import AXIS_PX, LETTER_PX, Axis, Frame, Scale, axis_of, left_axis, right_axis, x_axis
from pigeonpost.core.format import clock, counted, number, with_unit, zone_name
from pigeonpost.core.html import escaped
from pigeonpost.core.units import AS_MEASURED, Conversion
from pigeonpost.storage.models import LateRange

if TYPE_CHECKING:
    from pigeonpost.storage.models import Bucket

COLOURS = 4  # colours of charts with one sensor; sensor 4 has the same one as sensor 0
MOST_SERIES = 6  # maximum number of series in one chart; each series has its own colour
_MOST_BANDS = 2  # with more series, only means are drawn: bands would overlap and double the size of the file
_LINE_PX = 14  # distance of the lines of a text

STYLE = (
    "svg{color-scheme:light dark;--ink:#5a5f64;--rule:#dedbd2}"
    ".s0{--line:#0072b2}.s1{--line:#c35500}.s2{--line:#008a64}.s3{--line:#a8558a}.s4{--line:#8f6a00}.s5{--line:#1c1f22}"
    "@media (prefers-color-scheme:dark){svg{--ink:#a4a8ab;--rule:#34383c}"
    ".s0{--line:#56b4e9}.s1{--line:#e69f00}.s2{--line:#1fb88c}.s3{--line:#dd93bd}.s4{--line:#f0e442}"
    ".s5{--line:#e8e6e1}}"
    "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--ink)}"
    ".zone{font-size:10px}.rule{stroke:var(--rule);fill:none}.band{fill:var(--line);opacity:.22}"
    ".mean{stroke:var(--line);fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}"
    ".late{stroke:var(--ink);stroke-width:3;stroke-dasharray:2 2;fill:none}"
)


class Series(NamedTuple):
    """A series to draw: the values of one sensor in a time range.

    Attributes:
        node: Name of the node.
        sensor: Name of the sensor.
        unit: Unit to show.
        colour: Index of the colour.
        columns: The columns that have values, in the unit to show.
        places: Number of columns from `from_ms` to `to_ms`, including empty ones.
        from_ms: Start in ms since 1970 (UTC).
        to_ms: End in ms since 1970 (UTC).
        every_ms: Sampling interval in ms, or None if it is not known.
        late: Time ranges with samples that arrived late, or whose times are not reliable.
        conversion: Conversion from the measured unit.
        name: Label of the sensor; empty if it is the same as `sensor`.
    """

    node: str
    sensor: str
    unit: str
    colour: int
    columns: Sequence[Bucket]
    places: int
    from_ms: int
    to_ms: int
    every_ms: float | None
    late: Sequence[LateRange] = ()
    conversion: Conversion = AS_MEASURED
    name: str = ""

    @property
    def words(self) -> str:
        """Label of the sensor."""
        return self.name or self.sensor.replace("_", " ")


def fitted(frame: Frame, count: int, units: int) -> Frame:
    """Return `frame` with space on the right for the names of several series, and for a second axis.

    Args:
        frame: Frame for one series.
        count: Number of series.
        units: Number of different units.
    """
    if count < 2:
        return frame
    names_px = 84 if frame.width < 700 else 130 if frame.width < 900 else 196
    return frame._replace(right=names_px + (AXIS_PX if units > 1 else 0))


def draw(all_series: Sequence[Series], frame: Frame, now_ms: int) -> str:
    """Return a chart as an SVG file.

    Args:
        all_series: Series of the same time range and number of columns, with at most two units.
        frame: Dimensions of the chart, from `fitted`.
        now_ms: Current time in ms since 1970 (UTC). Times of the current day are written without a date.
    """
    first, is_alone = all_series[0], len(all_series) == 1
    axes = _axes(all_series)
    right, middle = frame.width - frame.right, (frame.left + frame.width - frame.right) // 2
    is_empty = not any(series.columns for series in all_series)
    return "".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {frame.height}" role="img"'
        f' aria-labelledby="t d"{f""" class="s{first.colour}" """.rstrip() if is_alone else ""}>'
        f'<title id="t">{escaped(title(all_series, now_ms))}</title>'
        f'<desc id="d">{escaped(description(all_series, now_ms))} Time zone: {escaped(zone_name(first.to_ms))}.</desc>'
        f"<style>{STYLE}</style>",
        *(_head_of_one(first, right) if is_alone else _head_of_many(axes, right)),
        *left_axis(axes[0], frame),
        *(right_axis(axes[1], frame) if len(axes) > 1 else ()),
        *x_axis(first.from_ms, first.to_ms, frame),
        *_late(all_series, frame),
        *(_curves(first, frame, axes[0].scale(frame), True) if is_alone else _many(all_series, axes, frame)),
        f'<text x="{middle}" y="{frame.height // 2 - 6}" text-anchor="middle">no data</text>'
        if is_empty else "",
        "</svg>",
    ))  # fmt: skip


def _axes(all_series: Sequence[Series]) -> list[Axis]:
    """Return one axis per unit, in the order of the series."""
    units = dict.fromkeys(series.unit for series in all_series)
    return [
        axis_of(unit, [column for series in all_series if series.unit == unit for column in series.columns])
        for unit in units
    ]


def _head_of_one(series: Series, right: int) -> Iterator[str]:
    """Draw the sensor's name with its unit on the left, and the node's name on the right, shortened if necessary."""
    name = f"{series.words}, {series.unit}" if series.unit else series.words
    yield f'<text x="0" y="12">{escaped(name)}</text>'
    node = _shortened(series.node, int(right / LETTER_PX) - len(name) - 2)
    yield f'<text x="{right}" y="12" text-anchor="end">{escaped(node)}</text>'


def _shortened(text: str, most: int) -> str:
    """Return `text` cut to `most` characters with an ellipsis; empty if it is too long and `most` is less than 5."""
    if len(text) <= most:
        return text
    return f"{text[: most - 1]}…" if most > 4 else ""


def _head_of_many(axes: Sequence[Axis], right: int) -> Iterator[str]:
    """Draw the unit of each axis above it."""
    yield f'<text x="0" y="12">{escaped(axes[0].unit)}</text>'
    if len(axes) > 1:
        yield f'<text x="{right + 7}" y="12">{escaped(axes[1].unit)}</text>'


def _many(all_series: Sequence[Series], axes: Sequence[Axis], frame: Frame) -> Iterator[str]:
    """Draw each curve in its colour, with its name at its end."""
    scales = {axis.unit: axis.scale(frame) for axis in axes}
    ends = [
        scales[series.unit](series.columns[-1].mean) if series.columns else float(frame.top) for series in all_series
    ]
    places = _spread(ends, frame.top + 4, frame.height - frame.bottom)
    x = frame.width - frame.right + (AXIS_PX if len(axes) > 1 else 6)
    room = int((frame.width - x - 16) / LETTER_PX)
    for series, at in zip(all_series, places):
        names = [label(series, all_series, len(axes) > 1), label(series, all_series, False)]
        short = next((name for name in names if len(name) <= room), f"{names[1][: room - 1]}…")
        yield f'<g class="s{series.colour}">'
        yield from _curves(series, frame, scales[series.unit], len(all_series) <= _MOST_BANDS)
        yield f'<path class="mean" d="M{x} {at:.1f}h8"/><text x="{x + 13}" y="{at + 4:.0f}">{escaped(short)}</text></g>'


def label(series: Series, others: Sequence[Series], with_its_unit: bool) -> str:
    """Return the label that distinguishes `series` from the `others` of its chart; `with_its_unit` adds the unit."""
    nodes, sensors = {one.node for one in others}, {one.sensor for one in others}
    name = series.words if len(nodes) == 1 else series.node if len(sensors) == 1 else f"{series.words} {series.node}"
    return f"{name}, {series.unit}" if with_its_unit and series.unit else name


def _spread(targets: Sequence[float], low: float, high: float) -> list[float]:
    """Return vertical positions of labels between `low` and `high`, close to their targets and without overlap."""
    order = sorted(range(len(targets)), key=lambda k: targets[k])
    places, least = [0.0] * len(targets), low
    for k in order:
        places[k] = least = max(targets[k], least)
        least += _LINE_PX
    most = high
    for k in reversed(order):
        places[k] = most = min(places[k], most)
        most -= _LINE_PX
    return places


def _late(all_series: Sequence[Series], frame: Frame) -> Iterator[str]:
    """Draw a dotted line at the bottom for each time range with late samples or unreliable times."""
    first = all_series[0]
    scale = frame.plot / (first.to_ms - first.from_ms)
    parts = []
    for span in sorted({span for series in all_series for span in series.late}):
        from_ms, to_ms = max(span.first_ms, first.from_ms), min(span.last_ms, first.to_ms)
        x = frame.left + (from_ms - first.from_ms) * scale
        parts.append(f"M{x:.1f} {frame.height - frame.bottom - 2}h{max((to_ms - from_ms) * scale, 2):.1f}")
    if parts:
        yield f'<path class="late" d="{"".join(parts)}"/>'


# ----------------------------------------------------------------------------------------------------------- curves


def _curves(series: Series, frame: Frame, y: Scale, with_band: bool) -> Iterator[str]:
    bands, lines, px = [], [], frame.column_px
    for run in runs(series):
        x = frame.left + run[0].place * px + px // 2
        if with_band and any(column.high > column.low for column in run):
            upper = _path([(column.place * px, y(column.high)) for column in run])
            lower = _path([(column.place * px, y(column.low)) for column in reversed(run)])
            end = (run[-1].place - run[0].place) * px
            bands.append(f"M{x} {y(run[0].high):.1f}{upper}L{x + end} {y(run[-1].low):.1f}{lower}z")
        points = _path([(column.place * px, y(column.mean)) for column in run])
        lines.append(f"M{x} {y(run[0].mean):.1f}{points or 'h.1'}")
    if bands:
        yield f'<path class="band" d="{"".join(bands)}"/>'
    if lines:
        yield f'<path class="mean" d="{"".join(lines)}"/>'


def _path(points: Sequence[tuple[int, float]]) -> str:
    """Return an SVG path of relative steps, rounded to 0.1 pixel. Rounding errors do not accumulate."""
    parts, at = [], round(points[0][1] * 10)
    for (x0, _), (x1, y1) in pairwise(points):
        to = round(y1 * 10)
        step = f"{(to - at) / 10:g}"
        parts.append(f"l{x1 - x0}{'' if step.startswith('-') else ' '}{step}" if to != at else f"h{x1 - x0}")
        at = to
    return "".join(parts)


def runs(series: Series) -> Iterator[list[Bucket]]:
    """Yield the runs of columns of `series` between gaps. A gap is more than 2.5 sampling intervals without a value.

    If the sampling interval is not known, the median distance between columns is used.
    """
    columns = series.columns
    if not columns:
        return
    steps = sorted(after.place - before.place for before, after in pairwise(columns))
    width_ms = (series.to_ms - series.from_ms) / series.places
    usual_ms = series.every_ms or (steps[len(steps) // 2] * width_ms if steps else width_ms)
    most = max(2.5 * usual_ms, 1.5 * width_ms) / width_ms
    run = [columns[0]]
    for before, column in pairwise(columns):
        if column.place - before.place > most:
            yield run
            run = []
        run.append(column)
    yield run


# ------------------------------------------------------------------------------------------------------------ words


def title(all_series: Sequence[Series], now_ms: int) -> str:
    """Return the title of the chart of `all_series`: `temperature of basement, 19 Nov 15:36 to 15:36`.

    `now_ms` is the current time.
    """
    nodes = dict.fromkeys(series.node for series in all_series)
    parts = []
    for node in nodes:
        parts.append(f"{_and([series.words for series in all_series if series.node == node])} of {node}")
    first = all_series[0]
    return f"{_and(parts)}, {clock(first.from_ms, now_ms)} to {clock(first.to_ms, now_ms)}"


def description(all_series: Sequence[Series], now_ms: int) -> str:
    """Return a description of the chart of `all_series` for screen readers; `now_ms` is the current time."""
    if len(all_series) == 1:
        summary = _series_label(all_series[0])
    else:
        texts = [f"{label(series, all_series, False)}: {_small(_series_label(series))}" for series in all_series]
        summary = " ".join(text[:1].upper() + text[1:] for text in texts)
    late = " ".join(late_words(all_series, now_ms))
    return f"{summary} {late}" if late else summary


def late_words(all_series: Sequence[Series], now_ms: int) -> Iterator[str]:
    """Yield sentences that explain the marks at the bottom of the chart of `all_series`.

    `now_ms` is the current time.
    """
    spans = sorted({span for series in all_series for span in series.late})
    for is_late, words in ((True, "arrived late"), (False, "have unreliable times: the clock was not set")):
        found = [f"{clock(span.first_ms, now_ms)} to {clock(span.last_ms, now_ms)}"
                 for span in spans if span.is_late == is_late]  # fmt: skip
        if found:
            more = f" and {counted(len(found) - 3, 'more range')}" if len(found) > 3 else ""
            yield f"Values from {', '.join(found[:3])}{more} {words}."


def _series_label(series: Series) -> str:
    columns = series.columns
    if not columns:
        return "No values are stored for this time range."
    count, mean, low, high = numbers(columns)
    text = with_unit(f"From {number(low.low)} to {number(high.high)}, mean {number(mean)}", series.unit)
    gaps = sum(1 for _ in runs(series)) - 1
    breaks = f", with {counted(gaps, 'gap')}" if gaps else ""
    return f"{text}; {counted(count, 'value')}{breaks}."


def numbers(columns: Sequence[Bucket]) -> tuple[int, float, Bucket, Bucket]:
    """Return count and mean of all values in `columns` (at least one), and the columns with minimum and maximum."""
    count = sum(column.values for column in columns)
    mean = sum(column.mean * (column.values / count) for column in columns)
    return count, mean, min(columns, key=lambda column: column.low), max(columns, key=lambda column: column.high)


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _and(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
