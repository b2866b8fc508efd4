"""Single checks of `control.py doctor`: folders, ports, other machines, devices, files with secrets. Errors: none."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pigeonpost.core.addresses import join_address
from pigeonpost.core.data_folder import DATABASE, LOGS, SERVER_LOCK
from pigeonpost.core.errors import InUse
from pigeonpost.core.files import kind_of_filesystem, lock_data_dir
from pigeonpost.storage.csv.checksums import check_pieces, logs_in
from pigeonpost.storage.sqlite.schema import quick_faults

REACH_S = 3.0  # for another machine, or another program on this one
_MOST_LOG_BYTES = 256 << 20  # of logs that are read: on a Pi some seconds
_LEAST_BYTES = 200 << 20
_GONE = ("tmpfs", "ramfs", "overlay", "aufs")  # after a restart of the machine, or of the container
_FAR = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs")  # locks and memory maps do not reach over a network
_SIMPLE = ("vfat", "exfat", "msdos")  # without owners, modes, or a journal


class Finding(NamedTuple):
    """The result of one check. `word` is "ok", "wrong", or "note" for what may well be meant so."""

    word: str
    about: str
    remedy: str = ""


def folder(data: str) -> Iterator[Finding]:
    """Where a program keeps its data."""
    place = os.path.abspath(data)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        yield Finding("wrong", f"{data}: {_user()} may not write there",
                      f"sudo install -d -o {_user()} {os.path.abspath(data)}, or another one: --data DIR")  # fmt: skip
        return
    kind, status = kind_of_filesystem(place), os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if kind in _GONE:
        yield Finding("wrong", f"{data} is on {kind}: what it holds is gone after a restart",
                      "a folder on a disk: --data DIR; in a container a volume (see docker-compose.yml)")  # fmt: skip
    elif kind in _FAR or kind in _SIMPLE:
        yield Finding("wrong", f"{data} is on {kind}, on which what is written is not safe",
                      "a folder on a local disk with ext4 or the like: --data DIR")  # fmt: skip
    if free < _LEAST_BYTES:
        yield Finding("wrong", f"{data}: only {free >> 20} MiB are free",
                      "make room (`du -xh / | sort -h | tail` shows what is large), or --data DIR")  # fmt: skip
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


def port(address: tuple[str, int], flag: str, is_ours: Callable[[], str]) -> Finding:
    """Whether an address can be listened on. `is_ours` tells who of ours has it, or nothing."""
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
            errno.EADDRINUSE: f"sudo ss -ltnp 'sport = :{number}' tells who has it; or another: {flag} HOST:PORT",
            errno.EACCES: f"a port from 1024 on: {flag} HOST:PORT; or run it by deploy/'s systemd unit",
        }.get(error.errno or 0, f"an address of this machine (`ip address` lists them): {flag} HOST:PORT")
        return Finding("wrong", f"{where} cannot be listened on: {error.strerror or error}", remedy)


def reach(address: tuple[str, int], who: str, remedy: str) -> Finding:
    """Whether another machine answers."""
    where = join_address(*address)
    try:
        socket.create_connection(address, REACH_S).close()
    except OSError as error:
        return Finding("wrong", f"{who} at {where} cannot be reached: {error.strerror or error}", remedy)
    return Finding("ok", f"{who} at {where} can be reached")


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
    return Finding("ok", f"{path}, {what}, is for {_user()} alone")


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
