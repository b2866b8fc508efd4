"""The CSV log of one run, and its buffer, which a lock protects.

With limits for the logs, a run may have several: when a log reaches its part of the limits, it is closed, and the next
one begins (see storage.csv.retention).

The log is derived from the store. A torn (incomplete) row at its end, which a crash can leave, is repaired at the next
start.

    time,node,sensor,value,unit
    2026-11-20T16:36:10.123+01:00,basement,temperature,23.4,°C

The Ingestor's writer thread adds rows, flushes and syncs; web threads read. `_lock` guards the buffer, the last
samples, and the name, length and checksum of the file. It is held while these are changed or copied, never during a
disk call.

Errors: none that stop a running server, because the store contains all data. `fault` is the reason why rows are not
written yet. DiskError at the start if the last run's file cannot be synced.

How the file stays consistent with the store:

1. A commit stores batches of samples and gaps, each under the next number of a sequence, its *filing number*.
2. After the commit their rows are written to the file, in the same order.
3. From time to time the file is synced. The next transaction then records the file's length, and the filing number up
   to which the file contains all rows (`LogMark`). A new file gets no rows before it is recorded.
4. After a crash the entries with higher filing numbers determine which bytes must follow the recorded length. Correct
   bytes are kept, all others are cut off, and missing rows are written.

A file that a user or another program changed is not written to any more; its missing rows go to the next file. An entry
that is damaged in the store is left out. `Store.unlogged` then contains its filing number, and a later start at which
the entry can be read writes it. A file that is closed and complete gets its line in logs/SHA256SUMS.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pigeonpost.core.clock import Clock
from pigeonpost.core.data_folder import LOGS
from pigeonpost.core.errors import DiskError, NotStored, StoreDamaged
from pigeonpost.core.files import give_to_owner, make_folder, sync_folder
from pigeonpost.link.samples import Sample, SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.checksums import LogChecksums
from pigeonpost.storage.csv.format import (
    HEADER,
    TAIL_BYTES,
    is_left_by_crash,
    log_name,
    log_rows,
    logged_rows,
    names_as_one,
    rows_written,
)
from pigeonpost.storage.csv.retention import NO_LIMITS, LogLimits, LogRetention
from pigeonpost.storage.models import EpochCommit, LogMark, LostRows

log = logging.getLogger(__name__)

SHOWN = 10  # number of samples on the page Log Check
# The file is synced when its last sync was SYNC_S ago, or when SYNC_BYTES were written since.
SYNC_S = 60.0
SYNC_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20


_Pending = tuple[int, bytes | LostRows]  # filing number and rows of an entry that the log lacks


class RecentSample(NamedTuple):
    """One of the last samples, as the page Log Check shows it.

    Attributes:
        node: Name of the node.
        sample: The sample.
        units: Unit of each sensor.
    """

    node: str
    sample: Sample
    units: Mapping[str, str]


class CsvLog:
    """The log of this run, and the repair of the last run's log.

    Args:
        data: Data folder, which contains `logs/`.
        store: The store.
        clock: Clock of the server.
        limits: Limits of the logs.
        may_delete: Function that returns False while the logs may be needed to restore the database.

    Attributes:
        name: Name of this run's file, or an empty string before it is created.
        size: Length of the file in bytes. It always ends with a complete row.
        fault: Reason why rows of the store are not written to the file yet, or an empty string.
        beyond_store: Warning about rows that the start found in the log and not in the store, or an empty string.
    """

    def __init__(
        self,
        data: str,
        store: Store,
        clock: Clock,
        limits: LogLimits = NO_LIMITS,
        may_delete: Callable[[], bool] = lambda: True,
    ) -> None:
        self._folder = os.path.join(data, LOGS)
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._buffer: list[bytes] = []
        # Node, samples and units of the last batches.
        self._recent: deque[tuple[str, SampleBatch, Mapping[str, str]]] = deque(maxlen=SHOWN)
        self._fd = -1
        self._behind = False  # True if the file lacks rows that are no longer in the buffer
        self._tail = b""  # the last TAIL_BYTES of the file
        self._sum = hashlib.sha256()  # of the complete file
        self._sums = LogChecksums(self._folder)
        self._filed = 0  # the filing number up to which the file contains all rows
        self._wanted = 0  # the filing number up to which the file should contain all rows
        self._filed_before = 0  # the filing number up to which the earlier files contain all rows
        self._recorded = LogMark("", 0, 0, 0)
        self._due: LogMark | None = None  # passed to a transaction that may not be committed yet
        self._is_unsynced = False  # True after a failed sync: a later one would not write the data (see _cut_back)
        self._synced_s = self._began_s = clock.monotonic()
        self._retention = LogRetention(
            self._folder, limits, self._sums, self._needed, lambda: not store.damage and may_delete(), clock.wall_ms
        )
        self.name = ""
        self.size = 0
        self.fault = ""
        self.beyond_store = ""

    # ----------------------------------------------------------------------------- for the writer thread

    def start(self) -> None:
        """Repair the last run's file, and begin this run's file. Write nothing if the store is damaged."""
        try:
            mark = None if self._store.damage else self._store.log_mark()
            if mark is not None:
                self._filed = mark.filed
                self._repair(mark)
        except StoreDamaged as error:
            log.debug("the CSV log was not started: %s", error)  # the store has reported the damage
        if self._store.damage:
            self.fault = "the CSV log is not written until the database is restored"
            return
        self.flush(self._filed)
        self.record()
        if self.name and self._recorded.name == self.name:  # then no later start writes to an older file
            self._sums.catch_up(self.name)
        self._retention.start()

    def record(self) -> None:
        """Sync the file and record it in a transaction of its own, at the start and at the end of a run."""
        try:
            for _ in range(2):  # a new file is recorded while it is empty, then gets its rows, and is recorded again
                with self._store.writing(()):
                    filed = self._store.put((), self._clock.wall_ms(), self.due(now=True))
                self._committed()
                if self._behind:
                    self.flush(filed)
        except NotStored as error:
            log.warning("the CSV log is not recorded yet: %s", error)

    def add(self, epoch_commit: EpochCommit, noted_ms: int) -> None:
        """Add the rows of `epoch_commit`, which was just stored, to the buffer.

        `noted_ms` is its time (ms since 1970, UTC).
        """
        rows = [
            log_rows(epoch_commit.node, epoch_commit.epoch, item, epoch_commit.units, noted_ms)
            for item in epoch_commit.items
        ]
        with self._lock:
            self._buffer += rows
            for item in epoch_commit.items[-SHOWN:]:
                if isinstance(item, SampleBatch):
                    part = item.part(max(0, len(item) - SHOWN))
                    self._recent.append((epoch_commit.node, part, epoch_commit.units))

    def flush(self, filed: int) -> None:
        """Write the buffer to the file after a commit.

        The file then contains all rows up to the filing number `filed`.
        """
        self._committed()
        self._wanted = max(self._wanted, filed)
        with self._lock:
            rows, self._buffer = self._buffer, []
        if self._filed + len(rows) != filed:
            # A commit seemed to fail, because its connection broke, but it did store its data.
            self._behind = True
        try:
            if self._fd < 0 or self._is_changed():
                self._begin()
            elif self._is_part_full():
                self._end_part()
            if self._is_unsynced:
                self._cut_back()
            if self.size == 0:
                self._write(HEADER.encode(), self._filed)
            if self._recorded.name != self.name:
                self._behind = True  # rows in an unrecorded file would be written twice after a crash
            elif self._behind:
                self._catch_up()
            else:
                self._write(b"".join(rows), filed)
            self.fault = ""
        except OSError as error:
            self._behind = True
            if not self.fault:
                log.error("the CSV log cannot be written; its rows are safe in the database: %s", error)
            self.fault = f"the CSV log cannot be written: {error.strerror or error}"

    def due(self, now: bool = False) -> LogMark | None:
        """Sync the file if a sync is due, or if `now` is True.

        Return the mark that the next transaction must record, or None if there was no sync.
        """
        old, self._due = self._recorded, None
        grown = self.size - (old.size if old.name == self.name else 0)
        waited_s = self._clock.monotonic() - self._synced_s
        is_time = now or old.name != self.name or grown >= SYNC_BYTES or waited_s >= SYNC_S
        if not grown or self._is_unsynced or not is_time:
            return None
        try:
            os.fsync(self._fd)
        except OSError as error:
            log.error("%s: %s", self._path(), error)
            self._is_unsynced = self._behind = True
            return None
        self._due = LogMark(self.name, self.size, zlib.crc32(self._tail), self._filed)
        return self._due

    @property
    def unwritten(self) -> int:
        """Number of entries in the store that the file does not contain yet, because it cannot be written."""
        return max(0, self._wanted - self._filed)

    @property
    def limits_fault(self) -> str:
        """Reason why old logs are not deleted, or an empty string."""
        return self._retention.fault

    def _committed(self) -> None:
        """Note that the transaction has recorded the mark that `due` returned."""
        if self._due is not None:
            self._recorded, self._due = self._due, None
            self._synced_s = self._clock.monotonic()

    def close(self) -> None:
        """Close the file. `due(now=True)` must be called first."""
        self._retention.stop()
        self._sums.stop()
        if self._fd >= 0 and not self._behind and self._recorded[:2] == (self.name, self.size):
            self._sums.seal(self.name, self._sum.hexdigest())
        self._close_file()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ---------------------------------------------------------------------------------- for any thread

    def last(self) -> list[RecentSample]:
        """Return the last samples of this run, oldest first."""
        with self._lock:
            recent = list(self._recent)
        return [RecentSample(node, sample, units) for node, part, units in recent for sample in part][-SHOWN:]

    def whole(self) -> tuple[str, int]:
        """Return the path of this run's file, and the length of its complete rows in bytes."""
        with self._lock:
            return self._path(), self.size

    def digest(self) -> tuple[str, int, str]:
        """Return path, length in bytes and SHA-256 (hex) of the complete rows of this run's file.

        The checksum is that of the data as they were written, not as they are on the disk now.
        """
        with self._lock:
            return self._path(), self.size, self._sum.hexdigest()

    # --------------------------------------------------------------------------------------- the file

    def _needed(self) -> tuple[str, ...]:
        """Return the names of the logs that must not be deleted: this one, and the one that the store has recorded."""
        return self.name, self._recorded.name

    def _is_part_full(self) -> bool:
        """Return True if the file contains all rows, is recorded, and has reached its part of the limits."""
        is_recorded = self._recorded.name == self.name and not (self._behind or self._is_unsynced)
        age_s = self._clock.monotonic() - self._began_s
        return is_recorded and self._retention.limits.is_part_full(self.size, age_s) and self.size > len(HEADER)

    def _end_part(self) -> None:
        """Close the file and begin the next one, which the next transaction records."""
        try:
            os.fsync(self._fd)
        except OSError:
            self._is_unsynced = True
            raise
        name, checksum = self.name, self._sum.hexdigest()
        try:
            self._begin()
        finally:
            if self.name != name:  # otherwise more rows will be written to it
                self._sums.seal(name, checksum)

    def _path(self) -> str:
        return os.path.join(self._folder, self.name)

    def _begin(self) -> None:
        """Create a new file, whose name contains the minute."""
        make_folder(self._folder)
        count, name = 1, log_name(self._clock.wall_ms())
        stem = name.removesuffix(".csv")
        while os.path.exists(os.path.join(self._folder, name)):
            count += 1
            name = f"{stem}_{count}.csv"
        path = os.path.join(self._folder, name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        give_to_owner(path)
        self._close_file()
        self._filed_before, self._began_s = self._filed, self._clock.monotonic()
        with self._lock:
            self._fd, self.name, self.size, self._tail = fd, name, 0, b""
            self._sum = hashlib.sha256()
        self._is_unsynced = False
        sync_folder(self._path())

    def _is_changed(self) -> bool:
        """Return True if another program wrote to this run's file, replaced it or deleted it."""
        try:
            named, ours = os.stat(self._path()), os.fstat(self._fd)
            changed = named.st_ino != ours.st_ino or ours.st_size != self.size
        except FileNotFoundError:
            changed = True
        if changed:
            log.warning(
                "%s was changed by another program: it is not written to any more, and a new log begins", self._path()
            )
        return changed

    def _write(self, data: bytes, filed: int) -> None:
        """Append complete rows, or nothing."""
        size = _append(self._fd, data, self.size)
        with self._lock:
            self.size = size
            self._sum.update(data)
        self._tail = (self._tail + data[-TAIL_BYTES:])[-TAIL_BYTES:]
        self._filed = max(self._filed, filed)

    def _record_entry(self, filed: int, is_logged: bool) -> None:
        """Record whether the log contains an entry of the store.

        It does not contain a damaged entry. A later start writes that entry if it can be read then.
        """
        self._store.unlogged = self._store.unlogged - {filed} if is_logged else self._store.unlogged | {filed}
        self._filed = max(self._filed, filed)

    def _cut_back(self) -> None:
        """Truncate the file to its recorded length after a failed sync. `_catch_up` writes the rest again.

        The kernel marks pages that it could not write as clean, so the next sync would succeed without writing them
        (Linux, Documentation/filesystems/vfs.rst, "Handling errors during writeback").
        """
        size, filed = 0, self._filed_before
        if self._recorded.name == self.name:
            size, filed = self._recorded.size, self._recorded.filed
        total, at = hashlib.sha256(), 0
        while block := os.pread(self._fd, min(_BLOCK_BYTES, size - at), at):
            total.update(block)
            at += len(block)
        os.ftruncate(self._fd, size)
        with self._lock:
            self.size, self._sum = size, total
        self._tail = os.pread(self._fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
        self._filed, self._behind, self._is_unsynced = filed, True, False

    def _catch_up(self) -> None:
        for logged in self._store.logged_after(self._filed):
            if logged.filed > self._filed:  # those in `unlogged` are written by `_repair`, at a start
                self._write(logged_rows(logged), logged.filed)
                self._record_entry(logged.filed, is_logged=not logged.lost)
        self._behind = False

    # ------------------------------------------------------------------------------------------- repair

    def _repair(self, mark: LogMark) -> None:
        """Complete the file of `mark` from the store. Rows that cannot be written there are left for the next file."""
        pending: list[_Pending] = [
            (logged.filed, logged.lost or logged_rows(logged))
            for logged in self._store.logged_after(mark.filed)
            if not (logged.lost and logged.filed in self._store.unlogged)  # known to be missing in the log
        ]
        path = os.path.join(self._folder, mark.name)
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError as error:
            if pending:
                log.warning("%s: %s; its missing rows are written to the next log", path, error.strerror)
        else:
            try:
                pending = self._repair_open(fd, path, mark, pending)
            except OSError as error:
                log.warning("%s: %s; its missing rows are written to the next log", path, error.strerror)
            try:
                os.fsync(fd)
            except OSError as error:  # it is unknown if its rows are durable: the next start repairs it again
                raise DiskError(f"{path}: {error.strerror}") from error
            finally:
                os.close(fd)
        self._behind = bool(pending)

    def _repair_open(self, fd: int, path: str, mark: LogMark, pending: list[_Pending]) -> list[_Pending]:
        """Complete the open file. Return the rows that could not be written to it."""
        tail_at = max(0, mark.size - TAIL_BYTES)
        if zlib.crc32(os.pread(fd, mark.size - tail_at, tail_at)) != mark.tail:
            log.warning(
                "%s was changed by hand: it is not written to any more, and its missing rows go to the next log", path
            )
            return pending
        alias = names_as_one(self._store.node_records().former)
        found = rows_written(fd, mark.size, [rows for _, rows in pending], alias)
        # If damage changed the id of an entry, `pending` contains the entry twice: damaged under the old id, readable
        # under the new id. If the log contains its rows already, they are not written again.
        known = {present for (_, rows), present in zip(pending, found) if present and not isinstance(rows, bytes)}
        pending[len(found) :] = [(filed, b"" if rows in known else rows) for filed, rows in pending[len(found) :]]
        at, rest, size = mark.size + sum(map(len, found)), pending[len(found) :], os.fstat(fd).st_size
        if not is_left_by_crash(
            os.pread(fd, size - at, at), b"".join([rows for _, rows in rest if isinstance(rows, bytes)])
        ):
            log.warning(
                "%s has lines added by hand: it is not written to any more, and its missing rows go to the next log",
                path,
            )
            self.beyond_store = (
                f"{path} has lines that the database does not have. Either a user added them, or the database has lost"
                " its last transactions or is an older copy. The nodes send the samples in their outboxes again."
                " `control.py verify` compares log and database. This is shown until the next start"
            )
            for (filed, wanted), present in zip(pending, found):
                self._record_entry(filed, is_logged=bool(present) or isinstance(wanted, bytes))
            return rest
        if rest or at != size:
            self._sums.unseal(mark.name)
        pending[: len(found)] = [(filed, present or wanted) for (filed, wanted), present in zip(pending, found)]
        os.ftruncate(fd, at)  # not to mark.size: the lines of a damaged entry may exist nowhere else
        at = mark.size
        # Rows that are in the file already are written again, because a sync may have failed (see _cut_back).
        while pending:
            filed, rows = pending[0]
            if isinstance(rows, bytes):
                at = _append(fd, rows, at)
            self._record_entry(filed, is_logged=isinstance(rows, bytes))
            del pending[0]
        return []


def _append(fd: int, data: bytes, size: int) -> int:
    """Write `data` at the end of a file of `size` bytes, completely or not at all. Return the new size."""
    at, view = size, memoryview(data)
    try:
        while view:
            written = os.pwrite(fd, view, at)
            view, at = view[written:], at + written
    except OSError:
        os.ftruncate(fd, size)
        raise
    return at
