"""Parsers of the cells in files of readings: times, values, units and sensor names.

Times and values also have parsers for a column of cells, which are faster than those for one cell.
Errors: RowError for an invalid cell.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pigeonpost.storage.csv.format import FORMULA_STARTS
from protocol import LARGEST_INTEGER, UNIT, Number, Values

LINE_BYTES = 1 << 16
MOST_COLUMNS = 256
LAST_MS = 253_402_300_800_000  # the year 10000: imported times are earlier, and not before 1970


class ImportedReading(NamedTuple):
    """Readings taken together, from one row or object of a file.

    Attributes:
        where: Position in the file: "line 5" or "reading 5".
        node: Name of the node, or an empty string if the file does not name it.
        time_ms: Time in milliseconds since 1970 (UTC).
        values: Values by sensor.
        units: Units by sensor.
    """

    where: str
    node: str
    time_ms: int
    values: Values
    units: dict[str, str]


class Fault(NamedTuple):
    """Fault in a file: its position ("line 5") and its description."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class ReadingColumns(NamedTuple):
    """Readings of one node, all with the same sensors, by column.

    Attributes:
        where: Position of the first of these readings in the file: "line 5".
        node: Name of the node, or an empty string if the file does not name it.
        times: Times in milliseconds since 1970 (UTC).
        values: Columns of values by sensor.
        units: Units by sensor.
    """

    where: str
    node: str
    times: list[int]
    values: dict[str, list[Number | None]]
    units: dict[str, str]


class RowError(ValueError):
    """A row of a file is invalid."""


def read_time(cell: object) -> int:
    """Return the time in a `cell`, in milliseconds since 1970 (UTC).

    A cell contains a time in ISO 8601, or seconds or milliseconds since 1970. A time in ISO 8601 without an offset from
    UTC is local time.

    Raises:
        RowError: The cell does not contain a time. This is a ValueError.
    """
    text = cell.strip() if isinstance(cell, str) else str(cell) if type(cell) in (int, float) else ""
    if _NUMERIC_TIME(text):
        count = float(text)
        return round(count) if count >= 1e11 else round(count * 1000)
    try:
        if not _DATE_TIME(text):
            raise ValueError
        time = datetime.fromisoformat(text.replace(",", ".").replace(" Z", "Z").replace(" +", "+"))
        return round(time.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise RowError(
            f"{preview(cell)} is not a valid time: write it as 2026-11-20T15:36:10Z, or as seconds since 1970"
        ) from None


def read_value(cell: object, name: str) -> Number | None:
    """Return the value in a `cell`, or None if it has none. `name` is the sensor, for the error message.

    Raises:
        RowError: The cell does not contain a number, or the number is too large.
    """
    if type(cell) in (int, float):
        value: Number = cell  # type: ignore[assignment]
    elif cell is None:
        return None
    else:
        text = cell.strip() if isinstance(cell, str) else "?"
        if text.lower() in _NO_VALUES:
            return None
        if not _PLAIN(text):
            raise RowError(f"{name} must be a number, not {preview(cell)}")
        value = float(text) if any(letter in text for letter in ".eE") else int(text)
    if value - value != 0 or (type(value) is int and abs(value) > LARGEST_INTEGER):
        raise RowError(f"{name} is too large: {preview(cell)}")
    return value


def underscored(text: str) -> str:
    """Return a `text` in lower case and without accents, with underscores for characters that names do not contain."""
    ascii_ = unicodedata.normalize("NFKD", text[:200]).encode("ascii", "ignore").decode().lower()
    return _NOT_IN_NAMES("_", ascii_).strip("_")


def sensor_name(heading: str) -> tuple[str, str]:
    """Return the sensor name and the unit in a column `heading`: `Temperature (°C)` is ("temperature", "°C").

    The name is empty if the heading contains no letters or digits.
    """
    found = _WITH_UNIT(heading.strip())
    plain, unit = (found[1], (found[2] or found[3] or "").strip()) if found else (heading, "")
    name = underscored(plain)
    if name and not name[0].isalpha():
        name = f"s_{name}"
    return name[:32].rstrip("_"), unit if UNIT(unit) else ""


def unique_names(texts: Iterable[str]) -> dict[str, str]:
    """Return the sensor name of each of the `texts`.

    Names that are equal, for example because they are too long, end in a checksum of their text.
    """
    names = {text: sensor_name(text)[0] for text in texts}
    used: dict[str, int] = {}
    for name in names.values():
        used[name] = used.get(name, 0) + 1
    for text, name in names.items():
        if name and used[name] > 1:
            names[text] = f"{name[:27].rstrip('_')}_{hashlib.sha256(text.encode()).hexdigest()[:4]}"
    return names


def node_name(value: object) -> str:
    """Return a valid node name derived from `value`, the name in another program: `Living room` gives `Living_room`.

    Raises:
        RowError: The name contains no letters or digits. This is a ValueError.
    """
    ascii_ = unicodedata.normalize("NFKD", str("" if value is None else value)[:200]).encode("ascii", "ignore").decode()
    name = _NOT_IN_NODE_NAMES("_", ascii_).strip("._-")[:63]
    if not name:
        raise RowError(f"{value!r:.60} is not a valid node name; name the node with --node")
    return name


def preview(value: object) -> str:
    """Return the repr of `value` for an error message, shortened to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def unguarded(cell: str) -> str:
    """Return the text of a `cell` of the log without the apostrophe that keeps spreadsheets from reading a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in FORMULA_STARTS else cell


_NUMERIC_TIME = re.compile(r"[0-9]{9,14}(?:\.[0-9]{1,9})?").fullmatch
_DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?"
    r"(?: ?(?:[Zz]|[+-][0-9]{2}:?[0-9]{2}))?"
).fullmatch
_PLAIN = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?").fullmatch
is_plain_number = _PLAIN  # True for a number with a decimal point and without digit grouping
_NO_VALUES = ("", "-", "na", "n/a", "nan", "null", "none")
_WITH_UNIT = re.compile(r"([^(\[]{1,200})(?:\(([^()]{0,40})\)|\[([^\[\]]{0,40})\])").fullmatch
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+").sub
_NOT_IN_NODE_NAMES = re.compile(r"[^A-Za-z0-9._-]+").sub


