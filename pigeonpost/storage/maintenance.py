"""Background maintenance of the store: rollups of ten minutes and of an hour, and deletion of expired samples.

A thread of its own reads and calculates. Its results are written by the Ingestor's writer thread, a few windows at a
time, so collecting never waits for longer than that.
Errors: after NotStored the work is tried again later; DiskError ends the program through the Ingestor.

A window is (start, end] and is named by its end. It is rolled up once it is past, from the samples themselves, and
again when a late sample falls into it. So a rollup always equals a recount, in whatever order samples came. Only where
the samples are deleted already (`keep`) is a late one merged into the rollup: count, mean, minimum, maximum and
deviation stay exact, median and mode stay those of the larger part.
"""

from __future__ import annotations

import logging
import math
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import DiskError, NotStored
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import SPANS_MS, Rollup, StoredSample, Window, scale_of, unscaled, window_end

log = logging.getLogger(__name__)

GRACE_MS = 15_000  # after a window's end: samples on their way still belong into it
LOOK_S = 10.0  # between two looks at what there is to do
_AT_ONCE = 200  # windows looked up together
_WRITTEN_TOGETHER = 10  # of them, in one transaction: some milliseconds
_FORGET_AT_ONCE = 2_000  # samples deleted in one transaction, or those of an hour: some milliseconds a thousand
_READ_TOGETHER = 2_000  # samples of a window,
_MOST_SAME_DATE = 20_000  # or those with the same date, as of a node without a clock
_MOST_VALUES = 8_000_000  # of a node in an hour: 22 channels at 100 Hz


class Writer(Protocol):
    """What MaintenanceWorker needs of the Ingestor."""

    def run(self, job: Callable[[], Any], limit_s: float) -> Any:
        """Run `job` within a transaction of the writer thread. Returns its result, or raises its exception."""


def rollups_of(points: Iterable[StoredSample], end_ms: int) -> dict[str, Rollup]:
    """Return the rollup of each sensor that has a value in `points`, which are all of one window."""
    values: dict[str, array[float]] = {}  # in eight bytes each: a node may have brought millions
    for point in points:
        for name, value in point.values.items():
            if value is not None:
                if name not in values:
                    values[name] = array("d")
                values[name].append(value)
    return {name: rollup(values.pop(name).tolist(), end_ms) for name in list(values)}


def rollup(values: list[float], end_ms: int) -> Rollup:
    """Return the rollup of at least one value."""
    values.sort()
    count = len(values)
    scale = scale_of(values[0], values[-1])
    mean = math.fsum(value / scale for value in values) / count
    deviation = math.sqrt(math.fsum((value / scale - mean) ** 2 for value in values) / count)
    middle = values[(count - 1) // 2] / 2 + values[count // 2] / 2 if count % 2 == 0 else values[count // 2]
    mode = max(groupby(values), key=lambda group: len(list(group[1])))[0]
    mean = unscaled(mean, scale, values[0], values[-1])
    return Rollup(end_ms, count, mean, middle, mode, values[0], values[-1], unscaled(deviation, scale))


def _hour(window: Window) -> Window:
    """Return the window of the longest span that contains a window."""
    return window._replace(span_ms=SPANS_MS[-1], end_ms=window_end(window.end_ms, SPANS_MS[-1]))


class MaintenanceWorker:
    """Thread that makes rollups and deletes expired samples, whenever there is something to do."""

    def __init__(self, store: Store, writer: Writer, clock: Clock, keep_days: float = 0.0) -> None:
        """keep_days: how long samples are kept, in days; 0: for ever. Rollups are kept for ever."""
        self.summed = self.expired = 0  # windows and samples, in this run
        self._store = store
        self._writer = writer
        self._clock = clock
        self._keep_ms = int(keep_days * 86_400_000)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="summaries", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """End after the present window; the next run of the program goes on with the rest."""
        self._stopping.set()
        self._thread.join(limit_s)
        return "still summing up" if self._thread.is_alive() else None

    def work(self) -> bool:
        """Do a part of the work. Returns True if there may be more to do at once."""
        now_ms = self._clock.wall_ms()
        windows = self._store.dirty_windows(now_ms - GRACE_MS, _AT_ONCE)
        done = 0
        for hour in dict.fromkeys(_hour(window) for window in windows if window.is_late):  # each once
            if self._stopping.is_set():
                return False
            done += self._add_late(hour)
        on_time = [window for window in windows if not window.is_late]
        for start in range(0, len(on_time), _WRITTEN_TOGETHER):
            if self._stopping.is_set():
                return False
            done += self._sum_up(on_time[start : start + _WRITTEN_TOGETHER])
        if done:
            self.summed += done
            return True
        return self._keep_ms > 0 and self._forget(now_ms - self._keep_ms)

    def _sum_up(self, windows: Sequence[Window]) -> int:
        """Roll up some windows, which are written together. Returns their number."""
        found = [(window, rollups_of(self._points(window), window.end_ms)) for window in windows]

        def put() -> None:
            for window, summaries in found:
                self._store.replace_rollups(window, summaries)

        self._writer.run(put, LOOK_S)
        return len(found)

    def _add_late(self, hour: Window) -> bool:
        """Merge samples that came after those of their window were deleted: a whole hour at once; then delete them."""
        points = list(self._points(hour))
        parts: dict[int, dict[str, list[Rollup]]] = {}
        for span_ms in SPANS_MS:
            of_window: dict[int, list[StoredSample]] = {}
            for point in points:
                of_window.setdefault(window_end(point.time_ms, span_ms), []).append(point)
            for end_ms, found in of_window.items():
                for sensor, part in rollups_of(found, end_ms).items():
                    parts.setdefault(span_ms, {}).setdefault(sensor, []).append(part)
        done: bool = self._writer.run(lambda: self._store.merge_late_rollups(hour, parts), LOOK_S)
        return done

    def _points(self, window: Window) -> Iterator[StoredSample]:
        start_ms, left = window.end_ms - window.span_ms, _MOST_VALUES
        for point in self._between(window.node, start_ms + 1, window.end_ms + 1):
            left -= len(point.values)
            if left < 0:
                return
            yield point

    def _between(self, node: str, from_ms: int, to_ms: int) -> Iterator[StoredSample]:
        """Yield the samples taken in [from_ms, to_ms), oldest first; in memory are _READ_TOGETHER of them."""
        limit = _READ_TOGETHER if to_ms - from_ms > 1 else _MOST_SAME_DATE
        found = self._store.points(node, from_ms, to_ms, limit + 1)
        if len(found) <= limit or to_ms - from_ms == 1:
            yield from found[:limit]
            return
        found, middle_ms = [], (from_ms + to_ms) // 2
        yield from self._between(node, from_ms, middle_ms)
        yield from self._between(node, middle_ms, to_ms)

    def _forget(self, before_ms: int) -> bool:
        gone: int = self._writer.run(lambda: self._store.delete_expired(before_ms, _FORGET_AT_ONCE), LOOK_S)
        self.expired += gone
        return gone > 0

    def _run(self) -> None:
        told = ""
        while not self._stopping.wait(LOOK_S):
            try:
                while self.work():
                    # Collecting comes first: a thread that calculates without a pause would take half of the time.
                    self._stopping.wait(0.02)
                told = ""
            except DiskError:
                return  # the writer has met it too, or will, and ends the program
            except NotStored as error:
                if told != str(error):
                    log.warning("statistics wait: %s", error)
                told = str(error)
