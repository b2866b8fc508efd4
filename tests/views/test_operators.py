"""`POST /api/v1/nodes/NAME/rename`, `retire` and `relabel`, and what they are refused; downloads for Excel."""

import json
import os
import unittest
from unittest import mock

from pigeonpost.core.errors import NotStored
from pigeonpost.server.node_admin import NodeAdmin
from tests.page_support import set_zone, use_memory_disk
from tests.web.support import WebHouse

UNITS = {"temperature": "°C"}


def setUpModule():
    use_memory_disk()


class OperatorCase(unittest.TestCase):
    def setUp(self):
        set_zone(self, "Europe/Vienna")
        self.web = WebHouse(self)
        admin = NodeAdmin(self.web.store, self.web.ingestor, self.web.tokens, self.web.app.clock)
        self.web.app = self.web.web._app = self.web.app._replace(admin=admin)
        self.web.store_samples("basement", [{"temperature": 21.5}, {"temperature": -1.25}], UNITS)

    def post(self, path, content, status=200):
        headers = {**self.web.bearer, "Content-Type": "application/json"}
        found, _, body = self.web.request("POST", f"/api/v1/nodes/{path}", headers, json.dumps(content).encode())
        self.assertEqual(found, status, body)
        return json.loads(body)

    def get(self, path, headers=None):
        status, headers, body = self.web.request("GET", path, {**self.web.bearer, **(headers or {})})
        self.assertEqual(status, 200, body)
        return headers, body


class Actions(OperatorCase):
    def test_rename(self):
        self.assertEqual(self.post("basement/rename", {"to": "cellar"}), {"node": "cellar", "former": "basement"})
        for name in ("cellar", "basement"):  # addresses with the former name lead to the node
            self.assertEqual(json.loads(self.get(f"/api/v1/nodes/{name}")[1])["name"], "cellar")
            found = json.loads(self.get(f"/api/v1/samples?node={name}")[1])["samples"]
            self.assertEqual([one["node"] for one in found], ["cellar", "cellar"])
            self.assertIn(b"<svg", self.get(f"/chart.svg?node={name}&sensor=temperature")[1])
        self.assertIn(b"was called basement until now", self.get("/happenings")[1])
        self.assertEqual(self.post("basement/rename", {"release": True}), {"released": "basement"})
        self.assertEqual(self.post("basement/rename", {"release": True}, 404)["error"]["code"], "unknown-node")

    def test_retire(self):
        self.post("basement/retire", {"retired": True})
        self.assertEqual(json.loads(self.get("/api/v1/nodes/basement")[1])["state"], "retired")
        self.post("basement/retire", {"retired": False})
        self.assertNotEqual(json.loads(self.get("/api/v1/nodes/basement")[1])["state"], "retired")

    def test_relabel(self):
        self.post("basement/relabel", {"sensor": "temperature", "label": "North <b>wall</b>"})
        sensor = json.loads(self.get("/api/v1/nodes/basement")[1])["sensors"][0]
        self.assertEqual((sensor["name"], sensor["label"]), ("temperature", "North <b>wall</b>"))
        self.assertNotIn(b"<b>wall", self.web.request("GET", "/nodes/basement", self.web.bearer, html=True)[2])

    def test_refused(self):
        self.web.store_samples("attic", [{"temperature": 1.0}], UNITS)
        for path, content, status, text in (
            ("basement/rename", {"to": "attic"}, 409, "there is a node attic already"),
            ("basement/rename", {"to": "../x"}, 409, "no node name"), ("basement/rename", {}, 400, "to is missing"),
            ("nobody/rename", {"to": "x"}, 404, "nothing of a node nobody"),
            ("basement/retire", {"retired": "yes"}, 400, "The body is"),
            ("basement/relabel", {"sensor": "temperature", "label": "a\nb"}, 409, "a label is a line"),
            ("basement/relabel", {"sensor": "x", "label": "X"}, 404, "never had a sensor x"),
            ("basement/relabel", {"sensor": "temperature"}, 400, "label is missing"),
        ):  # fmt: skip
            with self.subTest(path=path, content=content):
                self.assertIn(text, self.post(path, content, status)["error"]["text"])

    def test_busy_store_is_tried_again(self):
        with mock.patch.object(NodeAdmin, "retire", side_effect=NotStored("busy")):
            self.assertEqual(self.post("basement/retire", {"retired": True}, 503)["error"]["code"], "not-stored")

    def test_only_operators_may(self):
        for action in ("rename", "retire", "relabel"):
            status, _, _ = self.web.request("POST", f"/api/v1/nodes/basement/{action}", {
                "Content-Type": "application/json", "Authorization": "Bearer wrong"}, b"{}")  # fmt: skip
            self.assertIn(status, (401, 403))


class Excel(OperatorCase):
    def test_log_is_converted_whole_and_nothing_is_left(self):
        before = sorted(os.listdir(self.web.folder))
        headers, body = self.get("/log.csv?for=excel", {"Accept-Language": "de-AT,de;q=0.9"})
        self.assertTrue(body.startswith(b"\xef\xbb\xbftime;node;sensor;value;unit\r\n"))
        self.assertRegex(body.decode(), r"\r\n\d{4}-\d\d-\d\d \d\d:\d\d:\d\d;basement;temperature;-1,25;°C\r\n$")
        self.assertNotIn("accept-ranges", headers)
        self.assertIn('filename="sensorlog_', headers["content-disposition"])
        self.assertEqual(sorted(os.listdir(self.web.folder)), before)

    def test_every_csv_is(self):
        for path in ("/log.csv?", "/chart.csv?node=basement&sensor=temperature&", "/api/v1/samples?format=csv&",
                     "/nodes/basement/temperature.csv?", "/gaps.csv?"):  # fmt: skip
            with self.subTest(path=path):
                _, body = self.get(f"{path}for=excel&decimal=point")
                self.assertTrue(body.startswith(b"\xef\xbb\xbf"), body[:40])
                self.assertEqual(body.count(b"\n"), body.count(b"\r\n"))
                self.assertFalse(self.get(path.rstrip("?&"))[1].startswith(b"\xef"))

    def test_other_forms_are_not(self):
        self.assertTrue(self.get("/api/v1/nodes?for=excel")[1].startswith(b"{"))
        status, _, _ = self.web.request("GET", "/log.csv?for=excel&decimal=x", self.web.bearer)
        self.assertEqual(status, 400)

    def test_pages_have_a_link(self):
        for path in ("/log", "/logs", "/chart?series=basement/temperature"):
            self.assertIn(b"for=excel", self.web.request("GET", path, self.web.bearer, html=True)[2], path)


if __name__ == "__main__":
    unittest.main()
