"""Tests of the connection to an MQTT broker with a replacement for paho: log lines and states."""

import logging
import socket
import sys
import threading
import types
import unittest
from unittest import mock

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.mqtt_client import LARGEST_BYTES, MqttConnection
from tests.support import LIMIT_S


class Code:
    """A reason code in the form that both versions of paho have for MQTT 5."""

    def __init__(self, value, text=""):
        self.value, self.text = value, text

    def __str__(self):
        return self.text


class Client:
    """Replacement for paho.mqtt.client.Client that records its calls."""

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
        self.received, self.turns = [], []

    def make(self, **settings):
        self.broker = MqttConnection(
            self.settings | {("mqtt", key): value for key, value in settings.items()},
            "node",
            ["a/+", "b"],
            lambda *message: self.received.append(message),
            lambda: self.turns.append(1),
        )
        return self.broker._client

    def test_client_is_connected_after_its_subscriptions_are_accepted(self):
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

    def test_client_is_not_connected_if_a_subscription_is_refused(self):
        client = self.make()
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING") as logged:
            client.on_connect(client, None, {}, Code(0), None)
            client.on_subscribe(client, None, 1, [Code(1), Code(0x87)], None)
        self.assertFalse(self.broker.connected)
        self.assertIn("does not allow this user to read b;", logged.output[0])

    def test_refusal_is_logged_once_with_the_reason_of_the_broker(self):
        client = self.make()
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING") as logged:
            for _ in range(5):
                client.on_connect(client, None, {}, Code(135, "Not authorized"), None)
                client.on_disconnect(client, None, Code(135))
        self.assertEqual(
            logged.output,
            [
                "WARNING:pigeonpost.core.mqtt_client:MQTT broker:1883: the broker refused the connection:"
                " Not authorized; trying again"
            ],
        )

    def test_lost_connection_is_logged_with_both_callback_interfaces(self):
        for arguments in ((0, None), ({}, Code(0), None)):  # paho 1.6 and 2
            client = self.make()
            with self.assertLogs("pigeonpost.core.mqtt_client", "INFO") as logged:
                client.on_subscribe(client, None, 1, [Code(1), Code(1)], None)
                client.on_disconnect(client, None, *arguments)
                client.on_connect_fail(client, None)
            self.assertFalse(self.broker.connected)
            self.assertIn("the connection to the broker is lost", logged.output[1])
            self.assertIn("no connection to the broker", logged.output[2])

    def test_connection_that_ends_before_an_answer_is_a_fault(self):
        client = self.make()
        with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING") as logged:
            for _ in range(3):  # a web server, or a broker that expects TLS
                client.on_disconnect(client, None, Code(0))
        self.assertEqual(len(logged.output), 1)
        self.assertIn("closed before the broker accepted it: check host, port and tls", self.broker.fault)
        client.on_connect(client, None, {}, Code(0), None)
        client.on_subscribe(client, None, 1, [Code(1), Code(1)], None)
        client.on_disconnect(client, None, Code(0))
        self.assertIn("the connection to the broker is lost", self.broker.fault)

    def test_log_contains_why_the_broker_cannot_be_reached(self):
        for error, words in (
            (ConnectionRefusedError(111, "Connection refused"), "no connection to the broker: Connection refused;"),
            (
                socket.gaierror(-2, "Name or service not known"),
                "no connection to the broker: Name or service not known;",
            ),
            (TimeoutError("timed out"), "no connection to the broker: timed out;"),
            (OSError(), "no connection to the broker;"),
        ):
            client = self.make()
            with self.subTest(words), self.assertLogs("pigeonpost.core.mqtt_client", "WARNING") as logged:
                try:
                    raise error
                except OSError:  # paho 1.6 and 2 call it here
                    client.on_connect_fail(client, None)
            self.assertIn(words, logged.output[0])

    def test_log_contains_what_is_wrong_with_a_host(self):
        for host, words in (
            ("mqtt://broker", "; host takes only a name or an address"),
            ("broker:1883", "the port has a key of its own;"),
            ("tcp://broker:1883", "host takes only"), ("broker/", "host takes only"), ("[::1]", "host takes only"),
            ("my broker", "host takes only"), ("broker", "the broker;"), ("192.168.1.2", "the broker;"),
            ("2001:db8::1", "the broker;"), ("fe80::1%eth0", "the broker;"), ("broker_1.local.", "the broker;"),
        ):  # fmt: skip
            client = self.make(host=host)
            with self.subTest(host), self.assertLogs("pigeonpost.core.mqtt_client", "WARNING") as logged:
                client.on_connect_fail(client, None)
            self.assertIn(words, logged.output[0])

    def test_only_valid_messages_are_delivered(self):
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
        self.assertEqual(self.received, [("b", b"x")])

    def test_settings_are_passed_to_paho(self):
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
        with self.assertRaisesRegex(SettingsError, "ca requires tls = true"):
            self.make()

    def test_missing_paho_is_refused_with_the_remedy(self):
        with (
            mock.patch.dict(sys.modules, {"paho.mqtt.client": None, "paho.mqtt": None, "paho": None}),
            self.assertRaisesRegex(SettingsError, "sudo apt install python3-paho-mqtt"),
        ):
            self.make()

    def test_invalid_host_is_refused(self):
        client = self.make()
        client.connect_async = mock.Mock(side_effect=ValueError("Invalid host."))
        with self.assertRaisesRegex(SettingsError, r"\[mqtt\] host 'broker': Invalid host"):
            self.broker.start()

    def test_stop_waits_only_while_there_is_a_connection(self):
        client, is_free = self.make(), threading.Event()
        self.addCleanup(is_free.set)
        client.loop_stop = is_free.wait
        self.assertIsNone(self.broker.stop(LIMIT_S))
        self.broker.connected = True
        self.assertRegex(self.broker.stop(0.01), "does not accept data")

    def test_disconnecting_on_purpose_is_not_logged(self):
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
