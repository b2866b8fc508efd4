"""Content of rollups, and the times at which MaintenanceWorker calculates them and deletes expired samples."""

import logging
import math
import random
import statistics
import threading
import unittest
from unittest import mock

from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.core.errors import DiskError, NotStored, StoreDamaged
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage import maintenance
from pigeonpost.storage.maintenance import MaintenanceWorker, rollup
from pigeonpost.storage.models import NOTHING, SPANS_MS, EpochCommit, LogMark, merge_rollups
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch
from tests.server.test_ingest import E1, E2, IngestCase
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import OUTBOX, Direct, file, sample
from tests.support import LIMIT_S, temp_folder, wait_until

NOON = 1_795_003_200_000
HOUR = SPANS_MS[-1]


def rollups_of(batches, end_ms):
    """Return the rollup of each sensor that has a value in `batches`, which are in one window."""
    found = {}
    for one in batches:
        maintenance.add_values(found, one.values)
    return maintenance._rollups_of_parts([found], end_ms)


def put(store, *times_ms, first=1, value=20.5):
    made = [sample(first + n, value, time_ms) for n, time_ms in enumerate(times_ms)]
    file(store, Batch("a", OUTBOX, E1, 0, SampleBatch.of(made), None, {"temperature": "°C"}, print, print))


class RollupTest(unittest.TestCase):
    def assert_says(self, values, **expected):
        found = rollup(list(values), NOON)
        self.assertEqual((found.end_ms, found.values), (NOON, len(values)))
        for name, value in expected.items():
            self.assertEqual(getattr(found, name), value, name)

    def test_rollup_of_one_value_equals_it(self):
        self.assert_says([5], mean=5, median=5, mode=5, low=5, high=5, deviation=0)

    def test_median_of_an_even_number_is_the_mean_of_the_two_middle_values(self):
        self.assert_says([4, 1, 3, 2], median=2.5, mode=1)
        self.assert_says([9, 1, 5], median=5)

    def test_mode_is_the_lowest_of_the_most_frequent_values(self):
        self.assert_says([3, 3, 1, 1, 2], mode=1)
        self.assert_says([0, 0, 0, 7], mode=0, mean=1.75)

    def test_deviation_is_that_of_the_population(self):
        self.assert_says([2, 4, 4, 4, 5, 5, 7, 9], mean=5, deviation=2)

    def test_rollup_equals_the_results_of_pythons_statistics(self):
        chance = random.Random(1)
        for _ in range(200):
            values = [
                chance.choice((chance.randrange(9), chance.gauss(1e6, 1e-3))) for _ in range(chance.randrange(1, 60))
            ]
            found = rollup(list(values), 0)
            self.assertEqual(found.median, statistics.median(values))
            self.assertEqual(found.mode, min(statistics.multimode(values)))
            self.assertTrue(math.isclose(found.mean, statistics.fmean(values), rel_tol=1e-12))
            self.assertTrue(math.isclose(found.deviation, statistics.pstdev(values), rel_tol=1e-6, abs_tol=1e-9))

    def test_rollup_of_the_largest_floats_is_finite(self):
        self.assert_says([1.7e308, -1.7e308], mean=0, median=0, deviation=1.7e308)
        self.assert_says([1.7e308, 1.7e308], mean=1.7e308, median=1.7e308, deviation=0)
        self.assert_says([5e-324, 5e-324], low=5e-324, deviation=0)

    def test_merged_rollups_of_two_parts_equal_that_of_the_whole(self):
        chance = random.Random(2)
        for _ in range(100):
            one = [chance.uniform(-5, 50) for _ in range(chance.randrange(1, 30))]
            other = [chance.uniform(40, 90) for _ in range(chance.randrange(1, 30))]
            both, whole = merge_rollups(rollup(one, 0), rollup(other, 0)), rollup(one + other, 0)
            for name in ("values", "mean", "low", "high", "deviation"):
                self.assertAlmostEqual(getattr(both, name), getattr(whole, name), msg=name)

    def test_each_sensor_with_values_has_its_own_rollup(self):
        batches = [
            SampleBatch(1, [1, 2], [], {"t": [1, None], "x": [None, None]}),
            SampleBatch(3, [2], [], {"t": [None], "u": [5]}), SampleBatch(4, [3], [], {"t": [3]}),
        ]  # fmt: skip
        found = rollups_of(batches, NOON)
        self.assertEqual({name: (one.values, one.mean) for name, one in found.items()}, {"t": (2, 2.0), "u": (1, 5.0)})


