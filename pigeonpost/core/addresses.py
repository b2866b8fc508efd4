"""Network addresses: parsing of HOST:PORT, this machine's name and address, loopback and multicast addresses."""

from __future__ import annotations

import os
import socket


def split_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Return host and port of an address.

    Args:
        text: `HOST:PORT` or `[IPV6]:PORT`, or the host alone if there is a default port.
        default_port: Port to use if `text` has none; None if it must have one.

    Raises:
        ValueError: The address is invalid. The message begins with "takes HOST:PORT".
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
    """Return the fault of an address as the end of a sentence, or an empty string if it is valid."""
    if "://" in text:
        return " (without http://)"
    if not host:
        return " (the host is missing)"
    if "[" in host or "]" in host:
        return " (put one pair of brackets around the host)"
    if any(letter in "/@?#\"'," for letter in host):
        return " (the host must be only a name or an address)"
    if not port:
        return " (the port is missing)"
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65_535:
        return " (the port must be a number from 0 to 65535)"
    return _fault_of_host(host)


def check_host(host: str) -> None:
    """Raise ValueError, with a text for an error message, if `host` contains more than a name or an address."""
    if set("/@?#[]\"' \t") & set(host) or (":" in host and _fault_of_host(host)):
        raise ValueError("takes only a name or an address, such as broker.local; the port has a key of its own")


def _fault_of_host(host: str) -> str:
    """Return the fault of a host that looks like an IP address, or an empty string if there is none."""
    parts = host.split(".")
    if len(parts) == 4 and all(part.isascii() and part.isdigit() for part in parts):
        return " (each part of an address is a number up to 255)" if any(int(part[:9]) > 255 for part in parts) else ""
    if ":" not in host:
        return ""
    plain, _, zone = host.partition("%")
    try:
        address = socket.inet_pton(socket.AF_INET6, plain)
    except OSError:
        return " (an IPv6 address is like fe80::1%eth0 or [2001:db8::1]:5003)"
    # Link-local, fe80::/10 (RFC 4291, 2.5.6): only the zone defines which network it belongs to (RFC 4007).
    if address[0] == 0xFE and address[1] & 0xC0 == 0x80 and not zone:
        return f" (add the network interface: [{plain}%eth0]:5003)"
    return ""


def join_address(host: str, port: int) -> str:
    """Return `host` and `port` as one text: the reverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return True if `host`, the address of a peer, is a loopback address."""
    return host.removeprefix("::ffff:").startswith("127.") or host == "::1"


def own_name() -> str:
    """Return a valid node name derived from this machine's name: balena's device name, or else the host name."""
    name = os.environ.get("BALENA_DEVICE_NAME_AT_INIT") or socket.gethostname()
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return name.strip("._-")[:63] or "pigeonpost"


def own_address() -> str:
    """Return this machine's address on the network of its default route, or an empty string if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): connect only looks up the route, and sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def is_group(address: tuple[str, int]) -> bool:
    """Return True if `address`, a pair (host, port), is an IPv4 multicast group with a port other than 0."""
    try:
        return socket.inet_pton(socket.AF_INET, address[0])[0] >> 4 == 0b1110 and address[1] > 0
    except OSError:
        return False
