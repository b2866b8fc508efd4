"""Tests of compaction: the time at which rows of `fresh` become chunks, and the result."""

import json
import unittest
from unittest import mock

from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import HOUR_MS, NOTHING, EpochCommit, LogMark
from pigeonpost.storage.sqlite import compaction
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch
from tests.page_support import use_memory_disk
from tests.support import temp_folder

NOON = 1_795_003_200_000  # start of an hour
E1, E2 = "0000000000000001", "0000000000000002"
MINUTE_MS, DAY_MS = 60_000, 24 * HOUR_MS
GRACE_MS = compaction._GRACE_MS


def setUpModule():
    use_memory_disk()


class CompactionCase(unittest.TestCase):
    def setUp(self):
        self.store = SqliteStore(temp_folder(self))
        self.addCleanup(self.store.close)
        self.filed, self.reported = 0, []
        self.store.on_damage = self.reported.append

    def put(self, first, count, time_ms, at_ms=None, node="a", epoch=E1, names=("t",), clock="", logged=True):
        """Store a row of samples, one per second, which arrive at `at_ms`.

        If `logged` is True, the log contains it afterwards.
        """
        times = list(range(time_ms, time_ms + count * 1000, 1000))
        columns = {name: list(range(first, first + count)) for name in names}
        commit = EpochCommit(node, E1, epoch, NOTHING)
        batch = SampleBatch(first, times, times, columns, clock=clock)
        commit.add(Batch(node, E1, epoch, 0, batch, None, {}, print, print), 0)
        with self.store.writing(()):
            self.filed = self.store.put([commit], time_ms if at_ms is None else at_ms, None)
        if logged:
            self.log_all()

    def log_all(self):
        with self.store.writing(()):
            self.store.put([], 0, LogMark("a.csv", self.filed, 0, self.filed))

    def compact(self, now_ms):
        """Compact until nothing is due. Return the number of rewritten samples."""
        count = 0
        while job := self.store.compaction(now_ms):
            with self.store.writing(()):
                count += job()
        return count

    def rows(self, table="chunks"):
        with self.store._reading() as db:
            return db.execute(f"SELECT first, count FROM {table} ORDER BY epoch, first").fetchall()

    def assert_whole(self, count):
        self.assertEqual((list(self.store.verify()), self.reported), ([], []))
        self.assertEqual(sum(len(one.samples) for one in self.store.every_batch()), count)


