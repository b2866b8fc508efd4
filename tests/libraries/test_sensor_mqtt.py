"""Sensors of kind "mqtt" with a real Mosquitto: retained and live values, passwords, TLS, and broker restarts."""

import os
import re
import subprocess
import time
import unittest
from unittest import mock

from pigeonpost.core.errors import SensorError
from pigeonpost.sensors import mqtt
from tests.libraries import Broker, need_broker, paho
from tests.sensors.test_mqtt_presets import TASMOTA
from tests.support import LIMIT_S, Program, Talk, free_port, samples_of, temp_folder, wait_until

ZIGBEE = b'{"battery":97,"humidity":48.2,"linkquality":120,"temperature":21.43,"update":{"state":"idle"}}'
ZWAVE = b'{"time":1795188970123,"value":9.5,"nodeName":"cellar"}'


def setUpModule():
    need_broker()


class Case(unittest.TestCase):
    def setUp(self):
        patch = mock.patch.object(mqtt, "FIRST_WAIT_S", 1.0)
        patch.start()
        self.addCleanup(patch.stop)

    def broker(self, *lines, **more):
        return Broker(self, *lines, **more)

    def source(self, port, channels, **options):
        made = mqtt.make({"port": port, "channels": channels, **options}, "here")
        self.addCleanup(made.close)
        return made

    def publish(self, broker, topic, payload, retain=False):
        """Publish a message, and return when the broker has received it."""
        newest = getattr(paho, "CallbackAPIVersion", None)
        client = paho.Client(*([newest.VERSION2] if newest else []))
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(LIMIT_S)
        client.disconnect()
        client.loop_stop()

    def wait_for_words(self, source, words, channel="x"):
        """Wait until a channel fails with a matching text, and return the text."""
        found = wait_until(lambda: re.search(words, str(source.read()[channel])) and str(source.read()[channel]), words)
        self.assertIsInstance(source.read()[channel], SensorError)
        return found

    def wait_for(self, source, expected):
        wait_until(lambda: source.read() == expected, f"{expected}; it reads {source.read()}")


