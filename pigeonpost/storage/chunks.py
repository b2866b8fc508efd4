"""Text form of a run of samples, as a store keeps it in one row: JSON that every SQL tool reads.

`[[r, v1, v2], ...]`: a row per sample; its time is `low + k * step + r` for row k = 0, 1 ..., its values follow in the
order of the shape's names, null where a sensor failed. `step` is 0 where the samples are not regular. All samples are
of one epoch, consecutive, and have one shape and one clock state.

Both directions work by column: no statement of Python runs once per sample.
Errors: DamagedRow, ValueError and TypeError for a row that `ChunkRow.pack` never made.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Sequence
from itertools import chain, repeat
from operator import add, sub
from typing import Any, NamedTuple

from pigeonpost.link.samples import SampleBatch

_SHORT_MS = 100  # residuals below have one or two digits: no other step makes them much shorter
COLUMNS = "node, low, epoch, first, count, high, step, shape, clock, arrived, crc, data"
MARKS = ",".join("?" * len(COLUMNS.split(", ")))


class DamagedRow(ValueError):
    """A row that is not as it was written."""


class ChunkRow(NamedTuple):
    """One row of the tables `fresh` and `chunks`, without its id: the columns COLUMNS.

    node, epoch, shape  their ids
    low, high           earliest and latest time (ms since 1970): not the ends, where a clock stepped back
    first, count        seq of the first sample, and the number of samples
    step                milliseconds between two samples; 0: the residuals are counted from `low`
    clock               None: the node's own set clock; "unset" or "server"
    arrived             when its newest part was stored (ms since 1970); None: not known
    crc                 CRC-32 of all columns but node, arrived and crc (see `checksum`)
    data                the text
    """

    node: int
    low: int
    epoch: int
    first: int
    count: int  # type: ignore[assignment]  # in place of tuple's method
    high: int
    step: int
    shape: int
    clock: str | None
    arrived: int | None
    crc: int
    data: str

    @classmethod
    def pack(cls, node: int, epoch: int, shape: int, batch: SampleBatch, arrived: int | None) -> ChunkRow:
        """Return the row of a batch, which is not empty; `shape` is the id of its names."""
        low, high, step, data = pack(batch)
        clock = batch.clock or None
        crc = checksum(low, epoch, batch.seq, len(batch), high, step, shape, clock, data)
        return cls(node, low, epoch, batch.seq, len(batch), high, step, shape, clock, arrived, crc, data)

    def unpack(self, names: Sequence[str]) -> SampleBatch:
        """Return the samples; `names` are those of the shape. Raises DamagedRow where the row was changed."""
        return unpack((self,), names)

    def is_followed_by(self, other: ChunkRow) -> bool:
        """Return True if the samples of `other` come next, and are alike: both can be one batch."""
        return (
            other.first == self.first + self.count
            and other.epoch == self.epoch
            and other.shape == self.shape
            and other.clock == self.clock
        )


def checksum(
    low: int, epoch: int, first: int, count: int, high: int, step: int, shape: int, clock: str | None, data: str
) -> int:
    """Return the CRC-32 of a row: of the numbers, the clock state ("" for none) and the text, with spaces between."""
    return zlib.crc32(f"{low} {epoch} {first} {count} {high} {step} {shape} {clock or ''} {data}".encode())


def pack(batch: SampleBatch) -> tuple[int, int, int, str]:
    """Return (low, high, step, data) of a batch, which is not empty."""
    times = batch.times
    if len(times) == 1:
        low = high = times[0]
        step, residuals = 0, ["0"]
    else:
        low, high = min(times), max(times)
        step, residuals = _regular(times, low)
    data = f"[[{'],['.join(map(','.join, zip(residuals, *batch.texts, strict=True)))}]]"
    return low, high, step, data.replace("None", "null") if "None" in data else data


def _regular(times: list[int], low: int) -> tuple[int, list[str]]:
    """Return the step that makes the text of the residuals short, and their texts."""
    count = len(times)
    mean = round((times[-1] - times[0]) / (count - 1))
    residuals = _residuals(times, low, mean)
    if not -_SHORT_MS < min(residuals) <= max(residuals) < _SHORT_MS:
        middle = sorted(map(sub, times[1:], times))[(count - 1) // 2]
        others = ((step, _residuals(times, low, step)) for step in {middle, 0} - {mean})
        mean, residuals = min([(mean, residuals), *others], key=lambda found: len(repr(found[1])))
    return mean, repr(residuals)[1:-1].split(", ")


def _residuals(times: list[int], low: int, step: int) -> list[int]:
    count = len(times)
    return list(map(sub, times, range(low, low + step * count, step) if step else repeat(low, count)))


def unpack(rows: Sequence[ChunkRow], names: Sequence[str], wanted: Collection[str] | None = None) -> SampleBatch:
    """Return the samples of rows of which each is followed by the next one, as one batch.

    names   those of their shape
    wanted  only these columns, of those that there are; None: all
    """
    texts: list[str] = []
    lines: list[Iterable[int]] = []
    for _, low, epoch, first, samples, high, step, shape, clock, _, crc, data in rows:
        if checksum(low, epoch, first, samples, high, step, shape, clock, data) != crc:
            raise DamagedRow(f"{samples} samples from {first} on, of epoch {epoch}, were changed")
        texts.append(data[1:-1])
        lines.append(range(low, low + step * samples, step) if step else repeat(low, samples))
    places = [place for place, name in enumerate(names, 1) if wanted is None or name in wanted]
    text = ",".join(texts)[1:-1].replace("],[", ",")
    width, count = len(names) + 1, sum([row.count for row in rows])
    columns: list[list[Any]]
    if 2 * (len(places) + 1) > width:
        cells = json.loads(f"[{text}]")
        columns = [cells[place::width] for place in (0, *places)]
    else:  # most values are only passed over
        cells = text.split(",")
        columns = [json.loads(f"[{','.join(cells[place::width])}]") for place in (0, *places)]
    if len(cells) != width * count:
        raise ValueError(f"{len(cells)} numbers where {count} samples of {width - 1} values should be")
    times = list(map(add, columns[0], chain.from_iterable(lines)))
    values = {names[place - 1]: column for place, column in zip(places, columns[1:], strict=True)}
    return SampleBatch(rows[0].first, times, [], values, clock=rows[0].clock or "")
