"""Ingest: samples are stored once and in order, and are acknowledged only when they are durable."""

import contextlib
import random
import tempfile
import threading
import unittest
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.core.errors import DiskError, NotStored
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.ingest import Ingestor
from pigeonpost.storage.models import HighWaterMark, Rollup, Window
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import IMPORTED, Batch, Sample
from tests.page_support import use_memory_disk
from tests.storage.test_contract import E1, E2, OUTBOX, batch, gap
from tests.support import LIMIT_S, rounds, wait_until


def setUpModule():
    use_memory_disk()


class Answers:
    """Recorder of acknowledgements and rejections."""

    def __init__(self):
        self.acks = []
        self.refusals = []
        self.changed = threading.Condition()

    def done(self, epoch, seq):
        with self.changed:
            self.acks.append((epoch, seq))
            self.changed.notify_all()

    def refused(self, error):
        with self.changed:
            self.refusals.append(error)
            self.changed.notify_all()

    def of(self, made):
        return made._replace(on_committed=self.done, on_rejected=self.refused)

    def wait_for(self, condition, limit_s=LIMIT_S):
        with self.changed:
            return self.changed.wait_for(condition, limit_s)


class IngestCase(unittest.TestCase):
    clock_type = FakeClock

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.clock = self.clock_type()
        self.answers = Answers()
        self.failures = []
        self.open()

    def open(self, **settings):
        self.store = SqliteStore(self.folder)
        self.addCleanup(self.store.close)
        self.log = CsvLog(self.folder, self.store, self.clock)
        self.addCleanup(self.log.close)
        self.log.start()
        self.ingestor = Ingestor(self.store, self.log, self.clock, failed=self.failures.append, **settings)

    def submit(self, *made):
        for one in made:
            self.ingestor.submit(self.answers.of(one))

    def seqs(self, node="a", epoch=E1):
        return sorted(point.seq for point in self.store.points(node, 0, 1 << 60, 100_000) if point.epoch == epoch)


class BufferTest(IngestCase):
    def test_gaps_and_samples_with_many_values_count_in_the_buffer(self):
        wide = batch(1, 1)._replace(samples=SampleBatch.of([Sample(1, 0, 0, {f"n{k}": 1 for k in range(400)}, {}, "")]))
        for one, room in ((batch(1, 1), 1000), (wide, 10), (gap(1, 1), 1000)):
            with self.subTest(room=room):
                self.ingestor = Ingestor(self.store, self.log, self.clock, buffer_samples=1000)
                taken = 0
                while self.ingestor.submit(one, limit_s=0.0):
                    taken += 1
                self.assertEqual(taken, room)


