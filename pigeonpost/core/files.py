"""Durable files: sync of a directory, atomic replacement, lock and access rights of a data folder, file system types.

Files in a data folder always belong to the owner of the folder, no matter which user runs a program. So the owner's
programs still work after root has run one there.

Errors: InUse if another process holds the lock; DiskError. Sources: fsync(2), flock(2), open(2), write(2), proc(5).
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
    """Make the directory entry of `path` durable.

    A new or renamed file is on the disk only after this (fsync(2), Notes).
    """
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def give_to_owner(path: str) -> None:
    """Change the owner of `path`, a file or folder that root just made, to the owner of its parent folder.

    Raises:
        OSError: The owner cannot be changed.
    """
    if os.geteuid() != 0:
        return
    owner = os.stat(os.path.dirname(path) or ".")
    if owner.st_uid == 0:
        return
    # O_NOFOLLOW, because the owner may replace the file at any time. O_PATH, because closing a normal descriptor would
    # release SQLite's locks (see POSIX locks, fcntl(2)).
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        made = os.fstat(fd)
        # A file with several hard links may be a file of root to which the owner of the folder has added a link.
        if made.st_uid == 0 and (stat.S_ISDIR(made.st_mode) or (stat.S_ISREG(made.st_mode) and made.st_nlink == 1)):
            os.chown(f"/proc/self/fd/{fd}", owner.st_uid, owner.st_gid)
    finally:
        os.close(fd)


def make_folder(path: str) -> None:
    """Create the folder `path`, readable by its owner only, and its missing parent folders.

    Raises:
        OSError: A folder cannot be created.
    """
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return
    make_folder(os.path.dirname(path))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return  # another program has just created it; if it is not a folder, its first use fails
    give_to_owner(path)


def close_to_others(folder: str) -> None:
    """Make a data folder readable by its owner only, at the start of a program.

    A folder that is not used by Pigeonpost alone is not changed; a warning is logged.

    Args:
        folder: The data folder. It is created if it is missing.

    Raises:
        DiskError: The folder cannot be created or read.
    """
    try:
        make_folder(folder)
        status = os.stat(folder)
    except OSError as error:
        raise DiskError(f"{folder}: {error.strerror}; choose a writable folder with --data DIR") from error
    if not status.st_mode & 0o077:
        return
    why = _why_left_open(folder, status)
    if not why:
        try:
            os.chmod(folder, 0o700)
        except OSError as error:  # a file system without access modes
            why = f"cannot be made private ({error.strerror})"
    if why:
        log.warning("%s %s, so other users of this machine may read it (remedy: chmod 700 %s)", folder, why, folder)
    else:
        log.info("%s was readable by other users of this machine; now only its owner can read it (mode 0700)", folder)


def _why_left_open(folder: str, status: os.stat_result) -> str:
    """Return the reason why a folder must not be made private, or an empty string if it is a private data folder."""
    if os.path.ismount(folder):
        return "is mounted"
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_ISVTX | stat.S_IWOTH) or os.path.realpath(folder) == os.path.expanduser("~"):
        return "is not used by Pigeonpost alone"
    # A folder of root may be one that all programs need, such as /opt.
    if os.geteuid() == 0 and not all(name.startswith(NAMES) for name in os.listdir(folder)):
        return "contains files of other programs"
    return ""


def lock_data_dir(path: str) -> int:
    """Lock the file `path` until this process ends. Return its file descriptor, which need not be closed.

    Raises:
        InUse: Another process holds the lock.
        DiskError: The folder is not writable, or `path` is a symbolic link. Links are refused because root could
            otherwise truncate the target of a link in another user's folder.
    """
    try:
        make_folder(os.path.dirname(path) or ".")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        give_to_owner(path)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}; choose a writable folder with --data DIR") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "?"
        os.close(fd)
        raise InUse(f"{path} is locked by process {holder}: only one program can use these data at a time") from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        pass  # the process id is only for error texts; on a full disk the lock works without it
    return fd


def kind_of_filesystem(folder: str) -> str:
    """Return the type of the file system of `folder`, from /proc/self/mounts, or an empty string if it is unknown."""
    path, kind = os.path.realpath(folder), ""
    longest = 0
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                _, point, found, *_ = line.split(" ")
                point = point.replace("\\040", " ")
                if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= longest:
                    longest, kind = len(point), found
    except OSError:
        pass  # not Linux
    return kind


def write_all(fd: int, content: bytes) -> None:
    """Write all of `content` to the file descriptor `fd`.

    Raises:
        OSError: The disk is full or faulty.
    """
    left = memoryview(content)
    while left:  # if the disk becomes full, write(2) writes a part, and only the next call reports the error
        left = left[os.write(fd, left) :]


def is_device(path: str) -> bool:
    """Return True if `path` is a device, a pipe or a socket, such as `/dev/stdout`: no file may replace it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    in_system = os.path.abspath(path).startswith(("/dev/", "/proc/")) and os.path.islink(path)
    return in_system or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextlib.contextmanager
def replacement_of(path: str) -> Iterator[str]:
    """Yield the path for a new file that replaces `path` atomically and durably at the end of the block.

    If the block raises an exception, the new file is deleted, and `path` is unchanged.

    Raises:
        DiskError: `path` is a device.
        OSError: The disk is full or faulty.
    """
    if is_device(path):
        raise DiskError(f"{path} is not a regular file: name another one")
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
    """Replace the file `path` atomically and durably. After an error the file is unchanged.

    Args:
        path: Path of the file.
        content: New content.
        mode: Access mode of the file.
        unfinished: Suffix of the temporary file. Programs that may replace the same file at the same time must use
            different ones.

    Raises:
        DiskError: The file cannot be written.
    """
    new = f"{path}{unfinished}"
    try:
        make_folder(os.path.dirname(path) or ".")
        # O_NOFOLLOW, because in another user's folder root must not overwrite the target of a symbolic link.
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
