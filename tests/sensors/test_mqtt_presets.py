"""Tests of the presets of kind = "mqtt" with messages as the firmware publishes them, without a broker."""

import json
import unittest

from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors import mqtt
from pigeonpost.sensors.contract import Channel
from pigeonpost.sensors.mqtt_message import Message
from pigeonpost.sensors.mqtt_presets import PRESETS, Place, preset_value
from tests.sensors.test_mqtt import use_paho

# Messages in the form of the documents that mqtt_presets names.
ZIGBEE2MQTT = (
    b'{"battery":97,"contact":false,"humidity":48.2,"last_seen":"2026-11-20T16:36:10+01:00","linkquality":120,'
    b'"pressure":1013.2,"state":"ON","temperature":21.43,"voltage":3005}'
)
TASMOTA = (
    b'{"Time":"2026-11-20T16:36:10","ENERGY":{"TotalStartTime":"2020-10-21T22:15:00","Total":3.705,"Yesterday":0.028,'
    b'"Today":0.026,"Period":1,"Power":5,"ApparentPower":5,"ReactivePower":0,"Factor":1.00,"Voltage":233,'
    b'"Current":0.021},"AM2301":{"Temperature":21.5,"Humidity":48.2,"DewPoint":10.1},"ESP32":{"Temperature":53.3},'
    b'"TempUnit":"C"}'
)
TASMOTA_STATE = (
    b'{"Time":"2026-11-20T16:36:10","Uptime":"0T10:00:10","POWER":"ON","Wifi":{"AP":1,"RSSI":74,"Signal":-63}}'
)
SHELLY_HT = (
    b'{"src":"shellyplusht-b8d61a8b17cc","dst":"shellyplusht-b8d61a8b17cc/events","method":"NotifyFullStatus",'
    b'"params":{"ts":1795188970.62,"ble":{},"devicepower:0":{"id":0,"battery":{"V":4.43,"percent":64}},'
    b'"humidity:0":{"id":0,"rh":42.2},"temperature:0":{"id":0,"tC":19.8,"tF":67.6}}}'
)
SHELLY_PLUG = (
    b'{"id":0,"source":"init","output":true,"apower":812.4,"voltage":231.9,"current":3.52,"aenergy":{"total":1200.5,'
    b'"by_minute":[13540.1,13540.0,13539.9],"minute_ts":1795188960},"temperature":{"tC":43.1,"tF":109.6}}'
)


class Case(unittest.TestCase):
    def source(self, preset, device, names=(), said=None, version=1):
        use_paho(self, version, said=said or {})
        channels = {"channels": {name: {} for name in names}} if names else {}
        return mqtt.make({"preset": preset, "device": device, **channels}, "here")


