"""Readings without sequence numbers: each is stored once and durable before the answer, or not stored at all."""

import glob
import os
import re
import threading
import unittest
from pathlib import Path
from unittest import mock

from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import AuthFailed, NotStored, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.server import node_limits, unnumbered_sources
from pigeonpost.server.commit_waiter import CommitWaiter
from pigeonpost.server.unnumbered_sources import Claim, ExternalReading, UnnumberedSources
from tests.page_support import use_memory_disk
from tests.server.test_ingest import IngestCase, batch
from tests.support import LIMIT_S, ROOT, wait_until

C = {"temperature": "°C"}
ATTIC = Claim("attic", "pimonitor")


def setUpModule():
    use_memory_disk()


class Real(IngestCase):
    clock_type = Clock

    def setUp(self):
        super().setUp()
        self.links = []
        self.tokens, self.faults, self.throttle = {}, Faults(), LoginThrottle(self.clock)
        self.unnumbered_sources = self.make()

    def make(self):
        return UnnumberedSources(self.ingestor, self.links, self.clock, self.tokens, self.faults, self.throttle)

    def run_ingestor(self):
        self.ingestor.start()
        self.addCleanup(self.ingestor.stop, LIMIT_S)

    def points(self, node):
        return self.store.points(node, 0, 1 << 60, 100_000)


