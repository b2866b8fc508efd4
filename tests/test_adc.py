"""Tests of the MCP3008 driver: bits of the data sheet, conversions, and errors without a chip."""

import math
import os
import random
import sys
import types
import unittest
from unittest import mock

import adc
from adc import MAX_SPEED_HZ, AdcInput, AdcSource, Mcp3008, celsius, ldr_lux, ldr_ohms, open_spi
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors.contract import with_limits
from pigeonpost.sensors.simulated import SimulatedChip


class Bus:
    """Fake SPI device that answers as in figure 5-1 of the data sheet and records the bytes sent."""

    def __init__(self, counts=lambda n: 0, silent=None):
        self.counts = counts
        self.silent = silent  # level of an undriven line
        self.sent = []
        self.lists = []
        self.closed = 0

    def xfer2(self, values):
        self.sent.append(tuple(values))
        self.lists.append(values)
        if self.silent is not None:
            answer = [0xFF * self.silent] * len(values)
        else:
            answer = SimulatedChip(lambda n: self.counts(n), 1024).xfer2(values)
        values[:] = answer  # some versions of spidev write into the list that they receive
        return values

    def close(self):
        self.closed += 1


class Bits(unittest.TestCase):
    def test_request_has_start_bit_mode_and_input(self):
        """DS21295, table 5-2 and figure 6-1: start bit, single-ended or differential, and three bits for the input."""
        bus = Bus()
        chip = Mcp3008(bus)
        for plus in range(8):
            chip.read(plus)
        self.assertEqual(bus.sent, [(0b0000_0001, 0b1000_0000 | plus << 4, 0) for plus in range(8)])
        self.assertEqual(bus.sent[5], (1, 0b1101_0000, 0))
        del bus.sent[:]
        for plus in range(8):
            chip.read(plus, plus ^ 1)
        self.assertEqual(bus.sent, [(0b0000_0001, plus << 4, 0) for plus in range(8)])

    def test_response_is_decoded_to_ten_bits(self):
        for answer, counts in (
            ([0, 0, 0], 0), ([0xFF, 0b1111_1011, 0xFF], 1023), ([0, 0b10, 0], 512), ([0, 0b01, 1], 257),
            ([0x5A, 0b1111_1000, 0x80], 128), ([0xFF, 0b1010_0010, 0b1010_1010], 682),
        ):  # fmt: skip
            bus = mock.Mock()
            bus.xfer2.return_value = answer
            self.assertEqual(Mcp3008(bus).read(0), counts)

    def test_every_count_of_every_input_is_read(self):
        for counts in range(1024):
            chip = Mcp3008(Bus(lambda n, counts=counts: counts if n == counts % 8 else 1023 - counts))
            self.assertEqual(chip.read(counts % 8), counts)
            self.assertEqual(chip.read((counts + 1) % 8), 1023 - counts)

    def test_differential_reading_subtracts_the_neighbour_and_is_never_negative(self):
        chip = Mcp3008(Bus(lambda n: 100 * n))
        self.assertEqual([chip.read(n, n ^ 1) for n in range(8)], [0, 100, 0, 100, 0, 100, 0, 100])

    def test_differential_reading_of_inputs_that_are_not_neighbours_raises_value_error(self):
        for plus in range(8):
            for minus in range(8):
                if minus != plus ^ 1:
                    with self.assertRaisesRegex(ValueError, "only neighbouring inputs"):
                        Mcp3008(Bus()).read(plus, minus)

    def test_each_transfer_sends_a_new_list(self):
        """spidev can write the response into the list, which would then be sent as the next request."""
        bus = Bus(lambda n: 1000)
        chip = Mcp3008(bus)
        self.assertEqual([chip.read(3) for _ in range(5)], [1000] * 5)
        self.assertEqual(len({id(values) for values in bus.lists}), 5)
        self.assertEqual(len(set(bus.sent)), 1)

    def test_null_bit_of_one_raises_sensor_error(self):
        bus = mock.Mock()
        bus.xfer2.return_value = [0, 0b100, 0]
        with self.assertRaisesRegex(SensorError, "the chip does not answer"):
            Mcp3008(bus).read(0)

    def test_close_closes_the_spi_device(self):
        bus = Bus()
        Mcp3008(bus).close()
        self.assertEqual(bus.closed, 1)


