"""Debian's releases as folders, made once by debootstrap; all tests of tests/install share them, read-only.

    python3 -m tests.install.roots bookworm trixie      makes the missing ones, both at the same time

They are in PIGEONPOST_TEST_ROOTS, or in a folder of /var/tmp that the next run finds. A release takes about 90 s and
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
# The packages of Raspberry Pi OS Lite that the program uses: tests install nothing.
_PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "python3", "python3-spidev", "python3-venv", "openssl", "iproute2",
    "ca-certificates", "sudo", "curl", "netcat-openbsd",
)  # fmt: skip
_LIMIT_S = 900.0


def root_of(release: str) -> str:
    """Return the folder of a release. It is made first if it is missing, also while other processes wait for it."""
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
    """Make the roots of some releases, or of all of them. Returns the exit status."""
    with ThreadPoolExecutor() as pool:
        for release, folder in zip(releases or RELEASES, pool.map(root_of, releases or RELEASES)):
            print(f"{release}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
