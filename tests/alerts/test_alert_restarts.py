"""Random values, pauses and restarts: each alert is reported once, and its end once."""

import random
import unittest

from pigeonpost.alerts.alert_store import AlertStore
from tests.alerts.engine_support import EngineCase
from tests.page_support import use_memory_disk
from tests.support import rounds


def setUpModule():
    use_memory_disk()


class Killed(BaseException):
    """The program was killed with -9 at this point."""


class Restarts(EngineCase):
    TABLES = ({"sensor": "temperature", "above": 40, "clear": 35, "name": "heat"},)
    COLLECT_S = 10.0

    def test_each_alert_and_its_end_are_queued_exactly_once_over_crashes(self):
        for seed in range(rounds("PIGEONPOST_TEST_ALERT_RESTARTS", 5, 400)):
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


if __name__ == "__main__":
    unittest.main()
