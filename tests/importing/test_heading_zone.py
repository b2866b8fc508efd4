"""Time zone in the heading of the column with the times, as `export --format excel --utc` writes it."""

import io
import unittest

from pigeonpost.core.clock import rfc3339
from pigeonpost.importing.options import ImportOptions
from pigeonpost.importing.survey import Plan
from pigeonpost.importing.tables import csv_readings
from pigeonpost.importing.zones import Zone
from tests.page_support import set_zone


def times(heading, options=None, time="2026-10-25 02:30:00"):
    text = f'"{heading}",temperature\n{time},21.5\n'
    plan = Plan(io.BytesIO(text.encode()), options or ImportOptions())
    return [rfc3339(one) for block in csv_readings(plan) for one in block.times]


class HeadingZone(unittest.TestCase):
    def setUp(self):
        set_zone(self, "Asia/Kolkata")

    def test_zone_in_the_heading_applies_to_times_without_an_offset(self):
        for heading, found in (
            ("time (UTC)", "2026-10-25T02:30"), ("UTC", "2026-10-25T02:30"), ("date_time_utc", "2026-10-25T02:30"),
            ("Time [GMT]", "2026-10-25T02:30"), ("Date Time, GMT-05:00", "2026-10-25T07:30"),
            ("Date/Time (UTC+2)", "2026-10-25T00:30"), ("time (UTC−3:30)", "2026-10-25T06:00"),
            ("time (CET)", "2026-10-25T01:30"), ("Datum/Zeit (MESZ)", "2026-10-25T00:30"),
            ("Timestamp EST", "2026-10-25T07:30"), ("Time (America/New_York)", "2026-10-25T06:30"),
            ("MTU (EST/EDT)", "2026-10-25T06:30"), ("Time (GMT/BST)", "2026-10-25T02:30"),
            ("time (local)", "2026-10-24T21:00"), ("Estimated time", "2026-10-24T21:00"),
            ("time", "2026-10-24T21:00"), ("datetime", "2026-10-24T21:00"),
        ):  # fmt: skip
            with self.subTest(heading):
                self.assertEqual(times(heading), [f"{found}:00.000Z"])

    def test_offset_of_a_time_and_the_option_take_precedence(self):
        self.assertEqual(times("time (UTC)", time="2026-10-25T02:30:00+05:30"), ["2026-10-24T21:00:00.000Z"])
        zone = ImportOptions(zone=Zone("Europe/Berlin"))
        self.assertEqual(times("time (UTC)", zone, "2026-11-20 02:30:00"), ["2026-11-20T01:30:00.000Z"])
