"""Command `doctor`, which checks the setup of this machine and prints the exact remedy for each problem.

The checks depend on the machine. It is checked as a node if there is a node.toml, and as a server if there is a
server.toml or the data of a server. A Raspberry Pi with neither is checked as a node. If a program is installed as a
systemd service, the service is checked with its own settings, folder and permissions. `control.py doctor node` and
`control.py doctor server` check one program only. --data, --config and --node-config select a program that is started
by hand with these files. Each sensor is read once, and each port and each other machine is contacted once.

No errors are raised: a check that fails yields a finding.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pigeonpost.cli import doctor_service_files, doctor_systemd
from pigeonpost.cli.contract import Command, Context
from pigeonpost.cli.doctor_checks import SERVICE_DISK, Finding, as_root, check_folder, control_command, is_hidden
from pigeonpost.cli.doctor_node import check_node
from pigeonpost.cli.doctor_program import Container, check_container, check_machine, check_program, find_container
from pigeonpost.cli.doctor_server import check_server
from pigeonpost.cli.doctor_service import Service, find_service
from pigeonpost.cli.program_files import FOLDER
from pigeonpost.core import config
from pigeonpost.core.config import Settings
from pigeonpost.core.data_folder import DATABASE, OUTBOX
from pigeonpost.core.errors import PigeonpostError, SettingsError
from pigeonpost.core.format import counted
from pigeonpost.settings import load_node, load_server

_MAIN_FILE = {"node": OUTBOX, "server": DATABASE}


def _doctor(context: Context) -> int:
    """Check the setup of this machine. Print the findings, and the remedy for each problem.

    The exit status is 0 if no problem is found, else 1.
    """
    problems = 0
    for heading, findings in _sections(context.arguments):
        print(heading)
        for finding in _safely(findings):
            print(f"  {finding.status:5}  {finding.about}", flush=True)
            if finding.remedy:
                print(f"         {'remedy: ' if finding.status == 'wrong' else ''}{finding.remedy}")
            problems += finding.status == "wrong"
    print(f"{counted(problems, 'problem')} found." if problems else "No problems found.")
    return 1 if problems else 0


class _Setup(NamedTuple):
    """One program on this machine: the arguments of the command line, its service and its container."""

    program: str
    chosen: argparse.Namespace
    service: Service | None
    container: Container | None

    @property
    def is_by_hand(self) -> bool:
        """True if the command line names the files of a program that is started by hand."""
        if self.program == "node":
            return bool(self.chosen.node_config)
        data = getattr(self.chosen, "data", None)
        is_of_service = (
            self.service is not None and data and os.path.realpath(data) == os.path.realpath(self.service.data)
        )
        return bool(getattr(self.chosen, "config", None) or (data and not is_of_service))

    def load(self) -> Settings:
        """Return the settings with which the program is started by hand. Raise SettingsError if they are invalid."""
        if self.program == "node":
            return load_node(argparse.Namespace(config=self.chosen.node_config))
        data = getattr(self.chosen, "data", None)
        return load_server(argparse.Namespace(config=getattr(self.chosen, "config", None), server_data=data))


def _sections(chosen: argparse.Namespace) -> Iterator[tuple[str, Iterator[Finding]]]:
    yield "This machine", check_machine()
    found = find_container(chosen.root)
    setups = [_Setup(name, chosen, find_service(name, chosen.root), found) for name in ("node", "server")]
    sections = [each for setup in setups if chosen.what in (None, setup.program) and (each := _section(setup))]
    model = _first_line(os.path.join(chosen.root, "proc/device-tree/model"))
    if not sections and model.startswith("Raspberry Pi"):
        sections = [("As a node (the usual role of a Raspberry Pi)", _by_hand(setups[0]))]
    if not sections:
        more = "`control.py doctor node` and `control.py doctor server` show what each program needs"
        sections = [("Role of this machine", iter([Finding("note", "nothing is set up here yet", more)]))]
    yield from sections


def _section(setup: _Setup) -> tuple[str, Iterator[Finding]] | None:
    """Return the heading and the findings of one program, or None if this machine is not set up for it."""
    name, service = setup.program, setup.service
    if service is not None and not setup.is_by_hand and not service.is_unused:
        return f"As a {name} (service {service.unit})", _by_service(setup, service)
    if setup.chosen.what == name or _is_set_up(setup):
        return f"As a {name}", _by_hand(setup)
    if service is not None:
        return f"As a {name}", iter([_unused(service)])
    return None


def _is_set_up(setup: _Setup) -> bool:
    """Return True if this machine is set up to run a program that is started by hand, or in this container."""
    if setup.is_by_hand or (setup.container is not None and f"{setup.program}.py" in setup.container.command):
        return True
    if setup.container is not None and setup.container.command:
        return False
    if os.environ.get(config.variable_of_file(f"{setup.program}.toml"), "").strip():
        return True
    # The Debian package installs empty settings in the last of these folders.
    folders = config.search_folders()[: 2 if setup.service is not None else 3]
    if any(os.path.exists(os.path.join(place, f"{setup.program}.toml")) for place in folders):
        return True
    if setup.program == "node":
        return False
    try:
        settings = setup.load()
    except SettingsError:  # of an environment variable; the check of the settings reports it
        return True
    return bool(settings["server", "nodes"]) or os.path.exists(os.path.join(_data(setup, settings), DATABASE))


def _data(setup: _Setup, settings: Settings) -> str:
    return config.data_folder(settings[setup.program, "data"])


def _safely(findings: Iterator[Finding]) -> Iterator[Finding]:
    try:
        yield from findings
    except (PigeonpostError, OSError) as error:
        yield Finding("wrong", f"the checks were not completed: {error}")


def _unused(service: Service) -> Finding:
    """Return the finding for a unit that is not enabled."""
    if service.state.get("LoadState") == "masked":
        return Finding(
            "note", f"{service.unit} is masked, so it never starts", as_root(f"systemctl unmask {service.unit}")
        )
    start = as_root(f"systemctl enable --now {service.unit}")
    return Finding("note", f"the Debian package has installed {service.unit}, but it is not enabled",
                   f"to make this machine a {service.program}: {start}")  # fmt: skip


# ------------------------------------------------------------------------------------------------------- by hand


def _by_hand(setup: _Setup) -> Iterator[Finding]:
    """Check a program that is started by hand, or in a container."""
    try:
        settings = setup.load()
    except SettingsError as error:
        yield _invalid_settings(setup.program, error)
        return
    yield Finding("ok", f"settings: {settings.source}")
    yield from _ignored_files(setup, settings)
    data = _data(setup, settings)
    if setup.container is not None:
        yield from check_container(setup.container, data)
    if setup.service is not None and setup.service.is_unused:
        yield _unused(setup.service)
    if setup.program == "node":
        yield from check_node(settings, setup.chosen.root)
    else:
        yield from check_server(settings, data)


def _invalid_settings(program_: str, error: SettingsError) -> Finding:
    return Finding(
        "wrong", str(error), f"{program_}.default.toml lists all keys, docs/settings.md describes their values"
    )


def _ignored_files(setup: _Setup, settings: Settings) -> Iterator[Finding]:
    """Report other settings files in the search folders, which are not read."""
    name = f"{setup.program}.toml"
    paths = [os.path.abspath(os.path.join(folder_, name)) for folder_ in config.search_folders()]
    others = [path for path in dict.fromkeys(paths) if os.path.exists(path)]
    if settings.file and not setup.is_by_hand:
        others = [path for path in others if os.path.realpath(path) != os.path.realpath(settings.file)]
        if others:
            verb = "is" if len(others) == 1 else "are"
            yield Finding("note", f"{', '.join(others)} {verb} not read: in this folder, {settings.source} is used",
                          f"use --config {others[0]} to read it")  # fmt: skip


# ----------------------------------------------------------------------------------------------------- by its service


def _by_service(setup: _Setup, service: Service) -> Iterator[Finding]:
    """Check a program that systemd runs, with the settings and permissions of its service."""
    findings = list(doctor_systemd.check_service(service))
    yield from findings
    place = service.path(os.path.dirname(service.script))
    if os.path.realpath(place) != os.path.realpath(FOLDER):
        yield from check_program(place, doctor_systemd.reinstall_command(service))
    try:
        settings = service.load_settings()
    except SettingsError as error:
        yield from doctor_service_files.check_readable(service)
        path = service.path(f"/etc/pigeonpost/{service.program}.toml")
        if os.path.exists(path) and not os.access(path, os.R_OK):
            yield Finding("note", f"run doctor with sudo to check {path}")
        elif not any(str(error) in finding.about for finding in findings):  # the last line of the log may contain it
            yield _invalid_settings(service.program, error)
        return
    yield from doctor_service_files.check_files(service, settings)
    yield from _left_by_hand(setup, service)
    if service.program == "node":
        if is_hidden(service.data):
            yield Finding("note", f"run doctor with sudo to check {service.data}, which only the service may read")
        elif os.path.isdir(service.data):
            yield from check_folder(service.data, SERVICE_DISK)
        yield from check_node(settings, setup.chosen.root, service)
    else:
        yield from check_server(settings, service.data, service)


def _left_by_hand(setup: _Setup, service: Service) -> Iterator[Finding]:
    """Report settings and data of a program that was started by hand, which the service does not use."""
    name, main = f"{service.program}.toml", _MAIN_FILE[service.program]
    places = list(dict.fromkeys(os.path.abspath(place) for place in config.search_folders()[:2]))
    used = {os.path.realpath(service.path(place)) for place in ("/etc/pigeonpost", os.path.dirname(service.script))}
    for place in places:
        path = os.path.join(place, name)
        if os.path.exists(path) and os.path.realpath(place) not in used:
            yield Finding("note", f"{path} is used only by a program started by hand; the service reads"
                          f" /etc/pigeonpost/{name}",
                          f"to use it in both: {as_root(f'install -m 644 {path} /etc/pigeonpost/{name}')}")  # fmt: skip
    for place in places:
        data = os.path.join(place, "data")
        if not os.path.exists(os.path.join(data, main)) or os.path.realpath(data) == os.path.realpath(service.data):
            continue
        if is_hidden(service.data) or os.path.exists(os.path.join(service.data, main)):
            yield Finding("note", f"{data} has data of a program started by hand; the service has its own in"
                          f" {service.data}, and the two are not merged",
                          f"to check the data in {data}: {control_command('verify', data=data)}")  # fmt: skip
        else:
            move = control_command(f"install {service.program} --move-data --write", as_root=True, data=data)
            yield Finding("note", f"{data} has data of a program started by hand, which the service does not use", move)


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip("\0\n")
    except OSError:
        return ""


COMMANDS: Mapping[str, Command] = {
    "doctor": Command(
        "find problems in the setup of this machine, and print the remedies; exit 0 if there are none",
        [
            ("what", {"metavar": "node|server", "choices": ("node", "server"), "nargs": "?",
                      "help": "program to check (default: those that are set up here)"}),
            ("--node-config", {"metavar": "FILE", "help": "settings file of the node (default: ./node.toml)"}),
            ("--root", {"metavar": "FOLDER", "default": "/", "help": "folder with dev, proc and sys (default: /)"}),
        ],
        _doctor,
        loads_settings=True,
    ),
}  # fmt: skip