class CommitTest(IngestCase):
    def test_acknowledgement_follows_the_commit(self):
        self.submit(batch(1, 3))
        self.assertEqual((self.answers.acks, self.seqs()), ([], []))
        self.ingestor.commit()
        self.assertEqual((self.answers.acks, self.seqs()), ([(E1, 3)], [1, 2, 3]))
        self.assertEqual((self.ingestor._waiting, self.ingestor._waiting_of), (0, {}))

    def test_duplicate_batch_is_acknowledged_but_not_stored_again(self):
        self.submit(batch(1, 5))
        self.ingestor.commit()
        self.submit(batch(1, 3), batch(3, 7), batch(6, 7))
        self.ingestor.commit()
        self.assertEqual(self.answers.acks, [(E1, 5), (E1, 7)])
        self.assertEqual(self.seqs(), list(range(1, 8)))
        self.assertEqual((self.ingestor.stored, self.ingestor.repeated), (7, 8))
        self.assertEqual(len(self.log.last()), 7)

    def test_batches_after_a_hole_are_rejected(self):
        self.submit(batch(1, 5), batch(7, 9), batch(8, 9), batch(6, 6))
        self.ingestor.commit()
        self.assertEqual(self.seqs(), [1, 2, 3, 4, 5, 6])
        self.assertEqual([error.code for error in self.answers.refusals], ["expected", "expected"])
        self.assertIn("sample 6 of epoch", str(self.answers.refusals[0]))

    def test_gap_closes_a_hole(self):
        self.submit(batch(1, 5), gap(6, 8), batch(9, 9))
        self.ingestor.commit()
        self.assertEqual(self.answers.acks, [(E1, 9)])
        self.assertEqual(self.ingestor.marks("a", OUTBOX, [E1]), (9, {E1: HighWaterMark(9, 9000)}))

    def test_gap_that_overlaps_stored_samples_counts_only_the_missing_ones(self):
        self.submit(batch(1, 5))
        self.ingestor.commit()
        self.submit(gap(3, 8))
        self.ingestor.commit()
        self.assertEqual([(g["from"], g["to"]) for g in self.store.gaps(5)], [(6, 8)])
        self.submit(gap(2, 8))
        self.ingestor.commit()
        self.assertEqual(len(self.store.gaps(5)), 1)
        self.assertEqual(self.store.nodes()[0]["missing"], 3)
        self.assertEqual(list(self.store.verify()), [])

    def test_gap_of_older_epochs_is_recorded_once(self):
        self.submit(gap(1, 0, base=70, before=70))
        self.ingestor.commit()
        self.assertEqual(self.ingestor.marks("a", OUTBOX, [E1])[0], 70)

    def test_older_epochs_are_counted_once_if_a_gap_is_repeated(self):
        """The gap is sent by a session that ended before the commit, and by the next session."""
        self.submit(batch(1, 10))
        self.ingestor.commit()
        lost = gap(1, 86, epoch=E2, base=50, before=40)  # the running numbers 11 to 50 and 51 to 136 were overwritten
        self.submit(lost, lost)
        self.ingestor.commit()
        self.submit(lost)
        self.ingestor.commit()
        self.assertEqual([(g["from"], g["to"], g["before"]) for g in self.store.gaps(5)], [(1, 86, 40)])
        self.assertEqual(self.ingestor.marks("a", OUTBOX, [E2]), (136, {E2: HighWaterMark(86, None)}))

    def test_older_epochs_are_counted_once_without_running_numbers(self):
        """For example, a transport delivers a message twice."""
        for _ in range(2):
            self.submit(gap(1, 0, base=None, before=14))
            self.ingestor.commit()
        self.submit(gap(1, 3, base=None, before=14), gap(1, 2, epoch=E2, base=None, before=3))
        self.ingestor.commit()
        told = [(g["from"], g["to"], g["before"]) for g in self.store.gaps(5)]
        self.assertEqual(told, [(1, 2, 3), (1, 3, 0), (1, 0, 14)])

    def test_samples_stored_since_the_node_counted_are_not_counted_as_lost(self):
        """The node counted from the durable samples, but more samples were queued and were stored later."""
        self.submit(batch(1, 10))
        self.ingestor.commit()
        self.submit(batch(11, 45), gap(1, 86, epoch=E2, base=50, before=40))
        self.ingestor.commit()
        self.assertEqual([(g["from"], g["to"], g["before"]) for g in self.store.gaps(5)], [(1, 86, 5)])
        self.submit(gap(87, 86, epoch=E2, base=50, before=40))
        self.ingestor.commit()
        self.assertEqual(len(self.store.gaps(5)), 1)

    def test_nodes_and_epochs_are_kept_separate(self):
        other = Answers()
        self.ingestor.submit(other.of(batch(1, 3, node="b")))
        self.submit(batch(1, 2), batch(3, 3), batch(1, 4, epoch=E2, base=3))
        self.ingestor.commit()
        self.assertEqual((self.seqs(), self.seqs("b"), self.seqs("a", E2)), ([1, 2, 3], [1, 2, 3], [1, 2, 3, 4]))
        self.assertEqual((self.answers.acks, other.acks), ([(E1, 3), (E2, 4)], [(E1, 3)]))
        self.assertEqual({node: latest.sample.seq for node, latest in self.ingestor.latest.items()}, {"a": 4, "b": 3})

    def test_failed_commit_acknowledges_nothing_and_keeps_the_batches(self):
        self.submit(batch(1, 3))
        with mock.patch.object(self.store, "put", side_effect=NotStored("disk full")), self.assertRaises(NotStored):
            self.ingestor.commit()
        self.assertEqual((self.answers.acks, self.seqs()), ([], []))
        self.submit(batch(4, 4))
        self.ingestor.commit()
        self.assertEqual((self.answers.acks, self.seqs()), ([(E1, 4)], [1, 2, 3, 4]))

    def test_samples_without_numbers_continue_their_epoch(self):
        """They are from a client that sends readings without sequence numbers."""
        for first, last in ((1, 2), (11, 13)):
            made = batch(first, last)
            self.submit(made._replace(samples=made.samples.numbered(0)))
        self.ingestor.commit()
        self.assertEqual((self.answers.acks, self.seqs()), ([(E1, 5)], [1, 2, 3, 4, 5]))
        ups = [point.time_ms for point in self.store.points("a", 0, 1 << 60, 10)]
        self.assertEqual(ups, sorted(ups))
        self.assertEqual(list(self.store.verify()), [])

    def test_imported_samples_are_stored_but_are_not_the_latest(self):
        self.submit(batch(1, 3)._replace(outbox=IMPORTED))
        self.ingestor.commit()
        self.assertEqual((self.seqs(), self.ingestor.latest), ([1, 2, 3], {}))

    def test_late_data_is_not_the_latest_after_a_restart(self):
        def store(age_s, value, **more):
            time_ms = self.clock.wall_ms() - int(age_s * 1000)
            samples = SampleBatch(0, [time_ms], [0], {"t": [value]})
            made = batch(1, 1)._replace(outbox=self.ingestor.identity, samples=samples, **more)
            self.submit(made)
            self.ingestor.commit()

        store(60, 1)
        store(-366 * 86_400, 2)  # the clock of the client was ahead
        for age_s in (3600, 61, 1e6):
            self.store.close()
            self.log.close()
            self.open()
            store(age_s, 3, epoch=E2)
            self.assertEqual((self.ingestor.latest, list(self.ingestor.received_s)), ({}, ["a"]), age_s)
        store(59, 4, epoch=E2)
        self.assertEqual(self.ingestor.latest["a"].sample.values, {"t": 4})

    def test_flush_without_a_writer_thread_fails_after_its_limit(self):
        self.assertTrue(self.ingestor.flush(0.0))  # the queue is empty
        self.submit(batch(1, 3))
        self.assertFalse(self.ingestor.flush(0.0))
        self.assertEqual(self.seqs(), [])

    def test_batch_after_an_urgent_one_is_not_urgent(self):
        self.ingestor.submit(self.answers.of(batch(1, 3)), urgent=True)
        self.assertTrue(self.ingestor._hurry)
        self.ingestor.commit()
        self.submit(batch(4, 4))
        self.assertFalse(self.ingestor._hurry)

    def test_two_senders_of_one_node_each_receive_their_own_acknowledgement(self):
        other = Answers()
        self.submit(batch(1, 5))
        self.ingestor.submit(other.of(batch(1, 3)))
        self.ingestor.commit()
        self.assertEqual((self.answers.acks, other.acks), ([(E1, 5)], [(E1, 3)]))

    def test_subscribers_receive_durable_commits(self):
        seen = []
        self.ingestor.subscribe(
            lambda epoch_commits: seen.append([(f.node, f.mark.seq, self.seqs()) for f in epoch_commits])
        )
        self.submit(batch(1, 3))
        self.ingestor.commit()
        self.assertEqual(seen, [[("a", 3, [1, 2, 3])]])

    def test_random_senders_have_each_sample_stored_once(self):
        """Senders repeat batches, restart and overlap, and commits fail."""
        for seed in range(rounds("PIGEONPOST_TEST_SENDERS", 8, 30)):
            with self.subTest(seed=seed), tempfile.TemporaryDirectory() as self.folder:
                self.open()
                self.play(random.Random(seed))

    def play(self, chance):
        ends = {}
        for _ in range(60):
            node, epoch = chance.choice("ab"), chance.choice((E1, E2))
            stored = self.ingestor.marks(node, OUTBOX, [epoch])[1].get(epoch, HighWaterMark(0, None)).seq
            first = chance.randint(max(1, stored - 5), stored + 1)
            for _ in range(chance.randint(1, 3)):
                last = first + chance.randint(0, 20)
                self.submit((gap if chance.random() < 0.1 else batch)(first, last, node=node, epoch=epoch))
                ends[node, epoch] = max(last, ends.get((node, epoch), 0))
                first = last + 1
            if chance.random() < 0.2:
                with mock.patch.object(self.store, "put", side_effect=NotStored("full")), self.assertRaises(NotStored):
                    self.ingestor.commit()
            if chance.random() < 0.8:
                self.ingestor.commit()
        self.ingestor.commit()
        for (node, epoch), last in ends.items():
            self.assertEqual(self.ingestor.marks(node, OUTBOX, [epoch])[1][epoch].seq, last)
        self.assertEqual(list(self.store.verify()), [])


