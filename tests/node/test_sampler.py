"""Samples on time: slots that do not drift, sources that do not wait for each other, failures that are shown."""

import logging
import threading
import time
import unittest
from itertools import pairwise
from unittest import mock

from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.core.errors import SensorError
from pigeonpost.node.sampler import LONGEST_WAIT_S, Metronome, Sampler
from pigeonpost.sensors.contract import Channel, SensorSource
from protocol import LARGEST_INTEGER
from tests.support import LIMIT_S, WALL_MS, wait_until


class Thing(SensorSource):
    """A source that does as it is told: `does` gives its readings, or raises."""

    def __init__(self, *names, does=None):
        self.channels = [Channel(name, "") for name in names]
        self.does = does or (lambda: dict.fromkeys(names, 1.5))
        self.reads = 0
        self.threads = set()
        self.closed = 0

    def read(self):
        self.reads += 1
        self.threads.add(threading.current_thread().name)
        return self.does()

    def close(self):
        self.closed += 1


class Stuck:
    """A reading that does not end until it is let go."""

    def __init__(self, test):
        self.begun = threading.Event()
        self.let_go = threading.Event()
        test.addCleanup(self.let_go.set)

    def __call__(self):
        self.begun.set()
        self.let_go.wait(LIMIT_S)
        return {"slow": 99, "also": 98}


class Slots(unittest.TestCase):
    """The metronome on a clock that moves when it is waited on, or when the function takes its time."""

    def run_slots(self, interval, count, takes=lambda slot: 0.0, up_ms=48_000_000):
        clock = FakeClock(up_ms=up_ms)
        began_s = clock.monotonic()
        times, missed = [], []

        def function(missed_before):
            times.append(clock.monotonic() - began_s)
            missed.append(missed_before)
            clock.sleep(takes(len(times) - 1))
            if len(times) == count:
                metronome.cancel()

        metronome = Metronome(interval, function, clock)
        metronome.run()  # in this thread: every step is known
        return times, missed

    def test_no_drift_in_10000_slots(self):
        for interval in (10.0, 1.0, 0.1, 0.01, 7.3):
            for takes in (0.0, 0.3, 0.9):
                times, missed = self.run_slots(interval, 10_000, lambda slot, t=takes, i=interval: t * i)
                worst = max(abs(at - slot * interval) for slot, at in enumerate(times))
                self.assertLess(worst, 1e-5, (interval, takes))
                self.assertEqual(sum(missed), 0)

    def test_the_first_is_taken_at_once(self):
        self.assertEqual(self.run_slots(3600, 1)[0], [0.0])

    def test_a_little_late_is_still_that_slot_and_the_next_is_on_time(self):
        times, missed = self.run_slots(10, 5, lambda slot: 13 if slot == 1 else 0)
        self.assertEqual([round(at, 6) for at in times], [0, 10, 23, 30, 40])
        self.assertEqual(missed, [0] * 5)

    def test_slots_that_passed_are_counted_and_never_made_up_for(self):
        for stands_still_s, passed in ((17, 1), (25, 1), (26, 2), (100, 9), (3600, 359)):
            times, missed = self.run_slots(10, 6, lambda slot, s=stands_still_s: s if slot == 2 else 0)
            self.assertEqual(missed, [0, 0, 0, passed, 0, 0])
            slots = [round(at / 10 - 0.01) for at in times]
            self.assertEqual(slots[3], 2 + passed + 1)
            # One after the other again, and no two of them crowded into one interval.
            self.assertTrue(all(b - a >= 5 - 1e-6 for a, b in pairwise(times)), times)
            self.assertAlmostEqual(times[5] - times[4], 10)
            self.assertAlmostEqual(times[5] % 10, 0)

    def test_a_function_that_is_always_too_slow_never_bunches(self):
        times, missed = self.run_slots(1, 200, lambda slot: 1.7)
        self.assertTrue(all(b - a >= 1.6999 for a, b in pairwise(times)))
        self.assertEqual(len(times) + sum(missed), round(times[-1]) + 1)

    def test_a_date_that_steps_moves_no_slot(self):
        clock = FakeClock()
        times = []

        def function(missed):
            times.append(clock.monotonic())
            clock.step(1e8 if len(times) % 2 else -2e8)
            if len(times) == 20:
                metronome.cancel()

        metronome = Metronome(10, function, clock)
        metronome.run()
        self.assertEqual([b - a for a, b in pairwise(times)], [10.0] * 19)

    def test_it_is_a_timer_in_a_thread_of_its_own(self):
        called = threading.Event()
        metronome = Metronome(0.01, lambda missed: called.set(), Clock())
        self.assertIsInstance(metronome, threading.Timer)
        self.assertTrue(metronome.daemon)
        metronome.start()
        self.assertTrue(called.wait(LIMIT_S))
        metronome.cancel()
        metronome.join(LIMIT_S)
        self.assertFalse(metronome.is_alive())


