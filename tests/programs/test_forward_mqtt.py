"""Forwarding to Mosquitto: it and this server are killed at random, and each reading arrives at least once."""

import json
import threading
import unittest

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.integrations.contract import NotDelivered
from tests.integrations.forwarding import batch_of, make_target, some
from tests.libraries import Broker, need_broker, paho
from tests.programs import need_programs
from tests.programs.forward_house import KILLS, forwarding, kill_at_random
from tests.support import LIMIT_S, wait_until


def setUpModule():
    need_programs("mosquitto")
    need_broker()


# Mosquitto then stores its sessions at each change, and queues messages while a known subscriber is away.
PERSISTENT = (
    "allow_anonymous true", "persistence true", "persistence_location {folder}/", "autosave_on_changes true",
    "autosave_interval 1", "max_queued_messages 0",
)  # fmt: skip


class KilledBroker(Broker):
    """Mosquitto that is ended by SIGKILL."""

    def kill(self):
        process, self._process = self._process, None
        process.kill()
        process.wait()


class Subscriber:
    """Client that subscribes to all topics, and connects again at once. With a name, it has a permanent session."""

    def __init__(self, test, port, name=""):
        newest = getattr(paho, "CallbackAPIVersion", None)
        self.client = paho.Client(*([newest.VERSION2] if newest else []), client_id=name, clean_session=not name)
        self.client.reconnect_delay_set(1, 1)
        self.messages = []
        self.ready = threading.Event()
        self.client.on_connect = lambda *more: self.client.subscribe("pigeonpost/#", 1)
        self.client.on_subscribe = lambda *more: self.ready.set()
        self.client.on_message = lambda client, userdata, message: self.messages.append(message)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        test.addCleanup(self.client.loop_stop)
        test.addCleanup(self.client.disconnect)
        test.assertTrue(self.ready.wait(LIMIT_S))

    def readings(self):
        """Return the received values by node and sensor, and by time in ms."""
        found = {}
        for message in list(self.messages):
            _, node, sensor = message.topic.split("/")
            body = json.loads(message.payload)
            found.setdefault((node, sensor), {})[parse_rfc3339(body["time"])] = body["value"]
        return found


class MqttTest(unittest.TestCase):
    def test_each_reading_arrives_at_least_once_although_broker_and_server_are_killed(self):
        broker = KilledBroker(self, *PERSISTENT).start()
        subscriber = Subscriber(self, broker.port, "node-red")
        settings = f"""
            [[forward]]
            name = "topics"
            kind = "mqtt"
            host = "127.0.0.1"
            port = {broker.port}
            history = true
        """
        with forwarding(settings) as (house, chance):
            kill_at_random(house, [broker], KILLS, chance)
            house.finish(lambda: subscriber.readings() == house.readings(), "the subscriber has all readings")
            wanted, found = house.readings(), subscriber.readings()
            self.assertEqual(wanted, found)
            count = sum(map(len, found.values()))
            print(f"mqtt: {count} readings in {len(subscriber.messages)} messages, {house.server.kills} kills")

    def test_newest_value_is_retained_for_new_subscribers(self):
        broker = Broker(self).start()
        for version in (3, 5):
            target = make_target(self, "mqtt", host="127.0.0.1", port=broker.port, retain=True, version=version)
            target.send([batch_of(some(1, 3)), batch_of(some(1, 1, light=[512]))])
            self.check_retained(Subscriber(self, broker.port))

    def check_retained(self, subscriber):
        wait_until(lambda: len(subscriber.readings()) == 2, "the retained values")
        values = {sensor: list(found.values()) for (_, sensor), found in subscriber.readings().items()}
        self.assertEqual(values, {"temperature": [23.5], "light": [512]})

    def test_lost_connection_is_reported(self):
        broker = KilledBroker(self).start()
        target = make_target(self, "mqtt", host="127.0.0.1", port=broker.port)
        target.send([batch_of(some(1, 3))])
        broker.kill()
        with self.assertRaises(NotDelivered):
            target.send([batch_of(some(4, 3))])
        broker.start()
        target.send([batch_of(some(4, 3))])


if __name__ == "__main__":
    unittest.main()
