"""Store in memory for tests that need thousands of stores: the complete contract except durability and threads.

A transaction copies only the marks and tops that it changes. If it fails, lists are truncated to their old length.
`backup` and `restored` correspond to `cp -a` of a data folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pigeonpost.core.errors import NotStored
from pigeonpost.link.samples import Number, SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.maintenance import rollup
from pigeonpost.storage.models import (
    SPANS_MS,
    Bucket,
    EpochCommit,
    EpochMark,
    FormerName,
    HighWaterMark,
    LogEntry,
    LogMark,
    NodeRecords,
    NodeUsage,
    Rollup,
    StoredBatch,
    StoredSample,
    Window,
    is_late,
    merge_rollups,
    whole_hours,
    window_end,
)
from protocol import Gap, Sample


def _as_batch(point: StoredSample) -> StoredBatch:
    values: dict[str, list[Number | None]] = {name: [value] for name, value in point.values.items()}
    return StoredBatch(point.node, point.epoch, SampleBatch(point.seq, [point.time_ms], [], values, clock=point.clock))


class MemoryStore(Store):
    def __init__(self, identity: str | None = None) -> None:
        self.identity = identity or os.urandom(8).hex()
        self.epochs: dict[tuple[str, str], HighWaterMark] = {}
        self.tops: dict[tuple[str, str], int] = {}
        self.outboxes: dict[tuple[str, str], str] = {}
        self.samples: list[tuple[str, str, Sample]] = []
        self.gap_rows: list[tuple[str, str, Gap, int]] = []
        self.units: dict[str, dict[str, str]] = {}
        self.epoch_commits: list[tuple[int, str, str, SampleBatch | Gap, int]] = []
        self.last_filed = 0
        self.logs: list[LogMark] = []
        self.full = False
        # (node, span, end) of each dirty window, with the last filing number that was added to it
        self.windows: dict[tuple[str, int, int], int] = {}
        self.summed: dict[tuple[str, int, int], dict[str, Rollup]] = {}
        self.kept_from: dict[str, int] = {}
        self.expired: dict[tuple[str, str], int] = {}
        self.records = NodeRecords()
        self._staged: list[Any] = []

    # --------------------------------------------------------------------------------------- writing

    @contextmanager
    def writing(self, epochs: Iterable[tuple[str, str]]) -> Iterator[Mapping[tuple[str, str], HighWaterMark]]:
        self._staged = []
        try:
            yield {key: self.epochs[key] for key in epochs if key in self.epochs}
            if self.full and self._staged:
                raise NotStored("the disk is full")
            for epoch_commits, noted_ms, log in self._staged:
                self._apply(epoch_commits, noted_ms, log)
        finally:
            self._staged = []

    def put(self, epoch_commits: Sequence[EpochCommit], noted_ms: int, log: LogMark | None) -> int:
        self._staged.append((epoch_commits, noted_ms, log))
        return self.last_filed + sum(len(epoch_commit.items) for epoch_commit in epoch_commits)

    def _apply(self, epoch_commits: Sequence[EpochCommit], noted_ms: int, log: LogMark | None) -> None:
        for epoch_commit in epoch_commits:
            key = epoch_commit.node, epoch_commit.epoch
            self.epochs[key] = epoch_commit.mark
            if epoch_commit.top:
                self.outboxes[key] = epoch_commit.outbox
                outbox = epoch_commit.node, epoch_commit.outbox
                self.tops[outbox] = max(epoch_commit.top, self.tops.get(outbox, 0))
            self.units.setdefault(epoch_commit.node, {}).update(epoch_commit.units)
            for item in epoch_commit.items:
                self.last_filed += 1
                self.epoch_commits.append((self.last_filed, *key, item, noted_ms))
                if isinstance(item, Gap):
                    self.gap_rows.append((*key, item, noted_ms))
                else:
                    self.samples += [(*key, sample) for sample in item]
                    self._touch(epoch_commit.node, {sample.time_ms for sample in item})
        if log is not None:
            self.logs = [other for other in self.logs if other.name != log.name] + [log]
            self.epoch_commits = [entry for entry in self.epoch_commits if entry[0] > log.filed]

    def _touch(self, node: str, times: Iterable[int]) -> None:
        for time_ms in times:
            for span in SPANS_MS:
                self.windows[node, span, window_end(time_ms, span)] = self.last_filed

    def replace_rollups(self, window: Window, summaries: Mapping[str, Rollup]) -> None:
        if window.node not in {node for node, _ in self.epochs}:
            return
        key = window.node, window.span_ms, window.end_ms
        self.summed[key] = dict(summaries)
        if self.windows.get(key, 0) <= window.as_of:
            self.windows.pop(key, None)

    def merge_late_rollups(self, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]) -> bool:
        if window.node not in {node for node, _ in self.epochs}:
            return False
        start, end = window.end_ms - window.span_ms, window.end_ms
        keys = [key for key in self.windows if key[0] == window.node and start < key[2] <= end]
        if self._owes(window.node, start, end) or any(self.windows[key] > window.as_of for key in keys):
            return False
        for span, by_sensor in parts.items():
            for sensor, found in by_sensor.items():
                for part in found:
                    known = self.summed.setdefault((window.node, span, part.end_ms), {})
                    known[sensor] = merge_rollups(known[sensor], part) if sensor in known else part
        self._delete([e for e in self.samples if e[0] == window.node and start <= e[2].time_ms < end])
        for key in keys:
            del self.windows[key]
        return True

    def _owes(self, node: str, start: int, end: int) -> bool:
        return any(
            entry[1] == node and isinstance(entry[3], SampleBatch)
            and any(start <= sample.time_ms < end for sample in entry[3])
            for entry in self.epoch_commits
        )  # fmt: skip

    def delete_expired(self, before_ms: int, most: int) -> int:
        owed = [s.time_ms for e in self.epoch_commits if isinstance(e[3], SampleBatch) for s in e[3]]
        gone = 0
        for node in sorted({node for node, _ in self.epochs}):
            dirty_windows = [end - span for name, span, end in self.windows if name == node]
            until = min([before_ms, *owed, *dirty_windows]) // SPANS_MS[-1] * SPANS_MS[-1]
            times = sorted(e[2].time_ms for e in self.samples if e[0] == node and e[2].time_ms < until)[: most - gone]
            if not times or gone >= most:
                continue
            if len(times) == most - gone:
                until = whole_hours(times[0], times[-1])
            mine = [e for e in self.samples if e[0] == node and e[2].time_ms < until]
            self.kept_from[node] = max(until, self.kept_from.get(node, 0))
            self._delete(mine)
            gone += len(mine)
        return gone

    def _delete(self, entries: Sequence[tuple[str, str, Sample]]) -> None:
        doomed = {id(entry) for entry in entries}
        self.samples = [entry for entry in self.samples if id(entry) not in doomed]
        for node, epoch, _ in entries:
            self.expired[node, epoch] = self.expired.get((node, epoch), 0) + 1

    def rename(self, node: str, new: str, now_ms: int) -> None:
        self._require(node)
        if any(new == known for known, _ in self.epochs):
            raise ValueError(f"data is already stored for a node named {new}")

        def key(old: tuple[Any, ...]) -> Any:
            return (new if old[0] == node else old[0], *old[1:])

        for name in ("epochs", "tops", "outboxes", "windows", "summed", "expired"):
            setattr(self, name, {key(old): value for old, value in getattr(self, name).items()})
        for name in ("units", "kept_from"):
            setattr(self, name, {key((old,))[0]: value for old, value in getattr(self, name).items()})
        self.samples, self.gap_rows = list(map(key, self.samples)), list(map(key, self.gap_rows))
        self.epoch_commits = [(entry[0], *key(entry[1:])) for entry in self.epoch_commits]
        former, retired, labels = self.records
        former = [
            FormerName(one.name, *key(one[1:3]), one.is_released or one.name == node)
            for one in former if (one.name, one.node) != (new, node)
        ]  # fmt: skip
        self.records = NodeRecords(
            [*former, FormerName(node, new, now_ms)],
            {key((old,))[0]: at_ms for old, at_ms in retired.items()},
            {key(old): label for old, label in labels.items()},
        )

    def release(self, name: str) -> None:
        former = [one._replace(is_released=one.is_released or one.name == name) for one in self.records.former]
        self.records = self.records._replace(former=former)

    def retire(self, node: str, at_ms: int | None) -> None:
        self._require(node)
        rest = {name: at for name, at in self.records.retired.items() if name != node}
        self.records = self.records._replace(retired=rest | ({node: at_ms} if at_ms is not None else {}))

    def relabel(self, node: str, sensor: str, label: str) -> None:
        self._require(node)
        rest = {key: text for key, text in self.records.labels.items() if key != (node, sensor)}
        self.records = self.records._replace(labels=rest | ({(node, sensor): label} if label else {}))

    def _require(self, node: str) -> None:
        if not any(node == known for known, _ in self.epochs):
            raise LookupError(f"nothing is stored for a node {node}")

    def node_records(self) -> NodeRecords:
        known = {node for node, _ in self.epochs}
        former = [one._replace(is_released=one.is_released or one.name in known) for one in self.records.former]
        return self.records._replace(former=former)

    def close(self) -> None:
        pass

    def backup(self) -> MemoryStore:
        """Return a copy of the present state."""
        copy = MemoryStore(self.identity)
        copy.epochs, copy.tops, copy.samples = dict(self.epochs), dict(self.tops), list(self.samples)
        copy.gap_rows, copy.epoch_commits, copy.logs = list(self.gap_rows), list(self.epoch_commits), list(self.logs)
        copy.units = {node: dict(units) for node, units in self.units.items()}
        copy.last_filed, copy.outboxes = self.last_filed, dict(self.outboxes)
        copy.windows, copy.kept_from, copy.expired = dict(self.windows), dict(self.kept_from), dict(self.expired)
        copy.summed = {key: dict(found) for key, found in self.summed.items()}
        return copy

    # --------------------------------------------------------------------------------------- reading

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, HighWaterMark]]:
        known = {epoch: self.epochs[node, epoch] for epoch in epochs if (node, epoch) in self.epochs}
        return self.tops.get((node, outbox), 0), known

    def epoch_marks(self) -> dict[tuple[str, str], EpochMark]:
        return {key: EpochMark(mark.seq, self.outboxes.get(key, "")) for key, mark in self.epochs.items()}

    def batches_of_epoch(self, node: str, epoch: str, after: int, most: int) -> list[StoredBatch]:
        found = [point for point in self._points() if (point.node, point.epoch) == (node, epoch) and point.seq > after]
        return list(map(_as_batch, sorted(found, key=lambda point: point.seq)[:most]))

    def usage(self, node: str) -> NodeUsage:
        gaps = [gap for name, _, gap, _ in self.gap_rows if name == node]
        missing = sum(gap.last - gap.first + 1 + gap.before for gap in gaps)
        return NodeUsage(
            len({name for name, _ in self.epochs}), sum(name == node for name, _ in self.epochs), len(gaps), missing
        )

    def channels(self, node: str, most: int) -> set[str]:
        return set(sorted(self.units.get(node, ()))[:most])

    def log_mark(self) -> LogMark | None:
        return self.logs[-1] if self.logs else None

    def logged_after(self, filed: int) -> Iterator[LogEntry]:
        for number, node, epoch, item, noted_ms in self.epoch_commits:
            if number > filed:
                yield LogEntry(number, node, epoch, [item], noted_ms, self.units.get(node, {}))

    def nodes(self) -> list[dict[str, Any]]:
        found = []
        for name in sorted({node for node, _ in self.epochs}):
            times = [sample.time_ms for node, _, sample in self.samples if node == name]
            gaps = [gap for node, _, gap, _ in self.gap_rows if node == name]
            found.append({
                "name": name,
                "samples": len(times) + sum(n for key, n in self.expired.items() if key[0] == name),
                "forgotten": sum(n for key, n in self.expired.items() if key[0] == name),
                "kept_from_ms": self.kept_from.get(name, 0),
                "missing": sum(g.last - g.first + 1 + g.before for g in gaps),
                "first_ms": min(times, default=None), "last_ms": max(times, default=None),
                "sensors": dict(sorted(self.units.get(name, {}).items())),
            })  # fmt: skip
        return found

    def points(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[StoredSample]:
        found = [point for point in self._points() if point.node == node and from_ms <= point.time_ms < to_ms]
        return found if limit < 0 else found[-limit:]

    def downsample(self, node: str, sensor: str, from_ms: int, to_ms: int, count: int) -> list[Bucket]:
        """Downsample the stored samples only, without the rollups of expired ones."""
        places: dict[int, list[Any]] = {}
        for point in self.points(node, from_ms, to_ms, 1 << 60):
            if point.values.get(sensor) is not None:
                place = (point.time_ms - from_ms) * count // (to_ms - from_ms)
                places.setdefault(place, []).append(point.values[sensor])
        return [Bucket(p, len(v), min(v), max(v), rollup(v, 0).mean) for p, v in sorted(places.items())]

    def dirty_windows(self, before_ms: int, most: int) -> list[Window]:
        found = [
            Window(node, span, end, self.last_filed, is_late(end, self.kept_from.get(node, 0)))
            for node, span, end in self.windows
            if end < before_ms
        ]
        return found[:most]

    def dirty_ends(self, node: str, span_ms: int, from_ms: int, to_ms: int) -> list[int]:
        return sorted(
            end for name, span, end in self.windows if (name, span) == (node, span_ms) and from_ms < end <= to_ms
        )

    def summaries(self, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
        return [
            found[sensor]
            for (name, span, end), found in sorted(self.summed.items())
            if (name, span) == (node, span_ms) and from_ms < end <= to_ms and sensor in found
        ]

    def gaps(self, limit: int) -> list[dict[str, Any]]:
        rows = [
            {"node": node, "epoch": epoch, "from": gap.first, "to": gap.last, "before": gap.before, "why": gap.why,
             "noted_ms": noted_ms}
            for node, epoch, gap, noted_ms in reversed(self.gap_rows)
        ]  # fmt: skip
        return rows if limit < 0 else rows[:limit]

    def stored_batches(self, node: str, from_ms: int, to_ms: int) -> Iterator[StoredBatch]:
        return map(_as_batch, self.points(node, from_ms, to_ms, -1))

    def every_batch(self) -> Iterator[StoredBatch]:
        return map(_as_batch, self._points())

    def _points(self) -> Iterator[StoredSample]:
        order = sorted(self.samples, key=lambda entry: (entry[0], entry[2].time_ms, entry[1], entry[2].seq))
        for node, epoch, sample in order:
            yield StoredSample(node, sample.time_ms, epoch, sample.seq, sample.values, sample.clock)

    def verify(self) -> Iterator[str]:
        """Check that each seq of each epoch up to its mark is stored once or is in a gap."""
        seen: dict[tuple[str, str], list[int]] = {key: [] for key in self.epochs}
        for node, epoch, sample in self.samples:
            seen[node, epoch].append(sample.seq)
        for node, epoch, gap, _ in self.gap_rows:
            seen[node, epoch] += range(gap.first, gap.last + 1)
        for (node, epoch), seqs in seen.items():
            expired = self.expired.get((node, epoch), 0)
            whole = len(seqs) == len(set(seqs)) and len(seqs) + expired == self.epochs[node, epoch].seq
            if not whole or (not expired and sorted(seqs) != list(range(1, len(seqs) + 1))):
                mark = self.epochs[node, epoch].seq
                yield f"node {node}, epoch {epoch}: {len(seqs)} seqs do not make up its mark {mark}"
