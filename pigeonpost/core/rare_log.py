"""Log lines that peers can cause at any rate: at most one per kind and minute, with the number of those left out.

May be used by any thread; `_lock` guards the counts, and is held for one lookup or change.
"""

from __future__ import annotations

import logging
import threading

from pigeonpost.core.clock import Clock

LINE_EVERY_S = 60.0  # at most one line of a kind in this time


class RareLog:
    """Logs the first message of each kind, and then at most one in LINE_EVERY_S."""

    def __init__(self, log: logging.Logger, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: dict[str, tuple[float, int]] = {}  # by kind: when one was logged, and how many were not since

    def say(self, level: int, kind: str, text: str, is_traceback: bool = False) -> None:
        """Log `text`, unless a line of this kind was logged within LINE_EVERY_S.

        kind          a word of this program, never a peer's: each kind is remembered
        is_traceback  an exception is being handled: log its traceback too
        """
        now_s = self._clock.monotonic()
        with self._lock:
            last_s, left_out = self._lines.get(kind, (now_s - LINE_EVERY_S, 0))
            is_due = now_s - last_s >= LINE_EVERY_S
            self._lines[kind] = (now_s, 0) if is_due else (last_s, left_out + 1)
        if is_due:
            more = f" ({left_out} more lines of this kind were left out before it)" if left_out else ""
            self._log.log(level, "%s%s", text, more, exc_info=is_traceback)
