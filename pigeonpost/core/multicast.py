"""Multicast sockets: one that receives from a group, one that sends to it, and a reader of many datagrams at once.

Errors: SettingsError where an interface or a group cannot be used; it names both, and the remedy.
Sources: ip(7), IP_ADD_MEMBERSHIP and IP_MULTICAST_ALL; socket(7), SO_RCVBUF; recvmmsg(2); RFC 5771 (the addresses of
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

BUFFER_BYTES = 16 << 20  # that a listener asks for: more than a second at 20,000 small packets a second
_IP_MULTICAST_ALL, _SO_RCVBUFFORCE = 49, 33  # linux/in.h, asm-generic/socket.h; Python has no names for them


class Path(NamedTuple):
    """Interface and options by which a group is reached.

    interface  an address of this machine or an interface's name; empty: as the routes lead
    ttl        how many routers a packet may pass, plus one
    loop       whether this machine hears what it says itself
    """

    interface: str = ""
    ttl: int = 2
    loop: bool = True


def listener(group: tuple[str, int], path: Path) -> socket.socket:
    """Open a non-blocking socket that receives from `group`, and nothing else at its port."""
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
    """Open a socket whose `send` goes to `group`."""
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
    """Wait until something can be read. Returns the descriptors and sockets that are ready; none after `limit_s`.

    limit_s  seconds, 0 or more; None: wait without limit

    This is poll(2), since select(2) takes no descriptor above 1023, and a server with hundreds of nodes has those.
    """
    poll, known = select.poll(), {}
    for file in files:
        fd = file if isinstance(file, int) else file.fileno()
        known[fd] = file
        poll.register(fd, select.POLLIN)
    return [known[fd] for fd, _ in poll.poll(None if limit_s is None else 1000 * limit_s)]


class Drain:
    """Receives the datagrams that wait at a socket, many with one call (recvmmsg(2)).

    Python's own recv lets other threads run at each datagram, and where one of them is busy, as the server's writer is,
    it is 5 ms until the next: 200 datagrams a second. This call lets nobody run; it does not wait either.
    """

    def __init__(self, most: int, longest: int) -> None:
        """
        most     datagrams at a time
        longest  bytes of one; what is longer is cut there
        """
        self._most, self._longest = most, longest
        self._call: Any = None
        try:
            self._prepare()
        except (ImportError, MemoryError, OSError):  # a Python without ctypes, or one that may not make code
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
        """Return the waiting datagrams, oldest first; none when there is none, or when the interface is gone."""
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
        except OSError:  # BlockingIOError: that was all
            pass
        return found


def _ask_for_room(sock: socket.socket) -> None:
    """Request as large a buffer as possible: it holds what arrives while this program does something else."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    except OSError:  # not root: up to net.core.rmem_max then
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)


def _membership(group: str, interface: str) -> bytes:
    """Return a struct ip_mreqn: the group, and the interface by its address or its number."""
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
