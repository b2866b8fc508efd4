"""Network addresses as people write them: HOST:PORT, this machine's own name and address, loopback and multicast."""

from __future__ import annotations

import os
import socket


def split_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Return `HOST:PORT` or `[IPV6]:PORT` (the host alone, where there is a default port) as a pair.

    Raises ValueError, which says what is wrong: "takes HOST:PORT ...".
    """
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or (":" in host and not host.endswith("]")):  # no port: a name, [::1] or ::1
        host, port = text, "" if default_port is None else str(default_port)
    is_bracketed = host.startswith("[") and host.endswith("]")
    fault = _fault_of_address(text, host[1:-1] if is_bracketed else host, port)
    if fault:
        raise ValueError(f"takes HOST:PORT, as in 192.168.1.20:5003 or [::]:5003{fault}")
    return host[1:-1] if is_bracketed else host, int(port)


def _fault_of_address(text: str, host: str, port: str) -> str:
    """Return what is wrong with an address, as the end of a sentence; nothing when it is right."""
    if "://" in text:
        return " (without http://)"
    if not host:
        return " (the host is missing)"
    if "[" in host or "]" in host:
        return " (with one pair of brackets)"
    if any(letter in "/@?#\"'," for letter in host):
        return " (a name or address alone)"
    if not port:
        return " (the port is missing)"
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65_535:
        return " (the port is a number from 0 to 65535)"
    return _fault_of_host(host)


def _fault_of_host(host: str) -> str:
    """Return what is wrong with a host that looks like an IP address."""
    parts = host.split(".")
    if len(parts) == 4 and all(part.isascii() and part.isdigit() for part in parts):
        return " (the parts of an address go to 255)" if any(int(part[:9]) > 255 for part in parts) else ""
    if ":" not in host:
        return ""
    plain, _, zone = host.partition("%")
    try:
        address = socket.inet_pton(socket.AF_INET6, plain)
    except OSError:
        return " (an IPv6 address is like fe80::1%eth0 or [2001:db8::1]:5003)"
    # Link-local, fe80::/10 (RFC 4291, 2.5.6): without its zone, nobody knows on which network it is (RFC 4007).
    if address[0] == 0xFE and address[1] & 0xC0 == 0x80 and not zone:
        return f" (with its network interface: [{plain}%eth0]:5003)"
    return ""


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
