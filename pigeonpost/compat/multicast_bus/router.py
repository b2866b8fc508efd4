"""Router between two networks of the multicast bus: each packet of one is sent on the other, once.

Runs in the thread of `run`; `stop` may be called by any thread, and by a signal handler.
Errors: SettingsError when a group cannot be joined. A packet that cannot be sent is counted.

No loops: a router remembers each packet that it has received, on either side, for at least REMEMBER_S, and forwards it
once. A packet contains its sender's codifier, count and time, so no two are alike. What comes back - by its own
loopback, by a second router beside it, by a ring of routers - is known, and is not forwarded. The TTL alone would not
do: each router makes new datagrams, with a full one.

Two parallel routers both forward a packet, so it arrives twice (our collectors drop the second). With `standby_s` a
router first waits that long, and forwards only what no other has brought to the other side by then.
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
MOST_REMEMBERED = 100_000  # of each half of the memory: 20 MiB in all
MOST_WAITING = 10_000  # packets that a standby router holds back
_MOST_AT_ONCE = 500


class Network(NamedTuple):
    """One side: its two groups, and how they are reached."""

    control: tuple[str, int]
    data: tuple[str, int]
    path: Path

    def group(self, channel: str) -> tuple[str, int]:
        """The group of CONTROL or DATA."""
        return self.control if channel == CONTROL else self.data


class Memory:
    """The packets received recently, in two halves that take turns: the older one is discarded as a whole."""

    def __init__(self) -> None:
        self._now: set[bytes] = set()
        self._before: set[bytes] = set()
        self._turned_s = 0.0

    def add(self, key: bytes, now_s: float) -> bool:
        """Remember a packet; False when it was known."""
        if now_s - self._turned_s > REMEMBER_S or len(self._now) >= MOST_REMEMBERED:
            self._before, self._now, self._turned_s = self._now, set(), now_s
        if key in self._now or key in self._before:
            return False
        self._now.add(key)
        return True


class Waiting(NamedTuple):
    """A packet that is held back: until when, and where it is to go."""

    due_s: float
    side: int
    channel: str
    data: bytes


class Router:
    """Two networks, 0 and 1, and both channels of each."""

    def __init__(
        self,
        one: Network,
        other: Network,
        standby_s: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens everything. Raises SettingsError when that fails, or when both networks are the same."""
        self.crossed = self.known = self.refused = self.unsent = 0
        self._networks = one, other
        self._standby_s = standby_s
        self._monotonic = monotonic
        self._memory = Memory()
        self._waiting: dict[bytes, Waiting] = {}
        self._stopped = False
        for channel in (CONTROL, DATA):
            if one.group(channel) == other.group(channel) and one.path.interface == other.path.interface:
                where = join_address(*one.group(channel))
                raise SettingsError(f"both networks have the {channel} group {where}: there is nothing to join")
        self._ears: dict[Any, tuple[int, str]] = {}
        self._mouths: dict[tuple[int, str], socket.socket] = {}
        self._wake_pipe = WakePipe()
        try:
            for side, network in enumerate(self._networks):
                for channel in (CONTROL, DATA):
                    self._ears[listener(network.group(channel), network.path)] = side, channel
                    self._mouths[side, channel] = speaker(network.group(channel), network.path)
        except SettingsError:
            self.close()
            raise

    def run(self) -> None:
        """Let packets cross until `stop`."""
        while not self._stopped:
            ready, _, _ = select.select([self._wake_pipe, *self._ears], [], [], self._bring_due())
            for sock in ready:
                if sock is not self._wake_pipe:
                    self._receive(sock, *self._ears[sock])

    def stop(self) -> None:
        """Have `run` return."""
        self._stopped = True
        self._wake_pipe.wake()

    def close(self) -> None:
        """Give everything back; after `run` has returned."""
        for sock in (*self._ears, *self._mouths.values()):
            sock.close()
        self._wake_pipe.close()

    def _receive(self, sock: socket.socket, side: int, channel: str) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                data = sock.recv(PACKET_BYTES + 1)
            except OSError:  # that was all; or the interface has gone, which the next one tells again
                return
            try:
                if FLAGS[decode(data).flag].channel != channel:
                    raise BadPacket(channel)
            except BadPacket:
                self.refused += 1
                continue
            self._take(data, side, channel)

    def _take(self, data: bytes, side: int, channel: str) -> None:
        key = hashlib.blake2b(data, digest_size=12).digest()
        now_s = self._monotonic()
        if not self._memory.add(key, now_s):
            self.known += 1
            if key in self._waiting and self._waiting[key].side == side:
                del self._waiting[key]  # somebody else has brought it here
            return
        if not self._standby_s:
            self._bring(data, 1 - side, channel)
            return
        if len(self._waiting) >= MOST_WAITING:
            first = self._waiting.pop(next(iter(self._waiting)))
            self._bring(first.data, first.side, first.channel)
        self._waiting[key] = Waiting(now_s + self._standby_s, 1 - side, channel, data)

    def _bring_due(self) -> float | None:
        """Let cross what has waited long enough; the seconds until the next is due."""
        now_s = self._monotonic()
        while self._waiting:
            key, first = next(iter(self._waiting.items()))
            if first.due_s > now_s:
                return first.due_s - now_s
            del self._waiting[key]
            self._bring(first.data, first.side, first.channel)
        return None

    def _bring(self, data: bytes, side: int, channel: str) -> None:
        try:
            self._mouths[side, channel].send(data)
            self.crossed += 1
        except OSError:
            self.unsent += 1
