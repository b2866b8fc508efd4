"""Reading a million values with `pigeonpost.client`: speed and memory.

    python3 -m bench.client                     ten nodes, each with 50,000 samples of two values
    python3 -m bench.client --samples 50000

The server and the client are separate processes on this machine.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile

from bench.machine import table
from bench.years import build, run
from bench.years_mixed import NODES
from tests.support import clean_environment

END_MS = 1_795_000_000_000
_READ = """
import sys
from pigeonpost.client import Client
found = []
with Client(sys.argv[1]) as client:
    for node in client.nodes():
        found.append(client.readings(node.name, ["temperature", "light"], "2000-01-01"))
count = sum(len(columns["time"]) for columns in found)
assert count >= int(sys.argv[2]), count"""


def main() -> None:
    """Build a store, start a server, and print the time, the processor time and the memory of the client."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500_000, metavar="N", help="number of samples of two values")
    samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory() as folder:
        build(folder, samples, END_MS)
        server = subprocess.Popen(
            [sys.executable, "server.py", "--data", folder, "--web", "127.0.0.1:0"],
            env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            found = next(filter(None, (re.search(r"http://[0-9.:]+", line) for line in server.stdout)))
            idle_s, idle_busy_s, idle_mib = run("import sys; from pigeonpost.client import Client")
            took_s, busy_s, most_mib = run(_READ, found[0], str(samples))
        finally:
            server.terminate()
            server.wait(60)
    values, took_s = 2 * samples, took_s - idle_s
    table("pigeonpost.client", [
        ("values", f"{values:,} of {NODES} nodes"),
        ("time", f"{took_s:.1f} s, {values / took_s:,.0f} values/s ({busy_s - idle_busy_s:.1f} s CPU of the client)"),
        ("memory of the client", f"{most_mib:.0f} MiB ({idle_mib:.0f} MiB without values)"),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
