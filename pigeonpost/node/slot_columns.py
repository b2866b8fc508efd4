"""Columns of samples, as the link carries them, made straight from the slots of the outbox.

The body of a slot has the text of each value, which is taken over as it is: nothing is decoded.
"""

from __future__ import annotations

import functools
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.link.sample_text import columns_text, steps_text
from pigeonpost.node.ring_records import Slot

if TYPE_CHECKING:
    from typing import Any

# More than the rest of the text: the keys, the first sequence number, and the absolute time and uptime.
_FRAME_BYTES = 200
_PLACE_BYTES = len('{"4095":}')  # that an error's text needs beside what the body has of it


class ColumnsWriter:
    """One object of columns, to which slots are added as long as they are alike and there is room.

    clock    their state, as the link has it
    last_ms  when the last of them was taken
    is_full  there is no room for the one that comes next
    """

    def __init__(self, seq: int, clock: str, room_bytes: int) -> None:
        """seq, clock: of the first sample. room_bytes: for the text."""
        self.clock = clock
        self.last_ms = 0
        self.is_full = False
        self._seq = seq
        self._left = room_bytes - _FRAME_BYTES
        self._names: tuple[str, ...] = ()
        self._find: Callable[[str], list[tuple[str, ...]]] = lambda text: []
        self._count = 0
        self._last_up_ms = 0
        self._parts: list[list[str]] = []  # of time, up and each sensor the texts that were added, oldest first
        self._errors: dict[str, dict[int, str]] = {}

    def add(self, slots: Sequence[Slot], times: Sequence[int]) -> int:
        """Add samples, taken at `times`; returns how many: fewer, or none, where others have other sensors, or the
        room is used up."""
        if not self._names:
            self._begin(slots[0].body)
        found = self._find("\n".join([slot.body for slot in slots]))
        if len(found) < len(slots):
            found = found[: next(k for k, slot in enumerate(slots) if not self._find(slot.body))]
        if not found:
            return 0
        columns = list(zip(*found))
        errors = columns.pop()
        ups = [slot.up_ms for slot in slots[: len(found)]]
        columns[:0] = self._steps(self.last_ms, times[: len(found)]), self._steps(self._last_up_ms, ups)
        count = self._fitting(columns, errors)
        if not count:
            return 0
        for parts, column in zip(self._parts, columns):
            parts.append(",".join(column[:count]))
        if any(errors):
            self._add_errors(errors[:count])
        self._count += count
        self.last_ms, self._last_up_ms = times[count - 1], ups[count - 1]
        return count

    def text(self) -> str:
        """Return the samples as JSON; there is at least one."""
        time_steps, up_steps, *values = [",".join(parts) for parts in self._parts]
        return columns_text(self._seq, time_steps, up_steps, dict(zip(self._names, values)), self._errors, self.clock)

    def _begin(self, body: str) -> None:
        names = tuple(json.loads(f"{{{body}}}")["values"])
        self._names, self._find = names, _finder(names)
        self._parts = [[] for _ in ("time", "up", *names)]
        self._left -= sum(len(name) + len('"":[],') for name in names)

    def _steps(self, before: int, moments: Sequence[int]) -> tuple[str, ...]:
        """Return the differences of `moments` from those that come before each; of the very first its own text."""
        steps = steps_text([before, *moments] if self._count else moments).split(",")
        return tuple(steps[1:] if self._count else steps)

    def _fitting(self, columns: Sequence[Sequence[str]], errors: Sequence[str]) -> int:
        """Return how many of these samples there is room for, and take it."""
        count = len(errors)
        taken = sum([sum(map(len, column)) for column in columns]) + len(columns) * count
        if taken > self._left or any(errors):
            sizes = [_error_bytes(text) + len(columns) if text else len(columns) for text in errors]
            sums = list(accumulate(map(sum, zip(sizes, *[map(len, column) for column in columns]))))
            count = bisect_right(sums, self._left)
            self.is_full = count < len(errors)
            taken = sums[count - 1] if count else 0
        self._left -= taken
        return count

    def _add_errors(self, errors: Sequence[str]) -> None:
        for place, text in enumerate(errors, self._count):
            for name, reason in json.loads(text).items() if text else ():
                self._errors.setdefault(name, {})[place] = reason


def _error_bytes(text: str) -> int:
    """Return how many bytes the errors of a sample need at most."""
    return len(text.encode()) + _PLACE_BYTES * text.count('":"')


@functools.lru_cache(maxsize=8)
def _finder(names: tuple[str, ...]) -> Callable[[str], list[tuple[Any, ...]]]:
    """Return what finds, in bodies of these sensors, one a line, the texts of the values, and of the errors."""
    values = ",".join([f'"{re.escape(name)}":([^,{{}}"]+)' for name in names])
    pattern = rf'^"values":\{{{values}\}}(?:,"errors":(\{{.*\}}))?$'
    return re.compile(pattern, re.MULTILINE).findall
