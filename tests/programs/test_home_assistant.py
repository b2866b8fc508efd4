"""Home Assistant: real node, server and Mosquitto; a strict model of it, with an independent WebSocket server."""

import contextlib
import json
import math
import os
import threading
import time
import unittest
import urllib.request

from pigeonpost.core.http_client import AnswerTooLong, split_url
from pigeonpost.core.websocket import WebSocket, WebSocketClosed
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.storage.models import HOUR_MS
from tests.integrations.ha_api import FakeApi
from tests.integrations.ha_checker import FakeHomeAssistant
from tests.libraries import Broker, paho
from tests.programs import need_programs
from tests.support import BOOT, LIMIT_S, Program, free_port, taken, temp_folder, wait_until

try:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.server import serve
except ImportError:
    serve = None

SLOTS = 1024
LATE_VALUE = 500  # the late samples have at least this value, and the simulated ones have less
ID = "pigeonpost:basement:temperature"
TOKEN = "a long-lived access token"


def setUpModule():
    need_programs("mosquitto")
    if serve is None or paho is None:
        raise unittest.SkipTest("websockets or paho-mqtt is not installed for this Python")


class WebSocketServer:
    """Server of the library websockets; `talk` is called with each connection."""

    def __init__(self, test, talk, port=0):
        self._server = serve(talk, "127.0.0.1", port, max_size=4 << 20)
        self.port = self._server.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        test.addCleanup(self.stop)

    def stop(self):
        self._server.shutdown()
        self._thread.join(LIMIT_S)


class WebSocketTest(unittest.TestCase):
    """The client with an independent implementation of the protocol."""

    def connect(self, talk, limit_bytes=1 << 20):
        server = WebSocketServer(self, talk)
        client = WebSocket(split_url(f"{server.url}/api/websocket"), LIMIT_S, limit_bytes=limit_bytes)
        self.addCleanup(client.end)
        client.connect()
        return client

    def test_messages_of_every_length_return_unchanged(self):
        def echo(link):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    link.send(link.recv())

        client = self.connect(echo, limit_bytes=4 << 20)
        for count in (0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20, (4 << 20) - 2):
            text = "µx"[count % 2] * count if count % 2 else "µ" * (count // 2)
            client.send(text)
            self.assertEqual(client.receive(LIMIT_S), text)
        client.close()

    def test_fragments_and_pings_are_understood(self):
        pongs = []

        def talk(link):
            pongs.append(link.ping("hi").wait(LIMIT_S))
            link.send(iter(["a", "µ", "c"]))
            with contextlib.suppress(ConnectionClosed):
                link.recv()

        client = self.connect(talk)
        self.assertEqual(client.receive(LIMIT_S), "aµc")
        self.assertEqual(pongs, [True])

    def test_close_of_either_side_is_clean(self):
        codes = []

        def talk(link):
            try:
                link.recv()
            except ConnectionClosed as error:
                codes.append(error.rcvd.code)

        self.connect(talk).close()
        wait_until(lambda: codes == [1000])
        with self.assertRaises(WebSocketClosed) as caught:
            self.connect(lambda link: link.close(1012, "restart")).receive(LIMIT_S)
        self.assertEqual(caught.exception.code, 1012)

    def test_longer_message_than_the_limit_is_refused(self):
        with self.assertRaises(AnswerTooLong):
            self.connect(lambda link: link.send("x" * 2000), limit_bytes=1000).receive(LIMIT_S)


class Home:
    """Home Assistant: an MQTT client and a WebSocket API, which check everything that they receive."""

    def __init__(self, test, broker):
        self.mqtt, self.api = FakeHomeAssistant(), FakeApi(TOKEN)
        self.faults = self.api.faults
        self.messages, self.states = [], []
        self._test = test
        self._lock = threading.Lock()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="home-assistant")
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *more: client.subscribe(
            [("homeassistant/#", 1), ("pigeonpost/ha/#", 1)]
        )
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        self._server = None
        test.addCleanup(self._client.loop_stop)

    def serve(self, port):
        """Start the WebSocket API."""
        self._server = WebSocketServer(self._test, self._talk, port)

    def publish(self, topic, payload):
        self._client.publish(topic, payload, 1).wait_for_publish(LIMIT_S)

    def state(self, one=ID):
        with self._lock:
            return self.mqtt.state(one, time.monotonic()) if one in self.mqtt.entities else None

    def hours(self, entity="sensor.basement_temperature"):
        return dict(self.api.hours.get(entity, {}))

    def _on_message(self, client, userdata, message):
        try:
            with self._lock:
                self.messages.append(message.topic)
                if message.topic.endswith("/state"):
                    self.states.append(json.loads(message.payload)["temperature"])
                if message.topic != "homeassistant/status" and not message.topic.endswith("/set"):
                    is_kept = message.retain and not message.topic.endswith(("/config", "/online"))
                    self.mqtt.receive(message.topic, message.payload, time.monotonic(), is_kept)
                self._register()
        except Exception as error:
            self.faults.append(f"{message.topic}: {type(error).__name__}: {error}")

    def _register(self):
        known = {entry["unique_id"] for entry in self.api.registry}
        for one, entity in self.mqtt.entities.items():
            if one not in known:
                config = entity.config
                is_total = str(config.get("state_class", "")).startswith("total")
                self.api.add(config["default_entity_id"], one, config.get("unit_of_measurement"), is_total)

    def _talk(self, link):
        session = self.api.session()
        with contextlib.suppress(ConnectionClosed):
            link.send(session.greeting())
            while True:
                for answer in session.answer(link.recv()):
                    link.send(answer)


