"""Metrics of this process, with the names that the client libraries of Prometheus use.

Sources: proc(5), getrlimit(2), https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Iterator

from pigeonpost.views.exposition import Metric


def process_metrics() -> Iterator[Metric]:
    """Yield the metrics of this process. Those that the system does not provide have no value."""

    def one(name: str, kind: str, text: str, value: float | None) -> Metric:
        return Metric(name, kind, text, [({}, value)], prefix="process_")

    virtual, resident, started_s = _stat()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield one("cpu_seconds_total", "counter", "Processor time used by this process.", time.process_time())
    yield one("resident_memory_bytes", "gauge", "Memory of this process that is in RAM.", resident)
    yield one("virtual_memory_bytes", "gauge", "Address space of this process.", virtual)
    yield one("start_time_seconds", "gauge", "Start time of this process, in seconds since 1970.", started_s)
    yield one("open_fds", "gauge", "Open file descriptors of this process.", _open_fds())
    most = limit if limit != resource.RLIM_INFINITY else None
    yield one("max_fds", "gauge", "Maximum number of open file descriptors.", most)


def _stat() -> tuple[int | None, int | None, float | None]:
    """Return address space and memory of this process in bytes, and its start in seconds since 1970."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before may contain blanks and parentheses
        with open("/proc/stat", "rb") as file:
            boot = re.search(rb"^btime ([0-9]+)$", file.read(), re.MULTILINE)
        started_s = int(boot[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK") if boot else None
        return int(fields[20]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), started_s
    except (OSError, ValueError, IndexError):
        return None, None, None


def _open_fds() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # without the one of this listing
    except OSError:
        return None
