"""Conversion of values, and of differences of values, to other units of measurement.

Factors are exact by definition, or are those of NIST SP 811, appendix B. Values in kelvin are not converted, because
the kelvin is also the unit of temperature differences, and a difference of 5 K is not -268 °C.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Conversion(NamedTuple):
    """Conversion of measured values to a displayed unit: `value * factor + offset`.

    Attributes:
        unit: Displayed unit.
        factor: Factor.
        offset: Offset, in the displayed unit.
    """

    unit: str
    factor: float = 1.0
    offset: float = 0.0

    @property
    def changes(self) -> bool:
        """True if the displayed value can differ from the measured one."""
        return self.factor != 1 or self.offset != 0

    def value(self, measured: float) -> float:
        """Return the value `measured`, converted to the displayed unit."""
        return measured * self.factor + self.offset if self.changes else measured

    def difference(self, measured: float) -> float:
        """Return a `measured` difference (a change, a range, a standard deviation) in the displayed unit."""
        return measured * self.factor if self.changes else measured


AS_MEASURED = Conversion("")

# One mapping per quantity: unit -> factor and offset that convert to its base unit (`value * factor + offset`).
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
COMMON = ("°C", "hPa", "mm", "m", "m/s")  # usual units of sensors, for each quantity


def shown_units(measured: str) -> tuple[str, ...]:
    """Return the units in which values measured in `measured` can be displayed, `measured` first.

    The result is empty if there is no conversion from this unit.
    """
    if measured in _NOT_CONVERTED:
        return ()
    return next(((measured, *(unit for unit in units if unit != measured))
                 for units in _QUANTITIES if measured in units), ())  # fmt: skip


def conversion(measured: str, shown: Mapping[str, str]) -> Conversion:
    """Return the conversion of values for display.

    Args:
        measured: Unit of the sensor.
        shown: The user's choice: displayed unit by measured unit. A unit that does not fit is ignored.
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
    """Return a number without rounding errors in its last digits: 1.8 instead of 1.7999999999999998."""
    return float(f"{value:.15g}")


def measured_units(units: Iterable[str]) -> list[str]:
    """Return the usual units of sensors, followed by those of `units` that can be displayed in another unit."""
    return list(dict.fromkeys([*COMMON, *sorted(unit for unit in units if shown_units(unit))]))
