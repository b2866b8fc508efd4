"""The simulation with a real store in parallel.

All data in the servers' memory is also written to it, and both must agree.

A test passes a function that makes a new, empty store. Every transaction is applied to both, with the same outcome. The
high-water marks at its start, those that sessions ask for, and finally all samples, gaps and sums are compared. A store
that the simulation deletes or sets back is made again from the one in memory.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

from pigeonpost.link.samples import batches_of
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import EpochCommit, HighWaterMark, LogMark, stretches
from tests.faults.sim_disk import Died
from tests.faults.sim_machines import SimStore
from tests.faults.sim_oracle import Oracle, Violation
from tests.faults.simulate import play
from tests.storage.memory_store import MemoryStore
from tests.support import stored_samples


def play_on(seed: int, make: Callable[[], Store], counts: dict[str, int]) -> None:
    """Play one seed; the numbers of comparisons are added to `counts`. Raises Violation."""
    made: list[Store] = []

    class Shadow(ShadowStore):
        totals = counts

        @staticmethod
        def make() -> Store:
            made.append(make())
            return made[-1]

    judge = Oracle.judge

    def compare_and_judge(oracle: Oracle, name: str, store: Any, *rest: Any, **options: Any) -> dict[str, int]:
        store.compare(name)
        return judge(oracle, name, store, *rest, **options)

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            mock.patch("tests.faults.sim_machines.SimStore", Shadow),
            mock.patch("tests.faults.simulate.SimStore", Shadow),
            mock.patch.object(Oracle, "judge", compare_and_judge),
        ):
            play(seed)
    finally:
        logging.disable(disabled)
        for store in made:
            store.close()


class ShadowStore(SimStore):
    """A store in memory, and a real one that must have the same content."""

    totals: ClassVar[dict[str, int]] = {}

    @staticmethod
    def make() -> Store:
        raise NotImplementedError

    @property
    def real(self) -> Store:
        """The real store. It does not exist yet after the store was set back."""
        if "_real" not in self.__dict__:
            self._real = self.make()
            self._copy_to_real()
        return self._real

    @contextmanager
    def writing(self, epochs: Iterable[tuple[str, str]]) -> Iterator[Mapping[tuple[str, str], HighWaterMark]]:
        keys = list(epochs)
        with self.real.writing(keys) as real, MemoryStore.writing(self, keys) as marks:
            self._agree("marks within a transaction", dict(real), dict(marks))
            yield marks
            if self.doom == "before":
                raise Died
        self._count("transactions")
        if self.doom == "after":
            raise Died

    def put(self, epoch_commits: Sequence[EpochCommit], noted_ms: int, log: LogMark | None) -> int:
        self.real.put(epoch_commits, noted_ms, log)
        return super().put(epoch_commits, noted_ms, log)

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, HighWaterMark]]:
        asked = list(epochs)
        found = super().marks(node, outbox, asked)
        self._agree("marks", self.real.marks(node, outbox, asked), found)
        return found

    def compare(self, name: str) -> None:
        """Compare the complete content."""
        for fault in self.real.verify():
            raise Violation(f"{name}: {fault}")
        edges = {"old_edges_ms": 0}  # which the store in memory does not need
        self._agree("nodes", [edges | about for about in self.real.nodes()], [edges | about for about in self.nodes()])
        samples = sorted(map(repr, stored_samples(self.every_batch())))
        self._agree("samples", sorted(map(repr, stored_samples(self.real.every_batch()))), samples)
        self._agree("gaps", sorted(map(repr, self.real.gaps(-1))), sorted(map(repr, self.gaps(-1))))
        self._count("samples", len(samples))

    def _agree(self, what: str, real: Any, expected: Any) -> None:
        if real != expected:
            raise Violation(f"{what}: the real store returns {real!r:.300} instead of {expected!r:.300}")

    def _count(self, what: str, count: int = 1) -> None:
        self.totals[what] = self.totals.get(what, 0) + count

    def _copy_to_real(self) -> None:
        """Copy the content in memory, which was set back, to the real store."""
        epoch_commits = []
        for (node, epoch), mark in self.epochs.items():
            epoch_commit = EpochCommit(node, "", epoch, mark)
            epoch_commit.units = self.units.get(node, {})
            samples = [sample for *key, sample in self.samples if key == [node, epoch]]
            epoch_commit.items = [stretch for batch in batches_of(samples) for stretch in stretches(batch)]
            epoch_commits.append(epoch_commit)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.real.writing(list(self.epochs)))
            self.real.put(epoch_commits, 0, None)
            for (node, outbox), top in self.tops.items():
                epoch = next(epoch for of, epoch in self.epochs if of == node)
                epoch_commit = EpochCommit(node, outbox, epoch, self.epochs[node, epoch])
                epoch_commit.top = top
                self.real.put([epoch_commit], 0, None)
            for node, epoch, gap, noted_ms in self.gap_rows:
                epoch_commit = EpochCommit(node, "", epoch, self.epochs[node, epoch])
                epoch_commit.items = [gap]
                self.real.put([epoch_commit], noted_ms, None)
