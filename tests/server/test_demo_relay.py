"""Relay of the demonstration: it forwards, cuts, stalls and restores connections."""

import socket
import time
import unittest
from unittest import mock

from pigeonpost.server.demo_relay import DemoRelay, LinkState
from tests.support import LIMIT_S, Leftovers, wait_until


class RelayTest(unittest.TestCase):
    def setUp(self):
        leftovers = Leftovers()
        self.addCleanup(leftovers.wait_for_none)
        self.node = socket.create_server(("127.0.0.1", 0))
        self.node.settimeout(LIMIT_S)
        self.addCleanup(self.node.close)
        self.relay = DemoRelay()
        self.address = self.relay.start(self.node.getsockname())
        self.addCleanup(self.relay.stop, LIMIT_S)

    def connect(self):
        near = socket.create_connection(self.address, LIMIT_S)
        self.addCleanup(near.close)
        far, _ = self.node.accept()
        far.settimeout(LIMIT_S)
        self.addCleanup(far.close)
        return near, far

    def is_refused(self):
        try:
            with socket.create_connection(self.address, LIMIT_S):
                return False
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # the relay closed its listener during this attempt
            return False

    def test_bytes_are_forwarded_in_both_directions_without_a_change(self):
        near, far = self.connect()
        content = bytes(range(256)) * 8000  # more than the buffers of the sockets
        for one, other in ((near, far), (far, near)):
            received = bytearray()
            one.setblocking(False)
            left = memoryview(content)
            other.settimeout(0.001)
            give_up_s = time.monotonic() + LIMIT_S
            while len(received) < len(content):
                self.assertLess(time.monotonic(), give_up_s)
                try:
                    left = left[one.send(left) :] if left else left
                except BlockingIOError:
                    pass
                try:
                    received += other.recv(1 << 16)
                except TimeoutError:
                    pass
            self.assertEqual(bytes(received), content)

    def test_end_of_one_side_ends_the_other(self):
        near, far = self.connect()
        near.close()
        with self.assertRaises(ConnectionResetError):
            while far.recv(1):
                pass
            raise ConnectionResetError

    def test_cut_link_resets_both_ends_and_refuses_connections_until_it_is_restored(self):
        ends = self.connect()
        self.relay.set_state(LinkState.CUT)
        for end in ends:
            with self.assertRaises(ConnectionResetError):
                end.recv(1)
        wait_until(self.is_refused, "connections are refused")
        self.relay.set_state(LinkState.WORKING)
        wait_until(lambda: not self.is_refused(), "connections are accepted again")
        self.assertEqual(self.relay.fault, "")

    def test_stalled_link_forwards_nothing_and_loses_nothing(self):
        near, far = self.connect()
        near.sendall(b"before")
        self.assertEqual(far.recv(10), b"before")
        self.relay.set_state(LinkState.STALLED)
        wait_until(lambda: self.relay._listener not in self.relay._selector.get_map(), "the relay has stalled the link")
        near.sendall(b"meanwhile")
        far.settimeout(0.05)
        with self.assertRaises(TimeoutError):
            far.recv(10)
        self.relay.set_state(LinkState.WORKING)
        far.settimeout(LIMIT_S)
        self.assertEqual(far.recv(10), b"meanwhile")

    def test_connection_is_refused_without_a_node_and_leads_to_its_next_address(self):
        self.relay.lead_to(None)
        wait_until(self.is_refused, "connections are refused")
        other = socket.create_server(("127.0.0.1", 0))
        other.settimeout(LIMIT_S)
        self.addCleanup(other.close)
        self.relay.lead_to(other.getsockname())
        wait_until(lambda: not self.is_refused(), "connections are accepted again")
        other.accept()[0].close()

    def test_port_that_another_program_uses_meanwhile_is_a_fault_until_it_is_free(self):
        self.enterContext(mock.patch("pigeonpost.server.demo_relay._RETRY_S", 0.02))
        self.relay.set_state(LinkState.CUT)
        wait_until(self.is_refused, "connections are refused")
        with socket.create_server(self.address):
            self.relay.set_state(LinkState.WORKING)
            wait_until(lambda: "cannot be restored" in self.relay.fault, "the fault is shown")
        wait_until(lambda: not self.relay.fault, "the link works")

    def test_relay_that_is_stopped_in_any_state_leaves_no_socket(self):
        for state in LinkState:
            with self.subTest(state):
                relay = DemoRelay()
                address = relay.start(self.node.getsockname())
                near = socket.create_connection(address, LIMIT_S)
                self.addCleanup(near.close)
                relay.set_state(state)
                relay.stop(LIMIT_S)
                relay.stop(LIMIT_S)
                self.assertFalse(relay._thread.is_alive())
                with self.assertRaises(ConnectionError):
                    socket.create_connection(address, LIMIT_S)


if __name__ == "__main__":
    unittest.main()
