"""Metrics in Prometheus' text format.

Runs on: server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pigeonpost.core.version import VERSION
from pigeonpost.http.message import TEXT, Response
from pigeonpost.views.context import RequestContext
from pigeonpost.views.models import NodeView


def metrics(context: RequestContext, web: Callable[[], Mapping[str, Any]]) -> Response:
    """`GET /metrics`, in Prometheus's text format (version 0.0.4).

    web: the counts of the web server
    """
    snapshot, app = context.snapshot(), context.app
    lines: list[str] = []

    def tell(name: str, kind: str, text: str, values: Iterable[tuple[Mapping[str, str], float | None]]) -> None:
        told = [(labels, value) for labels, value in values if value is not None]
        lines.extend([f"# HELP pigeonpost_{name} {text}", f"# TYPE pigeonpost_{name} {kind}"])
        lines.extend(f"pigeonpost_{name}{_labels(labels)} {value!r}" for labels, value in told)

    def of_nodes(value: Callable[[NodeView], float | None]) -> list[tuple[Mapping[str, str], float | None]]:
        return [({"node": node.name or node.address}, value(node)) for node in snapshot.nodes]

    tell("info", "gauge", "The program that runs.", [({"version": VERSION, "server": app.name}, 1)])
    tell("start_time_seconds", "gauge", "When it was started.", [({}, app.started_ms / 1000)])
    tell("samples_stored_total", "counter", "Samples stored in this run.", [({}, app.ingestor.stored)])
    tell("samples_repeated_total", "counter", "Samples that came again, and were not stored again.",
         [({}, app.ingestor.repeated)])  # fmt: skip
    tell("commits_total", "counter", "Transactions of this run.", [({}, app.ingestor.commits)])
    tell("fault", "gauge", "1: nothing can be stored, or the CSV log waits.", [({}, int(bool(snapshot.faults)))])
    tell("log_bytes", "gauge", "Size of this run's CSV log.", [({}, app.csv.whole()[1])])
    use = app.disk.use()
    tell("stored_bytes", "gauge", "What the data folder takes up.", [({}, use.stored)])
    tell("disk_free_bytes", "gauge", "Room on its disk.", [({}, use.free)])
    tell("disk_days", "gauge", "Until that is full, at the pace of the last day.", [({}, use.days)])
    tell("written_bytes_per_day", "gauge", "What this program writes to its disk.", [({}, use.written)])
    tell("node_connected", "gauge", "Whether the link is up.", of_nodes(lambda node: int(node.connected)))
    tell("node_on", "gauge", "Whether it samples.", of_nodes(lambda node: None if node.on is None else int(node.on)))
    tell("node_last_sample_timestamp_seconds", "gauge", "When its last sample was taken.",
         of_nodes(lambda node: node.last_ms / 1000 if node.last_ms is not None else None))  # fmt: skip
    tell("node_samples", "gauge", "Its samples that are stored.", of_nodes(lambda node: node.samples))
    tell("node_missing", "gauge", "Its samples that are lost for ever.", of_nodes(lambda node: node.missing))
    tell("node_held", "gauge", "Samples in its outbox.", of_nodes(lambda node: node.held))
    tell("node_clock_offset_seconds", "gauge", "Its clock minus this server's.",
         of_nodes(lambda node: node.shift_ms / 1000 if node.shift_ms is not None else None))  # fmt: skip
    tell("node_round_trip_seconds", "gauge", "How fast it answered last.",
         of_nodes(lambda node: node.round_trip_ms / 1000 if node.round_trip_ms is not None else None))  # fmt: skip
    tell("reading", "gauge", "The last value of each sensor.", [
        ({"node": node.name, "sensor": sensor.name, "unit": sensor.unit}, sensor.value)
        for node in snapshot.nodes for sensor in node.sensors
    ])  # fmt: skip
    tell("verdict", "gauge", "Whether the value of a sensor with limits is odd now, in this way.", [
        ({"node": sensor.node, "sensor": sensor.name, "verdict": kind}, int(kind in sensor.odd))
        for node in snapshot.nodes for sensor in node.sensors for kind in sensor.counts
    ])  # fmt: skip
    tell("verdicts_total", "counter", "Values that were odd in this run; of stale, how often it began.", [
        ({"node": sensor.node, "sensor": sensor.name, "verdict": kind}, count)
        for node in snapshot.nodes for sensor in node.sensors for kind, count in sensor.counts.items()
    ])  # fmt: skip
    counts = web()
    tell("http_connections", "gauge", "Open connections to the page.", [({}, counts["open"])])
    tell("http_requests_total", "counter", "Requests answered.",
         [({"status": str(status)}, count) for status, count in sorted(counts["answers"].items())])  # fmt: skip
    tell("process_cpu_seconds_total", "counter", "Processor time used.", [({}, time.process_time())])
    text = "\n".join(lines) + "\n"
    kind = TEXT.replace("text/plain", "text/plain; version=0.0.4")
    return Response(text.encode(), kind, headers={"Cache-Control": "no-store"})


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
