"""Conversion of the times of a log to UTC."""

import unittest

from pigeonpost.storage.csv.utc import in_utc

HEAD = "time,node,sensor,value,unit\n"


class InUtc(unittest.TestCase):
    def test_times_are_converted_and_everything_else_is_unchanged(self):
        for line, found in (
            ("2026-10-25T02:30:00.123+02:00,a,t,1.5,°C\n", "2026-10-25T00:30:00.123Z,a,t,1.5,°C\n"),
            ("2026-10-25T02:30:00.123+01:00,a,t,,\n", "2026-10-25T01:30:00.123Z,a,t,,\n"),
            ('2026-11-01T01:30:00.000-02:30,a,gap,3,"x, ""y"""\n', '2026-11-01T04:00:00.000Z,a,gap,3,"x, ""y"""\n'),
            ("2026-11-20T15:36:10.123Z,a,t,1,\n", "2026-11-20T15:36:10.123Z,a,t,1,\n"),
            ("2026-99-99T15:36:10.123+01:00,a,t,1,\n", "2026-99-99T15:36:10.123+01:00,a,t,1,\n"),
            ("0001-01-01T00:00:00.000+14:00,a,t,1,\n", "0001-01-01T00:00:00.000+14:00,a,t,1,\n"),
            ("2026-10-25T02:30:00.1", "2026-10-25T02:30:00.1"),  # a torn row
            ("", ""),
        ):
            with self.subTest(line):
                self.assertEqual("".join(in_utc([HEAD, line])), HEAD + found)

    def test_parts_are_converted_one_by_one(self):
        parts = [HEAD + "2026-10-25T02:30:00.000+02:00,a,t,1,\n", "2026-10-25T02:30:00.000+01:00,a,t,1,\n"]
        self.assertEqual("".join(in_utc(parts)), "".join("".join(in_utc([part])) for part in parts))
        self.assertEqual(list(in_utc([])), [])
