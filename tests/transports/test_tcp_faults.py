"""Reasons for the end of a TCP session: each has a sentence for people, with the remedy."""

import json
import logging
import time
import unittest
from unittest import mock

from pigeonpost.auth import token_watch
from pigeonpost.auth.link_key import LinkKey
from pigeonpost.auth.tokens import Tokens
from pigeonpost.core.errors import StoreDamaged, TooMany
from pigeonpost.server.node_status import NodeState
from pigeonpost.transports import tcp_faults, tcp_server, tcp_server_session
from pigeonpost.transports.tcp_server_session import ServerSession
from protocol import encode, error_line
from tests import page_support
from tests.page_support import Node, Server, use_memory_disk
from tests.support import LIMIT_S, LONG, WALL_MS, temp_folder, wait_until
from tests.transports.test_tcp import OUTBOX, TOKEN, FakeNode, TcpCase, read_line
from tests.transports.test_tcp_session import SENSORS, SessionCase

SHOWN = "`control.py get-token basement` shows"
OTHER = "another token of 16 letters"
BUSY_S = 5.0  # additional time for a busy machine, beyond the promised time


def setUpModule():
    use_memory_disk()


class Sentences(SessionCase):
    """Both ends are Pigeonpost's own; they differ in the tokens that they have."""

    def ended(self, node_token=None, server_tokens=None, expected="basement", local=True, **more):
        """Run the session to its end. Return the server's fault, and the error that each end sent."""
        self.start_node(key=LinkKey(node_token) if node_token else None)
        keys = {name: LinkKey(token) for name, token in (server_tokens or {}).items()}
        node, server = self.node(local), self.server(keys, expected, **more)
        said = self.pump(node, server)
        errors = {side: message.args[1]["text"] for side, message in said if message.word == "ERROR"}
        self.assertTrue(node.closing or server.closing)
        self.assertFalse(server.collecting)
        return server.fault, errors

    def assert_remedy(self, fault, beginning, *words):
        """Check that the fault is one line, follows the node's name, and contains the remedy."""
        self.assertTrue(fault.startswith(beginning), fault)
        for word in words:
            self.assertIn(word, fault)
        self.assertLess(len(fault), 300)
        self.assertNotIn("\n", fault)

    def test_server_with_another_token_has_a_remedy(self):
        fault, errors = self.ended(TOKEN, {"basement": OTHER})
        self.assert_remedy(fault, "does not have the token that this server has for it: ", SHOWN)
        self.assertIn(SHOWN.removesuffix(" shows"), errors["server"])  # so the node's log contains it too

    def test_node_without_the_token_of_the_server_has_a_remedy(self):
        fault, errors = self.ended(None, {"basement": TOKEN})
        self.assert_remedy(
            fault, "has no token, but this server has one for it: ", SHOWN, "`control.py revoke basement`"
        )
        self.assertIn(SHOWN.removesuffix(" shows"), errors["server"])

    def test_server_without_any_token_has_a_remedy(self):
        fault, errors = self.ended(TOKEN)
        self.assert_remedy(fault, "has a token that this server does not know: `control.py token basement --set`")
        self.assertIn("control.py token basement", errors["node"])

    def test_server_with_tokens_of_other_nodes_only_has_a_remedy(self):
        for expected in ("basement", ""):
            fault, errors = self.ended(TOKEN, {"attic": OTHER}, expected)
            self.assertEqual(fault, tcp_faults.describe(tcp_faults.UNKNOWN_TOKEN, "basement"))
            self.assertIn("control.py token basement", str(errors))

    def test_unknown_node_name_is_replaced_by_NODE_in_the_remedy(self):
        fault, _ = self.ended(TOKEN, {}, "")
        self.assert_remedy(fault, "has a token that this server does not know: `control.py token NODE --set`")

    def test_proof_rejected_by_the_node_has_a_remedy(self):
        """Another implementation of a node may do so; this one would have proven the same token before."""
        server = self.server({"basement": LinkKey(TOKEN)})
        self.start_node(key=LinkKey(TOKEN))
        self.pump(self.node(), server)
        self.say(server, "ERROR", "auth", {"text": "no"})
        self.assert_remedy(server.fault, "does not accept this server's token: ", SHOWN)

    def test_remote_node_without_a_token_has_a_remedy(self):
        fault, errors = self.ended(local=False)
        self.assert_remedy(fault, "has no token, so it answers only its own machine: `control.py token basement`")
        self.assertIn("control.py token", errors["node"])

    def test_wrong_node_at_the_address_has_a_remedy(self):
        fault, _ = self.ended(None, {}, "attic")
        self.assert_remedy(fault, "answers as node basement: correct attic@HOST:PORT in --node")

    def test_unsupported_version_has_a_remedy(self):
        self.start_node()
        server = self.server()
        self.open_as_node(server, link=2)
        self.assert_remedy(server.fault, "speaks another version of the link: update ", "2, not 1")
        server = self.server()
        self.say(server, "ERROR", "version", {"text": "this node speaks link 2, not 1"})
        self.assert_remedy(server.fault, "speaks another version of the link: update ", "link 2, not 1")

    def test_too_many_connections_are_reported(self):
        server = self.server()
        server.receive(error_line(TooMany("64 connections are open"), b""))
        self.assert_remedy(server.fault, "has too many connections: 64 connections are open")

    def test_unknown_errors_are_reported_in_the_text_of_the_node(self):
        for code in ("expected", "bad-argument", "too-long", "bad-ack", "one-of-the-future"):
            server = self.server()
            self.say(server, "ERROR", code, {"text": "the node's words"})
            self.assertEqual(server.fault, "refuses: the node's words")

    def test_error_that_ends_no_session_is_not_the_reason_for_its_end(self):
        self.start_node()
        _, server = self.collect()
        self.say(server, "ERROR", "unknown-word", {"text": "what is BYE"})
        self.assertEqual(server.fault_at_end("closed by the peer"), "closed by the peer")
        self.say(server, "ERROR", "expected", {"text": "ACK belongs elsewhere"})
        self.assertEqual(server.fault_at_end("closed by the peer"), "refuses: ACK belongs elsewhere")

    def test_peer_that_is_not_a_node_is_reported(self):
        server = self.server()
        server.receive(b"HTTP/1.0 400 Bad Request")
        server.receive(b"Content-Type: text/html")
        self.assert_remedy(
            server.fault_at_end(""), "does not speak this protocol: is another program at its address? (unknown"
        )

    def test_connection_closed_without_an_answer_is_reported(self):
        server = self.server()
        self.assert_remedy(server.fault_at_end("closed by the peer"), "closes the connection without an answer: does")
        self.start_node(key=LinkKey(TOKEN))
        node = self.node()
        server = self.server({"basement": LinkKey(TOKEN)})
        node.receive(server.take_output())
        server.receive(node.take_output())
        server.take_output()
        self.assert_remedy(
            server.fault_at_end("closed by the peer"), "closes the connection without an answer to", SHOWN
        )

    def test_silent_node_is_reported(self):
        self.start_node()
        _, server = self.collect()
        self.server_clock.sleep(46)
        server.tick()
        self.assertEqual(server.fault, "has sent nothing for 46 s")

    def test_error_found_by_the_server_is_reported(self):
        self.start_node()
        _, server = self.collect()
        self.say(server, "HELLO", {"link": 1, "node": "basement", "outbox": "0" * 16})
        self.assertEqual(server.fault, "is rejected: HELLO was already sent in this session")

    def test_unproven_tls_after_a_revoked_token_has_a_remedy(self):
        for pin in ("", "ab" * 32):
            self.start_node()
            state = NodeState("192.0.2.5:5003", "basement")
            server = ServerSession(
                "home", self.ledger, {}, state, self.server_clock, lambda: None,
                fingerprint="ab" * 32, pins={"basement": pin},
            )  # fmt: skip
            self.pump(self.node(True), server)
            self.assertEqual(server.collecting, bool(pin))
            if not pin:
                self.assert_remedy(server.fault, "has TLS, but neither a token nor a fingerprint", "token basement`")

    def test_each_sentence_follows_a_name(self):
        from pigeonpost.views.summary import _VERBS

        for name, text in vars(tcp_faults).items():
            if name.isupper() and not name.startswith("_"):
                self.assertIn(text.split(" ")[0], _VERBS, name)


