"""Multicast bus for tests: separate groups on loopback for each test, and packets that are written with struct only."""

import os
import random
import select
import socket
import struct
import time
from typing import NamedTuple

from tests.support import LIMIT_S

LOOPBACK = "127.0.0.1"


class Seen(NamedTuple):
    """A datagram, decoded independently of the program. `payload` is the part after the header."""

    sequence: int
    time_ms: int
    flag: str
    source: str
    to: str
    payload: bytes

    @property
    def control(self):
        return struct.unpack("<d?", self.payload)

    @property
    def u32(self):
        return struct.unpack("<I", self.payload)[0]

    @property
    def f32(self):
        return struct.unpack("<f", self.payload)[0]


def packet(flag, source="C4", to="@@", sequence=1, time_ms=None, payload=b""):
    time_ms = time.time_ns() // 1_000_000 if time_ms is None else time_ms
    return struct.pack("<I4xQ1s2s2s3xI", sequence, time_ms, flag.encode(), source.encode(), to.encode(),
                       len(payload)) + payload  # fmt: skip


def control(flag, source="C4", to="@@", sequence=1, number=0.0, active=True, time_ms=None):
    return packet(flag, source, to, sequence, time_ms, struct.pack("<d?", number, active))


def reading(flag, value, source="C4", sequence=1, time_ms=None):
    if flag in "sj":
        payload = struct.pack("<I", len(value)) + value
    else:
        payload = struct.pack("<f" if flag == "f" else "<I", value)
    return packet(flag, source, "@@", sequence, time_ms, payload)


def taken_apart(data):
    sequence, time_ms, flag, source, to, length = struct.unpack("<I4xQ1s2s2s3xI", data[:28])
    assert length == len(data) - 28, data
    return Seen(sequence, time_ms, flag.decode(), source.decode(), to.decode(), data[28:])


def free_groups(count=2):
    """Return groups that no other test uses, each with a free port."""
    chance = random.SystemRandom()  # independent of seeds in tests
    return [(f"239.{chance.randrange(255)}.{os.getpid() % 255}.{chance.randrange(1, 255)}", _free_port())
            for _ in range(count)]  # fmt: skip


def _free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


class Ear:
    """Receiver and sender of one group. It shares no code with the tested program."""

    def __init__(self, test, group, interface=LOOPBACK):
        self.group = group
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        test.addCleanup(self.sock.close)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(group)
        member = socket.inet_aton(group[0]) + socket.inet_aton(interface)
        self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        self.mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        test.addCleanup(self.mouth.close)
        self.mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        self.mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        self.pending = []

    def say(self, *datagrams):
        for data in datagrams:
            self.mouth.sendto(data, self.group)

    def next(self, limit_s=LIMIT_S):
        """Return the next datagram of another sender."""
        own = self.mouth.getsockname()[1]
        give_up_s = time.monotonic() + limit_s
        while select.select([self.sock], [], [], max(0.0, give_up_s - time.monotonic()))[0]:
            data, sender = self.sock.recvfrom(2000)
            if sender[1] != own:
                return data
        raise AssertionError("nothing was received")

    def until(self, flag, limit_s=LIMIT_S, **wanted):
        """Return the next packet with this flag and these fields."""
        give_up_s = time.monotonic() + limit_s
        while True:
            seen = taken_apart(self.next(max(0.0, give_up_s - time.monotonic())))
            if seen.flag == flag and all(getattr(seen, key) == value for key, value in wanted.items()):
                return seen
