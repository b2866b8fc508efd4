"""Reader of samples from the tables `chunks` and `fresh`, column by column.

Each row is a run of samples of one epoch, hour, shape and clock state (see storage.chunks). So the samples of an hour
are in the rows of that hour. A `RunReader` reads one snapshot of the database, and one thread uses it.

Errors: sqlite3.Error; ValueError, TypeError and LookupError for rows that this program never writes.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby, repeat
from typing import NamedTuple

from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.chunks import COLUMNS, ChunkRow, unpack
from pigeonpost.storage.models import HOUR_MS, STRETCH_SAMPLES, StoredBatch, StoredSample
from pigeonpost.storage.shapes import ShapeNames
from pigeonpost.storage.sqlite.fresh import FreshIndex, Place

EVER_MS = -(1 << 62), 1 << 62
_BATCH_CHARACTERS = 65_536  # a batch ends with the row that reaches this length
_READ_TOGETHER = {True: 64, False: 8}  # rows per query, by is_fresh: a few MiB at most
_CHUNKS_TOGETHER = 64  # chunks of an epoch that are listed together
_OF_EPOCH = "FROM chunks INDEXED BY chunks_of_node WHERE node = ?1 AND epoch = ?2"
# Places of the chunks of an epoch from the one that begins at or before the sequence number ?3.
NEXT_CHUNKS = (
    f"SELECT low, epoch, first, id {_OF_EPOCH}"
    f" AND first >= coalesce((SELECT max(first) {_OF_EPOCH} AND first <= ?3), ?3) ORDER BY first LIMIT ?4"
)
# Time, epoch and seq of a sample; index of its batch, and its index in the batch.
_Rank = tuple[int, int, int, int, int]


class _Run(NamedTuple):
    """Consecutive rows as one batch.

    Attributes:
        epoch: Id of the epoch.
        batch: The samples.
    """

    epoch: int
    batch: SampleBatch


class RunReader:
    """Reader of samples within one snapshot.

    Args:
        db: Connection in a transaction that has read nothing yet. Its snapshot begins here.
        index: Index of `fresh`. It must be fetched before the snapshot begins (see the module fresh).
        shapes: Cache of the shapes' sensor names.
    """

    def __init__(self, db: sqlite3.Connection, index: FreshIndex, shapes: ShapeNames) -> None:
        self.db = db
        self._index = index
        self._shapes = shapes
        self._epochs: dict[int, str] = {}
        index.catch_up(db)

    def batches(
        self, node: str, from_ms: int, to_ms: int, wanted: Collection[str] | None = None
    ) -> Iterator[StoredBatch]:
        """Yield the samples of a node in a time range, for Store.stored_batches.

        Args:
            node: Name of the node.
            from_ms: Start of the range in milliseconds since 1970 (UTC), inclusive.
            to_ms: End of the range in milliseconds since 1970 (UTC), exclusive.
            wanted: Sensors to read; samples without any of them are skipped. None for all sensors.
        """
        for run in self._runs(_in_order(self._places(node, from_ms, to_ms)), from_ms, to_ms, wanted):
            yield StoredBatch(node, self._epoch(run.epoch), run.batch)

    def every_batch(self) -> Iterator[StoredBatch]:
        """Yield all samples, for Store.every_batch."""
        for (node,) in self.db.execute("SELECT name FROM nodes ORDER BY id").fetchall():
            yield from self.batches(node, *EVER_MS)

    def of_epoch(self, node: str, epoch: str, after: int, most: int) -> Iterator[StoredBatch]:
        """Yield the next samples of an epoch, in the order of their sequence numbers, for Store.batches_of_epoch.

        Args:
            node: Name of the node.
            epoch: Id of the epoch.
            after: Sequence number; only samples with higher ones are read.
            most: Maximum number of samples.
        """
        found = self.db.execute(
            "SELECT e.node, e.id FROM nodes n JOIN epochs e ON e.node = n.id WHERE n.name = ? AND e.epoch = ?",
            (node, epoch),
        ).fetchone()
        if found is None:
            return
        id, epoch_id = found
        for _, batch in self._runs(self._places_after(id, epoch_id, after, most), *EVER_MS):
            new = batch.part(max(0, after + 1 - batch.seq), max(0, after + 1 - batch.seq) + most)
            if len(new):
                yield StoredBatch(node, epoch, new)
                after, most = new.last, most - len(new)
            if most <= 0:
                return

    def newest(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[StoredSample]:
        """Return the last samples of a node in a time range, for Store.points.

        Args:
            node: Name of the node.
            from_ms: Start of the range in milliseconds since 1970 (UTC), inclusive.
            to_ms: End of the range in milliseconds since 1970 (UTC), exclusive.
            limit: Maximum number of samples; -1 for all.
        """
        parts: list[list[StoredSample]] = []
        for of_hour in self._hours_back(node, from_ms, to_ms):
            runs = self._newest_runs(of_hour, from_ms, to_ms, limit)
            parts.append(self._samples(node, runs, limit))
            if limit >= 0:
                limit -= len(parts[-1])
                if limit <= 0:
                    break
        return [sample for part in reversed(parts) for sample in part]

    def ends(self, node: str) -> tuple[int, int] | None:
        """Return the first and the last time (ms since 1970, UTC) of samples of `node`, or None if it has none."""
        id = self._node(node)
        low, last_low = self.db.execute(
            "SELECT (SELECT min(low) FROM chunks WHERE node = ?1), (SELECT max(low) FROM chunks WHERE node = ?1)", (id,)
        ).fetchone()
        found: list[int] = []
        if last_low is not None:
            found = [low, *self.db.execute(
                "SELECT max(high) FROM chunks WHERE node = ? AND low >= ?", (id, last_low // HOUR_MS * HOUR_MS)
            ).fetchone()]  # fmt: skip
        fresh = self._index.ends(self.db, id) if id else None
        if self._index.is_stale:
            self._index = FreshIndex()  # a new index of this snapshot, in which no row is missing
            self._index.catch_up(self.db)
            return self.ends(node)
        found += fresh or ()
        return (min(found), max(found)) if found else None

    # ----------------------------------------------------------------------------------------------- places

    def _places(self, node: str, from_ms: int, to_ms: int) -> list[Place]:
        """Return the places of all rows that may have samples taken in [from_ms, to_ms), in no particular order."""
        id = self._node(node)
        if id is None or to_ms <= from_ms:
            return []
        rows = self.db.execute(
            "SELECT low, epoch, first, id FROM chunks WHERE node = ? AND low >= ? AND low < ?",
            (id, from_ms // HOUR_MS * HOUR_MS, to_ms),
        ).fetchall()  # these columns are all in the SQL index; reading `high` too would read each row
        places = [Place._make((*row, EVER_MS[1], False)) for row in rows]
        return places + self._index.between(self.db, id, from_ms, to_ms)

    def _places_after(self, node: int, epoch: int, after: int, most: int) -> list[Place]:
        """Return the places of the next rows of an epoch, in the order of their sequence numbers.

        The last row that begins at or before `after` comes first, because it may have later samples too. All columns
        are in the index `chunks_of_node`, so no other data than the index entries of the node are read.

        Args:
            node: Id of the node.
            epoch: Id of the epoch.
            after: Sequence number.
            most: Maximum number of samples to read. There is at least one after `after` in these rows, if it exists.
        """
        limit = min(most, _CHUNKS_TOGETHER) + 1
        rows = self.db.execute(NEXT_CHUNKS, (node, epoch, after, limit)).fetchall()
        places = [Place._make((*row, EVER_MS[1], False)) for row in rows]
        fresh = [place for place in self._index.between(self.db, node, *EVER_MS) if place.epoch == epoch]
        last = places[-1].first if len(rows) == limit else EVER_MS[1]  # there may be more chunks after it
        places += [place for place in fresh if place.first + STRETCH_SAMPLES > after and place.first <= last]
        return sorted(places, key=lambda place: place.first)

    def _hours_back(self, node: str, from_ms: int, to_ms: int) -> Iterator[list[Place]]:
        """Yield the places of each hour that has any, the newest hour first."""
        id = self._node(node)
        if id is None or to_ms <= from_ms:
            return
        fresh = self._index.between(self.db, id, from_ms, to_ms)
        start_ms = from_ms // HOUR_MS * HOUR_MS
        while True:
            (low,) = self.db.execute(
                "SELECT max(low) FROM chunks WHERE node = ? AND low >= ? AND low < ?", (id, start_ms, to_ms)
            ).fetchone()
            lows = [place.low for place in fresh] + ([] if low is None else [low])
            if not lows:
                return
            hour_ms = max(lows) // HOUR_MS * HOUR_MS
            rows = self.db.execute(
                "SELECT low, epoch, first, id, high FROM chunks WHERE node = ? AND low >= ? AND low < ?",
                (id, hour_ms, to_ms),
            ).fetchall()
            yield [Place._make((*row, False)) for row in rows] + [place for place in fresh if place.low >= hour_ms]
            fresh = [place for place in fresh if place.low < hour_ms]
            to_ms = hour_ms

    def _node(self, name: str) -> int | None:
        row = self.db.execute("SELECT id FROM nodes WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _epoch(self, id: int) -> str:
        if id not in self._epochs:
            (self._epochs[id],) = self.db.execute("SELECT epoch FROM epochs WHERE id = ?", (id,)).fetchone()
        return self._epochs[id]

    # ------------------------------------------------------------------------------------------------- rows

    def _rows(self, places: Iterable[Place]) -> Iterator[ChunkRow]:
        """Yield the rows of these places, in their order.

        A missing row of `fresh` is skipped. It was deleted, or it is in `chunks` and has another place there.
        """
        for is_fresh, alike in groupby(places, key=lambda place: place.is_fresh):
            ids = [place.id for place in alike]
            size = _READ_TOGETHER[is_fresh]
            query = (
                f"SELECT id, {COLUMNS} FROM {'fresh' if is_fresh else 'chunks'} WHERE id IN"
                " (SELECT value FROM json_each(?))"
            )
            for start in range(0, len(ids), size):
                part = ids[start : start + size]
                found = {row[0]: row for row in self.db.execute(query, (str(part),))}
                if is_fresh and len(found) < len(part):
                    self._index.note_missing(len(part) - len(found))
                for id in part:
                    row = found.get(id)
                    if row is not None:
                        yield ChunkRow._make(row[1:])
                    elif not is_fresh:
                        raise LookupError(f"chunk {id} is in the index, but its row is missing")

    def _runs(
        self, places: Iterable[Place], from_ms: int, to_ms: int, wanted: Collection[str] | None = None
    ) -> Iterator[_Run]:
        """Yield the samples of these places taken in [from_ms, to_ms). Consecutive rows become one run."""
        together: list[ChunkRow] = []
        length = 0
        for row in self._rows(places):
            if together and not (length < _BATCH_CHARACTERS and together[-1].is_followed_by(row)):
                yield from self._unpacked(together, from_ms, to_ms, wanted)
                together, length = [], 0
            together.append(row)
            length += len(row.data)
        if together:
            yield from self._unpacked(together, from_ms, to_ms, wanted)

    def _unpacked(
        self, rows: list[ChunkRow], from_ms: int, to_ms: int, wanted: Collection[str] | None
    ) -> Iterator[_Run]:
        names = self._shapes.one(self.db, rows[0].shape)
        if wanted is not None and not any(name in wanted for name in names):
            return
        batch = unpack(rows, names, wanted)
        if all(from_ms <= row.low and row.high < to_ms for row in rows):
            yield _Run(rows[0].epoch, batch)
        else:
            for part in taken_between(batch, from_ms, to_ms):
                yield _Run(rows[0].epoch, part)

    def _newest_runs(self, places: list[Place], from_ms: int, to_ms: int, limit: int) -> list[_Run]:
        """Return the last runs of an hour that together contain its last `limit` samples."""
        if limit < 0:
            return list(self._runs(sorted(places), from_ms, to_ms))
        places.sort(key=lambda place: place.high, reverse=True)
        found: list[_Run] = []
        at, left, until_ms = 0, limit, EVER_MS[1]
        size = 1  # rows per step; it doubles, because a row may have one sample or thousands
        while at < len(places) and (left > 0 or places[at].high >= until_ms):
            part = places[at : at + max(1, min(left, size))]
            for run in self._runs(sorted(part), from_ms, to_ms):
                found.append(run)
                left -= len(run.batch)
            until_ms = min(until_ms, *(place.low for place in part), EVER_MS[1])
            at += len(part)
            size = min(2 * size, 256)
        return found

    def _samples(self, node: str, runs: list[_Run], limit: int) -> list[StoredSample]:
        """Return the last `limit` samples (-1: all) of these runs, in the order of their times."""
        ranks: list[_Rank] = []
        for number, (epoch, batch) in enumerate(runs):
            seqs, count = range(batch.seq, batch.last + 1), len(batch)
            ranks += zip(batch.times, repeat(epoch), seqs, repeat(number), range(count))
        ranks.sort()
        columns = [list(batch.values.values()) for _, batch in runs]
        names = [batch.names for _, batch in runs]
        return [
            StoredSample(
                node, time_ms, self._epoch(epoch), seq,
                dict(zip(names[number], [column[place] for column in columns[number]])), runs[number].batch.clock,
            )
            for time_ms, epoch, seq, number, place in (ranks if limit < 0 else ranks[max(0, len(ranks) - limit) :])
        ]  # fmt: skip


def _in_order(places: list[Place]) -> list[Place]:
    """Return the places in the order of their first times, except that those of one epoch are in the order of seq."""
    places.sort()
    last: dict[int, int] = {}
    for place in places:
        if place.first < last.get(place.epoch, 0):
            break
        last[place.epoch] = place.first
    else:
        return places
    by_seq: dict[int, list[Place]] = {}
    for place in places:
        by_seq.setdefault(place.epoch, []).append(place)
    following = {epoch: iter(sorted(found, key=lambda place: place.first)) for epoch, found in by_seq.items()}
    return [next(following[place.epoch]) for place in places]


def taken_between(batch: SampleBatch, from_ms: int, to_ms: int) -> list[SampleBatch]:
    """Return the samples of a batch that were taken in a time range.

    Args:
        batch: The samples.
        from_ms: Start of the range in milliseconds since 1970 (UTC), inclusive.
        to_ms: End of the range in milliseconds since 1970 (UTC), exclusive.

    Returns:
        One batch, several if the clock stepped, or an empty list.
    """
    times = batch.times
    if times == sorted(times):
        start, stop = bisect_left(times, from_ms), bisect_left(times, to_ms)
        return [batch.part(start, stop)] if start < stop else []
    found: list[SampleBatch] = []
    for is_within, places in groupby(range(len(times)), key=lambda place: from_ms <= times[place] < to_ms):
        if is_within:
            start, *rest = places
            found.append(batch.part(start, (rest[-1] if rest else start) + 1))
    return found
