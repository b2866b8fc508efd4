"""Information about a file of readings that the user gives, because the file does not contain it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from pigeonpost.core.errors import PigeonpostError
from pigeonpost.importing.cells import RowError
from pigeonpost.importing.zones import Zone

_NONE: Mapping[str, float] = MappingProxyType({})
_NO_UNITS: Mapping[str, str] = MappingProxyType({})


class BadOption(PigeonpostError, RowError):
    """An option does not fit the file."""


class ImportOptions(NamedTuple):
    """Options of an import. Those by sensor have the key "" for all sensors that are not named.

    Attributes:
        columns: Names of the columns of a file without a head line; "-" for a column that is left out.
        time_format: Format of the times, as for `datetime.strptime`, or "excel", or an empty string.
        dates: Order of the numbers in a date: "dmy", "mdy", "ymd", or an empty string to find out.
        zone: Time zone of times without an offset.
        skip_bad: True to leave out invalid rows.
        scales: Factors by sensor.
        offsets: Numbers that are added after the factor, by sensor.
        units: Units by sensor.
    """

    columns: tuple[str, ...] = ()
    time_format: str = ""
    dates: str = ""
    zone: Zone = Zone()
    skip_bad: bool = False
    scales: Mapping[str, float] = _NONE
    offsets: Mapping[str, float] = _NONE
    units: Mapping[str, str] = _NO_UNITS


NO_OPTIONS = ImportOptions()
