"""Tests of the forms of numbers in files."""

import unittest

from pigeonpost.importing.cells import RowError
from pigeonpost.importing.numbers import decimal_in, has_no_value, is_number, read_number, unit_in


class Numbers(unittest.TestCase):
    def test_numbers_with_a_point_or_a_comma_are_read(self):
        for text, decimal, value in (
            ("21.5", ".", 21.5), ("21,5", ",", 21.5), ("1.234,5", ",", 1234.5), ("1,234.5", ".", 1234.5),
            ("1,234", ".", 1234), ("1.234", ",", 1234), ("1.234", ".", 1.234), ("1,234", ",", 1.234),
            ("1.234", "?", 1.234), ("1,234", "?", 1.234), ("21.5", ",", 21.5), ("21,5", ".", 21.5),
            ("1 234,5", ",", 1234.5), ("1'234.5", ".", 1234.5), ("1.234.567", ",", 1234567), ("-0,5", ",", -0.5),
            ("\u22125", ".", -5), (" 7 ", ".", 7), ("2.15e+01", ".", 21.5), ("+3", ",", 3), ("1\u00a0234", ",", 1234),
            ("0.125", ",", 0.125), ("21.5 °C", ".", 21.5), ("45%", ".", 45), ("1013,2 hPa", ",", 1013.2),
        ):  # fmt: skip
            found = read_number(text, "x", decimal)
            self.assertEqual((found, type(found)), (value, type(value)), (text, decimal))

    def test_texts_are_no_numbers(self):
        for text in (
            "warm",
            "1,2,3",
            "1.2.3",
            "12:30",
            "1 2",
            "N",
            "ERR5",
            "0x10",
            "1_000",
            "x" * 1000,
            "1,23,456",
            "10 €",
        ):
            with self.assertRaisesRegex(RowError, "t must be a number, not "):
                read_number(text, "t")
            self.assertFalse(is_number(text), text)

    def test_words_and_signs_for_no_value_are_known(self):
        for text in ("", " ", "-", "--", "---", "unavailable", "unknown", "Unknown", "error", "none", "None", "null",
         "NULL",
                     "N/A", "n/a", "#N/A", "na", "NaN", "nan", "-nan", "?", "*", "undefined", "inf", "-Infinity",
                     "-.-", "--.-", "--,-", "\\N", "fault",
                     "-nan(ind)", "1.#QNAN", "#VALUE!",
                     "\u2014"):  # fmt: skip
            self.assertTrue(has_no_value(text), text)
            self.assertIsNone(read_number(text, "x", ","), text)
        for text in ("0", "off", "N", "NNE", "ok", "-1", "null island", "-.5", "-1-"):
            self.assertFalse(has_no_value(text), text)

    def test_decimal_character_is_recognised(self):
        for text, found in (
            ("21,5", ","), ("21.5", "."), ("1.234", "?"), ("1,234", "?"), ("1.234,5", ","), ("1,234.5", "."), ("0,123",
             ","),
            ("1.234.567", ","), ("7", ""), ("warm", ""), ("1015,0", ","),
        ):  # fmt: skip
            self.assertEqual(decimal_in(text), found, text)

    def test_unit_after_a_number_is_recognised(self):
        for text, unit in (
            ("21.5 °C", "°C"),
            ("45%", "%"),
            ("1013 hPa", "hPa"),
            ("5", ""),
            ("3 m/s", "m/s"),
            ("warm", ""),
        ):
            self.assertEqual(unit_in(text), unit, text)


if __name__ == "__main__":
    unittest.main()
