"""Commands `install` and `uninstall`, which install a program as a systemd service and remove it.

Without --write, they print the changes that they would make. Everything is checked before anything is written. A run
that was killed can be repeated, and an earlier version is replaced.
Errors: Failed; SettingsError for settings with which the service would not start; DiskError.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

from pigeonpost.cli import install_files
from pigeonpost.cli.contract import Command, Context, Failed
from pigeonpost.cli.install_files import PACKAGED, PROGRAM, SETTINGS, SOCKET, UNITS, DropIn, Layout
from pigeonpost.cli.move_data import Move, check_move, move_data
from pigeonpost.cli.program_files import FOLDER, read_program_file
from pigeonpost.cli.settings_secrets import TOKEN, Secret, secrets_in_file
from pigeonpost.core.addresses import own_name
from pigeonpost.core.config import as_toml
from pigeonpost.core.errors import DiskError, SettingsError
from pigeonpost.core.format import counted
from pigeonpost.settings import load_node, load_server

_START_S = 90.0  # limit for systemd to start or stop a program, as in systemd (DefaultTimeoutStartSec=)
_MACHINE = Layout()  # this machine
_HOW_TO_SET_A_TOKEN = f"""\
The node has no token, so only a server on this machine can collect from it. To create a token, run on the server:
`control.py token NAME`. NAME is [node] name in {SETTINGS}/node.toml, or {{name}} if that is empty.
Then run these commands here. The first one waits for the token: paste it, press Enter, then Ctrl-D:
    sudo install -m 600 /dev/stdin {TOKEN}
    sudo systemctl restart pigeonpost-node"""
# The subsystems in deploy/pigeonpost.rules. Without a trigger, their devices get the groups at the next boot.
# /dev/vcio is in the subsystem misc.
_TRIGGERED = [f"--subsystem-match={name}" for name in ("spidev", "i2c-dev", "gpio", "misc", "vchiq")]
_LAST_LINES = 5  # lines of the log that are shown if a program does not start


class Plan(NamedTuple):
    """Changes that install one program.

    Attributes:
        program: `node` or `server`.
        settings: File that is copied to the settings of the service, or an empty string if the service has settings.
        drop_ins: Drop-ins for the devices of this machine (node only).
        groups: Groups that must be created.
        has_socket: True if systemd opens port 80 for the program (server only).
        move: Move of the data of a program that was started by hand, or None.
    """

    program: str
    settings: str
    drop_ins: list[DropIn]
    groups: list[str]
    has_socket: bool
    move: Move | None


def _install(context: Context, layout: Layout = _MACHINE) -> int:
    """Install the node or the server as a service that starts at boot, or replace an earlier version.

    Without --write, the files and commands are only printed. --write needs root.
    """
    chosen = context.arguments
    if FOLDER == PACKAGED:
        return _install_packaged(context, layout)
    if layout.exists(f"{PACKAGED}/control.py"):
        raise Failed("the Debian package pigeonpost is installed, which has its own units: either use these"
                     f" (sudo systemctl enable --now pigeonpost-{chosen.program}), or remove the package first (sudo"
                     " apt remove pigeonpost; data and settings are kept)")  # fmt: skip
    if chosen.write:
        _require_root(context)
    try:
        plan = _plan(context, layout)
    except PermissionError as error:
        raise Failed(f"{error.filename}: only root may read it: {_as_root(context, chosen.write)}") from error
    if not chosen.write:
        _print(plan, layout)
        print(f"\nTo make these changes, as root: {_as_root(context)}")
        return 0
    try:
        _write(plan, layout)
    except DiskError:
        raise
    except OSError as error:
        raise DiskError(f"{error.filename}: {error.strerror}") from error
    _start(plan, layout)
    return 0


def _install_packaged(context: Context, layout: Layout) -> int:
    """Move the data if --move-data is given, and print how to start the service that the Debian package installed."""
    chosen, unit = context.arguments, f"pigeonpost-{context.arguments.program}"
    start = f"sudo systemctl enable --now {unit}"
    if chosen.port_80 and chosen.program == "server":  # systemd does not open a port for a service that is running
        start = f"sudo systemctl stop {unit} && sudo systemctl enable --now {SOCKET} {unit}"
    if chosen.move_data:
        if chosen.write:
            _require_root(context)
        try:
            move = check_move(chosen.program, context.data, layout.path(f"/var/lib/{unit}"))
        except PermissionError as error:
            raise Failed(f"{error.filename}: only root may read it: {_as_root(context, chosen.write)}") from error
        if not chosen.write:
            print(f"# move {counted(len(move.files()), 'file')} from {move.source} to {move.target}")
            print(f"To make this change, as root: {_as_root(context)}")
            return 0
        print(f"{move.target}: {counted(move_data(move), 'file')} moved from {move.source}")
    print(f"The Debian package has installed the program and its units. To start it: {start}")
    return 0


def _uninstall(context: Context, layout: Layout = _MACHINE) -> int:
    """Stop the service of the node or the server, and remove its units and the program. Data and settings are kept.

    Without --write, the commands are only printed. --write needs root.
    """
    program, unit = context.arguments.program, f"pigeonpost-{context.arguments.program}"
    if FOLDER == PACKAGED:
        print(
            f"The Debian package has installed {unit}. To stop it: sudo systemctl disable --now {unit}. To remove it:"
            " sudo apt remove pigeonpost"
        )
        return 0
    units = [f"{unit}.service", *([SOCKET] if program == "server" else [])]
    units = [name for name in units if layout.exists(f"{UNITS}/{name}")]
    paths = [path for path in _paths_of(program) if layout.exists(path)]
    is_last = not layout.exists(f"{UNITS}/pigeonpost-{'server' if program == 'node' else 'node'}.service")
    if not units and not paths and not (is_last and layout.exists(PROGRAM)):
        package = "to remove the Debian package: sudo apt remove pigeonpost"
        print(f"{unit} is not installed here" + (f"; {package}" if layout.exists(f"{PACKAGED}/control.py") else ""))
        return 0
    stop = ["systemctl", "disable", "--now", *units]
    if not context.arguments.write:
        commands = [*([" ".join(stop)] if units else []), *(f"rm {path}" for path in paths), "systemctl daemon-reload"]
        print("\n".join([*commands, *([f"remove the program from {PROGRAM}"] if is_last else [])]))
        print(f"To make these changes, as root: {_as_root(context)}")
        return 0
    _require_root(context)
    if units:
        _run(stop, layout)
    for path in paths:
        os.unlink(layout.path(path))
    folder = layout.path(f"{UNITS}/{unit}.service.d")
    remaining = [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    if not remaining and os.path.isdir(folder):
        os.rmdir(folder)
    _run(["systemctl", "daemon-reload"], layout)
    if is_last:
        remaining += [os.path.join(PROGRAM, name) for name in install_files.remove_program(layout)]
    print(f"{unit} was removed. Its data in /var/lib/{unit} and its settings in {SETTINGS} were kept"
          + (f", and files that are not part of Pigeonpost: {', '.join(remaining)}" if remaining else ""))  # fmt: skip
    return 0


def _paths_of(program: str) -> Iterator[str]:
    """Yield the paths of the files that `install` may have written, except those of the program and its settings."""
    yield f"{UNITS}/pigeonpost-{program}.service"
    if program == "server":
        yield f"{UNITS}/{SOCKET}"
        return
    yield from (f"{UNITS}/pigeonpost-node.service.d/{one.name}" for one in install_files.DROP_INS)
    yield install_files.SYSUSERS[1]
    yield install_files.RULES[1]


def _require_root(context: Context) -> None:
    if os.geteuid() != 0:
        raise Failed(f"--write needs root: {_as_root(context)}")


def _as_root(context: Context, is_written: bool = True) -> str:
    """Return the shell command that runs this command as root."""
    chosen, called = context.arguments, sys.argv[0]
    words = ["sudo", *(["python3"] if called.endswith((".py", ".pyz")) else []), called, chosen.command, chosen.program]
    if chosen.command == "install":
        if chosen.move_data:
            words += [*(["--data", chosen.data] if chosen.data else []), "--move-data"]
        words += ["--port-80"] * chosen.port_80
    return shlex.join([*words, *["--write"] * is_written])


# ----------------------------------------------------------------------------------------------------------- plan


def _plan(context: Context, layout: Layout) -> Plan:
    chosen = context.arguments
    is_node = chosen.program == "node"
    drop_ins = install_files.drop_ins(layout) if is_node else []
    has_socket = not is_node and (chosen.port_80 or layout.exists(f"{UNITS}/{SOCKET}"))
    settings = _settings_source(chosen.program, layout)
    move = None
    if chosen.move_data:
        move = check_move(chosen.program, context.data, layout.path(f"/var/lib/pigeonpost-{chosen.program}"))
    return Plan(chosen.program, settings, drop_ins, install_files.missing_groups(drop_ins), has_socket, move)


def _settings_source(program: str, layout: Layout) -> str:
    """Check the settings of the service, and return the file from which they are copied.

    This is the user's settings file in the current folder or in the folder of the program, or else the file with all
    defaults. If the service has settings already, return an empty string.
    """
    installed = layout.path(f"{SETTINGS}/{program}.toml")
    if os.path.exists(installed):
        _check_settings(program, installed)
        if not os.stat(installed).st_mode & 0o004:
            raise SettingsError(
                f"{installed}: the service runs as its own user, which cannot read the file: sudo chmod 644 {installed}"
                f" (write secrets to {SETTINGS}/{program}.env, see docs/install.md)"
            )
        return ""
    for own in (os.path.abspath(f"{program}.toml"), os.path.join(FOLDER, f"{program}.toml")):
        if os.path.exists(own):
            _refuse_secrets(own, _check_settings(program, own), installed)
            return own
    return f"{program}.default.toml"


def _refuse_secrets(own: str, secrets: list[Secret], installed: str) -> None:
    """Raise SettingsError if a settings file contains secrets. The message names the right file for each of them."""
    if not secrets:
        return
    places: dict[str, list[str]] = {}
    for secret in secrets:
        places.setdefault(secret.place, []).append(secret.name)
    moves = [f"{', '.join(names)} to {place}" for place, names in places.items()]
    raise SettingsError(
        f"{own} contains {'a secret' if len(secrets) == 1 else 'secrets'}, and would be copied to {installed}, which"
        f" all users of this machine may read. Move {', '.join(moves)}. To write a file: `sudo install -D -m 600"
        " /dev/stdin"
        " FILE`, type its content, press Enter, then Ctrl-D"
    )


def _check_settings(program: str, path: str) -> list[Secret]:
    """Check a settings file for use by the service, and return the secrets in it. Raise SettingsError."""
    load = load_node if program == "node" else load_server
    settings = load(SimpleNamespace(config=path), {})
    data = settings[program, "data"]
    if data and os.path.realpath(data) != os.path.realpath(f"/var/lib/pigeonpost-{program}"):
        raise SettingsError(
            f"{path}: [{program}] data = {as_toml(data)}: the service may write to /var/lib/pigeonpost-{program}"
            " only; remove the line, and use --move-data (with --data DIR) to move existing data"
        )
    return secrets_in_file(program, settings)


# ------------------------------------------------------------------------------------------------------- execution


def _print(plan: Plan, layout: Layout) -> None:
    """Print the plan: the content of short files, then the commands."""
    if not install_files.is_installed_here(layout):
        print(f"# {PROGRAM}: the program, from {FOLDER}")
    if plan.settings:
        print(f"# {SETTINGS}/{plan.program}.toml: a copy of {plan.settings}")
    for path, content in _files(plan):
        print(f"\n# {path}\n{content.decode().rstrip()}")
    print("\n# commands")
    if plan.groups:
        print("systemd-sysusers")
    if plan.move is not None:
        print(f"# move {counted(len(plan.move.files()), 'file')} from {plan.move.source} to {plan.move.target}")
    print("\n".join(" ".join(command) for command in _commands(plan)))


def _files(plan: Plan) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of each file, except those of the program and its settings."""
    if plan.groups:
        for name, path in (install_files.SYSUSERS, install_files.RULES):
            yield path, read_program_file(name)
    yield from install_files.unit_files(plan.program, plan.drop_ins, plan.has_socket)


