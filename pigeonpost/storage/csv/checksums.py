"""The SHA-256 of every closed CSV log, in logs/SHA256SUMS, as `sha256sum -c` reads it.

Runs on: server.  Reached from: csvbuffer, which closes logs; control.py, which compares.  Hands on to: the disk.
Threads: one of its own for a while, when a crash (or an older version) left logs that nobody has summed up: a long log
  takes a while to read, and no start waits for that. `_lock` guards the file; held while it is replaced.
Errors: none that stop the server: a log without a sum is told in the server's log, and summed up by the next start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence

from pigeonpost.core.data_folder import LOG_CHECKSUMS
from pigeonpost.core.files import replace_file

log = logging.getLogger(__name__)

_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\0\n]+)\n").fullmatch
_BLOCK_BYTES = 1 << 20


def logs_in(folder: str) -> list[str]:
    """The names of the CSV logs in `folder`, in the order of the alphabet."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".csv"))
    except FileNotFoundError:
        return []


def read_sums(folder: str) -> dict[str, str]:
    """Name and SHA-256 (hex) of each log that is closed. Lines that are none are left out."""
    try:
        with open(os.path.join(folder, LOG_CHECKSUMS), encoding="utf-8", errors="replace") as file:
            found = [_LINE(line) for line in file]
    except FileNotFoundError:
        return {}
    return {line[2]: line[1] for line in found if line}


def sums_text(sums: dict[str, str]) -> bytes:
    """What the file says."""
    return "".join([f"{checksum}  {name}\n" for name, checksum in sorted(sums.items())]).encode()


def faults(folder: str) -> Iterator[str]:
    """Compare the closed logs with their sums; a line for each that is not what it was, or is gone."""
    for name, expected in read_sums(folder).items():
        try:
            with open(os.path.join(folder, name), "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            yield f"{name}: a closed log that cannot be read: {error.strerror}"
            continue
        if found != expected:
            yield f"{name}: changed since it was closed (its SHA-256 is {found}, and {LOG_CHECKSUMS} says {expected})"


class LogChecksums:
    """The file in `folder`, as the one server that writes there has it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def seal(self, name: str, checksum: str) -> None:
        """A log is closed, and will not change any more."""
        self._change({name: checksum})

    def unseal(self, name: str) -> None:
        """A log that was closed gets some more after all."""
        if name in read_sums(self._folder):
            self._change({name: ""})

    def _change(self, changes: dict[str, str]) -> None:
        with self._lock:
            try:
                sums = {**read_sums(self._folder), **changes}
                text = sums_text({name: checksum for name, checksum in sums.items() if checksum})
                replace_file(os.path.join(self._folder, LOG_CHECKSUMS), text)
            except OSError as error:
                log.warning("%s is not written, the next start tries it again: %s", LOG_CHECKSUMS, error)

    def catch_up(self, current: str) -> None:
        """Sum up, beside everything else, all logs but `current` that have no sum yet."""
        missing = [name for name in logs_in(self._folder) if name != current and name not in read_sums(self._folder)]
        if missing:
            self._thread = threading.Thread(target=self._sum_up, args=(missing,), name="log sums", daemon=True)
            self._thread.start()

    def stop(self, limit_s: float = 1.0) -> None:
        """Leave what is not summed up yet to the next start."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(limit_s)

    def _sum_up(self, names: Sequence[str]) -> None:
        for name in names:
            checksum = self._read(name)
            if checksum:
                self.seal(name, checksum)

    def _read(self, name: str) -> str:
        """The SHA-256 of a log; empty when it cannot be told, or there is no time for it."""
        total = hashlib.sha256()
        try:
            with open(os.path.join(self._folder, name), "rb", buffering=0) as file:
                while block := file.read(_BLOCK_BYTES):
                    if self._stopping.is_set():
                        return ""
                    total.update(block)
        except OSError as error:
            log.warning("%s: %s", name, error.strerror)
            return ""
        return total.hexdigest()
