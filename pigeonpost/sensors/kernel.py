"""Sensor kind "kernel": readings that Linux drivers publish as files. It supports hundreds of chips without a library.

    from = "iio/bme280/temp"                 Industrial I/O: device, channel
    from = "hwmon/coretemp/temp/Core 0"      hardware monitoring: chip, kind, label
    from = "thermal/cpu-thermal"             a thermal zone, by its type
    from = "w1/28-0316a2794bff"              1-Wire: a DS18B20 or a similar sensor

A device is identified by its name, its label, or its bus address (`1-0076`), but never by its number, which can change
at every boot. Values are converted to common units: °C from m°C, V from mV.
Errors: SensorError for a single channel whose device is missing or does not answer. A value that the chip cannot have
(see sensors.chips) is read once more, after all channels and only if there is time; then it is an ImpossibleValue.

Sources: Documentation/ABI/testing/sysfs-bus-iio, sysfs-class-thermal and sysfs-driver-w1_therm, and
Documentation/hwmon/sysfs-interface.rst, all of the Linux kernel.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pigeonpost.core.config import Option, a_table, matching, read_options, text
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.units import conversion
from pigeonpost.sensors import chips
from pigeonpost.sensors.contract import (
    CALIBRATION,
    Channel,
    FoundDevice,
    Readings,
    SensorSource,
    calibrated,
    channel_tables,
    name_of,
    pair,
)
from pigeonpost.sensors.one_wire import OneWireThermometer
from pigeonpost.sensors.ranges import ImpossibleValue, Range, shown_raw
from pigeonpost.sensors.sysfs import Device
from protocol import UNIT, Number

OPTIONS = (
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("root", text, "/", "folder that contains sys"),
)
CHANNEL_OPTIONS = (
    Option("from", text, None, 'device and channel, such as "iio/bme280/temp" or "w1/28-0316a2794bff"'),
    Option(
        "unit", matching(UNIT, "a text up to 32 characters"), None, "unit, instead of the default unit of the channel"
    ),
    Option(
        "possible", pair, None, "lowest and highest possible value before calibration, instead of those of the chip"
    ),
    *CALIBRATION,
)

# For each kind of channel, the factor from the driver's unit to the unit of the readings, and that unit.
_IIO = {
    "temp": (0.001, "°C"), "humidityrelative": (0.001, "%"), "pressure": (1, "kPa"), "illuminance": (1, "lx"),
    "voltage": (0.001, "V"), "current": (1, "mA"), "power": (1, "mW"), "energy": (1, "J"), "resistance": (1, "Ω"),
    "capacitance": (1, "nF"), "accel": (1, "m/s²"), "anglvel": (1, "rad/s"), "magn": (1, "G"), "angl": (1, "rad"),
    "distance": (1, "m"), "proximity": (1, ""), "intensity": (1, ""), "concentration": (1, "%"), "ph": (1, "pH"),
    "massconcentration": (1, "µg/m³"), "electricalconductivity": (1, "S/m"), "uvindex": (1, ""),
    "velocity": (1, "m/s"), "count": (1, ""), "steps": (1, ""),
}  # fmt: skip
_HWMON = {
    "temp": (0.001, "°C"), "in": (0.001, "V"), "curr": (0.001, "A"), "power": (1e-6, "W"), "energy": (1e-6, "J"),
    "fan": (1, "RPM"), "humidity": (0.001, "%"),
}  # fmt: skip
_DHT_TRIES, _DHT_PAUSE_S = 3, 2.0  # a DHT11 or DHT22 answers at most every two seconds, and sometimes not at all

Read = Callable[[], float]


class KernelSource(SensorSource):
    """Source that reads the files of its channels below /sys."""

    def __init__(
        self, channels: Sequence[Channel], readers: Mapping[str, Read], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.channels = channels
        self._readers = readers
        self._now_s = now_s

    def read(self) -> Readings:
        began_s = self._now_s()
        readings: dict[str, Number | SensorError] = {}
        impossible: dict[str, float] = {}  # name of each channel with an impossible value: time that its reading took
        for channel in self.channels:
            channel_began_s = self._now_s()
            readings[channel.name] = self._read_channel(channel.name)
            if isinstance(readings[channel.name], ImpossibleValue):
                impossible[channel.name] = self._now_s() - channel_began_s
        for name, took_s in impossible.items():
            if self._now_s() - began_s + took_s < self.patience_s:  # later, the readings of all channels would be late
                readings[name] = self._read_channel(name)
        return readings

    def _read_channel(self, name: str) -> Number | SensorError:
        try:
            return self._readers[name]()
        except SensorError as error:
            return error


# ---------------------------------------------------------------------------------------------- channels


def _iio(device: Device, channel: str, chosen: Mapping[str, Any]) -> tuple[Read, str]:
    """Return a function that reads a channel of Industrial I/O, and the unit.

    The value is the converted value if the driver has one, or else (raw + offset) x scale. Channels of the same kind
    can share the offset and the scale.
    """
    kind = _kind(channel, r"([a-z]+)[-a-z0-9_]*", _IIO)
    factor, unit = _IIO[kind]
    is_plain = _is_plain(chosen)
    shown = conversion(unit, {unit: chosen["unit"] or unit})
    is_known_unit = shown.unit == (chosen["unit"] or unit)

    def once() -> float:
        found = device.first(f"in_{channel}_input")
        value, raw = found or _scaled(device, kind, channel, is_converted=bool(unit) and is_plain)
        value *= factor
        # Settings that correct what the driver reports remain valid: a gain of 1000 for percent, a unit for hPa.
        is_corrected = not is_plain if kind == "pressure" else kind == "humidityrelative" and chosen["gain"] >= 100
        if not is_corrected:
            value *= chips.abi_factor(device.aliases, kind, value / factor)
        if kind != "pressure" or is_plain:
            device.check(kind, channel, value, unit, raw)
        elif is_known_unit:
            device.check(kind, channel, calibrated(value, chosen) / shown.factor, unit, raw)
        return value

    def with_retries() -> float:
        for _ in range(_DHT_TRIES - 1):
            try:
                return once()
            except SensorError as error:
                if not chips.is_dht(device.aliases):
                    raise
                if getattr(error.__cause__, "errno", 0) not in (errno.EIO, errno.ETIMEDOUT):
                    raise
                time.sleep(_DHT_PAUSE_S)
        return once()

    return with_retries, unit


def _scaled(device: Device, kind: str, channel: str, is_converted: bool) -> tuple[float, str]:
    """Return (raw + offset) x scale, and the text from which it was calculated.

    If `is_converted`, a missing scale is an error, because the value would not have the unit of its kind.
    """
    raw = device.number(f"in_{channel}_raw")
    offset, _ = device.first(f"in_{channel}_offset", f"in_{kind}_offset") or (0.0, "")
    scale, _ = device.first(f"in_{channel}_scale", f"in_{kind}_scale") or (None, "")
    file, text = f"in_{channel}_raw", shown_raw(f"{raw:.10g}")
    if scale is None and is_converted:
        raise SensorError(f"{file} has no scale{text}; its unit is unknown: set gain and unit")
    if scale == 0:
        raise ImpossibleValue(f"the scale of {file} is 0{text}")
    return (raw + offset) * (1 if scale is None else scale), f"({raw:.10g} + {offset:.10g}) x {scale}"


def _is_plain(chosen: Mapping[str, Any]) -> bool:
    """Return True if the settings of a channel neither calibrate its value nor change its unit."""
    return chosen["unit"] is None and chosen["gain"] == 1 and chosen["offset"] == 0


def _hwmon(device: Device, channel: str, chosen: Mapping[str, Any]) -> tuple[Read, str]:
    kind, _, label = channel.partition("/")
    kind = _kind(kind, r"([a-z]+)[0-9]" + ("?" if label else "+"), _HWMON)
    factor, unit = _HWMON[kind]
    one_wire: dict[str, OneWireThermometer] = {}

    def one_wire_temperature() -> float:
        """Return the temperature from the file of the 1-Wire driver, which contains the scratchpad, if it exists."""
        files = device.files()
        name = next((alias for alias in device.aliases if _W1_ID(alias)), "28-000000000000")
        thermometer = one_wire.setdefault(name, OneWireThermometer(name, device.possible))
        if "device" in files:
            return thermometer.temperature(device.text("device/w1_slave"))
        raw = device.text(f"{channel}_input")
        value = device.number_in(f"{channel}_input", raw) * factor
        thermometer.check_value(value, raw)
        return value

    def read() -> float:
        file = f"{channel}_input"
        if label:
            labels = [file for file in device.files() if re.fullmatch(rf"{kind}[0-9]+_label", file)]
            inputs = {device.text(file): file.removesuffix("_label") for file in labels}
            if label not in inputs:
                raise SensorError(f"hwmon/{device.name}: no {kind} has the label {label!r}; found: {', '.join(inputs)}")
            file = f"{inputs[label]}_input"
        elif "w1_slave_temp" in device.find():
            return one_wire_temperature()
        raw = device.text(file)
        value = device.number_in(file, raw) * factor
        device.check(kind, file.removesuffix("_input"), value, unit, raw)
        return value

    return read, unit


def _thermal(device: Device, channel: str, chosen: Mapping[str, Any]) -> tuple[Read, str]:
    if channel:
        raise ValueError('takes only a zone, as in "thermal/cpu-thermal"')

    def read() -> float:
        raw = device.text("temp")
        value = device.number_in("temp", raw) / 1000
        device.check("temp", "temp", value, "°C", raw)
        return value

    return read, "°C"


_W1_ID = re.compile(r"[0-9a-f]{2}-[0-9a-f]{12}").fullmatch


def _w1(device: Device, channel: str, chosen: Mapping[str, Any]) -> tuple[Read, str]:
    if channel or not _W1_ID(device.name):
        raise ValueError('takes the id of a 1-Wire sensor, as in "w1/28-0316a2794bff"')
    thermometer = OneWireThermometer(device.name, device.possible)
    return (lambda: thermometer.temperature(device.text("w1_slave"))), "°C"


def _kind(channel: str, form: str, kinds: Mapping[str, Any]) -> str:
    found = re.fullmatch(form, channel)
    if found is None or found[1] not in kinds:
        raise ValueError(f"takes a channel of one of the kinds {', '.join(sorted(kinds))}")
    return found[1]


_SUBSYSTEMS: Mapping[str, Callable[[Device, str, Mapping[str, Any]], tuple[Read, str]]] = {
    "iio": _iio, "hwmon": _hwmon, "thermal": _thermal, "w1": _w1,
}  # fmt: skip


def make(settings: Mapping[str, Any], where: str) -> KernelSource:
    """Return the source for a [[sensor]] table with kind = "kernel".

    Args:
        settings: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid. A missing device is not an error here, because it can appear later.
    """
    options = read_options(settings, OPTIONS, where)
    readers: dict[str, Read] = {}
    channels = []
    example = 'room = {from = "iio/bme280/temp"}'
    for name, chosen, channel_where in channel_tables(options["channels"], CHANNEL_OPTIONS, OPTIONS, where, example):
        try:
            read, unit = _reader(options["root"], chosen)
        except ValueError as error:
            raise SettingsError(f"{channel_where}: from {error}, not {chosen['from']!r}") from None
        readers[name] = functools.partial(_calibrated, read, chosen)
        channels.append(
            Channel(name, unit if chosen["unit"] is None else chosen["unit"], possible=_possible(chosen, unit))
        )
    return KernelSource(channels, readers)


def _reader(root: str, chosen: Mapping[str, Any]) -> tuple[Read, str]:
    subsystem, _, rest = (chosen["from"] or "").partition("/")
    name, _, channel = rest.partition("/")
    if subsystem not in _SUBSYSTEMS or not name:
        raise ValueError(f'takes {", ".join(_SUBSYSTEMS)}, a device and its channel, as in "iio/bme280/temp"')
    ends: tuple[float, float] | None = chosen["possible"]
    possible = None if ends is None else Range(ends[0], ends[1], "settings")
    return _SUBSYSTEMS[subsystem](Device(root, subsystem, name, possible), channel, chosen)


def _possible(chosen: Mapping[str, Any], unit: str) -> tuple[float, float] | None:
    """Return the possible values of a relative humidity, if they can exceed 0 to 100 %."""
    subsystem, name, channel = (chosen["from"].split("/", 2) + ["", ""])[:3]
    if unit != "%" or not channel.startswith("humidity"):
        return None
    if chosen["possible"] is not None:
        low, high = sorted(calibrated(end, chosen) for end in chosen["possible"])
        return low, high
    if re.fullmatch(r"[0-9]+-[0-9a-f]{4}", name):  # a bus address: each reading is checked for the chip that is found
        return chips.OVERSHOOT_RH
    found = chips.possible(subsystem, (name,), "humidity", channel)
    return chips.OVERSHOOT_RH if found is not None and found.high > 100 else None


def _calibrated(read: Read, chosen: Mapping[str, Any]) -> float:
    return calibrated(read(), chosen)


# ------------------------------------------------------------------------------------------------- search for devices


def scan(root: str) -> Iterator[FoundDevice]:
    """Yield all devices of this kind, with all their channels.

    A device is identified by its name, or by its bus address if several devices have the same name.

    Args:
        root: Folder that contains sys.
    """
    for subsystem, channels_of in _CHANNELS.items():
        folder = Device(root, subsystem, "")
        names = {path: folder.names(path) for path in folder.all()}
        count = Counter(name for aliases in names.values() for name in set(aliases))
        for path, aliases in names.items():
            channels = channels_of(path)
            name = next((alias for alias in aliases if alias and "/" not in alias and count[alias] == 1), None)
            if channels and name is None:
                yield FoundDevice(f"{subsystem}/{aliases[0]}: {count[aliases[0]]} devices that cannot be distinguished")
            elif channels and name is not None:
                sources = {channel: "/".join(filter(None, (subsystem, name, channel))) for channel in channels}
                table = {name_of(name, channel): {"from": source} for channel, source in sources.items()}
                where = {} if root == "/" else {"root": root}
                yield FoundDevice(f"{subsystem}/{name}", {"kind": "kernel", **where, "channels": table})


def _files(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _iio_channels(path: str) -> list[str]:
    found = (re.fullmatch(r"in_(([a-z]+)[-a-z0-9_]*)_(?:raw|input)", file) for file in _files(path))
    return list(dict.fromkeys(match[1] for match in found if match and match[2] in _IIO))


def _hwmon_channels(path: str) -> list[str]:
    found = (re.fullmatch(r"(([a-z]+)[0-9]+)_input", file) for file in _files(path))
    kinds = {match[1]: match[2] for match in found if match and match[2] in _HWMON}
    labels = {}
    for channel, kind in kinds.items():
        try:
            with open(os.path.join(path, f"{channel}_label"), encoding="utf-8", errors="replace") as file:
                labels[channel] = f"{kind}/{file.read().strip()}"
        except OSError:
            continue
    # Prefer the label, because numbers can change at the next boot. If a label occurs twice, use the number.
    count = Counter(labels.values())
    return [labels[channel] if count.get(labels.get(channel, ""), 0) == 1 else channel for channel in kinds]


def _thermal_channels(path: str) -> list[str]:
    return [""] if os.path.basename(path).startswith("thermal_zone") and "temp" in _files(path) else []


def _w1_channels(path: str) -> list[str]:
    return [""] if "w1_slave" in _files(path) else []


_CHANNELS: Mapping[str, Callable[[str], list[str]]] = {
    "iio": _iio_channels, "hwmon": _hwmon_channels, "thermal": _thermal_channels, "w1": _w1_channels,
}  # fmt: skip
