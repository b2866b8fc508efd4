"""Temporary folder in which a backup is made, or laid out.

Errors: DiskError, with what keeps it from being used.
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
    """Lend the empty folder `name` in `parent`, removed afterwards; also what a run that was killed has left in it.

    Nothing is followed or emptied through a symbolic link: root may work in a folder of somebody else. Files that are
    made meanwhile are for their owner alone.
    """
    path = os.path.join(parent, name)
    if os.path.islink(path):
        raise DiskError(f"{path} is a symbolic link, where a folder of this command's own should be: remove it")
    try:
        make_folder(parent)
        os.makedirs(path, 0o700, exist_ok=True)  # root's own, whosever the folder is that it is in
    except OSError as error:
        raise DiskError(f"{parent} cannot be written: {error.strerror}") from error
    try:
        lock = lock_data_dir(os.path.join(path, "lock"))
    except InUse as error:
        raise DiskError(f"another command works on the same: {error}") from None
    except DiskError as error:
        raise DiskError(f"{parent} cannot be written: {getattr(error.__cause__, 'strerror', error)}") from error
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
    for left in os.listdir(path):
        if left != "lock":
            whole = os.path.join(path, left)
            is_folder = os.path.isdir(whole) and not os.path.islink(whole)
            shutil.rmtree(whole) if is_folder else os.unlink(whole)