class MaintenanceTest(unittest.TestCase):
    def setUp(self):
        self.store = MemoryStore()
        self.clock = FakeClock(NOON)
        self.maintenance = MaintenanceWorker(self.store, Direct(self.store), self.clock, keep_days=1)

    def work(self):
        while self.maintenance.work():
            pass

    def ends(self):
        return sorted({(span, end) for _, span, end in self.store.summed})

    def test_window_is_rolled_up_after_its_end_and_a_grace_period(self):
        put(self.store, NOON - 1000)
        self.work()
        self.assertEqual(self.ends(), [])
        self.clock.sleep(maintenance.GRACE_MS / 1000 + 0.001)
        self.work()
        self.assertEqual(self.ends(), [(span, NOON) for span in SPANS_MS])
        self.assertEqual(self.maintenance.summed, 2)

    def test_expired_samples_are_deleted(self):
        put(self.store, NOON - 1000, NOON - 1, NOON)
        self.store.epoch_commits = []
        self.clock.sleep(86_399.999)
        self.work()
        self.assertEqual(len(self.store.samples), 3)
        self.clock.sleep(0.001)
        self.work()
        self.assertEqual((len(self.store.samples), self.maintenance.expired), (1, 2))
        self.clock.sleep(3600)
        self.work()
        self.assertEqual((len(self.store.samples), self.maintenance.expired), (0, 3))

    def test_writer_is_seldom_asked_to_delete_samples(self):
        put(self.store, NOON - 1000)
        self.clock.sleep(86_400 + 60)
        self.work()  # it is not in the log yet
        self.store.epoch_commits = []
        with mock.patch.object(self.store, "delete_expired", wraps=self.store.delete_expired) as asked:
            for _ in range(59):
                self.clock.sleep(10)
                self.work()
            self.assertEqual((asked.call_count, self.maintenance.expired), (0, 0))
            self.clock.sleep(10)
            self.work()
        self.assertEqual(self.maintenance.expired, 1)

    def test_samples_are_kept_permanently_without_a_limit(self):
        worker = MaintenanceWorker(self.store, Direct(self.store), self.clock)
        put(self.store, 1000)
        self.store.epoch_commits = []
        while worker.work():
            pass
        self.assertEqual(len(self.store.samples), 1)

    def test_many_samples_are_deleted_in_small_steps(self):
        with mock.patch.object(maintenance, "_DELETE_AT_ONCE", 3):
            put(self.store, *(NOON - n * HOUR for n in range(10)))
            self.store.epoch_commits = []
            self.clock.sleep(2 * 86_400)
            steps = 0
            while self.maintenance.work():
                steps += 1
        self.assertEqual((len(self.store.samples), self.maintenance.expired), (0, 10))
        self.assertGreaterEqual(steps, 4)

    def test_node_that_always_sends_old_samples_does_not_prevent_deletion(self):
        with mock.patch.object(maintenance, "_PARTS_BETWEEN", 5):
            put(self.store, NOON - 1000)
            self.clock.sleep(2 * 86_400)
            for seq in range(1, 12):
                made = SampleBatch.of([sample(seq, time_ms=NOON + 30 * HOUR)])
                file(self.store, Batch("b", OUTBOX, E2, 0, made, None, {}, print, print))
                self.store.epoch_commits = []
                self.assertTrue(self.maintenance.work())
        self.assertEqual((len(self.store.samples), self.maintenance.expired), (11, 1))


