"""Table pages as HTML, text, CSV and JSON, and the page about the server."""

import csv
import hashlib
import io
import os
import unittest
from types import SimpleNamespace
from unittest import mock

from pigeonpost.compat.multicast_bus.state import BusState
from pigeonpost.core.errors import StoreDamaged
from pigeonpost.server import event_log
from pigeonpost.storage.csv.checksums import sums_text
from pigeonpost.views import gaps_and_events
from pigeonpost.views.about import PROMISE
from protocol import Batch, Gap
from tests.page_support import set_zone, use_memory_disk
from tests.support import ROOT, wait_until
from tests.test_webui import UNITS, WebCase


def setUpModule():
    use_memory_disk()


class TableCase(WebCase):
    def rows(self, path):
        return list(csv.DictReader(io.StringIO(self.get(path))))

    def missing(self, why="overwritten before it was delivered", node="basement", first=3):
        gap = Gap(first, 9, 0, why)
        self.web.ingestor.submit(
            Batch(node, f"{sum(node.encode()):016x}", "0123456789abcdef", 2, None, gap, UNITS, lambda *_: None, print)
        )
        wait_until(lambda: node in [gap["node"] for gap in self.web.store.gaps(5)], "the gap is stored")


class Gaps(TableCase):
    def test_page_without_gaps_states_that_nothing_is_missing(self):
        self.assertIn("No samples are missing.", self.page("/gaps"))
        self.assertIn("No samples are missing.", self.get("/gaps"))
        self.assertEqual(self.json("/gaps.json"), {"gaps": []})

    def test_gap_is_listed_in_all_formats(self):
        self.missing()
        page, text = self.page("/gaps"), self.get("/gaps")
        for said in (page, text):
            self.assertIn("7 samples are permanently lost, in 1 gap", said)
            self.assertIn("3 to 9 of epoch 0123456789abcdef", said)
            self.assertIn("overwritten before it was delivered", said)
        self.assertIn('href="/gaps.csv"', page)
        (row,) = self.rows("/gaps.csv")
        (gap,) = self.json("/gaps.json")["gaps"]
        self.assertEqual((row["node"], row["count"], row["from"], row["why"]),
                         ("basement", "7", "3", "overwritten before it was delivered"))  # fmt: skip
        self.assertEqual((gap["noted"], gap["count"], gap["to"], gap["before"]), (row["noted"], 7, 9, 0))

    def test_text_from_a_node_is_escaped_in_html_and_csv(self):
        self.missing('=cmd|"<script>"')
        self.assertNotIn("<script>", self.page("/gaps").partition("<main>")[2])
        self.assertEqual(self.rows("/gaps.csv")[0]["why"], '\'=cmd|"<script>"')


class RecentLosses(TableCase):
    def faults(self):
        return self.json("/api/v1/health")["faults"]

    def test_gaps_of_each_node_are_a_fault(self):
        before = self.faults()
        self.missing("overwritten before it was delivered")
        self.missing("damaged on the card", "attic", first=1)
        found = [fault for fault in self.faults() if fault not in before]
        self.assertEqual([fault.split(" (")[0] for fault in found], [
            "attic: 9 samples are permanently lost", "basement: 7 samples are permanently lost",
        ])  # fmt: skip
        self.assertIn("(damaged on the card), recorded", found[0])

    def test_gap_is_a_fault_for_24_hours_by_a_clock_that_may_be_set_back(self):
        self.missing()
        clock = self.web.app.clock
        now_ms = clock.wall_ms()
        for seconds, count in ((86_000, 1), (86_500, 0), (-86_500, 0), (-86_000, 1), (0, 1)):
            with mock.patch.object(clock, "wall_ms", return_value=now_ms + 1000 * seconds):
                self.assertEqual(sum("permanently lost" in one for one in self.faults()), count, seconds)

    def test_damaged_store_is_reported_instead_of_gaps(self):
        self.missing()
        with mock.patch.object(self.web.store, "gaps", side_effect=StoreDamaged("damaged: restore")):
            self.assertEqual(sum("permanently lost" in one for one in self.faults()), 0)


