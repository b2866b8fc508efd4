"""Announcements of nodes on the local network: the datagram, the interfaces, and the loop that both ends run.

    {"mac": "<64 hex>", "pigeonpost": 1, "node": "basement", "at": ["192.168.1.20:5003"], "time": "...", "clock": "set",
     "nonce": "<16 hex>"}

A datagram is one JSON object, signed with the node's token (payload.sign); docs/protocol.md describes it.
Each end has a thread of its own; others only set an Event or write to its pipe.
Errors: BadArgument for a datagram that is no announcement. Source: netdevice(7), SIOCGIFCONF.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections.abc import Sequence

from pigeonpost.auth.key import Key
from pigeonpost.core.addresses import join_address, split_address
from pigeonpost.core.clock import Clock, parse_rfc3339, rfc3339
from pigeonpost.core.errors import BadArgument
from pigeonpost.core.light_typing import NamedTuple
from pigeonpost.core.multicast import readable
from pigeonpost.core.strict_json import read_json, write_json
from pigeonpost.core.wake_pipe import WakePipe
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.payload import sign
from protocol import NODE_NAME

log = logging.getLogger(__name__)

VERSION = 1

PURPOSE = "announce"

DATAGRAM_BYTES = 1200  # at most: one frame of any network

MOST_PLACES = 8  # in a datagram

MOST_INTERFACES = 32

ADDRESS_CHECK_S = 2.0  # between two looks at this machine's interfaces

LOOPBACK = "127.0.0.1"

_SIOCGIFCONF = 0x8912  # netdevice(7)

_IFREQ_BYTES = 40 if struct.calcsize("P") == 8 else 32  # one interface in its answer


class Announcement(NamedTuple):
    """A decoded datagram: the node's name, its addresses, and its time (None: its clock is not set)."""

    node: str
    places: list[tuple[str, int]]
    time_ms: int | None
    nonce: str


def write_announcement(key: Key, node: str, places: Sequence[tuple[str, int]], clock: Clock) -> bytes:
    """The datagram that says that `node` is at `places`."""
    said = {
        "pigeonpost": VERSION, "node": node, "at": [join_address(*place) for place in places[:MOST_PLACES]],
        "time": rfc3339(clock.wall_ms()), "clock": "set" if clock.is_set() else "unset", "nonce": os.urandom(8).hex(),
    }  # fmt: skip
    body = write_json(said).encode()
    return sign(body, key.seal(PURPOSE, body))


def read_announcement(body: bytes) -> Announcement:
    """Return the announcement in `body`, which is untrusted. Raises BadArgument."""
    try:
        said = read_json(body.decode())
        node, at, nonce, is_set = said["node"], said["at"], said["nonce"], said["clock"] == "set"
        if (
            said["pigeonpost"] != VERSION
            or not NODE_NAME(node)
            or not 0 < len(at) <= MOST_PLACES
            or type(at) is not list
        ):
            raise ValueError
        if type(nonce) is not str or not 8 <= len(nonce) <= 64:
            raise ValueError
        return Announcement(node, [_place(text) for text in at], parse_rfc3339(said["time"]) if is_set else None, nonce)
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        raise BadArgument("not an announcement") from None


def _place(text: str) -> tuple[str, int]:
    """An IPv4 address with a port: never a name, for which an unknown sender would make us ask a name server."""
    host, port = split_address(text)
    first = socket.inet_pton(socket.AF_INET, host)[0]
    if not 0 < first < 224 or not port:
        raise ValueError
    return host, port


def interfaces() -> dict[str, str]:
    """This machine's interfaces that have an IPv4 address, with it; the loopback one among them.

    Not by socket.if_nameindex, which asks over netlink: that the systemd units do not allow.
    """
    import array
    import fcntl

    answer = array.array("B", bytes(_IFREQ_BYTES * MOST_INTERFACES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        room, where = len(answer), answer.buffer_info()[0]
        filled = struct.unpack("iP", fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iP", room, where)))[0]
    found: dict[str, str] = {}
    for at in range(0, filled, _IFREQ_BYTES):
        name = answer[at : at + 16].tobytes().partition(b"\0")[0].decode(errors="replace").partition(":")[0]
        found.setdefault(name, socket.inet_ntoa(answer[at + 20 : at + 24]))  # what comes first is the main one
    return found


class DatagramLoop(Transport):
    """Base of both ends: a thread that waits, and ends when told to."""

    def __init__(self, name: str) -> None:
        self._stopping = threading.Event()
        self._wake_pipe = WakePipe()
        self._interfaces: dict[str, str] = {}
        self._is_blind = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def interfaces(self) -> dict[str, str]:
        """Return this machine's interfaces; those of before where they cannot be asked for: too many open files."""
        try:
            self._interfaces = interfaces()
            self._is_blind = False
        except OSError as error:
            if not self._is_blind:
                log.warning("this machine's addresses cannot be found out now: %s", error)
            self._is_blind = True
        return self._interfaces

    def stop(self, limit_s: float) -> str | None:
        if self._stopping.is_set() or not self._thread.ident:
            return None
        self._stopping.set()
        self._wake_pipe.wake()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            return "the announcements did not end"
        self._wake_pipe.close()
        return None

    def _wait(self, seconds: float, socks: Sequence[socket.socket] = ()) -> list[socket.socket]:
        """Wait until `socks` are readable, or `stop` is called, at most `seconds`. Returns the readable sockets."""
        ready = readable([self._wake_pipe.fileno(), *socks], max(0.0, seconds))
        if self._wake_pipe.fileno() in ready:
            self._wake_pipe.drain()
        return [sock for sock in socks if sock in ready]

    def _run(self) -> None:
        raise NotImplementedError