class DeviceTest(Case):
    def test_values_of_zigbee2mqtt_and_z_wave_js_ui_are_read(self):
        broker = self.broker().start()
        self.publish(broker, "zwave/cellar/49/0/Air_temperature", ZWAVE, retain=True)
        source = self.source(broker.port, {
            "kitchen": {"topic": "zigbee2mqtt/kitchen", "path": "temperature", "unit": "°C"},
            "humidity": {"topic": "zigbee2mqtt/kitchen", "path": "humidity", "unit": "%"},
            "cellar": {"topic": "zwave/cellar/49/0/Air_temperature", "path": "value", "unit": "°C"},
            "attic": {"topic": "zwave/attic/49/0/Air_temperature", "unit": "°C"},
        })  # fmt: skip
        self.wait_for_words(source, "^stale: no message on zigbee2mqtt/kitchen yet$", "kitchen")
        self.publish(broker, "zigbee2mqtt/kitchen", ZIGBEE)
        self.publish(broker, "zwave/attic/49/0/Air_temperature", b"-3.25")
        self.wait_for(source, {"kitchen": 21.43, "humidity": 48.2, "cellar": 9.5, "attic": -3.25})

    def test_presets_read_each_firmware_and_its_availability(self):
        for preset, device, topic, payload, availability, words in (
            ("zigbee2mqtt", "kitchen", "zigbee2mqtt/kitchen", ZIGBEE, "zigbee2mqtt/kitchen/availability",
             (b'{"state":"offline"}', b'{"state":"online"}')),
            ("tasmota", "desk", "tele/desk/SENSOR", TASMOTA, "tele/desk/LWT", (b"Offline", b"Online")),
            ("esphome", "porch", "porch/sensor/temperature/state", b"21.43", "porch/status", (b"offline", b"online")),
            ("shelly", "s", "s/status/temperature:0", b'{"id":0,"tC":21.43,"tF":70.6}', "", ()),
        ):  # fmt: skip
            with self.subTest(preset):
                broker = self.broker().start()
                source = self.source(broker.port, {"temperature": {}}, preset=preset, device=device)
                self.wait_for_words(source, "^stale: no message on ", "temperature")
                self.publish(broker, topic, payload)
                value = 21.5 if preset == "tasmota" else 21.43
                self.wait_for(source, {"temperature": value})
                if availability:
                    self.publish(broker, availability, words[0], retain=True)
                    self.wait_for_words(source, f"^the device is offline, according to {availability}$", "temperature")
                    self.publish(broker, availability, words[1], retain=True)
                    self.wait_for(source, {"temperature": value})

    def test_values_in_several_messages_between_two_readings_are_read(self):
        broker = self.broker().start()
        source = self.source(broker.port, {
            "temperature": {"topic": "t", "path": "temperature"}, "humidity": {"topic": "t", "path": "humidity"},
            "battery": {"topic": "t", "path": "battery"},
        })  # fmt: skip
        self.wait_for_words(source, "^stale: no message on t yet$", "humidity")
        for payload in (
            b'{"battery":97,"temperature":28.2,"humidity":null}', b"online", b'{"humidity":32.08,"temperature":null}',
            b'{"battery":nan,"humidity":33,}', b'{"linkquality":105}',
        ):  # fmt: skip
            self.publish(broker, "t", payload)
        wait_until(lambda: "linkquality" in source._without_value.get("battery", ""), "the last message")
        readings = source.read()
        self.assertEqual((readings["temperature"], readings["humidity"]), (28.2, 33))
        self.assertEqual(str(readings["battery"]), "t: not a number at 'battery': \"nan\"")

    def test_retained_value_is_in_the_first_sample(self):
        broker = self.broker().start()
        self.publish(broker, "x", b"5", retain=True)
        with mock.patch.object(mqtt, "FIRST_WAIT_S", LIMIT_S):
            self.assertEqual(self.source(broker.port, {"x": {"topic": "x"}}).read(), {"x": 5})

    def test_retained_value_is_not_new_after_a_reconnection(self):
        broker = self.broker("allow_anonymous true", "persistence true", "persistence_location {folder}/").start()
        self.publish(broker, "a", b"1", retain=True)
        self.publish(broker, "b", b"1", retain=True)
        source = self.source(broker.port, {"a": {"topic": "a"}, "b": {"topic": "b"}})
        self.wait_for(source, {"a": 1, "b": 1})
        heard = source._received_s["a"]
        broker.stop()
        wait_until(lambda: source._broker.fault, "it has noticed")
        broker.start()
        self.publish(broker, "b", b"2", retain=True)  # while the node is disconnected, or shortly after
        self.wait_for(source, {"a": 1, "b": 2})
        self.assertIs(source._received_s["a"], heard)


class BrokerTest(Case):
    def test_broker_that_starts_later_is_used(self):
        port = free_port()
        source = self.source(port, {"x": {"topic": "x"}})
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING"):
            self.wait_for_words(
                source,
                rf"^stale: no message on x yet \(MQTT 127.0.0.1:{port}: no connection to the broker:"
                r" Connection refused\)$",
            )
        broker = self.broker(port=port).start()
        with self.assertLogs("pigeonpost.core.mqtt_client", "INFO"):
            wait_until(lambda: not source._broker.fault, "it is connected")
        wait_until(lambda: (self.publish(broker, "x", b"5"), source.read()["x"] == 5)[1], "its value")

    def test_broker_that_restarts_is_used_again(self):
        broker = self.broker().start()
        source = self.source(broker.port, {"x": {"topic": "x", "fresh": 1}})
        self.wait_for_words(source, "^stale: no message on x yet$")
        wait_until(lambda: (self.publish(broker, "x", b"1"), source.read()["x"] == 1)[1], "its value")
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING") as logs:
            broker.stop()
            stale = wait_until(lambda: isinstance(error := source.read()["x"], SensorError) and error, "stale")
            wait_until(lambda: source._broker.fault, "it has noticed")
        self.assertRegex(str(stale), r"^stale: no message on x for [1-9][0-9]* s")
        self.assertIn("the connection to the broker is lost", logs.output[0])
        broker.start()
        wait_until(lambda: not source._broker.fault, "it is connected again")
        wait_until(lambda: (self.publish(broker, "x", b"2"), source.read()["x"] == 2)[1], "subscribed again")

    def test_closing_does_not_wait_for_an_unreachable_broker(self):
        source = self.source(free_port(), {"x": {"topic": "x"}})
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING"):
            self.wait_for_words(source, "no connection")
        began_s = time.monotonic()
        source.close()
        self.assertLess(time.monotonic() - began_s, LIMIT_S / 2)