class EventList(TableCase):
    def setUp(self):
        self.enterContext(mock.patch.object(event_log, "_LOOK_S", 0.02))
        super().setUp()

    def test_events_of_earlier_runs_and_of_this_run_are_listed(self):
        set_zone(self, "UTC")
        self.missing()
        for name in ("sensorlog_191125_0715.csv", "sensorlog_999999_9999.csv", "notes.csv"):
            with open(os.path.join(self.web.folder, "logs", name), "w", encoding="utf-8"):
                pass
        wait_until(lambda: "connected" in self.get("/happenings"), "the event log is updated")
        found = self.json("/happenings.json")["happenings"]
        self.assertEqual([one["time"] for one in found], sorted((one["time"] for one in found), reverse=True))
        self.assertEqual(found[-1], {
            "time": "2025-11-19T07:15:00.000Z", "node": "", "kind": "started",
            "text": "this server was started (sensorlog_191125_0715.csv)",
        })  # fmt: skip
        kinds = [(one["node"], one["kind"]) for one in found]
        for one in (("basement", "gap"), ("basement", "reached"), ("basement", "started"), ("", "started")):
            self.assertIn(one, kinds)
        self.assertEqual(kinds.count(("", "started")), 2)
        self.assertIn("19 Nov 2025 07:15", self.page("/happenings"))
        self.assertEqual(len(self.rows("/happenings.csv")), len(found))

    def test_logs_are_no_starts_when_old_starts_were_replaced_by_other_events(self):
        path = os.path.join(self.web.folder, "logs", "sensorlog_191126_0715.csv")
        with open(path, "w", encoding="utf-8"), mock.patch.object(gaps_and_events, "MOST", 1):
            wait_until(lambda: "connected" in self.get("/happenings"), "the event log is updated")
            self.assertNotIn("sensorlog_191126_0715.csv", self.get("/happenings"))

    def test_node_that_is_switched_off_is_listed(self):
        wait_until(lambda: "connected" in self.get("/happenings"), "the event log is updated")
        self.link.state.on = False
        wait_until(lambda: "switched off" in self.get("/happenings"), "the event log contains it")


class Logs(TableCase):
    def setUp(self):
        super().setUp()
        self.folder = os.path.join(self.web.folder, "logs")
        self.old = b"time,node,sensor,value,unit\n" * 3
        with open(os.path.join(self.folder, "sensorlog_191126_0715.csv"), "wb") as file:
            file.write(self.old)
        self.sum = hashlib.sha256(self.old).hexdigest()
        with open(os.path.join(self.folder, "SHA256SUMS"), "wb") as file:
            file.write(sums_text({"sensorlog_191126_0715.csv": self.sum}))
        self.own = os.path.basename(self.web.csv.whole()[0])

    def test_all_logs_are_listed_with_size_and_checksum(self):
        page, text = self.page("/logs"), self.get("/logs")
        for said in (page, text):
            for part in ("2 logs", self.own, "sensorlog_191126_0715.csv", self.sum, "still open"):
                self.assertIn(part, said)
        self.assertIn(f'href="/logs/{self.own}"', page)
        found = {one["name"]: one for one in self.json("/logs.json")["logs"]}
        self.assertEqual(found[self.own]["open"], True)
        self.assertEqual(found[self.own]["sha256"], None)
        self.assertEqual((found["sensorlog_191126_0715.csv"]["bytes"], found["sensorlog_191126_0715.csv"]["sha256"]),
                         (len(self.old), self.sum))  # fmt: skip
        rows = {row["name"]: row for row in self.rows("/logs.csv")}
        self.assertEqual((rows[self.own]["open"], rows["sensorlog_191126_0715.csv"]["open"]), ("true", "false"))

    def test_log_is_downloaded_completely_or_in_part(self):
        self.assertEqual(self.get("/logs/sensorlog_191126_0715.csv"), self.old.decode())
        self.assertIn('filename="sensorlog_191126_0715.csv"', self.headers["content-disposition"])
        self.assertEqual(self.headers["content-type"], "text/csv; charset=utf-8")
        part = self.web.request("GET", "/logs/sensorlog_191126_0715.csv", {"Range": "bytes=0-3"})
        self.assertEqual((part[0], part[2]), (206, b"time"))
        self.assertEqual(self.get(f"/logs/{self.own}"), self.get("/log.csv"))

    def test_files_that_are_not_listed_cannot_be_downloaded(self):
        os.symlink("/etc/passwd", os.path.join(self.folder, "passwd.csv"))
        os.mkdir(os.path.join(self.folder, "folder.csv"))
        self.assertNotIn("passwd", self.get("/logs"))
        for name in ("passwd.csv", "folder.csv", "SHA256SUMS", "..", ".", "users.json", "no.csv"):
            self.get(f"/logs/{name}", 404)

    def test_unknown_log_is_not_found(self):
        self.get("/logs/WORD", 404)


