"""Base class of the components of node and server on the multicast bus: sends and receives packets, executes commands.

Each component has its own thread. Only this thread sends and receives. `wake` may be called by any thread. The flags
of packets, such as I, N and C, are explained in `packets.FLAGS`.
Errors: SettingsError for a configuration that cannot be read during construction. If the network is missing or a group
cannot be joined, the error is logged once, and the component tries again. Packets are untrusted input: they are decoded
within limits, and commands are executed only if `[bus] commands` allows it. They never change settings.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pigeonpost.compat.multicast_bus.legacy_config import OldConfig, Unreachable, load, source_of
from pigeonpost.compat.multicast_bus.packets import (
    ALL_COMPONENTS,
    CONTROL,
    FIRST_SEQUENCE,
    FLAGS,
    LAST_SEQUENCE,
    PACKET_BYTES,
    Packet,
    Value,
    decode,
    encode,
    following,
)
from pigeonpost.core.addresses import join_address
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import Settings
from pigeonpost.core.errors import BadPacket, SettingsError
from pigeonpost.core.multicast import Drain, Path, listener, readable, speaker
from pigeonpost.core.redact import hide_secrets
from pigeonpost.core.wake_pipe import WakePipe
from pigeonpost.transports.contract import Transport

log = logging.getLogger(__name__)

RETRY_S = 5.0  # time between two attempts to open the groups
MOST_AT_ONCE = 1000  # maximum number of packets or samples that are read before they are processed
_FEW_AT_ONCE = 64  # the same maximum for the control channel, which has few packets
MOST_ANSWERS = 50  # answers (T) per second; components ping less often, and a flood of pings must not be amplified
TOO_NEW_MS = 24 * 3_600_000  # a configuration time further in the future is invalid: a wrong clock or an attack


class Bus(NamedTuple):
    """Settings of the bus, from the settings file and the legacy configuration if there is one.

    Attributes:
        control: Group of the control channel.
        data: Group of the data channel.
        path: Interface, TTL and loopback.
        alive_s: Interval of I packets in seconds.
        commands: True if received commands are executed.
        old: Legacy configuration, or None.
    """

    control: tuple[str, int]
    data: tuple[str, int]
    path: Path
    alive_s: float
    commands: bool
    old: OldConfig | None


NO_BUS = Bus(("0.0.0.0", 0), ("0.0.0.0", 0), Path(), 60.0, False, None)  # until the configuration has been read


def bus_of(settings: Settings, own: str = "") -> Bus:
    """Return the settings of the bus.

    The groups and the KeepAliveInterval in the legacy configuration are used if the settings file does not set them.

    Args:
        settings: Settings of the node or server.
        own: Codifier of this component, or an empty string.

    Raises:
        SettingsError: The legacy configuration cannot be read.
    """
    source = source_of(settings["bus", "configuration"])
    old = load(source) if source else None
    groups = []
    for key in ("control", "data"):
        from_old = getattr(old, key) if old and settings.origin("bus", key) == "default" else None
        groups.append(from_old or settings["bus", key])
    path = Path(settings["bus", "interface"], settings["bus", "ttl"], settings["bus", "loop"])
    alive_s = settings["bus", "alive"]
    if old and own in old.sensors and settings.origin("bus", "alive") == "default":
        alive_s = old.sensors[own].alive_s
    return Bus(groups[0], groups[1], path, alive_s, settings["bus", "commands"], old)


class Sender:
    """Sender of the packets of one component.

    Control packets are sent with the codifier of the component, and data packets with the codifiers of its channels.

    Args:
        codifier: Codifier of the component.
        clock: Clock for the times in the packets.
        draw: Function that returns the first sequence number, called with the lowest and the highest possible number.

    Attributes:
        active: True if the component sends readings. Each control packet contains this state.
        config_ms: Time of the configuration in milliseconds since 1970 (UTC).
        unsent: Number of packets that could not be sent.
    """

    def __init__(self, codifier: str, clock: Clock, draw: Callable[[int, int], int] = random.randint) -> None:
        self.codifier = codifier
        self.active = True
        self.config_ms = 0
        self.unsent = 0
        self._clock = clock
        self._draw = draw
        self._sockets: dict[str, socket.socket] = {}
        self._sequence = 0
        self._counts: dict[str, int] = {}

    def open(self, bus: Bus) -> None:
        """Open the sockets for the groups in `bus`. Raise SettingsError if that fails."""
        self.close()
        self._sockets["control"] = speaker(bus.control, bus.path)
        self._sockets["data"] = speaker(bus.data, bus.path)

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets = {}

    def begin(self, config_ms: int) -> None:
        """Restart the numbering of all packets, and send N with `config_ms`, the time of the configuration.

        The time is in milliseconds since 1970 (UTC).
        """
        self.config_ms = config_ms
        self._counts = {}
        self._sequence = self._draw(FIRST_SEQUENCE, LAST_SEQUENCE)
        self.control("N")

    def control(self, flag: str, to: str = ALL_COMPONENTS, value: float | None = None) -> None:
        """Send a control packet.

        Args:
            flag: Flag of the packet.
            to: Codifier of the receiver.
            value: Number in the packet, or None to send the time of the configuration.
        """
        number = float(self.config_ms if value is None else value)
        packet = Packet(self._sequence, self._clock.wall_ms(), flag, self.codifier, to, number, self.active)
        self._send("control", packet)
        self._sequence = following(self._sequence)

    def data(self, codifier: str, time_ms: int, flag: str, value: Value) -> None:
        """Send a reading. Before the first reading of a codifier, send n.

        Args:
            codifier: Codifier of the channel.
            time_ms: Time of the reading in milliseconds since 1970 (UTC).
            flag: Flag of the packet.
            value: Value of the reading.
        """
        if codifier not in self._counts:
            start = self._counts[codifier] = self._draw(FIRST_SEQUENCE, LAST_SEQUENCE)
            self._send("data", Packet(start, time_ms, "n", codifier, ALL_COMPONENTS, start))
        self._counts[codifier] = following(self._counts[codifier])
        self._send("data", Packet(self._counts[codifier], time_ms, flag, codifier, ALL_COMPONENTS, value))

    def _send(self, channel: str, packet: Packet) -> None:
        try:
            self._sockets[channel].send(encode(packet))
        except OSError as error:
            self.unsent += 1
            if self.unsent == 1:
                log.warning("bus: a packet could not be sent: %s; further ones are only counted", error.strerror)


class BusTransport(Transport):
    """Base class of the transports of node and server: the sockets, the thread, and the control channel.

    Args:
        load: Function that reads the settings of the bus. It is called again for the command C. It may raise
            SettingsError. After Unreachable, the thread tries again.
        sender: Sender of this component, or None if it only listens.
        clock: Clock of the program.

    Raises:
        SettingsError: The settings of the bus cannot be read.
    """

    def __init__(self, load: Callable[[], Bus], sender: Sender | None, clock: Clock) -> None:
        self._wake_pipe = WakePipe()
        self.bus, self._unread = NO_BUS, True
        self.fault = "not open yet"
        try:
            self.bus, self._unread = load(), False
        except Unreachable as error:  # the network may become available later: the thread tries again
            log.warning("bus: %s; trying again", error)
            self.fault = hide_secrets(str(error))
        self._load = load
        self._sender = sender
        self._clock = clock
        self._control_drain = Drain(_FEW_AT_ONCE, PACKET_BYTES + 1)  # allocates memory for this number of packets
        self._alive_due_s = 0.0
        self._answered = (0, 0)  # present second, and number of answers (T) sent in this second
        self._refused_flags: set[str] = set()
        self._stopping = threading.Event()
        self._restarting = False
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        self._stopping.set()
        self.wake()
        if self._thread.ident:
            self._thread.join(limit_s)
        return "the thread of the multicast bus did not end" if self._thread.is_alive() else None

    def wake(self) -> None:
        """Let the thread check for work."""
        self._wake_pipe.wake()

    # Methods that subclasses override. All of them are called in the thread of the component.

    def _opened(self) -> list[socket.socket]:
        """Return additional sockets to listen on. This is called after the groups have been opened."""
        return []

    def _receive(self, sock: socket.socket) -> None:
        """Read from `sock`, one of the sockets that `_opened` has returned, which has data."""

    def _on_wake(self) -> None:
        """Handle a call of `wake`."""

    def _do_pending(self) -> float | None:
        """Do pending work. Return the number of seconds until the next call, or None."""
        return None

    def _on_control(self, packets: list[Packet]) -> None:
        """Process packets of the control channel, before their commands are executed."""

    def _command(self, packet: Packet) -> None:
        """Execute the command S, H, A or E."""

    def _run(self) -> None:
        while not self._stopping.is_set():
            sockets: list[socket.socket] = []
            try:
                self._open(sockets)
                self._listen(sockets)
            except SettingsError as error:
                fault = hide_secrets(str(error))  # the text contains the URL of the configuration
                if fault != self.fault:
                    log.warning("bus: %s; trying again", fault)
                self.fault = fault
                self._stopping.wait(RETRY_S)
            finally:
                for sock in sockets:
                    sock.close()
                if self._sender:
                    self._sender.close()

    def _open(self, sockets: list[socket.socket]) -> None:
        if self._unread:
            self.bus, self._unread = self._load(), False
        sockets.append(listener(self.bus.control, self.bus.path))
        sockets += self._opened()
        if self._sender:
            self._sender.open(self.bus)
            self._sender.begin(self._clock.wall_ms())
        self.fault, self._alive_due_s, self._restarting = "", 0.0, False
        name = f", as {self._sender.codifier}" if self._sender else ""
        log.info("bus: control %s, data %s%s", join_address(*self.bus.control), join_address(*self.bus.data), name)

    def _listen(self, sockets: list[socket.socket]) -> None:
        control = sockets[0]
        while not self._stopping.is_set() and not self._restarting:
            times = [seconds for seconds in (self._send_alive(), self._do_pending()) if seconds is not None]
            ready = readable([self._wake_pipe.fileno(), *sockets], min(times, default=None))
            if self._wake_pipe.fileno() in ready:
                self._wake_pipe.drain()
                self._on_wake()
            for sock in sockets:
                if sock not in ready:
                    continue
                if sock is control:
                    self._receive_control(sock)
                else:
                    self._receive(sock)

    def _send_alive(self) -> float | None:
        """Send I if it is due. Return the number of seconds until the next one, or None."""
        if self._sender is None:
            return None
        now_s = self._clock.monotonic()
        if now_s >= self._alive_due_s:
            self._sender.control("I")
            self._alive_due_s = now_s + self.bus.alive_s
        return max(0.0, self._alive_due_s - now_s)

    def _receive_control(self, sock: socket.socket) -> None:
        packets = self._decoded(self._control_drain(sock), CONTROL)
        self._on_control(packets)
        for packet in packets:
            if self._sender:
                self._handle_control(self._sender, packet)

    def _decoded(self, datagrams: Sequence[bytes], channel: str) -> list[Packet]:
        """Return the valid packets of a channel among the datagrams. Count the others."""
        packets, invalid, reason = [], 0, ""
        for data in datagrams:
            try:
                packet = decode(data)
                if FLAGS[packet.flag].channel != channel:
                    raise BadPacket(f"{packet.flag} on the {channel} channel")
                packets.append(packet)
            except BadPacket as error:
                invalid, reason = invalid + 1, str(error)
        if invalid:
            self._on_invalid(invalid, reason)
        return packets

    def _on_invalid(self, count: int, reason: str) -> None:
        """Count `count` invalid datagrams. `reason` is that of the last one."""

    def _handle_control(self, sender: Sender, packet: Packet) -> None:
        flag = packet.flag
        if packet.source == sender.codifier:
            assert isinstance(packet.value, float)
            too_new = packet.value - self._clock.wall_ms() > TOO_NEW_MS
            if flag in "IN" and packet.value > sender.config_ms and not too_new:
                log.critical(
                    "bus: another instance of %s is on the bus, with a newer configuration; this one stops sending."
                    " Each component needs its own codifier", sender.codifier,
                )  # fmt: skip
                self.fault = f"another instance of {sender.codifier} is on the bus"
                self._stop_sending()
        elif not self._is_addressed(packet.to):
            return
        elif flag == "P":
            second, count = self._answered
            now_s = int(self._clock.monotonic())
            self._answered = (now_s, count + 1) if second == now_s else (now_s, 1)
            if self._answered[1] <= MOST_ANSWERS:
                assert isinstance(packet.value, float)
                sender.control("T", packet.source, packet.value)
        elif flag in "SHCAE":
            if self.bus.commands:
                log.info("bus: command %s from %s", flag, packet.source)
                self._restart() if flag == "C" else self._command(packet)
            elif flag not in self._refused_flags:
                self._refused_flags.add(flag)
                log.warning("bus: command %s from %s ignored: [bus] commands is false", flag, packet.source)

    def _stop_sending(self) -> None:
        if self._sender:
            self._sender.close()
        self._sender = None

    def _is_addressed(self, to: str) -> bool:
        return self._sender is not None and to in (self._sender.codifier, ALL_COMPONENTS)

    def _restart(self) -> None:
        """Read the configuration again and restart."""
        try:
            self.bus = self._load()
        except SettingsError as error:
            log.error("bus: the configuration cannot be read again: %s", error)
            return
        self._restarting = True
