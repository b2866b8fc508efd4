"""Tally of the lines of CSV logs, to compare two sets of lines regardless of their order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import BinaryIO

from pigeonpost.storage.csv.format import HEADER

_BLOCK_BYTES = 1 << 20


class LineTally:
    """Number of lines, the sum of their hashes, and the number of gaps. Headers and gaps do not count as lines.

    Args:
        is_stable: True for hashes that are the same in each run of the program; they take longer.

    Attributes:
        lines: Number of lines.
        sum: Sum of their hashes.
        gaps: Number of gaps.
    """

    def __init__(self, is_stable: bool = False) -> None:
        self.lines = self.sum = self.gaps = 0
        self._hash: Callable[[bytes], int] = _stable_hash if is_stable else hash

    def add(self, rows: bytes) -> None:
        """Count the lines of `rows`.

        A gap without a line end counts as a normal line, which matches nothing in the store.
        """
        lines = rows.splitlines(keepends=True)
        if HEADER.encode() in rows or b",gap," in rows:
            gaps = [line for line in lines if line.split(b",", 3)[2:3] == [b"gap"] and b"samples " in line]
            gaps = [line for line in gaps if line.endswith(b"\n")]
            self.gaps += len(gaps)
            left_out = {HEADER.encode(), *gaps}
            lines = [line for line in lines if line not in left_out]
        self.lines += len(lines)
        self.sum += sum(map(self._hash, lines))

    def add_file(self, log: BinaryIO, size: int) -> None:
        """Count the lines in the first `size` bytes of the open file `log`."""
        rest = b""
        while block := log.read(min(_BLOCK_BYTES, size)):
            size -= len(block)
            whole, end, after = (rest + block).rpartition(b"\n")
            self.add(whole + end)
            rest = after
        if rest:
            self.add(rest)


def _stable_hash(line: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "big")
