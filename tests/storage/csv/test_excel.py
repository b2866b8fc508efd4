"""Tests of CSV for Excel: byte order mark, CRLF, local times, decimals of the region, no formulas."""

import csv
import io
import unittest

from pigeonpost.storage.csv.excel import MARK, for_excel, has_comma
from tests.page_support import set_zone


class ForExcel(unittest.TestCase):
    def setUp(self):
        set_zone(self, "Europe/Vienna")

    def converted(self, text, comma=False):
        return "".join(for_excel([text], comma))

    def test_text_gets_a_mark_crlf_and_local_times(self):
        text = "time,node,sensor,value,unit\n2026-07-20T15:36:10.123+02:00,a,temperature,-21.5,°C\n"
        self.assertEqual(
            self.converted(text),
            MARK + "time,node,sensor,value,unit\r\n2026-07-20 15:36:10,a,temperature,-21.5,°C\r\n",
        )
        self.assertIn("2026-11-20 16:36:10", self.converted("2026-11-20T15:36:10Z,a\n"))

    def test_utc_is_named_in_the_heading_of_the_time_only(self):
        text = "time,node,time,light\n2026-07-20T15:36:10.123+02:00,a,5,2026-07-20T15:36:10.123+02:00\n"
        self.assertEqual(
            "".join(for_excel([text], False, utc=True)),
            MARK + "time (UTC),node,time,light\r\n2026-07-20 13:36:10,a,5,2026-07-20 13:36:10\r\n",
        )

    def test_decimal_comma_implies_semicolons(self):
        self.assertEqual(
            self.converted("2026-11-20T15:36:10Z,a,temperature,-1.5e-07,x;y\n", comma=True),
            MARK + '2026-11-20 16:36:10;a;temperature;-1,5e-07;"x;y"\r\n',
        )

    def test_cells_are_not_read_as_formulas(self):
        for text in ("=1+1", "+cmd", "-x", "@sum", "\tx", '"=a,b"', '"=HYPERLINK(""http://x"")"'):
            with self.subTest(text=text):
                rows = list(csv.reader(io.StringIO(self.converted(f"a,{text}\n").removeprefix(MARK), newline="")))
                self.assertRegex(rows[0][1], r"\A'|\Ax\Z")

    def test_numbers_and_invalid_rows_are_unchanged(self):
        self.assertIn("-5,+5,1e5,007,", self.converted("-5,+5,1e5,007,\n"))
        self.assertIn("2026-99-99T15:36:10Z", self.converted("2026-99-99T15:36:10Z,a\n"))
        self.assertEqual(self.converted('a,"torn\n'), MARK + "a,torn\r\n")
        self.assertEqual("".join(for_excel([], False)), MARK)

    def test_decimal_comma_is_chosen_by_the_language(self):
        for languages, comma in (
            ("de-DE,de;q=0.9,en;q=0.8", True), ("de", True), ("fr-CA", True), ("en-US,de;q=0.5", False), ("", False),
            ("de-CH", False), ("es-MX,es", False), ("es-ES", True), ("*", False), ("pt-BR", True),
        ):  # fmt: skip
            self.assertEqual(has_comma(languages), comma, languages)


if __name__ == "__main__":
    unittest.main()
