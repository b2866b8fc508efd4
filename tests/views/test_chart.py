"""Charts: round times and numbers at the axes, gaps in the lines, small files, and valid queries."""

import json
import math
import re
import time
import unittest
import xml.etree.ElementTree as ET
from itertools import pairwise
from types import SimpleNamespace

from pigeonpost.charts.axes import LARGE, SMALL, WIDE, _y_range, ticks
from pigeonpost.charts.svg import MOST_SERIES, STYLE, Series, draw, fitted, label
from pigeonpost.core.clock import FakeClock, parse_rfc3339
from pigeonpost.http.message import HTTPError, Request
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.contract import Store
from pigeonpost.storage.models import Bucket, EpochCommit, HighWaterMark, LateRange
from pigeonpost.views.chart import Charts, plain_query
from pigeonpost.views.context import RequestContext
from protocol import Sample
from tests.page_support import set_zone
from tests.support import WALL_MS

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
SVG = "{http://www.w3.org/2000/svg}"


def column(place, low, high=None, mean=None, values=1):
    high = low if high is None else high
    return Bucket(place, values, low, high, (low + high) / 2 if mean is None else mean)


def series(columns, frame=WIDE, span_ms=DAY_S * 1000, every_ms=None, late=(), **more):
    about = {"node": "basement", "sensor": "temperature", "unit": "°C", "colour": 0}
    return Series(
        *(about | more).values(), columns, frame.columns, WALL_MS - span_ms, WALL_MS, every_ms, late
    )  # fmt: skip


def drawn(*args, frame=WIDE, **more):
    return ET.fromstring(draw([series(*args, frame=frame, **more)], frame, WALL_MS))


def texts(svg):
    return [element.text for element in svg.iter(f"{SVG}text")]


def path(svg, kind):
    found = [element.get("d") for element in svg.iter(f"{SVG}path") if element.get("class") == kind]
    return found[0] if found else ""


def points(drawing):
    """Return (letter, x, y) for each step (M, L, l or h) of a path."""
    x = y = 0.0
    found = []
    for letter, text in re.findall(r"([MLlhz])([^MLlhz]*)", drawing):
        numbers = [float(number) for number in re.findall(r"-?[0-9.]+", text)]
        if letter in "ML":
            x, y = numbers
        elif letter == "l":
            x, y = x + numbers[0], y + numbers[1]
        elif letter == "h":
            x += numbers[0]
        found.append((letter, x, y))
    return found


