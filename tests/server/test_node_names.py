"""Names of nodes: no address takes another one's, and two senders of one name are noticed."""

import logging
import unittest

from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.clock import Clock, FakeClock
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.server.node_names import MOST_NAMES, RETURNS, RETURNS_S, CopyWatch, NodeNames
from pigeonpost.server.node_status import NodeState
from pigeonpost.storage.models import EpochCommit, HighWaterMark
from pigeonpost.transports.tcp_node import TcpNodeTransport
from pigeonpost.transports.tcp_server import TcpServerTransport
from protocol import IMPORTED
from tests.support import BOOT, LIMIT_S, FakeLedger, MemoryDisk, taken, wait_until


class Link:
    def __init__(self, address, expected="", name=""):
        self.state = NodeState(address, expected)
        self.state.name = name or expected


class Names(unittest.TestCase):
    def setUp(self):
        self.links = []
        self.names = NodeNames(self.links)

    def link(self, address, expected=""):
        self.links.append(Link(address, expected))
        return self.links[-1].state

    def test_the_settings_decide_also_who_comes_later(self):
        bare, named = self.link("192.168.1.30:5003"), self.link("192.168.1.20:5003", "basement")
        self.assertEqual(
            self.names.claim(bare, "basement", True),
            "calls itself basement, which is the node at 192.168.1.20:5003: give it another name (--name), or name it"
            " in the settings",
        )
        self.assertEqual(self.names.claim(named, "basement", False), "")
        self.assertEqual(self.names.claim(bare, "attic", False), "")

    def test_without_the_settings_the_first_has_it(self):
        first, second = self.link("192.168.1.20:5003"), self.link("192.168.1.30:5003")
        self.assertEqual(self.names.claim(first, "basement", False), "")
        first.connected = True
        for is_proven in (False, True):
            self.assertIn("the node at 192.168.1.20:5003", self.names.claim(second, "basement", is_proven))
        self.assertEqual(self.names.claim(first, "basement", False), "")

    def test_an_address_without_a_name_has_some_names_and_no_more(self):
        bare, named = self.link("192.168.1.20:5003"), self.link("192.168.1.30:5003", "attic")
        for k in range(MOST_NAMES):
            self.assertEqual(self.names.claim(bare, f"n{k}", False), "")
        self.assertEqual(
            self.names.claim(bare, "more", False),
            f"calls itself more after {MOST_NAMES} other names: name the node here in the settings",
        )
        self.assertEqual(self.names.claim(bare, "n0", False), "")
        self.assertEqual(self.names.claim(bare, "proven", True), "")
        self.assertEqual(self.names.claim(named, "attic", False), "")

    def test_a_silent_node_keeps_its_name_but_for_who_proves_it(self):
        first, second = self.link("192.168.1.20:5003"), self.link("192.168.1.30:5003")
        self.names.claim(first, "basement", True)
        self.assertIn("calls itself basement", self.names.claim(second, "basement", False))
        self.assertEqual(self.names.claim(second, "basement", True), "")  # it has moved, with its token
        second.connected = True
        self.assertIn("calls itself basement", self.names.claim(first, "basement", True))

    def test_a_link_whose_node_has_another_name_now_leaves_the_old_one(self):
        first, second = self.link("192.168.1.20:5003"), self.link("192.168.1.30:5003")
        self.names.claim(first, "basement", False)
        self.names.claim(first, "attic", False)
        first.connected = True
        self.assertEqual(self.names.claim(second, "basement", False), "")

    def test_two_addresses_of_one_node_may_be_in_the_settings(self):
        for address in ("192.168.1.20:5003", "10.0.0.5:5003"):
            self.assertEqual(self.names.claim(self.link(address, "basement"), "basement", True), "")


