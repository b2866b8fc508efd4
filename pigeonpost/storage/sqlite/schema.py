"""Tables, indexes and views of the SQLite store, and checks of a file's format version.

Errors: SettingsError for a file of another version of this program; StoreDamaged; sqlite3.Error.
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
UNFINISHED = 1000  # user_version while a file is converted in place (see migration), so that older programs refuse it
_MOST_VERSIONS = 1000  # a higher number is damage, not the version of a newer program

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- Samples taken before kept_from may have been deleted, because their retention time was over. Windows are
-- [start, end), but those that end at or before old_edges are (start, end]: format 3 made them, and their samples are
-- deleted.
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kept_from INTEGER NOT NULL DEFAULT 0,
    old_edges INTEGER NOT NULL DEFAULT 0
);
-- The highest running number stored of each outbox. If the outbox is named in `epochs`, its number is there instead.
CREATE TABLE outboxes (node INTEGER, outbox TEXT, top INTEGER NOT NULL, PRIMARY KEY (node, outbox)) WITHOUT ROWID;
-- The high-water marks: each sample of the epoch up to seq is in fresh, chunks or gaps, or was deleted. `forgotten` is
-- the number of deleted samples.
CREATE TABLE epochs (
    id INTEGER PRIMARY KEY, node INTEGER NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL, up INTEGER,
    forgotten INTEGER NOT NULL DEFAULT 0, outbox TEXT, top INTEGER NOT NULL DEFAULT 0, UNIQUE (node, epoch)
);
CREATE TABLE sensors (node INTEGER, name TEXT, unit TEXT NOT NULL, PRIMARY KEY (node, name)) WITHOUT ROWID;
CREATE TABLE shapes (id INTEGER PRIMARY KEY, names TEXT NOT NULL UNIQUE);
CREATE TABLE failures (
    epoch INTEGER, seq INTEGER, sensor TEXT, text TEXT, PRIMARY KEY (epoch, seq, sensor)
) WITHOUT ROWID;
-- The id is the filing number. fresh and gaps share one sequence of filing numbers.
CREATE TABLE gaps (
    id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    before INTEGER NOT NULL, why TEXT NOT NULL, noted INTEGER NOT NULL
);
-- The CSV log of each run, with the position up to which it is written and synced (see csvbuffer).
CREATE TABLE logs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, tail INTEGER NOT NULL,
    filed INTEGER NOT NULL
);
-- Rollups: one row per node, sensor and window. `span` is the width of the window in ms.
CREATE TABLE summaries (
    node INTEGER, sensor TEXT, span INTEGER, "end" INTEGER, "values" INTEGER NOT NULL, mean REAL NOT NULL,
    median REAL NOT NULL, mode REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, deviation REAL NOT NULL,
    PRIMARY KEY (node, sensor, span, "end")
) WITHOUT ROWID;
-- Dirty windows: those whose samples have changed since their rollups were made.
CREATE TABLE unsummed (node INTEGER, span INTEGER, "end" INTEGER, PRIMARY KEY (node, span, "end")) WITHOUT ROWID;
-- Operators' records, with times in ms since 1970 (UTC). `retired`: retired nodes and the times of their retirement.
-- `former_names`: former names of nodes; `until` is the time of the renaming, and `released` is 1 if another node may
-- use the name now. `labels`: texts that are shown instead of sensors' names.
CREATE TABLE retired (node INTEGER PRIMARY KEY, at INTEGER NOT NULL);
CREATE TABLE former_names (
    name TEXT, node INTEGER, until INTEGER NOT NULL, released INTEGER NOT NULL, PRIMARY KEY (name, node)
) WITHOUT ROWID;
CREATE TABLE labels (node INTEGER, sensor TEXT, label TEXT NOT NULL, PRIMARY KEY (node, sensor)) WITHOUT ROWID;
"""
# One row is a run of consecutive samples of one epoch, hour, shape and clock state (storage.chunks). Rows of fresh are
# as they were committed, and their id is the filing number. Compaction makes chunks of them.
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
# Views for users. storage.chunks explains `low + k * step + r`. Do not write CROSS JOIN: each query would then read
# every chunk. `closed` is 'left' for [start, end) and 'right' for (start, end]. `outdated` is 1 if samples arrived
# after the rollup was made; a window that has no rollup yet has no row.
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
    """Create all tables, indexes and views in the empty database `db`."""
    db.executescript(TABLES)


