"""Durable readings per second: Pigeonpost compared with the usual alternatives, in turns within one run.

    python3 -m bench.beside_peers            three rounds; takes three minutes
    python3 -m bench.beside_peers --rounds 1

Requires mosquitto, influxd (`sudo apt install mosquitto influxdb`) and paho-mqtt for this Python. A reading is one
value.

Pigeonpost server.py, collecting from bench.fleet over TCP. It acknowledges after SQLite's commit, and writes the CSV
           log.
mosquitto  Debian's broker with QoS 1. A program with paho-mqtt receives messages of 100 readings, commits them every
           100 ms to SQLite (WAL, synchronous=FULL), and acknowledges them after the commit.
InfluxDB   1.6, POST /write with 1,000 lines. The response is sent after its WAL is synced.

The senders prepare their messages before the clock starts. Processor time is that of all server processes of a system.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import queue
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bench import ingest
from bench.machine import about, cpu_s

VALUES_PER_SAMPLE = 2
MQTT_READINGS, PER_MESSAGE = 600_000, 100
INFLUX_READINGS, PER_WRITE = 1_000_000, 1_000
_COMMIT_S = 0.1
_LIMIT_S = 120.0


class Figures(NamedTuple):
    """Result of one round: readings per second, and seconds of processor time per million readings."""

    per_second: float
    cpu_s_per_million: float


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", nargs=2, metavar=("PORT", "FILE"), help="run as the program that stores from MQTT")
    options = parser.parse_args()
    if options.store:
        store_from_mqtt(int(options.store[0]), options.store[1])
        return
    found: dict[str, list[Figures]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, measure in CASES.items():  # alternating, because the machine's speed changes from minute to minute
            found[name].append(measure())
            print(f"{name}: {found[name][-1].per_second:,.0f}", file=sys.stderr, flush=True)
    ours = statistics.median(one.per_second for one in found[next(iter(CASES))])
    head = f"durable readings, median (slowest to fastest) of {options.rounds} rounds in turn ({about()})"
    print(f"\n| {head} | readings/s | ratio of the first row to this row | processor time per million |")
    print("|---|---|---|---|")
    for name, rounds in found.items():
        rates = sorted(one.per_second for one in rounds)
        median_rate = statistics.median(rates)
        cpu = statistics.median(one.cpu_s_per_million for one in rounds)
        spread = f"{median_rate:,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})"
        print(f"| {name} | {spread} | {ours / median_rate:.1f} | {cpu:.2f} s |")


# ------------------------------------------------------------------------------------------------------------ ours


def _ours(case: str) -> Figures:
    found = ingest.measure(case)
    readings = found["samples"] * VALUES_PER_SAMPLE
    return Figures(found["per_second"] * VALUES_PER_SAMPLE, found["server_cpu_s"] / readings * 1e6)


# ------------------------------------------------------------------------------------------------------- mosquitto


def _mosquitto() -> Figures:
    import paho.mqtt.client as mqtt

    messages = _mqtt_messages()
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        config = os.path.join(folder, "mosquitto.conf")
        settings = [
            f"listener {port} 127.0.0.1",
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",
            "max_inflight_messages 1000",
        ]
        if os.geteuid() == 0:
            settings.append("user root")
        with open(config, "w") as file:
            file.write("\n".join([*settings, ""]))
        broker = running.enter_context(_program([_command("mosquitto"), "-c", config], port))
        database = os.path.join(folder, "readings.sqlite3")
        with contextlib.closing(sqlite3.connect(database)) as db:
            db.execute("CREATE TABLE reading (node TEXT, sensor TEXT, t_ms INTEGER, value REAL)")
        store = running.enter_context(
            _program([sys.executable, "-m", "bench.beside_peers", "--store", str(port), database])
        )
        client: Any = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="sender")
        client.max_inflight_messages_set(1000)
        client.connect("127.0.0.1", port)
        client.loop_start()
        _wait(lambda: os.path.exists(f"{database}.ready"), "the storing program")
        began_s, before_s = time.monotonic(), cpu_s(broker) + cpu_s(store)
        for message in messages:
            client.publish("readings/n1", message, 1)
        _wait(lambda: _rows(database) >= MQTT_READINGS, "all readings")
        took_s, used_s = time.monotonic() - began_s, cpu_s(broker) + cpu_s(store) - before_s
        client.loop_stop()
    return Figures(MQTT_READINGS / took_s, used_s / MQTT_READINGS * 1e6)


def _mqtt_messages() -> list[str]:
    lines = [f"n1,{'temperature' if n % 2 else 'light'},{1_795_000_000_000 + n * 5000},{20 + n % 97 * 0.11:.2f}"
             for n in range(MQTT_READINGS)]  # fmt: skip
    return ["\n".join(lines[at : at + PER_MESSAGE]) for at in range(0, MQTT_READINGS, PER_MESSAGE)]


def store_from_mqtt(port: int, database: str) -> None:
    """Subscribe to the broker at `port`, and store each message in `database` before it is acknowledged.

    The program follows the manuals of paho-mqtt and sqlite3: commit, then acknowledge.
    """
    import paho.mqtt.client as mqtt

    db = sqlite3.connect(database)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client: Any = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "store", clean_session=False, manual_ack=True)
    client.on_message = lambda *args: waiting.put(args[2])
    client.on_connect = lambda *_: client.subscribe("readings/#", 1)
    client.on_subscribe = lambda *_: open(f"{database}.ready", "w").close()
    client.connect("127.0.0.1", port)
    client.loop_start()
    while True:
        time.sleep(_COMMIT_S)
        messages = []
        while not waiting.empty():
            messages.append(waiting.get())
        rows = [line.split(",") for message in messages for line in message.payload.decode().split("\n")]
        with db:
            db.executemany(
                "INSERT INTO reading VALUES (?, ?, ?, ?)",
                [(node, sensor, int(time_ms), float(value)) for node, sensor, time_ms, value in rows],
            )
        for message in messages:
            client.ack(message.mid, message.qos)


def _rows(database: str) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT coalesce(max(rowid), 0) FROM reading").fetchone()[0])


# -------------------------------------------------------------------------------------------------------- InfluxDB


def _influxdb(clients: int) -> Figures:
    port, other = _free_port(), _free_port()
    bodies = _influx_bodies(clients)
    with tempfile.TemporaryDirectory() as folder:
        config = os.path.join(folder, "influxdb.conf")
        with open(config, "w") as file:
            file.write(f"""reporting-disabled = true
