"""Ingest of samples: a queue of batches, and one writer thread that commits and then acknowledges them.

Only the writer thread commits. `_changed` (a Condition and its lock) guards the queue and its counts. It is held while
batches are added or removed, and never during a commit. While too many samples are uncommitted, transports wait in
`submit`. So they stop reading from the nodes, and the nodes keep their samples.

Each commit has this order:

1. The transaction stores samples, gaps, high-water marks and the log position, and is durable when it ends.
2. The batches are acknowledged, so the nodes continue after them. After a crash before this step the nodes send the
   samples again, and the high-water marks show that they are stored.
3. The rows are written to the CSV log. This is safe after the acknowledgement, because the store records which rows the
   log has not synced yet. After a crash the next start writes them from the store.
4. The subscribers are called: caches, quality checks and other data that is not durable.

Errors: after NotStored the commit is tried again, and nothing is acknowledged in between; DiskError ends the program
(`failed` is called with it).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from csvbuffer import CsvLog
from pigeonpost.core.clock import FIRST_MS, Clock
from pigeonpost.core.errors import DiskError, NotStored
from pigeonpost.core.format import counted
from pigeonpost.core.redact import hide_secrets
from pigeonpost.server.commit_plan import outbox_of, plan_commit
from pigeonpost.server.latest_samples import LatestSamples
from pigeonpost.server.node_limits import REFUSED, NodeLimits
from pigeonpost.server.node_register import NodeRegister
from pigeonpost.storage.contract import FormerNamesUsed, Store
from pigeonpost.storage.models import EpochCommit, HighWaterMark, StoredBatch
from protocol import Batch, Gap

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_CATCH_UP_S = 1.0  # time after the commit of a backlog for which more of the backlog is expected
_DRY_S = 0.02  # while catching up, commit if no batch has arrived for this time: the backlog has then ended
_MOST_WARNED = 1000  # maximum number of log lines about limits: one per node and kind of limit


Subscriber = Callable[[Sequence[EpochCommit]], Any]
Calibrated = Callable[[Sequence[EpochCommit]], Sequence[EpochCommit]]


class _Task:
    """Job for the writer thread, and its result: see Ingestor.run."""

    def __init__(self, job: Callable[[], Any], then: Callable[[], object], is_logged: bool) -> None:
        self.job, self.then, self.is_logged = job, then, is_logged
        self.result: Any = None
        self.error: Exception | None = None
        self.is_done = False


class Ingestor:
    """Queue of batches, with the writer thread and the last committed sample of each node.

    Attributes:
        identity: Identity of the store.
        names: Current names of the nodes.
        latest: Newest values of each node: LatestSamples.samples.
        received_s: Time of the last commit with new samples of each node: LatestSamples.received_s.
        commit_s: Interval between two commits, in seconds.
        fault: Reason why samples could not be stored; empty again once samples are stored.
        is_blocked: True while each commit fails. It can be False with a `fault`: whether samples can be stored again is
            known only when some arrive, so a transport that refuses them must not wait for the end of the fault.
        stored: Number of samples stored in this run.
        repeated: Number of samples in this run that were stored already.
        commits: Number of commits in this run.
        clock: Clock of the server.
        newest: The component that finds the newest values.
        calibrated: Function that converts the raw values of a commit for the subscribers: Calibrations.commits.
    """

    def __init__(
        self,
        store: Store,
        csv: CsvLog,
        clock: Clock,
        commit_s: float = 1.0,
        buffer_samples: int = 20_000,
        failed: Callable[[BaseException], Any] = lambda error: None,
        limits: NodeLimits | None = None,
        warn: Callable[[str, str, str], Any] = lambda node, kind, text: None,
        names: NodeRegister | None = None,
    ) -> None:
        """Initialise the ingestor without starting its thread.

        Args:
            store: The store.
            csv: CSV log of this run.
            clock: Clock of the server.
            commit_s: Interval between two commits, in seconds. Commits are more frequent while nodes catch up.
            buffer_samples: Maximum number of uncommitted samples.
            failed: Called with the error if the disk fails. It must end the program.
            limits: Limits of what a node may store; None for the default limits.
            warn: Called with (node, kind of limit, text) if a node exceeds a limit.
            names: Current names of the nodes; None for those in the store.
        """
        self.identity = store.identity
        self.names = names or NodeRegister(store)
        self.newest = LatestSamples(store.identity, _last_times(store, clock.wall_ms()))
        self.latest, self.received_s = self.newest.samples, self.newest.received_s
        self.fault = ""
        self.stored = self.repeated = self.commits = 0
        self._store = store
        if store.damage:
            self.fault = "nothing can be stored: the database is damaged"
        self.is_blocked = bool(self.fault)
        self._csv = csv
        self.clock = clock
        self.commit_s = commit_s
        self._buffer_samples = buffer_samples
        self._failed = failed
        self._limits = limits or NodeLimits(store)
        self._warn = warn
        self._warned: set[tuple[str, str]] = set()  # (node, kind of limit) that are logged already
        self._subscribers: list[Subscriber] = []
        self.calibrated: Calibrated = list
        self._changed = threading.Condition()
        self._batches: list[Batch] = []
        self._waiting = 0  # weight of the queued batches: a sample with many values counts as several samples
        self._waiting_of: dict[str, int] = {}  # queued samples by node
        self._hurry = False  # True if the next commit must not wait for `_next_s`
        self._has_backlog = False  # True if so much is queued that nodes will soon have to stop sending
        self._backlog_s = self._arrived_s = -_CATCH_UP_S  # times of the last commit of a backlog and of the last batch
        self._next_s = 0.0  # latest time of the next commit if a batch is queued
        self._oldest_s = 0.0  # time since which the oldest batch is queued, or at which earlier ones were committed
        self._urgent = False  # True if a client waits for a queued batch that is not in the current commit
        self._tasks: list[_Task] = []  # jobs of other threads for the writer thread
        self._in_commit = 0  # number of batches at the start of the queue that are being committed now
        self._is_publishing = False  # True while the log or a subscriber may lack batches that are durable
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Accept no more batches, commit the queue, sync the CSV log and stop.

        Returns a message if this takes longer than `limit_s` seconds, otherwise None.
        """
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(limit_s)
        if not self._thread.is_alive():
            return None
        with self._changed:
            count = sum(batch.sample_count for batch in self._batches)
        return f"{counted(count, 'sample')} not stored; the nodes keep them"

    def flush(self, limit_s: float) -> bool:
        """Commit and publish all batches submitted so far without delay.

        Return True if this took at most `limit_s` seconds. The CSV log and the subscribers then have the samples.
        """
        give_up_s = self.clock.monotonic() + limit_s
        with self._changed:
            last = self._batches[-1] if self._batches else None
            self._hurry = self._hurry or last is not None
            self._urgent = self._urgent or last is not None
            self._changed.notify_all()
            while self._is_publishing or (last is not None and any(batch is last for batch in self._batches)):
                left_s = give_up_s - self.clock.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    @property
    def is_catching_up(self) -> bool:
        """True while nodes send buffered samples, so that commits are needed more often than every `commit_s`."""
        return self._has_backlog or self.clock.monotonic() - self._backlog_s < _CATCH_UP_S

    @property
    def queued(self) -> int:
        """Number of samples that wait for the next commit or are being committed."""
        with self._changed:
            return sum(self._waiting_of.values())

    @property
    def overdue_s(self) -> float:
        """Seconds for which submitted samples have waited for a commit that is due; 0 if none have."""
        return max(0.0, self.clock.monotonic() - self._oldest_s - self.commit_s) if self._batches else 0.0

    @property
    def log_fault(self) -> str:
        """Reason why the CSV log cannot be written, or an empty string."""
        return self._csv.fault

    def next_commit_s(self) -> float:
        """Return the time of the next commit on the clock `clock.monotonic`, in seconds.

        A time in the past means that the commit is made as soon as possible.
        """
        return 0.0 if self._hurry or self.is_catching_up else self._next_s

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with every commit from now on, after it is durable. It must not wait."""
        self._subscribers.append(subscriber)

    # --------------------------------------------------------------------------------- from any thread

    def run(
        self,
        job: Callable[[], Any],
        limit_s: float,
        then: Callable[[], object] = lambda: None,
        is_logged: bool = False,
    ) -> Any:
        """Run a function that changes the store in a transaction of the writer thread.

        Args:
            job: The function.
            limit_s: Maximum wait until the job begins, in seconds.
            then: Called after the transaction, before the next commit.
            is_logged: True to first commit all submitted batches, write the CSV log and record its position.

        Returns:
            The result of `job`. An exception of `job` is raised in the caller.

        Raises:
            NotStored: The job could not begin within `limit_s` seconds, or the program is stopping. It is not run.
        """
        task = _Task(job, then, is_logged)
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()
            self._changed.wait_for(lambda: task.is_done or self._stopping.is_set(), limit_s)
            if not task.is_done and task in self._tasks:
                self._tasks.remove(task)
                raise NotStored(f"the store was busy for {limit_s:g} s, or the program is stopping")
            self._changed.wait_for(lambda: task.is_done)  # the job is running
        if task.error is not None:
            raise task.error
        return task.result

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, HighWaterMark]]:
        """Return the durable high-water marks, without the queued batches: see Store.marks.

        Args:
            node: Current or former name of the node.
            outbox: Id of its outbox.
            epochs: Ids of epochs.
        """
        return self._store.marks(self.names.current(node), outbox, epochs)

    def stored_batches(self, node: str, from_ms: int, to_ms: int) -> Iterator[StoredBatch]:
        """Yield the durable samples of a node with raw values, without the queued batches: see Store.stored_batches.

        Args:
            node: Current or former name of the node.
            from_ms: Start in ms since 1970 (UTC).
            to_ms: End, which is excluded.
        """
        return self._store.stored_batches(self.names.current(node), from_ms, to_ms)

    def submit(self, batch: Batch, urgent: bool = False, limit_s: float | None = None) -> bool:
        """Queue a batch for the next commit. Wait while too many samples are queued.

        One of the callbacks of the batch is called later. While the program is stopping, no batch is accepted and no
        callback is called. The node keeps samples that are not acknowledged.

        Args:
            batch: The batch.
            urgent: True if a client waits for the batch. It is committed as soon as the writer thread is free.
            limit_s: Maximum wait for space in the queue, in seconds; None for no limit.

        Returns:
            False if the batch was not accepted.
        """
        give_up_s = None if limit_s is None else self.clock.monotonic() + limit_s
        with self._changed:
            while self._waiting >= self._buffer_samples and not self._stopping.is_set():
                left_s = 1.0 if give_up_s is None else min(1.0, give_up_s - self.clock.monotonic())
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
            if self._stopping.is_set():
                return False
            # All calls that can fail, for example for lack of memory, come first: once the batch is in the queue, the
            # writer thread must have been woken. It cannot continue before this thread releases the lock.
            sizes = self._sizes(batch)
            hurry = self._hurry or urgent or self._is_backlog(batch, *sizes)
            self._arrived_s = self.clock.monotonic()
            self._oldest_s = self._oldest_s if self._batches else self._arrived_s
            if not self._batches or (hurry and not self._hurry):
                self._changed.notify_all()
            self._batches.append(batch)
            self._hurry = hurry
            self._urgent = self._urgent or urgent
            self._count(batch, *sizes)
        return True

    def cancel(self, batch: Batch) -> bool:
        """Remove `batch` from the queue. Return False if it is being committed or is not in the queue."""
        with self._changed:
            for place, waiting in enumerate(self._batches):
                if waiting is batch and place >= self._in_commit:
                    del self._batches[place]
                    self._waiting, self._waiting_of = 0, {}
                    for other in self._batches:
                        self._count(other, *self._sizes(other))
                    self._changed.notify_all()
                    return True
        return False

    def _sizes(self, batch: Batch) -> tuple[int, int]:
        """Return the weight of all queued batches, and the number of queued samples of the node, with `batch`."""
        return self._waiting + batch.weight, self._waiting_of.get(batch.node, 0) + batch.sample_count

    def _is_backlog(self, batch: Batch, weight: int, node_samples: int) -> bool:
        return node_samples >= batch.window // 2 or weight >= self._buffer_samples // 2

    def _count(self, batch: Batch, weight: int, node_samples: int) -> None:
        self._waiting, self._waiting_of[batch.node] = weight, node_samples
        if self._is_backlog(batch, weight, node_samples):
            self._hurry = self._has_backlog = True

    # ---------------------------------------------------------------------------------- the writer thread

    def announce_renames(self) -> None:
        """Notify all components of renamed nodes.

        This must be called directly after the store has renamed a node, or after a renaming by another server was read.
        """
        for node, new in self.names.take_renames():
            self._limits.undo((node, new))
            self.newest.rename(node, new)
            for hook in self.names.on_rename:
                hook(node, new)

    def commit(self) -> None:
        """Commit the queue, call the callbacks of its batches, and call the subscribers.

        Raises:
            NotStored: The commit failed, and a retry may succeed. All batches stay in the queue.
            DiskError: The commit failed. All batches stay in the queue.
        """
        with self._changed:
            batches = list(self._batches)
            self._in_commit = len(batches)
            self._urgent = False
        try:
            self.names.require()
            self.announce_renames()
            try:
                self._store_all(self._present(batches))
            except FormerNamesUsed as error:
                self._refresh_names(error.names)
                self._store_all(self._present(batches))
        finally:
            with self._changed:
                self._in_commit = 0
                self._is_publishing = False
                self._changed.notify_all()

    def _present(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the batches with the current names of their nodes, which may have been renamed since `submit`."""
        return [
            batch if (name := self.names.current(batch.node)) == batch.node else batch._replace(node=name)
            for batch in batches
        ]

    def _refresh_names(self, used: Collection[str]) -> None:
        """Read the names that another server has changed.

        Some of the `used` names may be former names that a new node uses with its own token. They are released.
        """
        self.names.refresh()
        self.names.require()
        own = [name for name in used if self.names.current(name) == name]
        with self._store.writing(()):
            for name in own:
                self._store.release(name)

    def _store_all(self, batches: Sequence[Batch]) -> None:
        noted_ms = self.clock.wall_ms()
        try:
            with self._store.writing({(batch.node, batch.epoch): None for batch in batches}) as marks:
                # These numbers cannot change while the transaction is open: no other server stores data of these nodes.
                with_earlier = {outbox_of(batch) for batch in batches if batch.gap and batch.gap.before}
                tops = {key: self._store.marks(*key, ())[0] for key in with_earlier}
                self._limits.begin()
                plan = plan_commit(batches, marks, tops, self._limits.admitted)
                filed = self._store.put(plan.epoch_commits, noted_ms, self._csv.due())
        except BaseException:
            self._limits.undo({batch.node for batch in batches})
            raise
        with self._changed:
            del self._batches[: len(batches)]
            self._in_commit, self._oldest_s = 0, self.clock.monotonic()
            self._is_publishing = True
            if self._has_backlog:
                self._backlog_s = self.clock.monotonic()
            self._waiting, self._waiting_of, self._hurry, self._has_backlog = 0, {}, self._urgent, False
            for batch in self._batches:
                self._count(batch, *self._sizes(batch))
            self._changed.notify_all()
        for (on_committed, epoch), seq in plan.acknowledgements.items():
            on_committed(epoch, seq)
        for batch, error in plan.rejections:
            batch.on_rejected(error)
        self._publish(plan.epoch_commits, filed, noted_ms)
        self.repeated += sum(batch.sample_count for batch in batches)
        self.repeated -= sum(epoch_commit.count for epoch_commit in plan.epoch_commits)
        self.repeated -= sum(
            item.last - item.first + 1
            for epoch_commit in plan.epoch_commits
            for item in epoch_commit.items
            if isinstance(item, Gap) and item.why == REFUSED
        )
        for (node, kind), text in self._limits.faults.items():
            self._warn(node, kind, text)
            if (node, kind) not in self._warned and len(self._warned) < _MOST_WARNED:
                self._warned.add((node, kind))
                log.warning("node %s: %s", node, text)

    def _publish(self, epoch_commits: Sequence[EpochCommit], filed: int, noted_ms: int) -> None:
        self.commits += 1
        for epoch_commit in epoch_commits:
            self.stored += epoch_commit.count
            self._csv.add(epoch_commit, noted_ms)
        self.newest.record(epoch_commits, noted_ms, self.clock.monotonic())
        self._csv.flush(filed)
        shown = self.calibrated(epoch_commits)
        for subscriber in self._subscribers:
            subscriber(shown)

    def _run(self) -> None:
        try:
            while self._gather():
                self._do_task()
                if self._is_due():
                    self._next_s = self.clock.monotonic() + self.commit_s
                    self._commit_or_wait()
            self._finish()
        except DiskError as error:
            self._failed(error)

    def _gather(self) -> bool:
        """Wait until a commit or a task is due. Return False if the program is stopping."""
        with self._changed:
            while not self._stopping.is_set():
                if self._tasks or self._is_due():
                    return True
                wait_s = self._due_s() - self.clock.monotonic()
                self._changed.wait(max(wait_s, 0.001) if self._batches else None)
            return False

    def _is_due(self) -> bool:
        return bool(self._batches) and (self._hurry or self.clock.monotonic() >= self._due_s())

    def _due_s(self) -> float:
        """Return the time at which to commit the queue. The end of a backlog does not wait for `_next_s`."""
        return min(self._next_s, self._arrived_s + _DRY_S) if self.is_catching_up else self._next_s

    def _do_task(self) -> None:
        """Run at most one task, so that many tasks do not delay commits."""
        with self._changed:
            task = self._tasks.pop(0) if self._tasks else None
        if task is None:
            return
        try:
            if task.is_logged:
                self.commit()
                self._csv.record()
            with self._store.writing(()):
                task.result = task.job()
            task.then()
        except DiskError as error:
            task.error = error
            raise
        except Exception as error:  # `run` raises it in the thread of its caller; the writer thread continues
            task.error = error
        finally:
            with self._changed:
                task.is_done = True
                self._changed.notify_all()

    def _commit_or_wait(self) -> None:
        while not self._stopping.is_set():
            is_proof = bool(self._batches)  # without samples a commit writes nothing, and succeeds on a full disk too
            try:
                self.commit()
                self.is_blocked = False
                if self.fault and is_proof:
                    log.warning("samples are stored again")
                    self.fault = ""
                return
            except NotStored as error:
                self.is_blocked = True
                if not self.fault:
                    log.error("nothing can be stored, and the nodes keep their samples: %s", error)
                why = "the database is damaged" if self._store.damage else hide_secrets(str(error))
                self.fault = f"nothing can be stored: {why}"
            self._stopping.wait(_RETRY_S)

    def _finish(self) -> None:
        """Make the last commit, and sync the CSV log."""
        try:
            self.commit()
            self._csv.record()
        except NotStored as error:
            log.error("the last samples were not stored: %s; the nodes keep them", error)


def _last_times(store: Store, now_ms: int) -> dict[str, int | None]:
    """Return the time of the last stored sample of each node, before `now_ms` if there is one.

    A later time is that of a wrong clock. Returns nothing if the store cannot be read.
    """
    try:
        times: dict[str, int | None] = {about["name"]: about["last_ms"] for about in store.nodes()}
        for node in [node for node, last_ms in times.items() if last_ms is not None and last_ms > now_ms]:
            times[node] = next((point.time_ms for point in store.points(node, FIRST_MS, now_ms + 1, 1)), None)
        return times
    except (NotStored, DiskError) as error:  # the pages show this fault; late data may be shown as current values
        log.debug("the times of the last samples cannot be read: %s", error)
        return {}
