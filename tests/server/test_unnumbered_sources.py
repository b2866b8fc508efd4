"""Readings without identity: each stored once, durable before it is answered, and not at all when that fails."""

import threading
from unittest import mock

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import NotStored
from pigeonpost.server import unnumbered_sources
from pigeonpost.server.commit_waiter import CommitWaiter
from pigeonpost.server.unnumbered_sources import ExternalReading, UnnumberedSources
from tests.server.test_ingest import IngestCase, batch
from tests.support import LIMIT_S, wait_until

C = {"temperature": "°C"}


class Real(IngestCase):
    clock_type = Clock

    def setUp(self):
        super().setUp()
        self.links = []
        self.unnumbered_sources = UnnumberedSources(self.ingestor, self.links, self.clock)

    def run_ingestor(self):
        self.ingestor.start()
        self.addCleanup(self.ingestor.stop, LIMIT_S)

    def points(self, node):
        return self.store.points(node, 0, 1 << 60, 100_000)


class Stored(Real):
    def test_what_is_answered_is_durable(self):
        self.run_ingestor()
        for n in range(3):
            self.unnumbered_sources.store(ExternalReading("attic", {"temperature": 20.5 + n}, C, 1_700_000_000_000 + n))
            self.assertEqual(len(self.points("attic")), n + 1)
        first, *_, last = self.points("attic")
        self.assertEqual((first.seq, last.seq, first.epoch), (1, 3, last.epoch))
        self.assertEqual((last.time_ms, last.values), (1_700_000_000_002, {"temperature": 22.5}))
        self.assertEqual(self.store.nodes()[0]["sensors"], C)

    def test_without_a_time_it_is_now(self):
        self.run_ingestor()
        before = self.clock.wall_ms()
        self.unnumbered_sources.store(
            ExternalReading("attic", {"temperature": None}, C, errors={"temperature": "no answer"})
        )
        self.assertTrue(before <= self.points("attic")[0].time_ms <= self.clock.wall_ms())

    def test_it_does_not_wait_for_the_usual_commit(self):
        self.ingestor._commit_s = 3600.0
        self.run_ingestor()
        for n in range(5):
            self.unnumbered_sources.store(ExternalReading("attic", {"temperature": n}, C))

    def test_many_at_once_are_numbered_without_holes(self):
        self.run_ingestor()

        def bring(node):
            for n in range(25):
                self.unnumbered_sources.store(ExternalReading(node, {"temperature": n}, C))

        threads = [threading.Thread(target=bring, args=(node,)) for node in ("a", "b") for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        for node in ("a", "b"):
            self.assertEqual(sorted(point.seq for point in self.points(node)), list(range(1, 101)))

    def test_another_run_of_the_server_has_another_epoch(self):
        self.run_ingestor()
        self.unnumbered_sources.store(ExternalReading("attic", {"temperature": 1}, C))
        UnnumberedSources(self.ingestor, [], self.clock).store(ExternalReading("attic", {"temperature": 2}, C))
        self.assertEqual(len({point.epoch for point in self.points("attic")}), 2)


class NotStoredInTime(Real):
    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(unnumbered_sources, "STORE_S", 0.02))

    def test_it_is_said_and_never_stored_later(self):
        with self.assertRaisesRegex(NotStored, "within 0.02 s"):
            self.unnumbered_sources.store(ExternalReading("attic", {"temperature": 1}, C))
        self.run_ingestor()
        self.unnumbered_sources.leave(ExternalReading("attic", {"temperature": 2}, C))
        self.assertTrue(self.ingestor.flush(LIMIT_S))
        self.assertEqual([(point.seq, point.values) for point in self.points("attic")], [(1, {"temperature": 2})])

    def test_the_reason_is_told(self):
        self.ingestor.fault = "nothing can be stored: disk full"
        with self.assertRaisesRegex(NotStored, "disk full"):
            self.unnumbered_sources.store(ExternalReading("attic", {"temperature": 1}, C))

    def test_no_room(self):
        self.ingestor._buffer_samples = 1
        self.assertTrue(self.unnumbered_sources.leave(ExternalReading("attic", {"temperature": 1}, C)))
        self.assertFalse(self.unnumbered_sources.leave(ExternalReading("attic", {"temperature": 2}, C)))
        with self.assertRaises(NotStored):
            self.unnumbered_sources.store(ExternalReading("attic", {"temperature": 3}, C))

    def test_what_is_being_stored_is_waited_for(self):
        entered, go_on, put = threading.Event(), threading.Event(), self.store.put

        def slow(*args):
            entered.set()
            go_on.wait(LIMIT_S)
            return put(*args)

        waits, wait = [], CommitWaiter.wait

        def impatient(waiter, seconds):
            waits.append(seconds)
            if len(waits) > 1:
                return wait(waiter, seconds)
            self.assertTrue(entered.wait(LIMIT_S))
            return False  # STORE_S is over while it is being stored

        with mock.patch.object(self.store, "put", slow), mock.patch.object(CommitWaiter, "wait", impatient):
            self.run_ingestor()
            reading = ExternalReading("attic", {"temperature": 1}, C)
            thread = threading.Thread(target=self.unnumbered_sources.store, args=(reading,))
            thread.start()
            wait_until(lambda: len(waits) > 1, "it is waited for still")
            self.assertTrue(thread.is_alive())
            go_on.set()
            thread.join(LIMIT_S)
        self.assertFalse(thread.is_alive())
        self.assertEqual(len(self.points("attic")), 1)


