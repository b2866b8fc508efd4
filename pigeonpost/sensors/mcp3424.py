"""Driver for the MCP3424, an analogue-to-digital converter on the I2C bus (sensor kind "mcp3424"); values are in volts.

Two of these chips provide the eight inputs of an ADC Pi Plus.

The smbus2 module is imported when the bus is opened. If a kernel driver uses the chip, this kind raises an error: such
a chip is read with kind = "kernel".
Errors: SensorError, whose message contains the command that repairs the set-up.

Writing one byte, the configuration, starts a conversion (Microchip data sheet DS22088, "MCP3422/3/4", register 5-1):

    bit      7     6 5   4     3 2   1 0
             RDY   C C   O/C   S S   G G

    RDY      written as 1: start a conversion; read as 1: the conversion is not finished
    C        input: 0 to 3
    O/C      0: one conversion, then the chip sleeps
    S        0: 12 bits (240/s); 1: 14 bits (60/s); 2: 16 bits (15/s); 3: 18 bits (3.75/s)
    G        gain of the amplifier: 0: x1; 1: x2; 2: x4; 3: x8

The response is read until RDY is 0. Its last byte is the configuration (D: result; M: copies of the sign bit):

    18 bits  MMMM MMDD   DDDD DDDD   DDDD DDDD   configuration
    16 bits  DDDD DDDD   DDDD DDDD   configuration
    14 bits  MMDD DDDD   DDDD DDDD   configuration
    12 bits  MMMM DDDD   DDDD DDDD   configuration
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

VREF_V = 2.048  # internal reference: full scale is +-2.048 V at the pin, divided by the gain of the amplifier
SIZES = (12, 14, 16, 18)  # bits; the index is the value of S in the configuration
AMPLIFIERS = (1, 2, 4, 8)  # gain; the index is the value of G in the configuration
# Typical and maximum time of a conversion in seconds (DS22088, electrical characteristics: data rate).
_USUAL_S = (1 / 240, 1 / 60, 1 / 15, 1 / 3.75)
_LONGEST_S = (1 / 176, 1 / 44, 1 / 11, 1 / 2.75)
_PATIENCE = 2.0  # factor for the maximum time, because the machine can be busy
_FIRST, _LAST = 0x68, 0x6F  # range of addresses; two pins with three states each select one
ADC_PI_DIVIDER = 2.471  # voltage divider of 10 kΩ and 6.8 kΩ before each input of that board


class I2c(Protocol):
    """Interface of an open I2C bus: the operations that the driver uses."""

    def write(self, address: int, data: int) -> None:
        """Send one byte, `data`, to the chip at `address`.

        Raises:
            OSError: No chip acknowledges the byte.
        """

    def read(self, address: int, count: int) -> bytes:
        """Return `count` bytes read from the chip at `address`.

        Raises:
            OSError: No chip answers.
        """

    def close(self) -> None:
        """Close the bus."""


class Mcp3424:
    """An MCP3424 on an open I2C bus.

    Args:
        bus: The open bus.
        address: Address of the chip.
        now_s: Clock that returns seconds.
        sleep: Function that waits for a time in seconds.
    """

    def __init__(
        self, bus: I2c, address: int,
        now_s: Callable[[], float] = time.monotonic, sleep: Callable[[float], Any] = time.sleep,
    ) -> None:  # fmt: skip
        self._bus, self._address, self._now_s, self._sleep = bus, address, now_s, sleep

    def read(self, number: int, bits: int = 18, amplifier: int = 1) -> int:
        """Make one conversion and return its result in counts, from -2^(bits-1) to 2^(bits-1) - 1.

        Args:
            number: Number of the input, 0 to 3.
            bits: Resolution: 12, 14, 16 or 18.
            amplifier: Gain of the amplifier: 1, 2, 4 or 8.

        Raises:
            SensorError: The conversion does not end, or the chip is not an MCP3424.
            OSError: No chip answers.
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
                    f"the chip at {self._address:#04x} does not answer like an MCP3424: it is another chip, or the"
                    " wiring is loose"
                )
            if not answer & 0x80:
                return int.from_bytes(bytes(code), "big", signed=True)
            if late:
                raise SensorError(
                    f"the chip at {self._address:#04x} has not finished after {self._now_s() - began_s:.2f} s"
                )
            self._sleep(_USUAL_S[size] / 16)


