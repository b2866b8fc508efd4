"""Many nodes in one cheap process: what the server's benchmarks collect from.

    python3 -m bench.fleet --nodes 100 --samples 5000 --per-line 500      catching up
    python3 -m bench.fleet --nodes 100 --rate 10 --seconds 30             live

It prints the port on which all of them listen (each connection is served as the next node), and at the end one line
of JSON. It speaks the node's part of docs/protocol.md with lines made beforehand, so that on a two-core machine the
second core is nearly all the server's. It checks what it is told: an ACK beyond what was sent, or an ERROR, ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import time
from typing import Any

from pigeonpost.core.clock import rfc3339

WINDOW = 5_000


class FakeNode:
    """One node's conversation, over a non-blocking socket."""

    def __init__(self, sock: socket.socket, number: int, samples: int, per_line: int) -> None:
        self.sock = sock
        self.name = f"n{number:04d}"
        self.epoch = os.urandom(8).hex()
        self.started = False
        self.sent = self.acked = 0
        self.unsent = b""
        self._part = b""
        self._offsets: list[tuple[int, int]] = []  # last seq of a line, and where it ends in the block
        self._block = b""
        self._at = 0
        self.latencies: list[float] = []
        self._taken: list[float] = []
        first_ms = 1_795_000_000_000 + number
        for first in range(1, samples + 1, per_line):
            last = min(first + per_line - 1, samples)
            texts = [_sample(seq, first_ms) for seq in range(first, last + 1)]
            self._block += f"SENSORS {self.epoch} [{','.join(texts)}]\n".encode()
            self._offsets.append((last, len(self._block)))
        self._lines_sent = 0

    def receive(self) -> bool:
        """Read and answer; False when the connection has ended."""
        block = self.sock.recv(65_536)
        if not block:
            return False
        *lines, self._part = (self._part + block).split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"ACK":
                self._take_ack(int(rest.split(b" ")[1]))
            elif word == b"HELLO":
                self.say("HELLO", self._hello())
            elif word == b"RESUME":
                self.started = True
            elif word == b"CHECK":
                self.say("STATUS ON -", {})
            elif word == b"ERROR":
                raise SystemExit(f"{self.name}: {line.decode()}")
        return True

    def _take_ack(self, seq: int) -> None:
        if seq > self.sent:
            raise SystemExit(f"{self.name}: ACK {seq}, but only {self.sent} were sent")
        now = time.monotonic()
        if self._taken:
            self.latencies += [now - taken for taken in self._taken[self.acked : seq]]
        self.acked = max(self.acked, seq)

    def _hello(self) -> dict[str, Any]:
        last = self._offsets[-1][0] if self._offsets else 0
        return {
            "link": 1, "node": self.name, "outbox": self.epoch, "held": [[self.epoch, 1, last, 1]], "every": 10.0,
            "sensors": [{"name": "temperature", "unit": "°C"}, {"name": "light", "unit": "counts"}],
            "time": rfc3339(time.time_ns() // 1_000_000),
        }  # fmt: skip

    def say(self, words: str, content: dict[str, Any]) -> None:
        self.unsent += f"{words} {json.dumps(content)}\n".encode()

    def take_live(self, now_s: float) -> None:
        """Take a sample now and send it."""
        self._taken.append(now_s)
        self.sent += 1
        self.unsent += f"SENSORS {self.epoch} [{_sample(self.sent, int(time.time() * 1000), 0)}]\n".encode()

    def send(self) -> bool:
        """Send what the window allows; whether more would go if the socket took it."""
        if self.started:
            start = self._at
            while self._lines_sent < len(self._offsets) and self._offsets[self._lines_sent][0] - self.acked <= WINDOW:
                self.sent, self._at = self._offsets[self._lines_sent]
                self._lines_sent += 1
            if self._at > start:
                self.unsent += self._block[start : self._at]
        if self.unsent:
            try:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
            except BlockingIOError:
                pass
        return bool(self.unsent)


def _sample(seq: int, first_ms: int, step_ms: int = 10_000) -> str:
    values = f'{{"temperature":{20 + seq % 97 * 0.11:.2f},"light":{seq * 37 % 1024}}}'
    time_ms = first_ms + seq * step_ms
    return f'{{"seq":{seq},"time":"{rfc3339(time_ms)}","up":{time_ms % 10**9},"values":{values}}}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--samples", type=int, default=0, help="that each node holds when it is connected")
    parser.add_argument("--per-line", type=int, default=500)
    parser.add_argument("--rate", type=float, default=0.0, help="live samples a second of each node")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long live samples are taken")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Serve until every node is wholly acknowledged (or the seconds are over), then print the result."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    chooser = selectors.DefaultSelector()
    chooser.register(listener, selectors.EVENT_READ)
    prepared = [FakeNode(listener, n, options.samples, options.per_line) for n in range(options.nodes)]
    print(listener.getsockname()[1], flush=True)
    nodes: list[FakeNode] = []
    began_s = end_s = next_s = 0.0
    while True:
        if nodes and all(node.started for node in nodes) and len(nodes) == options.nodes and not began_s:
            began_s = next_s = time.monotonic()
            cpu_s = time.process_time()
            end_s = began_s + options.seconds
        now_s = time.monotonic()
        if options.rate and began_s and now_s >= next_s and now_s < end_s:
            next_s += 1 / options.rate / len(nodes)
            nodes[round((next_s - began_s) * options.rate * len(nodes)) % len(nodes)].take_live(now_s)
        for node in nodes:
            more = node.send() if began_s or not node.started else False
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if more else 0)
            if chooser.get_key(node.sock).events != mask:
                chooser.modify(node.sock, mask, node)
        total = options.samples * options.nodes
        if began_s and (sum(n.acked for n in nodes) == total if not options.rate else now_s > end_s + 3):
            break
        wait_s = max(0.0, min(next_s - now_s, 0.05)) if options.rate and began_s else 0.05
        for key, _ in chooser.select(wait_s):
            if key.fileobj is listener:
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                node = prepared[len(nodes)]
                node.sock = sock
                nodes.append(node)
                chooser.register(sock, selectors.EVENT_READ, node)
            elif not key.data.receive():
                raise SystemExit(f"{key.data.name}: the server closed the connection")
    took_s = time.monotonic() - began_s
    late = sorted(latency for node in nodes for latency in node.latencies)
    print(json.dumps({
        "samples": sum(n.acked for n in nodes), "seconds": round(took_s, 3),
        "cpu_s": round(time.process_time() - cpu_s, 3),
        "a_second": round(sum(n.acked for n in nodes) / took_s),
        "p50_ms": round(late[len(late) // 2] * 1000, 1) if late else None,
        "p99_ms": round(late[len(late) * 99 // 100] * 1000, 1) if late else None,
        "unacked": sum(n.sent - n.acked for n in nodes),
    }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
