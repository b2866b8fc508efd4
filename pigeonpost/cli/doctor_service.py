"""Model of the systemd service of a program, for `control.py doctor`: its unit with drop-ins, state and permissions.

The unit files are parsed here, so that they can be checked without systemd, and before systemd has read a change.
Errors: SettingsError from `load_settings`. Sources: systemd.unit(5), systemd.service(5), systemd.exec(5),
systemd.resource-control(5), systemctl(1).
"""

from __future__ import annotations

import argparse
import fnmatch
import glob
import os
import shlex
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from pigeonpost.cli.doctor_checks import Account, group_id, may_use
from pigeonpost.core import config
from pigeonpost.core.config import Settings
from pigeonpost.settings import NODE, SERVER, load_node, load_server

PACKAGED = ("/usr/lib/", "/lib/")  # folders with the units of the Debian package
_FOLDERS = ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")  # by priority; each has units in systemd/system
_SYSTEMD_S = 5.0  # limit for an answer of systemctl
_PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "Result", "UnitFileState", "NeedDaemonReload", "NRestarts", "FragmentPath",
    "ExecMainStatus", "ExecMainStartTimestampMonotonic", "MainPID", "UID", "InvocationID",
)  # fmt: skip

UnitLines = Mapping[str, Sequence[str]]  # values by "Section.Key", in the order of the files


class Service:
    """Service of a program: its unit files, their values, and its state.

    Args:
        program: `node` or `server`.
        paths: Path of the unit file, then those of its drop-ins in the order in which systemd reads them.
        state: Properties from `systemctl show`, or an empty mapping if systemd is not running.
        root: Folder that replaces `/` in tests.
    """

    def __init__(self, program: str, paths: Sequence[str], state: Mapping[str, str], root: str = "/") -> None:
        self.program, self.paths, self.state, self._root = program, paths, state, root
        self.unit = f"pigeonpost-{program}"
        self._lines = _unit_lines(self.path(path) for path in paths)

    def path(self, absolute: str) -> str:
        """Return the path below `root` of an `absolute` path."""
        return os.path.join(self._root, absolute.lstrip("/"))

    def values(self, key: str, section: str = "Service") -> Sequence[str]:
        """Return all values of `key` in a `section` of the unit and its drop-ins, after the last empty value."""
        return self._lines.get(f"{section}.{key}", ())

    def value(self, key: str) -> str:
        """Return the last value of `key` in the section Service, or an empty string if there is none."""
        return (self.values(key) or [""])[-1]

    @property
    def own(self) -> Service:
        """The service without the drop-ins of its unit."""
        return Service(self.program, self.paths[:1], self.state, self._root)

    @property
    def is_active(self) -> bool:
        """True while the program runs."""
        return self.state.get("ActiveState") in ("active", "reloading")

    @property
    def is_unused(self) -> bool:
        """True for a unit that is masked, or a unit of the Debian package that was never enabled."""
        if self.state.get("LoadState") == "masked":
            return True
        is_packaged = self.paths[0].startswith(PACKAGED)
        return is_packaged and self.state.get("UnitFileState") == "disabled" and not self._has_run

    @property
    def _has_run(self) -> bool:
        return self.state.get("ActiveState", "inactive") != "inactive"

    @property
    def command(self) -> Sequence[str]:
        """The words of ExecStart=, or an empty sequence if the value is invalid."""
        try:
            return shlex.split(self.value("ExecStart").lstrip("@-:+!"))
        except ValueError:
            return ()

    @property
    def interpreter(self) -> str:
        """The Python interpreter in the command, or an empty string if the command does not start with one."""
        first = (self.command or [""])[0]
        return first if os.path.basename(first).startswith("python") else ""

    @property
    def script(self) -> str:
        """The path of the program in the command, or an empty string if there is none."""
        words = self.command[1:] if self.interpreter else self.command
        return next((word for word in words if not word.startswith("-")), "")

    @property
    def data(self) -> str:
        """The data folder of the program."""
        return self.path(f"/var/lib/{self.value('StateDirectory') or self.unit}")

    @property
    def groups(self) -> Sequence[str]:
        """The names of the supplementary groups in the unit."""
        return " ".join(self.values("SupplementaryGroups")).split()

    @property
    def account(self) -> Account:
        """The user and groups of the program. With DynamicUser=, the user exists only while the service is running."""
        number = self.state.get("UID", "")
        uid = int(number) if number.isdigit() else None
        gids = {gid for gid in map(group_id, self.groups) if gid is not None} | ({uid} if uid is not None else set())
        return Account(f"the service {self.unit}", uid, frozenset(gids))

    def may_open_device(self, path: str) -> bool:
        """Return True if the program may open the device at `path`. The device must exist."""
        return self.allows_device(path) and may_use(self.account, self.path(path), os.R_OK | os.W_OK)

    def allows_device(self, path: str) -> bool:
        """Return True if DevicePolicy= and DeviceAllow= admit the device at `path`. Its owner and mode do not count."""
        if self.value("PrivateDevices") in ("yes", "true", "on", "1"):
            return False
        allowed = [value.split()[0] for value in self.values("DeviceAllow") if value]
        if self.value("DevicePolicy") in ("", "auto") and not allowed:
            return True
        driver = self._driver(path)
        return any(
            entry == path or (driver and entry.startswith("char-") and fnmatch.fnmatchcase(driver, entry[5:]))
            for entry in allowed
        )  # fmt: skip

    def _driver(self, path: str) -> str:
        """Return the name of the device's major number in /proc/devices, or an empty string if there is none."""
        status = os.stat(self.path(path))
        if not stat.S_ISCHR(status.st_mode):
            return ""
        with open(self.path("/proc/devices"), encoding="ascii", errors="replace") as file:
            for line in file.read().partition("\n\n")[0].splitlines():
                number, _, name = line.strip().partition(" ")
                if number == str(os.major(status.st_rdev)):
                    return name
        return ""

    def environment(self) -> tuple[dict[str, str], list[str]]:
        """Return the variables that the unit sets, and the environment files that this user may not read."""
        found: dict[str, str] = {}
        hidden = []
        for line in self.values("Environment"):
            found.update(_assignments(line))
        for path in self.environment_files:
            try:
                with open(self.path(path), encoding="utf-8", errors="replace") as file:
                    found.update(filter(None, map(_variable, file)))
            except PermissionError:
                hidden.append(path)
            except OSError:
                continue  # the files are optional; systemd reports a missing one in the state of the unit
        return found, hidden

    @property
    def environment_files(self) -> Sequence[str]:
        """The paths in EnvironmentFile=."""
        return [value.removeprefix("-") for value in self.values("EnvironmentFile")]

    def load_settings(self) -> Settings:
        """Return the settings with which the service starts.

        Raises:
            SettingsError: They are invalid.
        """
        rows, load = (NODE, load_node) if self.program == "node" else (SERVER, load_server)
        words = list(self.command)
        arguments = words[words.index(self.script) + 1 :] if self.script in words else []
        flags = config.read_flags(rows, arguments) or argparse.Namespace(config=None)
        places = (self.value("WorkingDirectory").removeprefix("-"), os.path.dirname(self.script), config.SYSTEM_FOLDER)
        folders = tuple(dict.fromkeys(self.path(place) for place in places if place))
        return load(flags, self.environment()[0], folders)


