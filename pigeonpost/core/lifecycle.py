"""Life cycle of a program: components start in order, and stop in reverse order; signals; systemd notification.

The main thread starts and stops everything. Any thread may call `end` or `fail`; a signal handler may call `end`.

Errors: a PigeonpostError from a component's start ends the program with its exit status, after the components before it
were stopped. Sources: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

from pigeonpost.core.errors import PigeonpostError
from pigeonpost.core.light_typing import NamedTuple
from pigeonpost.core.wake_pipe import WakePipe

log = logging.getLogger(__name__)

STOP_S = 4.0  # time limit for stopping all components: less than the 5 s after which users expect a program to end


class LifecycleComponent(NamedTuple):
    """A component of a program.

    Attributes:
        name: Name for log lines.
        start: Starts the component. An exception ends the program.
        stop: Stops the component. It accepts a time limit in seconds, and returns a text about unfinished work, or
            None.
        check: Called periodically by the main thread while the program runs; not while it starts or stops.
        check_s: Interval of `check` in seconds; 0 for never.
    """

    name: str
    start: Callable[[], object]
    stop: Callable[[float], str | None]
    check: Callable[[], object] = lambda: None
    check_s: float = 0.0


class Lifecycle:
    """The components of one program.

    Args:
        parts: The components, in the order in which they start.

    Attributes:
        reason: Reason for the end, or an empty string.
    """

    def __init__(self, parts: list[LifecycleComponent]) -> None:
        self._parts = parts
        # Not an Event: a signal handler runs between any two steps of the main thread, even while that holds the
        # Event's lock, and would then wait for that lock permanently. Also, a signal that arrives in another thread, or
        # just before the main thread waits, does not interrupt waiting for a lock. But Python then writes to this pipe.
        # The pipe is never closed, because any thread and any signal may call `end` while this object exists.
        self._wake_pipe = WakePipe()
        self._has_ended = False
        self._status = 0
        self.reason = ""

    def end(self, reason: str = "") -> None:
        """Request the end of the program, for the given `reason`. Does not block."""
        self.reason = self.reason or reason
        self._has_ended = True
        self._wake_pipe.wake()

    def fail(self, error: BaseException) -> None:
        """End the program with the exit status of `error`, for components that cannot continue."""
        self._status = self._status or getattr(error, "exit_status", 70)  # 70: EX_SOFTWARE
        try:
            log.critical("%s", str(error) or type(error).__name__)
        finally:  # there may not even be memory for the log line
            self.end(str(error) or type(error).__name__)

    def run(self, ready: Callable[[], object]) -> int:
        """Start all components, call `ready`, wait for the end, and stop all components. Return the exit status."""
        signal.set_wakeup_fd(self._wake_pipe.writer_fileno(), warn_on_full_buffer=False)
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not started by nohup(1): its terminal was closed
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, self._on_signal)
        threading.excepthook = self._on_lost_thread
        started: list[LifecycleComponent] = []
        try:
            for part in self._parts:
                part.start()
                started.append(part)
            ready()
            _notify("READY=1")
            self._wait_for_end()
        except PigeonpostError as error:
            self.fail(error)
        except Exception as error:  # for example a lack of threads or memory: stop what was started
            log.exception("internal error in the main thread")
            self.fail(error)
        _notify("STOPPING=1")
        give_up_s = time.monotonic() + STOP_S
        for part in reversed(started):
            self._stop(part, max(0.1, give_up_s - time.monotonic()))
        # `fail` has logged the reason of a failure.
        how = f" with exit status {self._status}" if self._status else f": {self.reason}" if self.reason else ""
        log.info("ended%s", how)
        for number in numbers:  # a signal while Python ends would replace the exit status
            signal.signal(number, signal.SIG_IGN)
        return self._status

    def _wait_for_end(self) -> None:
        """Call each component's `check`, and notify systemd's watchdog, whenever it is time to."""
        duties = [(part.check, part.check_s) for part in self._parts if part.check_s]
        watchdog_s = _watchdog_s()
        if watchdog_s:
            duties.append((lambda: _notify("WATCHDOG=1"), watchdog_s))
        due_s = [time.monotonic() + every_s for _, every_s in duties]
        while not self._has_ended:
            wait_s = max(0.0, min(due_s) - time.monotonic()) if due_s else None
            if select.select([self._wake_pipe], [], [], wait_s)[0]:
                self._wake_pipe.drain()
                continue
            for n, (action, every_s) in enumerate(duties):
                if time.monotonic() >= due_s[n]:
                    self._act(action)
                    due_s[n] = time.monotonic() + every_s

    def _act(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # continue, so that the components are stopped
            log.exception("internal error in the main thread")
            self.fail(error)

    def _stop(self, part: LifecycleComponent, limit_s: float) -> None:
        try:
            unfinished = part.stop(limit_s)
        except Exception as error:  # continue, so that the other components are stopped
            log.exception("%s: internal error while stopping", part.name)
            self.fail(error)
            return
        if unfinished:
            log.warning("%s: %s", part.name, unfinished)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.end(f"received {signal.Signals(number).name}")

    def _on_lost_thread(self, lost: threading.ExceptHookArgs) -> None:
        """Log the internal error that ended a thread, and end the program, so that the supervisor restarts it."""
        name = lost.thread.name if lost.thread else "a thread"
        exception = (lost.exc_type, lost.exc_value or lost.exc_type(), lost.exc_traceback)
        try:
            log.critical("%s ended because of an internal error", name, exc_info=exception)
        finally:
            self.fail(exception[1])


def _notify(state: str) -> None:
    """Send `state` to systemd (sd_notify(3)), if it asks for notifications."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
            except OSError as error:
                log.warning("cannot send %s to systemd: %s", state, error)


def extend_start(seconds: float) -> None:
    """Extend systemd's time limit for the start by `seconds` (EXTEND_TIMEOUT_USEC in sd_notify(3))."""
    _notify(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")


def _watchdog_s() -> float | None:
    """Return half of systemd's watchdog interval in seconds (sd_watchdog_enabled(3)), or None if there is none."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() else None