class SamplerCase(unittest.TestCase):
    def sampler(self, *sources, every_s=10.0, clock=None, is_on=lambda: True):
        """A sampler whose readers run, but not its metronome: `sample` is called by the test."""
        self.taken = []
        self.clock = clock or FakeClock()
        sampler = Sampler(sources, self.taken.append, every_s, self.clock, is_on)
        for reader in sampler._readers:
            reader.start()
        self.addCleanup(sampler.stop, 0.01)
        return sampler

    def sampled(self, *sources, **settings):
        """What is delivered of one slot."""
        self.sampler(*sources, **settings).sample()
        (one,) = self.taken
        return one


class Samples(SamplerCase):
    def test_all_sources_in_one_sample(self):
        clock = FakeClock(known=False)
        one = self.sampled(Thing("a", "b", does=lambda: {"a": 1, "b": -2.5}), Thing("c"), clock=clock)
        self.assertEqual(one, (WALL_MS, 48_000_000, False, {"a": 1, "b": -2.5, "c": 1.5}, {}))
        self.assertEqual(list(one.values), ["a", "b", "c"])

    def test_it_is_dated_when_it_was_asked_for(self):
        clock = FakeClock()
        one = self.sampled(Thing("a", does=lambda: clock.sleep(3) or {"a": 1}), clock=clock)
        self.assertEqual((one.wall_ms, one.up_ms), (WALL_MS, 48_000_000))

    def test_each_source_is_read_by_one_thread_of_its_own(self):
        first, second = Thing("a"), Thing("b")
        sampler = self.sampler(first, second)
        for _ in range(5):
            sampler.sample()
        self.assertEqual((first.threads, second.threads), ({"read a"}, {"read b"}))
        self.assertEqual((first.reads, second.reads, sampler.taken), (5, 5, 5))

    def test_off_means_that_nothing_is_read(self):
        on = []
        source = Thing("a")
        sampler = self.sampler(source, is_on=lambda: bool(on))
        sampler.sample(3)
        self.assertEqual((source.reads, self.taken, sampler.missed), (0, [], 3))
        on.append(True)
        sampler.sample()
        self.assertEqual((source.reads, len(self.taken), sampler.taken), (1, 1, 1))

    def test_missed_slots_add_up(self):
        sampler = self.sampler(Thing("a"))
        for missed in (0, 3, 0, 4):
            sampler.sample(missed)
        self.assertEqual((sampler.missed, sampler.taken), (7, 4))


