"""Parsers of the times that people's files contain.

    2023-10-29T12:30:00Z   2023-10-29 12:30:00 UTC   2023/10/29 12:30   20231029T123000   29.10.2023 12:30
    10/29/2023 3:30 PM     Sun, 29 Oct 2023 12:30:00 +0100   Oct 29, 2023 12:30   1698582600 (s, ms, µs or ns)

A time with an offset from UTC is absolute. A time without one is a wall time (see `zones`). Errors: RowError.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple

from pigeonpost.importing.cells import LAST_MS, RowError, preview

_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1)
_MS = timedelta(milliseconds=1)


class FoundTime(NamedTuple):
    """Time in a cell.

    Attributes:
        ms: Milliseconds since 1970: UTC, or a wall time.
        is_local: True for a wall time.
    """

    ms: int
    is_local: bool


def find_time(cell: str, order: str = "", time_format: str = "") -> FoundTime:
    """Return the time in a `cell`.

    Args:
        cell: Text of the cell.
        order: Order of day, month and year in dates of numbers only: "dmy", "mdy" or "ymd".
        time_format: Format for `datetime.strptime`, or "excel" for days since 1899-12-30, or an empty string.

    Raises:
        RowError: The cell does not contain a time.
    """
    text = cell.strip().rstrip(":")  # rrdtool writes a colon after the time
    try:
        if len(text) > _USUAL_LENGTH:
            raise ValueError("too long")
        if time_format:
            return _by_format(text, time_format)
        if found := _COUNT(text):
            return _count(found[0].replace(",", "."), order)
        iso = _ISO(text)
        if iso and text[11:13] != "24":
            found_iso = datetime.fromisoformat(text[: iso.end(1)].replace(",", "."))
            return FoundTime(round((found_iso - _EPOCH) / _MS) - _offset_ms(iso[2]), bool(not iso[2]))
        return _general(text, order)
    except (ValueError, OverflowError, RecursionError):
        hint = f"it does not fit the format {time_format}" if time_format else _HINT
        raise RowError(f"{preview(cell)} is not a valid time: {hint}") from None


def _by_format(text: str, time_format: str) -> FoundTime:
    if time_format == "excel":
        return FoundTime(round((float(text.replace(",", ".")) - 25_569) * _DAY_MS), True)
    found = datetime.strptime(" ".join(text.split()), " ".join(time_format.split()))
    if found.tzinfo is not None:
        return FoundTime(round(found.timestamp() * 1000), False)
    if found.year == 1900 and "%Y" not in time_format and "%y" not in time_format and "%c" not in time_format:
        raise ValueError("no year")
    return FoundTime(
        round((found - _EPOCH) / _MS), "%Z" not in time_format or not text.upper().endswith(("UTC", "GMT"))
    )


def _count(text: str, order: str) -> FoundTime:
    """Return the time of a count since 1970, or of digits such as 20231029123000."""
    whole, _, fraction = text.partition(".")
    if not fraction and _COMPACT(whole):
        return _general(f"{whole[:8]}T{whole[8:]}", order)
    digits = len(whole.lstrip("0"))
    if digits <= 11:
        return FoundTime(round(float(text) * 1000), False)
    return FoundTime(round(float(text)) if digits <= 14 else int(whole) // 1000 ** ((digits - 12) // 3), False)


def _general(text: str, order: str) -> FoundTime:
    if " " in text and (asctime := _ASCTIME(text)):
        text = f"{asctime[2]} {asctime[1]} {asctime[5]} {asctime[3]} {asctime[4] or ''}"
    found = _DATE(text)
    if not found:
        raise ValueError("no date")
    days = _days(found[1], order)
    rest = text[found.end() :].partition("(")[0].strip()
    if not rest:
        return FoundTime(days * _DAY_MS, True)
    if rest[:4].isdecimal():
        rest = ":".join((rest[:2], rest[2:4], rest[4:])).removesuffix(":")
    clock = _CLOCK(rest)
    if not clock:
        raise ValueError("no clock")
    hour, minute, second, fraction, half, offset = clock.groups()
    hours, minutes, seconds = int(hour), int(minute or 0), int(second or 0)
    if not minute and not half:
        raise ValueError("no minutes")
    if half:
        if not 1 <= hours <= 12:
            raise ValueError("hour")
        hours = hours % 12 + 12 * (half[0] in "pP")
    if hours > 24 or minutes > 59 or seconds > 59 or (hours == 24 and (minutes or seconds)):
        raise ValueError("clock")
    ms = round(float(f"0.{fraction}") * 1000) if fraction else 0
    return FoundTime(
        days * _DAY_MS + ((hours * 60 + minutes) * 60 + seconds) * 1000 + ms - _offset_ms(offset), not offset
    )


@functools.lru_cache(4096)
def _days(text: str, order: str) -> int:
    """Return the days from 1970 to a date of numbers and perhaps the name of a month."""
    if len(text) == 8 and text.isdecimal():
        return date(int(text[:4]), int(text[4:6]), int(text[6:])).toordinal() - _FIRST_DAY
    parts = [part for part in _PARTS(text) if part.lower() not in ("st", "nd", "rd", "th")]
    names = [index for index, part in enumerate(parts) if not part.isdecimal()]
    if len(parts) == 4 and names:  # the name of a day of the week
        parts.pop(names[0])
        names = [index for index, part in enumerate(parts) if not part.isdecimal()]
    if len(parts) != 3 or len(names) > 1:
        raise ValueError("date")
    if names:
        month = _month(parts.pop(names[0]))
        year, day = (parts[0], parts[1]) if len(parts[0]) == 4 else (parts[1], parts[0])
        return date(_full_year(year), month, int(day)).toordinal() - _FIRST_DAY
    if len(parts[0]) == 4:
        order = "ymd"
    elif len(parts[2]) == 4 and order == "ymd":
        order = ""
    if not order:
        first, second = int(parts[0]), int(parts[1])
        if len(parts[2]) == 2 and "-" in text and first > 12 and second <= 12 and 1 <= int(parts[2]) <= 31:
            raise ValueError("ambiguous")  # the year may be first
        order = "dmy" if first > 12 or "." in text else "mdy" if second > 12 else ""
        if not order:
            raise ValueError("ambiguous")
    of = dict(zip(order, parts))
    return date(_full_year(of["y"]), int(of["m"]), int(of["d"])).toordinal() - _FIRST_DAY


def _full_year(text: str) -> int:
    year = int(text)
    return year if len(text) > 2 else year + (1900 if year >= 70 else 2000)


def _month(name: str) -> int:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    for length in (4, 3):
        if plain[:length] in _MONTHS:
            return _MONTHS[plain[:length]]
    raise ValueError("month")


def _offset_ms(text: str | None) -> int:
    """Return an offset from UTC in milliseconds: `Z`, `UTC`, `+0100`, `+01:00`, `GMT+1`, `CET`."""
    if not text:
        return 0
    plain = text.strip().upper()
    if plain in ZONES:
        return ZONES[plain] * 3_600_000
    digits = plain.removeprefix("UTC").removeprefix("GMT").strip()
    numbers = digits[1:].replace(":", "")
    hours, minutes = (int(numbers[:-2]), int(numbers[-2:])) if len(numbers) > 2 else (int(numbers), 0)
    if hours > 23 or minutes > 59:
        raise ValueError("offset")
    return (hours * 60 + minutes) * (-60_000 if digits[0] == "-" else 60_000)


# --------------------------------------------------------------------------------------------------- day and month


class DateOrder:
    """Evidence for the order of day and month in the dates of a file.

    A number above 12 is a day. If there is none, the order of the rows decides: at a change of the date, the interval
    to the row before must be similar to the intervals within a day. A year of two digits can be first: 23-05-16. Then
    the order with which the dates are close together is right.
    """

    def __init__(self) -> None:
        self.firsts: dict[str, tuple[int, str]] = {}  # order, or "" for an ambiguous date: first line and cell
        self._before: tuple[tuple[int, int, int], int] | None = None
        self._within_ms = 0  # longest interval within a day
        self._changes: dict[str, list[int]] = {"dmy": [], "mdy": []}  # intervals at changes of the date
        self._short: tuple[int, str] | None = None  # first line and cell with a number above 12, and a year of 2 digits
        self._days: dict[str, set[int]] = {"dmy": set(), "ymd": set()}  # first and last day, if all dates are valid

    def add(self, line: int, cell: str) -> None:
        """Add a `cell` with a time in the given `line`."""
        found = _NUMBERS_ONLY(cell) if len(cell) <= _USUAL_LENGTH else None
        if not found:
            return
        self._add_days(line, cell, found[1])
        first, second, year = int(found[2]), int(found[4]), _full_year(found[5])
        order = "dmy" if found[3] == "." or (first > 12 >= second) else "mdy" if second > 12 >= first else ""
        if order not in self.firsts and (order or first != second):
            self.firsts[order] = line, cell.strip()
        try:
            clock_ms = _general(f"2000-01-01 {cell[found.end() :].strip(' ,T')}", "ymd").ms % _DAY_MS
        except (ValueError, OverflowError):
            return
        here = (first, second, year), clock_ms
        if self._before and not self.firsts.keys() - {""}:
            self._compare(self._before, here)
        self._before = here

    def _add_days(self, line: int, cell: str, numbers: str) -> None:
        """Add a date of `numbers`, whose year may be first."""
        parts = _PARTS(numbers)
        if len(parts[2]) == 2 and int(parts[0]) > 12 and not self._short:
            self._short = line, cell.strip()
        for order, days in list(self._days.items()):
            try:
                day = _days(numbers, order)
            except ValueError:
                del self._days[order]
            else:
                self._days[order] = {min({day, *days}), max({day, *days})}

    @property
    def is_open(self) -> bool:
        """True if the year may be first, so that further rows are needed."""
        return bool(self._short) and "mdy" not in self.firsts and self._order_of_short() != "dmy"

    def _order_of_short(self) -> str:
        """Return "dmy" or "ymd" for dates with years of two digits, or an empty string if they can be both."""
        if "ymd" not in self._days or "dmy" not in self._days:
            return "dmy" if "ymd" not in self._days else "ymd"
        day_first, year_first = (max(self._days[order]) - min(self._days[order]) for order in ("dmy", "ymd"))
        if day_first == year_first:
            return "" if self._short and "-" in self._short[1].split()[0] else "dmy"
        near = min(day_first, year_first) * _FARTHER <= max(day_first, year_first)
        return "" if not near else "dmy" if day_first < year_first else "ymd"

    def _compare(self, before: tuple[tuple[int, int, int], int], here: tuple[tuple[int, int, int], int]) -> None:
        if before[0] == here[0]:
            self._within_ms = max(self._within_ms, abs(here[1] - before[1]))
            return
        if len(self._changes["dmy"]) >= _CHANGES:
            return
        found = {}
        for order in self._changes:
            gaps = []
            for (first, second, year), clock_ms in (before, here):
                day, month = (first, second) if order == "dmy" else (second, first)
                try:
                    gaps.append(date(year, month, day).toordinal() * _DAY_MS + clock_ms)
                except ValueError:
                    return
            found[order] = abs(gaps[1] - gaps[0])
        for order, gap in found.items():
            self._changes[order].append(gap)

    def decide(self) -> str:
        """Return "dmy" or "mdy", or an empty string if there are no dates of this kind.

        Raises:
            RowError: The order cannot be decided, or the dates contradict each other.
        """
        if "dmy" in self.firsts and "mdy" in self.firsts:
            (line, cell), (other, other_cell) = self.firsts["dmy"], self.firsts["mdy"]
            raise RowError(
                f"the day is first in {preview(cell)} (line {line}), but the month in {preview(other_cell)} (line"
                f" {other}): use --time-format, or leave out the wrong rows with --dates and --skip-bad"
            )
        if self._short and "mdy" not in self.firsts:
            if found := self._order_of_short():
                return found
            line, cell = self._short
            raise RowError(
                f"line {line}: {preview(cell)} may have the day or the year first: use --dates dmy (day first) or"
                " --dates ymd (year first)"
            )
        for order in ("dmy", "mdy"):
            if order in self.firsts:
                return order
        if "" not in self.firsts:
            return ""
        fits = [order for order, gaps in self._changes.items() if any(gap <= 3 * self._within_ms for gap in gaps)]
        if len(fits) == 1:
            return fits[0]
        line, cell = self.firsts[""]
        raise RowError(
            f"line {line}: {preview(cell)} may have the day or the month first: use --dates dmy (day first) or --dates"
            " mdy (month first)"
        )


def is_time(cell: str) -> bool:
    """Return True if a `cell` contains a date, with or without a time of day, or a count since 1970."""
    text = cell.strip().rstrip(":")
    if len(text) > _USUAL_LENGTH or not (_COUNT(text) or _DATE(text) or _ASCTIME(text)):
        return False
    for order in ("dmy", "mdy", "ymd"):
        try:
            return 0 <= find_time(cell, order).ms < LAST_MS
        except RowError:
            continue
    return False


def is_date_only(cell: str) -> bool:
    """Return True if a `cell` contains a date without a time of day."""
    text = cell.strip()[:_USUAL_LENGTH]
    found = _DATE(text)
    return bool(found and found.end() == len(text) and is_time(text))


def is_clock_only(cell: str) -> bool:
    """Return True if a `cell` contains a time of day without a date."""
    found = _CLOCK(cell.strip()[:_USUAL_LENGTH])
    return bool(found and (found[2] or found[5]))


def joined(cells: Sequence[str], date_parts: int = 1) -> str:
    """Return a date and a time of day in several cells as one text.

    Args:
        cells: The cells: the date, then the time of day, each in one or three cells.
        date_parts: Number of cells with the date.

    Raises:
        RowError: A cell is empty.
    """
    texts = [cell.strip() for cell in cells]
    if not all(texts):
        raise RowError("the date or the time of day is missing")
    more = ""
    while len(texts) > 1 and is_after_clock(texts[-1]):
        more = f" {texts.pop()}{more}"
    clock = ":".join(text.zfill(2) if text.isdecimal() else text for text in texts[date_parts:])
    return (
        f"{'-'.join(texts[:date_parts])} {f'{clock}:00' if clock.isdecimal() and len(clock) <= 2 else clock}".rstrip()
        + more
    )


def is_after_clock(cell: str) -> bool:
    """Return True if a `cell` contains AM, PM or an offset from UTC."""
    text = cell.strip().upper()
    return text.replace(".", "") in ("AM", "PM") or text in ZONES or bool(_OFFSET(text))


_CHANGES = 100  # changes of the date that are compared
_FARTHER = 8  # times as many days as with the right order
_USUAL_LENGTH = 80  # characters of a time
_FIRST_DAY = date(1970, 1, 1).toordinal()
_HINT = "write it as 2026-11-20T15:36:10Z, or as seconds since 1970, or give its format with --time-format"
_COUNT = re.compile(r"[0-9]{9,19}(?:[.,][0-9]{0,9})?").fullmatch
_COMPACT = re.compile(
    r"(?:19[7-9]|20[0-9])[0-9](?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?:[01][0-9]|2[0-3])[0-5][0-9](?:[0-5][0-9])?"
).fullmatch
_ISO = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?)"
    r" ?([Zz]|UTC|GMT|[+-][0-9]{2}:?[0-9]{2}|[+-][0-9]{2})?"
).fullmatch
is_count = _COUNT  # True for a count since 1970, or for digits such as 20231029123000
is_iso = _ISO  # True for a text in the usual form of ISO 8601
_WORD = r"[^\W\d_]{3,12}"
_WEEKDAY = r"(?:[^\W\d_]{2,12}\.?,? +)?"
_DATE = re.compile(
    rf"({_WEEKDAY}(?:[0-9]{{4}}([-/.]) ?[0-9]{{1,2}}\2 ?[0-9]{{1,2}}"
    r"|[0-9]{1,2}([-/.]) ?[0-9]{1,2}\3 ?(?:[0-9]{4}|[0-9]{2})|[0-9]{8}"
    rf"|[0-9]{{1,2}}(?:st|nd|rd|th)?\.?[-/ ] ?{_WORD}\.?[-/ ,] ?(?:[0-9]{{4}}|[0-9]{{2}})"
    rf"|{_WORD}\.?[-/ ] ?[0-9]{{1,2}}(?:st|nd|rd|th)?,?[-/ ] ?[0-9]{{4}}"
    rf"|[0-9]{{4}}[-/ ]{_WORD}[-/ ][0-9]{{1,2}}))(?:\.|,)?(?:[Tt_]|-(?=[0-9]{2}:)| *[-,]? +(?:at |um )?|(?=$))"
).match
_ASCTIME = re.compile(
    rf"{_WEEKDAY}({_WORD}) +([0-9]{{1,2}}),? +([0-9]{{1,2}}:[0-9]{{2}}(?::[0-9]{{2}})?(?: ?[APap][Mm])?)"
    r"(?: +([A-Z]{3,4}|[+-][0-9]{4}))? +([0-9]{4})"
).fullmatch
_CLOCK = re.compile(
    r"([0-9]{1,2})(?:[:.h]([0-9]{2})(?:[:.]([0-9]{2})(?:[.,:]([0-9]{1,9}))?)?)?"
    r"(?: ?([aApP]\.?[mM]\.?|[apAP](?![A-Za-z])))?"
    r"(?: ?(Z|z|[A-Z]{2,4}|(?:UTC|GMT)? ?[+-][0-9]{1,2}(?::?[0-9]{2})?))?"
).fullmatch
_NUMBERS_ONLY = re.compile(
    rf" *{_WEEKDAY}(([0-9]{{1,2}})([-/.]) ?([0-9]{{1,2}})\3 ?([0-9]{{4}}|[0-9]{{2}}))(?![0-9])"
).match
_OFFSET = re.compile(r"(?:UTC|GMT)? ?[+-][0-9]{1,2}(?::?[0-9]{2})?").fullmatch
_PARTS = re.compile(r"[0-9]+|[^\W\d_]+").findall
_MONTHS = {
    name: number
    for number, names in enumerate(
        ("jan ene gen", "feb fev", "mar mrz mrt maa", "apr abr avr", "may mai mei mag", "jun juin giu",
         "jul juil lug", "aug ago aou", "sep set", "oct okt ott", "nov", "dec dez dic"), 1,
    )
    for name in names.split()
}  # fmt: skip
ZONES = {
    "Z": 0, "UT": 0, "UTC": 0, "GMT": 0, "WET": 0, "WEST": 1, "CET": 1, "MEZ": 1, "CEST": 2, "MESZ": 2, "EET": 2,
    "EEST": 3,
    "BST": 1, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7,
}  # fmt: skip
