"""Sensor kind "mcp3424": analogue inputs over I2C, as volts; two of the chips make the eight inputs of an ADC Pi Plus.

smbus2 is imported when the source is made. Where the chip has its kernel driver, kind = "kernel" reads it instead, and
this kind refuses. Errors: SensorError, with the command that repairs the set-up.

A conversion is started by writing one byte, the configuration (Microchip DS22088, "MCP3422/3/4", register 5-1):

    bit     7    6  5    4    3  2    1  0
           RDY   c  c   O/C   s  s    g  g
            1    c: input 0 to 3
            |            0: once, then it sleeps
            |                 s: 0 12 bits (240/s), 1 14 (60/s), 2 16 (15/s), 3 18 (3.75/s)
            |                         g: amplifier, 0 x1, 1 x2, 2 x4, 3 x8
            when written 1: convert; when read 1: not done yet

and the answer is read until RDY is 0, the configuration as the last byte (m: the sign again):

    18 bits    mmmm mmcc | cccc cccc | cccc cccc | RDY...
    16 bits    cccc cccc | cccc cccc | RDY...
    14 bits    mmcc cccc | cccc cccc | RDY...
    12 bits    mmmm cccc | cccc cccc | RDY...
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pigeonpost.core.config import Option, Parse, a_table, matching, number, read_options, text
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.sensors.contract import (
    CALIBRATION,
    Channel,
    FoundDevice,
    Readings,
    SensorSource,
    access_remedy,
    calibrated,
    channel_tables,
)
from protocol import UNIT, Number

VREF_V = 2.048  # its own: full scale is +-2.048 V at the chip's pin, divided by the amplifier
SIZES = (12, 14, 16, 18)  # bits; the index is the value in the configuration
AMPLIFIERS = (1, 2, 4, 8)
# Seconds that a conversion takes, and may take (DS22088, electrical characteristics: data rate).
_USUAL_S = (1 / 240, 1 / 60, 1 / 15, 1 / 3.75)
_LONGEST_S = (1 / 176, 1 / 44, 1 / 11, 1 / 2.75)
_PATIENCE = 2.0  # of that, since the machine may have other things to do
_FIRST, _LAST = 0x68, 0x6F  # addresses: two pins that know three states choose one
ADC_PI_DIVIDER = 2.471  # 10 and 6.8 kilo-ohms before each input of that board


class I2c(Protocol):
    """What the driver needs of a bus."""

    def write(self, address: int, data: int) -> None:
        """Send one byte to the chip at `address`. Raises OSError without an acknowledgement."""

    def read(self, address: int, count: int) -> bytes:
        """Read from the chip at `address`. Raises OSError when there is none."""

    def close(self) -> None:
        """Close the bus."""


class Mcp3424:
    """One chip on an open bus."""

    def __init__(
        self, bus: I2c, address: int,
        now_s: Callable[[], float] = time.monotonic, sleep: Callable[[float], Any] = time.sleep,
    ) -> None:  # fmt: skip
        self._bus, self._address, self._now_s, self._sleep = bus, address, now_s, sleep

    def read(self, number: int, bits: int = 18, amplifier: int = 1) -> int:
        """Make one conversion. Returns counts from -2^(bits-1) to 2^(bits-1) - 1.

        number     input 0 to 3        bits  one of SIZES        amplifier  one of AMPLIFIERS

        Raises SensorError when the chip is never done or is no MCP3424; OSError when nothing answers.
        """
        size = SIZES.index(bits)
        config = 1 << 7 | number << 5 | 0 << 4 | size << 2 | AMPLIFIERS.index(amplifier)
        began_s = self._now_s()
        self._bus.write(self._address, config)
        self._sleep(_USUAL_S[size])
        while True:
            late = self._now_s() - began_s > _PATIENCE * _LONGEST_S[size]
            *code, answer = self._bus.read(self._address, 4 if bits == 18 else 3)
            if answer & 0x7F != config & 0x7F:
                raise SensorError(
                    f"what is at {self._address:#04x} answers as no MCP3424 does: is it another chip, or is its wiring"
                    " loose?"
                )
            if not answer & 0x80:
                return int.from_bytes(bytes(code), "big", signed=True)
            if late:
                raise SensorError(f"the chip at {self._address:#04x} is not done after {self._now_s() - began_s:.2f} s")
            self._sleep(_USUAL_S[size] / 16)


class _SmBus:
    """An I2c on top of smbus2: plain messages, since the chip has no registers to name."""

    def __init__(self, library: Any, bus: int) -> None:
        self._message = library.i2c_msg
        self._bus = library.SMBus(bus)

    def write(self, address: int, data: int) -> None:
        self._bus.i2c_rdwr(self._message.write(address, [data]))

    def read(self, address: int, count: int) -> bytes:
        message = self._message.read(address, count)
        self._bus.i2c_rdwr(message)
        return bytes(message)

    def close(self) -> None:
        self._bus.close()


def open_bus(library: Any, bus: int, addresses: Sequence[int], root: str = "/") -> I2c:
    """Open /dev/i2c-`bus`. SensorError names the obstacle, and the command that removes it."""
    for address in addresses:
        driver = os.path.join(root, f"sys/bus/i2c/devices/{bus}-{address:04x}/driver")
        if os.path.exists(driver):
            raise SensorError(
                f"the chip at {address:#04x} has a kernel driver, {os.path.basename(os.path.realpath(driver))}:"
                ' read it with kind = "kernel" (docs/sensors.md)'
            )
    try:
        return _SmBus(library, bus)
    except FileNotFoundError:
        raise SensorError(
            f"/dev/i2c-{bus} is not there: switch I2C on (`sudo raspi-config nonint do_i2c 0`) and reboot"
        ) from None
    except PermissionError:
        raise SensorError(f"/dev/i2c-{bus} may not be opened: {access_remedy('i2c')}") from None
    except OSError as error:
        raise SensorError(f"/dev/i2c-{bus}: {error.strerror}") from error


class Mcp3424Input(NamedTuple):
    """One channel: chip and input, how it is converted, and the conversion of its counts."""

    address: int
    number: int
    bits: int
    amplifier: int
    convert: Callable[[int], Number]


class Mcp3424Source(SensorSource):
    """Chips on one bus. It is opened when it is first read, and again when all has failed."""

    def __init__(
        self, open_it: Callable[[], I2c], inputs: Mapping[str, Mcp3424Input], channels: Sequence[Channel]
    ) -> None:
        """inputs: by channel name"""
        self.channels = channels
        self._open = open_it
        self._inputs = inputs
        self._bus: I2c | None = None

    def read(self) -> Readings:
        if self._bus is None:
            self._bus = self._open()
        readings: dict[str, Number | SensorError] = {}
        silent: dict[int, SensorError] = {}  # a chip that does not answer is asked once, not for each of its inputs
        for name, one in self._inputs.items():
            try:
                if one.address in silent:
                    raise silent[one.address]
                code = Mcp3424(self._bus, one.address).read(one.number, one.bits, one.amplifier)
                readings[name] = one.convert(code)
            except SensorError as error:
                readings[name] = error
            except OSError as error:
                readings[name] = silent[one.address] = SensorError(_in_words(error, one.address))
        if all(isinstance(value, SensorError) for value in readings.values()):
            self.close()
        return readings

    def close(self) -> None:
        if self._bus is not None:
            self._bus.close()
            self._bus = None


def _in_words(error: OSError, address: int) -> str:
    if error.errno in (errno.ENXIO, errno.EREMOTEIO, errno.EIO):  # as the bus's own driver says "no acknowledge"
        return (
            f"nothing answers at {address:#04x}: check wiring, power and address jumpers (`i2cdetect -y 1` shows all)"
        )
    if error.errno == errno.ETIMEDOUT:
        return f"the bus hangs at {address:#04x}: SDA or SCL is held low; check the wiring"
    return f"I2C at {address:#04x}: {error.strerror or error}"


def _one_of(*choices: int) -> Parse:
    def parse(value: Any) -> int:
        if type(value) is not int or value not in choices:
            raise ValueError(f"takes {', '.join(map(str, choices))}")
        return value

    return parse


def _address(value: Any) -> int:
    if type(value) is not int or not _FIRST <= value <= _LAST:
        raise ValueError("takes an address from 0x68 to 0x6f")
    return value


OPTIONS = (
    Option("channels", a_table, None, "a table for each channel, by its name"),
    Option("bus", number(0, 255, whole=True), 1, "I2C bus"),
    Option("address", _address, 0x68, "of the chip with the inputs 1 to 4"),
    Option("second", _address, None, "of the chip with the inputs 5 to 8; without it the next address"),
    Option("divider", number(0.001, 1e6), ADC_PI_DIVIDER, "how much larger the voltage is before the board's divider"),
    Option("root", text, "/", "where sys is"),
)
CHANNEL_OPTIONS = (
    Option("input", number(1, 8, whole=True), None, "1 to 8, as they are written on the board"),
    Option("bits", _one_of(*SIZES), 18, "12, 14, 16 or 18; more take longer: 4, 17, 67, 267 ms"),
    Option("pga", _one_of(*AMPLIFIERS), 1, "amplifier before the converter: 1, 2, 4 or 8"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), "V", "of the value"),
    *CALIBRATION,
)


def make(settings: Mapping[str, Any], where: str) -> Mcp3424Source:
    """The source that a [[sensor]] table with kind = "mcp3424" describes.

    Raises SettingsError, which begins with `where`; not for a chip that is not there.
    """
    options = read_options(settings, OPTIONS, where)
    second = options["address"] + 1 if options["second"] is None else options["second"]
    inputs: dict[str, Mcp3424Input] = {}
    channels = []
    for name, chosen, here in channel_tables(options["channels"], CHANNEL_OPTIONS, where, "battery = {input = 1}"):
        if chosen["input"] is None:
            raise SettingsError(f"{here}: input is missing: 1 to 8, as they are written on the board")
        chip, place = divmod(chosen["input"] - 1, 4)
        if chip and second in (options["address"], _LAST + 1):
            raise SettingsError(f"{here}: input {chosen['input']} is on the second chip: second takes another address")
        convert = _conversion(chosen, options["divider"])
        inputs[name] = Mcp3424Input((options["address"], second)[chip], place, chosen["bits"], chosen["pga"], convert)
        top = 1 << chosen["bits"] - 1
        channels.append(Channel(name, chosen["unit"], limits={"rail": sorted((convert(-top), convert(top - 1)))}))
    addresses = sorted({one.address for one in inputs.values()})
    return Mcp3424Source(lambda: open_bus(_library(), options["bus"], addresses, options["root"]), inputs, channels)


def _conversion(chosen: Mapping[str, Any], divider: float) -> Callable[[int], Number]:
    # 2^(bits-1) counts are the reference voltage.
    volts = VREF_V / (1 << chosen["bits"] - 1) / chosen["pga"] * divider
    return lambda code: calibrated(code * volts, chosen)


def _library() -> Any:
    """Return the module smbus2. Raises SensorError without it: the node's other sources go on."""
    try:
        import smbus2
    except ImportError:
        raise SensorError("the Python module smbus2 is missing: sudo apt install python3-smbus2") from None
    return smbus2


