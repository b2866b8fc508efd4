"""Samples on time: slots that do not drift, sources that do not wait for each other, failures that are shown."""

import logging
import threading
import time
import unittest
from itertools import pairwise
from types import MappingProxyType
from unittest import mock

from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.core.errors import SensorError
from pigeonpost.node.sampler import LONGEST_WAIT_S, Metronome, Sampler, _Reader
from pigeonpost.sensors.contract import Channel, DerivedSource, LatestReadings, SensorSource
from protocol import LARGEST_INTEGER
from tests.support import LIMIT_S, WALL_MS, Leftovers, rounds, wait_until


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


class LateClock(FakeClock):
    """A clock whose wait for one slot takes `late_s` too long."""

    def __init__(self, slot, late_s):
        super().__init__()
        self.waits_left = slot
        self.late_s = late_s

    def wait(self, event, seconds):
        late_s = self.late_s if self.waits_left == 0 else 0.0
        self.waits_left -= 1
        return super().wait(event, max(0.0, seconds) + late_s)


class Slots(unittest.TestCase):
    """The metronome on a clock that moves when it is waited on, or when the function takes its time."""

    def run_slots(self, interval, count, takes=lambda slot: 0.0, clock=None):
        clock = clock or FakeClock()
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

    def test_a_wait_that_ends_late_never_crowds_two_samples(self):
        """A machine that was suspended, or busy: the wait for a slot ends after that slot, and maybe after others."""
        for late, missed_then in (
            (0.3, 0), (0.9, 0), (0.9997, 0), (0.9999, 1), (1.0, 1), (1.4, 1), (1.9997, 1), (1.9999, 2), (7.7, 7),
        ):  # fmt: skip
            times, missed = self.run_slots(10, 6, clock=LateClock(slot=3, late_s=10 * late))
            self.assertTrue(all(b - a >= 0.002 for a, b in pairwise(times)), (late, times))
            self.assertEqual(missed, [0, 0, 0, missed_then, 0, 0], late)
            self.assertEqual(len(times) + sum(missed), round(times[-1] / 10) + 1)

    def test_another_goes_on_with_its_slots(self):
        clock, times = FakeClock(), []
        first_s = clock.monotonic()
        clock.sleep(72)

        def function(missed):
            times.append((missed, round(clock.monotonic() - first_s, 6)))
            if len(times) == 3:
                metronome.cancel()

        metronome = Metronome(10, function, clock, (first_s, 3))
        metronome.run()
        self.assertEqual(times, [(3, 72), (0, 80), (0, 90)])
        self.assertEqual(metronome.position, (first_s, 10))

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
            # And the fast one too may have been late for the last sample.
            wait_until(lambda: sum(one.busy for one in sampler._readers) == len(sampler._answers) > 0)
            slow.does = lambda: {"slow": 7}
            sampler._patience_s = LIMIT_S
            sampler.sample()
        self.assertEqual(self.taken[-1].values, {"slow": 7, "fast": 1.5})
        self.assertEqual(slow.reads, 2)

    def test_it_waits_most_of_the_interval_and_no_more_than_five_seconds(self):
        for every_s, patience_s in ((0.01, 0.008), (1, 0.8), (5, 4), (10, LONGEST_WAIT_S), (3600, 5.0)):
            self.assertAlmostEqual(Sampler([], print, every_s, FakeClock())._patience_s, patience_s)


