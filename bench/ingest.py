"""Throughput of the server: samples acknowledged, durable and in the CSV log.

    python3 -m bench.ingest                 all rows of bench/README.md; takes six minutes
    python3 -m bench.ingest one             a single node with a backlog
    python3 -m bench.ingest sustained       for a minute, with compaction of the database

One process (bench/fleet.py) simulates the nodes with lines prepared in advance, and one real `server.py` collects from
it over loopback. In the row `node` a real node with a full outbox takes its place. bench/limits.py measures the upper
bound.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import cpu_s, rss_mib, table

FLEET = ("-m", "bench.fleet", "--nodes")
NODE = ("-m", "bench.full_node", "--samples")
CASES = {
    "one": (1, [*FLEET, "1", "--samples", "3000000"], "one node with a backlog, in columns"),
    "hundred": (100, [*FLEET, "100", "--samples", "30000"], "100 nodes with a backlog, in columns"),
    "ten_values": (1, [*FLEET, "1", "--samples", "3000000", "--values", "10"], "one node, ten values per sample"),
    "arrays": (1, [*FLEET, "1", "--samples", "3000000", "--per-line", "500"], "one node, 500 samples in an array"),
    "lines": (100, [*FLEET, "100", "--samples", "30000", "--per-line", "1"], "100 nodes, one sample per line"),
    "node": (1, [*NODE, "1000000"], "a real node with a backlog"),
    "live": (100, [*FLEET, "100", "--rate", "10", "--seconds", "20"], "100 live nodes at 10 Hz"),
    "few": (10, [*FLEET, "10", "--rate", "0.1", "--seconds", "20"], "10 live nodes, one sample every 10 s"),
    "sustained": (
        100,
        [*FLEET, "100", "--samples", "200000"],
        "20 million samples of 100 nodes, in columns, with compaction",
    ),
}
_START_S = 4.0  # a server under live load has started by then
_LIMIT_S = 300.0


def measure(case: str, python: str = sys.executable) -> dict[str, Any]:
    """Return the results of the `case` of CASES, measured with the interpreter `python`.

    They are the figures of the fleet, and the processor time and memory of the server.
    """
    nodes, arguments, _ = CASES[case]
    with tempfile.TemporaryDirectory() as data:
        fleet = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
        server = None
        try:
            assert fleet.stdout is not None
            port = fleet.stdout.readline().strip()
            environment = {**os.environ, "PIGEONPOST_SERVER_NODES": ",".join([f"127.0.0.1:{port}"] * nodes)}
            command = [python, "server.py", "--data", data, "--web", "127.0.0.1:0"]
            with open(os.path.join(data, "err"), "w") as err:
                server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=err)
            found = _watch(fleet, server, arguments)
            server.send_signal(signal.SIGTERM)
            if server.wait(60):
                raise SystemExit(f"the server failed: {Path(data, 'err').read_text()[-2000:]}")
            return found
        finally:
            for process in (fleet, server):
                if process is not None:
                    process.kill()
                    process.wait()


def _watch(fleet: subprocess.Popen[str], server: subprocess.Popen[bytes], arguments: Sequence[str]) -> dict[str, Any]:
    """Return the fleet's figures, with the processor time and memory of the server.

    For live samples, the result also contains the share of a core while they arrive.
    """
    pid = server.pid
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((time.monotonic(), cpu_s(pid)))

    live = "--rate" in arguments
    timers = [threading.Timer(_START_S, mark), threading.Timer(_START_S + 14, mark)] if live else []
    for timer in timers:
        timer.start()
    give_up_s = time.monotonic() + _LIMIT_S
    while fleet.poll() is None:
        if server.poll() is not None or time.monotonic() > give_up_s:
            raise SystemExit(f"the samples were not acknowledged within {_LIMIT_S:g} s, or the server has exited")
        time.sleep(0.05)
    found: dict[str, Any] = json.loads(fleet.communicate()[0])
    found["server_cpu_s"], found["rss_mib"] = cpu_s(pid), rss_mib(pid, peak=True)
    if live:
        (began_s, before_s), (ended_s, after_s) = marks
        found["core"] = (after_s - before_s) / (ended_s - began_s)
    return found


def row(case: str) -> tuple[str, str]:
    """Return the table row of a case of CASES."""
    found = measure(case)
    if "core" in found:
        result = f"{found['core'] * 100:.1f} % of a core; p99 from sampling to acknowledgement {found['p99_ms']} ms"
    else:
        cpu_us = found["server_cpu_s"] / found["samples"] * 1e6
        result = f"{found['per_second']:,} samples/s ({cpu_us:.1f} µs CPU per sample)"
    return CASES[case][2], f"{result}; {found['rss_mib']:.0f} MiB at most"


def main() -> None:
    """Run the chosen cases and print the table."""
    table("server: acknowledged and durable samples", [row(case) for case in sys.argv[1:] or CASES])


if __name__ == "__main__":
    main()
