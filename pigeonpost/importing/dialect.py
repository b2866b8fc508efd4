"""Structure of a CSV file: separator, lines before the table, head line, line with units.

Loggers write information about the device before the table, spreadsheets a line such as `sep=;`, and InfluxDB lines
that start with `#`. Errors: RowError.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from pigeonpost.core.format import counted
from pigeonpost.importing.cells import MOST_COLUMNS, RowError
from pigeonpost.importing.numbers import has_no_value, is_number
from pigeonpost.importing.options import ImportOptions
from pigeonpost.importing.time_forms import is_clock_only, is_date_only, is_time
from pigeonpost.importing.time_names import is_time_name
from pigeonpost.importing.units import is_unit

HEAD_LINES = 200  # lines in which the head line is searched
_SEPARATORS = "\t;|,"
_PREAMBLE = 60


class Head(NamedTuple):
    """Structure of a CSV file.

    Attributes:
        separator: The character between the cells.
        skipped: Number of lines before the first row of readings.
        headings: Headings of the columns.
        units: Units from a line below the head line, or an empty list.
        line: Number of the head line, or 0 if the file has none.
        rows: The first rows of readings.
    """

    separator: str
    skipped: int
    headings: list[str]
    units: list[str]
    line: int
    rows: list[list[str]]


def find_head(lines: Sequence[str], options: ImportOptions) -> Head:
    """Return the structure of a file from its first `lines`, at most HEAD_LINES.

    Args:
        lines: The lines, each with its end.
        options: Options of the user. Only `columns` is used.

    Raises:
        RowError: The file has no head line, and the user has not named the columns.
    """
    start, separator = 0, ""
    if lines and lines[0].lower().startswith("sep=") and len(lines[0].rstrip("\n")) >= 5:
        start, separator = 1, lines[0][4]
    named = _by_name(lines, start, separator)
    if named and not options.columns:
        line, separator = named
        return _with_head(lines, line, separator, _cells(lines[line].lstrip("# "), separator))
    found = _by_content(lines, start, separator)
    if not found:
        if options.columns and named:
            return _named_by_user(lines, named[0] + 1, named[1], options.columns)
        if options.columns:
            separator = separator or _most_frequent("".join(lines[start:]))
            first = next((k for k in range(start, len(lines)) if lines[k].strip()), start)
            return _named_by_user(lines, first, separator, options.columns)
        first = next((k for k in range(start, len(lines)) if lines[k].strip()), start)
        text = lines[first] if first < len(lines) else ""
        separator = separator or _most_frequent(text)
        return Head(separator, first + 1, _cells(text, separator), [], first + 1, _rows(lines[first + 1 :], separator))
    line, separator = found
    if options.columns:
        return _named_by_user(lines, line, separator, options.columns)
    cells = _cells(lines[line], separator)
    before = next((k for k in range(line - 1, start - 1, -1) if lines[k].strip()), -1)
    if before >= 0:
        headings = _cells(lines[before].lstrip("# "), separator)
        if len(headings) == len(cells) - 1 and all(headings):
            headings.insert(0, "time")  # rrdtool names the values only
            if is_date_only(cells[0]) and is_clock_only(cells[1]):
                headings[:2] = ["date", "time"]
        if len(headings) == len(cells) and not any(map(is_time, headings)) and not all(map(_is_value, headings)):
            return _with_head(lines, before, separator, headings)
    raise RowError(_no_head(cells, line + 1))


def _named_by_user(lines: Sequence[str], line: int, separator: str, columns: tuple[str, ...]) -> Head:
    rows = _rows(lines[line:], separator)
    if rows and len(rows[0]) != len(columns) and any(rows[0][len(columns) :] or [""] * (len(rows[0]) < len(columns))):
        raise RowError(
            f"--columns has {counted(len(columns), 'name')}, but line {line + 1} has {counted(len(rows[0]), 'cell')}"
        )
    return Head(separator, line, list(columns), [], 0, rows)


def _with_head(lines: Sequence[str], line: int, separator: str, headings: list[str]) -> Head:
    rest = [k for k in range(line + 1, len(lines)) if lines[k].strip()]
    units: list[str] = []
    end = line + 1
    for place, k in enumerate(rest[:3]):  # lines with units and with kinds of values, as Campbell's loggers write them
        cells = _cells(lines[k], separator)
        later = [_cells(lines[other], separator) for other in rest[place + 1 : place + 3]]
        if len(cells) != len(headings) or any(is_time(one) or is_number(one) for one in cells):
            break
        if not later or not any(any(map(is_time, row)) for row in later):
            break
        if not units and not any(map(is_unit, cells)):
            break
        units, end = units or cells, k + 1
    if len(set(headings)) < len(headings) and line and not units:
        above = _cells(lines[line - 1], separator)
        if len(above) == len(headings):  # a heading in two lines, as in the export of Davis' WeatherLink
            headings = [f"{upper} {lower}".strip() for upper, lower in zip(above, headings)]
    return Head(separator, end, headings, units, line + 1, _rows(lines[end:], separator))


def _by_name(lines: Sequence[str], start: int, forced: str) -> tuple[int, str] | None:
    """Return the index of the head line that has a usual name for the column of the time, and its separator."""
    for index in range(start, min(len(lines), _PREAMBLE)):
        text = lines[index].lstrip("# ")
        separator = forced or _most_frequent(text)
        cells = _cells(text, separator)
        if not 2 <= len(cells) <= MOST_COLUMNS or not any(map(is_time_name, cells)) or any(map(is_time, cells)):
            continue
        rows = (line for line in lines[index + 1 :] if line.strip() and not line.startswith("#"))
        later = [_cells(line, separator) for line in islice(rows, 3)]  # the first may be damaged
        if lines[index].startswith("#") and not any(any(map(is_time, row)) for row in later[:1]):
            continue
        if not later or max(map(len, later)) >= 2:
            return index, separator
    return None


def _by_content(lines: Sequence[str], start: int, forced: str) -> tuple[int, str] | None:
    """Return the index of the first line that has a time and another cell, and its separator."""
    for index in range(start, min(len(lines), _PREAMBLE)):
        if not lines[index].strip() or lines[index].startswith("#"):
            continue
        later = next((line for line in lines[index + 1 :] if line.strip()), "")
        for separator in forced or f"{_SEPARATORS} ":
            cells = _cells(lines[index], separator)
            width = len(_cells(later, separator)) if later else len(cells)
            if 2 <= len(cells) <= MOST_COLUMNS and len(cells) == width and any(map(is_time, cells)):
                return index, separator
    return None


def _no_head(cells: list[str], line: int) -> str:
    names, has_time = [], False
    for number, cell in enumerate(cells, 1):
        is_first = not has_time and is_time(cell)
        has_time = has_time or is_first
        is_value = is_number(cell) or has_no_value(cell) or is_first
        names.append("time" if is_first else f"name{number}" if is_value else "-")
    return (
        f"the first line must contain the names of the columns, but line {line} contains {counted(len(cells), 'cell')}"
        f" with readings: name its columns with --columns {','.join(names)[:100]}"
    )


def _rows(lines: Sequence[str], separator: str) -> list[list[str]]:
    rows: list[list[str]] = []
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator == " ")
    try:
        rows.extend(row for row in reader if any(cell.strip() for cell in row))
    except csv.Error:
        pass  # it is reported when the rows are read
    return rows


def _cells(line: str, separator: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=separator, skipinitialspace=separator == " "), [])
    except csv.Error:
        row = []
    return [cell.strip() for cell in row]


def _most_frequent(text: str) -> str:
    separator = max(";\t,|", key=text.count)
    return separator if separator in text else ","


def _is_value(cell: str) -> bool:
    return is_number(cell) or has_no_value(cell)