class Rotated(SessionCase):
    """A server whose tokens change, and the node's end, without sockets."""

    def setUp(self):
        super().setUp()
        self.tokens = Tokens(temp_folder(self), wall_ms=lambda: WALL_MS)
        self.old = self.tokens.make("basement")
        self.start_node(key=LinkKey(self.old))
        self.take(2)

    def open(self):
        node, server = self.node(), self.server(self.tokens)
        self.pump(node, server)
        return node, server

    def test_revoked_token_ends_the_session_with_a_reason_at_both_ends(self):
        node, server = self.open()
        self.tokens.revoke("basement")
        server.recheck_token()
        ((side, error),) = self.pump(node, server)
        self.assertEqual((side, error.args[0]), ("server", "auth"))
        self.assertIn("the token of node basement was revoked", error.args[1]["text"])
        self.assertTrue(server.closing)
        self.assertEqual(server.fault, tcp_faults.describe(tcp_faults.REVOKED, "basement"))
        node, server = self.open()
        self.assertFalse(server.collecting)
        self.assertEqual(server.fault, tcp_faults.describe(tcp_faults.UNKNOWN_TOKEN, "basement"))

    def test_replaced_token_ends_the_session(self):
        node, server = self.open()
        self.tokens.revoke("basement")
        self.tokens.make("basement")
        server.recheck_token()
        self.pump(node, server)
        self.assertTrue(server.closing)

    def test_new_token_ends_the_session_of_a_node_without_one(self):
        self.start_node(key=None)
        self.tokens.revoke("basement")
        node, server = self.open()
        self.assertTrue(server.collecting)
        self.tokens.make("basement")
        server.recheck_token()
        self.pump(node, server)
        self.assertTrue(server.closing)
        self.assertEqual(server.fault, tcp_faults.describe(tcp_faults.NO_TOKEN, "basement"))

    def test_old_token_is_accepted_after_a_rotation_until_the_new_one_is_used(self):
        node, server = self.open()
        new = self.tokens.rotate("basement")
        server.recheck_token()
        self.assertEqual(self.pump(node, server), [])
        self.assertFalse(server.closing)
        _, again = self.open()
        self.assertTrue(again.collecting)
        self.start_node(key=LinkKey(new))
        _, renewed = self.open()
        self.assertTrue(renewed.collecting)
        again.recheck_token()  # the old token was accepted until now
        again.take_output()
        self.assertTrue(again.closing)
        self.assertEqual(again.fault, tcp_faults.describe(tcp_faults.REPLACED, "basement"))
        renewed.recheck_token()
        self.assertEqual(renewed.take_output(), b"")
        self.start_node(key=LinkKey(self.old))
        _, refused = self.open()
        self.assertFalse(refused.collecting)
        self.assertEqual(refused.fault, tcp_faults.describe(tcp_faults.WRONG_TOKEN, "basement"))

    def test_a_token_of_another_node_ends_nothing(self):
        node, server = self.open()
        self.tokens.make("attic")
        server.recheck_token()
        self.assertEqual(self.pump(node, server), [])
        self.assertFalse(server.closing)

    def test_token_change_before_hello_ends_nothing(self):
        server = self.server(self.tokens)
        self.tokens.revoke("basement")
        server.recheck_token()
        server.take_output()
        self.assertFalse(server.closing)


