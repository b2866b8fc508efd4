"""Checks of the Host and Origin headers of requests against the names of this server.

All functions may be called from any thread; nothing changes after construction.
Errors: HTTPError 421 for a name that is not one of this server's; 403 for a change requested by a page of another site.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

from pigeonpost.core.addresses import is_loopback, own_name
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import Settings
from pigeonpost.core.rare_log import RareLog
from pigeonpost.http.message import HTTPError, Request
from pigeonpost.web.proxies import HOST, is_address, shows_proxy

log = logging.getLogger(__name__)

# Domains of local networks: local for mDNS (RFC 6762), lan, home, localdomain and fritz.box by custom of home routers,
# home.arpa by RFC 8375, and internal as reserved by ICANN. No one can register a name in these domains, and a router
# does not assign the name of this machine to another one.
_LOCAL_DOMAINS = ("local", "lan", "home", "home.arpa", "internal", "localdomain", "fritz.box")

_FOREIGN_PAGE = "Pages of other sites are not allowed to change anything here."
# In these texts, a line that begins with four spaces is a command.
_PASS_ON = (
    "If you opened this page through a proxy, the proxy must pass on the Host header unchanged, with the port.\n"
    "nginx, next to proxy_pass:\n"
    "    proxy_set_header Host $http_host;\n"
    "Apache, next to ProxyPass:\n"
    "    ProxyPreserveHost On\n"
    "Caddy and Traefik do this by default."
)


class NamesOrigin(NamedTuple):
    """Origin of the setting `[web] names`.

    Attributes:
        file: Path of the settings file, or an empty string if there is none.
        variable: Environment variable that contains the names, or an empty string if there is none.
    """

    file: str = ""
    variable: str = ""


def names_origin(settings: Settings) -> NamesOrigin:
    """Return the origin of `[web] names` in `settings`."""
    origin = settings.origin("web", "names")
    return NamesOrigin(settings.file, origin if origin.startswith("PIGEONPOST_") else "")


class HostNames:
    """Names of this server: those of this machine, and those in the settings.

    Args:
        names: Names in the settings. The addresses and the names of this machine are accepted too.
        origin: Origin of these names, for the message to clients that use another name.
        clock: Clock for the rate limit of the log.
    """

    def __init__(self, names: Iterable[str], origin: NamesOrigin, clock: Clock) -> None:
        self._origin = origin
        self._set_names = {_plain(name) for name in names}
        self._names = self._set_names | _own_names()
        self._rare_log = RareLog(log, clock)

    def check_host(self, request: Request) -> None:
        """Raise HTTPError 421 if the Host of `request` is not a name of this server.

        An attacker can change the DNS entry of their own page's name to the address of this server (DNS rebinding).
        """
        host = request.headers.get("host")
        if host is not None and not self._is_own_name(host):
            raise self._refuse_name(request, host)

    def check_origin(self, request: Request) -> None:
        """Raise HTTPError 403 if `request` is a change requested by a page of another site.

        The browser itself writes Sec-Fetch-Site; no page can set it (Fetch Metadata, section 2). Browsers omit it on
        plain HTTP. Then Origin must be the address under which the browser reaches this server.
        """
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site == "same-origin":
            return
        if site not in (None, "none"):
            raise HTTPError(403, _FOREIGN_PAGE, "cross-site")
        if origin is not None and not self._is_own_origin(request, origin.lower()):
            raise HTTPError(403, f"{_FOREIGN_PAGE}\n{_PASS_ON}", "cross-site")

    def _is_own_name(self, host: str) -> bool:
        found = HOST(host.lower())
        if not found:
            return False
        bracketed, name = found.groups()
        if bracketed is not None:
            return is_address(socket.AF_INET6, bracketed)
        return name.removesuffix(".") in self._names or is_address(socket.AF_INET, name)

    def _is_own_origin(self, request: Request, origin: str) -> bool:
        scheme, _, host = origin.partition("://")
        if scheme not in ("http", "https") or not host:
            return False
        if host in (request.headers.get("host", "").lower(), request.forwarded_host):
            return True
        # A proxy may pass on the name without the port. Without a proxy, Host contains the port, and another port is
        # another site.
        found = HOST(host) if request.proxy else None
        return found is not None and found[2] is not None and found[2].removesuffix(".") in self._set_names

    def _refuse_name(self, request: Request, host: str) -> HTTPError:
        """Return the error, and log the setting that the operator has to change.

        The log contains the path of the settings file. The response does not, since a hostile page may read it.
        """
        found = _SHOWABLE(host.lower())
        if not found or found[1].endswith(_UNUSED_DOMAINS):
            text = f"That is not a name of this server.\n{self._how_to_add('sensors.example.org')}"
            return HTTPError(421, text, "name")
        name, file = found[1], self._origin.file
        self._rare_log.log(
            logging.WARNING, "name", f"{request.peer}: requested {name}, which is not a name of this server."
            f" If it should be, set [web] names = [\"{name}\"]{f' in {os.path.abspath(file)}' if file else ''}",
        )  # fmt: skip
        lines = [f"{name} is not a name of this server.", self._how_to_add(name)]
        return HTTPError(421, "\n".join([*lines, _PASS_ON] if shows_proxy(request) else lines), "name")

    def _how_to_add(self, name: str) -> str:
        """Return the instructions for adding a name to the settings."""
        file, variable = self._origin
        if variable:
            present = "...," if self._set_names else ""
            return (
                "If it is yours, add it in the server's environment and restart the server:\n"
                f"    {variable}={present}{name}"
            )
        if not file:
            return (
                "If it is yours, add it to /etc/pigeonpost/server.toml (or server.toml next to server.py), table [web],"
                f' and restart:\n    names = ["{name}"]\nIn a container, set:\n    PIGEONPOST_WEB_NAMES={name}'
            )
        where = file if file.startswith("/etc/") else f"{os.path.basename(file)}, the server's settings file"
        line = f'names = [..., "{name}"]' if self._set_names else f'names = ["{name}"]'
        return f"If it is yours, add it to {where}, table [web], and restart the server:\n    {line}"


def is_of_another_site(request: Request) -> bool:
    """Return True if `request` was made by a page of another site, as reported by the browser (Fetch Metadata)."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def is_this_machine(request: Request) -> bool:
    """Return True if the client of `request` is on this machine and shows no sign of a proxy.

    A proxy on this machine connects for other clients.
    """
    return (
        is_loopback(request.peer)
        and not request.proxy
        and not shows_proxy(request)
        and _is_loopback_name(request.headers.get("host", "").lower())
    )