class OverTcp(unittest.TestCase):
    """Two nodes that call themselves basement, at two addresses."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.links, self.ledger, self.tokens = [], FakeLedger(), {}
        self.names = NodeNames(self.links)

    def node(self, token=""):
        outbox = Outbox(Ring("/card", 64, 128, MemoryDisk()), BOOT)
        outbox.put(taken())
        outbox.commit()
        key = LinkKey(token) if token else None
        info = NodeInfo("basement", [{"name": "temperature", "unit": "°C"}], 10.0, key, outbox.switch, dict)
        end = TcpNodeTransport(("127.0.0.1", 0), info, outbox, Clock())
        end.start()
        self.addCleanup(end.stop, LIMIT_S)
        return end.address, outbox.epoch

    def collect(self, address, expected=""):
        keys, clock = self.tokens, Clock()
        link = TcpServerTransport(address, expected, "home", self.ledger, keys, clock, names=self.names)
        self.links.append(link)
        link.start()
        self.addCleanup(link.stop, LIMIT_S)
        return link.state

    def test_an_address_without_a_name_does_not_take_another_ones(self):
        (true, epoch), (false, other) = self.node(), self.node()
        owner = self.collect(true)
        wait_until(lambda: owner.connected, "the first is collected from")
        state = self.collect(false)
        wait_until(lambda: "calls itself" in state.fault, "the second is refused")
        self.assertEqual(
            state.fault,
            f"calls itself basement, which is the node at {owner.address}: give it another name (--name), or name it in"
            " the settings",
        )
        self.assertEqual((state.name, state.connected, owner.connected), ("", False, True))
        self.ledger.wait_for(1)
        self.assertEqual((self.ledger.seqs(epoch), self.ledger.seqs(other)), ([1], []))

    def test_nobody_claims_the_name_of_a_node_with_a_token_without_proof(self):
        address, epoch = self.node()
        self.tokens["basement"] = LinkKey("a token of 16 letters or more")
        state = self.collect(address)
        wait_until(lambda: state.fault != "not reached yet", "it is refused")
        self.assertEqual((state.name, state.connected, self.ledger.seqs(epoch)), ("", False, []))


class Copies(unittest.TestCase):
    def setUp(self):
        self.links = [Link("192.168.1.20:5003", "basement"), Link("192.168.1.21:5003", "attic")]
        self.clock = FakeClock()
        self.watch = CopyWatch(self.links, self.clock)

    def commit(self, epoch, node="basement", outbox="0b" * 8, count=1):
        made = EpochCommit(node, outbox, epoch, HighWaterMark(1, 1))
        made.count = count
        self.clock.sleep(10)
        self.watch.on_commit([made])

    def warning(self):
        self.assertEqual(self.links[1].state.warnings, {})
        return self.links[0].state.warnings.get("copy", "")

    def test_two_copies_of_a_card_are_named_with_the_remedy_until_an_hour_after(self):
        for _ in range(RETURNS):
            self.assertEqual(self.warning(), "")
            self.commit("a")
            self.commit("b")
        self.assertRegex(self.warning(), "^two copies of one card send as basement at the same time; give one of them")
        self.clock.sleep(RETURNS_S - 100)
        self.commit("b")
        self.assertNotEqual(self.warning(), "")
        self.clock.sleep(100)
        self.commit("b")
        self.assertEqual(self.warning(), "")

    def test_two_nodes_of_one_name_are_told_from_copies(self):
        for _ in range(RETURNS):
            self.commit("a")
            self.commit("b", outbox="0c" * 8)
        self.assertIn("two programs send as basement", self.warning())

    def test_both_in_every_commit(self):
        for _ in range(RETURNS):
            both = [EpochCommit("basement", "0b" * 8, epoch, HighWaterMark(1, 1)) for epoch in "ab"]
            both[0].count = both[1].count = 1
            self.watch.on_commit(both)
        self.assertNotEqual(self.warning(), "")

    def test_restarts_backlogs_and_what_brings_nothing_new_are_no_copies(self):
        for epoch in "abcdefghijklmnopqrstuvwxyz":  # one start after the other, or a backlog of them
            self.commit(epoch)
        self.commit("y")  # a broker has turned two messages round
        self.commit("z")
        for _ in range(10):
            self.commit("a", count=0)
            self.commit("i", outbox=IMPORTED)
            self.commit("z")
        self.assertEqual(self.warning(), "")


if __name__ == "__main__":
    unittest.main()
