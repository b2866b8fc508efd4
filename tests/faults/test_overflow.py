"""Outages that last longer than the outbox: the missing samples are reported exactly."""

import unittest

from tests.faults.house import trial
from tests.support import LONG, rounds, wait_until

TIMES = rounds("PIGEONPOST_TEST_OVERFLOWS", 1, 20)
SLOTS = 64
MOST_EPOCHS, MOST_SAMPLES = (3, 2 * SLOTS) if LONG else (1, SLOTS)


class Overflow(unittest.TestCase):
    def test_the_gaps_are_as_large_as_what_is_missing(self):
        options = {"slots": SLOTS, "every_s": 0.01, "with_gaps": True}
        with trial(f"{TIMES} times overflown", **options) as (house, chance):
            for _ in range(TIMES):
                house.server.kill()
                before = newest(house)
                for _ in range(chance.randint(1, MOST_EPOCHS)):  # some of them may never reach the server
                    wanted = len(house.heard) + chance.randrange(1, MOST_SAMPLES)
                    wait_until(lambda wanted=wanted: len(house.heard) >= wanted, "samples flow")
                    house.node.kill()
                    house.note_card()
                    house.node.start()
                wait_until(lambda before=before: newest(house) > before + SLOTS, "more is taken than the ring holds")
                house.server.start()
                wanted = len(house.heard)
                wait_until(lambda wanted=wanted: house.has_stored_after(wanted), "the server collects again")
        self.assertGreaterEqual(house.figures["gaps"], TIMES)


def newest(house):
    """Return the running number of the newest sample in the node's ring file."""
    ring = house.ring()
    ring.close()
    return ring.last


if __name__ == "__main__":
    unittest.main()