class Conversions(unittest.TestCase):
    def test_temperature_conversions_match_the_data_sheets(self):
        for volts, offset_mv, expected in (
            (0.5, 500, 0.0), (0.75, 500, 25.0), (0.1, 500, -40.0), (1.75, 500, 125.0),  # MCP9700, TMP36
            (0.25, 0, 25.0), (1.5, 0, 150.0), (0.02, 0, 2.0),  # LM35
        ):  # fmt: skip
            self.assertEqual(celsius(volts, offset_mv, 10.0), expected)
        self.assertEqual(celsius(1.0, 400.0, 19.5), 30.77)  # MCP9701

    def test_ldr_resistance_is_calculated_for_both_positions_in_the_divider(self):
        self.assertEqual(ldr_ohms(512, 10_000, "supply"), 10_000.0)
        self.assertEqual(ldr_ohms(512, 10_000, "ground"), 10_000.0)
        self.assertEqual(ldr_ohms(256, 10_000, "supply"), 30_000.0)
        self.assertEqual(ldr_ohms(256, 10_000, "ground"), 3_333.3)
        self.assertEqual(ldr_ohms(768, 10_000, "ground"), 30_000.0)

    def test_ldr_resistance_rises_with_counts_at_ground_and_falls_at_supply(self):
        supply = [ldr_ohms(counts, 10_000, "supply") for counts in range(1, 1023)]
        ground = [ldr_ohms(counts, 10_000, "ground") for counts in range(1, 1023)]
        self.assertEqual(supply, sorted(supply, reverse=True))
        self.assertEqual(ground, sorted(ground))

    def test_ldr_at_an_end_of_the_scale_raises_sensor_error(self):
        for side in ("supply", "ground"):
            for counts in (0, 0.4, 1022.6, 1023):
                with self.assertRaisesRegex(SensorError, "end of the scale: too dark, too bright, or not connected"):
                    ldr_ohms(counts, 10_000, side)

    def test_lux_estimate_matches_the_data_sheet(self):
        self.assertEqual(ldr_lux(15_000, 15_000, 0.7), 10.0)
        self.assertEqual(ldr_lux(15_000 / 10**0.7, 15_000, 0.7), 100.0)
        self.assertEqual(ldr_lux(15_000 * 10**0.7, 15_000, 0.7), 1.0)

    def test_every_allowed_setting_gives_a_finite_number_or_a_sensor_error(self):
        chance = random.Random(1)
        for _ in range(1000):
            entry = {
                "input": chance.randrange(8), "convert": chance.choice(list(adc._UNITS)),
                "ldr_at": chance.choice(("supply", "ground")), "fixed_ohms": chance.choice((1, 10, 1e4, 1e9)),
                "ohms_at_10_lux": chance.choice((1, 15_000, 1e9)), "gamma": chance.choice((0.1, 0.7, 2)),
            }  # fmt: skip
            if chance.random() < 0.5:
                entry |= {"gain": chance.choice((-1e9, 0, 1e-9, 1e9)), "offset": chance.choice((-1e9, 0, 1e9))}
            counts = chance.choice((0, 1, 2, 512, 1000, 1021, 1022, 1023))
            source = adc.make({"channels": {"x": entry}}, "here", Bus(lambda n, counts=counts: counts if n < 8 else 0))
            source._check_chip_answers = lambda *_: None
            reading = source.read()["x"]
            self.assertTrue(isinstance(reading, SensorError) or math.isfinite(reading), (entry, counts, reading))


def source_of(channels, counts=lambda n: 100 * n + 7, bus=None, **settings):
    bus = bus or Bus(counts)
    return adc.make({"channels": channels, **settings}, "node.toml: [[sensor]] 1", bus), bus


