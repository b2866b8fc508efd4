"""Chart page: image, links to other time ranges, and numbers, in HTML and as text."""

import html
import re
import unittest
from unittest import mock
from urllib.parse import parse_qs, urlsplit

from pigeonpost.core.clock import parse_rfc3339, rfc3339
from pigeonpost.http.message import HTTPError
from pigeonpost.views import chart_page
from pigeonpost.views.chart_page import local_moment
from protocol import Sample
from tests.page_support import Afternoon, set_zone, use_memory_disk
from tests.web.support import FakeLink, WebHouse

UNITS = {"temperature": "°C", "light": "counts", "load": "", "humidity": "%"}


def setUpModule():
    use_memory_disk()


class Times(unittest.TestCase):
    def test_time_without_a_zone_is_in_the_zone_of_the_server(self):
        set_zone(self, "Europe/Berlin")
        for text, same in (
            ("2026-11-20T15:36", "2026-11-20T14:36:00Z"),
            ("2026-07-20T15:36:05", "2026-07-20T13:36:05Z"),
            ("2026-11-20T15:36:00Z", "2026-11-20T15:36:00Z"),
            ("2026-11-20T15:36:00+05:00", "2026-11-20T10:36:00Z"),
        ):
            self.assertEqual(local_moment(text), parse_rfc3339(same), text)
        self.assertEqual(local_moment("1000"), 1000)

    def test_invalid_times_are_rejected(self):
        for text in (
            "2026-13-20T15:36",
            "2026-11-20T25:36",
            "2026-02-30T01:00",
            "0000-01-01T00:00",
            "x",
            "2026-11-20",
            "",
        ):
            with self.assertRaisesRegex(HTTPError, r"like 2026-11-20T15:36 \(local time\), 2026-11-20T15:36:10Z, or"):
                local_moment(text)


