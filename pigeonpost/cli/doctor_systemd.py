"""Checks of a program's service: its unit, and its state, with the meaning of each exit status.

Errors: none; what cannot be seen by this user is a finding that says so.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from pigeonpost.cli.doctor_checks import TOKEN, Finding, as_root, control, group_id, may_use
from pigeonpost.cli.doctor_service import PACKAGED, Service, last_line
from pigeonpost.cli.program_files import FOLDER, PACKAGE, program_files
from pigeonpost.core.errors import PigeonpostError

_RESTARTS_NOTED = 3  # by systemd itself, since it was started; one may be a disk that came back
_HOMES = ("/home/", "/root/", "/run/user/")
_OLDEST_PYTHON = (3, 11)
_PYTHON_S = 10.0  # for an interpreter to start: a Pi Zero takes one second
# Exit statuses: those of the programs, and of systemd where it could not start them (systemd.exec(5)).
_MEANINGS = {
    "1": "an error that the log shows",
    "2": "wrong settings",
    "74": "the disk failed",
    "75": "another program uses the same data",
    "200": "CHDIR: its working folder is missing",
    "203": "EXEC: its Python or its program cannot be run",
    "216": "GROUP: it names a group that this system lacks",
    "217": "USER: its user cannot be made",
    "226": "NAMESPACE: a folder that it names is missing",
    "238": "STATE_DIRECTORY: its folder in /var/lib cannot be made",
    "243": "CREDENTIALS: its token cannot be passed to it",
}
_REMEDIES = {
    "2": "correct them, then {restart}",
    "74": "sudo journalctl -k | tail tells what the disk reports; it is tried again every 2 s",
    "75": "end that one (the log has its process number), then {restart}",
    "200": "{install}",
    "203": "{install}",
    "216": "as above",
    "226": "mount or make that folder, or write ReadWritePaths=- with a dash before it; then {restart}",
    "243": "{install}",
}


def service(found: Service) -> Iterator[Finding]:
    """Check the unit and its state."""
    yield from _unit(found)
    yield from _command(found)
    if not found.state:
        yield Finding("note", f"{found.unit}: systemd does not run here, so its state is not known")
        return
    yield from _state(found)


def restart(found: Service) -> str:
    """Return the command that starts a service again."""
    return as_root(f"systemctl restart {found.unit}")


def reinstall(found: Service) -> str:
    """Return the command that writes the unit as this version has it, with what this machine needs."""
    if found.paths[0].startswith(PACKAGED):
        return as_root("apt install --reinstall pigeonpost") + " (or dpkg --install with the file of the package)"
    return control(f"install {found.program} --write", as_root=True)


# ------------------------------------------------------------------------------------------------------- the unit


def _unit(found: Service) -> Iterator[Finding]:
    """Check what the unit file says."""
    path, remedy = found.paths[0], reinstall(found)
    is_well = True
    for value in found.values("LoadCredential"):
        if value.startswith("-"):
            is_well = False
            yield Finding("wrong", f"{path} is of an older version: it calls the token {value.partition(':')[0]!r},"
                          " so the node never gets it", remedy)  # fmt: skip
    if found.program == "node":
        has_file, is_loaded = os.path.exists(found.path(TOKEN)), bool(found.values("LoadCredential"))
        if has_file and not is_loaded:
            is_well = False
            yield Finding("wrong", f"{path} passes no token on: the node gets none from {TOKEN}", remedy)
        elif is_loaded and is_well and not has_file and not found.values("SetCredential"):
            is_well = False
            yield Finding("wrong", f"{path} is of an older version: without {TOKEN} it does not start"
                          " (243/CREDENTIALS)", remedy)  # fmt: skip
    for group in found.groups:
        if group_id(group) is None:
            is_well = False
            make = f"{as_root(f'groupadd --system {group}')} && {restart(found)}"
            yield Finding("wrong", f"{found.unit} names the group {group}, which this system lacks, and does not start"
                          " (216/GROUP)", remedy if group in found.own.groups else make)  # fmt: skip
    if not found.script:
        is_well = False
        yield Finding("wrong", f"{path}: ExecStart names no program", remedy)
    if is_well and not path.startswith(PACKAGED) and _differs_from_program(found):
        yield Finding("note", f"{path} differs from that of the program in {os.path.dirname(found.script)}",
                      f"{remedy}; what you changed goes into a drop-in: systemctl edit {found.unit}")  # fmt: skip
    if is_well:
        more = f" with {', '.join(map(os.path.basename, found.paths[1:]))}" if found.paths[1:] else ""
        yield Finding("ok", f"unit: {path}{more}")


def _differs_from_program(found: Service) -> bool:
    """Return True if the unit file is not the one that the program came with."""
    own = found.path(os.path.join(os.path.dirname(found.script), f"deploy/{found.unit}.service"))
    if not os.path.exists(own):
        return False
    with open(own, "rb") as file:
        return _differs(found.path(found.paths[0]), file.read())


def _command(found: Service) -> Iterator[Finding]:
    """Check that the unit's program is there, and runs with the unit's Python."""
    for path in filter(None, (found.command[0] if found.command else "", found.script)):
        if path.startswith("/") and not os.path.exists(found.path(path)):
            yield Finding("wrong", f"{found.paths[0]} starts {path}, which is not there", reinstall(found))
            return
    yield from _place(found)
    version = python_version(found)
    if version is not None and version < _OLDEST_PYTHON:
        yield Finding("wrong", f"{found.interpreter} of {found.unit} is Python {version[0]}.{version[1]}, and has to be"
                      " 3.11 or later", "Raspberry Pi OS of October 2023 (bookworm) or later has it")  # fmt: skip
    yield from _version(found)


def _place(found: Service) -> Iterator[Finding]:
    """Check that the service, a user of its own who sees no home folders, may read the program."""
    folder = os.path.dirname(found.script)
    leads_to = os.path.realpath(found.path(folder))
    if leads_to.startswith(_HOMES) and found.value("ProtectHome") in ("yes", "true", "on", "1"):
        yield Finding("wrong", f"{folder} leads to {leads_to}, and the service sees no home folders",
                      f"{as_root(f'rm {folder}')} && {reinstall(found)}")  # fmt: skip
    elif not all(may_use(found.account, found.path(path), os.R_OK) for path in (folder, found.script)):
        yield Finding("wrong", f"{found.script} may not be read by the service, which has a user of its own",
                      as_root(f"chmod -R a+rX {folder}") + f" && {restart(found)}")  # fmt: skip


def python_version(found: Service) -> tuple[int, int] | None:
    """Return the version of the unit's Python; None where it cannot be run."""
    if not found.interpreter:
        return None
    ask = [found.path(found.interpreter), "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=_PYTHON_S).stdout.split()
        return int(said[0]), int(said[1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def _version(found: Service) -> Iterator[Finding]:
    """Note a service that runs another version than this folder's."""
    folder = found.path(os.path.dirname(found.script))
    if os.path.realpath(folder) == os.path.realpath(FOLDER) or not os.path.isdir(os.path.join(folder, PACKAGE)):
        return  # the second: a program in one file
    try:
        changed = sum(_differs(os.path.join(folder, name), content) for name, content in program_files())
    except PigeonpostError:
        return  # this folder is not whole, which is a finding of its own
    if changed:
        yield Finding("note", f"the service runs {os.path.dirname(found.script)}, another version than {FOLDER}:"
                      f" {changed} files differ", reinstall(found))  # fmt: skip


def _differs(path: str, content: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() != content
    except OSError:
        return True


# ------------------------------------------------------------------------------------------------------ its state


def _state(found: Service) -> Iterator[Finding]:
    """Check whether it runs, and starts at boot."""
    state, unit = found.state, found.unit
    if state.get("NeedDaemonReload") == "yes":
        yield Finding("wrong", f"{unit}: its unit files have changed, and systemd has not read them",
                      f"{as_root('systemctl daemon-reload')} && {restart(found)}")  # fmt: skip
    is_started_again = state.get("SubState") == "auto-restart"
    if state.get("ActiveState") == "failed" or is_started_again:
        yield from _failure(found, is_started_again)
    elif found.is_active:
        yield Finding("ok", f"{unit} runs")
        restarts = state.get("NRestarts", "")
        if restarts.isdigit() and int(restarts) >= _RESTARTS_NOTED:
            yield Finding("note", f"{unit} ended {restarts} times by itself, and was started again",
                          as_root(f"journalctl --unit {unit} --lines 50"))  # fmt: skip
    elif state.get("ActiveState") == "activating":
        yield Finding("note", f"{unit} is starting")
    elif state.get("UnitFileState") != "disabled":
        yield Finding("wrong", f"{unit} does not run: it was stopped, or ended by Exit on the page",
                      as_root(f"systemctl start {unit}"))  # fmt: skip
    yield from _at_boot(found)


def _at_boot(found: Service) -> Iterator[Finding]:
    if found.state.get("UnitFileState") != "disabled":
        return
    if found.is_active:
        yield Finding("wrong", f"{found.unit} runs, but does not start at boot",
                      as_root(f"systemctl enable {found.unit}"))  # fmt: skip
    else:
        yield Finding("wrong", f"{found.unit} is installed, but does not run, and does not start at boot",
                      as_root(f"systemctl enable --now {found.unit}"))  # fmt: skip


def _failure(found: Service, is_started_again: bool) -> Iterator[Finding]:
    """Explain why it ended: its exit status, and the last line of its log."""
    unit, status, result = found.unit, found.state.get("ExecMainStatus", "0"), found.state.get("Result", "")
    if result in ("exit-code", "success") and status != "0":
        meaning = f"status {status}: {_MEANINGS.get(status, 'see its log')}"
    else:
        meaning = {
            "watchdog": "it hung, and the watchdog ended it", "oom-kill": "the memory was full",
            "timeout": "it did not start or stop in time", "signal": f"killed by signal {status}",
            "resources": "systemd could not prepare it",
        }.get(result, result)  # fmt: skip
    line = last_line(found)
    log = as_root(f"journalctl --unit {unit} --lines 20 --no-pager")
    remedy = _REMEDIES.get(status, f"{log} shows why")
    if not line and os.geteuid() != 0:
        line = "(run doctor with sudo to see the last line of its log)"
    text = f"{unit} {'ends again and again' if is_started_again else 'has failed'} ({meaning})"
    yield Finding("wrong", f"{text}{f': {line}' if line else ''}",
                  remedy.format(restart=restart(found), install=reinstall(found)))  # fmt: skip
