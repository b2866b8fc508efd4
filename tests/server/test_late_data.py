"""What came late, and what has no sure time: marked for the charts, bounded, and judged by the node's own clock."""

import unittest
from types import SimpleNamespace

from pigeonpost.core.clock import FakeClock
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.late_data import LATE_MS, LateDataTracker
from pigeonpost.storage.models import EpochCommit, HighWaterMark, LateRange
from protocol import Gap, Sample

MINUTE_MS = 60_000


def sample_batch(times, clock=""):
    return SampleBatch.of([Sample(seq, time_ms, seq, {"t": 1}, {}, clock) for seq, time_ms in enumerate(times, 1)])


def epoch_commit(node, *items):
    found = EpochCommit(node, "0" * 16, "0" * 16, HighWaterMark(0, None))
    found.items = list(items)
    return found


class Lateness(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.now_ms = self.clock.wall_ms()
        self.links = []
        self.late = LateDataTracker(self.clock, self.links)

    def spans(self, node="basement"):
        return self.late.within(node, 0, 1 << 60)

    def test_what_comes_at_once_is_not_late(self):
        self.late.on_commit(
            [epoch_commit("basement", sample_batch([self.now_ms - LATE_MS, self.now_ms]), Gap(1, 2, 0, "why"))]
        )
        self.assertEqual(self.spans(), [])

    def test_what_was_held_is_late_up_to_five_minutes_ago(self):
        times = range(self.now_ms - 60 * MINUTE_MS, self.now_ms, MINUTE_MS)
        self.late.on_commit([epoch_commit("basement", sample_batch(times))])
        self.assertEqual(self.spans(), [LateRange(times[0], self.now_ms - LATE_MS - MINUTE_MS, True)])
        self.assertEqual(self.spans("attic"), [])

    def test_a_backlog_in_pieces_is_one_span(self):
        begin = self.now_ms - 600 * MINUTE_MS
        for k in (2, 0, 1):
            first = begin + k * 50 * MINUTE_MS
            self.late.on_commit(
                [epoch_commit("basement", sample_batch(range(first, first + 50 * MINUTE_MS, MINUTE_MS)))]
            )
        self.assertEqual(self.spans(), [LateRange(begin, begin + 149 * MINUTE_MS, True)])

    def test_an_unset_clock_is_told_apart(self):
        self.late.on_commit([epoch_commit("basement", sample_batch([1000, 2000], "unset"))])
        self.late.on_commit([epoch_commit("basement", sample_batch([1500, 2500], "server"))])
        self.assertEqual(self.spans(), [LateRange(1000, 2000, False), LateRange(1500, 2500, True)])

    def test_only_what_is_asked_for(self):
        self.late.on_commit([epoch_commit("basement", sample_batch([1000, 2000]))])
        for from_ms, to_ms, count in ((0, 1000, 0), (0, 1001, 1), (1500, 1600, 1), (2000, 3000, 1), (2001, 3000, 0)):
            self.assertEqual(len(self.late.within("basement", from_ms, to_ms)), count, (from_ms, to_ms))

    def test_a_clock_that_is_known_to_be_wrong_makes_nothing_late(self):
        self.links.append(SimpleNamespace(state=SimpleNamespace(name="basement", offset_ms=-60 * MINUTE_MS)))
        for node in ("basement", "attic"):
            self.late.on_commit([epoch_commit(node, sample_batch([self.now_ms - 60 * MINUTE_MS]))])
        self.assertEqual((len(self.spans()), len(self.spans("attic"))), (0, 1))

    def test_it_stays_small(self):
        for k in range(300):
            self.late.on_commit([epoch_commit("basement", sample_batch([k * 10_000_000]))])
        self.assertEqual([span.first_ms for span in self.spans()], [k * 10_000_000 for k in range(200, 300)])
        for k in range(1100):
            self.late.on_commit([epoch_commit(f"n{k}", sample_batch([1000]))])
        self.assertEqual(len(self.late._spans), 1000)


if __name__ == "__main__":
    unittest.main()
