"""Helpers for the tests of the web interface and the programs: time zones, temporary folders, servers as processes."""

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
    """Set the local time zone to `zone` for the rest of `test`."""

    before = os.environ.get("TZ")

    def restore():
        os.environ.pop("TZ", None)
        if before is not None:
            os.environ["TZ"] = before
        apply()

    def apply():
        time.tzset()
        format._minutes.clear()  # cache of the CSV log: UTC offset by minute

    test.addCleanup(restore)
    os.environ["TZ"] = zone
    apply()


class Afternoon(Clock):
    """A running clock that starts at 15:36 UTC on 20 November 2026, for pages that show times of the present day."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead_ms = WALL_MS - super().wall_ms()

    def wall_ms(self) -> int:
        return super().wall_ms() + self._ahead_ms


def use_memory_disk() -> None:
    """Put temporary folders of the calling test module into memory, if there is a file system in memory.

    Call it in setUpModule of tests in which no power is cut. On a busy disk, each database that is created and deleted
    takes a quarter of a second.
    """
    parent = memory_disk()
    if parent:
        unittest.addModuleCleanup(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = parent


def for_class(case: type[unittest.TestCase]) -> Any:
    """Return an object to pass as `test`, so that cleanups run after the last test of the class `case`.

    For setUpClass: `cls.node = Node(for_class(cls))`.
    """
    return types.SimpleNamespace(addCleanup=case.addClassCleanup)


class Server(Forked):
    """`server.py` as a process, with the web interface on a free port unless `arguments` contain `--web`.

    Attributes:
        data: Data folder.
        page: Address of the web interface, (host, port). The first access waits until the server prints it.
        path: Path of the printed address; `/?key=...` without a password. It is set by the first access to `page`.
    """

    def __init__(self, test: unittest.TestCase, *arguments: str, data: str | None = None, **more: Any) -> None:
        """Start the server.

        Args:
            test: The test that stops the server at its end.
            *arguments: Command-line arguments.
            data: Data folder; None for a temporary one.
            **more: Constants and environment variables, as for Forked.
        """
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
        """Open the printed address with its key, and return the session cookie of a browser with the role operator."""
        link = http.client.HTTPConnection(*self.page, timeout=LIMIT_S)
        try:
            link.request("GET", self.path)
            answer = link.getresponse()
            answer.read()
            return str(answer.headers["Set-Cookie"]).partition(";")[0]
        finally:
            link.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Return status and text of the page at `path`, requested with `headers`."""
        link = http.client.HTTPConnection(*self.page, timeout=LIMIT_S)
        try:
            link.request("GET", path, headers=dict(headers or {}))
            answer = link.getresponse()
            return answer.status, answer.read().decode()
        finally:
            link.close()


class Node(Forked):
    """`node.py` with a simulated chip as a process, sampling 20 times per second."""

    def __init__(self, test: unittest.TestCase, *arguments: str, name: str = "basement", **more: Any) -> None:
        """Start the node.

        Args:
            test: The test that stops the node at its end.
            *arguments: Further command-line arguments.
            name: Name of the node.
            **more: Constants and environment variables, as for Forked.
        """
        self.name = name
        super().__init__(
            test, "node.py", "--simulate", "--name", name, "--every", "0.05", "--listen", "127.0.0.1:0",
            "--data", temp_folder(test), *arguments, **more,
        )  # fmt: skip
        self.place = "{}:{}".format(*self.address())

    @property
    def at(self) -> str:
        """Argument for `server.py --node`: NAME@HOST:PORT."""
        return f"{self.name}@{self.place}"


class InterpreterStart:
    """Mixin for Forked: starts the program with a new interpreter, as users do."""

    _more: Mapping[str, Any]

    def _start(self, arguments: list[str], folder: str, environment: dict[str, str]) -> Any:
        if any(self._more.values()):
            raise ValueError("constants and namespace need a forked program")
        return Program._start(self, arguments, folder, environment)  # type: ignore[arg-type]


class StartedServer(InterpreterStart, Server):
    """A Server in a separate interpreter."""


class StartedNode(InterpreterStart, Node):
    """A Node in a separate interpreter."""


def main_here(program: types.ModuleType, *arguments: str, said: str = "", **environment: str) -> tuple[int, str, str]:
    """Run the `main` function of a program in this process, for tests that do not depend on how it is started.

    Args:
        program: Module `control`, `node` or `server`. It does not configure logging.
        *arguments: Command-line arguments.
        said: Standard input.
        **environment: Additional environment variables.

    Returns:
        Exit status, standard output and standard error.
    """
    out, told, interval_s, mask = io.StringIO(), io.StringIO(), sys.getswitchinterval(), os.umask(0o022)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(told),
        mock.patch("sys.stdin", io.StringIO(said)),
        mock.patch.object(program, "start_logging", create=True),
        mock.patch.dict(os.environ, clean_environment(**environment), clear=True),
        # A test must not depend on what is installed on this machine.
        mock.patch("pigeonpost.core.config.SYSTEM_FOLDER", "/nonexistent"),
        mock.patch.object(program, "SERVICE_DATA", "/nonexistent", create=True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ResourceWarning)  # a store that cannot be opened leaves files open
        try:
            status = program.main(list(arguments))
        except SystemExit as end:
            status = end.code
        finally:
            sys.setswitchinterval(interval_s)
            os.umask(mask)
    return status, out.getvalue(), told.getvalue()


_parser = functools.cache(control_program.make_parser)  # creating it takes 9 ms, longer than most commands


def control_here(*arguments: str, said: str = "", **environment: str) -> tuple[int, str, str]:
    """Run `control.py` in this process; otherwise like `control`.

    The parser is created on the first call and contains the commands of that time.

    Args:
        *arguments: Command-line arguments.
        said: Standard input.
        **environment: Additional environment variables.

    Returns:
        Exit status, standard output and standard error.
    """
    with mock.patch.object(control_program, "make_parser", _parser):
        return main_here(control_program, *arguments, said=said, **environment)


def control(test: unittest.TestCase, *arguments: str, said: str = "", **environment: str) -> tuple[int, str, str]:
    """Run `control.py` in a process.

    Args:
        test: The test for which a temporary working folder is created.
        *arguments: Command-line arguments.
        said: Standard input.
        **environment: Additional environment variables.

    Returns:
        Exit status, standard output and standard error.
    """
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "control.py"), *arguments],
        input=said, capture_output=True, text=True, encoding="utf-8", timeout=3 * LIMIT_S, cwd=temp_folder(test),
        env=clean_environment(**environment),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr
