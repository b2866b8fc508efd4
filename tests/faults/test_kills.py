"""kill -9 of node, server or both, at random moments."""

import os
import time
import unittest

from tests.faults.house import kill_at_random, trial

KILLS = int(os.environ.get("PIGEONPOST_TEST_KILLS", "50"))


class Kills(unittest.TestCase):
    def test_killed_again_and_again(self):
        began_s = time.monotonic()
        with trial(f"{KILLS} times killed") as (house, chance):
            kill_at_random(house, KILLS, chance, time.monotonic() - began_s)
        self.assertGreater(len(house.heard), 2 * KILLS)


if __name__ == "__main__":
    unittest.main()
