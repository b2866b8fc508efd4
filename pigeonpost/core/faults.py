"""Faults of this server that last until somebody or something mends them, by what they concern.

May be used by any thread; `_lock` guards the texts, and is held for one lookup or change.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pigeonpost.core.redact import hide_secrets

log = logging.getLogger(__name__)


class Faults:
    """The present faults: shown on the page, in `control.py check`, in /metrics and among the events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: dict[str, str] = {}
        self._checks: list[Callable[[], object]] = []

    def add_check(self, check: Callable[[], object]) -> None:
        """Call `check`, which may set or clear a fault, before each look; it must not wait. Before the start only."""
        self._checks.append(check)

    def set(self, subject: str, text: str) -> None:
        """Record what is wrong with `subject`, and the remedy; an empty text: nothing is. A new text is logged once."""
        text = hide_secrets(text)
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
        for check in self._checks:
            check()
        with self._lock:
            return dict(self._texts)