class OverTcp(TcpCase):
    def setUp(self):
        super().setUp()
        self.folder = temp_folder(self)
        self.tokens = Tokens(self.folder)
        self.enterContext(mock.patch.object(token_watch, "CHECK_EVERY_S", 0.01))

    def watched(self, node):
        """Return a server that collects from `node` and watches its tokens as server.py does."""
        server = self.start_server(node.address, self.tokens)
        watch = token_watch.TokenWatch(self.tokens, lambda nodes: server.recheck_token())
        watch.start()
        self.addCleanup(watch.stop, LIMIT_S)
        return server

    def test_token_revoked_by_another_process_ends_the_session(self):
        self.make_outbox()
        node = self.start_node(LinkKey(self.tokens.make("basement")))
        for name in ("CHECK_AFTER_S", "_ASK_AFTER_S", "SILENCE_S"):  # the session must not end because of a CHECK
            self.enterContext(mock.patch.object(tcp_server_session, name, 10 * LIMIT_S))
        server = self.watched(node)
        self.take(3)
        self.ledger.wait_for(3)
        Tokens(self.folder).revoke("basement")
        wait_until(lambda: not server.state.connected, "the end of the session")
        wait_until(lambda: server.state.fault.startswith("has a token that this server does not know: "))
        wait_until(lambda: not node.collectors)
        self.take(3)
        again = Tokens(self.folder)
        again.make("basement", node._info.key.plain_token())  # control.py token basement --set
        self.ledger.wait_for(6)
        self.assertEqual(self.ledger.repeats, 0)

    def test_node_with_a_corrected_token_is_tried_immediately(self):
        self.enterContext(mock.patch.object(tcp_server, "RETRY_S", LIMIT_S))
        node = self.start_node(LinkKey(TOKEN))
        self.tokens.make("basement")
        server = self.watched(node)
        wait_until(lambda: server.state.fault.startswith("does not have the token"))
        Tokens(self.folder).make("basement", TOKEN)
        wait_until(lambda: server.state.connected)

    def test_damaged_database_is_a_short_fault_of_the_node(self):
        node = self.start_node()
        damaged = StoreDamaged("what is wrong, and a long remedy")
        with mock.patch.object(tcp_server.ServerSession, "receive_lines", side_effect=damaged):
            server = self.start_server(node.address)
            wait_until(lambda: server.state.fault == tcp_faults.STORE_DAMAGED)

    def test_the_node_logs_the_remedy(self):
        logging.disable(logging.NOTSET)
        node = self.start_node(LinkKey(TOKEN))
        self.tokens.make("basement")
        with self.assertLogs("pigeonpost.transports.tcp_node", "WARNING") as logged:
            server = self.start_server(node.address, self.tokens)
            wait_until(lambda: any("get-token basement" in line for line in logged.output), "the node's line")
            server.stop(LIMIT_S)
        self.assertEqual(len(logged.output), 1)

    def test_node_that_closes_after_the_proof_differs_from_one_that_stops(self):
        key = LinkKey(TOKEN)

        def serve(sock):
            nonce = json.loads(read_line(sock).partition(b" ")[2])["nonce"]
            mac = key.sign("node", "home", "basement", OUTBOX, (nonce, "0d" * 16))
            hello = {"link": 1, "node": "basement", "outbox": OUTBOX, "held": [], "sensors": SENSORS}
            sock.sendall(encode("HELLO", {**hello, "nonce": "0d" * 16, "mac": mac}))
            read_line(sock)

        server = self.start_server(FakeNode(self, serve).address, {"basement": key})
        wait_until(
            lambda: server.state.fault.startswith("closes the connection without an answer to this server's token")
        )


