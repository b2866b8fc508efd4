"""Moves the data of a program that ran by hand to where its service keeps it, so that a kill at any moment loses none.

Everything is copied to a folder beside the target and synced; one rename makes that the target; then the source is
deleted. A second run goes on where the first was killed: a mark in the target names the source and its files.
Errors: InUse while a program works on the data; Failed where the target has data already, or the source has changed
after it was copied; DiskError.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pigeonpost.cli.contract import Failed
from pigeonpost.core.data_folder import (
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
_UNFINISHED = ".moving"  # what the name of the folder beside the target ends with
_LOCKS = {"node": OUTBOX_LOCK, "server": SERVER_LOCK}
_NODE_NAMES = (LINK_CERTIFICATE, PI_ID)
_OF_A_RUN = (OUTBOX_LOCK, SERVER_LOCK, RUNNING)

Files = dict[str, list[int]]  # path from the data folder -> size in bytes, time of its last change in ns


class Move(NamedTuple):
    """The data of one program, and where it goes. Both folders as absolute paths, the target without symbolic links."""

    source: str
    target: str
    lock: str

    def files(self) -> Files:
        """Return what the source has of the program now."""
        found = {}
        for path in _paths(self.source, _entries(self.source, self.lock)):
            status = os.stat(path, follow_symlinks=False)
            found[os.path.relpath(path, self.source)] = [status.st_size, status.st_mtime_ns]
        return found


def check_move(program: str, source: str, target: str) -> Move:
    """Check that the data can be moved, and lock it for the life of this process. Raises Failed and InUse.

    program  node or server
    source   the folder in which the program ran by hand; a folder of both has the data of each
    target   the folder of the service
    """
    move = Move(os.path.abspath(source), os.path.realpath(target), _LOCKS[program])
    if move.target == os.path.realpath(source):
        raise Failed(f"{source} is where the service keeps its data: there is nothing to move")
    main = os.path.join(move.source, OUTBOX if program == "node" else DATABASE)
    is_copied = _was_copied(move)
    if not os.path.exists(main) and not is_copied:
        raise Failed(f"{main} is not there: there is nothing to move (--data DIR names another folder)")
    if os.path.isdir(move.source):
        lock_data_dir(os.path.join(move.source, move.lock))
    there = sorted(os.listdir(move.target)) if os.path.isdir(move.target) else []
    if there and not is_copied:
        raise Failed(
            f"{move.target} has {there[0]} already, and data is never mixed: if it is not needed, stop the service and"
            f" put that aside, as sudo mv {move.target} {move.target}.old"
        )
    return move


def move_data(move: Move) -> int:
    """Move what `check_move` has checked. Returns how many files there were. Raises Failed and DiskError."""
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
        raise DiskError(f"{error.filename or move.target}: {error.strerror}; nothing is lost, try again") from error
    return count


def _remove_rest(move: Move) -> None:
    """Remove what a run leaves, and the folder, where nothing else is in it."""
    if not os.path.isdir(move.source):
        return  # the last run was killed just after that
    of_the_run = (move.lock, RUNNING) if move.lock == SERVER_LOCK else (move.lock,)
    for name in set(of_the_run).intersection(os.listdir(move.source)):
        os.unlink(os.path.join(move.source, name))
    if not os.listdir(move.source):
        os.rmdir(move.source)


def _entries(source: str, lock: str) -> Sequence[str]:
    """Return the names in a data folder that are of the program with this lock."""
    is_node = lock == OUTBOX_LOCK
    names = tuple(name for name in NAMES if name != ".")  # hidden files are unfinished work
    found = []
    for name in sorted(os.listdir(source)) if os.path.isdir(source) else ():
        is_of_node = name.startswith("outbox.") or name in _NODE_NAMES
        if is_of_node == is_node and name.startswith(names) and name not in _OF_A_RUN:
            found.append(name)
    return found


def _paths(source: str, names: Sequence[str]) -> Iterator[str]:
    """Yield every file of these entries."""
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
        raise Failed(f"{os.path.dirname(move.target)} has {free >> 20} MiB free, and the data takes {need >> 20} MiB")
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
        os.rmdir(move.target)  # it is empty
    os.rename(unfinished, move.target)
    sync_folder(move.target)


def _sync(top: str) -> None:
    """Make a folder durable with everything in it."""
    for folder, _, names in os.walk(top):
        for path in (*(os.path.join(folder, name) for name in names), folder):
            if not os.path.islink(path):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _marked(move: Move) -> Files:
    """Return the files that were copied to the target; none where it was not made of this source."""
    try:
        with open(os.path.join(move.target, _MARK), encoding="utf-8") as file:
            mark = json.load(file)
    except FileNotFoundError:
        return {}
    return dict(mark["files"]) if mark["from"] == move.source else {}


def _was_copied(move: Move) -> bool:
    """Return True if the target was made of this source, which may be deleted in part. Raises Failed if it changed."""
    copied = _marked(move)
    changed = [name for name, now in move.files().items() if copied and copied.get(name) != now]
    if changed:
        raise Failed(
            f"{move.source}/{changed[0]} has changed since it was copied to {move.target}: a program ran on both;"
            f" look which of them to keep, and delete {move.target}/{_MARK} if it is that one"
        )
    return bool(copied)
