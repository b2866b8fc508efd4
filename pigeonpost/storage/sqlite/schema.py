"""Tables of the SQLite store.

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
from pigeonpost.core.files import sync_folder
from pigeonpost.storage.csv.format import lacking
from pigeonpost.storage.sqlite import queries
from pigeonpost.storage.sqlite.integrity import damage_text, has_rows, refuse_empty, refuse_foreign_wal, start_faults

VERSION = 4  # PRAGMA user_version
UNFINISHED = 1000  # in its place while a file is converted in place (see migration): older programs refuse it
_MOST_VERSIONS = 1000  # a number above is none of a newer program, but damage

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- Samples before kept_from may have been deleted: their time to be kept was over. Windows are [start, end); those that
-- end at or before old_edges are (start, end], as format 3 made them, since their samples are gone.
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kept_from INTEGER NOT NULL DEFAULT 0,
    old_edges INTEGER NOT NULL DEFAULT 0
);
-- The highest running number stored of each outbox, where it is not in an epoch of that outbox.
CREATE TABLE outboxes (node INTEGER, outbox TEXT, top INTEGER NOT NULL, PRIMARY KEY (node, outbox)) WITHOUT ROWID;
-- The high-water marks: everything of the epoch up to seq is in fresh, chunks or gaps, or was deleted (forgotten).
CREATE TABLE epochs (
    id INTEGER PRIMARY KEY, node INTEGER NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL, up INTEGER,
    forgotten INTEGER NOT NULL DEFAULT 0, outbox TEXT, top INTEGER NOT NULL DEFAULT 0, UNIQUE (node, epoch)
);
CREATE TABLE sensors (node INTEGER, name TEXT, unit TEXT NOT NULL, PRIMARY KEY (node, name)) WITHOUT ROWID;
CREATE TABLE shapes (id INTEGER PRIMARY KEY, names TEXT NOT NULL UNIQUE);
CREATE TABLE failures (
    epoch INTEGER, seq INTEGER, sensor TEXT, text TEXT, PRIMARY KEY (epoch, seq, sensor)
) WITHOUT ROWID;
-- The id is the filing number, which fresh and gaps have in common.
CREATE TABLE gaps (
    id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    before INTEGER NOT NULL, why TEXT NOT NULL, noted INTEGER NOT NULL
);
-- The CSV log of each run: how far it is written and synced (see csvbuffer).
CREATE TABLE logs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, tail INTEGER NOT NULL,
    filed INTEGER NOT NULL
);
-- Windows of samples, each with its span in ms: of which sensor what.
CREATE TABLE summaries (
    node INTEGER, sensor TEXT, span INTEGER, "end" INTEGER, "values" INTEGER NOT NULL, mean REAL NOT NULL,
    median REAL NOT NULL, mode REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, deviation REAL NOT NULL,
    PRIMARY KEY (node, sensor, span, "end")
) WITHOUT ROWID;
-- Windows into which something came since they were summed up.
CREATE TABLE unsummed (node INTEGER, span INTEGER, "end" INTEGER, PRIMARY KEY (node, span, "end")) WITHOUT ROWID;
-- What operators have said: since when a node is retired; what it was called, until when (both ms since 1970), and
-- whether another node may have that name now; what people see in place of a sensor's name.
CREATE TABLE retired (node INTEGER PRIMARY KEY, at INTEGER NOT NULL);
CREATE TABLE former_names (
    name TEXT, node INTEGER, until INTEGER NOT NULL, released INTEGER NOT NULL, PRIMARY KEY (name, node)
) WITHOUT ROWID;
CREATE TABLE labels (node INTEGER, sensor TEXT, label TEXT NOT NULL, PRIMARY KEY (node, sensor)) WITHOUT ROWID;
"""
# A run of samples that are alike, of one epoch and hour (storage.chunks). In fresh they are as they were committed, and
# the id is the filing number; chunks are made of them later.
_RUNS = """
CREATE TABLE fresh (id INTEGER PRIMARY KEY, {columns});
CREATE TABLE chunks (id INTEGER PRIMARY KEY, {columns});
""".format(
    columns="node INTEGER NOT NULL, low INTEGER NOT NULL, epoch INTEGER NOT NULL, first INTEGER NOT NULL,"
    " count INTEGER NOT NULL, high INTEGER NOT NULL, step INTEGER NOT NULL, shape INTEGER NOT NULL, clock TEXT,"
    " arrived INTEGER, crc INTEGER NOT NULL, data TEXT NOT NULL"
)
_INDEXES = """
CREATE UNIQUE INDEX chunks_of_node ON chunks(node, low, epoch, first);
CREATE INDEX chunks_by_time ON chunks(low);
"""
# For people. `low + k * step + r`: see storage.chunks. No CROSS JOIN: it would read every chunk for each question.
# `closed`: 'left' is [start, end), 'right' is (start, end]. `outdated`: something came since; windows that were never
# summed up are not there.
_VIEWS = """
CREATE VIEW readings AS
SELECT n.name AS node, s.value AS sensor, j.value ->> (s.key + 1) AS value, coalesce(u.unit, '') AS unit,
  strftime('%Y-%m-%dT%H:%M:%fZ', (c.low + j.key * c.step + (j.value ->> 0)) / 1000.0, 'unixepoch') AS time,
  c.low + j.key * c.step + (j.value ->> 0) AS time_ms, c.low AS chunk_low, c.high AS chunk_high
FROM (SELECT node, low, high, step, shape, data FROM chunks
      UNION ALL SELECT node, low, high, step, shape, data FROM fresh) c
JOIN nodes n ON n.id = c.node JOIN shapes p ON p.id = c.shape, json_each(c.data) j, json_each(p.names) s
LEFT JOIN sensors u ON u.node = c.node AND u.name = s.value;
CREATE VIEW samples AS
SELECT n.name AS node, e.epoch AS epoch, c.first + j.key AS seq,
  strftime('%Y-%m-%dT%H:%M:%fZ', (c.low + j.key * c.step + (j.value ->> 0)) / 1000.0, 'unixepoch') AS time,
  c.low + j.key * c.step + (j.value ->> 0) AS time_ms, coalesce(c.clock, '') AS clock, p.names AS sensors,
  json_remove(j.value, '$[0]') AS "values", c.low AS chunk_low, c.high AS chunk_high
FROM (SELECT node, low, epoch, first, high, step, shape, clock, data FROM chunks
      UNION ALL SELECT node, low, epoch, first, high, step, shape, clock, data FROM fresh) c
JOIN nodes n ON n.id = c.node JOIN shapes p ON p.id = c.shape JOIN epochs e ON e.id = c.epoch, json_each(c.data) j;
CREATE VIEW statistics AS
SELECT n.name AS node, s.sensor AS sensor, coalesce(u.unit, '') AS unit, s.span / 60000 AS minutes,
  strftime('%Y-%m-%dT%H:%M:%SZ', (s."end" - s.span) / 1000, 'unixepoch') AS start,
  strftime('%Y-%m-%dT%H:%M:%SZ', s."end" / 1000, 'unixepoch') AS "end", s."end" AS end_ms, s."values" AS "values",
  s.mean AS mean, s.median AS median, s.mode AS mode, s.low AS low, s.high AS high, s.deviation AS deviation,
  CASE WHEN s."end" <= n.old_edges THEN 'right' ELSE 'left' END AS closed,
  EXISTS (SELECT * FROM unsummed d WHERE d.node = s.node AND d.span = s.span AND d."end" = s."end") AS outdated
FROM summaries s JOIN nodes n ON n.id = s.node LEFT JOIN sensors u ON u.node = s.node AND u.name = s.sensor;
"""
TABLES = _TABLES + _RUNS + _INDEXES + _VIEWS


