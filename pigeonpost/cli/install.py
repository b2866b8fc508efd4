"""Commands that install a program as a service of systemd, and that remove it again.

Without --write they print what they would do. Everything is checked before anything is written; another run goes on
where one was killed, and replaces an earlier version. Errors: Failed; SettingsError for settings with which the service
would not start; DiskError.
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
from pigeonpost.settings import load_node, load_server

_START_S = 90.0  # for systemd to start or stop a program: its own limit
_MACHINE = Layout()  # this one
_HOW_TO_GIVE_A_TOKEN = f"""\
Without a token only this machine can collect from it. On the server, `control.py token NAME` prints one; NAME is
[node] name in {SETTINGS}/node.toml, where that is empty {{name}}. Then here; the first command waits for the token:
paste it, press Enter, then Ctrl-D:
    sudo install -m 600 /dev/stdin {TOKEN}
    sudo systemctl restart pigeonpost-node"""
# Those of deploy/pigeonpost.rules, whose devices otherwise get their groups at the next boot; /dev/vcio is of misc.
_TRIGGERED = [f"--subsystem-match={name}" for name in ("spidev", "i2c-dev", "gpio", "misc", "vchiq")]
_LAST_LINES = 5  # of the log, where a program does not start


class Plan(NamedTuple):
    """What is to be done for one program.

    settings   what becomes its settings file; empty: it has one
    drop_ins   for the devices of this machine; a node's
    groups     that this system lacks
    move       its data, to be moved
    """

    program: str
    settings: str
    drop_ins: list[DropIn]
    groups: list[str]
    has_socket: bool
    move: Move | None


def install(context: Context, layout: Layout = _MACHINE) -> int:
    """Install the node or the server as a service that starts at boot, or replace an earlier version of it.

    Prints what it would do: the files, and the commands. With --write, as root, it does that.
    """
    chosen = context.arguments
    if FOLDER == PACKAGED:
        return _install_packaged(context, layout)
    if layout.exists(f"{PACKAGED}/control.py"):
        raise Failed("the Debian package pigeonpost is installed, with units of its own: go on with that"
                     f" (sudo systemctl enable --now pigeonpost-{chosen.program}), or remove it first (sudo apt remove"
                     " pigeonpost; data and settings stay)")  # fmt: skip
    if chosen.write:
        _require_root(context)
    try:
        plan = _plan(context, layout)
    except PermissionError as error:
        raise Failed(f"{error.filename}: only root may look there: {_as_root(context, chosen.write)}") from error
    if not chosen.write:
        _print(plan, layout)
        print(f"\nAs root, this does it: {_as_root(context)}")
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
    """Do what the Debian package has left: with --write, as root, move the data. Prints how the service is started."""
    chosen, unit = context.arguments, f"pigeonpost-{context.arguments.program}"
    start = f"sudo systemctl enable --now {unit}"
    if chosen.port_80 and chosen.program == "server":  # systemd does not open the port of a service that runs
        start = f"sudo systemctl stop {unit} && sudo systemctl enable --now {SOCKET} {unit}"
    if chosen.move_data:
        if chosen.write:
            _require_root(context)
        try:
            move = check_move(chosen.program, context.data, layout.path(f"/var/lib/{unit}"))
        except PermissionError as error:
            raise Failed(f"{error.filename}: only root may look there: {_as_root(context, chosen.write)}") from error
        if not chosen.write:
            print(f"# move {len(move.files())} files from {move.source} to {move.target}")
            print(f"As root, this does it: {_as_root(context)}")
            return 0
        print(f"{move.target}: {move_data(move)} files of the data, from {move.source}")
    print(f"The Debian package has installed the program and its units: {start}")
    return 0


def uninstall(context: Context, layout: Layout = _MACHINE) -> int:
    """Stop the service of the node or the server, and remove its units and the program; data and settings stay.

    Prints what it would do; with --write, as root, it does that.
    """
    program, unit = context.arguments.program, f"pigeonpost-{context.arguments.program}"
    if FOLDER == PACKAGED:
        print(
            f"The Debian package has installed it: sudo systemctl disable --now {unit}, or sudo apt remove pigeonpost"
        )
        return 0
    units = [f"{unit}.service", *([SOCKET] if program == "server" else [])]
    units = [name for name in units if layout.exists(f"{UNITS}/{name}")]
    paths = [path for path in _paths_of(program) if layout.exists(path)]
    is_last = not layout.exists(f"{UNITS}/pigeonpost-{'server' if program == 'node' else 'node'}.service")
    if not units and not paths and not (is_last and layout.exists(PROGRAM)):
        package = "sudo apt remove pigeonpost removes the Debian package"
        print(f"{unit} is not installed here" + (f"; {package}" if layout.exists(f"{PACKAGED}/control.py") else ""))
        return 0
    stop = ["systemctl", "disable", "--now", *units]
    if not context.arguments.write:
        commands = [*([" ".join(stop)] if units else []), *(f"rm {path}" for path in paths), "systemctl daemon-reload"]
        print("\n".join([*commands, *([f"remove the program from {PROGRAM}"] if is_last else [])]))
        print(f"As root, this does it: {_as_root(context)}")
        return 0
    _require_root(context)
    if units:
        _run(stop, layout)
    for path in paths:
        os.unlink(layout.path(path))
    folder = layout.path(f"{UNITS}/{unit}.service.d")
    left = [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    if not left and os.path.isdir(folder):
        os.rmdir(folder)
    _run(["systemctl", "daemon-reload"], layout)
    if is_last:
        left += [os.path.join(PROGRAM, name) for name in install_files.remove_program(layout)]
    print(f"{unit} is removed. Kept: its data in /var/lib/{unit}, its settings in {SETTINGS}"
          + (f"; and what is not Pigeonpost's: {', '.join(left)}" if left else ""))  # fmt: skip
    return 0


def _paths_of(program: str) -> Iterator[str]:
    """Yield the files that `install` may have written for a program, but for program and settings."""
    yield f"{UNITS}/pigeonpost-{program}.service"
    if program == "server":
        yield f"{UNITS}/{SOCKET}"
        return
    yield from (f"{UNITS}/pigeonpost-node.service.d/{one.name}" for one in install_files.DROP_INS)
    yield install_files.SYSUSERS[1]
    yield install_files.RULES[1]


def _require_root(context: Context) -> None:
    if os.geteuid() != 0:
        raise Failed(f"only root may write there: {_as_root(context)}")


def _as_root(context: Context, is_written: bool = True) -> str:
    """Return this command as it is to be typed to run as root."""
    chosen, called = context.arguments, sys.argv[0]
    words = ["sudo", *(["python3"] if called.endswith((".py", ".pyz")) else []), called, chosen.command, chosen.program]
    if chosen.command == "install":
        if chosen.move_data:
            words += [*(["--data", chosen.data] if chosen.data else []), "--move-data"]
        words += ["--port-80"] * chosen.port_80
    return shlex.join([*words, *["--write"] * is_written])


# ------------------------------------------------------------------------------------------------ what is to be done


def _plan(context: Context, layout: Layout) -> Plan:
    chosen = context.arguments
    is_node = chosen.program == "node"
    wanted = install_files.drop_ins(layout) if is_node else []
    has_socket = not is_node and (chosen.port_80 or layout.exists(f"{UNITS}/{SOCKET}"))
    settings = _settings_source(chosen.program, layout)
    move = None
    if chosen.move_data:
        move = check_move(chosen.program, context.data, layout.path(f"/var/lib/pigeonpost-{chosen.program}"))
    return Plan(chosen.program, settings, wanted, install_files.missing_groups(wanted), has_socket, move)


def _settings_source(program: str, layout: Layout) -> str:
    """Return the file that becomes the settings of the service; empty where it has some. Checks either.

    The user's own, from trying it by hand, comes before the one with all defaults.
    """
    installed = layout.path(f"{SETTINGS}/{program}.toml")
    if os.path.exists(installed):
        _check_settings(program, installed)
        if not os.stat(installed).st_mode & 0o004:
            raise SettingsError(
                f"{installed}: the service runs as a user of its own, which cannot read it: sudo chmod 644 {installed}"
                f" (secrets belong into {SETTINGS}/{program}.env, docs/install.md)"
            )
        return ""
    for own in (os.path.abspath(f"{program}.toml"), os.path.join(FOLDER, f"{program}.toml")):
        if os.path.exists(own):
            _refuse_secrets(own, _check_settings(program, own), installed)
            return own
    return f"{program}.default.toml"


def _refuse_secrets(own: str, secrets: list[Secret], installed: str) -> None:
    """Raise SettingsError, with the place for each secret, where a settings file has some."""
    if not secrets:
        return
    places: dict[str, list[str]] = {}
    for secret in secrets:
        places.setdefault(secret.place, []).append(secret.name)
    moves = [f"{', '.join(names)} to {place}" for place, names in places.items()]
    raise SettingsError(
        f"{own} has a secret, and would become {installed}, which every user of this machine may read. Move"
        f" {', '.join(moves)}. `sudo install -D -m 600 /dev/stdin FILE` writes what you type; Enter, then Ctrl-D end it"
    )


def _check_settings(program: str, path: str) -> list[Secret]:
    """Check a settings file as the service would. Returns the secrets that it has."""
    load = load_node if program == "node" else load_server
    settings = load(SimpleNamespace(config=path), {})
    data = settings[program, "data"]
    if data and os.path.realpath(data) != os.path.realpath(f"/var/lib/pigeonpost-{program}"):
        raise SettingsError(
            f"{path}: [{program}] data = {as_toml(data)}: the service may write to /var/lib/pigeonpost-{program}"
            " alone; take out the line, and --move-data moves what is in a folder (--data DIR)"
        )
    return secrets_in_file(program, settings)


# --------------------------------------------------------------------------------------------------------- doing it


def _print(plan: Plan, layout: Layout) -> None:
    """Print the plan: short files in full, then the commands."""
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
        print(f"# move {len(plan.move.files())} files from {plan.move.source} to {plan.move.target}")
    print("\n".join(" ".join(command) for command in _commands(plan)))


def _files(plan: Plan) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of everything but program and settings."""
    if plan.groups:
        for name, path in (install_files.SYSUSERS, install_files.RULES):
            yield path, read_program_file(name)
    yield from install_files.unit_files(plan.program, plan.drop_ins, plan.has_socket)


