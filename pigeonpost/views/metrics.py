"""Metrics in the text format of Prometheus (version 0.0.4).

Source: https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.version import VERSION
from pigeonpost.http.message import TEXT, Response
from pigeonpost.server.damage_check import DATABASE_FAULT, LOGS_FAULT
from pigeonpost.views.context import RequestContext, WebContext
from pigeonpost.views.models import NodeView, StatusSnapshot

_PREFIX = "pigeonpost_"


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: Name without the prefix.
        kind: "gauge" or "counter".
        text: Description, for the HELP line.
        values: Labels and value of each time series. Those with the value None are left out.
    """

    name: str
    kind: str
    text: str
    values: Iterable[tuple[Mapping[str, str], float | None]]


def metrics(context: RequestContext, web: Callable[[], Mapping[str, Any]]) -> Response:
    """Return all metrics for `context`: `GET /metrics`. `web` is the function that returns the web server's counts."""
    snapshot, app = context.snapshot(), context.app
    lines: list[str] = []
    for group in (_of_server(app, snapshot), _of_nodes(snapshot), _of_sensors(snapshot), _of_web(web())):
        for metric in group:
            lines += _lines(metric)
    kind = TEXT.replace("text/plain", "text/plain; version=0.0.4")
    return Response(("\n".join(lines) + "\n").encode(), kind, headers={"Cache-Control": "no-store"})


def _of_server(app: WebContext, snapshot: StatusSnapshot) -> Iterator[Metric]:
    def one(name: str, kind: str, text: str, value: float | None, **labels: str) -> Metric:
        return Metric(name, kind, text, [(labels, value)])

    yield one("info", "gauge", "Version and name of this server.", 1, version=VERSION, server=app.name)
    yield one("start_time_seconds", "gauge", "Start time of the program, in seconds since 1970.", app.started_ms / 1000)
    yield one("samples_stored_total", "counter", "Samples stored in this run.", app.ingestor.stored)
    text = "Samples received again in this run; they are stored once."
    yield one("samples_repeated_total", "counter", text, app.ingestor.repeated)
    yield one("commits_total", "counter", "Commits in this run.", app.ingestor.commits)
    yield one("fault", "gauge", "1 if this server has a fault.", int(bool(snapshot.faults)))
    text = "1 if this component has a fault; control.py check prints the fault."
    present = app.faults.present()
    yield Metric("fault_of", "gauge", text, [({"subject": subject}, 1) for subject in sorted(present)])
    if app.check is not None:
        text = "1 if the database or a CSV log is damaged."
        damaged = app.store.damage or any(subject in present for subject in (DATABASE_FAULT, LOGS_FAULT))
        yield one("damage", "gauge", text, int(bool(damaged)))
        text = "Time of the last complete check of the database, in seconds since 1970."
        checked_ms = app.check.checked_ms if app.store.is_checked else None
        yield one("database_checked_timestamp_seconds", "gauge", text, _seconds(checked_ms))
    if (backups := app.transports.get("backup")) is not None:
        made = (backups.report() or {}).get("made")
        text = "Time of the last verified backup, in seconds since 1970."
        yield one("backup_timestamp_seconds", "gauge", text, parse_rfc3339(made) / 1000 if made else None)
    yield one("log_bytes", "gauge", "Size of the CSV log of this run.", app.csv.whole()[1])
    use = app.disk.use()
    yield one("stored_bytes", "gauge", "Size of the data folder.", use.stored)
    yield one("disk_free_bytes", "gauge", "Free space on the disk of the data folder.", use.free)
    yield one("disk_days", "gauge", "Days until the disk is full, at the growth rate of the last day.", use.days)
    yield one("written_bytes_per_day", "gauge", "Bytes written to the disk per day.", use.written)


def _of_nodes(snapshot: StatusSnapshot) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: Callable[[NodeView], float | None]) -> Metric:
        values = [({"node": node.name or node.address}, value(node)) for node in snapshot.nodes]
        return Metric(f"node_{name}", "gauge", text, values)

    yield gauge("connected", "1 if the node is connected.", lambda node: int(node.connected))
    yield gauge("on", "1 if sampling is on, 0 if it is off.", lambda node: None if node.on is None else int(node.on))
    text = "Time of the last sample of the node, in seconds since 1970."
    yield gauge("last_sample_timestamp_seconds", text, lambda node: _seconds(node.last_ms))
    text = "Time at which this server received the last new samples of the node, in seconds since 1970."
    yield gauge("received_timestamp_seconds", text, lambda node: _seconds(node.received_ms))
    yield gauge("samples", "Stored samples of the node.", lambda node: node.samples)
    yield gauge("missing", "Permanently lost samples of the node.", lambda node: node.missing)
    yield gauge("held", "Samples in the outbox of the node.", lambda node: node.held)
    text = "Clock of the node minus the clock of this server."
    yield gauge("clock_offset_seconds", text, lambda node: _seconds(node.shift_ms))
    text = "Round-trip time of the last request to the node."
    yield gauge("round_trip_seconds", text, lambda node: _seconds(node.round_trip_ms))


def _of_sensors(snapshot: StatusSnapshot) -> Iterator[Metric]:
    sensors = [(node.name, sensor) for node in snapshot.nodes for sensor in node.readings]
    yield Metric("reading", "gauge", "The current value of each sensor; absent if it is stale.", [
        ({"node": node, "sensor": sensor.name, "unit": sensor.unit}, sensor.value)
        for node, sensor in sensors if not sensor.is_stale
    ])  # fmt: skip
    # The former names, verdict and verdicts_total, are kept for one more release.
    for name, label in (("quality_flag", "flag"), ("verdict", "verdict")):
        yield Metric(name, "gauge", "1 if the last value of a sensor with limits has this quality flag.", [
            ({"node": sensor.node, "sensor": sensor.name, label: flag}, int(flag in sensor.flag_texts))
            for _, sensor in sensors for flag in sensor.counts
        ])  # fmt: skip
        text = "Values with this quality flag in this run; for stale, the number of periods without a value."
        yield Metric(f"{name}s_total", "counter", text, [
            ({"node": sensor.node, "sensor": sensor.name, label: flag}, count)
            for _, sensor in sensors for flag, count in sensor.counts.items()
        ])  # fmt: skip


def _of_web(counts: Mapping[str, Any]) -> Iterator[Metric]:
    yield Metric("http_connections", "gauge", "Open connections to the web server.", [({}, counts["open"])])
    answers = [({"status": str(status)}, count) for status, count in sorted(counts["answers"].items())]
    yield Metric("http_requests_total", "counter", "HTTP responses, by status.", answers)
    yield Metric(
        "process_cpu_seconds_total", "counter", "Processor time used by the server.", [({}, time.process_time())]
    )


def _seconds(duration_ms: float | None) -> float | None:
    return None if duration_ms is None else duration_ms / 1000


def _lines(metric: Metric) -> list[str]:
    name = _PREFIX + metric.name
    values = [f"{name}{_labels(labels)} {value!r}" for labels, value in metric.values if value is not None]
    return [f"# HELP {name} {metric.text}", f"# TYPE {name} {metric.kind}", *values]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
