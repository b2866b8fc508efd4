"""Every address of the web interface, requested as a browser, a terminal and a program."""

import csv
import gc
import html
import http.server
import io
import json
import os
import re
import socket
import time
import unittest
from types import SimpleNamespace
from unittest import mock
from urllib.parse import urlencode

import webui
from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.errors import SettingsError
from pigeonpost.http.message import HTTPError, Request
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.views import csv_logs, statistics
from pigeonpost.views.context import RequestContext
from pigeonpost.views.models import StatusSnapshot
from protocol import Batch, Gap, Sample
from tests.page_support import set_zone, use_memory_disk
from tests.support import LIMIT_S, WALL_MS, temp_folder, wait_until
from tests.web.support import FakeLink, WebHouse, next_response

UNITS = {"temperature": "°C", "light": "counts"}
HTML, TEXT, JSON = "text/html; charset=utf-8", "text/plain; charset=utf-8", "application/json"


def setUpModule():
    use_memory_disk()


class WebCase(unittest.TestCase):
    """A server with one node, `basement`, that has sent two samples."""

    password = None
    samples = ({"temperature": 21.5, "light": 700}, {"temperature": 22.25, "light": 710})

    def setUp(self):
        self.link = FakeLink("basement", UNITS)
        self.web = WebHouse(self, self.password, links=[self.link])
        if self.samples:
            self.web.store_samples("basement", self.samples, UNITS)

    def get(self, path, status=200, **more):
        found, self.headers, body = self.web.request("GET", path, **more)
        self.assertEqual(found, status, body[:300])
        return body.decode()

    def page(self, path, status=200, **more):
        text = self.get(path, status, html=True, **more)
        self.assertEqual(self.headers["content-type"], HTML)
        return text

    def text(self, path, status=200, **more):
        text = self.get(path, status, **more)
        self.assertEqual(self.headers["content-type"], TEXT)
        self.assertTrue(text.endswith("\n"))
        self.assertNotIn("<", text)
        return text

    def json(self, path, status=200, **more):
        text = self.get(path, status, **more)
        self.assertEqual((self.headers["content-type"], self.headers["cache-control"]), (JSON, "no-store"))
        return json.loads(text)

    def press(self, path, **fields):
        """Post the form of a button with the CSRF token of the page, and return status, headers and body."""
        browser = self.web.browser
        status, headers, body = self.web.post_form(path, {"csrf": self.web.csrf(browser), **fields}, browser)
        return status, headers, body.decode()

    def post_json(self, path, value, status=200, raw=None):
        body = json.dumps(value).encode() if raw is None else raw
        headers = {**self.web.bearer, "Content-Type": "application/json"}
        found, _, answer = self.web.request("POST", path, headers, body)
        self.assertEqual(found, status, answer)
        return json.loads(answer)


class Front(WebCase):
    def test_browser_gets_the_front_page_as_html(self):
        page = self.page("/")
        self.assertIn("Node basement is reporting; last sample", page)
        self.assertRegex(page, r'<b data-live="basement/temperature">22\.25</b> <span class="unit">°C</span>')
        self.assertRegex(page, r"low 21\.5 at \d\d:\d\d<br>high 22\.25 at \d\d:\d\d")
        self.assertIn('<img src="/chart.svg?node=basement&amp;sensor=light&amp;span=10m&amp;size=small"', page)
        self.assertEqual((self.headers["vary"], self.headers["cache-control"]), ("Accept", "no-store"))

    def test_front_page_has_the_six_buttons(self):
        page = self.page("/")
        buttons = re.findall(r'<(?:button|a) class="(?:chosen|button|danger|)"[^>]*>([^<]+)</(?:button|a)>', page)
        self.assertEqual(buttons, ["Sensor On", "Sensor Off", "Status", "Log Check", "Log Download", "Exit"])

    def test_button_of_the_present_state_is_highlighted(self):
        browser = self.web.browser
        page = self.page("/", headers=browser)
        self.assertRegex(page, r'<button class="chosen" aria-label="Sensor On, basement">')
        self.link.state.on = False
        self.web.store_samples("basement", [{"light": 1}])
        page = self.page("/", headers=browser)
        self.assertRegex(page, r'<button class="chosen" aria-label="Sensor Off, basement">')

    def test_buttons_of_a_disconnected_node_are_disabled(self):
        self.link.state.connected = False
        self.web.store_samples("basement", [{"light": 1}])
        page = self.page("/", headers=self.web.browser)
        self.assertEqual(page.count(' title="Disabled: the node is not connected" disabled>'), 3)

    def test_buttons_are_disabled_without_the_key_and_the_page_explains_it(self):
        for path, count in (("/", 4), ("/nodes/basement", 3)):
            page = self.page(path)
            self.assertEqual((page.count("<button"), page.count(" disabled>")), (count, count), path)
            self.assertIn("Open the address that the server printed when it started", page)
            self.assertIn(f"python3 control.py --data {self.web.folder} password", page)
            self.assertIn('the page was opened without the key" disabled>', page)
            # The notice is directly below the buttons. A connection from this machine alone is not a login.
            self.assertRegex(page, r'</form></div>\n<p class="notice">The buttons are disabled')
            if path == "/":
                self.assertIn("Signed in from this machine (viewer).", page)
            with_key = self.page(path, headers=self.web.browser)
            self.assertNotIn(" disabled", with_key)
            self.assertNotIn("control.py", with_key)

    def test_terminal_gets_the_front_page_as_text(self):
        text = self.text("/")
        self.assertIn("Node basement is reporting; last sample 0 s ago.\n", text)
        self.assertRegex(text, r"basement  temperature    22\.25 °C    21\.5 to 22\.25\n")
        self.assertRegex(text, r"basement  reporting  +–  +none\n")
        host = f"{self.web.address[0]}:{self.web.address[1]}"
        self.assertIn(f"curl http://{host}/log\n", text)
        self.assertIn(f"curl -O http://{host}/log.csv\n", text)

    def test_page_changes_only_after_a_commit(self):
        first = self.page("/")
        self.assertEqual(self.page("/"), first)
        self.web.store_samples("basement", [{"temperature": 30.5, "light": 1}])
        self.assertIn(">30.5</b>", self.page("/"))

    def test_head_has_the_headers_of_the_page_and_no_body(self):
        status, headers, body = self.web.request("HEAD", "/", html=True)
        self.assertEqual((status, body, headers["content-type"]), (200, b"", HTML))
        self.assertGreater(int(headers["content-length"]), 1000)

    def test_pages_with_forms_allow_the_origin_header(self):
        """With the policy `no-referrer` of the header, browsers would send `Origin: null` with forms of these pages."""
        for path in ("/", "/nodes/basement", "/login", "/log", "/nothing"):
            _, _, body = self.web.request("GET", path, html=True)
            self.assertIn(b'<meta name="referrer" content="same-origin">', body, path)
        browser = self.web.browser
        fields = {"csrf": self.web.csrf(browser)}
        _, _, body = self.web.post_form("/exit", fields, browser)
        self.assertIn(b'<meta name="referrer" content="same-origin">', body)
        for origin, status in (("null", 403), (f"http://127.0.0.1:{self.web.address[1]}", 303)):
            headers = {**browser, "Origin": origin}
            self.assertEqual(self.web.post_form("/nodes/basement/off", fields, headers)[0], status, origin)

    def test_text_from_a_node_is_escaped(self):
        self.link.state.sensors = [{"name": "temperature", "unit": "<u>°C</u>"}]
        self.link.state.details = {"version": "<script>alert(1)"}
        self.web.store_samples(
            "basement", [Sample(3, WALL_MS, 3, {"temperature": None}, {"temperature": "<img src=x onerror=y>"}, "")]
        )
        for path in ("/", "/nodes/basement"):
            page = self.page(path)
            self.assertNotIn("<img src=x", page)
            self.assertNotIn("<u>", page)
            self.assertNotIn("<script>", page)
        self.assertIn("&lt;img src=x onerror=y&gt;", page)

    def test_node_page_shows_the_fingerprint_of_the_certificate(self):
        self.assertNotIn("SHA-256", self.page("/nodes/basement"))
        self.link.state.fingerprint = "5e" * 32
        self.web.store_samples("basement", [{"temperature": 1.5}])
        self.assertIn(f"TLS; SHA-256 of its certificate: {'5e' * 32}", self.page("/nodes/basement"))

    def test_pages_have_no_inline_style_or_script(self):
        """The Content-Security-Policy of every response forbids both."""
        self.web.store_samples("basement", [{"temperature": 1.5}] * 30)
        for path in ("/", "/nodes/basement", "/log", "/login", "/nothing"):
            _, headers, body = self.web.request("GET", path, html=True)
            self.assertNotRegex(body.decode(), r"(?i)\sstyle=|\son\w+=|<style|<script>|javascript:")
            self.assertIn("default-src 'none'", headers["content-security-policy"])


