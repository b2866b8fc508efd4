"""Pipe by which any thread, or a signal handler, wakes a thread that waits for sockets.

`_lock` guards the file descriptors against being closed, and their numbers reused, while another thread writes; it is
held for one write, which never blocks. It is reentrant: a signal handler may interrupt the thread that holds it.
"""

from __future__ import annotations

import os
import threading

_READ_BYTES = 4096


class WakePipe:
    """Give it to select.poll or selectors like a socket; call `drain` when it is readable."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._reader = self._writer = -1  # for `__del__`, should there be no pipe
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """Return the descriptor to wait for; -1 when closed."""
        return self._reader

    def writer_fileno(self) -> int:
        """Return the descriptor to write to, for signal.set_wakeup_fd; -1 when closed."""
        return self._writer

    def wake(self) -> None:
        """Make the pipe readable; from any thread, at any time. Does nothing when it is closed."""
        with self._lock:
            if self._writer >= 0:
                try:
                    os.write(self._writer, b"\0")
                except BlockingIOError:
                    pass  # full: it is readable already

    def drain(self) -> None:
        """Make the pipe unreadable again, unless it was woken very often. Only by the thread that waits."""
        try:
            os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            pass  # nobody has woken it

    def close(self) -> None:
        """Close both ends; closing twice is fine. Not while a thread waits for it."""
        with self._lock:
            reader, writer = self._reader, self._writer
            self._reader = self._writer = -1
            if reader >= 0:
                os.close(reader)
                os.close(writer)

    def __del__(self) -> None:
        self.close()
