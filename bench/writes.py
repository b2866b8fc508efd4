"""What is written to the card in a day: a node that samples every ten seconds, and a server that collects from it.

    python3 -m bench.writes                 a server's hours on a clock that is stepped: under a minute
    python3 -m bench.writes --real 600      node and servers as programs, for ten minutes

As the kernel counts it for each process (proc_pid_io(5): write_bytes), with the database committed at once and, on a
second server, once a minute. On the stepped clock the server is its store, its log and its maintenance, which compacts
each hour once it is past.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from bench.machine import table
from bench.years import Direct
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
_START_MS = 1_795_003_200_000  # an hour begins
_COMMITS = ("1", "60")


def written(pid: int) -> int:
    """Bytes that a process has had written to the disk."""
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes:"))


def mib_a_day(count: float, seconds: float) -> float:
    """MiB a day, of a number of bytes in so many seconds."""
    return count / seconds * 86_400 / 2**20


def stepped(folder: str, commit_s: int, hours: int) -> float:
    """Let a server collect for so many hours, after one to settle; MiB that are written in a day."""
    clock = FakeClock(_START_MS)
    store = SqliteStore(folder)
    csv = CsvLog(folder, store, clock)
    csv.start()
    ingestor = Ingestor(store, csv, clock, commit_s)
    worker = MaintenanceWorker(store, Direct(store), clock)
    units = {"temperature": "°C", "humidity": "%", "light": ""}
    before = 0
    for seq in range(1, (hours + 1) * _HOUR_S // _EVERY_S + 1):
        values: Values = {
            "temperature": 20 + seq * 7919 % 97 / 10,
            "humidity": 40 + seq * 104_729 % 89 / 10,
            "light": seq % 1024,
        }
        sample = Sample(seq, clock.wall_ms() + seq % 3, seq * _EVERY_S * 1000, values, {}, "")
        epoch = "0123456789abcdef"
        ingestor.submit(Batch("n", epoch, epoch, 0, SampleBatch.of([sample]), None, units, _ignore, print))
        if seq * _EVERY_S % commit_s == 0:
            ingestor.commit()
        while worker.work():
            pass
        clock.sleep(_EVERY_S)
        if seq == _HOUR_S // _EVERY_S:
            before = written(os.getpid())
    took = written(os.getpid()) - before
    store.close()
    return mib_a_day(took, hours * _HOUR_S)


def _ignore(epoch: str, seq: int) -> None:
    pass


def real(seconds: float) -> list[float]:
    """MiB a day of the node, and of a server for each of _COMMITS."""
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
            return [mib_a_day(written(one.pid) - first, seconds) for one, first in zip(programs, before)]
        finally:
            for one in programs:
                one.terminate()
            for one in programs:
                one.wait(30)


def main() -> None:
    """Measure, and tell what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=float, metavar="SECONDS", help="run the programs for so long")
    parser.add_argument("--hours", type=int, default=5, help="on the stepped clock")
    parser.add_argument("--commit", type=int, help=argparse.SUPPRESS)  # one server, in a process of its own
    options = parser.parse_args()
    if options.commit:
        with tempfile.TemporaryDirectory() as folder:
            print(stepped(folder, options.commit, options.hours))
        return
    names = ["the node", "a server that commits at once", "a server that commits once a minute"]
    if options.real:
        took = real(options.real)
    else:
        command = [sys.executable, "-m", "bench.writes", "--hours", str(options.hours), "--commit"]
        took = [float(subprocess.check_output([*command, commit], text=True)) for commit in _COMMITS]
        del names[0]
    table(
        "written to the disk, one sample every 10 s", [(name, f"{mib:.0f} MiB a day") for name, mib in zip(names, took)]
    )


if __name__ == "__main__":
    main()
