"""Temporary folder in which a backup is made or extracted.

Errors: DiskError, with the reason why the folder cannot be used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from pigeonpost.core.errors import DiskError, InUse
from pigeonpost.core.files import lock_data_dir, make_folder


@contextlib.contextmanager
def work_folder(parent: str, name: str) -> Iterator[str]:
    """Create the folder `name` in `parent` for the duration of the block, and yield its path.

    Files that a killed run has left there are removed first. Symbolic links are not followed, because root may use a
    folder of another user. New files can only be read by their owner while the block is running.

    Raises:
        DiskError: The folder cannot be used, or another process uses it.
    """
    path = os.path.join(parent, name)
    if os.path.islink(path):
        raise DiskError(f"{path} is a symbolic link, but must be a folder that this command creates: remove the link")
    try:
        make_folder(parent)
        os.makedirs(path, 0o700, exist_ok=True)  # owned by this user, even if `parent` belongs to another one
    except OSError as error:
        raise DiskError(f"cannot write to {parent}: {error.strerror}") from error
    try:
        lock = lock_data_dir(os.path.join(path, "lock"))
    except InUse as error:
        raise DiskError(f"another command is using the same folder: {error}") from None
    except DiskError as error:
        raise DiskError(f"cannot write to {parent}: {getattr(error.__cause__, 'strerror', error)}") from error
    try:
        _empty(path)
        umask = os.umask(0o077)
        try:
            yield path
        finally:
            os.umask(umask)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _empty(path: str) -> None:
    for name in os.listdir(path):
        if name != "lock":
            child = os.path.join(path, name)
            is_folder = os.path.isdir(child) and not os.path.islink(child)
            shutil.rmtree(child) if is_folder else os.unlink(child)
