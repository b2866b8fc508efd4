"""Who tells people when something is wrong, and how things went: messages, and the ways that they go.

Runs on: server, where an alert or a report is set.  Reached from: server.py, by watch/watchman.
Members: alerts (what is wrong), reports (how things went), mail and webhook (ways), watchman (who does it all in time).
Threads: the watchman's.  Errors: NotSent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pigeonpost.core.errors import PigeonpostError


class NotSent(PigeonpostError, OSError):
    """A message did not get away: it is tried again."""


class AlertMessage(NamedTuple):
    """What people are told: a line, a text, and for programs the same as JSON."""

    subject: str
    text: str
    info: dict[str, Any]


class AlertChannel:
    """One way of messages to people."""

    place: str  # for people, without secrets

    def send(self, message: AlertMessage) -> None:
        """Returns when it was taken over. Raises NotSent."""
        raise NotImplementedError
