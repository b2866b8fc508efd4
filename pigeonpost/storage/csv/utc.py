"""Conversion of the local times of a CSV log to UTC, for programs that expect one offset in a column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pigeonpost.core.clock import parse_rfc3339, rfc3339

_LOCAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,16}[+-][0-9]{2}:[0-9]{2}").fullmatch


def in_utc(texts: Iterable[str]) -> Iterator[str]:
    """Yield the CSV with the times of the first column in UTC, in parts. Lines without such a time stay unchanged.

    Args:
        texts: Parts of CSV in the format of the logs. Each part consists of complete lines.
    """
    times: dict[str, str] = {}  # the last time and its conversion: the rows of a sample follow each other
    for text in texts:
        lines = []
        for line in text.split("\n"):
            time, comma, rest = line.partition(",")
            if time not in times:
                times = {time: _converted(time)}
            lines.append(f"{times[time]}{comma}{rest}")
        yield "\n".join(lines)


def _converted(text: str) -> str:
    try:
        return rfc3339(parse_rfc3339(text)) if _LOCAL(text) else text
    except (ValueError, OverflowError):  # not a valid date
        return text
