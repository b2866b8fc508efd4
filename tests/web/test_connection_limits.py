"""Tests of the choice of closed connections: silent clients lock out neither browsers nor nodes that push."""

import socket
import unittest

from pigeonpost.transports.push_server import PushServerTransport
from pigeonpost.web.connection_limits import Connections, Limits
from tests.support import LIMIT_S, wait_until
from tests.transports.test_push import body
from tests.web.support import PATIENT, WebHouse, next_response, read_all

OPEN = 6


class FakeConnection:
    def __init__(self, host, waiting_since, is_proven=False):
        self.host, self.waiting_since, self.is_proven = host, waiting_since, is_proven
        self.sending_since = None
        self.request, self.other = socket.socketpair()

    def is_cut(self):
        self.other.setblocking(False)
        try:
            return self.other.recv(1) == b""
        except BlockingIOError:
            return False


class ClosedConnection(unittest.TestCase):
    def setUp(self):
        self.connections = Connections(Limits(open=3))

    def enter(self, *arguments):
        connection = FakeConnection(*arguments)
        self.addCleanup(connection.request.close)
        self.addCleanup(connection.other.close)
        self.assertTrue(self.connections.enter(connection))
        return connection

    def cut_by_one_more(self, *connections):
        self.enter("192.0.2.99", 100.0)
        return [connection.is_cut() for connection in connections]

    def test_longest_waiting_connection_is_closed(self):
        found = [self.enter(f"192.0.2.{n}", since) for n, since in enumerate((5.0, 3.0, 4.0))]
        self.assertEqual(self.cut_by_one_more(*found), [False, True, False])

    def test_connection_of_the_address_with_most_connections_is_closed(self):
        found = [
            self.enter(host, since) for host, since in (("192.0.2.1", 1.0), ("192.0.2.2", 3.0), ("192.0.2.2", 2.0))
        ]
        self.assertEqual(self.cut_by_one_more(*found), [False, False, True])

    def test_authenticated_connection_is_not_closed(self):
        pushing = self.enter("192.0.2.1", 1.0, True)
        silent = [self.enter(f"192.0.2.{n}", float(n)) for n in (2, 3)]
        self.assertEqual(self.cut_by_one_more(pushing, *silent), [False, True, False])

    def test_authenticated_connection_is_closed_if_all_are_authenticated(self):
        found = [self.enter("192.0.2.1", since, True) for since in (2.0, 1.0, 3.0)]
        self.assertEqual(self.cut_by_one_more(*found), [False, True, False])


class CrowdedServer(unittest.TestCase):
    """A running server whose connections are all occupied by silent clients of many addresses, which reconnect."""

    def setUp(self):
        self.house = WebHouse(self, limits=PATIENT._replace(open=OPEN), transports=[PushServerTransport])
        self.token = self.house.tokens.make("attic")

    def crowd(self, said=b""):
        counts = self.house.web._connections.counts
        before = counts()["cut_off"]
        for n in range(3 * OPEN):
            sock = socket.create_connection(self.house.address, LIMIT_S, (f"127.0.2.{n + 1}", 0))
            self.addCleanup(sock.close)
            sock.sendall(said)
        wait_until(lambda: counts()["cut_off"] >= before + 2 * OPEN)

    def head(self, length):
        address = f"{self.house.address[0]}:{self.house.address[1]}"
        return (
            f"POST /api/v1/samples HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n"
            f"Authorization: Bearer {self.token}\r\n\r\n"
        ).encode()

    def test_browser_and_pushing_node_are_served(self):
        for said in (b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: "):
            self.crowd(said)
            self.assertEqual(self.house.request("GET", "/", html=True)[0], 200)
            headers = {"Authorization": f"Bearer {self.token}"}
            self.assertEqual(self.house.request("POST", "/api/v1/samples", headers, body(1, 3))[0], 200)

    def test_slowly_pushing_node_is_not_closed(self):
        data = body(1, 30)
        with socket.create_connection(self.house.address, LIMIT_S) as sock:
            sock.sendall(self.head(len(data)) + data[:100])
            there = self.house.web._connections._all
            wait_until(lambda: any(one.is_proven for one in list(there)), "its head was read")
            self.crowd()
            sock.sendall(data[100:])
            sock.settimeout(LIMIT_S)
            self.assertEqual(next_response(read_all(sock))[0], 200)


if __name__ == "__main__":
    unittest.main()