class Callers(Real):
    def test_a_caller_appears_once_with_its_sensors(self):
        self.unnumbered_sources.leave(ExternalReading("attic", {"temperature": 1}, C))
        self.unnumbered_sources.leave(
            ExternalReading("attic", {"temperature": 1, "humidity": 2}, {**C, "humidity": "%"})
        )
        (link,) = self.links
        self.assertEqual(link.state.sensors, [{"name": "temperature", "unit": "°C"}, {"name": "humidity", "unit": "%"}])
        self.assertIs(self.unnumbered_sources.caller("attic"), link.state)
        self.assertEqual((link.state.name, link.state.calls_in, link.state.connected), ("attic", True, True))
        self.assertFalse(link.ask("SEND", True))

    def test_how_often_it_calls_is_learned(self):
        now = [100.0]
        with mock.patch.object(self.clock, "monotonic", lambda: now[0]):
            state = self.unnumbered_sources.record_call("attic")
            self.assertIsNone(state.every_s)
            for step, expected in ((60, 60.0), (300, 300.0), (60, 300.0), (60, 300.0), (60, 300.0), (60, 60.0)):
                now[0] += step
                self.assertEqual(self.unnumbered_sources.record_call("attic").every_s, expected)

    def test_there_is_an_end_to_them(self):
        with mock.patch.object(unnumbered_sources, "MOST_CALLERS", 3):
            for n in range(3):
                self.unnumbered_sources.caller(f"n{n}")
            self.unnumbered_sources.caller("n1")
            with self.assertRaisesRegex(NotStored, "3 nodes"):
                self.unnumbered_sources.caller("n3")


class NoRoom(Real):
    def test_submit_gives_up_when_there_is_no_room_or_the_program_stops(self):
        self.ingestor._buffer_samples = 1
        self.assertTrue(self.ingestor.submit(self.answers.of(batch(1, 2))))
        self.assertFalse(self.ingestor.submit(self.answers.of(batch(3, 4)), limit_s=0.01))
        self.run_ingestor()
        wait_until(lambda: self.ingestor.submit(self.answers.of(batch(3, 4)), limit_s=0.01), "there is room again")
        self.ingestor.stop(LIMIT_S)
        self.assertFalse(self.ingestor.submit(self.answers.of(batch(5, 6))))
