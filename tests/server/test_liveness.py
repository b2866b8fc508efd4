"""Expected interval of a node's samples, learned from calls if the client does not report it."""

import random
import unittest

from pigeonpost.server.liveness import LEARNED_VISITS, UsualInterval, is_silent, wait_s
from pigeonpost.server.node_status import NodeState

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


class Client:
    """Client without an interval: its calls, and the alarms that a check at every moment would have raised."""

    def __init__(self):
        self.interval = UsualInterval()
        self.state = NodeState("", "attic")
        self.state.calls_in = True
        self.now_s = 1000.0
        self.last_s = None
        self.alarms = []  # pauses that were longer than the wait

    def call(self, pause_s=0.0):
        self.now_s += pause_s
        if self.last_s is not None and self.now_s - self.last_s > wait_s(self.state):
            self.alarms.append(self.now_s - self.last_s)
        self.last_s = self.now_s
        self.state.every_s = self.interval.record(self.now_s)

    def bursts(self, count, pause_s, calls=6, step_s=0.1):
        for _ in range(count):
            self.call(pause_s)
            for _ in range(calls - 1):
                self.call(step_s)


class WaitTest(unittest.TestCase):
    def test_node_has_three_intervals_and_five_seconds_or_a_commit(self):
        state = NodeState("address", "a")
        self.assertEqual((wait_s(None), wait_s(state)), (185.0, 185.0))
        state.every_s = 10.0
        self.assertEqual([wait_s(state, commit_s) for commit_s in (0.0, 1.0, 60.0)], [35.0, 35.0, 90.0])
        state.every_s, state.calls_in = None, True
        self.assertEqual(wait_s(state), 10_805.0)


class SilenceTest(unittest.TestCase):
    def test_node_is_silent_after_its_wait(self):
        state = NodeState("address", "a")
        state.every_s = 10.0
        for awaited_s, received_s, now_s, expected in (
            (None, None, 5.0, True), (100.0, None, 135.0, False), (100.0, None, 136.0, True),
            (100.0, 200.0, 230.0, False), (100.0, 200.0, 236.0, True), (300.0, 200.0, 330.0, False),
            (None, 200.0, 230.0, False), (None, 200.0, 1e6, True),
        ):  # fmt: skip
            state.awaited_s = awaited_s
            self.assertIs(is_silent(state, received_s, now_s), expected)


class LearnedIntervalTest(unittest.TestCase):
    def test_client_is_never_late_while_it_calls_as_usual(self):
        jitter = random.Random(7)
        for name, calls in {
            "one burst of six, then every ten minutes": lambda one: (one.bursts(1, 0), one.bursts(40, 600, 1)),
            "bursts of six every ten minutes": lambda one: one.bursts(60, 600),
            "bursts of 200 every hour": lambda one: one.bursts(12, HOUR, 200, 0.3),
            "every second": lambda one: one.bursts(600, 1, 1),
            "every five minutes, irregular": lambda one: [one.call(jitter.uniform(30, 600)) for _ in range(300)],
            "every minute, one of 20 messages lost": lambda one: [
                one.call(MINUTE * (1 + (jitter.random() < 0.05))) for _ in range(500)
            ],
        }.items():
            with self.subTest(name):
                client = Client()
                calls(client)
                self.assertEqual(client.alarms, [])

    def test_pauses_that_return_are_learned(self):
        for name, calls, alarms in (
            ("once a day", lambda one: one.bursts(20, DAY, 1), [DAY]),
            ("once a day, in bursts", lambda one: one.bursts(20, DAY, 12), [DAY]),
            ("once a day, after a test of three calls", lambda one: (
                one.bursts(1, 0, 3, 70), one.bursts(12, DAY, 1)), [DAY]),
            ("every ten minutes by day, pause of ten hours at night", lambda one: [
                one.call(600 if n % 80 else 10 * HOUR) for n in range(1, 800)], [10 * HOUR] * 2),
        ):  # fmt: skip
            with self.subTest(name):
                client = Client()
                calls(client)
                self.assertEqual(client.alarms, alarms)

    def test_single_outage_does_not_lengthen_the_wait(self):
        for every_s, outage_s in ((10, DAY), (60, 5 * DAY), (600, 30 * DAY), (600, HOUR), (DAY, 10 * DAY)):
            with self.subTest(every_s=every_s, outage_s=outage_s):
                client = Client()
                client.bursts(max(30, int(600 / every_s)), every_s, 1)
                before = wait_s(client.state)
                client.bursts(1, outage_s, 1)
                client.bursts(10, every_s, 1)
                self.assertEqual(wait_s(client.state), before)

    def test_interval_has_a_floor(self):
        for every_s in (0.01, 1, 7, 31, 59):
            client = Client()
            client.bursts(max(LEARNED_VISITS + 1, int(31 * LEARNED_VISITS / every_s) + 100), every_s, 1)
            self.assertEqual(client.state.every_s, 60.0, every_s)

    def test_interval_is_not_assumed_before_several_visits(self):
        client = Client()
        for pause_s in (0, 0.1, 60, 300, 0, 2, 90):
            client.call(pause_s)
            self.assertIsNone(client.state.every_s)

    def test_interval_of_an_earlier_run_is_used_until_another_is_learned(self):
        for former_s, pauses, expected in (
            (DAY, (0, 0.1, 60), DAY), (DAY, [HOUR] * 8, DAY), (DAY, [HOUR] * 9, HOUR),
            (300.0, (0, 300, 300), 300.0), (300.0, (0, DAY), DAY), (None, (0, 300), None),
        ):  # fmt: skip
            client = Client()
            client.interval = UsualInterval(former_s)
            for pause_s in pauses:
                client.call(pause_s)
            self.assertEqual(client.state.every_s, expected, (former_s, pauses))

    def test_shorter_interval_is_learned_after_a_week(self):
        client = Client()
        client.bursts(20, DAY, 1)
        self.assertEqual(client.state.every_s, DAY)
        client.bursts(24 * 14, HOUR, 1)
        self.assertEqual(client.state.every_s, HOUR)
