"""What the tests of the page and of the programs share: time zones, folders in memory, servers as processes."""

import http.client
import os
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Mapping

from base.clock import Clock
from tests.support import LIMIT_S, ROOT, WALL_MS, Program, clean_environment, temp_folder


def set_zone(test: unittest.TestCase, zone: str) -> None:
    """Local time is that of `zone` for the rest of this test."""

    before = os.environ.get("TZ")

    def put_back():
        os.environ.pop("TZ", None)
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()

    test.addCleanup(put_back)
    os.environ["TZ"] = zone
    time.tzset()


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
    if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK):
        unittest.addModuleCleanup(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = "/dev/shm"


class Server(Program):
    """`server.py` as a process, its page on a free port unless it is told another.

    data  the folder of its data       page  where its page is, (host, port); waits until it says so
    """

    def __init__(self, test: unittest.TestCase, *arguments: str, data: str | None = None, **environment: str) -> None:
        self.data = data or temp_folder(test)
        web = () if "--web" in arguments else ("--web", "127.0.0.1:0")
        fast = {"PIGEONPOST_STORE_COMMIT": "0.05", **environment}
        super().__init__(test, "server.py", "--data", self.data, *web, *arguments, **fast)
        self._page: tuple[str, int] | None = None

    @property
    def page(self) -> tuple[str, int]:
        if self._page is None:
            place = self.line().removeprefix("the page is at http://").partition("/")[0]
            host, _, port = place.rpartition(":")
            self._page = host, int(port)
        return self._page

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Status and text of a page."""
        link = http.client.HTTPConnection(*self.page, timeout=LIMIT_S)
        try:
            link.request("GET", path, headers=dict(headers or {}))
            answer = link.getresponse()
            return answer.status, answer.read().decode()
        finally:
            link.close()


class Node(Program):
    """`node.py` with a simulated chip as a process, sampling twenty times a second."""

    def __init__(self, test: unittest.TestCase, *arguments: str, name: str = "basement", **environment: str) -> None:
        self.name = name
        super().__init__(
            test, "node.py", "--simulate", "--name", name, "--every", "0.05", "--listen", "127.0.0.1:0",
            "--data", temp_folder(test), *arguments, **environment,
        )  # fmt: skip
        self.place = "{}:{}".format(*self.address())

    @property
    def at(self) -> str:
        """What `server.py --node` takes."""
        return f"{self.name}@{self.place}"


def control(test: unittest.TestCase, *arguments: str, said: str = "", **environment: str) -> tuple[int, str, str]:
    """Run `control.py` to its end, `said` on its standard input: exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "control.py"), *arguments],
        input=said, capture_output=True, text=True, encoding="utf-8", timeout=3 * LIMIT_S, cwd=temp_folder(test),
        env=clean_environment(**environment),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr
