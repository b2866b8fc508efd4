"""Bytes written to the card per day: a node that samples every ten seconds, and a server that collects from it.

    python3 -m bench.writes                 some hours of a server with a simulated clock: under a minute
    python3 -m bench.writes --nodes 1000    the same with many nodes: minutes
    python3 -m bench.writes --real 600      node and servers as programs, for ten minutes

The numbers are the kernel's for each process (proc_pid_io(5): write_bytes). The database is committed immediately and,
on a second server, once a minute. With the simulated clock, the server consists of its store, its log and its
maintenance, which compacts each hour once it is past. Every 30 s of this clock the changed pages are written back, also
those of the WAL's index, as Linux does with its default settings (proc_sys_vm(5): dirty_expire_centisecs).
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from bench.machine import table
from bench.years_mixed import Direct
from csvbuffer import CsvLog
from pigeonpost.core.clock import FakeClock
from pigeonpost.link.samples import SampleBatch, Values
from pigeonpost.server.ingest import Ingestor
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.storage.sqlite.store import SqliteStore
from protocol import Batch, Sample

_SETTLE_S = 20.0
_EVERY_S = 10
_HOUR_S = 3600
_START_MS = 1_795_003_200_000  # ms since 1970, a full hour
_COMMITS = ("1", "60")
_UNITS = {"temperature": "°C", "humidity": "%", "light": ""}
_WRITEBACK_S = 30


def written(pid: int) -> int:
    """Return the bytes that process `pid` has had written to the disk."""
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes:"))


def mib_per_day(count: float, seconds: float) -> float:
    """Return `count` bytes in `seconds` as MiB per day."""
    return count / seconds * 86_400 / 2**20


class Stepped(NamedTuple):
    """Bytes written by a server with the simulated clock."""

    mib_per_day: float
    to_chunks: float  # average number of times that a sample was written to chunks


def stepped(folder: str, commit_s: int, hours: int, nodes: int) -> Stepped:
    """Return the bytes written while a server collects with the simulated clock, after an hour to settle.

    Args:
        folder: Folder of the data.
        commit_s: Seconds between commits; 0 for immediate ones.
        hours: Hours to simulate.
        nodes: Number of nodes.
    """
    clock = FakeClock(_START_MS)
    store = SqliteStore(folder)
    csv = CsvLog(folder, store, clock)
    csv.start()
    ingestor = Ingestor(store, csv, clock, commit_s, buffer_samples=60 * nodes)
    worker = MaintenanceWorker(store, Direct(store), clock)
    order = random.Random(1).sample(range(nodes), nodes)  # the nodes do not sample in the order of their ids
    before = stored = compacted = 0
    is_waiting = False
    for second in range((hours + 1) * _HOUR_S):
        for node in order[second % _EVERY_S :: _EVERY_S]:
            ingestor.submit(_batch(node, second // _EVERY_S + 1, clock.wall_ms()))
            is_waiting = True
        if is_waiting and second % commit_s == commit_s - 1:
            ingestor.commit()
            is_waiting = False
        if second % _EVERY_S == _EVERY_S - 1:
            while worker.work():
                pass
        clock.sleep(1)
        if second % _WRITEBACK_S == _WRITEBACK_S - 1:
            _write_back(folder)
        if second == _HOUR_S - 1:
            before, stored, compacted = written(os.getpid()), ingestor.stored, worker.compacted
    took = written(os.getpid()) - before
    store.close()
    to_chunks = (worker.compacted - compacted) / (ingestor.stored - stored)
    return Stepped(mib_per_day(took, hours * _HOUR_S), to_chunks)


def _batch(node: int, seq: int, time_ms: int) -> Batch:
    values: Values = {
        "temperature": 20 + seq * 7919 % 97 / 10,
        "humidity": 40 + seq * 104_729 % 89 / 10,
        "light": seq % 1024,
    }
    sample = Sample(seq, time_ms + seq % 3, seq * _EVERY_S * 1000, values, {}, "")
    epoch = f"{node:016x}"
    return Batch(f"n{node}", epoch, epoch, 0, SampleBatch.of([sample]), None, _UNITS, _ignore, print)


def _write_back(folder: str) -> None:
    """Have the kernel write the changed pages of all files in `folder`.

    Another process does this: if this one closed an SQLite file, it would lose SQLite's locks (fcntl(2)).
    """
    files = [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]
    subprocess.run(["sync", "--data", *files], check=True)


def _ignore(epoch: str, seq: int) -> None:
    pass


def real(seconds: float) -> list[float]:
    """Return the MiB per day of the node, and of one server for each of _COMMITS, measured for `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        programs: list[subprocess.Popen[str]] = []

        def start(*command: str, **environment: str) -> subprocess.Popen[str]:
            programs.append(subprocess.Popen(
                [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, **environment},
            ))  # fmt: skip
            return programs[-1]

        try:
            node = start("node.py", "--simulate", "--name", "n", "--listen", "127.0.0.1:0", "--data", f"{folder}/n")
            assert node.stdout is not None
            at = node.stdout.readline().split()[-1]
            for commit in _COMMITS:
                start("server.py", "--node", f"n@{at}", "--web", "127.0.0.1:0", "--name", f"s{commit}", "--data",
                      f"{folder}/{commit}", PIGEONPOST_STORE_COMMIT=commit)  # fmt: skip
            time.sleep(_SETTLE_S)
            before = [written(one.pid) for one in programs]
            time.sleep(seconds)
            return [mib_per_day(written(one.pid) - first, seconds) for one, first in zip(programs, before)]
        finally:
            for one in programs:
                one.terminate()
            for one in programs:
                one.wait(30)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=float, metavar="SECONDS", help="run the real programs for this time")
    parser.add_argument("--hours", type=int, default=5, help="hours of the simulated clock (5)")
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes with the simulated clock (1)")
    parser.add_argument("--commit", type=int, help=argparse.SUPPRESS)  # one server, in a process of its own
    options = parser.parse_args()
    if options.commit:
        with tempfile.TemporaryDirectory() as folder:
            print(*stepped(folder, options.commit, options.hours, options.nodes))
        return
    names = ["the node", "a server that commits every second", "a server that commits every minute"]
    if options.real:
        rows = [(name, f"{mib:.0f} MiB per day") for name, mib in zip(names, real(options.real))]
    else:
        command = [sys.executable, "-m", "bench.writes", "--hours", str(options.hours), "--nodes", str(options.nodes)]
        rows = []
        for name, commit in zip(names[1:], _COMMITS):
            mib, to_chunks = subprocess.check_output([*command, "--commit", commit], text=True).split()
            rows.append(
                (name, f"{float(mib):.0f} MiB per day; each sample is written to chunks {float(to_chunks):.2f} times")
            )
    table(f"written to the disk; nodes: {options.nodes}; one sample every {_EVERY_S} s", rows)


if __name__ == "__main__":
    main()
