"""Checks of who can reach the page: password, proxies, names. Errors: none."""

from __future__ import annotations

import glob
import ipaddress
import os
from collections.abc import Iterator, Mapping

from pigeonpost.cli.doctor_checks import Finding, control
from pigeonpost.cli.doctor_service import Service
from pigeonpost.core.addresses import is_loopback
from pigeonpost.core.config import Settings, as_toml
from pigeonpost.core.container import is_named_by_id

# Programs that are put before a page, as /proc has their names.
_PROXIES = ("nginx", "apache2", "httpd", "caddy", "haproxy", "traefik", "lighttpd")
_FILE = "/etc/pigeonpost/server.toml"


def page(settings: Settings, users: Mapping[str, str] | None, service: Service | None) -> Iterator[Finding]:
    """Yield what is wrong with the page's reach.

    users  with a password, by name; None: not known
    """
    addresses = [*settings["web", "listen"], *settings["web", "plain"]]
    is_open = any(not is_loopback(host) for host, _ in addresses)
    is_behind = [key for key in ("names", "proxies", "prefix") if settings["web", key]]
    yield from _password(is_open, is_behind, users, service)
    for network in settings["web", "proxies"]:
        if ipaddress.ip_network(network).prefixlen == 0:
            yield Finding("wrong", f"[web] proxies = {network}: everybody is believed who they are, so failed logins"
                          " are not counted", 'the proxy\'s own address, as proxies = ["192.168.1.5"]')  # fmt: skip
    for name in settings["web", "names"]:
        if ":" in name or "/" in name:
            yield Finding(
                "note", f"[web] names: {name} is read as {_plain(name)}", f"names = {as_toml([_plain(name)])}"
            )
    here = running_proxies(service.path("/proc") if service is not None else "/proc")
    if here:
        yield from _proxy(here[0], settings, is_open)
    if is_named_by_id() and not settings["web", "names"]:
        yield Finding("note", "the page is known by addresses only: this container's host name is its id",
                      "PIGEONPOST_WEB_NAMES=raspberrypi.local, with the name that browsers use")  # fmt: skip


def _password(
    is_open: bool, is_behind: list[str], users: Mapping[str, str] | None, service: Service | None
) -> Iterator[Finding]:
    """Check that a page which others reach asks for a password."""
    if users is None or users or not (is_open or is_behind):
        return
    command = control("password", as_root=service is not None, data=service.data if service is not None else "")
    if is_behind:
        yield Finding("wrong", f"no password is set, and [web] {' and '.join(is_behind)} let others reach the page:"
                      " everybody sees it", command)  # fmt: skip
    else:
        yield Finding("note", "no password is set: everybody in the network sees the page, and only the address with"
                      " the key may press its buttons", command)  # fmt: skip


def _proxy(proxy: str, settings: Settings, is_open: bool) -> Iterator[Finding]:
    """Note what a proxy on this machine takes, which may as well be there for something else."""
    if not settings["web", "names"]:
        file = settings.file or _FILE
        yield Finding("note", f"{proxy} runs here; if it is to show the page, it asks by a name",
                      f'[web] names = ["sensors.example.org"] in {file}, with that name; docs/web.md')  # fmt: skip
    elif is_open:
        number = settings["web", "listen"][0][1]
        yield Finding("note", f"{proxy} runs here, and the page is open beside it, too",
                      f'[web] listen = ["127.0.0.1:{number}"] in {settings.file or _FILE}')  # fmt: skip


def running_proxies(folder: str = "/proc") -> list[str]:
    """Return the proxies that run on this machine, by name."""
    found = set()
    for path in glob.glob(os.path.join(folder, "[0-9]*", "comm")):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                found.add(file.read().strip())
        except OSError:
            continue  # it has ended
    return sorted(found.intersection(_PROXIES))


def _plain(name: str) -> str:
    """Return a name as the server reads it: without scheme, port and path."""
    return name.lower().rpartition("://")[2].partition("/")[0].partition(":")[0]
