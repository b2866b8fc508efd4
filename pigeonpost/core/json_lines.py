"""A file of JSON values, one per line, to which new values are appended. It keeps the newest ones.

Only one thread at a time may use it. Errors: OSError of the disk.

A crash can leave an incomplete last line. It is skipped, and removed before the next value is appended. Lines that
cannot be read are skipped too: this file is for records whose loss is tolerable, such as events.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from pigeonpost.core.files import give_to_owner, replace_file, sync_folder, write_all


class JsonLines:
    """File of JSON values.

    Args:
        path: Path of the file. It is created with the first value.
        most: Number of values that are kept. The file has at most twice as many lines.
    """

    def __init__(self, path: str, most: int) -> None:
        self._path, self._most = path, most
        self._lines = 0
        self._is_whole = True  # False if the file must be written again before a line is appended

    def read(self) -> list[Any]:
        """Return the newest values, oldest first.

        Raises:
            OSError: The file exists, but cannot be read.
        """
        try:
            with open(self._path, "rb") as file:
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):  # torn by a crash, or damaged
                self._is_whole = False
        self._is_whole = self._is_whole and all(line.endswith(b"\n") for line in lines)
        self._lines = len(lines)
        return found[-self._most :]

    def append(self, values: Sequence[Any], every: Sequence[Any]) -> None:
        """Append `values` durably.

        Args:
            values: The new values.
            every: All values to keep, including the new ones. From time to time the whole file is replaced by them.

        Raises:
            OSError: The disk is full or faulty. The next call writes the whole file again.
        """
        if not self._is_whole or self._lines + len(values) > 2 * self._most:
            self.replace(every)
            return
        is_new = not os.path.exists(self._path)
        self._is_whole = False
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            write_all(fd, _text(values))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if is_new:
            give_to_owner(self._path)
            sync_folder(self._path)
        self._lines += len(values)
        self._is_whole = True

    def replace(self, every: Sequence[Any]) -> None:
        """Write the whole file again with the newest values of `every`, atomically and durably.

        Raises:
            OSError: The disk is full or faulty.
        """
        kept = every[-self._most :]
        replace_file(self._path, _text(kept))
        self._lines, self._is_whole = len(kept), True


def _text(values: Sequence[Any]) -> bytes:
    # A text can contain the name of a file that is not UTF-8.
    return "".join([json.dumps(value, ensure_ascii=False) + "\n" for value in values]).encode(errors="replace")