class SeveralNodes(WebCase):
    def setUp(self):
        self.links = [FakeLink("attic", UNITS), FakeLink("basement", UNITS), FakeLink("", connected=False)]
        self.web = WebHouse(self, links=self.links)
        self.web.store_samples("attic", [{"temperature": 18.5, "light": 5}], UNITS)
        self.web.store_samples("basement", [{"temperature": 12.5, "light": 6}], UNITS)
        self.web.store_samples("cellar", [{"humidity": 80}], {"humidity": "%"})

    def test_every_node_has_a_row_and_buttons(self):
        page = self.page("/")
        rows = re.findall(r"<tr><td data-label=\"node\">(.*?)</td>.*?</tr>", page)
        names = [re.sub("<[^>]+>", "", row) for row in rows]
        self.assertEqual(names, ["attic", "basement", "192.168.1.20:5003", "cellar"])
        for node in ("attic", "basement"):
            for action in ("on", "off", "status"):
                self.assertEqual(page.count(f'action="/nodes/{node}/{action}"'), 1)
        self.assertNotIn('action="/nodes/cellar', page)
        self.assertEqual(page.count('action="/exit"'), 1)

    def test_cards_name_their_node_and_former_nodes_have_no_card(self):
        page = self.page("/")
        self.assertEqual(page.count('<a class="card'), 4)
        self.assertIn('<span class="of">attic</span>', page)
        self.assertNotIn("humidity", page)
        self.assertIn("80 %", self.text("/nodes/cellar"))

    def test_text_lists_a_node_without_a_name_by_its_address(self):
        self.assertRegex(self.text("/"), r"192\.168\.1\.20:5003  not reached yet +– +none\n")