class CancelTest(IngestCase):
    def cancel(self, place):
        return self.ingestor.cancel(self.ingestor._batches[place])

    def test_cancelled_batch_is_neither_stored_nor_answered(self):
        self.submit(batch(1, 2), batch(3, 4), batch(5, 5))
        last = self.ingestor._batches[2]
        self.assertTrue(self.cancel(2))
        self.assertFalse(self.ingestor.cancel(last))  # it is cancelled already
        self.ingestor.commit()
        self.assertEqual((self.seqs(), self.answers.acks), ([1, 2, 3, 4], [(E1, 4)]))

    def test_stored_batch_and_batch_being_stored_cannot_be_cancelled(self):
        self.submit(batch(1, 2))
        (first,) = self.ingestor._batches
        put, tried = self.store.put, []

        def withdrawn_meanwhile(*arguments):
            self.submit(batch(3, 3))
            tried.append((self.cancel(0), self.cancel(1)))
            return put(*arguments)

        with mock.patch.object(self.store, "put", withdrawn_meanwhile):
            self.ingestor.commit()
        self.assertEqual(tried, [(False, True)])
        self.assertFalse(self.ingestor.cancel(first))
        self.assertEqual((self.seqs(), self.answers.acks), ([1, 2], [(E1, 2)]))

    def test_batches_of_a_failed_commit_can_be_cancelled(self):
        self.submit(batch(1, 2))
        with mock.patch.object(self.store, "put", side_effect=NotStored("full")), self.assertRaises(NotStored):
            self.ingestor.commit()
        self.assertTrue(self.cancel(0))
        self.ingestor.commit()
        self.assertEqual((self.seqs(), self.answers.acks), ([], []))

    def test_cancelling_frees_space_in_the_buffer(self):
        self.store.close()
        self.open(buffer_samples=10)
        self.submit(batch(1, 4), batch(5, 12))
        refused = self.answers.of(batch(13, 13))
        self.assertFalse(self.ingestor.submit(refused, limit_s=0.0))
        self.assertTrue(self.cancel(1))
        self.assertEqual((self.ingestor._waiting, self.ingestor._waiting_of), (4, {"a": 4}))
        self.assertTrue(self.ingestor.submit(self.answers.of(batch(5, 5)), limit_s=0.0))
        self.ingestor.commit()
        self.assertEqual(self.seqs(), [1, 2, 3, 4, 5])


