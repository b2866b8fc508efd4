"""Tests with the real programs of other projects, such as InfluxDB, as `.ci/run` executes them.

They run with PIGEONPOST_TEST_LONG=1 and are skipped if a program is missing; if CI is set, that is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import unittest
from collections.abc import Callable, Sequence

from tests.support import LONG, temp_folder, wait_until

PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def need_programs(*programs: str) -> None:
    """Skip the tests if they are not wanted, or if one of the `programs` is missing. To be called in setUpModule."""
    if not LONG:
        raise unittest.SkipTest("runs with PIGEONPOST_TEST_LONG=1, as .ci/run does")
    for program in programs:
        if shutil.which(program, path=PATHS) is None:
            if os.environ.get("CI"):
                raise AssertionError(f"{program} is not installed")
            raise unittest.SkipTest(f"{program} is not installed")


class RealProgram:
    """Process of another project. It can be killed and started again, and is killed at the end of the test.

    Attributes:
        folder: Folder for its data, removed at the end of the test.
    """

    def __init__(self, test: unittest.TestCase, command: Sequence[str], is_ready: Callable[[], object]) -> None:
        """Prepare the process.

        Args:
            test: The test.
            command: Program and arguments. `{folder}` in them is replaced by the folder of its data.
            is_ready: Function that returns True once the program answers. It may raise OSError before.
        """
        self.folder = temp_folder(test)
        program = shutil.which(command[0], path=PATHS) or command[0]
        self._command = [program, *(part.replace("{folder}", self.folder) for part in command[1:])]
        self._is_ready = is_ready
        self._process: subprocess.Popen[bytes] | None = None
        test.addCleanup(self.kill)

    def start(self, wait: bool = True) -> RealProgram:
        """Start the process; with `wait`, return once it is ready."""
        with open(os.path.join(self.folder, "output"), "ab") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip
        if wait:
            wait_until(self._answers, f"{self._command[0]}; it printed: {self.output()[-2000:]}")
        return self

    def kill(self) -> None:
        """End the process and its children by SIGKILL."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended already
            self._process.wait()
            self._process = None

    def output(self) -> str:
        """Return all that the process has printed."""
        with open(os.path.join(self.folder, "output"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"{self._command} ended with {self._process.returncode}: {self.output()[-2000:]}")
        try:
            return bool(self._is_ready())
        except OSError:
            time.sleep(0.05)
            return False
