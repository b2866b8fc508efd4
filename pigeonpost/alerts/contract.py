"""Messages of alerts and reports, and the interface of the channels that deliver them.

Channels are called in the Notifier's thread. Errors: NotSent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pigeonpost.core.errors import PigeonpostError


class NotSent(PigeonpostError, OSError):
    """A message could not be sent: it is tried again."""


class AlertMessage(NamedTuple):
    """A message: subject, text, and for programs the same as JSON."""

    subject: str
    text: str
    info: dict[str, Any]


class AlertChannel:
    """One channel of messages to people."""

    place: str  # for people, without secrets

    def send(self, message: AlertMessage) -> None:
        """Send a message; returns once it has been accepted. Raises NotSent."""
        raise NotImplementedError
