"""Export, backup, restore and migration of a million samples of two values: speed and memory.

    python3 -m bench.export                 ten nodes, 100,000 samples each
    python3 -m bench.export --millions 10

Each command runs in its own process and writes to a file in a temporary folder. A bare `SELECT` shows the upper bound
for SQLite and Python. The migration converts a file of format 3, with one row per sample, as the server does at
its first start.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time

from bench.machine import table
from bench.years import build, command, run
from bench.years_mixed import EVERY_MS, NODES
from pigeonpost.core.data_folder import DATABASE
from tests.old_store import OldStore

END_MS = 1_795_000_000_000


def _seconds(took_s: float, cpu_s: float) -> str:
    return f"{took_s:.1f} s ({cpu_s:.1f} s CPU)"


def bare_samples_per_second(folder: str) -> float:
    """Return the samples per second of a cursor that only fetches the rows of the database in `folder`."""
    db = sqlite3.connect(f"file:{folder}/{DATABASE}?mode=ro", uri=True)
    began_s, count = time.perf_counter(), 0
    for more, _ in db.execute("SELECT count, data FROM fresh UNION ALL SELECT count, data FROM chunks"):
        count += more
    db.close()
    return count / (time.perf_counter() - began_s)


def migration(folder: str, samples: int) -> tuple[str, str]:
    """Return a table row of the migration of a file of format 3 in `folder` with `samples`: time, memory, sizes."""
    build_old(folder, samples)
    path = os.path.join(folder, DATABASE)
    before = os.path.getsize(path)
    os.sync()
    code = "import sys; from pigeonpost.storage.sqlite.migration import migrate; migrate(sys.argv[1])"
    took_s, cpu_s, most_mib = run(code, path)
    after = os.path.getsize(path)
    return (
        "migration from format 3",
        f"{_seconds(took_s, cpu_s)}, {samples / took_s:,.0f} samples/s;"
        f" {before / 1e6:,.0f} MB to {after / 1e6:,.0f} MB; {most_mib:.0f} MiB",
    )


def build_old(folder: str, samples: int) -> None:
    """Write a file of format 3 to `folder`, with `samples` from `bench.years`."""
    with OldStore(folder) as old:
        db, each = old.db, samples // NODES
        db.execute("BEGIN")
        db.execute("INSERT INTO shapes VALUES (1, ?)", ('["temperature", "light"]',))
        for node in range(NODES):
            db.execute("INSERT INTO nodes (id, name) VALUES (?, ?)", (node + 1, f"n{node}"))
            db.execute("INSERT INTO epochs (id, node, epoch, seq) VALUES (?, ?, ?, ?)",
                       (node + 1, node + 1, f"{node:016x}", each))  # fmt: skip
            start_ms = END_MS - each * EVERY_MS + 123
            db.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, 1, NULL, ?)", (
                (node + 1, start_ms + seq * EVERY_MS, node + 1, seq, f"[{20 + seq % 1000 / 100},{seq % 1024}]")
                for seq in range(1, each + 1)
            ))  # fmt: skip
        db.execute("COMMIT")


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=1.0, help="millions of samples (1)")
    samples = int(parser.parse_args().millions * 1e6)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as place:
        build(folder, samples, END_MS)
        rows = [("SQLite alone, rows read and discarded", f"{bare_samples_per_second(folder):,.0f} samples/s")]
        for form in ("csv", "wide", "jsonl", "sqlite"):
            out = os.path.join(place, form)
            took_s, cpu_s, most_mib = command("--data", folder, "export", "--format", form, "--out", out)
            size = os.path.getsize(out)
            rows.append((
                f"`export --format {form}`",
                f"{samples / took_s:,.0f} samples/s ({cpu_s / samples * 1e6:.1f} µs CPU per sample),"
                f" {size / 1e6:,.0f} MB; {most_mib:.0f} MiB at most",
            ))  # fmt: skip
        for name in ("b.sqlite3", "b.tar"):
            took_s, cpu_s, most_mib = command("--data", folder, "backup", os.path.join(place, name))
            megabytes = os.path.getsize(os.path.join(place, name)) / 1e6
            rows.append(
                (
                    f"`backup {name}`, with its check",
                    f"{_seconds(took_s, cpu_s)} for {megabytes:,.0f} MB; {most_mib:.0f} MiB",
                )
            )
        data = os.path.join(place, "new")
        took_s, cpu_s, most_mib = command("--data", data, "restore", os.path.join(place, "b.sqlite3"))
        result = f"{_seconds(took_s, cpu_s)}; {most_mib:.0f} MiB"
        rows.append(("`restore b.sqlite3`: the logs are written and read again", result))
        took_s, cpu_s, most_mib = command("--data", data, "verify")
        rows.append(("`verify`, with the logs", f"{_seconds(took_s, cpu_s)}; {most_mib:.0f} MiB"))
    with tempfile.TemporaryDirectory() as folder:
        rows.append(migration(folder, samples))
    table(f"{samples:,} samples with two values, ten nodes", rows)


if __name__ == "__main__":
    main()
