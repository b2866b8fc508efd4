"""Scheduled backups to a second place, once a day, each checked before it counts; the last ones are kept.

A thread of its own, with a lower priority than the rest of the program. `fault` and `report` may be used by any thread.
Errors: none; what keeps a backup from being made is a fault in `Faults`, with the remedy, until one succeeds.

A backup is due when there is no checked one since the last time of day that was set: so one that was missed, with the
machine off or the disk not there, is made later. The names have the time in UTC, so no change of the clocks makes two
of a day, or none. Only files with such a name are ever deleted.
"""

from __future__ import annotations

import calendar
import contextlib
import errno
import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

from pigeonpost.core.clock import Clock, rfc3339
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import LAST_BACKUP
from pigeonpost.core.errors import DamagedFile, DiskError, PigeonpostError, SettingsError, StoreDamaged
from pigeonpost.core.faults import Faults
from pigeonpost.core.json_file import JsonFile
from pigeonpost.server.backup import BadBackup
from pigeonpost.server.backup_file import make_backup_file

log = logging.getLogger(__name__)

FAULT = "backup"  # subject in Faults
FIRST_S = 30.0  # after the start: connecting to the nodes comes first
LOOK_S = 30.0  # between two looks whether a backup is due
RETRY_S = 1800.0  # after one that failed
NICE = 10  # of the thread, setpriority(2): on Linux each thread has its own
_STAMP = "%Y-%m-%dT%H%M%SZ"  # in a name; no colons: FAT does not take them

Progress = Callable[[str, int, int], None]


class _Stopped(Exception):
    """The program ends: the backup is given up."""


def make_scheduled_backup(
    settings: Settings, data: str, name: str, faults: Faults, clock: Clock
) -> dict[str, ScheduledBackup]:
    """Make the scheduled backups, if they are set; by their name, "backup". Raises SettingsError."""
    folder = settings["backup", "to"]
    if not folder:
        return {}
    where = f"{settings.origin('backup', 'to')}: [backup] to"
    if settings["store", "postgres"]:
        raise SettingsError(f"{where} is of a store in SQLite; PostgreSQL has pg_dump for it (docs/scale.md)")
    inside = os.path.join(os.path.realpath(data), "")
    if os.path.join(os.path.realpath(folder), "").startswith(inside):
        raise SettingsError(f"{where}: {folder} lies in the data folder, and would be lost with it")
    at, keep = settings["backup", "at"], settings["backup", "keep"]
    return {"backup": ScheduledBackup(data, name, os.path.abspath(folder), at, keep, faults, clock)}


class _NotMounted(PigeonpostError):
    """The folder is there, but the disk that it led to is not."""


