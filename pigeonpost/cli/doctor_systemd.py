"""Checks of a systemd service: its unit and its state, with the meaning of each exit status.

No errors are raised: a check that fails yields a finding.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from pigeonpost.cli.doctor_checks import TOKEN, Finding, as_root, control_command, group_id, may_use
from pigeonpost.cli.doctor_service import PACKAGED, Service, last_line
from pigeonpost.cli.program_files import FOLDER, PACKAGE, program_files
from pigeonpost.core.errors import PigeonpostError
from pigeonpost.core.format import counted

_RESTARTS_NOTED = 3  # automatic restarts that yield a note; fewer may be due to a disk that was reconnected
_HOMES = ("/home/", "/root/", "/run/user/")
_OLDEST_PYTHON = (3, 11)
_PYTHON_S = 10.0  # limit for an interpreter to start: on a Pi Zero it takes one second
# Exit statuses of the programs, and of systemd if it could not start them (systemd.exec(5)).
_MEANINGS = {
    "1": "an error, see the log",
    "2": "invalid settings",
    "74": "the disk failed",
    "75": "another program uses the same data",
    "200": "CHDIR: the working folder is missing",
    "203": "EXEC: Python or the program cannot be run",
    "216": "GROUP: a group in the unit does not exist on this system",
    "217": "USER: the user cannot be created",
    "226": "NAMESPACE: a folder in the unit is missing",
    "238": "STATE_DIRECTORY: the folder in /var/lib cannot be created",
    "243": "CREDENTIALS: the token cannot be passed to the program",
}
_REMEDIES = {
    "2": "correct them, then {restart}",
    "74": "sudo journalctl -k | tail shows the errors of the disk; the service is restarted every 2 s",
    "75": "stop the other program (the log contains its process id), then {restart}",
    "200": "{install}",
    "203": "{install}",
    "216": "see the remedy above",
    "226": "mount or create that folder, or make it optional with a dash: ReadWritePaths=-; then {restart}",
    "243": "{install}",
}


def check_service(service: Service) -> Iterator[Finding]:
    """Yield the findings on the unit and the state of `service`."""
    yield from _unit(service)
    yield from _command(service)
    if not service.state:
        yield Finding("note", f"{service.unit}: systemd is not running here, so the state is unknown")
        return
    yield from _state(service)


def restart_command(service: Service) -> str:
    """Return the command that restarts `service`."""
    return as_root(f"systemctl restart {service.unit}")


def reinstall_command(service: Service) -> str:
    """Return the command that installs the unit of `service` again, as in this version of the program."""
    if service.paths[0].startswith(PACKAGED):
        return as_root("apt install --reinstall pigeonpost") + " (or dpkg --install with the package file)"
    return control_command(f"install {service.program} --write", as_root=True)


# ------------------------------------------------------------------------------------------------------- the unit


def _unit(service: Service) -> Iterator[Finding]:
    """Check the unit file: token, groups, program, changes by the user."""
    path, remedy = service.paths[0], reinstall_command(service)
    is_valid = True
    for value in service.values("LoadCredential"):
        if value.startswith("-"):
            is_valid = False
            yield Finding("wrong", f"{path} is from an older version: it names the token {value.partition(':')[0]!r},"
                          " so the node does not receive it", remedy)  # fmt: skip
    if service.program == "node":
        has_file, is_loaded = os.path.exists(service.path(TOKEN)), bool(service.values("LoadCredential"))
        if has_file and not is_loaded:
            is_valid = False
            yield Finding("wrong", f"{path} does not pass the token in {TOKEN} to the node", remedy)
        elif is_loaded and is_valid and not has_file and not service.values("SetCredential"):
            is_valid = False
            yield Finding("wrong", f"{path} is from an older version: without {TOKEN} the service does not start"
                          " (243/CREDENTIALS)", remedy)  # fmt: skip
    for group in service.groups:
        if group_id(group) is None:
            is_valid = False
            make = f"{as_root(f'groupadd --system {group}')} && {restart_command(service)}"
            yield Finding("wrong", f"{service.unit} does not start: the group {group} does not exist on this system"
                          " (216/GROUP)", remedy if group in service.own.groups else make)  # fmt: skip
    if not service.script:
        is_valid = False
        yield Finding("wrong", f"{path}: ExecStart names no program", remedy)
    if is_valid and not path.startswith(PACKAGED) and _differs_from_program(service):
        yield Finding("note", f"{path} differs from the unit that belongs to {os.path.dirname(service.script)}",
                      f"{remedy}; put your own changes into a drop-in: systemctl edit {service.unit}")  # fmt: skip
    if is_valid:
        more = f" with {', '.join(map(os.path.basename, service.paths[1:]))}" if service.paths[1:] else ""
        yield Finding("ok", f"unit: {path}{more}")


def _differs_from_program(service: Service) -> bool:
    """Return True if the unit file differs from the one in the folder of the program."""
    own = service.path(os.path.join(os.path.dirname(service.script), f"deploy/{service.unit}.service"))
    if not os.path.exists(own):
        return False
    with open(own, "rb") as file:
        return _differs(service.path(service.paths[0]), file.read())


def _command(service: Service) -> Iterator[Finding]:
    """Check that the program and the Python in the unit exist, and that the Python is new enough."""
    for path in filter(None, (service.command[0] if service.command else "", service.script)):
        if path.startswith("/") and not os.path.exists(service.path(path)):
            yield Finding(
                "wrong", f"{service.paths[0]} starts {path}, which does not exist", reinstall_command(service)
            )
            return
    yield from _program_access(service)
    version = python_version(service)
    if version is not None and version < _OLDEST_PYTHON:
        yield Finding("wrong", f"{service.unit} runs {service.interpreter}, which is Python {version[0]}.{version[1]},"
                      " but 3.11 or later is needed",
                      "install Raspberry Pi OS of October 2023 (bookworm) or later, which has it")  # fmt: skip
    yield from _version(service)


def _program_access(service: Service) -> Iterator[Finding]:
    """Check that the service may read the program: it runs as its own user, without access to home folders."""
    folder = os.path.dirname(service.script)
    target = os.path.realpath(service.path(folder))
    if target.startswith(_HOMES) and service.value("ProtectHome") in ("yes", "true", "on", "1"):
        yield Finding("wrong", f"{folder} is a link to {target}, but the service has no access to home folders",
                      f"{as_root(f'rm {folder}')} && {reinstall_command(service)}")  # fmt: skip
    elif not all(may_use(service.account, service.path(path), os.R_OK) for path in (folder, service.script)):
        yield Finding("wrong", f"{service.script} cannot be read by the service, which runs as its own user",
                      as_root(f"chmod -R a+rX {folder}") + f" && {restart_command(service)}")  # fmt: skip


def python_version(service: Service) -> tuple[int, int] | None:
    """Return the version of the Python in the unit of `service`, or None if it cannot be run."""
    if not service.interpreter:
        return None
    ask = [service.path(service.interpreter), "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        words = subprocess.run(ask, capture_output=True, text=True, timeout=_PYTHON_S).stdout.split()
        return int(words[0]), int(words[1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def _version(service: Service) -> Iterator[Finding]:
    """Report a service that runs another version of the program than the one in this folder."""
    folder = service.path(os.path.dirname(service.script))
    if os.path.realpath(folder) == os.path.realpath(FOLDER) or not os.path.isdir(os.path.join(folder, PACKAGE)):
        return  # the second condition is true if the service runs a program in a single file
    try:
        changed = sum(_differs(os.path.join(folder, name), content) for name, content in program_files())
    except PigeonpostError:
        return  # this folder is incomplete, which another check reports
    if changed:
        differ = f"{counted(changed, 'file')} {'differs' if changed == 1 else 'differ'}"
        yield Finding("note", f"the service runs {os.path.dirname(service.script)}, another version than {FOLDER}:"
                      f" {differ}", reinstall_command(service))  # fmt: skip


def _differs(path: str, content: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() != content
    except OSError:
        return True


# ------------------------------------------------------------------------------------------------------ its state


def _state(service: Service) -> Iterator[Finding]:
    """Check that the service is running, and that it starts at boot."""
    state, unit = service.state, service.unit
    if state.get("NeedDaemonReload") == "yes":
        yield Finding("wrong", f"{unit}: the unit files have changed, but systemd has not read them again",
                      f"{as_root('systemctl daemon-reload')} && {restart_command(service)}")  # fmt: skip
    is_restarting = state.get("SubState") == "auto-restart"
    if state.get("ActiveState") == "failed" or is_restarting:
        yield from _failure(service, is_restarting)
    elif service.is_active:
        yield Finding("ok", f"{unit} is running")
        restarts = state.get("NRestarts", "")
        if restarts.isdigit() and int(restarts) >= _RESTARTS_NOTED:
            yield Finding("note", f"{unit} ended unexpectedly {restarts} times, and was restarted",
                          as_root(f"journalctl --unit {unit} --lines 50"))  # fmt: skip
    elif state.get("ActiveState") == "activating":
        yield Finding("note", f"{unit} is starting")
    elif state.get("UnitFileState") != "disabled":
        yield Finding("wrong", f"{unit} is not running: it was stopped, or ended with the button Exit",
                      as_root(f"systemctl start {unit}"))  # fmt: skip
    yield from _at_boot(service)


def _at_boot(service: Service) -> Iterator[Finding]:
    if service.state.get("UnitFileState") != "disabled":
        return
    if service.is_active:
        yield Finding("wrong", f"{service.unit} is running, but does not start at boot",
                      as_root(f"systemctl enable {service.unit}"))  # fmt: skip
    else:
        yield Finding("wrong", f"{service.unit} is installed, but is not running and does not start at boot",
                      as_root(f"systemctl enable --now {service.unit}"))  # fmt: skip


def _failure(service: Service, is_restarting: bool) -> Iterator[Finding]:
    """Yield the finding on a service that ended: the meaning of its exit status, and the last line of its log."""
    unit, status, result = service.unit, service.state.get("ExecMainStatus", "0"), service.state.get("Result", "")
    if result in ("exit-code", "success") and status != "0":
        meaning = f"status {status}: {_MEANINGS.get(status, 'see the log')}"
    else:
        meaning = {
            "watchdog": "it did not respond, and the watchdog ended it", "oom-kill": "the memory was full",
            "timeout": "it did not start or stop in time", "signal": f"killed by signal {status}",
            "resources": "systemd could not prepare the start",
        }.get(result, result)  # fmt: skip
    line = last_line(service)
    log = as_root(f"journalctl --unit {unit} --lines 20 --no-pager")
    remedy = _REMEDIES.get(status, f"{log} shows the reason")
    if not line and os.geteuid() != 0:
        line = "(run doctor with sudo to see the last line of its log)"
    text = f"{unit} {'fails repeatedly' if is_restarting else 'has failed'} ({meaning})"
    yield Finding("wrong", f"{text}{f': {line}' if line else ''}",
                  remedy.format(restart=restart_command(service), install=reinstall_command(service)))  # fmt: skip
