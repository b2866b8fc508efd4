"""Negative controls: programs and files that break the promise, which the same checks must find."""

import contextlib
import io
import unittest
from pathlib import Path

import control
from csvbuffer import CsvLog
from pigeonpost.core.clock import Clock
from pigeonpost.link.samples import SampleBatch
from pigeonpost.node.ring_file import Ring
from pigeonpost.server.ingest import Ingestor
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch, Sample
from tests.faults.house import House, trial
from tests.faults.loop_disk import LoopDisk
from tests.faults.test_power import cut
from tests.support import BOOT, EPOCH, LIMIT_S, WALL_MS, long, taken, temp_folder, wait_until

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
        """Return a context in which a trial must end with an AssertionError that contains `what`."""
        stack = contextlib.ExitStack()
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # instead of the logs that a failure prints
        stack.enter_context(self.assertRaisesRegex(AssertionError, what))
        return stack

    @long
    def test_a_store_that_is_not_synced_and_a_ring_too_small_to_say_it_again(self):
        disk = LoopDisk(self, 48)
        folder = Path(temp_folder(self))
        (folder / "sitecustomize.py").write_text(LAX)
        options = {"data": disk.path, "every_s": 0.01, "slots": 64}
        with self.assert_caught("lost: "), trial("not synced", **options) as (house, chance):
            house.server.environment["PYTHONPATH"] = str(folder)
            house.server.kill()
            house.server.start()
            wanted = len(house.heard) + 80
            wait_until(lambda: len(house.heard) > wanted, "they are acknowledged")
            cut(house, disk, chance)

    def house_of(self, count):
        """Return a House with `count` samples in the node's ring file, the server's store and its log."""
        house = House(temp_folder(self))
        samples = [Sample(seq, WALL_MS + seq, seq, {"temperature": seq / 4}, {}, "") for seq in range(1, count + 1)]
        for name in ("node", "server"):
            (house.data / name).mkdir()
        ring = Ring(str(house.data / "node"), 64, 128)
        ring.append(EPOCH, 1, BOOT, [taken(one.values["temperature"], one.time_ms, one.up_ms) for one in samples])
        ring.close()
        data = str(house.data / "server")
        store = SqliteStore(data)
        csv = CsvLog(data, store, Clock())
        csv.start()
        ingestor = Ingestor(store, csv, Clock())
        ingestor.submit(
            Batch("n", ring.identity, EPOCH, 0, SampleBatch.of(samples), None, {}, lambda *_: None, self.fail)
        )
        ingestor.start()
        self.assertIsNone(ingestor.stop(LIMIT_S))
        csv.close()
        store.close()
        return house

    def test_a_log_that_was_cut_by_hand(self):
        house = self.house_of(10)
        self.assertEqual(house.check()["accepted"], 10)
        log = max((house.data / "server" / "logs").glob("*.csv"))
        log.write_bytes(log.read_bytes()[:-40].rpartition(b"\n")[0] + b"\n")
        with self.assertRaisesRegex(AssertionError, "the CSV logs lack "):
            house.check()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            self.assertEqual(control.main(["--data", str(house.data / "server"), "verify"]), 1)
        self.assertIn("they differ (was a log changed?)", said.getvalue())


if __name__ == "__main__":
    unittest.main()
