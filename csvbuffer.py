"""The CSV log of one run, and its lock-protected buffer; derived from the store, and always whole.

    time,node,sensor,value,unit
    2026-11-20T16:36:10.123+01:00,basement,temperature,23.4,°C

The Ingestor's writer thread adds, flushes and syncs; web threads read. `_lock` guards the buffer, the last samples, and
the name, whole length and checksum of the file; it is held while these are changed or copied, never during a disk call.
Errors: none that stop a running server, since the store has everything: `fault` says why rows wait in the store.
DiskError at the start, when the last run's file cannot be synced.

How it stays whole. A commit stores stretches of samples and gaps, each under a number that follows the last one: its
*filing number*. Then their rows are written to the file, in this order. Now and then the file is synced, and the next
transaction records its length and the number up to which it has all rows (`LogMark`); a new file gets no rows before it
is recorded. After a crash what has higher numbers tells which bytes belong behind that length: what is there and right
is kept, the rest is cut, and what is missing is written. A file that somebody changed is left alone, and what it lacks
opens the next one. An entry that a card has damaged in the store is left out: `Store.unlogged` has its number, and a
later start, at which it can be read, writes it. A file that is closed, and complete, gets its line in logs/SHA256SUMS.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import zlib
from collections import deque
from collections.abc import Mapping
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
from pigeonpost.storage.models import EpochCommit, LogMark, LostRows

log = logging.getLogger(__name__)

SHOWN = 10  # samples that Log Check shows
SYNC_S = 60.0  # the file is synced when rows have waited so long,
SYNC_BYTES = 16 << 20  # or when there are so many
_BLOCK_BYTES = 1 << 20


_Owed = tuple[int, bytes | LostRows]  # filing number and rows


class RecentSample(NamedTuple):
    """One of the last samples, as the page Log Check shows it."""

    node: str
    sample: Sample
    units: Mapping[str, str]


class CsvLog:
    """The log of this run, and the repair of the one before."""

    def __init__(self, data: str, store: Store, clock: Clock) -> None:
        """data: the folder in which `logs/` is."""
        self._folder = os.path.join(data, LOGS)
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._buffer: list[bytes] = []
        self._shown: deque[tuple[str, SampleBatch, Mapping[str, str]]] = deque(maxlen=SHOWN)  # the ends of batches
        self._fd = -1
        self._behind = False  # whether the file lacks rows that are no longer in memory
        self._tail = b""  # the last bytes of the file,
        self._sum = hashlib.sha256()  # and the sum of all
        self._sums = LogChecksums(self._folder)
        self._filed = 0  # the filing number up to which the file has all rows,
        self._filed_before = 0  # and that up to which the files before it have them
        self._recorded = LogMark("", 0, 0, 0)
        self._due: LogMark | None = None  # handed to a transaction that is not known to be committed yet
        self._is_unsynced = False  # whether a sync failed: then what it did not write, no later one would write
        self._synced_s = clock.monotonic()
        self.name = ""
        self.size = 0  # so many bytes of it are whole rows
        self.fault = ""
        self.beyond_store = ""  # what the start found of rows that the store does not have

    # ------------------------------------------------------------------------------- the writer's part

    def start(self) -> None:
        """Repair the last run's file, and begin this run's; of a damaged store nothing is written anywhere."""
        try:
            mark = None if self._store.damage else self._store.log_mark()
            if mark is not None:
                self._filed = mark.filed
                self._mend(mark)
        except StoreDamaged as error:
            log.debug("the CSV log does not begin: %s", error)  # the store has told of it
        if self._store.damage:
            self.fault = "the CSV log waits until the database is restored"
            return
        self.flush(self._filed)
        self.record()
        if self.name and self._recorded.name == self.name:  # so no start writes to an older one any more
            self._sums.catch_up(self.name)

    def record(self) -> None:
        """Sync the file and record it, in a transaction of its own: at the start and at the end of a run."""
        try:
            for _ in range(2):  # a file that has just begun is recorded empty, gets what it owes, is recorded again
                with self._store.writing(()):
                    filed = self._store.put((), self._clock.wall_ms(), self.due(now=True))
                self._committed()
                if self._behind:
                    self.flush(filed)
        except NotStored as error:
            log.warning("the CSV log is not recorded yet: %s", error)

    def add(self, epoch_commit: EpochCommit, noted_ms: int) -> None:
        """Add what a commit has stored to the buffer."""
        rows = [
            log_rows(epoch_commit.node, epoch_commit.epoch, item, epoch_commit.units, noted_ms)
            for item in epoch_commit.items
        ]
        with self._lock:
            self._buffer += rows
            for item in epoch_commit.items[-SHOWN:]:
                if isinstance(item, SampleBatch):
                    part = item.part(max(0, len(item) - SHOWN))
                    self._shown.append((epoch_commit.node, part, epoch_commit.units))

    def flush(self, filed: int) -> None:
        """After a commit: write the buffer to the file, which then has all rows up to filing number `filed`."""
        self._committed()
        with self._lock:
            rows, self._buffer = self._buffer, []
        if self._filed + len(rows) != filed:
            # Something was stored by a commit that seemed to fail: a connection broke in the midst of it.
            self._behind = True
        try:
            if self._fd < 0 or self._is_changed():
                self._begin()
            if self._is_unsynced:
                self._cut_back()
            if self.size == 0:
                self._write(HEADER.encode(), self._filed)
            if self._recorded.name != self.name:
                self._behind = True  # a crash now would not find these rows, and write them again
            elif self._behind:
                self._catch_up()
            else:
                self._write(b"".join(rows), filed)
            self.fault = ""
        except OSError as error:
            self._behind = True
            if not self.fault:
                log.error("the CSV log waits, its rows are safe in the database: %s", error)
            self.fault = f"the CSV log waits: {error.strerror or error}"

    def due(self, now: bool = False) -> LogMark | None:
        """Sync the file if that is due (or `now`). Returns what the next transaction is to record then."""
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

    def _committed(self) -> None:
        """Note that the transaction recorded what was due."""
        if self._due is not None:
            self._recorded, self._due = self._due, None
            self._synced_s = self._clock.monotonic()

    def close(self) -> None:
        """Close the file; `due(now=True)` comes first."""
        self._sums.stop()
        if self._fd >= 0 and not self._behind and self._recorded[:2] == (self.name, self.size):
            self._sums.seal(self.name, self._sum.hexdigest())
        self._close_file()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ---------------------------------------------------------------------------------- anybody's part

    def last(self) -> list[RecentSample]:
        """Return the last samples of this run, oldest first."""
        with self._lock:
            ends = list(self._shown)
        return [RecentSample(node, sample, units) for node, part, units in ends for sample in part][-SHOWN:]

    def whole(self) -> tuple[str, int]:
        """Return the path of this run's file, and how many bytes of it are whole rows."""
        with self._lock:
            return self._path(), self.size

    def digest(self) -> tuple[str, int, str]:
        """Return as `whole`, and the SHA-256 of those bytes as they were written."""
        with self._lock:
            return self._path(), self.size, self._sum.hexdigest()

    # --------------------------------------------------------------------------------------- the file

    def _path(self) -> str:
        return os.path.join(self._folder, self.name)

    def _begin(self) -> None:
        """Begin a new file, named by the minute."""
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
        self._filed_before = self._filed
        with self._lock:
            self._fd, self.name, self.size, self._tail = fd, name, 0, b""
            self._sum = hashlib.sha256()
        self._is_unsynced = False
        sync_folder(self._path())

    def _is_changed(self) -> bool:
        """Return True if another program wrote to this run's file, replaced it or removed it."""
        try:
            named, ours = os.stat(self._path()), os.fstat(self._fd)
            changed = named.st_ino != ours.st_ino or ours.st_size != self.size
        except FileNotFoundError:
            changed = True
        if changed:
            log.warning("%s was changed by somebody else: it is left alone, and a new log begins", self._path())
        return changed

    def _write(self, data: bytes, filed: int) -> None:
        """Append whole rows, or nothing."""
        size = _append(self._fd, data, self.size)
        with self._lock:
            self.size = size
            self._sum.update(data)
        self._tail = (self._tail + data[-TAIL_BYTES:])[-TAIL_BYTES:]
        self._filed = max(self._filed, filed)

    def _note(self, filed: int, is_logged: bool) -> None:
        """Record whether an entry of the store is logged. A damaged one is not: a later start writes it, when it can be
        read."""
        self._store.unlogged = self._store.unlogged - {filed} if is_logged else self._store.unlogged | {filed}
        self._filed = max(self._filed, filed)

    def _cut_back(self) -> None:
        """Cut the file back to what is recorded of it, after a failed sync: `_catch_up` writes the rest again.

        The kernel marks pages that it could not write as clean, so the next sync would succeed without them
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
            if logged.filed > self._filed:  # `_mend` writes those in `unlogged`, at a start
                self._write(logged_rows(logged), logged.filed)
                self._note(logged.filed, is_logged=not logged.lost)
        self._behind = False

    # ------------------------------------------------------------------------------------------ mending

    def _mend(self, mark: LogMark) -> None:
        """Complete the file of `mark` from the store; what cannot be written there is left for the next file."""
        owed: list[_Owed] = [
            (logged.filed, logged.lost or logged_rows(logged))
            for logged in self._store.logged_after(mark.filed)
            if not (logged.lost and logged.filed in self._store.unlogged)  # which is known not to be there
        ]
        path = os.path.join(self._folder, mark.name)
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError as error:
            if owed:
                log.warning("%s: %s; what it lacked opens the next log", path, error.strerror)
        else:
            try:
                owed = self._mend_open(fd, path, mark, owed)
            except OSError as error:
                log.warning("%s: %s; what it lacked opens the next log", path, error.strerror)
            try:
                os.fsync(fd)
            except OSError as error:  # whether its rows are durable is unknown: the next start completes it again
                raise DiskError(f"{path}: {error.strerror}") from error
            finally:
                os.close(fd)
        self._behind = bool(owed)

    def _mend_open(self, fd: int, path: str, mark: LogMark, owed: list[_Owed]) -> list[_Owed]:
        """The same, with the file open. Returns what the file could not be given."""
        tail_at = max(0, mark.size - TAIL_BYTES)
        if zlib.crc32(os.pread(fd, mark.size - tail_at, tail_at)) != mark.tail:
            log.warning("%s was changed by hand: it is left alone, and what it lacked opens the next log", path)
            return owed
        alias = names_as_one(self._store.node_records().former)
        found = rows_written(fd, mark.size, [rows for _, rows in owed], alias)
        # A row whose id was changed stands there at its place, and is owed once more under its new number.
        known = {there for (_, rows), there in zip(owed, found) if there and not isinstance(rows, bytes)}
        owed[len(found) :] = [(filed, b"" if rows in known else rows) for filed, rows in owed[len(found) :]]
        at, rest, size = mark.size + sum(map(len, found)), owed[len(found) :], os.fstat(fd).st_size
        if not is_left_by_crash(
            os.pread(fd, size - at, at), b"".join([rows for _, rows in rest if isinstance(rows, bytes)])
        ):
            log.warning("%s was added to by hand: it is left alone, and what it lacked opens the next log", path)
            self.beyond_store = (
                f"{path} has lines that the database does not have. Somebody added them; or the database has lost its"
                " last transactions, or is an older copy. Nodes send again what their outboxes hold; `control.py"
                " verify` compares both. This is shown until the next start"
            )
            for (filed, wanted), there in zip(owed, found):
                self._note(filed, is_logged=bool(there) or isinstance(wanted, bytes))
            return rest
        if rest or at != size:
            self._sums.unseal(mark.name)
        owed[: len(found)] = [(filed, there or wanted) for (filed, wanted), there in zip(owed, found)]
        os.ftruncate(fd, at)  # not to mark.size: the lines of a damaged entry may be nowhere else
        at = mark.size
        while owed:  # rows that stand there are written again too, since a sync may have failed: see _cut_back
            filed, rows = owed[0]
            if isinstance(rows, bytes):
                at = _append(fd, rows, at)
            self._note(filed, is_logged=isinstance(rows, bytes))
            del owed[0]
        return []


def _append(fd: int, data: bytes, size: int) -> int:
    """Write `data` at the end of a file of `size` bytes, wholly or not at all. Returns its new size."""
    at, view = size, memoryview(data)
    try:
        while view:
            written = os.pwrite(fd, view, at)
            view, at = view[written:], at + written
    except OSError:
        os.ftruncate(fd, size)
        raise
    return at
