"""A JSON file of names and what they stand for, which other programs may change: read again when it has changed.

Runs on: node (with a token) and server.  Reached from: gate, files.  Hands on to: base/disk, to replace it.
Threads: any; two that find it changed at once read it both, and the same.
Errors: SettingsError for a file that is there and does not read: as long as it is so, every look at it fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pigeonpost.core.errors import SettingsError
from pigeonpost.core.files import replace_file

V = TypeVar("V")


class JsonFile(Generic[V]):
    """The entries of one file, by name; none while there is no file."""

    def __init__(self, path: str, what: str, read: Callable[[Any], V]) -> None:
        """
        what  the file should be, for an error: "a list of tokens"
        read  makes an entry of its JSON; may raise ValueError, TypeError, KeyError or AttributeError for what is none
        """
        self.path = path
        self._what, self._read = what, read
        self._found: dict[str, V] = {}
        self._seen: object = None

    def now(self) -> dict[str, V]:
        """As the file has them now; the same object as long as it has not changed."""
        try:
            status = os.stat(self.path)
            seen = status.st_ino, status.st_mtime_ns
            if seen != self._seen:
                with open(self.path, encoding="utf-8") as file:
                    self._found = {name: self._read(entry) for name, entry in json.load(file).items()}
                self._seen = seen
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SettingsError(f"{self.path} does not read as {self._what}: {error!r}") from error
        return self._found

    def write(self, content: Any) -> None:
        """Replace the file, for its owner's eyes only. Raises DiskError."""
        replace_file(self.path, json.dumps(content, indent=1).encode() + b"\n", mode=0o600)
