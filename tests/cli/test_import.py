"""Tests of the command `import` with files of other programs."""

import os
import unittest

from tests import page_support
from tests.support import temp_folder

NIGHT = "time,t\n" + "".join(f"2023-10-29 {clock},{k}\n" for k, clock in enumerate(("02:30", "02:00", "02:30")))
HISTORY = """entity_id,state,last_changed
sensor.cellar,18.5,2025-08-31T22:00:00.000Z
light.x,on,2025-08-31T22:10:00.000Z
sensor.cellar,unavailable,2025-08-31T23:00:00.000Z
"""


class Import(unittest.TestCase):
    def setUp(self):
        self.folder, self.data = temp_folder(self), temp_folder(self)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        return path

    def run_(self, *arguments, status=0):
        found, out, told = page_support.control_here("--data", self.data, "import", *arguments)
        self.assertEqual(found, status, out + told)
        return (out + told).replace(f"{self.folder}/", "")

    def exported(self):
        status, out, _ = page_support.control_here("--data", self.data, "export", "--utc")
        self.assertEqual(status, 0)
        return out.splitlines()[1:]

    def test_check_prints_what_was_understood_and_stores_nothing(self):
        text = "﻿Gerät;X1\n\nDatum;Uhrzeit;Temp (°F);Wind\n29.10.2023;02:30;50,5;N\n29.10.2023;02:40;---;NO\n"
        path = self.write("x.csv", text)
        said = self.run_("--check", "--timezone", "UTC", "--unit", "temp=°C", path).splitlines()
        self.assertEqual(
            said,
            ["x.csv: format: CSV, one column per sensor, encoding UTF-8, separator semicolon",
             "x.csv: head line: line 3",
             "x.csv: time: column Datum + Uhrzeit, such as '29.10.2023 02:30', day first; time zone of times without an"
             " offset: UTC",
             "x.csv: numbers: decimal comma",
             "x.csv: first and last time: 2023-10-29 02:30:00+00:00 to 2023-10-29 02:30:00+00:00",
             "x.csv: (no node: add --node NODE) temp [°C]: 1 value, 0 without a value, converted: °F to °C",
             "x.csv: left out: Wind (contains text such as 'N')",
             "x.csv: 1 reading, 0 invalid rows; nothing was stored"],
        )  # fmt: skip
        self.assertEqual(os.listdir(self.data), [])
        self.assertIn("cannot be imported: x.csv", self.run_("--check", self.write("x.csv", "a,b\n1,2\n"), status=1))

    def test_check_names_a_decimal_comma_of_one_sensor(self):
        for text in (
            "time;a;b\n2023-10-29 02:30;20,5;20.5\n",
            "time;sensor;value\n2023-10-29 02:30;a;20,5\n2023-10-29 02:30;b;20.5\n",
        ):
            with self.subTest(text):
                self.assertIn("x.csv: numbers: decimal comma\n", self.run_("--check", self.write("x.csv", text)))

    def test_history_of_home_assistant_is_imported_once(self):
        path = self.write("history.csv", HISTORY)
        for new in (2, 0):
            said = self.run_("--node", "home", path)
            self.assertIn("history.csv: left out: light.x (contains text such as 'on')", said)
            self.assertIn(f"2 readings, {new} new", said)
        self.assertEqual(
            self.exported(), ["2025-08-31T22:00:00.000Z,home,cellar,18.5,", "2025-08-31T23:00:00.000Z,home,cellar,,"]
        )

    def test_second_of_two_equal_hours_is_stored_with_its_own_times(self):
        self.run_("--node", "a", "--timezone", "Europe/Berlin", self.write("x.csv", NIGHT))
        self.assertEqual([row[11:16] for row in self.exported()], ["00:30", "01:00", "01:30"])

    def test_invalid_rows_are_named_with_the_remedy(self):
        path = self.write(
            "x.csv", "time,t\n2023-10-28 12:00,1\n" + "\0" * 9 + "\n2023-10-28 12:01,bad\n2023-10-28 12:02,2\n"
        )
        said = self.run_("--node", "a", path, status=1)
        self.assertIn("x.csv: line 3: the row contains 9 zero bytes", said)
        self.assertIn("x.csv: line 4: t must be a number, not 'bad'", said)
        self.assertIn("x.csv: to import the other rows, add --skip-bad", said)
        said = self.run_("--node", "a", "--skip-bad", path)
        self.assertIn("x.csv: line 4: t must be a number, not 'bad': left out", said)
        self.assertIn("x.csv: 2 invalid rows left out", said)
        self.assertEqual(len(self.exported()), 2)

    def test_file_without_a_head_line_names_the_remedy(self):
        path = self.write("hm.csv", "1553424480,nan,14.456\n1553424540,nan,12.35\n")
        self.assertIn("with --columns time,name2,name3", self.run_("--node", "bbq", path, status=1))
        self.run_("--node", "bbq", "--columns", "time,-,pit (°C)", path)
        self.assertEqual([row.split(",", 2)[2] for row in self.exported()], ["pit,14.456,°C", "pit,12.35,°C"])

    def test_wrong_options_are_rejected(self):
        path = self.write("x.csv", "time,t\n2023-10-28 12:00,1\n")
        for arguments, text in (
            (("--timezone", "Europe/Nowhere"), "there is no time zone 'Europe/Nowhere'"), (("--dates", "dym"),
             "invalid choice"),
            (("--scale", "x"), "'x' is not a valid number"), (("--scale", "T=2"), "is not a valid sensor name"),
            (("--offset", "t=nan"), "'nan' is not a valid number"), (("--unit", "t=" + "x" * 33),
             "is not a valid unit"),
        ):  # fmt: skip
            self.assertIn(text, self.run_("--node", "a", *arguments, path, status=2))
        self.assertIn("--unit: there is no sensor q", self.run_("--node", "a", "--unit", "q=V", path, status=1))


if __name__ == "__main__":
    unittest.main()
