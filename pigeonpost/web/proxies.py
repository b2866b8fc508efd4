"""What a reverse proxy tells of a request: for whom it asks, by which name and scheme, and below which path.

May be used by any thread; nothing changes after construction.
Errors: HTTPError 400 for an X-Forwarded-Prefix that is no path.

Only a trusted proxy is believed: one on this machine, and those that the settings name. It may pass on what its client
has invented. Scheme, name and path decide only what this client is answered: no page of another site can set such a
header without a CORS preflight, which is never granted. The client's address decides whose failed logins are counted;
LoginThrottle counts those of each proxy too.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence

from pigeonpost.core.addresses import is_loopback
from pigeonpost.http.message import HTTPError, Request
from pigeonpost.settings import path_prefix

_MOST_HOPS = 16  # of an X-Forwarded-For that are looked at


class Proxies:
    """The proxies that are trusted, and the path below which they have this server."""

    def __init__(
        self, trusted: Sequence[str] = (), prefix: str = "", is_known: Callable[[str], bool] = lambda path: False
    ) -> None:
        """
        trusted   addresses and networks of proxies on other machines, as 192.168.1.5/32
        prefix    path below which a proxy has this server, where the settings say so: as /sensors
        is_known  returns True for a path of this server
        """
        self._prefix = prefix
        self._is_known = is_known
        self._is_in_network = _matcher(trusted)

    def read(self, request: Request) -> None:
        """Take over what a trusted proxy tells: peer, proxy, asked_host, is_secure, prefix and path of the request."""
        prefix = self._prefix
        if self._is_trusted(request.peer) and shows_proxy(request):
            headers, proxy = request.headers, request.peer
            request.proxy, request.peer = proxy, self._client(headers) or proxy
            asked = _last(headers.get("x-forwarded-host", "")).lower()
            request.asked_host = asked if HOST(asked) else ""
            request.is_secure = request.is_secure or _last(headers.get("x-forwarded-proto", "")).lower() == "https"
            prefix = _prefix_in(headers.get("x-forwarded-prefix", "")) or prefix
        request.prefix = prefix
        # A proxy that names the path in a header has usually removed it, so a path that is ours stays what it is.
        is_below = prefix and f"{request.path}/".startswith(f"{prefix}/")
        if is_below and (prefix == self._prefix or not self._is_known(request.path)):
            request.path = request.path.removeprefix(prefix) or "/"

    def _client(self, headers: Mapping[str, str]) -> str:
        """Return the address of the client; empty where no proxy names one.

        Each proxy appends the address that connected to it, so the last one that is no trusted proxy's is the client's:
        what stands before it may be invented.
        """
        told = [_plain(part) for part in headers.get("x-forwarded-for", headers.get("x-real-ip", "")).split(",")]
        found = ""
        for address in reversed(told[-_MOST_HOPS:]):
            if not address:
                break
            found = address
            if not self._is_trusted(address):
                break
        return found

    def _is_trusted(self, address: str) -> bool:
        return is_loopback(address) or self._is_in_network(address)


def shows_proxy(request: Request) -> bool:
    """Return True for a request that shows a sign of a proxy, which connects for others.

    nginx by default adds no header, but asks with HTTP/1.0, which no browser does; others add headers.
    """
    return request.version != "1.1" or any(_is_of_proxy(name.replace("_", "-")) for name in request.headers)


def _matcher(trusted: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that tells whether an address is in one of these networks."""
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
    """Return the path in an X-Forwarded-Prefix. Raises HTTPError 400."""
    try:
        return path_prefix(value)
    except ValueError as error:
        raise HTTPError(400, f"X-Forwarded-Prefix {error}.", "prefix", closes=True) from None


def _last(value: str) -> str:
    """Return the last item of a header's list: what the nearest proxy has written."""
    return value.rpartition(",")[2].strip()


def _plain(value: str) -> str:
    """Return an address in X-Forwarded-For without port and brackets; empty where it is none."""
    text = value.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    text = text.lower().removeprefix("::ffff:")
    return text if is_address(socket.AF_INET6 if ":" in text else socket.AF_INET, text) else ""


def is_address(family: int, text: str) -> bool:
    """Return True if the text is a whole address of that family (socket.AF_INET, AF_INET6)."""
    try:
        socket.inet_pton(family, text)
    except OSError:
        return False
    return True


def _is_of_proxy(name: str) -> bool:
    return name.startswith(_PROXY_HEADERS) and name not in _PAGE_HEADERS


# Beginnings of the names of headers with which proxies and content delivery networks tell for whom they ask. Each has
# its own, nearly all with x-; browsers send none of those by themselves, and scripts of pages these two.
_PROXY_HEADERS = (
    "x-", "proxy-", "forwarded", "via", "cf-", "cdn-loop", "fastly-", "fly-", "tailscale-", "true-client-", "client-ip",
    "max-forwards", "remote-", "ssl-client-", "surrogate-", "front-end-", "wl-proxy-", "incap-", "ali-cdn-",
    "eo-connecting-", "traceparent",
)  # fmt: skip
# The value of a Host header in lower case, as (address within brackets, name or IPv4 address).
HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9][a-z0-9._-]{0,252}))(?::[0-9]{1,5})?").fullmatch
_PAGE_HEADERS = ("x-csrf-token", "x-requested-with")
