"""Schedule of something that is due at a local time of day: daily, weekly or monthly. It has no state.

A time that was missed is found later, because `last_due_ms` returns the last scheduled time, not the next one. Times
are compared in UTC, so changes to or from daylight saving time cause neither a second due time nor a missing one.
"""

from __future__ import annotations

import calendar
import time
from datetime import date, timedelta
from typing import Literal, NamedTuple

Period = Literal["daily", "weekly", "monthly"]

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class Schedule(NamedTuple):
    """Local times at which something is due.

    Attributes:
        at: Time of day, for example "03:00".
        period: "daily", "weekly" or "monthly".
        day: Day of the week from 0 (Monday) to 6, or day of the month from 1 to 31. If a month is shorter, its last day
            is used. Not used for "daily".
    """

    at: str
    period: Period = "daily"
    day: int = 0

    def last_due_ms(self, now_ms: int) -> int:
        """Return the last scheduled time that is not after `now_ms`. Both are in ms since 1970 (UTC)."""
        hour, minute = map(int, self.at.split(":"))
        today = date(*time.localtime(now_ms / 1000)[:3])
        for days in range(2 * 31 + 1):
            day = today - timedelta(days)
            if self._is_on(day):
                due_ms = _local_time_s(day.year, day.month, day.day, hour, minute) * 1000
                if due_ms <= now_ms:
                    return due_ms
        raise AssertionError("two months contain each day of a month")

    def _is_on(self, day: date) -> bool:
        if self.period == "weekly":
            return day.weekday() == self.day
        if self.period == "monthly":
            return day.day == min(self.day, calendar.monthrange(day.year, day.month)[1])
        return True

    def __str__(self) -> str:
        """Return the schedule as text: `daily at 07:00`, `weekly on Monday at 07:00`."""
        day = {"weekly": f" on {WEEKDAYS[self.day % 7].capitalize()}", "monthly": f" on day {self.day}"}
        return f"{self.period}{day.get(self.period, '')} at {self.at}"


def _local_time_s(year: int, month: int, day: int, hour: int, minute: int) -> int:
    """Return a local time in seconds since 1970.

    If the time exists twice at the end of daylight saving time, the first one is returned. If it is skipped at the
    beginning, it is converted as if the clocks had not changed yet. tm_isdst = -1 is not used, because mktime(3) may
    then choose either of two times.
    """
    local = (year, month, day, hour, minute)
    candidates = [int(time.mktime((*local, 0, 0, 0, is_dst))) for is_dst in (1, 0)]
    return min((time_s for time_s in candidates if time.localtime(time_s)[:5] == local), default=candidates[1])