class DueRows(CompactionCase):
    def test_hour_is_compacted_some_minutes_after_its_end(self):
        for n in range(6):
            self.put(1 + n * 10, 10, NOON + n * 10_000)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS - 1), 0)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 60)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 60)], []))
        self.assertEqual(self.compact(NOON + 9 * HOUR_MS), 0)
        self.assert_whole(60)

    def test_only_logged_rows_are_compacted(self):
        self.put(1, 10, NOON, logged=False)
        self.assertIsNone(self.store.compaction(NOON + DAY_MS))
        self.log_all()
        self.put(11, 10, NOON + 10_000, logged=False)
        self.assertEqual(self.compact(NOON + DAY_MS), 10)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 10)], [(11, 10)]))
        (owed,) = self.store.logged_after(1)
        self.assertEqual((owed.filed, owed.items[0].seq, len(owed.items[0])), (2, 11, 10))

    def test_full_chunks_are_made_during_the_hour(self):
        with mock.patch.object(compaction, "STRETCH_SAMPLES", 40), mock.patch.object(compaction, "_LOOK_ROWS", 1):
            for n in range(9):
                self.put(1 + n * 10, 10, NOON + n * 10_000)
            self.assertEqual(self.compact(NOON + MINUTE_MS), 80)
            self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 40), (41, 40)], [(81, 10)]))
            self.put(91, 10, NOON + 90_000)
            self.assertEqual(self.compact(NOON + MINUTE_MS), 0)
            self.assertEqual(self.compact(NOON + 2 * HOUR_MS), 20)
        self.assertEqual(self.rows(), [(1, 40), (41, 40), (81, 20)])
        self.assert_whole(100)

    def test_last_chunk_is_made_during_the_hour_if_it_is_exactly_full(self):
        with mock.patch.object(compaction, "STRETCH_SAMPLES", 40):
            for n in range(8):
                self.put(1 + n * 10, 10, NOON + n * 10_000)
            self.assertEqual(self.compact(NOON + MINUTE_MS), 80)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 40), (41, 40)], []))

    def test_rows_are_searched_after_enough_new_rows_or_the_end_of_an_hour(self):
        """A search reads the heads of all rows, so it must not be made at each commit."""
        due = mock.Mock(wraps=compaction._due)

        def searches(now_ms):
            due.reset_mock()
            self.compact(now_ms)
            return due.call_count

        def fill(first, count):
            for n in range(first, first + count):
                self.put(2 * n - 1, 2, NOON + 2000 * n)

        now_ms = NOON + 10 * MINUTE_MS
        with mock.patch.object(compaction, "_due", due), mock.patch.object(compaction, "_LOOK_ROWS", 4):
            fill(1, 1)
            self.assertEqual(searches(now_ms), 1)
            fill(2, 3)
            self.assertEqual(searches(now_ms), 0)
            fill(5, 1)
            self.assertEqual(searches(now_ms), 1)
            fill(6, 75)
            self.assertEqual(searches(now_ms), 1)  # with 80 rows the next search is made after ten more rows
            fill(81, 9)
            self.assertEqual(searches(now_ms), 0)
            fill(90, 1)
            self.assertEqual(searches(now_ms), 1)
            self.assertEqual(searches(NOON + HOUR_MS + GRACE_MS - 1), 0)
            self.assertEqual(searches(NOON + HOUR_MS + GRACE_MS), 1)
        self.assert_whole(180)

    def test_nodes_with_the_most_rows_are_compacted_if_there_are_too_many_rows(self):
        with mock.patch.object(compaction, "_MOST_FRESH", 10):
            for n in range(9):
                self.put(n + 1, 1, NOON + n * 1000)
            self.put(1, 1, NOON, node="b", epoch=E2)
            self.assertEqual(self.compact(NOON + MINUTE_MS), 0)
            self.put(2, 1, NOON + 1000, node="b", epoch=E2)
            self.store._compactor.give_up()
            self.assertEqual(self.compact(NOON + MINUTE_MS), 8)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 8)], [(9, 1), (1, 1), (2, 1)]))

    def test_compaction_of_too_many_rows_leaves_half_of_the_limit(self):
        hour = NOON // HOUR_MS
        for counts, due in (([4, 2, 2, 2, 2], 3), ([4, 3, 3, 2], 2), ([4, 3, 3], 0), ([11], 1)):
            rows = [(node, 1, hour, count, count, NOON) for node, count in enumerate(counts)]
            with mock.patch.object(compaction, "_MOST_FRESH", 10):
                self.assertEqual(list(compaction._due(rows, NOON).values()), [compaction.Due.MUCH] * due, counts)

    def test_node_with_a_commit_per_second_has_few_rows_and_chunks(self):
        written = most = 0
        for second in range(3600):
            self.put(1 + second, 1, NOON + second * 1000, logged=second % 60 == 59)
            if second % 10 == 9:
                written += self.compact(NOON + second * 1000)
                most = max(most, len(self.rows("fresh")))
        self.assertLess(most, compaction._MOST_OF_NODE + compaction._LOOK_ROWS + 60 + 1)
        self.assertLess(len(self.rows()), 8)
        self.assert_whole(3600)
        written += self.compact(NOON + HOUR_MS + GRACE_MS)
        self.assertLess(written, 2 * 3600)
        self.assertEqual(self.rows(), [(1, 3600)])
        self.assert_whole(3600)

    def test_samples_of_many_nodes_are_written_to_chunks_at_most_twice(self):
        """To spare the SD card, each part of an hour must not rewrite all earlier parts."""
        nodes, rounds = 10, 90
        commits = {f"n{node}": EpochCommit(f"n{node}", E1, E1, NOTHING) for node in range(nodes)}
        written = most = 0
        with mock.patch.object(compaction, "_MOST_FRESH", 5 * nodes), mock.patch.object(compaction, "_LOOK_ROWS", 1):
            for n in range(rounds):
                time_ms = NOON + n * HOUR_MS // rounds
                for node, commit in commits.items():
                    commit.items.clear()
                    batch = SampleBatch(n + 1, [time_ms], [time_ms], {"t": [n]})
                    commit.add(Batch(node, E1, E1, 0, batch, None, {}, print, print), 0)
                with self.store.writing(()):
                    logged = LogMark("a.csv", self.filed, 0, self.filed)
                    self.filed = self.store.put(list(commits.values()), time_ms, logged)
                written += self.compact(time_ms)
                most = max(most, len(self.rows("fresh")))
            self.log_all()
            written += self.compact(NOON + HOUR_MS + GRACE_MS)
        self.assertLessEqual(most, 7 * nodes)
        self.assertLessEqual(written, 2 * nodes * rounds)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, rounds)] * nodes, []))
        self.assert_whole(nodes * rounds)

    def test_only_the_node_with_many_rows_is_compacted(self):
        with mock.patch.object(compaction, "_MOST_OF_NODE", 5), mock.patch.object(compaction, "_LOOK_ROWS", 1):
            for n in range(4):
                self.put(n + 1, 1, NOON + n // 3 * HOUR_MS, at_ms=NOON)
                self.put(n + 1, 1, NOON, node="b", epoch=E2)
            self.assertEqual(self.compact(NOON + MINUTE_MS), 0)
            self.put(1, 1, NOON, epoch="0000000000000003")
            self.assertEqual(self.compact(NOON + MINUTE_MS), 4)
        self.assertEqual(self.rows(), [(1, 2), (4, 1), (1, 1)])
        self.assertEqual(self.rows("fresh"), [(3, 1), (1, 1), (2, 1), (3, 1), (4, 1)])
        self.assert_whole(9)

    def test_last_row_of_a_silent_node_completes_its_hour(self):
        with mock.patch.object(compaction, "_MOST_OF_NODE", 5), mock.patch.object(compaction, "_LOOK_ROWS", 1):
            for n in range(13):
                self.put(n + 1, 1, NOON + n * 1000)
                self.compact(NOON + n * 1000)
            self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 4), (5, 4), (9, 4)], [(13, 1)]))
            self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 13)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 13)], []))
        self.assert_whole(13)

    def test_partly_filled_chunks_are_filled_during_the_hour(self):
        with mock.patch.object(compaction, "STRETCH_SAMPLES", 40), mock.patch.object(compaction, "_LOOK_ROWS", 1), \
             mock.patch.object(compaction, "_MOST_OF_NODE", 3):  # fmt: skip
            found = []
            for n in range(7):
                self.put(1 + n * 8, 8, NOON + n * 8000)
                found.append((self.compact(NOON + MINUTE_MS), self.rows()))
        self.assertEqual(found[2:5], [(16, [(1, 16)]), (0, [(1, 16)]), (16, [(1, 16), (17, 16)])])
        self.assertEqual(found[6], (48, [(1, 40), (41, 8)]))

    def test_late_samples_are_compacted_after_the_hour_of_their_arrival(self):
        """This includes a node without a clock, whose samples are dated 1970.

        Otherwise they would be rewritten at each search.
        """
        for n, time_ms in enumerate((1000, NOON - DAY_MS, NOON + 90 * DAY_MS)):
            self.put(1 + n, 1, time_ms, at_ms=NOON + 30 * MINUTE_MS)
        self.assertEqual(self.compact(NOON + HOUR_MS + MINUTE_MS), 0)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 2)
        self.assertEqual(self.rows("fresh"), [(3, 1)])  # dated in the future
        self.assertEqual(self.compact(NOON + 2 * HOUR_MS + GRACE_MS), 1)
        self.assert_whole(3)

    def test_rows_that_arrive_early_in_the_next_hour_belong_to_their_hour(self):
        self.put(1, 10, NOON)
        self.put(11, 10, NOON + HOUR_MS - 10_000, at_ms=NOON + HOUR_MS + 30_000)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 20)
        self.assertEqual(self.rows(), [(1, 20)])

    def test_hour_is_over_at_the_expected_time(self):
        hour, grace_ms = NOON // HOUR_MS, GRACE_MS
        for of_hour, arrived_ms, past_ms in (
            (hour, NOON, NOON + HOUR_MS),
            (hour, NOON + HOUR_MS + grace_ms - 1, NOON + HOUR_MS),
            (hour, NOON + HOUR_MS + grace_ms, NOON + 2 * HOUR_MS),  # late from here on
            (hour - 24, NOON + grace_ms - 1, NOON),
            (hour - 24, NOON + grace_ms, NOON + HOUR_MS),
            (hour + 1, NOON + grace_ms, NOON + 2 * HOUR_MS),  # dated in the future
            (hour + 99, NOON + grace_ms, NOON + 2 * HOUR_MS),
        ):
            due_ms = past_ms + grace_ms
            found = [compaction._is_past(of_hour, arrived_ms, now_ms) for now_ms in (due_ms - 1, due_ms)]
            self.assertEqual(found, [False, True], (of_hour - hour, arrived_ms - NOON))
        self.assertTrue(compaction._is_past(hour, None, NOON))
        self.assertFalse(compaction._is_past(hour, NOON + HOUR_MS, NOON))  # a clock that was slightly fast
        self.assertTrue(compaction._is_past(hour, NOON + HOUR_MS + 1, NOON))

    def test_only_the_oldest_of_very_many_rows_are_listed(self):
        with mock.patch.object(compaction, "_MOST_LISTED", 3):
            for n in range(6):
                self.put(1 + n * 10, 10, NOON + n * 10_000)
            job = self.store.compaction(NOON + DAY_MS)
            with self.store.writing(()):
                self.assertEqual(job(), 30)
        self.assertEqual((self.rows(), len(self.rows("fresh"))), ([(1, 30)], 3))

    def test_clock_that_is_set_back_does_not_delay_compaction(self):
        self.put(1, 10, NOON)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 10)
        self.put(11, 10, NOON - 9 * HOUR_MS, at_ms=NOON)
        self.assertEqual(self.compact(NOON - 5 * HOUR_MS), 10)

    def test_compaction_works_in_parts(self):
        with mock.patch.object(compaction, "_TOGETHER", 2 * compaction._ROW_SAMPLES):
            for n in range(10):
                self.put(1 + n * 10, 10, NOON + n * HOUR_MS)
            job = self.store.compaction(NOON + DAY_MS)
            with self.store.writing(()):
                self.assertEqual(job(), 20)
            self.assertEqual(self.compact(NOON + DAY_MS), 80)
        self.assert_whole(100)


