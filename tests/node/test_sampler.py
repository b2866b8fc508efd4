"""Tests of the sampler: slots do not drift, sources are independent, and failures are reported."""

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
from pigeonpost.sensors.contract import Channel, DerivedSource, LatestReading, SensorSource
from protocol import LARGEST_INTEGER
from tests.support import LIMIT_S, WALL_MS, Leftovers, rounds, wait_until


class FakeSource(SensorSource):
    """Source whose readings are the result of `does`, which can also raise an exception."""

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


class StuckReading:
    """Reading that does not end until the test releases it."""

    def __init__(self, test):
        self.begun = threading.Event()
        self.let_go = threading.Event()
        test.addCleanup(self.let_go.set)

    def __call__(self):
        self.begun.set()
        self.let_go.wait(LIMIT_S)
        return {"slow": 99, "also": 98}


class LateClock(FakeClock):
    """Clock whose wait for one slot takes `late_s` seconds too long."""

    def __init__(self, slot, late_s):
        super().__init__()
        self.waits_left = slot
        self.late_s = late_s

    def wait(self, event, seconds):
        late_s = self.late_s if self.waits_left == 0 else 0.0
        self.waits_left -= 1
        return super().wait(event, max(0.0, seconds) + late_s)


class MetronomeSlots(unittest.TestCase):
    """The metronome with a fake clock, which advances during a wait or in the called function."""

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
        metronome.run()  # in this thread, so that every step is deterministic
        return times, missed

    def test_metronome_does_not_drift_in_10000_slots(self):
        for interval in (10.0, 1.0, 0.1, 0.01, 7.3):
            for takes in (0.0, 0.3, 0.9):
                times, missed = self.run_slots(interval, 10_000, lambda slot, t=takes, i=interval: t * i)
                worst = max(abs(at - slot * interval) for slot, at in enumerate(times))
                self.assertLess(worst, 1e-5, (interval, takes))
                self.assertEqual(sum(missed), 0)

    def test_first_slot_is_immediate(self):
        self.assertEqual(self.run_slots(3600, 1)[0], [0.0])

    def test_slightly_late_slot_counts_and_the_next_is_on_time(self):
        times, missed = self.run_slots(10, 5, lambda slot: 13 if slot == 1 else 0)
        self.assertEqual([round(at, 6) for at in times], [0, 10, 23, 30, 40])
        self.assertEqual(missed, [0] * 5)

    def test_missed_slots_are_counted_and_not_made_up_for(self):
        for stands_still_s, passed in ((17, 1), (25, 1), (26, 2), (100, 9), (3600, 359)):
            times, missed = self.run_slots(10, 6, lambda slot, s=stands_still_s: s if slot == 2 else 0)
            self.assertEqual(missed, [0, 0, 0, passed, 0, 0])
            slots = [round(at / 10 - 0.01) for at in times]
            self.assertEqual(slots[3], 2 + passed + 1)
            # The calls follow each other again, and no two of them are in one interval.
            self.assertTrue(all(b - a >= 5 - 1e-6 for a, b in pairwise(times)), times)
            self.assertAlmostEqual(times[5] - times[4], 10)
            self.assertAlmostEqual(times[5] % 10, 0)

    def test_function_slower_than_the_interval_is_not_called_in_bursts(self):
        times, missed = self.run_slots(1, 200, lambda slot: 1.7)
        self.assertTrue(all(b - a >= 1.6999 for a, b in pairwise(times)))
        self.assertEqual(len(times) + sum(missed), round(times[-1]) + 1)

    def test_late_wakeup_never_takes_two_samples_close_together(self):
        """On a machine that was suspended or is busy, the wait for a slot ends after that slot or after later slots."""
        for late, missed_then in (
            (0.3, 0), (0.9, 0), (0.9997, 0), (0.9999, 1), (1.0, 1), (1.4, 1), (1.9997, 1), (1.9999, 2), (7.7, 7),
        ):  # fmt: skip
            times, missed = self.run_slots(10, 6, clock=LateClock(slot=3, late_s=10 * late))
            self.assertTrue(all(b - a >= 0.002 for a, b in pairwise(times)), (late, times))
            self.assertEqual(missed, [0, 0, 0, missed_then, 0, 0], late)
            self.assertEqual(len(times) + sum(missed), round(times[-1] / 10) + 1)

    def test_replacement_metronome_continues_the_slots(self):
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

    def test_change_of_the_date_does_not_move_slots(self):
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

    def test_metronome_is_a_timer_with_its_own_thread(self):
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
        """Return a sampler with running readers but without its metronome; the test calls `sample`."""
        self.taken = []
        self.clock = clock or FakeClock()
        sampler = Sampler(sources, self.taken.append, every_s, self.clock, is_on)
        for reader in sampler._readers:
            reader.start()
        self.addCleanup(sampler.stop, 0.01)
        return sampler

    def sampled(self, *sources, **settings):
        """Take one sample and return it."""
        self.sampler(*sources, **settings).sample()
        (one,) = self.taken
        return one


