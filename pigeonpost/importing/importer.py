"""Import of files of readings into the store. A reading is stored once, even if its file is imported again.

The import runs in the caller's thread. A file is read twice: first to find faults, then to store the readings.
Errors: BadFile, which names the invalid rows; no reading of the file is stored then. NotStored, if the server stops or
the disk is full during the import; another import then continues after the stored readings.

A reading is identified by node, epoch and number. The epoch is derived from the SHA-256 of the file, and the numbers of
a node are consecutive. So the store recognises readings that it already has, in the same way as samples of nodes.
Readings that it has from other files are recognised by their content: see the module `repeats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pigeonpost.core.errors import BeyondLimit, NotStored, PigeonpostError, WireError
from pigeonpost.importing.cells import LAST_MS, Fault, ImportedReading, ReadingColumns, RowError
from pigeonpost.importing.options import NO_OPTIONS, ImportOptions
from pigeonpost.importing.readers import is_json, readings
from pigeonpost.importing.repeats import find_repeats
from pigeonpost.importing.survey import Plan
from pigeonpost.importing.tables import fault
from pigeonpost.importing.times import UnknownFold
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


class Inspection(NamedTuple):
    """Result of the inspection of a file.

    Attributes:
        summary: Summary of its content.
        options: Options of the user.
        plan: How a CSV file is understood; None for JSON.
        counts: Number of values, and of readings without a value, by node and sensor.
        units: Units by node and sensor.
        skipped: The first invalid rows, if they are left out.
        skipped_count: Number of all invalid rows.
    """

    summary: ImportSummary
    options: ImportOptions
    plan: Plan | None
    counts: dict[tuple[str, str], list[int]]
    units: dict[tuple[str, str], str]
    skipped: list[Fault]
    skipped_count: int


def inspect_readings(file: BinaryIO, name: str) -> ImportSummary:
    """Check a file of readings, and return a summary of its content.

    Args:
        file: The open file.
        name: Its name, whose extension determines the format.

    Raises:
        BadFile: The file contains no readings, or has invalid rows.
    """
    return inspect_file(file, name).summary


def inspect_file(file: BinaryIO, name: str, options: ImportOptions = NO_OPTIONS) -> Inspection:
    """Check a file of readings, and find out how it is to be understood.

    Args:
        file: The open file.
        name: Its name, whose extension determines the format.
        options: Options of the user.

    Returns:
        A summary of the content, with what `import_readings` needs.

    Raises:
        BadFile: The file contains no readings, or has invalid rows that are not to be left out.
    """
    plan = None
    try:
        if not is_json(name):
            plan = Plan(file, options)
        while True:
            try:
                found = _inspect(file, name, options, plan)
            except UnknownFold:
                assert plan is not None
                plan.find_folds()
                continue
            if plan is None or plan.is_whole or not found.skipped:
                break
            plan.survey(is_whole=True)
    except RowError as error:
        raise BadFile([fault(error)], 1) from None
    if (found.skipped_count and not options.skip_bad) or not found.summary.samples:
        faults = found.skipped or [Fault("the file", "it contains no readings")]
        raise BadFile(faults, max(found.skipped_count, 1))
    return found


def _inspect(file: BinaryIO, name: str, options: ImportOptions, plan: Plan | None) -> Inspection:
    faults: list[Fault] = []
    samples = invalid = 0
    nodes: dict[str, None] = {}
    counts: dict[tuple[str, str], list[int]] = {}
    units: dict[tuple[str, str], str] = {}
    first_ms, last_ms = LAST_MS, 0
    for item in readings(file, name, options, plan):
        if isinstance(item, Fault):
            invalid += 1
            faults += [item] if len(faults) < FAULTS_SHOWN else []
            continue
        if item.node not in nodes and len(nodes) >= MOST_NODES:
            raise RowError(f"{item.where}: the file has readings of more than {MOST_NODES} nodes, which is the maximum")
        times = item.times if isinstance(item, ReadingColumns) else [item.time_ms]
        count, low_ms, high_ms = len(times), min(times), max(times)
        samples += count
        nodes[item.node] = None
        _count(item, counts, units)
        first_ms, last_ms = min(first_ms, low_ms), max(last_ms, high_ms)
    summary = ImportSummary(samples, list(nodes), first_ms, last_ms)
    return Inspection(summary, options, plan, counts, units, faults, invalid)


def _count(
    item: ImportedReading | ReadingColumns,
    counts: dict[tuple[str, str], list[int]],
    units: dict[tuple[str, str], str],
) -> None:
    for sensor, values in item.values.items():
        of = counts.setdefault((item.node, sensor), [0, 0])
        units[item.node, sensor] = item.units.get(sensor, "")
        column = values if isinstance(values, list) else [values]
        missing = column.count(None)
        of[0] += len(column) - missing
        of[1] += missing


class _NodeBatcher:
    """Assigns numbers to the readings of one node, and groups them into batches.

    Args:
        node: Name of the node.
        epoch: Id of the epoch of its readings.
        stored: Highest number that is stored already, or 0.
        known_units: Units by sensor, for sensors that have no unit in the file.
    """

    def __init__(self, node: str, epoch: str, stored: int, known_units: Mapping[str, str]) -> None:
        self.node, self.epoch, self._stored, self.seq = node, epoch, stored, 0
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
    inspection: Inspection | None = None,
) -> tuple[int, int]:
    """Store the readings of a file that `inspect_file` has checked.

    Args:
        file: The open file.
        name: Its name, whose extension determines the format.
        checksum: SHA-256 of the file, in hexadecimal.
        ingestor: Ingestor that stores the readings.
        node: Node of all readings, or an empty string to use the nodes that the file names.
        known_units: Units by node and sensor, for sensors that have no unit in the file.
        inspection: Result of `inspect_file`, or None to survey the file again.

    Returns:
        The number of readings in the file, and the number of those that were not stored before.

    Raises:
        NotStored: The readings could not be stored completely. The same call continues after the stored readings.
    """
    waiter = CommitWaiter(ingestor, ingestor.clock)
    batchers: dict[str, _NodeBatcher] = {}

    def submit(batcher: _NodeBatcher, batches: Iterable[SampleBatch]) -> None:
        for samples in batches:
            batch = Batch(batcher.node, IMPORTED, batcher.epoch, None, samples, None, dict(batcher.units))
            if not waiter.submit(batch, limit_s=STORE_S):
                raise NotStored(ingestor.fault or "the server is stopping")

    inspection = inspection or inspect_file(file, name)
    summary, options, plan = inspection.summary, inspection.options, inspection.plan
    others = [  # nodes with readings in the time of the file, but not from this file
        one
        for one in ({node} if node else summary.nodes)
        if not ingestor.marks(one, IMPORTED, [checksum[:16]])[1]
        and any(True for _ in ingestor.stored_batches(one, summary.first_ms, summary.last_ms + 1))
    ]
    repeats = find_repeats(readings(file, name, options, plan) if others else (), node, others, ingestor.stored_batches)
    total = 0
    for item in readings(file, name, options, plan):
        if not isinstance(item, Fault):
            total += len(item.times) if isinstance(item, ReadingColumns) else 1
            of_node = node or item.node
            found = repeats.get(of_node)
            if of_node not in batchers:
                epoch = found.epoch(checksum) if found else checksum[:16]
                mark = ingestor.marks(of_node, IMPORTED, [epoch])[1].get(epoch)
                batchers[of_node] = _NodeBatcher(of_node, epoch, mark.seq if mark else 0, known_units.get(of_node, {}))
            for part in found.left(item) if found else (item,):
                submit(batchers[of_node], batchers[of_node].add(part))
    for batcher in batchers.values():
        submit(batcher, batcher.flush())
    if not ingestor.flush(STORE_S) or not _all_committed(waiter):
        raise NotStored(ingestor.fault or f"the readings were not stored within {STORE_S:g} s")
    return total, sum(batcher.new for batcher in batchers.values())


def _all_committed(waiter: CommitWaiter) -> bool:
    try:
        return waiter.wait(STORE_S)
    except BeyondLimit as error:
        raise NotStored(str(error)) from None
    except WireError:
        return False
