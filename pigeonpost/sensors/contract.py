"""What every kind of sensor source has in common: SensorSource, its channels, calibration, limits and raw values.

A module of this package has `OPTIONS`, the keys of its [[sensor]] table, and `make(table, where)`, which makes a source
from one. It may have `scan(root)`, which finds the devices of its kind. registry.py lists them; adc.py, the first
kind, is at the root.

A source is read by one thread at a time; `read` may block.
Errors: SensorError, with the fault and the remedy; for a single channel it is returned in the place of the value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from json import dumps  # `json` is a module of this package
from types import MappingProxyType

from pigeonpost.core.config import Option, check_keys, matching, number, read_options, switch, text
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from protocol import SENSOR_NAME, SENSOR_NAME_TAKES, UNIT, Number

if TYPE_CHECKING:
    from typing import Any


class Channel(NamedTuple):
    """One named value that a source gives: name and unit as they go over the link; `simulated` is told to people.

    limits  what the value is judged by, as HELLO tells it: low, high, jump, stuck, and rail as [low, high]. All are in
            terms of the value that is sent; a driver that knows the ends of its scale gives `rail` itself.
    """

    name: str
    unit: str
    simulated: bool = False
    limits: Mapping[str, Any] = MappingProxyType({})


Readings = Mapping[str, "Number | SensorError"]


class SensorSource:
    """One thing that is read at once, and gives a value for each of its channels."""

    channels: Sequence[Channel]

    def read(self) -> Readings:
        """Read all channels now: a finite number for each, or the SensorError of that one.

        Raises SensorError when no channel can be read.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the device. Closing twice is fine."""


class LatestReadings(NamedTuple):
    """What a channel gave last, and when (Clock.monotonic)."""

    value: Number
    at_s: float


class DerivedSource(SensorSource):
    """A source that makes its values of what other channels gave. The sampler evaluates it in its own thread, after
    the other sources have answered; so it must be quick."""

    uses: Mapping[str, Mapping[str, str]]  # of each of its channels those that it is made of, and where that is written

    def derive(self, name: str, latest: Mapping[str, LatestReadings], now_s: float) -> LatestReadings:
        """Return the value of its channel `name`, with the age of the oldest value used. Raises SensorError."""
        raise NotImplementedError


def in_order(sources: Sequence[SensorSource]) -> list[tuple[DerivedSource, str]]:
    """Return every derived channel of a node with its source, each after those that it is made of.

    Raises SettingsError for a name that no source gives, and for channels that are made of each other.
    """
    made = {name: source for source in sources if isinstance(source, DerivedSource) for name in source.uses}
    if not made:
        return []
    import graphlib

    known = [channel.name for source in sources for channel in source.channels]
    for name, source in made.items():
        for used, where in source.uses[name].items():
            if used not in known:
                raise SettingsError(f"{where}: no channel is called {used!r:.50}; {nearest(used, known)}")
    try:
        sorter = graphlib.TopologicalSorter({name: source.uses[name].keys() for name, source in made.items()})
        return [(made[name], name) for name in sorter.static_order() if name in made]
    except graphlib.CycleError as error:
        around = error.args[1][::-1]  # the names in a cycle, each followed by one that needs it
        where = made[around[0]].uses[around[0]][around[1]]
        raise SettingsError(f"{where}: made of itself: {' needs '.join(around)}") from None


def nearest(name: str, known: Collection[str]) -> str:
    """Return a hint for a misspelt name: the nearest known one."""
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(sorted(known)[:50])}"


def access_remedy(group: str) -> str:
    """Return how this program gets the right to open the devices of a group, as "spi"."""
    if os.environ.get("STATE_DIRECTORY"):  # a systemd unit has a user of its own, and its devices are listed there
        return "`sudo python3 /opt/pigeonpost/control.py install node --write`, then restart it (docs/install.md)"
    return f"`sudo usermod -aG {group} $USER`, then log in again"


class FoundDevice(NamedTuple):
    """Something that can be read here, as a member's `scan(root)` finds it: in words, and the table that reads it.

    root    where dev, proc and sys are
    table   as it stands under [[sensor]], `kind` included; empty: there is something, but nothing to read yet
    """

    about: str
    table: Mapping[str, Any] = MappingProxyType({})


def name_of(*parts: str) -> str:
    """Return a valid name of a channel, made of any texts."""
    made = "_".join("".join(letter if letter in _NAME_LETTERS else " " for letter in " ".join(parts).lower()).split())
    return (made if made[:1].isalpha() else f"s_{made}")[:28].rstrip("_")


_NAME_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

# What members with a table for each channel share.
CALIBRATION = (
    Option("gain", number(-1e9, 1e9), 1.0, "calibration: the value is multiplied by this,"),
    Option("offset", number(-1e9, 1e9), 0.0, "and then this is added"),
)


def calibrated(value: float, chosen: Mapping[str, Any]) -> float:
    """Return `value` with the CALIBRATION options of its channel applied."""
    return round(value * float(chosen["gain"]) + float(chosen["offset"]), 6)


def dotted_path(value: Any) -> tuple[str, ...]:
    """Parser for a path in JSON: keys and list indices, separated by dots, as in `sensors.0.value`
    (-1: the last); in quotes where a key contains a dot. An empty path is the whole document."""
    parts: list[str] = []
    rest = text(value)
    while rest:
        found = re.match(r"""(?:"([^"]*)"|'([^']*)'|([^."']+))(\.?)""", rest)
        if found is None or (found[4] == "") != (found.end() == len(rest)):
            raise ValueError("takes keys and places with dots between, as in result.0.value or data.'a.b'.c")
        parts.append(next(part for part in found.groups() if part is not None))
        rest = rest[found.end() :]
    return tuple(parts)


