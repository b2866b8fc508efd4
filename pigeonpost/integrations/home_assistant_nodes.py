"""State of all nodes for Home Assistant: which exist, their sensors, and which values are current.

Only the thread of home_assistant_discovery uses it. Errors: NotStored and DiskError, if the store cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.integrations.home_assistant_messages import OFF, ON, SensorFacts
from pigeonpost.link.samples import Number
from pigeonpost.server.latest_samples import LatestSample
from pigeonpost.server.liveness import is_silent, wait_s
from pigeonpost.server.node_status import NodeState
from pigeonpost.transports.contract import ServerContext

COUNTS_S = 60.0  # interval between two reads of the counts in the store
SETTLE_S = 600.0  # time for which a sensor may be silent after the start before its entity is removed


class KnownNode:
    """State of one node.

    Attributes:
        name: Name.
        sensors: Its sensors, by name.
        expire_s: Seconds after which a value is no longer current.
        version: Version of its program; empty if it is unknown.
        has_switch: True if this server can switch it on and off.
        is_online: True if it is connected or sends samples as expected.
        is_connected: True if it is connected.
        is_on: True if it is sampling, False if not, None if it is unknown.
        waiting: Number of samples in its outbox; None if it is unknown.
        missing: Number of lost samples.
        last_ms: Time of its last sample, in ms since 1970 (UTC), or None.
        offset_ms: Its clock minus the server's in ms, or None.
        round_trip_ms: Round-trip time of its link in ms, or None.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sensors: dict[str, SensorFacts] = {}
        self.expire_s = 0
        self.version = ""
        self.has_switch = self.is_online = self.is_connected = False
        self.is_on: bool | None = None
        self.waiting: int | None = None
        self.missing = 0
        self.last_ms: int | None = None
        self.offset_ms: int | None = None
        self.round_trip_ms: float | None = None

    def status(self) -> Mapping[str, Any]:
        """Return the status message of the node."""
        trip_ms = self.round_trip_ms
        return {
            "connection": ON if self.is_connected else OFF,
            "sampling": None if self.is_on is None else ON if self.is_on else OFF,
            "waiting": self.waiting, "missing": self.missing,
            "last_sample": None if self.last_ms is None else rfc3339(self.last_ms),
            "clock_offset": self.offset_ms, "round_trip": None if trip_ms is None else round(trip_ms, 1),
        }  # fmt: skip


