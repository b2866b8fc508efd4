"""The names by which this server is asked: checks of the Host and of the Origin of a request.

May be used by any thread; nothing changes after construction.
Errors: HTTPError 421 for a name that is not ours, 403 for a change that another site's page asks for.
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

# Endings that home routers give to the machines of their network, beside mDNS' own (RFC 6762): lan, home, localdomain
# and fritz.box by custom, home.arpa by RFC 8375, internal as ICANN has reserved it. Nobody can register a name there,
# and a router gives this machine's name to no other.
_LOCAL_DOMAINS = ("local", "lan", "home", "home.arpa", "internal", "localdomain", "fritz.box")

_FOREIGN_PAGE = "A page of another site may change nothing here."
# In these texts a line that begins with four blanks is a command.
_PASS_ON = (
    "If this page was opened through a proxy: it has to pass on Host as the browser sends it, with the port.\n"
    "nginx, beside proxy_pass:\n"
    "    proxy_set_header Host $http_host;\n"
    "Apache, beside ProxyPass:\n"
    "    ProxyPreserveHost On\n"
    "Caddy and Traefik do so by themselves."
)


class NamesOrigin(NamedTuple):
    """Where `[web] names` is set.

    file      that the settings were read from; empty: there is none
    variable  environment variable that gives the names; empty: none does
    """

    file: str = ""
    variable: str = ""


def names_origin(settings: Settings) -> NamesOrigin:
    """Return where the settings have the names from."""
    origin = settings.origin("web", "names")
    return NamesOrigin(settings.file, origin if origin.startswith("PIGEONPOST_") else "")


class HostNames:
    """This machine's names, and those of the settings."""

    def __init__(self, names: Iterable[str], origin: NamesOrigin, clock: Clock) -> None:
        """
        names   by which browsers may call this server, beside its addresses and this machine's own names
        origin  where they are set: what clients with other names are told
        """
        self._origin = origin
        self._set_names = {_plain(name) for name in names}
        self._names = self._set_names | _own_names()
        self._rare_log = RareLog(log, clock)

    def check_host(self, request: Request) -> None:
        """Refuse a request for another name: a hostile page's own name may lead here (DNS rebinding)."""
        host = request.headers.get("host")
        if host is not None and not self._is_ours(host):
            raise self._refuse_name(request, host)

    def check_origin(self, request: Request) -> None:
        """Refuse a change that another site's page asks for.

        Sec-Fetch-Site is the browser's own word, which no page can write (Fetch Metadata, section 2). Browsers leave it
        out on plain HTTP; then Origin has to be the address of this server, as the browser has it.
        """
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site == "same-origin":
            return
        if site not in (None, "none"):
            raise HTTPError(403, _FOREIGN_PAGE, "cross-site")
        if origin is not None and not self._is_own_origin(request, origin.lower()):
            raise HTTPError(403, f"{_FOREIGN_PAGE}\n{_PASS_ON}", "cross-site")

    def _is_ours(self, host: str) -> bool:
        found = HOST(host.lower())
        if not found:
            return False
        bracketed, name = found.groups()
        if bracketed is not None:
            return is_address(socket.AF_INET6, bracketed)
        return name.removesuffix(".") in self._names or is_address(socket.AF_INET, name)

    def _is_own_origin(self, request: Request, origin: str) -> bool:
        scheme, _, place = origin.partition("://")
        if scheme not in ("http", "https") or not place:
            return False
        if place in (request.headers.get("host", "").lower(), request.asked_host):
            return True
        # A proxy that passes on the name alone. Without one, Host has the port, and another port is another site.
        found = HOST(place) if request.proxy else None
        return found is not None and found[2] is not None and found[2].removesuffix(".") in self._set_names

    def _refuse_name(self, request: Request, host: str) -> HTTPError:
        """Return the error, and log where the operator has to write the name.

        The answer names no folder, since a hostile page may read it; the log does.
        """
        found = _SHOWABLE(host.lower())
        if not found or found[1].endswith(_NOBODYS):
            text = f"This server does not go by that name.\n{self._how_to_add('sensors.example.org')}"
            return HTTPError(421, text, "name")
        name, file = found[1], self._origin.file
        self._rare_log.say(
            logging.WARNING, "name", f"{request.peer}: asked for {name}, which is no name of this server."
            f" If it is: [web] names = [\"{name}\"]{f' in {os.path.abspath(file)}' if file else ''}",
        )  # fmt: skip
        lines = [f"This server does not go by the name {name}.", self._how_to_add(name)]
        return HTTPError(421, "\n".join([*lines, _PASS_ON] if shows_proxy(request) else lines), "name")

    def _how_to_add(self, name: str) -> str:
        file, variable = self._origin
        if variable:
            before = "...," if self._set_names else ""
            return f"If it is yours, set it in the server's environment, and restart it:\n    {variable}={before}{name}"
        if not file:
            return (
                "If it is yours, write into /etc/pigeonpost/server.toml, or one beside server.py, table [web], and"
                f' restart the server:\n    names = ["{name}"]\nIn a container, set:\n    PIGEONPOST_WEB_NAMES={name}'
            )
        where = file if file.startswith("/etc/") else f"{os.path.basename(file)}, the server's settings file"
        if self._set_names:
            how, line = f"add it to the names in {where}, table [web]", f'names = [..., "{name}"]'
        else:
            how, line = f"write into {where}, table [web]", f'names = ["{name}"]'
        return f"If it is yours, {how}, and restart the server:\n    {line}"


def is_of_another_site(request: Request) -> bool:
    """Return True if a browser says that the page of another site made this request (Fetch Metadata)."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def is_this_machine(request: Request) -> bool:
    """Return True for a client on this machine that shows no sign of a proxy, which would connect for others."""
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
    """Return a name of the settings without what people copy along from an address: scheme, port, path."""
    return name.lower().rpartition("://")[2].partition("/")[0].partition(":")[0].removesuffix(".")


def _own_names() -> set[str]:
    """Return this machine's names that need no look-up: its host name, whole and short, and as local networks have it.

    On balena the host's name is that of the container, and the device is reached by its UUID
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


_NOBODYS = (".example", ".invalid")  # domains in which nobody can have a name (RFC 6761)
_UUID = re.compile(r"[0-9a-f]{7,64}").fullmatch
# A name that may stand in a text: what a DNS name has, and no more of it than fits on a line.
_SHOWABLE = re.compile(r"([a-z0-9](?:[a-z0-9.-]{0,98}[a-z0-9])?)\.?(?::[0-9]{1,5})?").fullmatch
