"""Multicast sockets: a receiver and a sender of a group, and a reader of many datagrams with one system call.

Errors: SettingsError if an interface or a group cannot be used. Its message contains both and the remedy.

Sources: ip(7), IP_ADD_MEMBERSHIP and IP_MULTICAST_ALL; socket(7), SO_RCVBUF; recvmmsg(2); RFC 5771 (addresses of
groups).
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Sequence

from pigeonpost.core.addresses import join_address
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

BUFFER_BYTES = 16 << 20  # requested receive buffer: enough for more than one second of 20,000 small packets per second
_IP_MULTICAST_ALL, _SO_RCVBUFFORCE = 49, 33  # linux/in.h, asm-generic/socket.h; Python has no names for them


class Path(NamedTuple):
    """Interface and options for a multicast group.

    Attributes:
        interface: Address of this machine, or name of an interface; an empty string for the interface of the route.
        ttl: Time to live: the number of routers that a packet may pass, plus one.
        loop: True if this machine also receives what it sends.
    """

    interface: str = ""
    ttl: int = 2
    loop: bool = True


def listener(group: tuple[str, int], path: Path) -> socket.socket:
    """Return a non-blocking socket that receives datagrams to `group`, and no others, via `path`.

    Raises:
        SettingsError: The group or the interface cannot be used.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # all programs of this machine share the port
        _request_buffer(sock)
        sock.bind(group)
        # Otherwise the socket would also receive on interfaces on which another program has joined the group.
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _membership(group[0], path.interface))
        sock.setblocking(False)
    except (OSError, SettingsError) as error:
        sock.close()
        raise _explained(error, group, path) from error
    return sock


def speaker(group: tuple[str, int], path: Path) -> socket.socket:
    """Return a socket whose `send` sends to `group` via `path`.

    Raises:
        SettingsError: The group or the interface cannot be used.
    """
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


def readable(files: Sequence[int | socket.socket], limit_s: float | None) -> list[int | socket.socket]:
    """Wait until some of `files` are readable. Return the readable ones, or an empty list after `limit_s` seconds.

    `files` are file descriptors and sockets. With a `limit_s` of None there is no time limit. This function uses
    poll(2), because select(2) does not accept descriptors above 1023, which a server with hundreds of nodes has.
    """
    poll, known = select.poll(), {}
    for file in files:
        fd = file if isinstance(file, int) else file.fileno()
        known[fd] = file
        poll.register(fd, select.POLLIN)
    return [known[fd] for fd, _ in poll.poll(None if limit_s is None else 1000 * limit_s)]


class Drain:
    """Receives the waiting datagrams of a socket, many with one call of recvmmsg(2).

    Python's own recv releases the interpreter lock at each datagram. If another thread is busy, such as the server's
    writer, this thread gets the lock again only after 5 ms. That limits this thread to 200 datagrams per second. The
    call of recvmmsg keeps the lock, and does not wait.

    Args:
        most: Maximum number of datagrams per call.
        longest: Maximum length of a datagram in bytes; longer ones are cut.
    """

    def __init__(self, most: int, longest: int) -> None:
        self._most, self._longest = most, longest
        self._call: Any = None
        try:
            self._prepare()
        # Python without ctypes, or without permission to create executable memory.
        except (ImportError, MemoryError, OSError):
            self._call = None

    def _prepare(self) -> None:
        import ctypes

        class Part(ctypes.Structure):  # struct iovec
            _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

        class Head(ctypes.Structure):  # struct msghdr
            _fields_ = (
                ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint), ("parts", ctypes.c_void_p),
                ("part_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
                ("flags", ctypes.c_int),
            )  # fmt: skip

        class Message(ctypes.Structure):  # struct mmsghdr
            _fields_ = (("head", Head), ("length", ctypes.c_uint))

        call = getattr(ctypes.PyDLL(None), "recvmmsg", None)
        if call is None:  # not Linux
            return
        self._block = bytearray(self._most * self._longest)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._block))
        self._parts = (Part * self._most)()
        self._messages = (Message * self._most)()
        for n, (part, message) in enumerate(zip(self._parts, self._messages)):
            part.base, part.length = start + n * self._longest, self._longest
            message.head.parts, message.head.part_count = ctypes.addressof(part), 1
        words = ctypes.sizeof(Message) // 4
        self._lengths = memoryview(self._messages).cast("B").cast("I")[Message.length.offset // 4 :: words]
        call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
        self._call = call

    def __call__(self, sock: socket.socket) -> list[bytes]:
        """Return the waiting datagrams of `sock`, oldest first. The list is empty if there are none or no network."""
        if self._call is None:
            return self._one_by_one(sock)
        count = self._call(sock.fileno(), self._messages, self._most, socket.MSG_DONTWAIT, None)
        if count <= 0:
            return []
        block, longest = memoryview(self._block), self._longest
        return [
            block[at : at + length].tobytes()
            for at, length in zip(range(0, count * longest, longest), self._lengths[:count].tolist())
        ]

    def _one_by_one(self, sock: socket.socket) -> list[bytes]:
        found = []
        try:
            for _ in range(self._most):
                found.append(sock.recv(self._longest))
        except OSError:  # BlockingIOError: no more datagrams are waiting
            pass
        return found


def _request_buffer(sock: socket.socket) -> None:
    """Request a large receive buffer for the datagrams that arrive while this program is busy."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    except OSError:  # without root the size is limited to net.core.rmem_max
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)


def _membership(group: str, interface: str) -> bytes:
    """Return a struct ip_mreqn: the group, and the interface by its address or its index."""
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
