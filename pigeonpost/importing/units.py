"""Units in the headings of columns, and conversion between units."""

from __future__ import annotations

import re
from typing import NamedTuple

from pigeonpost.importing.cells import sensor_name
from pigeonpost.importing.options import BadOption, ImportOptions
from protocol import UNIT, Number


class Conversion(NamedTuple):
    """Conversion of the values of a sensor.

    Attributes:
        unit: Unit of the converted values.
        factor: Factor.
        offset: Number that is added after the factor.
        text: Description such as "°F to °C", or an empty string if nothing is converted.
    """

    unit: str
    factor: float = 1.0
    offset: float = 0.0
    text: str = ""

    def apply(self, value: Number | None) -> Number | None:
        """Return the converted `value`, rounded to 12 significant digits, or None if there is no value."""
        if value is None or not self.text:
            return value
        return float(f"{value * self.factor + self.offset:.12g}")


def heading_unit(heading: str) -> tuple[str, str]:
    """Return the sensor name and the unit in a column `heading`.

    `Temp (°C)` is ("temp", "°C"), `humidity %` is ("humidity", "%"), and `temperature_C` is ("temperature_c", "°C"):
    a unit in letters at the end stays in the name, so that a name that is a sensor name already does not change.
    """
    heading = heading.strip()[:200]
    name, unit = sensor_name(heading)
    if unit and ":" not in unit:
        return name, known_unit(unit, name)
    if unit:  # a description, such as the serial number of the sensor
        heading = re.split(r"[(\[]", heading)[0].strip(" ,")
        name = sensor_name(heading)[0]
    if found := _SYMBOL(heading):
        return sensor_name(found[1])[0], known_unit(found[2], name)
    if found := _WORD(name):
        word, base = found[2], found[1]
        if word in _WORDS and (len(word) > 1 or _IS_TEMPERATURE(base)):
            return name, _WORDS[word]
    return name, ""


def known_unit(text: str, name: str = "temperature") -> str:
    """Return the usual spelling of a unit: "°C" for `degC` or `Celsius`. Other units are returned as they are.

    Args:
        text: Text of the unit.
        name: Name of the sensor. `C` and `F` are units of temperature only if it is that of a temperature.

    Returns:
        The unit, or an empty string if the text is not a valid unit.
    """
    plain = " ".join(text.split())
    if plain in ("C", "F") and not _IS_TEMPERATURE(name):
        return plain
    found = _SPELLINGS.get(plain.lower(), plain)
    return found if UNIT(found) else ""


def conversion(sensor: str, unit: str, options: ImportOptions) -> Conversion:
    """Return the conversion of the values of a sensor.

    A factor or an offset of the user is applied, and the user's unit is then only its name. Without them, values are
    converted from the unit in the file to the user's unit.

    Args:
        sensor: Name of the sensor.
        unit: Unit in the file, or an empty string.
        options: The options of the user.

    Raises:
        BadOption: The unit cannot be converted to the user's unit.
    """
    factor = options.scales.get(sensor, options.scales.get("", 1.0))
    offset = options.offsets.get(sensor, options.offsets.get("", 0.0))
    wanted = options.units.get(sensor, options.units.get("", ""))
    if factor != 1.0 or offset != 0.0:
        text = f"times {factor:g}" if factor != 1.0 else ""
        text += f"{' plus' if text else 'plus'} {offset:g}" if offset else ""
        return Conversion(wanted or unit, factor, offset, text)
    source, target = known_unit(unit), known_unit(wanted)
    if not wanted or not unit or source == target:
        return Conversion(wanted or unit)
    for table in _TABLES:
        if source in table and target in table:
            (scale, zero), (to_scale, to_zero) = table[source], table[target]
            return Conversion(wanted, scale / to_scale, (zero - to_zero) / to_scale, f"{source} to {target}")
    if "" in options.units and sensor not in options.units:
        return Conversion(unit)  # one unit for all sensors: those of other quantities keep theirs
    raise BadOption(f"--unit: {sensor} is in {source}, which cannot be converted to {target}; add --scale and --offset")


def conversion_to_first(sensor: str, unit: str, first: str, options: ImportOptions) -> Conversion:
    """Return the conversion of values in a `unit` that may differ from the first one of their sensor.

    The converted values have the unit that values in the first one have after their conversion, if that is possible.
    A factor or an offset of the user is applied as in `conversion`.

    Args:
        sensor: Name of the sensor.
        unit: Unit of the values, or an empty string.
        first: First unit of the sensor in the file, or an empty string.
        options: The options of the user.

    Raises:
        BadOption: A unit cannot be converted to the user's unit.
    """
    found = conversion(sensor, unit, options)
    if unit == first or found.text:
        return found
    try:
        return conversion(sensor, unit, ImportOptions(units={sensor: conversion(sensor, first, options).unit}))
    except BadOption:  # a unit of another quantity
        return found


