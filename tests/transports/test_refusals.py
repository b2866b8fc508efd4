"""Nodes that connect to the server and are refused: the faults on the pages, and changes of tokens."""

import json
import socket
import types
import unittest

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.auth.tokens import Tokens
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.faults import Faults
from pigeonpost.transports.refusals import ACCEPTED_S, NOTE_EVERY_S, SHOWN_S, RefusedNodes
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, temp_folder
from tests.transports import test_mqtt
from tests.transports.test_push import PushCase, body
from tests.web.support import next_response, read_all

WHY = "its token is another; remedy"


def setUpModule():
    use_memory_disk()


class NodeFaults(unittest.TestCase):
    def setUp(self):
        self.clock, self.faults = FakeClock(), Faults()
        sources = types.SimpleNamespace(find=lambda node: object() if node == "caller" else None)
        context = types.SimpleNamespace(
            clock=self.clock, faults=self.faults, tokens={"attic": "x"}, unnumbered_sources=sources
        )
        self.nodes = RefusedNodes("push", context)

    def shown(self):
        return self.faults.present()

    def test_a_known_node_is_named_with_the_remedy(self):
        self.nodes.refused("attic", "192.0.2.7", WHY)
        text = f"a client at 192.0.2.7 that reports the name attic is rejected: {WHY}"
        self.assertEqual(self.shown(), {"node attic (push)": text})
        self.nodes.accepted("attic")
        self.assertEqual(self.shown(), {})

    def test_node_that_connected_before_is_named(self):
        self.nodes.refused("caller", "192.0.2.7", WHY)
        self.assertEqual(list(self.shown()), ["node caller (push)"])

    def test_invented_names_are_not_shown_and_cost_nothing(self):
        for n in range(1000):
            self.nodes.refused(f"invented{n}", "192.0.2.7", WHY)
        self.assertEqual((self.shown(), self.nodes._refused_s), ({}, {}))

    def test_recently_accepted_node_is_not_shown_as_refused(self):
        self.nodes.accepted("attic")
        self.nodes.refused("attic", "192.0.2.66", WHY)
        self.assertEqual(self.shown(), {})
        self.clock.sleep(ACCEPTED_S + 1)
        self.nodes.refused("attic", "192.0.2.7", WHY)
        self.assertEqual(list(self.shown()), ["node attic (push)"])

    def test_refused_node_is_recorded_once_a_minute(self):
        with self.assertLogs("pigeonpost.core.faults", "ERROR") as logged:
            for n in range(100):
                self.nodes.refused("attic", f"192.0.2.{n}", WHY)
            self.clock.sleep(NOTE_EVERY_S)
            self.nodes.refused("attic", "192.0.2.200", WHY)
        self.assertEqual(len(logged.output), 2)

    def test_fault_ends_after_the_client_has_given_up(self):
        self.nodes.refused("attic", "192.0.2.7", WHY)
        self.clock.sleep(SHOWN_S + 1)
        self.assertEqual(self.shown(), {})


class Push(PushCase):
    def setUp(self):
        super().setUp()
        self.open()

    def test_wrong_token_is_shown_with_the_remedy(self):
        self.assertEqual(self.resume(token="0" * 32)[0], 401)
        (text,) = self.web.app.faults.present().values()
        self.assertIn("reports the name attic is rejected: its token is not that of attic; ", text)
        self.assertIn("`control.py get-token attic`", text)
        self.assertIn("reports the name attic is rejected", self.web.request("GET", "/", self.web.bearer)[2].decode())
        self.assertEqual(self.resume()[0], 200)
        self.assertEqual(self.web.app.faults.present(), {})

    def test_both_tokens_are_accepted_until_the_new_one_is_used(self):
        new = self.web.tokens.rotate("attic")
        self.assertEqual(self.post(body(1, 3))[0], 200)
        self.assertEqual(self.post(body(4, 3), new)[0], 200)
        self.assertEqual(self.post(body(7, 3))[0], 401)

    def test_body_is_not_stored_if_its_token_is_revoked(self):
        data = body(1, 30)
        address = f"{self.web.address[0]}:{self.web.address[1]}"
        head = (
            f"POST /api/v1/samples HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n"
            f"Authorization: Bearer {self.token}\r\nExpect: 100-continue\r\n\r\n"
        )
        with socket.create_connection(self.web.address, LIMIT_S) as sock:
            sock.settimeout(LIMIT_S)
            sock.sendall(head.encode())
            self.assertIn(b" 100 ", sock.recv(1000))  # its token was accepted
            self.web.tokens.revoke("attic")
            sock.sendall(data)
            self.assertEqual(next_response(read_all(sock))[0], 401)
        self.assertEqual(self.stored(), [])


class Mqtt(test_mqtt.MqttCase):
    def setUp(self):
        super().setUp()
        self.tokens = Tokens(temp_folder(self))
        self.old = self.tokens.make("basement")
        self.ingestor = test_mqtt.FakeIngestor("1edce41edce41edc")
        self.end = self.server(self.ingestor)

    def send(self, token, first):
        data = test_mqtt.body(first, 2)
        self.net.queue.append((test_mqtt.TO_ANY, test_mqtt.sign(data, LinkKey(token).signature("mqtt", data))))
        self.net.deliver()
        mac, answer = test_mqtt.split_signature(self.net.queue.pop()[1])
        told = json.loads(answer)
        if "ack" in told:
            self.assertTrue(LinkKey(token).is_signature(mac, "mqtt", answer))  # signed with the node's token
            return told["ack"]
        return told["error"]["text"]

    def test_rotation_and_revocation_apply_to_signed_bodies(self):
        new = self.tokens.rotate("basement")
        self.assertEqual([self.send(self.old, 1), self.send(new, 3)], [2, 4])
        self.assertIn("`control.py get-token basement`", self.send(self.old, 5))
        self.assertEqual(self.send(new, 5), 6)
        self.tokens.revoke("basement")
        self.assertIn("control.py token basement --set", self.send(new, 7))
        self.assertEqual(len(self.ingestor.rows), 6)

    def test_a_wrong_token_is_shown(self):
        self.send("another token of 16", 1)
        (text,) = self.faults.present().values()
        self.assertIn("a client at the broker broker:1883 that reports the name basement is rejected: not signed", text)
        self.send(self.old, 1)
        self.assertEqual(self.faults.present(), {})


if __name__ == "__main__":
    unittest.main()
