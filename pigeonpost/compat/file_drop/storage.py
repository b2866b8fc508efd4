"""Storage of uploaded files (`files/` in the data folder), and list of the Pis that may upload files (`pi_ids.json`).

All functions may be called from any thread. Only one file per Pi is moved to its final name at a time: `_changed`
guards the set of Pis with such a file. It is held for lookups and changes, but never during a disk call.
Errors: SettingsError for a list of ids that cannot be read; OSError when a file cannot be written. After an OSError no
part of the file remains.

A file is stored as follows: write it under a temporary name while hashing, fsync, rename, fsync the directory, then
acknowledge. A crash leaves at most a temporary file, which the next start deletes.

The name of a stored file is `PI_NAME`, where PI is the id of the Pi. `PI_STEM.sha256` contains a line
`CHECKSUM PI_NAME` for each file with that stem, in the format of `sha256sum -c`. If the same file is uploaded again,
nothing changes. A different file with the same name is stored under the next free name, such as `PI_STEM_2.csv`, so
that neither file is lost.
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
_INCOMING, _SUMS = ".coming-", ".sha256"
_STEM_LETTERS = 100
_AHEAD_BYTES = 4 << 20
_RESERVE_BYTES = 64 << 20  # free space reserved for the samples; on a small disk, a twentieth of its size


class StoredFile(NamedTuple):
    """Uploaded file in the folder `files/`.

    Attributes:
        name: Name of the file in the folder, including the Pi id.
        pi_id: Id of the Pi.
        size: Length in bytes.
        time_ms: Time of the upload in milliseconds since 1970 (UTC).
        checksum: SHA-256 as hex digits, or an empty string if the .sha256 file is missing.
    """

    name: str
    pi_id: str
    size: int
    time_ms: int
    checksum: str


# --------------------------------------------------------------------------------------------------- accepted Pis


class Pi(NamedTuple):
    """Pi that may upload files.

    Attributes:
        node: Name of the node that its readings belong to.
        email: E-mail address of its owner, or an empty string.
    """

    node: str
    email: str = ""


def node_of_file(data: str, path: str) -> str:
    """Return the node of the Pi that uploaded a file, or an empty string if it is unknown.

    Args:
        data: Path of the data folder.
        path: Path of the file.
    """
    named = STORED_NAME(os.path.basename(path))
    pi = PiIds(data).find(named[1]) if named else None
    return pi.node if pi else ""


class PiIds:
    """The accepted Pi ids. Only the owner of the file can read it. It is read again when it has changed.

    Args:
        data: Path of the data folder.
        faults: Faults of a running server, for JsonFile; None in control.py.
    """

    def __init__(self, data: str, faults: Faults | None = None) -> None:
        self._file = JsonFile(os.path.join(data, PI_IDS), "a list of Pi ids", _pi, faults)

    def find(self, pi_id: str) -> Pi | None:
        """Return the Pi with the id `pi_id` (16 hex digits, lower case), or None if it is not accepted."""
        return self.all().get(pi_id)

    def all(self) -> Mapping[str, Pi]:
        """Return all accepted Pis by their ids."""
        return self._file.now()

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Pi]]:
        """Lock the list for other processes, yield it for changes, and write it at the end of the `with` block."""
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
    """Return the Pi id in `text` in lower case, or an empty string if it is invalid."""
    pi_id = text.strip().lower()
    return pi_id if HEX_16(pi_id) else ""


# ----------------------------------------------------------------------------------------------------------- names


def plain_name(name: str, types: tuple[str, ...]) -> str:
    """Return the name under which an uploaded file is stored, without the Pi id in front.

    The last part of a path is used. Letters, digits and `. _ -` remain, diacritics are removed, blanks become `_`, and
    other characters are omitted. The id in front ensures that the file is not a hidden file or a device (`CON`). If no
    character remains, the stem is empty, and the file is named after its content.

    Args:
        name: Name of the file as received.
        types: Accepted file name extensions in lower case, such as `.csv`.

    Returns:
        The name, or an empty string if its extension is not accepted.
    """
    last = name.replace("\\", "/").rpartition("/")[2].strip()
    ascii_name = unicodedata.normalize("NFKD", last[:1000]).encode("ascii", "ignore").decode()
    plain = _OTHERS("", "_".join(ascii_name.split()))
    stem, ext = os.path.splitext(plain)
    if not ext and stem.startswith("."):  # only the extension remains: ".csv"
        stem, ext = "", stem
    if ext.lower() not in types:
        return ""
    return stem.lstrip(".")[:_STEM_LETTERS] + ext


_OTHERS = re.compile(r"[^A-Za-z0-9._-]").sub


def _sums_name(name: str) -> str:
    return os.path.splitext(name)[0] + _SUMS


# --------------------------------------------------------------------------------------------------- stored files


def listing(data: str, most: int) -> tuple[list[StoredFile], int]:
    """Return the newest `most` files in the data folder `data`, newest first, and the number of all files."""
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
    found.sort(key=lambda file: (file.time_ms, file.name), reverse=True)
    return [file._replace(checksum=checksum_of(data, file.name)) for file in found[:most]], len(found)


def open_stored(data: str, name: str) -> int:
    """Open the stored file `name` in the data folder `data` for reading, and return its descriptor.

    Raises:
        FileNotFoundError: There is no such file, or the name is not valid for a stored file.
        OSError: The file cannot be opened.
    """
    if not STORED_NAME(name) or name.endswith(_SUMS):
        raise FileNotFoundError(f"{name!r:.80} is not a valid name of a stored file")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: opening a pipe must not block
    fd = os.open(os.path.join(data, FILES, name), flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(f"{name} is not a regular file")
    return fd


def checksum_of(data: str, name: str) -> str:
    """Return the checksum of the file `name` in the data folder `data`, as written in its .sha256 file.

    Return an empty string if the .sha256 file does not contain it.
    """
    return _read_sums(os.path.join(data, FILES, _sums_name(name))).get(name, "")


def _read_sums(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file.read(1 << 16).splitlines()]
    except OSError:
        return {}
    return {line[1]: line[0] for line in lines if len(line) == 2}


def sum_of(fd: int) -> str:
    """Return the SHA-256 of the complete file with the descriptor `fd`, as hex digits."""
    with open(fd, "rb", closefd=False, buffering=0) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------- received files


class IncomingFile:
    """File that is being received. It must be passed to FileStore.keep, or deleted with `abandon`.

    Args:
        folder: Folder of the stored files.
        has_room: Function that returns True if the disk has enough space for a number of bytes. It is called
            repeatedly during the upload.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(self, folder: str, has_room: Callable[[int], bool]) -> None:
        self._has_room = has_room
        self.path = os.path.join(folder, _INCOMING + secrets.token_hex(12))
        self.size = 0
        self._begun = 0  # number of bytes that the kernel has begun to write to the disk
        self._sum = hashlib.sha256()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        give_to_owner(self.path)

    def write(self, data: bytes) -> None:
        """Write `data` to the file. Raise OSError if the disk is full or fails."""
        self._sum.update(data)
        write_all(self._fd, data)
        self.size += len(data)
        if self.size - self._begun >= _AHEAD_BYTES:
            # The kernel begins to write the new data, without waiting. The sync at the end then takes less time
            # (measured: 450 MB/s instead of 350), and the file does not displace other data in the page cache.
            os.posix_fadvise(self._fd, self._begun, self.size - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self.size
            if not self._has_room(0):  # other files may arrive at the same time
                raise _no_room()

    @property
    def checksum(self) -> str:
        """The SHA-256 of the data that has been written so far, as hex digits."""
        return self._sum.hexdigest()

    def sync(self) -> None:
        """Make the file durable. Raise OSError if that fails."""
        os.fsync(self._fd)

    def abandon(self) -> None:
        """Close the file. Delete it unless it has been moved to its final name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def _no_room() -> OSError:
    return OSError(errno.ENOSPC, "not enough free disk space")


class FileStore:
    """Folder of stored files, which only one server writes.

    Args:
        data: Path of the data folder.
    """

    def __init__(self, data: str) -> None:
        self._data = data
        self._folder = os.path.join(data, FILES)
        self._changed = threading.Condition()
        self._busy: set[str] = set()  # Pis with a file that is being moved to its final name

    def start(self) -> None:
        """Create the folder, delete the temporary files of a crash, and write the missing .sha256 files.

        Raises:
            DiskError: The folder cannot be created or read.
        """
        try:
            make_folder(self._folder)
            names = set(os.listdir(self._folder))
            for name in names:
                if name.startswith(_INCOMING) or name.endswith(f"{_SUMS}.new"):
                    os.unlink(os.path.join(self._folder, name))
        except OSError as error:
            raise DiskError(f"{self._folder}: {error.strerror}; files cannot be received") from error
        for name in names:
            if STORED_NAME(name) and not name.endswith((_SUMS, ".new")) and _sums_name(name) not in names:
                with contextlib.suppress(OSError):  # an unreadable file or a full disk must not prevent other uploads
                    self._checksum(name)

    def has_room(self, length: int) -> bool:
        """Return True if the disk has `length` free bytes plus a reserve for samples, which take priority."""
        disk = os.statvfs(self._folder)
        reserve_bytes = min(_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 20)
        return disk.f_bavail * disk.f_frsize >= length + reserve_bytes

    def begin(self, length: int) -> IncomingFile:
        """Return a new file for receiving about `length` bytes. Raise OSError if the disk is full or fails."""
        if not self.has_room(length):
            raise _no_room()
        return IncomingFile(self._folder, self.has_room)

    def keep(self, incoming: IncomingFile, pi_id: str, name: str) -> tuple[str, bool]:
        """Store a received file.

        Args:
            incoming: The received file.
            pi_id: Id of the Pi.
            name: Name, as returned by `plain_name`.

        Returns:
            The name of the stored file, and True if it is new or False if the same file was stored before.

        Raises:
            OSError: The file could not be stored.
        """
        try:
            incoming.sync()
            if name.startswith("."):
                name = f"file-{incoming.checksum[:16]}{name}"
            with self._exclusive(pi_id):
                stored, is_new = self._place(incoming, f"{pi_id}_{name}")
                if is_new:
                    self._put(incoming, stored)
            return stored, is_new
        finally:
            incoming.abandon()

    @contextlib.contextmanager
    def _exclusive(self, pi_id: str) -> Iterator[None]:
        """Wait until no other file of the Pi is being moved to its final name, and keep others from being moved."""
        with self._changed:
            self._changed.wait_for(lambda: pi_id not in self._busy)
            self._busy.add(pi_id)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(pi_id)
                self._changed.notify_all()

    def _place(self, incoming: IncomingFile, preferred: str) -> tuple[str, bool]:
        """Return the name for the file and True if it is new. It is `preferred`, or the first free `_2`, `_3` ..."""
        stem, ext = os.path.splitext(preferred)
        name, number = preferred, 1
        while True:
            try:
                size = os.lstat(os.path.join(self._folder, name)).st_size
            except FileNotFoundError:
                return name, True
            if size == incoming.size and self._checksum(name) == incoming.checksum:
                return name, False
            number += 1
            name = f"{stem}_{number}{ext}"

    def _checksum(self, name: str) -> str:
        """Return the checksum of a stored file. Calculate it if a crash prevented the writing of the .sha256 file."""
        checksum = checksum_of(self._data, name)
        if not checksum:
            fd = open_stored(self._data, name)
            try:
                checksum = sum_of(fd)
            finally:
                os.close(fd)
            self._write_sum(name, checksum)
        return checksum

    def _put(self, incoming: IncomingFile, name: str) -> None:
        """Move the file to its final name, then write its checksum. A file under its final name is always complete."""
        path = os.path.join(self._folder, name)
        os.rename(incoming.path, path)
        try:
            self._write_sum(name, incoming.checksum)
        except OSError:
            os.unlink(path)
            self._drop_sum(name)
            raise

    def _write_sum(self, name: str, checksum: str) -> None:
        """Write the .sha256 file with the lines of all files of the stem. This also makes the renamed file durable."""
        path = os.path.join(self._folder, _sums_name(name))
        others = {
            other: sum for other, sum in _read_sums(path).items() if os.path.exists(os.path.join(self._folder, other))
        }
        replace_file(path, "\n".join(f"{sum} {other}" for other, sum in {**others, name: checksum}.items()).encode())

    def _drop_sum(self, name: str) -> None:
        """Delete the .sha256 file if it contains no other file. An obsolete line does no harm."""
        path = os.path.join(self._folder, _sums_name(name))
        for leftover in (f"{path}.new", *([path] if set(_read_sums(path)) <= {name} else [])):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)
