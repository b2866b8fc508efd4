"""Tests of multicast sockets: received datagrams, their limits, and errors without a network."""

import socket
import unittest

from pigeonpost.core import multicast
from pigeonpost.core.addresses import is_group
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.multicast import Drain, Path, listener, speaker
from tests.compat.multicast_bus.support import LOOPBACK, Ear, free_groups
from tests.support import wait_until

HERE = Path(LOOPBACK, 1, True)


class Groups(unittest.TestCase):
    def test_multicast_groups_are_recognised(self):
        for address, right in (
            (("224.0.0.1", 1), True), (("239.255.255.255", 65_535), True), (("223.255.255.255", 1), False),
            (("240.0.0.1", 1), False), (("226.0.0.221", 0), False), (("here", 1), False), (("::1", 1), False),
        ):  # fmt: skip
            self.assertEqual(is_group(address), right, address)

    def test_listener_receives_only_its_group(self):
        (group,) = free_groups(1)
        other = f"239.255.254.{int(group[0].split('.')[3])}", group[1]
        receiver, drain = listener(group, HERE), Drain(10, 100)
        self.addCleanup(receiver.close)
        Ear(self, other).say(b"for others")  # another socket of this machine has joined that group
        sender = speaker(group, HERE)
        self.addCleanup(sender.close)
        sender.send(b"for us")
        self.assertEqual(wait_until(lambda: drain(receiver), "a datagram is received"), [b"for us"])

    def test_loop_option_is_set(self):
        for loop in (True, False):
            sender = speaker(free_groups(1)[0], HERE._replace(loop=loop))
            self.addCleanup(sender.close)
            self.assertEqual(sender.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP), loop)

    def test_ttl_is_set(self):
        for ttl in (0, 2, 255):
            sender = speaker(free_groups(1)[0], HERE._replace(ttl=ttl))
            self.addCleanup(sender.close)
            self.assertEqual(sender.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL), ttl)

    def test_interface_can_be_chosen_by_its_name(self):
        (group,) = free_groups(1)
        receiver, sender, drain = listener(group, Path("lo")), speaker(group, Path("lo")), Drain(10, 100)
        self.addCleanup(receiver.close)
        self.addCleanup(sender.close)
        sender.send(b"x")
        self.assertEqual(wait_until(lambda: drain(receiver), "a datagram is received"), [b"x"])

    def test_error_contains_the_reason_and_the_remedy(self):
        for make in (listener, speaker):
            for interface, text in (("nowhere9", "this machine has no interface 'nowhere9'"),
                                    ("192.0.2.77", "set [bus] interface to this machine's address")):  # fmt: skip
                with self.subTest(make=make, interface=interface), self.assertRaises(SettingsError) as caught:
                    make(("226.0.0.221", 7001), Path(interface))
                self.assertIn(f"the multicast group 226.0.0.221:7001 on {interface}: ", str(caught.exception))
                self.assertIn(text, str(caught.exception))


class Drains(unittest.TestCase):
    """Tests of datagrams over a socket pair: complete, in order, without waiting."""

    def make(self):
        return Drain(8, 100)

    def setUp(self):
        self.sender, self.receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.sender.close)
        self.addCleanup(self.receiver.close)
        self.receiver.setblocking(False)

    def test_drain_returns_no_datagrams_if_there_are_none(self):
        self.assertEqual(self.make()(self.receiver), [])

    def test_drain_returns_complete_datagrams_in_order(self):
        drain = self.make()
        for turn in range(3):
            sent = [b"%d %d" % (turn, n) * (n + 1) for n in range(5)]
            for data in sent:
                self.sender.send(data)
            self.assertEqual(drain(self.receiver), sent)

    def test_drain_returns_at_most_its_limit(self):
        drain = self.make()
        for n in range(9):
            self.sender.send(b"%d" % n)
        self.assertEqual(len(drain(self.receiver)), 8)
        self.assertEqual(drain(self.receiver), [b"8"])

    def test_long_datagrams_are_cut_and_empty_ones_kept(self):
        for data in (b"x" * 99, b"", b"y" * 100, b"z" * 101):
            self.sender.send(data)
        self.assertEqual(self.make()(self.receiver), [b"x" * 99, b"", b"y" * 100, b"z" * 100])


class DrainsOneByOne(Drains):
    """The same tests without recvmmsg."""

    def make(self):
        drain = super().make()
        self.assertIsNotNone(drain._call)
        drain._call = None
        return drain


class Buffers(unittest.TestCase):
    def test_listener_requests_a_large_buffer(self):
        receiver = listener(free_groups(1)[0], HERE)
        self.addCleanup(receiver.close)
        with open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:
            most = int(file.read())
        self.assertGreaterEqual(
            receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), min(most, multicast.BUFFER_BYTES)
        )


if __name__ == "__main__":
    unittest.main()