class NodePage(WebCase):
    def test_browser_gets_all_properties_of_the_node(self):
        self.link.state.details = {"held": 250, "slots": 65536, "version": "0.1.0"}
        self.link.state.offset_ms, self.link.state.round_trip_ms = -90_000, 1.25
        page = self.page("/nodes/basement")
        info = dict(re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td></tr>", page))
        self.assertEqual(info["address"], "192.168.1.20:5003")
        self.assertRegex(info["state"], r"^reporting, since \d\d:\d\d$")
        self.assertEqual(info["sampling"], "on")
        self.assertEqual(info["sampling interval"], "10 s")
        self.assertEqual(info["stored here"], "2 samples")
        self.assertEqual(info["missing"], "none")
        self.assertEqual(info["outbox"], "250 of 65,536 slots used")
        self.assertEqual(info["clock"], "90 s behind")
        self.assertEqual(info["round trip"], "1.2 ms")
        self.assertEqual(info["version"], "0.1.0")
        self.assertIn("No samples of this node are missing.", page)

    def test_terminal_gets_all_properties_of_the_node(self):
        text = self.text("/nodes/basement")
        self.assertTrue(text.startswith("basement: Reporting; last sample 0 s ago.\n"))
        self.assertIn("stored here         2 samples\n", text)
        self.assertIn("Off:  python3 control.py send basement off\n", text)

    def test_gaps_are_listed_with_their_reason(self):
        batch = Batch("basement", "0" * 16, "0123456789abcdef", 0, None, Gap(3, 9, 0, "overwritten"), UNITS,
                      lambda *_: None, print)  # fmt: skip
        self.web.ingestor.submit(batch)
        wait_until(lambda: self.web.store.gaps(5), "the gap is stored")
        self.assertIn("  3 to 9 of epoch 0123456789abcdef: overwritten\n", self.text("/nodes/basement"))
        page = self.page("/nodes/basement")
        self.assertRegex(page, r"<td>3 to 9 of epoch 0123456789abcdef</td><td>\d\d:\d\d</td><td>overwritten</td>")

    def test_time_range_of_the_charts_can_be_selected(self):
        for span in ("10m", "1h", "24h", "7d", "30d"):
            page = self.page(f"/nodes/basement?span={span}")
            self.assertEqual(page.count(f"span={span}&amp;size=small"), 2)
            self.assertEqual(page.count('aria-current="true"'), 1)
        self.assertEqual(self.page("/nodes/basement?span=99y").count("span=10m&amp;size=small"), 2)

    def test_unknown_node_is_not_found(self):
        self.assertIn("There is no node with that name.", self.page("/nodes/attic", 404))
        self.assertEqual(self.text("/nodes/attic", 404), "There is no node with that name.\n")


class Buttons(WebCase):
    def test_buttons_turn_the_node_off_and_on(self):
        for word, on, notice in (
            ("off", False, "basement is off: it takes no samples. Its stored samples are still delivered."),
            ("on", True, "basement is on: it samples."),
        ):
            status, headers, _ = self.press(f"/nodes/basement/{word}")
            self.assertEqual((status, headers["location"]), (303, f"/nodes/basement?notice={word}"))
            self.assertEqual(self.link.asked.pop(), ("SEND", on))
            page = self.page(headers["location"])
            self.assertIn(f'<p class="notice" role="status">{notice}</p>', page)
            self.assertIn("Switched off" if word == "off" else "Reporting", page)

    def test_status_button_shows_the_reply_of_the_node(self):
        self.link.state.last_sent = "16:36:10"
        status, headers, _ = self.press("/nodes/basement/status")
        self.assertEqual((status, headers["location"]), (303, "/nodes/basement?notice=status"))
        self.assertEqual(self.link.asked, [("CHECK",)])
        self.assertIn(
            "basement answered: sampling is on, its last sample was sent at 16:36:10 by its own clock.",
            self.page(headers["location"]),
        )

    def test_notice_states_that_the_node_did_not_reply(self):
        self.link.answers = False
        for word in ("on", "off", "status"):
            _, headers, _ = self.press(f"/nodes/basement/{word}")
            self.assertEqual(headers["location"], "/nodes/basement?notice=silent")
        self.assertIn("basement did not answer. Check its state below", self.page(headers["location"]))

    def test_unknown_notices_are_not_shown(self):
        for notice in ("hacked", "<b>", "", "ON"):
            page = self.page(f"/nodes/basement?{urlencode({'notice': notice})}", headers=self.web.browser)
            self.assertNotIn("notice", page)

    def test_buttons_of_an_unknown_node_are_not_found(self):
        for word in ("on", "off", "status"):
            self.assertEqual(self.press(f"/nodes/attic/{word}")[0], 404)

    def test_forms_without_a_csrf_token_are_rejected(self):
        for fields in ({}, {"csrf": ""}, {"csrf": "x" * 32}):
            for path in ("/nodes/basement/off", "/exit", "/logout"):
                status, _, body = self.web.post_form(path, {**fields, "sure": "yes"}, self.web.browser)
                self.assertEqual(status, 403)
                self.assertIn(b"The form is out of date.", body)
        self.assertEqual((self.link.asked, self.web.stopped), ([], []))

    def test_csrf_token_is_accepted_in_a_header(self):
        browser = self.web.browser
        headers = {**browser, "X-CSRF-Token": self.web.csrf(browser)}
        status, _, _ = self.web.request("POST", "/nodes/basement/off", headers)
        self.assertEqual((status, self.link.asked), (303, [("SEND", False)]))

    def test_get_requests_of_actions_are_rejected(self):
        for path in ("/nodes/basement/on", "/nodes/basement/off", "/nodes/basement/status", "/exit", "/logout",
                     "/api/v1/nodes/basement/send", "/api/v1/nodes/basement/check"):  # fmt: skip
            self.get(path, 405)
            self.assertEqual(self.headers["allow"], "POST")
        self.assertEqual((self.link.asked, self.web.stopped), ([], []))


class Exit(WebCase):
    def test_exit_asks_for_confirmation(self):
        status, _, page = self.press("/exit")
        self.assertEqual((status, self.web.stopped), (200, []))
        self.assertIn("Stop this server?", page)
        self.assertIn('<input type="hidden" name="sure" value="yes"><button class="danger">Exit</button>', page)
        self.assertIn('<a class="button" href="/">Cancel</a>', page)
        for answer in ("", "no", "YES", "1"):
            self.press("/exit", sure=answer)
        self.assertEqual(self.web.stopped, [])

    def test_confirmed_exit_reports_the_flushed_samples_and_stops(self):
        status, _, page = self.press("/exit", sure="yes")
        self.assertEqual((status, self.web.stopped), (200, ["Exit by one-time key at 127.0.0.1"]))
        self.assertIn("<h1>exited</h1>", page)
        name, size = os.path.basename(self.web.csv.whole()[0]), self.web.csv.whole()[1]
        self.assertIn(f"Flushed: 2 samples of this run stored; the log {name} is complete, {size} bytes.", page)
        self.assertNotIn("data-now", page)  # the script must not send requests to a stopped server

    def test_exit_flushes_queued_samples(self):
        """Exit commits immediately instead of waiting for the commit interval."""
        web = WebHouse(self, links=[self.link])
        web.ingestor.commit_s = 3600.0
        web.store_samples("basement", [{"light": 1}])  # the first sample is committed immediately
        for seq in (2, 3):
            values = {"light": seq}
            one = Sample(seq, WALL_MS, seq, values, {}, "")
            batch = Batch(
                "basement", "0" * 16, "0123456789abcdef", 0, SampleBatch.of([one]), None, {}, lambda *_: None, print
            )
            web.ingestor.submit(batch)
        _, _, body = web.post_form("/exit", {"csrf": web.csrf(web.browser), "sure": "yes"}, web.browser)
        self.assertIn(b"Flushed: 3 samples", body)
        self.assertEqual(web.store.nodes()[0]["samples"], 3)

    def test_exit_reports_samples_that_could_not_be_stored(self):
        self.web.ingestor.flush = lambda limit_s: False
        self.web.ingestor.fault = "nothing can be stored: disk full"
        _, _, page = self.press("/exit", sure="yes")
        self.assertIn("Some samples could not be stored (nothing can be stored: disk full); the nodes keep them.", page)
        self.assertEqual(len(self.web.stopped), 1)

    def test_exit_from_a_terminal_needs_confirmation(self):
        def ask(body):
            kind = {"Content-Type": "application/x-www-form-urlencoded", **self.web.bearer}
            return self.web.request("POST", "/exit", kind, body)[2].decode()

        self.assertEqual(ask(b"x=1"), "This stops the server. To confirm, send the form field sure=yes.\n")
        self.assertEqual(self.web.stopped, [])
        self.assertRegex(ask(b"sure=yes"), r"^exited\nFlushed: 2 samples .* is complete, \d+ bytes\.\n$")
        self.assertEqual(self.web.stopped, ["Exit by control.py at 127.0.0.1"])

    def test_exit_report_uses_the_singular_for_one_sample(self):
        web = WebHouse(self, links=[self.link])
        web.store_samples("basement", [{"light": 1}])
        _, _, body = web.post_form("/exit", {"csrf": web.csrf(web.browser), "sure": "yes"}, web.browser)
        self.assertIn(b"Flushed: 1 sample of this run stored;", body)


class LogCheck(WebCase):
    samples = tuple({"temperature": 20 + number / 4, "light": number} for number in range(14))

    def test_last_ten_samples_of_this_run_are_listed_newest_first(self):
        rows = re.findall(r"<tr><td>([\d:]+)</td><td>(\w+)</td><td>([^<]*)</td></tr>", self.page("/log"))
        self.assertEqual(len(rows), 10)
        self.assertEqual([int(values.rsplit(" ", 2)[1]) for _, _, values in rows], list(range(13, 3, -1)))
        self.assertEqual(rows[0][1:], ("basement", "temperature 23.25 °C, light 13 counts"))

    def test_terminal_gets_the_last_ten_samples_as_text(self):
        first, empty, *lines, gap, foot, last = self.text("/log").split("\n")
        name = os.path.basename(self.web.csv.whole()[0])
        self.assertRegex(first, rf"^{re.escape(name)}, .*; its last 10 samples, newest first:$")
        self.assertEqual((empty, gap, last, len(lines)), ("", "", "", 10))
        self.assertRegex(foot, r"^Time zone: .*UTC.*\.$")
        self.assertRegex(
            lines[0], r"^20\d\d-\d\d-\d\dT.*[+-]\d\d:\d\d  basement  temperature 23\.25 °C, light 13 counts$"
        )

    def test_failed_reading_is_shown_as_failed(self):
        self.web.store_samples("basement", [{"temperature": None, "light": 5}])
        self.assertIn("temperature failed, light 5", self.page("/log"))

    def test_samples_of_an_earlier_run_are_not_listed(self):
        web = WebHouse(self)
        self.assertIn(
            "No sample has arrived in this run yet.", html.unescape(web.request("GET", "/log", html=True)[2].decode())
        )
        _, _, body = web.request("GET", "/log")
        self.assertRegex(body.decode(), r"^sensorlog_\d{6}_\d{4}.*\.csv, 28 bytes; its last 0 samples, newest first:\n")


class LogDownload(WebCase):
    samples = tuple({"temperature": 20 + number / 4, "light": number} for number in range(50))

    def whole(self):
        with open(self.web.csv.whole()[0], "rb") as file:
            return file.read()

    def ask(self, status, headers=None, method="GET"):
        found, self.headers, body = self.web.request(method, "/log.csv", headers)
        self.assertEqual(found, status, body[:300])
        return body

    def test_log_is_downloaded_completely(self):
        body = self.ask(200)
        self.assertEqual(body, self.whole())
        rows = list(csv.reader(io.StringIO(body.decode(), newline="")))
        self.assertEqual(rows[0], ["time", "node", "sensor", "value", "unit"])
        self.assertEqual(rows[1][1:], ["basement", "temperature", "20.0", "°C"])
        self.assertEqual((len(rows), rows[-1][1:]), (101, ["basement", "light", "49", "counts"]))
        name = os.path.basename(self.web.csv.whole()[0])
        self.assertRegex(name, r"^sensorlog_\d{6}_\d{4}(_\d+)?\.csv$")
        self.assertEqual(self.headers["content-disposition"], f'attachment; filename="{name}"')
        self.assertEqual(self.headers["content-type"], "text/csv; charset=utf-8")
        self.assertEqual(self.headers["accept-ranges"], "bytes")

    def test_incomplete_row_is_not_downloaded(self):
        whole = self.whole()
        with open(self.web.csv.whole()[0], "ab") as file:
            file.write(b"2026-11-20T16:36:10.123+01:00,basement,tempe")
        self.assertEqual(self.ask(200), whole)
        self.assertEqual(self.ask(206, {"Range": "bytes=-5"}), whole[-5:])
        self.end()

    def end(self):
        """Stop the ingestor; it logs a warning because the file was changed."""
        with self.assertLogs("csvbuffer", "WARNING"):
            self.web.ingestor.stop(LIMIT_S)

    def test_byte_ranges_are_supported(self):
        whole = self.whole()
        for said, start, end in (
            ("bytes=0-9", 0, 9),
            ("bytes=10-", 10, len(whole) - 1),
            ("bytes=-7", len(whole) - 7, len(whole) - 1),
            (f"bytes=100-{len(whole) + 5000}", 100, len(whole) - 1),
            (f"bytes=-{len(whole) * 2}", 0, len(whole) - 1),
        ):
            self.assertEqual(self.ask(206, {"Range": said}), whole[start : end + 1], said)
            self.assertEqual(self.headers["content-range"], f"bytes {start}-{end}/{len(whole)}")

    def test_range_beyond_the_end_is_rejected(self):
        whole = self.whole()
        self.ask(416, {"Range": f"bytes={len(whole)}-"})
        self.assertEqual(self.headers["content-range"], f"bytes */{len(whole)}")

    def test_invalid_ranges_are_ignored(self):
        for said in ("bytes=", "bytes=-", "bytes=5-1", "bytes=0-1,5-6", "lines=1-2", "x"):
            self.assertEqual(self.ask(200, {"Range": said}), self.whole())

    def test_interrupted_download_can_be_resumed(self):
        self.ask(200)
        tag = self.headers["etag"]
        first = self.ask(206, {"Range": "bytes=0-499"})
        self.web.store_samples("basement", [{"temperature": 99.5}])  # the log grows during the download
        rest = self.ask(206, {"Range": "bytes=500-", "If-Range": tag})
        self.assertEqual(first + rest, self.whole())
        self.assertEqual(self.ask(200, {"Range": "bytes=500-", "If-Range": '"another.csv"'}), self.whole())

    def test_head_of_the_log_has_its_length(self):
        self.assertEqual(self.ask(200, method="HEAD"), b"")
        self.assertEqual(int(self.headers["content-length"]), len(self.whole()))
        self.ask(200, {"Range": "bytes=0-4"}, method="HEAD")  # Range applies only to GET
        self.assertEqual(int(self.headers["content-length"]), len(self.whole()))

    def test_downloads_leave_no_open_descriptors(self):
        self.ask(200)
        before = len(os.listdir("/proc/self/fd"))
        for headers in ({}, {"Range": "bytes=0-4"}, {"Range": "bytes=999999-"}, {"Range": "x"}) * 5:
            self.web.request("GET", "/log.csv", headers)
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "no descriptor is left")

    def test_deleted_log_is_not_found(self):
        os.unlink(self.web.csv.whole()[0])
        self.assertIn(b"This run has no log yet", self.ask(404))
        self.end()

    def test_log_that_could_not_be_created_is_not_found(self):
        """The folder exists, but the disk was full."""
        house = SimpleNamespace(
            csv=SimpleNamespace(whole=lambda: (os.path.join(temp_folder(self), ""), 0), fault="disk")
        )
        with self.assertRaises(HTTPError) as caught:
            csv_logs.log_download(RequestContext(house, Request("GET", "/log.csv", "1.1", {}), (), print))
        self.assertEqual((caught.exception.status, caught.exception.code), (404, "no-log"))


