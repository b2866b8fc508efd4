"""Durable outbox of a node: numbers the samples, writes them to the ring file and reads them for the transports.

Only the outbox's own thread appends samples to the ring. `put` only adds a sample to a queue, so a slow disk never
delays sampling. Reading needs no lock, because the ring's list of runs (ranges of consecutive samples) is replaced as a
whole and never modified.
`_writing` serialises changes of the ring (samples, ON/OFF, forks) and is held until the disk has confirmed the change.
`_watching` guards the set of watchers and is held only for a short time.
Errors: DiskError ends the program (`failed` is called with it), because only durable samples are ever sent.
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
from pigeonpost.core.format import counted
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.wakeup import Wakeup
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import SeqRange, Slot, UnnumberedSample

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

QUEUE_SAMPLES = 10_000  # samples that can wait for the disk: about a quarter of an hour at ten samples per second
MOST_FORKS = 32  # more are not plausible: the outbox is then probably copied while the node runs

Wake = Callable[[], object]


class Outbox:
    """The ring file and the thread that writes to it.

    Attributes:
        ring: The ring file.
        epoch: Epoch of new samples, 16 hex digits. Each start of the node begins a new epoch.
        dropped: Number of samples dropped because the queue was full.
    """

    def __init__(
        self,
        ring: Ring,
        boot_id: str,
        sync_s: float = 0.0,
        failed: Callable[[BaseException], Any] = lambda error: None,
        new_epoch: Callable[[], str] = lambda: os.urandom(8).hex(),
    ) -> None:
        """Create the outbox without starting its thread.

        Args:
            ring: The open ring file.
            boot_id: 16 hex digits that are different at every boot of this machine.
            sync_s: Time in seconds for which samples are collected before they are written together; 0 writes each
                sample as soon as the disk is ready. A crash loses the samples that are not written yet.
            failed: Function that is called with the exception when the disk fails; it ends the program.
            new_epoch: Function that returns a new epoch.
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

    # ---------------------------------------------------------------------------------------- writing

    def start(self) -> None:
        """Start the thread that writes the samples of the queue."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """Write the samples of the queue and end the thread.

        Args:
            limit_s: Maximum time to wait, in seconds.

        Returns:
            None, or a message with the number of samples that are not written yet.
        """
        self._stopping.set()
        self._arrived.set()
        self._thread.join(limit_s)
        return f"{counted(len(self._queue), 'sample')} not yet written to the disk" if self._thread.is_alive() else None

    def put(self, sample: UnnumberedSample) -> None:
        """Add `sample` to the queue, or drop and count it if the queue is full.

        The sample is accepted once the disk has confirmed that it is written.
        """
        if len(self._queue) < QUEUE_SAMPLES:
            self._queue.append(sample)
            self._arrived.set()
            return
        if not self.dropped:
            log.error(
                "%d samples wait for the disk: new samples are dropped until the disk responds again", QUEUE_SAMPLES
            )
        self.dropped += 1

    def commit(self) -> int:
        """Write samples of the queue durably, in one write, and call the watchers. Return the number of samples.

        The ring limits the number of samples in one write (`Ring.most_at_once`).

        Raises:
            DiskError: The samples cannot be written.
        """
        with self._writing:
            # The limit is at most half of the ring. A crash during the write can damage all samples of the write, and
            # it loses the samples that they overwrite. The other samples of the ring must remain.
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
                    self._arrived.wait(0)  # reset: the samples that arrived in the meantime are written now
                while self._queue:
                    self.commit()
            while self._queue:
                self.commit()
        except DiskError:
            pass  # `commit` has reported the error, and the program ends

    # ---------------------------------------------------------------------------------------- reading

    def held(self) -> list[list[Any]]:
        """Return `[epoch, first, last, number]` for each epoch in the outbox, oldest first.

        `first` and `last` are sequence numbers, and `number` is the running number of the first sample. The current
        epoch is always the last entry, even without samples.
        """
        runs = self.ring.runs
        held: list[list[Any]] = [[run.epoch, run.first, run.last, run.number] for run in runs]
        if not runs or runs[-1].epoch != self.epoch:
            held.append([self.epoch, 1, 0, runs[-1].last_number + 1 if runs else 1])
        return held

    def run_at(self, number: int) -> SeqRange | None:
        """Return the run with the sample of the running `number`, or else the next run; None after the last run."""
        runs = self.ring.runs
        at = bisect_left(runs, number, key=lambda run: run.last_number)
        return runs[at] if at < len(runs) else None

    def run_of(self, epoch: str) -> SeqRange | None:
        """Return the latest run of `epoch`, or None if the outbox contains no sample of it."""
        return next((run for run in reversed(self.ring.runs) if run.epoch == epoch), None)

    def read(self, number: int, count: int) -> list[Slot | None]:
        """Return up to `count` samples, beginning with the running `number`; None in place of a damaged sample.

        Raises:
            DiskError: The file cannot be read.
        """
        with self._disk_errors():
            return self.ring.read(number, count)

    def watch(self, wake: Wake) -> None:
        """Call `wake` after each commit of samples. It must return immediately, so it should only set a flag."""
        with self._watching:
            self._watchers |= {wake}

    def unwatch(self, wake: Wake) -> None:
        """Stop calling `wake`."""
        with self._watching:
            self._watchers -= {wake}

    # ------------------------------------------------------------------------------------------ state

    @property
    def on(self) -> bool:
        """True if sampling is ON. The state is kept when the node restarts."""
        return bool(self.ring.state["on"])

    def switch(self, on: bool) -> None:
        """Turn sampling ON if `on` is true, else OFF, durably.

        Raises:
            DiskError: The state cannot be written.
        """
        with self._writing, self._disk_errors():
            if on != self.on:
                self.ring.change_state(on=on)

    def fork(self, epoch: str, seq: int) -> str:
        """Move the samples of `epoch` from the sequence number `seq` on to a new epoch, and return the new epoch.

        If `epoch` is the current epoch, samples that are not yet written also get the new epoch.

        A node does this when it finds out that a copy of its outbox, for example on a copied SD card, has used the same
        sequence numbers for other samples.

        Raises:
            DiskError: The fork cannot be stored.
            Unexpected: The outbox has been forked too often.
        """
        with self._writing, self._disk_errors():
            if len(self.ring.forks_held()) >= MOST_FORKS:
                raise Unexpected(f"this outbox has been forked {MOST_FORKS} times; is it copied while the node runs?")
            # Only epochs and sequence numbers change. The running numbers, and thus the slots, stay the same.
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
        """Pass a DiskError to `failed`, which ends the program.

        The error alone would only close the connection whose thread has called the outbox.
        """
        try:
            yield
        except DiskError as error:
            self._failed(error)
            raise
