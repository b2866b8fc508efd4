"""Move of data from the folder of a program that was started by hand to the data folder of its service.

The data is copied to a new folder next to the target and synced. One rename turns the new folder into the target, and
then the source is deleted. If a run is killed, the next run continues: the file `.moved-from` in the target names the
source and its files.
Errors: InUse while a program uses the data; Failed if the target already has data, or the source has changed since it
was copied; DiskError.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pigeonpost.cli.contract import Failed
from pigeonpost.core.data_folder import (
    COUNTERS,
    DATABASE,
    LINK_CERTIFICATE,
    NAMES,
    OUTBOX,
    OUTBOX_LOCK,
    PI_ID,
    RUNNING,
    SERVER_LOCK,
)
from pigeonpost.core.errors import DiskError
from pigeonpost.core.files import lock_data_dir, sync_folder

_MARK = ".moved-from"
_UNFINISHED = ".moving"  # suffix of the new folder next to the target
_LOCKS = {"node": OUTBOX_LOCK, "server": SERVER_LOCK}
_NODE_NAMES = (LINK_CERTIFICATE, PI_ID, COUNTERS)
_RUN_FILES = (OUTBOX_LOCK, SERVER_LOCK, RUNNING)

Files = dict[str, list[int]]  # path relative to the data folder -> size in bytes, modification time in ns


class Move(NamedTuple):
    """Move of the data of one program.

    Attributes:
        source: Absolute path of the folder from which the data is moved.
        target: Absolute path of the data folder of the service, without symbolic links.
        lock: Name of the program's lock file.
    """

    source: str
    target: str
    lock: str

    def files(self) -> Files:
        """Return the files of the program that are in the source now."""
        found = {}
        for path in _paths(self.source, _entries(self.source, self.lock)):
            status = os.stat(path, follow_symlinks=False)
            found[os.path.relpath(path, self.source)] = [status.st_size, status.st_mtime_ns]
        return found


def check_move(program: str, source: str, target: str) -> Move:
    """Check that the data can be moved, lock it until this process ends, and return the move.

    Args:
        program: `node` or `server`.
        source: Data folder of the program as it was started by hand. It may also contain the data of the other program.
        target: Data folder of the service.

    Raises:
        Failed: There is no data to move, or the target already has data.
        InUse: A program uses the data.
    """
    move = Move(os.path.abspath(source), os.path.realpath(target), _LOCKS[program])
    if move.target == os.path.realpath(source):
        raise Failed(f"{source} is already the data folder of the service: there is nothing to move")
    main = os.path.join(move.source, OUTBOX if program == "node" else DATABASE)
    is_copied = _was_copied(move)
    if not os.path.exists(main) and not is_copied:
        raise Failed(f"{main} does not exist: there is nothing to move (--data DIR names another folder)")
    if os.path.isdir(move.source):
        lock_data_dir(os.path.join(move.source, move.lock))
    existing = sorted(os.listdir(move.target)) if os.path.isdir(move.target) else []
    if existing and not is_copied:
        raise Failed(
            f"{move.target} already contains {existing[0]}, and the data of two folders is never merged: if you do not"
            f" need it, stop the service and rename the folder: sudo mv {move.target} {move.target}.old"
        )
    return move


def move_data(move: Move) -> int:
    """Execute a `move` that `check_move` has checked, and return the number of files.

    Raises:
        Failed: The source has changed since it was copied, or the disk has too little space.
        DiskError: The disk failed. No data is lost, and the move can be repeated.
    """
    try:
        if not _was_copied(move):
            _copy(move)
        count = len(_marked(move))
        for name in _entries(move.source, move.lock):
            path = os.path.join(move.source, name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        _remove_rest(move)
        os.unlink(os.path.join(move.target, _MARK))
    except OSError as error:
        raise DiskError(f"{error.filename or move.target}: {error.strerror}; no data is lost, try again") from error
    return count


def _remove_rest(move: Move) -> None:
    """Delete the lock file and running.json from the source, and the folder itself if it is then empty."""
    if not os.path.isdir(move.source):
        return  # an earlier run was killed just after it had deleted the folder
    names = (move.lock, RUNNING) if move.lock == SERVER_LOCK else (move.lock,)
    for name in set(names).intersection(os.listdir(move.source)):
        os.unlink(os.path.join(move.source, name))
    if not os.listdir(move.source):
        os.rmdir(move.source)


def _entries(source: str, lock: str) -> Sequence[str]:
    """Return the names of the files and folders in a data folder that belong to the program with this lock."""
    is_node = lock == OUTBOX_LOCK
    names = tuple(name for name in NAMES if name != ".")  # hidden files are unfinished work
    found = []
    for name in sorted(os.listdir(source)) if os.path.isdir(source) else ():
        is_of_node = name.startswith("outbox.") or name in _NODE_NAMES
        if is_of_node == is_node and name.startswith(names) and name not in _RUN_FILES:
            found.append(name)
    return found


def _paths(source: str, names: Sequence[str]) -> Iterator[str]:
    """Yield the paths of all files in these files and folders."""
    for name in names:
        path = os.path.join(source, name)
        if not os.path.isdir(path):
            yield path
        for folder, _, files in os.walk(path):
            yield from (os.path.join(folder, file) for file in files)


def _copy(move: Move) -> None:
    files, unfinished = move.files(), move.target + _UNFINISHED
    need, free = sum(size for size, _ in files.values()), shutil.disk_usage(os.path.dirname(move.target)).free
    if need > free:
        raise Failed(f"{os.path.dirname(move.target)} has {free >> 20} MiB free, but the data needs {need >> 20} MiB")
    shutil.rmtree(unfinished, ignore_errors=True)
    os.mkdir(unfinished, 0o700)
    for name in _entries(move.source, move.lock):
        path, copy = os.path.join(move.source, name), os.path.join(unfinished, name)
        if os.path.isdir(path):
            shutil.copytree(path, copy, symlinks=True)
        else:
            shutil.copy2(path, copy, follow_symlinks=False)
    with open(os.path.join(unfinished, _MARK), "w", encoding="utf-8") as file:
        json.dump({"from": move.source, "files": files}, file)
    _sync(unfinished)
    if os.path.isdir(move.target):
        os.rmdir(move.target)  # check_move has found it empty
    os.rename(unfinished, move.target)
    sync_folder(move.target)


def _sync(top: str) -> None:
    """Sync a folder and all its content to the disk."""
    for folder, _, names in os.walk(top):
        for path in (*(os.path.join(folder, name) for name in names), folder):
            if not os.path.islink(path):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _marked(move: Move) -> Files:
    """Return the files that were copied to the target, or an empty dict if it is not a copy of this source."""
    try:
        with open(os.path.join(move.target, _MARK), encoding="utf-8") as file:
            mark = json.load(file)
    except FileNotFoundError:
        return {}
    return dict(mark["files"]) if mark["from"] == move.source else {}


def _was_copied(move: Move) -> bool:
    """Return True if the target is a copy of this source. Some files of the source may have been deleted already.

    Raise Failed if the source has changed since it was copied.
    """
    copied = _marked(move)
    changed = [name for name, now in move.files().items() if copied and copied.get(name) != now]
    if changed:
        raise Failed(
            f"{move.source}/{changed[0]} has changed since it was copied to {move.target}: both folders have been used;"
            f" decide which one to keep; to keep the second one, delete {move.target}/{_MARK}"
        )
    return bool(copied)
