"""Helpers of all benchmarks: a description of the machine, resources used by a process, and tables."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def about() -> str:
    """Return a description of the machine in one line, for the heading of a table."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return (
        f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
        f", Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def cpu_s(pid: int) -> float:
    """Return the processor time that the running process `pid` has used, in seconds (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_mib(pid: int, peak: bool = False) -> float:
    """Return the resident memory of process `pid` in MiB, or its maximum if `peak` is true (proc_pid_status(5))."""
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a Markdown table with the heading `title` and `rows` of two columns."""
    print(f"\n| {title} | {about()} |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |", flush=True)
