"""Tests of the forwarder: each sample is sent, in the order of its epoch, in spite of all failures."""

import json
import os
import sqlite3
import threading
import time
import unittest
from types import SimpleNamespace
from unittest import mock

from pigeonpost.core.errors import MissingLibrary, NotStored, StoreDamaged
from pigeonpost.integrations import forwarder
from pigeonpost.integrations.contract import NotDelivered, RefusedData
from tests.integrations.forward_support import ForwardCase
from tests.page_support import use_memory_disk
from tests.storage.test_contract import E1, E2, OUTBOX, batch, gap, sample, wrapped
from tests.support import LIMIT_S, wait_until


def setUpModule():
    use_memory_disk()


def seqs(first, last, node="a", epoch=E1):
    return [(node, epoch, seq) for seq in range(first, last + 1)]


class LivePathTest(ForwardCase, unittest.TestCase):
    def test_commits_are_sent_from_memory_without_reading_the_store(self):
        self.start()
        wait_until(lambda: self.forwarder._look_s, "the first look")
        with mock.patch.object(self.store, "batches_of_epoch", side_effect=AssertionError):
            self.commit(batch(1, 3))
            self.commit(batch(4, 5))
            self.wait_for(*seqs(1, 5))
        one = self.target.batches[0]
        self.assertEqual((one.node, one.outbox, one.epoch, one.after), ("a", OUTBOX, E1, 0))
        self.assertEqual((dict(one.units), one.samples[0]), ({"temperature": "°C"}, sample(1)))

    def test_samples_beyond_the_limit_of_the_queue_are_read_from_the_store(self):
        self.target.gate.clear()
        self.start(most_queued=3)
        for seq in range(1, 26):
            self.commit(batch(seq, seq))
        self.assertLessEqual(self.forwarder._source._queued, 3)
        self.assertGreater(self.status().backlog, 20)
        self.target.gate.set()
        self.wait_for(*seqs(1, 25))
        self.assertEqual([seq for _, _, seq in self.target.got], list(range(1, 26)))

    def test_commits_of_gaps_have_the_same_limit(self):
        self.make(most_queued=3)
        for seq in range(1, 11):
            self.commit(gap(seq, seq))
        self.assertEqual(len(self.forwarder._source._commits), 3)
        self.commit(batch(11, 12))
        self.forwarder.start()
        self.wait_for(*seqs(11, 12))

    def test_gap_is_between_the_number_before_it_and_the_next_sample(self):
        self.start()
        self.commit(batch(1, 2), gap(3, 5))
        self.wait_for(*seqs(1, 2))
        self.commit(batch(6, 7))
        self.wait_for(*seqs(1, 2), *seqs(6, 7))
        found = [(one.after, one.samples.seq) for one in self.target.batches]
        self.assertEqual((found[0], found[1]), ((0, 1), (2, 6)))

    def test_late_samples_of_an_old_epoch_are_sent_at_their_time(self):
        self.start()
        self.commit(batch(1, 2))
        self.commit(batch(1, 1, epoch=E2))
        self.commit(*wrapped([sample(3, time_ms=5000)]))
        self.wait_for(*seqs(1, 3), *seqs(1, 1, epoch=E2))
        self.assertIn([5000], [one.samples.times for one in self.target.batches])

    def test_request_has_at_most_the_samples_that_the_target_accepts(self):
        self.target.gate.clear()
        self.start()
        self.commit(batch(1, 37))
        self.commit(batch(1, 8, node="b"))
        self.target.gate.set()
        self.wait_for(*seqs(1, 37), *seqs(1, 8, node="b"))

    def test_only_wanted_nodes_and_sensors_are_sent(self):
        self.start(nodes=["a"], sensors=["light"])
        self.commit(batch(1, 2))
        self.commit(batch(1, 2, node="b"))
        self.commit(*wrapped([sample(3)._replace(values={"temperature": 1.0})]))
        self.wait_for(*seqs(1, 2))
        self.assertEqual(self.target.batches[0].samples.names, ("light",))
        self.restart(nodes=["a"], sensors=["light"])
        self.wait_idle()
        self.assertEqual(len(self.target.got), 2)

    def test_idle_forwarder_reads_nothing(self):
        self.start()
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        with mock.patch.object(self.forwarder, "_step", side_effect=AssertionError) as step:
            time.sleep(0.05)
        step.assert_not_called()

    def test_error_in_the_writer_thread_is_contained(self):
        self.make()
        self.forwarder.on_commit([None])
        self.assertIn("internal error", self.forwarder.fault)


