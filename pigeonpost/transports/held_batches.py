"""Queue of batches for which the Ingestor has no capacity yet, for a thread that must not wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from pigeonpost.transports.tcp_session import Marks
from protocol import Batch


class BoundedIngest(Protocol):
    """The part of the Ingestor that HeldBatches uses."""

    identity: str

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> Marks:
        """Return the stored high-water marks of `epochs` in the `outbox` of `node`; see IngestProtocol.marks."""

    def submit(self, batch: Batch, urgent: bool = False, limit_s: float | None = None) -> bool:
        """Queue a batch and return True, or return False if there is no capacity for it.

        Args:
            batch: The samples or the gap.
            urgent: Commit immediately.
            limit_s: Longest wait for capacity in seconds, or None for no limit.
        """


class HeldBatches:
    """The Ingestor as the session of one connection uses it: it accepts every batch, in order, and never waits.

    Attributes:
        count: Number of held samples, by `Batch.weight`.
    """

    def __init__(self, ingest: BoundedIngest) -> None:
        self._ingest = ingest
        self.identity = ingest.identity
        self.marks = ingest.marks
        self._held: deque[Batch] = deque()
        self.count = 0

    def submit(self, batch: Batch) -> None:
        """Pass `batch` to the Ingestor, or hold it if the Ingestor has no capacity."""
        if self._held or not self._ingest.submit(batch, limit_s=0.0):
            self._held.append(batch)
            self.count += batch.weight

    def hand_on(self) -> None:
        """Pass held batches to the Ingestor while it has capacity."""
        while self._held and self._ingest.submit(self._held[0], limit_s=0.0):
            self.count -= self._held.popleft().weight
