"""Tests of units in headings, and of conversions."""

import unittest

from pigeonpost.importing.options import BadOption, ImportOptions
from pigeonpost.importing.units import conversion, conversion_to_first, heading_unit, is_unit


class Headings(unittest.TestCase):
    def test_units_in_headings_are_recognised(self):
        for heading, found in (
            ("Temp (°C)", ("temp", "°C")), ("Barometer [hPa]", ("barometer", "hPa")), ("humidity %", ("humidity", "%")),
            ("temperature_C", ("temperature_c", "°C")), ("Temperature_Celsius", ("temperature_celsius", "°C")),
            ("T (F)", ("t", "F")), ("temp_f", ("temp_f", "°F")), ("Temperature °C", ("temperature", "°C")),
            ("Temp, °F (LGR S/N: 1)", ("temp", "°F")), ("channel_A", ("channel_a", "")), ("pressure_hpa",
             ("pressure_hpa", "hPa")),
            ("Temp (degC)", ("temp", "°C")), ("RH (%RH)", ("rh", "%")), ("light", ("light", "")), ("count [1/min]",
             ("count", "1/min")),
        ):  # fmt: skip
            self.assertEqual(heading_unit(heading), found, heading)

    def test_usual_units_are_known(self):
        for text, known in (("°C", True), ("Volts", True), ("%", True), ("Avg", False), ("", False), ("RN", False)):
            self.assertEqual(is_unit(text), known, text)


class Conversions(unittest.TestCase):
    def convert(self, value, unit, **options):
        found = conversion("t", unit, ImportOptions(**options))
        return found.apply(value), found.unit

    def test_values_are_converted_between_units_of_a_quantity(self):
        for value, unit, wanted, result in (
            (50, "°F", "°C", 10.0), (10, "°C", "°F", 50.0), (300, "K", "°C", 26.85), (29.92, "inHg", "hPa",
             1013.2075888),
            (36, "km/h", "m/s", 10.0), (1, "in", "mm", 25.4), (1500, "mV", "V", 1.5), (2, "kWh", "Wh", 2000.0),
            (101.3, "kPa", "hPa", 1013.0), (50, "F", "C", 10.0),
        ):  # fmt: skip
            self.assertEqual(self.convert(value, unit, units={"t": wanted}), (result, wanted), (unit, wanted))

    def test_factor_and_offset_replace_the_conversion_of_units(self):
        for value, unit, options, result in (
            (20812, "", {"scales": {"": 0.001}, "units": {"": "°C"}}, (20.812, "°C")),
            (50, "°F", {"scales": {"t": 2.0}, "units": {"t": "°C"}}, (100.0, "°C")),
            (5, "°C", {"offsets": {"t": -0.5}}, (4.5, "°C")),
            (5, "", {"scales": {"u": 2.0}}, (5, "")), (None, "", {"scales": {"": 2.0}}, (None, "")),
            (4, "", {"scales": {"": 2.0, "t": 3.0}, "offsets": {"": 1.0}}, (13.0, "")),
        ):  # fmt: skip
            self.assertEqual(self.convert(value, unit, **options), result)

    def test_unit_of_another_quantity_is_an_error_for_a_named_sensor_only(self):
        with self.assertRaisesRegex(
            BadOption, "t is in hPa, which cannot be converted to °C; add --scale and --offset"
        ):
            self.convert(1, "hPa", units={"t": "°C"})
        self.assertEqual(self.convert(1, "hPa", units={"": "°C"}), (1, "hPa"))
        self.assertEqual(self.convert(1, "", units={"": "°C"}), (1, "°C"))

    def test_values_in_another_unit_get_that_of_the_first_values(self):
        for unit, first, options, result in (
            ("°F", "°C", {}, (10.0, "°C")), ("°C", "°C", {}, (50, "°C")), ("Celsius", "°C", {}, (50, "°C")),
            ("hPa", "°C", {}, (50, "hPa")), ("°C", "", {}, (50, "°C")), ("", "", {}, (50, "")),
            ("°F", "°C", {"units": {"t": "°C"}}, (10.0, "°C")), ("°F", "°C", {"units": {"t": "°F"}}, (50, "°F")),
            ("°F", "°C", {"units": {"p": "Pa"}}, (10.0, "°C")), ("cm", "mm", {"units": {"": "°C"}}, (500.0, "mm")),
            ("°F", "°C", {"scales": {"t": 2.0}}, (100.0, "°F")),
        ):  # fmt: skip
            with self.subTest(unit, first=first, **options):
                found = conversion_to_first("t", unit, first, ImportOptions(**options))
                self.assertEqual((found.apply(50), found.unit), result)


if __name__ == "__main__":
    unittest.main()
