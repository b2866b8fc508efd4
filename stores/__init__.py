"""Where samples are kept on the server: what every store must do, whichever database is below it.

Runs on: server.  Reached from: intake (writing), webui and control (reading).
Members: sqlite (the default), postgres (for several servers, or a machine of its own); summaries, which has any store
  sum up and forget; redis_mirror, which is no store: it shows other programs the last state.
Threads: `writing` and `put` belong to the intake's one writer thread; everything else may be called from any.
Errors: NotStored (try again later), DiskError (end the program); either way nothing was stored.

The promise rests on one rule: samples, their high-water mark, gaps and how far the CSV log is written are in *one*
transaction. So a mark never says more, or less, than what is stored.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from pigeonpost.core.config import Settings
from protocol import Batch, Gap, Sample, Values


class Mark(NamedTuple):
    """The high-water mark of one epoch: everything up to `seq` is stored, or is a recorded gap.

    `up_ms` is sample `seq`'s, by which a node recognises that a copy of its card was here; None where a gap ended.
    """

    seq: int
    up_ms: int | None


NOTHING = Mark(0, None)


class Stretch:
    """Samples of one epoch that follow each other, and their values as texts, made once for the store and the log."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self._texts: list[tuple[str, ...]] = []

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """Of each sample its values as Python writes them: as JSON has them, but for `None`."""
        if len(self._texts) != len(self.samples):
            self._texts = [tuple(map(repr, sample.values.values())) for sample in self.samples]
        return self._texts


class Filing:
    """What one commit adds to one epoch, in the order in which it is to stand in the log."""

    def __init__(self, node: str, outbox: str, epoch: str, mark: Mark) -> None:
        self.node = node
        self.outbox = outbox
        self.epoch = epoch
        self.mark = mark  # in force once `items` are stored
        self.top = 0  # the highest running number of `outbox` that is accounted for; 0: not known
        self.units: Mapping[str, str] = {}
        self.items: list[Stretch | Gap] = []
        self.count = 0  # samples in them

    def add(self, batch: Batch, known: int) -> None:
        """File what is new in `batch`: all but the first `known` of its samples, or of its gap."""
        if batch.gap is not None:
            gap = batch.gap
            first = min(gap.first + known, gap.last + 1)
            self.items.append(gap._replace(first=first))
            self.mark = Mark(max(gap.last, self.mark.seq), None if gap.last > self.mark.seq else self.mark.up_ms)
        else:
            new = batch.samples[known:]
            if self.items and isinstance(self.items[-1], Stretch):
                self.items[-1].samples += new
            else:
                self.items.append(Stretch(list(new)))
            self.mark = Mark(new[-1].seq, new[-1].up_ms)
            self.count += len(new)
        if batch.base is not None:
            self.top = max(self.top, batch.base + self.mark.seq)


class LogMark(NamedTuple):
    """How far a CSV log is written and synced: `size` bytes, which cover all filings up to number `filed`.

    tail   CRC-32 of the last bytes before `size`, to see later whether somebody changed the file
    """

    name: str
    size: int
    tail: int
    filed: int


class Logged(NamedTuple):
    """One stretch of the log, read back from the store: samples of one epoch, or a gap in it."""

    filed: int
    node: str
    epoch: str
    item: Stretch | Gap
    noted_ms: int
    units: Mapping[str, str]


class Point(NamedTuple):
    """One sample as people ask for it."""

    node: str
    time_ms: int
    epoch: str
    seq: int
    values: Values
    clock: str


class Column(NamedTuple):
    """One pixel column of a chart: which one it is (0, 1 ...), how many values fell into it, their range and mean."""

    place: int
    values: int
    low: float
    high: float
    mean: float

    def with_other(self, other: Column) -> Column:
        """This one with the values of another that has the same place."""
        values = self.values + other.values
        mean = (self.mean * self.values + other.mean * other.values) / values
        return Column(self.place, values, min(self.low, other.low), max(self.high, other.high), mean)


class Summary(NamedTuple):
    """One sensor's values within a window: those taken after its start, up to and including its end.

    values     how many there are
    median     the middle one, or the mean of the two in the middle
    mode       the most frequent value; the lowest of several
    deviation  the standard deviation of all of them (of the population, so divided by `values`)
    """

    end_ms: int
    values: int
    mean: float
    median: float
    mode: float
    low: float
    high: float
    deviation: float


SPANS_MS = (600_000, 3_600_000)  # of the windows that are summed up: ten minutes and an hour, counted from 1970


class Window(NamedTuple):
    """A window of a node's samples that is to be summed up (again).

    as_of    what tells the store whether something came into it since
    is_late  its samples may be gone already: what is there has come later
    """

    node: str
    span_ms: int
    end_ms: int
    as_of: int
    is_late: bool = False


def together(one: Summary, other: Summary) -> Summary:
    """The summary of two parts of one window of which the samples are not at hand.

    Count, mean, lowest, highest and deviation are exact (Chan, Golub and LeVeque 1979); median and mode are those of
    the larger part.
    """
    values = one.values + other.values
    apart = other.mean - one.mean
    mean = one.mean + apart * (other.values / values)
    squares = one.deviation**2 * one.values + other.deviation**2 * other.values
    squares += apart**2 * (one.values * other.values / values)
    larger = max(one, other, key=lambda part: part.values)
    return Summary(
        one.end_ms, values, mean, larger.median, larger.mode, min(one.low, other.low), max(one.high, other.high),
        math.sqrt(squares / values),
    )  # fmt: skip


