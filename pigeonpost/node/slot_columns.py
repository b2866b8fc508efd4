"""Writer of samples as JSON columns, directly from the slots of the outbox.

The texts of the values are copied from the bodies of the slots without being decoded.
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

# Upper limit for the keys, the first sequence number, and the absolute time and uptime.
_FRAME_BYTES = 200
_INDEX_BYTES = len('{"4095":}')  # additional length of an error text, which has an index in columns


class ColumnsWriter:
    """Writer of one JSON object of columns. Samples are added until it is full or a sample has different channels.

    Attributes:
        clock: Clock flag of all samples, as on the link: "", "server" or "unset".
        last_ms: Time of the last sample in milliseconds since 1970 (UTC).
        is_full: True if the next sample does not fit.
    """

    def __init__(self, seq: int, clock: str, room_bytes: int) -> None:
        """Create a writer without samples.

        Args:
            seq: Sequence number of the first sample.
            clock: Clock flag of all samples.
            room_bytes: Maximum length of the JSON text, in bytes.
        """
        self.clock = clock
        self.last_ms = 0
        self.is_full = False
        self._seq = seq
        self._left = room_bytes - _FRAME_BYTES
        self._names: tuple[str, ...] = ()
        self._find: Callable[[str], list[tuple[str, ...]]] = lambda text: []
        self._count = 0
        self._last_up_ms = 0
        self._parts: list[list[str]] = []  # texts of time, up and each sensor, oldest first
        self._errors: dict[str, dict[int, str]] = {}

    def add(self, slots: Sequence[Slot], times: Sequence[int]) -> int:
        """Add consecutive samples and return the number of samples added.

        The result is smaller than the number of `slots` if a sample has different channels, or if the object is full.

        Args:
            slots: The samples.
            times: Time of each sample in milliseconds since 1970 (UTC).
        """
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
        """Return the samples as JSON. At least one sample must have been added."""
        time_steps, up_steps, *values = [",".join(parts) for parts in self._parts]
        return columns_text(self._seq, time_steps, up_steps, dict(zip(self._names, values)), self._errors, self.clock)

    def _begin(self, body: str) -> None:
        names = tuple(json.loads(f"{{{body}}}")["values"])
        self._names, self._find = names, _finder(names)
        self._parts = [[] for _ in ("time", "up", *names)]
        self._left -= sum(len(name) + len('"":[],') for name in names)

    def _steps(self, before: int, times: Sequence[int]) -> tuple[str, ...]:
        """Return the difference between each time and the previous one; for the very first time, the time itself."""
        steps = steps_text([before, *times] if self._count else times).split(",")
        return tuple(steps[1:] if self._count else steps)

    def _fitting(self, columns: Sequence[Sequence[str]], errors: Sequence[str]) -> int:
        """Return the number of these samples that fit, and reserve the space for them."""
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
        for index, text in enumerate(errors, self._count):
            for name, reason in json.loads(text).items() if text else ():
                self._errors.setdefault(name, {})[index] = reason


def _error_bytes(text: str) -> int:
    """Return the maximum number of bytes that the errors of a sample need."""
    return len(text.encode()) + _INDEX_BYTES * text.count('":"')


@functools.lru_cache(maxsize=8)
def _finder(names: tuple[str, ...]) -> Callable[[str], list[tuple[Any, ...]]]:
    """Return a function that finds the texts of the values and of the errors in bodies, one body per line."""
    values = ",".join([f'"{re.escape(name)}":([^,{{}}"]+)' for name in names])
    pattern = rf'^"values":\{{{values}\}}(?:,"errors":(\{{.*\}}))?$'
    return re.compile(pattern, re.MULTILINE).findall
