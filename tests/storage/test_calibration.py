"""Calibrations: curves, dates, bad points; and the agreement of all ways in which calibrated values are read."""

import itertools
import os
import random
import statistics
import tempfile
import unittest
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage import calibrated_store
from pigeonpost.storage.calibrated_store import calibrated, raw_store
from pigeonpost.storage.calibration import (
    BEGINNING_MS,
    Calibration,
    CalibrationTimeline,
    Curve,
    checked_points,
)
from pigeonpost.storage.maintenance import MaintenanceWorker, rollup
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch, Sample
from tests.page_support import use_memory_disk
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import E1, OUTBOX, Direct, file, wrapped
from tests.support import rounds

HOUR_MS = 3_600_000
T0_MS = 1_795_003_200_000  # the start of an hour (UTC)
TWO = ((0.2, 0.0), (99.4, 100.0))
BENT = ((0.0, 0.0), (10.0, 12.0), (20.0, 20.0))
FALLING = ((0.0, 50.0), (1023.0, -10.0))
OFFSET = ((20.0, 19.5),)
NAN, INF = float("nan"), float("inf")


def setUpModule():
    use_memory_disk()


def timeline(*dated):
    return CalibrationTimeline([Calibration(from_ms, checked_points(points)) for from_ms, points in dated])


class CurveTest(unittest.TestCase):
    def test_curve_passes_through_its_points_and_continues_beyond_them(self):
        for points, pairs in (
            (OFFSET, [(20, 19.5), (20.4, 19.9), (-3, -3.5)]),
            (TWO, [(0.2, 0), (99.4, 100), (49.8, 50), (-49.4, -50), (199, 200.403225806)]),
            (BENT, [(0, 0), (5, 6), (10, 12), (15, 16), (20, 20), (30, 28), (-1, -1.2)]),
            (FALLING, [(0, 50), (1023, -10), (511.5, 20), (2046, -70), (-1023, 110)]),
            (((-40.0, -39.0), (-5.5, -5.0)), [(-40, -39), (-5.5, -5), (-22.75, -22)]),
        ):
            curve = Curve(checked_points(points))
            for raw, true in pairs:
                with self.subTest(points=points, raw=raw):
                    self.assertEqual(curve.of(raw), true)
            self.assertEqual(curve.is_falling, points is FALLING)

    def test_result_has_no_rounding_errors_of_binary_fractions(self):
        self.assertEqual(Curve([(0.0, -0.3)]).of(20.4), 20.1)
        self.assertEqual(Curve([(0.0, 0.1)]).of(0.2), 0.3)

    def test_points_may_be_in_any_order(self):
        self.assertEqual(checked_points([(20, 20), (0, 0), (10, 12)]), BENT)

    def test_huge_values_stay_finite(self):
        for points in (TWO, BENT, FALLING, OFFSET):
            for raw in (1.7e308, -1.7e308, 2**63 - 1):
                self.assertLess(abs(Curve(points).of(raw)), INF)

    def test_bad_points_are_rejected_with_the_values_that_are_wrong(self):
        for points, words in (
            ([], "1 to 64 points"),
            ([(k, k) for k in range(65)], "1 to 64 points RAW=TRUE, not 65"),
            ([(20, 1), (3, 0), (20, 2)], "the raw value 20 has two true values, 1 and 2"),
            ([(20, 1), (20, 1)], "the raw value 20 has two true values"),
            ([(0, 5), (10, 5)], "the raw values 0 and 10 have the same true value 5"),
            ([(0, 0), (10, 12), (20, 5)], "must rise throughout or fall throughout: 0=0, 10=12, 20=5"),
            ([(0, NAN), (10, 5)], "nan is not a number"),
            ([(INF, 0)], "inf is not a number"),
            ([(0, 1e16)], "1e\\+16 is not a number from"),
            ([(0, 0), (1e-300, 1e15)], "too close together"),
            ([(-1e15, 0), (1e15, 5e-324)], "same true value"),
        ):
            with self.subTest(points=points[:3]), self.assertRaisesRegex(ValueError, words):
                checked_points(points)


class TimelineTest(unittest.TestCase):
    def test_each_value_has_the_calibration_of_its_own_time(self):
        found = timeline((T0_MS, OFFSET), (T0_MS + 1000, [(0, 100)]))
        times = [T0_MS - 1, T0_MS, T0_MS + 999, T0_MS + 1000, T0_MS - 500]  # a clock stepped back
        self.assertEqual(found.column(times, [1, 2, None, 4, 5]), [1, 1.5, None, 104, 5])
        self.assertEqual([found.value(*pair) for pair in zip(times, (1, 2, 3, 4, 5))], [1, 1.5, 2.5, 104, 5])

    def test_values_before_the_first_date_are_the_same_objects(self):
        values = [1, 2.5, None]
        self.assertIs(timeline((T0_MS, TWO)).column([1, 2, 3], values), values)

    def test_calibration_from_the_beginning_is_valid_for_all_values(self):
        self.assertEqual(timeline((BEGINNING_MS, OFFSET)).value(BEGINNING_MS, 20), 19.5)


