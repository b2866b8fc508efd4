"""Waits until a batch is committed or rejected.

Runs on: server.
"""

from __future__ import annotations

import threading

from pigeonpost.core.errors import WireError


class CommitWaiter:
    """What a batch is answered with, or several of one epoch, to be waited for."""

    def __init__(self, last: int = 0) -> None:
        """last: up to where everything is to be durable; 0: whatever is answered first will do"""
        self._last = last
        self.seq = 0  # up to which everything is durable
        self.error: WireError | None = None  # the batch was refused
        self._answered = threading.Event()

    def done(self, epoch: str, seq: int) -> None:
        """As Batch.done."""
        self.seq = seq
        if seq >= self._last:
            self._answered.set()

    def refused(self, error: WireError) -> None:
        """As Batch.refused."""
        self.error = error
        self._answered.set()

    def wait(self, limit_s: float) -> bool:
        """Whether it was answered within `limit_s` seconds; raises the error with which it was refused."""
        answered = self._answered.wait(limit_s)
        if self.error is not None:
            raise self.error
        return answered
