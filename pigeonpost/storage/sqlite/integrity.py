"""Damage of the SQLite file: what counts as damage, its remedy, and the check of each start.

Errors: StoreDamaged; those of SQLite, which `is_damage` sorts.

SQLite keeps no checksums of pages, so this sees what no longer fits together, as a page that is no page of its table.
Samples have a checksum of their own, which is compared whenever they are read (see storage.chunks and pieces).
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
from pigeonpost.storage.csv.checksums import logs_in
from pigeonpost.storage.csv.format import HEADER

_COMPARED_EPOCHS = 100_000  # the newest ones, in which a WAL of another file shows
_WAL_HEAD_BYTES = 32
# Read wholly at each start. All others grow with the samples, and are read in pieces.
_SMALL = (
    "sqlite_schema", "meta", "nodes", "outboxes", "epochs", "sensors", "shapes", "logs", "gaps", "retired",
    "former_names", "labels",
)  # fmt: skip
_STRUCTURE = (
    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)  # fmt: skip
_ODD_SCHEMA = re.compile(
    r"no such (table|column|index)|unsupported file format|(table|view) .* already exists|duplicate"
)
_ODD_CONTENT = re.compile(r"malformed JSON|JSON|decode to UTF-8|string or blob too big|not stored by Pigeonpost")


Rows = TypeVar("Rows", bound=Iterable[Iterable[Any]])


class Damage(NamedTuple):
    """Damage that an error of SQLite reports. `ends_writing`: the structure of the file is wrong, not just a row."""

    text: str
    ends_writing: bool


def is_damage(error: sqlite3.Error, reads: bool = False) -> Damage | None:
    """Return what is damaged; None where it is another error. `reads`: it is that of a connection that only reads."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = 0 if code is None else code & 0xFF
    if primary in _STRUCTURE or (primary == sqlite3.SQLITE_ERROR and _ODD_SCHEMA.search(str(error))):
        return Damage(str(error), True)
    if reads and primary == sqlite3.SQLITE_IOERR:
        return Damage(f"{error}: `dmesg` says what the disk did", False)
    if primary in (0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG) and _ODD_CONTENT.search(str(error)):
        return Damage(str(error), False)
    return None


def odd(what: str) -> sqlite3.DatabaseError:
    """Return the error for a row that this program never writes."""
    return sqlite3.DatabaseError(f"{what}: not stored by Pigeonpost in this form")


def plain_numbers(rows: Rows) -> Rows:
    """Return the rows. Raises the error of `odd` where one has more than numbers: columns of SQLite take any type."""
    for row in rows:
        for value in row:
            if type(value) is not int and type(value) is not float:
                raise odd(f"{row!r:.100}")
    return rows


