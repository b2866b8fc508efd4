"""Formatting of numbers, times, sizes and tables as text for people.

One rule applies to all times. People read local time with its zone: `clock` and `date_and_time` on pages, which name
the zone once (`zone_name`), and `stamp` everywhere else. Programs read UTC: `core.clock.rfc3339`, or milliseconds since
1970. Only CSV logs, and what has their form, have local times, with the offset in each (`storage.csv.format`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence


def age(seconds: float) -> str:
    """Return an age of `seconds` as text: `4 s`, `3 min`, `2 h`, `5 days`."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 120 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} days"


def number(value: float | None) -> str:
    """Return `value` as text, rounded for display, or a dash for None.

    Integers, and values from 1,000 on, have no decimals. Other values have up to four significant digits. Values from
    1e15 on, and values below 0.0001, have an exponent.
    """
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}".replace("-", "−") if abs(value) < 1e15 else f"{value:.3e}"
    if abs(value) < 0.01:
        return f"{value:.3g}".replace("-", "−")
    decimals = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".").replace("-", "−")


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return `count` with its `noun`: `1 node`, `1,204 nodes`. Pass `plural` if it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def clock(time_ms: int, now_ms: int, seconds: bool = False) -> str:
    """Return `time_ms` in local time: `16:36` today, `20 Nov 16:36` in this year, or `20 Nov 2025 16:36`.

    It is for pages, which name the time zone once. A time that occurs twice, at the end of daylight saving time, has
    its offset from UTC: `02:30 UTC+2`.

    Args:
        time_ms: The time in milliseconds since 1970 (UTC).
        now_ms: The current time in milliseconds since 1970 (UTC).
        seconds: True for a time of day with seconds: `16:36:10`.
    """
    t, now = time.localtime(time_ms // 1000), time.localtime(now_ms // 1000)
    of_day = time.strftime("%H:%M:%S" if seconds else "%H:%M", t) + offset_if_repeated(time_ms)
    if t[:3] == now[:3]:
        return of_day
    year = f" {t.tm_year}" if t.tm_year != now.tm_year else ""
    return f"{t.tm_mday} {MONTHS[t.tm_mon - 1]}{year} {of_day}"


def date_and_time(time_ms: int) -> str:
    """Return `time_ms` (ms since 1970, UTC) in local time, for pages: `2026-11-20 16:36:10`.

    A time that occurs twice, at the end of daylight saving time, has its offset from UTC.
    """
    t = time.localtime(time_ms // 1000)
    return "%04d-%02d-%02d %02d:%02d:%02d%s" % (*t[:6], offset_if_repeated(time_ms))


def stamp(time_ms: int) -> str:
    """Return `time_ms` (ms since 1970, UTC) as `2026-11-20 16:36:10+01:00`: local time with its offset from UTC.

    It is for times that stand alone: in e-mails, in the output of commands, in log messages. The form is that of
    RFC 3339, section 5.6, with a space.
    """
    t = time.localtime(time_ms // 1000)
    # RFC 3339 cannot express the local mean time of the past, nor years before 1 or after 9999: use UTC.
    if t.tm_gmtoff % 60 or not 1 <= t.tm_year <= 9999:
        t = time.gmtime(time_ms // 1000)
    hours, minutes = divmod(abs(t.tm_gmtoff) // 60, 60)
    offset = f"{'-' if t.tm_gmtoff < 0 else '+'}{hours:02d}:{minutes:02d}"
    return "%04d-%02d-%02d %02d:%02d:%02d%s" % (*t[:6], offset)


def offset_if_repeated(time_ms: int) -> str:
    """Return ` UTC+2` if the local time at `time_ms` occurs twice, because clocks are set back, or an empty text.

    `time_ms` is in milliseconds since 1970 (UTC).
    """
    seconds = time_ms // 1000
    offset = time.localtime(seconds).tm_gmtoff
    for near_s in (seconds - _FAR_S, seconds + _FAR_S):
        other = time.localtime(near_s).tm_gmtoff
        # The same local time with the other offset, if that offset is in use then.
        if other != offset and time.localtime(seconds + offset - other).tm_gmtoff == other:
            return f" {_utc_offset(offset)}"
    return ""


def zone_name(time_ms: int) -> str:
    """Return the local time zone at `time_ms` (ms since 1970, UTC): `Europe/Vienna (UTC+1)`, or `UTC`."""
    offset = _utc_offset(time.localtime(time_ms // 1000).tm_gmtoff)
    given = os.environ.get("TZ")
    name = (_zone_of_link() if given is None else given.removeprefix(":")) or "UTC"
    if "/" in name and not name.startswith("/") and not any(map(os.path.exists, _zone_files(name))):
        return f"{offset} (TZ={name} is not known to this system)"
    return offset if name in ("UTC", "Etc/UTC", "UTC0") and offset == "UTC" else f"{name} ({offset})"


def zone_minutes(time_ms: int) -> int:
    """Return the offset of local time from UTC at `time_ms` (ms since 1970, UTC), in minutes."""
    return time.localtime(time_ms // 1000).tm_gmtoff // 60


def _zone_of_link() -> str:
    """Return the zone that /etc/localtime links to, or the abbreviation of the local zone if that is not a link."""
    _, found, name = os.path.realpath("/etc/localtime").rpartition("/zoneinfo/")
    return name if found else time.tzname[0]


def _zone_files(name: str) -> list[str]:
    return [
        f"{folder}/{name}" for folder in (os.environ.get("TZDIR"), "/usr/share/zoneinfo", "/etc/zoneinfo") if folder
    ]


def zone_of_axis(from_ms: int, to_ms: int) -> str:
    """Return the zone of the local times in a range: `UTC+1`, or `CEST/CET` if its offset from UTC changes.

    Args:
        from_ms: Start of the range in milliseconds since 1970 (UTC).
        to_ms: End of the range in milliseconds since 1970 (UTC).
    """
    ends = [time.localtime(time_ms // 1000) for time_ms in (from_ms, to_ms)]
    offsets = dict.fromkeys(_utc_offset(t.tm_gmtoff) for t in ends)
    return next(iter(offsets)) if len(offsets) == 1 else "/".join(t.tm_zone for t in ends)


def _utc_offset(seconds: int) -> str:
    """Return an offset from UTC as text: `UTC`, `UTC+1`, `UTC+5:30`, `UTC−3:30`."""
    if not seconds:
        return "UTC"
    hours, minutes = divmod(abs(seconds) // 60, 60)
    return f"UTC{'+' if seconds > 0 else '−'}{hours}{f':{minutes:02d}' if minutes else ''}"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Return the lines of a table for a terminal. Each column is as wide as its longest text.

    Args:
        head: Headings of the columns.
        rows: Texts of the rows.
        sides: One character per column: `<` for left-aligned, `>` for right-aligned.
    """
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = [
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths)) for row in (head, *rows)
    ]
    return [line.rstrip() for line in lines]


def with_unit(text: str, unit: str) -> str:
    """Return the value `text` with its `unit`: `23.4 °C`, `21 %`, `512`."""
    return f"{text} {unit}" if unit else text


def size(count: float) -> str:
    """Return a size of `count` bytes as text, with a binary unit (IEC 80000-13): `12.3 KiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if round(count, 0 if unit == "bytes" else 1) < 1024:  # 1023.96 KiB is 1.0 MiB, not 1024.0 KiB
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


_FAR_S = 3 * 3600  # clocks are set back by 30 minutes (Lord Howe) to 2 hours (Troll)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
