"""Storage of uploaded files, and the list of Pis that may upload: `files/` and `pi_ids.json` in the data folder.

May be used by any thread. `_changed` guards the set of Pis whose file is being moved into place; it is held for lookups
and changes, never during a disk call: one file of each Pi at a time, others wait.
Errors: SettingsError for a list of ids that cannot be read; OSError when the disk takes no more: then nothing of the
file is left.

A file is written under a temporary name while it is hashed, synced, renamed, and its directory is synced; only then is
it acknowledged. A crash leaves at most a temporary file, which the next start removes. `PI_NAME` is the file;
`PI_STEM.sha256` holds a line `CHECKSUM PI_NAME` for each file of that stem, in the format of `sha256sum -c`. The same
file again changes nothing; a different one of the same name gets the next free name, `PI_STEM_2.csv`, so neither is
lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pigeonpost.core.data_folder import FILES, PI_IDS
from pigeonpost.core.errors import DiskError
from pigeonpost.core.faults import Faults
from pigeonpost.core.files import give_to_owner, make_folder, replace_file, write_all
from pigeonpost.core.json_file import JsonFile
from protocol import HEX_16

STORED_NAME = re.compile(r"([0-9a-f]{16})_([A-Za-z0-9._-]{1,120})").fullmatch
_COMING, _SUMS = ".coming-", ".sha256"
_STEM_LETTERS = 100
_AHEAD_BYTES = 4 << 20
_SPARE_BYTES = 64 << 20  # of the disk, or a twentieth of a small one, that files leave to what is more important


class StoredFile(NamedTuple):
    """A stored file. `checksum` is empty where its .sha256 is missing."""

    name: str
    pi_id: str
    size: int
    time_ms: int
    checksum: str


# --------------------------------------------------------------------------------------------------------- who may


class Pi(NamedTuple):
    """A Pi that may upload files: the node of its readings, and the e-mail address of its owner."""

    node: str
    email: str = ""


def node_of_file(data: str, path: str) -> str:
    """Return the node whose Pi uploaded a file to the data folder `data`; empty where that is unknown."""
    named = STORED_NAME(os.path.basename(path))
    pi = PiIds(data).find(named[1]) if named else None
    return pi.node if pi else ""


class PiIds:
    """The accepted ids; the file may be read by its owner only, and is read again when it has changed."""

    def __init__(self, data: str, faults: Faults | None = None) -> None:
        """faults: of a running server, see JsonFile."""
        self._file = JsonFile(os.path.join(data, PI_IDS), "a list of Pi ids", _pi, faults)

    def find(self, pi_id: str) -> Pi | None:
        """Return the Pi of an id (16 hex digits, lower case)."""
        return self.all().get(pi_id)

    def all(self) -> Mapping[str, Pi]:
        """Return every Pi by its id."""
        return self._file.now()

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Pi]]:
        """Change the list, which is written at the end of the block; other processes wait meanwhile."""
        make_folder(os.path.dirname(self._file.path) or ".")
        path = f"{self._file.path}.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            give_to_owner(path)
            fcntl.flock(lock, fcntl.LOCK_EX)
            ids = dict(self.all())
            yield ids
            content = {key: {"node": pi.node, "email": pi.email} for key, pi in sorted(ids.items())}
            self._file.write(content)
        finally:
            os.close(lock)


def _pi(entry: Any) -> Pi:
    return Pi(str(entry["node"]), str(entry.get("email", "")))


def read_pi_id(text: str) -> str:
    """Return a Pi id in its normal form; empty when `text` is none."""
    small = text.strip().lower()
    return small if HEX_16(small) else ""


# ----------------------------------------------------------------------------------------------------------- names


def plain_name(said: str, types: tuple[str, ...]) -> str:
    """Return the name under which a file is stored, without its id in front; empty where its type is not in `types`.

    Of a path the last part; letters, digits and `. _ -` as they are, letters with marks without them, blanks as `_`,
    the rest left out. The id before it makes sure that it is no hidden file and no device (`CON`). Where nothing is
    left the stem is empty, and the file is named after its content.
    """
    last = said.replace("\\", "/").rpartition("/")[2].strip()
    ascii_ = unicodedata.normalize("NFKD", last[:1000]).encode("ascii", "ignore").decode()
    kept = _OTHERS("", "_".join(ascii_.split()))
    stem, ext = os.path.splitext(kept)
    if not ext and stem.startswith("."):  # nothing but a type is left: ".csv"
        stem, ext = "", stem
    if ext.lower() not in types:
        return ""
    return stem.lstrip(".")[:_STEM_LETTERS] + ext


_OTHERS = re.compile(r"[^A-Za-z0-9._-]").sub


def _sums_name(name: str) -> str:
    return os.path.splitext(name)[0] + _SUMS


# ----------------------------------------------------------------------------------------------------- what is there


def listing(data: str, most: int) -> tuple[list[StoredFile], int]:
    """Return the newest `most` files, the newest first, and the number of all."""
    found = []
    try:
        with os.scandir(os.path.join(data, FILES)) as entries:
            for entry in entries:
                named = STORED_NAME(entry.name)
                if named and not entry.name.endswith(_SUMS) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append(
                        StoredFile(entry.name, named[1], status.st_size, status.st_mtime_ns // 1_000_000, "")
                    )  # fmt: skip
    except FileNotFoundError:
        return [], 0
    found.sort(key=lambda one: (one.time_ms, one.name), reverse=True)
    return [one._replace(checksum=checksum_of(data, one.name)) for one in found[:most]], len(found)


def open_stored(data: str, name: str) -> int:
    """Open a stored file for reading. Returns its descriptor; OSError when there is none, or the name is not ours."""
    if not STORED_NAME(name) or name.endswith(_SUMS):
        raise FileNotFoundError(f"{name!r:.80} is no name of a stored file")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # the last: a pipe of that name holds up nobody
    fd = os.open(os.path.join(data, FILES, name), flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(f"{name} is no file")
    return fd


def checksum_of(data: str, name: str) -> str:
    """Return the checksum of a file in the .sha256 beside it; empty where that has none."""
    return _read_sums(os.path.join(data, FILES, _sums_name(name))).get(name, "")


def _read_sums(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file.read(1 << 16).splitlines()]
    except OSError:
        return {}
    return {line[1]: line[0] for line in lines if len(line) == 2}


def sum_of(fd: int) -> str:
    """Return the SHA-256 of an open file, from its beginning; hex."""
    with open(fd, "rb", closefd=False, buffering=0) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------- what comes


class IncomingFile:
    """A file that is being received. Ends with FileStore.keep, or with `abandon`, which leaves nothing of it."""

    def __init__(self, folder: str, has_room: Callable[[int], bool]) -> None:
        """has_room: returns True if the disk has that many bytes more; called now and then. Raises OSError."""
        self._has_room = has_room
        self.path = os.path.join(folder, _COMING + secrets.token_hex(12))
        self.size = 0
        self._begun = 0  # so much of it the kernel was told to write
        self._sum = hashlib.sha256()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        give_to_owner(self.path)

    def write(self, data: bytes) -> None:
        """Write more content. Raises OSError when the disk does not take it."""
        self._sum.update(data)
        write_all(self._fd, data)
        self.size += len(data)
        if self.size - self._begun >= _AHEAD_BYTES:
            # Has the kernel begin to write what is new, and waits for nothing: the sync at the end then finds little
            # left to do (measured: 450 MB/s instead of 350), and what others need in the cache is not pushed out.
            os.posix_fadvise(self._fd, self._begun, self.size - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self.size
            if not self._has_room(0):  # others come at the same time
                raise _no_room()

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of what was written so far; hex."""
        return self._sum.hexdigest()

    def sync(self) -> None:
        """Make all of it durable. Raises OSError."""
        os.fsync(self._fd)

    def abandon(self) -> None:
        """Close the file, and delete it unless it was moved into place."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def _no_room() -> OSError:
    return OSError(errno.ENOSPC, "the disk has no room to spare for it")


class FileStore:
    """The folder of stored files, of which one server is the writer."""

    def __init__(self, data: str) -> None:
        self._data = data
        self._folder = os.path.join(data, FILES)
        self._changed = threading.Condition()
        self._busy: set[str] = set()  # Pis with a file that is being moved into place

    def start(self) -> None:
        """Make the folder, delete what a crash has left, and write the missing .sha256 files. Raises DiskError."""
        try:
            make_folder(self._folder)
            names = set(os.listdir(self._folder))
            for name in names:
                if name.startswith(_COMING) or name.endswith(f"{_SUMS}.new"):
                    os.unlink(os.path.join(self._folder, name))
        except OSError as error:
            raise DiskError(f"{self._folder}: {error.strerror}; files cannot be received") from error
        for name in names:
            if STORED_NAME(name) and not name.endswith((_SUMS, ".new")) and _sums_name(name) not in names:
                with contextlib.suppress(OSError):  # one that does not read, or a full disk: files come all the same
                    self._known_sum(name)

    def has_room(self, length: int) -> bool:
        """Return True if the disk has `length` bytes and a reserve for samples, which go before files."""
        disk = os.statvfs(self._folder)
        spare = min(_SPARE_BYTES, disk.f_blocks * disk.f_frsize // 20)
        return disk.f_bavail * disk.f_frsize >= length + spare

    def begin(self, length: int) -> IncomingFile:
        """Begin to receive a file of about `length` bytes. Raises OSError."""
        if not self.has_room(length):
            raise _no_room()
        return IncomingFile(self._folder, self.has_room)

    def keep(self, coming: IncomingFile, pi_id: str, name: str) -> tuple[str, bool]:
        """Store a received file. Returns its name, and True if it is new. Raises OSError: then it is not stored.

        name  as `plain_name` gave it
        """
        try:
            coming.sync()
            if name.startswith("."):
                name = f"file-{coming.checksum[:16]}{name}"
            with self._alone(pi_id):
                stored, is_new = self._place(coming, f"{pi_id}_{name}")
                if is_new:
                    self._put(coming, stored)
            return stored, is_new
        finally:
            coming.abandon()

    @contextlib.contextmanager
    def _alone(self, pi_id: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: pi_id not in self._busy)
            self._busy.add(pi_id)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(pi_id)
                self._changed.notify_all()

    def _place(self, coming: IncomingFile, wanted: str) -> tuple[str, bool]:
        """Return the name of the file, the wanted one or the first free `_2`, `_3` ..., and True if it is new."""
        stem, ext = os.path.splitext(wanted)
        name, number = wanted, 1
        while True:
            try:
                size = os.lstat(os.path.join(self._folder, name)).st_size
            except FileNotFoundError:
                return name, True
            if size == coming.size and self._known_sum(name) == coming.checksum:
                return name, False
            number += 1
            name = f"{stem}_{number}{ext}"

    def _known_sum(self, name: str) -> str:
        """Return the checksum of a stored file; it is calculated where a crash came before its .sha256 was written."""
        known = checksum_of(self._data, name)
        if not known:
            fd = open_stored(self._data, name)
            try:
                known = sum_of(fd)
            finally:
                os.close(fd)
            self._write_sum(name, known)
        return known

    def _put(self, coming: IncomingFile, name: str) -> None:
        """Move the file into place before anything else: a file under its final name is complete."""
        path = os.path.join(self._folder, name)
        os.rename(coming.path, path)
        try:
            self._write_sum(name, coming.checksum)
        except OSError:
            os.unlink(path)
            self._drop_sum(name)
            raise

    def _write_sum(self, name: str, checksum: str) -> None:
        """Write the .sha256 of a stem, with the lines of its other files. Syncs the folder, and so the file's name."""
        path = os.path.join(self._folder, _sums_name(name))
        others = {one: sum for one, sum in _read_sums(path).items() if os.path.exists(os.path.join(self._folder, one))}
        replace_file(path, "\n".join(f"{sum} {one}" for one, sum in {**others, name: checksum}.items()).encode())

    def _drop_sum(self, name: str) -> None:
        """Delete the .sha256 where it has no other file; an obsolete line does no harm."""
        path = os.path.join(self._folder, _sums_name(name))
        for leftover in (f"{path}.new", *([path] if set(_read_sums(path)) <= {name} else [])):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)