class BusyWriter(Direct):
    """Writer of a server to which nodes send buffered samples."""

    def __init__(self, store):
        super().__init__(store)
        self.asked, self.is_busy = 0, True

    @property
    def is_catching_up(self):
        self.asked += 1
        return self.is_busy


class PauseTest(unittest.TestCase):
    def run_worker(self, most_rest_s):
        store = MemoryStore()
        put(store, NOON - 1000)
        writer = BusyWriter(store)
        for name, value in (("LOOK_S", 0.001), ("_MOST_REST_S", most_rest_s)):
            patched = mock.patch.object(maintenance, name, value)
            patched.start()
            self.addCleanup(patched.stop)
        worker = MaintenanceWorker(store, writer, FakeClock(NOON + HOUR))
        worker.start()
        self.addCleanup(worker.stop, LIMIT_S)
        return worker, writer

    def test_worker_pauses_while_nodes_catch_up(self):
        worker, writer = self.run_worker(1e9)
        wait_until(lambda: writer.asked > 5, "it has looked several times")
        self.assertEqual(worker.summed, 0)
        writer.is_busy = False
        wait_until(lambda: worker.summed == 2, "it works again")

    def test_pause_while_nodes_catch_up_is_limited(self):
        worker, writer = self.run_worker(0.005)
        wait_until(lambda: worker.summed == 2, "something is done all the same")
        self.assertTrue(writer.is_busy)