class NodeTest(Case):
    def test_node_samples_a_topic_with_its_limits(self):
        broker = self.broker().start()
        self.publish(broker, "zigbee2mqtt/kitchen", ZIGBEE, retain=True)
        data = temp_folder(self)
        config = os.path.join(data, "node.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                f'[[sensor]]\nkind = "mqtt"\nport = {broker.port}\npassword = "x"\nuser = "y"\n'
                '[sensor.channels.kitchen]\ntopic = "zigbee2mqtt/kitchen"\npath = "temperature"\nunit = "°C"\n'
                "gain = 2\nhigh = 30\nraw = true\n"
            )
        program = Program(
            self, "node.py", "--config", config, "--data", data, "--listen", "127.0.0.1:0", "--every", "0.5",
        )  # fmt: skip
        with Talk(program.address()) as talk:
            talk.say("SEND", True)
            values = {}
            while values.get("kitchen") is None:  # the first samples may be taken while it connects
                values = samples_of(talk.until("SENSORS"))[-1].values
        self.assertEqual(values, {"kitchen": 42.86, "kitchen_raw": 21.43})
        program.terminate()
        self.assertEqual(program.wait(), 0)


class ProtectedTest(Case):
    def test_user_and_password_are_required(self):
        broker = self.broker("allow_anonymous false", "password_file {folder}/passwords")
        path = os.path.join(broker.folder, "passwords")
        subprocess.run(["mosquitto_passwd", "-c", "-b", path, "reader", "secret of the reader"], check=True)
        broker.start()
        # The reasons of paho 1 and 2.
        refused = "the broker refused the connection: (user or password is wrong|Not authorized|Bad user name)"
        for options, said in (
            ({}, refused), ({"user": "reader", "password": "guess"}, refused),
            ({"user": "reader", "password": "secret of the reader"}, "^stale: no message on x yet$"),
        ):  # fmt: skip
            with self.subTest(options), self.assertLogs("pigeonpost.core.mqtt_client", "INFO"):
                source = self.source(broker.port, {"x": {"topic": "x"}}, **options)
                self.assertNotIn("secret", self.wait_for_words(source, said))
                source.close()

    def certificate(self, folder):
        """Create a self-signed certificate for 127.0.0.1, and return its path."""
        names = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", names[0], "-out", names[1]],
            check=True, capture_output=True,
        )  # fmt: skip
        return names[1]

    def test_tls_requires_the_right_authority(self):
        broker = self.broker("allow_anonymous true", "certfile {folder}/cert.pem", "keyfile {folder}/key.pem")
        certificate = self.certificate(broker.folder)
        broker.start()
        trusting = self.source(broker.port, {"x": {"topic": "x"}}, tls=True, ca=certificate)
        self.wait_for_words(trusting, "^stale: no message on x yet$")
        doubting = self.source(broker.port, {"x": {"topic": "x"}}, tls=True)
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING"):
            self.wait_for_words(doubting, "no connection to the broker")


if __name__ == "__main__":
    unittest.main()
