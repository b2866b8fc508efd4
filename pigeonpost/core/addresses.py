"""Network addresses as people write them: HOST:PORT, this machine's own name and address, loopback and multicast."""

from __future__ import annotations

import os
import socket


def split_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Return `HOST:PORT` or `[IPV6]:PORT` (the host alone, where there is a default port) as a pair. ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or (":" in host and not host.endswith("]")):  # no port: a name, [::1] or ::1
        host, port = text, "" if default_port is None else str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65_535:
        raise ValueError("takes HOST:PORT, as in 192.168.1.20:5003 or [::]:5003")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return host and port as one text: the reverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return True if a peer's address is a loopback address."""
    return host.removeprefix("::ffff:").startswith("127.") or host == "::1"


def own_name() -> str:
    """Return the name that balena gave this machine, or its host name, as a valid name of a node."""
    name = os.environ.get("BALENA_DEVICE_NAME_AT_INIT") or socket.gethostname()
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return name.strip("._-")[:63] or "pigeonpost"


def own_address() -> str:
    """Return this machine's address on the network of its default route; empty when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): a look at the routes, nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def is_group(address: tuple[str, int]) -> bool:
    """Return True if this is an IPv4 multicast group with a port."""
    try:
        return socket.inet_pton(socket.AF_INET, address[0])[0] >> 4 == 0b1110 and address[1] > 0
    except OSError:
        return False
