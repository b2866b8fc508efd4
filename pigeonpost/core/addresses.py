"""Addresses as people write them.

Runs on: node and server.  Reached from: config, the roads, webui.  Hands on to: nobody.  Threads: none.
"""

from __future__ import annotations

import os
import socket


def split_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """`HOST:PORT`, `[IPV6]:PORT` (or only the host, where there is a default port) as a pair; else ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or (":" in host and not host.endswith("]")):  # no port: a name, [::1] or ::1
        host, port = text, "" if default_port is None else str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65_535:
        raise ValueError("takes HOST:PORT, as in 192.168.1.20:5003 or [::]:5003")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The reverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a peer's address is this machine's own."""
    return host.removeprefix("::ffff:").startswith("127.") or host == "::1"


def own_name() -> str:
    """The name that balena gave this machine, or its host name; with what the name of a node does not take replaced."""
    name = os.environ.get("BALENA_DEVICE_NAME_AT_INIT") or socket.gethostname()
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return name.strip("._-")[:63] or "pigeonpost"


def own_address() -> str:
    """This machine's address on the network to which its default route leads; empty when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): a look at the routes, nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def is_group(address: tuple[str, int]) -> bool:
    """Whether this is an IPv4 multicast group with a port."""
    try:
        return socket.inet_pton(socket.AF_INET, address[0])[0] >> 4 == 0b1110 and address[1] > 0
    except OSError:
        return False
