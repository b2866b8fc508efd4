"""Waiter that submits batches to the ingestor and waits until they are committed, rejected or cancelled.

One thread submits and waits. The ingestor's writer thread calls the callbacks. `_answered` guards the batches without
an answer and the error. It is held while these are changed or read, and never while the ingestor is called.
Errors: the WireError with which the ingestor rejected a batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pigeonpost.core.errors import WireError, detach
from protocol import Batch

if TYPE_CHECKING:
    from pigeonpost.core.clock import Clock
    from pigeonpost.server.ingest import Ingestor

_RETRY_CANCEL_S = 0.1  # a batch in the current commit cannot be cancelled, but this commit will soon succeed or fail


class CommitWaiter:
    """Batches that one client has submitted and waits for."""

    def __init__(self, ingestor: Ingestor, clock: Clock) -> None:
        """Initialise a waiter without batches. `clock` is the clock of the `ingestor`."""
        self._ingestor = ingestor
        self._clock = clock
        self._answered = threading.Condition()
        self._streams: dict[tuple[str, str], _Stream] = {}  # by node and epoch
        self._error: WireError | None = None

    def store(self, batches: Iterable[Batch], limit_s: float, overtime_s: float | None = None) -> bool:
        """Submit batches and wait until they are durable.

        Args:
            batches: The batches.
            limit_s: Time limit in seconds. After it, the remaining batches are cancelled. Batches that are being
                committed at that time cannot be cancelled, and may still become durable.
            overtime_s: Additional time limit in seconds while no batch can be cancelled, because all of them are being
                committed. After it, they may still become durable. None for no limit.

        Returns:
            True if all batches are durable.

        Raises:
            WireError: A batch was rejected.
        """
        give_up_s = self._clock.monotonic() + limit_s
        for batch in batches:
            if not self.submit(batch, urgent=True, limit_s=self._left_s(give_up_s)):
                self.cancel()
                return False
        left_s = self._left_s(give_up_s)
        while not self.wait(left_s):
            if self.cancel():
                return False
            if overtime_s is not None and self._clock.monotonic() > give_up_s + overtime_s:
                return False
            left_s = _RETRY_CANCEL_S
        return True

    def submit(self, batch: Batch, urgent: bool = False, limit_s: float | None = None) -> bool:
        """Submit `batch` with this waiter's callbacks. Return False if it was not accepted.

        `urgent` and `limit_s` are those of Ingestor.submit.
        """
        with self._answered:
            stream = self._streams.setdefault((batch.node, batch.epoch), _Stream(self._answered))
            batch = batch._replace(on_committed=stream.on_committed, on_rejected=self._on_rejected)
            stream.waiting.append(batch)  # before it is submitted: the answer may come before `submit` returns
        is_accepted = self._ingestor.submit(batch, urgent=urgent, limit_s=limit_s)
        if not is_accepted:
            with self._answered:
                stream.remove(batch)
        return is_accepted

    def wait(self, limit_s: float) -> bool:
        """Wait for the answers to all submitted batches. Return True if all arrived within `limit_s` seconds.

        Raises:
            WireError: A batch was rejected. The other batches are not waited for.
        """
        with self._answered:
            is_answered = self._answered.wait_for(self._is_answered, limit_s)
            if self._error is not None:
                raise self._take_error()
            return is_answered

    def cancel(self) -> bool:
        """Cancel the batches without an answer, the last one first. Return True if at least one was cancelled."""
        with self._answered:
            waiting = [(stream, batch) for stream in self._streams.values() for batch in stream.waiting]
        cancelled = [(stream, batch) for stream, batch in reversed(waiting) if self._ingestor.cancel(batch)]
        with self._answered:
            for stream, batch in cancelled:
                stream.remove(batch)
        return bool(cancelled)

    def _take_error(self) -> WireError:
        """Return the error and remove all batches.

        Otherwise the error and the batches would keep each other in memory: see `detach`.
        """
        for stream in self._streams.values():
            stream.waiting = []
        error, self._error = self._error, None
        assert error is not None
        detach(error)
        return error

    def _is_answered(self) -> bool:
        return self._error is not None or not any(stream.waiting for stream in self._streams.values())

    def _on_rejected(self, error: WireError) -> None:
        with self._answered:
            self._error = self._error or error  # later batches are rejected because of the first error
            self._answered.notify_all()

    def _left_s(self, give_up_s: float) -> float:
        return max(0.0, give_up_s - self._clock.monotonic())


class _Stream:
    """Batches of one epoch that are not answered yet."""

    def __init__(self, answered: threading.Condition) -> None:
        self.waiting: list[Batch] = []
        self._answered = answered

    def remove(self, batch: Batch) -> None:
        """Remove a batch that was not accepted or was cancelled. The caller holds `_answered`."""
        self.waiting = [other for other in self.waiting if other is not batch]

    def on_committed(self, epoch: str, seq: int) -> None:
        """Remove the batches up to `seq`. The end of a batch without sequence numbers is 0, so any call removes it."""
        with self._answered:
            self.waiting = [batch for batch in self.waiting if batch.ends[1] > seq]
            self._answered.notify_all()
