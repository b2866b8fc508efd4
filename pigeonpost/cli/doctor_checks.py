"""Checks that several parts of `control.py doctor` use: folders, ports, other machines, devices, files with secrets.

No errors are raised. A check that fails yields a finding: the problem, its effect, and the command that repairs it.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import socket
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pigeonpost.cli.install_files import PACKAGED
from pigeonpost.cli.program_files import FOLDER, PROGRAMS
from pigeonpost.core.addresses import join_address
from pigeonpost.core.config import Settings
from pigeonpost.core.container import in_container
from pigeonpost.core.data_folder import DATABASE, LOGS, SERVER_LOCK
from pigeonpost.core.errors import InUse
from pigeonpost.core.files import kind_of_filesystem, lock_data_dir
from pigeonpost.core.mqtt_client import broker_address
from pigeonpost.storage.csv.checksums import check_pieces, log_sizes
from pigeonpost.storage.sqlite.schema import quick_faults

REACH_S = 3.0  # limit for a connection to another machine or program, and for its answer
_MOST_LOG_BYTES = 256 << 20  # larger logs are not read: this many bytes take a Pi some seconds
_LEAST_BYTES = 200 << 20  # less free space in the data folder is a problem
_PROGRAM_FILES = tuple(f"{name}.py" for name in PROGRAMS)
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_VOLATILE = ("tmpfs", "ramfs", "overlay", "aufs")  # lost when the machine or the container restarts
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs")  # locks and memory maps do not work reliably
_SIMPLE = ("vfat", "exfat", "msdos")  # without owners, modes and a journal
TOKEN = "/etc/pigeonpost/node-token"  # token of a node that runs as a service
SERVICE_DISK = "mount it at /var/lib"  # remedy: a larger or better disk for the data of a service
VOLUME_REMEDY = (
    "on the host, with the name of the volume: docker run --rm --user root --entrypoint chown -v VOLUME:/data"
    " pigeonpost -R 10001:10001 /data (docker compose does this at each start)"
)


class Finding(NamedTuple):
    """Result of one check.

    Attributes:
        status: "ok", "wrong" for a problem, or "note" for a fact that may be intended.
        about: Description of what was found.
        remedy: Command or action that solves the problem, or an empty string.
    """

    status: str
    about: str
    remedy: str = ""


class Account(NamedTuple):
    """User and groups that a program runs as.

    Attributes:
        name: Name of the program, for messages.
        uid: Id of the user, or None if it is known only while the program runs.
        gids: Ids of the groups.
    """

    name: str
    uid: int | None
    gids: frozenset[int]


def may_use(account: Account, path: str, mode: int) -> bool:
    """Return True if the owner, group and mode of the file at `path` allow an `account` to access it.

    `mode` is that of os.access. The parent folders are not checked.
    """
    if account.uid == 0:
        return True
    status = os.stat(path)
    if account.uid is not None and status.st_uid == account.uid:
        shift = 6
    else:
        shift = 3 if status.st_gid in account.gids else 0
    return (status.st_mode >> shift) & mode == mode


def control_command(command: str, as_root: bool = False, data: str = "") -> str:
    """Return the shell command that runs a command of control.py, from the folder in which doctor was started.

    Args:
        command: Command of control.py, with its arguments.
        as_root: True if the command needs root.
        data: Data folder, if it differs from the default of the command.
    """
    started = os.path.abspath(sys.argv[0])
    if os.path.commonpath([FOLDER, PACKAGED]) == PACKAGED:
        program = "pigeonpost"
    elif os.path.basename(started) == "pigeonpost":  # in a virtual environment, which sudo does not search
        program = shlex.quote(started)
    elif zipfile.is_zipfile(FOLDER):
        program = f"python3 {shlex.quote(FOLDER)}"
    elif os.path.realpath(FOLDER) == os.getcwd():
        program = "python3 control.py"
    else:
        program = f"python3 {shlex.quote(os.path.join(FOLDER, 'control.py'))}"
    folder_ = f" --data {shlex.quote(data)}" if data else ""
    return f"{'sudo ' if as_root and os.geteuid() != 0 else ''}{program}{folder_} {command}"


def as_root(command: str) -> str:
    """Return `command`, with sudo before it unless this user is root."""
    return command if os.geteuid() == 0 else f"sudo {command}"


def first_process(root: str = "/") -> str:
    """Return the command of process 1, such as `server.py --demo`, or an empty string for other programs.

    `root` replaces `/` in tests.
    """
    try:
        with open(os.path.join(root, "proc/1/cmdline"), encoding="utf-8", errors="replace") as file:
            words = file.read().strip("\0").split("\0")
    except OSError:
        return ""
    starts = [index for index, word in enumerate(words) if os.path.basename(word) in _PROGRAM_FILES]
    return " ".join(words[starts[0] :]) if starts else ""


def first_account(root: str = "/") -> Account:
    """Return the user and groups of process 1. `root` replaces `/` in tests."""
    fields = {}
    try:
        with open(os.path.join(root, "proc/1/status"), encoding="ascii", errors="replace") as file:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        pass  # the user of this process is used instead
    uid = int(fields["Uid"].split()[1]) if "Uid" in fields else os.geteuid()
    gids = {int(gid) for gid in (fields.get("Gid", "").split()[1:2] + fields.get("Groups", "").split())}
    return Account(f"the program (user {uid})", uid, frozenset(gids))


def in_our_container(root: str = "/") -> bool:
    """Return True in a container whose first process is a program of Pigeonpost. `root` replaces `/` in tests."""
    return in_container() and bool(first_process(root))


def is_hidden(path: str) -> bool:
    """Return True if this user may not read the folder at `path`, or may not even see if it exists."""
    try:
        return not os.access(path, os.R_OK | os.X_OK) and os.stat(path) is not None
    except PermissionError:
        return True
    except OSError:
        return False


def check_folder(data: str, other: str = "--data DIR") -> Iterator[Finding]:
    """Yield the findings on the data folder `data`. `other` is the flag or action that selects another folder."""
    place = os.path.abspath(data)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        remedy = f"sudo install -d -o {_user()} {os.path.abspath(data)}, or use another folder: {other}"
        if in_our_container():
            remedy = VOLUME_REMEDY
        yield Finding("wrong", f"{data}: the user {_user()} may not write there", remedy)
        return
    kind, status = kind_of_filesystem(place), os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if kind in _VOLATILE:
        yield Finding("wrong", f"{data} is on {kind}: its content is lost at a restart",
                      f"use a folder on a disk: {other}; in a container a volume (see docker-compose.yml)")  # fmt: skip
    elif kind in _NETWORK or kind in _SIMPLE:
        yield Finding("wrong", f"{data} is on {kind}, which does not store data reliably",
                      f"use a folder on a local disk with ext4 or a similar file system: {other}")  # fmt: skip
    if free < _LEAST_BYTES:
        yield Finding("wrong", f"{data}: only {free >> 20} MiB are free",
                      "delete files (`du -xh / | sort -h | tail` lists large folders), or use another disk:"
                      f" {other}")  # fmt: skip
    else:
        yield Finding("ok", f"{data}: {free / 2**30:.1f} GiB free on {kind or 'its disk'}")
    if place == os.path.abspath(data):
        yield from _owners(place)


def _owners(data: str) -> Iterator[Finding]:
    """Check the mode of the data folder, and the owners of its files."""
    status = os.stat(data)
    owner = _user_name(status.st_uid)
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        yield Finding("wrong", f"{data} can be read by other users (mode {mode:04o})", f"chmod 700 {data}")
    for folder_, _, names in os.walk(data):
        for name in names:
            path = os.path.join(folder_, name)
            if os.path.lexists(path) and os.lstat(path).st_uid != status.st_uid:
                found = _user_name(os.lstat(path).st_uid)
                yield Finding("wrong", f"{path} belongs to {found}, but its folder belongs to {owner}, whose programs"
                              " may fail to use the file", f"sudo chown -hR {owner}: {data}")  # fmt: skip
                return


def check_database(data: str) -> Iterator[Finding]:
    """Yield the findings of a quick check of the database and the closed logs in the folder `data`."""
    path, logs = os.path.join(data, DATABASE), os.path.join(data, LOGS)
    if not os.path.exists(path):
        return
    try:
        lock = lock_data_dir(os.path.join(data, SERVER_LOCK))
    except InUse:
        lock = -1
    try:
        faults = list(quick_faults(data, is_in_use=lock < 0))
    finally:
        if lock >= 0:
            os.close(lock)
    for fault in faults:
        about, _, remedy = fault.partition("; ")
        yield Finding("wrong", about, remedy)
    if sum(log_sizes(logs).values()) <= _MOST_LOG_BYTES:
        for fault in filter(None, check_pieces(logs, f"python3 control.py --data {os.path.abspath(data)}")):
            about, _, remedy = fault.partition("; ")
            faults.append(fault)
            yield Finding("wrong", about, remedy)
    if not faults:
        yield Finding("ok", f"{path}: no damage found (`control.py verify` checks it completely)")


def check_port(address: tuple[str, int], other: str, describe_own: Callable[[], str]) -> Finding:
    """Return the finding on an address on which a program must be able to listen.

    Args:
        address: Host and port.
        other: Flag or setting that selects another address: `--web HOST:PORT`.
        describe_own: Function that returns a description of the program of Pigeonpost that uses the address, or an
            empty string if another program uses it.
    """
    host, number = address
    where = join_address(host, number)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server(address, family=family).close()
        return Finding("ok", f"{where} is free to listen on")
    except OSError as error:
        about = describe_own() if error.errno == errno.EADDRINUSE else ""
        if about:
            return Finding("ok", f"{where}: {about}")
        remedy = {
            errno.EADDRINUSE: f"sudo ss -ltnp 'sport = :{number}' shows the program; or use another port: {other}",
            errno.EACCES: f"only root may use ports below 1024; use another port: {other};"
                          f" or install a service: {control_command('install server --port-80 --write', as_root=True)}",
        }.get(error.errno or 0, f"use an address of this machine (`ip address` lists them): {other}")  # fmt: skip
        return Finding("wrong", f"cannot listen on {where}: {error.strerror or error}", remedy)


def check_reachable(address: tuple[str, int], who: str, remedy: str) -> Finding:
    """Return the finding on a connection to another machine.

    Args:
        address: Host and port.
        who: Name of the program there, for the message.
        remedy: Remedy if it does not answer.
    """
    where = join_address(*address)
    try:
        socket.create_connection(address, REACH_S).close()
    except OSError as error:
        return Finding("wrong", f"{who} at {where} cannot be reached: {error.strerror or error}", remedy)
    return Finding("ok", f"{who} at {where} can be reached")


def listeners(number: int) -> set[int]:
    """Return the ids of the users whose programs listen on the TCP port `number` of this machine."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except OSError:
            continue  # the kernel has no IPv6
        for fields in map(str.split, lines):  # proc(5): sl, local address, remote address, state, ..., uid (the 8th)
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == number:
                found.add(int(fields[7]))
    return found


