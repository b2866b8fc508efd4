"""Checks of the access to the web interface: password, proxies, host names. No errors are raised."""

from __future__ import annotations

import glob
import ipaddress
import os
from collections.abc import Iterator, Mapping

from pigeonpost.cli.doctor_checks import Finding, control_command
from pigeonpost.cli.doctor_service import Service
from pigeonpost.core.addresses import is_loopback
from pigeonpost.core.config import Settings, as_toml
from pigeonpost.core.container import is_named_by_id

# Process names of reverse proxies, as in /proc/PID/comm.
_PROXIES = ("nginx", "apache2", "httpd", "caddy", "haproxy", "traefik", "lighttpd")
_FILE = "/etc/pigeonpost/server.toml"


def check_page(settings: Settings, users: Mapping[str, str] | None, service: Service | None) -> Iterator[Finding]:
    """Yield the findings on the access to the web interface.

    Args:
        settings: Settings of the server.
        users: Roles of the users that have a password, by user name, or None if they are not known.
        service: Service that runs the server, or None if it is started by hand.
    """
    addresses = [*settings["web", "listen"], *settings["web", "plain"]]
    is_open = any(not is_loopback(host) for host, _ in addresses)
    proxy_keys = [key for key in ("names", "proxies", "prefix") if settings["web", key]]
    yield from _password(is_open, proxy_keys, users, service)
    for network in settings["web", "proxies"]:
        if ipaddress.ip_network(network).prefixlen == 0:
            yield Finding("wrong", f"[web] proxies = {network}: every client can claim any address, so failed logins"
                          " are not limited",
                          'set it to the address of the proxy, for example proxies = ["192.168.1.5"]')  # fmt: skip
    for name in settings["web", "names"]:
        if ":" in name or "/" in name:
            yield Finding(
                "note", f"[web] names: {name} is read as {_plain(name)}", f"write names = {as_toml([_plain(name)])}"
            )
    proxies = running_proxies(service.path("/proc") if service is not None else "/proc")
    if proxies:
        yield from _proxy(proxies[0], settings, is_open)
    if is_named_by_id() and not settings["web", "names"]:
        yield Finding("note", "the page can be opened by address only: the host name of this container is its id",
                      "set PIGEONPOST_WEB_NAMES=raspberrypi.local, or the name that browsers use")  # fmt: skip


def _password(
    is_open: bool, proxy_keys: list[str], users: Mapping[str, str] | None, service: Service | None
) -> Iterator[Finding]:
    """Check that the web interface needs a password if other machines can reach it."""
    if users is None or users or not (is_open or proxy_keys):
        return
    command = control_command("password", as_root=service is not None, data=service.data if service is not None else "")
    if proxy_keys:
        verb = "allows" if len(proxy_keys) == 1 else "allow"
        yield Finding("wrong", f"no password is set, and [web] {' and '.join(proxy_keys)} {verb} other machines to"
                      " reach the page: anyone can read it", command)  # fmt: skip
    else:
        yield Finding("note", "no password is set: anyone in the network can read the page; its buttons work only with"
                      " the address that contains the key", command)  # fmt: skip


def _proxy(proxy: str, settings: Settings, is_open: bool) -> Iterator[Finding]:
    """Report the settings that a proxy on this machine needs. It may also serve other pages."""
    if not settings["web", "names"]:
        file = settings.file or _FILE
        yield Finding("note", f"{proxy} runs on this machine; to serve the page through it, set the page's host name",
                      f'[web] names = ["sensors.example.org"] in {file}, with your name; see docs/web.md')  # fmt: skip
    elif is_open:
        number = settings["web", "listen"][0][1]
        yield Finding("note", f"{proxy} runs on this machine, and the page can also be reached without it",
                      f'to stop that: [web] listen = ["127.0.0.1:{number}"] in {settings.file or _FILE}')  # fmt: skip


def running_proxies(folder: str = "/proc") -> list[str]:
    """Return the names of the reverse proxies that run on this machine, read from `folder`."""
    found = set()
    for path in glob.glob(os.path.join(folder, "[0-9]*", "comm")):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                found.add(file.read().strip())
        except OSError:
            continue  # the process has ended
    return sorted(found.intersection(_PROXIES))


def _plain(name: str) -> str:
    """Return a host name as the server reads it: without scheme, port and path."""
    return name.lower().rpartition("://")[2].partition("/")[0].partition(":")[0]
