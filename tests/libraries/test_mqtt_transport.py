"""MQTT transport: the real programs with paho and a separate Mosquitto."""

import json
import os
import re
import socket
import sqlite3
import subprocess
import time
import unittest

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.auth.tokens import Tokens
from pigeonpost.transports.payload import sign, split_signature
from tests.compat.test_originals import ButtonPresser
from tests.libraries import Broker, need_broker, paho
from tests.page_support import Server
from tests.support import EPOCH, LIMIT_S, Program, free_port, temp_folder, wait_until
from tests.transports.test_mqtt import body


def setUpModule():
    need_broker()


def stored(data):
    """Return (epoch, seq) of all samples in a server's database, in order."""
    path = os.path.join(data, "pigeonpost.sqlite3")
    if not os.path.exists(path):
        return []
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            return database.execute(
                "SELECT s.epoch, s.seq FROM samples s JOIN epochs e ON e.epoch = s.epoch ORDER BY e.id, s.seq"
            ).fetchall()
    except sqlite3.OperationalError:
        return []  # it does not exist yet


class MqttCase(unittest.TestCase):
    """Programs and a broker, with helpers for tests."""

    def setUp(self):
        self.broker = Broker(self, *self.broker_lines()).start()
        self.environment = {"PIGEONPOST_MQTT_HOST": "127.0.0.1", "PIGEONPOST_MQTT_PORT": str(self.broker.port)}

    def broker_lines(self):
        return ["allow_anonymous true"]

    def start_node(self, data, **environment):
        node = Program(
            self, "node.py", "--simulate", "--name", "basement", "--listen", "127.0.0.1:0", "--data", data, "--every",
            "0.05", **{**self.environment, **environment},
        )  # fmt: skip
        self.addCleanup(node.kill)
        return node

    def start_server(self, data, name="home", **environment):
        server = Program(
            self, "server.py", "--name", name, "--data", data, "--web", "127.0.0.1:0",
            **{**self.environment, "PIGEONPOST_STORE_COMMIT": "0.1", **environment},
        )  # fmt: skip
        self.addCleanup(server.kill)
        return server

    def client(self, topic="pigeonpost/+/ack"):
        """Return a client of the broker, and the list of messages that it receives on `topic`."""
        newest = getattr(paho, "CallbackAPIVersion", None)
        client = paho.Client(*((newest.VERSION2,) if newest else ()), protocol=paho.MQTTv5)
        heard, ready = [], []
        client.on_message = lambda client, userdata, message: heard.append((message.topic, message.payload))
        client.on_subscribe = lambda *more: ready.append(True)
        client.connect("127.0.0.1", self.broker.port)
        client.loop_start()
        self.addCleanup(client.loop_stop)
        client.subscribe(topic, 1)
        wait_until(lambda: ready)
        return client, heard


