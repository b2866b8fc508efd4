"""Listening sockets opened by systemd (pigeonpost-server.socket), for ports that only root can open.

They replace `[web] listen`. Errors: SettingsError for a socket that is not a listening TCP socket.
Source: sd_listen_fds(3). The descriptors begin at 3 and are for the process whose id is in LISTEN_PID.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Mapping

from pigeonpost.core.errors import SettingsError

_FIRST = 3  # SD_LISTEN_FDS_START
_COUNT = re.compile(r"[0-9]{1,3}").fullmatch
_BAD_SOCKET = "pigeonpost-server.socket: ListenStream must be a port or ADDRESS:PORT, and Accept must not be set"


def passed_addresses(environment: Mapping[str, str] = os.environ, first: int = _FIRST) -> list[tuple[str, int]]:
    """Return the addresses of the sockets that were passed to this process, in their order.

    Args:
        environment: Environment variables of this process.
        first: Number of the first descriptor.

    Returns:
        The addresses as `(host, port)`; an empty list if systemd has passed no socket.
    """
    found = []
    for descriptor in _descriptors(environment, first):
        sock = _duplicate(descriptor)
        try:
            found.append(_address(sock))
        finally:
            sock.close()
    return found


def passed_socket(
    address: tuple[str, int], environment: Mapping[str, str] = os.environ, first: int = _FIRST
) -> socket.socket | None:
    """Return a duplicate of the passed socket that listens on an address.

    Args:
        address: Address as `(host, port)`.
        environment: Environment variables of this process.
        first: Number of the first descriptor.

    Returns:
        The socket, or None if no passed socket has this address.
    """
    for descriptor in _descriptors(environment, first):
        sock = _duplicate(descriptor)
        if _address(sock) == address:
            return sock
        sock.close()
    return None


def _descriptors(environment: Mapping[str, str], first: int) -> range:
    count = environment.get("LISTEN_FDS", "")
    # A child process of the intended process inherits the variables but not the sockets.
    if environment.get("LISTEN_PID") != str(os.getpid()) or not _COUNT(count):
        return range(0)
    return range(first, first + int(count))


def _duplicate(descriptor: int) -> socket.socket:
    """Return a socket with a duplicate of the descriptor, and keep child processes from inheriting either.

    Raises:
        SettingsError: The descriptor is not a listening TCP socket.
    """
    if not _is_socket(descriptor):
        raise SettingsError(_BAD_SOCKET)
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=os.dup(descriptor))
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not _listens(sock):
        sock.close()
        raise SettingsError(_BAD_SOCKET)
    return sock


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:  # it is not open
        return False


def _listens(sock: socket.socket) -> bool:
    """Return True for a listening TCP socket. With Accept=yes, systemd would pass a connection instead."""
    return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _address(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()[:2]
    return str(host), int(port)
