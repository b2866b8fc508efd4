"""Single checks of `control.py doctor`: folders, ports, other machines, devices, files with secrets. Errors: none.

A check that fails gives what is wrong, why that matters, and the exact command that repairs it.
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
from pigeonpost.storage.csv.checksums import check_pieces, logs_in
from pigeonpost.storage.sqlite.schema import quick_faults

REACH_S = 3.0  # for another machine, or another program on this one
_MOST_LOG_BYTES = 256 << 20  # of logs that are read: on a Pi some seconds
_LEAST_BYTES = 200 << 20
_PROGRAM_FILES = tuple(f"{name}.py" for name in PROGRAMS)
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_GONE = ("tmpfs", "ramfs", "overlay", "aufs")  # after a restart of the machine, or of the container
_FAR = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs")  # locks and memory maps do not reach over a network
_SIMPLE = ("vfat", "exfat", "msdos")  # without owners, modes, or a journal
TOKEN = "/etc/pigeonpost/node-token"  # of the node, where it is a service
SERVICE_DISK = "one mounted at /var/lib"  # where another place for the data of a service is
VOLUME_REMEDY = (
    "on the machine, with the volume's name: docker run --rm --user root --entrypoint chown -v VOLUME:/data pigeonpost"
    " -R 10001:10001 /data (docker compose does that at each start)"
)


class Finding(NamedTuple):
    """The result of one check. `word` is "ok", "wrong", or "note" for what may well be meant so."""

    word: str
    about: str
    remedy: str = ""


class Account(NamedTuple):
    """Who a program runs as.

    name  as messages have it
    uid   its user's number; None: not known before it runs
    gids  the numbers of its groups
    """

    name: str
    uid: int | None
    gids: frozenset[int]


def may_use(account: Account, path: str, mode: int) -> bool:
    """Return True if owner, group and mode of a file let an account use it; `mode` as of os.access.

    Folders above it are not looked at.
    """
    if account.uid == 0:
        return True
    status = os.stat(path)
    if account.uid is not None and status.st_uid == account.uid:
        shift = 6
    else:
        shift = 3 if status.st_gid in account.gids else 0
    return (status.st_mode >> shift) & mode == mode


def control(command: str, as_root: bool = False, data: str = "") -> str:
    """Return the line to type for a command of control.py, from the folder in which doctor was started.

    data  the data folder, where it is another than the command would take by itself
    """
    started = os.path.abspath(sys.argv[0])
    if os.path.commonpath([FOLDER, PACKAGED]) == PACKAGED:
        program = "pigeonpost"
    elif os.path.basename(started) == "pigeonpost":  # in an environment of its own, which sudo does not search
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
    """Return a command with sudo before it, where this user needs that."""
    return command if os.geteuid() == 0 else f"sudo {command}"


def first_process(root: str = "/") -> str:
    """Return what process 1 runs, where that is a program of ours, as `server.py --demo`; else an empty text."""
    try:
        with open(os.path.join(root, "proc/1/cmdline"), encoding="utf-8", errors="replace") as file:
            words = file.read().strip("\0").split("\0")
    except OSError:
        return ""
    ours = [count for count, word in enumerate(words) if os.path.basename(word) in _PROGRAM_FILES]
    return " ".join(words[ours[0] :]) if ours else ""


def first_account(root: str = "/") -> Account:
    """Return who process 1 runs as."""
    fields = {}
    try:
        with open(os.path.join(root, "proc/1/status"), encoding="ascii", errors="replace") as file:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        pass  # then this process stands for it
    uid = int(fields["Uid"].split()[1]) if "Uid" in fields else os.geteuid()
    gids = {int(gid) for gid in (fields.get("Gid", "").split()[1:2] + fields.get("Groups", "").split())}
    return Account(f"the program (user {uid})", uid, frozenset(gids))


def in_our_container(root: str = "/") -> bool:
    """Return True in a container whose first process is a program of ours, as that of the Dockerfile."""
    return in_container() and bool(first_process(root))


def is_hidden(path: str) -> bool:
    """Return True if this user may not see whether a folder is there, as root's /var/lib/private."""
    try:
        return not os.access(path, os.R_OK | os.X_OK) and os.stat(path) is not None
    except PermissionError:
        return True
    except OSError:
        return False


def folder(data: str, other: str = "--data DIR") -> Iterator[Finding]:
    """Check where a program keeps its data; `other` is how another place is set."""
    place = os.path.abspath(data)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        remedy = f"sudo install -d -o {_user()} {os.path.abspath(data)}, or another one: {other}"
        if in_our_container():
            remedy = VOLUME_REMEDY
        yield Finding("wrong", f"{data}: {_user()} may not write there", remedy)
        return
    kind, status = kind_of_filesystem(place), os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if kind in _GONE:
        yield Finding("wrong", f"{data} is on {kind}: what it holds is gone after a restart",
                      f"a folder on a disk: {other}; in a container a volume (see docker-compose.yml)")  # fmt: skip
    elif kind in _FAR or kind in _SIMPLE:
        yield Finding("wrong", f"{data} is on {kind}, on which what is written is not safe",
                      f"a folder on a local disk with ext4 or the like: {other}")  # fmt: skip
    if free < _LEAST_BYTES:
        yield Finding("wrong", f"{data}: only {free >> 20} MiB are free",
                      f"make room (`du -xh / | sort -h | tail` shows what is large), or {other}")  # fmt: skip
    else:
        yield Finding("ok", f"{data}: {free / 2**30:.1f} GiB free on {kind or 'its disk'}")
    if place == os.path.abspath(data):
        yield from _owners(place)


