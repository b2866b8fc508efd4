"""The MQTT transport with a broker in memory that loses, repeats and reorders messages, and with several servers.

tests/libraries/test_mqtt_transport.py does it with paho and Mosquitto, tests/faults/test_mqtt.py kills all three.
"""

import json
import logging
import random
import threading
import time
import unittest
from collections import Counter
from types import SimpleNamespace
from unittest import mock

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.core.clock import FakeClock
from pigeonpost.core.errors import BadArgument, BeyondLimit, NotStored, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.link.sample_text import write_sample_array
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.server.unnumbered_sources import UnnumberedSources
from pigeonpost.transports import mqtt_node, mqtt_server
from pigeonpost.transports.mqtt_conversation import ACK_S, ANSWER_S, LONGEST_ANSWER_S, MOST_BODIES
from pigeonpost.transports.mqtt_node import MqttNodeTransport
from pigeonpost.transports.mqtt_server import MqttServerTransport
from pigeonpost.transports.mqtt_states import State
from pigeonpost.transports.payload import read_body, sign, split_signature, write_body
from protocol import WINDOW_SAMPLES, sample_body, sample_text
from tests.support import BOOT, EPOCH, LIMIT_S, WALL_MS, FakeLedger, MemoryDisk, rounds, taken

TOKEN = "0123456789abcdef0123456789abcdef"
OUTBOX = "00000000000000ab"
TO_ANY = "pigeonpost/basement/samples"
ANSWERS = "pigeonpost/basement/ack"


class Net:
    """A broker in memory: published messages wait in `queue` until `deliver` passes them to the subscribers."""

    def __init__(self, seed=0):
        self.random = random.Random(f"net {seed}")
        self.clients = []
        self.queue = []

    def client(self, settings, name, topics, heard, changed=lambda: None):
        """Replacement of MqttConnection."""
        client = SimpleNamespace(
            connected=True, place="broker:1883", topics=topics, heard=heard, start=lambda: None,
            stop=lambda limit_s: None, publish=lambda topic, payload: self.queue.append((topic, payload)),
        )  # fmt: skip
        self.clients.append(client)
        return client

    def deliver(self, at=0):
        """Deliver one message: to one of the clients that share a subscription, and to all others that subscribed."""
        topic, payload = self.queue.pop(at)
        sharing = []
        for client in list(self.clients):
            for pattern in client.topics if client.connected else ():
                shared = pattern.startswith("$share/pigeonpost/")
                levels = pattern.removeprefix("$share/pigeonpost/").split("/")
                if len(levels) != topic.count("/") + 1:
                    continue
                if all(level in ("+", part) for level, part in zip(levels, topic.split("/"))):
                    if shared:
                        sharing.append(client)
                    else:
                        client.heard(topic, payload)
        if sharing:
            self.random.choice(sharing).heard(topic, payload)

    def settle(self):
        while self.queue:
            self.deliver()


class FakeIngestor(FakeLedger):
    """Replacement of the Ingestor with unlimited capacity."""

    fault, is_blocked = "", False

    def __init__(self, identity, at_once=True):
        super().__init__(at_once)
        self.identity = identity

    def submit(self, batch, urgent=False, limit_s=None):
        super().submit(batch)
        return True


