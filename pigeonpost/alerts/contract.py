"""Messages of alerts and reports, and the interface of the channels that deliver them.

The Notifier's thread calls the channels. Errors: NotSent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pigeonpost.core.errors import PigeonpostError


class NotSent(PigeonpostError, OSError):
    """A message could not be sent. The Notifier tries again later."""


class AlertMessage(NamedTuple):
    """An alert or a report.

    Attributes:
        subject: Subject, in one line.
        text: Text for people.
        info: The same information for programs, as a JSON object.
    """

    subject: str
    text: str
    info: dict[str, Any]


class AlertChannel:
    """Channel that delivers messages to people.

    Attributes:
        place: Name of the channel in messages and logs, for example "mail server mail.example.org"; without secrets.
    """

    place: str

    def send(self, message: AlertMessage) -> None:
        """Send `message`, and return once the receiving server has accepted it.

        Raises:
            NotSent: The message could not be sent.
        """
        raise NotImplementedError
