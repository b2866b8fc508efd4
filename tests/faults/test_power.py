"""Power cuts with the real kernel: unsynced data of both programs are lost at the same time."""

import random
import time
import unittest

from tests.faults.house import House, trial
from tests.faults.loop_disk import LoopDisk
from tests.support import rounds, wait_until

CUTS = rounds("PIGEONPOST_TEST_CUTS", 1, 200)


class PowerCuts(unittest.TestCase):
    def test_accepted_samples_outlive_every_power_cut(self):
        disk = LoopDisk(self, 48)
        with trial(f"{CUTS} power cuts", data=disk.path, every_s=0.01, slots=4096) as (house, chance):
            for number in range(1, CUTS + 1):
                cut(house, disk, chance)
                wait_until(lambda number=number: len(house.heard) > 10 * number, "samples flow between the cuts")


def cut(house: House, disk: LoopDisk, chance: random.Random) -> None:
    """Let some samples arrive, cut the power at a random time, and start again."""
    wanted = len(house.heard) + chance.randrange(1, 20)
    wait_until(lambda: len(house.heard) >= wanted, "samples flow again")
    time.sleep(chance.uniform(0, 0.05))  # a random time, not a wait for an event
    disk.cut_power()
    house.node.kill()
    house.server.kill()
    disk.unmount()
    disk.mount()
    house.node.start()
    house.server.start()


if __name__ == "__main__":
    unittest.main()
