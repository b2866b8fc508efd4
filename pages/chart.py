"""Charts, as SVG drawn from a few hundred columns: the band from least to most, the mean as a line, gaps as gaps.

Runs on: server.  Reached from: webui (`/chart.svg`).  Hands on to: the store, for the columns.
Threads: any. `_lock` guards the drawn charts that are kept; `_drawing` lets two be drawn at once, since each reads all
  samples of its span.
Errors: Refusal.

Colours are those of Okabe and Ito that keep 3:1 against paper, and others of theirs against the night. The style
stands in the file, so that an <img> has it; the answer's policy names it by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from http_head import SAFE_HEADERS, Answer, Refusal
from pages import MONTHS, Picture, Visit, clock, escaped, moment, name_in, number, span_ms, with_unit
from protocol import NODE_NAME, SENSOR_NAME

if TYPE_CHECKING:
    from stores import Column

COLOURS = 4  # there are so many; sensor 4 has the colour of sensor 0 again
SPAN = "24h"  # where nothing is said
LONGEST_MS = 12 * 366 * 86_400_000
_KEPT = 64
_COLUMN_PX = 2

STYLE = (
    "svg{color-scheme:light dark;--ink:#5a5f64;--rule:#dedbd2}"
    ".s0{--line:#0072b2}.s1{--line:#c35500}.s2{--line:#008a64}.s3{--line:#a8558a}"
    "@media (prefers-color-scheme:dark){svg{--ink:#a4a8ab;--rule:#34383c}"
    ".s0{--line:#56b4e9}.s1{--line:#e69f00}.s2{--line:#1fb88c}.s3{--line:#dd93bd}}"
    "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--ink)}"
    ".rule{stroke:var(--rule);fill:none}.band{fill:var(--line);opacity:.22}"
    ".mean{stroke:var(--line);fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}"
)


Scale = Callable[[float], float]  # a value to its place from the top


class Frame(NamedTuple):
    """How large a chart is, in pixels: all of it, and what stands beside the plot."""

    width: int
    height: int
    left: int = 56
    right: int = 10
    top: int = 24
    bottom: int = 22

    @property
    def columns(self) -> int:
        return (self.width - self.left - self.right) // _COLUMN_PX


WIDE, SMALL = Frame(720, 210), Frame(420, 190)


class Series(NamedTuple):
    """What is drawn: those of `places` columns from `from_ms` to `to_ms` that have values, and how they are called."""

    node: str
    sensor: str
    unit: str
    colour: int
    columns: Sequence[Column]
    places: int
    from_ms: int
    to_ms: int
    every_ms: float | None


class Charts:
    """Draws charts, and keeps those just drawn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[object, tuple[float, bytes]] = {}
        self._drawing = threading.BoundedSemaphore(2)
        digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        policy = SAFE_HEADERS["Content-Security-Policy"].replace("style-src 'self'", f"style-src 'sha256-{digest}'")
        self._headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}

    def answer(self, visit: Visit) -> Answer:
        """`/chart.svg?node=&sensor=&span=24h`, or `&from=&to=`; `&size=small` for a phone, or for two side by side."""
        query, now_ms = visit.request.query, visit.house.clock.wall_ms()
        node, sensor = name_in(query, "node", NODE_NAME), name_in(query, "sensor", SENSOR_NAME)
        if not sensor or visit.picture().node(node) is None:
            raise Refusal(404, "A chart is of a node and a sensor: /chart.svg?node=NAME&sensor=NAME", "unknown-node")
        frame = SMALL if query.get("size") == "small" else WIDE
        to_ms = moment(query["to"]) if "to" in query else now_ms
        from_ms = moment(query["from"]) if "from" in query else to_ms - span_ms(query.get("span", SPAN))
        if not 0 <= from_ms < to_ms or to_ms - from_ms > LONGEST_MS:
            raise Refusal(400, f"A chart shows up to {LONGEST_MS // 86_400_000} days, from before to.", "span")
        width_ms = max(1, (to_ms - from_ms) // frame.columns)
        if "to" not in query:  # whole columns, so that the same chart is asked for until the next one begins
            to_ms = -(-to_ms // width_ms) * width_ms
        from_ms = to_ms - width_ms * frame.columns if "from" not in query else from_ms
        keep_s = max(1.0, min(60.0, width_ms / 4000))
        svg = self._drawn(visit, (node, sensor, from_ms, to_ms, frame), keep_s)
        return Answer(svg, "image/svg+xml", headers=self._headers)

    def _drawn(self, visit: Visit, key: tuple[str, str, int, int, Frame], keep_s: float) -> bytes:
        now_s = visit.house.clock.monotonic()
        with self._lock:
            made_s, svg = self._kept.get(key, (0.0, b""))
        if svg and 0 <= now_s - made_s < keep_s:
            return svg
        if not self._drawing.acquire(timeout=5):
            raise Refusal(503, "Too many charts at once; try again in a moment.", "busy", {"Retry-After": "2"})
        try:
            svg = draw(_series(visit, *key), key[-1], visit.house.clock.wall_ms()).encode()
        finally:
            self._drawing.release()
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = now_s, svg
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        return svg


def _series(visit: Visit, node: str, sensor: str, from_ms: int, to_ms: int, frame: Frame) -> Series:
    picture: Picture = visit.picture()
    view = picture.node(node)
    assert view is not None, "looked up before"
    known = next((one for one in view.sensors if one.name == sensor), None)
    columns = visit.house.store.columns(node, sensor, from_ms, to_ms, frame.columns)
    every_ms = view.every_s * 1000 if view.every_s else None
    unit, colour = (known.unit, known.number % COLOURS) if known else ("", 0)
    return Series(node, sensor, unit, colour, columns, frame.columns, from_ms, to_ms, every_ms)


# --------------------------------------------------------------------------------------------------------- drawing


def draw(series: Series, frame: Frame, now_ms: int) -> str:
    """The chart as a whole SVG file."""
    low, high, step = _y_range(series.columns)
    bottom, right = frame.height - frame.bottom, frame.width - frame.right

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - frame.top)

    title = f"{series.sensor} of {series.node}, {_from_to(series, now_ms)}"
    return "".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {frame.height}" role="img"'
        f' aria-labelledby="t d" class="s{series.colour}"><title id="t">{escaped(title)}</title>'
        f'<desc id="d">{escaped(_description(series, now_ms))}</desc><style>{STYLE}</style>'
        f'<text x="0" y="12">{escaped(series.sensor)}{escaped(f", {series.unit}" if series.unit else "")}</text>'
        f'<text x="{right}" y="12" text-anchor="end">{escaped(series.node)}</text>',
        *_y_axis(low, high, step, y, frame.left, right),
        *_x_axis(series.from_ms, series.to_ms, frame),
        *_curves(series, frame, y),
        "" if series.columns else
        f'<text x="{(frame.left + right) // 2}" y="{frame.height // 2}" text-anchor="middle">nothing stored</text>',
        "</svg>",
    ))  # fmt: skip


