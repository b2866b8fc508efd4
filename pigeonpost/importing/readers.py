"""Readers of JSON files with readings. The module `tables` reads CSV files.

    [{"time": ..., "temperature": 21.5}, ...]   or {"readings": [...]}; values may be in {"values": {...}}
    {"time": ..., "values": {...}}       one object per line, in a .jsonl file, or in a .json file of this form
    {"channel": {"field1": "Temperature"}, "feeds": [{"created_at": ..., "field1": "21.5"}]}   of ThingSpeak

A .jsonl file is read line by line and can have any length. Other JSON is read completely into memory, up to 8 MiB.
No errors are raised: an invalid row is a Fault among the readings, with its position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from pigeonpost.core.errors import WireError
from pigeonpost.core.format import counted
from pigeonpost.core.strict_json import read_json
from pigeonpost.importing.cells import (
    LAST_MS,
    LINE_BYTES,
    MOST_COLUMNS,
    Fault,
    ImportedReading,
    ReadingColumns,
    RowError,
    preview,
    read_time,
    read_value,
    sensor_name,
)
from pigeonpost.importing.numbers import read_number
from pigeonpost.importing.options import NO_OPTIONS, ImportOptions
from pigeonpost.importing.survey import Plan
from pigeonpost.importing.tables import csv_readings, fault
from pigeonpost.importing.times import Clock
from pigeonpost.importing.units import conversion
from protocol import NODE_NAME, UNIT, Values

JSON_BYTES = 8 << 20  # decoding a JSON file needs about ten times its size in memory


# ----------------------------------------------------------------------------------------------------------- JSON


def _json_readings(file: BinaryIO, options: ImportOptions) -> Iterator[ImportedReading | Fault]:
    data = file.read(JSON_BYTES + 1)
    if len(data) > JSON_BYTES:
        yield Fault("the file", f"a JSON file may have at most {JSON_BYTES:,} bytes; use CSV or JSON lines instead")
        return
    try:
        items, node, units = _items(read_json(data.decode("utf-8-sig").strip()))
    except (WireError, UnicodeDecodeError, RowError) as error:
        yield Fault("the file", str(error))
        return
    for number, item in enumerate(items, 1):
        where = f"reading {number}"
        try:
            yield _json_reading(where, item, node, units, options)
        except RowError as error:
            yield Fault(where, str(error))


def _json_lines(file: BinaryIO, options: ImportOptions) -> Iterator[ImportedReading | Fault]:
    """Yield the readings of a file with one JSON object per line."""
    number = 0
    while line := file.readline(LINE_BYTES):
        number += 1
        where = f"line {number}"
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            yield Fault(where, f"the line is longer than {LINE_BYTES:,} bytes, which is the maximum")
            return
        try:
            text = line.decode("utf-8-sig").strip()
            if text:
                yield _json_reading(where, read_json(text), "", {}, options)
        except (WireError, UnicodeDecodeError, RowError) as error:
            yield Fault(where, str(error))


def _items(value: Any) -> tuple[list[Any], str, dict[str, str]]:
    """Return the readings of a JSON file, and the node and the units that apply to all of them."""
    if type(value) is list:
        return value, "", {}
    if type(value) is dict:
        if type(value.get("feeds")) is list:
            return _thingspeak(value), "", {}
        for key in ("readings", "samples", "data"):
            if type(value.get(key)) is list:
                return value[key], _json_node(value), _json_units(value)
        if any(key in value for key in _TIME_KEYS):
            return [value], "", {}
    raise RowError('the JSON must be a list of readings, or {"readings": [...]}')


def _thingspeak(value: dict[str, Any]) -> list[Any]:
    """Return the readings in an export of ThingSpeak, with the names of the channel's fields."""
    channel = value.get("channel")
    names = {key: name for key, name in channel.items() if type(name) is str} if type(channel) is dict else {}
    readings = []
    for item in value["feeds"]:
        if type(item) is not dict:
            raise RowError("a reading must be an object with a time and values")
        fields = {
            names.get(key) or key: one for key, one in item.items() if key.startswith("field") and one is not None
        }
        if fields:
            readings.append({"time": item.get("created_at"), "values": fields})
    return readings


