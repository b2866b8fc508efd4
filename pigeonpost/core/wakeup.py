"""Flags with which one thread waits for an event that other threads report.

A flag is a lock that the waiting thread acquires and the other threads release. That needs one system call to wait and
one to wake, and no Python code in between. threading.Event, a queue or a condition needs three to six system calls, and
three times as much time if the processor's cache is cold.
"""

from __future__ import annotations

import threading


class Wakeup:
    """A flag that `set` sets and `wait` clears. Any number of threads may set it; only one thread may wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Wake the waiting thread. If there is none, the next `wait` returns immediately."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # already set: the waiting thread has not run yet, and one wake-up is enough for both callers

    def wait(self, seconds: float = -1.0) -> bool:
        """Wait until the flag is set, for at most `seconds` (-1: no limit), and clear it. Return True if it was set."""
        return self._lock.acquire(timeout=seconds)


class StopFlag(threading.Event):
    """A threading.Event that is never cleared, and that waits with a Wakeup, which is faster."""

    def __init__(self) -> None:
        super().__init__()
        self._wakeup = Wakeup()

    def set(self) -> None:
        """Set the flag and wake all waiting threads."""
        super().set()
        self._wakeup.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, for at most `timeout` seconds (None: no limit). Return True if it is set."""
        if not self.is_set() and self._wakeup.wait(-1.0 if timeout is None else timeout):
            self._wakeup.set()  # wake the next waiting thread
        return self.is_set()
