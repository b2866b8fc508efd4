"""Tests of the MCP3424 driver with a simulated chip: all resolutions, gains, signs and ends of the scale."""

import errno
import os
import sys
import unittest
from unittest import mock

from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors import mcp3424
from pigeonpost.sensors.contract import Channel, with_limits
from tests.sensors.chip_mcp3424 import Chip, Wires, library
from tests.sensors.test_contract import Contract
from tests.support import LIMIT_S, temp_folder


class Case(unittest.TestCase):
    def use(self, wires):
        """Install a fake smbus2 with these wires for the test. No call waits."""
        for patch in (
            mock.patch.dict(sys.modules, {"smbus2": library(wires)}),
            mock.patch.object(mcp3424, "_USUAL_S", (0.0,) * 4),
            mock.patch.object(mcp3424, "_LONGEST_S", (LIMIT_S,) * 4),  # these chips count their transfers
        ):
            patch.start()
            self.addCleanup(patch.stop)
        return wires

    def source(self, wires, channels, **options):
        self.use(wires)
        # With the real sys, a chip of this machine would be found.
        made = mcp3424.make({"channels": channels, "root": temp_folder(self), **options}, "here")
        self.addCleanup(made.close)
        return made

    def chip(self, *chips, **more):
        """Return a driver that does not wait, and its chip."""
        chip = Chip(*chips, **more)
        bus = mcp3424._SmBus(library(Wires({0x68: chip})), 1)
        return mcp3424.Mcp3424(bus, 0x68, now_s=lambda: 0.0, sleep=lambda seconds: None), chip


class AdcPi(Contract, Case):
    module = mcp3424

    def make(self):
        wires = Wires({0x68: Chip(lambda n: 0.1 * (n + 1)), 0x69: Chip(lambda n: 1 + 0.1 * n)})
        return self.source(wires, {"a": {"input": 1}, "b": {"input": 8, "bits": 12}, "c": {"input": 4, "bits": 14}})

    def make_broken(self):
        return self.source(Wires({}), {"a": {"input": 1}, "b": {"input": 5}})


class Conversions(Case):
    def test_configuration_byte_has_the_expected_bits(self):
        for number, bits, amplifier, written in (
            (0, 12, 1, "10000000"), (1, 14, 2, "10100101"), (2, 16, 4, "11001010"), (3, 18, 8, "11101111"),
            (0, 18, 1, "10001100"),
        ):  # fmt: skip
            driver, chip = self.chip(lambda n: 0.1)
            driver.read(number, bits, amplifier)
            self.assertEqual(chip.writes, [written])

    def test_every_resolution_gain_and_sign_is_read(self):
        for bits in (12, 14, 16, 18):
            for amplifier in (1, 2, 4, 8):
                for volts in (0.2, -0.2, 0.0, 0.2559, 2.048 / (1 << bits - 1) / amplifier, -0.2559):
                    driver, _ = self.chip(lambda n, v=volts: v)
                    code = driver.read(0, bits, amplifier)
                    step = 2.048 / (1 << bits - 1) / amplifier
                    self.assertAlmostEqual(code * step, volts, delta=step, msg=f"{bits} bits x{amplifier}")

    def test_codes_of_the_data_sheet_are_decoded(self):
        """Two's complement: all ones is -1, and the highest and lowest codes differ by one."""
        for bits in (12, 14, 16, 18):
            step = 2.048 / (1 << bits - 1)
            for volts, code in ((-step, -1), (step, 1), (3, (1 << bits - 1) - 1), (-3, -(1 << bits - 1)), (0, 0)):
                driver, _ = self.chip(lambda n, v=volts: v)
                self.assertEqual(driver.read(0, bits, 1), code)

    def test_each_input_is_read_separately(self):
        driver, _ = self.chip(lambda n: 0.1 * (n + 1))
        self.assertEqual([round(driver.read(n, 12) * 0.001, 1) for n in range(4)], [0.1, 0.2, 0.3, 0.4])

    def test_read_waits_until_the_conversion_has_finished(self):
        for polls in (1, 2, 7):
            driver, _ = self.chip(lambda n: 1.0, polls=polls)
            driver.read(1, 12)  # an earlier conversion of another input, whose result must not be used
            driver, chip = self.chip(lambda n: n * 0.5, polls=polls)
            driver.read(3, 12)
            self.assertEqual(driver.read(2, 12), 1000)
            self.assertEqual(chip.left, 0)

    def test_waiting_time_is_limited(self):
        slept, now = [], [0.0]

        def sleep(seconds):
            slept.append(seconds)
            now[0] += seconds

        bus = mcp3424._SmBus(library(Wires({0x68: Chip(lambda n: 1.0, polls=10**9)})), 1)
        driver = mcp3424.Mcp3424(bus, 0x68, lambda: now[0], sleep)
        for bits, usual, longest in ((12, 1 / 240, 1 / 176), (18, 1 / 3.75, 1 / 2.75)):
            slept.clear()
            with self.assertRaisesRegex(SensorError, "the chip at 0x68 has not finished after [0-9.]+ s"):
                driver.read(0, bits)
            self.assertEqual(slept[0], usual)
            self.assertTrue(2 * longest < sum(slept) < 2 * longest + usual, (bits, sum(slept)))


