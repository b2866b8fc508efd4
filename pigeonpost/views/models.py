"""State of all nodes and sensors at one time, as shown by the pages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from pigeonpost.server.latest_samples import LatestSample
    from pigeonpost.server.node_status import NodeState
    from pigeonpost.server.quality import QualityFlag
    from pigeonpost.storage.calibration import Calibration
    from pigeonpost.storage.models import Bucket
    from protocol import Sample

# waiting: no sample has arrived yet; past: this server no longer collects from the node; retired: an operator has
# retired the node
NodeStatus = Literal["reporting", "waiting", "late", "off", "lost", "past", "retired"]
UNWATCHED = ("past", "retired")  # states in which no samples are expected
Level = Literal["good", "wait", "bad"]  # bad: a fault of the server or a node; wait: a sensor fails, or no samples yet


class SensorView(NamedTuple):
    """Current state of one sensor, and its last day in columns.

    Attributes:
        node: Name of the node.
        name: Name of the sensor.
        unit: Unit of its values.
        number: Index of the sensor in its node, which selects its colour.
        simulated: True if its values are simulated.
        value: Newest value by time; None if there is none.
        fault: Reason why there is no value; empty if there is one.
        time_ms: Time of the sample with this value by the node's clock, in ms since 1970.
        is_stale: True if the value is not current.
        low: Lowest value of today; None if there is none.
        high: Highest value of today; None if there is none.
        trend: 1 rising, -1 falling, 0 steady, None unknown.
        columns: Buckets with a `place` from 0 to `span_ms // width_ms` - 1. The last one contains the current time.
            Empty buckets are left out.
        width_ms: Duration of a column in ms.
        span_ms: Duration of all columns in ms.
        flag_texts: Texts of the current quality flags, by kind.
        counts: Number of values with each flag in this run.
        limits: Limits of the quality checks; a sensor without limits has neither flags nor counts.
        low_ms: Start of the column with `low`.
        high_ms: Start of the column with `high`.
        label: Label that an operator has set; empty if there is none.
        flags: Current quality flags, from which `flag_texts` is made.
        since_ms: Start of the failure, or the earliest known time of it, by this server's clock; None if the sensor
            works or the time is unknown.
        taken_ms: `time_ms` by this server's clock.
        now_ms: Time of the snapshot.
        calibration: Calibration that is valid now; None if the values are raw.
        resting: Reason why no new value is expected, in one or two words; empty if one is expected.
    """

    node: str
    name: str
    unit: str
    number: int
    simulated: bool
    value: int | float | None
    fault: str
    time_ms: int | None
    is_stale: bool
    low: float | None
    high: float | None
    trend: int | None
    columns: Sequence[Bucket]
    width_ms: int
    span_ms: int
    flag_texts: Mapping[str, str] = MappingProxyType({})
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
    calibration: Calibration | None = None

    @property
    def title(self) -> str:
        """The label, or the name with spaces instead of underscores if there is no label."""
        return self.label or self.name.replace("_", " ")


class SensorFault(NamedTuple):
    """A sensor of a reporting node that fails or is out of range.

    Attributes:
        node: Name of the node.
        sensor: Label of the sensor.
        words: Description of the fault.
    """

    node: str
    sensor: str
    words: str


class NodeView(NamedTuple):
    """Current state of one node.

    Attributes:
        name: Name; empty if the settings contain only the address, and the node was not reached yet.
        address: Address, HOST:PORT.
        state: State.
        words: Text about the state and its reason.
        since_ms: Start of the state in ms since 1970, if known.
        connected: True if the node is connected.
        on: True if sampling is on; None if unknown.
        every_s: Sampling interval in seconds, if known.
        last_ms: Time of its last sample by this server's clock.
        age_s: Age of its last sample in seconds.
        held: Number of samples in its outbox.
        slots: Capacity of its outbox in samples.
        samples: Number of its stored samples.
        missing: Number of its permanently lost samples.
        shift_ms: Its clock minus this server's clock, in ms.
        round_trip_ms: Round-trip time of the last request to the node, in ms.
        version: Version of its program.
        last_sent: Time of its last transmission before its last STATUS, HH:MM:SS by its own clock; empty if unknown.
        sensors: Its sensors.
        machine: Reported values of its computer: cpu_temperature (°C), load, memory_free and disk_free (MiB).
        warnings: Faults that do not prevent it from reporting, with remedies.
        certificate: SHA-256 of its certificate; empty if the link is not encrypted.
        waiting: Number of samples in its outbox that this server has not acknowledged; None if unknown.
        troubles: Faults of its sensors while it reports.
        received_ms: Time at which this server received the last new samples of it in this run; None if there are none.
        checked_ms: Time of its last STATUS, in ms since 1970.
        readings: Its sensors without columns and trend, made from the last sample without a query of the store.
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
    troubles: Sequence[SensorFault] = ()
    readings: Sequence[SensorView] = ()
    received_ms: int | None = None
    checked_ms: int | None = None


class NodeNow(NamedTuple):
    """State of one node: the part of a snapshot that is cheap enough to be made for every node.

    Attributes:
        name: Name.
        address: Address.
        state: State of its link; None if this server does not collect from it.
        sample: Newest sample by time: LatestSample.sample; before the first one of this run, the last stored one.
        last_ms: Time of that sample by this server's clock.
        is_late: True if new samples should have arrived.
        condition: State as shown on the pages.
        words: Text about the state and its reason.
        since_ms: Start of the state in ms since 1970, if known.
        warnings: Faults that do not prevent it from reporting; none for a retired node.
        troubles: Faults of its sensors while it reports.
        silent_s: Time from when this server received the last new samples until this state was made, in seconds; None
            if it has received none in this run.
        received_ms: Time at which it received them, in ms since 1970.
        latest: The newest values; `sample` is a part of it.
        stale: Sensors whose newest values are not current: the node is late or sends a backlog.
        older_ms: Times of the newest values that were not in the newest sample itself, by sensor, as `last_ms`.
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
    troubles: Sequence[SensorFault] = ()
    silent_s: float | None = None
    received_ms: int | None = None
    latest: LatestSample | None = None
    stale: Collection[str] = ()
    older_ms: Mapping[str, int] = MappingProxyType({})

    def taken_ms(self, sensor: str) -> int | None:
        """Return the time of the newest value of `sensor` by this server's clock, in ms since 1970."""
        return self.older_ms.get(sensor, self.last_ms)

    @property
    def is_connected(self) -> bool:
        """True if a request can be sent to the node now."""
        state = self.state
        return state is not None and state.connected and (state.takes_orders or not state.calls_in)

    def age_s(self, now_ms: int) -> float | None:
        """Return the age of its last sample in seconds at `now_ms`, or None if there is none."""
        return max(0.0, (now_ms - self.last_ms) / 1000) if self.last_ms is not None else None


class StatusSnapshot(NamedTuple):
    """State of all nodes and of the server at one time.

    Attributes:
        now_ms: The time in ms since 1970.
        summary: One sentence about the nodes, or about the faults of the server; without full stop.
        level: Level of the summary.
        last_ms: Time of the last sample.
        faults: Faults of this server.
        nodes: The nodes, each made at the first access, since a page shows only some of thousands.
        summaries: Current state of each node, in the same order.
        places: Index of each node by name.
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
        """Return the node called `name`, or None."""
        place = self.places.get(name)
        return self.nodes[place] if place is not None else None