class Sources(unittest.TestCase):
    def test_each_conversion_gives_its_value_and_unit(self):
        counts = {1: 233, 2: 512, 3: 128, 4: 256, 5: 512, 6: 512, 7: 77}.get
        source, _ = source_of(
            {
                "a": {"input": 1, "convert": "mcp9700"}, "b": {"input": 1, "convert": "tmp36"},
                "c": {"input": 3, "convert": "lm35"}, "d": {"input": 2, "convert": "volts"}, "e": {"input": 7},
                "f": {"input": 4, "convert": "ldr_ohms"},
                "g": {"input": 5, "convert": "ldr_lux", "ohms_at_10_lux": 10_000},
                "h": {"input": "6-7", "convert": "counts"}, "i": {"input": "6", "gain": 0.5, "offset": -3, "unit": "%"},
            },
            counts,
        )  # fmt: skip
        self.assertEqual(source.read(), {
            "a": 25.09, "b": 25.09, "c": 41.25, "d": 1.65, "e": 77, "f": 30_000.0, "g": 10.0, "h": 435, "i": 253.0,
        })  # fmt: skip
        units = {channel.name: channel.unit for channel in source.channels}
        self.assertEqual(units, {
            "a": "°C", "b": "°C", "c": "°C", "d": "V", "e": "counts", "f": "Ω", "g": "lx", "h": "counts", "i": "%",
        })  # fmt: skip

    def test_reference_voltage_scales_the_value(self):
        source, _ = source_of({"v": {"input": 1, "convert": "volts"}}, lambda n: 512, vref_v=5)
        self.assertEqual(source.read(), {"v": 2.5})

    def test_temperature_sensor_has_the_range_of_its_data_sheet(self):
        def possible(**options):
            return adc.make({"channels": {"t": {"input": 1, **options}}}, "here").channels[0].possible

        self.assertEqual([possible(convert=name) for name in ("mcp9700", "tmp36", "lm35", "volts")],
                         [(-45, 155), (-45, 155), (-55, 150), None])  # fmt: skip
        for options in ({"gain": 1.8}, {"offset": 1}, {"unit": "°F"}, {"mv_per_c": 19.5}, {"offset_mv": 400}):
            self.assertIsNone(possible(convert="mcp9700", **options))
        table = {"channels": {"t": {"input": 1, "convert": "lm35", "gain": 1.8, "offset": 32, "raw": True}}}
        channels = with_limits(table, "here", lambda plain: adc.make(plain, "here")).channels
        self.assertEqual([channel.possible for channel in channels], [(-67, 302), (-55, 150)])

    def test_temperature_within_the_accuracy_of_the_sensor_is_possible(self):
        for count, expected in ((31, True), (18, True), (635, True), (1, False), (15, False), (640, False)):
            source, _ = source_of({"t": {"input": 1, "convert": "tmp36"}}, lambda n, count=count: count)
            low, high = source.channels[0].possible
            self.assertEqual(low <= source.read()["t"] <= high, expected)

    def test_slope_and_offset_of_a_temperature_sensor_can_be_set(self):
        source, _ = source_of(
            {"t": {"input": 1, "convert": "mcp9700", "offset_mv": 400, "mv_per_c": 19.5}}, lambda n: 310
        )
        self.assertEqual(source.read(), {"t": round((310 / 1024 * 3300 - 400) / 19.5, 2)})
        source, _ = source_of({"t": {"input": 1, "convert": "tmp36", "offset_mv": 0}}, lambda n: 310)
        self.assertEqual(source.read(), {"t": 99.9})

    def test_average_makes_the_given_number_of_conversions(self):
        values = iter(range(10, 1000))
        source, bus = source_of({"v": {"input": 3, "convert": "volts"}}, lambda n: next(values), average=20)
        self.assertEqual(source.read(), {"v": round(19.5 / 1024 * 3.3, 4)})
        self.assertEqual(len(bus.sent), 20)

    def test_channel_at_the_end_of_its_scale_does_not_affect_the_others(self):
        source, _ = source_of(
            {"light": {"input": 2, "convert": "ldr_lux"}, "t": {"input": 1, "convert": "mcp9700"}},
            {1: 233, 2: 1023}.get,
        )
        readings = source.read()
        self.assertIsInstance(readings["light"], SensorError)
        self.assertEqual(readings["t"], 25.09)

    def test_undriven_data_line_raises_sensor_error(self):
        for level, text in ((0, "every input reads 0"), (1, "every input reads 1023")):
            source, bus = source_of({"t": {"input": 1, "convert": "mcp9700"}}, bus=Bus(silent=level))
            with self.assertRaisesRegex(SensorError, text) as caught:
                source.read()
            self.assertIn("Check the wiring: power, ground, DOUT to MISO, CS to CE0", str(caught.exception))
            self.assertEqual(bus.closed, 1)

    def test_all_inputs_at_1023_raise_sensor_error_although_the_null_bit_is_zero(self):
        source, _ = source_of({"t": {"input": 1}}, lambda n: 1023)
        with self.assertRaisesRegex(SensorError, "every input reads 1023. Check"):
            source.read()

    def test_single_input_at_the_end_of_its_scale_is_a_valid_reading(self):
        for rail in (0, 1023):
            source, _ = source_of({"t": {"input": 1}}, lambda n, rail=rail: rail if n == 1 else 5)
            self.assertEqual(source.read(), {"t": rail})

    def test_chip_is_opened_at_the_first_reading_and_again_after_an_error(self):
        opened = []
        good, bad = Bus(lambda n: n), mock.Mock()
        bad.xfer2.side_effect = OSError(121, "Remote I/O error")

        def open_chip():
            opened.append(bad if len(opened) == 1 else good)
            if not opened[1:]:
                raise SensorError("not there yet")
            return Mcp3008(opened[-1])

        source = AdcSource(open_chip, {"x": AdcInput(3, None, round)}, [])
        self.assertEqual(opened, [])
        for text in ("not there yet", "SPI: Remote I/O error"):
            with self.assertRaisesRegex(SensorError, text):
                source.read()
        bad.close.assert_called_once_with()
        self.assertEqual([source.read(), source.read()], [{"x": 3}, {"x": 3}])
        self.assertEqual(opened, [good, bad, good])
        source.close()
        source.close()
        self.assertEqual(good.closed, 1)

    def test_channels_of_a_simulated_chip_are_marked(self):
        source, _ = source_of({"t": {"input": 1}})
        self.assertTrue(all(channel.simulated for channel in source.channels))
        source = adc.make({"channels": {"t": {"input": 1}}}, "here")
        self.assertFalse(any(channel.simulated for channel in source.channels))


