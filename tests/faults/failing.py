"""Runs node.py or server.py with one failing call: `failing.py KIND K node.py ARGUMENTS`.

KIND  thread   the K-th start of a thread, as when the system has no more: RuntimeError
      call     the K-th call of a function of the program, as when there is no memory for its frame: MemoryError
      sqlite   the K-th statement, json the K-th decoding, put the K-th sample, receive the K-th block: MemoryError
K     1: the first; `call` counts only calls after the program is ready

After the failure the line `failed: WHERE` is written to standard error. Pauses are as in impatient.py.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MARK = "failed: "


class Failing:
    """Makes the K-th call of the wrapped functions fail."""

    def __init__(self, error: Exception, at: int) -> None:
        self._error, self._at = error, at
        self._count = itertools.count(1)  # a single C call: exact without a lock

    def step(self, where: str) -> None:
        """Count a call. Raises the error in the K-th one."""
        if next(self._count) == self._at:
            os.write(2, f"{MARK}{where}\n".encode())
            raise self._error

    def wrap(self, owner: Any, name: str) -> None:
        """Make calls of a function or method count."""
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.step(name)
            return real(*arguments, **options)

        setattr(owner, name, call)


def fail_at(kind: str, failing: Failing, is_ready: Callable[[], bool]) -> None:
    """Wrap the functions of a kind."""
    if kind == "thread":
        failing.wrap(threading.Thread, "start")
    elif kind == "call":
        ours = (os.path.join(ROOT, "pigeonpost"), *(os.path.join(ROOT, name) for name in os.listdir(ROOT)))
        seen: dict[str, bool] = {}

        def profile(frame: FrameType, event: str, argument: object) -> None:
            if event == "call":
                name = frame.f_code.co_filename
                if name not in seen:
                    seen[name] = name.startswith(ours)
                if seen[name] and is_ready():
                    failing.step(f"{os.path.basename(name)} {frame.f_code.co_qualname}")

        threading.setprofile(profile)
        sys.setprofile(profile)
    elif kind == "sqlite":

        class Connection(sqlite3.Connection):
            def execute(self, *arguments: Any) -> Any:
                failing.step("execute")
                return super().execute(*arguments)

            def executemany(self, *arguments: Any) -> Any:
                failing.step("executemany")
                return super().executemany(*arguments)

        connect = sqlite3.connect
        sqlite3.connect = lambda *arguments, **options: connect(*arguments, **{**options, "factory": Connection})  # type: ignore[assignment,misc]
    elif kind == "json":
        from pigeonpost.core import strict_json

        failing.wrap(strict_json, "read_json_with")
    elif kind == "put":
        from pigeonpost.node.outbox import Outbox

        failing.wrap(Outbox, "put")
    else:
        from pigeonpost.transports.tcp_connection import LineSocket

        failing.wrap(LineSocket, "receive")


def main(kind: str, at: int, *program: str) -> int:
    """Run the program and return its exit status."""
    sys.path[0] = HERE
    import impatient

    sys.path[0] = ROOT
    from pigeonpost.core.lifecycle import Lifecycle

    ready = False
    run = Lifecycle.run

    def run_until_ready(lifecycle: Lifecycle, say_ready: Callable[[], object]) -> int:
        def say() -> None:
            nonlocal ready
            say_ready()
            ready = True

        return run(lifecycle, say)

    Lifecycle.run = run_until_ready  # type: ignore[method-assign]
    error = RuntimeError("can't start new thread") if kind == "thread" else MemoryError()
    fail_at(kind, Failing(error, at), lambda: ready)
    return impatient.main(program[0], list(program[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