class TimeTicks(unittest.TestCase):
    def at(self, zone, begin, hours, most=8):
        set_zone(self, zone)
        from_s = parse_rfc3339(begin) // 1000
        found = ticks(from_s, from_s + int(hours * HOUR_S), most)
        for time_s, _ in found:
            self.assertTrue(from_s <= time_s <= from_s + hours * HOUR_S)
        self.assertLessEqual(len(found), most + 1)
        return [label for _, label in found]

    def test_ticks_have_round_times(self):
        for hours, labels in (
            (1 / 240, ["12:00", "12:00:05", "12:00:10", "12:00:15"]),
            (10 / 60, ["12:00", "12:02", "12:04", "12:06", "12:08", "12:10"]),
            (1, ["12:00", "12:10", "12:20", "12:30", "12:40", "12:50", "13:00"]),
            (6, ["12:00", "13:00", "14:00", "15:00", "16:00", "17:00", "18:00"]),
            (24, ["12:00", "15:00", "18:00", "21:00", "21 Nov", "03:00", "06:00", "09:00", "12:00"]),
            (48, ["12:00", "18:00", "21 Nov", "06:00", "12:00", "18:00", "22 Nov", "06:00", "12:00"]),
            (168, ["21 Nov", "22 Nov", "23 Nov", "24 Nov", "25 Nov", "26 Nov", "27 Nov"]),
            (30 * 24, ["22 Nov", "29 Nov", "6 Dec", "13 Dec", "20 Dec"]),
        ):
            self.assertEqual(self.at("UTC", "2026-11-20T12:00:00Z", hours), labels, hours)

    def test_ticks_skip_the_hour_that_the_change_to_summer_time_skips(self):
        self.assertEqual(
            self.at("Europe/Berlin", "2026-03-28T23:00:00Z", 5), ["29 Mar", "01:00", "03:00", "04:00", "05:00", "06:00"]
        )

    def test_ticks_repeat_the_hour_that_the_change_from_summer_time_repeats(self):
        self.assertEqual(
            self.at("Europe/Berlin", "2026-10-24T22:00:00Z", 5),
            ["25 Oct", "01:00", "02:00 CEST", "02:00 CET", "03:00", "04:00"],
        )

    def test_ticks_every_12_hours_stay_at_noon_after_a_clock_change(self):
        self.assertEqual(
            self.at("Europe/Berlin", "2026-03-28T11:00:00Z", 36, 4), ["12:00", "29 Mar", "12:00", "30 Mar"]
        )

    def test_day_ticks_stay_at_midnight_after_a_clock_change(self):
        set_zone(self, "Europe/Berlin")
        for begin in ("2026-03-25T11:00:00Z", "2026-10-21T11:00:00Z"):
            from_s = parse_rfc3339(begin) // 1000
            found = ticks(from_s, from_s + 7 * DAY_S, 8)
            self.assertEqual(len(found), 7)
            for time_s, _ in found:
                self.assertEqual(time.localtime(time_s)[3:6], (0, 0, 0))

    def test_hour_ticks_are_round_in_a_zone_with_a_45_minute_offset(self):
        self.assertEqual(
            self.at("Asia/Kathmandu", "2026-11-20T15:20:00Z", 6, 7),
            ["22:00", "23:00", "21 Nov", "01:00", "02:00", "03:00"],
        )

    def test_ticks_follow_a_clock_change_of_half_an_hour(self):
        """On Lord Howe Island, 02:00 (UTC+10:30) becomes 02:30 (UTC+11:00)."""
        self.assertEqual(
            self.at("Australia/Lord_Howe", "2026-10-03T14:30:00Z", 3),
            ["01:00", "01:30", "02:30", "03:00", "03:30", "04:00", "04:30"],
        )

    def test_long_ranges_have_ticks_at_months_and_years(self):
        self.assertEqual(
            self.at("Europe/Berlin", "2026-01-15T12:00:00Z", 24 * 200, 8),
            ["Feb 2026", "Mar 2026", "Apr 2026", "May 2026", "Jun 2026", "Jul 2026", "Aug 2026"],
        )
        self.assertEqual(
            self.at("Europe/Berlin", "2025-11-20T12:00:00Z", 24 * 365, 5),
            ["Jan 2026", "Apr 2026", "Jul 2026", "Oct 2026"],
        )
        self.assertEqual(
            self.at("Asia/Kathmandu", "2021-11-20T12:00:00Z", 24 * 365 * 5, 8), ["2022", "2023", "2024", "2025", "2026"]
        )

    def test_number_of_ticks_never_exceeds_the_limit_by_more_than_two(self):
        set_zone(self, "Europe/Berlin")
        for span_s in (
            1, 59, 600, 3601, 40_000, DAY_S, 8 * DAY_S, 40 * DAY_S, 92 * DAY_S, 366 * DAY_S, 1900 * DAY_S, 4000 * DAY_S
        ):  # fmt: skip
            for most in (3, 4, 8):
                for begin in (1_774_700_000, 1_792_800_123, 1_795_188_970):
                    found = ticks(begin, begin + span_s, most)
                    self.assertLessEqual(len(found), most + 2, (span_s, most))  # a day of 25 hours can have one more
                    self.assertEqual(found, sorted(found))


