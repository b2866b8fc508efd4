"""Plan of a commit: new samples, acknowledgements and rejections. test_ingest contains the tests with a store."""

import unittest

from pigeonpost.server.commit_plan import plan_commit
from pigeonpost.server.node_limits import NodeLimits
from pigeonpost.storage.models import HighWaterMark
from tests.server.test_ingest import E1, E2, batch, gap
from tests.storage.memory_store import MemoryStore


def stored(seq):
    return {("n", E1): HighWaterMark(seq, None)}


class PlanTest(unittest.TestCase):
    def plan(self, *batches, marks=(), tops=()):
        """Return the counts of new samples by epoch, the acknowledgements, and the first seqs of rejected batches."""
        node = batches[0].node
        marks = {(node, epoch): mark for (_, epoch), mark in dict(marks).items()}
        plan = plan_commit(batches, marks, dict(tops), NodeLimits(MemoryStore()).admitted)
        return (
            {commit.epoch: commit.count for commit in plan.epoch_commits},
            {epoch: seq for (_, epoch), seq in plan.acknowledgements.items()},
            [rejected.samples.seq for rejected, _ in plan.rejections],
        )

    def test_batches_of_an_epoch_become_one_commit_and_one_acknowledgement(self):
        self.assertEqual(self.plan(batch(1, 3), batch(4, 5)), ({E1: 5}, {E1: 5}, []))

    def test_epochs_are_planned_separately(self):
        self.assertEqual(self.plan(batch(1, 3), batch(1, 2, epoch=E2)), ({E1: 3, E2: 2}, {E1: 3, E2: 2}, []))

    def test_stored_samples_are_acknowledged_but_not_stored_again(self):
        self.assertEqual(self.plan(batch(1, 3), marks=stored(3)), ({}, {E1: 3}, []))
        self.assertEqual(self.plan(batch(1, 5), marks=stored(3)), ({E1: 2}, {E1: 5}, []))

    def test_batches_after_a_hole_are_rejected(self):
        self.assertEqual(self.plan(batch(1, 2), batch(4, 5), batch(6, 6)), ({E1: 2}, {E1: 2}, [4, 6]))

    def test_gap_fills_a_hole(self):
        self.assertEqual(self.plan(batch(1, 2), gap(3, 3), batch(4, 5)), ({E1: 4}, {E1: 5}, []))

    def test_samples_without_numbers_receive_the_next_numbers(self):
        made = batch(1, 2)
        unnumbered = made._replace(samples=made.samples.numbered(0))
        self.assertEqual(self.plan(unnumbered, unnumbered, marks=stored(7)), ({E1: 4}, {E1: 11}, []))

    def test_plan_without_batches_is_empty(self):
        self.assertEqual(plan_commit([], {}, {}, NodeLimits(MemoryStore()).admitted), ([], {}, []))


if __name__ == "__main__":
    unittest.main()
