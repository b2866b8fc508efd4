"""Power cuts, with the real kernel: what ext4 had not written is gone, for both programs at once."""

import random
import time
import unittest

from tests.faults.house import House, trial
from tests.faults.loop_disk import LoopDisk
from tests.support import rounds, wait_until

CUTS = rounds("PIGEONPOST_TEST_CUTS", 1, 200)


class PowerCuts(unittest.TestCase):
    def test_what_was_accepted_outlives_every_power_cut(self):
        disk = LoopDisk(self, 48)
        with trial(f"{CUTS} power cuts", data=disk.path, every_s=0.01, slots=4096) as (house, chance):
            for number in range(1, CUTS + 1):
                cut(house, disk, chance)
                wait_until(lambda number=number: len(house.heard) > 10 * number, "samples flow between the cuts")


def cut(house: House, disk: LoopDisk, chance: random.Random) -> None:
    """Let some samples come, cut the power at any moment, and begin again."""
    wanted = len(house.heard) + chance.randrange(1, 20)
    wait_until(lambda: len(house.heard) >= wanted, "samples flow again")
    time.sleep(chance.uniform(0, 0.05))  # the moment is random: nothing is waited for here
    disk.cut_power()
    house.node.kill()
    house.server.kill()
    disk.unmount()
    disk.mount()
    house.node.start()
    house.server.start()


if __name__ == "__main__":
    unittest.main()
