"""Discovery of nodes: both ends without a network, as programs, and with real network interfaces."""

import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import unittest
from types import SimpleNamespace
from unittest import mock

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.auth.tokens import Tokens
from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.core.errors import BadArgument, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.core.multicast import Path, listener
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.unnumbered_sources import Claim, UnnumberedSources
from pigeonpost.transports import discovery_datagram, discovery_node, registry
from pigeonpost.transports.contract import PassiveTransport
from pigeonpost.transports.discovery_datagram import DATAGRAM_BYTES, interfaces, read_announcement, write_announcement
from pigeonpost.transports.discovery_node import DiscoveryNodeTransport
from pigeonpost.transports.discovery_server import (
    AT_ONCE,
    DATAGRAMS_A_S,
    LEAST_MOVE_S,
    MOST_SOURCES,
    SOURCES,
    Budget,
    DiscoveryServerTransport,
)
from pigeonpost.transports.payload import split_signature
from tests.forked import Forked
from tests.page_support import use_memory_disk
from tests.support import LIMIT_S, ROOT, Program, long, temp_folder, wait_until

TOKEN = "0123456789abcdef0123456789abcdef"
PLACES = [("192.168.1.20", 5003), ("10.0.0.5", 5003)]
JUNK = b'{"mac":"' + b"0" * 64 + b'",' + b"x" * 1000


def free_group():
    """Return a multicast group that no other program on this machine uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        return f"239.255.{random.randint(60, 250)}.{random.randint(1, 250)}", sock.getsockname()[1]


class Datagrams(unittest.TestCase):
    def setUp(self):
        self.data = write_announcement(LinkKey(TOKEN), "basement", PLACES, FakeClock())
        self.said = json.loads(self.data)

    def test_written_announcement_is_read(self):
        mac, body = split_signature(self.data)
        self.assertTrue(LinkKey(TOKEN).is_signature(mac, "announce", body))
        call = read_announcement(body)
        self.assertEqual(call[:3], ("basement", PLACES, FakeClock().wall_ms()))
        self.assertRegex(call.nonce, "^[0-9a-f]{16}$")

    def test_longest_announcement_fits_in_a_frame(self):
        longest = write_announcement(LinkKey(TOKEN), "b" * 63, [("255.255.255.255", 65_535)] * 40, FakeClock())
        self.assertLess(len(longest), DATAGRAM_BYTES)

    def test_announcement_of_an_unset_clock_has_no_time(self):
        data = write_announcement(LinkKey(TOKEN), "basement", PLACES, FakeClock(known=False))
        self.assertIsNone(read_announcement(split_signature(data)[1]).time_ms)

    def test_invalid_announcements_are_refused(self):
        for key, values in {
            "pigeonpost": (0, 2, "1", None, ...),
            "node": ("", "a b", 7, None, "x" * 64, ...),
            "at": ([], "192.168.1.20:5003", ["192.168.1.20"], ["localhost:5003"], ["evil.example:80"], ["0.0.0.0:5003"],
                   ["239.1.1.1:5003"], ["255.255.255.255:1"], ["1.2.3.4:0"], ["1.2.3.4:99999"], ["[::1]:5003"], [7],
                   [None], {"1.2.3.4:5": 1}, ["1.2.3.4:5"] * 9, ...),
            "time": ("yesterday", 7, None, ...),
            "nonce": ("", "x", "x" * 65, 7, None, ...),
            "clock": (...,),
        }.items():  # fmt: skip
            for value in values:
                with self.subTest(key, value=value), self.assertRaises(BadArgument):
                    said = {**self.said, key: value}
                    read_announcement(json.dumps({k: v for k, v in said.items() if v is not ...}).encode())

    def test_hostile_bytes_are_refused(self):
        for data in (b"", b"[]", b"{", b"[" * 1200, b"\xff" * 100, b'{"node":' * 150, b"null", b"7", b'"x"'):
            with self.subTest(data), self.assertRaises(BadArgument):
                read_announcement(data)

    def test_mutated_announcements_are_read_or_refused(self):
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        right = split_signature(self.data)[1]
        for _ in range(5000):
            data = bytearray(right)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(data))
                data[at : at + rng.randint(0, 3)] = bytes(rng.choices(b'{}[]",:0129e.-ntu\\\xff ', k=rng.randint(0, 3)))
            with self.subTest(seed=seed, data=bytes(data)):
                try:
                    read_announcement(bytes(data))
                except BadArgument:
                    pass


class Interfaces(unittest.TestCase):
    def test_interfaces_with_an_address_are_listed(self):
        self.assertEqual(interfaces()["lo"], "127.0.0.1")
        for name, address in interfaces().items():
            self.assertIn(name, [name for _, name in socket.if_nameindex()])
            self.assertEqual(socket.inet_ntoa(socket.inet_aton(address)), address)

    def test_interfaces_are_listed_without_netlink(self):
        code = "import socket\n" + (
            "real = socket.socket\n"
            "def limited(family=socket.AF_INET, *more, **named):\n"
            "    assert family == socket.AF_INET, family\n"
            "    return real(family, *more, **named)\n"
            "socket.socket, socket.if_nameindex = limited, None\n"
            "from pigeonpost.transports.discovery_datagram import interfaces\n"
            "print(interfaces()['lo'])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        self.assertEqual(done.stdout, "127.0.0.1\n", done.stderr)


class FakeLink:
    def __init__(self, expected, address):
        self.state = NodeState("%s:%d" % address, expected)
        self.moves = []
        self.ended = False

    def move(self, address):
        self.moves.append(address)

    def end(self):
        self.ended = True


class ServerDiscovery(unittest.TestCase):
    """The server's end without a network: its reaction to each datagram."""

    def setUp(self):
        self.clock = FakeClock()
        self.tokens = {"basement": LinkKey(TOKEN)}
        self.links = []
        self.sources = UnnumberedSources(None, self.links, self.clock, self.tokens, Faults(), LoginThrottle(self.clock))
        self.context = SimpleNamespace(
            clock=self.clock, tokens=self.tokens, links=self.links, collect=self.collect,
            unnumbered_sources=self.sources, current=lambda name: name,
        )  # fmt: skip
        self.end = DiscoveryServerTransport(self.context, ("239.255.50.3", 5003))
        self.addCleanup(self.end._wake_pipe.close)

    def collect(self, name, address):
        self.links.append(FakeLink(name, address))
        return self.links[-1]

    def call(self, *places, node="basement", token=TOKEN, clock=None):
        return write_announcement(LinkKey(token), node, places or PLACES, clock or self.clock)

    def receive(self, data, source="192.168.1.20"):
        self.clock.sleep(LEAST_MOVE_S)  # the pause between two moves has its own tests
        return self.end.receive(data, source)

    def test_renamed_node_is_collected_from_by_its_present_name(self):
        self.context.current = {"basement": "cellar"}.get
        self.tokens["cellar"] = self.tokens.pop("basement")
        self.assertEqual(self.receive(self.call()), "")
        self.assertEqual([link.state.expected or link.state.name for link in self.links], ["cellar"])

    def test_node_is_collected_from_at_its_announced_address(self):
        self.assertEqual(self.receive(self.call()), "")
        (link,) = self.links
        self.assertEqual((link.state.expected, link.state.address), ("basement", "192.168.1.20:5003"))
        self.assertEqual(self.end.report(), {"believed": 1, "ignored": {}, "found": ["basement"]})

    def test_source_address_is_preferred_if_the_node_announced_it(self):
        self.receive(self.call(), "10.0.0.5")
        self.assertEqual(self.links[0].state.address, "10.0.0.5:5003")

    def test_source_address_that_was_not_announced_is_not_used(self):
        """An attacker may send a recorded datagram again from another address; the announced address is still used."""
        self.receive(self.call(), "6.6.6.6")
        self.assertEqual(self.links[0].state.address, "192.168.1.20:5003")

    def test_repeated_announcements_create_one_link(self):
        for _ in range(5):
            self.receive(self.call())
        self.assertEqual(len(self.links), 1)

    def test_connected_node_at_its_announced_address_is_not_moved(self):
        self.receive(self.call())
        self.links[0].state.connected = True
        self.receive(self.call())
        self.assertEqual(self.links[0].moves, [])

    def test_node_at_a_new_address_is_moved(self):
        self.receive(self.call())
        self.receive(self.call(("192.168.1.77", 5003)))
        self.assertEqual(self.links[0].moves, [("192.168.1.77", 5003)])

    def test_lost_node_is_tried_immediately_also_at_its_old_address(self):
        self.receive(self.call())
        self.receive(self.call())
        self.assertEqual(self.links[0].moves, [PLACES[0]])

    def test_configured_node_is_moved_too(self):
        self.links.append(FakeLink("basement", ("192.168.1.9", 5003)))
        self.receive(self.call())
        self.assertEqual((len(self.links), self.links[0].moves), (1, [PLACES[0]]))

    def test_configured_node_without_a_name_is_recognised_by_address_or_reported_name(self):
        self.links.append(FakeLink("", PLACES[1]))
        self.receive(self.call())
        self.assertEqual(len(self.links), 1)
        self.links[0].state.name = "basement"
        self.receive(self.call(("192.168.1.77", 5003)))
        self.assertEqual((len(self.links), self.links[0].moves[-1]), (1, ("192.168.1.77", 5003)))

    def test_configured_address_without_a_name_gets_time_to_report_it(self):
        """Otherwise two links would collect from one node, and would replace each other permanently."""
        self.links.append(FakeLink("", ("basement.local", 5003)))
        self.receive(self.call())
        self.assertEqual(len(self.links), 1)
        self.clock.sleep(60)
        self.receive(self.call())
        self.assertEqual(len(self.links), 2)  # the address does not answer: other nodes do not wait for it
        found = self.links[1]
        self.links[0].state.name = "basement"  # now it answers
        self.receive(self.call())
        self.assertTrue(found.ended)
        self.assertEqual(len(self.links), 1)

    def test_node_that_connects_itself_is_not_collected_from(self):
        caller = SimpleNamespace(state=NodeState("", "basement"))
        caller.state.calls_in = True
        self.links.append(caller)
        self.assertEqual(self.receive(self.call()), "")
        self.assertEqual(len(self.links), 1)

    def test_unproven_client_does_not_prevent_discovery(self):
        token = self.tokens.pop("basement")
        self.sources.caller(Claim("basement", "mqtt"))
        self.tokens["basement"] = token
        self.receive(self.call())
        self.assertEqual([link.state.address for link in self.links], ["192.168.1.20:5003"])

    def test_announcements_cause_one_attempt_in_five_seconds(self):
        self.receive(self.call())
        for port in range(1, 101):
            self.end.receive(self.call(("192.168.1.20", port)), "192.168.1.20")
            self.clock.sleep(0.5)
        self.assertIn(len(self.links[0].moves), (9, 10))

    def test_early_announcement_is_used_once_the_pause_is_over(self):
        """The three datagrams of a burst arrive within 3 s; the next one arrives half a minute later."""
        self.receive(self.call())
        self.end.receive(self.call(("192.168.1.77", 5003)), "192.168.1.77")
        self.end.move_due()
        self.assertEqual(self.links[0].moves, [])
        self.clock.sleep(LEAST_MOVE_S)
        self.end.move_due()
        self.end.move_due()
        self.assertEqual(self.links[0].moves, [("192.168.1.77", 5003)])

    def ignored(self, data, why, source="192.168.1.20"):
        self.assertEqual(self.receive(data, source), why)
        self.assertEqual(self.links, [])

    def test_invalid_datagrams_are_ignored_with_a_reason(self):
        self.ignored(self.call(token="another token than that"), "wrong token")
        self.ignored(self.call(node="attic"), "from a node without a token here")
        self.ignored(split_signature(self.call())[1], "not signed")
        self.ignored(b"", "not signed")
        self.ignored(os.urandom(DATAGRAM_BYTES), "not signed")
        self.ignored(self.call().replace(b"5003", b"5004"), "wrong token")
        self.ignored(self.call() + b" " * DATAGRAM_BYTES, "not signed")
        self.ignored(b'{"mac":"%s","x":1}' % (b"0" * 64), "not valid")
        self.assertEqual(self.end.believed, 0)

    def test_ignored_announcements_are_logged_by_node_with_the_remedy(self):
        self.addCleanup(logging.disable, logging.CRITICAL)
        logging.disable(logging.NOTSET)
        first = self.call()
        with self.assertLogs("pigeonpost.transports.discovery_server", "INFO") as logged:
            for data in (self.call(node="attic"), self.call(node="attic"), self.call(node="shed"), first, first, b"x"):
                if why := self.receive(data):
                    self.end._ignore(why, "192.168.1.20")
        said, end = "announcement ignored: from a node without a token here (1 so far); to collect from it", "`"
        self.assertEqual([line.partition("server:")[2] for line in logged.output], [
            f"192.168.1.20 attic: {said}: `control.py token attic{end}",
            f"192.168.1.20 shed: {said}: `control.py token shed{end}",
            "node basement was discovered: collecting from 192.168.1.20:5003",
            "192.168.1.20: announcement ignored: not signed (1 so far)",
        ])  # fmt: skip
        self.assertEqual(self.end.report()["ignored"]["from a node without a token here"], 3)

    def test_replayed_announcement_is_ignored(self):
        first = self.call(("192.168.1.66", 5003))
        self.receive(first)
        self.receive(self.call())
        self.assertEqual(self.receive(first), "repeated")
        recorded = self.call(("192.168.1.66", 5003))
        self.clock.sleep(2)
        self.receive(self.call())
        self.assertEqual(self.receive(recorded), "older than an earlier one")
        self.clock.sleep(600)
        self.assertEqual(self.receive(recorded), "sent at another time")
        self.assertEqual(self.links[0].moves[-1], PLACES[0])

    def test_old_announcement_is_ignored_after_a_restart(self):
        recorded = self.call(("192.168.1.66", 5003))
        self.clock.sleep(600)
        self.ignored(recorded, "sent at another time")

    def test_announcement_of_an_unset_clock_is_accepted(self):
        self.assertEqual(self.receive(self.call(clock=FakeClock(wall_ms=0, known=False))), "")
        self.assertEqual(len(self.links), 1)

    def test_announcement_of_this_machine_is_accepted_on_loopback_only(self):
        self.end._own = {"192.168.1.20"}
        self.assertEqual(
            self.end.receive(self.call(), "192.168.1.20", "192.168.1.20"), "from this machine, not by loopback"
        )
        self.assertEqual(self.end.receive(self.call(), "192.168.1.20", "127.0.0.1"), "")

    def test_flood_is_not_checked_beyond_the_budget(self):
        began_s = time.thread_time()
        whys = [self.end.receive(JUNK, "6.6.6.6") for _ in range(20_000)]
        self.assertEqual(whys.count("too many"), 20_000 - AT_ONCE)
        self.assertLess(time.thread_time() - began_s, 5.0)
        self.assertEqual(self.end.receive(self.call(), "192.168.1.20"), "")
        self.clock.sleep(1)
        whys = [self.end.receive(JUNK, "6.6.6.6") for _ in range(1000)]
        self.assertEqual(whys.count("too many"), 1000 - DATAGRAMS_A_S)
        self.assertEqual(len(self.end._known_nodes), 1)

    def test_two_nodes_of_one_name_are_shown_until_an_hour_later(self):
        here, there = ("192.168.1.20", 5003), ("192.168.1.30", 5003)
        self.receive(self.call(here))
        state = self.links[0].state
        for n in range(6):
            self.receive(self.call(here, *[("10.0.0.5", 5003)][: n % 2]))  # its second interface is not always up
        self.end.warn()
        self.assertEqual(state.warnings, {})
        for _ in range(4):
            self.receive(self.call(there), "192.168.1.30")
            self.receive(self.call(here))
        self.end.warn()
        self.assertRegex(
            state.warnings["announced"],
            "^two nodes announce themselves as basement, at 192.168.1.20:5003 and at 192.168.1.30:5003; give one of",
        )
        self.clock.sleep(3700)
        self.end.warn()
        self.assertEqual(state.warnings, {})

    def test_three_thousand_junk_datagrams_hide_no_announcement(self):
        for name, sources in (
            ("of one source", ["6.6.6.6"]), ("of the node's own address", ["192.168.1.20"]),
            ("of many", [f"10.0.{n // 250}.{n % 250}" for n in range(3000)]),
        ):  # fmt: skip
            with self.subTest(name):
                self.end._budget = Budget()
                for n in range(3000):
                    self.end.receive((JUNK, b"", os.urandom(30))[n % 3], sources[n % len(sources)])
                self.assertEqual(self.end.receive(self.call(), "192.168.1.20"), "")

    def test_endless_flood_leaves_budget_for_proven_sources(self):
        self.receive(self.call())
        for n in range(SOURCES * AT_ONCE + 1000):
            self.end._budget.take(f"10.{n % 7}.{n // 250}.{n % 250}", self.clock.monotonic())
        self.assertEqual(self.end.receive(JUNK, "10.9.9.9"), "too many")
        self.assertEqual(self.end.receive(self.call(), "192.168.1.20"), "")
        self.assertLessEqual(len(self.end._budget._budgets), MOST_SOURCES + 1)

    def test_invalid_token_file_does_not_end_discovery(self):
        class Broken(dict):
            def get(self, node):
                raise SettingsError("tokens.json does not read")

        self.context.tokens = Broken(x=1)
        self.ignored(self.call(), "tokens.json does not read")

    def test_nodes_without_a_token_here_are_not_remembered(self):
        for n in range(50):
            self.receive(self.call(node=f"node{n}"))
        self.assertEqual(self.end._known_nodes, {})


