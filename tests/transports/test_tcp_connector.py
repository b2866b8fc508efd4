"""Non-blocking connect: each address of a host is tried in turn."""

import select
import socket
import unittest
from unittest import mock

from pigeonpost.core.clock import Clock
from pigeonpost.transports.connection_loop import ConnectionLoop, LoopMember
from pigeonpost.transports.tcp_connector import Connector
from tests.support import LIMIT_S


class ConnectingMember(LoopMember):
    """Makes one connection and keeps the result."""

    def __init__(self, loop, address):
        self.loop, self.address = loop, address
        self.connector = self.sock = self.error = None

    def serve(self, events):
        self.connector = self.connector or Connector(self.address, self.loop, self)
        self.sock = self.connector.step()
        if self.sock is not None:
            self.loop.remove(self)

    def fail(self, error):
        self.error = error
        self.loop.remove(self)


class Connecting(unittest.TestCase):
    def setUp(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.address = self.listener.getsockname()

    def reach(self, found):
        """Connect to a host for which the look-up returns these addresses or raises this error."""
        loop = ConnectionLoop(Clock())
        outcome = mock.Mock(side_effect=[found])
        loop.lookup = mock.Mock(find=lambda address, answer: answer(outcome))
        member = ConnectingMember(loop, ("basement", 5003))
        loop.add(member)
        self.assertTrue(loop.wait_for_end(member, LIMIT_S))
        if member.sock:
            self.addCleanup(member.sock.close)
        return member

    def test_connected_socket_is_passed_to_the_owner(self):
        member = self.reach([(socket.AF_INET, self.address)])
        self.assertEqual(member.sock.getpeername(), self.address)
        self.assertEqual(member.watched_fd, -1)
        far, _ = self.listener.accept()
        with far:
            member.sock.send(b"x")
            self.assertEqual(far.recv(1), b"x")

    def test_addresses_are_tried_in_turn(self):
        found = [(socket.AF_INET, ("127.0.0.1", 1)), (socket.AF_INET6, ("::1", 1)), (socket.AF_INET, self.address)]
        tried, begin = [], Connector._begin

        def note(connector, family, where):
            tried.append((family, where))
            begin(connector, family, where)

        with mock.patch.object(Connector, "_begin", note):
            self.assertEqual(self.reach(found[:]).sock.getpeername(), self.address)
        self.assertEqual(tried, found)

    def test_error_of_the_last_address_is_raised(self):
        member = self.reach([(socket.AF_INET, ("127.0.0.1", 1)), (socket.AF_INET, ("127.0.0.1", 2))])
        self.assertEqual(member.error.strerror, "Connection refused")
        self.assertIsInstance(self.reach(socket.gaierror(-2, "Name or service not known")).error, socket.gaierror)
        self.assertIn("no address", str(self.reach([]).error))

    def test_close_abandons_the_attempt(self):
        loop, member = ConnectionLoop(Clock()), LoopMember()
        loop._epoll = select.epoll()
        self.addCleanup(loop._epoll.close)
        loop.lookup = mock.Mock(find=lambda address, answer: answer(lambda: [(socket.AF_INET, self.address)]))
        connector = Connector(("basement", 5003), loop, member)
        with mock.patch.object(Connector, "_is_connected", lambda _: False):
            self.assertIsNone(connector.step())
        sock = connector._sock
        connector.close()
        connector.close()
        self.assertEqual((sock.fileno(), member.watched_fd, loop._watched), (-1, -1, {}))


if __name__ == "__main__":
    unittest.main()
