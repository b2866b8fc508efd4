"""Submits batches to the ingestor and waits until they are committed, rejected or cancelled.

Threads: one thread submits and waits; the ingestor's writer thread answers. `_answered` guards the batches without an
  answer and the error; it is held to add, to remove and to look, never while the ingestor is called.
Errors: WireError, with which the ingestor rejected a batch.
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

_RETRY_CANCEL_S = 0.1  # a batch that is being stored cannot be cancelled: that ends soon, one way or the other


class CommitWaiter:
    """The batches that one client has submitted and waits for."""

    def __init__(self, ingestor: Ingestor, clock: Clock) -> None:
        self._ingestor = ingestor
        self._clock = clock
        self._answered = threading.Condition()
        self._streams: dict[tuple[str, str], _Stream] = {}  # by node and epoch
        self._error: WireError | None = None

    def store(self, batches: Iterable[Batch], limit_s: float, overtime_s: float | None = None) -> bool:
        """Make `batches` durable. Returns False when that took longer than `limit_s`.

        They are cancelled then; of several, one that is just being stored may still become durable.

        overtime_s  time that a batch may take in addition if it is just being stored at the limit: it cannot be
                    cancelled then. When that is over, too, it may still be stored after the return. None: no limit

        Raises WireError when one is rejected.
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
        """Submit a batch with this waiter's callbacks. Returns False if it was not taken, as Ingestor.submit does."""
        with self._answered:
            stream = self._streams.setdefault((batch.node, batch.epoch), _Stream(self._answered))
            batch = batch._replace(on_committed=stream.on_committed, on_rejected=self._on_rejected)
            stream.waiting.append(batch)  # before it is submitted: the answer may come before `submit` returns
        is_taken = self._ingestor.submit(batch, urgent=urgent, limit_s=limit_s)
        if not is_taken:
            with self._answered:
                stream.remove(batch)
        return is_taken

    def wait(self, limit_s: float) -> bool:
        """Wait for the answers to all that was submitted. Returns True if all came within `limit_s` seconds.

        Raises the WireError with which a batch was rejected, without waiting for the others.
        """
        with self._answered:
            is_answered = self._answered.wait_for(self._is_answered, limit_s)
            if self._error is not None:
                raise self._take_error()
            return is_answered

    def cancel(self) -> bool:
        """Cancel what is not answered, the last first. Returns True if something was not being stored, and so is."""
        with self._answered:
            waiting = [(stream, batch) for stream in self._streams.values() for batch in stream.waiting]
        cancelled = [(stream, batch) for stream, batch in reversed(waiting) if self._ingestor.cancel(batch)]
        with self._answered:
            for stream, batch in cancelled:
                stream.remove(batch)
        return bool(cancelled)

    def _take_error(self) -> WireError:
        """Return the error, and keep nothing: as `detach` says, it would keep this waiter, and batches keep streams."""
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
            self._error = self._error or error  # what follows it is rejected as well, for another reason
            self._answered.notify_all()

    def _left_s(self, give_up_s: float) -> float:
        return max(0.0, give_up_s - self._clock.monotonic())


class _Stream:
    """The batches of one epoch that have no answer."""

    def __init__(self, answered: threading.Condition) -> None:
        self.waiting: list[Batch] = []
        self._answered = answered

    def remove(self, batch: Batch) -> None:
        """Remove a batch that was not taken, or was cancelled. The caller holds `_answered`."""
        self.waiting = [other for other in self.waiting if other is not batch]

    def on_committed(self, epoch: str, seq: int) -> None:
        """Remove what is durable. A batch without numbers ends with sequence number 0: any answer is its own."""
        with self._answered:
            self.waiting = [batch for batch in self.waiting if batch.ends[1] > seq]
            self._answered.notify_all()
