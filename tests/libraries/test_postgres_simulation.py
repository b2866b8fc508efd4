"""Simulation of both ends with PostgreSQL, in which each transaction is repeated (tests/faults/shadow.py).

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


class PostgresSimulationTest(unittest.TestCase):
    def test_seeds_have_the_same_result_in_postgresql(self):
        counts, databases = {}, []
        first = first_seed()
        for seed in range(first, first + SEEDS):
            free = list(databases)

            def make(free=free):
                if not free:  # each store of a seed uses a separate one; the next seed reuses them
                    databases.append(Database())
                    self.addCleanup(databases[-1].drop)
                    free.append(databases[-1])
                database = free.pop()
                database.do("DROP SCHEMA IF EXISTS pigeonpost CASCADE")
                folder = temp_folder(self)
                with open(os.path.join(folder, SERVER_ID), "w", encoding="ascii") as file:
                    file.write(f"{len(databases):016x}\n")  # the simulation takes random values from its seed
                return PostgresStore(database.address, folder)

            with self.subTest(seed=seed):
                play_on(seed, make, counts)
        self.assertGreater(counts["samples"], 10 * SEEDS)
        print(f"{SEEDS} seeds:", ", ".join(f"{what} {count}" for what, count in counts.items()))


if __name__ == "__main__":
    unittest.main()
