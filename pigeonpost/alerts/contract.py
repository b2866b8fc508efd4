"""Messages of alerts and reports; interfaces between alert rules, durable queue, channels and pages.

    rules (Alerts.look)  ->  AlertQueue (alert_store.AlertStore, durable)  ->  Notifier  ->  AlertChannel
    page                <->  AlertEngine (active alerts, acknowledgement, rules)

The rules write the state of an alert and its message to the queue in one transaction, so a message is neither lost nor
sent twice after a crash. The Notifier's thread calls `look`, the queue and the channels; pages call the AlertEngine.
Errors: NotSent, Refused; SettingsError for invalid rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pigeonpost.core.errors import PigeonpostError

SEVERITIES = ("info", "warning", "critical")
KINDS = ("value", "failed", "flag", "silent", "gap", "disk", "store", "voltage", "refused")


def rank(severity: str) -> int:
    """Return the position of a severity in SEVERITIES; an unknown one counts as the highest."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


class NotSent(PigeonpostError, OSError):
    """A message could not be sent. The Notifier tries again later.

    Attributes:
        pause_s: Seconds after which the server wants the next attempt (HTTP: Retry-After), or None.
        is_answer: True if the server has answered about this message, so it may accept other messages.
    """

    def __init__(self, text: str, pause_s: float | None = None, is_answer: bool = False) -> None:
        super().__init__(text)
        self.pause_s, self.is_answer = pause_s, is_answer


class Refused(NotSent):
    """The receiving server has refused a message permanently. It is not sent again."""


class AlertMessage(NamedTuple):
    """An alert or a report.

    Attributes:
        subject: Subject, in one line.
        text: Text for people.
        info: The same information for programs, as a JSON object. A message about several alerts lists them in
            `info["alerts"]`.
        id: Unique id, of letters, digits and dashes. It is stored with the message, so it stays the same over restarts
            and retries, for example as the Message-ID of a mail. An empty string means that the queue assigns one.
        severity: One of SEVERITIES: the highest one of the alerts in the message.
        kind: "alert", "over" (the alerts have ended), "report" or "test".
        html: The text as HTML, for mails; empty if there is none.
        source: What a message about several alerts was written from, as a JSON object: see messages.reduced. None for
            other messages, and for those that an earlier version has queued.
    """

    subject: str
    text: str
    info: dict[str, Any]
    id: str = ""
    severity: str = "warning"
    kind: str = "alert"
    html: str = ""
    source: dict[str, Any] | None = None


class QueuedMessage(NamedTuple):
    """Message that waits in the queue of one channel.

    Attributes:
        number: Number of the message in the queue; it increases with each message and identifies it.
        queued_ms: Time at which it was queued, in ms since 1970 (UTC).
        message: The message.
    """

    number: int
    queued_ms: int
    message: AlertMessage


class AlertQueue(Protocol):
    """Durable queue of messages, one per channel. Any thread may use it.

    While the disk cannot be written, messages are kept in memory, and `fault` contains the reason.
    """

    @property
    def fault(self) -> str:
        """Reason why the queue and the states of the alerts cannot be stored now, or an empty string."""

    def put(self, messages: Sequence[AlertMessage], channels: Sequence[str] | None = None) -> None:
        """Add `messages` to the queues of the `channels`, or of all channels if it is None, and sync the disk.

        A message whose id is in the queue of a channel already is not added to it again.
        """

    def waiting(self, channel: str) -> list[QueuedMessage]:
        """Return the messages that wait for `channel`, the oldest first."""

    def remove(self, channel: str, number: int) -> None:
        """Remove the message `number` of `channel`, which was sent or is permanently refused, and sync the disk."""

    def note(self, key: str, value: str) -> None:
        """Store the text `value` under a `key` for the caller, such as the time of the last report; sync the disk."""

    def noted(self, key: str) -> str:
        """Return the text that was stored under `key`, or an empty string."""


class ActiveAlert(NamedTuple):
    """Alert whose condition is met now, for the page.

    Attributes:
        id: Id for `acknowledge`; it stays the same until the alert ends, also over restarts.
        rule: Name of the rule.
        kind: One of KINDS.
        node: Name of the node; empty for this server.
        sensor: Name of the sensor; empty if the alert is not about a sensor.
        severity: One of SEVERITIES.
        since_ms: Start of the condition in ms since 1970 (UTC).
        text: The latest value or state, for people.
        is_held: True if its message is held back now because of quiet hours.
        acknowledged_by: User who has acknowledged it; empty if no user has.
        acknowledged_ms: Time of the acknowledgement in ms since 1970 (UTC); None before that.
    """

    id: str
    rule: str
    kind: str
    node: str
    sensor: str
    severity: str
    since_ms: int
    text: str
    is_held: bool = False
    acknowledged_by: str = ""
    acknowledged_ms: int | None = None


class AlertRule(NamedTuple):
    """Alert rule as shown on the page.

    Attributes:
        name: Name of the rule: the key `name`, or a description of its condition.
        origin: "settings" for a table of the settings file, "page" for a rule edited on the page, or "default" for the
            rule about silent nodes that applies as soon as a channel is set.
        table: Keys and values of the [[alert]] table.
    """

    name: str
    origin: str
    table: Mapping[str, Any]


class AlertEngine(Protocol):
    """Active alerts and rules, for the pages. Any thread may use it."""

    def active(self) -> list[ActiveAlert]:
        """Return the alerts whose conditions are met now, the most severe and then the newest first."""

    def acknowledge(self, alert_id: str, user: str) -> bool:
        """Acknowledge an alert: it is not repeated until it ends. Its end is still reported.

        Args:
            alert_id: Id of the alert.
            user: Name of the user.

        Returns:
            False if there is no such alert: it has ended.
        """

    def rules(self) -> list[AlertRule]:
        """Return all rules: those of the settings file, those of the page, and the default rule if it applies."""

    def set_rules(self, tables: Sequence[Mapping[str, Any]]) -> None:
        """Replace the rules of the page by `tables`, which have the keys of [[alert]] tables, and store them durably.

        They apply immediately. The state of a rule that did not change is kept.

        Raises:
            SettingsError: A table is invalid. Nothing was changed.
            DiskError: The rules cannot be stored. Nothing was changed.
        """


class Pace(NamedTuple):
    """Rate at which a channel sends messages, below the limit of its service.

    Attributes:
        burst: Maximum number of messages without a pause.
        every_s: Seconds between two messages in the long run.
    """

    burst: int
    every_s: float


class AlertChannel:
    """Channel that delivers messages to people.

    Attributes:
        place: Name of the channel in messages and logs, for example "mail server mail.example.org"; without secrets.
        key: Name of the channel in the queue, for example "mail"; it stays the same over restarts.
        kind: Kind of the service, for example "mail" or "ntfy".
        pace: Rate of messages; None without a limit.
    """

    place: str
    key: str = ""
    kind: str = ""
    pace: Pace | None = None

    def select(self, message: AlertMessage) -> AlertMessage | None:
        """Return what the recipient of this channel receives of `message`, or None if that is nothing."""
        return message

    def send(self, message: AlertMessage) -> None:
        """Send `message`, and return once the receiving server has accepted it.

        Raises:
            NotSent: The message could not be sent.
            Refused: The message will never be accepted.
        """
        raise NotImplementedError