class Bus(TableCase):
    def test_bus_page_is_missing_if_the_bus_is_disabled(self):
        self.assertIn("does not listen to the multicast bus", self.page("/bus", 404))
        self.assertNotIn('href="/bus"', self.page("/about"))

    def test_codifiers_are_listed_and_escaped_in_all_formats(self):
        state = BusState()
        report = {
            "control": "239.0.0.1:1", "data": "239.0.0.2:2", "interface": "", "fault": "", "stored": 3, "unstored": 0,
            **state.show(0),
        }  # fmt: skip
        report["codifiers"] = {
            "kitchen<b>": {"Codifier": "kitchen<b>", "Value": 21.53, "DTimestamp": self.web.app.clock.wall_ms(),
                           "Alive": True, "IsActive": True, "DPacketsLost": 2, "CPacketsLost": 1, "RoundTrip": 12.0,
                           "TDuration": 7},
            "=1+1": {"Codifier": "=1+1", "Value": "word", "DPacketsLost": 0, "CPacketsLost": 0},
        }  # fmt: skip
        transport = SimpleNamespace(report=lambda: report, fault="")
        self.web.web._app = self.web.app._replace(transports={"bus": transport})
        page, text = self.page("/bus"), self.get("/bus")
        self.assertIn("kitchen&lt;b&gt;", page)
        self.assertRegex(text, r"kitchen<b> +21\.53 +\d\d:\d\d +alive, active +3 +12 ms +7 ms")
        found = {one["codifier"]: one for one in self.json("/bus.json")["bus"]}
        self.assertEqual((found["kitchen<b>"]["data_lost"], found["kitchen<b>"]["round_trip_ms"]), (2, 12.0))
        self.assertEqual({row["codifier"] for row in self.rows("/bus.csv")}, {"kitchen<b>", "'=1+1"})
        self.assertIn('href="/bus"', self.page("/about"))


class About(TableCase):
    def test_about_page_shows_server_store_and_version(self):
        for said in (self.page("/about"), self.get("/about")):
            for part in (self.web.folder, "SQLite", "numbered, visible gap", "0.1.0", "/gaps", "/happenings", "MIT"):
                self.assertIn(part, said)
        found = self.json("/about.json")
        self.assertEqual((found["server"], found["data"], found["samples_stored"]), ("house", self.web.folder, 2))

    def test_about_page_shows_the_kind_of_store(self):
        store = "SQLite, pigeonpost.sqlite3 in the data folder"
        self.assertIn(f"<tr><th>store</th><td>{store}</td></tr>", self.page("/about"))
        self.assertRegex(self.get("/about"), rf"(?m)^store +{store}$")
        self.assertEqual(self.json("/about.json")["store"], store)

    def test_promise_is_that_of_the_manual(self):
        with open(os.path.join(ROOT, "docs", "promise.md"), encoding="utf-8") as file:
            manual = file.read().replace("*", "").replace("\n> ", " ").replace("\n", " ")
        self.assertIn(" ".join(PROMISE), manual)

    def test_text_pages_fit_into_80_columns(self):
        for line in self.get("/about").splitlines():
            self.assertLessEqual(len(line), 80, line)
        self.missing()
        for path in ("/gaps", "/happenings", "/logs"):
            for line in self.get(path).splitlines():
                self.assertLessEqual(len(line), 80, line)


class AccessControl(WebCase):
    """Programs receive 401; browsers are redirected to the login."""

    password = "correct horse"

    def test_pages_redirect_to_the_login_and_data_requires_a_token(self):
        for path in ("/gaps", "/happenings", "/logs", "/bus", "/about", "/password", "/logs/x.csv"):
            self.get(path, 303)
            self.assertEqual(self.headers["location"], "/login")
        for path in ("/gaps.json", "/happenings.csv", "/logs.json", "/bus.json", "/about.json"):
            self.get(path, 401)


if __name__ == "__main__":
    unittest.main()