def _curves(series: Series, frame: Frame, y: Scale) -> Iterator[str]:
    bands, lines = [], []
    for run in _runs(series):
        x = frame.left + run[0].place * _COLUMN_PX + _COLUMN_PX // 2
        if any(column.high > column.low for column in run):
            upper = _path([(column.place * _COLUMN_PX, y(column.high)) for column in run])
            lower = _path([(column.place * _COLUMN_PX, y(column.low)) for column in reversed(run)])
            end = (run[-1].place - run[0].place) * _COLUMN_PX
            bands.append(f"M{x} {y(run[0].high):.1f}{upper}L{x + end} {y(run[-1].low):.1f}{lower}z")
        points = _path([(column.place * _COLUMN_PX, y(column.mean)) for column in run])
        lines.append(f"M{x} {y(run[0].mean):.1f}{points or 'h.1'}")
    if bands:
        yield f'<path class="band" d="{"".join(bands)}"/>'
    if lines:
        yield f'<path class="mean" d="{"".join(lines)}"/>'


def _path(points: Sequence[tuple[int, float]]) -> str:
    """From each point to the next, as steps: in tenths of a pixel, added up so that rounding does not."""
    parts, at = [], round(points[0][1] * 10)
    for (x0, _), (x1, y1) in pairwise(points):
        to = round(y1 * 10)
        step = f"{(to - at) / 10:g}"
        parts.append(f"l{x1 - x0}{'' if step.startswith('-') else ' '}{step}" if to != at else f"h{x1 - x0}")
        at = to
    return "".join(parts)


