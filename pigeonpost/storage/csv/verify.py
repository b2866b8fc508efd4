"""Comparison of the CSV logs on the disk with the store, and writing of a new log from it; no server runs meanwhile.

Errors: OSError of the disk; those of the store.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, repeat
from types import MappingProxyType
from typing import Any, BinaryIO

from pigeonpost.core.clock import Clock, parse_rfc3339
from pigeonpost.core.data_folder import LOG_CHECKSUMS
from pigeonpost.core.files import make_folder, replace_file, sync_folder
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.checksums import logs_in, sums_text
from pigeonpost.storage.csv.format import (
    HEADER,
    TAIL_BYTES,
    is_left_by_crash,
    lacking,
    log_rows,
    logged_rows,
    meaning,
    names_as_one,
    rows_written,
)
from pigeonpost.storage.models import LogMark
from protocol import LONGEST_WHY, Gap

_BLOCK_BYTES = 1 << 20


class Tally:
    """Count of readings and gaps with the sum of their hashes, to compare two sets in any order."""

    def __init__(self) -> None:
        self.readings = self.gaps = self.sum = 0

    def add(self, reading: tuple[int, str, str, str]) -> None:
        """Count one reading: time, node, sensor, value as text."""
        self.readings += 1
        self.sum += hash(reading)

    def add_batch(self, node: str, batch: SampleBatch, expired_ms: Mapping[str, int]) -> None:
        """Count samples of `node`, but for those whose time to be kept is over."""
        times, until_ms = batch.times, expired_ms.get(node, 0)
        kept = None if not until_ms or min(times) >= until_ms else [time_ms >= until_ms for time_ms in times]
        for sensor, texts in zip(batch.values, batch.texts, strict=True):
            values = ["" if text == "None" else text for text in texts] if "None" in texts else texts
            readings = zip(times, repeat(node), repeat(sensor), values)
            self.sum += sum(map(hash, readings if kept is None else compress(readings, kept)))
            self.readings += len(times) if kept is None else sum(kept)


class LineTally:
    """Count of lines as they are written, but for headers and gaps, with the sum of their hashes; and of gaps."""

    def __init__(self) -> None:
        self.lines = self.sum = self.gaps = 0

    def add(self, rows: bytes) -> None:
        """Count lines. One of a gap without its end is a line as any other, which nothing that is stored matches."""
        lines = rows.splitlines(keepends=True)
        if HEADER.encode() in rows or b",gap," in rows:
            gaps = [line for line in lines if line.split(b",", 3)[2:3] == [b"gap"] and b"samples " in line]
            gaps = [line for line in gaps if line.endswith(b"\n")]
            self.gaps += len(gaps)
            left_out = {HEADER.encode(), *gaps}
            lines = [line for line in lines if line not in left_out]
        self.lines += len(lines)
        self.sum += sum(map(hash, lines))

    def add_file(self, log: BinaryIO, size: int) -> None:
        """Count the lines in the first `size` bytes of a file."""
        rest = b""
        while block := log.read(min(_BLOCK_BYTES, size)):
            size -= len(block)
            whole, end, after = (rest + block).rpartition(b"\n")
            self.add(whole + end)
            rest = after
        if rest:
            self.add(rest)


class LogTally(Tally):
    """Tally of CSV logs. Its methods yield one line per fault while they count."""

    def __init__(self, expired_ms: Mapping[str, int], alias: Mapping[str, str] = MappingProxyType({})) -> None:
        """
        expired_ms  node to the time before which its readings are not counted
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
                if time_ms >= self._expired_ms.get(node, 0):
                    self.add((time_ms, node, *rest))


def verify_logs(folder: str, store: Store) -> Iterator[str]:
    """Compare all logs in `folder` with what this server has stored. Yields one line per fault.

    What a crash of the last run kept out of its log is no fault: the next start writes it there. Mostly all lines are,
    byte by byte, what would be written now; only where they are not, each is read for its meaning.
    """
    if store.unlogged:
        yield lacking(store.unlogged)
    mark = store.log_mark()
    owed = b"".join(map(logged_rows, store.logged_after(mark.filed))) if mark is not None else b""
    if not _are_same_lines(folder, store, mark, owed):
        yield from _compare_meanings(folder, store, mark, owed.splitlines(keepends=True))


def _are_same_lines(folder: str, store: Store, mark: LogMark | None, owed: bytes) -> bool:
    """Return True if the lines of all logs, in any order, are those that would be written of what is stored."""
    written, stored = LineTally(), LineTally()
    for name in logs_in(folder):
        with open(os.path.join(folder, name), "rb") as log:
            size = os.fstat(log.fileno()).st_size
            if mark is not None and mark.name == name and owed and size >= mark.size:
                if not is_left_by_crash(os.pread(log.fileno(), len(owed) + 1, mark.size), owed):
                    return False
                size = mark.size
            written.add_file(log, size)
    if owed:
        written.add(owed)
    units = {node["name"]: node["sensors"] for node in store.nodes()}
    for node, epoch, batch in store.own_batches():
        stored.add(log_rows(node, epoch, batch, units.get(node, {}), 0))
    return (written.lines, written.sum, written.gaps) == (stored.lines, stored.sum, store.own_gaps())


def _compare_meanings(folder: str, store: Store, mark: LogMark | None, owed: Sequence[bytes]) -> Iterator[str]:
    alias = names_as_one(store.node_records().former)
    expired_ms = _expired(store, alias)
    written, stored = LogTally(expired_ms, alias), Tally()
    for name in logs_in(folder):
        of_log = owed if mark is not None and mark.name == name else ()
        yield from written.count_log(os.path.join(folder, name), mark if of_log else None, of_log)
    if mark is not None and mark.name not in logs_in(folder):
        yield from written.count_lines(mark.name, owed)
    for node, _, batch in store.own_batches():
        stored.add_batch(alias.get(node, node), batch, expired_ms)
    if (written.readings, written.sum) != (stored.readings, stored.sum):
        yield (
            f"the logs hold {written.readings} readings and the store {stored.readings};"
            " they are not the same (was a log changed?)"
        )
    if written.gaps != (gaps := store.own_gaps()):
        yield f"the logs tell of {written.gaps} gaps and the store of {gaps}"


def _expired(store: Store, alias: Mapping[str, str]) -> Mapping[str, int]:
    """Return the time before which samples of each node may have been deleted as expired."""
    found: dict[str, int] = {}
    for node in store.nodes():
        name, until_ms = alias.get(node["name"], node["name"]), node.get("kept_from_ms", 0)
        # Format 3 deleted samples of that very time too.
        is_of_format_3 = until_ms and until_ms == node.get("old_edges_ms", 0)
        found[name] = max(found.get(name, 0), until_ms + 1 if is_of_format_3 else until_ms)
    return found


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

    For a database that came without its logs. `folder` must have no log yet. It gets the log's checksum too, by which
    `checksums.faults` tells whether the disk has what was written.
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
    for told in reversed(store.gaps(-1)):
        gap = Gap(told["from"], told["to"], told["before"], told["why"])
        yield log_rows(told["node"], told["epoch"], gap, {}, told["noted_ms"])
