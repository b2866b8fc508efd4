"""Commands for the data: backup, restore, verify.

    python3 control.py backup /mnt/usb/pigeonpost.tar        while the server runs
    python3 control.py verify /mnt/usb/pigeonpost.tar        is it unchanged?
    python3 control.py restore /mnt/usb/pigeonpost.tar       while no server runs

Errors: Failed, when something is wrong with the data or the disk: then an existing backup is unchanged, and nothing was
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
from pigeonpost.cli.contract import Bar, Command, Context, Failed, look, require_store
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
from pigeonpost.core.files import give_to_owner, lock_data_dir, make_folder, replace_file, sync_folder
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


def backup(context: Context) -> int:
    """Copy everything that the server keeps into FILE, while it runs. FILE is replaced only when the copy is checked.

    The database alone when FILE ends in .sqlite3; else a tar file of the database, logs, dropped files, tokens, API
    tokens and users: keep it as you keep passwords. A folder gets a new file, named by date and time.
    """
    data = context.data
    _require_sqlite(context)
    target = _target(context.arguments.file, data)
    with _showing() as progress, _failing(target):
        try:
            about = make_backup_file(data, target, f".{os.path.basename(target)}.making", progress)
        except server_backup.BadBackup as error:
            *faults, text = str(error).splitlines()
            for fault in faults:
                print(fault)
            raise Failed(text) from None
    print(f"{target}: {about}; {os.path.getsize(target):,} bytes, checked")
    return 0


def _target(said: str, data: str) -> str:
    """The whole path of the file that is to be made."""
    target = os.path.abspath(said)
    if os.path.isdir(target):
        target = os.path.join(target, time.strftime("pigeonpost-%Y-%m-%d_%H%M%S.tar"))
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise SettingsError(f"{folder} is no folder")
    inside = os.path.join(os.path.realpath(data), "")
    if os.path.join(os.path.realpath(folder), "").startswith(inside):
        raise SettingsError(f"{said} lies in the data folder, and would be lost with it: choose another place")
    return target


# ------------------------------------------------------------------------------------------------------ restore


def restore(context: Context) -> int:
    """Put back what a backup holds. No server may run. What is there is moved aside, into a folder of its own.

    Samples that came since the backup was made are brought again by the nodes, as far as they hold them.
    Of tokens.json.bak, users.json.bak and the like only that file is put back, also while a server runs.
    """
    data, file = context.data, context.arguments.file
    if os.path.basename(file).removesuffix(COPY) in _SMALL_FILES and file.endswith(COPY):
        return _restore_copy(data, file)
    if context.settings["store", "postgres"]:
        raise SettingsError(_ELSEWHERE)
    try:
        lock = lock_data_dir(os.path.join(data, SERVER_LOCK))
    except InUse as error:
        raise Failed(f"the server runs ({error}): stop it, then restore") from None
    try:
        with _showing() as progress, _failing(data), work_folder(data, _STAGING) as staging:
            names = _unpacked(file, staging, progress)
            aside = _put_in_place(data, staging, names)
        with contextlib.closing(SqliteStore(data, look_only=True)) as store:
            # The database was checked before. A log that was written from it is checked against its checksum.
            faults = list(_log_faults(store, data, with_rows=_has_logs(names)))
    finally:
        os.close(lock)
    for fault in faults:
        print(fault)
    print(f"{data}: {contents_of(data)}")
    print(f"What was there before is in {aside}." if aside else "There was nothing there before.", file=sys.stderr)
    print("Start the server: the nodes bring what they have taken since, by themselves.", file=sys.stderr)
    return 1 if faults else 0


def _restore_copy(data: str, file: str) -> int:
    """Put back the copy of a small file. Raises Failed for one that is no better than what it is to replace."""
    name = os.path.basename(file).removesuffix(COPY)
    what, check = _SMALL_FILES[name]
    path = os.path.join(data, name)
    try:
        with open(file, "rb") as copy:
            content = copy.read()
        count = len({entry: check(told) for entry, told in json.loads(content).items()})
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Failed(f"{file} is no {what} either: nothing was changed; a backup may have a good one") from error
    with _failing(data):
        aside = _move_aside(data, [name])
        replace_file(path, content)
    print(f"{path}: a {what} with {count} {'entry' if count == 1 else 'entries'}")
    print(f"What was there before is in {aside}." if aside else "There was nothing there before.", file=sys.stderr)
    return 0


def _unpacked(file: str, staging: str, progress: server_backup.Progress) -> list[str]:
    """Lay out a backup in `staging`, looked through; the names of what there is. Raises Failed, BadBackup."""
    if not os.path.isfile(file):
        raise SettingsError(f"{file}: there is no such file")
    if server_backup.is_database(file):
        server_backup.copy_database(file, os.path.join(staging, DATABASE), progress)
        names = [DATABASE]
    else:
        names = server_backup.unpack(file, staging, progress)
    if server_backup.version_of(staging) == 0:
        raise server_backup.BadBackup(f"{file}: is the database of another program")
    if server_backup.version_of(staging) < VERSION:
        migrate(os.path.join(staging, DATABASE), lambda done, total: progress("new format", done, total))
    _refuse_faults(staging, "nothing was changed")
    return names


def _put_in_place(data: str, staging: str, names: Sequence[str]) -> str:
    """Move what is there aside, and what was laid out to its place; where the former is now (empty: there was none).

    The database goes first, as one file, and comes last: so in no moment could a server take a half of it, or a WAL of
    another one. A restore that is interrupted here is repeated.
    """
    if not _has_logs(names):
        os.makedirs(os.path.join(staging, LOGS), exist_ok=True)
        with contextlib.closing(SqliteStore(staging)) as store:
            clock = Clock()
            rebuild_log(os.path.join(staging, LOGS), log_name(clock.wall_ms()), store, clock)
    own = [name for name in server_backup.KEPT if name in names]
    server_backup.fold_in_wal(os.path.join(data, DATABASE))
    gone = _move_aside(
        data, [DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", LOGS, *own, *(f"{name}{COPY}" for name in own)]
    )
    for name in names:
        if name.startswith(f"{FILES}/") and not os.path.lexists(os.path.join(data, name)):
            make_folder(os.path.join(data, FILES))
            _place(staging, data, name)
    for name in own:  # its copy: of it a later damage is mended, not of what was there before
        with open(os.path.join(staging, name), "rb") as file:
            replace_file(os.path.join(data, f"{name}{COPY}"), file.read())
    for name in [LOGS, *own, DATABASE]:
        _place(staging, data, name)
    return gone


def _has_logs(names: Sequence[str]) -> bool:
    return any(name.startswith(f"{LOGS}/") for name in names)


def _move_aside(data: str, names: Sequence[str]) -> str:
    there = [name for name in names if os.path.lexists(os.path.join(data, name))]
    if not there:
        return ""
    first = aside = os.path.join(data, f"{BEFORE_RESTORE}-{time.strftime('%Y-%m-%d_%H%M%S')}")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = f"{first}_{number}"
    os.mkdir(aside, 0o700)
    give_to_owner(aside)
    for name in there:
        os.rename(os.path.join(data, name), os.path.join(aside, name))
    sync_folder(os.path.join(aside, DATABASE))
    return aside


def _place(staging: str, data: str, name: str) -> None:
    """One file, or folder of files, to its place."""
    path = os.path.join(staging, name)
    for inner in os.listdir(path) if os.path.isdir(path) else ():
        _give(os.path.join(path, inner), data)
    _give(path, data)
    os.rename(path, os.path.join(data, name))
    sync_folder(os.path.join(data, name))


def _give(path: str, data: str) -> None:
    """Make it the property of whose folder it is in: root may restore for the server's user."""
    if os.geteuid() == 0:
        owner = os.stat(data)
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


