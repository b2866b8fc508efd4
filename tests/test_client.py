"""Tests of pigeonpost.client with a real web interface, and with a fake server for faults."""

import os
import re
import unittest
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from unittest import mock

from pigeonpost import client as module
from pigeonpost.client import (
    Client,
    NotAllowed,
    NotFound,
    NotReachable,
    NotTrusted,
    Rejected,
)
from pigeonpost.core.errors import NotStored
from pigeonpost.transports.readings_server import ReadingsServerTransport
from pigeonpost.web.tls import Tls, fingerprint_of
from protocol import Sample
from tests.http_servers import Server
from tests.page_support import set_zone, use_memory_disk
from tests.support import WALL_MS, free_port, temp_folder
from tests.web.support import WebHouse
from tests.web.test_tls import make_certificate

START = datetime(2026, 11, 20, 15, 36, 10, 123000, tzinfo=UTC)  # WALL_MS
HOUR = timedelta(hours=1)


def setUpModule():
    use_memory_disk()


class Case(unittest.TestCase):
    def open(self, token="", role="viewer", **options):
        """Start a server, and return a client of it."""

        def make(context):
            self.end = ReadingsServerTransport(context)
            return self.end

        self.web = WebHouse(self, transports=[make], **options)
        self.url = "http://{}:{}".format(*self.web.address)
        return self.client(token or self.web.api_tokens.make("script", role))

    def client(self, token="", url="", certificate=""):
        made = Client(url or self.url, token, certificate)
        self.addCleanup(made.close)
        patch = mock.patch.object(module.clock, "sleep", self.slept.append)
        patch.start()
        self.addCleanup(patch.stop)
        return made

    def setUp(self):
        self.slept = []

    def store(self, *samples, node="basement", units=None):
        """Store samples, each with (seconds after START, values)."""
        self.web.store_samples(
            node,
            [
                Sample(seq, WALL_MS + int(1000 * seconds), 1000 + seq, values, {}, "")
                for seq, (seconds, values) in enumerate(samples, 1)
            ],
            units,
        )


