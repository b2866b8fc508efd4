"""Connections over TCP that another thread can abort while they are made.

Errors: OSError.
"""

from __future__ import annotations

import socket
from collections.abc import Callable


def connected(host: str, port: int, timeout_s: float, made: Callable[[socket.socket], object]) -> socket.socket:
    """Connect to the first address of a host that answers, and return the socket.

    Args:
        host: Host name or address.
        port: Port.
        timeout_s: Time limit in seconds for each address. It is the timeout of the socket.
        made: Receives each socket before it connects, so that another thread can shut it down.

    Raises:
        OSError: No address can be connected.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for left, (family, kind, protocol, _, address) in zip(range(len(addresses) - 1, -1, -1), addresses, strict=True):
        sock = socket.socket(family, kind, protocol)
        made(sock)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError:
            sock.close()
            if not left:
                raise
    raise OSError(f"{host} has no address")
