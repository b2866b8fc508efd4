"""Count of the demonstration's samples: it finds lost, repeated, held and overwritten samples, and full disks."""

import os
import sqlite3
import unittest

from pigeonpost.core.errors import NotStored
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.server.demo_count import DemoCount, faults
from pigeonpost.server.demo_trials import use_up_space
from pigeonpost.storage.models import EpochCommit, HighWaterMark
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Gap
from tests.page_support import use_memory_disk
from tests.storage.test_contract import batch
from tests.support import BOOT, taken, temp_folder


def setUpModule():
    use_memory_disk()


class CountTest(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.ring = Ring(self.folder, 64, 128)
        self.outbox = Outbox(self.ring, BOOT)
        self.store = SqliteStore(self.folder)
        self.addCleanup(self.store.close)

    def take(self, count):
        for number in range(count):
            self.outbox.put(taken(value=number, up_ms=number))
            self.outbox.commit()

    def put(self, *items, mark):
        """Store batches and gaps of the outbox's epoch."""
        with self.store.writing([("a", self.outbox.epoch)]):
            commit = EpochCommit("a", self.ring.identity, self.outbox.epoch, HighWaterMark(mark, 0))
            commit.items.extend(items)
            self.store.put([commit], 0, None)

    def numbers(self, *names):
        found = DemoCount(self.folder).count(self.store, "a")
        return tuple(getattr(found, name) for name in names)

    def rows(self, first, last):
        return batch(first, last).samples

    def test_samples_that_are_not_stored_are_held(self):
        self.take(5)
        self.assertEqual(self.numbers("taken", "stored", "held", "lost", "twice"), (5, 0, 5, 0, 0))
        self.put(self.rows(1, 3), mark=3)
        self.assertEqual(self.numbers("taken", "stored", "held", "lost", "twice"), (5, 3, 2, 0, 0))

    def test_row_that_is_deleted_is_lost(self):
        self.take(5)
        self.put(self.rows(1, 2), mark=2)
        self.put(self.rows(3, 4), mark=4)
        db = sqlite3.connect(os.path.join(self.folder, "pigeonpost.sqlite3"))
        db.execute("DELETE FROM fresh WHERE first = 3")
        db.commit()
        db.close()
        self.store.close()
        self.store = SqliteStore(self.folder)
        self.addCleanup(self.store.close)
        self.assertEqual(self.numbers("taken", "stored", "held", "lost"), (5, 2, 1, 2))
        self.assertIn("do not add up to 4", "; ".join(faults(self.store, self.folder)))

    def test_row_that_contains_a_stored_sample_again_is_counted(self):
        self.take(4)
        self.put(self.rows(1, 3), mark=3)
        self.put(self.rows(2, 4), mark=4)
        self.assertEqual(self.numbers("stored", "twice", "lost"), (4, 2, 0))

    def test_gap_is_missing_but_not_lost(self):
        self.take(5)
        self.put(Gap(1, 3, 0, "overwritten"), self.rows(4, 4), mark=4)
        self.assertEqual(self.numbers("stored", "missing", "held", "lost"), (1, 3, 1, 0))

    def test_samples_overwritten_before_they_were_stored_are_counted_also_in_earlier_epochs(self):
        self.take(70)
        self.assertEqual(self.numbers("taken", "held", "overwritten"), (70, 64, 6))
        self.ring.close()
        self.ring = Ring(self.folder, 64, 128)
        self.outbox = Outbox(self.ring, BOOT)
        self.take(70)
        self.assertEqual(self.numbers("taken", "held", "overwritten", "others"), (140, 64, 76, 0))

    def test_samples_of_other_sources_are_counted_separately(self):
        self.take(2)
        with self.store.writing([("a", "f" * 16)]):
            commit = EpochCommit("a", "0" * 16, "f" * 16, HighWaterMark(3, 0))
            commit.items.append(batch(1, 3).samples)
            self.store.put([commit], 0, None)
        self.assertEqual(self.numbers("taken", "stored", "held", "others", "lost"), (2, 3, 2, 3, 0))


class FullDisk(unittest.TestCase):
    def test_full_database_refuses_a_commit_and_accepts_it_when_there_is_space(self):
        folder = temp_folder(self)
        store = SqliteStore(folder)
        self.addCleanup(store.close)
        store.on_begin = use_up_space

        def put():
            with store.writing([("a", "e" * 16)]):
                commit = EpochCommit("a", "0" * 16, "e" * 16, HighWaterMark(3, 0))
                commit.items.append(batch(1, 3).samples)
                store.put([commit], 0, None)

        for _ in range(3):
            with self.assertRaisesRegex(NotStored, "database or disk is full"):
                put()
        self.assertEqual(store.nodes(), [])
        store.on_begin = lambda db: None
        put()
        self.assertEqual(store.nodes()[0]["samples"], 3)
        self.assertEqual(list(store.verify()), [])
        db = sqlite3.connect(os.path.join(folder, "pigeonpost.sqlite3"))
        self.addCleanup(db.close)
        self.assertNotIn(("ballast",), db.execute("SELECT name FROM sqlite_master").fetchall())


if __name__ == "__main__":
    unittest.main()
