"""Strict JSON decoder: finite numbers, unique keys, limited nesting.

Errors: BadArgument, which contains the reason.
"""

from __future__ import annotations

import json
import re

from pigeonpost.core.errors import BadArgument, WireError
from pigeonpost.core.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

DEEPEST_JSON = 8  # maximum nesting of any JSON value on the link


def read_json(text: str) -> Any:
    """Return the value of the JSON in `text`, with finite numbers, unique keys, and at most DEEPEST_JSON levels.

    Raises:
        BadArgument: The text is not valid.
    """
    return read_json_with(text, _DECODER)


def write_json(value: Any) -> str:
    """Return `value` as JSON on one line, without spaces. Raise ValueError for NaN and infinities."""
    return _ENCODER.encode(value)


def read_json_with(text: str, decoder: json.JSONDecoder) -> Any:
    """Return the value of the JSON in `text`, decoded by `decoder`.

    Raises:
        BadArgument: The text is not valid JSON or nested too deeply, or `decoder` refuses it.
    """
    # The C parser recurses at each level, and a thread's stack is small, so deep nesting must not reach it.
    if is_too_deep(text, DEEPEST_JSON):
        raise BadArgument(f"JSON nested deeper than {DEEPEST_JSON}")
    try:
        value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]  # as decode() does, without searching for surrounding space
        if end != len(text):
            value = decoder.decode(text)
        if has_escaped(text, "u") and _SURROGATE.search(text, 0, text.rfind("\\") + 6):
            write_json(value).encode()
    except WireError:
        raise
    except StopIteration:
        raise BadArgument("expected JSON") from None
    except UnicodeEncodeError:
        raise BadArgument("a text contains half a surrogate pair, which is not valid Unicode") from None
    except ValueError as error:  # JSONDecodeError, and integers of more digits than Python converts
        raise BadArgument(f"not JSON: {error}") from None
    return value


def is_too_deep(text: str, deepest: int) -> bool:
    """Return True if `text` has more than `deepest` levels of brackets outside of strings.

    The innermost pairs are removed `deepest` times, and then no bracket may be left.

    Args:
        text: The JSON text.
        deepest: The number of levels that is allowed.
    """
    marks = text.encode().translate(_AS_BRACES, _NO_MARKS)
    if marks.count(b"{") <= deepest:
        return False
    brackets = marks.translate(None, b'"')
    # Only the brackets and quotes are left in `marks`. If no quote is escaped and all quotes form adjacent pairs, no
    # string contains brackets. Otherwise the strings must be removed first.
    if 2 * marks.count(b'""') != len(marks) - len(brackets) or has_escaped(text, '"'):
        brackets = _STRING.sub("", text).encode().translate(_AS_BRACES, _NO_MARKS)
    for _ in range(deepest):
        brackets = brackets.replace(b"{}", b"")
        if not brackets:
            return False
    return True


def has_escaped(text: str, letter: str) -> bool:
    """Return True if `text` contains a backslash followed by `letter`.

    The search is fast if there are no backslashes, or only near the beginning.
    """
    return text.find(f"\\{letter}", 0, text.rfind("\\") + 2) >= 0


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these `pairs`, for object_pairs_hook. Raise BadArgument if a key occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise BadArgument(f"the key {twice[:40]!r} occurs twice in one JSON object")
    return found


def finite(literal: str) -> float:
    """Return the number in `literal`, for parse_float. Raise BadArgument if it is not finite."""
    number = float(literal)
    if number - number != 0:
        raise BadArgument(f"{literal[:40]} is not a finite number")
    return number


_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))

_AS_BRACES = bytes.maketrans(b"[]", b"{}")

# A string, which may be unterminated. The quantifiers are possessive, because backtracking would take quadratic time on
# a hostile line.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_DECODER = json.JSONDecoder(object_pairs_hook=no_key_twice, parse_float=finite, parse_constant=finite)

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
