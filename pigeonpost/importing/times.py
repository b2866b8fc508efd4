"""Times of the rows of a file, in UTC: forms of times, order of day and month, time zone, and the end of summer time.

When summer time ends, an hour of local times occurs twice. The order of the rows decides, per series of readings: after
the time has stepped back, the rows belong to the second hour. Errors: RowError. UnknownFold asks for `FoldFinder`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from pigeonpost.importing.cells import LAST_MS, RowError, read_time, read_times
from pigeonpost.importing.options import ImportOptions
from pigeonpost.importing.time_forms import FoundTime, find_time, is_iso
from pigeonpost.importing.zones import Transition

_EPOCH = datetime(1970, 1, 1)
_MS = timedelta(milliseconds=1)
_FIXED_WIDTH = re.compile(r"[0-9]{2}([./-])[0-9]{2}\1[0-9]{4} [0-9]{2}:[0-9]{2}(?::[0-9]{2})?").fullmatch
_TO_ISO: Mapping[str, Callable[[str], str]] = {
    "dmy": lambda cell: f"{cell[6:10]}-{cell[3:5]}-{cell[:2]} {cell[11:]}",
    "mdy": lambda cell: f"{cell[6:10]}-{cell[:2]}-{cell[3:5]} {cell[11:]}",
}
_QUIET_MS = 100 * 86_400_000
_STEP_MS = 60_000  # a smaller step back may be a correction of the clock


class UnknownFold(Exception):
    """A time occurs twice, and it has not been found out which of them it is."""


class Fold(NamedTuple):
    """Rows of a series in an hour that occurs twice.

    Attributes:
        first: Number of their first line.
        last: Number of their last line.
        split: Number of the line at which the hour begins again. If the newest rows are first, it is the last line of
            the second hour.
        is_descending: True if the newest rows are first.
    """

    first: int
    last: int
    split: int
    is_descending: bool

    def is_second(self, line: int) -> bool:
        """Return True if a `line` is in the second hour."""
        return line <= self.split if self.is_descending else line >= self.split


Folds = dict[tuple[str, int], list[Fold]]


class Clock:
    """Reader of the times of a file.

    Args:
        options: Options of the user.
        order: Order of day and month, if dates contain numbers only, or an empty string.
        folds: Result of `FoldFinder`, or None if it has not been used.
    """

    def __init__(self, options: ImportOptions, order: str = "", folds: Folds | None = None) -> None:
        self.options, self.order, self.folds = options, order, folds
        self.zone = options.zone

    def find(self, cell: str) -> FoundTime:
        """Return the time in a `cell`.

        Raises:
            RowError: The cell does not contain a time.
        """
        return find_time(cell, self.order, self.options.time_format)

    def read(self, cells: Sequence[str], lines: Sequence[int], series: Sequence[str]) -> list[int] | None:
        """Return the times in `cells`, or None if the cells must be read one by one.

        Args:
            cells: Texts of the times.
            lines: Number of the line of each cell.
            series: Name of the series of each cell.

        Returns:
            Times in milliseconds since 1970 (UTC).

        Raises:
            UnknownFold: A time occurs twice.
        """
        try:
            times = self._usual(cells, lines, series)
            if times is None:
                found = [self.find(cell) for cell in cells]
                times = [one.ms for one in found]
                local = [index for index, one in enumerate(found) if one.is_local]
                if local:
                    walls = [times[index] for index in local]
                    utc = self._utc(walls, [lines[index] for index in local], [series[index] for index in local])
                    for index, ms in zip(local, utc):
                        times[index] = ms
        except RowError:
            return None
        return times if times and min(times) >= 0 and max(times) < LAST_MS else None

    def read_one(self, cell: str, line: int, series: str) -> int:
        """Return the time in a `cell` in milliseconds since 1970 (UTC).

        Args:
            cell: Text of the time.
            line: Number of its line.
            series: Name of its series.

        Raises:
            RowError: The cell does not contain a time, or a time that does not exist in the time zone.
            UnknownFold: The time occurs twice.
        """
        ms, is_local = self.find(cell)
        if is_local and 0 <= ms < LAST_MS:
            ms = self._utc([ms], [line], [series])[0]
        if not 0 <= ms < LAST_MS:
            raise RowError("the time is not between 1970 and 9999")
        return ms

    def _usual(self, cells: Sequence[str], lines: Sequence[int], series: Sequence[str]) -> list[int] | None:
        """Return the times if all are counts, or all are in ISO 8601, all with an offset or all without one."""
        if self.options.time_format:
            return None
        if self.order in _TO_ISO and all(map(_FIXED_WIDTH, cells)):
            convert = _TO_ISO[self.order]
            cells = [convert(cell) for cell in cells]
        if not (cells[0][:4].isdecimal() and cells[0][4:5] == "-"):
            return read_times(cells) if set(map(len, cells)) <= {9, 10, 11, 13} else None
        if not all(map(is_iso, cells)):
            return None
        try:
            times = list(map(datetime.fromisoformat, cells))
        except ValueError:
            return None
        local = [one for one in times if one.tzinfo is None]
        if not local:
            return [round(seconds * 1000) for seconds in map(datetime.timestamp, times)]
        if len(local) < len(times):
            return None
        return self._utc([round((one - _EPOCH) / _MS) for one in times], lines, series)

    def _utc(self, walls_ms: Sequence[int], lines: Sequence[int], series: Sequence[str]) -> list[int]:
        def is_second(index: int, transition: Transition) -> bool:
            if self.folds is None:
                raise UnknownFold
            folds = self.folds.get((series[index], transition.utc_s), ())
            return any(fold.first <= lines[index] <= fold.last and fold.is_second(lines[index]) for fold in folds)

        return self.zone.utc_ms(walls_ms, is_second)


class _Run(NamedTuple):
    series: str
    transition: Transition
    before_ms: int | None
    rows: list[tuple[int, int]]  # line and wall time


class FoldFinder:
    """Finds the rows in the second of two equal hours, from the order of all rows of a file.

    Args:
        clock: Reader of the times.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[str, int] = {}
        self._open: dict[str, _Run] = {}
        self._runs: list[tuple[_Run, int | None]] = []
        self._ups = self._downs = 0
        self._quiet = 0, 0  # wall times between which no transition is

    def add(self, line: int, cell: str, series: str) -> None:
        """Add the time of a row.

        Args:
            line: Number of the line.
            cell: Text of the time. A text that is not a time is ignored.
            series: Name of the series.
        """
        try:
            wall_ms, is_local = self._clock.find(cell)
        except RowError:
            return
        if not is_local or not 0 <= wall_ms < LAST_MS:
            return
        before_ms = self._last.get(series)
        self._last[series] = wall_ms
        if before_ms is not None:
            self._ups += wall_ms > before_ms
            self._downs += wall_ms < before_ms
        run = self._open.get(series)
        if run and run.transition.start_ms <= wall_ms < run.transition.end_ms:
            run.rows.append((line, wall_ms))
            return
        if run:
            self._runs.append((self._open.pop(series), wall_ms))
        if not self._quiet[0] <= wall_ms < self._quiet[1]:
            found = self._clock.zone.transitions(wall_ms - _QUIET_MS, wall_ms + _QUIET_MS)
            for one in found:
                if one.after_s < one.before_s and one.start_ms <= wall_ms < one.end_ms:
                    self._open[series] = _Run(series, one, before_ms, [(line, wall_ms)])
                    return
            self._quiet = (
                max([wall_ms - _QUIET_MS, *(one.end_ms for one in found if one.end_ms <= wall_ms)]),
                min([wall_ms + _QUIET_MS, *(one.start_ms for one in found if one.start_ms > wall_ms)]),
            )

    def folds(self) -> Folds:
        """Return the result, after all rows have been added."""
        found: Folds = {}
        is_descending = self._downs > self._ups
        for run, next_ms in [*self._runs, *((run, None) for run in self._open.values())]:
            fold = _fold(run, next_ms, is_descending)
            found.setdefault((run.series, run.transition.utc_s), []).append(fold)
        return found