class LimitsTest(unittest.TestCase):
    def test_limits_of_a_node_are_converted(self):
        raw = {"low": 0, "high": 1023, "jump": 10, "stuck": 60, "rail": [0, 1023]}
        found = Curve(FALLING).limits(raw)
        self.assertEqual((found["low"], found["high"], found["rail"], found["stuck"]), (-10.0, 50.0, [-10.0, 50.0], 60))
        self.assertAlmostEqual(found["jump"], 10 * 60 / 1023)
        self.assertEqual(Curve(FALLING).limits({"low": 1023}), {"high": -10.0})
        self.assertEqual(Curve(OFFSET).limits({"high": 30}), {"high": 29.5})


CASES = {
    "two points": timeline((BEGINNING_MS, TWO)),
    "bend": timeline((BEGINNING_MS, BENT)),
    "falling": timeline((BEGINNING_MS, FALLING)),
    "offset": timeline((BEGINNING_MS, OFFSET)),
    "dated in the middle of a window": timeline((T0_MS + 1_234_567, TWO)),
    "falling bend, then an offset": timeline(
        (T0_MS, [(0, 9), (10.5, 3), (20, 1)]), (T0_MS + 2 * HOUR_MS + 777, OFFSET)
    ),
}
RANGES = [  # offsets from T0_MS, and number of buckets
    (0, 4 * HOUR_MS, 4), (0, 4 * HOUR_MS, 24), (0, 4 * HOUR_MS, 1), (0, 4 * HOUR_MS, 100),
    (-1_000_000, 4 * HOUR_MS + 123_457, 7), (333_333, 3 * HOUR_MS + 1, 13), (1_200_001, 1_300_000, 5),
]  # fmt: skip


def fill(store):
    """Store four hours of samples with their rollups, and return all readings as (time, value)."""
    dice = random.Random(7)
    samples, values = [], []
    for seq in range(1, 361):
        time_ms = T0_MS + seq * 40_000 - 40_000 + dice.randrange(40_000)
        value = None if dice.random() < 0.02 else round(10 + 9 * dice.random() + (3 if seq % 100 < 10 else 0), 2)
        samples.append(Sample(seq, time_ms, seq * 10_000, {"t": value, "other": seq}, {}, ""))
        values.append((time_ms, value))
    for one in wrapped(samples):
        file(store, one)
    MaintenanceWorker(store, Direct(store), FakeClock(wall_ms=T0_MS + 6 * HOUR_MS)).work()
    return [(time_ms, value) for time_ms, value in values if value is not None]


