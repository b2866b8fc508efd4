"""The simulation with SQLite itself; tests/libraries has the same with PostgreSQL.

PIGEONPOST_TEST_SHADOW_SEEDS is the number of seeds.
"""

import unittest
from unittest import mock

from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Gap
from tests.faults.shadow import play_on
from tests.faults.sim_oracle import Violation
from tests.faults.simulate import first_seed
from tests.support import rounds, temp_folder

SEEDS = rounds("PIGEONPOST_TEST_SHADOW_SEEDS", 2, 100)


class OnSqlite(unittest.TestCase):
    def make(self):
        return SqliteStore(temp_folder(self))

    def test_random_histories_equal_the_model(self):
        counts = {}
        first = first_seed()
        for number in range(20 * SEEDS):
            if number >= SEEDS and counts["samples"] > 10 * SEEDS:
                break  # some seeds store only a few samples
            seed = first + number
            with self.subTest(seed=seed):
                play_on(seed, self.make, counts)
        self.assertGreater(counts["samples"], 10 * SEEDS)
        print(f"{number} seeds:", ", ".join(f"{what} {count}" for what, count in counts.items()))

    def test_broken_stores_are_noticed(self):
        """One store forgets gaps, another one fails to raise a high-water mark."""
        put = SqliteStore.put

        def forgets_a_gap(store, epoch_commits, noted_ms, log):
            items = [(epoch_commit, epoch_commit.items) for epoch_commit in epoch_commits]
            for epoch_commit in epoch_commits:
                epoch_commit.items = [item for item in epoch_commit.items if not isinstance(item, Gap)]
            try:
                return put(store, epoch_commits, noted_ms, log)
            finally:
                for epoch_commit, all_of_them in items:
                    epoch_commit.items = all_of_them

        def keeps_marks(store, epoch_commits, noted_ms, log):
            marks = [(epoch_commit, epoch_commit.mark) for epoch_commit in epoch_commits]
            for epoch_commit in epoch_commits:
                epoch_commit.mark = epoch_commit.mark._replace(seq=epoch_commit.mark.seq - 1)
            try:
                return put(store, epoch_commits, noted_ms, log)
            finally:
                for epoch_commit, mark in marks:
                    epoch_commit.mark = mark

        for broken in (forgets_a_gap, keeps_marks):
            with mock.patch.object(SqliteStore, "put", broken), self.assertRaises(Violation):
                for seed in range(20):
                    play_on(seed, self.make, {})


if __name__ == "__main__":
    unittest.main()
