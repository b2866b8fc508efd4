"""Time ranges of late samples and of uncertain times, limited in number and judged by the node's own clock."""

import os
import unittest
from types import SimpleNamespace

from pigeonpost.core.clock import FakeClock
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.late_data import LATE_MS, LateDataTracker
from pigeonpost.storage.models import EpochCommit, HighWaterMark, LateRange
from protocol import Gap, Sample
from tests.support import temp_folder

MINUTE_MS = 60_000


def sample_batch(times, clock=""):
    return SampleBatch.of([Sample(seq, time_ms, seq, {"t": 1}, {}, clock) for seq, time_ms in enumerate(times, 1)])


def epoch_commit(node, *items):
    found = EpochCommit(node, "0" * 16, "0" * 16, HighWaterMark(0, None))
    found.items = list(items)
    return found


class LateDataTest(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.now_ms = self.clock.wall_ms()
        self.links = []
        self.late = LateDataTracker(self.clock, self.links)

    def spans(self, node="basement"):
        return self.late.within(node, 0, 1 << 60)

    def test_samples_that_arrive_promptly_are_not_late(self):
        self.late.on_commit(
            [epoch_commit("basement", sample_batch([self.now_ms - LATE_MS, self.now_ms]), Gap(1, 2, 0, "why"))]
        )
        self.assertEqual(self.spans(), [])

    def test_buffered_samples_older_than_five_minutes_are_late(self):
        times = range(self.now_ms - 60 * MINUTE_MS, self.now_ms, MINUTE_MS)
        self.late.on_commit([epoch_commit("basement", sample_batch(times))])
        self.assertEqual(self.spans(), [LateRange(times[0], self.now_ms - LATE_MS - MINUTE_MS, True)])
        self.assertEqual(self.spans("attic"), [])

    def test_backlog_of_several_batches_is_one_range(self):
        begin = self.now_ms - 600 * MINUTE_MS
        for k in (2, 0, 1):
            first = begin + k * 50 * MINUTE_MS
            self.late.on_commit(
                [epoch_commit("basement", sample_batch(range(first, first + 50 * MINUTE_MS, MINUTE_MS)))]
            )
        self.assertEqual(self.spans(), [LateRange(begin, begin + 149 * MINUTE_MS, True)])

    def test_range_of_an_unset_clock_is_separate(self):
        self.late.on_commit([epoch_commit("basement", sample_batch([1000, 2000], "unset"))])
        self.late.on_commit([epoch_commit("basement", sample_batch([1500, 2500], "server"))])
        self.assertEqual(self.spans(), [LateRange(1000, 2000, False), LateRange(1500, 2500, True)])

    def test_only_ranges_in_the_requested_time_are_returned(self):
        self.late.on_commit([epoch_commit("basement", sample_batch([1000, 2000]))])
        for from_ms, to_ms, count in ((0, 1000, 0), (0, 1001, 1), (1500, 1600, 1), (2000, 3000, 1), (2001, 3000, 0)):
            self.assertEqual(len(self.late.within("basement", from_ms, to_ms)), count, (from_ms, to_ms))

    def test_known_clock_offset_does_not_make_samples_late(self):
        self.links.append(SimpleNamespace(state=SimpleNamespace(name="basement", offset_ms=-60 * MINUTE_MS)))
        for node in ("basement", "attic"):
            self.late.on_commit([epoch_commit(node, sample_batch([self.now_ms - 60 * MINUTE_MS]))])
        self.assertEqual((len(self.spans()), len(self.spans("attic"))), (0, 1))

    def test_number_of_ranges_is_limited(self):
        for k in range(300):
            self.late.on_commit([epoch_commit("basement", sample_batch([k * 10_000_000]))])
        self.assertEqual([span.first_ms for span in self.spans()], [k * 10_000_000 for k in range(200, 300)])
        for k in range(1100):
            self.late.on_commit([epoch_commit(f"n{k}", sample_batch([1000]))])
        self.assertEqual(len(self.late._spans), 1000)


class SavedRangesTest(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.path = os.path.join(temp_folder(self), "late_ranges.json")

    def tracker(self):
        return LateDataTracker(self.clock, (), self.path)

    def spans(self):
        return self.tracker().within("basement", 0, 1 << 60)

    def test_ranges_survive_a_restart(self):
        late = self.tracker()
        late.on_commit(
            [epoch_commit("basement", sample_batch([1000, 2000])), epoch_commit("attic", sample_batch([1], "unset"))]
        )
        late.save()
        self.assertEqual(self.spans(), [LateRange(1000, 2000, True)])
        self.assertEqual(self.tracker().within("attic", 0, 9), [LateRange(1, 1, False)])

    def test_longer_range_is_saved_every_ten_minutes_and_at_the_end(self):
        late = self.tracker()
        late.on_commit([epoch_commit("basement", sample_batch([1000]))])
        late.save()
        for wait_s, now, last_ms in ((11, False, 1000), (588, False, 1000), (1, False, 4000), (1, True, 5000)):
            with self.subTest(wait_s=wait_s):
                late.on_commit([epoch_commit("basement", sample_batch([4000 if not now else 5000]))])
                self.clock.sleep(wait_s)
                late.save(now)
                self.assertEqual(self.spans(), [LateRange(1000, last_ms, True)])

    def test_new_range_is_saved_after_ten_seconds(self):
        late = self.tracker()
        for k, wait_s, count in ((1, 0, 1), (2, 9, 1), (3, 1, 3)):
            with self.subTest(k=k):
                late.on_commit([epoch_commit("basement", sample_batch([k * 10_000_000]))])
                self.clock.sleep(wait_s)
                late.save()
                self.assertEqual(len(self.spans()), count)

    def test_file_is_not_written_if_no_range_has_changed(self):
        late = self.tracker()
        starts = [k * 10_000_000 for k in range(1, 101)]  # as many ranges as are kept
        late.on_commit([epoch_commit("basement", sample_batch([start, start + 2000])) for start in starts])
        late.save()
        os.remove(self.path)
        for name, times in (("inside", [10_000_500, 10_001_000]), ("equal", [10_000_000, 10_002_000]), ("old", [1])):
            with self.subTest(name):
                late.on_commit([epoch_commit("basement", sample_batch(times))])
                self.clock.sleep(600)
                late.save()
                late.save(now=True)
                self.assertFalse(os.path.exists(self.path))

    def test_renamed_node_keeps_its_ranges(self):
        late = self.tracker()
        late.on_commit([epoch_commit("cellar", sample_batch([1000]))])
        late.on_rename("cellar", "basement")
        late.save()
        self.assertEqual(self.spans(), [LateRange(1000, 1000, True)])

    def test_damaged_file_is_read_as_empty_and_replaced(self):
        ranges = (b"5", b"[[1, 2]]", b'[["1", 2, true]]', b"[[1, 2, 3]]")
        for content in (b"", b"{", b"[]", b"\xff", *(b'{"basement": %s}' % one for one in ranges)):
            with self.subTest(content=content):
                with open(self.path, "wb") as file:
                    file.write(content)
                with self.assertLogs("pigeonpost.server.late_data", "WARNING"):
                    late = self.tracker()
                late.on_commit([epoch_commit("basement", sample_batch([1000]))])
                late.save()
                self.assertEqual(self.spans(), [LateRange(1000, 1000, True)])

    def test_range_that_cannot_be_saved_is_saved_later(self):
        late = self.tracker()
        os.mkdir(self.path)
        late.on_commit([epoch_commit("basement", sample_batch([1000]))])
        with self.assertLogs("pigeonpost.server.late_data", "WARNING"):
            late.save()
        os.rmdir(self.path)
        late.save(now=True)
        self.assertEqual(self.spans(), [LateRange(1000, 1000, True)])


if __name__ == "__main__":
    unittest.main()
