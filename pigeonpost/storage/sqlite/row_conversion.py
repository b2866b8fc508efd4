"""Conversion of tables of formats 1 to 3, with one row per sample, to the present format: see migration.

Each transaction stores its rows together with the progress, in `meta`; a later run continues from there. Samples that
the CSV log still lacks are stored in `fresh`, in the log's order, and all others in `chunks`. All other tables are
copied unchanged.

Windows were (start, end] in the old formats and are [start, end) now. So if a sample lies exactly on an edge, the
rollups of both windows are made again. Rollups whose samples are deleted keep the old edges; `nodes.old_edges` is the
end of the last of them.

Errors: sqlite3.Error; ValueError and TypeError for rows that Pigeonpost never writes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.chunks import COLUMNS, MARKS, ChunkRow
from pigeonpost.storage.models import HOUR_MS, SPANS_MS, stretch_samples, window_end
from pigeonpost.storage.shapes import ShapeNames
from pigeonpost.storage.sqlite.schema import TABLES, UNFINISHED, VERSION

log = logging.getLogger(__name__)

Progress = Callable[[int, int], object]  # called with the number of converted samples and the total
Row = tuple[int, int, int, int, str | None, str]  # the columns in _ROW

_ROW = 'time, epoch, seq, shape, clock, CAST("values" AS TEXT)'
_STATE = "migration"  # key of the progress in meta, until the conversion is finished
_PIECE_ROWS = 20_000  # maximum rows per transaction: 55 hours of a node that takes a sample every 10 s
_PIECE_BYTES = 8 << 20  # maximum bytes of their values: a transaction with long samples has fewer rows
_REPLACED = ("samples", "filings")  # tables whose rows become chunks and fresh
_SHORT_MS = SPANS_MS[0]
_LEAST = -(1 << 63)


class Run(NamedTuple):
    """Consecutive samples of one epoch and hour with the same shape and clock state. They become one row.

    Attributes:
        epoch: Id of the epoch.
        first: Sequence number of the first sample.
        shape: Id of the shape.
        clock: Clock state, or None for the node's own clock.
        times: Time of each sample in milliseconds since 1970 (UTC).
        texts: Values of each sample, as JSON without the brackets.
    """

    epoch: int
    first: int
    shape: int
    clock: str | None
    times: list[int]
    texts: list[str]


class _RowTexts(SampleBatch):
    """A batch that has only the JSON text of its values. The text is copied into the chunk unchanged."""

    __slots__ = ()

    def __init__(self, run: Run) -> None:
        super().__init__(run.first, run.times, [], {}, clock=run.clock or "")
        self._texts = [run.texts]


class RowConversion:
    """Conversion of one database file.

    Args:
        db: Open connection to the file that receives the chunks.
        is_in_place: True if the old tables are in the same file; False if they are in the attached database `old`.
        version: Format of the old tables.
        source: Text that identifies the old file and its state, for a later run.
        report: Function to call after each transaction.
    """

    def __init__(self, db: sqlite3.Connection, is_in_place: bool, version: int, source: str, report: Progress) -> None:
        self._db, self._is_in_place, self._report = db, is_in_place, report
        self._old = "main.old_" if is_in_place else "old."  # prefix of the old tables' names
        self._begun = {"version": version, "source": source}
        self._names = ShapeNames("?")
        self._pending: dict[int, list[tuple[int, int]]] = {}  # by epoch: the sorted ranges of seq that are in fresh
        self._kept_from: dict[int, int] = {}
        # Longest row of the last piece, in bytes; this initial value makes the first piece 1,000 rows.
        self._longest = _PIECE_BYTES // 1000

    def fits(self) -> bool:
        """Return True if this run can continue the work of an earlier one, or if there is none.

        The result is False if the earlier run converted another old file or another state of it, or if it had finished.
        """
        return "meta" not in _tables(self._db, "main") or self._state().get("source") == self._begun["source"]

    def run(self) -> None:
        """Convert all samples. Continue where an earlier run ended.

        Raises:
            ValueError: The numbers of samples before and after the conversion differ.
        """
        if not self._state():
            with _transaction(self._db):
                self._begin()
        state = self._state()
        for epoch, first, last in self._db.execute(
            "SELECT epoch, first, first + count - 1 FROM fresh ORDER BY epoch, first"
        ):
            self._pending.setdefault(epoch, []).append((first, last))
        self._kept_from = dict(self._db.execute("SELECT id, kept_from FROM nodes"))
        is_left = True
        while is_left:
            self._report(state["done"], state["total"])
            with _transaction(self._db):
                is_left = self._piece(state)
        with _transaction(self._db):
            self._finish()

    def _state(self) -> dict[str, Any]:
        if "meta" not in _tables(self._db, "main"):
            return {}
        row = self._db.execute("SELECT value FROM main.meta WHERE key = ?", (_STATE,)).fetchone()
        return json.loads(row[0]) if row else {}

    def _save(self, state: dict[str, Any]) -> None:
        self._db.execute("INSERT OR REPLACE INTO main.meta VALUES (?, ?)", (_STATE, json.dumps(state)))

    # ------------------------------------------------------------------------------------ the small tables

    def _begin(self) -> None:
        """Create the new tables, copy the small ones, and store the samples that the CSV log lacks."""
        with contextlib.closing(sqlite3.connect(":memory:")) as model:
            model.executescript(TABLES)
            self._make_tables(model)
        self._db.execute("UPDATE nodes SET old_edges = kept_from")
        self._make_fresh()
        total = sum(self._expected().values())
        (done,) = self._db.execute("SELECT coalesce(sum(count), 0) FROM fresh").fetchone()
        self._db.execute(f"PRAGMA user_version = {UNFINISHED if self._is_in_place else VERSION}")
        self._save({**self._begun, "total": total, "done": done, "key": [_LEAST] * 4})

    def _make_tables(self, model: sqlite3.Connection) -> None:
        if self._is_in_place:
            self._db.execute("DROP VIEW readings")
            for name in _REPLACED:
                self._db.execute(f"ALTER TABLE {name} RENAME TO old_{name}")
        old_tables = _tables(self._db, "main" if self._is_in_place else "old")
        for kind, name, sql in model.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"):
            if kind != "table" or name not in old_tables:
                self._db.execute(sql)
                continue
            wanted = _columns(model, "main", name)
            if not self._is_in_place:
                self._db.execute(sql)
                self._copy(name, wanted)
            elif _columns(self._db, "main", name) != wanted:
                self._db.execute(f"ALTER TABLE {name} RENAME TO old_{name}")
                self._db.execute(sql)
                self._copy(name, wanted)
                self._db.execute(f"DROP TABLE old_{name}")

    def _copy(self, table: str, wanted: Sequence[str]) -> None:
        """Copy the columns that the old and the new table have in common."""
        old = _columns(self._db, *(("main", f"old_{table}") if self._is_in_place else ("old", table)))
        names = ", ".join([f'"{name}"' for name in wanted if name in old])
        self._db.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM {self._old}{table}")

    def _make_fresh(self) -> None:
        """Store the rows that the CSV log lacks, under new filing numbers: one old filing may become several rows."""
        filed = max(
            self._db.execute(f"SELECT coalesce(max({column}), 0) FROM {table}").fetchone()[0]
            for column, table in (("filed", "logs"), ("id", "main.gaps"), ("id", f"{self._old}filings"))
        )
        self._db.execute("UPDATE logs SET filed = ? WHERE id = (SELECT max(id) FROM logs)", (filed,))
        pending = self._db.execute(
            f"SELECT f.epoch, f.first, f.last, f.low, f.high, f.gap, e.node FROM {self._old}filings f"
            " JOIN main.epochs e ON e.id = f.epoch ORDER BY f.id"
        )
        for epoch, first, last, low, high, gap, node in pending:
            if gap is not None:
                filed += 1
                self._db.execute("UPDATE main.gaps SET id = ? WHERE id = ?", (filed, gap))
                continue
            rows = self._db.execute(
                f"SELECT {_ROW} FROM {self._old}samples WHERE node = ? AND time BETWEEN ? AND ? AND epoch = ?"
                " AND seq BETWEEN ? AND ? ORDER BY seq",
                (node, low, high, epoch, first, last),
            ).fetchall()
            for made in self._packed(node, _runs(rows)):
                filed += 1
                self._db.execute(f"INSERT INTO fresh (id, {COLUMNS}) VALUES (?, {MARKS})", (filed, *made))
            self._mark_windows(node, [row[0] for row in rows])

    # ----------------------------------------------------------------------------------------- the samples

    def _piece(self, state: dict[str, Any]) -> bool:
        """Store the chunks of the next samples of a node, and the progress. Return False if no samples are left."""
        node, *after = state["key"]
        most = max(100, min(_PIECE_ROWS, _PIECE_BYTES // self._longest))
        rows: list[Row] = self._db.execute(
            f"SELECT {_ROW} FROM {self._old}samples WHERE node = ? AND (time, epoch, seq) > (?, ?, ?)"
            " ORDER BY time, epoch, seq LIMIT ?",
            (node, *after, most),
        ).fetchall()
        if not rows:
            (node,) = self._db.execute(f"SELECT min(node) FROM {self._old}samples WHERE node > ?", (node,)).fetchone()
            state["key"] = [node, _LEAST, _LEAST, _LEAST]
            return node is not None
        self._longest = max(len(row[5]) for row in rows) + 1
        if len(rows) == most and (whole := bisect_left(rows, (rows[-1][0] // HOUR_MS * HOUR_MS,))):
            del rows[whole:]  # the whole last hour is left for the next piece
        kept = self._not_pending(rows)
        self._db.executemany(
            f"INSERT INTO chunks ({COLUMNS}) VALUES ({MARKS})", self._packed(node, _runs_by_hour(kept))
        )
        self._mark_windows(node, [row[0] for row in kept])
        if self._is_in_place:
            self._db.execute(
                f"DELETE FROM {self._old}samples WHERE node = ? AND (time, epoch, seq) <= (?, ?, ?)",
                (node, *rows[-1][:3]),
            )
        state["done"] += len(kept)
        state["key"] = [node, *rows[-1][:3]]
        self._save(state)
        return True

    def _not_pending(self, rows: list[Row]) -> list[Row]:
        """Return the rows that are not yet in fresh."""
        if not self._pending or self._pending.keys().isdisjoint([row[1] for row in rows]):
            return rows
        kept = []
        for row in rows:
            ranges = self._pending.get(row[1], [])
            index = bisect_right(ranges, (row[2], 1 << 64)) - 1
            if index < 0 or ranges[index][1] < row[2]:
                kept.append(row)
        return kept

    def _packed(self, node: int, runs: Iterable[Run]) -> Iterator[ChunkRow]:
        """Yield the row of each run, after reading it back and comparing it.

        A sample whose values are not valid JSON gets a row of its own, whose values cannot be read either.
        """
        for run in runs:
            try:
                made = self._pack(node, run)
                batch = made.unpack(self._names.one(self._db, run.shape))
                is_same = batch.times == run.times
            except (ValueError, TypeError):
                is_same = False
            if is_same:
                yield made
            elif len(run.times) > 1:
                half = len(run.times) // 2
                yield from self._packed(node, [_part(run, 0, half), _part(run, half, len(run.times))])
            else:
                log.warning(
                    "sample %d of epoch %d has values that are not valid JSON; they are kept", run.first, run.epoch
                )
                yield self._pack(node, run)

    @staticmethod
    def _pack(node: int, run: Run) -> ChunkRow:
        return ChunkRow.pack(node, run.epoch, run.shape, _RowTexts(run), None)

    def _mark_windows(self, node: int, times: list[int]) -> None:
        """Mark windows as dirty if their samples differ with the new edges, or all windows if there were no rollups."""
        if self._begun["version"] == 1:
            marked = {(span, window_end(time_ms, span)) for time_ms in times for span in SPANS_MS}
        else:
            kept_from = self._kept_from.get(node, 0)
            edges = {time_ms for time_ms in times if not time_ms % _SHORT_MS}
            at_edges = [(span, edge) for edge in edges for span in SPANS_MS if not edge % span]
            marked = {(span, edge) for span, edge in at_edges if edge > kept_from}
            marked |= {(span, edge + span) for span, edge in at_edges}
        self._db.executemany("INSERT OR IGNORE INTO unsummed VALUES (?, ?, ?)", [(node, *key) for key in marked])

    def _finish(self) -> None:
        """Compare the numbers of samples, and delete the old tables and the progress."""
        expected = self._expected()
        stored = dict(self._db.execute(
            "SELECT epoch, sum(count) FROM (SELECT epoch, count FROM chunks UNION ALL SELECT epoch, count FROM fresh)"
            " GROUP BY epoch"
        ))  # fmt: skip
        # There are two possible reasons for a difference. Either samples were missing before the conversion, or some
        # were not read, because they are not in the order of the index.
        if self._is_in_place or any(stored.get(epoch, 0) != count for epoch, count in expected.items()):
            (left,) = self._db.execute(f"SELECT count(*) FROM {self._old}samples").fetchone()
            if left != (0 if self._is_in_place else sum(stored.values())):
                raise ValueError(f"some of the {left} samples in the old table are not in the order of their times")
        self._db.execute("DELETE FROM meta WHERE key = ?", (_STATE,))
        if self._is_in_place:
            for name in _REPLACED:
                self._db.execute(f"DROP TABLE old_{name}")
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _expected(self) -> dict[int, int]:
        """Return the expected number of samples of each epoch, from the high-water marks."""
        marks = self._db.execute("SELECT id, seq, forgotten FROM main.epochs")
        expected = {id: seq - deleted for id, seq, deleted in marks}
        for epoch, first, last in self._db.execute("SELECT epoch, first, last FROM main.gaps"):
            expected[epoch] = expected.get(epoch, 0) - (last - first + 1)
        return expected


def _runs_by_hour(rows: list[Row]) -> Iterator[Run]:
    """Yield the runs of rows that are in the order of their times."""
    if not rows:
        return
    times, epochs, seqs, shapes, clocks, texts = zip(*rows)
    start = 0
    while start < len(rows):
        stop = bisect_left(times, (times[start] // HOUR_MS + 1) * HOUR_MS, start)
        is_one = seqs[start:stop] == tuple(range(seqs[start], seqs[start] + stop - start)) and all(
            column[start:stop].count(column[start]) == stop - start for column in (epochs, shapes, clocks)
        )
        if is_one:
            most = _most_samples(texts[start])
            for part in range(start, stop, most):
                end = min(part + most, stop)
                inner = [text[1:-1] for text in texts[part:end]]
                yield Run(epochs[part], seqs[part], shapes[part], clocks[part], list(times[part:end]), inner)
        else:
            yield from _runs(sorted(rows[start:stop], key=itemgetter(1, 2)))
        start = stop


def _runs(rows: Iterable[Row]) -> Iterator[Run]:
    """Yield the runs of rows that are in the order of their epochs and sequence numbers."""
    run: Run | None = None
    for time_ms, epoch, seq, shape, clock, text in rows:
        if (
            run is None
            or (epoch, seq, shape, clock) != (run.epoch, run.first + len(run.times), run.shape, run.clock)
            or time_ms // HOUR_MS != run.times[0] // HOUR_MS
            or len(run.times) == _most_samples(text)
        ):
            if run is not None:
                yield run
            run = Run(epoch, seq, shape, clock, [], [])
        run.times.append(time_ms)
        run.texts.append(text[1:-1])
    if run is not None:
        yield run


def _most_samples(text: str) -> int:
    """Return the number of samples that fit into one row, if they have as many values as this one."""
    return stretch_samples(text.count(",") + 1)


def _part(run: Run, start: int, stop: int) -> Run:
    return run._replace(first=run.first + start, times=run.times[start:stop], texts=run.texts[start:stop])


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _tables(db: sqlite3.Connection, schema: str) -> set[str]:
    return {name for (name,) in db.execute(f"SELECT name FROM {schema}.sqlite_schema WHERE type = 'table'")}


def _columns(db: sqlite3.Connection, schema: str, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA {schema}.table_info({table})")]
