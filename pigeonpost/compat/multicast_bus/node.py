"""Node side of the multicast bus, which sends each reading as a packet."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pigeonpost.compat.multicast_bus.component import MOST_AT_ONCE, Bus, BusTransport, Sender, bus_of
from pigeonpost.compat.multicast_bus.packets import ALL_COMPONENTS, Packet, Value
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import Settings
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.format import counted
from pigeonpost.core.strict_json import read_json
from pigeonpost.node.ring_file import slot_bytes_for
from pigeonpost.node.ring_records import UnnumberedSample

if TYPE_CHECKING:
    from pigeonpost.node.node_info import NodeInfo
    from pigeonpost.node.outbox import Outbox

log = logging.getLogger(__name__)

MOST_LATE = 10_000  # maximum number of delayed samples that a node still sends after an interruption


class BusNodeTransport(BusTransport):
    """Transport that sends each sample of the outbox on the bus, one packet per reading.

    Args:
        load: Function that reads the bus settings.
        sender: Sender of this component.
        codifiers: Codifiers by channel name.
        controls: Codifiers by name, for values that the commands A and E can change. Each change is a reading of this
            node.
        outbox: Outbox of the node.
        clock: Clock of the node.
    """

    def __init__(
        self,
        load: Callable[[], Bus],
        sender: Sender,
        codifiers: Mapping[str, str],
        controls: Mapping[str, str],
        outbox: Outbox,
        clock: Clock,
    ) -> None:
        super().__init__(load, sender, clock)
        self._component_sender = sender
        self._codifiers = {**codifiers, **controls}
        self._settable = {code: name for name, code in controls.items()}
        self._values: dict[str, float] = {}  # present values, as set by A and E
        self._outbox = outbox
        self._next = outbox.ring.last + 1
        self._begun = False

    def start(self) -> None:
        self._next = self._outbox.ring.last + 1
        self._outbox.watch(self.wake)
        super().start()

    def stop(self, limit_s: float) -> str | None:
        self._outbox.unwatch(self.wake)
        return super().stop(limit_s)

    def _opened(self) -> list[socket.socket]:
        """Set the initial state according to the configuration (Active). Later S and H change the state."""
        sender, old = self._component_sender, self.bus.old.sensors if self.bus.old else {}
        if not self._begun and sender.codifier in old and not old[sender.codifier].active:
            sender.active = False
            log.info("bus: %s is halted by its configuration (Active); S starts it", sender.codifier)
        self._begun = True
        return []

    def _on_wake(self) -> None:
        last = self._outbox.ring.last
        if last - self._next > MOST_LATE:
            log.warning("bus: %s not sent, because too many were waiting", counted(last + 1 - self._next, "sample"))
            self._next = last + 1
        if not self._component_sender.active:
            self._next = last + 1
        while self._next <= last and not self._stopping.is_set():
            slots = self._outbox.read(self._next, min(MOST_AT_ONCE, last + 1 - self._next))
            for slot in slots:
                if slot is not None:
                    self._send_reading(slot.wall_ms, slot.body)
            self._next += len(slots)

    def _send_reading(self, time_ms: int, body: str) -> None:
        values = read_json("{" + body + "}")["values"]
        for name, value in {**self._values, **values}.items():
            codifier = self._codifiers.get(name)
            if codifier is not None and value is not None:
                self._component_sender.data(codifier, time_ms, *self._as_packet(codifier, value))

    def _as_packet(self, codifier: str, value: int | float) -> tuple[str, Value]:
        """Return the flag and the value of the data packet for a number: that of its DataType, if the number fits."""
        old = self.bus.old.sensors if self.bus.old else {}
        kind = old[codifier].data_type if codifier in old else ("float" if isinstance(value, float) else "integer")
        if kind != "float" and value == int(value) and 0 <= value < 2**32:
            return "i", int(value)
        if abs(value) > _LARGEST_F32:
            return "j", {"value": value}
        return "f", float(value)

    def _is_addressed(self, to: str) -> bool:
        return super()._is_addressed(to) or to in self._settable

    def _stop_sending(self) -> None:
        super()._stop_sending()
        self._stopping.set()

    def _command(self, packet: Packet) -> None:
        if packet.flag in "SH" and packet.to in (self._component_sender.codifier, ALL_COMPONENTS):
            self._component_sender.active = packet.flag == "S"
            self._alive_due_s = 0.0  # send I now, which contains the new state
        elif packet.flag in "AE":
            assert isinstance(packet.value, float)
            for codifier, name in self._settable.items():
                if packet.to in (codifier, ALL_COMPONENTS):
                    self._set(name, packet.value + (self._values.get(name, 0.0) if packet.flag == "E" else 0.0))

    def _set(self, name: str, value: float) -> None:
        """Store a changed value as a reading of the present time."""
        if not math.isfinite(value):
            return
        self._values[name] = value
        if self._outbox.on:
            clock = self._clock
            self._outbox.put(UnnumberedSample(clock.wall_ms(), clock.up_ms(), clock.is_set(), {name: value}, {}))


_LARGEST_F32 = 3.4028234663852886e38


def make_transport(settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> BusNodeTransport:
    """Return the bus transport of a node, and add the controls to the channels in `info`.

    Args:
        settings: Settings of the node.
        info: Description of the node, with its channels.
        outbox: Outbox of the node.
        clock: Clock of the node.

    Raises:
        SettingsError: The settings or the legacy configuration are invalid.
    """
    codifiers: dict[str, str] = dict(settings["bus", "codifiers"])
    controls: dict[str, str] = dict(settings["bus", "controls"])
    channels = [str(sensor["name"]) for sensor in info.sensors]
    for name in codifiers:
        if name not in channels:
            raise SettingsError(f"[bus] codifiers: there is no channel {name!r}; there are {', '.join(channels)}")
    for name in controls:
        if name in channels:
            raise SettingsError(
                f"[bus] controls: {name!r} is the name of a measured channel; a control needs another name"
            )
    own = [*codifiers.values(), *controls.values()]
    if not own or len(set(own)) < len(own):
        raise SettingsError(
            '[bus] codifiers must contain at least one codifier, and none twice; example: ["temperature=C4"]'
        )
    if controls and slot_bytes_for(list(controls)[:1]) > outbox.ring.slot_bytes:
        raise SettingsError("[bus] controls: the slots of this outbox are too small for controls; create a new outbox")
    transport = BusNodeTransport(
        lambda: bus_of(settings, own[0]), Sender(own[0], clock), codifiers, controls, outbox, clock
    )
    old = transport.bus.old.sensors if transport.bus.old else {}
    for name, codifier in controls.items():
        if codifier in old and not old[codifier].control:
            raise SettingsError(f'[bus] controls: {codifier} ({name}) has no "Control": "enabled" in its configuration')
    units = {name: old[codifier].symbol[:32] if codifier in old else "" for name, codifier in controls.items()}
    info.sensors = [*info.sensors, *[{"name": name, "unit": unit} for name, unit in units.items()]]
    return transport
