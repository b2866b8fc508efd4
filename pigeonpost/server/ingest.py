"""The server's only door in: who, seen before?, commit, then acknowledge and hand on.

Runs on: server.  Reached from: the roads (`accept`, `marks`).  Hands on to: a store, the CSV log, whoever `watch`es.
Threads: one of its own, the writer, which alone commits. Roads wait in `accept` while too much is uncommitted, and so
  stop reading from their nodes, which hold everything. `_changed` (a Condition and its lock) guards the waiting
  batches and their count; it is held to add or take batches, never during a commit.
Errors: NotStored is tried again, nothing is acknowledged meanwhile; DiskError ends the program (`failed` is told).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from csvbuffer import CsvLog
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import DiskError, NotStored, Unexpected
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import NOTHING, EpochCommit, HighWaterMark, SampleBatch
from protocol import IMPORTED, WINDOW_SAMPLES, Batch, Gap, Sample

log = logging.getLogger(__name__)

_HASTE_SAMPLES = WINDOW_SAMPLES // 2  # of one node: so many wait for their ACK that it soon must not send more
_RETRY_S = 1.0


class LatestSample(NamedTuple):
    """The last sample committed of a node, and when."""

    sample: Sample
    units: Mapping[str, str]
    committed_ms: int


Watcher = Callable[[Sequence[EpochCommit]], Any]


class _Task:
    """A job for the writer thread, and what came of it."""

    def __init__(self, job: Callable[[], Any]) -> None:
        self.job = job
        self.result: Any = None
        self.error: Exception | None = None
        self.is_done = False


class Ingestor:
    """The queue, the writer thread, and what was stored last of each node."""

    def __init__(
        self,
        store: Store,
        csv: CsvLog,
        clock: Clock,
        commit_s: float = 1.0,
        buffer_samples: int = 20_000,
        failed: Callable[[BaseException], Any] = lambda error: None,
    ) -> None:
        """
        commit_s        seconds between two commits; sooner while nodes catch up
        buffer_samples  uncommitted samples at most
        failed          told when the disk fails; ends the program
        """
        self.identity = store.identity
        self.latest: dict[str, LatestSample] = {}
        self.fault = ""  # why nothing can be stored now; empty when all is well
        self.stored = self.repeated = self.commits = 0  # of this run
        self._store = store
        self._csv = csv
        self._clock = clock
        self._commit_s = commit_s
        self._buffer_samples = buffer_samples
        self._failed = failed
        self._watchers: list[Watcher] = []
        self._changed = threading.Condition()
        self._batches: list[Batch] = []
        self._waiting = 0  # samples in them,
        self._waiting_of: dict[str, int] = {}  # and of each node
        self._hurry = False
        self._urgent = False  # somebody waits for a batch that came after those in hand
        self._tasks: list[_Task] = []  # of others, for the writer
        self._in_hand = 0  # of the batches, the first: so many are being stored just now
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        """Begin to commit what is accepted."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Take nothing more, commit what was taken, sync the log; says so when `limit_s` seconds were not enough."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(limit_s)
        return f"{self._waiting} samples were not stored; their nodes keep them" if self._thread.is_alive() else None

    def settle(self, limit_s: float) -> bool:
        """Commit what was accepted so far without waiting for its time; whether that was done within `limit_s`."""
        give_up_s = self._clock.monotonic() + limit_s
        with self._changed:
            last = self._batches[-1] if self._batches else None
            self._hurry = self._hurry or last is not None
            self._urgent = self._urgent or last is not None
            self._changed.notify_all()
            while last is not None and any(batch is last for batch in self._batches):
                left_s = give_up_s - self._clock.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def watch(self, watcher: Watcher) -> None:
        """Hand every commit's filings to `watcher` too, once they are durable; it must not wait."""
        self._watchers.append(watcher)

    # ------------------------------------------------------------------------------------ the roads' part

    def run(self, job: Callable[[], Any], limit_s: float) -> Any:
        """Do `job`, which changes the store, within a transaction of the writer thread; what it gives, or raises.

        Raises NotStored when it could not be done within `limit_s` seconds: then it is not done.
        """
        task = _Task(job)
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()
            self._changed.wait_for(lambda: task.is_done or self._stopping.is_set(), limit_s)
            if not task.is_done and task in self._tasks:
                self._tasks.remove(task)
                raise NotStored(f"the store was busy for {limit_s:g} s, or the program stops")
            self._changed.wait_for(lambda: task.is_done)  # it is being done just now
        if task.error is not None:
            raise task.error
        return task.result

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, HighWaterMark]]:
        """As Store.marks: what is durable, so not what still waits here."""
        return self._store.marks(node, outbox, epochs)

    def accept(self, batch: Batch, urgent: bool = False, limit_s: float | None = None) -> bool:
        """Take a batch, waiting while there is too much. It is answered when it is durable, or when it is refused.

        urgent   somebody waits for it: it is committed as soon as the writer is free
        limit_s  waits so long at most; then the batch is not taken, and False

        While the program stops nothing is taken and nothing answered: the node keeps what is not acknowledged.
        """
        give_up_s = None if limit_s is None else self._clock.monotonic() + limit_s
        with self._changed:
            while self._waiting >= self._buffer_samples and not self._stopping.is_set():
                left_s = 1.0 if give_up_s is None else min(1.0, give_up_s - self._clock.monotonic())
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
            if self._stopping.is_set():
                return False
            self._batches.append(batch)
            was_calm = not self._hurry
            self._hurry = self._hurry or urgent
            self._urgent = self._urgent or urgent
            self._count(batch)
            if len(self._batches) == 1 or (self._hurry and was_calm):
                self._changed.notify_all()
        return True

    def withdraw(self, batch: Batch) -> bool:
        """Take back what was accepted; False when it is being stored just now, or is."""
        with self._changed:
            for place, waiting in enumerate(self._batches):
                if waiting is batch and place >= self._in_hand:
                    del self._batches[place]
                    self._waiting, self._waiting_of = 0, {}
                    for other in self._batches:
                        self._count(other)
                    self._changed.notify_all()
                    return True
        return False

    def _count(self, batch: Batch) -> None:
        self._waiting += len(batch.samples)
        of_node = self._waiting_of.get(batch.node, 0) + len(batch.samples)
        self._waiting_of[batch.node] = of_node
        self._hurry = self._hurry or of_node >= _HASTE_SAMPLES or self._waiting >= self._buffer_samples

    # ----------------------------------------------------------------------------------- the writer's part

    def commit(self) -> None:
        """Store what was accepted so far, answer it, hand it on. Raises NotStored or DiskError and keeps all of it."""
        with self._changed:
            batches = list(self._batches)
            self._in_hand = len(batches)
            self._urgent = False
        try:
            self._store_all(batches)
        finally:
            with self._changed:
                self._in_hand = 0

    def _store_all(self, batches: Sequence[Batch]) -> None:
        noted_ms = self._clock.wall_ms()
        answers: dict[tuple[Callable[[str, int], Any], str], int] = {}
        refusals: list[tuple[Batch, Unexpected]] = []
        with self._store.writing({(batch.node, batch.epoch): None for batch in batches}) as marks:
            # True as long as the transaction is open: until then nobody else stores something of these nodes.
            counted = {_outbox(batch) for batch in batches if batch.gap and batch.gap.before}
            tops = {key: self._store.marks(*key, ())[0] for key in counted}
            epoch_commits = _epoch_commits(batches, marks, tops, answers, refusals)
            filed = self._store.put(epoch_commits, noted_ms, self._csv.due())
        with self._changed:
            del self._batches[: len(batches)]
            self._in_hand = 0
            self._waiting, self._waiting_of, self._hurry = 0, {}, self._urgent
            for batch in self._batches:
                self._count(batch)
            self._changed.notify_all()
        for (done, epoch), seq in answers.items():
            done(epoch, seq)
        for batch, error in refusals:
            batch.refused(error)
        self._hand_on(epoch_commits, filed, noted_ms)
        self.repeated += sum(len(batch.samples) for batch in batches) - sum(
            epoch_commit.count for epoch_commit in epoch_commits
        )

    def _hand_on(self, epoch_commits: Sequence[EpochCommit], filed: int, noted_ms: int) -> None:
        self.commits += 1
        for epoch_commit in epoch_commits:
            self.stored += epoch_commit.count
            self._csv.add(epoch_commit, noted_ms)
            sample_batch = next((item for item in reversed(epoch_commit.items) if isinstance(item, SampleBatch)), None)
            if sample_batch and epoch_commit.outbox != IMPORTED:  # what was read from a file is no news
                self.latest[epoch_commit.node] = LatestSample(sample_batch.samples[-1], epoch_commit.units, noted_ms)
        self._csv.flush(filed)
        for watcher in self._watchers:
            watcher(epoch_commits)

    def _run(self) -> None:
        try:
            next_s = self._clock.monotonic()
            while self._gather(next_s):
                self._do_task()
                if self._is_due(next_s):
                    next_s = self._clock.monotonic() + self._commit_s
                    self._commit_or_wait()
            self._finish()
        except DiskError as error:
            self._failed(error)

    def _gather(self, next_s: float) -> bool:
        """Wait until it is time to commit, or to do a task; False when the program stops."""
        with self._changed:
            while not self._stopping.is_set():
                if self._tasks or self._is_due(next_s):
                    return True
                self._changed.wait(max(next_s - self._clock.monotonic(), 0.001) if self._batches else None)
            return False

    def _is_due(self, next_s: float) -> bool:
        return bool(self._batches) and (self._hurry or self._clock.monotonic() >= next_s)

    def _do_task(self) -> None:
        """One of them, if there is one: commits come between two."""
        with self._changed:
            task = self._tasks.pop(0) if self._tasks else None
        if task is None:
            return
        try:
            with self._store.writing(()):
                task.result = task.job()
        except DiskError as error:
            task.error = error
            raise
        except Exception as error:  # it is raised where the job came from: the writer goes on
            task.error = error
        finally:
            with self._changed:
                task.is_done = True
                self._changed.notify_all()

    def _commit_or_wait(self) -> None:
        while not self._stopping.is_set():
            try:
                self.commit()
                if self.fault:
                    log.warning("storing again")
                self.fault = ""
                return
            except NotStored as error:
                if not self.fault:
                    log.error("nothing can be stored, the nodes keep everything: %s", error)
                self.fault = f"nothing can be stored: {error}"
            self._stopping.wait(_RETRY_S)

    def _finish(self) -> None:
        """The last commit, and the log synced with it."""
        try:
            self.commit()
            self._csv.record()
        except NotStored as error:
            log.error("not stored: %s; the nodes keep it", error)


