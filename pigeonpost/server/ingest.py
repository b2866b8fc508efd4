"""Ingest of samples: a queue of batches, and one writer thread that commits them, then acknowledges them.

The writer thread alone commits. `_changed` (a Condition and its lock) guards the queue and its counts; it is held to
add or take batches, never during a commit. While too much is uncommitted, transports wait in `submit` and so stop
reading from their nodes, which keep everything.
Errors: after NotStored the commit is tried again, and nothing is acknowledged meanwhile; DiskError ends the program
(`failed` is called with it).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from csvbuffer import CsvLog
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import DiskError, NotStored
from pigeonpost.core.redact import hide_secrets
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.commit_plan import outbox_of, plan_commit
from pigeonpost.server.node_limits import REFUSED, NodeLimits
from pigeonpost.server.node_register import NodeRegister, move_key
from pigeonpost.storage.contract import FormerNamesUsed, Store
from pigeonpost.storage.models import EpochCommit, HighWaterMark
from protocol import IMPORTED, Batch, Gap, Sample

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_CATCH_UP_S = 1.0  # after a commit of a backlog: so long more of it is expected,
_DRY_S = 0.02  # and what has come is committed once nothing more came for so long
_MOST_WARNED = 1000  # lines of log about limits, one for each node and kind of limit


class LatestSample(NamedTuple):
    """The last committed sample of a node, and the time of its commit."""

    sample: Sample
    units: Mapping[str, str]
    committed_ms: int


Subscriber = Callable[[Sequence[EpochCommit]], Any]


class _Task:
    """A job for the writer thread, and its result; see Ingestor.run."""

    def __init__(self, job: Callable[[], Any], then: Callable[[], object], is_logged: bool) -> None:
        self.job, self.then, self.is_logged = job, then, is_logged
        self.result: Any = None
        self.error: Exception | None = None
        self.is_done = False


class Ingestor:
    """The queue of batches, the writer thread, and the last committed sample of each node."""

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
        """
        commit_s        seconds between two commits; sooner while nodes catch up
        buffer_samples  uncommitted samples at most
        failed          told when the disk fails; ends the program
        limits          of what a node may store; None: the usual ones
        warn            told (node, kind of limit, text) when something of a node is over a limit
        names           the present names of nodes; None: those that the store knows
        """
        self.identity = store.identity
        self.names = names or NodeRegister(store)
        self.latest: dict[str, LatestSample] = {}
        self.fault = ""  # why nothing can be stored now; empty when all is well
        self.stored = self.repeated = self.commits = 0  # of this run
        self._store = store
        if store.damage:
            self.fault = "nothing can be stored: the database is damaged"
        self._csv = csv
        self.clock = clock
        self._commit_s = commit_s
        self._buffer_samples = buffer_samples
        self._failed = failed
        self._limits = limits or NodeLimits(store)
        self._warn = warn
        self._warned: set[tuple[str, str]] = set()  # node and kind of limit of which the log has told
        self._subscribers: list[Subscriber] = []
        self._changed = threading.Condition()
        self._batches: list[Batch] = []
        self._waiting = 0  # samples in them, with many values more,
        self._waiting_of: dict[str, int] = {}  # and samples of each node
        self._hurry = False  # whether the next commit is at once,
        self._has_backlog = False  # since so much is waiting that nodes soon must not send more
        self._backlog_s = self._came_s = -_CATCH_UP_S  # when a backlog was last committed, and when a batch last came
        self._next_s = 0.0  # when the next commit is, at the latest, if a batch waits
        self._urgent = False  # somebody waits for a batch that came after those in hand
        self._tasks: list[_Task] = []  # of others, for the writer
        self._in_hand = 0  # of the batches, the first: so many are being stored just now
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Begin to commit what is accepted."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Take nothing more, commit what was taken, sync the log; says so when `limit_s` seconds were not enough."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(limit_s)
        if not self._thread.is_alive():
            return None
        with self._changed:
            count = sum(batch.sample_count for batch in self._batches)
        return f"{count} samples were not stored; their nodes keep them"

    def flush(self, limit_s: float) -> bool:
        """Commit what was submitted so far, at once. Returns True if that was done within `limit_s` seconds."""
        give_up_s = self.clock.monotonic() + limit_s
        with self._changed:
            last = self._batches[-1] if self._batches else None
            self._hurry = self._hurry or last is not None
            self._urgent = self._urgent or last is not None
            self._changed.notify_all()
            while last is not None and any(batch is last for batch in self._batches):
                left_s = give_up_s - self.clock.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    @property
    def is_catching_up(self) -> bool:
        """Whether nodes send what they have held: faster than it is committed otherwise."""
        return self._has_backlog or self.clock.monotonic() - self._backlog_s < _CATCH_UP_S

    def next_commit_s(self) -> float:
        """Return when what is submitted next is committed, by `clock.monotonic`; past: as soon as possible."""
        return 0.0 if self._hurry or self.is_catching_up else self._next_s

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with every commit, once it is durable; it must not wait."""
        self._subscribers.append(subscriber)

    # --------------------------------------------------------------------------------- from any thread

    def run(
        self,
        job: Callable[[], Any],
        limit_s: float,
        then: Callable[[], object] = lambda: None,
        is_logged: bool = False,
    ) -> Any:
        """Run `job`, which changes the store, in a transaction of the writer thread. Returns its result, or raises.

        then       is called after the transaction, before anything else is committed
        is_logged  before it all that was submitted is committed, and the CSV log written and recorded

        Raises NotStored when it could not begin within `limit_s` seconds; then it is not run.
        """
        task = _Task(job, then, is_logged)
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
        """Return the marks of what is durable, so not of what still waits here; see Store.marks.

        node: its present name, or a former one
        """
        return self._store.marks(self.names.current(node), outbox, epochs)

    def submit(self, batch: Batch, urgent: bool = False, limit_s: float | None = None) -> bool:
        """Queue a batch for the next commit, waiting while too much is queued. Returns False if it was not taken.

        urgent   a client waits for it: it is committed as soon as the writer is free
        limit_s  how long to wait for room; None: without limit

        The batch is answered by one of its callbacks. While the program stops nothing is taken and nothing answered:
        the node keeps what is not acknowledged.
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
            self._batches.append(batch)
            self._came_s = self.clock.monotonic()
            was_calm = not self._hurry
            self._hurry = self._hurry or urgent
            self._urgent = self._urgent or urgent
            self._count(batch)
            if len(self._batches) == 1 or (self._hurry and was_calm):
                self._changed.notify_all()
        return True

    def cancel(self, batch: Batch) -> bool:
        """Remove a batch from the queue. Returns False if it is being stored just now, or is not there (any more)."""
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
        self._waiting += batch.weight
        of_node = self._waiting_of.get(batch.node, 0) + batch.sample_count
        self._waiting_of[batch.node] = of_node
        if of_node >= batch.window // 2 or self._waiting >= self._buffer_samples // 2:
            self._hurry = self._has_backlog = True

    # ----------------------------------------------------------------------------------- the writer's part

    def announce_renames(self) -> None:
        """Have all parts know renamed nodes by their new names: right after the store does, or another server told."""
        for node, new in self.names.take_renames():
            self._limits.undo((node, new))
            move_key(self.latest, node, new)
            for hook in self.names.on_rename:
                hook(node, new)

    def commit(self) -> None:
        """Store what was submitted so far, answer it, and call the subscribers.

        Raises NotStored or DiskError; then all of it stays in the queue.
        """
        with self._changed:
            batches = list(self._batches)
            self._in_hand = len(batches)
            self._urgent = False
        try:
            self.names.require()
            self.announce_renames()
            try:
                self._store_all(self._present(batches))
            except FormerNamesUsed as error:
                self._learn_names(error.names)
                self._store_all(self._present(batches))
        finally:
            with self._changed:
                self._in_hand = 0

    def _present(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the batches under the present names of their nodes, which may have been renamed meanwhile."""
        return [
            batch if (name := self.names.current(batch.node)) == batch.node else batch._replace(node=name)
            for batch in batches
        ]

    def _learn_names(self, used: Collection[str]) -> None:
        """Learn what another server has renamed; those of `used` that are nodes, by a token, get their names."""
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
                # True as long as the transaction is open: until then nobody else stores something of these nodes.
                counted = {outbox_of(batch) for batch in batches if batch.gap and batch.gap.before}
                tops = {key: self._store.marks(*key, ())[0] for key in counted}
                self._limits.begin()
                plan = plan_commit(batches, marks, tops, self._limits.admitted)
                filed = self._store.put(plan.epoch_commits, noted_ms, self._csv.due())
        except BaseException:
            self._limits.undo({batch.node for batch in batches})
            raise
        with self._changed:
            del self._batches[: len(batches)]
            self._in_hand = 0
            if self._has_backlog:
                self._backlog_s = self.clock.monotonic()
            self._waiting, self._waiting_of, self._hurry, self._has_backlog = 0, {}, self._urgent, False
            for batch in self._batches:
                self._count(batch)
            self._changed.notify_all()
        for (on_committed, epoch), seq in plan.acknowledgements.items():
            on_committed(epoch, seq)
        for batch, error in plan.rejections:
            batch.on_rejected(error)
        self._hand_on(plan.epoch_commits, filed, noted_ms)
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

    def _hand_on(self, epoch_commits: Sequence[EpochCommit], filed: int, noted_ms: int) -> None:
        self.commits += 1
        for epoch_commit in epoch_commits:
            self.stored += epoch_commit.count
            self._csv.add(epoch_commit, noted_ms)
            sample_batch = next((item for item in reversed(epoch_commit.items) if isinstance(item, SampleBatch)), None)
            if sample_batch and epoch_commit.outbox != IMPORTED:  # what was read from a file is no news
                self.latest[epoch_commit.node] = LatestSample(sample_batch[-1], epoch_commit.units, noted_ms)
        self._csv.flush(filed)
        for subscriber in self._subscribers:
            subscriber(epoch_commits)

    def _run(self) -> None:
        try:
            while self._gather():
                self._do_task()
                if self._is_due():
                    self._next_s = self.clock.monotonic() + self._commit_s
                    self._commit_or_wait()
            self._finish()
        except DiskError as error:
            self._failed(error)

    def _gather(self) -> bool:
        """Wait until it is time to commit, or to do a task; False when the program stops."""
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
        """Return when to commit what is waiting: the end of a backlog does not wait for `_next_s`."""
        return min(self._next_s, self._came_s + _DRY_S) if self.is_catching_up else self._next_s

    def _do_task(self) -> None:
        """One of them, if there is one: commits come between two."""
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
                why = "the database is damaged" if self._store.damage else hide_secrets(str(error))
                self.fault = f"nothing can be stored: {why}"
            self._stopping.wait(_RETRY_S)

    def _finish(self) -> None:
        """The last commit, and the log synced with it."""
        try:
            self.commit()
            self._csv.record()
        except NotStored as error:
            log.error("not stored: %s; the nodes keep it", error)
