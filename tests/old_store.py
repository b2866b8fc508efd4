"""SQLite files as programs of formats 1, 2 and 3 wrote them.

One row per sample, and separate rows owed to the CSV log.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pigeonpost.core.data_folder import DATABASE
from pigeonpost.link.samples import Gap, Sample
from pigeonpost.storage.models import SPANS_MS

IDENTITY = "00000000000000ff"
FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE nodes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE outboxes (node INTEGER, outbox TEXT, top INTEGER NOT NULL, PRIMARY KEY (node, outbox)) WITHOUT ROWID;
CREATE TABLE epochs (
    id INTEGER PRIMARY KEY, node INTEGER NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL, up INTEGER,
    UNIQUE (node, epoch)
);
CREATE TABLE sensors (node INTEGER, name TEXT, unit TEXT NOT NULL, PRIMARY KEY (node, name)) WITHOUT ROWID;
CREATE TABLE shapes (id INTEGER PRIMARY KEY, names TEXT NOT NULL UNIQUE);
CREATE TABLE samples (
    node INTEGER, time INTEGER, epoch INTEGER, seq INTEGER, shape INTEGER NOT NULL, clock TEXT,
    "values" TEXT NOT NULL, PRIMARY KEY (node, time, epoch, seq)
) WITHOUT ROWID;
CREATE TABLE failures (
    epoch INTEGER, seq INTEGER, sensor TEXT, text TEXT, PRIMARY KEY (epoch, seq, sensor)
) WITHOUT ROWID;
CREATE TABLE gaps (
    id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    before INTEGER NOT NULL, why TEXT NOT NULL, noted INTEGER NOT NULL
);
CREATE TABLE logs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, tail INTEGER NOT NULL,
    filed INTEGER NOT NULL
);
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
SECOND = """
CREATE TABLE summaries (
    node INTEGER, sensor TEXT, span INTEGER, "end" INTEGER, "values" INTEGER NOT NULL, mean REAL NOT NULL,
    median REAL NOT NULL, mode REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, deviation REAL NOT NULL,
    PRIMARY KEY (node, sensor, span, "end")
) WITHOUT ROWID;
CREATE TABLE unsummed (node INTEGER, span INTEGER, "end" INTEGER, PRIMARY KEY (node, span, "end")) WITHOUT ROWID;
ALTER TABLE nodes ADD COLUMN kept_from INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epochs ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;
"""
THIRD = """
CREATE TABLE retired (node INTEGER PRIMARY KEY, at INTEGER NOT NULL);
CREATE TABLE former_names (
    name TEXT, node INTEGER, until INTEGER NOT NULL, released INTEGER NOT NULL, PRIMARY KEY (name, node)
) WITHOUT ROWID;
CREATE TABLE labels (node INTEGER, sensor TEXT, label TEXT NOT NULL, PRIMARY KEY (node, sensor)) WITHOUT ROWID;
"""
STEPS = (FIRST, SECOND, THIRD)


class OldStore:
    """A connection to such a file in WAL mode, as a context manager that closes it."""

    def __init__(self, folder: str, version: int = 3) -> None:
        self.path = os.path.join(folder, DATABASE)
        self.db = sqlite3.connect(self.path, isolation_level=None)
        self.version = version
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.executescript(f"{''.join(STEPS[:version])} PRAGMA user_version = {version};")
        self.db.execute("INSERT INTO meta VALUES ('identity', ?)", (IDENTITY,))

    def __enter__(self) -> "OldStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.db.close()

    def put(
        self, node: str, epoch: str, *items: Gap | Sequence[Sample], units: Mapping[str, str] | None = None,
        noted_ms: int = 0,
    ) -> int:  # fmt: skip
        """Store lists of samples, and gaps, of an epoch in one transaction; each has its own filing number.

        Returns the last number.
        """
        with self._transaction():
            self.db.execute("INSERT OR IGNORE INTO nodes (name) VALUES (?)", (node,))
            (node_id,) = self._one("SELECT id FROM nodes WHERE name = ?", node)
            end = items[-1]
            last, up_ms = (end.last, None) if isinstance(end, Gap) else (end[-1].seq, end[-1].up_ms)
            (epoch_id,) = self._one(
                "INSERT INTO epochs (node, epoch, seq, up) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET seq = excluded.seq, up = excluded.up RETURNING id",
                node_id, epoch, last, up_ms,
            )  # fmt: skip
            self.db.execute(
                "INSERT INTO outboxes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET top = excluded.top",
                (node_id, epoch, last),
            )
            for name, unit in (units or {}).items():
                self.db.execute("INSERT OR REPLACE INTO sensors VALUES (?, ?, ?)", (node_id, name, unit))
            for item in items:
                if isinstance(item, Gap):
                    self._put_gap(epoch_id, item, noted_ms)
                else:
                    self._put_samples(node_id, epoch_id, item)
        (filed,) = self._one("SELECT seq FROM sqlite_sequence WHERE name = 'filings'")
        return int(filed)

    def record(self, name: str, size: int, tail: int, filed: int) -> None:
        """Record the position up to which the CSV log is written."""
        self.db.execute(
            "INSERT INTO logs (name, size, tail, filed) VALUES (?, ?, ?, ?) ON CONFLICT (name)"
            " DO UPDATE SET size = excluded.size, tail = excluded.tail, filed = excluded.filed",
            (name, size, tail, filed),
        )
        self.db.execute("DELETE FROM filings WHERE id <= ?", (filed,))

    def _put_gap(self, epoch_id: int, gap: Gap, noted_ms: int) -> None:
        (id,) = self._one(
            "INSERT INTO gaps (epoch, first, last, before, why, noted) VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
            epoch_id, *gap, noted_ms,
        )  # fmt: skip
        self.db.execute("INSERT INTO filings (epoch, gap) VALUES (?, ?)", (epoch_id, id))

    def _put_samples(self, node_id: int, epoch_id: int, samples: Sequence[Sample]) -> None:
        """Store samples, each with its own shape and clock state."""
        for seq, time_ms, _, values, errors, clock in samples:
            names = json.dumps(list(values))
            self.db.execute("INSERT OR IGNORE INTO shapes (names) VALUES (?)", (names,))
            (shape,) = self._one("SELECT id FROM shapes WHERE names = ?", names)
            text = f"[{','.join(map(repr, values.values()))}]".replace("None", "null")
            self.db.execute(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)",
                (node_id, time_ms, epoch_id, seq, shape, clock or None, text),
            )
            for name, error in errors.items():
                self.db.execute("INSERT INTO failures VALUES (?, ?, ?, ?)", (epoch_id, seq, name, error))
            for span in SPANS_MS if self.version > 1 else ():
                end = -(-time_ms // span) * span
                self.db.execute("INSERT OR IGNORE INTO unsummed VALUES (?, ?, ?)", (node_id, span, end))
        times = [sample.time_ms for sample in samples]
        self.db.execute(
            "INSERT INTO filings (epoch, first, last, low, high) VALUES (?, ?, ?, ?, ?)",
            (epoch_id, samples[0].seq, samples[-1].seq, min(times), max(times)),
        )

    def _one(self, query: str, *values: Any) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.db.execute(query, values).fetchone()
        return row

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        yield
        self.db.execute("COMMIT")