_SYMBOL = re.compile(r"(.*?\w.*?)(?: in)?[ ,_:/-]*(°[CFcf]?|%(?: ?[Rr][Hh])?|[℃℉‰])").fullmatch
_WORD = re.compile(r"(.+)_([a-z]+)").fullmatch
_IS_TEMPERATURE = re.compile(
    r".*(?:temp|dew|chill|heat|therm|cpu|celsius|fahrenheit|aussen|innen|pit|probe).*", re.I
).fullmatch
_SPELLINGS = {
    "c": "°C", "°c": "°C", "℃": "°C", "degc": "°C", "deg c": "°C", "celsius": "°C", "celcius": "°C", "grad": "°C",
    "° c": "°C",
    "degrees celsius": "°C", "degree_c": "°C", "degree_celsius": "°C",
    "f": "°F", "°f": "°F", "℉": "°F", "degf": "°F", "deg f": "°F", "fahrenheit": "°F", "° f": "°F",
    "degrees fahrenheit": "°F",
    "percent": "%", "pct": "%", "%rh": "%", "% rh": "%", "rh%": "%", "rh": "%", "percent relative humidity": "%",
    "hpa": "hPa", "kpa": "kPa", "pa": "Pa", "lux": "lx", "volt": "V", "volts": "V", "inhg": "inHg", "kelvin": "K",
}  # fmt: skip
_WORDS = {
    "c": "°C", "f": "°F", "k": "K", "celsius": "°C", "fahrenheit": "°F", "degc": "°C", "degf": "°F", "percent": "%",
    "pct": "%",
    "hpa": "hPa", "kpa": "kPa", "mbar": "mbar", "lux": "lx", "volt": "V", "volts": "V", "ppm": "ppm", "ppb": "ppb",
    "kwh": "kWh",
    "wh": "Wh", "mv": "mV", "ma": "mA", "kmh": "km/h", "mph": "mph", "inhg": "inHg", "mm": "mm", "dbm": "dBm",
    "watt": "W",
    "watts": "W",
}  # fmt: skip
_TABLES: tuple[dict[str, tuple[float, float]], ...] = (  # unit: factor and zero in the first unit of its table
    {"K": (1, 0), "°C": (1, 273.15), "°F": (5 / 9, 459.67 * 5 / 9)},
    {"Pa": (1, 0), "hPa": (100, 0), "mbar": (100, 0), "kPa": (1000, 0), "bar": (1e5, 0), "inHg": (3386.389, 0),
     "mmHg": (133.322387415, 0), "psi": (6894.757293168, 0)},
    {"m/s": (1, 0), "km/h": (1 / 3.6, 0), "mph": (0.44704, 0), "kn": (1852 / 3600, 0), "kt": (1852 / 3600, 0),
     "ft/s": (0.3048, 0)},
    {"m": (1, 0), "km": (1000, 0), "cm": (0.01, 0), "mm": (0.001, 0), "in": (0.0254, 0), "inch": (0.0254, 0),
     "ft": (0.3048, 0), "foot": (0.3048, 0), "mi": (1609.344, 0)},
    {"mm/h": (1, 0), "cm/h": (10, 0), "in/h": (25.4, 0), "inch/h": (25.4, 0)},
    {"V": (1, 0), "mV": (0.001, 0), "kV": (1000, 0)},
    {"A": (1, 0), "mA": (0.001, 0)},
    {"W": (1, 0), "kW": (1000, 0), "mW": (0.001, 0)},
    {"Wh": (1, 0), "kWh": (1000, 0), "MWh": (1e6, 0), "J": (1 / 3600, 0), "kJ": (1 / 3.6, 0), "MJ": (1e3 / 3.6, 0)},
    {"l": (1, 0), "L": (1, 0), "m³": (1000, 0), "m3": (1000, 0)},
    {"s": (1, 0), "min": (60, 0), "h": (3600, 0), "ms": (0.001, 0)},
    {"%": (1, 0), "‰": (0.1, 0), "ppm": (1e-4, 0), "ppb": (1e-7, 0)},
)  # fmt: skip


def is_unit(text: str) -> bool:
    """Return True if a `text` is a usual unit."""
    plain = " ".join(text[:40].split())
    return bool(plain) and (known_unit(plain) in _ALL or plain[0] in "°%" or plain.lower() in _SPELLINGS)


_ALL = {unit for table in _TABLES for unit in table} | {"lx", "W/m²", "W/m2", "dBm", "°"}