def window_end(time_ms: int, span_ms: int) -> int:
    """The end of the window that a sample of this time belongs to: windows are (start, end]."""
    return -(-time_ms // span_ms) * span_ms


def whole_hours(first_ms: int, last_ms: int) -> int:
    """Up to when samples may be deleted so that no hour loses only some of them: else one that comes late could not be
    told from those that are left, which are summed up already.

    first_ms, last_ms  when the first and the last of the oldest samples were taken, of as many as are to go
    """
    end_ms = window_end(last_ms, SPANS_MS[-1])
    start_ms = end_ms - SPANS_MS[-1]
    return start_ms if first_ms <= start_ms else end_ms


class Store:
    """The contract. Every member keeps it, and one test class proves it of each."""

    identity: str  # 16 hex digits drawn when the store was made: a deleted or restored one is told by them

    # ----------------------------------------------------------------------------------- the writer's part

    def writing(self, epochs: Iterable[tuple[str, str]]) -> AbstractContextManager[Mapping[tuple[str, str], Mark]]:
        """A transaction, committed durably at the end of the block, or not at all when that raises.

        Gives the marks of the asked (node, epoch) pairs as they are in this transaction; those not stored are absent.
        """
        raise NotImplementedError

    def put(self, filings: Sequence[Filing], noted_ms: int, log: LogMark | None) -> int:
        """Within `writing`: store the filings, and that the CSV log is written as far as `log` says.

        Each of their items gets the number that follows the last one. Returns the number of the last: the log owes
        everything after `log.filed` up to it.
        """
        raise NotImplementedError

    def put_summaries(self, window: Window, summaries: Mapping[str, Summary]) -> None:
        """Within `writing`: replace the summaries of a window, by sensor; it counts as summed up, unless something came
        into it since `unsummed` told of it."""
        raise NotImplementedError

    def add_late(self, window: Window, parts: Mapping[int, Mapping[str, list[Summary]]]) -> bool:
        """Within `writing`: add what came into a window of the longest span, and the shorter ones in it, after their
        samples were forgotten: by span and sensor the summaries of all samples that are there, which are deleted.

        False where that has to wait: the CSV log owes some of them, or something came since `unsummed` told of it.
        """
        raise NotImplementedError

    def forget(self, before_ms: int, most: int) -> int:
        """Within `writing`: delete up to `most` of the oldest samples taken before `before_ms`, but always whole hours,
        and one at least; how many there were.

        What the CSV log still owes, and what is not summed up yet, stays; so does the hour in which `before_ms` lies.
        Marks and gaps stay for ever.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------- anybody's part

    def marks(self, node: str, outbox: str, epochs: Iterable[str]) -> tuple[int, dict[str, Mark]]:
        """The highest running number stored of `outbox` (0: none), and the marks of those `epochs` that are known."""
        raise NotImplementedError

    def log_mark(self) -> LogMark | None:
        """How far the CSV log of the last run is known to be written; None when there never was one."""
        raise NotImplementedError

    def logged_after(self, filed: int) -> Iterator[Logged]:
        """What the CSV log owes after filing number `filed`, in its order."""
        raise NotImplementedError

    def nodes(self) -> list[dict[str, Any]]:
        """Every node ever stored: name, samples, gaps, first and last time (ms), sensors with their units.

        Of the samples also how many were forgotten, and up to when (ms) that may have happened; 0: none were.
        """
        raise NotImplementedError

    def points(self, node: str, from_ms: int, to_ms: int, limit: int) -> list[Point]:
        """Samples of `node` taken in [from_ms, to_ms), oldest first; the last `limit` of them."""
        raise NotImplementedError

    def columns(self, node: str, sensor: str, from_ms: int, to_ms: int, count: int) -> list[Column]:
        """One sensor's values in [from_ms, to_ms), summed up in `count` equal columns; empty ones are absent.

        Where columns are as wide as windows, from the summaries of those that are summed up: a value at the very end of
        a window then counts in the column in which the window began.
        """
        raise NotImplementedError

    def summary(self, node: str, from_ms: int, to_ms: int, count: int) -> dict[str, list[Column]]:
        """As `columns`, of every sensor of `node` at once: one pass over its samples."""
        raise NotImplementedError

    def unsummed(self, before_ms: int, most: int) -> list[Window]:
        """Up to `most` windows that ended before `before_ms` and are not summed up, or no longer rightly so."""
        raise NotImplementedError

    def summaries(self, node: str, sensor: str, span_ms: int, from_ms: int, to_ms: int) -> list[Summary]:
        """One sensor's summaries of windows of `span_ms` that end in (from_ms, to_ms], oldest first."""
        raise NotImplementedError

    def gaps(self, limit: int) -> list[dict[str, Any]]:
        """What is missing and why, the newest `limit` (-1: all)."""
        raise NotImplementedError

    def every_sample(self) -> Iterator[Point]:
        """All samples, node by node in the order of their times: for looking through everything, not for pages."""
        raise NotImplementedError

    def own_samples(self) -> Iterator[Point]:
        """Those of every_sample that this server has stored, and so has in its CSV logs: there may be others."""
        return self.every_sample()

    def own_gaps(self) -> int:
        """How many gaps this server has in its logs."""
        return len(self.gaps(-1))

    def verify(self) -> Iterator[str]:
        """Look at everything; a line for each fault found."""
        raise NotImplementedError


def open_store(settings: Settings, data: str, look_only: bool = False) -> Store:
    """The store that the settings name: PostgreSQL where `[store] postgres` has an address, else SQLite in `data`.

    Raises SettingsError for one that cannot be used as it is set, DiskError for one that does not work.
    """
    address: str = settings["store", "postgres"]
    member: Any = importlib.import_module("stores.postgres" if address else "stores.sqlite")
    store: Store = member.PostgresStore(address, data, look_only) if address else member.SqliteStore(data, look_only)
    return store