class EdgeTest(unittest.TestCase):
    """A sample on the edge between two windows is in the later one, before and after its rollup and its deletion."""

    def setUp(self):
        self.store = SqliteStore(temp_folder(self))
        self.addCleanup(self.store.close)
        self.clock = FakeClock(NOON + 2 * HOUR)

    def work(self, keep_days=0.0):
        worker = MaintenanceWorker(self.store, Direct(self.store), self.clock, keep_days)
        while worker.work():
            pass

    def counts(self, step_ms):
        count = 2 * HOUR // step_ms
        found = self.store.downsample("a", "temperature", NOON - HOUR, NOON + HOUR, count)
        return [(one.place, one.values, one.low, one.high) for one in found]

    def test_edge_sample_is_in_the_same_window_before_and_after_rollup_and_deletion(self):
        times = range(NOON - HOUR, NOON + HOUR, 10_000)
        made = [sample(n, n, time_ms) for n, time_ms in enumerate(times, 1)]
        filed = file(self.store, Batch("a", OUTBOX, E1, 0, SampleBatch.of(made), None, {}, print, print))
        before = {step_ms: self.counts(step_ms) for step_ms in (60_000, *SPANS_MS)}
        self.assertEqual(before[600_000], [(n, 60, n * 60 + 1, n * 60 + 60) for n in range(12)])
        self.work()
        for step_ms, counts in before.items():
            self.assertEqual(self.counts(step_ms), counts, step_ms)
        ten = self.store.summaries("a", "temperature", 600_000, NOON - HOUR, NOON + HOUR)
        self.assertEqual([(one.end_ms, one.values, one.low) for one in ten],
                         [(NOON - HOUR + (n + 1) * 600_000, 60, n * 60 + 1) for n in range(12)])  # fmt: skip
        file(self.store, log=LogMark("a.csv", 1, 0, filed))
        self.clock.sleep(86_400)
        self.work(keep_days=1)
        self.assertEqual(self.store.points("a", 0, 1 << 60, 1), [])
        for step_ms in SPANS_MS:
            self.assertEqual(self.counts(step_ms), before[step_ms], step_ms)
        file(self.store, Batch("a", OUTBOX, E1, 0, SampleBatch.of([sample(721, 5000, NOON)]), None, {}, print, print),
             log=LogMark("a.csv", 1, 0, filed + 1))  # fmt: skip
        self.work(keep_days=1)
        late = [
            (one.place, one.values, one.high)
            for one in self.store.downsample("a", "temperature", NOON - HOUR, NOON + HOUR, 2)
        ]
        self.assertEqual(late, [(0, 360, 360), (1, 361, 5000)])

    def put_logged(self, seq, time_ms, value=20.5):
        filed = file(
            self.store,
            Batch("a", OUTBOX, E1, 0, SampleBatch.of([sample(seq, value, time_ms)]), None, {}, print, print),
        )
        file(self.store, log=LogMark("a.csv", 1, 0, filed))

    def test_samples_without_rollups_are_not_deleted(self):
        self.put_logged(1, NOON - HOUR)
        with self.store.writing(()):
            self.assertEqual(self.store.delete_expired(NOON + HOUR, 10), 0)
        self.work()
        with self.store.writing(()):
            self.assertEqual(self.store.delete_expired(NOON + HOUR, 10), 1)

    def test_pending_log_entries_of_one_node_do_not_prevent_deletion_of_another(self):
        self.put_logged(1, NOON - HOUR)
        old = SampleBatch.of([sample(1, time_ms=NOON - 9 * HOUR)])  # its clock is wrong, and its row is the newest
        file(self.store, Batch("b", OUTBOX, E2, 0, old, None, {}, print, print))
        self.work()
        with self.store.writing(()):
            self.assertEqual(self.store.delete_expired(NOON + HOUR, 10), 1)
        self.assertEqual({node["name"]: node["forgotten"] for node in self.store.nodes()}, {"a": 1, "b": 0})

    def test_late_sample_added_during_a_merge_is_merged_later(self):
        self.put_logged(1, NOON - HOUR, value=1)
        self.clock.sleep(2 * 86_400)
        self.work(keep_days=1)
        self.put_logged(2, NOON - HOUR + 1, value=2)
        real = self.store.merge_late_rollups

        def merge(*arguments):
            if self.store.merge_late_rollups is merge:
                self.store.merge_late_rollups = real
                self.put_beside(3, NOON - HOUR + 2, value=3)
            return real(*arguments)

        self.store.merge_late_rollups = merge
        self.work(keep_days=1)
        self.assertEqual(self.store.nodes()[0]["forgotten"], 1)
        self.work(keep_days=1)
        (hour,) = self.store.summaries("a", "temperature", HOUR, 0, 1 << 60)
        self.assertEqual((hour.values, hour.low, hour.high), (3, 1, 3))
        self.assertEqual((self.store.nodes()[0]["forgotten"], list(self.store.verify())), (3, []))

    def put_beside(self, seq, time_ms, value):
        """Store a logged sample within the open transaction."""
        commit = EpochCommit("a", OUTBOX, E1, NOTHING)
        commit.add(Batch("a", OUTBOX, E1, 0, SampleBatch.of([sample(seq, value, time_ms)]), None, {}, print, print), 0)
        filed = self.store.put([commit], 1, None)
        self.store.put([], 1, LogMark("a.csv", 1, 0, filed))

    def test_hours_are_deleted_up_to_their_end(self):
        filed = file(self.store, *(
            Batch("a", OUTBOX, E1, 0, SampleBatch.of([sample(n, n, time_ms)]), None, {}, print, print)
            for n, time_ms in enumerate((NOON - 1, NOON, NOON + 1), 1)
        ))  # fmt: skip
        file(self.store, log=LogMark("a.csv", 1, 0, filed))
        self.clock.sleep(86_400 - 7200)
        self.work(keep_days=1)
        self.assertEqual([point.time_ms for point in self.store.points("a", 0, 1 << 60, 9)], [NOON, NOON + 1])
        (about,) = self.store.nodes()
        self.assertEqual((about["kept_from_ms"], about["forgotten"]), (NOON, 1))
        self.assertEqual(list(self.store.verify()), [])