class ReadingsTest(Case):
    def test_readings_are_columns(self):
        client = self.open()
        self.store((0, {"temperature": 21.5, "light": 5}), (1, {"temperature": None}), (2, {"light": 7}))
        self.assertEqual(client.readings("basement", "temperature", START), {
            "time": [START, START + timedelta(seconds=1)], "temperature": [21.5, None],
        })  # fmt: skip
        self.assertEqual(client.readings("basement", ["light", "temperature", "light"], START, START + HOUR), {
            "time": [START + timedelta(seconds=seconds) for seconds in range(3)],
            "light": [5, None, 7], "temperature": [21.5, None, None],
        })  # fmt: skip

    def test_range_includes_its_start_and_excludes_its_end(self):
        client = self.open()
        self.store(*((second, {"light": second}) for second in range(5)))
        for start, end, values in ((1, 3, [1, 2]), (3, 3, []), (4, 3, []), (-50, 50, [0, 1, 2, 3, 4])):
            found = client.readings(
                "basement", "light", START + start * module._MS * 1000, START + end * module._MS * 1000
            )
            self.assertEqual(found["light"], values)

    def test_long_ranges_are_read_in_pages(self):
        client = self.open()
        # Several samples have the same time, also at the ends of pages.
        samples = [(number // 4, {"light": number} if number % 5 else {"other": 1}) for number in range(50)]
        self.store(*samples)
        expected = [number for number in range(50) if number % 5]
        for size in (5, 7, 10, 49, 50, 51):
            with mock.patch.object(module, "_PAGE", size):
                found = client.readings("basement", "light", START)
            self.assertEqual(sorted(found["light"]), expected)
            self.assertEqual(found["time"], sorted(found["time"]))

    def test_endless_page_ends(self):
        client = self.open()
        self.store(*((0, {"light": number}) for number in range(5)))
        with mock.patch.object(module, "_PAGE", 3), self.assertRaisesRegex(Rejected, "more than 3 samples"):
            client.readings("basement", "light", START)

    def test_sensor_called_time_has_its_own_column(self):
        client = self.open()
        self.store((0, {"time": 5}))
        self.assertEqual(client.readings("basement", "time", START), {"time": [START], "time (sensor)": [5]})

    def test_times_are_local_without_a_zone(self):
        client = self.open()
        set_zone(self, "Europe/Berlin")
        self.store((0, {"light": 5}))
        for start, count in (
            ("2026-11-20T16:36:10.123", 1), ("2026-11-20T16:36:11", 0), ("2026-11-20T15:36:10.123Z", 1),
            ("2026-11-20T15:36:11Z", 0), (datetime(2026, 11, 20, 16, 36), 1), (datetime(2026, 11, 20, 16, 37), 0),
            ("2026-11-20", 1), ("2026-11-21", 0),
        ):  # fmt: skip
            self.assertEqual(len(client.readings("basement", "light", start, "2030-01-01")["time"]), count, start)

    def test_relative_times_are_before_now(self):
        now = START
        for value, moment in (("-24h", START - 24 * HOUR), ("-90s", START - timedelta(seconds=90)),
                              (timedelta(days=-7), START - timedelta(days=7))):  # fmt: skip
            self.assertEqual(module._moment(value, now), moment)
        for value in ("24h", "-h", "yesterday", "-5w", ""):
            with self.assertRaisesRegex(ValueError, "a time must be like"):
                module._moment(value, now)


class NodesTest(Case):
    def test_nodes_have_their_sensors(self):
        client = self.open()
        self.web.store_samples("basement", [{"temperature": 21.5}], {"temperature": "°C"})
        (node,) = client.nodes()
        self.assertEqual((node.name, node.samples, node.missing), ("basement", 1, 0))
        (sensor,) = node.sensors
        self.assertEqual((sensor.name, sensor.unit, sensor.value, type(sensor.time)),
                         ("temperature", "°C", 21.5, datetime))  # fmt: skip

    def test_statistics_are_columns_of_all_windows(self):
        client = self.open()
        self.store(*((600 * step, {"light": step}) for step in range(24)))
        begin, end = datetime(2026, 11, 20, 15, tzinfo=UTC), datetime(2026, 11, 20, 20, tzinfo=UTC)
        for size in (1, 2, 10_000):
            with mock.patch.object(module, "_PAGE", size):
                found = client.statistics("basement", "light", begin, end)
            self.assertEqual(found["time"], [begin + HOUR * hour for hour in range(1, 6)])
            self.assertEqual(found["count"], [3, 6, 6, 6, 3])
            self.assertEqual(found["low"], [0, 3, 9, 15, 21])
            self.assertEqual(set(found), {"time", "count", "mean", "median", "mode", "low", "high", "deviation"})
        with self.assertRaisesRegex(ValueError, "span must be"):
            client.statistics("basement", "light", begin, end, "5m")


class SendTest(Case):
    def test_reading_is_stored_once_for_its_id(self):
        client = self.open(role="writer")
        self.assertTrue(client.send("shed", {"temperature": 21.5, "broken": None}, START, "a"))
        self.assertFalse(client.send("shed", {"temperature": 21.5}, START, "a"))
        self.assertTrue(client.send("shed", {"temperature": 22.5}))
        self.assertEqual(client.readings("shed", ["temperature", "broken"], "2020-01-01")["temperature"], [21.5, 22.5])

    def test_numbers_of_other_libraries_are_sent(self):
        client = self.open(role="writer")
        self.assertTrue(client.send("shed", {"a": Decimal("21.5"), "b": Fraction(1, 2)}))
        columns = client.readings("shed", ["a", "b"], "-1h")
        self.assertEqual((columns["a"], columns["b"]), ([21.5], [0.5]))
        for value in ("21.5", float("nan")):
            with self.subTest(value), self.assertRaises(Rejected):
                client.send("shed", {"a": value})
        with self.assertRaises(TypeError):
            client.send("shed", {"a": object()})

    def test_repetition_after_a_lost_answer_is_stored_once(self):
        client = self.open(role="writer")
        request, lost = client._connection.request, []

        def lose_first(*arguments, **options):
            answer = request(*arguments, **options)
            if not lost:
                lost.append(answer)
                raise module.HttpError("the connection was lost", "here")
            return answer

        with mock.patch.object(client._connection, "request", lose_first):
            self.assertFalse(client.send("shed", {"temperature": 21.5}))
        self.assertEqual(client.readings("shed", "temperature", "-1h")["temperature"], [21.5])
        self.assertEqual(self.slept, [])

    def test_busy_server_is_asked_again(self):
        client = self.open(role="writer")
        store, fails = self.end._timed.store, [1, 1]

        def busy(claimed):
            if fails:
                fails.pop()
                raise NotStored("the disk is full")
            return store(claimed)

        with mock.patch.object(self.end._timed, "store", busy):
            self.assertTrue(client.send("shed", {"temperature": 21.5}))
        self.assertEqual(self.slept, [5, 5])  # Retry-After


class FaultTest(Case):
    def test_errors_name_the_remedy(self):
        viewer = self.open()
        for call, kind, words in (
            (lambda: self.client("wrong" * 10).nodes(), NotAllowed, "control.py api-token"),
            (lambda: viewer.send("shed", {"a": 1}), NotAllowed, "--role writer"),
            (lambda: viewer.readings("nowhere", "a", "-1h"), NotFound, "nodes"),
            (lambda: viewer.readings("no where", "a", "-1h"), Rejected, "`node` is not a valid name"),
            (lambda: self.client(url=f"http://127.0.0.1:{free_port()}").nodes(), NotReachable, "check the address"),
            (lambda: self.client("t", url=f"{self.url}/nowhere").nodes(), NotFound, "404"),
        ):  # fmt: skip
            with self.subTest(words), self.assertRaises(kind) as caught:
                call()
            self.assertIn(words, str(caught.exception))
        with self.assertRaisesRegex(ValueError, "http"):
            Client("pi2.local:8080")

    def test_connection_that_the_server_has_closed_is_opened_again(self):
        client = self.open()
        self.store((0, {"light": 5}))
        client.nodes()
        client._connection._link.sock.shutdown(2)
        self.assertEqual((len(client.nodes()), self.slept), (1, []))

    def test_server_that_is_away_is_tried_four_times(self):
        client = self.open()
        self.url = f"http://127.0.0.1:{free_port()}"
        with self.assertRaises(NotReachable):
            self.client().nodes()
        self.assertEqual(self.slept, [0.5, 1.0])
        client.close()

    def test_token_from_a_file_may_end_with_a_line_end(self):
        self.open()
        self.assertEqual(self.client(self.web.api_tokens.make("file") + "\n").nodes(), [])

    def test_invalid_time_raises_value_error(self):
        client = self.open()
        for moment in ("-999999999d", timedelta(days=-999_999_999), datetime.min, "yesterday", "0001-01-01"):
            with self.subTest(moment), self.assertRaisesRegex(ValueError, "a time must be"):
                client.readings("basement", "temperature", moment)

    def test_answers_of_other_programs_are_rejected(self):
        other = Server(self)
        client = self.client(url=other.url)
        for answer, words in (
            ([], "is it the address of a Pigeonpost server?"),
            ({}, "is it the address of a Pigeonpost server?"),
            ((308, {"Location": "https://pi2.local/"}, b""), "redirects are not followed"),
        ):
            other.answers["/api/v1/nodes"] = answer
            with self.subTest(answer), self.assertRaisesRegex(Rejected, re.escape(words)):
                client.nodes()

    def test_reading_before_1970_is_refused(self):
        with self.assertRaisesRegex(Rejected, "time"):
            self.open(role="writer").send("shed", {"temperature": 21.5}, "1900-01-01T00:00:00Z")

    def test_certificate_can_be_a_file_or_a_fingerprint(self):
        certificate, key = make_certificate(temp_folder(self))
        self.open(tls=Tls(certificate, key))
        self.url = self.url.replace("http:", "https:")
        token = self.web.api_tokens.make("other")
        fingerprint = fingerprint_of(certificate)
        for trusted in (certificate, fingerprint, ":".join(fingerprint[i : i + 2] for i in range(0, 64, 2)).upper()):
            self.assertEqual(self.client(token, certificate=trusted).nodes(), [])
        for wrong in ("", "0" * 64):
            with self.assertRaisesRegex(NotTrusted, "`control.py certificate` prints it"):
                self.client(token, certificate=wrong).nodes()
        for wrong in (os.path.join(self.web.folder, "missing.pem"), key):
            with self.assertRaisesRegex(NotTrusted, "certificate takes a PEM file"):
                self.client(token, certificate=wrong)


if __name__ == "__main__":
    unittest.main()
