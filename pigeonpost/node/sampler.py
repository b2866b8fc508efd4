"""Takes samples on time: every source at every slot, none waiting for another.

Threads: `Metronome`, a threading.Timer on absolute deadlines, keeps the time and makes the samples, derived channels
  last. With several sources each has a thread of its own, so that a slow one delays nobody. A single source needs none:
  the metronome reads it, as long as it answers in time. When it does not, it gets its own thread, for good; where it is
  stuck, `check` finds that out, gives the time to a new metronome, and no slot is lost. The source's thread begins to
  read when the reading that was late has come to its end.
`_lock` guards `_reading`: the metronome that set it, or `check`, clears it, and so delivers that sample.
Errors: a source that fails or is late gives null, with the error beside it. Any exception of a source counts as its
  failure.
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
from pigeonpost.sensors.contract import DerivedSource, LatestReadings, Readings, SensorSource, in_order
from protocol import LARGEST_INTEGER, Number

if TYPE_CHECKING:
    from typing import Any, TypeGuard

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0  # for the slowest source, and never more than most of the interval
_SHARE = 0.8
# Where a busy machine wakes the metronome late, the sample is taken all the same, but for the last 2 ms before the next
# slot (of short intervals the last fifth): two samples in one millisecond would have one date.
_GUARD_S, _GUARD_SHARE = 0.002, 0.2

_Answer = tuple["_Reader", int, "Readings | SensorError", float]  # reader, slot, answer, its time (Clock.monotonic)


class Metronome(threading.Timer):
    """A Timer that repeats. Its deadlines are multiples of the interval after the first, however long the function
    takes, so it does not drift."""

    def __init__(
        self, interval: float, function: Callable[[int], Any], clock: Clock, after: tuple[float, int] | None = None
    ) -> None:
        """
        function  gets the number of slots that were missed before this one: a machine that stood still goes on with the
                  next slot, and does not make up for what is past
        after     the `position` of a metronome that this one goes on for
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
        """When the first slot was (Clock.monotonic), and the number of the one in progress, or waited for."""
        return self._first_s, self._slot

    def run(self) -> None:
        missed = 0
        if self._after is None:
            self._first_s = self._clock.monotonic()
        else:
            missed = self._advance()
        while not self._clock.wait(self.finished, self._first_s + self._slot * self.interval - self._clock.monotonic()):
            passed = self._skip(1.0 - min(_GUARD_SHARE, _GUARD_S / self.interval))
            if passed:  # the wait took that much too long
                missed += passed
            else:
                self.function(missed)
                missed = self._advance()

    def _advance(self) -> int:
        """Go on to the next slot. Returns the number of slots missed before it."""
        self._slot += 1
        return self._skip(0.5)

    def _skip(self, latest: float) -> int:
        """Skip slots whose time has passed by more than `latest` intervals: taken now they would crowd the next."""
        passed = math.ceil((self._clock.monotonic() - self._first_s) / self.interval - latest) - self._slot
        if passed <= 0:
            return 0
        self._slot += passed
        return passed


class _Reader:
    """One source, and the thread that reads it if it has its own."""

    def __init__(self, source: SensorSource, answer: Callable[[_Answer], Any], clock: Clock) -> None:
        self.source = source
        self.name = source.channels[0].name
        self.busy = False  # asked, and has not answered yet
        self._answer = answer
        self._clock = clock
        self._slot: int | None = None  # to read for
        self._is_ending = False
        self._asked = Wakeup()
        self._late: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run, name=f"read {self.name}", daemon=True)

    def start(self, late: threading.Thread | None = None) -> None:
        """Start the thread, which first lets the thread `late` finish what it reads."""
        self._late = late
        self._thread.start()

    def ask(self, slot: int) -> None:
        """Read once, and answer with the slot's number."""
        self.busy = True
        self._slot = slot
        self._asked.set()

    def stop(self, limit_s: float) -> bool:
        self._is_ending = True
        self._asked.set()
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def read(self) -> Readings | SensorError:
        """Read now. Every exception becomes a SensorError."""
        try:
            readings = self.source.read()
            if not isinstance(readings, Mapping):
                raise TypeError(f"read() gave {readings!r:.80}")
            return readings
        except SensorError as error:
            return error
        except Exception as error:
            log.exception("a fault in the code that reads %s", self.name)
            return SensorError(f"a fault of the program: {error!r}")

    def _run(self) -> None:
        if self._late is not None:
            self._late.join()
            self._late = None
        while self._slot is not None or not self._is_ending:  # what was asked before the end is answered
            self._asked.wait()
            slot, self._slot = self._slot, None
            if slot is not None:
                self._answer((self, slot, self.read(), self._clock.monotonic()))
        self.source.close()


