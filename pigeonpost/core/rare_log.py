"""Log with a rate limit, for lines that peers can cause at any rate: one line per kind and minute.

Any thread may use it. `_lock` guards the counts, and is held for one lookup or change.
"""

from __future__ import annotations

import logging
import threading

from pigeonpost.core.clock import Clock
from pigeonpost.core.format import counted

LINE_EVERY_S = 60.0  # minimum time between two lines of a kind


class RareLog:
    """Logs the first message of each kind, and then at most one message of this kind per LINE_EVERY_S seconds.

    Args:
        log: Logger for the lines.
        clock: Clock of the program.
    """

    def __init__(self, log: logging.Logger, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        # By kind: time of the last line, and the number of messages suppressed since.
        self._lines: dict[str, tuple[float, int]] = {}

    def log(self, level: int, kind: str, text: str, is_traceback: bool = False) -> None:
        """Log a message, unless one of its kind was logged in the last LINE_EVERY_S seconds.

        The next line of this kind contains the number of suppressed messages.

        Args:
            level: Level, as in the module logging.
            kind: Kind of the message: a constant of this program, never text of a peer, because each kind is
                remembered.
            text: The message.
            is_traceback: True to log the traceback of the current exception too.
        """
        now_s = self._clock.monotonic()
        with self._lock:
            last_s, suppressed = self._lines.get(kind, (now_s - LINE_EVERY_S, 0))
            is_due = now_s - last_s >= LINE_EVERY_S
            self._lines[kind] = (now_s, 0) if is_due else (last_s, suppressed + 1)
        if is_due:
            more = f" ({counted(suppressed, 'similar message')} suppressed before)" if suppressed else ""
            self._log.log(level, "%s%s", text, more, exc_info=is_traceback)