class HomeAssistantTest(unittest.TestCase):
    def setUp(self):
        self.broker = Broker(self).start()
        self.home = Home(self, self.broker)
        self.api_port, self.link_port = free_port(), free_port()
        self.data, self.node_data = temp_folder(self), temp_folder(self)

    def start_node(self):
        return Program(
            self, "node.py", "--simulate", "--name", "basement", "--listen", f"127.0.0.1:{self.link_port}", "--data",
            self.node_data, "--every", "1", PIGEONPOST_OUTBOX_SLOTS=str(SLOTS),
        )  # fmt: skip

    def start_server(self, **more):
        environment = {
            "PIGEONPOST_MQTT_HOST": "127.0.0.1", "PIGEONPOST_MQTT_PORT": str(self.broker.port),
            "PIGEONPOST_HOME_ASSISTANT_DISCOVERY": "true", "PIGEONPOST_STORE_COMMIT": "0.2", **more,
        }  # fmt: skip
        return Program(
            self, "server.py", "--name", "home", "--data", self.data, "--web", "127.0.0.1:0", "--node",
            f"basement@127.0.0.1:{self.link_port}", **environment,
        )  # fmt: skip

    def hold_samples(self):
        """Fill the node's outbox with the samples of an outage of two hours. Return the values by hour."""
        outbox = Outbox(Ring(self.node_data, SLOTS, 128), BOOT)
        outbox.start()
        begin_ms = (int(time.time() * 1000) // HOUR_MS - 4) * HOUR_MS
        values = {}
        for n in range(240):  # two hours, one sample per 30 s
            wall_ms = begin_ms + n * 30_000
            value = LATE_VALUE + n % 60 / 10
            outbox.put(taken(value, wall_ms, 1_000_000 + n * 30_000))
            values.setdefault(wall_ms // HOUR_MS, []).append(value)
        outbox.stop(LIMIT_S)
        return values

    def test_node_appears_and_its_faults_and_those_of_the_broker_are_visible(self):
        node = self.start_node()
        server = self.start_server(PIGEONPOST_HOME_ASSISTANT_CONTROLS="true")
        wait_until(self.home.state, "a temperature in Home Assistant")
        wait_until(lambda: self.home.state("pigeonpost:basement:_switch") == "ON", "the switch")
        self.assertEqual(self.home.mqtt.entities[ID].config["device_class"], "temperature")
        self.home.publish("pigeonpost/ha/home/basement/set", "OFF")
        wait_until(lambda: self.home.state("pigeonpost:basement:_switch") == "OFF", "sampling is off")
        self.home.publish("pigeonpost/ha/home/basement/set", "ON")
        wait_until(lambda: self.home.state("pigeonpost:basement:_switch") == "ON", "sampling is on")
        node.kill()
        wait_until(lambda: self.home.state("pigeonpost:basement:_connection") == "OFF", "the node is away")
        node = self.start_node()
        wait_until(lambda: self.home.state("pigeonpost:basement:_connection") == "ON", "the node is there")
        self.broker.stop()
        server.logs("the connection to the broker is lost")
        self.broker.start()
        before = len(self.home.messages)
        wait_until(lambda: "pigeonpost/ha/home/basement/state" in self.home.messages[before:], "states again")
        server.kill()
        wait_until(lambda: self.home.state("pigeonpost:basement:_connection") is None, "the will of the server")
        self.assertEqual(self.home.faults, [])

    def test_refused_password_is_a_fault_while_samples_are_stored(self):
        self.broker.stop()
        self.broker = Broker(self, "allow_anonymous false").start()
        self.start_node()
        server = self.start_server()
        server.logs("refused the connection")
        line = server.line()
        while "the page is at " not in line:
            line = server.line()
        page = line.partition("the page is at ")[2].partition("?")[0]

        def shown(path):
            with urllib.request.urlopen(f"{page}{path}", timeout=LIMIT_S) as response:
                return response.read().decode()

        wait_until(lambda: "refused the connection" in shown("integrations"), "the fault on the page")
        first = json.loads(shown("api/v1/nodes/basement"))["samples"]
        wait_until(lambda: json.loads(shown("api/v1/nodes/basement"))["samples"] > first, "more stored samples")

    def test_hours_of_an_outage_arrive_completely_although_the_server_is_killed(self):
        expected = self.hold_samples()
        more = {
            "PIGEONPOST_HOME_ASSISTANT_URL": f"http://127.0.0.1:{self.api_port}",
            "PIGEONPOST_HOME_ASSISTANT_TOKEN": TOKEN,
        }
        server = self.start_server(**more)
        self.start_node()
        wait_until(self.home.state, "a temperature in Home Assistant")
        hours = os.path.join(self.data, "home_assistant_hours.json")
        wait_until(lambda: os.path.exists(hours) and _count(hours) >= len(expected), "the late hours are recorded")
        server.kill()
        self.broker.stop()
        self.home.serve(self.api_port)
        self.broker.start()
        server = self.start_server(**more)
        wait_until(lambda: self.home.hours().keys() >= expected.keys(), f"the statistics; {self.home.faults}")
        for hour, values in expected.items():
            found = self.home.hours()[hour]
            self.assertTrue(math.isclose(found["mean"], sum(values) / len(values), rel_tol=1e-9), found)
            self.assertEqual((found["min"], found["max"]), (min(values), max(values)))
        wait_until(lambda: _count(hours) <= 2, "the sent hours are removed")  # the present hour is not over
        self.assertEqual(self.home.faults, [])
        self.assertLess(max(value for value in self.home.states if value is not None), LATE_VALUE)


def _count(path):
    """Return the number of hours in the file."""
    try:
        with open(path, encoding="utf-8") as file:
            return sum(last - first + 1 for entry in json.load(file).values() for first, last in entry["due"])
    except FileNotFoundError:
        return 0
