"""Durable files: sync of a directory, atomic replacement, the lock of a data folder, the type of a file system.

Errors: InUse when another process holds the lock; DiskError. Sources: fsync(2), flock(2), write(2), proc(5).
"""

from __future__ import annotations

import fcntl
import os

from pigeonpost.core.errors import DiskError, InUse


def sync_folder(path: str) -> None:
    """Make the directory entry of `path` durable: a new or renamed file is on the disk only then (fsync(2), Notes)."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock_data_dir(path: str) -> int:
    """Lock the file `path` for the life of this process. Returns its descriptor, which need not be closed.

    Raises InUse when another process holds it, DiskError when the folder cannot be written, or `path` is a symbolic
    link: root, in the folder of another user, would empty the file it leads to.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}; choose a folder that can be written with --data DIR") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "?"
        os.close(fd)
        raise InUse(f"{path} is held by process {holder}: two programs on the same data would spoil it") from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        pass  # who holds it is for people to read; on a full disk the lock holds all the same
    return fd


def kind_of_filesystem(folder: str) -> str:
    """Return the type of the file system of `folder`, as /proc/self/mounts has it; empty where it is unknown."""
    place, kind = os.path.realpath(folder), ""
    longest = 0
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                _, point, found, *_ = line.split(" ")
                point = point.replace("\\040", " ")
                if (place + "/").startswith(point.rstrip("/") + "/") and len(point) >= longest:
                    longest, kind = len(point), found
    except OSError:
        pass  # not Linux
    return kind


def write_all(fd: int, content: bytes) -> None:
    """Write all of `content`. Raises OSError."""
    left = memoryview(content)
    while left:  # a disk that fills up takes a part, and reports the error at the next write only (write(2))
        left = left[os.write(fd, left) :]


def replace_file(path: str, content: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `content` atomically and durably. Raises DiskError; then it is as before."""
    new = f"{path}.new"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            os.fchmod(fd, mode)
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, path)
        sync_folder(path)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
