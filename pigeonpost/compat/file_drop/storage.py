"""The files that Pis have dropped here, and which Pis may: `files/` and `pi_ids.json` in the data folder.

Runs on: server, control.  Reached from: links/drop (keeps files), pages/files (shows them), commands/drop (ids).
Hands on to: the disk.
Threads: any. `_changed` guards which Pi's files are being put in their place and the list of checksums; it is held to
  look and to change them, never during a disk call: one file a Pi is put in its place at a time, and others wait.
Errors: SettingsError for a list of ids that does not read; OSError of a disk that takes nothing more, and then nothing
  is left of the file.

How a file comes to stay. It is written under a name of its own beside the others, and added up as it comes; when it is
whole and right it is synced, gets its name, and then the folder is synced: only then is it answered for. A crash leaves
at most a file under such a name, which the next start clears away. `PI_NAME` is the file; `PI_STEM.sha256` holds a line
`CHECKSUM PI_NAME` for each file of that stem, as `sha256sum -c` reads it. The same file again changes nothing; another
one of the same name gets the next free name, `PI_STEM_2.csv`, so neither is lost.
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
from pigeonpost.core.files import replace_file
from pigeonpost.core.json_file import JsonFile
from protocol import HEX_16

STORED_NAME = re.compile(r"([0-9a-f]{16})_([A-Za-z0-9._-]{1,120})").fullmatch
_COMING, _SUMS = ".coming-", ".sha256"
_STEM_LETTERS = 100
_AHEAD_BYTES = 4 << 20
_SPARE_BYTES = 64 << 20  # of the disk, or a twentieth of a small one, that files leave to what is more important


class StoredFile(NamedTuple):
    """One file. `checksum` is empty where its .sha256 is gone."""

    name: str
    pi_id: str
    size: int
    time_ms: int
    checksum: str


# --------------------------------------------------------------------------------------------------------- who may


class Pi(NamedTuple):
    """A Pi that may send files: the node whose readings they are, and whom to write to about it."""

    node: str
    email: str = ""


def node_of_file(data: str, path: str) -> str:
    """The node whose Pi dropped a file into the data folder `data`; empty where that cannot be told."""
    named = STORED_NAME(os.path.basename(path))
    pi = PiIds(data).find(named[1]) if named else None
    return pi.node if pi else ""


class PiIds:
    """The accepted ids, for the owner's eyes only; the file is read again when it has changed."""

    def __init__(self, data: str) -> None:
        self._file = JsonFile(os.path.join(data, PI_IDS), "a list of Pi ids", _pi)

    def find(self, pi_id: str) -> Pi | None:
        """The Pi of that id (16 hex digits, small letters)."""
        return self.all().get(pi_id)

    def all(self) -> Mapping[str, Pi]:
        """Every Pi by its id."""
        return self._file.now()

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Pi]]:
        """The list to be changed; written at the end. Nobody else changes it meanwhile, in whatever process."""
        os.makedirs(os.path.dirname(self._file.path) or ".", exist_ok=True)
        lock = os.open(f"{self._file.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
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
    """A Pi id as it is kept; empty when `text` is none."""
    small = text.strip().lower()
    return small if HEX_16(small) else ""


# ----------------------------------------------------------------------------------------------------------- names


def plain_name(said: str, types: tuple[str, ...]) -> str:
    """The name under which a file of that name is kept, its id before it; empty where its type is none of `types`.

    Of a path the last part; letters, digits and `. _ -` as they are, letters with marks without them, blanks as `_`,
    the rest left out. The id before it makes sure that it is no hidden file and no device (`CON`). Where nothing is
    left the stem is empty, and whoever keeps the file names it after its content.
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
    """The newest `most` files, the newest first, and how many there are."""
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
    """A descriptor of the file of that name, to read; OSError when there is none, or the name is not one of ours."""
    if not STORED_NAME(name) or name.endswith(_SUMS):
        raise FileNotFoundError(f"{name!r:.80} is no name of a stored file")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # the last: a pipe of that name holds up nobody
    fd = os.open(os.path.join(data, FILES, name), flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(f"{name} is no file")
    return fd


def checksum_of(data: str, name: str) -> str:
    """What the .sha256 beside the file says of it; empty where that says nothing."""
    return _read_sums(os.path.join(data, FILES, _sums_name(name))).get(name, "")


def _read_sums(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file.read(1 << 16).splitlines()]
    except OSError:
        return {}
    return {line[1]: line[0] for line in lines if len(line) == 2}


def sum_of(fd: int) -> str:
    """The SHA-256 of an open file, from its beginning; hex."""
    with open(fd, "rb", closefd=False, buffering=0) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------- what comes


class IncomingFile:
    """A file on its way. Ends with `keep` of Received, or with `abandon`; then nothing of it is left."""

    def __init__(self, folder: str, has_room: Callable[[int], bool]) -> None:
        """has_room: whether the disk has so many bytes more, asked now and then as it comes. Raises OSError."""
        self._has_room = has_room
        self.path = os.path.join(folder, _COMING + secrets.token_hex(12))
        self.size = 0
        self._begun = 0  # so much of it the kernel was told to write
        self._sum = hashlib.sha256()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, data: bytes) -> None:
        """Some more of it. Raises OSError when the disk does not take it."""
        self._sum.update(data)
        left = memoryview(data)
        while left:  # a disk that fills up takes a part, and says so only when asked again (write(2))
            written = os.write(self._fd, left)
            left = left[written:]
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
        """Of what has come so far, hex."""
        return self._sum.hexdigest()

    def sync(self) -> None:
        """Have all of it on the disk. Raises OSError."""
        os.fsync(self._fd)

    def abandon(self) -> None:
        """Leave nothing of it; when it has its place already: only close it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def _no_room() -> OSError:
    return OSError(errno.ENOSPC, "the disk has no room to spare for it")


class FileStore:
    """The folder of the files, as the one server that fills it has it."""

    def __init__(self, data: str) -> None:
        self._data = data
        self._folder = os.path.join(data, FILES)
        self._changed = threading.Condition()
        self._busy: set[str] = set()  # Pis of whom a file is being put in its place

    def start(self) -> None:
        """Make the folder, clear away what a crash has left, and write the .sha256 before which it came. DiskError."""
        try:
            os.makedirs(self._folder, exist_ok=True)
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
        """Whether the disk has `length` bytes, and some to spare for the samples, which go before files."""
        disk = os.statvfs(self._folder)
        spare = min(_SPARE_BYTES, disk.f_blocks * disk.f_frsize // 20)
        return disk.f_bavail * disk.f_frsize >= length + spare

    def begin(self, length: int) -> IncomingFile:
        """A file of about `length` bytes begins to come. Raises OSError."""
        if not self.has_room(length):
            raise _no_room()
        return IncomingFile(self._folder, self.has_room)

    def keep(self, coming: IncomingFile, pi_id: str, name: str) -> tuple[str, bool]:
        """Keep a file that has come whole; its name here, and whether it is new. Raises OSError; then it is not kept.

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
        """The name that the file gets, or has already: the wanted one, or the first `_2`, `_3` ... that is free."""
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
        """The checksum of a file that is there; where a crash came before its .sha256 was written, that is made up."""
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
        """The file first: what has its name is whole, whatever comes next."""
        path = os.path.join(self._folder, name)
        os.rename(coming.path, path)
        try:
            self._write_sum(name, coming.checksum)
        except OSError:
            os.unlink(path)
            self._drop_sum(name)
            raise

    def _write_sum(self, name: str, checksum: str) -> None:
        """With the lines of the others of its stem that are there. Syncs the folder, and so the file's name too."""
        path = os.path.join(self._folder, _sums_name(name))
        others = {one: sum for one, sum in _read_sums(path).items() if os.path.exists(os.path.join(self._folder, one))}
        replace_file(path, "\n".join(f"{sum} {one}" for one, sum in {**others, name: checksum}.items()).encode())

    def _drop_sum(self, name: str) -> None:
        """Leave no .sha256 where it speaks of no other file; a line too many does no harm."""
        path = os.path.join(self._folder, _sums_name(name))
        for leftover in (f"{path}.new", *([path] if set(_read_sums(path)) <= {name} else [])):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)