class PositionTest(ForwardCase, unittest.TestCase):
    def test_new_target_starts_at_the_present_or_with_the_history(self):
        for history, wanted in ((False, seqs(3, 4)), (True, seqs(1, 4))):
            with self.subTest(history=history):
                self.stop()
                self.setUp()
                self.commit(batch(1, 2))
                self.make(history=history)
                self.commit(batch(3, 4))  # committed before the thread runs
                self.forwarder.start()
                self.wait_for(*wanted)

    def test_samples_stored_while_the_server_was_down_are_sent_at_the_next_start(self):
        self.start(history=False)
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        self.stop()
        self.commit(batch(3, 5))
        self.commit(batch(1, 2, node="new"))
        self.restart(history=False)
        self.wait_for(*seqs(1, 5), *seqs(1, 2, node="new"))

    def test_last_samples_are_sent_again_after_a_lost_connection_and_at_the_start(self):
        self.start(again_s=100)
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        self.clock.sleep(200)
        self.commit(batch(3, 4))
        self.wait_for(*seqs(1, 4))
        self.target.got.clear()
        self.target.errors.append(NotDelivered("lost"))
        self.commit(batch(5, 6))
        self.wait_for(*seqs(3, 6))  # not those before
        self.target.got.clear()
        self.restart(again_s=100)
        self.wait_for(*seqs(3, 6))

    def test_target_that_demands_pauses_gets_its_backlog_in_the_end(self):
        self.start(again_s=100)
        sent = []
        for start in range(1, 100, 20):  # the target accepts two requests, and then demands a pause
            self.target.gate.clear()
            self.target.errors.append(NotDelivered("status 429", has_answered=True))
            self.commit(batch(start, start + 19))
            self.target.gate.set()
            sent += seqs(start, start + 19)
            self.wait_for(*sent)

    def test_connection_is_checked_during_a_pause(self):
        self.start(again_s=100)
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        self.target.errors.append(NotDelivered("status 429", 3000, has_answered=True))
        with mock.patch.object(forwarder, "CHECK_S", 0.01):
            self.commit(batch(3, 4))
            wait_until(lambda: "429" in self.status().fault, "the fault")
            self.assertEqual(self.status().backlog, 2)
            self.target.lost = True
            self.clock.sleep(1)
            wait_until(lambda: self.status().backlog == 4, "the last samples are to be sent again")

    def test_samples_are_certain_after_the_time_without_new_ones(self):
        self.start(again_s=100)
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        self.clock.sleep(200)
        self.forwarder._wake.set()
        wait_until(lambda: not self.forwarder._progress._stages, "certain positions")
        self.restart(again_s=100)
        self.wait_for(*seqs(1, 2))

    def test_idle_connection_is_checked_and_its_loss_sends_the_last_samples_again(self):
        self.start(again_s=100)
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        for _ in range(3):
            checks = self.target.checks
            self.clock.sleep(forwarder.CHECK_S)
            self.forwarder._wake.set()
            wait_until(lambda checks=checks: self.target.checks > checks, "a check")
        self.target.lost = True
        self.clock.sleep(forwarder.CHECK_S)
        self.forwarder._wake.set()
        self.wait_for(*seqs(1, 2), *seqs(1, 2))
        self.clock.sleep(200)  # without a check before, the positions would be certain now
        self.target.lost = True
        self.forwarder._wake.set()
        self.wait_for(*seqs(1, 2), *seqs(1, 2), *seqs(1, 2))
        self.clock.sleep(200)
        self.forwarder._wake.set()
        wait_until(lambda: not self.forwarder._progress._stages, "certain positions")
        checks = self.target.checks
        self.clock.sleep(1000)
        self.forwarder._wake.set()
        self.commit(batch(3, 3))
        wait_until(lambda: ("a", E1, 3) in self.target.got, "the next sample")
        self.assertEqual(self.target.checks, checks)

    def test_target_that_syncs_first_gets_nothing_twice(self):
        self.start()
        self.commit(batch(1, 4))
        self.wait_for(*seqs(1, 4))
        self.target.errors.append(NotDelivered("lost"))
        self.commit(batch(5, 6))
        self.wait_for(*seqs(1, 6))
        self.restart()
        self.wait_idle()
        self.assertEqual(self.target.got, seqs(1, 6))

    def test_epoch_that_ends_with_a_gap_or_has_expired_has_no_backlog(self):
        self.commit(batch(1, 2), gap(3, 900))
        self.commit(batch(1, 4, node="b"))
        self.store.samples = [entry for entry in self.store.samples if entry[0] == "a" or entry[2].seq > 2]
        self.start()
        self.wait_for(*seqs(1, 2), *seqs(3, 4, node="b"))
        self.assertEqual(self.status().backlog, 0)

    def test_renamed_node_continues_under_its_new_name(self):
        self.start()
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        self.target.gate.clear()
        self.commit(batch(3, 4))
        with self.store.writing(()):
            self.store.rename("a", "c", 1)
        self.forwarder.on_rename("a", "c")
        self.commit(batch(5, 6, node="c"))
        self.target.gate.set()
        wait_until(lambda: ("c", E1, 6) in self.target.got, "the last sample")
        self.assertEqual(sorted(seq for _, _, seq in set(self.target.got)), [1, 2, 3, 4, 5, 6])
        self.stop()
        self.target.got.clear()
        self.restart()
        self.wait_idle()
        self.assertEqual(self.target.got, [])

    def test_node_renamed_while_the_server_was_down_continues(self):
        self.start()
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        self.stop()
        with self.store.writing(()):
            self.store.rename("a", "c", 1)
        self.commit(batch(3, 3, node="c"))
        self.restart(current=lambda node: "c" if node == "a" else node)
        self.wait_for(*seqs(1, 2), ("c", E1, 3))

    def test_samples_of_other_servers_are_found(self):
        self.store.is_shared = True
        self.start()
        self.wait_idle()
        forwarder_, self.forwarder = self.forwarder, None
        self.commit(batch(1, 2))  # by another server
        self.forwarder = forwarder_
        self.clock.sleep(forwarder.LOOK_S)
        self.forwarder._wake.set()
        self.wait_for(*seqs(1, 2))