def _commands(plan: Plan) -> Iterator[list[str]]:
    unit = f"pigeonpost-{plan.program}.service"
    yield ["systemctl", "daemon-reload"]
    if plan.has_socket:
        yield ["systemctl", "enable", SOCKET, unit]
        yield ["systemctl", "stop", unit]  # systemd does not open the port of a service that runs
        yield ["systemctl", "restart", SOCKET]
    else:
        yield ["systemctl", "enable", unit]
    yield ["systemctl", "restart", unit]


def _write(plan: Plan, layout: Layout) -> None:
    os.umask(0o022)  # what is installed is for all users: the services run as users of their own
    if not install_files.is_installed_here(layout):
        count = install_files.copy_program(layout)
        print(f"{PROGRAM}: {f'{count} files of the program' if count else 'this version is there already'}")
    settings = f"{SETTINGS}/{plan.program}.toml"
    if plan.settings:
        read = read_program_file if plan.settings.endswith(".default.toml") else install_files.read
        install_files.write_for_all(layout.path(settings), read(plan.settings))
        print(f"{settings}: a copy of {plan.settings}")
    else:
        print(f"{settings}: kept as it is")
    for path, file in _files(plan):
        install_files.write_for_all(layout.path(path), file)
        print(path)
    if plan.groups:
        _run(["systemd-sysusers"], layout)
        if layout.exists("/run/udev/control"):
            _run(["udevadm", "control", "--reload"], layout)
            _run(["udevadm", "trigger", *_TRIGGERED], layout)
    if plan.move is not None:
        print(f"{plan.move.target}: {move_data(plan.move)} files of the data, from {plan.move.source}")


