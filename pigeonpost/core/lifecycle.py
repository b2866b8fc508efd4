"""Life of a program: components start in order, it waits, they stop in reverse; signals, systemd.

The main thread starts and stops everything; any thread may call `end` or `fail`, a signal handler `end`.
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

STOP_S = 4.0  # for all parts together: under the 5 s in which people expect a program to be gone


class LifecycleComponent(NamedTuple):
    """A component of a program. `stop` gets its time limit in seconds, and returns what it left undone, if anything.

    check    called by the main thread every `check_s` seconds while the program runs; not while it starts or stops
    check_s  0: never
    """

    name: str
    start: Callable[[], object]
    stop: Callable[[float], str | None]
    check: Callable[[], object] = lambda: None
    check_s: float = 0.0


class Lifecycle:
    """The components of one program, in the order in which they start."""

    def __init__(self, parts: list[LifecycleComponent]) -> None:
        self._parts = parts
        # Not an Event: a signal's handler runs between any two steps of the main thread, also while that holds the
        # Event's lock, and would wait for it for ever. And a signal that another thread gets, or that comes just before
        # the main thread waits, interrupts no waiting for a lock; but Python writes to this pipe at once.
        self._wake_pipe = WakePipe()  # not closed: any thread, and any signal, may call `end` as long as this exists
        self._has_ended = False
        self._status = 0
        self.reason = ""

    def end(self, reason: str = "") -> None:
        """Ask the program to stop; returns at once."""
        self.reason = self.reason or reason
        self._has_ended = True
        self._wake_pipe.wake()

    def fail(self, error: BaseException) -> None:
        """Stop the program with the exit status of `error`: for parts that cannot go on."""
        self._status = self._status or getattr(error, "exit_status", 70)  # 70: EX_SOFTWARE
        try:
            log.critical("%s", str(error) or type(error).__name__)
        finally:  # there may be no memory even for that line
            self.end(str(error) or type(error).__name__)

    def run(self, ready: Callable[[], object]) -> int:
        """Start everything, call `ready`, wait to be ended, stop everything; the exit status."""
        signal.set_wakeup_fd(self._wake_pipe.writer_fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
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
        except Exception as error:  # no thread, or no memory: what has started is stopped, and the log says why
            log.exception("internal error in the main thread")
            self.fail(error)
        _notify("STOPPING=1")
        give_up_s = time.monotonic() + STOP_S
        for part in reversed(started):
            self._stop(part, max(0.1, give_up_s - time.monotonic()))
        # The reason of a failure was logged by `fail`.
        how = f" with exit status {self._status}" if self._status else f": {self.reason}" if self.reason else ""
        log.info("ended%s", how)
        for number in (signal.SIGTERM, signal.SIGINT):  # while Python ends, one would replace the exit status
            signal.signal(number, signal.SIG_IGN)
        return self._status

    def _wait_for_end(self) -> None:
        """Call each component's `check`, and tell systemd's watchdog, when it is time for it."""
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
        except Exception as error:  # the components still have to be stopped
            log.exception("internal error in the main thread")
            self.fail(error)

    def _stop(self, part: LifecycleComponent, limit_s: float) -> None:
        try:
            undone = part.stop(limit_s)
        except Exception as error:  # the parts below it still have to be stopped
            log.exception("%s: a fault while it was stopped", part.name)
            self.fail(error)
            return
        if undone:
            log.warning("%s: %s", part.name, undone)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.end(f"told to by {signal.Signals(number).name}")

    def _on_lost_thread(self, lost: threading.ExceptHookArgs) -> None:
        """Log the internal error that ended a thread, and stop, so that the supervisor restarts the program."""
        name = lost.thread.name if lost.thread else "a thread"
        exception = (lost.exc_type, lost.exc_value or lost.exc_type(), lost.exc_traceback)
        try:
            log.critical("%s died", name, exc_info=exception)
        finally:
            self.fail(exception[1])


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)) where it wants to be told."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
            except OSError as error:
                log.warning("systemd could not be told %s: %s", state, error)


def extend_start(seconds: float) -> None:
    """Have systemd wait `seconds` more for the program to be ready (EXTEND_TIMEOUT_USEC in sd_notify(3))."""
    _notify(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")


def _watchdog_s() -> float | None:
    """Half of the interval in which systemd wants to hear of us (sd_watchdog_enabled(3)); None: it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() else None
