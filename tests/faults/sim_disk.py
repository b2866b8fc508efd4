"""Simulated card of a node: writes go to its cache, a sync makes them durable, a power cut decides on the others.

It implements the ring file's FileOps. Any part of the unsynced writes may survive a power cut, in any order and torn at
any byte. The card may be full (no file grows, existing bytes can be overwritten), a write may go to another position, a
call may fail with EIO (after which, as on Linux, the cache may keep showing bytes that never reached the card; or every
later call fails), and the process may be killed in any call.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections import Counter

from pigeonpost.node.ring_file import FileOps

FOLDER = "/card"


class Died(BaseException):
    """The process was killed during a disk call."""


class File:
    """A file: its bytes as a process sees them, and as they are after a power cut."""

    def __init__(self, cache: bytes = b"", durable: bytes = b"") -> None:
        self.cache = bytearray(cache)
        self.durable = bytearray(durable)
        self.pending: list[tuple[int, bytes]] = []  # unsynced writes; position -1: truncation

    def copy(self) -> File:
        other = File(self.cache, self.durable)
        other.pending = list(self.pending)
        return other


class SimDisk(FileOps):
    """One card, and the descriptors that its process has open on it."""

    def __init__(self, chance: random.Random, counts: Counter[str], lies: bool = False) -> None:
        """Make an empty card.

        Args:
            chance: Source of randomness.
            counts: Receives the number of each kind of event.
            lies: If true, fdatasync confirms bytes that it does not keep: a negative control.
        """
        self.chance = chance
        self.counts = counts
        self.lies = lies
        self.names: dict[str, File] = {}
        self.durable_names: dict[str, File] = {}
        self.full = False
        self.dies_in = 0  # calls until the process is killed; 0: never
        self.fails_in = 0  # calls until EIO
        self.dead = False  # every call fails permanently
        self.astray = 0  # offset of the next write from its right position, in bytes
        self._open: dict[int, File | None] = {}  # None: the folder
        self._next = 10

    def copy(self) -> SimDisk:
        """Return an image of the card."""
        other = SimDisk(self.chance, self.counts, self.lies)
        files = {id(file): file.copy() for file in (*self.names.values(), *self.durable_names.values())}
        other.names = {name: files[id(file)] for name, file in self.names.items()}
        other.durable_names = {name: files[id(file)] for name, file in self.durable_names.items()}
        return other

    # ------------------------------------------------------------------------------------------- the calls

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:  # type: ignore[override]
        self._step()
        self._next += 1
        file = self.names.get(path)
        if file is None and flags & os.O_CREAT:
            file = self.names[path] = File()
        if file is not None and flags & os.O_TRUNC:
            _put(file.cache, -1, b"")
            file.pending.append((-1, b""))
        self._open[self._next] = file
        return self._next

    def close(self, fd: int) -> None:  # type: ignore[override]
        self._open.pop(fd, None)

    def pread(self, fd: int, count: int, at: int) -> bytes:  # type: ignore[override]
        if self.fails_in == 1 or self.dead:
            self._step()
        file = self._open[fd]
        assert file is not None
        return bytes(file.cache[at : at + count])

    def pwrite(self, fd: int, data: bytes, at: int) -> int:  # type: ignore[override]
        file = self._open[fd]
        assert file is not None
        data = bytes(data)
        at, is_astray, self.astray = at + self.astray, self.astray != 0, 0
        if self.dies_in == 1:
            self._take(file, data[: self.chance.randrange(len(data) + 1)], at)
        self._step()
        if self.full and at + len(data) > len(file.cache):
            data = data[: max(0, len(file.cache) - at)]
            if not data:
                self.counts["node: no space left on its disk"] += 1
                raise OSError(errno.ENOSPC, "No space left on device")
        elif len(data) > 1 and not is_astray and self.chance.random() < 0.02:
            self.counts["node: short write"] += 1
            data = data[: self.chance.randrange(1, len(data))]
        self._take(file, data, at)
        return len(data)

    def fdatasync(self, fd: int) -> None:  # type: ignore[override]
        self._sync(fd, self.lies)

    def fsync(self, fd: int) -> None:  # type: ignore[override]
        self._sync(fd, False)

    def _sync(self, fd: int, lies: bool) -> None:
        file = self._open[fd]
        if self.fails_in == 1 and file is not None and self.chance.random() < 0.5:
            file.pending = []  # the cache still shows it, but the kernel no longer writes it
            self.counts["node: its cache shows what is not on the card"] += 1
        self._step()
        if file is None:
            self.durable_names = dict(self.names)
        elif not lies:
            for at, data in file.pending:
                _put(file.durable, at, data)
            file.pending = []

    def rename(self, old: str, new: str) -> None:  # type: ignore[override]
        self._step()
        self.names[new] = self.names.pop(old)

    def link(self, old: str, new: str) -> None:  # type: ignore[override]
        self._step()
        self.names[new] = self.names[old]

    def exists(self, path: str) -> bool:  # type: ignore[override]
        return path in self.names

    def _step(self) -> None:
        if self.dead:
            raise OSError(errno.EIO, "Input/output error")
        if self.dies_in:
            self.dies_in -= 1
            if not self.dies_in:
                self.counts["node: killed in a disk call"] += 1
                raise Died
        if self.fails_in:
            self.fails_in -= 1
            if not self.fails_in:
                self.counts["node: I/O error"] += 1
                raise OSError(errno.EIO, "Input/output error")

    def _take(self, file: File, data: bytes, at: int) -> None:
        _put(file.cache, at, data)
        file.pending.append((at, data))

    # -------------------------------------------------------------------------------------------- its fate

    def killed(self) -> None:
        """End the process; the card and its cache stay unchanged."""
        self._open = {}
        self.dies_in = self.fails_in = 0

    def crash(self) -> None:
        """Cut the power. Any part of the unsynced writes may survive."""
        chance = self.chance
        self.killed()
        if chance.random() < 0.5:
            self.names = dict(self.durable_names)
        self.durable_names = dict(self.names)
        for file in self.names.values():
            pending, file.pending = file.pending, []
            chance.shuffle(pending)
            for at, data in pending:
                self._keep_some(file, at, data)
            file.cache[:] = file.durable

    def _keep_some(self, file: File, at: int, data: bytes) -> None:
        """Let nothing, everything, or some parts of one write reach the card."""
        chance = self.chance
        fate = chance.random()
        if at < 0 or fate < 0.3:
            return
        if fate < 0.5 or len(data) < 2:
            _put(file.durable, at, data)
            return
        cuts = sorted({0, len(data), *[chance.randrange(len(data)) for _ in range(chance.randrange(1, 4))]})
        for low, high in itertools.pairwise(cuts):
            if chance.random() < 0.5:
                self.counts["node: a write torn by a power cut"] += 1
                _put(file.durable, at + low, data[low:high])


def _put(content: bytearray, at: int, data: bytes) -> None:
    if at < 0:
        content.clear()
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data