class RunningCase(IngestCase):
    clock_type = Clock

    def start(self, **settings):
        self.open(**settings)
        self.ingestor.start()
        self.addCleanup(self.ingestor.stop, LIMIT_S)

    def setUp(self):
        super().setUp()
        self.store.close()

    @contextlib.contextmanager
    def held_store(self):
        """Let the store accept nothing until the end of the block."""
        go_on, put = threading.Event(), self.store.put

        def held(*arguments):
            go_on.wait(LIMIT_S)
            return put(*arguments)

        with mock.patch.object(self.store, "put", held):
            try:
                yield
            finally:
                go_on.set()

    def waiting_threads(self):
        """Return a set to which each thread that waits in the ingestor from now on is added."""
        waiting, wait = set(), self.ingestor._changed.wait

        def noted(limit_s=None):
            waiting.add(threading.current_thread())
            return wait(limit_s)

        self.enterContext(mock.patch.object(self.ingestor._changed, "wait", noted))
        return waiting


class WriterThreadTest(RunningCase):
    def test_writer_commits_after_commit_s(self):
        self.start(commit_s=0.02)
        self.submit(batch(1, 3))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 3) in self.answers.acks))
        self.submit(batch(4, 4))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 4) in self.answers.acks))

    def test_failed_submit_does_not_stop_the_writer(self):
        """Found by a call without memory: a queued batch that had not woken the writer let all later ones wait."""
        self.start(commit_s=0.02)
        for name, failing in (
            ("weight", mock.patch.object(Batch, "weight", mock.PropertyMock(side_effect=MemoryError))),
            ("wake", mock.patch.object(self.ingestor._changed, "notify_all", side_effect=MemoryError)),
        ):
            with self.subTest(name):
                wait_until(lambda: not self.ingestor._batches, "the queue is empty")
                with self.ingestor._changed, failing, self.assertRaises(MemoryError):
                    self.ingestor.submit(self.answers.of(batch(1, 3)))
                self.submit(batch(1, 3))
                self.assertTrue(self.answers.wait_for(lambda: (E1, 3) in self.answers.acks))
                self.answers.acks.clear()

    def test_writer_waits_between_two_commits(self):
        self.start(commit_s=600)
        self.submit(batch(1, 3))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 3) in self.answers.acks))  # without delay
        self.submit(batch(4, 6))
        for _ in range(3):
            self.ingestor.run(lambda: None, LIMIT_S)  # after each task the writer checks if a commit is due
        self.assertEqual((self.answers.acks, self.ingestor.commits), ([(E1, 3)], 1))

    @mock.patch("pigeonpost.server.ingest._CATCH_UP_S", 600.0)
    def test_next_commit_s_is_the_time_of_the_next_commit(self):
        """It is never too late: batches that are submitted after this time would wait for the commit after that."""
        self.start(commit_s=600)
        self.assertLess(self.ingestor.next_commit_s(), self.clock.monotonic())  # without delay
        began_s = self.clock.monotonic()
        self.submit(batch(1, 3))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 3) in self.answers.acks))
        self.assertLessEqual(began_s + 600, self.ingestor.next_commit_s())
        self.assertLessEqual(self.ingestor.next_commit_s(), self.clock.monotonic() + 600)
        with self.held_store():
            self.ingestor.submit(self.answers.of(batch(4, 4)), urgent=True)
            self.assertEqual(self.ingestor.next_commit_s(), 0.0)
        self.assertTrue(self.answers.wait_for(lambda: (E1, 4) in self.answers.acks))
        wait_until(lambda: self.ingestor.next_commit_s() > began_s)
        self.submit(batch(5, 2504))  # half of a window
        self.assertTrue(self.answers.wait_for(lambda: (E1, 2504) in self.answers.acks))
        self.assertEqual(self.ingestor.next_commit_s(), 0.0)  # more is expected

    def test_urgent_batch_during_a_commit_is_in_the_next_commit_without_delay(self):
        """The client is slightly too late for the present commit. The next one must not be 600 s later."""
        self.start(commit_s=600)
        put = self.store.put
        late = [batch(4, 6)]

        def slow_put(*arguments):
            if late:
                self.ingestor.submit(self.answers.of(late.pop()), urgent=True)
            return put(*arguments)

        with mock.patch.object(self.store, "put", slow_put):
            self.ingestor.submit(self.answers.of(batch(1, 3)), urgent=True)
            self.assertTrue(self.answers.wait_for(lambda: (E1, 6) in self.answers.acks))

    def test_flush_during_a_commit_is_followed_by_another_commit(self):
        self.start(commit_s=600)
        put = self.store.put
        begun, settled = threading.Event(), []

        def settle():
            begun.set()
            settled.append(self.ingestor.flush(LIMIT_S))

        def slow_put(*arguments):
            if not begun.is_set():
                self.submit(batch(4, 6))
                settler.start()
                begun.wait(LIMIT_S)
                wait_until(lambda: self.ingestor._urgent, "it settles")
            return put(*arguments)

        settler = threading.Thread(target=settle)
        with mock.patch.object(self.store, "put", slow_put):
            self.submit(batch(1, 3))
            self.assertTrue(self.answers.wait_for(lambda: (E1, 6) in self.answers.acks))
        settler.join(LIMIT_S)
        self.assertEqual(settled, [True])

    def test_node_that_waits_for_its_ack_receives_it_without_delay(self):
        self.start(commit_s=600)
        self.submit(batch(1, 10))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 10) in self.answers.acks))  # without delay
        for first in range(11, 5011, 500):
            self.submit(batch(first, first + 499))
        self.assertTrue(self.answers.wait_for(lambda: any(seq >= 2510 for _, seq in self.answers.acks)))

    def test_flush_does_not_wait_for_the_regular_commit(self):
        self.start(commit_s=600)
        self.submit(batch(1, 10))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 10) in self.answers.acks))  # without delay
        waiting = self.waiting_threads()
        self.submit(batch(11, 12))
        wait_until(lambda: self.ingestor._thread in waiting, "the writer waits")
        self.assertTrue(self.ingestor.flush(LIMIT_S))
        self.assertEqual(len(self.seqs()), 12)

    def test_flush_waits_until_the_log_and_the_subscribers_have_the_samples(self):
        entered, release = threading.Event(), threading.Event()
        self.start(commit_s=600)
        self.addCleanup(release.set)
        self.ingestor.subscribe(lambda epoch_commits: (entered.set(), release.wait(LIMIT_S)))
        self.submit(batch(1, 3))
        self.assertTrue(entered.wait(LIMIT_S))
        self.assertFalse(self.ingestor.flush(0.02))
        release.set()
        self.assertTrue(self.ingestor.flush(LIMIT_S))
        self.assertEqual(len(self.seqs()), 3)

    def test_batch_that_fills_half_of_the_window_wakes_the_writer(self):
        self.start(commit_s=600)
        self.submit(batch(1, 10))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 10) in self.answers.acks))  # without delay
        waiting = self.waiting_threads()
        self.submit(batch(11, 20))
        wait_until(lambda: self.ingestor._thread in waiting, "the writer waits")
        self.submit(batch(21, 2510))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 2510) in self.answers.acks))

    def test_half_of_the_agreed_window_is_committed_without_delay(self):
        self.start(commit_s=600)
        self.submit(batch(1, 10))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 10) in self.answers.acks))  # without delay
        self.submit(batch(11, 2509)._replace(window=20_000), batch(1, 50, node="b", epoch=E2)._replace(window=102))
        self.assertFalse(self.ingestor._hurry)
        self.submit(batch(51, 51, node="b", epoch=E2)._replace(window=102))
        self.assertTrue(self.answers.wait_for(lambda: {(E1, 2509), (E2, 51)} <= set(self.answers.acks)))

    @mock.patch("pigeonpost.server.ingest._CATCH_UP_S", 600.0)  # otherwise a slow machine exceeds it below
    def test_end_of_a_backlog_does_not_wait_for_the_regular_commit(self):
        self.start(commit_s=600)
        self.submit(batch(1, 10))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 10) in self.answers.acks))
        self.assertFalse(self.ingestor.is_catching_up)
        for first, last in ((11, 2520), (2521, 2530), (2531, 2531)):  # the second and third after a commit
            self.submit(batch(first, last))
            self.assertTrue(self.answers.wait_for(lambda last=last: (E1, last) in self.answers.acks))
            self.assertTrue(self.ingestor.is_catching_up)

    def test_catching_up_ends_with_the_backlog(self):
        self.store.close()
        self.clock = FakeClock()
        self.open()
        self.submit(batch(1, 2500))
        self.assertTrue(self.ingestor.is_catching_up)
        self.ingestor.commit()
        self.submit(batch(2501, 2501))
        self.assertTrue(self.ingestor.is_catching_up)
        self.clock.sleep(2)
        self.assertFalse(self.ingestor.is_catching_up)
        self.ingestor.commit()
        self.assertFalse(self.ingestor.is_catching_up)

    def test_stop_stores_the_accepted_batches(self):
        self.start(commit_s=600)
        self.submit(batch(1, 10))
        self.answers.wait_for(lambda: self.answers.acks)
        self.submit(batch(11, 20))
        self.assertIsNone(self.ingestor.stop(LIMIT_S))
        self.assertEqual(self.answers.acks[-1], (E1, 20))
        self.assertEqual(list(self.store.logged_after(self.store.log_mark().filed)), [])
        self.submit(batch(21, 30))  # too late: neither stored nor acknowledged
        self.assertEqual((self.answers.acks[-1], len(self.seqs())), ((E1, 20), 20))

    def test_senders_wait_while_the_buffer_is_full(self):
        self.start(commit_s=600, buffer_samples=1000)
        taken, waiting = [], self.waiting_threads()

        def send():
            for first in range(1, 5001, 500):
                self.submit(batch(first, first + 499))
                taken.append(first)

        sender = threading.Thread(target=send)
        with self.held_store():
            sender.start()
            wait_until(lambda: sender in waiting, "the sender waits")
            self.assertEqual(taken, [1, 501])
            self.assertFalse(self.ingestor.submit(self.answers.of(batch(1, 1)), limit_s=0.01))
        sender.join(LIMIT_S)
        self.assertTrue(self.ingestor.flush(LIMIT_S))
        self.assertTrue(self.answers.wait_for(lambda: (E1, 5000) in self.answers.acks))
        self.assertEqual(len(self.seqs()), 5000)

    def test_commit_is_retried_after_a_full_disk(self):
        with mock.patch("pigeonpost.server.ingest._RETRY_S", 0.001):
            self.start(commit_s=0.001)
            real, calls = self.store.put, []

            def put(*arguments):
                calls.append(1)
                if len(calls) < 3:
                    raise NotStored("disk full")
                return real(*arguments)

            with mock.patch.object(self.store, "put", put), self.assertLogs("pigeonpost.server.ingest") as logged:
                self.submit(batch(1, 3))
                self.assertTrue(self.answers.wait_for(lambda: (E1, 3) in self.answers.acks))
                self.ingestor.stop(LIMIT_S)
            self.assertEqual(len(logged.output), 2)  # at the beginning and the end of the fault
            self.assertEqual(self.ingestor.fault, "")

    def test_fault_remains_until_samples_are_stored(self):
        self.start(commit_s=0.001)
        calls, real = [], self.store.put

        def put(epoch_commits, *arguments):
            calls.append(len(epoch_commits))
            if epoch_commits:
                raise NotStored("disk full")
            return real(epoch_commits, *arguments)

        self.enterContext(mock.patch("pigeonpost.server.ingest._RETRY_S", 0.001))
        with self.assertLogs("pigeonpost.server.ingest") as logged:
            with mock.patch.object(self.store, "put", put):
                refused = self.answers.of(batch(1, 3))  # as of a client, which cancels it after some seconds
                self.ingestor.submit(refused)
                wait_until(lambda: self.ingestor.fault, "it has tried")
                self.assertTrue(self.ingestor.is_blocked)
                wait_until(lambda: self.ingestor.cancel(refused), "it is removed from the queue")
                wait_until(lambda: calls[-1] == 0, "the empty queue is committed")
                self.ingestor.run(lambda: None, LIMIT_S)  # then the writer thread has left the retries
                self.assertEqual(self.ingestor.fault, "nothing can be stored: disk full")
                self.assertFalse(self.ingestor.is_blocked)  # otherwise a transport would refuse samples permanently
            self.submit(batch(1, 3))
            wait_until(lambda: not self.ingestor.fault, "samples are stored")
        self.assertEqual(len(logged.output), 2)
        self.assertEqual(self.seqs(), [1, 2, 3])

    def test_stop_that_takes_too_long_reports_the_samples_not_stored(self):
        self.start(commit_s=600)
        with self.held_store():
            self.submit(batch(1, 3))
            wait_until(lambda: self.ingestor._in_commit, "it is being stored")
            self.assertEqual(self.ingestor.stop(0.01), "3 samples not stored; the nodes keep them")
        self.assertIsNone(self.ingestor.stop(LIMIT_S))
        self.assertEqual((self.seqs(), self.answers.acks), ([1, 2, 3], [(E1, 3)]))

    def test_waiting_sender_is_refused_when_the_program_stops(self):
        self.start(commit_s=600, buffer_samples=3)
        results, waiting = [], self.waiting_threads()
        late = threading.Thread(target=lambda: results.append(self.ingestor.submit(self.answers.of(batch(4, 4)))))
        with self.held_store():
            self.submit(batch(1, 3))
            late.start()
            wait_until(lambda: late in waiting, "it waits")
            self.ingestor.stop(0.0)
            late.join(LIMIT_S)
        self.assertEqual(results, [False])
        self.assertIsNone(self.ingestor.stop(LIMIT_S))
        self.assertEqual(self.answers.acks, [(E1, 3)])

    def test_samples_that_cannot_be_stored_at_the_stop_are_not_acknowledged(self):
        self.start(commit_s=0.001)
        with mock.patch.object(self.store, "put", side_effect=NotStored("disk full")):
            with self.assertLogs("pigeonpost.server.ingest", "ERROR") as logged:
                self.submit(batch(1, 3))
                wait_until(lambda: self.ingestor.fault, "it has tried")
                self.assertIsNone(self.ingestor.stop(LIMIT_S))
            self.assertEqual(self.ingestor.fault, "nothing can be stored: disk full")
        self.assertEqual(
            logged.output[-1],
            "ERROR:pigeonpost.server.ingest:the last samples were not stored: disk full; the nodes keep them",
        )
        self.assertEqual((self.seqs(), self.answers.acks), ([], []))

    def test_disk_error_ends_the_program(self):
        self.start(commit_s=0.05)
        with mock.patch.object(self.store, "put", side_effect=DiskError("I/O error")):
            self.submit(batch(1, 3))
            self.ingestor._thread.join(LIMIT_S)
        self.assertEqual(len(self.failures), 1)
        self.assertEqual(self.answers.acks, [])

    def test_batches_of_many_threads_are_stored_once(self):
        self.start(commit_s=0.01)
        names = [f"n{k}" for k in range(12)]

        def send(node):
            for first in range(1, 1001, 50):
                self.submit(batch(first, first + 49, node=node))

        senders = [threading.Thread(target=send, args=(node,)) for node in names]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(LIMIT_S)
        self.ingestor.stop(LIMIT_S)
        for node in names:
            self.assertEqual(self.seqs(node), list(range(1, 1001)))
        self.assertEqual(list(self.store.verify()), [])


