"""Validated values of query strings: times, durations and names.

Errors: HTTPError 400.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pigeonpost.core.clock import FIRST_MS, parse_rfc3339
from pigeonpost.http.message import HTTPError


def moment(text: str) -> int:
    """Return the time `text`, which is in RFC 3339 or in ms since 1970, in ms since 1970.

    Raises HTTPError 400 if it is invalid.
    """
    try:
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else parse_rfc3339(text)
    except (ValueError, OverflowError):
        raise HTTPError(400, "A time must be like 2026-11-20T15:36:10Z, or milliseconds since 1970.", "time") from None


def moment_or_ago(text: str, now_ms: int) -> int:
    """Return the time `text` in ms since 1970: as for `moment`, or relative to `now_ms`: `now`, `-24h` or `now-24h`.

    Raises HTTPError 400 if it is invalid.
    """
    if text == "now":
        return now_ms
    found = _AGO(text)
    return max(FIRST_MS, now_ms - span_ms(found[1])) if found else moment(text)


def span_ms(text: str) -> int:
    """Return the duration `text`, such as `90s`, `10m`, `24h` or `7d`, in ms. A number without a unit is in seconds.

    Raises HTTPError 400 if it is invalid.
    """
    unit = _UNITS_MS.get(text[-1:], 0)
    digits = text[:-1] if unit else text
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits)):
        raise HTTPError(400, "A duration must be like 90s, 10m, 24h or 7d.", "span")
    return int(digits) * (unit or 1000)


def name_in(query: Mapping[str, str], key: str, match: Callable[[str], object]) -> str:
    """Return the name in the field `key` of `query`, or an empty string if there is none.

    Raises HTTPError 400 if `match` returns no match.
    """
    name = query.get(key, "")
    if name and not match(name):
        raise HTTPError(400, f"`{key}` is not a valid name of a {key}.", "name")
    return name


def names_in(query: Mapping[str, str], key: str, match: Callable[[str], object], most: int) -> Sequence[str]:
    """Return the different names in the field `key` of `query`, which are separated by commas.

    Raises HTTPError 400 if `match` returns no match for one of them, or if there are more than `most`.
    """
    names = list(dict.fromkeys(query[key].split(","))) if query.get(key) else []
    if len(names) > most or not all(match(name) for name in names):
        raise HTTPError(400, f"`{key}` must be a list of at most {most} names, separated by commas.", "name")
    return names


def whole_number(query: Mapping[str, str], key: str, default: int, most: int) -> int:
    """Return the number in the field `key` of `query`, from 1 to `most`; `default` if there is none.

    Raises HTTPError 400 if it is invalid.
    """
    text = query.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise HTTPError(400, f"`{key}` must be a whole number from 1 to {most}.", key)
    return int(text)


_AGO = re.compile(r"(?:now)?-(.*)").fullmatch
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
