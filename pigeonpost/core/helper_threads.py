"""A small pool of threads for blocking calls of a thread that must not block. The threads end when no calls are left.

`_lock` guards the waiting calls and the number of threads. It is held for one change.
Errors: an exception of a call is raised again when the outcome of the call is read. An exception of the callback
`answer` is logged.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class HelperThreads:
    """Pool that runs calls in their order.

    Args:
        name: Name of the threads.
        most: Maximum number of threads.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._threads = 0

    def run(self, call: Callable[[], T], answer: Callable[[Callable[[], T]], Any]) -> None:
        """Run a call in one of the threads.

        Args:
            call: Function to run, which may block.
            answer: Called in that thread with the outcome, and must not block. The outcome is a function that returns
                the result of `call`, or raises its exception.

        Raises:
            RuntimeError: There is no thread, and none can be started.
            MemoryError: There is no thread, and the memory is not sufficient to start one.
        """

        def job() -> None:
            try:
                found = call()
            except Exception as error:
                answer(_raising(error))
            else:
                answer(lambda: found)

        with self._lock:
            self._waiting.append(job)
            if self._threads == self._most:
                return
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except BaseException:
                if not self._threads:  # otherwise one of the running threads will run the call
                    self._waiting.remove(job)
                    raise
            else:
                self._threads += 1

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                job = self._waiting.popleft()
            try:
                job()
            # `answer` failed, for example for lack of memory: the thread must continue with the other calls.
            except Exception:
                with contextlib.suppress(MemoryError):
                    log.exception("%s: internal error", self._name)


def _raising(error: Exception) -> Callable[[], Any]:
    def outcome() -> Any:
        raise error

    return outcome
