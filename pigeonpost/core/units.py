"""Units of measurement in which values can be shown: conversion of values and of differences.

Factors are exact by definition or those of NIST SP 811, appendix B.
A sensor in kelvin is not converted: the kelvin is also the unit of temperature differences, and a difference of 5 K is
not -268 °C.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Conversion(NamedTuple):
    """The way from a measured value to the one shown: `value * factor + offset`, in `unit`."""

    unit: str
    factor: float = 1.0
    offset: float = 0.0

    @property
    def changes(self) -> bool:
        """Whether anything is shown differently than it was measured."""
        return self.factor != 1 or self.offset != 0

    def value(self, measured: float) -> float:
        """Return a value in the unit shown."""
        return measured * self.factor + self.offset if self.changes else measured

    def difference(self, measured: float) -> float:
        """Return a difference of two values in the unit shown: a change, a range, a standard deviation."""
        return measured * self.factor if self.changes else measured


AS_MEASURED = Conversion("")

# Of each quantity the units, each with factor and offset to the same one: `value * factor + offset`.
_INCH_M = 0.0254
_QUANTITIES: tuple[Mapping[str, tuple[float, float]], ...] = (
    {"°C": (1, 0), "°F": (5 / 9, -160 / 9), "K": (1, -273.15)},
    {"hPa": (1, 0), "mbar": (1, 0), "Pa": (0.01, 0), "kPa": (10, 0), "bar": (1000, 0), "mmHg": (1.33322387415, 0),
     "inHg": (33.8638864, 0), "psi": (68.9475729, 0)},
    {"m": (1, 0), "mm": (0.001, 0), "cm": (0.01, 0), "km": (1000, 0), "in": (_INCH_M, 0), "ft": (12 * _INCH_M, 0),
     "mi": (63_360 * _INCH_M, 0)},
    {"m/s": (1, 0), "km/h": (1 / 3.6, 0), "mph": (63_360 * _INCH_M / 3600, 0), "kn": (1852 / 3600, 0)},
)  # fmt: skip
_NOT_CONVERTED = ("K",)
COMMON = ("°C", "hPa", "mm", "m", "m/s")  # units that sensors usually have, of each quantity


def shown_units(measured: str) -> tuple[str, ...]:
    """Return the units in which values measured in `measured` can be shown, itself first; none: in that unit only."""
    if measured in _NOT_CONVERTED:
        return ()
    return next(((measured, *(unit for unit in units if unit != measured))
                 for units in _QUANTITIES if measured in units), ())  # fmt: skip


def conversion(measured: str, shown: Mapping[str, str]) -> Conversion:
    """Return how values are shown.

    measured  the unit of the sensor
    shown     the user's choice: the unit shown, by the unit measured. One that does not fit is not followed
    """
    return _conversion(measured, shown.get(measured, measured))


@functools.lru_cache(256)
def _conversion(measured: str, wanted: str) -> Conversion:
    if wanted == measured or wanted not in shown_units(measured):
        return Conversion(measured)
    units = next(units for units in _QUANTITIES if measured in units)
    (factor, offset), (other_factor, other_offset) = units[measured], units[wanted]
    return Conversion(wanted, _rounded(factor / other_factor), _rounded((offset - other_offset) / other_factor))


def _rounded(value: float) -> float:
    """Return a number without the last digits, which are rounding errors: 1.8, not 1.7999999999999998."""
    return float(f"{value:.15g}")


def measured_units(units: Iterable[str]) -> list[str]:
    """Return those of `units` that can be shown in another unit, each once, and the common ones."""
    return list(dict.fromkeys([*COMMON, *sorted(unit for unit in units if shown_units(unit))]))