class NewChunks(CompactionCase):
    def test_chunk_ends_where_samples_differ_or_are_not_consecutive(self):
        """A new chunk begins where sensors, clock state or hour change, or a number is missing.

        Samples are in the order of seq.
        """
        self.put(1, 5, NOON)
        self.put(6, 5, NOON + 5000)
        self.put(11, 5, NOON + 10_000, names=("t", "u"))
        self.put(16, 5, NOON + 15_000, clock="unset", names=("t", "u"))
        self.put(21, 5, NOON - HOUR_MS, names=("t", "u"), clock="unset", at_ms=NOON)
        self.put(26, 5, NOON + 20_000, names=("t", "u"), clock="unset")
        self.put(1, 5, NOON + 20_000, epoch=E2)
        self.assertEqual(self.compact(NOON + DAY_MS), 35)
        self.assertEqual(self.rows(), [(1, 10), (11, 5), (16, 5), (21, 5), (26, 5), (1, 5)])
        self.assert_whole(35)

    def test_hours_before_1970_are_handled(self):
        self.put(1, 5, -5000, at_ms=NOON)
        self.put(6, 5, 0, at_ms=NOON)
        self.put(11, 5, -HOUR_MS, at_ms=NOON)
        self.put(16, 5, 5000 - HOUR_MS, at_ms=NOON)
        self.assertEqual(self.compact(NOON + DAY_MS), 20)
        self.assertEqual(self.rows(), [(1, 5), (6, 5), (11, 10)])
        self.assert_whole(20)

    def test_late_rows_are_merged_only_with_adjacent_chunks(self):
        late = NOON + DAY_MS
        self.put(11, 10, NOON + 10_000)
        self.compact(late)
        self.put(31, 10, NOON + 30_000, at_ms=late)
        self.compact(late + 2 * HOUR_MS)
        self.assertEqual(self.rows(), [(11, 10), (31, 10)])
        self.put(41, 10, NOON + 40_000, at_ms=late)
        self.put(1, 10, NOON, at_ms=late)
        self.compact(late + 4 * HOUR_MS)
        self.assertEqual(self.rows(), [(1, 20), (31, 20)])
        self.put(21, 10, NOON + 20_000, at_ms=late)
        self.compact(late + 6 * HOUR_MS)
        self.assertEqual(self.rows(), [(1, 50)])

    def test_chunk_between_two_late_rows_is_merged_once(self):
        late = NOON + DAY_MS
        self.put(11, 10, NOON + 10_000)
        self.compact(late)
        self.put(1, 10, NOON, at_ms=late)
        self.put(21, 10, NOON + 20_000, at_ms=late)
        self.assertEqual(self.compact(late + 2 * HOUR_MS), 30)
        self.assertEqual(self.rows(), [(1, 30)])

    def test_chunks_do_not_exceed_their_limit(self):
        for n in range(3):
            self.put(1 + n * 3000, 3000, NOON + n)
        self.compact(NOON + DAY_MS)
        self.assertEqual(self.rows(), [(1, 3000), (3001, 3000), (6001, 3000)])
        for n in range(3):
            self.put(9001 + n * 1000, 1000, NOON + n, at_ms=NOON + DAY_MS)
        self.compact(NOON + 2 * DAY_MS)
        self.assertEqual(self.rows(), [(1, 3000), (3001, 3000), (6001, 4000), (10_001, 2000)])

    def test_chunk_has_the_arrival_time_of_its_newest_part(self):
        self.put(1, 5, NOON, at_ms=NOON + 7)
        self.put(6, 5, NOON + 5000, at_ms=NOON + 9)
        self.put(11, 5, NOON + 10_000, at_ms=NOON + 8)
        self.compact(NOON + DAY_MS)
        with self.store._reading() as db:
            self.assertEqual(db.execute("SELECT arrived, low, high, step FROM chunks").fetchall(),
                             [(NOON + 9, NOON, NOON + 14_000, 1000)])  # fmt: skip

    def test_damaged_row_is_moved_unchanged(self):
        for n in range(3):
            self.put(1 + n * 5, 5, NOON + n * 5000)
        with self.store.writing(()):
            self.store._db.execute("UPDATE fresh SET data = replace(data, '7', '8') WHERE first = 6")
        self.compact(NOON + DAY_MS)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 5), (6, 5), (11, 5)], []))
        self.assertIn("were changed", self.reported[0])
        with self.store._reading() as db:
            (data,) = db.execute("SELECT data FROM chunks WHERE first = 6").fetchone()
        self.assertEqual(json.loads(data), [[0, 6], [0, 8], [0, 8], [0, 9], [0, 10]])

    def test_rows_around_damaged_ones_are_merged(self):
        """This includes rows whose text is no longer valid UTF-8."""
        for change in ("replace(data, '1', '2')", "CAST(replace(data, '1', x'B1') AS TEXT)"):
            with self.subTest(change=change):
                self.setUp()
                for n in range(6):
                    self.put(1 + n * 5, 5, NOON + n * 5000)
                with self.store.writing(()):
                    self.store._db.execute(f"UPDATE fresh SET data = {change} WHERE first IN (11, 21)")
                self.assertEqual(self.compact(NOON + DAY_MS), 30)
                self.assertEqual(self.rows(), [(1, 10), (11, 5), (16, 5), (21, 5), (26, 5)])
                self.assertIn("were changed", self.reported[0])
                self.put(31, 5, NOON + 30_000, at_ms=NOON + DAY_MS)
                self.put(36, 5, NOON + 35_000, at_ms=NOON + DAY_MS)
                self.assertEqual(self.compact(NOON + 2 * DAY_MS), 15)  # with a chunk after damaged ones
                self.assertEqual(self.rows(), [(1, 10), (11, 5), (16, 5), (21, 5), (26, 15)])

    def test_missing_shape_does_not_stop_other_rows(self):
        for node, epoch in (("a", E1), ("b", E2)):
            for n in range(2):
                self.put(1 + n * 5, 5, NOON + n * 5000, node=node, epoch=epoch)
        with self.store.writing(()):
            self.store._db.execute("UPDATE fresh SET shape = 99 WHERE id = 1")
        self.assertEqual(self.compact(NOON + DAY_MS), 15)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(6, 5), (1, 10)], [(1, 5)]))

    def test_rows_that_the_log_lacks_stay(self):
        """Such a row is damaged, while later rows are logged."""
        for n in range(5):
            self.put(1 + n * 5, 5, NOON + n * 5000)
        job = self.store.compaction(NOON + DAY_MS)
        self.store.unlogged = frozenset([3])
        self.log_all()
        with self.store.writing(()):
            self.assertEqual(job(), 0)
        self.assertEqual(self.compact(NOON + DAY_MS), 20)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 10), (16, 10)], [(11, 5)]))

    def test_rows_that_stay_do_not_hide_later_ones(self):
        for n in range(5):
            self.put(1 + n * 5, 5, NOON + n * 5000)
        self.store.unlogged = frozenset([1])
        self.log_all()
        with self.store.writing(()):
            self.store._db.execute("UPDATE fresh SET data = CAST(data AS BLOB) WHERE id = 2")
        with mock.patch.object(compaction, "_MOST_LISTED", 2):
            for count in (10, 15, 0):
                self.assertEqual(self.compact(NOON + DAY_MS), count)
                self.store._compactor.give_up()
        self.assertEqual((self.rows(), self.rows("fresh")), ([(11, 15)], [(1, 5), (6, 5)]))

    def test_row_without_valid_numbers_stays_and_stops_nothing(self):
        """Such a row fits no chunk.

        An attempt to move it would count as damage of the structure, which ends all writing.
        """
        with self.store.writing(()):
            self.store._db.execute("PRAGMA writable_schema = 1")
            self.store._db.execute("UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'fresh'")
        self.store._db.execute("PRAGMA writable_schema = RESET")
        for n, change in enumerate((
            "low = NULL", "crc = NULL", "node = NULL", "data = NULL", "arrived = 'x'", "first = 9223372036854775807",
            "low = 9223372036854775807", "count = 9223372036854775807", "count = 'x'", "step = 0.5", "clock = 'x'",
        )):  # fmt: skip
            with self.subTest(change=change):
                now_ms = NOON + (2 * n + 2) * DAY_MS
                self.put(1 + 20 * n, 10, now_ms)
                self.put(11 + 20 * n, 10, now_ms + 10_000)
                self.put(1 + n, 1, now_ms, node="b", epoch=E2)
                with self.store.writing(()):
                    self.store._db.execute(f"UPDATE fresh SET {change} WHERE id = (SELECT max(id) FROM fresh)")
                self.store._compactor.give_up()
                self.assertEqual(self.compact(now_ms + DAY_MS), 20)
                self.assertEqual((len(self.rows()), len(self.rows("fresh")), self.store.damage), (n + 1, n + 1, ""))


