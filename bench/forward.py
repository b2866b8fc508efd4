"""Forwarding: throughput, processor time, memory, and the ingest rate while a target is away.

    python3 -m bench.forward                all rows of bench/README.md; takes a minute
    python3 -m bench.forward 1000000        with this number of stored samples instead of 5 million

One node has a backlog in the SQLite store, compacted, with two values per sample and 360 samples per hour. The target
is a fake that only counts; VictoriaMetrics' target with a connection that discards the requests; and the real
VictoriaMetrics, if it is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from bench.ingest import measure
from bench.machine import cpu_s, rss_mib, table
from pigeonpost.core.clock import Clock
from pigeonpost.core.faults import Faults
from pigeonpost.integrations.contract import ForwardBatch, ForwardTarget
from pigeonpost.integrations.forward_http import HttpPoster
from pigeonpost.integrations.forward_position import PositionFile
from pigeonpost.integrations.forward_settings import ForwardTable
from pigeonpost.integrations.forward_source import sample_count
from pigeonpost.integrations.forwarder import Forwarder
from pigeonpost.integrations.victoriametrics import VictoriaMetricsTarget
from pigeonpost.link.samples import Number, SampleBatch
from pigeonpost.storage.models import EpochCommit, HighWaterMark, LogMark
from pigeonpost.storage.sqlite.store import SqliteStore

_STEP_MS, _HOUR = 10_000, 360
_START_MS = 1_600_000_000_000 // 3_600_000 * 3_600_000
_EPOCH = "00000000000000e1"
_DEAD = '[[forward]]\nname = "dead"\nkind = "victoriametrics"\nurl = "http://127.0.0.1:9"\n'


class CountingTarget(ForwardTarget):
    """Target that only counts the samples."""

    place = "fake"

    def __init__(self) -> None:
        self.count = 0

    def send(self, batches: Sequence[ForwardBatch]) -> None:
        self.count += sample_count(batches)

    def close(self) -> None:
        pass


class DiscardingPoster(HttpPoster):
    """Connection that accepts all requests without sending them."""

    def post(self, *args: Any, **more: Any) -> Any:
        return None


def fill(store: SqliteStore, samples: int) -> None:
    """Store a number of `samples` of one node in `store`, in chunks of an hour."""
    seq = 0
    while seq < samples:
        with store.writing({("bench", _EPOCH): None}):
            commit = EpochCommit("bench", "00000000000000aa", _EPOCH, HighWaterMark(seq, None))
            commit.units = {"temperature": "°C", "light": "lx"}
            for _ in range(64):
                numbers = range(seq, min(samples, seq + _HOUR))
                values: dict[str, list[Number | None]] = {
                    "temperature": [20 + number % 997 / 100 for number in numbers],
                    "light": [number % 1024 for number in numbers],
                }
                times = [_START_MS + number * _STEP_MS for number in numbers]
                if times:
                    commit.items.append(SampleBatch(seq + 1, times, [], values))
                    seq = numbers[-1] + 1
            commit.mark = HighWaterMark(seq, None)
            filed = store.put([commit], _START_MS, None)
    with store.writing(()):
        store.put([], _START_MS, LogMark("a.csv", 1, 0, filed))
    while job := store.compaction(int(time.time() * 1000)):
        with store.writing(()):
            job()


def forward(store: SqliteStore, target: ForwardTarget, samples: int) -> str:
    """Return the figures of forwarding all `samples` (their number) of `store` to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        file = PositionFile(folder, Faults(), Clock())
        table_ = ForwardTable("bench", "fake", (), (), None, True, {}, "here")
        forwarder = Forwarder(table_, target, file, store, Clock())
        began_s, before_s = time.monotonic(), time.process_time()
        forwarder.start()
        while forwarder.statuses()[0].done < samples:
            time.sleep(0.01)
        took_s, used_s = time.monotonic() - began_s, time.process_time() - before_s
        forwarder.stop(5)
    return f"{samples / took_s:,.0f} samples/s ({used_s / samples * 1e6:.1f} µs CPU per sample)"


def read_times(store: SqliteStore, samples: int) -> str:
    """Return the times to read 5,000 of the `samples` (their number) of `store`, at three positions."""
    found = []
    for after in (0, samples // 2, samples - 5_000):
        began_s = time.perf_counter()
        for _ in range(10):
            store.batches_of_epoch("bench", _EPOCH, after, 5_000)
        found.append(f"{(time.perf_counter() - began_s) * 100:.1f}")
    return f"{' / '.join(found)} ms"


def to_victoria_metrics(store: SqliteStore, samples: int) -> str:
    """Return the figures of forwarding all `samples` (their number) of `store` to the real program."""
    program = shutil.which("victoria-metrics")
    if program is None:
        return "victoria-metrics is not installed"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [program, "-storageDataPath", folder, "-httpListenAddr=127.0.0.1:18428", "-retentionPeriod=100y"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while True:
                try:
                    urllib.request.urlopen("http://127.0.0.1:18428/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.05)
            found = forward(store, VictoriaMetricsTarget(HttpPoster("http://127.0.0.1:18428")), samples)
            return f"{found}; {cpu_s(process.pid) / samples * 1e6:.1f} µs CPU of VictoriaMetrics"
        finally:
            process.kill()
            process.wait()


def idle_memory(text: str) -> float:
    """Return the memory in MiB of a server without nodes, with the settings `text`."""
    with tempfile.TemporaryDirectory() as data:
        process = subprocess.Popen(
            [sys.executable, "server.py", "--data", data, "--web", "127.0.0.1:0"],
            env={**os.environ, "PIGEONPOST_SERVER_TOML": text}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            process.stdout.readline()
            threading.Event().wait(3)  # the first attempts to connect
            return rss_mib(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def ingest(text: str) -> str:
    """Return the ingest rate of a server with the settings `text`."""
    os.environ["PIGEONPOST_SERVER_TOML"] = text
    try:
        found = measure("one")
    finally:
        del os.environ["PIGEONPOST_SERVER_TOML"]
    cpu_us = found["server_cpu_s"] / found["samples"] * 1e6
    return f"{found['per_second']:,} samples/s ({cpu_us:.2f} µs CPU per sample); {found['rss_mib']:.0f} MiB at most"


def main() -> None:
    """Measure all rows and print the table."""
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(folder)
        fill(store, samples)
        rows.append(
            (f"reading 5,000 of {samples:,} samples: start / middle / end", read_times(store, samples))
        )  # fmt: skip
        rows.append(("backlog to a target that only counts", forward(store, CountingTarget(), samples)))
        discarding = VictoriaMetricsTarget(DiscardingPoster("http://127.0.0.1:9"))
        rows.append(("backlog, JSON lines and gzip for VictoriaMetrics", forward(store, discarding, samples)))
        rows.append(("backlog to VictoriaMetrics 1.79", to_victoria_metrics(store, samples)))
        store.close()
    plain, with_target = ([idle_memory(text) for _ in range(3)] for text in ("[log]\n", _DEAD))
    rows.append(
        ("memory of an idle server, without and with a target", f"{min(plain):.1f} and {min(with_target):.1f} MiB")
    )
    for round_ in (1, 2):
        rows.append((f"ingest without a target, round {round_}", ingest("[log]\n")))
        rows.append((f"ingest with a target that is away, round {round_}", ingest(_DEAD)))
    table("forwarding", rows)


if __name__ == "__main__":
    main()