def _json_reading(where: str, item: Any, node: str, units: dict[str, str], options: ImportOptions) -> ImportedReading:
    if type(item) is not dict:
        raise RowError("a reading must be an object with a time and values")
    time = next((item[key] for key in _TIME_KEYS if key in item), None)
    if time is None:
        raise RowError(f"the reading has no time: its key must be {' or '.join(_TIME_KEYS)}")
    if type(item.get("units")) is dict:
        units = {**units, **_json_units(item)}
    if type(item.get("sensor")) is str and "value" in item:
        fields, unit = {item["sensor"]: item["value"]}, item.get("unit", "")
        if type(unit) is not str or not UNIT(unit):
            raise RowError(f"{preview(unit)} is not a valid unit")
        units = {**units, sensor_name(item["sensor"])[0]: unit} if unit else units
    elif type(item.get("values")) is dict:
        fields = item["values"]
    else:
        fields = {key: value for key, value in item.items() if key not in _NOT_SENSORS}
    values: Values = {}
    for key, value in fields.items():
        name = sensor_name(key)[0]
        if not name or name in values:
            raise RowError(f"{preview(key)} is not a valid sensor name, or occurs twice")
        values[name] = read_number(value, name) if type(value) is str else read_value(value, name)
    if not values or len(values) > MOST_COLUMNS:
        raise RowError(f"the reading has {counted(len(values), 'value')}; 1 to {MOST_COLUMNS} are allowed")
    if options.scales or options.offsets or options.units:
        found = {name: conversion(name, units.get(name, ""), options) for name in values}
        values = {name: found[name].apply(value) for name, value in values.items()}
        units = {**units, **{name: one.unit for name, one in found.items()}}
    clock = Clock(options, options.dates, {})
    time_ms = clock.read_one(time, 0, "") if type(time) is str else read_time(time)
    if not 0 <= time_ms < LAST_MS:
        raise RowError("the time is not between 1970 and 9999")
    return ImportedReading(where, _json_node(item) or node, time_ms, values, units)


def _json_units(item: Mapping[str, Any]) -> dict[str, str]:
    units = item.get("units", {})
    if type(units) is not dict or not all(type(unit) is str and UNIT(unit) for unit in units.values()):
        raise RowError("`units` must be an object with a string for each sensor")
    return {sensor_name(name)[0]: unit for name, unit in units.items()}


def _json_node(item: Mapping[str, Any]) -> str:
    node = item.get("node", "")
    if type(node) is not str or (node and not NODE_NAME(node)):
        raise RowError(f"{preview(node)} is not a valid node name")
    return node


_TIME_KEYS = ("time", "timestamp", "date", "datetime", "created_at", "last_changed", "last_updated", "ts")
_NOT_SENSORS = (*_TIME_KEYS, "node", "seq", "up", "clock", "errors", "units", "unit", "id")


# ---------------------------------------------------------------------------------------------------- all formats


def is_json(name: str) -> bool:
    """Return True if a file with the `name` is read as JSON, False if it is read as CSV."""
    return name.lower().endswith((".jsonl", ".ndjson", ".json"))


def readings(
    file: BinaryIO, name: str, options: ImportOptions = NO_OPTIONS, plan: Plan | None = None
) -> Iterator[ReadingColumns | ImportedReading | Fault]:
    """Yield all readings and faults of a file, from its beginning.

    Args:
        file: The open file.
        name: Its name, whose extension determines the format.
        options: Options of the user.
        plan: How a CSV file is understood, or None to survey the whole file first.

    Raises:
        UnknownFold: A time in a CSV file occurs twice, and its plan does not contain which of them it is.
    """
    file.seek(0)
    if is_json(name):
        has_lines = not name.lower().endswith(".json") or _has_one_object_per_line(file)
        return _json_lines(file, options) if has_lines else _json_readings(file, options)
    return _csv_readings(file, options, plan)


def _csv_readings(
    file: BinaryIO, options: ImportOptions, plan: Plan | None
) -> Iterator[ReadingColumns | ImportedReading | Fault]:
    if plan is None:
        try:
            plan = Plan(file, options)
            if not plan.is_whole:
                plan.survey(is_whole=True)
            if not plan.is_log:
                plan.find_folds()
        except RowError as error:
            yield fault(error)
            return
    yield from csv_readings(plan)


def _has_one_object_per_line(file: BinaryIO) -> bool:
    """Return True if a .json file has one object per line. Loggers that only append to a file write this form."""
    first, second = file.readline(LINE_BYTES).strip(), file.read(LINE_BYTES).lstrip()
    file.seek(0)
    return first.startswith(b"{") and first.endswith(b"}") and second.startswith(b"{")
