"""Tests of kind = "mqtt" without a broker: a fake paho delivers the messages, in both versions of its callbacks.

tests/libraries/test_sensor_mqtt.py does the same with paho itself and a real broker.
"""

import random
import sys
import types
import unittest
from unittest import mock

from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors import mqtt
from pigeonpost.sensors.contract import Channel, dotted_path
from tests.sensors.test_contract import Contract

CHANNELS = {
    "kitchen": {"topic": "zigbee2mqtt/kitchen", "path": "temperature", "unit": "°C"},
    "door": {"topic": "zigbee2mqtt/door", "path": "contact"},
    "cellar": {"topic": "zwave/cellar/49/0/Air_temperature", "path": "value", "unit": "°C"},
    "plain": {"topic": "house/power", "gain": 0.001, "unit": "kW"},
}
SAID = {
    "zigbee2mqtt/kitchen": b'{"battery":97,"temperature":21.43,"update":{"state":"idle"}}',
    "zigbee2mqtt/door": b'{"contact":true}',
    "zwave/cellar/49/0/Air_temperature": b'{"time":1795188970123,"value":9.5}',
    "house/power": b" 812 \n",
}


class Message:
    def __init__(self, topic, payload, retain=False):
        self.topic, self.payload, self.retain = topic, payload, retain


class Reason:
    """Reason code of paho 2."""

    def __init__(self, value):
        self.value = value

    def __str__(self):
        return f"reason {self.value}"


class Client:
    """The part of paho.mqtt.client.Client that the source uses. It is connected once its loop is started.

    Attributes:
        said: Messages that the broker has retained.
        refuses: Code with which the broker refuses the connection.
    """

    said = {}
    refuses = 0
    version = 1

    def __init__(self, *arguments, **options):
        self.arguments, self.options = arguments, options
        self.calls = []

    def __getattr__(self, name):
        if not name.startswith(("on_", "_")):
            return lambda *arguments, **options: self.calls.append((name, arguments, options))
        raise AttributeError(name)

    def loop_stop(self):
        self.calls.append(("loop_stop", (), {}))

    def loop_start(self):
        code, more = (Reason(self.refuses), (None,)) if self.version == 2 else (self.refuses, ())
        self.on_connect(self, None, {}, code, *more)
        if not self.refuses:
            self.subscribed(0)
            for topic, payload in self.said.items():
                self.on_message(self, None, Message(topic, payload, True))

    def subscribed(self, *codes):
        codes, more = ([Reason(code) for code in codes], (None,)) if self.version == 2 else (codes, ())
        self.on_subscribe(self, None, 1, codes, *more)


def use_paho(test, version=1, **attributes):
    """Install a fake paho with one version of the interface, whose clients have `attributes`."""
    made = type("Client", (Client,), {"version": version, **attributes})
    library = types.SimpleNamespace(Client=made)
    if version == 2:
        library.CallbackAPIVersion = types.SimpleNamespace(VERSION2="version 2")
    modules = {
        "paho": types.ModuleType("paho"),
        "paho.mqtt": types.ModuleType("paho.mqtt"),
        "paho.mqtt.client": library,
    }
    modules["paho"].mqtt, modules["paho.mqtt"].client = modules["paho.mqtt"], library
    for patch in (mock.patch.dict(sys.modules, modules), mock.patch.object(mqtt, "FIRST_WAIT_S", 0.0)):
        patch.start()
        test.addCleanup(patch.stop)


def make(channels=CHANNELS, **options):
    return mqtt.make({"channels": channels, **options}, "here")


class Mqtt(Contract, unittest.TestCase):
    module = mqtt

    def make(self):
        use_paho(self, said=SAID)
        return make()

    def make_broken(self):
        use_paho(self, refuses=5)
        return make()


class Case(unittest.TestCase):
    def source(self, channels=CHANNELS, version=1, options=None, **attributes):
        use_paho(self, version, **attributes)
        return make(channels, **(options or {}))


