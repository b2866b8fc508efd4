"""TLS on the TCP link: both ends, certificates, rejected peers, and a man in the middle."""

import contextlib
import functools
import itertools
import logging
import os
import random
import select
import shutil
import socket
import ssl
import stat
import tempfile
import threading
import unittest
from unittest import mock

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core import certificate as certificate_files
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import SettingsError
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.transports import tcp_connection, tcp_node, tcp_server, tcp_tls
from pigeonpost.transports.tcp_node import TcpNodeTransport
from pigeonpost.transports.tcp_server import TcpServerTransport
from pigeonpost.transports.tcp_tls import node_connections, own_certificate
from protocol import decode, encode
from tests.forked import Forked
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, Leftovers, Talk, rounds, temp_folder, wait_until
from tests.transports.test_tcp import HELLO, SENSORS, TOKEN, FakeNode, TcpCase

OWN, OTHER = [], []  # path and fingerprint of the certificate of all tests, and of another one


def setUpModule():
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            raise AssertionError("these tests need the program openssl")
        raise unittest.SkipTest("there is no program openssl here")
    use_memory_disk()
    folder = tempfile.mkdtemp(prefix="pigeonpost-test-")
    unittest.addModuleCleanup(shutil.rmtree, folder)
    for name, found in (("own", OWN), ("other", OTHER)):
        path = own_certificate(os.path.join(folder, name), "basement")
        found[:] = path, certificate_files.fingerprint_of(path, "")


def client_context(most=ssl.TLSVersion.TLSv1_3):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = most
    return context


class TlsTalk(Talk):
    """A Talk over TLS."""

    def __init__(self, address, context=None):
        super().__init__(address)
        self.sock = (context or client_context()).wrap_socket(self.sock)


class TlsCase(TcpCase):
    def start_node(self, key=None, address=("127.0.0.1", 0), path=""):
        """Start a node's end with TLS that listens and uses the present outbox."""
        if not hasattr(self, "outbox"):
            self.make_outbox(slots=4096)
        connect, self.fingerprint = node_connections(path or OWN[0], "")
        info = NodeInfo("basement", SENSORS, 10.0, key, self.outbox.switch, lambda: {"held": self.outbox.ring.last})
        node = TcpNodeTransport(address, info, self.outbox, Clock(), connect)
        node.start()
        self.addCleanup(node.stop, LIMIT_S)
        return node

    def start_server(self, address, keys=None, pin="", **options):
        """Start a server's end that speaks TLS with the node `basement`."""
        pins = {"basement": pin}
        expected = options.pop("expected", "basement")
        end = TcpServerTransport(address, expected, "home", self.ledger, keys or {}, Clock(), pins)
        end.start()
        self.addCleanup(end.stop, LIMIT_S)
        return end

    def start_plain_node(self, key=None):
        return TcpCase.start_node(self, key)

    def start_plain_server(self, address, keys=None):
        return TcpCase.start_server(self, address, keys)

    def elsewhere(self):
        """Treat all peers of the node as remote from now on."""
        self.enterContext(mock.patch.object(tcp_node, "is_loopback", lambda host: False))

    def wait_for_fault(self, server, words):
        wait_until(lambda: words in server.state.fault, f"{words}: {server.state.fault}")


