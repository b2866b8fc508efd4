"""Devices of [[device]] tables with paho and a real Mosquitto: sessions, retained messages, and a killed server."""

import csv
import io
import os
import subprocess
import sys
import threading
import unittest

from tests.libraries import Broker, need_broker, paho
from tests.sensors.test_mqtt_presets import SHELLY_HT, TASMOTA, ZIGBEE2MQTT
from tests.support import LIMIT_S, ROOT, Program, clean_environment, temp_folder, wait_until

DEVICES = """
[mqtt]
host = "127.0.0.1"
port = {port}
[[device]]
name = "kitchen"
preset = "zigbee2mqtt"
[[device]]
name = "desk"
preset = "tasmota"
device = "tasmota_1A2B3C"
[[device]]
name = "porch"
preset = "esphome"
[[device]]
name = "ht"
preset = "shelly"
device = "shellyplusht-b8d61a8b17cc"
"""


def setUpModule():
    need_broker()


class Case(unittest.TestCase):
    def setUp(self):
        self.broker = Broker(self, *self.broker_lines()).start()
        self.data = temp_folder(self)
        self.config = os.path.join(self.data, "server.toml")
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(DEVICES.format(port=self.broker.port))
        newest = getattr(paho, "CallbackAPIVersion", None)
        self.client = paho.Client(*([newest.VERSION2] if newest else []))
        self.client.connect("127.0.0.1", self.broker.port)
        self.client.loop_start()
        self.addCleanup(self.client.loop_stop)
        self.addCleanup(self.client.disconnect)

    def broker_lines(self):
        return ["allow_anonymous true"]

    def start_server(self):
        server = Program(self, "server.py", "--config", self.config, "--data", self.data, "--web", "127.0.0.1:0")
        wait_until(lambda: sum(": connected" in line for line in server.logged) == 2, f"it connects: {server.logged}")
        return server

    def publish(self, topic, payload, qos=1, retain=False):
        """Publish a message, and return when the broker has received it."""
        self.client.publish(topic, payload, qos=qos, retain=retain).wait_for_publish(LIMIT_S)

    def stored(self, node):
        """Return the stored values of a node, as (sensor, value) in the order of the samples."""
        output = subprocess.run(
            [sys.executable, os.path.join(ROOT, "control.py"), "--data", self.data, "export", "--node", node],
            env=clean_environment(), check=True, capture_output=True, text=True, timeout=LIMIT_S,
        ).stdout  # fmt: skip
        return [(row["sensor"], float(row["value"])) for row in csv.DictReader(io.StringIO(output))]


class DeviceTest(Case):
    def test_messages_of_each_firmware_become_samples(self):
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":1}', retain=True)
        server = self.start_server()
        self.publish("zigbee2mqtt/kitchen", ZIGBEE2MQTT)
        self.publish("tele/tasmota_1A2B3C/SENSOR", TASMOTA)
        self.publish("porch/sensor/temperature/state", b"21.4", retain=True)
        self.publish("porch/binary_sensor/motion/state", b"ON", retain=True)
        self.publish("shellyplusht-b8d61a8b17cc/events/rpc", SHELLY_HT)
        wait_until(lambda: ("temperature", 19.8) in self.stored("ht"), "the last message is stored")
        server.terminate()
        self.assertEqual(server.wait(), 0)
        kitchen = dict(self.stored("kitchen"))
        self.assertEqual((kitchen["temperature"], kitchen["state"], kitchen["contact"]), (21.43, 1, 0))
        self.assertEqual(len(self.stored("kitchen")), len(kitchen))  # not the retained message
        self.assertEqual(dict(self.stored("desk"))["energy"], 3.705)
        self.assertEqual(self.stored("porch"), [("temperature", 21.4), ("binary_sensor_motion", 1)])


class SessionTest(Case):
    def test_messages_with_qos_1_survive_kills_of_the_server(self):
        server = self.start_server()
        count, rounds = 400, 4
        published, stop = [], threading.Event()

        def publish():
            for number in range(count):
                self.publish("zigbee2mqtt/kitchen", b'{"temperature":%d}' % number)
                published.append(number)
                stop.wait(0.01)

        thread = threading.Thread(target=publish)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(stop.set)
        for one in range(1, rounds + 1):
            wait_until(lambda one=one: len(published) >= one * count // (rounds + 1), "more messages")
            server.kill()  # while messages arrive
            server = self.start_server()
        thread.join(LIMIT_S)
        self.assertEqual(len(published), count)
        wait_until(lambda: ("temperature", count - 1) in self.stored("kitchen"), "the last message is stored")
        server.terminate()
        self.assertEqual(server.wait(), 0)
        found = [int(value) for _, value in self.stored("kitchen")]
        self.assertEqual(sorted(set(found)), list(range(count)))  # at least once
        # The broker repeats only messages without acknowledgement, at most 20 (max_inflight_messages of Mosquitto).
        self.assertLessEqual(len(found), count + 20 * rounds)

    def test_messages_with_qos_0_are_stored_while_the_server_is_connected(self):
        server = self.start_server()
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":1}', qos=0)
        wait_until(lambda: self.stored("kitchen"), "it is stored")
        server.kill()
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":2}', qos=0)
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":3}', qos=1)
        self.start_server()
        wait_until(lambda: len(self.stored("kitchen")) > 1, "it is stored")
        self.assertEqual(self.stored("kitchen"), [("temperature", 1), ("temperature", 3)])


class BrokerTest(Case):
    def broker_lines(self):
        return ["allow_anonymous true", "persistence true", "persistence_location {folder}/",
                "queue_qos0_messages true"]  # fmt: skip

    def test_broker_keeps_messages_with_qos_0_if_it_is_set(self):
        self.start_server().kill()
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":1}', qos=0)
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":2}', qos=1)
        self.start_server()
        wait_until(lambda: len(self.stored("kitchen")) > 1, "both are stored")
        self.assertEqual(self.stored("kitchen"), [("temperature", 1), ("temperature", 2)])

    def test_broker_with_persistence_keeps_messages_over_its_restart(self):
        self.start_server().kill()
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":1}')
        self.broker.stop()
        self.broker.start()
        server = self.start_server()
        wait_until(lambda: self.stored("kitchen"), "it is stored")
        self.broker.stop()
        server.logs("the connection to the broker is lost")
        self.broker.start()
        wait_until(lambda: sum(": connected" in line for line in server.logged) == 4, "both connect again")
        self.publish("zigbee2mqtt/kitchen", b'{"temperature":2}')
        wait_until(lambda: len(self.stored("kitchen")) > 1, "it is stored")
        self.assertEqual(self.stored("kitchen"), [("temperature", 1), ("temperature", 2)])


if __name__ == "__main__":
    unittest.main()