class Messages(Case):
    def test_values_of_all_devices_are_read(self):
        for version in (1, 2):
            source = self.source(version=version, said=SAID)
            self.assertEqual(source.read(), {"kitchen": 21.43, "door": 1, "cellar": 9.5, "plain": 0.812})
            self.assertEqual(source.channels[0], Channel("kitchen", "°C"))

    def test_message_of_one_topic_has_values_for_several_channels(self):
        channels = {
            "a": {"topic": "t", "path": "a.0"},
            "b": {"topic": "t", "path": "b.c"},
            "d": {"topic": "t", "path": "d"},
        }
        readings = self.source(channels, said={"t": b'{"a":[1],"b":{"c":2}}'}).read()
        self.assertEqual((readings["a"], readings["b"]), (1, 2))
        self.assertEqual(str(readings["d"]), "t: there is no 'd'; found: 'a', 'b'")

    def test_messages_with_a_number_are_read(self):
        for payload, path, value in (
            (b"21.5", "", 21.5), (b" -3 ", "", -3), (b"1e3", "", 1000), (b"true", "", 1), (b"OFF", "", 0),
            (b'"21.5"', "", 21.5), (b'" 7 "\n', "", 7), (b'"ON"', "", 1), (b'{"v":"open"}', "v", 1),
            (b'"-1e2"', "", -100),
            (b'{"v":"21.5"}', "v", 21.5), (b'{"v":false}', "v", 0), (b'{"v":"ON"}', "v", 1), (b"[7]", "0", 7),
            (b'{"v":12345678901234567890}', "v", 12345678901234567890.0),
        ):  # fmt: skip
            self.assertEqual(mqtt.Message(payload).value_at(dotted_path(path)), value)

    def test_messages_without_a_number_are_errors(self):
        for payload, path, words in (
            (b"", "", "not a number: ''"), (b"warm", "", "not a number: 'warm'"), (b"nan", "", "not a number: 'nan'"),
            (b"1e999", "", "not a number"),
            (b'"1e999"', "", "not a number"), (b'"', "", "not a number: '\"'"), (b'""21.5""', "", "not a number"),
            ("\uff12\uff11".encode(), "", "not a number"), ('{"v":"\u0662\u0661"}'.encode(), "v", "not a number"),
            (b'{"temperature":21}', "", "not a number: '{\"temperature\":21}'; set `path`"),
            (b"[21]", "", "; set `path`"), (b"1_0", "", "not a number"), (b'{"v":null}', "v", "not a number at 'v'"),
            (b'{"v":{}}', "v", "not a number at 'v'"), (b'{"v":NaN}', "v", "not a number at 'v': \"NaN\""),
            (b"\xff\xfe", "", "cannot be read"), (b'"' * 999, "v", "cannot be read"),
            (b"[" * 60_000, "v", "cannot be read"), (b'{"v":' + b"9" * 5000 + b"}", "v", "not a number at 'v'"),
            (b'{"v":1,"v":2', "v", "cannot be read"), (b"9" * 60_000, "", "not a number"),
            (b'{"v":1' + b"0" * 400 + b"}", "v", "not a number"),
        ):  # fmt: skip
            with self.subTest(payload[:20]), self.assertRaises(SensorError) as caught:
                mqtt.Message(payload).value_at(dotted_path(path))
            self.assertIn(words, str(caught.exception))
            self.assertLess(len(str(caught.exception)), 400)

    def test_any_message_gives_a_number_or_a_sensor_error(self):
        dice = random.Random(4)
        pieces = [
            b"{",
            b"}",
            b"[",
            b"]",
            b'"v"',
            b":",
            b",",
            b"1",
            b"-",
            b"e9",
            b"\\ud800",
            b'"',
            b"\xc3",
            b"true",
            b" ",
        ]
        for _ in range(3000):
            payload = b"".join(dice.choices(pieces, k=dice.randrange(12)))
            for path in ("", "v", "0.v"):
                try:
                    self.assertIn(type(mqtt.Message(payload).value_at(dotted_path(path))), (int, float))
                except SensorError as error:
                    self.assertTrue(str(error))

    def test_too_long_message_is_not_stored(self):
        source = self.source({"x": {"topic": "x"}}, said={"x": b"1" * (mqtt.LONGEST_PAYLOAD + 1)})
        self.assertEqual(str(source.read()["x"]), "x: the message is longer than 65536 bytes")
        self.assertEqual(source._last, {})

    def test_messages_of_other_topics_are_not_stored(self):
        source = self.source({"x": {"topic": "x"}}, said={str(n): b"1" for n in range(1000)})
        source.read()
        self.assertEqual(source._received_s, {})

        class Spoilt(Message):
            @property
            def topic(self):
                return b"\xff".decode()

            @topic.setter
            def topic(self, value):
                pass

        source._broker._client.on_message(None, None, Spoilt("", b"1"))
        self.assertEqual(source._received_s, {})


