"""One component on the multicast bus: sends and receives its packets, and obeys commands. Base of both ends.

Each end has a thread of its own, which alone sends and receives; `wake` may be called by any.
Errors: SettingsError for a configuration that cannot be read when the end is made. A missing network, or a group that
cannot be joined, is logged once and tried again. Packets are untrusted input: they are decoded within bounds, and
obeyed only where `[bus] commands` allows it; they never change settings.
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
    CONTROL,
    EVERYBODY,
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

RETRY_S = 5.0  # between two tries to open the groups
MOST_AT_ONCE = 1000  # packets of a socket, or samples of the outbox, that are taken before they are looked at
_FEW_AT_ONCE = 64  # of the control channel, where nobody has much to say
MOST_ANSWERS = 50  # T that are said in a second: nobody pings more, and nobody is to make us shout
TOO_NEW_MS = 24 * 3_600_000  # a configuration from later than that is the fault of an untrusted sender, or of a clock


class Bus(NamedTuple):
    """The bus as set: by the settings, and by the legacy configuration where there is one."""

    control: tuple[str, int]
    data: tuple[str, int]
    path: Path
    alive_s: float
    commands: bool
    old: OldConfig | None


NO_BUS = Bus(("0.0.0.0", 0), ("0.0.0.0", 0), Path(), 60.0, False, None)  # until the configuration is read


def bus_of(settings: Settings, own: str = "") -> Bus:
    """The bus as it is set. The groups of the old configuration, and KeepAliveInterval of the codifier `own`, count
    where the settings name none of their own.

    Raises SettingsError when that configuration does not read.
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
    """Sender of one component: control packets under its own codifier, data packets under those of its channels."""

    def __init__(self, codifier: str, clock: Clock, draw: Callable[[int, int], int] = random.randint) -> None:
        """draw: where counting starts, of a first and a last number"""
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
        """Raises SettingsError when there is no way to the groups."""
        self.close()
        self._sockets["control"] = speaker(bus.control, bus.path)
        self._sockets["data"] = speaker(bus.data, bus.path)

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets = {}

    def begin(self, config_ms: int) -> None:
        """Say N, with the time of the configuration; every count starts again."""
        self.config_ms = config_ms
        self._counts = {}
        self._sequence = self._draw(FIRST_SEQUENCE, LAST_SEQUENCE)
        self.control("N")

    def control(self, flag: str, to: str = EVERYBODY, value: float | None = None) -> None:
        """One control packet; without a value it carries the time of the configuration."""
        number = float(self.config_ms if value is None else value)
        packet = Packet(self._sequence, self._clock.wall_ms(), flag, self.codifier, to, number, self.active)
        self._send("control", packet)
        self._sequence = following(self._sequence)

    def data(self, codifier: str, time_ms: int, flag: str, value: Value) -> None:
        """One reading; the first one of a codifier is announced by n."""
        if codifier not in self._counts:
            start = self._counts[codifier] = self._draw(FIRST_SEQUENCE, LAST_SEQUENCE)
            self._send("data", Packet(start, time_ms, "n", codifier, EVERYBODY, start))
        self._counts[codifier] = following(self._counts[codifier])
        self._send("data", Packet(self._counts[codifier], time_ms, flag, codifier, EVERYBODY, value))

    def _send(self, channel: str, packet: Packet) -> None:
        try:
            self._sockets[channel].send(encode(packet))
        except OSError as error:
            self.unsent += 1
            if self.unsent == 1:
                log.warning("bus: a packet could not be sent: %s; further ones are only counted", error.strerror)


class BusTransport(Transport):
    """Base of both ends: the sockets, the thread, and the component on the control channel."""

    def __init__(self, load: Callable[[], Bus], voice: Sender | None, clock: Clock) -> None:
        """
        load   reads the settings' bus; called again for C. Raises SettingsError; Unreachable is waited for
        voice  None: this end only listens
        """
        self._wake_pipe = WakePipe()
        self.bus, self._unread = NO_BUS, True
        self.fault = "not open yet"
        try:
            self.bus, self._unread = load(), False
        except Unreachable as error:  # the network may come up after this program: the thread tries again
            log.warning("bus: %s; it is tried again", error)
            self.fault = hide_secrets(str(error))
        self._load = load
        self._voice = voice
        self._clock = clock
        self._control_drain = Drain(_FEW_AT_ONCE, PACKET_BYTES + 1)  # it takes memory for as many as it can take
        self._alive_due_s = 0.0
        self._answered = (0, 0)  # in which second how many T were said
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
        return "the bus did not end" if self._thread.is_alive() else None

    def wake(self) -> None:
        """Have the thread look for what is to be done."""
        self._wake_pipe.wake()

    # What an end adds of its own; all of it runs in the thread.

    def _opened(self) -> list[socket.socket]:
        """The groups were opened: sockets of its own to listen to."""
        return []

    def _came(self, sock: socket.socket) -> None:
        """Something came on one of those."""

    def _woke(self) -> None:
        """`wake` was called."""

    def _due(self) -> float | None:
        """Do what waits; the seconds until something is to be done again."""
        return None

    def _control_came(self, packets: list[Packet]) -> None:
        """Packets of the control channel, before they are obeyed."""

    def _command(self, packet: Packet) -> None:
        """S, H, A or E that may be obeyed."""

    def _run(self) -> None:
        while not self._stopping.is_set():
            sockets: list[socket.socket] = []
            try:
                self._open(sockets)
                self._listen(sockets)
            except SettingsError as error:
                fault = hide_secrets(str(error))  # it names the address of the configuration
                if fault != self.fault:
                    log.warning("bus: %s; it is tried again", fault)
                self.fault = fault
                self._stopping.wait(RETRY_S)
            finally:
                for sock in sockets:
                    sock.close()
                if self._voice:
                    self._voice.close()

    def _open(self, sockets: list[socket.socket]) -> None:
        if self._unread:
            self.bus, self._unread = self._load(), False
        sockets.append(listener(self.bus.control, self.bus.path))
        sockets += self._opened()
        if self._voice:
            self._voice.open(self.bus)
            self._voice.begin(self._clock.wall_ms())
        self.fault, self._alive_due_s, self._restarting = "", 0.0, False
        name = f", as {self._voice.codifier}" if self._voice else ""
        log.info("bus: control %s, data %s%s", join_address(*self.bus.control), join_address(*self.bus.data), name)

    def _listen(self, sockets: list[socket.socket]) -> None:
        control = sockets[0]
        while not self._stopping.is_set() and not self._restarting:
            times = [seconds for seconds in (self._say_alive(), self._due()) if seconds is not None]
            ready = readable([self._wake_pipe.fileno(), *sockets], min(times, default=None))
            if self._wake_pipe.fileno() in ready:
                self._wake_pipe.drain()
                self._woke()
            for sock in sockets:
                if sock not in ready:
                    continue
                if sock is control:
                    self._hear_control(sock)
                else:
                    self._came(sock)

    def _say_alive(self) -> float | None:
        """Say I where it is time to; returns the seconds until it is again."""
        if self._voice is None:
            return None
        now_s = self._clock.monotonic()
        if now_s >= self._alive_due_s:
            self._voice.control("I")
            self._alive_due_s = now_s + self.bus.alive_s
        return max(0.0, self._alive_due_s - now_s)

    def _hear_control(self, sock: socket.socket) -> None:
        packets = self._decoded(self._control_drain(sock), CONTROL)
        self._control_came(packets)
        for packet in packets:
            if self._voice:
                self._obey(self._voice, packet)

    def _decoded(self, datagrams: Sequence[bytes], channel: str) -> list[Packet]:
        """The packets among them; the others are counted."""
        packets, refused, why = [], 0, ""
        for data in datagrams:
            try:
                packet = decode(data)
                if FLAGS[packet.flag].channel != channel:
                    raise BadPacket(f"{packet.flag} on the {channel} channel")
                packets.append(packet)
            except BadPacket as error:
                refused, why = refused + 1, str(error)
        if refused:
            self._refused(refused, why)
        return packets

    def _refused(self, count: int, why: str) -> None:
        """Datagrams came that were no packets; why, of the last one."""

    def _obey(self, voice: Sender, packet: Packet) -> None:
        flag = packet.flag
        if packet.source == voice.codifier:
            assert isinstance(packet.value, float)
            too_new = packet.value - self._clock.wall_ms() > TOO_NEW_MS
            if flag in "IN" and packet.value > voice.config_ms and not too_new:
                log.critical(
                    "bus: another instance of %s is on the bus, with a newer configuration: this one stops speaking."
                    " Two components need two codifiers", voice.codifier,
                )  # fmt: skip
                self.fault = f"another instance of {voice.codifier} is on the bus"
                self._stop_speaking()
        elif not self._is_ours(packet.to):
            return
        elif flag == "P":
            second, count = self._answered
            now_s = int(self._clock.monotonic())
            self._answered = (now_s, count + 1) if second == now_s else (now_s, 1)
            if self._answered[1] <= MOST_ANSWERS:
                assert isinstance(packet.value, float)
                voice.control("T", packet.source, packet.value)
        elif flag in "SHCAE":
            if self.bus.commands:
                log.info("bus: %s from %s", flag, packet.source)
                self._restart() if flag == "C" else self._command(packet)
            elif flag not in self._refused_flags:
                self._refused_flags.add(flag)
                log.warning("bus: %s from %s is not obeyed: [bus] commands is false", flag, packet.source)

    def _stop_speaking(self) -> None:
        if self._voice:
            self._voice.close()
        self._voice = None

    def _is_ours(self, to: str) -> bool:
        return self._voice is not None and to in (self._voice.codifier, EVERYBODY)

    def _restart(self) -> None:
        """Read the configuration again, from where the settings say, and begin again."""
        try:
            self.bus = self._load()
        except SettingsError as error:
            log.error("bus: the configuration is not read again: %s", error)
            return
        self._restarting = True