class NodeDiscovery(unittest.TestCase):
    """The node's end on the interfaces of this machine."""

    def setUp(self):
        self.group = free_group()
        self.info = SimpleNamespace(name="basement", address=("0.0.0.0", 5003), key=LinkKey(TOKEN))
        self.ear = listener(self.group, Path("lo"))
        self.addCleanup(self.ear.close)

    def start(self, every_s=30.0):
        end = DiscoveryNodeTransport(self.info, self.info.key, self.group, every_s, Clock())
        self.addCleanup(end.stop, LIMIT_S)
        end.start()
        return end

    def heard(self):
        try:
            return read_announcement(split_signature(self.ear.recv(2000))[1])
        except BlockingIOError:
            return None

    def test_announcement_is_sent_at_the_start(self):
        self.start()
        call = wait_until(self.heard)
        self.assertEqual((call.node, call.addresses[0]), ("basement", ("127.0.0.1", 5003)))
        away = {(address, 5003) for address in interfaces().values()}
        self.assertLessEqual(set(call.addresses), away)

    def test_announcement_is_sent_periodically(self):
        with mock.patch.object(discovery_node, "FIRST_S", (0.0,)):
            self.start(0.02)
            nonces = {wait_until(self.heard).nonce for _ in range(5)}
        self.assertEqual(len(nonces), 5)

    def test_announcement_is_sent_when_an_address_changes(self):
        here = {"lo": "127.0.0.1"}
        with (
            mock.patch.object(discovery_datagram, "interfaces", lambda: dict(here)),
            mock.patch.object(discovery_node, "FIRST_S", (0,)),
        ):
            end = self.start()
            wait_until(self.heard)
            here["eth7"] = "10.9.8.7"
            end._wake_pipe.wake()
            self.assertIn(("10.9.8.7", 5003), wait_until(self.heard).addresses)

    def test_known_addresses_are_announced_without_a_free_descriptor(self):
        full, asked = OSError(24, "Too many open files"), threading.Event()

        def fail():
            asked.set()
            raise full

        with mock.patch.object(discovery_node, "FIRST_S", (0,)):
            end = self.start()
            wait_until(self.heard)
            with (
                mock.patch.object(discovery_datagram, "interfaces", fail),
                mock.patch.object(discovery_datagram.log, "warning") as warning,
            ):
                for _ in range(3):  # at the next query, the earlier failure has been logged
                    asked.clear()
                    end._wake_pipe.wake()
                    self.assertTrue(asked.wait(LIMIT_S))
                self.assertEqual(warning.call_count, 1)
        self.assertTrue(end._thread.is_alive())
        self.assertIn("127.0.0.1", end.interfaces().values())

    def test_only_addresses_on_which_the_node_listens_are_announced(self):
        self.info.address = ("127.0.0.1", 5003)
        self.start()
        self.assertEqual(wait_until(self.heard).addresses, [("127.0.0.1", 5003)])

    def test_stop_is_quick_and_may_be_repeated(self):
        end = self.start()
        began_s = time.monotonic()
        self.assertIsNone(end.stop(LIMIT_S))
        self.assertIsNone(end.stop(LIMIT_S))
        self.assertLess(time.monotonic() - began_s, LIMIT_S / 2)

    def test_node_with_a_token_is_announced_unless_it_connects_itself(self):
        settings = mock.MagicMock()
        values = {
            ("mqtt", "host"): "",
            ("push", "to"): "",
            ("announce", "group"): self.group,
            ("announce", "every"): 30.0,
        }
        settings.__getitem__.side_effect = values.__getitem__
        settings.origin.return_value = "default"
        make = next(entry.make for entry in registry.NODE if entry.name == "announce")
        self.assertIsInstance(make(settings, self.info, None, Clock()), DiscoveryNodeTransport)
        values["push", "to"] = "http://home:8080"
        self.assertIsInstance(make(settings, self.info, None, Clock()), PassiveTransport)
        settings.origin.return_value = "node.toml"
        self.assertIsInstance(make(settings, self.info, None, Clock()), DiscoveryNodeTransport)
        self.info.key = None
        self.assertIsInstance(make(settings, self.info, None, Clock()), PassiveTransport)


