"""Purposes of the columns of a table: time, node, sensor, value, unit, or the values of one sensor.

A wide table has one column per sensor. A long table has one row per value, with the name of its sensor in a column.
Columns are recognised by their headings and by the cells below them. Errors: RowError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pigeonpost.core.format import counted
from pigeonpost.importing.cells import MOST_COLUMNS, RowError, preview, sensor_name
from pigeonpost.importing.dialect import Head
from pigeonpost.importing.numbers import has_no_value, is_number
from pigeonpost.importing.time_forms import find_time, is_after_clock, is_clock_only, is_count, is_date_only, is_time
from pigeonpost.importing.time_names import is_counter_name, plain, time_rank
from pigeonpost.importing.units import heading_unit, is_unit, known_unit

LOG_COLUMNS = ["time", "node", "sensor", "value", "unit"]
_NODES = ("node", "node_name", "nodename", "location", "place", "room", "device", "device_name", "devicename",
          "host", "hostname",
          "instance", "station", "pi", "raum", "ort", "standort", "knoten", "gerat", "geraet", "site", "area",
          "deviceid",
          "device_id", "station_id", "node_id", "mac")  # fmt: skip
_SENSORS = ("entity_id", "statistic_id", "sensor", "sensor_name", "sensorname", "sensor_id", "sensorid",
            "sensortype", "sensor_type",
            "_field", "field", "metric", "metric_name", "__name__", "parameter", "channel", "codifier", "variable",
            "quantity",
            "topic", "series", "messgrosse", "messgroe", "kanal", "_measurement", "measurement", "measure", "name",
            "key", "kind",
            "type", "tag")  # fmt: skip
_VALUES = ("value", "_value", "state", "val", "reading", "wert", "messwert", "payload", "measurement", "mean")
_UNITS = ("unit", "units", "unit_of_measurement", "symbol", "einheit", "uom")
_ROW_NUMBERS = re.compile(
    r"(?:entry_?|row_?|record_?|unnamed_?)?(?:id|index|no|nr|number|nummer|0)|record|rn|rowid|oid|pk|"
).fullmatch
_INFLUX = ("result", "table", "_start", "_stop")
_HOURS = ("hour", "stunde", "heure", "hora", "hh", "uur")
_PARTS = (("year", "jahr", "yyyy", "yr"), ("month", "monat", "mm", "mon"), ("day", "tag", "dd"), _HOURS,
          ("minute", "min", "minuten", "minutes"), ("second", "sec", "sekunde", "seconds"))  # fmt: skip
_ZONES = re.compile(r"tz|(?:time_?)?zone|zeitzone|(?:utc|gmt|tz|zone)_?offset|offset_?(?:utc|gmt)").fullmatch
_SAMPLE = 40  # rows
_FIRST_DIGITS = re.compile(r"[0-9]{1,10}").findall
_BRACKETS = re.compile(r"[()\[\]]").sub


class SensorColumn(NamedTuple):
    """Column with the values of a sensor.

    Attributes:
        at: Index of the column.
        name: Name of the sensor.
        unit: Unit in the heading, or an empty string.
    """

    at: int
    name: str
    unit: str


class Layout(NamedTuple):
    """Purposes of the columns of a table. An index is -1 if there is no such column.

    Attributes:
        headings: Headings of all columns.
        times: Indexes of the columns with the time, and its date before its time of day.
        date_parts: Number of columns that contain the date: 1 or 3.
        node: Index of the column with the node.
        names: Indexes of the columns that together name the sensor of a long table; empty for a wide table.
        value: Index of the column with the value of a long table.
        unit: Index of the column with the unit of a long table.
        sensors: Columns of a wide table.
        left_out: Headings of columns that are left out, and the reason.
    """

    headings: list[str]
    times: tuple[int, ...]
    date_parts: int
    node: int
    names: tuple[int, ...]
    value: int
    unit: int
    sensors: list[SensorColumn]
    left_out: list[tuple[str, str]]


def find_layout(head: Head, time_format: str = "") -> Layout:
    """Return the purposes of the columns of a table.

    Args:
        head: Structure of the file.
        time_format: Format of the times, or an empty string.

    Raises:
        RowError: There is no column with times or with values, or a heading is invalid.
    """
    headings = head.headings
    if not 2 <= len(headings) <= MOST_COLUMNS:
        raise RowError(
            f"the table has {counted(len(headings), 'column')}; it must have 2 to {MOST_COLUMNS}, and one must be the"
            " time"
        )
    cells = [[row[at].strip() for row in head.rows[:_SAMPLE] if at < len(row)] for at in range(len(headings))]
    times, date_parts = _time_columns(headings, cells, time_format)
    times += _after_clock(headings, cells)
    lower = [heading.strip().lower() if heading.startswith("_") else plain(heading) for heading in headings]

    def position(names: Sequence[str], taken: Sequence[int]) -> int:
        return next((lower.index(name) for name in names if name in lower and lower.index(name) not in taken), -1)

    value = position(_VALUES, times)
    names = _sensor_columns(lower, cells, (*times, value)) if value >= 0 else ()
    if names:
        node = position(_NODES, (*times, value, *names))
        unit = position(_UNITS, (*times, value, *names, node))
        if "entity_id" in lower and "_measurement" in lower and unit < 0:
            unit = lower.index("_measurement")  # Home Assistant writes the unit as the measurement
        used = {*times, value, *names, node, unit}
        others = [(heading, "not used") for at, heading in enumerate(headings) if at not in used and heading]
        return Layout(headings, times, date_parts, node, names, value, unit, [], others)
    node = next((at for name in _NODES for at in range(len(lower)) if lower[at] == name and at not in times
                 and (name == "node" or not _has_numbers(cells[at]))), -1)  # fmt: skip
    sensors, left_out = _sensors(head, lower, cells, {*times, node})
    return Layout(headings, times, date_parts, node, (), -1, -1, sensors, left_out)


def _sensor_columns(lower: list[str], cells: list[list[str]], taken: Sequence[int]) -> tuple[int, ...]:
    """Return the indexes of the columns that name the sensor in a long table."""
    for name in _SENSORS:
        if name not in lower or lower.index(name) in taken:
            continue
        at = lower.index(name)
        if name in ("name", "key", "kind", "type", "tag", "measurement") and _has_numbers(cells[at]):
            continue
        if name == "_field" and "_measurement" in lower:
            return lower.index("_measurement"), at
        return (at,)
    return ()


def _sensors(
    head: Head, lower: list[str], cells: list[list[str]], taken: set[int]
) -> tuple[list[SensorColumn], list[tuple[str, str]]]:
    sensors, left_out = [], []
    for at, heading in enumerate(head.headings):
        if at in taken or heading == "-":
            continue
        filled = [cell for cell in cells[at] if cell]
        if not heading.strip() and not filled:
            continue
        if lower[at] in _INFLUX and "_time" in lower:
            left_out.append((heading, "not used"))
        elif _ROW_NUMBERS(lower[at]) and filled and all(cell.isdecimal() for cell in filled) and heading != "!":
            left_out.append((heading or f"column {at + 1}", "row numbers"))
        elif filled and (time_rank(heading) >= 0 or not _has_numbers(filled)) and all(map(_is_any_time, filled)):
            left_out.append((heading, "another time"))
        else:
            name, unit = heading_unit(heading)
            if not name:
                raise RowError(f"{preview(heading)} is not a valid sensor name: name all columns with --columns")
            if not unit and at < len(head.units):
                unit = known_unit(head.units[at], name)
            sensors.append(SensorColumn(at, name, unit))
    names = [one.name for one in sensors]
    for index, one in enumerate(sensors):
        if names.count(one.name) > 1:  # Temperature (°C) and Temperature (°F), or Temp (indoor) and Temp (outdoor)
            full = sensor_name(_BRACKETS(" ", head.headings[one.at]))[0]
            unit = one.unit if is_unit(one.unit) else ""
            sensors[index] = one._replace(name=full, unit=unit)
    names = [one.name for one in sensors]
    for name in names:
        if names.count(name) > 1:
            raise RowError(f"two columns have the name {name}: name all columns with --columns")
    if not sensors:
        raise RowError(f"there is no column with values; the columns are: {', '.join(head.headings)}"[:250])
    return sensors, left_out


def _time_columns(headings: list[str], cells: list[list[str]], time_format: str) -> tuple[tuple[int, ...], int]:
    """Return the indexes of the columns with the time, and how many of them are the date."""
    ranked = [(time_rank(heading), at) for at, heading in enumerate(headings)]
    named = [at for rank, at in sorted(ranked) if rank >= 0]
    others = [at for rank, at in ranked if rank < 0]
    lower = [plain(heading) for heading in headings]
    dates = [at for at in [*named, *others] if _share(cells[at], is_date_only)]
    if time_format:
        dates = dates or named[:1]
    full = [
        at
        for at in [*named, *others]
        if _is_full(cells[at], time_format, at in named)
        and (at in named or time_format or not is_counter_name(headings[at]) or not any(map(is_count, cells[at])))
    ]
    if full:
        return (full[0],), 1
    clocks = [at for at in [*named, *others] if at not in dates[:1] and _share(cells[at], is_clock_only)]
    parts = [next((lower.index(name) for name in names if name in lower), -1) for names in _PARTS]
    if min(parts[:4]) >= 0 or (min(parts[:3]) >= 0 and not dates):
        more = parts[3:] if -1 not in parts[3:] else parts[3 : 3 + parts[3:].index(-1)]
        return (*parts[:3], *more), 3
    if dates and clocks:
        return (dates[0], clocks[0]), 1
    if dates and parts[3] >= 0:
        return (dates[0], parts[3], *parts[4:5]) if parts[4] >= 0 else (dates[0], parts[3]), 1
    if dates or named:
        return ((dates or named)[0],), 1
    if not any(cells):
        return (0,), 1
    raise RowError(f"there is no column with a time; the columns are: {', '.join(headings)}"[:250])


def _after_clock(headings: list[str], cells: list[list[str]]) -> tuple[int, ...]:
    """Return the indexes of columns with AM or PM, and with an offset from UTC."""
    found = [at for at, column in enumerate(cells) if column and all(map(is_after_clock, column))]
    halves = [at for at in found if all(cell[-1:] in "Mm." for cell in cells[at])]
    zones = [at for at in found if at not in halves and _ZONES(plain(headings[at]))]
    return (*halves[:1], *zones[:1])


def _is_full(cells: list[str], time_format: str, is_named: bool) -> bool:
    """Return True if the cells contain dates with times of day."""

    def matches(cell: str) -> bool:
        if time_format:
            try:
                return find_time(cell, "", time_format).ms >= 0
            except RowError:
                return False
        if not is_named and is_count(cell) and not 700_000_000 <= int(_FIRST_DIGITS(cell)[0]) <= 4_000_000_000:
            return False
        return is_time(cell) and not is_date_only(cell)

    return _share(cells, matches)


def _share(cells: list[str], matches: Callable[[str], bool]) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and sum(map(matches, filled)) * 2 > len(filled)


def _has_numbers(cells: list[str]) -> bool:
    return any(is_number(cell) for cell in cells if not has_no_value(cell))


def _is_any_time(cell: str) -> bool:
    return is_time(cell) or is_clock_only(cell)
