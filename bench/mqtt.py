"""Throughput of the MQTT transport: samples from outboxes through Mosquitto until they are durable on the server.

    python3 -m bench.mqtt                 all rows; requires mosquitto, and paho-mqtt for this Python
    python3 -m bench.mqtt 1node 4nodes    real programs: node.py for each node, mosquitto, server.py
    python3 -m bench.mqtt array100 columns1000
                                          clients that publish bodies that are cheap to make, as in bench.push

Samples of two values; everything over loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.machine import cpu_s, rss_mib, table
from bench.push import CASES, CLIENTS, SECONDS, body_start
from pigeonpost.core.mqtt_client import MqttConnection
from pigeonpost.node.ring_file import Ring
from pigeonpost.node.ring_records import UnnumberedSample

SAMPLES = 60_000  # in each outbox
NODES = {"1node": 1, "4nodes": 4}  # cases with real nodes
# A client can have this number of unacknowledged bodies, or of unacknowledged samples if that is more.
AHEAD = 10
AHEAD_SAMPLES = 5_000


def fill(card: str) -> None:
    """Create an outbox in the folder `card` with samples of an earlier run."""
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
    """Return the number of samples acknowledged by the server with the data folder `data`.

    This is the sum of the high-water marks of all nodes.
    """
    try:
        with sqlite3.connect(f"file:{data}/pigeonpost.sqlite3?mode=ro", uri=True) as db:
            return int(db.execute("SELECT total(seq) FROM epochs WHERE epoch = '0123456789abcdef'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # the database is being created


def publish(case: str, port: int) -> float:
    """Publish bodies to the broker at `port` for SECONDS, and return the samples acknowledged per second.

    `case` is one of CASES. AHEAD and AHEAD_SAMPLES limit the unacknowledged bodies.
    """
    make, size, _ = CASES[case]
    ahead = max(AHEAD * size, AHEAD_SAMPLES)
    counts = [0] * CLIENTS
    began_s = time.monotonic()

    def client(number: int) -> None:
        node, acked, answered = f"node{number}", threading.Condition(), threading.Event()

        def on_message(topic: str, payload: bytes) -> None:
            with acked:
                counts[number] = json.loads(payload)["ack"]
                acked.notify()
            answered.set()

        settings = {("mqtt", key): value for key, value in _SETTINGS.items()} | {("mqtt", "port"): port}
        broker = MqttConnection(settings, node, [f"pigeonpost/{node}/ack"], on_message)
        broker.start()
        while not answered.wait(0.2):  # until the server has subscribed and answers
            broker.publish(f"pigeonpost/{node}/samples", f"{body_start(node)}[]}}".encode())
        body, sent = make(size, "", node)[1], 0
        while time.monotonic() < began_s + SECONDS:
            broker.publish(f"pigeonpost/{node}/samples", body(sent))
            sent += 1
            give_up_s = time.monotonic() + 30
            with acked:
                while counts[number] < sent * size - ahead:
                    assert acked.wait(give_up_s - time.monotonic()), f"{counts[number]} of {sent * size} acknowledged"
        broker.stop(5)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began_s)


_SETTINGS = {"host": "127.0.0.1", "user": "", "password": "", "tls": False, "ca": ""}


def measure(case: str) -> str:
    """Return the throughput of `case` as text; real nodes are measured from the first commit to the last."""
    nodes = NODES.get(case, 0)
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
                    if len(running) <= 2:
                        time.sleep(1.0)  # for the broker, then for the server; the nodes start together
                pids = [process.pid for process in running]
                return _watch(data, nodes * SAMPLES, pids) if nodes else _send(case, int(port), pids)
            except TimeoutError:
                raise SystemExit(Path(folder, "log").read_text()[-3000:]) from None
            finally:
                for process in running:
                    process.send_signal(signal.SIGTERM)
                for process in running:
                    process.wait(20)


def _watch(data: str, total: int, pids: list[int]) -> str:
    give_up_s = time.monotonic() + 300
    began_s, before, busy_s, have = 0.0, 0, [0.0] * len(pids), 0
    while have < total:
        if time.monotonic() > give_up_s:
            raise TimeoutError
        have = durable(data)
        if have and not began_s:
            began_s, before, busy_s = time.monotonic(), have, [cpu_s(pid) for pid in pids]
        time.sleep(0.02)
    took_s, count = time.monotonic() - began_s, total - before
    used = [(cpu_s(pid) - busy) / count * 1e6 for pid, busy in zip(pids, busy_s)]
    return (
        f"{count / took_s:,.0f} samples/s ({used[1]:.1f} µs CPU per sample on the server, {used[0]:.1f} in the broker,"
        f" {sum(used[2:]):.1f} on the nodes; server {rss_mib(pids[1], peak=True):.0f} MiB at most)"
    )


def _send(case: str, port: int, pids: list[int]) -> str:
    before_s = [cpu_s(pid) for pid in pids]
    code = f"import json; from bench.mqtt import publish; print(publish({case!r}, {port}))"
    per_second = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    used = [(cpu_s(pid) - before) / (per_second * SECONDS) * 1e6 for pid, before in zip(pids, before_s)]
    return (
        f"{per_second:,.0f} samples/s ({used[1]:.1f} µs CPU per sample on the server, {used[0]:.1f} in the broker;"
        f" server {rss_mib(pids[1], peak=True):.0f} MiB at most)"
    )


_TITLES = {
    "1node": "one real node with a backlog",
    "4nodes": "four real nodes with a backlog",
    "array100": f"arrays of 100 from {CLIENTS} clients, up to {AHEAD_SAMPLES:,} unacknowledged samples of each",
    "columns1000": f"columns of 1,000 from {CLIENTS} clients, up to {AHEAD} unacknowledged messages of each",
    "columns4096": f"columns of 4,096 from {CLIENTS} clients",
}


def main() -> None:
    """Run the chosen cases and print the table."""
    table(
        "MQTT: acknowledged and durable samples", [(_TITLES[case], measure(case)) for case in sys.argv[1:] or _TITLES]
    )


if __name__ == "__main__":
    main()
