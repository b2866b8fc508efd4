"""Quality flags in words, for pages and alerts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pigeonpost.core.format import age, number, with_unit

if TYPE_CHECKING:
    from pigeonpost.server.quality import QualityFlag


def flag_words(flag: QualityFlag, unit: str) -> str:
    """Return a `flag` in a few words, to show next to the value. `unit` is the unit of its limit and its value."""
    if flag.kind == "range":
        return f"{'above' if flag.found > flag.limit else 'below'} {with_unit(number(flag.limit), unit)}"
    if flag.kind == "jump":
        return f"jumped by {with_unit(number(flag.found), unit)}"
    if flag.kind == "rail":
        return "saturated"
    return f"{'stuck' if flag.kind == 'stuck' else 'no value'} for {age(flag.found)}"