class ScheduledBackup:
    """The thread that makes backups, and the last one that was good."""

    fault = ""  # it is among the server's own faults

    def __init__(self, data: str, name: str, folder: str, at: str, keep: int, faults: Faults, clock: Clock) -> None:
        """
        data    the server's data folder; `name` is the server's
        folder  the second place; it must be there
        at      time of day by this machine's clock and zone, "03:00"
        keep    so many backups are kept
        """
        self._data, self._folder, self._keep = data, folder, keep
        self._hour, self._minute = map(int, at.split(":"))
        self._faults, self._clock = faults, clock
        self._beginning = f"pigeonpost-backup-{name}-"
        self._is_ours = re.compile(rf"{re.escape(self._beginning)}(\d{{4}}-\d\d-\d\dT\d{{6}}Z)\.tar").fullmatch
        self._last_file = JsonFile(os.path.join(data, LAST_BACKUP), "a record of the last backup", dict, is_mended=True)
        self._tried_s: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backup", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Give up a backup that is being made: what there is of it is removed at the next one."""
        self._stopping.set()
        self._thread.join(limit_s)
        return "still making a backup" if self._thread.is_alive() else None

    def report(self) -> dict[str, Any]:
        """Return where backups go, and the last good one, as JSON."""
        last, made_ms = self._last(), self.made_ms
        return {
            "to": self._folder, "file": last.get("file"), "bytes": last.get("bytes"),
            "made": rfc3339(made_ms) if made_ms is not None else None, "same_disk": self._is_same_disk(),
        }  # fmt: skip

    @property
    def made_ms(self) -> int | None:
        """When the last good backup was begun, in ms since 1970; None: there was none."""
        made_ms = self._last().get("made_ms")
        return made_ms if type(made_ms) is int else None

    def look(self) -> None:
        """Make a backup if one is due."""
        now_ms, now_s = self._clock.wall_ms(), self._clock.monotonic()
        if not self._clock.is_set() or (self._tried_s is not None and now_s - self._tried_s < RETRY_S):
            return
        due_ms = self.last_due_ms(now_ms)
        if any(due_ms <= made_ms <= now_ms for made_ms, _ in self._made()):
            return
        self._tried_s = now_s
        try:
            fault = self._make(now_ms)
        except _Stopped:
            return
        except (PigeonpostError, OSError, sqlite3.Error, MemoryError) as error:  # collecting goes on
            self._faults.set(FAULT, self._remedy(error))
            return
        self._tried_s = None
        self._faults.set(FAULT, fault)

    def last_due_ms(self, now_ms: int) -> int:
        """Return the last time at which a backup was due: today's, or yesterday's where that is to come."""
        today = time.localtime(now_ms / 1000)
        due_s = _moment(*today[:3], self._hour, self._minute)
        if due_s * 1000 > now_ms:
            noon_s = time.mktime((*today[:2], today.tm_mday - 1, 12, 0, 0, 0, 0, -1))
            due_s = _moment(*time.localtime(noon_s)[:3], self._hour, self._minute)
        return due_s * 1000

    def _make(self, now_ms: int) -> str:
        """Make a backup. Returns why older ones cannot be deleted; empty when they are."""
        if self._last().get("other_disk") is True and self._is_same_disk():
            raise _NotMounted(f"the disk that had the backups is not at {self._folder}")
        name = f"{self._beginning}{time.strftime(_STAMP, time.gmtime(now_ms / 1000))}.tar"
        path = os.path.join(self._folder, name)
        if not os.path.isdir(self._folder):
            raise FileNotFoundError(errno.ENOENT, "it is not there", self._folder)
        make_backup_file(self._data, path, f".{self._beginning}making", self._progress)
        size = os.path.getsize(path)
        log.info("backup: %s, %s bytes, checked", path, f"{size:,}")
        last = {"file": path, "made_ms": now_ms, "bytes": size, "other_disk": not self._is_same_disk()}
        with contextlib.suppress(DiskError):  # the backup is there all the same; a full disk is a fault of its own
            self._last_file.write({"last": last})
        return self._delete_older(name, now_ms)

    def _delete_older(self, name: str, now_ms: int) -> str:
        """Delete what is too many beside the backup `name`: of a time to come first, which a wrong clock has made."""
        older = sorted((made_ms <= now_ms, made_ms, other) for made_ms, other in self._made() if other != name)
        for _, _, other in older[: max(0, len(older) + 1 - self._keep)]:
            try:
                os.unlink(os.path.join(self._folder, other))
            except FileNotFoundError:
                pass  # somebody else has deleted it
            except OSError as error:
                why = f"{os.path.join(self._folder, other)}: {error.strerror}"
                return f"a backup was made, but older ones cannot be deleted: {why}; delete them by hand"
        return ""

    def _progress(self, stage: str, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _made(self) -> list[tuple[int, str]]:
        """Return the backups of this server that are there, the oldest first: the time of each, and its name."""
        found = []
        try:
            names = os.listdir(self._folder)
        except OSError:  # which making one reports
            return []
        for name in names:
            ours = self._is_ours(name)
            if ours:
                with contextlib.suppress(ValueError):  # no date at all
                    found.append((calendar.timegm(time.strptime(ours[1], _STAMP)) * 1000, name))
        return sorted(found)

    def _last(self) -> dict[str, Any]:
        try:
            return self._last_file.now().get("last", {})
        except DamagedFile:  # it is written again with the next backup
            return {}

    def _is_same_disk(self) -> bool:
        try:
            return os.stat(self._folder).st_dev == os.stat(self._data).st_dev
        except OSError:
            return False

    def _remedy(self, error: Exception) -> str:
        """Return why there is no backup, and what to do."""
        code = getattr(error, "errno", None) or getattr(error.__cause__, "errno", None)
        folder = self._folder
        if isinstance(error, StoreDamaged | BadBackup):
            return (
                f"no backup could be made, since the database is damaged; those in {folder} stay as they are."
                f" `python3 control.py --data {self._data} verify` says what is wrong, docs/data.md what to do"
            )
        if isinstance(error, _NotMounted):
            remedy = f"mount it; if the backups are to be on this disk from now on, remove {self._last_file.path}"
        elif code == errno.ENOENT:
            remedy = f"mount its disk, or make the folder {folder}"
        elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = (
                f"let user {os.geteuid()} write to {folder}; a systemd unit takes ReadWritePaths={folder} for it, see"
                " docs/data.md"
            )
        elif code in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"make room on the disk of {folder}, or lower [backup] keep; one takes the database twice"
        elif code == errno.EFBIG:
            remedy = f"the file system of {folder} takes no file so large: FAT ends at 4 GB, use ext4 or exFAT"
        else:
            remedy = f"`python3 control.py backup {folder}` tries it by hand"
        why = "; ".join(str(error).splitlines()) or type(error).__name__
        if code and not isinstance(error, PigeonpostError):
            why = f"{folder}: {os.strerror(code)}"
        return f"no backup could be made: {why}; {remedy}. It is tried again every {RETRY_S / 60:.0f} minutes"

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        if self._is_same_disk():
            log.warning("[backup] to = %s is on the disk of the data, and is lost with it", self._folder)
        wait_s = FIRST_S
        while not self._stopping.wait(wait_s):
            self.look()
            wait_s = LOOK_S


def _moment(year: int, month: int, day: int, hour: int, minute: int) -> int:
    """Return a local time in seconds since 1970: of two the first; one that there is not, as if the clocks had not
    changed yet. Not by tm_isdst = -1, with which mktime(3) chooses either of two.
    """
    wanted = (year, month, day, hour, minute)
    both = [int(time.mktime((*wanted, 0, 0, 0, is_summer))) for is_summer in (1, 0)]
    return min((moment for moment in both if time.localtime(moment)[:5] == wanted), default=both[1])