def _commands(plan: Plan) -> Iterator[list[str]]:
    unit = f"pigeonpost-{plan.program}.service"
    yield ["systemctl", "daemon-reload"]
    if plan.has_socket:
        yield ["systemctl", "enable", SOCKET, unit]
        yield ["systemctl", "stop", unit]  # systemd does not open a port for a service that is running
        yield ["systemctl", "restart", SOCKET]
    else:
        yield ["systemctl", "enable", unit]
    yield ["systemctl", "restart", unit]


def _write(plan: Plan, layout: Layout) -> None:
    os.umask(0o022)  # all users must be able to read the files: each service runs as its own user
    if not install_files.is_installed_here(layout):
        count = install_files.copy_program(layout)
        done = f"{counted(count, 'file')} written" if count else "this version is installed already"
        print(f"{PROGRAM}: {done}")
    settings = f"{SETTINGS}/{plan.program}.toml"
    if plan.settings:
        read = read_program_file if plan.settings.endswith(".default.toml") else install_files.read
        install_files.write_for_all(layout.path(settings), read(plan.settings))
        print(f"{settings}: a copy of {plan.settings}")
    else:
        print(f"{settings}: kept")
    for path, file in _files(plan):
        install_files.write_for_all(layout.path(path), file)
        print(path)
    if plan.groups:
        _run(["systemd-sysusers"], layout)
        if layout.exists("/run/udev/control"):
            _run(["udevadm", "control", "--reload"], layout)
            _run(["udevadm", "trigger", *_TRIGGERED], layout)
    if plan.move is not None:
        print(f"{plan.move.target}: {counted(move_data(plan.move), 'file')} moved from {plan.move.source}")