class Settings(unittest.TestCase):
    def refused(self, settings, *words):
        with self.assertRaises(SettingsError) as caught:
            adc.make(settings, "node.toml: [[sensor]] 1", Bus())
        for word in ("node.toml: [[sensor]] 1", *words):
            self.assertIn(word, str(caught.exception))

    def test_invalid_setting_is_named_in_the_error(self):
        for settings, words in (
            ({}, ["channels is missing", "channels.temperature = {input = 1}"]),
            ({"channels": {}}, ["channels is missing"]),
            ({"channels": 5}, ["channels takes a table, not 5"]),
            ({"channels": {"T": {"input": 1}}}, ["channels.T", "a lower-case letter"]),
            ({"channels": {"t": 1}}, ["channels.t: a channel must be a table"]),
            ({"channels": {"t": {}}}, ["channels.t: input is missing", "0 to 7"]),
            ({"channels": {"t": {"input": 8}}}, ["channels.t: input takes an input, 0 to 7", "not 8"]),
            ({"channels": {"t": {"input": "0-2"}}}, ["two neighbouring inputs"]),
            ({"channels": {"t": {"input": "1-2"}}}, ["two neighbouring inputs"]),
            ({"channels": {"t": {"input": -1}}}, ["not -1"]),
            ({"channels": {"t": {"input": 1, "convert": "kelvin"}}}, ["convert takes", "'mcp9700'", "not 'kelvin'"]),
            ({"channels": {"t": {"input": 1, "convrt": "volts"}}}, ['did you mean "convert"?']),
            ({"channels": {"t": {"input": 1, "ldr_at": "top"}}}, ["'supply' or 'ground'"]),
            ({"channels": {"t": {"input": 1, "unit": "x" * 33}}}, ["a text up to 32 characters"]),
            ({"channels": {"t": {"input": 1}}, "vref": 5}, ['did you mean "vref_v"?']),
            ({"channels": {"t": {"input": 1}}, "average": 0}, ["average takes a whole number from 1 to 1000, not 0"]),
            ({"channels": {"t": {"input": 1}}, "max_speed_hz": 4e6}, ["max_speed_hz"]),
        ):
            with self.subTest(settings):
                self.refused(settings, *words)

    def test_all_inputs_and_all_pairs_are_accepted(self):
        for n in range(8):
            for given in (n, str(n), f"{n}-{n ^ 1}"):
                source, _ = source_of({"t": {"input": given}}, lambda n: 3 * n + 1)
                self.assertEqual(source.read()["t"], max(0, 3 * n - 3 * (n ^ 1)) if "-" in str(given) else 3 * n + 1)