class FaultTest(ForwardCase, unittest.TestCase):
    def test_fault_of_the_target_is_shown_and_ends_with_the_next_success(self):
        self.target.away = NotDelivered("fake:1: no route")
        self.start()
        self.commit(batch(1, 25))
        wait_until(lambda: "no route" in self.status().fault, "the fault")
        self.assertEqual(self.status().fault, "fake:1 does not accept samples: no route")
        self.assertEqual((self.status().backlog, self.status().success_ms), (25, None))
        self.target.away = None
        self.wait_for(*seqs(1, 25))
        wait_until(lambda: not self.status().fault, "no fault")
        self.assertEqual(self.status()[:4], ("forward t", "fake", "out", "fake:1"))
        self.assertEqual((self.status().done, self.status().success_ms), (25, self.clock.wall_ms()))

    def test_pause_of_the_target_is_obeyed(self):
        self.target.errors.append(NotDelivered("later", 3000))
        self.start()
        self.commit(batch(1, 1))
        wait_until(lambda: "later" in self.status().fault, "the fault")
        time.sleep(0.03)
        self.assertEqual(self.target.calls, 1)
        self.assertIsNone(self.forwarder.stop(LIMIT_S))

    def test_refused_sample_is_set_aside_and_the_others_are_sent(self):
        self.target.poison = {7: RefusedData("bad 7")}
        self.start()
        self.commit(batch(1, 9))
        self.commit(batch(1, 3, node="b"))
        self.wait_for(*seqs(1, 6), *seqs(8, 9), *seqs(1, 3, node="b"))
        status = self.status()
        self.assertEqual((status.refused, status.done), (1, 11))
        self.assertRegex(status.fault, f"1 sample refused .* 7 of epoch {E1} of a: bad 7")
        self.restart()
        self.wait_idle()
        self.assertEqual(len(self.target.got), 11)

    def test_target_that_refuses_everything_loses_nothing(self):
        self.target.poison = {seq: RefusedData("wrong url") for seq in range(1, 41)}
        self.start()
        self.commit(batch(1, 40))
        wait_until(lambda: "check the settings" in self.status().fault, "the fault")
        self.assertEqual(self.status().refused, 0)
        self.target.poison = {}
        self.wait_for(*seqs(1, 40))

    def test_stop_ends_a_request_that_hangs(self):
        self.target.gate.clear()
        self.start()
        self.commit(batch(1, 1))
        wait_until(lambda: self.target.calls, "the request")
        began_s = time.monotonic()
        self.assertIsNone(self.forwarder.stop(LIMIT_S))
        self.assertLess(time.monotonic() - began_s, 1.0)
        self.assertIsNone(self.forwarder.stop(LIMIT_S))

    def test_target_that_cannot_be_aborted_uses_only_a_part_of_the_time_limit(self):
        self.target.gate.clear()
        self.target.close = lambda: None  # as while it connects
        self.commit(batch(1, 3))
        self.start()
        wait_until(lambda: self.target.calls)
        with mock.patch.object(forwarder, "STOP_S", 0.01):
            self.assertIn("did not stop", self.forwarder.stop(1e6))
        self.target.gate.set()

    def test_forwarder_that_was_not_started_can_be_stopped(self):
        self.assertIsNone(self.make().stop(0))

    def test_internal_error_is_a_fault_and_the_samples_are_sent_later(self):
        self.target.errors += [ZeroDivisionError("oops")] * 2
        self.start()
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        self.assertEqual(self.target.calls, 3)

    def test_store_that_cannot_be_read_is_a_fault_and_is_read_later(self):
        self.commit(batch(1, 2))
        read = self.store.epoch_marks
        errors = [NotStored("busy")] * 3

        def marks():
            if errors:
                raise errors.pop()
            return read()

        with mock.patch.object(self.store, "epoch_marks", marks):
            self.start(history=False)
            wait_until(lambda: not errors and not self.status().fault, "recovery")
        self.commit(batch(3, 4))
        self.wait_for(*seqs(3, 4))

    def test_damaged_epoch_does_not_block_the_others(self):
        self.commit(batch(1, 2))
        self.commit(batch(1, 2, epoch=E2))
        read = self.store.batches_of_epoch

        def stored(node, epoch, after, most):
            if epoch == E1 and self.is_damaged:
                raise StoreDamaged("row 7")
            return read(node, epoch, after, most)

        self.is_damaged = True
        with mock.patch.object(self.store, "batches_of_epoch", stored):
            self.start()
            wait_until(lambda: len(self.target.got) == 2, "the other epoch")
            wait_until(lambda: "row 7" in self.status().fault, "the fault")
            wait_until(lambda: self.status().backlog == 2, "the backlog")
            self.is_damaged = False
            self.clock.sleep(forwarder._UNREADABLE_S)
            self.forwarder._wake.set()
            self.wait_for(*seqs(1, 2), *seqs(1, 2, epoch=E2))
        wait_until(lambda: not self.status().fault, "no fault")


