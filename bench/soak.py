"""Long run with many nodes, faults and kill -9.

Checks that the server's resources stay constant and that nothing is lost.

    python3 -m bench.soak                            200 nodes for 10 minutes, killed once in the middle
    python3 -m bench.soak --nodes 50 --minutes 1
    python3 -m bench.soak --minutes 1440 --kills 3 --seed 7 --data /tmp/soak

One real `server.py` collects over loopback from nodes simulated by this process: the product's outbox and session
without threads, each node on its own port, so that it is the same node when it reconnects. Each node takes a sample of
two values per second. The outbox of one in eight is so small that a stall overwrites samples, which the node must
report by GAP. Faults of the nodes: they disconnect (FIN, RST, within a line), stall, send very slowly, start a new
epoch, repeat old lines, send invalid data, and are turned off and on. Clients of the page connect, do not read, send
half a request head, and disconnect.

*Constant resources.* For each run of the server (from its start until it is killed or stopped), the first third is the
warm-up: threads start, caches fill, the allocator reaches its size. Then the median of the second third is compared
with that of the last one. Medians are used since rendering a page or a node catching up takes memory for a short time
only.

    memory             grows by less than 15 % + 8 MiB: the cache of each node's day grows until it is full
    threads, files     grow by less than 5, in addition to those of connected nodes and clients
    WAL                always below 64 MiB: SQLite writes it back at 16 MiB, which a long read transaction may delay

A slower leak needs a longer run to be found.

*Nothing lost.* Finally each (node, epoch, seq) accepted by a node is either stored once with its value, or is in one
gap, and `control.py verify` finds the logs equal to the store. Otherwise the exit status is 1, with the reasons.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.machine import rss_mib, table
from bench.soak_nodes import FAULT_KINDS, Node, Visitor
from server import make_room

TURN_S = 0.1  # seconds between two turns of each node and client
FAULT_INTERVAL_S = 30.0  # mean time between two faults of a node
VISITS_PER_SECOND = 1.5
SETTLE_S = 90.0  # for the server to collect the remaining samples at the end
FEW_SLOTS, MANY_SLOTS = 8, 1024


class Measured(NamedTuple):
    """Resources of the server at one time; threads and files do not include those of connected nodes and clients."""

    memory: float  # MiB
    threads: float
    files: float
    wal: float  # MiB


class Soak:
    """The server as a process, the nodes and the clients, all driven by one random seed."""

    def __init__(self, data: str, nodes_folder: str, options: argparse.Namespace) -> None:
        self._chance = random.Random(options.seed)
        self._seconds, self._kills, self._data = options.minutes * 60, options.kills, data
        self.nodes = [
            Node(f"n{n:03d}", os.path.join(nodes_folder, f"{n}"), MANY_SLOTS if n % 8 else FEW_SLOTS, self._chance)
            for n in range(options.nodes)
        ]
        self._visitors: list[Visitor] = []
        self.runs: list[list[Measured]] = []
        self.log = Path(data, "server.log")
        self._start()

    def _start(self) -> None:
        places = ",".join(f"{node.name}@127.0.0.1:{node.port}" for node in self.nodes)
        with open(self.log, "ab") as log:
            self.server = subprocess.Popen(
                [sys.executable, "server.py", "--data", self._data, "--web", "127.0.0.1:0"],
                env={**os.environ, "PIGEONPOST_SERVER_NODES": places}, stdout=log, stderr=log,
            )  # fmt: skip
        self._page: tuple[int, str] | None = None  # port and key of control.py, once the server is ready
        self.runs.append([])

    def run(self) -> None:
        """Cause faults for the chosen time. Then let the server collect the remaining samples, and stop it."""
        run_s = self._seconds / (self._kills + 1)
        began_s = printed_s = measured_s = start_s = time.monotonic()
        while (now_s := time.monotonic()) < began_s + self._seconds:
            self._turn(now_s, True)
            if now_s < start_s:
                continue
            if self.server.returncode is not None:  # killed, below
                self._start()
            self._check_server()
            if self._page and now_s >= measured_s:
                measured_s = now_s + min(5.0, run_s / 24)  # several measurements in each third
                self.runs[-1].append(self._measure())
                if now_s >= printed_s:
                    printed_s = now_s + 60
                    self._print_status(now_s - began_s)
            if now_s - began_s > run_s * len(self.runs):
                self.server.kill()
                self.server.wait()
                self._page = None
                start_s = now_s + self._chance.uniform(0.1, 3)
        self._settle()

    def _turn(self, now_s: float, with_faults: bool) -> None:
        chance = self._chance
        for node in self.nodes:
            if with_faults and chance.random() < TURN_S / FAULT_INTERVAL_S:
                node.cause_fault(chance.choices(list(FAULT_KINDS), list(FAULT_KINDS.values()))[0], now_s)
            node.turn(now_s, with_faults)
        self._visitors = [visitor for visitor in self._visitors if visitor.stays(now_s)]
        if with_faults and self._page and chance.random() < TURN_S * VISITS_PER_SECOND:
            self._visitors.append(Visitor(self._page[0], self._request(self._page[1]), chance, now_s))
        time.sleep(max(0.0, now_s + TURN_S - time.monotonic()))

    def _request(self, key: str) -> bytes:
        """Return a client's request, complete or only its beginning.

        Nodes are turned on again before many of them are off.
        """
        off = [node for node in self.nodes if not node.outbox.on]
        node = self._chance.choice(off if len(off) > len(self.nodes) / 20 else self.nodes)
        paths = ["/", "/log.csv", "/events", "/events", f"/nodes/{node.name}", "/log", "/metrics", "/nowhere", "POST"]
        ask, body = f"GET {self._chance.choice(paths)}", ""
        if ask == "GET POST":
            ask, body = f"POST /api/v1/nodes/{node.name}/send", json.dumps({"on": node in off})
        head = f"{ask} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}"
        whole = f"{head}\r\n\r\n{body}".encode()
        return whole if self._chance.random() < 0.85 else whole[: self._chance.randint(0, 60)]

    def _check_server(self) -> None:
        """Read the port and the key of the server once it is ready. Raise SystemExit if the server has ended."""
        if self.server.poll() is not None:
            raise SystemExit(f"the server ended with {self.server.returncode}: {self.log.read_text()[-2000:]}")
        running = Path(self._data, "running.json")
        if self._page is None and running.exists():
            about = json.loads(running.read_bytes())
            if about["pid"] == self.server.pid:  # not the file of a killed server
                self._page = about["web"][0][1], about["key"]

    def _measure(self) -> Measured:
        pid, visitors = self.server.pid, len(self._visitors)
        found = re.search(r"Threads:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        assert found
        threads, files = int(found[1]), len(os.listdir(f"/proc/{pid}/fd"))
        files -= sum(node.sock is not None for node in self.nodes) + visitors
        wal = os.path.getsize(f"{self._data}/pigeonpost.sqlite3-wal") / (1 << 20)
        threads -= sum(visitor.takes_thread for visitor in self._visitors)
        return Measured(rss_mib(pid), threads, files, wal)

    def _print_status(self, after_s: float) -> None:
        now, connected = self.runs[-1][-1], sum(node.sock is not None for node in self.nodes)
        usage = f"{now.memory:.1f} MiB, {now.threads} threads, {now.files} files, WAL {now.wal:.1f} MiB"
        clients = f"{connected} nodes and {len(self._visitors)} visitors connected"
        print(f"{after_s / 60:.0f} min, run {len(self.runs)}: {usage}; {clients}", flush=True)

    def _settle(self) -> None:
        give_up_s = time.monotonic() + SETTLE_S
        while (now_s := time.monotonic()) < give_up_s and not self._has_all():
            while time.monotonic() < now_s + 1:
                self._turn(time.monotonic(), False)
            self._check_server()
        self.server.send_signal(signal.SIGTERM)
        if self.server.wait(20):
            raise SystemExit(f"the server failed: {self.log.read_text()[-2000:]}")

    def _has_all(self) -> bool:
        """Return True if the server has all samples of each epoch that a node holds."""
        with closing(open_store(self._data)) as db:
            marks = {(name, epoch): seq for name, epoch, seq in db.execute(
                "SELECT n.name, e.epoch, e.seq FROM epochs e JOIN nodes n ON n.id = e.node")}  # fmt: skip
        return all(
            marks.get((node.name, run.epoch)) == run.last for node in self.nodes for run in node.outbox.ring.runs
        )


def open_store(data: str) -> sqlite3.Connection:
    """Return a connection to the server's database in the folder `data`, for reading."""
    return sqlite3.connect(f"file:{data}/pigeonpost.sqlite3?mode=ro", uri=True)


