"""The write-ahead log (WAL) beside the SQLite file: what was committed last, and is not in that file yet.

SQLite reads a WAL up to its first damaged place, and says nothing of what comes after it. It also goes on with a file
that was removed, and commits into it. Source of the format: sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import struct

from pigeonpost.storage.sqlite.integrity import Damage

HEAD_BYTES, FRAME_HEAD_BYTES = 32, 24

_MAGIC = {b"\x37\x7f\x06\x82": "<6I", b"\x37\x7f\x06\x83": ">6I"}  # and how its checksum takes numbers


class OpenFiles:
    """The database and, of who writes to it, its WAL, as they were when they were opened."""

    def __init__(self, path: str, with_wal: bool) -> None:
        self._inodes = {path: os.stat(path).st_ino}
        self._wal = f"{path}-wal" if with_wal else ""  # SQLite makes it when it is first needed

    def replaced(self) -> str:
        """Return the file that is no longer there, or is another one; empty: all are there."""
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
    """Return the head of the WAL of the database at `path`; empty: there is none yet."""
    try:
        with open(f"{path}-wal", "rb", buffering=0) as wal:  # SQLite holds no locks on it, which closing it would end
            head = wal.read(HEAD_BYTES) or b""
    except FileNotFoundError:
        return b""
    return head if len(head) == HEAD_BYTES else b""


def is_whole(head: bytes) -> bool:
    """Return True if the head's checksum fits it, or there is none. SQLite ignores all that follows a broken one."""
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
    """Put what is in a WAL with a damaged head into the file, outside of a transaction. Returns the damage, if any.

    This connection still knows what is in it, the next start would not. When all is saved, SQLite writes a new head.
    """
    try:
        if is_whole(head_of(path)):
            return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # SQLite needs no descriptor to go on; the next commit looks
            return None
        raise
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    return Damage("the head of its WAL; its content was saved", False)


def lost_commits(db: sqlite3.Connection, path: str) -> Damage | None:
    """Return the damage where transactions in the WAL follow a damaged place, at which SQLite stops reading; or None.

    A crash can leave one, which was being written; of two the first was synced. Behind a damaged head all were. Called
    before the first transaction; the WAL stays as it is.
    """
    try:
        (_, frames, _) = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.OperationalError:
        return None  # a full or broken disk: the first commit tells
    head = head_of(path)
    if not head:
        return None
    (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    frame_bytes = FRAME_HEAD_BYTES + page_bytes
    count = 0
    with open(f"{path}-wal", "rb") as wal:
        wal.seek(HEAD_BYTES)
        salts = head[16:24] if is_whole(head) else wal.read(FRAME_HEAD_BYTES)[8:16]
        at = HEAD_BYTES + max(0, frames) * frame_bytes
        while True:
            wal.seek(at)
            frame = wal.read(FRAME_HEAD_BYTES)
            if len(frame) < FRAME_HEAD_BYTES:
                break
            count += frame[8:16] == salts and any(frame[4:8])  # the last of a transaction has the file's size
            at += frame_bytes
    if count <= is_whole(head):
        return None
    return Damage(
        f"its WAL, whose last {count} transactions are lost; nodes send again what their outboxes still hold", False
    )
