"""Conversion of the database of Home Assistant's recorder to Pigeonpost's CSV log.

The table `states` has the states of some days; `statistics` has hourly means since the beginning. Both are read: the
statistics of an entity up to its first state. Names and times are in other columns in databases of older versions.
Entities without numbers are left out. Errors: ValueError for a time that is out of range.

Source: homeassistant/components/recorder/db_schema.py, schema versions 1 to 50.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.format import counted
from pigeonpost.importing.cells import LAST_MS, RowError, read_value, unique_names
from pigeonpost.importing.numbers import read_number
from pigeonpost.importing.options import ImportOptions
from pigeonpost.importing.time_forms import find_time
from pigeonpost.importing.units import Conversion, conversion_to_first, known_unit
from pigeonpost.storage.csv.format import cell
from protocol import UNIT

TABLES = ("states", "statistics", "statistics_short_term")
_UNITS_KEPT = 100_000  # sets of attributes whose unit is kept in memory


def is_home_assistant(db: sqlite3.Connection) -> bool:
    """Return True if a database `db` is that of Home Assistant's recorder."""
    states = _columns(db, "states")
    return bool(
        states & {"metadata_id", "entity_id"} and states & {"last_updated", "last_updated_ts"} and "state" in states
    )


def home_assistant_lines(
    db: sqlite3.Connection, table: str, node: str, options: ImportOptions, notes: list[str]
) -> Iterator[str]:
    """Yield the numeric states and the statistics of a database as lines of the CSV log, without its header.

    Args:
        db: The database.
        table: One of TABLES to read only this table, or an empty string.
        node: Node of all readings.
        options: Options of the user.
        notes: List to which notes for the user are added.

    Raises:
        ValueError: A time is invalid.
    """
    states = _numeric_entities(db) if table in ("", "states") else set()
    tables = [table] if table else ["statistics"] if _columns(db, "statistics") else []
    statistics = {name: one for one in tables if one != "states" for name in _statistic_ids(db, one)}
    names = unique_names(name.removeprefix("sensor.") for name in sorted(states | statistics.keys()))
    writer = _Writer(names, node, options)
    first_s = _first_states(db, states) if states else {}
    for one in tables:
        if one != "states":
            for time_s, name, value, unit in _statistics(db, one):
                if name not in first_s or time_s < first_s[name]:
                    yield from writer.line(time_s, name, value, unit)
    if states:
        for name in sorted(states):  # the database has an index of entities
            for time_s, state, unit in _states(db, name):
                yield from writer.line(time_s, name, state, unit)
    counts = ", ".join(f"{counted(count, 'value')} of {name}" for name, count in
                       (("states", writer.states), ("statistics", writer.statistics)) if count)  # fmt: skip
    notes.append(f"database of Home Assistant: {counts or 'no values'}")
    others = _entities(db) - states if table in ("", "states") else set()
    if others:
        some = ", ".join(sorted(others)[:5])
        notes.append(f"left out: {counted(len(others), 'entity', 'entities')} without numbers ({some}, ...)")
    if writer.texts:
        which = "state that is no number" if writer.texts == 1 else f"{writer.texts:,} states that are no numbers"
        notes.append(f"left out: {'1 ' if writer.texts == 1 else ''}{which}, such as {writer.text[:40]!r}")


class _Writer:
    """Writer of lines, which counts what it writes and leaves out."""

    def __init__(self, names: dict[str, str], node: str, options: ImportOptions) -> None:
        self._names, self._node, self._options = names, node, options
        self._units: dict[str, str] = {}  # the first one of each sensor
        self._key, self._conversion = ("", ""), Conversion("")  # those of the last line: it is often the same sensor
        self.states = self.statistics = self.texts = 0
        self.text = ""

    def line(self, time_s: float, name: str, value: str | float | None, unit: str) -> Iterator[str]:
        sensor = self._names[name.removeprefix("sensor.")]
        first = self._units.setdefault(sensor, unit) if unit else self._units.get(sensor, "")
        try:
            number = read_number(value, sensor) if isinstance(value, str) else read_value(value, sensor)
        except RowError:
            self.texts += 1
            self.text = self.text or str(value)
            return
        key = sensor, unit or first
        if key != self._key:
            self._key, self._conversion = key, conversion_to_first(*key, first, self._options)
        number = self._conversion.apply(number)
        time_ms = round(time_s * 1000)
        if not 0 <= time_ms < LAST_MS:
            raise ValueError(f"the time {time_s:g} of {name} is not between 1970 and 9999")
        if isinstance(value, str):
            self.states += 1
        else:
            self.statistics += 1
        unit = cell(self._conversion.unit)
        yield f"{rfc3339(time_ms)},{self._node},{sensor},{'' if number is None else repr(number)},{unit}\n"


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in db.execute(f"PRAGMA table_info({table})")}


