"""Newest values of nodes by time, with any errors of the clocks of nodes and server, and their arrival."""

import unittest

from pigeonpost.core.clock import FakeClock
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.latest_samples import LAG_S, LatestSamples
from pigeonpost.storage.models import NOTHING, EpochCommit
from protocol import IMPORTED, Sample

STORE, OUTBOX, OTHER = "5" * 16, "a" * 16, "b" * 16
HOUR, DAY, YEAR = 3600.0, 86_400.0, 366 * 86_400.0


class Case(unittest.TestCase):
    def setUp(self):
        self.clock = FakeClock()
        self.newest = LatestSamples(STORE)
        self.value = 0

    def commit(self, outbox, epoch, ages_s, values=None, node="n", clock=""):
        """Commit samples that are `ages_s` old by the clock of the sender, each with the next value of `t`."""
        commit = EpochCommit(node, outbox, epoch, NOTHING)
        samples = []
        for age_s in ages_s:
            self.value += 1
            time_ms = self.clock.wall_ms() - int(age_s * 1000)
            samples.append(Sample(self.value, time_ms, self.clock.up_ms(), values or {"t": self.value}, {}, clock))
        commit.items.append(SampleBatch.of(samples))
        commit.units = {"t": "°C"}
        self.newest.record([commit], self.clock.wall_ms(), self.clock.monotonic())

    def node(self, *ages_s, outbox=OUTBOX, epoch="e1", **more):
        self.commit(outbox, epoch, ages_s, **more)

    def client(self, *ages_s, epoch="c1", **more):
        self.commit(STORE, epoch, ages_s, **more)

    def now(self, node="n"):
        return self.newest.samples[node].sample.values["t"]

    def taken_s(self, offset_s=None, node="n"):
        """Return how long ago the newest sample was taken."""
        offset_ms = None if offset_s is None else int(offset_s * 1000)
        now_ms = self.clock.wall_ms()
        return (now_ms - self.newest.samples[node].taken_ms(offset_ms, now_ms, self.clock.monotonic())) / 1000

    def assert_now(self, value):
        self.assertEqual(self.now(), value)


class NodeTest(Case):
    def test_sample_of_an_outbox_replaces_the_previous_one_with_any_date(self):
        for before_s, after_s in ((0, HOUR), (-YEAR, 0), (0, YEAR), (-HOUR, -60), (-60, -HOUR), (50 * YEAR, 0)):
            with self.subTest(before_s=before_s, after_s=after_s):
                self.node(before_s)
                self.clock.sleep(10)
                self.node(after_s)
                self.assert_now(self.value)

    def test_last_sample_of_a_backlog_is_current(self):
        self.node(0)
        self.clock.sleep(3 * HOUR)
        for age_s in (3 * HOUR, 2 * HOUR, HOUR, 0):
            self.node(age_s + 1, age_s)
            self.assert_now(self.value)
            self.assertAlmostEqual(self.taken_s(0), age_s, delta=0.01)
            self.assertEqual(self.newest.received_s["n"], self.clock.monotonic())

    def test_sensors_of_the_former_configuration_are_removed(self):
        self.node(0, values={"t": 1, "light": 5})
        self.node(0, values={"t": 2}, epoch="e2")
        self.assertEqual(self.newest.samples["n"].sample.values, {"t": 2})

    def test_imported_samples_are_neither_current_nor_a_sign_of_life(self):
        self.commit(IMPORTED, "i1", [0, 1])
        self.assertEqual((self.newest.samples, self.newest.received_s), ({}, {}))

    def test_samples_of_a_renamed_node_move(self):
        self.node(0)
        self.newest.rename("n", "m")
        self.assertEqual((list(self.newest.samples), list(self.newest.received_s)), (["m"], ["m"]))
        self.node(5, node="m")
        self.assertEqual(self.now("m"), 2)