# ------------------------------------------------------------------------------------------------- columns of cells


def read_times(cells: Sequence[str]) -> list[int] | None:
    """Return the times in `cells`, as `read_time` does, or None if the cells must be read one by one.

    This is the case if a cell has an unusual format, or is not a time from 1970 to 9999.
    """
    text = "".join(cells)
    try:
        if text.isascii() and text.isdecimal():
            counts = list(map(int, cells)) if all(map(_NUMERIC_TIME, cells)) else []
            times = [count if count >= 10**11 else count * 1000 for count in counts]
        elif "," in text or not all(map(_DATE_TIME, cells)):
            return None
        else:
            seconds = map(datetime.timestamp, map(datetime.fromisoformat, cells))
            times = [round(count * 1000) for count in seconds]
    except (ValueError, OverflowError, OSError):
        return None
    return times if times and min(times) >= 0 and max(times) < LAST_MS else None


def read_values(cells: Sequence[str]) -> list[Number | None] | None:
    """Return the values in `cells`, as `read_value` does, or None if the cells must be read one by one.

    This is the case if a cell is neither empty nor a number in JSON. The cells are joined and parsed as a JSON array. A
    comma, bracket or quote in a cell is detected, because the array then has too many items, or items of other types.
    """
    text = ",".join(cells)
    if "e" in text or "E" in text or max(map(len, cells)) > _USUAL_CELL:
        return None
    if ",," in text or not cells[0] or not cells[-1]:
        text = ",".join([cell or "null" for cell in cells])
    try:
        values: list[Any] = _NUMBERS.decode(f"[{text}]")
    except ValueError:
        return None
    kinds = set(map(type, values))
    if len(values) != len(cells) or not kinds <= _KINDS:
        return None
    if int in kinds:
        numbers = [value for value in values if value is not None]
        if min(numbers) < -LARGEST_INTEGER or max(numbers) > LARGEST_INTEGER:
            return None
    return values


def _no_constant(literal: str) -> None:
    raise ValueError(literal)


_NUMBERS = json.JSONDecoder(parse_constant=_no_constant)
_KINDS = {int, float, type(None)}
_USUAL_CELL = 40  # maximum number of characters in a usual number