class Samples(SamplerCase):
    def test_sample_contains_all_sources(self):
        clock = FakeClock(known=False)
        one = self.sampled(FakeSource("a", "b", does=lambda: {"a": 1, "b": -2.5}), FakeSource("c"), clock=clock)
        self.assertEqual(one, (WALL_MS, 48_000_000, False, {"a": 1, "b": -2.5, "c": 1.5}, {}))
        self.assertEqual(list(one.values), ["a", "b", "c"])

    def test_sample_has_the_time_of_its_request(self):
        clock = FakeClock()
        one = self.sampled(FakeSource("a", does=lambda: clock.sleep(3) or {"a": 1}), clock=clock)
        self.assertEqual((one.wall_ms, one.up_ms), (WALL_MS, 48_000_000))

    def test_each_source_is_read_by_its_own_thread(self):
        first, second = FakeSource("a"), FakeSource("b")
        sampler = self.sampler(first, second)
        for _ in range(5):
            sampler.sample()
        self.assertEqual((first.threads, second.threads), ({"read a"}, {"read b"}))
        self.assertEqual((first.reads, second.reads, sampler.taken), (5, 5, 5))

    def test_sources_are_not_read_while_sampling_is_off(self):
        on = []
        source = FakeSource("a")
        sampler = self.sampler(source, is_on=lambda: bool(on))
        sampler.sample(3)
        self.assertEqual((source.reads, self.taken, sampler.missed), (0, [], 3))
        on.append(True)
        sampler.sample()
        self.assertEqual((source.reads, len(self.taken), sampler.taken), (1, 1, 1))

    def test_missed_slots_are_added_up(self):
        sampler = self.sampler(FakeSource("a"))
        for missed in (0, 3, 0, 4):
            sampler.sample(missed)
        self.assertEqual((sampler.missed, sampler.taken), (7, 4))


