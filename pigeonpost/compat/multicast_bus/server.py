"""Server side of the multicast bus of the older multi-sensor system, which stores the readings of the components.

One thread receives and sends. Errors: if the network is missing or a group cannot be joined, the error is logged once,
and the thread tries again. Packets are untrusted input: they are decoded within limits, counted and shown. Commands are
executed only if `[bus] commands` allows it, and never change settings.

Lost packets are not sent again. To store every sample, a node must also use a durable transport, such as TCP.
"""

from __future__ import annotations

import logging
import math
import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pigeonpost.compat.multicast_bus.component import MOST_AT_ONCE, Bus, BusTransport, Sender, bus_of
from pigeonpost.compat.multicast_bus.legacy_config import node_name, slug
from pigeonpost.compat.multicast_bus.packets import DATA, PACKET_BYTES, Packet
from pigeonpost.compat.multicast_bus.state import BusState, ReceivedReading, number_of
from pigeonpost.core.addresses import join_address
from pigeonpost.core.errors import AuthFailed, NotStored
from pigeonpost.core.format import counted
from pigeonpost.core.multicast import Drain, listener
from pigeonpost.server.unnumbered_sources import Claim, ExternalReading
from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

MOST_ADDITIONAL = 7  # additional numbers of a JSON reading that are stored with its value
MOST_QUEUED = 50_000  # readings that wait while the store is busy: 25 MiB
GATHER_S = 0.02  # time between two submissions to the store, even if the store could not accept the first one


class Destination(NamedTuple):
    """Node and channel under which the readings of a codifier are stored.

    Attributes:
        node: Name of the node.
        sensor: Name of the channel.
        unit: Unit of the values.
    """

    node: str
    sensor: str
    unit: str


