"""`POST /api/v1/nodes/NAME/rename`, `retire` and `relabel` with their errors, and downloads for Excel."""

import json
import os
import unittest
from unittest import mock

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.errors import NotStored
from pigeonpost.server.node_admin import NodeAdmin
from tests.page_support import set_zone, use_memory_disk
from tests.support import wait_until
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
    def test_renamed_node_is_found_by_both_names_until_the_former_is_released(self):
        self.assertEqual(self.post("basement/rename", {"to": "cellar"}), {"node": "cellar", "former": "basement"})
        for name in ("cellar", "basement"):  # addresses with the former name still refer to the node
            self.assertEqual(json.loads(self.get(f"/api/v1/nodes/{name}")[1])["name"], "cellar")
            found = json.loads(self.get(f"/api/v1/samples?node={name}")[1])["samples"]
            self.assertEqual([one["node"] for one in found], ["cellar", "cellar"])
            self.assertIn(b"<svg", self.get(f"/chart.svg?node={name}&sensor=temperature")[1])
        self.assertIn(b"was called basement until now", self.get("/happenings")[1])
        self.assertEqual(self.post("basement/rename", {"release": True}), {"released": "basement"})
        self.assertEqual(self.post("basement/rename", {"release": True}, 404)["error"]["code"], "unknown-node")

    def test_node_is_retired_and_returned_to_use(self):
        self.post("basement/retire", {"retired": True})
        self.assertEqual(json.loads(self.get("/api/v1/nodes/basement")[1])["state"], "retired")
        self.post("basement/retire", {"retired": False})
        self.assertNotEqual(json.loads(self.get("/api/v1/nodes/basement")[1])["state"], "retired")

    def test_sensor_label_is_set_and_escaped(self):
        self.post("basement/relabel", {"sensor": "temperature", "label": "North <b>wall</b>"})
        sensor = json.loads(self.get("/api/v1/nodes/basement")[1])["sensors"][0]
        self.assertEqual((sensor["name"], sensor["label"]), ("temperature", "North <b>wall</b>"))
        self.assertNotIn(b"<b>wall", self.web.request("GET", "/nodes/basement", self.web.bearer, html=True)[2])

    def test_invalid_requests_are_rejected_with_a_reason(self):
        self.web.store_samples("attic", [{"temperature": 1.0}], UNITS)
        for path, content, status, text in (
            ("basement/rename", {"to": "attic"}, 409, "a node attic exists already"),
            ("basement/rename", {"to": "../x"}, 409, "not a valid node name"),
            ("basement/rename", {}, 400, "`to` must be a string"),
            ("unknown/rename", {"to": "x"}, 404, "nothing is stored for a node unknown"),
            ("basement/retire", {"retired": "yes"}, 400, "The body must be"),
            ("basement/relabel", {"sensor": "temperature", "label": "a\nb"}, 409, "a label must be one line"),
            ("basement/relabel", {"sensor": "x", "label": "X"}, 404, "has never had a sensor x"),
            ("basement/relabel", {"sensor": "temperature"}, 400, "`label` must be a string"),
        ):  # fmt: skip
            with self.subTest(path=path, content=content):
                self.assertIn(text, self.post(path, content, status)["error"]["text"])

    def test_busy_store_is_reported_as_not_stored(self):
        with mock.patch.object(NodeAdmin, "retire", side_effect=NotStored("busy")):
            self.assertEqual(self.post("basement/retire", {"retired": True}, 503)["error"]["code"], "not-stored")

    def test_actions_require_an_operator(self):
        for action in ("rename", "retire", "relabel"):
            status, _, _ = self.web.request("POST", f"/api/v1/nodes/basement/{action}", {
                "Content-Type": "application/json", "Authorization": "Bearer wrong"}, b"{}")  # fmt: skip
            self.assertIn(status, (401, 403))


class Excel(OperatorCase):
    def test_log_for_excel_is_complete_and_leaves_no_temporary_file(self):
        before = sorted(os.listdir(self.web.folder))
        headers, body = self.get("/log.csv?for=excel", {"Accept-Language": "de-AT,de;q=0.9"})
        self.assertTrue(body.startswith(b"\xef\xbb\xbftime;node;sensor;value;unit\r\n"))
        self.assertRegex(body.decode(), r"\r\n\d{4}-\d\d-\d\d \d\d:\d\d:\d\d;basement;temperature;-1,25;°C\r\n$")
        self.assertNotIn("accept-ranges", headers)
        self.assertIn('filename="sensorlog_', headers["content-disposition"])
        self.assertEqual(sorted(os.listdir(self.web.folder)), before)

    def test_every_csv_download_can_be_converted_for_excel(self):
        for path in ("/log.csv?", "/chart.csv?node=basement&sensor=temperature&", "/api/v1/samples?format=csv&",
                     "/nodes/basement/temperature.csv?", "/gaps.csv?"):  # fmt: skip
            with self.subTest(path=path):
                _, body = self.get(f"{path}for=excel&decimal=point")
                self.assertTrue(body.startswith(b"\xef\xbb\xbf"), body[:40])
                self.assertEqual(body.count(b"\n"), body.count(b"\r\n"))
                self.assertFalse(self.get(path.rstrip("?&"))[1].startswith(b"\xef"))

    def test_log_can_be_requested_in_utc(self):
        set_zone(self, "Asia/Kolkata")
        local, utc = (self.get(path)[1].decode().splitlines() for path in ("/log.csv", "/log.csv?utc=1"))
        self.assertRegex(utc[1], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z,basement,temperature,")
        for one, other in zip(local[1:], utc[1:], strict=True):
            self.assertEqual(one.partition(",")[2], other.partition(",")[2])
            self.assertEqual(*(parse_rfc3339(line.partition(",")[0]) for line in (one, other)))
        self.assertEqual(self.get("/log.csv?utc=0")[1].decode().splitlines(), local)
        part = self.get("/log.csv?utc=1", {"Range": "bytes=0-5"})[1]  # a range of other content would be wrong
        self.assertEqual(part.decode().splitlines(), utc)
        sheet = self.get("/log.csv?utc=1&for=excel&decimal=point")[1].decode().splitlines()
        self.assertEqual(sheet[0], "\ufefftime (UTC),node,sensor,value,unit")
        self.assertEqual(sheet[1][:19], utc[1][:19].replace("T", " "))

    def test_rejected_form_leaves_no_open_file(self):
        before = len(os.listdir("/proc/self/fd"))
        for query in ("for=excel&decimal=x", "utc=2", "utc=", "utc=1&for=excel&decimal=7", "utc=yes&for=excel"):
            status, _, _ = self.web.request("GET", f"/log.csv?{query}", self.web.bearer)
            self.assertEqual(status, 400)
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "the log is closed")

    def test_json_is_not_converted_and_invalid_decimal_is_rejected(self):
        self.assertTrue(self.get("/api/v1/nodes?for=excel")[1].startswith(b"{"))
        status, _, _ = self.web.request("GET", "/log.csv?for=excel&decimal=x", self.web.bearer)
        self.assertEqual(status, 400)

    def test_pages_link_to_the_download_for_excel(self):
        for path in ("/log", "/logs", "/chart?series=basement/temperature"):
            self.assertIn(b"for=excel", self.web.request("GET", path, self.web.bearer, html=True)[2], path)


if __name__ == "__main__":
    unittest.main()
