"""Nodes and web clients of the long run: a node's real outbox and session without threads, and the faults they suffer.

`bench/soak.py` calls each of them ten times per second.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections import Counter, deque

from pigeonpost.core.clock import Clock
from pigeonpost.node.node_info import NodeInfo
from pigeonpost.node.outbox import Outbox
from pigeonpost.node.ring_file import Ring, slot_bytes_for
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.transports.tcp_node_session import NodeSession
from protocol import LINE_BYTES

EVERY_S = 1.0  # between two samples of a node
# Each kind of fault, with its relative frequency.
FAULT_KINDS = {"cut": 4, "reset": 4, "stall": 3, "dribble": 2, "restart": 2, "repeat": 3, "rubbish": 2}
RUBBISH = (b"\xff\xfe\n", b"HULLO {}\n", b"SENSORS 12 [\n", b'GAP 0123456789abcdef {"from":-1}\n', b"x" * 70_000)
_CLOCK = Clock()
_SENSORS = [{"name": "turn", "unit": ""}, {"name": "level", "unit": "V"}]


class Node:
    """A node: the product's outbox and session, and faults of its connection."""

    def __init__(self, name: str, folder: str, slots: int, chance: random.Random) -> None:
        self.name, self._folder, self._slots, self._chance = name, folder, slots, chance
        self.accepted: dict[str, int] = {}  # highest accepted seq of each epoch; the store must contain all of them
        self.counts: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._info = NodeInfo(name, _SENSORS, EVERY_S, None, lambda on: self.outbox.switch(on), dict)
        self.sock: socket.socket | None = None
        self._old: deque[bytes] = deque(maxlen=8)  # lines of samples that were sent, for repetition
        self._repeats = False
        self._next_s = time.monotonic() + chance.random() * EVERY_S
        self._stalled_s = self._slow_s = 0.0  # ends of the current stall and slow period (time.monotonic)
        os.mkdir(folder)
        self._boot()

    def _boot(self) -> None:
        slot_bytes = slot_bytes_for([sensor["name"] for sensor in _SENSORS])
        self.outbox = Outbox(Ring(self._folder, self._slots, slot_bytes), _CLOCK.boot_id)

    def turn(self, now_s: float, samples: bool) -> None:
        """Accept, receive and send at the monotonic time `now_s`. If `samples` is true, also take a sample when due."""
        if samples and now_s >= self._next_s:
            self._next_s += EVERY_S
            self._take()
        if now_s < self._stalled_s:
            return
        try:
            if self.sock is None:
                self._accept()
            self._receive()
            self._send(8 if now_s < self._slow_s else LINE_BYTES)
        except BlockingIOError:
            pass  # no connection yet, or the server does not read
        except OSError:
            self._close()

    def _take(self) -> None:
        if self.outbox.on:
            seq = self.accepted.get(self.outbox.epoch, 0) + 1
            values = {"turn": seq, "level": seq % 97 * 0.11}
            self.outbox.put(UnnumberedSample(_CLOCK.wall_ms(), _CLOCK.up_ms(), True, values, {}))
            self.accepted[self.outbox.epoch] = seq - 1 + self.outbox.commit()

    def _accept(self) -> None:
        self.sock, _ = self._listener.accept()
        self.sock.setblocking(False)
        self._session = NodeSession(self._info, self.outbox, _CLOCK, self.name, True)
        self._unsent = self._part = b""

    def _receive(self) -> None:
        assert self.sock is not None
        try:
            block = self.sock.recv(LINE_BYTES)
        except BlockingIOError:
            return
        if not block:
            raise ConnectionResetError
        *lines, self._part = (self._part + block).split(b"\n")
        for line in lines:
            self._session.receive(line)

    def _send(self, most: int) -> None:
        """Send up to `most` bytes of the output of the session."""
        assert self.sock is not None
        self._session.tick()
        self._unsent += self._session.take_output()
        if self._repeats and self._session.server:
            self._repeats = False
            self._unsent += b"".join(self._old)
        while len(self._unsent) < LINE_BYTES and self._session.stream():
            self._old.append(self._session.take_output())
            self._unsent += self._old[-1]
        if self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent[:most]) :]
        if self._session.closing:
            self.counts["closed by a node"] += 1
            self._close()

    def _close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def cause_fault(self, kind: str, now_s: float) -> None:
        """Cause the fault `kind` (one of FAULT_KINDS) at the time `now_s`, if the node is connected."""
        if self.sock is None or now_s < max(self._stalled_s, self._slow_s):
            return
        self.counts[kind] += 1
        if kind == "stall":
            self._stalled_s = now_s + self._chance.uniform(2, 20)
        elif kind == "dribble":
            self._slow_s = now_s + self._chance.uniform(2, 10)
        else:
            self._cut(kind)
        if kind == "restart":
            self._stalled_s = now_s + self._chance.uniform(0, 5)
            self.outbox.ring.close()
            self._boot()

    def _cut(self, kind: str) -> None:
        assert self.sock is not None
        try:
            if kind == "rubbish":
                self.sock.send(self._unsent + self._chance.choice(RUBBISH))
            else:
                self._take()
                self._send(self._chance.randint(1, 200))  # it may end within a line
            if kind == "reset":
                reset(self.sock)
        except OSError:
            pass  # the server closed it first
        self._close()
        self._repeats = kind == "repeat"


class Visitor:
    """A client of the page: it sends a request, may read the response, and disconnects at a random time."""

    def __init__(self, port: int, request: bytes, chance: random.Random, now_s: float) -> None:
        self._unsent = request
        self.takes_thread = not (
            b"GET /events " in request and b"\r\n\r\n" in request
        )  # one thread serves all event streams
        self._reads, self._resets = chance.random() < 0.8, chance.random() < 0.5
        self._until_s = now_s + chance.uniform(0.1, 10)
        self._sock = socket.socket()
        self._sock.setblocking(False)
        self._sock.connect_ex(("127.0.0.1", port))

    def stays(self, now_s: float) -> bool:
        """Send or read at the monotonic time `now_s`. Return False when the client has disconnected."""
        try:
            if self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            if now_s < self._until_s and (not self._reads or self._sock.recv(1 << 18)):
                return True
        except BlockingIOError:
            return True
        except OSError:
            pass  # the server has closed
        if self._resets:
            reset(self._sock)
        self._sock.close()
        return False


def reset(sock: socket.socket) -> None:
    """Make closing `sock` send an RST: linger for no time (socket(7), SO_LINGER)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
