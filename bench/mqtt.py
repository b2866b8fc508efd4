"""Throughput of the MQTT transport: samples from outboxes, through Mosquitto, until the server has them durably.

    python3 -m bench.mqtt                 needs mosquitto, and paho-mqtt for this Python

Real programs: node.py for each node, mosquitto, server.py; two values a sample, all over loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.machine import cpu_s, rss_mib, table
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import UnnumberedSample

SAMPLES = 60_000  # in each outbox
CASES = ((1, "1 node catching up, up to 500 samples a message"), (4, "4 nodes catching up"))


def fill(card: str) -> None:
    """An outbox with samples of an earlier run."""
    ring = Ring(card, 65_536, 128)
    for first in range(1, SAMPLES + 1, ring.most_at_once):
        count = min(ring.most_at_once, SAMPLES + 1 - first)
        taken = [
            UnnumberedSample(
                1_795_188_970_123 + 1000 * n, 1000 * n, True, {"temperature": 20 + n % 50 / 10, "light": n % 1024}, {}
            )
            for n in range(first, first + count)
        ]
        ring.append("0123456789abcdef", first, "fedcba9876543210", taken)


def durable(data: str) -> int:
    """How many of those the server has acknowledged: its marks, of all nodes."""
    try:
        with sqlite3.connect(f"file:{data}/pigeonpost.sqlite3?mode=ro", uri=True) as db:
            return int(db.execute("SELECT total(seq) FROM epochs WHERE epoch = '0123456789abcdef'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # it is only being made


def measure(nodes: int) -> str:
    """One case, from the first commit to the last."""
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "data")
        cards = [os.path.join(folder, f"card{n}") for n in range(nodes)]
        for place in (data, *cards):
            os.mkdir(place)
        for card in cards:
            fill(card)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = str(sock.getsockname()[1])
        environment = {**os.environ, "PIGEONPOST_MQTT_HOST": "127.0.0.1", "PIGEONPOST_MQTT_PORT": port}
        broker = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
        if broker is None:
            raise SystemExit("mosquitto is not installed: sudo apt install mosquitto")
        commands = [
            [broker, "-p", port], [sys.executable, "server.py", "--data", data, "--web", "127.0.0.1:0"],
            *([sys.executable, "node.py", "--simulate", "--name", f"n{n}", "--data", card, "--listen", "127.0.0.1:0"]
              for n, card in enumerate(cards)),
        ]  # fmt: skip
        with open(os.path.join(folder, "log"), "w") as log:
            running = []
            try:
                for command in commands:
                    running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
                    if len(running) < 3:
                        time.sleep(1.0)  # so that the broker listens, and then the server; the nodes start together
                return _watch(data, nodes * SAMPLES, [process.pid for process in running])
            except TimeoutError:
                raise SystemExit(Path(folder, "log").read_text()[-3000:]) from None
            finally:
                for process in running:
                    process.send_signal(signal.SIGTERM)
                for process in running:
                    process.wait(20)


def _watch(data: str, wanted: int, pids: list[int]) -> str:
    give_up_s = time.monotonic() + 300
    began_s, before, busy_s, have = 0.0, 0, [0.0] * len(pids), 0
    while have < wanted:
        if time.monotonic() > give_up_s:
            raise TimeoutError
        have = durable(data)
        if have and not began_s:
            began_s, before, busy_s = time.monotonic(), have, [cpu_s(pid) for pid in pids]
        time.sleep(0.02)
    took_s, count = time.monotonic() - began_s, wanted - before
    used = [(cpu_s(pid) - busy) / count * 1e6 for pid, busy in zip(pids, busy_s)]
    return (
        f"{count / took_s:,.0f} samples/s ({used[1]:.1f} µs CPU a sample on the server, {used[0]:.1f} in the broker,"
        f" {sum(used[2:]):.1f} on the nodes; server {rss_mib(pids[1], peak=True):.0f} MiB at most)"
    )


def main() -> None:
    table("MQTT: samples acknowledged and durable", [(name, measure(nodes)) for nodes, name in CASES])


if __name__ == "__main__":
    main()