class UnprotectedTest(MqttCase):
    def test_node_delivers_samples_through_the_broker(self):
        data = temp_folder(self)
        self.start_server(data)
        self.start_node(temp_folder(self))
        wait_until(lambda: len(stored(data)) > 50)
        rows = stored(data)
        self.assertEqual([seq for _, seq in rows], list(range(1, len(rows) + 1)))

    def test_server_acknowledges_a_minimal_client(self):
        data = temp_folder(self)
        server = self.start_server(data)
        server.logs("connected")
        client, heard = self.client()
        client.publish("pigeonpost/attic/samples", body(1, 3, "attic"), 1)
        wait_until(lambda: heard)
        topic, payload = heard[0]
        self.assertEqual(topic, "pigeonpost/attic/ack")
        self.assertEqual(
            {"epoch": EPOCH, "ack": 3}.items() & json.loads(payload).items(), {("epoch", EPOCH), ("ack", 3)}
        )
        self.assertEqual(len(stored(data)), 3)

    def test_node_works_with_a_minimal_server(self):
        """The server answers {"epoch", "ack"}, and its subscription is not shared."""
        card = temp_folder(self)
        client, heard = self.client("pigeonpost/+/samples")
        self.start_node(card)
        got = []
        give_up_s = time.monotonic() + LIMIT_S
        while len(set(got)) < 40:
            self.assertLess(time.monotonic(), give_up_s)
            wait_until(lambda: heard)
            said = json.loads(heard.pop(0)[1])
            got += [sample["seq"] for sample in said["samples"]]
            last = max(got, default=0)
            client.publish("pigeonpost/basement/ack", json.dumps({"epoch": said["epoch"], "ack": last}), 1)
        self.assertEqual(sorted(set(got)), list(range(1, max(got) + 1)))

    def test_hostile_messages_do_not_stop_the_server(self):
        data = temp_folder(self)
        server = self.start_server(data)
        server.logs("connected")
        client, heard = self.client()
        for payload in (b"", b"\xff" * 1000, b"[" * 500_000, b'{"node":"attic"}', os.urandom(5000), b"{" * (3 << 20)):
            client.publish("pigeonpost/attic/samples", payload, 1)
        client.publish("pigeonpost/attic/samples", body(1, 3, "attic"), 1)
        wait_until(lambda: any(b'"ack":3' in payload for _, payload in heard))
        self.assertIsNone(server.process.poll())

    def test_programs_wait_for_a_broker_that_starts_later(self):
        self.broker.stop()
        data = temp_folder(self)
        server = self.start_server(data)
        node = self.start_node(temp_folder(self))
        server.logs("no connection to the broker")
        node.logs("no connection to the broker")
        self.broker.start()
        wait_until(lambda: len(stored(data)) > 20)

    def test_forged_messages_for_a_node_with_a_token_are_ignored(self):
        data = temp_folder(self)
        token = Tokens(data).make("basement")
        server = self.start_server(data)
        server.logs("connected")
        client, heard = self.client()
        client.publish("pigeonpost/basement/samples", body(1, 3), 1)
        server.logs("not signed with the token that this server has for node basement")
        self.start_node(temp_folder(self), PIGEONPOST_NODE_TOKEN=token)
        wait_until(lambda: len(stored(data)) > 20)
        self.assertNotIn(EPOCH, {epoch for epoch, _ in stored(data)})
        wait_until(lambda: heard, "an acknowledgement")
        mac, answer = split_signature(heard[-1][1])
        self.assertTrue(LinkKey(token).is_signature(mac, "mqtt", answer))
        before = len(stored(data))
        # A client of the broker acknowledges everything. The node ignores this and continues to send.
        lie = json.dumps({"epoch": json.loads(answer)["epoch"], "ack": 10**9}).encode()
        for payload in (lie, sign(lie, "0" * 64)):
            client.publish("pigeonpost/basement/ack", payload, 1)
        wait_until(lambda: len(stored(data)) > before + 20)
        rows = stored(data)
        self.assertEqual([seq for _, seq in rows], list(range(1, len(rows) + 1)))

    def test_another_server_on_the_broker_takes_over(self):
        """One server collects from the node. When it is killed, another one takes over and receives all samples."""
        folders = [temp_folder(self), temp_folder(self)]
        servers = [self.start_server(folder, f"s{n}") for n, folder in enumerate(folders)]
        for server in servers:
            server.logs("connected")
        self.start_node(temp_folder(self))
        wait_until(lambda: any(len(stored(folder)) > 20 for folder in folders))
        first = 0 if len(stored(folders[0])) > 20 else 1
        self.assertLessEqual(len(stored(folders[1 - first])), 0)
        servers[first].kill()
        before = len(stored(folders[first]))
        wait_until(lambda: len(stored(folders[1 - first])) > before + 20, "the other server takes over")
        rows = stored(folders[1 - first])
        self.assertEqual([seq for _, seq in rows], list(range(1, len(rows) + 1)))

    def test_buttons_of_the_page_work_over_mqtt(self):
        server = Server(self, **self.environment)
        self.start_node(temp_folder(self))
        wait_until(lambda: len(stored(server.data)) > 5)
        for word in ("off", "on", "status"):
            self.assertEqual(
                ButtonPresser(server).press(f"/nodes/basement/{word}"), f"/nodes/basement?notice={word}", server.logged
            )

    def test_missing_paho_is_an_error_and_the_program_continues(self):
        for program in ("node.py", "server.py"):
            hidden = temp_folder(self)
            with open(os.path.join(hidden, "paho.py"), "w", encoding="utf-8") as file:
                file.write("raise ImportError('hidden')\n")
            one = Program(self, program, "--data", temp_folder(self), **self.environment, PYTHONPATH=hidden)
            one.logs("sudo apt install python3-paho-mqtt; everything else keeps running")
            self.assertRegex(one.line(), "^(listening on|the page is at) ")
            one.terminate()
            self.assertEqual(one.wait(), 0)


