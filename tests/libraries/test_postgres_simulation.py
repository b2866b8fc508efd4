"""The simulation of both ends on PostgreSQL: every transaction, with its fate, done there too (tests/faults/shadow.py).

PIGEONPOST_TEST_SHADOW_SEEDS sets the number of seeds.
"""

import os
import unittest

from pigeonpost.core.data_folder import SERVER_ID
from pigeonpost.storage.postgres.store import PostgresStore
from tests.faults.shadow import play_on
from tests.faults.simulate import first_seed
from tests.libraries.databases import Database, need_postgres
from tests.support import rounds, temp_folder

SEEDS = rounds("PIGEONPOST_TEST_SHADOW_SEEDS", 5, 100)


def setUpModule():
    need_postgres()


class OnPostgres(unittest.TestCase):
    def test_seeds(self):
        counts, databases = {}, []
        first = first_seed()
        for seed in range(first, first + SEEDS):
            free = list(databases)

            def make(free=free):
                if not free:  # within a seed each store has its own; the next seed has them again
                    databases.append(Database())
                    self.addCleanup(databases[-1].drop)
                    free.append(databases[-1])
                database = free.pop()
                database.do("DROP SCHEMA IF EXISTS pigeonpost CASCADE")
                folder = temp_folder(self)
                with open(os.path.join(folder, SERVER_ID), "w", encoding="ascii") as file:
                    file.write(f"{len(databases):016x}\n")  # the simulation draws what is random from its seed
                return PostgresStore(database.address, folder)

            with self.subTest(seed=seed):
                play_on(seed, make, counts)
        self.assertGreater(counts["samples"], 10 * SEEDS)
        print(f"{SEEDS} seeds:", ", ".join(f"{what} {count}" for what, count in counts.items()))


if __name__ == "__main__":
    unittest.main()
