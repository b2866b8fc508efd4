"""Tests of chips that Linux drivers read: their channels and units, and values that they cannot have."""

import math
import unittest
from unittest import mock

from pigeonpost.core.errors import SensorError
from pigeonpost.sensors import chips, json, kernel, machine, mqtt
from pigeonpost.sensors.contract import Channel, with_limits
from pigeonpost.sensors.ranges import ImpossibleValue
from tests.sensors.test_kernel import GOOD, POWER_ON, KernelCase

IIO, HWMON = "sys/bus/iio/devices/iio:device0", "sys/class/hwmon/hwmon0"


class ChipCase(KernelCase):
    def assert_impossible(self, place, *words, **more):
        error = self.read(place, **more)
        self.assertIsInstance(error, ImpossibleValue, error)
        for word in words:
            self.assertIn(word, str(error))

    def scanned(self):
        """Return the reading and the unit of each channel that a scan finds, by channel name."""
        found = {}
        for device in kernel.scan(self.root):
            source = kernel.make({key: value for key, value in device.table.items() if key != "kind"}, "here")
            units = {channel.name: channel.unit for channel in source.channels}
            found |= {name: (value, units[name]) for name, value in source.read().items()}
        return found


class FiveChips(ChipCase):
    """Files as the drivers of Linux 6.1 to 6.12 write them."""

    def test_bme280_is_found_with_its_units(self):
        self.put(IIO, name="bme280", in_temp_input=21_430, in_pressure_input="98.735156250",
                 in_humidityrelative_input="43015.625000000", in_temp_raw=541_000, in_temp_scale=1,
                 in_temp_oversampling_ratio=2)  # fmt: skip
        self.assertEqual(self.scanned(), {
            "bme280_temp": (21.43, "°C"), "bme280_pressure": (98.735156, "kPa"),
            "bme280_humidityrelative": (43.015625, "%"),
        })  # fmt: skip

    def test_bme680_is_found_with_its_units(self):
        for pressure in ("98.735000000", "987.350000000"):  # kPa; hPa before July 2024
            self.put(IIO, name="bme680", in_temp_input=21_430, in_pressure_input=pressure,
                     in_humidityrelative_input="43.215000000", in_resistance_input=82_986)  # fmt: skip
            self.assertEqual(self.scanned(), {
                "bme680_temp": (21.43, "°C"), "bme680_pressure": (98.735, "kPa"),
                "bme680_humidityrelative": (43.215, "%"), "bme680_resistance": (82_986, "Ω"),
            })  # fmt: skip

    def test_sht3x_is_found_with_its_units(self):
        self.put(HWMON, name="sht3x", temp1_input=23_482, humidity1_input=51_320, temp1_max=125_000, heater_enable=0)
        self.assertEqual(self.scanned(), {"sht3x_temp1": (23.482, "°C"), "sht3x_humidity1": (51.32, "%")})

    def test_bh1750_is_found_with_its_units(self):
        self.put(IIO, name="bh1750", in_illuminance_raw=240, in_illuminance_scale="0.833333", integration_time="0.12")
        self.assertEqual(self.scanned(), {"bh1750_illuminance": (199.99992, "lx")})

    def test_ina219_is_found_with_its_units(self):
        self.put(HWMON, name="ina219", in0_input=32, in1_input=12_004, curr1_input=-320, power1_input=3_840_000,
                 shunt_resistor=100_000)  # fmt: skip
        self.assertEqual(self.scanned(), {
            "ina219_in0": (0.032, "V"), "ina219_in1": (12.004, "V"), "ina219_curr1": (-0.32, "A"),
            "ina219_power1": (3.84, "W"),
        })  # fmt: skip

    def test_impossible_values_are_refused_with_the_raw_text(self):
        self.put(
            IIO, name="bme280", in_temp_input=-147_000, in_pressure_input="1013.25", in_humidityrelative_input=101_000
        )
        self.assert_impossible("iio/bme280/temp", "-147 °C", "-40 to 85 °C", "impossible '-147000'")
        self.assert_impossible("iio/bme280/pressure", "1013.25 kPa", "1 to 120 kPa", "impossible '1013.25'")
        self.assert_impossible("iio/bme280/humidityrelative", "101 %", "0 to 100 %", "impossible '101000'")
        self.put(IIO, name="bme680", in_resistance_input=-1, in_pressure_input=101_325)
        self.assert_impossible("iio/bme680/resistance", "resistance: at least 0 Ω")
        self.assert_impossible("iio/bme680/pressure", "101325 kPa")
        self.put(IIO, name="bh1750", in_illuminance_raw=-3, in_illuminance_scale="0.833333")
        self.assert_impossible("iio/bh1750/illuminance", "0 to 121600 lx", "read '(-3 + 0) x 0.833333'")
        self.put(HWMON, name="sht3x", temp1_input=130_000, humidity1_input=-6000)
        self.assert_impossible("hwmon/sht3x/temp1", "-40 to 125 °C")
        self.assert_impossible("hwmon/sht3x/humidity1", "-6 %")
        self.put(HWMON, name="ina219", in0_input=400, in1_input=-4, power1_input=-20_000, curr1_input=-32_768)
        for channel, word in (
            ("in0", "-0.3277 to 0.3277 V"),
            ("in1", "0 to 32.77 V"),
            ("power1", "INA219: at least 0 W"),
        ):
            self.assert_impossible(f"hwmon/ina219/{channel}", word)
        self.assertEqual(self.read("hwmon/ina219/curr1"), -32.768)


