"""Delivery of alerts and reports on every channel, with retries.

A separate thread checks the rules every 2 s and sends the messages, so a mail server that does not respond delays
nothing else.
Errors: none. If a message cannot be sent, the next attempt is made after one minute. This time doubles with each
attempt, up to one hour. `fault` contains the reason.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import DiskError, NotStored
from pigeonpost.core.format import counted
from pigeonpost.core.redact import hide_secrets

log = logging.getLogger(__name__)

LOOK_S = 2.0  # interval of the checks
RETRY_S, LONGEST_RETRY_S = 60.0, 3600.0  # time before the first retry, and the longest time between two retries
MOST_WAITING = 500  # messages per channel; at the limit the oldest message is dropped


class _ChannelQueue:
    """Queue of messages for one channel."""

    def __init__(self, channel: AlertChannel) -> None:
        self.channel = channel
        self.waiting: deque[AlertMessage] = deque(maxlen=MOST_WAITING)
        self.again_s, self.pause_s = 0.0, RETRY_S
        self.fault = ""


class Notifier:
    """Thread that checks the rules and sends messages on every channel.

    Attributes:
        sent: Number of messages sent; a message on two channels counts as two.
    """

    def __init__(
        self,
        channels: Sequence[AlertChannel],
        look: Callable[[], Sequence[AlertMessage]],
        report: Callable[[int, int], AlertMessage],
        every_s: float,
        clock: Clock,
    ) -> None:
        """Create the notifier without starting its thread.

        Args:
            channels: The channels.
            look: Function that returns the alerts that are due now.
            report: Function that returns the report on a time range; its arguments are the start and the end in
                milliseconds since 1970 (UTC).
            every_s: Time between two reports in seconds; 0 for no reports.
            clock: Clock of the server.
        """
        self._queues = [_ChannelQueue(channel) for channel in channels]
        self._look, self._report, self._every_s, self._clock = look, report, every_s, clock
        self._reported_ms = clock.wall_ms()
        self._next_s = clock.monotonic() + every_s
        self.sent = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @property
    def fault(self) -> str:
        """Reason why messages could not be sent yet, or an empty string if the last attempt succeeded."""
        return "; ".join(queue.fault for queue in self._queues if queue.fault)

    def report(self) -> dict[str, Any]:
        """Return the number of messages sent, and of those that are waiting, as a JSON object."""
        return {"sent": self.sent, "waiting": self._waiting()}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """End the thread. Messages that are not sent yet are lost.

        Args:
            limit_s: Maximum time to wait, in seconds.

        Returns:
            A text with the number of messages that were not sent, or None if there are none.
        """
        self._stopping.set()
        self._thread.join(limit_s)
        left = self._waiting()
        return f"not sent: {counted(left, 'message')}" if left else None

    def _waiting(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues)

    def look(self) -> None:
        """Check the rules once, and send the messages that are due."""
        messages = list(self._look())
        for message in messages:
            log.warning("%s", message.subject)
        self._hand_over(messages)
        now_s = self._clock.monotonic()
        if self._every_s and now_s >= self._next_s:
            to_ms = self._clock.wall_ms()
            self._hand_over([self._report(self._reported_ms, to_ms)])
            self._reported_ms = to_ms
            self._next_s += self._every_s * max(1, round((now_s - self._next_s) / self._every_s))
        for queue in self._queues:
            self._send(queue)

    def _hand_over(self, messages: Sequence[AlertMessage]) -> None:
        for queue in self._queues:
            queue.waiting.extend(messages)

    def _send(self, queue: _ChannelQueue) -> None:
        while queue.waiting and not self._stopping.is_set() and self._clock.monotonic() >= queue.again_s:
            try:
                queue.channel.send(queue.waiting[0])
            except NotSent as error:
                if not queue.fault:
                    log.error("%s; the message is kept, and sending will be retried", error)
                queue.fault = f"messages are not sent yet: {hide_secrets(str(error))}"
                queue.again_s = self._clock.monotonic() + queue.pause_s
                queue.pause_s = min(2 * queue.pause_s, LONGEST_RETRY_S)
            else:
                queue.waiting.popleft()
                queue.fault, queue.pause_s = "", RETRY_S
                self.sent += 1

    def _run(self) -> None:
        logged = ""
        while not self._stopping.wait(LOOK_S):
            try:
                self.look()
                logged = ""
            except DiskError:
                return  # the program ends
            except NotStored as error:
                if logged != str(error):
                    log.warning("alerts and reports are delayed: %s", error)
                logged = str(error)