def _start(plan: Plan, layout: Layout) -> None:
    unit = f"pigeonpost-{plan.program}"
    if not layout.exists("/run/systemd/system"):
        print("systemd does not run here. Once it does:\n" + "\n".join(map(" ".join, _commands(plan))))
        return
    for command in _commands(plan):
        _run(command, layout)
    print(f"{unit} runs, and starts at boot; its log: journalctl -u {unit}")
    log = _log(unit)
    if plan.program == "server":
        print("\n".join(line for line in log if line.startswith("the page is at")))
        if not layout.exists("/var/lib/pigeonpost-server/users.json"):
            print(f"A password for the page: sudo python3 {PROGRAM}/control.py"
                  " --data /var/lib/pigeonpost-server password")  # fmt: skip
    elif any("no token:" in line for line in log):
        print(_HOW_TO_GIVE_A_TOKEN.format(name=own_name()))


def _run(command: list[str], layout: Layout) -> None:
    """Run a command of the system, and print it. Raises Failed with what it said, and with the log of a service."""
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
    """Return what the present or last run of a unit has logged."""
    show = ["systemctl", "show", "--property=InvocationID", "--value", unit]
    subprocess.run(["journalctl", "--sync"], capture_output=True, timeout=_START_S)  # what it logged last is there too
    run = subprocess.run(show, capture_output=True, text=True, timeout=_START_S).stdout.strip()
    journal = ["journalctl", "--no-pager", "--output=cat", f"_SYSTEMD_INVOCATION_ID={run}"]
    return subprocess.run(journal, capture_output=True, text=True, timeout=_START_S).stdout.splitlines()


_PROGRAM = ("program", {"choices": ("node", "server"), "help": "which program"})
_WRITE = ("--write", {"action": "store_true", "help": "do it, as root; else it is printed"})
_MOVE = (
    "--move-data",
    {"action": "store_true", "help": "move the data of trying it by hand (./data, or --data DIR) to the service's"},
)
_PORT_80 = ("--port-80", {"action": "store_true", "help": "the server's page on port 80, in place of [web] listen"})

COMMANDS = {
    "install": Command("start the node or the server at boot", [_PROGRAM, _WRITE, _MOVE, _PORT_80], install),
    "uninstall": Command("remove its service; data and settings stay", [_PROGRAM, _WRITE], uninstall),
}
