"""Detection of damage in the SQLite file, the error texts with their remedies, and the check at each start.

SQLite stores no checksums of its pages. So these checks find only inconsistencies, for example a page that does not
belong to its table. Each row of samples has a checksum of its own, which is compared whenever the row is read (see
storage.chunks and pieces).

Errors: StoreDamaged; sqlite3.Error, which `reported_damage` classifies.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from pigeonpost.core.data_folder import DATABASE, LOGS
from pigeonpost.core.errors import StoreDamaged
from pigeonpost.storage.csv.checksums import log_sizes
from pigeonpost.storage.csv.format import HEADER

_COMPARED_EPOCHS = 100_000  # the newest epochs: enough to recognise the WAL of another file
_WAL_HEAD_BYTES = 32
# Tables that each start reads completely. All others grow with the number of samples, and are read in pieces.
_SMALL = (
    "sqlite_schema", "meta", "nodes", "outboxes", "epochs", "sensors", "shapes", "logs", "gaps", "retired",
    "former_names", "labels",
)  # fmt: skip
_STRUCTURE = (
    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)  # fmt: skip
_SCHEMA_ERROR = re.compile(
    r"no such (table|column|index)|unsupported file format|(table|view) .* already exists|duplicate"
)
_ROW_ERROR = re.compile(r"malformed JSON|JSON|decode to UTF-8|string or blob too big|not stored by Pigeonpost")


Rows = TypeVar("Rows", bound=Iterable[Iterable[Any]])


class Damage(NamedTuple):
    """Damage that was found in the database.

    Attributes:
        text: Description of the damage.
        ends_writing: True if the structure of the file is damaged, and not just a row.
    """

    text: str
    ends_writing: bool


def reported_damage(error: sqlite3.Error, reads: bool = False) -> Damage | None:
    """Return the damage that an error of SQLite reports, or None if it reports none.

    Args:
        error: The error.
        reads: True if the connection only reads. An I/O error is then damage of the part that was read.
    """
    code = getattr(error, "sqlite_errorcode", None)
    primary = 0 if code is None else code & 0xFF
    if primary in _STRUCTURE or (primary == sqlite3.SQLITE_ERROR and _SCHEMA_ERROR.search(str(error))):
        return Damage(str(error), True)
    if reads and primary == sqlite3.SQLITE_IOERR:
        return Damage(f"{error}: `dmesg` shows the disk's error", False)
    if primary in (0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG) and _ROW_ERROR.search(str(error)):
        return Damage(str(error), False)
    return None


def invalid_row(what: str) -> sqlite3.DatabaseError:
    """Return the error for a row that this program never writes. `what` describes the row."""
    return sqlite3.DatabaseError(f"{what}: not stored by Pigeonpost in this form")


def plain_numbers(rows: Rows) -> Rows:
    """Return `rows` if all their values are numbers. Raise the error of `invalid_row` otherwise.

    The check is necessary because columns of SQLite accept values of any type.
    """
    for row in rows:
        for value in row:
            if type(value) is not int and type(value) is not float:
                raise invalid_row(f"{row!r:.100}")
    return rows


def plain_nodes(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `nodes`, the result of Store.nodes.

    Raise the error of `invalid_row` if a time is not a number, or if a name or unit is not text.
    """
    for about in nodes:
        plain_numbers([(about[key] or 0 for key in ("first_ms", "last_ms", "kept_from_ms"))])
        plain_texts([(about["name"], *about["sensors"], *about["sensors"].values())])
    return nodes


