"""When rows of `fresh` become chunks, and which."""

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

NOON = 1_795_003_200_000  # an hour begins
E1, E2 = "0000000000000001", "0000000000000002"
MINUTE_MS, DAY_MS = 60_000, 24 * HOUR_MS
GRACE_MS = compaction._GRACE_MS


def setUpModule():
    use_memory_disk()


class CompactionCase(unittest.TestCase):
    def setUp(self):
        self.store = SqliteStore(temp_folder(self))
        self.addCleanup(self.store.close)
        self.filed, self.told = 0, []
        self.store.on_damage = self.told.append

    def put(self, first, count, time_ms, at_ms=None, node="a", epoch=E1, names=("t",), clock="", logged=True):
        """Store a row: samples a second apart, which arrive at `at_ms`. The log has it, or what was before it."""
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
        """Do all that is due. Returns the number of samples that were rewritten."""
        count = 0
        while job := self.store.compaction(now_ms):
            with self.store.writing(()):
                count += job()
        return count

    def rows(self, table="chunks"):
        with self.store._reading() as db:
            return db.execute(f"SELECT first, count FROM {table} ORDER BY epoch, first").fetchall()

    def assert_whole(self, count):
        self.assertEqual((list(self.store.verify()), self.told), ([], []))
        self.assertEqual(sum(len(one.samples) for one in self.store.every_batch()), count)


