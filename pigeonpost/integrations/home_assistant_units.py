"""Units, device classes and state classes of sensors in Home Assistant.

Home Assistant refuses an entity whose device class does not accept its unit. So a device class is only used if the unit
and the name of the sensor leave no doubt; without one, Home Assistant shows the value with any unit.
Source: homeassistant 2026.2, components/sensor/const.py; the tests compare the tables with
tests/data/home_assistant.json.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

MEASUREMENT, ANGLE, TOTAL = "measurement", "measurement_angle", "total_increasing"
_MICRO, _MU = "\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}"  # Home Assistant uses the letter

# Spellings of Home Assistant for units that are also written in other ways.
_SPELLINGS = {
    "RPM": "rpm", "C": "°C", "F": "°F", "degC": "°C", "degF": "°F", "lux": "lx", "l": "L", "ml": "mL", "m3": "m³",
    "l/h": "L/h", "l/min": "L/min", "l/s": "L/s", "m3/h": "m³/h", "kph": "km/h", "knots": "kn", "kt": "kn",
    "W/m2": "W/m²", "g/m3": "g/m³", "mg/m3": "mg/m³", "ug/m3": "μg/m³", "uS/cm": "μS/cm", "uV": "μV", "us": "μs",
    "sec": "s", "kVAr": "kvar", "mVAr": "mvar", "VAr": "var", "kVArh": "kvarh", "VArh": "varh", "KB": "kB", "pH": "",
}  # fmt: skip
_ENERGY = ("GJ", "GWh", "Gcal", "J", "MJ", "MWh", "Mcal", "TWh", "Wh", "cal", "kJ", "kWh", "kcal", "mWh")
_VOLUME = ("CCF", "L", "MCF", "ft³", "gal", "m³")
_SPEED = ("ft/s", "in/s", "km/h", "kn", "m/min", "m/s", "mm/s", "mph")
_RAIN_RATE = ("in/d", "in/h", "mm/d", "mm/h")

# Device classes that follow from the unit alone.
_BY_UNIT = {
    unit: device_class
    for device_class, units in {
        "apparent_power": ("VA", "kVA", "mVA"),
        "area": ("ac", "cm²", "ft²", "ha", "in²", "km²", "mi²", "mm²", "m²", "yd²"),
        "conductivity": ("S/cm", "mS/cm", "μS/cm"),
        "current": ("A", "mA"),
        "data_rate": ("B/s", "GB/s", "Gbit/s", "GiB/s", "KiB/s", "MB/s", "Mbit/s", "MiB/s", "bit/s", "kB/s", "kbit/s"),
        "data_size": ("B", "GB", "GiB", "Gbit", "KiB", "MB", "Mbit", "MiB", "TB", "TiB", "bit", "kB", "kbit"),
        "distance": ("cm", "ft", "in", "km", "m", "mi", "mm", "nmi", "yd"),
        "duration": ("d", "h", "min", "ms", "s", "μs"),
        "frequency": ("GHz", "Hz", "MHz", "kHz"),
        "illuminance": ("lx",),
        "irradiance": ("W/m²",),
        "power": ("GW", "MW", "TW", "W", "kW", "mW"),
        "pressure": ("Pa", "bar", "cbar", "hPa", "inHg", "inH₂O", "kPa", "mPa", "mbar", "mmHg", "psi"),
        "reactive_power": ("kvar", "mvar", "var"),
        "signal_strength": ("dBm",),
        "sound_pressure": ("dBA",),
        "speed": (*_SPEED, *_RAIN_RATE),
        "temperature": ("°C", "°F"),  # not K, which is also the unit of differences
        "voltage": ("MV", "V", "kV", "mV", "μV"),
        "volume_flow_rate": ("L/h", "L/min", "L/s", "ft³/min", "gal/h", "gal/min", "m³/h", "m³/min", "m³/s", "mL/s"),
        "volume_storage": (*_VOLUME, "mL"),
        "weight": ("g", "kg", "lb", "mg", "oz", "st", "μg"),
    }.items()
    for unit in units
}  # fmt: skip

# Device classes that follow from the unit and a word in the name of the sensor; the first one that fits is used.
_BY_NAME: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("moisture", r"moist|soil|wet", ("%",)),
    ("battery", r"battery", ("%",)),
    ("humidity", r"humid|^rh$|_rh$", ("%",)),
    ("carbon_dioxide", r"co2|carbon_dioxide", ("ppm",)),
    ("carbon_monoxide", r"(^|_)co(_|$)|carbon_monoxide", ("ppm",)),
    ("volatile_organic_compounds_parts", r"voc", ("ppb", "ppm")),
    ("pm1", r"pm1(_0)?(_|$)", ("μg/m³",)),
    ("pm25", r"pm2_?5", ("μg/m³",)),
    ("pm4", r"pm4(_0)?(_|$)", ("μg/m³",)),
    ("pm10", r"pm10", ("μg/m³",)),
    ("absolute_humidity", r"humid", ("g/m³", "mg/m³")),
    ("sound_pressure", r"sound|noise", ("dB",)),
    ("signal_strength", r"rssi|signal|snr", ("dB",)),
    ("precipitation", r"rain|precipitation|snow", ("cm", "in", "mm")),
    ("precipitation_intensity", r"rain|precipitation|snow", _RAIN_RATE),
    ("wind_speed", r"wind|gust", _SPEED),
    ("wind_direction", r"wind.*dir|dir.*wind", ("°",)),
    ("ph", r"(^|_)ph(_|$)", ("",)),
    ("aqi", r"(^|_)aqi(_|$)", ("",)),
)  # fmt: skip
# Device classes of totals that Home Assistant accepts; others of a total are left out.
_OF_TOTALS = ("area", "data_size", "distance", "duration", "energy", "precipitation", "reactive_energy", "weight")


class EntityUnit(NamedTuple):
    """Unit and classes of a sensor in Home Assistant.

    Attributes:
        unit: Unit in its spelling; empty if there is none.
        device_class: Device class; empty if the unit and the name do not determine one.
        state_class: MEASUREMENT, ANGLE or TOTAL.
    """

    unit: str
    device_class: str
    state_class: str


@functools.lru_cache(1024)
def entity_unit(sensor: str, unit: str, is_total: bool = False) -> EntityUnit:
    """Return the description of a sensor.

    Args:
        sensor: Name of the sensor.
        unit: Its unit.
        is_total: True for a total that never decreases, such as that of a pulse counter.
    """
    unit = unit.strip().replace(_MICRO, _MU)
    unit = _SPELLINGS.get(unit, unit)
    if unit in _ENERGY:  # the Energy dashboard requires a total
        return EntityUnit(unit, "energy", TOTAL)
    if unit in ("kvarh", "varh"):
        return EntityUnit(unit, "reactive_energy", TOTAL)
    if is_total and unit in _VOLUME:
        return EntityUnit(unit, _kind_of_volume(sensor, unit), TOTAL)
    found = (name for name, words, units in _BY_NAME if unit in units and re.search(words, sensor))
    device_class = next(found, _BY_UNIT.get(unit, ""))
    if is_total:
        return EntityUnit(unit, device_class if device_class in _OF_TOTALS else "", TOTAL)
    return EntityUnit(unit, device_class, ANGLE if device_class == "wind_direction" else MEASUREMENT)


def _kind_of_volume(sensor: str, unit: str) -> str:
    if re.search("gas", sensor) and unit != "gal":
        return "gas"
    return "water" if re.search("water", sensor) else "volume"
