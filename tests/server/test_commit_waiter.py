"""Waiting for batches until they are committed, rejected or cancelled, for a limited time."""

import threading
from unittest import mock

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import NotStored, Unexpected
from pigeonpost.server import ingest
from pigeonpost.server.commit_waiter import CommitWaiter
from tests.server.test_ingest import E1, E2, IngestCase, batch, gap
from tests.support import LIMIT_S, wait_until


class WaiterCase(IngestCase):
    clock_type = Clock

    def setUp(self):
        super().setUp()
        self.waiter = CommitWaiter(self.ingestor, self.clock)

    def start(self):
        self.ingestor.start()
        self.addCleanup(self.ingestor.stop, LIMIT_S)

    def hang(self):
        """Block the writer in its next commit until the returned event is set. `submit` returns when it is blocked."""
        entered, go_on, put, submit = threading.Event(), threading.Event(), self.store.put, self.ingestor.submit

        def slow(*args):
            entered.set()
            go_on.wait(LIMIT_S)
            return put(*args)

        def until_in_hand(one, **more):
            taken = submit(one, **more)
            self.assertTrue(entered.wait(LIMIT_S))
            return taken

        self.enterContext(mock.patch.object(self.store, "put", slow))
        self.enterContext(mock.patch.object(self.ingestor, "submit", until_in_hand))
        self.addCleanup(go_on.set)
        return go_on


class WaitTest(WaiterCase):
    def test_last_of_several_batches_of_an_epoch_is_waited_for(self):
        for one in (batch(1, 2), batch(3, 4)):
            self.assertTrue(self.waiter.submit(one))
        first, last = self.ingestor._batches
        first.on_committed(E1, 2)
        self.assertFalse(self.waiter.wait(0.0))
        last.on_committed(E1, 4)
        self.assertTrue(self.waiter.wait(0.0))

    def test_each_node_and_epoch_is_waited_for(self):
        self.waiter.submit(batch(1, 5))
        self.ingestor.commit()
        for one in (batch(1, 3, node="other"), batch(1, 2, epoch=E2)):
            self.waiter.submit(one)
            self.assertFalse(self.waiter.wait(0.0), one)
            self.ingestor.commit()
            self.assertTrue(self.waiter.wait(0.0), one)

    def test_gap_is_waited_for(self):
        for one in (gap(1, 8), gap(9, 8, before=3)):
            self.waiter.submit(one)
            self.assertFalse(self.waiter.wait(0.0))
            self.ingestor.commit()
            self.assertTrue(self.waiter.wait(0.0))

    def test_samples_without_numbers_are_waited_for(self):
        for _ in range(2):
            unnumbered = batch(1, 1)
            self.waiter.submit(unnumbered._replace(samples=unnumbered.samples.numbered(0)))
            self.assertFalse(self.waiter.wait(0.0))
            self.ingestor.commit()
            self.assertTrue(self.waiter.wait(0.0))
        self.assertEqual(self.seqs(), [1, 2])

    def test_wait_without_batches_returns_immediately(self):
        self.assertTrue(self.waiter.wait(0.0))
        self.assertTrue(self.waiter.store([], 0.0))

    def test_rejection_is_raised(self):
        self.waiter.submit(batch(5, 6))
        self.ingestor.commit()
        with self.assertRaises(Unexpected):
            self.waiter.wait(0.0)

    def test_batch_that_the_ingestor_does_not_accept_is_not_waited_for(self):
        self.ingestor._buffer_samples = 1
        self.assertTrue(self.waiter.submit(batch(1, 2)))
        self.assertFalse(self.waiter.submit(batch(3, 4), limit_s=0.0))
        self.ingestor.commit()
        self.assertTrue(self.waiter.wait(0.0))

    def test_answer_may_arrive_before_submit_returns(self):
        real = self.ingestor.submit

        def at_once(one, **more):
            taken = real(one, **more)
            self.ingestor.commit()
            return taken

        with mock.patch.object(self.ingestor, "submit", at_once):
            self.assertTrue(self.waiter.store([batch(1, 2), batch(3, 3)], 0.0))


