"""Tracks since when the sensors fail that have no value now.

`on_commit` is called in the Ingestor's writer thread, `since_ms` in those of the pages. `_lock` guards what is kept,
and is held for a moment. Errors of `since_ms`: those of the store.
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

_LOOKED_AT = 500  # samples in the store, the last ones; before that the last hour with a value counts
_DAYS = 30
_HOUR_MS = 3_600_000
_FAR_MS = 1 << 52  # after every date


class FailureTracker:
    """Since when each failing sensor fails, by its node's clock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._since: dict[str, dict[str, int]] = {}  # by node and sensor

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Record the sensors that begin to fail, and forget those that work again; for Ingestor.subscribe."""
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
                if since_ms is not None:  # else it fails for longer than we have looked: the store knows
                    found[sensor] = since_ms
            self._since.pop(node, None)
            if found:
                self._since[node] = found

    def since_ms(self, node: str, sensor: str) -> int | None:
        """Return the time of the first failure since the last value, or the earliest that is known of them.

        None: nothing of the node is stored.
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
    """Return since when a sensor fails that has no value in the last of these samples: `column` is its values.

    known_ms  since when it has failed before these; None: it did not, or nobody knows
    """
    for place in range(len(column) - 2, -1, -1):
        if column[place] is not None:
            return samples.times[place + 1]
    return known_ms
