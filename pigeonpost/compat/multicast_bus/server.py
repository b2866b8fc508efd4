"""The multicast bus of the older multi-sensor system, server side: stores each reading of its components.

One thread, which alone receives and sends. Errors: a missing network, or a group that cannot be joined, is logged once
and tried again. Packets are untrusted input: they are decoded within bounds, counted and shown; they are obeyed only
where `[bus] commands` allows it, and never change settings.

Nothing is sent twice, and what is lost is lost: the bus is for those who listen now; the durable transport of the same
samples is TCP.
"""

from __future__ import annotations

import logging
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
RETRY_STORE_S = 0.02


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
        self._held: deque[tuple[Place, ReceivedReading]] = deque()  # readings that wait for the store
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
        return undone or (f"{len(self._held)} readings of the bus were not stored" if self._held else None)

    def _opened(self) -> list[socket.socket]:
        self._places = {}
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
                self._held.append((place, heard))
        self._due()

    def _control_came(self, packets: list[Packet]) -> None:
        self.state.receive(packets, self._clock.wall_ms())

    def _refused(self, count: int, why: str) -> None:
        if not self.state.refused:
            log.warning("bus: a datagram that is no packet: %s; further ones are only counted", why)
        self.state.refuse(count, why)

    def _due(self) -> float | None:
        """Store what is held, as far as there is room."""
        held = self._held
        while held:
            try:
                taken = self._leave(*held[0])
            except (AuthFailed, NotStored) as error:  # neither is better the next time
                self._lose(1, str(error))
                continue
            if not taken:
                if len(held) > MOST_HELD:
                    self._lose(len(held) - MOST_HELD, "the store does not keep up")
                return RETRY_STORE_S if held else None
            held.popleft()
            self.stored += 1
        return None

    def _leave(self, place: Place, heard: ReceivedReading) -> bool:
        values = {**_beside(heard.more, place.sensor), place.sensor: heard.value}
        errors = {place.sensor: heard.error} if heard.error else None
        units = {place.sensor: place.unit}
        claim = Claim(place.node, "bus", is_listed=self._is_listed(heard.codifier))
        reading = ExternalReading(claim, values, units, heard.time_ms, errors)
        return self._context.unnumbered_sources.leave(reading)

    def _lose(self, count: int, why: str) -> None:
        """Give up the oldest that are held."""
        for _ in range(count):
            self._held.popleft()
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
