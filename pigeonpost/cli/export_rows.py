"""Reading of what is stored for an export, some at a time, and the text of its rows.

Samples are read and written by column, some ten thousand at a time however many there are, and no query stays open
meanwhile, which would keep the server from truncating its WAL.
Errors: StoreDamaged for what cannot be read, where the caller does not ask for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import StoreDamaged
from pigeonpost.core.strict_json import write_json
from pigeonpost.link.samples import Number, SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.format import cell, local_times, log_rows
from pigeonpost.storage.models import HOUR_MS, StoredBatch

AT_ONCE = 40_000  # samples that are read together at most; an hour of ten a second has 36,000
VALUES_PER_SAMPLE = 8  # samples with more count as several, since they take more memory
_LEAST_LOST_S = 1.0  # of a span that cannot be read

Rows = Callable[[SampleBatch], bytes]  # makes the rows of samples of one node, taken in one hour of UTC
Units = Mapping[str, str]


class LostSpan(NamedTuple):
    """Time range of a node [from_ms, to_ms) that a damaged store cannot read."""

    node: str
    from_ms: int
    to_ms: int


def walk(
    store: Store, node: str, from_ms: int, to_ms: int, lost: list[LostSpan] | None = None
) -> Iterator[tuple[int, list[SampleBatch]]]:
    """Yield all samples of `node` taken in [from_ms, to_ms) in the order of their times, some at a time: up to when
    they go, and they.

    How long a span is asked for follows from how many samples the last one had.

    lost: gets each span that a damaged store cannot read: a little longer than it is, for speed
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
            _add_lost(lost, LostSpan(node, at_ms, end_ms))
            lost_ms += end_ms - at_ms
            at_ms, width_ms = end_ms, max(int(_LEAST_LOST_S * 1000), lost_ms // 16)
            continue
        lost_ms = 0
        if found is None:
            width_ms = max(1, (end_ms - at_ms) // 4)
            continue
        yield end_ms, _in_order_of_times(found)
        at_ms = end_ms
        if sum(map(_weight, found)) <= AT_ONCE // 4:
            width_ms *= 2


def _read(store: Store, node: str, from_ms: int, to_ms: int) -> list[StoredBatch] | None:
    """Return what was taken in a span; None where it is too much, unless it is of one millisecond."""
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


def _add_lost(lost: list[LostSpan], span: LostSpan) -> None:
    """Note a span that cannot be read, as one with the last where it goes on there."""
    if lost and lost[-1].node == span.node and lost[-1].to_ms == span.from_ms:
        span = span._replace(from_ms=lost.pop().from_ms)
    lost.append(span)


def _in_order_of_times(found: Sequence[StoredBatch]) -> list[SampleBatch]:
    """Return the samples in the order of their times: as they are, unless times of batches overlap, or fall."""
    last_ms = -(1 << 63)
    for _, _, batch in found:
        times = batch.times
        if times[0] < last_ms or times != sorted(times):
            break
        last_ms = times[-1]
    else:
        return [batch for _, _, batch in found]
    ranks = sorted(
        (time_ms, stored.epoch, stored.samples.seq + place, number, place)
        for number, stored in enumerate(found)
        for place, time_ms in enumerate(stored.samples.times)
    )
    sorted_batches: list[SampleBatch] = []
    for time_ms, _, _, number, place in ranks:
        source = found[number].samples
        last = sorted_batches[-1] if sorted_batches else None
        if last is None or (last.names, last.clock) != (source.names, source.clock):
            columns: dict[str, list[Number | None]] = {name: [] for name in source.values}
            last = SampleBatch(0, [], [], columns, clock=source.clock)
            sorted_batches.append(last)
        last.times.append(time_ms)
        for name, column in source.values.items():
            last.values[name].append(column[place])
    return sorted_batches


# -------------------------------------------------------------------------------------------------------- writing


def as_log(node: str, sensors: Sequence[str], units: Units) -> Rows:
    """Make rows as the log has them: one per value."""
    return lambda batch: log_rows(node, "", batch, units, 0)


def as_table(node: str, sensors: Sequence[str], units: Units) -> Rows:
    """Make one row per sample, with a cell for each of `sensors`; empty where it failed, or was not there."""

    def rows(batch: SampleBatch) -> bytes:
        nothing = [""] * len(batch)
        texts = dict(zip(batch.values, _with_none_as("", batch), strict=True))
        cells = [texts.get(name, nothing) for name in sensors]
        lines = map(",".join, zip(local_times(batch.times), [node] * len(batch), *cells))
        return ("\n".join(lines) + "\n").encode()

    return rows


def as_json(node: str, sensors: Sequence[str], units: Units) -> Rows:
    """Make one line per sample: a JSON object."""

    def rows(batch: SampleBatch) -> bytes:
        values = ",".join([f'"{name}":%s' for name in batch.values])
        named = {name: units[name] for name in batch.values if units.get(name)}
        more = f',"units":{write_json(named)}'.replace("%", "%%") if named else ""
        more += f',"clock":"{batch.clock}"' if batch.clock else ""
        template = f'{{"time":"%s","node":"{node}","values":{{{values}}}{more}}}\n'
        return "".join([template % row for row in zip(utc_times(batch.times), *_with_none_as("null", batch))]).encode()

    return rows


def _with_none_as(text: str, batch: SampleBatch) -> list[list[str]]:
    """Return the values of each column as text."""
    return [
        [text if value == "None" else value for value in texts] if "None" in texts else texts for texts in batch.texts
    ]


def utc_times(times: Sequence[int]) -> list[str]:
    """Return times that lie in one hour, as RFC 3339 in UTC."""
    start_ms = times[0] // HOUR_MS * HOUR_MS
    head = rfc3339(start_ms)[:14]
    return [f"{head}{(ms := time_ms - start_ms) // 60_000:02d}:{ms % 60_000 / 1000:06.3f}Z" for time_ms in times]


FORMATS: Mapping[str, Callable[[str, Sequence[str], Units], Rows]] = {
    "csv": as_log, "wide": as_table, "jsonl": as_json, "excel": as_table,
}  # fmt: skip


def only(batches: Sequence[SampleBatch], sensors: frozenset[str]) -> list[SampleBatch]:
    """Return of each sample only those sensors; samples that have none of them are left out."""
    found = []
    for batch in batches:
        values = {name: column for name, column in batch.values.items() if name in sensors}
        if values:
            found.append(SampleBatch(batch.seq, batch.times, batch.ups, values, clock=batch.clock))
    return found


def labelled(rows: Rows, labels: Mapping[str, str]) -> Rows:
    """Return what makes the rows of `as_log` with the label of each sensor in one more column."""

    def with_labels(batch: SampleBatch) -> bytes:
        lines = rows(batch).decode().splitlines()
        return "".join([f"{line},{cell(labels.get(line.split(',', 3)[2], ''))}\n" for line in lines]).encode()

    return with_labels
