"""SHA-256 checksums of closed CSV logs, in logs/SHA256SUMS, in the format of `sha256sum -c`.

A temporary thread reads logs that a crash (or an older version) left without a checksum: a long log takes a while, and
no start waits for that. `_lock` guards the file; it is held while the file is replaced.
Errors: none that stop the server: a failure is logged, and the next start adds the missing checksum.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence

from pigeonpost.core.data_folder import LOG_CHECKSUMS
from pigeonpost.core.files import replace_file

log = logging.getLogger(__name__)

_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\0\n]+)\n").fullmatch
_BLOCK_BYTES = 1 << 20


def logs_in(folder: str) -> list[str]:
    """Return the names of the CSV logs in `folder`, sorted."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".csv"))
    except FileNotFoundError:
        return []


def read_sums(folder: str) -> dict[str, str]:
    """Return name and SHA-256 (hex) of each closed log. Invalid lines are skipped."""
    try:
        with open(os.path.join(folder, LOG_CHECKSUMS), encoding="utf-8", errors="replace") as file:
            found = [_LINE(line) for line in file]
    except FileNotFoundError:
        return {}
    return {line[2]: line[1] for line in found if line}


def sums_text(sums: dict[str, str]) -> bytes:
    """Return the content of the checksum file."""
    return "".join([f"{checksum}  {name}\n" for name, checksum in sorted(sums.items())]).encode()


def faults(folder: str) -> Iterator[str]:
    """Compare the closed logs with their checksums. Yields a line for each that has changed, or is missing."""
    for name, expected in read_sums(folder).items():
        try:
            with open(os.path.join(folder, name), "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            yield f"{name}: a closed log that cannot be read: {error.strerror}"
            continue
        if found != expected:
            yield f"{name}: changed since it was closed (its SHA-256 is {found}, and {LOG_CHECKSUMS} says {expected})"


def check_pieces(folder: str, control: str) -> Iterator[str]:
    """As `faults`, a block at a time. Yields after each: a fault with its remedy, or "". A log that somebody deleted is
    told by `verify` alone: that was meant so.

    control: how control.py is called for this data folder
    """
    for name, expected in read_sums(folder).items():
        total = hashlib.sha256()
        try:
            with open(os.path.join(folder, name), "rb", buffering=0) as file:
                while block := file.read(_BLOCK_BYTES):
                    total.update(block)
                    yield ""
        except FileNotFoundError:
            continue
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror}; {_remedy(control)}"
            continue
        if total.hexdigest() != expected and read_sums(folder).get(name) == expected:
            yield (
                f"{name} is not what it was when it was closed; {_remedy(control)}. If you changed it, remove its line"
                f" from {LOG_CHECKSUMS} in its folder, and restart the server"
            )


def check_open_log(digest: Callable[[], tuple[str, int, str]], control: str) -> Iterator[str]:
    """Compare the log that is being written with what was written, a block at a time. Yields as `check_pieces`.

    digest: returns its path, its length, and the SHA-256 of that
    """
    for is_last in (False, True):  # between the first two looks it may have been cut back and completed
        path, size, expected = digest()
        total, left = hashlib.sha256(), size
        try:
            with open(path, "rb", buffering=0) as file:
                while left and (block := file.read(min(_BLOCK_BYTES, left))):
                    total.update(block)
                    left -= len(block)
                    yield ""
        except OSError:
            return  # the next flush tells of a log that is not there
        if not size or total.hexdigest() == expected:
            return
        if is_last:
            yield f"{os.path.basename(path)} is not what was written to it; {_remedy(control)}"


def _remedy(control: str) -> str:
    return f"its rows are in the database: `{control} export --out FILE` writes them again"


class LogChecksums:
    """The checksum file in `folder`, which one server writes."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def seal(self, name: str, checksum: str) -> None:
        """Add the checksum of a log, which is closed."""
        self._change({name: checksum})

    def unseal(self, name: str) -> None:
        """Remove the checksum of a closed log, to which more will be written."""
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
        """Start to calculate the missing checksums of all logs but `current`, in a thread."""
        missing = [name for name in logs_in(self._folder) if name != current and name not in read_sums(self._folder)]
        if missing:
            self._thread = threading.Thread(target=self._sum_up, args=(missing,), name="log sums", daemon=True)
            self._thread.start()

    def stop(self, limit_s: float = 1.0) -> None:
        """End the thread; the next start calculates the rest."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(limit_s)

    def _sum_up(self, names: Sequence[str]) -> None:
        for name in names:
            checksum = self._read(name)
            if checksum:
                self.seal(name, checksum)

    def _read(self, name: str) -> str:
        """Return the SHA-256 of a log; empty when it cannot be read, or the program stops."""
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
