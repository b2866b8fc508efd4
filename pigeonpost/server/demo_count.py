"""Count of all samples of the demonstration's node, from its outbox file and from the rows of the database.

Any thread may use it. `_lock` guards the last count; it is held while a new one is made, so that several open pages
share it. Errors: those of the store, and OSError of the outbox file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.clock import Clock
from pigeonpost.core.data_folder import LOGS, OUTBOX
from pigeonpost.node.ring_records import SeqRange
from pigeonpost.node.ring_scan import find_header, find_runs, forked, read_state
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv import checksums

_FRESH_S = 0.5  # time for which a count is used again
_REST = 20  # a count is used again for this multiple of its own duration, so that it needs at most 5 % of a core


class SampleCount(NamedTuple):
    """Numbers of samples of one node.

    `taken` is the sum of `stored`, `held`, `missing`, `overwritten` and `lost`, minus `others`.

    Attributes:
        time_ms: Time of the count, in ms since 1970.
        taken: Samples that the node has accepted: the highest number in the outbox file.
        stored: Different samples in the database.
        held: Samples in the outbox that are not stored yet.
        missing: Samples that the database records as missing, with a reason.
        overwritten: Samples that were overwritten in the full outbox, and that the server does not know of yet.
        twice: Rows of the database with a sample that another row contains too.
        lost: Numbers of samples that should be stored, and are neither stored nor recorded as missing.
        others: Samples in the database that are not from this outbox, for example imported ones.
        gaps: The gaps, as Store.gaps.
    """

    time_ms: int
    taken: int
    stored: int
    held: int
    missing: int
    overwritten: int
    twice: int
    lost: int
    others: int
    gaps: Sequence[Mapping[str, Any]]

    @property
    def is_exact(self) -> bool:
        """True if no sample is stored twice, and none is missing without a gap."""
        return not self.twice and not self.lost


class DemoCount:
    """Counter of the samples.

    Args:
        folder: Data folder of the node.
        clock: Clock of the server.
    """

    def __init__(self, folder: str, clock: Clock | None = None) -> None:
        self._path = os.path.join(folder, OUTBOX)
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._last: SampleCount | None = None
        self._until_s = 0.0

    def forget(self) -> None:
        """Discard the last count, because something has changed."""
        with self._lock:
            self._last = None

    def count(self, store: Store, node: str) -> SampleCount:
        """Return the numbers of samples, counted now or a short time ago.

        Args:
            store: The store with the raw values.
            node: Current name of the node.
        """
        with self._lock:
            began_s = self._clock.monotonic()
            if self._last is None or began_s >= self._until_s:
                self._last = self._count(store, node)
                now_s = self._clock.monotonic()
                self._until_s = now_s + max(_FRESH_S, _REST * (now_s - began_s))
            return self._last

    def _count(self, store: Store, node: str) -> SampleCount:
        # The marks are read before the rows, and the outbox after them, because all of them only increase.
        _, marks = store.marks(node, "", _ends(read_outbox(self._path)))
        rows, gaps = _read_rows(store, node)
        runs = read_outbox(self._path)
        present = _ends(runs)
        held = overwritten = lost = twice = stored = old = 0
        for epoch in {*rows, *present}:
            holes = [(gap["from"], gap["to"]) for gap in gaps if gap["epoch"] == epoch]
            own, known = rows.get(epoch, []), _covered([*rows.get(epoch, ()), *holes])
            top = max((end for _, end in (*own, *holes)), default=0)
            top = max(top, marks[epoch].seq if epoch in marks else 0)
            stored += _covered(own)
            twice += sum(last - first + 1 for first, last in own) - _covered(own)
            lost += top - known
            if epoch in present:
                first, last = present[epoch]
                held += max(0, last - max(top, first - 1))
                overwritten += max(0, first - 1 - top)
            else:
                old += known
        earlier = runs[0].number - runs[0].first if runs else 0  # samples of epochs that are overwritten completely
        unknown = earlier - old - sum(gap["before"] for gap in gaps)
        missing = sum(gap["to"] - gap["from"] + 1 + gap["before"] for gap in gaps)
        return SampleCount(
            self._clock.wall_ms(), runs[-1].last_number if runs else 0, stored, held, missing,
            overwritten + max(0, unknown), twice, lost, max(0, -unknown), gaps,
        )  # fmt: skip


def _read_rows(store: Store, node: str) -> tuple[dict[str, list[tuple[int, int]]], list[dict[str, Any]]]:
    """Return the first and the last sequence number of each batch of `node` by epoch, and the gaps of `node`."""
    while True:
        gaps = store.gaps(-1)
        rows: dict[str, list[tuple[int, int]]] = {}
        for batch in store.every_batch():
            if batch.node == node:
                first = batch.samples.seq
                rows.setdefault(batch.epoch, []).append((first, first + len(batch.samples.times) - 1))
        if store.gaps(-1) == gaps:  # otherwise a gap was stored meanwhile: the samples around it may be absent
            return rows, [gap for gap in gaps if gap["node"] == node]


def read_outbox(path: str) -> list[SeqRange]:
    """Return the ranges of samples in the outbox file at `path`, oldest first. The node may be running."""
    with open(path, "rb") as file:

        def read(count: int, at: int) -> bytes:
            return os.pread(file.fileno(), count, at)

        header = find_header(read)
        if header is None:
            return []
        runs, state = find_runs(read, header), read_state(read)
    last = runs[-1].last_number if runs else 0
    return forked(runs, state[1]["forks"] if state else [], max(1, last - header.slots + 1))


def faults(store: Store, data: str) -> Iterator[str]:
    """Yield a line for each fault that `control.py verify` finds while a server is running.

    Args:
        store: The store with the raw values.
        data: Data folder of the server.
    """
    yield from store.verify()
    yield from checksums.faults(os.path.join(data, LOGS))


def _ends(runs: Iterable[SeqRange]) -> dict[str, tuple[int, int]]:
    """Return the first and the last sequence number in the outbox, by epoch."""
    found: dict[str, tuple[int, int]] = {}
    for run in runs:
        first, _ = found.get(run.epoch, (run.first, 0))
        found[run.epoch] = first, run.last
    return found


def _covered(ranges: Iterable[tuple[int, int]]) -> int:
    """Return the number of different numbers in `ranges`, which may overlap."""
    count = end = 0
    for first, last in sorted(ranges):
        count += max(0, last - max(first - 1, end))
        end = max(end, last)
    return count
