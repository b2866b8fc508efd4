"""What people see: the house as the pages may look at it, and what every page is made with.

Runs on: server.  Reached from: webui, which has the routes; server.py, which fills in the House; the members.
Members: one file a page or a piece of one; `style.css` and `script.js` are served as they stand.
Hands on to: nobody.
Threads: every request has its own; what stands in the House may be read by all of them.
Errors: none of their own.

A member has functions that take a Visit and give an Answer. What it needs of another member webui hands to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.http.message import HTTPError

if TYPE_CHECKING:
    pass


# ---------------------------------------------------------------------------------------------------- how things are


# ------------------------------------------------------------------------------------------------------------ markup


# ------------------------------------------------------------------------------------------------- words and numbers


# ------------------------------------------------------------------------------------------------ what a query may say


def moment(text: str) -> int:
    """A time in a query, in ms since 1970: RFC 3339, or those milliseconds themselves. Refusal 400 for others."""
    try:
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else parse_rfc3339(text)
    except (ValueError, OverflowError):
        raise HTTPError(400, "A time is like 2026-11-20T15:36:10Z, or milliseconds since 1970.", "time") from None


def span_ms(text: str) -> int:
    """A length of time in a query, as `90s`, `10m`, `24h`, `7d`, in ms; a bare number is seconds. Refusal 400."""
    unit = _UNITS_MS.get(text[-1:], 0)
    digits = text[:-1] if unit else text
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits)):
        raise HTTPError(400, "A length of time is like 90s, 10m, 24h or 7d.", "span")
    return int(digits) * (unit or 1000)


def name_in(query: Mapping[str, str], key: str, match: Callable[[str], object]) -> str:
    """The name that a query gives under `key`, empty without one; Refusal 400 when it cannot be one."""
    name = query.get(key, "")
    if name and not match(name):
        raise HTTPError(400, f"That is no name for a {key}.", "name")
    return name


_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