class ValueAxis(unittest.TestCase):
    def range(self, *values):
        return tuple(round(number, 9) for number in _y_range([column(k, value) for k, value in enumerate(values)]))

    def test_value_axis_has_round_ends(self):
        for values, expected in (
            ((20.1, 23.9), (20, 24, 1)),
            ((20.0, 24.0), (20, 24, 1)),
            ((0, 1023), (0, 1500, 500)),
            ((-7.3, 2.2), (-10, 5, 5)),
            ((0.001, 0.0042), (0.001, 0.005, 0.001)),
            ((698, 722), (690, 730, 10)),
        ):
            self.assertEqual(self.range(*values), expected, values)

    def test_constant_values_have_an_axis(self):
        for value in (0, 21.5, -40, 1e-9, 123456789, 80_564):
            low, high, step = _y_range([column(0, value)])
            self.assertTrue(low <= value <= high and low < high and step > 0, value)

    def test_constant_value_is_in_the_middle_of_its_axis_unless_it_is_zero(self):
        self.assertEqual(self.range(24_400, 24_400), (24_200, 24_600, 200))
        self.assertEqual(self.range(-5, -5)[0] + self.range(-5, -5)[1], -10)
        self.assertEqual(self.range(0, 0)[0], 0)

    def test_axis_without_values_is_zero_to_one(self):
        self.assertEqual(_y_range([])[:2], (0.0, 1.0))

    def test_extreme_values_are_drawn_without_nan_or_infinity(self):
        extremes = (0, -0.0, 1e-300, 1e300, -1e300, 2**63 - 1, 1e16, 1e16 + 2, 0.1 + 0.2, 0.3)
        for low in extremes:
            for high in extremes:
                svg = drawn([column(0, min(low, high), max(low, high)), column(1, low), column(2, high)])
                self.assertNotRegex(ET.tostring(svg, "unicode"), r"(?i)\b(nan|inf)\b", (low, high))

    def test_labels_that_are_wider_than_their_space_are_compressed(self):
        for low, high, is_fitted in (
            (79_130.0, 79_131.0, True), (1_234_567.0, 1_234_568.0, True), (100_000.0, 100_500.0, False),
            (-40.0, 20.0, False), (-79_131.0, -79_130.0, True),
        ):  # fmt: skip
            svg = drawn([column(0, low), column(1, high)])
            labels = [one for one in svg.iter(f"{SVG}text") if one.get("text-anchor") == "end" and one.get("x") == "50"]
            self.assertEqual({one.get("textLength") for one in labels[:-1]}, {"50"} if is_fitted else {None}, low)

    def test_axis_labels_have_the_precision_of_their_step(self):
        def labels(*values):
            return [text for text in texts(drawn([column(k, v) for k, v in enumerate(values)])) if text[-1].isdigit()]

        self.assertIn("20.5", labels(20, 21.9))
        self.assertIn("−10", labels(-12, 22))
        self.assertIn("80,000", labels(79_000, 81_000))
        self.assertIn("0.002", labels(0.001, 0.0042))


class Lines(unittest.TestCase):
    def test_values_without_a_gap_are_one_line(self):
        svg = drawn([column(k, 20 + k % 5) for k in range(WIDE.columns)])
        self.assertEqual(path(svg, "mean").count("M"), 1)

    def test_gap_in_the_values_interrupts_line_and_band(self):
        columns = [column(k, 20 + k % 5, 26) for k in range(100) if not 40 <= k < 60]
        svg = drawn(columns)
        line = points(path(svg, "mean"))
        self.assertEqual([letter for letter, _, _ in line].count("M"), 2)
        self.assertEqual(path(svg, "band").count("M"), 2)
        between = [x for letter, x, _ in line if WIDE.left + 81 < x < WIDE.left + 119]
        self.assertEqual(between, [])
        self.assertIn("with 1 gap.", svg.find(f"{SVG}desc").text)

    def test_columns_without_samples_between_rare_samples_are_not_a_gap(self):
        """The sensor is read every ten minutes, and a column of the chart is four minutes wide."""
        columns = [column(k, 20) for k in range(0, WIDE.columns, 3)]
        svg = drawn(columns, every_ms=600_000)
        self.assertEqual(path(svg, "mean").count("M"), 1)
        self.assertNotIn("gap", svg.find(f"{SVG}desc").text)
        svg = drawn(columns)  # also if the interval is unknown
        self.assertEqual(path(svg, "mean").count("M"), 1)

    def test_three_missing_samples_are_a_gap_but_one_is_not(self):
        wide_ms = DAY_S * 1000 // WIDE.columns
        for missing, runs in ((1, 1), (3, 2)):
            columns = [column(k, 20) for k in range(100) if not 50 <= k < 50 + missing]
            self.assertEqual(path(drawn(columns, every_ms=wide_ms), "mean").count("M"), runs, missing)

    def test_single_sample_is_drawn_as_a_dot(self):
        drawing = path(drawn([column(50, 20)]), "mean")
        self.assertRegex(drawing, r"^M\d+ [\d.]+h\.1$")

    def test_line_passes_through_the_values(self):
        svg = drawn([column(0, 20.0), column(1, 24.0), column(2, 22.0)])
        (_, x0, y0), (_, x1, y1), (_, x2, y2) = points(path(svg, "mean"))
        bottom, height = WIDE.height - WIDE.bottom, WIDE.height - WIDE.bottom - WIDE.top
        self.assertEqual((x0, x1, x2), (WIDE.left + 1, WIDE.left + 3, WIDE.left + 5))
        self.assertAlmostEqual(y0, bottom, 1)
        self.assertAlmostEqual(y1, WIDE.top, 1)
        self.assertAlmostEqual(y2, bottom - height / 2, 1)

    def test_rounding_errors_do_not_accumulate_along_the_line(self):
        columns = [column(k, 20 + k * 0.0137) for k in range(WIDE.columns)]
        *_, (_, _, y) = points(path(drawn(columns), "mean"))
        low, high, _ = _y_range(columns)
        bottom = WIDE.height - WIDE.bottom
        wanted = bottom - (columns[-1].mean - low) / (high - low) * (bottom - WIDE.top)
        self.assertAlmostEqual(y, wanted, delta=0.06)

    def test_band_extends_from_the_lowest_to_the_highest_value(self):
        svg = drawn([column(0, 20.0, 24.0), column(1, 21.0, 23.0)])
        ys = [y for _, _, y in points(path(svg, "band"))]
        self.assertAlmostEqual(min(ys), WIDE.top, 1)
        self.assertAlmostEqual(max(ys), WIDE.height - WIDE.bottom, 1)

    def test_band_is_missing_if_lowest_and_highest_value_are_equal(self):
        self.assertEqual(path(drawn([column(0, 20.0), column(1, 21.0)]), "band"), "")

    def test_chart_without_samples_states_that_nothing_is_stored(self):
        set_zone(self, "UTC")
        svg = drawn([])
        self.assertIn("no data", texts(svg))
        self.assertEqual(
            (path(svg, "mean"), svg.find(f"{SVG}desc").text),
            ("", "No values are stored for this time range. Time zone: UTC."),
        )


