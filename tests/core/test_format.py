"""Times, zones and sizes as text for people."""

import unittest
from datetime import UTC, datetime

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.format import clock, size, stamp
from tests.page_support import set_zone


def ms(text: str) -> int:
    return parse_rfc3339(text)


class StampTest(unittest.TestCase):
    def test_stamp_is_local_time_with_its_offset(self) -> None:
        for zone, text in (
            ("Europe/Berlin", "2026-11-20 16:36:10+01:00"),
            ("Asia/Kolkata", "2026-11-20 21:06:10+05:30"),
            ("America/St_Johns", "2026-11-20 12:06:10-03:30"),
            ("Pacific/Chatham", "2026-11-21 05:21:10+13:45"),
            ("UTC", "2026-11-20 15:36:10+00:00"),
            ("XYZ+00:44:30", "2026-11-20 15:36:10+00:00"),  # RFC 3339 has no seconds in the offset
        ):
            with self.subTest(zone):
                set_zone(self, zone)
                self.assertEqual(stamp(ms("2026-11-20T15:36:10.999Z")), text)

    def test_stamp_is_read_as_the_same_time(self) -> None:
        set_zone(self, "America/New_York")
        for text in ("2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z", "2026-03-08T06:59:59Z", "0001-01-02T00:00:00Z",
                     "9999-12-31T12:00:00Z"):  # fmt: skip
            with self.subTest(text):
                self.assertEqual(datetime.fromisoformat(stamp(ms(text))).astimezone(UTC), datetime.fromisoformat(text))


class ClockTest(unittest.TestCase):
    def test_times_that_occur_twice_have_their_offset(self) -> None:
        for zone, first, second, texts in (
            ("Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", ("02:30 UTC+2", "02:30 UTC+1")),
            ("America/New_York", "2026-11-01T05:00:00Z", "2026-11-01T06:00:00Z", ("01:00 UTC−4", "01:00 UTC−5")),
            ("America/St_Johns", "2026-11-01T03:59:00Z", "2026-11-01T04:59:00Z", ("01:29 UTC−2:30", "01:29 UTC−3:30")),
            ("Australia/Lord_Howe", "2026-04-04T14:45:00Z", "2026-04-04T15:15:00Z",
             ("01:45 UTC+11", "01:45 UTC+10:30")),
            ("Antarctica/Troll", "2026-10-25T00:30:00Z", "2026-10-25T02:30:00Z", ("02:30 UTC+2", "02:30 UTC")),
            ("CET-1CEST,M3.5.0,M10.5.0/3", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z",
             ("02:00 UTC+2", "02:00 UTC+1")),
        ):  # fmt: skip
            with self.subTest(zone):
                set_zone(self, zone)
                self.assertEqual((clock(ms(first), ms(first)), clock(ms(second), ms(second))), texts)

    def test_times_that_occur_once_have_no_offset(self) -> None:
        for zone, text, shown in (
            ("Europe/Berlin", "2026-10-24T23:59:59Z", "01:59:59"),
            ("Europe/Berlin", "2026-10-25T02:00:00Z", "03:00:00"),
            ("Europe/Berlin", "2026-03-29T00:59:59Z", "01:59:59"),
            ("Europe/Berlin", "2026-03-29T01:00:00Z", "03:00:00"),
            ("Asia/Kolkata", "2026-10-25T00:30:00Z", "06:00:00"), ("UTC", "2026-10-25T00:30:00Z", "00:30:00"),
        ):  # fmt: skip
            with self.subTest(zone=zone, text=text):
                set_zone(self, zone)
                self.assertEqual(clock(ms(text), ms(text), seconds=True), shown)

    def test_date_is_shown_for_other_days(self) -> None:
        set_zone(self, "Europe/Berlin")
        now = ms("2026-11-20T15:36:10Z")
        self.assertEqual(clock(ms("2026-10-25T00:30:00Z"), now), "25 Oct 02:30 UTC+2")
        self.assertEqual(clock(ms("2025-10-26T00:30:00Z"), now), "26 Oct 2025 02:30 UTC+2")


class SizeTest(unittest.TestCase):
    def test_size_never_shows_1024_of_a_unit(self) -> None:
        for count, text in (
            (0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1024**2 - 52, "1023.9 KiB"),
            (1024**2 - 1, "1.0 MiB"), (1024**3 - 1, "1.0 GiB"), (1023.7, "1.0 KiB"),
        ):  # fmt: skip
            with self.subTest(count):
                self.assertEqual(size(count), text)
