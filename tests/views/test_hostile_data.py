"""Pages, API responses and commands with data from a hostile node: other nodes are not affected."""

import json
import os
import sys
import unittest
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.alerts.recipients import ReportPlan
from pigeonpost.alerts.report import ReportSource
from pigeonpost.alerts.reporter import make_report
from pigeonpost.charts.axes import axis_of
from pigeonpost.core.clock import FakeClock
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.node_limits import NodeLimits
from pigeonpost.server.quality import QualityChecks
from pigeonpost.server.schedule import Schedule
from pigeonpost.storage.models import NOTHING, Bucket, EpochCommit, Rollup, merge_rollups
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.views.chart import _limited
from pigeonpost.views.dashboard import MOST_CARDS
from protocol import LARGEST_SEQ, Batch, Gap, Sample
from tests.page_support import set_zone, use_memory_disk
from tests.support import LONG, temp_folder
from tests.test_control import ControlCase
from tests.web.support import FakeLink, WebHouse

HUGE = sys.float_info.max
PATHS = (
    "/", "/nodes/evil", "/nodes/basement", "/log", "/log.csv", "/logs", "/gaps", "/gaps.csv", "/gaps.json",
    "/happenings", "/about", "/api/v1/nodes", "/api/v1/nodes/evil", "/api/v1/samples?node=evil", "/api/v1/health",
    "/metrics", "/nodes/basement/temperature", "/graphs",
)  # fmt: skip
EVIL = "00000000000000ee"


def setUpModule():
    use_memory_disk()


def store_gaps(store):
    """Store twelve epochs, each with a gap of 10^18 samples and as many lost before it, and return the total.

    Servers of versions that did not limit gaps have stored such data.
    """
    commits = []
    for n in range(12):
        commit = EpochCommit("evil", EVIL, f"{n:016x}", NOTHING)
        commit.add(Batch("evil", EVIL, commit.epoch, LARGEST_SEQ, None, Gap(1, LARGEST_SEQ, LARGEST_SEQ, "x"), {}), 0)
        commits.append(commit)
    with store.writing(()):
        store.put(commits, 1_795_000_000_000, None)
    return 24 * LARGEST_SEQ


class PagesCase(unittest.TestCase):
    def setUp(self):
        set_zone(self, "UTC")
        links = [FakeLink("basement", {"temperature": "°C"}), FakeLink("evil", self.sensors())]
        self.web = WebHouse(self, links=links)
        self.web.store_samples("basement", [{"temperature": 20.0}] * 3, {"temperature": "°C"})

    def sensors(self):
        return {}

    def get(self, path, html=False):
        status, headers, body = self.web.request("GET", path, html=html)
        self.assertEqual(status, 200, f"{path}: {body[:300]}")
        if "json" in headers["content-type"]:
            json.loads(body, parse_constant=lambda word: self.fail(f"{path}: {word}"))
        return body.decode()

    def get_all(self, *paths, never=None):
        """Request PATHS and `paths` as a program and as a browser; no page may match the pattern `never`."""
        for path in (*PATHS, *paths):
            for html in (False, True):
                with self.subTest(path=path, html=html):
                    text = self.get(path, html)
                    if html and never:
                        self.assertNotRegex(text, never)


class OverflowingGaps(PagesCase):
    def test_every_page_is_served_although_counts_overflow(self):
        missing = store_gaps(self.web.store)
        self.get_all()
        self.assertIn(f'pigeonpost_node_missing{{node="evil"}} {missing}\n', self.get("/metrics"))
        self.assertIn('pigeonpost_node_samples{node="basement"} 3\n', self.get("/metrics"))


class OverflowingCommands(ControlCase):
    def fill(self):
        store = SqliteStore(self.data)
        csv = CsvLog(self.data, store, FakeClock())
        csv.start()
        store_gaps(store)
        commit = EpochCommit("basement", EVIL, EVIL, NOTHING)
        samples = [Sample(seq, 1_795_000_000_000 + seq, seq, {"t": 1.0}, {}, "") for seq in range(1, 4)]
        commit.add(Batch("basement", EVIL, EVIL, 0, SampleBatch.of(samples), None, {}), 0)
        with store.writing(()):
            store.put([commit], 0, None)
        csv.close()
        store.close()

    def test_verify_export_backup_and_restore_work_although_counts_overflow(self):
        self.fill()
        place = temp_folder(self)
        self.done("verify")
        out = os.path.join(place, "all.csv")
        self.done("export", "--out", out)
        with open(out, encoding="utf-8") as file:
            self.assertEqual(sum(",basement,t,1.0," in line for line in file), 3)
        self.done("backup", os.path.join(place, "b.tar"))
        restored = os.path.join(place, "restored")
        self.done("restore", os.path.join(place, "b.tar"), data=restored)
        self.done("verify", data=restored)