class Nodes(WebCase):
    def test_json_lists_all_nodes(self):
        self.link.state.details = {"held": 250, "slots": 65536, "version": "0.1.0"}
        found = self.json("/api/v1/nodes")
        self.assertEqual((found["server"], found["verdict"]), ("house", "Node basement is reporting."))
        self.assertLess(abs(parse_rfc3339(found["time"]) - time.time() * 1000), LIMIT_S * 1000)
        (node,) = found["nodes"]
        self.assertEqual(
            {key: node[key] for key in ("name", "address", "state", "connected", "fault", "on", "every", "samples",
                                        "missing", "held", "slots", "version")},
            {"name": "basement", "address": "192.168.1.20:5003", "state": "reporting", "connected": True, "fault": "",
             "on": True, "every": 10.0, "samples": 2, "missing": 0, "held": 250, "slots": 65536, "version": "0.1.0"},
        )  # fmt: skip
        self.assertEqual(node["last_sample"]["values"], {"temperature": 22.25, "light": 710})
        self.assertEqual(node["last_sample"]["seq"], 2)
        today = node["sensors"][0].pop("today")
        self.assertEqual((today["low"], today["high"]), (21.5, 22.25))
        self.assertLess(today["low_time"], found["time"])
        self.assertEqual(node["sensors"][0], {
            "name": "temperature", "label": "", "unit": "°C", "simulated": False, "value": 22.25, "fault": "",
            "trend": None, "verdicts": [], "verdict_counts": {}, "limits": {}, "stale": False, "calibration": None,
            "time": node["last_sample"]["time"],
        })  # fmt: skip

    def test_json_of_a_node_contains_details_and_gaps(self):
        self.link.state.details = {"held": 250, "taken": 7}
        found = self.json("/api/v1/nodes/basement")
        self.assertEqual((found["name"], found["details"], found["gaps"]), ("basement", {"held": 250, "taken": 7}, []))
        batch = Batch("basement", "0" * 16, "0123456789abcdef", 0, None, Gap(3, 9, 0, "overwritten"), UNITS,
                      lambda *_: None, print)  # fmt: skip
        self.web.ingestor.submit(batch)
        wait_until(lambda: self.web.store.gaps(5), "the gap is stored")
        (gap,) = self.json("/api/v1/nodes/basement")["gaps"]
        parse_rfc3339(gap.pop("noted"))
        self.assertEqual(
            gap,
            {"node": "basement", "epoch": "0123456789abcdef", "from": 3, "to": 9, "before": 0, "why": "overwritten"},
        )

    def test_json_of_a_disconnected_node_contains_the_fault(self):
        self.link.state.connected, self.link.state.fault = False, "cannot be reached: Connection refused"
        self.web.store_samples("basement", [{"light": 1}])
        node = self.json("/api/v1/nodes/basement")
        self.assertEqual((node["state"], node["connected"], node["on"]), ("lost", False, True))
        self.assertEqual(node["fault"], "cannot be reached: Connection refused")

    def test_json_of_an_unknown_node_is_not_found(self):
        for path in ("/api/v1/nodes/attic", "/api/v1/samples?node=attic"):
            self.assertEqual(self.json(path, 404)["error"]["code"], "unknown-node")