class DamageTest(unittest.TestCase):
    def test_unreadable_hour_does_not_delay_others(self):
        """Its own windows remain dirty, and its readable samples are kept, late or not."""
        store = SqliteStore(temp_folder(self))
        self.addCleanup(store.close)
        for n in range(4):
            put(store, NOON + n * HOUR, first=n + 1)
        with store.writing(()):
            store.put([], 0, LogMark("a.csv", 1, 0, 4))
            store._db.execute("UPDATE fresh SET data = replace(data, '20.5', '21.5') WHERE first IN (1, 3)")
            store._db.execute("UPDATE nodes SET kept_from = ?", (NOON + HOUR,))
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        worker = MaintenanceWorker(store, Direct(store), FakeClock(NOON + 10 * HOUR), keep_days=0.05)
        for _ in range(20):
            if not worker.work():
                break
        else:
            self.fail("the work does not end")
        found = store.summaries("a", "temperature", HOUR, 0, 1 << 60)
        self.assertEqual([one.end_ms for one in found], [NOON + 2 * HOUR, NOON + 4 * HOUR])
        left = {one.end_ms for one in store.dirty_windows(1 << 60, 99) if one.span_ms == HOUR}
        self.assertEqual(left, {NOON + HOUR, NOON + 3 * HOUR})
        self.assertEqual(store._db.execute("SELECT count(*) FROM chunks").fetchone(), (4,))
        self.assertEqual(store._db.execute("SELECT count(*) FROM fresh").fetchone(), (0,))

    def test_many_unreadable_hours_do_not_delay_others_and_are_tried_again(self):
        store, clock = SqliteStore(temp_folder(self)), FakeClock(NOON + 20 * HOUR)
        self.addCleanup(store.close)
        for n in range(6):
            put(store, NOON + n * HOUR, first=n + 1)
        other = Batch("b", OUTBOX, E2, 0, SampleBatch.of([sample(1, 20.5, NOON)]), None, {}, print, print)
        file(store, other)  # another node also has an unreadable hour
        store._db.execute("UPDATE fresh SET data = replace(data, '20.5', '21.5') WHERE id = 7")
        whole = store._db.execute("SELECT id, data FROM fresh WHERE id < 6").fetchall()
        store._db.execute("UPDATE fresh SET data = replace(data, '20.5', '21.5') WHERE id < 6")
        worker = MaintenanceWorker(store, Direct(store), clock)
        read = self.enterContext(mock.patch.object(store, "stored_batches", wraps=store.stored_batches))

        def summed():
            while worker.work():
                pass
            return [one.end_ms for one in store.summaries("a", "temperature", HOUR, 0, 1 << 60)]

        with (
            mock.patch.object(maintenance, "_AT_ONCE", 4),
            mock.patch.object(maintenance, "_WINDOWS_OF_HOUR", 2),  # number of dirty windows here
        ):
            for _ in range(6):
                found = summed()
            self.assertEqual(found, [NOON + 6 * HOUR])
            told = maintenance.current_rollups(store, "a", "temperature", HOUR, 0, 1 << 60, 0, 99)
            self.assertEqual([one.end_ms for one in told], found)
            read.reset_mock()
            self.assertEqual((summed(), read.call_count), (found, 0))
            store._db.executemany("UPDATE fresh SET data = ?2 WHERE id = ?1", whole)
            clock.sleep(3601)
            for _ in range(6):
                found = summed()
        self.assertEqual(found, [NOON + n * HOUR for n in range(1, 7)])

    def test_samples_merged_while_a_window_is_read_are_counted_once(self):
        store, clock = SqliteStore(temp_folder(self)), FakeClock(NOON + 100 * HOUR)
        self.addCleanup(store.close)
        worker = MaintenanceWorker(store, Direct(store), clock, keep_days=1)

        def work(first):
            with store.writing(()):
                store.put([], 0, LogMark("a.csv", first, 0, first))
            while worker.work():
                pass

        put(store, NOON, NOON + 1000)
        work(1)
        put(store, NOON + 2000, first=3, value=7.5)
        read, late = store.stored_batches, [2]

        def read_late(*where):
            while late:
                work(late.pop())
            return read(*where)

        with mock.patch.object(store, "stored_batches", read_late):
            (one,) = maintenance.current_rollups(store, "a", "temperature", HOUR, 0, 1 << 60, NOON + HOUR, 99)
        self.assertEqual((one.values, one.low), (3, 7.5))
        self.assertEqual(worker.expired, 2)

    def test_damage_found_by_compaction_does_not_prevent_deletion(self):
        store = SqliteStore(temp_folder(self))
        self.addCleanup(store.close)
        put(store, NOON)
        with store.writing(()):
            store.put([], 0, LogMark("a.csv", 1, 0, 1))
        worker = MaintenanceWorker(store, Direct(store), FakeClock(NOON + 100 * HOUR), keep_days=1)
        with mock.patch.object(store, "compaction", side_effect=StoreDamaged("a row")):
            while worker.work():
                pass
            self.assertEqual(worker.expired, 1)
            store.damage = "a page"
            with self.assertRaises(StoreDamaged):
                worker.work()


