"""Readers of files of readings: the CSV log, simple tables, and JSON; row by row, with every fault named.

    time,node,sensor,value,unit          our own log: one row per value; rows of one moment make one reading
    time,temperature (°C),humidity [%]   a table: the first column is the time, each other one a sensor
    [{"time": ..., "temperature": 21.5}, ...]   or {"readings": [...]}; values may be in {"values": {...}}
    {"time": ..., "values": {...}}       one per line, in a .jsonl, or in a .json that looks like one

A column `node` of a table names the node of each row. Of a table and of a .jsonl file, however long, one line is held
at a time; other JSON is read whole, and limited. Errors: none raised; a fault in a row is a Fault among the readings.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

from pigeonpost.core.errors import WireError
from pigeonpost.core.strict_json import read_json
from protocol import LARGEST_INTEGER, NODE_NAME, SENSOR_NAME, UNIT, Number, Values

JSON_BYTES = 8 << 20  # a JSON file is read whole, and needs about ten times its size in memory
MOST_COLUMNS = 256
_LINE_BYTES = 1 << 16
_LOG_COLUMNS = ["time", "node", "sensor", "value", "unit"]


class ImportedReading(NamedTuple):
    """A reading in a file. `where` is "line 5" or "reading 5"; `node` is empty where the file has none."""

    where: str
    node: str
    time_ms: int
    values: Values
    units: dict[str, str]


class Fault(NamedTuple):
    """A fault in a file, and its place."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class _Wrong(ValueError):
    """A fault in one row."""


# --------------------------------------------------------------------------------------------------------- values


