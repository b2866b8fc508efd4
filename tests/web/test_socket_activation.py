"""Tests of sockets passed by systemd: they are found and used, and refused if they are not TCP sockets."""

import os
import socket
import unittest
from unittest import mock

from pigeonpost.core.errors import SettingsError
from pigeonpost.web.connection_limits import Connections, Limits
from pigeonpost.web.listener import Listener
from pigeonpost.web.socket_activation import passed_addresses, passed_socket


class Passed(unittest.TestCase):
    def setUp(self):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.sock.close)
        self.address = self.sock.getsockname()
        self.environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}

    def test_address_and_socket_of_a_passed_descriptor(self):
        first = self.sock.fileno()
        os.set_inheritable(first, True)
        self.assertEqual(passed_addresses(self.environment, first), [self.address])
        self.assertFalse(os.get_inheritable(first))  # child processes do not inherit it
        found = passed_socket(self.address, self.environment, first)
        self.addCleanup(found.close)
        self.assertEqual(found.getsockname(), self.address)
        self.assertNotEqual(found.fileno(), first)
        self.assertIsNone(passed_socket(("127.0.0.1", self.address[1] + 1), self.environment, first))

    def test_variables_of_another_process_are_ignored(self):
        for changes in ({"LISTEN_PID": "1"}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "-1"}, {"LISTEN_FDS": "x"}):
            with self.subTest(changes):
                self.assertEqual(passed_addresses({**self.environment, **changes}, self.sock.fileno()), [])
        self.assertEqual(passed_addresses({}, self.sock.fileno()), [])

    def test_socket_of_another_kind_is_refused(self):
        for family, kind in ((socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM)):
            refused = self.assertRaisesRegex(SettingsError, "pigeonpost-server.socket: ListenStream")
            with self.subTest(family=family), socket.socket(family, kind) as other, refused:
                passed_addresses(self.environment, other.fileno())

    def test_descriptor_that_is_not_a_socket_is_refused(self):
        """They caused a traceback."""
        refused = self.assertRaisesRegex(SettingsError, "pigeonpost-server.socket: ListenStream")
        with self.subTest("a file"), open(os.devnull, "rb") as file, refused:
            passed_addresses(self.environment, file.fileno())
        with self.subTest("closed"), refused:
            passed_addresses({**self.environment, "LISTEN_FDS": "999"}, 1 << 20)

    def test_passed_connection_is_refused(self):
        """With Accept=yes, systemd passes a connection."""
        client = socket.create_connection(self.address)
        self.addCleanup(client.close)
        with self.assertRaisesRegex(SettingsError, "Accept must not be set"):
            passed_addresses(self.environment, client.fileno())

    def test_invalid_number_of_sockets_is_ignored(self):
        for count in ("9" * 5000, "\u0661", "1_0", " 1"):
            self.assertEqual(passed_addresses({**self.environment, "LISTEN_FDS": count}, self.sock.fileno()), [])

    def test_listener_uses_the_passed_socket_of_its_address(self):
        limits = Limits()
        with mock.patch("pigeonpost.web.listener.passed_socket", return_value=self.sock):
            listener = Listener(self.address, mock.Mock(), Connections(limits), limits)
        self.addCleanup(listener.server_close)
        self.assertIs(listener.socket, self.sock)
        self.assertEqual((listener.server_address, listener.server_port), (self.address, self.address[1]))


if __name__ == "__main__":
    unittest.main()
