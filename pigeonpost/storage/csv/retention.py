"""Limits of the CSV logs: the length of one log, and the deletion of the oldest closed logs.

A log is deleted only if its content is exactly what the server wrote, and neither the log of this run nor the log in
which the store records the position of the CSV log. Before that, its number of lines and the sum of their hashes are
added to `logs/removed.json`, so that `control.py verify` can still compare all lines with the store.

A separate thread reads and deletes logs. Errors: none that stop the server. A failure is a fault of the server, and the
next pass tries again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Collection
from typing import NamedTuple

from pigeonpost.core.data_folder import LOG_CHECKSUMS, REMOVED_LOGS
from pigeonpost.core.errors import DiskError
from pigeonpost.core.files import replace_file, sync_folder
from pigeonpost.core.format import size
from pigeonpost.storage.csv.checksums import LogChecksums, logs_in, read_sums
from pigeonpost.storage.csv.format import is_log_name
from pigeonpost.storage.csv.lines import LineTally

log = logging.getLogger(__name__)

_DAY_S = 86_400.0
_PARTS = 8  # a log is closed when it has this part of the limits, so that deleting one frees little more than needed
_LEAST_BYTES, _LEAST_S = 1 << 20, 3600.0  # no log is closed below this length and before this time
_FIRST_S = 5.0  # time until the first pass: at the start, connecting to the nodes has priority
_PASS_S = 600.0  # time between two passes


class LogLimits(NamedTuple):
    """Limits of the CSV logs.

    Attributes:
        days: Time for which a closed log is kept, in days; 0 without limit.
        mib: Size of all logs, in MiB; 0 without limit.
    """

    days: float = 0.0
    mib: float = 0.0

    def is_part_full(self, length: int, age_s: float) -> bool:
        """Return True if a log of `length` bytes, which is `age_s` seconds old, must be closed."""
        if self.mib and length >= max(_LEAST_BYTES, int(self.mib * (1 << 20) / _PARTS)):
            return True
        return self.days > 0 and age_s >= max(_LEAST_S, min(_DAY_S, self.days * _DAY_S / _PARTS))


NO_LIMITS = LogLimits()


class RemovedLogs(NamedTuple):
    """Content of the logs of a data folder that were deleted because of the limits.

    Attributes:
        logs: Number of logs.
        lines: Number of lines with readings.
        gaps: Number of lines with gaps.
        sum: Sum of the hashes of the lines with readings (see LineTally).
        name: Name of the log that was added last. A crash may have left it in the folder.
        checksum: SHA-256 (hex) of that log.
    """

    logs: int = 0
    lines: int = 0
    gaps: int = 0
    sum: int = 0
    name: str = ""
    checksum: str = ""


NONE_REMOVED = RemovedLogs()


def read_removed(folder: str) -> RemovedLogs:
    """Return the record of the logs that were deleted from `folder`.

    Raises:
        ValueError: The record is damaged.
        OSError: The record cannot be read.
    """
    path = os.path.join(folder, REMOVED_LOGS)
    try:
        with open(path, "rb") as file:
            found = RemovedLogs(**json.load(file))
    except FileNotFoundError:
        return NONE_REMOVED
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if [type(one) for one in found] != [int, int, int, int, str, str]:
        raise ValueError(f"{path} is damaged: an entry has the wrong type")
    return found


def existing_logs(folder: str, removed: RemovedLogs) -> list[str]:
    """Return the names of the logs in `folder`, without one that is in the record of `removed` logs already."""
    names = logs_in(folder)
    if removed.name in names and _sha256(os.path.join(folder, removed.name)) == removed.checksum:
        names.remove(removed.name)
    return names


def _sha256(path: str) -> str:
    """Return the SHA-256 (hex) of a file, or an empty string if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


