"""Comparison of the CSV logs on the disk with the store, and creation of a new log from the store.

For use while the server is stopped.

Errors: OSError of the disk; errors of the store.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, repeat
from types import MappingProxyType
from typing import Any, NamedTuple

from pigeonpost.core.clock import Clock, parse_rfc3339
from pigeonpost.core.data_folder import LOG_CHECKSUMS
from pigeonpost.core.files import make_folder, replace_file, sync_folder
from pigeonpost.core.format import counted
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.checksums import read_sums, sums_text
from pigeonpost.storage.csv.format import (
    HEADER,
    TAIL_BYTES,
    is_left_by_crash,
    is_log_name,
    lacking,
    log_rows,
    logged_rows,
    meaning,
    names_as_one,
    rows_written,
)
from pigeonpost.storage.csv.lines import LineTally
from pigeonpost.storage.csv.retention import RemovedLogs, existing_logs, read_removed
from pigeonpost.storage.models import LogMark
from protocol import LONGEST_WHY, Gap


class Tally:
    """Numbers of readings and gaps, and the sum of the readings' hashes, to compare two sets regardless of order."""

    def __init__(self) -> None:
        self.readings = self.gaps = self.sum = 0

    def add(self, reading: tuple[int, str, str, str]) -> None:
        """Count `reading`: time (ms since 1970, UTC), node, sensor, and value as text."""
        self.readings += 1
        self.sum += hash(reading)

    def add_batch(self, node: str, batch: SampleBatch, expired_ms: Mapping[str, int]) -> None:
        """Count samples, except expired ones.

        Args:
            node: Name of the node.
            batch: The samples.
            expired_ms: Time, by node, before which samples are expired, in milliseconds since 1970 (UTC).
        """
        times, until_ms = batch.times, expired_ms.get(node, 0)
        kept = None if not until_ms or min(times) >= until_ms else [time_ms >= until_ms for time_ms in times]
        for sensor, texts in zip(batch.values, batch.texts, strict=True):
            values = ["" if text == "None" else text for text in texts] if "None" in texts else texts
            readings = zip(times, repeat(node), repeat(sensor), values)
            self.sum += sum(map(hash, readings if kept is None else compress(readings, kept)))
            self.readings += len(times) if kept is None else sum(kept)


