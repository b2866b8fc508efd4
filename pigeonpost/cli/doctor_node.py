"""Checks of a node: its sensors as the program meets them, its token, its link, and the server it sends to.

Sensors are read once, by whoever runs doctor; whether a service may open their devices is seen in its unit.
Errors: none; a failure is a finding.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pigeonpost.cli import doctor_service_files, doctor_systemd
from pigeonpost.cli.doctor_checks import (
    REACH_S,
    Finding,
    as_root,
    broker,
    device,
    first_account,
    folder,
    in_group,
    in_our_container,
    listeners,
    may_use,
    port,
    private,
    reach,
)  # fmt: skip
from pigeonpost.cli.doctor_libraries import OF_KINDS, libraries, missing
from pigeonpost.cli.doctor_service import Service
from pigeonpost.cli.install_files import DROP_INS, DropIn
from pigeonpost.cli.remote import local_host
from pigeonpost.core import config
from pigeonpost.core.addresses import is_loopback, join_address
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import LINK_CERTIFICATE
from pigeonpost.core.errors import PigeonpostError, SensorError
from pigeonpost.core.http_client import split_url
from pigeonpost.sensors.contract import DerivedSource
from pigeonpost.sensors.registry import KINDS, make_source
from protocol import NODE_NAME, decode, encode

# Commands that open devices, and the drop-in of the unit that lets them.
_TOOLS = {
    **dict.fromkeys(("vcgencmd",), "video.conf"),
    **dict.fromkeys(("i2cget", "i2cset", "i2cdump", "i2cdetect", "i2ctransfer"), "i2c.conf"),
    **dict.fromkeys(("gpioget", "gpioset", "gpioinfo", "gpiomon", "gpiodetect", "pinctrl", "raspi-gpio"), "gpio.conf"),
    **dict.fromkeys(("spi-config", "spi-pipe"), "spi.conf"),
}
_UNIT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # of services, systemd.exec(5)
_YES = ("yes", "true", "on", "1")
_HOMES = re.compile(r"(?:^|[\s='\"])((?:/home|/root|~|/run/user)/[^\s'\"]*)")


def node(settings: Settings, root: str = "/", service: Service | None = None) -> Iterator[Finding]:
    """Yield what a node needs; `service` is the one that runs it."""
    if service is None:
        yield from folder(config.data_folder(settings["node", "data"]))
    yield from sensors(settings, root, service)
    if service is None:
        yield from _token(settings)
    else:
        yield from doctor_service_files.token(service, settings)
    yield from _tls(settings, service)
    yield from _link(settings, service)
    if settings["push", "to"]:
        push = split_url(settings["push", "to"])
        remedy = "is it running, and is its port open? `[push] to` in node.toml says where it is"
        yield reach((push.host, push.port), "the server", remedy)
    yield from libraries(settings, "node", service)
    yield from broker(settings, "node.toml")


# ------------------------------------------------------------------------------------------------------- sensors


def sensors(settings: Settings, root: str, service: Service | None = None) -> Iterator[Finding]:
    """Yield, for each source, what it needs, and then what it reads."""
    tables = settings.tables.get("sensor")
    if not tables and not settings["node", "simulate"]:
        channels = {"temperature": {"input": 1, "convert": "mcp9700"}, "light": {"input": 2}}
        tables = [{"kind": "adc", "channels": channels}]
    for count, table in enumerate(tables or (), 1):
        kind = str(table.get("kind"))
        if kind == "adc" and settings["node", "simulate"]:
            continue
        about = (
            f"[[sensor]] {count}, {kind}" if settings.tables.get("sensor") else "the MCP3008 that is read by default"
        )
        needs = list(_needs(kind, table, root, service))
        yield from (need._replace(about=f"{about}: {need.about}") for need in needs)
        if kind == "command" and _is_anothers(settings.file):
            yield Finding("note", f"{about}: root runs no command of {settings.file}, which others may write",
                          "doctor without sudo does, as that user")  # fmt: skip
        elif all(need.word == "ok" for need in needs):
            yield from _readings(about, kind, table)
    yield _interfaces(root)
    if service is None:
        yield from in_group("gpio", "nothing of Pigeonpost needs it, but a command that it runs may")


def _is_anothers(path: str) -> bool:
    """Return True for root and a settings file that another user may write: whoever can would be root by a command."""
    if os.geteuid() != 0 or not os.path.exists(path):
        return False
    folder_, file = os.stat(os.path.dirname(os.path.abspath(path))), os.stat(path)
    return any(status.st_uid != 0 or status.st_mode & 0o022 for status in (folder_, file))


def _interfaces(root: str) -> Finding:
    """Which of a Pi's buses are switched on, whether or not the settings need them."""
    found = {
        "SPI": _names(root, "dev", r"spidev[0-9]+\.[0-9]+"), "I2C": _names(root, "dev", r"i2c-[0-9]+"),
        "1-wire": _names(root, "sys/bus/w1/devices", r"w1_bus_master[0-9]+"),
    }  # fmt: skip
    on = ", ".join(f"{bus} ({', '.join(names)})" for bus, names in found.items() if names)
    off = ", ".join(bus for bus, names in found.items() if not names)
    return Finding("note", f"switched on: {on or 'none'}; not: {off or 'none'}")


