"""Conversion between a batch of samples and the JSON text that a store keeps in one row.

The text is `[[r, v1, v2], ...]`, with one inner array per sample. The residual r is the difference between the sample's
time and a regular series: the time of sample k (0, 1, ...) is `low + k * step + r`. The values v1, v2, ... are in the
order of the shape's channel names, with null where a sensor failed. `step` is 0 if the samples are not at regular
intervals. All samples of a row are consecutive, belong to one epoch, and have the same shape and clock state. Every SQL
tool can read the text, because it is JSON.

Both directions convert column by column. No Python statement runs once per sample, because that would take most of the
time. Errors: DamagedRow, ValueError or TypeError for a row that `ChunkRow.pack` did not produce.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Sequence
from itertools import chain, repeat
from operator import add, sub
from typing import Any, NamedTuple

from pigeonpost.link.samples import SampleBatch

_SHORT_MS = 100  # smaller residuals have one or two digits: another step would hardly shorten them
COLUMNS = "node, low, epoch, first, count, high, step, shape, clock, arrived, crc, data"
MARKS = ",".join("?" * len(COLUMNS.split(", ")))  # SQL placeholders for COLUMNS


class DamagedRow(ValueError):
    """A row whose content differs from what was written."""


class ChunkRow(NamedTuple):
    """One row of the tables `fresh` and `chunks`, without its id: the columns in COLUMNS.

    Attributes:
        node: Id of the node.
        low: Earliest time of a sample, in ms since 1970 (UTC): that of the first sample, unless the clock stepped.
        epoch: Id of the epoch.
        first: Sequence number of the first sample.
        count: Number of samples.
        high: Latest time of a sample, in ms since 1970 (UTC): that of the last sample, unless the clock stepped.
        step: Regular interval of the samples in ms; 0 if all residuals are relative to `low`.
        shape: Id of the shape.
        clock: "unset" or "server"; None if the times are those of the node's own clock, which was set.
        arrived: Time at which the newest part of the row was stored, in ms since 1970 (UTC); None if it is unknown.
        crc: CRC-32 of all columns except `node`, `arrived` and `crc` (see `checksum`).
        data: Text of the residuals and values.
    """

    node: int
    low: int
    epoch: int
    first: int
    count: int  # type: ignore[assignment]  # replaces the method of tuple
    high: int
    step: int
    shape: int
    clock: str | None
    arrived: int | None
    crc: int
    data: str

    @classmethod
    def pack(cls, node: int, epoch: int, shape: int, batch: SampleBatch, arrived: int | None) -> ChunkRow:
        """Return the row of a batch.

        Args:
            node: Id of the node.
            epoch: Id of the epoch.
            shape: Id of the shape: the names of the batch's channels.
            batch: The samples, at least one.
            arrived: Time at which they were stored, in ms since 1970 (UTC); None if it is unknown.
        """
        low, high, step, data = pack(batch)
        clock = batch.clock or None
        crc = checksum(low, epoch, batch.seq, len(batch), high, step, shape, clock, data)
        return cls(node, low, epoch, batch.seq, len(batch), high, step, shape, clock, arrived, crc, data)

    def unpack(self, names: Sequence[str]) -> SampleBatch:
        """Return the samples of the row. `names` are the channels of its shape.

        Raises:
            DamagedRow: The row was changed.
        """
        return unpack((self,), names)

    def is_followed_by(self, other: ChunkRow) -> bool:
        """Return True if the samples of `other` directly follow those of this row and both fit in one batch."""
        return (
            other.first == self.first + self.count
            and other.epoch == self.epoch
            and other.shape == self.shape
            and other.clock == self.clock
        )


def checksum(
    low: int, epoch: int, first: int, count: int, high: int, step: int, shape: int, clock: str | None, data: str
) -> int:
    """Return the CRC-32 of a row.

    It is calculated over `low`, `epoch`, `first`, `count`, `high`, `step`, `shape`, `clock` (empty for None) and
    `data`, as text separated by spaces.
    """
    return zlib.crc32(f"{low} {epoch} {first} {count} {high} {step} {shape} {clock or ''} {data}".encode())


def pack(batch: SampleBatch) -> tuple[int, int, int, str]:
    """Return the columns (low, high, step, data) of a ChunkRow for `batch`, which has at least one sample."""
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
    """Return the step that makes the text of the residuals shortest, and the residuals as texts."""
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
    """Return the samples of consecutive rows as one batch.

    Args:
        rows: The rows. Each one must be followed by the next one (see `ChunkRow.is_followed_by`).
        names: Channels of the shape of all rows.
        wanted: Channels to return, if the shape has them; None for all channels.

    Raises:
        DamagedRow: A row was changed.
        ValueError: The number of values does not match the number of samples.
    """
    texts: list[str] = []
    bases: list[Iterable[int]] = []
    for _, low, epoch, first, samples, high, step, shape, clock, _, crc, data in rows:
        if checksum(low, epoch, first, samples, high, step, shape, clock, data) != crc:
            raise DamagedRow(f"{samples} samples of epoch {epoch}, from {first} on, were changed")
        texts.append(data[1:-1])
        bases.append(range(low, low + step * samples, step) if step else repeat(low, samples))
    places = [place for place, name in enumerate(names, 1) if wanted is None or name in wanted]
    text = ",".join(texts)[1:-1].replace("],[", ",")
    width, count = len(names) + 1, sum([row.count for row in rows])
    columns: list[list[Any]]
    if 2 * (len(places) + 1) > width:
        cells = json.loads(f"[{text}]")
        columns = [cells[place::width] for place in (0, *places)]
    else:  # most values are not requested: splitting the text is faster than parsing all of it
        cells = text.split(",")
        columns = [json.loads(f"[{','.join(cells[place::width])}]") for place in (0, *places)]
    if len(cells) != width * count:
        raise ValueError(
            f"the row contains {len(cells)} numbers, which do not match {count} samples with {width - 1} values each"
        )
    times = list(map(add, columns[0], chain.from_iterable(bases)))
    values = {names[place - 1]: column for place, column in zip(places, columns[1:], strict=True)}
    return SampleBatch(rows[0].first, times, [], values, clock=rows[0].clock or "")
