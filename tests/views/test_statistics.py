"""Statistics of time ranges, from samples and from rollups, compared with a direct calculation."""

import math
import statistics
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.http.message import HTTPError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.storage.models import EpochCommit, HighWaterMark, LogMark
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.views import statistics as views_statistics
from pigeonpost.views.statistics import StatisticsReader
from protocol import Batch, Sample
from tests.page_support import set_zone, use_memory_disk
from tests.storage.test_contract import Direct
from tests.support import temp_folder

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000


def setUpModule():
    use_memory_disk()


class StatisticsOfRanges(unittest.TestCase):
    def setUp(self):
        set_zone(self, "UTC")
        self.clock = FakeClock()
        self.now_ms = self.clock.wall_ms() // HOUR_MS * HOUR_MS + 1_234_567
        self.store = SqliteStore(temp_folder(self))
        self.addCleanup(self.store.close)
        self.figures = StatisticsReader(self.store, self.clock)
        self.seq = 0

    def put(self, values, every_ms, end_ms=None):
        """Store a value of `t` every `every_ms` up to `end_ms`, and return (time, value) of each that is not None."""
        end_ms = end_ms or self.now_ms - 1
        times = [end_ms - (len(values) - 1 - k) * every_ms for k in range(len(values))]
        samples = [
            Sample(self.seq + k, at, k, {"t": value}, {}, "") for k, (at, value) in enumerate(zip(times, values), 1)
        ]
        epoch_commit = EpochCommit("n", "0" * 16, "0" * 16, HighWaterMark(self.seq, None))
        epoch_commit.add(Batch("n", "0" * 16, "0" * 16, 0, SampleBatch.of(samples), None, {}, print, print), 0)
        with self.store.writing(()):
            self.store.put([epoch_commit], self.now_ms, LogMark("a.csv", 1, 0, 1 << 40))
        self.seq += len(samples)
        return [(at, value) for at, value in zip(times, values) if value is not None]

    def sum_up(self):
        worker = MaintenanceWorker(self.store, Direct(self.store), self.clock)
        self.clock.sleep(7200)
        while worker.work():
            pass

    def of(self, days):
        return self.figures.of("n", "t", int(self.now_ms - days * DAY_MS), self.now_ms)

    def assert_right(self, found, put):
        values = [value for at, value in put if found.from_ms <= at < found.to_ms]
        self.assertEqual((found.values, found.low, found.high), (len(values), min(values), max(values)))
        self.assertAlmostEqual(found.mean, statistics.fmean(values), 9)
        self.assertAlmostEqual(found.deviation, statistics.pstdev(values), 9)
        self.assertIn((found.low_ms, found.low), put)
        self.assertIn((found.high_ms, found.high), put)

    def test_statistics_of_a_day_are_exact(self):
        put = self.put([(k * 7919) % 1000 / 8 for k in range(2000)], MINUTE_MS)
        found = self.of(1)
        self.assert_right(found, put)
        values = [value for at, value in put if found.from_ms <= at]
        self.assertTrue(found.is_exact)
        self.assertEqual(found.median, statistics.median(values))
        self.assertEqual(found.mode, min(statistics.multimode(values)))

    def test_only_median_and_mode_of_long_ranges_are_approximate(self):
        put = self.put([20 + 5 * math.sin(k / 100) + (k * 7919) % 100 / 100 for k in range(9000)], 5 * MINUTE_MS)
        for summed in (False, True):
            if summed:
                self.sum_up()
            for days in (7, 30):
                self.figures._kept.clear()
                found = self.of(days)
                self.assert_right(found, put)
                values = [value for at, value in put if found.from_ms <= at]
                self.assertAlmostEqual(found.median, statistics.median(values), delta=0.5)
                self.assertFalse(found.is_exact)

    def test_windows_without_a_rollup_are_counted(self):
        put = self.put([float(k % 50) for k in range(240)], 40 * MINUTE_MS, self.now_ms - HOUR_MS)
        self.sum_up()
        put += self.put([100.0 + k % 50 for k in range(120)], 61 * MINUTE_MS, self.now_ms - DAY_MS)
        before = self.of(7)
        self.assert_right(before, put)
        self.sum_up()
        self.assertEqual(self.store.dirty_ends("n", HOUR_MS, 0, self.now_ms), [])
        self.figures._kept.clear()
        self.assertEqual(self.figures.of("n", "t", before.from_ms, before.to_ms), before)

    def test_median_mode_and_deviation_are_missing_if_too_many_samples_have_no_rollup(self):
        put = self.put([float(k % 50) for k in range(3000)], 5 * MINUTE_MS)
        values = [value for at, value in put if self.now_ms - 7 * DAY_MS <= at]
        with mock.patch.object(views_statistics, "_MOST_RECOUNTED", 1000):
            found = self.of(7)
        self.assertEqual((found.values, found.low, found.high), (len(values), min(values), max(values)))
        self.assertAlmostEqual(found.mean, statistics.fmean(values), 9)
        self.assertIn((found.high_ms, found.high), put)
        self.assertEqual((found.median, found.mode, found.deviation), (None, None, None))

    def test_failed_readings_are_not_counted(self):
        put = self.put([1.0, None, 3.0], MINUTE_MS)
        self.assert_right(self.of(1), put)
        self.assertIsNone(self.figures.of("n", "u", self.now_ms - DAY_MS, self.now_ms))
        self.assertIsNone(self.figures.of("nobody", "t", self.now_ms - DAY_MS, self.now_ms))

    def test_invalid_ranges_have_no_statistics(self):
        self.put([1.0], MINUTE_MS)
        for from_ms in (self.now_ms, self.now_ms + 1, self.now_ms - 371 * DAY_MS):
            self.assertIsNone(self.figures.of("n", "t", from_ms, self.now_ms))

    def test_extreme_values_have_finite_statistics(self):
        for days in (1, 7):
            self.put([1.7e308, -1.7e308, 1.7e308] * 10, HOUR_MS // 2)
            self.sum_up()
            found = self.of(days)
            for value in (found.mean, found.median, found.deviation):
                self.assertTrue(math.isfinite(value), found)

    def test_statistics_are_cached_for_a_minute(self):
        self.put([1.0], MINUTE_MS)
        self.assertEqual(self.of(1).values, 1)
        self.put([2.0], MINUTE_MS)
        self.assertEqual(self.of(1).values, 1)
        self.clock.sleep(61)
        self.assertEqual(self.of(1).values, 2)

    def test_cache_holds_at_most_256_entries(self):
        for k in range(300):
            self.figures.of("n", f"t{k}", 0, DAY_MS)
        self.assertLessEqual(len(self.figures._kept), 256)

    def test_request_is_rejected_as_busy_while_two_others_are_calculated(self):
        self.figures._working.acquire = lambda timeout: False  # as after the time limit of five seconds
        with self.assertRaises(HTTPError) as caught:
            self.of(1)
        self.assertEqual(caught.exception.status, 503)

    def test_statistics_are_formatted_as_html_text_and_json(self):
        self.put([1.0, 2.0, 2.0], MINUTE_MS)
        rows = [("day", self.of(1), "<b>"), ("none", None, "")]
        page = views_statistics.statistics_table("span", rows, self.now_ms)
        self.assertIn('<td data-label="mode">2 &lt;b&gt;</td>', page)
        self.assertNotIn("<b>", page)
        lines = views_statistics.statistics_text("span", rows, self.now_ms)
        self.assertRegex(lines[1], r"^day   3       1\.667  2       2     1, .*\d\d:\d\d  2, .*\d\d:\d\d  0\.471$")
        self.assertRegex(lines[2], r"^none  0       –( +–){5}$")
        told = views_statistics.statistics_json(self.of(1))
        self.assertEqual((told["count"], told["median"], told["median_is_exact"]), (3, 2.0, True))
        self.assertIsNone(views_statistics.statistics_json(None))


if __name__ == "__main__":
    unittest.main()