def plain_gaps(gaps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `gaps`, the result of Store.gaps.

    Raise the error of `invalid_row` if a column has a value of another type.
    """
    plain_numbers([[gap[key] for key in ("from", "to", "before", "noted_ms")] for gap in gaps])
    plain_texts([[gap[key] for key in ("node", "epoch", "why")] for gap in gaps])
    return gaps


def plain_texts(rows: Iterable[Iterable[Any]]) -> None:
    """Raise the error of `invalid_row` if a value in `rows` is not text."""
    for row in rows:
        for value in row:
            if type(value) is not str:
                raise invalid_row(f"{value!r:.100}")


def known_units(db: sqlite3.Connection) -> dict[str, dict[str, str]]:
    """Return the unit of each sensor in `db`, by node and sensor, for Store.known_units."""
    found: dict[str, dict[str, str]] = {}
    query = "SELECT n.name, s.name, s.unit FROM nodes n LEFT JOIN sensors s ON s.node = n.id"
    for node, sensor, unit in db.execute(query):
        if isinstance(node, str):
            units = found.setdefault(node, {})
            if isinstance(sensor, str):
                units[sensor] = unit if isinstance(unit, str) else ""
    return found


def damage_text(folder: str, what: str, ends_writing: bool = True) -> str:
    """Return the error text for a damaged database, with the remedy.

    Args:
        folder: Data folder.
        what: Description of the damage.
        ends_writing: True if nothing more is stored.
    """
    path, control = os.path.join(folder, DATABASE), f"python3 control.py --data {os.path.abspath(folder)}"
    effect = "nothing more is stored, and the nodes keep their samples" if ends_writing else "storing continues"
    return (
        f"{path} is damaged ({what}); {effect}. Stop the server, then run `{control} restore BACKUP`. Without a backup"
        f" move {DATABASE}* to another folder and start the server again: the logs remain, and the nodes send the"
        f" samples in their outboxes again (the last 65,536). `{control} export --out FILE` saves what can be read"
    )


# ------------------------------------------------------------------------------------------------- at the start


def refuse_empty(folder: str) -> None:
    """Raise StoreDamaged if the database file in `folder` is empty although CSV logs have rows.

    SQLite would create a new store in the empty file and delete its WAL. A missing file is not an error, because a user
    may have moved it away.
    """
    try:
        is_empty = os.path.getsize(os.path.join(folder, DATABASE)) == 0
    except FileNotFoundError:
        return
    if is_empty and has_rows(folder):
        raise StoreDamaged(damage_text(folder, f"it has 0 bytes, although there are logs with rows in {LOGS}/"))


def missing_text(folder: str) -> str:
    """Return the text for a database file that was missing in `folder` although CSV logs have rows."""
    return (
        f"{os.path.join(folder, DATABASE)} was missing, although there are logs with rows in {LOGS}/. A new one was"
        f" created, and the nodes send their outboxes again. For older samples stop the server, then run"
        f" `python3 control.py --data {os.path.abspath(folder)} restore BACKUP`. This is shown until the next start"
    )


def has_rows(folder: str) -> bool:
    """Return True if a CSV log in `folder` has more than its header."""
    return any(size > len(HEADER.encode()) for size in log_sizes(os.path.join(folder, LOGS)).values())


class _State(NamedTuple):
    """State of a database, for the comparison of a file with its WAL.

    Attributes:
        identity: Identity of the store.
        marks: Name and high-water mark of the newest epochs, by their id.
    """

    identity: str
    marks: dict[int, tuple[str, int]]


def refuse_foreign_wal(folder: str) -> None:
    """Raise StoreDamaged if the WAL in `folder` does not belong to the database file.

    SQLite would copy the pages of such a WAL into the file.

    The function compares the state of the file alone with the state of file and WAL together. Epochs are never deleted,
    and their high-water marks never decrease. If the file alone is not readable, for example after a crash during a
    checkpoint, the function returns without a check. No other connection of this process may be open.
    """
    path = os.path.join(folder, DATABASE)
    try:
        if os.path.getsize(f"{path}-wal") <= _WAL_HEAD_BYTES:
            return
        before = _state(path, "immutable=1")
    except (FileNotFoundError, sqlite3.Error, TypeError):
        return
    try:
        now = _state(path, "mode=ro")
    except (sqlite3.Error, TypeError) as error:
        if isinstance(error, sqlite3.Error) and not reported_damage(error):
            raise
        now = _State("", {})
    oldest = min(now.marks, default=0)
    if now.identity != before.identity or any(
        id >= oldest and (now.marks.get(id, ("", 0))[0] != epoch or now.marks[id][1] < seq)
        for id, (epoch, seq) in before.marks.items()
    ):
        raise StoreDamaged(
            damage_text(
                folder, f"{DATABASE}-wal belongs to another file, or to an older state of this one. Nothing was changed"
            )
        )


def _state(path: str, how: str) -> _State:
    """Read the state with a connection that changes nothing. `how` is its URI parameter."""
    with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?{how}", uri=True)) as db:
        (identity,) = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        query = "SELECT id, epoch, seq FROM epochs ORDER BY id DESC LIMIT ?"
        rows = db.execute(query, (_COMPARED_EPOCHS,)).fetchall()
        return _State(identity, {id: (epoch, seq) for id, epoch, seq in rows})


def start_faults(db: sqlite3.Connection, expected: Callable[[sqlite3.Connection], object]) -> Iterator[str]:
    """Check the columns of all tables, and the complete content of the small tables and their indexes.

    Args:
        db: Connection to the database.
        expected: Function that creates all tables in an empty database.

    Yields:
        A description of each fault.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        expected(model)
        columns = _columns(model)
    found = _columns(db)
    missing = sorted({table for table, _ in columns - found})
    if missing:
        yield f"table {', '.join(missing)}: missing, or without a column that Pigeonpost needs"
        return
    for table in _SMALL:
        for (line,) in db.execute(f"PRAGMA integrity_check({table})"):
            if line != "ok":
                yield f"{table}: {' '.join(line.split())}"
    for what, query in _CONSISTENCY.items():
        if db.execute(f"SELECT EXISTS ({query})").fetchone()[0]:
            yield what


def _columns(db: sqlite3.Connection) -> set[tuple[str, str]]:
    return set(
        db.execute(
            "SELECT m.name, lower(c.name || ' ' || c.type || ' ' || c.pk)"
            " FROM sqlite_schema m, pragma_table_xinfo(m.name) c WHERE m.type = 'table'"
        )
    )


_CONSISTENCY = {
    "meta: no identity": "SELECT 1 WHERE (SELECT count(*) FROM meta WHERE key = 'identity' AND length(value) = 16) = 0",
    "epochs: a row without its node, or without a high-water mark": "SELECT 1 FROM epochs WHERE"
    " typeof(seq) != 'integer' OR typeof(top) != 'integer' OR typeof(epoch) != 'text' OR seq < 0 OR"
    " node NOT IN (SELECT id FROM nodes)",
    "outboxes: a row without a number": "SELECT 1 FROM outboxes WHERE typeof(top) != 'integer'",
    "nodes: a name that is not text": "SELECT 1 FROM nodes WHERE typeof(name) != 'text' OR"
    " typeof(kept_from) != 'integer'",
    "shapes: a row that is not a list": "SELECT 1 FROM shapes WHERE CASE WHEN json_valid(names) THEN"
    " json_type(names) != 'array' ELSE 1 END",
    "gaps: a row without its epoch or range": "SELECT 1 FROM gaps WHERE typeof(first) != 'integer' OR"
    " typeof(last) != 'integer' OR typeof(before) != 'integer' OR typeof(noted) != 'integer' OR typeof(why) != 'text'"
    " OR epoch NOT IN (SELECT id FROM epochs)",
    "logs: a row without a size": "SELECT 1 FROM logs WHERE typeof(name) != 'text' OR typeof(size) != 'integer' OR"
    " typeof(tail) != 'integer' OR typeof(filed) != 'integer'",
    "former_names: a row without a name or time": "SELECT 1 FROM former_names WHERE typeof(name) != 'text' OR"
    " typeof(until) != 'integer'",
    "retired: a row without a time": "SELECT 1 FROM retired WHERE typeof(at) != 'integer'",
    "labels: a row without a text": "SELECT 1 FROM labels WHERE typeof(sensor) != 'text' OR typeof(label) != 'text'",
}  # fmt: skip
