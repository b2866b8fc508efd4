"""Disk usage: free space, growth per day, and bytes written per day, which wear out an SD card.

May be used by any thread; `_lock` guards the last measurement, and is held while a new one is made.
What cannot be measured is None.

SQLite's write-ahead log takes up to 16 MiB after each start, and is then written from its beginning again: it is stored
data, but no growth. What grows is the database with what is in that log, which SQLite tells (PRAGMA page_count).
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

_FRESH_S = 60.0
_LOOK_S, _LOOKS = 600.0, 145  # sizes are remembered so far apart, for a day
_LEAST_S = 3600.0  # after which the growth of a day is calculated from what is known: files grow in steps
_OF_SQLITE = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm")
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
        self._sizes: deque[tuple[float, int]] = deque([(self._began_s, _sizes(folder)[1])], maxlen=_LOOKS)
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
        (stored, data), room = _sizes(self._folder), os.statvfs(self._folder)
        free = room.f_bavail * room.f_frsize
        then_s, before = self._sizes[0]
        if now_s - self._sizes[-1][0] >= _LOOK_S:
            self._sizes.append((now_s, data))
        grows = written = days = None
        if now_s - then_s >= _LEAST_S and data > before:
            grows = (data - before) / (now_s - then_s) * _DAY_S
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


def _sizes(folder: str) -> tuple[int, int]:
    """Return what the files of a folder take up, and the same with the content of the database for SQLite's files."""
    stored = of_sqlite = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                size = os.lstat(os.path.join(where, name)).st_blocks * 512
            except FileNotFoundError:  # gone meanwhile: SQLite's own, or a log that somebody tidies up
                continue
            stored += size
            of_sqlite += size if where == folder and name in _OF_SQLITE else 0
    content = _database_bytes(os.path.join(folder, DATABASE))
    return stored, stored - of_sqlite + content if content is not None else stored


def _database_bytes(path: str) -> int | None:
    """Return the size of the database, with what is still in its write-ahead log; None: there is none that can be read.

    The connection cannot write, so it never checkpoints either (storage.sqlite.store).
    """
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as db:
            (pages,), (page_bytes,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
            return int(pages) * int(page_bytes)
    except sqlite3.Error:  # none yet, or a damaged one, which the store reports
        return None