class CompleteChart(unittest.TestCase):
    def setUp(self):
        set_zone(self, "UTC")

    def test_chart_of_a_full_day_is_smaller_than_20_kb(self):
        """The values change as much as possible from column to column."""
        for frame in (WIDE, SMALL):
            columns = [column(k, (k * 7919) % 1000, (k * 7919) % 1000 + 99.5, values=300) for k in range(frame.columns)]
            text = draw([series(columns, frame)], frame, WALL_MS)
            self.assertLess(len(text.encode()), 20_000)

    def test_title_and_description_contain_the_values_for_screen_readers(self):
        svg = drawn([column(0, 20.0, 22.0, 21.0, values=3), column(1, 24.0)])
        self.assertEqual(svg.get("role"), "img")
        self.assertEqual(svg.find(f"{SVG}title").text, "temperature of basement, 19 Nov 15:36 to 15:36")
        self.assertEqual(svg.find(f"{SVG}desc").text, "From 20 to 24, mean 21.75 °C; 4 values. Time zone: UTC.")

    def test_names_and_units_are_escaped(self):
        text = draw([series([], sensor="t", unit="<script>&\"'\x01", node="<b>")], WIDE, WALL_MS)
        ET.fromstring(text)
        self.assertNotIn("<script", text)
        self.assertNotIn("<b>", text)

    def test_long_node_name_is_shortened_so_that_it_does_not_cover_the_sensor_name(self):
        long = "a" * 63
        for size, length in ((SMALL, 44), (LARGE, 63)):
            svg = draw([series([], frame=size, node=long)], size, WALL_MS)
            shown = re.search(r'text-anchor="end">(a+…?)</text>', svg)[1]
            self.assertEqual(len(shown), length)
            self.assertIn(f"of {long}", svg)  # the description contains the complete name

    def test_all_texts_and_points_are_inside_the_image(self):
        for frame in (WIDE, SMALL):
            for span_ms in (600_000, 3_600_000, 86_400_000, 7 * 86_400_000):
                svg = drawn([column(k, k) for k in range(frame.columns)], frame=frame, span_ms=span_ms)
                for element in svg.iter(f"{SVG}text"):
                    self.assertTrue(0 <= float(element.get("x")) <= frame.width)
                    self.assertTrue(0 <= float(element.get("y")) <= frame.height)
                for _, x, y in points(path(svg, "mean")):
                    self.assertTrue(frame.left <= x <= frame.width - frame.right + 1, x)
                    self.assertTrue(frame.top - 1 <= y <= frame.height - frame.bottom + 1, y)


SUN, SKY = ("#faf9f6", "#ffffff"), ("#16181a", "#1e2124")  # background colours of the pages, light and dark