class Spidev(unittest.TestCase):
    """The spidev module, and its errors on a Pi that is not set up."""

    def install(self, error=None):
        device = mock.Mock()
        device.open.side_effect = error
        module = types.SimpleNamespace(SpiDev=lambda: device)
        self.enterContext(mock.patch.dict(sys.modules, {"spidev": module}))
        return device

    def told(self, bus=0, device=0):
        with self.assertRaises(SensorError) as caught:
            open_spi(bus, device)
        return str(caught.exception)

    def test_device_is_opened_with_speed_and_mode_0(self):
        device = self.install()
        self.assertIs(open_spi(1, 2), device)
        device.open.assert_called_once_with(1, 2)
        self.assertEqual((device.max_speed_hz, device.mode), (MAX_SPEED_HZ, 0))
        self.assertEqual(MAX_SPEED_HZ, 1_000_000)

    def test_settings_select_bus_device_and_speed(self):
        device = self.install()
        device.xfer2.return_value = [0, 1, 44]
        settings = {"channels": {"t": {"input": 1}}, "bus": 1, "device": 2, "max_speed_hz": 500_000}
        self.assertEqual(adc.make(settings, "here").read(), {"t": 300})
        device.open.assert_called_once_with(1, 2)
        self.assertEqual(device.max_speed_hz, 500_000)

    def test_missing_spidev_module_is_reported_with_the_remedy(self):
        self.enterContext(mock.patch.dict(sys.modules, {"spidev": None}))
        text = self.told()
        self.assertIn("sudo apt install python3-spidev", text)
        self.assertIn("python3 node.py --simulate", text)

    def test_missing_device_is_reported_with_the_remedy(self):
        self.install(FileNotFoundError(2, "No such file or directory"))
        text = self.told(1, 2)
        self.assertIn("/dev/spidev1.2", text)
        self.assertIn("`sudo raspi-config nonint do_spi 0`", text)

    def test_missing_device_in_a_container_is_reported_with_the_compose_line(self):
        self.install(FileNotFoundError(2, "No such file or directory"))
        with mock.patch.dict(os.environ, BALENA="1"):
            text = self.told(1, 2)
        self.assertIn('`devices: ["/dev/spidev1.2:/dev/spidev1.2"]` to docker-compose.yml', text)

    def test_missing_permission_is_reported_with_the_remedy(self):
        self.install(PermissionError(13, "Permission denied"))
        self.assertIn("`sudo usermod -aG spi $USER`", self.told())
        with mock.patch.dict(os.environ, STATE_DIRECTORY="/var/lib/pigeonpost-node"):
            self.assertIn("`sudo python3 /opt/pigeonpost/control.py install node --write`", self.told())

    def test_error_of_the_system_is_reported_with_its_text(self):
        self.install(OSError(16, "Device or resource busy"))
        self.assertEqual(self.told(), "/dev/spidev0.0: Device or resource busy")


if __name__ == "__main__":
    unittest.main()
