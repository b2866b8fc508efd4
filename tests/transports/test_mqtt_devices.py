"""Tests of [[device]] tables without a broker: a fake paho delivers the messages.

tests/libraries/test_mqtt_devices.py does the same with paho itself and a real broker.
"""

import os
import random
import re
import subprocess
import sys
import textwrap
import unittest
from unittest import mock

from pigeonpost.core.errors import NotStored, SettingsError
from pigeonpost.core.strict_json import write_json
from pigeonpost.transports import mqtt_devices
from pigeonpost.transports.mqtt_devices import make_devices
from tests.page_support import use_memory_disk
from tests.sensors.test_mqtt import Message, use_paho
from tests.sensors.test_mqtt_presets import SHELLY_HT, SHELLY_PLUG, TASMOTA, ZIGBEE2MQTT
from tests.support import LIMIT_S, ROOT, clean_environment, temp_folder
from tests.web.support import WebHouse


def setUpModule():
    use_memory_disk()


KITCHEN = '[[device]]\nname = "kitchen"\npreset = "zigbee2mqtt"\n'
MQTT = '[mqtt]\nhost = "broker"\n'


class Case(unittest.TestCase):
    def server(self, tables, head=MQTT, **paho):
        """Start a server with [[device]] tables, and return its devices."""
        use_paho(self, **paho)
        made = {}
        self.web = WebHouse(
            self,
            settings=head + tables,
            transports=[lambda context: made.update(make_devices(context)) or made["devices"]],
        )
        self.devices = made["devices"]
        return self.devices

    def publish(self, topic, payload, retain=False):
        """Deliver a message, and return when it is acknowledged."""
        self.devices._broker._on_message(None, None, Message(topic, payload, retain))

    def points(self, node="kitchen"):
        return self.web.store.points(node, 0, 1 << 60, -1)

    def state(self, node="kitchen"):
        return self.web.unnumbered_sources.find(node)