class LogRetention:
    """Deletion of the oldest closed logs.

    Attributes:
        limits: The limits.
        fault: Reason why old logs are not deleted, or an empty string.
    """

    def __init__(
        self,
        folder: str,
        limits: LogLimits,
        sums: LogChecksums,
        needed: Callable[[], Collection[str]],
        may_delete: Callable[[], bool],
        now_ms: Callable[[], int],
    ) -> None:
        """Initialise without starting the thread.

        Args:
            folder: Folder of the logs.
            limits: The limits.
            sums: Checksums of the closed logs.
            needed: Function that returns the names of the logs that must not be deleted.
            may_delete: Function that returns False while the logs may be needed to restore the database.
            now_ms: Function that returns the current time in ms since 1970 (UTC).
        """
        self._folder, self.limits, self._sums = folder, limits, sums
        self._needed, self._may_delete, self._now_ms = needed, may_delete, now_ms
        self.fault = ""
        self._left_alone: set[str] = set()  # logs that were changed by others
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log limits", daemon=True)

    def start(self) -> None:
        """Start the thread if there is a limit."""
        if any(self.limits):
            self._thread.start()

    def stop(self, limit_s: float = 1.0) -> None:
        """Stop the thread, and wait up to `limit_s` seconds for its end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(limit_s)

    def delete_oldest(self) -> None:
        """Delete logs until the limits are met, the oldest first.

        Raises:
            OSError: A log or the record cannot be read, written or deleted.
            ValueError: The record is damaged.
        """
        if not self._may_delete():
            return
        removed = read_removed(self._folder)
        if removed.name in logs_in(self._folder) and removed.name not in existing_logs(self._folder, removed):
            self._delete(removed.name)  # a crash has left it
        found = []
        total = 0
        needed = self._needed()
        for name in filter(is_log_name, logs_in(self._folder)):
            try:
                status = os.stat(os.path.join(self._folder, name))
            except FileNotFoundError:  # a link to a file that is missing
                continue
            total += status.st_size
            if name not in needed:
                found.append((status.st_mtime, name, status.st_size))
        for changed_s, name, length in sorted(found):
            is_old = self.limits.days > 0 and self._now_ms() / 1000 - changed_s > self.limits.days * _DAY_S
            is_over = self.limits.mib > 0 and total > self.limits.mib * (1 << 20)
            if self._stopping.is_set() or not (is_old or is_over):
                return
            if self._remove(name):
                total -= length

    def _remove(self, name: str) -> bool:
        """Add a closed log to the record, and delete it. Return False if it must stay."""
        path, expected = os.path.join(self._folder, name), read_sums(self._folder).get(name)
        if expected is None:
            return False  # its checksum is being calculated
        tally, length = LineTally(is_stable=True), os.path.getsize(path)
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            tally.add_file(file, length)
        if checksum != expected:
            if name not in self._left_alone:
                log.warning("%s has changed since it was closed, so it is not deleted", path)
                self._left_alone.add(name)
            return False
        before = read_removed(self._folder)
        record = RemovedLogs(
            before.logs + 1,
            before.lines + tally.lines,
            before.gaps + tally.gaps,
            before.sum + tally.sum,
            name,
            checksum,
        )
        replace_file(os.path.join(self._folder, REMOVED_LOGS), json.dumps(record._asdict()).encode() + b"\n")
        self._delete(name)
        log.info("%s was deleted (%s): the CSV logs reached their limit", path, size(length))
        return True

    def _delete(self, name: str) -> None:
        self._sums.unseal(name)
        if name in read_sums(self._folder):  # otherwise `verify` would report the deleted log as missing permanently
            raise DiskError(f"{os.path.join(self._folder, LOG_CHECKSUMS)} cannot be written")
        path = os.path.join(self._folder, name)
        os.unlink(path)
        sync_folder(path)

    def _run(self) -> None:
        wait_s = _FIRST_S
        while not self._stopping.wait(wait_s):
            wait_s = _PASS_S
            self.delete_and_report()

    def delete_and_report(self) -> None:
        """Call `delete_oldest`, and keep its error as the `fault`."""
        try:
            self.delete_oldest()
            self.fault = ""
        except OSError as error:
            why = f"{error.filename}: {error.strerror}" if error.filename else str(error)  # a DiskError is only a text
            self.fault = f"old CSV logs are not deleted: {why}; the server tries again every ten minutes"
        except ValueError as error:
            self.fault = f"old CSV logs are not deleted: {error}; restore the file from a backup"
