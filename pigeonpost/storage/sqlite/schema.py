"""Tables of the SQLite store, and the migration of older files.

Errors: SettingsError for a file of a newer program; StoreDamaged; those of SQLite.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from urllib.parse import quote

from pigeonpost.core.data_folder import DATABASE
from pigeonpost.core.errors import SettingsError, StoreDamaged
from pigeonpost.core.files import give_to_owner, sync_folder
from pigeonpost.storage.sqlite.integrity import damage_text, has_rows, refuse_empty, refuse_foreign_wal, start_faults

VERSION = 3  # PRAGMA user_version
_MOST_VERSIONS = 1000  # a number above is none of a newer program, but damage

_FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE nodes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
-- The highest running number stored of each outbox.
CREATE TABLE outboxes (node INTEGER, outbox TEXT, top INTEGER NOT NULL, PRIMARY KEY (node, outbox)) WITHOUT ROWID;
-- The high-water marks: everything of the epoch up to seq is in samples, or in gaps.
CREATE TABLE epochs (
    id INTEGER PRIMARY KEY, node INTEGER NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL, up INTEGER,
    UNIQUE (node, epoch)
);
CREATE TABLE sensors (node INTEGER, name TEXT, unit TEXT NOT NULL, PRIMARY KEY (node, name)) WITHOUT ROWID;
CREATE TABLE shapes (id INTEGER PRIMARY KEY, names TEXT NOT NULL UNIQUE);
CREATE TABLE samples (
    node INTEGER, time INTEGER, epoch INTEGER, seq INTEGER, shape INTEGER NOT NULL,
    clock TEXT, -- NULL: the node's own set clock; "unset" or "server" as the link says
    "values" TEXT NOT NULL, -- a JSON array; null where a sensor failed
    PRIMARY KEY (node, time, epoch, seq)
) WITHOUT ROWID;
CREATE TABLE failures (
    epoch INTEGER, seq INTEGER, sensor TEXT, text TEXT, PRIMARY KEY (epoch, seq, sensor)
) WITHOUT ROWID;
CREATE TABLE gaps (
    id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    before INTEGER NOT NULL, why TEXT NOT NULL, noted INTEGER NOT NULL
);
-- The CSV log of each run: how far it is written and synced (see csvbuffer).
CREATE TABLE logs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, tail INTEGER NOT NULL,
    filed INTEGER NOT NULL
);
-- What the log owes since then, in its order: samples first to last of an epoch, taken from low to high; or a gap.
CREATE TABLE filings (
    id INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL,
    first INTEGER, last INTEGER, low INTEGER, high INTEGER, gap INTEGER
);
CREATE VIEW readings AS
    SELECT strftime('%Y-%m-%dT%H:%M:%fZ', s.time / 1000.0, 'unixepoch') AS time, n.name AS node, j.value AS sensor,
           json_extract(s."values", '$[' || j.key || ']') AS value, coalesce(u.unit, '') AS unit
    FROM samples s JOIN nodes n ON n.id = s.node JOIN shapes p ON p.id = s.shape, json_each(p.names) j
    LEFT JOIN sensors u ON u.node = s.node AND u.name = j.value;
"""
_STATISTICS = """
-- Windows (start, end] of samples, each with its span in ms: of which sensor what.
CREATE TABLE summaries (
    node INTEGER, sensor TEXT, span INTEGER, "end" INTEGER, "values" INTEGER NOT NULL, mean REAL NOT NULL,
    median REAL NOT NULL, mode REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, deviation REAL NOT NULL,
    PRIMARY KEY (node, sensor, span, "end")
) WITHOUT ROWID;
-- Windows into which something came since they were summed up.
CREATE TABLE unsummed (node INTEGER, span INTEGER, "end" INTEGER, PRIMARY KEY (node, span, "end")) WITHOUT ROWID;
-- Samples up to here may have been deleted, with their number in each epoch: their time to be kept was over.
ALTER TABLE nodes ADD COLUMN kept_from INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;
-- Of what was stored before there were statistics, they are made now.
INSERT OR IGNORE INTO unsummed SELECT node, 600000, (time + 599999) / 600000 * 600000 FROM samples;
INSERT OR IGNORE INTO unsummed SELECT node, 3600000, ("end" + 3599999) / 3600000 * 3600000 FROM unsummed;
"""
_RECORDS = """
-- What operators have said: since when a node is retired; what it was called, until when (both ms since 1970), and
-- whether another node may have that name now; what people see in place of a sensor's name.
CREATE TABLE retired (node INTEGER PRIMARY KEY, at INTEGER NOT NULL);
CREATE TABLE former_names (
    name TEXT, node INTEGER, until INTEGER NOT NULL, released INTEGER NOT NULL, PRIMARY KEY (name, node)
) WITHOUT ROWID;
CREATE TABLE labels (node INTEGER, sensor TEXT, label TEXT NOT NULL, PRIMARY KEY (node, sensor)) WITHOUT ROWID;
"""
_STEPS = (_FIRST, _STATISTICS, _RECORDS)  # what each version adds to the one before


