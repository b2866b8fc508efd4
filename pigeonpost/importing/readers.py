"""Readers of files of readings: JSON here, tables in tables.py; every fault is named with its place.

    [{"time": ..., "temperature": 21.5}, ...]   or {"readings": [...]}; values may be in {"values": {...}}
    {"time": ..., "values": {...}}       one per line, in a .jsonl, or in a .json that looks like one

Of a .jsonl file, however long, one line is held at a time; other JSON is read whole, and limited. Errors: none raised;
a fault in a row is a Fault among the readings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from pigeonpost.core.errors import WireError
from pigeonpost.core.strict_json import read_json
from pigeonpost.importing.cells import (
    LINE_BYTES,
    MOST_COLUMNS,
    Fault,
    ImportedReading,
    ReadingColumns,
    Wrong,
    preview,
    read_time,
    read_value,
    sensor_name,
)
from pigeonpost.importing.tables import csv_readings
from protocol import NODE_NAME, UNIT, Values

JSON_BYTES = 8 << 20  # a JSON file is read whole, and needs about ten times its size in memory


# ----------------------------------------------------------------------------------------------------------- JSON


def _json_readings(file: BinaryIO) -> Iterator[ImportedReading | Fault]:
    data = file.read(JSON_BYTES + 1)
    if len(data) > JSON_BYTES:
        yield Fault("the file", f"of JSON at most {JSON_BYTES} bytes are imported; CSV may be longer")
        return
    try:
        items, node, units = _items(read_json(data.decode("utf-8-sig").strip()))
    except (WireError, UnicodeDecodeError, Wrong) as error:
        yield Fault("the file", str(error))
        return
    for number, item in enumerate(items, 1):
        where = f"reading {number}"
        try:
            yield _json_reading(where, item, node, units)
        except Wrong as error:
            yield Fault(where, str(error))


def _json_lines(file: BinaryIO) -> Iterator[ImportedReading | Fault]:
    """A JSON object a line, however many there are."""
    number = 0
    while line := file.readline(LINE_BYTES):
        number += 1
        where = f"line {number}"
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            yield Fault(where, f"a line has at most {LINE_BYTES} bytes")
            return
        try:
            text = line.decode("utf-8-sig").strip()
            if text:
                yield _json_reading(where, read_json(text), "", {})
        except (WireError, UnicodeDecodeError, Wrong) as error:
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
    raise Wrong('JSON is imported where it is a list of readings, or {"readings": [...]}')


def _json_reading(where: str, item: Any, node: str, units: dict[str, str]) -> ImportedReading:
    if type(item) is not dict:
        raise Wrong("a reading is an object with a time and values")
    time = next((item[key] for key in _TIME_KEYS if key in item), None)
    if time is None:
        raise Wrong(f"a reading has its {' or '.join(_TIME_KEYS)}")
    if type(item.get("units")) is dict:
        units = {**units, **_json_units(item)}
    if type(item.get("sensor")) is str and "value" in item:
        said, unit = {item["sensor"]: item["value"]}, item.get("unit", "")
        if type(unit) is not str or not UNIT(unit):
            raise Wrong(f"{preview(unit)} is no unit")
        units = {**units, sensor_name(item["sensor"])[0]: unit} if unit else units
    elif type(item.get("values")) is dict:
        said = item["values"]
    else:
        said = {key: value for key, value in item.items() if key not in _NO_SENSORS}
    values: Values = {}
    for key, value in said.items():
        name = sensor_name(key)[0]
        if not name or name in values:
            raise Wrong(f"{preview(key)} is no name of a sensor, or stands twice")
        values[name] = read_value(value, name)
    if not values or len(values) > MOST_COLUMNS:
        raise Wrong(f"a reading has 1 to {MOST_COLUMNS} values")
    return ImportedReading(where, _json_node(item) or node, read_time(time), values, units)


def _json_units(item: Mapping[str, Any]) -> dict[str, str]:
    units = item.get("units", {})
    if type(units) is not dict or not all(type(unit) is str and UNIT(unit) for unit in units.values()):
        raise Wrong("units is an object of sensors and texts")
    return {sensor_name(name)[0]: unit for name, unit in units.items()}


def _json_node(item: Mapping[str, Any]) -> str:
    node = item.get("node", "")
    if type(node) is not str or (node and not NODE_NAME(node)):
        raise Wrong(f"{preview(node)} is no name of a node")
    return node


_TIME_KEYS = ("time", "timestamp", "date", "datetime")
_NO_SENSORS = (*_TIME_KEYS, "node", "seq", "up", "clock", "errors", "units", "unit", "id")


# ----------------------------------------------------------------------------------------------------------- both


def readings(file: BinaryIO, name: str) -> Iterator[ReadingColumns | ImportedReading | Fault]:
    """Everything that a file says, from its beginning; its name's ending tells whether it is JSON or a table."""
    file.seek(0)
    small = name.lower()
    if small.endswith((".jsonl", ".ndjson")) or (small.endswith(".json") and _has_an_object_a_line(file)):
        return _json_lines(file)
    return _json_readings(file) if small.endswith(".json") else csv_readings(file)


def _has_an_object_a_line(file: BinaryIO) -> bool:
    """Whether a .json is a .jsonl, as loggers write it that only add to a file."""
    first, second = file.readline(LINE_BYTES).strip(), file.read(LINE_BYTES).lstrip()
    file.seek(0)
    return first.startswith(b"{") and first.endswith(b"}") and second.startswith(b"{")
