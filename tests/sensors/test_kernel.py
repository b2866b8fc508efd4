"""Tests of kind = "kernel" with files created by the test, as Linux drivers publish them."""

import errno
import os
import shutil
import unittest
from unittest import mock

from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors import kernel
from pigeonpost.sensors.contract import Channel
from tests.sensors.test_contract import Contract
from tests.support import temp_folder

GOOD = "a3 01 4b 46 7f ff 0d 10 ce : crc=ce YES\na3 01 4b 46 7f ff 0d 10 ce t=26187\n"
POWER_ON = "50 05 4b 46 7f ff 0c 10 1c : crc=1c YES\n50 05 4b 46 7f ff 0c 10 1c t=85000\n"
HOT = "50 05 4b 46 7f ff 10 10 04 : crc=04 YES\n50 05 4b 46 7f ff 10 10 04 t=85000\n"


class KernelCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.root = temp_folder(self)

    def put(self, folder, **files):
        """Create the files of one device."""
        path = os.path.join(self.root, folder)
        os.makedirs(path, exist_ok=True)
        for name, content in files.items():
            with open(os.path.join(path, name), "w", encoding="utf-8") as file:
                file.write(f"{content}\n" if not str(content).endswith("\n") else content)

    def link(self, at, to):
        os.makedirs(os.path.dirname(os.path.join(self.root, at)), exist_ok=True)
        os.symlink(os.path.join(self.root, to), os.path.join(self.root, at))

    def source(self, place, **more):
        return kernel.make({"root": self.root, "channels": {"x": {"from": place, **more}}}, "here")

    def read(self, place, **more):
        return self.source(place, **more).read()["x"]

    def assert_says(self, place, *words):
        error = self.read(place)
        self.assertIsInstance(error, SensorError)
        for word in words:
            self.assertIn(word, str(error))

    def refused(self, entry):
        with self.assertRaises(SettingsError) as caught:
            kernel.make({"root": self.root, "channels": {"x": entry}}, "here")
        self.assertTrue(str(caught.exception).startswith("here: channels.x"), caught.exception)
        return str(caught.exception)


class Kernel(Contract, KernelCase):
    module = kernel

    def make(self):
        self.put("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=48312)
        return self.source("thermal/cpu-thermal")

    def make_broken(self):
        return self.source("iio/bme280/temp")


class Iio(KernelCase):
    def chip(self, number=0, **files):
        self.put(f"sys/bus/iio/devices/iio:device{number}", **files)

    def test_converted_value_of_the_driver_is_used(self):
        self.chip(name="bme280", in_temp_input=21530, in_humidityrelative_input=47250, in_pressure_input="101.325")
        self.assertEqual(self.read("iio/bme280/temp"), 21.53)
        self.assertEqual(self.read("iio/bme280/humidityrelative"), 47.25)
        self.assertEqual(self.read("iio/bme280/pressure"), 101.325)

    def test_raw_value_is_offset_and_then_scaled(self):
        self.chip(name="hts221", in_temp_raw=100, in_temp_offset="-20", in_temp_scale="125.5")
        self.assertEqual(self.read("iio/hts221/temp"), 10.04)

    def test_own_offset_and_scale_have_priority_over_shared_ones(self):
        self.chip(name="ads1015", in_voltage0_raw=500, in_voltage1_raw=500, in_voltage1_scale=1, in_voltage_scale="3.0",
                  in_voltage_offset=10)  # fmt: skip
        self.assertEqual(self.read("iio/ads1015/voltage0"), 1.53)
        self.assertEqual(self.read("iio/ads1015/voltage1"), 0.51)

    def test_differential_channel_is_read(self):
        self.chip(**{"name": "ads1015", "in_voltage0-voltage1_raw": -500, "in_voltage0-voltage1_scale": 2})
        self.assertEqual(self.read("iio/ads1015/voltage0-voltage1"), -1.0)

    def test_mcp3424_values_are_in_volts(self):
        self.chip(name="mcp3424", in_voltage0_raw=100_000, in_voltage0_scale="0.000015625")
        self.assertEqual(self.read("iio/mcp3424/voltage0", gain=2.471), round(1.5625 * 2.471, 6))

    def test_units_are_converted(self):
        for channel, unit in (
            ("temp", "°C"),
            ("voltage3", "V"),
            ("illuminance", "lx"),
            ("massconcentration_pm2p5", "µg/m³"),
        ):
            self.assertEqual(self.source(f"iio/any/{channel}").channels, [Channel("x", unit)])
        self.assertEqual(self.source("iio/any/temp", unit="K").channels, [Channel("x", "K")])

    def test_device_is_found_by_name_label_or_address_and_never_by_number(self):
        self.put("sys/devices/i2c-1/1-0076/iio:device3", name="bme280", label="attic", in_temp_input=1000)
        self.link("sys/bus/iio/devices/iio:device3", "sys/devices/i2c-1/1-0076/iio:device3")
        for name in ("bme280", "attic", "1-0076"):
            self.assertEqual(self.read(f"iio/{name}/temp"), 1)
        self.assert_says("iio/iio:device3/temp", "no such device; found: bme280")

    def test_two_devices_with_the_same_name_are_distinguished_by_address(self):
        for number, address in ((0, "1-0076"), (1, "1-0077")):
            self.put(f"sys/devices/{address}/iio:device{number}", name="bme280", in_temp_input=1000 * number)
            self.link(f"sys/bus/iio/devices/iio:device{number}", f"sys/devices/{address}/iio:device{number}")
        self.assert_says("iio/bme280/temp", "2 devices have this name; use one of their bus addresses: 1-0076, 1-0077")
        self.assertEqual(self.read("iio/1-0077/temp"), 1)

    def test_device_that_appears_disappears_or_moves_is_found(self):
        source = self.source("iio/bme280/temp")
        self.assertIn("found: none", str(source.read()["x"]))
        self.chip(0, name="bme280", in_temp_input=1000)
        self.assertEqual(source.read()["x"], 1)
        shutil.rmtree(os.path.join(self.root, "sys/bus/iio/devices/iio:device0"))
        self.assertIn("found: none", str(source.read()["x"]))
        self.chip(7, name="bme280", in_temp_input=2000)
        self.assertEqual(source.read()["x"], 2)

    def test_unreadable_channel_is_a_sensor_error(self):
        self.chip(name="bme280", in_temp_input="n/a")
        self.assert_says("iio/bme280/temp", "iio/bme280, in_temp_input: 'n/a' is not a number")
        self.assert_says("iio/bme280/pressure", "in_pressure_raw: No such file")

    def test_dht11_is_read_again_after_two_seconds(self):
        self.chip(name="dht11@4", in_temp_input=21_000, in_humidityrelative_input=40_000)
        answers = [OSError(errno.EIO, "Input/output error"), OSError(errno.ETIMEDOUT, "timed out"), "21000"]
        real = kernel.Device._read

        def read(device, path, file):
            if file != "in_temp_input" or not answers:
                return real(device, path, file)
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

        with (
            mock.patch.object(kernel.Device, "_read", read),
            mock.patch("pigeonpost.sensors.kernel.time.sleep") as slept,
        ):
            self.assertEqual(self.read("iio/dht11@4/temp"), 21)
            self.assertEqual([call.args for call in slept.call_args_list], [(2.0,), (2.0,)])
            answers += [OSError(errno.ETIMEDOUT, "timed out")] * 3
            self.assert_says("iio/dht11@4/temp", "the device does not answer: check power, wiring and pull-up resistor")
            slept.reset_mock()
            self.assert_says("iio/dht11@4/pressure", "No such file")
            slept.assert_not_called()

    def test_unknown_channel_is_refused(self):
        self.assertIn(
            "from takes a channel of one of the kinds accel, angl,", self.refused({"from": "iio/bme280/tempo2"})
        )
        self.assertIn("from takes a channel of", self.refused({"from": "iio/bme280"}))
        self.assertIn("from takes a channel of", self.refused({"from": "iio/bme280/../../../etc/passwd"}))


class Hwmon(KernelCase):
    def setUp(self):
        super().setUp()
        self.put(
            "sys/class/hwmon/hwmon2", name="coretemp", temp1_input=51000, temp1_label="Package id 0", temp2_input=47000,
            temp2_label="Core 0", in0_input=12034, fan1_input=1200, power1_input=5_500_000,
        )  # fmt: skip

    def test_channel_is_found_by_input(self):
        wanted = {"temp1": 51, "temp2": 47, "in0": 12.034, "fan1": 1200, "power1": 5.5}
        self.assertEqual({name: self.read(f"hwmon/coretemp/{name}") for name in wanted}, wanted)
        self.assertEqual(self.source("hwmon/coretemp/in0").channels[0].unit, "V")

    def test_channel_is_found_by_label(self):
        self.assertEqual(self.read("hwmon/coretemp/temp/Core 0"), 47)
        self.assert_says("hwmon/coretemp/temp/Core 9", "no temp has the label 'Core 9'; found: Package id 0, Core 0")

    def test_invalid_input_is_refused(self):
        for channel in ("temp", "temp1_label", "gpio1", "../x"):
            self.assertIn("from takes a channel of", self.refused({"from": f"hwmon/coretemp/{channel}"}))


class Thermal(KernelCase):
    def test_zone_is_found_by_type(self):
        self.put("sys/class/thermal/thermal_zone0", type="gpu-thermal", temp=1000)
        self.put("sys/class/thermal/thermal_zone1", type="cpu-thermal", temp=48312)
        self.assertEqual(self.read("thermal/cpu-thermal"), 48.312)
        self.assertIn("takes only a zone", self.refused({"from": "thermal/cpu-thermal/temp"}))


class OneWire(KernelCase):
    def read_slave(self, content):
        self.put("sys/bus/w1/devices/28-0316a2794bff", name="28-0316a2794bff", w1_slave=content)
        return self.read("w1/28-0316a2794bff")

    def test_temperature_is_read(self):
        self.assertEqual(self.read_slave(GOOD), 26.187)
        self.assertEqual(self.read_slave(GOOD.replace("a3 01", "ef ff").replace("t=26187", "t=-1062")), -1.062)

    def test_invalid_checksum_is_a_sensor_error(self):
        for content in (GOOD.replace("YES", "NO"), "", "\n", GOOD.split("\n")[0], GOOD.replace("t=", ""), "00 " * 9):
            with self.subTest(content):
                self.assertIn("invalid checksum or no answer", str(self.read_slave(content)))

    def test_power_on_value_is_recognised_by_the_scratchpad(self):
        self.assertIn("power-on", str(self.read_slave(POWER_ON)))
        self.assertEqual(self.read_slave(HOT), 85)

    def test_invalid_id_is_refused(self):
        for name in ("28-0316a2794bf", "w1_bus_master1", "28-0316A2794BFF", "28-0316a2794bff/temperature"):
            self.assertIn(
                'takes the id of a 1-Wire sensor, as in "w1/28-0316a2794bff"', self.refused({"from": f"w1/{name}"})
            )


class Tables(KernelCase):
    def test_calibration_is_applied(self):
        self.put("sys/class/thermal/thermal_zone0", type="soc", temp=40000)
        self.assertEqual(self.read("thermal/soc", gain=1.1, offset=-0.5), 43.5)

    def test_invalid_tables_are_refused(self):
        self.assertIn("from takes iio, hwmon, thermal, w1, a device and its channel", self.refused({}))
        self.assertIn("not 'spi/0'", self.refused({"from": "spi/0"}))
        self.assertIn("unknown key 'fro'; did you mean \"from\"?", self.refused({"fro": "w1/x"}))
        for channels in ({}, None):
            with self.assertRaisesRegex(SettingsError, "^here: channels is missing"):
                kernel.make({} if channels is None else {"channels": channels}, "here")
        with self.assertRaisesRegex(SettingsError, "^here: channels.Big: a channel must be a table"):
            kernel.make({"channels": {"Big": {}}}, "here")


if __name__ == "__main__":
    unittest.main()
