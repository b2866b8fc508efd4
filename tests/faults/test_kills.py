"""kill -9 of node, server or both, at random moments."""

import unittest

from tests.faults.house import kill_at_random, trial
from tests.support import long, rounds

KILLS = rounds("PIGEONPOST_TEST_KILLS", 3, 1000)


class Kills(unittest.TestCase):
    def test_killed_again_and_again(self):
        with trial(f"{KILLS} times killed", every_s=0.01) as (house, chance):
            kill_at_random(house, KILLS, chance)

    @long
    def test_killed_with_the_usual_pauses(self):
        with trial("20 times killed, with the usual pauses", every_s=0.01, is_impatient=False) as (house, chance):
            kill_at_random(house, 20, chance)


if __name__ == "__main__":
    unittest.main()
