"""Sockets of groups: who hears what, how much at once, and what is said when there is no network."""

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
    def test_what_is_a_group(self):
        for address, right in (
            (("224.0.0.1", 1), True), (("239.255.255.255", 65_535), True), (("223.255.255.255", 1), False),
            (("240.0.0.1", 1), False), (("226.0.0.221", 0), False), (("here", 1), False), (("::1", 1), False),
        ):  # fmt: skip
            self.assertEqual(is_group(address), right, address)

    def test_a_listener_hears_its_group_alone(self):
        (group,) = free_groups(1)
        other = f"239.255.254.{int(group[0].split('.')[3])}", group[1]
        ear, drain = listener(group, HERE), Drain(10, 100)
        self.addCleanup(ear.close)
        Ear(self, other).say(b"for others")  # somebody on this machine is a member of that one
        mouth = speaker(group, HERE)
        self.addCleanup(mouth.close)
        mouth.send(b"for us")
        self.assertEqual(wait_until(lambda: drain(ear), "it is heard"), [b"for us"])

    def test_whether_this_machine_hears_it_too(self):
        for loop in (True, False):
            mouth = speaker(free_groups(1)[0], HERE._replace(loop=loop))
            self.addCleanup(mouth.close)
            self.assertEqual(mouth.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP), loop)

    def test_the_ttl(self):
        for ttl in (0, 2, 255):
            mouth = speaker(free_groups(1)[0], HERE._replace(ttl=ttl))
            self.addCleanup(mouth.close)
            self.assertEqual(mouth.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL), ttl)

    def test_an_interface_by_its_name(self):
        (group,) = free_groups(1)
        ear, mouth, drain = listener(group, Path("lo")), speaker(group, Path("lo")), Drain(10, 100)
        self.addCleanup(ear.close)
        self.addCleanup(mouth.close)
        mouth.send(b"x")
        self.assertEqual(wait_until(lambda: drain(ear), "it is heard"), [b"x"])

    def test_what_is_wrong_is_named_with_the_remedy(self):
        for make in (listener, speaker):
            for interface, text in (("nowhere9", "this machine has no interface 'nowhere9'"),
                                    ("192.0.2.77", "set [bus] interface to this machine's address")):  # fmt: skip
                with self.subTest(make=make, interface=interface), self.assertRaises(SettingsError) as caught:
                    make(("226.0.0.221", 7001), Path(interface))
                self.assertIn(f"the multicast group 226.0.0.221:7001 on {interface}: ", str(caught.exception))
                self.assertIn(text, str(caught.exception))


class Drains(unittest.TestCase):
    """Datagrams over a socket pair: whole, in order, and none waited for."""

    def make(self):
        return Drain(8, 100)

    def setUp(self):
        self.mouth, self.ear = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.mouth.close)
        self.addCleanup(self.ear.close)
        self.ear.setblocking(False)

    def test_nothing_is_nothing(self):
        self.assertEqual(self.make()(self.ear), [])

    def test_whole_in_order_and_again(self):
        drain = self.make()
        for turn in range(3):
            said = [b"%d %d" % (turn, n) * (n + 1) for n in range(5)]
            for data in said:
                self.mouth.send(data)
            self.assertEqual(drain(self.ear), said)

    def test_so_many_at_a_time(self):
        drain = self.make()
        for n in range(9):
            self.mouth.send(b"%d" % n)
        self.assertEqual(len(drain(self.ear)), 8)
        self.assertEqual(drain(self.ear), [b"8"])

    def test_long_ones_are_cut_and_empty_ones_are_empty(self):
        for data in (b"x" * 99, b"", b"y" * 100, b"z" * 101):
            self.mouth.send(data)
        self.assertEqual(self.make()(self.ear), [b"x" * 99, b"", b"y" * 100, b"z" * 100])


class DrainsOneByOne(Drains):
    """The same where there is no recvmmsg."""

    def make(self):
        drain = super().make()
        self.assertIsNotNone(drain._call)
        drain._call = None
        return drain


class Room(unittest.TestCase):
    def test_a_listener_has_as_large_a_buffer_as_it_gets(self):
        ear = listener(free_groups(1)[0], HERE)
        self.addCleanup(ear.close)
        with open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:
            most = int(file.read())
        self.assertGreaterEqual(ear.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), min(most, multicast.BUFFER_BYTES))


if __name__ == "__main__":
    unittest.main()
