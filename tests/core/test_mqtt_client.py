"""The connection to a broker, above a stand-in for paho: what is told of it, and when it counts as there."""

import logging
import sys
import types
import unittest
from unittest import mock

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.mqtt_client import LARGEST_BYTES, MqttConnection


class Code:
    """A reason code, as both versions of paho give it with MQTT 5."""

    def __init__(self, value, text=""):
        self.value, self.text = value, text

    def __str__(self):
        return self.text


class Client:
    """What is used of paho.mqtt.client.Client; it remembers how."""

    def __init__(self, *arguments, **options):
        self.arguments, self.options, self.calls = arguments, options, []

    def __getattr__(self, name):
        if name.startswith(("on_", "_")):
            raise AttributeError(name)
        return lambda *arguments, **options: self.calls.append((name, arguments))


class BrokerCase(unittest.TestCase):
    def setUp(self):
        library = types.SimpleNamespace(
            Client=Client, MQTTv5=5, Properties=lambda kind: types.SimpleNamespace(kind=kind),
            CallbackAPIVersion=types.SimpleNamespace(VERSION2="2"),
        )  # fmt: skip
        self.library = library
        modules = {name: types.ModuleType(name) for name in ("paho", "paho.mqtt")} | {"paho.mqtt.client": library}
        modules["paho"].mqtt, modules["paho.mqtt"].client = modules["paho.mqtt"], library
        self.enterContext(mock.patch.dict(sys.modules, modules))
        self.settings = {
            ("mqtt", "host"): "broker", ("mqtt", "port"): 0, ("mqtt", "user"): "", ("mqtt", "password"): "",
            ("mqtt", "tls"): False, ("mqtt", "ca"): "",
        }  # fmt: skip
        self.heard, self.turns = [], []

    def make(self):
        self.broker = MqttConnection(
            self.settings, "node", ["a/+", "b"], lambda *said: self.heard.append(said), lambda: self.turns.append(1)
        )
        return self.broker._client

    def test_it_is_there_when_the_subscriptions_are(self):
        client = self.make()
        self.broker.start()
        with self.assertLogs("pigeonpost.core.mqtt_client", "INFO") as logged:
            client.on_connect(client, None, {}, Code(0), None)
            self.assertFalse(self.broker.connected)
            self.assertIn(("subscribe", ([("a/+", 1), ("b", 1)],)), client.calls)
            client.on_subscribe(client, None, 1, [Code(1), Code(1)], None)
        self.assertTrue(self.broker.connected)
        self.assertEqual(self.turns, [1])
        self.assertEqual(logged.output, ["INFO:pigeonpost.core.mqtt_client:MQTT broker:1883: connected"])

    def test_it_is_not_there_where_one_of_them_is_refused(self):
        client = self.make()
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING") as logged:
            client.on_connect(client, None, {}, Code(0), None)
            client.on_subscribe(client, None, 1, [Code(1), Code(0x87)], None)
        self.assertFalse(self.broker.connected)
        self.assertIn("does not let this user read b;", logged.output[0])

    def test_a_refusal_is_told_once_in_the_brokers_words(self):
        client = self.make()
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING") as logged:
            for _ in range(5):
                client.on_connect(client, None, {}, Code(135, "Not authorized"), None)
                client.on_disconnect(client, None, Code(135))
        self.assertEqual(
            logged.output,
            [
                "WARNING:pigeonpost.core.mqtt_client:MQTT broker:1883: the broker refuses: Not authorized;"
                " it is tried again"
            ],
        )

    def test_a_loss_is_told_and_by_both_kinds_of_callback(self):
        for arguments in ((0, None), ({}, Code(0), None)):  # paho 1.6 and 2
            client = self.make()
            with self.assertLogs("pigeonpost.core.mqtt_client", "INFO") as logged:
                client.on_subscribe(client, None, 1, [Code(1), Code(1)], None)
                client.on_disconnect(client, None, *arguments)
                client.on_connect_fail(client, None)
            self.assertFalse(self.broker.connected)
            self.assertIn("the connection to the broker is lost", logged.output[1])
            self.assertIn("no connection to the broker", logged.output[2])

    def test_messages(self):
        class Bad:
            payload, retain = b"", False

            @property
            def topic(self):
                raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "not text")

        client = self.make()
        for message in (
            types.SimpleNamespace(topic="b", payload=b"x", retain=False), Bad(),
            types.SimpleNamespace(topic="b", payload=b"x" * (LARGEST_BYTES + 1), retain=False),
        ):  # fmt: skip
            client.on_message(client, None, message)
        self.assertEqual(self.heard, [("b", b"x")])

    def test_settings(self):
        self.settings |= {("mqtt", "user"): "me", ("mqtt", "password"): "pw", ("mqtt", "tls"): True}
        client = self.make()
        self.assertEqual(self.broker.place, "broker:8883")
        self.assertIn(("username_pw_set", ("me", "pw")), client.calls)
        self.assertIn("tls_set", [name for name, _ in client.calls])
        self.assertEqual(client.arguments, ("2",))
        self.assertRegex(client.options["client_id"], "^node-[0-9a-f]{8}$")
        del self.library.CallbackAPIVersion  # paho 1.6
        self.assertEqual(self.make().arguments, ())
        self.settings |= {("mqtt", "tls"): False, ("mqtt", "ca"): "ca.pem"}
        with self.assertRaisesRegex(SettingsError, "ca is used with tls = true"):
            self.make()

    def test_without_paho(self):
        with (
            mock.patch.dict(sys.modules, {"paho.mqtt.client": None, "paho.mqtt": None, "paho": None}),
            self.assertRaisesRegex(SettingsError, "sudo apt install python3-paho-mqtt"),
        ):
            self.make()

    def test_a_host_that_is_none(self):
        client = self.make()
        client.connect_async = mock.Mock(side_effect=ValueError("Invalid host."))
        with self.assertRaisesRegex(SettingsError, r"\[mqtt\] host 'broker': Invalid host"):
            self.broker.start()

    def test_at_the_end_nothing_is_told(self):
        client = self.make()
        with self.assertLogs("pigeonpost.core.mqtt_client", "INFO") as logged:
            client.on_subscribe(client, None, 1, [Code(1), Code(1)], None)
            self.assertIsNone(self.broker.stop(10))
            client.on_disconnect(client, None)
            logging.getLogger("pigeonpost.core.mqtt_client").info("end")
        self.assertEqual(logged.output[1:], ["INFO:pigeonpost.core.mqtt_client:end"])
        self.assertEqual([name for name, _ in client.calls[-2:]], ["disconnect", "loop_stop"])


if __name__ == "__main__":
    unittest.main()
