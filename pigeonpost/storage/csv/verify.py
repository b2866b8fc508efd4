"""Comparison of the CSV logs on the disk with the store, and writing of a new log from it; no server runs meanwhile.

Errors: OSError of the disk; those of the store.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

from pigeonpost.core.clock import Clock, parse_rfc3339
from pigeonpost.core.files import make_folder, sync_folder
from pigeonpost.link.samples import batches_of
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.storage.csv.format import (
    HEADER,
    TAIL_BYTES,
    is_left_by_crash,
    log_rows,
    logged_rows,
    meaning,
    names_as_one,
    rows_written,
)
from pigeonpost.storage.models import LogMark, StoredSample
from protocol import LONGEST_WHY, Gap, Sample

_AT_ONCE = 1000  # samples that are made rows together


class Tally:
    """Count of readings and gaps with the sum of their hashes, to compare two sets in any order."""

    def __init__(self) -> None:
        self.readings = self.gaps = self.sum = 0

    def add(self, reading: tuple[int, str, str, str]) -> None:
        """Count one reading: time, node, sensor, value as text."""
        self.readings += 1
        self.sum += hash(reading)


class LogTally(Tally):
    """Tally of CSV logs. Its methods yield one line per fault while they count."""

    def __init__(self, expired_ms: Mapping[str, int], alias: Mapping[str, str] = MappingProxyType({})) -> None:
        """
        expired_ms  node to the time up to which its readings are not counted
        alias       of nodes that were renamed each name that they had, to the one under which they are counted
        """
        super().__init__()
        self._expired_ms, self._alias = expired_ms, alias

    def count_log(self, path: str, mark: LogMark | None, owed: Sequence[bytes]) -> Iterator[str]:
        """Count the readings of one log; where rows are owed to it, as it will be after the next start."""
        name = os.path.basename(path)
        with open(path, "rb") as log:
            if mark is not None and os.fstat(log.fileno()).st_size >= mark.size:
                found = rows_written(log.fileno(), mark.size, owed, self._alias)
                rest = b"".join(owed[len(found) :])
                behind = os.pread(log.fileno(), len(rest) + 1, mark.size + sum(map(len, found)))
                if is_left_by_crash(behind, rest):
                    yield from self.count_lines(name, chain(_lines(log, mark.size), owed))
                    return
            yield from self.count_lines(name, log)

    def count_lines(self, name: str, lines: Iterable[bytes]) -> Iterator[str]:
        """Count the readings and gaps in the lines of the log `name`."""
        head = HEADER.encode()
        for line, said in _readings(line for line in lines if line != head):
            if not isinstance(said, tuple) or not line.endswith(b"\n"):
                yield f"{name}: a torn row: {line.decode(errors='replace').strip()[:60]!r}"
            elif said[2] == "gap" and b"samples " in line:
                self.gaps += 1
            else:
                time_ms, node, *rest = said
                node = self._alias.get(node, node)
                if time_ms > self._expired_ms.get(node, 0):
                    self.add((time_ms, node, *rest))


def verify_logs(folder: str, store: Store) -> Iterator[str]:
    """Compare all logs in `folder` with what this server has stored. Yields one line per fault.

    What a crash of the last run kept out of its log is no fault: the next start writes it there.
    """
    alias = names_as_one(store.node_records().former)
    expired_ms = _expired(store, alias)
    written, stored = LogTally(expired_ms, alias), Tally()
    mark = store.log_mark()
    for name in logs_in(folder):
        owed = list(_owed(store, mark)) if mark is not None and mark.name == name else []
        yield from written.count_log(os.path.join(folder, name), mark if owed else None, owed)
    if mark is not None and mark.name not in logs_in(folder):
        yield from written.count_lines(mark.name, _owed(store, mark))
    for point in store.own_samples():
        node = alias.get(point.node, point.node)
        for sensor, value in point.values.items() if point.time_ms > expired_ms[node] else ():
            stored.add((point.time_ms, node, sensor, "" if value is None else repr(value)))
    if (written.readings, written.sum) != (stored.readings, stored.sum):
        yield (
            f"the logs hold {written.readings} readings and the store {stored.readings};"
            " they are not the same (was a log changed?)"
        )
    if written.gaps != (gaps := store.own_gaps()):
        yield f"the logs tell of {written.gaps} gaps and the store of {gaps}"


def _expired(store: Store, alias: Mapping[str, str]) -> Mapping[str, int]:
    """Return the time up to which samples of each node may have been deleted as expired."""
    found: dict[str, int] = {}
    for node in store.nodes():
        name = alias.get(node["name"], node["name"])
        found[name] = max(found.get(name, 0), node.get("kept_from_ms", 0))
    return found


def _owed(store: Store, mark: LogMark) -> Iterator[bytes]:
    """Yield the rows that the last run stored and is not known to have written."""
    for logged in store.logged_after(mark.filed):
        yield from logged_rows(logged).splitlines(keepends=True)


def _lines(log: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the lines in the first `size` bytes."""
    for line in log:
        size -= len(line)
        if size < 0:
            return
        yield line


def _rows(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield rows: a quoted cell may have line ends, as reasons of gaps had before these were one line."""
    waiting: list[bytes] = []
    for line in lines:
        if not waiting and line.count(b'"') % 2 == 0:
            yield line
            continue
        waiting.append(line)
        if sum(part.count(b'"') for part in waiting) % 2 == 0:
            yield b"".join(waiting)
            waiting = []
        elif len(waiting) > LONGEST_WHY:  # it is a torn row, and what follows it
            yield from waiting
            waiting = []
    yield from waiting


def _readings(lines: Iterable[bytes]) -> Iterator[tuple[bytes, Any]]:
    """Yield each line with its meaning; plain ones without a CSV reader, their time once for each sample."""
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
    """Write one log with all that is stored, node by node, and record that nothing is owed any more.

    For a database that came without its logs. `folder` must have no log yet.
    """
    make_folder(folder)
    path = os.path.join(folder, name)
    size, tail = 0, b""
    with open(path, "xb") as log:
        for block in _all_rows(store):
            log.write(block)
            size, tail = size + len(block), (tail + block[-TAIL_BYTES:])[-TAIL_BYTES:]
        log.flush()
        os.fsync(log.fileno())
    sync_folder(path)
    with store.writing(()):
        filed = store.put((), clock.wall_ms(), None)
        store.put((), clock.wall_ms(), LogMark(name, size, zlib.crc32(tail), filed))


def _all_rows(store: Store) -> Iterator[bytes]:
    yield HEADER.encode()
    units = {node["name"]: node["sensors"] for node in store.nodes()}
    waiting: list[StoredSample] = []
    for point in store.every_sample():
        if waiting and (waiting[0].node != point.node or len(waiting) >= _AT_ONCE):
            yield _block(waiting, units)
            waiting = []
        waiting.append(point)
    if waiting:
        yield _block(waiting, units)
    for told in reversed(store.gaps(-1)):
        gap = Gap(told["from"], told["to"], told["before"], told["why"])
        yield log_rows(told["node"], told["epoch"], gap, {}, told["noted_ms"]).encode()


def _block(points: list[StoredSample], units: Mapping[str, Mapping[str, str]]) -> bytes:
    node = points[0].node
    samples = [Sample(point.seq, point.time_ms, 0, point.values, {}, point.clock) for point in points]
    rows = [log_rows(node, points[0].epoch, batch, units.get(node, {}), 0) for batch in batches_of(samples)]
    return "".join(rows).encode()
