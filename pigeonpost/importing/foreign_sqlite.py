"""Conversion of tables in other programs' databases to Pigeonpost's CSV log.

This module reads SQLite files. Rows of other databases are passed to `log_lines`. Errors: BadTable, if the columns
cannot be recognised, or a row is invalid.

Columns are recognised by their names. If there is a column `value`, each row is one reading, of the sensor in a column
such as `sensor`. Otherwise each column that is not recognised is a sensor. References to another table (`node_id`) are
replaced by names from that table. For all other tables, the user can write a query:
`SELECT taken AS time, place AS node, t / 1000.0 AS temperature FROM x`.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import PigeonpostError
from pigeonpost.core.format import counted
from pigeonpost.importing import home_assistant, weewx
from pigeonpost.importing.cells import node_name, read_value, sensor_name
from pigeonpost.importing.numbers import read_number
from pigeonpost.importing.options import ImportOptions
from pigeonpost.importing.times import LocalTimes
from pigeonpost.importing.units import conversion_to_first
from pigeonpost.storage.csv.format import HEADER, cell
from protocol import UNIT

_TIMES = ("time", "timestamp", "datetime", "date", "ts", "taken", "taken_at", "time_taken", "created", "created_at",
          "added", "added_at", "date_time", "dtimestamp")  # fmt: skip
_NODES = ("node", "node_name", "location", "place", "room", "device", "host", "hostname", "station", "pi")
_SENSORS = ("sensor", "sensor_name", "sensortype", "sensor_type", "codifier", "channel", "kind", "type", "metric")
_VALUES = ("value", "reading", "val", "measurement")
_UNITS = ("unit", "units", "symbol")
_NAMES = ("name", "label", "title", "codifier", "shortname", "node", "sensor")  # in a referenced table
_IGNORED = re.compile(r"id|rowid|oid|pk|uuid|seq|token|test|.+_id", re.IGNORECASE).fullmatch


_SKIPPED_SHOWN = 20


class BadTable(PigeonpostError, ValueError):
    """The columns of a table cannot be recognised, or a row of it is invalid."""


class Columns(NamedTuple):
    """Positions of the columns of a table. A position is -1 if there is no such column.

    `sensors` has the columns that are sensors themselves, each with its position, name and unit.
    """

    time: int
    node: int
    sensor: int
    value: int
    unit: int
    sensors: Sequence[tuple[int, str, str]]


class ForeignColumns(NamedTuple):
    """Information from the user that a table does not contain.

    Attributes:
        node: Node of all readings, or an empty string if the table names it.
        sensor: Sensor of the column `value`, if no other column names it.
        options: Options of the user for times and values.
    """

    node: str = ""
    sensor: str = "value"
    options: ImportOptions = ImportOptions()

    def for_table(self, table: str) -> ForeignColumns:
        """Return a copy with the name of the `table` as the sensor, unless the user has named a sensor."""
        if self.sensor != ForeignColumns().sensor:
            return self
        return self._replace(sensor=sensor_name(table)[0] or self.sensor)


def find_columns(names: Sequence[str], options: ForeignColumns) -> Columns:
    """Return the positions of the columns with these `names`.

    `options` has the information that the table does not contain.

    Raises:
        BadTable: There is no column for the time, the node or a value.
    """
    lower = [name.lower() for name in names]

    def position(candidates: Iterable[str]) -> int:
        return next((lower.index(name) for name in candidates if name in lower), -1)

    time, node, sensor, value, unit = map(position, (_TIMES, _NODES, _SENSORS, _VALUES, _UNITS))
    if time < 0:
        raise BadTable(f"there is no column `time`; the columns are: {', '.join(names)}")
    if node < 0 and not options.node:
        raise BadTable(f"there is no column `node`: name the node with --node; the columns are: {', '.join(names)}")
    if value >= 0:
        return Columns(time, node, sensor, value, unit, ())
    taken = {time, node, sensor, unit}
    others = [(at, *sensor_name(name)) for at, name in enumerate(names) if at not in taken and not _IGNORED(name)]
    if not others:
        raise BadTable(f"there is no column with values; the columns are: {', '.join(names)}")
    return Columns(time, node, -1, -1, unit, others)


def log_lines(
    names: Sequence[str], rows: Iterable[Sequence[Any]], options: ForeignColumns, notes: list[str]
) -> Iterator[str]:
    """Yield a table as lines of the CSV log, its header first.

    Args:
        names: Names of the columns.
        rows: Rows of the table.
        options: Information that the table does not contain.
        notes: List to which notes for the user are added: the rows that are left out.

    Raises:
        BadTable: The columns cannot be recognised, or a row is invalid and is not to be left out.
    """
    skipped = 0
    columns, times = find_columns(names, options), LocalTimes(options.options)
    units: dict[tuple[str, str], str] = {}  # the first one by node and sensor: a node has one unit for a sensor
    yield HEADER
    for number, row in enumerate(rows, 1):
        try:
            yield from _row_lines(row, columns, options, times, units)
        except ValueError as error:
            if not options.options.skip_bad:
                raise BadTable(f"row {number}: {error}") from None
            skipped += 1
            if skipped <= _SKIPPED_SHOWN:
                notes.append(f"row {number}: {error}: left out")
    if skipped:
        notes.append(f"{counted(skipped, 'invalid row')} left out")


def _row_lines(
    row: Sequence[Any],
    columns: Columns,
    options: ForeignColumns,
    times: LocalTimes,
    units: dict[tuple[str, str], str],
) -> Iterator[str]:
    time_ms = times.read(row[columns.time], _series(row, columns))
    if not 0 <= time_ms < 253_402_300_800_000:
        raise ValueError(f"{row[columns.time]!r:.60} is not between 1970 and 9999")
    node = options.node or node_name(row[columns.node])
    start = f"{rfc3339(time_ms)},{node}"
    if columns.value >= 0:
        name = sensor_name(str(row[columns.sensor]))[0] if columns.sensor >= 0 else options.sensor
        unit = str(row[columns.unit] or "") if columns.unit >= 0 else ""
        found: Iterable[tuple[int, str, str]] = [(columns.value, name, unit if UNIT(unit) else "")]
    else:
        found = columns.sensors
    for at, name, unit in found:
        if not name:
            raise ValueError(f"{row[columns.sensor]!r:.60} is not a valid sensor name")
        value = row[at]
        value = read_number(value, name) if isinstance(value, str) else read_value(value, name)
        first = units.setdefault((node, name), unit) if unit else units.get((node, name), "")
        converted = conversion_to_first(name, unit or first, first, options.options)
        value = read_value(converted.apply(value), name)
        # An empty cell in the column of a sensor means that the sensor was not read; in a column `value`, it failed.
        if value is not None or columns.value >= 0:
            yield f"{start},{name},{'' if value is None else repr(value)},{cell(converted.unit)}\n"


def _series(row: Sequence[Any], columns: Columns) -> str:
    return "\0".join(str(row[at]) for at in (columns.node, columns.sensor) if at >= 0)


def sqlite_lines(path: str, table: str, query: str, options: ForeignColumns, notes: list[str]) -> Iterator[str]:
    """Yield the rows of a table in an SQLite file as lines of the CSV log. The file is only read.

    Args:
        path: Path of the file.
        table: Name of the table, or an empty string to use the only table with readings.
        query: SELECT statement that is used instead of a table. Its columns must have names that are recognised here.
        options: Information that the table does not contain.
        notes: List to which notes for the user are added.

    Raises:
        BadTable: The columns cannot be recognised, or a row is invalid.
        sqlite3.Error: The file cannot be read.
    """
    with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as db:
        db.execute("PRAGMA trusted_schema = OFF")
        db.text_factory = lambda text: text.decode(errors="replace")
        is_query = bool(query)
        if not query:
            if _is_ours(db):
                raise BadTable("this is a Pigeonpost database: use `export` and import the result, or use `restore`")
            known = _known_program(db, table, options, notes)
            if known:
                yield HEADER
                try:
                    yield from known
                except ValueError as error:
                    raise BadTable(str(error)) from None
                return
            table = table or _find_table(db, options)
            query = _query_of(db, table)
            options = options.for_table(table)
        notes.append(f"format: database, {'query' if is_query else f'table {table}'}")
        rows = db.execute(query)
        yield from log_lines([column[0] for column in rows.description or ()], rows, options, notes)


def _known_program(
    db: sqlite3.Connection, table: str, options: ForeignColumns, notes: list[str]
) -> Iterator[str] | None:
    """Return the lines of the database of a known program, or None if its columns must be recognised."""
    if table in ("", *home_assistant.TABLES) and home_assistant.is_home_assistant(db):
        _require_node("Home Assistant", options)
        return home_assistant.home_assistant_lines(db, table, options.node, options.options, notes)
    if table in ("", weewx.TABLE) and weewx.is_weewx(db):
        _require_node("WeeWX", options)
        return weewx.weewx_lines(db, options.node, options.options, notes)
    return None


def _require_node(program: str, options: ForeignColumns) -> None:
    if not options.node:
        raise BadTable(f"a database of {program} does not name the node of its readings: add --node NODE")


def _is_ours(db: sqlite3.Connection) -> bool:
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    return names.issuperset(("epochs", "samples", "shapes", "outboxes"))


def _find_table(db: sqlite3.Connection, options: ForeignColumns) -> str:
    """Return the name of the only table that has readings. Raise BadTable if there is not exactly one."""
    found = []
    tables = db.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite@_%'"
                        " ESCAPE '@' ORDER BY name").fetchall()  # fmt: skip
    for (name,) in tables:
        with contextlib.suppress(BadTable):
            find_columns([column[0] for column in db.execute(f"{_query_of(db, name)} LIMIT 0").description], options)
            found.append(name)
    if len(found) != 1:
        names = ", ".join(name for (name,) in tables) or "none"
        reason = f"several tables may have readings: {', '.join(found)}"
        if not found:
            reason = f"no table with readings was recognised; the tables are: {names}"
        raise BadTable(f"{reason}; use --table or --query, and --node if the table has no column for the node")
    return str(found[0])


def _query_of(db: sqlite3.Connection, table: str) -> str:
    """Return a query for all rows of a table, with references to other tables replaced by names."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({_quoted(table)})")]
    if not columns:
        raise BadTable(f"there is no table `{table}`")
    references = {row[3]: (row[2], row[4] or "id") for row in db.execute(f"PRAGMA foreign_key_list({_quoted(table)})")}
    chosen, joins = [], []
    for number, name in enumerate(columns):
        role = _role(name)
        other, key = references.get(name, ("", "id")) if role else ("", "")
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
    """Return "node" or "sensor" if the name of a column identifies a node or a sensor, or else an empty string."""
    plain = column.lower().removesuffix("_id")
    return "node" if plain in _NODES else "sensor" if plain in _SENSORS else ""


def _label(db: sqlite3.Connection, table: str) -> str:
    """Return the name of the column with a label for each row of a table, or an empty string if there is none."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({_quoted(table)})")]
    return next((column for name in _NAMES for column in columns if column.lower() == name), "")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