class Statistics(WebCase):
    def setUp(self):
        super().setUp()
        start = 1_790_001_000_000  # start of a window of ten minutes
        self.web.store_samples("attic", [
            Sample(n, start + n * 60_000, n, {"temperature": n}, {}, "") for n in range(1, 16)
        ], UNITS)  # fmt: skip
        worker = MaintenanceWorker(self.web.store, self.web.ingestor, self.web.app.clock)
        while worker.work():
            pass

    def ask(self, status=200, **query):
        query = {key.rstrip("_"): value for key, value in query.items()}
        return self.json(f"/api/v1/statistics?{urlencode({'node': 'attic', 'sensor': 'temperature', **query})}", status)

    def test_windows_of_ten_minutes_are_closed_on_the_left_or_right(self):
        query = {"span": "10m", "from_": "2026-09-21T00:00:00Z", "to": "2026-09-22T00:00:00Z"}
        found = self.ask(**query)
        self.assertEqual((found["span_s"], found["closed"]), (600, "left"))
        self.assertEqual(found["windows"], [
            {"time": "2026-09-21T14:40:00.000Z", "count": 9, "mean": 5.0, "median": 5.0, "mode": 1, "low": 1,
             "high": 9, "deviation": 2.581988897471611},
            {"time": "2026-09-21T14:50:00.000Z", "count": 6, "mean": 12.5, "median": 12.5, "mode": 10, "low": 10,
             "high": 15, "deviation": 1.707825127659933},
        ])  # fmt: skip
        # As in "multi-sensor": a sample on the edge belongs to the window that ends there.
        found = self.ask(closed="right", **query)
        self.assertEqual((found["span_s"], found["closed"]), (600, "right"))
        self.assertEqual(found["windows"], [
            {"time": "2026-09-21T14:40:00.000Z", "count": 10, "mean": 5.5, "median": 5.5, "mode": 1, "low": 1,
             "high": 10, "deviation": 2.8722813232690143},
            {"time": "2026-09-21T14:50:00.000Z", "count": 5, "mean": 13, "median": 13, "mode": 11, "low": 11,
             "high": 15, "deviation": 1.4142135623730951},
        ])  # fmt: skip

    def test_default_window_is_one_hour_and_csv_is_available(self):
        query = "node=attic&sensor=temperature&to=2026-09-21T15:00:00Z"
        text = self.get(f"/api/v1/statistics?{query}&format=csv")
        self.assertEqual(
            text.splitlines(),
            ["time,count,mean,median,mode,low,high,deviation", "2026-09-21T15:00:00.000Z,15,8.0,8.0,1.0,1.0,15.0,"
             "4.320493798938574"],
        )  # fmt: skip

    def test_invalid_queries_for_statistics_are_rejected(self):
        for query in ({"node": ""}, {"sensor": ""}, {"span": "5m"}, {"closed": "both"},
                      {"from_": "2020-01-01T00:00:00Z"},
                      {"from_": "2027-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}):  # fmt: skip
            self.ask(400, **query)
        self.assertEqual(self.ask(node="nobody")["windows"], [])
        self.assertEqual(self.ask(node="nobody", closed="right")["windows"], [])

    def test_windows_whose_samples_are_deleted_contain_their_closed_end(self):
        edge = parse_rfc3339("2026-09-21T15:00:00Z")
        nodes = self.web.store.nodes

        def later():
            return [about | {"kept_from_ms": edge, "old_edges_ms": edge - 600_000} for about in nodes()]

        query = {"span": "10m", "from_": "2026-09-21T00:00:00Z", "to": "2026-09-22T00:00:00Z"}
        with mock.patch.object(self.web.store, "nodes", later):
            for closed, edges in (("left", ["right", "right"]), ("right", [None, None])):
                found = self.ask(closed=closed, **query)["windows"]
                self.assertEqual([(one["count"], one.get("closed")) for one in found], list(zip((9, 6), edges)))
            edge -= 600_000
            found = self.ask(closed="left", **query)["windows"]
            self.assertEqual([(one["count"], one.get("closed")) for one in found], [(9, "right"), (6, None)])

    def test_late_samples_are_counted_before_the_rollup_is_renewed(self):
        query = {"span": "10m", "from_": "2026-09-21T00:00:00Z", "to": "2026-09-22T00:00:00Z"}
        late = [Sample(n, 1_790_001_000_000 + n, n, {"temperature": 100}, {}, "") for n in range(16, 18)]
        self.web.store_samples("attic", late, UNITS)
        found = self.ask(**query)["windows"]
        self.assertEqual([(one["count"], one["high"], one["mode"]) for one in found], [(11, 100, 100), (6, 15, 10)])
        with mock.patch.object(statistics, "_MOST_RECOUNTED", 10):
            self.assertEqual(self.ask(503, **query)["error"]["code"], "busy")
        with mock.patch.object(statistics, "current_rollups", side_effect=AssertionError):  # it counts the samples
            self.ask(closed="right", **query)
        worker = MaintenanceWorker(self.web.store, self.web.ingestor, self.web.app.clock)
        while worker.work():
            pass
        self.assertEqual(self.ask(**query)["windows"], found)

    def test_query_that_recounts_too_many_samples_is_rejected(self):
        with mock.patch.object(statistics, "_MOST_RECOUNTED", 14):
            self.ask(400, closed="right", span="10m", from_="2026-09-21T00:00:00Z", to="2026-09-22T00:00:00Z")


class WindowEdges(WebCase):
    def test_samples_on_window_edges_are_counted_equally_with_and_without_rollups(self):
        start = self.web.app.clock.wall_ms() // 3_600_000 * 3_600_000 - 7_200_000
        self.web.store_samples("attic", [
            Sample(n + 1, start + n * 10_000, n, {"temperature": float(n)}, {}, "") for n in range(180)
        ], UNITS)  # fmt: skip
        query = f"node=attic&sensor=temperature&from={start}&to={start + 1_800_000}"
        paths = [f"/api/v1/samples?{query}&step={step}" for step in ("10m", "5m", "30m")]
        paths.append(f"/chart.csv?{query}")
        before = [self.get(path) for path in paths]
        columns = json.loads(before[0])["columns"]
        self.assertEqual([(one["count"], one["low"], one["high"]) for one in columns],
                         [(60, 0, 59), (60, 60, 119), (60, 120, 179)])  # fmt: skip
        worker = MaintenanceWorker(self.web.store, self.web.ingestor, self.web.app.clock)
        while worker.work():
            pass
        self.assertEqual(len(self.json(f"/api/v1/statistics?{query}&span=10m")["windows"]), 3)
        for path, text in zip(paths, before):
            self.assertEqual(self.get(path), text, path)


class Samples(WebCase):
    def setUp(self):
        super().setUp()
        self.web.store_samples("attic", [
            Sample(1, 1_790_000_000_000, 1, {"temperature": 10.5}, {}, ""),
            Sample(2, 1_790_000_060_000, 2, {"temperature": None}, {"temperature": "no"}, "unset"),
            Sample(3, 1_790_000_600_000, 3, {"temperature": 12.5, "humidity": 80}, {}, ""),
        ], UNITS)  # fmt: skip

    def ask(self, status=200, **query):
        query = {key.rstrip("_"): value for key, value in query.items()}
        return self.json(f"/api/v1/samples?{urlencode(query)}", status)

    def seqs(self, **query):
        return [(sample["node"], sample["seq"]) for sample in self.ask(**query)["samples"]]

    def refusal(self, **query):
        return self.ask(400, **query)["error"]["code"]

    def test_samples_are_returned_oldest_first(self):
        self.assertEqual(self.seqs(), [("attic", 1), ("attic", 2), ("attic", 3), ("basement", 1), ("basement", 2)])

    def test_samples_dated_before_1970_are_returned(self):
        self.web.store_samples("attic", [Sample(4, -1, 4, {"temperature": 1}, {}, "unset")], UNITS)
        self.assertEqual(self.seqs(node="attic"), [("attic", 4), ("attic", 1), ("attic", 2), ("attic", 3)])

    def test_samples_are_returned_as_they_are_stored(self):
        first, second, third = self.ask(node="attic")["samples"]
        self.assertEqual(
            first,
            {"node": "attic", "time": "2026-09-21T14:13:20.000Z", "epoch": "0123456789abcdef", "seq": 1,
             "values": {"temperature": 10.5}},
        )  # fmt: skip
        self.assertEqual((second["clock"], second["values"]), ("unset", {"temperature": None}))
        self.assertEqual(third["values"], {"temperature": 12.5, "humidity": 80})

    def test_samples_are_filtered_by_node_sensor_and_limit(self):
        self.assertEqual(self.seqs(node="attic"), [("attic", 1), ("attic", 2), ("attic", 3)])
        self.assertEqual(self.seqs(node="attic", limit=2), [("attic", 2), ("attic", 3)])
        self.assertEqual(self.seqs(sensor="humidity"), [("attic", 3)])
        self.assertEqual(self.ask(sensor="humidity")["samples"][0]["values"], {"humidity": 80})
        self.assertEqual(self.seqs(sensor="wind"), [])
        self.assertEqual(self.seqs(limit=3), [("attic", 3), ("basement", 1), ("basement", 2)])

    def test_samples_are_filtered_by_time(self):
        for from_, to in (
            ("2026-09-21T14:14:20Z", "2026-09-21T14:23:20Z"),
            ("1790000060000", "1790000600000"),
            ("2026-09-21T16:14:20+02:00", "2026-09-21T16:23:20.000+02:00"),
        ):
            self.assertEqual(self.seqs(from_=from_, to=to), [("attic", 2)])
        self.assertEqual(self.seqs(from_="2026-09-21T14:14:20Z", node="attic"), [("attic", 2), ("attic", 3)])
        self.assertEqual(self.seqs(to="2026-09-21T14:14:20Z"), [("attic", 1)])

    def test_invalid_queries_for_samples_are_rejected_with_a_code(self):
        for query, code in (
            ({"node": "<b>"}, "name"),
            ({"sensor": "Temperature"}, "name"),
            ({"from": "yesterday"}, "time"),
            ({"to": "2026-09-21"}, "time"),
            ({"from": "9" * 16}, "time"),
            ({"limit": "0"}, "limit"),
            ({"limit": "10001"}, "limit"),
            ({"limit": "-1"}, "limit"),
            ({"limit": "ten"}, "limit"),
            ({"limit": "²"}, "limit"),
            ({"limit": "9" * 4000}, "limit"),
            ({"format": "xml"}, "format"),
            ({"step": "10m"}, "step"),
            ({"step": "10m", "node": "attic"}, "step"),
            ({"step": "10m", "sensor": "humidity"}, "step"),
            ({"step": "soon", "node": "attic", "sensor": "humidity"}, "span"),
            ({"step": "0", "node": "attic", "sensor": "humidity"}, "span"),
            ({"step": "1s", "node": "attic", "sensor": "humidity"}, "step"),
            ({"step": "1s", "node": "attic", "sensor": "humidity", "from": "1000", "to": "1000"}, "step"),
            ({"step": "1h", "node": "attic", "sensor": "humidity", "from": "900000000000000"}, "step"),
        ):
            self.assertEqual(self.refusal(**query), code, query)
        self.assertEqual(self.json("/api/v1/samples?limit=1&limit=2", 400)["error"]["code"], "bad-request")
        self.assertEqual(self.json("/api/v1/samples?node=%zz", 400)["error"]["code"], "bad-request")

    def test_samples_are_returned_as_csv(self):
        text = self.get("/api/v1/samples?node=attic&format=csv")
        self.assertEqual(self.headers["content-type"], "text/csv; charset=utf-8")
        rows = list(csv.reader(io.StringIO(text, newline="")))
        self.assertEqual(rows[0], ["time", "node", "epoch", "seq", "sensor", "value"])
        self.assertEqual(rows[1], ["2026-09-21T14:13:20.000Z", "attic", "0123456789abcdef", "1", "temperature", "10.5"])
        self.assertEqual([row[3:] for row in rows[2:]],
                         [["2", "temperature", ""], ["3", "temperature", "12.5"], ["3", "humidity", "80"]])  # fmt: skip

    def test_step_returns_one_summary_per_step(self):
        query = {
            "node": "attic",
            "sensor": "temperature",
            "from_": "2026-09-21T14:10:00Z",
            "to": "2026-09-21T14:30:00Z",
        }
        found = self.ask(step="10m", **query)
        self.assertEqual((found["node"], found["sensor"], found["step_s"]), ("attic", "temperature", 600))
        self.assertEqual(found["columns"], [
            {"time": "2026-09-21T14:10:00.000Z", "count": 1, "low": 10.5, "high": 10.5, "mean": 10.5},
            {"time": "2026-09-21T14:20:00.000Z", "count": 1, "low": 12.5, "high": 12.5, "mean": 12.5},
        ])  # fmt: skip
        (column,) = self.ask(step="1h", **query)["columns"]
        self.assertEqual(
            column, {"time": "2026-09-21T14:00:00.000Z", "count": 2, "low": 10.5, "high": 12.5, "mean": 11.5}
        )

    def test_summaries_are_returned_as_csv(self):
        text = self.get("/api/v1/samples?node=attic&sensor=temperature&step=1h&format=csv"
                        "&from=2026-09-21T14:10:00Z&to=2026-09-21T14:30:00Z")  # fmt: skip
        self.assertEqual(text, "time,count,low,high,mean\n2026-09-21T14:00:00.000Z,2,10.5,12.5,11.5\n")

    def test_default_range_of_summaries_is_24_hours(self):
        found = self.ask(step="1h", node="basement", sensor="light")
        self.assertEqual(sum(column["count"] for column in found["columns"]), 2)
        self.assertEqual(self.ask(step="1h", node="attic", sensor="temperature")["columns"], [])

    def test_steps_start_at_multiples_of_their_length(self):
        """A day can be shorter than a step, or not a multiple of it."""
        for step, step_ms in (("7h", 7 * 3_600_000), ("5d", 5 * 86_400_000), ("7m", 420_000)):
            columns = self.ask(step=step, node="basement", sensor="light")["columns"]
            self.assertEqual(sum(column["count"] for column in columns), 2, step)
            for column in columns:
                self.assertEqual(parse_rfc3339(column["time"]) % step_ms, 0, step)

    def test_summaries_can_start_in_1970(self):
        for begin in ("0", "1970-01-01T00:00:00Z"):
            columns = self.ask(step="90d", node="attic", sensor="temperature", from_=begin)["columns"]
            self.assertEqual([column["count"] for column in columns], [2])


class NodeActions(WebCase):
    def test_send_turns_the_node_on_or_off(self):
        for on in (False, True):
            self.assertEqual(self.post_json("/api/v1/nodes/basement/send", {"on": on}), {"node": "basement", "on": on})
        self.assertEqual(self.link.asked, [("SEND", False), ("SEND", True)])

    def test_invalid_bodies_are_rejected(self):
        for value in ({}, {"on": 1}, {"on": "true"}, {"on": None}, {"off": True}):
            self.assertEqual(self.post_json("/api/v1/nodes/basement/send", value, 400)["error"]["code"], "on")
        for value in ([], "on", 1, None):
            self.assertEqual(self.post_json("/api/v1/nodes/basement/send", value, 400)["error"]["code"], "json")
        for raw in (b"{", b"\xff", b'{"on": NaN}', b'{"on": true, "on": false}', b"[" * 5000):
            self.assertEqual(self.post_json("/api/v1/nodes/basement/send", None, 400, raw)["error"]["code"], "json")
        self.assertEqual(self.link.asked, [])

    def test_check_returns_the_status_of_the_node(self):
        self.link.state.details, self.link.state.last_sent = {"held": 250}, "16:36:10"
        self.link.state.checked_ms, self.link.state.round_trip_ms = WALL_MS, 1.5
        self.assertEqual(self.post_json("/api/v1/nodes/basement/check", {}), {
            "node": "basement", "on": True, "last_sent": "16:36:10", "details": {"held": 250},
            "checked": "2026-11-20T15:36:10.123Z", "round_trip_ms": 1.5,
        })  # fmt: skip

    def test_node_that_does_not_reply_is_reported_as_not_connected(self):
        self.link.answers = False
        for path, value in (("send", {"on": True}), ("check", {})):
            found = self.post_json(f"/api/v1/nodes/basement/{path}", value, 503)
            self.assertEqual(
                found["error"], {"code": "not-connected", "text": "The node did not answer: no answer in time."}
            )
        self.link.state.connected, self.link.state.fault = False, "closed"
        found = self.post_json("/api/v1/nodes/basement/check", {}, 503)
        self.assertEqual(found["error"]["text"], "The node did not answer: closed.")

    def test_actions_of_an_unknown_node_are_not_found(self):
        for path, value in (("send", {"on": True}), ("check", {})):
            self.assertEqual(self.post_json(f"/api/v1/nodes/attic/{path}", value, 404)["error"]["code"], "unknown-node")

    def test_snapshot_is_renewed_after_an_action(self):
        self.assertEqual(self.json("/api/v1/nodes")["nodes"][0]["on"], True)
        self.post_json("/api/v1/nodes/basement/send", {"on": False})
        self.assertEqual(self.json("/api/v1/nodes")["verdict"], "Node basement is switched off.")


class Health(WebCase):
    def test_health_is_good_without_faults(self):
        set_zone(self, "UTC")
        found = self.json("/api/v1/health")
        disk = found.pop("disk")
        self.assertEqual(
            found, {"well": True, "verdict": "Node basement is reporting.", "faults": [], "time_zone": "UTC"}
        )
        self.assertEqual(
            sorted(disk), ["days_left", "free_bytes", "grows_bytes_a_day", "stored_bytes", "written_bytes_a_day"]
        )
        self.assertGreater(disk["stored_bytes"], 0)
        self.assertEqual(self.text("/healthz"), "ok\n")

    def test_health_contains_one_text_per_fault(self):
        self.web.store_samples("basement", [{"temperature": None, "light": 5}])
        self.assertEqual(self.json("/api/v1/health")["faults"], ["basement temperature: no reading"])
        self.link.state.connected, self.link.state.fault = False, "closed"
        self.web.csv.fault = "the CSV log cannot be written: No space left on device"
        self.web.store_samples("basement", [{"temperature": 5.5}])  # this also invalidates the snapshot
        self.web.csv.fault = "the CSV log cannot be written: No space left on device"
        found = self.json("/api/v1/health")
        self.assertEqual(
            found["faults"], ["the CSV log cannot be written: No space left on device", "basement: closed"]
        )
        self.assertFalse(found["well"])

    def test_healthz_fails_if_nothing_can_be_stored(self):
        self.web.ingestor.fault, self.web.ingestor.is_blocked = "nothing can be stored: disk full", True
        self.assertEqual(self.text("/healthz", 503), "nothing can be stored\n")
        self.web.ingestor.is_blocked = False  # whether samples can be stored is known only when some arrive
        self.assertEqual(self.text("/healthz"), "ok\n")

    def test_node_that_is_switched_off_is_not_a_fault(self):
        self.post_json("/api/v1/nodes/basement/send", {"on": False})
        self.assertTrue(self.json("/api/v1/health")["well"])


class Metrics(WebCase):
    """Metrics, parsed by the grammar of the Prometheus text format 0.0.4."""

    _NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
    _LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
    _SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (-?[0-9.e+-]+)").fullmatch

    def read(self):
        text = self.get("/metrics")
        self.assertEqual(self.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        self.assertTrue(text.endswith("\n"))
        kinds, values, current = {}, {}, ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                _, _, current, about = line.split(" ", 3)
                self.assertNotIn(current, kinds)
                self.assertTrue(about)
            elif line.startswith("# TYPE "):
                _, _, name, kinds[current] = line.split(" ")
                self.assertEqual(name, current)
            else:
                found = self._SAMPLE(line)
                self.assertTrue(found, line)
                self.assertEqual(found[1], current)
                key = current, found[2] or ""
                self.assertNotIn(key, values)
                values[key] = float(found[3])
        for name, kind in kinds.items():
            self.assertRegex(name, "^(pigeonpost|process)_")
            self.assertEqual(kind, "counter" if name.endswith("_total") else "gauge", name)
        return values

    def test_metrics_are_well_formed_and_correct(self):
        values = self.read()
        self.assertEqual(values["pigeonpost_samples_stored_total", ""], 2)
        self.assertEqual(values["pigeonpost_node_connected", 'node="basement"'], 1)
        self.assertEqual(values["pigeonpost_node_on", 'node="basement"'], 1)
        self.assertEqual(values["pigeonpost_node_samples", 'node="basement"'], 2)
        self.assertEqual(values["pigeonpost_reading", 'node="basement",sensor="temperature",unit="°C"'], 22.25)
        self.assertEqual(values["pigeonpost_log_bytes", ""], self.web.csv.whole()[1])
        self.assertLess(
            abs(values["pigeonpost_node_last_sample_timestamp_seconds", 'node="basement"'] - time.time()), 60
        )
        self.assertEqual(values["pigeonpost_fault", ""], 0)
        self.assertEqual(self.read()["pigeonpost_http_requests_total", 'status="200"'], 1)

    def test_unknown_values_are_missing_in_the_metrics(self):
        self.link.state.on = None
        self.web.store_samples("basement", [{"temperature": None}])
        names = [key for key in self.read() if key[1].startswith('node="basement"')]
        self.assertNotIn(("pigeonpost_node_on", 'node="basement"'), names)
        self.assertNotIn(("pigeonpost_reading", 'node="basement",sensor="temperature",unit="°C"'), names)

    def test_metric_labels_are_escaped(self):
        self.link.state.sensors = [{"name": "temperature", "unit": 'a"b\\c'}]
        self.web.store_samples("basement", [{"temperature": 1.5}])
        self.assertIn(("pigeonpost_reading", r'node="basement",sensor="temperature",unit="a\"b\\c"'), self.read())

    def test_metrics_of_a_new_server_are_zero(self):
        self.web = WebHouse(self)
        self.assertEqual(self.read()["pigeonpost_samples_stored_total", ""], 0)


class Charts(WebCase):
    def test_chart_is_a_small_svg_image(self):
        text = self.get("/chart.svg?node=basement&sensor=temperature&span=10m")
        self.assertEqual(self.headers["content-type"], "image/svg+xml")
        self.assertIn("temperature, °C", text)
        self.assertIn("sha256-", self.headers["content-security-policy"])
        self.assertLess(len(text.encode()), 20_000)

    def test_invalid_chart_queries_are_rejected(self):
        self.get("/chart.svg", 404)
        self.get("/chart.svg?node=basement&sensor=temperature&span=never", 400)
        self.assertIn("no data", self.get("/chart.svg?node=basement&sensor=wind"))


class Events(WebCase):
    def test_event_stream_continues_with_each_commit(self):
        with self.web.connect() as sock:
            sock.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{self.web.address[1]}\r\n\r\n".encode())
            lines = sock.makefile("rb")
            head = iter(lines.readline, b"\r\n")
            self.assertEqual(next(head), b"HTTP/1.1 200 OK\r\n")
            names = [line.partition(b":")[0] for line in head]
            self.assertNotIn(b"Content-Length", names)
            self.assertEqual(lines.readline(), b"retry: 3000\n")
            while not (line := lines.readline()).startswith(b"data: "):
                pass
            self.assertIn('"temperature":"22.25 °C"', line.decode())
            self.web.store_samples("basement", [{"temperature": 30.5}], UNITS)
            while not (line := lines.readline()).startswith(b"data: "):
                pass
            self.assertIn('"temperature":"30.5 °C"', line.decode())

    def test_head_of_the_event_stream_ends(self):
        status, headers, body = self.web.request("HEAD", "/events")
        self.assertEqual((status, headers["content-type"], body), (200, "text/event-stream; charset=utf-8", b""))


class AccessControl(WebCase):
    password = "correct horse"
    everything = (
        "/", "/nodes/basement", "/log", "/log.csv", "/chart.svg?node=basement&sensor=light", "/events",
        "/api/v1/nodes", "/api/v1/nodes/basement", "/api/v1/samples", "/api/v1/health", "/api/v1/bus", "/metrics",
    )  # fmt: skip
    changes = (
        "/nodes/basement/on", "/nodes/basement/off", "/nodes/basement/status", "/exit", "/logout",
        "/api/v1/nodes/basement/send", "/api/v1/nodes/basement/check",
    )  # fmt: skip

    def test_requests_without_a_session_are_rejected(self):
        for path in self.everything:
            status, headers, body = self.web.request("GET", path, html=True)
            if path.startswith(("/api/", "/events", "/chart.svg", "/metrics")):
                self.assertEqual(status, 401, path)
                self.assertEqual(headers["www-authenticate"], "Bearer")
            else:
                self.assertEqual((status, headers["location"]), (303, "/login"), path)
            self.assertNotIn(b"basement", body)
        for path in self.changes:
            status, _, _ = self.web.request("POST", path, {"Content-Type": "application/json"}, b'{"on": false}')
            self.assertIn(status, (303, 401), path)
        self.assertEqual((self.link.asked, self.web.stopped), ([], []))

    def test_login_style_and_health_need_no_session(self):
        for path, kind in (
            ("/login", HTML),
            ("/healthz", TEXT),
            ("/style.css", "text/css; charset=utf-8"),
            ("/script.js", "text/javascript; charset=utf-8"),
            ("/favicon.svg", "image/svg+xml"),
        ):
            _, headers, body = self.web.request("GET", path, html=True)
            self.assertEqual(headers["content-type"], kind)
            self.assertNotIn(b"basement", body)

    def test_user_logs_in_acts_and_logs_out(self):
        session = self.web.log_in()
        page = self.page("/", headers=session)
        self.assertIn("Signed in as admin (operator).", page)
        self.assertIn("Log out</button>", page)
        csrf = self.web.csrf(session)
        status, headers, _ = self.web.post_form("/nodes/basement/off", {"csrf": csrf}, session)
        self.assertEqual((status, self.link.asked), (303, [("SEND", False)]))
        status, headers, _ = self.web.post_form("/logout", {"csrf": csrf}, session)
        self.assertEqual((status, headers["location"]), (303, "/login"))
        self.assertIn("Max-Age=0", headers["set-cookie"])
        status, headers, _ = self.web.request("GET", "/", session, html=True)
        self.assertEqual((status, headers["location"]), (303, "/login"))

    def test_wrong_user_or_password_is_rejected_and_logged(self):
        with self.assertLogs("pigeonpost.web.access", "WARNING") as logged:
            for user, password in (("admin", "wrong horse"), ("nobody", "correct horse")):
                status, headers, body = self.web.post_form("/login", {"user": user, "password": password})
                self.assertEqual(status, 403)
                self.assertIn(b"Wrong user name or password.", body)
                self.assertNotIn("set-cookie", headers)
        self.assertEqual(logged.output, ["WARNING:pigeonpost.web.access:127.0.0.1: wrong user or password"])

    def test_login_page_has_a_password_field(self):
        page = self.page("/login")
        self.assertIn('name="password" type="password"', page)
        self.assertIn("control.py needs no password", self.text("/login"))

    def test_viewer_has_no_buttons_and_cannot_control(self):
        self.web.users.set_password("guest", "correct horse", "viewer")
        session = self.web.log_in("guest")
        page = self.page("/", headers=session)
        self.assertIn("Signed in as guest (viewer).", page)
        self.assertNotIn("Sensor On", page)
        self.assertNotIn('action="/exit"', page)
        self.assertIn("Log Check", page)
        csrf = self.web.csrf(session)
        for path in ("/nodes/basement/off", "/exit"):
            self.assertEqual(self.web.post_form(path, {"csrf": csrf, "sure": "yes"}, session)[0], 403)
        status, _, body = self.web.request(
            "POST", "/api/v1/nodes/basement/send", {**session, "Content-Type": "application/json"}, b'{"on": false}'
        )
        self.assertEqual((status, json.loads(body)["error"]["code"]), (403, "role"))
        self.assertEqual((self.link.asked, self.web.stopped), ([], []))

    def test_old_snapshots_are_released(self):
        """A snapshot contains the last 24 hours of every sensor of every node."""

        def there():
            gc.collect()
            return sum(isinstance(one, StatusSnapshot) for one in gc.get_objects())

        session, before = self.web.log_in(), there()
        for number in range(10):
            self.web.web._snapshots.invalidate()
            self.page(f"/?{number}", headers=session)
        self.assertLess(there() - before, 4)

    def test_cached_page_is_not_shown_to_another_user(self):
        self.web.users.set_password("guest", "correct horse", "viewer")
        admin, guest = self.web.log_in(), self.web.log_in("guest")
        for _ in range(2):
            self.assertIn("Sensor On", self.page("/", headers=admin))
            self.assertNotIn("Sensor On", self.page("/", headers=guest))

    def test_event_stream_ends_with_its_session(self):
        session = self.web.log_in()
        self.web.web._live._heartbeat_s = 0.02
        with self.web.connect() as sock:
            host = f"127.0.0.1:{self.web.address[1]}"
            sock.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\nCookie: {session['Cookie']}\r\n\r\n".encode())
            sock.recv(1)
            self.web.post_form("/logout", {"csrf": self.web.csrf(session)}, session)
            self.web.app.clock.monotonic = lambda: time.monotonic() + 60  # the next heartbeat is due
            self.web.store_samples("basement", [{"light": 1}])
            sock.settimeout(LIMIT_S)
            while sock.recv(1 << 16):
                pass

    def test_key_of_control_py_is_accepted_as_a_bearer_token(self):
        self.assertEqual(self.json("/api/v1/nodes", headers=self.web.bearer)["server"], "house")
        self.json("/api/v1/nodes", 401, headers={"Authorization": "Bearer wrong"})


class OneTimeKey(WebCase):
    def test_key_admits_one_browser_only(self):
        proxied = {"X-Forwarded-For": "192.168.1.7"}  # so that the client does not count as this machine
        self.assertIn("No password is set", self.page("/", 403, headers=proxied))
        key = self.web.web.first_key
        status, headers, _ = self.web.request("GET", f"/?key={key}", proxied, html=True)
        self.assertEqual((status, headers["location"]), (303, "/"))
        session = {**proxied, "Cookie": headers["set-cookie"].partition(";")[0]}
        self.assertIn("Signed in with the one-time key (operator).", self.page("/", headers=session))
        self.assertIn("admits one browser, once", self.page(f"/?key={key}", 403, headers=proxied))

    def test_refusal_page_explains_the_remedy_with_one_command(self):
        page = self.page("/", 403, headers={"X-Forwarded-For": "192.168.1.7"})
        self.assertEqual(re.findall("<pre>(.*?)</pre>", page, re.DOTALL), ["python3 control.py --data FOLDER password"])
        self.assertIn("<p>Or open the address with the one-time key", page)
        self.assertNotIn(self.web.folder, page)  # any client can request this page

    def test_key_is_invalid_after_a_password_is_set(self):
        self.web.users.set_password("admin", "correct horse")
        page = self.page(f"/?key={self.web.web.first_key}", 403)
        self.assertIn("A password is set", page)
        self.assertIn('<a href="/login">Log in</a>', page)

    def test_wrong_one_time_key_is_rejected(self):
        self.assertIn("If the server was restarted, it has printed a new address", self.page("/?key=wrong", 403))
        self.page("/?key=", 403)
        self.assertNotEqual(self.web.web.first_key, "")


class Addresses(WebCase):
    def test_unknown_addresses_are_not_found(self):
        for path in (
            "/index.html", "/pigeonpost.sqlite3", "/logs/", "/../etc/passwd", "/%2e%2e/etc/passwd", "//", "/nodes/",
            "/nodes/a/b/c", "/nodes/..", "/nodes/-x", f"/nodes/{'x' * 64}", "/nodes/b%61sement", "/api/v1/",
            "/style.css/", "/.git/config", "/webui.py",
        ):  # fmt: skip
            self.get(path, 404)

    def test_errors_are_json_for_programs_html_for_browsers_and_text_for_terminals(self):
        self.assertEqual(self.json("/api/v2", 404, html=True)["error"],
                         {"code": "not-found", "text": "There is no page at this address."})  # fmt: skip
        self.assertIn("<h1>There is no page at this address.</h1>", self.page("/x", 404))
        self.assertEqual(self.text("/x", 404), "There is no page at this address.\n")

    def test_unsupported_methods_are_rejected_with_allow(self):
        for method, path, allowed in (("POST", "/", "GET, HEAD"), ("PUT", "/log", "GET, HEAD"),
                                      ("DELETE", "/login", "GET, POST, HEAD"), ("POST", "/log.csv", "GET, HEAD"),
                                      ("HEAD", "/exit", "POST"), ("TRACE", "/metrics", "GET, HEAD")):  # fmt: skip
            status, headers, _ = self.web.request(method, path)
            self.assertEqual((status, headers["allow"]), (405, allowed), path)

    def test_files_page_is_served_without_files(self):
        """tests/compat/file_drop/test_page.py contains the other tests of this page."""
        self.assertIn("No Pi has sent a file yet.", self.page("/files"))
        self.get("/files/WORD", 404)
        self.assertEqual(self.web.request("POST", "/files/WORD/import", self.web.bearer)[0], 404)

    def test_json_of_a_disabled_bus_is_not_found(self):
        """tests/compat/multicast_bus/test_bus.py contains the other tests of the bus."""
        found = self.json("/api/v1/bus", 404)
        self.assertEqual(found["error"]["code"], "no-bus")

    def test_every_route_is_requested_by_a_test(self):
        """The test is in this file or in the file of the page."""
        ours = ""
        pages = (
            "alerts_page", "annotations", "calibration", "chart_page", "front", "help_page", "integrations_page",
            "openapi", "operators", "preferences", "readings_api", "saved_charts", "sensor", "service_discovery",
            "table_pages",
        )  # fmt: skip
        views = (f"views/test_{name}.py" for name in pages)
        for name in ("test_webui.py", *views):
            with open(os.path.join(os.path.dirname(__file__), name), encoding="utf-8") as file:
                ours += file.read()
        for route in self.web.web._table():
            path = route.path.replace("NAME", "basement").replace("WORD", "temperature")
            self.assertTrue(f'"{path}' in ours or f"/{path.rpartition('/')[2]}" in ours, route.path)

    def test_server_and_handler_are_classes_of_http_server(self):
        self.assertTrue(issubclass(webui.PageHandler, http.server.BaseHTTPRequestHandler))
        for listener in self.web.web._listeners:
            self.assertIsInstance(listener, http.server.ThreadingHTTPServer)

    def test_pipelined_requests_are_answered_in_order(self):
        """A rejected method leaves the connection open."""
        lines = ("GET /healthz", "PUT /about", "HEAD /style.css", "GET /nowhere", "OTHER /log", "GET /favicon.svg")
        data = "".join(f"{line} HTTP/1.1\r\nHost: localhost\r\n\r\n" for line in lines)
        answers, statuses = self.web.raw(data.encode(), ends=True), []
        for line in lines:
            status, _, _, answers = next_response(answers, is_head=line.startswith("HEAD"))
            statuses.append(status)
        self.assertEqual((statuses, answers), ([200, 405, 200, 404, 405, 200], b""))

    def test_server_listens_on_two_addresses(self):
        web = webui.WebInterface([("127.0.0.1", 0), ("127.0.0.1", 0)], self.web.app)
        web.start()
        self.addCleanup(web.stop, 2.0)
        for address in web.addresses:
            with socket.create_connection(address, LIMIT_S) as sock:
                sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                self.assertIn(b"200 OK", sock.recv(100))

    def test_address_in_use_is_reported_with_a_remedy(self):
        taken = self.web.address
        web = webui.WebInterface([("127.0.0.1", 0), taken], self.web.app)
        with self.assertRaises(SettingsError) as caught:
            web.start()
        self.assertEqual(
            str(caught.exception),
            f"cannot listen on 127.0.0.1:{taken[1]} for the web page: Address already in use."
            " Choose another address with --web HOST:PORT, or stop the program that uses it, for example"
            " the service pigeonpost-server",
        )


if __name__ == "__main__":
    unittest.main()
