"""A JSON file of named entries that other programs may change; it is read again when it has changed.

May be used by any thread: two threads that see a change at the same time both read the same content. `_writing`
serializes writes of this process, and is held until the disk has confirmed one.
Errors: DamagedFile for a file that cannot be read as what it should be, or that is missing beside its copy, at every
access until it is repaired; DiskError from `write`.

Of each good content there is a copy, `PATH.bak`. Of a file that is there it is written before the file itself: so what
was revoked does not come back with it. A damaged file is never taken for an empty one.
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
    """The entries of one file, by name; none while there is neither the file nor its copy."""

    def __init__(
        self,
        path: str,
        what: str,
        read: Callable[[Any], V],
        faults: Faults | None = None,
        is_mended: bool = False,
    ) -> None:
        """
        what       the file should be, for an error: "a list of tokens"
        read       makes an entry of its JSON; may raise ValueError, TypeError, KeyError or AttributeError for what is
                   none
        faults     where a server records that the file is damaged; it then goes on with the entries that it has read
                   last, and copies what others have changed. None: each access to a damaged file fails
        is_mended  a damaged file is replaced by its copy. Not for secrets: somebody may have taken one out of the file
                   by hand, which only its copy still has
        """
        self.path = path
        self._name = os.path.basename(path)
        self._what, self._read, self._faults, self._is_mended = what, read, faults, is_mended
        self._writing = threading.Lock()
        self._found: dict[str, V] = {}
        self._seen: object = None  # of the file that was read last; None: none was
        if faults is not None:
            faults.add_check(self._look)

    def now(self) -> dict[str, V]:
        """Return the present entries; the same object as long as the file has not changed."""
        try:
            status = os.stat(self.path)
            seen = status.st_ino, status.st_mtime_ns, status.st_size
            if not stat.S_ISREG(status.st_mode):  # of a pipe or a device there may be no end
                return self._damaged("is no regular file")
            if status.st_size > _MOST_BYTES:
                return self._damaged(f"is damaged ({status.st_size:,} bytes, and at most {_MOST_BYTES:,} are read)")
            if seen != self._seen:
                content = _read_bytes(self.path)
                self._found = self._decoded(content)
                self._seen = seen
                if self._faults is not None:
                    self._copy(content)
        except DamagedFile:  # it is a ValueError too
            raise
        except FileNotFoundError:
            if os.path.exists(f"{self.path}{COPY}"):
                return self._damaged("is missing")
            self._found, self._seen = {}, None
        except PermissionError as error:
            return self._damaged(f"cannot be read ({error.strerror})", self._own_remedy())
        except OSError as error:
            # Of too many open files, and the like, nothing in the file is wrong.
            remedy = "the system's fault, see its log" if error.errno in SHORTAGE else ""
            return self._damaged(f"cannot be read ({error.strerror})", remedy)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            return self._damaged(f"is damaged ({self._why(error)})")
        self._record("")
        return self._found

    def _decoded(self, content: bytes) -> dict[str, V]:
        return {name: self._read(entry) for name, entry in json.loads(content).items()}

    def write(self, content: Any) -> None:
        """Replace the copy and then the file, or make both; only their owner may read them. Raises DiskError."""
        data = json.dumps(content, indent=1).encode() + b"\n"
        paths = [f"{self.path}{COPY}", self.path]
        with self._writing:
            if not os.path.exists(self.path):  # a copy alone means that the file is missing
                paths.reverse()
            for path in paths:
                replace_file(path, data)

    def _look(self) -> None:
        """Find out whether the file is damaged, before somebody needs it."""
        try:
            self.now()
        except DamagedFile:
            pass  # it is recorded

    def _copy(self, content: bytes) -> None:
        """Make the copy equal to what others have written."""
        try:
            with self._writing:
                if not os.path.exists(f"{self.path}{COPY}") or _read_bytes(f"{self.path}{COPY}") != content:
                    # Whoever writes the file makes its copy at the same time, from another process.
                    replace_file(f"{self.path}{COPY}", content, unfinished=".copy.new")
        except OSError as error:  # a full disk: the file itself is well
            log.warning("%s%s cannot be renewed: %s", self.path, COPY, error)

    def _why(self, error: Exception) -> str:
        """Say what is wrong with the content, of which nothing is repeated: it is secret."""
        try:
            size = os.path.getsize(self.path)
        except OSError:
            size = -1
        if size == 0:
            return "0 bytes"
        if isinstance(error, json.JSONDecodeError):
            return f"no JSON from line {error.lineno}, column {error.colno} on"
        return f"not {self._what}: {error}"

    def _damaged(self, why: str, remedy: str = "") -> dict[str, V]:
        """Return the entries that were read last. Raises DamagedFile where there are none, or without `faults`.

        remedy  empty: another content
        """
        if not remedy and self._is_mended and self._mend(why):
            return self._found
        text = f"{why}; {remedy or self._other_content()}"
        self._record(text)
        if self._faults is None or self._seen is None:
            raise DamagedFile(f"{self.path} {text}")
        return self._found

    def _other_content(self) -> str:
        if not os.path.exists(f"{self.path}{COPY}"):
            return "there is no copy of it: put it back from a backup, or delete it and set up again what was in it"
        if self._is_mended:
            return f"its copy cannot take its place: put it back from a backup, or delete it and {self.path}{COPY}"
        folder = os.path.dirname(self.path) or "."
        return f"`python3 control.py --data {folder} restore {self.path}{COPY}` puts the last good copy back"

    def _own_remedy(self) -> str:
        if self._faults is None and os.geteuid() != 0:  # a command of control.py
            return "it is another user's, as of the installed service: put sudo before the command"
        user = os.geteuid()
        return f"it takes a file that user {user} may read: sudo chown {user} {self.path}; sudo chmod 600 {self.path}"

    def _mend(self, why: str) -> bool:
        """Replace the file by its copy, and read that. Returns True if there is a good one, and the disk took it."""
        try:
            content = _read_bytes(f"{self.path}{COPY}")
            self._found = self._decoded(content)
            replace_file(self.path, content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False  # the damage is reported
        log.error("%s %s; it was replaced by its copy, %s%s", self.path, why, self.path, COPY)
        return True

    def _record(self, text: str) -> None:
        if self._faults is not None:
            self._faults.set(self._name, text)


@contextlib.contextmanager
def changes_locked(folder: str) -> Iterator[None]:
    """Keep other threads and programs from changing tokens or users in `folder` meanwhile (flock). Raises DiskError."""
    try:
        make_folder(folder)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DiskError(f"{folder}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)  # which unlocks it


def _read_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