HOUR = Window("a", 3_600_000, 3_600_000, 0)
SUMMARY = Rollup(3_600_000, 2, 20.5, 20.5, 20.0, 20.0, 21.0, 0.5)


class TaskTest(RunningCase):
    """Jobs of other threads for the writer thread."""

    def summarise(self):
        self.store.replace_rollups(HOUR, {"temperature": SUMMARY})
        return threading.current_thread().name

    def summaries(self):
        return self.store.summaries("a", "temperature", HOUR.span_ms, 0, 1 << 60)

    def setUp(self):
        super().setUp()
        self.start(commit_s=600)
        self.submit(batch(1, 2))
        self.assertTrue(self.ingestor.flush(LIMIT_S))
        self.ingestor.run(lambda: None, LIMIT_S)  # so that the commit is completely processed

    def test_task_runs_in_the_writer_thread_and_returns_its_result(self):
        self.assertEqual(self.ingestor.run(self.summarise, LIMIT_S), "ingest")
        self.assertEqual(self.summaries(), [SUMMARY])

    def test_then_is_called_after_a_durable_task_but_not_after_a_failed_one(self):
        seen = []
        self.ingestor.run(
            self.summarise, LIMIT_S, lambda: seen.append((self.store._db.in_transaction, self.summaries()))
        )
        self.assertEqual(seen, [(False, [SUMMARY])])
        with self.assertRaises(ZeroDivisionError):
            self.ingestor.run(lambda: 1 // 0, LIMIT_S, lambda: seen.append(1))
        self.assertEqual(len(seen), 1)

    def test_submitted_batches_are_stored_and_logged_before_a_task_with_is_logged(self):
        self.submit(batch(3, 4))
        seqs, owed = self.ingestor.run(
            lambda: (self.seqs(), list(self.store.logged_after(self.store.log_mark().filed))), LIMIT_S, is_logged=True
        )
        self.assertEqual((seqs, owed), ([1, 2, 3, 4], []))

    def test_error_of_a_task_is_raised_in_the_caller_and_rolled_back(self):
        def fail():
            self.summarise()
            raise ZeroDivisionError("in the task")

        with self.assertRaisesRegex(ZeroDivisionError, "in the task"):
            self.ingestor.run(fail, LIMIT_S)
        self.assertEqual(self.summaries(), [])
        self.assertEqual(self.ingestor.run(lambda: 7, LIMIT_S), 7)  # the writer thread continues

    def test_disk_error_in_a_task_ends_the_program(self):
        error = DiskError("I/O error")
        with self.assertRaises(DiskError) as caught:
            self.ingestor.run(mock.Mock(side_effect=error), LIMIT_S)
        self.assertIs(caught.exception, error)
        self.ingestor._thread.join(LIMIT_S)
        self.assertEqual(self.failures, [error])

    def test_task_that_did_not_begin_within_its_limit_is_never_run(self):
        with self.held_store():
            self.ingestor.submit(self.answers.of(batch(3, 3)), urgent=True)
            wait_until(lambda: self.ingestor._in_commit, "the writer is busy")
            with self.assertRaisesRegex(NotStored, "the store was busy for 0.01 s"):
                self.ingestor.run(self.summarise, 0.01)
        self.ingestor.run(lambda: None, LIMIT_S)
        self.assertEqual((self.summaries(), self.seqs()), ([], [1, 2, 3]))

    def test_task_that_began_within_its_limit_is_waited_for(self):
        begun, limit_is_over, wait_for = threading.Event(), threading.Event(), self.ingestor._changed.wait_for

        def wait_as_if_the_limit_were_over(condition, limit_s=None):
            if limit_s is None:
                limit_is_over.set()
                return wait_for(condition)
            return wait_for(begun.is_set)

        def job():
            begun.set()
            with self.ingestor._changed:
                self.ingestor._changed.notify_all()
            return limit_is_over.wait(LIMIT_S) and self.summarise()

        with mock.patch.object(self.ingestor._changed, "wait_for", wait_as_if_the_limit_were_over):
            self.assertEqual(self.ingestor.run(job, 1.0), "ingest")
        self.assertEqual(self.summaries(), [SUMMARY])

    def test_commits_run_between_two_tasks(self):
        order = []
        self.ingestor.subscribe(lambda epoch_commits: order.append("commit"))

        def first():
            self.ingestor.submit(self.answers.of(batch(3, 3)), urgent=True)
            other.start()
            wait_until(lambda: self.ingestor._tasks, "another task waits")
            order.append("first")

        other = threading.Thread(target=self.ingestor.run, args=(lambda: order.append("second"), LIMIT_S))
        self.ingestor.run(first, LIMIT_S)
        other.join(LIMIT_S)
        self.assertEqual(order, ["first", "commit", "second"])

    def test_no_task_is_accepted_while_the_program_stops(self):
        self.ingestor.stop(LIMIT_S)
        with self.assertRaisesRegex(NotStored, "or the program is stopping"):
            self.ingestor.run(self.summarise, LIMIT_S)
        self.assertEqual(self.summaries(), [])


if __name__ == "__main__":
    unittest.main()
