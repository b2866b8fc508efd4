"""Reading and deleting rows of samples in PostgreSQL."""

import unittest
from unittest import mock

from pigeonpost.link.samples import SampleBatch, batches_of
from pigeonpost.storage.models import HOUR_MS, LogMark, Window
from protocol import Batch, Sample
from tests.libraries import test_postgres as base
from tests.libraries.test_postgres import FAR, PostgresCase
from tests.storage.test_contract import E1, E2, OUTBOX, batch, file, gap


def setUpModule():
    base.setUpModule()


class BatchTest(PostgresCase):
    """Batches contain the same samples as single reads, and are as long as possible."""

    def read(self, from_ms=0, to_ms=FAR, node="a"):
        found = list(self.store.stored_batches(node, from_ms, to_ms))
        self.assertEqual(
            sorted((one.epoch, sample.seq, sample.time_ms, sample.values, sample.clock) for one in found
                   for sample in one.samples),
            sorted((p.epoch, p.seq, p.time_ms, p.values, p.clock)
                   for p in self.store.points(node, from_ms, to_ms, FAR)),
        )  # fmt: skip
        return [(one.epoch, one.samples.seq, one.samples.last) for one in found]

    def put(self, *samples, epoch=E1):
        for made in batches_of(samples):
            file(self.store, Batch("a", OUTBOX, epoch, 0, made, None, {}, print, print))

    def test_long_results_are_read_in_pages(self):
        file(self.store, batch(1, 25), batch(1, 5, node="b"), batch(1, 5, epoch=E2, time_ms=9))
        with mock.patch("pigeonpost.storage.postgres.queries._AT_ONCE", 10):
            self.assertEqual(self.read(to_ms=9), [])
            self.assertEqual(self.read(from_ms=10), [(E1, 1, 10), (E1, 11, 20), (E1, 21, 25)])
            self.assertEqual(self.read(from_ms=9, to_ms=10), [(E2, 1, 5)])
            everything = [(one.node, one.epoch, len(one.samples)) for one in self.store.every_batch()]
        self.assertEqual(everything, [("a", E2, 5), ("a", E1, 5), ("a", E1, 10), ("a", E1, 10), ("b", E1, 5)])

    def test_last_page_may_be_full(self):
        file(self.store, batch(1, 20))
        with mock.patch("pigeonpost.storage.postgres.queries._AT_ONCE", 10):
            self.assertEqual(self.read(), [(E1, 1, 10), (E1, 11, 20)])

    def test_batches_are_divided_where_sensors_clock_or_numbers_change(self):
        one = Sample(1, 1000, 1000, {"x": 1.5, "y": None}, {}, "")
        self.put(one, one._replace(seq=2, time_ms=2000), one._replace(seq=3, time_ms=3000, clock="unset"),
                 one._replace(seq=4, time_ms=4000, clock="server"),
                 one._replace(seq=5, time_ms=5000, values={"x": -0.0}))  # fmt: skip
        file(self.store, gap(6, 7))
        self.put(one._replace(seq=8, time_ms=6000, values={"x": 2**63 - 1}))
        parts = [(E1, 1, 2), (E1, 3, 3), (E1, 4, 4), (E1, 5, 5)]
        self.assertEqual(self.read(to_ms=6000), parts)
        self.assertEqual(self.read(), [*parts, (E1, 8, 8)])

    def test_batches_are_divided_at_a_gap(self):
        file(self.store, batch(1, 3), gap(4, 5), batch(6, 8))
        self.assertEqual(self.read(), [(E1, 1, 3), (E1, 6, 8)])

    def test_samples_with_one_time_are_read_in_pages(self):
        file(self.store, batch(1, 15, time_ms=9), batch(1, 15, epoch=E2, time_ms=9))
        with mock.patch("pigeonpost.storage.postgres.queries._AT_ONCE", 10):
            self.assertEqual(self.read(), [(E1, 1, 10), (E1, 11, 15), (E2, 1, 5), (E2, 6, 15)])

    def test_clock_steps_and_concurrent_epochs_are_read(self):
        file(self.store, batch(1, 3, time_ms=5000), batch(4, 6, time_ms=1000), batch(1, 4, epoch=E2, time_ms=5000))
        self.assertEqual(self.read(), [(E1, 1, 6), (E2, 1, 4)])
        one = Sample(7, 7000, 1000, {"x": 1}, {}, "")
        self.put(*[one._replace(seq=7 + n, time_ms=7000 + n * 10) for n in range(5)])
        self.put(*[one._replace(seq=5 + n, time_ms=7001 + n * 10) for n in range(5)], epoch=E2)
        self.assertEqual(self.read(from_ms=6000), [(E1, 7, 11), (E2, 5, 9)])

    def test_pending_log_entries_are_returned_unchanged(self):
        one = Sample(1, 3000, 1000, {"x": 1.25, "y": None}, {}, "unset")
        self.put(one, one._replace(seq=2, time_ms=1000), one._replace(seq=3, time_ms=2000))
        ((_, node, epoch, (owed,), *_),) = self.store.logged_after(0)
        self.assertEqual((node, epoch), ("a", E1))
        self.assertEqual(
            owed, SampleBatch(1, [3000, 1000, 2000], [], {"x": [1.25] * 3, "y": [None] * 3}, clock="unset")
        )

    def test_entry_of_an_older_version_is_in_the_order_of_its_log(self):
        one = Sample(1, 3000, 1000, {"x": 1.25}, {}, "")
        self.put(one, one._replace(seq=2, time_ms=2000, values={"y": 2}), one._replace(seq=3, time_ms=1000))
        base.DATABASE.do("DELETE FROM filings WHERE id > 1; UPDATE filings SET last = 3, low = 1000")
        (owed,) = self.store.logged_after(0)
        self.assertEqual([item.seq for item in owed.items], [1, 2, 3])


