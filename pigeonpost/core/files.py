"""What several files need of a disk: folders that are synced, and that one process has to itself.

Runs on: node and server.  Reached from: ring, stores, csvbuffer, the programs.  Hands on to: the kernel.
Threads: none.  Errors: InUse, DiskError.
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
    """Hold the lock file `path` as long as this process lives; its descriptor, which nobody needs to close.

    Raises InUse when another process holds it, DiskError when the folder cannot be written, or `path` is a symbolic
    link: root, who works in a folder of somebody else, would empty the file it leads to.
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
    """The type of the file system that `folder` is on, as /proc/self/mounts has it; empty where that cannot be told."""
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


def replace_file(path: str, content: bytes, mode: int = 0o644) -> None:
    """Make `path` hold `content`: wholly, or as before, whatever happens meanwhile. Raises DiskError."""
    new = f"{path}.new"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            os.fchmod(fd, mode)
            left = memoryview(content)
            while left:  # a disk that fills up takes a part, and says so only when asked again (write(2))
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, path)
        sync_folder(path)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
