"""OpenAPI document: completeness, version, references, and agreement with the code."""

import json
import os
import re
import unittest

from pigeonpost.core.version import VERSION
from pigeonpost.transports import push_server, readings_server
from protocol import NODE_NAME, SENSOR_NAME
from tests.page_support import use_memory_disk
from tests.support import ROOT
from tests.test_webui import JSON, WebCase
from tests.web.support import FakeLink, WebHouse

METHODS = {"get", "head", "post"}
OTHERS = ("/metrics", "/healthz", "/integrations.json")  # addresses for programs, of the pages outside /api/


def setUpModule():
    use_memory_disk()


class OpenApiDocument(WebCase):
    def setUp(self):
        super().setUp()
        self.document = json.loads(self.get("/api/v1/openapi.json"))
        self.assertEqual(self.headers["content-type"], JSON)

    def described(self):
        return {
            (method.upper(), path)
            for path, item in self.document["paths"].items() for method in item if method in METHODS
        }  # fmt: skip

    def test_document_describes_exactly_the_addresses_for_programs(self):
        transports = [push_server.PushServerTransport, readings_server.ReadingsServerTransport]
        house = WebHouse(self, links=[FakeLink("basement")], transports=transports)
        pages = [route for _, by_method in house.web.routes.pages for route in by_method.values()]
        routes = [route for route in pages if route.path.startswith("/api/") or route.path in OTHERS]
        served = {(route.method, route.path.replace("NAME", "{name}")) for route in routes}
        served |= {(endpoint.method, endpoint.path) for _, endpoint in house.web.routes.endpoints}
        self.assertEqual(self.described(), served)

    def test_manual_lists_every_address(self):
        manual = ""
        for name in ("web.md", "protocol.md"):
            with open(os.path.join(ROOT, "docs", name), encoding="utf-8") as file:
                manual += file.read()
        for _, path in self.described():
            self.assertIn(path.replace("{name}", "NAME"), manual)

    def test_document_has_the_version_of_the_program(self):
        self.assertEqual((self.document["openapi"], self.document["info"]["version"]), ("3.1.0", VERSION))

    def test_references_are_valid_and_no_component_is_unused(self):
        wanted = re.findall(r'"\$ref": ?"#/components/([a-zA-Z]+)/([A-Za-z]+)"', json.dumps(self.document))
        self.assertGreater(len(wanted), 50)
        parts = self.document["components"]
        for kind, name in wanted:
            self.assertIn(name, parts[kind])
        for kind in ("parameters", "schemas", "responses"):
            unused = set(parts[kind]) - {name for found, name in wanted if found == kind}
            self.assertEqual(unused, set(), kind)

    def test_name_patterns_are_those_of_the_protocol(self):
        for key, match in (("name", NODE_NAME), ("node", NODE_NAME), ("sensor", SENSOR_NAME)):
            pattern = self.document["components"]["parameters"][key]["schema"]["pattern"]
            self.assertEqual(pattern, f"^{match.__self__.pattern}$")

    def test_each_operation_has_a_unique_id_a_summary_and_the_common_responses(self):
        operations = [item[method] for item in self.document["paths"].values() for method in METHODS if method in item]
        self.assertEqual(len({one["operationId"] for one in operations}), len(operations))
        for one in operations:
            self.assertTrue(one["summary"])
            success = "204" if one["operationId"] in ("writeLines", "writeLinesOne") else "200"
            refusals = set() if one.get("security") == [] else {"401", "403"}
            self.assertLessEqual({success, "400", "500", "503", *refusals}, set(one["responses"]))

    def test_only_addresses_without_content_need_no_token(self):
        for path, item in self.document["paths"].items():
            for method in METHODS & item.keys():
                is_open = path in ("/healthz", "/ping", "/health")
                self.assertEqual(item[method].get("security") == [], is_open, path)


if __name__ == "__main__":
    unittest.main()