def _names(root: str, folder: str, pattern: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(os.path.join(root, folder)) if re.fullmatch(pattern, name))
    except OSError:
        return []


def _needs(kind: str, table: Mapping[str, Any], root: str, service: Service | None) -> Iterator[Finding]:
    if kind in OF_KINDS:
        yield from missing(OF_KINDS[kind], service)
    if kind == "adc":
        path = f"/dev/spidev{table.get('bus', 0)}.{table.get('device', 0)}"
        yield from _device(path, "do_spi", root, service)
    elif kind == "mcp3424":
        yield from _device(f"/dev/i2c-{table.get('bus', 1)}", "do_i2c", root, service)
    elif kind == "kernel" and any(str(its.get("from", "")).startswith("w1/") for its in _channels(table)):
        path = os.path.join(root, "sys/bus/w1/devices")
        if not os.path.isdir(path):
            yield Finding("wrong", "1-wire is not switched on",
                          "sudo raspi-config nonint do_onewire 0, then sudo reboot")  # fmt: skip
    elif kind == "command" and service is not None:
        yield from _command(table, service)


def _device(path: str, switch: str, root: str, service: Service | None) -> Iterator[Finding]:
    """Check a device of a bus; `switch` is raspi-config's word for it."""
    here, on = os.path.join(root, path[1:]), f"sudo raspi-config nonint {switch} 0, then sudo reboot"
    if in_our_container():
        on = (
            f'in docker-compose.yml: devices: ["{path}:{path}"], then docker compose up -d; where the machine itself'
            f" lacks it: {on}"
        )
    if service is not None and os.path.exists(here):
        yield from _opened_by(service.unit, path, here) if service.lets_through(path) else [_closed(path, service)]
    elif in_our_container(root) and os.path.exists(here):
        account = first_account(root)
        if may_use(account, here, os.R_OK | os.W_OK):
            yield from _opened_by(account.name, path, here)
        else:
            yield Finding("wrong", f"{path} may not be opened by {account.name}",
                          "user: root in docker-compose.yml, then docker compose up -d: the entry point joins the"
                          " device's group, and gives up root")  # fmt: skip
    else:
        yield device(here, on)


def _opened_by(who: str, path: str, here: str) -> Iterator[Finding]:
    """Say that a program may open a device; this user perhaps not."""
    yield Finding("ok", f"{who} may open {path}")
    if not os.access(here, os.R_OK | os.W_OK):
        yield Finding("note", f"run doctor as root to see what {path} reads")


