"""A network that cuts, stalls, slows down and repeats, between the real ends of the link.

Both ends run in this process over real sockets, so that a thousand connections take seconds. Only the server's pause
before it reconnects is shortened.
"""

import logging
import random
import select
import socket
import tempfile
import threading
import time
import unittest
from collections import Counter
from unittest import mock

from csvbuffer import CsvLog
from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.clock import Clock
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.server.ingest import Ingestor
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.transports import tcp_server
from pigeonpost.transports.tcp_node import TcpNodeTransport
from pigeonpost.transports.tcp_server import TcpServerTransport
from tests.faults.house import DISK
from tests.support import rounds, stored_samples, wait_until

CUTS = rounds("PIGEONPOST_TEST_NET_CUTS", 6, 1000)


class BadNetwork:
    """A proxy that carries a limited number of bytes on each connection, in one of several ways, and then cuts it."""

    def __init__(self, to: tuple[str, int], chance: random.Random) -> None:
        self._to, self._chance = to, chance
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.cuts = self.replays = self.stalls = 0
        self.ends: Counter[str] = Counter()  # of connections, and how often
        self.is_kind = False
        self._said: list[bytes] = []  # complete SENSORS lines of earlier sessions, for repetition
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with near:
                try:
                    with socket.create_connection(self._to) as far:
                        self.ends[self._carry(near, far)] += 1
                except OSError as error:
                    self.ends[str(error)] += 1
            self.cuts += 1

    def _carry(self, near: socket.socket, far: socket.socket) -> str:
        """Carry bytes in both directions up to the connection's limit. Returns the reason for the end."""
        left = 1 << 60 if self.is_kind else int(self._chance.expovariate(1 / 4000))
        pace = 1 << 16 if self.is_kind else self._chance.choice((1, 7, 100, 1 << 16))  # bytes at a time
        replays = self._chance.random() < 0.6 and not self.is_kind
        seen = b""
        while left > 0:
            ready, _, _ = select.select([near, far], [], [], 0.5)
            if not ready and not self.is_kind:
                return "silence"  # nothing more arrives: a stall ends with the test's cut
            for one, other in ((near, far), (far, near)):
                if one not in ready:
                    continue
                data = one.recv(min(left, pace, 1 << 16))
                if not data:
                    return "closed by the server" if one is near else "closed by the node"
                left -= len(data)
                if one is far:
                    seen = (seen + data)[-(1 << 16) :]
                    if replays and self._said and b"SENSORS" in seen and b"\n" in data:
                        whole = data.rindex(b"\n") + 1  # a complete old line in a new session, between two new lines
                        data = data[:whole] + self._chance.choice(self._said) + data[whole:]
                        self.replays += 1
                        replays = False
                other.sendall(data)
            if self._chance.random() < 0.0005 and not self.is_kind:
                self.stalls += 1
                time.sleep(0.01)
        self._said += [line + b"\n" for line in seen.split(b"\n")[1:-1] if line.startswith(b"SENSORS ")][-5:]
        del self._said[:-50]
        return "cut"


class Network(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=DISK)
        self.addCleanup(folder.cleanup)
        logging.getLogger("pigeonpost.transports.tcp_server").setLevel(logging.CRITICAL)  # it logs every cut
        self.addCleanup(logging.getLogger("pigeonpost.transports.tcp_server").setLevel, logging.NOTSET)
        self.seed = random.randrange(1 << 32)
        self.clock = Clock()
        key = LinkKey("a token of this test alone")
        self.outbox = Outbox(Ring(folder.name, 65_536, 128), self.clock.boot_id)
        self.outbox.start()
        self.addCleanup(self.outbox.stop, 5)
        info = NodeInfo("n", [{"name": "x", "unit": ""}], 0.01, key, self.outbox.switch, dict)
        self.node = TcpNodeTransport(("127.0.0.1", 0), info, self.outbox, self.clock)
        self.node.start()
        self.addCleanup(self.node.stop, 5)
        self.store = SqliteStore(folder.name)
        csv = CsvLog(folder.name, self.store, self.clock)
        csv.start()
        self.ingestor = Ingestor(self.store, csv, self.clock, 0.02)
        self.ingestor.start()
        self.network = BadNetwork(self.node.address, random.Random(self.seed))
        self.addCleanup(self.network.close)
        self.server = TcpServerTransport(self.network.address, "n", "home", self.ingestor, {"n": key}, self.clock)

    def test_a_thousand_cuts(self):
        ended, last = threading.Event(), 0

        def sample() -> None:
            nonlocal last
            while not ended.wait(0.001):
                last += 1
                self.outbox.put(UnnumberedSample(self.clock.wall_ms(), self.clock.up_ms(), True, {"x": last}, {}))

        self.addCleanup(ended.set)
        sampling = threading.Thread(target=sample)
        sampling.start()
        with mock.patch.object(tcp_server, "RETRY_S", 0.005), mock.patch.object(tcp_server, "LONGEST_RETRY_S", 0.01):
            self.server.start()
            try:
                wait_until(
                    lambda: self.network.cuts >= CUTS and self.network.replays, f"seed {self.seed}: {CUTS} cuts", 600
                )
            finally:
                print(f"{last} samples; {dict(self.network.ends.most_common(8))}")
            ended.set()
            sampling.join()
            self.network.is_kind = True
            wait_until(lambda: self.ingestor.stored >= last, f"seed {self.seed}: all {last} are stored", 60)
        self.server.stop(5)
        self.ingestor.stop(5)
        stored = [point.values["x"] for point in stored_samples(self.store.every_batch())]
        self.assertEqual(len(stored), last)
        self.assertEqual(sorted(stored), list(range(1, last + 1)))
        self.assertEqual(list(self.store.verify()), [])
        self.assertEqual(self.store.gaps(-1), [])
        print(f"{self.network.cuts} cuts, {self.network.replays} old lines said again, {self.network.stalls} stalls:"
              f" accepted {last}, lost 0, repeated 0, came again {self.ingestor.repeated}")  # fmt: skip


if __name__ == "__main__":
    unittest.main()
