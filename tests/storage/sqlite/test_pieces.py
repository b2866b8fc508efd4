"""Tests of the check of the database: in pieces, all at once, and during compaction."""

import os
import sqlite3
import unittest
from unittest import mock

from pigeonpost.core.data_folder import DATABASE
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.chunks import COLUMNS, MARKS, ChunkRow
from pigeonpost.storage.models import HOUR_MS, LogMark
from pigeonpost.storage.sqlite import pieces
from pigeonpost.storage.sqlite.store import SqliteStore
from tests.page_support import use_memory_disk
from tests.storage.test_contract import FAR_MS, batch, file, gap
from tests.support import temp_folder

START_MS = 1_795_003_200_000  # start of an hour


def setUpModule():
    use_memory_disk()


class Check(unittest.TestCase):
    """Tests with a node that has samples in chunks, a gap, and samples in fresh; and with a second node."""

    def setUp(self):
        self.folder = temp_folder(self)
        self.open()
        filed = file(self.store, batch(1, 30), gap(31, 40), batch(41, 50), batch(1, 9, node="b"))
        file(self.store, log=LogMark("a.csv", 1, 0, filed))
        while job := self.store.compaction(FAR_MS):
            with self.store.writing(()):
                job()
        file(self.store, batch(51, 60), batch(10, 19, node="b"))
        self.db = sqlite3.connect(os.path.join(self.folder, DATABASE), isolation_level=None)
        self.addCleanup(self.db.close)

    def open(self):
        self.store = SqliteStore(self.folder)
        self.addCleanup(self.store.close)

    def faults(self):
        """Return the faults found in pieces, which must be those found all at once."""
        found = [fault for fault in self.store.check_pieces() if fault]
        self.assertEqual(found, list(self.store.verify()))
        return found

    def only(self, words):
        found = self.faults()
        self.assertEqual(len(found), 1, found)
        self.assertRegex(found[0], words)

    def test_valid_database_has_no_faults(self):
        self.assertEqual(self.faults(), [])
        for table in ("fresh", "chunks"):
            self.assertGreater(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0], 1)

    def test_changed_digit_is_reported(self):
        changes = {
            "data": "replace(data, '20.5', '20.6')", "low": "low + 1", "first": "first + 0.5", "clock": "'unset'",
        }  # fmt: skip
        for table in ("fresh", "chunks"):
            for column, change in changes.items():
                with self.subTest(table, column=column):
                    id, before = self.db.execute(f"SELECT id, {column} FROM {table} ORDER BY id LIMIT 1").fetchone()
                    self.db.execute(f"UPDATE {table} SET {column} = {change} WHERE id = {id}")
                    self.assertRegex("\n".join(self.faults()), f"{table}: row {id} is damaged: .* were changed")
                    self.db.execute(f"UPDATE {table} SET {column} = ? WHERE id = {id}", (before,))
                    self.assertEqual(self.faults(), [])

    def test_rows_out_of_the_order_of_their_ids_are_reported(self):
        """A changed id is not covered by a checksum, and SQLite does not find its row."""
        rows = pieces._rows
        with mock.patch.object(pieces, "_rows", lambda *place: rows(*place)[::-1]):
            found = [fault for fault in self.store.check_pieces() if fault]
        self.assertEqual(found, ["fresh: rows are not in order", "chunks: rows are not in order"])

    def test_invalid_utf_8_is_a_fault_of_its_row(self):
        """A flipped bit often makes a digit invalid; SQLite would then end the query."""
        for table in ("fresh", "chunks"):
            (id,) = self.db.execute(f"SELECT min(id) FROM {table}").fetchone()
            self.db.execute(f"UPDATE {table} SET data = CAST(x'5b80' || CAST(data AS BLOB) AS TEXT) WHERE id = {id}")
            self.assertRegex("\n".join(self.faults()), f"{table}: row {id} is damaged: .* were changed")

    def test_repeated_and_missing_samples_are_reported(self):
        self.db.execute("DELETE FROM fresh WHERE node = 1")
        self.only("node a, epoch 0000000000000001: 40 samples and 10 in gaps do not add up to 60")
        self.db.execute("UPDATE epochs SET forgotten = 10 WHERE node = 1")
        self.assertEqual(self.faults(), [])
        self.db.execute(f"INSERT INTO chunks ({COLUMNS}) SELECT {COLUMNS} FROM fresh WHERE node = 2")
        self.only("node b, epoch 0000000000000001: 10 samples stored twice")

    def test_equal_numbers_of_repeated_and_missing_samples_are_reported(self):
        self.db.execute("DELETE FROM chunks WHERE node = 2")
        self.db.execute("UPDATE gaps SET first = 30, last = 39")
        found = self.faults()
        self.assertRegex("\n".join(found), "node a.*: 1 sample stored twice")
        self.assertRegex("\n".join(found), "node b.*: 10 samples and 0 in gaps do not add up to 19")

    def test_sequence_numbers_beyond_the_mark_are_reported(self):
        shape = self.db.execute("SELECT id FROM shapes").fetchone()[0]
        for first in (20, -8):
            with self.subTest(first):
                self.db.execute("DELETE FROM chunks WHERE node = 2")
                nine = SampleBatch(first, list(range(9)), [], {"temperature": [1] * 9, "light": [1] * 9})
                self.db.execute(f"INSERT INTO chunks ({COLUMNS}) VALUES ({MARKS})",
                                ChunkRow.pack(2, 2, shape, nine, None))  # fmt: skip
                self.only("node b, epoch 0000000000000001: 19 samples and 0 in gaps do not add up to 19")

    def insert(self, row):
        self.db.execute("UPDATE epochs SET seq = seq + ? WHERE id = ?", (row.count, row.epoch))
        self.db.execute(f"INSERT INTO chunks ({COLUMNS}) VALUES ({MARKS})", row)

    def test_rows_of_two_hours_or_of_another_node_are_reported(self):
        shape = self.db.execute("SELECT id FROM shapes").fetchone()[0]
        two = SampleBatch(61, [START_MS - 1, START_MS], [], {"temperature": [1, 2], "light": [1, 2]})
        self.insert(ChunkRow.pack(1, 1, shape, two, None))
        self.only("chunks: row [0-9]+ is damaged: node 1, first time 1795003199999 ms")
        self.db.execute("UPDATE chunks SET node = 2 WHERE first = 61")
        self.assertRegex("\n".join(self.faults()), "chunks: row [0-9]+ is damaged: node 2")

    def test_samples_of_a_missing_epoch_are_reported(self):
        self.db.execute("DELETE FROM epochs WHERE node = 2")
        found = "\n".join(self.faults())
        self.assertRegex(found, "samples of epoch 2, which does not exist")

    def test_row_missing_in_an_index_is_reported(self):
        for index in ("chunks_of_node", "chunks_by_time"):
            with self.subTest(index):
                schema = self.db.execute("SELECT * FROM sqlite_schema WHERE name = ?", (index,)).fetchone()
                self.db.execute("PRAGMA writable_schema = ON")
                self.db.execute("DELETE FROM sqlite_schema WHERE name = ?", (index,))
                self.db.execute("PRAGMA writable_schema = RESET")
                shape = self.db.execute("SELECT id FROM shapes").fetchone()[0]
                (last,) = self.db.execute("SELECT seq FROM epochs WHERE id = 1").fetchone()
                one = SampleBatch(last + 1, [START_MS + last], [], {"temperature": [1], "light": [1]})
                self.insert(ChunkRow.pack(1, 1, shape, one, None))
                self.db.execute("PRAGMA writable_schema = ON")
                self.db.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", schema)
                self.db.execute("PRAGMA writable_schema = RESET")
                self.store.close()
                self.open()
                found = [fault for fault in self.store.check_pieces() if fault]
                self.assertRegex("\n".join(found), "chunks: row [0-9]+ is not in the index")
                self.assertRegex("\n".join(self.store.verify()), f"missing from index {index}")

    def test_rows_that_move_during_the_check_are_no_faults(self):
        for stop in range(1, 9):
            pieces = self.store.check_pieces()
            found = [next(pieces) for _ in range(stop)]
            (top,) = self.db.execute("SELECT seq FROM epochs WHERE id = 1").fetchone()
            filed = file(self.store, batch(top + 1, top + 3))
            file(self.store, log=LogMark("a.csv", 1, 0, filed))
            while job := self.store.compaction(FAR_MS + stop * 10 * HOUR_MS):
                with self.store.writing(()):
                    job()
            self.assertEqual([fault for fault in [*found, *pieces] if fault], [])

    def test_rollup_without_numbers_is_reported(self):
        self.db.execute("INSERT INTO summaries VALUES (1, 't', 600000, 600000, 'x', 1, 1, 1, 1, 1, 1)")
        found = [fault for fault in self.store.check_pieces() if fault]
        self.assertRegex("\n".join(found), "summaries: a row has a value that is not a number: ")


if __name__ == "__main__":
    unittest.main()
