"""The multicast bus of the older multi-sensor system, server side: stores each reading of its components.

One thread, which alone receives and sends. Errors: a missing network, or a group that cannot be joined, is logged once
and tried again. Packets are untrusted input: they are decoded within bounds, counted and shown; they are obeyed only
where `[bus] commands` allows it, and never change settings.

Nothing is sent twice, and what is lost is lost: the bus is for those who listen now; the durable transport of the same
samples is TCP.
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
from pigeonpost.core.multicast import Drain, listener
from pigeonpost.server.unnumbered_sources import Claim, ExternalReading
from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

MOST_BESIDE = 7  # numbers of one JSON reading that are stored beside its value
MOST_HELD = 50_000  # readings that wait for a store that is busy, 25 MiB
GATHER_S = 0.02  # between two submissions to the store, also after one for which it had no room


class Place(NamedTuple):
    """Node and sensor under which the readings of a codifier are stored."""

    node: str
    sensor: str
    unit: str


class BusServerTransport(BusTransport):
    """Receives both channels, keeps the state of all components, and stores each reading once."""

    def __init__(self, load: Callable[[], Bus], voice: Sender | None, context: ServerContext) -> None:
        """voice: None: this server is no component of the bus, and only listens"""
        super().__init__(load, voice, context.clock)
        self._context = context
        self.state = BusState(self._alive_s_of, self._is_listed)
        self.stored = 0
        self.unstored = 0  # readings for which there was no room
        # Readings that wait for the store, as the batches that they will be there: to submit one takes as long as to
        # submit a hundred together (32 µs in all, of this thread and of the one that stores).
        self._held: deque[list[ExternalReading]] = deque()
        self._growing: dict[str, list[ExternalReading]] = {}  # by codifier, those of them that take its next reading
        self._held_count = 0  # readings in all of them
        self._next_s = -math.inf  # when they are submitted next, as Clock.monotonic has it
        self._data_drain = Drain(MOST_AT_ONCE, PACKET_BYTES + 1)
        self._places: dict[str, Place | None] = {}
        self._alike: Counter[str] = Counter()  # how many components of the configuration have one name
        self._own: set[str] = set()  # nodes that have their name from here

    def report(self) -> dict[str, Any]:
        """What `GET /api/v1/bus` shows."""
        bus, now_ms = self.bus, self._clock.wall_ms()
        return {
            "control": join_address(*bus.control), "data": join_address(*bus.data), "interface": bus.path.interface,
            "fault": self.fault, "stored": self.stored, "unstored": self.unstored, **self.state.show(now_ms),
        }  # fmt: skip

    def stop(self, limit_s: float) -> str | None:
        undone = super().stop(limit_s)
        if not undone:
            self._next_s = -math.inf
            self._due()
        return undone or (f"{self._held_count} readings of the bus were not stored" if self._held else None)

    def _opened(self) -> list[socket.socket]:
        self._places = {}
        self._growing.clear()  # a codifier may have another name or unit from here on
        old = self.bus.old.sensors if self.bus.old else {}
        self._alike = Counter(node_name(sensor.short_name, 50) for sensor in old.values())
        return [listener(self.bus.data, self.bus.path)]

    def _came(self, sock: socket.socket) -> None:
        packets = self._decoded(self._data_drain(sock), DATA)
        for heard in self.state.receive(packets, self._clock.wall_ms()):
            if heard.codifier not in self._places:
                self._places[heard.codifier] = self._place_of(heard.codifier)
            place = self._places[heard.codifier]
            if place is not None:
                self._hold(place, heard)

    def _hold(self, place: Place, heard: ReceivedReading) -> None:
        """Hold a reading for the store: in a batch with the one before of its codifier, where that is held too."""
        values = {**_beside(heard.more, place.sensor), place.sensor: heard.value}
        batch = self._growing.get(heard.codifier)
        if batch is None or batch[0].values.keys() != values.keys() or len(batch) >= MOST_AT_ONCE:
            batch = self._growing[heard.codifier] = []
            self._held.append(batch)
            claim = Claim(place.node, "bus", is_listed=self._is_listed(heard.codifier))
            units: Mapping[str, str] = {place.sensor: place.unit}
        else:
            claim, units = batch[0].claim, batch[0].units
        errors = {place.sensor: heard.error} if heard.error else None
        batch.append(ExternalReading(claim, values, units, heard.time_ms, errors))
        self._held_count += 1

    def _control_came(self, packets: list[Packet]) -> None:
        self.state.receive(packets, self._clock.wall_ms())

    def _refused(self, count: int, why: str) -> None:
        if not self.state.refused:
            log.warning("bus: a datagram that is no packet: %s; further ones are only counted", why)
        self.state.refuse(count, why)

    def _due(self) -> float | None:
        """Store what is held, as far as there is room; at most once in GATHER_S seconds, so that batches are long."""
        if not self._held:
            return None
        wait_s = self._next_s - self._clock.monotonic()
        if wait_s > 0:
            return wait_s
        self._next_s = self._clock.monotonic() + GATHER_S
        while self._held:
            batch = self._held[0]
            try:
                if not self._context.unnumbered_sources.leave(*batch):
                    self._lose(self._held_count - MOST_HELD, "the store does not keep up")
                    return GATHER_S
                self.stored += len(batch)
                self._drop(len(batch))
            except (AuthFailed, NotStored) as error:  # neither is better the next time
                self._lose(len(batch), str(error))
        return None

    def _drop(self, count: int) -> None:
        """Hold so many of the oldest readings no more."""
        self._held_count -= count
        while count:
            oldest = self._held[0]
            gone = min(count, len(oldest))
            del oldest[:gone]
            count -= gone
            if not oldest:
                self._held.popleft()
                self._growing.clear()  # it may be one of these

    def _lose(self, count: int, why: str) -> None:
        """Give up the oldest that are held."""
        if count <= 0:
            return
        self._drop(count)
        if not self.unstored:
            log.error("bus: readings are not stored: %s; further ones are only counted", why)
        self.unstored += count

    def _place_of(self, codifier: str) -> Place | None:
        """Named as the old configuration names it. A codifier that this does not know is not stored: without one all
        are, as many as BusState keeps."""
        old = self.bus.old.sensors if self.bus.old else None
        if old is not None and codifier not in old:
            log.info("bus: %s is not in %s, and not stored", codifier, self.bus.old.source if self.bus.old else "")
            return None
        plain = f"bus-{codifier}" if codifier.isalnum() else f"bus-x{codifier.encode().hex()}"
        if old is None:
            return Place(plain, "value", "")
        sensor = old[codifier]
        node = node_name(sensor.short_name, 50)
        taken = ({link.state.name for link in self._context.links} - self._own) | set(self._context.tokens)
        # Two components may have one name there, and a node of ours may have it too.
        if not node or node in taken or self._alike[node] > 1:
            node = f"{node}-{codifier}" if node and codifier.isalnum() else plain
        self._own.add(node)
        return Place(node, slug(sensor.short_name) or "value", sensor.symbol[:32])

    def _is_listed(self, codifier: str) -> bool:
        return self.bus.old is not None and codifier in self.bus.old.sensors

    def _alive_s_of(self, codifier: str) -> float:
        old = self.bus.old.sensors if self.bus.old else {}
        return old[codifier].alive_s if codifier in old else self.bus.alive_s


def _beside(more: Mapping[str, Any], sensor: str) -> dict[str, int | float | None]:
    """Other numbers of a JSON reading, under names of their own."""
    found: dict[str, int | float | None] = {}
    for key, value in more.items():
        number, error = number_of(value) if isinstance(value, int | float) else (None, "no number")
        name = slug(key)
        if not error and name and name != sensor and len(found) < MOST_BESIDE:
            found[name] = number
    return found


def make_transport(context: ServerContext) -> BusServerTransport:
    """The server's end, as the settings have it. Raises SettingsError."""
    settings = context.settings
    codifier = settings["bus", "codifier"]
    return BusServerTransport(
        lambda: bus_of(settings, codifier), Sender(codifier, context.clock) if codifier else None, context
    )