class Failures(SamplerCase):
    def failing(self, error):
        def fail():
            raise error

        return fail

    def test_failing_source_gives_null_with_the_reason(self):
        with self.assertLogs("pigeonpost.node.sampler", "WARNING"):
            one = self.sampled(FakeSource("a", "b", does=self.failing(SensorError("no response"))), FakeSource("c"))
        self.assertEqual(one.values, {"a": None, "b": None, "c": 1.5})
        self.assertEqual(one.errors, {"a": "no response", "b": "no response"})

    def test_single_channel_of_a_source_can_fail(self):
        with self.assertLogs("pigeonpost.node.sampler", "WARNING"):
            one = self.sampled(FakeSource("a", "b", does=lambda: {"a": 5, "b": SensorError("end of the scale")}))
        self.assertEqual((one.values, one.errors), ({"a": 5, "b": None}, {"b": "end of the scale"}))

    def test_any_exception_counts_as_failure_of_the_source(self):
        for error in (
            ValueError("bad"),
            KeyError("x"),
            OSError(5, "EIO"),
            ZeroDivisionError(),
            RecursionError(),
            StopIteration(),
        ):
            with self.subTest(error), self.assertLogs("pigeonpost.node.sampler", "WARNING") as logged:
                one = self.sampled(FakeSource("a", does=self.failing(error)), FakeSource("b"))
            self.assertEqual(one.values, {"a": None, "b": 1.5})
            self.assertIn("internal error", one.errors["a"])
            self.assertIn("internal error while reading a", logged.output[0])

    def test_invalid_value_becomes_null_with_an_error(self):
        for reading in (
            float("nan"), float("inf"), -float("inf"), True, "21.5", None, [1], 1j, LARGEST_INTEGER + 1, 10**400,
        ):  # fmt: skip
            with self.subTest(reading), self.assertLogs("pigeonpost.node.sampler", "WARNING"):
                one = self.sampled(FakeSource("a", does=lambda r=reading: {"a": r}), FakeSource("b"))
            self.assertEqual(one.values, {"a": None, "b": 1.5})
            self.assertTrue(one.errors["a"].startswith("invalid value: "))
        for reading in (0, -0.0, LARGEST_INTEGER, -LARGEST_INTEGER, 5e-324, 1.7976931348623157e308):
            self.assertEqual(self.sampled(FakeSource("a", does=lambda r=reading: {"a": r})).values, {"a": reading})

    def test_impossible_value_becomes_null_with_an_error(self):
        source = FakeSource("cold", "rh", "fog", "level")
        source.channels = [Channel("cold", "°C"), Channel("rh", "%"), Channel("fog", "%RH", possible=(-5, 105)),
                           Channel("level", "%")]  # fmt: skip
        source.does = lambda: {"cold": -300, "rh": 3304.3, "fog": 102, "level": 120}
        taken = []
        sampler = Sampler([source], taken.append, 0.1, FakeClock(), is_checked=True)
        with self.assertLogs("pigeonpost.node.sampler", "WARNING"):
            sampler.sample()
        self.assertEqual(taken[0].values, {"cold": None, "rh": None, "fog": 102, "level": 120})
        self.assertEqual(taken[0].errors, {
            "cold": "impossible: -300 °C (absolute zero: at least -273.15 °C)",
            "rh": "impossible: 3304.3 % (relative humidity: 0 to 100 %)",
        })  # fmt: skip
        self.assertEqual(sampler.failed, 2)
        self.assertAlmostEqual(source.patience_s, 0.08)

    def test_derived_channel_neither_uses_nor_has_an_impossible_value(self):
        class Offset(DerivedSource):
            channels = (Channel("b", "°C"), Channel("c", ""))
            uses = MappingProxyType({"b": {"a": "here"}, "c": {"a": "here"}})

            def derive(self, name, latest, now_s):
                if "a" not in latest:
                    raise SensorError("a has no value")
                return LatestReading(latest["a"].value - 200, latest["a"].at_s)

        source, taken = FakeSource("a"), []
        source.channels = [Channel("a", "°C")]
        sampler = Sampler([source, Offset()], taken.append, 0.1, FakeClock(), is_checked=True)
        for value in (-300, -100, 20):
            source.does = lambda value=value: {"a": value}
            with self.assertLogs("pigeonpost.node.sampler", "INFO"):
                sampler.sample()
        self.assertEqual([list(one.values.values()) for one in taken],
                         [[None, None, None], [-100, None, -300], [20, -180, -180]])  # fmt: skip
        self.assertEqual(taken[0].errors["b"], "a has no value")

    def test_invalid_result_of_read_counts_as_failure_of_the_source(self):
        """A source that violates its contract must not stop the other sources or the metronome."""
        for readings in (None, [], 5, "ab", {}, {"x": 1}, [("a", 1)]):
            with self.subTest(readings), self.assertLogs("pigeonpost.node.sampler", "WARNING"):
                one = self.sampled(FakeSource("a", does=lambda r=readings: r), FakeSource("b"))
            self.assertEqual(one.values, {"a": None, "b": 1.5})
            self.assertEqual(list(one.errors), ["a"])

    def test_failure_is_logged_when_it_begins_and_when_it_ends(self):
        good = []
        sampler = self.sampler(
            FakeSource("a", does=lambda: {"a": 1} if good else self.failing(SensorError("no response"))())
        )
        with self.assertLogs("pigeonpost.node.sampler", "INFO") as logged:
            for _ in range(5):
                sampler.sample()
            good.append(True)
            for _ in range(3):
                sampler.sample()
        self.assertEqual(
            logged.output,
            ["WARNING:pigeonpost.node.sampler:a: no response", "INFO:pigeonpost.node.sampler:a: can be read again"],
        )
        self.assertEqual(sampler.failed, 5)

    def test_slow_source_does_not_delay_the_others(self):
        stuck, waits = StuckReading(self), []
        sampler = self.sampler(FakeSource("slow", does=stuck), fast := FakeSource("fast"), clock=Clock())
        take_answers = sampler._take_answers

        def take(seconds, answers):
            if answers:  # the fast source has answered, and the slow one will not
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
        (wait_s,) = waits  # it is not read again while it is busy
        self.assertTrue(0 < wait_s <= 5, wait_s)

    def test_busy_source_is_not_read_again_and_its_late_answer_is_not_used(self):
        stuck = StuckReading(self)
        slow = FakeSource("slow", does=stuck)
        sampler = self.sampler(slow, FakeSource("fast"), every_s=0.05, clock=Clock())
        with self.assertLogs("pigeonpost.node.sampler", "INFO"):
            for _ in range(3):
                sampler.sample()
            self.assertEqual(slow.reads, 1)
            stuck.let_go.set()
            # The fast source may also have been late for the last sample.
            wait_until(lambda: sum(one.busy for one in sampler._readers) == len(sampler._answers) > 0)
            slow.does = lambda: {"slow": 7}
            sampler._patience_s = LIMIT_S
            sampler.sample()
        self.assertEqual(self.taken[-1].values, {"slow": 7, "fast": 1.5})
        self.assertEqual(slow.reads, 2)

    def test_sampler_waits_at_most_80_percent_of_the_interval_and_5_s(self):
        for every_s, patience_s in ((0.01, 0.008), (1, 0.8), (5, 4), (10, LONGEST_WAIT_S), (3600, 5.0)):
            self.assertAlmostEqual(Sampler([], print, every_s, FakeClock())._patience_s, patience_s)


