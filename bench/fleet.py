"""Many simulated nodes in one cheap process, from which the server collects in benchmarks.

    python3 -m bench.fleet --nodes 100 --samples 30000                    a backlog, in columns
    python3 -m bench.fleet --nodes 100 --samples 5000 --per-line 500      a backlog, in arrays of samples
    python3 -m bench.fleet --nodes 100 --rate 10 --seconds 30             live samples

The program prints the port on which all nodes listen (each connection is served as the next node), and finally one line
of JSON. It implements the node's part of docs/protocol.md with lines prepared in advance. On a two-core machine, the
second core is then almost entirely available to the server. An ERROR, or an ACK of samples that were never sent, ends
the program.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import selectors
import socket
import time
from typing import Any

from pigeonpost.core.clock import rfc3339

WINDOW = 5_000  # samples; used unless the server announces another window
COLUMN_SAMPLES = 4_096  # maximum in one line
LINE_BYTES = 65_000  # maximum length of a line
_SEND_BYTES = 256 << 10
_SENSORS = ("temperature", "light", "humidity", "pressure", "cpu_temperature", "co2", "wind", "rain", "voltage", "load")


class FakeNode:
    """Session of one node over a non-blocking socket."""

    def __init__(self, sock: socket.socket, number: int, options: argparse.Namespace) -> None:
        self.sock = sock
        self.name = f"n{number:04d}"
        self.epoch = os.urandom(8).hex()
        self.started = False
        self.sent = self.acked = 0
        self.unsent = memoryview(b"")
        self._window = WINDOW
        self._speaks_columns = not (options.per_line or options.rate)
        self._names = _SENSORS[: options.values]
        self._queued = b""  # messages to send between two lines of samples
        self._part = b""
        self.latencies: list[float] = []
        self._taken: list[float] = []
        first_ms = 1_795_000_000_000 + number
        lines: list[bytes] = []
        self._offsets: list[tuple[int, int]] = []  # last seq of a line, and its end in the block
        end = 0
        for last, text in self._texts(options, first_ms):
            lines.append(f"SENSORS {self.epoch} {text}\n".encode())
            end += len(lines[-1])
            self._offsets.append((last, end))
        self._block = memoryview(b"".join(lines))
        self._lines_sent = self._at = 0

    def _texts(self, options: argparse.Namespace, first_ms: int) -> Any:
        """Yield the last sequence number of each line, and its samples."""
        if options.per_line:
            for first in range(1, options.samples + 1, options.per_line):
                last = min(first + options.per_line - 1, options.samples)
                yield last, f"[{','.join([_sample(seq, first_ms, self._names) for seq in range(first, last + 1)])}]"
            return
        first, count = 1, min(COLUMN_SAMPLES, LINE_BYTES // (6 + 6 * len(self._names)))
        while first <= options.samples:
            last = min(first + count - 1, options.samples)
            yield last, _columns(first, last, first_ms, self._names)
            first = last + 1

    def receive(self) -> bool:
        """Read messages and queue the replies. Return False when the connection is closed."""
        block = self.sock.recv(65_536)
        if not block:
            return False
        *lines, self._part = (self._part + block).split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"ACK":
                self._take_ack(int(rest.split(b" ")[1]))
            elif word == b"HELLO":
                if self._speaks_columns:
                    self._window = json.loads(rest)["window"]
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
            "sensors": [{"name": name, "unit": "" if name == "light" else "°C"} for name in self._names],
            "time": rfc3339(time.time_ns() // 1_000_000), "columns": self._speaks_columns,
        }  # fmt: skip

    def say(self, words: str, content: dict[str, Any]) -> None:
        """Queue a message that begins with `words`, followed by `content` as JSON."""
        self._queued += f"{words} {json.dumps(content)}\n".encode()

    def take_live(self, now_s: float) -> None:
        """Take a sample now, at the monotonic time `now_s`, and queue it."""
        self._taken.append(now_s)
        self.sent += 1
        text = _sample(self.sent, int(time.time() * 1000), self._names, 0)
        self._queued += f"SENSORS {self.epoch} [{text}]\n".encode()

    def send(self) -> bool:
        """Send queued messages, and samples up to the window. Return True if the socket does not accept all of them."""
        while True:
            if not self.unsent:
                self.unsent = self._next()
            if not self.unsent:
                return False
            try:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
            except BlockingIOError:
                return True

    def _next(self) -> memoryview:
        """Return the bytes to send next: complete lines."""
        if self._queued:
            data, self._queued = self._queued, b""
            return memoryview(data)
        start = self._at
        if self.started:
            while (
                self._lines_sent < len(self._offsets)
                and self._at - start < _SEND_BYTES
                and self._offsets[self._lines_sent][0] - self.acked <= self._window
            ):
                self.sent, self._at = self._offsets[self._lines_sent]
                self._lines_sent += 1
        return self._block[start : self._at]


def _value(name: str, seq: int) -> str:
    return str(seq * 37 % 1024) if name == "light" else f"{20 + seq % 97 * 0.11:.2f}"


def _sample(seq: int, first_ms: int, names: tuple[str, ...], step_ms: int = 10_000) -> str:
    values = ",".join([f'"{name}":{_value(name, seq)}' for name in names])
    time_ms = first_ms + seq * step_ms
    return f'{{"seq":{seq},"time":"{rfc3339(time_ms)}","up":{time_ms % 10**9},"values":{{{values}}}}}'


def _columns(first: int, last: int, first_ms: int, names: tuple[str, ...]) -> str:
    """Return the samples `first` to `last` as columns; every seventh timestamp is one millisecond late."""
    times = [first_ms + seq * 10_000 + (seq % 7 == 0) for seq in range(first, last + 1)]
    steps = ",".join([str(after - before) for before, after in itertools.pairwise(times)])
    time_text = f"[{times[0]},{steps}]" if steps else f"[{times[0]}]"
    values = ",".join([
        f'"{name}":[{",".join([_value(name, seq) for seq in range(first, last + 1)])}]' for name in names
    ])  # fmt: skip
    return f'{{"seq":{first},"time":{time_text},"up":{times[0] % 10**9},"values":{{{values}}}}}'


def main() -> None:
    """Run the nodes that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--samples", type=int, default=0, help="samples in each outbox at the start")
    parser.add_argument("--per-line", type=int, default=0, help="samples per array; 0 sends columns")
    parser.add_argument("--values", type=int, default=2, choices=range(1, len(_SENSORS) + 1), help="values per sample")
    parser.add_argument("--rate", type=float, default=0.0, help="live samples per second of each node")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of the live samples, in seconds")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Serve until all samples of every node are acknowledged, or the seconds in `options` are over.

    Print the result.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    prepared = [FakeNode(listener, n, options) for n in range(options.nodes)]
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
            if selector.get_key(node.sock).events != mask:
                selector.modify(node.sock, mask, node)
        total = options.samples * options.nodes
        if began_s and (sum(n.acked for n in nodes) == total if not options.rate else now_s > end_s + 3):
            break
        wait_s = max(0.0, min(next_s - now_s, 0.05)) if options.rate and began_s else 0.05
        for key, events in selector.select(wait_s):
            if key.fileobj is listener:
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                node = prepared[len(nodes)]
                node.sock = sock
                nodes.append(node)
                selector.register(sock, selectors.EVENT_READ, node)
            elif events & selectors.EVENT_READ and not key.data.receive():
                raise SystemExit(f"{key.data.name}: the server closed the connection")
    took_s = time.monotonic() - began_s
    late = sorted(latency for node in nodes for latency in node.latencies)
    print(json.dumps({
        "samples": sum(n.acked for n in nodes), "seconds": round(took_s, 3),
        "cpu_s": round(time.process_time() - cpu_s, 3),
        "per_second": round(sum(n.acked for n in nodes) / took_s),
        "p50_ms": round(late[len(late) // 2] * 1000, 1) if late else None,
        "p99_ms": round(late[len(late) * 99 // 100] * 1000, 1) if late else None,
        "unacked": sum(n.sent - n.acked for n in nodes),
    }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