class BothEnds(TlsCase):
    def test_a_token_alone_proves_both_ends(self):
        key = LinkKey(TOKEN)
        self.make_outbox(slots=4096)
        self.take(3000)
        node = self.start_node(key)
        self.elsewhere()
        server = self.start_server(node.address, {"basement": key})
        self.ledger.wait_for(3000)
        for _ in range(20):
            self.take(3)
        self.ledger.wait_for(3060)
        self.assertEqual(self.ledger.seqs(self.outbox.epoch), list(range(1, 3061)))
        self.assertEqual(self.ledger.repeats, 0)
        self.assertEqual(server.state.fingerprint, OWN[1])

    def test_without_a_token_the_fingerprint_pins_the_certificate(self):
        self.make_outbox()
        self.take(5)
        node = self.start_node()  # on this machine: a node without a token answers no other machine
        self.start_server(node.address, pin=OWN[1])
        self.ledger.wait_for(5)

    def test_a_token_and_a_fingerprint_are_both_checked(self):
        key = LinkKey(TOKEN)
        self.make_outbox()
        self.take(5)
        node = self.start_node(key)
        self.start_server(node.address, {"basement": key}, pin=OWN[1])
        self.ledger.wait_for(5)
        server = self.start_server(node.address, {"basement": key}, pin=OTHER[1])
        self.wait_for_fault(server, "has another certificate")

    def test_unpinned_certificate_is_refused_with_both_fingerprints_in_the_fault(self):
        server = self.start_server(self.start_node().address, pin=OTHER[1])
        self.wait_for_fault(server, f"expected SHA-256 {OTHER[1]}, found {OWN[1]}")
        self.assertFalse(server.state.connected)
        self.assertEqual(self.ledger.rows, [])

    def test_server_without_token_and_fingerprint_sends_nothing_and_names_the_remedy(self):
        node = self.start_node()
        with mock.patch.object(tcp_server, "ServerSession") as session:
            server = self.start_server(node.address)
            self.wait_for_fault(server, "`control.py token basement`")
        session.assert_not_called()

    def test_new_certificate_is_accepted_if_there_is_a_token(self):
        key = LinkKey(TOKEN)
        node = self.start_node(key)
        self.take(5)
        server = self.start_server(node.address, {"basement": key})
        self.ledger.wait_for(5)
        node.stop(LIMIT_S)
        self.take(5)
        self.start_node(key, address=node.address, path=OTHER[0])
        self.ledger.wait_for(10)
        self.assertEqual(server.state.fingerprint, OTHER[1])

    def test_send_and_check_are_answered(self):
        server = self.start_server(self.start_node().address, pin=OWN[1])
        wait_until(lambda: server.state.connected)
        for on in (False, True):
            self.assertTrue(server.ask("SEND", on, limit_s=LIMIT_S))
            self.assertEqual(self.outbox.on, on)
        self.assertTrue(server.ask("CHECK", limit_s=LIMIT_S))

    def test_cut_at_any_byte_everything_arrives_once(self):
        chance = random.Random(7)
        # In a fixed sequence: the first three connections cannot carry 1,500 samples, and each sixth one can.
        allowances = itertools.cycle((50, 600, 3000, 10_000, 1500, 200_000))
        key = LinkKey(TOKEN)
        self.make_outbox(slots=4096)
        self.take(1500)
        node = self.start_node(key)
        self.elsewhere()

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
            self.start_server(proxy.address, {"basement": key})
            self.ledger.wait_for(1500)
            self.assertGreater(proxy.connections, 3)
            self.assertEqual(self.ledger.seqs(self.outbox.epoch), list(range(1, 1501)))

    def test_many_samples_arrive_in_order(self):
        """A hundred thousand samples with PIGEONPOST_TEST_LONG=1."""
        count = rounds("PIGEONPOST_TLS_SAMPLES", 4000, 100_000)
        self.make_outbox(slots=1 << (count - 1).bit_length())
        self.take(count)
        self.start_server(self.start_node().address, pin=OWN[1])
        self.ledger.wait_for(count, 4 * LIMIT_S)
        self.assertEqual(self.ledger.seqs(self.outbox.epoch), list(range(1, count + 1)))

    def test_closed_connection_leaves_nothing(self):
        node = self.start_node()
        left = Leftovers()
        for _ in range(20):
            with TlsTalk(node.address) as talk:
                talk.say("CHECK")
                talk.until("STATUS")
        wait_until(lambda: not node._connections)
        left.wait_for_none()