class ClientTest(Case):
    def test_late_data_replaces_nothing_but_is_a_sign_of_life(self):
        self.client(0)
        for age_s in (1, 11, HOUR, DAY, 10 * YEAR, 20):
            self.clock.sleep(0.2)
            self.client(age_s + 0.2)
            self.assert_now(1)
            self.assertEqual(self.newest.received_s["n"], self.clock.monotonic())

    def test_newest_of_one_message_counts_in_any_order(self):
        for ages_s, newest in (((5, 1, 9), 2), ((1, 5), 1), ((9, 8, 0), 3), ((0, -5), 2), ((3, 3), 2)):
            self.clock.sleep(60)
            self.value = 0
            self.client(*ages_s)
            self.assert_now(newest)

    def test_date_in_the_future_does_not_block_later_samples(self):
        for ahead_s in (30, HOUR, DAY, YEAR, 70 * YEAR):
            with self.subTest(ahead_s=ahead_s):
                self.client(-ahead_s)
                self.clock.sleep(10)
                self.client(0)
                self.assert_now(self.value)
                self.client(20)
                self.assert_now(self.value - 1)

    def test_late_data_of_a_clock_that_is_ahead_replaces_nothing(self):
        for ahead_s in (2 * HOUR, DAY, YEAR):
            self.client(-ahead_s)
            now = self.value
            self.clock.sleep(1)
            self.client(1800 - ahead_s)
            self.assert_now(now)

    def test_clock_that_is_set_back_is_recognised_by_its_speed(self):
        for back_s, every_s in ((HOUR, 10), (DAY, 30), (YEAR, 60), (HOUR, 1), (1800, 300)):
            with self.subTest(back_s=back_s, every_s=every_s):
                self.clock.sleep(30 * DAY)
                self.client(0)
                began_s = self.clock.monotonic()
                while self.now() != self.value or self.clock.monotonic() == began_s:
                    self.clock.sleep(every_s)
                    self.client(back_s)
                    self.assertLessEqual(self.clock.monotonic() - began_s, max(LAG_S, 2 * every_s) + every_s)
                self.clock.sleep(every_s)
                self.client(back_s)
                self.assert_now(self.value)

    def test_backlog_replaces_nothing(self):
        for step_s in (1, 5, 60, 3600, -10):  # seconds by which a sample is newer than the one before
            with self.subTest(step_s=step_s):
                self.clock.sleep(30 * DAY)
                self.client(0)
                now = self.value
                for n in range(200):
                    self.clock.sleep(0.5)
                    self.client(10 * DAY - n * step_s + n * 0.5)
                self.assert_now(now)

    def test_live_sender_beside_one_with_a_constant_delay_stays_current(self):
        for _ in range(60):
            self.clock.sleep(5)
            self.client(0)
            now = self.value
            self.client(HOUR, epoch="c2")
            self.assert_now(now)

    def test_step_of_the_server_clock_blocks_nothing(self):
        for step_s in (-HOUR, HOUR, -YEAR, 50 * YEAR, -1):
            with self.subTest(step_s=step_s):
                self.client(0)
                self.clock.step(step_s)
                self.clock.sleep(10)
                self.client(0)
                self.assert_now(self.value)

    def test_messages_with_different_sensors_are_combined(self):
        self.client(0, values={"t": 1, "h": 50})
        self.clock.sleep(10)
        self.client(0, values={"light": 7})
        self.clock.sleep(10)
        self.client(0, values={"h": 51})
        latest = self.newest.samples["n"]
        self.assertEqual(latest.sample.values, {"h": 51, "light": 7, "t": 1})
        ages = [self.clock.monotonic() - latest.of(name).received_s for name in ("h", "light", "t")]
        self.assertEqual(ages, [0, 10, 20])
        self.client(15, values={"light": 6, "t": 2})  # newer than t, older than light
        self.assertEqual(self.newest.samples["n"].sample.values, {"h": 51, "light": 7, "t": 2})

    def test_data_older_than_the_stored_sample_is_not_current_after_a_restart(self):
        self.newest = LatestSamples(STORE, {"n": self.clock.wall_ms(), "m": self.clock.wall_ms() + int(YEAR * 1000)})
        self.client(HOUR)
        self.assertEqual((self.newest.samples, list(self.newest.received_s)), ({}, ["n"]))
        self.client(HOUR, node="m")  # its stored sample was dated in the future
        self.node(HOUR, node="n")
        self.assertEqual(set(self.newest.samples), {"m", "n"})


class SeveralSourcesTest(Case):
    def test_newest_sample_of_several_sources_counts(self):
        for first, second, newest in (
            (self.node, self.client, 2), (self.client, self.node, 2),
            (self.node, lambda *ages: self.client(60), 1),
            (self.client, lambda *ages: self.node(60), 1),
            (self.node, lambda *ages: self.node(60, outbox=OTHER), 1),
        ):  # fmt: skip
            self.clock.sleep(DAY)
            self.value = 0
            first(0)
            self.clock.sleep(5)
            second(0)
            self.assert_now(newest)


class TakenTest(Case):
    def test_time_of_a_sample_follows_both_clocks(self):
        for offset_s, shown_s in ((0, 0), (HOUR, 0), (-HOUR, 0), (YEAR, 0)):
            self.node(-offset_s)
            self.clock.sleep(20)
            self.assertAlmostEqual(self.taken_s(offset_s), shown_s + 20, delta=0.01)

    def test_age_of_a_sample_grows_although_its_date_is_in_the_future(self):
        for ahead_s in (1, 60, HOUR, YEAR):
            self.node(-ahead_s)
            self.clock.sleep(500)
            self.assertAlmostEqual(self.taken_s(), 500, delta=0.01)

    def test_age_does_not_change_if_the_server_clock_is_set(self):
        for step_s in (HOUR, -HOUR, YEAR, -YEAR, 1.5):
            self.node(30)
            self.clock.step(step_s)
            self.clock.sleep(5)
            self.assertAlmostEqual(self.taken_s(0), 35, delta=0.01)

    def test_time_that_was_calculated_from_the_server_clock_is_not_shifted(self):
        self.node(2, clock="server")
        self.assertAlmostEqual(self.taken_s(-50 * YEAR), 2, delta=0.01)