def _fold(run: _Run, next_ms: int | None, is_descending: bool) -> Fold:
    rows = run.rows[::-1] if is_descending else run.rows
    before_ms, after_ms = (next_ms, run.before_ms) if is_descending else (run.before_ms, next_ms)
    hour_ms = (run.transition.before_s - run.transition.after_s) * 1000
    index = _split([wall_ms for _, wall_ms in rows], before_ms, after_ms, hour_ms)
    nowhere = 0 if is_descending else 1 << 62
    split = rows[index][0] if index < len(rows) else nowhere
    return Fold(run.rows[0][0], run.rows[-1][0], split, is_descending)


def _split(walls_ms: list[int], before_ms: int | None, after_ms: int | None, hour_ms: int) -> int:
    """Return the index of the first of the ascending `walls_ms` that is in the second hour.

    Without a step back, the additional hour is in the largest interval between rows. A file that begins in the hour
    begins in the second, if the rows continue after it without an interruption.
    """
    count = len(walls_ms)
    inner = [later - earlier for earlier, later in pairwise(walls_ms)]
    lead = None if before_ms is None else walls_ms[0] - before_ms
    trail = None if after_ms is None else after_ms - walls_ms[-1]
    outer = [gap for gap in (lead, trail) if gap is not None and gap > 0]
    usual = median([gap for gap in inner if gap > 0] or outer or [0])
    if inner:
        back = min(inner)
        if (back < 0 and (-back >= _STEP_MS or -back > 2 * usual)) or (back == 0 and hour_ms <= 2 * usual):
            return inner.index(back) + 1
    if before_ms is None:
        return 0 if trail is not None and 0 < trail <= 2 * usual else count
    if after_ms is None:
        return count
    gaps = [lead or 0, *inner, trail or 0]
    largest = max(gaps)
    return count if largest <= 3 * usual or gaps[-1] == largest else gaps.index(largest)


class LocalTimes:
    """Reader of the times of a database, row by row.

    A step back to the hour before marks the second of two equal hours.

    Args:
        options: Options of the user.
    """

    def __init__(self, options: ImportOptions) -> None:
        self._clock = Clock(options, options.dates)
        self._last: dict[str, tuple[int, bool]] = {}

    def read(self, value: object, series: str) -> int:
        """Return the time in a `value` of a row of a `series`, in milliseconds since 1970 (UTC).

        Raises:
            RowError: The value does not contain a time.
        """
        text = value.isoformat(" ") if hasattr(value, "isoformat") else value
        if not isinstance(text, str):
            return read_time(text)
        wall_ms, is_local = self._clock.find(text)
        if not is_local or not 0 <= wall_ms < LAST_MS:
            return wall_ms
        before_ms, was_second = self._last.get(series, (wall_ms, False))
        is_second = False

        def decide(_: int, transition: Transition) -> bool:
            nonlocal is_second
            is_second = (was_second and before_ms >= transition.start_ms) or (
                transition.start_ms <= before_ms < transition.end_ms and before_ms - wall_ms >= _STEP_MS
            )
            return is_second

        time_ms = self._clock.zone.utc_ms([wall_ms], decide)[0]
        self._last[series] = wall_ms, is_second
        return time_ms
