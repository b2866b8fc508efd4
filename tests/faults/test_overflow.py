"""Outages that last longer than the outbox: what is missing is said, exactly."""

import os
import unittest

from tests.faults.house import trial
from tests.support import wait_until

TIMES = int(os.environ.get("PIGEONPOST_TEST_OVERFLOWS", "2"))
SLOTS = 64


class Overflow(unittest.TestCase):
    def test_the_gaps_are_as_large_as_what_is_missing(self):
        options = {"slots": SLOTS, "every_s": 0.01, "with_gaps": True}
        with trial(f"{TIMES} times overflown", **options) as (house, chance):
            for _ in range(TIMES):
                house.server.kill()
                for _ in range(chance.randrange(1, 4)):  # epochs, of which the server may never see one
                    wanted = len(house.heard) + chance.randrange(1, 2 * SLOTS)
                    wait_until(lambda wanted=wanted: len(house.heard) >= wanted, "samples flow")
                    wait_until(lambda: house.try_ask("SEND OFF").startswith("SENDBACK OFF"), "the node answers")
                    wait_until(house.has_heard_all, "the oracle has heard all that is there")
                    house.node.kill()
                    house.node.start()  # the oracle says SEND ON
                house.server.start()
                wanted = len(house.heard)
                wait_until(lambda wanted=wanted: house.has_stored_after(wanted), "the server collects again")


if __name__ == "__main__":
    unittest.main()
