"""What is written to the card in a day: a node that samples every ten seconds, and a server that collects from it.

    python3 -m bench.writes                 ten minutes
    python3 -m bench.writes --seconds 60    a quick one

As the kernel counts it for each process (proc_pid_io(5): write_bytes), with the database committed at once and, on a
second server, once a minute.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from bench.machine import table

_SETTLE_S = 20.0


def written(pid: int) -> int:
    """Bytes that a process has had written to the disk."""
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes:"))


def main() -> None:
    """Run the three programs, and tell what they wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    seconds = parser.parse_args().seconds
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
            for commit in ("1", "60"):
                start("server.py", "--node", f"n@{at}", "--web", "127.0.0.1:0", "--name", f"s{commit}", "--data",
                      f"{folder}/{commit}", PIGEONPOST_STORE_COMMIT=commit)  # fmt: skip
            time.sleep(_SETTLE_S)
            before = [written(one.pid) for one in programs]
            time.sleep(seconds)
            took = [(written(one.pid) - first) / seconds * 86_400 / 2**20 for one, first in zip(programs, before)]
        finally:
            for one in programs:
                one.terminate()
            for one in programs:
                one.wait(30)
    names = ("the node", "a server that commits at once", "a server that commits once a minute")
    table(
        "written to the disk, one sample every 10 s", [(name, f"{mib:.0f} MiB a day") for name, mib in zip(names, took)]
    )


if __name__ == "__main__":
    main()