QUICK = {
    "pigeonpost.transports.discovery_node.FIRST_S": (0.0, 0.1, 0.3),
    "pigeonpost.transports.discovery_server.LEAST_MOVE_S": 0.2,
    "pigeonpost.transports.discovery_datagram.ADDRESS_CHECK_S": 0.1,
    "pigeonpost.transports.tcp_server.RETRY_S": 0.1,
    "pigeonpost.transports.tcp_server_session.DOUBT_S": 0.2,
}
# The tests never wait this long: only an announcement can restore the connection.
PATIENT = {"pigeonpost.transports.tcp_server_session.SILENCE_S": 10 * LIMIT_S}


class Programs(unittest.TestCase):
    """node.py and server.py with shorter intervals; the server has only the node's token."""

    kind, more = Forked, {"constants": QUICK}

    def setUp(self):
        self.group = "%s:%d" % free_group()
        self.data, self.card = temp_folder(self), temp_folder(self)
        self.token = Tokens(self.data).make("basement")

    def settings(self, **more):
        return {"PIGEONPOST_ANNOUNCE_ON": "true", "PIGEONPOST_ANNOUNCE_GROUP": self.group, **more}

    def start_node(self, token=None, name="basement", card=None):
        token = self.token if token is None else token
        return self.kind(
            self, "node.py", "--simulate", "--name", name, "--listen", "127.0.0.1:0", "--data",
            card or self.card, "--every", "0.05", **self.more, **self.settings(PIGEONPOST_ANNOUNCE_EVERY="1"),
            **({"PIGEONPOST_NODE_TOKEN": token} if token else {}),
        )  # fmt: skip

    def start_server(self):
        """Return the server once it listens."""
        server = self.kind(
            self, "server.py", "--data", self.data, "--web", "127.0.0.1:0", **self.more,
            **self.settings(PIGEONPOST_STORE_COMMIT="0.05"),
        )  # fmt: skip
        server.line()
        return server

    def rows(self):
        """Return the number of rows in the logs of all runs."""
        folder = os.path.join(self.data, "logs")
        lines = 0
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                lines += max(0, len(file.readlines()) - 1)
        return lines

    def test_node_is_found_without_an_address_and_again_on_another_port(self):
        server = self.start_server()
        node = self.start_node()
        server.logs("node basement was discovered: collecting from 127.0.0.1:")
        wait_until(lambda: self.rows() > 4)
        for _ in range(2):
            node.kill()
            before = self.rows()
            node = self.start_node()
            wait_until(lambda n=before: self.rows() > n + 4, "rows after the node was started on another port")
        self.assertIsNone(server.process.poll())

    def test_server_that_is_started_later_finds_the_node(self):
        self.start_node()
        self.start_server()
        wait_until(self.rows)

    def test_a_node_with_another_token_is_not_collected_from(self):
        self.more = {}
        server = self.start_server()
        self.start_node("another-token-than-that")
        line = server.logs("announcement ignored: wrong token (1 so far)")
        self.assertRegex(
            line,
            r" [0-9.]+ basement: announcement .*; set PIGEONPOST_NODE_TOKEN .* `control.py get-token basement` shows",
        )
        self.assertEqual(self.rows(), 0)

    def test_node_without_a_token_is_not_announced(self):
        host, port = self.group.split(":")
        heard = []

        def receive(ear):
            try:
                heard.append(read_announcement(split_signature(ear.recv(2000))[1]).node)
            except BlockingIOError:
                pass
            return heard.count("attic") >= 3

        with listener((host, int(port)), Path("lo")) as ear:
            self.start_node(token="").address()  # the complete program runs
            self.start_node(name="attic", card=temp_folder(self))  # a node that was started later
            wait_until(lambda: receive(ear), "three announcements of a node with a token")
        self.assertEqual(set(heard), {"attic"})