class Programs(unittest.TestCase):
    """The real programs: from `control.py revoke` to the texts for people."""

    def test_revoked_node_is_disconnected_within_2_seconds_and_check_prints_the_remedy(self):
        data = temp_folder(self)
        tokens = Tokens(data)
        node = Node(self, PIGEONPOST_NODE_TOKEN=tokens.make("basement"))
        quick = {
            "pigeonpost.auth.token_watch.CHECK_EVERY_S": 0.2, "pigeonpost.transports.tcp_server.RETRY_S": 0.1,
            "pigeonpost.transports.tcp_server_session.CHECK_AFTER_S": 10 * LIMIT_S,
        }  # fmt: skip
        server = Server(self, "--node", node.at, data=data, constants=None if LONG else quick)
        server.logs("collecting;")
        self.assertEqual(page_support.control_here("--data", data, "revoke", "basement")[0], 0)
        revoked_s = time.monotonic()
        server.logs("is not collected from because its token was revoked")
        if LONG:
            self.assertLess(time.monotonic() - revoked_s, 2.0 + BUSY_S)
        server.logs("has a token that this server does not know")
        status, out, told = page_support.control_here("--data", data, "check")
        self.assertEqual(status, 1)
        self.assertIn(
            "basement: has a token that this server does not know: `control.py token basement --set`", out + told
        )
        self.assertIn("--set", json.loads(server.get("/api/v1/nodes/basement")[1])["fault"])
        self.assertIn("has a token that this server does not know", server.get("/")[1])


if __name__ == "__main__":
    unittest.main()
