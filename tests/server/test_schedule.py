"""Tests of schedules: local times of day, weeks and months, and changes of daylight saving time."""

import time
import unittest

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.server.schedule import Schedule
from tests.page_support import set_zone


def due(schedule, *times):
    return [time.strftime("%Y-%m-%dT%H:%M%z", time.localtime(schedule.last_due_ms(parse_rfc3339(one)) / 1000))
            for one in times]  # fmt: skip


class Schedules(unittest.TestCase):
    def setUp(self):
        set_zone(self, "Europe/Vienna")

    def test_daily_time_is_that_of_today_or_yesterday(self):
        self.assertEqual(
            due(Schedule("07:00"), "2026-11-20T05:59:59Z", "2026-11-20T06:00:00Z", "2026-11-20T23:30:00Z"),
            ["2026-11-19T07:00+0100", "2026-11-20T07:00+0100", "2026-11-20T07:00+0100"],
        )

    def test_weekly_time_is_on_the_chosen_day(self):
        self.assertEqual(
            due(Schedule("07:00", "weekly", 0), "2026-11-16T05:00:00Z", "2026-11-16T07:00:00Z", "2026-11-22T23:30:00Z"),
            ["2026-11-09T07:00+0100", "2026-11-16T07:00+0100", "2026-11-16T07:00+0100"],
        )

    def test_monthly_time_uses_the_last_day_of_a_shorter_month(self):
        self.assertEqual(
            due(Schedule("07:00", "monthly", 31), "2026-03-01T00:00:00Z", "2028-03-30T00:00:00Z",
                "2026-12-31T05:00:00Z"),
            ["2026-02-28T07:00+0100", "2028-02-29T07:00+0100", "2026-11-30T07:00+0100"],
        )  # fmt: skip
        self.assertEqual(due(Schedule("00:00", "monthly", 1), "2026-12-31T22:59:00Z"), ["2026-12-01T00:00+0100"])

    def test_days_of_23_and_25_hours_have_one_time_each(self):
        for zone, first, days in (
            ("Europe/Vienna", "2026-03-27T12:00:00Z", 4), ("Europe/Vienna", "2026-10-23T12:00:00Z", 4),
            ("America/New_York", "2026-03-06T12:00:00Z", 4), ("Australia/Lord_Howe", "2026-04-03T12:00:00Z", 4),
            ("Asia/Kolkata", "2026-04-03T12:00:00Z", 4), ("UTC", "2026-12-29T12:00:00Z", 4),
        ):  # fmt: skip
            set_zone(self, zone)
            start_ms = parse_rfc3339(first)
            for at in ("00:00", "02:00", "02:30"):
                found = {Schedule(at).last_due_ms(start_ms + n * 1_800_000) for n in range(days * 48 + 1)}
                dates = {time.localtime(ms / 1000)[:3] for ms in found}
                self.assertEqual((len(found), len(dates)), (days + 1, days + 1), (zone, at))

    def test_skipped_time_is_due_an_hour_later(self):
        self.assertEqual(
            due(Schedule("02:30"), "2026-03-29T01:29:59Z", "2026-03-29T01:30:00Z"),
            ["2026-03-28T02:30+0100", "2026-03-29T03:30+0200"],
        )

    def test_schedule_is_described_in_words(self):
        self.assertEqual(
            [str(one) for one in (Schedule("07:00"), Schedule("07:00", "weekly", 6), Schedule("07:00", "monthly", 1))],
            ["daily at 07:00", "weekly on Sunday at 07:00", "monthly on day 1 at 07:00"],
        )


if __name__ == "__main__":
    unittest.main()
