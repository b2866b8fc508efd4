"""Readings of a file that the store has already from elsewhere: from another file, or from the node itself.

People import a log again that has grown, or a download that overlaps the last one. Such a file has another checksum, so
its readings are compared with those in the store. A value is stored already if the node has a value of the same sensor
with the same time (in milliseconds) that is equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import compress

from pigeonpost.importing.cells import Fault, ImportedReading, ReadingColumns
from pigeonpost.storage.models import StoredBatch
from protocol import BATCH_SAMPLES, Number, Values

# Function that returns the stored samples of a node in [from_ms, to_ms). Its arguments are node, from_ms and to_ms.
StoredOf = Callable[[str, int, int], Iterable[StoredBatch]]

_ABSENT, _STORED, _PARTLY = 0, 1, 2


class Repeats:
    """Tells which readings of one node are in the store. The readings are added in the order of the file.

    Args:
        node: Name of the node.
        stored_of: Reads samples from the store.
    """

    def __init__(self, node: str, stored_of: StoredOf) -> None:
        self._node, self._stored_of = node, stored_of
        self._states = bytearray()  # one of the constants for each reading
        self._sensors: dict[int, list[str]] = {}  # those that are not stored, by the index of the reading
        self._single: list[ImportedReading] = []
        self._next = 0

    def add(self, item: ImportedReading | ReadingColumns) -> None:
        """Compare the next readings with the store.

        Args:
            item: The readings.
        """
        if isinstance(item, ReadingColumns):
            self.end()
            rows: list[Values] = [dict(zip(item.values, row)) for row in zip(*item.values.values())]
            self._compare(item.times, rows)
            return
        self._single.append(item)
        if len(self._single) >= BATCH_SAMPLES:
            self.end()

    def end(self) -> None:
        """Compare the readings that were not compared yet."""
        single, self._single = self._single, []
        if single:
            self._compare([one.time_ms for one in single], [one.values for one in single])

    def epoch(self, checksum: str) -> str:
        """Return the id of the epoch of the readings that are not stored.

        It depends on which readings these are, because they are numbered without the others.

        Args:
            checksum: SHA-256 of the file, in hexadecimal.
        """
        if not any(self._states):
            return checksum[:16]
        parts = hashlib.sha256(checksum.encode() + bytes(self._states))
        parts.update(repr(sorted(self._sensors.items())).encode())
        return parts.hexdigest()[:16]

    def left(self, item: ImportedReading | ReadingColumns) -> Iterator[ImportedReading | ReadingColumns]:
        """Yield the part of the next readings that is not stored. Call it after all readings were added.

        Args:
            item: The readings, in the same order as for `add`.
        """
        first = self._next
        if isinstance(item, ImportedReading):
            self._next += 1
            if state := self._states[first]:
                if state == _STORED:
                    return
                item = item._replace(values={name: item.values[name] for name in self._sensors[first]})
            yield item
            return
        self._next += len(item.times)
        states = self._states[first : self._next]
        if not any(states):
            yield item
            return
        absent = [state == _ABSENT for state in states]
        if any(absent):
            values = {name: list(compress(column, absent)) for name, column in item.values.items()}
            yield item._replace(times=list(compress(item.times, absent)), values=values)
        for index, state in enumerate(states):
            if state == _PARTLY:
                found: Values = {name: item.values[name][index] for name in self._sensors[first + index]}
                yield ImportedReading(item.where, item.node, item.times[index], found, item.units)

    def _compare(self, times: list[int], rows: list[Values]) -> None:
        wanted, names = set(times), set().union(*rows)
        known: set[tuple[int, str, Number | None]] = set()
        for batch in self._stored_of(self._node, min(times), max(times) + 1):
            samples = batch.samples
            at = [index for index, time_ms in enumerate(samples.times) if time_ms in wanted]
            for name in names & set(samples.values) if at else ():
                column = samples.values[name]
                known.update((samples.times[index], name, column[index]) for index in at)
        for time_ms, values in zip(times, rows):
            absent = [name for name, value in values.items() if (time_ms, name, value) not in known]
            if absent and len(absent) < len(values):
                self._sensors[len(self._states)] = absent
                self._states.append(_PARTLY)
            else:
                self._states.append(_ABSENT if absent else _STORED)


def find_repeats(
    items: Iterable[ImportedReading | ReadingColumns | Fault], node: str, nodes: Iterable[str], stored_of: StoredOf
) -> dict[str, Repeats]:
    """Compare the readings of a file with the store.

    Args:
        items: All readings of the file.
        node: Node of all readings, or an empty string to use the nodes that the file names.
        nodes: Names of the nodes whose readings are compared.
        stored_of: Reads samples from the store.

    Returns:
        The result for each of `nodes`.
    """
    found = {name: Repeats(name, stored_of) for name in nodes}
    for item in items if found else ():
        if not isinstance(item, Fault) and (of_node := node or item.node) in found:
            found[of_node].add(item)
    for repeats in found.values():
        repeats.end()
    return found
