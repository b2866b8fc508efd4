"""Cost of TLS on the TCP link: samples per second, processor time of both ends, and a node's memory.

    python3 -m bench.tls

Both ends run the real code with a token, each in its own process, over loopback. The node holds 100,000 samples of two
values. The server's store only counts them, so that the link alone is measured. The memory is that of
`node.py --simulate`.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import Any

from bench.machine import cpu_s, rss_mib, table
from bench.node import Node
from pigeonpost.auth.link_key import LinkKey
from pigeonpost.core.clock import Clock
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.transports.tcp_node import TcpNodeTransport
from pigeonpost.transports.tcp_server import TcpServerTransport
from pigeonpost.transports.tcp_tls import node_connections, own_certificate
from protocol import Batch

SAMPLES, ROUNDS, LIMIT_S = 100_000, 5, 120.0
_KEY = LinkKey("a token for measurements")


class _Counter:
    """Replacement for the Ingestor that only counts samples."""

    identity = "0" * 16

    def __init__(self) -> None:
        self.count = 0
        self.has_all = threading.Event()

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def submit(self, batch: Batch, urgent: bool = False, limit_s: float | None = None) -> bool:
        self.count += batch.sample_count
        batch.on_committed(batch.epoch, batch.ends[1])
        if self.count >= SAMPLES:
            self.has_all.set()
        return True


def _start_node(folder: str, tls: bool) -> tuple[int, tuple[str, int]]:
    """Return the process and the address of a node with all samples in its outbox in `folder`."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        clock = Clock()
        outbox = Outbox(Ring(folder, 1 << 17, 128), clock.boot_id, 3600.0)
        for n in range(SAMPLES):
            now_ms = clock.wall_ms()
            outbox.put(UnnumberedSample(now_ms, n, True, {"temperature": 20 + n / 7, "light": n % 1024}, {}))
            if not n % 1000:
                outbox.commit()
        outbox.commit()
        sensors = [{"name": "temperature", "unit": "°C"}, {"name": "light", "unit": ""}]
        info = NodeInfo("n", sensors, 1.0, _KEY, outbox.switch, dict)
        connect = {"connect": node_connections(own_certificate(folder, "n"), "")[0]} if tls else {}
        node = TcpNodeTransport(("127.0.0.1", 0), info, outbox, clock, **connect)
        node.start()
        os.write(writer, str(node.address[1]).encode())
        time.sleep(LIMIT_S)
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as file:
        return process, ("127.0.0.1", int(os.read(file.fileno(), 10)))


def speed(tls: bool) -> tuple[float, float, float]:
    """Return the samples per second, and the microseconds of processor time per sample of the node and of the server.

    `tls` selects TLS or plain TCP.
    """
    with tempfile.TemporaryDirectory() as folder:
        process, address = _start_node(folder, tls)
        try:
            ledger = _Counter()
            server = TcpServerTransport(address, "n", "home", ledger, {"n": _KEY}, Clock(), {"n": ""} if tls else {})
            node_s, own_s, began_s = cpu_s(process), time.process_time(), time.monotonic()
            server.start()
            if not ledger.has_all.wait(LIMIT_S):
                raise SystemExit(f"{ledger.count} of {SAMPLES} samples arrived: {server.state.fault}")
            took_s = time.monotonic() - began_s
            own_us = (time.process_time() - own_s) / SAMPLES * 1e6
            node_us = (cpu_s(process) - node_s) / SAMPLES * 1e6
            server.stop(2.0)
            return SAMPLES / took_s, node_us, own_us
        finally:
            os.kill(process, 9)
            os.waitpid(process, 0)


def memory(tls: bool) -> float:
    """Return the resident memory in MiB of a node with a token that one server collects from; with `tls`, over TLS."""
    with tempfile.TemporaryDirectory() as folder:
        if tls:
            with open(os.path.join(folder, "node.toml"), "w", encoding="utf-8") as file:
                file.write("[link]\ntls = true\n")
        config = ("--config", os.path.join(folder, "node.toml")) if tls else ()
        Node(sys.executable, folder, "--name", "n", *config, token="a token for measurements").stop()
        node = Node(sys.executable, folder, "--name", "n", *config, token="a token for measurements")
        host, _, port = node.address.rpartition(":")
        pins = {"n": ""} if tls else {}
        server = TcpServerTransport((host, int(port)), "n", "home", _Counter(), {"n": _KEY}, Clock(), pins)
        server.start()
        time.sleep(2)
        if not server.state.connected:
            raise SystemExit(f"the server does not collect from the node: {server.state.fault}")
        used = rss_mib(node.process.pid)
        server.stop(2.0)
        node.stop()
        return used


def main() -> None:
    """Run the benchmark and print the table."""
    logging.disable(logging.WARNING)  # a stopping server logs each link
    rows = []
    found: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
    for _ in range(ROUNDS):  # in turn, as the machine's speed changes
        for tls in found:
            found[tls].append(speed(tls))
    for tls, rounds in found.items():
        rate, node_us, own_us = sorted(rounds)[ROUNDS // 2]
        slowest, fastest = min(rounds)[0], max(rounds)[0]
        rows.append((
            f"{SAMPLES:,} samples, {'TLS 1.3' if tls else 'plain text'}; median of {ROUNDS} rounds (range)",
            f"{rate:,.0f} samples/s ({slowest:,.0f} to {fastest:,.0f}); processor time per sample:"
            f" node {node_us:.1f} µs, server {own_us:.1f} µs",
        ))  # fmt: skip
    rows += [
        (f"resident memory of a node with a token and a connected server, {'TLS 1.3' if tls else 'plain text'}",
         f"{memory(tls):.1f} MiB") for tls in (False, True)
    ]  # fmt: skip
    table("TLS on the TCP link", rows)


if __name__ == "__main__":
    main()