class WhatIsDue(CompactionCase):
    def test_an_hour_some_minutes_after_its_end(self):
        for n in range(6):
            self.put(1 + n * 10, 10, NOON + n * 10_000)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS - 1), 0)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 60)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 60)], []))
        self.assertEqual(self.compact(NOON + 9 * HOUR_MS), 0)
        self.assert_whole(60)

    def test_only_what_the_log_has(self):
        self.put(1, 10, NOON, logged=False)
        self.assertIsNone(self.store.compaction(NOON + DAY_MS))
        self.log_all()
        self.put(11, 10, NOON + 10_000, logged=False)
        self.assertEqual(self.compact(NOON + DAY_MS), 10)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 10)], [(11, 10)]))
        (owed,) = self.store.logged_after(1)
        self.assertEqual((owed.filed, owed.items[0].seq, len(owed.items[0])), (2, 11, 10))

    def test_full_chunks_of_an_hour_that_goes_on(self):
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

    def test_the_last_chunk_of_an_hour_that_goes_on_when_it_is_just_full(self):
        with mock.patch.object(compaction, "STRETCH_SAMPLES", 40):
            for n in range(8):
                self.put(1 + n * 10, 10, NOON + n * 10_000)
            self.assertEqual(self.compact(NOON + MINUTE_MS), 80)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 40), (41, 40)], []))

    def test_it_looks_again_when_enough_has_come_or_an_hour_ends(self):
        """A look reads the heads of all rows: it must not be had for each commit."""
        due = mock.Mock(wraps=compaction._due)

        def looks(now_ms):
            due.reset_mock()
            self.compact(now_ms)
            return due.call_count

        def fill(first, count):
            for n in range(first, first + count):
                self.put(2 * n - 1, 2, NOON + 2000 * n)

        now_ms = NOON + 10 * MINUTE_MS
        with mock.patch.object(compaction, "_due", due), mock.patch.object(compaction, "_LOOK_ROWS", 4):
            fill(1, 1)
            self.assertEqual(looks(now_ms), 1)
            fill(2, 3)
            self.assertEqual(looks(now_ms), 0)
            fill(5, 1)
            self.assertEqual(looks(now_ms), 1)
            fill(6, 75)
            self.assertEqual(looks(now_ms), 1)  # of 80 rows: the next look is worth it when another ten have come
            fill(81, 9)
            self.assertEqual(looks(now_ms), 0)
            fill(90, 1)
            self.assertEqual(looks(now_ms), 1)
            self.assertEqual(looks(NOON + HOUR_MS + GRACE_MS - 1), 0)
            self.assertEqual(looks(NOON + HOUR_MS + GRACE_MS), 1)
        self.assert_whole(180)

    def test_the_nodes_with_most_rows_when_there_are_too_many(self):
        with mock.patch.object(compaction, "_MOST_FRESH", 10):
            for n in range(9):
                self.put(n + 1, 1, NOON + n * 1000)
            self.put(1, 1, NOON, node="b", epoch=E2)
            self.assertEqual(self.compact(NOON + MINUTE_MS), 0)
            self.put(2, 1, NOON + 1000, node="b", epoch=E2)
            self.store._compactor.give_up()
            self.assertEqual(self.compact(NOON + MINUTE_MS), 8)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 8)], [(9, 1), (1, 1), (2, 1)]))

    def test_of_too_many_rows_so_many_are_merged_that_half_is_left(self):
        hour = NOON // HOUR_MS
        for counts, due in (([4, 2, 2, 2, 2], 3), ([4, 3, 3, 2], 2), ([4, 3, 3], 0), ([11], 1)):
            rows = [(node, 1, hour, count, count, NOON) for node, count in enumerate(counts)]
            with mock.patch.object(compaction, "_MOST_FRESH", 10):
                self.assertEqual(list(compaction._due(rows, NOON).values()), [compaction.Due.MUCH] * due, counts)

    def test_a_node_that_commits_each_second_has_few_rows_and_few_chunks(self):
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

    def test_of_many_nodes_a_sample_is_written_to_chunks_twice_at_most(self):
        """Else a card wears out: each part of an hour must not rewrite all that was before it."""
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

    def test_a_node_with_many_rows_in_all_its_groups_and_no_other_one(self):
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

    def test_the_last_of_many_rows_of_a_node_that_falls_silent_bring_its_hour_together(self):
        with mock.patch.object(compaction, "_MOST_OF_NODE", 5), mock.patch.object(compaction, "_LOOK_ROWS", 1):
            for n in range(13):
                self.put(n + 1, 1, NOON + n * 1000)
                self.compact(NOON + n * 1000)
            self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 4), (5, 4), (9, 4)], [(13, 1)]))
            self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 13)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 13)], []))
        self.assert_whole(13)

    def test_chunks_that_are_not_full_are_filled_before_the_hour_is_past(self):
        with mock.patch.object(compaction, "STRETCH_SAMPLES", 40), mock.patch.object(compaction, "_LOOK_ROWS", 1), \
             mock.patch.object(compaction, "_MOST_OF_NODE", 3):  # fmt: skip
            found = []
            for n in range(7):
                self.put(1 + n * 8, 8, NOON + n * 8000)
                found.append((self.compact(NOON + MINUTE_MS), self.rows()))
        self.assertEqual(found[2:5], [(16, [(1, 16)]), (0, [(1, 16)]), (16, [(1, 16), (17, 16)])])
        self.assertEqual(found[6], (48, [(1, 40), (41, 8)]))

    def test_late_samples_when_the_hour_is_past_in_which_they_came(self):
        """Also of a node without a clock, whose samples are of 1970: else they were rewritten at each look."""
        for n, time_ms in enumerate((1000, NOON - DAY_MS, NOON + 90 * DAY_MS)):
            self.put(1 + n, 1, time_ms, at_ms=NOON + 30 * MINUTE_MS)
        self.assertEqual(self.compact(NOON + HOUR_MS + MINUTE_MS), 0)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 2)
        self.assertEqual(self.rows("fresh"), [(3, 1)])  # dated ahead
        self.assertEqual(self.compact(NOON + 2 * HOUR_MS + GRACE_MS), 1)
        self.assert_whole(3)

    def test_the_last_of_an_hour_that_came_in_the_next_one(self):
        self.put(1, 10, NOON)
        self.put(11, 10, NOON + HOUR_MS - 10_000, at_ms=NOON + HOUR_MS + 30_000)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 20)
        self.assertEqual(self.rows(), [(1, 20)])

    def test_when_an_hour_is_past(self):
        hour, grace_ms = NOON // HOUR_MS, GRACE_MS
        for of_hour, arrived_ms, past_ms in (
            (hour, NOON, NOON + HOUR_MS),
            (hour, NOON + HOUR_MS + grace_ms - 1, NOON + HOUR_MS),
            (hour, NOON + HOUR_MS + grace_ms, NOON + 2 * HOUR_MS),  # from here on it is late
            (hour - 24, NOON + grace_ms - 1, NOON),
            (hour - 24, NOON + grace_ms, NOON + HOUR_MS),
            (hour + 1, NOON + grace_ms, NOON + 2 * HOUR_MS),  # dated ahead
            (hour + 99, NOON + grace_ms, NOON + 2 * HOUR_MS),
        ):
            due_ms = past_ms + grace_ms
            found = [compaction._is_past(of_hour, arrived_ms, now_ms) for now_ms in (due_ms - 1, due_ms)]
            self.assertEqual(found, [False, True], (of_hour - hour, arrived_ms - NOON))
        self.assertTrue(compaction._is_past(hour, None, NOON))
        self.assertFalse(compaction._is_past(hour, NOON + HOUR_MS, NOON))  # a clock that was a little ahead
        self.assertTrue(compaction._is_past(hour, NOON + HOUR_MS + 1, NOON))

    def test_of_very_many_rows_the_oldest_are_listed(self):
        with mock.patch.object(compaction, "_MOST_LISTED", 3):
            for n in range(6):
                self.put(1 + n * 10, 10, NOON + n * 10_000)
            job = self.store.compaction(NOON + DAY_MS)
            with self.store.writing(()):
                self.assertEqual(job(), 30)
        self.assertEqual((self.rows(), len(self.rows("fresh"))), ([(1, 30)], 3))

    def test_a_clock_that_is_set_back_keeps_nothing_waiting(self):
        self.put(1, 10, NOON)
        self.assertEqual(self.compact(NOON + HOUR_MS + GRACE_MS), 10)
        self.put(11, 10, NOON - 9 * HOUR_MS, at_ms=NOON)
        self.assertEqual(self.compact(NOON - 5 * HOUR_MS), 10)

    def test_a_part_at_a_time(self):
        with mock.patch.object(compaction, "_TOGETHER", 2 * compaction._ROW_SAMPLES):
            for n in range(10):
                self.put(1 + n * 10, 10, NOON + n * HOUR_MS)
            job = self.store.compaction(NOON + DAY_MS)
            with self.store.writing(()):
                self.assertEqual(job(), 20)
            self.assertEqual(self.compact(NOON + DAY_MS), 80)
        self.assert_whole(100)