def at_path(value: Any, path: Sequence[str]) -> Any:
    """Return the value at a path in decoded JSON. Raises SensorError, which names the first part that is missing."""
    for count, key in enumerate(path, 1):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and re.fullmatch("-?[0-9]{1,9}", key) and -len(value) <= int(key) < len(value):
            value = value[int(key)]
        else:
            raise SensorError(f"there is no {'.'.join(path[:count])!r:.60}; there is {shown_json(value)}")
    return value


def shown_json(value: Any) -> str:
    """Return untrusted decoded JSON as a short text."""
    if isinstance(value, dict):
        return (", ".join(f"{key!r:.40}" for key in list(value)[:10]) or "nothing") + ", ..." * (len(value) > 10)
    return f"a list of {len(value)}" if isinstance(value, list) else f"{dumps(value):.60}"


def channel_tables(
    tables: Mapping[str, Any] | None, options: Sequence[Option], where: str, example: str
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the name and the options of each channel, and the beginning of an error about it.

    tables   the `channels` of a [[sensor]]
    example  of a channel, for the error when there is none
    Raises SettingsError.
    """
    if not tables:
        raise SettingsError(f"{where}: channels is missing, as in channels.{example}")
    for name, entry in tables.items():
        here = f"{where}: channels.{name}"
        if not SENSOR_NAME(name) or not isinstance(entry, dict):
            raise SettingsError(f"{here}: a channel is a table, named with {SENSOR_NAME_TAKES}")
        # First against all keys that a channel may have, so that the hint for a misspelt one can name any of them.
        check_keys(entry, [option.key for option in (*options, *LIMITS)], here)
        yield name, read_options(entry, options, here), here


def _pair(value: Any) -> tuple[float, float]:
    one = number(-1e15, 1e15)
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("takes the two ends of a scale, as [0, 1023]")
    low, high = one(value[0]), one(value[1])
    if not low < high:
        raise ValueError("takes the lower end first, as [0, 1023]")
    return low, high


# What every kind with a table for each channel takes too. The node tells the limits; server.quality checks the values.
LIMITS = (
    Option("low", number(-1e15, 1e15), None, "verdict: less is out of range,"),
    Option("high", number(-1e15, 1e15), None, "and so is more than this"),
    Option("jump", number(1e-9, 1e15), None, "verdict: the most that it changes in a second"),
    Option("stuck", number(1, 864_000), None, "verdict: seconds without any change"),
    Option("rail", _pair, None, "verdict: the ends of the scale, [low, high], before calibration"),
    Option("raw", switch, False, "whether NAME_raw, the value before calibration, is a channel too"),
)
_TOLD = ("low", "high", "jump", "stuck")
# With `raw` these are taken from the member: what it then reads is the raw value, in its usual unit.
_CALIBRATING = (*CALIBRATION, Option("unit", matching(UNIT, "a text up to 32 characters"), None, "of the value"))


class WithRaw(SensorSource):
    """A source of which some channels are given raw as well. Those it reads uncalibrated, and calibrates here."""

    def __init__(self, source: SensorSource, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        """chosen: of each such channel its options, by name"""
        self._source, self._calibrate = source, chosen
        self.channels = [made for channel in source.channels for made in self._channels(channel)]

    def _channels(self, channel: Channel) -> Iterator[Channel]:
        chosen = self._calibrate.get(channel.name)
        if chosen is None:
            yield channel
            return
        limits = dict(channel.limits)
        if "rail" in limits and not chosen["rail"]:  # as its driver knows it
            limits["rail"] = sorted(_calibrated(end, chosen) for end in limits["rail"])
        yield channel._replace(limits=limits, unit=channel.unit if chosen["unit"] is None else chosen["unit"])
        yield Channel(f"{channel.name}_raw", channel.unit, channel.simulated)

    def read(self) -> Readings:
        readings: dict[str, Number | SensorError] = {}
        for name, value in self._source.read().items():
            readings[name] = value
            if name in self._calibrate:
                readings[f"{name}_raw"] = value
                if not isinstance(value, SensorError):
                    readings[name] = _calibrated(value, self._calibrate[name])
        return readings

    def close(self) -> None:
        self._source.close()


def with_limits(
    table: Mapping[str, Any], where: str, make: Callable[[Mapping[str, Any]], SensorSource]
) -> SensorSource:
    """Make the source of a [[sensor]] table by `make`, with the limits and raw values that its channels have.

    Raises SettingsError, also those of `make`.
    """
    entries = table.get("channels")
    if not isinstance(entries, dict):
        return make(table)  # it may need none, or says what is wrong
    keys, plain, chosen = {option.key for option in LIMITS}, dict(entries), {}
    for name, entry in entries.items():
        if isinstance(entry, dict) and not keys.isdisjoint(entry):
            chosen[name] = _limits(entry, name, f"{where}: channels.{name}")
            taken = keys | {option.key for option in _CALIBRATING if chosen[name]["raw"]}
            plain[name] = {key: value for key, value in entry.items() if key not in taken}
    source = make({**table, "channels": plain})
    if not chosen:
        return source
    source.channels = [_limited(channel, chosen.get(channel.name)) for channel in source.channels]
    with_raw = {name: options for name, options in chosen.items() if options["raw"]}
    if with_raw and isinstance(source, DerivedSource):
        raise SettingsError(f"{where}: channels.{min(with_raw)}: raw is for what is measured")
    return WithRaw(source, with_raw) if with_raw else source


def _limited(channel: Channel, chosen: Mapping[str, Any] | None) -> Channel:
    if chosen is None:
        return channel
    limits = {**channel.limits, **{key: chosen[key] for key in _TOLD if chosen[key] is not None}}
    if chosen["rail"]:  # which calibration may put the other way round
        limits["rail"] = sorted(_calibrated(end, chosen) for end in chosen["rail"])
    return channel._replace(limits=limits)


def _limits(entry: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    options = (*LIMITS, *_CALIBRATING)
    its = {option.key for option in options}
    chosen = read_options({key: value for key, value in entry.items() if key in its}, options, where)
    chosen["calibrates"] = "gain" in entry or "offset" in entry
    if None not in (chosen["low"], chosen["high"]) and chosen["low"] > chosen["high"]:
        raise SettingsError(f"{where}: low is above high")
    if chosen["raw"] and not SENSOR_NAME(f"{name}_raw"):
        raise SettingsError(f"{where}: with raw = true the name is followed by _raw, and takes {SENSOR_NAME_TAKES}")
    return chosen


def _calibrated(value: Number, chosen: Mapping[str, Any]) -> Number:
    return calibrated(value, chosen) if chosen["calibrates"] else value  # whole numbers stay whole