class FirmwareTest(Case):
    def test_zigbee2mqtt_values_are_read(self):
        names = ("battery", "contact", "pressure", "state", "temperature", "linkquality")
        for device in ("kitchen", "kitchen/north wall"):
            source = self.source("zigbee2mqtt", device, names, {f"zigbee2mqtt/{device}": ZIGBEE2MQTT})
            self.assertEqual(source.read(), {
                "battery": 97, "contact": 0, "pressure": 1013.2, "state": 1, "temperature": 21.43, "linkquality": 120,
            })  # fmt: skip
        self.assertEqual([channel.unit for channel in source.channels], ["%", "", "hPa", "", "°C", ""])

    def test_tasmota_values_are_read(self):
        said = {"tele/desk/SENSOR": TASMOTA, "tele/desk/STATE": TASMOTA_STATE}
        names = ("temperature", "humidity", "dew_point", "power", "voltage", "current", "energy", "state", "signal")
        self.assertEqual(self.source("tasmota", "desk", names, said).read(), {
            "temperature": 21.5, "humidity": 48.2, "dew_point": 10.1, "power": 5, "voltage": 233, "current": 0.021,
            "energy": 3.705, "state": 1, "signal": -63,
        })  # fmt: skip

    def test_units_of_tasmota_are_converted(self):
        payload = b'{"BME280":{"Temperature":70.7,"Pressure":29.92},"PressureUnit":"inHg","TempUnit":"F"}'
        source = self.source("tasmota", "desk", ("temperature", "pressure"), {"tele/desk/SENSOR": payload})
        self.assertEqual(source.read(), {"temperature": 21.5, "pressure": 1013.207481})
        self.assertEqual(source.channels[0].unit, "°C")

    def test_several_sensors_of_tasmota_need_a_path(self):
        payload = b'{"DS18B20-1":{"Id":"01","Temperature":21.5},"DS18B20-2":{"Id":"02","Temperature":7.5}}'
        use_paho(self, said={"tele/desk/SENSOR": payload})
        source = mqtt.make({
            "preset": "tasmota", "device": "desk",
            "channels": {"temperature": {}, "cellar": {"path": "DS18B20-2.Temperature", "unit": "°C"}},
        }, "here")  # fmt: skip
        readings = source.read()
        self.assertEqual(readings["cellar"], 7.5)
        self.assertEqual(
            str(readings["temperature"]),
            "tele/desk/SENSOR: several sensors have a value 'Temperature': set `path` to 'DS18B20-1.Temperature'"
            " and 'DS18B20-2.Temperature'",
        )

    def test_esphome_values_are_read(self):
        said = {
            "porch/sensor/temperature/state": b"21.4", "porch/sensor/outside_humidity/state": b"nan",
            "porch/binary_sensor/motion/state": b"ON",
        }  # fmt: skip
        use_paho(self, said=said)
        source = mqtt.make({
            "preset": "esphome", "device": "porch",
            "channels": {
                "temperature": {}, "outside_humidity": {"unit": "%"}, "motion": {"value": "binary_sensor/motion"},
            },
        }, "here")  # fmt: skip
        readings = source.read()
        self.assertEqual((readings["temperature"], readings["motion"]), (21.4, 1))
        self.assertEqual(str(readings["outside_humidity"]), "porch/sensor/outside_humidity/state: not a number: 'nan'")
        self.assertEqual([channel.unit for channel in source.channels], ["°C", "%", ""])

    def test_shelly_values_of_all_generations_are_read(self):
        gen1 = {
            "shellies/s/sensor/temperature": b"19.88", "shellies/s/sensor/humidity": b"42.5",
            "shellies/s/sensor/battery": b"64",
        }  # fmt: skip
        plus = {"s/events/rpc": SHELLY_HT}
        status = {
            "s/status/temperature:0": b'{"id": 0,"tC":19.8, "tF":67.6}', "s/status/humidity:0": b'{"id": 0,"rh":42.2}',
            "s/status/devicepower:0": b'{"id": 0,"battery":{"V":4.43, "percent":64},"external":{"present":false}}',
        }  # fmt: skip
        names = ("temperature", "humidity", "battery")
        for said, values in ((gen1, (19.88, 42.5, 64)), (plus, (19.8, 42.2, 64)), (status, (19.8, 42.2, 64))):
            self.assertEqual(self.source("shelly", "s", names, said).read(), dict(zip(names, values, strict=True)))

    def test_energy_of_shelly_is_in_watt_hours(self):
        for said, power, energy in (
            ({"shellies/s/relay/0/power": b"812.4", "shellies/s/relay/0/energy": b"72030"}, 812.4, 1200.5),
            ({"s/status/switch:0": SHELLY_PLUG}, 812.4, 1200.5),
        ):
            source = self.source("shelly", "s", ("power", "energy"), said)
            self.assertEqual(source.read(), {"power": power, "energy": energy})
        self.assertEqual(source.channels[1].unit, "Wh")

    def test_words_of_doors_are_numbers(self):
        for payload, value in ((b"open", 1), (b"close", 0)):
            source = self.source("shelly", "s", ("open",), {"shellies/s/sensor/state": payload})
            self.assertEqual(source.read(), {"open": value})


class AvailabilityTest(Case):
    def test_offline_device_fails_with_the_topic(self):
        for preset, device, topic, offline, online in (
            (
                "zigbee2mqtt", "kitchen", "zigbee2mqtt/kitchen/availability",
                b'{"state":"offline"}', b'{"state":"online"}',
            ),
            ("zigbee2mqtt", "kitchen", "zigbee2mqtt/bridge/state", b"offline", b"online"),
            ("tasmota", "kitchen", "tele/kitchen/LWT", b"Offline", b"Online"),
            ("esphome", "kitchen", "kitchen/status", b"offline", b"online"),
        ):  # fmt: skip
            with self.subTest(topic):
                value = preset_value(PRESETS[preset], device, "humidity")
                place = value.places[0]
                payload = TASMOTA if place.is_nested else json.dumps({"humidity": 48}).encode() if place.path else b"48"
                source = self.source(preset, device, ("humidity",), {place.topic: payload})
                before = source.read()["humidity"]
                source._on_retained(topic, offline)
                self.assertEqual(str(source.read()["humidity"]), f"the device is offline, according to {topic}")
                source._on_message(topic, b"something else")
                self.assertIsInstance(source.read()["humidity"], SensorError)
                source._on_message(topic, online)
                self.assertEqual(source.read()["humidity"], before)

    def test_sleeping_device_keeps_its_value(self):
        said = {"s/events/rpc": SHELLY_HT, "s/status/switch:0": SHELLY_PLUG}
        source = self.source("shelly", "s", ("temperature", "power"), said)
        source._on_message("s/online", b"false")
        readings = source.read()
        self.assertEqual(readings["temperature"], 19.8)
        self.assertEqual(str(readings["power"]), "the device is offline, according to s/online")


