"""Sampler of a node: reads all sources at fixed intervals and combines their readings to samples.

A slot is a time at which a sample is due.

Threads: `Metronome`, a threading.Timer with absolute deadlines, takes a sample in each slot. It calculates the derived
channels last.

With several sources, each source has its own thread, so a slow source does not delay the others.

A single source needs no thread: the metronome reads it, as long as it answers in time. A source that once answers late
gets its own thread permanently. If the source does not answer at all, `check` notices it and starts a new metronome, so
no slot is lost. The thread of the source then waits until the late reading has ended before it reads again.

`_lock` guards `_reading`. Either the metronome that has set it or `check` clears it; the one that clears it delivers
the sample.

Errors: For a source that fails or is late, the sample contains null and the error text. Every exception in a source
counts as a failure of that source. An impossible value (see sensors.ranges) counts as a failure of its channel.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import SensorError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from pigeonpost.core.wakeup import StopFlag, Wakeup
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.sensors.contract import DerivedSource, LatestReading, Readings, SensorSource, in_order
from pigeonpost.sensors.ranges import checked, ranges_of
from protocol import LARGEST_INTEGER, Number

if TYPE_CHECKING:
    from typing import Any, TypeGuard

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0  # maximum time to wait for the slowest source
_SHARE = 0.8  # maximum share of the interval to wait for the slowest source
# If a busy machine wakes the metronome late, the sample is taken nevertheless, except in the last 2 ms before the next
# slot (or the last fifth of a short interval): two samples within one millisecond would have the same time.
_GUARD_S, _GUARD_SHARE = 0.002, 0.2

_Answer = tuple["_Reader", int, "Readings | SensorError", float]  # reader, slot, readings, time (Clock.monotonic)


class Metronome(threading.Timer):
    """Repeating timer that does not drift.

    Its deadlines are multiples of the interval after the first one, regardless of the time that the function takes.
    """

    def __init__(
        self, interval: float, function: Callable[[int], Any], clock: Clock, after: tuple[float, int] | None = None
    ) -> None:
        """Create the timer without starting it.

        Args:
            interval: Interval in seconds.
            function: Function that is called in each slot, with the number of slots missed before it. After the machine
                has been suspended or stopped, the timer continues with the next slot; it does not repeat missed slots.
            clock: Clock of the node.
            after: The `position` of the metronome that this one replaces, or None.
        """
        super().__init__(interval, function)
        self.finished = StopFlag()
        self.daemon = True
        self.name = "sampler"
        self._clock = clock
        self._after = after
        self._first_s, self._slot = after or (0.0, 0)

    @property
    def position(self) -> tuple[float, int]:
        """Time of the first slot (Clock.monotonic), and the number of the current or next slot."""
        return self._first_s, self._slot

    def run(self) -> None:
        """Call the function in each slot until the timer is cancelled."""
        missed = 0
        if self._after is None:
            self._first_s = self._clock.monotonic()
        else:
            missed = self._advance()
        while not self._clock.wait(self.finished, self._first_s + self._slot * self.interval - self._clock.monotonic()):
            passed = self._skip(1.0 - min(_GUARD_SHARE, _GUARD_S / self.interval))
            if passed:  # the machine has woken this thread so late that slots have passed
                missed += passed
            else:
                self.function(missed)
                missed = self._advance()

    def _advance(self) -> int:
        """Advance to the next slot. Return the number of slots missed before it."""
        self._slot += 1
        return self._skip(0.5)

    def _skip(self, latest: float) -> int:
        """Skip the slots that are more than `latest` intervals late. Return their number.

        Their samples would be too close to the next sample.
        """
        passed = math.ceil((self._clock.monotonic() - self._first_s) / self.interval - latest) - self._slot
        if passed <= 0:
            return 0
        self._slot += passed
        return passed


class _Reader:
    """A source and, if it has its own, the thread that reads it."""

    def __init__(self, source: SensorSource, answer: Callable[[_Answer], Any], clock: Clock) -> None:
        self.source = source
        self.name = source.channels[0].name
        self.busy = False  # a reading has been requested and is not finished
        self._answer = answer
        self._clock = clock
        self._ranges = ranges_of(source.channels, source.calibrations)
        self._slot: int | None = None  # the slot for which a reading is requested
        self._is_ending = False
        self._requested = Wakeup()
        self._late: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run, name=f"read {self.name}", daemon=True)

    def start(self, late: threading.Thread | None = None) -> None:
        """Start the thread. It first waits until the thread `late`, if any, has finished its reading."""
        self._late = late
        self._thread.start()

    def request(self, slot: int) -> None:
        """Request one reading for a slot."""
        self.busy = True
        self._slot = slot
        self._requested.set()

    def stop(self, limit_s: float) -> bool:
        self._is_ending = True
        self._requested.set()
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def read(self) -> Readings | SensorError:
        """Read the source now. Every exception, and every impossible value, becomes a SensorError."""
        try:
            readings = self.source.read()
            if not isinstance(readings, Mapping):
                raise TypeError(f"read() returned {readings!r:.80}")
            return checked(readings, self._ranges) if self._ranges else readings
        except SensorError as error:
            return error
        except Exception as error:
            log.exception("internal error while reading %s", self.name)
            return SensorError(f"internal error: {error!r}")

    def _run(self) -> None:
        if self._late is not None:
            self._late.join()
            self._late = None
        while self._slot is not None or not self._is_ending:  # a request made before the end is still answered
            self._requested.wait()
            slot, self._slot = self._slot, None
            if slot is not None:
                self._answer((self, slot, self.read(), self._clock.monotonic()))
        self.source.close()


class _SampleTime(NamedTuple):
    """Time of a sample: date and uptime in milliseconds, and True if the clock is set."""

    wall_ms: int
    up_ms: int
    clock_set: bool


class _ReadingInProgress(NamedTuple):
    """A reading that the metronome is making itself: its start (Clock.monotonic) and the time of the sample."""

    began_s: float
    time: _SampleTime


class Sampler:
    """Samples all sources of a node together, every `every_s` seconds.

    Attributes:
        taken: Number of samples taken.
        missed: Number of slots whose time passed while the machine was suspended or too busy.
        failed: Number of readings without a value.
        check_s: Interval in seconds at which `check` should be called.
    """

    def __init__(
        self,
        sources: Sequence[SensorSource],
        deliver: Callable[[UnnumberedSample], Any],
        every_s: float,
        clock: Clock,
        is_on: Callable[[], bool] = lambda: True,
        is_checked: bool = False,
    ) -> None:
        """Create the sampler without starting it.

        Args:
            sources: The sources.
            deliver: Function that is called with each sample. It must not block.
            every_s: Sampling interval in seconds, at least 0.01.
            clock: Clock of the node.
            is_on: Function that returns True if sampling is on; called in every slot.
            is_checked: True if `check` will be called every `check_s` seconds. If False, even a single source has its
                own thread.

        Raises:
            SettingsError: A derived channel uses a channel that does not exist.
        """
        self.taken = 0
        self.missed = 0
        self.failed = 0
        self._deliver = deliver
        self._clock = clock
        self._is_on = is_on
        self._slot = 0
        self._failing: set[str] = set()
        self._patience_s = min(LONGEST_WAIT_S, _SHARE * every_s)
        self.check_s = max(1.0, self._patience_s)  # not more often, so that its cost is negligible
        self._every_s = every_s
        for source in sources:
            source.patience_s = self._patience_s
        self._names = [channel.name for source in sources for channel in source.channels]
        self._derived = in_order(sources)
        self._derived_ranges = ranges_of(channel for source, _ in self._derived for channel in source.channels)
        self._latest: dict[str, LatestReading] = {}  # kept only if there are derived channels
        self._answers: deque[_Answer] = deque()
        self._answered = Wakeup()
        self._readers = [
            _Reader(source, self._queue_answer, clock) for source in sources if not isinstance(source, DerivedSource)
        ]
        self._lock = threading.Lock()
        self._single = self._readers[0] if is_checked and len(self._readers) == 1 else None  # read by the metronome
        self._reading: _ReadingInProgress | None = None
        self._is_stopping = False
        # True if the metronome will next report slots as missed that passed during a late reading (see _fill_missed).
        self._is_behind = False
        self._metronome = Metronome(every_s, self.sample, clock)

    def start(self) -> None:
        """Take the first sample now, and start the threads."""
        if self._single is None:
            for reader in self._readers:
                reader.start()
        self._metronome.start()

    def stop(self, limit_s: float) -> str | None:
        """Stop sampling and close the sources.

        Args:
            limit_s: Maximum time to wait, in seconds.

        Returns:
            None, or a message with the sources that are still being read.
        """
        self._is_stopping = True
        self._metronome.cancel()
        share_s = limit_s / (len(self._readers) + 1)
        if self._metronome.is_alive():  # first, so that the sources still answer for the sample in progress
            self._metronome.join(share_s)
        is_reading = self._metronome.is_alive()
        single = self._single  # read only now: a metronome that has ended can no longer give the source a thread
        if single is None:
            stuck = [reader.name for reader in self._readers if not reader.stop(share_s)]
        elif is_reading:
            stuck = [single.name]
        else:
            stuck = []
            single.source.close()
        for source, _ in self._derived:
            source.close()
        return f"still reading: {', '.join(stuck)}" if stuck else None

    def check(self) -> None:
        """Replace the metronome if it is waiting for a single source that does not answer in time.

        The sample in progress is delivered now, with null. This method must be called by the same thread as `stop`.
        """
        reading = self._reading
        if reading is None or self._clock.monotonic() - reading.began_s <= self._patience_s:
            return
        with self._lock:
            if self._reading is not reading:  # the source has just answered
                return
            self._reading = None
            late = self._metronome
            self._metronome = Metronome(self._every_s, self.sample, self._clock, late.position)
            late.cancel()  # before it can continue with its next slot
        self._give_thread(late)
        self._deliver_sample(reading.time, {})
        self._metronome.start()

    def sample(self, missed: int = 0) -> None:
        """Take one sample now and deliver it. `missed` is the number of slots missed before it."""
        if missed and self._is_behind:
            missed -= self._fill_missed(missed)
        self._is_behind = False
        self.missed += missed
        if not self._is_on():
            return
        time = self._sample_time()
        answers = self._request_all() if self._single is None else self._read_single(self._single, time)
        if answers is not None:
            self._deliver_sample(time, answers)

    def _sample_time(self) -> _SampleTime:
        return _SampleTime(self._clock.wall_ms(), self._clock.up_ms(), self._clock.is_set())

    def _deliver_sample(self, time: _SampleTime, answers: Mapping[_Reader, Readings | SensorError]) -> None:
        readings: dict[str, object] = {}
        for reader in self._readers:
            answer = answers.get(reader)
            if answer is None:
                answer = SensorError(f"no answer within {self._patience_s:g} s")
            for channel in reader.source.channels:
                readings[channel.name] = answer if isinstance(answer, SensorError) else answer.get(channel.name)
        for source, name in self._derived:
            readings[name] = self._derive(source, name)
        values: dict[str, Number | None] = {}
        errors: dict[str, str] = {}
        for name in self._names:
            reading = readings[name]
            if _is_number(reading):
                values[name] = reading
            else:
                values[name] = None
                errors[name] = str(reading) if isinstance(reading, SensorError) else f"invalid value: {reading!r:.80}"
        if errors or self._failing:
            self._record_failures(errors)
        self.taken += 1
        self._deliver(UnnumberedSample(*time, values, errors))

    # ------------------------------------------------------------------------ a single source, read by the metronome

    def _read_single(self, single: _Reader, time: _SampleTime) -> Mapping[_Reader, Readings | SensorError] | None:
        """Return the answer of the single source, {} if it is late, or None if `check` has delivered the sample."""
        reading = _ReadingInProgress(self._clock.monotonic(), time)
        self._reading = reading
        answer = single.read()
        ended_s = self._clock.monotonic()
        with self._lock:
            is_current = self._reading is reading
            if is_current:
                self._reading = None
        if not is_current:
            self._queue_answer((single, 0, answer, ended_s))
            return None
        self._keep_latest(answer, ended_s)
        if ended_s - reading.began_s <= self._patience_s:
            return {single: answer}
        self._give_thread(None)
        return {}

    def _give_thread(self, late: threading.Thread | None) -> None:
        """Give the single source its own thread. The source is busy until the thread `late`, if any, has read it."""
        single = self._single
        if single is not None:
            single.busy = late is not None
            single.start(late)
            self._single = None  # only after the start, because `stop` then ends the thread
            if self._is_stopping:  # `stop` may already have stopped waiting for the source
                single.stop(0.0)
        self._is_behind = True

    def _fill_missed(self, missed: int) -> int:
        """Deliver samples with null for the slots that passed during a late reading. Return their number.

        Their number is at most the number of slots until `check` notices the late reading. More slots can only be
        missed if the machine was suspended. No samples are delivered for those.
        """
        count = min(missed, math.ceil((self.check_s + self._patience_s) / self._every_s)) if self._is_on() else 0
        now = self._sample_time()
        for slots_ago in range(count, 0, -1):
            ago_ms = round(slots_ago * self._every_s * 1000)
            self._deliver_sample(_SampleTime(now.wall_ms - ago_ms, now.up_ms - ago_ms, now.clock_set), {})
        return count

    # ---------------------------------------------------------------------------------- sources with their own threads

    def _request_all(self) -> dict[_Reader, Readings | SensorError]:
        """Request a reading from every source that is not busy, and return the answers that arrive in time."""
        self._slot += 1
        give_up_s = self._clock.monotonic() + self._patience_s
        self._take_answers(0.0, {})  # late answers for earlier slots
        waiting = [reader for reader in self._readers if not reader.busy]
        for reader in waiting:
            reader.request(self._slot)
        answers: dict[_Reader, Readings | SensorError] = {}
        while len(answers) < len(waiting) and self._take_answers(give_up_s - self._clock.monotonic(), answers):
            pass
        return answers

    def _queue_answer(self, answer: _Answer) -> None:
        """Queue an answer; called in the thread of the source."""
        self._answers.append(answer)
        self._answered.set()

    def _take_answers(self, seconds: float, answers: dict[_Reader, Readings | SensorError]) -> bool:
        """Move the answers from the queue to `answers`. Return False if none arrives within `seconds`."""
        while not self._answers:
            if not self._answered.wait(max(0.0, seconds)):
                return False
        while self._answers:
            reader, slot, answer, at_s = self._answers.popleft()
            reader.busy = False
            self._keep_latest(answer, at_s)  # also if it is late, because derived channels check its age
            if slot == self._slot:
                answers[reader] = answer
        return True

    def _keep_latest(self, answer: Readings | SensorError, at_s: float) -> None:
        if self._derived and not isinstance(answer, SensorError):
            self._latest |= {name: LatestReading(value, at_s) for name, value in answer.items() if _is_number(value)}

    # ---------------------------------------------------------------------------------- derived channels, failures

    def _derive(self, source: DerivedSource, name: str) -> Number | SensorError:
        """Return the value of a derived channel, calculated from the latest readings."""
        try:
            made = source.derive(name, self._latest, self._clock.monotonic())
        except SensorError as error:
            return error
        except Exception as error:
            log.exception("internal error while calculating %s", name)
            return SensorError(f"internal error: {error!r}")
        value: Number | SensorError = checked({name: made.value}, self._derived_ranges)[name]
        if _is_number(value):
            self._latest[name] = made
        return value

    def _record_failures(self, errors: dict[str, str]) -> None:
        """Log a channel's failure when it begins and when it ends, not at every sample."""
        self.failed += len(errors)
        for name in errors.keys() - self._failing:
            log.warning("%s: %s", name, errors[name])
        for name in self._failing - errors.keys():
            log.info("%s: can be read again", name)
        self._failing = set(errors)


def _is_number(reading: object) -> TypeGuard[Number]:
    """Return True if a reading can be sent: a finite float or an integer of 64 bits, but not True or False."""
    if type(reading) is int:
        return -LARGEST_INTEGER <= reading <= LARGEST_INTEGER
    return type(reading) is float and math.isfinite(reading)
