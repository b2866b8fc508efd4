"""Debian's releases as folders, made by debootstrap, each once; the tests of tests/install share them, and only read.

    python3 -m tests.install.roots bookworm trixie      makes those that are not there, both at once

They are in PIGEONPOST_TEST_ROOTS, else in a folder of /var/tmp that the next run finds. A release takes about 90 s and
360 MB.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

FOLDER = os.environ.get("PIGEONPOST_TEST_ROOTS", "/var/tmp/pigeonpost-test-roots")
RELEASES = ("bookworm", "trixie")
# What Raspberry Pi OS Lite has of what we use, so that nothing has to be installed while a test runs.
_PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "python3", "python3-spidev", "python3-venv", "openssl", "iproute2",
    "ca-certificates", "sudo", "curl", "netcat-openbsd",
)  # fmt: skip
_LIMIT_S = 900.0


def root_of(release: str) -> str:
    """Return the folder of a release, made first where it is not there; also beside other processes that want it."""
    folder = os.path.join(FOLDER, f"{release}-{hashlib.sha256(' '.join(_PACKAGES).encode()).hexdigest()[:8]}")
    os.makedirs(FOLDER, exist_ok=True)
    with open(os.path.join(FOLDER, f"{release}.lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(folder):
            _make(release, folder)
    return folder


def _make(release: str, folder: str) -> None:
    unfinished = f"{folder}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", release, unfinished]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S
    )
    if result.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-2000:]}{result.stderr}"
        )
    os.rename(unfinished, folder)


def main(releases: Sequence[str]) -> int:
    """Make the roots of some releases, all of them without a name; the exit status."""
    with ThreadPoolExecutor() as pool:
        for release, folder in zip(releases or RELEASES, pool.map(root_of, releases or RELEASES)):
            print(f"{release}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
