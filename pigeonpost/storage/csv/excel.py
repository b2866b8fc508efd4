"""Conversion of the CSV of logs and exports to CSV for Excel and other spreadsheets.

Excel reads a CSV file without a byte order mark in an old code page, and a time in RFC 3339 as text. It reads numbers
and columns in the format of the machine's region: where decimals have a comma, columns are separated by semicolons.

So the output is UTF-8 with a byte order mark and CRLF. Times are local or UTC, as `2026-11-20 16:36:10`, which every
region reads as a date. They have no fractions of a second, because Excel would read such a time as text in many
regions. Text that Excel would read as a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable, Iterable, Iterator

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.storage.csv.format import guarded

MARK = "\ufeff"
MOST_ROWS = 1_048_576  # rows of a sheet: https://support.microsoft.com, "Excel specifications and limits"
# Languages of browsers in whose regions the decimal mark is a comma (Unicode CLDR, symbols-numberSystem-latn).
_WITH_COMMA = frozenset((
    "af", "be", "bg", "bs", "ca", "cs", "da", "de", "el", "es", "et", "eu", "fi", "fo", "fr", "gl", "hr", "hu", "hy",
    "id", "is", "it", "ka", "kk", "lt", "lv", "mk", "nb", "nl", "nn", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sq",
    "sr", "sv", "tr", "uk", "uz", "vi",
))  # fmt: skip
_WITH_POINT = frozenset(("de-ch", "de-li", "it-ch", "es-mx", "es-us", "es-pr", "es-gt", "es-hn", "es-ni", "es-pa"))
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,16}(?:Z|[+-][0-9]{2}:[0-9]{2})").fullmatch


def has_comma(languages: str) -> bool:
    """Return True if decimals have a comma in the first of `languages`, the Accept-Language header of a browser."""
    first = languages.split(",")[0].split(";")[0].strip().lower()
    return first not in _WITH_POINT and first.partition("-")[0] in _WITH_COMMA


def for_excel(texts: Iterable[str], comma: bool, utc: bool = False) -> Iterator[str]:
    """Yield the CSV converted for Excel, in parts.

    Args:
        texts: Parts of CSV in the format of the logs. Each part consists of complete lines.
        comma: True for decimals with a comma, and columns separated by semicolons.
        utc: True for times in UTC, below the heading `time (UTC)`.
    """
    to_fields = time.gmtime if utc else time.localtime
    between = ";" if comma else ","
    yield MARK
    # The last time and its conversion: the rows of a sample follow each other. It begins with the heading.
    times = {"time": "time (UTC)" if utc else "time"}
    for text in texts:
        lines = []
        for line in text.removesuffix("\n").split("\n"):
            cells = _cells(line)
            if cells[0] not in times:
                times = {cells[0]: _cell(cells[0], between, to_fields)}
            others = [_cell(cell, between, to_fields) for cell in cells[1:]]
            lines.append(between.join([times[cells[0]], *others]))
        yield "\r\n".join([*lines, ""])


def _cells(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line]))
    except csv.Error:  # a torn row: leave it unchanged
        return [line]


def _cell(text: str, between: str, to_fields: Callable[[int], time.struct_time]) -> str:
    if _NUMBER(text):
        return text.replace(".", ",") if between == ";" else text
    if _TIME(text):
        return _time(text, to_fields)
    text = guarded(" ".join(text.splitlines()))
    return '"' + text.replace('"', '""') + '"' if between in text or '"' in text else text


def _time(text: str, to_fields: Callable[[int], time.struct_time]) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", to_fields(parse_rfc3339(text) // 1000))
    except (ValueError, OverflowError, OSError):  # not a valid date: leave it unchanged
        return text
