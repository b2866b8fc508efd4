"""Batches that the Ingestor has no room for, held until it has: for a thread that must not wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from pigeonpost.transports.tcp_session import Marks
from protocol import Batch


class BoundedIngest(Protocol):
    """The Ingestor, as far as it is used here."""

    identity: str

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> Marks:
        """As IngestProtocol.marks."""

    def submit(self, batch: Batch, urgent: bool = False, limit_s: float | None = None) -> bool:
        """As Ingestor.submit: False if there was no room for the batch within `limit_s` seconds."""


class HeldBatches:
    """The Ingestor as the session of one connection sees it: takes every batch, in order, and never waits."""

    def __init__(self, ingest: BoundedIngest) -> None:
        self._ingest = ingest
        self.identity = ingest.identity
        self.marks = ingest.marks
        self._held: deque[Batch] = deque()
        self.count = 0  # of samples that the Ingestor has not taken, by `Batch.weight`

    def submit(self, batch: Batch) -> None:
        """Hand a batch to the Ingestor, or hold it."""
        if self._held or not self._ingest.submit(batch, limit_s=0.0):
            self._held.append(batch)
            self.count += batch.weight

    def hand_on(self) -> None:
        """Try again."""
        while self._held and self._ingest.submit(self._held[0], limit_s=0.0):
            self.count -= self._held.popleft().weight
