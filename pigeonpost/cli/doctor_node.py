"""Checks of a node: its sensors, its token, its link, and the server that it sends to.

Each sensor is read once, as the user that runs doctor. Whether a service may open its devices is derived from its unit.
No errors are raised: a check that fails yields a finding.
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
    check_broker,
    check_device,
    check_folder,
    check_group,
    check_port,
    check_private,
    check_reachable,
    first_account,
    in_our_container,
    listeners,
    may_use,
)  # fmt: skip
from pigeonpost.cli.doctor_libraries import OF_KINDS, check_libraries, check_library
from pigeonpost.cli.doctor_service import Service
from pigeonpost.cli.install_files import DROP_INS, DropIn
from pigeonpost.cli.remote import local_host
from pigeonpost.core import config
from pigeonpost.core.addresses import is_loopback, join_address
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import COUNTERS, LINK_CERTIFICATE
from pigeonpost.core.errors import PigeonpostError, SensorError
from pigeonpost.core.http_client import split_url
from pigeonpost.sensors.contract import DerivedSource
from pigeonpost.sensors.registry import KINDS, make_source
from protocol import NODE_NAME, decode, encode

# Commands that open devices, with the drop-in that allows the unit to open them.
_TOOLS = {
    **dict.fromkeys(("vcgencmd",), "video.conf"),
    **dict.fromkeys(("i2cget", "i2cset", "i2cdump", "i2cdetect", "i2ctransfer"), "i2c.conf"),
    **dict.fromkeys(("gpioget", "gpioset", "gpioinfo", "gpiomon", "gpiodetect", "pinctrl", "raspi-gpio"), "gpio.conf"),
    **dict.fromkeys(("spi-config", "spi-pipe"), "spi.conf"),
}
_UNIT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # of services, systemd.exec(5)
_YES = ("yes", "true", "on", "1")
_HOMES = re.compile(r"(?:^|[\s='\"])((?:/home|/root|~|/run/user)/[^\s'\"]*)")


def check_node(settings: Settings, root: str = "/", service: Service | None = None) -> Iterator[Finding]:
    """Yield the findings on a node.

    Args:
        settings: Settings of the node.
        root: Folder that replaces `/` in tests.
        service: Service that runs the node, or None if it is started by hand.
    """
    if service is None:
        yield from check_folder(config.data_folder(settings["node", "data"]))
    yield from check_sensors(settings, root, service)
    if service is None:
        yield from _token(settings)
    else:
        yield from doctor_service_files.check_token(service, settings)
    yield from _tls(settings, service)
    yield from _link(settings, service)
    if settings["push", "to"]:
        push = split_url(settings["push", "to"])
        remedy = "check that it is running, that its port is open, and that `[push] to` in node.toml is correct"
        yield check_reachable((push.host, push.port), "the server", remedy)
    yield from check_libraries(settings, "node", service)
    yield from check_broker(settings, "node.toml")


# ------------------------------------------------------------------------------------------------------- sensors


def check_sensors(settings: Settings, root: str, service: Service | None = None) -> Iterator[Finding]:
    """Yield the findings on each sensor: first its devices and libraries, then its readings.

    Args:
        settings: Settings of the node.
        root: Folder that replaces `/` in tests.
        service: Service that runs the node, or None if it is started by hand.
    """
    tables = settings.tables.get("sensor")
    if not tables and not settings["node", "simulate"]:
        channels = {"temperature": {"input": 1, "convert": "mcp9700"}, "light": {"input": 2}}
        tables = [{"kind": "adc", "channels": channels}]
    for count, table in enumerate(tables or (), 1):
        kind = str(table.get("kind"))
        if kind == "adc" and settings["node", "simulate"]:
            continue
        about = f"[[sensor]] {count}, {kind}" if settings.tables.get("sensor") else "the MCP3008 (the default sensor)"
        required = list(_requirements(kind, table, root, service))
        yield from (finding._replace(about=f"{about}: {finding.about}") for finding in required)
        if kind == "command" and _is_writable_by_others(settings.file):
            yield Finding("note", f"{about}: not run as root, because other users may write to {settings.file}",
                          "run doctor without sudo, as the user of that file")  # fmt: skip
        elif all(finding.status == "ok" for finding in required):
            data = config.data_folder(settings["node", "data"]) if service is None else service.data
            yield from _readings(about, kind, table, data)
    yield _interfaces(root)
    if service is None:
        yield from check_group("gpio", "only a pulse counter needs it, or a command that Pigeonpost runs")


def _is_writable_by_others(path: str) -> bool:
    """Return True if this user is root, and another user may change the settings file at `path`.

    Its commands are then not executed: the other user could otherwise run any command as root.
    """
    if os.geteuid() != 0 or not os.path.exists(path):
        return False
    folder_, file = os.stat(os.path.dirname(os.path.abspath(path))), os.stat(path)
    return any(status.st_uid != 0 or status.st_mode & 0o022 for status in (folder_, file))


def _interfaces(root: str) -> Finding:
    """Return a note with the buses of a Raspberry Pi that are enabled, even if the settings do not use them."""
    found = {
        "SPI": _names(root, "dev", r"spidev[0-9]+\.[0-9]+"), "I2C": _names(root, "dev", r"i2c-[0-9]+"),
        "1-wire": _names(root, "sys/bus/w1/devices", r"w1_bus_master[0-9]+"),
    }  # fmt: skip
    on = ", ".join(f"{bus} ({', '.join(names)})" for bus, names in found.items() if names)
    off = ", ".join(bus for bus, names in found.items() if not names)
    return Finding("note", f"buses enabled: {on or 'none'}; disabled: {off or 'none'}")


def _names(root: str, folder: str, pattern: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(os.path.join(root, folder)) if re.fullmatch(pattern, name))
    except OSError:
        return []


def _requirements(kind: str, table: Mapping[str, Any], root: str, service: Service | None) -> Iterator[Finding]:
    if kind in OF_KINDS:
        yield from check_library(OF_KINDS[kind], service)
    if kind == "adc":
        path = f"/dev/spidev{table.get('bus', 0)}.{table.get('device', 0)}"
        yield from _device(path, _SWITCH_ON.format("do_spi"), root, service)
    elif kind == "mcp3424":
        yield from _device(f"/dev/i2c-{table.get('bus', 1)}", _SWITCH_ON.format("do_i2c"), root, service)
    elif kind == "counter":
        given = str(table.get("chip", ""))
        chips = [f"/dev/{name}" for name in _names(root, "dev", r"gpiochip[0-9]+")]
        path = given if given.startswith("/") else next(iter(chips), "/dev/gpiochip0")
        yield from _device(path, "check that this machine has GPIO lines, and `chip` in node.toml", root, service)
    elif kind == "kernel" and any(str(channel.get("from", "")).startswith("w1/") for channel in _channels(table)):
        path = os.path.join(root, "sys/bus/w1/devices")
        if not os.path.isdir(path):
            yield Finding("wrong", "1-wire is not enabled",
                          "sudo raspi-config nonint do_onewire 0, then sudo reboot")  # fmt: skip
    elif kind == "command" and service is not None:
        yield from _command(table, service)


_SWITCH_ON = "sudo raspi-config nonint {} 0, then sudo reboot"


def _device(path: str, remedy: str, root: str, service: Service | None) -> Iterator[Finding]:
    """Check a device. `remedy` is that for a missing device."""
    local_path = os.path.join(root, path[1:])
    if in_our_container():
        remedy = (
            f'in docker-compose.yml: devices: ["{path}:{path}"], then docker compose up -d; if the host lacks it, too:'
            f" {remedy}"
        )
    if service is not None and os.path.exists(local_path):
        may_open = service.may_open_device(path)
        yield from _opened_by(service.unit, path, local_path) if may_open else [_closed(path, service)]
    elif in_our_container(root) and os.path.exists(local_path):
        account = first_account(root)
        if may_use(account, local_path, os.R_OK | os.W_OK):
            yield from _opened_by(account.name, path, local_path)
        else:
            yield Finding("wrong", f"{path} cannot be opened by {account.name}",
                          "user: root in docker-compose.yml, then docker compose up -d: the entry point joins the"
                          " group of the device, and then drops root")  # fmt: skip
    else:
        yield check_device(local_path, remedy)


def _opened_by(who: str, path: str, local_path: str) -> Iterator[Finding]:
    """Yield the finding that a program may open a device, and a note if this user may not open it."""
    yield Finding("ok", f"{who} may open {path}")
    if not os.access(local_path, os.R_OK | os.W_OK):
        yield Finding("note", f"run doctor as root to see the readings of {path}")


def _closed(path: str, service: Service) -> Finding:
    """Return the finding on a device that a service may not open, with the drop-in that allows it as the remedy."""
    drop_in = next(each for each in DROP_INS if any(fnmatch.fnmatchcase(path, device) for device in each.devices))
    if service.allows_device(path) and drop_in.group in service.groups:
        rules = os.path.join(os.path.dirname(service.script), "deploy/pigeonpost.rules")
        return Finding("wrong", f"{path} cannot be opened by {service.unit}: the device's group is not {drop_in.group}",
                       as_root(f"install -m 644 {rules} /etc/udev/rules.d/60-pigeonpost.rules") + " && "
                       + as_root("udevadm control --reload") + " && " + as_root("udevadm trigger"))  # fmt: skip
    return Finding("wrong", f"{service.unit} cannot open {path}: the drop-in {drop_in.name} is missing",
                   _drop_in_remedy(drop_in, service))  # fmt: skip


def _drop_in_remedy(drop_in: DropIn, service: Service) -> str:
    path = f"/etc/systemd/system/{service.unit}.service.d/{drop_in.name}"
    return f"{doctor_systemd.reinstall_command(service)}, which writes {path}"


def _command(table: Mapping[str, Any], service: Service) -> Iterator[Finding]:
    """Check a sensor's command or file for accesses that the unit of the node forbids."""
    given = table.get("command") or table.get("file") or ""
    if not isinstance(given, str | list):
        return  # the check of the settings reports this
    text = given if isinstance(given, str) else shlex.join(map(str, given))
    words = text.split() if isinstance(given, str) else [str(word) for word in given]
    home = _HOMES.search(text)
    if home and service.value("ProtectHome") in (*_YES, "tmpfs"):
        remedy = as_root(f"install -m 755 {home[1]} /usr/local/bin/") + ", and write the new path in node.toml"
        if table.get("file"):
            remedy = "let the other program write it to another folder, such as /run, and write that path in node.toml"
        yield Finding("wrong", f"{home[1]} cannot be read by the service, which has no access to home folders", remedy)
        return
    if table.get("file") and text.startswith(("/tmp/", "/var/tmp/")) and service.value("PrivateTmp") in _YES:
        yield Finding("wrong", f"{text} cannot be read by the service, which has its own /tmp",
                      "let the other program write it to another folder, such as /run, and write that path in"
                      " node.toml")  # fmt: skip
    if not words or not table.get("command"):
        return
    if words[0] == "sudo":
        yield Finding("wrong", "sudo does not work in the service, which may not become root",
                      "add a drop-in with the device and its group: docs/install.md, Devices")  # fmt: skip
        return
    name = os.path.basename(words[0])
    if not table.get("shell") and shutil.which(words[0], path=_UNIT_PATH) is None:
        yield Finding("wrong", f"{words[0]} is not in the search path of the service ({_UNIT_PATH})",
                      f'write command = ["/full/path/to/{name}", ...] in /etc/pigeonpost/node.toml')  # fmt: skip
    used = {os.path.basename(word) for word in words} if table.get("shell") else {name}
    for tool in sorted(used.intersection(_TOOLS)):
        drop_in = next(each for each in DROP_INS if each.name == _TOOLS[tool])
        has_devices = any(glob.glob(service.path(device)) for device in drop_in.devices)
        if has_devices and drop_in.group not in service.groups:
            yield Finding("wrong", f"{service.unit} does not allow {tool} to open its devices: the drop-in"
                          f" {drop_in.name} is missing", _drop_in_remedy(drop_in, service))  # fmt: skip