class ExpiryTest(PostgresCase):
    def test_hour_of_the_cutoff_is_kept_and_texts_of_errors_are_deleted(self):
        lost = {"errors": {"temperature": "broken"}, "temperature": None}
        file(self.store, batch(1, 1, time_ms=HOUR_MS, **lost), batch(2, 2, time_ms=2 * HOUR_MS, **lost))
        last = file(self.store)
        file(self.store, log=LogMark("one.csv", 1, 1, last))
        with self.store.writing(()):
            for window in self.store.dirty_windows(FAR, 9):
                self.store.replace_rollups(window, {})
        for before_ms, gone in ((2 * HOUR_MS - 1, 0), (2 * HOUR_MS, 1), (3 * HOUR_MS - 1, 0)):
            with self.store.writing(()):
                self.assertEqual(self.store.delete_expired(before_ms, 9), gone)
        self.assertEqual(base.DATABASE.do("SELECT seq FROM failures"), [(2,)])
        self.assertEqual(list(self.store.verify()), [])

    def test_late_sample_at_the_edge_of_an_hour_waits_for_its_log(self):
        file(self.store, batch(1, 1, time_ms=HOUR_MS))
        base.DATABASE.do(f"UPDATE nodes SET kept_from = {3 * HOUR_MS}")
        (change,) = {window.as_of for window in self.store.dirty_windows(FAR, 9)}
        window = Window("a", HOUR_MS, 2 * HOUR_MS, change, True)
        with self.store.writing(()):
            self.assertFalse(self.store.merge_late_rollups(window, {}))
        file(self.store, log=LogMark("one.csv", 1, 1, 1))
        with self.store.writing(()):
            self.assertTrue(self.store.merge_late_rollups(window, {}))
        self.assertEqual((self.store.points("a", 0, FAR, 9), self.store.nodes()[0]["forgotten"]), ([], 1))


if __name__ == "__main__":
    unittest.main()
