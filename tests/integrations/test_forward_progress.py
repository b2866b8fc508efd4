"""Tests of the positions of a forward target in memory: what is certain, and what is sent again."""

import unittest

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.faults import Faults
from pigeonpost.integrations import forward_progress
from pigeonpost.integrations.forward_position import Known, PositionFile
from pigeonpost.integrations.forward_progress import STAGES, ForwardProgress
from tests.page_support import use_memory_disk
from tests.support import temp_folder

A, B = ("a", "e1"), ("b", "e1")


def setUpModule():
    use_memory_disk()


class ProgressTest(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.file = PositionFile(temp_folder(self), Faults(), self.clock)
        self.addCleanup(self.file.close)
        self.progress = self.make(160)

    def make(self, again_s):
        return ForwardProgress("t", self.file, again_s, self.clock.monotonic)

    def test_positions_are_certain_after_the_time_and_one_stage(self):
        self.progress.advance({A: 5})
        for wait_s, seq in ((160, {}), (9, {}), (1, {A: 5})):
            self.clock.sleep(wait_s)
            self.progress.settle()
            self.assertEqual(self.file.read("t"), seq)
        self.assertEqual(self.progress.next_s(), float("inf"))

    def test_fall_back_returns_to_the_certain_positions(self):
        self.progress.advance({A: 5})
        self.clock.sleep(100)
        self.progress.advance({A: 8, B: 2})
        self.clock.sleep(70)
        self.progress.settle()
        self.assertEqual(self.progress.fall_back(), {A: 8, B: 2})
        self.assertEqual((self.progress.sent(A), self.progress.sent(B)), (5, 0))
        self.assertEqual(self.make(160).sent(A), 5)

    def test_number_of_stages_is_limited(self):
        for seq in range(1, 2000):
            self.progress.advance({A: seq})
            self.clock.sleep(0.5)
            self.assertLessEqual(len(self.progress._stages), STAGES + 1)
        self.assertEqual(self.progress.all(), {A: 1999})
        self.assertGreater(self.file.find("t", A), 1999 - 2 * 160 - 40)

    def test_positions_of_a_renamed_node_move_with_those_that_are_not_certain(self):
        self.progress.advance({A: 5})
        self.clock.sleep(170)
        self.progress.advance({A: 7, B: 1})
        self.progress.move("a", "c")
        self.assertEqual(self.progress.all(), {("c", "e1"): 7, B: 1})
        self.assertEqual(self.progress.fall_back(), {("c", "e1"): 7, B: 1})
        self.assertEqual(self.make(0).all(), {("c", "e1"): 5})

    def test_number_of_certain_positions_in_memory_is_limited(self):
        progress, forward_progress._MOST_KEPT = self.make(0), 3
        self.addCleanup(setattr, forward_progress, "_MOST_KEPT", 10_000)
        for number in range(10):
            progress.advance({("a", str(number)): 1})
            self.assertLessEqual(len(progress._positions), 4)
        self.assertEqual(len(progress.all()), 10)

    def test_targets_are_independent_of_each_other(self):
        self.assertIs(self.file.known("t"), Known.NEW)
        self.file.begin("t", {A: 3})
        self.assertEqual((self.file.known("t"), self.file.known("u")), (Known.BEGUN, Known.NEW))
        self.assertEqual((self.file.read("t"), self.file.read("u"), self.file.find("u", A)), ({A: 3}, {}, None))
