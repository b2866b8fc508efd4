"""Tests of the times of rows in UTC: time zones, and the end of summer time."""

import random
import unittest

from pigeonpost.importing.cells import RowError
from pigeonpost.importing.options import ImportOptions
from pigeonpost.importing.times import LocalTimes
from pigeonpost.importing.zones import BadZone, Zone
from tests.importing.support import BERLIN, faults_of, inspected, rows_of, utc

HOUR_MS = 3_600_000


def times(text, **options):
    """Return the times of a table, without date and Z."""
    return [time[11:16] for _, time, _ in rows_of(text, **{"zone": BERLIN, **options})]


def table(*clocks, date="2023-10-29"):
    return "time,t\n" + "".join(f"{date} {clock},{k}\n" for k, clock in enumerate(clocks))


class EndOfSummerTime(unittest.TestCase):
    """In Berlin, 02:00 to 03:00 occurs twice: from 00:00 and from 01:00 (UTC)."""

    def test_rows_after_a_step_back_are_in_the_second_hour(self):
        for clocks, wanted in (
            (("01:30", "02:00", "02:30", "02:00", "02:30", "03:00"), "23:30 00:00 00:30 01:00 01:30 02:00"),
            (("02:10", "02:40", "02:10", "02:40", "03:10"), "00:10 00:40 01:10 01:40 02:10"),  # begins in the hour
            (("01:30", "02:30", "02:30", "03:30"), "23:30 00:30 01:30 02:30"),  # one row per hour
            (("01:50", "02:50", "02:05", "02:15"), "23:50 00:50 01:05 01:15"),  # ends in the hour
            (("02:59:50", "02:00:00", "02:00:10"), "00:59 01:00 01:00"),
            (("01:00", "02:00", "02:20", "02:40", "02:00", "02:20", "02:40"),
             "23:00 00:00 00:20 00:40 01:00 01:20 01:40"),
        ):  # fmt: skip
            self.assertEqual(times(table(*clocks)), wanted.split(), clocks)

    def test_newest_rows_may_be_first(self):
        for clocks, wanted in (
            (("03:00", "02:30", "02:00", "02:30", "02:00", "01:30"), "02:00 01:30 01:00 00:30 00:00 23:30"),
            (("03:30", "02:30", "02:30", "01:30"), "02:30 01:30 00:30 23:30"),
            (("02:40", "02:10", "02:40", "02:10", "01:40"), "01:40 01:10 00:40 00:10 23:40"),
        ):
            self.assertEqual(times(table(*clocks)), wanted.split(), clocks)

    def test_additional_hour_is_in_the_largest_interval(self):
        for clocks, wanted in (
            (("02:40", "02:50", "03:00", "03:10"), "01:40 01:50 02:00 02:10"),  # begins in the second hour
            (("01:40", "01:50", "02:45", "02:55", "03:05"), "23:40 23:50 01:45 01:55 02:05"),  # the logger was off
            (("01:40", "01:50", "02:00", "02:10", "03:30", "03:40"), "23:40 23:50 00:00 00:10 02:30 02:40"),
            (("01:50", "02:00", "02:10"), "23:50 00:00 00:10"),  # ends in the first hour
            (("02:10", "02:20"), "00:10 00:20"),
        ):
            self.assertEqual(times(table(*clocks)), wanted.split(), clocks)

    def test_a_correction_of_the_clock_is_no_second_hour(self):
        clocks = [f"02:{minute:02}:00" for minute in range(60)]
        clocks[30] = "02:28:59"  # one second before the row above
        found = times(table("01:59:00", *clocks, "03:00:00"))
        self.assertEqual((found[1], found[31], found[60]), ("00:00", "00:28", "00:59"))

    def test_series_keep_their_own_order(self):
        clocks = ("01:30", "02:00", "02:30", "02:00", "02:30", "03:00")
        long = "time,node,sensor,value,unit\n" + "".join(
            f"2023-10-29 {clock}:0{k},{node},{sensor},1,\n"
            for clock in clocks for k, (node, sensor) in enumerate((("a", "t"), ("a", "u"), ("b", "t")))
        )  # fmt: skip
        wide = "time,node,t\n" + "".join(
            f"2023-10-29 {clock}:0{k},{n},1\n" for clock in clocks for k, n in enumerate("ab")
        )
        for text, many in ((long, 3), (wide, 2)):
            found = sorted(time for _, time, _ in rows_of(text, zone=BERLIN))
            self.assertEqual(
                [one[11:16] for one in found[::many]], ["23:30", "00:00", "00:30", "01:00", "01:30", "02:00"]
            )

    def test_every_interval_and_start_is_read_back(self):
        """Tables in local time, from times in UTC around the change, give these times again."""
        chance = random.Random(3)
        end_ms = 1_698_541_200_000  # 01:00 UTC
        for zone in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe"):
            found = Zone(zone)
            (change,) = [
                one for one in found.transitions(end_ms - 300 * 24 * HOUR_MS, end_ms + 60 * 24 * HOUR_MS)
                if one.after_s < one.before_s
            ]  # fmt: skip
            for every_s in (120, 600, 900, 1800):
                start_ms = change.utc_s * 1000 - chance.randrange(4 * 3600, 5 * 3600) // every_s * every_s * 1000
                wanted = [start_ms + k * every_s * 1000 for k in range(7 * 3600 // every_s)]
                walls = [ms + (change.before_s if ms < change.utc_s * 1000 else change.after_s) * 1000 for ms in wanted]
                for order in (1, -1) if every_s >= 600 else (1,):
                    text = "time,t\n" + "".join(f"{utc(ms)[:-1]},1\n" for ms in walls[::order])
                    got = [time for _, time, _ in rows_of(text, zone=found)]
                    self.assertEqual(got, [utc(ms) for ms in wanted[::order]], (zone, every_s, order))

    def test_rows_of_a_database_are_read_in_their_order(self):
        clock = LocalTimes(ImportOptions(zone=BERLIN))
        found = [clock.read(f"2023-10-29 {one}", "a") for one in ("01:30", "02:00", "02:30", "02:00", "02:30", "03:00")]
        self.assertEqual([utc(ms)[11:16] for ms in found], ["23:30", "00:00", "00:30", "01:00", "01:30", "02:00"])
        self.assertEqual(clock.read(1_698_541_200, "a"), 1_698_541_200_000)


class Zones(unittest.TestCase):
    def test_times_that_do_not_exist_are_errors(self):
        text = table("01:30", "02:30", "03:30", date="2023-03-26")
        self.assertEqual(
            faults_of(text, zone=BERLIN),
            "line 3: 2023-03-26 02:30 does not exist in the time zone Europe/Berlin: clocks were set forward then. "
            "If the"
            " clock of the logger was not, use --timezone +01:00",
        )
        self.assertEqual(times(text, zone=Zone("+01:00")), ["00:30", "01:30", "02:30"])
        self.assertEqual(times(text, skip_bad=True), ["00:30", "01:30"])

    def test_zones_have_names_or_offsets(self):
        for name, wanted in (
            ("UTC", "12:00"), ("Europe/Berlin", "10:00"), ("+05:30", "06:30"), ("-0430", "16:30"), ("UTC+2", "10:00"),
            ("America/New_York", "16:00"),
        ):  # fmt: skip
            self.assertEqual(times(table("12:00", date="2023-07-01"), zone=Zone(name)), [wanted], name)
        for name in ("Europe/Nowhere", "+99:00", "../etc/passwd", "x" * 500):
            with self.assertRaisesRegex(BadZone, "there is no time zone"):
                Zone(name)

    def test_zone_in_the_heading_is_used(self):
        for heading, wanted in (
            ("Time (UTC)", "12:00"), ("timestamp_utc", "12:00"), ("Date Time, GMT-05:00", "17:00"), ("time", "10:00"),
            ("Zeit [GMT+1]", "11:00"),
        ):  # fmt: skip
            text = f'"{heading}",t\n2023-07-01 12:00,1\n'
            self.assertEqual(times(text, zone=Zone()) if heading != "time" else times(text), [wanted], heading)

    def test_order_of_dates_is_decided_by_the_whole_file(self):
        rows = "".join(f"{1 + k // 192:02}/06/2023 {k // 8 % 24:02}:{k % 8 * 7:02},{k}\n" for k in range(2400))
        found = rows_of("date,t\n" + rows)
        self.assertEqual((found[0][1], found[-1][1]), ("2023-06-01T00:00:00Z", "2023-06-13T11:49:00Z"))
        self.assertEqual(inspected("date,t\n" + rows).plan.order, "dmy")
        contradiction = faults_of("date,t\n" + rows + "06/29/2023 00:00,1\n")
        self.assertIn("the month in '06/29/2023 00:00' (line 2402)", contradiction)
        self.assertIn("line 2: '05/06/2023' may have", faults_of("date,t\n05/06/2023,1\n"))
        self.assertEqual(rows_of("date,t\n05/06/2023,1\n", dates="mdy")[0][1], "2023-05-06T00:00:00Z")

    def test_zone_finds_its_transitions(self):
        low_ms = 1_672_531_200_000  # 2023
        found = BERLIN.transitions(low_ms, low_ms + 365 * 24 * HOUR_MS)
        self.assertEqual([utc(one.utc_s * 1000) for one in found], ["2023-03-26T01:00:00Z", "2023-10-29T01:00:00Z"])
        self.assertEqual(Zone("UTC").transitions(0, 1 << 50), [])
        with self.assertRaises(RowError):
            BERLIN.utc_ms([found[0].start_ms], lambda index, transition: False)


if __name__ == "__main__":
    unittest.main()
