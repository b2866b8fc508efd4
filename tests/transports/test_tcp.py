"""The TCP transport on real sockets: both ends, people with nc, and peers that are slow, broken or hostile."""

import contextlib
import errno
import itertools
import logging
import math
import random
import select
import socket
import socketserver
import threading
import time
import tracemalloc
import unittest
from unittest import mock

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.strict_json import write_json
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.server.node_status import NodeState
from pigeonpost.transports import tcp_connection, tcp_node, tcp_server
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.tcp_node import MOST_CONNECTIONS, MOST_OF_A_HOST, TcpNodeTransport
from pigeonpost.transports.tcp_node_session import NodeSession
from pigeonpost.transports.tcp_server import TcpServerTransport
from pigeonpost.transports.tcp_server_session import DOUBT_S, ServerSession
from protocol import LARGEST_INTEGER, LARGEST_SEQ, LINE_BYTES, SENSOR_NAME, decode, encode
from tests.support import (
    BOOT,
    EPOCH,
    LIMIT_S,
    FakeLedger,
    Leftovers,
    MemoryDisk,
    Talk,
    free_port,
    rounds,
    samples_of,
    sensors_line,
    taken,
    wait_until,
)

TOKEN = "a token of 16 letters or more"
OUTBOX = "0b" * 8
SENSORS = [{"name": "temperature", "unit": "°C"}]
HELLO = {"link": 1, "server": "home", "ledger": "1" * 16, "clock": "unset"}


class TcpCase(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)  # tests of log lines enable them
        self.addCleanup(logging.disable, logging.NOTSET)
        self.enterContext(mock.patch.object(tcp_server, "RETRY_S", 0.02))
        self.ledger = FakeLedger()

    def make_outbox(self, slots=1024):
        self.outbox = Outbox(Ring("/card", slots, 128, MemoryDisk()), BOOT)

    def start_node(self, key=None, address=("127.0.0.1", 0)):
        """Start a node's end that listens and uses the present outbox."""
        if not hasattr(self, "outbox"):
            self.make_outbox()
        info = NodeInfo("basement", SENSORS, 10.0, key, self.outbox.switch, lambda: {"held": self.outbox.ring.last})
        node = TcpNodeTransport(address, info, self.outbox, Clock())
        node.start()
        self.addCleanup(node.stop, LIMIT_S)
        return node

    def start_server(self, address, keys=None, expected="basement", name="home", clock=None):
        end = TcpServerTransport(address, expected, name, self.ledger, {} if keys is None else keys, clock or Clock())
        end.start()
        self.addCleanup(end.stop, LIMIT_S)
        return end

    def take(self, count=1):
        for _ in range(count):
            number = self.outbox.ring.last + len(self.outbox._queue) + 1
            self.outbox.put(taken(value=number, up_ms=number))
            if not number % 1000:
                self.outbox.commit()
        while self.outbox.commit():
            pass

    def talk(self, node):
        return self.enterContext(Talk(node.address))

    def collector(self, node, name="home"):
        """Return an open collecting session for lines written by hand."""
        talk = self.talk(node)
        talk.say("HELLO", {**HELLO, "server": name})
        talk.until("HELLO")
        talk.say("RESUME", {"id": 0})
        wait_until(lambda: name in node.collectors)
        return talk

    def is_well(self, node):
        """Check that the node still answers a new connection."""
        with Talk(node.address) as talk:
            talk.say("CHECK")
            self.assertEqual(talk.until("STATUS").args[2]["held"], self.outbox.ring.last)