class StoreTest(Real):
    def test_reading_is_durable_when_it_is_answered(self):
        self.run_ingestor()
        for n in range(3):
            self.unnumbered_sources.store(ExternalReading(ATTIC, {"temperature": 20.5 + n}, C, 1_700_000_000_000 + n))
            self.assertEqual(len(self.points("attic")), n + 1)
        first, *_, last = self.points("attic")
        self.assertEqual((first.seq, last.seq, first.epoch), (1, 3, last.epoch))
        self.assertEqual((last.time_ms, last.values), (1_700_000_000_002, {"temperature": 22.5}))
        self.assertEqual(self.store.nodes()[0]["sensors"], C)

    def test_reading_without_a_time_has_the_present_time(self):
        self.run_ingestor()
        before = self.clock.wall_ms()
        self.unnumbered_sources.store(
            ExternalReading(ATTIC, {"temperature": None}, C, errors={"temperature": "no answer"})
        )
        self.assertTrue(before <= self.points("attic")[0].time_ms <= self.clock.wall_ms())

    def test_impossible_value_is_stored_as_null_with_an_error(self):
        self.run_ingestor()
        units = {"temperature": "°C", "humidity": "%", "pressure": "hPa", "battery": "%", "outside": "°F"}
        values = {"temperature": -3276.7, "humidity": 3304.3, "pressure": -5, "battery": 130, "outside": -459.6}
        reading = ExternalReading(ATTIC, values, units, errors={"pressure": "kept"})
        self.unnumbered_sources.store(reading)
        (point,) = self.points("attic")
        self.assertEqual(point.values, {**values, "temperature": None, "humidity": None})
        self.assertEqual(self.unnumbered_sources.batches([reading])[0].samples.errors, {
            "temperature": {0: "impossible: -3276.7 °C (absolute zero: at least -273.15 °C)"},
            "humidity": {0: "impossible: 3304.3 % (relative humidity: 0 to 100 %)"}, "pressure": {0: "kept"},
        })  # fmt: skip
        self.assertEqual(values["humidity"], 3304.3)

    def test_reading_that_exceeds_a_limit_is_refused_with_the_reason(self):
        self.run_ingestor()
        with mock.patch.object(node_limits, "MOST_NODES", 0), self.assertRaisesRegex(NotStored, "has 0 nodes"):
            self.unnumbered_sources.store(ExternalReading(ATTIC, {"temperature": 1.0}, C))
        many = {f"n{k}": 1.0 for k in range(300)}
        self.unnumbered_sources.store(ExternalReading(ATTIC, many, {}))
        self.assertEqual(len(self.points("attic")[0].values), 256)

    def test_reading_does_not_wait_for_the_regular_commit(self):
        self.ingestor.commit_s = 3600.0
        self.run_ingestor()
        for n in range(5):
            self.unnumbered_sources.store(ExternalReading(ATTIC, {"temperature": n}, C))

    def test_concurrent_readings_are_numbered_without_holes(self):
        self.run_ingestor()

        def bring(node):
            for n in range(25):
                self.unnumbered_sources.store(ExternalReading(Claim(node, "pimonitor"), {"temperature": n}, C))

        threads = [threading.Thread(target=bring, args=(node,)) for node in ("a", "b") for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        for node in ("a", "b"):
            self.assertEqual(sorted(point.seq for point in self.points(node)), list(range(1, 101)))

    def test_each_run_of_the_server_has_a_new_epoch(self):
        self.run_ingestor()
        self.unnumbered_sources.store(ExternalReading(ATTIC, {"temperature": 1}, C))
        self.make().store(ExternalReading(ATTIC, {"temperature": 2}, C))
        self.assertEqual(len({point.epoch for point in self.points("attic")}), 2)


class TimeoutTest(Real):
    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(unnumbered_sources, "STORE_S", 0.02))

    def test_timeout_is_reported_and_the_reading_is_not_stored_later(self):
        with self.assertRaisesRegex(NotStored, "within 0.02 s"):
            self.unnumbered_sources.store(ExternalReading(ATTIC, {"temperature": 1}, C))
        self.run_ingestor()
        self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 2}, C))
        self.assertTrue(self.ingestor.flush(LIMIT_S))
        self.assertEqual([(point.seq, point.values) for point in self.points("attic")], [(1, {"temperature": 2})])

    def test_reason_of_the_failure_is_reported(self):
        self.ingestor.fault = "nothing can be stored: disk full"
        with self.assertRaisesRegex(NotStored, "disk full"):
            self.unnumbered_sources.store(ExternalReading(ATTIC, {"temperature": 1}, C))

    def test_several_readings_of_one_client_are_one_batch(self):
        self.run_ingestor()
        readings = [
            ExternalReading(
                ATTIC, {"temperature": value}, C, time_ms, {"temperature": "cold"} if value is None else None
            )
            for value, time_ms in ((1, 1000), (None, 1500), (3, 2000))
        ]
        self.assertTrue(self.unnumbered_sources.queue(*readings))
        self.assertTrue(self.ingestor.flush(LIMIT_S))
        self.assertEqual(
            [(point.seq, point.time_ms, point.values["temperature"]) for point in self.points("attic")],
            [(1, 1000, 1), (2, 1500, None), (3, 2000, 3)],
        )
        self.assertEqual(self.ingestor.latest["attic"].sample.values, {"temperature": 3})

    def test_reading_is_refused_if_the_buffer_is_full(self):
        self.ingestor._buffer_samples = 1
        self.assertTrue(self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 1}, C)))
        self.assertFalse(self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 2}, C)))
        with self.assertRaises(NotStored):
            self.unnumbered_sources.store(ExternalReading(ATTIC, {"temperature": 3}, C))

    def test_reading_that_is_being_stored_is_waited_for(self):
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
            return False  # STORE_S expires while it is being stored

        with mock.patch.object(self.store, "put", slow), mock.patch.object(CommitWaiter, "wait", impatient):
            self.run_ingestor()
            reading = ExternalReading(ATTIC, {"temperature": 1}, C)
            thread = threading.Thread(target=self.unnumbered_sources.store, args=(reading,))
            thread.start()
            wait_until(lambda: len(waits) > 1, "it is waited for still")
            self.assertTrue(thread.is_alive())
            go_on.set()
            thread.join(LIMIT_S)
        self.assertFalse(thread.is_alive())
        self.assertEqual(len(self.points("attic")), 1)


