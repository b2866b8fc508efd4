"""Times on all pages and in all files: local with the zone for people, UTC for programs.

Each address that the server knows is requested, so that a new page is tested as well.
"""

import html
import json
import os
import re
import unittest

import server
from pigeonpost.core.clock import Clock, parse_rfc3339
from protocol import Batch, Gap, Sample
from tests.page_support import set_zone, use_memory_disk
from tests.support import ROOT, wait_until
from tests.web.support import FakeLink, WebHouse

UNITS = {"temperature": "°C"}
# A stream, fixed files, and the manual, which contains examples of times.
OTHERS = ("/events", "/style.css", "/script.js", "/zoom.js", "/favicon.svg", "/api/v1/openapi.json", "/help/WORD")
WITH_TIMES = 20  # number of addresses at which a time is found, at least
# The form of logs is fixed: local times with their offset from UTC. The faults in /api/v1/health are for people.
LOCAL = ("/log.csv", "/logs/WORD", "/api/v1/health")
OF_DAY = re.compile(r"(?<![0-9:])([0-2][0-9]:[0-5][0-9])(?![0-9])")
ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?"
)


# Modules that write times without core.format and core.clock, with the reason.
WRITERS = {
    "cli/backup.py": "names of files",
    "cli/calibrate.py": "arguments that can be copied, with their offset",
    "compat/file_drop/cli.py": "name of a folder",
    "core/format.py": "the rule",
    "alerts/report.py": "reports, which name their zone",
    "importing/foreign_sqlite.py": "values of another program",
    "importing/times.py": "wall times of a file, without a zone",
    "node/ring_file.py": "names of files",
    "server/scheduled_backup.py": "names of files, in UTC",
    "storage/csv/excel.py": "spreadsheets",
    "storage/csv/format.py": "names of logs",
    "transports/tcp_node_session.py": "a word of the link: local time of the node",
    "views/chart_page.py": "fields for dates",
}


def setUpModule():
    use_memory_disk()


class SetClock(Clock):
    """A clock that starts at a given time."""

    def __init__(self, text):
        super().__init__()
        self._ahead_ms = parse_rfc3339(text) - super().wall_ms()

    def wall_ms(self):
        return super().wall_ms() + self._ahead_ms


class Sources(unittest.TestCase):
    def test_no_other_module_writes_times(self):
        found = set()
        for folder, _, names in os.walk(os.path.join(ROOT, "pigeonpost")):
            for name in names:
                if name.endswith(".py"):
                    path = os.path.join(folder, name)
                    with open(path, "rb") as file:
                        text = file.read().replace(b"strftime('%Y-%m-%dT", b"")  # SQL
                    if any(word in text for word in (b"strftime(", b".isoformat(", b"ctime(")):
                        found.add(os.path.relpath(path, os.path.join(ROOT, "pigeonpost")))
        self.assertLessEqual(found, set(WRITERS), "write times with pigeonpost.core.format, or add the reason here")


