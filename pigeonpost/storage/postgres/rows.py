"""Rows of the table `samples` from columns, and columns from rows; nothing here makes an object for each sample."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import sub
from typing import Any, NamedTuple

from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.shapes import ShapeNames

COPY = 'COPY {} (time, epoch, seq, node, shape, server, clock, "values") FROM STDIN'
_NULL = r"\N"  # as COPY writes it
_BLOCK_SAMPLES = 1_000  # that are sent to the database together


class Placed(NamedTuple):
    """Samples to be stored, with the numbers that their rows have of epoch, node, shape and server; and the least and
    the greatest of their times."""

    samples: SampleBatch
    epoch: int
    node: int
    shape: int
    server: int
    low: int
    high: int


def copy_lines(placed: Placed) -> str:
    """Return samples as lines of COPY: numbers and JSON punctuation, in which nothing needs to be escaped."""
    batch, epoch, node, shape, server = placed[:5]
    values = ",".join(["%s"] * len(batch.values))
    line = f"%s\t{epoch}\t%s\t{node}\t{shape}\t{server}\t{batch.clock or _NULL}\t[{values}]\n"
    columns = batch.times, range(batch.seq, batch.last + 1), *batch.texts
    text = line * len(batch) % tuple(chain.from_iterable(zip(*columns, strict=True)))
    return text.replace("None", "null") if "None" in text else text


def copy_blocks(samples: Iterable[Placed]) -> Iterator[str]:
    """Yield the lines of all samples, in blocks: the database works on one while the next is made."""
    lines, count = [], 0
    for placed in samples:
        lines.append(copy_lines(placed))
        count += len(placed.samples)
        if count >= _BLOCK_SAMPLES:
            yield "".join(lines)
            lines, count = [], 0
    yield "".join(lines)


def int_array(numbers: Iterable[int | None]) -> str:
    """Return numbers as the text of an array: psycopg looks at each of them for characters to be escaped."""
    return f"{{{repr(list(numbers))[1:-1].replace('None', 'NULL')}}}"


def storable(text: str) -> str:
    """Return an untrusted text as PostgreSQL can store it: without NUL."""
    return text.replace("\0", "\ufffd")


# Many rows in the texts of one, of which JSON makes lists at once: fetching them one by one takes longer than all else.
# Rows that are alike, as nearly all are, say so by the least and the greatest of each column.
COLUMNS = """\
count(*), string_agg(time::text, ','), string_agg(seq::text, ','), string_agg("values"::text, ','),
min(epoch), max(epoch), min(shape), max(shape), min(clock), max(clock), count(clock),
CASE WHEN min(epoch) < max(epoch) THEN string_agg(epoch::text, ',') END,
CASE WHEN min(shape) < max(shape) THEN string_agg(shape::text, ',') END,
CASE WHEN count(clock) > 0 THEN string_agg(coalesce(clock, ''), ',') END
"""


class Page:
    """Rows of samples of one node, by column, in the order in which they were asked for."""

    def __init__(self, row: Sequence[Any]) -> None:
        """row: what a query for COLUMNS returned"""
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
        self.is_alike = (
            epoch == last_epoch and shape == last_shape and (not clocks or (clocks == count and clock == last_clock))
        )

    @property
    def last(self) -> tuple[int, int, int]:
        """Time, epoch and seq of the last one."""
        return self.times[-1], self.epochs[-1], self.seqs[-1]

    def batches(self, db: Any, shapes: ShapeNames) -> Iterator[tuple[int, SampleBatch]]:
        """Yield the samples as batches, each with the number of its epoch, in the order of their first times.

        db  an open connection, for the names of shapes
        """
        if not self.count:
            return
        first = self.seqs[0]
        if self.is_alike and self.seqs == list(range(first, first + self.count)):
            yield self.epochs[0], self._batch(db, shapes, range(self.count))
            return
        order = sorted(range(self.count), key=list(zip(self.epochs, self.seqs)).__getitem__)
        # Of rows that are alike and follow each other, seq less place is the same.
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
        found.sort(key=lambda one: one[1].times[0])
        yield from found

    def _batch(self, db: Any, shapes: ShapeNames, places: Sequence[int]) -> SampleBatch:
        first = places[0]
        whole = isinstance(places, range)
        rows = self.values if whole else [self.values[at] for at in places]
        names = shapes.one(db, self.shapes[first])
        return SampleBatch(
            self.seqs[first],
            self.times if whole else [self.times[at] for at in places],
            [],
            dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
            clock=self.clocks[first],
        )


def _numbers(text: str) -> list[int]:
    found: list[int] = json.loads(f"[{text}]")
    return found
