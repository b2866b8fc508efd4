"""Tests of the outbox: a durable sample is accepted, keeps its number, and can be read repeatedly."""

import errno
import os
import threading
import unittest
from unittest import mock

from pigeonpost.core.errors import DiskError, Unexpected
from pigeonpost.node.outbox import MOST_FORKS, QUEUE_SAMPLES, Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_format import MOST_AT_ONCE
from pigeonpost.node.ring_records import SeqRange
from tests.page_support import use_memory_disk
from tests.support import BOOT, LIMIT_S, MemoryDisk, taken, temp_folder, wait_until

E = [f"{n:016x}" for n in range(1, 50)]


def setUpModule():
    use_memory_disk()


class OutboxCase(unittest.TestCase):
    def setUp(self):
        self.disk = MemoryDisk()
        self.failures = []
        self.epochs = iter(E)

    def open(self, slots=8, **settings):
        """Return an outbox as after a start of the program, on the same disk and with the next epoch."""
        ring = Ring("/card", slots, 128, self.disk)
        return Outbox(ring, BOOT, failed=self.failures.append, new_epoch=self.epochs.__next__, **settings)

    def started(self, **settings):
        outbox = self.open(**settings)
        outbox.start()
        self.addCleanup(outbox.stop, LIMIT_S)
        return outbox

    def take(self, outbox, count, first=1):
        """Put samples with the uptimes `first`, `first` + 1 ..., and commit them."""
        for n in range(first, first + count):
            outbox.put(taken(value=n, up_ms=n))
        while outbox.commit():
            pass


class Writing(OutboxCase):
    def test_put_does_not_wait_and_commit_writes_durably(self):
        outbox = self.open()
        calls = len(self.disk.calls)
        outbox.put(taken())
        self.assertEqual((len(self.disk.calls), outbox.ring.last), (calls, 0))
        self.assertEqual(outbox.commit(), 1)
        self.assertEqual(self.disk.calls[calls:], ["pwrite", "fdatasync"])
        self.disk.cut_power()
        self.assertEqual(self.open().ring.last, 1)

    def test_queued_samples_are_committed_together(self):
        outbox = self.open(slots=4096)
        for n in range(MOST_AT_ONCE + 5):
            outbox.put(taken(up_ms=n))
        calls = len(self.disk.calls)
        self.assertEqual([outbox.commit(), outbox.commit(), outbox.commit()], [MOST_AT_ONCE, 5, 0])
        self.assertEqual(self.disk.calls[calls:], ["pwrite", "fdatasync"] * 2)
        self.assertEqual(outbox.ring.runs, [SeqRange(E[0], 1, MOST_AT_ONCE + 5, 1)])

    def test_more_samples_than_the_ring_holds_are_written_in_batches(self):
        outbox = self.open(slots=8)
        self.take(outbox, 30)
        self.assertEqual(outbox.ring.runs, [SeqRange(E[0], 23, 30, 23)])
        self.assertEqual([slot.up_ms for slot in outbox.read(24, 100)], list(range(24, 31)))

    def test_every_start_begins_a_new_epoch_with_sequence_number_one(self):
        self.take(self.open(), 3)
        self.take(self.open(), 2)
        self.open()  # takes nothing
        outbox = self.open()
        self.take(outbox, 1)
        self.assertEqual(outbox.ring.runs, [SeqRange(E[0], 1, 3, 1), SeqRange(E[1], 1, 2, 4), SeqRange(E[3], 1, 1, 6)])

    def test_epochs_are_random(self):
        ring = Ring("/card", 8, 128, self.disk)
        epochs = {Outbox(ring, BOOT).epoch for _ in range(100)}
        self.assertEqual(len(epochs), 100)
        for epoch in epochs:
            self.assertRegex(epoch, "^[0-9a-f]{16}$")

    def test_full_queue_drops_and_counts_samples_and_logs_it_once(self):
        outbox = self.open()
        with self.assertLogs("pigeonpost.node.outbox", "ERROR") as logged:
            for n in range(QUEUE_SAMPLES + 7):
                outbox.put(taken(up_ms=n))
        self.assertEqual(outbox.dropped, 7)
        self.assertEqual(len(logged.output), 1)
        while outbox.commit():
            pass
        self.assertEqual(outbox.ring.last, QUEUE_SAMPLES)


