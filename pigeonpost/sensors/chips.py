"""Chips that Linux drivers read: the values that each chip can have, and drivers whose units differ from the ABI.

A chip is recognised by any of its names: that of the device, of its driver, or of its entry in the device tree. The
device of a DHT22, for example, is called `dht11@4`, `humidity_sensor` or `4.humidity-sensor`.

Ranges are those of the data sheets. Chips whose conversion of the relative humidity exceeds 0 to 100 % (SHT2x, SHT4x,
HTU21, Si70xx: -6 to 119 %) report slightly more than 100 % in fog, within their accuracy of 5 %. Such values are
readings, and they are not changed.

Sources: data sheets of Aosong DHT22; Bosch BST-BME280-DS001, BST-BME680-DS001; Sensirion SHT3x-DIS, SHT4x, SHT2x;
Silicon Labs Si7020-A20; TE HTU21D; ROHM BH1750FVI; Texas Instruments SBOS448 (INA219), SBOS547 (INA226); Maxim 19-7487
(DS18B20). Linux: drivers/iio/chemical/bme680_core.c, drivers/iio/adc/mcp3422.c, drivers/hwmon/ina2xx.c.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from pigeonpost.core.light_typing import NamedTuple
from pigeonpost.sensors.ranges import (
    ABSOLUTE_ZERO_C,
    DS18B20_C,
    HUMIDITY,
    PROCESSOR_C,
    THERMOCOUPLE_C,
    Range,
    of_channel,
)

_AIR_PRESSURE_KPA = (1.0, 120.0)  # from 30 km above the sea to a deep mine
OVERSHOOT_RH = (-5.0, 105.0)  # %


class Chip(NamedTuple):
    """A kind of chip, or several kinds with the same ranges.

    Attributes:
        about: Name for error messages.
        names: Regular expression for the complete name of a device, a driver or a compatible device.
        ranges: Lowest and highest value by quantity or channel, in the units of sensors.kernel.
    """

    about: str
    names: str
    ranges: Mapping[str, tuple[float, float]]


_CHIPS = (
    Chip("DHT11 or DHT22", r"(.*[:.])?(dht(11|22)|am230[12]|rht0[23]|humidity[-_]sensor)([@.:_-].*)?",
         {"temp": (-40, 80), "humidity": (0, 100)}),
    Chip("BME280, BME680 or BMP280", r"bm[ep](28|68|69)[0-9]",
         {"temp": (-40, 85), "humidity": (0, 100), "pressure": _AIR_PRESSURE_KPA}),
    Chip("barometer", r"bmp(085|18[0-9]|38[0-9]|39[0-9]|58[0-9])|ms56[0-9]+(-.*)?|ms8607-temppressure|lps[0-9].*"
         r"|dps[0-9]+|hp03|hp206c|mpl115|mpl3115|t5403|zpa2326.*",
         {"temp": (-55, 125), "pressure": _AIR_PRESSURE_KPA}),
    Chip("SHT3x", r"sht3x|sht30|sht31|sht35|sts3x", {"temp": (-40, 125), "humidity": (0, 100)}),
    Chip("SHT4x", r"sht4x|sht40|sht41|sht45", {"temp": (-40, 125), "humidity": OVERSHOOT_RH}),
    Chip("HTU21, Si70xx, SHT1x or SHT2x", r"htu[23]1d?|si70(05|06|13|20|21)|sht[127][0-9x]|ms8607-humidity|hts221",
         {"temp": (-40, 125), "humidity": OVERSHOOT_RH}),
    Chip("SHTC1 or SHTC3", r"shtc[13]|shtw1", {"temp": (-40, 125), "humidity": (0, 100)}),
    Chip("HDC", r"hdc(100[0-9x]|10[0-9]+|20[0-9]+|30[0-9]+)", {"temp": (-40, 125), "humidity": (0, 100)}),
    Chip("AHT10 or AHT20", r"aht[12][0-9]|dht20", {"temp": (-40, 85), "humidity": (0, 100)}),
    Chip("DS18B20", r"w1_slave_temp", {"temp": DS18B20_C}),
    Chip("BH1750", r"bh17(10|15|21|50|51)", {"illuminance": (0, 121_600)}),
    Chip("INA219", r"ina2(19|20)", {"in0": (-0.3277, 0.3277), "in1": (0, 32.77), "power": (0, math.inf)}),
    Chip("INA226", r"ina2(26|30|31|60)", {"in0": (-0.082, 0.082), "in1": (0, 41), "power": (0, math.inf)}),
    Chip("thermocouple", r"max31855.?|max31856|max6675|mcp9600|mcp9601", {"temp": THERMOCOUPLE_C}),
    Chip("MAX31865", r"max31865", {"temp": (-240, 850)}),  # its ends are reported for a short circuit and a broken wire
    Chip("bridge of Industrial I/O", r"iio_hwmon", {"temp": THERMOCOUPLE_C}),
    Chip("infrared thermometer", r"mlx906(14|15|32)", {"temp": (-70, 382.2)}),
    Chip("thermometer", r"lm7[35].?|tmp1[0-9]+|tmp75.?|ds1621|ds1775|adt74[0-9]+|jc42|mcp980[0-9x]|max30208|stds75"
         r"|pct2075|tmp00[67]", {"temp": (-55, 150)}),
    Chip("processor or board", r"(cpu|soc|gpu|core|k10|k8|zenpower|fam15h|acpi|pch_|nvme|drive|amdgpu|nouveau|radeon"
         r"|iwlwifi|rp1|rpi|it8|nct|w83|x86_pkg|bcm).*", {"temp": PROCESSOR_C}),
)  # fmt: skip
# Possible values of every chip. `humidity` is the relative humidity.
_QUANTITIES: Mapping[str, Range] = {
    "temp": Range(ABSOLUTE_ZERO_C, math.inf, "absolute zero"),
    "humidity": HUMIDITY,
    **{
        kind: Range(0.0, math.inf, about)
        for kind, about in (
            ("illuminance", "illuminance"), ("resistance", "resistance"), ("massconcentration", "concentration"),
            ("fan", "speed"), ("distance", "distance"), ("uvindex", "UV index"),
        )
    },
    "concentration": Range(0.0, 100.0, "concentration"),
}  # fmt: skip
_PROCESSOR = Range(*PROCESSOR_C, "processor or board")
_MONITORING = Range(-64.0, 191.0, "hardware monitoring")  # the widest range of such chips: TMP401, extended mode


@functools.lru_cache(256)
def possible(subsystem: str, names: tuple[str, ...], kind: str, channel: str) -> Range | None:
    """Return the values that a channel of a device can have, in the unit of its kind; None if all numbers are possible.

    Args:
        subsystem: "iio", "hwmon" or "thermal".
        names: All names of the device.
        kind: Kind of the channel, such as "temp" or "humidityrelative".
        channel: Name of the channel, such as "temp1".
    """
    kind = "humidity" if kind == "humidityrelative" else kind
    if subsystem == "thermal":
        return _PROCESSOR
    for chip in _CHIPS:
        limits = chip.ranges.get(channel) or chip.ranges.get(kind)
        if limits is not None and is_any(chip.names, names):
            return Range(*limits, chip.about)
    return _MONITORING if (subsystem, kind) == ("hwmon", "temp") else _QUANTITIES.get(kind)


def is_any(pattern: str, names: Collection[str]) -> bool:
    """Return True if the regular expression `pattern` matches one of `names` completely: `BME280@76` is `bme280`."""
    return any(re.fullmatch(pattern, name.casefold().partition("@")[0]) for name in names)


def is_dht(names: Collection[str]) -> bool:
    """Return True if the device with these `names` is a DHT11, a DHT22 or a chip of the same family."""
    return is_any(_CHIPS[0].names, names)


def abi_factor(names: Collection[str], kind: str, value: float) -> float:
    """Return the factor by which the `value` of an Industrial I/O driver is multiplied to get the unit of the ABI.

    It is 1, except for these drivers:

    - mcp3422 reports volts, and the ABI specifies millivolts.
    - bme680 reports the humidity in percent, and the ABI specifies thousandths of it. Until July 2024 it reported the
      pressure in hPa, and the ABI specifies kPa. The value shows which of the two it is: air with less than 0.1 %
      humidity, or at 300 kPa, does not occur.

    Args:
        names: All names of the device.
        kind: Kind of the channel.
        value: Value that the driver reports.
    """
    if kind == "voltage" and is_any(r"mcp342[1-8]", names):
        return 1000.0
    if is_any(r"bme6[89][0-9]", names):
        if kind == "humidityrelative" and value <= 100:
            return 1000.0
        if kind == "pressure" and 300 <= value <= 1200:
            return 0.1
    return 1.0


_CELSIUS, _FAHRENHEIT = of_channel("", "°C"), of_channel("", "°F")
# Chips and files that paths, topics and commands name. Tasmota, for example, sends {"DS18B20": {"Temperature": -127}}.
_DESCRIBED = tuple(
    (re.compile(rf"(?<![a-z0-9])({names})(?![a-z0-9])").search, limits)
    for names, limits in (
        (r"ds18[bsx]20|ds1822|w1_slave|(10|22|28|42)-[0-9a-f]{12}", {"temp": DS18B20_C}),
        (r"dht(11|22)|am230[12]|rht03", {"temp": (-40.0, 80.0), "humidity": (0.0, 100.0)}),
        (r"bm[ep](280|680|688)", {"temp": (-40.0, 85.0), "humidity": (0.0, 100.0)}),
        (r"sht3[x015]|shtc[13]|hdc(10|20|30)[0-9x]+", {"temp": (-40.0, 125.0), "humidity": (0.0, 100.0)}),
        (r"aht[12][0-9x]|dht20", {"temp": (-40.0, 85.0), "humidity": (0.0, 100.0)}),
        (r"sht[24][x015]|htu21d?|si702[01]", {"temp": (-40.0, 125.0), "humidity": OVERSHOOT_RH}),
        (r"thermal_zone[0-9]*|vcgencmd|cpu|coretemp", {"temp": PROCESSOR_C}),
    )
)
# Temperatures that are calculated, and sensors with other ranges, such as a PT1000 on the board of a BME280.
_NOT_OF_THE_CHIP = re.compile(
    r"dew|frost.?point|taupunkt|heat.?index|humidex|feels|apparent|perceived|wind.?chill|wet.?bulb"
    r"|(?<![a-z])(pt.?1000?|rtd|ntc|analog)(?![a-z0-9])|thermocouple|thermoelement|max318[56]|max6675|(?<![a-z])k.?type"
    r"|collector|kollektor|chimney|stove"
).search
_BOARD = re.compile(r"(?<![a-z0-9])esp(32|8266)(?![a-z0-9])").search
# Places that are hotter than a humidity sensor can be. Its board, `esp-dht22/boiler`, has another sensor for them.
_HOT = re.compile(
    r"(?<![a-z])(boiler|kessel|flow|return|vorlauf|ruecklauf|oven|ofen|kiln|furnace|flue|exhaust|engine|motor|heater"
    r"|buffer|puffer|hot|sauna|water|wasser)(?![a-z])"
).search
_HOT_C = 100.0
# Last words of a path that do not name the quantity: {"humidity": {"value": 48}}
_VALUE = re.compile(r"value|val|state|current|now|last|latest|reading|measurement|result|-?[0-9]+").fullmatch


def described(name: str, unit: str, words: Iterable[str]) -> tuple[float, float] | None:
    """Return the possible values of a channel whose chip or quantity `words` name; None if `name` and `unit` decide.

    Args:
        name: Name of the channel.
        unit: Unit of the channel.
        words: Parts of the path, topic or command from which the value is read. The last one names the quantity.
    """
    parts = [part.casefold() for part in (name, *words)]
    while len(parts) > 1 and _VALUE(parts[-1]):
        parts.pop()
    plain = of_channel(parts[-1], unit) if of_channel(" ".join(parts), unit) else None
    if plain is None:
        return None
    kind = "humidity" if plain == HUMIDITY else "temp"
    found = _range_of_chip(parts, kind)
    if kind == "humidity" or plain == _CELSIUS:
        factor, offset = 1.0, 0.0
    elif plain == _FAHRENHEIT:
        factor, offset = 1.8, 32.0
    else:
        found = None  # kelvin or m°C: no program sends these for one of the chips
    if found is not None:
        return found[0] * factor + offset, found[1] * factor + offset
    return None if of_channel(name, unit) == plain else (plain.low, plain.high)


def _range_of_chip(parts: Sequence[str], kind: str) -> tuple[float, float] | None:
    """Return the range of the chip that the name of the channel, or else the last of the other `parts`, contains."""
    is_hot = False
    for part in (parts[0], *reversed(parts[1:])):
        if kind == "temp" and _NOT_OF_THE_CHIP(part):
            return None
        is_hot = is_hot or (kind == "temp" and _HOT(part) is not None)
        found = next((limits[kind] for search, limits in _DESCRIBED if kind in limits and search(part)), None)
        if found is not None:
            return None if is_hot and found[1] < _HOT_C else found
        if _BOARD(part):
            return None
    return None
