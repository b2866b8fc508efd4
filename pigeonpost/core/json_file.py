"""A JSON file of named entries that other programs may change. It is read again after each change.

Any thread may use it; two threads that notice a change at the same time both read the same content. `_writing`
serialises the writes of this process, and is held until the disk has confirmed a write.

Errors: DamagedFile if the file has unexpected content, or if it is missing although its copy exists. It is raised at
every access until the file is repaired. DiskError from `write`.

Each valid content is also stored in a copy, `PATH.bak`. If the file exists, the copy is written first, so that the copy
cannot bring back entries that were removed from the file. A damaged file is never treated as an empty one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from pigeonpost.core.data_folder import COPY
from pigeonpost.core.errors import DamagedFile, DiskError
from pigeonpost.core.faults import Faults
from pigeonpost.core.files import make_folder, replace_file
from pigeonpost.core.shortage import SHORTAGE

log = logging.getLogger(__name__)

_MOST_BYTES = 64 << 20

V = TypeVar("V")


class JsonFile(Generic[V]):
    """Entries of one file, by name. If neither the file nor its copy exists, there are no entries.

    Args:
        path: Path of the file.
        what: Expected content, for errors: "a list of tokens".
        read: Converts the JSON value of an entry; may raise ValueError, TypeError, KeyError or AttributeError.
        faults: Register in which a server records damage of the file. The server then continues with the entries that
            it read last. It also updates the copy after another program has changed the file. If it is None, each
            access to a damaged file raises DamagedFile.
        auto_restore: True to replace a damaged file by its copy. Must be False for secrets: an operator may have
            removed one from the file by hand, and the copy would still contain it.

    Attributes:
        path: Path of the file.
    """

    def __init__(
        self,
        path: str,
        what: str,
        read: Callable[[Any], V],
        faults: Faults | None = None,
        auto_restore: bool = False,
    ) -> None:
        self.path = path
        self._name = os.path.basename(path)
        self._what, self._read, self._faults, self._auto_restore = what, read, faults, auto_restore
        self._writing = threading.Lock()
        self._found: dict[str, V] = {}
        self._seen: object = None  # inode, time and size of the file when it was last read; None before that
        if faults is not None:
            faults.add_check(self._check)

    def now(self) -> dict[str, V]:
        """Return the current entries: the same object as before, unless the file has changed.

        Raises:
            DamagedFile: The file is damaged or cannot be read, and there are no earlier entries to continue with.
        """
        try:
            status = os.stat(self.path)
            seen = status.st_ino, status.st_mtime_ns, status.st_size
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device may be endless
                return self._damaged("is not a regular file")
            if status.st_size > _MOST_BYTES:
                return self._damaged(
                    f"is damaged (it has {status.st_size:,} bytes; the limit is {_MOST_BYTES:,} bytes)"
                )
            if seen != self._seen:
                content = _read_bytes(self.path)
                self._found = self._decoded(content)
                self._seen = seen
                if self._faults is not None:
                    self._copy(content)
        except DamagedFile:  # is also a ValueError, which is handled below
            raise
        except FileNotFoundError:
            if os.path.exists(f"{self.path}{COPY}"):
                return self._damaged("is missing")
            self._found, self._seen = {}, None
        except PermissionError as error:
            return self._damaged(f"cannot be read ({error.strerror})", self._access_remedy())
        except OSError as error:
            # The file itself may be valid, for example if too many files are open.
            remedy = "the cause is the system, not the file: see its log" if error.errno in SHORTAGE else ""
            return self._damaged(f"cannot be read ({error.strerror})", remedy)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            return self._damaged(f"is damaged ({self._why(error)})")
        self._record("")
        return self._found

    def _decoded(self, content: bytes) -> dict[str, V]:
        return {name: self._read(entry) for name, entry in json.loads(content).items()}

    def write(self, content: Any) -> None:
        """Replace the content of the copy and then of the file, both readable by their owner only.

        Args:
            content: The new content, which must be convertible to JSON.

        Raises:
            DiskError: A file cannot be written.
        """
        data = json.dumps(content, indent=1).encode() + b"\n"
        paths = [f"{self.path}{COPY}", self.path]
        with self._writing:
            if not os.path.exists(self.path):  # write the file first, because a copy without a file counts as damage
                paths.reverse()
            for path in paths:
                replace_file(path, data)

    def _check(self) -> None:
        """Check if the file is damaged, before an entry is needed."""
        try:
            self.now()
        except DamagedFile:
            pass  # the fault is recorded

    def _copy(self, content: bytes) -> None:
        """Update the copy after another program has changed the file."""
        try:
            with self._writing:
                if not os.path.exists(f"{self.path}{COPY}") or _read_bytes(f"{self.path}{COPY}") != content:
                    # A different suffix, because the process that writes the file may write the copy at the same time.
                    replace_file(f"{self.path}{COPY}", content, unfinished=".copy.new")
        except OSError as error:  # for example a full disk; the file itself is valid
            log.warning("%s%s cannot be updated: %s", self.path, COPY, error)

    def _why(self, error: Exception) -> str:
        """Return the reason why the content is invalid. The content is secret, so no part of it is repeated."""
        try:
            size = os.path.getsize(self.path)
        except OSError:
            size = -1
        if size == 0:
            return "0 bytes"
        if isinstance(error, json.JSONDecodeError):
            return f"invalid JSON at line {error.lineno}, column {error.colno}"
        return f"not {self._what}: {error}"

    def _damaged(self, why: str, remedy: str = "") -> dict[str, V]:
        """Record damage, and return the entries that were read last.

        Raise DamagedFile if there are none, or if there is no register of faults. `remedy` is an empty string if the
        content must be restored.
        """
        if not remedy and self._auto_restore and self._restore_copy(why):
            return self._found
        text = f"{why}; {remedy or self._restore_remedy()}"
        self._record(text)
        if self._faults is None or self._seen is None:
            raise DamagedFile(f"{self.path} {text}")
        return self._found

    def _restore_remedy(self) -> str:
        if not os.path.exists(f"{self.path}{COPY}"):
            return "it has no copy: restore it from a backup, or delete it and set up its entries again"
        if self._auto_restore:
            return f"its copy cannot be used: restore it from a backup, or delete it and {self.path}{COPY}"
        folder = os.path.dirname(self.path) or "."
        return f"`python3 control.py --data {folder} restore {self.path}{COPY}` restores the last good copy"

    def _access_remedy(self) -> str:
        if self._faults is None and os.geteuid() != 0:  # a command of control.py
            return "it belongs to another user, such as that of the installed service: run the command with sudo"
        user = os.geteuid()
        return f"user {user} must be able to read it: sudo chown {user} {self.path}; sudo chmod 600 {self.path}"

    def _restore_copy(self, why: str) -> bool:
        """Replace the file by its copy, and read the copy. Return True on success."""
        try:
            content = _read_bytes(f"{self.path}{COPY}")
            self._found = self._decoded(content)
            replace_file(self.path, content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False  # the caller reports the damage
        log.error("%s %s; it was replaced by its copy, %s%s", self.path, why, self.path, COPY)
        return True

    def _record(self, text: str) -> None:
        if self._faults is not None:
            self._faults.set(self._name, text)


@contextlib.contextmanager
def changes_locked(folder: str) -> Iterator[None]:
    """Prevent other threads and programs from changing tokens or users in `folder` during the block (flock).

    Raises:
        DiskError: The folder cannot be opened.
    """
    try:
        make_folder(folder)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DiskError(f"{folder}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)  # also releases the lock


def _read_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
