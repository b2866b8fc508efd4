"""Statistics of one sensor in a time range: count, mean, median, mode, standard deviation, extremes with their times.

Any thread may use it. `_lock` guards the results, which are cached for a minute. The semaphore `_working` limits the
calculations at the same time to two. Errors: HTTPError if too many are waiting.

Ranges of up to two days are calculated from the samples, longer ranges from rollups. Count, mean, extremes and standard
deviation are always those of all values (the deviation by Chan, Golub and LeVeque 1979). With rollups, the median and
the mode are the weighted median of the windows' medians and the weighted mode of their modes, and `is_exact` is False.
Where the samples are deleted, only complete windows are included.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import clock, number, with_unit
from pigeonpost.core.html import Html, join_html
from pigeonpost.http.message import HTTPError
from pigeonpost.storage.contract import MOST_LISTED
from pigeonpost.storage.maintenance import GRACE_MS, current_rollups, rollup
from pigeonpost.storage.models import scale_of, unscaled

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.storage.contract import Store
    from pigeonpost.storage.models import Bucket, Rollup

_SAMPLES_MS = 2 * 86_400_000  # longest range that is calculated from the samples
_MOST_SAMPLES = 20_000  # with more samples, rollups are used
_MOST_VALUES = 1_280_000  # limit for all channels together: 64 channels of 20,000 samples
_MOST_RECOUNTED = 1_000_000  # maximum number of samples read for windows (start, end] or without a rollup
_SHORT_MS, _LONG_MS = 600_000, 3_600_000  # lengths of the windows
_SHORT_UP_TO_MS = 14 * 86_400_000
LONGEST_MS = 370 * 86_400_000
_KEEP_S, _MOST_KEPT = 60.0, 256


class Statistics(NamedTuple):
    """Statistics of one sensor in the range [from_ms, to_ms). All times are in ms since 1970 (UTC).

    Attributes:
        from_ms: Start of the range.
        to_ms: End of the range.
        values: Number of values.
        mean: Mean of all values.
        median: Median; None if it cannot be calculated, because the range is too long or rollups are missing.
        mode: Most frequent value; None in the same cases.
        low: Minimum.
        low_ms: Time of the first minimum.
        high: Maximum.
        high_ms: Time of the first maximum.
        deviation: Standard deviation; None in the same cases as the median.
        is_exact: True if the median and the mode are those of all values.
    """

    from_ms: int
    to_ms: int
    values: int
    mean: float
    median: float | None
    mode: float | None
    low: float
    low_ms: int
    high: float
    high_ms: int
    deviation: float | None
    is_exact: bool


class StatisticsReader:
    """Reader of statistics, with a cache of those of the last minute."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._working = threading.BoundedSemaphore(2)
        self._kept: dict[object, tuple[float, Statistics | None]] = {}
        self._calibrations = 0  # number of their changes

    def of(self, node: str, sensor: str, from_ms: int, to_ms: int) -> Statistics | None:
        """Return the statistics of one range; None if it has no value, or is longer than LONGEST_MS.

        The result may be up to a minute old, and that of a range of the same length that ends in the same minute.

        Args:
            node: Name of the node.
            sensor: Name of the sensor.
            from_ms: Start in ms since 1970, inclusive.
            to_ms: End in ms since 1970, exclusive.

        Raises:
            HTTPError: 503 if too many calculations are waiting.
        """
        if not 0 < to_ms - from_ms <= LONGEST_MS:
            return None
        key = node, sensor, to_ms - from_ms, to_ms // 60_000
        kept = self._fresh(key)
        if kept:
            return kept[1]
        if not self._working.acquire(timeout=5):
            raise HTTPError(
                503, "Too many statistics are being calculated; try again in a moment.", "busy", {"Retry-After": "2"}
            )
        try:
            kept = self._fresh(key)  # calculated by another thread in the meantime
            if kept:
                return kept[1]
            calibrations = self._calibrations
            found = self._calculated(node, sensor, from_ms, to_ms)
            return self._keep(key, found) if calibrations == self._calibrations else found
        finally:
            self._working.release()

    def forget(self, node: str) -> None:
        """Remove the cached statistics of all nodes: the calibrations of `node` have changed."""
        with self._lock:
            self._calibrations += 1
            self._kept.clear()

    def _fresh(self, key: object) -> tuple[float, Statistics | None] | None:
        now_s = self._clock.monotonic()
        with self._lock:
            kept = self._kept.get(key)
        return kept if kept and 0 <= now_s - kept[0] < _KEEP_S else None

    def _keep(self, key: object, found: Statistics | None) -> Statistics | None:
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = self._clock.monotonic(), found
            while len(self._kept) > _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        return found

    def _calculated(self, node: str, sensor: str, from_ms: int, to_ms: int) -> Statistics | None:
        about: dict[str, Any] = next((one for one in self._store.nodes() if one["name"] == node), {})
        if to_ms - from_ms <= _SAMPLES_MS and (about.get("kept_from_ms") or 0) <= from_ms:
            found = self._values(node, sensor, from_ms, to_ms)
            if found is not None:
                return self._exactly(found, from_ms, to_ms)
        return self._of_windows(node, sensor, from_ms, to_ms, about.get("kept_from_ms") or 0)

    def _values(self, node: str, sensor: str, from_ms: int, to_ms: int) -> list[tuple[int, float]] | None:
        """Return time and value of each reading, oldest first, or None if there are too many."""
        channels = len(self._store.channels(node, MOST_LISTED))
        left = min(_MOST_SAMPLES, _MOST_VALUES // max(channels, 1))
        found: list[tuple[int, float]] = []
        for _, _, batch in self._store.stored_batches(node, from_ms, to_ms):
            left -= len(batch)
            if left < 0:
                return None
            column = batch.values.get(sensor)
            if column:
                found += [(time_ms, value) for time_ms, value in zip(batch.times, column) if value is not None]
        found.sort(key=itemgetter(0))  # batches may overlap
        return found

    def _exactly(self, found: Sequence[tuple[int, float]], from_ms: int, to_ms: int) -> Statistics | None:
        if not found:
            return None
        one = rollup([value for _, value in found], to_ms)
        low_ms = next(time_ms for time_ms, value in found if value == one.low)
        high_ms = next(time_ms for time_ms, value in found if value == one.high)
        return Statistics(
            from_ms, to_ms, one.values, one.mean, one.median, one.mode, one.low, low_ms, one.high, high_ms,
            one.deviation, True,
        )  # fmt: skip

    def _of_windows(self, node: str, sensor: str, from_ms: int, to_ms: int, kept_from_ms: int) -> Statistics | None:
        span_ms = _SHORT_MS if to_ms - from_ms <= _SHORT_UP_TO_MS else _LONG_MS
        low_ms, high_ms = -(-from_ms // span_ms) * span_ms, to_ms // span_ms * span_ms
        # Complete windows, and the parts before and after them. Buckets include samples without a rollup.
        edges = [from_ms, low_ms, high_ms, to_ms] if low_ms <= high_ms else [from_ms, to_ms]
        spans = [span for span in pairwise(edges) if span[0] < span[1]]
        columns = [
            (start_ms + one.place * span_ms, one)
            for start_ms, end_ms in spans
            for one in self._store.downsample(node, sensor, start_ms, end_ms, -(-(end_ms - start_ms) // span_ms))
        ]
        if not columns:
            return None
        low, high = min(columns, key=lambda column: column[1].low), max(columns, key=lambda column: column[1].high)
        count = sum(one.values for _, one in columns)
        mean = math.fsum([one.mean * (one.values / count) for _, one in columns])
        found = Statistics(
            from_ms, to_ms, count, min(max(mean, low[1].low), high[1].high), None, None,
            low[1].low, self._when(node, sensor, low[1].low, low[0], min(low[0] + span_ms, to_ms)),
            high[1].high, self._when(node, sensor, high[1].high, high[0], min(high[0] + span_ms, to_ms)), None, False,
        )  # fmt: skip
        parts = self._parts(node, sensor, spans, span_ms, kept_from_ms)
        known = sum(part.values for part in parts)
        if abs(known - count) > 0.01 * count:  # too many samples to read, or a damaged hour
            return found
        modes: Counter[float] = Counter()
        for part in parts:
            modes[part.mode] += part.values
        most = max(modes.values())
        mode = min(mode for mode in modes if modes[mode] == most)
        deviation = _deviation(parts, known, scale_of(low[1].low, high[1].high))
        return found._replace(median=_median(parts, known), mode=mode, deviation=deviation, is_exact=len(parts) == 1)

    def _parts(
        self, node: str, sensor: str, spans: Sequence[tuple[int, int]], span_ms: int, kept_from_ms: int
    ) -> list[Rollup]:
        """Return the rollups of a range; an empty list if this would require too many samples."""
        found: list[Rollup] = []
        for start_ms, end_ms in spans:
            if start_ms % span_ms == 0 == end_ms % span_ms:
                windows = current_rollups(
                    self._store, node, sensor, span_ms, start_ms, end_ms, kept_from_ms, _MOST_RECOUNTED
                )
                if windows is None:
                    return []
                found += windows
                continue
            values = array("d")  # a part without a rollup
            for _, _, batch in self._store.stored_batches(node, start_ms, end_ms):
                values.extend([value for value in batch.values.get(sensor, ()) if value is not None])
                if len(values) > _MOST_RECOUNTED:
                    return []
            if values:
                found.append(rollup(list(values), end_ms))
        return found

    def _when(self, node: str, sensor: str, value: float, from_ms: int, to_ms: int) -> int:
        """Return the time of the first occurrence of a value in a window, or its end if the samples are deleted."""
        return min(
            (
                time_ms
                for _, _, batch in self._store.stored_batches(node, from_ms, to_ms)
                for time_ms, one in zip(batch.times, batch.values.get(sensor, ()))
                if one == value
            ),
            default=to_ms,
        )


def closed_left(
    store: Store, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int, kept_from_ms: int, now_ms: int
) -> list[Rollup]:
    """Return the rollups of windows [start, end) that end in (from_ms, to_ms], oldest first.

    Past windows that have no rollup yet are calculated from the samples.

    Args:
        store: The store.
        node: Name of the node.
        sensor: Name of the sensor.
        span_ms: Length of a window in ms.
        from_ms: Start in ms since 1970.
        to_ms: End in ms since 1970.
        kept_from_ms: Time before which the samples are deleted, in ms since 1970.
        now_ms: Current time in ms since 1970.

    Raises:
        HTTPError: 503 if too many samples have no rollup yet.
    """
    if to_ms <= from_ms:
        return []
    over_ms = max(from_ms, min(to_ms, now_ms - GRACE_MS))
    found = current_rollups(store, node, sensor, span_ms, from_ms, over_ms, kept_from_ms, _MOST_RECOUNTED)
    if found is None:
        text = (
            f"More than {_MOST_RECOUNTED:,} samples have no statistics yet: choose a shorter range, or try again later."
        )
        raise HTTPError(503, text, "busy", {"Retry-After": "60"})
    return found + store.summaries(node, sensor, span_ms, over_ms, to_ms)


def closed_right(store: Store, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
    """Return the rollups of windows (start, end] that end in (from_ms, to_ms], calculated from the samples.

    The arguments `store`, `node`, `sensor`, `span_ms`, `from_ms` and `to_ms` are those of `closed_left`.

    Raises:
        HTTPError: 400 if there are too many samples.
    """
    low_ms, high_ms = from_ms // span_ms * span_ms, to_ms // span_ms * span_ms
    found: dict[int, list[float]] = {}
    left = _MOST_RECOUNTED
    for _, _, batch in store.stored_batches(node, low_ms + 1, high_ms + 1):
        left -= len(batch)
        if left < 0:
            raise HTTPError(400, f"The range has more than {_MOST_RECOUNTED:,} samples: choose a shorter one.", "span")
        for time_ms, value in zip(batch.times, batch.values.get(sensor, ())):
            if value is not None:
                found.setdefault(-(-time_ms // span_ms) * span_ms, []).append(value)
    return [rollup(found[end_ms], end_ms) for end_ms in sorted(found)]


def statistics_of_buckets(columns: Sequence[Bucket], from_ms: int, to_ms: int, places: int) -> Statistics | None:
    """Return statistics without median, mode and deviation from the `columns` of a chart; None without columns.

    They are for ranges that are too long for StatisticsReader. The chart has `places` columns from `from_ms` to
    `to_ms`. The times of the extremes are the starts of columns.
    """
    if not columns:
        return None
    low, high = min(columns, key=lambda one: one.low), max(columns, key=lambda one: one.high)
    count = sum(one.values for one in columns)
    mean = sum(one.mean * (one.values / count) for one in columns)
    mean = min(max(mean, low.low), high.high)
    low_ms, high_ms = (from_ms + one.place * (to_ms - from_ms) // places for one in (low, high))
    return Statistics(from_ms, to_ms, count, mean, None, None, low.low, low_ms, high.high, high_ms, None, False)


def _deviation(parts: Sequence[Rollup], count: int, scale: float) -> float:
    """Return the standard deviation of all values.

    They are divided by `scale` first, since the squares of huge values would be infinite.
    """
    mean = math.fsum([part.mean / scale * (part.values / count) for part in parts])
    squares = [((part.deviation / scale) ** 2 + (part.mean / scale - mean) ** 2) * part.values for part in parts]
    return unscaled(math.sqrt(math.fsum(squares) / count), scale)


def _median(parts: Sequence[Rollup], count: int) -> float:
    passed = 0
    ordered = sorted(parts, key=lambda part: part.median)
    for part in ordered:
        passed += part.values
        if 2 * passed >= count:
            return part.median
    return ordered[-1].median


_HEAD = ("values", "mean", "median", "mode", "lowest", "highest", "standard deviation")
Row = tuple[object, "Statistics | None", str]  # name, statistics, unit


def statistics_table(what: str, rows: Sequence[Row], now_ms: int) -> Html:
    """Return a table of statistics.

    Args:
        what: Head of the first column.
        rows: The rows.
        now_ms: Current time in ms since 1970. Times of the current day are written without a date.
    """
    lines = join_html(
        Html("<tr><th scope=row>{}</th>{}</tr>\n").format(name, join_html(
            Html('<td data-label="{}">{}</td>').format(*cell) for cell in zip(_HEAD, _cells(found, unit, now_ms))
        ))
        for name, found, unit in rows
    )  # fmt: skip
    head = join_html(Html("<th scope=col>{}</th>").format(text) for text in (what, *_HEAD))
    return Html('<table class="judged figures"><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table>').format(
        head, lines
    )


def statistics_text(what: str, rows: Sequence[Row], now_ms: int) -> list[str]:
    """Return the lines of a table of statistics for a terminal, about 80 columns wide.

    The arguments `what`, `rows` and `now_ms` are those of `statistics_table`.
    """
    head = (what.upper(), "VALUES", "MEAN", "MEDIAN", "MODE", "LOWEST", "HIGHEST", "STD DEVIATION")
    table: list[tuple[str, ...]] = [head]
    table += [(str(name), *_cells(found, "", now_ms)) for name, found, _ in rows]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return ["  ".join(f"{text:{width}}" for text, width in zip(row, widths)).rstrip() for row in table]


def _cells(found: Statistics | None, unit: str, now_ms: int) -> Iterator[str]:
    if found is None:
        yield from ("0", *["–"] * (len(_HEAD) - 1))
        return
    about = "" if found.is_exact else "≈ "
    yield f"{found.values:,}"
    yield with_unit(number(found.mean), unit)
    for value in (found.median, found.mode):
        yield f"{about}{with_unit(number(value), unit)}" if value is not None else "–"
    yield f"{with_unit(number(found.low), unit)}, {clock(found.low_ms, now_ms)}"
    yield f"{with_unit(number(found.high), unit)}, {clock(found.high_ms, now_ms)}"
    yield with_unit(number(found.deviation), unit) if found.deviation is not None else "–"


def statistics_json(found: Statistics | None) -> Mapping[str, Any] | None:
    """Return the statistics `found` as a JSON object, or None."""
    if found is None:
        return None
    return {
        "from": rfc3339(found.from_ms), "to": rfc3339(found.to_ms), "count": found.values, "mean": found.mean,
        "median": found.median, "mode": found.mode, "low": found.low, "low_time": rfc3339(found.low_ms),
        "high": found.high, "high_time": rfc3339(found.high_ms), "deviation": found.deviation,
        "median_is_exact": found.is_exact,
    }  # fmt: skip
