"""Log on standard error: one line per record, with the time, or with the priority for systemd's journal.

Sources: sd-daemon(3) for the priorities, systemd.exec(5) for JOURNAL_STREAM.
"""

from __future__ import annotations

import logging
import os
import sys

from pigeonpost.core.format import stamp
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.redact import hide_secrets

if TYPE_CHECKING:
    from typing import Any

_SHOWN_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
# Priorities of syslog by level (sd-daemon(3)): SD_CRIT, SD_ERR, SD_WARNING, SD_INFO, SD_DEBUG.
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class _OneLine(logging.Formatter):
    """Formatter that writes each record on one line. Control characters are escaped, and secrets are hidden."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return stamp(int(record.created * 1000))

    def formatMessage(self, record: logging.LogRecord) -> str:
        return hide_secrets(super().formatMessage(record)).translate(_SHOWN_CONTROLS)

    def formatException(self, ei: Any) -> str:
        return hide_secrets(super().formatException(ei))


class _ForJournal(_OneLine):
    """Formatter that begins each line with its priority, also those of a traceback. The journal adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        return _with_priority(super().format(record), record.levelno)


def start_logging(level: str = "info") -> None:
    """Log on standard error from `level` up: debug, info, warning or error. Another call changes the level."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        plain = "%(levelname)s %(message)s"
        handler.setFormatter(_ForJournal(plain) if is_journal() else _OneLine(f"%(asctime)s {plain}"))
        root.addHandler(handler)
    root.setLevel(level.upper())


def print_error(program: str, error: BaseException) -> None:
    """Print `error`, which ended `program`, on standard error. In systemd's journal each line has a priority."""
    text = f"{program}: {hide_secrets(str(error))}"
    sys.stderr.write(f"{_with_priority(text, logging.ERROR) if is_journal() else text}\n")


def is_journal() -> bool:
    """Return True if standard error is systemd's journal: the file whose device and inode are in JOURNAL_STREAM."""
    try:
        about = os.fstat(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or replaced by an object that is not a file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


def _with_priority(text: str, level: int) -> str:
    priority = _PRIORITIES.get(level, 6)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))
