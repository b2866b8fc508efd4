"""Tests of all sources: each fulfils the contract of a source and reads its channels."""

import math
import os
import unittest
from unittest import mock

import adc
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors import machine, simulated
from pigeonpost.sensors.contract import Channel, SensorSource
from protocol import SENSOR_NAME, UNIT
from tests.support import temp_folder


class Contract:
    """Tests of the contract of a source, which the tests of each kind inherit."""

    def make(self):
        """Return a source that can be read."""
        raise NotImplementedError

    def make_broken(self):
        """Return a source that cannot be read."""
        raise NotImplementedError

    def test_channels_have_valid_names_and_units(self):
        source = self.make()
        self.assertIsInstance(source, SensorSource)
        self.assertTrue(source.channels)
        for channel in source.channels:
            self.assertTrue(SENSOR_NAME(channel.name), channel)
            self.assertTrue(UNIT(channel.unit), channel)
            self.assertIs(type(channel.simulated), bool)
        names = [channel.name for channel in source.channels]
        self.assertEqual(len(set(names)), len(names))

    def test_reading_has_a_finite_number_for_each_channel(self):
        source = self.make()
        for _ in range(3):
            readings = source.read()
            self.assertEqual(list(readings), [channel.name for channel in source.channels])
            for name, value in readings.items():
                self.assertIn(type(value), (int, float), name)
                self.assertTrue(math.isfinite(value), name)

    def test_failing_source_raises_sensor_error_with_a_text(self):
        source = self.make_broken()
        try:
            readings = source.read()
        except SensorError as error:
            readings = {"all": error}
        self.assertTrue(readings)
        for error in readings.values():
            self.assertIsInstance(error, SensorError)
            self.assertGreater(len(str(error)), 10)

    def test_close_can_be_called_twice(self):
        for source in (self.make(), self.make_broken()):
            source.close()
            source.close()

    def test_unknown_options_are_refused(self):
        for option in self.module.OPTIONS:
            self.assertTrue(option.help)
        with self.assertRaisesRegex(SettingsError, "^here: unknown key 'nonsense'"):
            self.module.make({"nonsense": 1}, "here")


class Adc(Contract, unittest.TestCase):
    module = adc

    def make(self):
        settings = {"channels": {"temperature": {"input": 1, "convert": "mcp9700"}, "light": {"input": 2}}}
        return adc.make(settings, "here", simulated.SimulatedChip(simulated.room()))

    def make_broken(self):
        chip = mock.Mock()
        chip.xfer2.side_effect = OSError(5, "Input/output error")
        return adc.make({"channels": {"t": {"input": 1}}}, "here", chip)


class ThisMachine(Contract, unittest.TestCase):
    module = machine

    def make(self):
        return machine.make({}, "here")

    def make_broken(self):
        return machine.make({"root": temp_folder(self), "disk": "/nowhere"}, "here")


