"""Random values, pauses and restarts: each alert is reported once, and its end once."""

import json
import logging
import random
import unittest
from unittest import mock

from pigeonpost.alerts import engine, states
from pigeonpost.alerts.alert_store import AlertStore
from pigeonpost.core.errors import NotStored
from tests.alerts.engine_support import EngineCase
from tests.page_support import use_memory_disk
from tests.storage.memory_store import MemoryStore
from tests.support import long, rounds


def setUpModule():
    use_memory_disk()


class Killed(BaseException):
    """The program was killed with -9 at this point."""


class UndampedCase(EngineCase):
    """Engine that does not damp many events in an hour (tests.alerts.test_flapping), which a crash would reset."""

    def setUp(self):
        self.enterContext(mock.patch.object(states, "FREE_ENDS", 1000))
        self.enterContext(mock.patch.object(engine, "_MOST_PROMPT", 1000))
        super().setUp()


class Restarts(UndampedCase):
    TABLES = ({"sensor": "temperature", "above": 40, "clear": 35, "name": "heat"},)
    COLLECT_S = 10.0

    def test_each_alert_and_its_end_are_queued_exactly_once_over_crashes(self):
        for seed in range(rounds("PIGEONPOST_TEST_ALERT_RESTARTS", 5, 150)):
            with self.subTest(seed=seed):
                self.doCleanups()
                self.setUp()
                self.run_one(random.Random(seed))

    def run_one(self, dice):
        """Bring values with pauses and crashes, and compare the messages with the events."""
        self.bring(20)
        self.look()
        is_on, events = False, 0
        for _ in range(60):
            self.clock.sleep(1)
            value = dice.choice([20, 35, 36, 40, 41, 50, None])
            is_new = value is not None and value > 40 and not is_on
            is_end = value is not None and value <= 35 and is_on
            # The pauses are longer than the time in which messages are collected, so that each event has its messages.
            events += is_new + is_end
            is_on = (is_on or is_new) and not is_end
            if dice.random() < 0.1:  # the sample is stored and acknowledged, but the program ends before the check
                self.file(self.sample(value), units={"temperature": "°C"}, check=False)
                self.start()
            else:
                self.bring(value)
            for _ in range(3):
                self.crash_at_random(dice)
                self.look(10)
            self.look(10), self.look(10)  # if each of the others was the first one after a crash
        said = [subject.partition(":")[0] for subject in self.said()]
        self.assertEqual(said, ["Alert", "Resolved"] * (events // 2) + ["Alert"] * (events % 2), self.said())
        self.assertEqual(len({queued.message.id for queued in self.queue.waiting("mail")}), events)

    def crash_at_random(self, dice):
        """Kill the program before or after one of its writes, or between two checks, or not at all."""
        chance = dice.random()
        if chance < 0.1:
            self.start()
        elif chance < 0.3:
            commit, is_before = AlertStore.commit, chance < 0.2

            def killed(queue, *arguments):
                if not is_before:
                    commit(queue, *arguments)
                raise Killed

            self.clock.sleep(dice.choice([0, 10]))
            self.queue.commit = killed.__get__(self.queue)
            try:
                self.alerts.look()
            except Killed:
                self.start()
            self.queue.__dict__.pop("commit", None)

    def test_peak_just_before_a_crash_is_reported_after_it(self):
        for values in ((50, 20), (50,), (20, 50, 36, 20), (41, 41, 41), (50, None)):
            with self.subTest(values):
                self.doCleanups()
                self.setUp()
                self.bring(50)
                self.look(), self.look(10)
                self.bring(20)
                self.look(), self.look(10)
                for value in values:
                    self.clock.sleep(1)
                    self.file(self.sample(value), units={"temperature": "°C"}, check=False)
                self.start()
                said = [subject.partition(":")[0] for _ in range(5) for subject in self.look(10)]
                self.assertEqual(said, ["Alert", "Resolved"] if values[-1] == 20 else ["Alert"])

    def test_peak_is_found_though_the_clock_is_not_set_after_the_restart(self):
        for step_s in (-50 * 365 * 86_400, -3600, 3600, 86_400):
            with self.subTest(step_s):
                self.doCleanups()
                self.setUp()
                self.bring(20)
                self.look()
                for value in (50, 20):
                    self.clock.sleep(1)
                    self.file(self.sample(value), units={"temperature": "°C"}, check=False)
                self.clock.step(step_s)
                self.start()
                self.clock.step(-step_s)
                said = [subject.partition(":")[0] for _ in range(5) for subject in self.look(10)]
                self.assertEqual(said, ["Alert", "Resolved"])

    def test_values_that_were_checked_are_not_checked_again_after_a_stop(self):
        self.bring(50)
        self.look(), self.look(10)
        self.bring(20)
        self.look(), self.look(10)
        self.assert_said(self.said(), "^Alert", "^Resolved")
        for _ in range(3):
            self.alerts.close()
            self.start()
            self.look(), self.look(60)
        self.assert_said(self.said(), "^Alert", "^Resolved")

    def test_times_of_nodes_that_are_not_in_the_store_are_removed(self):
        for node in ("attic", "cellar"):
            self.bring(20, node)
            self.look()
        self.alerts.close()
        replaced, self.store = self.store, MemoryStore()
        self.bring(20, "cellar")
        with mock.patch.object(self.store, "nodes", side_effect=NotStored("locked")), self.assertLogs("pigeonpost"):
            self.start()
        self.look(engine.KEEP_S)
        self.assertEqual(self.timed_nodes(), ["attic", "cellar"])
        self.start()
        self.look(engine.KEEP_S)
        self.assertEqual(self.timed_nodes(), ["cellar"])
        self.store = replaced
        self.start()
        self.bring(50, "attic")
        self.look(), self.assert_said(self.look(10), "^Alert: temperature of attic")
        self.assertEqual(self.timed_nodes(), ["attic", "cellar"])

    def timed_nodes(self):
        """Return the nodes for which the file contains the time of the last value."""
        rows = AlertStore(self.queue._path, [], self.clock)
        self.addCleanup(rows.close)
        return sorted(json.loads(key)[1] for key in rows.states() if key.startswith('["latest"'))


class UnreadableStates(EngineCase):
    TABLES = ({"sensor": "temperature", "above": 40}, {"kind": "gap"})

    def test_content_of_another_version_does_not_prevent_the_start(self):
        for key, value, gaps in (
            (["latest", "attic", "temperature"], "yesterday", "1"), (["latest", "attic"], 5, "1"),
            (["state", "a"], {"rule": 5}, "1"), (["state"], None, "now"), (["node", "attic"], [1, 2, 3, 4], "-5"),
            (["latest", "attic", "temperature"], {}, "\u00b2"), (7, 1, ""),
        ):  # fmt: skip
            with self.subTest(key=key, value=value, gaps=gaps), self.assertLogs("pigeonpost.alerts") as logged:
                logging.getLogger("pigeonpost.alerts.engine").info("at least one line")
                self.queue.commit({json.dumps(key): value}, [], {"gaps": gaps})
                self.start()
                self.bring(50)
                self.look()
                self.assertLessEqual(len(logged.records), 2)
        self.assert_said(self.said(), "^Alert")


class SilentNodes(UndampedCase):
    SHORTEST_S = 600.0

    def test_each_silence_and_its_end_are_queued_exactly_once_over_restarts_and_clock_steps(self):
        for seed in range(rounds("PIGEONPOST_TEST_ALERT_RESTARTS", 5, 150)):
            with self.subTest(seed=seed):
                self.doCleanups()
                self.setUp()
                self.run_one(random.Random(seed))

    def run_one(self, dice):
        """Let nodes send, stop sending and return, and compare the messages with the times of a clock without steps."""
        nodes, expected = ["a", "b", "c"], dict.fromkeys("abc", 0)
        for node in nodes:
            self.link(node, calls_in=node != "a")
            self.bring(20, node)
        self.look()
        received_s, is_silent = dict.fromkeys(nodes, self.clock.monotonic()), dict.fromkeys(nodes, False)
        for _ in range(60):
            step = dice.choice(["send", "send", "wait", "restart", "clock", "links"])
            if step == "send":
                for node in dice.sample(nodes, dice.randrange(1, 4)):
                    self.bring(20, node)
                    received_s[node] = self.clock.monotonic()
            elif step == "wait":
                self.clock.sleep(dice.choice([50, 200, 601]))
            elif step == "clock":
                self.clock.step(dice.choice([-7e5, -4000, 4000, 7e5]))
            elif step == "links":  # those that connect to this server have no link until they connect
                self.links[:] = [link for link in self.links if link.state.name == "a"]
            else:
                self.start()
                for node in nodes:
                    received_s[node] = received_s[node] if is_silent[node] else self.clock.monotonic()
            for node in nodes:
                if (self.clock.monotonic() - received_s[node] >= 600) != is_silent[node]:
                    is_silent[node] = not is_silent[node]
                    expected[node] += 1
            self.look(), self.look()
        messages = [queued.message for queued in self.queue.waiting("mail")]
        for node in nodes:
            kinds = [m.kind for m in messages if node in [alert["node"] for alert in m.info["alerts"]]]
            count = expected[node]
            self.assertEqual(kinds, ["alert", "over"] * (count // 2) + ["alert"] * (count % 2), self.said())


@long
class EveryKind(EngineCase):
    TABLES = (
        {"sensor": "temperature", "above": 40, "clear": 35}, {"kind": "failed", "for": 30}, {"kind": "store"},
        {"sensor": "temperature", "above": 45, "severity": "critical", "again": 100, "repeats": 2}, {"kind": "gap"},
        {"kind": "disk"}, {"kind": "voltage"}, {"kind": "refused"},
    )  # fmt: skip
    QUIET, COLLECT_S, SHORTEST_S = "22:00-07:00", 10.0, 600.0

    def test_each_reported_alert_ends_exactly_once(self):
        for seed in range(rounds("PIGEONPOST_TEST_ALERT_RESTARTS", 1, 20)):
            with self.subTest(seed=seed):
                self.doCleanups()
                self.setUp()
                dice = random.Random(seed)
                self.states = {node: self.link(node, calls_in=dice.random() < 0.5) for node in "abc"}
                for _ in range(150):
                    self.change(dice, dice.choice("abc"))
                    self.look(dice.choice([1, 5, 30, 200, 3000]))
                    if dice.random() < 0.1:
                        self.start()
                self.end_everything()
                self.check_messages()

    def change(self, dice, node):
        """Change one condition, or the time, or restart the server, or acknowledge all alerts."""
        chance = dice.random()
        if chance < 0.6:
            self.bring(dice.choice([20, 36, 41, 46, None, None]), node)
        elif chance < 0.66:
            self.lose(dice.randrange(1, 9), node)
        elif chance < 0.72:
            self.faults = dice.choice(
                [{}, {"backup": "x"}, {"node a (push)": "y"}, {"backup": "x", "node a (push)": "y"}]
            )
        elif chance < 0.8:
            machine = {"disk_free": dice.choice([10, 520, 900]), "undervoltage": dice.choice([0, 1])}
            self.states[node].details = {"machine": machine}
        elif chance < 0.88:
            self.start()
        elif chance < 0.94:
            self.clock.step(dice.choice([-4000, 4000, -1e6, 1e6]))
        else:
            for alert in self.alerts.active():
                self.alerts.acknowledge(alert.id, "ann")

    def end_everything(self):
        self.faults = {}
        for _ in range(140):  # until after the quiet hours
            for node, state in self.states.items():
                state.details = {"machine": {"disk_free": 900, "undervoltage": 0}}
                self.bring(20, node)
            self.look(300)
        self.assertEqual(self.alerts.active(), [])

    def check_messages(self):
        open_ids = set()
        for message in [queued.message for queued in self.queue.waiting("mail")]:
            for alert in message.info["alerts"]:
                if message.kind == "alert":
                    self.assertTrue(alert["id"] not in open_ids or "repeated" in message.subject, message.subject)
                    open_ids.add(alert["id"])
                else:
                    self.assertIn(alert["id"], open_ids)
                    open_ids.remove(alert["id"])
        self.assertEqual(open_ids, set())


if __name__ == "__main__":
    unittest.main()
