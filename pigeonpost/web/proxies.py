"""Forwarding headers of reverse proxies: the client's address, the requested name, scheme and path.

All functions may be called from any thread; nothing changes after construction.
Errors: HTTPError 400 for an X-Forwarded-Prefix that is not a valid path.

Only the headers of trusted proxies are read: proxies on this machine, and those in the settings. A proxy may pass on
values that its client has invented. Invented values of scheme, name and path only affect the response to that client:
no page of another site can set such a header without a CORS preflight, which this server never grants. The client's
address determines whose failed logins are counted, so LoginThrottle also counts the failures per proxy.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence

from pigeonpost.core.addresses import is_loopback
from pigeonpost.http.message import HTTPError, Request
from pigeonpost.settings import path_prefix

_MOST_HOPS = 16  # number of addresses at the end of an X-Forwarded-For that are read


class Proxies:
    """The trusted proxies, and the path below which they provide this server.

    Args:
        trusted: Addresses and networks of proxies on other machines, such as 192.168.1.5/32.
        prefix: Path below which a proxy provides this server, such as /sensors, if it is set in the settings.
        is_known: Function that returns True for a path of this server.
    """

    def __init__(
        self, trusted: Sequence[str] = (), prefix: str = "", is_known: Callable[[str], bool] = lambda path: False
    ) -> None:
        self._prefix = prefix
        self._is_known = is_known
        self._is_in_network = _matcher(trusted)

    def read(self, request: Request) -> None:
        """Read the headers of a trusted proxy, and set the attributes of `request` accordingly.

        These are peer, proxy, forwarded_host, is_secure, prefix and path.
        """
        prefix = self._prefix
        if self._is_trusted(request.peer) and shows_proxy(request):
            headers, proxy = request.headers, request.peer
            request.proxy, request.peer = proxy, self._client(headers) or proxy
            forwarded_host = _last(headers.get("x-forwarded-host", "")).lower()
            request.forwarded_host = forwarded_host if HOST(forwarded_host) else ""
            request.is_secure = request.is_secure or _last(headers.get("x-forwarded-proto", "")).lower() == "https"
            prefix = _prefix_in(headers.get("x-forwarded-prefix", "")) or prefix
        request.prefix = prefix
        # A proxy that sends the prefix in a header has usually removed it from the path. Therefore a known path of this
        # server remains unchanged.
        is_below = prefix and f"{request.path}/".startswith(f"{prefix}/")
        if is_below and (prefix == self._prefix or not self._is_known(request.path)):
            request.path = request.path.removeprefix(prefix) or "/"

    def _client(self, headers: Mapping[str, str]) -> str:
        """Return the address of the client, or an empty string if no proxy has sent one.

        Each proxy appends the address that connected to it. The last address that is not a trusted proxy's is therefore
        the client's. The addresses before it may be invented.
        """
        hops = [_plain(part) for part in headers.get("x-forwarded-for", headers.get("x-real-ip", "")).split(",")]
        found = ""
        for address in reversed(hops[-_MOST_HOPS:]):
            if not address:
                break
            found = address
            if not self._is_trusted(address):
                break
        return found

    def _is_trusted(self, address: str) -> bool:
        return is_loopback(address) or self._is_in_network(address)


def shows_proxy(request: Request) -> bool:
    """Return True if `request` shows signs of a proxy, which connects for other clients.

    By default nginx adds no header but uses HTTP/1.0, which no browser does. Other proxies add headers.
    """
    return request.version != "1.1" or any(_is_of_proxy(name.replace("_", "-")) for name in request.headers)


def _matcher(trusted: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that returns True for an address in one of these networks."""
    if not trusted:
        return lambda address: False
    import ipaddress

    networks = [ipaddress.ip_network(network) for network in trusted]

    def is_in_network(address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in networks)

    return is_in_network


def _prefix_in(value: str) -> str:
    """Return the path in an X-Forwarded-Prefix. Raise HTTPError 400 if it is invalid."""
    try:
        return path_prefix(value)
    except ValueError as error:
        raise HTTPError(400, f"X-Forwarded-Prefix {error}.", "prefix", closes=True) from None


def _last(value: str) -> str:
    """Return the last item of a list in a header, which was written by the nearest proxy."""
    return value.rpartition(",")[2].strip()


def _plain(value: str) -> str:
    """Return an address in X-Forwarded-For without port and brackets, or an empty string if it is invalid."""
    text = value.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    text = text.lower().removeprefix("::ffff:")
    return text if is_address(socket.AF_INET6 if ":" in text else socket.AF_INET, text) else ""


def is_address(family: int, text: str) -> bool:
    """Return True if `text` is a valid address of `family` (socket.AF_INET or AF_INET6)."""
    try:
        socket.inet_pton(family, text)
    except OSError:
        return False
    return True


def _is_of_proxy(name: str) -> bool:
    return name.startswith(_PROXY_HEADERS) and name not in _PAGE_HEADERS


# Prefixes of the header names of proxies and content delivery networks. Most of them begin with x-. Browsers do not
# send such headers on their own. Scripts of pages send the two headers in _PAGE_HEADERS.
_PROXY_HEADERS = (
    "x-", "proxy-", "forwarded", "via", "cf-", "cdn-loop", "fastly-", "fly-", "tailscale-", "true-client-", "client-ip",
    "max-forwards", "remote-", "ssl-client-", "surrogate-", "front-end-", "wl-proxy-", "incap-", "ali-cdn-",
    "eo-connecting-", "traceparent",
)  # fmt: skip
# The value of a Host header in lower case, as (address within brackets, name or IPv4 address).
HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9][a-z0-9._-]{0,252}))(?::[0-9]{1,5})?").fullmatch
_PAGE_HEADERS = ("x-csrf-token", "x-requested-with")
