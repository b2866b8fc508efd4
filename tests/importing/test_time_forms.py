"""Tests of the forms of times in files."""

import unittest

from pigeonpost.importing.cells import RowError
from pigeonpost.importing.time_forms import DateOrder, find_time, is_clock_only, is_date_only, is_time, joined
from tests.importing.support import utc

NOON = "2023-10-29T12:30:00Z"
WALL = (  # times without an offset
    "2023-10-29 12:30", "2023-10-29T12:30:00", "2023/10/29 12:30", "2023.10.29 12:30:00", "20231029T123000",
    "20231029 1230", "20231029123000", "202310291230", "29-Oct-2023 12:30", "29. Oktober 2023 12:30",
    "29 octobre 2023 12:30", "Oct 29, 2023 12:30 PM", "Sunday, October 29, 2023 12:30:00 PM",
    "Sun Oct 29 12:30:00 2023",
    "29.10.2023 12:30", "29.10.23 12:30", "29/10/2023, 12:30:00", "29/10/2023   12:30", "10/29/2023 12:30 PM",
    "10/29/23 12:30p", "So 29.10.2023 12:30", "2023-10-29 12h30", "2023-10-29_12:30:00", "2023-10-29-12:30:00",
    "29th October 2023 12:30", "2023-Oct-29 12:30",
)  # fmt: skip
ABSOLUTE = (
    "2023-10-29T12:30:00Z", "2023-10-29 12:30:00 UTC", "2023-10-29T13:30:00+01:00", "2023-10-29 13:30:00 +0100",
    "2023-10-29T13:30:00+01", "Sun, 29 Oct 2023 12:30:00 GMT", "Sun, 29 Oct 2023 13:30:00 +0100",
    "Sun Oct 29 2023 13:30:00 GMT+0100 (CET)", "Sun Oct 29 13:30:00 CET 2023", "1698582600", "1698582600.0",
    "1698582600000", "1698582600000000", "1698582600000000000", "29.10.2023 13:30 MEZ", "10/29/2023 8:30:00 AM EDT",
    "1698582600:", "2023-10-29T08:00:00-0430", "20231029T123000Z",
)  # fmt: skip


class Forms(unittest.TestCase):
    def test_times_without_an_offset_are_local_times(self):
        for text in WALL:
            with self.subTest(text):
                found = find_time(text)
                self.assertEqual((utc(found.ms), found.is_local), (NOON, True))

    def test_times_with_an_offset_are_absolute(self):
        for text in ABSOLUTE:
            with self.subTest(text):
                found = find_time(text)
                self.assertEqual((utc(found.ms), found.is_local), (NOON, False))

    def test_fractions_and_ends_of_a_day_are_read(self):
        for text, wanted in (
            ("2023-10-29 12:30:00.123456", "2023-10-29T12:30:00.123Z"), ("1698582600,5", "2023-10-29T12:30:00.500Z"),
            ("1698582600123456", "2023-10-29T12:30:00.123Z"), ("29.10.2023 12:30:00,25", "2023-10-29T12:30:00.250Z"),
            ("2023-10-28 24:00", "2023-10-29T00:00:00Z"), ("10/29/2023 12:05 AM", "2023-10-29T00:05:00Z"),
            ("2023-10-29", "2023-10-29T00:00:00Z"), ("29.10.2023", "2023-10-29T00:00:00Z"),
        ):  # fmt: skip
            self.assertEqual(utc(find_time(text).ms), wanted, text)

    def test_texts_that_are_no_times_are_rejected(self):
        for text in ("", "noon", "12:30", "23.5", "2023-13-40 10:00", "2023-10-29 25:00", "05/06/2023 12:00", "99:99",
                     "31.02.2023 10:00", "13:00 PM 2023-10-29", "2023-10-29 13:30 PM", "x" * 10_000,
                     "9" * 30):  # fmt: skip
            with self.assertRaises(RowError, msg=text):
                find_time(text)

    def test_order_of_day_and_month_is_an_option(self):
        for text, order, wanted in (
            ("05/06/2023 12:30", "dmy", "2023-06-05T12:30:00Z"), ("05/06/2023 12:30", "mdy", "2023-05-06T12:30:00Z"),
            ("05-06-23 12:30", "ymd", "2005-06-23T12:30:00Z"), ("5.6.2023", "dmy", "2023-06-05T00:00:00Z"),
            ("2023-06-05 12:30", "mdy", "2023-06-05T12:30:00Z"),
        ):  # fmt: skip
            self.assertEqual(utc(find_time(text, order).ms), wanted, text)

    def test_format_of_the_user_is_used(self):
        for text, form, wanted in (
            ("28.10.23 12h05", "%d.%m.%y %Hh%M", "2023-10-28T12:05:00Z"), ("45227.5", "excel", "2023-10-28T12:00:00Z"),
            ("45227,25", "excel", "2023-10-28T06:00:00Z"), ("301 2023 1200", "%j %Y %H%M", "2023-10-28T12:00:00Z"),
            ("28/10/2023   15:30", "%d/%m/%Y %H:%M", "2023-10-28T15:30:00Z"),
            ("2023-10-28 12:00 +0200", "%Y-%m-%d %H:%M %z", "2023-10-28T10:00:00Z"),
        ):  # fmt: skip
            self.assertEqual(utc(find_time(text, "", form).ms), wanted, text)
        for text, form in (("12:30", "%H:%M"), ("28.10.", "%d.%m."), ("x", "%Y"), ("x", "%Q"), ("x", "excel")):
            with self.assertRaisesRegex(RowError, "does not fit the format"):
                find_time(text, "", form)

    def test_dates_and_times_of_day_are_distinguished(self):
        for text, what in (
            ("29.10.2023", "date"), ("10/29/2023", "date"), ("20231029", "date"), ("Oct 29, 2023", "date"),
            ("12:30", "clock"), ("3:30 PM", "clock"), ("12:30:05.5", "clock"), ("12:30a", "clock"),
            ("2023-10-29 12:30", "both"), ("1698582600", "both"), ("NNE", ""), ("23.5", ""), ("7", ""),
        ):  # fmt: skip
            found = (is_date_only(text), is_clock_only(text), is_time(text))
            wanted = (what == "date", what == "clock", what in ("date", "both"))
            self.assertEqual(found, wanted, text)

    def test_date_and_time_of_day_in_several_cells_are_joined(self):
        for cells, parts, wanted in (
            (["2023-10-29", "7:30", "+02:00"], 1, "2023-10-29 7:30 +02:00"),
            (["2023-10-29 7:30", "pm", "UTC"], 1, "2023-10-29 7:30 pm UTC"),
            (["29.10.2023", "12:30"], 1, "29.10.2023 12:30"), (["2023-10-29", "7"], 1, "2023-10-29 07:00"),
            (["2023", "10", "29", "7", "5"], 3, "2023-10-29 07:05"), (["2023", "1", "9"], 3, "2023-1-9"),
            (["10/29/2023", "11:00", "PM"], 1, "10/29/2023 11:00 PM"), (["2023-10-29", "7", "5"], 1,
             "2023-10-29 07:05"),
        ):  # fmt: skip
            self.assertEqual(joined(cells, parts), wanted)
        with self.assertRaises(RowError):
            joined(["2023-10-29", " "])


