"""Export to an SQLite file with one plain table, one row per value, for other programs.

    readings(time, node, sensor, value, unit)    time: RFC 3339 in UTC; value: NULL if the sensor failed

The table has two indexes: on time, and on node, sensor and time. Errors: sqlite3.Error and OSError.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from itertools import repeat

from pigeonpost.core.files import replacement_of
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.csv.format import utc_times
from pigeonpost.storage.models import stretches

_TABLE = (
    "CREATE TABLE readings (time TEXT NOT NULL, node TEXT NOT NULL, sensor TEXT NOT NULL, value, unit TEXT NOT NULL)"
)
_INDEXES = (
    "CREATE INDEX readings_by_time ON readings (time)",
    "CREATE INDEX readings_of_sensor ON readings (node, sensor, time)",
)


def write_sqlite(path: str, parts: Iterable[tuple[str, Mapping[str, str], list[SampleBatch]]]) -> int:
    """Write an SQLite file, and return its size in bytes. On an error, an existing file stays unchanged.

    Args:
        path: Path of the file.
        parts: Tuples of node name, units by sensor, and samples. A node may have several parts.
    """
    with replacement_of(path) as new, contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
        # No journal is needed: the file is synced at the end, and replaces the old file only when it is complete.
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute(_TABLE)
        db.execute("BEGIN")
        for node, units, batches in parts:
            for batch in batches:
                _insert(db, node, units, batch)
        for index in _INDEXES:
            db.execute(index)
        db.execute("COMMIT")
    return os.path.getsize(path)


def _insert(db: sqlite3.Connection, node: str, units: Mapping[str, str], batch: SampleBatch) -> None:
    """Insert samples in the order of their times, as in the CSV log."""
    for stretch in stretches(batch):
        times = utc_times(stretch.times)
        columns = [
            zip(times, repeat(node), repeat(name), column, repeat(units.get(name, "")))
            for name, column in stretch.values.items()
        ]
        db.executemany("INSERT INTO readings VALUES (?, ?, ?, ?, ?)", [row for rows in zip(*columns) for row in rows])
