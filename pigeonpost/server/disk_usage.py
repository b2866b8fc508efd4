"""Disk usage: free space, growth per day, and bytes written per day, which wear out an SD card.

Any thread may use it. `_lock` guards the last measurement, and is held while a new one is made.
Values that cannot be measured are None.

SQLite's write-ahead log grows to up to 16 MiB after each start and is then reused. It counts as stored data, but not as
growth. To calculate the growth, the size of the database is PRAGMA page_count, which includes the pages in that log.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections import deque
from typing import NamedTuple
from urllib.parse import quote

from pigeonpost.core.clock import Clock
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.format import size

_FRESH_S = 60.0  # time for which a measurement is used
_LOOK_S, _LOOKS = 600.0, 145  # interval and number of remembered sizes: one day
_LEAST_S = 3600.0  # minimum observation time for the daily growth, because files grow in steps
_LEAST_WRITTEN_S = 60.0  # minimum observation time for the bytes written per day, which are an estimate at first
_OF_SQLITE = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm")
_DAY_S = 86_400.0


class DiskUsage(NamedTuple):
    """Usage of the disk that contains the data folder.

    Attributes:
        stored: Size of the data folder, in bytes.
        free: Free space for this program, in bytes.
        grows: Growth of the folder, in bytes per day; None if the server has not run for long enough, or if the folder
            does not grow.
        written: Bytes written per day by this process, as counted by the kernel (proc_pid_io(5): write_bytes); None in
            the first minute, or if the kernel does not count.
        days: Time until the disk is full, in days; None if `grows` is None.
        is_estimate: True if `written` is known from less than an hour.
    """

    stored: int
    free: int
    grows: float | None
    written: float | None
    days: float | None
    is_estimate: bool = False


def written_words(use: DiskUsage) -> str:
    """Return `use.written`, which must be known, as text; an estimate begins with "about"."""
    return ("about " if use.is_estimate else "") + size(use.written or 0)


class DiskUsageMonitor:
    """Monitor of the disk usage, which is measured at most once a minute."""

    def __init__(self, folder: str, clock: Clock, process: str = "/proc/self") -> None:
        """Initialise the monitor.

        Args:
            folder: The data folder.
            clock: Clock of the server.
            process: Folder of the kernel's files about this process.
        """
        self._folder = folder
        self._clock = clock
        self._io = os.path.join(process, "io")
        self._lock = threading.Lock()
        self._began_s, self._began_written = clock.monotonic(), self._written()
        self._sizes: deque[tuple[float, int]] = deque([(self._began_s, _sizes(folder)[1])], maxlen=_LOOKS)
        self._last: DiskUsage | None = None
        self._measured_s = 0.0

    def use(self) -> DiskUsage:
        """Return the disk usage, measured at most a minute ago."""
        with self._lock:
            now_s = self._clock.monotonic()
            if self._last is None or now_s - self._measured_s >= _FRESH_S:
                self._last, self._measured_s = self._measure(now_s), now_s
            return self._last

    def _measure(self, now_s: float) -> DiskUsage:
        (stored, content), disk = _sizes(self._folder), os.statvfs(self._folder)
        free = disk.f_bavail * disk.f_frsize
        then_s, before = self._sizes[0]
        if now_s - self._sizes[-1][0] >= _LOOK_S:
            self._sizes.append((now_s, content))
        grows = written = days = None
        if now_s - then_s >= _LEAST_S and content > before:
            grows = (content - before) / (now_s - then_s) * _DAY_S
            days = free / grows
        now_written = self._written()
        observed_s = now_s - self._began_s
        if observed_s >= _LEAST_WRITTEN_S and now_written is not None and self._began_written is not None:
            written = (now_written - self._began_written) / observed_s * _DAY_S
        return DiskUsage(stored, free, grows, written, days, written is not None and observed_s < _LEAST_S)

    def _written(self) -> int | None:
        try:
            with open(self._io, encoding="ascii") as file:
                return next((int(line.split()[1]) for line in file if line.startswith("write_bytes:")), None)
        except (OSError, ValueError):
            return None  # some kernels do not count, and some containers deny access


def _sizes(folder: str) -> tuple[int, int]:
    """Return two sizes of a folder in bytes.

    The first one is the disk space of all files. The second one differs only for SQLite's files: instead of their disk
    space, it contains the size of the database's content.
    """
    stored = of_sqlite = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                size = os.lstat(os.path.join(directory, name)).st_blocks * 512
            except FileNotFoundError:  # deleted just now: a file of SQLite, or a log that was removed
                continue
            stored += size
            of_sqlite += size if directory == folder and name in _OF_SQLITE else 0
    content = _database_bytes(os.path.join(folder, DATABASE))
    return stored, stored - of_sqlite + content if content is not None else stored


def _database_bytes(path: str) -> int | None:
    """Return the size of the database including its write-ahead log; None if it cannot be read.

    The connection cannot write, so it never runs a checkpoint (see storage.sqlite.store).
    """
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as db:
            (pages,), (page_bytes,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
            return int(pages) * int(page_bytes)
    except sqlite3.Error:  # missing, or damaged, which the store reports
        return None