class Volts(Case):
    def test_value_is_the_voltage_before_the_divider(self):
        wires = Wires({0x68: Chip(lambda n: 1.0), 0x69: Chip(lambda n: 0.5)})
        source = self.source(wires, {"a": {"input": 2}, "b": {"input": 7, "gain": 10, "offset": 1, "unit": "A"}})
        readings = source.read()
        self.assertAlmostEqual(readings["a"], 2.471, delta=0.0001)
        self.assertAlmostEqual(readings["b"], 13.355, delta=0.001)
        self.assertEqual([channel.unit for channel in source.channels], ["V", "A"])
        bare = self.source(Wires({0x6A: Chip(lambda n: 1.0)}), {"a": {"input": 1, "pga": 2}}, divider=1, address=0x6A)
        self.assertAlmostEqual(bare.read()["a"], 1.0, delta=0.0001)

    def test_inputs_1_to_8_are_on_two_chips(self):
        wires = Wires({address: Chip(lambda n: 0.1) for address in range(0x68, 0x70)})
        channels = {f"i{n}": {"input": n, "bits": 12} for n in (1, 4, 5, 8)}
        for options, addresses in (
            ({}, [0x68, 0x68, 0x69, 0x69]), ({"address": 0x6C}, [0x6C, 0x6C, 0x6D, 0x6D]),
            ({"second": 0x6F}, [0x68, 0x68, 0x6F, 0x6F]),
        ):  # fmt: skip
            wires.log.clear()
            self.source(wires, channels, **options).read()
            self.assertEqual([address for address, way in wires.log if way == "write"], addresses)

    def test_rail_is_at_the_ends_of_the_scale(self):
        for volts in (5, -5):
            for channel in ({"bits": 12}, {"bits": 18, "pga": 8}, {"bits": 16, "gain": -2, "offset": 3}):
                source = self.source(Wires({0x68: Chip(lambda n, v=volts: v)}), {"a": {"input": 1, **channel}})
                low, high = source.channels[0].limits["rail"]
                self.assertLess(low, high)
                self.assertIn(source.read()["a"], (low, high), channel)
        source = self.source(Wires({0x68: Chip(lambda n: 1.0)}), {"a": {"input": 1}})
        low, high = source.channels[0].limits["rail"]
        self.assertTrue(low < source.read()["a"] < high)
        self.assertAlmostEqual(high, 2.048 * 2.471, delta=0.001)

    def test_raw_and_limits_are_supported(self):
        self.use(Wires({0x68: Chip(lambda n: 1.0)}))
        table = {
            "root": temp_folder(self),
            "channels": {"a": {"input": 1, "gain": 2, "raw": True, "high": 5, "bits": 12}},
        }
        source = with_limits(table, "here", lambda plain: mcp3424.make(plain, "here"))
        self.assertEqual(source.read(), {"a": 4.942, "a_raw": 2.471})
        self.assertEqual(source.channels[1], Channel("a_raw", "V"))
        self.assertEqual(source.channels[0].limits, {"rail": [-10.121216, 10.116274], "high": 5})