class Thread(OutboxCase):
    def test_thread_writes_samples_of_the_queue(self):
        outbox = self.started()
        outbox.put(taken())
        wait_until(lambda: outbox.ring.last == 1)
        outbox.put(taken())
        wait_until(lambda: outbox.ring.last == 2)

    def test_stop_writes_the_remaining_samples(self):
        outbox = self.open(sync_s=3600)
        outbox.start()
        for n in range(20):
            outbox.put(taken(up_ms=n))
        self.assertIsNone(outbox.stop(LIMIT_S))
        self.assertEqual(outbox.ring.last, 20)
        self.assertIsNone(outbox.stop(LIMIT_S))

    def test_samples_are_collected_for_sync_s_and_written_together(self):
        outbox = self.started(slots=512, sync_s=30.0)
        waits, is_over, calls = [], threading.Event(), len(self.disk.calls)
        self.addCleanup(is_over.set)

        def wait(seconds):
            waits.append(seconds)
            return is_over.wait(LIMIT_S)

        with mock.patch.object(outbox._stopping, "wait", wait):
            outbox.put(taken(up_ms=0))
            wait_until(lambda: waits, "it lets samples gather")
            for n in range(1, 100):
                outbox.put(taken(up_ms=n))
            self.assertEqual((outbox.ring.last, self.disk.calls[calls:]), (0, []))
            is_over.set()
            wait_until(lambda: outbox.ring.last == 100)
        self.assertEqual(waits, [30.0])
        self.assertEqual(self.disk.calls[calls:], ["pwrite", "fdatasync"])

    def test_slow_disk_does_not_delay_put(self):
        goes_on = threading.Event()
        outbox = self.started()
        self.addCleanup(goes_on.set)
        self.disk.fault = lambda call: goes_on.wait(LIMIT_S)
        outbox.put(taken())
        wait_until(lambda: not outbox._queue)  # the writer thread is waiting for the disk
        for _ in range(50):
            outbox.put(taken())
        self.assertEqual(outbox.stop(0.01), "50 samples not yet written to the disk")
        goes_on.set()
        wait_until(lambda: outbox.ring.last == 51)

    def test_disk_error_ends_the_program(self):
        outbox = self.started()
        self.disk.die_at(0, OSError(errno.EIO, "Input/output error"))
        outbox.put(taken())
        wait_until(lambda: self.failures)
        self.assertIsInstance(self.failures[0], DiskError)
        self.assertEqual(str(self.failures[0]), "/card/outbox.ring: Input/output error")
        self.assertEqual(outbox.ring.last, 0)


class Reading(OutboxCase):
    def test_held_lists_all_epochs_with_the_current_one_last(self):
        outbox = self.open()
        self.assertEqual(outbox.held(), [[E[0], 1, 0, 1]])
        self.take(outbox, 3)
        self.assertEqual(outbox.held(), [[E[0], 1, 3, 1]])
        outbox = self.open()
        self.assertEqual(outbox.held(), [[E[0], 1, 3, 1], [E[1], 1, 0, 4]])
        self.take(outbox, 7)
        self.assertEqual(outbox.held(), [[E[0], 3, 3, 3], [E[1], 1, 7, 4]])
        self.take(outbox, 1)
        self.assertEqual(outbox.held(), [[E[1], 1, 8, 4]])
        self.assertEqual(self.open().held(), [[E[1], 1, 8, 4], [E[2], 1, 0, 12]])

    def test_run_at_returns_the_run_with_a_number_or_the_next_run(self):
        self.take(self.open(), 5)
        outbox = self.open()
        self.take(outbox, 5)  # 3 to 10 are held: 3 to 5 of the first epoch, 6 to 10 of the second
        first, second = outbox.ring.runs
        expected = {0: first, 1: first, 3: first, 5: first, 6: second, 10: second, 11: None, 99: None}
        self.assertEqual({number: outbox.run_at(number) for number in expected}, expected)
        self.assertEqual([outbox.run_of(epoch) for epoch in E[:3]], [first, second, None])
        self.assertIsNone(self.open(slots=8).run_at(11))

    def test_empty_outbox_has_no_runs(self):
        outbox = self.open()
        self.assertEqual((outbox.run_at(1), outbox.run_of(E[0])), (None, None))

    def test_reading_does_not_remove_samples(self):
        outbox = self.open()
        self.take(outbox, 5)
        for _ in range(3):
            self.assertEqual([slot.up_ms for slot in outbox.read(2, 3)], [2, 3, 4])
        self.assertEqual(outbox.ring.last, 5)

    def test_watchers_are_called_after_the_disk_has_confirmed(self):
        outbox = self.open()
        told = []

        def watcher(name):
            def wake():
                told.append((name, outbox.ring.last))

            return wake

        a, b = watcher("a"), watcher("b")
        outbox.watch(a)
        outbox.watch(b)
        self.take(outbox, 2)
        self.assertEqual(sorted(told), [("a", 2), ("b", 2)])
        outbox.commit()  # without samples, no watcher is called
        outbox.unwatch(a)
        outbox.unwatch(a)
        self.take(outbox, 1)
        self.assertEqual(told[2:], [("b", 3)])

    def test_watchers_are_not_called_after_a_disk_error(self):
        outbox = self.open()
        outbox.watch(lambda: self.fail("told"))
        self.disk.die_at(1, OSError(errno.EIO, "Input/output error"))
        outbox.put(taken())
        with self.assertRaises(DiskError):
            outbox.commit()


