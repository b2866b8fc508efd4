"""Scheduled daily backups to a second folder, each checked before it counts. Only the newest ones are kept.

A separate thread makes them, with a lower priority than the rest of the program. Any thread may use `fault` and
`report`.
Errors: none. The reason why a backup fails is a fault in `Faults`, with the remedy, until a backup succeeds.

A backup is due if none has been made and checked since the last scheduled time of day. So a backup that was missed,
because the machine was off or the disk was not mounted, is made later. File names contain the time in UTC, so changes
to or from daylight saving time cause neither a second backup nor a missing one. Only files with such names are ever
deleted.
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
from pigeonpost.server.schedule import Schedule

log = logging.getLogger(__name__)

FAULT = "backup"  # subject in Faults
FIRST_S = 30.0  # delay after the start, in which connecting to the nodes has priority
LOOK_S = 30.0  # interval of the check whether a backup is due
RETRY_S = 1800.0  # delay after a failed attempt
NICE = 10  # nice value of the thread, setpriority(2): on Linux each thread has its own
_STAMP = "%Y-%m-%dT%H%M%SZ"  # time in file names, without colons, which FAT does not allow

Progress = Callable[[str, int, int], None]


class _Stopped(Exception):
    """The program is stopping, and the backup is cancelled."""


def make_scheduled_backup(
    settings: Settings, data: str, name: str, faults: Faults, clock: Clock
) -> dict[str, ScheduledBackup]:
    """Return the component of the scheduled backups under its name "backup"; empty if backups are not configured.

    Args:
        settings: Settings of the server.
        data: The data folder.
        name: Name of the server.
        faults: Receives the reason why a backup fails.
        clock: Clock of the server.

    Raises:
        SettingsError: The settings in [backup] cannot be used.
    """
    folder = settings["backup", "to"]
    if not folder:
        return {}
    where = f"{settings.origin('backup', 'to')}: [backup] to"
    if settings["store", "postgres"]:
        raise SettingsError(f"{where} is only for a store in SQLite; use pg_dump for PostgreSQL (docs/scale.md)")
    inside = os.path.join(os.path.realpath(data), "")
    if os.path.join(os.path.realpath(folder), "").startswith(inside):
        raise SettingsError(f"{where}: {folder} is in the data folder, and would be lost with it")
    at, keep = settings["backup", "at"], settings["backup", "keep"]
    return {"backup": ScheduledBackup(data, name, os.path.abspath(folder), at, keep, faults, clock)}


class _NotMounted(PigeonpostError):
    """The folder for the backups exists, but its disk is not mounted."""


class ScheduledBackup:
    """Thread that makes backups.

    Attributes:
        fault: Always empty: failed backups are among the server's own faults.
        schedule: Times at which a backup is due.
    """

    fault = ""

    def __init__(self, data: str, name: str, folder: str, at: str, keep: int, faults: Faults, clock: Clock) -> None:
        """Initialise the backups without starting the thread.

        Args:
            data: The server's data folder.
            name: Name of the server.
            folder: Folder for the backups, which must exist.
            at: Local time of day, for example "03:00".
            keep: Number of backups to keep.
            faults: Receives the reason why a backup fails.
            clock: Clock of the server.
        """
        self._data, self._folder, self._keep = data, folder, keep
        self.schedule = Schedule(at)
        self._faults, self._clock = faults, clock
        self._prefix = f"pigeonpost-backup-{name}-"
        self._match_name = re.compile(rf"{re.escape(self._prefix)}(\d{{4}}-\d\d-\d\dT\d{{6}}Z)\.tar").fullmatch
        self._last_file = JsonFile(
            os.path.join(data, LAST_BACKUP), "a record of the last backup", dict, auto_restore=True
        )
        self._tried_s: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backup", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Cancel a backup that is being made. The next one removes its temporary files.

        Returns a message if this takes longer than `limit_s` seconds, otherwise None.
        """
        self._stopping.set()
        self._thread.join(limit_s)
        return "still making a backup" if self._thread.is_alive() else None

    def report(self) -> dict[str, Any]:
        """Return the folder and the last good backup, as JSON."""
        last, made_ms = self._last(), self.made_ms
        return {
            "to": self._folder, "file": last.get("file"), "bytes": last.get("bytes"),
            "made": rfc3339(made_ms) if made_ms is not None else None, "same_disk": self._is_same_disk(),
        }  # fmt: skip

    @property
    def made_ms(self) -> int | None:
        """Start time of the last good backup, in ms since 1970 (UTC); None if there is none."""
        made_ms = self._last().get("made_ms")
        return made_ms if type(made_ms) is int else None

    def make_if_due(self) -> None:
        """Make a backup if one is due."""
        now_ms, now_s = self._clock.wall_ms(), self._clock.monotonic()
        if not self._clock.is_set() or (self._tried_s is not None and now_s - self._tried_s < RETRY_S):
            return
        due_ms = self.schedule.last_due_ms(now_ms)
        if any(due_ms <= made_ms <= now_ms for made_ms, _ in self._existing()):
            return
        self._tried_s = now_s
        try:
            fault = self._make(now_ms)
        except _Stopped:
            return
        except (PigeonpostError, OSError, sqlite3.Error, MemoryError) as error:  # collecting continues
            self._faults.set(FAULT, self._remedy(error))
            return
        self._tried_s = None
        self._faults.set(FAULT, fault)

    def _make(self, now_ms: int) -> str:
        """Make a backup. Return the reason why older ones cannot be deleted; empty if they are deleted."""
        if self._last().get("other_disk") is True and self._is_same_disk():
            raise _NotMounted(f"the disk with the backups is not mounted at {self._folder}")
        name = f"{self._prefix}{time.strftime(_STAMP, time.gmtime(now_ms / 1000))}.tar"
        path = os.path.join(self._folder, name)
        if not os.path.isdir(self._folder):
            raise FileNotFoundError(errno.ENOENT, "the folder does not exist", self._folder)
        make_backup_file(self._data, path, f".{self._prefix}making", self._progress)
        size = os.path.getsize(path)
        log.info("backup: %s made and checked, %s bytes", path, f"{size:,}")
        last = {"file": path, "made_ms": now_ms, "bytes": size, "other_disk": not self._is_same_disk()}
        with contextlib.suppress(DiskError):  # the backup exists nevertheless, and a full disk is a separate fault
            self._last_file.write({"last": last})
        return self._delete_older(name, now_ms)

    def _delete_older(self, name: str, now_ms: int) -> str:
        """Delete surplus backups, but not `name`. Those with a future time, due to a wrong clock, are deleted first."""
        older = sorted((made_ms <= now_ms, made_ms, other) for made_ms, other in self._existing() if other != name)
        for _, _, other in older[: max(0, len(older) + 1 - self._keep)]:
            try:
                os.unlink(os.path.join(self._folder, other))
            except FileNotFoundError:
                pass  # it was deleted just now
            except OSError as error:
                why = f"{os.path.join(self._folder, other)}: {error.strerror}"
                return f"a backup was made, but an older one cannot be deleted: {why}; delete it by hand"
        return ""

    def _progress(self, stage: str, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _existing(self) -> list[tuple[int, str]]:
        """Return the existing backups of this server, the oldest first, as pairs (time in ms since 1970, file name)."""
        found = []
        try:
            names = os.listdir(self._folder)
        except OSError:  # reported when the next backup is made
            return []
        for name in names:
            match = self._match_name(name)
            if match:
                with contextlib.suppress(ValueError):  # not a valid date
                    found.append((calendar.timegm(time.strptime(match[1], _STAMP)) * 1000, name))
        return sorted(found)

    def _last(self) -> dict[str, Any]:
        try:
            return self._last_file.now().get("last", {})
        except DamagedFile:  # the next backup writes it again
            return {}

    def _is_same_disk(self) -> bool:
        try:
            return os.stat(self._folder).st_dev == os.stat(self._data).st_dev
        except OSError:
            return False

    def _remedy(self, error: Exception) -> str:
        """Return the reason why there is no backup, and the remedy."""
        code = getattr(error, "errno", None) or getattr(error.__cause__, "errno", None)
        folder = self._folder
        if isinstance(error, StoreDamaged | BadBackup):
            return (
                f"no backup could be made because the database is damaged; the backups in {folder} are kept."
                f" `python3 control.py --data {self._data} verify` shows the damage, and docs/data.md the remedy"
            )
        if isinstance(error, _NotMounted):
            remedy = f"mount it; to use the present disk for backups from now on, remove {self._last_file.path}"
        elif code == errno.ENOENT:
            remedy = f"mount its disk, or create the folder {folder}"
        elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = (
                f"let user id {os.geteuid()} write to {folder}; a systemd unit also needs ReadWritePaths={folder}, see"
                " docs/data.md"
            )
        elif code in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"free space on the disk of {folder}, or lower [backup] keep; a backup needs twice the database"
        elif code == errno.EFBIG:
            remedy = f"the file is too large for the file system of {folder}: FAT is limited to 4 GB, use ext4 or exFAT"
        else:
            remedy = f"test it with `python3 control.py backup {folder}`"
        why = "; ".join(str(error).splitlines()) or type(error).__name__
        if code and not isinstance(error, PigeonpostError):
            why = f"{folder}: {os.strerror(code)}"
        return f"no backup could be made: {why}; {remedy}. It is retried every {RETRY_S / 60:.0f} minutes"

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        if self._is_same_disk():
            log.warning("[backup] to = %s is on the same disk as the data, and would be lost with it", self._folder)
        wait_s = FIRST_S
        while not self._stopping.wait(wait_s):
            self.make_if_due()
            wait_s = LOOK_S
