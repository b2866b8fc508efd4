"""All tests. `python3 -m unittest` runs them in two processes (tests/parallel.py)."""

from __future__ import annotations

import os
import signal
import unittest

# What is ignored stays ignored in a program that is started; a handler does not. Shells ignore it for their background.
signal.signal(signal.SIGINT, signal.default_int_handler)


def load_tests(loader: unittest.TestLoader, tests: unittest.TestSuite, pattern: str | None) -> unittest.TestSuite:
    """Returns all tests of the package, for `python3 -m unittest` (unittest's load_tests protocol)."""
    from tests.parallel import SharedSuite

    folder = os.path.dirname(os.path.abspath(__file__))
    pattern = pattern or "test*.py"
    return SharedSuite(loader.discover(folder, pattern, os.path.dirname(folder)), loader, pattern)
