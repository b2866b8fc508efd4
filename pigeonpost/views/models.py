"""State of all nodes and sensors at one moment, as the pages show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from pigeonpost.storage.models import Bucket

# waiting: for its first sample; past: nobody collects from it any more
NodeStatus = Literal["reporting", "waiting", "late", "off", "lost", "past"]
Level = Literal["good", "wait", "bad"]  # wait: nothing is wrong, but something is missing


class SensorView(NamedTuple):
    """One sensor now, and its last day in columns.

    value    of its last sample; None: it failed, and `fault` says how
    low, high  of today; None: nothing today
    low_ms, high_ms  when that was: where the column of the day begins that it fell into
    trend    1 rising, -1 falling, 0 steady, None not known
    columns  places 0 to `span_ms // width_ms` - 1, the last of them now; empty ones are absent
    number   of the sensor in its node, for its colour
    odd      what is odd about the value, by kind, in words; counts of each kind in this run; the limits that it is
             judged by. A sensor without limits has none of them
    """

    node: str
    name: str
    unit: str
    number: int
    simulated: bool
    value: int | float | None
    fault: str
    time_ms: int | None
    is_late: bool
    low: float | None
    high: float | None
    trend: int | None
    columns: Sequence[Bucket]
    width_ms: int
    span_ms: int
    odd: Mapping[str, str] = MappingProxyType({})
    counts: Mapping[str, int] = MappingProxyType({})
    limits: Mapping[str, Any] = MappingProxyType({})
    low_ms: int | None = None
    high_ms: int | None = None


class NodeView(NamedTuple):
    """One node now.

    name     empty while a node that the settings do not name was not reached
    state    NodeStatus
    words    the same for people, with the reason
    since_ms when that began, where it is known
    shift_ms its clock minus ours        held, slots  samples in its outbox, and how many have room
    missing  samples that are known to be lost for ever
    machine  of its computer: cpu_temperature (°C), load, memory_free, disk_free (MiB), as far as it tells them
    warnings   what is wrong with it though it may be reporting, with the remedy
    last_sent  when it last sent one, HH:MM:SS by its own clock, as STATUS said; empty: not asked, or none yet
    certificate  SHA-256 of the one that it showed to this server; empty: the link to it is not encrypted
    """

    name: str
    address: str
    state: NodeStatus
    words: str
    since_ms: int | None
    connected: bool
    on: bool | None
    every_s: float | None
    last_ms: int | None
    age_s: float | None
    held: int | None
    slots: int | None
    samples: int
    missing: int
    shift_ms: int | None
    round_trip_ms: float | None
    version: str
    last_sent: str
    sensors: Sequence[SensorView]
    machine: Mapping[str, float] = MappingProxyType({})
    warnings: Sequence[str] = ()
    certificate: str = ""


class StatusSnapshot(NamedTuple):
    """State of all nodes and of the server at one moment.

    summary  one sentence, without its last full stop and without the age of the last sample
    level    Level
    faults   of this server itself
    """

    now_ms: int
    summary: str
    level: Level
    last_ms: int | None
    faults: Sequence[str]
    nodes: Sequence[NodeView]

    def node(self, name: str) -> NodeView | None:
        return next((node for node in self.nodes if node.name == name), None)