def find_service(program: str, root: str = "/") -> Service | None:
    """Return the service of `program`, or None if no unit is installed. `root` replaces `/` in tests."""
    unit = f"pigeonpost-{program}.service"
    state = ask_systemd(unit, root)
    found = state.get("FragmentPath") or _unit_file(unit, root)
    if not found:
        return None
    return Service(program, [found, *_drop_ins(unit, root)], state, root)


def ask_systemd(unit: str, root: str = "/") -> dict[str, str]:
    """Return the properties of a `unit`, or an empty dict if systemd is not running or does not know the unit.

    With another `root` than `/`, as in tests, systemd is not used.
    """
    if root != "/" or not os.path.isdir("/run/systemd/system"):
        return {}
    output = _output(["systemctl", "show", f"--property={','.join(_PROPERTIES)}", unit])
    state = dict(line.partition("=")[::2] for line in output.splitlines())
    return {} if state.get("LoadState") == "not-found" else state


def last_line(service: Service) -> str:
    """Return the last error that `service` logged in its last run, or an empty string without access to the journal."""
    run = service.state.get("InvocationID", "")
    if not run:
        return ""
    show = ["journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=1", f"_SYSTEMD_INVOCATION_ID={run}"]
    return (
        _output([*show, "--priority=err"]).strip() or _output(show).strip()
    )  # without --priority: the end of a traceback


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SYSTEMD_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""  # the command is not installed, or does not answer: the state of the unit is unknown


def _unit_file(unit: str, root: str) -> str:
    places = (f"{folder}/systemd/system/{unit}" for folder in _FOLDERS)
    return next((place for place in places if os.path.exists(os.path.join(root, place[1:]))), "")


def _drop_ins(unit: str, root: str) -> list[str]:
    """Return the drop-ins of a unit, sorted by name. If folders have files of the same name, the first folder wins."""
    by_name: dict[str, str] = {}
    for folder in _FOLDERS:
        for path in glob.glob(os.path.join(root, folder[1:], "systemd/system", f"{unit}.d", "*.conf")):
            by_name.setdefault(os.path.basename(path), os.path.join("/", os.path.relpath(path, root)))
    return [by_name[name] for name in sorted(by_name)]


def _unit_lines(paths: Iterator[str]) -> UnitLines:
    found: dict[str, list[str]] = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read().replace("\\\n", " ")
        except OSError:
            continue  # deleted since systemd read it: the state of the unit shows that
        section = ""
        for line in map(str.strip, text.splitlines()):
            if line.startswith("[") and line.endswith("]"):
                section = line[1:-1]
            elif "=" in line and not line.startswith(("#", ";")):
                key, _, value = line.partition("=")
                values = found.setdefault(f"{section}.{key.strip()}", [])
                values.append(value.strip()) if value.strip() else values.clear()
    return found


def _variable(line: str) -> tuple[str, str] | None:
    """Return the variable that a line of an environment file sets, or None for a comment or an empty line."""
    name, mark, value = line.strip().partition("=")
    if not mark or name.startswith(("#", ";")):
        return None
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return name.strip(), value[1:-1] if is_quoted else value


def _assignments(line: str) -> Iterator[tuple[str, str]]:
    """Yield the variables that a line of Environment= sets."""
    try:
        words = shlex.split(line)
    except ValueError:
        return  # an unclosed quote: systemd ignores such a line, too
    for word in words:
        name, mark, value = word.partition("=")
        if mark:
            yield name, value
