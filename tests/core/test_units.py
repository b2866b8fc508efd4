"""Tests of unit conversion: known equalities, differences without offsets, and units that are never converted."""

import unittest

from pigeonpost.core.units import conversion, measured_units, shown_units

EQUAL = (
    (0, "°C", 32, "°F"), (100, "°C", 212, "°F"), (-40, "°F", -40, "°C"), (21.5, "°C", 70.7, "°F"),
    (20, "°C", 293.15, "K"), (32, "°F", 273.15, "K"),
    (1013.25, "hPa", 29.921, "inHg"), (1013.25, "hPa", 760, "mmHg"), (101_325, "Pa", 1013.25, "hPa"),
    (1, "bar", 14.504, "psi"), (100, "m", 328.084, "ft"), (25.4, "mm", 1, "in"), (1, "mi", 1.609344, "km"),
    (10, "m/s", 36, "km/h"), (60, "mph", 96.56064, "km/h"), (1, "kn", 1.852, "km/h"),
)  # fmt: skip


class Units(unittest.TestCase):
    def test_known_equalities_are_met(self):
        for value, unit, expected, shown in EQUAL:
            with self.subTest(f"{value} {unit}"):
                to = conversion(unit, {unit: shown})
                self.assertEqual(to.unit, shown)
                self.assertAlmostEqual(to.value(value), expected, delta=abs(expected) * 2e-5)

    def test_conversion_and_its_reverse_return_the_value(self):
        for _, unit, _, shown in EQUAL:
            if shown != "K":
                back = conversion(shown, {shown: unit})
                self.assertAlmostEqual(back.value(conversion(unit, {unit: shown}).value(17.25)), 17.25, places=9)

    def test_a_difference_has_no_offset(self):
        to = conversion("°C", {"°C": "°F"})
        self.assertEqual(to.difference(10), 18)
        self.assertEqual(conversion("°C", {"°C": "K"}).difference(10), 10)

    def test_rounding_errors_are_not_shown(self):
        to = conversion("°C", {"°C": "°F"})
        self.assertEqual((to.factor, to.offset), (1.8, 32.0))

    def test_values_are_not_converted_without_a_choice(self):
        for unit, choice in (("°C", {}), ("°C", {"hPa": "inHg"}), ("°C", {"°C": "°C"}), ("lx", {"lx": "°F"}), ("", {})):
            to = conversion(unit, choice)
            self.assertEqual((to.unit, to.changes), (unit, False))
            self.assertIs(type(to.value(512)), int)
            self.assertIs(type(to.difference(512)), int)

    def test_choice_of_another_quantity_is_ignored(self):
        for choice in ("hPa", "nonsense", ""):
            self.assertEqual(conversion("°C", {"°C": choice}).unit, "°C")

    def test_kelvin_is_not_converted(self):
        self.assertEqual(conversion("K", {"K": "°C"}).unit, "K")
        self.assertEqual(shown_units("K"), ())

    def test_available_units_are_listed(self):
        self.assertEqual(shown_units("°C"), ("°C", "°F", "K"))
        self.assertEqual(shown_units("inHg")[:2], ("inHg", "hPa"))
        self.assertEqual(shown_units("lx"), ())
        self.assertEqual(measured_units(["lx", "°F", "°C", ""]), ["°C", "hPa", "mm", "m", "m/s", "°F"])


if __name__ == "__main__":
    unittest.main()
