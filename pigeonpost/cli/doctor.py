"""Command that checks this machine's set-up, and names the exact remedy for each fault.

What is checked depends on what this machine is: a node where there is a node.toml, a server where there is a
server.toml or its data; a Raspberry Pi that is neither is taken for a node. Where a program is installed as a service
of systemd, that is checked, with the settings, the folder and the rights that it has. `control.py doctor node` and
`control.py doctor server` check one of them; --data, --config or --node-config what runs by hand with those. Sensors
are read once, ports and other machines tried once. Errors: none; a failure is a finding.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pigeonpost.cli import doctor_service_files, doctor_systemd
from pigeonpost.cli.contract import Command, Context
from pigeonpost.cli.doctor_checks import SERVICE_DISK, Finding, as_root, control, folder, is_hidden
from pigeonpost.cli.doctor_node import node
from pigeonpost.cli.doctor_program import Container, container, find_container, machine, program
from pigeonpost.cli.doctor_server import server
from pigeonpost.cli.doctor_service import Service, find_service
from pigeonpost.cli.program_files import FOLDER
from pigeonpost.core import config
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import DATABASE, OUTBOX
from pigeonpost.core.errors import PigeonpostError, SettingsError
from pigeonpost.settings import load_node, load_server

_MAIN_FILE = {"node": OUTBOX, "server": DATABASE}


def doctor(context: Context) -> int:
    """Look at this machine's set-up: what is well, what is wrong, and the remedy. Exit 0: nothing is wrong; else 1."""
    wrong = 0
    for heading, findings in _parts(context.arguments):
        print(heading)
        for finding in _safely(findings):
            print(f"  {finding.word:5}  {finding.about}", flush=True)
            if finding.remedy:
                print(f"         {'remedy: ' if finding.word == 'wrong' else ''}{finding.remedy}")
            wrong += finding.word == "wrong"
    print(f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong." if wrong else "Nothing is wrong.")
    return 1 if wrong else 0


class _Setup(NamedTuple):
    """One program on this machine: what the command line says of it, and its service."""

    program: str
    chosen: argparse.Namespace
    service: Service | None
    container: Container | None

    @property
    def is_by_hand(self) -> bool:
        """True if the command line names files of a program that runs by hand."""
        if self.program == "node":
            return bool(self.chosen.node_config)
        data = getattr(self.chosen, "data", None)
        is_of_service = (
            self.service is not None and data and os.path.realpath(data) == os.path.realpath(self.service.data)
        )
        return bool(getattr(self.chosen, "config", None) or (data and not is_of_service))

    def load(self) -> Settings:
        """Return the settings with which it runs by hand. Raises SettingsError."""
        if self.program == "node":
            return load_node(argparse.Namespace(config=self.chosen.node_config))
        data = getattr(self.chosen, "data", None)
        return load_server(argparse.Namespace(config=getattr(self.chosen, "config", None), server_data=data))


def _parts(chosen: argparse.Namespace) -> Iterator[tuple[str, Iterator[Finding]]]:
    yield "This machine", machine()
    found = find_container(chosen.root)
    setups = [_Setup(name, chosen, find_service(name, chosen.root), found) for name in ("node", "server")]
    parts = [part for setup in setups if chosen.what in (None, setup.program) and (part := _part(setup))]
    model = _first_line(os.path.join(chosen.root, "proc/device-tree/model"))
    if not parts and model.startswith("Raspberry Pi"):
        parts = [("As a node, as a Raspberry Pi usually is", _by_hand(setups[0]))]
    if not parts:
        more = "`control.py doctor node` and `control.py doctor server` say what each would need"
        parts = [("What it is for", iter([Finding("note", "nothing is set up here yet", more)]))]
    yield from parts


def _part(setup: _Setup) -> tuple[str, Iterator[Finding]] | None:
    """Return heading and findings of one program; None where this machine is not set up for it."""
    name, service = setup.program, setup.service
    if service is not None and not setup.is_by_hand and not service.is_unused:
        return f"As a {name}, by its service {service.unit}", _by_service(setup, service)
    if setup.chosen.what == name or _is_set_up(setup):
        return f"As a {name}", _by_hand(setup)
    if service is not None:
        return f"As a {name}", iter([_unused(service)])
    return None


def _is_set_up(setup: _Setup) -> bool:
    """Return True if this machine is meant to run a program by hand, or in this container."""
    if setup.is_by_hand or (setup.container is not None and f"{setup.program}.py" in setup.container.command):
        return True
    if setup.container is not None and setup.container.command:
        return False
    if os.environ.get(config.variable_of_file(f"{setup.program}.toml"), "").strip():
        return True
    # The package has empty settings in the last folder.
    folders = config.search_folders()[: 2 if setup.service is not None else 3]
    if any(os.path.exists(os.path.join(place, f"{setup.program}.toml")) for place in folders):
        return True
    if setup.program == "node":
        return False
    try:
        settings = setup.load()
    except SettingsError:  # of a variable; what is wrong with it is said then
        return True
    return bool(settings["server", "nodes"]) or os.path.exists(os.path.join(_data(setup, settings), DATABASE))


def _data(setup: _Setup, settings: Settings) -> str:
    return config.data_folder(settings[setup.program, "data"])


def _safely(findings: Iterator[Finding]) -> Iterator[Finding]:
    try:
        yield from findings
    except (PigeonpostError, OSError) as error:
        yield Finding("wrong", f"this could not be looked at to its end: {error}")


def _unused(service: Service) -> Finding:
    """Describe a unit that nobody has switched on."""
    if service.state.get("LoadState") == "masked":
        return Finding(
            "note", f"{service.unit} is masked, so it never starts", as_root(f"systemctl unmask {service.unit}")
        )
    start = as_root(f"systemctl enable --now {service.unit}")
    return Finding("note", f"the package has {service.unit}, and it is not switched on",
                   f"to make this machine a {service.program}: {start}")  # fmt: skip


# ------------------------------------------------------------------------------------------------------- by hand


def _by_hand(setup: _Setup) -> Iterator[Finding]:
    """Check a program that runs by hand, or in a container."""
    try:
        settings = setup.load()
    except SettingsError as error:
        yield _wrong_settings(setup.program, error)
        return
    yield Finding("ok", f"settings: {settings.source}")
    yield from _two_files(setup, settings)
    data = _data(setup, settings)
    if setup.container is not None:
        yield from container(setup.container, data)
    if setup.service is not None and setup.service.is_unused:
        yield _unused(setup.service)
    if setup.program == "node":
        yield from node(settings, setup.chosen.root)
    else:
        yield from server(settings, data)


def _wrong_settings(program_: str, error: SettingsError) -> Finding:
    return Finding("wrong", str(error), f"{program_}.default.toml has every key, docs/settings.md says what each takes")


def _two_files(setup: _Setup, settings: Settings) -> Iterator[Finding]:
    """Note a second settings file that is not read."""
    name = f"{setup.program}.toml"
    there = [os.path.abspath(os.path.join(place, name)) for place in config.search_folders()]
    others = [path for path in dict.fromkeys(there) if os.path.exists(path)]
    if settings.file and not setup.is_by_hand:
        others = [path for path in others if os.path.realpath(path) != os.path.realpath(settings.file)]
        if others:
            verb = "is" if len(others) == 1 else "are"
            yield Finding("note", f"{', '.join(others)} {verb} not read: {settings.source} is, from this folder",
                          f"--config {others[0]} reads it")  # fmt: skip


# ----------------------------------------------------------------------------------------------------- by its service


def _by_service(setup: _Setup, service: Service) -> Iterator[Finding]:
    """Check a program that systemd runs, as that meets it."""
    findings = list(doctor_systemd.service(service))
    yield from findings
    place = service.path(os.path.dirname(service.script))
    if os.path.realpath(place) != os.path.realpath(FOLDER):
        yield from program(place, doctor_systemd.reinstall(service))
    try:
        settings = service.load_settings()
    except SettingsError as error:
        yield from doctor_service_files.unreadable(service)
        path = service.path(f"/etc/pigeonpost/{service.program}.toml")
        if os.path.exists(path) and not os.access(path, os.R_OK):
            yield Finding("note", f"run doctor with sudo to see {path}")
        elif not any(str(error) in finding.about for finding in findings):  # as the last line of its log
            yield _wrong_settings(service.program, error)
        return
    yield from doctor_service_files.files(service, settings)
    yield from _left_by_hand(setup, service)
    if service.program == "node":
        if is_hidden(service.data):
            yield Finding("note", f"run doctor with sudo to see {service.data}, which is for the service alone")
        elif os.path.isdir(service.data):
            yield from folder(service.data, SERVICE_DISK)
        yield from node(settings, setup.chosen.root, service)
    else:
        yield from server(settings, service.data, service)


def _left_by_hand(setup: _Setup, service: Service) -> Iterator[Finding]:
    """Note settings and data of a trial by hand, which the service does not use."""
    name, main = f"{service.program}.toml", _MAIN_FILE[service.program]
    places = list(dict.fromkeys(os.path.abspath(place) for place in config.search_folders()[:2]))
    used = {os.path.realpath(service.path(place)) for place in ("/etc/pigeonpost", os.path.dirname(service.script))}
    for place in places:
        path = os.path.join(place, name)
        if os.path.exists(path) and os.path.realpath(place) not in used:
            yield Finding("note", f"{path} is read by hand alone; the service reads /etc/pigeonpost/{name}",
                          f"the same in both: {as_root(f'install -m 644 {path} /etc/pigeonpost/{name}')}")  # fmt: skip
    for place in places:
        data = os.path.join(place, "data")
        if not os.path.exists(os.path.join(data, main)) or os.path.realpath(data) == os.path.realpath(service.data):
            continue
        if is_hidden(service.data) or os.path.exists(os.path.join(service.data, main)):
            yield Finding("note", f"{data} has data of a trial by hand, and the service its own in {service.data}:"
                          " they are not mixed", f"{control('verify', data=data)} looks at the first")  # fmt: skip
        else:
            move = control(f"install {service.program} --move-data --write", as_root=True, data=data)
            yield Finding("note", f"{data} has data of a trial by hand, which the service does not see", move)


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
        loads_settings=True,
    ),
}  # fmt: skip
