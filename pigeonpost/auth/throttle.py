"""Throttling of addresses that fail to log in.

May be used by any thread; `_lock` guards the failures, and is held for one lookup or change.
"""

from __future__ import annotations

import threading

from pigeonpost.core.clock import Clock

FREE = 3  # failures of an address that are answered at once; then each is answered later than the one before,

MOST = 10  # and after so many none is looked at

CLOSED_S = 300.0  # until nothing failed for so long

_MOST_ADDRESSES = 1024


class LoginThrottle:
    """Counts failed logins of each address. An attempt counts as failed until it has succeeded."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}  # how many, and when the last began

    def begin(self, host: str) -> tuple[float, float]:
        """Begin an attempt. Returns the seconds to delay it; and, if it must be refused, those until the next one."""
        key, now_s = _network(host), self._clock.monotonic()
        with self._lock:
            count, last_s = self._failures.pop(key, (0, now_s))
            if now_s - last_s >= CLOSED_S:
                count = 0
            closed = count >= MOST
            if len(self._failures) >= _MOST_ADDRESSES:
                del self._failures[next(iter(self._failures))]
            self._failures[key] = (count, last_s) if closed else (count + 1, now_s)
        if closed:
            return 0.0, last_s + CLOSED_S - now_s
        return (min(0.1 * 2.0 ** (count - FREE), 1.0) if count >= FREE else 0.0), 0.0

    def succeeded(self, host: str) -> None:
        """Forget the failures of an address that has logged in."""
        with self._lock:
            self._failures.pop(_network(host), None)


def _network(host: str) -> str:
    """Return the part of an address that is counted: of IPv6 the first half, since each client has 2^64 addresses."""
    if ":" not in host:
        return host
    head, _, tail = host.partition("::")
    groups = head.split(":") if head else []
    missing = 8 - len(groups) - (len(tail.split(":")) if tail else 0)
    return ":".join((groups + ["0"] * missing + tail.split(":"))[:4])