class MachineFiles(unittest.TestCase):
    """Readings from files created by the test."""

    def setUp(self):
        self.root = temp_folder(self)
        self.write("proc/loadavg", "0.52 0.58 0.59 2/467 12345\n")
        self.write("proc/meminfo", "MemTotal:  948304 kB\nMemFree:  123 kB\nMemAvailable:  204800 kB\nBuffers: 1 kB\n")

    def write(self, name, text):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def zone(self, number, kind, temperature):
        self.write(f"sys/class/thermal/thermal_zone{number}/type", kind + "\n")
        self.write(f"sys/class/thermal/thermal_zone{number}/temp", f"{temperature}\n")

    def read(self, **settings):
        return machine.make({"root": self.root, "disk": self.root, **settings}, "here").read()

    def test_values_are_read_from_the_files(self):
        self.zone(0, "cpu-thermal", 48_312)
        readings = self.read()
        status = os.statvfs(self.root)
        self.assertEqual(list(readings), ["cpu_temperature", "load", "memory_free", "disk_free"])
        self.assertEqual((readings["cpu_temperature"], readings["load"], readings["memory_free"]), (48.3, 0.52, 200))
        self.assertAlmostEqual(readings["disk_free"], status.f_bavail * status.f_frsize / 2**20, delta=200)

    def test_units_are_those_of_the_documentation(self):
        self.zone(0, "cpu-thermal", 48_312)
        source = machine.make({"root": self.root}, "here")
        self.assertEqual(list(source.channels), [
            Channel("cpu_temperature", "°C"), Channel("load", ""),
            Channel("memory_free", "MiB"), Channel("disk_free", "MiB"),
        ])  # fmt: skip

    def test_thermal_zone_of_the_processor_is_found_by_its_type(self):
        for kind in ("cpu-thermal", "cpu_thermal", "x86_pkg_temp", "bigcpu"):
            self.zone(0, "gpu-thermal", 11_000)
            self.zone(1, kind, 55_000)
            self.zone(2, "acpitz", 22_000)
            self.assertEqual(self.read()["cpu_temperature"], 55.0)

    def test_first_thermal_zone_is_used_without_a_known_type(self):
        self.zone(3, "soc", 40_000)
        self.zone(5, "acpitz", 22_000)
        self.assertEqual(self.read()["cpu_temperature"], 40.0)

    def test_temperature_below_zero_is_read(self):
        self.zone(0, "cpu-thermal", -5250)
        self.assertEqual(self.read()["cpu_temperature"], -5.2)

    def test_machine_without_a_thermal_zone_has_no_cpu_temperature(self):
        self.assertNotIn("cpu_temperature", self.read())
        os.makedirs(os.path.join(self.root, "sys/class/thermal/cooling_device0"))
        self.assertNotIn("cpu_temperature", self.read())
        os.makedirs(os.path.join(self.root, "sys/class/thermal/thermal_zone0"))  # a zone without a type
        self.assertNotIn("cpu_temperature", self.read())

    def test_channel_that_cannot_be_read_does_not_affect_the_others(self):
        self.zone(0, "cpu-thermal", 48_312)
        good = {"cpu_temperature", "load", "memory_free", "disk_free"}
        for name, spoilt, texts in (
            ("cpu_temperature", "sys/class/thermal/thermal_zone0/temp", ("", "hot", "\xff")),
            ("load", "proc/loadavg", ("", "high 1 2", "\n")),
            ("memory_free", "proc/meminfo", ("", "MemTotal: 5 kB\n", "MemAvailable:\n", "MemAvailable: much kB\n")),
        ):
            path = os.path.join(self.root, spoilt)
            with open(path, encoding="utf-8") as file:
                was = file.read()
            for text in (*texts, None):
                if text is None:
                    os.remove(path)
                else:
                    self.write(spoilt, text)
                with self.subTest(name, text=text):
                    readings = self.read()
                    self.assertIsInstance(readings[name], SensorError)
                    self.assertIn(f"{name} of this machine cannot be read", str(readings[name]))
                    failed = {key for key, value in readings.items() if isinstance(value, SensorError)}
                    self.assertEqual((failed, set(readings)), ({name}, good))
            self.write(spoilt, was)

    def test_missing_disk_is_reported(self):
        readings = self.read(disk=os.path.join(self.root, "nowhere"))
        self.assertIn("disk_free of this machine cannot be read", str(readings["disk_free"]))


class SimulatedMcp3008(unittest.TestCase):
    def test_simulated_chip_answers_like_the_real_one(self):
        chip = simulated.SimulatedChip(lambda n: n / 10, 1.0)
        for n in range(8):
            self.assertEqual(
                chip.xfer2([1, 0x80 | n << 4, 0])[1:], [0b1111_1000 | n * 1024 // 10 >> 8, n * 1024 // 10 & 255]
            )
        # The same 17 bits at any position in the bytes (DS21295, section 5.1: leading zeros are ignored).
        for shift in range(7):
            word = (0b1_1_011_0 << 18) >> shift
            answer = int.from_bytes(bytes(chip.xfer2(list(word.to_bytes(3, "big")))), "big")
            self.assertEqual(answer >> (7 - shift) & 0x7FF, 307, shift)

    def test_simulated_chip_ignores_a_transfer_without_a_start_bit(self):
        self.assertEqual(simulated.SimulatedChip(lambda n: 1.0).xfer2([0, 0, 0]), [255, 255, 255])

    def test_simulated_chip_limits_its_scale(self):
        for volts, counts in ((-1, 0), (0, 0), (3.2999, 1023), (3.3, 1023), (5, 1023)):
            self.assertEqual(adc.Mcp3008(simulated.SimulatedChip(lambda n, volts=volts: volts)).read(0), counts)

    def test_simulated_voltages_are_plausible(self):
        now = [0.0]
        chip = adc.Mcp3008(simulated.SimulatedChip(simulated.room(lambda: now[0])))
        temperatures, light = [], []
        for _ in range(600):
            now[0] += 1
            temperatures.append(adc.celsius(chip.read(1) / 1024 * 3.3, 500, 10))
            light.append(chip.read(2))
            self.assertLess(chip.read(5), 20)
        self.assertTrue(
            15 < min(temperatures) < 19 < 23 < max(temperatures) < 27, (min(temperatures), max(temperatures))
        )
        self.assertGreater(max(light) - min(light), 500)
        self.assertGreater(len(set(temperatures)), 15)  # changes are visible


if __name__ == "__main__":
    unittest.main()
