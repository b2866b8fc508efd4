"""Targets for the HTTP service discovery of Prometheus."""

import json
import unittest

from tests.page_support import use_memory_disk
from tests.web.support import FakeLink, WebHouse


def setUpModule():
    use_memory_disk()


class Targets(unittest.TestCase):
    def targets(self, addresses, query="", status=200, headers=None):
        links = []
        for name, address in addresses.items():
            links.append(FakeLink(name))
            links[-1].state.address = address
        web = WebHouse(self, links=links)
        found, _, body = web.request("GET", "/api/v1/http_sd" + query, headers)
        self.assertEqual(found, status, body)
        return json.loads(body)

    def test_each_host_of_a_node_is_one_target(self):
        found = self.targets({
            "attic": "192.168.1.20:5003", "second": "192.168.1.20:5004", "cellar": "[fd00::5]:5003", "calls": "",
            "pushes": "over HTTP from 10.0.0.3", "shed": "shed.local:5003",
        })  # fmt: skip
        self.assertEqual(found, [
            {"targets": ["192.168.1.20:9100"], "labels": {"node": "attic"}},
            {"targets": ["[fd00::5]:9100"], "labels": {"node": "cellar"}},
            {"targets": ["shed.local:9100"], "labels": {"node": "shed"}},
        ])  # fmt: skip

    def test_port_can_be_chosen(self):
        self.assertEqual(self.targets({"attic": "10.0.0.1:5003"}, "?port=9273")[0]["targets"], ["10.0.0.1:9273"])
        for query in ("?port=0", "?port=65536", "?port=x", "?of=all"):
            self.targets({}, query, 400)

    def test_server_is_a_target_under_the_name_in_the_request(self):
        (found,) = self.targets({}, "?of=server")
        self.assertRegex(found["targets"][0], r"^127\.0\.0\.1:[0-9]+$")
        self.assertEqual(found["labels"], {"server": "house", "__scheme__": "http", "__metrics_path__": "/metrics"})

    def test_server_without_nodes_has_no_targets(self):
        self.assertEqual(self.targets({}), [])


if __name__ == "__main__":
    unittest.main()
