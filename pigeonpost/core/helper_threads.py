"""A few threads for calls that may have to wait, on behalf of a thread that must not; they live as long as there are
calls to make.

`_lock` guards the calls that wait and the count of threads, and is held for one change.
Errors: what a call raises is raised again where its answer is looked at; what `answer` raises is logged.
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
    """Makes calls, the oldest first, `most` of them at the same time."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._threads = 0

    def run(self, call: Callable[[], T], answer: Callable[[Callable[[], T]], Any]) -> None:
        """Make `call` in one of the threads, and there call `answer`, which returns at once, with its outcome: a
        function that returns what it has returned, or raises what it has raised.

        Raises RuntimeError or MemoryError when there is no thread, and none can be started.
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
                if not self._threads:  # else one of those that run will take it
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
            except Exception:  # of `answer`, for want of memory: the thread is needed for the others
                with contextlib.suppress(MemoryError):
                    log.exception("%s: internal error", self._name)


def _raising(error: Exception) -> Callable[[], Any]:
    def outcome() -> Any:
        raise error

    return outcome
