"""Checks of the write-ahead log (WAL) of the SQLite file: the last commits, which are not in that file yet.

SQLite reads a WAL up to its first damaged frame, and reports nothing about the frames after it. It also continues to
use a file that was removed, and commits into it. These functions detect both cases. The format of the WAL is described
in sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import struct

from pigeonpost.core.format import counted
from pigeonpost.storage.sqlite.integrity import Damage

HEAD_BYTES, FRAME_HEAD_BYTES = 32, 24

# Magic number, and the byte order of the numbers in the checksum.
_MAGIC = {b"\x37\x7f\x06\x82": "<6I", b"\x37\x7f\x06\x83": ">6I"}


class OpenFiles:
    """Inode numbers of the open database file and its WAL, to detect that a file was removed or replaced.

    Args:
        path: Path of the database file.
        with_wal: True to check the WAL too, for a connection that writes.
    """

    def __init__(self, path: str, with_wal: bool) -> None:
        self._inodes = {path: os.stat(path).st_ino}
        self._wal = f"{path}-wal" if with_wal else ""  # SQLite creates the WAL when it first needs it

    def replaced(self) -> str:
        """Return the path of a file that was removed or replaced, or an empty string if there is none."""
        if self._wal and self._wal not in self._inodes and os.path.exists(self._wal):
            self._inodes[self._wal] = os.stat(self._wal).st_ino
        for path, inode in self._inodes.items():
            try:
                if os.stat(path).st_ino != inode:
                    return path
            except OSError:
                return path
        return ""


def head_of(path: str) -> bytes:
    """Return the header of the WAL of the database at `path`, or empty bytes if there is none yet."""
    try:
        # Safe to close: SQLite has no POSIX locks on this file, which closing would release.
        with open(f"{path}-wal", "rb", buffering=0) as wal:
            head = wal.read(HEAD_BYTES) or b""
    except FileNotFoundError:
        return b""
    return head if len(head) == HEAD_BYTES else b""


def is_valid_header(head: bytes) -> bool:
    """Return True if `head`, the header of a WAL, is empty or has a correct checksum.

    If the checksum is incorrect, SQLite ignores the complete WAL.
    """
    if not head:
        return True
    if head[:4] not in _MAGIC:
        return False
    numbers = struct.unpack(_MAGIC[head[:4]], head[:24])
    first = second = 0
    for one, other in zip(numbers[::2], numbers[1::2]):
        first = (first + one + second) & 0xFFFF_FFFF
        second = (second + other + first) & 0xFFFF_FFFF
    return head[24:] == struct.pack(">2I", first, second)


def save(db: sqlite3.Connection, path: str) -> Damage | None:
    """Copy the content of a WAL with a damaged header into the file, outside of a transaction.

    The open connection can still read the WAL, but the next start would ignore it. After the copy SQLite writes a new
    header.

    Args:
        db: The writer's connection.
        path: Path of the database file.

    Returns:
        The damage, or None if the header is valid.
    """
    try:
        if is_valid_header(head_of(path)):
            return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # SQLite needs no new descriptor; the next commit checks again
            return None
        raise
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    return Damage("the header of its WAL; the content of the WAL was saved", False)


def lost_commits(db: sqlite3.Connection, path: str) -> Damage | None:
    """Return the damage if there are transactions in the WAL after a damaged frame, at which SQLite stops reading.

    A crash can leave one such transaction, which was being written. If there are two, the first one had been synced.
    After a damaged header all of them had been synced. This must be called before the first transaction, and does not
    change the WAL.

    Args:
        db: The writer's connection.
        path: Path of the database file.

    Returns:
        The damage, or None if there are no lost transactions.
    """
    try:
        (_, frames, _) = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.OperationalError:
        return None  # a full or faulty disk: the first commit reports the error
    head = head_of(path)
    if not head:
        return None
    (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    frame_bytes = FRAME_HEAD_BYTES + page_bytes
    count = 0
    with open(f"{path}-wal", "rb") as wal:
        wal.seek(HEAD_BYTES)
        salts = head[16:24] if is_valid_header(head) else wal.read(FRAME_HEAD_BYTES)[8:16]
        at = HEAD_BYTES + max(0, frames) * frame_bytes
        while True:
            wal.seek(at)
            frame = wal.read(FRAME_HEAD_BYTES)
            if len(frame) < FRAME_HEAD_BYTES:
                break
            # Only the last frame of a transaction contains the size of the file.
            count += frame[8:16] == salts and any(frame[4:8])
            at += frame_bytes
    if count <= is_valid_header(head):
        return None
    return Damage(
        f"its WAL, whose last {counted(count, 'transaction')} cannot be read; the nodes send again the samples that are"
        " still in their outboxes",
        False,
    )
