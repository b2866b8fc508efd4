"""Records of the outbox: a sample without a number, a sample in a slot of the file, and a range of samples."""

from __future__ import annotations

from collections.abc import Mapping

from pigeonpost.core.light_typing import NamedTuple
from protocol import Number


class UnnumberedSample(NamedTuple):
    """A sample before it has a sequence number. The fields are those of protocol.Sample."""

    wall_ms: int
    up_ms: int
    clock_set: bool
    values: Mapping[str, Number | None]
    errors: Mapping[str, str]


class Slot(NamedTuple):
    """A sample in the ring file.

    Attributes:
        number: Running number, which counts over all epochs.
        wall_ms: Time of the sample in milliseconds since 1970 (UTC), according to the clock of the node.
        up_ms: Uptime of the machine in milliseconds.
        boot: Id of the boot during which the sample was taken.
        clock_set: True if the clock of the node was set.
        body: The part of the sample's JSON with values and errors.
    """

    number: int
    wall_ms: int
    up_ms: int
    boot: int
    clock_set: bool
    body: str


class SeqRange(NamedTuple):
    """Consecutive samples of one epoch (a "run").

    Attributes:
        epoch: The epoch, 16 hex digits.
        first: Sequence number of the first sample.
        last: Sequence number of the last sample.
        number: Running number of the first sample.
    """

    epoch: str
    first: int
    last: int
    number: int

    @property
    def last_number(self) -> int:
        """Running number of the last sample."""
        return self.number + self.last - self.first

    def seq_of(self, number: int) -> int:
        """Return the sequence number of the sample with the running `number`."""
        return self.first + number - self.number

    def cut(self, number: int) -> SeqRange:
        """Return the part of the range that begins with the running `number`."""
        return self._replace(first=self.seq_of(number), number=number)
