"""Sensor kind "kernel": readings that Linux drivers publish as files, for hundreds of chips without a library.

    from = "iio/bme280/temp"                 Industrial I/O: device, channel
    from = "hwmon/coretemp/Package id 0"     hardware monitoring: chip, label or input
    from = "thermal/cpu-thermal"             a thermal zone, by its type
    from = "w1/28-0316a2794bff"              1-wire: a DS18B20 or one of its family

A device is found by its name, its label, or the place where it is connected (`1-0076`), never by its number, which
changes from boot to boot. Values are converted to everyday units: °C from m°C, V from mV.
Errors: SensorError for a single channel whose device is missing or does not answer.

Sources: Documentation/ABI/testing/sysfs-bus-iio, sysfs-class-thermal and sysfs-driver-w1_therm, and
Documentation/hwmon/sysfs-interface.rst, all of the Linux kernel; DS18B20 data sheet (Maxim 19-7487), scratchpad.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pigeonpost.core.config import Option, a_table, matching, read_options, text
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors.contract import (
    CALIBRATION,
    Channel,
    FoundDevice,
    Readings,
    SensorSource,
    calibrated,
    channel_tables,
    name_of,
)
from protocol import UNIT, Number

OPTIONS = (
    Option("channels", a_table, None, "a table for each channel, by its name"),
    Option("root", text, "/", "where sys is"),
)
CHANNEL_OPTIONS = (
    Option("from", text, None, 'what is read, as "iio/bme280/temp" or "w1/28-0316a2794bff"'),
    Option("unit", matching(UNIT, "a text up to 32 characters"), None, "in place of the usual one"),
    *CALIBRATION,
)

# Of each kind of channel what makes the driver's unit ours, and ours.
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
_IN_VOLTS = re.compile(r"mcp342[1-8]").fullmatch  # their driver scales to volts, where the ABI says millivolts
_DHT_TRIES, _DHT_PAUSE_S = 3, 2.0  # it answers every two seconds at most, and now and then not at all
_IN_WORDS = {
    errno.EIO: "its answer was garbled, or nothing is connected: check wiring and pull-up resistor",
    errno.ETIMEDOUT: "it does not answer: check its power, wiring and pull-up resistor",
    errno.ENODEV: "it has gone",
    errno.EACCES: "this user may not read it",
}

Read = Callable[[], float]
Answer = TypeVar("Answer")


class KernelSource(SensorSource):
    """Files below /sys, one for each channel."""

    def __init__(self, channels: Sequence[Channel], readers: Mapping[str, Read]) -> None:
        self.channels = channels
        self._readers = readers

    def read(self) -> Readings:
        readings: dict[str, Number | SensorError] = {}
        for channel in self.channels:
            try:
                readings[channel.name] = self._readers[channel.name]()
            except SensorError as error:
                readings[channel.name] = error
        return readings


class Device:
    """One device of a folder of /sys, found when it is first read, and again when it has moved."""

    def __init__(self, root: str, subsystem: str, name: str) -> None:
        """`name`, label, type, or the place where it is connected; `subsystem` is a key of _FOLDERS."""
        self.name = name
        self._folder = os.path.join(root, _FOLDERS[subsystem])
        self._said = f"{subsystem}/{name}"
        self._path = ""

    def text(self, file: str) -> str:
        """Return the stripped content of a file. Raises SensorError when the device or the file cannot be read."""
        return self._ask(lambda path: self._read(path, file), file)

    def files(self) -> list[str]:
        """Return the names of its files."""
        return self._ask(lambda path: sorted(os.listdir(path)), "its folder")

    def number(self, file: str) -> float:
        """Return the number in a file. Raises SensorError."""
        content = self.text(file)
        try:
            return float(content)
        except ValueError:
            raise SensorError(f"{self._said}, {file}: {content[:40]!r} is no number") from None

    def first(self, *files: str) -> float | None:
        """Return the number in the first of these files that exists; None: none does."""
        its = self.files()
        there = next((file for file in files if file in its), None)
        return None if there is None else self.number(there)

    def _ask(self, question: Callable[[str], Answer], file: str) -> Answer:
        try:
            try:
                return question(self._path or self._find())
            except FileNotFoundError:  # it may have moved
                return question(self._find())
        except SensorError:
            raise
        except OSError as error:
            why = _IN_WORDS.get(error.errno or 0) or error.strerror
            raise SensorError(f"{self._said}, {file}: {why}") from error

    def _read(self, path: str, file: str) -> str:
        with open(os.path.join(path, file), encoding="utf-8", errors="replace") as opened:
            return opened.read().strip()

    def _find(self) -> str:
        self._path = ""
        names = {path: self.names(path) for path in self.all()}
        found = [path for path, its in names.items() if self.name in its]
        if not found:
            there = ", ".join(its[0] for its in names.values()) or "none"
            raise SensorError(
                f"{self._said}: no such device; there are: {there}. docs/sensors.md: how it is switched on"
            )
        if len(found) > 1:
            places = ", ".join(names[path][-1] for path in found)
            raise SensorError(f"{self._said}: {len(found)} devices have this name; choose by place: {places}")
        self._path = found[0]
        return self._path

    def all(self) -> list[str]:
        """Return the paths of all devices of the subsystem."""
        try:
            return [os.path.join(self._folder, entry) for entry in sorted(os.listdir(self._folder))]
        except OSError:
            return []

    def names(self, path: str) -> list[str]:
        """Return the names of a device: its name, its label or type, and last the place where it is connected."""
        names = []
        for file in ("name", "label", "type"):
            try:
                names.append(self._read(path, file))
            except OSError:
                continue
        link = os.path.join(path, "device")
        place = os.path.realpath(link) if os.path.exists(link) else os.path.dirname(os.path.realpath(path))
        return [*names, os.path.basename(place)]


_FOLDERS = {
    "iio": "sys/bus/iio/devices", "hwmon": "sys/class/hwmon", "thermal": "sys/class/thermal",
    "w1": "sys/bus/w1/devices",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- what is read of them


def _iio(device: Device, channel: str) -> tuple[Read, str]:
    """Reader of (raw + offset) x scale, or of the converted value; channels of a kind may share offset and scale."""
    kind = _kind(channel, r"([a-z]+)[-a-z0-9_]*", _IIO)
    factor, unit = _IIO[kind]
    if kind == "voltage" and _IN_VOLTS(device.name):
        factor = 1

    def once() -> float:
        value = device.first(f"in_{channel}_input")
        if value is None:
            offset = device.first(f"in_{channel}_offset", f"in_{kind}_offset")
            scale = device.first(f"in_{channel}_scale", f"in_{kind}_scale")
            value = (device.number(f"in_{channel}_raw") + (offset or 0)) * (1 if scale is None else scale)
        return value * factor

    def patiently() -> float:
        for _ in range(_DHT_TRIES - 1):
            try:
                return once()
            except SensorError as error:
                if getattr(error.__cause__, "errno", 0) not in (errno.EIO, errno.ETIMEDOUT):
                    raise
                time.sleep(_DHT_PAUSE_S)
        return once()

    return (patiently if device.name.startswith("dht11") else once), unit


def _hwmon(device: Device, channel: str) -> tuple[Read, str]:
    kind, _, label = channel.partition("/")
    kind = _kind(kind, r"([a-z]+)[0-9]" + ("?" if label else "+"), _HWMON)
    factor, unit = _HWMON[kind]

    def read() -> float:
        if not label:
            return device.number(f"{channel}_input") * factor
        labels = [file for file in device.files() if re.fullmatch(rf"{kind}[0-9]+_label", file)]
        said = {device.text(file): file.removesuffix("_label") for file in labels}
        if label not in said:
            raise SensorError(f"hwmon/{device.name}: no {kind} is labelled {label!r}; there are: {', '.join(said)}")
        return device.number(f"{said[label]}_input") * factor

    return read, unit


def _thermal(device: Device, channel: str) -> tuple[Read, str]:
    if channel:
        raise ValueError('takes a zone alone, as in "thermal/cpu-thermal"')
    return (lambda: device.number("temp") / 1000), "°C"


def _w1(device: Device, channel: str) -> tuple[Read, str]:
    """Nine bytes of scratchpad with the kernel's check of their CRC, and again with the temperature in m°C."""
    if channel or not re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{12}", device.name):
        raise ValueError('takes the id of a 1-wire sensor, as in "w1/28-0316a2794bff"')

    def read() -> float:
        lines = device.text("w1_slave").splitlines()
        found = re.search(r"t=(-?[0-9]+)$", lines[-1]) if len(lines) == 2 else None
        if found is None or not lines[0].endswith("YES"):
            raise SensorError(
                f"w1/{device.name}: its checksum is wrong, or it did not answer: check wiring and pull-up"
            )
        scratchpad = lines[0].split()
        if scratchpad[:2] in (["50", "05"], ["aa", "00"]) and scratchpad[6] == "0c":
            raise SensorError(f"w1/{device.name}: shows what it has at power-on, 85 °C: its power fails as it measures")
        return int(found[1]) / 1000

    return read, "°C"


