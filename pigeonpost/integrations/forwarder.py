"""Forwarder: sends all samples to one target, continues at a durable position, and never loses its place.

Each target has a thread. It sends the last commits from memory if they directly follow what it has sent, and otherwise
reads the store. So a target that is away costs no memory, and late data of old epochs is sent at its true time.
Errors: none for callers. A target that is away, damage of the store and internal errors are faults of the forwarder,
which tries again with growing delays. Samples that a target will never accept are set aside, one by one.

`_behind` contains the epochs that are not sent completely. Only the thread uses it.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.core.errors import DiskError, MissingLibrary, NotStored, StoreDamaged
from pigeonpost.core.format import counted
from pigeonpost.core.redact import hide_secrets
from pigeonpost.core.wakeup import Wakeup
from pigeonpost.integrations.contract import ForwardBatch, ForwardTarget, NotDelivered, RefusedData
from pigeonpost.integrations.forward_position import Key, Known, NotKept, PositionFile
from pigeonpost.integrations.forward_progress import ForwardProgress
from pigeonpost.integrations.forward_settings import ForwardTable, read_forward_tables
from pigeonpost.integrations.forward_source import (
    MOST_QUEUED,
    ForwardSource,
    ends_of,
    halves,
    joined,
    sample_count,
)
from pigeonpost.integrations.forward_targets import KINDS
from pigeonpost.storage.models import EpochCommit, EpochMark
from pigeonpost.transports.contract import IntegrationStatus, Transport
from pigeonpost.transports.registry import without_library

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.storage.contract import Store
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
LONGEST_PAUSE_S = 86_400.0  # longest pause that a target may demand
LOOK_S = 10.0  # interval between two queries for samples that other servers have stored
CHECK_S = 15.0  # interval between two checks of the connection, while the target may lose samples
STOP_S = 1.0  # longest wait for the thread, which may be connecting: the other components need the rest of the limit
_UNREADABLE_S = 60.0  # time after which an epoch that cannot be read is tried again
_LONGEST_WAIT_S = 3600.0
_MOST_HELD = 16  # samples refused one by one, without any success in this run, until the settings are doubted


class SetAside(NamedTuple):
    """Sample that a target will never accept.

    Attributes:
        node: Name of the node.
        epoch: Id of the epoch.
        seq: Sequence number.
        reason: Reason of the target.
    """

    node: str
    epoch: str
    seq: int
    reason: str


class _Request(NamedTuple):
    """Samples to send together.

    Attributes:
        batches: The samples.
        ends: Positions after the request, by node and epoch.
    """

    batches: list[ForwardBatch]
    ends: dict[Key, int]


class Forwarder(Transport):
    """Forwarder to one target."""

    def __init__(
        self, table: ForwardTable, target: ForwardTarget, file: PositionFile, store: Store, clock: Clock,
        current: Callable[[str], str] = lambda node: node, most_queued: int = MOST_QUEUED,
    ) -> None:  # fmt: skip
        """Prepare the forwarder. If the target is new, its first position is recorded now, before any new commit.

        Args:
            table: Settings of the target.
            target: The target.
            file: File of the positions.
            store: The store, with calibrated values.
            clock: Clock of the server.
            current: Function that returns the current name of a node.
            most_queued: Maximum number of samples in memory.
        """
        self._table, self._target, self._file, self._store, self._clock = table, target, file, store, clock
        self._current = current
        again_s = target.again_s if table.again_s is None else table.again_s
        self._progress = ForwardProgress(table.name, file, again_s, clock.monotonic)
        self._wake = Wakeup()
        self._source = ForwardSource(store, table.nodes, table.sensors, current, self._wake.set, most_queued)
        self._behind: dict[Key, EpochMark] = {}
        self._ended: dict[Key, int] = {}  # marks of epochs that end with a gap, and have nothing else to send
        self._renames: list[tuple[str, str]] = []  # renamings that are not in the file of positions yet
        self._unreadable: dict[Key, float] = {}  # epochs that cannot be read, and the time of the next attempt
        self._backlog = 0
        self._look_s = 0.0  # time of the next query for the marks
        self._is_begun = False
        self._success_ms: int | None = None
        self._contact_s = 0.0  # time of the last answer of the target
        self._done = self._refused = 0
        self._held: list[tuple[ForwardBatch, str]] = []  # refused samples, while there was no success in this run
        self._set_aside: SetAside | None = None
        self._faults: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"forward {table.name}", daemon=True)
        try:
            self._begin()
        except (NotKept, NotStored, DiskError) as error:  # the thread tries again
            self._record("start", f"cannot begin: {error}")

    # -------------------------------------------------------------------------------------------------- any thread

    @property
    def fault(self) -> str:  # type: ignore[override]  # computed, and only read
        """Present faults, or an empty string."""
        faults = dict(self._faults)
        faults["positions"] = self._progress.fault
        if self._set_aside is not None:
            node, epoch, seq, reason = self._set_aside
            faults["refused"] = (
                f"{counted(self._refused, 'sample')} refused permanently; the last one is {seq} of epoch {epoch} of"
                f" {node}: {reason}. They stay in the database of this server, and the log lists them. This fault ends"
                " with the next start"
            )
        return "; ".join(text for text in faults.values() if text)

    def statuses(self) -> Sequence[IntegrationStatus]:
        table = self._table
        return (
            IntegrationStatus(
                f"forward {table.name}", table.kind, "out", self._target.place, self._success_ms,
                self._backlog + self._source.waiting, "samples", self._done, self._refused, self.fault,
            ),
        )  # fmt: skip

    def on_commit(self, epoch_commits: Sequence[EpochCommit]) -> None:
        """Add `epoch_commits` to what is sent next. Runs in the Ingestor's writer thread."""
        try:
            self._source.on_commit(epoch_commits)
        except Exception as error:  # collecting must continue
            self._record_internal(error)

    def on_rename(self, node: str, new: str) -> None:
        """Continue with the samples of `node` under its new name `new`. Runs in the Ingestor's writer thread."""
        try:
            self._source.on_rename(node, new)
        except Exception as error:  # collecting must continue
            self._record_internal(error)

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Abort the request that is being sent, and stop. The position shows the next start what is missing."""
        self._stopping.set()
        self._wake.set()
        self._target.close()
        if self._thread.ident is not None:
            self._thread.join(min(limit_s, STOP_S))
        self._file.close()
        return f"forward {self._table.name}: its thread did not stop" if self._thread.is_alive() else None

    # -------------------------------------------------------------------------------------------------- its thread

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            pause_s = 0.0
            try:
                self._step()
            except NotDelivered as error:
                failures += 1
                if not error.has_answered:
                    self._fall_back()
                pause_s = min(error.pause_s or 0.0, LONGEST_PAUSE_S)
                # A connection that the target has closed, because it was idle, is not a fault.
                if failures > 1 or pause_s:
                    place = self._target.place
                    self._record("target", f"{place} does not accept samples: {str(error).removeprefix(f'{place}: ')}")
            except (NotKept, NotStored, DiskError) as error:
                failures += 1
                self._record("data", f"this server's data cannot be read: {error}")
            except Exception as error:
                failures += 1
                self._fall_back()
                self._record_internal(error)
            else:
                failures = 0
                self._faults = {"epochs": self._faults.get("epochs", "")}
                self._wait()
                continue
            delay_s = min(RETRY_S * 2 ** min(failures - 1, 16), LONGEST_RETRY_S) * random.uniform(0.5, 1.0)
            self._pause(max(delay_s, pause_s))
        self._target.close()

    def _pause(self, pause_s: float) -> None:
        """Wait for `pause_s` seconds, and check the connection meanwhile, so that it is not closed as idle."""
        while pause_s > 0 and not self._stopping.wait(min(pause_s, CHECK_S)):
            pause_s -= CHECK_S
            try:
                self._check()
                self._progress.settle()
            except NotDelivered:
                self._fall_back()

    def _step(self) -> None:
        """Send one request, if there is something to send."""
        self._begin()
        self._check()
        self._progress.settle()
        commits = self._take()
        if self._clock.monotonic() >= self._look_s:
            self._look()
        request = self._next_request(commits)
        self._count_backlog()
        if request.ends and not self._stopping.is_set():
            if request.batches:
                self._held.clear()
                self._deliver(request.batches)
                self._check_held()
            # Samples without any sensor to forward count as sent.
            self._progress.advance({key: end for key, end in request.ends.items() if self._progress.sent(key) < end})
            for key, end in request.ends.items():
                if key in self._behind and self._behind[key].seq <= end:
                    del self._behind[key]
            self._count_backlog()

    def _check(self) -> None:
        """Check the connection, so that a target that has lost samples is noticed before they count as certain."""
        now_s, next_s = self._clock.monotonic(), self._check_s()
        if next_s <= now_s:
            self._target.check()
            self._contact_s = now_s

    def _check_s(self) -> float:
        """Return the time of the next check; infinite if all positions are certain."""
        certain_s = self._progress.next_s()
        if certain_s == float("inf"):
            return certain_s
        next_s = self._contact_s + CHECK_S
        return next_s if certain_s <= self._contact_s else min(next_s, certain_s)

    def _wait(self) -> None:
        """Wait for new samples, unless there are more to send."""
        now_s = self._clock.monotonic()
        if any(key not in self._unreadable for key in self._behind):
            return
        unreadable_s = (self._unreadable[key] for key in self._behind)
        next_s = min(self._look_s, self._progress.next_s(), self._check_s(), *unreadable_s, now_s + _LONGEST_WAIT_S)
        self._wake.wait(max(0.0, next_s - now_s))

    def _begin(self) -> None:
        """Record the first position of a new target."""
        if self._is_begun:
            return
        name = self._table.name
        known = self._file.known(name)
        if known is Known.NEW and not self._table.has_history:
            present = self._source.marks()
            self._file.begin(name, {key: mark.seq for key, mark in present.items()})
        elif known is not Known.BEGUN:
            if known is Known.LOST:
                log.warning("forward %s: its positions are lost, so everything stored is sent again", name)
            self._file.begin(name, {})
        self._file.remember(name)
        self._is_begun = True

    def _take(self) -> dict[Key, list[EpochCommit]]:
        """Process the changes since the last call, and return the commits by node and epoch."""
        news = self._source.take()
        for node, new in news.renames:
            self._rename(node, new)
        for key, mark in news.marks.items():
            self._add(key, mark)
        self._move_positions()
        found: dict[Key, list[EpochCommit]] = {}
        for commit in news.commits:
            found.setdefault((commit.node, commit.epoch), []).append(commit)
        return found

    def _add(self, key: Key, mark: EpochMark) -> None:
        known = self._behind.get(key)
        if known is None or known.seq < mark.seq:
            self._behind[key] = mark if mark.outbox or known is None else mark._replace(outbox=known.outbox)

    def _rename(self, node: str, new: str) -> None:
        for key in [key for key in self._behind if key[0] == node]:
            self._add((new, key[1]), self._behind.pop(key))
        self._ended, self._unreadable = {}, {}
        self._renames.append((node, new))

    def _move_positions(self) -> None:
        """Move the positions of renamed nodes. If one cannot be moved, nothing is sent until it is."""
        while self._renames:
            self._progress.move(*self._renames[0])
            del self._renames[0]

    def _look(self) -> None:
        """Compare the positions with the marks of the store: at the start, and if other servers write to it."""
        marks, sent = self._source.marks(), self._progress.all()
        for node in {node for node, _ in sent} - {node for node, _ in marks}:
            new = self._current(node)  # it was renamed while this server was down, or by another server
            if new != node and any(name == new for name, _ in marks):
                self._rename(node, new)
                sent = {(new if key[0] == node else key[0], key[1]): seq for key, seq in sent.items()}
        self._move_positions()
        for key, mark in marks.items():
            if sent.get(key, 0) < mark.seq and self._ended.get(key) != mark.seq:
                self._add(key, mark)
        self._look_s = self._clock.monotonic() + (LOOK_S if self._store.is_shared else float("inf"))

    def _next_request(self, commits: Mapping[Key, list[EpochCommit]]) -> _Request:
        """Return the next samples: first those in memory, then stored ones."""
        request, now_s = _Request([], {}), self._clock.monotonic()
        for key in [*commits, *(key for key in self._behind if key not in commits)]:
            room = self._target.most - sample_count(request.batches)
            if room <= 0:
                break
            if self._unreadable.get(key, 0.0) > now_s:
                continue
            mark, after = self._behind[key], self._progress.sent(key)
            found = list(joined(commits.get(key, ()), after, room))
            if not found:
                found = self._stored(key, mark, after, room)
            for batch in found:
                wanted = self._source.only_wanted(batch)
                if wanted is not None:
                    request.batches.append(wanted)
            request.ends.update(ends_of(found))
        return request

    def _stored(self, key: Key, mark: EpochMark, after: int, room: int) -> list[ForwardBatch]:
        """Return the next stored samples of an epoch. If there are none, the rest of it is a gap, or has expired."""
        try:
            found = self._source.stored(key, mark.outbox, after, room)
        except StoreDamaged as error:
            self._unreadable[key] = self._clock.monotonic() + _UNREADABLE_S
            self._faults["epochs"] = f"samples of {key[0]} cannot be read: {error}"
            return []
        if self._unreadable.pop(key, None) and not self._unreadable:
            self._faults["epochs"] = ""
        if not found:
            self._ended[key] = mark.seq
            del self._behind[key]
        return found

    def _deliver(self, batches: Sequence[ForwardBatch]) -> None:
        """Send samples. If the target refuses them, send each half of them, and set a single sample aside.

        Raises:
            NotDelivered: The target does not accept samples now.
        """
        count = sample_count(batches)
        try:
            self._target.send(batches)
        except RefusedData as error:
            if count > 1:
                for half in halves(batches):
                    self._deliver(half)
                return
            self._held.append((batches[0], str(error)))
            if self._success_ms is None:
                if len(self._held) >= _MOST_HELD:
                    self._check_held()
                return
        else:
            self._done += count
            self._contact_s = self._clock.monotonic()
            self._success_ms = self._clock.wall_ms()
            self._progress.advance(ends_of(batches))
        for batch, reason in self._held:
            self._put_aside(batch, reason)
        self._held.clear()

    def _check_held(self) -> None:
        """Raise NotDelivered if samples were refused, and this run has no success: the settings may be wrong."""
        if self._held:
            reason = self._held[0][1]
            raise NotDelivered(f"it refuses every sample; check the settings of this target: {reason}")

    def _put_aside(self, batch: ForwardBatch, reason: str) -> None:
        """Count a refused sample, and continue after it."""
        self._refused += 1
        self._set_aside = SetAside(batch.node, batch.epoch, batch.samples.seq, hide_secrets(reason))
        log.warning("forward %s: sample %d of epoch %s of node %s was refused: %s", self._table.name,
                    batch.samples.seq, batch.epoch, batch.node, self._set_aside.reason)  # fmt: skip
        self._progress.advance(ends_of([batch]))

    def _fall_back(self) -> None:
        """Go back to the positions that are certain, because the target may have lost the samples after them."""
        for key, seq in self._progress.fall_back().items():
            self._add(key, EpochMark(seq, ""))
        self._count_backlog()

    def _count_backlog(self) -> None:
        count = 0
        try:
            for key, mark in self._behind.items():
                count += max(0, mark.seq - self._progress.sent(key))
        except NotKept:
            pass  # shown as a fault by the next step
        self._backlog = count

    def _record(self, subject: str, text: str) -> None:
        text = hide_secrets(text)
        if self._faults.get(subject) != text:
            log.warning("forward %s: %s", self._table.name, text)
        self._faults[subject] = text

    def _record_internal(self, error: Exception) -> None:
        log.error("forward %s", self._table.name, exc_info=error)
        self._record("internal", f"internal error, see the log: {type(error).__name__}: {error}")


def make(context: ServerContext) -> dict[str, Transport]:
    """Return the forwarders of all [[forward]] tables, by name.

    Args:
        context: Context of the server.

    Raises:
        SettingsError: A table is invalid.
    """
    settings = context.settings
    tables = read_forward_tables(settings.tables["forward"], settings.file, KINDS)
    file = PositionFile(context.data, context.faults, context.clock)
    parts: dict[str, Transport] = {}
    for table in tables:
        name = f"forward {table.name}"
        try:
            target = KINDS[table.kind](table.table, table.where, context)
        except MissingLibrary as error:
            parts[name] = without_library(error)
            continue
        forwarder = Forwarder(
            table, target, file, context.store, context.clock, context.current, MOST_QUEUED // len(tables)
        )  # fmt: skip
        context.ingestor.subscribe(forwarder.on_commit)
        if context.names is not None:
            context.names.on_rename.append(forwarder.on_rename)
        parts[name] = forwarder
    return parts