class BusServerTransport(BusTransport):
    """Transport that receives both channels, records the state of all components, and stores each reading once.

    Args:
        load: Function that reads the settings of the bus.
        sender: Sender of this server, or None if it is not a component of the bus and only listens.
        context: Context of the server.
    """

    def __init__(self, load: Callable[[], Bus], sender: Sender | None, context: ServerContext) -> None:
        super().__init__(load, sender, context.clock)
        self._context = context
        self.state = BusState(self._alive_s_of, self._is_listed)
        self.stored = 0
        self.unstored = 0  # readings that the store could not accept
        # Batches of readings that wait for the store. Submitting one reading takes as long as submitting 100 readings
        # together: 32 µs, in this thread and in the thread that stores them.
        self._queued: deque[list[ExternalReading]] = deque()
        # By codifier: the batch to which its next reading is added.
        self._open_batches: dict[str, list[ExternalReading]] = {}
        self._queued_count = 0  # number of readings in all batches
        self._next_s = -math.inf  # `Clock.monotonic()` of the next submission
        self._data_drain = Drain(MOST_AT_ONCE, PACKET_BYTES + 1)
        self._destinations: dict[str, Destination | None] = {}
        self._name_counts: Counter[str] = Counter()  # number of components in the configuration by node name
        self._own: set[str] = set()  # names of the nodes that this transport has created

    def report(self) -> dict[str, Any]:
        """Return the state of the bus for `GET /api/v1/bus`."""
        bus, now_ms = self.bus, self._clock.wall_ms()
        return {
            "control": join_address(*bus.control), "data": join_address(*bus.data), "interface": bus.path.interface,
            "fault": self.fault, "stored": self.stored, "unstored": self.unstored, **self.state.show(now_ms),
        }  # fmt: skip

    def stop(self, limit_s: float) -> str | None:
        error = super().stop(limit_s)
        if not error:
            self._next_s = -math.inf
            self._do_pending()
        return error or (f"{counted(self._queued_count, 'reading')} of the bus not stored" if self._queued else None)

    def _opened(self) -> list[socket.socket]:
        self._destinations = {}
        self._open_batches.clear()  # names and units of codifiers may have changed
        old = self.bus.old.sensors if self.bus.old else {}
        self._name_counts = Counter(node_name(sensor.short_name, 50) for sensor in old.values())
        return [listener(self.bus.data, self.bus.path)]

    def _receive(self, sock: socket.socket) -> None:
        packets = self._decoded(self._data_drain(sock), DATA)
        for reading in self.state.receive(packets, self._clock.wall_ms()):
            if reading.codifier not in self._destinations:
                self._destinations[reading.codifier] = self._destination_of(reading.codifier)
            destination = self._destinations[reading.codifier]
            if destination is not None:
                self._queue(destination, reading)

    def _queue(self, destination: Destination, reading: ReceivedReading) -> None:
        """Add a reading to the waiting batch of its codifier, or to a new batch."""
        values = {**_additional_values(reading.more, destination.sensor), destination.sensor: reading.value}
        batch = self._open_batches.get(reading.codifier)
        if batch is None or batch[0].values.keys() != values.keys() or len(batch) >= MOST_AT_ONCE:
            batch = self._open_batches[reading.codifier] = []
            self._queued.append(batch)
            claim = Claim(destination.node, "bus", is_listed=self._is_listed(reading.codifier))
            units: Mapping[str, str] = {destination.sensor: destination.unit}
        else:
            claim, units = batch[0].claim, batch[0].units
        errors = {destination.sensor: reading.error} if reading.error else None
        batch.append(ExternalReading(claim, values, units, reading.time_ms, errors))
        self._queued_count += 1

    def _on_control(self, packets: list[Packet]) -> None:
        self.state.receive(packets, self._clock.wall_ms())

    def _on_invalid(self, count: int, reason: str) -> None:
        if not self.state.refused:
            log.warning("bus: invalid datagram: %s; further ones are only counted", reason)
        self.state.refuse(count, reason)

    def _do_pending(self) -> float | None:
        """Submit the waiting batches to the store, at most once per GATHER_S seconds, so that batches become long."""
        if not self._queued:
            return None
        wait_s = self._next_s - self._clock.monotonic()
        if wait_s > 0:
            return wait_s
        self._next_s = self._clock.monotonic() + GATHER_S
        while self._queued:
            batch = self._queued[0]
            try:
                if not self._context.unnumbered_sources.queue(*batch):
                    self._discard(self._queued_count - MOST_QUEUED, "the store does not keep up")
                    return GATHER_S
                self.stored += len(batch)
                self._remove_oldest(len(batch))
            except (AuthFailed, NotStored) as error:  # a retry would fail too
                self._discard(len(batch), str(error))
        return None

    def _remove_oldest(self, count: int) -> None:
        """Remove the `count` oldest readings from the waiting batches."""
        self._queued_count -= count
        while count:
            oldest = self._queued[0]
            removed = min(count, len(oldest))
            del oldest[:removed]
            count -= removed
            if not oldest:
                self._queued.popleft()
                self._open_batches.clear()  # they may include the removed batch

    def _discard(self, count: int, reason: str) -> None:
        """Discard the `count` oldest readings, and log the reason once."""
        if count <= 0:
            return
        self._remove_oldest(count)
        if not self.unstored:
            log.error("bus: readings were not stored: %s; further ones are only counted", reason)
        self.unstored += count

    def _destination_of(self, codifier: str) -> Destination | None:
        """Return the node and channel of a codifier, named as in the legacy configuration.

        Return None for a codifier that the configuration does not contain; its readings are not stored. Without a
        configuration, all codifiers are stored, up to the limit of BusState.
        """
        old = self.bus.old.sensors if self.bus.old else None
        if old is not None and codifier not in old:
            log.info("bus: %s is not stored: it is not in %s", codifier, self.bus.old.source if self.bus.old else "")
            return None
        plain = f"bus-{codifier}" if codifier.isalnum() else f"bus-x{codifier.encode().hex()}"
        if old is None:
            return Destination(plain, "value", "")
        sensor = old[codifier]
        node = node_name(sensor.short_name, 50)
        taken = ({link.state.name for link in self._context.links} - self._own) | set(self._context.tokens)
        # Two components may have the same name in the configuration, and another node may have it too.
        if not node or node in taken or self._name_counts[node] > 1:
            node = f"{node}-{codifier}" if node and codifier.isalnum() else plain
        self._own.add(node)
        return Destination(node, slug(sensor.short_name) or "value", sensor.symbol[:32])

    def _is_listed(self, codifier: str) -> bool:
        return self.bus.old is not None and codifier in self.bus.old.sensors

    def _alive_s_of(self, codifier: str) -> float:
        old = self.bus.old.sensors if self.bus.old else {}
        return old[codifier].alive_s if codifier in old else self.bus.alive_s


def _additional_values(more: Mapping[str, Any], sensor: str) -> dict[str, int | float | None]:
    """Return the additional numbers of a JSON reading by channel name."""
    found: dict[str, int | float | None] = {}
    for key, value in more.items():
        number, error = number_of(value) if isinstance(value, int | float) else (None, "not a number")
        name = slug(key)
        if not error and name and name != sensor and len(found) < MOST_ADDITIONAL:
            found[name] = number
    return found


def make_transport(context: ServerContext) -> BusServerTransport:
    """Return the bus transport of the server with the context `context`. Raise SettingsError for invalid settings."""
    settings = context.settings
    codifier = settings["bus", "codifier"]
    return BusServerTransport(
        lambda: bus_of(settings, codifier), Sender(codifier, context.clock) if codifier else None, context
    )
