"""Wall clock, uptime and how far the date can be trusted; a fake clock for tests.

A Clock may be used by any thread.

A Raspberry Pi has no clock that runs while it is off. So a sample carries two times: `wall`, the date as it was
believed to be, and `up`, the milliseconds since the machine's boot, which no correction changes; and the id of that
boot. Once the date is known, samples taken before it in the same boot can be dated again.

Sources: adjtimex(2), clock_gettime(2), Documentation/ABI/testing/sysfs-class-rtc of the Linux kernel, RFC 3339.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Sequence
from itertools import repeat
from operator import floordiv, itemgetter, sub

from pigeonpost.core.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

# adjtimex(2) returns this while no time daemon has set the clock.
_TIME_ERROR = 5
_TIMESYNCD_DONE = "/run/systemd/timesync/synchronized"
_BATTERY_CLOCK = "/sys/class/rtc/rtc0/since_epoch"  # seconds, UTC (Documentation/ABI/testing/sysfs-class-rtc)
_PC = ("x86_64", "i686", "i386", "amd64")
# A clock that says it is before this program was written is wrong, even if a time daemon vouches for it.
_EARLIEST_MS = 1_793_491_200_000  # 2026-11-01T00:00:00Z

FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # of the years 1 and 9999


_MARKS = itemgetter(7, 10, 23)  # of a time as `rfc3339` writes it


class Clock:
    """The real clock. Every module takes one as an argument, so that tests can hand in `FakeClock`."""

    def __init__(self) -> None:
        self.boot_id = _read_boot_id()
        self._known_set = False

    def wall_ms(self) -> int:
        """Return the time in milliseconds since 1970-01-01 UTC; to be trusted if `is_set`."""
        return time.time_ns() // 1_000_000

    def up_ms(self) -> int:
        """Return milliseconds since this machine's boot, with suspended time (clock_gettime(2), CLOCK_BOOTTIME)."""
        return time.clock_gettime_ns(_UP_CLOCK) // 1_000_000

    def monotonic(self) -> float:
        """Return seconds that never step, for deadlines."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until `event` is set, at most `seconds`. Returns True if it is set."""
        return event.wait(max(0.0, seconds))

    def is_set(self) -> bool:
        """Return True if the date can be trusted; once True it stays True for the life of the program."""
        if not self._known_set:
            now_ms = self.wall_ms()
            self._known_set = now_ms >= _EARLIEST_MS and _clock_is_kept(now_ms)
        return self._known_set


class FakeClock(Clock):
    """A clock that moves only when told: `sleep(seconds)`, or by being waited on."""

    def __init__(self, wall_ms: int = 1_795_188_970_123, up_ms: int = 48_000_000, known: bool = True) -> None:
        self.boot_id = "0123456789abcdef"
        self.now_ms = float(up_ms)
        self.offset_ms = wall_ms - up_ms
        self.known = known

    def wall_ms(self) -> int:
        return int(self.now_ms) + self.offset_ms

    def up_ms(self) -> int:
        return int(self.now_ms)

    def monotonic(self) -> float:
        return self.now_ms / 1000

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if not event.is_set():
            self.sleep(max(0.0, seconds))
        return event.is_set()

    def is_set(self) -> bool:
        return self.known

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now_ms += seconds * 1000

    def step(self, seconds: float) -> None:
        """Set the date forward (or back) without time passing, as a time daemon or a person would."""
        self.offset_ms += int(seconds * 1000)


def rfc3339(time_ms: int) -> str:
    """Return `time_ms` (UTC, milliseconds since 1970) as `2026-11-20T15:36:10.123Z` (RFC 3339, section 5.6)."""
    seconds, ms = divmod(time_ms, 1000)
    t = time.gmtime(seconds)
    return "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ" % (*t[:6], ms)


def parse_rfc3339(text: str) -> int:
    """Return a time as `rfc3339` writes it in UTC milliseconds since 1970.

    Also takes other fractions and offsets that RFC 3339 allows; ValueError says what was wrong.
    """
    # fromisoformat reads the usual 24 characters in C, but also takes week dates and times without an offset, which
    # are no RFC 3339; so the marks that tell are looked at first.
    if type(text) is not str or len(text) < 20 or text[10] not in "Tt " or text[7] != "-":
        raise ValueError(f"{text!r:.40} is not a time like 2026-11-20T15:36:10.123Z")
    kind, epoch = _datetime()
    moment = kind.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text[:40]!r} has no time zone; end it with Z for UTC")
    since = moment - epoch
    time_ms = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    if not FIRST_MS <= time_ms <= LAST_MS:  # by its offset, which `rfc3339` could not write
        raise ValueError(f"{text[:40]!r} is not within the years 1 to 9999 of UTC")
    return time_ms


def parse_usual_times(texts: Sequence[Any]) -> list[int] | None:
    """Return many times as `rfc3339` writes them in UTC milliseconds since 1970, calculated in C.

    None if one of them is written in another way or is wrong: `parse_rfc3339` tells about each.
    """
    if set(map(type, texts)) != {str} or set(map(len, texts)) != {24} or set(map(_MARKS, texts)) != {("-", "T", "Z")}:
        return None
    kind, epoch = _datetime()
    try:
        since = map(sub, map(kind.fromisoformat, texts), repeat(epoch))
        return list(map(floordiv, since, repeat(type(epoch - epoch)(milliseconds=1))))
    except (ValueError, TypeError):  # TypeError: one without an offset
        return None


@functools.cache
def _datetime() -> tuple[type[datetime], datetime]:
    """The class, and the epoch. Loaded when it is needed: it costs 0.35 MiB, which no node without a server needs."""
    from datetime import UTC, datetime

    return datetime, datetime(1970, 1, 1, tzinfo=UTC)


def _clock_is_kept(now_ms: int) -> bool:
    """Return True if this machine's date is kept: by its mainboard, a battery or a time daemon."""
    return (
        os.uname().machine in _PC  # a PC boots with the date of its CMOS clock, a virtual one with its host's
        or os.path.exists(_TIMESYNCD_DONE)
        or _battery_clock_agrees(now_ms)
        or _kernel_says_synchronised()
    )


def _battery_clock_agrees(now_ms: int) -> bool:
    """Return True if a battery clock has the same date. A Pi 5 without its battery starts in 1970."""
    try:
        with open(_BATTERY_CLOCK, encoding="ascii") as file:
            return abs(int(file.read()) - now_ms / 1000) < 60
    except (OSError, ValueError):
        return False


def _kernel_says_synchronised() -> bool:
    """Ask adjtimex(2) without setting anything (`modes`, the first field of struct timex, is zero)."""
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "adjtimex"):  # not Linux: such machines have a battery
        return True
    buffer = ctypes.create_string_buffer(512)  # larger than struct timex on any machine
    return libc.adjtimex(buffer) not in (-1, _TIME_ERROR)


def _read_boot_id() -> str:
    """Return 16 hex digits that differ at every boot (proc(5), random/boot_id), or of this process without those."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().replace("-", "")[:16]
    except OSError:
        return os.urandom(8).hex()


_UP_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
