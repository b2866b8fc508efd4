"""Import of files of readings into the store. A reading is stored once, even if its file is imported again.

The import runs in the caller's thread. A file is read twice: first to find faults, then to store the readings.
Errors: BadFile, which names the invalid rows; no reading of the file is stored then. NotStored, if the server stops or
the disk is full during the import; another import then continues after the stored readings.

A reading is identified by node, epoch and number. The epoch is derived from the SHA-256 of the file, and the numbers of
a node are consecutive. So the store recognises readings that it already has, in the same way as samples of nodes.
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

MOST_NODES = 100  # maximum number of nodes in one file
FAULTS_SHOWN = 20
STORE_S = 60.0  # limit for the Ingestor to accept a batch, and to commit the last one
NO_VALUE = "no value in the file"
NO_UNITS: Mapping[str, Mapping[str, str]] = MappingProxyType({})


class BadFile(PigeonpostError, ValueError):
    """A file is not imported because of invalid rows.

    Args:
        faults: The first faults.
        count: Number of all faults.
    """

    def __init__(self, faults: Sequence[Fault], count: int) -> None:
        more = [f"and {count - len(faults)} more"] if count > len(faults) else []
        super().__init__("\n".join([*map(str, faults), *more]))
        self.faults, self.count = faults, count


class ImportSummary(NamedTuple):
    """Content of a file.

    Attributes:
        samples: Number of samples.
        nodes: Names of the nodes; an empty name if some readings name no node.
        first_ms: Time of the earliest sample in milliseconds since 1970 (UTC).
        last_ms: Time of the latest sample in milliseconds since 1970 (UTC).
    """

    samples: int
    nodes: Sequence[str]
    first_ms: int
    last_ms: int


def inspect_readings(file: BinaryIO, name: str) -> ImportSummary:
    """Check a file of readings, and return a summary of its content.

    Args:
        file: The open file.
        name: Its name, whose extension determines the format.

    Raises:
        BadFile: The file contains no readings, or has invalid rows.
    """
    faults: list[Fault] = []
    samples = invalid = 0
    nodes: dict[str, None] = {}
    first_ms, last_ms = LAST_MS, 0
    for item in readings(file, name):
        count, low_ms, high_ms = 1, 0, 0
        if isinstance(item, ReadingColumns):
            count, low_ms, high_ms = len(item.times), min(item.times), max(item.times)
        elif isinstance(item, ImportedReading):
            low_ms = high_ms = item.time_ms
        if not isinstance(item, Fault) and not 0 <= low_ms <= high_ms < LAST_MS:
            item = Fault(item.where, "the time is not between 1970 and 9999")
        if not isinstance(item, Fault) and item.node not in nodes and len(nodes) >= MOST_NODES:
            item = Fault(item.where, f"the file has readings of more than {MOST_NODES} nodes, which is the maximum")
        if isinstance(item, Fault):
            invalid += count
            faults += [item] if len(faults) < FAULTS_SHOWN else []
            continue
        samples += count
        nodes[item.node] = None
        first_ms, last_ms = min(first_ms, low_ms), max(last_ms, high_ms)
    if invalid or not samples:
        raise BadFile(faults or [Fault("the file", "it contains no readings")], invalid or 1)
    return ImportSummary(samples, list(nodes), first_ms, last_ms)


class _NodeBatcher:
    """Assigns numbers to the readings of one node, and groups them into batches.

    Args:
        node: Name of the node.
        stored: Highest number that is stored already, or 0.
        known_units: Units by sensor, for sensors that have no unit in the file.
    """

    def __init__(self, node: str, stored: int, known_units: Mapping[str, str]) -> None:
        self.node, self._stored, self.seq = node, stored, 0
        self.units: dict[str, str] = {}
        self._known_units = known_units
        self._samples: list[Sample] = []  # single readings that are not in a batch yet

    def add(self, item: ImportedReading | ReadingColumns) -> Iterator[SampleBatch]:
        """Assign numbers to the readings of `item`, and yield the batches that are complete."""
        if isinstance(item, ReadingColumns):
            yield from self.flush()
            yield self._numbered(item)
        elif isinstance(item, ImportedReading):
            self._add_units(item.units, item.values)
            self.seq += 1
            errors = {sensor: NO_VALUE for sensor, value in item.values.items() if value is None}
            self._samples.append(Sample(self.seq, item.time_ms, 0, item.values, errors, ""))
            if len(self._samples) >= BATCH_SAMPLES:
                yield from self.flush()

    def flush(self) -> list[SampleBatch]:
        """Return the single readings that are not in a batch yet as batches."""
        samples, self._samples = self._samples, []
        return batches_of(samples)

    @property
    def new(self) -> int:
        """The number of readings that were not stored before."""
        return max(0, self.seq - self._stored)

    def _numbered(self, columns: ReadingColumns) -> SampleBatch:
        self._add_units(columns.units, columns.values)
        first, count = self.seq + 1, len(columns.times)
        self.seq += count
        errors = {
            sensor: {index: NO_VALUE for index, value in enumerate(column) if value is None}
            for sensor, column in columns.values.items()
            if None in column
        }
        return SampleBatch(first, columns.times, [0] * count, columns.values, errors)

    def _add_units(self, units: Mapping[str, str], sensors: Mapping[str, object]) -> None:
        self.units.update({sensor: units.get(sensor) or self._known_units.get(sensor, "") for sensor in sensors})


def import_readings(
    file: BinaryIO,
    name: str,
    checksum: str,
    ingestor: Ingestor,
    node: str = "",
    known_units: Mapping[str, Mapping[str, str]] = NO_UNITS,
) -> tuple[int, int]:
    """Store the readings of a file that `inspect_readings` has checked.

    Args:
        file: The open file.
        name: Its name, whose extension determines the format.
        checksum: SHA-256 of the file, in hexadecimal.
        ingestor: Ingestor that stores the readings.
        node: Node of all readings, or an empty string to use the nodes that the file names.
        known_units: Units by node and sensor, for sensors that have no unit in the file.

    Returns:
        The number of readings in the file, and the number of those that were not stored before.

    Raises:
        NotStored: The readings could not be stored completely. The same call continues after the stored readings.
    """
    epoch, waiter = checksum[:16], CommitWaiter(ingestor, ingestor.clock)
    batchers: dict[str, _NodeBatcher] = {}

    def submit(batcher: _NodeBatcher, batches: Iterable[SampleBatch]) -> None:
        for samples in batches:
            batch = Batch(batcher.node, IMPORTED, epoch, None, samples, None, dict(batcher.units))
            if not waiter.submit(batch, limit_s=STORE_S):
                raise NotStored(ingestor.fault or "the server is stopping")

    for item in readings(file, name):
        if not isinstance(item, Fault):
            of_node = node or item.node
            if of_node not in batchers:
                mark = ingestor.marks(of_node, IMPORTED, [epoch])[1].get(epoch)
                batchers[of_node] = _NodeBatcher(of_node, mark.seq if mark else 0, known_units.get(of_node, {}))
            submit(batchers[of_node], batchers[of_node].add(item))
    for batcher in batchers.values():
        submit(batcher, batcher.flush())
    if not ingestor.flush(STORE_S) or not _all_committed(waiter):
        raise NotStored(ingestor.fault or f"the readings were not stored within {STORE_S:g} s")
    return sum(batcher.seq for batcher in batchers.values()), sum(batcher.new for batcher in batchers.values())


def _all_committed(waiter: CommitWaiter) -> bool:
    try:
        return waiter.wait(STORE_S)
    except BeyondLimit as error:
        raise NotStored(str(error)) from None
    except WireError:
        return False
