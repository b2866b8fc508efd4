"""Conversion between batches of samples and rows of the table `samples`, without creating one object per sample."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import sub
from typing import Any, NamedTuple

from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.shapes import ShapeNames

COPY = 'COPY {} (time, epoch, seq, node, shape, server, clock, "values") FROM STDIN'
_NULL = r"\N"  # NULL in the text format of COPY
_BLOCK_SAMPLES = 1_000  # samples that are sent to the database together


class Placed(NamedTuple):
    """Samples to be stored, with the ids for their rows.

    Attributes:
        samples: The samples.
        epoch: Id of the epoch.
        node: Id of the node.
        shape: Id of the shape.
        server: Id of this server.
        low: Earliest time of the samples, in ms since 1970 (UTC).
        high: Latest time of the samples, in ms since 1970 (UTC).
    """

    samples: SampleBatch
    epoch: int
    node: int
    shape: int
    server: int
    low: int
    high: int


def copy_lines(placed: Placed) -> str:
    """Return the samples `placed` as input lines of COPY: numbers and JSON, which need no escaping."""
    batch, epoch, node, shape, server = placed[:5]
    values = ",".join(["%s"] * len(batch.values))
    line = f"%s\t{epoch}\t%s\t{node}\t{shape}\t{server}\t{batch.clock or _NULL}\t[{values}]\n"
    columns = batch.times, range(batch.seq, batch.last + 1), *batch.texts
    text = line * len(batch) % tuple(chain.from_iterable(zip(*columns, strict=True)))
    return text.replace("None", "null") if "None" in text else text


def copy_blocks(samples: Iterable[Placed]) -> Iterator[str]:
    """Yield the lines of all `samples` in blocks: the database processes one while the next one is prepared."""
    lines, count = [], 0
    for placed in samples:
        lines.append(copy_lines(placed))
        count += len(placed.samples)
        if count >= _BLOCK_SAMPLES:
            yield "".join(lines)
            lines, count = [], 0
    yield "".join(lines)


def int_array(numbers: Iterable[int | None]) -> str:
    """Return `numbers` as the text of an SQL array. This is faster than psycopg, which escapes each element."""
    return f"{{{repr(list(numbers))[1:-1].replace('None', 'NULL')}}}"


def storable(text: str) -> str:
    """Return an untrusted `text` without NUL characters, which PostgreSQL cannot store."""
    return text.replace("\0", "\ufffd")


# Aggregates many rows into one row of texts. Each text is parsed as one JSON list, because fetching the rows one by one
# would take most of the time. The minimum and maximum of a column show if all rows have the same value. Almost always
# they do, and then the column's list is not sent.
COLUMNS = """\
count(*), string_agg(time::text, ','), string_agg(seq::text, ','), string_agg("values"::text, ','),
min(epoch), max(epoch), min(shape), max(shape), min(clock), max(clock), count(clock),
CASE WHEN min(epoch) < max(epoch) THEN string_agg(epoch::text, ',') END,
CASE WHEN min(shape) < max(shape) THEN string_agg(shape::text, ',') END,
CASE WHEN count(clock) > 0 THEN string_agg(coalesce(clock, ''), ',') END
"""


class Page:
    """Columns of consecutive result rows of one node, in the order of the query."""

    def __init__(self, row: Sequence[Any]) -> None:
        """Parse `row`, the result of a query for COLUMNS."""
        count, times, seqs, values, epoch, last_epoch, shape, last_shape, clock, last_clock, clocks = row[:11]
        self.count: int = count
        self.epochs: list[int] = []
        if not count:
            return
        self.times = _numbers(times)
        self.seqs = _numbers(seqs)
        self.values: list[list[Any]] = json.loads(f"[{values}]")
        epochs, shapes, states = row[11:]
        self.epochs = _numbers(epochs) if epochs else [epoch] * count
        self.shapes = _numbers(shapes) if shapes else [shape] * count
        self.clocks: list[str] = states.split(",") if states else [""] * count
        self.is_uniform = (
            epoch == last_epoch and shape == last_shape and (not clocks or (clocks == count and clock == last_clock))
        )

    @property
    def last(self) -> tuple[int, int, int]:
        """Time, epoch and sequence number of the last sample."""
        return self.times[-1], self.epochs[-1], self.seqs[-1]

    def batches(self, db: Any, shapes: ShapeNames) -> Iterator[tuple[int, SampleBatch]]:
        """Yield pairs (id of the epoch, batch), ordered by the time of their first sample.

        `db` is an open connection, and `shapes` is the cache of its shapes.
        """
        if not self.count:
            return
        first = self.seqs[0]
        if self.is_uniform and self.seqs == list(range(first, first + self.count)):
            yield self.epochs[0], self._batch(db, shapes, range(self.count))
            return
        order = sorted(range(self.count), key=list(zip(self.epochs, self.seqs)).__getitem__)
        # For consecutive rows of one batch, the difference between seq and index is constant.
        keys = list(
            zip(
                [self.epochs[at] for at in order],
                [self.shapes[at] for at in order],
                [self.clocks[at] for at in order],
                map(sub, [self.seqs[at] for at in order], range(self.count)),
            )
        )
        found, start = [], 0
        for (epoch, _, _, _), same in groupby(keys):
            stop = start + sum(1 for _ in same)
            found.append((epoch, self._batch(db, shapes, order[start:stop])))
            start = stop
        found.sort(key=lambda pair: pair[1].times[0])
        yield from found

    def _batch(self, db: Any, shapes: ShapeNames, places: Sequence[int]) -> SampleBatch:
        first = places[0]
        is_complete = isinstance(places, range)
        rows = self.values if is_complete else [self.values[at] for at in places]
        names = shapes.one(db, self.shapes[first])
        return SampleBatch(
            self.seqs[first],
            self.times if is_complete else [self.times[at] for at in places],
            [],
            dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
            clock=self.clocks[first],
        )


def _numbers(text: str) -> list[int]:
    found: list[int] = json.loads(f"[{text}]")
    return found
