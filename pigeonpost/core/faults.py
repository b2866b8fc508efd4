"""Faults of this server that last until somebody or something mends them, by what they concern.

May be used by any thread; `_lock` guards the texts, and is held for one lookup or change.
"""

from __future__ import annotations

import logging
import threading

log = logging.getLogger(__name__)


class Faults:
    """The present faults: shown on the page, in `control.py check`, in /metrics and among the events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: dict[str, str] = {}

    def set(self, subject: str, text: str) -> None:
        """Record what is wrong with `subject`, and the remedy; an empty text: nothing is. A new text is logged once."""
        with self._lock:
            if self._texts.get(subject, "") == text:
                return
            if text:
                self._texts[subject] = text
            else:
                del self._texts[subject]
        if text:
            log.error("%s: %s", subject, text)
        else:
            log.warning("%s: works again", subject)

    def present(self) -> dict[str, str]:
        """Return what is wrong now, by subject."""
        with self._lock:
            return dict(self._texts)
