import json
import types
import unittest

from pigeonpost.core.errors import SettingsError
from pigeonpost.integrations.contract import NotDelivered, RefusedData
from pigeonpost.link.samples import SampleBatch
from tests.http_servers import Server
from tests.integrations.forwarding import batch_of, make_target, some
from tests.support import EPOCH, WALL_MS

CONTEXT = types.SimpleNamespace(name="home")


class WebhookBatches(unittest.TestCase):
    def setUp(self):
        self.server = Server(self)
        self.server.answers["/hook/se-cret"] = (202, {}, b"thanks")

    def target(self, **keys):
        return make_target(self, "webhook", CONTEXT, **{"url": f"{self.server.url}/hook/se-cret?key=k-1", **keys})

    def bodies(self):
        return [json.loads(body) for _, _, _, body in self.server.asked]

    def test_samples_are_sent_with_their_identity_units_and_gaps(self):
        failed = SampleBatch(7, [WALL_MS], [], {"light": [None], "door": [1]}, {"light": {0: "no answer"}}, "unset")
        target = self.target()
        self.assertEqual(target.place, self.server.url)
        target.send([batch_of(some(2, 2)), batch_of(failed, node="attic", epoch="f" * 16, after=4)])
        ((method, path, headers, _),) = self.server.asked
        self.assertEqual((method, path), ("POST", "/hook/se-cret?key=k-1"))
        self.assertEqual(headers["Content-Type"], "application/json")
        self.assertEqual(self.bodies(), [{
            "server": "home",
            "units": {"basement": {"temperature": "°C"}, "attic": {"light": "lx"}},
            "gaps": [{"node": "attic", "epoch": "f" * 16, "from": 5, "to": 6}],
            "samples": [
                {"node": "basement", "epoch": EPOCH, "seq": 2, "time": "2026-11-20T15:36:12.123Z",
                 "values": {"temperature": 22.5}},
                {"node": "basement", "epoch": EPOCH, "seq": 3, "time": "2026-11-20T15:36:13.123Z",
                 "values": {"temperature": 23.5}},
                {"node": "attic", "epoch": "f" * 16, "seq": 7, "time": "2026-11-20T15:36:10.123Z",
                 "values": {"light": None, "door": 1}, "errors": {"light": "no answer"}, "clock": "unset"},
            ],
        }])  # fmt: skip

    def test_the_same_samples_have_the_same_idempotency_key(self):
        target = self.target()
        for batches in ([batch_of(some(1, 3))], [batch_of(some(1, 3))], [batch_of(some(1, 2))]):
            target.send(batches)
        one, same, other = [headers["Idempotency-Key"] for _, _, headers, _ in self.server.asked]
        self.assertRegex(one, "^[0-9a-f]{32}$")
        self.assertEqual(one, same)
        self.assertNotEqual(one, other)

    def test_token_and_headers_are_sent(self):
        self.target(token="t-1", headers=["X-Api-Key: a:b", "X-Site:cellar"]).send([batch_of(some())])
        headers = self.server.asked[0][2]
        self.assertEqual((headers["Authorization"], headers["X-Api-Key"], headers["X-Site"]),
                         ("Bearer t-1", "a:b", "cellar"))  # fmt: skip

    def test_each_status_has_its_meaning(self):
        html = {"Content-Type": "text/html; charset=utf-8"}
        for status, headers, error in (
            (400, {}, RefusedData), (413, html, RefusedData), (422, {}, RefusedData), (400, html, NotDelivered),
            (401, {}, NotDelivered), (404, {}, NotDelivered), (410, {}, NotDelivered), (500, {}, NotDelivered),
            (302, {"Location": "/hook/other"}, NotDelivered),
        ):  # fmt: skip
            self.server.answers["/hook/se-cret"] = (status, headers, b"because /hook?token=abc")
            with self.subTest(status), self.assertRaises(error) as caught:
                self.target().send([batch_of(some())])
            for secret in ("se-cret", "k-1", "abc"):
                self.assertNotIn(secret, str(caught.exception))

    def test_page_of_a_proxy_is_no_success(self):
        for status in (200, 203):
            self.server.answers["/hook/se-cret"] = (status, {"Content-Type": "text/html"}, b"\n<!doctype html><p>login")
            with self.subTest(status), self.assertRaisesRegex(NotDelivered, "web page"):
                self.target().send([batch_of(some())])
        self.server.answers["/hook/se-cret"] = (200, {"Content-Type": "text/html"}, b"ok")  # Flask, PHP
        self.target().send([batch_of(some())])

    def test_retry_after_sets_the_pause(self):
        self.server.answers["/hook/se-cret"] = (429, {"Retry-After": "12"}, b"")
        with self.assertRaises(NotDelivered) as caught:
            self.target().send([batch_of(some())])
        self.assertEqual(caught.exception.pause_s, 12)

    def test_invalid_settings_are_errors(self):
        for keys, text in (
            ({"url": "ftp://host"}, "url takes a URL"), ({"url": "http://"}, "url takes"),
            ({"headers": ["no colon"]}, "headers takes an HTTP header"), ({"headers": "A: b"}, "headers takes a list"),
        ):  # fmt: skip
            with self.assertRaisesRegex(SettingsError, text):
                self.target(**keys)
        with self.assertRaisesRegex(SettingsError, "url is missing"):
            make_target(self, "webhook", CONTEXT)


if __name__ == "__main__":
    unittest.main()
