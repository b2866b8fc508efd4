"""Conversion of the archive of WeeWX to Pigeonpost's CSV log.

Each row has one value per observation. Its column `usUnits` names the system of units: 1 (US), 16 (METRIC) or 17
(METRICWX). If the rows have several, all are converted to that of the last row. Errors: ValueError for an invalid row.

Source: weewx/units.py (obs_group_dict, USUnits, MetricUnits, MetricWXUnits).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import counted
from pigeonpost.importing.cells import LAST_MS, read_value, unique_names
from pigeonpost.importing.options import ImportOptions
from pigeonpost.importing.units import Conversion, conversion
from pigeonpost.storage.csv.format import cell

TABLE = "archive"
_SYSTEMS = {1: "US", 16: "METRIC", 17: "METRICWX"}
# Observations of a group, and their units in the systems US, METRIC and METRICWX.
_GROUPS = (
    (r".*temp[0-9]*|.*dewpoint[0-9]*|windchill|heatindex[0-9]*|humidex[0-9]*", ("°F", "°C", "°C")),
    (r"barometer|pressure|altimeter|.*barometer", ("inHg", "mbar", "mbar")),
    (r"windspeed.*|windgust|vecavg|rms|wind(?:speed|gust)[0-9]*", ("mph", "km/h", "m/s")),
    (r"winddir|windgustdir|vecdir|.*dir[0-9]*", ("°", "°", "°")),
    (r"windrun", ("mi", "km", "km")),
    (r"rain|et|hail|snow|snowdepth|hourrain|dayrain|rain24|monthrain|yearrain|stormrain|totalrain|snowrate_total",
     ("in", "cm", "mm")),
    (r"rainrate|hailrate|snowrate|maxrainrate", ("in/h", "cm/h", "mm/h")),
    (r".*humid(?:ity)?[0-9]*|rxcheckpercent|cloudcover", ("%", "%", "%")),
    (r"radiation|maxsolarrad", ("W/m²", "W/m²", "W/m²")),
    (r"soilmoist[0-9]*", ("cb", "cb", "cb")),
    (r".*voltage", ("V", "V", "V")),
    (r"cloudbase|altitude|.*distance", ("ft", "m", "m")),
)  # fmt: skip
_GROUP_OF = tuple((re.compile(pattern, re.IGNORECASE).fullmatch, units) for pattern, units in _GROUPS)
_NO_OBSERVATIONS = ("datetime", "usunits", "interval")


def is_weewx(db: sqlite3.Connection) -> bool:
    """Return True if a database `db` is an archive of WeeWX."""
    return {"dateTime", "usUnits"} <= {row[1] for row in db.execute(f"PRAGMA table_info({TABLE})")}


def unit_of(observation: str, system: int) -> str:
    """Return the unit of an observation of WeeWX, or an empty string if it has none.

    Args:
        observation: Name of the column.
        system: Number of the system of units: 1, 16 or 17.
    """
    place = tuple(_SYSTEMS).index(system)
    return next((units[place] for matches, units in _GROUP_OF if matches(observation)), "")


def weewx_lines(db: sqlite3.Connection, node: str, options: ImportOptions, notes: list[str]) -> Iterator[str]:
    """Yield the archive as lines of the CSV log, without its header.

    Args:
        db: The database.
        node: Node of all readings.
        options: Options of the user.
        notes: List to which notes for the user are added.

    Raises:
        ValueError: A row is invalid.
    """
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({TABLE})")]
    names = unique_names(name for name in columns if name.lower() not in _NO_OBSERVATIONS)
    time_at, system_at = columns.index("dateTime"), columns.index("usUnits")
    last = db.execute(f"SELECT usUnits FROM {TABLE} ORDER BY dateTime DESC LIMIT 1").fetchone()
    target = last[0] if last and last[0] in _SYSTEMS else 1
    plans = {
        system: [
            (at, names[name], _conversion(names[name], name, system, target, options))
            for at, name in enumerate(columns)
            if names.get(name)
        ]
        for system in _SYSTEMS
    }
    rows = values = 0
    systems = set()
    for rows, row in enumerate(db.execute(f"SELECT * FROM {TABLE} ORDER BY dateTime"), 1):
        time_s, system = row[time_at], row[system_at]
        if type(time_s) not in (int, float) or not 0 <= time_s * 1000 < LAST_MS:
            raise ValueError(f"row {rows}: dateTime {time_s!r:.40} is not a time in seconds since 1970")
        if system not in plans:
            raise ValueError(f"row {rows}: usUnits {system!r:.40} is not 1, 16 or 17")
        systems.add(system)
        start = f"{rfc3339(round(time_s * 1000))},{node}"
        for at, name, steps in plans[system]:
            value = row[at]
            if type(value) in (int, float):
                values += 1
                for step in steps:
                    value = step.apply(value)
                yield f"{start},{name},{read_value(value, name)!r},{cell(steps[-1].unit)}\n"
    used = ", ".join(_SYSTEMS[system] for system in sorted(systems))
    converted = f", converted to {_SYSTEMS[target]}" if len(systems) > 1 else ""
    notes.append(f"archive of WeeWX: {counted(rows, 'row')}, {counted(values, 'value')}, units {used}{converted}")


def _conversion(
    name: str, column: str, system: int, target: int, options: ImportOptions
) -> tuple[Conversion, Conversion]:
    """Return the conversions to the units of the last row, and to those of the user."""
    unit = unit_of(column, system)
    first = conversion(name, unit, ImportOptions(units={name: unit_of(column, target)}))
    return (first, conversion(name, first.unit, options))
