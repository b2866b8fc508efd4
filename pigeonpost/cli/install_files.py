"""Files of an installation: the program in /opt, and units, drop-ins and groups for the devices of this machine.

`Layout.root` is the folder that replaces `/` in tests. Errors: DiskError; OSError from `copy_program`.
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
PACKAGED = "/usr/share/pigeonpost"  # folder of the program in the Debian package
SETTINGS = "/etc/pigeonpost"
UNITS = "/etc/systemd/system"
SOCKET = "pigeonpost-server.socket"
SYSUSERS = ("deploy/pigeonpost.sysusers", "/etc/sysusers.d/pigeonpost.conf")
RULES = ("deploy/pigeonpost.rules", "/etc/udev/rules.d/60-pigeonpost.rules")
_MODEL = "/proc/device-tree/model"
_NEW, _OLD = ".new", ".old"  # temporary folders inside the folder of the program while it is copied
# Modules and packages that earlier versions had at the root. This version has the package `pigeonpost` instead.
_FORMER = (
    "base", "bus", "commands", "files", "gate", "links", "pages", "sensors", "stores", "watch", "web", "broker.py",
    "daybook.py", "demo.py", "diary.py", "disk_use.py", "errands.py", "guests.py", "intake.py", "lateness.py",
    "listing.py", "outbox.py", "parcels.py", "ring.py", "sampler.py", "session.py", "session_node.py",
    "session_server.py", "settings.py", "stream.py", "verdicts.py", "wire.py",
)  # fmt: skip


class DropIn(NamedTuple):
    """Drop-in in deploy/pigeonpost-node.service.d.

    Attributes:
        name: Name of its file.
        group: Group that may open the devices.
        devices: Paths of the devices, with wildcards.
    """

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
    """File system of a machine. `root` replaces `/` in tests."""

    root: str = "/"

    def path(self, absolute: str) -> str:
        """Return the path below `root` of an `absolute` path."""
        return os.path.join(self.root, absolute.lstrip("/"))

    def exists(self, absolute: str) -> bool:
        """Return True if the machine has a file or folder at the `absolute` path."""
        return os.path.exists(self.path(absolute))


def drop_ins(layout: Layout) -> list[DropIn]:
    """Return the drop-ins for the devices that the machine with this `layout` has.

    On a Raspberry Pi, these are all drop-ins: its operating system has their groups, and a bus that is enabled later
    then works without another installation.
    """
    is_pi = False
    if layout.exists(_MODEL):
        with open(layout.path(_MODEL), encoding="utf-8", errors="replace") as file:
            is_pi = file.read().startswith("Raspberry Pi")
    return [each for each in DROP_INS if is_pi or any(glob.glob(layout.path(device)) for device in each.devices)]


def missing_groups(selected: list[DropIn]) -> list[str]:
    """Return the groups of the `selected` drop-ins that this machine lacks. A unit with such a group does not start."""
    existing = {group.gr_name for group in grp.getgrall()}
    return [drop_in.group for drop_in in selected if drop_in.group not in existing]


def unit_files(program: str, selected: list[DropIn], has_socket: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of each unit file of a program.

    Args:
        program: `node` or `server`.
        selected: Drop-ins for its unit.
        has_socket: True if systemd opens port 80 for it.
    """
    unit = f"pigeonpost-{program}.service"
    yield f"{UNITS}/{unit}", read_program_file(f"deploy/{unit}")
    for drop_in in selected:
        yield f"{UNITS}/{unit}.d/{drop_in.name}", read_program_file(f"deploy/{unit}.d/{drop_in.name}")
    if has_socket:
        yield f"{UNITS}/{SOCKET}", read_program_file(f"deploy/{SOCKET}")


def write_for_all(path: str, content: bytes) -> None:
    """Write `content` to the file at `path`, and create its folders. All users may read them.

    Raises:
        DiskError: The file cannot be written.
    """
    make_folder_for_all(os.path.dirname(path))
    replace_file(path, content, 0o644)


def make_folder_for_all(path: str) -> None:
    """Create the folder at `path` and its parent folders. All users may read them, regardless of the umask."""
    if not os.path.isdir(path):
        make_folder_for_all(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def is_installed_here(layout: Layout) -> bool:
    """Return True if this process runs the program in /opt of the machine with this `layout`."""
    return os.path.realpath(FOLDER) == os.path.realpath(layout.path(PROGRAM))


def copy_program(layout: Layout) -> int:
    """Copy the files of this program to /opt of the machine with this `layout`, in place of an earlier version.

    Complete folders are replaced, so that no module of an earlier version remains. Files of the user are kept.
    If the copy is interrupted, the next call completes it.

    Returns:
        The number of files copied, or 0 if this version is installed already.
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
    os.sync()  # before the renames: after a power failure, a renamed file could otherwise be empty
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
    """Return True if the folder has all files of this version, and none of an earlier version."""
    expected = dict(program_files())
    present = {name for name in expected if "/" not in name and os.path.isfile(os.path.join(target, name))}
    for top in {name.partition("/")[0] for name in expected if "/" in name}:
        for folder, folders, names in os.walk(os.path.join(target, top)):
            folders[:] = [name for name in folders if name != "__pycache__"]
            present.update(os.path.relpath(os.path.join(folder, name), target) for name in names)
    unfinished = [name for name in (_NEW, _OLD) if os.path.exists(os.path.join(target, name))]
    if present != set(expected) or _former(target) or unfinished:
        return False
    return all(read(os.path.join(target, name)) == content for name, content in expected.items())


def read(path: str) -> bytes:
    """Return the content of the file at `path`."""
    with open(path, "rb") as file:
        return file.read()


def _compile(folder: str, target: str) -> None:
    """Compile the modules of a folder that will be renamed to `target`.

    The services may not write compiled files, and without them each start on a Pi Zero would take seconds longer.
    """
    prefix, sys.pycache_prefix = sys.pycache_prefix, None  # the service does not use PYTHONPYCACHEPREFIX of root
    try:
        compileall.compile_dir(folder, quiet=2, stripdir=folder, prependdir=target)
    finally:
        sys.pycache_prefix = prefix


def _former(target: str) -> list[str]:
    """Return the modules and packages that an earlier version, without the package `pigeonpost`, left at the root."""
    return [
        name for name in _FORMER
        if os.path.isfile(os.path.join(target, name)) or os.path.exists(os.path.join(target, name, "__init__.py"))
    ]  # fmt: skip


def remove_program(layout: Layout) -> list[str]:
    """Delete the files of this program from /opt of the machine with this `layout`.

    Returns:
        The names of the remaining files, which belong to the user.
    """
    target = layout.path(PROGRAM)
    if not os.path.isdir(target):
        return []
    names = {name.partition("/")[0] for name, _ in program_files()} | {"__pycache__"}
    for name in names.intersection(os.listdir(target)):
        path = os.path.join(target, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    remaining = sorted(os.listdir(target))
    if not remaining:
        os.rmdir(target)
    return remaining
