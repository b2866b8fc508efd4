"""Delivery of alerts and reports on every channel, with retries, from a durable queue.

A separate thread checks the rules every 2 s, and puts due reports into the queue. One more thread per mail server and
web server sends the messages, so a server that does not respond delays nothing else.

`_lock` is held while reports are put into the queue, and while a thread reads the queue. So a report, and the time of
the last report, are stored before the report is sent.

Errors: none. If a message cannot be sent, the next attempt is made after one minute, or after the time in Retry-After.
This time doubles with each attempt, up to one hour. `fault` contains the reason. Messages stay in order, unless a
server answers that it does not accept one of them yet, but accepts others. A message that is refused permanently
is removed from the queue of that channel, and is a fault for a day. A message is removed only once it was accepted. If
the program is killed in the moment between, it is sent again with the same id.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.alerts.contract import AlertChannel, AlertMessage, AlertQueue, NotSent, QueuedMessage, Refused
from pigeonpost.alerts.recent import RecentMessages
from pigeonpost.alerts.trial import send_trial, trial_message
from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import DiskError, NotStored
from pigeonpost.core.format import counted
from pigeonpost.core.redact import hide_secrets
from pigeonpost.transports.contract import IntegrationStatus

if TYPE_CHECKING:
    from pigeonpost.alerts.reporter import Reporter

log = logging.getLogger(__name__)

LOOK_S = 2.0  # interval of the checks
RETRY_S, LONGEST_RETRY_S = 60.0, 3600.0  # time before the first retry, and the longest time between two retries
REFUSED_S = 86_400.0  # time for which a refused message is reported as a fault
PATIENCE = 3  # attempts after which later messages no longer wait for one that the server does not accept yet
FAILED_AT_ONCE = 5  # such messages that are tried before the channel pauses
GIVE_UP_AFTER = 30  # attempts since the start, before such a message is given up
GIVE_UP_MS = 5 * 86_400_000  # age at which such a message is given up (RFC 5321, section 4.5.4.1: 4 to 5 days)


class _Delivery:
    """State of the delivery on one channel. Its thread changes it, and other threads read the texts and numbers."""

    def __init__(self, channel: AlertChannel) -> None:
        self.channel = channel
        self.fault = self.refusal = ""
        self.refused_s = 0.0
        self.sent = self.refused = self.waiting = 0
        self.success_ms: int | None = None
        self.left = float(channel.pace.burst) if channel.pace else 0.0  # messages that may be sent now
        self.left_s = 0.0  # time at which `left` was valid
        self.again_s, self.pause_s = 0.0, RETRY_S  # time of the next attempt, and the pause after it
        self.is_answered = False  # True if the server is reached, but did not accept the last message
        self.newest = 0  # number of the newest message when the last attempt began
        self.attempts: dict[int, int] = {}  # number of answers that did not accept a message, by its number
        self.held_s: dict[int, float] = {}  # time of the next attempt, if the server accepts other messages
        self.finished: set[int] = set()  # never sent again, even if they cannot be removed from the queue yet

    def is_due(self, waiting: Sequence[QueuedMessage], now_s: float) -> bool:
        """Return True if messages may be sent now. A new message is tried at once, unless the server is not reached."""
        return now_s >= self.again_s or (self.is_answered and waiting[-1].number > self.newest)

    def takes(self, now_s: float) -> bool:
        """Return True if the pace of the channel allows a message now, and count it."""
        pace = self.channel.pace
        if pace is None:
            return True
        self.left, self.left_s = min(pace.burst, self.left + (now_s - self.left_s) / pace.every_s), now_s
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def forget_removed(self, queued: set[int]) -> None:
        """Forget all messages except those with the numbers `queued`: they were removed from the queue, or dropped."""
        self.finished &= queued
        dropped = self.attempts.keys() - queued
        for number in dropped:
            del self.attempts[number]
            self.held_s.pop(number, None)
        if dropped and not self.attempts and not self.again_s:  # the fault was about these messages
            self.fault = ""

    def count(self, number: int) -> int:
        """Return the number of answers that did not accept a message, including the one that has just arrived."""
        self.attempts[number] = self.attempts.get(number, 0) + 1
        return self.attempts[number]

    def hold(self, numbers: Sequence[int], now_s: float) -> None:
        """Plan the next attempts to send messages that the server does not accept, although it accepts others."""
        for number in numbers:
            doublings = min(self.attempts[number] - 1, 20)
            self.held_s[number] = now_s + min(RETRY_S * 2**doublings, LONGEST_RETRY_S)

    def pause(self, now_s: float, pause_s: float | None, is_answered: bool) -> None:
        """Plan the next attempt on this channel, after `pause_s` seconds or, if that is None, after the usual pause."""
        self.again_s, self.is_answered = now_s + (self.pause_s if pause_s is None else pause_s), is_answered
        self.pause_s = min(2 * self.pause_s, LONGEST_RETRY_S)

    def next_s(self, now_s: float) -> int | None:
        """Return the seconds until the next attempt after a failed one; None if none has failed."""
        if not self.fault:
            return None
        times = [self.again_s, *self.held_s.values()] if self.again_s > now_s else list(self.held_s.values())
        return max(0, round(min(times, default=now_s) - now_s))

    def works(self) -> None:
        """Record that the server accepts messages. The fault remains if it did not accept an earlier one."""
        self.again_s, self.pause_s, self.is_answered = 0.0, RETRY_S, False
        if not self.attempts:
            self.fault = ""


class Notifier:
    """Threads that check the rules and send messages on every channel.

    Attributes:
        channels: The channels.
        recent: The last messages that were sent or refused.
        last_test: Time of the last test message in ms since 1970 (UTC), and each channel with the reason why the test
            failed there, or an empty string; None before the first test.
    """

    last_test: tuple[int, Sequence[tuple[AlertChannel, str]]] | None = None

    def __init__(
        self,
        channels: Sequence[AlertChannel],
        look: Callable[[], object],
        queue: AlertQueue,
        clock: Clock,
        reporter: Reporter | None = None,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        """Create the notifier without starting its threads.

        Args:
            channels: The channels.
            look: Function that checks the rules and adds the alerts that are due now to the queue.
            queue: Durable queue of messages.
            clock: Clock of the server.
            reporter: Adds the reports that are due to the queue; None for no reports.
            close: Function that closes the queue at the end.
        """
        self.channels, self.recent = channels, RecentMessages(queue)
        self._deliveries = [_Delivery(channel) for channel in channels]
        self._look, self._queue, self._clock, self._reporter, self._close = look, queue, clock, reporter, close
        self._lock, self._testing = threading.Lock(), threading.Lock()
        self._internal = ""
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(self._check,), name="watch", daemon=True)]
        for place in dict.fromkeys(channel.place for channel in channels):
            own = [one for one in self._deliveries if one.channel.place == place]
            self._threads.append(
                threading.Thread(target=self._run, args=(self._deliver, own), name="mail", daemon=True)
            )

    @property
    def fault(self) -> str:
        """Reason why messages could not be sent yet, were refused, or cannot be stored; empty if there is none."""
        now_s = self._clock.monotonic()
        texts = [self._internal, self._queue.fault, *(one.fault for one in self._deliveries)]
        texts += [one.refusal for one in self._deliveries if one.refusal and now_s - one.refused_s < REFUSED_S]
        return "; ".join(dict.fromkeys(text for text in texts if text))

    @property
    def sent(self) -> int:
        """Number of messages sent since the start; a message on two channels counts as two."""
        return sum(one.sent for one in self._deliveries)

    def report(self) -> dict[str, Any]:
        """Return the number of messages sent, and of those that are waiting, as a JSON object."""
        return {"sent": self.sent, "waiting": sum(len(self._waiting(one)) for one in self._deliveries)}

    def states(self) -> list[dict[str, Any]]:
        """Return the state of the delivery on each channel, as JSON objects."""
        now_s = self._clock.monotonic()
        return [
            {
                "channel": one.channel.key, "place": one.channel.place, "sent": one.sent,
                "waiting": len(self._waiting(one)), "fault": one.fault,
                "refused": one.refusal if now_s - one.refused_s < REFUSED_S else "",
                "next_attempt_s": one.next_s(now_s),
            }
            for one in self._deliveries
        ]  # fmt: skip

    def statuses(self) -> list[IntegrationStatus]:
        """Return the state of each channel. It does not wait.

        Viewers see these texts, so a fault that contains the address of a mail recipient ends before it. Each fault is
        a part of `fault`.
        """
        found, mails, now_s = [], 0, self._clock.monotonic()
        for one in self._deliveries:
            channel = one.channel
            kind, _, address = channel.key.partition(":")
            mails += bool(address)
            fault = one.fault or (one.refusal if now_s - one.refused_s < REFUSED_S else "")
            found.append(IntegrationStatus(
                f"alerts {kind}{f' {mails}' if address else ''}", channel.kind, "out", channel.place, one.success_ms,
                one.waiting, "messages", one.sent, one.refused,
                fault.partition(address)[0].rstrip(": ") if address else fault,
            ))  # fmt: skip
        return found

    def test(self, server: str, user: str) -> bool:
        """Send a test message on every channel now, and keep the results in `last_test`.

        Args:
            server: Name of the server.
            user: Name of the user who requested it.

        Returns:
            False if another test is running.
        """
        if not self._testing.acquire(blocking=False):
            return False
        try:
            now_ms = self._clock.wall_ms()
            self.last_test = now_ms, send_trial(self.channels, trial_message(server, user, now_ms))
        finally:
            self._testing.release()
        return True

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, limit_s: float) -> str | None:
        """End the threads. Messages that are not sent yet stay in the queue, and are sent after the next start.

        Args:
            limit_s: Maximum time to wait, in seconds.

        Returns:
            A text with the number of messages that are neither sent nor stored, or None if there are none.
        """
        self._stopping.set()
        give_up_s = self._clock.monotonic() + limit_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, give_up_s - self._clock.monotonic()))
        left = self.report()["waiting"] if self._queue.fault else 0
        self._close()
        return f"not sent: {counted(left, 'message')}" if left else None

    def look(self) -> None:
        """Check the rules and reports once, and send the messages that are due."""
        self._check()
        self._deliver(self._deliveries)

    def _check(self) -> None:
        self._look()
        if self._reporter is not None:
            try:
                self._reporter.prepare()
            finally:  # those that could be made
                with self._lock:
                    self._reporter.put()

    def _deliver(self, deliveries: Sequence[_Delivery]) -> None:
        for one in deliveries:
            with self._lock:
                queued = self._queue.waiting(one.channel.key)
            one.forget_removed({message.number for message in queued})
            waiting = [message for message in queued if message.number not in one.finished]
            one.waiting = len(waiting)
            if waiting and one.is_due(waiting, self._clock.monotonic()):
                one.newest = waiting[-1].number
                self._deliver_waiting(one, waiting)

    def _deliver_waiting(self, one: _Delivery, waiting: Sequence[QueuedMessage]) -> None:
        """Send the messages that wait, in order. The channel pauses if the server accepts none of them."""
        failed: list[int] = []
        accepted = False
        for queued in waiting:
            number, now_s = queued.number, self._clock.monotonic()
            if self._stopping.is_set():
                return
            if now_s < one.held_s.get(number, 0.0):
                continue
            message = one.channel.select(queued.message)
            if message is None:
                self._finish(one, queued)
                continue
            if not one.takes(now_s):
                break
            error = self._attempt(one, queued, message)
            if error is None:
                accepted = True
                one.works()
                continue
            self._show(one, error)
            if not error.is_answer:
                one.pause(now_s, error.pause_s, is_answered=False)
                return
            failed.append(number)
            if one.count(number) < PATIENCE or len(failed) == FAILED_AT_ONCE:
                break
        if accepted:
            one.hold(failed, self._clock.monotonic())
        elif failed:
            one.pause(self._clock.monotonic(), None, is_answered=True)

    def _waiting(self, one: _Delivery) -> list[QueuedMessage]:
        with self._lock:
            return [queued for queued in self._queue.waiting(one.channel.key) if queued.number not in one.finished]

    def _attempt(self, one: _Delivery, queued: QueuedMessage, message: AlertMessage) -> NotSent | None:
        """Send a message. Return the error if it must be sent again, or None if it is finished."""
        try:
            one.channel.send(message)
        except Refused as error:
            self._refuse(one, queued, str(error))
            return None
        except NotSent as error:
            is_old = self._clock.wall_ms() - queued.queued_ms > GIVE_UP_MS  # or the clock was set in the meantime
            if error.is_answer and is_old and one.attempts.get(queued.number, 0) >= GIVE_UP_AFTER:
                self._refuse(one, queued, f"{error}; it was given up after {GIVE_UP_MS // 86_400_000} days")
                return None
            return error
        except Exception as error:  # an internal error about one message must not end all alerts
            log.exception("a message could not be sent to the %s", one.channel.place)
            return NotSent(f"{one.channel.place}: internal error: {type(error).__name__}", is_answer=True)
        one.sent += 1
        one.success_ms = self._clock.wall_ms()
        self._finish(one, queued, "sent")
        return None

    def _show(self, one: _Delivery, error: NotSent) -> None:
        text = hide_secrets(str(error))
        if not one.fault:
            log.error("%s; the message is kept, and sending will be retried", text)
        one.fault = f"messages are not sent yet: {text}"

    def _refuse(self, one: _Delivery, queued: QueuedMessage, reason: str) -> None:
        reason = hide_secrets(reason)
        one.refusal = f"a message was refused and is not sent again: {reason} ({queued.message.subject})"
        one.refused_s = self._clock.monotonic()
        one.refused += 1
        log.error("%s", one.refusal)
        self._finish(one, queued, "refused", reason)

    def _finish(self, one: _Delivery, queued: QueuedMessage, result: str = "", reason: str = "") -> None:
        one.attempts.pop(queued.number, None)
        one.held_s.pop(queued.number, None)
        one.finished.add(queued.number)
        one.waiting = max(0, one.waiting - 1)
        self._queue.remove(one.channel.key, queued.number)
        if result:
            self.recent.add(one.channel.key, queued, result, reason, self._clock.wall_ms())

    def _run(self, step: Callable[..., None], *arguments: Any) -> None:
        logged = ""
        while not self._stopping.wait(LOOK_S):
            try:
                step(*arguments)
                if logged:
                    logged = self._internal = ""
            except DiskError:
                return  # the program ends
            except NotStored as error:
                if logged != str(error):
                    log.warning("alerts and reports are delayed: %s", error)
                logged = str(error)
            except Exception as error:  # an internal error must not end all alerts
                if logged != repr(error):
                    log.exception("alerts and reports: internal error")
                logged = repr(error)
                self._internal = f"alerts and reports: internal error: {type(error).__name__}, see the log"
