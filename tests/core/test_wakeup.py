"""Wakeup and StopFlag: nothing that is set is missed, whenever the other thread waits."""

import threading
import unittest

from pigeonpost.core.wakeup import StopFlag, Wakeup
from tests.support import LIMIT_S


class Wakeups(unittest.TestCase):
    def test_set_before_the_wait_ends_it_at_once_and_once_only(self):
        wakeup = Wakeup()
        wakeup.set()
        wakeup.set()
        self.assertTrue(wakeup.wait(0))
        self.assertFalse(wakeup.wait(0))
        self.assertFalse(wakeup.wait(0.001))

    def test_nothing_handed_over_is_missed(self):
        """What was appended before `set` is seen after the `wait` that it ends, by any interleaving."""
        wakeup, items, seen = Wakeup(), [], []

        def take():
            while len(seen) < 30_000 and wakeup.wait(LIMIT_S):
                while items:
                    seen.append(items.pop())

        taker = threading.Thread(target=take)
        taker.start()

        def give():
            for _ in range(10_000):
                items.append(1)
                wakeup.set()

        givers = [threading.Thread(target=give) for _ in range(3)]
        for giver in givers:
            giver.start()
        for thread in (*givers, taker):
            thread.join(LIMIT_S)
        self.assertEqual((len(seen), items), (30_000, []))


class StopFlags(unittest.TestCase):
    def test_it_stays_set_for_every_thread_that_waits(self):
        flag = StopFlag()
        self.assertFalse(flag.wait(0))
        ended = []
        threads = [threading.Thread(target=lambda: ended.append(flag.wait(LIMIT_S))) for _ in range(5)]
        for thread in threads:
            thread.start()
        flag.set()
        flag.set()
        for thread in threads:
            thread.join(LIMIT_S)
        self.assertEqual(ended, [True] * 5)
        self.assertTrue(flag.is_set())
        self.assertTrue(flag.wait(0))
        self.assertTrue(flag.wait())


if __name__ == "__main__":
    unittest.main()
