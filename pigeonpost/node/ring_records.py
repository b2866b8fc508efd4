"""Records of the outbox: a sample not yet numbered, a slot of the file, a range of sequence numbers."""

from __future__ import annotations

from collections.abc import Mapping

from pigeonpost.core.light_typing import NamedTuple
from protocol import Number


class UnnumberedSample(NamedTuple):
    """A sample as it was taken, before it has a number: the fields are those of protocol.Sample."""

    wall_ms: int
    up_ms: int
    clock_set: bool
    values: Mapping[str, Number | None]
    errors: Mapping[str, str]


class Slot(NamedTuple):
    """A sample as the ring holds it. `number` runs over all epochs; `boot` is the id of the boot it was taken in."""

    number: int
    wall_ms: int
    up_ms: int
    boot: int
    clock_set: bool
    body: str


class SeqRange(NamedTuple):
    """Samples `first` to `last` (seq) of one epoch, which follow each other; `number` is the running one of `first`."""

    epoch: str
    first: int
    last: int
    number: int

    @property
    def last_number(self) -> int:
        """The running number of the last sample."""
        return self.number + self.last - self.first

    def seq_of(self, number: int) -> int:
        """The seq, in this epoch, of the sample with this running number."""
        return self.first + number - self.number

    def cut(self, number: int) -> SeqRange:
        """What is left of it from the running `number` on."""
        return self._replace(first=self.seq_of(number), number=number)
