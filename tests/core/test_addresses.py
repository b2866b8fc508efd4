"""Tests of network addresses as people write them, and of names of machines."""

import os
import unittest
from unittest import mock

from pigeonpost.core import addresses
from pigeonpost.core.addresses import is_loopback, join_address, own_address, own_name, split_address
from protocol import NODE_NAME


class Addresses(unittest.TestCase):
    def test_addresses_are_split_into_host_and_port(self):
        for text, default, pair in (
            ("192.168.1.20:5003", None, ("192.168.1.20", 5003)),
            ("basement.local", 5003, ("basement.local", 5003)),
            ("basement.local:1", 5003, ("basement.local", 1)),
            ("[::1]:5003", None, ("::1", 5003)),
            ("[::]", 5003, ("::", 5003)),
            ("::1", 5003, ("::1", 5003)),
            ("fe80::1%eth0", 5003, ("fe80::1%eth0", 5003)),
            ("[fe80::1%eth0]:1", None, ("fe80::1%eth0", 1)),
            ("[2001:db8::1]", 5003, ("2001:db8::1", 5003)),
            ("küche.local:1", None, ("küche.local", 1)),
            ("0.0.0.0:0", None, ("0.0.0.0", 0)),
            ("a:65535", None, ("a", 65535)),
        ):
            self.assertEqual(split_address(text, default), pair, text)

    def test_joined_addresses_can_be_split_again(self):
        for pair in (("127.0.0.1", 5003), ("::1", 5003), ("basement", 0)):
            self.assertEqual(split_address(join_address(*pair)), pair)

    def test_invalid_addresses_are_refused(self):
        for text in (
            "",
            ":",
            ":5003",
            "a:",
            "a:b",
            "a:-1",
            "a:65536",
            "a",
            "::1",
            "[::1]",
            "a:5003 ",
            "a:٣",
            "[]:1",
            "a:" + "9" * 5000,
        ):
            with self.subTest(text[:20]), self.assertRaises(ValueError) as caught:
                split_address(text)
            self.assertIn("takes HOST:PORT", str(caught.exception))

    def test_error_contains_the_reason(self):
        for text, fault in (
            ("http://10.0.0.5:8080", "without http://"),
            ("basement:99999", "the port must be a number from 0 to 65535"),
            ("basement:http", "the port must be a number from 0 to 65535"),
            ("basement", "the port is missing"),
            ("basement:", "the port is missing"),
            (":5003", "the host is missing"),
            ("pi:5003\n", "the port must be a number from 0 to 65535"),
            ("pi/:5003", "the host must be only a name or an address"),
            ("[::1:5003", "put one pair of brackets around the host"),
            ("[::1]5003", "put one pair of brackets around the host"),
            ("192.168.1.300:5003", "each part of an address is a number up to 255"),
            ("[fe80::1]:5003", "add the network interface: [fe80::1%eth0]:5003"),
            ("[febf::1]:5003", "add the network interface: [febf::1%eth0]:5003"),
            ("[12:34]:5003", "an IPv6 address is like fe80::1%eth0 or [2001:db8::1]:5003"),
        ):
            with self.subTest(text), self.assertRaises(ValueError) as caught:
                split_address(text)
            self.assertEqual(str(caught.exception), f"takes HOST:PORT, as in 192.168.1.20:5003 or [::]:5003 ({fault})")

    def test_loopback_addresses_are_recognised(self):
        for host in ("127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"):
            self.assertTrue(is_loopback(host), host)
        for host in ("192.168.1.1", "10.127.0.0", "::2", "::", "::ffff:10.0.0.1", "fe80::1", "0.0.0.0", ""):
            self.assertFalse(is_loopback(host), host)


class Names(unittest.TestCase):
    def test_own_name_is_always_a_valid_node_name(self):
        for host in ("pi", "Raspberry Pi (küche)", "...", "", "-a-", "x" * 200, "日本", "a.b_c", "x" * 62 + "..x"):
            with (
                mock.patch.object(addresses.socket, "gethostname", lambda host=host: host),
                mock.patch.dict(os.environ),
            ):
                os.environ.pop("BALENA_DEVICE_NAME_AT_INIT", None)
                self.assertTrue(NODE_NAME(own_name()), f"{host!r}: {own_name()!r}")

    def test_name_of_balena_has_priority(self):
        with mock.patch.dict(os.environ, BALENA_DEVICE_NAME_AT_INIT="long sea"):
            self.assertEqual(own_name(), "long-sea")

    def test_own_address_is_an_ipv4_address_or_empty(self):
        self.assertRegex(own_address(), r"^$|^[0-9]+(\.[0-9]+){3}$")


if __name__ == "__main__":
    unittest.main()