# ------------------------------------------------------------------------------------------------------- verify


def verify(context: Context) -> int:
    """Look at everything that is stored, or at a backup; one line per fault.

    The database itself, marks and gaps, the sums of closed logs and, when no server runs, each row of the logs.
    """
    data, file = context.data, context.arguments.file
    if file:
        with _showing() as progress, _failing(file), work_folder(data, f"{_STAGING}-{os.getpid()}") as staging:
            _unpacked(os.path.abspath(file), staging, progress)
            print(f"{file}: {contents_of(staging)}")
        return 0
    look(context).close()
    try:
        lock = lock_data_dir(os.path.join(data, SERVER_LOCK))
    except InUse:
        lock = -1
        print(
            "the server runs, so the logs are not compared with the store (stop it to have that done)", file=sys.stderr
        )
    try:
        with contextlib.closing(look(context)) as store:
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
            yield f"the logs are not compared with the store, which cannot be read wholly: {error}"


# ------------------------------------------------------------------------------------------------- what they share


_ELSEWHERE = "the samples are in PostgreSQL, which has pg_dump and pg_restore; copy server.id, logs/ and files/ by hand"


def _require_sqlite(context: Context) -> None:
    if context.settings["store", "postgres"]:
        raise SettingsError(_ELSEWHERE)
    require_store(context)


def _refuse_faults(folder: str, so: str) -> None:
    faults = list(server_backup.faults_of(folder))
    for fault in faults:
        print(fault)
    if faults:
        raise Failed(f"the database is damaged: {so}")


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """A disk that does not do its part, in words."""
    try:
        yield
    except sqlite3.Error as error:
        raise Failed(f"{what}: {error}") from error
    except (DiskError, NotStored) as error:
        raise Failed(str(error)) from error
    except OSError as error:
        raise Failed(f"{error.filename or what}: {error.strerror or error}") from error


@contextlib.contextmanager
def _showing() -> Iterator[server_backup.Progress]:
    """Yield a function that shows one bar per stage, on a terminal."""
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


# What each should be, and how an entry of it is checked.
_SMALL_FILES: Mapping[str, tuple[str, Callable[[Any], object]]] = {
    TOKENS: ("list of tokens", read_token),
    API_TOKENS: ("list of API tokens", read_api_token),
    REPLACED_TOKENS: ("list of replaced tokens", read_replaced),
    USERS: ("list of users", read_user),
    PI_IDS: ("list of Pi ids", lambda entry: entry["node"]),
}
_FILE = {"metavar": "FILE"}
COMMANDS: Mapping[str, Command] = {
    "backup": Command("copy everything into FILE, while the server runs (.sqlite3: the database alone)",
                      [("file", _FILE)], backup),
    "restore": Command("put back what a backup holds, while no server runs; or tokens.json.bak, users.json.bak",
                       [("file", _FILE)], restore),
    "verify": Command("look at all that is stored (or at a backup), and say what is wrong with it",
                      [("file", {**_FILE, "nargs": "?"})], verify),
}  # fmt: skip