class _SmBus:
    """I2C bus of the smbus2 library. It uses plain messages, because the chip has no register addresses."""

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
    """Open the device /dev/i2c-N and return the bus.

    Args:
        library: The smbus2 module.
        bus: Number of the bus (N).
        addresses: Addresses of the chips that will be read.
        root: Folder that contains sys.

    Raises:
        SensorError: The device cannot be opened, or a chip has a kernel driver. The message contains the command that
            repairs it.
    """
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
            f"/dev/i2c-{bus} does not exist: enable I2C (`sudo raspi-config nonint do_i2c 0`) and reboot"
        ) from None
    except PermissionError:
        raise SensorError(f"no permission to open /dev/i2c-{bus}: {access_remedy('i2c')}") from None
    except OSError as error:
        raise SensorError(f"/dev/i2c-{bus}: {error.strerror}") from error


class Mcp3424Input(NamedTuple):
    """An input of a chip and its conversion.

    Attributes:
        address: Address of the chip.
        number: Number of the input, 0 to 3.
        bits: Resolution: 12, 14, 16 or 18.
        amplifier: Gain of the amplifier: 1, 2, 4 or 8.
        convert: Function that converts counts to the value of the channel.
    """

    address: int
    number: int
    bits: int
    amplifier: int
    convert: Callable[[int], Number]


class Mcp3424Source(SensorSource):
    """Sensor source that reads inputs of one or two chips on the same bus.

    The bus is opened at the first reading, and opened again if all channels have failed.
    """

    def __init__(
        self, open_i2c: Callable[[], I2c], inputs: Mapping[str, Mcp3424Input], channels: Sequence[Channel]
    ) -> None:
        """Create the source without opening the bus.

        Args:
            open_i2c: Function that opens the bus.
            inputs: Input of each channel, by channel name.
            channels: The channels.
        """
        self.channels = channels
        self._open = open_i2c
        self._inputs = inputs
        self._bus: I2c | None = None

    def read(self) -> Readings:
        if self._bus is None:
            self._bus = self._open()
        readings: dict[str, Number | SensorError] = {}
        silent: dict[int, SensorError] = {}  # a chip that does not answer is read only once, not for each input
        for name, entry in self._inputs.items():
            try:
                if entry.address in silent:
                    raise silent[entry.address]
                code = Mcp3424(self._bus, entry.address).read(entry.number, entry.bits, entry.amplifier)
                readings[name] = entry.convert(code)
            except SensorError as error:
                readings[name] = error
            except OSError as error:
                readings[name] = silent[entry.address] = SensorError(_describe(error, entry.address))
        if all(isinstance(value, SensorError) for value in readings.values()):
            self.close()
        return readings

    def close(self) -> None:
        if self._bus is not None:
            self._bus.close()
            self._bus = None


def _describe(error: OSError, address: int) -> str:
    if error.errno in (errno.ENXIO, errno.EREMOTEIO, errno.EIO):  # bus drivers report "no acknowledge" as one of these
        return (
            f"nothing answers at {address:#04x}: check wiring, power and address jumpers"
            " (`i2cdetect -y 1` lists all addresses)"
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
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("bus", number(0, 255, whole=True), 1, "number of the I2C bus"),
    Option("address", _address, 0x68, "address of the chip with the inputs 1 to 4"),
    Option("second", _address, None, "address of the chip with the inputs 5 to 8 (default: the next address)"),
    Option("divider", number(0.001, 1e6), ADC_PI_DIVIDER, "factor of the voltage divider; 1 for a chip without one"),
    Option("root", text, "/", "folder that contains sys"),
)
CHANNEL_OPTIONS = (
    Option("input", number(1, 8, whole=True), None, "number of the input, 1 to 8, as printed on the board"),
    Option("bits", _one_of(*SIZES), 18, "resolution: 12, 14, 16 or 18 bits; a conversion takes 4, 17, 67 or 267 ms"),
    Option("pga", _one_of(*AMPLIFIERS), 1, "gain of the amplifier: 1, 2, 4 or 8"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), "V", "unit of the value"),
    *CALIBRATION,
)


