"""A backup in one file: made beside a running server, checked, and only then put in its place.

Errors: BadBackup for a database that is damaged; StoreDamaged, DiskError, OSError and sqlite3.Error of the disk. A file
that was there before is then unchanged.
"""

from __future__ import annotations

import contextlib
import os

from pigeonpost.core.data_folder import DATABASE, LOGS
from pigeonpost.core.files import sync_folder
from pigeonpost.server import backup
from pigeonpost.server.work_folder import work_folder
from pigeonpost.storage.contract import Store
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.storage.sqlite.schema import VERSION
from pigeonpost.storage.sqlite.store import SqliteStore


def make_backup_file(data: str, target: str, staging: str, progress: backup.Progress) -> str:
    """Make `target` from the data folder `data`: of everything, or of the database alone where it ends in .sqlite3.

    staging   name of a folder to work in, beside the file
    progress  called as it goes on; what it raises ends the work
    Returns what is in it, in a line. Raises BadBackup with a line for each fault, and one more.
    """
    with work_folder(os.path.dirname(target), staging) as folder:
        logs = logs_in(os.path.join(data, LOGS))  # before the database: it knows of all of these
        made = os.path.join(folder, DATABASE)
        backup.copy_database(os.path.join(data, DATABASE), made, progress)
        if faults := list(backup.faults_of(folder)):
            raise backup.BadBackup("\n".join([*faults, "the database is damaged: no backup was made"]))
        about = contents_of(folder)
        if not target.endswith(".sqlite3"):
            archive = os.path.join(folder, "made.tar")
            backup.pack(data, folder, logs, archive, progress)
            backup.unpack(archive, None, progress)
            made = archive
        os.rename(made, target)
        sync_folder(target)
    return about


def contents_of(folder: str) -> str:
    """Return what the database in `folder`, which was found sound, holds, in a line."""
    if backup.version_of(folder) < VERSION:
        return "of an older version, which the server's start brings up to date; sound as SQLite sees it"
    with contextlib.closing(SqliteStore(folder, look_only=True)) as store:
        return contents_text(store)


def contents_text(store: Store) -> str:
    """Return what a store that was found sound holds, in a line."""
    nodes, gaps = store.nodes(), store.gaps(-1)
    expired = sum(node["forgotten"] for node in nodes)
    text = f"{sum(node['samples'] for node in nodes) - expired} samples of {len(nodes)} nodes: all there, each once"
    if expired:
        text += f"; {expired} older ones were deleted as set"
    if gaps:
        missing = sum(gap["to"] - gap["from"] + 1 + gap["before"] for gap in gaps)
        text += f"; {missing} more are noted as missing, in {len(gaps)} gaps"
    return text
