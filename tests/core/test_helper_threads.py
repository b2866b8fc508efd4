"""Calls that may have to wait, made in a few threads."""

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

    def test_what_is_returned_or_raised_is_the_answer_and_no_thread_stays(self):
        for call in (lambda: 1, lambda: int("x"), mock.Mock(side_effect=MemoryError), lambda: 2):
            self.helpers.run(call, self.answers.append)
            wait_until(lambda: not self.helpers._threads)
        self.assertEqual(self.outcomes(), [1, ValueError, MemoryError, 2])

    def test_so_many_wait_at_the_same_time_and_the_others_come_after_them_in_order(self):
        ended, began = threading.Event(), []
        self.addCleanup(ended.set)
        for number in range(6):
            self.helpers.run(lambda number=number: began.append(number) or ended.wait(LIMIT_S), self.answers.append)
        wait_until(lambda: len(began) == 2)
        self.assertEqual((sorted(began), self.answers), ([0, 1], []))
        ended.set()
        wait_until(lambda: not self.helpers._threads)
        self.assertEqual((sorted(began), self.outcomes()), ([0, 1, 2, 3, 4, 5], [True] * 6))

    def test_an_answer_that_cannot_be_given_costs_no_thread(self):
        with self.assertLogs("pigeonpost.core.helper_threads", "ERROR"):
            for _ in range(3):
                self.helpers.run(lambda: 1, mock.Mock(side_effect=MemoryError))
            self.helpers.run(lambda: 2, self.answers.append)
            wait_until(lambda: not self.helpers._threads)
        self.assertEqual(self.outcomes(), [2])

    def test_without_a_thread_it_raises_and_makes_no_call(self):
        with (
            mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")),
            self.assertRaises(RuntimeError),
        ):
            self.helpers.run(lambda: 1, self.answers.append)
        self.helpers.run(lambda: 2, self.answers.append)
        wait_until(lambda: not self.helpers._threads)
        self.assertEqual(self.outcomes(), [2])

    def test_without_a_further_thread_those_that_run_make_all_calls(self):
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
