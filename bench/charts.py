"""Cost of charts: time to query and draw, and size, for ranges of an hour to five years and one to four series.

    python3 -m bench.charts                builds a year of two nodes in a temporary folder: two minutes, 150 MB
    python3 -m bench.charts --days 30      builds only 30 days

The two nodes have two values every ten seconds, with the rollups of the server. Each chart is drawn five times, never
from a cache; the table shows the median. The statistics are those of a sensor's page, for a day to a year.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from bench.machine import table
from bench.years import TOGETHER, epoch_commits
from bench.years_mixed import DAY_MS, EVERY_MS, Direct
from pigeonpost.core.clock import Clock
from pigeonpost.http.message import Request
from pigeonpost.storage.maintenance import MaintenanceWorker
from pigeonpost.storage.models import LogMark
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.views.chart import Charts
from pigeonpost.views.context import RequestContext
from pigeonpost.views.statistics import StatisticsReader

_NAMES = ("n0/temperature", "n0/light", "n1/temperature", "n1/light")
_SPANS = (("1h", "an hour"), ("24h", "a day"), ("49h", "49 hours"), ("7d", "a week"), ("30d", "30 days"),
          ("366d", "a year"), ("1830d", "5 years"))  # fmt: skip


def build(store: SqliteStore, days: int, end_ms: int) -> None:
    """Fill `store` with two nodes of `days` days that end at `end_ms` (ms since 1970), and with their rollups."""
    filed, count = 0, days * DAY_MS // EVERY_MS
    for node in range(2):
        for epoch_commit in epoch_commits(node, range(1, count + 1), TOGETHER, end_ms - count * EVERY_MS):
            with store.writing(()):
                filed = store.put([epoch_commit], end_ms, LogMark("a.csv", 1, 0, filed))
    worker = MaintenanceWorker(store, Direct(store), Clock())
    while worker.work():
        pass


def chart_request(store: SqliteStore, query: str) -> RequestContext:
    """Return a request for the chart `query`, with the parts of a WebContext that a chart of `store` needs."""
    units = {"temperature": "°C", "light": "counts"}
    sensors = [
        SimpleNamespace(name=name, unit=unit, label="", number=k) for k, (name, unit) in enumerate(units.items())
    ]
    nodes: Mapping[str, Any] = {f"n{k}": SimpleNamespace(sensors=sensors, every_s=EVERY_MS / 1000) for k in range(2)}
    names = SimpleNamespace(current=lambda name: name)
    app: Any = SimpleNamespace(store=store, clock=Clock(), ingestor=SimpleNamespace(names=names))
    snapshot: Any = SimpleNamespace(node=nodes.get)
    return RequestContext(app, Request("GET", f"/chart.svg?{query}", "1.1", {}), (), lambda: snapshot)


def median_ms(ask: Callable[[], object]) -> float:
    """Return the median time of five calls of `ask`, in milliseconds."""
    took = []
    for _ in range(5):
        began_s = time.perf_counter()
        ask()
        took.append((time.perf_counter() - began_s) * 1000)
    return statistics.median(took)


def chart(store: SqliteStore, span: str, count: int) -> str:
    """Return the time and size of a chart as text: `count` series of `store` over `span`."""
    context = chart_request(store, f"series={','.join(_NAMES[:count])}&span={span}&size=large")
    length = len(Charts(context.app.clock).answer(context).body)
    took_ms = median_ms(lambda: Charts(context.app.clock).answer(context))
    return f"{took_ms:.1f} ms, {length / 1000:.1f} kB"


def main() -> None:
    """Build the store, draw the charts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=366, help="days of samples (366)")
    days = parser.parse_args().days
    end_ms = Clock().wall_ms()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(folder)
        build(store, days, end_ms)
        rows = [
            (f"chart of {label}: 1; 2; 4 series", "; ".join(chart(store, span, count) for count in (1, 2, 4)))
            for span, label in _SPANS
        ]
        for label, span_days in (("a day", 1), ("a week", 7), ("30 days", 30), ("a year", 365)):
            from_ms = end_ms - span_days * DAY_MS
            took_ms = median_ms(
                lambda from_ms=from_ms: StatisticsReader(store, Clock()).of("n0", "temperature", from_ms, end_ms)  # type: ignore[misc]
            )
            rows.append((f"statistics of {label}", f"{took_ms:.1f} ms"))
        store.close()
    table(f"charts: two nodes, {days} days, one sample every 10 s", rows)


if __name__ == "__main__":
    main()