def _start(plan: Plan, layout: Layout) -> None:
    unit = f"pigeonpost-{plan.program}"
    if not layout.exists("/run/systemd/system"):
        print(
            "systemd is not running here. Run these commands once it is:\n" + "\n".join(map(" ".join, _commands(plan)))
        )
        return
    for command in _commands(plan):
        _run(command, layout)
    print(f"{unit} is running, and starts at boot. Its log: journalctl -u {unit}")
    log = _log(unit)
    if plan.program == "server":
        print("\n".join(line for line in log if line.startswith("the page is at")))
        if not layout.exists("/var/lib/pigeonpost-server/users.json"):
            print(f"To set a password for the page: sudo python3 {PROGRAM}/control.py"
                  " --data /var/lib/pigeonpost-server password")  # fmt: skip
    elif any("no token:" in line for line in log):
        print(_HOW_TO_SET_A_TOKEN.format(name=own_name()))


def _run(command: list[str], layout: Layout) -> None:
    """Print and run a system command. If it fails, raise Failed with its error and, for `restart`, the log."""
    if not layout.exists("/run/systemd/system") and command[0] == "systemctl":
        return
    print(" ".join(command), flush=True)
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_START_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{' '.join(command)}: {error}") from error
    if result.returncode:
        lines = result.stderr.strip().splitlines()[:1]
        if command[1:2] == ["restart"]:
            lines += _log(command[-1])[-_LAST_LINES:]
        raise Failed("\n  ".join([f"{' '.join(command)} failed:", *lines]))


