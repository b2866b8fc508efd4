"""Possible values of a quantity, by the unit and the name of its channel: a value outside is not stored as a reading.

    temperature          °C, °F               not below absolute zero, -273.15 °C
    temperature          K, C, F              the same, if the name of the channel is that of a temperature
    relative humidity    % RH                 0 to 100 %
    relative humidity    %                    the same, if the name of the channel is that of a humidity of air

The kelvin is also the unit of temperature differences, which can be negative; C and F are also coulomb and farad; and a
percentage can be a soil moisture or a change. For these units the name decides. No other quantity is checked, because
its unit does not limit it: a pressure in hPa can be a difference, a power can be fed back.

A driver that knows its chip sets narrower limits: see sensors.chips. The limits that users set are quality checks,
which never change a value: see server.quality.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from pigeonpost.core.errors import SensorError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from pigeonpost.sensors.contract import Channel

ABSOLUTE_ZERO_C = -273.15
# Lowest and highest possible temperature, in °C, of chips that several kinds of sensors read.
DS18B20_C = (-55.0, 125.0)
THERMOCOUPLE_C = (ABSOLUTE_ZERO_C, 1820.0)
PROCESSOR_C = (-40.0, 150.0)
LONGEST_RAW = 80  # characters of a raw text in an error
# The outbox shortens the error texts of a sample in which several channels fail, to 20 characters if necessary. So the
# most important part of a text is its beginning.
_SHORT_RAW = 12
_TOLERANCE = 1e-9  # for rounding errors of the conversion to the unit


class ImpossibleValue(SensorError):
    """A value that its chip or its quantity cannot have."""


class Range(NamedTuple):
    """Possible values of a quantity, both ends included.

    Attributes:
        low: Lowest possible value.
        high: Highest possible value.
        about: Quantity or chip, for error messages: `<about>: -40 to 85 °C`.
        calibration: Gain and offset with which the value was calculated, so that an error without a raw text contains
            the value before calibration.
    """

    low: float
    high: float
    about: str
    calibration: tuple[float, float] = (1.0, 0.0)

    def check(self, value: float, unit: str, raw: str = "") -> None:
        """Check that `value` is possible.

        Args:
            value: The value.
            unit: Unit of the value and of this range, for the error message.
            raw: Raw text from which the value was read, for the error message; it can be long.

        Raises:
            ImpossibleValue: The value is out of range or not a number. The message contains the raw text.
        """
        if self.low - _TOLERANCE <= value <= self.high + _TOLERANCE:
            return
        unit = f" {unit}" if unit else ""
        if math.isinf(self.high):
            possible = f"at least {self.low:g}{unit}"
        else:
            possible = f"{self.low:g} to {self.high:g}{unit}"
        shown = f"{value:.10g}{unit}"
        gain, offset = self.calibration
        if not raw and gain and (gain, offset) != (1, 0):
            raw = f"{(value - offset) / gain:.8g}"
        if 0 < len(raw) <= _SHORT_RAW:
            what = f"impossible {raw!r}: {shown}"
        else:
            what = f"impossible: {shown}{shown_raw(raw)}"
        raise ImpossibleValue(f"{what} ({self.about}: {possible})")


def shown_raw(raw: str) -> str:
    """Return `raw` as part of an error message, cut to LONGEST_RAW characters; empty if it is empty."""
    return f"; read {raw[:LONGEST_RAW]!r}" + "..." * (len(raw) > LONGEST_RAW) if raw else ""


HUMIDITY = Range(0.0, 100.0, "relative humidity")
_ABSOLUTE_ZERO = "absolute zero"
_FLOORS = {
    unit: Range(floor, math.inf, _ABSOLUTE_ZERO)
    for floor, units in (
        (ABSOLUTE_ZERO_C, ("°c", "ºc", "˚c", "℃", "degc", "deg c", "celsius", "degrees celsius", "degree celsius")),
        (-459.67, ("°f", "ºf", "˚f", "℉", "degf", "deg f", "fahrenheit", "degrees fahrenheit")),
        (ABSOLUTE_ZERO_C * 1000, ("m°c", "mºc", "m℃", "mdegc")),
    )
    for unit in units
}
_AMBIGUOUS = {
    "c": _FLOORS["°c"], "f": _FLOORS["°f"], **dict.fromkeys(("k", "°k", "kelvin"), Range(0.0, math.inf, _ABSOLUTE_ZERO))
}  # fmt: skip
_PERCENT_RH = re.compile(r"%\s*r\.?\s*[hf]\.?|r\.?h\.?\s*%?|%\s*relative humidity").fullmatch
# Not `attempts`, `tempo` or `template`.
_TEMPERATURE_NAME = re.compile(
    r"temp(?!ts?(?![a-z])|o(?![a-z])|late|or)|dew_?point|freezer|fridge|(?<![a-z])[cg]pu(?![a-z])"
).search
_HUMIDITY_NAME = re.compile(
    r"humid(?!if)|luftfeucht|humedad|umidit|umidade|vochtigheid|luftfukt|fuktighet|luftfugt|fugtighed|wilgotno|vlhkost"
    r"|kosteus|hygrom|(?<![a-z])feucht|(?<![a-z])(rh|hum|relhum)(?![a-z])"
).search
# With one of these words the channel is a difference or a setting, or is the moisture of something other than air.
_OTHER_NAME = re.compile(
    r"delta|diff|spread|spreiz|change|trend|gradient|deviation|offset|correction|hysteres|setback|lift|shift|adjust|calib"
    r"|soil|boden|erd|wood|holz|moist|substrat|compost|kompost|concrete|beton|screed|estrich|suelo|terreno|gleb|jord"
    r"|(?<![a-z])(dt|rate|rise|drop|error|drift|range|span|wall|wand|grain|hay|plant|pot|abs|absolute|specific|sol|solo"
    r"|suolo|terra|tierra|pudy|bodem|grond)(?![a-z])"
).search
# A percentage whose name ends with one of these words is not the humidity, but a property of the device that measures
# or changes it.
_OTHER_PERCENTAGE = re.compile(
    r"(?<![a-z])(batter[a-z]*|bat|akku|accu|signal|quality|linkquality|lqi|rssi|valve|power|speed|fan|pump|duty|pwm)"
    r"[_ 0-9]*$"
).search


@functools.lru_cache(512)
def of_channel(name: str, unit: str) -> Range | None:
    """Return the possible values of a channel, or None if its quantity is not recognised.

    Args:
        name: Name of the channel.
        unit: Unit of the channel.
    """
    plain = " ".join(unit.casefold().split())
    if plain in _FLOORS:
        return _FLOORS[plain]
    name = name.casefold()
    if _OTHER_NAME(name):
        return None
    if _PERCENT_RH(plain):
        return HUMIDITY
    if plain in ("%", "percent"):
        return HUMIDITY if _HUMIDITY_NAME(name) and not _OTHER_PERCENTAGE(name) else None
    return _AMBIGUOUS[plain] if plain in _AMBIGUOUS and _TEMPERATURE_NAME(name) else None


def checked(readings: Mapping[str, Any], ranges: Mapping[str, tuple[Range, str]]) -> Mapping[str, Any]:
    """Return `readings` with an ImpossibleValue instead of each impossible value.

    Args:
        readings: Readings by channel name: numbers, or anything else, which is returned unchanged.
        ranges: Possible values and unit by channel name; channels of other quantities are missing.
    """
    impossible = {}
    for name, (possible, unit) in ranges.items():
        value = readings.get(name)
        if type(value) is float or type(value) is int:
            try:
                possible.check(value, unit)
            except ImpossibleValue as error:
                impossible[name] = error.with_traceback(None)
    return {**readings, **impossible} if impossible else readings


def ranges_of(
    channels: Iterable[Channel], calibrations: Mapping[str, tuple[float, float]] = MappingProxyType({})
) -> dict[str, tuple[Range, str]]:
    """Return the possible values and the unit of each of `channels` whose quantity is recognised, by channel name.

    Args:
        channels: The channels.
        calibrations: Gain and offset of the calibrated channels, by channel name.
    """
    found = {}
    for name, unit, limits in ((channel.name, channel.unit, channel.possible) for channel in channels):
        possible = of_channel(name, unit) if limits is None else Range(*limits, "possible values")
        if possible is not None:
            if name in calibrations:
                possible = possible._replace(calibration=calibrations[name])
            found[name] = possible, unit
    return found
