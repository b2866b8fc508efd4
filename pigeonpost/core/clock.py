"""What time it is, how sure of it we are, and a clock for tests that stands still until it is told to move.

Runs on: node and server.  Reached from: everywhere.  Hands on to: the kernel.  Threads: a Clock may be used by any.

A Raspberry Pi has no clock of its own that runs while it is off. So a sample carries two times: `wall` (what the date
was believed to be) and `up` (milliseconds since the machine's boot, which no correction ever changes), together with
the boot's id. Once the date is known, what was taken before it in the same boot can be dated anew.
"""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime

# adjtimex(2) returns this while no time daemon has set the clock.
_TIME_ERROR = 5
_TIMESYNCD_DONE = "/run/systemd/timesync/synchronized"
_BATTERY_CLOCK = "/sys/class/rtc/rtc0/since_epoch"  # seconds, UTC (Documentation/ABI/testing/sysfs-class-rtc)
_PC = ("x86_64", "i686", "i386", "amd64")
# A clock that says it is before this program was written is wrong, whoever vouches for it.
_EARLIEST_MS = 1_793_491_200_000  # 2026-11-01T00:00:00Z

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # of the years 1 and 9999


class Clock:
    """The real clock. Every module takes one as an argument, so that tests can hand in `FakeClock`."""

    def __init__(self) -> None:
        self.boot_id = _read_boot_id()
        self._known_set = False

    def wall_ms(self) -> int:
        """Now, in milliseconds since 1970-01-01 UTC: right only as far as `is_set` says."""
        return time.time_ns() // 1_000_000

    def up_ms(self) -> int:
        """Milliseconds since this machine's boot, suspended time included (clock_gettime(2), CLOCK_BOOTTIME)."""
        return time.clock_gettime_ns(_UP_CLOCK) // 1_000_000

    def monotonic(self) -> float:
        """Seconds that never step, for deadlines."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until `event` is set, at most `seconds`; True when it is set."""
        return event.wait(max(0.0, seconds))

    def is_set(self) -> bool:
        """Whether the date can be believed; once True it stays True for the life of the program."""
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
    """`time_ms` (UTC, milliseconds since 1970) as `2026-11-20T15:36:10.123Z` (RFC 3339, section 5.6)."""
    seconds, ms = divmod(time_ms, 1000)
    t = time.gmtime(seconds)
    return "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ" % (*t[:6], ms)


def parse_rfc3339(text: str) -> int:
    """The UTC milliseconds since 1970 of a time as `rfc3339` writes it.

    Also takes other fractions and offsets that RFC 3339 allows; ValueError says what was wrong.
    """
    # fromisoformat reads the usual 24 characters in C, but also takes week dates and times without an offset, which
    # are no RFC 3339; so the marks that tell are looked at first.
    if type(text) is not str or len(text) < 20 or text[10] not in "Tt " or text[7] != "-":
        raise ValueError(f"{text!r:.40} is not a time like 2026-11-20T15:36:10.123Z")
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text[:40]!r} has no time zone; end it with Z for UTC")
    since = moment - _EPOCH
    time_ms = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    if not _FIRST_MS <= time_ms <= _LAST_MS:  # by its offset, which `rfc3339` could not write
        raise ValueError(f"{text[:40]!r} is not within the years 1 to 9999 of UTC")
    return time_ms


def _clock_is_kept(now_ms: int) -> bool:
    """Whether somebody keeps this machine's date: its maker, a battery or a time daemon."""
    return (
        os.uname().machine in _PC  # a PC boots with the date of its CMOS clock, a virtual one with its host's
        or os.path.exists(_TIMESYNCD_DONE)
        or _battery_clock_agrees(now_ms)
        or _kernel_says_synchronised()
    )


def _battery_clock_agrees(now_ms: int) -> bool:
    """A Raspberry Pi 5 has a battery clock, but often no battery: then it starts in 1970 and agrees with nobody."""
    try:
        with open(_BATTERY_CLOCK, encoding="ascii") as file:
            return abs(int(file.read()) - now_ms / 1000) < 60
    except (OSError, ValueError):
        return False


def _kernel_says_synchronised() -> bool:
    """adjtimex(2) in its reading mode (`modes`, the first field of struct timex, is zero)."""
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "adjtimex"):  # not Linux: such machines have a battery
        return True
    buffer = ctypes.create_string_buffer(512)  # larger than struct timex on any machine
    return libc.adjtimex(buffer) not in (-1, _TIME_ERROR)


def _read_boot_id() -> str:
    """16 hex digits that differ at every boot (proc(5), random/boot_id), or of this process where there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().replace("-", "")[:16]
    except OSError:
        return os.urandom(8).hex()


_UP_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