def _channels(table: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    channels = table.get("channels")
    return [channel for channel in channels.values() if isinstance(channel, dict)] if isinstance(channels, dict) else []


def _readings(about: str, kind: str, table: Mapping[str, Any], data: str) -> Iterator[Finding]:
    options = {key: value for key, value in table.items() if key != "kind"}
    if kind not in KINDS:
        yield Finding("wrong", f"{about}: this kind of sensor does not exist", "docs/sensors.md lists all kinds")
        return
    try:
        source = make_source(kind, options, about)
    except PigeonpostError as error:
        yield Finding("wrong", str(error), "docs/settings.md lists the keys of each kind")
        return
    if isinstance(source, DerivedSource):
        return
    if kind == "counter":  # it can be read only by the node, which has reserved the line
        yield _line_use(about, int(table["line"]), str(table.get("chip", "")))
        yield from _totals(about, table["channels"], data)
        return
    try:
        for channel, value in source.read().items():
            if isinstance(value, SensorError):
                yield Finding("wrong", f"{about}: {channel} cannot be read: {value}")
            else:
                yield Finding("ok", f"{about}: {channel} = {value:g}")
    except SensorError as error:
        yield Finding("wrong", f"{about} cannot be read: {error}")
    finally:
        source.close()


def _line_use(about: str, line: int, chip_name: str) -> Finding:
    """Return the finding on the GPIO line of a counter."""
    from pigeonpost.sensors import gpio

    try:
        chip = gpio.find_chip(chip_name)
        user = gpio.consumer_of(chip, line)
    except SensorError as error:
        return Finding("wrong", f"{about}: {error}")
    where = f"GPIO {line} of {chip.path} ({chip.label})"
    if user is None:
        return Finding("ok", f"{about}: {where} is free; the node reserves it while it runs")
    if user == gpio.CONSUMER:
        return Finding("ok", f"{about}: {where} is counted by a running node")
    return Finding("wrong", f"{about}: {where} is used by {user!r:.40}", "choose another line, or stop its user")


def _totals(about: str, channels: Mapping[str, Mapping[str, Any]], data: str) -> Iterator[Finding]:
    """Yield the findings on the stored totals of a counter."""
    from pigeonpost.sensors.counter_file import CounterFile

    for name, channel in channels.items():
        path = os.path.join(data, COUNTERS, name)
        if channel.get("value", "total") == "total" and os.access(path, os.R_OK):
            try:
                state = CounterFile(path).peek()
            except SensorError as error:
                fault, _, remedy = str(error).partition("; ")
                yield Finding("wrong", f"{about}: {fault}", remedy)
            else:
                if state is not None:
                    yield Finding("ok", f"{about}: total of {name} = {state.total:.12g}")


# --------------------------------------------------------------------------------------------------- token and link


def _token(settings: Settings) -> Iterator[Finding]:
    origin = settings.origin("node", "token")
    if not settings["node", "token"]:
        if not is_loopback(settings["node", "listen"][0]):
            yield Finding("note", "no token is set: only servers on this machine may collect",
                          "`control.py token NAME` on the server creates one; see docs/tutorial.md")  # fmt: skip
    elif origin == settings.file and os.path.exists(settings.file):
        yield check_private(settings.file, "contains the token")
    else:
        yield Finding("ok", f"a token is set in {origin}")


def _tls(settings: Settings, service: Service | None) -> Iterator[Finding]:
    if not settings["link", "tls"]:
        return
    data = service.data if service is not None else config.data_folder(settings["node", "data"])
    path = settings["link", "certificate"] or os.path.join(data, LINK_CERTIFICATE)
    if os.path.exists(path):
        if service is None:
            yield check_private(settings["link", "key"] or path, "the key of the link's certificate")
    elif shutil.which("openssl") is None:
        yield Finding("wrong", "openssl is missing; the node needs it to create its certificate",
                      "sudo apt install openssl; or set [link] certificate and key")  # fmt: skip


def _link(settings: Settings, service: Service | None) -> Iterator[Finding]:
    """Check the address at which servers collect, and the status of the node that runs there."""
    address = settings["node", "listen"]
    where = join_address(*address)
    if service is not None and service.is_active:
        if address[1] and not listeners(address[1]):
            yield Finding("wrong", f"{service.unit} is running, but does not listen on {where}",
                          doctor_systemd.restart_command(service))  # fmt: skip
            return
        status = _ask_node(address)
        if status is not None:
            yield Finding("ok", f"{where}: {_describe(status)}")
            yield from _faults(status)
    elif service is not None:
        # `str` returns "", which means another program: a node that was started by hand may not use the port either.
        yield check_port(address, '[node] listen = "0.0.0.0:5004" in /etc/pigeonpost/node.toml', str)
    else:
        answers: list[dict[str, Any] | None] = []

        def describe_own() -> str:
            answers.append(_ask_node(address))
            return _describe(answers[0])

        yield check_port(address, "--listen HOST:PORT", describe_own)
        yield from (fault for status in answers if status is not None for fault in _faults(status))


def _faults(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the faults that a running node reports."""
    yield from (Finding("wrong", f"the node reports: {fault}") for fault in status.get("faults") or ())


def _ask_node(address: tuple[str, int]) -> dict[str, Any] | None:
    """Return the status of the node at an address: empty if it requires a token, or None if no node answers."""
    host, number = address
    try:
        with socket.create_connection((local_host(host), number), REACH_S) as link:
            link.settimeout(REACH_S)
            link.sendall(encode("CHECK"))
            answer = decode(link.makefile("rb").readline(1 << 16))
    except (OSError, PigeonpostError):
        return None
    if answer is None or answer.word not in ("STATUS", "ERROR"):
        return None
    return dict(answer.args[2]) if answer.word == "STATUS" else {}


def _describe(status: dict[str, Any] | None) -> str:
    """Return a description of a node that answered, or an empty string for None."""
    if status is None:
        return ""
    collectors = status.get("collectors")
    if not isinstance(collectors, list):
        return "the node of this machine answers"
    who = ", ".join(str(name) for name in collectors if NODE_NAME(str(name))) or "no server"
    return f"the node of this machine answers; collected by {who}"
