"""The node's durable outbox: numbers samples, writes them to the ring file, and reads them as often as needed.

A thread of its own alone appends to the ring; `put` only queues, so a slow disk never delays sampling. Reading needs no
lock: the ring's list of runs is replaced, never changed. `_writing` serializes changes of the ring (samples, ON/OFF,
forks), and is held until the disk has confirmed one. `_watching` guards the set of watchers, and is held for a moment.
Errors: DiskError ends the program (`failed` is called with it): what is not durable was never accepted.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pigeonpost.core.errors import DiskError, Unexpected
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.wakeup import Wakeup
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import SeqRange, Slot, UnnumberedSample

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

QUEUE_SAMPLES = 10_000  # that may wait for the disk: a quarter of an hour at ten a second
MOST_FORKS = 32

Wake = Callable[[], object]


class Outbox:
    """The outbox: the ring file and its writer thread."""

    def __init__(
        self,
        ring: Ring,
        boot_id: str,
        sync_s: float = 0.0,
        failed: Callable[[BaseException], Any] = lambda error: None,
        new_epoch: Callable[[], str] = lambda: os.urandom(8).hex(),
    ) -> None:
        """
        ring     the file
        boot_id  16 hex digits that differ at every boot of this machine
        sync_s   seconds that samples may gather before they are written together; 0: each as soon as the disk is free.
                 A crash costs what has gathered, which was not accepted yet
        failed   told when the disk fails; ends the program
        """
        self.ring = ring
        self.epoch = new_epoch()
        self.dropped = 0
        self._new_epoch = new_epoch
        self._next_seq = 1
        self._boot_id = boot_id
        self._sync_s = sync_s
        self._failed = failed
        self._queue: deque[UnnumberedSample] = deque()
        self._arrived = Wakeup()
        self._stopping = threading.Event()
        self._writing = threading.Lock()
        self._watching = threading.Lock()
        self._watchers: frozenset[Wake] = frozenset()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    # ------------------------------------------------------------------------------------------- in

    def start(self) -> None:
        """Begin to write what is put."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Write what is queued and end; says so when that takes longer than `limit_s` seconds."""
        self._stopping.set()
        self._arrived.set()
        self._thread.join(limit_s)
        return f"{len(self._queue)} samples still wait for the disk" if self._thread.is_alive() else None

    def put(self, taken: UnnumberedSample) -> None:
        """Queue a sample. It is accepted once the disk has confirmed it; a full queue drops it, and counts."""
        if len(self._queue) < QUEUE_SAMPLES:
            self._queue.append(taken)
            self._arrived.set()
            return
        if not self.dropped:
            log.error("the disk keeps %d samples waiting: new ones are dropped until it goes on", QUEUE_SAMPLES)
        self.dropped += 1

    def commit(self) -> int:
        """Make durable what is queued, one batch at most; tell the watchers; how many samples it was."""
        with self._writing:
            # Never the whole ring: of a batch that a crash tears nothing may be left, nor of what it was written over.
            count = min(len(self._queue), self.ring.most_at_once)
            if not count:
                return 0
            samples = [self._queue.popleft() for _ in range(count)]
            try:
                self.ring.append(self.epoch, self._next_seq, self._boot_id, samples)
            except DiskError as error:
                self._failed(error)
                raise
            self._next_seq += count
        for wake in self._watchers:
            wake()
        return count

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._arrived.wait()
                if self._sync_s:
                    self._stopping.wait(self._sync_s)
                    self._arrived.wait(0)  # for what came meanwhile, which is written now
                while self._queue:
                    self.commit()
            while self._queue:
                self.commit()
        except DiskError:
            pass  # `commit` has said so, and the program ends

    # ------------------------------------------------------------------------------------------ out

    def held(self) -> list[list[Any]]:
        """`[epoch, first, last, number of first]` of every epoch that is held, oldest first, the current one last."""
        runs = self.ring.runs
        held: list[list[Any]] = [[run.epoch, run.first, run.last, run.number] for run in runs]
        if not runs or runs[-1].epoch != self.epoch:
            held.append([self.epoch, 1, 0, runs[-1].last_number + 1 if runs else 1])
        return held

    def run_at(self, number: int) -> SeqRange | None:
        """The run that holds the sample with the running `number`; else the next one after it; None at the end."""
        runs = self.ring.runs
        at = bisect_left(runs, number, key=lambda run: run.last_number)
        return runs[at] if at < len(runs) else None

    def run_of(self, epoch: str) -> SeqRange | None:
        """The (latest) run of `epoch`, if any of it is held."""
        return next((run for run in reversed(self.ring.runs) if run.epoch == epoch), None)

    def read(self, number: int, count: int) -> list[Slot | None]:
        """Read up to `count` samples from the running `number` on; None for a damaged one."""
        with self._disk_errors():
            return self.ring.read(number, count)

    def watch(self, wake: Wake) -> None:
        """Call `wake` (which must only set a flag) whenever samples were accepted."""
        with self._watching:
            self._watchers |= {wake}

    def unwatch(self, wake: Wake) -> None:
        """Do not call it any more."""
        with self._watching:
            self._watchers -= {wake}

    # ---------------------------------------------------------------------------------------- state

    @property
    def on(self) -> bool:
        """Whether the node is to take samples; kept over restarts."""
        return bool(self.ring.state["on"])

    def switch(self, on: bool) -> None:
        """Turn ON or OFF, durably."""
        with self._writing, self._disk_errors():
            if on != self.on:
                self.ring.change_state(on=on)

    def fork(self, epoch: str, seq: int) -> str:
        """Give what is held of `epoch` from `seq` on, and what follows, a new epoch; returns it.

        For a node that finds out that another live copy of its card has used these numbers. Raises Unexpected when
        that was found out too often to be believed.
        """
        with self._writing, self._disk_errors():
            if len(self.ring.forks_held()) >= MOST_FORKS:
                raise Unexpected(f"this outbox has been forked {MOST_FORKS} times; is it copied while it runs?")
            new, run, held = self._new_epoch(), self.run_of(epoch), 0
            if run and seq <= run.last:
                start = run.number + max(0, seq - run.first)
                held = run.last_number - start + 1
                self.ring.fork(start, run.last_number, new)
            if epoch == self.epoch:
                self.epoch, self._next_seq = new, held + 1
            return new

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """A disk that fails ends the program also when a connection's thread finds out, which goes on to close only."""
        try:
            yield
        except DiskError as error:
            self._failed(error)
            raise
