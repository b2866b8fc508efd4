"""Forwarding to another Pigeonpost server: both servers are killed at random, and each sample arrives exactly once."""

import contextlib
import sqlite3
import subprocess
import sys
import unittest

from tests.programs import RealProgram, need_programs
from tests.programs.forward_house import KILLS, forwarding, kill_at_random, readings_of
from tests.support import ROOT, clean_environment, free_port, temp_folder, wait_until


def setUpModule():
    need_programs()


def control(*arguments):
    """Return the output of a command of control.py. It must succeed."""
    done = subprocess.run(
        [sys.executable, f"{ROOT}/control.py", *arguments], capture_output=True, text=True, timeout=120,
        env=clean_environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


class Office(RealProgram):
    """A second server, which collects from no node."""

    def __init__(self, test):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = temp_folder(test)
        self.kills = 0
        script = [sys.executable, f"{ROOT}/server.py", "--name", "office", "--web", f"127.0.0.1:{self.port}"]
        super().__init__(test, [*script, "--data", self.data], lambda: True)
        self.token = control("api-token", "relay", "--role", "writer", "--data", self.data).strip()

    def kill(self):
        super().kill()
        self.kills += 1


def identities(folder):
    """Return the node, epoch, sequence number, time and sensors of each sample in a data folder, in stored order."""
    return rows(folder, 'SELECT node, epoch, seq, time_ms, sensors, "values" FROM samples ORDER BY epoch, seq')


def gaps(folder):
    return rows(folder, "SELECT e.epoch, g.first, g.last FROM gaps g JOIN epochs e ON e.id = g.epoch ORDER BY 1, 2")


def rows(folder, sql):
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder}/pigeonpost.sqlite3?mode=ro", uri=True)) as db:
            return db.execute(sql).fetchall()
    except sqlite3.OperationalError as error:
        if "unable to open" not in str(error) and "no such table" not in str(error):
            raise
        return []  # the server is creating its database


class PigeonpostTest(unittest.TestCase):
    def settings(self, office):
        return f"""
            [[forward]]
            name = "office"
            kind = "pigeonpost"
            url = "{office.url}"
            token = "{office.token}"
            history = true
        """

    def check(self, house, office):
        """Check that both servers have the same samples and units, and that the second one is whole."""
        first = str(house.data / "server")
        office.kill()
        self.assertEqual(identities(first), identities(office.data))
        self.assertTrue(identities(first))
        self.assertEqual(readings_of(first), readings_of(office.data))
        control("verify", "--data", office.data)
        exports = [control("export", "--data", folder, "--utc") for folder in (first, office.data)]
        self.assertEqual(*exports)
        return exports[0].count("\n")

    def test_each_sample_arrives_exactly_once_although_both_servers_are_killed(self):
        office = Office(self)
        office.start()
        with forwarding(self.settings(office)) as (house, chance):
            kill_at_random(house, [office], KILLS, chance)
            first = str(house.data / "server")
            house.finish(lambda: identities(first) == identities(office.data), "the second server has all samples")
            count = self.check(house, office)
            self.assertEqual(gaps(office.data), [])
            self.assertGreater(count, 4 * KILLS)
            print(f"pigeonpost: {count} rows, {house.server.kills} and {office.kills} kills of the servers")

    def test_gap_of_the_first_server_is_one_of_the_second_too(self):
        office = Office(self)
        office.start()
        with forwarding(self.settings(office), slots=64) as (house, _):
            wait_until(lambda: identities(office.data), "samples arrive")
            house.server.kill()
            heard = len(house.heard)
            wait_until(lambda: len(house.heard) > heard + 100, "the outbox overflows")
            office.kill()
            house.server.start()
            office.start()
            first = str(house.data / "server")
            house.finish(lambda: identities(first) == identities(office.data), "the second server has all samples")
            self.check(house, office)
            self.assertEqual(gaps(first), gaps(office.data))
            self.assertTrue(gaps(first))


if __name__ == "__main__":
    unittest.main()