class Agreement:
    """Points, batches, buckets and rollups are those of the values that were converted one by one.

    A subclass sets `store` and `values`, the result of `fill`.
    """

    def shown(self, case, store=None):
        return calibrated(store or self.store, lambda node: {"t": CASES[case]} if node == "a" else {})

    def test_points_and_batches_are_converted_value_by_value(self):
        for case, line in CASES.items():
            with self.subTest(case):
                wanted = [line.value(*pair) for pair in self.values]
                shown = self.shown(case)
                points = [
                    point.values["t"] for point in shown.points("a", 0, 1 << 60, -1) if point.values["t"] is not None
                ]
                batches = [
                    value
                    for _, _, batch in shown.stored_batches("a", 0, 1 << 60)
                    for value in batch.values["t"] if value is not None
                ]  # fmt: skip
                self.assertEqual((points, batches), (wanted, wanted))

    def test_buckets_agree_with_points(self):
        for case, (start, end, count) in itertools.product(CASES, RANGES):
            from_ms, to_ms = T0_MS + start, T0_MS + end
            for is_all in (False, True):
                with self.subTest(case, start=start, end=end, count=count, is_all=is_all):
                    self.check_buckets(case, from_ms, to_ms, count, is_all)

    def check_buckets(self, case, from_ms, to_ms, count, is_all):
        shown = self.shown(case)
        if is_all:
            found = shown.downsample_all("a", from_ms, to_ms, count, ["t", "other"])["t"]
        else:
            found = shown.downsample("a", "t", from_ms, to_ms, count)
        width_ms = (to_ms - from_ms) / count
        span_ms = 0 if is_all else max((span for span in (600_000, HOUR_MS) if span <= width_ms), default=0)
        wanted = {}
        for time_ms, raw in self.values:
            if from_ms <= time_ms < to_ms:
                counted_ms = max(from_ms, time_ms // span_ms * span_ms) if span_ms else time_ms
                place = (counted_ms - from_ms) * count // (to_ms - from_ms)
                wanted.setdefault(place, []).append(CASES[case].value(time_ms, raw))
        self.assertEqual([one.place for one in found], sorted(wanted))
        for one in found:
            values = wanted[one.place]
            self.assertEqual((one.values, one.low, one.high), (len(values), min(values), max(values)))
            self.assertAlmostEqual(one.mean, statistics.fmean(values), places=7)

    def test_rollups_agree_with_points(self):
        for case, span_ms in itertools.product(CASES, (600_000, HOUR_MS)):
            with self.subTest(case, span_ms=span_ms):
                found = self.shown(case).summaries("a", "t", span_ms, T0_MS, T0_MS + 4 * HOUR_MS)
                self.assertEqual(len(found), 4 * HOUR_MS // span_ms)
                for one in found:
                    values = [
                        CASES[case].value(*pair) for pair in self.values
                        if one.end_ms - span_ms <= pair[0] < one.end_ms
                    ]  # fmt: skip
                    wanted = rollup(values, one.end_ms)
                    self.assertEqual(one.values, wanted.values)
                    self.assertEqual((one.low, one.high), (wanted.low, wanted.high))
                    for name in ("mean", "median", "deviation"):
                        self.assertAlmostEqual(getattr(one, name), getattr(wanted, name), places=7)
                    self.assertGreaterEqual(values.count(one.mode), 1)

    def test_windows_whose_samples_are_deleted_keep_exact_extremes(self):
        with mock.patch.object(self.store, "stored_batches", return_value=iter(())):
            for case in ("bend", "falling"):
                for one, raw in zip(
                    self.shown(case).summaries("a", "t", HOUR_MS, T0_MS, T0_MS + 4 * HOUR_MS),
                    self.store.summaries("a", "t", HOUR_MS, T0_MS, T0_MS + 4 * HOUR_MS),
                ):
                    line = CASES[case].latest
                    self.assertEqual([one.low, one.high], sorted([line.of(raw.low), line.of(raw.high)]))
                    self.assertTrue(one.low <= one.mean <= one.high)

    def test_number_of_samples_that_are_read_is_limited(self):
        with mock.patch.object(calibrated_store, "MOST_READ", 200):
            found = self.shown("bend").downsample("a", "t", T0_MS, T0_MS + 4 * HOUR_MS, 4)
        self.assertEqual([one.place for one in found], [0, 1, 2, 3])
        self.assertTrue(all(one.low <= one.mean <= one.high for one in found))

    def test_sensors_and_nodes_without_calibration_are_not_converted(self):
        shown = self.shown("two points")
        self.assertEqual(
            shown.downsample("a", "other", T0_MS, T0_MS + HOUR_MS, 3),
            self.store.downsample("a", "other", T0_MS, T0_MS + HOUR_MS, 3),
        )
        self.assertEqual(shown.points("b", 0, 1 << 60, 5), [])
        others = [point.values["other"] for point in shown.points("a", 0, 1 << 60, 3)]
        self.assertEqual(others, [358, 359, 360])
        self.assertIs(raw_store(shown), self.store)
        self.assertIs(raw_store(self.store), self.store)


class AgreementTest(Agreement, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.store = SqliteStore(folder.name)
        cls.addClassCleanup(cls.store.close)
        cls.values = fill(cls.store)


class RandomAgreementTest(unittest.TestCase):
    """Random samples, calibrations and ranges: with rollups, without them, with some, and after samples are deleted."""

    def test_random_buckets_and_rollups_agree_with_points(self):
        first = int(os.environ.get("PIGEONPOST_TEST_FIRST_SEED") or random.randrange(1 << 30))
        for seed in range(first, first + rounds("PIGEONPOST_TEST_CALIBRATIONS", 1, 60)):
            for summed_ms in (0, HOUR_MS, 99 * HOUR_MS):
                with self.subTest(seed=seed, summed_ms=summed_ms), tempfile.TemporaryDirectory() as folder:
                    store = SqliteStore(folder)
                    try:
                        self.check(random.Random(seed), store, summed_ms)
                    finally:
                        store.close()

    def check(self, dice, store, summed_ms):
        self.dice = dice
        self.values = self.fill(store)
        self.end_ms = self.values[-1][0] + 1
        worker = MaintenanceWorker(store, Direct(store), FakeClock(wall_ms=T0_MS + summed_ms))
        while summed_ms and worker.work():
            pass
        dates = {dice.choice((BEGINNING_MS, dice.randrange(T0_MS, self.end_ms))) for _ in range(dice.randrange(1, 4))}
        self.line = timeline(*((from_ms, self.points()) for from_ms in dates))
        shown = calibrated(store, lambda node: {"t": self.line})
        for _ in range(12):
            self.check_buckets(store, shown, *self.next_range())
        if summed_ms > 10 * HOUR_MS:
            with store.writing(()):
                store.delete_expired(self.end_ms - 2 * HOUR_MS, 1 << 30)
            for _ in range(6):
                self.check_after_deletion(store, shown, *self.next_range())

    def fill(self, store):
        time_ms, samples = T0_MS, []
        for seq in range(1, self.dice.randrange(30, 400)):
            time_ms += self.dice.randrange(1, 90_000)
            value = self.dice.choice((None, self.dice.uniform(-5, 25), self.dice.randrange(-3, 20), 10))
            samples.append(Sample(seq, time_ms, seq, {"t": value}, {}, ""))
        samples.append(Sample(len(samples) + 1, time_ms + 1, 0, {"t": 4.5}, {}, ""))
        for one in wrapped(samples):
            file(store, one)
        return [(one.time_ms, one.values["t"]) for one in samples if one.values["t"] is not None]

    def points(self):
        count = self.dice.randrange(1, 5)
        raws, trues = (sorted(self.dice.sample(range(-10, 30), count)) for _ in range(2))
        return list(zip(raws, trues if self.dice.random() < 0.5 else reversed(trues)))

    def next_range(self):
        from_ms = self.dice.randrange(T0_MS - HOUR_MS, self.end_ms)
        to_ms = from_ms + self.dice.choice((self.dice.randrange(500, 9 * HOUR_MS), self.dice.randrange(1, 9) * HOUR_MS))
        if self.dice.random() < 0.4:
            from_ms, to_ms = from_ms // HOUR_MS * HOUR_MS, to_ms // HOUR_MS * HOUR_MS + HOUR_MS
        return from_ms, to_ms, self.dice.choice((1, 2, 7, 24, 100, 450))

    def check_buckets(self, store, shown, from_ms, to_ms, count):
        found = shown.downsample("a", "t", from_ms, to_ms, count)
        raw = store.downsample("a", "t", from_ms, to_ms, count)
        self.assertEqual([one[:2] for one in found], [one[:2] for one in raw])
        inside = [
            (time_ms, self.line.value(time_ms, raw)) for time_ms, raw in self.values if from_ms <= time_ms < to_ms
        ]
        values = [value for _, value in inside]
        self.assertEqual(sum(one.values for one in found), len(values))
        if values:
            self.assertEqual(min(one.low for one in found), min(values))
            self.assertEqual(max(one.high for one in found), max(values))
            mean = sum(one.mean * one.values for one in found) / len(values)
            self.assertAlmostEqual(mean, statistics.fmean(values), places=6)
        for one in shown.downsample_all("a", from_ms, to_ms, count, ["t"]).get("t", ()):
            values = [
                value for time_ms, value in inside if (time_ms - from_ms) * count // (to_ms - from_ms) == one.place
            ]
            self.assertEqual(one[1:4], (len(values), min(values), max(values)))
            self.assertAlmostEqual(one.mean, statistics.fmean(values), places=6)

    def check_after_deletion(self, store, shown, from_ms, to_ms, count):
        found = shown.downsample("a", "t", from_ms, to_ms, count)
        raw = store.downsample("a", "t", from_ms, to_ms, count)
        self.assertEqual([one[:2] for one in found], [one[:2] for one in raw])
        self.assertTrue(all(one.low <= one.mean <= one.high for one in found))
        for one in shown.summaries("a", "t", HOUR_MS, from_ms, to_ms):
            self.assertTrue(one.low <= one.mean <= one.high and one.low <= one.median <= one.high)


class UnitTest(unittest.TestCase):
    def test_unit_of_the_calibration_replaces_that_of_the_node(self):
        store = MemoryStore()
        samples = SampleBatch.of([Sample(1, T0_MS, 0, {"t": 1, "u": 2}, {}, "")])
        file(store, Batch("a", OUTBOX, E1, 0, samples, None, {"t": "V", "u": "V"}, print, print))
        line = CalibrationTimeline([Calibration(BEGINNING_MS, TWO, "°C"), Calibration(T0_MS, OFFSET)])
        shown = calibrated(store, lambda node: {"t": line})
        self.assertEqual(shown.nodes()[0]["sensors"], {"t": "°C", "u": "V"})
        self.assertEqual(shown.known_units(), {"a": {"t": "°C", "u": "V"}})


if __name__ == "__main__":
    unittest.main()