class ProtectedTest(MqttCase):
    """Broker with TLS, user and password."""

    def broker_lines(self):
        folder = temp_folder(self)
        self.ca = os.path.join(folder, "ca.pem")
        key, cert = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert,
             "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
            check=True, capture_output=True, timeout=LIMIT_S,
        )  # fmt: skip
        with open(cert, encoding="utf-8") as source, open(self.ca, "w", encoding="utf-8") as target:
            target.write(source.read())
        passwords = os.path.join(folder, "passwords")
        for flags, user in (("-c", "pigeon"), ("", "other")):
            subprocess.run(
                ["mosquitto_passwd", *flags.split(), "-b", passwords, user, "seed"], check=True, capture_output=True
            )
        return [f"cafile {self.ca}", f"certfile {cert}", f"keyfile {key}", "allow_anonymous false",
                f"password_file {passwords}"]  # fmt: skip

    def setUp(self):
        super().setUp()
        self.environment |= {
            "PIGEONPOST_MQTT_TLS": "true", "PIGEONPOST_MQTT_CA": self.ca, "PIGEONPOST_MQTT_USER": "pigeon",
            "PIGEONPOST_MQTT_PASSWORD": "seed",
        }  # fmt: skip

    def test_samples_are_delivered_over_tls(self):
        data = temp_folder(self)
        self.start_server(data)
        self.start_node(temp_folder(self))
        wait_until(lambda: len(stored(data)) > 20)

    def test_wrong_password_is_reported(self):
        self.environment["PIGEONPOST_MQTT_PASSWORD"] = "wrong"
        node = self.start_node(temp_folder(self))
        self.assertRegex(
            node.logs("the broker refused the connection"), re.compile("not authori[sz]ed|bad user name", re.IGNORECASE)
        )

    def test_broker_without_a_valid_certificate_receives_nothing(self):
        self.environment["PIGEONPOST_MQTT_CA"] = ""
        data = temp_folder(self)
        self.start_node(temp_folder(self)).logs("no connection to the broker")
        self.assertEqual(stored(data), [])

    def test_invalid_ca_file_is_reported(self):
        self.environment["PIGEONPOST_MQTT_CA"] = "/nowhere/ca.pem"
        node = self.start_node(temp_folder(self))
        self.assertEqual(node.wait(), 2)
        self.assertIn("[mqtt] ca '/nowhere/ca.pem': No such file", "\n".join(node.logged))


class AccessRightsTest(ProtectedTest):
    """Broker with exactly the access rights in docs/protocol.md."""

    test_samples_are_delivered_over_tls = None
    test_wrong_password_is_reported = None
    test_broker_without_a_valid_certificate_receives_nothing = None
    test_invalid_ca_file_is_reported = None

    def broker_lines(self):
        lines = super().broker_lines()
        rights = os.path.join(temp_folder(self), "acl")
        with open(rights, "w", encoding="utf-8") as file:
            file.write(
                "user pigeon\ntopic write pigeonpost/basement/samples/#\ntopic read pigeonpost/basement/ack\n\n"
                "user other\ntopic read pigeonpost/+/samples/#\ntopic write pigeonpost/+/ack\n"
            )
        return [*lines, f"acl_file {rights}"]

    def test_documented_access_rights_are_sufficient(self):
        data = temp_folder(self)
        server = self.start_server(data, PIGEONPOST_MQTT_USER="other")
        server.logs("connected")
        self.start_node(temp_folder(self))
        wait_until(lambda: len(stored(data)) > 20)


class SilentBrokerTest(unittest.TestCase):
    def test_stop_does_not_wait_for_an_unresponsive_broker(self):
        with socket.create_server(("127.0.0.1", free_port())) as sock:
            node = Program(
                self, "node.py", "--simulate", "--listen", "127.0.0.1:0", "--data", temp_folder(self),
                PIGEONPOST_MQTT_HOST="127.0.0.1", PIGEONPOST_MQTT_PORT=str(sock.getsockname()[1]),
            )  # fmt: skip
            self.addCleanup(node.kill)
            node.line()
            began_s = time.monotonic()
            node.terminate()
            self.assertEqual(node.wait(), 0)
            self.assertLess(time.monotonic() - began_s, LIMIT_S / 2)


if __name__ == "__main__":
    unittest.main()