class MessageTest(Case):
    def test_message_is_stored_before_it_is_acknowledged(self):
        self.server(KITCHEN)
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":21.5,"humidity":48,"unknown":5,"battery":null}')
        (point,) = self.points()
        self.assertEqual(point.values, {"temperature": 21.5, "humidity": 48})
        (status,) = self.devices.statuses()
        self.assertEqual(
            (status.name, status.kind, status.direction, status.items, status.done, status.refused, status.fault),
            ("device kitchen", "zigbee2mqtt", "in", "messages", 1, 0, ""),
        )
        self.assertIsNotNone(status.success_ms)
        units = {sensor["name"]: sensor["unit"] for sensor in self.state().sensors}
        self.assertEqual(units, {"temperature": "°C", "humidity": "%"})

    def test_time_in_the_message_is_used_if_it_is_recent(self):
        self.server(KITCHEN)
        now_ms = self.web.app.clock.wall_ms()
        for seen_ms in (now_ms - 3_600_000, now_ms - 30 * 86_400_000, now_ms + 3_600_000):
            self.publish("zigbee2mqtt/kitchen", write_json({"temperature": 21, "last_seen": seen_ms}).encode())
        times = sorted(point.time_ms for point in self.points())
        self.assertEqual(times[0], now_ms - 3_600_000)
        self.assertTrue(all(now_ms <= time_ms <= now_ms + 60_000 for time_ms in times[1:]), times)

    def test_repeated_message_with_its_time_is_stored_once(self):
        self.server(KITCHEN)
        seen_ms = self.web.app.clock.wall_ms() - 1000
        one = write_json({"temperature": 21, "last_seen": seen_ms}).encode()
        for payload in (one, one, write_json({"temperature": 22, "last_seen": seen_ms}).encode()):
            self.publish("zigbee2mqtt/kitchen", payload)
        self.assertEqual(sorted(point.values["temperature"] for point in self.points()), [21, 22])
        for _ in range(2):
            self.publish("zigbee2mqtt/kitchen", b'{"temperature":23}')  # a repetition cannot be recognised
        self.assertEqual(len(self.points()), 4)

    def test_retained_message_is_not_a_reading(self):
        self.server(KITCHEN)
        self.publish("zigbee2mqtt/kitchen", ZIGBEE2MQTT, retain=True)
        self.assertEqual(self.points(), [])
        self.assertEqual(self.devices.statuses()[0].done, 0)

    def test_failed_value_is_stored_with_its_reason(self):
        self.server(KITCHEN)
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":"unavailable","humidity":48}')
        (point,) = self.points()
        self.assertEqual(point.values, {"temperature": None, "humidity": 48})

    def test_value_that_calibration_makes_too_large_fails(self):
        self.server(KITCHEN + "[device.channels.temperature]\ngain = 1e9\n")
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":1e308}')
        (point,) = self.points()
        self.assertEqual(point.values, {"temperature": None})

    def test_any_message_is_contained(self):
        self.server(KITCHEN + '[[device]]\nname = "desk"\npreset = "tasmota"\n')
        dice = random.Random(17)
        pieces = [
            b"{", b"}", b"[", b"]", b":", b",", b'"temperature"', b'"Temperature"', b'"last_seen"', b'"state"',
            b"1e999", b"-1", b"null", b"true", b'"\\ud800"', b'"', b"\xc3", b'"TempUnit":"F"',
            b'{"AM2301":{"Temperature":1}}',
        ]  # fmt: skip
        topics = [topic for device in self.devices._devices for topic in (*device.topics, *device.availability)]
        for _ in range(300):
            payload = b"".join(dice.choices(pieces, k=dice.randrange(9)))
            self.publish(dice.choice(topics), payload, retain=dice.random() < 0.1)
        self.assertEqual([(status.refused, status.fault) for status in self.devices.statuses()], [(0, "")] * 2)

    def test_values_of_tasmota_and_shelly_are_stored(self):
        self.server(
            '[[device]]\nname = "desk"\npreset = "tasmota"\ndevice = "tasmota_1A2B3C"\n'
            '[[device]]\nname = "ht"\npreset = "shelly"\ndevice = "shellyplusht-b8d61a8b17cc"\n'
        )
        self.publish("tele/tasmota_1A2B3C/SENSOR", TASMOTA)
        self.publish("shellyplusht-b8d61a8b17cc/events/rpc", SHELLY_HT)
        self.assertEqual(self.points("desk")[0].values, {
            "temperature": 21.5, "humidity": 48.2, "dew_point": 10.1, "power": 5, "voltage": 233, "current": 0.021,
            "energy": 3.705, "energy_today": 0.026,
        })  # fmt: skip
        self.assertEqual(self.points("ht")[0].values, {"temperature": 19.8, "humidity": 42.2, "battery": 64})

    def test_all_components_of_esphome_are_values(self):
        self.server('[[device]]\nname = "porch"\npreset = "esphome"\n')
        for topic, payload in (
            ("porch/sensor/temperature/state", b"21.5"), ("porch/sensor/co2_level/state", b"640"),
            ("porch/binary_sensor/motion/state", b"ON"), ("porch/sensor/a/b/state", b"1"), ("porch/debug", b"1"),
        ):  # fmt: skip
            self.publish(topic, payload)
        found = {name: value for point in self.points("porch") for name, value in point.values.items()}
        self.assertEqual(found, {"temperature": 21.5, "co2_level": 640, "binary_sensor_motion": 1})

    def test_number_of_components_is_limited(self):
        self.server('[[device]]\nname = "porch"\npreset = "esphome"\n')
        for count in range(mqtt_devices.MOST_VALUES + 5):
            self.devices._devices[0].read(f"porch/sensor/s{count}/state", b"1", 0)
        self.assertEqual(len(self.devices._devices[0]._chosen), mqtt_devices.MOST_VALUES)

    def test_chosen_channels_replace_the_values_of_the_preset(self):
        self.server(
            KITCHEN + '[device.channels.warmth]\nvalue = "temperature"\ngain = 2\n'
            '[[device]]\nname = "meter"\n[device.channels.power]\ntopic = "meter/power"\nunit = "W"\n'
        )
        self.publish("zigbee2mqtt/kitchen", ZIGBEE2MQTT)
        self.publish("meter/power", b"812.4")
        self.assertEqual(self.points()[0].values, {"warmth": 42.86})
        self.assertEqual(self.points("meter")[0].values, {"power": 812.4})


