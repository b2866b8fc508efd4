"""URLs of the web interface, as the server prints them at its start."""

from __future__ import annotations

from pigeonpost.core.addresses import join_address, own_address
from pigeonpost.core.container import is_named_by_id


def page_addresses(scheme: str, host: str, port: int, first_key: str) -> list[str]:
    """Return the URLs for a browser on this machine and, if the web interface is open to the network, on others.

    Args:
        scheme: `http` or `https`.
        host: Address on which the web interface listens.
        port: Its port.
        first_key: The one-time key, which is part of each URL; empty if a password is set. Without the key, a browser
            on this machine has only read access, and a browser on another machine has no access.
    """
    key = f"?key={first_key}" if first_key else ""
    if host not in ("0.0.0.0", "::"):
        return [f"{scheme}://{join_address(host, port)}/{key}"]
    found = [f"{scheme}://127.0.0.1:{port}/{key}"]
    network_address = own_address()
    if is_named_by_id():  # a container in its own network does not know the address of its host
        found.append(
            f"{scheme}://HOST:PORT/{key} (from another machine: HOST is the container host, PORT the published port)"
        )
    elif network_address:
        once = " (from another machine; the key admits one browser)" if key else ""
        found.append(f"{scheme}://{join_address(network_address, port)}/{key}{once}")
    return found
