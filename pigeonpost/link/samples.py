"""Types of samples: a single Sample, a SampleBatch of many samples by column, and a Gap.

A server creates no object per sample on the path from the transport to the store. A `SampleBatch` has one list for
each part of its samples, so that functions in C decode, check, format and store all samples together.
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
    """All readings taken at one time (in Prometheus, a single reading is called a sample).

    Attributes:
        seq: Sequence number 1, 2, 3 ... within the epoch.
        time_ms: Time when the sample was taken, in milliseconds since 1970 (UTC).
        up_ms: The same time in milliseconds since the node's boot.
        values: Sensor name to number, or None if that sensor failed.
        errors: Sensor name to the reason, for the values that are None.
        clock: Source of `time_ms`: "" for the node's own clock, "server" for the server's time, or "unset" if neither
            was known.
    """

    seq: int
    time_ms: int
    up_ms: int
    values: Values
    errors: Mapping[str, str]
    clock: str


class Gap(NamedTuple):
    """Samples that will never arrive.

    Attributes:
        first: First missing sequence number.
        last: Last missing sequence number; `first` - 1 if only samples of earlier epochs are missing.
        before: Number of samples of earlier epochs that will not arrive either.
        why: The reason.
    """

    first: int
    last: int
    before: int
    why: str


class SampleBatch:
    """Consecutive samples of one epoch, by column; all have the same sensors and the same clock state.

    A batch does not change after its creator has passed it on; `extend` is for the creator only.

    Attributes:
        seq: Sequence number of the first sample, or 0 if the samples are numbered when they are committed.
        times: Time of each sample in milliseconds since 1970 (UTC).
        ups: The same times in milliseconds since the node's boot, or an empty list if they are not known, as for
            samples read from a store.
        values: Sensor name to its values, each a number or None.
        errors: Reasons of the None values: sensor name to {index in the batch, from 0: reason}.
        clock: Source of the times, as in Sample.
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
        """Return `samples` as one batch.

        Args:
            samples: Consecutive samples with the same sensors, in the same order, and the same clock state.

        Raises:
            ValueError: The samples do not fit in one batch; `batches_of` accepts any samples.
        """
        first = samples[0]
        names = list(first.values)
        errors: dict[str, dict[int, str]] = {}
        for index, sample in enumerate(samples):
            if list(sample.values) != names or sample.clock != first.clock:
                raise ValueError(
                    f"sample {sample.seq} has other sensors or another clock state than sample {first.seq}"
                )
            if sample.seq != (first.seq and first.seq + index):
                raise ValueError(f"sample {sample.seq} does not follow {first.seq}")
            for name, text in sample.errors.items():
                errors.setdefault(name, {})[index] = text
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

    __hash__ = None  # type: ignore[assignment]  # batches are mutable

    def _parts(self) -> tuple[object, ...]:
        return self.seq, self.times, self.ups, list(self.values.items()), self.errors, self.clock

    @property
    def last(self) -> int:
        """Sequence number of the last sample."""
        return self.seq + len(self.times) - 1

    @property
    def last_up_ms(self) -> int | None:
        """Time of the last sample in milliseconds since the node's boot, or None if it is not known."""
        return self.ups[-1] if self.ups else None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sensors, in the order of the columns."""
        return tuple(self.values)

    @property
    def texts(self) -> list[list[str]]:
        """Each column's values as text, by `repr`: like JSON, except for None. Calculated at the first use."""
        if not self._texts:
            self._texts = [list(map(repr, column)) for column in self.values.values()]
        return self._texts

    def part(self, start: int, stop: int | None = None) -> Self:
        """Return the samples from index `start` up to, but excluding, `stop` (None: to the end) as a new batch."""
        stop = len(self.times) if stop is None else stop
        errors = {
            name: kept
            for name, texts in self.errors.items()
            if (kept := {index - start: text for index, text in texts.items() if start <= index < stop})
        }
        batch = type(self)(
            self.seq and self.seq + start, self.times[start:stop], self.ups[start:stop],
            {name: column[start:stop] for name, column in self.values.items()}, errors, self.clock,
        )  # fmt: skip
        if self._texts:
            batch._texts = [texts[start:stop] for texts in self._texts]
        return batch

    def numbered(self, seq: int) -> Self:
        """Return a batch of the same samples whose first sample has the number `seq`."""
        return type(self)(seq, self.times, self.ups, self.values, self.errors, self.clock)

    def is_followed_by(self, other: SampleBatch) -> bool:
        """Return True if `other` has the next seq and the same sensors and clock state, so that `extend` accepts it."""
        return (
            other.seq == self.seq + len(self.times)
            and other.clock == self.clock
            and other.names == self.names
            and bool(other.ups) == bool(self.ups)
        )

    def extend(self, other: SampleBatch) -> None:
        """Append the samples of `other`, for which `is_followed_by` must be True."""
        if other.errors:
            count = len(self.times)
            errors = {name: dict(texts) for name, texts in self.errors.items()}
            for name, texts in other.errors.items():
                errors.setdefault(name, {}).update({count + index: text for index, text in texts.items()})
            self.errors = errors
        if self._texts:
            if other._texts:
                for own_texts, other_texts in zip(self._texts, other._texts, strict=True):
                    own_texts += other_texts
            else:
                self._texts = []
        self.times += other.times
        self.ups += other.ups
        for column, more in zip(self.values.values(), other.values.values(), strict=True):
            column += more

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at `index`; a negative index counts from the end."""
        count = len(self.times)
        index = index if index >= 0 else count + index
        return Sample(
            self.seq and self.seq + index,
            self.times[index],
            self.ups[index] if self.ups else 0,
            {name: column[index] for name, column in self.values.items()},
            {name: texts[index] for name, texts in self.errors.items() if index in texts},
            self.clock,
        )

    def __iter__(self) -> Iterator[Sample]:
        """Yield each sample; for pages and tests only, because the path to the store uses columns."""
        return map(self.__getitem__, range(len(self.times)))


def batches_of(samples: Iterable[Sample]) -> list[SampleBatch]:
    """Return `samples` of one epoch as batches; a new batch begins where sensors, clock state or sequence change."""
    runs: list[list[Sample]] = []
    for sample in samples:
        if runs:
            previous = runs[-1][-1]
            if (
                sample.clock == previous.clock
                and list(sample.values) == list(previous.values)
                and sample.seq == (previous.seq and previous.seq + 1)
            ):
                runs[-1].append(sample)
                continue
        runs.append([sample])
    return [SampleBatch.of(run) for run in runs]
