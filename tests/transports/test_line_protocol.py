"""InfluxDB's line protocol: what each line means, which lines are refused, and the names of the sensors."""

import time
import unittest

from pigeonpost.transports.line_protocol import (
    BadLine,
    Point,
    Series,
    read_lines,
    read_series,
    sensor_name,
    unique_name,
)
from protocol import SENSOR_NAME


def read(text, precision="ns"):
    return list(read_lines(text, precision))


def one(text, precision="ns"):
    """Return series, fields and time of the only line of `text`."""
    (point,) = read(text, precision)
    if isinstance(point, BadLine):
        raise AssertionError(point.why)
    return read_series(point.head), point.fields, point.time_ms


class Lines(unittest.TestCase):
    def test_line_has_measurement_tags_fields_and_time(self):
        text = "weather,location=us-midwest,host=pi temperature=82,humidity=7.1e1 1465839830100400200"
        series = Series("weather", (("host", "pi"), ("location", "us-midwest")))
        self.assertEqual(one(text), (series, {"temperature": 82.0, "humidity": 71.0}, 1465839830100))

    def test_tags_and_time_are_optional(self):
        self.assertEqual(one("m f=1"), (Series("m", ()), {"f": 1.0}, None))

    def test_types_of_fields_are_read(self):
        for text, value in (
            ("1", 1.0), ("-1.5", -1.5), ("+1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("1E-3", 0.001),
            ("7i", 7), ("-7i", -7), ("7u", 7), ("9223372036854775807i", 2**63 - 1), ("t", 1), ("T", 1), ("true", 1),
            ("True", 1), ("TRUE", 1), ("f", 0), ("F", 0), ("false", 0), ("False", 0), ("FALSE", 0),
        ):  # fmt: skip
            with self.subTest(text):
                found = one(f"m f={text}")[1]["f"]
                self.assertEqual((found, type(found)), (value, type(value)))

    def test_strings_are_left_out_with_everything_in_them(self):
        for string in ('""', '"a b,c=d"', r'"a \" b"', r'"\\"', '"two\nlines"', r'"C:\dir"', '"#"', '"é"'):
            with self.subTest(string):
                self.assertEqual(one(f"m a=1,s={string},b=2 5000000")[1:], ({"a": 1.0, "b": 2.0}, 5))
                self.assertEqual(one(f"m s={string}")[1:], ({}, None))

    def test_number_of_a_line_counts_line_feeds_in_strings(self):
        found = read('m s="a\nb\nc"\nx\n')
        self.assertEqual([point.line for point in found], [1, 4])

    def test_escapes_are_removed(self):
        series, fields, _ = one(r"my\ m\,x=y,tag\ key\,1\==a\ b\,c\=d,path=C:\dir\sub f\ 1\==3")
        self.assertEqual(series, Series("my m,x=y", (("path", r"C:\dir\sub"), ("tag key,1=", "a b,c=d"))))
        self.assertEqual(fields, {"f 1=": 3.0})

    def test_comments_empty_lines_and_carriage_returns_are_skipped(self):
        text = '# comment "with quote\n\n   \n m f=1 1\r\n#x\nm f=2 2\r\n\r\n'
        self.assertEqual([(point.line, point.fields["f"]) for point in read(text)], [(4, 1.0), (6, 2.0)])

    def test_times_have_the_precision_of_the_request(self):
        for precision, time_ms in (
            ("", 1), ("n", 1), ("ns", 1), ("u", 1_500), ("us", 1_500), ("ms", 1_500_000), ("s", 1_500_000_000),
            ("m", 90_000_000_000), ("h", 5_400_000_000_000),
        ):  # fmt: skip
            self.assertEqual(one("m f=1 1500000", precision)[2], time_ms)
        self.assertEqual(one("m f=1 -1500000")[2], -2)

    def test_invalid_lines_are_described_and_the_others_are_read(self):
        for text, why in (
            ("m", "field=value"), ("m f", "field=value"), ("m f=", "field=value"), ("m =1", "field=value"),
            ("m,t f=1", "measurement,tag"), ("m,t= f=1", "measurement,tag"), (",t=1 f=1", "measurement"),
            ("m f=1,", "field=value"),
            ("m f=1 now", "whole number as time"), ("m f=1 1.5", "whole number as time"), ("m f=1 1 1", "time"),
            ("m f=NaN", "NaN"), ("m f=inf", "inf"), ("m f=1e999", "1e999"), ("m f=0x10", "0x10"), ("m f=1_0", "1_0"),
            ("m f=9223372036854775808i", "64 bits"), ("m f=-1u", "-1u"), ("m f=1.5i", "1.5i"), ("m f=tRUE", "tRUE"),
            ('m f="open', "field=value"), ('m f=a"b"', "field=value"), ("m f=1,g", "field=value"), ("m f=٣", "٣"),
        ):  # fmt: skip
            with self.subTest(text):
                first, bad, last = read(f"a x=1 1\n{text}\nb x=2 2")
                self.assertIsInstance(bad, BadLine)
                self.assertEqual(bad.line, 2)
                self.assertIn(why, bad.why)
                self.assertIsInstance(first, Point)
                self.assertEqual(last[0], 3)

    def test_repeated_tag_is_refused(self):
        with self.assertRaisesRegex(ValueError, "tag occurs twice"):
            read_series("m,a=1,a=2")

    def test_time_to_parse_is_proportional_to_the_length(self):
        hostile = (
            '"', 'm f="\n', r'm f="\"' + "\n", "m,a=1" + ",a=1" * 50, "\\", "m f=1,\n", " ", "#", "m" + "\\ " * 50,
            "a=", 'm f="x', ",", "m f=" + "1" * 100, '\\"', 'a b\\="\n', "m f=1 \n",
        )  # fmt: skip
        for piece in hostile:
            with self.subTest(piece[:20]):
                text = piece * (200_000 // len(piece))
                began_s = time.process_time()
                for found in read_lines(text, "ns"):
                    self.assertIsInstance(found, Point | BadLine)
                self.assertLess(time.process_time() - began_s, 5.0)  # 0.3 s on an idle machine


class Names(unittest.TestCase):
    def name(self, head, field):
        return sensor_name(read_series(head), field)

    def test_name_consists_of_measurement_field_and_tags(self):
        for head, field, name in (
            ("temperature", "value", "temperature"), ("weather", "Wind Speed", "weather_wind_speed"),
            ("cpu,cpu=cpu-total", "usage_idle", "cpu_usage_idle_cpu_total"), ("m", "f", "m_f"),
            ("disk,path=/", "used", "disk_used"), ("°", "value", "n"), ("1w", "value", "n1w"),
            ("m,z=1,a=2", "f", "m_f_2_1"), ("m,device=x", "f", "m_f_x"),
        ):  # fmt: skip
            with self.subTest(head):
                self.assertEqual(self.name(head, field), name)

    def test_taken_or_long_name_gets_a_digest_that_never_changes(self):
        self.assertEqual(unique_name("short", "key", set()), "short")
        long = "a_very_long_measurement_with_a_field"
        found = unique_name(long, "key", set())
        self.assertEqual(found, unique_name(long, "key", set()))
        self.assertNotEqual(found, unique_name(long, "other key", set()))
        taken = unique_name("short", "key", {"short"})
        self.assertNotIn(unique_name("short", "key", {"short", taken}), {"short", taken})
        for name in (found, taken, unique_name("n", "k", {"n"})):
            self.assertTrue(SENSOR_NAME(name), name)


if __name__ == "__main__":
    unittest.main()
