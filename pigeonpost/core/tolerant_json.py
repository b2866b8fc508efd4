"""Tolerant JSON decoder for documents that devices and programs of other makers write.

It is only for these. The link and our own API use strict_json.

A valid JSON document is decoded as usual. In any other document, one invalid value never affects the others:

    {"temperature": nan, "humidity": 48}     an invalid value becomes a text: "nan"
    {"temperature": , "humidity": 48}        a missing value, None and undefined become null
    {"temperature": 1e999, "humidity": 48}   a number beyond the range of a float becomes a text: "1e999"
    {"temperature": 21,5, "humidity": 48}    a decimal comma is ambiguous, so the value becomes a text: "21,5"
    {'temperature': 21.5, humidity: 48,}     single quotes, keys without quotes, and superfluous commas are accepted

Bytes that are not valid UTF-8 become U+FFFD. If a key occurs twice, the last one counts, as in most decoders (RFC 8259,
section 4). A document that is cut off is refused, because its last value may be cut off too.

Errors: BadArgument, which contains the reason.
"""

from __future__ import annotations

import json
import math
import re
from json.decoder import scanstring  # type: ignore[attr-defined]  # undocumented, but there since Python 2.6
from typing import Any

from pigeonpost.core.errors import BadArgument
from pigeonpost.core.strict_json import is_too_deep

DEEPEST_FOREIGN_JSON = 32  # maximum nesting
# Texts that programs send instead of a number if there is none at the moment, in lower case.
FAILURE_WORDS = frozenset((
    "nan", "-nan", "+nan", "inf", "-inf", "+inf", "infinity", "-infinity", "+infinity", "unavailable", "unknown",
    "undefined", "invalid", "error", "err", "fail", "failed", "n/a", "na", "-", "--", "---", "-.-", "--.-",
    "ovf", "nan(ind)", "-nan(ind)", "1.#qnan", "-1.#ind", "1.#inf", "-1.#inf",  # print() of Arduino, printf of Windows
))  # fmt: skip
SPACE = " \t\r\n\0\ufeff"  # white space; also the zero bytes with which programs in C end a text


def read_tolerant_json(data: bytes) -> Any:
    """Return the value of the JSON document in `data`, which is untrusted.

    Raises:
        BadArgument: The data are not a JSON document, or nested deeper than DEEPEST_FOREIGN_JSON.
    """
    text = data.decode(json.detect_encoding(data), "replace").strip(SPACE)
    # The C parser recurses at each level, and a thread's stack is small, so deep nesting must not reach it.
    if is_too_deep(text, DEEPEST_FOREIGN_JSON):
        raise BadArgument(f"JSON nested deeper than {DEEPEST_FOREIGN_JSON}")
    try:
        value = _DECODER.decode(text)
    except ValueError as error:
        if not text.startswith(("{", "[")):
            raise BadArgument(f"not JSON: {error}") from None
        reader = _Reader(text)
        value, end = reader.read_value(0, 0)
        if reader.skip_space(end) != len(text):
            raise BadArgument(f"not JSON: extra data at character {end}") from None
    if isinstance(value, str) and not text.startswith('"'):
        raise BadArgument("not JSON: the number is too large")
    return value


