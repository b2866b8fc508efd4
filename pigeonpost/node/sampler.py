"""Takes samples on time: every source at every slot, none waiting for another.

Runs on: node.  Reached from: node.py.  Hands on to: `deliver`, which is Outbox.put.
Threads: one keeps the time (`Metronome`, a threading.Timer on absolute deadlines); each source has its own, so a slow
  one delays nobody: it is asked through a queue and answers through one. Derived channels are made in the first one,
  of what the others gave last.
Errors: a source that fails or is late gives null, with the error beside it. Any exception of a source counts as its
  failure.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from pigeonpost.core.clock import Clock
from pigeonpost.core.errors import SensorError
from pigeonpost.node.ring_records import UnnumberedSample
from pigeonpost.sensors.contract import DerivedSource, LatestReadings, Readings, SensorSource, in_order
from protocol import LARGEST_INTEGER, Number

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0  # for the slowest source, and never more than most of the interval
_SHARE = 0.8

_Answer = tuple["_Reader", int, "Readings | SensorError", float]  # who, of which slot, what, and when


class Metronome(threading.Timer):
    """A Timer that goes off again and again, `interval` seconds apart to the end of time: its deadlines are
    multiples of the interval after the first, however long the function takes, so it does not drift."""

    def __init__(self, interval: float, function: Callable[[int], Any], clock: Clock) -> None:
        """`function` gets the number of slots that were missed before this one: a machine that stood still goes on
        with the next slot, and does not make up for what is past."""
        super().__init__(interval, function)
        self.daemon = True
        self.name = "sampler"
        self._clock = clock

    def run(self) -> None:
        first_s, slot, missed = self._clock.monotonic(), 0, 0
        while not self._clock.wait(self.finished, first_s + slot * self.interval - self._clock.monotonic()):
            self.function(missed)
            # A slot whose time has passed by more than half an interval is missed: taken now it would crowd the next.
            passed = (self._clock.monotonic() - first_s) / self.interval
            missed = max(0, math.ceil(passed - 0.5) - slot - 1)
            slot += 1 + missed


class _Reader:
    """One source with the thread that reads it."""

    def __init__(self, source: SensorSource, answers: queue.SimpleQueue[_Answer], clock: Clock) -> None:
        self.source = source
        self.name = source.channels[0].name
        self.busy = False  # asked, and has not answered yet
        self._answers = answers
        self._clock = clock
        self._asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"read {self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self, slot: int) -> None:
        """Read once, and answer with the slot's number; 0: end."""
        self.busy = True
        self._asked.put(slot)

    def stop(self, limit_s: float) -> bool:
        self._asked.put(0)
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while slot := self._asked.get():
            try:
                answer: Readings | SensorError = self.source.read()
                if not isinstance(answer, Mapping):
                    raise TypeError(f"read() gave {answer!r:.80}")
            except SensorError as error:
                answer = error
            except Exception as error:
                log.exception("a fault in the code that reads %s", self.name)
                answer = SensorError(f"a fault of the program: {error!r}")
            self._answers.put((self, slot, answer, self._clock.monotonic()))
        self.source.close()


class Sampler:
    """All sources of a node, sampled together every `every_s` seconds."""

    def __init__(
        self,
        sources: Sequence[SensorSource],
        deliver: Callable[[UnnumberedSample], Any],
        every_s: float,
        clock: Clock,
        is_on: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        deliver  takes each sample; it must not wait
        every_s  sampling interval in seconds, from 0.01
        is_on    whether to sample now; asked at every slot

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
        self._names = [channel.name for source in sources for channel in source.channels]
        self._derived = in_order(sources)
        self._latest: dict[str, LatestReadings] = {}  # kept only for those
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._readers = [
            _Reader(source, self._answers, clock) for source in sources if not isinstance(source, DerivedSource)
        ]
        self._metronome = Metronome(every_s, self.sample, clock)

    def start(self) -> None:
        """Take the first sample now, and go on."""
        for reader in self._readers:
            reader.start()
        self._metronome.start()

    def stop(self, limit_s: float) -> str | None:
        """Take no more; says so when a source does not let go within `limit_s` seconds."""
        self._metronome.cancel()
        stuck = [reader.name for reader in self._readers if not reader.stop(limit_s / (len(self._readers) + 1))]
        for source, _ in self._derived:
            source.close()
        return f"still reading: {', '.join(stuck)}" if stuck else None

    def sample(self, missed: int = 0) -> None:
        """Take one sample now and deliver it; `missed` slots before it were not taken."""
        self.missed += missed
        if not self._is_on():
            return
        wall_ms, up_ms, clock_set = self._clock.wall_ms(), self._clock.up_ms(), self._clock.is_set()
        answers = self._ask_all()
        readings: dict[str, object] = {}
        for reader in self._readers:
            answer = answers.get(reader, SensorError(f"no answer within {self._patience_s:g} s"))
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
        self._note_failures(errors)
        self.taken += 1
        self._deliver(UnnumberedSample(wall_ms, up_ms, clock_set, values, errors))

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

    def _take_answers(self, seconds: float, answers: dict[_Reader, Readings | SensorError]) -> bool:
        """Take what has come, after waiting at most `seconds` for one; False when none came."""
        try:
            while True:
                reader, slot, answer, at_s = self._answers.get(timeout=max(0.0, seconds))
                reader.busy = False
                if self._derived and not isinstance(answer, SensorError):  # also a late one: they judge its age
                    self._latest |= {
                        name: LatestReadings(value, at_s) for name, value in answer.items() if _is_number(value)
                    }
                if slot == self._slot:
                    answers[reader] = answer
                if self._answers.empty():
                    return True
        except queue.Empty:
            return False

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

    def _note_failures(self, errors: dict[str, str]) -> None:
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
