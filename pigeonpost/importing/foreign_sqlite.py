"""Readings in tables of other programs' databases: recognition of columns, and conversion to rows of our CSV log.

Reads SQLite files itself; rows of other databases are passed in. Errors: BadTable, which says what could not be
recognised, or which row is wrong.

Columns are recognised by their names. A value column beside one that names its sensor makes one reading of each row;
otherwise each other column is a sensor. References to another table (`node_id`) are resolved to names. Where that does
not suffice, a query does: `SELECT taken AS time, place AS node, t / 1000.0 AS temperature FROM x`.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import PigeonpostError
from pigeonpost.importing.cells import read_time, read_value, sensor_name
from pigeonpost.storage.csv.format import HEADER, cell
from protocol import UNIT

_TIMES = ("time", "timestamp", "datetime", "date", "ts", "taken", "taken_at", "time_taken", "created", "created_at",
          "added", "added_at", "date_time", "dtimestamp")  # fmt: skip
_NODES = ("node", "node_name", "location", "place", "room", "device", "host", "hostname", "station", "pi")
_SENSORS = ("sensor", "sensor_name", "sensortype", "sensor_type", "codifier", "channel", "kind", "type", "metric")
_VALUES = ("value", "reading", "val", "measurement")
_UNITS = ("unit", "units", "symbol")
_NAMES = ("name", "label", "title", "codifier", "shortname", "node", "sensor")  # of what is referred to
_IGNORED = re.compile(r"id|rowid|oid|pk|uuid|seq|token|test|.+_id", re.IGNORECASE).fullmatch
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+").sub


class BadTable(PigeonpostError, ValueError):
    """The columns of a table cannot be recognised, or a row of it is wrong."""


class Columns(NamedTuple):
    """Positions of the known columns; -1: none. `sensors`: the other columns with their names and units."""

    time: int
    node: int
    sensor: int
    value: int
    unit: int
    sensors: Sequence[tuple[int, str, str]]


class ForeignColumns(NamedTuple):
    """What the user says of a table that it does not say itself.

    node    whose all of it is; empty: the table says it
    sensor  of the column `value`, where no other names it
    scale   each value times this
    is_utc  times without an offset are UTC, not this machine's local time
    """

    node: str = ""
    sensor: str = "value"
    unit: str = ""
    scale: float = 1.0
    is_utc: bool = False

    def for_table(self, table: str) -> ForeignColumns:
        """Return the same with the table's name as that of the sensor, unless the user has named one."""
        if self.sensor != ForeignColumns().sensor:
            return self
        return self._replace(sensor=sensor_name(table)[0] or self.sensor)


def find_columns(names: Sequence[str], said: ForeignColumns) -> Columns:
    """Which column is what. Raises BadTable when that cannot be told."""
    small = [name.lower() for name in names]

    def place(known: Iterable[str]) -> int:
        return next((small.index(name) for name in known if name in small), -1)

    time, node, sensor, value, unit = map(place, (_TIMES, _NODES, _SENSORS, _VALUES, _UNITS))
    if time < 0:
        raise BadTable(f"no column is called time (there are {', '.join(names)})")
    if node < 0 and not said.node:
        raise BadTable(f"no column is called node, so --node has to say whose it is (there are {', '.join(names)})")
    if value >= 0:
        return Columns(time, node, sensor, value, unit, ())
    taken = {time, node, sensor, unit}
    others = [(at, *sensor_name(name)) for at, name in enumerate(names) if at not in taken and not _IGNORED(name)]
    if not others:
        raise BadTable(f"no column has a value (there are {', '.join(names)})")
    return Columns(time, node, -1, -1, unit, [(at, name, found or said.unit) for at, name, found in others])


def log_lines(names: Sequence[str], rows: Iterable[Sequence[Any]], said: ForeignColumns) -> Iterator[str]:
    """The rows of a table as our CSV log has them, its head first. Raises BadTable for the first that is wrong."""
    columns = find_columns(names, said)
    yield HEADER
    for number, row in enumerate(rows, 1):
        try:
            yield from _row_lines(row, columns, said)
        except ValueError as error:
            raise BadTable(f"row {number}: {error}") from None


