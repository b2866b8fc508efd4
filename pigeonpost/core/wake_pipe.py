"""Pipe with which any thread, or a signal handler, wakes a thread that waits for sockets.

`_lock` prevents a file descriptor from being closed, and its number from being reused, while another thread writes to
it. It is held for one write, which never blocks. It is reentrant, because a signal handler may interrupt the thread
that holds it.
"""

from __future__ import annotations

import os
import threading

_READ_BYTES = 4096


class WakePipe:
    """A pipe that can be passed to select.poll or selectors like a socket. Call `drain` when it is readable."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._reader = self._writer = -1  # for `__del__`, if os.pipe fails
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """Return the file descriptor to wait for, or -1 if the pipe is closed."""
        return self._reader

    def writer_fileno(self) -> int:
        """Return the file descriptor to write to, for signal.set_wakeup_fd, or -1 if the pipe is closed."""
        return self._writer

    def wake(self) -> None:
        """Make the pipe readable. Any thread may call this at any time. Does nothing if the pipe is closed."""
        with self._lock:
            if self._writer >= 0:
                try:
                    os.write(self._writer, b"\0")
                except BlockingIOError:
                    pass  # the pipe is full, so it is readable already

    def drain(self) -> None:
        """Empty the pipe. Only the waiting thread may call this.

        If `wake` was called more than 4,096 times, the pipe is not empty yet, and wakes the thread again.
        """
        try:
            os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            pass  # it was not woken

    def close(self) -> None:
        """Close both ends. A second call does nothing. Must not be called while a thread waits for the pipe."""
        with self._lock:
            reader, writer = self._reader, self._writer
            self._reader = self._writer = -1
            if reader >= 0:
                os.close(reader)
                os.close(writer)

    def __del__(self) -> None:
        self.close()
