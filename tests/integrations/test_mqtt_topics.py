import json
import sys
import threading
import types
import unittest
from unittest import mock

from pigeonpost.core.errors import MissingLibrary, SettingsError
from pigeonpost.integrations import mqtt_topics
from pigeonpost.integrations.contract import NotDelivered
from tests.integrations.forwarding import batch_of, make_target, some
from tests.support import LIMIT_S


class Reason:
    def __init__(self, value, text):
        self.value, self.text = value, text

    def __str__(self):
        return self.text


class Paho:
    """Replacement for a client of paho-mqtt: a broker that answers each message in another thread."""

    clients: list = []
    is_up = True
    answers = True
    extra = (Reason(0, "Success"), None)  # what paho 2 passes in addition; paho 1 passes nothing

    def __init__(self, *arguments, **options):
        self.published, self.count, self.is_ended = [], 0, False
        self.options = options
        Paho.clients.append(self)

    def __getattr__(self, name):
        if name.startswith(("on_", "_")):
            raise AttributeError(name)
        return lambda *arguments, **options: None

    def loop_start(self):
        if Paho.is_up:
            threading.Thread(target=self.on_connect, args=(self, None, {}, 0, None)).start()
        else:
            threading.Thread(target=self.on_connect_fail, args=(self, None)).start()

    def publish(self, topic, payload, qos=0, retain=False):
        self.count += 1
        self.published.append((topic, payload.decode(), qos, retain))
        if Paho.answers:
            thread = threading.Thread(target=self.on_publish, args=(self, None, self.count, *Paho.extra))
            thread.start()
            if self.count % 2:  # the answer may arrive before `publish` returns
                thread.join()
        return types.SimpleNamespace(mid=self.count)

    def loop_stop(self):
        self.is_ended = True


class MqttTopics(unittest.TestCase):
    def setUp(self):
        library = types.SimpleNamespace(
            Client=Paho, Properties=lambda kind: types.SimpleNamespace(),
            CallbackAPIVersion=types.SimpleNamespace(VERSION2="2"),
        )  # fmt: skip
        modules = {name: types.ModuleType(name) for name in ("paho", "paho.mqtt")} | {"paho.mqtt.client": library}
        modules["paho"].mqtt, modules["paho.mqtt"].client = modules["paho.mqtt"], library
        self.enterContext(mock.patch.dict(sys.modules, modules))
        self.enterContext(mock.patch("pigeonpost.core.mqtt_client.log"))
        for name, value in (("clients", []), ("is_up", True), ("answers", True)):
            self.enterContext(mock.patch.object(Paho, name, value))

    def sent(self):
        return [message for client in Paho.clients for message in client.published]

    def test_each_reading_is_a_message_with_value_unit_and_time(self):
        target = make_target(self, "mqtt")
        self.assertEqual((target.place, Paho.clients[0].options["protocol"]), ("mqtt://localhost:1883", 5))
        target.send([batch_of(some(1, 2, temperature=[20.5, None], door=[1, 0]))])
        self.assertEqual(
            [(topic, json.loads(payload), qos, retain) for topic, payload, qos, retain in self.sent()],
            [
                ("pigeonpost/basement/temperature",
                 {"value": 20.5, "unit": "°C", "time": "2026-11-20T15:36:11.123Z"}, 1, False),
                ("pigeonpost/basement/door", {"value": 1, "unit": "", "time": "2026-11-20T15:36:11.123Z"}, 1, False),
                ("pigeonpost/basement/door", {"value": 0, "unit": "", "time": "2026-11-20T15:36:12.123Z"}, 1, False),
            ],
        )  # fmt: skip

    def test_topic_and_payload_can_be_chosen(self):
        target = make_target(self, "mqtt", topic="home/{node}/x/{sensor}/state", payload="number", version=3, port=1)
        target.send([batch_of(some(1, 1, temperature=[20.5], light=[512]))])
        expected = [("home/basement/x/temperature/state", "20.5"), ("home/basement/x/light/state", "512")]
        self.assertEqual([message[:2] for message in self.sent()], expected)
        self.assertEqual(Paho.clients[0].options["protocol"], 4)
        self.assertEqual(make_target(self, "mqtt", tls=True).place, "mqtts://localhost:8883")

    def test_only_the_newest_value_of_a_topic_is_retained(self):
        target = make_target(self, "mqtt", retain=True, payload="number")
        target.send([batch_of(some(5, 2)), batch_of(some(1, 2), epoch="f" * 16)])
        target.send([batch_of(some(3, 1), epoch="f" * 16)])  # a late sample
        target.send([batch_of(some(7, 2, temperature=[1, None]))])
        self.assertEqual([payload for _, payload, _, retain in self.sent() if retain], ["26.5", "1"])

    def test_send_waits_for_all_acknowledgements(self):
        Paho.answers = False
        target = make_target(self, "mqtt")
        thread = threading.Thread(target=target.send, args=([batch_of(some(1, 3))],))
        with mock.patch.object(mqtt_topics, "ANSWER_S", LIMIT_S):
            thread.start()
            while len(self.sent()) < 3:
                self.assertTrue(thread.is_alive())
            client = Paho.clients[-1]
            for number in (1, 3):
                client.on_publish(client, None, number)  # as paho 1 calls it
            self.assertTrue(thread.is_alive())
            client.on_publish(client, None, 2)
        thread.join(LIMIT_S)
        self.assertFalse(thread.is_alive())

    def test_a_message_without_an_answer_is_not_delivered_and_never_sent_later(self):
        Paho.answers = False
        target = make_target(self, "mqtt")
        with (
            mock.patch.object(mqtt_topics, "ANSWER_S", 0.01),
            self.assertRaisesRegex(NotDelivered, "not acknowledged all samples within 0.01 s"),
        ):
            target.send([batch_of(some(1, 2))])
        self.assertTrue(Paho.clients[-1].is_ended)
        Paho.answers = True
        target.send([batch_of(some(1, 2))])
        self.assertEqual(len(Paho.clients), 3)

    def test_a_refused_message_is_not_delivered(self):
        target = make_target(self, "mqtt")
        with (
            mock.patch.object(Paho, "extra", (Reason(0x87, "Not authorized"), None)),
            self.assertRaisesRegex(NotDelivered, "Not authorized; allow this user to publish to pigeonpost/"),
        ):
            target.send([batch_of(some())])

    def test_a_lost_connection_is_reported_once(self):
        target = make_target(self, "mqtt")
        target.send([batch_of(some())])
        Paho.clients[-1].on_disconnect(None)
        with self.assertRaisesRegex(NotDelivered, "the connection to the broker is lost"):
            target.send([batch_of(some(4))])
        target.send([batch_of(some(4))])

    def test_check_reports_a_lost_connection_once(self):
        target = make_target(self, "mqtt")
        target.check()
        target.send([batch_of(some())])
        target.check()
        Paho.clients[-1].on_disconnect(None)
        with self.assertRaisesRegex(NotDelivered, "the connection to the broker is lost"):
            target.check()
        target.check()
        target.send([batch_of(some(4))])

    def test_a_broker_that_is_away_is_reported(self):
        Paho.is_up = False
        target = make_target(self, "mqtt", host="nowhere.example", password="se-cret")
        with (
            mock.patch.object(mqtt_topics, "CONNECT_S", 0.01),
            self.assertRaisesRegex(NotDelivered, "no connection to the broker within 0.01 s") as caught,
        ):
            target.send([batch_of(some())])
        self.assertNotIn("se-cret", str(caught.exception))

    def test_close_ends_a_waiting_send(self):
        Paho.answers = False
        target, errors = make_target(self, "mqtt"), []

        def send():
            try:
                target.send([batch_of(some())])
            except NotDelivered as error:
                errors.append(str(error))

        thread = threading.Thread(target=send)
        thread.start()
        while not self.sent():
            self.assertTrue(thread.is_alive())
        target.close()
        target.close()
        thread.join(LIMIT_S)
        self.assertEqual(errors, ["the connection is closed"])
        self.assertTrue(Paho.clients[-1].is_ended)
        with self.assertRaisesRegex(NotDelivered, "the connection is closed"):
            target.send([batch_of(some())])

    def test_invalid_settings_are_errors(self):
        for keys, text in (
            ({"topic": "pigeonpost/{node}"}, "a topic with {sensor}"),
            ({"topic": "a/{nodes}/{sensor}"}, "a topic with {sensor}"),
            ({"topic": "a/#/{sensor}"}, "a topic with {sensor}"),
            ({"topic": "{node} {sensor}"}, "a topic with {sensor}"),
            ({"topic": "home/{sensor}"}, r"topic needs \{node\}, unless nodes is set"),
            ({"version": 4}, "version takes 3 or 5"),
            ({"ca": "ca.pem"}, "ca requires tls = true"),
        ):
            with self.assertRaisesRegex(SettingsError, text):
                make_target(self, "mqtt", **keys)
        make_target(self, "mqtt", topic="home/{sensor}", nodes=["basement"])
        make_target(self, "mqtt", topic="{node}/{sensor}")

    def test_missing_library_names_the_package(self):
        with (
            mock.patch.dict(sys.modules, {"paho.mqtt.client": None, "paho.mqtt": None, "paho": None}),
            self.assertRaisesRegex(MissingLibrary, "sudo apt install python3-paho-mqtt"),
        ):
            make_target(self, "mqtt")


if __name__ == "__main__":
    unittest.main()
