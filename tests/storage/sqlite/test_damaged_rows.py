"""Tests of rows that were damaged before the CSV log contained them: they stay, and all other work continues."""

import contextlib
import logging
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.csv.format import lacking
from pigeonpost.storage.csv.verify import verify_logs
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.storage.models import HOUR_MS, LogMark
from pigeonpost.storage.sqlite import compaction
from pigeonpost.storage.sqlite.integrity import damage_text
from pigeonpost.storage.sqlite.schema import quick_faults
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch
from tests.page_support import use_memory_disk
from tests.storage.test_contract import E1, E2, OUTBOX, Direct, file, gap, sample
from tests.support import temp_folder

NOON = 1_795_003_200_000


def setUpModule():
    use_memory_disk()


class DamagedRows(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.reported = []
        self.folder = temp_folder(self)
        self.open()

    def open(self):
        self.store = SqliteStore(self.folder)
        self.store.on_damage = self.reported.append
        self.addCleanup(self.store.close)

    def put(self, first, time_ms, count=2, node="a", epoch=E1):
        """Store one row of `fresh`. Return its filing number."""
        made = [sample(first + n, 20.5, time_ms + n * 1000) for n in range(count)]
        return file(self.store, Batch(node, OUTBOX, epoch, 0, SampleBatch.of(made), None, {}, print, print))

    def damage(self, id, column="data", value="replace(data, '.5', '.4')"):
        """Damage a row that is not logged yet. Return a function that repairs it."""
        db = self.store._db
        (old,) = db.execute(f"SELECT {column} FROM fresh WHERE id = ?", (id,)).fetchone()
        db.execute(f"UPDATE fresh SET {column} = {value} WHERE id = ?", (id,))
        return lambda: self.store._db.execute(f"UPDATE fresh SET {column} = ? WHERE id = ?", (old, id))

    def log_except(self, *ids):
        """Record that the log contains all rows except these."""
        self.store.unlogged |= frozenset(ids)
        with self.store.writing(()):
            filed = self.store.put([], 0, None)
            self.store.put([], 0, LogMark("a.csv", 1, 0, filed))

    def work(self, now_ms, keep_days=0.0):
        worker = MaintenanceWorker(self.store, Direct(self.store), FakeClock(now_ms), keep_days)
        for _ in range(50):
            if not worker.work():
                return worker
        return self.fail("the worker does not finish")

    def ids(self, table="fresh"):
        return [id for (id,) in self.store._db.execute(f"SELECT id FROM {table} ORDER BY id")]

    def entries(self, filed=0):
        return [(one.filed, len(one.items)) for one in self.store.logged_after(filed)]

    def test_entries_for_the_log_include_damaged_rows_without_items(self):
        for n in range(5):
            self.put(1 + 2 * n, NOON + n * 10_000)
        file(self.store, gap(11, 12))
        for id, change in ((2, {}), (4, {"value": "CAST(x'5b80' AS TEXT)"}), (5, {"column": "count", "value": "'x'"})):
            self.damage(id, **change)
        found = {one.filed: one for one in self.store.logged_after(0)}
        self.assertEqual([len(one.items) for one in found.values()], [1, 0, 1, 0, 0, 1])
        lost = [found[id].lost[1:] for id in (2, 4, 5)]
        self.assertEqual(
            lost,
            [(4, NOON + 10_000, NOON + 11_000), (4, NOON + 30_000, NOON + 31_000), (0, NOON + 40_000, NOON + 41_000)],
        )
        self.assertEqual((found[2].node, found[2].epoch), ("a", E1))
        for id in (2, 4, 5):
            self.assertTrue(any(f"{id} of node a, which the CSV log may lack: " in text for text in self.reported), id)

    def test_row_with_a_changed_id_is_reported(self):
        """No checksum covers the id, and SQLite does not find a row that is out of the order of its page."""
        for n in range(6):
            self.put(1 + 2 * n, NOON + n * 10_000)
        self.log_except()
        self.assertEqual(self.entries(6), [])
        for n in range(6, 12):
            self.put(1 + 2 * n, NOON + n * 10_000)
        for old, new in ((8, 70), (10, 0)):
            self.store._db.execute("UPDATE fresh SET id = ? WHERE id = ?", (new, old))
        self.assertEqual(self.entries(6)[:6], [(7, 1), (8, 0), (9, 1), (10, 0), (11, 1), (12, 1)])
        self.assertTrue(
            any("8 of node unknown, which the CSV log may lack: its row is missing" in one for one in self.reported)
        )
        self.assertLess(len(self.reported), 20)
        self.log_except(8, 10)
        self.assertEqual([text for text in self.store.check_pieces() if "lacks" in text],
                         [lacking({8, 10})])  # fmt: skip
        self.assertRegex(
            lacking({8, 10}), r"^the CSV log lacks damaged rows of the table fresh.* not expire: row 8, and 1 more$"
        )

    def test_large_jump_of_ids_reports_only_the_missing_number(self):
        for n in range(6):
            self.put(1 + 2 * n, NOON + n * 10_000)
        self.store._db.execute("UPDATE fresh SET id = 77 WHERE id = 3")
        self.assertEqual(self.entries(), [(1, 1), (2, 1), (3, 0), (4, 1), (5, 1), (6, 1), (77, 1)])
        self.put(13, NOON + 60_000)
        self.assertEqual(self.entries(2), [(3, 0), (4, 1), (5, 1), (6, 1), (7, 1), (77, 1)])

    def test_damaged_list_of_unlogged_rows_is_reported_and_stops_nothing(self):
        for text, left in (("'[1'", []), ("'[\"x\", 1]'", [1]), ("'[1.5]'", []), ("NULL", []), ("x'5b31'", []),
                           ("CAST(x'5b80' AS TEXT)", [])):  # fmt: skip
            with self.subTest(text):
                self.folder = temp_folder(self)
                self.open()
                self.put(1, NOON)
                self.put(3, NOON + 10_000)
                self.log_except(1)
                self.assertEqual(list(quick_faults(self.folder, True)), [damage_text(self.folder, lacking({1}), False)])
                self.store._db.execute(f"UPDATE meta SET value = {text} WHERE key = 'unlogged'")
                self.store.close()
                self.open()
                self.assertIn("meta: the list of rows that the CSV log lacks", self.store.found_at_start)
                self.assertEqual((sorted(self.store.unlogged), self.store.damage), (left, ""))
                self.assertIn(self.store.found_at_start, list(quick_faults(self.folder, True)))
                self.assertEqual([id for id, _ in self.entries(2)], left)
                self.work(NOON + 3 * HOUR_MS)
                self.log_except(self.put(5, NOON + 20_000))
                self.store.close()
                self.open()
                self.assertEqual((sorted(self.store.unlogged), self.store.found_at_start), ([*left, 3], ""))

    def test_read_only_store_knows_the_unlogged_rows(self):
        self.put(1, NOON)
        self.log_except(1)
        with contextlib.closing(SqliteStore(self.folder, look_only=True)) as store:
            self.assertEqual(store.unlogged, {1})
            self.assertIn(lacking({1}), list(verify_logs(self.folder, store)))

    def test_unlogged_rows_are_recorded_with_the_log_mark_only(self):
        repair = self.put(1, NOON) and self.damage(1)
        self.put(3, NOON + 10_000)
        self.store.unlogged = frozenset({1})
        self.put(5, NOON + 20_000)
        self.assertEqual(self.entries(2), [(3, 1)])
        with contextlib.suppress(ZeroDivisionError), self.store.writing(()):
            self.store.put([], 0, LogMark("a.csv", 1, 0, 2))
            raise ZeroDivisionError
        self.assertEqual(self.entries(2), [(3, 1)])
        self.log_except(1)
        self.assertEqual(self.entries(3), [(1, 0)])
        self.store.close()
        self.open()
        self.assertEqual(self.store.unlogged, {1})
        repair()
        self.assertEqual(self.entries(3), [(1, 1)])
        self.store.unlogged = frozenset()
        self.log_except()
        self.assertEqual(self.entries(3), [])

    def test_hour_of_an_unlogged_row_does_not_expire(self):
        repair = self.put(1, NOON) and self.damage(1)
        self.put(3, NOON + 10_000)
        self.put(1, NOON, node="b", epoch=E2)
        self.put(3, NOON + HOUR_MS, node="b", epoch=E2)
        self.log_except(1)
        self.assertEqual(self.work(NOON + 1000 * HOUR_MS, keep_days=1).expired, 4)
        self.assertEqual(self.ids(), [1])
        for _ in range(2):
            repair()
            self.assertEqual(self.work(NOON + 1000 * HOUR_MS, keep_days=1).expired, 0)
        self.store.unlogged = frozenset()
        self.log_except()
        self.assertEqual(self.work(NOON + 1000 * HOUR_MS, keep_days=1).expired, 4)
        self.assertEqual((self.ids(), self.ids("chunks"), list(self.store.verify())), ([], [], []))

    def test_late_damaged_rows_are_merged_after_they_are_logged(self):
        self.put(1, NOON)
        self.log_except()
        self.work(NOON + 1000 * HOUR_MS, keep_days=1)
        id = self.put(3, NOON + 60_000)
        self.log_except(id)
        self.work(NOON + 1000 * HOUR_MS, keep_days=1)
        self.assertEqual(self.ids(), [id])
        self.store.unlogged = frozenset()
        self.log_except()
        self.work(NOON + 1000 * HOUR_MS, keep_days=1)
        self.assertEqual(self.ids() + self.ids("chunks"), [])
        (hour,) = self.store.summaries("a", "light", HOUR_MS, 0, 1 << 60)
        self.assertEqual(hour.values, 4)

    def test_compaction_leaves_exactly_the_unlogged_rows(self):
        for n in range(9):
            self.put(1 + 2 * n, NOON + n * 10_000)
        repairs = [self.damage(3), self.damage(6, value="CAST(x'5b80' AS TEXT)")]
        self.log_except(3, 6)
        self.work(NOON + 3 * HOUR_MS)
        self.assertEqual(self.ids(), [3, 6])
        rows = self.store._db.execute("SELECT first, count FROM chunks ORDER BY first").fetchall()
        self.assertEqual(rows, [(1, 4), (7, 4), (13, 6)])
        for repair in repairs:
            repair()
        self.store.unlogged = frozenset()
        self.log_except()
        self.work(NOON + 5 * HOUR_MS)
        self.assertEqual(self.store._db.execute("SELECT first, count FROM chunks").fetchall(), [(1, 18)])
        self.assertEqual((self.ids(), list(self.store.verify())), ([], []))

    def test_damaged_rows_do_not_hide_others_from_compaction(self):
        for n in range(12):
            self.put(1 + 2 * n, NOON + n * 10_000)
        for id in (1, 2, 3, 4):  # more than are listed; these rows cannot become chunks
            self.damage(id, "count", "'x'")
        self.damage(9, "shape", "77")
        self.log_except()
        with mock.patch.multiple(compaction, _MOST_LISTED=3, _LOOK_ROWS=1):
            for _ in range(3):
                self.work(NOON + 3 * HOUR_MS)
        self.assertEqual(self.ids(), [1, 2, 3, 4, 9])
        rows = self.store._db.execute("SELECT first, count FROM chunks ORDER BY first").fetchall()
        self.assertEqual(rows, [(9, 8), (19, 6)])

    def test_compaction_moves_logged_damaged_rows_and_merges_their_neighbours(self):
        for n in range(9):
            self.put(1 + 2 * n, NOON + n * 10_000)
        self.damage(3)
        self.damage(6, value="CAST(x'5b80' AS TEXT)")
        self.log_except()
        self.work(NOON + 3 * HOUR_MS)
        self.assertEqual(self.ids(), [])
        rows = self.store._db.execute("SELECT first, count FROM chunks ORDER BY first").fetchall()
        self.assertEqual(rows, [(1, 4), (5, 2), (7, 4), (11, 2), (13, 6)])
        self.assertTrue(self.reported)


if __name__ == "__main__":
    unittest.main()
