"""Driver for the MCP3008, a 10-bit analogue-to-digital converter with eight inputs on the SPI bus (sensor kind "adc").

A channel converts the counts of an input to volts, °C, ohms or lux.

One conversion transfers three bytes in each direction at the same time (Microchip data sheet DS21295, "MCP3004/3008",
section 6.1, figure 6-1):

                 byte 1      byte 2      byte 3
    Pi to chip   0000 0001   SDDD 0000   0000 0000
    chip to Pi   ???? ????   ???? ?0RR   RRRR RRRR

    1      start bit (the last bit of byte 1)
    S      1: single-ended (input against ground); 0: differential (input against its neighbour)
    DDD    number of the input, 0 to 7
    0      from the chip: the null bit, which it always sends before the result; to the chip: padding
    R      result, ten bits, most significant bit first: 0 to 1023 counts
    ?      not defined

The spidev module is imported when the chip is opened for the first time. A source is used by one thread at a time.
Errors: SensorError, whose message contains the command that repairs the set-up.
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

FULL_SCALE = 1024  # counts at the reference voltage: counts = 1024 x Vin / Vref (DS21295, equation 4-2)
# The chip allows 3.6 MHz at 5 V and 1.35 MHz at 2.7 V (DS21295, table 1-1). 1 MHz is safe for a supply of 3.3 V; the
# default of spidev is the maximum of the bus, which is too fast.
MAX_SPEED_HZ = 1_000_000


class Spi(Protocol):
    """Interface of an open SPI device: the part of `spidev.SpiDev` that the driver uses."""

    def xfer2(self, values: list[int]) -> Sequence[int]:
        """Send the bytes `values` while chip select stays active. Return the bytes received, as many as were sent."""

    def close(self) -> None:
        """Close the device."""


class Mcp3008:
    """An MCP3008 on an open SPI device.

    Args:
        spi: Open SPI device in mode 0.
    """

    def __init__(self, spi: Spi) -> None:
        self._spi = spi

    def read(self, plus: int, minus: int | None = None) -> int:
        """Make one conversion and return its result in counts.

        Args:
            plus: Number of the input, 0 to 7. Its voltage is measured against ground.
            minus: For a differential measurement, the other input of the pair (0 and 1, 2 and 3, 4 and 5, 6 and 7);
                the result is 0 if its voltage is higher than that of `plus`. None measures `plus` against ground.

        Returns:
            The result in counts, 0 to 1023.

        Raises:
            OSError: The SPI transfer fails.
            SensorError: The null bit is 1, which shows that no chip drives the data line.
            ValueError: `plus` and `minus` are not a pair.
        """
        if minus is not None and minus != plus ^ 1:
            raise ValueError(f"the MCP3008 compares only neighbouring inputs: {plus} with {plus ^ 1}, not with {minus}")
        single = 0x80 if minus is None else 0
        # A new list for each call, because spidev may write the response into the list that it receives.
        _, high, low = self._spi.xfer2([1, single | plus << 4, 0])
        if high & 0b100:
            raise SensorError(_NO_ANSWER.format("1023 (all ones, even the bit that is always zero)"))
        return (high & 0b11) << 8 | low

    def close(self) -> None:
        """Close the device."""
        self._spi.close()


def open_spi(bus: int, device: int, max_speed_hz: int = MAX_SPEED_HZ) -> Spi:
    """Open the device /dev/spidevB.D in SPI mode 0.

    Args:
        bus: Number of the SPI bus (B).
        device: Number of the chip select line (D); 0 is CE0.
        max_speed_hz: Clock frequency in Hz.

    Returns:
        The open device.

    Raises:
        SensorError: The spidev module or the device is missing, or the device cannot be opened. The message contains
            the command that repairs it.
    """
    try:
        import spidev
    except ImportError:
        raise SensorError(
            "the Python module spidev is missing: sudo apt install python3-spidev"
            " (without a chip, try `python3 node.py --simulate`)"
        ) from None
    spi = spidev.SpiDev()
    try:
        spi.open(bus, device)
        spi.max_speed_hz = max_speed_hz
        spi.mode = 0
    except FileNotFoundError:
        raise SensorError(_missing_device(f"/dev/spidev{bus}.{device}")) from None
    except PermissionError:
        raise SensorError(f"no permission to open /dev/spidev{bus}.{device}: {access_remedy('spi')}") from None
    except OSError as error:
        raise SensorError(f"/dev/spidev{bus}.{device}: {error.strerror}") from error
    opened: Spi = spi
    return opened


def _missing_device(path: str) -> str:
    from pigeonpost.core.container import in_container

    text = f"{path} does not exist: enable SPI (`sudo raspi-config nonint do_spi 0`) and reboot"
    if in_container():
        text += f'; in a container, add `devices: ["{path}:{path}"]` to docker-compose.yml (docs/containers.md)'
    return text


_NO_ANSWER = "the chip does not answer: every input reads {}. Check the wiring: power, ground, DOUT to MISO, CS to CE0"


# ------------------------------------------------------------------------------------------------- conversions


def celsius(volts: float, offset_mv: float, mv_per_c: float) -> float:
    """Return the temperature in °C of a sensor with a linear voltage output.

    Args:
        volts: Output voltage of the sensor, in volts.
        offset_mv: Output voltage at 0 °C, in millivolts.
        mv_per_c: Increase of the output voltage per °C, in millivolts.
    """
    return round((volts * 1000 - offset_mv) / mv_per_c, 2)


def ldr_ohms(counts: float, fixed_ohms: float, ldr_at: str) -> float:
    """Return the resistance, in ohms, of a light-dependent resistor (LDR) in a voltage divider.

    Args:
        counts: Reading at the middle of the divider, 0 to 1023.
        fixed_ohms: Resistance of the other resistor of the divider, in ohms.
        ldr_at: "supply" if the LDR is between the supply and the input, "ground" if it is between the input and ground.

    Raises:
        SensorError: The reading is at an end of the scale, where the resistance cannot be calculated.
    """
    ldr_counts, fixed_counts = FULL_SCALE - counts, counts  # proportional to the voltages at the two resistors
    if ldr_at == "ground":
        ldr_counts, fixed_counts = fixed_counts, ldr_counts
    if not 0.5 <= counts <= FULL_SCALE - 1.5:
        raise SensorError(f"{counts:.0f} counts is the end of the scale: too dark, too bright, or not connected")
    return max(0.1, round(fixed_ohms * ldr_counts / fixed_counts, 1))


def ldr_lux(ohms: float, ohms_at_10_lux: float, gamma: float) -> float:
    """Return an estimate of the illuminance, in lux, from the resistance of an LDR.

    The resistance is inversely proportional to the illuminance raised to the power of `gamma`. The data sheet of a
    GL5528, for example, gives 10 to 20 kΩ at 10 lux and a gamma of 0.7. The estimate is accurate to a factor of two.

    Args:
        ohms: Resistance of the LDR, in ohms.
        ohms_at_10_lux: Resistance of the LDR at 10 lux, in ohms (from its data sheet).
        gamma: Gamma of the LDR (from its data sheet).
    """
    return round(10.0 * math.pow(ohms_at_10_lux / ohms, 1 / gamma), 1)


# ------------------------------------------------------------------------------------------------------ the source


class AdcInput(NamedTuple):
    """An input of the chip and the conversion of its counts.

    Attributes:
        plus: Number of the input, 0 to 7.
        minus: Number of the other input of a differential measurement, or None.
        convert: Function that converts counts to the value of the channel.
    """

    plus: int
    minus: int | None
    convert: Callable[[float], Number]


class AdcSource(SensorSource):
    """Sensor source that reads some inputs of an MCP3008.

    The chip is opened at the first reading, and opened again at the next reading after an error.
    """

    def __init__(
        self,
        open_chip: Callable[[], Mcp3008],
        inputs: Mapping[str, AdcInput],
        channels: Sequence[Channel],
        average: int = 1,
    ) -> None:
        """Create the source without opening the chip.

        Args:
            open_chip: Function that opens the chip.
            inputs: Input of each channel, by channel name.
            channels: The channels of the source.
            average: Number of conversions that are averaged for one reading, 1 to 1000.
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
            self._check_chip_answers(self._chip, counts)
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

    def _check_chip_answers(self, chip: Mcp3008, counts: Mapping[str, float]) -> None:
        """Raise SensorError if the readings show that no chip drives the data line.

        A single input may be at an end of its scale. It is an error only if all eight inputs are at the same end.
        """
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
        raise ValueError('takes an input, 0 to 7, or two neighbouring inputs, as in "0-1"')
    return int(found[1]), int(found[2]) if found[2] else None


_TEMPERATURE = {"mcp9700": (500.0, 10.0), "tmp36": (500.0, 10.0), "lm35": (0.0, 10.0)}  # mV at 0 °C, mV per °C
# Lowest and highest temperature: Microchip DS20001942 (MCP9700), Analog Devices TMP35/36/37, TI SNIS159 (LM35). The
# first two measure -40 to 150 °C with an error of up to 4 °C, so a freezer at -40 °C can be measured as -43 °C.
_RANGES_C = {"mcp9700": (-45.0, 155.0), "tmp36": (-45.0, 155.0), "lm35": (-55.0, 150.0)}
_UNITS = {"counts": "counts", "volts": "V", "ldr_ohms": "Ω", "ldr_lux": "lx", **dict.fromkeys(_TEMPERATURE, "°C")}

OPTIONS = (
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("bus", number(0, 255, whole=True), 0, "number of the SPI bus"),
    Option("device", number(0, 255, whole=True), 0, "chip select line; 0 is CE0"),
    Option("max_speed_hz", number(10_000, 3_600_000, whole=True), MAX_SPEED_HZ, "SPI clock in Hz"),
    Option("vref_v", number(0.25, 7), 3.3, "reference voltage in V"),
    Option("average", number(1, 1000, whole=True), 1, "number of conversions averaged for one reading"),
)
CHANNEL_OPTIONS = (
    Option("input", _input, None, '0 to 7, or two neighbouring inputs for a differential measurement, as in "0-1"'),
    Option("convert", one_of(*_UNITS), "counts", "conversion of the counts"),
    Option(
        "unit",
        matching(UNIT, "a text up to 32 characters"),
        None,
        "unit, instead of the default of `convert`",
    ),
    Option("offset_mv", number(-5000, 5000), None, "temperature sensor: output in millivolts at 0 °C"),
    Option("mv_per_c", number(0.01, 1000), None, "temperature sensor: millivolts per °C"),
    Option(
        "ldr_at",
        one_of("supply", "ground"),
        "supply",
        "light-dependent resistor: the side of the input to which it is connected",
    ),
    Option("fixed_ohms", number(1, 1e9), 10_000.0, "light-dependent resistor: other resistor of the divider, in ohms"),
    Option("ohms_at_10_lux", number(1, 1e9), 15_000.0, "light-dependent resistor: resistance at 10 lux (data sheet)"),
    Option("gamma", number(0.1, 2), 0.7, "light-dependent resistor: gamma (data sheet)"),
    Option("gain", number(-1e9, 1e9), None, "calibration: factor by which the value is multiplied"),
    Option("offset", number(-1e9, 1e9), None, "calibration: added to the value after the multiplication"),
)