class FileTest(ForwardCase, unittest.TestCase):
    def path(self):
        return os.path.join(self.folder, "forward.sqlite3")

    def test_damaged_or_missing_file_means_that_everything_is_sent_again(self):
        for damage in ("bytes", "missing"):
            with self.subTest(damage=damage):
                self.stop()
                self.setUp()
                self.commit(batch(1, 2))
                self.start(history=False)
                self.commit(batch(3, 4))
                self.wait_for(*seqs(3, 4))
                self.stop()
                for name in os.listdir(self.folder):
                    if name.startswith("forward.sqlite3"):
                        os.unlink(os.path.join(self.folder, name))
                if damage == "bytes":
                    with open(self.path(), "wb") as file:
                        file.write(b"x" * 8192)
                self.restart(history=False)
                self.wait_for(*seqs(3, 4), *seqs(1, 4))
                self.assertEqual("damaged" in str(self.faults.present()), damage == "bytes")

    def test_damage_found_while_the_server_runs_is_a_fault_and_nothing_is_lost(self):
        self.start()
        self.commit(batch(1, 2))
        self.wait_for(*seqs(1, 2))
        self.forwarder._file.close()
        for name in os.listdir(self.folder):
            if name.startswith("forward.sqlite3"):
                os.unlink(os.path.join(self.folder, name))
        with open(self.path(), "wb") as file:
            file.write(b"x" * 8192)
        self.commit(batch(3, 4))
        self.wait_for(*seqs(1, 4))
        self.assertIn("forward.sqlite3", self.faults.present())
        self.restart()
        wait_until(lambda: set(self.target.got) == set(seqs(1, 4)), "all samples")

    def test_list_of_targets_that_is_damaged_or_cannot_be_written_does_not_stop_the_forwarder(self):
        for damage in (b"{", None):
            with self.subTest(damage=damage):
                self.stop()
                self.setUp()
                path = os.path.join(self.folder, "forward.json")
                if damage is None:
                    os.mkdir(path + ".new")  # replacing the file fails
                else:
                    with open(path, "wb") as file:
                        file.write(damage)
                self.commit(batch(1, 2))
                self.start(history=False)
                self.commit(batch(3, 4))
                wait_until(lambda: set(seqs(3, 4)) <= set(self.target.got), "the new samples")
                if damage is None:  # the next start adds the target to the list
                    os.rmdir(path + ".new")
                    self.restart(history=False)
                    with open(path, encoding="utf-8") as file:
                        self.assertEqual(list(json.load(file)), ["t"])

    def test_file_of_a_newer_version_is_kept_and_is_a_fault(self):
        self.make().stop(0)
        db = sqlite3.connect(self.path())
        db.execute("PRAGMA user_version = 9")
        db.close()
        self.commit(batch(1, 2))
        self.start()
        wait_until(lambda: "format 9" in self.status().fault, "the fault")
        self.assertEqual(self.target.got, [])

    def test_file_that_cannot_be_written_is_a_fault_but_samples_are_sent(self):
        self.start()
        self.commit(batch(1, 1))
        self.wait_for(*seqs(1, 1))
        other = sqlite3.connect(self.path(), isolation_level=None, check_same_thread=False)
        self.addCleanup(other.close)
        with mock.patch("pigeonpost.integrations.forward_position._BUSY_S", 0.0):
            self.forwarder._file.close()
            other.execute("BEGIN IMMEDIATE")
            self.commit(batch(2, 3))
            self.wait_for(*seqs(1, 3))
            wait_until(lambda: "positions cannot be written" in self.status().fault, "the fault")
            other.execute("ROLLBACK")
            self.commit(batch(4, 4))
            self.wait_for(*seqs(1, 4))
            wait_until(lambda: not self.status().fault, "no fault")
        self.restart()
        self.wait_idle()
        self.assertEqual(len(self.target.got), 4)

    def test_every_sample_arrives_with_random_failures_restarts_and_threads(self):
        import random

        chance = random.Random(5)
        self.start(again_s=50, most_queued=8)
        last = {}
        for _ in range(60):
            node, epoch = chance.choice("ab"), chance.choice((E1, E2))
            first = last.get((node, epoch), 0) + 1
            last[node, epoch] = first + chance.randrange(5)
            self.commit(batch(first, last[node, epoch], node=node, epoch=epoch))
            self.clock.sleep(chance.choice((0, 1, 30)))
            if chance.random() < 0.2:
                self.target.errors.append(NotDelivered("away"))
            if chance.random() < 0.1:
                self.restart(again_s=50, most_queued=8)
        self.wait_idle()
        wanted = {(*key, seq) for key, end in last.items() for seq in range(1, end + 1)}
        self.assertEqual(set(self.target.got), wanted)