def read_time(said: object) -> int:
    """A time in a file, in ms since 1970: ISO 8601 (without an offset: this machine's local time), seconds, or ms."""
    text = said.strip() if isinstance(said, str) else str(said) if type(said) in (int, float) else ""
    if _NUMERIC_TIME(text):
        count = float(text)
        return round(count) if count >= 1e11 else round(count * 1000)
    try:
        if not _DATE_TIME(text):
            raise ValueError
        moment = datetime.fromisoformat(text.replace(",", ".").replace(" Z", "Z").replace(" +", "+"))
        return round(moment.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise _Wrong(f"{_preview(said)} is no time like 2026-11-20T15:36:10Z or seconds since 1970") from None


def read_value(said: object, name: str) -> Number | None:
    """A value in a file; None where there is none."""
    if type(said) in (int, float):
        value: Number = said  # type: ignore[assignment]
    elif said is None:
        return None
    else:
        text = said.strip() if isinstance(said, str) else "?"
        if text.lower() in _NO_VALUE:
            return None
        if not _NUMBER(text):
            raise _Wrong(f"{name} takes a number, not {_preview(said)}")
        value = float(text) if any(mark in text for mark in ".eE") else int(text)
    if value - value != 0 or (type(value) is int and abs(value) > LARGEST_INTEGER):
        raise _Wrong(f"{name} is too large: {_preview(said)}")
    return value


def sensor_name(said: str) -> tuple[str, str]:
    """The sensor and the unit that the head of a column names: `Temperature (°C)` is ("temperature", "°C")."""
    found = _WITH_UNIT(said.strip())
    plain, unit = (found[1], (found[2] or found[3] or "").strip()) if found else (said, "")
    ascii_ = unicodedata.normalize("NFKD", plain[:200]).encode("ascii", "ignore").decode().lower()
    name = _NOT_IN_NAMES("_", ascii_).strip("_")
    if name and not name[0].isalpha():
        name = f"s_{name}"
    return name[:32].rstrip("_"), unit if UNIT(unit) else ""


def _preview(said: object) -> str:
    text = repr(said)
    return text if len(text) <= 40 else text[:37] + "..."


def _unguarded(cell: str) -> str:
    """A text as it was before the log guarded it against being taken for a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in ("=", "+", "-", "@") else cell


_NUMERIC_TIME = re.compile(r"[0-9]{9,14}(?:\.[0-9]{1,9})?").fullmatch
_DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?"
    r"(?: ?(?:[Zz]|[+-][0-9]{2}:?[0-9]{2}))?"
).fullmatch
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?").fullmatch
_NO_VALUE = ("", "-", "na", "n/a", "nan", "null", "none")
_WITH_UNIT = re.compile(r"([^(\[]{1,200})(?:\(([^()]{0,40})\)|\[([^\[\]]{0,40})\])").fullmatch
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+").sub

# ------------------------------------------------------------------------------------------------------------ CSV


def _csv_readings(file: BinaryIO) -> Iterator[ImportedReading | Fault]:
    first = file.readline(_LINE_BYTES)
    file.seek(0)
    mark = max(";\t,", key=_text(first).count)  # of equally many the first; a comma where there is none
    mark = mark if _text(first).count(mark) else ","
    rows = csv.reader(_lines(file), delimiter=mark, strict=True)
    try:
        heads = [cell.strip() for cell in next(rows, [])]
        if [head.lower() for head in heads] == _LOG_COLUMNS:
            yield from _log_rows(rows)
        else:
            yield from _table_rows(rows, heads, mark == ";")
    except (csv.Error, _Wrong) as error:
        yield Fault(f"line {max(rows.line_num, 1)}", str(error))


def _lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(_LINE_BYTES):
        if len(line) == _LINE_BYTES and not line.endswith(b"\n"):
            raise _Wrong(f"a line has at most {_LINE_BYTES} bytes")
        yield _text(line)


def _text(line: bytes) -> str:
    """A line of a table as text: UTF-8, or what programs of old write."""
    try:
        return line.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _log_rows(rows: Any) -> Iterator[ImportedReading | Fault]:
    """Rows of our own log: those that follow each other with the same time and node make one reading."""
    opened: tuple[str, str] | None = None
    reading = ImportedReading("", "", 0, {}, {})
    for row in rows:
        where = f"line {rows.line_num}"
        try:
            time, node, sensor, value, unit = _log_row(row)
            if _is_gap(sensor, unit):
                continue
            if opened != (time, node) or sensor in reading.values:
                if reading.values:
                    yield reading
                opened, reading = (time, node), ImportedReading(where, node, read_time(time), {}, {})
            reading.values[sensor] = read_value(value, sensor)
            reading.units[sensor] = unit
        except _Wrong as error:
            yield Fault(where, str(error))
    if reading.values:
        yield reading


def _log_row(row: list[str]) -> tuple[str, str, str, str, str]:
    if len(row) != len(_LOG_COLUMNS):
        raise _Wrong(f"{len(row)} cells, where {','.join(_LOG_COLUMNS)} are {len(_LOG_COLUMNS)}")
    time, node, sensor, value, unit = row
    unit = _unguarded(unit)
    if not NODE_NAME(node):
        raise _Wrong(f"{_preview(node)} is no name of a node")
    if not SENSOR_NAME(sensor):
        raise _Wrong(f"{_preview(sensor)} is no name of a sensor")
    if not UNIT(unit) and not _is_gap(sensor, unit):
        raise _Wrong(f"{_preview(unit)} is no unit")
    return time, node, sensor, value, unit


def _is_gap(sensor: str, unit: str) -> bool:
    """A row that says what is missing, in place of a unit; a longer text than any unit."""
    return sensor == "gap" and unit.startswith("samples ")


def _table_rows(rows: Any, heads: list[str], decimal_comma: bool) -> Iterator[ImportedReading | Fault]:
    """Rows of a table. decimal_comma: where semicolons stand between cells, a comma stands in numbers."""
    whose = next((place for place, head in enumerate(heads) if place and head.lower() == "node"), 0)
    columns = _columns(heads[:whose] + heads[whose + 1 :] if whose else heads)
    names, units = [name for name, _ in columns], {name: unit for name, unit in columns if unit}
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        where = f"line {rows.line_num}"
        try:
            if len(row) != len(heads):
                raise _Wrong(f"{len(row)} cells, where the first line has {len(heads)}")
            node = row.pop(whose).strip() if whose else ""
            if whose and not NODE_NAME(node):
                raise _Wrong(f"{_preview(node)} is no name of a node")
            cells = [cell.replace(",", ".") if decimal_comma else cell for cell in row[1:]]
            values = {name: read_value(cell, name) for name, cell in zip(names, cells)}
            time_ms = read_time(row[0])
        except _Wrong as error:
            yield Fault(where, str(error))
            continue
        there: Values = {name: value for name, value in values.items() if value is not None}
        if there:  # an empty cell: that sensor was not read then
            yield ImportedReading(where, node, time_ms, there, units)


def _columns(heads: list[str]) -> list[tuple[str, str]]:
    """Sensor and unit of each column but the first."""
    if not 2 <= len(heads) <= MOST_COLUMNS:
        raise _Wrong(f"a table has 2 to {MOST_COLUMNS} columns, the first for the time; this one has {len(heads)}")
    try:
        read_time(heads[0])
    except _Wrong:
        pass
    else:
        raise _Wrong("the first line names the columns: time, and a sensor for each other one")
    columns = [sensor_name(head) for head in heads[1:]]
    names = [name for name, _ in columns]
    for head, name in zip(heads[1:], names):
        if not name:
            raise _Wrong(f"{_preview(head)} is no name of a sensor")
        if names.count(name) > 1:
            raise _Wrong(f"two columns are called {name}")
    return columns


# ----------------------------------------------------------------------------------------------------------- JSON


def _json_readings(file: BinaryIO) -> Iterator[ImportedReading | Fault]:
    data = file.read(JSON_BYTES + 1)
    if len(data) > JSON_BYTES:
        yield Fault("the file", f"of JSON at most {JSON_BYTES} bytes are imported; CSV may be longer")
        return
    try:
        items, node, units = _items(read_json(data.decode("utf-8-sig").strip()))
    except (WireError, UnicodeDecodeError, _Wrong) as error:
        yield Fault("the file", str(error))
        return
    for number, item in enumerate(items, 1):
        where = f"reading {number}"
        try:
            yield _json_reading(where, item, node, units)
        except _Wrong as error:
            yield Fault(where, str(error))


def _json_lines(file: BinaryIO) -> Iterator[ImportedReading | Fault]:
    """A JSON object a line, however many there are."""
    number = 0
    while line := file.readline(_LINE_BYTES):
        number += 1
        where = f"line {number}"
        if len(line) == _LINE_BYTES and not line.endswith(b"\n"):
            yield Fault(where, f"a line has at most {_LINE_BYTES} bytes")
            return
        try:
            text = line.decode("utf-8-sig").strip()
            if text:
                yield _json_reading(where, read_json(text), "", {})
        except (WireError, UnicodeDecodeError, _Wrong) as error:
            yield Fault(where, str(error))


def _items(value: Any) -> tuple[list[Any], str, dict[str, str]]:
    """The readings of a JSON file, and the node and the units that it names for all of them."""
    if type(value) is list:
        return value, "", {}
    if type(value) is dict:
        for key in ("readings", "samples", "data"):
            if type(value.get(key)) is list:
                return value[key], _json_node(value), _json_units(value)
        if any(key in value for key in _TIME_KEYS):
            return [value], "", {}
    raise _Wrong('JSON is imported where it is a list of readings, or {"readings": [...]}')


def _json_reading(where: str, item: Any, node: str, units: dict[str, str]) -> ImportedReading:
    if type(item) is not dict:
        raise _Wrong("a reading is an object with a time and values")
    time = next((item[key] for key in _TIME_KEYS if key in item), None)
    if time is None:
        raise _Wrong(f"a reading has its {' or '.join(_TIME_KEYS)}")
    if type(item.get("units")) is dict:
        units = {**units, **_json_units(item)}
    if type(item.get("sensor")) is str and "value" in item:
        said, unit = {item["sensor"]: item["value"]}, item.get("unit", "")
        if type(unit) is not str or not UNIT(unit):
            raise _Wrong(f"{_preview(unit)} is no unit")
        units = {**units, sensor_name(item["sensor"])[0]: unit} if unit else units
    elif type(item.get("values")) is dict:
        said = item["values"]
    else:
        said = {key: value for key, value in item.items() if key not in _NO_SENSORS}
    values: Values = {}
    for key, value in said.items():
        name = sensor_name(key)[0]
        if not name or name in values:
            raise _Wrong(f"{_preview(key)} is no name of a sensor, or stands twice")
        values[name] = read_value(value, name)
    if not values or len(values) > MOST_COLUMNS:
        raise _Wrong(f"a reading has 1 to {MOST_COLUMNS} values")
    return ImportedReading(where, _json_node(item) or node, read_time(time), values, units)


def _json_units(item: Mapping[str, Any]) -> dict[str, str]:
    units = item.get("units", {})
    if type(units) is not dict or not all(type(unit) is str and UNIT(unit) for unit in units.values()):
        raise _Wrong("units is an object of sensors and texts")
    return {sensor_name(name)[0]: unit for name, unit in units.items()}


def _json_node(item: Mapping[str, Any]) -> str:
    node = item.get("node", "")
    if type(node) is not str or (node and not NODE_NAME(node)):
        raise _Wrong(f"{_preview(node)} is no name of a node")
    return node


_TIME_KEYS = ("time", "timestamp", "date", "datetime")
_NO_SENSORS = (*_TIME_KEYS, "node", "seq", "up", "clock", "errors", "units", "unit", "id")


# ----------------------------------------------------------------------------------------------------------- both


def readings(file: BinaryIO, name: str) -> Iterator[ImportedReading | Fault]:
    """Everything that a file says, from its beginning; its name's ending tells whether it is JSON or a table."""
    file.seek(0)
    small = name.lower()
    if small.endswith((".jsonl", ".ndjson")) or (small.endswith(".json") and _has_an_object_a_line(file)):
        return _json_lines(file)
    return _json_readings(file) if small.endswith(".json") else _csv_readings(file)


def _has_an_object_a_line(file: BinaryIO) -> bool:
    """Whether a .json is a .jsonl, as loggers write it that only add to a file."""
    first, second = file.readline(_LINE_BYTES).strip(), file.read(_LINE_BYTES).lstrip()
    file.seek(0)
    return first.startswith(b"{") and first.endswith(b"}") and second.startswith(b"{")
