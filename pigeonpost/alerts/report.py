"""Content of a regular report, and its text: statistics of every sensor, gaps, alerts, silent nodes, faults, disk.

It runs in the Notifier's thread. Errors: those of the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.alerts.recipients import ReportPlan
from pigeonpost.core.clock import parse_rfc3339, rfc3339
from pigeonpost.core.format import (
    MONTHS,
    aligned,
    counted,
    number,
    offset_if_repeated,
    size,
    stamp,
    with_unit,
    zone_name,
)

if TYPE_CHECKING:
    from pigeonpost.server.disk_usage import DiskUsage
    from pigeonpost.server.node_register import NodeRegister
    from pigeonpost.storage.contract import Store

MOST_SENSORS = 2000  # sensors in a report
MOST_GAPS = 10_000  # gaps that are searched for those of the time range
MOST_LINES = 50  # gaps, alerts, and sensors of a node without values, in a report
_COLUMNS = 288  # ranges in which the lowest and the highest value are searched: 5 minutes of a day
_HOUR_MS = 3_600_000


class SensorStatistics(NamedTuple):
    """Statistics of one sensor in the time range of the report.

    Attributes:
        name: Name of the sensor.
        title: Its label, or its name with spaces if it has none.
        unit: Unit of its values.
        values: Number of values.
        mean: Mean of the values.
        low: Lowest value.
        low_ms: Its time in ms since 1970 (UTC), to about a minute.
        high: Highest value.
        high_ms: Its time, likewise.
    """

    name: str
    title: str
    unit: str
    values: int
    mean: float
    low: float
    low_ms: int
    high: float
    high_ms: int


class NodeStatistics(NamedTuple):
    """Statistics of one node.

    Attributes:
        name: Name of the node.
        lost: Number of samples that were recorded as lost in the time range.
        last_ms: Time of its last stored sample, in ms since 1970 (UTC), or None.
        sensors: Its sensors with values; empty if the node was silent.
        empty: Titles of its sensors without values, although it still sends them or sent values shortly before; by
            name.
    """

    name: str
    lost: int
    last_ms: int | None
    sensors: Sequence[SensorStatistics]
    empty: Mapping[str, str] = MappingProxyType({})


class ReportContent(NamedTuple):
    """Content of a report.

    Attributes:
        server: Name of the server.
        schedule: Schedule of the report, in words.
        from_ms: Start of the time range in ms since 1970 (UTC), inclusive.
        to_ms: End of the time range, exclusive.
        nodes: The selected nodes that are in use.
        more: Number of sensors that were left out, because there are too many.
        gaps: Gaps that were recorded in the time range, newest first, as returned by the store.
        alerts: Alerts of the time range, oldest first, as in the list of recent messages.
        faults: Current faults of the server.
        disk: Disk usage, or None.
        is_selection: True if the recipient has selected nodes.
    """

    server: str
    schedule: str
    from_ms: int
    to_ms: int
    nodes: Sequence[NodeStatistics]
    more: int = 0
    gaps: Sequence[dict[str, Any]] = ()
    alerts: Sequence[dict[str, Any]] = ()
    faults: Sequence[str] = ()
    disk: DiskUsage | None = None
    is_selection: bool = False


class ReportSource(NamedTuple):
    """Sources of the reports.

    Attributes:
        server: Name of the server.
        store: The store.
        names: Register of renamed and retired nodes; None if there are none.
        alerts: Function that returns the alerts of a time range on some channels.
        faults: Function that returns the current faults of the server.
        disk: Function that returns the disk usage; None if it is not known.
    """

    server: str
    store: Store
    names: NodeRegister | None = None
    alerts: Callable[[int, int, Sequence[str]], Sequence[dict[str, Any]]] = lambda from_ms, to_ms, channels: ()
    faults: Callable[[], Sequence[str]] = lambda: ()
    disk: Callable[[], DiskUsage | None] = lambda: None

    def collect(self, plan: ReportPlan, from_ms: int, to_ms: int) -> ReportContent:
        """Return the content of the report of `plan` on the time from `from_ms` to `to_ms` (ms since 1970, UTC)."""
        store, names = self.store, self.names
        chosen = plan.chosen._replace(nodes=[names.current(one) if names else one for one in plan.chosen.nodes])
        labels = store.node_records().labels
        gaps = [
            gap for gap in store.gaps(MOST_GAPS) if from_ms <= gap["noted_ms"] < to_ms and chosen.covers(gap["node"])
        ]
        nodes: list[NodeStatistics] = []
        left = more = 0
        for about in store.nodes():
            node = about["name"]
            if not chosen.covers(node) or (names is not None and names.retired_ms(node) is not None):
                continue
            sensors = [name for name in about["sensors"] if chosen.covers(node, name)]
            titles = {name: labels.get((node, name)) or name.replace("_", " ") for name in sensors}
            found, empty = [], []
            for name in sensors[: max(0, MOST_SENSORS - left)]:
                one = self._statistics(node, name, about["sensors"][name], from_ms, to_ms)
                if one is None:
                    empty.append(name)
                else:
                    found.append(one._replace(title=titles[name]))
            more += max(0, len(sensors) - max(0, MOST_SENSORS - left))
            left += len(sensors)
            lost = sum(gap_count(gap) for gap in gaps if gap["node"] == node)
            failed = self._failed(node, empty, from_ms, to_ms) if found and empty else []
            nodes.append(NodeStatistics(node, lost, about["last_ms"], found, {name: titles[name] for name in failed}))
        return ReportContent(
            self.server, str(plan), from_ms, to_ms, nodes, more, gaps, self.alerts(from_ms, to_ms, plan.channels),
            self.faults(), self.disk(), bool(chosen.nodes),
        )  # fmt: skip

    def _failed(self, node: str, names: Sequence[str], from_ms: int, to_ms: int) -> list[str]:
        """Return those of `names`, sensors without values, that are in use: a removed sensor is not a fault."""
        sent = {name for last in self.store.points(node, from_ms, to_ms, 1) for name in last.values}
        before_ms = max(0, 2 * from_ms - to_ms)
        return [
            name for name in names if name in sent or self.store.downsample(node, name, before_ms, from_ms, 1)
        ]  # fmt: skip

    def _statistics(self, node: str, name: str, unit: str, from_ms: int, to_ms: int) -> SensorStatistics | None:
        buckets = self.store.downsample(node, name, from_ms, to_ms, _COLUMNS)
        if not buckets:
            return None
        total = buckets[0]._replace(place=0)
        for one in buckets[1:]:
            total = total.with_other(one._replace(place=0))
        width_ms = (to_ms - from_ms) / _COLUMNS

        def time_of(value: float, is_low: bool) -> int:
            """Return the time of an extreme value: search its range again, in narrower ones."""
            place = next(one.place for one in buckets if (one.low if is_low else one.high) == value)
            # In steps of a second, or of a minute in long ranges. A rollup counts in the range in which its window
            # starts, so its values can be up to an hour later.
            step_ms = 1000 if width_ms <= 600_000 else 60_000
            start_ms = (from_ms + int(place * width_ms)) // step_ms * step_ms
            count = int(width_ms) // step_ms + 2 + (_HOUR_MS // step_ms if width_ms > 600_000 else 0)
            narrow = self.store.downsample(node, name, start_ms, start_ms + count * step_ms, count)
            found = [one.place for one in narrow if (one.low if is_low else one.high) == value]
            return max(from_ms, start_ms + found[0] * step_ms) if found else max(from_ms, start_ms)

        low, high = total.low, total.high
        return SensorStatistics(
            name, name, unit, total.values, total.mean, low, time_of(low, True), high, time_of(high, False)
        )


def gap_count(gap: dict[str, Any]) -> int:
    """Return the number of samples in a gap."""
    return int(max(0, gap["to"] - gap["from"] + 1) + gap["before"])


def when(time_ms: int) -> str:
    """Return `time_ms` (ms since 1970, UTC) in local time, for a report that names its zone: `28 Nov 05:12`."""
    t = time.localtime(time_ms // 1000)
    return f"{t.tm_mday} {MONTHS[t.tm_mon - 1]} {time.strftime('%H:%M', t)}{offset_if_repeated(time_ms)}"


def span_text(from_ms: int, to_ms: int) -> str:
    """Return the local time from `from_ms` to `to_ms` (ms since 1970, UTC): `2026-11-27 07:00 to 2026-11-28 07:00`.

    The offsets from UTC are added if they differ.
    """
    texts = [stamp(one) for one in (from_ms, to_ms)]
    differ = texts[0][19:] != texts[1][19:]
    return " to ".join(text[:16] + (text[19:] if differ else "") for text in texts)


def report_text(content: ReportContent) -> str:
    """Return the report with `content` as plain text."""
    return "\n".join(_lines(content)) + "\n"


def silent_nodes(content: ReportContent) -> list[str]:
    """Return a text for each node in `content` without values."""
    return [
        f"{one.name}, {'no sample yet' if one.last_ms is None else f'last sample {stamp(one.last_ms)[:16]}'}"
        for one in content.nodes
        if not one.sensors
    ]


def no_samples(content: ReportContent) -> str:
    """Return the reason why `content` has no nodes."""
    if content.is_selection:
        return "No samples of the selected nodes are stored. Check `nodes` in the [[recipient]] table."
    return "No samples are stored."


def empty_sensors(content: ReportContent) -> list[str]:
    """Return a text for each node in `content` with sensors that have no values: `attic: humidity, pressure`."""
    texts = []
    for one in content.nodes:
        titles = list(one.empty.values())
        more = f" and {len(titles) - MOST_LINES:,} more" if len(titles) > MOST_LINES else ""
        texts += [f"{one.name}: {', '.join(titles[:MOST_LINES])}{more}"] if titles else []
    return texts


def gap_lines(content: ReportContent) -> list[tuple[str, str, str, str]]:
    """Return the time, node, number of samples and reason of each gap in `content`."""
    return [
        (when(gap["noted_ms"]), gap["node"], f"{gap_count(gap):,}", gap["why"]) for gap in content.gaps[:MOST_LINES]
    ]


def alert_lines(content: ReportContent) -> list[tuple[str, str, str]]:
    """Return the time, severity and subject of each alert in `content`."""
    return [(when(parse_rfc3339(one["time"])), one["severity"], one["subject"]) for one in content.alerts[-MOST_LINES:]]


def disk_text(disk: DiskUsage) -> str:
    """Return the usage of a `disk` in one sentence."""
    text = f"{size(disk.stored)} stored, {size(disk.free)} free"
    if disk.grows is not None:
        text += f", growing by {size(disk.grows)} per day"
    if disk.days is not None:
        text += f": full in about {counted(round(disk.days), 'day')}"
    return f"{text}."


def _lines(content: ReportContent) -> Iterator[str]:
    yield f"Report of the Pigeonpost server {content.server} ({content.schedule})"
    yield span_text(content.from_ms, content.to_ms)
    yield f"Time zone: {zone_name(content.to_ms)}"
    head = ("sensor", "lowest", "at", "mean", "highest", "at", "values")
    for node in content.nodes:
        if node.sensors:
            lost = f" ({counted(node.lost, 'sample')} lost)" if node.lost else ""
            rows = [
                (one.title, number(one.low), when(one.low_ms), number(one.mean), with_unit(number(one.high), one.unit),
                 when(one.high_ms), f"{one.values:,}") for one in node.sensors
            ]  # fmt: skip
            yield from ("", f"{node.name}{lost}", *(f"  {line}" for line in aligned(head, rows, "<><>><>")))
    if content.more:
        yield from ("", f"{counted(content.more, 'more sensor')} not listed here; see the page.")
    if not content.nodes:
        yield from ("", no_samples(content))
    if silent := silent_nodes(content):
        yield from ("", "Nodes without values:", *(f"  {one}" for one in silent))
    if empty := empty_sensors(content):
        yield from ("", "Sensors without values:", *(f"  {one}" for one in empty))
    if gaps := gap_lines(content):
        lines = aligned(("recorded", "node", "samples", "reason"), gaps, "<<><")
        yield from ("", f"Lost samples ({counted(len(content.gaps), 'gap')}):", *(f"  {line}" for line in lines))
    yield from ("", "Alerts:", *([f"  {'  '.join(one)}" for one in alert_lines(content)] or ["  none"]))
    if content.faults:
        yield from ("", "Faults of the server now:", *(f"  {one}" for one in content.faults))
    if content.disk is not None:
        yield from ("", f"Disk: {disk_text(content.disk)}")


def report_facts(content: ReportContent) -> dict[str, Any]:
    """Return the `content` of a report as a JSON object."""
    return {
        "kind": "report", "from": rfc3339(content.from_ms), "to": rfc3339(content.to_ms),
        "nodes": {
            node.name: {
                one.name: {"values": one.values, "low": one.low, "high": one.high, "mean": one.mean, "unit": one.unit,
                           "low_time": rfc3339(one.low_ms), "high_time": rfc3339(one.high_ms)}
                for one in node.sensors
            } for node in content.nodes
        },
        "without_values": {node.name: list(node.empty) for node in content.nodes if node.empty},
        "lost": {node.name: node.lost for node in content.nodes if node.lost},
        "faults": list(content.faults),
    }  # fmt: skip
