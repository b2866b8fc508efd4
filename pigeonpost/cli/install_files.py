"""Files of an installation: the program in /opt, units, drop-ins and groups for the devices of this machine.

`Layout.root` is the folder that stands for / (tests have their own). Errors: DiskError; OSError from `copy_program`.
"""

from __future__ import annotations

import compileall
import glob
import grp
import os
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

from pigeonpost.cli.program_files import FOLDER, program_files, read_program_file
from pigeonpost.core.files import replace_file, sync_folder

PROGRAM = "/opt/pigeonpost"
PACKAGED = "/usr/share/pigeonpost"  # where the Debian package has the program
SETTINGS = "/etc/pigeonpost"
UNITS = "/etc/systemd/system"
SOCKET = "pigeonpost-server.socket"
SYSUSERS = ("deploy/pigeonpost.sysusers", "/etc/sysusers.d/pigeonpost.conf")
RULES = ("deploy/pigeonpost.rules", "/etc/udev/rules.d/60-pigeonpost.rules")
_MODEL = "/proc/device-tree/model"
_NEW, _OLD = ".new", ".old"  # folders in the program's, while it is copied
# Modules and packages that earlier versions had at the root, where this one has `pigeonpost/`.
_FORMER = (
    "base", "bus", "commands", "files", "gate", "links", "pages", "sensors", "stores", "watch", "web", "broker.py",
    "daybook.py", "demo.py", "diary.py", "disk_use.py", "errands.py", "guests.py", "intake.py", "lateness.py",
    "listing.py", "outbox.py", "parcels.py", "ring.py", "sampler.py", "session.py", "session_node.py",
    "session_server.py", "settings.py", "stream.py", "verdicts.py", "wire.py",
)  # fmt: skip


class DropIn(NamedTuple):
    """One of deploy/pigeonpost-node.service.d: the group of the devices, and their paths."""

    name: str
    group: str
    devices: tuple[str, ...]


DROP_INS = (
    DropIn("spi.conf", "spi", ("/dev/spidev*",)),
    DropIn("i2c.conf", "i2c", ("/dev/i2c-*",)),
    DropIn("gpio.conf", "gpio", ("/dev/gpiochip*",)),
    DropIn("video.conf", "video", ("/dev/vcio", "/dev/vchiq")),
)


class Layout(NamedTuple):
    """A machine's files; `root` stands for /."""

    root: str = "/"

    def path(self, absolute: str) -> str:
        """Return where a path of the machine is."""
        return os.path.join(self.root, absolute.lstrip("/"))

    def exists(self, absolute: str) -> bool:
        """Return True if the machine has it."""
        return os.path.exists(self.path(absolute))


def drop_ins(layout: Layout) -> list[DropIn]:
    """Return the drop-ins that this machine's devices call for.

    All on a Raspberry Pi: its system has the groups, and a bus that is switched on later works without a new install.
    """
    is_pi = False
    if layout.exists(_MODEL):
        with open(layout.path(_MODEL), encoding="utf-8", errors="replace") as file:
            is_pi = file.read().startswith("Raspberry Pi")
    return [one for one in DROP_INS if is_pi or any(glob.glob(layout.path(device)) for device in one.devices)]


def missing_groups(wanted: list[DropIn]) -> list[str]:
    """Return the groups that this system lacks; a unit that names one of them does not start (216/GROUP)."""
    known = {group.gr_name for group in grp.getgrall()}
    return [one.group for one in wanted if one.group not in known]


def unit_files(program: str, wanted: list[DropIn], has_socket: bool) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of a program's unit, of its drop-ins, and of its socket."""
    unit = f"pigeonpost-{program}.service"
    yield f"{UNITS}/{unit}", read_program_file(f"deploy/{unit}")
    for one in wanted:
        yield f"{UNITS}/{unit}.d/{one.name}", read_program_file(f"deploy/{unit}.d/{one.name}")
    if has_socket:
        yield f"{UNITS}/{SOCKET}", read_program_file(f"deploy/{SOCKET}")