class Freshness(Case):
    def later(self, source, seconds):
        with mock.patch.object(mqtt.time, "monotonic", lambda: source._received_s["x"] + seconds):
            return source.read()["x"]

    def test_value_is_used_for_the_time_fresh(self):
        source = self.source({"x": {"topic": "x", "fresh": 60}}, said={"x": b"5"})
        source.read()
        self.assertEqual(self.later(source, 59.9), 5)
        error = self.later(source, 61)
        self.assertIsInstance(error, SensorError)
        self.assertEqual(str(error), "stale: no message on x for 61 s")

    def test_value_is_used_for_an_hour_by_default(self):
        source = self.source({"x": {"topic": "x"}}, said={"x": b"5"})
        source.read()
        self.assertEqual(self.later(source, 3599.9), 5)
        self.assertIsInstance(self.later(source, 3601), SensorError)

    def test_retained_message_does_not_renew_a_value(self):
        source = self.source({"x": {"topic": "x"}}, said={"x": b"5"})
        source.read()
        heard = source._received_s["x"]
        source._broker._client.on_message(None, None, Message("x", b"5", retain=True))
        self.assertIs(source._received_s["x"], heard)
        source._broker._client.on_message(
            None, None, Message("x", b"6", retain=True)
        )  # it was sent while the source was disconnected
        self.assertIsNot(source._received_s["x"], heard)
        heard = source._received_s["x"]
        source._broker._client.on_message(None, None, Message("x", b"6"))
        self.assertIsNot(source._received_s["x"], heard)


