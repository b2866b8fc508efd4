"""Wall clock, uptime, and the check whether the date is reliable; also a fake clock for tests.

Any thread may use a Clock.

A Raspberry Pi has no clock that runs while it is off. So each sample has two times: `wall`, the date according to the
machine, and `up`, the milliseconds since the machine's boot, which no correction of the date changes. It also has the
id of that boot. Once the date is reliable, earlier samples of the same boot can be dated correctly.

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
# A date before this program was written is wrong, even if a time daemon has confirmed it.
_EARLIEST_MS = 1_793_491_200_000  # 2026-11-01T00:00:00Z

FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # first ms of year 1 and last ms of year 9999 (UTC)


_MARKS = itemgetter(7, 10, 23)  # the characters -, T and Z in the output of `rfc3339`


class Clock:
    """The real clock. Each module receives a clock as an argument, so that tests can pass a `FakeClock`.

    Attributes:
        boot_id: 16 hex digits that identify the machine's current boot.
    """

    def __init__(self) -> None:
        self.boot_id = _read_boot_id()
        self._known_set = False

    def wall_ms(self) -> int:
        """Return the time in milliseconds since 1970-01-01 UTC. It is reliable only if `is_set` returns True."""
        return time.time_ns() // 1_000_000

    def up_ms(self) -> int:
        """Return the milliseconds since this machine's boot, including suspended time.

        Source: clock_gettime(2), CLOCK_BOOTTIME.
        """
        return time.clock_gettime_ns(_UP_CLOCK) // 1_000_000

    def monotonic(self) -> float:
        """Return a number of seconds that never steps, for deadlines."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until `event` is set, for at most `seconds`. Return True if it is set."""
        return event.wait(max(0.0, seconds))

    def is_set(self) -> bool:
        """Return True if the date is reliable. The result stays True until the program ends."""
        if not self._known_set:
            now_ms = self.wall_ms()
            self._known_set = now_ms >= _EARLIEST_MS and _clock_is_kept(now_ms)
        return self._known_set


class FakeClock(Clock):
    """A clock that moves only when a test calls `sleep`, or when a thread calls `wait`.

    Args:
        wall_ms: Initial time in milliseconds since 1970 (UTC).
        up_ms: Initial milliseconds since boot.
        known: Result of `is_set`: True if the date is reliable.
    """

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
        """Move the date by `seconds` (backwards if negative) while no time passes, as a time daemon or a user does."""
        self.offset_ms += int(seconds * 1000)


def rfc3339(time_ms: int) -> str:
    """Return `time_ms` (UTC, milliseconds since 1970) as `2026-11-20T15:36:10.123Z` (RFC 3339, section 5.6)."""
    seconds, ms = divmod(time_ms, 1000)
    t = time.gmtime(seconds)
    return "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ" % (*t[:6], ms)


def parse_rfc3339(text: str) -> int:
    """Return the time in `text` in milliseconds since 1970 (UTC).

    The text has the form that `rfc3339` writes, or another form of RFC 3339, with any fraction of a second and any
    offset. Fractions of a millisecond are dropped.

    Raises:
        ValueError: The text is not a valid time, has no offset from UTC, or is outside of the years 1 to 9999.
    """
    # fromisoformat is fast, because it is written in C. But it also accepts week dates and times without an offset,
    # which RFC 3339 does not allow. So the characters that distinguish these forms are checked.
    if type(text) is not str or len(text) < 20 or text[10] not in "Tt " or text[7] != "-":
        raise ValueError(f"{text!r:.40} is not a time like 2026-11-20T15:36:10.123Z")
    kind, epoch = _datetime()
    found = kind.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text[:40]!r} has no time zone; end it with Z for UTC")
    since = found - epoch
    time_ms = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    if not FIRST_MS <= time_ms <= LAST_MS:  # because of its offset; `rfc3339` could not write such a time
        raise ValueError(f"{text[:40]!r} is not within the years 1 to 9999 of UTC")
    return time_ms


def parse_usual_times(texts: Sequence[Any]) -> list[int] | None:
    """Return the times in `texts` in milliseconds since 1970 (UTC), or None if one does not have the usual form.

    The usual form is that of `rfc3339`. The conversion runs completely in C. If the result is None, `parse_rfc3339`
    converts each text, or raises the error.
    """
    if set(map(type, texts)) != {str} or set(map(len, texts)) != {24} or set(map(_MARKS, texts)) != {("-", "T", "Z")}:
        return None
    kind, epoch = _datetime()
    try:
        since = map(sub, map(kind.fromisoformat, texts), repeat(epoch))
        return list(map(floordiv, since, repeat(type(epoch - epoch)(milliseconds=1))))
    except (ValueError, TypeError):  # TypeError: a time without an offset
        return None


@functools.cache
def _datetime() -> tuple[type[datetime], datetime]:
    """Return the class datetime and the epoch. The import needs 0.35 MiB, which a node without a server saves."""
    from datetime import UTC, datetime

    return datetime, datetime(1970, 1, 1, tzinfo=UTC)


def _clock_is_kept(now_ms: int) -> bool:
    """Return True if this machine keeps the date: with its mainboard's clock, a battery clock or a time daemon."""
    return (
        os.uname().machine in _PC  # a PC boots with the date of its CMOS clock, a virtual one with its host's
        or os.path.exists(_TIMESYNCD_DONE)
        or _battery_clock_agrees(now_ms)
        or _kernel_clock_is_synchronised()
    )


def _battery_clock_agrees(now_ms: int) -> bool:
    """Return True if a battery clock has the same date. A Pi 5 without its battery starts in 1970."""
    try:
        with open(_BATTERY_CLOCK, encoding="ascii") as file:
            return abs(int(file.read()) - now_ms / 1000) < 60
    except (OSError, ValueError):
        return False


def _kernel_clock_is_synchronised() -> bool:
    """Return True if adjtimex(2) reports a synchronised clock.

    `modes`, the first field of struct timex, is 0: set nothing.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "adjtimex"):  # not Linux: such machines have a battery clock
        return True
    buffer = ctypes.create_string_buffer(512)  # larger than struct timex on any machine
    return libc.adjtimex(buffer) not in (-1, _TIME_ERROR)


def _read_boot_id() -> str:
    """Return 16 hex digits that differ at each boot: from random/boot_id (proc(5)), or else random ones."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().replace("-", "")[:16]
    except OSError:
        return os.urandom(8).hex()


_UP_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