class MakeTest(ForwardCase, unittest.TestCase):
    def test_each_table_becomes_a_part_and_a_missing_library_stops_only_its_own(self):
        def lacking(table, where, context):
            raise MissingLibrary("install it")

        tables = [{"name": "a", "kind": "fake"}, {"name": "b", "kind": "lacking"}]
        kinds = {"fake": lambda table, where, context: self.target, "lacking": lacking}
        subscribed, names = [], SimpleNamespace(on_rename=[])
        context = SimpleNamespace(
            settings=SimpleNamespace(tables={"forward": tables}, file="server.toml"), data=self.folder,
            faults=self.faults, clock=self.clock, store=self.store, current=lambda node: node, names=names,
            ingestor=SimpleNamespace(subscribe=subscribed.append),
        )  # fmt: skip
        with mock.patch.object(forwarder, "KINDS", kinds):
            parts = forwarder.make(context)
        self.assertEqual(list(parts), ["forward a", "forward b"])
        self.assertEqual(parts["forward b"].fault, "install it")
        self.assertEqual(
            (subscribed, names.on_rename), ([parts["forward a"].on_commit], [parts["forward a"].on_rename])
        )
        parts["forward a"].stop(0)

    def test_error_of_a_renaming_is_contained(self):
        self.make()
        with mock.patch.object(self.forwarder._source, "on_rename", side_effect=ZeroDivisionError):
            self.forwarder.on_rename("a", "b")
        self.assertIn("ZeroDivisionError", self.forwarder.fault)


class ManyThreadsTest(ForwardCase, unittest.TestCase):
    def test_commits_during_requests_are_sent_in_order(self):
        self.start()

        def feed():
            for seq in range(1, 200):
                self.commit(batch(seq, seq))

        thread = threading.Thread(target=feed)
        thread.start()
        thread.join(LIMIT_S)
        self.wait_for(*seqs(1, 199))
        self.assertEqual(self.target.got, seqs(1, 199))