class ClientTest(Real):
    def test_client_appears_once_with_its_sensors(self):
        self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 1}, C))
        self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 1, "humidity": 2}, {**C, "humidity": "%"}))
        (link,) = self.links
        self.assertEqual(link.state.sensors, [{"name": "temperature", "unit": "°C"}, {"name": "humidity", "unit": "%"}])
        self.assertIs(self.unnumbered_sources.find("attic"), link.state)
        self.assertEqual((link.state.name, link.state.calls_in, link.state.connected), ("attic", True, True))
        self.assertFalse(link.ask("SEND", True))

    def test_unit_that_a_later_call_names_is_shown(self):
        for units in ({}, C, {}):
            self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 1}, units))
        (link,) = self.links
        self.assertEqual(link.state.sensors, [{"name": "temperature", "unit": "°C"}])

    def test_interval_of_calls_is_learned(self):
        now = [100.0]
        with mock.patch.object(self.clock, "monotonic", lambda: now[0]):
            for calls, expected in ((8, None), (1, 300.0), (5, 300.0)):
                for _ in range(calls):
                    self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 1}, C))
                    now[0] += 300
                self.assertEqual(self.unnumbered_sources.find("attic").every_s, expected)


class ProofTest(Real):
    """Permission to write as a node, on all transports to which clients connect."""

    def test_node_with_a_token_is_only_written_with_proof(self):
        self.tokens["attic"] = object()
        for transport in ("mqtt", "pimonitor", "bus", "a new one"):
            claim = Claim("attic", transport, is_listed=transport == "bus")
            reading = ExternalReading(claim, {"temperature": 1}, C)
            sources = self.unnumbered_sources
            for write, what in ((sources.store, reading), (sources.queue, reading), (sources.caller, claim)):
                with self.assertRaisesRegex(AuthFailed, "attic has a token"):
                    write(what)
        self.assertEqual((self.links, self.ingestor._batches), ([], []))
        self.unnumbered_sources.queue(ExternalReading(Claim("attic", "tmon", True), {"temperature": 1}, C))
        self.assertEqual(len(self.ingestor._batches), 1)

    def test_token_created_after_the_first_call_must_be_proved(self):
        self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 1}, C))
        self.tokens["attic"] = object()
        with self.assertRaises(AuthFailed):
            self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 2}, C))
        self.assertEqual(self.links, [])  # it is not shown, and commands are not sent to it
        self.unnumbered_sources.caller(Claim("attic", "push", True))
        with self.assertRaises(AuthFailed):
            self.unnumbered_sources.queue(ExternalReading(ATTIC, {"temperature": 2}, C))
        self.assertEqual(len(self.links), 1)

    def test_node_whose_token_was_revoked_is_shown_as_refused(self):
        self.tokens["attic"] = object()
        state = self.unnumbered_sources.caller(Claim("attic", "push", True))
        state.record_contact(0, 0.0)
        self.unnumbered_sources.recheck_tokens({"attic", "unknown"})  # it has a new token
        self.assertTrue(state.connected)
        del self.tokens["attic"]
        self.unnumbered_sources.recheck_tokens({"attic", "unknown"})
        self.assertFalse(state.connected)
        self.assertEqual(state.fault, "its token was revoked: `control.py token attic` creates a new one")

    def test_claim_is_not_proven_by_default(self):
        self.assertFalse(Claim("attic", "a new one").is_proven)

    def test_refusal_is_logged_once_a_minute(self):
        self.tokens["attic"] = object()
        with self.assertLogs("pigeonpost.server.unnumbered_sources", "WARNING") as logs:
            for _ in range(100):
                with self.assertRaises(AuthFailed):
                    self.unnumbered_sources.caller(ATTIC)
        self.assertEqual(len(logs.output), 1)

    def test_unreadable_tokens_refuse_all_clients(self):
        class Broken(dict):
            def __contains__(self, node):
                raise SettingsError("tokens.json does not read")

        self.unnumbered_sources._tokens = Broken()
        with self.assertRaisesRegex(NotStored, "does not read"):
            self.unnumbered_sources.caller(ATTIC)


