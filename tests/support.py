"""Shared helpers of the tests: temporary folders, a simulated disk, a simulated Ingestor, programs, waiting.

Nothing here sleeps for a fixed time in the hope that something has happened: every wait is for a condition, with a
limit.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pigeonpost.core.errors import Unexpected
from pigeonpost.core.strict_json import write_json
from pigeonpost.link.sample_text import columns_text, steps_text
from pigeonpost.node.ring_file import FileOps
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.storage.models import StoredBatch, StoredSample
from protocol import Batch, Message, Sample, SampleBatch, decode, encode, sample_body, sample_text

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIMIT_S = 60.0  # of operations that take milliseconds on a quiet machine
EPOCH = "0123456789abcdef"
BOOT = "fedcba9876543210"
WALL_MS = 1_795_188_970_123  # 2026-11-20T15:36:10.123Z
LONG = os.environ.get("PIGEONPOST_TEST_LONG") == "1"


def long(test: Any) -> Any:
    """Decorate a test or a class that is too long for the quick suite: it runs only with PIGEONPOST_TEST_LONG=1.

    `.ci/run` sets this variable. A quick test of each kind of fault always runs.
    """
    return unittest.skipUnless(LONG, "runs with PIGEONPOST_TEST_LONG=1, as .ci/run does")(test)


def rounds(name: str, quick: int, full: int) -> int:
    """Return the number of times a test repeats its round.

    Args:
        name: Environment variable that overrides the number.
        quick: The number in `python3 -m unittest`.
        full: The number with PIGEONPOST_TEST_LONG=1.
    """
    return int(os.environ.get(name, full if LONG else quick))


def memory_disk() -> str | None:
    """Return a folder in memory, where a sync costs nothing, or None if there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def temp_folder(test: unittest.TestCase, parent: str | None = None) -> str:
    """Return a new folder for `test`, removed after it."""
    folder = tempfile.mkdtemp(prefix="pigeonpost-test-", dir=parent)
    test.addCleanup(shutil.rmtree, folder, ignore_errors=True)
    return folder


def wait_until(condition: Callable[[], Any], what: str = "the condition", limit_s: float = LIMIT_S) -> Any:
    """Return the result of `condition` as soon as it is true. Raises AssertionError after `limit_s`."""
    give_up_s = time.monotonic() + limit_s
    pause_s = 0.002
    while not (found := condition()):
        if time.monotonic() > give_up_s:
            raise AssertionError(f"{what}: not within {limit_s:g} s")
        time.sleep(pause_s)
        pause_s = min(1.2 * pause_s, 0.05)  # a slow condition is checked less often
    return found


class Leftovers:
    """Threads and descriptors of this process that did not exist when this object was made.

    Counting them would not be enough: a thread left by an earlier test may end in the meantime, such as the one that
    hashes passwords, which ends some seconds after its last job.
    """

    def __init__(self) -> None:
        self._threads, self._files = set(threading.enumerate()), self._open_files()

    @property
    def threads(self) -> set[threading.Thread]:
        """The new threads that are still running."""
        return set(threading.enumerate()) - self._threads

    @property
    def files(self) -> set[str]:
        """The new open descriptors. A socket or a pipe is never mistaken for an earlier one with the same number."""
        return self._open_files() - self._files

    @staticmethod
    def _open_files() -> set[str]:
        found = set()
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
                found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        return found

    def wait_for_none(self) -> None:
        """Wait until all of them have ended or are closed."""
        wait_until(lambda: not self.threads and not self.files, "no thread and no descriptor is left")


