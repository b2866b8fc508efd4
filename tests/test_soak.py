"""Criteria of the long run (bench/soak.py): leaked, lost and repeated things are found, and nothing else."""

import contextlib
import sqlite3
import unittest

from bench.soak import Measured, account, grown_resources
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.chunks import COLUMNS
from pigeonpost.storage.models import EpochCommit, HighWaterMark
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Gap, Sample
from tests.support import temp_folder

EPOCHS = [f"{number:016x}" for number in range(3)]


class TestUnflat(unittest.TestCase):
    def run_of(self, grown_from=12, **grown):
        """Return 36 measurements; those from `grown_from` on are larger by `grown`."""
        flat = Measured(40.0, 3, 30, 16.0)
        more = flat._replace(**{name: getattr(flat, name) + by for name, by in grown.items()})
        return [flat if number < grown_from else more for number in range(36)]

    def test_constant_resources_are_flat(self):
        self.assertEqual(grown_resources(self.run_of()), [])

    def test_the_warm_up_may_grow(self):
        self.assertEqual(grown_resources(self.run_of(12, memory=50, threads=9, files=90)), [])

    def test_growth_after_it_is_a_fault(self):
        for grown, word in (({"memory": 14.1}, "memory"), ({"threads": 5}, "threads"), ({"files": 5}, "files")):
            with self.subTest(word):
                (fault,) = grown_resources(self.run_of(24, **grown))
                self.assertTrue(fault.startswith(word), fault)

    def test_a_little_growth_is_none(self):
        self.assertEqual(grown_resources(self.run_of(24, memory=13.9, threads=4, files=4)), [])

    def test_a_moment_is_no_growth(self):
        self.assertEqual(grown_resources(self.run_of(31, memory=100, threads=50, files=50)), [])

    def test_the_wal_is_never_too_long_also_not_in_the_warm_up(self):
        run = self.run_of()
        run[3] = run[3]._replace(wal=64.0)
        self.assertIn("wal", grown_resources(run)[0])

    def test_too_few_measurements_tell_nothing(self):
        self.assertIn("too few", grown_resources(self.run_of()[:11])[0])


class TestAccount(unittest.TestCase):
    """Node n took ten samples of one epoch, two of them in a gap, and three of another, deleted epoch."""

    def setUp(self):
        self.folder = temp_folder(self)
        epoch_commit = EpochCommit("n", "0" * 16, EPOCHS[1], HighWaterMark(10, None))
        epoch_commit.items = [SampleBatch.of([self.sample(seq)]) for seq in range(1, 9)]
        epoch_commit.items.append(Gap(9, 10, 3, "overwritten"))
        store = SqliteStore(self.folder)
        with store.writing(()):
            store.put([epoch_commit], 0, None)
        store.close()
        self.accepted = {("n", EPOCHS[0]): 3, ("n", EPOCHS[1]): 10}

    @staticmethod
    def sample(seq):
        return Sample(seq, 1_795_000_000_000 + seq, seq, {"turn": seq, "level": 0.5}, {}, "")

    def figures(self, sql=""):
        """Return the numbers of lost, repeated and astray samples after `sql` has changed the store."""
        with contextlib.closing(sqlite3.connect(f"{self.folder}/pigeonpost.sqlite3")) as db, db:
            db.execute(sql)
        found = account(self.folder, self.accepted)
        return found["lost"], found["repeated"], found["astray"]

    def test_complete_store_has_no_faults(self):
        found = account(self.folder, self.accepted)
        self.assertEqual(found, {"accepted": 13, "gaps": 5, "lost": 0, "repeated": 0, "astray": 0})

    def test_each_fault_is_reported(self):
        values = COLUMNS.replace("first", "{}").replace("low", "low + 1")
        again = f"INSERT INTO chunks ({COLUMNS}) SELECT {values} FROM fresh WHERE first = 4"
        for what, sql, figures in (
            ("a lost sample", "DELETE FROM fresh WHERE first = 4", (1, 0, 0)),
            ("the same at another time", again.format("first"), (0, 1, 0)),
            ("one that is in a gap too", again.format("9"), (0, 1, 1)),
            ("one that no node took", again.format("11"), (0, 0, 2)),
            ("another's value", "UPDATE fresh SET data = '[[0,5,0.5]]' WHERE first = 4", (0, 0, 1)),
            ("a gap that is too short", "UPDATE gaps SET last = 9", (1, 0, 0)),
            ("a gap over what is stored", "UPDATE gaps SET first = 8", (0, 1, 0)),
            ("a gap of too few epochs", "UPDATE gaps SET before = 2", (1, 0, 0)),
            ("a gap of too many", "UPDATE gaps SET before = 5", (2, 0, 0)),
        ):
            with self.subTest(what):
                self.setUp()
                self.assertEqual(self.figures(sql), figures)


if __name__ == "__main__":
    unittest.main()