class EveryPage(unittest.TestCase):
    def start(self, zone, now, *times):
        """Start a server at the time `now`, with samples of `basement` at `times`, and a gap."""
        set_zone(self, zone)
        link = FakeLink("basement", UNITS)
        link.state.since_ms = parse_rfc3339(times[0])
        link.state.sensors[0]["limits"] = {"low": 0, "high": 23}
        self.web = WebHouse(self, links=[link], clock=SetClock(now))
        self.web.store_samples(
            "basement",
            [Sample(seq, parse_rfc3339(text), seq * 1000, {"temperature": 20.0 + seq}, {}, "")
             for seq, text in enumerate(times, 1)],
            UNITS,
        )  # fmt: skip
        gap = Batch("basement", f"{sum(b'basement'):016x}", "0123456789abcdef", len(times), None,
                    Gap(len(times) + 1, len(times) + 7, 0, "overwritten"), UNITS, lambda *_: None, print)  # fmt: skip
        self.web.ingestor.submit(gap)
        log = self.web.csv.whole()[0]
        wait_until(lambda: b",gap," in self.contents(log), "the gap is in the log")
        # The kernel sets the time of the log, which /logs shows, by the real clock.
        os.utime(log, (parse_rfc3339(now) // 1000,) * 2)

    def contents(self, path):
        with open(path, "rb") as file:
            return file.read()

    def addresses(self):
        """Yield the pattern and the address of each route that returns a page or a file."""
        log = self.web.csv.whole()[0].rpartition("/")[2]
        span = "from=2026-10-20T00:00:00Z&to=2026-11-21T00:00:00Z"
        series = f"?series=basement/temperature&{span}"
        queries = {"/chart": "?series=basement/temperature&span=1h", "/chart.svg": series, "/chart.json": series,
                   "/chart.csv": series, "/api/v1/samples": "?node=basement",
                   "/api/v1/statistics": "?node=basement&sensor=temperature"}  # fmt: skip
        words = {"/logs/WORD": [log], "/nodes/NAME/WORD": ["temperature", "temperature.json", "temperature.csv"]}
        for route in [*self.web.web._table(), *server.compat_pages()]:
            if route.method != "GET" or route.path in OTHERS:
                continue
            for word in words.get(route.path, ["x"]):
                path = route.path.replace("NAME", "basement").replace("WORD", word)
                yield route.path, path + queries.get(route.path, "")

    def get(self, path, as_html=False):
        status, headers, body = self.web.request("GET", path, html=as_html)
        self.assertIn(status, (200, 404), f"{path}: {body[:300]}")  # 404: nothing with the name x
        return headers["content-type"].partition(";")[0], body.decode()

    def test_people_read_local_time_with_its_zone_and_programs_read_utc(self):
        for zone, words in (
            ("Asia/Kolkata", "Asia/Kolkata (UTC+5:30)"), ("America/St_Johns", "America/St_Johns (UTC−3:30)"),
        ):  # fmt: skip
            # All times are in one hour of UTC, so a time of this hour on a page for people has not been converted.
            self.start(zone, "2026-11-20T15:40:00Z", "2026-11-20T15:30:10Z", "2026-11-20T15:36:10Z")
            seen, with_times = set(), set()
            for pattern, path in self.addresses():
                is_page = self.web.web.routes.is_for_programs(path.partition("?")[0]) is False
                for as_html in (False, True) if is_page else (False,):
                    with self.subTest(zone=zone, path=path, html=as_html):
                        kind, text = self.get(path, as_html)
                        seen.add(kind)
                        with_times.update([path] if ISO.search(text) or OF_DAY.search(text) else [])
                        if kind in ("text/html", "image/svg+xml") or (kind == "text/plain" and pattern != "/metrics"):
                            self.assert_for_people(text, words, kind, pattern)
                        else:
                            self.assert_for_programs(text, pattern in LOCAL)
            self.assertGreaterEqual(len(with_times), WITH_TIMES)
            self.assertLessEqual({"text/html", "text/plain", "text/csv", "application/json", "image/svg+xml"}, seen)

    def assert_for_people(self, text, zone, kind, pattern):
        shown = html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", "\n", text, flags=re.S))
        zones = len(re.findall(r"[Tt]ime zone:?\s+" + re.escape(zone), shown))
        shown = re.sub(r"/\S*|curl .*", "", shown)  # addresses
        if OF_DAY.search(shown):
            self.assertIn(zones, (1, 2) if pattern == "/about" else (1,), shown)
        for time in ISO.findall(shown):
            self.assertRegex(time, r"[+-]\d\d:\d\d$" if kind == "text/plain" else r"\d$")
        hours = {time[:2] for time in OF_DAY.findall(shown)}
        self.assertNotIn("15", hours, shown)
        for value in re.findall(r'type="datetime-local"[^>]*value="([^"]+)"', text):
            self.assertNotIn("T15:", value)

    def assert_for_programs(self, text, is_local):
        times = ISO.findall(text)
        for time in times:
            self.assertRegex(time, r"[+-]\d\d:\d\d$" if is_local else r"Z$")
        self.assertTrue(times or not is_local)
        if OF_DAY.search(ISO.sub("", text)):  # in a sentence for people
            self.assertIn('"time_zone"', text)

    def test_hour_that_occurs_twice_is_distinguishable_on_every_page(self):
        self.start("Europe/Berlin", "2026-10-25T01:40:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z")
        self.web.links[0].state.awaited_s = self.web.app.clock.monotonic() - 3600
        self.web.ingestor.received_s["basement"] -= 600
        for path, texts in (
            ("/nodes/basement", ["02:30:00 UTC+1", "since 02:30 UTC+", "at 02:30 UTC+2", "02:40 UTC+1 overwritten"]),
            ("/log", ["02:30:00 UTC+2", "02:30:00 UTC+1"]),
            ("/gaps", ["02:40 UTC+1"]), ("/happenings", ["02:40 UTC+1"]), ("/logs", ["02:40 UTC+1"]),
            ("/about", ["02:40 UTC+1"]), ("/", ["21 at 02:30 UTC+2", "22 at 02:30 UTC+1"]),
            ("/nodes/basement/temperature", ["21 °C, 02:30 UTC+2", "22 °C, 02:30 UTC+1"]),
            ("/chart?series=basement/temperature&from=2026-10-25T00:00:00Z&to=2026-10-25T02:00:00Z",
             ["02:00 UTC+2", "02:00 UTC+1", "02:30 UTC+2"]),
        ):  # fmt: skip
            with self.subTest(path):
                page = " ".join(re.sub("<[^>]*>", " ", self.get(path, True)[1]).split())
                for text in texts:
                    self.assertIn(text, page)
        chart = self.get("/chart.svg?series=basement/temperature&from=2026-10-25T00:00:00Z&to=2026-10-25T02:00:00Z")[1]
        self.assertIn(">CEST/CET</text>", chart)
        shown = json.loads(self.get("/chart.json?series=basement/temperature&from=2026-10-25T00:00:00Z"
                                    "&to=2026-10-25T02:00:00Z&units=shown")[1])  # fmt: skip
        self.assertEqual((shown["times"][0], shown["shown_times"][0]),
                         ("2026-10-25T00:00:00.000Z", "2026-10-25 02:00:00 UTC+2"))  # fmt: skip
