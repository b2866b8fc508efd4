"""Tests of 1-Wire thermometers: a valid checksum does not prove that the chip has measured."""

import unittest

from pigeonpost.core.errors import SensorError
from pigeonpost.sensors.one_wire import OneWireThermometer
from pigeonpost.sensors.ranges import ImpossibleValue


def w1_slave(data, milli):
    """Return the content of w1_slave: eight bytes of a scratchpad with their CRC, and the temperature in m°C."""
    crc = 0
    for byte in bytes.fromhex(data):
        for bit in range(8):
            crc = crc >> 1 ^ (0x8C if (crc ^ byte >> bit) & 1 else 0)
    data = f"{data.lower()} {crc:02x}"
    return f"{data} : crc={crc:02x} YES\n{data} t={milli}\n"


CLONE_85 = w1_slave("50 05 4b 46 7f ff 0c 10", 85_000)
MAXIM_85 = w1_slave("50 05 4b 46 7f ff 10 10", 85_000)


class OneWire(unittest.TestCase):
    def setUp(self):
        self.thermometer = OneWireThermometer("28-0316a2794bff")

    def assert_impossible(self, content, *words, thermometer=None):
        with self.assertRaises(ImpossibleValue) as caught:
            (thermometer or self.thermometer).temperature(content)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_temperatures_of_the_data_sheet_are_read(self):
        for data, milli in (
            ("d0 07", 125_000), ("91 01", 25_062), ("a2 00", 10_125), ("08 00", 500), ("00 00", 0), ("f8 ff", -500),
            ("5e ff", -10_125), ("6f fe", -25_062), ("90 fc", -55_000),
        ):  # fmt: skip
            for config in ("7f", "1f", "3f"):
                content = w1_slave(f"{data} 4b 46 {config} ff 0c 10", milli)
                self.assertEqual(self.thermometer.temperature(content), milli / 1000)

    def test_equal_bytes_are_no_measurement(self):
        self.assert_impossible(w1_slave("00 00 00 00 00 00 00 00", 0), "all bytes are 00", "read '00 00 00")
        ones = "ff ff ff ff ff ff ff ff ff"
        self.assert_impossible(f"{ones} : crc=ff YES\n{ones} t=-62\n", "all bytes are ff", "open")

    def test_temperature_that_contradicts_the_scratchpad_is_refused(self):
        for milli in (26_000, 0, 85_000, -26_187, 26_250):
            content = w1_slave("a3 01 4b 46 7f ff 0d 10", milli)
            self.assert_impossible(content, "contradicts the scratchpad", "it contains 26.1875 °C", f"t={milli}'")
        first = w1_slave("a3 01 4b 46 7f ff 0d 10", 26_187).splitlines()[0]
        second = w1_slave("a4 01 4b 46 7f ff 0d 10", 26_250).splitlines()[1]
        self.assert_impossible(f"{first}\n{second}\n", "the two lines of w1_slave contradict each other", "a4 01")

    def test_value_outside_the_range_of_the_chip_is_refused(self):
        for data, milli in (("ff 07", 127_937), ("d1 07", 125_062), ("8f fc", -55_062), ("10 f8", -127_000)):
            self.assert_impossible(w1_slave(f"{data} 4b 46 7f ff 0c 10", milli), "-55 to 125 °C", f"t={milli}'")

    def test_power_on_value_is_refused_for_the_chips_of_all_makers(self):
        for data, milli in (
            ("50 05 4b 46 7f ff 0c 10", 85_000), ("50 05 55 00 7f ff 0c 10", 85_000),
            ("50 05 00 00 1f ff 0c 10", 85_000), ("50 05 ff ff 7f ff ff ff", 85_000),
            ("90 01 55 05 7f 7e 81 66", 25_000), ("90 01 55 05 7f 12 34 66", 25_000),
        ):  # fmt: skip
            self.assert_impossible(w1_slave(data, milli), "power-on value", f"t={milli}'")
        old = OneWireThermometer("10-000802b4ff12")
        self.assert_impossible(w1_slave("aa 00 4b 46 ff ff 0c 10", 85_000), "power-on", thermometer=old)

    def test_measured_85_degrees_are_read(self):
        self.assertEqual(self.thermometer.temperature(MAXIM_85), 85)
        clone = OneWireThermometer("28-aa3c61551401")
        self.assert_impossible(CLONE_85, "power-on", thermometer=clone)
        self.assertEqual(clone.temperature(w1_slave("4f 05 4b 46 7f ff 0c 10", 84_937)), 84.937)
        self.assertEqual(clone.temperature(CLONE_85), 85)
        self.assertEqual(clone.temperature(CLONE_85), 85)
        old = OneWireThermometer("10-000802b4ff12")
        self.assertEqual(old.temperature(w1_slave("aa 00 4b 46 ff ff 0b 10", 85_062)), 85.062)
        self.assertEqual(old.temperature(w1_slave("aa 00 4b 46 ff ff 0c 10", 85_000)), 85)

    def test_measured_25_degrees_of_a_chip_that_starts_with_them_are_read(self):
        self.assertEqual(self.thermometer.temperature(w1_slave("8e 01 55 05 7f 7e 81 66", 24_875)), 24.875)
        self.assertEqual(self.thermometer.temperature(w1_slave("90 01 55 05 7f 7e 81 66", 25_000)), 25)
        self.assertEqual(
            OneWireThermometer("28-000000000001").temperature(w1_slave("90 01 4b 46 7f ff 10 10", 25_000)), 25
        )

    def test_power_on_value_is_refused_if_the_chip_shows_its_conversions(self):
        self.assertEqual(self.thermometer.temperature(w1_slave("4f 05 4b 46 7f ff 01 10", 84_937)), 84.937)
        self.assert_impossible(CLONE_85, "power-on")
        self.assertEqual(self.thermometer.temperature(MAXIM_85), 85)

    def test_power_on_value_is_refused_after_a_cold_reading_or_a_failure(self):
        self.thermometer.temperature(w1_slave("00 00 4b 46 7f ff 0c 10", 0))
        self.assert_impossible(CLONE_85, "power-on")
        self.thermometer.temperature(w1_slave("4f 05 4b 46 7f ff 0c 10", 84_937))
        with self.assertRaises(SensorError):
            self.thermometer.temperature("")
        self.assert_impossible(CLONE_85, "power-on")

    def test_thermocouple_amplifier_has_the_range_of_a_thermocouple(self):
        amplifier = OneWireThermometer("3b-000000182a11")
        self.assertEqual(amplifier.temperature(w1_slave("40 1f 00 00 f0 ff ff ff", 500_000)), 500)
        self.assert_impossible(
            w1_slave("41 1f 00 00 f0 ff ff ff", 500_062), "thermocouple is open", thermometer=amplifier
        )
        self.assertEqual(amplifier.temperature(w1_slave("d0 07 4b 46 7f ff 0c 10", 125_000)), 125)

    def test_thermometer_with_14_bits_is_read(self):
        self.assertEqual(self.thermometer.temperature(w1_slave("a3 01 4b 46 ff ff 0c 10", 26_234)), 26.234)
        self.assertEqual(self.thermometer.temperature(w1_slave("a3 01 4b 46 fc ff 0c 10", 26_187)), 26.187)

    def test_invalid_content_is_a_sensor_error_with_the_raw_text(self):
        good = w1_slave("a3 01 4b 46 7f ff 0d 10", 26_187)
        for content in (
            "", "\n", good.replace("YES", "NO"), good.splitlines()[0], good.replace("t=", ""),
            good.replace("a3 ", "zz "), good[3:], "00 " * 9, "YES\nt=1", good.replace("26187", "2e3"), "x" * 100_000,
        ):  # fmt: skip
            with (
                self.subTest(content[:30]),
                self.assertRaisesRegex(SensorError, "invalid checksum or no answer") as caught,
            ):
                self.thermometer.temperature(content)
            self.assertLess(len(str(caught.exception)), 250)


if __name__ == "__main__":
    unittest.main()
