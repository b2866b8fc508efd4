import json
import types
import unittest

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.version import VERSION
from pigeonpost.integrations.contract import NotDelivered, RefusedData
from tests.http_servers import Server
from tests.integrations.forwarding import batch_of, body_of, make_target, some
from tests.support import WALL_MS

CONTEXT = types.SimpleNamespace(name="home")


def text(key, value):
    return {"key": key, "value": {"stringValue": value}}


class Otlp(unittest.TestCase):
    def setUp(self):
        self.server = Server(self)
        self.server.answers["/api/v1/otlp/v1/metrics"] = {}

    def target(self, **keys):
        return make_target(self, "otlp", CONTEXT, **{"url": f"{self.server.url}/api/v1/otlp/", **keys})

    def sent(self):
        return [json.loads(body_of(headers, body)) for _, _, headers, body in self.server.asked]

    def test_each_sensor_is_a_gauge_with_a_point_per_value(self):
        target = self.target(prefix="home.")
        target.send([
            batch_of(some(1, 2, temperature=[20.5, None], light=[512, -(2**63)])),
            batch_of(some(1, 1, temperature=[-1e-7]), node="attic"),
            batch_of(some(1, 1, temperature=[70]), node="shed", units={"temperature": "°F"}),
        ])  # fmt: skip
        ((method, path, headers, _),) = self.server.asked
        self.assertEqual((method, path), ("POST", "/api/v1/otlp/v1/metrics"))
        self.assertEqual((headers["Content-Type"], headers["Content-Encoding"]), ("application/json", "gzip"))
        times = [f"{WALL_MS + 1000}000000", f"{WALL_MS + 2000}000000"]
        basement, attic, shed = ([text("node", name)] for name in ("basement", "attic", "shed"))
        self.assertEqual(self.sent(), [{"resourceMetrics": [{
            "resource": {"attributes": [text("service.name", "pigeonpost"), text("service.instance.id", "home"),
                                        text("service.version", VERSION)]},
            "scopeMetrics": [{
                "scope": {"name": "pigeonpost", "version": VERSION},
                "metrics": [
                    {"name": "home.temperature", "unit": "Cel", "gauge": {"dataPoints": [
                        {"asDouble": 20.5, "timeUnixNano": times[0], "attributes": basement},
                        {"asDouble": -1e-7, "timeUnixNano": times[0], "attributes": attic},
                    ]}},
                    {"name": "home.light", "unit": "lx", "gauge": {"dataPoints": [
                        {"asDouble": 512, "timeUnixNano": times[0], "attributes": basement},
                        {"asDouble": -(2**63), "timeUnixNano": times[1], "attributes": basement},
                    ]}},
                    {"name": "home.temperature", "unit": "[degF]", "gauge": {"dataPoints": [
                        {"asDouble": 70, "timeUnixNano": times[0], "attributes": shed},
                    ]}},
                ],
            }],
        }]}])  # fmt: skip

    def test_a_sample_without_values_is_not_sent(self):
        self.target().send([batch_of(some(1, 1, temperature=[None]))])
        self.assertEqual(self.server.asked, [])

    def test_token_and_headers_are_sent(self):
        self.target(token="t-1", headers=["X-Scope-OrgID: home"]).send([batch_of(some())])
        headers = self.server.asked[0][2]
        self.assertEqual((headers["Authorization"], headers["X-Scope-OrgID"]), ("Bearer t-1", "home"))

    def error(self, answer):
        self.server.answers["/api/v1/otlp/v1/metrics"] = answer
        with self.assertRaises((NotDelivered, RefusedData)) as caught:
            self.target().send([batch_of(some())])
        return caught.exception

    def test_rejected_points_are_refused_data(self):
        for count in ("2", 2):
            partial = {"partialSuccess": {"rejectedDataPoints": count, "errorMessage": "too\nold"}}
            error = self.error(partial)
            self.assertIsInstance(error, RefusedData)
            self.assertEqual(str(error), "2 data points were rejected: too old")
        self.assertIsInstance(self.error((400, {"Content-Type": "text/plain"}, b"out of order sample")), RefusedData)

    def test_answers_without_rejected_points_are_successes(self):
        for answer in (
            (200, {}, b""), (200, {}, b"ok"), [], {"partialSuccess": {}}, {"partialSuccess": None},
            {"partialSuccess": {"rejectedDataPoints": "0", "errorMessage": "a warning"}},
        ):  # fmt: skip
            self.server.answers["/api/v1/otlp/v1/metrics"] = answer
            self.target().send([batch_of(some())])

    def test_errors_that_may_pass_and_faults_of_the_settings_are_not_delivered(self):
        for status in (401, 403, 405, 415, 429, 500, 502, 503, 504):
            error = self.error((status, {"Retry-After": "9"}, b""))
            self.assertIsInstance(error, NotDelivered)
            self.assertEqual(error.pause_s, 9)
        self.assertIn("--web.enable-otlp-receiver", str(self.error((404, {}, b"page not found"))))

    def test_invalid_settings_are_errors(self):
        for keys, words in (
            ({"url": "localhost:4318"}, "url takes an address"), ({"url": "http://h/?a=b"}, "without a query"),
            ({"prefix": "a b"}, "prefix takes the beginning of a metric name"),
        ):  # fmt: skip
            with self.assertRaisesRegex(SettingsError, words):
                self.target(**keys)
        with self.assertRaisesRegex(SettingsError, "url is missing"):
            make_target(self, "otlp", CONTEXT)


if __name__ == "__main__":
    unittest.main()