class BusErrors(Case):
    def test_missing_chip_does_not_affect_the_other(self):
        wires = Wires({0x68: Chip(lambda n: 1.0)})
        source = self.source(wires, {"a": {"input": 1}, "b": {"input": 5}, "c": {"input": 6}})
        readings = source.read()
        self.assertAlmostEqual(readings["a"], 2.471, delta=0.001)
        self.assertIn("nothing answers at 0x69: check wiring", str(readings["b"]))
        self.assertEqual(str(readings["b"]), str(readings["c"]))
        self.assertEqual([address for address, _ in wires.log].count(0x69), 1)
        self.assertEqual(wires.open, 1)

    def test_bus_is_opened_again_after_all_channels_have_failed(self):
        wires = Wires({0x68: Chip(lambda n: 1.0)})
        source = self.source(wires, {"a": {"input": 1}})
        wires.broken = errno.ETIMEDOUT
        self.assertIn("the bus hangs at 0x68: SDA or SCL is held low", str(source.read()["a"]))
        self.assertEqual(wires.open, 0)
        wires.broken = errno.EBUSY
        self.assertEqual(str(source.read()["a"]), "I2C at 0x68: Device or resource busy")
        wires.broken = 0
        self.assertAlmostEqual(source.read()["a"], 2.471, delta=0.001)
        self.assertEqual(wires.open, 1)

    def test_chip_of_another_kind_raises_sensor_error(self):
        """A clock of the DS1307 family has the same address."""

        class Clock(Chip):
            def give(self):
                while True:
                    yield from (0, 0, 1, 0, 0, 1, 0, 1)

        source = self.source(Wires({0x68: Clock(lambda n: 0)}), {"a": {"input": 1}})
        self.assertIn("the chip at 0x68 does not answer like an MCP3424", str(source.read()["a"]))

    def test_bus_that_cannot_be_opened_is_reported_with_the_remedy(self):
        for error, words in (
            (FileNotFoundError(2, "No such file"), "/dev/i2c-1 does not exist: enable I2C"),
            (PermissionError(13, "Permission denied"), "sudo usermod -aG i2c $USER"),
            (OSError(5, "Input/output error"), "/dev/i2c-1: Input/output error"),
        ):
            with self.assertRaises(SensorError) as caught:
                self.source(error, {"a": {"input": 1}}).read()
            self.assertIn(words, str(caught.exception))

    def test_chip_with_a_kernel_driver_is_refused(self):
        root = temp_folder(self)
        device = os.path.join(root, "sys/bus/i2c/devices/1-0069")
        os.makedirs(os.path.join(root, "sys/bus/i2c/drivers/mcp3422"))
        os.makedirs(device)
        wires = Wires({0x68: Chip(lambda n: 1.0), 0x69: Chip(lambda n: 1.0)})
        source = self.source(wires, {"a": {"input": 5}}, root=root)
        self.assertAlmostEqual(
            source.read()["a"], 2.471, delta=0.001
        )  # the kernel knows the chip, but has no driver for it
        source.close()
        os.symlink("../../drivers/mcp3422", os.path.join(device, "driver"))
        with self.assertRaisesRegex(SensorError, 'at 0x69 has a kernel driver, mcp3422: read it with kind = "kernel"'):
            source.read()
        self.assertAlmostEqual(self.source(wires, {"a": {"input": 1}}, root=root).read()["a"], 2.471, delta=0.001)


class Tables(Case):
    def test_missing_smbus2_is_reported_with_the_remedy(self):
        """The source fails with the remedy, and the node continues. After the installation the source works."""
        source = self.source(Wires({0x68: Chip(lambda n: 1.0)}), {"a": {"input": 1}})
        with (
            mock.patch.dict(sys.modules, {"smbus2": None}),
            self.assertRaisesRegex(
                SensorError, "^the Python module smbus2 is missing: sudo apt install python3-smbus2$"
            ),
        ):
            source.read()
        self.assertAlmostEqual(source.read()["a"], 2.471, delta=0.001)

    def test_invalid_tables_are_refused(self):
        for channel, options, words in (
            ({}, {}, "channels.a: input is missing"), ({"input": 0}, {}, "input takes a whole number from 1 to 8"),
            ({"input": 9}, {}, "input takes"), ({"input": 1, "bits": 13}, {}, "bits takes 12, 14, 16, 18, not 13"),
            ({"input": 1, "pga": 3}, {}, "pga takes 1, 2, 4, 8"), ({"input": 1, "pga": True}, {}, "pga takes"),
            ({"input": 1}, {"address": 0x48}, "address takes an address from 0x68 to 0x6f, not 72"),
            ({"input": 5}, {"address": 0x6F}, "channels.a: input 5 is on the second chip"),
            ({"input": 5}, {"second": 0x68}, "channels.a: input 5 is on the second chip"),
            ({"input": 1}, {"divider": 0}, "divider takes a number"),
        ):  # fmt: skip
            with self.subTest(words), self.assertRaises(SettingsError) as caught:
                self.source(Wires({}), {"a": channel}, **options)
            self.assertTrue(str(caught.exception).startswith("here: "), caught.exception)
            self.assertIn(words, str(caught.exception))
        self.assertTrue(self.source(Wires({}), {"a": {"input": 4}}, address=0x6F))


if __name__ == "__main__":
    unittest.main()
