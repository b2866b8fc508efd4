"""Tests of the keys of [[alert]] tables."""

import unittest

from pigeonpost.alerts.rules import Rule, read_rules
from pigeonpost.core.errors import SettingsError
from pigeonpost.settings import quiet_hours


def rule(**table):
    return read_rules([table], "server.toml")[0]


class Tables(unittest.TestCase):
    def test_tables_of_earlier_versions_keep_their_meaning(self):
        self.assertEqual(
            rule(node="a", sensor="t", above=40, below=2, **{"for": 60}, again=3600),
            Rule("a", "t", 40, 2, None, 60, 3600),
        )
        self.assertEqual(rule(silent=600), Rule("", "", None, None, 600, 0, 0))
        self.assertEqual(rule(silent=600).condition_kind, "silent")
        self.assertEqual(rule(sensor="t", below=1).condition_kind, "value")

    def test_tables_of_every_kind_are_accepted(self):
        for table, condition in (
            ({"kind": "value", "sensor": "t", "above": 4, "clear": 3}, "t above 4 °C, until past 3 °C"),
            ({"sensor": "t", "above": 4, "below": 1, "clear": [2, 3]}, "or below 1 °C, until past 2 and 3 °C"),
            ({"kind": "failed"}, "a sensor without a value for 300 s"),
            ({"kind": "failed", "sensor": "t", "for": 5}, "t without a value for 5 s"),
            ({"kind": "flag", "flags": ["stuck", "rail"]}, "a sensor with a quality flag (stuck, rail)"),
            ({"kind": "silent"}, "longer without a sample than"), ({"kind": "silent", "silent": 9}, "9 s without"),
            ({"kind": "gap", "node": "a"}, "never arrive"), ({"kind": "disk"}, "free disk space below 500 MiB"),
            ({"kind": "disk", "below": 100, "clear": 200}, "below 100 MiB, until past 200 MiB"),
            ({"kind": "store"}, "fault"), ({"kind": "voltage"}, "supply voltage"), ({"kind": "refused"}, "refused"),
        ):  # fmt: skip
            with self.subTest(table):
                self.assertIn(condition, rule(**table).condition("°C"))

    def test_invalid_tables_are_refused_with_key_and_remedy(self):
        for table, words in (
            ({"kind": "value", "sensor": "t"}, 'kind = "value" requires `sensor`, and `above` or `below`'),
            ({"kind": "value", "above": 1}, "requires `sensor`"), ({"kind": "other"}, "kind takes 'value' or"),
            ({"kind": "silent", "above": 1}, "above must not"), ({"kind": "gap", "sensor": "t"}, "sensor must not"),
            ({"kind": "store", "node": "a"}, "about this server"), ({"kind": "disk", "above": 1}, "above must not"),
            ({"kind": "flag", "flags": ["odd"]}, "flags takes a list of"), ({"kind": "gap", "silent": 5}, "silent"),
            ({"sensor": "t", "above": 4, "clear": 5}, "clear must not be greater than above (4)"),
            ({"sensor": "t", "below": 4, "clear": 3}, "clear must not be less than below (4)"),
            ({"sensor": "t", "above": 4, "below": 1, "clear": 2}, "clear takes [low, high]"),
            ({"sensor": "t", "above": 4, "clear": [1, 2]}, "otherwise one number"),
            ({"sensor": "t", "above": 4, "clear": [1]}, "clear takes a number, or [low, high]"),
            ({"silent": 9, "clear": 1}, "clear must not be used"), ({"silent": 9, "severity": "bad"}, "severity takes"),
            ({"silent": 9, "quiet": "22-7"}, "quiet takes two"), ({"silent": 9, "repeats": 2}, "`again`"),
            ({"silent": 9, "again": 5, "repeats": 1.5}, "repeats takes a whole"), ({"silent": 9, "name": ""}, "name"),
            ({"kind": "disk", "below": 0}, "greater than 0"), ({"kind": "disk", "below": -5}, "greater than 0, not -5"),
            ({"silent": 9, "again": -5}, "again takes a number from 0 to 8.64e+06 seconds, not -5"),
            ({"sensor": "t", "above": 4, "for": "5 min"}, "for takes a number from 0 to 864000 seconds, not '5 min'"),
            ({"kind": "disk", "above": 500}, "above must not be used with kind = 'disk': use `below`, in MiB"),
        ):  # fmt: skip
            with self.subTest(table), self.assertRaises(SettingsError) as caught:
                read_rules([{"silent": 9}, table], "server.toml")
            self.assertIn("server.toml: [[alert]] 2: ", str(caught.exception))
            self.assertIn(words, str(caught.exception))

    def test_two_tables_with_one_name_are_refused(self):
        with self.assertRaisesRegex(SettingsError, r"\[\[alert\]\] 2: name 'x' belongs to another table"):
            read_rules([{"silent": 9, "name": "x"}, {"silent": 8, "name": "x"}], "server.toml")

    def test_quiet_hours_are_two_times_of_day(self):
        for good in ("22:00-07:00", "00:00-23:59", "12:30-12:31", "07:00-06:59", ""):
            self.assertEqual(quiet_hours(good), good)
        for bad in ("22:00", "24:00-07:00", "22:00-22:00", "22:00 - 07:00", "7:00-8:00", None, 5, ["22:00-07:00"]):
            with self.subTest(bad), self.assertRaises(ValueError):
                quiet_hours(bad)


if __name__ == "__main__":
    unittest.main()
