"""A full disk: the server acknowledges nothing that it cannot store, goes on, and gets it all when there is room."""

import random
import time
import unittest

from tests.faults.house import House, trial
from tests.faults.loop_disk import LoopDisk
from tests.support import rounds, wait_until

CYCLES = rounds("PIGEONPOST_TEST_FULL", 1, 50)


class FullDisk(unittest.TestCase):
    def test_a_full_disk_costs_no_accepted_sample(self):
        disk = LoopDisk(self, 24)
        with trial(f"{CYCLES} times full", data=disk.path, every_s=0.01, slots=4096) as (house, chance):
            wait_until(lambda: house.is_stored(3), "samples are stored")
            for _ in range(CYCLES):
                fill_and_free(house, disk, chance)
            self.assertTrue(house.server.is_running(), "the server has ended")
            self.assertTrue(house.node.is_running(), "the node has ended")


def fill_and_free(house: House, disk: LoopDisk, chance: random.Random) -> None:
    """Fill the disk while samples come; the node accepts on, and what it holds is stored when there is room."""
    disk.fill()
    wanted = len(house.heard) + chance.randrange(5, 40)
    wait_until(lambda: len(house.heard) >= wanted, "the node accepts samples on a full disk")
    # Only once: later the database may have room in what it has taken already.
    wait_until(lambda: "nothing can be stored, the nodes keep everything" in house.server.log.read_text(), "it says so")
    time.sleep(chance.uniform(0, 0.05))  # the moment is random: nothing is waited for here
    disk.free()
    wait_until(lambda: house.is_stored(wanted), "what was held back is stored")


if __name__ == "__main__":
    unittest.main()
