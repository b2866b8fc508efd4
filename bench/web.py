"""Throughput of the web page: `/` for one and for many clients, the download of the log, and the memory this takes.

    python3 -m bench.web

A real server with one simulated node; for the download its log is made 1 GiB long. The clients are raw kept-alive
sockets of this module, so that the cost of a client library is not counted.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from bench.machine import rss_mib, table
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import EpochCommit, HighWaterMark
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Sample

_GIB = 1 << 30
_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n"


class Client:
    """A kept-alive connection."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def get(self, request: bytes = _REQUEST) -> int:
        """Send `request`, read the complete response and return its size in bytes."""
        self.sock.sendall(request)
        data = self._rest
        while b"\r\n\r\n" not in data:
            data += self.sock.recv(1 << 16)
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head[:80]
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self.sock.recv(1 << 16)
        self._rest = body[length:]
        return length


def fresh_page_ms(port: int) -> float:
    """Return the median response time in milliseconds of `/` at `port` when the snapshot must be built and rendered."""
    client, times = Client(port), []
    for _ in range(15):
        time.sleep(1.05)
        began_s = time.perf_counter()
        client.get()
        times.append(time.perf_counter() - began_s)
    return sorted(times)[len(times) // 2] * 1000


def requests_per_second(port: int, clients: int, seconds: float = 5.0) -> float:
    """Return the requests per second that `clients` threads reach at `port` during `seconds`."""
    counts = [0] * clients
    end_s = time.monotonic() + seconds

    def ask(number: int) -> None:
        client = Client(port)
        while time.monotonic() < end_s:
            client.get()
            counts[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def from_another_process(port: int, clients: int) -> float:
    """Return the requests per second of `clients` at `port` from another process.

    Threads of this process would delay each other.
    """
    code = f"from bench.web import requests_per_second; print(requests_per_second({port}, {clients}))"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def download(port: int) -> tuple[float, int]:
    """Return the seconds for the complete log from `port`, and its size in bytes."""
    sock = socket.create_connection(("127.0.0.1", port))
    began_s = time.monotonic()
    sock.sendall(b"GET /log.csv HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    buffer, total = bytearray(1 << 20), 0
    while got := sock.recv_into(buffer):
        total += got
    return time.monotonic() - began_s, total


def long_log(data: str) -> None:
    """Make the log of the next run long, by a store in `data` whose samples are not in the log yet."""
    store = SqliteStore(data)
    samples = [
        Sample(seq, 1_795_000_000_000 + seq * 1000, seq, {f"value_{k:02d}": 20.125 + k for k in range(40)}, {}, "")
        for seq in range(1, 20_001)
    ]
    for epoch in range(24):  # 24 x 20,000 x 40 rows of 58 bytes
        epoch_commit = EpochCommit("long", "0" * 16, f"{epoch:016x}", HighWaterMark(20_000, 0))
        epoch_commit.items = [SampleBatch.of(samples)]
        with store.writing(()):
            store.put([epoch_commit], 0, None)
    store.close()


def main() -> None:
    """Run the benchmark and print the table."""
    with tempfile.TemporaryDirectory() as data:
        long_log(data)
        command = [sys.executable, "server.py", "--demo", "--data", data, "--web", "127.0.0.1:0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r":(\d+)/", server.stdout.readline())
            assert found, "the server did not start"
            port = int(found[1])
            time.sleep(3)
            rows = [
                (
                    "`/` of one node, generated again, median",
                    f"{fresh_page_ms(port):.1f} ms, {Client(port).get() / 1000:.1f} kB",
                )
            ]
            rows += [
                (
                    f"`/` unchanged, persistent connections: {clients}",
                    f"{from_another_process(port, clients):,.0f} requests/s",
                )
                for clients in (1, 8)
            ]
            download(port)
            before = rss_mib(server.pid)
            took_s, length = download(port)
            rows.append(("`/log.csv`", f"{length / _GIB:.2f} GiB at {length / took_s / _GIB:.2f} GiB/s"))
            rows.append(("memory of the server before and after it", f"{before:.1f} and {rss_mib(server.pid):.1f} MiB"))
            table("server: web page", rows)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)


if __name__ == "__main__":
    main()
