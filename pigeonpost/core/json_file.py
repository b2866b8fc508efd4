"""A JSON file of named entries that other programs may change; it is read again when it has changed.

May be used by any thread without a lock: two threads that see a change at the same time both read the same content.
Errors: SettingsError for a file that exists and cannot be read as what it should be, at every access until it is
repaired; DiskError from `write`.
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
        """Return the present entries; the same object as long as the file has not changed."""
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
        """Replace the file, which only its owner may read. Raises DiskError."""
        replace_file(self.path, json.dumps(content, indent=1).encode() + b"\n", mode=0o600)
