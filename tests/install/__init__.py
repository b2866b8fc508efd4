"""Tests of the ways to install the program: booted systemd machines, containers, packages, proxies, Prometheus.

They require root, Debian's tools and a Debian mirror, and run with PIGEONPOST_TEST_LONG=1 only; `.ci/run` installs the
tools. Elsewhere they are skipped with the reason; in CI a missing tool is a failure.
"""

from __future__ import annotations

import os
import shutil
import unittest

from tests.support import LONG

_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def need_install(**packages: str) -> None:
    """Skip the tests of the module, or the test, where they cannot run. Called in setUpModule or setUp.

    Args:
        packages: Commands that the tests use (with underscores for dashes), and the Debian package of each.
    """
    if not LONG:
        raise unittest.SkipTest("runs with PIGEONPOST_TEST_LONG=1, as .ci/run does")
    missing = [package for name, package in packages.items() if not find_command(name.replace("_", "-"))]
    reason = ""
    if os.geteuid() != 0:
        reason = "needs root"
    elif missing:
        reason = f"not installed: sudo apt install {' '.join(missing)}"
    if reason and os.environ.get("CI"):
        raise AssertionError(reason)
    if reason:
        raise unittest.SkipTest(reason)


def find_command(name: str) -> str | None:
    """Return the path of a command, also of an administrator's one, or None if it is not installed."""
    return shutil.which(name, path=_PATH)
