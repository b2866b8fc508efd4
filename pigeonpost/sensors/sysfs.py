"""Devices that Linux drivers publish as folders below /sys: their names, their files and the numbers in these.

Errors: SensorError if a device is missing or does not answer, ImpossibleValue for a value that its chip cannot have.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from typing import TypeVar

from pigeonpost.core.errors import SensorError
from pigeonpost.sensors import chips
from pigeonpost.sensors.ranges import Range

_CAUSES = {
    errno.EIO: "the response is invalid, or nothing is connected: check wiring and pull-up resistor",
    errno.ETIMEDOUT: "the device does not answer: check power, wiring and pull-up resistor",
    errno.ENODEV: "the device has been removed",
    errno.EACCES: "no permission to read it",
}
Result = TypeVar("Result")


class Device:
    """Device of a subsystem in /sys. It is searched for at the first reading, and again if its path has changed.

    Attributes:
        name: Name, label, type or bus address by which it is searched for.
        possible: Possible values of its channel, if the settings replace those of the chip.
        aliases: After a reading, all its names, including those of its driver and in the device tree.
    """

    def __init__(self, root: str, subsystem: str, name: str, possible: Range | None = None) -> None:
        """Create the device without searching for it.

        Args:
            root: Folder that contains sys.
            subsystem: A key of _FOLDERS.
            name: Name, label, type or bus address of the device.
            possible: Possible values of its channel, instead of those of the chip.
        """
        self.name = name
        self.possible = possible
        self.aliases: tuple[str, ...] = (name,)
        self._subsystem = subsystem
        self._folder = os.path.join(root, _FOLDERS[subsystem])
        self._shown = f"{subsystem}/{name}"
        self._path = ""

    def text(self, file: str) -> str:
        """Return the contents of `file`, a file of the device, without surrounding white space.

        Raises:
            SensorError: The device or the file cannot be read.
        """
        return self._with_path(lambda path: self._read(path, file), file)

    def find(self) -> tuple[str, ...]:
        """Search for the device, unless it has been found, and return all its names.

        Raises:
            SensorError: There is no such device.
        """
        if not self._path:
            self._find()
        return self.aliases

    def files(self) -> list[str]:
        """Return the names of the files of the device.

        Raises:
            SensorError: The device cannot be read.
        """
        return self._with_path(lambda path: sorted(os.listdir(path)), "folder")

    def number(self, file: str) -> float:
        """Return the number in `file`, a file of the device.

        Raises:
            SensorError: The file cannot be read, or does not contain a finite number.
        """
        return self.number_in(file, self.text(file))

    def first(self, *files: str) -> tuple[float, str] | None:
        """Return the number in the first of the `files` that exists, and its text, or None if none exists.

        Raises:
            SensorError: The device or the file cannot be read, or does not contain a finite number.
        """
        existing = self.files()
        first = next((file for file in files if file in existing), None)
        if first is None:
            return None
        content = self.text(first)
        return self.number_in(first, content), content

    def number_in(self, file: str, content: str) -> float:
        """Return the number in `content`, the text that was read from `file`.

        Raises:
            SensorError: It is not a finite number.
        """
        try:
            value = float(content) if "_" not in content else math.nan  # Python accepts underscores in numbers
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SensorError(f"{self._shown}, {file}: {content[:40]!r} is not a number")
        return value

    def check(self, kind: str, channel: str, value: float, unit: str, raw: str) -> None:
        """Check that `value` is possible for this chip.

        Args:
            kind: Kind of the channel, such as "temp".
            channel: Name of the channel, such as "temp1".
            value: Value in the unit of the kind.
            unit: Unit of the kind.
            raw: Text from which the value was calculated.

        Raises:
            ImpossibleValue: The chip cannot have this value.
        """
        possible = self.possible or chips.possible(self._subsystem, self.aliases, kind, channel)
        if possible is not None:
            possible.check(value, unit, raw)

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
        self.aliases = (*names[self._path], *self._driver_names(self._path))
        return self._path

    def _driver_names(self, path: str) -> list[str]:
        """Return the name of the driver, and those of compatible devices in the device tree without the maker."""
        bus_path = self._bus_path(path)
        try:
            compatible = self._read(bus_path, "of_node/compatible").split("\0")
        except OSError:
            compatible = []
        driver = os.path.join(bus_path, "driver")
        drivers = [os.path.basename(os.path.realpath(driver))] if os.path.exists(driver) else []
        return [*drivers, *(name.rpartition(",")[2] for name in compatible)]

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
        return [*names, os.path.basename(self._bus_path(path))]

    def _bus_path(self, path: str) -> str:
        """Return the path of the device on its bus, which the device at `path` belongs to."""
        link = os.path.join(path, "device")
        return os.path.realpath(link) if os.path.exists(link) else os.path.dirname(os.path.realpath(path))


_FOLDERS = {
    "iio": "sys/bus/iio/devices", "hwmon": "sys/class/hwmon", "thermal": "sys/class/thermal",
    "w1": "sys/bus/w1/devices",
}  # fmt: skip