class AvailabilityTest(Case):
    def test_offline_device_is_not_connected(self):
        self.server(KITCHEN)
        topic = "zigbee2mqtt/kitchen/availability"
        self.publish("zigbee2mqtt/kitchen", ZIGBEE2MQTT)
        self.assertTrue(self.state().connected)
        self.publish(topic, b'{"state":"offline"}', retain=True)
        self.assertEqual(
            (self.state().connected, self.state().fault), (False, f"the device is offline, according to {topic}")
        )
        self.publish(topic, b'{"state":"online"}')
        self.assertEqual((self.state().connected, self.state().fault), (True, ""))

    def test_device_is_offline_if_one_of_its_topics_reports_it(self):
        self.server(KITCHEN)
        own, bridge = "zigbee2mqtt/kitchen/availability", "zigbee2mqtt/bridge/state"
        self.publish(own, b'{"state":"offline"}', retain=True)
        self.publish(bridge, b'{"state":"online"}', retain=True)
        self.assertEqual(
            (self.state().connected, self.state().fault), (False, f"the device is offline, according to {own}")
        )
        self.publish(bridge, b'{"state":"offline"}')
        self.publish(own, b'{"state":"online"}')
        self.assertEqual(
            (self.state().connected, self.state().fault), (False, f"the device is offline, according to {bridge}")
        )
        self.publish(bridge, b'{"state":"online"}')
        self.assertEqual((self.state().connected, self.state().fault), (True, ""))

    def test_sleeping_device_stays_connected(self):
        self.server('[[device]]\nname = "s"\npreset = "shelly"\n')
        self.publish("s/events/rpc", SHELLY_HT)
        self.publish("s/online", b"false")
        self.assertTrue(self.state("s").connected)
        self.publish("s/status/switch:0", SHELLY_PLUG)
        self.publish("s/online", b"false")
        self.assertFalse(self.state("s").connected)


class FaultTest(Case):
    def test_message_waits_until_it_can_be_stored(self):
        self.server(KITCHEN)
        sources = self.web.unnumbered_sources
        faults = []

        def store(reading, real=sources.store):
            faults.append(self.devices.fault)
            if len(faults) < 3:
                raise NotStored("the disk is full")
            real(reading)

        with mock.patch.object(sources, "store", store), mock.patch.object(mqtt_devices, "RETRY_S", 0.0):
            self.publish("zigbee2mqtt/kitchen", ZIGBEE2MQTT)
        self.assertEqual(faults, ["", *["a message of kitchen waits: the disk is full"] * 2])
        self.assertEqual((len(self.points()), self.devices.fault), (1, ""))

    def test_stop_ends_the_wait(self):
        self.server(KITCHEN)
        self.devices._broker.stopping.set()
        with mock.patch.object(self.web.unnumbered_sources, "store", side_effect=NotStored("the disk is full")):
            self.publish("zigbee2mqtt/kitchen", ZIGBEE2MQTT)
        self.assertEqual((self.points(), self.devices.statuses()[0].done), ([], 0))

    def test_node_with_a_token_is_refused(self):
        self.server(KITCHEN)
        self.web.tokens.make("kitchen")
        with self.assertLogs("pigeonpost.transports.mqtt_devices", "WARNING"):
            self.publish("zigbee2mqtt/kitchen", ZIGBEE2MQTT)
        self.assertEqual(self.points(), [])
        text = "node kitchen has a token, and the client has not proved it"
        self.assertEqual(self.devices.fault, f"kitchen: {text}")
        self.assertEqual((self.devices.statuses()[0].refused, self.devices.statuses()[0].fault), (1, text))

    def test_internal_error_is_contained(self):
        self.server(KITCHEN)
        with (
            mock.patch.object(mqtt_devices, "calibrated", side_effect=ZeroDivisionError("x")),
            self.assertLogs("pigeonpost.transports.mqtt_devices", "WARNING"),
        ):
            self.publish("zigbee2mqtt/kitchen", ZIGBEE2MQTT)
        self.assertEqual(self.devices.fault, "kitchen: internal error: ZeroDivisionError: x")
        self.publish("zigbee2mqtt/kitchen", ZIGBEE2MQTT)
        self.assertEqual(self.devices.fault, "")

    def test_too_long_message_is_refused(self):
        self.server(KITCHEN)
        with self.assertLogs("pigeonpost.transports.mqtt_devices", "WARNING"):
            self.publish("zigbee2mqtt/kitchen", b" " * 65_537)
        self.assertEqual(self.devices.fault, "kitchen: zigbee2mqtt/kitchen: the message is longer than 65536 bytes")

    def test_fault_of_the_broker_is_that_of_all_devices(self):
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING"):
            self.server(KITCHEN, refuses=5)
        words = "MQTT broker:1883: the broker refused the connection: user or password is wrong, or has no permission"
        self.assertEqual((self.devices.fault, self.devices.statuses()[0].fault), (words, words))


