"""Reader of stored samples for an export, and writers of its rows.

Samples are read and written by column, in parts of about 10,000 to 40,000 samples. No query stays open between parts:
an open query would keep the server from truncating its WAL.
Errors: StoreDamaged for data that cannot be read, unless the caller asks to skip it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pigeonpost.core.errors import StoreDamaged
from pigeonpost.core.strict_json import write_json
from pigeonpost.link.influx_lines import NANOSECONDS, influx_lines
from pigeonpost.link.samples import Number, SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.format import cell, sample_rows, utc_times
from pigeonpost.storage.models import HOUR_MS, StoredBatch

AT_ONCE = 40_000  # maximum number of samples in a part; an hour at 10 samples per second has 36,000
VALUES_PER_SAMPLE = 8  # a sample with more values counts as several, because it takes more memory
_LEAST_LOST_S = 1.0  # shortest time range, in seconds, that is skipped as unreadable

Rows = Callable[[SampleBatch], bytes]  # returns the rows of one node's samples, all from the same hour of UTC
Units = Mapping[str, str]
Times = Callable[[Sequence[int]], list[str]]  # returns the texts of times from the same hour of UTC


class UnreadableRange(NamedTuple):
    """Time range of a node, [from_ms, to_ms), that cannot be read from a damaged store."""

    node: str
    from_ms: int
    to_ms: int


def walk(
    store: Store, node: str, from_ms: int, to_ms: int, lost: list[UnreadableRange] | None = None
) -> Iterator[tuple[int, list[SampleBatch]]]:
    """Yield all samples of a node in a time range, in parts and in the order of their times.

    The time range of a part depends on the number of samples in the previous part.

    Args:
        store: Store to read.
        node: Name of the node.
        from_ms: Start of the range in milliseconds since 1970 (UTC), inclusive.
        to_ms: End of the range in milliseconds since 1970 (UTC), exclusive.
        lost: List to which each unreadable time range is appended. For speed, a range may be a little too long. If
            None, an error is raised instead.

    Yields:
        The end of the part's time range in milliseconds since 1970, and its samples.

    Raises:
        StoreDamaged: A part cannot be read, and `lost` is None.
    """
    at_ms, width_ms, lost_ms = from_ms, HOUR_MS, 0
    while at_ms < to_ms:
        end_ms = min(to_ms, at_ms + width_ms)
        try:
            found = _read(store, node, at_ms, end_ms)
        except StoreDamaged:
            if lost is None:
                raise
            least_ms = max(int(_LEAST_LOST_S * 1000), lost_ms // 16)
            if end_ms - at_ms > least_ms:
                width_ms = max(least_ms, (end_ms - at_ms) // 4)
                continue
            _add_lost(lost, UnreadableRange(node, at_ms, end_ms))
            lost_ms += end_ms - at_ms
            at_ms, width_ms = end_ms, max(int(_LEAST_LOST_S * 1000), lost_ms // 16)
            continue
        lost_ms = 0
        if found is None:
            width_ms = max(1, (end_ms - at_ms) // 4)
            continue
        yield end_ms, _sorted_by_time(found)
        at_ms = end_ms
        if sum(map(_weight, found)) <= AT_ONCE // 4:
            width_ms *= 2


def _read(store: Store, node: str, from_ms: int, to_ms: int) -> list[StoredBatch] | None:
    """Return the samples of a time range, or None if there are too many and the range is longer than 1 ms."""
    found: list[StoredBatch] = []
    count = 0
    for stored in store.stored_batches(node, from_ms, to_ms):
        found.append(stored)
        count += _weight(stored)
        if count > AT_ONCE and to_ms - from_ms > 1:
            return None
    return found


def _weight(stored: StoredBatch) -> int:
    return len(stored.samples) * (1 + len(stored.samples.values) // VALUES_PER_SAMPLE)


def _add_lost(lost: list[UnreadableRange], span: UnreadableRange) -> None:
    """Append an unreadable time range, or extend the last one if the two are adjacent."""
    if lost and lost[-1].node == span.node and lost[-1].to_ms == span.from_ms:
        span = span._replace(from_ms=lost.pop().from_ms)
    lost.append(span)


def _sorted_by_time(found: Sequence[StoredBatch]) -> list[SampleBatch]:
    """Return samples in the order of their times. For speed, samples that are in this order already are not sorted."""
    last_ms = -(1 << 63)
    for _, _, batch in found:
        times = batch.times
        if times[0] < last_ms or times != sorted(times):
            break
        last_ms = times[-1]
    else:
        return [batch for _, _, batch in found]
    ranks = sorted(
        (time_ms, stored.epoch, stored.samples.seq + index, number, index)
        for number, stored in enumerate(found)
        for index, time_ms in enumerate(stored.samples.times)
    )
    sorted_batches: list[SampleBatch] = []
    for time_ms, _, _, number, index in ranks:
        source = found[number].samples
        last = sorted_batches[-1] if sorted_batches else None
        if last is None or (last.names, last.clock) != (source.names, source.clock):
            columns: dict[str, list[Number | None]] = {name: [] for name in source.values}
            last = SampleBatch(0, [], [], columns, clock=source.clock)
            sorted_batches.append(last)
        last.times.append(time_ms)
        for name, column in source.values.items():
            last.values[name].append(column[index])
    return sorted_batches


# -------------------------------------------------------------------------------------------------------- writing


def as_log(node: str, sensors: Sequence[str], units: Units, as_texts: Times) -> Rows:
    """Return a function that writes one CSV row per value, as in the log.

    Args:
        node: Name of the node.
        sensors: Not used.
        units: Units by sensor.
        as_texts: Function that writes times.
    """
    return lambda batch: sample_rows(node, batch, units, as_texts)


def as_table(node: str, sensors: Sequence[str], units: Units, as_texts: Times) -> Rows:
    """Return a function that writes one CSV row per sample, with a cell per sensor.

    Args:
        node: Name of the node.
        sensors: Names of the columns. The cell of a sensor that failed, or is not in the sample, is empty.
        units: Not used.
        as_texts: Function that writes times.
    """

    def rows(batch: SampleBatch) -> bytes:
        empty = [""] * len(batch)
        texts = dict(zip(batch.values, _with_none_as("", batch), strict=True))
        cells = [texts.get(name, empty) for name in sensors]
        lines = map(",".join, zip(as_texts(batch.times), [node] * len(batch), *cells))
        return ("\n".join(lines) + "\n").encode()

    return rows


def as_json(node: str, sensors: Sequence[str], units: Units, as_texts: Times) -> Rows:
    """Return a function that writes one JSON object per sample, each on its own line.

    Args:
        node: Name of the node.
        sensors: Not used.
        units: Units by sensor.
        as_texts: Not used: times are in UTC.
    """

    def rows(batch: SampleBatch) -> bytes:
        values = ",".join([f'"{name}":%s' for name in batch.values])
        named = {name: units[name] for name in batch.values if units.get(name)}
        more = f',"units":{write_json(named)}'.replace("%", "%%") if named else ""
        more += f',"clock":"{batch.clock}"' if batch.clock else ""
        template = f'{{"time":"%s","node":"{node}","values":{{{values}}}{more}}}\n'
        return "".join([template % row for row in zip(utc_times(batch.times), *_with_none_as("null", batch))]).encode()

    return rows


def _with_none_as(text: str, batch: SampleBatch) -> list[list[str]]:
    """Return the values of each column as text, with `text` for missing values."""
    return [
        [text if value == "None" else value for value in texts] if "None" in texts else texts for texts in batch.texts
    ]


def as_influx(node: str, sensors: Sequence[str], units: Units, as_texts: Times) -> Rows:
    """Return a function that writes one line of the InfluxDB line protocol per sample, without values that are missing.

    Args:
        node: Name of the node.
        sensors: Not used.
        units: Not used: the protocol has no place for them.
        as_texts: Not used: times are in nanoseconds since 1970.
    """
    return lambda batch: influx_lines(node, batch, NANOSECONDS).encode()


FORMATS: Mapping[str, Callable[[str, Sequence[str], Units, Times], Rows]] = {
    "csv": as_log, "wide": as_table, "jsonl": as_json, "excel": as_table, "influx": as_influx,
}  # fmt: skip


def only(batches: Sequence[SampleBatch], sensors: frozenset[str]) -> list[SampleBatch]:
    """Return `batches` with the readings of `sensors` only. Samples without any of these sensors are omitted."""
    found = []
    for batch in batches:
        values = {name: column for name, column in batch.values.items() if name in sensors}
        if values:
            found.append(SampleBatch(batch.seq, batch.times, batch.ups, values, clock=batch.clock))
    return found


def labelled(rows: Rows, labels: Mapping[str, str]) -> Rows:
    """Return a function that writes the rows of `as_log` with one more column, the label of the sensor.

    Args:
        rows: Function from `as_log`.
        labels: Labels by sensor.
    """

    def with_labels(batch: SampleBatch) -> bytes:
        lines = rows(batch).decode().splitlines()
        return "".join([f"{line},{cell(labels.get(line.split(',', 3)[2], ''))}\n" for line in lines]).encode()

    return with_labels