class LastValues(Case):
    """The last value of a channel counts, whichever messages follow it."""

    def setUp(self):
        self.now_s = 1000.0
        patch = mock.patch.object(mqtt.time, "monotonic", lambda: self.now_s)
        patch.start()
        self.addCleanup(patch.stop)
        channels = {
            "temperature": {"topic": "t", "path": "temperature", "fresh": 60},
            "humidity": {"topic": "t", "path": "humidity", "fresh": 600},
        }
        self.clock = self.source(channels)
        self.clock.read()

    def publish(self, *payloads, source=None, topic="t", retain=False):
        source = source or self.clock
        for payload in payloads:
            source._broker._client.on_message(None, None, Message(topic, payload, retain))

    def readings(self, source=None):
        return {name: v if isinstance(v, float) else str(v) for name, v in (source or self.clock).read().items()}

    def test_message_without_a_value_leaves_the_last_value(self):
        for between in (
            b'{"temperature":null,"humidity":null}', b"{}", b"online", b"", b'{"battery":97}', b'{"temperature":""}',
            b'{"temperature": ', b"[]", b"5", b"null", b'"text"', b"\xff\x00\xfe", b"[" * 999, b"1" * 70_000,
        ):  # fmt: skip
            with self.subTest(between):
                self.publish(b'{"temperature":28.2,"humidity":null}', b'{"humidity":32.08}', between)
                self.assertEqual(self.readings(), {"temperature": 28.2, "humidity": 32.08})

    def test_message_without_a_value_does_not_renew_the_last_value(self):
        for later in (b'{"temperature":null,"humidity":1}', b'{"humidity":1}', b"online"):
            with self.subTest(later):
                self.publish(b'{"temperature":28.2,"humidity":2}')
                self.now_s += 50
                self.publish(later)
                self.now_s += 40
                self.assertRegex(
                    self.readings()["temperature"],
                    "^stale: the last message with a value at 'temperature' on t is 90 s old; in later ones: .",
                )
                self.assertIsInstance(self.readings()["humidity"], float)

    def test_channel_without_any_value_names_the_reason(self):
        self.publish(b'{"temperature":null}')
        self.assertEqual(self.readings(), {
            "temperature": "t: not a number at 'temperature': null",
            "humidity": "t: there is no 'humidity'; found: 'temperature'",
        })  # fmt: skip

    def test_bad_field_fails_alone_until_its_next_value(self):
        for bad, shown in (
            (b"nan", '"nan"'), (b"NaN", '"NaN"'), (b"-inf", '"-inf"'), (b"Infinity", '"Infinity"'),
            (b"1e999", '"1e999"'), (b'"unavailable"', '"unavailable"'), (b"-1.#IND", '"-1.#IND"'), (b"{}", "nothing"),
        ):  # fmt: skip
            with self.subTest(bad):
                self.publish(b'{"temperature":20,"humidity":1}', b'{"temperature":' + bad + b',"humidity":48,}')
                self.assertEqual(
                    self.readings(), {"temperature": f"t: not a number at 'temperature': {shown}", "humidity": 48.0}
                )
                self.publish(b'{"temperature":null}')  # the fault continues
                self.assertIn(shown, self.readings()["temperature"])
                self.publish(b'{"temperature":21}')
                self.assertEqual(self.readings(), {"temperature": 21.0, "humidity": 48.0})

    def test_channel_without_path_skips_texts_and_reports_failures(self):
        source = self.source({"x": {"topic": "x", "fresh": 60}})
        source.read()
        for payload, reading in (
            (b"21.5", 21.5), (b"online", 21.5), (b'{"rssi":-60}', 21.5), (b"", 21.5), (b"null", 21.5),
            (b"unavailable", "x: not a number: 'unavailable'"), (b"22\0", 22.0), (b"nan", "x: not a number: 'nan'"),
            (b"ovf", "x: not a number: 'ovf'"), (b"online", "x: not a number: 'ovf'"),
            (b"23", 23.0), (b"-nan(ind)", "x: not a number: '-nan(ind)'"), (b"1.#INF", "x: not a number: '1.#INF'"),
            (b"1e999", "x: not a number: '1e999'"), (b"ON", 1),
        ):  # fmt: skip
            self.publish(payload, source=source, topic="x")
            self.assertEqual(
                source.read()["x"] if isinstance(reading, int | float) else str(source.read()["x"]), reading
            )

    def test_too_large_value_after_calibration_is_an_error(self):
        source = self.source({"x": {"topic": "x", "gain": 1e9}})
        source.read()
        self.publish(b"1e308", source=source, topic="x")
        self.assertEqual(str(source.read()["x"]), "x: the value is too large after calibration")

    def test_retained_message_never_replaces_a_later_value(self):
        """After a reconnection the broker sends the retained message again, which may be older than the last one."""
        self.publish(b'{"temperature":1,"humidity":1}', retain=True)
        self.publish(*[b'{"temperature":%d}' % n for n in range(200)], b'{"temperature":2}', b'{"humidity":3}')
        self.publish(b'{"temperature":1,"humidity":1}', retain=True)
        self.publish(b'{"temperature":199}', retain=True)
        self.assertEqual(self.readings(), {"temperature": 2.0, "humidity": 3.0})
        self.publish(b'{"temperature":5}', retain=True)  # published while the node was disconnected
        self.assertEqual(self.readings(), {"temperature": 5.0, "humidity": 3.0})


