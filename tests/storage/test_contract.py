"""Contract of a store, and properties of the SQLite store."""

import os
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import unittest
from fractions import Fraction
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.errors import DiskError, NotStored, SettingsError, StoreDamaged
from pigeonpost.link.samples import SampleBatch, batches_of
from pigeonpost.storage import shapes
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.storage.models import (
    NOTHING,
    SPANS_MS,
    EpochCommit,
    HighWaterMark,
    LogMark,
    NodeUsage,
    pieces_to_read,
    window_end,
)
from pigeonpost.storage.sqlite import rollups, runs
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import LARGEST_SEQ, Batch, Gap, Sample
from tests.page_support import use_memory_disk
from tests.storage.memory_store import MemoryStore
from tests.support import LIMIT_S, rounds, stored_samples, temp_folder

OUTBOX = "00000000000000aa"
E1, E2 = "0000000000000001", "0000000000000002"
HUGE = sys.float_info.max
FAR_MS = 1 << 60


def setUpModule():
    use_memory_disk()


def sample(seq, temperature=20.5, time_ms=None, errors=None, clock=""):
    time_ms = 1_795_000_000_000 + seq * 1000 if time_ms is None else time_ms
    return Sample(seq, time_ms, seq * 1000, {"temperature": temperature, "light": seq % 1024}, errors or {}, clock)


def batch(first, last, node="a", epoch=E1, base=0, units=None, **more):
    samples = [sample(seq, **more) for seq in range(first, last + 1)]
    return Batch(node, OUTBOX, epoch, base, SampleBatch.of(samples), None, units or {"temperature": "°C"}, print, print)


def wrapped(samples, node="a", epoch=E1):
    """Return samples with any sensors as the batches that a link would create."""
    return [Batch(node, OUTBOX, epoch, 0, part, None, {}, print, print) for part in batches_of(samples)]


def gap(first, last, node="a", epoch=E1, base=0, before=0, why="overwritten"):
    return Batch(node, OUTBOX, epoch, base, None, Gap(first, last, before, why), {}, print, print)


def file(store, *batches, log=None):
    """Commit `batches`, which must be new, through the interface only. Return the last filing number."""
    epoch_commits = {}
    with store.writing({(b.node, b.epoch): None for b in batches}) as marks:
        for b in batches:
            key = b.node, b.epoch
            epoch_commit = epoch_commits.setdefault(
                key, EpochCommit(b.node, b.outbox, b.epoch, marks.get(key, NOTHING))
            )
            epoch_commit.units = b.units
            epoch_commit.add(b, 0)
        return store.put(list(epoch_commits.values()), 1_795_000_000_999, log)


class Direct:
    """Writer that runs jobs of a MaintenanceWorker immediately, without an Ingestor."""

    def __init__(self, store):
        self.store = store

    def run(self, job, limit_s):
        with self.store.writing(()):
            return job()


