"""Backup in one file, made while the server is running.

The file is made and checked in a temporary folder. Only then is it renamed to its final path.
Errors: BadBackup or StoreDamaged for a damaged database; DiskError, OSError and sqlite3.Error of the disk. An existing
file is then unchanged.
"""

from __future__ import annotations

import contextlib
import os

from pigeonpost.core.data_folder import DATABASE, LOGS
from pigeonpost.core.files import sync_folder
from pigeonpost.core.format import counted
from pigeonpost.server import backup
from pigeonpost.server.work_folder import work_folder
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.storage.csv.retention import RemovedLogs, read_removed
from pigeonpost.storage.sqlite.schema import VERSION
from pigeonpost.storage.sqlite.store import SqliteStore


def make_backup_file(data: str, target: str, staging: str, progress: backup.Progress) -> str:
    """Make a backup of a data folder, and check it.

    Args:
        data: The data folder.
        target: Path of the backup. If it ends in .sqlite3, the backup is a copy of the database only.
        staging: Name of a temporary folder next to `target`.
        progress: Called repeatedly. An exception that it raises cancels the backup.

    Returns:
        A description of the content of the backup, in one line.

    Raises:
        BadBackup: The database is damaged. The text has one line per fault, and a last line with the consequence.
    """
    with work_folder(os.path.dirname(target), staging) as folder:
        logs = logs_in(os.path.join(data, LOGS))  # before the copy: a later log may have samples that the copy lacks
        result = os.path.join(folder, DATABASE)
        backup.copy_database(os.path.join(data, DATABASE), result, progress)
        if faults := list(backup.faults_of(folder)):
            raise backup.BadBackup("\n".join([*faults, "the database is damaged: no backup was made"]))
        description = contents_of(folder)
        if not target.endswith(".sqlite3"):
            archive = os.path.join(folder, "made.tar")
            before = None
            while before != (removed := _removed(data)):  # again if an old log was deleted meanwhile
                before = removed
                backup.pack(data, folder, logs, archive, progress)
            backup.unpack(archive, None, progress)
            result = archive
        os.rename(result, target)
        sync_folder(target)
    return description


def _removed(data: str) -> RemovedLogs:
    try:
        return read_removed(os.path.join(data, LOGS))
    except ValueError as error:
        raise backup.BadBackup(f"{error}: no backup was made") from error


def contents_of(folder: str) -> str:
    """Return a one-line description of the content of the database in `folder`, which has passed the check."""
    if backup.version_of(folder) < VERSION:
        return "from an older version, which the server converts at its start; SQLite found no damage"
    with contextlib.closing(SqliteStore(folder, look_only=True)) as store:
        return contents_text(store)


def contents_text(store: Store) -> str:
    """Return a one-line description of the content of `store`, which has passed the check."""
    nodes, gaps = store.nodes(), store.gaps(-1)
    expired = sum(node["forgotten"] for node in nodes)
    samples = sum(node["samples"] for node in nodes) - expired
    noun = "sample" if samples == 1 else "samples"  # not `counted`: scripts read the number, so it has no separators
    text = f"{samples} {noun} of {counted(len(nodes), 'node')}: none missing, none stored twice"
    if expired:
        text += f"; {expired} expired samples were deleted"
    if gaps:
        missing = sum(gap["to"] - gap["from"] + 1 + gap["before"] for gap in gaps)
        text += f"; {missing} more samples were lost, in {counted(len(gaps), 'recorded gap')}"
    return text
