"""Tests of the heartbeat: requests of a well and of a faulty server, answers of services, a thread that hangs."""

import argparse
import threading
import unittest
from types import SimpleNamespace
from unittest import mock

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import NotStored, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.integrations import heartbeat
from pigeonpost.integrations.heartbeat import Heartbeat, make_request
from pigeonpost.integrations.registry import INTEGRATIONS, connect_parts
from pigeonpost.server import ingest
from pigeonpost.settings import load_server
from pigeonpost.transports.contract import IntegrationStatus
from tests.alerts.fake_services import Healthchecks, Refusal, UptimeKuma
from tests.page_support import for_class
from tests.server.test_ingest import IngestCase
from tests.storage.test_contract import batch
from tests.support import LIMIT_S, wait_until

QUIET = SimpleNamespace(fault="", is_blocked=False, overdue_s=0.0, log_fault="")


def settings_of(url, every=60):
    text = f'[heartbeat]\nurl = "{url}"\nevery = {every}\n'
    return load_server(argparse.Namespace(config=None), {"PIGEONPOST_SERVER_TOML": text}, ())


def part_for(url, ingestor=QUIET, every=60):
    context = SimpleNamespace(
        name="home", settings=settings_of(url, every), ingestor=ingestor, faults=Faults(), clock=FakeClock()
    )
    part = Heartbeat(context)
    part.context = context
    return part


class HeartbeatCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service, cls.kuma = Healthchecks(for_class(cls)), UptimeKuma(for_class(cls))

    def setUp(self):
        for kept in (self.service.pings, self.service.answers, self.service.faults, self.kuma.pings):
            kept.clear()
        self.part = part_for(f"{self.service.url}/{self.service.uuid}")


class Services(HeartbeatCase):
    def test_well_server_is_reported_as_a_success(self):
        self.assertEqual(self.part.beat(), 60)
        self.assertEqual((self.service.pings, self.part.fault), ([("success", "", "")], ""))

    def test_faults_are_reported_without_secrets(self):
        with self.assertLogs("pigeonpost.core.faults"):
            self.part.context.faults.set("backup", "cannot write to https://me:canary@nas/")
        states = [IntegrationStatus(name, "", "in", "", None, None, fault=fault) for name, fault in (
            ("influx", "no token"), ("other", ""),
        )]  # fmt: skip
        self.part.parts = {
            "watch": SimpleNamespace(fault="mail server h: 535", statuses=lambda: states), "heartbeat": self.part,
            "mqtt": SimpleNamespace(fault=""), "write": SimpleNamespace(fault="", statuses=lambda: states),
        }  # fmt: skip
        self.assertEqual(self.part.beat(), 60)
        text = "home: 3 faults\nbackup: cannot write to https://***@nas/\nwatch: mail server h: 535\ninflux: no token"
        self.assertEqual(self.service.pings, [("fail", text, "")])

    def test_slug_and_query_are_kept(self):
        part = part_for(f"{self.service.url}/{self.service.slug}?create=1")
        part.beat()
        part.parts = {"watch": SimpleNamespace(fault="away")}
        part.beat()
        kinds = [(kind, query) for kind, _, query in self.service.pings]
        self.assertEqual(kinds, [("success", "create=1"), ("fail", "create=1")])

    def test_request_to_uptime_kuma_has_the_state_in_its_query(self):
        part = part_for(f"{self.kuma.url}/api/push/{self.kuma.token}?status=up&msg=OK&ping=")
        part.beat()
        part.parts = {"watch": SimpleNamespace(fault="5 % & more\udcff " + "x" * 999)}
        part.beat()
        (first, second), status = self.kuma.pings, part.statuses()[0]
        self.assertEqual(first, ("up", "OK", ""))
        self.assertEqual((second[0], second[1][:25], len(second[1])), ("down", "watch: 5 % & more? xxxxxx", 250))
        self.assertEqual((status.kind, status.place, status.done), ("uptime kuma", self.kuma.url, 2))

    def test_many_faults_are_cut(self):
        request = make_request("/x", "home", ["é" * 100] * 1000)
        self.assertLessEqual(len(request.body), 10_000)
        self.assertTrue(request.body.decode().startswith("home: 1,000 faults\nééé"))

    def test_address_of_each_service_is_completed(self):
        for target, faults, made in (
            ("/u", [], ("POST", "/u")), ("/u", ["x"], ("POST", "/u/fail")), ("/u/", ["x"], ("POST", "/u/fail")),
            ("/ping/key/slug?create=1", ["x"], ("POST", "/ping/key/slug/fail?create=1")),
            ("/api/push/T", [], ("GET", "/api/push/T?status=up&msg=OK")),
            ("/api/push/T?status=down&a=1", ["x y"], ("GET", "/api/push/T?a=1&status=down&msg=x+y")),
        ):  # fmt: skip
            self.assertEqual(make_request(target, "home", faults)[:2], made)


