"""Sockets that systemd has opened for the page, as pigeonpost-server.socket asks: for ports that only root may open.

They take the place of `[web] listen`. Errors: SettingsError for a socket that is not one of TCP.
Source: sd_listen_fds(3): descriptors from 3 on, for the process whose number is in LISTEN_PID.
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
_NOT_OURS = "pigeonpost-server.socket: ListenStream takes a port, or ADDRESS:PORT, without Accept"


def passed_addresses(environment: Mapping[str, str] = os.environ, first: int = _FIRST) -> list[tuple[str, int]]:
    """Return the address of each socket that was passed to this process, in their order; none without systemd.

    first  the number of the first descriptor
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
    """Return a new descriptor of the passed socket that listens on `address`; None where there is none."""
    for descriptor in _descriptors(environment, first):
        sock = _duplicate(descriptor)
        if _address(sock) == address:
            return sock
        sock.close()
    return None


def _descriptors(environment: Mapping[str, str], first: int) -> range:
    count = environment.get("LISTEN_FDS", "")
    # A process that was started by the one meant inherits the variables, but not the sockets.
    if environment.get("LISTEN_PID") != str(os.getpid()) or not _COUNT(count):
        return range(0)
    return range(first, first + int(count))


def _duplicate(descriptor: int) -> socket.socket:
    """Return a socket of a descriptor's copy, which programs started by this one do not get. Raises SettingsError."""
    if not _is_socket(descriptor):
        raise SettingsError(_NOT_OURS)
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=os.dup(descriptor))
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not _listens(sock):
        sock.close()
        raise SettingsError(_NOT_OURS)
    return sock


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:  # it is not open
        return False


def _listens(sock: socket.socket) -> bool:
    """Return True for a stream that listens: with Accept=yes systemd passes one connection."""
    return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _address(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()[:2]
    return str(host), int(port)