class LogTally(Tally):
    """Tally of CSV logs. Its methods yield one line per fault while they count.

    Args:
        expired_ms: Time, by node, before which readings are not counted, in milliseconds since 1970 (UTC).
        alias: Result of `names_as_one`.
    """

    def __init__(self, expired_ms: Mapping[str, int], alias: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__()
        self._expired_ms, self._alias = expired_ms, alias

    def count_log(self, path: str, mark: LogMark | None, pending: Sequence[bytes]) -> Iterator[str]:
        """Count the readings of one log.

        Rows that are missing because of a crash are counted too, because the next start will write them.

        Args:
            path: Path of the log.
            mark: Recorded position of the log, or None if no rows are missing.
            pending: Rows that the log lacks after this position.

        Yields:
            A line for each invalid row.
        """
        name = os.path.basename(path)
        with open(path, "rb") as log:
            if mark is not None and os.fstat(log.fileno()).st_size >= mark.size:
                found = rows_written(log.fileno(), mark.size, pending, self._alias)
                rest = b"".join(pending[len(found) :])
                after = os.pread(log.fileno(), len(rest) + 1, mark.size + sum(map(len, found)))
                if is_left_by_crash(after, rest):
                    yield from self.count_lines(name, chain(_lines(log, mark.size), pending))
                    return
            yield from self.count_lines(name, log)

    def count_lines(self, name: str, lines: Iterable[bytes]) -> Iterator[str]:
        """Count the readings and gaps in `lines` of the log `name`. Yield a line for each invalid row."""
        head = HEADER.encode()
        for line, row in _readings(line for line in lines if line != head):
            if not isinstance(row, tuple) or not line.endswith(b"\n"):
                yield f"{name}: a torn row: {line.decode(errors='replace').strip()[:60]!r}"
            elif row[2] == "gap" and b"samples " in line:
                self.gaps += 1
            else:
                time_ms, node, *rest = row
                node = self._alias.get(node, node)
                if time_ms >= self._expired_ms.get(node, 0):
                    self.add((time_ms, node, *rest))


def verify_logs(folder: str, store: Store) -> Iterator[str]:
    """Compare all logs in `folder` with the readings and gaps that this server has in `store`.

    Yield one line per fault.

    Rows that are missing in the last log because of a crash are not a fault, because the next start writes them.
    Normally all lines have exactly the bytes that would be written now. The lines are parsed only if they differ.

    If the files do not match, and some of them have other names than the server's logs, these are left out.

    The lines of logs that were deleted because of the limits are counted as if the logs still existed. If the lines
    differ, only the number of the deleted readings can be compared, and not even that if stored samples have expired.

    Args:
        folder: Folder of the logs.
        store: The store.
    """
    if store.unlogged:
        yield lacking(store.unlogged)
    try:
        removed = read_removed(folder)
    except ValueError as error:
        yield f"{error}; restore it from a backup, since the deleted logs cannot be compared without it"
        return
    mark = store.log_mark()
    pending = b"".join(map(logged_rows, store.logged_after(mark.filed))) if mark is not None else b""
    names, unreadable, closed = [], [], read_sums(folder)
    for name in existing_logs(folder, removed):
        if fault := _read_fault(os.path.join(folder, name)):
            if is_log_name(name) and name not in closed:  # `checksums.faults` reports closed logs
                unreadable.append(f"{name}: this log cannot be read: {fault}")
        else:
            names.append(name)
    yield from unreadable
    lines = pending.splitlines(keepends=True)
    found: list[str] = []
    for chosen in _selections(names):
        logs = _Logs(folder, chosen, mark, removed)
        if _are_same_lines(logs, store, pending):
            return
        different = list(_compare_meanings(logs, store, lines))
        if not different:
            return
        found = found or different
    yield from found


def _selections(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the names of the server's logs among `names` of CSV files, then all names, if there are others.

    The user may have copied other files to the folder, or may have renamed a log.
    """
    own = [name for name in names if is_log_name(name)]
    yield own
    if len(own) != len(names):
        yield names


def _read_fault(path: str) -> str:
    """Return the reason why a file cannot be read, or an empty string."""
    try:
        with open(path, "rb"):
            return ""
    except OSError as error:
        return error.strerror or str(error)


class _Logs(NamedTuple):
    """Logs to compare: their folder and names, the recorded position, and the record of deleted logs."""

    folder: str
    names: Sequence[str]
    mark: LogMark | None
    removed: RemovedLogs


def _are_same_lines(logs: _Logs, store: Store, pending: bytes) -> bool:
    """Return True if the logs contain exactly the lines that would be written for the stored data, in any order."""
    folder, names, mark, removed = logs
    is_stable = removed.logs > 0
    written, stored = LineTally(is_stable), LineTally(is_stable)
    written.lines, written.sum, written.gaps = removed.lines, removed.sum, removed.gaps
    for name in names:
        with open(os.path.join(folder, name), "rb") as log:
            size = os.fstat(log.fileno()).st_size
            if mark is not None and mark.name == name and pending and size >= mark.size:
                if not is_left_by_crash(os.pread(log.fileno(), len(pending) + 1, mark.size), pending):
                    return False
                size = mark.size
            written.add_file(log, size)
    if pending:
        written.add(pending)
    units = {node["name"]: node["sensors"] for node in store.nodes()}
    for node, epoch, batch in store.own_batches():
        stored.add(log_rows(node, epoch, batch, units.get(node, {}), 0))
    return (written.lines, written.sum, written.gaps) == (stored.lines, stored.sum, store.own_gaps())


def _compare_meanings(logs: _Logs, store: Store, pending: Sequence[bytes]) -> Iterator[str]:
    folder, names, mark, removed = logs
    alias = names_as_one(store.node_records().former)
    expired_ms = _expired(store, alias)
    written, stored = LogTally(expired_ms, alias), Tally()
    for name in names:
        of_log = pending if mark is not None and mark.name == name else ()
        yield from written.count_log(os.path.join(folder, name), mark if of_log else None, of_log)
    if mark is not None and mark.name not in names:
        yield from written.count_lines(mark.name, pending)
    for node, _, batch in store.own_batches():
        stored.add_batch(alias.get(node, node), batch, expired_ms)
    readings = written.readings + removed.lines
    if removed.logs and any(expired_ms.values()):
        is_same = written.readings <= stored.readings  # it is unknown how many of the deleted readings have expired
    else:
        is_same = readings == stored.readings and (removed.logs > 0 or written.sum == stored.sum)
    if not is_same:
        yield (
            f"the logs contain {counted(readings, 'reading')} and the store {stored.readings:,};"
            " they differ (was a log changed?)"
        )
    written.gaps += removed.gaps
    if written.gaps != (gaps := store.own_gaps()):
        yield f"the logs contain {counted(written.gaps, 'gap')} and the store {gaps:,}"


def _expired(store: Store, alias: Mapping[str, str]) -> Mapping[str, int]:
    """Return, by node, the time before which samples may have been deleted as expired."""
    found: dict[str, int] = {}
    for node in store.nodes():
        name, until_ms = alias.get(node["name"], node["name"]), node.get("kept_from_ms", 0)
        # Format 3 also deleted samples taken at exactly this time.
        is_of_format_3 = until_ms and until_ms == node.get("old_edges_ms", 0)
        found[name] = max(found.get(name, 0), until_ms + 1 if is_of_format_3 else until_ms)
    return found


def _lines(log: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the lines in the first `size` bytes of a log."""
    for line in log:
        size -= len(line)
        if size < 0:
            return
        yield line


def _rows(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the rows. A quoted cell may contain line ends: in old logs, reasons of gaps could have several lines."""
    waiting: list[bytes] = []
    for line in lines:
        if not waiting and line.count(b'"') % 2 == 0:
            yield line
            continue
        waiting.append(line)
        if sum(part.count(b'"') for part in waiting) % 2 == 0:
            yield b"".join(waiting)
            waiting = []
        elif len(waiting) > LONGEST_WHY:  # a torn row and the lines after it
            yield from waiting
            waiting = []
    yield from waiting


def _readings(lines: Iterable[bytes]) -> Iterator[tuple[bytes, Any]]:
    """Yield each line with its meaning. For speed, plain lines are split without a CSV reader."""
    last, last_ms = b"", 0
    for line in _rows(lines):
        cells = line.split(b",")
        if len(cells) != 5 or b'"' in line or b"\r" in line:
            yield line, meaning(line)
            continue
        try:
            if cells[0] != last:
                last, last_ms = b"", parse_rfc3339(cells[0].decode())
                last = cells[0]
            yield line, (last_ms, cells[1].decode(), cells[2].decode(), cells[3].decode())
        except ValueError:
            yield line, line


def rebuild_log(folder: str, name: str, store: Store, clock: Clock) -> None:
    """Write one log with all stored data, node by node, and record that no rows are missing.

    For a database without logs.

    Args:
        folder: Folder for the log, in which there must be no log yet. The checksum file is written too, so that
            `checksums.faults` can check the log on the disk.
        name: Name of the log.
        store: The store.
        clock: Clock of the server.
    """
    make_folder(folder)
    path = os.path.join(folder, name)
    size, tail, total = 0, b"", hashlib.sha256()
    with open(path, "xb") as log:
        for block in _all_rows(store):
            log.write(block)
            total.update(block)
            size, tail = size + len(block), (tail + block[-TAIL_BYTES:])[-TAIL_BYTES:]
        log.flush()
        os.fsync(log.fileno())
    sync_folder(path)
    replace_file(os.path.join(folder, LOG_CHECKSUMS), sums_text({name: total.hexdigest()}))
    with store.writing(()):
        filed = store.put((), clock.wall_ms(), None)
        store.unlogged = frozenset()
        store.put((), clock.wall_ms(), LogMark(name, size, zlib.crc32(tail), filed))


def _all_rows(store: Store) -> Iterator[bytes]:
    yield HEADER.encode()
    units = {node["name"]: node["sensors"] for node in store.nodes()}
    for node, epoch, batch in store.every_batch():
        yield log_rows(node, epoch, batch, units.get(node, {}), 0)
    for row in reversed(store.gaps(-1)):
        gap = Gap(row["from"], row["to"], row["before"], row["why"])
        yield log_rows(row["node"], row["epoch"], gap, {}, row["noted_ms"])
