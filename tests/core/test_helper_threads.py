"""Tests of the pool of threads for blocking calls."""

import threading
import unittest
from unittest import mock

from pigeonpost.core.helper_threads import HelperThreads
from tests.support import LIMIT_S, wait_until


class Helping(unittest.TestCase):
    def setUp(self):
        self.helpers, self.answers = HelperThreads("helper", 2), []

    def outcomes(self):
        found = []
        for outcome in self.answers:
            try:
                found.append(outcome())
            except (ValueError, MemoryError) as error:
                found.append(type(error))
        return found

    def test_outcome_of_a_call_is_passed_on_and_its_thread_ends(self):
        for call in (lambda: 1, lambda: int("x"), mock.Mock(side_effect=MemoryError), lambda: 2):
            self.helpers.run(call, self.answers.append)
            wait_until(lambda: not self.helpers._threads)
        self.assertEqual(self.outcomes(), [1, ValueError, MemoryError, 2])

    def test_further_calls_wait_and_are_made_in_order(self):
        ended, began = threading.Event(), []
        self.addCleanup(ended.set)
        for number in range(6):
            self.helpers.run(lambda number=number: began.append(number) or ended.wait(LIMIT_S), self.answers.append)
        wait_until(lambda: len(began) == 2)
        self.assertEqual((sorted(began), self.answers), ([0, 1], []))
        ended.set()
        wait_until(lambda: not self.helpers._threads)
        self.assertEqual((sorted(began), self.outcomes()), ([0, 1, 2, 3, 4, 5], [True] * 6))

    def test_error_of_a_callback_does_not_end_the_pool(self):
        with self.assertLogs("pigeonpost.core.helper_threads", "ERROR"):
            for _ in range(3):
                self.helpers.run(lambda: 1, mock.Mock(side_effect=MemoryError))
            self.helpers.run(lambda: 2, self.answers.append)
            wait_until(lambda: not self.helpers._threads)
        self.assertEqual(self.outcomes(), [2])

    def test_failed_start_of_the_only_thread_raises_and_drops_the_call(self):
        with (
            mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")),
            self.assertRaises(RuntimeError),
        ):
            self.helpers.run(lambda: 1, self.answers.append)
        self.helpers.run(lambda: 2, self.answers.append)
        wait_until(lambda: not self.helpers._threads)
        self.assertEqual(self.outcomes(), [2])

    def test_running_threads_make_all_calls_if_no_further_one_can_be_started(self):
        ended = threading.Event()
        self.addCleanup(ended.set)
        self.helpers.run(lambda: ended.wait(LIMIT_S), self.answers.append)
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            self.helpers.run(lambda: 2, self.answers.append)
        ended.set()
        wait_until(lambda: not self.helpers._threads)
        self.assertEqual(self.outcomes(), [True, 2])


if __name__ == "__main__":
    unittest.main()