class SettingsTest(Case):
    def test_blocks_of_the_document_are_valid(self):
        with open(os.path.join(ROOT, "docs", "mqtt-devices.md"), encoding="utf-8") as file:
            blocks = re.findall(r"(?m)(?:^    .*\n|^\n)+", file.read())
        blocks = [textwrap.dedent(block) for block in blocks if "[[device]]" in block]
        self.assertEqual(len(blocks), 2)
        for block in blocks:
            self.server(block, head="")
            self.assertEqual(self.devices.statuses()[0].fault, "")

    def test_devices_of_one_broker_share_a_connection_with_a_session(self):
        use_paho(self)
        made = {}
        web = WebHouse(
            self, settings=MQTT + KITCHEN + '[[device]]\nname = "a"\npreset = "esphome"\nhost = "other"\n'
            '[[device]]\nname = "b"\npreset = "tasmota"\nhost = "other"\n',
            transports=[lambda context: made.update(make_devices(context)) or next(iter(made.values()))],
        )  # fmt: skip
        self.assertEqual([len(one.statuses()) for one in made.values()], [1, 2])
        self.assertEqual(list(made), ["devices", "devices 2"])
        options = [one._broker._client.options for one in made.values()]
        self.assertEqual([one["clean_session"] for one in options], [False, False])
        names = {one["client_id"] for one in options}
        self.assertEqual(len(names), 2)
        self.assertTrue(all(name.startswith(f"pigeonpost-{web.ingestor.identity}-") for name in names))

    def test_topics_do_not_overlap(self):
        self.server(
            '[[device]]\nname = "porch"\npreset = "esphome"\n'
            '[[device]]\nname = "other"\n[device.channels.motion]\ntopic = "porch/binary_sensor/motion/state"\n'
        )
        wanted = {"porch/status", *(f"porch/{kind}/+/state" for kind in ("sensor", "binary_sensor", "switch"))}
        self.assertEqual({topic for topic, _ in self.devices._broker._topics}, wanted)
        self.publish("porch/binary_sensor/motion/state", b"ON")
        self.assertEqual([point.values for point in self.points("other")], [{"motion": 1}])

    def test_invalid_tables_are_refused(self):
        for tables, words in (
            ('[[device]]\npreset = "tasmota"\n', "[[device]] 1: the name is missing"),
            (KITCHEN + KITCHEN, "[[device]] 2: a table for kitchen exists already"),
            ('[[device]]\nname = "a"\n', "[[device]] 1: channels is missing"),
            ('[[device]]\nname = "a"\ndevice = "b"\n', "[[device]] 1: preset and device must be set together"),
            (KITCHEN + "port = 5\n", "[[device]] 1: port requires host"),
            (KITCHEN + 'prset = "x"\n', 'did you mean "preset"'),
            ('[[device]]\nname = "a/b"\npreset = "tasmota"\n', "[[device]] 1: name takes"),
        ):
            with self.subTest(tables), self.assertRaises(SettingsError) as caught:
                self.server(tables)
            self.assertIn(words, str(caught.exception))
        with self.assertRaises(SettingsError) as caught:
            self.server(KITCHEN, head="")
        self.assertIn("[[device]] 1: host is missing: set [mqtt] host, or host here", str(caught.exception))

    def test_password_is_hidden_by_show(self):
        folder = temp_folder(self)
        path = os.path.join(folder, "server.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(KITCHEN + 'host = "broker"\nuser = "u"\npassword = "very secret"\n')
        output = subprocess.run(
            [sys.executable, os.path.join(ROOT, "server.py"), "--config", path, "--show"],
            env=clean_environment(), cwd=folder, check=True, capture_output=True, text=True, timeout=LIMIT_S,
        ).stdout  # fmt: skip
        self.assertIn('preset = "zigbee2mqtt"', output)
        self.assertNotIn("secret", output)


if __name__ == "__main__":
    unittest.main()