class ManInTheMiddle(TlsCase):
    """An attacker ends TLS with another certificate, and passes on every line unchanged."""

    def relay(self, node):
        context = certificate_files.listening_context(OTHER[0], OTHER[0], ssl.TLSVersion.TLSv1_3, "")
        self.overheard = []

        def serve(sock):
            with (
                context.wrap_socket(sock, server_side=True) as near,
                client_context().wrap_socket(socket.create_connection(node.address, LIMIT_S)) as far,
            ):
                for one, other in ((near, far), (far, near), (near, far)):
                    data = one.recv(1 << 16)
                    self.overheard.append(data)
                    other.sendall(data)

        return FakeNode(self, serve)

    def test_relayed_proofs_are_refused(self):
        key = LinkKey(TOKEN)
        self.make_outbox()
        self.take(5)
        node = self.start_node(key)
        self.elsewhere()
        relay = self.relay(node)
        server = self.start_server(relay.address, {"basement": key})
        wait_until(lambda: relay.connections > 2)
        self.assertIn(f"another machine intercepts its TLS, with the certificate {OTHER[1]}", server.state.fault)
        server.stop(LIMIT_S)
        said = b"".join(self.overheard)
        self.assertIn(b'"mac"', said)  # the attacker passed on the node's proof
        for word in (b'AUTH {"mac"', b"RESUME", b"SENSORS"):
            self.assertNotIn(word, said)
        self.assertEqual((self.ledger.rows, node.collectors), ([], []))

    def test_relay_succeeds_if_the_proofs_do_not_name_the_certificate(self):
        """Control for the test above: that one fails only because of the certificate."""
        key = LinkKey(TOKEN)
        self.make_outbox()
        self.take(5)
        node = self.start_node(key)
        with mock.patch("pigeonpost.transports.tcp_node_session.tls_binding", lambda fingerprint: ()), \
             mock.patch("pigeonpost.transports.tcp_server_session.tls_binding", lambda fingerprint: ()):  # fmt: skip
            self.start_server(self.relay(node).address, {"basement": key})
            wait_until(lambda: any(b'AUTH {"mac"' in data for data in self.overheard))

    def test_proofs_end_with_the_certificate_as_documented(self):
        key = LinkKey(TOKEN)
        node = self.start_node(key)
        with TlsTalk(node.address) as talk:
            talk.say("HELLO", {**HELLO, "nonce": "5e" * 16})
            told = talk.until("HELLO").args[0]
        text = ("node", "home", "basement", told["outbox"], ("5e" * 16, told["nonce"], f"tls:{OWN[1]}"))
        self.assertEqual(told["mac"], key.sign(*text))

    def test_a_nonce_that_could_be_taken_for_more_than_one_field_is_refused(self):
        node = self.start_node(LinkKey(TOKEN))
        with TlsTalk(node.address) as talk:
            talk.say("HELLO", {**HELLO, "nonce": f"{'5e' * 16}|tls:00"})
            self.assertEqual(talk.message().args[0], "auth")