class Dht(ChipCase):
    def test_chip_is_recognised_by_every_name(self):
        for name in ("dht11@4", "dht11", "dht22@17", "humidity-sensor", "humidity_sensor@4", "soc:dht11@4",
                     "4.humidity_sensor", "am2302", "humidity-sensor.0", "dht11_cellar", "dht22-roof"):  # fmt: skip
            with self.subTest(name):
                self.put(IIO, name=name, in_temp_input=-3_274_500, in_humidityrelative_input=3_304_300)
                self.assert_impossible(f"iio/{name}/temp", "DHT11 or DHT22: -40 to 80 °C", "impossible '-3274500'")
                self.assert_impossible(f"iio/{name}/humidityrelative", "3304.3 %", "impossible '3304300'")
                self.put(IIO, in_temp_input=-40_000, in_humidityrelative_input=100_000)
                self.assertEqual(self.read(f"iio/{name}/temp"), -40)
                self.assertEqual(self.read(f"iio/{name}/humidityrelative"), 100)

    def test_chip_is_recognised_by_its_driver_and_in_the_device_tree(self):
        for number, more in enumerate(("driver", "compatible")):
            place = f"sys/devices/platform/weather{number}"
            self.put(f"{place}/iio:device{number}", name=f"weather{number}", in_temp_input=90_000)
            self.link(f"sys/bus/iio/devices/iio:device{number}", f"{place}/iio:device{number}")
            if more == "driver":
                self.put("sys/bus/platform/drivers/dht11")
                self.link(f"{place}/driver", "sys/bus/platform/drivers/dht11")
            else:
                self.put(f"{place}/of_node", compatible="vendor,dht22\0dht11\0")
            self.assert_impossible(f"iio/weather{number}/temp", "DHT11 or DHT22")