def make_tables(db: sqlite3.Connection) -> None:
    """Make all tables, indexes and views."""
    db.executescript(TABLES)


def refuse_newer(db: sqlite3.Connection, path: str) -> int:
    """Return the version of the file. Raises SettingsError when it is newer than this program."""
    version = _version(db)
    if not 0 <= version <= _MOST_VERSIONS:
        raise StoreDamaged(damage_text(os.path.dirname(path), f"its header says format {version}, which there is not"))
    if version == UNFINISHED:
        raise SettingsError(f"{path} is being brought up to date: start the server, which goes on with that")
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
    """Make the tables in a new file. Raises SettingsError for one of another version (see migration)."""
    if refuse_newer(db, path) == 0:
        # In one transaction with the version: a file has all tables or none, whenever the plug is pulled.
        db.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION};")
        db.execute("INSERT INTO meta VALUES ('identity', ?)", (os.urandom(8).hex(),))
        db.execute("COMMIT")
        sync_folder(path)
    refuse_other(db, path)


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
                unlogged = queries.unlogged(db)
                faults = filter(None, (queries.odd_unlogged(db), lacking(unlogged) if unlogged else ""))
                yield from (damage_text(folder, fault, ends_writing=False) for fault in faults)
    except StoreDamaged as error:
        yield str(error)
    except sqlite3.Error as error:
        yield damage_text(folder, str(error))