class ConcurrentChanges(CompactionCase):
    def prepared(self):
        for n in range(3):
            self.put(1 + n * 5, 5, NOON + n * 5000)
        job = self.store.compaction(NOON + DAY_MS)
        self.assertIsNotNone(job)
        return job

    def test_job_does_nothing_if_a_row_has_changed(self):
        for sql in (
            "DELETE FROM fresh WHERE first = 1", "DELETE FROM fresh WHERE first = 6",
            "DELETE FROM fresh WHERE first = 11", "UPDATE fresh SET first = 7 WHERE first = 6",
            "UPDATE logs SET filed = 2",
        ):  # fmt: skip
            with self.subTest(sql=sql), mock.patch.object(compaction, "_FEW", 2):
                self.setUp()
                job = self.prepared()
                with self.store.writing(()):
                    self.store._db.execute(sql)
                before = self.rows("fresh")
                with self.store.writing(()):
                    self.assertEqual(job(), 0)
                self.assertEqual((self.rows(), self.rows("fresh")), ([], before))

    def test_rows_that_arrive_after_the_preparation_stay(self):
        job = self.prepared()
        self.put(16, 5, NOON + 15_000, at_ms=NOON + DAY_MS)
        with self.store.writing(()):
            self.assertEqual(job(), 15)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 15)], [(16, 5)]))
        self.assert_whole(20)

    def test_second_run_of_a_job_does_nothing(self):
        job = self.prepared()
        for count in (15, 0):
            with self.store.writing(()):
                self.assertEqual(job(), count)
        self.assert_whole(15)

    def test_job_can_be_repeated_after_a_rollback(self):
        job = self.prepared()
        with self.assertRaises(ZeroDivisionError), self.store.writing(()):
            job()
            raise ZeroDivisionError
        self.assertEqual(self.rows(), [])
        self.store._compactor.give_up()
        self.assertEqual(self.compact(NOON + DAY_MS), 15)
        self.assert_whole(15)

    def test_listed_rows_are_compacted_before_later_ones(self):
        """After an error the rows are listed again. No row is in two lists."""
        for gives_up, count in ((False, 20 + 10 + 20), (True, 20 + 20)):
            with mock.patch.object(compaction, "_TOGETHER", 1), mock.patch.object(compaction, "_LOOK_ROWS", 1), \
                 mock.patch.object(compaction, "STRETCH_SAMPLES", 20):  # fmt: skip
                self.setUp()
                for n in range(5):
                    self.put(1 + n * 10, 10, NOON + n * 10_000)
                self.put(101, 10, NOON + HOUR_MS)
                with self.store.writing(()):
                    self.assertEqual(self.store.compaction(NOON + DAY_MS)(), 20)
                self.put(51, 10, NOON + 50_000)
                self.put(111, 10, NOON + HOUR_MS + 10_000)
                if gives_up:
                    self.store._compactor.give_up()
                self.assertEqual(self.compact(NOON + DAY_MS), count + (20 if gives_up else 10 + 20))
            self.assertEqual(self.rows(), [(1, 20), (21, 20), (41, 20), (101, 20)])

    def test_rows_that_disappear_before_they_are_read_are_skipped(self):
        with mock.patch.object(compaction, "_TOGETHER", 1):
            for n in range(4):
                self.put(1 + n * 5, 5, NOON + n // 2 * HOUR_MS + n % 2 * 5000)
            with self.store.writing(()):
                self.assertEqual(self.store.compaction(NOON + DAY_MS)(), 10)
            with self.store.writing(()):
                self.store._db.execute("DELETE FROM fresh WHERE first = 16")
            self.assertIsNone(self.store.compaction(NOON + DAY_MS))  # its list is no longer valid
            self.assertEqual(self.compact(NOON + DAY_MS), 5)


if __name__ == "__main__":
    unittest.main()
