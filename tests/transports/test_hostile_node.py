"""A hostile node on TCP and a real server: the answers, what the pages show, and that other nodes are not affected."""

import json
import socket
import threading
import unittest

from pigeonpost.core.clock import Clock, rfc3339
from tests.page_support import Server, use_memory_disk
from tests.support import LIMIT_S, wait_until

GREETING = {
    "link": 1, "node": "evil", "outbox": "00000000000000aa", "every": 1.0, "sensors": [], "held": [],
}  # fmt: skip


def setUpModule():
    use_memory_disk()


class HostileNode:
    """Waits for a server and sends given lines."""

    def __init__(self, test):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(LIMIT_S)
        test.addCleanup(self._listener.close)
        self._test = test
        self.at = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def talk(self, *lines, until, **hello):
        """Begin a session with the next server, and send `lines`. Return its first line that contains `until`."""
        connection, _ = self._listener.accept()
        connection.settimeout(LIMIT_S)
        file = connection.makefile("rwb")
        self._test.addCleanup(connection.close)
        self._test.addCleanup(file.close)
        file.readline()
        lines = [f"HELLO {json.dumps({**GREETING, 'time': rfc3339(Clock().wall_ms()), **hello})}", *lines]
        # Read the server's lines at the same time: otherwise each end may wait until the other one reads.
        sender = threading.Thread(target=self._send, args=(file, lines))
        sender.start()
        self._test.addCleanup(sender.join)
        for line in file:
            if until in line.decode():
                return line.decode()
        raise AssertionError(f"the server closed without {until}")

    @staticmethod
    def _send(file, lines):
        try:
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
        except OSError:
            pass  # the server has closed the connection


def sample(seq, values, **more):
    return {"seq": seq, "time": rfc3339(Clock().wall_ms()), "up": seq, "values": values, **more}


class Hostile(unittest.TestCase):
    def setUp(self):
        self.node = HostileNode(self)
        self.server = Server(self, "--node", self.node.at)
        self.addCleanup(self.server.kill)

    def health(self):
        return json.loads(self.server.get("/api/v1/nodes/evil")[1])

    def test_huge_gaps_end_the_session_and_are_shown(self):
        gaps = [f'GAP {epoch:016x} {{"from":1,"to":999999999999999999,"why":"x"}}' for epoch in range(10)]
        line = self.node.talk(*gaps, until="ERROR")
        self.assertIn("ERROR bad-argument", line)
        self.assertIn("a gap can have at most 1,000,000,000,000 samples", line)
        for path in ("/", "/metrics", "/api/v1/nodes", "/gaps", "/nodes/evil"):
            self.assertEqual(self.server.get(path)[0], 200, path)
        self.assertIn(
            "its samples are refused: a gap can have", wait_until(lambda: self.health()["warnings"], "warned")[0]
        )
        self.assertIn("its samples are refused", self.server.get("/nodes/evil")[1])

    def test_values_of_too_many_channels_are_dropped_and_shown(self):
        lines = [
            f"SENSORS 00000000000000e1 {json.dumps([sample(n, {f'n{n}_{k}': 1 for k in range(2000)})])}"
            for n in range(1, 11)
        ]
        self.node.talk(*lines, until="ACK 00000000000000e1 10")
        words = "a node can ever have at most 1024 channels"  # the limit for channels of earlier commits
        found = wait_until(lambda: words in str((about := self.health())["warnings"]) and about, "warned")
        self.assertEqual((found["samples"], found["missing"]), (4, 6))
        self.assertEqual(json.loads(self.server.get("/gaps.json")[1])["gaps"][0]["why"], "refused")

    def test_a_long_status_is_not_kept(self):
        details = json.dumps({"time": rfc3339(Clock().wall_ms()), "held": 3, "more": ["x" * 100] * 100})
        epoch = "00000000000000e1"
        self.node.talk(
            f"STATUS ON - {details}", f"SENSORS {epoch} {json.dumps([sample(1, {'t': 1})])}", until=f"ACK {epoch} 1"
        )
        self.assertEqual(self.health()["details"], {})