class Failures(SamplerCase):
    def failing(self, error):
        def fail():
            raise error

        return fail

    def test_a_failing_source_gives_null_and_says_why(self):
        with self.assertLogs("pigeonpost.node.sampler", "WARNING"):
            one = self.sampled(Thing("a", "b", does=self.failing(SensorError("no response"))), Thing("c"))
        self.assertEqual(one.values, {"a": None, "b": None, "c": 1.5})
        self.assertEqual(one.errors, {"a": "no response", "b": "no response"})

    def test_one_channel_of_a_source_may_fail_alone(self):
        with self.assertLogs("pigeonpost.node.sampler", "WARNING"):
            one = self.sampled(Thing("a", "b", does=lambda: {"a": 5, "b": SensorError("end of the scale")}))
        self.assertEqual((one.values, one.errors), ({"a": 5, "b": None}, {"b": "end of the scale"}))

    def test_any_exception_is_that_sources_failure(self):
        for error in (
            ValueError("bad"),
            KeyError("x"),
            OSError(5, "EIO"),
            ZeroDivisionError(),
            RecursionError(),
            StopIteration(),
        ):
            with self.subTest(error), self.assertLogs("pigeonpost.node.sampler", "WARNING") as logged:
                one = self.sampled(Thing("a", does=self.failing(error)), Thing("b"))
            self.assertEqual(one.values, {"a": None, "b": 1.5})
            self.assertIn("a fault of the program", one.errors["a"])
            self.assertIn("a fault in the code that reads a", logged.output[0])

    def test_what_is_no_number_that_the_link_takes_is_null(self):
        for reading in (
            float("nan"), float("inf"), -float("inf"), True, "21.5", None, [1], 1j, LARGEST_INTEGER + 1, 10**400,
        ):  # fmt: skip
            with self.subTest(reading), self.assertLogs("pigeonpost.node.sampler", "WARNING"):
                one = self.sampled(Thing("a", does=lambda r=reading: {"a": r}), Thing("b"))
            self.assertEqual(one.values, {"a": None, "b": 1.5})
            self.assertTrue(one.errors["a"].startswith("gave "))
        for reading in (0, -0.0, LARGEST_INTEGER, -LARGEST_INTEGER, 5e-324, 1.7976931348623157e308):
            self.assertEqual(self.sampled(Thing("a", does=lambda r=reading: {"a": r})).values, {"a": reading})

    def test_readings_that_are_none_are_that_sources_failure(self):
        """A source that breaks its contract must not stop the others, nor the clock that asks them."""
        for readings in (None, [], 5, "ab", {}, {"x": 1}, [("a", 1)]):
            with self.subTest(readings), self.assertLogs("pigeonpost.node.sampler", "WARNING"):
                one = self.sampled(Thing("a", does=lambda r=readings: r), Thing("b"))
            self.assertEqual(one.values, {"a": None, "b": 1.5})
            self.assertEqual(list(one.errors), ["a"])

    def test_a_failure_is_logged_when_it_begins_and_when_it_ends(self):
        good = []
        sampler = self.sampler(
            Thing("a", does=lambda: {"a": 1} if good else self.failing(SensorError("no response"))())
        )
        with self.assertLogs("pigeonpost.node.sampler", "INFO") as logged:
            for _ in range(5):
                sampler.sample()
            good.append(True)
            for _ in range(3):
                sampler.sample()
        self.assertEqual(
            logged.output,
            ["WARNING:pigeonpost.node.sampler:a: no response", "INFO:pigeonpost.node.sampler:a: reads again"],
        )
        self.assertEqual(sampler.failed, 5)

    def test_a_slow_source_delays_nobody(self):
        stuck, waits = Stuck(self), []
        sampler = self.sampler(Thing("slow", does=stuck), fast := Thing("fast"), clock=Clock())
        take_answers = sampler._take_answers

        def take(seconds, answers):
            if answers:  # the fast one is there, and the slow one will not come: that is known here
                waits.append(seconds)
                seconds = 0.01
            return take_answers(seconds, answers)

        with self.assertLogs("pigeonpost.node.sampler", "WARNING"), mock.patch.object(sampler, "_take_answers", take):
            for n in range(1, 4):
                began_s = time.monotonic()
                sampler.sample()
                self.assertLess(time.monotonic() - began_s, LIMIT_S)
                self.assertEqual((len(self.taken), fast.reads), (n, n))
        self.assertEqual([one.values for one in self.taken], [{"slow": None, "fast": 1.5}] * 3)
        self.assertEqual(self.taken[0].errors, {"slow": "no answer within 5 s"})
        (wait_s,) = waits  # it is not asked again while it is busy
        self.assertTrue(0 < wait_s <= 5, wait_s)

    def test_while_it_is_busy_it_is_not_asked_again_and_its_late_answer_is_not_taken_for_a_new_one(self):
        stuck = Stuck(self)
        slow = Thing("slow", does=stuck)
        sampler = self.sampler(slow, Thing("fast"), every_s=0.05, clock=Clock())
        with self.assertLogs("pigeonpost.node.sampler", "INFO"):
            for _ in range(3):
                sampler.sample()
            self.assertEqual(slow.reads, 1)
            stuck.let_go.set()
            wait_until(lambda: not sampler._answers.empty())
            slow.does = lambda: {"slow": 7}
            sampler._patience_s = LIMIT_S
            sampler.sample()
        self.assertEqual(self.taken[-1].values, {"slow": 7, "fast": 1.5})
        self.assertEqual(slow.reads, 2)

    def test_it_waits_most_of_the_interval_and_no_more_than_five_seconds(self):
        for every_s, patience_s in ((0.01, 0.008), (1, 0.8), (5, 4), (10, LONGEST_WAIT_S), (3600, 5.0)):
            self.assertAlmostEqual(Sampler([], print, every_s, FakeClock())._patience_s, patience_s)


class Running(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)  # on a machine that is busy with other things any source may be late
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_it_takes_samples_until_it_is_stopped(self):
        taken, source = [], Thing("a")
        sampler = Sampler([source], taken.append, 0.01, Clock())
        sampler.start()
        wait_until(lambda: len(taken) >= 5)
        self.assertIsNone(sampler.stop(LIMIT_S))
        self.assertEqual(source.closed, 1)
        count = len(taken)
        sampler._metronome.join(LIMIT_S)
        self.assertLessEqual(len(taken), count + 1)  # the one in progress
        self.assertEqual({tuple(one.values) for one in taken}, {("a",)})

    def test_a_source_that_does_not_let_go_is_named(self):
        stuck, other = Stuck(self), Thing("other")
        sampler = Sampler([Thing("slow", "also", does=stuck), other], lambda taken: None, 3600, Clock())
        sampler.start()
        self.assertTrue(stuck.begun.wait(LIMIT_S))
        thread, limits_s = sampler._readers[0]._thread, []
        join = thread.join
        with mock.patch.object(thread, "join", lambda limit_s: (limits_s.append(limit_s), join(0.01))):
            self.assertEqual(sampler.stop(3 * LIMIT_S), "still reading: slow")
        self.assertEqual(limits_s, [LIMIT_S])
        self.assertEqual(other.closed, 1)


if __name__ == "__main__":
    unittest.main()
