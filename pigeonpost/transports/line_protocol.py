"""Parser of InfluxDB's line protocol, and the names that its series get as sensors. It does no I/O.

    weather,device=shed temperature=21.5,humidity=40i,raining=f 1763650000000000000

Source: the reference of line protocol in InfluxDB's documentation (docs.influxdata.com, v1 and v2). A backslash escapes
comma and space in a measurement, comma, space and equals sign in tags and in keys of fields, and quotation mark and
backslash in a string, which may contain line feeds; before other characters it stands for itself.

Errors: a line that is not valid is skipped and described; the other lines are returned.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from protocol import LARGEST_INTEGER, Number, preview

# Units of the times: nanoseconds in one unit. The names of v1 (n, u, ms, s, m, h) and of v2 (ns, us, ms, s).
PRECISIONS = {
    "": 1, "n": 1, "ns": 1, "u": 1000, "us": 1000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}  # fmt: skip
_NS_PER_MS = 1_000_000
_EXPLAINED = 1000  # characters of a line that is not valid in which the reason is searched

_BOOLEANS = {
    **dict.fromkeys(("t", "T", "true", "True", "TRUE"), 1),
    **dict.fromkeys(("f", "F", "false", "False", "FALSE"), 0),
}
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?").fullmatch
_INTEGER = re.compile(r"(-?[0-9]{1,19})[iu]").fullmatch

_MOST_PARTS = 4096  # tags or fields of a line, and escapes in one part of it: the matcher stores a state for each

# After each part comes a character that this part cannot contain, so backtracking takes time in proportion to the
# length. Possessive quantifiers would do too, but those of Python before 3.11.5 accept invalid texts (gh-106052).
_ESCAPES = rf"{{0,{_MOST_PARTS}}}"
_KEY = rf"(?:[^\\,= \r\n]|\\[^\n])[^\\,= \r\n]*(?:\\[^\n][^\\,= \r\n]*){_ESCAPES}"
_NAME = rf"(?:[^\\, \r\n]|\\[^\n])[^\\, \r\n]*(?:\\[^\n][^\\, \r\n]*){_ESCAPES}"
_HEAD = rf"{_NAME}(?:,{_KEY}={_KEY}){_ESCAPES}"
_STRING = rf'"[^"\\]*(?:\\.[^"\\]*){_ESCAPES}"'
_FIELD = rf'{_KEY}=(?:{_STRING}|[^", \r\n]+)'
_FIELDS = rf"{_FIELD}(?:,{_FIELD}){_ESCAPES}"
_LINE = re.compile(rf"[ \t]*(?!#)({_HEAD}) +({_FIELDS})(?: +(-?[0-9]{{1,20}}))? *\r?(?:\n|\Z)", re.DOTALL).match
_PARTS = (
    (re.compile(rf"[ \t]*{_HEAD}(?= |\Z)"), "measurement,tag=value"),
    (re.compile(rf" +{_FIELDS}(?=[ \r\n]|\Z)", re.DOTALL), "field=value"),
)
_FIELDS_OF = re.compile(rf'({_KEY})=(?:({_STRING})|([^", \r\n]+))', re.DOTALL).findall
_TAGS_OF = re.compile(rf",({_KEY})=({_KEY})").findall
_MEASUREMENT = re.compile(_NAME).match
_SKIPPED = re.compile(r"[ \t\r]*(?:#[^\n]*)?(?:\n|\Z)").match  # an empty line or a comment
_UNESCAPED = re.compile(r"\\([,= ])").sub


class Point(NamedTuple):
    """The numbers of one line.

    Attributes:
        line: Number of the line, from 1.
        head: Measurement and tags as in the line, for `read_series`.
        fields: Numbers by field; 1 and 0 for booleans. Strings are left out.
        time_ms: Time in ms since 1970 (UTC), or None.
    """

    line: int
    head: str
    fields: dict[str, Number]
    time_ms: int | None


class BadLine(NamedTuple):
    """A line that was not accepted: its number from 1, and the reason."""

    line: int
    why: str


class Series(NamedTuple):
    """Measurement and tags of a line, without escapes; the tags are sorted."""

    measurement: str
    tags: tuple[tuple[str, str], ...]


def read_lines(text: str, precision: str) -> Iterator[Point | BadLine]:
    """Yield each point of `text`, and each line that is not valid.

    Args:
        text: The untrusted text.
        precision: Unit of the times, a key of PRECISIONS.
    """
    unit_ns = PRECISIONS[precision]
    position, line = 0, 1
    while position < len(text):
        found = _LINE(text, position)
        if found is None:
            skipped = _SKIPPED(text, position)
            end = skipped.end() if skipped else (text.find("\n", position) + 1 or len(text))
            if not skipped:
                yield BadLine(line, _explain(text[position : min(end, position + _EXPLAINED)].rstrip("\r\n")))
            position, line = end, line + 1
            continue
        head, fields, time = found.groups()
        position = found.end()
        try:
            yield Point(line, head, _read_fields(fields), None if time is None else int(time) * unit_ns // _NS_PER_MS)
        except ValueError as error:
            yield BadLine(line, str(error))
        line += found[0].count("\n")


def read_series(head: str) -> Series:
    """Return the measurement and the tags in the `head` of a point. Raise ValueError if a tag occurs twice."""
    if "\\" in head:
        measurement = _MEASUREMENT(head)
        assert measurement is not None
        tags = [(_plain(key), _plain(value)) for key, value in _TAGS_OF(head, measurement.end())]
        found = Series(_plain(measurement[0]), tuple(sorted(tags)))
    else:
        name, *parts = head.split(",")
        pairs = (part.partition("=") for part in parts)
        found = Series(name, tuple(sorted((key, value) for key, _, value in pairs)))
    if len(dict(found.tags)) != len(found.tags):
        raise ValueError("a tag occurs twice")
    return found


def _read_fields(text: str) -> dict[str, Number]:
    """Return the numbers in the fields of a line. Raise ValueError if one is not valid."""
    fields: dict[str, Number] = {}
    for key, _, raw in _FIELDS_OF(text):
        if raw:  # not a string
            value = _BOOLEANS.get(raw)
            fields[_plain(key)] = _number(raw) if value is None else value
    return fields


def _number(raw: str) -> Number:
    value: Number
    if _FLOAT(raw):
        value = float(raw)
        if value - value == 0:
            return value
    elif found := _INTEGER(raw):
        value = int(found[1])
        if abs(value) <= LARGEST_INTEGER and not (value < 0 and raw[-1] == "u"):
            return value
    raise ValueError(f"{preview(raw)} is not a finite number of 64 bits, a boolean or a string in quotation marks")


def _plain(text: str) -> str:
    return _UNESCAPED(r"\1", text) if "\\" in text else text


def _explain(line: str) -> str:
    """Return why `line` is not valid."""
    position = 0
    for pattern, form in _PARTS:
        found = pattern.match(line, position)
        if found is None:
            return f"{form} expected, not {preview(line[position : position + 60])}"
        position = found.end()
    return f"a whole number as time expected, not {preview(line[position : position + 60].strip())}"


# ---------------------------------------------------------------------------------------------------------- names

_NAME_WIDTH = 32  # characters of a sensor's name
_DIGITS = 6
_OTHER = re.compile(r"[^a-z0-9]+").sub


def sensor_name(series: Series, field: str) -> str:
    """Return a readable name for a field of a series: measurement, field (unless it is `value`) and values of the tags.

    The result is a valid sensor name, except that it may be too long. Different series may have the same name.

    Args:
        series: The series, without the tag that names its node.
        field: Name of the field.
    """
    parts = [series.measurement, *([] if field == "value" else [field])]
    parts += [value for _, value in series.tags]
    plain = "_".join(filter(None, (_OTHER("_", part.lower()).strip("_") for part in parts)))
    return plain if plain[:1].isalpha() else f"n{plain}"


def unique_name(name: str, key: str, taken: frozenset[str] | set[str]) -> str:
    """Return `name`, or if it is too long or `taken`, its start and a digest of `key`, which is always the same."""
    digits = _DIGITS
    found = name if len(name) <= _NAME_WIDTH else ""
    digest = hashlib.sha256(key.encode()).hexdigest()
    while not found or found in taken:
        found = f"{name[: _NAME_WIDTH - 1 - digits].rstrip('_')}_{digest[:digits]}"
        digits += 1
    return found
