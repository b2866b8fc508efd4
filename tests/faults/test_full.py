"""A full disk.

The server acknowledges only what it stores, continues to run, and collects everything once there is space.
"""

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
    """Fill the disk while samples arrive. The node keeps accepting; all its samples are stored once there is space."""
    disk.fill()
    wanted = len(house.heard) + chance.randrange(5, 40)
    wait_until(lambda: len(house.heard) >= wanted, "the node accepts samples on a full disk")
    # Only once: later the database may have free pages in its file.
    wait_until(
        lambda: "nothing can be stored, and the nodes keep their samples" in house.server.log.read_text(),
        "it reports the full disk",
    )
    time.sleep(chance.uniform(0, 0.05))  # a random time, not a wait for an event
    disk.free()
    wait_until(lambda: house.is_stored(wanted), "what was held back is stored")


if __name__ == "__main__":
    unittest.main()
