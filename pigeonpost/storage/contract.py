"""Where samples are kept on the server: what every store must do, whichever database is below it.

Runs on: server.  Reached from: intake (writing), webui and control (reading).
Members: sqlite (the default), postgres (for several servers, or a machine of its own); summaries, which has any store
  sum up and forget; redis_mirror, which is no store: it shows other programs the last state.
Threads: `writing` and `put` belong to the intake's one writer thread; everything else may be called from any.
Errors: NotStored (try again later), DiskError (end the program); either way nothing was stored.

The promise rests on one rule: samples, their high-water mark, gaps and how far the CSV log is written are in *one*
transaction. So a mark never says more, or less, than what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pigeonpost.storage.models import (
    Bucket,
    EpochCommit,
    HighWaterMark,
    LogEntry,
    LogMark,
    Rollup,
    StoredSample,
    Window,
)


class Store:
    """The contract. Every member keeps it, and one test class proves it of each."""

    identity: str  # 16 hex digits drawn when the store was made: a deleted or restored one is told by them

    # ----------------------------------------------------------------------------------- the writer's part

    def writing(
        self, epochs: Iterable[tuple[str, str]]
    ) -> AbstractContextManager[Mapping[tuple[str, str], HighWaterMark]]:
        """A transaction, committed durably at the end of the block, or not at all when that raises.

        Gives the marks of the asked (node, epoch) pairs as they are in this transaction; those not stored are absent.
        """
        raise NotImplementedError

    def put(self, epoch_commits: Sequence[EpochCommit], noted_ms: int, log: LogMark | None) -> int:
        """Within `writing`: store the filings, and that the CSV log is written as far as `log` says.

        Each of their items gets the number that follows the last one. Returns the number of the last: the log owes
        everything after `log.filed` up to it.
        """
        raise NotImplementedError

    def put_summaries(self, window: Window, summaries: Mapping[str, Rollup]) -> None:
        """Within `writing`: replace the summaries of a window, by sensor; it counts as summed up, unless something came
        into it since `unsummed` told of it."""
        raise NotImplementedError

    def add_late(self, window: Window, parts: Mapping[int, Mapping[str, list[Rollup]]]) -> bool:
        """Within `writing`: add what came into a window of the longest span, and the shorter ones in it, after their
        samples were forgotten: by span and sensor the summaries of all samples that are there, which are deleted.

        False where that has to wait: the CSV log owes some of them, or something came since `unsummed` told of it.
        """
        raise NotImplementedError

    def forget(self, before_ms: int, most: int) -> int:
        """Within `writing`: delete up to `most` of the oldest samples taken before `before_ms`, but always whole hours,
        and one at least; how many there were.

        What the CSV log still owes, and what is not summed up yet, stays; so does the hour in which `before_ms` lies.
        Marks and gaps stay for ever.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------- anybody's part

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, HighWaterMark]]:
        """The highest running number stored of `outbox` (0: none), and the marks of those `epochs` that are known."""
        raise NotImplementedError

    def log_mark(self) -> LogMark | None:
        """How far the CSV log of the last run is known to be written; None when there never was one."""
        raise NotImplementedError

    def logged_after(self, filed: int) -> Iterator[LogEntry]:
        """What the CSV log owes after filing number `filed`, in its order."""
        raise NotImplementedError

    def nodes(self) -> list[dict[str, Any]]:
        """Every node ever stored: name, samples, gaps, first and last time (ms), sensors with their units.

        Of the samples also how many were forgotten, and up to when (ms) that may have happened; 0: none were.
        """
        raise NotImplementedError

    def points(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[StoredSample]:
        """Samples of `node` taken in [from_ms, to_ms), oldest first; the last `limit` of them."""
        raise NotImplementedError

    def columns(self, node: str, sensor: str, from_ms: int, to_ms: int, count: int) -> list[Bucket]:
        """One sensor's values in [from_ms, to_ms), summed up in `count` equal columns; empty ones are absent.

        Where columns are as wide as windows, from the summaries of those that are summed up: a value at the very end of
        a window then counts in the column in which the window began.
        """
        raise NotImplementedError

    def summary(self, node: str, from_ms: int, to_ms: int, count: int) -> dict[str, list[Bucket]]:
        """As `columns`, of every sensor of `node` at once: one pass over its samples."""
        raise NotImplementedError

    def unsummed(self, before_ms: int, most: int) -> list[Window]:
        """Up to `most` windows that ended before `before_ms` and are not summed up, or no longer rightly so."""
        raise NotImplementedError

    def summaries(self, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Rollup]:
        """One sensor's summaries of windows of `span_ms` that end in (from_ms, to_ms], oldest first."""
        raise NotImplementedError

    def gaps(self, limit: int) -> list[dict[str, Any]]:
        """What is missing and why, the newest `limit` (-1: all)."""
        raise NotImplementedError

    def every_sample(self) -> Iterator[StoredSample]:
        """All samples, node by node in the order of their times: for looking through everything, not for pages."""
        raise NotImplementedError

    def own_samples(self) -> Iterator[StoredSample]:
        """Those of every_sample that this server has stored, and so has in its CSV logs: there may be others."""
        return self.every_sample()

    def own_gaps(self) -> int:
        """How many gaps this server has in its logs."""
        return len(self.gaps(-1))

    def verify(self) -> Iterator[str]:
        """Look at everything; a line for each fault found."""
        raise NotImplementedError