def refuse_newer(db: sqlite3.Connection, path: str) -> int:
    """Return the format version of the database file, or raise an error if this program cannot use that version.

    Args:
        db: Open connection to the file.
        path: Path of the file, for error texts.

    Raises:
        SettingsError: A newer program wrote the file, or its conversion to the present format is unfinished.
        StoreDamaged: No version of this program uses this format version.
    """
    version = _version(db)
    if not 0 <= version <= _MOST_VERSIONS:
        raise StoreDamaged(
            damage_text(os.path.dirname(path), f"its header states format {version}, which does not exist")
        )
    if version == UNFINISHED:
        raise SettingsError(f"{path} is in the middle of a format conversion: start the server, which completes it")
    if version > VERSION:
        raise SettingsError(
            f"{path} was made by a newer Pigeonpost (format {version}; this one supports {VERSION}):"
            " use that version, or another --data folder"
        )
    return version


def refuse_other(db: sqlite3.Connection, path: str) -> None:
    """Raise an error unless the file has the format of this program. For read-only use.

    Args:
        db: Open connection to the file.
        path: Path of the file, for error texts.

    Raises:
        SettingsError: The file has the format of another version.
        StoreDamaged: The file has no tables of this program.
    """
    version = refuse_newer(db, path)
    if version == 0:
        raise StoreDamaged(damage_text(os.path.dirname(path), "it has no tables of Pigeonpost"))
    if version < VERSION:
        raise SettingsError(
            f"{path} was made by an older Pigeonpost: start the server of this version once, which converts it"
        )


def _version(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def bring_up_to_date(db: sqlite3.Connection, path: str) -> None:
    """Create the tables if the file is new.

    Args:
        db: Connection that may write to the file.
        path: Path of the file.

    Raises:
        SettingsError: The file has the format of another version (see migration).
        StoreDamaged: The header of the file is invalid.
    """
    if refuse_newer(db, path) == 0:
        # One transaction for tables and version: after a power cut the file has all of them or none.
        db.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION};")
        db.execute("INSERT INTO meta VALUES ('identity', ?)", (os.urandom(8).hex(),))
        db.execute("COMMIT")
        sync_folder(path)
    refuse_other(db, path)


def refuse_headless(db: sqlite3.Connection, path: str) -> None:
    """Raise StoreDamaged if the file has no format version although it is not new.

    Such a file has tables, or there are CSV logs with rows in its folder.

    Args:
        db: Open connection to the file.
        path: Path of the file.
    """
    folder = os.path.dirname(path)
    if _version(db):
        return
    if db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise StoreDamaged(
            damage_text(
                folder, "it has tables, but no format version: its header was changed, or another program made it"
            )
        )
    if has_rows(folder):
        raise StoreDamaged(damage_text(folder, "it is empty, although there are logs with rows"))


def quick_faults(folder: str, is_in_use: bool) -> Iterator[str]:
    """Yield the texts of the faults that a start of the server would find, without changing anything.

    No connection to the file may be open in this process.

    Args:
        folder: Data folder.
        is_in_use: True if a running server writes to the file. The WAL is then certain to belong to the file.
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
                faults = filter(None, (queries.unlogged_fault(db), lacking(unlogged) if unlogged else ""))
                yield from (damage_text(folder, fault, ends_writing=False) for fault in faults)
    except StoreDamaged as error:
        yield str(error)
    except sqlite3.Error as error:
        yield damage_text(folder, str(error))
