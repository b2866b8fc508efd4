"""Thread that hashes passwords.

scrypt (RFC 7914) needs 16 MiB, and the C library keeps the memory that a thread has freed for that thread's next call.
When each login calculated its hash in its own thread, 10 simultaneous logins left 144 MiB in use permanently
(measured). Therefore one thread calculates all hashes.

All functions may be called from any thread. `_changed` (a Condition and its lock) guards the queue and is never held
while hashing.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque

from pigeonpost.http.message import HTTPError

# Maximum number of waiting passwords. A hash takes 47 ms on a PC and 300 ms on a Pi, and each waiting request occupies
# a slot of the web server.
MOST_WAITING = 8

ANSWER_S = 30.0  # timeout for one hash, including its time in the queue

IDLE_S = 5.0  # idle time after which the thread ends; the next hash starts it again

MOST_BYTES = 64 << 20  # memory limit of one hash; its parameters are read from a file, which may be damaged


class _Job:
    """A password to hash. `done` is set when there is a result or an error."""

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
    """Queue of passwords, and the thread that hashes them one after the other. It ends when it has been idle."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._thread: threading.Thread | None = None

    def refuse_if_full(self) -> None:
        """Raise HTTPError 503 if the queue is full and cannot accept another password."""
        if len(self._jobs) >= MOST_WAITING:
            raise HTTPError(
                503, "Too many logins at the same time. Try again in a moment.", "busy", {"Retry-After": "2"}
            )

    def scrypt(self, password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
        """Return the scrypt hash of a password: 64 bytes.

        Args:
            password: The password, encoded.
            salt: The salt.
            n: CPU and memory cost of scrypt, a power of 2.
            r: Block size of scrypt.
            p: Parallelization of scrypt.

        Raises:
            HTTPError: 503: too many passwords are waiting, or the hash takes longer than ANSWER_S.
        """
        job = _Job(password, salt, n, r, p)
        with self._changed:
            self.refuse_if_full()
            if self._thread is None or not self._thread.is_alive():  # it is not alive after a fork
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
