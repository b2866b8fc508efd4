"""Router between two networks of the multicast bus, which forwards each packet of one network to the other once.

The router runs in the thread of `run`. `stop` may be called by any thread and by a signal handler.
Errors: SettingsError when a group cannot be joined. A packet that cannot be sent is counted.

To prevent loops, a router remembers each packet that it has received on either side for at least REMEMBER_S, and
forwards it once. A packet contains the codifier, the sequence number and the time of its sender, so no two packets are
equal. A packet that returns through loopback, a second router or a ring of routers is recognised and not forwarded. The
TTL cannot prevent loops, because each router sends new datagrams with the full TTL.

Two parallel routers both forward a packet, so that it arrives twice; the receivers of this program drop the second one.
A router with `standby_s` waits for that time and forwards only packets that no other router has forwarded by then.
"""

from __future__ import annotations

import hashlib
import select
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pigeonpost.compat.multicast_bus.packets import CONTROL, DATA, FLAGS, PACKET_BYTES, decode
from pigeonpost.core.addresses import join_address
from pigeonpost.core.errors import BadPacket, SettingsError
from pigeonpost.core.multicast import Path, listener, speaker
from pigeonpost.core.wake_pipe import WakePipe

REMEMBER_S = 10.0
MOST_REMEMBERED = 100_000  # packets per half of the memory; both halves take 20 MiB
MOST_WAITING = 10_000  # packets that a standby router delays
_MOST_AT_ONCE = 500


class Network(NamedTuple):
    """Network on one side of a router.

    Attributes:
        control: Group of the control channel.
        data: Group of the data channel.
        path: Interface and TTL.
    """

    control: tuple[str, int]
    data: tuple[str, int]
    path: Path

    def group(self, channel: str) -> tuple[str, int]:
        """Return the group of `channel`, which is CONTROL or DATA."""
        return self.control if channel == CONTROL else self.data


class RecentPackets:
    """Set of the recently received packets, in two halves.

    The older half is discarded when the newer half is full or has been in use for REMEMBER_S.
    """

    def __init__(self) -> None:
        self._now: set[bytes] = set()
        self._before: set[bytes] = set()
        self._swapped_s = 0.0

    def add(self, key: bytes, now_s: float) -> bool:
        """Remember a packet. Return False if it is already known.

        Args:
            key: Hash of the packet.
            now_s: Present time in seconds, monotonic.
        """
        if now_s - self._swapped_s > REMEMBER_S or len(self._now) >= MOST_REMEMBERED:
            self._before, self._now, self._swapped_s = self._now, set(), now_s
        if key in self._now or key in self._before:
            return False
        self._now.add(key)
        return True


class Waiting(NamedTuple):
    """Delayed packet of a standby router.

    Attributes:
        due_s: Monotonic time in seconds at which it is forwarded.
        side: Side to which it is forwarded: 0 or 1.
        channel: CONTROL or DATA.
        data: The datagram.
    """

    due_s: float
    side: int
    channel: str
    data: bytes


class Router:
    """Router between the sides 0 and 1, for both channels.

    Args:
        first: Network of side 0.
        second: Network of side 1.
        standby_s: Delay in seconds of a standby router, or 0.
        monotonic: Function that returns the monotonic time in seconds.

    Raises:
        SettingsError: A group cannot be joined, or both networks are the same.
    """

    def __init__(
        self,
        first: Network,
        second: Network,
        standby_s: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.forwarded = self.duplicates = self.invalid = self.unsent = 0
        self._networks = first, second
        self._standby_s = standby_s
        self._monotonic = monotonic
        self._recent = RecentPackets()
        self._waiting: dict[bytes, Waiting] = {}
        self._stopped = False
        for channel in (CONTROL, DATA):
            if first.group(channel) == second.group(channel) and first.path.interface == second.path.interface:
                where = join_address(*first.group(channel))
                raise SettingsError(f"both networks have the {channel} group {where}: there is nothing to join")
        self._listeners: dict[Any, tuple[int, str]] = {}
        self._senders: dict[tuple[int, str], socket.socket] = {}
        self._wake_pipe = WakePipe()
        try:
            for side, network in enumerate(self._networks):
                for channel in (CONTROL, DATA):
                    self._listeners[listener(network.group(channel), network.path)] = side, channel
                    self._senders[side, channel] = speaker(network.group(channel), network.path)
        except SettingsError:
            self.close()
            raise

    def run(self) -> None:
        """Forward packets until `stop` is called."""
        while not self._stopped:
            ready, _, _ = select.select([self._wake_pipe, *self._listeners], [], [], self._forward_due())
            for sock in ready:
                if sock is not self._wake_pipe:
                    self._receive(sock, *self._listeners[sock])

    def stop(self) -> None:
        """Let `run` return."""
        self._stopped = True
        self._wake_pipe.wake()

    def close(self) -> None:
        """Close all sockets. Call this after `run` has returned."""
        for sock in (*self._listeners, *self._senders.values()):
            sock.close()
        self._wake_pipe.close()

    def _receive(self, sock: socket.socket, side: int, channel: str) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                data = sock.recv(PACKET_BYTES + 1)
            except OSError:  # there are no more packets, or the interface is missing
                return
            try:
                if FLAGS[decode(data).flag].channel != channel:
                    raise BadPacket(channel)
            except BadPacket:
                self.invalid += 1
                continue
            self._process(data, side, channel)

    def _process(self, data: bytes, side: int, channel: str) -> None:
        key = hashlib.blake2b(data, digest_size=12).digest()
        now_s = self._monotonic()
        if not self._recent.add(key, now_s):
            self.duplicates += 1
            if key in self._waiting and self._waiting[key].side == side:
                del self._waiting[key]  # another router has already forwarded it
            return
        if not self._standby_s:
            self._forward(data, 1 - side, channel)
            return
        if len(self._waiting) >= MOST_WAITING:
            first = self._waiting.pop(next(iter(self._waiting)))
            self._forward(first.data, first.side, first.channel)
        self._waiting[key] = Waiting(now_s + self._standby_s, 1 - side, channel, data)

    def _forward_due(self) -> float | None:
        """Forward the packets whose delay is over. Return the number of seconds until the next one, or None."""
        now_s = self._monotonic()
        while self._waiting:
            key, first = next(iter(self._waiting.items()))
            if first.due_s > now_s:
                return first.due_s - now_s
            del self._waiting[key]
            self._forward(first.data, first.side, first.channel)
        return None

    def _forward(self, data: bytes, side: int, channel: str) -> None:
        try:
            self._senders[side, channel].send(data)
            self.forwarded += 1
        except OSError:
            self.unsent += 1
