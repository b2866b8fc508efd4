"""Delivery of alerts and reports on every channel, with retries.

A thread of its own checks the rules every few seconds and sends, so that a mail server that does not respond delays
nothing else. Errors: a message that cannot be sent is tried again after a minute, doubling to an hour; `fault` says why
it waits.
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
from pigeonpost.core.redact import hide_secrets

log = logging.getLogger(__name__)

LOOK_S = 2.0
RETRY_S, LONGEST_RETRY_S = 60.0, 3600.0
MOST_WAITING = 500  # of each channel; then the oldest are dropped


class _ChannelQueue:
    """Messages that wait for one channel."""

    def __init__(self, channel: AlertChannel) -> None:
        self.channel = channel
        self.waiting: deque[AlertMessage] = deque(maxlen=MOST_WAITING)
        self.again_s, self.pause_s = 0.0, RETRY_S
        self.fault = ""


class Notifier:
    """The thread that checks the rules and sends messages on every channel."""

    def __init__(
        self,
        channels: Sequence[AlertChannel],
        look: Callable[[], Sequence[AlertMessage]],
        report: Callable[[int, int], AlertMessage],
        every_s: float,
        clock: Clock,
    ) -> None:
        """
        look     returns the messages that are due now
        report   returns the report of a span, in ms since 1970
        every_s  seconds between two reports; 0: none
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
        """Why messages wait; empty when none do."""
        return "; ".join(queue.fault for queue in self._queues if queue.fault)

    def report(self) -> dict[str, Any]:
        """Return the state for the pages and `control.py check`, as JSON."""
        return {"sent": self.sent, "waiting": self._waiting()}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        """End the thread; messages that are still waiting are lost."""
        self._stopping.set()
        self._thread.join(limit_s)
        left = self._waiting()
        return f"{left} messages were not sent" if left else None

    def _waiting(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues)

    def look(self) -> None:
        """Check the rules once, and send what can be sent."""
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
                    log.error("%s; it is tried again", error)
                queue.fault = f"messages wait: {hide_secrets(str(error))}"
                queue.again_s = self._clock.monotonic() + queue.pause_s
                queue.pause_s = min(2 * queue.pause_s, LONGEST_RETRY_S)
            else:
                queue.waiting.popleft()
                queue.fault, queue.pause_s = "", RETRY_S
                self.sent += 1

    def _run(self) -> None:
        told = ""
        while not self._stopping.wait(LOOK_S):
            try:
                self.look()
                told = ""
            except DiskError:
                return  # the program ends
            except NotStored as error:
                if told != str(error):
                    log.warning("a report waits: %s", error)
                told = str(error)