class OtherChips(ChipCase):
    def test_chip_is_recognised_if_it_is_named_by_its_bus_address(self):
        self.put("sys/devices/i2c-1/1-0076/iio:device0", name="bme280", in_temp_input=86_000)
        self.link(IIO, "sys/devices/i2c-1/1-0076/iio:device0")
        self.assert_impossible("iio/1-0076/temp", "-40 to 85 °C")

    def test_humidity_slightly_over_100_percent_is_read_from_chips_that_report_it(self):
        self.put(IIO, name="si7020", in_humidityrelative_raw=3562, in_humidityrelative_offset=-786,
                 in_humidityrelative_scale="36.621093")  # fmt: skip
        self.put(HWMON, name="sht4x", humidity1_input=102_500)
        self.assertEqual(self.read("iio/si7020/humidityrelative"), 101.660154)
        self.assertEqual(self.read("hwmon/sht4x/humidity1"), 102.5)
        self.put(HWMON, humidity1_input=119_000)
        self.assert_impossible("hwmon/sht4x/humidity1", "-5 to 105 %")
        for place in ("iio/si7020/humidityrelative", "iio/1-0040/humidityrelative"):
            self.assertEqual(self.source(place).channels[0].possible, (-5, 105))
        self.assertIsNone(self.source("iio/bme280/humidityrelative").channels[0].possible)

    def test_processor_temperatures_have_a_range(self):
        for value in (-650_788_984, 655_350, -274_000, 200_000):
            self.put("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=value)
            self.assert_impossible("thermal/cpu-thermal", "-40 to 150 °C", f"impossible '{value}'")
            for name in ("cpu_thermal", "coretemp", "k10temp", "other"):
                self.put(HWMON, name=name, temp1_input=value, temp1_label="die")
                self.assert_impossible(f"hwmon/{name}/temp1", f"impossible '{value}'")
                self.assert_impossible(f"hwmon/{name}/temp/die", f"impossible '{value}'")

    def test_platinum_and_bridged_thermometers_have_wide_ranges(self):
        for value, expected in ((150_000, 150), (-200_000, -200), (1_023_969, None), (-242_020, None)):
            self.put(IIO, name="max31865", in_temp_input=value)
            found = self.read("iio/max31865/temp")
            self.assertEqual(None if isinstance(found, ImpossibleValue) else found, expected)
        self.put(HWMON, name="iio_hwmon", temp1_input=1_100_000)
        self.assertEqual(self.read("hwmon/iio_hwmon/temp1"), 1100)

    def test_case_and_address_in_a_name_do_not_matter(self):
        for name in ("BME280", "bme280@76", "BMP280@77"):
            self.put(IIO, name=name, in_temp_input=180_000)
            self.assert_impossible(f"iio/{name}/temp", "-40 to 85 °C")

    def test_unknown_device_has_the_limits_of_its_quantity(self):
        self.put(IIO, name="max31856", in_temp_input=1_200_000)
        self.assertEqual(self.read("iio/max31856/temp"), 1200)
        self.put(IIO, name="unknown", in_temp_input=-273_151, in_humidityrelative_input=100_001, in_pressure_input=5000,
                 in_illuminance_input="-0.1", in_accel_x_raw=-5, in_accel_x_scale=1, in_voltage0_raw=-5,
                 in_voltage0_scale=1)  # fmt: skip
        for channel in ("temp", "humidityrelative", "illuminance"):
            self.assert_impossible(f"iio/unknown/{channel}", "impossible '")
        self.assertEqual([self.read(f"iio/unknown/{name}") for name in ("pressure", "accel_x", "voltage0")],
                         [5000, -5, -0.005])  # fmt: skip

    def test_thermometer_is_checked_by_its_scratchpad_if_it_is_a_hwmon_chip(self):
        self.put("sys/devices/w1/28-0316a2794bff", w1_slave=POWER_ON)
        self.put("sys/devices/w1/28-0316a2794bff/hwmon/hwmon1", name="w1_slave_temp", temp1_input=85_000)
        self.link("sys/class/hwmon/hwmon1", "sys/devices/w1/28-0316a2794bff/hwmon/hwmon1")
        self.link("sys/devices/w1/28-0316a2794bff/hwmon/hwmon1/device", "sys/devices/w1/28-0316a2794bff")
        self.assert_impossible("hwmon/w1_slave_temp/temp1", "power-on value")
        self.put("sys/devices/w1/28-0316a2794bff", w1_slave=GOOD)
        self.assertEqual(self.read("hwmon/28-0316a2794bff/temp1"), 26.187)

    def test_power_on_value_of_a_hwmon_chip_is_recognised_without_a_scratchpad(self):
        source = self.source("hwmon/w1_slave_temp/temp1")
        for value, expected in (
            (85_000, None),
            (84_500, 84.5),
            (85_000, 85),
            (20_000, 20),
            (85_000, None),
            (127_937, None),
        ):
            self.put(HWMON, name="w1_slave_temp", temp1_input=value)
            found = source.read()["x"]
            self.assertEqual(None if isinstance(found, ImpossibleValue) else found, expected)

    def test_each_pattern_of_chip_names_is_a_valid_expression(self):
        for chip in chips._CHIPS:
            self.assertFalse(chips.is_any(chip.names, ("1-0076", "", "devices")), chip.about)


class Scales(ChipCase):
    def test_raw_value_without_a_unit_is_refused(self):
        self.put(IIO, name="adc", in_voltage0_raw=500, in_temp_raw=500, in_temp_scale=0, in_voltage1_raw="nan",
                 in_voltage2_raw=5, in_voltage2_scale="inf", in_voltage3_raw="1_000", in_voltage3_scale=1,
                 in_proximity_raw=7)  # fmt: skip
        for channel, word in (
            ("voltage0", "in_voltage0_raw has no scale; read '500'; its unit is unknown: set gain and unit"),
            ("temp", "the scale of in_temp_raw is 0; read '500'"), ("voltage1", "'nan' is not a number"),
            ("voltage2", "'inf' is not a number"), ("voltage3", "'1_000' is not a number"),
        ):  # fmt: skip
            self.assertIn(word, str(self.read(f"iio/adc/{channel}")))
        self.assertEqual(self.read("iio/adc/voltage0", gain=2), 1)
        self.assertEqual(self.read("iio/adc/proximity"), 7)

    def test_scaled_temperature_is_checked(self):
        self.put(IIO, name="hdc1080", in_temp_raw=26_500, in_temp_offset="-15887.515151", in_temp_scale="2.517700195")
        self.assertAlmostEqual(self.read("iio/hdc1080/temp"), 26.719048, 3)
        self.put(IIO, in_temp_scale="2517.7")
        self.assert_impossible("iio/hdc1080/temp", "-40 to 125 °C", "read '(26500 + -15887.51515) x 2517.7'")


class Settings(ChipCase):
    """Settings that correct the unit of a driver have the same meaning as before."""

    def test_pressure_is_checked_in_the_unit_of_the_settings(self):
        self.put(IIO, name="bme680", in_pressure_input="987.35")
        self.assertEqual(self.read("iio/bme680/pressure", unit="hPa"), 987.35)
        self.assertEqual(self.read("iio/bme680/pressure", gain=0.1), 98.735)
        self.assertEqual(self.read("iio/bme680/pressure", gain=0.0296, unit="in. Hg."), 29.22556)
        self.assert_impossible("iio/bme680/pressure", "987.35 kPa", "impossible '987.35'", gain=10, unit="hPa")
        self.put(IIO, name="bme280", in_pressure_input="98.735")
        self.assertEqual(self.read("iio/bme280/pressure", gain=10, unit="hPa"), 987.35)
        self.assert_impossible("iio/bme280/pressure", "0.98735 kPa", gain=0.01)

    def test_humidity_of_a_bme680_is_in_percent_with_every_driver(self):
        for text in ("43.215000000", "43215"):
            self.put(IIO, name="bme680", in_humidityrelative_input=text)
            self.assertEqual(self.read("iio/bme680/humidityrelative"), 43.215)
            self.assertEqual(self.read("iio/bme680/humidityrelative", offset=-2), 41.215)
        self.put(IIO, name="bme680", in_humidityrelative_input="43.215000000")
        self.assertEqual(self.read("iio/bme680/humidityrelative", gain=1000), 43.215)

    def test_range_applies_to_the_value_before_calibration(self):
        self.put(IIO, name="dht11@4", in_temp_input=90_000)
        self.assert_impossible("iio/dht11@4/temp", "90 °C", offset=-20)
        self.put(IIO, in_temp_input=21_500)
        self.assertEqual(self.read("iio/dht11@4/temp", gain=1.8, offset=32, unit="°F"), 70.7)

    def test_range_of_the_settings_replaces_that_of_the_chip(self):
        self.put(IIO, name="bme280", in_temp_input=95_000, in_humidityrelative_input=103_000)
        self.assert_impossible("iio/bme280/temp", "-40 to 85 °C")
        self.assertEqual(self.read("iio/bme280/temp", possible=[-40, 110]), 95)
        self.assert_impossible("iio/bme280/temp", "settings: -40 to 90 °C", possible=[-40, 90], offset=-10)
        self.assertEqual(self.read("iio/bme280/humidityrelative", possible=[0, 105]), 103)
        source = self.source("iio/bme280/humidityrelative", possible=[0, 105], offset=-1)
        self.assertEqual(source.channels[0].possible, (-1, 104))
        self.put("sys/bus/w1/devices/28-0316a2794bff", name="28-0316a2794bff", w1_slave=GOOD)
        self.assert_impossible("w1/28-0316a2794bff", "settings: 0 to 25 °C", possible=[0, 25])
        self.assertEqual(self.read("w1/28-0316a2794bff", possible=[0, 30]), 26.187)
        error = self.refused({"from": "iio/bme280/temp", "possible": [5, -5]})
        self.assertIn("possible takes the lower end first", error)

    def test_gain_of_a_driver_in_volts_is_not_limited(self):
        self.put(IIO, name="mcp3424", in_voltage0_raw=1000, in_voltage0_scale="0.000015625")
        self.assertEqual(self.read("iio/mcp3424/voltage0", gain=200), 3.125)

    def test_raw_channel_has_the_range_of_its_chip(self):
        table = {
            "root": self.root,
            "channels": {"rh": {"from": "iio/si7020/humidityrelative", "raw": True, "offset": 1}},
        }
        source = with_limits(table, "here", lambda plain: kernel.make(plain, "here"))
        source.patience_s = 0.25
        source.read()
        self.assertEqual(source._source.patience_s, 0.25)
        self.assertEqual(source.channels, [Channel("rh", "%", possible=(-4, 106)),
                                           Channel("rh_raw", "%", possible=(-5, 105))])  # fmt: skip


class ReadAgain(ChipCase):
    """A value that is impossible is read once more, if there is time."""

    def reads(self, place, *contents, took_s=0.1, patience_s=5.0):
        """Return the reading, and the number of times that the file was read."""
        now_s, pending, count = [0.0], list(contents), [0]
        real = kernel.Device._read

        def read(device, path, file):
            if file not in ("temp", "in_temp_input", "w1_slave"):
                return real(device, path, file)
            now_s[0] += took_s
            count[0] += 1
            return str(pending.pop(0))

        source = self.source(place)
        source._now_s, source.patience_s = (lambda: now_s[0]), patience_s
        with mock.patch.object(kernel.Device, "_read", read):
            return source.read()["x"], count[0]

    def test_second_value_is_used_if_it_is_possible(self):
        self.put("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=1)
        self.put(IIO, name="dht11@4", in_temp_input=1)
        self.put("sys/bus/w1/devices/28-0316a2794bff", name="28-0316a2794bff", w1_slave=GOOD)
        self.assertEqual(self.reads("thermal/cpu-thermal", -650_788_984, 48_312), (48.312, 2))
        self.assertEqual(self.reads("iio/dht11@4/temp", -3_274_500, 21_000), (21, 2))
        self.assertEqual(self.reads("w1/28-0316a2794bff", POWER_ON.strip(), GOOD.strip()), (26.187, 2))

    def test_value_is_read_twice_at_most(self):
        self.put("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=1)
        error, count = self.reads("thermal/cpu-thermal", 200_000, 300_000)
        self.assertEqual(count, 2)
        self.assertIn("impossible '300000'", str(error))

    def test_value_is_not_read_again_if_the_sample_would_be_late(self):
        self.put("sys/bus/w1/devices/28-0316a2794bff", name="28-0316a2794bff", w1_slave=GOOD)
        error, count = self.reads("w1/28-0316a2794bff", POWER_ON.strip(), took_s=0.75, patience_s=0.8)
        self.assertEqual(count, 1)
        self.assertIn("power-on", str(error))

    def test_neighbours_are_kept_and_read_once(self):
        self.put(IIO, name="dht11@4", in_temp_input=-3_274_500, in_humidityrelative_input=48_000)
        table = {
            name: {"from": f"iio/dht11@4/{channel}"} for name, channel in (("t", "temp"), ("h", "humidityrelative"))
        }
        found = kernel.make({"root": self.root, "channels": table}, "here").read()
        self.assertEqual(found["h"], 48)
        self.assertIsInstance(found["t"], ImpossibleValue)


class Described(unittest.TestCase):
    """Chips and quantities that a path or a topic names."""

    def test_chip_in_a_path_or_topic_has_its_range(self):
        for unit, words, expected in (
            ("°C", ("StatusSNS", "DS18B20", "Temperature"), (-55, 125)), ("°C", ("DS18B20-1", "x"), (-55, 125)),
            ("°F", ("DS18B20", "Temperature"), (-67, 257)), ("°C", ("tele", "am2301", "t"), (-40, 80)),
            ("%", ("AM2301", "Humidity"), (0, 100)), ("°C", ("BME280", "Temperature"), (-40, 85)),
            ("°C", ("AHT2X", "Temperature"), (-40, 85)), ("°C", ("hdc1080", "t"), (-40, 125)),
            ("°C", ("sensors", "28-0316a2794bff"), (-55, 125)), ("%", ("SHTC3", "Humidity"), (0, 100)),
            ("%", ("SI7021", "Humidity"), (-5, 105)), ("°C", ("SHT3X-0x44", "Temperature"), (-40, 125)),
        ):  # fmt: skip
            self.assertEqual(chips.described("x", unit, words), expected, words)

    def test_quantity_is_recognised_by_the_last_part(self):
        self.assertEqual(chips.described("x", "%", ("zigbee2mqtt", "kitchen", "humidity")), (0, 100))
        self.assertEqual(chips.described("outside", "K", ("main", "temp")), (0, math.inf))
        self.assertIsNone(chips.described("outside", "K", ("main", "temp_change")))
        self.assertIsNone(chips.described("humidity", "%", ("zigbee2mqtt", "kitchen", "humidity")))  # by its name
        for name, words in (
            ("x", ("humidity_sensor", "battery")),
            ("soil", ("a", "humidity")),
            ("x", ("soil", "humidity")),
        ):
            self.assertIsNone(chips.described(name, "%", words))

    def test_channel_of_another_quantity_has_no_range(self):
        for unit, words in (("V", ("DS18B20", "Vcc")), ("K", ("DS18B20", "x")), ("hPa", ("BME280", "Pressure")),
                            ("°C", ("kitchen", "temperature")), ("°C", ("ds18b200",)), ("", ("DS18B20",))):  # fmt: skip
            self.assertIsNone(chips.described("x", unit, words), words)

    def test_quantity_is_in_front_of_a_word_for_the_value(self):
        for words in (
            ("zwave", "bath", "49", "0", "Humidity", "value"),
            ("hum", "value"),
            ("airHumidity", "current"),
            ("rh", "0"),
        ):
            self.assertEqual(chips.described("bath", "%", words), (0, 100), words)
        for words in (("humidity", "battery", "value"), ("soil", "humidity", "value"), ("plant", "value")):
            self.assertIsNone(chips.described("bath", "%", words), words)

    def test_calculated_temperature_does_not_have_the_range_of_the_chip(self):
        for name, words in (
            ("x", ("AM2301", "DewPoint")), ("x", ("SHT3X", "DewPoint")), ("x", ("dht22", "heatindex")),
            ("x", ("DHT22", "heat_index")), ("heat_index", ("bme280", "t")), ("x", ("bme280", "feels_like")),
            ("x", ("weather", "dht22_taupunkt")), ("x", ("bme680", "wind chill")),
        ):  # fmt: skip
            self.assertIsNone(chips.described(name, "°C", words), words)

    def test_nearest_chip_decides(self):
        for name, words, expected in (
            ("x", ("tele", "dht22-node", "SENSOR", "DS18B20", "Temperature"), (-55, 125)),
            ("x", ("tele", "dht22-node", "SENSOR", "SHT3X", "Temperature"), (-40, 125)),
            ("x", ("tele", "bme280", "SENSOR", "PT1000", "Temperature"), None),
            ("x", ("tele", "bme280", "SENSOR", "MAX31855", "ProbeTemperature"), None),
            ("collector", ("esp-dht22", "t2"), None), ("x", ("esp-dht22", "thermocouple", "value"), None),
            ("x", ("dht22_node", "cpu"), (-40, 150)), ("x", ("bme280", "ESP32", "Temperature"), None),
            ("x", ("esp32-dht22", "t"), (-40, 80)), ("cpu_temp", ("a", "b"), (-40, 150)),
            ("bme280_temp", ("a", "b"), (-40, 85)), ("x", ("esp32-kiln", "temperature"), None),
            ("x", ("esp-dht22", "boiler"), None), ("flow", ("bme280-node", "t3"), None),
            ("x", ("dht22", "hot_water", "value"), None), ("boiler", ("DS18B20", "Temperature"), (-55, 125)),
            ("x", ("stock_type", "dht22", "t"), (-40, 80)),
        ):  # fmt: skip
            self.assertEqual(chips.described(name, "°C", words), expected, words)

    def test_channels_of_json_and_mqtt_have_the_range_of_the_chip(self):
        channels = {"x": {"path": "DS18B20.Temperature", "unit": "°C"}}
        self.assertEqual(json.make({"file": "/x", "channels": channels}, "here").channels[0].possible, (-55, 125))
        channels["x"]["topic"] = "tele/pool/SENSOR"
        self.assertEqual(mqtt.make({"channels": channels}, "here").channels[0].possible, (-55, 125))


class Machine(KernelCase):
    def machine(self, *temperatures):
        self.put("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=1)
        self.put("proc", loadavg="0.52 0.58 0.59 2/467 12345", meminfo="MemAvailable: 204800 kB")
        source, pending = machine.MachineSource(self.root), list(temperatures)
        real = source._text
        source._text = lambda name: f"{pending.pop(0)}\n" if name.endswith("/temp") else real(name)
        return source.read()

    def test_impossible_temperature_of_the_processor_is_read_once_more(self):
        self.assertEqual(self.machine(-650_788_984, 48_312)["cpu_temperature"], 48.3)
        self.assertEqual(self.machine(-40_000)["cpu_temperature"], -40)
        for pair in ((-650_788_984, 655_350), (150_100, 151_000), (-274_000, -274_000)):
            found = self.machine(*pair)
            self.assertIn(f"impossible '{pair[1]}': ", str(found["cpu_temperature"]))
            self.assertEqual((found["load"], found["memory_free"]), (0.52, 200))

    def test_unreadable_second_temperature_is_a_sensor_error(self):
        self.assertIsInstance(self.machine(655_350, "n/a")["cpu_temperature"], SensorError)


if __name__ == "__main__":
    unittest.main()