class NodeReader:
    """Reads the state of all nodes.

    Args:
        context: The server's components.

    Attributes:
        by_name: The nodes, after `read`.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self.by_name: dict[str, KnownNode] = {}
        self._missing: dict[str, int] = {}
        self._counted_s = -COUNTS_S
        self._first_s: dict[str, float] = {}  # time of the first sample of each node in this run

    def read(self, known: Mapping[str, Mapping[str, str]]) -> None:
        """Update `by_name`.

        Args:
            known: Units of the sensors of the nodes that Home Assistant knows, by node.
        """
        context, now_s = self._context, self._context.clock.monotonic()
        if now_s - self._counted_s >= COUNTS_S:
            self._missing = {about["name"]: about["missing"] for about in context.store.nodes()}
            self._counted_s = now_s
        states: dict[str, NodeState] = {}
        for state in [link.state for link in list(context.links)]:
            other = states.get(state.name)
            if state.name and (other is None or (state.connected and not other.connected)):
                states[state.name] = state
        latest = dict(context.ingestor.latest)
        self.by_name = {
            name: self._node(name, states.get(name), latest.get(name), known.get(name, {}))
            for name in sorted({*latest, *known}) if self._is_in_use(name)
        }  # fmt: skip

    def current_values(self, node: KnownNode) -> dict[str, Number | None] | None:
        """Return the current value of each sensor of `node`, None for one without; None if no sensor has one."""
        latest = self._context.ingestor.latest.get(node.name)
        if latest is None:
            return None
        values = {name: self._fresh(node, latest, name) for name in node.sensors}
        return values if any(value is not None for value in values.values()) else None

    def _fresh(self, node: KnownNode, latest: LatestSample, sensor: str) -> Number | None:
        value = latest.sample.values.get(sensor)
        clock, of_sensor = self._context.clock, latest.of(sensor)
        taken_ms = of_sensor.taken_ms(node.offset_ms, clock.wall_ms(), clock.monotonic())
        if value is None or not math.isfinite(value):
            return None
        return value if is_fresh(clock.wall_ms() - taken_ms, node.expire_s) else None

    def _is_in_use(self, name: str) -> bool:
        names = self._context.names
        return names is None or (names.current(name) == name and names.retired_ms(name) is None)

    def _node(
        self, name: str, state: NodeState | None, latest: LatestSample | None, known: Mapping[str, str]
    ) -> KnownNode:
        context, clock, node = self._context, self._context.clock, KnownNode(name)
        now_s, commit_s = clock.monotonic(), context.ingestor.commit_s
        received_s = context.ingestor.received_s.get(name)
        late_s = wait_s(state, commit_s)
        node.expire_s = math.ceil(late_s)
        node.missing = self._missing.get(name, 0)
        node.is_online = received_s is not None and now_s - received_s <= late_s
        if state is not None:
            is_silent_now = state.on is not False and is_silent(state, received_s, now_s, commit_s)
            node.is_connected = state.connected
            node.is_online = node.is_online or (state.connected and not is_silent_now)
            node.is_on, node.offset_ms, node.round_trip_ms = state.on, state.offset_ms, state.round_trip_ms
            node.version = str(state.details.get("version", ""))[:20]
            node.has_switch = state.on is not None and (state.takes_orders or not state.calls_in)
        if latest is not None:
            node.last_ms = latest.taken_ms(node.offset_ms, clock.wall_ms(), now_s)
        if state is not None:
            node.waiting = self._waiting(node, state, received_s)
        node.sensors = self._sensors(name, state, latest, known, now_s)
        return node

    def _waiting(self, node: KnownNode, state: NodeState, received_s: float | None) -> int | None:
        """Return the number of samples in the outbox of a node, or None if it is unknown.

        A node sends its oldest sample first. If its last sample is current, no sample is waiting, although an older
        STATUS may contain another number. Of a STATUS that is older than the last sample, the number is unknown.
        """
        clock, waiting = self._context.clock, state.details.get("waiting")
        if not state.connected or type(waiting) is not int or waiting < 0:
            return None
        if node.last_ms is not None and is_fresh(clock.wall_ms() - node.last_ms, node.expire_s):
            return 0
        if received_s is None or state.checked_ms is None:
            return waiting
        received_ms = clock.wall_ms() - (clock.monotonic() - received_s) * 1000
        return waiting if state.checked_ms >= received_ms else None

    def _sensors(
        self, name: str, state: NodeState | None, latest: LatestSample | None, known: Mapping[str, str], now_s: float
    ) -> dict[str, SensorFacts]:
        """Return the sensors of a node. A sensor that was known before stays for SETTLE_S after its first sample."""
        units = dict(latest.units) if latest is not None else {}
        found = {sensor: units.get(sensor, "") for sensor in latest.sample.values} if latest is not None else {}
        if latest is None or now_s - self._first_s.setdefault(name, now_s) < SETTLE_S:
            found = {**known, **found}
        reported = {one["name"]: one for one in state.sensors} if state is not None else {}
        names = self._context.names
        return {
            sensor: SensorFacts(
                unit, names.label(name, sensor) if names is not None else "",
                sensor.endswith("_total") or reported.get(sensor, {}).get("total") is True,
            ) for sensor, unit in sorted(found.items())
        }  # fmt: skip


def is_fresh(age_ms: int, expire_s: float) -> bool:
    """Return True if a value of the age `age_ms` is current in Home Assistant, which forgets it after `expire_s`."""
    return age_ms <= expire_s * 1000
