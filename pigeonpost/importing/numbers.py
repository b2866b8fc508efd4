"""Numbers as people's files contain them: with a decimal point or comma, digit grouping, and words for no value.

A number such as 1.234 can be 1.234 or 1234. The other numbers of its column, or of its file, decide. Errors: RowError.
"""

from __future__ import annotations

import re

from pigeonpost.importing.cells import RowError, is_plain_number, preview, read_value
from pigeonpost.importing.options import BadOption, ImportOptions
from pigeonpost.importing.units import conversion, known_unit
from protocol import Number


def has_no_value(cell: str) -> bool:
    """Return True if a `cell` is empty, or contains a word or sign that means that there is no value."""
    text = cell.strip()
    return len(text) <= _USUAL_LENGTH and bool(_NO_VALUE(text))


def read_number(cell: str, name: str, decimal: str = ".") -> Number | None:
    """Return the number in a `cell`, or None if it has no value.

    Args:
        cell: Text of the cell.
        name: Name of the sensor, for the error message.
        decimal: The character before the decimals: ".", ",", or "?" for both, without digit grouping.

    Raises:
        RowError: The cell does not contain a number, or the number is too large.
    """
    text = cell.strip()
    if len(text) > _USUAL_LENGTH:
        raise RowError(f"{name} must be a number, not {preview(cell)}")
    if _NO_VALUE(text):
        return None
    if found := _WITH_UNIT(text):
        text = found[1]
    text = text.replace("\u2212", "-")
    if decimal == "?":
        decimal = "," if "," in text and "." not in text else "."
    if is_plain_number(text) and (decimal == "." or "." not in text):
        return read_value(text, name)
    group = "," if decimal == "." else "."
    if _GROUPED[group](text):
        text = _SPACES("", text).replace(group, "")
    elif text.count(group) == 1 and decimal not in text and not _AMBIGUOUS(text):
        decimal = group  # 21.5 in a column with 20,5: it can mean only one number
    plain = text.replace(decimal, ".")
    if not is_plain_number(plain):
        raise RowError(f"{name} must be a number, not {preview(cell)}")
    return read_value(plain, name)


def read_in_unit(cell: str, name: str, decimal: str, unit: str) -> Number | None:
    """Return `read_number`, converted to the `unit` of the column if the cell contains another one: "68 °F" in °C.

    Args:
        cell: Text of the cell.
        name: Name of the sensor.
        decimal: As for `read_number`.
        unit: Unit of the column, or an empty string.

    Raises:
        RowError: The cell does not contain a number, or the number is too large.
    """
    value = read_number(cell, name, decimal)
    if value is None or not unit or cell[-1:].isdecimal():
        return value
    other = known_unit(unit_in(cell), name)
    if not other or other == unit:
        return value
    try:
        return conversion(name, other, ImportOptions(units={name: unit})).apply(value)
    except BadOption:  # another word for the unit
        return value


def is_number(cell: str) -> bool:
    """Return True if a `cell` contains a number with a decimal point or comma."""
    for decimal in ".,":
        try:
            return read_number(cell, "", decimal) is not None
        except RowError as error:
            if "too large" in str(error):
                return True
    return False


def decimal_in(cell: str) -> str:
    """Return the decimal character that a `cell` proves, "?" if it can be either, or an empty string if it has none."""
    text = cell.strip()
    points, commas = text.count("."), text.count(",")
    if (not points and not commas) or not is_number(text):
        return ""
    if points and commas:
        return max(".,", key=text.rfind)
    mark, count = (".", points) if points else (",", commas)
    other = "," if mark == "." else "."
    return other if count > 1 else "?" if _AMBIGUOUS(text) else mark


def unit_in(cell: str) -> str:
    """Return the unit after the number in a `cell`: "°C" for "21.5 °C", or an empty string."""
    found = _WITH_UNIT(cell.strip()[:_USUAL_LENGTH])
    return found[2] if found else ""


_USUAL_LENGTH = 100  # characters of a number
_NO_VALUE = re.compile(
    r"(?:[-\u2013\u2014*?_]*|-+[.,]-+|\.{2,}|\\n|fault|#?n/?a|n\.a\.|[-+]?(?:nan|inf|infinity)(?:\([a-z]*\))?|[-+]?1\.#[a-z]{3,4}|null|none|nil|unavailable|unknown|error|err|undef|undefined"
    r"|missing|invalid|no ?data|n\.c\.|#(?:value|ref|div/0|num|null|name)[!?]?)",
    re.IGNORECASE,
).fullmatch
_UNITS = (
    "°[CF]?|[℃℉%]|[CFKVAW]|deg[CF]|mbar|[hk]?Pa|bar|lux|lx|ppm|m[VA]|kWh|Wh|kW|m/s|km/h|mph|mm|cm|dBm?|%? ?RH|µg/m[³3]"
)
_WITH_UNIT = re.compile(rf"([+\-\u2212]?[0-9][0-9.,' \u00a0\u202f]*?) ?({_UNITS})").fullmatch
_AMBIGUOUS = re.compile(r"[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}").fullmatch
_SPACED = r"[+-]?[1-9][0-9]{0,2}(?:[ '\u00a0\u202f\u2019][0-9]{3})+"
_GROUPED = {
    ",": re.compile(rf"[+-]?[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+(?:\.[0-9]*)?|{_SPACED}(?:\.[0-9]*)?").fullmatch,
    ".": re.compile(rf"[+-]?[1-9][0-9]{{0,2}}(?:\.[0-9]{{3}})+(?:,[0-9]*)?|{_SPACED}(?:,[0-9]*)?").fullmatch,
}
_SPACES = re.compile(r"[ '\u00a0\u202f\u2019]").sub
