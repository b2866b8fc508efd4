"""Names of nodes: no address can take the name of another one, and two senders with one name are detected."""

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


class NodeNamesTest(unittest.TestCase):
    def setUp(self):
        self.links = []
        self.names = NodeNames(self.links)

    def link(self, address, expected=""):
        self.links.append(Link(address, expected))
        return self.links[-1].state

    def test_settings_have_priority_over_an_earlier_link(self):
        bare, named = self.link("192.168.1.30:5003"), self.link("192.168.1.20:5003", "basement")
        self.assertEqual(
            self.names.claim(bare, "basement", True),
            "reports the name basement, which the node at 192.168.1.20:5003 has: give it another name (--name), or"
            " assign the name in the settings",
        )
        self.assertEqual(self.names.claim(named, "basement", False), "")
        self.assertEqual(self.names.claim(bare, "attic", False), "")

    def test_first_link_has_the_name_without_settings(self):
        first, second = self.link("192.168.1.20:5003"), self.link("192.168.1.30:5003")
        self.assertEqual(self.names.claim(first, "basement", False), "")
        first.connected = True
        for is_proven in (False, True):
            self.assertIn("the node at 192.168.1.20:5003", self.names.claim(second, "basement", is_proven))
        self.assertEqual(self.names.claim(first, "basement", False), "")

    def test_number_of_names_of_an_unconfigured_address_is_limited(self):
        bare, named = self.link("192.168.1.20:5003"), self.link("192.168.1.30:5003", "attic")
        for k in range(MOST_NAMES):
            self.assertEqual(self.names.claim(bare, f"n{k}", False), "")
        self.assertEqual(
            self.names.claim(bare, "more", False),
            f"reports the name more after {MOST_NAMES} other names: assign its name in the settings",
        )
        self.assertEqual(self.names.claim(bare, "n0", False), "")
        self.assertEqual(self.names.claim(bare, "proven", True), "")
        self.assertEqual(self.names.claim(named, "attic", False), "")

    def test_disconnected_node_keeps_its_name_unless_another_proves_the_token(self):
        first, second = self.link("192.168.1.20:5003"), self.link("192.168.1.30:5003")
        self.names.claim(first, "basement", True)
        self.assertIn("reports the name basement", self.names.claim(second, "basement", False))
        self.assertEqual(self.names.claim(second, "basement", True), "")  # it has moved, with its token
        second.connected = True
        self.assertIn("reports the name basement", self.names.claim(first, "basement", True))

    def test_link_whose_node_changed_its_name_releases_the_old_name(self):
        first, second = self.link("192.168.1.20:5003"), self.link("192.168.1.30:5003")
        self.names.claim(first, "basement", False)
        self.names.claim(first, "attic", False)
        first.connected = True
        self.assertEqual(self.names.claim(second, "basement", False), "")

    def test_settings_may_contain_two_addresses_of_one_node(self):
        for address in ("192.168.1.20:5003", "10.0.0.5:5003"):
            self.assertEqual(self.names.claim(self.link(address, "basement"), "basement", True), "")


class NamesOverTcpTest(unittest.TestCase):
    """Two nodes at two addresses report the name basement."""

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

    def test_unconfigured_address_does_not_receive_the_name_of_another_node(self):
        (true, epoch), (false, other) = self.node(), self.node()
        owner = self.collect(true)
        wait_until(lambda: owner.connected, "the first is collected from")
        state = self.collect(false)
        wait_until(lambda: "reports the name" in state.fault, "the second is refused")
        self.assertEqual(
            state.fault,
            f"reports the name basement, which the node at {owner.address} has: give it another name (--name), or"
            " assign the name in the settings",
        )
        self.assertEqual((state.name, state.connected, owner.connected), ("", False, True))
        self.ledger.wait_for(1)
        self.assertEqual((self.ledger.seqs(epoch), self.ledger.seqs(other)), ([1], []))

    def test_name_of_a_node_with_a_token_cannot_be_claimed_without_proof(self):
        address, epoch = self.node()
        self.tokens["basement"] = LinkKey("a token of 16 letters or more")
        state = self.collect(address)
        wait_until(lambda: state.fault != "not reached yet", "it is refused")
        self.assertEqual((state.name, state.connected, self.ledger.seqs(epoch)), ("", False, []))


class CopyWatchTest(unittest.TestCase):
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

    def test_two_copies_of_a_card_cause_a_warning_until_an_hour_after(self):
        for _ in range(RETURNS):
            self.assertEqual(self.warning(), "")
            self.commit("a")
            self.commit("b")
        text = "^two copies of one SD card send under the name basement at the same time; give one of them"
        self.assertRegex(self.warning(), text)
        self.clock.sleep(RETURNS_S - 100)
        self.commit("b")
        self.assertNotEqual(self.warning(), "")
        self.clock.sleep(100)
        self.commit("b")
        self.assertEqual(self.warning(), "")

    def test_two_nodes_with_one_name_are_distinguished_from_copies(self):
        for _ in range(RETURNS):
            self.commit("a")
            self.commit("b", outbox="0c" * 8)
        self.assertIn("two programs send under the name basement", self.warning())

    def test_two_senders_in_each_commit_are_detected(self):
        for _ in range(RETURNS):
            both = [EpochCommit("basement", "0b" * 8, epoch, HighWaterMark(1, 1)) for epoch in "ab"]
            both[0].count = both[1].count = 1
            self.watch.on_commit(both)
        self.assertNotEqual(self.warning(), "")

    def test_restarts_backlogs_and_repeats_cause_no_warning(self):
        for epoch in "abcdefghijklmnopqrstuvwxyz":  # several starts, or a backlog of several starts
            self.commit(epoch)
        self.commit("y")  # a broker has reordered two messages
        self.commit("z")
        for _ in range(10):
            self.commit("a", count=0)
            self.commit("i", outbox=IMPORTED)
            self.commit("z")
        self.assertEqual(self.warning(), "")


if __name__ == "__main__":
    unittest.main()
