"""Validated values of query strings: times, durations and names.

Errors: HTTPError 400.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.http.message import HTTPError


def moment(text: str) -> int:
    """Return the time `text`, which is in RFC 3339 or in ms since 1970, in ms since 1970.

    Raises HTTPError 400 if it is invalid.
    """
    try:
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else parse_rfc3339(text)
    except (ValueError, OverflowError):
        raise HTTPError(400, "A time must be like 2026-11-20T15:36:10Z, or milliseconds since 1970.", "time") from None


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


_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
