"""Sensor kind "counter": pulses on a GPIO line, such as those of a rain gauge or an energy meter.

    value = "total"      start value + pulses x scale; it never decreases, also over restarts and power cuts
    value = "rate"       pulses x scale x per, divided by the seconds between two readings
    value = "missed"     pulses whose records were missed; they are counted, because the kernel numbers the edges

The kernel numbers the edges (gpio), so the total is exact even if the records are not read for a long time. Therefore
no thread wakes for each pulse.

Durability: the state is on the disk (counter_file) before a reading contains it. A total that was reported is thus
never reported again for other pulses, and never decreases. Between the readings, the state is written every `save`
seconds if there were pulses. After a crash, the pulses since the last write are lost; so are those during which the
node does not run.

Threads: if there is a total, `start` creates one thread, which updates and saves the state every `save` seconds, also
while sampling is off. `_lock` guards the line, the file and the state; it is held during a write.

Errors: SensorError if the line cannot be requested or the state cannot be stored. Both are tried again at each reading.
The pulses are counted further if the state cannot be stored.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from pigeonpost.core.config import Option, a_table, matching, number, one_of, read_options, text
from pigeonpost.core.data_folder import COUNTERS
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.format import counted
from pigeonpost.core.wakeup import StopFlag
from pigeonpost.sensors.contract import CALIBRATION, Channel, Readings, SensorSource, calibrated, channel_tables
from pigeonpost.sensors.counter_file import CounterFile, CounterState
from pigeonpost.sensors.gpio import BIASES, EDGES, EdgeCounter, Ioctl, LineRequest, find_chip, request_edges
from protocol import UNIT, Number

log = logging.getLogger(__name__)

OPTIONS = (
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("line", number(0, 1023, whole=True), None, "number of the line; on a Raspberry Pi the BCM number"),
    Option(
        "chip", text, "", "path (/dev/gpiochip0) or label of the GPIO chip (empty: that of a Raspberry Pi's header)"
    ),
    Option("edge", one_of(*EDGES), "falling", "the counted edge: rising or falling"),
    Option("bias", one_of(*BIASES), "pull-up", "resistor in the chip: pull-up, pull-down, none, or as-is"),
    Option("debounce_ms", number(0, 1000), 5.0, "milliseconds for which the level must be stable to count; 0: none"),
    Option("scale", number(1e-6, 1e9), 1.0, "amount per pulse, in the unit of the channel"),
    Option("start", number(-1e15, 1e15), None, "present total, such as the meter's reading; applied when it changes"),
    Option("save", number(1, 3600), 10.0, "seconds after which new pulses are stored at the latest"),
)
CHANNEL_OPTIONS = (
    Option("value", one_of("total", "rate", "missed"), "total", "what the channel is: total, rate or missed"),
    Option("per", number(1e-3, 86_400), 1.0, "rate: seconds to which it refers; 3600: per hour"),
    Option("over", number(0, 86_400), 0.0, "rate: seconds over which it is averaged; 0: since the previous reading"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), "", "unit of the value"),
    *CALIBRATION,
)
_STOP_S = 2.0
_WINDOW_POINTS = 256  # maximum number of earlier readings kept for a rate


class RateWindow:
    """Rate of a count over a time.

    Args:
        over_s: Time in seconds over which the rate is averaged; 0 for the time since the previous reading.
    """

    def __init__(self, over_s: float) -> None:
        self._over_s = over_s
        self._points: deque[tuple[float, int]] = deque()

    def update(self, now_s: float, count: int) -> float:
        """Add a reading, and return the rate per second since the newest reading that is old enough.

        Args:
            now_s: Time of the reading, from a monotonic clock.
            count: Count at this time.

        Raises:
            SensorError: There is no earlier reading.
        """
        points = self._points
        while len(points) > 1 and now_s - points[1][0] >= self._over_s:
            points.popleft()
        if not points or now_s - points[-1][0] > self._over_s / _WINDOW_POINTS:
            points.append((now_s, count))
        then_s, before = points[0]
        if now_s <= then_s:
            raise SensorError("a rate needs two readings")
        return (count - before) / (now_s - then_s)

    def clear(self) -> None:
        """Forget all readings, after pulses were not counted."""
        self._points.clear()


class CounterSource(SensorSource):
    """Counter of the pulses on one GPIO line."""

    def __init__(
        self, options: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Any]], root: str = "/",
        ioctl: Ioctl = fcntl.ioctl, now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Create the source. It counts after `start`.

        Args:
            options: Options of the source.
            chosen: Options of each channel, by channel name.
            root: Folder that replaces `/` in tests.
            ioctl: Replaces fcntl.ioctl in tests.
            now_s: Clock that returns seconds.
        """
        self.channels = [
            Channel(name, entry["unit"], is_total=entry["value"] == "total") for name, entry in chosen.items()
        ]
        self._options, self._chosen, self._root, self._ioctl, self._now_s = options, chosen, root, ioctl, now_s
        # The name of the file is that of the total, so a total continues if its line changes.
        totals = [name for name, entry in chosen.items() if entry["value"] == "total"]
        self._name, self._has_total = (totals or [*chosen])[0], bool(totals)
        self._windows = {name: RateWindow(entry["over"]) for name, entry in chosen.items() if entry["value"] == "rate"}
        self._lock = threading.Lock()
        self._file: CounterFile | None = None
        self._line: EdgeCounter | None = None
        self._state: CounterState | None = None
        self._saved: CounterState | None = None  # the newest state that is on the disk
        self._stop = StopFlag()
        self._thread = threading.Thread(target=self._run, name=f"counter {self._name}", daemon=True)

    def start(self, data: str) -> None:
        self._file = CounterFile(os.path.join(data, COUNTERS, self._name))
        if self._has_total:  # without a total, there is nothing to store
            self._thread.start()

    def read(self) -> Readings:
        if self._file is None:
            raise SensorError("pulses are counted only while the node runs")
        readings: dict[str, Number | SensorError] = {}
        with self._lock:
            state = self._save(self._update(self._file), self._file)
            now_s = self._now_s()
            for name, chosen in self._chosen.items():
                try:
                    readings[name] = self._value(name, chosen, state, now_s)
                except SensorError as error:
                    readings[name] = error
        return readings

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        if self._lock.acquire(timeout=_STOP_S):  # a disk that does not answer must not prevent the end
            try:
                if self._file is not None and self._state is not None:
                    self._try_to_save(self._file)
                self._release()
            finally:
                self._lock.release()

    def _value(self, name: str, chosen: Mapping[str, Any], state: CounterState, now_s: float) -> Number:
        match chosen["value"]:
            case "total":
                return calibrated(state.total, chosen)
            case "rate":
                per_s = self._windows[name].update(now_s, state.pulses)
                return calibrated(per_s * state.scale * chosen["per"], chosen)
        return calibrated(state.missed, chosen)

    def _run(self) -> None:
        """Count from the start of the node, and save the state regularly."""
        file = self._file
        assert file is not None
        while True:
            with self._lock:
                self._try_to_save(file)
            if self._stop.wait(self._options["save"]):
                return

    def _try_to_save(self, file: CounterFile) -> None:
        # OSError includes SensorError. The next reading reports the error.
        with contextlib.suppress(OSError):
            self._update(file)
        with contextlib.suppress(OSError):  # also if the line has failed
            if self._state is not None:
                self._save(self._state, file)

    # The following methods are called with the lock held.

    def _update(self, file: CounterFile) -> CounterState:
        """Count the pulses until now, and return the state. Requests the line first if necessary."""
        try:
            if self._line is None and not self._stop.is_set():
                self._line = self._request()
        finally:  # the kernel counts the edges even if the file cannot be used yet
            if self._state is None:
                self._state = self._continued(file.load() if self._has_total else None)
        line = self._line
        if line is None:
            return self._state
        edges, missed = line.edges, line.missed
        try:
            line.update()
        except OSError as error:
            self._release()
            raise SensorError(f"GPIO {self._options['line']}: {error.strerror}") from None
        finally:  # the edges before an error count
            new, new_missed = line.edges - edges, line.missed - missed
            if new_missed and not missed:
                log.warning(
                    "%s: the records of %s were missed, because they were not read in time; the pulses are counted"
                    " (remedy: a shorter `save`)", self._name, counted(new_missed, "pulse"),
                )  # fmt: skip
            self._state = self._state._replace(pulses=self._state.pulses + new, missed=self._state.missed + new_missed)
        return self._state

    def _save(self, state: CounterState, file: CounterFile) -> CounterState:
        if self._has_total and state != self._saved:
            file.save(state)
            self._saved = state
        return state

    def _request(self) -> EdgeCounter:
        options = self._options
        chip = find_chip(options["chip"], self._root, self._ioctl)
        request = LineRequest(options["line"], options["edge"], options["bias"], round(options["debounce_ms"] * 1000))
        return request_edges(chip, request, self._ioctl)

    def _release(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        for window in self._windows.values():
            window.clear()

    def _continued(self, stored: CounterState | None) -> CounterState:
        """Return the state with which this program continues, from the stored one and the settings."""
        scale, start = self._options["scale"], self._options["start"]
        if stored is None:
            if self._has_total:
                log.info("%s: a new total begins at %.12g", self._name, start or 0.0)
            return CounterState(0, 0, start or 0.0, scale, start)
        if start is not None and start != stored.start:
            log.info("%s: the total is set to start = %.12g; it was %.12g", self._name, start, stored.total)
            return CounterState(0, 0, start, scale, start)
        log.info("%s: the total continues at %.12g", self._name, stored.total)
        if scale != stored.scale:  # the pulses so far keep their amount, so that the total does not change
            return stored._replace(pulses=0, base=stored.total, scale=scale)
        return stored


def make(settings: Mapping[str, Any], where: str) -> CounterSource:
    """Return the source for a [[sensor]] table with kind = "counter". It requests the line when it is started.

    Args:
        settings: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid. A line that cannot be requested is not an error here.
    """
    options, chosen = read_tables(settings, where)
    return CounterSource(options, chosen)


def read_tables(settings: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the options of the source, and those of each channel by channel name.

    Args:
        settings: The keys and values of the [[sensor]] table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid.
    """
    options = read_options(settings, OPTIONS, where)
    if options["line"] is None:
        raise SettingsError(f"{where}: line is missing: the number of the GPIO line, such as 17")
    chosen: dict[str, dict[str, Any]] = {}
    for name, entry, channel_where in channel_tables(
        options["channels"], CHANNEL_OPTIONS, OPTIONS, where, 'rain = {unit = "mm"}'
    ):
        for key in ("per", "over"):
            if key in options["channels"][name] and entry["value"] != "rate":
                raise SettingsError(f'{channel_where}: {key} is only for value = "rate"')
        if entry["value"] == "total" and any(other["value"] == "total" for other in chosen.values()):
            raise SettingsError(f'{channel_where}: value = "total" is possible for one channel per line')
        chosen[name] = entry
    if options["start"] is not None and all(entry["value"] != "total" for entry in chosen.values()):
        raise SettingsError(f'{where}: start is only for a table with a channel that has value = "total"')
    return options, chosen
