"""Current values of all nodes: the newest sample by time, and when this server received it.

The Ingestor's writer thread calls `record`; any thread may read `samples` and `received_s`, which are only changed by
single assignments. Errors: none.

Whether a node is alive depends only on `received_s`: when this server received new samples, by its monotonic clock. A
wrong clock of a node, and a correction of any clock, do not affect it.

Which values are the current ones depends on the times of the samples:

- The samples of one outbox arrive in the order in which they were taken, so each replaces the one before, with any
  date: a node's clock may be set back. The last sample of a backlog that has arrived is the current one.
- Samples of other senders (without numbers, or of another outbox) may arrive in any order. The sample with the lower
  age replaces the other one, sensor by sensor. The age of a sample is the time since its own date, or since its arrival
  if its date was in the future. So a clock that is ahead never blocks later samples, and late data replaces nothing.
- If the clock of such a sender is set back, all its samples seem to be late. They are accepted as current when their
  dates have advanced as fast as this server's clock for LAG_S: a backlog arrives faster or slower than that.
- Imported samples are neither current nor a sign of life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from types import MappingProxyType
from typing import NamedTuple

from pigeonpost.core.clock import FIRST_MS
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.node_register import move_key
from pigeonpost.storage.models import EpochCommit, Reading
from protocol import IMPORTED, Sample

LAG_S = 60.0  # time after which a sender whose samples seem to be late is known to have a slow clock
LAG_SAMPLES = 3  # number of samples that this takes at least
_LAG_DRIFT = 0.1  # allowed difference of the speeds of both clocks: samples are not sent at exact intervals
_LAG_SLACK_MS = 5000.0
_SAME_MS = 2.0  # ages that differ by less are equal, since both clocks are read in whole milliseconds
_AHEAD_MS = 60_000  # a sender whose dates are further in the future than this has a clock that is ahead
_STEP_MS = 1000  # a smaller change of this server's clock is not a step
_MOST_PARTS = 1024  # messages of a node with different sensors whose values are kept; the oldest ones are removed


class LatestSample(NamedTuple):
    """The newest values of a node, or some of them.

    Attributes:
        sample: The newest sample. It also contains the values of the sensors in `older`.
        units: Units by channel.
        committed_ms: Time of the commit, in ms since 1970 (UTC); without `received_s`, any time after it.
        received_s: Time of the commit by the monotonic clock, in s; None if it was committed before this run.
        older: The samples with the newest values of sensors that `sample` itself did not contain, by sensor.
    """

    sample: Sample
    units: Mapping[str, str]
    committed_ms: int
    received_s: float | None = None
    older: Mapping[str, LatestSample] = MappingProxyType({})

    def of(self, sensor: str) -> LatestSample:
        """Return the sample that contained the newest value of `sensor`."""
        return self.older.get(sensor, self)

    def readings(self) -> Iterator[Reading]:
        """Yield the newest reading of each sensor."""
        for name, value in self.sample.values.items():
            time_ms, clock = self.of(name).sample.time_ms, self.of(name).sample.clock
            yield Reading(name, value, time_ms, self.units.get(name, ""), self.sample.errors.get(name, ""), clock)

    def taken_ms(self, offset_ms: int | None, now_ms: int, now_s: float) -> int:
        """Return when `sample` was taken, by this server's present clock, in ms since 1970 (UTC).

        It is the sample's own time, but at most that of its arrival: a date in the future is wrong.

        Args:
            offset_ms: Clock of the node minus clock of the server in ms; None if unknown. It does not apply to a date
                that the node has calculated from the server's clock.
            now_ms: Current time, in ms since 1970 (UTC).
            now_s: Current time by the monotonic clock, in s.
        """
        own_ms = self.sample.time_ms - (0 if self.sample.clock == "server" else offset_ms or 0)
        if self.received_s is None:
            return min(own_ms, self.committed_ms, now_ms)
        step_ms = round(now_ms - self.committed_ms - (now_s - self.received_s) * 1000)
        return min(own_ms, self.committed_ms) + (step_ms if abs(step_ms) >= _STEP_MS else 0)


class _Part(NamedTuple):
    """Values of one sample that no newer sample has replaced.

    Attributes:
        latest: The sample with these values only.
        outbox: Outbox of the sample; empty for a sender without numbers.
        epoch: Epoch of the sample.
    """

    latest: LatestSample
    outbox: str
    epoch: str

    @property
    def ahead_ms(self) -> int:
        """Time of the sample minus the time of its arrival; negative if it was taken before it arrived."""
        return self.latest.sample.time_ms - self.latest.committed_ms

    def age_ms(self, now_s: float) -> float:
        """Return the age of the sample at `now_s` by the monotonic clock."""
        return (now_s - (self.latest.received_s or 0.0)) * 1000 + max(0, -self.ahead_ms)

    def is_replaced_by(self, new: _Part, now_s: float) -> bool:
        """Return True if the sample `new`, which has just arrived, is newer than this one."""
        if new.epoch == self.epoch and min(new.ahead_ms, self.ahead_ms) > _AHEAD_MS:
            return new.latest.sample.time_ms >= self.latest.sample.time_ms
        return new.age_ms(now_s) <= self.age_ms(now_s) + _SAME_MS

    def without(self, names: Set[str]) -> _Part | None:
        """Return this part without the sensors `names`, or None if nothing remains."""
        sample = self.latest.sample
        if sample.values.keys().isdisjoint(names):
            return self
        if sample.values.keys() <= names:  # usual: all messages of a client contain the same sensors
            return None
        values = {name: value for name, value in sample.values.items() if name not in names}
        errors = {name: text for name, text in sample.errors.items() if name in values}
        kept = self.latest._replace(sample=sample._replace(values=values, errors=errors))
        return self._replace(latest=kept)


class _Lag(NamedTuple):
    """Consecutive samples of one sender that seem to be late: the first of them, and their number."""

    epoch: str
    time_ms: int
    received_s: float
    samples: int

    def has_speed_of(self, sample_ms: int, now_s: float) -> bool:
        """Return True if the date of a sample has advanced as fast as this server's clock."""
        passed_ms = (now_s - self.received_s) * 1000
        return abs(sample_ms - self.time_ms - passed_ms) <= _LAG_SLACK_MS + _LAG_DRIFT * passed_ms