class ChartPage(unittest.TestCase):
    def setUp(self):
        set_zone(self, "Europe/Berlin")
        self.web = WebHouse(
            self, links=[FakeLink("basement", UNITS), FakeLink("attic", {"temperature": "°C"})], clock=Afternoon()
        )
        for link in self.web.links:
            link.state.every_s = 60.0
        now_ms = self.web.app.clock.wall_ms()
        for node in ("basement", "attic"):
            self.web.store_samples(node, [
                Sample(k, now_ms - (40 - k) * 60_000, k * 1000, {"temperature": 20 + k / 10, "light": 700 + k}, {}, "")
                for k in range(1, 41)
            ], UNITS)  # fmt: skip

    def page(self, query, status=200):
        found, _, body = self.web.request("GET", f"/chart?{query}", html=True)
        self.assertEqual(found, status, body[:300])
        return body.decode()

    def links(self, page):
        return {
            html.unescape(text): html.unescape(link)
            for link, text in re.findall(r'<a[^>]* href="([^"]+)"[^>]*>([^<]+)</a>', page)
        }

    def choice(self, query):
        links = self.links(self.page(query).partition('data-piece="choice"')[2].partition("</ul>")[0])
        return {text: parse_qs(urlsplit(link).query)["series"][0] for text, link in links.items()}

    def test_page_offers_series_to_add_and_to_remove(self):
        series = "basement/temperature,basement/light"
        self.assertEqual(self.choice(f"series={series}&span=1h"), {
            "– temperature of basement": "basement/light",
            "– light of basement": "basement/temperature",
            "+ temperature of attic": f"{series},attic/temperature", "+ light of attic": f"{series},attic/light",
        })  # fmt: skip

    def test_displayed_series_are_listed_first_if_there_are_many(self):
        with mock.patch.object(chart_page, "_MOST_OFFERED", 3):
            offered = list(self.choice("series=attic/temperature,basement/temperature&span=1h"))
        self.assertEqual(offered[:2], ["– temperature of attic", "– temperature of basement"])
        self.assertEqual(len(offered), 3)

    def test_page_reads_only_the_samples_of_the_displayed_nodes(self):
        with mock.patch.object(self.web.store, "downsample_all", wraps=self.web.store.downsample_all) as read:
            self.assertIn("+ temperature of attic", self.choice("series=basement/temperature&span=1h"))
        self.assertEqual({call.args[0] for call in read.call_args_list}, {"basement"})

    def test_page_shows_title_image_statistics_and_values(self):
        page = self.page("series=basement/temperature,basement/light&span=1h")
        self.assertIn("<h1>temperature and light of basement</h1>", page)
        source = r'<img src="/chart\.svg\?series=basement/temperature,basement/light&amp;span=1h&amp;size=large"'
        words = r"Temperature: from 20\.1 to 24, mean 22\.05 °C; 40 values\. Light: from 701 to 740,"
        self.assertRegex(page, f'{source} alt="{words}')
        self.assertIn('<td data-label="median">22.05 °C</td>', page)
        self.assertIn('<script src="/zoom.js" defer></script>', page)
        self.assertRegex(page, r" data-now=")  # the script updates this page
        rows = re.findall(r"<tr><th scope=row>(\d\d:\d\d)</th>((?:<td>[^<]*</td>)+)</tr>", page)
        self.assertGreaterEqual(len(rows), 10)
        self.assertRegex(rows[-1][1], r"^<td>2\d[\d.]* \(2\d[\d.]* to 2\d[\d.]*\)</td><td>7\d\d")

    def test_images_and_downloads_of_the_page_exist(self):
        page = self.page("series=basement/temperature,attic/temperature&span=6h")
        found = re.findall(r'(?:src|srcset|href)="(/chart\.[^"]+)"', page)
        self.assertEqual(len(found), 6)
        for address in found:
            status, _, body = self.web.request("GET", html.unescape(address))
            self.assertEqual(status, 200, address)
            self.assertGreater(len(body), 1000)
        for path in ("/chart.json", "/chart.csv", "/chart.svg"):
            self.assertTrue(any(address.startswith(path) for address in found))

    def test_several_series_have_a_legend_for_narrow_screens(self):
        page = self.page("series=basement/temperature,basement/light")
        names = re.findall(r'<li class="s\d">([^<]+)</li>', page)
        self.assertEqual(names, ["temperature, °C", "light, counts"])
        self.assertNotIn('class="key"', self.page("series=basement/temperature"))

    def test_links_open_earlier_later_longer_and_shorter_ranges(self):
        page = self.page("series=basement/temperature&from=2026-11-01T12:00&to=2026-11-01T14:00")
        self.assertNotIn("data-now", page)  # a past time range is not updated
        links = self.links(page)
        for name, begin, end in (
            ("← Earlier", "09", "11"), ("Later →", "13", "15"), ("Zoom out", "10", "14"),
        ):  # fmt: skip
            query = parse_qs(urlsplit(links[name]).query)
            self.assertEqual(
                (query["from"], query["to"]), ([f"2026-11-01T{begin}:00:00.000Z"], [f"2026-11-01T{end}:00:00.000Z"])
            )
            self.page(urlsplit(links[name]).query)
        query = parse_qs(urlsplit(links["Zoom in"]).query)
        self.assertEqual(query["from"], ["2026-11-01T11:30:00.000Z"])
        self.assertIn('name="from" value="2026-11-01T12:00"', page)
        self.assertIn('name="to" value="2026-11-01T14:00"', page)
        self.assertIn('<a href="/chart?series=basement/temperature&amp;span=1830d">5 years</a>', page)
        self.assertNotIn("Later", self.links(self.page("series=basement/temperature&span=24h")))

    def test_all_links_work_at_the_ends_of_the_time_scale(self):
        for query in (
            "series=basement/temperature&from=0&to=1", "series=basement/temperature&from=0&to=100000000000",
            "series=basement/temperature&span=4392d", "series=basement/temperature&span=1s",
            "series=basement/temperature&from=999999000000000&to=999999999999999",
            "series=basement/temperature&from=2026-11-01T12:00&to=",
        ):  # fmt: skip
            page = self.page(query)
            for name, link in self.links(page).items():
                if link.startswith("/chart?"):
                    self.assertEqual(self.web.request("GET", link)[0], 200, (query, name, link))

    def test_links_add_and_remove_series(self):
        links = self.links(self.page("series=basement/temperature&span=1h"))
        self.assertEqual(links["+ light of basement"], "/chart?series=basement/temperature,basement/light&span=1h")
        self.assertNotIn("– temperature of basement", links)  # the last series cannot be removed
        page = self.page("series=basement/temperature,basement/light&span=1h")
        links = self.links(page)
        self.assertEqual(links["– temperature of basement"], "/chart?series=basement/light&span=1h")
        self.assertIn("+ temperature of attic", links)
        self.assertNotIn("+ humidity of basement", links)  # a third axis is not supported
        self.assertNotIn("+ load of basement", links)

    def test_units_are_escaped(self):
        self.web.links[0].state.sensors = [{"name": "temperature", "unit": "<b>°C</b>"}, {"name": "light", "unit": "%"}]
        self.web.store_samples("basement", [{"temperature": 1, "light": 1}])
        for query in ("series=basement/temperature&span=1h", "series=basement/temperature,basement/light&span=1h"):
            self.assertNotIn("<b>°C", self.page(query))
            self.assertNotIn("<b>°C", self.web.request("GET", f"/chart.svg?{query}")[2].decode())

    def test_page_names_the_ranges_of_late_samples(self):
        self.assertRegex(
            self.page("series=basement/temperature&span=1h"), r'data-piece="late">Values from .* arrived late\.</p>'
        )

    def test_terminal_gets_the_chart_page_as_text(self):
        status, headers, body = self.web.request("GET", "/chart?series=basement/temperature,attic/temperature&span=1h")
        text = body.decode()
        self.assertEqual((status, headers["content-type"]), (200, "text/plain; charset=utf-8"))
        self.assertRegex(text, r"(?m)^SERIES        VALUES  MEAN   MEDIAN  MODE ")
        self.assertRegex(text, r"(?m)^TIME +BASEMENT, °C +ATTIC, °C$")
        self.assertIn("Basement: from 20.1 to 24, mean 22.05 °C; 40 values.", text)
        self.assertIn("/chart.csv?series=basement/temperature,attic/temperature&span=1h&size=large'", text)
        self.assertLessEqual(max(map(len, text.splitlines()[4:-4])), 100)

    def test_statistics_of_five_years_omit_the_median(self):
        page = self.page("series=basement/temperature&span=1830d")
        self.assertIn('<td data-label="median">–</td>', page)  # it is not calculated for such a long range
        self.assertIn('<td data-label="values">40</td>', page)

    def test_unknown_series_and_invalid_times_are_rejected(self):
        self.page("", 404)
        self.page("series=nobody/temperature", 404)
        self.page("series=basement/temperature&from=2026-11-01", 400)
        self.page("series=basement/temperature,basement/light,basement/humidity", 400)

    def test_form_contains_the_displayed_times_in_a_form_that_it_accepts(self):
        now_ms = self.web.app.clock.wall_ms()
        page = self.page(f"series=basement/temperature&from={rfc3339(now_ms - 7_200_000)}&to={rfc3339(now_ms)}")
        begin, end = re.findall(r'type="datetime-local"[^>]* value="([^"]+)"', page)
        self.assertAlmostEqual(local_moment(end) - local_moment(begin), 7_200_000, delta=60_000)

    def test_script_of_the_charts_is_served(self):
        status, headers, body = self.web.request("GET", "/zoom.js")
        self.assertEqual((status, headers["content-type"]), (200, "text/javascript; charset=utf-8"))
        self.assertIn(b'"use strict"', body)


if __name__ == "__main__":
    unittest.main()