def _runs(series: Series) -> Iterator[list[Column]]:
    """The columns between one gap and the next: where nothing came for two intervals and a half."""
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


# ------------------------------------------------------------------------------------------------------------ axes


def _y_range(columns: Sequence[Column]) -> tuple[float, float, float]:
    """Least and most of the axis, and the step between its lines: 1, 2 or 5 times a power of ten."""
    low = min((column.low for column in columns), default=0.0)
    high = max((column.high for column in columns), default=1.0)
    span = (high - low) or max(abs(high) * 0.02, 1e-9 if high else 1.0)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4 * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, (last if last > first else first + 1) * step, step


def _y_axis(low: float, high: float, step: float, y: Scale, left: int, right: int) -> Iterator[str]:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    for k in range(round((high - low) / step) + 1):
        value = low + k * step
        label = f"{value:,.{decimals}f}".replace("-", "−") if abs(value) < 1e9 and decimals < 7 else f"{value:.4g}"
        at = y(value)
        yield f'<path class="rule" d="M{left} {at:.1f}H{right}"/>'
        yield f'<text x="{left - 6}" y="{at + 4:.0f}" text-anchor="end">{label}</text>'


def _x_axis(from_ms: int, to_ms: int, frame: Frame) -> Iterator[str]:
    plot, bottom = frame.columns * _COLUMN_PX, frame.height - frame.bottom
    for time_s, label in ticks(from_ms // 1000, to_ms // 1000, plot // 80):
        x = frame.left + (time_s * 1000 - from_ms) * plot / (to_ms - from_ms)
        if frame.left <= x <= frame.left + plot:
            anchor = "end" if x > frame.width - 30 else "middle"
            yield f'<path class="rule" d="M{x:.1f} {bottom}v5"/>'
            yield f'<text x="{x:.0f}" y="{bottom + 17}" text-anchor="{anchor}">{label}</text>'


def ticks(from_s: int, to_s: int, most: int) -> list[tuple[int, str]]:
    """At most `most` round moments of local time in [from_s, to_s], with their labels.

    Steps up to half a day are looked for on the clock itself, a quarter of an hour after the other: so an hour that a
    change to summer time leaves out has no mark, and one that comes twice has two.
    """
    span_s = to_s - from_s
    step_s = next((step for step in _STEPS_S if span_s / step <= most), 0)
    if step_s:
        grain_s = min(step_s, 900)  # offsets from UTC are whole quarters of an hour
        times = range(-(-from_s // grain_s) * grain_s, to_s + 1, grain_s)
        return [(time_s, _hour(t)) for time_s in times if _into_day_s(t := time.localtime(time_s)) % step_s == 0]
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
    """As `ticks`, where only beginnings of months, or of years, are round enough."""
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


def _hour(t: time.struct_time) -> str:
    if _into_day_s(t) == 0:
        return f"{t.tm_mday} {MONTHS[t.tm_mon - 1]}"
    return f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d}" if t.tm_sec else f"{t.tm_hour:02d}:{t.tm_min:02d}"


_STEPS_S = (1, 5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)
_STEPS_DAYS = (1, 2, 7, 14)
_STEPS_MONTHS = (1, 2, 3, 6, 12, 24)
_SUNDAY = 4  # from 1970-01-01, a Thursday: steps of weeks begin with one

# ----------------------------------------------------------------------------------------------------------- words


def _from_to(series: Series, now_ms: int) -> str:
    return f"{clock(series.from_ms, now_ms)} to {clock(series.to_ms, now_ms)}"


def _description(series: Series, now_ms: int) -> str:
    """The chart for those who do not see it."""
    columns = series.columns
    if not columns:
        return "Nothing is stored of that time."
    count = sum(column.values for column in columns)
    mean = sum(column.mean * column.values for column in columns) / count
    low, high = min(column.low for column in columns), max(column.high for column in columns)
    said = with_unit(f"From {number(low)} to {number(high)}, mean {number(mean)}", series.unit)
    gaps = sum(1 for _ in _runs(series)) - 1
    breaks = f", with {gaps} {'gap' if gaps == 1 else 'gaps'}" if gaps else ""
    return f"{said}; {count} values{breaks}."
