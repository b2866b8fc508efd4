"""Commands `backup`, `restore` and `verify` for the data of a server.

    python3 control.py backup /mnt/usb/pigeonpost.tar        while the server is running
    python3 control.py verify /mnt/usb/pigeonpost.tar        check that the backup is unchanged
    python3 control.py restore /mnt/usb/pigeonpost.tar       while no server is running

Errors: Failed, if the data is damaged or the disk fails. An existing backup then stays unchanged, and nothing is
restored.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pigeonpost.auth.api_tokens import read_api_token
from pigeonpost.auth.tokens import read_replaced, read_token
from pigeonpost.auth.users import read_user
from pigeonpost.cli.contract import Bar, Command, Context, Failed, open_read_only, require_store
from pigeonpost.core.clock import Clock
from pigeonpost.core.data_folder import (
    API_TOKENS,
    BEFORE_RESTORE,
    COPY,
    DATABASE,
    FILES,
    LOGS,
    PI_IDS,
    REPLACED_TOKENS,
    SERVER_LOCK,
    TOKENS,
    USERS,
)
from pigeonpost.core.errors import DiskError, InUse, NotStored, SettingsError, StoreDamaged
from pigeonpost.core.files import give_to_owner, is_device, lock_data_dir, make_folder, replace_file, sync_folder
from pigeonpost.core.format import counted
from pigeonpost.server import backup as server_backup
from pigeonpost.server.backup_file import contents_of, contents_text, make_backup_file
from pigeonpost.server.work_folder import work_folder
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv import checksums
from pigeonpost.storage.csv.format import log_name
from pigeonpost.storage.csv.verify import rebuild_log, verify_logs
from pigeonpost.storage.sqlite.migration import migrate
from pigeonpost.storage.sqlite.schema import VERSION
from pigeonpost.storage.sqlite.store import SqliteStore

_STAGING = ".restoring"


# ------------------------------------------------------------------------------------------------------- backup


def _backup(context: Context) -> int:
    """Write a backup of all data of the server to FILE. The server may be running.

    If FILE ends in .sqlite3, the backup contains the database only. Otherwise it is a tar file of the database, logs,
    uploaded files, tokens, API tokens and users: it contains secrets. If FILE is a folder, the backup gets a name with
    the date and time. An existing FILE is replaced only after the new backup has been checked.
    """
    data = context.data
    _require_sqlite(context)
    target = _target(context.arguments.file, data)
    with _progress_bars() as progress, _errors_as_failed(target):
        try:
            about = make_backup_file(data, target, f".{os.path.basename(target)}.making", progress)
        except server_backup.BadBackup as error:
            *faults, text = str(error).splitlines()
            for fault in faults:
                print(fault)
            raise Failed(text) from None
    print(f"{target}: {about}; {counted(os.path.getsize(target), 'byte')}, checked")
    return 0


def _target(path: str, data: str) -> str:
    """Return the absolute path of the backup file. Raise SettingsError if it cannot be written there."""
    target = os.path.abspath(path)
    if os.path.isdir(target):
        target = os.path.join(target, time.strftime("pigeonpost-%Y-%m-%d_%H%M%S.tar"))
    if is_device(target):
        raise SettingsError(f"{target} is not a regular file: name another one")
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise SettingsError(f"{folder} is not a folder")
    inside = os.path.join(os.path.realpath(data), "")
    if os.path.join(os.path.realpath(folder), "").startswith(inside):
        raise SettingsError(f"{path} is in the data folder, and would be lost with it: choose a file on another disk")
    return target


# ------------------------------------------------------------------------------------------------------ restore


def _restore(context: Context) -> int:
    """Restore the data of a server from a backup. Stop the server first.

    The existing data is moved to a new folder inside the data folder. Samples taken after the backup are sent again by
    the nodes that still have them. If FILE is tokens.json.bak, users.json.bak or a similar copy, only that file is
    restored; the server may be running.
    """
    data, file = context.data, context.arguments.file
    if os.path.basename(file).removesuffix(COPY) in _SMALL_FILES and file.endswith(COPY):
        return _restore_copy(data, file)
    if context.settings["store", "postgres"]:
        raise SettingsError(_ELSEWHERE)
    try:
        lock = lock_data_dir(os.path.join(data, SERVER_LOCK))
    except InUse as error:
        raise Failed(f"the server is running ({error}): stop it, then restore again") from None
    try:
        with _progress_bars() as progress, _errors_as_failed(data), work_folder(data, _STAGING) as staging:
            names = _unpack(file, staging, progress)
            aside = _put_in_place(data, staging, names)
        with contextlib.closing(SqliteStore(data, look_only=True)) as store:
            # The database has been checked already. If the backup has no logs, they were written from the database, so
            # only their checksums are checked.
            faults = list(_log_faults(store, data, with_rows=_has_logs(names)))
    finally:
        os.close(lock)
    for fault in faults:
        print(fault)
    print(f"{data}: {contents_of(data)}")
    _print_previous_data(aside)
    print(
        "Start the server again. The nodes then send the samples that they have taken since the backup.",
        file=sys.stderr,
    )
    return 1 if faults else 0


def _print_previous_data(aside: str) -> None:
    print(f"The previous data is in {aside}." if aside else "There was no previous data.", file=sys.stderr)


def _restore_copy(data: str, file: str) -> int:
    """Restore a small file from its copy `file`. Raise Failed if the copy is invalid, too."""
    name = os.path.basename(file).removesuffix(COPY)
    what, check = _SMALL_FILES[name]
    path = os.path.join(data, name)
    try:
        with open(file, "rb") as copy:
            content = copy.read()
        count = len({entry: check(value) for entry, value in json.loads(content).items()})
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Failed(
            f"{file} is not a valid {what} either: nothing was changed; a backup may contain a valid one"
        ) from error
    with _errors_as_failed(data):
        aside = _move_aside(data, [name])
        replace_file(path, content)
    print(f"{path}: restored, a {what} with {counted(count, 'entry', 'entries')}")
    _print_previous_data(aside)
    return 0


def _unpack(file: str, staging: str, progress: server_backup.Progress) -> list[str]:
    """Unpack a backup into `staging`, check it, and return the names of its files. Raise Failed or BadBackup."""
    if not os.path.isfile(file):
        raise SettingsError(f"{file}: the file does not exist")
    if server_backup.is_database(file):
        server_backup.copy_database(file, os.path.join(staging, DATABASE), progress)
        names = [DATABASE]
    else:
        names = server_backup.unpack(file, staging, progress)
    if server_backup.version_of(staging) == 0:
        raise server_backup.BadBackup(f"{file}: this is the database of another program")
    if server_backup.version_of(staging) < VERSION:
        migrate(os.path.join(staging, DATABASE), lambda done, total: progress("conversion", done, total))
    _refuse_faults(staging, "nothing was changed")
    return names


def _put_in_place(data: str, staging: str, names: Sequence[str]) -> str:
    """Move the existing data aside, and the files in `staging` into the data folder.

    The database is moved away first, as one file, and the new one is moved in last. So at no time can a server open
    part of a database, or a database with the WAL of another one. A restore that is interrupted here can be repeated.

    Returns:
        The folder with the previous data, or an empty string if there was none.
    """
    if not _has_logs(names):
        os.makedirs(os.path.join(staging, LOGS), exist_ok=True)
        with contextlib.closing(SqliteStore(staging)) as store:
            clock = Clock()
            rebuild_log(os.path.join(staging, LOGS), log_name(clock.wall_ms()), store, clock)
    own = [name for name in server_backup.KEPT if name in names]
    server_backup.fold_in_wal(os.path.join(data, DATABASE))
    aside = _move_aside(
        data, [DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", LOGS, *own, *(f"{name}{COPY}" for name in own)]
    )
    for name in names:
        if name.startswith(f"{FILES}/") and not os.path.lexists(os.path.join(data, name)):
            make_folder(os.path.join(data, FILES))
            _place(staging, data, name)
    for name in own:  # its copy must be new, too: a file that is damaged later is repaired from the copy
        with open(os.path.join(staging, name), "rb") as file:
            replace_file(os.path.join(data, f"{name}{COPY}"), file.read())
    for name in [LOGS, *own, DATABASE]:
        _place(staging, data, name)
    return aside


def _has_logs(names: Sequence[str]) -> bool:
    return any(name.startswith(f"{LOGS}/") for name in names)


def _move_aside(data: str, names: Sequence[str]) -> str:
    """Move files of the data folder to a new folder inside it, and return its path. Return "" if none exists."""
    existing = [name for name in names if os.path.lexists(os.path.join(data, name))]
    if not existing:
        return ""
    first = aside = os.path.join(data, f"{BEFORE_RESTORE}-{time.strftime('%Y-%m-%d_%H%M%S')}")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = f"{first}_{number}"
    os.mkdir(aside, 0o700)
    give_to_owner(aside)
    for name in existing:
        os.rename(os.path.join(data, name), os.path.join(aside, name))
    sync_folder(os.path.join(aside, DATABASE))
    return aside


def _place(staging: str, data: str, name: str) -> None:
    """Move a file, or a folder of files, from `staging` into the data folder."""
    path = os.path.join(staging, name)
    for inner in os.listdir(path) if os.path.isdir(path) else ():
        _give(os.path.join(path, inner), data)
    _give(path, data)
    os.rename(path, os.path.join(data, name))
    sync_folder(os.path.join(data, name))


def _give(path: str, data: str) -> None:
    """Give a file to the owner of the data folder: root may run a restore for the user of the server."""
    if os.geteuid() == 0:
        owner = os.stat(data)
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


# ------------------------------------------------------------------------------------------------------- verify


def _verify(context: Context) -> int:
    """Check all stored data, or a backup, and print one line per fault.

    The check covers the database, sequence numbers and gaps, and the checksums of closed logs. If no server is running,
    each row of the logs is compared with the database, too.
    """
    data, file = context.data, context.arguments.file
    if file:
        with (
            _progress_bars() as progress,
            _errors_as_failed(file),
            work_folder(data, f"{_STAGING}-{os.getpid()}") as staging,
        ):
            _unpack(os.path.abspath(file), staging, progress)
            print(f"{file}: {contents_of(staging)}")
        return 0
    open_read_only(context).close()
    try:
        lock = lock_data_dir(os.path.join(data, SERVER_LOCK))
    except InUse:
        lock = -1
        print(
            "the server is running, so the logs are not compared with the store (stop it for a full check)",
            file=sys.stderr,
        )
    try:
        with contextlib.closing(open_read_only(context)) as store:
            faults = list(_faults(store, data, with_rows=lock >= 0))
            about = contents_text(store) if not faults else ""
    finally:
        if lock >= 0:
            os.close(lock)
    for fault in faults:
        print(fault)
    if not faults:
        print(about)
    return 1 if faults else 0


def _faults(store: Store, data: str, with_rows: bool) -> Iterator[str]:
    """Yield the faults of the store and the logs. `with_rows` also compares each row of the logs with the store."""
    try:
        yield from store.verify()
    except StoreDamaged as error:
        yield str(error)
    yield from _log_faults(store, data, with_rows)


def _log_faults(store: Store, data: str, with_rows: bool) -> Iterator[str]:
    logs = os.path.join(data, LOGS)
    yield from checksums.faults(logs)
    if with_rows:
        try:
            yield from verify_logs(logs, store)
        except StoreDamaged as error:
            yield f"the logs are not compared with the store, which cannot be read completely: {error}"


# ------------------------------------------------------------------------------------------------- shared helpers


_ELSEWHERE = "the samples are in PostgreSQL: use pg_dump and pg_restore, and copy server.id, logs/ and files/ by hand"


def _require_sqlite(context: Context) -> None:
    if context.settings["store", "postgres"]:
        raise SettingsError(_ELSEWHERE)
    require_store(context)


def _refuse_faults(folder: str, effect: str) -> None:
    """Print the faults of a restored folder. Raise Failed with the `effect` if there are any."""
    faults = list(server_backup.faults_of(folder))
    for fault in faults:
        print(fault)
    if faults:
        raise Failed(f"the database is damaged: {effect}")


@contextlib.contextmanager
def _errors_as_failed(what: str) -> Iterator[None]:
    """Turn errors of the disk and of SQLite into Failed; `what` names the file if the error does not."""
    try:
        yield
    except sqlite3.Error as error:
        raise Failed(f"{what}: {error}") from error
    except (DiskError, NotStored) as error:
        raise Failed(str(error)) from error
    except OSError as error:
        raise Failed(f"{error.filename or what}: {error.strerror or error}") from error


@contextlib.contextmanager
def _progress_bars() -> Iterator[server_backup.Progress]:
    """Yield a function that shows one progress bar per stage, on a terminal only."""
    bars: dict[str, Bar] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            for bar in bars.values():
                bar.end()
            bars[stage] = Bar(stage)
        bars[stage].show(done, total)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.end()


# Small files with their description, and the function that checks one entry.
_SMALL_FILES: Mapping[str, tuple[str, Callable[[Any], object]]] = {
    TOKENS: ("list of tokens", read_token),
    API_TOKENS: ("list of API tokens", read_api_token),
    REPLACED_TOKENS: ("list of replaced tokens", read_replaced),
    USERS: ("list of users", read_user),
    PI_IDS: ("list of Pi ids", lambda entry: entry["node"]),
}
_FILE = {"metavar": "FILE"}
COMMANDS: Mapping[str, Command] = {
    "backup": Command("back up all data to FILE (.sqlite3: the database only); the server may be running",
                      [("file", {**_FILE, "help": "file or folder to write to"})], _backup),
    "restore": Command("restore a backup (stop the server first), or tokens.json.bak or users.json.bak",
                       [("file", {**_FILE, "help": "backup to restore"})], _restore),
    "verify": Command("check all stored data, or a backup, for damage",
                      [("file", {**_FILE, "nargs": "?", "help": "backup to check (default: the data folder)"})],
                      _verify),
}  # fmt: skip
