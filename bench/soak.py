"""A long run: many nodes, mischief, kill -9; and whether the server stays as small as it was, and loses nothing.

    python3 -m bench.soak                            200 nodes for 10 minutes, killed once in the middle
    python3 -m bench.soak --nodes 50 --minutes 1
    python3 -m bench.soak --minutes 1440 --kills 3 --seed 7 --data /tmp/soak

One real `server.py` collects over loopback from nodes that this process plays: a node's real outbox and session, no
threads, each on its own port, so that a node that was cut off comes back as the same one. Each takes a sample of two
values a second; one in eight holds so few that a stall costs some, and must tell of them by GAP. Nodes are cut (FIN,
RST, within a line), stall, dribble, start anew, say old lines again, talk rubbish, are turned off and on; visitors of
the page come, do not read, say half a head, and vanish.

*Flat.* Of each run of the server (from its start until it is killed or stopped) the first third is the warm-up: threads
begin, caches fill, the allocator finds its size. Then the median of the second third is compared with that of the last:
medians, since a page that is drawn or a node that catches up takes memory for a moment and gives it back.

    memory             grows by less than 15 % + 8 MiB: the columns of each node's day grow until they are full
    threads, files     grow by less than 5, beyond those of the nodes and visitors connected at the moment
    WAL                never reaches 64 MiB: SQLite writes it back every 16, and a long reader may delay that

What leaks more slowly takes a longer run to be seen.

*Whole.* Afterwards each (node, epoch, seq) that a node accepted is in the store once, with its value, or in one gap;
and `control.py verify` finds the logs the same as the store. Exit status 1, with the reasons, when that is not so.
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
from bench.soak_nodes import MISCHIEF, Node, Visitor
from server import make_room

TURN_S = 0.1  # in which every node and visitor is looked after once
MISCHIEF_S = 30.0  # between two mischiefs that befall a node, on average
VISITS_A_SECOND = 1.5
SETTLE_S = 90.0  # that the server may take at the end to get what is due
FEW_SLOTS, MANY_SLOTS = 8, 1024


class Measured(NamedTuple):
    """The server at one moment; threads and files beyond those that nodes and visitors take."""

    memory: float  # MiB
    threads: float
    files: float
    wal: float  # MiB


class Soak:
    """The server as a process, the nodes and the visitors, all by one random seed."""

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
        self._page: tuple[int, str] | None = None  # its port and control.py's key, once it is ready
        self.runs.append([])

    def run(self) -> None:
        """Mischief for as long as told; then let the server get what is due, and stop it."""
        run_s = self._seconds / (self._kills + 1)
        began_s = told_s = measured_s = start_s = time.monotonic()
        while (now_s := time.monotonic()) < began_s + self._seconds:
            self._turn(now_s, True)
            if now_s < start_s:
                continue
            if self.server.returncode is not None:  # killed, below
                self._start()
            self._look()
            if self._page and now_s >= measured_s:
                measured_s = now_s + min(5.0, run_s / 24)  # so that a third has some
                self.runs[-1].append(self._measure())
                if now_s >= told_s:
                    told_s = now_s + 60
                    self._tell(now_s - began_s)
            if now_s - began_s > run_s * len(self.runs):
                self.server.kill()
                self.server.wait()
                self._page = None
                start_s = now_s + self._chance.uniform(0.1, 3)
        self._settle()

    def _turn(self, now_s: float, mischief: bool) -> None:
        chance = self._chance
        for node in self.nodes:
            if mischief and chance.random() < TURN_S / MISCHIEF_S:
                node.suffer(chance.choices(list(MISCHIEF), list(MISCHIEF.values()))[0], now_s)
            node.turn(now_s, mischief)
        self._visitors = [visitor for visitor in self._visitors if visitor.stays(now_s)]
        if mischief and self._page and chance.random() < TURN_S * VISITS_A_SECOND:
            self._visitors.append(Visitor(self._page[0], self._request(self._page[1]), chance, now_s))
        time.sleep(max(0.0, now_s + TURN_S - time.monotonic()))

    def _request(self, key: str) -> bytes:
        """What a visitor asks for, whole or only its beginning; nodes are turned on again before many are off."""
        off = [node for node in self.nodes if not node.outbox.on]
        node = self._chance.choice(off if len(off) > len(self.nodes) / 20 else self.nodes)
        paths = ["/", "/log.csv", "/events", "/events", f"/nodes/{node.name}", "/log", "/metrics", "/nowhere", "POST"]
        ask, body = f"GET {self._chance.choice(paths)}", ""
        if ask == "GET POST":
            ask, body = f"POST /api/v1/nodes/{node.name}/send", json.dumps({"on": node in off})
        head = f"{ask} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}"
        whole = f"{head}\r\n\r\n{body}".encode()
        return whole if self._chance.random() < 0.85 else whole[: self._chance.randint(0, 60)]

    def _look(self) -> None:
        """See whether the server is ready; SystemExit when it has ended."""
        if self.server.poll() is not None:
            raise SystemExit(f"the server ended with {self.server.returncode}: {self.log.read_text()[-2000:]}")
        running = Path(self._data, "running.json")
        if self._page is None and running.exists():
            about = json.loads(running.read_bytes())
            if about["pid"] == self.server.pid:  # not what a killed one has left
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

    def _tell(self, after_s: float) -> None:
        now, connected = self.runs[-1][-1], sum(node.sock is not None for node in self.nodes)
        said = f"{now.memory:.1f} MiB, {now.threads} threads, {now.files} files, WAL {now.wal:.1f} MiB"
        there = f"{connected} nodes and {len(self._visitors)} visitors connected"
        print(f"{after_s / 60:.0f} min, run {len(self.runs)}: {said}; {there}", flush=True)

    def _settle(self) -> None:
        give_up_s = time.monotonic() + SETTLE_S
        while (now_s := time.monotonic()) < give_up_s and not self._has_all():
            while time.monotonic() < now_s + 1:
                self._turn(time.monotonic(), False)
            self._look()
        self.server.send_signal(signal.SIGTERM)
        if self.server.wait(20):
            raise SystemExit(f"the server ended badly: {self.log.read_text()[-2000:]}")

    def _has_all(self) -> bool:
        """Whether the server has, of each epoch that a node holds, everything."""
        with closing(open_store(self._data)) as db:
            marks = {(name, epoch): seq for name, epoch, seq in db.execute(
                "SELECT n.name, e.epoch, e.seq FROM epochs e JOIN nodes n ON n.id = e.node")}  # fmt: skip
        return all(
            marks.get((node.name, run.epoch)) == run.last for node in self.nodes for run in node.outbox.ring.runs
        )


def open_store(data: str) -> sqlite3.Connection:
    """The server's database, to be read."""
    return sqlite3.connect(f"file:{data}/pigeonpost.sqlite3?mode=ro", uri=True)