class CancelTest(WaiterCase):
    def test_last_batch_is_cancelled_first(self):
        cancelled = []
        for one in (batch(1, 2), batch(3, 4), batch(5, 6)):
            self.waiter.submit(one)
        with mock.patch.object(
            self.ingestor, "cancel", lambda one, real=self.ingestor.cancel: cancelled.append(one) or real(one)
        ):
            self.assertTrue(self.waiter.cancel())
        self.assertEqual([one.samples.seq for one in cancelled], [5, 3, 1])
        self.ingestor.commit()
        self.assertEqual(self.seqs(), [])
        self.assertTrue(self.waiter.wait(0.0))

    def test_committed_batch_is_not_cancelled(self):
        self.waiter.submit(batch(1, 2))
        self.ingestor.commit()
        self.assertFalse(self.waiter.cancel())
        self.assertEqual(self.seqs(), [1, 2])

    def test_batch_in_the_current_commit_is_not_cancelled(self):
        self.start()
        go_on = self.hang()
        self.waiter.submit(batch(1, 2), urgent=True)
        self.waiter.submit(batch(3, 4))
        self.assertTrue(self.waiter.cancel())  # the second one
        self.assertFalse(self.waiter.cancel())
        go_on.set()
        self.assertTrue(self.waiter.wait(LIMIT_S))
        self.assertEqual(self.seqs(), [1, 2])

    def test_batches_of_other_clients_are_not_cancelled(self):
        self.submit(batch(1, 2))
        self.waiter.submit(batch(1, 3, node="other"))
        self.waiter.cancel()
        self.ingestor.commit()
        self.assertEqual(self.answers.acks, [(E1, 2)])


class StoreTest(WaiterCase):
    def test_all_batches_are_durable_on_return(self):
        self.ingestor.commit_s = 3600.0  # it does not wait for the regular commit
        self.start()
        self.assertTrue(self.waiter.store([batch(1, 2), gap(3, 7), batch(8, 9)], LIMIT_S))
        self.assertEqual(self.seqs(), [1, 2, 8, 9])

    def test_batches_are_not_stored_after_the_limit(self):
        self.assertFalse(self.waiter.store([batch(1, 2), batch(3, 4)], 0.01))
        self.ingestor.commit()
        self.assertEqual(self.seqs(), [])

    def test_no_batch_is_stored_if_the_queue_has_no_space_for_all(self):
        self.ingestor._buffer_samples = 2
        self.assertFalse(self.waiter.store([batch(1, 2), batch(3, 4)], 0.01))
        self.ingestor.commit()
        self.assertEqual(self.seqs(), [])

    def test_batches_are_cancelled_while_commits_fail(self):
        self.enterContext(mock.patch.object(ingest, "_RETRY_S", 0.02))
        with mock.patch.object(self.store, "put", side_effect=NotStored("full")), self.assertLogs("pigeonpost"):
            self.start()
            self.waiter.submit(batch(1, 2))
            wait_until(lambda: self.ingestor.fault, "the first attempt has failed")
            self.assertFalse(self.waiter.store([batch(3, 4)], 0.0))
        self.assertTrue(self.ingestor.flush(LIMIT_S))
        self.assertEqual(self.seqs(), [])

    def test_hole_is_raised(self):
        self.start()
        with self.assertRaises(Unexpected):
            self.waiter.store([batch(3, 4)], LIMIT_S)

    def test_batch_that_is_being_stored_at_the_limit_is_waited_for(self):
        self.start()
        go_on, cancel = self.hang(), self.ingestor.cancel

        def go_on_after(one):
            is_cancelled = cancel(one)
            go_on.set()
            return is_cancelled

        with mock.patch.object(self.ingestor, "cancel", go_on_after):
            self.assertTrue(self.waiter.store([batch(1, 2)], 0.0))
        self.assertEqual(self.seqs(), [1, 2])

    def test_batch_that_is_being_stored_is_not_waited_for_after_the_overtime(self):
        self.start()
        go_on = self.hang()
        self.assertFalse(self.waiter.store([batch(1, 2)], 0.0, overtime_s=0.02))
        go_on.set()
        self.assertTrue(self.ingestor.flush(LIMIT_S))
        self.assertEqual(self.seqs(), [1, 2])
