"""Interface that every database backend implements to store samples.

Only the Ingestor's writer thread calls the methods that require the transaction of `writing`. Any thread may call the
other methods.
Errors: NotStored (a later attempt may succeed), StoreDamaged, DiskError (ends the program). In each case nothing was
stored. A store that was found to be damaged still returns the data that can be read, but it refuses every transaction
until the next start.

Durability rests on one rule: samples, their high-water mark, gaps and the position up to which the CSV log is written
are committed in *one* transaction. So a high-water mark always matches exactly what is stored.

A *stretch* is a series of consecutive samples that is stored as one unit (see models.stretches). Each stretch and each
gap that a server stores receives the next *filing number*, which is its position in the order of the server's CSV log.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pigeonpost.core.errors import NotStored
from pigeonpost.storage.models import (
    Bucket,
    EpochCommit,
    EpochMark,
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

MOST_LISTED = 10_000  # channels listed per node; a store of a version without a limit may contain more


class FormerNamesUsed(NotStored):
    """Error for a commit that used former node names: another server has renamed the nodes. Nothing was stored.

    Attributes:
        names: The former names that were used.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(f"renamed by another server just now: {', '.join(sorted(names))}")
        self.names = names


class Store:
    """Interface of a store of samples. One test class runs the same tests with every backend.

    Attributes:
        identity: 16 random hex digits, assigned when the store is created. They distinguish it from any other store,
            for example one that was deleted and created again.
        description: Kind of store, for people.
        is_shared: True if other servers may write to the store too.
        is_checked: True if `check_pieces` checks the stored data of this backend.
        found_at_start: Damage that was found at the start and does not prevent storing; empty if there is none.
        damage: Reason why the store can no longer be written to; empty if it can.
        unlogged: Filing numbers up to the log mark that are missing in the CSV log, because the rows are damaged.
        on_damage: Called with a description when any thread finds damage.
    """

    identity: str
    description: str
    is_shared = False
    is_checked = False
    found_at_start = ""
    damage = ""
    unlogged: frozenset[int] = frozenset()
    on_damage: Callable[[str], object] = staticmethod(lambda text: None)

    # ------------------------------------------------------------------------------- methods of the writer thread

    def writing(
        self, epochs: Iterable[tuple[str, str]]
    ) -> AbstractContextManager[Mapping[tuple[str, str], HighWaterMark]]:
        """Return a context manager for one transaction, which is committed durably at the end of the block.

        Nothing is stored if the block or the commit raises an error. The value of the context manager maps each pair of
        `epochs` to its high-water mark in this transaction. Pairs that are not stored are absent.

        Args:
            epochs: Pairs (node, epoch) that the transaction will write.

        Raises:
            FormerNamesUsed: Another server that writes to this store has renamed one of the nodes.
        """
        raise NotImplementedError

    def put(self, epoch_commits: Sequence[EpochCommit], noted_ms: int, log: LogMark | None) -> int:
        """Store commits, and the position up to which the CSV log is written. Must be called within `writing`.

        Each item of the commits (a stretch or a gap) receives the next filing number. The CSV log still has to write
        all items whose filing number is above `log.filed`.

        Args:
            epoch_commits: The commits, at most one per epoch.
            noted_ms: Time of the commit, in ms since 1970 (UTC). It is stored with gaps.
            log: Position up to which the CSV log is written, except the items in `unlogged`; None if it is unchanged.

        Returns:
            The filing number of the last item.
        """
        raise NotImplementedError

    def replace_rollups(self, window: Window, summaries: Mapping[str, Rollup]) -> None:
        """Replace the rollups of `window` by `summaries`, which are keyed by sensor. Must be called within `writing`.

        The window is no longer dirty afterwards, unless samples were added to it since `dirty_windows` returned it.
        """
        raise NotImplementedError

    def merge_late_rollups(self, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]) -> bool:
        """Merge late samples into rollups whose samples are deleted, then delete the late samples.

        Must be called within `writing`.

        Args:
            window: A window of the longest span. The shorter windows in it are merged too.
            parts: Rollups of all samples that are stored in `window`, keyed by span in ms and by sensor.

        Returns:
            False if nothing was changed and the call must be repeated later: the CSV log has not yet written all of the
            samples, or more samples were added since `dirty_windows` returned the window.
        """
        raise NotImplementedError

    def delete_expired(self, before_ms: int, most: int) -> int:
        """Delete the oldest samples, in whole hours, and return the number of deleted samples.

        Must be called within `writing`. Samples that the CSV log has not written yet or that have no rollups yet are
        kept. High-water marks and gaps are kept permanently.

        Args:
            before_ms: Time in ms since 1970 (UTC). Samples in the hour that contains it, and later ones, are kept.
            most: Maximum number of samples to delete. It may be exceeded to delete one complete hour.
        """
        raise NotImplementedError

    def compaction(self, now_ms: int) -> Callable[[], int] | None:
        """Prepare the next step of compaction. Only one thread at a time may call this method.

        Args:
            now_ms: Current time, in ms since 1970 (UTC).

        Returns:
            A function to call within `writing`. It returns the number of samples that it has rewritten, which is 0 if
            the samples were changed in the meantime. None if there is nothing to compact now.
        """
        return None

    def rename(self, node: str, new: str, now_ms: int) -> None:
        """Rename a node with all its data, and record its former name. Must be called within `writing`.

        The CSV log must have written all samples and gaps of the node.

        Args:
            node: Current name of the node.
            new: New name.
            now_ms: Current time, in ms since 1970 (UTC).

        Raises:
            LookupError: Nothing is stored for `node`.
            ValueError: Something is stored for `new`.
        """
        raise NotImplementedError

    def release(self, name: str) -> None:
        """Record that a node that uses `name` from now on is a new node. Must be called within `writing`.

        It is none of the nodes that had this name before they were renamed.
        """
        raise NotImplementedError

    def retire(self, node: str, at_ms: int | None) -> None:
        """Record that `node` is retired since `at_ms` (ms since 1970, UTC), or in use if `at_ms` is None.

        Must be called within `writing`.

        Raises:
            LookupError: Nothing is stored for `node`.
        """
        raise NotImplementedError

    def relabel(self, node: str, sensor: str, label: str) -> None:
        """Record the `label` of a `sensor` of `node`; an empty label removes it. Must be called within `writing`.

        Raises:
            LookupError: Nothing is stored for `node`.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the store."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------- methods of all threads

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, HighWaterMark]]:
        """Return the highest running number of `outbox`, and the high-water marks of the stored `epochs` of `node`.

        The running number counts the samples of an outbox across its epochs; it is 0 if none is stored.
        """
        raise NotImplementedError

    def usage(self, node: str) -> NodeUsage:
        """Return the usage of all limited resources by `node`. The sums are exact, however large the gaps are."""
        raise NotImplementedError

    def channels(self, node: str, most: int) -> set[str]:
        """Return the names of up to `most` channels that `node` has ever had."""
        raise NotImplementedError

    def node_records(self) -> NodeRecords:
        """Return the records that operators have made about nodes."""
        raise NotImplementedError

    def log_mark(self) -> LogMark | None:
        """Return the recorded position of the last run's CSV log; None if there was no log yet."""
        raise NotImplementedError

    def logged_after(self, filed: int) -> Iterator[LogEntry]:
        """Yield the entries that the CSV log must write after the filing number `filed`, in the order of the log.

        The entries in `unlogged` follow at the end. A damaged entry has no items and is reported to `on_damage`.
        """
        raise NotImplementedError

    def nodes(self) -> list[dict[str, Any]]:
        """Return one dictionary per stored node, sorted by name. All times are in ms since 1970 (UTC).

        Its keys are `name`; `samples`, the number of samples ever stored; `missing`, the number of samples in gaps;
        `forgotten`, the number of expired samples; `kept_from_ms`, the time before which samples may have expired, or
        0; `first_ms` and `last_ms`, the times of the first and last stored sample, or None; and `sensors`, the units of
        at most MOST_LISTED channels, keyed by name. `old_edges_ms` is the end of the last window that an older version
        made as (start, end], or 0.
        """
        raise NotImplementedError

    def points(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[StoredSample]:
        """Return the last `limit` samples of `node` in [from_ms, to_ms), oldest first; all of them if `limit` is -1."""
        raise NotImplementedError

    def downsample(self, node: str, sensor: str, from_ms: int, to_ms: int, count: int) -> list[Bucket]:
        """Return the values of one sensor, downsampled to buckets of equal width.

        If the buckets are at least as wide as rollup windows, they are made from the available rollups. Each value then
        counts in the bucket that contains the start of its window.

        Args:
            node: Name of the node.
            sensor: Name of the sensor.
            from_ms: Start of the range in ms since 1970 (UTC), inclusive.
            to_ms: End of the range in ms since 1970 (UTC), exclusive.
            count: Number of buckets in the range.

        Returns:
            The buckets that are not empty, oldest first.
        """
        raise NotImplementedError

    def downsample_several(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        """Return the result of `downsample` for each of `sensors` of `node`.

        `from_ms`, `to_ms` and `count` are those of `downsample`.
        """
        return {sensor: self.downsample(node, sensor, from_ms, to_ms, count) for sensor in sensors}

    def downsample_all(
        self, node: str, from_ms: int, to_ms: int, count: int, sensors: Collection[str]
    ) -> dict[str, list[Bucket]]:
        """Return the values of `sensors` of `node` in [from_ms, to_ms), downsampled to `count` buckets each.

        The samples are read only once. Rollups are not used.
        """
        raise NotImplementedError

    def dirty_windows(self, before_ms: int, most: int) -> list[Window]:
        """Return up to `most` windows that ended before `before_ms` and whose rollups are missing or outdated.

        `before_ms` is in ms since 1970 (UTC).
        """
        raise NotImplementedError

    def summaries(self, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
        """Return the rollups of a `sensor` of `node` for windows of `span_ms` that end in (from_ms, to_ms].

        They are sorted, oldest first. Times are in ms since 1970 (UTC). The rollups of dirty windows are missing or
        outdated. `maintenance.current_rollups` returns up-to-date rollups of all windows.
        """
        raise NotImplementedError

    def dirty_ends(self, node: str, span_ms: int, from_ms: int, to_ms: int) -> list[int]:
        """Return the ends of a node's dirty windows of `span_ms` that end in (from_ms, to_ms], oldest first."""
        raise NotImplementedError

    def gaps(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest `limit` gaps (-1 for all), newest first, as dictionaries.

        The keys are `node`, `epoch`, `from` and `to` (sequence numbers), `before` (number of missing samples of
        earlier epochs), `why` (the reason) and `noted_ms` (ms since 1970, UTC).
        """
        raise NotImplementedError

    def stored_batches(self, node: str, from_ms: int, to_ms: int) -> Iterator[StoredBatch]:
        """Yield the samples of `node` in [from_ms, to_ms) as batches, ordered by the time of their first sample.

        Batches of one epoch are in the order of their sequence numbers. The times of batches may overlap if a clock
        stepped or if several epochs were written at the same time. All batches come from one snapshot of the store
        (with PostgreSQL: one snapshot per page). The iterator occupies one of the few read connections until its end.
        So consume it without delay, and never wait for a client in between.
        """
        raise NotImplementedError

    def every_batch(self) -> Iterator[StoredBatch]:
        """Yield all samples, node by node and otherwise like `stored_batches`, for export and verification."""
        raise NotImplementedError

    def epoch_marks(self) -> dict[tuple[str, str], EpochMark]:
        """Return the marks of all stored epochs, by (node, epoch)."""
        raise NotImplementedError

    def batches_of_epoch(self, node: str, epoch: str, after: int, most: int) -> list[StoredBatch]:
        """Return the next stored samples of an epoch, in the order of their sequence numbers.

        Samples in gaps and expired samples are absent. If the epoch has stored samples after `after`, there is at least
        one in the result.

        Args:
            node: Name of the node.
            epoch: Id of the epoch.
            after: Sequence number; only samples with higher ones are returned.
            most: Maximum number of samples, at least 1.
        """
        raise NotImplementedError

    def own_batches(self) -> Iterator[StoredBatch]:
        """Yield the samples that this server has stored, which are those in its CSV logs.

        Other servers may have stored more samples in the same database.
        """
        return self.every_batch()

    def own_gaps(self) -> int:
        """Return the number of gaps in the CSV logs of this server."""
        return len(self.gaps(-1))

    def check_pieces(self) -> Iterator[str]:
        """Check all stored data in small steps, in the background. Yield a fault or an empty string after each step."""
        return iter(())

    def known_units(self) -> dict[str, dict[str, str]]:
        """Return the units of each node's sensors. A damaged store can often still read these."""
        return {about["name"]: about["sensors"] for about in self.nodes()}

    def verify(self) -> Iterator[str]:
        """Check all stored data. Yield one line per fault."""
        raise NotImplementedError
