"""Time zone of the times in a file that have no offset from UTC.

A wall time is a local time, counted in milliseconds since 1970 as if it was UTC. When summer time ends, an hour of wall
times occurs twice: the first is before the transition, the second after it. When summer time begins, an hour of wall
times does not exist. Errors: BadZone for an unknown zone, RowError for a wall time that does not exist.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import NamedTuple

from pigeonpost.core.errors import PigeonpostError
from pigeonpost.importing.cells import RowError

_DAY_S = 86_400
_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])([0-9]{1,2})(?::?([0-9]{2}))?").fullmatch
_EPOCH = datetime(1970, 1, 1)
_LAST_S = 253_339_228_800  # the year 9998: `datetime` cannot represent times after the year 9999


class BadZone(PigeonpostError, ValueError):
    """The name of a time zone is unknown."""


class Transition(NamedTuple):
    """Change of the offset from UTC.

    Attributes:
        utc_s: Time of the change in seconds since 1970 (UTC).
        before_s: Offset before it, in seconds.
        after_s: Offset after it, in seconds.
    """

    utc_s: int
    before_s: int
    after_s: int

    @property
    def end_ms(self) -> int:
        """The first wall time that is neither repeated nor skipped by this transition."""
        return (self.utc_s + max(self.before_s, self.after_s)) * 1000

    @property
    def start_ms(self) -> int:
        """The first wall time that is repeated or skipped by this transition."""
        return (self.utc_s + min(self.before_s, self.after_s)) * 1000


class Zone:
    """A time zone.

    Args:
        name: Name such as `Europe/Berlin`, an offset such as `+01:00`, or an empty string for the zone of this machine.

    Raises:
        BadZone: The name is unknown.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._zone = _zone(name) if name else None
        self._years: dict[tuple[int, object], list[Transition]] = {}
        self._constant_s = self._offset_s(0) if isinstance(self._zone, timezone) or name == "UTC" else None

    def transitions(self, low_ms: int, high_ms: int) -> list[Transition]:
        """Return the transitions from a day before the wall time `low_ms` to a day after `high_ms`, in their order."""
        if self._constant_s is not None:
            return []
        first, last = ((one // 1000 + shift) for one, shift in ((low_ms, -_DAY_S), (high_ms, _DAY_S)))
        years = range(_year(first), _year(last) + 1)
        return [one for year in years for one in self._of_year(year) if first <= one.utc_s <= last]

    def utc_ms(self, walls_ms: Sequence[int], is_second: Callable[[int, Transition], bool]) -> list[int]:
        """Return wall times as times in UTC.

        Args:
            walls_ms: Wall times in milliseconds since 1970.
            is_second: Function that returns True if a wall time that occurs twice is the second one. Its arguments are
                the index of the wall time and the transition.

        Returns:
            Times in milliseconds since 1970 (UTC).

        Raises:
            RowError: A wall time does not exist, because summer time began.
        """
        low_ms = min(walls_ms)
        found = self.transitions(low_ms, max(walls_ms))
        if not found:
            offset_ms = (self._constant_s if self._constant_s is not None else self._offset_s(low_ms // 1000)) * 1000
            return [wall_ms - offset_ms for wall_ms in walls_ms]
        ends = [one.end_ms for one in found]
        times = []
        for index, wall_ms in enumerate(walls_ms):
            at = bisect_right(ends, wall_ms)
            offset_s = found[at - 1].after_s if at else found[0].before_s
            if at < len(found) and wall_ms >= found[at].start_ms:
                if found[at].after_s > found[at].before_s:
                    raise RowError(self._skipped(wall_ms, found[at]))
                offset_s = found[at].after_s if is_second(index, found[at]) else found[at].before_s
            times.append(wall_ms - offset_s * 1000)
        return times

    def _skipped(self, wall_ms: int, found: Transition) -> str:
        hours, minutes = divmod(abs(found.before_s) // 60, 60)
        winter = f"{'-' if found.before_s < 0 else '+'}{hours:02d}:{minutes:02d}"
        return (
            f"{_EPOCH + timedelta(milliseconds=wall_ms):%Y-%m-%d %H:%M} does not exist in the time zone"
            f" {self.name or 'of this machine'}: clocks were set forward then. If the clock of the logger was not, use"
            f" --timezone {winter}"
        )

    def _of_year(self, year: int) -> list[Transition]:
        key = year, self._zone or (time.timezone, time.tzname)
        if key not in self._years:
            start = (datetime(year, 1, 1) - _EPOCH).days * _DAY_S
            found = []
            days = range(start, start + 367 * _DAY_S, _DAY_S)
            for low, high in pairwise(days):
                before, after = self._offset_s(low), self._offset_s(high)
                if before != after and _year(low) == year:
                    while high - low > 1:
                        middle = (low + high) // 2
                        low, high = (middle, high) if self._offset_s(middle) == before else (low, middle)
                    found.append(Transition(high, before, after))
            self._years[key] = found
        return self._years[key]

    def _offset_s(self, utc_s: int) -> int:
        utc_s = min(max(utc_s, -_DAY_S), _LAST_S)
        if self._zone is None:
            return time.localtime(utc_s).tm_gmtoff
        offset = datetime.fromtimestamp(utc_s, self._zone).utcoffset() or timedelta(0)
        return offset.days * _DAY_S + offset.seconds


def _year(utc_s: int) -> int:
    return (_EPOCH + timedelta(seconds=min(max(utc_s, 0), _LAST_S))).year


def _zone(name: str) -> tzinfo:
    if name.upper() in ("UTC", "GMT", "Z"):
        return UTC
    if found := _OFFSET(name):
        minutes = int(found[2]) * 60 + int(found[3] or 0)
        if minutes <= 14 * 60:
            return timezone(timedelta(minutes=-minutes if found[1] == "-" else minutes))
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise BadZone(
            f"there is no time zone {name!r:.60} on this machine: use a name such as Europe/Berlin (package tzdata), or"
            " an offset such as +01:00"
        ) from None
