"""Background maintenance of the store: rollups, compaction, and deletion of expired samples.

A separate thread reads and calculates. The Ingestor's writer thread writes the results in small steps, so collecting
never waits for longer than one step. The maintenance thread pauses while nodes catch up.
Errors: after NotStored the work is repeated later; DiskError ends the program through the Ingestor. An hour that
cannot be read is left unchanged, and the work continues with all others.

Rollups are calculated for windows of ten minutes and of one hour. A window is [start, end) and is identified by its
end. It is rolled up from its samples when it is over, and again when a late sample is added to it. So a rollup always
equals a recount, regardless of the order in which the samples arrived. There is one exception: if the samples of the
window are already deleted (setting `keep`), a late sample is merged into the rollup. Count, mean, minimum, maximum and
standard deviation then stay exact. Median and mode are taken from the larger of the two parts.
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

GRACE_MS = 15_000  # time from a window's end until it is rolled up: its last samples may still be on their way
LOOK_S = 10.0  # interval between two checks for work
_WRITE_S = 10.0  # maximum wait until the writer thread begins with a step; after that the step is calculated again
_AT_ONCE = 200  # windows that are requested from the store together
_WINDOWS_OF_HOUR = sum(HOUR_MS // span_ms for span_ms in SPANS_MS)
_UNREADABLE_S = 3600.0  # time until an hour that could not be read is tried again
_WRITTEN_TOGETHER = 14  # windows that are written in one transaction, which then takes a few milliseconds
_DELETE_AT_ONCE = 20_000  # samples that are deleted in one transaction: a row has up to 4,096 samples
# Steps of other work after which expired samples are deleted even if there is more other work. There may always be
# more: a node whose clock is wrong sends all its samples late.
_PARTS_BETWEEN = 500
_DELETE_AGAIN_MS = 600_000  # time until the same hour is tried again: its samples may be logged and rolled up then
_MOST_VALUES = 8_000_000  # values of a node in one hour that are kept in memory: 22 channels at 100 Hz
_MOST_REST_S = 60.0  # maximum pause while nodes catch up: maintenance must not be postponed without limit
_BETWEEN_RESTS_S = 5.0  # maximum duration of the work between two such pauses
_SQUARES = 1e150  # the squares of numbers up to this one, and their sum, are finite floats
_NO_SQUARES = 1e-150  # the squares of numbers from this one on are not rounded to 0

# Values by sensor, in eight bytes each: a node may have sent millions.
Columns = dict[str, "array[float]"]


class Writer(Protocol):
    """Interface of the Ingestor that MaintenanceWorker uses."""

    @property
    def is_catching_up(self) -> bool:
        """True while nodes send samples that they have buffered."""

    def run(self, job: Callable[[], Any], limit_s: float) -> Any:
        """Run `job` within a transaction of the writer thread, and return its result or raise its exception.

        Raises:
            NotStored: The writer thread did not begin with the job within `limit_s` seconds. The job is not run.
        """


def add_values(found: Columns, values: Mapping[str, Sequence[Number | None]]) -> None:
    """Append the columns `values` of a batch of samples to `found`, without the values that are None."""
    for name, column in values.items():
        numbers = [value for value in column if value is not None] if None in column else column
        if numbers:
            found.setdefault(name, array("d")).extend(numbers)  # type: ignore[arg-type]


def rollup(values: list[float], end_ms: int) -> Rollup:
    """Return the rollup of the window that ends at `end_ms`. Sorts `values`, which must contain at least one value."""
    values.sort()
    count, low, high = len(values), values[0], values[-1]
    middle = values[(count - 1) // 2] / 2 + values[count // 2] / 2 if count % 2 == 0 else values[count // 2]
    frequencies = Counter(values)
    most = max(frequencies.values())
    mode = next(value for value, count in frequencies.items() if count == most)  # sorted: this is the lowest one
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
    """Return the up-to-date rollups of one sensor: those of dirty windows are calculated from the samples.

    The rollups of windows in a damaged hour are returned as they are stored. The store reports the damage.

    Args:
        store: The store.
        node: Name of the node.
        sensor: Name of the sensor.
        span_ms: Length of the windows in ms.
        from_ms: Only windows that end after this time (ms since 1970, UTC) are returned.
        to_ms: Only windows that end at or before this time are returned.
        kept_from_ms: Time before which samples may have been deleted. Late samples of these windows are merged into the
            stored rollups.
        most: Maximum number of samples to read.

    Returns:
        The rollups, oldest first; None if more than `most` samples would have to be read.
    """
    found: list[Rollup] | None = None
    for _ in range(2):  # between reading rollups and samples, late samples may be merged and deleted: then read again
        dirty = store.dirty_ends(node, span_ms, from_ms, to_ms)
        found = _with_dirty(store, node, sensor, span_ms, from_ms, to_ms, kept_from_ms, most, dirty)
        if not dirty or set(dirty) <= set(store.dirty_ends(node, span_ms, from_ms, to_ms)):
            break
    return found


def _with_dirty(
    store: Store, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int, kept_from_ms: int, most: int,
    dirty: Sequence[int],
) -> list[Rollup] | None:  # fmt: skip
    """Return rollups for `current_rollups`. `dirty` are the ends of the windows that are calculated from samples."""
    found = {one.end_ms: one for one in store.summaries(node, sensor, span_ms, from_ms, to_ms)}
    for _, of_hour in groupby(dirty, lambda end_ms: window_end(end_ms - 1, HOUR_MS)):  # rows never cross an hour
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
    """Thread that calculates rollups, compacts stored samples and deletes expired ones.

    Attributes:
        summed: Number of windows that were rolled up in this run.
        compacted: Number of samples that were compacted in this run.
        expired: Number of samples that were deleted in this run.
    """

    def __init__(self, store: Store, writer: Writer, clock: Clock, keep_days: float = 0.0) -> None:
        """Initialise the worker without starting its thread.

        Args:
            store: The store to maintain.
            writer: The Ingestor, which writes the results.
            clock: Clock of the server.
            keep_days: Time for which samples are kept, in days; 0 to keep them permanently. Rollups are always kept.
        """
        self.summed = self.compacted = self.expired = 0
        self._store = store
        self._writer = writer
        self._clock = clock
        self._keep_ms = int(keep_days * 86_400_000)
        self._nothing_before_ms = -1  # cutoff of the last attempt that found nothing to delete
        self._unreadable: dict[tuple[str, int], float] = {}  # (node, end of hour) to the time of the next attempt
        self._parts = 0  # completed steps of work other than deletion
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Stop after the present step. The next run of the program continues with the rest.

        Returns a message if the thread has not stopped within `limit_s` seconds, otherwise None.
        """
        self._stopping.set()
        self._thread.join(limit_s)
        return "still calculating rollups" if self._thread.is_alive() else None

    def work(self) -> bool:
        """Do one step of the work. Return True if there may be more work that need not wait."""
        now_ms = self._clock.wall_ms()
        windows = self._readable_windows(now_ms - GRACE_MS)
        late = {(window.node, _hour_end(window)): window for window in windows if window.is_late}
        done = 0
        for (_, end_ms), window in late.items():
            if self._stopping.is_set():
                return False
            try:
                done += self._merge_late(window._replace(span_ms=HOUR_MS, end_ms=end_ms))
            except StoreDamaged as error:
                self._skip_hour(window, error)
        done += self._roll_up([window for window in windows if not window.is_late])
        self.summed += done
        moved = 0 if self._stopping.is_set() else self._compact(now_ms)
        if self._stopping.is_set():
            return False
        if done or moved:
            self._parts += 1
            if self._keep_ms and self._parts % _PARTS_BETWEEN == 0:
                self._delete_expired(now_ms - self._keep_ms)
                self._nothing_before_ms = -1  # some samples may have been kept because they were not rolled up yet
            return True
        return self._keep_ms > 0 and self._delete_expired(now_ms - self._keep_ms)

    def _readable_windows(self, before_ms: int) -> list[Window]:
        """Return dirty windows, except those in hours that could not be read, which would block all later windows."""
        now_s = self._clock.monotonic()
        self._unreadable = {hour: until_s for hour, until_s in self._unreadable.items() if until_s > now_s}
        nodes = {node for node, _ in self._unreadable}  # the store may return equally many windows of each node
        most = _AT_ONCE + _WINDOWS_OF_HOUR * len(self._unreadable) * len(nodes)
        windows = self._store.dirty_windows(before_ms, most)
        return [window for window in windows if (window.node, _hour_end(window)) not in self._unreadable]

    def _skip_hour(self, window: Window, error: StoreDamaged) -> None:
        """Skip the hour of a window for some time: it cannot be read, and the store has reported that."""
        if self._store.damage:
            raise error
        self._unreadable[window.node, _hour_end(window)] = self._clock.monotonic() + _UNREADABLE_S

    def _roll_up(self, windows: Sequence[Window]) -> int:
        """Roll up windows, and return their number.

        The windows of one hour are read together, and several windows are written in one transaction.
        """
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
                self._skip_hour(of_hour[0], error)
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
        """Return the rollups of several windows, all of one node and in one hour."""
        from_ms = min(window.end_ms - window.span_ms for window in windows)
        parts = self._values(windows[0].node, from_ms, max(window.end_ms for window in windows))
        found = []
        for window in sorted(windows, key=lambda window: window.span_ms):
            inside = [parts[end_ms] for end_ms in parts if window.end_ms - window.span_ms < end_ms <= window.end_ms]
            found.append((window, _rollups_of_parts(inside, window.end_ms)))
        return found

    def _merge_late(self, hour: Window) -> bool:
        """Merge late samples of one hour whose other samples are deleted into the rollups, then delete them."""
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
        """Return all values of a node in [from_ms, to_ms), by the end of their shortest window and by sensor."""
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
        except StoreDamaged:  # the store has reported it
            if self._store.damage:
                raise
            return 0
        if job is None:
            return 0
        moved: int = self._writer.run(job, _WRITE_S)
        self.compacted += moved
        return moved

    def _delete_expired(self, before_ms: int) -> bool:
        """Delete some expired samples. Return True if any were deleted.

        If nothing could be deleted, the next attempt is made after _DELETE_AGAIN_MS or in the next hour, because only
        complete hours are deleted.
        """
        last_ms = self._nothing_before_ms
        if before_ms // HOUR_MS == last_ms // HOUR_MS and 0 <= before_ms - last_ms < _DELETE_AGAIN_MS:
            return False
        deleted: int = self._writer.run(lambda: self._store.delete_expired(before_ms, _DELETE_AT_ONCE), _WRITE_S)
        self.expired += deleted
        if not deleted:
            self._nothing_before_ms = before_ms
        return deleted > 0

    def _run(self) -> None:
        reported = ""
        paused_s = 0.0
        while not self._stopping.wait(LOOK_S):
            if self._writer.is_catching_up and paused_s < _MOST_REST_S:
                paused_s += LOOK_S
                continue
            paused_s = 0.0
            end_s = self._clock.monotonic() + _BETWEEN_RESTS_S
            try:
                while self.work() and not (self._writer.is_catching_up and self._clock.monotonic() > end_s):
                    # Collecting has priority: without a pause this thread would take half of the processor time.
                    self._stopping.wait(0.02)
                reported = ""
            except DiskError:
                return  # the writer thread meets the same error, and ends the program
            except NotStored as error:
                if reported != str(error):
                    log.warning("rollups are delayed: %s", error)
                reported = str(error)


def _rollups_of_parts(parts: Sequence[Columns], end_ms: int) -> dict[str, Rollup]:
    """Return the rollup of each sensor that has a value in any of the parts of a window."""
    found: dict[str, Rollup] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values: list[float] = []
        for part in parts:
            if name in part:
                values += part[name]
        found[name] = rollup(values, end_ms)
        if len(parts) == 1:
            parts[0][name] = array("d", values)  # they are sorted now, which makes sorting those of the hour faster
    return found