def luminance(colour):
    """Return the relative luminance of a colour (WCAG 2.2)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


class SeveralSeries(unittest.TestCase):
    def setUp(self):
        set_zone(self, "UTC")

    def many(self, count, frame=LARGE, units=("°C",), columns=None, **more):
        frame = fitted(frame, count, len(set(units)))
        made = [
            series(
                columns or [column(k, 10 * one + k % 5, 10 * one + k % 5 + 2) for k in range(frame.columns)],
                frame, sensor=f"sensor_{one}", unit=units[one % len(units)], colour=one, **more,
            )
            for one in range(count)
        ]  # fmt: skip
        return frame, made, ET.fromstring(draw(made, frame, WALL_MS))

    def test_each_series_has_a_colour_and_its_name_at_the_end_of_its_line(self):
        frame, made, svg = self.many(4)
        groups = svg.findall(f"{SVG}g")
        self.assertEqual([group.get("class") for group in groups], ["s0", "s1", "s2", "s3"])
        for group, one in zip(groups, made):
            (name,) = group.findall(f"{SVG}text")
            self.assertEqual(name.text, one.sensor.replace("_", " "))
            self.assertGreater(float(name.get("x")), frame.left + frame.plot)
            end = points(group.findall(f"{SVG}path")[0].get("d"))[-1]
            self.assertAlmostEqual(float(name.get("y")) - 4, end[2], delta=15)

    def test_names_of_series_do_not_overlap(self):
        _, _, svg = self.many(6, columns=[column(k, 20.0) for k in range(100)])
        places = sorted(float(group.find(f"{SVG}text").get("y")) for group in svg.findall(f"{SVG}g"))
        for before, after in pairwise(places):
            self.assertGreaterEqual(after - before, 13)
        self.assertTrue(places[0] > 0 and places[-1] < LARGE.height)

    def test_two_units_have_two_axes(self):
        frame, _, svg = self.many(2, units=("°C", "%"))
        heads = {element.text: float(element.get("x")) for element in svg.iter(f"{SVG}text")}
        self.assertEqual(heads["°C"], 0)
        self.assertGreater(heads["%"], frame.left + frame.plot)
        low = [points(group.findall(f"{SVG}path")[1].get("d"))[0][2] for group in svg.findall(f"{SVG}g")]
        self.assertAlmostEqual(low[0], low[1], delta=40)  # 0 to 6 and 10 to 16: each series fills its own axis
        one_axis = self.many(2)[2]
        low = [points(group.findall(f"{SVG}path")[1].get("d"))[0][2] for group in one_axis.findall(f"{SVG}g")]
        self.assertGreater(low[0] - low[1], 100)

    def test_label_contains_only_what_distinguishes_the_series(self):
        one, two = series([]), series([], node="attic")
        self.assertEqual(label(one, [one, two], False), "basement")
        self.assertEqual(label(one, [one, series([], sensor="light")], True), "temperature, °C")
        self.assertEqual(label(one, [one, two, series([], sensor="light")], False), "temperature basement")

    def test_long_name_is_shortened_in_the_image_but_complete_in_its_description(self):
        made = [series([column(0, 1)], node="x" * 63), series([column(0, 1)], sensor="light")]
        svg = ET.fromstring(draw(made, fitted(SMALL, 2, 1), WALL_MS))
        self.assertTrue(all(len(group.find(f"{SVG}text").text) < 15 for group in svg.findall(f"{SVG}g")))
        self.assertIn("x" * 63, svg.find(f"{SVG}desc").text)
        self.assertTrue(svg.find(f"{SVG}title").text.startswith(f"temperature of {'x' * 63} and light of basement, "))

    def test_chart_of_several_series_is_smaller_than_20_kb(self):
        """The values change as much as possible from column to column."""
        for frame in (SMALL, WIDE, LARGE):
            for count in range(1, 7):
                for units in (("°C",), ("°C", "%")):
                    fit = fitted(frame, count, min(count, len(units)))
                    columns = [
                        column(k, (k * 7919) % 1000, (k * 7919) % 1000 + 99.5, values=300) for k in range(fit.columns)
                    ]
                    made = [
                        series(columns, fit, unit=units[k % len(units)], colour=k, sensor=f"{k}{'s' * 30}")
                        for k in range(count)
                    ]
                    self.assertLess(len(draw(made, fit, WALL_MS).encode()), 20_000, (fit, count))

    def test_all_texts_of_several_series_are_inside_the_image(self):
        for frame in (SMALL, WIDE, LARGE):
            for units in (("°C",), ("°C", "%")):
                fit, _, svg = self.many(6, frame, units)
                for element in svg.iter(f"{SVG}text"):
                    self.assertTrue(0 <= float(element.get("x")) <= fit.width)
                    self.assertTrue(0 <= float(element.get("y")) <= fit.height)

    def test_line_colours_have_a_contrast_of_three_to_one_on_all_backgrounds(self):
        light, dark = STYLE.split("@media")
        for style, grounds in ((light, SUN), (dark.split("text{")[0], SKY)):
            colours = re.findall(r"--line:(#[0-9a-f]{6})", style)
            self.assertEqual(len(set(colours)), MOST_SERIES)
            for colour in colours:
                for ground in grounds:
                    high, low = sorted((luminance(colour), luminance(ground)), reverse=True)
                    self.assertGreaterEqual((high + 0.05) / (low + 0.05), 3, (colour, ground))

    def test_late_and_unsynchronised_ranges_are_marked_and_described(self):
        hour = 3_600_000
        late = [
            LateRange(WALL_MS - 3 * hour, WALL_MS - 2 * hour, True),
            LateRange(WALL_MS - 9 * 24 * hour, WALL_MS - 23 * hour, False),
        ]
        svg = drawn([column(0, 1)], late=late)
        marks = re.findall(r"M([\d.]+) (\d+)h([\d.]+)", path(svg, "late"))
        wide = WIDE.plot / 24
        self.assertEqual(len(marks), 2)
        for (x, y, length), (begin, hours) in zip(marks, ((0, 1), (21, 1))):
            self.assertAlmostEqual(float(x), WIDE.left + begin * wide, delta=0.2)
            self.assertAlmostEqual(float(length), hours * wide, delta=0.2)
            self.assertLess(int(y), WIDE.height - WIDE.bottom)
        said = svg.find(f"{SVG}desc").text
        self.assertIn("Values from 12:36 to 13:36 arrived late.", said)
        self.assertIn("Values from 11 Nov 15:36 to 19 Nov 16:36 have unreliable times: the clock was not set.", said)
        self.assertEqual(path(drawn([column(0, 1)]), "late"), "")

    def test_description_names_three_of_many_late_ranges(self):
        set_zone(self, "UTC")
        late = [LateRange(WALL_MS - 1000 * k, WALL_MS - 1000 * k, True) for k in range(10, 0, -1)]
        said = drawn([column(0, 1)], late=late).find(f"{SVG}desc").text
        self.assertRegex(said, r"(to \d\d:\d\d.*){3} and 7 more ranges arrived late\. Time zone: UTC\.$")

    def test_chart_of_several_empty_series_states_that_nothing_is_stored(self):
        frame = fitted(LARGE, 2, 1)
        svg = ET.fromstring(draw([series([], frame), series([], frame, sensor="light")], frame, WALL_MS))
        self.assertIn("no data", texts(svg))


class CountingStore(Store):
    """A store that has a value in every column and records its calls."""

    def __init__(self):
        self.asked = []

    def downsample(self, *asked):
        self.asked.append(asked)
        return [column(k, k % 7) for k in range(asked[-1])]


class ChartRequests(unittest.TestCase):
    def setUp(self):
        set_zone(self, "UTC")
        self.store, self.clock = CountingStore(), FakeClock()
        self.charts = Charts(self.clock)
        sensor = SimpleNamespace(name="temperature", unit="°C", number=5, label="")
        others = [
            SimpleNamespace(name=f"s{k}", unit=unit, number=k, label="") for k, unit in enumerate(("°C", "%", "lux"))
        ]
        view = SimpleNamespace(sensors=[sensor, *others], every_s=10.0)
        self.snapshot = SimpleNamespace(node={"basement": view}.get)

    def ask(self, query="node=basement&sensor=temperature", how=None):
        request = Request("GET", f"/chart.svg?{query}", "1.1", {})
        ingestor = SimpleNamespace(names=SimpleNamespace(current=str))
        house = SimpleNamespace(clock=self.clock, store=self.store, ingestor=ingestor)
        return (how or self.charts.answer)(RequestContext(house, request, (), lambda: self.snapshot))

    def assert_refused(self, query, status, code):
        with self.assertRaises(HTTPError) as caught:
            self.ask(query)
        self.assertEqual((caught.exception.status, caught.exception.code), (status, code), query)

    def test_default_chart_shows_the_last_24_hours(self):
        answer = self.ask()
        self.assertEqual(answer.kind, "image/svg+xml")
        svg = ET.fromstring(answer.body)
        self.assertEqual(svg.get("viewBox"), "0 0 720 210")
        self.assertEqual(svg.get("class"), "s1")  # the colours repeat after four sensors
        self.assertIn("temperature, °C", texts(svg))
        ((node, sensor, from_ms, to_ms, count),) = self.store.asked
        self.assertEqual((node, sensor, count), ("basement", "temperature", WIDE.columns))
        self.assertTrue(to_ms - 300_000 < self.clock.wall_ms() <= to_ms)
        self.assertAlmostEqual(to_ms - from_ms, 86_400_000, delta=300_000)

    def test_content_security_policy_allows_the_style_by_its_hash_only(self):
        policy = self.ask().headers["Content-Security-Policy"]
        self.assertRegex(policy, r"style-src 'sha256-[A-Za-z0-9+/]{43}=';")
        self.assertNotIn("unsafe", policy)
        self.assertIn(STYLE, self.ask().body.decode())

    def test_time_range_and_size_can_be_selected(self):
        self.ask("node=basement&sensor=temperature&span=10m&size=small")
        _, _, from_ms, to_ms, count = self.store.asked[0]
        self.assertEqual(count, SMALL.columns)
        self.assertAlmostEqual(to_ms - from_ms, 600_000, delta=4000)
        self.ask("node=basement&sensor=temperature&from=2026-11-20T10:00:00Z&to=2026-11-20T12:00:00Z")
        from_ms, to_ms = parse_rfc3339("2026-11-20T10:00:00Z"), parse_rfc3339("2026-11-20T12:00:00Z")
        self.assertEqual(self.store.asked[1][2:4], (from_ms, to_ms))
        self.ask(f"node=basement&sensor=temperature&to={to_ms}&span=2h")
        self.assertEqual(self.store.asked[2][3], to_ms)

    def test_invalid_queries_are_rejected(self):
        for query, status, code in (
            ("", 404, "unknown-node"),
            ("node=basement", 404, "unknown-node"),
            ("node=attic&sensor=temperature", 404, "unknown-node"),
            ("sensor=temperature", 404, "unknown-node"),
            ("node=%3Cb%3E&sensor=temperature", 400, "name"),
            ("node=basement&sensor=Temperature", 400, "name"),
            ("node=basement&sensor=temperature&span=long", 400, "span"),
            ("node=basement&sensor=temperature&span=0", 400, "span"),
            ("node=basement&sensor=temperature&span=4393d", 400, "span"),
            ("node=basement&sensor=temperature&span=9999999999d", 400, "span"),
            ("node=basement&sensor=temperature&from=yesterday", 400, "time"),
            ("node=basement&sensor=temperature&from=2026-11-20", 400, "time"),
            ("node=basement&sensor=temperature&from=2000&to=1000", 400, "span"),
            ("node=basement&sensor=temperature&to=1000", 400, "span"),
            ("node=basement&sensor=temperature&from=0", 400, "span"),
            ("node=basement&sensor=temperature&from=0001-01-01T00:00:00Z&to=1000", 400, "span"),
            ("series=", 400, "series"),
            ("series=basement", 400, "series"),
            ("series=basement/", 400, "series"),
            ("series=basement/temperature,", 400, "series"),
            ("series=basement/temperature/x", 400, "series"),
            ("series=basement/Temperature", 400, "series"),
            ("series=%3Cb%3E/temperature", 400, "series"),
            ("series=attic/temperature", 404, "unknown-node"),
            ("series=" + ",".join(f"basement/t{k}" for k in range(7)), 400, "series"),
            ("series=basement/s0,basement/s1,basement/s2", 400, "units"),
        ):
            self.assert_refused(query, status, code)

    def test_missing_node_and_unknown_node_are_different_errors(self):
        for query, text in (
            ("node=basement", "Name a node and a sensor: series=NODE/SENSOR."),
            ("sensor=temperature", "Name a node and a sensor: series=NODE/SENSOR."),
            ("node=attic&sensor=temperature", "There is no node with that name."),
        ):
            with self.subTest(query), self.assertRaisesRegex(HTTPError, re.escape(text)):
                self.ask(query)

    def test_several_series_are_read_for_the_same_time_range(self):
        svg = ET.fromstring(self.ask("series=basement/s0,basement/temperature,basement/s1&size=large").body)
        self.assertEqual([group.get("class") for group in svg.findall(f"{SVG}g")], ["s0", "s1", "s2"])
        self.assertEqual(svg.get("viewBox"), "0 0 960 340")
        self.assertEqual([asked[:2] for asked in self.store.asked],
                         [("basement", "s0"), ("basement", "temperature"), ("basement", "s1")])  # fmt: skip
        self.assertEqual(len({asked[2:] for asked in self.store.asked}), 1)

    def test_duplicate_series_is_drawn_once(self):
        self.assertEqual(self.ask("series=basement/temperature,basement/temperature").body, self.ask().body)

    def test_late_samples_are_reported_in_image_and_json(self):
        epoch_commit = EpochCommit("basement", "0" * 16, "0" * 16, HighWaterMark(1, 1))
        epoch_commit.items = [SampleBatch.of([Sample(1, self.clock.wall_ms() - 7_200_000, 1, {}, {}, "")])]
        self.charts.late.on_commit([epoch_commit])
        self.assertIn("arrived late", self.ask().body.decode())
        (one,) = json.loads(self.ask("node=basement&sensor=temperature", self.charts.as_json).body)["series"]
        self.assertEqual(one["late"][0]["why"], "came late")

    def test_json_and_csv_contain_the_values_of_the_chart(self):
        query = "series=basement/s0,basement/temperature&from=2026-11-20T10:00:00Z&to=2026-11-20T12:00:00Z"
        told = json.loads(self.ask(query, self.charts.as_json).body)
        self.assertEqual((told["from"], told["to"]), ("2026-11-20T10:00:00.000Z", "2026-11-20T12:00:00.000Z"))
        self.assertEqual(told["times"][0], "2026-11-20T10:00:00.000Z")
        frame = fitted(WIDE, 2, 1)
        self.assertEqual(len(told["times"]), frame.columns)
        self.assertEqual(told["plot"], {"width": 720, "left": frame.left, "right": frame.left + frame.plot})
        self.assertEqual(told["series"][1]["columns"][8], {"place": 8, "count": 1, "low": 1, "high": 1, "mean": 1.0})
        head, first, *rest = self.ask(query, self.charts.as_csv).body.decode().splitlines()
        self.assertEqual(head, "time,node,sensor,count,low,high,mean")
        self.assertEqual(first, "2026-11-20T10:00:00.000Z,basement,s0,1,0,0,0.0")
        self.assertEqual(len(rest), 2 * frame.columns - 1)

    def test_overflowing_means_are_drawn_without_nan_or_infinity(self):
        """Sums of values near the largest float overflow; SQL returns infinity or NULL for them."""
        for mean in (math.inf, -math.inf, None, 0.0):
            self.clock.sleep(100)
            self.store.columns = lambda *asked, mean=mean: [Bucket(0, 2, -1.7e308, 1.7e308, mean), column(1, 1.7e308)]
            svg = self.ask().body.decode()
            ET.fromstring(svg)
            self.assertNotRegex(svg, r"(?i)\b(nan|inf)\b")
            json.loads(self.ask("node=basement&sensor=temperature", self.charts.as_json).body, parse_constant=self.fail)

    def test_saved_query_is_reduced_to_series_and_time_range(self):
        for text, plain in (
            ("series=a/t", "series=a/t&span=24h"),
            ("node=a&sensor=t&span=7d&size=small&x=y", "series=a/t&span=7d"),
            ("series=a/t,b/t&to=1000&span=1h", "series=a/t,b/t&to=1970-01-01T00:00:01.000Z&span=1h"),
            ("series=a/t&from=1000&span=1h", "series=a/t&from=1970-01-01T00:00:01.000Z"),
        ):
            self.assertEqual(plain_query(text), plain)
            self.assertEqual(plain_query(plain), plain)
        for text in (
            "",
            "series=",
            "span=1h",
            "series=a/t&span=x",
            "series=a/t&from=x",
            "series=<",
            "a=%zz",
            "a=1&a=2",
        ):
            with self.assertRaises(HTTPError):
                plain_query(text)

    def test_times_beyond_the_calendar_are_drawn(self):
        answer = self.ask("node=basement&sensor=temperature&from=999999000000000&to=999999999999999")
        ET.fromstring(answer.body)

    def test_range_of_one_millisecond_is_drawn(self):
        ET.fromstring(self.ask("node=basement&sensor=temperature&from=1000&to=1001").body)

    def test_chart_is_cached_for_a_minute(self):
        first = self.ask()
        self.clock.sleep(1)
        self.assertEqual(self.ask().body, first.body)
        self.assertEqual(len(self.store.asked), 1)
        self.clock.sleep(61)
        self.ask()
        self.assertEqual(len(self.store.asked), 2)

    def test_cache_holds_at_most_64_charts(self):
        for second in range(1, 101):
            self.ask(f"node=basement&sensor=temperature&from=0&to={second}000")
        self.assertLessEqual(len(self.charts._kept), 64)

    def test_third_simultaneous_request_is_rejected_as_busy(self):
        charts = self.charts
        self.assertTrue(charts._drawing.acquire(blocking=False) and charts._drawing.acquire(blocking=False))
        charts._drawing.acquire = lambda timeout: False  # as after the time limit of five seconds
        self.assert_refused("node=basement&sensor=temperature", 503, "busy")


if __name__ == "__main__":
    unittest.main()
