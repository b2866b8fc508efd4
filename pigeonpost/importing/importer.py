"""Import of files of readings into the store: each reading once, however often its file is imported.

Runs in the caller's thread. A file is read twice: first to find faults, then to store it.
Errors: BadFile, which names the wrong rows: nothing of the file is stored then. NotStored when the server stops or its
disk is full in the middle: another import continues behind what is stored.

A reading's identity is (node, epoch, number): the epoch is derived from the file's SHA-256, and numbers are
consecutive. So the store recognises what it has, and the promise for samples of nodes holds for these too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pigeonpost.core.errors import BeyondLimit, NotStored, PigeonpostError, WireError
from pigeonpost.importing.cells import LAST_MS, Fault, ImportedReading, ReadingColumns
from pigeonpost.importing.readers import readings
from pigeonpost.link.samples import Sample, SampleBatch, batches_of
from pigeonpost.server.commit_waiter import CommitWaiter
from protocol import BATCH_SAMPLES, IMPORTED, Batch

if TYPE_CHECKING:
    from pigeonpost.server.ingest import Ingestor

MOST_NODES = 100  # in one file
FAULTS_SHOWN = 20
STORE_S = 60.0  # for the Ingestor to take a batch, and to have the last one durable
NO_VALUE = "no value in the file"
NO_UNITS: Mapping[str, Mapping[str, str]] = MappingProxyType({})


class BadFile(PigeonpostError, ValueError):
    """A file that is not imported. `faults` are the first of `count`."""

    def __init__(self, faults: Sequence[Fault], count: int) -> None:
        more = [f"and {count - len(faults)} more"] if count > len(faults) else []
        super().__init__("\n".join([*map(str, faults), *more]))
        self.faults, self.count = faults, count


class ImportSummary(NamedTuple):
    """Content of a file: the number of samples by node (the empty name: not given), the first and the last time."""

    samples: int
    nodes: Sequence[str]
    first_ms: int
    last_ms: int


def inspect_readings(file: BinaryIO, name: str) -> ImportSummary:
    """What there is to import. Raises BadFile where there is nothing, or something that does not read."""
    faults: list[Fault] = []
    samples = wrong = 0
    nodes: dict[str, None] = {}
    first_ms, last_ms = LAST_MS, 0
    for one in readings(file, name):
        count, low_ms, high_ms = 1, 0, 0
        if isinstance(one, ReadingColumns):
            count, low_ms, high_ms = len(one.times), min(one.times), max(one.times)
        elif isinstance(one, ImportedReading):
            low_ms = high_ms = one.time_ms
        if not isinstance(one, Fault) and not 0 <= low_ms <= high_ms < LAST_MS:
            one = Fault(one.where, "its time is not between 1970 and 9999")
        if not isinstance(one, Fault) and one.node not in nodes and len(nodes) >= MOST_NODES:
            one = Fault(one.where, f"a file has readings of at most {MOST_NODES} nodes")
        if isinstance(one, Fault):
            wrong += count
            faults += [one] if len(faults) < FAULTS_SHOWN else []
            continue
        samples += count
        nodes[one.node] = None
        first_ms, last_ms = min(first_ms, low_ms), max(last_ms, high_ms)
    if wrong or not samples:
        raise BadFile(faults or [Fault("the file", "there is no reading in it")], wrong or 1)
    return ImportSummary(samples, list(nodes), first_ms, last_ms)


class _Pile:
    """Numbers the readings of one node, and collects them to batches."""

    def __init__(self, node: str, known: int, told: Mapping[str, str]) -> None:
        """known: up to which number they are stored already"""
        self.node, self.known, self.seq = node, known, 0
        self.units: dict[str, str] = {}
        self._told = told
        self._samples: list[Sample] = []  # that came one by one

    def add(self, one: ImportedReading | ReadingColumns) -> Iterator[SampleBatch]:
        """Number readings, and yield the batches that are ready."""
        if isinstance(one, ReadingColumns):
            yield from self.take()
            yield self._numbered(one)
        elif isinstance(one, ImportedReading):
            self._add_units(one.units, one.values)
            self.seq += 1
            errors = {sensor: NO_VALUE for sensor, value in one.values.items() if value is None}
            self._samples.append(Sample(self.seq, one.time_ms, 0, one.values, errors, ""))
            if len(self._samples) >= BATCH_SAMPLES:
                yield from self.take()

    def take(self) -> list[SampleBatch]:
        """Return what came one by one as batches."""
        samples, self._samples = self._samples, []
        return batches_of(samples)

    @property
    def new(self) -> int:
        """How many of them were not stored before."""
        return max(0, self.seq - self.known)

    def _numbered(self, columns: ReadingColumns) -> SampleBatch:
        self._add_units(columns.units, columns.values)
        first, count = self.seq + 1, len(columns.times)
        self.seq += count
        errors = {
            sensor: {place: NO_VALUE for place, value in enumerate(column) if value is None}
            for sensor, column in columns.values.items()
            if None in column
        }
        return SampleBatch(first, columns.times, [0] * count, columns.values, errors)

    def _add_units(self, units: Mapping[str, str], sensors: Mapping[str, object]) -> None:
        self.units.update({sensor: units.get(sensor) or self._told.get(sensor, "") for sensor in sensors})


def import_readings(
    file: BinaryIO,
    name: str,
    checksum: str,
    ingestor: Ingestor,
    node: str = "",
    told: Mapping[str, Mapping[str, str]] = NO_UNITS,
) -> tuple[int, int]:
    """Store the readings of a file that was looked through: how many it has, and how many of them were new.

    checksum  the SHA-256 of the file, hex
    node      whose they are; empty: of those that the file names
    told      the units of each node's sensors as they are known, for where the file has none
    Raises NotStored: some may be stored, and the same call goes on behind them.
    """
    epoch, waiter = checksum[:16], CommitWaiter(ingestor, ingestor.clock)
    piles: dict[str, _Pile] = {}

    def hand_over(pile: _Pile, batches: Iterable[SampleBatch]) -> None:
        for samples in batches:
            batch = Batch(pile.node, IMPORTED, epoch, None, samples, None, dict(pile.units))
            if not waiter.submit(batch, limit_s=STORE_S):
                raise NotStored(ingestor.fault or "the server stops")

    for one in readings(file, name):
        if not isinstance(one, Fault):
            whose = node or one.node
            if whose not in piles:
                mark = ingestor.marks(whose, IMPORTED, [epoch])[1].get(epoch)
                piles[whose] = _Pile(whose, mark.seq if mark else 0, told.get(whose, {}))
            hand_over(piles[whose], piles[whose].add(one))
    for pile in piles.values():
        hand_over(pile, pile.take())
    if not ingestor.flush(STORE_S) or not _all_committed(waiter):
        raise NotStored(ingestor.fault or f"it was not stored within {STORE_S:g} s")
    return sum(pile.seq for pile in piles.values()), sum(pile.new for pile in piles.values())


def _all_committed(waiter: CommitWaiter) -> bool:
    try:
        return waiter.wait(STORE_S)
    except BeyondLimit as error:
        raise NotStored(str(error)) from None
    except WireError:
        return False