class SingleSource(SamplerCase):
    """One source: it is read by the thread that keeps the time, until it is late for the first time."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.enterContext(mock.patch.object(Metronome, "start"))  # `sample` is called by the test

    def single(self, does=None, every_s=0.1, **settings):
        self.taken, self.clock = [], FakeClock()
        self.source = Thing("a", does=does)
        sampler = Sampler([self.source], self.taken.append, every_s, self.clock, is_checked=True, **settings)
        self.addCleanup(sampler.stop, 0.01)
        return sampler

    def stuck_in(self, sampler):
        """A thread whose `sample` does not end, as the metronome's would be."""
        thread = threading.Thread(target=sampler.sample, name="stuck", daemon=True)
        thread.start()
        sampler._metronome.join = thread.join
        self.assertTrue(self.stuck.begun.wait(LIMIT_S))
        return thread

    def dates(self):
        return [one.up_ms - 48_000_000 for one in self.taken]

    def test_it_has_no_thread(self):
        sampler = self.single()
        sampler.start()
        left = Leftovers()
        for _ in range(3):
            sampler.sample()
            sampler.check()
        self.assertEqual(left.threads, set())
        self.assertEqual(self.source.threads, {threading.current_thread().name})
        self.assertEqual([one.values for one in self.taken], [{"a": 1.5}] * 3)
        self.assertIsNone(sampler.stop(LIMIT_S))
        self.assertEqual(self.source.closed, 1)

    def test_nobody_checks_so_it_has_one(self):
        sampler = Sampler([Thing("a")], print, 0.1, FakeClock())
        self.assertIsNone(sampler._single)

    def test_several_have_one_each(self):
        self.assertIsNone(Sampler([Thing("a"), Thing("b")], print, 0.1, FakeClock(), is_checked=True)._single)

    def test_a_late_answer_gives_null_and_no_slot_is_lost(self):
        """As with a thread of its own: null for its slot and those that passed meanwhile, then it has a thread."""
        sampler = self.single(lambda: self.clock.sleep(0.33) or {"a": 1})
        sampler.sample()
        self.assertEqual(self.taken[0].errors, {"a": "no answer within 0.08 s"})
        self.source.does = None
        self.source.does = lambda: {"a": 2}
        self.clock.sleep(0.07)
        sampler._patience_s = LIMIT_S
        sampler.sample(3)
        self.assertEqual(self.dates(), [0, 100, 200, 300, 400])
        self.assertEqual([one.values["a"] for one in self.taken], [None] * 4 + [2])
        self.assertEqual((sampler.missed, sampler.taken), (0, 5))
        self.assertEqual(self.source.threads, {threading.current_thread().name, "read a"})
        sampler.sample(2)  # later ones are missed, as ever
        self.assertEqual((sampler.missed, sampler.taken), (2, 6))

    def test_an_answer_just_in_time_counts(self):
        sampler = self.single(lambda: self.clock.sleep(0.07) or {"a": 1})
        for _ in range(3):
            sampler.sample()
        self.assertEqual([one.values["a"] for one in self.taken], [1, 1, 1])
        self.assertIsNotNone(sampler._single)

    def test_a_stuck_one_is_found_out_and_no_slot_is_lost(self):
        self.stuck = Stuck(self)
        sampler = self.single(self.stuck)
        late = sampler._metronome
        thread = self.stuck_in(sampler)
        self.clock.sleep(0.05)
        sampler.check()
        self.assertIs(sampler._metronome, late)  # it may still answer in time
        self.clock.sleep(0.90)
        sampler.check()
        self.assertIsNot(sampler._metronome, late)
        self.assertTrue(late.finished.is_set())
        self.assertEqual(sampler._metronome.position, late.position)
        self.assertEqual(self.dates(), [0])
        self.clock.sleep(0.05)
        sampler.sample(9)  # as the new metronome does
        self.assertEqual(self.dates(), [100 * n for n in range(11)])
        self.assertEqual({one.values["a"] for one in self.taken}, {None})
        self.assertEqual({one.errors["a"] for one in self.taken}, {"no answer within 0.08 s"})
        self.assertEqual((sampler.missed, sampler.taken, self.source.reads), (0, 11, 1))
        self.stuck.let_go.set()
        thread.join(LIMIT_S)
        wait_until(lambda: sampler._answers)
        self.assertEqual(len(self.taken), 11)  # the late answer is in no sample
        self.source.does = lambda: {"a": 7}
        sampler._patience_s = LIMIT_S
        sampler.sample()
        self.assertEqual(self.taken[-1].values, {"a": 7})
        self.assertEqual(self.source.threads, {"stuck", "read a"})

    def test_a_machine_that_stood_still_has_missed_its_slots(self):
        """Null is for what a source did not answer; where nobody could ask, slots are missed."""
        sampler = self.single(lambda: self.clock.sleep(3600) or {"a": 1})
        sampler.sample()
        sampler.sample(35_999)
        self.assertEqual(sampler.missed + sampler.taken, 36_001)
        self.assertLess(sampler.taken, 20)

    def test_nothing_is_made_up_while_it_is_off(self):
        on = [True]
        sampler = self.single(lambda: self.clock.sleep(0.5) or {"a": 1}, is_on=lambda: bool(on))
        sampler.sample()
        on.clear()
        sampler.sample(4)
        self.assertEqual((len(self.taken), sampler.missed), (1, 4))

    def test_both_may_find_out_at_once_and_one_of_them_delivers(self):
        """The answer comes while `check` is at work: every slot is delivered once, by whoever was first."""
        for _ in range(rounds("PIGEONPOST_TEST_TAKEOVERS", 30, 300)):
            self.stuck = Stuck(self)
            sampler = self.single(self.stuck)
            thread = self.stuck_in(sampler)
            self.clock.sleep(0.5)
            self.stuck.let_go.set()
            sampler.check()
            thread.join(LIMIT_S)
            self.assertFalse(thread.is_alive())
            self.assertEqual([one.values for one in self.taken], [{"a": None}])
            self.assertIsNone(sampler._single)
            sampler.stop(LIMIT_S)
            self.assertEqual(self.source.closed, 1)

    def test_derived_channels_use_it(self):
        class Double(DerivedSource):
            channels = (Channel("b", ""),)
            uses = MappingProxyType({"b": {"a": "here"}})

            def derive(self, name, latest, now_s):
                return LatestReadings(2 * latest["a"].value, latest["a"].at_s)

        self.taken = []
        sampler = Sampler([Thing("a"), Double()], self.taken.append, 0.1, FakeClock(), is_checked=True)
        sampler.sample()
        self.assertEqual(self.taken[0].values, {"a": 1.5, "b": 3.0})


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

    def test_a_single_source_that_is_stuck_and_comes_back(self):
        stuck, taken, slots = Stuck(self), [], []

        def deliver(one):
            taken.append(one)
            slots.append((sampler.taken + sampler.missed, sampler._metronome.position[1] + 1))

        source = Thing("slow")
        sampler = Sampler([source], deliver, 0.02, Clock(), is_checked=True)
        sampler.start()
        wait_until(lambda: len(taken) >= 3)
        source.does = stuck
        self.assertTrue(stuck.begun.wait(LIMIT_S))
        wait_until(lambda: sampler.check() or (taken[-1].values["slow"] is None and len(taken) >= 20))
        source.does = lambda: {"slow": 5}
        stuck.let_go.set()
        wait_until(lambda: taken[-1].values["slow"] == 5)
        self.assertIsNone(sampler.stop(LIMIT_S))
        self.assertEqual(source.closed, 1)
        self.assertNotIn(99, [one.values["slow"] for one in taken])
        # A busy machine delays any of them; that no slot is lost or taken twice is seen in their number.
        self.assertEqual([one.up_ms for one in taken], sorted({one.up_ms for one in taken}))
        for one, (done, passed) in zip(taken, slots, strict=True):
            if one.values["slow"] == 5:
                self.assertEqual(done, passed)

    def test_a_single_source_that_does_not_let_go_is_named(self):
        for checked in (False, True):
            stuck = Stuck(self)
            source = Thing("slow", does=stuck)
            sampler = Sampler([source], lambda taken: None, 0.02, Clock(), is_checked=True)
            sampler.start()
            self.assertTrue(stuck.begun.wait(LIMIT_S))
            if checked:
                wait_until(lambda sampler=sampler: sampler.check() or sampler._single is None)
            self.assertEqual(sampler.stop(0.05), "still reading: slow")
            self.assertEqual(source.closed, 0)  # not while it is read
            stuck.let_go.set()
            wait_until(lambda source=source: source.closed == 1)
            wait_until(lambda: not any(thread.name in ("sampler", "read slow") for thread in threading.enumerate()))

    def test_a_source_that_does_not_let_go_is_named(self):
        stuck, other = Stuck(self), Thing("other")
        self.enterContext(mock.patch("pigeonpost.node.sampler.LONGEST_WAIT_S", 0.05))
        sampler = Sampler([Thing("slow", "also", does=stuck), other], lambda taken: None, 3600, Clock())
        sampler.start()
        self.assertTrue(stuck.begun.wait(LIMIT_S))
        thread, limits_s = sampler._readers[0]._thread, []
        join = thread.join
        with mock.patch.object(thread, "join", lambda limit_s: (limits_s.append(limit_s), join(0.01))):
            self.assertEqual(sampler.stop(3 * LIMIT_S), "still reading: slow")
        self.assertEqual(limits_s, [LIMIT_S])
        self.assertEqual(other.closed, 1)


