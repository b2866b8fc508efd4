"""Programs of ours that start in milliseconds: forked from a process that has loaded them, not by a new interpreter.

    running = Forked(self, "control.py", "say", "halt", "C4")

A Forked is a Program in everything but its start and its end: a process of its own with its own arguments,
environment, folder and pipes, which runs the file as `__main__`. Loading the modules takes 0.2 s of processor time and
is done once, by the parent of all of them, which is started when it is first needed and ends with the tests.

Whatever depends on the start of an interpreter (which modules are loaded, memory, `python3 -X`), or on its end (a
standard output that is closed by then), needs a Program.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import unittest
from collections.abc import Mapping
from typing import Any, NoReturn

from tests.support import LIMIT_S, ROOT, Program, clean_environment

_PROGRAMS = ("control.py", "server.py", "node.py")
_IMPATIENT = "tests/faults/impatient.py"  # which runs one of them
_REQUEST_BYTES = 1 << 18
_CLONE_NEWNET = 0x40000000  # linux/sched.h


class Forked(Program):
    """`control.py`, `server.py` or `node.py` as a process, started quickly.

    namespace  network namespace in which it runs, by its name in `ip netns`; empty: that of the tests
    constants  module and name to value: {"links.tcp.RETRY_S": 0.1}; intervals that a test waits for, but does not test
    """

    def __init__(
        self, test: unittest.TestCase, *arguments: str, folder: str | None = None, namespace: str = "",
        constants: Mapping[str, object] | None = None, **environment: str,
    ) -> None:  # fmt: skip
        self._more = {"namespace": namespace, "constants": dict(constants or {})}
        super().__init__(test, *arguments, folder=folder, **environment)

    def _start(self, arguments: list[str], folder: str, environment: dict[str, str]) -> Any:
        return _Process({"arguments": arguments, "folder": folder, "environment": environment, **self._more})


class _Process:
    """A forked program, with what is used of subprocess.Popen."""

    def __init__(self, request: dict[str, Any]) -> None:
        pipes = [os.pipe() for _ in range(2)]  # standard output, standard error
        try:
            self._fork(request, [write for _, write in pipes])
        finally:
            for _, write in pipes:
                os.close(write)
        self.stdout, self.stderr = (os.fdopen(read, encoding="utf-8") for read, _ in pipes)

    def _fork(self, request: dict[str, Any], outputs: list[int]) -> None:
        self.args = request["arguments"]
        self.returncode: int | None = None
        self._status, write = os.pipe()
        try:
            self.pid, self._pidfd = _parent().fork(request, [*outputs, write])
        finally:
            os.close(write)

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended; -N where signal N ended it."""
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if not poll.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            said = os.read(self._status, 20)
            os.close(self._status)
            os.close(self._pidfd)
            if not said:
                raise RuntimeError(f"{self.args}: the process that forked it is gone")
            self.returncode = int(said)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """kill -9; also when the process that forked it is gone, and cannot tell how it ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class LoggedProcess(_Process):
    """A forked program that writes both of its outputs to a file."""

    def __init__(self, arguments: list[str], folder: str, environment: dict[str, str], log: int) -> None:
        """
        arguments  the program's path, or that of impatient.py, and what it is given
        folder     where it runs
        log        descriptor of the file
        """
        request = {"arguments": arguments, "folder": folder, "environment": environment}
        self._fork({**request, "namespace": "", "constants": {}}, [log, log])


class _Parent:
    """The process from which the programs are forked, seen from the tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the socket: one request and its answer at a time
        self._sock, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._sock, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _REQUEST_BYTES)
        code = f"import sys; sys.path[0] = {ROOT!r}; from tests.forked import serve; serve({far.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), pass_fds=[far.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        far.close()
        atexit.register(self.end)

    def fork(self, request: dict[str, Any], files: list[int]) -> tuple[int, int]:
        """Start a program; its process id, and a descriptor of the process."""
        with self._lock:
            socket.send_fds(self._sock, [json.dumps(request).encode()], files)
            answer, (pidfd,), _, _ = socket.recv_fds(self._sock, 100, 1)
        return int(answer), pidfd

    def end(self) -> None:
        """End it; the programs that run go on."""
        self._sock.close()
        self._process.wait(LIMIT_S)


_parents: list[_Parent] = []
_starting = threading.Lock()  # held while the parent is made: there is one


def _parent() -> _Parent:
    with _starting:
        if not _parents:
            _parents.append(_Parent())
        return _parents[0]


# ---------------------------------------------------------------------------- the process from which they are forked


def serve(fd: int) -> None:
    """Load the programs, and fork one for each request, until the tests close the socket. In a child it never returns.

    One thread only, since the child has no other: what another thread held at the fork would stay held.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which close the socket
    codes = {}
    for program in _PROGRAMS:
        importlib.import_module(program.removesuffix(".py"))
    for program in (*_PROGRAMS, _IMPATIENT):
        path = os.path.join(ROOT, program)
        with open(path, "rb") as file:
            codes[path] = compile(file.read(), path, "exec")
    gc.collect()
    gc.freeze()
    running: dict[int, tuple[int, int]] = {}  # by a descriptor of the process: its id, and where to write its status
    with socket.socket(fileno=fd) as sock:
        sock.set_inheritable(False)
        while True:
            ends: list[Any] = [sock, *running]
            for ready in select.select(ends, [], [])[0]:
                if isinstance(ready, int):
                    pid, status = running.pop(ready)
                    os.close(ready)
                    with contextlib.suppress(BrokenPipeError):  # who asked is gone
                        os.write(status, str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
                    os.close(status)
                    continue
                data, files, _, _ = socket.recv_fds(sock, _REQUEST_BYTES, 3)
                if not data:
                    return
                pid = os.fork()
                if pid == 0:
                    sock.close()
                    for pidfd, (_, status) in running.items():
                        os.close(pidfd)
                        os.close(status)
                    request = json.loads(data)
                    _become(request, files)
                    _run(codes[request["arguments"][0]])
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, files.pop()
                for pipe in files:
                    os.close(pipe)
                socket.send_fds(sock, [str(pid).encode()], [pidfd])


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Turn this child into the process that was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(files[0], 1)
    os.dup2(files[1], 2)
    for pipe in files:
        os.close(pipe)
    if request["namespace"]:
        with open(f"/run/netns/{request['namespace']}", "rb") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), _CLONE_NEWNET):  # os.setns is there from Python 3.12 on
                raise OSError(ctypes.get_errno(), "setns")
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.argv = request["arguments"]
    # What is installed on this machine has no part in a test.
    importlib.import_module("pigeonpost.core.config").SYSTEM_FOLDER = "/nonexistent"
    for name, value in request["constants"].items():
        module, _, constant = name.rpartition(".")
        getattr(importlib.import_module(module), constant)  # it has to be there
        setattr(importlib.import_module(module), constant, value)


def _run(code: types.CodeType) -> NoReturn:
    """Run a program as Python runs a file; then end as Python ends, but without taking the modules apart (15 ms)."""
    main = types.ModuleType("__main__")
    main.__file__ = code.co_filename
    sys.modules["__main__"] = main
    status: object = 0
    try:
        exec(code, main.__dict__)
    except SystemExit as ending:
        status = ending.code or 0
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