def _closed(path: str, service: Service) -> Finding:
    """Say why a service may not open a device, and which drop-in lets it."""
    one = next(one for one in DROP_INS if any(fnmatch.fnmatchcase(path, device) for device in one.devices))
    if service.allows_device(path) and one.group in service.groups:
        rules = os.path.join(os.path.dirname(service.script), "deploy/pigeonpost.rules")
        return Finding("wrong", f"{path} may not be opened by {service.unit}: its group is not {one.group}",
                       as_root(f"install -m 644 {rules} /etc/udev/rules.d/60-pigeonpost.rules") + " && "
                       + as_root("udevadm control --reload") + " && " + as_root("udevadm trigger"))  # fmt: skip
    return Finding("wrong", f"{service.unit} may not open {path}: the drop-in {one.name} is missing",
                   _drop_in_remedy(one, service))  # fmt: skip


def _drop_in_remedy(one: DropIn, service: Service) -> str:
    return f"{doctor_systemd.reinstall(service)}, which writes /etc/systemd/system/{service.unit}.service.d/{one.name}"


def _command(table: Mapping[str, Any], service: Service) -> Iterator[Finding]:
    """Check a command, or a file, for what the unit of the node forbids."""
    given = table.get("command") or table.get("file") or ""
    if not isinstance(given, str | list):
        return  # which the settings do not take
    text = given if isinstance(given, str) else shlex.join(map(str, given))
    words = text.split() if isinstance(given, str) else [str(word) for word in given]
    home = _HOMES.search(text)
    if home and service.value("ProtectHome") in (*_YES, "tmpfs"):
        remedy = as_root(f"install -m 755 {home[1]} /usr/local/bin/") + ", and that path in node.toml"
        if table.get("file"):
            remedy = "let the other program write it to a folder outside, as /run, and name that in node.toml"
        yield Finding("wrong", f"{home[1]} is not there for the service, which sees no home folders", remedy)
        return
    if table.get("file") and text.startswith(("/tmp/", "/var/tmp/")) and service.value("PrivateTmp") in _YES:
        yield Finding("wrong", f"{text} is not there for the service, which has a /tmp of its own",
                      "let the other program write it elsewhere, as to /run, and name that in node.toml")  # fmt: skip
    if not words or not table.get("command"):
        return
    if words[0] == "sudo":
        yield Finding("wrong", "sudo does not work in the service, which may never become root",
                      "a drop-in with the device and its group: docs/install.md, Devices")  # fmt: skip
        return
    name = os.path.basename(words[0])
    if not table.get("shell") and shutil.which(words[0], path=_UNIT_PATH) is None:
        yield Finding("wrong", f"{words[0]} is not among the programs of the service ({_UNIT_PATH})",
                      f'command = ["/the/whole/path/{name}", ...] in /etc/pigeonpost/node.toml')  # fmt: skip
    used = {os.path.basename(word) for word in words} if table.get("shell") else {name}
    for tool in sorted(used.intersection(_TOOLS)):
        one = next(one for one in DROP_INS if one.name == _TOOLS[tool])
        has_devices = any(glob.glob(service.path(device)) for device in one.devices)
        if has_devices and one.group not in service.groups:
            yield Finding("wrong", f"{service.unit} does not let {tool} open its devices: the drop-in {one.name} is"
                          " missing", _drop_in_remedy(one, service))  # fmt: skip


