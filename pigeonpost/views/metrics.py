"""Metrics of the server, its nodes, sensors and integrations, for Prometheus: `GET /metrics`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.errors import PigeonpostError
from pigeonpost.core.version import VERSION
from pigeonpost.http.message import Response
from pigeonpost.server.damage_check import DATABASE_FAULT, LOGS_FAULT
from pigeonpost.storage.maintenance import GRACE_MS
from pigeonpost.views.context import RequestContext, WebContext
from pigeonpost.views.exposition import Metric, metrics_response
from pigeonpost.views.integrations_page import read_statuses
from pigeonpost.views.models import NodeView, StatusSnapshot
from pigeonpost.views.process_metrics import process_metrics

MOST_DIRTY = 1000  # windows without statistics that are counted


def metrics(context: RequestContext, web: Callable[[], Mapping[str, Any]]) -> Response:
    """Return all metrics for `context`: `GET /metrics`. `web` is the function that returns the web server's counts."""
    snapshot, app = context.snapshot(), context.app
    groups = (
        _of_server(app, snapshot), _of_backlogs(app), _of_nodes(snapshot), _of_sensors(snapshot),
        _of_integrations(app), _of_web(web()), process_metrics(),
    )  # fmt: skip
    return metrics_response(context.request, (metric for group in groups for metric in group))


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


def _of_backlogs(app: WebContext) -> Iterator[Metric]:
    text = "Samples that wait for the next commit."
    yield Metric("ingest_queue_samples", "gauge", text, [({}, app.ingestor.queued)])
    text = "Commits and gaps that are stored, but not written to the CSV log yet."
    yield Metric("log_unwritten", "gauge", text, [({}, app.csv.unwritten)])
    text = (
        f"Past windows of ten minutes or an hour whose statistics are not stored yet; at most {MOST_DIRTY} are counted."
    )
    try:
        dirty = len(app.store.dirty_windows(app.clock.wall_ms() - GRACE_MS, MOST_DIRTY))
    except PigeonpostError:  # the damage of the store is a metric itself
        dirty = None
    yield Metric("rollups_pending", "gauge", text, [({}, dirty)])
    text = "Alerts and reports that wait for a mail server or web server."
    waiting = app.notifier.report()["waiting"] if app.notifier is not None else None
    yield Metric("alert_messages_waiting", "gauge", text, [({}, waiting)])


def _of_integrations(app: WebContext) -> Iterator[Metric]:
    states = [
        ({"name": one.name, "kind": one.kind, "direction": one.direction}, one) for one in read_statuses(app.transports)
    ]

    def each(name: str, kind: str, text: str, value: Callable[[Any], float | None]) -> Metric:
        return Metric(f"integration_{name}", kind, text, [(labels, value(one)) for labels, one in states])

    yield each("fault", "gauge", "1 if the exchange with this system has a fault.", lambda one: int(bool(one.fault)))
    text = "Items that this system has not accepted yet."
    yield each("backlog", "gauge", text, lambda one: one.backlog)
    text = "Time of the last success, in seconds since 1970; absent if there was none in this run."
    yield each("last_success_timestamp_seconds", "gauge", text, lambda one: _seconds(one.success_ms))
    yield each("done_total", "counter", "Items exchanged in this run.", lambda one: one.done)
    yield each("refused_total", "counter", "Items that were rejected permanently in this run.", lambda one: one.refused)


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
    text = "Samples in the outbox of the node that this server has not acknowledged."
    yield gauge("waiting", text, lambda node: node.waiting)
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
    yield Metric("event_streams", "gauge", "Open pages that receive live values.", [({}, counts["streams"])])
    answers = [({"status": str(status)}, count) for status, count in sorted(counts["answers"].items())]
    yield Metric("http_requests_total", "counter", "HTTP responses, by status.", answers)
    # The former name of process_cpu_seconds_total is kept.
    yield Metric(
        "process_cpu_seconds_total", "counter", "Processor time used by the server.", [({}, time.process_time())]
    )


def _seconds(duration_ms: float | None) -> float | None:
    return None if duration_ms is None else duration_ms / 1000
