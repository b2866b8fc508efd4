"""Tracker of the time at which each failing sensor began to fail.

`on_commit` is called in the Ingestor's writer thread, `since_ms` in the threads of the pages. `_lock` guards the times,
and is held only for single lookups and changes. Errors of `since_ms`: those of the store.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pigeonpost.core.clock import FIRST_MS
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import EpochCommit

if TYPE_CHECKING:
    from pigeonpost.storage.contract import Store
    from protocol import Number

# The last samples are read individually. If the failure began earlier, the last hour with a value is searched.
_LOOKED_AT = 500  # number of these samples
_DAYS = 30  # range of the search, in days
_HOUR_MS = 3_600_000
_FAR_MS = 1 << 52  # a time after all samples


class FailureTracker:
    """Start times of the current failures of sensors, by the clocks of their nodes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._since: dict[str, dict[str, int]] = {}  # start of each failure by node and sensor, in ms since 1970

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Record the sensors that begin to fail in `epoch_commits`, and remove those that work again.

        It is subscribed to the commits of the Ingestor.
        """
        for epoch_commit in epoch_commits:
            for item in epoch_commit.items:
                if isinstance(item, SampleBatch):
                    self._record(epoch_commit.node, item)

    def _record(self, node: str, samples: SampleBatch) -> None:
        columns = samples.values
        failing = [sensor for sensor, column in columns.items() if column[-1] is None]
        if node not in self._since and not failing:
            return
        with self._lock:
            known = self._since.get(node, {})
            found = {sensor: since_ms for sensor, since_ms in known.items() if sensor not in columns}
            for sensor in failing:
                since_ms = _first_failure_ms(samples, columns[sensor], known.get(sensor))
                if since_ms is not None:  # otherwise the failure began earlier: it is in the store
                    found[sensor] = since_ms
            self._since.pop(node, None)
            if found:
                self._since[node] = found

    def since_ms(self, node: str, sensor: str) -> int | None:
        """Return the time at which the current failure of `sensor` of `node` began, in ms since 1970.

        This is the time of the first sample after the last value. If the failure is older than the last 500 samples,
        the time is exact to the hour. If no value is found at all, it is the time of the oldest sample that was read.
        Return None if nothing is stored for the node, or if its last stored sample has a value.
        """
        with self._lock:
            found = self._since.get(node, {}).get(sensor)
        if found is None:
            found = self._look_up(node, sensor)
            if found is not None:
                with self._lock:
                    self._since.setdefault(node, {}).setdefault(sensor, found)
        return found

    def _look_up(self, node: str, sensor: str) -> int | None:
        points = self._store.points(node, FIRST_MS, _FAR_MS, _LOOKED_AT)
        since_ms = None
        for point in reversed(points):
            if point.values.get(sensor) is not None:
                return since_ms
            since_ms = point.time_ms
        if since_ms is None or len(points) < _LOOKED_AT:
            return since_ms
        to_ms = -(-since_ms // _HOUR_MS) * _HOUR_MS
        from_ms = to_ms - _DAYS * 24 * _HOUR_MS
        hours = self._store.downsample(node, sensor, from_ms, to_ms, _DAYS * 24)
        return min(since_ms, from_ms + (hours[-1].place + 1) * _HOUR_MS) if hours else since_ms


def _first_failure_ms(samples: SampleBatch, column: Sequence[Number | None], known_ms: int | None) -> int | None:
    """Return the start of the failure of a sensor that has no value in the last one of these samples.

    Args:
        samples: Samples of the node.
        column: Values of the sensor in these samples.
        known_ms: Start of the failure if it began before these samples; None if it did not, or this is unknown.
    """
    for place in range(len(column) - 2, -1, -1):
        if column[place] is not None:
            return samples.times[place + 1]
    return known_ms