def free_port() -> int:
    """Return a free port of this machine that no other program gets by chance.

    A killed program finds it free when it is started again: the kernel's ports for outgoing connections begin at 32768.
    """
    chance = random.SystemRandom()  # not the generator that a test may have patched
    while True:
        port = chance.randrange(10_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def taken(value: float = 21.5, wall_ms: int = WALL_MS, up_ms: int = 48_000_000, **more: Any) -> UnnumberedSample:
    """Return a sample of one sensor, as the sampler makes it."""
    values = more.pop("values", {"temperature": value})
    return UnnumberedSample(wall_ms, up_ms, more.pop("clock_set", True), values, more.pop("errors", {}))


def sensors_line(epoch: str, first: int, count: int, up_ms: int = 1000) -> bytes:
    """Return a SENSORS line of `count` samples."""
    texts = [
        sample_text(seq, WALL_MS + seq * 1000, up_ms + seq, sample_body({"temperature": seq / 4}, {}), "")
        for seq in range(first, first + count)
    ]
    return encode("SENSORS", epoch, texts)


def samples_of(line: bytes | Message) -> list[Sample]:
    """Return the samples of a SENSORS line."""
    message = line if isinstance(line, Message) else decode(line)
    assert message is not None and message.word == "SENSORS", message
    return [sample for batch in message.args[1] for sample in batch]


def stored_samples(batches: Iterable[StoredBatch]) -> Iterator[StoredSample]:
    """Yield each sample of the batches that a store has yielded."""
    for node, epoch, batch in batches:
        for sample in batch:
            yield StoredSample(node, sample.time_ms, epoch, sample.seq, sample.values, sample.clock)


def write_columns(batch: SampleBatch) -> str:
    """Return a batch, whose `ups` are known, as a JSON object of columns."""
    values = {name: write_json(column)[1:-1] for name, column in batch.values.items()}
    return columns_text(batch.seq, steps_text(batch.times), steps_text(batch.ups), values, batch.errors, batch.clock)


# ------------------------------------------------------------------------------------------------------- a disk


class Killed(BaseException):
    """The program died in this call: no further code of it runs, not even an `except`."""


class _File:
    def __init__(self) -> None:
        self.seen = bytearray()  # the content that a program reads
        self.kept = bytearray()  # the content after a power cut
        self.unsynced: list[tuple[int, bytes]] = []


def _put(content: bytearray, at: int, data: bytes) -> None:
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


class MemoryDisk(FileOps):
    """Simulated disk with the interface that the ring file uses. A power cut loses, keeps or tears unsynced writes.

    `fault` is called with the name of each call before it is carried out; it may raise OSError (a failing disk) or
    Killed. `short` returns how many bytes of a pwrite are written.
    """

    def __init__(self, seed: object = 0) -> None:
        self.random = random.Random(f"disk {seed}")
        self.calls: list[str] = []
        self.fault: Callable[[str], Any] = lambda call: None
        self.short: Callable[[int], int] = lambda length: length
        self.names: dict[str, _File] = {}
        self._kept_names: dict[str, _File] = {}
        self._open: dict[int, _File | str] = {}
        self._next_fd = 1000
        self.exists = self.names.__contains__  # type: ignore[assignment]

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.fault(name)

    def open(self, path: str, flags: int, mode: int = 0) -> int:  # type: ignore[override]
        self._call("open")
        self._next_fd += 1
        if flags & os.O_ACCMODE == os.O_RDONLY:
            self._open[self._next_fd] = path  # a folder: only synced
            return self._next_fd
        if path not in self.names:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            self.names[path] = _File()
        elif flags & os.O_TRUNC:
            self.names[path] = _File()  # the old content may still be durable, but has no name
        self._open[self._next_fd] = self.names[path]
        return self._next_fd

    def close(self, fd: int) -> None:
        self._call("close")
        del self._open[fd]

    def pread(self, fd: int, count: int, at: int) -> bytes:
        self._call("pread")
        return bytes(self._file(fd).seen[at : at + count])

    def pwrite(self, fd: int, data: Any, at: int) -> int:
        self._call("pwrite")
        written = bytes(data[: self.short(len(data))])
        file = self._file(fd)
        _put(file.seen, at, written)
        file.unsynced.append((at, written))
        return len(written)

    def fdatasync(self, fd: int) -> None:  # type: ignore[override]
        self._call("fdatasync")
        self._sync(self._file(fd))

    def fsync(self, fd: int) -> None:  # type: ignore[override]
        self._call("fsync")
        file = self._open[fd]
        if isinstance(file, str):
            self._kept_names = dict(self.names)
        else:
            self._sync(file)

    def rename(self, old: str, new: str) -> None:  # type: ignore[override]
        self._call("rename")
        self.names[new] = self.names.pop(old)

    def link(self, old: str, new: str) -> None:  # type: ignore[override]
        self._call("link")
        self.names[new] = self.names[old]

    def lay(self, path: str, content: bytes) -> None:
        """Put a durable file with `content` at `path`, replacing any other."""
        file = self.names[path] = self._kept_names[path] = _File()
        file.seen, file.kept = bytearray(content), bytearray(content)

    def content(self, path: str) -> bytes:
        """Return the content of a file as a program would read it."""
        return bytes(self.names[path].seen)

    def die_at(self, call: int, error: BaseException | None = None) -> None:
        """Make the call with this number from now on (0: the next) raise `error`.

        Without `error` the program dies there.
        """
        left = [call]

        def fault(name: str) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise error or Killed(name)

        self.fault = fault

    def kill(self) -> None:
        """Simulate kill -9: the next program sees everything written, though it is not durable."""
        self._open.clear()
        self.fault = lambda call: None

    def cut_power(self) -> None:
        """Simulate a power cut: each unsynced write and each unsynced name is kept, lost or torn."""
        self.kill()
        names = dict(self._kept_names)
        for name in self.names.keys() | self._kept_names.keys():
            if self.names.get(name) is not self._kept_names.get(name) and self.random.random() < 0.5:
                if name in self.names:
                    names[name] = self.names[name]
                else:
                    names.pop(name, None)
        for file in {id(file): file for file in (*names.values(), *self.names.values())}.values():
            for at, data in file.unsynced:
                start, end = sorted(self.random.choices((0, len(data), self.random.randint(0, len(data))), k=2))
                _put(file.kept, at + start, data[start:end])
            file.unsynced = []
            file.seen = bytearray(file.kept)
        self.names.clear()
        self.names.update(names)
        self._kept_names = dict(names)

    def _file(self, fd: int) -> _File:
        file = self._open[fd]
        assert isinstance(file, _File)
        return file

    @staticmethod
    def _sync(file: _File) -> None:
        for at, data in file.unsynced:
            _put(file.kept, at, data)
        file.unsynced = []


# ------------------------------------------------------------------------------------------------------ a ledger


class FakeLedger:
    """A minimal Ingestor: numbered rows and gaps, stored when `commit` is called, or immediately."""

    def __init__(self, at_once: bool = True) -> None:
        self.identity = "1edce41edce41edc"
        self.at_once = at_once
        self.rows: list[tuple[str, str, Sample]] = []  # node, epoch, sample
        self.gaps: list[tuple[str, str, int, int, int, str]] = []  # node, epoch, first, last (new ones only), before
        self.repeats = 0
        self.tops: dict[str, int] = {}  # the highest running number stored of each outbox
        self.stored: dict[tuple[str, str], tuple[int, int | None]] = {}
        self.changed = threading.Condition()
        self._waiting: list[Batch] = []

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, tuple[int, int | None]]]:
        with self.changed:
            known = {epoch: self.stored[node, epoch] for epoch in epochs if (node, epoch) in self.stored}
            return self.tops.get(outbox, 0), known

    def submit(self, batch: Batch, urgent: bool = False, limit_s: float | None = None) -> bool:
        with self.changed:
            self._waiting.append(batch)
        if self.at_once:
            self.commit()
        return True

    def forget(self) -> None:
        """Simulate the death of the program: everything uncommitted is lost."""
        with self.changed:
            self._waiting = []

    def commit(self, most: int | None = None) -> None:
        """Store the waiting batches (at most `most` of them), and acknowledge them."""
        with self.changed:
            batches, self._waiting = self._waiting[:most], self._waiting[len(self._waiting[:most]) :]
            answers = [self._store(batch) for batch in batches]
            self.changed.notify_all()
        for answer in answers:
            answer()

    def _store(self, batch: Batch) -> Callable[[], Any]:
        have, up_ms = self.stored.get((batch.node, batch.epoch), (0, None))
        first, last = batch.ends
        if first > have + 1:
            error = Unexpected(f"sample {have + 1} comes next, not {first}")
            return lambda: batch.on_rejected(error)
        if batch.gap is not None:
            new = max(first, have + 1)
            if new <= last or batch.gap.before:
                self.gaps.append((batch.node, batch.epoch, new, last, batch.gap.before, batch.gap.why))
            mark = (last, None) if last > have else (have, up_ms)
        else:
            assert batch.samples is not None
            fresh = [sample for sample in batch.samples if sample.seq > have]
            self.repeats += batch.sample_count - len(fresh)
            self.rows += [(batch.node, batch.epoch, sample) for sample in fresh]
            mark = (last, batch.samples[-1].up_ms) if fresh else (have, up_ms)
        self.stored[batch.node, batch.epoch] = mark
        if batch.base is not None:
            self.tops[batch.outbox] = max(self.tops.get(batch.outbox, 0), batch.base + mark[0])
        return lambda: batch.on_committed(batch.epoch, last)

    def seqs(self, epoch: str) -> list[int]:
        """Return the stored sequence numbers of `epoch` in their order."""
        with self.changed:
            return [sample.seq for _, e, sample in self.rows if e == epoch]

    def wait_for(self, count: int, limit_s: float = LIMIT_S) -> None:
        """Wait until `count` samples are stored."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.rows) >= count, limit_s):
                raise AssertionError(f"{len(self.rows)} of {count} samples arrived within {limit_s:g} s")


# --------------------------------------------------------------------------------------------- a talk over a socket


class Talk:
    """A connection as a person has it with nc: lines out, lines in."""

    def __init__(self, address: tuple[str, int], limit_s: float = LIMIT_S) -> None:
        self.sock = socket.create_connection(address, limit_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._part = b""

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def say(self, word: str, *args: Any) -> None:
        self.sock.sendall(encode(word, *args))

    def line(self) -> bytes | None:
        """Return the next line without its LF, or None when the peer has closed the connection."""
        while b"\n" not in self._part:
            try:
                block = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not block:
                return None
            self._part += block
        line, _, self._part = self._part.partition(b"\n")
        return line

    def message(self) -> Message | None:
        """Return the next line, decoded."""
        line = self.line()
        return None if line is None else decode(line)

    def until(self, word: str) -> Message:
        """Read up to the next line with this word, and return it."""
        while (message := self.message()) is not None:
            if message.word == word:
                return message
        raise AssertionError(f"closed before {word} arrived")

    def rest(self) -> list[Message]:
        """Return all messages until the peer closes the connection."""
        found = []
        while (message := self.message()) is not None:
            found.append(message)
        return found


# ---------------------------------------------------------------------------------------------------- programs


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without the variables that would change a Pigeonpost program."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIGEONPOST_", "BALENA_"))}
    for key in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        kept.pop(key, None)
    quiet = {"PIGEONPOST_ANNOUNCE_ON": "false"}  # tests that run at the same time would receive it
    cached = {"PYTHONPYCACHEPREFIX": _bytecode_folder(), "PYTHONDONTWRITEBYTECODE": ""}
    return {**kept, **quiet, "PYTHONUNBUFFERED": "1", **cached, **more}


@functools.cache
def _bytecode_folder() -> str:
    """Return the folder of compiled modules shared by all started programs: compiling takes longer than starting.

    It is not `__pycache__` next to the modules: in a test, a program writes to its data folder only.
    """
    given = os.environ.get("PYTHONPYCACHEPREFIX")
    if given:
        return given
    folder = tempfile.mkdtemp(prefix="pigeonpost-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Program:
    """A Pigeonpost program as a process; its standard output and standard error are read as they arrive."""

    def __init__(self, test: unittest.TestCase, *arguments: str, folder: str | None = None, **environment: str) -> None:
        """Start the program. `arguments` begin with its file, `folder` is its working folder; it ends with the test."""
        self.process = self._start(
            [os.path.join(ROOT, arguments[0]), *arguments[1:]], folder or temp_folder(test),
            clean_environment(**environment),
        )  # fmt: skip
        self.said: list[str] = []
        self.logged: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.said, self._lines), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.logged, None), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        test.addCleanup(self.kill)

    def _start(self, arguments: list[str], folder: str, environment: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip

    @staticmethod
    def _read(pipe: Any, lines: list[str], told: queue.SimpleQueue[str | None] | None) -> None:
        for line in pipe:
            lines.append(line.rstrip("\n"))
            if told:
                told.put(lines[-1])
        if told:
            told.put(None)

    def line(self, limit_s: float = LIMIT_S) -> str:
        """Return the next line on standard output."""
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            raise AssertionError(f"no line within {limit_s:g} s; logged: {self.logged}") from None
        if line is None:
            raise AssertionError(f"it ended with {self.wait()}; logged: {self.logged}")
        return line

    def address(self) -> tuple[str, int]:
        """Return the address on which the program reports that it listens."""
        line = self.line()
        while not line.startswith("listening on "):
            line = self.line()
        host, _, port = line.removeprefix("listening on ").rpartition(":")
        return ("127.0.0.1" if host == "0.0.0.0" else host), int(port)

    def logs(self, text: str, limit_s: float = LIMIT_S) -> str:
        """Return the first line of its log that contains `text`; waits for it."""
        found: str = wait_until(lambda: next((line for line in self.logged if text in line), ""), text, limit_s)
        return found

    def terminate(self) -> None:
        """Ask the program to end (SIGTERM)."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """Return the exit status once the program has ended and all its output is read."""
        status = self.process.wait(limit_s)
        for reader in self._readers:
            reader.join(limit_s)
        return status

    def kill(self) -> None:
        """Kill the program (kill -9) and wait for its end. Does nothing if it has ended."""
        self.process.kill()
        self.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