class StoreContract:
    """Tests of the contract, for all stores. `make` of the subclass opens the same data each time."""

    def setUp(self):
        self.store = self.make()

    def tearDown(self):
        self.store.close()

    def reopen(self):
        self.store.close()
        self.store = self.make()

    def test_empty_store_returns_nothing(self):
        self.assertEqual(self.store.marks("a", OUTBOX, [E1]), (0, {}))
        self.assertEqual(self.store.nodes(), [])
        self.assertIsNone(self.store.log_mark())
        self.assertEqual(list(self.store.logged_after(0)), [])
        self.assertEqual(self.store.points("a", 0, 1 << 60, 10), [])
        self.assertEqual(self.store.downsample("a", "temperature", 0, 1 << 60, 10), [])
        self.assertEqual(list(self.store.verify()), [])

    def change(self, job):
        """Run a job within a transaction."""
        with self.store.writing(()):
            job()

    def test_renamed_node_keeps_all_data_under_its_new_name(self):
        file(self.store, batch(1, 3), gap(4, 6), batch(7, 8), batch(1, 1, node="b"))
        before = self.store.points("a", 0, 1 << 60, 100)
        about = next(one for one in self.store.nodes() if one["name"] == "a")
        MaintenanceWorker(self.store, Direct(self.store), FakeClock(wall_ms=before[-1].time_ms + 10**8)).work()
        rollups = self.store.summaries("a", "temperature", SPANS_MS[1], 0, 1 << 60)
        self.assertNotEqual(rollups, [])
        self.change(lambda: self.store.rename("a", "c", 1000))
        for _ in range(2):
            self.assertEqual(self.store.points("a", 0, 1 << 60, 100), [])
            self.assertEqual(self.store.points("c", 0, 1 << 60, 100), [one._replace(node="c") for one in before])
            self.assertEqual([one["name"] for one in self.store.nodes()], ["b", "c"])
            self.assertEqual(next(one for one in self.store.nodes() if one["name"] == "c"), {**about, "name": "c"})
            self.assertEqual(self.store.marks("c", OUTBOX, [E1]), (8, {E1: HighWaterMark(8, 8000)}))
            self.assertEqual(self.store.summaries("c", "temperature", SPANS_MS[1], 0, 1 << 60), rollups)
            self.assertEqual([one["node"] for one in self.store.gaps(-1)], ["c"])
            self.assertEqual(list(self.store.node_records().former), [("a", "c", 1000, False)])
            self.assertEqual(list(self.store.verify()), [])
            self.reopen()

    def test_batches_after_a_rename_continue_those_before(self):
        file(self.store, batch(1, 3))
        self.change(lambda: self.store.rename("a", "c", 1000))
        self.change(lambda: self.store.release("a"))
        file(self.store, batch(4, 5, node="c"), batch(1, 1, node="a", epoch=E2))
        self.assertEqual([one.seq for one in self.store.points("c", 0, 1 << 60, 100)], [1, 2, 3, 4, 5])
        self.assertEqual([one.epoch for one in self.store.points("a", 0, 1 << 60, 100)], [E2])

    def test_rename_to_a_used_name_or_of_an_unknown_node_changes_nothing(self):
        file(self.store, batch(1, 3), batch(1, 1, node="b"))
        for node, new, error in (("a", "b", ValueError), ("z", "y", LookupError)):
            with self.subTest(node=node), self.assertRaises(error):
                self.change(lambda: self.store.rename(node, new, 1000))  # noqa: B023
        self.assertEqual(list(self.store.node_records().former), [])
        self.assertEqual(self.store.marks("a", OUTBOX, [E1])[0], 3)

    def test_node_that_is_renamed_back_has_its_later_name_as_former_name(self):
        file(self.store, batch(1, 3))
        self.change(lambda: self.store.rename("a", "b", 1000))
        self.change(lambda: self.store.rename("b", "a", 2000))
        self.assertEqual(list(self.store.node_records().former), [("b", "a", 2000, False)])
        self.change(lambda: self.store.release("b"))
        self.assertEqual(list(self.store.node_records().former), [("b", "a", 2000, True)])

    def test_former_name_of_two_nodes_means_the_last_one_even_after_a_clock_step(self):
        file(self.store, batch(1, 3))
        self.change(lambda: self.store.rename("a", "b", 5000))
        self.change(lambda: self.store.release("a"))
        file(self.store, batch(1, 1, epoch=E2))
        self.change(lambda: self.store.rename("b", "a1", 5500))
        self.change(lambda: self.store.rename("a", "c", 1000))
        unreleased = {one.name: one.node for one in self.store.node_records().former if not one.is_released}
        self.assertEqual(unreleased, {"a": "c", "b": "a1"})

    def test_dirty_windows_of_a_renamed_node_are_found_again(self):
        file(self.store, batch(1, 3))
        far_ms = self.store.points("a", 0, 1 << 60, 1)[0].time_ms + 10**8
        old = self.store.dirty_windows(far_ms, 10)
        self.change(lambda: self.store.rename("a", "b", 1000))
        for window in old:
            self.change(lambda: self.store.replace_rollups(window, {}))  # noqa: B023
            self.change(lambda: self.assertFalse(self.store.merge_late_rollups(window, {})))  # noqa: B023
        self.assertEqual([one.node for one in self.store.dirty_windows(far_ms, 10)], ["b"] * len(old))

    def test_retirement_and_labels_survive_a_rename_and_a_restart(self):
        file(self.store, batch(1, 3))
        self.change(lambda: self.store.retire("a", 5000))
        self.change(lambda: self.store.relabel("a", "temperature", "North wall"))
        self.change(lambda: self.store.rename("a", "b", 6000))
        self.reopen()
        records = self.store.node_records()
        self.assertEqual(dict(records.retired), {"b": 5000})
        self.assertEqual(dict(records.labels), {("b", "temperature"): "North wall"})
        self.change(lambda: self.store.retire("b", None))
        self.change(lambda: self.store.relabel("b", "temperature", ""))
        records = self.store.node_records()
        self.assertEqual((dict(records.retired), dict(records.labels)), ({}, {}))
        with self.assertRaises(LookupError):
            self.change(lambda: self.store.retire("z", 1))

    def test_marks_of_the_last_commit_survive_a_restart(self):
        file(self.store, batch(1, 3), batch(1, 2, epoch=E2, base=3), batch(1, 5, node="b"))
        identity = self.store.identity
        for _ in range(2):
            self.assertEqual(
                self.store.marks("a", OUTBOX, [E1, E2, "f" * 16]),
                (5, {E1: HighWaterMark(3, 3000), E2: HighWaterMark(2, 2000)}),
            )
            self.assertEqual(self.store.marks("b", OUTBOX, [E1]), (5, {E1: HighWaterMark(5, 5000)}))
            self.assertEqual(self.store.marks("a", "f" * 16, [E1]), (0, {E1: HighWaterMark(3, 3000)}))
            self.assertEqual(self.store.identity, identity)
            self.reopen()

    def test_running_number_of_an_outbox_is_kept_if_its_epoch_continues_in_another_one(self):
        """For example, a card was copied, and both copies have sent samples of the epoch."""
        other = "00000000000000bb"
        file(self.store, batch(1, 3, base=10))
        file(self.store, batch(4, 4, base=100)._replace(outbox=other))
        for _ in range(2):
            self.assertEqual([self.store.marks("a", outbox, ())[0] for outbox in (OUTBOX, other)], [13, 104])
            self.reopen()
        file(self.store, batch(5, 5, base=1))
        self.assertEqual([self.store.marks("a", outbox, ())[0] for outbox in (OUTBOX, other)], [13, 104])
        file(self.store, batch(6, 6, base=None), batch(1, 1, epoch=E2, base=20))
        self.assertEqual([self.store.marks("a", outbox, ())[0] for outbox in (OUTBOX, other)], [21, 104])

    def test_marks_are_readable_within_a_transaction(self):
        file(self.store, batch(1, 3))
        with self.store.writing([("a", E1), ("a", E2), ("b", E1)]) as marks:
            self.assertEqual(dict(marks), {("a", E1): HighWaterMark(3, 3000)})

    def test_transaction_that_raises_stores_nothing(self):
        file(self.store, batch(1, 3))
        with self.assertRaises(ZeroDivisionError), self.store.writing([("c", E2)]):
            new = EpochCommit("c", OUTBOX, E2, NOTHING)
            new.add(batch(1, 2, node="c", epoch=E2), 0)
            self.store.put([new], 0, LogMark("x.csv", 1, 2, 3))
            raise ZeroDivisionError
        self.assertEqual([node["name"] for node in self.store.nodes()], ["a"])
        self.assertIsNone(self.store.log_mark())
        file(self.store, batch(1, 1, node="c", epoch=E2, units={"temperature": "K"}))
        self.assertEqual(self.store.nodes()[1]["sensors"], {"temperature": "K"})
        self.assertEqual(list(self.store.verify()), [])

    def test_gap_moves_the_mark_and_has_no_uptime(self):
        file(self.store, batch(1, 3), gap(4, 9, before=2))
        self.assertEqual(self.store.marks("a", OUTBOX, [E1]), (9, {E1: HighWaterMark(9, None)}))
        file(self.store, batch(10, 10))
        self.assertEqual(self.store.marks("a", OUTBOX, [E1]), (10, {E1: HighWaterMark(10, 10_000)}))
        (node,) = self.store.nodes()
        self.assertEqual((node["samples"], node["missing"]), (4, 8))
        (found,) = self.store.gaps(10)
        self.assertEqual(
            (found["node"], found["from"], found["to"], found["before"], found["why"]), ("a", 4, 9, 2, "overwritten")
        )
        self.assertEqual(list(self.store.verify()), [])

    def test_rollups_contain_all_samples_of_a_window(self):
        start_ms, chance = 1_795_000_000_000 // 3_600_000 * 3_600_000, random.Random(3)
        times = sorted(start_ms + chance.choice((1, 5, 700, 600_000, 3_000_000)) * (1 + n % 3) // 2 for n in range(60))
        for node in "ab":
            file(self.store, *(
                batch(seq, seq, node=node, temperature=chance.randint(0, 9), time_ms=at) if node == "a" else
                batch(seq, seq, node=node, temperature=5, time_ms=at) for seq, at in enumerate(times, 1)
            ))  # fmt: skip
        worker = MaintenanceWorker(self.store, Direct(self.store), FakeClock())
        while worker.work():
            pass
        values = {point.time_ms: [] for point in self.store.points("a", 0, FAR_MS, 1000)}
        for point in self.store.points("a", 0, FAR_MS, 1000):
            values[point.time_ms].append(point.values["temperature"])
        (found,) = self.store.summaries("a", "temperature", 3_600_000, start_ms, start_ms + 3_600_000)
        inside = [value for at, some in values.items() for value in some if start_ms <= at < start_ms + 3_600_000]
        self.assertEqual((found.values, found.median), (len(inside), statistics.median(inside)))
        self.assertEqual(found.mode, min(statistics.multimode(inside)))
        self.assertAlmostEqual(found.deviation, statistics.pstdev(inside), 9)

    def test_sums_of_gaps_beyond_64_bits_are_exact(self):
        """Servers before version 0.2 accepted gaps of any size, which may still be stored."""
        epochs = [f"{n:016x}" for n in range(1, 13)]
        file(self.store, batch(1, 2, node="b"))
        for epoch in epochs:
            file(self.store, gap(1, LARGEST_SEQ, epoch=epoch, before=LARGEST_SEQ, base=LARGEST_SEQ))
        for _ in range(2):
            a, b = self.store.nodes()
            self.assertEqual((a["samples"], a["missing"], a["forgotten"]), (0, 24 * LARGEST_SEQ, 0))
            self.assertEqual((b["samples"], b["missing"]), (2, 0))
            self.assertEqual(self.store.usage("a"), NodeUsage(2, 12, 12, 24 * LARGEST_SEQ))
            self.assertEqual(len(self.store.gaps(-1)), 12)
            self.assertEqual(self.store.marks("a", OUTBOX, epochs[:1])[0], 2 * LARGEST_SEQ)
            self.assertEqual(list(self.store.logged_after(1))[-1].items[0].before, LARGEST_SEQ)
            self.reopen()

    def test_usage_counts_nodes_epochs_and_gaps(self):
        self.assertEqual(self.store.usage("a"), NodeUsage(0, 0, 0, 0))
        file(self.store, batch(1, 3), gap(4, 9, before=2), batch(1, 1, epoch=E2), batch(1, 1, node="b"))
        self.assertEqual(self.store.usage("a"), NodeUsage(2, 2, 1, 8))
        self.assertEqual(self.store.usage("b"), NodeUsage(2, 1, 0, 0))
        self.assertEqual(self.store.usage("c"), NodeUsage(2, 0, 0, 0))

    def test_channels_of_a_node_are_remembered(self):
        self.assertEqual(self.store.channels("a", 10), set())
        file(self.store, batch(1, 1, units={"temperature": "°C", "light": "", "old": "V"}))
        file(self.store, batch(1, 1, node="b", units={"other": ""}))
        self.reopen()
        self.assertEqual(self.store.channels("a", 10), {"temperature", "light", "old"})
        self.assertEqual(len(self.store.channels("a", 2)), 2)

    def test_means_of_values_near_the_largest_float_are_finite(self):
        for n, values in enumerate(
            ([HUGE, HUGE, HUGE], [HUGE, HUGE, 1.0], [-HUGE, HUGE, HUGE], [HUGE, 5e-324, 1.0], [5e-324] * 3, [-HUGE] * 2)
        ):
            with self.subTest(values=values):
                node = f"n{n}"
                file(self.store, *(batch(k, k, node=node, temperature=value) for k, value in enumerate(values, 1)))
                from_ms = 1_795_000_000_000
                (found,) = self.store.downsample(node, "temperature", from_ms, from_ms + 10_000, 1)
                exact = float(sum(map(Fraction, values)) / len(values))
                self.assertEqual((found.values, found.low, found.high), (len(values), min(values), max(values)))
                self.assertTrue(min(values) <= found.mean <= max(values))
                if abs(exact) > 1e-300:
                    self.assertAlmostEqual(found.mean / exact, 1.0, 12)
                if type(self.store) is not MemoryStore:
                    every = self.store.downsample_all(node, from_ms, from_ms + 10_000, 1, {"temperature"})
                    self.assertEqual(every, {"temperature": [found]})

    def test_rollups_of_values_near_the_largest_float_are_finite(self):
        hour_ms = SPANS_MS[-1]
        start_ms = 1_795_000_000_000 // hour_ms * hour_ms
        for n, value in enumerate((HUGE, -HUGE, HUGE, HUGE / 3, 5e-324), 1):
            file(self.store, batch(n, n, temperature=value, time_ms=start_ms + n * 700_000))
        worker = MaintenanceWorker(self.store, Direct(self.store), FakeClock())
        while worker.work():
            pass
        for span_ms in SPANS_MS:
            for found in self.store.summaries("a", "temperature", span_ms, 0, 1 << 60):
                for figure in found:
                    self.assertTrue(abs(figure) <= HUGE, found)
        if type(self.store) is not MemoryStore:  # it uses no rollups
            (found,) = self.store.downsample("a", "temperature", start_ms, start_ms + hour_ms, 1)
            self.assertAlmostEqual(found.mean / (HUGE / 5 * (4 / 3)), 1.0, 12)

    def test_gap_that_contains_only_older_epochs_moves_only_the_running_number(self):
        file(self.store, gap(1, 0, base=70, before=70))
        self.assertEqual(self.store.marks("a", OUTBOX, [E1]), (70, {E1: HighWaterMark(0, None)}))
        self.assertEqual(self.store.nodes()[0]["missing"], 70)

    def test_pending_log_entries_are_in_the_order_of_the_log(self):
        file(self.store, batch(1, 2), batch(1, 1, node="b"), gap(3, 4), batch(5, 5))
        last = file(self.store, batch(6, 7))
        owed = list(self.store.logged_after(0))
        kinds = [
            (logged.node, logged.items[0] if isinstance(logged.items[0], Gap) else [s.seq for s in logged.items[0]])
            for logged in owed
        ]
        self.assertEqual(
            kinds, [("a", [1, 2]), ("a", Gap(3, 4, 0, "overwritten")), ("a", [5]), ("b", [1]), ("a", [6, 7])]
        )
        self.assertEqual(owed[-1].filed, last)
        self.assertEqual([logged.filed for logged in self.store.logged_after(owed[2].filed)], [owed[3].filed, last])
        self.assertIsInstance(owed[0].items[0], SampleBatch)
        self.assertEqual(owed[0].items[0][0].values, {"temperature": 20.5, "light": 1})
        self.assertEqual(owed[0].units, {"temperature": "°C"})

    def test_entries_up_to_the_log_mark_are_not_pending(self):
        last = file(self.store, batch(1, 2))
        log = LogMark("one.csv", 100, 7, last)
        after = file(self.store, batch(3, 3), log=log)
        self.reopen()
        self.assertEqual(self.store.log_mark(), log)
        self.assertEqual([logged.filed for logged in self.store.logged_after(log.filed)], [after])
        other = LogMark("two.csv", 5, 8, after)
        self.assertEqual(file(self.store, log=other), after)
        self.assertEqual(self.store.log_mark(), other)
        for name, size in (("one.csv", 28), ("two.csv", 30), ("one.csv", 1)):
            again = LogMark(name, size, 9, after)
            with self.subTest(name=name):  # a new log may have the name of an older log that was deleted
                file(self.store, log=again)
                self.assertEqual(self.store.log_mark(), again)
        self.assertEqual(list(self.store.logged_after(after)), [])
        self.assertGreater(file(self.store, batch(4, 4)), after)

    def test_values_are_returned_unchanged(self):
        odd = {"a": 0, "b": -0.0, "c": 1e-300, "d": 123456789012345678, "e": None, "f": 0.1, "g": -5, "h": 1.0}
        one = Sample(1, 1_795_000_000_001, 5, odd, {"e": "no response"}, "unset")
        file(self.store, Batch("a", OUTBOX, E1, 0, SampleBatch.of([one]), None, {}, print, print))
        (point,) = self.store.points("a", 0, 1 << 60, 5)
        self.assertEqual(list(point.values.items()), list(odd.items()))
        self.assertEqual([type(v) for v in point.values.values()], [type(v) for v in odd.values()])
        self.assertEqual((point.time_ms, point.clock, point.epoch, point.seq), (1_795_000_000_001, "unset", E1, 1))

    def test_points_are_the_last_of_the_range_oldest_first(self):
        file(self.store, batch(1, 100))
        points = self.store.points("a", 1_795_000_000_000, 1_795_000_051_000, 3)
        self.assertEqual([point.seq for point in points], [48, 49, 50])
        self.assertEqual(self.store.points("zz", 0, 1 << 60, 3), [])

    def test_buckets_summarise_the_values(self):
        file(self.store, *[batch(seq, seq, temperature=seq) for seq in range(1, 11)])
        columns = self.store.downsample("a", "temperature", 1_795_000_001_000, 1_795_000_011_000, 2)
        self.assertEqual([tuple(column) for column in columns], [(0, 5, 1, 5, 3.0), (1, 5, 6, 10, 8.0)])
        self.assertEqual(self.store.downsample("a", "nothing", 0, 1 << 60, 2), [])

    def test_buckets_span_a_change_of_sensors(self):
        one = Sample(1, 1000, 5, {"x": 1, "t": 2.5}, {}, "")
        two = Sample(2, 2000, 6, {"t": None, "x": 4}, {"t": "no"}, "")
        three = Sample(3, 3000, 7, {"t": 3.5}, {}, "")
        file(self.store, *wrapped([one, two, three]))
        self.assertEqual([tuple(c) for c in self.store.downsample("a", "t", 0, 4000, 1)], [(0, 2, 2.5, 3.5, 3.0)])
        self.assertEqual(
            [tuple(c) for c in self.store.downsample("a", "x", 0, 4000, 4)], [(1, 1, 1, 1, 1.0), (2, 1, 4, 4, 4.0)]
        )

    def test_two_samples_with_one_time_are_both_stored(self):
        file(self.store, batch(1, 5, time_ms=1_795_000_000_000), batch(1, 5, epoch=E2, time_ms=1_795_000_000_000))
        self.assertEqual(len(self.store.points("a", 0, 1 << 60, 100)), 10)
        self.assertEqual(list(self.store.verify()), [])

    # --- by column

    def compact(self, filed):
        """Compact all logged samples, as a MaintenanceWorker does. Some stores do not need compaction."""
        file(self.store, log=LogMark("a.csv", 1, 0, filed))
        while job := self.store.compaction(FAR_MS):
            self.assertGreater(self.run_in(job), 0)

    def history(self, chance):
        """Return random samples of two concurrent epochs, as pairs (epoch, sample) in the order of the commits.

        They extend over hours, with changes of the sensors, clocks that are set or step, late samples, and single ones.
        """
        taken, seqs = [], {E1: 0, E2: 0}
        for epoch in chance.choices((E1, E2), k=12):
            at_ms = self.NOON + chance.randrange(-3 * self.HOUR, self.HOUR)
            every_ms = chance.choice((1, 1000, 60_000))
            names = chance.choice((["t"], ["t", "l"], ["l", "t"], []))
            clock = chance.choice(("", "", "unset"))
            for place in range(chance.choice((1, 1, 7, 60))):
                seqs[epoch] += 1
                at_ms += every_ms + chance.choice((0, 0, 0, 3, -2 * every_ms, -self.HOUR if place == 30 else 1))
                values = {name: chance.choice((None, chance.randrange(9), chance.uniform(-50, 50))) for name in names}
                taken.append((epoch, Sample(seqs[epoch], at_ms, 0, values, {}, clock)))
        return taken

    def put_history(self, taken):
        at, filed = 0, 0
        while at < len(taken):
            part = taken[at : at + 23]
            at += 23
            epochs = {epoch: [one for code, one in part if code == epoch] for epoch, _ in part}
            filed = file(self.store, *(b for epoch, some in epochs.items() for b in wrapped(some, epoch=epoch)))
        return filed

    def read_by_column(self, from_ms, to_ms):
        """Return (time, epoch, seq, values, clock) of each sample, in order."""
        found, last = [], {}
        for node, epoch, part in self.store.stored_batches("a", from_ms, to_ms):
            self.assertEqual((node, part.ups), ("a", []))
            if type(self.store) is SqliteStore:
                self.assertGreater(part.seq, last.get(epoch, 0))
            last[epoch] = part.last
            found += [(one.time_ms, epoch, one.seq, one.values, one.clock) for one in part]
        return sorted(found, key=lambda row: row[:3])

    def test_random_histories_are_read_unchanged(self):
        chance = random.Random(11)
        taken = self.history(chance)
        filed = self.put_history(taken)
        expected = sorted(((one.time_ms, epoch, one.seq, one.values, one.clock) for epoch, one in taken),
                          key=lambda row: row[:3])  # fmt: skip
        times = [row[0] for row in expected]
        spans = [(0, FAR_MS), (self.NOON - self.HOUR, self.NOON)]
        spans += [sorted(chance.sample(range(times[0] - 5, times[-1] + 5), 2)) for _ in range(3)]
        spans += [(chance.choice(times), chance.choice(times) + 1) for _ in range(2)]
        for _ in range(2):
            for from_ms, to_ms in spans:
                inside = [row for row in expected if from_ms <= row[0] < to_ms]
                self.assertEqual(self.read_by_column(from_ms, to_ms), inside)
                for limit in (-1, 1, 5):
                    found = [
                        (p.time_ms, p.epoch, p.seq, p.values, p.clock)
                        for p in self.store.points("a", from_ms, to_ms, limit)
                    ]
                    self.assertEqual(found, inside if limit < 0 else inside[-limit:])
                self.check_buckets(inside, from_ms, to_ms)
            self.assertEqual(sum(len(part.samples) for part in self.store.every_batch()), len(expected))
            self.assertEqual(sorted((p.time_ms, p.epoch, p.seq) for p in stored_samples(self.store.every_batch())),
                             [row[:3] for row in expected])  # fmt: skip
            (about,) = self.store.nodes()
            self.assertEqual((about["samples"], about["first_ms"], about["last_ms"]), (len(taken), times[0], times[-1]))
            self.assertEqual(list(self.store.verify()), [])
            self.assertEqual([fault for fault in self.store.check_pieces() if fault], [])
            self.compact(filed)
            self.reopen()

    def test_rows_of_nodes_with_many_sensors_stay_small(self):
        names = [f"c{k}" for k in range(400)]
        times = list(range(self.NOON, self.NOON + 1000))
        many = SampleBatch(1, times, times, {name: [k % 7 for k in times] for name in names})
        filed = file(self.store, Batch("a", OUTBOX, E1, 0, many, None, {}, print, print))
        for _ in range(2):
            found = list(self.store.stored_batches("a", 0, FAR_MS))
            self.assertEqual([seq for _, _, part in found for seq in range(part.seq, part.last + 1)],
                             list(range(1, 1001)))  # fmt: skip
            self.assertEqual([value for _, _, part in found for value in part.values["c9"]], many.values["c9"])
            if type(self.store) is SqliteStore:
                for table in ("fresh", "chunks"):
                    (most,) = self.shell().execute(f"SELECT max(length(data)) FROM {table}").fetchone()
                    self.assertLess(most or 0, 200_000)
            self.compact(filed)

    def test_samples_on_the_edges_of_hours_are_read_once(self):
        times = [self.NOON + n * self.HOUR // 2 for n in range(-4, 5)]
        filed = self.put(*times)
        noon, hour = self.NOON, self.HOUR
        for _ in range(2):
            for limit in (-1, 1, 2, 3, 8, 9):
                found = [point.time_ms for point in self.store.points("a", 0, FAR_MS, limit)]
                self.assertEqual(found, times if limit < 0 else times[-limit:])
            for from_ms, to_ms in ((noon, noon + hour), (noon - 1, noon + 1), (times[0], times[-1])):
                inside = [time_ms for time_ms in times if from_ms <= time_ms < to_ms]
                self.assertEqual([row[0] for row in self.read_by_column(from_ms, to_ms)], inside)
                self.assertEqual([point.time_ms for point in self.store.points("a", from_ms, to_ms, -1)], inside)
            self.compact(filed)

    def check_buckets(self, inside, from_ms, to_ms):
        if to_ms <= from_ms:
            return
        values = {}
        for time_ms, _, _, by_name, _ in inside:
            if by_name.get("t") is not None:
                values.setdefault((time_ms - from_ms) * 7 // (to_ms - from_ms), []).append(by_name["t"])
        found = self.store.downsample("a", "t", from_ms, to_ms, 7)
        self.assertEqual(
            [(b.place, b.values, b.low, b.high) for b in found],
            [(place, len(some), min(some), max(some)) for place, some in sorted(values.items())],
        )
        several = self.store.downsample_several("a", from_ms, to_ms, 7, ("l", "t", "nothing"))
        self.assertEqual(several, {
            sensor: self.store.downsample("a", sensor, from_ms, to_ms, 7) for sensor in ("l", "t", "nothing")
        })  # fmt: skip
        for b in found:
            self.assertAlmostEqual(b.mean, statistics.fmean(values[b.place]), 9)
        if type(self.store) is not MemoryStore:
            together = self.store.downsample_all("a", from_ms, to_ms, 7, {"t", "nothing"})
            self.assertEqual([b[:4] for b in together.get("t", [])], [b[:4] for b in found])
            self.assertNotIn("nothing", together)

    def test_pending_log_entries_of_a_random_history_are_complete(self):
        taken = self.history(random.Random(12))
        self.put_history(taken)
        owed = [(logged.epoch, one.seq, one.time_ms, one.values) for logged in self.store.logged_after(0)
                for one in logged.items[0]]  # fmt: skip
        for epoch in (E1, E2):
            self.assertEqual(
                [row[1:] for row in owed if row[0] == epoch],
                [(one.seq, one.time_ms, one.values) for code, one in taken if code == epoch],
            )

    def test_filing_numbers_are_never_reused(self):
        last = file(self.store, batch(1, 3), gap(4, 5), batch(6, 7))
        self.compact(last)
        self.reopen()
        self.assertEqual(list(self.store.logged_after(0 if type(self.store) is MemoryStore else last)), [])
        self.assertEqual(file(self.store, batch(8, 8)), last + 1)
        self.assertEqual(file(self.store, gap(9, 9)), last + 2)
        self.reopen()
        with self.assertRaises(ZeroDivisionError), self.store.writing(()):
            self.store.put([], 0, LogMark("x.csv", 1, 2, 3))
            raise ZeroDivisionError
        self.assertEqual(file(self.store, batch(10, 10)), last + 3)

    # --- statistics

    HOUR = SPANS_MS[-1]
    NOON = 1_795_003_200_000  # the end of an hour

    def put(self, *times_ms, first=1, values=None, log=None, node="a"):
        """Store samples with these times and the values 1, 2, 3, ... Return the last filing number."""
        made = [sample(first + n, (values or range(1, 1000))[n], time_ms) for n, time_ms in enumerate(times_ms)]
        return file(
            self.store,
            Batch(node, OUTBOX, E1, 0, SampleBatch.of(made), None, {"temperature": "°C"}, print, print),
            log=log,
        )

    def log_all(self, filed):
        return LogMark("a.csv", 1, 0, filed)

    def run_in(self, job):
        with self.store.writing(()):
            return job()

    def sum_up(self, before_ms=1 << 60):
        """Do all work of a MaintenanceWorker."""
        taker = MaintenanceWorker(self.store, Direct(self.store), FakeClock(before_ms))
        while taker.work():
            pass

    def windows(self, before_ms=1 << 60):
        return sorted((w.node, w.span_ms, w.end_ms, w.is_late) for w in self.store.dirty_windows(before_ms, 1000))

    def test_windows_of_stored_samples_are_dirty(self):
        noon, ten = self.NOON, SPANS_MS[0]
        self.put(noon - 2, noon - 1, noon)
        expected = [("a", span, noon + plus * span, False) for span in SPANS_MS for plus in (0, 1)]
        self.assertEqual(self.windows(), expected)
        self.assertEqual(self.windows(noon + 1), [("a", span, noon, False) for span in SPANS_MS])
        self.reopen()
        self.assertEqual(self.windows(), expected)
        self.assertEqual(len(self.store.dirty_windows(1 << 60, 3)), 3)
        self.assertEqual(ten, 600_000)

    def test_windows_include_their_start_and_exclude_their_end(self):
        noon = self.NOON
        self.put(noon - SPANS_MS[0] - 1, noon - SPANS_MS[0], noon - 1, noon, values=[1, 2, 4, 8])
        self.sum_up()
        self.assertEqual(self.windows(), [])
        ten = self.store.summaries("a", "temperature", SPANS_MS[0], noon - SPANS_MS[0], noon)
        self.assertEqual([(s.end_ms, s.values, s.low, s.high, s.mean) for s in ten], [(noon, 2, 2, 4, 3.0)])
        hours = self.store.summaries("a", "temperature", self.HOUR, 0, 1 << 60)
        self.assertEqual([(s.end_ms, s.values) for s in hours], [(noon, 3), (noon + self.HOUR, 1)])
        self.assertEqual(self.store.summaries("a", "nothing", self.HOUR, 0, 1 << 60), [])

    def test_samples_added_during_a_rollup_leave_the_window_dirty(self):
        self.put(self.NOON)
        windows = self.store.dirty_windows(1 << 60, 10)
        self.put(self.NOON, first=2, values=[9])
        for window in windows:
            self.run_in(lambda window=window: self.store.replace_rollups(window, {}))
        self.assertEqual(len(self.windows()), 2)
        self.sum_up()
        self.assertEqual(self.windows(), [])
        self.assertEqual(self.store.summaries("a", "temperature", self.HOUR, 0, 1 << 60)[0].values, 2)

    def test_transaction_that_raises_marks_no_window_dirty(self):
        with self.assertRaises(KeyError), self.store.writing(()):
            epoch_commit = EpochCommit("a", OUTBOX, E1, NOTHING)
            epoch_commit.add(batch(1, 1), 0)
            self.store.put([epoch_commit], 1, None)
            raise KeyError
        self.assertEqual(self.windows(), [])
        self.put(sample(1).time_ms)
        self.assertEqual(len(self.windows()), 2)

    def test_rollups_with_late_repeated_and_missing_data_equal_a_recount(self):
        chance = random.Random(5)
        taken = []
        for seq in range(1, rounds("PIGEONPOST_TEST_LATE_SAMPLES", 150, 400)):
            time_ms = self.NOON + chance.choice((-1, 1)) * chance.randrange(3 * self.HOUR)
            value = chance.choice((None, chance.randrange(5), chance.uniform(-1e6, 1e6)))
            taken.append((time_ms, value))
            file(
                self.store,
                Batch("a", OUTBOX, E1, 0, SampleBatch.of([sample(seq, value, time_ms)]), None, {}, print, print),
            )
            if chance.random() < 0.1:
                self.sum_up()
        self.sum_up()
        for span in SPANS_MS:
            by_end = {}
            for time_ms, value in taken:
                if value is not None:
                    by_end.setdefault(window_end(time_ms, span), []).append(value)
            found = self.store.summaries("a", "temperature", span, 0, 1 << 60)
            self.assertEqual([s.end_ms for s in found], sorted(by_end))
            for one in found:
                values = by_end[one.end_ms]
                self.assertEqual((one.values, one.low, one.high), (len(values), min(values), max(values)))
                self.assertEqual((one.median, one.mode), (statistics.median(values), min(statistics.multimode(values))))
                self.assertAlmostEqual(one.mean, statistics.fmean(values), delta=1e-9 * max(map(abs, values)))
                self.assertAlmostEqual(one.deviation, statistics.pstdev(values), delta=1e-6)

    def test_buckets_from_rollups_equal_those_from_samples(self):
        times = [self.NOON + n * 60_000 for n in range(600)]
        self.put(*times)
        ask = "a", "temperature", self.NOON, self.NOON + 10 * self.HOUR
        for late, count in enumerate((1, 5, 10, 20, 60, 200), 601):
            plain = self.columns_of(*ask, count)
            self.sum_up(self.NOON + 5 * self.HOUR)  # half of the samples
            self.assertEqual(self.columns_of(*ask, count), plain)
            self.sum_up()
            self.assertEqual(self.columns_of(*ask, count), plain)
            several = self.store.downsample_several("a", *ask[2:], count, ("temperature", "light"))
            self.assertEqual(several, {
                sensor: self.store.downsample("a", sensor, *ask[2:], count) for sensor in ("temperature", "light")
            })  # fmt: skip
            self.put(self.NOON + 3 * self.HOUR + late, first=late, values=[5])  # one sample arrives late
        shifted = "a", "temperature", self.NOON + 123_456, self.NOON + 9 * self.HOUR + 654_321
        self.assertEqual(sum(c.values for c in self.store.downsample(*shifted, 3)),
                         sum(c.values for c in self.store.downsample(*shifted, 5000)))  # fmt: skip

    def columns_of(self, *ask):
        return [(c.place, c.values, c.low, c.high, round(c.mean, 6)) for c in self.store.downsample(*ask)]

    # --- samples of one epoch in the order of their sequence numbers

    def seqs_after(self, after, most=100, epoch=E1, node="a"):
        found = self.store.batches_of_epoch(node, epoch, after, most)
        self.assertEqual({(one.node, one.epoch) for one in found}, {(node, epoch)} if found else set())
        return [seq for one in found for seq in range(one.samples.seq, one.samples.last + 1)]

    def test_marks_of_all_epochs_are_returned_with_their_outboxes(self):
        self.assertEqual(self.store.epoch_marks(), {})
        file(self.store, batch(1, 3), gap(4, 6), batch(1, 1, epoch=E2), batch(1, 2, node="b"))
        marks = {("a", E1): (6, OUTBOX), ("a", E2): (1, OUTBOX)}
        self.assertEqual(self.store.epoch_marks(), {**marks, ("b", E1): (2, OUTBOX)})
        self.change(lambda: self.store.rename("b", "c", 1000))
        self.assertEqual(self.store.epoch_marks(), {**marks, ("c", E1): (2, OUTBOX)})

    def test_samples_of_an_epoch_are_read_from_any_sequence_number(self):
        file(self.store, batch(1, 3), gap(4, 6), batch(7, 9), batch(1, 5, epoch=E2))
        file(self.store, batch(10, 12))
        for after in range(14):
            with self.subTest(after=after):
                self.assertEqual(self.seqs_after(after), [seq for seq in (1, 2, 3, *range(7, 13)) if seq > after])
        self.assertEqual(self.seqs_after(1, 4), [2, 3, 7, 8])
        self.assertEqual(self.seqs_after(3, 1), [7])
        self.assertEqual((self.seqs_after(0, node="x"), self.seqs_after(0, epoch="x")), ([], []))

    def test_samples_of_an_epoch_have_their_values_and_times(self):
        late = [sample(3, 30, time_ms=self.NOON - 86_400_000), sample(4, None, time_ms=self.NOON)]
        file(self.store, batch(1, 2), *wrapped(late), *wrapped([Sample(5, 6, 7, {"other": 1}, {}, "unset")]))
        found = [
            (one.seq, one.time_ms, one.values, one.clock)
            for stored in self.store.batches_of_epoch("a", E1, 1, 100)
            for one in stored.samples
        ]
        self.assertEqual(found, [
            (2, sample(2).time_ms, sample(2).values, ""), (3, self.NOON - 86_400_000, late[0].values, ""),
            (4, self.NOON, {"temperature": None, "light": 4}, ""), (5, 6, {"other": 1}, "unset"),
        ])  # fmt: skip

    def test_compacted_and_new_samples_of_an_epoch_are_read_in_order(self):
        for first in range(1, 41, 4):  # an hour has several rows, and late samples are between them
            filed = file(self.store, *wrapped([
                sample(seq, time_ms=self.NOON + (-1 if seq % 3 == 0 else seq // 10) * 3_600_000 + seq)
                for seq in range(first, first + 4)
            ]))  # fmt: skip
        self.compact(filed)
        file(self.store, batch(41, 44))
        file(self.store, batch(45, 45))
        for after in (0, 1, 7, 39, 40, 41, 44, 45):
            for most in (1, 3, 100):
                with self.subTest(after=after, most=most):
                    self.assertEqual(self.seqs_after(after, most), list(range(after + 1, 46))[:most])

    def test_random_histories_are_read_by_epoch(self):
        chance = random.Random(12)
        taken = self.history(chance)
        filed = self.put_history(taken)
        for _ in range(2):
            for epoch in (E1, E2):
                wanted = [(one.seq, one.time_ms, one.values, one.clock) for code, one in taken if code == epoch]
                found, after = [], 0
                while part := self.store.batches_of_epoch("a", epoch, after, chance.choice((1, 5, 40))):
                    found += [
                        (one.seq, one.time_ms, one.values, one.clock) for stored in part for one in stored.samples
                    ]
                    after = found[-1][0]
                self.assertEqual(found, wanted)
            self.compact(filed)

    def test_expired_samples_of_an_epoch_are_skipped(self):
        filed = self.put(*(self.NOON + n * self.HOUR for n in range(3)))
        self.put(self.NOON + 3 * self.HOUR, first=4, log=self.log_all(filed))
        self.sum_up()
        self.run_in(lambda: self.store.delete_expired(self.NOON + 2 * self.HOUR, 100))
        self.assertEqual(self.seqs_after(0), [3, 4])
        self.assertEqual(self.store.epoch_marks()["a", E1].seq, 4)

    # --- deletion of expired samples

    def test_only_logged_and_rolled_up_samples_are_deleted(self):
        hour = self.HOUR
        filed = self.put(*(self.NOON - n * hour for n in range(4)))
        self.assertEqual(self.run_in(lambda: self.store.delete_expired(self.NOON + hour, 100)), 0)
        self.sum_up()
        self.assertEqual(self.run_in(lambda: self.store.delete_expired(self.NOON + hour, 100)), 0)
        self.put(self.NOON + hour, first=5, log=self.log_all(filed))
        self.assertEqual(self.run_in(lambda: self.store.delete_expired(self.NOON - hour, 100)), 2)
        self.assertEqual([p.time_ms for p in self.store.points("a", 0, 1 << 60, 10)],
                         [self.NOON - hour, self.NOON, self.NOON + hour])  # fmt: skip
        node = self.store.nodes()[0]
        self.assertEqual((list(self.store.verify()), node["samples"]), ([], 5))
        self.assertEqual((node["forgotten"], node["kept_from_ms"]), (2, self.NOON - hour))
        self.assertEqual(len(self.store.summaries("a", "temperature", hour, 0, 1 << 60)), 4)

    def test_deletion_proceeds_in_steps_of_whole_hours(self):
        hour = self.HOUR
        filed = self.put(*(self.NOON - 1 - n * hour - k for n in range(4) for k in range(5 - n)))  # 5, 4, 3, 2
        self.put(self.NOON + hour, first=15, log=self.log_all(filed))
        self.sum_up()
        gone = [self.run_in(lambda: self.store.delete_expired(self.NOON + 1, 4)) for _ in range(5)]
        self.assertEqual(gone, [2, 3, 4, 5, 0])
        self.assertEqual(list(self.store.verify()), [])

    def test_late_sample_between_two_deletions_is_counted_once(self):
        times = [self.NOON - 1 - n * 60_000 for n in range(10)]
        filed = self.put(*times, values=range(10))
        self.sum_up()
        self.put(self.NOON + self.HOUR, first=11, log=self.log_all(filed))
        self.sum_up()
        self.run_in(lambda: self.store.delete_expired(self.NOON + 1, 4))
        filed = self.put(self.NOON - 500, first=12, values=[100])
        self.put(self.NOON + self.HOUR, first=13, log=self.log_all(filed))
        self.sum_up()
        (found,) = self.store.summaries("a", "temperature", self.HOUR, 0, self.NOON)
        self.assertEqual((found.values, found.high), (11, 100))

    def test_late_sample_after_the_deletion_is_merged_into_the_rollups(self):
        filed = self.put(*(self.NOON - 1 - n * 1000 for n in range(10)), values=range(10))
        self.sum_up()
        self.put(self.NOON + self.HOUR, first=11, log=self.log_all(filed))
        self.sum_up()
        self.assertEqual(self.run_in(lambda: self.store.delete_expired(self.NOON + 1, 100)), 10)
        filed = self.put(self.NOON - 500, self.NOON - 1_200_000, first=12, values=[100, 200])
        self.assertEqual({late for _, _, _, late in self.windows()}, {True})
        self.sum_up()  # they are not in the log yet
        self.assertEqual(len(self.windows()), 3)
        self.put(self.NOON + self.HOUR, first=14, log=self.log_all(filed))
        self.sum_up()
        self.assertEqual(self.windows(), [])
        (hour,) = self.store.summaries("a", "temperature", self.HOUR, 0, self.NOON)
        values = [*range(10), 100, 200]
        self.assertEqual((hour.values, hour.low, hour.high), (12, 0, 200))
        self.assertAlmostEqual(hour.mean, statistics.fmean(values))
        self.assertAlmostEqual(hour.deviation, statistics.pstdev(values))
        ten = self.store.summaries("a", "temperature", SPANS_MS[0], 0, self.NOON)
        self.assertEqual([(s.values, s.high) for s in ten], [(1, 200), (11, 100)])
        self.assertEqual(len(self.store.points("a", 0, self.NOON + 1, 10)), 0)
        self.assertEqual(list(self.store.verify()), [])

    def test_charts_contain_late_and_deleted_samples(self):
        """This also applies before a late sample is merged, which waits for the log and for nodes that catch up."""
        hour = self.HOUR
        filed = self.put(*(self.NOON - hour + n * 1000 for n in range(900)))
        self.put(self.NOON + hour, first=901, log=self.log_all(filed))
        self.sum_up()
        self.assertEqual(self.run_in(lambda: self.store.delete_expired(self.NOON + 1, 10_000)), 900)
        filed = self.put(self.NOON - hour + 500, self.NOON - 1, first=902, values=[5000, 6000])
        ask = "a", "temperature", self.NOON - 2 * hour, self.NOON

        def charts():
            return [[(c.place, c.values, c.high) for c in self.store.downsample(*ask, count)] for count in (2, 12, 120)]

        whole, wide = [(1, 902, 6000)], [(6, 601, 5000), (7, 300, 900), (11, 1, 6000)]
        self.assertEqual(charts(), [whole, wide, [(60, 601, 5000), (70, 300, 900), (119, 1, 6000)]])
        self.put(self.NOON + hour, first=904, log=self.log_all(filed))
        self.sum_up()
        self.assertEqual(self.store.points("a", 0, self.NOON, 10), [])
        self.assertEqual(charts(), [whole, wide, [(60, 601, 5000), (70, 300, 900), (110, 1, 6000)]])

    def test_samples_before_1970_are_rolled_up_and_do_not_block_deletion(self):
        """The clock was never set. If no samples of a node were deleted, these samples are not late."""
        hour = self.HOUR
        early = -1, -hour, -SPANS_MS[0] // 2
        filed = self.put(*early, self.NOON - 1)
        filed = self.put(self.NOON + hour, first=5, log=self.log_all(filed))
        self.sum_up(self.NOON + 2 * hour)
        self.assertEqual(self.windows(self.NOON), [])
        self.assertEqual([p.time_ms for p in self.store.points("a", -FAR_MS, 0, 10)], sorted(early))
        (found,) = self.store.summaries("a", "temperature", hour, -FAR_MS, 0)
        self.assertEqual((found.end_ms, found.values), (0, 3))
        fine = self.store.downsample("a", "temperature", -hour, 0, 3600)  # each one in a separate second
        self.assertEqual([(c.place, c.values) for c in fine], [(0, 1), (3300, 1), (3599, 1)])
        self.assertEqual(self.run_in(lambda: self.store.delete_expired(self.NOON + hour, 100)), 4)
        self.assertEqual(list(self.store.verify()), [])

    def test_random_commits_are_consistent(self):
        chance = random.Random(7)
        marks = {}
        for _ in range(rounds("PIGEONPOST_TEST_RANDOM_COMMITS", 100, 300)):
            parts = []
            for _ in range(chance.randint(1, 4)):
                node, epoch = chance.choice("ab"), chance.choice((E1, E2))
                first = marks.get((node, epoch), 0) + 1
                last = first + chance.randint(0, 30)
                marks[node, epoch] = last
                parts.append((batch if chance.random() < 0.9 else gap)(first, last, node=node, epoch=epoch))
            file(self.store, *parts)
        for (node, epoch), last in marks.items():
            self.assertEqual(self.store.marks(node, OUTBOX, [epoch])[1][epoch].seq, last)
        self.assertEqual(list(self.store.verify()), [])


class SqliteTest(StoreContract, unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        super().setUp()

    def make(self):
        return SqliteStore(self.folder)

    def shell(self):
        db = sqlite3.connect(os.path.join(self.folder, DATABASE), isolation_level=None, timeout=0)
        self.addCleanup(db.close)
        return db

    def test_connection_that_cannot_read_the_file_is_closed(self):
        folder, made, connect = temp_folder(self), [], SqliteStore._connect
        with open(os.path.join(folder, DATABASE), "wb") as file:
            file.write(b"no database" * 100)

        def note(*place, **how):
            made.append(connect(*place, **how))
            return made[-1]

        with mock.patch.object(SqliteStore, "_connect", staticmethod(note)), self.assertRaises(StoreDamaged):
            SqliteStore(folder, look_only=True)
        for db in made:
            with self.assertRaisesRegex(sqlite3.ProgrammingError, "closed"):
                db.execute("SELECT 1")
        self.assertTrue(made)

    def test_view_readings_is_readable(self):
        file(self.store, batch(1, 1))
        rows = self.shell().execute("SELECT * FROM readings").fetchall()
        time_ms = 1_795_000_001_000
        when = "2026-11-18T11:06:41.000Z", time_ms, time_ms, time_ms
        self.assertEqual(rows, [("a", "temperature", 20.5, "°C", *when), ("a", "light", 1, "", *when)])

    def test_texts_of_sensor_errors_are_stored(self):
        file(self.store, batch(1, 1, temperature=None, errors={"temperature": "no response"}))
        self.assertEqual(
            self.shell().execute("SELECT sensor, text FROM failures").fetchall(), [("temperature", "no response")]
        )

    def test_verify_reports_duplicates_losses_and_wrong_marks(self):
        file(self.store, batch(1, 9), batch(1, 9, node="b"), batch(1, 9, node="c"))
        db = self.shell()
        columns = "node, low, epoch, first, count, high, step, shape, clock, arrived, crc, data"
        db.execute(f"INSERT INTO chunks ({columns}) SELECT {columns} FROM fresh WHERE node = 1")
        db.execute("DELETE FROM fresh WHERE node = 2")
        db.execute("UPDATE epochs SET seq = 8 WHERE node = 3")
        found = sorted(self.store.verify())
        self.assertEqual(len(found), 3, found)
        self.assertIn("node a", found[0])
        self.assertIn("9 samples stored twice", found[0])
        self.assertIn("node b", found[1])
        self.assertIn("node c", found[2])

    def test_epoch_with_more_chunks_than_are_listed_is_read_in_order(self):
        filed = 0
        for seq in range(1, 41):
            filed = file(self.store, *wrapped([sample(seq, time_ms=self.NOON + seq * self.HOUR)]))
        self.compact(filed)
        file(self.store, batch(41, 43))
        with mock.patch.object(runs, "_CHUNKS_TOGETHER", 3):
            seqs, after = [], 0
            while part := self.seqs_after(after):
                self.assertLessEqual(len(part), 6)
                seqs += part
                after = part[-1]
        self.assertEqual(seqs, list(range(1, 44)))

    def test_next_chunks_of_an_epoch_are_found_in_the_index_of_their_node(self):
        plan = [row[-1] for row in self.shell().execute(f"EXPLAIN QUERY PLAN {runs.NEXT_CHUNKS}", (1, 1, 5, 9))]
        tables = [line for line in plan if "chunks" in line]
        self.assertEqual(tables, ["SEARCH chunks USING COVERING INDEX chunks_of_node (node=?)"] * 2)

    def test_locked_file_raises_not_stored_and_can_be_retried(self):
        other = self.shell()
        other.execute("BEGIN IMMEDIATE")
        self.store._db.execute("PRAGMA busy_timeout = 10")
        with self.assertRaises(NotStored):
            file(self.store, batch(1, 3))
        other.execute("ROLLBACK")
        file(self.store, batch(1, 3))
        self.assertEqual(list(self.store.verify()), [])

    def test_commit_on_a_full_disk_stores_nothing_and_can_be_retried(self):
        file(self.store, batch(1, 3))
        (pages,) = self.store._db.execute("PRAGMA page_count").fetchone()
        self.store._db.execute(f"PRAGMA max_page_count = {pages}")
        with self.assertRaises(NotStored):
            file(self.store, batch(4, 4000))
        self.assertEqual(self.store.marks("a", OUTBOX, [E1])[1][E1], HighWaterMark(3, 3000))
        self.store._db.execute("PRAGMA max_page_count = 1000000")
        file(self.store, batch(4, 4000))
        self.assertEqual(self.store.nodes()[0]["samples"], 4000)

    def test_removed_file_is_never_written_to(self):
        os.rename(os.path.join(self.folder, DATABASE), os.path.join(self.folder, "moved"))
        with self.assertRaises(DiskError) as caught:
            file(self.store, batch(1, 3))
        self.assertIn("removed", str(caught.exception))

    def test_node_with_many_shapes_has_correct_charts_and_does_not_slow_down_others(self):
        names = [f"c{k}" for k in range(9)]
        for seq in range(1, 301):
            values = {name: float(seq) for k, name in enumerate(names) if seq >> k & 1} | {"t": float(seq)}
            one = batch(seq, seq)
            file(self.store, *wrapped([one.samples[0]._replace(values=values)]))
        file(self.store, batch(1, 4, node="b"))
        start_ms = 1_795_000_000_000
        with mock.patch.object(shapes, "MOST_NAMES", 200):
            self.reopen()
            (found,) = self.store.downsample("a", "t", start_ms, start_ms + 301_000, 1)
            self.assertEqual((found.values, found.low, found.high, found.mean), (300, 1.0, 300.0, 150.5))
            (found,) = self.store.downsample("a", "c8", start_ms, start_ms + 301_000, 1)
            self.assertEqual((found.values, found.low), (45, 256.0))
            every = self.store.downsample_all("a", start_ms, start_ms + 301_000, 1, {"t", "c8"})
            self.assertEqual([every["t"][0].values, every["c8"]], [300, [found]])
            self.assertEqual([point.values["t"] for point in self.store.points("a", 0, FAR_MS, 400)][-1], 300.0)
            self.assertEqual(sum(1 for _ in stored_samples(self.store.every_batch())), 304)
            file(self.store, *(batch(seq, seq) for seq in range(301, 304)))
            self.assertLessEqual(sum(map(len, self.store._shape_names._names.values())), 200)
            with mock.patch.object(shapes.ShapeNames, "one", side_effect=AssertionError("looked up")) as one:
                self.store._shape_names._names.clear()
                with self.assertRaises(AssertionError):
                    self.store.downsample("b", "temperature", start_ms, start_ms + 10_000, 1)
                self.assertEqual(one.call_count, 1)

    def test_node_with_many_dirty_windows_does_not_delay_others(self):
        for node, count in (("a", 60), ("b", 1), ("c", 60), ("d", 2)):
            file(self.store, *(batch(n, n, node=node, time_ms=n * 7_200_000) for n in range(1, count + 1)))
        found = [window.node for window in self.store.dirty_windows(FAR_MS, 20)]
        self.assertEqual({node: found.count(node) for node in "abcd"}, {"a": 5, "b": 2, "c": 6, "d": 4})
        self.assertEqual(len(self.store.dirty_windows(FAR_MS, 1000)), 246)
        self.assertEqual(len(self.store.dirty_windows(FAR_MS, 3)), 3)
        self.assertEqual(self.store.dirty_windows(0, 3), [])

    def test_number_of_dirty_windows_in_memory_is_limited_and_none_is_lost(self):
        with (
            mock.patch.object(rollups, "MOST_WINDOWS", 10), mock.patch.object(rollups, "MOST_WINDOWS_IN_ALL", 15),
        ):  # fmt: skip
            self.reopen()
            start_ms = 1_795_000_200_000 // 3_600_000 * 3_600_000
            for seq in range(1, 41):
                file(self.store, *(batch(seq, seq, node=node, time_ms=start_ms + seq * 600_000) for node in "ab"))
            marks = self.store._marks
            self.assertLessEqual(marks._count, 15)
            self.assertEqual(marks._count, sum(map(len, marks._touched.values())))
            worker = MaintenanceWorker(self.store, Direct(self.store), FakeClock(start_ms + 100 * 3_600_000))
            while worker.work():
                pass
            self.assertEqual(self.store.dirty_windows(FAR_MS, 1000), [])
            for node in "ab":
                self.assertEqual(len(self.store.summaries(node, "temperature", 600_000, 0, FAR_MS)), 40)

    def test_last_samples_of_a_dense_hour_are_read_without_the_rest(self):
        times = list(range(self.NOON, self.NOON + self.HOUR, 100))  # ten per second, in nine rows
        one = SampleBatch(1, times, times, {"temperature": list(range(len(times)))})
        file(self.store, Batch("a", OUTBOX, E1, 0, one, None, {}, print, print))
        unpack = self.enterContext(mock.patch.object(runs, "unpack", wraps=runs.unpack))
        for limit, most in ((1, 4096), (1000, 4096), (5000, 3 * 4096)):
            unpack.reset_mock()
            found = self.store.points("a", self.NOON, FAR_MS, limit)
            self.assertEqual([point.time_ms for point in found], times[-limit:])
            self.assertLessEqual(sum(row.count for call in unpack.call_args_list for row in call.args[0]), most)

    def test_damaged_row_found_by_deletion_is_reported(self):
        filed = self.put(self.NOON - 1)
        self.put(self.NOON + self.HOUR, first=2, log=self.log_all(filed))
        self.sum_up()
        self.shell().execute("UPDATE chunks SET count = 'x' WHERE first = 1")
        with self.assertLogs(), self.assertRaisesRegex(StoreDamaged, "a row has a form that Pigeonpost never writes"):
            self.run_in(lambda: self.store.delete_expired(self.NOON + self.HOUR, 10))

    def test_sqlite_library_that_is_too_old_is_refused(self):
        self.enterContext(mock.patch.multiple(sqlite3, sqlite_version_info=(3, 37, 2), sqlite_version="3.37.2"))
        with self.assertRaisesRegex(SettingsError, "needs SQLite 3.38 or newer; this Python has 3.37.2"):
            self.make()

    def test_newer_file_is_refused_with_the_reason(self):
        self.shell().execute("PRAGMA user_version = 99")
        with self.assertRaises(SettingsError) as caught:
            SqliteStore(self.folder)
        self.assertIn("newer", str(caught.exception))

    def test_concurrent_readers_see_consistent_data(self):
        stop, wrong = threading.Event(), []

        def look():
            while not stop.is_set():
                top, marks = self.store.marks("a", OUTBOX, [E1])
                count = sum(1 for _ in self.store.points("a", 0, 1 << 60, 10_000))
                if marks and not top == marks[E1].seq <= count:
                    wrong.append((top, marks, count))

        readers = [threading.Thread(target=look) for _ in range(3)]
        for reader in readers:
            reader.start()
        for first in range(1, 20 * rounds("PIGEONPOST_TEST_COMMITS_BESIDE_READERS", 20, 50) + 1, 20):
            file(self.store, batch(first, first + 19))
        stop.set()
        for reader in readers:
            reader.join(LIMIT_S)
        self.assertEqual(wrong, [])

    def test_many_readers_share_few_connections(self):
        """Each connection has two open files and pages in memory, so a thousand nodes must not open a thousand."""
        opened, asked = [], threading.Barrier(30)
        connect = self.store._connect

        def look():
            asked.wait(LIMIT_S)
            for _ in range(10):
                with self.store._reading():
                    time.sleep(0.001)  # so that the threads overlap

        def open_one(place, **uri):
            opened.append(place)
            return connect(place, **uri)

        with mock.patch.object(self.store, "_connect", open_one):
            readers = [threading.Thread(target=look) for _ in range(30)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join(LIMIT_S)
        self.assertLessEqual(1, len(opened))
        self.assertLessEqual(len(opened), 8)

    def test_file_that_is_not_a_database_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, DATABASE), "wb") as damaged:
                damaged.write(b"not a database, but something of the same name" * 100)
            with self.assertRaises(StoreDamaged):
                SqliteStore(folder)

    def test_database_uses_wal_and_full_synchronisation(self):
        self.assertEqual(self.store._db.execute("PRAGMA journal_mode").fetchone(), ("wal",))
        self.assertEqual(self.store._db.execute("PRAGMA synchronous").fetchone(), (2,))

    def test_readers_cannot_write(self):
        with self.store._reading() as db, self.assertRaises(sqlite3.OperationalError):
            db.execute("DELETE FROM fresh")

    def test_folder_name_may_contain_special_characters(self):
        with tempfile.TemporaryDirectory(prefix="a b#?%&é") as folder:
            store = SqliteStore(folder)
            self.addCleanup(store.close)
            file(store, batch(1, 3))
            self.assertEqual(store.nodes()[0]["samples"], 3)


class MemoryTest(StoreContract, unittest.TestCase):
    """Contract of the store in memory, for the simulation. It makes charts from samples only, and has no rows."""

    test_charts_contain_late_and_deleted_samples = None
    test_rows_of_nodes_with_many_sensors_stay_small = None

    def setUp(self):
        self.kept = MemoryStore()
        super().setUp()

    def make(self):
        return self.kept


class PiecesTest(unittest.TestCase):
    def test_adjacent_dirty_windows_are_read_together(self):
        hour = SPANS_MS[1]
        dirty = [1, 2, 3, 5, 8, 9]  # ends of the windows

        def ends(span_ms, after_ms, until_ms):
            self.assertEqual((span_ms, after_ms, until_ms), (hour, 0, 9 * hour))
            return [end * hour for end in dirty]

        found = pieces_to_read(-5, 9 * hour + 5, 2, 0, ends)
        self.assertEqual(found, [
            (0, -5, 3 * hour), (hour, 3 * hour, 4 * hour), (0, 4 * hour, 5 * hour), (hour, 5 * hour, 7 * hour),
            (0, 7 * hour, 9 * hour + 5),
        ])  # fmt: skip


if __name__ == "__main__":
    unittest.main()
