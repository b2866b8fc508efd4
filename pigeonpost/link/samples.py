"""Samples: one at a time, and many by column.

Nothing on the way from a node to the store makes an object for each sample: a `SampleBatch` has a list for each of
their parts, so that decoding, checking, formatting and storing happen in C for all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

Number = int | float
Values = dict[str, Number | None]
Errors = Mapping[str, Mapping[int, str]]

NO_ERRORS: Errors = {}


class Sample(NamedTuple):
    """All readings taken at one moment.

    seq      1, 2, 3 ... within the epoch
    time_ms  when it was taken: UTC, milliseconds since 1970
    up_ms    the same moment in milliseconds since the node's boot
    values   sensor name to number, or None when that sensor failed
    errors   sensor name to what was wrong, for the None values
    clock    "" (the node's own set clock), "unset" or "server"
    """

    seq: int
    time_ms: int
    up_ms: int
    values: Values
    errors: Mapping[str, str]
    clock: str


class Gap(NamedTuple):
    """Samples that will never come: seq `first` to `last`, and `before` others of earlier epochs (link: GAP)."""

    first: int
    last: int
    before: int
    why: str


class SampleBatch:
    """Samples of one epoch that follow each other, by column; all have the same sensors and the same clock state.

    seq     of the first sample; 0: they are numbered when they are committed
    times   when each was taken: UTC, milliseconds since 1970
    ups     the same moments in milliseconds since the node's boot; empty: not known, as of samples read from a store
    values  sensor name to its values, a number or None each
    errors  sensor name to place in the batch (from 0) to what was wrong there
    clock   "" (the node's own set clock), "unset" or "server"

    A batch is never changed once others have it; `extend` is for whoever has made it.
    """

    __slots__ = ("_texts", "clock", "errors", "seq", "times", "ups", "values")

    def __init__(
        self,
        seq: int,
        times: list[int],
        ups: list[int],
        values: Mapping[str, list[Number | None]],
        errors: Errors = NO_ERRORS,
        clock: str = "",
    ) -> None:
        self.seq = seq
        self.times = times
        self.ups = ups
        self.values = values
        self.errors = errors
        self.clock = clock
        self._texts: list[list[str]] = []

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Self:
        """Return the batch of samples that follow each other and have the same sensors, in the same order, and clock.

        Raises ValueError for others; `batches_of` takes any.
        """
        first = samples[0]
        names = list(first.values)
        errors: dict[str, dict[int, str]] = {}
        for place, sample in enumerate(samples):
            if list(sample.values) != names or sample.clock != first.clock:
                raise ValueError(f"sample {sample.seq} is not like sample {first.seq}")
            if sample.seq != (first.seq and first.seq + place):
                raise ValueError(f"sample {sample.seq} does not follow {first.seq}")
            for name, text in sample.errors.items():
                errors.setdefault(name, {})[place] = text
        return cls(
            first.seq,
            [sample.time_ms for sample in samples],
            [sample.up_ms for sample in samples],
            {name: [sample.values[name] for sample in samples] for name in names},
            errors,
            first.clock,
        )

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        return f"SampleBatch({self.seq} to {self.last}, {self.names}, {self.clock!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SampleBatch):
            return NotImplemented
        return self._parts() == other._parts()

    __hash__ = None  # type: ignore[assignment]  # two batches may be equal, and one of them change

    def _parts(self) -> tuple[object, ...]:
        return self.seq, self.times, self.ups, list(self.values.items()), self.errors, self.clock

    @property
    def last(self) -> int:
        """The seq of the last sample."""
        return self.seq + len(self.times) - 1

    @property
    def last_up_ms(self) -> int | None:
        """When the last sample was taken, in milliseconds since the node's boot; None: not known."""
        return self.ups[-1] if self.ups else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sensors, in the order of the columns."""
        return tuple(self.values)

    @property
    def texts(self) -> list[list[str]]:
        """The values of each column as Python writes them: like JSON, except for `None`. Made once."""
        if not self._texts:
            self._texts = [list(map(repr, column)) for column in self.values.values()]
        return self._texts

    def part(self, start: int, stop: int | None = None) -> Self:
        """Return the samples from place `start` up to, but without, place `stop`, as a batch of its own."""
        stop = len(self.times) if stop is None else stop
        errors = {
            name: kept
            for name, texts in self.errors.items()
            if (kept := {place - start: text for place, text in texts.items() if start <= place < stop})
        }
        made = type(self)(
            self.seq and self.seq + start, self.times[start:stop], self.ups[start:stop],
            {name: column[start:stop] for name, column in self.values.items()}, errors, self.clock,
        )  # fmt: skip
        if self._texts:
            made._texts = [texts[start:stop] for texts in self._texts]
        return made

    def numbered(self, seq: int) -> Self:
        """Return the same samples, the first of which has the number `seq`."""
        return type(self)(seq, self.times, self.ups, self.values, self.errors, self.clock)

    def is_followed_by(self, other: SampleBatch) -> bool:
        """Return True if the samples of `other` come next, and are alike: both can be one batch."""
        return (
            other.seq == self.seq + len(self.times)
            and other.clock == self.clock
            and other.names == self.names
            and bool(other.ups) == bool(self.ups)
        )

    def extend(self, other: SampleBatch) -> None:
        """Add the samples of `other`, for which `is_followed_by` is True."""
        if other.errors:
            count = len(self.times)
            errors = {name: dict(texts) for name, texts in self.errors.items()}
            for name, texts in other.errors.items():
                errors.setdefault(name, {}).update({count + place: text for place, text in texts.items()})
            self.errors = errors
        if self._texts:
            if other._texts:
                for texts_here, texts_there in zip(self._texts, other._texts, strict=True):
                    texts_here += texts_there
            else:
                self._texts = []
        self.times += other.times
        self.ups += other.ups
        for column, more in zip(self.values.values(), other.values.values(), strict=True):
            column += more

    def __getitem__(self, place: int) -> Sample:
        """Return one sample; a place below 0 counts from the end."""
        count = len(self.times)
        place = place if place >= 0 else count + place
        return Sample(
            self.seq and self.seq + place,
            self.times[place],
            self.ups[place] if self.ups else 0,
            {name: column[place] for name, column in self.values.items()},
            {name: texts[place] for name, texts in self.errors.items() if place in texts},
            self.clock,
        )

    def __iter__(self) -> Iterator[Sample]:
        """Yield each sample, for pages and for tests: on the way to the store nobody does."""
        return map(self.__getitem__, range(len(self.times)))


def batches_of(samples: Iterable[Sample]) -> list[SampleBatch]:
    """Return samples of one epoch as batches: a new one wherever sensors or clock state change, or a number is left
    out."""
    runs: list[list[Sample]] = []
    for sample in samples:
        if runs:
            before = runs[-1][-1]
            if (
                sample.clock == before.clock
                and list(sample.values) == list(before.values)
                and sample.seq == (before.seq and before.seq + 1)
            ):
                runs[-1].append(sample)
                continue
        runs.append([sample])
    return [SampleBatch.of(run) for run in runs]
