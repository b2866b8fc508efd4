"""Two processes share the test modules of `python3 -m unittest` if the machine has two processors.

A pipe is the queue: it holds one byte per module, its index. Each process reads a byte, runs that module and reads the
next one, until the pipe is empty. The second process writes one line of JSON per test to a file, which the first
process finally adds to its own result. Named modules, classes and tests (`-m unittest tests.node.test_ring_file`) run
in one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MOST_MODULES = 256  # indexes of one byte


class SharedSuite(unittest.TestSuite):
    """Discovered tests of the package; `run` shares their modules with a second process."""

    def __init__(self, found: unittest.TestSuite, loader: unittest.TestLoader, pattern: str) -> None:
        """Make a suite of discovered tests.

        Args:
            found: The tests.
            loader: The loader that found them; its `testNamePatterns` (-k) apply to the second process too.
            pattern: Pattern of the names of the files.
        """
        super().__init__([found])
        self._patterns = [pattern, *(loader.testNamePatterns or ())]

    def run(self, result: unittest.TestResult, debug: bool = False) -> unittest.TestResult:
        modules = by_module(self)
        if debug or len(os.sched_getaffinity(0)) < 2 or not 2 <= len(modules) <= MOST_MODULES:
            return super().run(result, debug)
        queue, far_queue = os.pipe()
        with tempfile.TemporaryFile("w+", encoding="utf-8") as report:
            options = [f"-W{option}" for option in sys.warnoptions]
            numbers = [str(number) for number in (queue, report.fileno(), len(modules))]
            command = [sys.executable, *options, "-m", "tests.parallel", *numbers, *self._patterns]
            second = subprocess.Popen(command, cwd=ROOT, pass_fds=(queue, report.fileno()), stdin=subprocess.DEVNULL)
            try:
                os.write(far_queue, bytes(range(len(modules))))
                os.close(far_queue)
                run_queue(queue, modules, result)
            finally:
                os.read(queue, MOST_MODULES)  # after Ctrl-C or a failure with -f: nothing is left to run
                os.close(queue)
                second.wait()
            report.seek(0)
            add_report(report, result)
        if second.returncode:
            raise RuntimeError(f"the second process of the tests ended with {second.returncode}")
        return result


def by_module(suite: Iterable[Any]) -> list[list[unittest.TestCase]]:
    """Return the tests of a suite as one list per module, in the order of the modules' names."""
    modules: dict[str, list[unittest.TestCase]] = {}
    for test in flattened(suite):
        name = test.id() if type(test).__module__.startswith("unittest.") else type(test).__module__  # no such module
        modules.setdefault(name, []).append(test)
    return [modules[name] for name in sorted(modules)]


def flattened(suite: Iterable[Any]) -> Iterator[unittest.TestCase]:
    """Yield the tests of a suite of suites."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flattened(item)
        else:
            yield item


def run_queue(queue: int, modules: Sequence[Sequence[unittest.TestCase]], result: unittest.TestResult) -> None:
    """Run the modules whose indexes this process reads from the queue."""
    while not result.shouldStop and (index := os.read(queue, 1)):
        unittest.TestSuite(modules[index[0]]).run(result)


class Reported(unittest.TestCase):
    """A test that the second process has run, for the result of the first one."""

    def __init__(self, name: str, shown: str) -> None:
        super().__init__("runTest")
        self._name, self._shown = name, shown

    def runTest(self) -> None:
        raise AssertionError("it has been run")

    def shortDescription(self) -> None:
        return None  # it is part of `__str__`

    def id(self) -> str:
        return self._name

    def __str__(self) -> str:
        return self._shown


class Reporter(unittest.TestResult):
    """Result of the second process: writes each outcome to the report."""

    def __init__(self, report: Any) -> None:
        super().__init__()
        self._report = report

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.write(test)

    def write(self, test: unittest.TestCase | None = None) -> None:
        """Write the outcome of `test`; without a test, the failures of class fixtures."""
        found = [
            (kind, each.id(), str(each), text)
            for kind in ("failures", "errors", "skipped") for each, text in getattr(self, kind)
        ]  # fmt: skip
        for kind in ("failures", "errors", "skipped"):
            getattr(self, kind).clear()
        ran = [test.id(), str(test)] if test is not None else None
        print(json.dumps([ran, found]), file=self._report, flush=True)


def add_report(lines: Iterable[str], result: unittest.TestResult) -> None:
    """Add what the second process reports to the result of the first one."""
    for line in lines:
        ran, found = json.loads(line)
        test = Reported(*ran) if ran else None
        if test is not None:
            result.startTest(test)
        for kind, name, shown, text in found:
            if kind == "skipped":
                result.addSkip(Reported(name, shown), text)
            else:
                getattr(result, kind).append((Reported(name, shown), text))
        if test is not None:
            if not found:
                result.addSuccess(test)
            result.stopTest(test)


def main() -> int:
    """Run modules from the queue as the second process. Returns the exit status."""
    queue, report, count = map(int, sys.argv[1:4])
    pattern, *names = sys.argv[4:]
    loader = unittest.TestLoader()
    loader.testNamePatterns = names or None
    modules = by_module(loader.discover(ROOT, pattern, ROOT))
    if len(modules) != count:
        raise RuntimeError(f"found {len(modules)} modules of tests, where the first process found {count}")
    with os.fdopen(report, "w", encoding="utf-8") as file:
        result = Reporter(file)
        run_queue(queue, modules, result)
        result.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
