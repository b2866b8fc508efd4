"""State of all nodes and sensors at one moment, as the pages show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from pigeonpost.server.node_status import NodeState
    from pigeonpost.server.quality import QualityFlag
    from pigeonpost.storage.models import Bucket
    from protocol import Sample

# waiting: for its first sample; past: nobody collects from it any more; retired: an operator has said so
NodeStatus = Literal["reporting", "waiting", "late", "off", "lost", "past", "retired"]
UNWATCHED = ("past", "retired")  # states in which nothing is expected of a node
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
    label    text for people; empty: there is none, and `name` is shown
    flags    the quality flags of the value, of which `odd` is made
    since_ms since when it has failed, by this server's clock, at least; None: it has not, or nobody knows
    taken_ms time_ms by this server's clock
    now_ms   of the snapshot
    resting  why no new value is expected, in a word or two; empty: one is
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
    label: str = ""
    flags: Sequence[QualityFlag] = ()
    since_ms: int | None = None
    taken_ms: int | None = None
    now_ms: int = 0
    resting: str = ""

    @property
    def title(self) -> str:
        """The label, else the name, for people."""
        return self.label or self.name.replace("_", " ")


class Trouble(NamedTuple):
    """A sensor that fails or is out of range, of a node that reports. `sensor` and `words` are for people."""

    node: str
    sensor: str
    words: str


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
    waiting  samples in its outbox that this server has not acknowledged; None: not known
    troubles of its sensors, while it reports
    readings  its sensors by their last sample alone, which reads nothing of the store: without columns and trend, and
             with lowest and highest of that sample
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
    waiting: int | None = None
    troubles: Sequence[Trouble] = ()
    readings: Sequence[SensorView] = ()


class NodeNow(NamedTuple):
    """How one node is now: the cheap part of a snapshot, made for every node.

    state     its link's; None: nobody collects from it
    sample    the last one received; after a restart the stored one with the latest date
    last_ms   when that was taken, by this server's clock
    condition, words, since_ms   NodeStatus, the same for people with the reason, and since when
    warnings  what is wrong with it though it may be reporting; of a retired node nothing is
    """

    name: str
    address: str
    state: NodeState | None
    sample: Sample | None
    last_ms: int | None
    is_late: bool
    condition: NodeStatus
    words: str
    since_ms: int | None
    warnings: Sequence[str] = ()
    troubles: Sequence[Trouble] = ()

    @property
    def is_connected(self) -> bool:
        """Whether the node can be asked now."""
        state = self.state
        return state is not None and state.connected and (state.takes_orders or not state.calls_in)

    def age_s(self, now_ms: int) -> float | None:
        """Return the age of its last sample."""
        return max(0.0, (now_ms - self.last_ms) / 1000) if self.last_ms is not None else None


class StatusSnapshot(NamedTuple):
    """State of all nodes and of the server at one moment.

    summary  one sentence, without its last full stop and without the age of the last sample
    level    Level
    faults   of this server itself
    nodes    made when they are looked at: of thousands a page shows some
    summaries  one for each node, in the same order
    places   of the nodes in both, by name
    """

    now_ms: int
    summary: str
    level: Level
    last_ms: int | None
    faults: Sequence[str]
    nodes: Sequence[NodeView]
    summaries: Sequence[NodeNow]
    places: Mapping[str, int]

    def node(self, name: str) -> NodeView | None:
        place = self.places.get(name)
        return self.nodes[place] if place is not None else None