def _epoch_commits(
    batches: Iterable[Batch],
    marks: Mapping[tuple[str, str], HighWaterMark],
    tops: Mapping[tuple[str, str], int],
    answers: dict[tuple[Callable[[str, int], Any], str], int],
    refusals: list[tuple[Batch, Unexpected]],
) -> list[EpochCommit]:
    """What of `batches` is new, by epoch. Whom to acknowledge up to where goes to `answers`, holes go to `refusals`.

    tops  the highest running number stored, of each outbox of which a gap counts earlier epochs
    """
    epoch_commits: dict[tuple[str, str], EpochCommit] = {}
    for batch in batches:
        key = batch.node, batch.epoch
        epoch_commit = epoch_commits.get(key)
        if epoch_commit is None:
            epoch_commit = epoch_commits[key] = EpochCommit(
                batch.node, batch.outbox, batch.epoch, marks.get(key, NOTHING)
            )
        mark = epoch_commit.mark
        if batch.samples and not batch.samples[0].seq:  # from a program that does not number what it sends
            batch = batch._replace(samples=[s._replace(seq=n) for n, s in enumerate(batch.samples, mark.seq + 1)])
        first, last = (batch.samples[0].seq, batch.samples[-1].seq) if batch.samples else _ends(batch)
        if first > mark.seq + 1:
            refusals.append(
                (batch, Unexpected(f"sample {mark.seq + 1} of epoch {batch.epoch} comes next, not {first}"))
            )
            continue
        answers[batch.done, batch.epoch] = last
        epoch_commit.units = batch.units
        if batch.gap is not None and batch.gap.before:
            filed = [other.top for other in epoch_commits.values() if (other.node, other.outbox) == _outbox(batch)]
            is_known = key in marks or bool(epoch_commit.items)
            batch = _not_counted_yet(batch, batch.gap, max(tops[_outbox(batch)], *filed), is_known)
        if last > mark.seq or (batch.gap is not None and batch.gap.before):
            epoch_commit.add(batch, mark.seq + 1 - first)
    return [epoch_commit for epoch_commit in epoch_commits.values() if epoch_commit.items]


def _outbox(batch: Batch) -> tuple[str, str]:
    return batch.node, batch.outbox


def _not_counted_yet(batch: Batch, gap: Gap, top: int, is_known: bool) -> Batch:
    """`batch`, its gap counting of the earlier epochs only what is not accounted for: numbers above `top`.

    The node counts from what was durable when the session began. Since then more may have been stored, or the same gap.
    Where numbers are not told, earlier epochs are counted with the first thing of an epoch only (`is_known`: it came).
    """
    left = (0 if is_known else gap.before) if batch.base is None else max(0, batch.base - top)
    return batch._replace(gap=gap._replace(before=min(gap.before, left)))


def _ends(batch: Batch) -> tuple[int, int]:
    assert batch.gap is not None, "a batch brings samples or a gap"
    return batch.gap.first, batch.gap.last