def make_tables(db: sqlite3.Connection) -> None:
    """Make all tables, as the newest version has them."""
    db.executescript("".join(_STEPS))


def refuse_newer(db: sqlite3.Connection, path: str) -> int:
    """Return the version of the file. Raises SettingsError when it is newer than this program."""
    version = _version(db)
    if not 0 <= version <= _MOST_VERSIONS:
        raise StoreDamaged(damage_text(os.path.dirname(path), f"its header says format {version}, which there is not"))
    if version > VERSION:
        raise SettingsError(
            f"{path} was made by a newer Pigeonpost (format {version}; this one knows {VERSION}):"
            " use that program, or another --data folder"
        )
    return version


def refuse_other(db: sqlite3.Connection, path: str) -> None:
    """Raise SettingsError when the file is not of this program's version: for read-only use."""
    version = refuse_newer(db, path)
    if version == 0:
        raise StoreDamaged(damage_text(os.path.dirname(path), "it has no tables of Pigeonpost"))
    if version < VERSION:
        raise SettingsError(
            f"{path} was made by an older Pigeonpost: start this one's server once, which brings it up to date"
        )


def _version(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def bring_up_to_date(db: sqlite3.Connection, path: str) -> None:
    """Make the tables, or migrate an older file after copying it."""
    version = refuse_newer(db, path)
    if version == VERSION:
        return
    if version:
        _copy(db, f"{path}.v{version}")
    steps = "".join(_STEPS[version:])
    # In one transaction with the version: a file is of the old format or of the new one, whenever the plug is pulled.
    db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {VERSION};")
    if version == 0:
        db.execute("INSERT INTO meta VALUES ('identity', ?)", (os.urandom(8).hex(),))
    db.execute("COMMIT")
    sync_folder(path)


def refuse_headless(db: sqlite3.Connection, path: str) -> None:
    """Raise StoreDamaged for a file without a version that is no new one: with tables, or beside logs with rows."""
    folder = os.path.dirname(path)
    if _version(db):
        return
    if db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise StoreDamaged(damage_text(folder, "it has tables, but no format: a changed header, or not ours"))
    if has_rows(folder):
        raise StoreDamaged(damage_text(folder, "it is empty, though there are logs with rows beside it"))


def quick_faults(folder: str, is_in_use: bool) -> Iterator[str]:
    """Check what each start checks, of a file that nobody has opened in this process. Nothing is changed.

    is_in_use: a server writes to it just now, so that its WAL is its own
    """
    path = os.path.join(folder, DATABASE)
    try:
        refuse_empty(folder)
        if not is_in_use:
            refuse_foreign_wal(folder)
        with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as db:
            if refuse_newer(db, path) == 0:
                refuse_other(db, path)
            if refuse_newer(db, path) == VERSION:
                yield from (damage_text(folder, fault) for fault in start_faults(db, make_tables))
    except StoreDamaged as error:
        yield str(error)
    except sqlite3.Error as error:
        yield damage_text(folder, str(error))


def _copy(db: sqlite3.Connection, path: str) -> None:
    """Copy the whole file under another name, durably, before anything is changed."""
    partial = f"{path}.part"
    if os.path.exists(path):
        return  # made when the change was begun before, and did not end
    if os.path.exists(partial):
        os.unlink(partial)
    copy = sqlite3.connect(partial)
    try:
        db.backup(copy, pages=-1)
    finally:
        copy.close()
    fd = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    give_to_owner(partial)
    os.rename(partial, path)
    sync_folder(path)
