"""Times of the readings that clients have sent with an id of their own, so that a repeat gets the same time.

A line of the file is `<digest of the id> <ms since 1970>`. Lines are appended and synced before the readings are
committed. So after a crash, the database decides whether a reading with a known id and time is stored.

Any thread may use it. `_lock` guards the ids and the file, and is held while lines are written.
Errors: DiskError if ids cannot be written. Invalid lines are skipped: the readings of a torn line were not committed.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable

from pigeonpost.core.errors import DiskError
from pigeonpost.core.files import replace_file, write_all

MOST_IDS = 20_000  # ids that are remembered, about 4 MiB of memory; the oldest ones are forgotten
_DIGEST_BYTES = 16
_LINE = re.compile(rb"([0-9a-f]{32}) (-?[0-9]{1,15})\n")


class ReadingIds:
    """The remembered ids of one server, in a file.

    Args:
        path: Path of the file. It is read at the first use.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._times: dict[bytes, int] | None = None  # by digest, the oldest first; None before the file is read
        self._lines = 2 * MOST_IDS  # lines of the file; with this number, the next `add` replaces the file

    def time_of(self, name: str) -> int | None:
        """Return the time of the reading with the id `name` in ms since 1970 (UTC), or None for an unknown id.

        Raises:
            DiskError: The file cannot be read.
        """
        with self._lock:
            return self._known().get(_digest(name))

    def add(self, ids: Iterable[tuple[str, int]]) -> None:
        """Remember ids durably.

        Args:
            ids: Ids with the times of their readings, in ms since 1970 (UTC).

        Raises:
            DiskError: They cannot be written. None of them is remembered.
        """
        with self._lock:
            times = self._known()
            new = {_digest(name): time_ms for name, time_ms in ids}
            new = {digest: time_ms for digest, time_ms in new.items() if digest not in times}
            if not new:
                return
            if self._lines + len(new) > 2 * MOST_IDS:
                kept = dict(list({**times, **new}.items())[-MOST_IDS:])
                replace_file(self._path, _text(kept))
                self._times, self._lines = kept, len(kept)
                return
            self._append(_text(new))
            times.update(new)
            self._lines += len(new)
            for digest in list(times)[: len(times) - MOST_IDS] if len(times) > MOST_IDS else ():
                del times[digest]

    def _known(self) -> dict[bytes, int]:
        if self._times is None:
            try:
                with open(self._path, "rb") as file:
                    found = _LINE.findall(file.read())
            except FileNotFoundError:
                found = []
            except OSError as error:
                raise DiskError(f"{self._path} cannot be read: {error.strerror or error}") from None
            self._times = {bytes.fromhex(digest.decode()): int(time_ms) for digest, time_ms in found[-MOST_IDS:]}
        return self._times

    def _append(self, text: bytes) -> None:
        lines, self._lines = self._lines, 2 * MOST_IDS  # after an error, the next call replaces the file
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            try:
                write_all(fd, text)
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise DiskError(f"{self._path} cannot be written: {error.strerror or error}") from None
        self._lines = lines


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()


def _text(times: dict[bytes, int]) -> bytes:
    return "".join(f"{digest.hex()} {time_ms}\n" for digest, time_ms in times.items()).encode()