class WhatItMakes(CompactionCase):
    def test_runs_that_are_alike(self):
        """A new chunk where sensors, clock state or hour change, or a number is missing; order is that of the seqs."""
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

    def test_hours_before_1970_are_hours_too(self):
        self.put(1, 5, -5000, at_ms=NOON)
        self.put(6, 5, 0, at_ms=NOON)
        self.put(11, 5, -HOUR_MS, at_ms=NOON)
        self.put(16, 5, 5000 - HOUR_MS, at_ms=NOON)
        self.assertEqual(self.compact(NOON + DAY_MS), 20)
        self.assertEqual(self.rows(), [(1, 5), (6, 5), (11, 10)])
        self.assert_whole(20)

    def test_late_rows_join_only_the_chunks_next_to_them(self):
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

    def test_a_chunk_between_two_late_rows_is_used_once(self):
        late = NOON + DAY_MS
        self.put(11, 10, NOON + 10_000)
        self.compact(late)
        self.put(1, 10, NOON, at_ms=late)
        self.put(21, 10, NOON + 20_000, at_ms=late)
        self.assertEqual(self.compact(late + 2 * HOUR_MS), 30)
        self.assertEqual(self.rows(), [(1, 30)])

    def test_no_more_samples_than_there_is_room_for(self):
        for n in range(3):
            self.put(1 + n * 3000, 3000, NOON + n)
        self.compact(NOON + DAY_MS)
        self.assertEqual(self.rows(), [(1, 3000), (3001, 3000), (6001, 3000)])
        for n in range(3):
            self.put(9001 + n * 1000, 1000, NOON + n, at_ms=NOON + DAY_MS)
        self.compact(NOON + 2 * DAY_MS)
        self.assertEqual(self.rows(), [(1, 3000), (3001, 3000), (6001, 4000), (10_001, 2000)])

    def test_the_time_at_which_the_newest_part_came(self):
        self.put(1, 5, NOON, at_ms=NOON + 7)
        self.put(6, 5, NOON + 5000, at_ms=NOON + 9)
        self.put(11, 5, NOON + 10_000, at_ms=NOON + 8)
        self.compact(NOON + DAY_MS)
        with self.store._reading() as db:
            self.assertEqual(db.execute("SELECT arrived, low, high, step FROM chunks").fetchall(),
                             [(NOON + 9, NOON, NOON + 14_000, 1000)])  # fmt: skip

    def test_a_damaged_row_is_moved_as_it_is(self):
        for n in range(3):
            self.put(1 + n * 5, 5, NOON + n * 5000)
        with self.store.writing(()):
            self.store._db.execute("UPDATE fresh SET data = replace(data, '7', '8') WHERE first = 6")
        self.compact(NOON + DAY_MS)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 5), (6, 5), (11, 5)], []))
        self.assertIn("were changed", self.told[0])
        with self.store._reading() as db:
            (data,) = db.execute("SELECT data FROM chunks WHERE first = 6").fetchone()
        self.assertEqual(json.loads(data), [[0, 6], [0, 8], [0, 8], [0, 9], [0, 10]])

    def test_rows_before_and_behind_damaged_ones_are_merged(self):
        """Also where the text of a row is no UTF-8 any more."""
        for change in ("replace(data, '1', '2')", "CAST(replace(data, '1', x'B1') AS TEXT)"):
            with self.subTest(change=change):
                self.setUp()
                for n in range(6):
                    self.put(1 + n * 5, 5, NOON + n * 5000)
                with self.store.writing(()):
                    self.store._db.execute(f"UPDATE fresh SET data = {change} WHERE first IN (11, 21)")
                self.assertEqual(self.compact(NOON + DAY_MS), 30)
                self.assertEqual(self.rows(), [(1, 10), (11, 5), (16, 5), (21, 5), (26, 5)])
                self.assertIn("were changed", self.told[0])
                self.put(31, 5, NOON + 30_000, at_ms=NOON + DAY_MS)
                self.put(36, 5, NOON + 35_000, at_ms=NOON + DAY_MS)
                self.assertEqual(self.compact(NOON + 2 * DAY_MS), 15)  # with a chunk behind damaged ones
                self.assertEqual(self.rows(), [(1, 10), (11, 5), (16, 5), (21, 5), (26, 15)])

    def test_a_shape_that_there_is_not_stops_no_other_row(self):
        for node, epoch in (("a", E1), ("b", E2)):
            for n in range(2):
                self.put(1 + n * 5, 5, NOON + n * 5000, node=node, epoch=epoch)
        with self.store.writing(()):
            self.store._db.execute("UPDATE fresh SET shape = 99 WHERE id = 1")
        self.assertEqual(self.compact(NOON + DAY_MS), 15)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(6, 5), (1, 10)], [(1, 5)]))

    def test_what_the_log_lacks_stays(self):
        """Such a row is damaged, and what is behind it logged."""
        for n in range(5):
            self.put(1 + n * 5, 5, NOON + n * 5000)
        job = self.store.compaction(NOON + DAY_MS)
        self.store.unlogged = frozenset([3])
        self.log_all()
        with self.store.writing(()):
            self.assertEqual(job(), 0)
        self.assertEqual(self.compact(NOON + DAY_MS), 20)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 10), (16, 10)], [(11, 5)]))

    def test_many_rows_that_stay_hide_none_behind_them(self):
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

    def test_a_row_without_its_numbers_stays_where_it_is_and_stops_nothing(self):
        """It fits no chunk: the attempt would be damage of the structure, after which nothing is stored any more."""
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


