"""State of all components on the multicast bus: last values, lost packets, liveness, duplicate codifiers.

The bus's thread writes, any thread may read. `_lock` guards everything; it is held for a batch of packets, or to copy.
Packets are untrusted input: they are counted and shown, and what is kept is limited.
The names of the fields are those of the older system's Redis hash, so that its readers continue to work.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pigeonpost.compat.multicast_bus.packets import DATA, FLAGS, LAST_SEQUENCE, Packet

MOST_CODIFIERS = 512  # that are kept: there are 8,836, and an untrusted sender may send them all
BELIEVED_MS = 24 * 3_600_000  # a sender's time is believed when it is so near to ours
ALIVE_INTERVALS = 2.5  # of KeepAliveInterval without I, and it is not alive
USUAL_ALIVE_S = 60.0
_WINDOW = 64  # sequence numbers behind the newest of which it is known whether they came
_ALL_SEEN = (1 << _WINDOW) - 1
_FAR = 65_536  # a jump ahead of more is a sender that restarted, and whose N was lost
_MOST_PINGS = 64
_WIDER = 2**32


class ReceivedReading(NamedTuple):
    """A reading in a data packet: the number, or None and the reason, and the time when it was taken.

    more  other numbers that stood beside it (in JSON)
    """

    codifier: str
    time_ms: int
    value: int | float | None
    error: str
    more: Mapping[str, Any]


class Count:
    """Count of received and lost packets of one sender on one channel."""

    __slots__ = ("_last", "_seen", "_start", "_time_ms", "lost", "repeated", "unannounced")

    def __init__(self) -> None:
        self.lost = 0
        self.repeated = 0  # came again, as over two routers
        self.unannounced = 0  # times that it restarted without announcing that
        self._last = -1
        self._seen = 0  # bit n: the packet n before the last one has come
        self._time_ms = 0  # the newest time that its packets told
        self._start = (-1, 0)

    def restart(self, sequence: int, time_ms: int) -> bool:
        """Numbering restarts here; False when this very packet has come before."""
        if (sequence, time_ms) == self._start:
            self.repeated += 1
            return False
        self.lost = 0
        self._start = sequence, time_ms
        self._begin(sequence, time_ms)
        return True

    def record(self, sequence: int, time_ms: int) -> bool:
        """A packet has come; False when it had come before. What is jumped over is lost, until it comes after all."""
        if self._last < 0:
            self._begin(sequence, time_ms)
            return True
        # Senders go on with 0 after LAST_SEQUENCE; the old ones, on the data channel, with the next number.
        round_trip = LAST_SEQUENCE + 1 if self._last <= LAST_SEQUENCE else _WIDER
        ahead = (sequence - self._last) % round_trip
        if ahead == 1 or 1 < ahead <= _FAR:
            self.lost += ahead - 1
            self._seen = ((self._seen << ahead) | 1) & _ALL_SEEN if ahead < _WINDOW else 1
            self._last = sequence
            self._time_ms = max(self._time_ms, time_ms)
            return True
        behind = (self._last - sequence) % round_trip
        if behind >= _WINDOW or time_ms > self._time_ms:  # what is late or repeated is older than what came before it
            self.unannounced += 1
            self._begin(sequence, time_ms)
            return True
        if self._seen >> behind & 1:
            self.repeated += 1
            return False
        self._seen |= 1 << behind
        self.lost -= 1
        return True

    def _begin(self, sequence: int, time_ms: int) -> None:
        self._last, self._seen, self._time_ms = sequence, _ALL_SEEN, time_ms


class Component:
    """One codifier: its last values, and its counts of packets."""

    __slots__ = ("control", "data", "fields", "heard_ms")

    def __init__(self, codifier: str) -> None:
        self.fields: dict[str, Any] = {"Codifier": codifier}
        self.data = Count()
        self.control = Count()
        self.heard_ms = 0  # the last I, by our clock


class BusState:
    """The state of all components that were received."""

    def __init__(
        self,
        alive_s: Callable[[str], float] = lambda codifier: USUAL_ALIVE_S,
        is_listed: Callable[[str], bool] = lambda codifier: False,
    ) -> None:
        """
        alive_s    KeepAliveInterval of a codifier, in seconds
        is_listed  whether the configuration names a codifier: then there is always room for it
        """
        self._is_listed = is_listed
        self.packets = 0
        self.refused = 0  # datagrams that were no packets
        self.ignored = 0  # packets of more codifiers than are kept
        self.refusal = ""  # the last of them, in words
        self._alive_s = alive_s
        self._lock = threading.Lock()
        self._components: dict[str, Component] = {}
        self._pings: dict[tuple[str, str, float], int] = {}

    def receive(self, packets: Iterable[Packet], now_ms: int) -> list[ReceivedReading]:
        """Take note of packets that came now; gives the readings among them that are new."""
        readings = []
        components = self._components
        with self._lock:
            for packet in packets:
                self.packets += 1
                component = components.get(packet.source)
                if component is None:
                    if len(components) >= MOST_CODIFIERS and not self._is_listed(packet.source):
                        self.ignored += 1
                        continue
                    component = components[packet.source] = Component(packet.source)
                # The sender's time, as long as it can be true: a clock that is far off would date readings anywhere.
                time_ms = packet.time_ms
                if not -BELIEVED_MS <= time_ms - now_ms <= BELIEVED_MS:
                    days = (time_ms - now_ms) / BELIEVED_MS
                    component.fields["Note"] = f"its clock is {days:+.0f} days off: ours was used"
                    time_ms = now_ms
                elif "Note" in component.fields:
                    del component.fields["Note"]
                if FLAGS[packet.flag].channel == DATA:
                    reading = _record_data(component, packet, time_ms)
                    if reading is not None:
                        readings.append(reading)
                else:
                    self._record_control(component, packet, time_ms, now_ms)
        return readings

    def refuse(self, count: int, last: str) -> None:
        """Datagrams came that were no packets; `last` says of one what was wrong."""
        with self._lock:
            self.refused += count
            self.refusal = last

    def show(self, now_ms: int) -> dict[str, Any]:
        """All of it, for JSON."""
        with self._lock:
            return {
                "packets": self.packets, "refused": self.refused, "refusal": self.refusal, "ignored": self.ignored,
                "codifiers": {code: self._shown(code, self._components[code], now_ms)
                              for code in sorted(self._components)},
            }  # fmt: skip

    def _shown(self, codifier: str, component: Component, now_ms: int) -> dict[str, Any]:
        fields = {**component.fields, "DPacketsLost": component.data.lost, "CPacketsLost": component.control.lost}
        if component.heard_ms:
            fields["Alive"] = now_ms - component.heard_ms <= ALIVE_INTERVALS * 1000 * self._alive_s(codifier)
        for count, letter in ((component.data, "D"), (component.control, "C")):
            if count.repeated:
                fields[f"{letter}Repeated"] = count.repeated
            if count.unannounced:
                fields[f"{letter}Unannounced"] = count.unannounced
        return fields

    def _record_control(self, component: Component, packet: Packet, time_ms: int, now_ms: int) -> None:
        flag, fields, value = packet.flag, component.fields, packet.value
        assert isinstance(value, float)
        if flag == "N":
            if component.control.restart(packet.sequence, packet.time_ms):
                fields["CResetTime"], fields["IsActive"], fields["Configuration"] = time_ms, packet.active, value
            return
        component.control.record(packet.sequence, packet.time_ms)  # saying the same twice does no harm
        fields[f"{flag}Timestamp"] = time_ms
        if flag == "I":
            fields["IsActive"] = packet.active
            component.heard_ms = now_ms
            if value < fields.get("Configuration", value):  # the younger one has told the time of its own already
                fields["Duplicates"] = fields.get("Duplicates", 0) + 1
                fields["DuplicateTimestamp"] = time_ms
            else:
                fields["Configuration"] = value
        elif flag == "P":
            fields["PRequest"] = value
            if len(self._pings) >= _MOST_PINGS:
                self._pings.pop(next(iter(self._pings)))
            self._pings[packet.source, packet.to, value] = now_ms
        elif flag == "T":
            fields["TRequest"], fields["TDuration"] = value, packet.time_ms - value
            asked_ms = self._pings.pop((packet.to, packet.source, value), None)
            if asked_ms is not None:
                fields["RoundTrip"] = now_ms - asked_ms


def _record_data(component: Component, packet: Packet, time_ms: int) -> ReceivedReading | None:
    flag, fields, value = packet.flag, component.fields, packet.value
    if flag == "n":
        if component.data.restart(packet.sequence, packet.time_ms):
            fields["DResetTime"] = time_ms
        return None
    if not component.data.record(packet.sequence, packet.time_ms):
        return None
    fields["DTimestamp"] = time_ms
    more: Mapping[str, Any] = {}
    if flag == "f":
        assert isinstance(value, float)
        value = as_written(value)
    elif flag == "j":
        assert isinstance(value, dict)
        more = {key: item for key, item in value.items() if key != "value"}
        value = value["value"]
        fields["More"] = more
    number, error = number_of(value)
    fields["Value"] = number if isinstance(value, int | float) else value
    if flag == "s" and number is None:
        return None  # words are shown, and are no reading
    return ReceivedReading(packet.source, time_ms, number, error, more)


def number_of(value: Any) -> tuple[int | float | None, str]:
    """The number that a value is, or None and why it is none."""
    if isinstance(value, bool):
        return int(value), ""
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value, ""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None, f"no number: {value!r:.60}"
    return (number, "") if math.isfinite(number) else (None, f"no finite number: {value!r:.60}")


def as_written(value: float) -> float:
    """A float of 32 bits as its sender meant it: 21.3, not 21.299999237060547."""
    for digits in ("%.6g", "%.7g", "%.8g"):
        near = float(digits % value)
        if near == value:
            return near
        try:
            if _F32.unpack(_F32.pack(near))[0] == value:
                return near
        except OverflowError:  # rounded up, past the largest
            continue
    return value


_F32 = struct.Struct("<f")