def plain_nodes(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what is stored of every node. Raises the error of `odd` where a time is no number, or a name no text."""
    for about in nodes:
        plain_numbers([(about[key] or 0 for key in ("first_ms", "last_ms", "kept_from_ms"))])
        plain_texts([(about["name"], *about["sensors"], *about["sensors"].values())])
    return nodes


def plain_gaps(gaps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return gaps. Raises the error of `odd` where one has other numbers and texts than gaps have."""
    plain_numbers([[gap[key] for key in ("from", "to", "before", "noted_ms")] for gap in gaps])
    plain_texts([[gap[key] for key in ("node", "epoch", "why")] for gap in gaps])
    return gaps


def plain_texts(rows: Iterable[Iterable[Any]]) -> None:
    """Raise the error of `odd` where a row has more than texts."""
    for row in rows:
        for value in row:
            if type(value) is not str:
                raise odd(f"{value!r:.100}")


def known_units(db: sqlite3.Connection) -> dict[str, dict[str, str]]:
    """Return the units by node and sensor, for Store.known_units."""
    found: dict[str, dict[str, str]] = {}
    query = "SELECT n.name, s.name, s.unit FROM nodes n LEFT JOIN sensors s ON s.node = n.id"
    for node, sensor, unit in db.execute(query):
        if isinstance(node, str):
            units = found.setdefault(node, {})
            if isinstance(sensor, str):
                units[sensor] = unit if isinstance(unit, str) else ""
    return found


def damage_text(folder: str, what: str, ends_writing: bool = True) -> str:
    """Return what is wrong with the database in `folder`, and the remedy."""
    path, control = os.path.join(folder, DATABASE), f"python3 control.py --data {os.path.abspath(folder)}"
    so = "nothing more is stored, the nodes keep their samples" if ends_writing else "storing goes on"
    return (
        f"{path} is damaged ({what}); {so}. Stop the server, then `{control} restore BACKUP`; without a backup move"
        f" {DATABASE}* to another folder and start it again: the logs stay, and nodes send again what their outboxes"
        f" hold (their last 65,536 samples). `{control} export --out FILE` saves what can be read"
    )


# ------------------------------------------------------------------------------------------------- at the start


def refuse_empty(folder: str) -> None:
    """Raise StoreDamaged where there is a file without content beside logs with rows: SQLite would begin a new store in
    it, and delete its WAL. A file that is not there was moved away by somebody."""
    try:
        is_empty = os.path.getsize(os.path.join(folder, DATABASE)) == 0
    except FileNotFoundError:
        return
    if is_empty and has_rows(folder):
        raise StoreDamaged(damage_text(folder, f"it has 0 bytes, though there are logs with rows in {LOGS}/"))


def missing_text(folder: str) -> str:
    """Return what is said where the database was not there, though logs have rows: somebody moved or deleted it."""
    return (
        f"{os.path.join(folder, DATABASE)} was missing though there are logs with rows in {LOGS}/: a new one was made,"
        f" and nodes send again what their outboxes hold. For what is older stop the server, then"
        f" `python3 control.py --data {os.path.abspath(folder)} restore BACKUP`. This is shown until the next start"
    )


def has_rows(folder: str) -> bool:
    """Return True if a CSV log in `folder` has more than its header."""
    logs = os.path.join(folder, LOGS)
    return any(os.path.getsize(os.path.join(logs, name)) > len(HEADER.encode()) for name in logs_in(logs))


class _State(NamedTuple):
    """The identity of a database, and the marks (epoch, seq) of its newest epochs by their id."""

    identity: str
    marks: dict[int, tuple[str, int]]


def refuse_foreign_wal(folder: str) -> None:
    """Raise StoreDamaged where the WAL is not that of the file: SQLite would put its pages into the file.

    What the file says without its WAL is compared with what it says with it: epochs are never deleted, and their marks
    never fall. Where the file alone makes no sense, as after a crash within a checkpoint, nothing is known. No other
    connection of this process may be open.
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
        if isinstance(error, sqlite3.Error) and not is_damage(error):
            raise
        now = _State("", {})
    oldest = min(now.marks, default=0)
    if now.identity != before.identity or any(
        id >= oldest and (now.marks.get(id, ("", 0))[0] != epoch or now.marks[id][1] < seq)
        for id, (epoch, seq) in before.marks.items()
    ):
        raise StoreDamaged(
            damage_text(folder, f"{DATABASE}-wal is that of another file, or of an older state: nothing was changed")
        )


def _state(path: str, how: str) -> _State:
    """Read the state by a connection that is opened as `how` says, and changes nothing."""
    with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?{how}", uri=True)) as db:
        (identity,) = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        query = "SELECT id, epoch, seq FROM epochs ORDER BY id DESC LIMIT ?"
        rows = db.execute(query, (_COMPARED_EPOCHS,)).fetchall()
        return _State(identity, {id: (epoch, seq) for id, epoch, seq in rows})


def start_faults(db: sqlite3.Connection, expected: Callable[[sqlite3.Connection], object]) -> Iterator[str]:
    """Check what is small: tables and columns, the small tables with their indexes, and that their rows make sense.

    expected: makes all tables in an empty database
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        expected(model)
        columns = _columns(model)
    found = _columns(db)
    missing = sorted({table for table, _ in columns - found})
    if missing:
        yield f"table {', '.join(missing)}: not as Pigeonpost makes it"
        return
    for table in _SMALL:
        for (line,) in db.execute(f"PRAGMA integrity_check({table})"):
            if line != "ok":
                yield f"{table}: {' '.join(line.split())}"
    for what, query in _SENSE.items():
        if db.execute(f"SELECT EXISTS ({query})").fetchone()[0]:
            yield what


def _columns(db: sqlite3.Connection) -> set[tuple[str, str]]:
    return set(
        db.execute(
            "SELECT m.name, lower(c.name || ' ' || c.type || ' ' || c.pk)"
            " FROM sqlite_schema m, pragma_table_xinfo(m.name) c WHERE m.type = 'table'"
        )
    )


_SENSE = {
    "meta: no identity": "SELECT 1 WHERE (SELECT count(*) FROM meta WHERE key = 'identity' AND length(value) = 16) = 0",
    "epochs: a row without its node, or without a mark": "SELECT 1 FROM epochs WHERE typeof(seq) != 'integer' OR"
    " typeof(top) != 'integer' OR typeof(epoch) != 'text' OR seq < 0 OR node NOT IN (SELECT id FROM nodes)",
    "outboxes: a row without a number": "SELECT 1 FROM outboxes WHERE typeof(top) != 'integer'",
    "nodes: a name that is none": "SELECT 1 FROM nodes WHERE typeof(name) != 'text' OR typeof(kept_from) != 'integer'",
    "shapes: a list that is none": "SELECT 1 FROM shapes WHERE CASE WHEN json_valid(names) THEN"
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
