"""Announcements of nodes on the local network: the datagram, the interfaces, and the thread loop of both ends.

    {"mac": "<64 hex>", "pigeonpost": 1, "node": "basement", "at": ["192.168.1.20:5003"], "time": "...", "clock": "set",
     "nonce": "<16 hex>"}

A datagram is one JSON object, signed with the node's token (payload.sign); docs/protocol.md describes it.
Each end has a thread of its own; other threads only set an Event or write to its pipe.
Errors: BadArgument for a datagram that is not a valid announcement. Source: netdevice(7), SIOCGIFCONF.
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

DATAGRAM_BYTES = 1200  # maximum length: fits one frame of any network

MOST_ADDRESSES = 8  # maximum number of addresses in a datagram

MOST_INTERFACES = 32  # interfaces with an IPv4 address; more are ignored

ADDRESS_CHECK_S = 2.0  # time between two checks of this machine's interfaces

LOOPBACK = "127.0.0.1"

_SIOCGIFCONF = 0x8912  # netdevice(7)

_IFREQ_BYTES = 40 if struct.calcsize("P") == 8 else 32  # size of the entry of one interface


class Announcement(NamedTuple):
    """A decoded datagram.

    Attributes:
        node: Name of the node.
        addresses: Addresses and ports at which it can be reached.
        time_ms: Time of the datagram in milliseconds since 1970 (UTC), or None if the node's clock is not set.
        nonce: Random text that makes each datagram unique.
    """

    node: str
    addresses: list[tuple[str, int]]
    time_ms: int | None
    nonce: str


def write_announcement(key: Key, node: str, addresses: Sequence[tuple[str, int]], clock: Clock) -> bytes:
    """Return the signed datagram that announces a node.

    Args:
        key: Key of the node's token.
        node: Name of the node.
        addresses: Its addresses and ports; the first MOST_ADDRESSES are sent.
        clock: Clock for the time in the datagram.
    """
    fields = {
        "pigeonpost": VERSION, "node": node, "at": [join_address(*address) for address in addresses[:MOST_ADDRESSES]],
        "time": rfc3339(clock.wall_ms()), "clock": "set" if clock.is_set() else "unset", "nonce": os.urandom(8).hex(),
    }  # fmt: skip
    body = write_json(fields).encode()
    return sign(body, key.signature(PURPOSE, body))


def read_announcement(body: bytes) -> Announcement:
    """Return the announcement in the untrusted `body`.

    Raises:
        BadArgument: The body is not a valid announcement.
    """
    try:
        fields = read_json(body.decode())
        node, texts, nonce, is_set = fields["node"], fields["at"], fields["nonce"], fields["clock"] == "set"
        if (
            fields["pigeonpost"] != VERSION
            or not NODE_NAME(node)
            or not 0 < len(texts) <= MOST_ADDRESSES
            or type(texts) is not list
            or type(nonce) is not str
            or not 8 <= len(nonce) <= 64
        ):
            raise ValueError
        return Announcement(
            node, [_read_address(text) for text in texts], parse_rfc3339(fields["time"]) if is_set else None, nonce
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        raise BadArgument("not a valid announcement") from None


def _read_address(text: str) -> tuple[str, int]:
    """Return the IPv4 address and port in `text`. Reject host names: an untrusted sender must not cause look-ups."""
    host, port = split_address(text)
    first = socket.inet_pton(socket.AF_INET, host)[0]
    if not 0 < first < 224 or not port:
        raise ValueError
    return host, port


def interfaces() -> dict[str, str]:
    """Return the main IPv4 address of each of this machine's interfaces, including loopback, by interface name.

    socket.if_nameindex is not used because it needs netlink, which the systemd units do not allow.
    """
    import array
    import fcntl

    buffer = array.array("B", bytes(_IFREQ_BYTES * MOST_INTERFACES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        size, pointer = len(buffer), buffer.buffer_info()[0]
        filled = struct.unpack("iP", fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iP", size, pointer)))[0]
    found: dict[str, str] = {}
    for offset in range(0, filled, _IFREQ_BYTES):
        name = buffer[offset : offset + 16].tobytes().partition(b"\0")[0].decode(errors="replace").partition(":")[0]
        found.setdefault(name, socket.inet_ntoa(buffer[offset + 20 : offset + 24]))  # the first address is the main one
    return found


class DatagramLoop(Transport):
    """Base class of both ends: a thread that waits for datagrams or timers until it is stopped.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._stopping = threading.Event()
        self._wake_pipe = WakePipe()
        self._interfaces: dict[str, str] = {}
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def interfaces(self) -> dict[str, str]:
        """Return this machine's interfaces, or the last known ones if they cannot be read (too many open files)."""
        try:
            self._interfaces = interfaces()
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                log.warning("cannot read this machine's addresses: %s", error)
            self._is_failing = True
        return self._interfaces

    def stop(self, limit_s: float) -> str | None:
        if self._stopping.is_set() or not self._thread.ident:
            return None
        self._stopping.set()
        self._wake_pipe.wake()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            return "the thread of the announcements did not end"
        self._wake_pipe.close()
        return None

    def _wait(self, seconds: float, socks: Sequence[socket.socket] = ()) -> list[socket.socket]:
        """Wait until `socks` are readable, `stop` is called or `seconds` have passed. Return the readable sockets."""
        ready = readable([self._wake_pipe.fileno(), *socks], max(0.0, seconds))
        if self._wake_pipe.fileno() in ready:
            self._wake_pipe.drain()
        return [sock for sock in socks if sock in ready]

    def _run(self) -> None:
        raise NotImplementedError
