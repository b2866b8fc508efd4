"""Would the tests notice? Programs and files that break the promise, as the same checks must find."""

import contextlib
import io
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.faults.house import ROOT, House, trial
from tests.faults.loop_disk import LoopDisk
from tests.faults.test_power import cut
from tests.support import temp_folder, wait_until

LAX = """
import sqlite3

class Lax(sqlite3.Connection):
    def execute(self, sql, *more):
        return super().execute(sql.replace("synchronous = FULL", "synchronous = NORMAL"), *more)

connect = sqlite3.connect
sqlite3.connect = lambda *a, **more: connect(*a, **more, factory=Lax)
"""


class Controls(unittest.TestCase):
    def assert_caught(self, what):
        """A context in which a trial must end with an AssertionError that says `what`."""
        stack = contextlib.ExitStack()
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # of the logs that a failure shows
        stack.enter_context(self.assertRaisesRegex(AssertionError, what))
        return stack

    def test_a_store_that_is_not_synced_and_a_ring_too_small_to_say_it_again(self):
        disk = LoopDisk(self, 48)
        folder = Path(temp_folder(self))
        (folder / "sitecustomize.py").write_text(LAX)
        options = {"data": disk.path, "every_s": 0.05, "slots": 64}
        with self.assert_caught("lost: "), trial("not synced", **options) as (house, chance):
            house.server.environment["PYTHONPATH"] = str(folder)
            house.server.kill()
            house.server.start()
            wanted = len(house.heard) + 80
            wait_until(lambda: len(house.heard) > wanted, "they are acknowledged")
            cut(house, disk, chance)

    def test_a_log_that_was_cut_by_hand(self):
        with tempfile.TemporaryDirectory() as folder:
            house = House(folder)
            self.addCleanup(house.close)
            house.start()
            wait_until(lambda: house.is_stored(10), "samples are stored")
            house.settle()
            house.check()
            log = max((house.data / "server" / "logs").glob("*.csv"))
            log.write_bytes(log.read_bytes()[:-40].rpartition(b"\n")[0] + b"\n")
            with self.assertRaisesRegex(AssertionError, "the CSV logs lack "):
                house.check()
            command = [sys.executable, str(ROOT / "control.py"), "--data", str(house.data / "server"), "verify"]
            said = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            self.assertEqual(said.returncode, 1, said)
            self.assertIn("they are not the same (was a log changed?)", said.stdout + said.stderr)


if __name__ == "__main__":
    unittest.main()
