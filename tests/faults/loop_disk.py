"""A small ext4 disk in a file, for tests that cut its power or fill it."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import unittest

from tests.faults.house import DISK

_EXT4_IOC_SHUTDOWN = 0x8004587D  # ioctl(2) of fs/ext4/ioctl.c
_NO_LOG_FLUSH = 2  # the journal in memory is lost too, as in a power cut


class LoopDisk:
    """The disk, mounted at `path`. Requires root."""

    def __init__(self, test: unittest.TestCase, size_mib: int) -> None:
        lacks = _what_is_lacking()
        if lacks and os.environ.get("CI"):
            test.fail(f"no disk can be made here: {lacks}")
        if lacks:
            test.skipTest(f"no disk can be made here: {lacks}")
        self._folder = tempfile.mkdtemp(prefix="pigeonpost-disk-", dir=DISK)
        test.addCleanup(shutil.rmtree, self._folder, ignore_errors=True)
        self._image = os.path.join(self._folder, "image")
        self.path = os.path.join(self._folder, "mounted")
        os.mkdir(self.path)
        with open(self._image, "wb") as image:
            image.truncate(size_mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self._image], check=True)
        self.mount()
        test.addCleanup(subprocess.run, ["umount", "-l", self.path], stderr=subprocess.DEVNULL)

    def mount(self) -> None:
        """Mount the disk again; ext4 replays its journal."""
        subprocess.run(["mount", "-o", "loop", self._image, self.path], check=True)

    def cut_power(self) -> None:
        """Discard all writes from now on, and those that have not reached the disk."""
        folder = os.open(self.path, os.O_RDONLY)
        fcntl.ioctl(folder, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        os.close(folder)

    def unmount(self) -> None:
        """Unmount the disk; all programs that used it have ended."""
        subprocess.run(["umount", self.path], check=True)

    def fill(self) -> None:
        """Fill all free space."""
        with open(os.path.join(self.path, "filler"), "ab", buffering=0) as filler:
            for block in (b"\0" * (1 << 16), b"\0" * 4096, b"\0" * 64):
                try:
                    while True:
                        filler.write(block)
                except OSError:
                    continue

    def free(self) -> None:
        """Free the filled space."""
        os.unlink(os.path.join(self.path, "filler"))


def _what_is_lacking() -> str:
    if os.geteuid() != 0:
        return "it takes root to mount"
    for tool in ("mkfs.ext4", "mount", "umount", "losetup"):
        if not shutil.which(tool):
            return f"there is no {tool} (Debian packages e2fsprogs and mount)"
    if subprocess.run(["losetup", "-f"], capture_output=True).returncode:
        return "there is no loop device"
    return ""