@long
class ProgramsAtFullLength(Programs):
    """The same with the real intervals."""

    kind, more = Program, {}


def need_namespaces():
    probe = f"pgn{os.getpid()}"
    if shutil.which("ip") is None or os.geteuid() or subprocess.run(
        ["ip", "netns", "add", probe], capture_output=True, check=False
    ).returncode:  # fmt: skip
        if os.environ.get("CI"):
            raise AssertionError("network namespaces need root and ip (iproute2)")
        raise unittest.SkipTest("network namespaces need root and ip (iproute2)")
    subprocess.run(["ip", "netns", "del", probe], check=True)


class Networks(Programs):
    """Two machines on one network; the node's address changes while its program runs."""

    test_node_is_found_without_an_address_and_again_on_another_port = None
    test_server_that_is_started_later_finds_the_node = None
    test_a_node_with_another_token_is_not_collected_from = None
    test_node_without_a_token_is_not_announced = None

    more = {"constants": {**QUICK, **PATIENT}}

    def setUp(self):
        need_namespaces()
        super().setUp()
        tag = f"{os.getpid() % 100_000}"
        self.a, self.b = f"pga{tag}", f"pgb{tag}"
        for name in (self.a, self.b):
            self.ip("netns", "add", name)
            self.addCleanup(self.ip, "netns", "del", name)
        self.ip("link", "add", f"va{tag}", "netns", self.a, "type", "veth", "peer", "name", f"vb{tag}", "netns", self.b)
        self.dev_a, self.dev_b = f"va{tag}", f"vb{tag}"
        for name, dev, address in ((self.a, self.dev_a, "10.77.0.1/24"), (self.b, self.dev_b, "10.77.0.2/24")):
            self.ip("-n", name, "link", "set", "lo", "up")
            self.ip("-n", name, "addr", "add", address, "dev", dev)
            self.ip("-n", name, "link", "set", dev, "up")

    def ip(self, *arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=LIMIT_S)

    def test_changed_address_is_found_by_an_announcement(self):
        server = Forked(
            self, "server.py", "--data", self.data, "--web", "127.0.0.1:0", namespace=self.b, **self.more,
            **self.settings(PIGEONPOST_STORE_COMMIT="0.05"),
        )  # fmt: skip
        Forked(
            self, "node.py", "--simulate", "--name", "basement", "--data", self.card, "--every", "0.05",
            namespace=self.a, **self.more,
            **self.settings(PIGEONPOST_NODE_TOKEN=self.token, PIGEONPOST_ANNOUNCE_EVERY="1"),
        )  # fmt: skip
        server.logs("collecting from 10.77.0.1:5003")
        wait_until(lambda: self.rows() > 4)
        # As if a router assigned another address: the connection is not closed, but no data arrives.
        self.ip("-n", self.a, "addr", "flush", "dev", self.dev_a, "scope", "global")
        self.ip("-n", self.a, "addr", "add", "10.77.0.9/24", "dev", self.dev_a)
        server.logs("node basement was discovered at 10.77.0.9:5003")
        before = self.rows()
        wait_until(
            lambda: self.rows() > before + 10, "rows by the new address"
        )  # after 1 s, or 11 s with the real intervals


@long
class NetworksAtFullLength(Networks):
    """The same with the real intervals of the programs."""

    more = {"constants": PATIENT}


def setUpModule():
    use_memory_disk()
    logging.disable(logging.CRITICAL)


def tearDownModule():
    logging.disable(logging.NOTSET)


if __name__ == "__main__":
    unittest.main()