class HugeValues(PagesCase):
    def sensors(self):
        return {"high": "V", "low": "V", "mixed": "V", "tiny": "V", "whole": "V"}

    def setUp(self):
        super().setUp()
        for link in self.web.links:
            for sensor in link.state.sensors:
                sensor["limits"] = {"low": -1, "high": 1, "jump": 0.5, "stuck": 10, "rail": [-2, 2]}
        now_ms = self.web.app.clock.wall_ms()
        rows = []
        for k in range(200):
            sign = 1 if k % 2 else -1
            rows.append({"high": HUGE, "low": -HUGE, "mixed": sign * HUGE, "tiny": sign * 5e-324, "whole": 2**63 - 1})
        times = [now_ms - (199 - k) * 300_000 for k in range(200)]
        self.web.store_samples("evil", [
            Sample(seq, at, seq * 1000, values, {}, "") for seq, (at, values) in enumerate(zip(times, rows), 1)
        ], self.sensors())  # fmt: skip

    def test_every_page_and_response_is_valid_with_huge_values(self):
        paths, spans = [], ("1h", "24h", "7d", "366d")
        for n, name in enumerate(self.sensors()):
            paths += [f"/nodes/evil/{name}", f"/nodes/evil/{name}.json", f"/nodes/evil/{name}.csv"]
            for span in spans if LONG else (spans[n % 4],):
                paths += [f"/chart.{kind}?node=evil&sensor={name}&span={span}" for kind in ("svg", "json", "csv")]
            paths.append(f"/api/v1/statistics?node=evil&sensor={name}")
            paths.append(f"/api/v1/samples?node=evil&sensor={name}&step=3600")
        self.get_all(
            *paths, "/chart.svg?series=evil/high,evil/low,evil/tiny,evil/mixed", "/chart?series=evil/high",
            never=r"(?i)(?<![a-z])(nan|inf|infinity)(?![a-z])",
        )  # fmt: skip

    def test_report_is_valid_with_huge_values(self):
        now_ms = self.web.app.clock.wall_ms()
        plan = ReportPlan("report", ["mail"], Schedule("07:00"))
        message = make_report(ReportSource("house", self.web.store), plan, now_ms - 90_000_000, now_ms)
        self.assertNotRegex(message.html, r"(?i)(?<![a-z])(nan|inf|infinity)(?![a-z])")
        json.dumps(message.info, allow_nan=False)
        self.assertIn("high ", message.text)


class Arithmetic(unittest.TestCase):
    def test_rollups_of_extreme_values_are_merged_without_overflow(self):
        ends = (0.0, 5e-324, -5e-324, 1.0, -1e-308, HUGE, -HUGE)
        for one in ends:
            for other in ends:
                a = Rollup(600_000, 3, one, one, one, one, one, 0.0)
                b = Rollup(600_000, 10**9, other, other, other, other, other, 0.0)
                found = merge_rollups(a, b)
                for figure in found:
                    self.assertTrue(abs(figure) <= HUGE, (one, other, found))
                self.assertTrue(found.low <= found.mean <= found.high, (one, other, found))

    def test_axis_of_extreme_values_has_two_ends(self):
        ends = (0.0, 5e-324, 1e-300, 1.0, 1.0 + 2**-52, 1e300, 1e300 * (1 + 2**-52), -HUGE, HUGE)
        for one in ends:
            for other in ends:
                column = _limited(Bucket(0, 2, min(one, other), max(one, other), one))
                axis = axis_of("V", [column])
                self.assertTrue(axis.low < axis.high and axis.step > 0, (one, other, axis))
                self.assertTrue(0 < len(list(axis.labels())) < 20, (one, other, axis))

    def test_change_between_the_largest_floats_is_finite(self):
        link = FakeLink("evil", {"t": "V"})
        link.state.sensors[0]["limits"] = {"jump": 1}
        checks = QualityChecks([link])
        commit = EpochCommit("evil", EVIL, EVIL, NOTHING)
        samples = [Sample(seq, seq * 1000, seq * 1000, {"t": HUGE * (-1) ** seq}, {}, "") for seq in (1, 2)]
        commit.add(Batch("evil", EVIL, EVIL, 0, SampleBatch.of(samples), None, {}), 0)
        checks.on_commit([commit])
        judged = checks.of("evil", "t", 2000)
        self.assertEqual([(flag.kind, flag.found) for flag in judged.findings], [("jump", HUGE)])


class ManyChannels(PagesCase):
    def test_front_page_limits_the_cards_of_a_node_and_links_to_the_others(self):
        for part in range(5):
            self.web.store_samples("evil", [{f"n{k:04d}": 1.0 for k in range(part * 250, part * 250 + 250)}])
        page = self.get("/", html=True)
        self.assertEqual(page.count('<a class="card'), 1 + MOST_CARDS + 1)
        self.assertIn(f'href="/nodes/evil"><span class="name">{1024 - MOST_CARDS} more sensors of evil</span>', page)
        self.assertIn("n1023", self.get("/nodes/evil", html=True))
        self.assertNotIn("n1024", self.get("/nodes/evil", html=True))

    def test_setting_raises_the_limit_of_channels(self):
        with mock.patch.object(self.web.ingestor, "_limits", NodeLimits(self.web.store, 300, 2000)):
            self.web.store_samples("evil", [{f"n{k}": 1.0 for k in range(290)}])
        self.assertEqual(len(self.web.store.channels("evil", 9999)), 290)