class Connections(Case):
    def test_all_topics_are_subscribed_at_each_connection(self):
        source = self.source({"b": {"topic": "t/b"}, "a": {"topic": "t/a"}, "c": {"topic": "t/a", "path": "c"}})
        source.read()
        source._broker._client.loop_start()
        subscribed = [call for call in source._broker._client.calls if call[0] == "subscribe"]
        self.assertEqual(subscribed, [("subscribe", ([("t/a", 1), ("t/b", 1)],), {})] * 2)

    def test_refused_connection_is_reported(self):
        for version, code, words in (
            (1, 4, "the broker refused the connection: user or password is wrong"),
            (1, 2, "the client's name is not accepted"),
            (2, 135, "the broker refused the connection: reason 135"),
            (2, 149, "the broker refused the connection: reason 149"),
        ):  # fmt: skip
            source = self.source({"x": {"topic": "x"}}, version, refuses=code)
            with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING") as logs:
                self.assertIn(words, str(source.read()["x"]))
                source._broker._client.loop_start()
            self.assertEqual(len(logs.output), 1)  # not at each attempt
            self.assertFalse([call for call in source._broker._client.calls if call[0] == "subscribe"])

    def test_refused_subscription_is_reported(self):
        for version in (1, 2):
            source = self.source({"x": {"topic": "x"}, "y": {"topic": "y"}}, version)
            source.read()
            with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING"):
                source._broker._client.subscribed(0, 0x80)
            self.assertIn(
                "(MQTT 127.0.0.1:1883: the broker does not allow this user to read y)", str(source.read()["y"])
            )

    def test_lost_connection_is_reported_with_a_stale_value(self):
        for version, arguments in ((1, (7,)), (2, ({}, Reason(7), None))):
            source = self.source({"x": {"topic": "x"}}, version, said={"x": b"5"})
            source.read()
            with self.assertLogs("pigeonpost.core.mqtt_client", "WARNING"):
                source._broker._client.on_disconnect(source._broker._client, None, *arguments)
            self.assertEqual(source.read()["x"], 5)  # while the value is recent
            source._received_s.clear()
            self.assertEqual(
                str(source.read()["x"]),
                "stale: no message on x yet (MQTT 127.0.0.1:1883: the connection to the broker is lost)",
            )

    def test_paho_receives_the_settings(self):
        options = {"host": "broker.local", "user": "reader", "password": "secret", "tls": True}
        source = self.source({"x": {"topic": "x"}}, 2, {**options, "keepalive": 30})
        source.read()
        client = source._broker._client
        self.assertEqual((client.arguments, client.options["protocol"]), (("version 2",), 4))
        self.assertRegex(
            client.options["client_id"], "^pigeonpost-sensors-[0-9a-f]{8}$"
        )  # other sources have other names
        calls = {name: arguments for name, arguments, _ in client.calls}
        self.assertEqual(calls["username_pw_set"], ("reader", "secret"))
        self.assertEqual(calls["connect_async"], ("broker.local", 8883, 30))
        self.assertEqual(calls["reconnect_delay_set"], (1, 60))
        self.assertIn("tls_set", calls)
        source.close()
        self.assertEqual([name for name, *_ in client.calls][-2:], ["disconnect", "loop_stop"])
        self.assertEqual(self.source().read() and self.source()._broker._client.arguments, ())

    def test_connection_is_made_at_the_first_reading(self):
        source = self.source()
        self.assertNotIn("connect_async", [name for name, *_ in source._broker._client.calls])
        source.close()


class Tables(Case):
    def test_missing_paho_is_reported_with_the_remedy(self):
        """The source fails with the remedy, and the node continues. After the installation the source works."""
        words = 'here: kind = "mqtt": the Python module paho is missing: sudo apt install python3-paho-mqtt'
        with mock.patch.dict(sys.modules, dict.fromkeys(("paho", "paho.mqtt", "paho.mqtt.client"))):
            source = make()
            for _ in range(2):
                with self.assertRaisesRegex(SensorError, words):
                    source.read()
            source.close()
        use_paho(self)
        with mock.patch.object(mqtt, "FIRST_WAIT_S", 0.0):
            self.assertIn("stale: no message on", str(next(iter(source.read().values()))))
        source.close()

    def test_invalid_tables_are_refused(self):
        use_paho(self)
        topic = {"x": {"topic": "x"}}
        for channels, options, words in (
            ({}, {}, 'channels is missing; for example: channels.kitchen = {topic = "zigbee2mqtt/kitchen"'),
            ({"x": {}}, {}, "channels.x: topic is missing"),
            ({"x": {"topic": "a/+/b"}}, {}, "topic takes one topic, without the wildcards + and #"),
            ({"x": {"topic": ""}}, {}, "topic takes a text of up to 65535 bytes"),
            ({"x": {"topic": "x" * 70_000}}, {}, "topic takes a text of up to 65535 bytes"),
            ({"x": {"topic": 5}}, {}, "topic takes one topic"),
            ({"x": {"topic": "x", "fresh": 0}}, {}, "fresh takes a number from 1"),
            (topic, {"port": 70_000}, "port takes a whole number"), (topic, {"keepalive": 1}, "keepalive takes"),
            (topic, {"host": ""}, "host is missing"),
            (topic, {"ca": "/x"}, "here: ca requires tls = true"),
            ({"x": {"topic": "x", "keepalive": 9}}, {}, "x: keepalive is a key of the table [[sensor]]: write"),
            (topic, {"password": "x"}, "here: password requires a user"),
            (topic, {"ca": "/nowhere/ca.pem", "tls": True}, "here: ca: /nowhere/ca.pem: No such file"),
        ):  # fmt: skip
            with self.subTest(words), self.assertRaises(SettingsError) as caught:
                make(channels, **options)
            self.assertTrue(str(caught.exception).startswith("here: "), caught.exception)
            self.assertIn(words, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