def check_broker(settings: Settings, file: str) -> Iterator[Finding]:
    """Yield the finding on the broker in `settings`, if there is one. `file` is the settings file, for the remedy."""
    if settings["mqtt", "host"]:
        remedy = f"check that it is running, that its port is open, and that `[mqtt] host` in {file} is correct"
        yield check_reachable(broker_address(settings), "the broker", remedy)


def check_device(path: str, remedy: str) -> Finding:
    """Return the finding on the device at `path`. `remedy` is the remedy if it does not exist."""
    if not os.path.exists(path):
        return Finding("wrong", f"{path} does not exist", remedy)
    if os.access(path, os.R_OK | os.W_OK):
        return Finding("ok", f"{path} can be opened")
    group = _group_name(os.stat(path).st_gid)
    if _user() in _members(group):
        return Finding("wrong", f"{path} cannot be opened yet: {_user()} joined group {group} after this login",
                       "log in again, or sudo reboot")  # fmt: skip
    return Finding("wrong", f"{path} cannot be opened by {_user()}",
                   f"sudo usermod -aG {group} {_user()}, then log in again")  # fmt: skip


def check_private(path: str, what: str) -> Finding:
    """Return the finding on a file with secrets, which only this user may be able to read.

    Args:
        path: Path of the file.
        what: Description of its content, for the message.
    """
    if not os.access(path, os.R_OK):
        return Finding("wrong", f"{path} ({what}) cannot be read by {_user()}", f"sudo chown {_user()} {path}")
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        return Finding("wrong", f"{path} ({what}) can be read by other users (mode {mode:04o})", f"chmod 600 {path}")
    return Finding("ok", f"{path} ({what}) can be read by its owner only")


def check_group(name: str, effect: str) -> Iterator[Finding]:
    """Yield a note if the group `name` exists and this user is not a member. `effect` describes the consequence."""
    if _exists(name) and _user() not in _members(name) and os.getuid() != 0:
        yield Finding("note", f"{_user()} is not in group {name}: {effect}", f"sudo usermod -aG {name} {_user()}")


def _user() -> str:
    return _user_name(os.getuid())


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group_id(name: str) -> int | None:
    """Return the id of the group `name`, or None if it does not exist."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _exists(group: str) -> bool:
    return any(entry.gr_name == group for entry in grp.getgrall())


def _members(group: str) -> list[str]:
    try:
        return grp.getgrnam(group).gr_mem
    except KeyError:
        return []
