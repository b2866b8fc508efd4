"""Tests of the ways in which users install it: booted systemd machines, containers, packages, proxies, Prometheus.

They need root, Debian's tools and a Debian mirror, and run with PIGEONPOST_TEST_LONG=1 only; `.ci/run` installs what
they need. Elsewhere they are skipped with the reason; where CI is set, what is missing is a failure.
"""

from __future__ import annotations

import os
import shutil
import unittest

from tests.support import LONG

_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def need_install(**packages: str) -> None:
    """Skip the module's tests, or the test's, where they cannot run. Called in setUpModule or setUp.

    packages  a command that the tests use, with underscores for dashes, and the Debian package that brings it
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
    """Return the path of a command, also of an administrator's; None where it is not installed."""
    return shutil.which(name, path=_PATH)
