"""SHA-256 checksums of closed CSV logs, in logs/SHA256SUMS, in the format of `sha256sum -c`.

A temporary thread reads the logs that have no checksum because of a crash or an older version. A start does not wait
for it, because reading a long log takes time. `_lock` guards the file, and is held while the file is replaced.

Errors: none that stop the server. A failure is logged, and the next start adds the missing checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence

from pigeonpost.core.data_folder import LOG_CHECKSUMS
from pigeonpost.core.files import replace_file
from pigeonpost.storage.csv.format import is_log_name

log = logging.getLogger(__name__)

_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\0\n]+)\n").fullmatch
_BLOCK_BYTES = 1 << 20


def logs_in(folder: str) -> list[str]:
    """Return the names of the CSV logs in `folder`, sorted."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".csv"))
    except FileNotFoundError:
        return []


def log_sizes(folder: str) -> dict[str, int]:
    """Return the size in bytes of each log of the server in `folder`, by its name, without links to missing files."""
    found = {}
    for name in filter(is_log_name, logs_in(folder)):
        with contextlib.suppress(FileNotFoundError):
            found[name] = os.path.getsize(os.path.join(folder, name))
    return found


def read_sums(folder: str) -> dict[str, str]:
    """Return the SHA-256 (hex) of each closed log in `folder`, by the name of the log. Invalid lines are skipped."""
    try:
        with open(os.path.join(folder, LOG_CHECKSUMS), encoding="utf-8", errors="replace") as file:
            found = [_LINE(line) for line in file]
    except FileNotFoundError:
        return {}
    return {line[2]: line[1] for line in found if line}


def sums_text(sums: dict[str, str]) -> bytes:
    """Return the content of the checksum file for `sums`, which maps names of logs to their SHA-256 (hex)."""
    return "".join([f"{checksum}  {name}\n" for name, checksum in sorted(sums.items())]).encode()


def faults(folder: str) -> Iterator[str]:
    """Yield a line for each closed log in `folder` that differs from its checksum, or that cannot be read."""
    for name, expected in read_sums(folder).items():
        try:
            with open(os.path.join(folder, name), "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            yield f"{name}: this closed log cannot be read: {error.strerror}"
            continue
        if found != expected:
            yield f"{name}: changed since it was closed (its SHA-256 is {found}, but {LOG_CHECKSUMS} has {expected})"


def check_pieces(folder: str, control: str) -> Iterator[str]:
    """Compare the closed logs with their checksums, one block at a time.

    A missing log is not a fault here, because a user may have deleted it on purpose. Only `verify` reports it.

    Args:
        folder: Folder of the logs.
        control: Command line of control.py for this data folder, for the remedy.

    Yields:
        After each block, a fault with its remedy, or an empty string.
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
                f"{name} has changed since it was closed; {_remedy(control)}. If you changed it, remove its line from"
                f" {LOG_CHECKSUMS} in its folder, and restart the server"
            )


def check_open_log(digest: Callable[[], tuple[str, int, str]], control: str) -> Iterator[str]:
    """Compare the log of this run, which is still open, with the data that were written to it, one block at a time.

    Args:
        digest: Function that returns the path of the log, its length in bytes, and the SHA-256 of these bytes.
        control: Command line of control.py for this data folder, for the remedy.

    Yields:
        After each block, a fault with its remedy, or an empty string.
    """
    for is_last in (False, True):  # a second pass, because the log may have been cut and completed during the first one
        path, size, expected = digest()
        total, left = hashlib.sha256(), size
        try:
            with open(path, "rb", buffering=0) as file:
                while left and (block := file.read(min(_BLOCK_BYTES, left))):
                    total.update(block)
                    left -= len(block)
                    yield ""
        except OSError:
            return  # the next flush reports a missing log
        if not size or total.hexdigest() == expected:
            return
        if is_last:
            yield f"{os.path.basename(path)} differs from what was written to it; {_remedy(control)}"


def _remedy(control: str) -> str:
    return f"its rows are in the database: `{control} export --out FILE` writes them again"


class LogChecksums:
    """Checksum file in `folder`. Only one server writes it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def seal(self, name: str, checksum: str) -> None:
        """Add `checksum`, the SHA-256 (hex) of the closed log `name`."""
        self._change({name: checksum})

    def unseal(self, name: str) -> None:
        """Remove the checksum of the closed log `name`, because more rows will be written to it."""
        if name in read_sums(self._folder):
            self._change({name: ""})

    def _change(self, changes: dict[str, str]) -> None:
        with self._lock:
            try:
                sums = {**read_sums(self._folder), **changes}
                text = sums_text({name: checksum for name, checksum in sums.items() if checksum})
                replace_file(os.path.join(self._folder, LOG_CHECKSUMS), text)
            except OSError as error:
                log.warning("%s cannot be written, and the next start tries again: %s", LOG_CHECKSUMS, error)

    def catch_up(self, current: str) -> None:
        """Start a thread that calculates the missing checksums of all logs except `current`.

        Other CSV files in the folder belong to the user, who may change them.
        """
        known = read_sums(self._folder)
        logs = filter(is_log_name, logs_in(self._folder))
        missing = [name for name in logs if name not in known and name != current]
        if missing:
            self._thread = threading.Thread(target=self._add_missing, args=(missing,), name="log sums", daemon=True)
            self._thread.start()

    def stop(self, limit_s: float = 1.0) -> None:
        """Stop the thread, and wait up to `limit_s` seconds for its end.

        The next start calculates the remaining checksums.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(limit_s)

    def _add_missing(self, names: Sequence[str]) -> None:
        for name in names:
            checksum = self._read(name)
            if checksum:
                self.seal(name, checksum)

    def _read(self, name: str) -> str:
        """Return the SHA-256 (hex) of a log, or an empty string if the log cannot be read or the program stops."""
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
