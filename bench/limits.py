"""Upper bounds: SQLite alone, and the smallest program that stores samples durably.

    python3 -m bench.limits

The empty loop measures the speed of the processor, which changes from hour to hour on a rented machine. `sqlite_alone`
only writes prepared rows, one per sample, in transactions of 10,000. `Probe` is a server of thirty lines: it collects
from bench/fleet.py with plain json.loads, one table and a commit before each ACK. It has no authentication, no repair,
no log, no limits and no web page.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from bench.machine import table

TURNS = 30_000_000
ROWS = 500_000
TABLE = """
CREATE TABLE samples (
    node INTEGER, time INTEGER, epoch INTEGER, seq INTEGER, shape INTEGER NOT NULL, clock TEXT, "values" TEXT NOT NULL,
    PRIMARY KEY (node, time, epoch, seq)
) WITHOUT ROWID;
"""
INSERT = "INSERT INTO samples VALUES (?,?,?,?,?,?,?)"


def database(folder: str) -> sqlite3.Connection:
    """Return a connection to a new database in `folder`, with the settings of a Pigeonpost store."""
    db = sqlite3.connect(os.path.join(folder, "limit.sqlite3"), isolation_level=None, check_same_thread=False)
    db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;" + TABLE)
    return db


def python_alone() -> float:
    """Return the iterations of an empty loop per second: the present speed of this machine."""
    began_s = time.monotonic()
    for _ in range(TURNS):
        pass
    return TURNS / (time.monotonic() - began_s)


def sqlite_alone() -> float:
    """Return the rows that SQLite alone writes per second."""
    rows = [(1, 1_795_000_000_000 + k * 10_000, 1, k, 1, None, f"[{20 + k % 97 * 0.11:.2f},{k % 1024}]")
            for k in range(1, ROWS + 1)]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        db = database(folder)
        began_s = time.monotonic()
        for start in range(0, ROWS, 10_000):
            db.execute("BEGIN IMMEDIATE")
            db.executemany(INSERT, rows[start : start + 10_000])
            db.execute("COMMIT")
        took_s = time.monotonic() - began_s
        db.close()
    return ROWS / took_s


class Probe:
    """Minimal server: one thread per node collects, and another one commits. `_changed` guards the received batches."""

    def __init__(self, folder: str) -> None:
        self._db = database(folder)
        self._changed = threading.Condition()
        self._batches: list[tuple[int, socket.socket, str, list[Any]]] = []
        threading.Thread(target=self._commit, daemon=True).start()

    def collect(self, number: int, port: int) -> None:
        """Collect from the node at `port` of 127.0.0.1 and store its samples under `number`."""
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(b'HELLO {"link":1,"server":"probe","ledger":"0123456789abcdef"}\n')
        lines = sock.makefile("rb", buffering=1 << 18)
        lines.readline()
        sock.sendall(b'RESUME {"id":0}\n')
        for line in lines:
            _, epoch, data = line.split(b" ", 2)
            with self._changed:
                self._batches.append((number, sock, epoch.decode(), json.loads(data)))
                self._changed.notify()

    def _commit(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._batches)
                batches, self._batches = self._batches, []
            rows = [
                (number, sample["up"], number, sample["seq"], 1, None, str(list(sample["values"].values())))
                for number, _, _, samples in batches for sample in samples
            ]  # fmt: skip
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(INSERT, rows)
            self._db.execute("COMMIT")
            for _, sock, epoch, samples in batches:
                sock.sendall(f"ACK {epoch} {samples[-1]['seq']}\n".encode())


def probe(nodes: int, samples: int, per_line: int) -> float:
    """Return the samples per second that the probe receives from `nodes` simulated nodes, which have `samples` each.

    Each line has `per_line` samples.
    """
    arguments = ["--samples", str(samples), "--per-line", str(per_line)]
    with tempfile.TemporaryDirectory() as folder:
        fleet = subprocess.Popen(
            [sys.executable, "-m", "bench.fleet", "--nodes", str(nodes), *arguments], stdout=subprocess.PIPE, text=True
        )
        assert fleet.stdout is not None
        port, taker = int(fleet.stdout.readline()), Probe(folder)
        for number in range(nodes):
            threading.Thread(target=taker.collect, args=(number, port), daemon=True).start()
        found: dict[str, Any] = json.loads(fleet.communicate(timeout=300)[0])
    return float(found["per_second"])


def main() -> None:
    """Measure the upper bounds and print the table."""
    table("upper bounds", [
        ("Python alone, an empty loop", f"{python_alone() / 1e6:.0f} million iterations/s"),
        ("SQLite alone, prepared rows of two values, 10,000 per transaction", f"{sqlite_alone():,.0f} rows/s"),
        ("minimal program, one node, 500 samples per line", f"{probe(1, 300_000, 500):,.0f} samples/s"),
        ("minimal program, 100 nodes, 500 samples per line", f"{probe(100, 3000, 500):,.0f} samples/s"),
        ("minimal program, 100 nodes, one sample per line", f"{probe(100, 1500, 1):,.0f} samples/s"),
    ])  # fmt: skip
    os._exit(0)  # the probe's threads are still reading


if __name__ == "__main__":
    main()
