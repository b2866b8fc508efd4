"""The simulation on SQLite itself; tests/libraries has the same on PostgreSQL.

PIGEONPOST_TEST_SHADOW_SEEDS says how many seeds are played.
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

    def test_seeds(self):
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

    def test_it_would_notice(self):
        """A store that forgets gaps, or to move a mark as far as it should."""
        put = SqliteStore.put

        def forgets_a_gap(store, filings, noted_ms, log):
            items = [(filing, filing.items) for filing in filings]
            for filing in filings:
                filing.items = [item for item in filing.items if not isinstance(item, Gap)]
            try:
                return put(store, filings, noted_ms, log)
            finally:
                for filing, all_of_them in items:
                    filing.items = all_of_them

        def keeps_marks(store, filings, noted_ms, log):
            marks = [(filing, filing.mark) for filing in filings]
            for filing in filings:
                filing.mark = filing.mark._replace(seq=filing.mark.seq - 1)
            try:
                return put(store, filings, noted_ms, log)
            finally:
                for filing, mark in marks:
                    filing.mark = mark

        for broken in (forgets_a_gap, keeps_marks):
            with mock.patch.object(SqliteStore, "put", broken), self.assertRaises(Violation):
                for seed in range(20):
                    play_on(seed, self.make, {})


if __name__ == "__main__":
    unittest.main()
