"""Tests of the index of fresh rows: readers see each sample exactly once while rows move to chunks."""

import contextlib
import threading
import unittest
from unittest import mock

from pigeonpost.core.errors import StoreDamaged
from pigeonpost.storage.chunks import COLUMNS
from pigeonpost.storage.models import HOUR_MS, LogMark
from pigeonpost.storage.sqlite import fresh
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.page_support import use_memory_disk
from tests.storage.test_contract import E1, FAR_MS, OUTBOX, batch, file
from tests.support import LIMIT_S, rounds, temp_folder


def setUpModule():
    use_memory_disk()


class Index(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        self.store = SqliteStore(self.folder)
        self.addCleanup(self.store.close)
        self.now_ms = FAR_MS

    def compact(self):
        """Move all rows to chunks."""
        file(self.store, log=LogMark("a.csv", 1, 0, file(self.store)))
        self.now_ms += 10 * HOUR_MS
        while job := self.store.compaction(self.now_ms):
            with self.store.writing(()):
                self.assertGreater(job(), 0)
        self.assertEqual(self.rows(), [])

    def rows(self):
        return self.store._db.execute("SELECT id FROM fresh").fetchall()

    def seqs(self, store=None, node="a"):
        return [one.seq for one in (store or self.store).points(node, 0, FAR_MS, -1)]

    def test_rows_that_move_while_a_reader_begins_are_read_once(self):
        file(self.store, batch(1, 3))
        self.assertEqual(self.seqs(), [1, 2, 3])
        reading = self.store._reading

        @contextlib.contextmanager
        def late_reading():
            """Commit and compact between the fetch of the index and the snapshot."""
            with mock.patch.object(self.store, "_reading", reading):
                file(self.store, batch(4, 5))
                self.compact()
                file(self.store, batch(6, 6), log=None)
            with reading() as db:
                yield db

        with mock.patch.object(self.store, "_reading", late_reading):
            self.assertEqual(self.seqs(), [1, 2, 3, 4, 5, 6])
        self.assertEqual(self.seqs(), [1, 2, 3, 4, 5, 6])

    def test_rows_that_move_after_a_snapshot_stay_in_it(self):
        file(self.store, batch(1, 3), batch(1, 3, node="b"))
        with self.store._reading_runs() as reader:
            file(self.store, batch(4, 5))
            self.compact()
            self.assertEqual([one.seq for one in reader.newest("a", 0, FAR_MS, -1)], [1, 2, 3])
            self.assertEqual(sum(len(part.samples) for part in reader.every_batch()), 6)
        self.assertEqual(self.seqs(), [1, 2, 3, 4, 5])

    def test_reader_keeps_its_index_when_another_one_replaces_it(self):
        """The new index may lack rows that left `fresh` after the snapshot began."""
        file(self.store, batch(1, 3))
        reading = self.store._reading

        @contextlib.contextmanager
        def slow_reading():
            with reading() as db:
                db.execute("SELECT 1 FROM fresh").fetchone()
                with mock.patch.object(self.store, "_reading", reading):
                    self.compact()
                    self.store._fresh = fresh.FreshIndex()
                    file(self.store, batch(4, 5))
                    self.assertEqual(self.seqs(), [1, 2, 3, 4, 5])
                yield db

        with mock.patch.object(self.store, "_reading", slow_reading):
            self.assertEqual(self.seqs(), [1, 2, 3])

    def test_another_process_sees_committed_rows(self):
        with contextlib.closing(SqliteStore(self.folder, look_only=True)) as other:
            for first in range(1, 40, 3):
                file(self.store, batch(first, first + 2))
                self.assertEqual(self.seqs(other), list(range(1, first + 3)))
                if first % 2:
                    self.compact()

    def test_filing_numbers_of_a_rolled_back_commit_are_used_by_the_next_one(self):
        file(self.store, batch(1, 3))
        with self.assertRaises(KeyError), self.store.writing(()):
            rest = COLUMNS.removeprefix("node, ")
            self.store._db.execute(f"INSERT INTO fresh (id, {COLUMNS}) SELECT id + 1, 99, {rest} FROM fresh")
            self.seqs()
            raise KeyError
        file(self.store, batch(1, 1, node="b"))
        self.assertEqual((self.seqs(), self.seqs(node="b")), ([1, 2, 3], [1]))

    def test_index_with_many_missing_rows_is_made_again(self):
        file(self.store, batch(1, 1, node="z"))  # this row stays, as if the log lacked it
        with mock.patch.object(fresh, "_MISSING_ROWS", 10):
            for seq in range(1, 31):
                file(self.store, batch(seq, seq))
            self.assertEqual(self.seqs(), list(range(1, 31)))
            index = self.store._fresh
            self.store._db.execute(f"INSERT INTO chunks ({COLUMNS}) SELECT {COLUMNS} FROM fresh WHERE id > 1")
            self.store._db.execute("DELETE FROM fresh WHERE id > 1")
            for _ in range(2):
                self.assertEqual(self.seqs(), list(range(1, 31)))
            self.assertIsNot(self.store._fresh, index)
            file(self.store, batch(31, 31))
            self.assertEqual(self.seqs(), list(range(1, 32)))
            self.assertEqual(self.store._fresh._count, 2)

    def test_index_does_not_grow_with_old_rows(self):
        with mock.patch.object(fresh, "_ADDED_ROWS", 10):
            for seq in range(1, 101):
                file(self.store, batch(seq, seq))
                self.assertEqual(self.seqs(node="b"), [])
                self.compact()
                self.assertLessEqual(self.store._fresh._count, 12)
        self.assertEqual(self.seqs(), list(range(1, 101)))

    def test_rows_of_an_hour_are_found_without_reading_all_rows(self):
        columns = fresh._Columns()
        for hour in range(1000):
            columns.add(hour + 1, hour * HOUR_MS + 5, hour * HOUR_MS + 9, 1, hour + 1)
        self.assertEqual(columns.part(1, 500 * HOUR_MS + 7, 502 * HOUR_MS), slice(500, 502))
        self.assertEqual(columns.part(502, 500 * HOUR_MS + 7, 502 * HOUR_MS + 6), slice(501, 503))
        self.assertEqual(columns.part(900, 0, 5 * HOUR_MS), slice(899, 899))
        columns.add(1001, 3, 4, 2, 1)  # late
        self.assertEqual(columns.part(2, 500 * HOUR_MS, 501 * HOUR_MS), slice(1, 1001))

    def test_first_and_last_time_are_those_of_existing_samples(self):
        for first in (1, 4, 7, 10):
            file(self.store, batch(first, first + 2))
        first_ms, last_ms = (self.store.nodes()[0][key] for key in ("first_ms", "last_ms"))
        self.assertEqual((first_ms, last_ms), (1_795_000_001_000, 1_795_000_012_000))
        self.store._db.execute("DELETE FROM fresh WHERE first = 10")
        self.assertEqual(self.store.nodes()[0]["last_ms"], 1_795_000_009_000)
        self.store._db.execute("DELETE FROM fresh WHERE first = 1")  # as if it were expired
        self.assertEqual(self.store.nodes()[0]["first_ms"], 1_795_000_004_000)
        self.store._db.execute("DELETE FROM fresh")
        self.assertIsNone(self.store.nodes()[0]["first_ms"])

    def test_damaged_row_is_reported_to_readers_of_its_node_only(self):
        file(self.store, batch(1, 3), batch(1, 3, node="b"))
        self.store._db.execute("UPDATE fresh SET low = 'x' WHERE node = 1")
        self.assertEqual(self.seqs(node="b"), [1, 2, 3])
        with self.assertRaisesRegex(StoreDamaged, "were changed"):
            self.seqs()

    def test_readers_see_each_sample_once_during_commits_and_compaction(self):
        stop, wrong, reads = threading.Event(), [], []

        def look(store):
            while not stop.is_set():
                top, _ = store.marks("a", OUTBOX, [E1])
                for seqs in (self.seqs(store), [
                    seq for _, _, part in store.stored_batches("a", 0, FAR_MS) for seq in range(part.seq, part.last + 1)
                ]):  # fmt: skip
                    reads.append(len(seqs))
                    if seqs != list(range(1, len(seqs) + 1)) or len(seqs) < top:
                        wrong.append((top, seqs))

        with contextlib.closing(SqliteStore(self.folder, look_only=True)) as other:
            readers = [threading.Thread(target=look, args=(store,)) for store in (self.store, self.store, other)]
            with mock.patch.object(fresh, "_MISSING_ROWS", 5):
                for reader in readers:
                    reader.start()
                for first in range(1, 5 * rounds("PIGEONPOST_TEST_COMMITS_BESIDE_COMPACTION", 40, 300) + 1, 5):
                    file(self.store, batch(first, first + 2), batch(first + 3, first + 4))
                    if first % 3 == 0:
                        self.compact()
                stop.set()
                for reader in readers:
                    reader.join(LIMIT_S)
        self.assertEqual(wrong, [])
        self.assertGreater(len(reads), 3)


if __name__ == "__main__":
    unittest.main()