def _entity(db: sqlite3.Connection) -> tuple[str, str]:
    """Return the SQL expression of the entity's name, and the join that it needs. `s` is the table `states`."""
    columns = _columns(db, "states")
    if "metadata_id" not in columns or not _columns(db, "states_meta"):
        return "s.entity_id", ""
    name = "coalesce(m.entity_id, s.entity_id)" if "entity_id" in columns else "m.entity_id"
    return name, " LEFT JOIN states_meta m ON m.metadata_id = s.metadata_id"


def _time(db: sqlite3.Connection, table: str, name: str) -> str:
    """Return the SQL expression of a time: seconds since 1970, or text in UTC in databases of older versions."""
    columns = _columns(db, table)
    found = [f"s.{one}" for one in (f"{name}_ts", name) if one in columns]
    return f"coalesce({', '.join(found)})" if len(found) > 1 else found[0]


def _entities(db: sqlite3.Connection, condition: str = "") -> set[str]:
    name, join = _entity(db)
    return {str(row[0]) for row in db.execute(f"SELECT DISTINCT {name} FROM states s{join} {condition}") if row[0]}


def _numeric_entities(db: sqlite3.Connection) -> set[str]:
    return _entities(
        db, "WHERE s.state GLOB '*[0-9]*' AND s.state NOT GLOB '*[^-+.0-9eE]*' AND s.state GLOB '[-+.0-9]*'"
    )


def _first_states(db: sqlite3.Connection, names: set[str]) -> dict[str, float]:
    name, join = _entity(db)
    time = _time(db, "states", "last_updated")  # a text or a number: SQL cannot compare them
    rows = db.execute(f"SELECT {name}, {time}, min(s.state_id) FROM states s{join} WHERE {time} IS NOT NULL GROUP BY 1")
    return {str(entity): _seconds(first) for entity, first, _ in rows if entity in names}


def _states(db: sqlite3.Connection, entity: str) -> Iterator[tuple[float, str, str]]:
    """Yield time, state and unit of the states of an entity."""
    columns = _columns(db, "states")
    conditions, keys = ["s.entity_id = ?"] if "entity_id" in columns else [], [entity] if "entity_id" in columns else []
    if "metadata_id" in columns and _columns(db, "states_meta"):
        conditions.append("s.metadata_id IN (SELECT metadata_id FROM states_meta WHERE entity_id = ?)")
        keys.append(entity)
    attributes = "s.attributes" if "attributes" in columns else "NULL"
    shared = "s.attributes_id" if "attributes_id" in columns and _columns(db, "state_attributes") else "NULL"
    rows = db.execute(
        f"SELECT {_time(db, 'states', 'last_updated')}, s.state, {attributes}, {shared} FROM states s"
        f" WHERE {' OR '.join(conditions)} ORDER BY s.state_id", keys,
    )  # fmt: skip
    units: dict[int, str] = {}
    for time, state, text, key in rows:
        if time is None or state is None:
            continue
        if key is None:
            unit = _unit(text) if text else ""
        else:
            if key not in units:
                if len(units) >= _UNITS_KEPT:
                    units.clear()
                found = db.execute(
                    "SELECT shared_attrs FROM state_attributes WHERE attributes_id = ?", (key,)
                ).fetchone()
                units[key] = _unit(found[0]) if found else ""
            unit = units[key]
        yield _seconds(time), str(state), unit


def _unit(attributes: Any) -> str:
    with contextlib.suppress(ValueError, RecursionError, TypeError):
        unit = json.loads(attributes).get("unit_of_measurement")
        return unit if isinstance(unit, str) and UNIT(unit) else ""
    return ""


def _statistic_ids(db: sqlite3.Connection, table: str) -> set[str]:
    rows = db.execute(
        f"SELECT DISTINCT m.statistic_id FROM {table} s JOIN statistics_meta m ON m.id = s.metadata_id"
        if "metadata_id" in _columns(db, table) else f"SELECT DISTINCT statistic_id FROM {table}"
    )  # fmt: skip
    return {str(row[0]) for row in rows}


def _statistics(db: sqlite3.Connection, table: str) -> Iterator[tuple[float, str, float | None, str]]:
    """Yield the means of a table, or the states of counters, which have no mean."""
    value = "coalesce(s.mean, s.state, s.sum)"
    if "metadata_id" in _columns(db, table):
        join = "JOIN statistics_meta m ON m.id = s.metadata_id"
        select = f"m.statistic_id, {value}, m.unit_of_measurement FROM {table} s {join}"
    else:
        select = f"s.statistic_id, {value}, NULL FROM {table} s"
    for time, name, number, unit in db.execute(f"SELECT {_time(db, table, 'start')}, {select} ORDER BY 2, s.id"):
        if time is not None and number is not None:
            yield _seconds(time), str(name), float(number), known_unit(str(unit or ""))


def _seconds(time: Any) -> float:
    """Return a time of the database in seconds since 1970. Times as text are in UTC, without an offset."""
    return find_time(str(time)).ms / 1000 if isinstance(time, str) else float(time)
