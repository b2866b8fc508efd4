"""How fast the server takes samples: acknowledged, durable, in the CSV log.

    python3 -m bench.ingest                 all rows of bench/README.md; takes six minutes
    python3 -m bench.ingest one             a single node catching up
    python3 -m bench.ingest sustained       for a minute, with the compaction of the store

One fleet process (bench/fleet.py) plays the nodes with lines made beforehand, one real `server.py` collects from it
over loopback; in the row `node`, a real node does, whose outbox is full. bench/limits.py says what there is to reach.
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
    "one": (1, [*FLEET, "1", "--samples", "3000000"], "one node catching up, in columns"),
    "hundred": (100, [*FLEET, "100", "--samples", "30000"], "100 nodes catching up, in columns"),
    "ten_values": (1, [*FLEET, "1", "--samples", "3000000", "--values", "10"], "one node, ten values per sample"),
    "arrays": (1, [*FLEET, "1", "--samples", "3000000", "--per-line", "500"], "one node, 500 samples in an array"),
    "lines": (100, [*FLEET, "100", "--samples", "30000", "--per-line", "1"], "100 nodes, one sample per line"),
    "node": (1, [*NODE, "1000000"], "a real node catching up"),
    "live": (100, [*FLEET, "100", "--rate", "10", "--seconds", "20"], "100 nodes live at 10 Hz"),
    "few": (10, [*FLEET, "10", "--rate", "0.1", "--seconds", "20"], "10 nodes live, a sample every 10 s"),
    "sustained": (100, [*FLEET, "100", "--samples", "200000"], "20 million samples of 100 nodes, in columns"),
}
_START_S = 4.0  # after which a server under live load has long started
_LIMIT_S = 300.0


def measure(case: str, python: str = sys.executable) -> dict[str, Any]:
    """One case: what the fleet saw, with the server's CPU and memory."""
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
                raise SystemExit(f"the server ended badly: {Path(data, 'err').read_text()[-2000:]}")
            return found
        finally:
            for process in (fleet, server):
                if process is not None:
                    process.kill()
                    process.wait()


def _watch(fleet: subprocess.Popen[str], server: subprocess.Popen[bytes], arguments: Sequence[str]) -> dict[str, Any]:
    """What the fleet prints, with the server's share of a core: for live samples only while these come."""
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
            raise SystemExit(f"the samples were not taken within {_LIMIT_S:g} s, or the server has ended")
        time.sleep(0.05)
    found: dict[str, Any] = json.loads(fleet.communicate()[0])
    found["server_cpu_s"], found["rss_mib"] = cpu_s(pid), rss_mib(pid, peak=True)
    if live:
        (began_s, before_s), (ended_s, after_s) = marks
        found["core"] = (after_s - before_s) / (ended_s - began_s)
    return found


def row(case: str) -> tuple[str, str]:
    """A row of the table."""
    found = measure(case)
    if "core" in found:
        said = f"{found['core'] * 100:.1f} % of a core; taken to acknowledged p99 {found['p99_ms']} ms"
    else:
        said = f"{found['a_second']:,} samples/s ({found['server_cpu_s'] / found['samples'] * 1e6:.1f} µs CPU a sample)"
    return CASES[case][2], f"{said}; {found['rss_mib']:.0f} MiB at most"


def main() -> None:
    table("server: samples acknowledged and durable", [row(case) for case in sys.argv[1:] or CASES])


if __name__ == "__main__":
    main()
