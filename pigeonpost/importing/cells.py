"""Cells of files of readings: times, values, units and names of sensors, one by one and many at once in C.

Errors: Wrong, a fault in one row.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from protocol import LARGEST_INTEGER, UNIT, Number, Values

LINE_BYTES = 1 << 16
MOST_COLUMNS = 256
LAST_MS = 253_402_300_800_000  # the year 10000; no time that is imported is so late, or before 1970


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


class ReadingColumns(NamedTuple):
    """Readings of one node, with the same sensors each, by column. `where` is the place of the first of them."""

    where: str
    node: str
    times: list[int]
    values: dict[str, list[Number | None]]
    units: dict[str, str]


class Wrong(ValueError):
    """A fault in one row."""


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
        raise Wrong(f"{preview(said)} is no time like 2026-11-20T15:36:10Z or seconds since 1970") from None


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
            raise Wrong(f"{name} takes a number, not {preview(said)}")
        value = float(text) if any(mark in text for mark in ".eE") else int(text)
    if value - value != 0 or (type(value) is int and abs(value) > LARGEST_INTEGER):
        raise Wrong(f"{name} is too large: {preview(said)}")
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


def preview(said: object) -> str:
    text = repr(said)
    return text if len(text) <= 40 else text[:37] + "..."


def unguarded(cell: str) -> str:
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


# ------------------------------------------------------------------------------------------------------- many at once


def read_times(cells: Sequence[str]) -> list[int] | None:
    """Return what `read_time` returns for each of `cells`; None where one of them is not as usual, or has to be looked
    at since it is no time from 1970 to 9999."""
    text = "".join(cells)
    try:
        if text.isascii() and text.isdigit():
            counts = list(map(int, cells)) if all(map(_NUMERIC_TIME, cells)) else []
            times = [count if count >= 10**11 else count * 1000 for count in counts]
        elif " " in text or "," in text or not all(map(_DATE_TIME, cells)):
            return None
        else:
            seconds = map(datetime.timestamp, map(datetime.fromisoformat, cells))
            times = [round(count * 1000) for count in seconds]
    except (ValueError, OverflowError, OSError):
        return None
    return times if times and min(times) >= 0 and max(times) < LAST_MS else None


def read_values(cells: Sequence[str]) -> list[Number | None] | None:
    """Return what `read_value` returns for each of `cells`; None where one of them is not as usual, or is wrong.

    They are usual where they are numbers in JSON. A comma, a bracket or a quote in a cell does not go unnoticed: there
    are more values than cells then, or some that are no numbers.
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
_USUAL_CELL = 40  # so many digits a number may have