class _Reader:
    """Parser that continues after invalid values. Its methods return a value and the position after it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def skip_space(self, at: int) -> int:
        """Return the position of the first character at or after `at` that is not space."""
        found = _IS_SPACE(self._text, at)
        return found.end() if found else at

    def read_value(self, at: int, depth: int) -> tuple[Any, int]:
        """Return the value at the position `at`, within `depth` objects and lists."""
        if depth > DEEPEST_FOREIGN_JSON:
            raise BadArgument(f"JSON nested deeper than {DEEPEST_FOREIGN_JSON}")
        at = self.skip_space(at)
        match self._text[at : at + 1]:
            case "{":
                return self._read_object(at + 1, depth)
            case "[":
                return self._read_list(at + 1, depth)
            case '"' | "'":
                return self._read_string(at)
        bare = _BARE_VALUE(self._text, at)
        assert bare is not None  # it also matches an empty text
        content = bare[0].strip(SPACE)
        if _IS_NUMBER(content):
            return _DECODER.decode(content), bare.end()
        return _BARE_WORDS.get(content.lower(), content), bare.end()

    def _read_object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        last = None  # key and start of the last value, if this is neither a text nor an object or list
        end = 0  # end of the last value if it contains commas, as in {"a": 21,5, "b": 1}
        while True:
            at = self.skip_space(at)
            match self._text[at : at + 1]:
                case "}":
                    if last is not None and end:
                        found[last[0]] = self._text[last[1] : end].strip(SPACE)
                    return found, at + 1
                case ",":
                    at += 1
                    continue
                case '"' | "'":
                    key, at = self._read_string(at)
                case _:
                    bare = _BARE_KEY(self._text, at)
                    if bare is None:
                        raise self._fault(at)
                    key, at = bare[0].strip(SPACE), bare.end()
                    if last is not None and self._text[at : at + 1] in (",", "}"):
                        end = at
                        continue
            if last is not None and end:
                found[last[0]], end = self._text[last[1] : end].strip(SPACE), 0
            at = self.skip_space(at)
            if self._text[at : at + 1] != ":":
                raise self._fault(at)
            start = self.skip_space(at + 1)
            last = None if self._text[start : start + 1] in ("{", "[", '"', "'") else (key, start)
            found[key], at = self.read_value(start, depth + 1)
            at = self.skip_space(at)
            if self._text[at : at + 1] not in (",", "}", '"'):  # a comma may be missing before a quoted key
                raise self._fault(at)

    def _read_list(self, at: int, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        while True:
            at = self.skip_space(at)
            if self._text[at : at + 1] == "]":
                return found, at + 1
            value, at = self.read_value(at, depth + 1)  # null between two commas, so that the indices stay right
            found.append(value)
            at = self.skip_space(at)
            if self._text[at : at + 1] not in (",", "]"):
                raise self._fault(at)
            if self._text[at] == ",":
                at += 1

    def _read_string(self, at: int) -> tuple[str, int]:
        found = _VALID_TEXT(self._text, at)  # checked first, because the errors of scanstring take time
        if found is not None and _IS_END_OF_TEXT(self._text, found.end()):
            content, end = scanstring(self._text, at + 1, False)
            return str(content), int(end)
        found = _QUOTED(self._text, at)
        if found is None or not _IS_END_OF_TEXT(self._text, found.end()):
            found = _WITH_QUOTES(self._text, at)  # as in {"name": "5" pipe", "a": 1}
        if found is None:
            raise BadArgument("not JSON: a text has no end")
        return found[0][1:-1], found.end()

    def _fault(self, at: int) -> BadArgument:
        if at >= len(self._text):
            return BadArgument("not JSON: it is cut off")
        return BadArgument(f"not JSON: {self._text[at : at + 20]!r} at character {at}")


def _float(literal: str) -> float | str:
    value = float(literal)
    return value if math.isfinite(value) else literal


def _integer(literal: str) -> int | str:
    try:
        return int(literal)
    except ValueError:  # more digits than Python converts
        return literal


_DECODER = json.JSONDecoder(parse_float=_float, parse_int=_integer, parse_constant=str, strict=False)
_BARE_WORDS = {"": None, "null": None, "none": None, "undefined": None, "true": True, "false": False}
# The quantifiers are possessive, because backtracking would take quadratic time on a hostile document.
_IS_SPACE = re.compile(f"[{SPACE}]++").match
_BARE_VALUE = re.compile(r'[^,{}\[\]"]*+').match
_IS_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?").fullmatch
_BARE_KEY = re.compile(r"""[^,:{}\[\]"']++""").match
_VALID_TEXT = re.compile(r'"(?:[^"\\]++|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+"').match
_IS_END_OF_TEXT = re.compile(f'[{SPACE}]*+[,:}}\\]"]').match
_WITH_QUOTES = re.compile(f'"[^\n]*?"(?=[{SPACE}]*+[,:}}\\]])').match
_QUOTED = re.compile(r"""(?:"(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+')""", re.DOTALL).match
