"""Metrics in Prometheus' text format (version 0.0.4).

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
    """One metric: its name without prefix, "gauge" or "counter", its HELP text, and (labels, value) pairs.

    A pair whose value is None is left out.
    """

    name: str
    kind: str
    text: str
    values: Iterable[tuple[Mapping[str, str], float | None]]


def metrics(context: RequestContext, web: Callable[[], Mapping[str, Any]]) -> Response:
    """`GET /metrics`.

    web: returns the counts of the web server
    """
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

    yield one("info", "gauge", "The program that runs.", 1, version=VERSION, server=app.name)
    yield one("start_time_seconds", "gauge", "When it was started.", app.started_ms / 1000)
    yield one("samples_stored_total", "counter", "Samples stored in this run.", app.ingestor.stored)
    text = "Samples that came again, and were not stored again."
    yield one("samples_repeated_total", "counter", text, app.ingestor.repeated)
    yield one("commits_total", "counter", "Transactions of this run.", app.ingestor.commits)
    yield one("fault", "gauge", "1: something is wrong with this server.", int(bool(snapshot.faults)))
    text = "1: something is wrong with this subject; control.py check says what."
    present = app.faults.present()
    yield Metric("fault_of", "gauge", text, [({"subject": subject}, 1) for subject in sorted(present)])
    if app.check is not None:
        text = "1: the database or a CSV log is damaged."
        damaged = app.store.damage or any(subject in present for subject in (DATABASE_FAULT, LOGS_FAULT))
        yield one("damage", "gauge", text, int(bool(damaged)))
        text = "When the last check of the whole database ended."
        checked_ms = app.check.checked_ms if app.store.is_checked else None
        yield one("database_checked_timestamp_seconds", "gauge", text, _seconds(checked_ms))
    if (backups := app.transports.get("backup")) is not None:
        made = (backups.report() or {}).get("made")
        text = "When the last backup that was found good was made."
        yield one("backup_timestamp_seconds", "gauge", text, parse_rfc3339(made) / 1000 if made else None)
    yield one("log_bytes", "gauge", "Size of this run's CSV log.", app.csv.whole()[1])
    use = app.disk.use()
    yield one("stored_bytes", "gauge", "What the data folder takes up.", use.stored)
    yield one("disk_free_bytes", "gauge", "Room on its disk.", use.free)
    yield one("disk_days", "gauge", "Until that is full, at the pace of the last day.", use.days)
    yield one("written_bytes_per_day", "gauge", "What this program writes to its disk.", use.written)


def _of_nodes(snapshot: StatusSnapshot) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: Callable[[NodeView], float | None]) -> Metric:
        values = [({"node": node.name or node.address}, value(node)) for node in snapshot.nodes]
        return Metric(f"node_{name}", "gauge", text, values)

    yield gauge("connected", "Whether the link is up.", lambda node: int(node.connected))
    yield gauge("on", "Whether it samples.", lambda node: None if node.on is None else int(node.on))
    text = "When its last sample was taken."
    yield gauge("last_sample_timestamp_seconds", text, lambda node: _seconds(node.last_ms))
    yield gauge("samples", "Its samples that are stored.", lambda node: node.samples)
    yield gauge("missing", "Its samples that are lost for ever.", lambda node: node.missing)
    yield gauge("held", "Samples in its outbox.", lambda node: node.held)
    yield gauge("clock_offset_seconds", "Its clock minus this server's.", lambda node: _seconds(node.shift_ms))
    yield gauge("round_trip_seconds", "How fast it answered last.", lambda node: _seconds(node.round_trip_ms))


def _of_sensors(snapshot: StatusSnapshot) -> Iterator[Metric]:
    sensors = [(node.name, sensor) for node in snapshot.nodes for sensor in node.readings]
    yield Metric("reading", "gauge", "The last value of each sensor.", [
        ({"node": node, "sensor": sensor.name, "unit": sensor.unit}, sensor.value) for node, sensor in sensors
    ])  # fmt: skip
    # The former names, verdict and verdicts_total, are written for one more release.
    for name, label in (("quality_flag", "flag"), ("verdict", "verdict")):
        yield Metric(name, "gauge", "1 if the last value of a sensor with limits has this quality flag.", [
            ({"node": sensor.node, "sensor": sensor.name, label: flag}, int(flag in sensor.odd))
            for _, sensor in sensors for flag in sensor.counts
        ])  # fmt: skip
        text = "Values with this quality flag in this run; of stale, how often it began."
        yield Metric(f"{name}s_total", "counter", text, [
            ({"node": sensor.node, "sensor": sensor.name, label: flag}, count)
            for _, sensor in sensors for flag, count in sensor.counts.items()
        ])  # fmt: skip


def _of_web(counts: Mapping[str, Any]) -> Iterator[Metric]:
    yield Metric("http_connections", "gauge", "Open connections to the page.", [({}, counts["open"])])
    answers = [({"status": str(status)}, count) for status, count in sorted(counts["answers"].items())]
    yield Metric("http_requests_total", "counter", "Requests answered.", answers)
    yield Metric("process_cpu_seconds_total", "counter", "Processor time used.", [({}, time.process_time())])


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
