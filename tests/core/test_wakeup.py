"""Tests of Wakeup and StopFlag: no `set` is missed, no matter when the other thread waits."""

import threading
import unittest

from pigeonpost.core.wakeup import StopFlag, Wakeup
from tests.support import LIMIT_S


class Wakeups(unittest.TestCase):
    def test_set_before_the_wait_ends_exactly_one_wait(self):
        wakeup = Wakeup()
        wakeup.set()
        wakeup.set()
        self.assertTrue(wakeup.wait(0))
        self.assertFalse(wakeup.wait(0))
        self.assertFalse(wakeup.wait(0.001))

    def test_items_appended_before_set_are_seen_after_wait(self):
        """An item that was appended before `set` is seen after the `wait` that it ends, with any interleaving."""
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
    def test_stop_flag_stays_set_for_all_waiting_threads(self):
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