def scan(root: str) -> Iterator[FoundDevice]:
    """Chips on the buses that may be opened, at addresses that no kernel driver has. They are only read from, so that
    another chip at such an address (a clock has one of them) is not disturbed."""
    try:
        library = _library()
        names = sorted(os.listdir(os.path.join(root, "dev")))
    except OSError:  # SensorError is one
        return
    for bus in (int(name.removeprefix("i2c-")) for name in names if re.fullmatch(r"i2c-[0-9]+", name)):
        for address in range(_FIRST, _LAST + 1):
            if os.path.exists(os.path.join(root, f"sys/bus/i2c/devices/{bus}-{address:04x}")):
                continue
            if _is_one(library, bus, address):
                channels = {f"adc_{number}": {"input": number} for number in range(1, 5)}
                place = {"bus": bus, "address": address} | ({} if root == "/" else {"root": root})
                about = f"I2C bus {bus}, {address:#04x}: an MCP3424"
                yield FoundDevice(about, {"kind": "mcp3424", **place, "channels": channels})


def _is_one(library: Any, bus: int, address: int) -> bool:
    """Return True if the chip repeats its configuration while it is read, behind three bytes for 18 bits, else two."""
    try:
        opened = _SmBus(library, bus)
        try:
            said = opened.read(address, 6)
        finally:
            opened.close()
    except OSError:
        return False
    return len(set(said[3:])) == 1 and (said[3] >> 2 & 3 == 3 or said[2] == said[3])
