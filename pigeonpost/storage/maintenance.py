"""Background maintenance of the store: rollups of ten minutes and of an hour, compaction, and deletion of expired
samples.

A thread of its own reads and calculates. Its results are written by the Ingestor's writer thread, a little at a time,
so collecting never waits for longer than that; and the thread rests while nodes catch up.
Errors: after NotStored the work is tried again later; DiskError ends the program through the Ingestor. An hour that
cannot be read stays as it is, and all others go on.

A window is [start, end) and is named by its end. It is rolled up once it is past, from the samples themselves, and
again when a late sample falls into it. So a rollup always equals a recount, in whatever order samples came. Only where
the samples are deleted already (`keep`) is a late one merged into the rollup: count, mean, minimum, maximum and
deviation stay exact, median and mode stay those of the larger part.
"""

from __future__ import annotations

import logging
import math
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import mul
from typing import Any, Protocol

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import DiskError, NotStored, StoreDamaged
from pigeonpost.link.samples import Number
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import (
    HOUR_MS,
    SPANS_MS,
    Rollup,
    Window,
    is_late,
    merge_rollups,
    runs,
    scale_of,
    unscaled,
    window_end,
)

log = logging.getLogger(__name__)

GRACE_MS = 15_000  # after a window's end: samples on their way still belong into it
LOOK_S = 10.0  # between two looks at what there is to do
_WRITE_S = 10.0  # until the writer thread begins with a part; later it is made anew
_AT_ONCE = 200  # windows looked up together
_WINDOWS_OF_HOUR = sum(HOUR_MS // span_ms for span_ms in SPANS_MS)
_UNREADABLE_S = 3600.0  # until an hour that could not be read is tried again
_WRITTEN_TOGETHER = 14  # of them, in one transaction: some milliseconds
_FORGET_AT_ONCE = 20_000  # samples deleted in one transaction, or those of an hour: a row has up to 4,096 of them
_PARTS_BETWEEN = 500  # two deletions, where there is always something else to do: a node's clock may be wrong, and all
# that it sends late
_FORGET_AGAIN_MS = 600_000  # within an hour, for what was owed to the log or not yet rolled up
_MOST_VALUES = 8_000_000  # of a node in an hour: 22 channels at 100 Hz
_MOST_REST_S = 60.0  # while nodes catch up; then something is done all the same,
_BETWEEN_RESTS_S = 5.0  # for so long
_SQUARES = 1e150  # numbers up to here have squares that are floats, and so has their sum,
_NO_SQUARES = 1e-150  # and numbers from here on have squares that are not 0

Columns = dict[str, "array[float]"]  # of each sensor its values, in eight bytes each: a node may have brought millions


class Writer(Protocol):
    """What MaintenanceWorker needs of the Ingestor."""

    @property
    def is_catching_up(self) -> bool:
        """Whether nodes send what they have held."""

    def run(self, job: Callable[[], Any], limit_s: float) -> Any:
        """Run `job` within a transaction of the writer thread. Returns its result, or raises its exception."""


def add_values(found: Columns, values: Mapping[str, Sequence[Number | None]]) -> None:
    """Add columns of samples to the values found so far; None is no value."""
    for name, column in values.items():
        numbers = [value for value in column if value is not None] if None in column else column
        if numbers:
            found.setdefault(name, array("d")).extend(numbers)  # type: ignore[arg-type]


def rollup(values: list[float], end_ms: int) -> Rollup:
    """Return the rollup of at least one value. `values` is sorted then."""
    values.sort()
    count, low, high = len(values), values[0], values[-1]
    middle = values[(count - 1) // 2] / 2 + values[count // 2] / 2 if count % 2 == 0 else values[count // 2]
    times = Counter(values)
    most = max(times.values())
    mode = next(value for value, count in times.items() if count == most)  # in the order of the values: the lowest
    largest = max(-low, high)
    scale = 1.0 if _NO_SQUARES < largest < _SQUARES or not largest else scale_of(low, high)
    scaled = values if scale == 1.0 else [value / scale for value in values]
    mean = math.fsum(scaled) / count
    apart = [value - mean for value in scaled]
    deviation = math.sqrt(math.fsum(map(mul, apart, apart)) / count)
    mean = unscaled(mean, scale, low, high)
    return Rollup(end_ms, count, mean, middle, mode, low, high, unscaled(deviation, scale))


def current_rollups(
    store: Store, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int, kept_from_ms: int, most: int
) -> list[Rollup] | None:
    """Return one sensor's rollups of windows of `span_ms` that end in (from_ms, to_ms], oldest first, as they will be
    when all of these are rolled up: those of dirty windows are made from the samples.

    kept_from_ms  samples before it may have been deleted: to the rollups of these windows what came since is added
    most          samples that are read for that; None is returned where there are more

    Windows of a damaged hour, which the store reports, are as they were stored.
    """
    found: list[Rollup] | None = None
    for _ in range(2):  # what is late may be merged, and its samples deleted, between the looks at both
        dirty = store.dirty_ends(node, span_ms, from_ms, to_ms)
        found = _with_dirty(store, node, sensor, span_ms, from_ms, to_ms, kept_from_ms, most, dirty)
        if not dirty or set(dirty) <= set(store.dirty_ends(node, span_ms, from_ms, to_ms)):
            break
    return found


def _with_dirty(
    store: Store, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int, kept_from_ms: int, most: int,
    dirty: Sequence[int],
) -> list[Rollup] | None:  # fmt: skip
    """Return rollups for `current_rollups`. dirty: the ends of those windows that are made from the samples"""
    found = {one.end_ms: one for one in store.summaries(node, sensor, span_ms, from_ms, to_ms)}
    for _, of_hour in groupby(dirty, lambda end_ms: window_end(end_ms - 1, HOUR_MS)):  # a row lies in an hour
        ends = list(of_hour)
        values: dict[int, array[float]] = {end_ms: array("d") for end_ms in ends}
        try:
            for _, _, batch in store.stored_batches(node, ends[0] - span_ms, ends[-1]):
                most -= len(batch)
                if most < 0:
                    return None
                for time_ms, value in zip(batch.times, batch.values.get(sensor, ())):
                    end_ms = window_end(time_ms, span_ms)
                    if value is not None and end_ms in values:
                        values[end_ms].append(value)
        except StoreDamaged:
            if store.damage:
                raise
            continue
        for end_ms in ends:
            if not is_late(end_ms, kept_from_ms):
                found.pop(end_ms, None)
            if values[end_ms]:
                new, old = rollup(list(values[end_ms]), end_ms), found.get(end_ms)
                found[end_ms] = merge_rollups(old, new) if old else new
    return [found[end_ms] for end_ms in sorted(found)]


def _hour_end(window: Window) -> int:
    """Return the end of the hour that contains a window."""
    return window_end(window.end_ms - 1, HOUR_MS)


class MaintenanceWorker:
    """Thread that makes rollups, compacts what was stored and deletes expired samples, whenever there is something to
    do."""

    def __init__(self, store: Store, writer: Writer, clock: Clock, keep_days: float = 0.0) -> None:
        """keep_days: how long samples are kept, in days; 0: for ever. Rollups are kept for ever."""
        self.summed = self.compacted = self.expired = 0  # windows and samples, in this run
        self._store = store
        self._writer = writer
        self._clock = clock
        self._keep_ms = int(keep_days * 86_400_000)
        self._nothing_before_ms = -1  # when nothing was to be deleted
        self._unreadable: dict[tuple[str, int], float] = {}  # hours, by node and end: until when they are left alone
        self._parts = 0  # of the work, other than deletion
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """End after the present part; the next run of the program goes on with the rest."""
        self._stopping.set()
        self._thread.join(limit_s)
        return "still summing up" if self._thread.is_alive() else None

    def work(self) -> bool:
        """Do a part of the work. Returns True if there may be more to do at once."""
        now_ms = self._clock.wall_ms()
        windows = self._readable_windows(now_ms - GRACE_MS)
        late = {(window.node, _hour_end(window)): window for window in windows if window.is_late}
        done = 0
        for (_, end_ms), window in late.items():
            if self._stopping.is_set():
                return False
            try:
                done += self._add_late(window._replace(span_ms=HOUR_MS, end_ms=end_ms))
            except StoreDamaged as error:
                self._leave_hour(window, error)
        done += self._sum_up([window for window in windows if not window.is_late])
        self.summed += done
        moved = 0 if self._stopping.is_set() else self._compact(now_ms)
        if self._stopping.is_set():
            return False
        if done or moved:
            self._parts += 1
            if self._keep_ms and self._parts % _PARTS_BETWEEN == 0:
                self._forget(now_ms - self._keep_ms)
                self._nothing_before_ms = -1  # something may have been left that was not yet summed up
            return True
        return self._keep_ms > 0 and self._forget(now_ms - self._keep_ms)

    def _readable_windows(self, before_ms: int) -> list[Window]:
        """Return dirty windows but those of hours that could not be read, which would keep all later ones waiting."""
        now_s = self._clock.monotonic()
        self._unreadable = {hour: until_s for hour, until_s in self._unreadable.items() if until_s > now_s}
        nodes = {node for node, _ in self._unreadable}  # a store may share out what it lists among them
        most = _AT_ONCE + _WINDOWS_OF_HOUR * len(self._unreadable) * len(nodes)
        windows = self._store.dirty_windows(before_ms, most)
        return [window for window in windows if (window.node, _hour_end(window)) not in self._unreadable]

    def _leave_hour(self, window: Window, error: StoreDamaged) -> None:
        """Leave the hour of a window alone, which cannot be read and which the store has reported: the others go on."""
        if self._store.damage:
            raise error
        self._unreadable[window.node, _hour_end(window)] = self._clock.monotonic() + _UNREADABLE_S

    def _sum_up(self, windows: Sequence[Window]) -> int:
        """Roll up windows, some together in a transaction: those of an hour are read together. Returns their number."""
        of_hours: dict[tuple[str, int], list[Window]] = {}
        for window in windows:
            of_hours.setdefault((window.node, _hour_end(window)), []).append(window)
        found: list[tuple[Window, dict[str, Rollup]]] = []
        done = 0
        for of_hour in of_hours.values():
            if self._stopping.is_set():
                return done
            try:
                found += self._rollups_of_hour(of_hour)
            except StoreDamaged as error:
                self._leave_hour(of_hour[0], error)
            if len(found) >= _WRITTEN_TOGETHER:
                done += self._put(found)
                found = []
        return done + self._put(found)

    def _put(self, found: Sequence[tuple[Window, dict[str, Rollup]]]) -> int:
        def put() -> None:
            for window, summaries in found:
                self._store.replace_rollups(window, summaries)

        if found:
            self._writer.run(put, _WRITE_S)
        return len(found)

    def _rollups_of_hour(self, windows: Sequence[Window]) -> list[tuple[Window, dict[str, Rollup]]]:
        """Return the rollups of some windows, which are of one node and lie in one hour."""
        from_ms = min(window.end_ms - window.span_ms for window in windows)
        parts = self._values(windows[0].node, from_ms, max(window.end_ms for window in windows))
        found = []
        for window in sorted(windows, key=lambda window: window.span_ms):
            inside = [parts[end_ms] for end_ms in parts if window.end_ms - window.span_ms < end_ms <= window.end_ms]
            found.append((window, _rollups_of_parts(inside, window.end_ms)))
        return found

    def _add_late(self, hour: Window) -> bool:
        """Merge samples that came after those of their window were deleted: a whole hour at once; then delete them."""
        found = self._values(hour.node, hour.end_ms - hour.span_ms, hour.end_ms)
        parts: dict[int, dict[str, list[Rollup]]] = {}
        for span_ms in SPANS_MS:
            for end_ms in {window_end(short_ms - 1, span_ms) for short_ms in found}:
                inside = [found[short_ms] for short_ms in found if end_ms - span_ms < short_ms <= end_ms]
                for sensor, part in _rollups_of_parts(inside, end_ms).items():
                    parts.setdefault(span_ms, {}).setdefault(sensor, []).append(part)
        done: bool = self._writer.run(lambda: self._store.merge_late_rollups(hour, parts), _WRITE_S)
        return done

    def _values(self, node: str, from_ms: int, to_ms: int) -> dict[int, Columns]:
        """Return all values of a node in [from_ms, to_ms): by the end of the shortest window, and by sensor."""
        found: dict[int, Columns] = {}
        left = _MOST_VALUES
        for _, _, batch in self._store.stored_batches(node, from_ms, to_ms):
            left -= len(batch) * len(batch.values)
            if left < 0:
                break
            pieces = runs(batch.times, SPANS_MS[0])
            for start, stop in pieces:
                columns = found.setdefault(window_end(batch.times[start], SPANS_MS[0]), {})
                add_values(columns, batch.values if len(pieces) == 1 else batch.part(start, stop).values)
        return found

    def _compact(self, now_ms: int) -> int:
        try:
            job = self._store.compaction(now_ms)
        except StoreDamaged:  # which the store has reported
            if self._store.damage:
                raise
            return 0
        if job is None:
            return 0
        moved: int = self._writer.run(job, _WRITE_S)
        self.compacted += moved
        return moved

    def _forget(self, before_ms: int) -> bool:
        """Delete some expired samples: only whole hours go, so that is seldom worth a look of the writer thread."""
        last_ms = self._nothing_before_ms
        if before_ms // HOUR_MS == last_ms // HOUR_MS and 0 <= before_ms - last_ms < _FORGET_AGAIN_MS:
            return False
        gone: int = self._writer.run(lambda: self._store.delete_expired(before_ms, _FORGET_AT_ONCE), _WRITE_S)
        self.expired += gone
        if not gone:
            self._nothing_before_ms = before_ms
        return gone > 0

    def _run(self) -> None:
        told = ""
        rested_s = 0.0
        while not self._stopping.wait(LOOK_S):
            if self._writer.is_catching_up and rested_s < _MOST_REST_S:
                rested_s += LOOK_S
                continue
            rested_s = 0.0
            end_s = self._clock.monotonic() + _BETWEEN_RESTS_S
            try:
                while self.work() and not (self._writer.is_catching_up and self._clock.monotonic() > end_s):
                    # Collecting comes first: a thread that calculates without a pause would take half of the time.
                    self._stopping.wait(0.02)
                told = ""
            except DiskError:
                return  # the writer has met it too, or will, and ends the program
            except NotStored as error:
                if told != str(error):
                    log.warning("statistics wait: %s", error)
                told = str(error)


def _rollups_of_parts(parts: Sequence[Columns], end_ms: int) -> dict[str, Rollup]:
    """Return the rollup of each sensor that has a value in parts of a window."""
    found: dict[str, Rollup] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values: list[float] = []
        for part in parts:
            if name in part:
                values += part[name]
        found[name] = rollup(values, end_ms)
        if len(parts) == 1:
            parts[0][name] = array("d", values)  # sorted now: those of the hour are soon sorted, too
    return found
