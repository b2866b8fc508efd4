"""Durable files: sync of a directory, atomic replacement, the lock of a data folder, the type of a file system; owners.

Whoever runs a program, what it makes in a data folder belongs to the owner of that folder: after root has run one
there, the owner's own still works. Errors: InUse when another process holds the lock; DiskError. Sources: fsync(2),
flock(2), open(2), write(2), proc(5).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Iterator

from pigeonpost.core.data_folder import NAMES
from pigeonpost.core.errors import DiskError, InUse

log = logging.getLogger(__name__)


def sync_folder(path: str) -> None:
    """Make the directory entry of `path` durable: a new or renamed file is on the disk only then (fsync(2), Notes)."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def give_to_owner(path: str) -> None:
    """Give a file or folder that root has just made to the owner of the folder it is in. Raises OSError."""
    if os.geteuid() != 0:
        return
    owner = os.stat(os.path.dirname(path) or ".")
    if owner.st_uid == 0:
        return
    # The owner may put something else there meanwhile. O_PATH: closing it keeps SQLite's locks (see POSIX locks, fcntl)
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        made = os.fstat(fd)
        # A file's second name may be one that the owner has given to a file of root, for root to give it away.
        if made.st_uid == 0 and (stat.S_ISDIR(made.st_mode) or (stat.S_ISREG(made.st_mode) and made.st_nlink == 1)):
            os.chown(f"/proc/self/fd/{fd}", owner.st_uid, owner.st_gid)
    finally:
        os.close(fd)


def make_folder(path: str) -> None:
    """Make a folder that its owner alone may read, and those above it, where they are missing. Raises OSError."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return
    make_folder(os.path.dirname(path))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return  # made meanwhile; or it is no folder, which its use reports
    give_to_owner(path)


def close_to_others(folder: str) -> None:
    """Make a data folder one that its owner alone may read; at the start of a program. Raises DiskError.

    What was not made for this alone stays as it is, and the log names it.
    """
    try:
        make_folder(folder)
        status = os.stat(folder)
    except OSError as error:
        raise DiskError(f"{folder}: {error.strerror}; choose a folder that can be written with --data DIR") from error
    if not status.st_mode & 0o077:
        return
    why = _why_left_open(folder, status)
    if not why:
        try:
            os.chmod(folder, 0o700)
        except OSError as error:  # a file system without modes
            why = f"cannot be closed ({error.strerror})"
    if why:
        log.warning("%s %s, and other users of this machine may read it (remedy: chmod 700 %s)", folder, why, folder)
    else:
        log.info("%s could be read by other users of this machine; now by its owner alone (mode 0700)", folder)


def _why_left_open(folder: str, status: os.stat_result) -> str:
    """Say why a folder is not closed to others; empty: it is a data folder, and ours."""
    if os.path.ismount(folder):
        return "is mounted"
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_ISVTX | stat.S_IWOTH) or os.path.realpath(folder) == os.path.expanduser("~"):
        return "is not for Pigeonpost alone"
    # Of root it may be one that all programs need, like /opt.
    if os.geteuid() == 0 and not all(name.startswith(NAMES) for name in os.listdir(folder)):
        return "has other files than Pigeonpost's"
    return ""


def lock_data_dir(path: str) -> int:
    """Lock the file `path` for the life of this process. Returns its descriptor, which need not be closed.

    Raises InUse when another process holds it, DiskError when the folder cannot be written, or `path` is a symbolic
    link: root, in the folder of another user, would empty the file it leads to.
    """
    try:
        make_folder(os.path.dirname(path) or ".")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        give_to_owner(path)
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


@contextlib.contextmanager
def replacement_of(path: str) -> Iterator[str]:
    """Yield where to write a file that takes the place of `path`, atomically and durably, when the block ends. Where it
    raises, what it has written is removed, and `path` is as before. Raises OSError."""
    new = f"{path}.part"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        yield new
        fd = os.open(new, os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, path)
        sync_folder(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)


def replace_file(path: str, content: bytes, mode: int = 0o600, unfinished: str = ".new") -> None:
    """Replace `path` by `content` atomically and durably. Raises DiskError; then it is as before.

    unfinished  what the name of the file ends with until it is whole: programs that replace the same file at the same
                time take different ones
    """
    new = f"{path}{unfinished}"
    try:
        make_folder(os.path.dirname(path) or ".")
        # Not through a symbolic link: root, in the folder of another user, would overwrite what it leads to.
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(fd, mode)
            give_to_owner(new)
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, path)
        sync_folder(path)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
