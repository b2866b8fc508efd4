"""A node that pushes over HTTP: node and server are killed repeatedly, on a network that cuts connections."""

import logging
import random
import socket
import threading
import unittest
from unittest import mock

from pigeonpost.core.files import replace_file
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.transports import push_node, push_node_client
from protocol import encode
from tests.faults.house import House, kill_at_random, trial
from tests.support import BOOT, MemoryDisk, free_port, long, rounds, wait_until
from tests.transports.test_push import NodeCase

KILLS = rounds("PIGEONPOST_TEST_PUSH_KILLS", 10, 100)
CUTS = rounds("PIGEONPOST_TEST_PUSH_CUTS", 8, 500)
TOKEN = "0123456789abcdef" * 2


class Network:
    """Carries bytes to the server. Unless it is healthy, it cuts each connection after a limited number of bytes."""

    def __init__(self, port):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.cuts = 0
        self.is_kind = True
        self._to = "127.0.0.1", port
        threading.Thread(target=self._run, daemon=True).start()

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _run(self):
        while True:
            try:
                near, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near):
        try:
            with near, socket.create_connection(self._to) as far:
                left = [1 << 40 if self.is_kind else random.randrange(6000)]
                back = threading.Thread(target=self._copy, args=(far, near, left), daemon=True)
                back.start()
                self._copy(near, far, left)
                back.join()
        except OSError:
            pass  # the server is being killed

    def _copy(self, come, go, left):
        """Carry a limited number of bytes in both directions together, then cut the connection."""
        try:
            while data := come.recv(1 << 16):
                go.sendall(data[: left[0]])
                left[0] -= len(data)
                if left[0] <= 0:
                    self.cuts += 1
                    break
        except OSError:
            pass
        for sock in (come, go):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class PushHouse(House):
    """The server collects from no node; the node pushes its samples through the network."""

    def __init__(self, folder, **options):
        super().__init__(folder, **options)
        port = free_port()
        self.network = Network(port)
        command = self.server.command
        at = command.index("--node")
        self.server.command = [*command[:at], *command[at + 2 :]]
        self.server.command[self.server.command.index("--web") + 1] = f"127.0.0.1:{port}"
        replace_file(str(self.data / "server" / "tokens.json"), f'{{"n": "{TOKEN}"}}'.encode(), mode=0o600)
        self.node.environment |= {
            "PIGEONPOST_PUSH_TO": f"http://127.0.0.1:{self.network.port}", "PIGEONPOST_NODE_TOKEN": TOKEN,
        }  # fmt: skip
        self.opening = encode("AUTH", {"token": TOKEN})

    def settle(self, limit_s=90.0):
        self.network.is_kind = True
        super().settle(limit_s)

    def close(self):
        super().close()
        self.network.close()


class Push(unittest.TestCase):
    @long
    def test_killed_again_and_again(self):
        with trial(f"pushing, {KILLS} times killed", kind=PushHouse, every_s=0.01) as (house, chance):
            kill_at_random(house, KILLS, chance)


class Cut(NodeCase):
    """Both real ends in this process, with a shorter pause before the node tries again."""

    def few_are_due(self):
        """Return True if the samples due fit a connection that is cut early. Otherwise none would ever get through."""
        return self.outbox.ring.last - self.web.ingestor.stored < 10

    def test_cut_again_and_again(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.enterContext(mock.patch.object(push_node, "RETRY_S", 0.005))
        for module in (push_node, push_node_client):
            self.enterContext(mock.patch.object(module, "LONGEST_RETRY_S", 0.02))
        self.outbox = Outbox(Ring("/card", 16_384, 128, MemoryDisk()), BOOT)
        self.open()
        network = Network(self.web.address[1])
        self.addCleanup(network.close)
        network.is_kind = False
        self.start(f"http://127.0.0.1:{network.port}")
        while network.cuts < CUTS:
            self.take(2)
            wait_until(lambda: self.few_are_due() or network.cuts >= CUTS, "samples get through, or are cut")
        network.is_kind = True
        count = self.outbox.ring.last
        self.arrived(count)
        self.assertEqual(self.stored(), list(range(1, count + 1)))
        self.assertEqual(self.web.store.gaps(10), [])
        print(f"pushing, {network.cuts} times cut: accepted {count}, lost 0, repeated 0")


if __name__ == "__main__":
    unittest.main()