class _Moment(NamedTuple):
    """When a sample is taken, as it is dated."""

    wall_ms: int
    up_ms: int
    clock_set: bool


class _Reading(NamedTuple):
    """What the metronome reads itself just now: since when (Clock.monotonic), and the sample's date."""

    began_s: float
    moment: _Moment


class Sampler:
    """All sources of a node, sampled together every `every_s` seconds."""

    def __init__(
        self,
        sources: Sequence[SensorSource],
        deliver: Callable[[UnnumberedSample], Any],
        every_s: float,
        clock: Clock,
        is_on: Callable[[], bool] = lambda: True,
        is_checked: bool = False,
    ) -> None:
        """
        deliver     takes each sample; it must not wait
        every_s     sampling interval in seconds, from 0.01
        is_on       whether to sample now; asked at every slot
        is_checked  whether `check` is called every `check_s` seconds; else also a single source has a thread

        Raises SettingsError when a derived channel lacks what it is made of.
        """
        self.taken = 0
        self.missed = 0  # slots whose time passed while the machine stood still
        self.failed = 0  # readings that gave no value
        self._deliver = deliver
        self._clock = clock
        self._is_on = is_on
        self._slot = 0
        self._failing: set[str] = set()
        self._patience_s = min(LONGEST_WAIT_S, _SHARE * every_s)
        self.check_s = max(1.0, self._patience_s)  # what it costs then does not show beside the samples
        self._every_s = every_s
        self._names = [channel.name for source in sources for channel in source.channels]
        self._derived = in_order(sources)
        self._latest: dict[str, LatestReadings] = {}  # kept only for those
        self._answers: deque[_Answer] = deque()
        self._answered = Wakeup()
        self._readers = [
            _Reader(source, self._take_in, clock) for source in sources if not isinstance(source, DerivedSource)
        ]
        self._lock = threading.Lock()
        self._single = self._readers[0] if is_checked and len(self._readers) == 1 else None  # read by the metronome
        self._reading: _Reading | None = None
        self._is_stopping = False
        self._is_behind = False  # the slots missed next passed while the metronome read
        self._metronome = Metronome(every_s, self.sample, clock)

    def start(self) -> None:
        """Take the first sample now, and go on."""
        if self._single is None:
            for reader in self._readers:
                reader.start()
        self._metronome.start()

    def stop(self, limit_s: float) -> str | None:
        """Take no more; says so when a source does not let go within `limit_s` seconds."""
        self._is_stopping = True
        self._metronome.cancel()
        share_s = limit_s / (len(self._readers) + 1)
        if self._metronome.is_alive():  # so that the sample in progress has its answers
            self._metronome.join(share_s)
        is_reading = self._metronome.is_alive()
        single = self._single  # read after that: a metronome that has ended gives no thread any more
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
        """Find out whether a single source is stuck, and have a new metronome go on without it.

        The samples that it should have been in are delivered now, with null. Called by the thread that calls `stop`.
        """
        reading = self._reading
        if reading is None or self._clock.monotonic() - reading.began_s <= self._patience_s:
            return
        with self._lock:
            if self._reading is not reading:  # it has answered just now
                return
            self._reading = None
            late = self._metronome
            self._metronome = Metronome(self._every_s, self.sample, self._clock, late.position)
            late.cancel()  # before it can go on to its next slot
        self._give_thread(late)
        self._deliver_sample(reading.moment, {})
        self._metronome.start()

    def sample(self, missed: int = 0) -> None:
        """Take one sample now and deliver it; `missed` slots before it were not taken."""
        if missed and self._is_behind:
            missed -= self._make_up(missed)
        self._is_behind = False
        self.missed += missed
        if not self._is_on():
            return
        moment = self._moment()
        answers = self._ask_all() if self._single is None else self._read_single(self._single, moment)
        if answers is not None:
            self._deliver_sample(moment, answers)

    def _moment(self) -> _Moment:
        return _Moment(self._clock.wall_ms(), self._clock.up_ms(), self._clock.is_set())

    def _deliver_sample(self, moment: _Moment, answers: Mapping[_Reader, Readings | SensorError]) -> None:
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
                errors[name] = str(reading) if isinstance(reading, SensorError) else f"gave {reading!r}"
        if errors or self._failing:
            self._record_failures(errors)
        self.taken += 1
        self._deliver(UnnumberedSample(*moment, values, errors))

    # ------------------------------------------------------------------------ a single source, read by the metronome

    def _read_single(self, single: _Reader, moment: _Moment) -> Mapping[_Reader, Readings | SensorError] | None:
        """The single source's answer, if it was in time. Returns None if `check` did not wait for it."""
        reading = _Reading(self._clock.monotonic(), moment)
        self._reading = reading
        answer = single.read()
        ended_s = self._clock.monotonic()
        with self._lock:
            is_mine = self._reading is reading
            if is_mine:
                self._reading = None
        if not is_mine:
            self._take_in((single, 0, answer, ended_s))
            return None
        self._keep_latest(answer, ended_s)
        if ended_s - reading.began_s <= self._patience_s:
            return {single: answer}
        self._give_thread(None)
        return {}

    def _give_thread(self, late: threading.Thread | None) -> None:
        """From now on the single source has its own thread; it is busy as long as `late` reads."""
        single = self._single
        if single is not None:
            single.busy = late is not None
            single.start(late)
            self._single = None  # only now: `stop` ends it
            if self._is_stopping:  # `stop` may have given up on it
                single.stop(0.0)
        self._is_behind = True

    def _make_up(self, missed: int) -> int:
        """Deliver samples with null for the slots that passed while the metronome read. Returns their number.

        They are those that `check` needs to find it out at most; for more than that this machine stood still.
        """
        count = min(missed, math.ceil((self.check_s + self._patience_s) / self._every_s)) if self._is_on() else 0
        now = self._moment()
        for slots_ago in range(count, 0, -1):
            ago_ms = round(slots_ago * self._every_s * 1000)
            self._deliver_sample(_Moment(now.wall_ms - ago_ms, now.up_ms - ago_ms, now.clock_set), {})
        return count

    # ---------------------------------------------------------------------------------- sources with their own threads

    def _ask_all(self) -> dict[_Reader, Readings | SensorError]:
        """Ask every source that is not still busy, and wait for their answers as long as is right."""
        self._slot += 1
        give_up_s = self._clock.monotonic() + self._patience_s
        self._take_answers(0.0, {})  # late ones, of slots before
        waiting = [reader for reader in self._readers if not reader.busy]
        for reader in waiting:
            reader.ask(self._slot)
        answers: dict[_Reader, Readings | SensorError] = {}
        while len(answers) < len(waiting) and self._take_answers(give_up_s - self._clock.monotonic(), answers):
            pass
        return answers

    def _take_in(self, answer: _Answer) -> None:
        """Called by the source's thread."""
        self._answers.append(answer)
        self._answered.set()

    def _take_answers(self, seconds: float, answers: dict[_Reader, Readings | SensorError]) -> bool:
        """Take what has come, after waiting at most `seconds` for one; False when none came."""
        while not self._answers:
            if not self._answered.wait(max(0.0, seconds)):
                return False
        while self._answers:
            reader, slot, answer, at_s = self._answers.popleft()
            reader.busy = False
            self._keep_latest(answer, at_s)  # also a late one: derived channels judge its age
            if slot == self._slot:
                answers[reader] = answer
        return True

    def _keep_latest(self, answer: Readings | SensorError, at_s: float) -> None:
        if self._derived and not isinstance(answer, SensorError):
            self._latest |= {name: LatestReadings(value, at_s) for name, value in answer.items() if _is_number(value)}

    # -------------------------------------------------------------------------------------------------- what they give

    def _derive(self, source: DerivedSource, name: str) -> Number | SensorError:
        """The value of a derived channel, of what is there now."""
        try:
            made = source.derive(name, self._latest, self._clock.monotonic())
        except SensorError as error:
            return error
        except Exception as error:
            log.exception("a fault in the code that makes %s", name)
            return SensorError(f"a fault of the program: {error!r}")
        if _is_number(made.value):
            self._latest[name] = made
        return made.value

    def _record_failures(self, errors: dict[str, str]) -> None:
        """Log a channel's failure when it begins and when it ends, not at every sample."""
        self.failed += len(errors)
        for name in errors.keys() - self._failing:
            log.warning("%s: %s", name, errors[name])
        for name in self._failing - errors.keys():
            log.info("%s: reads again", name)
        self._failing = set(errors)


def _is_number(reading: object) -> TypeGuard[Number]:
    """Whether a reading can go over the link: a finite number that fits 64 bits; True and False are none."""
    if type(reading) is int:
        return -LARGEST_INTEGER <= reading <= LARGEST_INTEGER
    return type(reading) is float and math.isfinite(reading)