class LatestSamples:
    """The newest values of all nodes.

    Attributes:
        samples: Newest values by node.
        received_s: Time at which new samples of a node were committed last, by the monotonic clock in s.
        calibrated: Function of (node, raw values) that returns the values for `samples`: Calibrations.latest.
    """

    def __init__(self, unnumbered: str, stored_ms: Mapping[str, int | None] = MappingProxyType({})) -> None:
        """Initialise without samples.

        Args:
            unnumbered: Outbox of the samples of senders without numbers.
            stored_ms: Time of the last stored sample of each node, in ms since 1970 (UTC).
        """
        self.samples: dict[str, LatestSample] = {}
        self.received_s: dict[str, float] = {}
        self._unnumbered = unnumbered
        self._stored_ms = {node: time_ms for node, time_ms in stored_ms.items() if time_ms is not None}
        self._parts: dict[str, list[_Part]] = {}
        self._lags: dict[str, _Lag] = {}
        self.calibrated: Callable[[str, LatestSample], LatestSample] = lambda node, raw: raw

    def record(self, epoch_commits: Sequence[EpochCommit], now_ms: int, now_s: float) -> None:
        """Record the samples in `epoch_commits`, which were committed at `now_ms` (ms since 1970) and `now_s`."""
        changed: dict[str, None] = {}
        for commit in epoch_commits:
            batches = [item for item in commit.items if isinstance(item, SampleBatch)]
            if not batches or commit.outbox == IMPORTED:
                continue
            self.received_s[commit.node] = now_s
            is_numbered = commit.outbox != self._unnumbered
            for batch in batches[-1:] if is_numbered else batches:
                sample = batch[-1] if is_numbered else batch[_newest(batch.times)]
                latest = LatestSample(sample, commit.units, now_ms, now_s)
                self._add(commit.node, _Part(latest, commit.outbox if is_numbered else "", commit.epoch), now_s)
            changed[commit.node] = None
        for node in changed:  # once per commit, because it may contain many messages
            self.show_again(node)

    def rename(self, node: str, new: str) -> None:
        """Assign the samples of `node` to its new name `new`."""
        move_key(self.samples, node, new)
        move_key(self.received_s, node, new)
        move_key(self._stored_ms, node, new)
        move_key(self._parts, node, new)
        move_key(self._lags, node, new)

    def _add(self, node: str, new: _Part, now_s: float) -> None:
        """Add a sample that has just arrived. The parts of a node have different sensors, the newest one first."""
        parts, names = self._parts.get(node, []), new.latest.sample.values.keys()
        if new.outbox:
            parts = [part for part in parts if part.outbox != new.outbox]
            if not parts:  # almost always: only one sender has the name of the node
                self._parts[node] = [new]
                return
        same = [part for part in parts if not names.isdisjoint(part.latest.sample.values)]
        newer = [part for part in same if not part.is_replaced_by(new, now_s)]
        is_late = not new.outbox and new.latest.sample.time_ms < self._stored_ms.get(node, FIRST_MS) <= (
            new.latest.committed_ms
        )
        if newer or is_late:
            if self._is_clock_behind(node, new, now_s):
                newer, is_late = [], False
        else:
            self._lags.pop(node, None)
        taken = {name for part in newer for name in part.latest.sample.values}
        kept = None if is_late else new.without(taken)
        if kept is None:
            return
        names = kept.latest.sample.values.keys()
        if same:
            parts = [rest for part in parts if (rest := part.without(names)) is not None]
        place = next((n for n, part in enumerate(parts) if part.is_replaced_by(new, now_s)), len(parts))
        self._parts[node] = [*parts[:place], kept, *parts[place:]][:_MOST_PARTS]

    def show_again(self, node: str) -> None:
        """Convert the newest values of `node` again, because they or its calibrations have changed."""
        parts = self._parts.get(node)
        if parts:
            self.samples[node] = _merged([self.calibrated(node, part.latest) for part in parts])

    def _is_clock_behind(self, node: str, new: _Part, now_s: float) -> bool:
        """Return True if the sender of a sample that seems to be late has a clock that was set back."""
        time_ms, lag = new.latest.sample.time_ms, self._lags.get(node)
        if lag is None or lag.epoch != new.epoch or not lag.has_speed_of(time_ms, now_s):
            lag = _Lag(new.epoch, time_ms, now_s, 0)
        lag = self._lags[node] = lag._replace(samples=lag.samples + 1)
        return lag.samples >= LAG_SAMPLES and now_s - lag.received_s >= LAG_S


def _newest(times: Sequence[int]) -> int:
    """Return the index of the highest of `times`, or of the last of them if there are several."""
    return max(range(len(times)), key=lambda place: (times[place], place))


def _merged(parts: Sequence[LatestSample]) -> LatestSample:
    """Return the newest values of a node; `parts` have different sensors, the newest part first."""
    first = parts[0]
    if len(parts) == 1:
        return first
    older: dict[str, LatestSample] = {}
    values, errors, units = dict(first.sample.values), dict(first.sample.errors), dict(first.units)
    for part in parts[1:]:
        older.update(dict.fromkeys(part.sample.values, part))
        values.update(part.sample.values)
        errors.update(part.sample.errors)
        for name, unit in part.units.items():
            units.setdefault(name, unit)
    return first._replace(sample=first.sample._replace(values=values, errors=errors), units=units, older=older)