class FakeNode:
    """A listening socket that behaves as the test wants: `serve(sock)` for each connection, in one thread."""

    def __init__(self, test, serve):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.address = self.sock.getsockname()
        self.connections = 0
        self._serve = serve
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        test.addCleanup(self.close)

    def _run(self):
        while True:
            try:
                sock, _ = self.sock.accept()
            except OSError:
                return
            self.connections += 1
            sock.settimeout(LIMIT_S)
            with sock, contextlib.suppress(OSError):
                self._serve(sock)

    def close(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self._thread.join(LIMIT_S)


def read_line(sock):
    line = b""
    while not line.endswith(b"\n"):
        block = sock.recv(1)
        if not block:
            raise ConnectionResetError
        line += block
    return line


class BothEnds(TcpCase):
    def test_server_collects_the_samples_of_a_node(self):
        self.make_outbox()
        self.take(700)
        node = self.start_node()
        server = self.start_server(node.address)
        self.ledger.wait_for(700)
        for _ in range(20):
            self.take(3)
        self.ledger.wait_for(760)
        self.assertEqual(self.ledger.seqs(self.outbox.epoch), list(range(1, 761)))
        self.assertEqual(node.collectors, ["home"])
        self.assertEqual((server.state.connected, server.state.fault, server.state.name), (True, "", "basement"))
        self.assertEqual(self.ledger.repeats, 0)

    @mock.patch("pigeonpost.transports.tcp_server_session.COLUMNS_WINDOW", 5000)
    def test_large_backlog_is_collected_through_the_window(self):
        self.make_outbox(slots=16_384)
        self.take(12_000)
        self.ledger.at_once = False
        self.start_server(self.start_node().address)
        wait_until(lambda: sum(batch.sample_count for batch in self.ledger._waiting) == 5000)
        while len(self.ledger.rows) < 12_000:
            wait_until(lambda: self.ledger._waiting)
            self.ledger.commit()
        self.assertEqual(self.ledger.seqs(self.outbox.epoch), list(range(1, 12_001)))

    def test_server_with_the_token_collects(self):
        key = LinkKey(TOKEN)
        self.make_outbox()
        self.take(5)
        self.start_server(self.start_node(key).address, {"basement": key})
        self.ledger.wait_for(5)

    def test_several_servers_collect_from_one_node(self):
        self.make_outbox()
        self.take(50)
        node = self.start_node()
        self.start_server(node.address)
        self.ledger.wait_for(50)
        first, self.ledger = self.ledger, FakeLedger()
        self.start_server(node.address, name="second")
        self.ledger.wait_for(50)
        self.take(10)
        first.wait_for(60)
        self.ledger.wait_for(60)
        self.assertEqual(node.collectors, ["home", "second"])

    def test_restarted_node_is_collected_from_again(self):
        node = self.start_node(address=("127.0.0.1", free_port()))
        self.take(5)
        server = self.start_server(node.address)
        for turn in range(1, 4):
            self.ledger.wait_for(5 * turn)
            node.stop(LIMIT_S)
            wait_until(lambda: not server.state.connected)
            ways = "closed by the peer", "closed", "Connection refused", "Connection reset by peer", "Broken pipe"
            self.assertIn(server.state.fault.removeprefix("cannot be reached: "), ways)
            self.take(5)
            node = self.start_node(address=node.address)
        self.ledger.wait_for(20)
        self.assertEqual(self.ledger.seqs(self.outbox.epoch), list(range(1, 21)))
        wait_until(lambda: server.state.connected)

    def test_cut_at_any_byte_everything_arrives_once(self):
        """A proxy between both ends cuts each connection after some bytes, in either direction."""
        chance = random.Random(5)
        # In a fixed sequence: the first three connections cannot carry 1,500 samples, and each seventh one can.
        allowances = itertools.cycle((50, 300, 900, 3000, 10_000, 600, 40_000))
        self.make_outbox(slots=4096)
        self.take(1500)
        node = self.start_node()

        def serve(sock):
            left = next(allowances)
            with socket.create_connection(node.address, LIMIT_S) as onward:
                pair = {sock: onward, onward: sock}
                while left > 0:
                    for end in select.select(list(pair), [], [], LIMIT_S)[0]:
                        block = end.recv(min(left, chance.choice((1, 100, 65_536))))
                        left -= len(block)
                        if not block:
                            return
                        pair[end].sendall(block)

        with mock.patch.object(tcp_server, "RETRY_S", 0.002), mock.patch.object(tcp_server, "LONGEST_RETRY_S", 0.002):
            proxy = FakeNode(self, serve)
            self.start_server(proxy.address)
            self.ledger.wait_for(1500)
            self.assertGreater(proxy.connections, 3)
            self.assertEqual(self.ledger.seqs(self.outbox.epoch), list(range(1, 1501)))

    def test_closed_connection_leaves_nothing(self):
        node = self.start_node()
        left = Leftovers()
        for _ in range(100):
            with Talk(node.address) as talk:
                talk.say("CHECK")
                talk.until("STATUS")
        wait_until(lambda: not node._connections)
        left.wait_for_none()
        self.assertEqual(self.outbox._watchers, set())

    def test_both_ends_are_transports(self):
        self.assertTrue(issubclass(TcpNodeTransport, Transport) and issubclass(TcpServerTransport, Transport))


class Commands(TcpCase):
    def test_send_and_check_are_answered(self):
        server = self.start_server(self.start_node().address)
        wait_until(lambda: server.state.connected)
        for on in (False, True, False):
            self.assertTrue(server.ask("SEND", on, limit_s=LIMIT_S))
            self.assertEqual((server.state.on, self.outbox.on), (on, on))
        self.assertTrue(server.ask("CHECK", limit_s=LIMIT_S))
        self.assertEqual(server.state.details["held"], 0)
        self.assertIsNotNone(server.state.round_trip_ms)

    def test_ask_without_a_connection_returns_false(self):
        server = TcpServerTransport(("127.0.0.1", 1), "", "home", self.ledger, {}, Clock())
        self.assertFalse(server.ask("CHECK"))

    def test_wait_for_the_answer_of_a_node_is_limited(self):
        def serve(sock):
            read_line(sock)
            sock.sendall(encode("HELLO", {"link": 1, "node": "basement", "outbox": OUTBOX, "held": [], "sensors": []}))
            while sock.recv(4096):
                pass

        server = self.start_server(FakeNode(self, serve).address)
        wait_until(lambda: server.state.connected)
        self.assertFalse(server.ask("CHECK", limit_s=0.05))

    def test_status_of_an_earlier_check_does_not_answer_send(self):
        def serve(sock):
            read_line(sock)
            sock.sendall(encode("HELLO", {"link": 1, "node": "basement", "outbox": OUTBOX, "held": [], "sensors": []}))
            while (line := read_line(sock)) and not line.startswith(b"SEND "):
                pass
            sock.sendall(b"STATUS ON - {}\n")
            while sock.recv(4096):
                pass

        came, note = threading.Event(), TcpServerTransport._record_answer

        def note_answer(end, *answer):
            note(end, *answer)
            came.set()

        with mock.patch.object(TcpServerTransport, "_record_answer", note_answer):
            server = self.start_server(FakeNode(self, serve).address)
            wait_until(lambda: server.state.connected)
        answered = server._answered.wait
        with mock.patch.object(
            server._answered, "wait", lambda seconds: (not seconds or came.wait(LIMIT_S)) and answered(0.0)
        ):
            self.assertFalse(server.ask("SEND", False))
        self.assertTrue(server.state.on)  # the STATUS was received


class ByHand(TcpCase):
    """A person with nc, or an old program."""

    def setUp(self):
        super().setUp()
        self.node = self.start_node()

    def test_check_and_send_typed_by_a_person_are_answered(self):
        talk = self.talk(self.node)
        talk.send(b"CHECK\n")
        self.assertRegex(talk.line(), rb'^STATUS ON - \{"time":"[^"]{24}","held":0\}$')
        talk.send(b"send off\r\n")
        self.assertEqual(talk.line(), b"SENDBACK OFF")
        talk.send(b"SEND ON\n\n\n")
        self.assertEqual(talk.line(), b"SENDBACK ON")
        self.take(1)
        self.assertTrue(talk.line().startswith(b"SENSORS %s [" % self.outbox.epoch.encode()))
        talk.send(b"CHEKC\n")
        self.assertTrue(talk.line().startswith(b'ERROR unknown-word {"text":"unknown word'))
        talk.send(b"BYE\n")
        self.assertIsNone(talk.line())

    def test_line_sent_as_single_characters_is_read(self):
        talk = self.talk(self.node)
        for letter in b"CHECK\nCHECK\n":
            talk.send(bytes([letter]))
        self.assertEqual([talk.message().word for _ in range(2)], ["STATUS", "STATUS"])

    def test_many_lines_in_one_packet_are_answered(self):
        talk = self.talk(self.node)
        talk.send(b"CHECK\n" * 2000 + b"SEND OFF\n")
        for _ in range(2000):
            self.assertTrue(talk.line().startswith(b"STATUS "))
        self.assertEqual(talk.line(), b"SENDBACK OFF")

    def test_peer_that_closes_its_half_is_still_answered(self):
        """`echo CHECK | nc` closes its half immediately."""
        talk = self.talk(self.node)
        talk.send(b"CHECK\nSEND OFF\n")
        talk.sock.shutdown(socket.SHUT_WR)
        self.assertEqual([message.word for message in talk.rest()], ["STATUS", "SENDBACK"])

    def test_longest_line_is_read_and_a_longer_one_is_refused(self):
        talk = self.talk(self.node)
        for end in (b"\n", b"\r\n"):
            line = b"X" * (LINE_BYTES - len(end)) + end
            talk.send(line)
            self.assertEqual(talk.message().args[0], "unknown-word")
        talk.send(b"X" * LINE_BYTES + b"\nCHECK\n")
        (error,) = talk.rest()
        self.assertEqual(error.args[0], "too-long")
        self.assertIn("65536 bytes", error.args[1]["text"])

    def test_connection_cut_within_a_line_leaves_nothing(self):
        for part in (b"", b"SEND O", b"SEND OFF", b"HELLO {"):
            with Talk(self.node.address) as talk:
                talk.send(part)
        wait_until(lambda: not self.node._connections)
        self.assertTrue(self.outbox.on)


class Listening(TcpCase):
    def test_address_in_use_is_named_in_the_error(self):
        node = self.start_node()
        with self.assertRaises(SettingsError) as caught:
            self.start_node(address=node.address)
        self.assertIn(f"cannot listen on 127.0.0.1:{node.address[1]}: Address already in use", str(caught.exception))

    def test_node_listens_on_ipv6(self):
        try:
            node = self.start_node(address=("::1", 0))
        except SettingsError:
            self.skipTest("this machine has no IPv6")
        self.is_well(node)
        server = self.start_server(node.address)
        wait_until(lambda: server.state.connected)
        self.assertEqual(server.state.address, f"[::1]:{node.address[1]}")

    def test_node_without_a_token_answers_no_other_machine(self):
        node = self.start_node()
        with mock.patch.object(tcp_node, "is_loopback", lambda host: False):
            talk = self.talk(node)
            talk.send(b"SEND OFF\n")
            (error,) = talk.rest()
        self.assertEqual(error.args[0], "protected")
        self.assertIn("control.py token", error.args[1]["text"])
        self.assertTrue(self.outbox.on)

    def test_connection_without_a_proof_in_time_is_closed(self):
        node = self.start_node(LinkKey(TOKEN))
        with mock.patch("pigeonpost.transports.tcp_node_session.AUTH_S", 0.02):
            for said in (b"", b"\n\n", encode("HELLO", {**HELLO, "nonce": "5e" * 16})):
                talk = self.talk(node)
                talk.send(said)
                self.assertEqual(talk.rest()[-1].args[0], "auth")


class Limits(TcpCase):
    """Slots of a node: which connections get one, and which lose it."""

    def setUp(self):
        super().setUp()
        self.key = LinkKey(TOKEN)
        # Silent connections are closed in favour of others, never because this machine is slow.
        self.enterContext(mock.patch("pigeonpost.transports.tcp_node_session.AUTH_S", 10 * LIMIT_S))

    def hold(self, node, count, source="127.0.0.1"):
        """Open `count` silent connections from one address; return them once all are admitted."""
        socks = []
        for n in range(1, count + 1):
            socks.append(socket.create_connection(node.address, LIMIT_S, (source, 0)))
            self.addCleanup(socks[-1].close)
            if (
                n % 32 == 0 or n == count
            ):  # keep the kernel's queue from filling up, which would delay the next one by a second
                peer = "{}:{}".format(*socks[-1].getsockname())
                wait_until(lambda p=peer: p in [one.peer for one in list(node._connections)])
        return socks

    def prove(self, node):
        """Return a plain session that has sent the token."""
        talk = self.talk(node)
        talk.say("AUTH", {"token": TOKEN})
        talk.say("CHECK")
        talk.until("STATUS")
        return talk

    def said_last(self, sock):
        """Return the errors that a connection received before it was closed."""
        talk = Talk.__new__(Talk)
        talk.sock, talk._part = sock, b""
        sock.settimeout(LIMIT_S)
        return [message.args[0] for message in talk.rest()]

    def pause(self):
        """Shorten the pause after a shortage."""
        return mock.patch.object(tcp_node, "PAUSE_S", 0.02)

    def is_open(self, sock):
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            return bool(sock.recv(1, socket.MSG_PEEK))
        return True

    def test_oldest_silent_connection_is_evicted_at_the_limit(self):
        node = self.start_node(self.key)
        socks = self.hold(node, MOST_CONNECTIONS)
        talk = self.prove(node)
        self.assertEqual(self.said_last(socks[0]), ["too-many"])
        self.assertTrue(all(self.is_open(sock) for sock in socks[1:]))
        self.hold(node, MOST_CONNECTIONS + 8)
        talk.say("CHECK")
        talk.until("STATUS")  # a proven connection stays

    def test_collecting_server_is_not_evicted_from_a_node_without_a_token(self):
        node = self.start_node()
        collecting = self.collector(node)
        talk = self.talk(node)
        talk.say("CHECK")
        talk.until("STATUS")
        self.hold(node, MOST_CONNECTIONS)
        self.assertEqual([message.args[0] for message in talk.rest()], ["too-many"])
        collecting.say("CHECK")
        collecting.until("STATUS")
        wait_until(lambda: node.collectors == ["home"])

    def test_connection_of_the_same_host_is_evicted_first(self):
        node = self.start_node(self.key)
        with mock.patch.object(tcp_node, "is_loopback", lambda host: False):
            first = self.hold(node, 1, "127.0.0.2")
            many = self.hold(node, MOST_OF_A_HOST, "127.0.0.3")
            self.hold(node, 1, "127.0.0.4")
            extra = socket.create_connection(node.address, LIMIT_S, ("127.0.0.3", 0))
            self.addCleanup(extra.close)
            self.assertEqual(self.said_last(many[0]), ["too-many"])
            self.assertTrue(self.is_open(first[0]))

    def test_host_with_most_connections_is_evicted_first(self):
        node = self.start_node(self.key)
        first = self.hold(node, 1, "127.0.0.2")
        many = self.hold(node, 3, "127.0.0.3")
        for n in range(MOST_CONNECTIONS - 4):
            self.hold(node, 1, f"127.0.1.{n + 1}")
        self.prove(node)
        self.assertEqual(self.said_last(many[0]), ["too-many"])
        self.assertTrue(self.is_open(first[0]))

    def test_reconnecting_server_has_time_to_prove_the_token(self):
        """Its host proved the token before, so other connections are evicted first, although this one is the oldest."""
        node = self.start_node(self.key)
        with mock.patch.object(TcpNodeTransport, "_record_failure", lambda *_: self.fail("it did not fail")):
            with socket.create_connection(node.address, LIMIT_S, ("127.0.0.9", 0)) as sock:
                sock.sendall(encode("AUTH", {"token": TOKEN}))
                wait_until(lambda: "127.0.0.9" in node._proven_hosts)
            wait_until(lambda: not node._connections)
            (back,) = self.hold(node, 1, "127.0.0.9")
            for n in range(2 * MOST_CONNECTIONS):
                self.hold(node, 1, f"127.0.1.{n + 1}")
            self.assertTrue(self.is_open(back))
            back.setblocking(True)
            back.sendall(encode("AUTH", {"token": TOKEN}) + b"CHECK\n")
            self.assertTrue(read_line(back).startswith(b"STATUS"))

    def test_new_connection_is_refused_if_all_others_are_proven(self):
        node = self.start_node(self.key)
        talks = [self.prove(node) for _ in range(MOST_CONNECTIONS)]
        for _ in range(3):
            (error,) = self.talk(node).rest()
            self.assertEqual(error.args[0], "too-many")
            self.assertIn(f"{MOST_CONNECTIONS} connections are open", error.args[1]["text"])
        for talk in talks:
            talk.say("CHECK")
            talk.until("STATUS")
        talks[5].sock.close()
        wait_until(lambda: len(node._connections) < MOST_CONNECTIONS)
        self.prove(node)

    def test_idle_plain_session_is_evicted_if_all_are_proven(self):
        node = self.start_node(self.key)
        talks = [self.prove(node) for _ in range(MOST_CONNECTIONS)]
        node._clock = FakeClock(up_ms=node._clock.up_ms() + 60_000)
        node._clock.monotonic = lambda: time.monotonic() + 60
        forgotten = min(list(node._connections), key=lambda one: one.session.last_received_s)
        self.prove(node)
        wait_until(lambda: forgotten not in node._connections)
        self.assertEqual(sum(one.is_evicted for one in list(node._connections)), 0)
        self.assertEqual(len(node._connections), MOST_CONNECTIONS)
        self.assertEqual([m.args[0] for m in talks[0].rest()], ["too-many"])

    def test_evicted_connection_leaves_nothing(self):
        node = self.start_node(self.key)
        left = Leftovers()
        for sock in self.hold(node, MOST_CONNECTIONS) + self.hold(node, MOST_CONNECTIONS):
            sock.close()
        wait_until(lambda: not node._connections)
        left.wait_for_none()

    def test_flood_from_many_addresses_does_not_keep_a_server_out(self):
        """64 silent connections, and as many new ones as this machine can open."""
        node = self.start_node(self.key)
        done, opened = threading.Event(), []

        def flood():
            socks = []
            for n in itertools.count():
                if done.is_set():
                    break
                with contextlib.suppress(OSError):
                    sock = socket.create_connection(node.address, LIMIT_S, (f"127.0.{n % 7}.{n % 200 + 2}", 0))
                    socks.append(sock)
                    opened.append(1)
                while len(socks) > MOST_CONNECTIONS:
                    socks.pop(0).close()
                done.wait(0.002)
            for sock in socks:
                sock.close()

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        self.addCleanup(thread.join, LIMIT_S)
        self.addCleanup(done.set)
        wait_until(lambda: len(opened) > MOST_CONNECTIONS + 8)
        self.take(5)
        server = self.start_server(node.address, {"basement": self.key})
        self.ledger.wait_for(5)
        count = len(opened)
        wait_until(lambda: len(opened) > count + MOST_CONNECTIONS)
        self.assertTrue(server.state.connected)
        self.assertEqual(node.collectors, ["home"])

    def test_peer_rejected_by_a_node_without_a_token_occupies_no_slot(self):
        node = self.start_node()
        elsewhere = mock.patch.object(tcp_node, "is_loopback", lambda host: False)
        with elsewhere, mock.patch.object(node, "_admit", lambda _: self.fail("it takes a slot")):
            for _ in range(3):
                self.assertEqual([message.args[0] for message in self.talk(node).rest()], ["protected"])
        self.assertEqual(node._connections, {})
        self.is_well(node)

    def test_answers_to_wrong_proofs_are_delayed_more_each_time(self):
        node = self.start_node(self.key)
        delays = [node._record_failure("192.0.2.9") for _ in range(8)]
        self.assertEqual(delays, [0, 0.5, 1, 2, 4, 4, 4, 4])
        self.assertEqual(node._record_failure("192.0.2.10"), 0)
        node._failures["127.0.0.1"] = 10
        self.prove(node)  # not delayed: failures of others at the same address cannot keep a server out
        self.assertNotIn("127.0.0.1", node._failures)

    def test_list_of_failed_hosts_is_limited(self):
        node = self.start_node(self.key)
        for n in range(5000):
            node._record_failure(f"2001:db8::{n:x}")
            self.assertLessEqual(len(node._failures), tcp_node.MOST_HOSTS)
        connection = mock.Mock()
        for n in range(5000):
            connection.host = f"2001:db8::{n:x}"
            node._record_proof(connection)
            self.assertLessEqual(len(node._proven_hosts), tcp_node.MOST_HOSTS)

    def test_wrong_token_delays_the_answer_to_the_next_wrong_one(self):
        node = self.start_node(self.key)
        for least_s in (0.0, 0.045):
            with mock.patch.object(tcp_node, "LONGEST_DELAY_S", 0.05):
                began_s = time.monotonic()
                talk = self.talk(node)
                talk.say("AUTH", {"token": "wrong"})
                self.assertEqual([message.args[0] for message in talk.rest()], ["auth"])
                self.assertGreater(time.monotonic() - began_s, least_s)

    def test_flood_of_each_kind_causes_one_log_line_per_minute(self):
        logging.disable(logging.NOTSET)
        node = self.start_node(self.key)
        node._rare_log._clock = clock = FakeClock()

        def flood():
            for said in (b"", b"SEND ON\n", b"nonsense\n", encode("AUTH", {"token": "x"}), b"x" * 70_000,
                         encode("ERROR", "any-code", {"text": "x"}) * 50, encode("HELLO", {"link": 2})):  # fmt: skip
                with mock.patch.object(node, "_record_failure", lambda host: 0.0):
                    for _ in range(4):
                        with contextlib.suppress(OSError), Talk(node.address) as talk:
                            talk.send(said)
            self.hold(node, MOST_CONNECTIONS + 20)
            wait_until(lambda: len(node._connections) == MOST_CONNECTIONS)

        with self.assertLogs("pigeonpost.transports", "INFO") as logged:
            flood()
        kinds = len(logged.output)
        self.assertLess(kinds, 12, logged.output)
        clock.sleep(61)
        with self.assertLogs("pigeonpost.transports", "INFO") as logged:
            flood()
        self.assertLessEqual(len(logged.output), kinds + 2)
        self.assertTrue(any("similar messages suppressed" in line for line in logged.output), logged.output)

    def test_listener_continues_if_no_thread_can_be_started(self):
        node = self.start_node(self.key)
        for error in (RuntimeError("can't start new thread"), MemoryError()):
            start, pause = mock.patch.object(tcp_node.threading.Thread, "start", side_effect=error), self.pause()
            with start, pause:
                self.assertEqual(self.talk(node).rest(), [])
            self.assertEqual(node._connections, {})
        self.prove(node)

    def test_lack_of_descriptors_pauses_and_evicts_an_unproven_connection(self):
        node = self.start_node(self.key)
        self.prove(node)
        (silent,) = self.hold(node, 1)
        failing = threading.Event()
        accept, attempts = socketserver.TCPServer.get_request, itertools.count()

        def fail(listener):
            if failing.is_set() and next(attempts) < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return accept(listener)

        failing.set()
        with mock.patch.object(socketserver.TCPServer, "get_request", fail), self.pause():
            began_s = time.monotonic()
            self.prove(node)
            self.assertGreater(time.monotonic() - began_s, 3 * tcp_node.PAUSE_S - 0.01)
        self.assertEqual(self.said_last(silent), ["too-many"])

    def test_second_session_of_a_server_replaces_the_first(self):
        node = self.start_node()
        first, other = self.collector(node), self.collector(node, "other")
        second = self.talk(node)
        second.say("HELLO", HELLO)
        second.until("HELLO")
        second.say("RESUME", {"id": 0})
        self.assertEqual(first.rest(), [])  # the first one is closed
        self.take(1)
        self.assertEqual(second.until("SENSORS").args[1][0].seq, 1)
        self.assertEqual(other.until("SENSORS").args[1][0].seq, 1)
        self.assertEqual(node.collectors, ["home", "other"])

    def test_unproven_session_replaces_no_other(self):
        key = LinkKey(TOKEN)
        node = self.start_node(key)
        server = self.start_server(node.address, {"basement": key})
        wait_until(lambda: node.collectors == ["home"])
        connection = node._collectors["home"]
        talk = self.talk(node)
        talk.say("HELLO", {**HELLO, "nonce": "5e" * 16})
        talk.until("HELLO")
        talk.say("RESUME", {"id": 0})
        self.assertEqual(talk.rest()[-1].args[0], "auth")
        self.assertIs(node._collectors["home"], connection)
        self.assertTrue(server.state.connected)


class SlowPeers(TcpCase):
    def test_peer_that_does_not_read_delays_no_other(self):
        self.make_outbox(slots=16_384)
        self.take(5000)
        node = self.start_node()
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.addCleanup(deaf.close)
        deaf.connect(node.address)
        deaf.sendall(encode("HELLO", HELLO) + encode("RESUME", {"id": 0}))
        wait_until(lambda: node.collectors)
        self.start_server(node.address, name="second")
        self.ledger.wait_for(5000)
        self.take(100)
        self.ledger.wait_for(5100)
        self.is_well(node)
        unsent = max(connection.wire.unsent for connection in list(node._connections))
        self.assertLess(unsent, tcp_connection.SEND_AHEAD_BYTES + 2 * LINE_BYTES)

    def test_peer_that_asks_but_does_not_read_is_closed(self):
        node = self.start_node()
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(LIMIT_S)
        self.addCleanup(deaf.close)
        deaf.connect(node.address)
        wait_until(lambda: node._connections)
        for connection in list(node._connections):  # otherwise the kernel would accept megabytes first
            connection.wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.enterContext(mock.patch.object(tcp_connection, "STUCK_BYTES", 4 * LINE_BYTES))
        sent = 0
        with self.assertRaises(OSError):
            while sent < 100_000_000:
                sent += deaf.send(b"CHECK\n" * 5000)
        wait_until(lambda: not node._connections)
        self.is_well(node)

    def test_peer_that_never_acknowledges_receives_at_most_the_window(self):
        self.make_outbox(slots=16_384)
        self.take(9000)
        node = self.start_node()
        talk = self.collector(node)
        seen = 0
        while seen < 5000:
            seen += len(samples_of(talk.until("SENSORS")))
        talk.say("CHECK")
        self.assertEqual(talk.message().word, "STATUS")  # and no further samples
        self.assertEqual(seen, 5000)

    def measured(self, act):
        """Return the peak memory during `act`, minus the memory in use before."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        act()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def test_100_megabytes_without_a_line_end_cost_the_node_no_memory(self):
        node = self.start_node()
        block = b"x" * 65_536

        def act():
            with socket.create_connection(node.address, LIMIT_S) as sock, contextlib.suppress(OSError):
                for _ in range(1600):
                    sock.sendall(block)
            wait_until(lambda: not node._connections)

        self.assertLess(self.measured(act), 1_500_000)
        self.is_well(node)

    def test_100_megabytes_in_short_parts_cost_the_node_no_memory(self):
        node = self.start_node()

        def act():
            with socket.create_connection(node.address, LIMIT_S) as sock, contextlib.suppress(OSError):
                for _ in range(100_000):
                    sock.sendall(b"x" * 1000)
            wait_until(lambda: not node._connections)

        self.assertLess(self.measured(act), 1_500_000)

    def test_100_megabytes_without_a_line_end_cost_the_server_no_memory(self):
        done = threading.Event()
        block = b"x" * 65_536

        def serve(sock):
            try:
                for _ in range(1600):
                    sock.sendall(block)
            finally:
                done.set()

        fake = FakeNode(self, serve)

        def act():
            server = self.start_server(fake.address)
            self.assertTrue(done.wait(LIMIT_S))
            wait_until(lambda: server.state.fault != "not reached yet")
            server.stop(LIMIT_S)

        self.assertLess(self.measured(act), 1_500_000)
        self.assertEqual(self.ledger.rows, [])

    def test_a_flood_of_lines_costs_no_memory(self):
        node = self.start_node()
        block = b"SEND ON\nSEND OFF\nnonsense\n\xff\xff\nERROR x {}\nCHECK\n" * 200

        def act():
            with Talk(node.address) as talk:
                reader = threading.Thread(target=drain, args=(talk.sock,))
                reader.start()
                for _ in range(rounds("PIGEONPOST_TEST_FLOOD", 3, 10)):
                    talk.send(block)
                talk.sock.shutdown(socket.SHUT_WR)
                reader.join(LIMIT_S)

        def drain(sock):
            with contextlib.suppress(OSError):
                while sock.recv(65_536):
                    pass

        self.assertLess(self.measured(act), 6_000_000)
        self.is_well(node)


class Retrying(TcpCase):
    def test_server_tries_again_until_the_node_runs(self):
        address = "127.0.0.1", free_port()
        server = self.start_server(address)
        wait_until(lambda: server.state.fault == "cannot be reached: Connection refused")
        self.assertFalse(server.state.connected)
        self.assertIsNotNone(server.state.since_ms)
        self.start_node(address=address)
        self.take(3)
        self.ledger.wait_for(3)

    def waits(self, connects):
        """Return the pauses after attempts with the given outcomes (True: the server collected)."""
        with mock.patch.object(tcp_server, "RETRY_S", 1.0):
            server = TcpServerTransport(("127.0.0.1", 1), "", "home", self.ledger, {}, Clock(), loop=mock.Mock())
        now_s, waits = 1000.0, []

        def uniform(low, high):
            self.assertEqual((low, high), (0.75, 1.25))
            return 1

        with mock.patch.object(tcp_server, "RETRY_S", 1.0), mock.patch.object(tcp_server.random, "uniform", uniform):
            for has_collected in connects:
                server._loop.clock.monotonic = lambda now=now_s: now
                with mock.patch.object(server, "_connect"):
                    server.serve(0)
                self.assertIsNotNone(server._connector, "it is time")
                server._current = (mock.Mock(), mock.Mock(collecting=True)) if has_collected else None
                server.fail(OSError("the end"))
                server.serve(0)
                self.assertIsNone(server._connector, "it is not time yet")
                (_, left_s), _ = server._loop.call_in.call_args
                waits.append(left_s)
                now_s += left_s
        return waits

    def test_pause_doubles_from_a_second_to_a_minute(self):
        self.assertEqual(self.waits([False] * 9), [1, 2, 4, 8, 16, 32, 60, 60, 60])
        self.assertEqual(self.waits([False, False, False, True, False, False]), [1, 2, 4, 1, 2, 4])

    def test_unexpected_peers_are_reported_and_do_no_harm(self):
        other = encode("HELLO", {"link": 1, "node": "attic", "outbox": OUTBOX, "held": [], "sensors": SENSORS})
        another, silent = (
            "does not speak this protocol: is another program at its address? (",
            "closes the connection with",
        )
        for said, fault in (
            (b"HTTP/1.0 400 Bad Request\r\nServer: x\r\n\r\n", another), (None, another), (b"", silent),
            (b"HELLO {", silent), (other, "answers as node attic: correct basement@HOST:PORT in --node"),
            (b"\0" * 70_000, another),
            (b"ERROR protected {\"text\":\"set a token\"}\n", "has no token, so it answers only its own machine: "),
        ):  # fmt: skip
            limit_s = 0.02 if said is None else LIMIT_S  # an echo server never sends a valid HELLO: wait briefly
            with self.subTest(said), mock.patch("pigeonpost.transports.tcp_server_session.AUTH_S", limit_s):

                def serve(sock, said=said):
                    line = read_line(sock)
                    sock.sendall(line if said is None else said)
                    if said == other or said is None:
                        while sock.recv(4096):  # the server closes the connection
                            pass

                server = self.start_server(FakeNode(self, serve).address)
                wait_until(lambda s=server, f=fault: s.state.fault.startswith(f), fault)
                self.assertFalse(server.state.connected)
                server.stop(LIMIT_S)
        self.assertEqual(self.ledger.rows, [])

    def test_invalid_token_file_is_a_fault_of_the_link_and_does_not_end_it(self):
        class Broken(dict):
            def __contains__(self, name):
                raise SettingsError("tokens.json does not read")

        node = self.start_node()
        server = self.start_server(node.address, Broken(x=1))
        wait_until(lambda: server.state.fault == "tokens.json does not read")
        server._keys = {}
        self.take(1)
        self.ledger.wait_for(1)

    def test_lost_connection_is_logged_once_with_the_peer_first(self):
        logging.disable(logging.NOTSET)
        with self.assertLogs("pigeonpost.transports.tcp_server", "WARNING") as logged:
            server = self.start_server(("127.0.0.1", 1))
            fault = "cannot be reached: Connection refused"
            wait_until(lambda: server.state.fault == fault)
            attempts = []
            with (
                mock.patch.object(
                    server, "_record_fault", lambda f, lost=server._record_fault: (attempts.append(f), lost(f))
                ),
                mock.patch.object(tcp_server, "LONGEST_RETRY_S", 0.02),
            ):
                wait_until(lambda: len(attempts) > 5)
            server.stop(LIMIT_S)
        self.assertEqual(logged.output, [f"WARNING:pigeonpost.transports.tcp_server:127.0.0.1:1 basement: {fault}"])


class Moving(TcpCase):
    """A server that learns the present address of its node from an announcement."""

    def setUp(self):
        super().setUp()
        self.enterContext(
            mock.patch.object(tcp_server, "RETRY_S", LIMIT_S)
        )  # an attempt after the usual pause would be too late

    def test_node_at_another_address_is_connected_immediately(self):
        node = self.start_node()
        server = self.start_server(("127.0.0.1", 1))
        wait_until(lambda: server.state.fault.startswith("cannot be reached"))
        server.move(node.address)
        wait_until(lambda: server.state.connected)
        self.assertEqual(server.state.address, "%s:%d" % node.address)
        self.take(1)
        self.ledger.wait_for(1)

    def test_node_back_at_its_address_is_connected_immediately(self):
        address = "127.0.0.1", free_port()
        server = self.start_server(address)
        wait_until(lambda: server.state.fault.startswith("cannot be reached"))
        self.start_node(address=address)
        server.move(address)
        wait_until(lambda: server.state.connected)

    def test_working_connection_is_kept(self):
        node, clock = self.start_node(), FakeClock()
        server = self.start_server(node.address, clock=clock)
        wait_until(lambda: server.state.checked_ms is not None, "the node's first answer")
        elsewhere = FakeNode(self, lambda sock: None)
        for _ in range(3):
            clock.sleep(DOUBT_S + 1)  # longer than a dead connection would be kept
            asked_ms = server.state.checked_ms
            server.move(elsewhere.address)
            wait_until(lambda before=asked_ms: server.state.checked_ms != before, "the node's answer")
        clock.sleep(DOUBT_S + 1)
        self.assertTrue(server.ask("CHECK", limit_s=LIMIT_S))
        self.assertTrue(server.state.connected)
        self.assertEqual(elsewhere.connections, 0)
        self.assertEqual(server.state.address, "%s:%d" % node.address)

    def test_dead_connection_is_abandoned(self):
        """As when a node's address changes: the connection is not closed, but no data arrives."""
        node = self.start_node()

        def serve(sock):  # opens a session, then sends nothing
            read_line(sock)
            sock.sendall(encode("HELLO", {"link": 1, "node": "basement", "outbox": OUTBOX, "held": [], "sensors": []}))
            while sock.recv(4096):
                pass

        server = self.start_server(FakeNode(self, serve).address)
        wait_until(lambda: server.state.connected)
        with (
            mock.patch("pigeonpost.transports.tcp_server_session.DOUBT_S", 0.02),
            # Before the usual timeout detects the silence.
            mock.patch("pigeonpost.transports.tcp_server_session.SILENCE_S", 10 * LIMIT_S),
        ):
            server.move(node.address)
            wait_until(lambda: server.state.address == "%s:%d" % node.address and server.state.connected)

    def test_wrong_address_costs_one_attempt(self):
        node = self.start_node()
        server = self.start_server(node.address)
        wait_until(lambda: server.state.connected)
        wrong = FakeNode(self, lambda sock: None)
        with mock.patch.object(tcp_server, "RETRY_S", 0.02):
            server.move(wrong.address)
            server._current[0]._sock.shutdown(socket.SHUT_RDWR)  # the working connection breaks at that time
            wait_until(lambda: wrong.connections)
            wait_until(lambda: server.state.address == "%s:%d" % node.address and server.state.connected)
        self.assertEqual(wrong.connections, 1)

    def test_configured_address_is_always_kept(self):
        home = FakeNode(self, lambda sock: None)
        server = TcpServerTransport(home.address, "basement", "home", self.ledger, {}, Clock())
        for port in range(1, 6):
            server._good = ("127.0.0.1", port)
            server.move(("127.0.0.1", port + 1))
            self.assertEqual(server._places, [("127.0.0.1", port + 1), ("127.0.0.1", port), home.address])


class Stopping(TcpCase):
    def setUp(self):
        super().setUp()
        # A stop that takes this long would not end within LIMIT_S.
        self.enterContext(mock.patch("pigeonpost.transports.tcp_node_session.SILENCE_S", 10 * LIMIT_S))
        self.enterContext(mock.patch.object(tcp_connection, "DRAIN_S", 10 * LIMIT_S))

    def test_the_node_stops_quickly_while_clients_are_connected(self):
        node = self.start_node()
        idle = self.talk(node)
        live = self.talk(node)
        live.say("SEND", True)
        live.until("SENDBACK")
        collecting = self.collector(node)
        self.assertIsNone(node.stop(LIMIT_S))
        for talk in (idle, live, collecting):
            self.assertEqual([m for m in talk.rest() if m.word != "STATUS"], [])
        with self.assertRaises(ConnectionRefusedError):
            Talk(node.address)
        self.assertIsNone(node.stop(LIMIT_S))

    def test_stop_does_not_wait_for_a_delayed_answer(self):
        node = self.start_node(LinkKey(TOKEN))
        with mock.patch.object(node, "_record_failure", lambda host: 10 * LIMIT_S):
            talk = self.talk(node)
            talk.say("AUTH", {"token": "wrong"})
            wait_until(lambda: any(one.session and one.session._delayed for one in list(node._connections)))
        self.assertIsNone(node.stop(LIMIT_S))
        self.assertEqual(talk.rest(), [])

    @mock.patch("pigeonpost.node.send_cursor.FIRST_SAMPLES", 500)
    def test_stop_waits_only_briefly_for_a_peer_that_does_not_read(self):
        self.make_outbox(slots=16_384)
        self.take(5000)
        node = self.start_node()
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.addCleanup(deaf.close)
        deaf.connect(node.address)
        wait_until(lambda: node._connections)
        for connection in list(node._connections):  # otherwise the kernel may accept and keep all of it
            connection.wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        deaf.sendall(encode("HELLO", HELLO) + encode("RESUME", {"id": 0}))
        wait_until(lambda: any(connection.wire.unsent for connection in list(node._connections)))
        with mock.patch.object(tcp_connection, "DRAIN_S", 0.05):
            self.assertIsNone(node.stop(LIMIT_S))

    def test_stop_reports_connections_that_did_not_end(self):
        node = self.start_node()
        talk = self.talk(node)
        talk.say("CHECK")
        talk.until("STATUS")  # it waits now; a connection that is just being opened could end before it is counted
        (connection,) = node._connections
        with mock.patch.object(connection, "thread", mock.Mock(is_alive=lambda: True)):
            self.assertEqual(node.stop(0.05), "1 connection did not end")

    def test_stopping_server_sends_its_last_acknowledgement(self):
        """The ingestor's last commit precedes the end of the links, so its acknowledgements must still be sent."""
        node = self.start_node()
        self.ledger.at_once = False
        server = self.start_server(node.address)
        self.take(3)
        wait_until(lambda: self.ledger._waiting)
        acked = []
        on_ack = NodeSession._on_ack
        note = {"ACK": lambda session, epoch, seq: (acked.append(seq), on_ack(session, epoch, seq))}
        with mock.patch.dict(NodeSession._HANDLERS, note):
            self.ledger.commit()
            self.assertIsNone(server.stop(LIMIT_S))
            wait_until(lambda: acked == [3])

    def test_the_server_stops_while_the_node_is_away(self):
        server = self.start_server(("127.0.0.1", 1))
        wait_until(lambda: server.state.fault.startswith("cannot be reached"))
        self.assertIsNone(server.stop(LIMIT_S))
        self.assertIsNone(server.stop(LIMIT_S))

    def test_node_that_was_never_started_can_be_stopped(self):
        self.make_outbox()
        info = NodeInfo("basement", SENSORS, 10.0, None, self.outbox.switch, dict)
        self.assertIsNone(TcpNodeTransport(("127.0.0.1", 0), info, self.outbox, Clock()).stop(1))


class FakeWire:
    """A connection that receives nothing; the clock advances during a wait."""

    unsent = 0

    def __init__(self, clock):
        self.clock = clock
        self.sent = []
        self.began_s = clock.monotonic()

    def send(self, data):
        if data:
            at_s = self.clock.monotonic() - self.began_s
            self.sent += [(round(at_s), decode(line).word) for line in data.splitlines()]

    def wait(self, seconds):
        self.clock.sleep(max(0.001, seconds))
        return []


class Timing(unittest.TestCase):
    """Times of outgoing lines, with a clock that advances during a wait."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.clock = FakeClock()
        self.wire = FakeWire(self.clock)

    def test_check_is_sent_when_due_and_not_after_the_wait(self):
        session = ServerSession("home", FakeLedger(), {}, NodeState("x"), self.clock, lambda: None)
        hello = {"link": 1, "node": "basement", "outbox": OUTBOX, "held": [], "sensors": []}
        session.receive(encode("HELLO", hello))
        tcp_connection.run_session(self.wire, session, lambda: False, lambda: False, self.clock)
        expected = [(0, "HELLO"), (0, "RESUME"), (0, "CHECK"), (15, "CHECK"), (30, "CHECK")]
        self.assertEqual([entry for entry in self.wire.sent if entry[0] < 45], expected)
        self.assertEqual(round(self.clock.monotonic() - self.wire.began_s), 45)

    def test_server_without_hello_reports_an_error_after_ten_seconds(self):
        session = ServerSession("home", FakeLedger(), {}, NodeState("x"), self.clock, lambda: None)
        tcp_connection.run_session(self.wire, session, lambda: False, lambda: False, self.clock)
        self.assertEqual(self.wire.sent, [(0, "HELLO"), (10, "ERROR")])

    def test_node_without_proof_reports_an_error_after_five_seconds(self):
        outbox = Outbox(Ring("/card", 8, 128, MemoryDisk()), BOOT)
        info = NodeInfo("basement", SENSORS, 10.0, LinkKey(TOKEN), outbox.switch, dict)
        session = NodeSession(info, outbox, self.clock, "x", False)
        tcp_connection.run_session(self.wire, session, session.stream, lambda: False, self.clock)
        self.assertEqual(self.wire.sent, [(5, "ERROR")])

    def test_pending_lines_are_sent_before_the_end(self):
        session = ServerSession("home", FakeLedger(), {}, NodeState("x"), self.clock, lambda: None)
        tcp_connection.run_session(self.wire, session, lambda: False, lambda: True, self.clock)
        self.assertEqual(self.wire.sent, [(0, "HELLO")])


class Renamed(unittest.TestCase):
    def test_remedies_use_the_present_name_of_a_renamed_node(self):
        """The node reports the name `basement`, and the server's name for it is `cellar`."""
        state = NodeState("192.0.2.5:5003", "basement")
        hello = encode("HELLO", {"link": 1, "node": "basement", "outbox": OUTBOX, "held": [], "sensors": []})
        session = ServerSession(
            "home", FakeLedger(), {"cellar": LinkKey(TOKEN)}, state, FakeClock(), lambda: None,
            current={"basement": "cellar"}.get,
        )  # fmt: skip
        with self.assertLogs("pigeonpost", "WARNING"):
            session.receive(hello)
        self.assertIn(b"control.py get-token cellar", session.take_output())
        self.assertIn("`control.py get-token cellar`", session.fault_at_end(""))


class Mutator:
    """Valid, invalid and partly valid lines for either end."""

    NUMBERS = (
        b"0",
        b"1",
        b"-1",
        b"2",
        b"1e999",
        b"NaN",
        b"-0",
        b"9" * 19,
        b"9" * 400,
        b"9" * 5000,
        b"1.5",
        b"true",
        b"null",
    )
    PIECES = (
        b"{}", b"[]", b'""', b"[[[[[[[[[[", b'{"a":' * 12, b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\0",
         b"\x1b[2J", b"\r",
        b" ", b",", b'"', b'"more":true,', b'"id":0,', EPOCH.encode(), b"0" * 16, "ſ°🕊".encode(), b"ON", b"OFF", b"-",
    )  # fmt: skip

    def __init__(self, seed):
        self.chance = random.Random(seed)
        one = {"seq": 1, "time": "2026-11-20T15:36:10.123Z", "up": 5, "values": {"a": 1.5}, "errors": {"a": "x"}}
        self.seeds = [
            encode("HELLO", HELLO), encode("HELLO", {**HELLO, "nonce": "5e" * 16, "time": "2026-11-20T15:36:10.123Z"}),
            encode("HELLO", {"link": 1, "node": "basement", "outbox": OUTBOX, "held": [[EPOCH, 1, 9, 1]], "every": 10.0,
                             "sensors": SENSORS, "time": "2026-11-20T15:36:10.123Z"}),
            encode("AUTH", {"mac": "ab" * 32}), encode("AUTH", {"token": TOKEN}),
            encode("HELD", {"held": [[EPOCH, 1, 9, 1]]}), encode("RESUME", {"id": 3, EPOCH: [2, 2]}),
            encode("RESUME", {"id": 0, "more": True}), encode("SEND", True), encode("SEND", False),
            encode("SENDBACK", True), encode("CHECK"),
            encode("STATUS", True, "15:36:10", {"time": one["time"], "held": 1}),
            b"SENSORS %s %s\n" % (EPOCH.encode(), write_json([one]).encode()), sensors_line(EPOCH, 1, 3),
            sensors_line(EPOCH, 2, 1), encode("GAP", EPOCH, {"from": 1, "to": 5, "why": "overwritten", "before": 2}),
            encode("ACK", EPOCH, 1), encode("ACK", EPOCH, 3), encode("ERROR", "auth", {"text": "no"}), encode("BYE"),
        ]  # fmt: skip

    def line(self):
        """Return one line, including its LF, without any other LF."""
        chance = self.chance
        line = bytearray(chance.choice(self.seeds)[:-1])
        if chance.random() < 0.05:
            line = bytearray(chance.randbytes(chance.randrange(80)))
        for _ in range(chance.choice((0, 1, 1, 2, 4))):
            self.change(line)
        return bytes(line).replace(b"\n", b" ")[: LINE_BYTES - 1] + b"\n"

    def change(self, line):
        chance = self.chance
        at = chance.randrange(len(line) + 1)
        kind = chance.randrange(7)
        if kind == 0 and line:
            line[at % len(line)] = chance.randrange(256)
        elif kind == 1:
            del line[at : at + chance.randrange(1, 6)]
        elif kind == 2:
            line[at:at] = chance.choice(self.PIECES)
        elif kind == 3:
            line[at:at] = line[chance.randrange(len(line) + 1) :][: chance.randrange(1, 40)]
        elif kind == 4:
            digits = [k for k, byte in enumerate(line) if 48 <= byte <= 57]
            if digits:
                k = chance.choice(digits)
                line[k : k + 1] = chance.choice(self.NUMBERS)
        elif kind == 5:
            other = chance.choice(self.seeds)
            line[at:] = other[chance.randrange(len(other)) : -1]
        else:
            line[:] = line.swapcase()


class Fuzz(TcpCase):
    """Mutations of valid lines, sent to both ends; 100,000 in total with PIGEONPOST_TEST_LONG=1."""

    LINES = rounds("PIGEONPOST_TEST_LINES", 5_000, 50_000)

    def assert_all_valid(self, ledger):
        """Check that everything stored is valid for the database and the page, regardless of the lines of the node."""
        for node, epoch, sample in ledger.rows:
            self.assertEqual(node, "basement")
            self.assertRegex(epoch, "^[0-9a-f]{16}$")
            self.assertTrue(0 < sample.seq <= LARGEST_SEQ and 0 <= sample.up_ms <= LARGEST_INTEGER)
            self.assertLess(abs(sample.time_ms), 1 << 50)
            self.assertIn(sample.clock, ("", "unset", "server"))
            self.assertTrue(sample.values and set(sample.errors) <= set(sample.values))
            for name, value in sample.values.items():
                self.assertTrue(SENSOR_NAME(name))
                self.assertTrue(value is None or (math.isfinite(value) and abs(value) <= 1.8e308))
            for text in sample.errors.values():
                text.encode()
        for _, epoch, first, last, before, why in ledger.gaps:
            self.assertRegex(epoch, "^[0-9a-f]{16}$")
            self.assertTrue(0 < first <= LARGEST_SEQ + 1 and 0 <= last <= LARGEST_SEQ and 0 <= before <= LARGEST_SEQ)
            self.assertLessEqual(len(why.encode()), 400)
        for top in ledger.tops.values():
            self.assertLess(abs(top), 1 << 63)

    def assert_answers_are_lines(self, output):
        for line in output.splitlines(keepends=True):
            self.assertLessEqual(len(line), LINE_BYTES)
            self.assertIsNotNone(decode(line))

    def test_server_survives_mutated_lines(self):
        mutator, lines = Mutator("server"), 0
        hello = mutator.seeds[2]
        key = LinkKey(TOKEN)
        while lines < self.LINES:
            ledger = FakeLedger()
            keys = {"basement": key} if mutator.chance.random() < 0.2 else {}
            session = ServerSession("home", ledger, keys, NodeState("192.0.2.5:5003", "basement"), FakeClock(), int)
            if mutator.chance.random() < 0.8:
                session.receive(hello)
            for _ in range(300):
                session.receive(mutator.line())
                lines += 1
                if mutator.chance.random() < 0.1:
                    self.assert_answers_are_lines(session.take_output())
                if session.closing:
                    break
            self.assert_answers_are_lines(session.take_output())
            session.tick()
            self.assert_all_valid(ledger)
            if keys:
                self.assertEqual((ledger.rows, ledger.gaps), ([], []))  # no peer proved a token

    def test_node_survives_mutated_lines(self):
        mutator, lines = Mutator("node"), 0
        self.make_outbox(slots=64)
        self.outbox.epoch = EPOCH
        self.take(5)
        key = LinkKey(TOKEN)
        while lines < self.LINES:
            if self.outbox.ring.state["forks"]:
                del self.outbox
                self.make_outbox(slots=64)
                self.outbox.epoch = EPOCH
                self.take(5)
            protected = mutator.chance.random() < 0.2
            info = NodeInfo("basement", SENSORS, 10.0, key if protected else None, self.outbox.switch, dict)
            self.outbox.switch(True)
            session = NodeSession(info, self.outbox, FakeClock(), "192.0.2.7:1", True)
            if mutator.chance.random() < 0.5:
                session.receive(mutator.seeds[1])
            for _ in range(300):
                session.receive(mutator.line())
                lines += 1
                while session.stream():
                    pass
                self.assert_answers_are_lines(session.take_output())
                if session.closing:
                    break
            session.tick()
            self.assertEqual(self.outbox.ring.last, 5)
            self.assertEqual([slot.up_ms for slot in self.outbox.read(1, 5)], [1, 2, 3, 4, 5])

    def test_node_survives_mutated_lines_over_sockets(self):
        mutator = Mutator("sockets")
        self.make_outbox(slots=64)
        self.take(5)
        node = self.start_node()
        sent = 0
        while sent < self.LINES / 8:
            lines = [mutator.line() for _ in range(mutator.chance.choice((1, 10, 200)))]
            sent += len(lines)
            with contextlib.suppress(ConnectionError), Talk(node.address) as talk:
                talk.send(b"".join(lines) + b"BYE\n")
                for message in talk.rest():
                    self.assertIn(message.word, ("ERROR", "HELLO", "HELD", "STATUS", "SENDBACK", "SENSORS", "GAP"))
        wait_until(lambda: not node._connections)
        self.is_well(node)
        self.assertEqual(self.outbox.ring.last, 5)

    def test_server_survives_mutated_lines_over_sockets(self):
        mutator = Mutator("fake nodes")
        sent = [0]
        enough = threading.Event()

        def serve(sock):
            read_line(sock)
            if sent[0] >= self.LINES / 8:
                enough.set()
            if mutator.chance.random() < 0.8:
                sock.sendall(mutator.seeds[2])
            lines = [mutator.line() for _ in range(mutator.chance.choice((1, 10, 200)))]
            sent[0] += len(lines)
            sock.sendall(b"".join(lines) + b"BYE\n")
            while sock.recv(65_536):
                pass

        with mock.patch.object(tcp_server, "RETRY_S", 0.0001), mock.patch.object(tcp_server, "LONGEST_RETRY_S", 0.0001):
            server = self.start_server(FakeNode(self, serve).address)
            self.assertTrue(enough.wait(60))
            self.assertIn(server, server._loop._members)
            server.stop(LIMIT_S)
        self.assert_all_valid(self.ledger)

    def test_mutator_produces_valid_and_invalid_lines(self):
        """Otherwise the other tests would prove nothing: many of its lines must be valid, and many invalid."""
        mutator, right = Mutator(0), 0
        for _ in range(2000):
            with contextlib.suppress(ValueError):
                right += decode(mutator.line()) is not None
        self.assertTrue(500 < right < 1500, right)


class ListenerFails(unittest.TestCase):
    def test_shutdown_returns_after_the_thread_has_failed(self):
        listener = tcp_node._Listener(("127.0.0.1", 0), lambda sock, address: None, lambda error: None)
        self.addCleanup(listener.server_close)
        with mock.patch.object(listener, "handle_request", side_effect=MemoryError):
            socket.create_connection(listener.server_address).close()
            with self.assertRaises(MemoryError):
                listener.serve_forever()
        ended = threading.Thread(target=listener.shutdown)
        ended.start()
        ended.join(LIMIT_S)
        self.assertFalse(ended.is_alive())


if __name__ == "__main__":
    unittest.main()