class WhatChangedMeanwhile(CompactionCase):
    def prepared(self):
        for n in range(3):
            self.put(1 + n * 5, 5, NOON + n * 5000)
        job = self.store.compaction(NOON + DAY_MS)
        self.assertIsNotNone(job)
        return job

    def test_what_is_gone_is_not_made_again(self):
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

    def test_what_comes_meanwhile_stays_for_the_next_time(self):
        job = self.prepared()
        self.put(16, 5, NOON + 15_000, at_ms=NOON + DAY_MS)
        with self.store.writing(()):
            self.assertEqual(job(), 15)
        self.assertEqual((self.rows(), self.rows("fresh")), ([(1, 15)], [(16, 5)]))
        self.assert_whole(20)

    def test_a_job_that_is_done_twice(self):
        job = self.prepared()
        for count in (15, 0):
            with self.store.writing(()):
                self.assertEqual(job(), count)
        self.assert_whole(15)

    def test_a_transaction_that_is_undone(self):
        job = self.prepared()
        with self.assertRaises(ZeroDivisionError), self.store.writing(()):
            job()
            raise ZeroDivisionError
        self.assertEqual(self.rows(), [])
        self.store._compactor.give_up()
        self.assertEqual(self.compact(NOON + DAY_MS), 15)
        self.assert_whole(15)

    def test_between_two_parts_more_comes_and_what_was_listed_is_done_first(self):
        """Or it is listed anew, when something went wrong: no row is in two lists."""
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

    def test_rows_that_went_before_they_were_read(self):
        with mock.patch.object(compaction, "_TOGETHER", 1):
            for n in range(4):
                self.put(1 + n * 5, 5, NOON + n // 2 * HOUR_MS + n % 2 * 5000)
            with self.store.writing(()):
                self.assertEqual(self.store.compaction(NOON + DAY_MS)(), 10)
            with self.store.writing(()):
                self.store._db.execute("DELETE FROM fresh WHERE first = 16")
            self.assertIsNone(self.store.compaction(NOON + DAY_MS))  # what it had listed is not true any more
            self.assertEqual(self.compact(NOON + DAY_MS), 5)


if __name__ == "__main__":
    unittest.main()