class SettingsTest(Case):
    def test_temperature_and_humidity_are_the_default(self):
        for preset in PRESETS:
            source = self.source(preset, "kitchen")
            self.assertEqual(source.channels, [Channel("temperature", "°C"), Channel("humidity", "%")])

    def test_own_topic_and_path_override_the_preset(self):
        use_paho(self, said={"other": b'{"t":5}', "zigbee2mqtt/kitchen": b'{"update":{"progress":7}}'})
        source = mqtt.make({
            "preset": "zigbee2mqtt", "device": "kitchen",
            "channels": {"a": {"topic": "other", "path": "t"}, "b": {"path": "update.progress"}},
        }, "here")  # fmt: skip
        self.assertEqual(source.read(), {"a": 5, "b": 7})

    def test_invalid_settings_are_refused(self):
        for options, words in (
            ({"preset": "tasmota"}, "here: preset and device must be set together"),
            ({"device": "desk", "channels": {"a": {"topic": "b"}}}, "here: preset and device must be set together"),
            ({"preset": "sonoff", "device": "desk"}, "here: preset takes 'esphome' or"),
            ({"preset": "tasmota", "device": "desk/#"}, "without the wildcards"),
            ({"preset": "shelly", "device": "s", "channels": {"warmth": {}}}, "channels.warmth: value must be one of"),
            ({"preset": "shelly", "device": "s", "channels": {"a": {"path": "b"}}}, "channels.a: topic is missing"),
            ({"channels": {"a": {"topic": "b", "value": "c"}}}, "channels.a: value is only for a preset"),
            ({"preset": "esphome", "device": "d", "channels": {"a": {"topic": "b", "value": "c"}}},
             "channels.a: value is only for a preset, without topic and path"),
        ):  # fmt: skip
            with self.subTest(options), self.assertRaises(SettingsError) as caught:
                mqtt.make(options, "here")
            self.assertIn(words, str(caught.exception))


class MessageTest(unittest.TestCase):
    def test_time_of_a_message_is_read(self):
        for preset, payload, time_ms in (
            ("zigbee2mqtt", ZIGBEE2MQTT, 1_795_188_970_000),
            ("zigbee2mqtt", b'{"last_seen":1795188970123}', 1_795_188_970_123),
            ("zigbee2mqtt", b'{"last_seen":"2026-11-20T16:36:10"}', None),
            ("zigbee2mqtt", b'{"last_seen":true}', None), ("zigbee2mqtt", b'{"last_seen":"disable"}', None),
            ("zigbee2mqtt", b"[]", None), ("zigbee2mqtt", b"21", None), ("zigbee2mqtt", b"", None),
            ("shelly", SHELLY_HT, 1_795_188_970_620), ("shelly", b'{"params":{"ts":null}}', None),
            ("shelly", b'{"params":{"ts":1e300}}', None),
        ):  # fmt: skip
            with self.subTest(payload):
                form = PRESETS[preset]
                self.assertEqual(Message(payload).time_ms(form.time_path, form.time_unit_ms), time_ms)
        self.assertEqual(PRESETS["tasmota"].time_path, ())  # its time has no zone

    def test_availability_is_read_from_any_message(self):
        for payload, is_online in (
            (b"online", True), (b"Offline\n", False), (b'{"state":"online"}', True), (b"true", True), (b"false", False),
            (b'"offline"', None), (b'{"state":5}', None), (b"\xff", None), (b"", None), (b"[" * 5000, None),
        ):  # fmt: skip
            with self.subTest(payload[:20]):
                self.assertIs(Message(payload).availability(), is_online)

    def test_first_place_with_a_value_counts(self):
        places = [Place("t", ("a",)), Place("t", ("b",), factor=0.5)]
        self.assertEqual(Message(b'{"b":5}').value_in(places), 2.5)
        self.assertEqual(Message(b'{"a":1,"b":5}').value_in(places), 1)
        with self.assertRaisesRegex(SensorError, "there is no 'b'"):
            Message(b'{"c":5}').value_in(places)


if __name__ == "__main__":
    unittest.main()