class MqttCase(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.net = Net()
        for module in (mqtt_node, mqtt_server):
            self.enterContext(
                mock.patch.object(module, "MqttConnection", lambda *arguments: self.net.client(*arguments))
            )
        self.clock = FakeClock()
        self.tokens = {}
        self.settings = {("mqtt", "signed"): True, ("store", "commit"): 1.0}
        self.disk = MemoryDisk()
        self.told = []  # the answers

    def make_outbox(self, slots=4096):
        self.outbox = Outbox(Ring("/card", slots, 128, self.disk), BOOT)

    def start_node(self, token=""):
        if not hasattr(self, "outbox"):
            self.make_outbox()
        key = LinkKey(token) if token else None
        info = NodeInfo("basement", [{"name": "temperature", "unit": "°C"}], 10.0, key, self.outbox.switch, dict)
        self.node = MqttNodeTransport(self.settings, info, self.outbox, self.clock)
        return self.node

    def server(self, ingestor, name="home"):
        links = []
        self.faults, throttle = Faults(), LoginThrottle(self.clock)
        context = SimpleNamespace(
            name=name, settings=self.settings, clock=self.clock, tokens=self.tokens, ingestor=ingestor, links=links,
            unnumbered_sources=UnnumberedSources(ingestor, links, self.clock, self.tokens, self.faults, throttle),
            throttle=throttle, faults=self.faults, current=lambda name: name,
        )  # fmt: skip
        end = MqttServerTransport(context)
        end.context = context
        return end

    def take(self, count=1):
        for _ in range(count):
            number = self.outbox.ring.last + len(self.outbox._queue) + 1
            self.outbox.put(taken(value=number, up_ms=number))
        while self.outbox.commit():
            pass

    def turn(self):
        """Run one round of the node's thread."""
        node = self.node
        while node._received:
            node.conversation.receive(node._received.popleft())
        return node.conversation.publish_due()

    def talk(self, rounds=50):
        """Let all participants do what is possible without waiting."""
        for _ in range(rounds):
            self.turn()
            if not self.net.queue:
                return
            self.net.settle()

    def published(self, topic=None):
        """Return the messages that wait on the broker, decoded."""
        return [json.loads(payload) for at, payload in self.net.queue if topic in (None, at)]

    def answer(self, **said):
        self.node.conversation.receive(json.dumps(said).encode())


class OneServer(MqttCase):
    def setUp(self):
        super().setUp()
        self.ingestor = FakeIngestor("1edce41edce41edc")
        self.end = self.server(self.ingestor)

    def test_status_counts_bodies_and_names_the_fault_of_the_broker(self):
        (status,) = self.end.statuses()
        self.assertEqual((status.name, status.kind, status.direction, status.place, status.success_ms, status.done),
                         ("mqtt", "mqtt", "in", "broker:1883", None, 0))  # fmt: skip
        self.start_node()
        self.take(2)
        self.talk()
        self.end._on_message(TO_ANY, b"{}")
        (status,) = self.end.statuses()
        self.assertEqual((status.success_ms, status.refused, status.fault), (self.clock.wall_ms(), 1, ""))
        self.assertGreater(status.done, 0)
        broker = self.net.clients[0]
        broker.connected, broker.fault = False, "not connected yet"
        self.assertEqual(self.end.fault, "")
        broker.fault = "the connection to the broker is lost"
        self.assertEqual((self.end.fault, self.end.statuses()[0].fault), (broker.fault, broker.fault))

    def test_samples_arrive_once_and_in_order(self):
        self.start_node()
        self.take(3000)
        self.talk()
        self.assertEqual(self.ingestor.seqs(self.outbox.epoch), list(range(1, 3001)))
        self.take(5)
        self.talk()
        self.assertEqual(len(self.ingestor.rows), 3005)
        self.assertEqual(self.ingestor.repeats, 16)  # the samples that were sent with the question

    def test_renamed_node_is_shown_by_its_present_name_and_answered_by_its_own(self):
        context = self.end.context
        context.current = context.unnumbered_sources._current = {"basement": "cellar"}.get
        self.start_node()
        self.take(3)
        self.talk()
        self.assertEqual(len(self.ingestor.rows), 3)
        self.assertEqual([link.state.name for link in context.links], ["cellar"])
        self.assertEqual(self.outbox.ring.runs[0].last, 3)

    def test_stored_samples_of_earlier_runs_are_not_sent_again(self):
        self.start_node()
        self.take(100)
        self.talk()
        self.make_outbox()
        self.start_node()
        self.take(50)
        repeats = self.ingestor.repeats
        self.talk()
        self.assertEqual(len(self.ingestor.rows), 150)
        self.assertEqual(self.ingestor.repeats, repeats + 16)  # only those of the first question

    def test_overwritten_samples_are_a_gap(self):
        self.make_outbox(64)
        self.start_node()
        self.take(100)
        self.talk()
        first = self.outbox.ring.runs[0].first
        self.assertEqual(self.ingestor.seqs(self.outbox.epoch), list(range(first, 101)))
        self.assertEqual(self.ingestor.gaps[0][2:4], (1, first - 1))

    def test_server_restored_from_a_backup_receives_the_lost_samples_again(self):
        self.start_node()
        self.take(100)
        self.talk()
        self.net.clients.remove(self.end._broker)
        restored = FakeIngestor(self.ingestor.identity)
        restored.stored = {("basement", self.outbox.epoch): (40, 40)}
        restored.rows = self.ingestor.rows[:40]
        self.server(restored)
        self.take(1)
        self.talk()
        self.clock.sleep(1)
        self.talk()
        self.assertEqual(restored.seqs(self.outbox.epoch), list(range(1, 102)))

    def test_node_counts_the_answer_of_the_server_and_not_of_the_broker(self):
        self.start_node()
        self.ingestor.at_once = False
        self.take(100)
        self.talk()
        self.ingestor.forget()  # the server is killed before its commit
        self.ingestor.at_once = True
        self.clock.sleep(ACK_S + 1)
        self.talk()
        self.assertEqual(self.ingestor.seqs(self.outbox.epoch), list(range(1, 101)))

    def test_number_of_unacknowledged_bodies_is_limited(self):
        self.make_outbox(16_384)
        self.start_node()
        self.ingestor.at_once = False
        self.take(16_000)
        for _ in range(30):
            self.turn()
            self.net.settle()
        # One body was sent with the question, and most of the others have the maximum length of columns.
        self.assertEqual(len(self.ingestor._waiting), MOST_BODIES + 1)
        self.assertGreater(sum(batch.sample_count for batch in self.ingestor._waiting), 2 * WINDOW_SAMPLES)

    def bodies(self):
        """Exchange all messages, and return the samples of each body received."""
        seen = []
        real = self.end.take
        with mock.patch.object(self.end, "take", lambda node, data: (seen.append(data), real(node, data))):
            self.talk()
        return [json.loads(split_signature(data)[1])["samples"] for data in seen]

    def test_columns_are_sent_to_a_server_that_accepts_them(self):
        self.start_node()
        self.take(3000)
        question, *others = self.bodies()
        self.assertEqual(([sample["seq"] for sample in question][-1], {type(other) for other in others}), (16, {dict}))
        self.assertEqual(self.ingestor.seqs(self.outbox.epoch), list(range(1, 3001)))
        self.take(1)
        self.assertEqual([[sample["seq"] for sample in body] for body in self.bodies()], [[3001]])
        self.node.conversation.reconnect()
        self.take(5)
        question, *others = self.bodies()  # an older server may answer next
        self.assertEqual([type(question), *map(type, others)], [list, dict])

    def test_older_server_receives_arrays(self):
        real = MqttServerTransport._resume

        def resume(end, batch_payload, node_session):
            node_session = SimpleNamespace(
                publish=lambda told: publish({k: v for k, v in told.items() if k != "columns"})
            )
            publish = end._sessions[batch_payload.node].publish
            real(end, batch_payload, node_session)

        self.enterContext(mock.patch.object(MqttServerTransport, "_resume", resume))
        self.start_node()
        self.take(1000)
        self.assertEqual({type(body) for body in self.bodies()}, {list})
        self.assertEqual(self.ingestor.seqs(self.outbox.epoch), list(range(1, 1001)))

    def test_columns_refused_by_an_older_server_are_sent_as_arrays(self):
        """The server that answered accepts columns, but the broker also delivers bodies to the other one."""
        real, refused = self.end.take, []

        def take(node, data):
            if type(json.loads(data)["samples"]) is dict:
                refused.append(data)
                raise BadArgument("samples is an array of up to 5000 samples")
            real(node, data)

        self.enterContext(mock.patch.object(self.end, "take", take))
        self.start_node()
        self.take(1000)
        for _ in range(3):
            self.talk()
            self.clock.sleep(ACK_S + 1)
        self.assertTrue(refused)
        self.assertEqual(self.ingestor.seqs(self.outbox.epoch), list(range(1, 1001)))

    def test_questions_become_rarer_while_no_server_answers(self):
        self.net.clients.remove(self.end._broker)
        self.start_node()
        self.take(10)
        asked = 0
        for _ in range(600):
            self.turn()
            asked += len(self.net.queue)
            self.net.settle()
            self.clock.sleep(1)
        self.assertTrue(10 <= asked <= 20, asked)  # after 3, 6, 12 ... 60 s
        self.server(self.ingestor)
        self.clock.sleep(2 * LONGEST_ANSWER_S)
        self.turn()
        self.clock.sleep(LONGEST_ANSWER_S)
        self.talk()
        self.assertEqual(len(self.ingestor.rows), 10)

    def test_server_that_cannot_store_answers_an_error_and_another_is_asked(self):
        self.ingestor.fault, self.ingestor.is_blocked = "nothing can be stored: the disk is full", True
        self.start_node()
        self.take(1)
        self.turn()
        self.net.deliver()
        self.assertEqual(self.published(ANSWERS)[0]["error"]["code"], "not-stored")
        self.net.settle()
        self.turn()
        self.assertEqual(self.net.queue, [])  # not immediately
        self.ingestor.is_blocked = False  # the fault ends with the next samples
        self.clock.sleep(ANSWER_S)
        self.talk()
        self.assertEqual(len(self.ingestor.rows), 1)

    def test_two_live_copies_of_a_card_become_two_epochs(self):
        self.start_node()
        self.take(10)
        self.talk()
        first = self.outbox.epoch
        self.make_outbox()  # the copy, whose tenth sample differs
        self.ingestor.stored["basement", first] = (10, 999)
        self.start_node()
        self.take(1)
        self.talk()
        self.assertGreater(len({epoch for _, epoch, _ in self.ingestor.rows}), 1)

    def test_node_without_new_samples_sleeps(self):
        """This also holds on a machine that has been up for longer than the longest wait."""
        self.clock.sleep(1_000_000)
        self.start_node()
        for samples in (0, 3):
            self.take(samples)
            self.talk()
            self.assertEqual(self.turn(), LONGEST_ANSWER_S)

    def test_state_of_the_node_is_shown(self):
        self.start_node()
        self.take(1)
        self.talk()
        state = self.end.context.links[0].state
        self.assertEqual((state.name, state.connected, state.on, state.every_s), ("basement", True, True, 10.0))
        self.assertEqual(state.sensors, [{"name": "temperature", "unit": "°C"}])
        self.assertEqual(self.end.report(), {"connected": True, "bodies": 2, "refused": {}})


class Orders(MqttCase):
    """ON, OFF and Status from the page, through the broker."""

    def setUp(self):
        super().setUp()
        self.end = self.server(FakeIngestor("1edce41edce41edc"))

    def meet(self, token=""):
        self.start_node(token)
        self.talk()

    def ask(self, *order, limit_s=LIMIT_S, meanwhile=None):
        """Ask as the page does, in a thread of its own."""
        answers = []
        asking = threading.Thread(target=lambda: answers.append(self.end.ask("basement", *order, limit_s=limit_s)))
        asking.start()
        give_up_s = time.monotonic() + LIMIT_S
        while asking.is_alive() and time.monotonic() < give_up_s:
            (meanwhile or self.talk)()
            time.sleep(0.005)
        asking.join(LIMIT_S)
        return answers[0]

    def test_node_executes_an_order_and_confirms_it(self):
        self.meet()
        (link,) = self.end.context.links
        self.assertTrue(link.state.takes_orders)
        for on in (False, True, True):
            self.assertTrue(self.ask("SEND", on))
            self.assertEqual((self.outbox.on, link.state.on), (on, on))
        self.assertTrue(self.ask("CHECK"))

    def test_order_is_executed_before_the_first_sample(self):
        self.meet()
        self.assertTrue(self.ask("SEND", False))

    def test_order_is_executed_while_a_new_session_begins(self):
        self.meet()
        self.node.conversation.reconnect()  # the server does not know that yet, and first uses the old session
        self.assertTrue(self.ask("SEND", False))
        self.assertFalse(self.outbox.on)

    def test_order_must_be_signed_for_a_node_with_a_token(self):
        self.tokens["basement"] = LinkKey(TOKEN)
        self.meet(TOKEN)
        session = self.node.conversation._publisher.session
        # Another client of the broker sends the order, and it is not executed.
        self.answer(order="x", on=False, re=session)
        self.assertTrue(self.outbox.on)
        self.assertTrue(self.ask("SEND", False))
        self.assertFalse(self.outbox.on)

    def test_repeated_order_is_executed_once(self):
        self.tokens["basement"] = LinkKey(TOKEN)
        self.meet(TOKEN)
        heard = []
        receive = self.node.conversation.receive
        self.node.conversation.receive = lambda payload: (heard.append(payload), receive(payload))
        self.assertTrue(self.ask("SEND", False))
        self.clock.sleep(0.001)
        self.assertTrue(self.ask("SEND", True))
        for payload in list(heard):
            self.node.conversation.receive(payload)
        self.assertTrue(self.outbox.on)

    def test_order_to_a_disconnected_node_fails(self):
        self.assertFalse(self.end.ask("basement", "SEND", False, limit_s=0.05))
        self.meet()
        self.assertFalse(self.ask("SEND", False, limit_s=0.05, meanwhile=lambda: None))
        self.net.queue.clear()
        self.node.conversation.reconnect()
        self.turn()
        self.answer(order="x", on=False, re="of before")
        self.assertTrue(self.outbox.on)
        self.end._broker.connected = False
        self.assertFalse(self.end.ask("basement", "CHECK", limit_s=0.05))

    def test_client_without_a_session_receives_no_orders(self):
        self.net.queue.append((TO_ANY, body()))
        self.net.settle()
        self.assertFalse(self.end.context.links[0].state.takes_orders)


def body(first=1, count=2, node="basement", **more):
    texts = [
        sample_text(seq, WALL_MS + seq, 1000 + seq, sample_body({"temperature": seq / 4}, {}), "")
        for seq in range(first, first + count)
    ]
    return write_body({"node": node, "outbox": OUTBOX, **more}, EPOCH, samples=write_sample_array(texts))


class ByHand(MqttCase):
    """The wire alone: a client that only knows the topics and the format of the body."""

    def setUp(self):
        super().setUp()
        self.ingestor = FakeIngestor("1edce41edce41edc")
        self.end = self.server(self.ingestor)

    def say(self, payload, topic=TO_ANY):
        self.net.queue.append((topic, payload))
        self.net.deliver()
        answers = self.published(ANSWERS)
        self.net.queue.clear()
        return answers

    def test_body_is_acknowledged_after_it_is_stored(self):
        self.ingestor.at_once = False
        self.assertEqual(self.say(body(1, 3)), [])
        self.ingestor.commit()
        (answer,) = self.published(ANSWERS)
        self.assertEqual((answer["epoch"], answer["ack"]), (EPOCH, 3))
        self.assertEqual((answer["server"], answer["ledger"]), ("home", self.ingestor.identity))
        self.assertNotIn("re", answer)

    def test_a_repeat_is_acknowledged_and_not_stored(self):
        for _ in range(2):
            self.assertEqual(self.say(body(1, 3))[0]["ack"], 3)
        self.assertEqual(len(self.ingestor.rows), 3)

    def test_hole_is_answered_with_the_stored_seq(self):
        self.say(body(1, 3))
        self.assertEqual(self.say(body(7, 2, session="x"))[0] | {"server": 0, "ledger": 0},
                         {"epoch": EPOCH, "have": 3, "re": "x", "server": 0, "ledger": 0})  # fmt: skip
        self.assertEqual(len(self.ingestor.rows), 3)

    def test_body_without_samples_is_answered_with_the_stored_seq(self):
        self.assertEqual(self.say(body(count=0))[0]["ack"], 0)
        self.say(body(1, 3))
        self.assertEqual(self.say(body(count=0))[0]["ack"], 3)

    def test_invalid_body_is_answered_with_an_error(self):
        for payload, code in (
            (b"", "bad-argument"), (b"\xff", "not-utf8"), (b"{}", "bad-argument"), (body(node="attic"), "bad-argument"),
            (body(count=0, held=7), "bad-argument"), (body(count=0, held=[["x"]]), "bad-argument"),
            (sign(body(), "0" * 64), "auth"), (body(count=0, held=[]), "bad-argument"),
        ):  # fmt: skip
            with self.subTest(payload):
                self.clock.sleep(1)
                self.assertEqual(self.say(payload)[0]["error"]["code"], code)
        self.assertEqual(self.ingestor.rows, [])

    def test_at_most_ten_errors_are_answered_per_second(self):
        answers = sum(len(self.say(b"nonsense")) for _ in range(1000))
        self.assertEqual(answers, 10)
        self.assertEqual(self.end.report()["refused"], {"bad-argument": 1000})
        self.clock.sleep(1.1)
        self.assertEqual(len(self.say(b"nonsense")), 1)

    def test_topics_without_a_node_name_are_ignored(self):
        for topic in ("pigeonpost//samples", "pigeonpost/a b/samples", "pigeonpost/<img>/samples"):
            self.assertEqual(self.say(body(), topic), [])

    def test_body_of_a_node_with_a_token_must_be_signed(self):
        self.tokens["basement"] = LinkKey(TOKEN)
        for payload in (body(), sign(body(), LinkKey("another").signature("mqtt", body())),
                        sign(body(), LinkKey(TOKEN).signature("announce", body())),
                        sign(body(1, 9), LinkKey(TOKEN).signature("mqtt", body()))):  # fmt: skip
            (answer,) = self.say(payload)
            self.assertEqual(answer["error"]["code"], "auth")
            self.assertNotIn("mac", answer)
        self.assertEqual(self.ingestor.rows, [])
        self.net.queue.append((TO_ANY, sign(body(), LinkKey(TOKEN).signature("mqtt", body()))))
        self.net.deliver()
        mac, answer = split_signature(self.net.queue[0][1])
        self.assertTrue(LinkKey(TOKEN).is_signature(mac, "mqtt", answer))
        self.assertEqual(json.loads(answer)["ack"], 2)

    def test_wrong_signatures_are_logged_once_a_minute(self):
        logging.disable(logging.NOTSET)
        self.tokens["basement"] = LinkKey(TOKEN)
        with self.assertLogs("pigeonpost.transports.mqtt_server", "WARNING") as logs:
            for n in range(1200):  # ten a second
                self.say(sign(body(1 + n), f"{n:064x}"))
                self.clock.sleep(0.1)
        self.assertEqual(len(logs.output), 2)
        self.assertEqual(self.end.report()["refused"], {"auth": 1200})
        self.assertEqual(self.end.context.links, [])

    def test_unsigned_body_is_accepted_if_the_broker_authenticates(self):
        self.settings["mqtt", "signed"] = False
        self.tokens["basement"] = LinkKey(TOKEN)
        self.net.clients.clear()
        self.server(self.ingestor)
        self.assertEqual(self.say(body())[0]["ack"], 2)

    def test_full_queue_or_invalid_token_file_loses_only_the_message(self):
        class Broken(dict):
            def get(self, node):
                raise SettingsError("tokens.json does not read")

        self.end.context.tokens = Broken()
        self.assertEqual(self.say(body())[0]["error"]["code"], "not-stored")
        self.end.context.tokens = {}
        self.end.context.unnumbered_sources.caller = mock.Mock(side_effect=NotStored("10000 nodes have called in"))
        self.clock.sleep(1)
        self.assertEqual(self.say(body())[0]["error"]["code"], "not-stored")

    def test_unknown_clients_are_remembered_up_to_a_limit(self):
        with mock.patch("pigeonpost.server.unnumbered_sources.MOST_UNPROVEN", 20):
            for n in range(100):
                self.net.queue.append((f"pigeonpost/n{n}/samples", body(node=f"n{n}")))
                self.net.deliver()
                self.net.queue.clear()
        self.assertEqual(
            (len(self.end._sessions), len(self.end._body_counts), len(self.end.context.links)), (20, 20, 20)
        )
        self.assertIn("20 nodes without a token", self.faults.present()["mqtt clients"])
        self.tokens["attic"] = LinkKey(TOKEN)  # a node with a token still has a place
        self.say(
            sign(body(node="attic"), LinkKey(TOKEN).signature("mqtt", body(node="attic"))), "pigeonpost/attic/samples"
        )
        self.assertEqual(self.end.context.links[-1].state.name, "attic")

    def test_invented_sensors_are_remembered_up_to_a_limit(self):
        with mock.patch("pigeonpost.server.unnumbered_sources.MOST_UNPROVEN_SENSORS", 20):
            for n in range(100):
                self.say(body(sensors=[{"name": f"s{n}", "unit": ""}]))
        self.assertEqual([len(link.state.sensors) for link in self.end.context.links], [1])
        self.assertEqual(self.end.report()["refused"], {"not-stored": 81})  # `temperature` is the first of the 20
        self.assertIn("20 sensors", self.faults.present()["mqtt clients"])


class Limits(MqttCase):
    def test_gap_beyond_a_limit_is_answered_with_an_error(self):
        ingestor = FakeIngestor("1edce41edce41edc", at_once=False)
        end = self.server(ingestor)
        body = {"node": "basement", "outbox": "0" * 16, "epoch": EPOCH, "gaps": [{"from": 1, "to": 9, "why": "x"}]}
        end.take("basement", json.dumps(body).encode())
        end._hole(read_body(json.dumps(body).encode()), mock.Mock(), BeyondLimit("a gap can have at most 5 samples"))
        (said,) = self.published("pigeonpost/basement/ack")
        self.assertEqual(said["error"], {"code": "bad-argument", "text": "a gap can have at most 5 samples"})
        self.assertEqual(end.report()["refused"], {"bad-argument": 1})


class ReplayedBodies(MqttCase):
    """Another client publishes a signed body again."""

    def setUp(self):
        super().setUp()
        self.ingestor = FakeIngestor("1edce41edce41edc")
        self.end = self.server(self.ingestor)
        self.tokens["basement"] = LinkKey(TOKEN)
        self.recorded = []
        publish = self.net.client

        def client(*arguments):
            made = publish(*arguments)
            say = made.publish
            made.publish = lambda topic, payload: (self.recorded.append((topic, payload)), say(topic, payload))
            return made

        self.net.client = client
        self.start_node(TOKEN)
        self.take(5)
        self.talk()
        self.old = [message for message in self.recorded if "/samples" in message[0]]
        self.clock.sleep(600)
        self.node.conversation.reconnect()  # a new session
        self.talk()
        self.outbox.switch(False)
        self.clock.sleep(1)
        self.node.conversation._publish_state()
        self.talk()
        self.state = self.end.context.links[0].state
        self.session = self.end._sessions["basement"]

    def about(self):
        state = self.state
        return state.on, state.offset_ms, state.checked_ms, state.since_ms, state.connected, self.end._sessions

    def test_replayed_body_changes_no_session_and_starts_no_sending(self):
        self.clock.sleep(60)
        before, rows, repeats = self.about(), len(self.ingestor.rows), self.ingestor.repeats
        bodies = self.node.conversation._publisher
        named = bodies.session
        all_of_them = [message for message in self.recorded if "/samples" in message[0]]
        self.assertGreater(len(all_of_them), len(self.old))
        self.recorded.clear()
        for message in [*self.old, *all_of_them] * 3:
            self.net.queue.append(message)
            self.talk()
        self.assertEqual(self.about(), before)
        self.assertIs(self.end._sessions["basement"], self.session)
        self.assertFalse(self.state.on)
        self.assertEqual((len(self.ingestor.rows), bodies.session), (rows, named))
        self.assertEqual([topic for topic, _ in self.recorded if "/samples" in topic], [])  # the node sends nothing
        self.assertEqual(self.end.report()["refused"]["old"], 3 * (len(self.old) + len(all_of_them)))
        self.assertGreaterEqual(self.ingestor.repeats, repeats)

    def test_node_continues_and_accepts_orders_after_a_replay(self):
        for message in self.old:
            self.net.queue.append(message)
        self.talk()
        self.outbox.switch(True)
        self.clock.sleep(1)
        self.take(3)
        self.talk()
        self.assertTrue(self.state.on)
        self.assertEqual(self.ingestor.seqs(self.outbox.epoch), list(range(1, 9)))
        self.assertIs(self.end._sessions["basement"], self.session)

    def test_node_whose_clock_was_set_back_is_accepted_with_its_next_sample(self):
        self.clock.sleep(-3600)
        self.outbox.switch(True)
        self.take(1)
        self.talk()
        self.assertTrue(self.state.on)

    def test_order_is_not_sent_before_a_new_token_is_proven(self):
        self.net.queue.append(("pigeonpost/attic/samples", body(node="attic", session="1" * 16)))
        self.net.settle()
        self.tokens["attic"] = LinkKey(TOKEN)
        self.recorded.clear()
        self.assertFalse(self.end.ask("attic", "SEND", False, limit_s=0.05))
        self.assertEqual(self.recorded, [])


class SimpleServer(MqttCase):
    """A node with the simplest server, which answers only {"epoch", "ack"}."""

    def setUp(self):
        super().setUp()
        self.stored = []

    def serve(self):
        while self.net.queue:
            topic, payload = self.net.queue.pop(0)
            self.assertEqual(topic, TO_ANY)
            batch_payload = read_body(payload)
            self.stored += [sample.seq for piece in batch_payload.pieces for sample in piece]
            self.answer(epoch=batch_payload.epoch, ack=batch_payload.last)

    def test_all_samples_arrive_at_a_simple_server(self):
        self.start_node()
        self.take(1000)
        for _ in range(20):
            self.turn()
            self.serve()
        self.assertEqual(self.stored, list(range(1, 1001)))
        self.clock.sleep(1000)
        self.take(3)
        self.turn()
        self.serve()
        self.assertEqual(self.stored[1000:], [1001, 1002, 1003])

    def test_sending_continues_after_a_lost_connection(self):
        self.start_node()
        self.take(100)
        for _ in range(9):
            self.turn()
            self.serve()
        self.node.conversation.reconnect()
        self.take(5)
        self.turn()
        self.serve()
        self.assertEqual(self.stored, list(range(1, 106)))

    def test_invalid_answers_are_ignored(self):
        self.start_node()
        self.take(3)
        self.turn()
        epoch = self.outbox.epoch
        for payload in (
            b"", b"[]", b"7", b"\xff", b"{}", b'{"ack":1}', b'{"epoch":7,"ack":1}', b'{"epoch":[],"ack":1}',
            b'{"epoch":"%s","ack":4}' % epoch.encode(), b'{"epoch":"%s","ack":-1}' % epoch.encode(),
            b'{"epoch":"%s","ack":"3"}' % epoch.encode(), b'{"epoch":"%s","ack":3,"re":"old"}' % epoch.encode(),
            b'{"resume":7}', b'{"resume":{},"ledger":7}', b'{"resume":{"x":[1,2]},"ledger":"0"}',
            b'{"resume":{"%s":7},"ledger":"0"}' % epoch.encode(), b'{"have":[],"epoch":{}}', b"[" * 100_000,
        ):  # fmt: skip
            with self.subTest(payload[:60]):
                self.node.conversation.receive(payload)
        self.net.queue.clear()
        self.clock.sleep(1000)
        for _ in range(3):
            self.turn()
            self.serve()
            self.clock.sleep(100)
        self.assertEqual(Counter(self.stored).keys(), {1, 2, 3})

    def test_a_node_with_a_token_counts_only_answers_that_are_signed(self):
        self.start_node(TOKEN)
        self.take(3)
        self.turn()
        mac, data = split_signature(self.net.queue[0][1])
        self.assertTrue(LinkKey(TOKEN).is_signature(mac, "mqtt", data))
        session = json.loads(data)["session"]
        answer = json.dumps({"epoch": self.outbox.epoch, "ack": 3, "re": session}).encode()
        for payload in (answer, sign(answer, LinkKey("another").signature("mqtt", answer))):
            self.node.conversation.receive(payload)
            self.assertIs(self.node.conversation.state, State.ASKED)
        self.node.conversation.receive(sign(answer, LinkKey(TOKEN).signature("mqtt", answer)))
        self.assertIs(self.node.conversation.state, State.SENDING)

    def test_replayed_answer_is_ignored(self):
        self.start_node(TOKEN)
        self.take(3)
        self.turn()
        session = json.loads(split_signature(self.net.queue[0][1])[1])["session"]
        answer = json.dumps({"epoch": self.outbox.epoch, "ack": 3, "re": session}).encode()
        self.node.conversation.reconnect()
        self.turn()
        self.node.conversation.receive(sign(answer, LinkKey(TOKEN).signature("mqtt", answer)))
        self.assertIs(self.node.conversation.state, State.ASKED)


class SeveralServers(MqttCase):
    def test_node_stays_with_a_server_until_it_disconnects(self):
        ledgers = [FakeIngestor(f"{n:016x}") for n in range(3)]
        ends = [self.server(ledger, f"s{n}") for n, ledger in enumerate(ledgers)]
        self.start_node()
        self.take(2000)
        self.talk()
        at = next(n for n, ledger in enumerate(ledgers) if len(ledger.rows) == 2000)
        self.assertEqual(sorted(len(ledger.rows) for ledger in ledgers)[2], 2000)
        ends[at]._broker.connected = False
        self.take(100)
        self.talk()
        for _ in range(6):
            self.clock.sleep(ACK_S + 1)
            self.talk()
        other = next(n for n, ledger in enumerate(ledgers) if len(ledger.rows) == 2100)
        self.assertNotEqual(other, at)
        self.assertEqual(ledgers[other].seqs(self.outbox.epoch), list(range(1, 2101)))
        ends[at]._broker.connected, ends[other]._broker.connected = True, False  # and the other way round
        ends[3 - at - other]._broker.connected = False
        self.take(1)
        for _ in range(6):
            self.talk()
            self.clock.sleep(ACK_S + 1)
        self.assertEqual(ledgers[at].seqs(self.outbox.epoch), list(range(1, 2102)))

    def test_servers_with_a_common_store_share_the_bodies(self):
        """As two servers on one PostgreSQL: the high-water marks are common to both."""
        ledger = FakeIngestor("00000000000000cc")
        for name in ("one", "two"):
            self.server(ledger, name)
        self.start_node()
        self.take(3000)
        for _ in range(20):
            self.talk()
            self.clock.sleep(1)
        self.assertEqual(ledger.seqs(self.outbox.epoch), list(range(1, 3001)))

    def simulate(self, seed, servers, shared):
        """Nodes, servers and messages fail at random (`seed`); finally everything is stored somewhere exactly once."""
        rng = random.Random(f"mqtt {seed}")
        self.net, self.disk, self.clock = Net(seed), MemoryDisk(seed), FakeClock()
        self.make_outbox()
        ledgers = [FakeIngestor(f"{0 if shared else n:016x}", at_once=False) for n in range(servers)]
        ledgers = ledgers[:1] * servers if shared else ledgers
        ends = [self.server(ledger, f"s{n}") for n, ledger in enumerate(ledgers)]
        self.start_node()
        for _ in range(rng.randint(50, 300)):
            act = rng.random()
            if act < 0.25:
                self.take(rng.choice((1, 1, 5, 50)))
            elif act < 0.6 and self.net.queue:
                at = rng.randrange(min(3, len(self.net.queue)))
                if rng.random() < 0.1:
                    self.net.queue.pop(at)
                else:
                    if rng.random() < 0.1:
                        self.net.queue.append(self.net.queue[at])
                    self.net.deliver(at)
            elif act < 0.75:
                rng.choice(ledgers).commit()
            elif act < 0.8:
                self.clock.sleep(rng.choice((0.1, 5, 60)))
            elif act < 0.82:
                n = rng.randrange(servers)
                ledgers[n].forget()
                self.net.clients.remove(ends[n]._broker)
                ends[n] = self.server(ledgers[n], f"s{n}")
                ends[n]._broker.connected = rng.random() < 0.7
            elif act < 0.84:
                rng.choice(ends)._broker.connected = rng.random() < 0.7
            elif act < 0.86:
                self.net.clients.remove(self.node._broker)
                self.make_outbox()
                self.start_node()
            self.turn()
        lasting = rng.randrange(servers)
        for n, end in enumerate(ends):
            end._broker.connected = n == lasting
        ledgers[lasting].at_once = True
        for _ in range(20):
            ledgers[lasting].commit()
            self.talk()
            self.clock.sleep(40)
        held = {run.epoch: run.last for run in self.outbox.ring.runs}
        for epoch, last in held.items():
            self.assertEqual(ledgers[lasting].seqs(epoch), list(range(1, last + 1)))
        for ledger in ledgers:
            self.assertEqual(ledger.gaps, [])

    def test_ack_without_resume_is_not_a_complete_answer(self):
        """Otherwise samples that one server had acknowledged would never be sent to another one."""
        for _ in range(rounds("PIGEONPOST_TEST_HALF_ANSWERS", 1, 5)):
            self.simulate(621299275, 2, False)

    def test_random_faults_leave_everything_stored_once(self):
        first = random.randrange(1 << 32)
        for seed in range(first, first + rounds("PIGEONPOST_TEST_MQTT_SEEDS", 15, 150)):
            with self.subTest(seed=seed):
                self.simulate(seed, seed % 3 + 1, seed % 2 == 0)


if __name__ == "__main__":
    unittest.main()