def thirds(run: Sequence[Measured]) -> tuple[Measured, Measured]:
    """Return the medians of the second and the last third of a `run`."""
    third = len(run) // 3
    second, last = run[third : 2 * third], run[-third:]
    return Measured(*map(median, zip(*second))), Measured(*map(median, zip(*last)))


def grown_resources(run: Sequence[Measured]) -> list[str]:
    """Return the resources that grew beyond the limits above in a `run` of the server, as texts."""
    if len(run) < 12:
        return [f"{len(run)} measurements are too few to detect growth"]
    was, now = thirds(run)
    limits = was._replace(memory=was.memory * 1.15 + 8, threads=was.threads + 5, files=was.files + 5, wal=64.0)
    now = now._replace(wal=max(measured.wal for measured in run))
    return [
        f"{name} went from {before:.1f} to {after:.1f}, not below {limit:.1f}"
        for name, before, after, limit in zip(Measured._fields, was, now, limits) if after >= limit
    ]  # fmt: skip


def account(data: str, accepted: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Compare the stored samples in the folder `data` with the accepted samples.

    Args:
        data: Data folder of the server.
        accepted: Highest accepted sequence number of each (node, epoch).

    Returns:
        Counts by name. All but `accepted` and `gaps` must be 0. `astray` counts samples that no node has accepted, or
        that were stored with another value.
    """
    found = {key: bytearray(last) for key, last in accepted.items()}  # the number of occurrences of each seq
    figures = {"accepted": sum(accepted.values()), "gaps": 0, "lost": 0, "repeated": 0, "astray": 0}
    missing: Counter[str] = Counter()

    def note(key: tuple[str, str], seq: int) -> None:
        counts = found.get(key, bytearray())
        if 0 < seq <= len(counts):
            counts[seq - 1] = min(counts[seq - 1] + 1, 2)
        else:
            figures["astray"] += 1

    with closing(open_store(data)) as db:
        epochs = {id: (name, epoch) for id, name, epoch in db.execute(
            "SELECT e.id, n.name, e.epoch FROM epochs e JOIN nodes n ON n.id = e.node")}  # fmt: skip
        for node, code, seq, values in db.execute('SELECT node, epoch, seq, "values" FROM samples'):
            note((node, code), seq)
            figures["astray"] += not values.startswith(f"[{seq},")
        for epoch, first, last, before in db.execute("SELECT epoch, first, last, before FROM gaps"):
            for seq in range(first, last + 1):
                note(epochs[epoch], seq)
            figures["gaps"] += last - first + 1 + before
            missing[epochs[epoch][0]] -= before  # samples of completely overwritten epochs are only counted
    for (node, _), counts in found.items():
        missing[node] += counts.count(0)
        figures["repeated"] += counts.count(2)
    return figures | {"lost": sum(map(abs, missing.values()))}


def report(soak: Soak, data: str, kills: int) -> list[str]:
    """Print the figures of a run and return the faults found, as texts.

    Args:
        soak: The finished run.
        data: Data folder of the server.
        kills: Number of kills that were requested.
    """
    faults = [f"run {number}: {fault}" for number, run in enumerate(soak.runs, 1) for fault in grown_resources(run)]
    rows = []
    for number, run in enumerate(soak.runs, 1):
        if len(run) >= 3:
            medians = [f"{name} {was:.1f}, {now:.1f}" for name, was, now in zip(Measured._fields, *thirds(run))][:3]
            medians.append(f"WAL at most {max(measured.wal for measured in run):.1f} MiB")
            rows.append((f"run {number}, {len(run)} measurements", "; ".join(medians)))
    table(f"server: {len(soak.nodes)} nodes; medians of the second and of the last third of each run", rows)
    accepted = {(node.name, epoch): last for node in soak.nodes for epoch, last in node.accepted.items()}
    figures = account(data, accepted)
    faults += [f"{figures[name]} samples {name}" for name in ("lost", "repeated", "astray") if figures[name]]
    suffered = sum((node.counts for node in soak.nodes), Counter[str]())
    print("\n" + ", ".join(f"{name} {count}" for name, count in {**figures, **suffered, "kills": kills}.items()))
    verify = subprocess.run([sys.executable, "control.py", "--data", data, "verify"], capture_output=True, text=True)
    if verify.returncode:
        faults.append(f"control.py verify: {verify.stdout}{verify.stderr}")
    traces = soak.log.read_text(errors="replace").count("Traceback")
    return faults + ([f"{traces} tracebacks in the server's log"] if traces else [])


def main() -> int:
    """Run the command line. Return 0, or 1 if a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=1, help="number of times that the server is killed (1)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--data", help="an empty folder for the data and the log of the server, which are kept")
    options = parser.parse_args()
    print(f"--nodes {options.nodes} --minutes {options.minutes:g} --kills {options.kills} --seed {options.seed}")
    logging.disable(logging.WARNING)  # the nodes log their faults
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # ends the server too
    make_room()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # the nodes' disks must not slow the server's
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory(dir=memory) as nodes_folder:
        data = options.data or temporary
        os.makedirs(data, exist_ok=True)
        soak = Soak(data, nodes_folder, options)
        try:
            soak.run()
        finally:
            soak.server.kill()
            soak.server.wait()
        faults = report(soak, data, options.kills)
    for fault in faults:
        print(f"fault: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