class SingleSource(SamplerCase):
    """A single source is read by the metronome until it is late for the first time."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.enterContext(mock.patch.object(Metronome, "start"))  # `sample` is called by the test

    def single(self, does=None, every_s=0.1, **settings):
        self.taken, self.clock = [], FakeClock()
        self.source = FakeSource("a", does=does)
        sampler = Sampler([self.source], self.taken.append, every_s, self.clock, is_checked=True, **settings)
        self.addCleanup(sampler.stop, 0.01)
        return sampler

    def stuck_in(self, sampler):
        """Return a thread whose `sample` does not end, like that of the metronome."""
        thread = threading.Thread(target=sampler.sample, name="stuck", daemon=True)
        thread.start()
        sampler._metronome.join = thread.join
        self.assertTrue(self.stuck.begun.wait(LIMIT_S))
        return thread

    def dates(self):
        return [one.up_ms - 48_000_000 for one in self.taken]

    def test_single_source_has_no_thread(self):
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

    def test_single_source_has_a_thread_if_nothing_calls_check(self):
        sampler = Sampler([FakeSource("a")], print, 0.1, FakeClock())
        self.assertIsNone(sampler._single)

    def test_several_sources_have_a_thread_each(self):
        self.assertIsNone(Sampler([FakeSource("a"), FakeSource("b")], print, 0.1, FakeClock(), is_checked=True)._single)

    def test_late_answer_gives_null_and_loses_no_slot(self):
        """Its slot and the slots that passed in the meantime get null. Then the source has its own thread."""
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
        sampler.sample(2)  # later slots are missed
        self.assertEqual((sampler.missed, sampler.taken), (2, 6))

    def test_answer_at_the_time_limit_counts(self):
        sampler = self.single(lambda: self.clock.sleep(0.07) or {"a": 1})
        for _ in range(3):
            sampler.sample()
        self.assertEqual([one.values["a"] for one in self.taken], [1, 1, 1])
        self.assertIsNotNone(sampler._single)

    def test_stuck_source_is_detected_and_no_slot_is_lost(self):
        self.stuck = StuckReading(self)
        sampler = self.single(self.stuck)
        late = sampler._metronome
        thread = self.stuck_in(sampler)
        self.clock.sleep(0.05)
        sampler.check()
        self.assertIs(sampler._metronome, late)  # it can still answer in time
        self.clock.sleep(0.90)
        sampler.check()
        self.assertIsNot(sampler._metronome, late)
        self.assertTrue(late.finished.is_set())
        self.assertEqual(sampler._metronome.position, late.position)
        self.assertEqual(self.dates(), [0])
        self.clock.sleep(0.05)
        sampler.sample(9)  # as the new metronome would do
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

    def test_suspended_machine_misses_its_slots(self):
        """A slot is null if the source did not answer, and missed if the machine could not read the source."""
        sampler = self.single(lambda: self.clock.sleep(3600) or {"a": 1})
        sampler.sample()
        sampler.sample(35_999)
        self.assertEqual(sampler.missed + sampler.taken, 36_001)
        self.assertLess(sampler.taken, 20)

    def test_slots_are_not_made_up_for_while_sampling_is_off(self):
        on = [True]
        sampler = self.single(lambda: self.clock.sleep(0.5) or {"a": 1}, is_on=lambda: bool(on))
        sampler.sample()
        on.clear()
        sampler.sample(4)
        self.assertEqual((len(self.taken), sampler.missed), (1, 4))

    def test_sample_is_delivered_once_if_the_answer_arrives_during_check(self):
        """The answer arrives while `check` is running: every slot is delivered once, by the first of the two."""
        for _ in range(rounds("PIGEONPOST_TEST_TAKEOVERS", 30, 300)):
            self.stuck = StuckReading(self)
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

    def test_derived_channels_use_the_single_source(self):
        class Double(DerivedSource):
            channels = (Channel("b", ""),)
            uses = MappingProxyType({"b": {"a": "here"}})

            def derive(self, name, latest, now_s):
                return LatestReading(2 * latest["a"].value, latest["a"].at_s)

        self.taken = []
        sampler = Sampler([FakeSource("a"), Double()], self.taken.append, 0.1, FakeClock(), is_checked=True)
        sampler.sample()
        self.assertEqual(self.taken[0].values, {"a": 1.5, "b": 3.0})


class Running(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)  # on a busy machine any source can be late
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_sampler_takes_samples_until_it_is_stopped(self):
        taken, source = [], FakeSource("a")
        sampler = Sampler([source], taken.append, 0.01, Clock())
        sampler.start()
        wait_until(lambda: len(taken) >= 5)
        self.assertIsNone(sampler.stop(LIMIT_S))
        self.assertEqual(source.closed, 1)
        count = len(taken)
        sampler._metronome.join(LIMIT_S)
        self.assertLessEqual(len(taken), count + 1)  # the sample in progress
        self.assertEqual({tuple(one.values) for one in taken}, {("a",)})

    def test_single_source_that_was_stuck_is_read_again(self):
        stuck, taken, slots = StuckReading(self), [], []

        def deliver(one):
            taken.append(one)
            slots.append((sampler.taken + sampler.missed, sampler._metronome.position[1] + 1))

        source = FakeSource("slow")
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
        # A busy machine can delay any sample. Their number shows that no slot is lost or taken twice.
        self.assertEqual([one.up_ms for one in taken], sorted({one.up_ms for one in taken}))
        for one, (done, passed) in zip(taken, slots, strict=True):
            if one.values["slow"] == 5:
                self.assertEqual(done, passed)

    def test_single_source_that_does_not_end_is_reported_by_stop(self):
        for checked in (False, True):
            stuck = StuckReading(self)
            source = FakeSource("slow", does=stuck)
            sampler = Sampler([source], lambda taken: None, 0.02, Clock(), is_checked=True)
            sampler.start()
            self.assertTrue(stuck.begun.wait(LIMIT_S))
            if checked:
                wait_until(lambda sampler=sampler: sampler.check() or sampler._single is None)
            self.assertEqual(sampler.stop(0.05), "still reading: slow")
            self.assertEqual(source.closed, 0)  # not during the reading
            stuck.let_go.set()
            wait_until(lambda source=source: source.closed == 1)
            wait_until(lambda: not any(thread.name in ("sampler", "read slow") for thread in threading.enumerate()))

    def test_source_that_does_not_end_is_reported_by_stop(self):
        stuck, other = StuckReading(self), FakeSource("other")
        self.enterContext(mock.patch("pigeonpost.node.sampler.LONGEST_WAIT_S", 0.05))
        sampler = Sampler([FakeSource("slow", "also", does=stuck), other], lambda taken: None, 3600, Clock())
        sampler.start()
        self.assertTrue(stuck.begun.wait(LIMIT_S))
        thread, limits_s = sampler._readers[0]._thread, []
        join = thread.join
        with mock.patch.object(thread, "join", lambda limit_s: (limits_s.append(limit_s), join(0.01))):
            self.assertEqual(sampler.stop(3 * LIMIT_S), "still reading: slow")
        self.assertEqual(limits_s, [LIMIT_S])
        self.assertEqual(other.closed, 1)


class Ending(unittest.TestCase):
    """Source with its own thread when the sampler stops."""

    def test_reading_requested_before_the_end_is_answered(self):
        source, answers = FakeSource("a"), []
        reader = _Reader(source, answers.append, Clock())
        reader.request(7)
        reader._is_ending = True  # as in `stop`, before the thread has continued
        reader._requested.set()
        reader.start()
        self.assertTrue(reader.stop(LIMIT_S))
        self.assertEqual([answer[1] for answer in answers], [7])

    def test_sample_in_progress_gets_its_answers_at_the_end(self):
        reads, goes, samples = threading.Event(), threading.Event(), []
        slow = FakeSource("b", does=lambda: (reads.set(), goes.wait(LIMIT_S), {"b": 2})[-1])
        sampler = Sampler([FakeSource("a"), slow], samples.append, 10, Clock())
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
