"""Tests of the forward target for VictoriaMetrics, and of the HTTP requests of forward targets."""

import gzip
import json
import unittest

from pigeonpost.core.errors import SettingsError
from pigeonpost.integrations import victoriametrics
from pigeonpost.integrations.contract import ForwardBatch, NotDelivered, RefusedData
from pigeonpost.integrations.forward_http import HttpPoster
from pigeonpost.link.samples import SampleBatch
from tests.http_servers import Server
from tests.support import free_port


def batch(values, node="basement", units=None):
    times = list(range(1000, 1000 + len(next(iter(values.values())))))
    return ForwardBatch(node, "aa", "e1", 0, SampleBatch(1, times, [], values), units or {})


class VictoriaMetricsTest(unittest.TestCase):
    def setUp(self):
        self.server = Server(self)
        self.server.answers["/api/v1/import"] = (204, {}, b"")

    def make(self, **more):
        table = {"name": "vm", "kind": "victoriametrics", "url": self.server.url, **more}
        target = victoriametrics.make(table, "here", None)
        self.addCleanup(target.close)
        return target

    def lines(self):
        _, _, headers, body = self.server.asked[-1]
        self.assertEqual(headers["Content-Encoding"], "gzip")
        return [json.loads(line) for line in gzip.decompress(body).splitlines()]

    def test_columns_of_a_batch_are_lines_with_labels(self):
        self.make().send([batch({"temperature": [21.5, -3], "light": [1, 2]}, units={"temperature": "°C"})])
        self.assertEqual(self.lines(), [
            {"metric": {"__name__": "temperature", "node": "basement", "unit": "°C"},
             "values": [21.5, -3], "timestamps": [1000, 1001]},
            {"metric": {"__name__": "light", "node": "basement"}, "values": [1, 2], "timestamps": [1000, 1001]},
        ])  # fmt: skip
        self.assertEqual(self.server.asked[0][:2], ("POST", "/api/v1/import"))

    def test_failed_readings_are_not_sent(self):
        self.make().send([batch({"a": [None, 2, None], "b": [None, None, None]})])
        self.assertEqual(self.lines(), [{"metric": {"__name__": "a", "node": "basement"}, "values": [2],
                                         "timestamps": [1001]}])  # fmt: skip

    def test_batches_without_any_value_need_no_request(self):
        self.make().send([batch({"a": [None]})])
        self.assertEqual(self.server.asked, [])

    def test_sensors_whose_names_are_not_allowed_stay_different_series(self):
        self.make(prefix="p_").send([batch({"a-b": [1], "a.b": [2], "a_b": [3]})])
        names = [(line["metric"]["__name__"], line["metric"].get("sensor")) for line in self.lines()]
        self.assertEqual(names, [("p_a_b", "a-b"), ("p_a_b", "a.b"), ("p_a_b", None)])
        self.assertEqual(victoriametrics.labels("", "n", "1wire", "")["__name__"], "_1wire")

    def test_path_of_a_tenant_precedes_the_path_of_the_request(self):
        self.server.answers["/insert/7/prometheus/api/v1/import"] = (204, {}, b"")
        self.make(url=f"{self.server.url}/insert/7/prometheus/?extra_label=site=x").send([batch({"a": [1]})])
        self.assertEqual(self.server.asked[0][1], "/insert/7/prometheus/api/v1/import?extra_label=site=x")

    def test_credentials_are_sent_in_the_header(self):
        url = self.server.url
        for more, header in (
            ({"token": "t"}, "Bearer t"), ({"user": "u", "password": "p"}, "Basic dTpw"),
            ({"url": url.replace("//", "//u:p@")}, "Basic dTpw"), ({}, None),
        ):  # fmt: skip
            with self.subTest(more=more):
                target = self.make(**more)
                target.send([batch({"a": [1]})])
                self.assertEqual(self.server.asked[-1][2]["Authorization"], header)
                self.assertEqual(target.place, url)

    def test_statuses_tell_refused_content_from_other_faults(self):
        for status, error, said in (
            (400, RefusedData, "400"), (413, RefusedData, "413"), (401, NotDelivered, "check the token"),
            (404, NotDelivered, "check the path"), (302, NotDelivered, "redirects"), (500, NotDelivered, "500"),
        ):  # fmt: skip
            with self.subTest(status=status):
                self.server.answers["/api/v1/import"] = (status, {}, b"why\nnot")
                with self.assertRaisesRegex(error, said) as caught:
                    self.make().send([batch({"a": [1]})])
                self.assertIn("why not", str(caught.exception))

    def test_pause_that_the_server_wants_is_part_of_the_error(self):
        self.server.answers["/api/v1/import"] = (503, {"Retry-After": "7"}, b"")
        with self.assertRaises(NotDelivered) as caught:
            self.make().send([batch({"a": [1]})])
        self.assertEqual(caught.exception.pause_s, 7)

    def test_server_that_is_away_is_not_delivered(self):
        with self.assertRaises(NotDelivered):
            self.make(url=f"http://127.0.0.1:{free_port()}").send([batch({"a": [1]})])

    def test_error_states_whether_the_target_itself_has_answered(self):
        handler = self.server.http.RequestHandlerClass
        handler.protocol_version = "HTTP/1.1"
        for status, headers, expected in (
            (429, {}, True), (401, {}, True), (500, {}, True), (503, {"Retry-After": "9"}, True),
            (503, {}, False), (502, {}, False), (504, {}, False), (429, {"Connection": "close"}, False),
        ):  # fmt: skip
            self.server.answers["/api/v1/import"] = (status, headers, b"")
            with self.subTest(status, headers=headers), self.assertRaises(NotDelivered) as caught:
                self.make().send([batch({"a": [1]})])
            self.assertEqual(caught.exception.has_answered, expected)

    def test_check_detects_a_lost_connection_and_a_proxy_whose_server_is_away(self):
        self.server.http.RequestHandlerClass.protocol_version = "HTTP/1.1"
        target = self.make()
        target.check()  # there is no connection yet
        self.assertEqual(self.server.asked, [])
        target.send([batch({"a": [1]})])
        target.check()  # any status will do
        self.assertEqual(self.server.asked[-1][:2], ("HEAD", "/"))
        self.server.answers["/"] = (502, {}, b"away")
        with self.assertRaisesRegex(NotDelivered, "502"):
            target.check()
        target._poster._connection.cut()
        with self.assertRaises(NotDelivered):
            target.check()

    def test_closed_target_does_not_connect(self):
        target = self.make()
        target.close()
        with self.assertRaises(NotDelivered):
            target.send([batch({"a": [1]})])
        self.assertEqual(self.server.asked, [])

    def test_missing_file_of_certificates_is_not_delivered_and_names_it(self):
        poster = HttpPoster("https://127.0.0.1:1", ca="/nowhere.pem")
        with self.assertRaisesRegex(NotDelivered, "nowhere.pem|No such file"):
            poster.post("/", b"", {})

    def test_invalid_keys_are_refused(self):
        for more, said in (
            ({"url": "ftp://x"}, "url takes"), ({"url": "http://x:99999"}, "url takes"),
            ({"prefix": "1"}, "prefix takes"), ({"tokn": ""}, 'did you mean "token"'),
        ):  # fmt: skip
            with self.subTest(more=more), self.assertRaisesRegex(SettingsError, said):
                self.make(**more)
        with self.assertRaisesRegex(SettingsError, "url is missing"):
            victoriametrics.make({"name": "vm", "kind": "victoriametrics"}, "here", None)
