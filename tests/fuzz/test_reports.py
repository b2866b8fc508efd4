"""Posts of tmon's and pimonitor's clients, and invalid ones: stored as posted, or refused with a message."""

import hashlib
import json
import tempfile
import unittest
from types import SimpleNamespace
from unittest import mock

from pigeonpost.compat import pimonitor, tmon
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.faults import Faults
from pigeonpost.http.message import Request
from protocol import LARGEST_INTEGER, NODE_NAME, SENSOR_NAME, UNIT
from tests.fuzz import Target, fuzzed, mutated, st
from tests.test_protocol import INSERTS

TOKEN = "0123456789abcdef0123456789abcdef"
REPORTS = (
    b'{"type":"temperature","token":"%s","data":{"temperature":"20812"},"time":"2026-11-20T15:36:10Z","test":false}'
    % TOKEN.encode(),
    json.dumps({
        "api_hash": hashlib.sha256(b"key").hexdigest(), "location": "Living room", "timestamp": "11/20/2026 15:36:10",
        "sensors": [{"sensorType": "DHT22", "temperature": 71.6, "humidity": "40.1"}, {"type": "x", "dewPoint": None}],
    }).encode(),
)  # fmt: skip
PIECES = (
    *INSERTS, b'"time":1795188970.5', b'"time":"9999-12-31T23:59:59-23:59"', b'"temperature":-300000', b"1e308",
    b"01/01/0001 00:00:00", b"12/31/9999 23:59:59", b"03/08/2026 02:30:00", b'"sensorType":"DHT22"', b"[{}]", b'"":1',
    b'"\\u0661":"1\\u0661"', b"9" * 400, b'"test":1', b'"location":"../.."', b'"humidity":1e999',
)  # fmt: skip


class Reports(Target, unittest.TestCase):
    """Both readers get each input: each must survive posts of the other system's clients."""

    corpus = "reports"

    def setUp(self):
        super().setUp()
        self.stored = []
        unnumbered_sources = SimpleNamespace(store=self.stored.append, caller=lambda claim: None)
        throttle = mock.Mock()
        throttle.begin.return_value = 0.0, 0.0
        tokens = SimpleNamespace(node_of=lambda token: "attic" if token == TOKEN else None)
        settings = {("pimonitor", "api_key"): "key", ("pimonitor", "unit"): "F", ("pimonitor", "zone"): "Europe/Berlin"}
        folder = self.enterContext(tempfile.TemporaryDirectory())
        context = SimpleNamespace(
            unnumbered_sources=unnumbered_sources, tokens=tokens, clock=FakeClock(), data=folder,
            settings=_Settings(settings), faults=Faults(), throttle=throttle,
        )  # fmt: skip
        self.ends = tmon.TmonTransport(context), pimonitor.PiMonitorTransport(context)

    def check(self, data):
        for end in self.ends:
            self.stored.clear()
            request = Request("POST", "/", "1.1", {})
            request.body = data
            with self.bounded():
                answer = end.answer(request)
            text = answer.body.decode()
            if end is self.ends[0]:
                told = json.loads(text)
                self.assertEqual(told["success"], "error" not in told)
                self.assertLessEqual(len(self.stored), told["success"])
            else:
                self.assertTrue(text)
                self.assertEqual(len(self.stored), text.endswith("Successfully received and inserted into database."))
                self.assertEqual(answer.status == 200, bool(self.stored))
            for reading in self.stored:
                self.is_storable(*reading)

    def is_storable(self, claim, values, units, time_ms, errors=None):
        """Return True if a reading is valid for the Ingestor and the log.

        Valid names, finite numbers, a date that can be written.
        """
        self.assertTrue(NODE_NAME(claim.node) and values)
        self.assertTrue(all(map(SENSOR_NAME, values)), values)
        self.assertTrue(all(map(UNIT, units.values())))
        for value in values.values():
            if value is not None:
                self.assertTrue(
                    value - value == 0 and (isinstance(value, float) or abs(value) <= LARGEST_INTEGER), value
                )
        self.assertEqual(set(errors or {}), {name for name, value in values.items() if value is None})
        if time_ms is not None:
            self.assertTrue(-62_135_596_800_000 <= time_ms <= 253_402_300_799_999, time_ms)

    @fuzzed(lambda: mutated(st.sampled_from(REPORTS), PIECES, 20_000))
    def test_random_reports_are_refused_or_stored(self, data):
        self.check(data)


class _Settings(dict):
    """Replaces core.config.Settings."""

    tables: dict = {}
    file = "server.toml"

    @staticmethod
    def origin(*key):
        return "here"


if __name__ == "__main__":
    unittest.main()