def _row_lines(row: Sequence[Any], columns: Columns, said: ForeignColumns) -> Iterator[str]:
    time_ms = read_time(_time(row[columns.time], said.is_utc))
    if not 0 <= time_ms < 253_402_300_800_000:
        raise ValueError(f"{row[columns.time]!r:.60} is not between 1970 and 9999")
    start = f"{rfc3339(time_ms)},{said.node or _node_name(row[columns.node])}"
    if columns.value >= 0:
        name = sensor_name(str(row[columns.sensor]))[0] if columns.sensor >= 0 else said.sensor
        unit = str(row[columns.unit] or "") if columns.unit >= 0 else said.unit
        found: Iterable[tuple[int, str, str]] = [(columns.value, name, unit if UNIT(unit) else "")]
    else:
        found = columns.sensors
    for at, name, unit in found:
        if not name:
            raise ValueError(f"{row[columns.sensor]!r:.60} names no sensor")
        value = read_value(row[at], name)
        if value is not None and said.scale != 1.0:
            value = read_value(float(f"{value * said.scale:.12g}"), name)
        if value is not None or columns.value >= 0:  # in a table an empty cell says that it was not read
            yield f"{start},{name},{'' if value is None else repr(value)},{cell(unit)}\n"


def _time(said: Any, is_utc: bool) -> Any:
    """A time as read_time takes it; those of PostgreSQL come as datetime."""
    text = said.isoformat(" ") if hasattr(said, "isoformat") else said
    if is_utc and isinstance(text, str) and not _WITH_OFFSET(text) and not text.strip().replace(".", "").isdigit():
        text = f"{text.strip()}Z"
    return text


_WITH_OFFSET = re.compile(r".*(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})\s*", re.DOTALL).fullmatch


def _node_name(said: Any) -> str:
    """A name for a node out of what another program called it: `Living room` is `Living_room`."""
    ascii_ = unicodedata.normalize("NFKD", str("" if said is None else said)[:200]).encode("ascii", "ignore").decode()
    name = _NOT_IN_NAMES("_", ascii_).strip("._-")[:63]
    if not name:
        raise ValueError(f"{said!r:.60} names no node; --node says whose it is")
    return name


def sqlite_lines(path: str, table: str, query: str, said: ForeignColumns) -> Iterator[str]:
    """Yield the rows of a table in an SQLite file as lines of our CSV log. The file is only read.

    table  which one; empty: the one that has readings
    query  instead of a table: a SELECT, whose columns are named as above
    Raises BadTable, sqlite3.Error.
    """
    with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as db:
        db.execute("PRAGMA trusted_schema = OFF")
        db.text_factory = lambda text: text.decode(errors="replace")
        if not query:
            if _is_ours(db):
                raise BadTable("is a Pigeonpost database: `export` it there and import that, or `restore` it")
            table = table or _find_table(db, said)
            query = _query_of(db, table)
            said = said.for_table(table)
        rows = db.execute(query)
        yield from log_lines([column[0] for column in rows.description or ()], rows, said)


def _is_ours(db: sqlite3.Connection) -> bool:
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    return names.issuperset(("epochs", "samples", "shapes", "outboxes"))


def _find_table(db: sqlite3.Connection, said: ForeignColumns) -> str:
    """The one table that has readings."""
    found = []
    tables = db.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite@_%'"
                        " ESCAPE '@' ORDER BY name").fetchall()  # fmt: skip
    for (name,) in tables:
        with contextlib.suppress(BadTable):
            find_columns([column[0] for column in db.execute(f"{_query_of(db, name)} LIMIT 0").description], said)
            found.append(name)
    if len(found) != 1:
        there = ", ".join(name for (name,) in tables) or "none"
        which = f"tables {', '.join(found)} may all have readings" if found else f"no table has readings ({there})"
        raise BadTable(f"{which}; --table or --query says which, --node whose")
    return str(found[0])


def _query_of(db: sqlite3.Connection, table: str) -> str:
    """A query for all of a table, with names in place of what refers to other tables."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({_quoted(table)})")]
    if not columns:
        raise BadTable(f"there is no table {table}")
    refers = {row[3]: (row[2], row[4] or "id") for row in db.execute(f"PRAGMA foreign_key_list({_quoted(table)})")}
    chosen, joins = [], []
    for number, name in enumerate(columns):
        role = _role(name)
        other, key = refers.get(name, ("", "id")) if role else ("", "")
        label = _label(db, other) if other else ""
        if label:
            joins.append(
                f" LEFT JOIN {_quoted(other)} r{number} ON r{number}.{_quoted(key)} = t.{_quoted(name)}"
            )  # fmt: skip
            chosen.append(f"r{number}.{_quoted(label)} AS {role}")
        else:
            chosen.append(f"t.{_quoted(name)}")
    return f"SELECT {', '.join(chosen)} FROM {_quoted(table)} t{''.join(joins)}"


def _role(column: str) -> str:
    """Whether a column that refers to another table says the node or the sensor."""
    plain = column.lower().removesuffix("_id")
    return "node" if plain in _NODES else "sensor" if plain in _SENSORS else ""


def _label(db: sqlite3.Connection, table: str) -> str:
    """The column by which people call the rows of a table."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({_quoted(table)})")]
    return next((column for name in _NAMES for column in columns if column.lower() == name), "")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
