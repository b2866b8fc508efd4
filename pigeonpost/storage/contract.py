"""Interface of a store of samples: what every database backend must do.

Methods called within `writing` belong to the Ingestor's writer thread; all others may be called from any thread.
Errors: NotStored (try again later), StoreDamaged, DiskError (ends the program); in each case nothing was stored. A
store that was found damaged is still read, as far as it can be, and refuses every transaction until the next start.

The promise rests on one rule: samples, their high-water mark, gaps and the position up to which the CSV log is written
are in *one* transaction. So a mark never says more, or less, than what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pigeonpost.core.errors import NotStored
from pigeonpost.storage.models import (
    Bucket,
    EpochCommit,
    HighWaterMark,
    LogEntry,
    LogMark,
    NodeRecords,
    NodeUsage,
    Rollup,
    StoredBatch,
    StoredSample,
    Window,
)

MOST_LISTED = 10_000  # sensors of a node; a store of before they were limited may have more


class FormerNamesUsed(NotStored):
    """Names under which nothing was stored: since the records were read, another server has renamed their nodes."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(f"renamed by another server just now: {', '.join(sorted(names))}")
        self.names = names


class Store:
    """A store of samples. Every backend implements this interface, and one test class proves it of each."""

    identity: str  # 16 hex digits drawn when the store was made: a deleted or restored one is told by them
    description: str  # the kind of store, for people
    is_shared = False  # whether other servers may write to it too
    is_checked = False  # whether `check_pieces` reads it
    found_at_start = ""  # damage that the start found, and after which storing goes on
    damage = ""  # why nothing may be written to it any more; empty: it may be
    unlogged: frozenset[int] = frozenset()  # filing numbers up to the log's mark that it lacks, since they are damaged
    on_damage: Callable[[str], object] = staticmethod(lambda text: None)  # told of damage that anybody meets

    # ----------------------------------------------------------------------------------- the writer's part

    def writing(
        self, epochs: Iterable[tuple[str, str]]
    ) -> AbstractContextManager[Mapping[tuple[str, str], HighWaterMark]]:
        """Return a transaction, committed durably at the end of the block, or not at all when that raises.

        Its value is the marks of the (node, epoch) pairs as they are in this transaction; those not stored are absent.
        Raises FormerNamesUsed where other servers write to the store too: a name that is only a former one is no node.
        """
        raise NotImplementedError

    def put(self, epoch_commits: Sequence[EpochCommit], noted_ms: int, log: LogMark | None) -> int:
        """Within `writing`: store the commits, and how far the CSV log is written: as `log` says, except `unlogged`.

        Each of their items, which are stretches (see models.stretches) and gaps, gets the number that follows the last
        one: its filing number. Returns the number of the last: the log owes everything after `log.filed` up to it.
        """
        raise NotImplementedError

    def replace_rollups(self, window: Window, summaries: Mapping[str, Rollup]) -> None:
        """Within `writing`: replace the rollups of a window, by sensor. It is no longer dirty, unless samples came into
        it since `dirty_windows` returned it."""
        raise NotImplementedError

    def merge_late_rollups(self, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]) -> bool:
        """Within `writing`: merge what came into a window of the longest span, and the shorter ones in it, after their
        samples were deleted: by span and sensor the rollups of all samples that are there, which are then deleted.

        Returns False where that has to wait: the CSV log owes some of them, or more came since `dirty_windows` returned
        the window.
        """
        raise NotImplementedError

    def delete_expired(self, before_ms: int, most: int) -> int:
        """Within `writing`: delete up to `most` of the oldest samples taken before `before_ms`, but always whole hours,
        and one at least. Returns the number of deleted samples.

        What the CSV log still owes, and what has no rollups yet, stays; so does the hour in which `before_ms` lies.
        Marks and gaps stay for ever.
        """
        raise NotImplementedError

    def compaction(self, now_ms: int) -> Callable[[], int] | None:
        """Prepare the next part of rewriting more compactly what was stored. One thread at a time may call this.

        Returns what is to be called within `writing`, which returns the number of samples it has rewritten: 0 when
        something has changed meanwhile. None: there is nothing to do now.
        """
        return None

    def rename(self, node: str, new: str, now_ms: int) -> None:
        """Within `writing`: give all that is stored of `node` the name `new`, and record the former one. Nothing that
        the CSV log still owes may be of that node.

        Raises LookupError when nothing of `node` is stored; ValueError when something of `new` is.
        """
        raise NotImplementedError

    def release(self, name: str) -> None:
        """Within `writing`: record that what has `name` from now on is none of the nodes that were called so."""
        raise NotImplementedError

    def retire(self, node: str, at_ms: int | None) -> None:
        """Within `writing`: record since when `node` is retired; None: it is in use. Raises LookupError as `rename`."""
        raise NotImplementedError

    def relabel(self, node: str, sensor: str, label: str) -> None:
        """Within `writing`: record the label of a sensor; empty: it has none. Raises LookupError as `rename`."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the store."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------- anybody's part

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, HighWaterMark]]:
        """Return the highest running number stored of `outbox` (0: none), and the marks of known `epochs`."""
        raise NotImplementedError

    def usage(self, node: str) -> NodeUsage:
        """Return what is stored of `node`, as far as that is limited; whatever the gaps say, the sums are exact."""
        raise NotImplementedError

    def channels(self, node: str, most: int) -> set[str]:
        """Return the names of the channels that `node` ever had; of more than `most` so many of them."""
        raise NotImplementedError

    def node_records(self) -> NodeRecords:
        """Return what operators have said of nodes."""
        raise NotImplementedError

    def log_mark(self) -> LogMark | None:
        """Return how far the CSV log of the last run is known to be written; None when there never was one."""
        raise NotImplementedError

    def logged_after(self, filed: int) -> Iterator[LogEntry]:
        """Yield what the CSV log owes after the filing number `filed`, in its order; then the entries in
        `unlogged`. A damaged entry has no items, and is reported to `on_damage`."""
        raise NotImplementedError

    def nodes(self) -> list[dict[str, Any]]:
        """Return every node ever stored: name, samples, gaps, first and last time (ms), sensors with their units, of
        which MOST_LISTED at most.

        Also how many samples are expired, and the time (ms) before which samples may be; 0: none is. Where a store
        has rollups that were made as (start, end], `old_edges_ms` is the end (ms) of the last of them.
        """
        raise NotImplementedError

    def points(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[StoredSample]:
        """Return the samples of `node` taken in [from_ms, to_ms), oldest first; the last `limit` of them."""
        raise NotImplementedError

    def downsample(self, node: str, sensor: str, from_ms: int, to_ms: int, count: int) -> list[Bucket]:
        """Downsample one sensor's values in [from_ms, to_ms) to `count` equal buckets; empty ones are absent.

        Where buckets are as wide as windows, they are made from rollups where there are any: a value then counts in the
        bucket in which its window began.
        """
        raise NotImplementedError

    def downsample_several(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        """Return what `downsample` does of each of these sensors of `node`."""
        return {sensor: self.downsample(node, sensor, from_ms, to_ms, count) for sensor in sensors}

    def downsample_all(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        """Downsample the values of these sensors of `node` at once, in one pass over its samples."""
        raise NotImplementedError

    def dirty_windows(self, before_ms: int, most: int) -> list[Window]:
        """Return up to `most` windows that ended before `before_ms` and have no rollups, or outdated ones."""
        raise NotImplementedError

    def summaries(self, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
        """Return one sensor's rollups of windows of `span_ms` that end in (from_ms, to_ms], oldest first.

        Those of dirty windows are missing, or outdated: maintenance.current_rollups has them as they will be.
        """
        raise NotImplementedError

    def dirty_ends(self, node: str, span_ms: int, from_ms: int, to_ms: int) -> list[int]:
        """Return the ends of a node's dirty windows of `span_ms` that end in (from_ms, to_ms], oldest first."""
        raise NotImplementedError

    def gaps(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest `limit` gaps (-1: all), with their reasons."""
        raise NotImplementedError

    def stored_batches(self, node: str, from_ms: int, to_ms: int) -> Iterator[StoredBatch]:
        """Yield the samples of `node` taken in [from_ms, to_ms), by column, in the order of their first times.

        Those of one epoch follow each other by seq. Where a clock stepped, or several epochs wrote at the same time,
        the times of batches may overlap. What is yielded is one state of the store (PostgreSQL: each page of it is),
        and until the end one of the few connections that read is in use: take it at once, and never wait for a client
        meanwhile.
        """
        raise NotImplementedError

    def every_batch(self) -> Iterator[StoredBatch]:
        """Yield all samples by column, node by node, otherwise as `stored_batches`: for export and verification."""
        raise NotImplementedError

    def own_batches(self) -> Iterator[StoredBatch]:
        """Yield the samples that this server has stored, and so has in its CSV logs: there may be other servers."""
        return self.every_batch()

    def own_gaps(self) -> int:
        """Return the number of gaps in the logs of this server."""
        return len(self.gaps(-1))

    def check_pieces(self) -> Iterator[str]:
        """Check everything in small pieces, beside the work. Yields after each piece: a fault, or nothing ("")."""
        return iter(())

    def known_units(self) -> dict[str, dict[str, str]]:
        """Return every node's units by sensor: the least that is read of a node, for a damaged store."""
        return {about["name"]: about["sensors"] for about in self.nodes()}

    def verify(self) -> Iterator[str]:
        """Check everything. Yields one line per fault."""
        raise NotImplementedError
