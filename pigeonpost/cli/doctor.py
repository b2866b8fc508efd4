"""Command that checks this machine's set-up, and names the exact remedy for each fault.

What is checked depends on what this machine is: a node where there is a node.toml or on a Raspberry Pi, a server where
there is a server.toml or its data. `control.py doctor node` and `control.py doctor server` check one of them. Sensors
are read once, ports and other machines tried once. Errors: none; a failure is a finding.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pigeonpost.auth.tokens import Tokens
from pigeonpost.auth.users import Users
from pigeonpost.cli.contract import Command, Context
from pigeonpost.cli.doctor_checks import REACH_S, Finding, database, device, folder, in_group, port, private, reach
from pigeonpost.cli.remote import local_host
from pigeonpost.core import config
from pigeonpost.core.addresses import is_loopback
from pigeonpost.core.clock import Clock
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import DATABASE, LINK_CERTIFICATE, RUNNING, TOKENS, USERS
from pigeonpost.core.errors import DamagedFile, PigeonpostError, SensorError
from pigeonpost.core.http_client import split_url
from pigeonpost.core.mqtt_client import broker_address
from pigeonpost.sensors.contract import DerivedSource
from pigeonpost.sensors.registry import KINDS, make_source
from pigeonpost.server.node_settings import read_nodes
from pigeonpost.settings import NODE
from protocol import NODE_NAME, decode, encode

_NEWEST_WRONG = (3, 10)
_LIBRARIES = {"adc": ("spidev", "python3-spidev"), "mcp3424": ("smbus2", "python3-smbus2"),
              "mqtt": ("paho.mqtt.client", "python3-paho-mqtt")}  # fmt: skip


def doctor(context: Context) -> int:
    """Look at this machine's set-up: what is well, what is wrong, and the remedy. Exit 0: nothing is wrong; else 1."""
    wrong = 0
    for heading, findings in _parts(context):
        print(heading)
        for finding in _safely(findings):
            print(f"  {finding.word:5}  {finding.about}")
            if finding.remedy:
                print(f"         {'remedy: ' if finding.word == 'wrong' else ''}{finding.remedy}")
            wrong += finding.word == "wrong"
    print(f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong." if wrong else "Nothing is wrong.")
    return 1 if wrong else 0


def _parts(context: Context) -> Iterator[tuple[str, Iterator[Finding]]]:
    chosen = context.arguments
    yield "This machine", machine()
    is_node, is_server = _is_node(chosen), _is_server(context)
    if chosen.what == "node" or (chosen.what is None and is_node):
        yield "As a node", _node(chosen)
    if chosen.what == "server" or (chosen.what is None and is_server):
        yield "As a server", server(context.settings, context.data)
    if chosen.what is None and not (is_node or is_server):
        more = "`control.py doctor node` and `control.py doctor server` say what each would need"
        yield "What it is for", iter([Finding("note", "nothing is set up here yet", more)])


def _is_node(chosen: argparse.Namespace) -> bool:
    model = os.path.join(chosen.root, "proc/device-tree/model")
    return bool(chosen.node_config) or os.path.exists("node.toml") or _first_line(model).startswith("Raspberry Pi")


def _is_server(context: Context) -> bool:
    data = os.path.join(context.data, DATABASE)
    return bool(context.settings.file or context.settings["server", "nodes"]) or os.path.exists(data)


def _safely(findings: Iterator[Finding]) -> Iterator[Finding]:
    try:
        yield from findings
    except (PigeonpostError, OSError) as error:
        yield Finding("wrong", f"this could not be looked at to its end: {error}")


# --------------------------------------------------------------------------------------------- whatever it is


def machine() -> Iterator[Finding]:
    """Python and the clock."""
    if sys.version_info[:2] <= _NEWEST_WRONG:
        yield Finding("wrong", f"Python is {platform.python_version()}, and has to be 3.11 or later",
                      "Raspberry Pi OS of October 2023 (bookworm) or later has it")  # fmt: skip
    else:
        yield Finding("ok", f"Python {platform.python_version()}")
    if Clock().is_set():
        yield Finding("ok", "the date is known to be right")
    else:
        yield Finding("wrong", "nobody keeps this machine's clock right",
                      "sudo timedatectl set-ntp true (then `timedatectl` says: synchronized: yes)")  # fmt: skip


# ------------------------------------------------------------------------------------------------------ a node


def _node(chosen: argparse.Namespace) -> Iterator[Finding]:
    flags = argparse.Namespace(config=chosen.node_config)
    try:
        settings = config.load(NODE, flags, "node.toml", ("sensor",))
    except PigeonpostError as error:
        yield Finding("wrong", str(error), "node.default.toml has every key, docs/settings.md says what each takes")
        return
    yield Finding("ok", f"settings: {settings.file or 'none, so the defaults'}")
    yield from node(settings, chosen.root)


def node(settings: Settings, root: str = "/") -> Iterator[Finding]:
    """What a node needs."""
    yield from folder(config.data_folder(settings["node", "data"]))
    yield from sensors(settings, root)
    yield from _node_token(settings)
    yield from _node_tls(settings)
    address = settings["node", "listen"]
    yield port(address, "--listen", lambda: _ask_node(address))
    if settings["push", "to"]:
        push = split_url(settings["push", "to"])
        remedy = "is it running, and is its port open? `[push] to` in node.toml says where it is"
        yield reach((push.host, push.port), "the server", remedy)
    yield from _broker(settings, "node.toml")


def sensors(settings: Settings, root: str) -> Iterator[Finding]:
    """Each source: what it needs, and then what it reads."""
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
        needs = list(_needs(kind, table, root))
        yield from (need._replace(about=f"{about}: {need.about}") for need in needs)
        if all(need.word == "ok" for need in needs):
            yield from _readings(about, kind, table)
    yield _interfaces(root)
    yield from in_group("gpio", "nothing of Pigeonpost needs it, but a command that it runs may")


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


def _needs(kind: str, table: Mapping[str, Any], root: str) -> Iterator[Finding]:
    if kind in _LIBRARIES:
        module, package = _LIBRARIES[kind]
        if not _is_installed(module):
            yield Finding(
                "wrong", f"the Python module {module.partition('.')[0]} is missing", f"sudo apt install {package}"
            )
    if kind == "adc":
        path = os.path.join(root, f"dev/spidev{table.get('bus', 0)}.{table.get('device', 0)}")
        yield device(path, "sudo raspi-config nonint do_spi 0, then sudo reboot")
    elif kind == "mcp3424":
        path = os.path.join(root, f"dev/i2c-{table.get('bus', 1)}")
        yield device(path, "sudo raspi-config nonint do_i2c 0, then sudo reboot")
    elif kind == "kernel" and any(str(its.get("from", "")).startswith("w1/") for its in _channels(table)):
        path = os.path.join(root, "sys/bus/w1/devices")
        if not os.path.isdir(path):
            yield Finding("wrong", "1-wire is not switched on",
                          "sudo raspi-config nonint do_onewire 0, then sudo reboot")  # fmt: skip


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


def _node_token(settings: Settings) -> Iterator[Finding]:
    origin = settings.origin("node", "token")
    if not settings["node", "token"]:
        if not is_loopback(settings["node", "listen"][0]):
            yield Finding("note", "no token: only servers on this machine may collect",
                          "`control.py token NAME` on the server makes one; docs/tutorial.md")  # fmt: skip
    elif origin == settings.file:
        yield private(settings.file, "which holds the token")
    else:
        yield Finding("ok", f"a token is set, by {origin}")


def _node_tls(settings: Settings) -> Iterator[Finding]:
    if not settings["link", "tls"]:
        return
    path = settings["link", "certificate"] or os.path.join(
        config.data_folder(settings["node", "data"]), LINK_CERTIFICATE
    )
    if os.path.exists(path):
        yield private(settings["link", "key"] or path, "the key of the link's certificate")
    elif shutil.which("openssl") is None:
        yield Finding("wrong", "there is no program openssl, with which a node makes its certificate",
                      "sudo apt install openssl; or [link] certificate and key")  # fmt: skip


def _ask_node(address: tuple[str, int]) -> str:
    """Who of ours answers there; empty: nobody."""
    host, number = address
    try:
        with socket.create_connection((local_host(host), number), REACH_S) as link:
            link.sendall(encode("CHECK"))
            said = decode(link.makefile("rb").readline(1 << 16))
    except (OSError, PigeonpostError):
        return ""
    if said is None or said.word not in ("STATUS", "ERROR"):
        return ""
    collectors = said.args[2].get("collectors") if said.word == "STATUS" else None
    if not isinstance(collectors, list):
        return "this machine's node answers"
    who = ", ".join(str(name) for name in collectors if NODE_NAME(str(name))) or "no server"
    return f"this machine's node answers; {who} collects from it"


# ---------------------------------------------------------------------------------------------------- a server


def server(settings: Settings, data: str) -> Iterator[Finding]:
    """What a server needs."""
    yield Finding("ok", f"settings: {settings.file or 'none, so the defaults'}")
    yield from folder(data)
    if not settings["store", "postgres"]:
        yield from database(data)
    known: set[str] = set()
    yield from _secrets(os.path.join(data, TOKENS), "the tokens of the nodes", lambda: known.update(Tokens(data)))
    yield from _secrets(os.path.join(data, USERS), "the users of the page", Users(data).roles)
    for address in settings["web", "listen"]:
        yield port(address, "--web", functools.partial(_running, data, address))
    for name, address in read_nodes(settings)[0]:
        who = f"node {name}" if name else "the node"
        yield reach(address, who, "there: `python3 control.py doctor node`; is node.py running, and its port open?")
        if name and name not in known and not is_loopback(address[0]):
            yield Finding("note", f"{who} has no token here, so it will refuse",
                          f"python3 control.py token {name}, and give it to the node")  # fmt: skip
    yield from _broker(settings, "server.toml")


def _secrets(path: str, what: str, read: Callable[[], object]) -> Iterator[Finding]:
    """Check that `read` can read a file with secrets, and that nobody else can."""
    try:
        read()
    except DamagedFile as error:
        about, _, remedy = str(error).partition("; ")
        yield Finding("wrong", about, remedy)
        return
    if os.path.exists(path):
        yield private(path, what)


def _running(data: str, address: tuple[str, int]) -> str:
    """Who of ours has the page's address; empty: nobody."""
    try:
        with open(os.path.join(data, RUNNING), encoding="utf-8") as file:
            about = json.load(file)
        os.kill(about["pid"], 0)
        is_there = any(found[1] == address[1] for found in about["web"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return "this server's page is there" if is_there else ""


def _broker(settings: Settings, file: str) -> Iterator[Finding]:
    if settings["mqtt", "host"]:
        remedy = f"is it running, and is its port open? `[mqtt] host` in {file} says where it is"
        yield reach(broker_address(settings), "the broker", remedy)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip("\0\n")
    except OSError:
        return ""


COMMANDS: Mapping[str, Command] = {
    "doctor": Command(
        "say what is wrong with this machine's set-up, and the remedy; exit 0 when nothing is",
        [
            ("what", {"metavar": "node|server", "choices": ("node", "server"), "nargs": "?", "help": "as what it is"
                      " looked at (as what it is set up)"}),
            ("--node-config", {"metavar": "FILE", "help": "the node's settings (./node.toml)"}),
            ("--root", {"metavar": "FOLDER", "default": "/", "help": "where dev, proc and sys are (/)"}),
        ],
        doctor,
    ),
}  # fmt: skip