def _log(unit: str) -> list[str]:
    """Return the log lines of the current or last run of a unit."""
    show = ["systemctl", "show", "--property=InvocationID", "--value", unit]
    subprocess.run(["journalctl", "--sync"], capture_output=True, timeout=_START_S)  # writes the last lines
    run = subprocess.run(show, capture_output=True, text=True, timeout=_START_S).stdout.strip()
    journal = ["journalctl", "--no-pager", "--output=cat", f"_SYSTEMD_INVOCATION_ID={run}"]
    return subprocess.run(journal, capture_output=True, text=True, timeout=_START_S).stdout.splitlines()


_PROGRAM = ("program", {"choices": ("node", "server"), "help": "program to install or remove"})
_WRITE = ("--write", {"action": "store_true", "help": "make the changes, as root (default: only print them)"})
_MOVE = (
    "--move-data",
    {"action": "store_true", "help": "move existing data (in ./data, or --data DIR) to the data folder of the service"},
)
_PORT_80 = (
    "--port-80",
    {
        "action": "store_true",
        "help": "server only: serve the web interface on port 80 instead of the addresses in [web] listen",
    },
)

COMMANDS = {
    "install": Command("install the node or the server as a service", [_PROGRAM, _WRITE, _MOVE, _PORT_80], _install),
    "uninstall": Command("remove the service; its data and settings are kept", [_PROGRAM, _WRITE], _uninstall),
}