def _owners(data: str) -> Iterator[Finding]:
    """Check who may read the data folder, and who owns its files."""
    status = os.stat(data)
    owner = _user_name(status.st_uid)
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        yield Finding("wrong", f"{data} may be read by other users (mode {mode:04o})", f"chmod 700 {data}")
    for folder_, _, names in os.walk(data):
        for name in names:
            path = os.path.join(folder_, name)
            if os.path.lexists(path) and os.lstat(path).st_uid != status.st_uid:
                found = _user_name(os.lstat(path).st_uid)
                yield Finding("wrong", f"{path} belongs to {found}, and its folder to {owner}, whose programs may fail",
                              f"sudo chown -hR {owner}: {data}")  # fmt: skip
                return


def database(data: str) -> Iterator[Finding]:
    """Check the database and the closed logs for damage, as far as that is quick."""
    path, logs = os.path.join(data, DATABASE), os.path.join(data, LOGS)
    if not os.path.exists(path):
        return
    try:
        lock = lock_data_dir(os.path.join(data, SERVER_LOCK))
    except InUse:
        lock = -1
    try:
        wrong = list(quick_faults(data, is_in_use=lock < 0))
    finally:
        if lock >= 0:
            os.close(lock)
    for fault in wrong:
        about, _, remedy = fault.partition("; ")
        yield Finding("wrong", about, remedy)
    if sum(os.path.getsize(os.path.join(logs, name)) for name in logs_in(logs)) <= _MOST_LOG_BYTES:
        for fault in filter(None, check_pieces(logs, f"python3 control.py --data {os.path.abspath(data)}")):
            about, _, remedy = fault.partition("; ")
            wrong.append(fault)
            yield Finding("wrong", about, remedy)
    if not wrong:
        yield Finding("ok", f"{path}: no damage is seen (`control.py verify` reads all of it)")


def port(address: tuple[str, int], other: str, is_ours: Callable[[], str]) -> Finding:
    """Check that an address can be listened on.

    other    how another one is set: `--web HOST:PORT`
    is_ours  returns who of ours has it; empty: nobody
    """
    host, number = address
    where = join_address(host, number)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server(address, family=family).close()
        return Finding("ok", f"{where} is free to listen on")
    except OSError as error:
        ours = is_ours() if error.errno == errno.EADDRINUSE else ""
        if ours:
            return Finding("ok", f"{where}: {ours}")
        remedy = {
            errno.EADDRINUSE: f"sudo ss -ltnp 'sport = :{number}' tells who has it; or another: {other}",
            errno.EACCES: f"only root may have ports below 1024: another: {other};"
                          f" or as a service: {control('install server --port-80 --write', as_root=True)}",
        }.get(error.errno or 0, f"an address of this machine (`ip address` lists them): {other}")  # fmt: skip
        return Finding("wrong", f"{where} cannot be listened on: {error.strerror or error}", remedy)


def reach(address: tuple[str, int], who: str, remedy: str) -> Finding:
    """Whether another machine answers."""
    where = join_address(*address)
    try:
        socket.create_connection(address, REACH_S).close()
    except OSError as error:
        return Finding("wrong", f"{who} at {where} cannot be reached: {error.strerror or error}", remedy)
    return Finding("ok", f"{who} at {where} can be reached")


def listeners(number: int) -> set[int]:
    """Return the users, by number, whose programs listen on a TCP port of this machine."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except OSError:
            continue  # a kernel without IPv6
        for fields in map(str.split, lines):  # proc(5): sl, local address, remote address, state, ..., uid at the 8th
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == number:
                found.add(int(fields[7]))
    return found


def broker(settings: Settings, file: str) -> Iterator[Finding]:
    """Check that the broker of [mqtt] answers, where one is set in `file`."""
    if settings["mqtt", "host"]:
        remedy = f"is it running, and is its port open? `[mqtt] host` in {file} says where it is"
        yield reach(broker_address(settings), "the broker", remedy)


def device(path: str, switch_on: str) -> Finding:
    """Whether a device can be opened; `switch_on` is the remedy where there is none."""
    if not os.path.exists(path):
        return Finding("wrong", f"{path} is not there", switch_on)
    if os.access(path, os.R_OK | os.W_OK):
        return Finding("ok", f"{path} may be opened")
    group = _group_name(os.stat(path).st_gid)
    if _user() in _members(group):
        return Finding("wrong", f"{path} may not be opened yet: {_user()} is in group {group}, but not in this session",
                       "log in again, or sudo reboot")  # fmt: skip
    return Finding("wrong", f"{path} may not be opened by {_user()}",
                   f"sudo usermod -aG {group} {_user()}, then log in again")  # fmt: skip


def private(path: str, what: str) -> Finding:
    """A file with secrets: for its owner's eyes only, and these are ours."""
    if not os.access(path, os.R_OK):
        return Finding("wrong", f"{path}, {what}, may not be read by {_user()}", f"sudo chown {_user()} {path}")
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        return Finding("wrong", f"{path}, {what}, may be read by others (mode {mode:04o})", f"chmod 600 {path}")
    return Finding("ok", f"{path}, {what}, is for its owner alone")


def in_group(name: str, what: str) -> Iterator[Finding]:
    """A note where this user is not in a group that exists here."""
    if _exists(name) and _user() not in _members(name) and os.getuid() != 0:
        yield Finding("note", f"{_user()} is not in group {name}: {what}", f"sudo usermod -aG {name} {_user()}")


def _user() -> str:
    return _user_name(os.getuid())


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group_id(name: str) -> int | None:
    """Return the number of a group; None where this system has none of that name."""
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
