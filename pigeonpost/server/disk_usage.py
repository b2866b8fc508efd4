"""Disk usage: free space, growth per day, and bytes written per day, which wear out an SD card.

May be used by any thread; `_lock` guards the last measurement, and is held while a new one is made.
What cannot be measured is None.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import NamedTuple

from pigeonpost.core.clock import Clock

_FRESH_S = 60.0
_LOOK_S, _LOOKS = 600.0, 145  # sizes are remembered so far apart, for a day
_LEAST_S = 600.0  # after which the size of a day is calculated from what is known
_DAY_S = 86_400.0


class DiskUsage(NamedTuple):
    """Usage of the disk with the data folder, in bytes.

    stored   by everything in the folder         free     for this program
    grows    the folder in a day; None: this server has not run for long enough, or it gets smaller
    written  in a day by this process, as the kernel counts it (proc_pid_io(5): write_bytes); None as above
    days     until it is full; None as above
    """

    stored: int
    free: int
    grows: float | None
    written: float | None
    days: float | None


class DiskUsageMonitor:
    """Measures disk usage, at most once a minute."""

    def __init__(self, folder: str, clock: Clock, process: str = "/proc/self") -> None:
        """process: of the kernel's files about this process."""
        self._folder = folder
        self._clock = clock
        self._io = os.path.join(process, "io")
        self._lock = threading.Lock()
        self._began_s, self._began_written = clock.monotonic(), self._written()
        self._sizes: deque[tuple[float, int]] = deque([(self._began_s, _size(folder))], maxlen=_LOOKS)
        self._last: DiskUsage | None = None
        self._measured_s = 0.0

    def use(self) -> DiskUsage:
        """How it is, at most a minute ago."""
        with self._lock:
            now_s = self._clock.monotonic()
            if self._last is None or now_s - self._measured_s >= _FRESH_S:
                self._last, self._measured_s = self._measure(now_s), now_s
            return self._last

    def _measure(self, now_s: float) -> DiskUsage:
        stored, room = _size(self._folder), os.statvfs(self._folder)
        free = room.f_bavail * room.f_frsize
        then_s, before = self._sizes[0]
        if now_s - self._sizes[-1][0] >= _LOOK_S:
            self._sizes.append((now_s, stored))
        grows = written = days = None
        if now_s - then_s >= _LEAST_S and stored > before:
            grows = (stored - before) / (now_s - then_s) * _DAY_S
            days = free / grows
        now_written = self._written()
        if now_s - self._began_s >= _LEAST_S and now_written is not None and self._began_written is not None:
            written = (now_written - self._began_written) / (now_s - self._began_s) * _DAY_S
        return DiskUsage(stored, free, grows, written, days)

    def _written(self) -> int | None:
        try:
            with open(self._io, encoding="ascii") as file:
                return next((int(line.split()[1]) for line in file if line.startswith("write_bytes:")), None)
        except (OSError, ValueError):
            return None  # not every kernel counts, and in some containers nobody may ask


def _size(folder: str) -> int:
    """What the files of a folder take up."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except FileNotFoundError:
                pass  # gone meanwhile: SQLite's own, or a log that somebody tidies up
    return total