bind-address = "127.0.0.1:{other}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  query-log-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
[monitor]
  store-enabled = false
""")
        with _program([_command("influxd"), "-config", config], port) as influxd:
            _post(http.client.HTTPConnection("127.0.0.1", port), "/query?q=CREATE%20DATABASE%20bench", b"")
            began_s, before_s = time.monotonic(), cpu_s(influxd)
            senders = [threading.Thread(target=_write_all, args=(port, part)) for part in bodies]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()
            took_s, used_s = time.monotonic() - began_s, cpu_s(influxd) - before_s
            stored = _influx_count(port)
    if stored != INFLUX_READINGS:
        raise SystemExit(f"InfluxDB has {stored:,} of {INFLUX_READINGS:,} readings")
    return Figures(INFLUX_READINGS / took_s, used_s / INFLUX_READINGS * 1e6)


def _influx_bodies(clients: int) -> list[list[bytes]]:
    lines = [f"reading,node=n1,sensor={'temperature' if n % 2 else 'light'} value={20 + n % 97 * 0.11:.2f}"
             f" {1_795_000_000_000 + n * 5000}" for n in range(INFLUX_READINGS)]  # fmt: skip
    bodies = ["\n".join(lines[at : at + PER_WRITE]).encode() for at in range(0, INFLUX_READINGS, PER_WRITE)]
    return [bodies[client::clients] for client in range(clients)]


def _write_all(port: int, bodies: list[bytes]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for body in bodies:
        _post(connection, "/write?db=bench&precision=ms", body)


def _post(connection: http.client.HTTPConnection, path: str, body: bytes) -> bytes:
    connection.request("POST", path, body)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status not in (200, 204):
        raise SystemExit(f"InfluxDB: {answer.status} {content.decode()[:200]}")
    return content


def _influx_count(port: int) -> int:
    path = "/query?db=bench&q=SELECT%20count(value)%20FROM%20reading"
    found = json.loads(_post(http.client.HTTPConnection("127.0.0.1", port), path, b""))
    return int(found["results"][0]["series"][0]["values"][0][1])


# -------------------------------------------------------------------------------------------------------- programs


@contextlib.contextmanager
def _program(command: list[str], port: int = 0) -> Iterator[int]:
    """Run a program until the block ends. Yield its process id once it listens on `port`, if not 0."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if port:
            _wait(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, command[0])
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _command(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise SystemExit(f"{name} is not installed: sudo apt install mosquitto influxdb")
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _wait(condition: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > give_up_s:
            raise SystemExit(f"{what} was not ready within {_LIMIT_S:g} s")
        time.sleep(0.02)


CASES: dict[str, Callable[[], Figures]] = {
    "Pigeonpost, one node with a backlog": lambda: _ours("one"),
    "Pigeonpost, 100 nodes with a backlog": lambda: _ours("hundred"),
    "mosquitto QoS 1 + paho-mqtt to SQLite, 100 readings per message": _mosquitto,
    "InfluxDB 1.6, 1,000 lines per write": lambda: _influxdb(1),
    "InfluxDB 1.6, two clients": lambda: _influxdb(2),
}

if __name__ == "__main__":
    main()
