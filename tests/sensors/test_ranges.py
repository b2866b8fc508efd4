"""Tests of the possible values of a quantity, which its unit and the name of its channel decide."""

import unittest

from pigeonpost.sensors.contract import Channel
from pigeonpost.sensors.ranges import ImpossibleValue, checked, of_channel, ranges_of, shown_raw


def is_possible(name, unit, value):
    """Return True if the value is possible, or nothing is known about the channel."""
    possible = of_channel(name, unit)
    try:
        if possible is not None:
            possible.check(value, unit)
    except ImpossibleValue:
        return False
    return True


class Temperature(unittest.TestCase):
    def test_value_below_absolute_zero_is_impossible_in_every_unit(self):
        for name, unit, lowest in (
            ("x", "°C", -273.15), ("x", "ºC", -273.15), ("x", "℃", -273.15), ("x", "Celsius", -273.15),
            ("x", "degC", -273.15), ("x", "°F", -459.67), ("x", "Fahrenheit", -459.67), ("outside_temp", "K", 0),
            ("temperature", "C", -273.15), ("temperature2", "F", -459.67), ("x", "m°C", -273_150),
            ("cpu", "C", -273.15),
        ):  # fmt: skip
            with self.subTest(unit):
                self.assertTrue(is_possible(name, unit, lowest))
                self.assertFalse(is_possible(name, unit, lowest - 0.01))
                self.assertTrue(is_possible(name, unit, 5000))

    def test_quantity_with_the_same_unit_is_not_checked(self):
        for name, unit, value in (
            ("spread", "K", -5), ("temp_difference", "K", -5), ("delta_temperature", "K", -0.1), ("charge", "C", -900),
            ("flow", "K", -3), ("capacity", "F", -1000), ("temperature_trend", "K", -2), ("temp_setback", "K", -3),
            ("x", "°C/h", -400), ("x", "", -400), ("x", "V", -300), ("attempts", "C", -300), ("contempt", "F", -500),
            ("tempo", "C", -300), ("temp_calibration", "K", -2),
        ):  # fmt: skip
            with self.subTest(name):
                self.assertTrue(is_possible(name, unit, value))


class Humidity(unittest.TestCase):
    def test_relative_humidity_is_recognised_by_unit_or_name(self):
        for name, unit in (
            ("humidity", "%"), ("bathroom_humidity", "%"), ("outhumidity", "%"), ("humidity2", "%"), ("rh", "%"),
            ("s_1_0076_humidityrelative", "%"), ("luftfeuchte_bad", "%"), ("x", "%RH"), ("x", "% rh"), ("x", "%rF"),
            ("x", "RH%"), ("bme280_hum", "%"), ("battery_room_humidity", "%"), ("humidifier_humidity", "%"),
            ("wilgotnosc", "%"), ("luftfuktighet", "%"), ("vlhkost", "%"), ("umidade", "%"), ("kosteus", "%"),
            ("humidity_sensor", "%"), ("humidity_level", "%"), ("fan_humidity", "%"),
        ):  # fmt: skip
            with self.subTest(name, unit=unit):
                for value, expected in ((0, True), (100, True), (100.1, False), (-0.1, False), (3304.3, False)):
                    self.assertEqual(is_possible(name, unit, value), expected)

    def test_percentage_of_another_quantity_is_not_checked(self):
        for name in (
            "battery", "soil_humidity", "bodenfeuchte", "cpu", "humidity_change", "valve", "wood_humidity", "gain",
            "rhythm", "moisture", "humidity_offset", "humidity_battery", "wind_rh_sensor_battery", "humidity_signal",
            "humidifier_power", "dehumidifier_fan", "rh_valve", "humidity_link_quality", "humidity_calibration",
            "substrate_humidity", "humidite_sol", "humedad_suelo", "umidita_terreno", "vlhkost_pudy", "umidade_solo",
            "wilgotnosc_gleby", "jordfugtighed", "concrete_humidity",
        ):  # fmt: skip
            with self.subTest(name):
                self.assertTrue(is_possible(name, "%", -20))
                self.assertTrue(is_possible(name, "%", 180))
        self.assertTrue(is_possible("humidity", "g/m³", 180))


class Readings(unittest.TestCase):
    def test_impossible_value_becomes_an_error_and_neighbours_are_kept(self):
        channels = [Channel("t", "°C"), Channel("humidity", "%"), Channel("fog", "%RH", possible=(-5, 105)),
                    Channel("level", "%")]  # fmt: skip
        given = {"t": -300.5, "humidity": 101, "fog": 104.9, "level": 120}
        found = checked(given, ranges_of(channels))
        self.assertEqual((found["fog"], found["level"]), (104.9, 120))
        self.assertEqual(str(found["t"]), "impossible: -300.5 °C (absolute zero: at least -273.15 °C)")
        self.assertEqual(str(found["humidity"]), "impossible: 101 % (relative humidity: 0 to 100 %)")
        self.assertEqual(given["t"], -300.5)

    def test_error_of_a_calibrated_value_contains_the_value_before_calibration(self):
        for value, gain, offset, expected in (
            (101.5, 1, 2, "impossible '99.5': 101.5 % "), (700, 100, 0, "impossible '7': 700 % "),
            (-4.2, -0.1, 120, "impossible '1242': -4.2 % "), (101, 1, 0, "impossible: 101 % "),
            (140, 0, 140, "impossible: 140 % "),
        ):  # fmt: skip
            ranges = ranges_of([Channel("humidity", "%")], {"humidity": (gain, offset), "other": (2, 2)})
            self.assertTrue(str(checked({"humidity": value}, ranges)["humidity"]).startswith(expected), expected)

    def test_possible_readings_and_other_objects_are_returned_unchanged(self):
        given = {"t": 20.5, "u": None, "v": True, "w": ImpossibleValue("x"), "z": "text"}
        ranges = ranges_of([Channel(name, "°C") for name in (*given, "missing")])
        self.assertIs(checked(given, ranges), given)

    def test_raw_text_is_cut(self):
        self.assertEqual(shown_raw("-3274500"), "; read '-3274500'")
        self.assertEqual(shown_raw(""), "")
        self.assertEqual(shown_raw("9" * 5000), f"; read '{'9' * 80}'...")
        self.assertNotIn("\n", shown_raw("a\nb"))


if __name__ == "__main__":
    unittest.main()