def make(settings: Mapping[str, Any], where: str) -> Mcp3424Source:
    """Return the source for a [[sensor]] table with kind = "mcp3424".

    Args:
        settings: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid. A missing chip is not an error here; each reading reports it.
    """
    options = read_options(settings, OPTIONS, where)
    second = options["address"] + 1 if options["second"] is None else options["second"]
    inputs: dict[str, Mcp3424Input] = {}
    channels = []
    for name, chosen, channel_where in channel_tables(
        options["channels"], CHANNEL_OPTIONS, OPTIONS, where, "battery = {input = 1}"
    ):
        if chosen["input"] is None:
            raise SettingsError(
                f"{channel_where}: input is missing: the number of an input, 1 to 8, as printed on the board"
            )
        chip, index = divmod(chosen["input"] - 1, 4)
        if chip and second in (options["address"], _LAST + 1):
            raise SettingsError(
                f"{channel_where}: input {chosen['input']} is on the second chip: set `second` to its address"
            )
        convert = _conversion(chosen, options["divider"])
        inputs[name] = Mcp3424Input((options["address"], second)[chip], index, chosen["bits"], chosen["pga"], convert)
        top = 1 << chosen["bits"] - 1
        channels.append(Channel(name, chosen["unit"], limits={"rail": sorted((convert(-top), convert(top - 1)))}))
    addresses = sorted({entry.address for entry in inputs.values()})
    return Mcp3424Source(lambda: open_bus(_library(), options["bus"], addresses, options["root"]), inputs, channels)


def _conversion(chosen: Mapping[str, Any], divider: float) -> Callable[[int], Number]:
    # 2^(bits-1) counts are the reference voltage.
    volts = VREF_V / (1 << chosen["bits"] - 1) / chosen["pga"] * divider
    return lambda code: calibrated(code * volts, chosen)


def _library() -> Any:
    """Return the smbus2 module. A missing module is only a SensorError, so that the other sources continue."""
    try:
        import smbus2
    except ImportError:
        raise SensorError("the Python module smbus2 is missing: sudo apt install python3-smbus2") from None
    return smbus2


def scan(root: str) -> Iterator[FoundDevice]:
    """Yield all chips on buses that this user can open, except those that have a kernel driver.

    The scan only reads. It does not write, because another kind of chip, such as a clock, can have the same address.

    Args:
        root: Folder that contains dev and sys.
    """
    try:
        library = _library()
        names = sorted(os.listdir(os.path.join(root, "dev")))
    except OSError:  # includes SensorError
        return
    for bus in (int(name.removeprefix("i2c-")) for name in names if re.fullmatch(r"i2c-[0-9]+", name)):
        for address in range(_FIRST, _LAST + 1):
            if os.path.exists(os.path.join(root, f"sys/bus/i2c/devices/{bus}-{address:04x}")):
                continue
            if _is_mcp3424(library, bus, address):
                channels = {f"adc_{number}": {"input": number} for number in range(1, 5)}
                location = {"bus": bus, "address": address} | ({} if root == "/" else {"root": root})
                about = f"I2C bus {bus}, {address:#04x}: an MCP3424"
                yield FoundDevice(about, {"kind": "mcp3424", **location, "channels": channels})


def _is_mcp3424(library: Any, bus: int, address: int) -> bool:
    """Return True if the chip answers like an MCP3424.

    An MCP3424 sends the result, which is three bytes for 18 bits and otherwise two. Then it repeats its configuration.
    """
    try:
        opened = _SmBus(library, bus)
        try:
            data = opened.read(address, 6)
        finally:
            opened.close()
    except OSError:
        return False
    return len(set(data[3:])) == 1 and (data[3] >> 2 & 3 == 3 or data[2] == data[3])
