"""Tests of `control.py scan`, whose output is a valid settings file of a node."""

import argparse
import os
import sys
import tomllib
import types
import unittest
from unittest import mock

import node
from pigeonpost.cli import scan
from pigeonpost.core.config import load
from pigeonpost.sensors import mcp3424
from pigeonpost.sensors.contract import name_of
from pigeonpost.sensors.simulated import SimulatedChip, room
from pigeonpost.settings import NODE
from tests.forked import Forked
from tests.page_support import control, control_here
from tests.sensors.chip_mcp3424 import Chip, Wires, library
from tests.sensors.test_kernel import GOOD, KernelCase
from tests.support import temp_folder

BARE = {"spidev": None, "smbus2": None}


class Case(KernelCase):
    def setUp(self):
        super().setUp()
        self.put("proc", loadavg="0.52 0.58 0.59 2/467 12345", meminfo="MemAvailable: 204800 kB")

    def scan(self, **modules):
        """Return the lines of the output, with these libraries installed."""
        with mock.patch.dict(sys.modules, {**BARE, **modules}):
            return list(scan.lines(self.root))

    def load(self, lines):
        path = os.path.join(temp_folder(self), "node.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        return load(NODE, argparse.Namespace(config=path), "", ("sensor",), {})

    def readings(self, lines, **modules):
        """Return the readings of a node with these lines as its settings."""
        found = {}
        with mock.patch.dict(sys.modules, {**BARE, **modules}):
            for source in node.make_sources(self.load(lines)):
                found.update(source.read())
                source.close()
        return found

    def put_pi_files(self):
        """Create the files of a Raspberry Pi with several chips."""
        self.put("sys/bus/iio/devices/iio:device0", name="bme280", in_temp_input=21500, in_pressure_input=101.3,
                 in_humidityrelative_input=48123, sampling_frequency=1)  # fmt: skip
        self.put("sys/bus/iio/devices/iio:device1", name="mcp3424", in_voltage0_raw=1000, in_voltage0_scale=0.001,
                 in_voltage1_raw=2000, in_voltage1_scale=0.001)  # fmt: skip
        self.put("sys/class/hwmon/hwmon0", name="coretemp", temp1_input=45000, temp1_label="Package id 0",
                 temp2_input=44000, temp2_label="Core 0", temp3_input=43000, temp3_label="Core 0",
                 fan1_input=1200)  # fmt: skip
        self.put("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=48312)
        self.put("sys/class/thermal/cooling_device0", type="Processor", cur_state=0)
        self.put("sys/bus/w1/devices/28-0316a2794bff", name="28-0316a2794bff", w1_slave=GOOD)
        self.put("sys/bus/w1/devices/w1_bus_master1", name="w1_bus_master1")


class Listing(Case):
    def test_chips_of_a_pi_are_listed_with_their_readings(self):
        self.put_pi_files()
        lines = self.scan()
        text = "\n".join(lines)
        readings = self.readings(lines)
        expected = {
            "cpu_temperature": 48.3, "load": 0.52, "memory_free": 200, "bme280_temp": 21.5, "bme280_pressure": 101.3,
            "bme280_humidityrelative": 48.123, "mcp3424_voltage0": 1.0, "mcp3424_voltage1": 2.0,
            "coretemp_temp_package_id_0": 45.0, "coretemp_temp2": 44.0, "coretemp_temp3": 43.0, "coretemp_fan1": 1200.0,
            "cpu_thermal": 48.312, "s_28_0316a2794bff": 26.187,
        }  # fmt: skip
        self.assertEqual({**readings, **expected}, readings)
        self.assertEqual(set(readings) - set(expected), {"disk_free"})
        for words in ("# iio/bme280", "# 21.5 °C", 'from = "iio/bme280/temp"',
                     'from = "hwmon/coretemp/temp/Package id 0"', 'from = "w1/28-0316a2794bff"', "#     load: 0.52",
                     "# 26.187 °C"):  # fmt: skip
            self.assertIn(words, text)

    def test_common_chips_are_listed_with_their_units(self):
        self.put("sys/bus/iio/devices/iio:device0", name="bme680", in_temp_input=21_430,
                 in_pressure_input="987.350000000", in_humidityrelative_input="43.215",
                 in_resistance_input=82_986)  # fmt: skip
        self.put("sys/bus/iio/devices/iio:device1", name="bh1750", in_illuminance_raw=240,
                 in_illuminance_scale="0.833333")  # fmt: skip
        self.put("sys/bus/iio/devices/iio:device2", name="dht11@4", in_temp_input=21_000,
                 in_humidityrelative_input=3_304_300)  # fmt: skip
        self.put("sys/class/hwmon/hwmon0", name="sht3x", temp1_input=23_482, humidity1_input=51_320)
        self.put("sys/class/hwmon/hwmon1", name="ina219", in0_input=32, in1_input=12_004, curr1_input=-320,
                 power1_input=3_840_000)  # fmt: skip
        lines = self.scan()
        text = "\n".join(lines)
        for name, shown in (
            ("bme680_temp", "21.43 °C"), ("bme680_pressure", "98.735 kPa"), ("bme680_humidityrelative", "43.215 %"),
            ("bme680_resistance", "82986 Ω"), ("bh1750_illuminance", "200 lx"), ("sht3x_temp1", "23.482 °C"),
            ("sht3x_humidity1", "51.32 %"), ("ina219_in0", "0.032 V"), ("ina219_in1", "12.004 V"),
            ("ina219_curr1", "-0.32 A"), ("ina219_power1", "3.84 W"), ("dht11_4_temp", "21 °C"),
            ("dht11_4_humidityrelative", "cannot be read now: impossible '3304300': 3304.3 %"),
        ):  # fmt: skip
            self.assertRegex(text, rf"\[sensor.channels.{name}\] +# {shown}")
        self.assertEqual(self.readings(lines)["bme680_pressure"], 98.735)

    def test_devices_with_the_same_name_are_named_by_their_bus_address(self):
        for number, place in ((0, "1-0076"), (1, "1-0077")):
            self.put(f"sys/devices/i2c-1/{place}/iio:device{number}", name="bme280", in_temp_input=20000 + number)
            self.link(f"sys/bus/iio/devices/iio:device{number}", f"sys/devices/i2c-1/{place}/iio:device{number}")
        readings = self.readings(self.scan())
        self.assertEqual((readings["s_1_0076_temp"], readings["s_1_0077_temp"]), (20.0, 20.001))

    def test_indistinguishable_devices_are_listed_as_a_comment(self):
        for number in (0, 1):
            self.put(f"sys/class/thermal/thermal_zone{number}", type="acpitz", temp=20000)
        lines = self.scan()
        self.assertIn("# thermal/acpitz: 2 devices that cannot be distinguished", lines)
        self.assertNotIn("acpitz", self.readings(lines))

    def test_sensors_that_cannot_be_read_are_listed_with_the_reason(self):
        self.put("sys/bus/iio/devices/iio:device0", name="bme280", in_temp_input="hot", in_pressure_input=100)
        self.put("sys/bus/w1/devices/28-0316a2794bff", name="28-0316a2794bff", w1_slave=GOOD.replace("YES", "NO"))
        lines = self.scan()
        text = "\n".join(lines)
        self.assertRegex(text, r"\n\[sensor.channels.bme280_temp\] +# cannot be read now: .*'hot' is not a number")
        self.assertRegex(text, r"\n# \[sensor.channels.s_28_0316a2794bff\] +# cannot be read now: .*invalid checksum")
        self.assertEqual(self.readings(lines)["bme280_pressure"], 100)

    def test_mcp3008_is_found_and_read(self):
        self.put("dev")
        for name in ("spidev0.0", "spidev0.1"):
            self.put("dev", **{name: ""})
        chips = iter([SimulatedChip(room(lambda: 5.0)), SimulatedChip(lambda n: 3.3)] * 2)

        class SpiDev:
            def open(self, bus, device):
                self.chip = next(chips)

            def xfer2(self, values):
                return self.chip.xfer2(values)

            def close(self):
                pass

        spidev = types.SimpleNamespace(SpiDev=SpiDev)
        lines = self.scan(spidev=spidev)
        text = "\n".join(lines)
        self.assertIn('# SPI 0.0, an MCP3008\n[[sensor]]\nkind = "adc"\nbus = 0\ndevice = 0\n', text)
        self.assertIn("# SPI 0.1, an MCP3008\n# cannot be read: the chip does not answer", text)
        self.assertEqual(len([name for name in self.readings(lines, spidev=spidev) if name.startswith("input_")]), 8)
        self.assertIn("# cannot be read: the Python module spidev is missing", "\n".join(self.scan()))

    def test_machine_with_gpio_lines_has_a_remark_on_counters(self):
        self.assertNotIn("counter", "\n".join(self.scan()))
        self.put("dev", gpiochip0="")
        self.assertIn('# Pulse counters on GPIO lines cannot be found by a scan: docs/sensors.md, kind = "counter"',
                      self.scan())  # fmt: skip

    def test_i2c_buses_and_mcp3424_are_found(self):
        self.put("dev", **{"i2c-1": ""})
        self.put("sys/bus/i2c/devices/i2c-1", name="bcm2835 (i2c@7e804000)")
        self.put("sys/bus/i2c/devices/1-0076", name="bme280")
        self.put("sys/bus/i2c/devices/1-006a", name="rtc")

        class Clock(Chip):  # of the DS1307 family: sends its registers one after the other
            def give(self):
                for byte in (0x12, 0x34, 0x05, 0x06, 0x21, 0x11, 0x26):
                    yield from (byte >> shift & 1 for shift in range(7, -1, -1))

        wires = Wires(
            {0x68: Chip(lambda n: 0.5), 0x69: Chip(lambda n: 1.0), 0x6A: Chip(lambda n: 1), 0x6F: Clock(None)}
        )
        wires.chips[0x69].size = 3
        smbus2 = library(wires)
        # The simulated chip determines after how many polls a conversion is finished: real times are not tested.
        self.enterContext(mock.patch.object(mcp3424, "_USUAL_S", (0.0,) * 4))
        lines = self.scan(smbus2=smbus2)
        text = "\n".join(lines)
        self.assertIn(
            "# I2C bus 1 (bcm2835 (i2c@7e804000)): chips with a driver: 1-006a rtc, 1-0076 bme280. `i2cdetect -y 1`",
            text,
        )
        self.assertEqual(wires.open, 0)
        self.assertEqual([entry for entry in wires.log if entry[0] == 0x6F], [(0x6F, "read")])  # it is never written to
        self.assertNotIn(0x6A, [address for address, _ in wires.log])
        readings = self.readings(lines, smbus2=smbus2)
        self.assertAlmostEqual(readings["adc_1"], 0.5 * 2.471, delta=0.001)
        self.assertAlmostEqual(readings["adc_1_2"], 2.471, delta=0.001)
        self.assertEqual(len([name for name in readings if name.startswith("adc_")]), 8)

    def test_machine_without_sensors_lists_itself_only(self):
        for folder in ("", "/nowhere"):
            self.root = folder or self.root
            kinds = [entry["kind"] for entry in tomllib.loads("\n".join(self.scan())).get("sensor", [])]
            self.assertEqual(kinds, ["machine"])

    def test_control_characters_in_device_names_are_removed(self):
        self.put("sys/bus/iio/devices/iio:device0", name='a"\\\x7f\x1b[2J\u202e', in_temp_input=1000)
        self.put("sys/bus/iio/devices/iio:device1", name="with/slash", in_temp_input=1000)
        self.put("sys/class/hwmon/hwmon0", name="x\ny", temp1_input=1000, temp1_label="\u2028[[sensor]]")
        self.put("sys/bus/i2c/devices/i2c-1", name="bus\n[[sensor]]")
        lines = self.scan()
        self.assertEqual(self.readings(lines)["a_2j_temp"], 1)
        for line in lines:
            self.assertNotRegex(line, r"[\x00-\x1f\x7f\u2028]")


class Names(unittest.TestCase):
    def test_channel_names_are_derived_from_device_names(self):
        for parts, name in (
            (("bme280", "temp"), "bme280_temp"), (("28-0316A", ""), "s_28_0316a"), (("Package id 0",), "package_id_0"),
            (("",), "s"), (("°C",), "c"), (("x" * 99,), "x" * 28), (("µ",), "s"),
        ):  # fmt: skip
            self.assertEqual(name_of(*parts), name)


class Programs(unittest.TestCase):
    def test_node_runs_with_the_output_of_scan(self):
        status, said, errors = control(self, "scan")
        self.assertEqual((status, errors), (0, ""))
        path = os.path.join(temp_folder(self), "node.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(said)
        program = Forked(self, "node.py", "--config", path, "--listen", "127.0.0.1:0", "--data", temp_folder(self))
        program.address()
        program.terminate()
        self.assertEqual(program.wait(), 0)
        program.logs("load, memory_free, disk_free")

    def test_root_selects_another_folder(self):
        status, said, errors = control_here("scan", "--root", temp_folder(self))
        self.assertEqual((status, errors), (0, ""))
        self.assertIn('kind = "machine"', said)


if __name__ == "__main__":
    unittest.main()
