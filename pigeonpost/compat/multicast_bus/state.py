"""State of all components on the multicast bus: last values, lost packets, liveness, duplicate codifiers.

The thread of the bus writes, and any thread may read. `_lock` guards everything. It is held while processing a batch of
packets or copying the state. Packets are untrusted input: they are counted and shown, and the stored state is limited.
The fields have the names of the older system's Redis hash, so that programs that use these names continue to work.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pigeonpost.compat.multicast_bus.packets import DATA, FLAGS, LAST_SEQUENCE, Packet

MOST_CODIFIERS = 512  # stored components; an untrusted sender could send all 8,836 codifiers
BELIEVED_MS = 24 * 3_600_000  # a sender's time is used if it differs from the time of this server by at most this
ALIVE_INTERVALS = 2.5  # number of KeepAliveIntervals without I after which a component is not alive
USUAL_ALIVE_S = 60.0
_WINDOW = 64  # number of latest sequence numbers for which receipt is recorded
_ALL_SEEN = (1 << _WINDOW) - 1
_FAR = 65_536  # a larger jump in the numbers means that the sender has restarted and its N or n was lost
_MOST_PINGS = 64
_WIDER = 2**32


class ReceivedReading(NamedTuple):
    """Reading in a data packet.

    Attributes:
        codifier: Codifier of the sender.
        time_ms: Time of the reading in milliseconds since 1970 (UTC).
        value: The number, or None if the value is not a number.
        error: Reason why `value` is None, or an empty string.
        more: Additional values in a JSON payload.
    """

    codifier: str
    time_ms: int
    value: int | float | None
    error: str
    more: Mapping[str, Any]


class Count:
    """Counts of received and lost packets of one sender on one channel.

    Attributes:
        lost: Number of packets that were not received.
        repeated: Number of packets that were received again, such as via two routers.
        unannounced: Number of restarts of the numbering without an announcement.
    """

    __slots__ = ("_last", "_seen", "_start", "_time_ms", "lost", "repeated", "unannounced")

    def __init__(self) -> None:
        self.lost = 0
        self.repeated = 0
        self.unannounced = 0
        self._last = -1
        self._seen = 0  # bit n is set if the n-th packet before the last one was received
        self._time_ms = 0  # latest time in its packets
        self._start = (-1, 0)

    def restart(self, sequence: int, time_ms: int) -> bool:
        """Restart the numbering. Return False if the same packet was received before.

        Args:
            sequence: Sequence number of the packet that announces the restart.
            time_ms: Time in the packet, in milliseconds since 1970 (UTC).
        """
        if (sequence, time_ms) == self._start:
            self.repeated += 1
            return False
        self.lost = 0
        self._start = sequence, time_ms
        self._begin(sequence, time_ms)
        return True

    def record(self, sequence: int, time_ms: int) -> bool:
        """Record a received packet. Return False if it was received before.

        Skipped packets count as lost until they are received.

        Args:
            sequence: Sequence number of the packet.
            time_ms: Time in the packet, in milliseconds since 1970 (UTC).
        """
        if self._last < 0:
            self._begin(sequence, time_ms)
            return True
        # Senders continue with 0 after LAST_SEQUENCE. Old senders continue with the next number on the data channel.
        modulus = LAST_SEQUENCE + 1 if self._last <= LAST_SEQUENCE else _WIDER
        ahead = (sequence - self._last) % modulus
        if ahead == 1 or 1 < ahead <= _FAR:
            self.lost += ahead - 1
            self._seen = ((self._seen << ahead) | 1) & _ALL_SEEN if ahead < _WINDOW else 1
            self._last = sequence
            self._time_ms = max(self._time_ms, time_ms)
            return True
        behind = (self._last - sequence) % modulus
        if behind >= _WINDOW or time_ms > self._time_ms:  # a late or repeated packet would have an older time
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
    """State of one component.

    Args:
        codifier: Codifier of the component.

    Attributes:
        fields: Last values, as shown by `BusState.show`.
        data: Counts of data packets.
        control: Counts of control packets.
        alive_ms: Time of the last I in milliseconds since 1970 (UTC), by the clock of this machine.
    """

    __slots__ = ("alive_ms", "control", "data", "fields")

    def __init__(self, codifier: str) -> None:
        self.fields: dict[str, Any] = {"Codifier": codifier}
        self.data = Count()
        self.control = Count()
        self.alive_ms = 0


class BusState:
    """State of all components from which packets were received.

    Args:
        alive_s: Function that returns the KeepAliveInterval of a codifier in seconds.
        is_listed: Function that returns True if the configuration contains a codifier. Such a codifier is stored even
            if there are already MOST_CODIFIERS.

    Attributes:
        packets: Number of received packets.
        refused: Number of invalid datagrams.
        ignored: Number of packets of codifiers that are not stored because there are too many.
        refusal: Description of the last invalid datagram.
    """

    def __init__(
        self,
        alive_s: Callable[[str], float] = lambda codifier: USUAL_ALIVE_S,
        is_listed: Callable[[str], bool] = lambda codifier: False,
    ) -> None:
        self._is_listed = is_listed
        self.packets = 0
        self.refused = 0
        self.ignored = 0
        self.refusal = ""
        self._alive_s = alive_s
        self._lock = threading.Lock()
        self._components: dict[str, Component] = {}
        self._pings: dict[tuple[str, str, float], int] = {}

    def receive(self, packets: Iterable[Packet], now_ms: int) -> list[ReceivedReading]:
        """Record packets that were received now, and return the new readings in them.

        Args:
            packets: The packets.
            now_ms: Present time in milliseconds since 1970 (UTC).
        """
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
                # The sender's time is used if it is plausible. With a wrong clock, readings could get any date.
                time_ms = packet.time_ms
                if not -BELIEVED_MS <= time_ms - now_ms <= BELIEVED_MS:
                    days = (time_ms - now_ms) / BELIEVED_MS
                    component.fields["Note"] = f"its clock is {days:+.0f} days off; server time is used"
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
        """Record `count` invalid datagrams. `last` describes the last one."""
        with self._lock:
            self.refused += count
            self.refusal = last

    def show(self, now_ms: int) -> dict[str, Any]:
        """Return the complete state for JSON. `now_ms` is the present time in milliseconds since 1970 (UTC)."""
        with self._lock:
            return {
                "packets": self.packets, "refused": self.refused, "refusal": self.refusal, "ignored": self.ignored,
                "codifiers": {code: self._shown(code, self._components[code], now_ms)
                              for code in sorted(self._components)},
            }  # fmt: skip

    def _shown(self, codifier: str, component: Component, now_ms: int) -> dict[str, Any]:
        fields = {**component.fields, "DPacketsLost": component.data.lost, "CPacketsLost": component.control.lost}
        if component.alive_ms:
            fields["Alive"] = now_ms - component.alive_ms <= ALIVE_INTERVALS * 1000 * self._alive_s(codifier)
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
        component.control.record(packet.sequence, packet.time_ms)  # a repeated control packet does no harm
        fields[f"{flag}Timestamp"] = time_ms
        if flag == "I":
            fields["IsActive"] = packet.active
            component.alive_ms = now_ms
            if value < fields.get("Configuration", value):  # a newer instance has already sent its configuration time
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
            sent_ms = self._pings.pop((packet.to, packet.source, value), None)
            if sent_ms is not None:
                fields["RoundTrip"] = now_ms - sent_ms


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
        return None  # text that is not a number is shown but not stored as a reading
    return ReceivedReading(packet.source, time_ms, number, error, more)


def number_of(value: Any) -> tuple[int | float | None, str]:
    """Return `(number, "")` for `value`, or `(None, reason)` if it is not a finite number."""
    if isinstance(value, bool):
        return int(value), ""
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value, ""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None, f"not a number: {value!r:.60}"
    return (number, "") if math.isfinite(number) else (None, f"not a finite number: {value!r:.60}")


def as_written(value: float) -> float:
    """Return the shortest decimal number for the 32-bit float `value`: 21.3, not 21.299999237060547."""
    for digits in ("%.6g", "%.7g", "%.8g"):
        near = float(digits % value)
        if near == value:
            return near
        try:
            if _F32.unpack(_F32.pack(near))[0] == value:
                return near
        except OverflowError:  # rounded up, past the largest 32-bit float
            continue
    return value


_F32 = struct.Struct("<f")