def _kind(channel: str, form: str, kinds: Mapping[str, Any]) -> str:
    found = re.fullmatch(form, channel)
    if found is None or found[1] not in kinds:
        raise ValueError(f"takes a channel of {', '.join(sorted(kinds))}")
    return found[1]


_SUBSYSTEMS: Mapping[str, Callable[[Device, str], tuple[Read, str]]] = {
    "iio": _iio, "hwmon": _hwmon, "thermal": _thermal, "w1": _w1,
}  # fmt: skip


def make(settings: Mapping[str, Any], where: str) -> KernelSource:
    """The source that a [[sensor]] table with kind = "kernel" describes.

    Raises SettingsError, which begins with `where`; not for a device that is not there, since it may come.
    """
    options = read_options(settings, OPTIONS, where)
    readers: dict[str, Read] = {}
    channels = []
    example = 'room = {from = "iio/bme280/temp"}'
    for name, chosen, here in channel_tables(options["channels"], CHANNEL_OPTIONS, where, example):
        try:
            read, unit = _reader(options["root"], chosen["from"] or "")
        except ValueError as error:
            raise SettingsError(f"{here}: from {error}, not {chosen['from']!r}") from None
        readers[name] = functools.partial(_calibrated, read, chosen)
        channels.append(Channel(name, unit if chosen["unit"] is None else chosen["unit"]))
    return KernelSource(channels, readers)