class NeverPlain(TlsCase):
    def test_remote_plain_text_is_answered_with_the_remedy_and_closed(self):
        node = self.start_node(LinkKey(TOKEN))
        self.elsewhere()
        for said in (b"CHECK\n", encode("AUTH", {"token": TOKEN}), b"GET / HTTP/1.1\r\n\r\n", b"\x00"):
            with self.subTest(said), Talk(node.address) as talk:
                talk.send(said)
                (error,) = talk.rest()
                self.assertEqual(error.args[0], "protected")
                self.assertIn("tls = true", error.args[1]["text"])
        self.assertTrue(self.outbox.on)

    def test_many_plain_text_peers_cause_one_log_line(self):
        node = self.start_node(LinkKey(TOKEN))
        self.elsewhere()
        from_another = functools.partial(socket.create_connection, source_address=("127.0.0.2", 0))
        self.enterContext(mock.patch("socket.create_connection", from_another))
        logging.disable(logging.NOTSET)
        with self.assertLogs("pigeonpost.transports.tcp_node", "INFO") as logged:
            for said in (b"CHECK\n", b"\x16\x03\x01\x00\x05hello") * 10:
                with Talk(node.address) as talk, contextlib.suppress(OSError):  # the connection may be closed already
                    talk.send(said)
                    talk.sock.shutdown(socket.SHUT_WR)
                    while talk.line() is not None:
                        pass
            wait_until(lambda: not node._connections)
        logging.disable(logging.CRITICAL)
        self.assertEqual(len(logged.output), 2, logged.output)

    def test_a_health_check_from_its_own_address_is_refused_without_a_line(self):
        """[node] listen may be a network address: the check then comes from that address, and accepts any answer."""
        for key in (LinkKey(TOKEN), None):
            node = self.start_node(key)
            self.elsewhere()
            logging.disable(logging.NOTSET)
            with self.subTest(key), self.assertNoLogs("pigeonpost.transports.tcp_node"):
                with Talk(node.address) as talk:
                    if key is not None:  # without a token it is rejected immediately
                        talk.send(b"CHECK\n")
                    self.assertEqual([error.args[0] for error in talk.rest()], ["protected"])
                wait_until(lambda node=node: not node._connections)
            logging.disable(logging.CRITICAL)

    def test_local_peers_may_use_tls_or_plain_text(self):
        node = self.start_node(LinkKey(TOKEN))
        for kind in (Talk, TlsTalk):
            with self.subTest(kind.__name__), kind(node.address) as talk:
                talk.say("AUTH", {"token": TOKEN})
                talk.say("CHECK")
                self.assertEqual(talk.until("STATUS").args[2]["held"], 0)

    def test_slowly_typing_local_user_has_a_plain_session(self):
        with mock.patch.object(tcp_tls, "HANDSHAKE_S", 0.01):
            node = self.start_node()
            with Talk(node.address) as talk:
                wait_until(lambda: any(one.session for one in list(node._connections)))
                talk.send(b"CHECK\n")
                self.assertEqual(talk.message().word, "STATUS")

    def test_a_server_without_tls_shows_what_to_set(self):
        key = LinkKey(TOKEN)
        node = self.start_node(key)
        self.elsewhere()
        server = self.start_plain_server(node.address, {"basement": key})
        self.wait_for_fault(server, "set tls = true for it in server.toml")

    def test_server_with_tls_reports_a_node_without_it(self):
        key = LinkKey(TOKEN)
        self.make_outbox()
        self.take(5)
        node = self.start_plain_node(key)
        server = self.start_server(node.address, {"basement": key})
        self.wait_for_fault(server, "answers in plain text: this node does not speak TLS: set [link] tls = true on it")
        self.assertEqual(self.ledger.rows, [])

    def test_server_with_tls_reports_an_older_or_full_node(self):
        for answer, fault in (
            (b'ERROR not-utf8 {"text":"bytes that are no UTF-8","line":""}\n', "does not speak TLS: set [link] tls"),
            (b'ERROR too-many {"text":"64 are open","line":""}\n', "answers in plain text: 64 are open"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS: set [link] tls"),
            (b"ERROR protected []\n" + b"\xff" * 600, "does not speak TLS: set [link] tls"),
        ):
            fake = FakeNode(self, lambda sock, answer=answer: sock.recv(4096) and sock.sendall(answer))
            self.wait_for_fault(self.start_server(fake.address, pin=OWN[1]), fault)

    def test_server_with_tls_ignores_immediate_plain_text(self):
        said = []

        def serve(sock):
            hello = {"link": 1, "node": "basement", "outbox": "0b" * 8, "held": [], "sensors": []}
            sock.sendall(encode("HELLO", hello))
            with contextlib.suppress(OSError):
                while data := sock.recv(4096):
                    said.append(data)

        fake = FakeNode(self, serve)
        server = self.start_server(fake.address, pin=OWN[1])
        self.wait_for_fault(server, "does not speak TLS")
        self.assertNotIn(b"HELLO", b"".join(said))

    def test_address_without_a_name_does_not_bypass_tls(self):
        node = self.start_plain_node()
        self.wait_for_fault(self.start_server(node.address, expected=""), "is required to use TLS")
        self.assertEqual(self.ledger.rows, [])

    def test_an_alert_of_tls_on_a_plain_link_is_explained(self):
        fake = FakeNode(self, lambda sock: (sock.recv(100), sock.sendall(b"\x15\x03\x03\x00\x02\x02\x0a")))
        self.wait_for_fault(self.start_plain_server(fake.address), "speaks TLS: set tls = true")


class Handshake(TlsCase):
    def is_well(self, node):
        with TlsTalk(node.address) as talk:
            talk.say("CHECK")
            talk.until("STATUS")

    def test_silent_peers_in_the_handshake_delay_no_other(self):
        self.enterContext(mock.patch.object(tcp_tls, "HANDSHAKE_S", 10 * LIMIT_S))
        node = self.start_node()
        silent = [socket.create_connection(node.address, LIMIT_S) for _ in range(20)]
        for number, sock in enumerate(silent):
            self.addCleanup(sock.close)
            sock.sendall(b"\x16\x03\x01\x01\x00"[: number % 6])
        self.is_well(node)

    def test_handshake_that_exceeds_its_time_limit_is_closed(self):
        node = self.start_node(LinkKey(TOKEN))
        self.elsewhere()
        with mock.patch.object(tcp_tls, "HANDSHAKE_S", 0.05):
            for said in (b"", b"\x16", b"\x16\x03\x01\x01\x00\x01"):
                with self.subTest(said), Talk(node.address) as talk:
                    talk.send(said)
                    with contextlib.suppress(ConnectionResetError):  # the peer closed before it read the data
                        self.assertEqual(talk.sock.recv(100), b"")

    def test_slow_handshake_has_the_same_time_limit(self):
        node = self.start_node(LinkKey(TOKEN))
        self.elsewhere()
        with mock.patch.object(tcp_tls, "HANDSHAKE_S", 0.05), Talk(node.address) as talk:
            talk.sock.settimeout(0.01)
            for byte in b"\x16\x03\x01\x02\x00" + b"\x01" * 500:
                try:
                    talk.send(bytes([byte]))
                    if not talk.sock.recv(1):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            else:
                self.fail("it was never cut off")

    def test_garbage_ends_only_its_own_connection(self):
        node = self.start_node()
        chance = random.Random(3)
        for said in (
            b"\x16\x03\x01\xff\xff" + b"x" * 100, b"\x16\x03\x01\x00\x05hello", b"\x16" * 70_000,
            b"\x16\x03\x01\x02\x00" + chance.randbytes(512),
        ):  # fmt: skip
            with self.subTest(said[:8]), Talk(node.address) as talk, contextlib.suppress(OSError):
                talk.send(said)
                talk.sock.shutdown(socket.SHUT_WR)
                while talk.sock.recv(4096):
                    pass
        self.is_well(node)

    def test_garbage_in_an_open_connection_ends_it(self):
        node = self.start_node()
        with TlsTalk(node.address) as talk:
            talk.say("CHECK")
            talk.until("STATUS")
            os.write(talk.sock.fileno(), b"\x17\x03\x03\x00\x20" + b"x" * 32)
            wait_until(lambda: not node._connections)
        self.is_well(node)

    def test_damaged_client_hello_receives_no_word_of_the_link(self):
        node = self.start_node(LinkKey(TOKEN))
        self.elsewhere()
        outgoing = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            client_context().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
        hello, chance = outgoing.read(), random.Random(11)
        for _ in range(rounds("PIGEONPOST_TEST_HELLOS", 60, 3000)):
            said = bytearray(hello)
            for _ in range(chance.choice((1, 1, 1, 20))):
                said[chance.randrange(1, len(said))] ^= 1 << chance.randrange(8)
            with Talk(node.address) as talk, contextlib.suppress(OSError):
                talk.send(bytes(said[: chance.choice((len(said), chance.randrange(1, len(said))))]))
                talk.sock.shutdown(socket.SHUT_WR)
                answer = b""
                while block := talk.sock.recv(4096):
                    answer += block
                self.assertIn(answer[:1], (b"", b"\x15", b"\x16"))
        with TlsTalk(node.address) as talk:
            self.assertEqual(talk.sock.version(), "TLSv1.3")

    def test_recorded_connection_cannot_be_replayed(self):
        node = self.start_node(LinkKey(TOKEN))
        self.elsewhere()
        recorded = []

        def serve(sock):
            with socket.create_connection(node.address, LIMIT_S) as onward:
                pair = {sock: onward, onward: sock}
                while True:
                    for end in select.select(list(pair), [], [], LIMIT_S)[0]:
                        if not (block := end.recv(1 << 16)):
                            return
                        if end is sock:
                            recorded.append(block)
                        pair[end].sendall(block)

        with TlsTalk(FakeNode(self, serve).address) as talk:
            talk.say("AUTH", {"token": TOKEN})
            talk.say("SEND", False)
            self.assertEqual(talk.until("SENDBACK").args, (False,))
        self.outbox.switch(True)
        with Talk(node.address) as talk, contextlib.suppress(OSError):
            talk.send(b"".join(recorded))
            while talk.sock.recv(4096):
                pass
        wait_until(lambda: not node._connections)
        self.assertTrue(self.outbox.on)

    def test_tls_1_2_is_refused(self):
        node = self.start_node()
        with self.assertRaisesRegex(OSError, "(?i)version"):
            TlsTalk(node.address, client_context(ssl.TLSVersion.TLSv1_2))
        self.is_well(node)

    def test_server_limits_its_wait_for_a_silent_node(self):
        with mock.patch.object(tcp_tls, "HANDSHAKE_S", 0.05):
            server = self.start_server(FakeNode(self, lambda sock: sock.recv(4096) and sock.recv(1)).address, pin="00")
            self.wait_for_fault(server, "no TLS handshake within")

    def test_node_with_tls_1_2_only_is_refused(self):
        context = certificate_files.listening_context(OWN[0], OWN[0], ssl.TLSVersion.TLSv1_2, "")
        context.maximum_version = ssl.TLSVersion.TLSv1_2

        def serve(sock):
            with contextlib.suppress(ssl.SSLError):
                context.wrap_socket(sock, server_side=True)

        server = self.start_server(FakeNode(self, serve).address, pin=OWN[1])
        self.wait_for_fault(server, "TLS handshake failed")

    def test_stop_does_not_wait_for_a_handshake(self):
        node = self.start_node(LinkKey(TOKEN))
        self.elsewhere()
        socks = [socket.create_connection(node.address, LIMIT_S) for _ in range(2)]
        for sock, said in zip(socks, (b"", b"\x16\x03"), strict=True):
            self.addCleanup(sock.close)
            sock.sendall(said)
        wait_until(lambda: len(node._connections) == 2)
        with mock.patch.object(tcp_tls, "HANDSHAKE_S", 10 * LIMIT_S):
            self.assertIsNone(node.stop(LIMIT_S))

    def test_lines_received_with_the_end_of_the_handshake_are_answered(self):
        """A client's first line can be in the same packet as the end of its handshake."""
        node = self.start_node()
        with Talk(node.address) as talk:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = client_context().wrap_bio(incoming, outgoing)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    talk.send(outgoing.read())
                    incoming.write(talk.sock.recv(1 << 16))
            tls.write(b"CHECK\n")
            talk.send(outgoing.read())
            found = b""
            while not found.endswith(b"\n"):
                incoming.write(talk.sock.recv(1 << 16))
                with contextlib.suppress(ssl.SSLWantReadError):
                    found += tls.read(1 << 16)
        self.assertEqual(decode(found).word, "STATUS")

    def test_line_before_close_notify_is_answered(self):
        node = self.start_node()
        with TlsTalk(node.address) as talk:
            talk.say("CHECK")
            raw = talk.sock.unwrap  # sends close_notify and waits for the node's
            with contextlib.suppress(OSError):
                raw()
            wait_until(lambda: not node._connections)

    def test_long_and_many_lines_are_answered(self):
        node = self.start_node()
        with TlsTalk(node.address) as talk:
            talk.send(b"X" * 65_535 + b"\n" + b"CHECK\n" * 2000 + b"SEND OFF\n")
            self.assertEqual(talk.message().args[0], "unknown-word")
            for _ in range(2000):
                self.assertTrue(talk.line().startswith(b"STATUS "))
            self.assertEqual(talk.line(), b"SENDBACK OFF")

    def test_peer_that_does_not_read_is_closed(self):
        node = self.start_node()
        with (
            mock.patch.object(tcp_connection, "STUCK_BYTES", 1 << 16),
            TlsTalk(node.address) as talk,
            self.assertRaises(OSError),
        ):
            for connection in list(node._connections):  # otherwise the kernel would accept megabytes first
                connection.wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            while True:
                talk.send(b"CHECK\n" * 4000)
        wait_until(lambda: not node._connections)


class Closing(unittest.TestCase):
    def test_long_line_while_closing_ends_only_the_session(self):
        """The error is raised after the session has ended, and must not end the thread that collects from a node."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            far = socket.create_connection(listener.getsockname(), LIMIT_S)
            near, _ = listener.accept()
        self.addCleanup(far.close)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        wire = tcp_connection.LineConnection(near)
        self.addCleanup(wire.close)
        wire.send(b"x" * (1 << 22))
        far.sendall(b"x" * 70_000)
        session = mock.Mock(closing=True, take_output=lambda: b"")
        for _ in range(2):  # the limit is exceeded in the first or the second read
            tcp_connection.run_session(wire, session, lambda: False, lambda: True, Clock())


class Certificate(unittest.TestCase):
    def test_certificate_is_created_once_and_is_not_an_authority(self):
        folder = temp_folder(self)
        path = own_certificate(folder, "basement")
        with open(path, "rb") as file:
            made = file.read()
        self.assertEqual(own_certificate(folder, "basement"), path)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), made)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        self.assertEqual(os.listdir(folder), ["link.pem"])  # no temporary files remain
        told = ssl._ssl._test_decode_cert(path)  # the only certificate parser in Python's library
        self.assertEqual(told["subject"], ((("commonName", "basement"),),))
        self.assertEqual(told["subjectAltName"], (("DNS", "basement"),))
        with open(path, encoding="ascii") as file:
            der = ssl.PEM_cert_to_DER_cert(file.read().partition("-----END PRIVATE KEY-----\n")[2])
        self.assertEqual(der.count(bytes.fromhex("0603551d13")), 1)  # basicConstraints, once,
        self.assertIn(bytes.fromhex("0603551d13 0101ff 0402 3000"), der)  # critical, and empty: CA:FALSE
        self.assertIn(bytes.fromhex("0603551d0f 0101ff 0404 03020780"), der)  # keyUsage: digitalSignature

    def test_strict_client_accepts_the_certificate(self):
        folder = temp_folder(self)
        path = own_certificate(folder, "localhost")
        server = certificate_files.listening_context(path, path, ssl.TLSVersion.TLSv1_3, "")
        client = ssl.create_default_context(cafile=path)
        client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # as Python 3.13 does
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        thread = threading.Thread(target=lambda: server.wrap_socket(far, server_side=True).close())
        thread.start()
        client.wrap_socket(near, server_hostname="localhost").close()
        thread.join(LIMIT_S)

    def test_missing_openssl_is_reported_with_both_remedies(self):
        with mock.patch.dict(os.environ, PATH="/nowhere"), self.assertRaises(SettingsError) as caught:
            own_certificate(temp_folder(self), "basement")
        for words in ("sudo apt install openssl", "[link] certificate and key"):
            self.assertIn(words, str(caught.exception))

    def test_invalid_certificate_file_is_named(self):
        folder = temp_folder(self)
        path = os.path.join(folder, "link.pem")
        with open(path, "w", encoding="ascii") as file:
            file.write("half a certif")
        with self.assertRaisesRegex(SettingsError, path):
            node_connections(own_certificate(folder, "basement"), "")


class Programs(unittest.TestCase):
    def show(self, folder, **environment):
        shown = Forked(self, "node.py", "--show", "--data", folder, PIGEONPOST_LINK_TLS="true", **environment)
        self.assertEqual(shown.wait(), 0, shown.logged)
        return shown.said[-1]

    def test_node_and_server_programs_collect_by_tls(self):
        folder, data = temp_folder(self), temp_folder(self)
        self.assertEqual(
            self.show(folder), "# SHA-256 fingerprint of the link's certificate: created at the first start"
        )
        node = self.start_node(folder)
        fingerprint = node.logs("fingerprint").rpartition(" ")[2]
        self.assertEqual(self.show(folder).rpartition(" ")[2], fingerprint)
        host, port = node.address()
        self.assertEqual(self.ask(host, port, data, "--fingerprint", fingerprint), 0)
        self.assertIn(f'"tls":"{fingerprint}"', self.asked.said[0])
        self.assertEqual(self.ask(host, port, data, "--fingerprint", "00" * 32), 1)
        self.assertIn(f"expected {'00' * 32}, found {fingerprint}", "\n".join(self.asked.logged))
        self.assertEqual(self.ask(host, port, data), 0)  # plain text on this machine
        settings = os.path.join(data, "server.toml")
        with open(settings, "w", encoding="utf-8") as file:
            file.write(f'[[node]]\nname = "basement"\naddress = "{host}:{port}"\ntls = true\n')
            file.write(f'fingerprint = "{fingerprint}"\n')
        server = Forked(self, "server.py", "--config", settings, "--data", data, "--web", "127.0.0.1:0")
        server.logs("basement: collecting")
        node.terminate()
        self.assertEqual(node.wait(), 0)
        again = self.start_node(folder)
        self.assertEqual(again.logs("fingerprint").rpartition(" ")[2], fingerprint)

    def start_node(self, folder):
        return Forked(
            self, "node.py", "--simulate", "--name", "basement", "--listen", "127.0.0.1:0", "--data", folder,
            PIGEONPOST_LINK_TLS="true", PIGEONPOST_OUTBOX_SLOTS="64",
        )  # fmt: skip

    def ask(self, host, port, data, *more):
        self.asked = Forked(self, "control.py", "--data", data, "status", "--link", f"{host}:{port}", *more)
        return self.asked.wait()

    def test_inconsistent_settings_are_named(self):
        folder = temp_folder(self)
        path = os.path.join(folder, "server.toml")
        for text, words in (
            ("tls = true", "the name is missing"),
            ('name = "a"\nfingerprint = "' + "0" * 64 + '"', "fingerprint requires tls = true"),
            ('name = "a"\nfingerprint = "xyz"\ntls = true', "SHA-256 fingerprint"),
            ('name = "a"\n[[node]]\nname = "a"', "a table for a exists already"),
            ('name = "a"\naddress = "10.0.0.6"\n[server]\nnodes = ["a@10.0.0.5"]', "has a different address"),
            ('name = "a"\ntsl = true', 'did you mean "tls"'),
        ):
            with self.subTest(words):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(f"[[node]]\n{text}\n")
                server = Forked(self, "server.py", "--config", path, "--data", folder)
                self.assertEqual(server.wait(), 2)
                self.assertIn(words, "\n".join(server.logged))
        for environment in (
            {"PIGEONPOST_LINK_CERTIFICATE": "/x"}, {"PIGEONPOST_LINK_TLS": "1", "PIGEONPOST_LINK_KEY": "/x"},
        ):  # fmt: skip
            node = Forked(self, "node.py", "--simulate", "--data", folder, **environment)
            self.assertEqual(node.wait(), 2)
            self.assertIn("certificate requires tls = true", "\n".join(node.logged))


if __name__ == "__main__":
    unittest.main()