def _channels(table: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    channels = table.get("channels")
    return [its for its in channels.values() if isinstance(its, dict)] if isinstance(channels, dict) else []


def _readings(about: str, kind: str, table: Mapping[str, Any]) -> Iterator[Finding]:
    options = {key: value for key, value in table.items() if key != "kind"}
    if kind not in KINDS:
        yield Finding("wrong", f"{about}: there is no such kind", "docs/sensors.md lists them")
        return
    try:
        source = make_source(kind, options, about)
    except PigeonpostError as error:
        yield Finding("wrong", str(error), "docs/settings.md has the keys of each kind")
        return
    if isinstance(source, DerivedSource):
        return
    try:
        for channel, value in source.read().items():
            if isinstance(value, SensorError):
                yield Finding("wrong", f"{about}: {channel} does not read: {value}")
            else:
                yield Finding("ok", f"{about}: {channel} reads {value:g}")
    except SensorError as error:
        yield Finding("wrong", f"{about} does not read: {error}")
    finally:
        source.close()


# --------------------------------------------------------------------------------------------------- token and link


def _token(settings: Settings) -> Iterator[Finding]:
    origin = settings.origin("node", "token")
    if not settings["node", "token"]:
        if not is_loopback(settings["node", "listen"][0]):
            yield Finding("note", "no token: only servers on this machine may collect",
                          "`control.py token NAME` on the server makes one; docs/tutorial.md")  # fmt: skip
    elif origin == settings.file and os.path.exists(settings.file):
        yield private(settings.file, "which holds the token")
    else:
        yield Finding("ok", f"a token is set, by {origin}")


def _tls(settings: Settings, service: Service | None) -> Iterator[Finding]:
    if not settings["link", "tls"]:
        return
    data = service.data if service is not None else config.data_folder(settings["node", "data"])
    path = settings["link", "certificate"] or os.path.join(data, LINK_CERTIFICATE)
    if os.path.exists(path):
        if service is None:
            yield private(settings["link", "key"] or path, "the key of the link's certificate")
    elif shutil.which("openssl") is None:
        yield Finding("wrong", "there is no program openssl, with which a node makes its certificate",
                      "sudo apt install openssl; or [link] certificate and key")  # fmt: skip


def _link(settings: Settings, service: Service | None) -> Iterator[Finding]:
    """Check the address at which servers collect, and what a node there says of itself."""
    address = settings["node", "listen"]
    where = join_address(*address)
    if service is not None and service.is_active:
        if address[1] and not listeners(address[1]):
            yield Finding("wrong", f"{service.unit} runs, but does not listen on {where}",
                          doctor_systemd.restart(service))  # fmt: skip
            return
        status = _ask_node(address)
        if status is not None:
            yield Finding("ok", f"{where}: {_says(status)}")
            yield from _faults(status)
    elif service is not None:  # a node that has its port by hand is in its way
        yield port(address, '[node] listen = "0.0.0.0:5004" in /etc/pigeonpost/node.toml', str)
    else:
        answers: list[dict[str, Any] | None] = []

        def is_ours() -> str:
            answers.append(_ask_node(address))
            return _says(answers[0])

        yield port(address, "--listen HOST:PORT", is_ours)
        yield from (fault for status in answers if status is not None for fault in _faults(status))


def _faults(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what a running node says is wrong with it, each with its remedy."""
    yield from (Finding("wrong", f"the node reports: {fault}") for fault in status.get("faults") or ())


def _ask_node(address: tuple[str, int]) -> dict[str, Any] | None:
    """Return what a node of ours at an address says of itself, perhaps nothing; None: none answers."""
    host, number = address
    try:
        with socket.create_connection((local_host(host), number), REACH_S) as link:
            link.settimeout(REACH_S)
            link.sendall(encode("CHECK"))
            said = decode(link.makefile("rb").readline(1 << 16))
    except (OSError, PigeonpostError):
        return None
    if said is None or said.word not in ("STATUS", "ERROR"):
        return None
    return dict(said.args[2]) if said.word == "STATUS" else {}


def _says(status: dict[str, Any] | None) -> str:
    """Describe a node that answered; empty: none did."""
    if status is None:
        return ""
    collectors = status.get("collectors")
    if not isinstance(collectors, list):
        return "this machine's node answers"
    who = ", ".join(str(name) for name in collectors if NODE_NAME(str(name))) or "no server"
    return f"this machine's node answers; {who} collects from it"