class TransportTest(unittest.TestCase):
    def test_samples_are_submitted_only_where_the_sender_is_known(self):
        """A new transport submits its samples through UnnumberedSources, or is added here with its proof."""
        found = {
            os.path.relpath(path, ROOT): set(re.findall(r"(\w+)\.submit\(|(CommitWaiter)\(", text))
            for path in glob.glob(f"{ROOT}/pigeonpost/**/*.py", recursive=True)
            if (text := Path(path).read_text(encoding="utf-8"))
        }
        self.assertEqual({path for path, calls in found.items() if calls}, {
            "pigeonpost/server/unnumbered_sources.py",  # checks
            "pigeonpost/server/commit_waiter.py",  # for the others
            "pigeonpost/transports/tcp_server_session.py",  # has the token proved, and the name claimed
            "pigeonpost/transports/held_batches.py",  # passes on those of tcp_server_session
            "pigeonpost/transports/mqtt_server.py",  # asks UnnumberedSources
            "pigeonpost/transports/push_server.py",  # the same
            "pigeonpost/server/timed_readings.py",  # the same, for the programs that transports/senders.py admits
            "pigeonpost/importing/importer.py",  # for the operator
        })  # fmt: skip
        for name in ("mqtt_server", "push_server"):
            text = Path(f"{ROOT}/pigeonpost/transports/{name}.py").read_text(encoding="utf-8")
            self.assertIn("unnumbered_sources.caller(Claim(", text)


class UnprovenLimitTest(Real):
    """Names can be invented, so they are counted, except for those of nodes with a token."""

    def caller(self, node, transport="mqtt", sensors=(), **more):
        return self.unnumbered_sources.caller(Claim(node, transport, **more), sensors)

    def test_invented_names_do_not_displace_other_nodes(self):
        with mock.patch.object(unnumbered_sources, "MOST_UNPROVEN", 3):
            for n in range(3):
                self.caller(f"n{n}")
            for n in range(100):
                with self.assertRaisesRegex(NotStored, "3 nodes without a token"):
                    self.caller(f"x{n}")
            self.caller("n1")  # it is admitted already
            self.caller("kitchen", "pimonitor")  # another transport has a separate limit
            self.caller("cellar", is_listed=True)  # it is in the settings
            for n in range(10):
                self.tokens[f"t{n}"] = object()
                self.caller(f"t{n}", is_proven=True)
            self.tokens["n2"] = object()  # a node that has a token now is not counted
            self.caller("n3")
        self.assertEqual(len(self.links), 3 + 1 + 1 + 10 + 1)

    def test_too_many_clients_are_one_fault_with_its_remedy(self):
        with mock.patch.object(unnumbered_sources, "MOST_UNPROVEN", 3), self.assertLogs() as logs:
            for n in range(1000):
                try:
                    self.caller(f"n{n}")
                except NotStored:
                    pass
        self.assertEqual(len(logs.output), 1)
        (text,) = self.faults.present().values()
        self.assertRegex(text, r"3 nodes without a token .* via mqtt .*control.py token NODE")

    def test_sensors_are_counted_across_all_nodes_of_a_transport(self):
        with mock.patch.object(unnumbered_sources, "MOST_UNPROVEN_SENSORS", 6):
            self.caller("a", sensors=["t1", "t2", "t3"])
            self.caller("b", sensors=["t1", "t2"])
            for node in ("b", "c"):
                with self.assertRaisesRegex(NotStored, "6 sensors of nodes without a token"):
                    self.caller(node, sensors=["t8", "t9"])
            self.caller("a", sensors=["t1", "t2", "t3"])  # as before
            self.caller("c", "bus", sensors=["t8", "t9"])
            self.caller("e", "pimonitor", sensors=["t1"], is_listed=True)
            with self.assertRaises(NotStored):  # being in the settings of another transport has no effect
                self.caller("e", sensors=["t8", "t9"])
            self.tokens["d"] = object()
            self.caller("d", sensors=[f"s{n}" for n in range(100)], is_proven=True)
        self.assertEqual([link.state.name for link in self.links], ["a", "b", "c", "e", "d"])


class FullBufferTest(Real):
    def test_submit_fails_if_the_buffer_is_full_or_the_program_stops(self):
        self.ingestor._buffer_samples = 1
        self.assertTrue(self.ingestor.submit(self.answers.of(batch(1, 2))))
        self.assertFalse(self.ingestor.submit(self.answers.of(batch(3, 4)), limit_s=0.01))
        self.run_ingestor()
        wait_until(lambda: self.ingestor.submit(self.answers.of(batch(3, 4)), limit_s=0.01), "there is room again")
        self.ingestor.stop(LIMIT_S)
        self.assertFalse(self.ingestor.submit(self.answers.of(batch(5, 6))))
