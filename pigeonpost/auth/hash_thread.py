"""The thread that hashes passwords.

scrypt (RFC 7914) takes 16 MiB, and the C library keeps what a thread has freed for that thread's next call: with a hash
in each login's own thread, ten logins at once left 144 MiB in use for good (measured). So one thread does all of them.

May be used by any thread; `_changed` (a Condition and its lock) guards the queue, and is never held while hashing.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque

from pigeonpost.http.message import HTTPError

MOST_WAITING = 8  # each takes 47 ms on a PC, 300 ms on a Pi; requests that wait hold places that others need

ANSWER_S = 30.0  # for one hash, with those before it

IDLE_S = 5.0  # after which the thread ends; the next hash starts it again

MOST_BYTES = 64 << 20  # of memory that a hash may take: its parameters are read from a file


class _Job:
    """One password to hash; `done` is set when there is a result or an error."""

    def __init__(self, password: bytes, salt: bytes, n: int, r: int, p: int) -> None:
        self.arguments = password, salt, n, r, p
        self.done = threading.Event()
        self.result = b""
        self.error: Exception | None = None

    def run(self) -> None:
        password, salt, n, r, p = self.arguments
        try:
            self.result = hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=MOST_BYTES)
        except Exception as error:  # raised in the thread that waits for it
            self.error = error
        self.done.set()


class HashThread:
    """Hashes passwords, one after the other, in a thread that runs while there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._thread: threading.Thread | None = None

    def refuse_if_full(self) -> None:
        """Raise HTTPError 503 if so many passwords wait to be hashed that another one would not be taken."""
        if len(self._jobs) >= MOST_WAITING:
            raise HTTPError(503, "Too many logins at once. Try again in a moment.", "busy", {"Retry-After": "2"})

    def scrypt(self, password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
        """Return the 64 bytes of the hash. Raises HTTPError 503 if too many wait, or when it takes too long."""
        job = _Job(password, salt, n, r, p)
        with self._changed:
            self.refuse_if_full()
            if self._thread is None or not self._thread.is_alive():  # after a fork it is not
                thread = threading.Thread(target=self._run, name="passwords", daemon=True)
                thread.start()
                self._thread = thread
            self._jobs.append(job)
            self._changed.notify_all()
        if not job.done.wait(ANSWER_S):
            raise HTTPError(503, "The password could not be checked in time. Try again.", "busy", {"Retry-After": "10"})
        if job.error is not None:
            raise job.error
        return job.result

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._jobs, IDLE_S):
                    self._thread = None
                    return
                job = self._jobs.popleft()
            job.run()
