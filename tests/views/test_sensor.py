"""Sensor page: value, chart, statistics and limits, as HTML, text, JSON and CSV."""

import csv
import io
import json
import unittest
from unittest import mock

import webui
from pigeonpost.views.html import sensor_path
from protocol import Sample
from tests.page_support import Afternoon, set_zone, use_memory_disk
from tests.web.support import FakeLink, WebHouse

UNITS = {"temperature": "°C", "status": "", "light": "counts"}


def setUpModule():
    use_memory_disk()
    soon = mock.patch.object(webui, "_POLL_S", 0.005)
    soon.start()
    unittest.addModuleCleanup(soon.stop)


class SensorPage(unittest.TestCase):
    def setUp(self):
        set_zone(self, "UTC")
        self.link = FakeLink("basement", UNITS)
        self.link.state.sensors[0]["limits"] = {"low": 0, "high": 23}
        self.web = WebHouse(self, links=[self.link], clock=Afternoon())
        now_ms = self.web.app.clock.wall_ms()
        self.web.store_samples("basement", [
            Sample(1, now_ms - 3 * 86_400_000, 1000, {"temperature": 10.0, "old": 1}, {}, ""),
            Sample(2, now_ms - 60_000, 2000, {"temperature": 20.0, "status": 1, "light": 5}, {}, ""),
            Sample(3, now_ms - 30_000, 3000, {"temperature": 22.0, "status": 2, "light": 6}, {}, ""),
            Sample(4, now_ms, 4000, {"temperature": 24.0, "status": 2, "light": None}, {"light": "<broken>"}, ""),
        ], {**UNITS, "old": "V"})  # fmt: skip

    def get(self, path, status=200, **more):
        found, self.headers, body = self.web.request("GET", path, **more)
        self.assertEqual(found, status, body[:300])
        return body.decode()

    def test_browser_gets_value_chart_statistics_and_limits(self):
        page = self.get("/nodes/basement/temperature", html=True)
        self.assertIn('<h1>temperature of <a href="/nodes/basement">basement</a></h1>', page)
        self.assertIn('<b data-live="basement/temperature">24</b> <span class="unit">°C</span>', page)
        self.assertIn('<span class="odd">above 23 °C</span>', page)
        for words, values in (("last 24 hours", 3), ("last 7 days", 4), ("last 365 days", 4)):
            self.assertIn(f'<th scope=row>{words}</th><td data-label="values">{values}</td>', page)
        self.assertIn('src="/chart.svg?series=basement/temperature&amp;span=24h&amp;size=large"', page)
        self.assertIn('<td data-label="limits">0 to 23 °C</td>', page)
        self.assertIn("out of range 1 time", page)
        self.assertIn(" data-now=", page)

    def test_new_sensor_starts_with_a_chart_of_one_hour(self):
        young = FakeLink("shed", {"new": "V"})
        self.web.links.append(young)
        self.web.store_samples("shed", [{"new": 1.5}], {"new": "V"})
        self.assertIn("span=1h&amp;size=large", self.get("/nodes/shed/new", html=True))

    def test_time_range_of_the_chart_can_be_selected(self):
        page = self.get("/nodes/basement/temperature?span=7d", html=True)
        self.assertIn("span=7d&amp;size=large", page)
        self.assertIn('<a href="/nodes/basement/temperature?span=7d" aria-current="true">week</a>', page)
        self.assertIn("span=24h&amp;size=large", self.get("/nodes/basement/temperature?span=never", html=True))

    def test_terminal_gets_value_statistics_and_limits_as_text(self):
        text = self.get("/nodes/basement/temperature")
        self.assertTrue(text.startswith("temperature of basement: 24 °C, 0 s ago.\n"))
        self.assertRegex(text, r"(?m)^last 24 hours  3       22 +22 +20 +20, \d\d:\d\d +24, \d\d:\d\d +1\.633$")
        self.assertRegex(text, r"(?m)^last 7 days    4       19 +≈ \d\d +≈ \d\d ")
        self.assertIn("limits: 0 to 23 °C\nflags in this run: out of range 1 time\n", text)

    def test_json_contains_value_statistics_and_limits(self):
        told = json.loads(self.get("/nodes/basement/temperature.json"))
        self.assertEqual(
            (told["node"], told["sensor"], told["unit"], told["value"]), ("basement", "temperature", "°C", 24.0)
        )
        day, week = told["statistics"]["day"], told["statistics"]["week"]
        self.assertEqual(
            (day["count"], day["mean"], day["median"], day["mode"], day["low"], day["high"]), (3, 22, 22, 20, 20, 24)
        )
        self.assertEqual((day["median_is_exact"], week["median_is_exact"], week["low"]), (True, False, 10.0))
        self.assertAlmostEqual(week["deviation"], 5.385164807, 6)
        self.assertEqual((told["limits"], told["verdict_counts"]["range"]), ({"low": 0, "high": 23}, 1))

    def test_csv_has_one_row_per_time_range(self):
        text = self.get("/nodes/basement/temperature.csv")
        self.assertEqual(self.headers["content-type"], "text/csv; charset=utf-8")
        rows = list(csv.DictReader(io.StringIO(text)))
        self.assertEqual([row["span"] for row in rows], ["day", "week", "month", "year"])
        self.assertEqual((rows[0]["count"], rows[0]["high"], rows[0]["median_is_exact"]), ("3", "24.0", "true"))

    def test_reason_of_a_failed_reading_is_shown_and_escaped(self):
        page = self.get("/nodes/basement/light", html=True)
        self.assertIn('<span class="fault">&lt;broken&gt;</span> <span class="day">0 s ago</span>', page)
        self.assertNotIn("<broken>", page)
        self.assertIn("light of basement: <broken>, 0 s ago.", self.get("/nodes/basement/light"))

    def test_page_of_a_removed_sensor_states_that_the_node_no_longer_has_it(self):
        self.assertIn("old of basement: the node no longer has this sensor.", self.get("/nodes/basement/old"))
        self.assertIn("last 7 days", self.get("/nodes/basement/old", html=True))

    def test_sensor_named_like_a_button_has_a_distinct_address(self):
        self.assertEqual(sensor_path("basement", "status"), "/nodes/basement/status.html")
        self.assertIn("<h1>status of", self.get("/nodes/basement/status.html", html=True))
        self.assertIn('"sensor":"status"', self.get("/nodes/basement/status.json"))
        for name in UNITS:
            self.get(sensor_path("basement", name))

    def test_cards_link_to_the_sensor_pages(self):
        page = self.get("/", html=True)
        for name in UNITS:
            self.assertIn(f'href="{sensor_path("basement", name)}"', page)

    def test_unknown_sensors_nodes_and_formats_are_not_found(self):
        for path in (
            "/nodes/basement/wind", "/nodes/attic/temperature", "/nodes/basement/Temperature", "/nodes/basement/.json",
            "/nodes/basement/temperature.xml", "/nodes/basement/temperature.json.json", "/nodes/basement/..",
            "/nodes/basement/" + "x" * 201,
        ):  # fmt: skip
            self.get(path, 404)


if __name__ == "__main__":
    unittest.main()
