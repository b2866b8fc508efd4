"""Runs the tests in random order, repeatedly or each alone, to find tests that depend on each other or on luck.

    python3 -m tests.run                                   the quick suite once, in random order
    python3 -m tests.run --order 4711 tests.node.test_ring_file      one module, in the order of that seed
    python3 -m tests.run --times 10 --python /usr/bin/python3 --python python3.13
    python3 -m tests.run --alone                           each test in a process of its own
    python3 -m tests.run --slowest 20                      also print the 20 slowest tests

A failed run prints the command that repeats its order. Modules, classes and the tests within a class are shuffled;
the tests of one class stay together, so that class and module fixtures run once.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import time
import unittest
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.parallel import flattened
from tests.support import ROOT

Row = tuple[float, float, float, str]  # wall time, own and children's processor time in seconds; the test's id


def tests_of(names: Sequence[str]) -> list[unittest.TestCase]:
    """Return the tests of modules, classes, methods or packages by their dotted names; without names, all tests."""
    loader = unittest.TestLoader()
    found: list[unittest.TestCase] = []
    for name in names or ["tests"]:
        folder = os.path.join(ROOT, *name.split("."))
        is_package = os.path.isdir(folder)
        suite = loader.discover(folder, top_level_dir=ROOT) if is_package else loader.loadTestsFromName(name)
        found += flattened(suite)
    return found


def shuffled(tests: Sequence[unittest.TestCase], seed: int) -> list[unittest.TestCase]:
    """Return the tests in the random order of `seed`: modules, then classes, then tests."""
    chance = random.Random(seed)
    keys: dict[Any, float] = {}

    def place(test: unittest.TestCase) -> tuple[float, float, float]:
        kind = type(test)
        return tuple(keys.setdefault(key, chance.random()) for key in (kind.__module__, kind, test.id()))  # type: ignore[return-value]

    return sorted(tests, key=place)


class Result(unittest.TextTestResult):
    """Test results with the time that each test took and what became of it."""

    rows: list[Row]
    outcomes: list[tuple[str, str]]  # "ran" or "skipped", and the test's id

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.rows, self.outcomes = [], []

    def startTest(self, test: unittest.TestCase) -> None:
        self._began = times_s()
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        wall, own, children = (now - before for now, before in zip(times_s(), self._began))
        self.rows.append((wall, own, children, test.id()))
        if ("skipped", test.id()) not in self.outcomes[-1:]:
            self.outcomes.append(("ran", test.id()))
        super().stopTest(test)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        whole = getattr(test, "test_case", test)  # of a part that `subTest` made: the test itself
        self.outcomes.append(("skipped", whole.id()))
        super().addSkip(test, reason)


def times_s() -> tuple[float, float, float]:
    """Returns wall time, own processor time and that of ended child processes, in seconds."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


def run_once(names: Sequence[str], seed: int, slowest: int, record: str) -> bool:
    """Run the tests in the order of `seed`. Returns True if all passed.

    Args:
        names: Dotted names of the tests; empty for all.
        seed: Seed of the order.
        slowest: Number of the slowest tests to print.
        record: File that gets one line per test (`ran` or `skipped`, a tab, its id), or an empty string.
    """
    warnings = None if sys.warnoptions else "default"  # as unittest.main
    runner = unittest.TextTestRunner(resultclass=Result, verbosity=0, warnings=warnings)
    print(f"order {seed}", flush=True)
    result = runner.run(unittest.TestSuite(shuffled(tests_of(names), seed)))
    assert isinstance(result, Result)
    for wall, own, children, name in sorted(result.rows, reverse=True)[:slowest]:
        print(f"{wall:7.2f} s  processor {own:6.2f} + {children:6.2f} s  {name}")
    if record:
        with open(record, "a", encoding="utf-8") as file:
            file.writelines(f"{outcome}\t{name}\n" for outcome, name in result.outcomes)
    if not result.wasSuccessful():
        print(f"to repeat this order: {sys.executable} -m tests.run --order {seed} {' '.join(names)}")
    return result.wasSuccessful()


def run_often(pythons: Sequence[str], names: Sequence[str], seed: int, times: int) -> bool:
    """Run the tests `times` times, each time in a new process and order, alternating between `pythons`.

    Returns True if all passed.
    """
    failed = 0
    for number in range(times):
        command = [pythons[number % len(pythons)], "-m", "tests.run", "--order", str(seed + number), *names]
        began_s = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        failed += done.returncode != 0
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"{number + 1}/{times}: {' '.join(command)}: {last} after {time.monotonic() - began_s:.1f} s", flush=True)
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n", flush=True)
    print(f"{times - failed} of {times} runs passed")
    return not failed


def run_alone(pythons: Sequence[str], names: Sequence[str]) -> bool:
    """Run each test in its own process, as many at the same time as there are processors.

    Returns True if all passed.
    """
    ids = [test.id() for test in tests_of(names)]

    def passes(name: str) -> bool:
        command = [pythons[0], "-m", "unittest", name]
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode not in (0, 5):  # 5: skipped, with Python 3.12 and later
            print(f"failed alone: {' '.join(command)}\n{done.stderr}", flush=True)
        return done.returncode in (0, 5)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        passed = sum(pool.map(passes, ids))
    print(f"{passed} of {len(ids)} tests passed alone")
    return passed == len(ids)


def never_run(records: Sequence[str]) -> list[str]:
    """Return the tests that one of the records has as skipped, and none as executed."""
    ran: set[str] = set()
    skipped: set[str] = set()
    for path in records:
        with open(path, encoding="utf-8") as file:
            for line in file:
                outcome, _, name = line.rstrip("\n").partition("\t")
                (ran if outcome == "ran" else skipped).add(name)
    return sorted(name for name in skipped if not any(is_of(other, name) for other in ran))


def is_of(test: str, skipped: str) -> bool:
    """Return True if `skipped` names this test, its class or its module."""
    whole = skipped.partition("(")[2].rstrip(")") or skipped.removeprefix("unittest.loader.ModuleSkipped.")
    return test == whole or test.startswith(f"{whole}.")


def main() -> int:
    """Returns the exit status: 0 if all passed, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="packages, modules, classes or tests (all)")
    parser.add_argument("--order", type=int, metavar="SEED", help="seed of the (first) order")
    parser.add_argument("--slowest", type=int, default=0, metavar="N", help="print the N slowest tests")
    parser.add_argument("--record", default="", metavar="FILE", help="append what ran and what was skipped to FILE")
    parser.add_argument("--times", type=int, default=0, metavar="N", help="run N times, each in another order")
    parser.add_argument("--alone", action="store_true", help="run each test in a process of its own")
    parser.add_argument("--python", action="append", metavar="PYTHON", help="the Python to run; several: in turn")
    parser.add_argument("--never-run", action="store_true", help="names are records: print what was always skipped")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if given.order is None else given.order
    if given.never_run and not given.names:
        parser.error("--never-run needs the records")
    if given.alone and len(given.python or ()) > 1:
        parser.error("--alone takes one --python")
    if (given.times or given.python) and (given.slowest or given.record):
        parser.error("--slowest and --record are for a single run with this Python")
    if given.never_run:
        missed = never_run(given.names)
        print("\n".join(missed) or "every skipped test ran in another step")
        return 1 if missed else 0
    if given.alone:
        return 0 if run_alone(given.python or [sys.executable], given.names) else 1
    if given.times or given.python:
        return 0 if run_often(given.python or [sys.executable], given.names, seed, given.times or 1) else 1
    return 0 if run_once(given.names, seed, given.slowest, given.record) else 1


if __name__ == "__main__":
    sys.exit(main())
