"""What the tests of the page and of the programs share: time zones, folders in memory, servers as processes."""

import contextlib
import functools
import http.client
import io
import os
import subprocess
import sys
import tempfile
import time
import types
import unittest
import warnings
from collections.abc import Mapping
from typing import Any
from unittest import mock

import control as control_program
from pigeonpost.core.clock import Clock
from pigeonpost.storage.csv import format
from tests.forked import Forked
from tests.support import LIMIT_S, ROOT, WALL_MS, Program, clean_environment, memory_disk, temp_folder


def set_zone(test: unittest.TestCase, zone: str) -> None:
    """Local time is that of `zone` for the rest of this test."""

    before = os.environ.get("TZ")

    def put_back():
        os.environ.pop("TZ", None)
        if before is not None:
            os.environ["TZ"] = before
        take_over()

    def take_over():
        time.tzset()
        format._minutes.clear()  # of the log, which remembers the zone's offset of a minute

    test.addCleanup(put_back)
    os.environ["TZ"] = zone
    take_over()


class Afternoon(Clock):
    """A clock that goes, and by which it is 15:36 on 20 November 2026: for pages that show today's times."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead_ms = WALL_MS - super().wall_ms()

    def wall_ms(self) -> int:
        return super().wall_ms() + self._ahead_ms


def use_memory_disk() -> None:
    """Temporary folders of this module lie in memory, where there is such a place: for tests in which no power is cut.

    Called in setUpModule. On a busy disk each database that is made and removed takes a quarter of a second.
    """
    parent = memory_disk()
    if parent:
        unittest.addModuleCleanup(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = parent


def for_class(case: type[unittest.TestCase]) -> Any:
    """Returns an object to pass as `test`, so that cleanups run after the last test of the class.

    For setUpClass: `cls.node = Node(for_class(cls))`.
    """
    return types.SimpleNamespace(addCleanup=case.addClassCleanup)


class Server(Forked):
    """`server.py` as a process, its page on a free port unless it is told another.

    data  the folder of its data       page  where its page is, (host, port); waits until it says so
    path  that it printed with it: `/?key=...`, without a password
    """

    def __init__(self, test: unittest.TestCase, *arguments: str, data: str | None = None, **more: Any) -> None:
        """more: as of Forked: constants, and the environment"""
        self.data = data or temp_folder(test)
        web = () if "--web" in arguments else ("--web", "127.0.0.1:0")
        fast = {"PIGEONPOST_STORE_COMMIT": "0.05", **more}
        super().__init__(test, "server.py", "--data", self.data, *web, *arguments, **fast)
        self._page: tuple[str, int] | None = None

    @property
    def page(self) -> tuple[str, int]:
        if self._page is None:
            place, _, path = self.line().removeprefix("the page is at http://").partition("/")
            self.path = f"/{path}"
            host, _, port = place.rpartition(":")
            self._page = host, int(port)
        return self._page

    def sign_in(self) -> str:
        """Open the address that it printed, with its key; the cookie of the browser that may press the buttons."""
        link = http.client.HTTPConnection(*self.page, timeout=LIMIT_S)
        try:
            link.request("GET", self.path)
            answer = link.getresponse()
            answer.read()
            return str(answer.headers["Set-Cookie"]).partition(";")[0]
        finally:
            link.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Status and text of a page."""
        link = http.client.HTTPConnection(*self.page, timeout=LIMIT_S)
        try:
            link.request("GET", path, headers=dict(headers or {}))
            answer = link.getresponse()
            return answer.status, answer.read().decode()
        finally:
            link.close()


class Node(Forked):
    """`node.py` with a simulated chip as a process, sampling twenty times a second."""

    def __init__(self, test: unittest.TestCase, *arguments: str, name: str = "basement", **more: Any) -> None:
        """more: as of Forked: constants, and the environment"""
        self.name = name
        super().__init__(
            test, "node.py", "--simulate", "--name", name, "--every", "0.05", "--listen", "127.0.0.1:0",
            "--data", temp_folder(test), *arguments, **more,
        )  # fmt: skip
        self.place = "{}:{}".format(*self.address())

    @property
    def at(self) -> str:
        """What `server.py --node` takes."""
        return f"{self.name}@{self.place}"


class InterpreterStart:
    """Mixin for Forked: starts the program with a new interpreter, as users do."""

    _more: Mapping[str, Any]

    def _start(self, arguments: list[str], folder: str, environment: dict[str, str]) -> Any:
        if any(self._more.values()):
            raise ValueError("constants and namespace need a forked program")
        return Program._start(self, arguments, folder, environment)  # type: ignore[arg-type]


class StartedServer(InterpreterStart, Server):
    """A Server that an interpreter of its own runs."""


class StartedNode(InterpreterStart, Node):
    """A Node that an interpreter of its own runs."""


def main_here(program: types.ModuleType, *arguments: str, said: str = "", **environment: str) -> tuple[int, str, str]:
    """Run a program's `main` in this process, for tests of what it does and not of how it is started.

    program  `control`, `node` or `server`; it does not configure logging
    said     standard input
    Returns exit status, standard output and standard error.
    """
    out, told, interval_s, mask = io.StringIO(), io.StringIO(), sys.getswitchinterval(), os.umask(0o022)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(told),
        mock.patch("sys.stdin", io.StringIO(said)),
        mock.patch.object(program, "start_logging", create=True),
        mock.patch.dict(os.environ, clean_environment(**environment), clear=True),
        # What is installed on this machine has no part in a test.
        mock.patch("pigeonpost.core.config.SYSTEM_FOLDER", "/nonexistent"),
        mock.patch.object(program, "SERVICE_DATA", "/nonexistent", create=True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ResourceWarning)  # a store that failed to open leaves files unclosed
        try:
            status = program.main(list(arguments))
        except SystemExit as end:
            status = end.code
        finally:
            sys.setswitchinterval(interval_s)
            os.umask(mask)
    return status, out.getvalue(), told.getvalue()


_parser = functools.cache(control_program.make_parser)  # making it takes 9 ms, more than most commands


def control_here(*arguments: str, said: str = "", **environment: str) -> tuple[int, str, str]:
    """As `control`, but in this process; with the commands that there are when it is first called."""
    with mock.patch.object(control_program, "make_parser", _parser):
        return main_here(control_program, *arguments, said=said, **environment)


def control(test: unittest.TestCase, *arguments: str, said: str = "", **environment: str) -> tuple[int, str, str]:
    """Run `control.py` to its end, `said` on its standard input: exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "control.py"), *arguments],
        input=said, capture_output=True, text=True, encoding="utf-8", timeout=3 * LIMIT_S, cwd=temp_folder(test),
        env=clean_environment(**environment),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr
