"""MCP3008: eight analogue inputs over SPI, as counts, volts, °C, ohms or lux (sensor kind "adc").

spidev is imported when the chip is first opened. A source is used by one thread at a time.
Errors: SensorError, with the command that repairs the set-up.

One reading is three bytes each way (Microchip DS21295, "MCP3004/3008", section 6.1 and figure 6-1):

    we send    0000 0001 | s ddd 0000 | 0000 0000     1: start; s: 1 single-ended, 0 differential; ddd: input
    it sends   ???? ???? | ???? ?0rr  | rrrr rrrr     0: the null bit; r: ten bits, the highest first
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from pigeonpost.core.config import Option, a_table, matching, number, one_of, read_options
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple, Protocol
from pigeonpost.sensors.contract import (
    Channel,
    FoundDevice,
    Readings,
    SensorSource,
    access_remedy,
    channel_tables,
)
from protocol import UNIT, Number

if TYPE_CHECKING:
    from typing import Any

FULL_SCALE = 1024  # counts: code = 1024 x Vin / Vref (DS21295, equation 4-2)
# The chip takes 3.6 MHz at 5 V and 1.35 MHz at 2.7 V (DS21295, table 1-1); spidev's own default is the bus's maximum.
MAX_SPEED_HZ = 1_000_000


class Spi(Protocol):
    """The part of spidev.SpiDev that the driver uses."""

    def xfer2(self, values: list[int]) -> Sequence[int]:
        """Send bytes with the chip selected throughout. Returns the bytes received."""

    def close(self) -> None:
        """Close the device."""


class Mcp3008:
    """The chip behind an open SPI device."""

    def __init__(self, spi: Spi) -> None:
        self._spi = spi

    def read(self, plus: int, minus: int | None = None) -> int:
        """Make one conversion. Returns 0 to 1023 counts.

        plus   input 0 to 7, against ground
        minus  for a differential reading its neighbour (0 and 1, 2 and 3 ...); below zero reads 0

        Raises SensorError when the null bit is not there: then nothing drives the line.
        """
        if minus is not None and minus != plus ^ 1:
            raise ValueError(f"the chip compares neighbours only: {plus} with {plus ^ 1}")
        single = 0x80 if minus is None else 0
        # A fresh list each time: spidev may write the answer into the one it is given.
        _, high, low = self._spi.xfer2([1, single | plus << 4, 0])
        if high & 0b100:
            raise SensorError(_NO_ANSWER.format("1023 (all ones, even the bit that is always zero)"))
        return (high & 0b11) << 8 | low

    def close(self) -> None:
        """Close the device."""
        self._spi.close()


def open_spi(bus: int, device: int, max_speed_hz: int = MAX_SPEED_HZ) -> Spi:
    """Open /dev/spidev`bus`.`device` in mode 0. SensorError names what is missing, and the command that repairs it."""
    try:
        import spidev
    except ImportError:
        raise SensorError(
            "the Python module spidev is missing: sudo apt install python3-spidev"
            " (no chip at all? `python3 node.py --simulate` shows how it would look)"
        ) from None
    spi = spidev.SpiDev()
    try:
        spi.open(bus, device)
        spi.max_speed_hz = max_speed_hz
        spi.mode = 0
    except FileNotFoundError:
        raise SensorError(_missing_device(f"/dev/spidev{bus}.{device}")) from None
    except PermissionError:
        raise SensorError(f"/dev/spidev{bus}.{device} may not be opened: {access_remedy('spi')}") from None
    except OSError as error:
        raise SensorError(f"/dev/spidev{bus}.{device}: {error.strerror}") from error
    opened: Spi = spi
    return opened


def _missing_device(path: str) -> str:
    from pigeonpost.core.container import in_container

    text = f"{path} is not there: switch SPI on (`sudo raspi-config nonint do_spi 0`) and reboot"
    if in_container():
        text += f'; in a container: `devices: ["{path}:{path}"]` in docker-compose.yml (docs/containers.md)'
    return text


_NO_ANSWER = (
    "the chip does not answer: every input reads {}. Look at the wiring: power, ground, DOUT to MISO, CS to CE0"
)


# ------------------------------------------------------------------------------------------------- conversions


def celsius(volts: float, offset_mv: float, mv_per_c: float) -> float:
    """Return the temperature of a sensor whose output is `offset_mv` at 0 °C, and `mv_per_c` more for each degree."""
    return round((volts * 1000 - offset_mv) / mv_per_c, 2)


def ldr_ohms(counts: float, fixed_ohms: float, ldr_at: str) -> float:
    """Return the resistance of a light-dependent resistor in a divider with a fixed one.

    counts  at the divider's middle, 0 to 1023
    ldr_at  "supply": the LDR is between the supply and the input, the fixed one to ground; "ground": the other way

    Raises SensorError at either end of the scale, where it is unknown.
    """
    over, under = FULL_SCALE - counts, counts
    if ldr_at == "ground":
        over, under = under, over
    if not 0.5 <= counts <= FULL_SCALE - 1.5:
        raise SensorError(f"{counts:.0f} counts is the end of the scale: too dark, too bright, or not connected")
    return max(0.1, round(fixed_ohms * over / under, 1))


def ldr_lux(ohms: float, ohms_at_10_lux: float, gamma: float) -> float:
    """Return an estimate of the light in lux: an LDR's resistance falls with the light to the power of `gamma`.

    A GL5528, for one, has 10 to 20 kilo-ohms at 10 lux and gamma 0.7 (its data sheet): good within a factor of two.
    """
    return round(10.0 * math.pow(ohms_at_10_lux / ohms, 1 / gamma), 1)


# ------------------------------------------------------------------------------------------------------ the source


class AdcInput(NamedTuple):
    """One channel: an input of the chip, and the conversion of its counts."""

    plus: int
    minus: int | None
    convert: Callable[[float], Number]


class AdcSource(SensorSource):
    """A chip with some of its inputs in use. It is opened when it is first read, and again when that has failed."""

    def __init__(
        self,
        open_chip: Callable[[], Mcp3008],
        inputs: Mapping[str, AdcInput],
        channels: Sequence[Channel],
        average: int = 1,
    ) -> None:
        """
        inputs   by channel name
        average  how many conversions make a reading, 1 to 1000
        """
        self.channels = channels
        self._open_chip = open_chip
        self._inputs = inputs
        self._average = average
        self._chip: Mcp3008 | None = None

    def read(self) -> Readings:
        if self._chip is None:
            self._chip = self._open_chip()
        try:
            counts = {name: self._counts(self._chip, entry) for name, entry in self._inputs.items()}
            self._refuse_silence(self._chip, counts)
        except OSError as error:
            self.close()
            if isinstance(error, SensorError):
                raise
            raise SensorError(f"SPI: {error.strerror or error}") from error
        readings: dict[str, Number | SensorError] = {}
        for name, value in counts.items():
            try:
                readings[name] = self._inputs[name].convert(value)
            except SensorError as error:
                readings[name] = error
        return readings

    def _counts(self, chip: Mcp3008, entry: AdcInput) -> float:
        return sum([chip.read(entry.plus, entry.minus) for _ in range(self._average)]) / self._average

    def _refuse_silence(self, chip: Mcp3008, counts: Mapping[str, float]) -> None:
        """Raise SensorError for a line that nothing drives. One input may be at the end of its scale, so all eight must
        be at the same end."""
        for rail in (0, FULL_SCALE - 1):
            if all(value == rail for value in counts.values()) and all(chip.read(n) == rail for n in range(8)):
                raise SensorError(_NO_ANSWER.format(rail))

    def close(self) -> None:
        if self._chip is not None:
            self._chip.close()
            self._chip = None


def _input(value: Any) -> tuple[int, int | None]:
    found = re.fullmatch(r"([0-7])(?:-([0-7]))?", str(value))
    if not found or (found[2] and int(found[2]) != int(found[1]) ^ 1):
        raise ValueError('takes an input, 0 to 7, or two neighbours as in "0-1"')
    return int(found[1]), int(found[2]) if found[2] else None


_TEMPERATURE = {"mcp9700": (500.0, 10.0), "tmp36": (500.0, 10.0), "lm35": (0.0, 10.0)}  # mV at 0 °C, mV a degree
_UNITS = {"counts": "counts", "volts": "V", "ldr_ohms": "Ω", "ldr_lux": "lx", **dict.fromkeys(_TEMPERATURE, "°C")}

OPTIONS = (
    Option("channels", a_table, None, "a table for each channel, by its name"),
    Option("bus", number(0, 255, whole=True), 0, "SPI bus"),
    Option("device", number(0, 255, whole=True), 0, "chip select: 0 is CE0"),
    Option("max_speed_hz", number(10_000, 3_600_000, whole=True), MAX_SPEED_HZ, "SPI clock"),
    Option("vref_v", number(0.25, 7), 3.3, "reference voltage"),
    Option("average", number(1, 1000, whole=True), 1, "how many conversions make a reading"),
)
CHANNEL_OPTIONS = (
    Option("input", _input, None, '0 to 7, or two neighbours for a differential reading, as in "0-1"'),
    Option("convert", one_of(*_UNITS), "counts", "what becomes of the counts"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), None, "in place of the usual one"),
    Option("offset_mv", number(-5000, 5000), None, "of a temperature sensor: millivolts at 0 °C"),
    Option("mv_per_c", number(0.01, 1000), None, "of a temperature sensor: millivolts a degree"),
    Option(
        "ldr_at",
        one_of("supply", "ground"),
        "supply",
        "of a light-dependent resistor: which side of the input it is on",
    ),
    Option("fixed_ohms", number(1, 1e9), 10_000.0, "of its divider: the other resistor"),
    Option("ohms_at_10_lux", number(1, 1e9), 15_000.0, "of its data sheet"),
    Option("gamma", number(0.1, 2), 0.7, "of its data sheet"),
    Option("gain", number(-1e9, 1e9), None, "calibration: the value is multiplied by this,"),
    Option("offset", number(-1e9, 1e9), None, "and then this is added"),
)


def make(settings: Mapping[str, Any], where: str, spi: Spi | None = None) -> AdcSource:
    """The source that a [[sensor]] table with kind = "adc" describes; `spi` replaces the real device.

    Raises SettingsError, which begins with `where`.
    """
    options = read_options(settings, OPTIONS, where)
    inputs, channels = {}, []
    example = "temperature = {input = 1}"
    for name, chosen, here in channel_tables(options["channels"], CHANNEL_OPTIONS, where, example):
        if chosen["input"] is None:
            raise SettingsError(f"{here}: input is missing: which of the chip's inputs, 0 to 7?")
        plus, minus = chosen["input"]
        inputs[name] = AdcInput(plus, minus, _conversion(chosen, options["vref_v"]))
        unit = _UNITS[chosen["convert"]] if chosen["unit"] is None else chosen["unit"]
        channels.append(Channel(name, unit, spi is not None, _rail(chosen, inputs[name].convert)))

    def open_chip() -> Mcp3008:
        return Mcp3008(spi or open_spi(options["bus"], options["device"], options["max_speed_hz"]))

    return AdcSource(open_chip, inputs, channels, options["average"])


def _rail(chosen: Mapping[str, Any], convert: Callable[[float], Number]) -> Mapping[str, Any]:
    """Return the rail of a temperature sensor, which a broken one shows; of other inputs an end may be a true value."""
    return {"rail": sorted((convert(0), convert(FULL_SCALE - 1)))} if chosen["convert"] in _TEMPERATURE else {}


def _conversion(chosen: Mapping[str, Any], vref_v: float) -> Callable[[float], Number]:
    kind = chosen["convert"]

    def value(counts: float) -> Number:
        if kind == "counts":
            return round(counts)
        if kind == "volts":
            return round(counts / FULL_SCALE * vref_v, 4)
        if kind in _TEMPERATURE:
            usual_mv, usual_slope = _TEMPERATURE[kind]
            offset_mv = usual_mv if chosen["offset_mv"] is None else chosen["offset_mv"]
            return celsius(counts / FULL_SCALE * vref_v, offset_mv, chosen["mv_per_c"] or usual_slope)
        ohms = ldr_ohms(counts, chosen["fixed_ohms"], chosen["ldr_at"])
        return ohms if kind == "ldr_ohms" else ldr_lux(ohms, chosen["ohms_at_10_lux"], chosen["gamma"])

    gain, offset = chosen["gain"], chosen["offset"]
    if gain is None and offset is None:
        return value
    return lambda counts: round(value(counts) * (1 if gain is None else gain) + (offset or 0), 6)


def scan(root: str) -> Iterator[FoundDevice]:
    """Return each SPI device as a possible chip; reading it shows whether it is one."""
    try:
        names = sorted(os.listdir(os.path.join(root, "dev")))
    except OSError:
        return
    for match in filter(None, (re.fullmatch(r"spidev([0-9]+)\.([0-9]+)", name) for name in names)):
        channels = {f"input_{number}": {"input": number} for number in range(8)}
        place = {"bus": int(match[1]), "device": int(match[2])}
        yield FoundDevice(f"SPI {match[1]}.{match[2]}, an MCP3008", {"kind": "adc", **place, "channels": channels})
