"""Pigeonpost programs that start in milliseconds: forked from a process that has loaded their modules.

    running = Forked(self, "control.py", "say", "halt", "C4")

A Forked behaves as a Program except for its start and its end. It is a process with its own arguments, environment,
folder and pipes, which runs the file as `__main__`. Loading the modules takes 0.2 s of processor time; the common
parent process does it once. The parent is started at first use and ends with the tests.

A test of the start of an interpreter (which modules are loaded, memory, `python3 -X`) or of its end (a standard output
that is already closed) needs a Program.
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
_IMPATIENT = "tests/faults/impatient.py"  # runs one of them
_REQUEST_BYTES = 1 << 18
_CLONE_NEWNET = 0x40000000  # linux/sched.h


class Forked(Program):
    """`control.py`, `server.py` or `node.py` as a process, started quickly.

    Args:
        namespace: Name of the network namespace in which it runs (`ip netns`); empty for that of the tests.
        constants: Constants to replace, such as {"links.tcp.RETRY_S": 0.1}: intervals that a test waits for, but does
            not test.
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
    """A forked program, with the part of subprocess.Popen's interface that tests use."""

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
        """Return the exit status, or None while the program runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once the program has ended; -N if signal N ended it."""
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
        """Kill the program (kill -9), also if its parent has ended and cannot report the exit status."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class LoggedProcess(_Process):
    """A forked program that writes both of its outputs to a file."""

    def __init__(self, arguments: list[str], folder: str, environment: dict[str, str], log: int) -> None:
        """Start the program.

        Args:
            arguments: Path of the program, or of impatient.py, and its arguments.
            folder: Working folder.
            environment: Environment variables.
            log: Descriptor of the file.
        """
        request = {"arguments": arguments, "folder": folder, "environment": environment}
        self._fork({**request, "namespace": "", "constants": {}}, [log, log])


class _Parent:
    """The parent process of the programs, as seen by the tests."""

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
        """Start a program. Returns its process id and a descriptor of the process."""
        with self._lock:
            socket.send_fds(self._sock, [json.dumps(request).encode()], files)
            answer, (pidfd,), _, _ = socket.recv_fds(self._sock, 100, 1)
        return int(answer), pidfd

    def end(self) -> None:
        """End the parent; running programs continue."""
        self._sock.close()
        self._process.wait(LIMIT_S)


_parents: list[_Parent] = []
_starting = threading.Lock()  # held while the parent process is started


def _parent() -> _Parent:
    with _starting:
        if not _parents:
            _parents.append(_Parent())
        return _parents[0]


# ---------------------------------------------------------------------------- the process from which they are forked


def serve(fd: int) -> None:
    """Load the programs, and fork one for each request until the tests close the socket. It never returns in a child.

    It uses only one thread: a lock held by another thread at a fork would stay locked in the child.
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
                    with contextlib.suppress(BrokenPipeError):  # the client has closed the pipe
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
    """Turn this child into the requested process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(files[0], 1)
    os.dup2(files[1], 2)
    for pipe in files:
        os.close(pipe)
    if request["namespace"]:
        with open(f"/run/netns/{request['namespace']}", "rb") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), _CLONE_NEWNET):  # os.setns exists since Python 3.12
                raise OSError(ctypes.get_errno(), "setns")
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.argv = request["arguments"]
    # Packages installed on this machine must not affect a test.
    importlib.import_module("pigeonpost.core.config").SYSTEM_FOLDER = "/nonexistent"
    for name, value in request["constants"].items():
        module, _, constant = name.rpartition(".")
        getattr(importlib.import_module(module), constant)  # it must exist
        setattr(importlib.import_module(module), constant, value)


def _run(code: types.CodeType) -> NoReturn:
    """Run a program as Python runs a file, then exit like Python, but without finalising the modules (15 ms)."""
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