class Answers(HeartbeatCase):
    def test_wrong_address_is_a_fault_that_names_the_key(self):
        for url, words in (
            (f"{self.service.url}/canary", "it has no such check: check [heartbeat] url"),
            (f"{self.service.url}/canary/slug", "the response has the status 404: check [heartbeat] url"),
            (f"{self.kuma.url}/api/push/canary", "the response has the status 404: check [heartbeat] url"),
        ):
            part = part_for(url)
            with self.assertLogs("pigeonpost.integrations.heartbeat", "WARNING") as logged:
                part.beat()
            self.assertEqual(part.fault, f"{url[: url.index('/', 7)]}: {words}")
            self.assertNotIn("canary", str(logged.output) + str(part.statuses()))
            self.assertIsNone(part.statuses()[0].success_ms)

    def test_internal_error_is_a_fault_and_the_requests_continue(self):
        with (
            mock.patch.object(heartbeat, "make_request", side_effect=RuntimeError),
            self.assertLogs("pigeonpost.integrations.heartbeat", "ERROR"),
        ):
            self.assertEqual(self.part.beat(), 60)
        self.assertEqual(self.part.fault, "internal error, see the log: RuntimeError")
        self.part.beat()
        self.assertEqual(self.part.fault, "")

    def test_service_that_does_not_know_failures_is_explained(self):
        self.part.beat()
        self.part.parts = {"watch": SimpleNamespace(fault="away")}
        self.service.answers.append(Refusal(404, ""))
        with self.assertLogs("pigeonpost.integrations.heartbeat"):
            self.part.beat()
        self.assertIn("it does not accept faults, so it only notices", self.part.fault)

    def test_next_request_follows_the_answer(self):
        for every, answer, pause_s in (
            (60, Refusal(503, ""), 60), (600, Refusal(503, ""), 60), (60, Refusal(429, "", Retry_After="300"), 300),
            (60, Refusal(429, "", Retry_After="1"), 60), (15, Refusal(500, ""), 15), (600, Refusal(200, "OK"), 600),
            (60, Refusal(409, "ambiguous slug"), 60), (60, Refusal(301, ""), 60),
        ):  # fmt: skip
            part = part_for(f"{self.service.url}/{self.service.uuid}", every=every)
            self.service.answers.append(answer)
            with mock.patch.object(heartbeat.log, "log"):
                self.assertEqual(part.beat(), pause_s, answer)
            self.assertEqual(part.fault == "", answer.status == 200)
            self.assertEqual(part.statuses()[0].refused, 400 <= answer.status < 500)

    def test_long_answer_does_not_hide_its_status(self):
        for status, fault in ((200, ""), (500, f"{self.service.url}: the response has the status 500")):
            self.service.answers.append(Refusal(status, "x" * 100_000))
            with mock.patch.object(heartbeat.log, "log"):
                self.part.beat()
            self.assertEqual(self.part.fault, fault)

    def test_service_that_cannot_be_reached_is_a_fault_until_it_answers(self):
        part = part_for("http://127.0.0.1:1/canary", every=600)
        with self.assertLogs("pigeonpost.integrations.heartbeat") as logged:
            self.assertEqual([part.beat(), part.beat()], [60, 60])
        self.assertEqual(len(logged.output), 1)
        self.assertIn("http://127.0.0.1:1: ", part.fault)
        self.assertNotIn("canary", part.fault)
        part._url = self.part._url
        with self.assertLogs("pigeonpost.integrations.heartbeat", "INFO") as logged:
            part.beat()
        self.assertIn("it is accepted again", logged.output[0])
        self.assertEqual(part.fault, "")
        self.assertEqual(part.statuses()[0][4:6], (part.context.clock.wall_ms(), None))

    def test_invalid_address_is_an_error_without_it(self):
        with self.assertRaisesRegex(SettingsError, r"\[heartbeat\] url takes an address whose port") as caught:
            part_for("https://h:canary/x")
        self.assertNotIn("canary", str(caught.exception))

    def test_part_is_made_only_if_a_url_is_set(self):
        (entry,) = [one for one in INTEGRATIONS if one.name == "heartbeat"]
        self.assertTrue(entry.is_wanted(settings_of("http://h/")))
        self.assertFalse(entry.is_wanted(settings_of("")))


class Threads(HeartbeatCase):
    def test_requests_are_repeated_until_the_end(self):
        constants = {"FIRST_S": 0.0, "SHORTEST_S": 0.01}
        with mock.patch.multiple(heartbeat, **constants), mock.patch.object(self.part, "_every_s", 0.01):
            self.part.start()
            self.addCleanup(self.part.stop, LIMIT_S)
            wait_until(lambda: len(self.service.pings) > 3, "four requests")
            self.part.stop(LIMIT_S)
            self.part.stop(LIMIT_S)
            self.assertFalse(self.part._thread.is_alive())
        self.assertEqual(self.service.faults, [])
        self.assertEqual({kind for kind, _, _ in self.service.pings}, {"success"})  # nothing at the start and the end

    def test_internal_error_is_reported_as_a_fault(self):
        self.part.parts = {"broken": object()}
        self.part.beat()
        self.assertEqual(self.service.pings[0][:2],
                         ("fail", "home: 1 fault\ninternal error, see the log: AttributeError"))  # fmt: skip

    def test_stop_ends_a_request_whose_answer_does_not_arrive(self):
        asked, release = threading.Event(), threading.Event()
        self.addCleanup(release.set)

        def answer(request, body):
            asked.set()
            release.wait(LIMIT_S)
            return 200, "OK", {}

        with mock.patch.object(self.service, "answer", answer), mock.patch.object(heartbeat, "FIRST_S", 0.0):
            self.part.start()
            self.assertTrue(asked.wait(LIMIT_S))
            self.part.stop(LIMIT_S)
        self.assertFalse(self.part._thread.is_alive())
        self.assertEqual(self.part.fault, "")


class Storing(IngestCase):
    """The heartbeat of a server whose writer thread hangs, or cannot store samples."""

    @classmethod
    def setUpClass(cls):
        cls.service = Healthchecks(for_class(cls))

    def setUp(self):
        super().setUp()
        self.part = part_for(f"{self.service.url}/{self.service.uuid}", self.ingestor)
        self.ingestor.start()
        self.addCleanup(self.ingestor.stop, LIMIT_S)

    def ping(self):
        """Return the kind of the request that is sent now."""
        self.part.beat()
        return self.service.pings[-1][0]

    def test_writer_thread_that_hangs_is_a_fault(self):
        release, entered = threading.Event(), threading.Event()
        self.addCleanup(release.set)
        put = self.store.put

        def hang(*arguments):
            entered.set()
            release.wait(LIMIT_S)
            return put(*arguments)

        with mock.patch.object(self.store, "put", hang):
            self.submit(batch(1, 3))
            self.assertTrue(entered.wait(LIMIT_S))
            self.assertEqual(self.ping(), "success")
            self.clock.sleep(heartbeat.HANG_S + 2)
            self.assertEqual(self.ping(), "fail")
            self.assertRegex(self.part.server_faults()[0], "samples have waited for 61 s: the database or its disk")
            release.set()
            self.assertTrue(self.answers.wait_for(lambda: self.answers.acks))
        self.assertEqual(self.ping(), "success")

    def test_slow_commits_of_a_busy_server_are_no_fault(self):
        for first in range(1, 40, 4):
            self.clock.sleep(heartbeat.HANG_S - 1)
            self.submit(batch(first, first + 3))
            self.assertEqual(self.part.server_faults(), [])
            self.assertTrue(self.ingestor.flush(LIMIT_S))

    def test_samples_that_cannot_be_stored_are_a_fault(self):
        retry = mock.patch.object(ingest, "_RETRY_S", 0.01)
        full = mock.patch.object(self.store, "put", side_effect=NotStored("the disk is full"))
        with retry, full, self.assertLogs("pigeonpost.server.ingest"):
            self.submit(batch(1, 3))
            wait_until(lambda: self.ingestor.is_blocked, "a failed commit")
            self.assertEqual(self.part.server_faults(), ["nothing can be stored: the disk is full"])
            self.assertEqual(self.ping(), "fail")
        wait_until(lambda: self.part.server_faults() == [], "the end of the fault")

    def test_log_that_cannot_be_written_is_a_fault(self):
        self.log.fault = "the CSV log is not written: no space"
        self.assertEqual(self.part.server_faults(), ["the CSV log is not written: no space"])


class Connection(unittest.TestCase):
    def test_heartbeat_knows_all_parts_of_the_server(self):
        part = part_for("http://h/x")
        parts = {"watch": SimpleNamespace(fault="mail server h: 535"), "heartbeat": part}
        connect_parts(parts, SimpleNamespace(on_change=[]))
        self.assertEqual(part.server_faults(), ["watch: mail server h: 535"])


del IngestCase

if __name__ == "__main__":
    unittest.main()