def thirds(run: Sequence[Measured]) -> tuple[Measured, Measured]:
    """The medians of the second third of a run and of its last."""
    third = len(run) // 3
    second, last = run[third : 2 * third], run[-third:]
    return Measured(*map(median, zip(*second))), Measured(*map(median, zip(*last)))


def unflat(run: Sequence[Measured]) -> list[str]:
    """What is not flat in a run of the server, by the rule above."""
    if len(run) < 12:
        return [f"{len(run)} measurements are too few to tell whether it is flat"]
    was, now = thirds(run)
    limits = was._replace(memory=was.memory * 1.15 + 8, threads=was.threads + 5, files=was.files + 5, wal=64.0)
    now = now._replace(wal=max(measured.wal for measured in run))
    return [
        f"{name} went from {before:.1f} to {after:.1f}, not below {limit:.1f}"
        for name, before, after, limit in zip(Measured._fields, was, now, limits) if after >= limit
    ]  # fmt: skip


def account(data: str, accepted: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """What is stored against what was accepted (of each node and epoch the highest seq): all but the first two are 0.

    astray   samples that no node took, or with another's value
    """
    found = {key: bytearray(last) for key, last in accepted.items()}  # of each seq how often it is there
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
            missing[epochs[epoch][0]] -= before  # of whole epochs that are gone: only how many samples they had
    for (node, _), counts in found.items():
        missing[node] += counts.count(0)
        figures["repeated"] += counts.count(2)
    return figures | {"lost": sum(map(abs, missing.values()))}


def report(soak: Soak, data: str, kills: int) -> list[str]:
    """Print the table and the figures; what is not as it should be."""
    faults = [f"run {number}: {fault}" for number, run in enumerate(soak.runs, 1) for fault in unflat(run)]
    rows = []
    for number, run in enumerate(soak.runs, 1):
        if len(run) >= 3:
            said = [f"{name} {was:.1f}, {now:.1f}" for name, was, now in zip(Measured._fields, *thirds(run))][:3]
            said.append(f"WAL at most {max(measured.wal for measured in run):.1f} MiB")
            rows.append((f"run {number}, {len(run)} measurements", "; ".join(said)))
    table(f"server: {len(soak.nodes)} nodes; medians of a run's second third (MiB), and of its last", rows)
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=1, help="how often the server is killed with -9 (1)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--data", help="an empty folder for the server's data and log, which are then kept")
    options = parser.parse_args()
    print(f"--nodes {options.nodes} --minutes {options.minutes:g} --kills {options.kills} --seed {options.seed}")
    logging.disable(logging.WARNING)  # what the nodes say of their mischief
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # and so the server is not left behind
    make_room()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # the nodes' disks must cost nothing
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
        print(f"not as it should be: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
