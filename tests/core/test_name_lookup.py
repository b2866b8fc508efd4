"""Tests of the lookup of host names in threads."""

import socket
import threading
import unittest
from unittest import mock

from pigeonpost.core import name_lookup
from pigeonpost.core.name_lookup import NameLookup
from tests.support import LIMIT_S, wait_until


class Answers:
    def __init__(self):
        self.found = []
        self.threads = []

    def __call__(self, find):
        self.threads.append(threading.current_thread().name)
        try:
            self.found.append(find())
        except OSError as error:
            self.found.append(error)


class NameLookups(unittest.TestCase):
    def setUp(self):
        self.lookup, self.answers = NameLookup(), Answers()

    def test_numeric_addresses_need_no_thread(self):
        for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
            self.lookup.find((host, 5003), self.answers)
            self.assertEqual(self.answers.found.pop()[0][0], family)
        self.assertEqual(set(self.answers.threads), {threading.current_thread().name})

    def test_names_are_looked_up_by_a_thread_that_then_ends(self):
        self.lookup.find(("localhost", 5003), self.answers)
        wait_until(lambda: self.answers.found)
        self.assertIn((socket.AF_INET, ("127.0.0.1", 5003)), self.answers.found[0])
        wait_until(lambda: not self.lookup._helpers._threads)

    def test_error_is_passed_to_the_callback(self):
        with mock.patch.object(socket, "getaddrinfo", side_effect=socket.gaierror(-2, "Name or service not known")):
            self.lookup.find(("nowhere.invalid", 5003), self.answers)
            wait_until(lambda: self.answers.found)
        self.assertEqual(self.answers.found[0].strerror, "Name or service not known")

    def test_invalid_name_is_an_error_like_any_other(self):
        for host in ("basement..example", "x" * 70):
            self.lookup.find((host, 5003), self.answers)
            wait_until(lambda: self.answers.found)
            self.assertIn("is not a valid host name", self.answers.found.pop().strerror)

    def test_silent_name_server_blocks_a_limited_number_of_threads(self):
        answered, asked = threading.Event(), []

        def ask(host, port, family=0, kind=0, protocol=0, flags=0):
            if flags:
                raise socket.gaierror(-2, "not in numbers")
            asked.append(host)
            answered.wait(LIMIT_S)
            return [(socket.AF_INET, kind, 0, "", (host, port))]

        self.addCleanup(answered.set)
        with mock.patch.object(socket, "getaddrinfo", ask):
            for number in range(20):
                self.lookup.find((f"n{number}", 1), self.answers)
            wait_until(lambda: len(asked) == name_lookup.MOST_THREADS)
            self.assertEqual(self.answers.found, [])
            answered.set()
            wait_until(lambda: len(self.answers.found) == 20)
        self.assertEqual({found[0][1][0] for found in self.answers.found}, {f"n{number}" for number in range(20)})

    def test_failed_start_of_a_thread_raises_and_drops_the_name(self):
        with (
            mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")),
            self.assertRaises(RuntimeError),
        ):
            self.lookup.find(("localhost", 1), self.answers)
        self.lookup.find(("localhost", 2), self.answers)
        wait_until(lambda: self.answers.found and not self.lookup._helpers._threads)
        self.assertEqual({where[1] for _, where in self.answers.found[0]}, {2})


if __name__ == "__main__":
    unittest.main()
