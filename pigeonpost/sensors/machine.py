"""Sensor kind "machine": processor temperature, load, free memory, free disk space and undervoltage of this computer.

    cpu_temperature  °C     /sys/class/thermal/thermal_zone*/temp, m°C (Documentation/ABI/testing/sysfs-class-thermal)
    load             (none) /proc/loadavg, the average of the last minute (proc_loadavg(5))
    memory_free      MiB    /proc/meminfo, MemAvailable (proc_meminfo(5))
    disk_free        MiB    statvfs(3) of `disk`, the space available to users without privileges
    undervoltage     (none) 1 if the supply voltage is too low, otherwise 0; only on a Raspberry Pi: in0_lcrit_alarm of
                            the hwmon device rpi_volt (Documentation/hwmon/raspberrypi-hwmon.rst)

Errors: SensorError for a single channel whose file is missing or cannot be read. A temperature that a processor cannot
have is read once more; then it is an ImpossibleValue.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from pigeonpost.core.config import Option, read_options, text
from pigeonpost.core.errors import SensorError
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.sensors.contract import Channel, FoundDevice, Readings, SensorSource
from pigeonpost.sensors.ranges import PROCESSOR_C, ImpossibleValue, Range
from protocol import Number

if TYPE_CHECKING:
    from typing import Any

OPTIONS = (
    Option("disk", text, "/", "folder on the disk whose free space is read"),
    Option("root", text, "/", "folder that contains proc and sys"),
)

_POSSIBLE = Range(*PROCESSOR_C, "processor")

_CHANNELS = (
    Channel("cpu_temperature", "°C"),
    Channel("load", ""),
    Channel("memory_free", "MiB"),
    Channel("disk_free", "MiB"),
    Channel("undervoltage", ""),
)


class MachineSource(SensorSource):
    """Source with the readings of this machine, without those for which it has no sensor.

    Args:
        root: Folder that contains proc and sys.
        disk: Folder on the disk whose free space is read.
    """

    def __init__(self, root: str = "/", disk: str = "/") -> None:
        self._root = root
        self._disk = disk
        self._zone = self._find_zone()
        self._alarm = undervoltage_file(root)
        self._readers: Mapping[str, Callable[[], Number]] = {
            "cpu_temperature": self._cpu_temperature,
            "load": lambda: float(self._text("proc/loadavg").split()[0]),
            "memory_free": self._memory_free,
            "disk_free": self._disk_free,
            "undervoltage": lambda: int(self._text(self._alarm)),
        }
        missing = {"cpu_temperature": not self._zone, "undervoltage": not self._alarm}
        self.channels = [channel for channel in _CHANNELS if not missing.get(channel.name)]

    def read(self) -> Readings:
        readings: dict[str, Number | SensorError] = {}
        for channel in self.channels:
            try:
                readings[channel.name] = self._readers[channel.name]()
            except ImpossibleValue as error:
                readings[channel.name] = error
            except (OSError, ValueError, IndexError) as error:
                readings[channel.name] = SensorError(f"{channel.name} of this machine cannot be read: {error}")
        return readings

    def _text(self, name: str) -> str:
        with open(os.path.join(self._root, name), encoding="ascii", errors="replace") as file:
            return file.read()

    def _find_zone(self) -> str:
        """Return the thermal zone of the processor, found by its type, because the number can change at every boot."""
        folder = os.path.join(self._root, "sys/class/thermal")
        try:
            zones = sorted(name for name in os.listdir(folder) if name.startswith("thermal_zone"))
        except OSError:
            return ""
        kinds = {}
        for zone in zones:
            try:
                kinds[zone] = self._text(f"sys/class/thermal/{zone}/type").strip()
            except OSError:
                continue
        chosen = next((zone for zone, kind in kinds.items() if "cpu" in kind or "x86_pkg" in kind), None)
        return f"sys/class/thermal/{chosen or next(iter(kinds))}/temp" if kinds else ""

    def _cpu_temperature(self) -> Number:
        try:
            return self._temperature_once()
        except ImpossibleValue:  # the firmware of a Pi sometimes reports one such value
            return self._temperature_once()

    def _temperature_once(self) -> Number:
        raw = self._text(self._zone).strip()
        value = round(int(raw) / 1000, 1)
        _POSSIBLE.check(value, "°C", raw)
        return value

    def _memory_free(self) -> Number:
        lines = self._text("proc/meminfo").splitlines()
        line = next((line for line in lines if line.startswith("MemAvailable:")), "")  # missing in some containers
        return int(line.split()[1]) // 1024

    def _disk_free(self) -> Number:
        status = os.statvfs(self._disk)
        return status.f_bavail * status.f_frsize >> 20


def undervoltage_file(root: str) -> str:
    """Return the file of the Raspberry Pi's undervoltage alarm below `root`; empty if this machine has none.

    The number of the hwmon device can change at every boot, so it is found by its name.
    """
    folder = os.path.join(root, "sys/class/hwmon")
    for device in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        try:
            with open(os.path.join(folder, device, "name"), encoding="ascii", errors="replace") as file:
                if file.read().strip() == "rpi_volt":
                    return f"sys/class/hwmon/{device}/in0_lcrit_alarm"
        except OSError:
            continue
    return ""


def is_undervoltage(root: str = "/") -> bool:
    """Return True if the kernel reports that the supply voltage is too low. `root` is the folder that contains sys."""
    name = undervoltage_file(root)
    try:
        with open(os.path.join(root, name), encoding="ascii") as file:
            return bool(name) and int(file.read()) > 0
    except (OSError, ValueError):
        return False


def scan(root: str) -> Iterator[FoundDevice]:
    """Yield this machine as a found device. `root` is the folder that contains proc and sys."""
    yield FoundDevice("this computer", {"kind": "machine"} | ({} if root == "/" else {"root": root}))


def make(settings: Mapping[str, Any], where: str) -> MachineSource:
    """Return the source for a [[sensor]] table with kind = "machine".

    Args:
        settings: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid.
    """
    return MachineSource(**read_options(settings, OPTIONS, where))