def write_for_all(path: str, content: bytes) -> None:
    """Write a file that every user may read, and the folders above it. Raises DiskError."""
    make_folder_for_all(os.path.dirname(path))
    replace_file(path, content, 0o644)


def make_folder_for_all(path: str) -> None:
    """Make a folder that every user may look into, and those above it, whatever the umask is."""
    if not os.path.isdir(path):
        make_folder_for_all(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def is_installed_here(layout: Layout) -> bool:
    """Return True if this very program is the one in /opt."""
    return os.path.realpath(FOLDER) == os.path.realpath(layout.path(PROGRAM))


def copy_program(layout: Layout) -> int:
    """Put this program's files into /opt in place of those of an earlier version. Returns how many; 0: all are there.

    Folders are replaced as a whole, so no module of the earlier version is left; files of the user's stay. After a kill
    another run completes it.
    """
    target = layout.path(PROGRAM)
    if _is_copied(target):
        return 0
    new, old = os.path.join(target, _NEW), os.path.join(target, _OLD)
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
        make_folder_for_all(folder)
    count = 0
    for name, content in program_files():
        path = os.path.join(new, name)
        make_folder_for_all(os.path.dirname(path))
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, 0o644)
        count += 1
    _compile(new, target)
    os.sync()  # before the renames: else a power cut could leave names without content
    for name in _former(target):
        os.rename(os.path.join(target, name), os.path.join(old, name))
    for name in sorted(os.listdir(new)):
        path = os.path.join(target, name)
        if os.path.isdir(path):
            os.rename(path, os.path.join(old, name))
        os.rename(os.path.join(new, name), path)
    sync_folder(new)
    shutil.rmtree(new)
    shutil.rmtree(old)
    return count


def _is_copied(target: str) -> bool:
    """Return True if all files of this very program are there, and none of an earlier version."""
    expected = dict(program_files())
    there = {name for name in expected if "/" not in name and os.path.isfile(os.path.join(target, name))}
    for top in {name.partition("/")[0] for name in expected if "/" in name}:
        for folder, folders, names in os.walk(os.path.join(target, top)):
            folders[:] = [name for name in folders if name != "__pycache__"]
            there.update(os.path.relpath(os.path.join(folder, name), target) for name in names)
    unfinished = [name for name in (_NEW, _OLD) if os.path.exists(os.path.join(target, name))]
    if there != set(expected) or _former(target) or unfinished:
        return False
    return all(read(os.path.join(target, name)) == content for name, content in expected.items())


def read(path: str) -> bytes:
    """Return the content of a file."""
    with open(path, "rb") as file:
        return file.read()


def _compile(folder: str, target: str) -> None:
    """Compile the modules of a folder that will be `target`: the units let the programs write none, and a Pi Zero
    compiles for seconds at each start."""
    prefix, sys.pycache_prefix = sys.pycache_prefix, None  # of root's PYTHONPYCACHEPREFIX the service knows nothing
    try:
        compileall.compile_dir(folder, quiet=2, stripdir=folder, prependdir=target)
    finally:
        sys.pycache_prefix = prefix


def _former(target: str) -> list[str]:
    """Return what is left at the root of a version that had no package."""
    return [
        name for name in _FORMER
        if os.path.isfile(os.path.join(target, name)) or os.path.exists(os.path.join(target, name, "__init__.py"))
    ]  # fmt: skip


def remove_program(layout: Layout) -> list[str]:
    """Remove this program's files from /opt. Returns what is left there, which is the user's."""
    target = layout.path(PROGRAM)
    if not os.path.isdir(target):
        return []
    names = {name.partition("/")[0] for name, _ in program_files()} | {"__pycache__"}
    for name in names.intersection(os.listdir(target)):
        path = os.path.join(target, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    left = sorted(os.listdir(target))
    if not left:
        os.rmdir(target)
    return left
