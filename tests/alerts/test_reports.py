"""Tests of reports: when they are due, and what they contain."""

import argparse
import contextlib
import re
import unittest
from types import SimpleNamespace

from pigeonpost.alerts.contract import AlertMessage
from pigeonpost.alerts.recipients import EVERYTHING, Filter, ReportPlan
from pigeonpost.alerts.registry import alert_channels, report_plans
from pigeonpost.alerts.report import ReportSource
from pigeonpost.alerts.reporter import Reporter, make_report
from pigeonpost.core.clock import FakeClock, parse_rfc3339, rfc3339
from pigeonpost.core.errors import NotStored, SettingsError
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.schedule import Schedule
from pigeonpost.settings import load_server
from protocol import Batch
from tests.alerts.fake_servers import MemoryQueue
from tests.page_support import set_zone
from tests.storage.memory_store import MemoryStore
from tests.storage.test_contract import E1, OUTBOX, file, gap, sample

DAILY = ReportPlan("report", ["fake"], Schedule("07:00"))


class Due(unittest.TestCase):
    def setUp(self):
        set_zone(self, "Europe/Vienna")
        self.start("2026-11-20T12:00:00Z")

    def start(self, now, *plans):
        self.clock = FakeClock(wall_ms=parse_rfc3339(now))
        self.queue = MemoryQueue(self.clock, "fake")
        self.restart(*plans or [DAILY])

    def restart(self, *plans):
        self.reporter = Reporter(plans, self.make, self.queue, self.clock, "home")

    def make(self, plan, from_ms, to_ms):
        return AlertMessage(f"{rfc3339(from_ms)[:16]} {rfc3339(to_ms)[:16]}", "", {})

    def until(self, time):
        self.clock.step((parse_rfc3339(time) - self.clock.wall_ms()) / 1000)
        self.reporter.prepare()
        self.reporter.put()

    def spans(self):
        return [queued.message.subject for queued in self.queue.waiting("fake")]

    def test_daily_report_covers_the_time_between_two_scheduled_times(self):
        for time in ("20T12:00", "21T05:59", "21T06:00", "21T18:00", "22T06:01"):
            self.until(f"2026-11-{time}:00Z")
        self.assertEqual(self.spans(), ["2026-11-20T06:00 2026-11-21T06:00", "2026-11-21T06:00 2026-11-22T06:00"])

    def test_missed_report_is_made_once_after_a_restart(self):
        self.until("2026-11-20T12:00:00Z")
        self.restart(DAILY)
        self.until("2026-11-23T11:00:00Z")
        self.restart(DAILY)
        self.until("2026-11-23T11:05:00Z")
        self.assertEqual(self.spans(), ["2026-11-20T06:00 2026-11-23T06:00"])

    def test_report_is_queued_once_if_the_program_is_killed_before_its_time_is_stored(self):
        self.until("2026-11-20T12:00:00Z")
        note, self.queue.note = self.queue.note, lambda key, value: None
        self.until("2026-11-21T06:00:00Z")
        self.queue.note = note
        self.restart(DAILY)
        self.until("2026-11-21T06:01:00Z")
        self.assertEqual(len(self.spans()), 1)

    def test_report_that_cannot_be_made_is_made_later_and_stops_no_other(self):
        other = ReportPlan("other", ["fake"], Schedule("07:00"))
        self.start("2026-11-20T12:00:00Z", DAILY, other)
        self.until("2026-11-20T12:00:00Z")
        made, self.reporter._make = [], lambda plan, *span: made.append(plan.key) or self.broken(plan, *span)
        for seconds in (0, 30, 31):
            self.clock.sleep(seconds)
            with contextlib.suppress(NotStored):
                self.until("2026-11-21T07:00:00Z")
            self.reporter.put()
        self.assertEqual(made, ["report", "other", "report"])
        self.assertEqual(len(self.spans()), 1)
        self.reporter._make = self.make
        self.clock.sleep(60)
        self.until("2026-11-21T07:05:00Z")
        self.assertEqual(len(self.spans()), 2)

    def broken(self, plan, from_ms, to_ms):
        if plan.key == "report":
            raise NotStored("locked")
        return self.make(plan, from_ms, to_ms)

    def test_no_report_is_made_before_the_clock_is_set(self):
        self.until("2026-11-20T12:00:00Z")
        self.clock.known = False
        self.until("2026-11-21T07:00:00Z")
        self.assertEqual(self.spans(), [])
        self.clock.known = True
        self.until("2026-11-21T07:01:00Z")
        self.assertEqual(len(self.spans()), 1)

    def test_clock_that_is_set_back_a_little_causes_no_second_report(self):
        self.until("2026-11-20T12:00:00Z")
        for back in ("05:59:59", "05:55:00", "05:01:00"):
            self.until("2026-11-21T06:00:00Z")
            self.queue.queues["fake"].clear()  # it was sent
            self.until(f"2026-11-21T{back}Z")
            self.until("2026-11-21T06:00:30Z")
            self.assertEqual(self.spans(), [], back)

    def test_clock_that_was_ahead_stops_no_report(self):
        self.until("2030-01-01T12:00:00Z")
        self.until("2026-11-20T12:00:00Z")
        self.until("2026-11-21T06:00:00Z")
        self.assertEqual(self.spans(), ["2026-11-20T06:00 2026-11-21T06:00"])

    def test_days_of_daylight_saving_changes_have_one_report_of_23_or_25_hours(self):
        for first, hours in (("2026-03-28T12:00:00Z", [23, 24]), ("2026-10-24T12:00:00Z", [25, 24])):
            for at in ("02:30", "03:30", "07:00", "00:00"):
                plan = ReportPlan("report", ["fake"], Schedule(at))
                self.start(first, plan)
                for _ in range(60 * 4):
                    self.until(rfc3339(self.clock.wall_ms() + 900_000))
                spans = [list(map(parse_rfc3339, [f"{one}:00Z" for one in span.split()])) for span in self.spans()]
                found = [(end - start) // 3_600_000 for start, end in spans]
                self.assertEqual(sum(found[:2]), sum(hours), (first, at, found))
                self.assertGreaterEqual(len(found), 2)

    def test_weekly_and_monthly_reports_are_due_on_their_day(self):
        plans = [ReportPlan("w", ["fake"], Schedule("07:00", "weekly", 0)),
                 ReportPlan("m", ["fake"], Schedule("07:00", "monthly", 1))]  # fmt: skip
        self.start("2026-11-20T12:00:00Z", *plans)
        for day in range(20, 31):
            self.until(f"2026-11-{day}T12:00:00Z")
        self.until("2026-12-01T12:00:00Z")
        self.assertEqual(self.spans(), ["2026-11-16T06:00 2026-11-23T06:00", "2026-11-23T06:00 2026-11-30T06:00",
                                        "2026-11-01T06:00 2026-12-01T06:00"])  # fmt: skip

    def test_report_every_hours_continues_after_a_restart(self):
        plan = ReportPlan("report", ["fake"], None, 3_600_000)
        self.start("2026-11-20T12:00:00Z", plan)
        for time in ("12:00", "12:30", "13:10", "13:50", "14:00"):
            self.until(f"2026-11-20T{time}:00Z")
            self.restart(plan)
        self.until("2026-11-20T17:30:00Z")
        self.assertEqual(self.spans(), ["2026-11-20T12:00 2026-11-20T13:00", "2026-11-20T13:00 2026-11-20T14:00",
                                        "2026-11-20T14:00 2026-11-20T17:00"])  # fmt: skip


class ReportSettings(unittest.TestCase):
    def plans(self, text, mail='[mail]\nto = ["a@example.org"]\n'):
        self.settings = load_server(argparse.Namespace(config=None), {"PIGEONPOST_SERVER_TOML": text + mail}, ())
        return [(plan.key, list(plan.channels), str(plan), plan.chosen) for plan in report_plans(self.settings)]

    def test_keys_of_the_report_make_a_schedule(self):
        for text, words in (
            ("every = 24", "every 24 h"), ('at = "07:00"', "daily at 07:00"), ('period = "daily"', "daily at 07:00"),
            ('period = "weekly"\nat = "18:30"', "weekly on Monday at 18:30"),
            ('period = "weekly"\nday = "Sunday"', "weekly on Sunday at 07:00"),
            ('period = "monthly"\nday = 15', "monthly on day 15 at 07:00"),
            ('period = "monthly"', "monthly on day 1 at 07:00"), ("every = 0.5", "every 0.5 h"),
        ):  # fmt: skip
            self.assertEqual(self.plans(f"[report]\n{text}\n"), [("report", ["mail:a@example.org"], words, EVERYTHING)])
        self.assertEqual(self.plans(""), [])

    def test_recipient_has_a_report_of_its_own(self):
        text = (
            '[report]\nat = "07:00"\n[[recipient]]\nto = "b@example.org"\nreport = "weekly"\nnodes = ["attic"]\n'
            '[[recipient]]\nto = "c@example.org"\nsensors = ["light"]\n'
            '[[recipient]]\nto = "d@example.org"\nreport = "none"\nseverity = "critical"\n'
            '[[recipient]]\nto = "e@example.org"\nday = 3\nreport = "monthly"\nat = "08:00"\n'
        )
        self.assertEqual(self.plans(text), [
            ("report", ["mail:a@example.org"], "daily at 07:00", EVERYTHING),
            ("report:mail:b@example.org", ["mail:b@example.org"], "weekly on Monday at 07:00",
             Filter(nodes=("attic",))),
            ("report:mail:c@example.org", ["mail:c@example.org"], "daily at 07:00", Filter(sensors=("light",))),
            ("report:mail:e@example.org", ["mail:e@example.org"], "monthly on day 3 at 08:00", EVERYTHING),
        ])  # fmt: skip
        keys = [channel.key for channel in alert_channels(self.settings)]
        self.assertEqual(keys, [f"mail:{one}@example.org" for one in "abcde"])

    def test_table_replaces_the_entry_of_the_same_address(self):
        text = '[report]\nevery = 24\n[[recipient]]\nto = "a@example.org"\nreport = "none"\nseverity = "none"\n'
        self.assertEqual(self.plans(text), [])
        self.assertEqual([one.key for one in alert_channels(self.settings)], ["mail:a@example.org"])

    def test_invalid_settings_are_refused_with_the_key(self):
        for text, words in (
            ('[report]\nevery = 24\nat = "07:00"\n', r"\[report\] at cannot be used with \[report\] every"),
            ('[report]\nat = "7 am"\n', r'line 2: \[report\] at takes a time of day such as "07:00"'),
            ('[report]\nperiod = "hourly"\n', r"line 2: \[report\] period takes"),
            ('[report]\nday = "monday"\n', r"\[report\] day is not used with the period daily: .* weekly$"),
            ('[report]\nperiod = "weekly"\nday = 3\n', r"\[report\] day takes the name of a weekday"),
            ('[report]\nperiod = "monthly"\nday = "friday"\n', r"\[report\] day takes a number from 1 to 31"),
            ('[report]\nperiod = "monthly"\nday = 32\n', r"line 3: \[report\] day takes"),
            ('[[recipient]]\nreport = "daily"\n', r"\[\[recipient\]\] 1: to is missing"),
            ('[[recipient]]\nto = "you"\n', r"\[\[recipient\]\] 1: to takes an address"),
            ('[[recipient]]\nto = "a@b.c"\nnodes = "attic"\n', r"\[\[recipient\]\] 1: nodes takes a list"),
            ('[[recipient]]\nto = "a@b.c"\nseverity = "high"\n', r"\[\[recipient\]\] 1: severity takes"),
            ('[[recipient]]\nto = "a@b.c"\n[[recipient]]\nto = "a@b.c"\n', r"\[\[recipient\]\] 2: to: .*only one"),
            (
                '[[recipient]]\nto = "a@b.c"\nreport = "daily"\nday = 5\n',
                r"\[\[recipient\]\] 1: day is not used .* monthly$",
            ),
        ):
            with self.assertRaisesRegex(SettingsError, words):
                self.plans(text)

    def test_invalid_address_of_the_webhook_is_refused_with_its_line(self):
        for url in ("http://h:99999/x", "http://[::1/x", "http://a..b/", "https://:443/", "http://h:port/"):
            self.plans(f'[webhook]\nurl = "{url}"\n')
            with self.assertRaisesRegex(SettingsError, r"\[webhook\] url takes") as caught:
                alert_channels(self.settings)
            self.assertNotIn(url, str(caught.exception))  # it can be a secret


class Content(unittest.TestCase):
    """10:00 to 10:04 UTC is 11:00 to 11:04 in Vienna."""

    FROM, TO = parse_rfc3339("2026-11-20T10:00:00Z"), parse_rfc3339("2026-11-21T10:00:00Z")

    def setUp(self):
        set_zone(self, "Europe/Vienna")
        self.store = MemoryStore()
        made = [sample(n, 20 + n, self.FROM + n * 60_000) for n in range(1, 4)]
        units = {"temperature": "°C", "humidity": "%"}
        file(self.store, Batch("attic", OUTBOX, E1, 0, SampleBatch.of(made), None, units, print, print))
        file(self.store, gap(1, 7, node="cellar"))

    def report(self, chosen=EVERYTHING, **sources):
        plan = DAILY._replace(chosen=chosen)
        return make_report(ReportSource("home", self.store, **sources), plan, self.FROM, self.TO)

    def test_report_contains_statistics_of_every_sensor_with_local_times(self):
        message = self.report()
        self.assertEqual(message.subject, "Report of home, 2026-11-20 11:00 to 2026-11-21 11:00")
        self.assertEqual((message.kind, message.severity), ("report", "info"))
        self.assertRegex(message.text, r"\nattic\n.*\n  temperature +21 +20 Nov 11:01 +22 +23 °C +20 Nov 11:03 +3\n")
        self.assertIn("Time zone: Europe/Vienna (UTC+1)", message.text)
        self.assertEqual(message.info["nodes"]["attic"]["temperature"], {
            "values": 3, "low": 21, "high": 23, "mean": 22, "unit": "°C", "low_time": "2026-11-20T10:01:00.000Z",
            "high_time": "2026-11-20T10:03:00.000Z",
        })  # fmt: skip
        for words in ("attic", "21 °C", "20 Nov 11:01", "22 °C", "23 °C", "3 values"):
            self.assertIn(words, message.html.replace("\u00a0", " "))

    def test_html_has_no_style_element_no_image_and_no_link(self):
        for forbidden in ("<style", "<img", "<script", "http://", "https://", "background"):
            self.assertNotIn(forbidden, self.report().html)

    def test_shares_of_each_bar_sum_to_the_width(self):
        for node, value in (("shed", -40), ("loft", 1e300), ("barn", -1e300)):
            samples = SampleBatch.of([sample(1, value, self.FROM)])
            file(self.store, Batch(node, OUTBOX, E1, 0, samples, None, {"temperature": "°C"}, print, print))
        html = self.report().html
        for bar in re.findall(r'<table role="presentation".*?</table>', html):
            widths = [float(width) for width in re.findall(r'width="([0-9.]+)%" ?(?:bgcolor|style)', bar)]
            self.assertAlmostEqual(sum(widths), 100, delta=1.0)

    def test_bar_of_a_constant_value_is_visible_anywhere_on_its_scale(self):
        for node, value in (("shed", -40), ("loft", 60), ("barn", 59.99), ("mill", 20), ("dock", -39.99)):
            samples = SampleBatch.of([sample(1, value, self.FROM)])
            file(self.store, Batch(node, OUTBOX, E1, 0, samples, None, {"temperature": "°C"}, print, print))
        for bar in re.findall(r'<table role="presentation".*?</table>', self.report().html):
            blank = sum(float(width) for width in re.findall(r'width="([0-9.]+)%" style', bar))
            self.assertRegex(bar, "bgcolor")
            self.assertLess(blank, 99.6)

    def test_html_of_many_sensors_is_shorter_than_what_gmail_shows(self):
        units = {f"temperature_of_rack_{n}": "°C" for n in range(100)}
        one = sample(1, 0, self.FROM)._replace(values={name: 1234.5 + n for n, name in enumerate(units)})
        file(self.store, Batch("rack", OUTBOX, E1, 0, SampleBatch.of([one]), None, units, print, print))
        message = self.report()
        self.assertLess(len(message.html.encode()), 102_000)
        self.assertIn("31 more sensors not listed here", message.html)
        self.assertIn("temperature of rack 99", message.text)

    def test_texts_from_nodes_are_escaped(self):
        alert = {"id": "1", "time": "2026-11-20T11:00:00.000Z", "kind": "alert", "severity": "warning",
                 "subject": "<b>x</b>", "results": []}  # fmt: skip
        message = self.report(alerts=lambda *span: [alert], faults=lambda: ["disk: <i>full</i>"])
        self.assertIn("20 Nov 12:00  warning  <b>x</b>", message.text)
        for words in ("&lt;b&gt;x", "&lt;i&gt;full"):
            self.assertIn(words, message.html)

    def test_silent_nodes_are_listed_and_retired_ones_are_not(self):
        self.assertIn("Nodes without values:\n  cellar, no sample yet", self.report().text)
        self.store.retire("cellar", 5)
        retired = SimpleNamespace(current=lambda name: name, retired_ms=lambda name: 5 if name == "cellar" else None)
        self.assertNotIn("cellar", self.report(names=retired).text.partition("Lost samples")[0])

    def test_sensors_in_use_without_values_are_listed(self):
        """Failed, failed and no longer sent; not: never sent, removed long ago, without a value only at the end."""
        day_ms, names = self.TO - self.FROM, ("always", "failed", "gone", "old", "pauses")
        rows = [
            (1, self.FROM - 3 * day_ms, {"always": 1, "failed": 1, "gone": 1, "old": 1, "pauses": 1}),
            (2, self.FROM - day_ms // 2, {"always": 1, "failed": 1, "gone": 1, "pauses": 1}),
            (3, self.FROM + 60_000, {"always": 1, "failed": None, "pauses": 1}),
            (4, self.FROM + 120_000, {"always": 2, "failed": None, "pauses": None}),
        ]
        for seq, at, values in rows:
            made = SampleBatch.of([sample(seq, 0, at)._replace(values=values)])
            file(self.store, Batch("shed", OUTBOX, E1, 0, made, None, dict.fromkeys(names, "%"), print, print))
        message = self.report()
        self.assertIn("\nSensors without values:\n  shed: failed, gone\n", message.text)
        self.assertIn("<li>shed: failed, gone</li>", message.html)
        self.assertEqual(message.info["without_values"], {"shed": ["failed", "gone"]})
        self.assertNotIn("failed", self.report(Filter(sensors=["always"])).text)

    def test_report_contains_the_gaps_of_its_time(self):
        gaps = [{"node": "attic", "epoch": E1, "from": 1, "to": 7, "before": 2, "why": "overwritten", "noted_ms": at}
                for at in (self.FROM - 1, self.FROM, self.TO)]  # fmt: skip
        self.store.gaps = lambda limit: gaps
        message = self.report()
        self.assertRegex(message.text, r"Lost samples \(1 gap\):\n.*\n  20 Nov 11:00 +attic +9 +overwritten\n")
        self.assertIn("attic (9 samples lost)", message.text)
        self.assertIn("overwritten", message.html)

    def test_recipient_receives_only_its_nodes_and_sensors(self):
        for chosen, words in ((Filter(nodes=["cellar"]), "21 °C"), (Filter(sensors=["humidity"]), "21 °C"),
                              (Filter(nodes=["attic"]), "cellar")):  # fmt: skip
            self.assertNotIn(words, self.report(chosen).text + self.report(chosen).html)

    def test_report_names_a_selection_without_samples(self):
        message = self.report(Filter(nodes=["atic"]))
        for text in (message.text, message.html):
            self.assertIn(
                "No samples of the selected nodes are stored. Check `nodes` in the [[recipient]] table.", text
            )

    def test_offsets_are_shown_if_they_differ(self):
        self.FROM, self.TO = parse_rfc3339("2026-10-24T05:00:00Z"), parse_rfc3339("2026-10-25T06:00:00Z")
        self.assertEqual(self.report().subject, "Report of home, 2026-10-24 07:00+02:00 to 2026-10-25 07:00+01:00")

    def test_report_of_an_empty_store_contains_no_samples(self):
        self.store = MemoryStore()
        message = self.report()
        self.assertIn("No samples are stored.", message.text)
        self.assertIn("No samples are stored.", message.html)


if __name__ == "__main__":
    unittest.main()
