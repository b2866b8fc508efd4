"""Sockets for groups of the multicast bus: one that hears a group, one that speaks to it.

Runs on: node and server.  Reached from: links/bus, links/router, commands/bus.  Hands on to: the kernel.
Threads: none.
Errors: SettingsError where an interface or a group cannot be had; it names both, and the remedy.

Sources: ip(7), IP_ADD_MEMBERSHIP, IP_MULTICAST_ALL; socket(7), SO_RCVBUF; RFC 5771 (what is a group).
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import NamedTuple

from base.errors import SettingsError
from base.net import join_address

BUFFER_BYTES = 4 << 20  # that a listener asks for: a quarter of a second at 20,000 packets a second
_IP_MULTICAST_ALL, _SO_RCVBUFFORCE = 49, 33  # linux/in.h, asm-generic/socket.h; Python has no names for them


class Path(NamedTuple):
    """How a group is reached.

    interface  an address of this machine or an interface's name; empty: as the routes lead
    ttl        how many routers a packet may pass, plus one
    loop       whether this machine hears what it says itself
    """

    interface: str = ""
    ttl: int = 2
    loop: bool = True


def is_group(address: tuple[str, int]) -> bool:
    """Whether this is an IPv4 multicast group with a port."""
    try:
        return socket.inet_pton(socket.AF_INET, address[0])[0] >> 4 == 0b1110 and address[1] > 0
    except OSError:
        return False


def listener(group: tuple[str, int], path: Path) -> socket.socket:
    """A socket that does not block and hears `group`, and nothing else that comes to its port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # everybody on this machine has the same port
        _ask_for_room(sock)
        sock.bind(group)
        # Else it would also hear the group on interfaces where another program has joined it.
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _membership(group[0], path.interface))
        sock.setblocking(False)
    except (OSError, SettingsError) as error:
        sock.close()
        raise _explained(error, group, path) from error
    return sock


def speaker(group: tuple[str, int], path: Path) -> socket.socket:
    """A socket whose `send` goes to `group`."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, path.ttl)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, path.loop)
        if path.interface:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _membership("0.0.0.0", path.interface))
        sock.connect(group)
    except (OSError, SettingsError) as error:
        sock.close()
        raise _explained(error, group, path) from error
    return sock


def _ask_for_room(sock: socket.socket) -> None:
    """As large a buffer as this kernel gives: it has to hold what comes while this program does something else."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    except OSError:  # not root: up to net.core.rmem_max then
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)


def _membership(group: str, interface: str) -> bytes:
    """A struct ip_mreqn: the group, and the interface by its address or its number."""
    address, number = "0.0.0.0", 0
    if interface:
        try:
            socket.inet_pton(socket.AF_INET, interface)
            address = interface
        except OSError:
            try:
                number = socket.if_nametoindex(interface)
            except OSError:
                raise SettingsError(f"this machine has no interface {interface!r}") from None
    return struct.pack("4s4si", socket.inet_aton(group), socket.inet_aton(address), number)


def _explained(error: OSError | SettingsError, group: tuple[str, int], path: Path) -> SettingsError:
    where = join_address(*group) + (f" on {path.interface}" if path.interface else "")
    if isinstance(error, SettingsError):
        return SettingsError(f"the multicast group {where}: {error}")
    remedy = ""
    if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENETUNREACH):
        remedy = "; set [bus] interface to this machine's address on that network, or to the interface's name"
    return SettingsError(f"the multicast group {where}: {error.strerror or error}{remedy}")