def _is_loopback_name(host: str) -> bool:
    found = HOST(host)
    if not found:
        return False
    name = (found[1] or found[2]).removesuffix(".")
    return name in ("localhost", "::1") or (is_loopback(name) and is_address(socket.AF_INET, name))


def _plain(name: str) -> str:
    """Return a name in the settings without scheme, port and path, which users may have copied with it."""
    return name.lower().rpartition("://")[2].partition("/")[0].partition(":")[0].removesuffix(".")


def _own_names() -> set[str]:
    """Return the names of this machine that need no DNS lookup.

    These are the host name, in full and without its domain, and the host name in the domains of local networks. On
    balena, the host name is that of the container, and the device is reached by its UUID
    (https://docs.balena.io/learn/develop/runtime/).
    """
    names = {"localhost"}
    for name in (socket.gethostname().lower(), own_name().lower()):
        short = name.partition(".")[0]
        names |= {name, short, *(f"{short}.{domain}" for domain in _LOCAL_DOMAINS)}
    uuid = os.environ.get("BALENA_DEVICE_UUID", "").lower()
    if _UUID(uuid):
        names |= {uuid[:7], f"{uuid[:7]}.local", f"{uuid}.balena-devices.com"}
    return names


_UNUSED_DOMAINS = (".example", ".invalid")  # domains in which no one can register a name (RFC 6761)
_UUID = re.compile(r"[0-9a-f]{7,64}").fullmatch
# A name that may be repeated in a message: the characters of a DNS name, and short enough for one line.
_SHOWABLE = re.compile(r"([a-z0-9](?:[a-z0-9.-]{0,98}[a-z0-9])?)\.?(?::[0-9]{1,5})?").fullmatch