def make(settings: Mapping[str, Any], where: str, spi: Spi | None = None) -> AdcSource:
    """Return the source for a [[sensor]] table with kind = "adc".

    Args:
        settings: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.
        spi: Simulated device to use instead of the real one. The channels are then marked as simulated.

    Raises:
        SettingsError: A setting is invalid.
    """
    options = read_options(settings, OPTIONS, where)
    inputs, channels = {}, []
    example = "temperature = {input = 1}"
    for name, chosen, channel_where in channel_tables(options["channels"], CHANNEL_OPTIONS, OPTIONS, where, example):
        if chosen["input"] is None:
            raise SettingsError(f"{channel_where}: input is missing: the number of an input of the chip, 0 to 7")
        plus, minus = chosen["input"]
        inputs[name] = AdcInput(plus, minus, _conversion(chosen, options["vref_v"]))
        unit = _UNITS[chosen["convert"]] if chosen["unit"] is None else chosen["unit"]
        rail = _rail(chosen, inputs[name].convert)
        channels.append(Channel(name, unit, spi is not None, rail, _possible(chosen)))

    def open_chip() -> Mcp3008:
        return Mcp3008(spi or open_spi(options["bus"], options["device"], options["max_speed_hz"]))

    return AdcSource(open_chip, inputs, channels, options["average"])


def _rail(chosen: Mapping[str, Any], convert: Callable[[float], Number]) -> Mapping[str, Any]:
    """Return the `rail` limit of a temperature sensor: the values at the two ends of the scale.

    A broken temperature sensor reads one of these values. For other sensors, an end of the scale can be a true value.
    """
    return {"rail": sorted((convert(0), convert(FULL_SCALE - 1)))} if chosen["convert"] in _TEMPERATURE else {}


def _possible(chosen: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the range of a temperature sensor; None for another one, or if the settings change its conversion."""
    changes = ("offset_mv", "mv_per_c", "gain", "offset", "unit")
    return _RANGES_C.get(chosen["convert"]) if all(chosen[key] is None for key in changes) else None


def _conversion(chosen: Mapping[str, Any], vref_v: float) -> Callable[[float], Number]:
    kind = chosen["convert"]

    def value(counts: float) -> Number:
        if kind == "counts":
            return round(counts)
        if kind == "volts":
            return round(counts / FULL_SCALE * vref_v, 4)
        if kind in _TEMPERATURE:
            default_mv, default_slope = _TEMPERATURE[kind]
            offset_mv = default_mv if chosen["offset_mv"] is None else chosen["offset_mv"]
            return celsius(counts / FULL_SCALE * vref_v, offset_mv, chosen["mv_per_c"] or default_slope)
        ohms = ldr_ohms(counts, chosen["fixed_ohms"], chosen["ldr_at"])
        return ohms if kind == "ldr_ohms" else ldr_lux(ohms, chosen["ohms_at_10_lux"], chosen["gamma"])

    gain, offset = chosen["gain"], chosen["offset"]
    if gain is None and offset is None:
        return value
    return lambda counts: round(value(counts) * (1 if gain is None else gain) + (offset or 0), 6)


def scan(root: str) -> Iterator[FoundDevice]:
    """Yield each SPI device below the folder `root`/dev as a possible MCP3008. The scan does not read the device."""
    try:
        names = sorted(os.listdir(os.path.join(root, "dev")))
    except OSError:
        return
    for match in filter(None, (re.fullmatch(r"spidev([0-9]+)\.([0-9]+)", name) for name in names)):
        channels = {f"input_{number}": {"input": number} for number in range(8)}
        address = {"bus": int(match[1]), "device": int(match[2])}
        yield FoundDevice(f"SPI {match[1]}.{match[2]}, an MCP3008", {"kind": "adc", **address, "channels": channels})
