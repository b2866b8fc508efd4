"""Register of the current faults of this server. A fault remains in it until its cause is removed.

Any thread may use it. `_lock` guards the texts, and is held for one lookup or change.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pigeonpost.core.redact import hide_secrets

log = logging.getLogger(__name__)


class Faults:
    """Current faults, by subject. They are shown on the page, in `control.py check`, in /metrics and in the events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: dict[str, str] = {}
        self._checks: list[Callable[[], object]] = []

    def add_check(self, check: Callable[[], object]) -> None:
        """Register `check`, which is called before each query and may set or clear a fault. It must not block.

        Call this before the start only.
        """
        self._checks.append(check)

    def set(self, subject: str, text: str) -> None:
        """Record the fault of `subject`: `text` contains the problem and the remedy, or is empty if there is no fault.

        A new text is logged once.
        """
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
        """Return the current faults, by subject."""
        for check in self._checks:
            check()
        with self._lock:
            return dict(self._texts)
