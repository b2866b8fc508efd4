"""Progress of one forward target: its positions in memory and in the file, and which of them are certain.

A target may acknowledge samples some time before its disk has them. So an acknowledged position is certain only after
`again_s` seconds. Acknowledgements of a short time are kept together in a stage; there are at most STAGES + 1 stages.

One thread uses an object. Errors: none while the file cannot be written; `fault` contains the reason. NotKept if it
cannot be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pigeonpost.integrations.forward_position import Key, NotKept, PositionFile

STAGES = 16
_MOST_KEPT = 10_000  # certain positions in memory, so that they need not be read again


class _Position(NamedTuple):
    """Position in one epoch, in sequence numbers.

    Attributes:
        sent: All samples up to this one are acknowledged, or are in a gap.
        sure: Those up to this one are certainly stored. `sent` falls back to it after the connection was lost, and at
            the start.
    """

    sent: int
    sure: int


class _Stage(NamedTuple):
    """Acknowledgements of a short time.

    Attributes:
        start_s: Time of the first one.
        sent: Sequence numbers by node and epoch.
    """

    start_s: float
    sent: dict[Key, int]


class ForwardProgress:
    """Positions of one target.

    Attributes:
        fault: Reason why the positions cannot be written; empty if they can.
    """

    def __init__(self, target: str, file: PositionFile, again_s: float, monotonic: Callable[[], float]) -> None:
        """Initialise the progress, without reading the file.

        Args:
            target: Name of the target.
            file: The file of positions.
            again_s: Seconds until an acknowledged position is certain.
            monotonic: Clock that counts seconds and never steps.
        """
        self.fault = ""
        self._target, self._file, self._again_s, self._monotonic = target, file, again_s, monotonic
        self._width_s = again_s / STAGES
        self._positions: dict[Key, _Position] = {}
        self._stages: deque[_Stage] = deque()
        self._unwritten: set[Key] = set()

    def all(self) -> dict[Key, int]:
        """Return the sequence number up to which the samples are sent, by node and epoch."""
        return self._file.read(self._target) | {key: position.sent for key, position in self._positions.items()}

    def sent(self, key: Key) -> int:
        """Return the sequence number up to which the samples of `key` are sent; 0 for an unknown epoch."""
        found = self._positions.get(key)
        if found is None:
            seq = self._file.find(self._target, key) or 0
            found = self._positions[key] = _Position(seq, seq)
        return found.sent

    def advance(self, sent: Mapping[Key, int]) -> None:
        """Record that the target has acknowledged all samples up to the numbers in `sent`, by node and epoch."""
        now_s = self._monotonic()
        for key, seq in sent.items():
            self.sent(key)
            position = self._positions[key]
            self._positions[key] = position._replace(sent=max(seq, position.sent))
        if not self._again_s:
            self._make_sure(sent)
            return
        if not self._stages or now_s - self._stages[-1].start_s >= self._width_s:
            self._stages.append(_Stage(now_s, {}))
        self._stages[-1].sent.update(sent)
        self.settle()

    def settle(self) -> None:
        """Make the positions certain that were acknowledged long enough ago."""
        certain: dict[Key, int] = {}
        while self._stages and self.next_s() <= self._monotonic():
            certain |= self._stages.popleft().sent
        if certain or self._unwritten:
            self._make_sure(certain)

    def next_s(self) -> float:
        """Return the time, on the clock `monotonic`, at which `settle` has something to do; infinite if never."""
        return self._stages[0].start_s + self._width_s + self._again_s if self._stages else float("inf")

    def fall_back(self) -> dict[Key, int]:
        """Go back to the certain positions, after the connection was lost.

        Returns:
            The positions that were sent before, by node and epoch, for all that have changed.
        """
        lost: dict[Key, int] = {}
        for stage in self._stages:
            lost |= stage.sent
        self._stages.clear()
        for key in lost:
            position = self._positions[key]
            self._positions[key] = position._replace(sent=position.sure)
        return lost

    def move(self, node: str, new: str) -> None:
        """Move the positions of `node` to its new name `new`."""

        def moved(key: Key) -> Key:
            return (new, key[1]) if key[0] == node else key

        self._file.move(self._target, node, new)
        self._positions = {moved(key): position for key, position in self._positions.items()}
        self._unwritten = set(map(moved, self._unwritten))
        for stage in self._stages:
            for key in [key for key in stage.sent if key[0] == node]:
                stage.sent[moved(key)] = stage.sent.pop(key)

    def _make_sure(self, certain: Mapping[Key, int]) -> None:
        for key, seq in certain.items():
            position = self._positions[key]
            self._positions[key] = position._replace(sure=max(seq, position.sure))
        self._unwritten |= certain.keys()
        try:
            self._file.write(self._target, {key: self._positions[key].sure for key in self._unwritten})
        except NotKept as error:
            self.fault = (
                f"the positions cannot be written, so samples would be sent again after a restart: {error}. Free some"
                " space, or check the disk"
            )
            return
        self.fault = ""
        self._unwritten.clear()
        if len(self._positions) > _MOST_KEPT:
            uncertain = {key for stage in self._stages for key in stage.sent}
            self._positions = {key: position for key, position in self._positions.items() if key in uncertain}
