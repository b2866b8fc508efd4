"""Sensor kind "kernel": readings that Linux drivers publish as files. It supports hundreds of chips without a library.

    from = "iio/bme280/temp"                 Industrial I/O: device, channel
    from = "hwmon/coretemp/temp/Core 0"      hardware monitoring: chip, kind, label
    from = "thermal/cpu-thermal"             a thermal zone, by its type
    from = "w1/28-0316a2794bff"              1-Wire: a DS18B20 or a similar sensor

A device is identified by its name, its label, or its bus address (`1-0076`), but never by its number, which can change
at every boot. Values are converted to common units: °C from m°C, V from mV.
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
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("root", text, "/", "folder that contains sys"),
)
CHANNEL_OPTIONS = (
    Option("from", text, None, 'device and channel, such as "iio/bme280/temp" or "w1/28-0316a2794bff"'),
    Option(
        "unit", matching(UNIT, "a text up to 32 characters"), None, "unit, instead of the default unit of the channel"
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
_IN_VOLTS = re.compile(r"mcp342[1-8]").fullmatch  # their driver returns volts, although the ABI specifies millivolts
_DHT_TRIES, _DHT_PAUSE_S = 3, 2.0  # a DHT11 or DHT22 answers at most every two seconds, and sometimes not at all
_CAUSES = {
    errno.EIO: "the response is invalid, or nothing is connected: check wiring and pull-up resistor",
    errno.ETIMEDOUT: "the device does not answer: check power, wiring and pull-up resistor",
    errno.ENODEV: "the device has been removed",
    errno.EACCES: "no permission to read it",
}

Read = Callable[[], float]
Result = TypeVar("Result")


class KernelSource(SensorSource):
    """Source that reads the files of its channels below /sys."""

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
    """Device of a subsystem in /sys. It is searched for at the first reading, and again if its path has changed."""

    def __init__(self, root: str, subsystem: str, name: str) -> None:
        """Create the device without searching for it.

        Args:
            root: Folder that contains sys.
            subsystem: A key of _FOLDERS.
            name: Name, label, type or bus address of the device.
        """
        self.name = name
        self._folder = os.path.join(root, _FOLDERS[subsystem])
        self._shown = f"{subsystem}/{name}"
        self._path = ""

    def text(self, file: str) -> str:
        """Return the contents of `file`, a file of the device, without surrounding white space.

        Raises:
            SensorError: The device or the file cannot be read.
        """
        return self._with_path(lambda path: self._read(path, file), file)

    def files(self) -> list[str]:
        """Return the names of the files of the device.

        Raises:
            SensorError: The device cannot be read.
        """
        return self._with_path(lambda path: sorted(os.listdir(path)), "folder")

    def number(self, file: str) -> float:
        """Return the number in `file`, a file of the device.

        Raises:
            SensorError: The file cannot be read, or does not contain a number.
        """
        content = self.text(file)
        try:
            return float(content)
        except ValueError:
            raise SensorError(f"{self._shown}, {file}: {content[:40]!r} is not a number") from None

    def first(self, *files: str) -> float | None:
        """Return the number in the first of the `files` that exists, or None if none exists.

        Raises:
            SensorError: The device or the file cannot be read.
        """
        existing = self.files()
        first = next((file for file in files if file in existing), None)
        return None if first is None else self.number(first)

    def _with_path(self, operation: Callable[[str], Result], file: str) -> Result:
        """Return the result of `operation`, called with the path of the device. `file` is for error messages."""
        try:
            try:
                return operation(self._path or self._find())
            except FileNotFoundError:  # the path of the device may have changed
                return operation(self._find())
        except SensorError:
            raise
        except OSError as error:
            why = _CAUSES.get(error.errno or 0) or error.strerror
            raise SensorError(f"{self._shown}, {file}: {why}") from error

    def _read(self, path: str, file: str) -> str:
        with open(os.path.join(path, file), encoding="utf-8", errors="replace") as opened:
            return opened.read().strip()

    def _find(self) -> str:
        self._path = ""
        names = {path: self.names(path) for path in self.all()}
        found = [path for path, aliases in names.items() if self.name in aliases]
        if not found:
            present = ", ".join(aliases[0] for aliases in names.values()) or "none"
            raise SensorError(
                f"{self._shown}: no such device; found: {present}. docs/sensors.md describes how to enable a device"
            )
        if len(found) > 1:
            addresses = ", ".join(names[path][-1] for path in found)
            raise SensorError(
                f"{self._shown}: {len(found)} devices have this name; use one of their bus addresses: {addresses}"
            )
        self._path = found[0]
        return self._path

    def all(self) -> list[str]:
        """Return the paths of all devices of the subsystem."""
        try:
            return [os.path.join(self._folder, entry) for entry in sorted(os.listdir(self._folder))]
        except OSError:
            return []

    def names(self, path: str) -> list[str]:
        """Return the names of the device at `path`: name, label or type, and finally its bus address."""
        names = []
        for file in ("name", "label", "type"):
            try:
                names.append(self._read(path, file))
            except OSError:
                continue
        link = os.path.join(path, "device")
        bus_path = os.path.realpath(link) if os.path.exists(link) else os.path.dirname(os.path.realpath(path))
        return [*names, os.path.basename(bus_path)]


_FOLDERS = {
    "iio": "sys/bus/iio/devices", "hwmon": "sys/class/hwmon", "thermal": "sys/class/thermal",
    "w1": "sys/bus/w1/devices",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- channels


def _iio(device: Device, channel: str) -> tuple[Read, str]:
    """Return a function that reads a channel of Industrial I/O, and the unit.

    The value is the converted value if the driver has one, or else (raw + offset) x scale. Channels of the same kind
    can share the offset and the scale.
    """
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

    def with_retries() -> float:
        for _ in range(_DHT_TRIES - 1):
            try:
                return once()
            except SensorError as error:
                if getattr(error.__cause__, "errno", 0) not in (errno.EIO, errno.ETIMEDOUT):
                    raise
                time.sleep(_DHT_PAUSE_S)
        return once()

    return (with_retries if device.name.startswith("dht11") else once), unit


def _hwmon(device: Device, channel: str) -> tuple[Read, str]:
    kind, _, label = channel.partition("/")
    kind = _kind(kind, r"([a-z]+)[0-9]" + ("?" if label else "+"), _HWMON)
    factor, unit = _HWMON[kind]

    def read() -> float:
        if not label:
            return device.number(f"{channel}_input") * factor
        labels = [file for file in device.files() if re.fullmatch(rf"{kind}[0-9]+_label", file)]
        inputs = {device.text(file): file.removesuffix("_label") for file in labels}
        if label not in inputs:
            raise SensorError(f"hwmon/{device.name}: no {kind} has the label {label!r}; found: {', '.join(inputs)}")
        return device.number(f"{inputs[label]}_input") * factor

    return read, unit


def _thermal(device: Device, channel: str) -> tuple[Read, str]:
    if channel:
        raise ValueError('takes only a zone, as in "thermal/cpu-thermal"')
    return (lambda: device.number("temp") / 1000), "°C"


def _w1(device: Device, channel: str) -> tuple[Read, str]:
    """Return a function that reads a 1-Wire sensor, and the unit.

    The file has two lines. Each contains the nine bytes of the scratchpad; the first line ends with the kernel's check
    of the CRC, the second with the temperature in m°C.
    """
    if channel or not re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{12}", device.name):
        raise ValueError('takes the id of a 1-Wire sensor, as in "w1/28-0316a2794bff"')

    def read() -> float:
        lines = device.text("w1_slave").splitlines()
        found = re.search(r"t=(-?[0-9]+)$", lines[-1]) if len(lines) == 2 else None
        if found is None or not lines[0].endswith("YES"):
            raise SensorError(f"w1/{device.name}: invalid checksum or no answer: check wiring and pull-up resistor")
        scratchpad = lines[0].split()
        if scratchpad[:2] in (["50", "05"], ["aa", "00"]) and scratchpad[6] == "0c":
            raise SensorError(
                f"w1/{device.name}: 85 °C is the power-on value: the sensor's supply fails during the measurement"
            )
        return int(found[1]) / 1000

    return read, "°C"


def _kind(channel: str, form: str, kinds: Mapping[str, Any]) -> str:
    found = re.fullmatch(form, channel)
    if found is None or found[1] not in kinds:
        raise ValueError(f"takes a channel of one of the kinds {', '.join(sorted(kinds))}")
    return found[1]


_SUBSYSTEMS: Mapping[str, Callable[[Device, str], tuple[Read, str]]] = {
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
    for name, chosen, channel_where in channel_tables(options["channels"], CHANNEL_OPTIONS, where, example):
        try:
            read, unit = _reader(options["root"], chosen["from"] or "")
        except ValueError as error:
            raise SettingsError(f"{channel_where}: from {error}, not {chosen['from']!r}") from None
        readers[name] = functools.partial(_calibrated, read, chosen)
        channels.append(Channel(name, unit if chosen["unit"] is None else chosen["unit"]))
    return KernelSource(channels, readers)


def _reader(root: str, source: str) -> tuple[Read, str]:
    subsystem, _, rest = source.partition("/")
    name, _, channel = rest.partition("/")
    if subsystem not in _SUBSYSTEMS or not name:
        raise ValueError(f'takes {", ".join(_SUBSYSTEMS)}, a device and its channel, as in "iio/bme280/temp"')
    return _SUBSYSTEMS[subsystem](Device(root, subsystem, name), channel)


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
