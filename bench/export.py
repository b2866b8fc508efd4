"""Export, backup, restore and migration: how fast, in how much memory, of a million samples of two values.

    python3 -m bench.export                 ten nodes, 100,000 samples each
    python3 -m bench.export --millions 10

Each command is a process of its own, writing to a file in a temporary folder. A bare `SELECT` beside them is what
SQLite and Python give at best. The migration is that of a file of format 3, with a row per sample, as a server's start
does it.
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


def bare_samples_s(folder: str) -> float:
    """Samples a second of a cursor that only fetches."""
    db = sqlite3.connect(f"file:{folder}/{DATABASE}?mode=ro", uri=True)
    began_s, count = time.perf_counter(), 0
    for more, _ in db.execute("SELECT count, data FROM fresh UNION ALL SELECT count, data FROM chunks"):
        count += more
    db.close()
    return count / (time.perf_counter() - began_s)


def migration(folder: str, samples: int) -> tuple[str, str]:
    """Migrate a file of format 3: seconds, memory and the sizes before and after."""
    build_old(folder, samples)
    path = os.path.join(folder, DATABASE)
    before = os.path.getsize(path)
    os.sync()
    code = "import sys; from pigeonpost.storage.sqlite.migration import migrate; migrate(sys.argv[1])"
    took_s, cpu_s, most_mib = run(code, path)
    after = os.path.getsize(path)
    return (
        "migration of format 3",
        f"{_seconds(took_s, cpu_s)}, {samples / took_s:,.0f} samples/s; {before / 1e6:,.0f} MB to {after / 1e6:,.0f};"
        f" {most_mib:.0f} MiB",
    )


def build_old(folder: str, samples: int) -> None:
    """Write a file of format 3 with the samples that `bench.years` has."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=1.0, help="samples (1)")
    samples = int(parser.parse_args().millions * 1e6)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as place:
        build(folder, samples, END_MS)
        rows = [("SQLite alone, rows fetched and dropped", f"{bare_samples_s(folder):,.0f} samples/s")]
        for form in ("csv", "wide", "jsonl", "sqlite"):
            out = os.path.join(place, form)
            took_s, cpu_s, most_mib = command("--data", folder, "export", "--format", form, "--out", out)
            size = os.path.getsize(out)
            rows.append((
                f"`export --format {form}`",
                f"{samples / took_s:,.0f} samples/s ({cpu_s / samples * 1e6:.1f} µs CPU a sample),"
                f" {size / 1e6:,.0f} MB; {most_mib:.0f} MiB at most",
            ))  # fmt: skip
        for name in ("b.sqlite3", "b.tar"):
            took_s, cpu_s, most_mib = command("--data", folder, "backup", os.path.join(place, name))
            megabytes = os.path.getsize(os.path.join(place, name)) / 1e6
            rows.append(
                (f"`backup {name}`, checked", f"{_seconds(took_s, cpu_s)} for {megabytes:,.0f} MB; {most_mib:.0f} MiB")
            )
        data = os.path.join(place, "new")
        took_s, cpu_s, most_mib = command("--data", data, "restore", os.path.join(place, "b.sqlite3"))
        told = f"{_seconds(took_s, cpu_s)}; {most_mib:.0f} MiB"
        rows.append(("`restore b.sqlite3`: logs written again, and read again", told))
        took_s, cpu_s, most_mib = command("--data", data, "verify")
        rows.append(("`verify`, with the logs", f"{_seconds(took_s, cpu_s)}; {most_mib:.0f} MiB"))
    with tempfile.TemporaryDirectory() as folder:
        rows.append(migration(folder, samples))
    table(f"{samples:,} samples of two values, ten nodes", rows)


if __name__ == "__main__":
    main()
