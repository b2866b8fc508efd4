"""Datasette 0.65 with deploy/datasette/metadata.yaml serves an export: the pages and all canned queries."""

import json
import os
import sys
import unittest
import urllib.parse
import urllib.request

from tests.page_support import Server, control, for_class
from tests.programs import RealProgram, need_programs
from tests.support import LIMIT_S, ROOT, free_port, temp_folder, wait_until

METADATA = os.path.join(ROOT, "deploy", "datasette", "metadata.yaml")
DATASETTE = os.path.join(os.path.dirname(sys.executable), "datasette")


def setUpModule():
    need_programs()
    if not os.path.exists(DATASETTE):
        raise unittest.SkipTest("Datasette is not installed for this Python")


class ServedExport(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        test = for_class(cls)
        data = temp_folder(test)
        server = Server(test, "--demo", data=data)
        server.get("/healthz")  # it waits for the start
        with open(os.path.join(data, "running.json"), encoding="utf-8") as file:
            headers = {"Authorization": f"Bearer {json.load(file)['key']}"}
        path = "/api/v1/readings?sensor=temperature,light&format=long"
        wait_until(lambda: len(json.loads(server.get(path, headers)[1])) > 2, "readings of the demonstration")
        cls.file = os.path.join(temp_folder(test), "readings.sqlite3")
        status, _, told = control(test, "--data", data, "export", "--format", "sqlite", cls.file)
        assert status == 0, told
        cls.base = f"http://127.0.0.1:{free_port()}"
        command = [DATASETTE, "-i", cls.file, "--metadata", METADATA, "-p", cls.base.rpartition(":")[2]]
        RealProgram(test, command, lambda: cls.get("/-/versions.json")).start()

    @classmethod
    def get(cls, path):
        with urllib.request.urlopen(cls.base + path, timeout=LIMIT_S) as answer:
            return answer.read().decode()

    def rows(self, path, **query):
        return json.loads(self.get(f"{path}.json?{urllib.parse.urlencode({'_shape': 'array', **query})}"))

    def metadata(self):
        return json.loads(self.get("/-/metadata.json"))["databases"]["readings"]

    def test_pages_show_titles_and_descriptions(self):
        self.assertIn("Readings of sensors, each stored exactly once.", self.get("/"))
        page = self.get("/readings")
        for query in self.metadata()["queries"].values():
            self.assertIn(query["title"], page)
        table = self.get("/readings/readings")
        for text in ("One row per reading of a sensor.", "Time of the reading, RFC 3339 in UTC."):
            self.assertIn(text, table)

    def test_newest_readings_are_first_and_facets_count_them(self):
        found = self.rows("/readings/readings")
        self.assertEqual([row["time"] for row in found], sorted((row["time"] for row in found), reverse=True))
        self.assertEqual(set(found[0]) - {"rowid"}, {"time", "node", "sensor", "value", "unit"})
        facets = json.loads(self.get("/readings/readings.json"))["facet_results"]
        self.assertEqual([one["value"] for one in facets["node"]["results"]], ["demo"])

    def test_columns_of_the_metadata_are_those_of_the_table(self):
        (row, *_) = self.rows("/readings/readings")
        self.assertEqual(list(self.metadata()["tables"]["readings"]["columns"]), [key for key in row if key != "rowid"])

    def test_each_canned_query_answers(self):
        values = {"node": "demo", "sensor": "temperature", "since": ""}
        for name, query in self.metadata()["queries"].items():
            with self.subTest(name):
                given = {key: values[key] for key in query.get("params", ())}
                self.get(f"/readings/{name}?{urllib.parse.urlencode(given)}")
                found = self.rows(f"/readings/{name}", **given)
                if name != "failures":  # the sensors of the demonstration never fail
                    self.assertTrue(found)
                self.rows(f"/readings/{name}", **dict.fromkeys(given, ""))
        (latest,) = [row for row in self.rows("/readings/latest") if row["sensor"] == "temperature"]
        self.assertEqual((latest["node"], latest["unit"]), ("demo", "°C"))
        (hour, *_) = self.rows("/readings/hours", **values)
        self.assertTrue(hour["low"] <= hour["mean"] <= hour["high"])


if __name__ == "__main__":
    unittest.main()
