"""Rows of a CSV file in blocks, with the numbers of their lines."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

from pigeonpost.importing.cells import Fault, RowError
from pigeonpost.importing.dialect import Head
from pigeonpost.importing.text import TextLines

BLOCK_ROWS = 4096
STEP_ROWS = 16  # rows that are read before the size of a block is checked again
_BLOCK_SIZE = 1 << 20  # maximum number of characters and cells in a block


class Block(NamedTuple):
    """Consecutive rows.

    Attributes:
        lines: Number of the last line of each row. A quoted cell may contain several lines.
        rows: Cells of each row.
        faults: Damaged lines before the end of the block, which have no row.
        may_lack_node: True if a row of the log may name no node.
        may_have_zeros: True if a cell may contain a zero byte.
    """

    lines: Sequence[int]
    rows: list[list[str]]
    faults: Sequence[Fault] = ()
    may_lack_node: bool = False
    may_have_zeros: bool = False

    def where(self, index: int) -> str:
        """Return the position of the row at `index`: "line 5"."""
        return f"line {self.lines[index]}"


def blocks(text: TextLines, head: Head, skip_bad: bool = False) -> Iterator[Block]:
    """Yield the rows of a CSV file in blocks. Before an error is raised, all valid rows are yielded.

    Args:
        text: Lines of the file.
        head: Structure of the file.
        skip_bad: True to continue after a row that is not valid CSV, which becomes a fault of its block.

    Raises:
        RowError: A line is too long, or a row is not valid CSV. The message begins with its line.
    """
    lines = islice(iter(text), head.skipped, None)
    reader = csv.reader(lines, delimiter=head.separator, strict=True, skipinitialspace=head.separator == " ")
    start, rows, size = head.skipped, list[list[str]](), 0
    faults: list[Fault] = []
    is_end = False
    while not is_end:
        before = len(rows)
        error: Exception | None = None
        try:
            rows.extend(islice(reader, STEP_ROWS))  # on an error, the rows before it have been added
            is_end = len(rows) == before
        except (csv.Error, RowError) as caught:
            error = caught
        new = rows[before:]
        size += sum(map(len, new)) + sum(map(len, chain.from_iterable(new)))
        if error and skip_bad and isinstance(error, csv.Error):
            faults.append(Fault(f"line {head.skipped + reader.line_num}", str(error)))
        line = (_numbers(start, rows)[-1] if rows else start) + 1 if error else 0  # of a row that is not valid
        if error or is_end or len(rows) >= BLOCK_ROWS or size >= _BLOCK_SIZE:
            faults += text.faults
            text.faults = []
            yield Block(_numbers(start, rows), rows, faults, may_have_zeros=text.has_zeros)
            start, rows, size, faults = head.skipped + reader.line_num, [], 0, []
        if error and not (skip_bad and isinstance(error, csv.Error)):
            raise RowError(f"line {line}: {error}") from None


def _numbers(line: int, rows: list[list[str]]) -> Sequence[int]:
    """Return the number of the last line of each row. `line` is the number of the line before the first row."""
    if "\n" not in "".join(chain.from_iterable(rows)):
        return range(line + 1, line + 1 + len(rows))
    numbers = []
    for cells in rows:
        line += 1 + "".join(cells).count("\n")
        numbers.append(line)
    return numbers
