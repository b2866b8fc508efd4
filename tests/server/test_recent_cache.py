"""Cache of the last day: always equal to the store, which is only read where there are new samples."""

import random
import threading
import unittest

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import NotStored
from pigeonpost.link.samples import batches_of
from pigeonpost.server.recent_cache import MOST_SENSORS, RecentCache
from pigeonpost.storage.models import NOTHING, EpochCommit
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch, Gap, Sample
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, temp_folder

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
OUTBOX, EPOCH = "00000000000000aa", "0000000000000001"


def setUpModule():
    use_memory_disk()


SENSORS = ("t", "u", "a", "b", "c", "x", "y")


class WatchedStore(SqliteStore):
    """Store that records the time ranges that are read."""

    def __init__(self, folder):
        super().__init__(folder)
        self.asked = []
        self.before = lambda: None

    def downsample_all(self, node, from_ms, to_ms, count, sensors):
        self.asked.append((node, from_ms, to_ms))
        self.before()
        return super().downsample_all(node, from_ms, to_ms, count, sensors)


class CacheCase(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.store = WatchedStore(temp_folder(self))
        self.addCleanup(self.store.close)
        self.book = RecentCache(self.store)
        self.seqs = {}
        self.first_ms = {}

    def put(self, *samples, node="a", told=True):
        """Store samples (time in ms, value) or (time in ms, values), and notify the cache if `told` is True."""
        made = []
        for time_ms, value in samples:
            seq = self.seqs[node] = self.seqs.get(node, 0) + 1
            values = value if isinstance(value, dict) else {"t": value}
            made.append(Sample(seq, time_ms, seq, values, {}, ""))
            self.first_ms[node] = min(time_ms, self.first_ms.get(node, time_ms))
        epoch_commit = EpochCommit(node, OUTBOX, EPOCH, NOTHING)
        for samples in batches_of(made):
            epoch_commit.add(Batch(node, OUTBOX, EPOCH, 0, samples, None, {}, print, print), 0)
        with self.store.writing(()):
            self.store.put([epoch_commit], self.clock.wall_ms(), None)
        if told:
            self.book.on_commit([epoch_commit])

    def day(self, node="a", first_ms=None):
        return self.book.day(node, first_ms or self.first_ms.get(node), self.clock.wall_ms(), SENSORS)

    def assert_as_stored(self, node="a", first_ms=None):
        """Check that the cached day equals one query for the complete day."""
        day = self.day(node, first_ms)
        count = day.span_ms // day.width_ms
        wanted = SqliteStore.downsample_all(self.store, node, day.from_ms, day.from_ms + day.span_ms, count, SENSORS)
        self.assertEqual({sensor: columns for sensor, columns in day.columns.items() if columns}, wanted)
        return day


class TimeRangeTest(CacheCase):
    def test_node_without_samples_has_no_buckets(self):
        day = self.day()
        self.assertEqual((day.span_ms, day.width_ms, day.columns), (10 * MINUTE, 10_000, {}))

    def test_time_range_grows_with_the_age_of_the_first_sample(self):
        for old_ms, span_ms, width_ms in (
            (-5 * MINUTE, 10 * MINUTE, 10_000),  # a node whose clock is ahead
            (0, 10 * MINUTE, 10_000),
            (10 * MINUTE - 1, 10 * MINUTE, 10_000),
            (10 * MINUTE, HOUR, MINUTE),
            (HOUR - 1, HOUR, MINUTE),
            (HOUR, DAY, 10 * MINUTE),
            (900 * DAY, DAY, 10 * MINUTE),
        ):
            day = self.day(first_ms=self.clock.wall_ms() - old_ms)
            self.assertEqual((day.span_ms, day.width_ms), (span_ms, width_ms), old_ms)

    def test_last_bucket_contains_the_present_time(self):
        self.put((self.clock.wall_ms(), 21.5))
        day = self.day()
        self.assertEqual([column.place for column in day.columns["t"]], [59])
        self.assertEqual(day.from_ms % day.width_ms, 0)
        self.assertTrue(day.from_ms + 59 * day.width_ms <= self.clock.wall_ms() < day.from_ms + 60 * day.width_ms)

    def test_samples_older_than_the_time_range_are_omitted(self):
        now_ms = self.clock.wall_ms()
        self.put((now_ms - 2 * DAY, 1.0), (now_ms - DAY - 10 * MINUTE, 2.0), (now_ms - DAY + 20 * MINUTE, 3.0))
        self.assertEqual([column.mean for column in self.assert_as_stored().columns["t"]], [3.0])

    def test_buckets_move_as_time_passes(self):
        self.put((self.clock.wall_ms(), 21.5))
        self.day()
        self.clock.sleep(30)
        self.assertEqual([column.place for column in self.day().columns["t"]], [56])
        self.clock.sleep(570)
        self.assertEqual(self.day(first_ms=self.clock.wall_ms() - 1).columns, {"t": []})

    def test_change_to_a_longer_time_range_loses_no_sample(self):
        start_ms = self.clock.wall_ms()
        for _ in range(100):
            self.put((self.clock.wall_ms(), self.clock.wall_ms() - start_ms))
            self.assert_as_stored()
            self.clock.sleep(60)
        self.assertEqual(sum(column.values for column in self.day().columns["t"]), 100)


class UpdateTest(CacheCase):
    def test_batch_updates_all_buckets_from_its_first_to_its_last_time(self):
        now_ms = self.clock.wall_ms()
        self.put((now_ms - 5 * HOUR, 1.0))
        self.assert_as_stored()
        start_ms = (now_ms // HOUR - 3) * HOUR
        self.put((start_ms + 5 * MINUTE, 2.0), (start_ms + 45 * MINUTE, 3.0), (start_ms + 25 * MINUTE, 4.0))
        self.assertEqual(len(self.assert_as_stored().columns["t"]), 4)

    def test_random_samples_appear_as_in_the_store(self):
        """The times are present, long past (a node catches up) and future (its clock is ahead), and time passes."""
        chance = random.Random(11)
        self.put((self.clock.wall_ms() - chance.choice((0, 20 * MINUTE, 2 * HOUR)), 0))
        for _ in range(200):
            if chance.random() < 0.5:
                shift_ms = chance.choice((0, 0, 0, -5_000, -45 * MINUTE, -20 * HOUR, 25_000, 70_000))
                step = chance.randint(1, 4000)
                times = [self.clock.wall_ms() + shift_ms - k * step for k in range(chance.randint(1, 4))]
                self.put(*[(time_ms, {chance.choice("tu"): chance.randint(-50, 50)}) for time_ms in sorted(times)])
            self.clock.sleep(chance.choice((0, 0.2, 1, 9, 40)))
            self.assert_as_stored()

    def test_sample_with_a_future_time_appears_at_that_time(self):
        self.put((self.clock.wall_ms() + 30_000, 21.5))
        self.assertEqual(self.day().columns.get("t", []), [])
        self.clock.sleep(35)
        self.assertEqual([column.values for column in self.day().columns["t"]], [1])

    def test_sample_with_a_future_time_from_before_the_start_appears_at_that_time(self):
        self.put((self.clock.wall_ms() + 30_000, 21.5), told=False)
        self.day()
        self.clock.sleep(35)
        self.assertEqual([column.values for column in self.day().columns["t"]], [1])

    def test_store_is_not_read_without_new_samples(self):
        self.put((self.clock.wall_ms(), 21.5))
        first = self.day()
        self.store.asked.clear()
        for _ in range(5):
            self.assertEqual(self.day(), first)
        self.assertEqual(self.store.asked, [])

    def test_only_buckets_with_new_samples_are_read(self):
        self.put((self.clock.wall_ms() - 5 * HOUR, 1.0), (self.clock.wall_ms(), 2.0))
        self.day()
        self.store.asked.clear()
        self.put((self.clock.wall_ms() + 1, 3.0))
        self.assertEqual(self.assert_as_stored().columns["t"][-1].values, 2)
        ((node, from_ms, to_ms),) = self.store.asked
        self.assertEqual((node, to_ms - from_ms), ("a", 10 * MINUTE))

    def test_backlog_of_a_node_updates_old_buckets(self):
        now_ms = self.clock.wall_ms()
        self.put((now_ms - 3 * HOUR, 1.0), (now_ms, 2.0))
        self.day()
        self.put((now_ms - 2 * HOUR, 5.0))
        self.put((now_ms - HOUR, 6.0))
        self.assertEqual([column.mean for column in self.assert_as_stored().columns["t"]], [1.0, 5.0, 6.0, 2.0])

    def test_nodes_are_cached_separately(self):
        self.put((self.clock.wall_ms(), 1.0))
        self.put((self.clock.wall_ms(), 2.0), node="b")
        self.assertEqual([column.mean for column in self.day("a").columns["t"]], [1.0])
        self.assertEqual([column.mean for column in self.day("b").columns["t"]], [2.0])

    def test_cache_follows_a_clock_that_is_set_back(self):
        self.put((self.clock.wall_ms(), 1.0))
        self.day()
        self.clock.step(-120)
        self.put((self.clock.wall_ms(), 2.0))
        self.assertEqual([column.mean for column in self.assert_as_stored().columns["t"]], [2.0])

    def test_complete_cache_is_read_again_every_hour(self):
        self.put((self.clock.wall_ms() - 5 * HOUR, 1.0))
        self.day()
        self.put((self.clock.wall_ms() - 4 * HOUR, 2.0), told=False)
        self.assertEqual(len(self.day().columns["t"]), 1)
        self.clock.sleep(3600)
        self.assertEqual(len(self.day().columns["t"]), 2)

    def test_gap_adds_no_value(self):
        epoch_commit = EpochCommit("a", OUTBOX, EPOCH, NOTHING)
        epoch_commit.add(Batch("a", OUTBOX, EPOCH, 0, None, Gap(1, 5, 0, "overwritten"), {}, print, print), 0)
        self.book.on_commit([epoch_commit])
        self.assertEqual(self.day().columns, {})


class ErrorTest(CacheCase):
    def test_failed_read_is_repeated_at_the_next_query(self):
        now_ms = self.clock.wall_ms()
        self.put((now_ms - 5 * HOUR, 1.0))
        self.day()
        self.put((now_ms, 2.0))

        def locked():
            raise NotStored("the file is locked")

        self.store.before = locked
        with self.assertRaises(NotStored):
            self.day()
        self.store.before = lambda: None
        self.assertEqual(len(self.assert_as_stored().columns["t"]), 2)

    def test_writer_does_not_wait_for_a_reader(self):
        self.put((self.clock.wall_ms(), 1.0))
        reading, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def slowly():
            reading.set()
            go_on.wait(LIMIT_S)

        self.store.before = slowly
        reader = threading.Thread(target=self.day)
        reader.start()
        self.assertTrue(reading.wait(LIMIT_S))
        self.put((self.clock.wall_ms(), 2.0))  # this must not block
        self.assertTrue(reader.is_alive())
        self.store.before = lambda: None
        go_on.set()
        reader.join(LIMIT_S)
        self.assertEqual(self.assert_as_stored().columns["t"][0].values, 2)


class LimitTest(CacheCase):
    def test_only_the_first_of_many_sensors_are_cached(self):
        names = [f"n{k:03d}" for k in range(MOST_SENSORS + 50)]
        now_ms = self.clock.wall_ms()
        self.put(*((now_ms - k * 1000, dict.fromkeys(names, float(k))) for k in range(5)))
        day = self.book.day("a", now_ms - 5000, now_ms, iter(names))
        self.assertEqual(sorted(name for name, columns in day.columns.items() if columns), names[:MOST_SENSORS])
        again = self.book.day("a", now_ms - 5000, now_ms, names[50:])
        self.assertEqual(sorted(name for name, columns in again.columns.items() if columns), names[50:])


if __name__ == "__main__":
    unittest.main()