class IngestorTest(IngestCase):
    """Worker with a real writer thread."""

    clock_type = Clock

    def start(self):
        self.ingestor.start()
        self.addCleanup(self.ingestor.stop, LIMIT_S)

    def test_worker_runs_automatically(self):
        put(self.store, *(NOON + n * 1000 for n in range(3000)))
        self.start()
        with mock.patch.object(maintenance, "LOOK_S", 0.01):
            worker = MaintenanceWorker(self.store, self.ingestor, self.clock)
            worker.start()
            wait_until(lambda: not self.store.dirty_windows(1 << 60, 1), "all is summed up")
            self.assertIsNone(worker.stop(LIMIT_S))
        found = self.store.summaries("a", "temperature", SPANS_MS[0], 0, 1 << 60)
        self.assertEqual(sum(one.values for one in found), 3000)

    def test_worker_waits_for_a_full_disk_and_ends_after_a_disk_error(self):
        put(self.store, NOON)
        self.start()
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        with (
            mock.patch.object(maintenance, "LOOK_S", 0.01),
            mock.patch.object(self.store, "replace_rollups", side_effect=NotStored("full")) as tried,
        ):
            worker = MaintenanceWorker(self.store, self.ingestor, self.clock)
            worker.start()
            wait_until(lambda: tried.call_count > 2, "it is tried again")
            tried.side_effect = DiskError("broken")
            wait_until(lambda: self.failures, "the error is reported")
            worker._thread.join(LIMIT_S)
            self.assertFalse(worker._thread.is_alive())

    def test_error_of_a_job_is_raised_in_the_calling_thread(self):
        self.start()
        with self.assertRaises(ZeroDivisionError):
            self.ingestor.run(lambda: 1 / 0, LIMIT_S)
        self.assertEqual(self.ingestor.run(lambda: 5, LIMIT_S), 5)
        self.assertEqual(self.failures, [])

    def test_job_that_cannot_run_in_time_is_never_run(self):
        done = []
        with self.assertRaises(NotStored):
            self.ingestor.run(lambda: done.append(1), 0.02)
        self.start()
        self.ingestor.run(lambda: done.append(2), LIMIT_S)
        self.assertEqual(done, [2])

    def test_commits_run_between_jobs(self):
        """Accepted batches are committed, regardless of the amount of maintenance."""
        self.start()
        stop = threading.Event()

        def keep_busy():
            while not stop.is_set():
                self.ingestor.run(lambda: None, LIMIT_S)

        threads = [threading.Thread(target=keep_busy) for _ in range(3)]
        for thread in threads:
            thread.start()
        self.addCleanup(lambda: [thread.join(LIMIT_S) for thread in threads])
        self.addCleanup(stop.set)
        put_one = self.answers.of(Batch("b", OUTBOX, E1, 0, SampleBatch.of([sample(1)]), None, {}, print, print))
        self.ingestor.submit(put_one, urgent=True)
        wait_until(lambda: self.answers.acks, "it is committed")


if __name__ == "__main__":
    unittest.main()
