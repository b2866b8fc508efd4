"""The front page of many nodes: its size, and the time to render it while samples arrive.

    python3 -m bench.page --nodes 3000

A web server runs in its own process, with simulated nodes that send one sample every ten seconds. Some of the nodes are
disconnected, and some have a failing sensor. The client keeps its connection open.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from bench.machine import rss_mib, table
from bench.web import Client
from csvbuffer import CsvLog
from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.auth.users import Users
from pigeonpost.core.clock import Clock
from pigeonpost.core.faults import Faults
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.disk_usage import DiskUsageMonitor
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.quality import QualityChecks
from pigeonpost.storage.models import EpochCommit, HighWaterMark
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.views.context import WebContext
from protocol import Batch, Sample
from webui import WebInterface

_UNITS = {"temperature": "°C", "light": "counts"}
_EVERY_S = 10.0
_LOST, _FAILING = 100, 150  # one in 100 nodes is disconnected, one in 150 has a failing sensor
_HOURS = 24  # of stored history, one sample every ten minutes
_ADDRESSES = ("/", "/?page=2", "/?q=n0123")


class _Link:
    """A node as the pages see it, without a connection."""

    def __init__(self, number: int, now_ms: int) -> None:
        self.state = NodeState(f"10.0.{number >> 8}.{number & 255}:5003", f"n{number:04d}")
        self.state.connected = number % _LOST != _LOST - 1
        self.state.fault = "" if self.state.connected else "cannot be reached: Connection refused"
        self.state.on, self.state.every_s, self.state.since_ms = True, _EVERY_S, now_ms - 3_600_000
        self.state.sensors = [{"name": name, "unit": unit} for name, unit in _UNITS.items()]
        self.state.details = {"held": 65_536, "slots": 65_536}
        self.is_failing = number % _FAILING == 7

    def ask(self, word: str, *args: bool, limit_s: float = 5.0) -> bool:
        return False


def _fill(store: SqliteStore, links: list[_Link], now_ms: int) -> None:
    """Store the samples of a day for each node."""
    step_ms = 600_000
    for link in links:
        samples = [_sample(seq, now_ms - (_HOURS * 6 - seq) * step_ms, link) for seq in range(1, _HOURS * 6)]
        epoch_commit = EpochCommit(link.state.name, "0" * 16, "1" * 16, HighWaterMark(len(samples), samples[-1].up_ms))
        epoch_commit.units, epoch_commit.items = _UNITS, [SampleBatch.of(samples)]
        with store.writing(()):
            store.put([epoch_commit], now_ms, None)


def _sample(seq: int, time_ms: int, link: _Link) -> Sample:
    values: dict[str, Any] = {"temperature": 20 + seq % 97 * 0.11, "light": seq * 37 % 1024}
    errors = {}
    if link.is_failing:
        values["temperature"], errors = None, {"temperature": "no permission to open /dev/spidev0.0"}
    return Sample(seq, time_ms, time_ms, values, errors, "")


def _send(ingestor: Ingestor, links: list[_Link], clock: Clock, stopping: threading.Event) -> None:
    """Submit one sample of each node every ten seconds, in ten portions per second."""
    connected = [link for link in links if link.state.connected]
    seqs = dict.fromkeys((link.state.name for link in links), _HOURS * 6 - 1)
    portions, place = int(_EVERY_S * 10), 0
    while not stopping.wait(0.1):
        for link in connected[place % portions :: portions]:
            name = link.state.name
            seqs[name] += 1
            sample = _sample(seqs[name], clock.wall_ms(), link)
            ingestor.submit(
                Batch(name, "0" * 16, "1" * 16, None, SampleBatch.of([sample]), None, _UNITS, lambda *_: None, print)
            )
        place += 1


@contextlib.contextmanager
def _served(count: int) -> Iterator[int]:
    """Serve the pages of `count` nodes until the block ends. Yield the port."""
    with tempfile.TemporaryDirectory() as data, contextlib.ExitStack() as stack:
        clock = Clock()
        links = [_Link(number, clock.wall_ms()) for number in range(count)]
        store = SqliteStore(data)
        stack.callback(store.close)
        _fill(store, links, clock.wall_ms())
        csv = CsvLog(data, store, clock)
        stack.callback(csv.close)
        csv.start()
        ingestor, quality, faults = Ingestor(store, csv, clock), QualityChecks(links), Faults()
        ingestor.subscribe(quality.on_commit)
        app = WebContext(
            name="bench", data=data, clock=clock, store=store, csv=csv, ingestor=ingestor, links=links,
            users=Users(data), api_tokens=ApiTokens(data, faults, clock), control="",
            started_ms=clock.wall_ms(), names=(), stop=lambda reason: None,
            disk=DiskUsageMonitor(data, clock), faults=faults, throttle=LoginThrottle(clock), quality=quality,
        )  # fmt: skip
        web = WebInterface([("127.0.0.1", 0)], app)
        ingestor.start()
        stack.callback(ingestor.stop, 10.0)
        web.start()
        stack.callback(web.stop, 2.0)
        stopping = threading.Event()
        sender = threading.Thread(target=_send, args=(ingestor, links, clock, stopping))
        sender.start()
        stack.callback(sender.join)
        stack.callback(stopping.set)
        time.sleep(_EVERY_S + 2)  # until each node has sent a sample
        yield web.addresses[0][1]


def _measure(port: int, path: str, seconds: float) -> tuple[int, list[float]]:
    """Return the size of a page in bytes, and the sorted response times in ms of one request every 0.7 s."""
    client, times, length = Client(port), [], 0
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n".encode()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        time.sleep(0.7)
        began_s = time.perf_counter()
        length = client.get(request)
        times.append((time.perf_counter() - began_s) * 1000)
    return length, sorted(times)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of the requests to each address (20)")
    parser.add_argument("--serve", action="store_true", help="serve until standard input ends")
    options = parser.parse_args()
    if options.serve:
        with _served(options.nodes) as port:
            print(port, flush=True)
            sys.stdin.read()
        return
    command = [sys.executable, "-m", "bench.page", "--serve", "--nodes", str(options.nodes)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and server.stdin is not None
        port = int(server.stdout.readline())
        rows = []
        for path in _ADDRESSES:
            length, times = _measure(port, path, options.seconds)
            found = f"{length / 1000:.1f} kB, median {times[len(times) // 2]:.1f} ms, maximum {times[-1]:.1f} ms"
            rows.append((f"`{path}`", found))
        rows.append(("memory of the server", f"{rss_mib(server.pid):.0f} MiB"))
        table(f"the front page of {options.nodes:,} nodes", rows)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(30)


if __name__ == "__main__":
    main()