def _reader(root: str, place: str) -> tuple[Read, str]:
    subsystem, _, rest = place.partition("/")
    name, _, channel = rest.partition("/")
    if subsystem not in _SUBSYSTEMS or not name:
        raise ValueError(f'takes {", ".join(_SUBSYSTEMS)}, a device and its channel, as in "iio/bme280/temp"')
    return _SUBSYSTEMS[subsystem](Device(root, subsystem, name), channel)


def _calibrated(read: Read, chosen: Mapping[str, Any]) -> float:
    return calibrated(read(), chosen)


# ------------------------------------------------------------------------------------------------- what there is


def scan(root: str) -> Iterator[FoundDevice]:
    """Find every device below /sys of this kind, with all its channels; by name, or by place where names repeat."""
    for subsystem, channels_of in _CHANNELS.items():
        folder = Device(root, subsystem, "")
        names = {path: folder.names(path) for path in folder.all()}
        count = Counter(name for its in names.values() for name in set(its))
        for path, its in names.items():
            channels = channels_of(path)
            name = next((one for one in its if one and "/" not in one and count[one] == 1), None)
            if channels and name is None:
                yield FoundDevice(f"{subsystem}/{its[0]}: {count[its[0]]} devices that cannot be told apart")
            elif channels and name is not None:
                places = {channel: "/".join(filter(None, (subsystem, name, channel))) for channel in channels}
                table = {name_of(name, channel): {"from": place} for channel, place in places.items()}
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
    # A label stays with its sensor when the numbers change; where two are alike, only the number tells.
    count = Counter(labels.values())
    return [labels[one] if count.get(labels.get(one, ""), 0) == 1 else one for one in kinds]


def _thermal_channels(path: str) -> list[str]:
    return [""] if os.path.basename(path).startswith("thermal_zone") and "temp" in _files(path) else []


def _w1_channels(path: str) -> list[str]:
    return [""] if "w1_slave" in _files(path) else []


_CHANNELS: Mapping[str, Callable[[str], list[str]]] = {
    "iio": _iio_channels, "hwmon": _hwmon_channels, "thermal": _thermal_channels, "w1": _w1_channels,
}  # fmt: skip