class Switching(OutboxCase):
    def test_off_state_is_kept_after_a_restart(self):
        outbox = self.open()
        self.assertTrue(outbox.on)
        for on in (False, False, True, False):
            outbox.switch(on)
            self.assertEqual(outbox.on, on)
            self.disk.cut_power()
            outbox = self.open()
            self.assertEqual(outbox.on, on)

    def test_unchanged_state_is_not_written(self):
        outbox = self.open()
        calls = len(self.disk.calls)
        outbox.switch(True)
        self.assertEqual(len(self.disk.calls), calls)

    def test_disk_error_in_any_thread_ends_the_program(self):
        """The thread of a connection would treat it as an error of the connection, close that, and continue."""
        for call in (lambda o: o.switch(False), lambda o: o.fork(E[0], 1), lambda o: o.read(1, 1)):
            self.setUp()
            outbox = self.open()
            self.take(outbox, 2)
            self.disk.die_at(0, OSError(errno.EIO, "Input/output error"))
            with self.assertRaises(DiskError) as caught:
                call(outbox)
            self.assertEqual(self.failures, [caught.exception])
            self.assertTrue(outbox.on)


class Forking(OutboxCase):
    def test_fork_renames_the_current_epoch_from_a_sample_on(self):
        outbox = self.open()
        self.take(outbox, 6)
        self.assertEqual(outbox.fork(E[0], 5), E[1])
        self.assertEqual(outbox.epoch, E[1])
        self.assertEqual(outbox.held(), [[E[0], 1, 4, 1], [E[1], 1, 2, 5]])
        self.take(outbox, 1, first=7)
        self.assertEqual(outbox.held(), [[E[0], 1, 4, 1], [E[1], 1, 3, 5]])
        self.assertEqual([slot.up_ms for slot in outbox.read(5, 3)], [5, 6, 7])
        self.disk.cut_power()
        self.assertEqual(self.open().held()[:2], [[E[0], 1, 4, 1], [E[1], 1, 3, 5]])

    def test_fork_after_the_last_sample_changes_only_the_epoch(self):
        outbox = self.open()
        self.take(outbox, 3)
        self.assertEqual(outbox.fork(E[0], 10), E[1])
        self.assertEqual(outbox.held(), [[E[0], 1, 3, 1], [E[1], 1, 0, 4]])
        self.take(outbox, 2)
        self.assertEqual(outbox.held(), [[E[0], 1, 3, 1], [E[1], 1, 2, 4]])

    def test_fork_of_an_earlier_epoch_keeps_the_current_one(self):
        self.take(self.open(), 3)
        outbox = self.open()
        self.take(outbox, 2)
        self.assertEqual(outbox.fork(E[0], 2), E[2])
        self.assertEqual(outbox.epoch, E[1])
        self.take(outbox, 1)
        self.assertEqual(outbox.held(), [[E[0], 1, 1, 1], [E[2], 1, 2, 2], [E[1], 1, 3, 4]])

    def test_fork_from_an_overwritten_sample_renames_all_that_are_held(self):
        outbox = self.open()
        self.take(outbox, 12)
        outbox.fork(E[0], 1)
        self.assertEqual(outbox.held(), [[E[1], 1, 8, 5]])

    def test_too_many_forks_are_refused(self):
        outbox = self.open(slots=64)
        self.take(outbox, 50)
        for _ in range(MOST_FORKS):
            outbox.fork(outbox.epoch, 2)
        with self.assertRaisesRegex(Unexpected, f"forked {MOST_FORKS} times; is it copied while the node runs"):
            outbox.fork(outbox.epoch, 2)
        self.assertEqual(self.failures, [])

    def test_overwritten_forks_do_not_count(self):
        outbox = self.open(slots=64)
        self.take(outbox, 50)
        for _ in range(MOST_FORKS):
            outbox.fork(outbox.epoch, 2)
        self.take(outbox, 64)
        outbox.fork(outbox.epoch, 30)
        self.assertEqual(len(outbox.ring.state["forks"]), 1)


class FullSize(unittest.TestCase):
    def test_all_65536_slots_are_found_after_a_restart(self):
        folder = temp_folder(self)
        ring = Ring(folder, 65_536, 128)
        outbox = Outbox(ring, BOOT)
        first = outbox.epoch
        for n in range(70_000):
            outbox.put(taken(up_ms=n + 1))
            if n % 1000 == 999:
                self.assertEqual(outbox.commit(), 1000)
        self.assertEqual(outbox.held(), [[first, 4465, 70_000, 4465]])
        ring.close()
        ring = Ring(folder, 64, 128)
        self.addCleanup(ring.close)
        again = Outbox(ring, BOOT)
        self.assertEqual(again.held(), [[first, 4465, 70_000, 4465], [again.epoch, 1, 0, 70_001]])
        self.assertEqual([slot.up_ms for slot in again.read(69_990, 100)], list(range(69_990, 70_001)))
        number, seen = 4465, 0
        while number <= 70_000:
            slots = again.read(number, 500)
            self.assertEqual([slot.up_ms for slot in slots], list(range(number, number + len(slots))))
            number, seen = number + len(slots), seen + len(slots)
        self.assertEqual(seen, 65_536)
        self.assertEqual(os.listdir(folder), ["outbox.ring"])


if __name__ == "__main__":
    unittest.main()