class Order(unittest.TestCase):
    def decided(self, *cells):
        order = DateOrder()
        for line, cell in enumerate(cells, 2):
            order.add(line, cell)
        return order.decide()

    def test_number_above_twelve_is_a_day(self):
        for cells, wanted in (
            (("05/06/2023 10:00", "29/06/2023 10:00"), "dmy"), (("05/06/2023 10:00", "05/29/2023 10:00"), "mdy"),
            (("5-6-23 1:00", "13-6-23 1:00"), "dmy"), (("12/31/2022",), "mdy"), (("05.06.2023",), "dmy"),
            (("2023-05-06 10:00",), ""), (("1698582600",), ""),
        ):  # fmt: skip
            self.assertEqual(self.decided(*cells), wanted, cells)

    def test_order_of_the_rows_decides_between_equal_numbers(self):
        for cells, wanted in (
            (("05/06/2023 22:00", "05/06/2023 23:00", "06/06/2023 00:00"), "dmy"),
            (("05/06/2023 22:00", "05/06/2023 23:00", "05/07/2023 00:00"), "mdy"),
            (("05/07/2023 00:10", "05/07/2023 00:00", "05/06/2023 23:50"), "mdy"),  # the newest first
            (("11/12/2023 11:00 PM", "11/12/2023 11:30 PM", "12/12/2023 12:00 AM"), "dmy"),
            (("1/2/2023 11:59 PM", "1/3/2023 12:00 AM", "1/3/2023 12:01 AM"), "mdy"),
            (("01/02/2023 23:58", "01/02/2023 23:59", "02/02/2023 0:00"), "dmy"),
        ):  # fmt: skip
            self.assertEqual(self.decided(*cells), wanted, cells)

    def test_year_of_two_digits_may_be_first(self):
        for cells, wanted in (
            (("23-05-16 10:00", "23-05-17 10:00"), "ymd"), (("16-05-23 10:00", "17-05-23 10:00"), "dmy"),
            (("23/11/30 10:00", "23/12/01 10:00"), "ymd"), (("31.12.22 10:00", "01.01.23 10:00"), "dmy"),
            (("22-12-31", "23-01-01"), "ymd"), (("23-05-16", "23-05-32"), "dmy"), (("32-05-16",), "ymd"),
            (("16/05/23 10:00", "16/05/23 11:00"), "dmy"), (("23.05.16", "23.05.17"), "ymd"),
            (("17-05-23", "16-05-23"), "dmy"), (("05/16/23", "05/17/23"), "mdy"),
        ):  # fmt: skip
            self.assertEqual(self.decided(*cells), wanted, cells)
        with self.assertRaises(RowError) as caught:
            self.decided("23-05-16 10:00", "23-05-16 11:00")
        self.assertIn("'23-05-16 10:00' may have the day or the year first: use --dates", str(caught.exception))

    def test_undecided_and_contradicting_dates_are_errors(self):
        for cells, text in (
            (("05/06/2023 12:00",), "line 2: '05/06/2023 12:00' may have the day or the month first: use --dates dmy"),
            (("06/06/2023", "05/06/2023", "06/06/2023"), "line 3: '05/06/2023' may have"),
            (("01/01/2023", "01/02/2023", "01/03/2023"), "line 3: "),  # every month, or every day
            (("01/02/2023 12:00", "01/03/2023 12:00"), "--dates mdy"),
            (("29/06/2023", "05/29/2023"), "the day is first in '29/06/2023' (line 2), but the month in '05/29/2023'"),
        ):
            with self.assertRaises(RowError) as caught:
                self.decided(*cells)
            self.assertIn(text, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