class Ending(unittest.TestCase):
    """A source with its own thread, when the sampler stops."""

    def test_what_was_asked_before_the_end_is_answered(self):
        source, answers = Thing("a"), []
        reader = _Reader(source, answers.append, Clock())
        reader.ask(7)
        reader._is_ending = True  # as `stop` does, before the thread has gone on
        reader._asked.set()
        reader.start()
        self.assertTrue(reader.stop(LIMIT_S))
        self.assertEqual([answer[1] for answer in answers], [7])

    def test_the_sample_in_progress_gets_its_answers(self):
        reads, goes, samples = threading.Event(), threading.Event(), []
        slow = Thing("b", does=lambda: (reads.set(), goes.wait(LIMIT_S), {"b": 2})[-1])
        sampler = Sampler([Thing("a"), slow], samples.append, 10, Clock())
        sampler.start()
        self.assertTrue(reads.wait(LIMIT_S))
        stopping = threading.Thread(target=sampler.stop, args=(LIMIT_S,))
        stopping.start()
        wait_until(lambda: sampler._is_stopping)
        goes.set()
        stopping.join(LIMIT_S)
        self.assertEqual([dict(sample.values) for sample in samples], [{"a": 1.5, "b": 2}])
        self.assertEqual(slow.closed, 1)


if __name__ == "__main__":
    unittest.main()
