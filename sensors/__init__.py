"""Where readings come from: what every kind of source must do, whatever it reads.

Runs on: node.  Reached from: sampler, which reads; node.py, which makes the sources.
Members: one file a kind, and `kind = "machine"` in the settings is sensors/machine.py; `adc`, the first of them,
  stands at the root. A member has `OPTIONS`, the keys of its table, and `make(table, where)`, which makes its source
  of one.
Threads: a source is read by one thread at a time, its own; `read` may take as long as it must.
Errors: SensorError, with what was wrong and the remedy; for one channel alone it stands in that channel's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from base.config import Option, number, read_options
from base.errors import SensorError, SettingsError
from protocol import SENSOR_NAME, SENSOR_NAME_TAKES, Number


class Channel(NamedTuple):
    """One named value that a source gives: name and unit as they go over the link; `simulated` is told to people."""

    name: str
    unit: str
    simulated: bool = False


Readings = Mapping[str, "Number | SensorError"]


class Source:
    """One thing that is read at once, and gives a value for each of its channels."""

    channels: Sequence[Channel]

    def read(self) -> Readings:
        """Read it now: a finite number for each channel, or the SensorError of that one.

        Raises SensorError when there is nothing to be had at all.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds. Closing twice is fine."""


# What members with a table for each channel share.
CALIBRATION = (
    Option("gain", number(-1e9, 1e9), 1.0, "calibration: the value is multiplied by this,"),
    Option("offset", number(-1e9, 1e9), 0.0, "and then this is added"),
)


def calibrated(value: float, chosen: Mapping[str, Any]) -> float:
    """`value` after the CALIBRATION options of its channel."""
    return round(value * float(chosen["gain"]) + float(chosen["offset"]), 6)


def channel_tables(
    tables: Mapping[str, Any] | None, options: Sequence[Option], where: str, example: str
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Of each channel its name, its options, and what an error about it begins with.

    tables   the `channels` of a [[sensor]]
    example  how one is written, for who has written none
    Raises SettingsError.
    """
    if not tables:
        raise SettingsError(f"{where}: channels is missing, as in channels.{example}")
    for name, entry in tables.items():
        here = f"{where}: channels.{name}"
        if not SENSOR_NAME(name) or not isinstance(entry, dict):
            raise SettingsError(f"{here}: a channel is a table, named with {SENSOR_NAME_TAKES}")
        yield name, read_options(entry, options, here), here
