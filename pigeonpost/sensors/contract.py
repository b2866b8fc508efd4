"""Common parts of all kinds of sensor sources: SensorSource, channels, calibration, limits and raw values.

Each kind is a module of this package, except `adc`, which is in adc.py in the root folder. Such a module contains
`OPTIONS`, the keys of its [[sensor]] table, and `make(table, where)`, which creates a source from a table. It can
contain `scan(root)`, which finds the devices of its kind. registry.py lists all kinds.

A source is read by one thread at a time, and `read` may block.
Errors: SensorError, whose message contains the fault and the remedy. If only one channel fails, its SensorError is
returned instead of its value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from json import dumps  # `json` is a module of this package
from types import MappingProxyType

from pigeonpost.core.config import Option, check_keys, matching, number, read_options, switch, text
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.format import counted
from pigeonpost.core.light_typing import TYPE_CHECKING, NamedTuple
from protocol import SENSOR_NAME, SENSOR_NAME_TAKES, UNIT, Number

if TYPE_CHECKING:
    from typing import Any


class Channel(NamedTuple):
    """Description of a channel, which is one named value of a source.

    Attributes:
        name: Name of the channel, as on the link.
        unit: Unit of the value.
        simulated: True if the value is simulated. The web interface shows this.
        limits: Limits of the quality checks, as in HELLO: low, high, jump, stuck, and rail as [low, high]. They refer
            to the value that is sent, after calibration. A driver that knows the ends of its scale sets `rail` itself.
        possible: Lowest and highest possible value, if the driver knows that they differ from those of the unit (see
            sensors.ranges).
        is_total: True for a total that never decreases, such as that of a pulse counter.
    """

    name: str
    unit: str
    simulated: bool = False
    limits: Mapping[str, Any] = MappingProxyType({})
    possible: tuple[float, float] | None = None
    is_total: bool = False


Readings = Mapping[str, "Number | SensorError"]


class SensorSource:
    """Source of readings: one device or service whose channels are read together.

    Attributes:
        channels: The channels of the source.
        patience_s: Time in seconds for which `read` is waited for. The sampler sets it.
        calibrations: Gain and offset of the channels whose settings contain them, by channel name.
    """

    channels: Sequence[Channel]
    patience_s = 5.0
    calibrations: Mapping[str, tuple[float, float]] = MappingProxyType({})

    def start(self, data: str) -> None:
        """Start the work between readings. A node calls this once, before the first reading; other programs do not.

        Args:
            data: Data folder of the node.
        """

    def read(self) -> Readings:
        """Read all channels now.

        Returns:
            The reading of each channel by its name: a finite number, or a SensorError if that channel cannot be read.

        Raises:
            SensorError: No channel can be read.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the device. It has no effect if the device is already closed."""


class LatestReading(NamedTuple):
    """Latest reading of a channel, with its time (Clock.monotonic, in seconds)."""

    value: Number
    at_s: float


class DerivedSource(SensorSource):
    """Source whose channels are calculated from the readings of other channels.

    The sampler calculates them in its own thread, after the other sources have answered, so `derive` must be fast.

    Attributes:
        uses: For each channel of this source, the names of the channels that it uses, each with its location in the
            settings (for error messages).
    """

    uses: Mapping[str, Mapping[str, str]]

    def derive(self, name: str, latest: Mapping[str, LatestReading], now_s: float) -> LatestReading:
        """Calculate the value of a channel.

        Args:
            name: Name of a channel of this source.
            latest: The latest reading of each channel of the node.
            now_s: Present time (Clock.monotonic), in seconds.

        Returns:
            The value, with the time of the oldest reading used.

        Raises:
            SensorError: The value cannot be calculated.
        """
        raise NotImplementedError


def in_order(sources: Sequence[SensorSource]) -> list[tuple[DerivedSource, str]]:
    """Return all derived channels in `sources`, each with its source, in the order in which they must be calculated.

    Raises:
        SettingsError: A channel uses a channel that does not exist, or channels depend on each other in a cycle.
    """
    derived = {name: source for source in sources if isinstance(source, DerivedSource) for name in source.uses}
    if not derived:
        return []
    import graphlib

    known = [channel.name for source in sources for channel in source.channels]
    for name, source in derived.items():
        for used, where in source.uses[name].items():
            if used not in known:
                raise SettingsError(f"{where}: no channel is called {used!r:.50}; {nearest(used, known)}")
    try:
        sorter = graphlib.TopologicalSorter({name: source.uses[name].keys() for name, source in derived.items()})
        return [(derived[name], name) for name in sorter.static_order() if name in derived]
    except graphlib.CycleError as error:
        cycle = error.args[1][::-1]  # each name is followed by the name of a channel that it uses
        where = derived[cycle[0]].uses[cycle[0]][cycle[1]]
        raise SettingsError(f"{where}: the channels depend on each other: {' needs '.join(cycle)}") from None


def nearest(name: str, known: Collection[str]) -> str:
    """Return a hint for the misspelt `name`: the most similar name in `known`, or a list of all names."""
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return f'did you mean "{near[0]}"?' if near else f"known names: {', '.join(sorted(known)[:50])}"


def access_remedy(group: str) -> str:
    """Return the commands that give this program access to the devices of `group`, such as "spi"."""
    if os.environ.get("STATE_DIRECTORY"):  # a systemd unit runs as a separate user and lists its devices
        return "`sudo python3 /opt/pigeonpost/control.py install node --write`, then restart it (docs/install.md)"
    return f"`sudo usermod -aG {group} $USER`, then log in again"


class FoundDevice(NamedTuple):
    """Device found by the `scan(root)` of a kind, where `root` is the folder that contains dev, proc and sys.

    Attributes:
        about: Description of the device for the user.
        table: A [[sensor]] table, including `kind`, that reads the device; empty if the device cannot be read yet.
    """

    about: str
    table: Mapping[str, Any] = MappingProxyType({})


def name_of(*parts: str) -> str:
    """Return a valid channel name made from the texts `parts`."""
    made = "_".join("".join(letter if letter in _NAME_LETTERS else " " for letter in " ".join(parts).lower()).split())
    return (made if made[:1].isalpha() else f"s_{made}")[:28].rstrip("_")


_NAME_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

# Options of all kinds that have a table per channel.
CALIBRATION = (
    Option("gain", number(-1e9, 1e9), 1.0, "calibration: factor by which the value is multiplied"),
    Option("offset", number(-1e9, 1e9), 0.0, "calibration: added to the value after the multiplication"),
)


def calibrated(value: float, chosen: Mapping[str, Any]) -> float:
    """Return `value` after calibration with `gain` and `offset` in `chosen`, the options of its channel."""
    return round(value * float(chosen["gain"]) + float(chosen["offset"]), 6)


def dotted_path(value: Any) -> tuple[str, ...]:
    """Return the parts of a path in JSON: keys and list indices separated by dots, such as `sensors.0.value`.

    The index -1 is the last element. A key that contains a dot must be in quotes. An empty path is the complete
    document.

    Args:
        value: The path, from the settings.

    Raises:
        ValueError: `value` is not a valid path.
    """
    parts: list[str] = []
    rest = text(value)
    while rest:
        found = re.match(r"""(?:"([^"]*)"|'([^']*)'|([^."']+))(\.?)""", rest)
        if found is None or (found[4] == "") != (found.end() == len(rest)):
            raise ValueError("takes keys and indices separated by dots, as in result.0.value or data.'a.b'.c")
        parts.append(next(part for part in found.groups() if part is not None))
        rest = rest[found.end() :]
    return tuple(parts)


def at_path(value: Any, path: Sequence[str]) -> Any:
    """Return the value at `path` in decoded JSON.

    Args:
        value: The decoded JSON document.
        path: Keys and list indices.

    Raises:
        SensorError: A part of the path does not exist; the message contains the first such part.
    """
    for count, key in enumerate(path, 1):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and re.fullmatch("-?[0-9]{1,9}", key) and -len(value) <= int(key) < len(value):
            value = value[int(key)]
        else:
            raise SensorError(f"there is no {'.'.join(path[:count])!r:.60}; found: {shown_json(value)}")
    return value


def shown_json(value: Any) -> str:
    """Return a short description of `value`, which is untrusted decoded JSON, for an error message."""
    if isinstance(value, dict):
        return (", ".join(f"{key!r:.40}" for key in list(value)[:10]) or "nothing") + ", ..." * (len(value) > 10)
    return f"a list of {counted(len(value), 'element')}" if isinstance(value, list) else f"{dumps(value):.60}"


def channel_tables(
    tables: Mapping[str, Any] | None, options: Sequence[Option], of_table: Sequence[Option], where: str, example: str
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the name and the options of each channel, and the text with which error messages about it begin.

    Args:
        tables: The value of `channels` in a [[sensor]] table.
        options: The options of a channel.
        of_table: The options of the [[sensor]] table.
        where: File and table, with which each error message begins.
        example: Example of a channel, for the error message if there is no channel.

    Raises:
        SettingsError: There is no channel, or an option is invalid.
    """
    if not tables:
        raise SettingsError(f"{where}: channels is missing; for example: channels.{example}")
    for name, entry in tables.items():
        channel_where = f"{where}: channels.{name}"
        if not SENSOR_NAME(name) or not isinstance(entry, dict):
            raise SettingsError(f"{channel_where}: a channel must be a table whose name is {SENSOR_NAME_TAKES}")
        known = {option.key for option in (*options, *LIMITS)}
        for key in entry:
            if key not in known and any(key == option.key for option in of_table):
                # In TOML, a key that is written after the channels belongs to the last one.
                raise SettingsError(
                    f"{channel_where}: {key} is a key of the table [[sensor]]: write it before the first channel"
                )
        # First check against all keys that a channel can have, so that the hint for a misspelt key can be any of them.
        check_keys(entry, [option.key for option in (*options, *LIMITS)], channel_where)
        yield name, read_options(entry, options, channel_where), channel_where


def pair(value: Any) -> tuple[float, float]:
    """Return the two ends of a scale, lower end first.

    Args:
        value: The value of the setting.

    Raises:
        ValueError: `value` is not a list of two increasing numbers.
    """
    parse = number(-1e15, 1e15)
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("takes the two ends of a scale, such as [0, 1023]")
    low, high = parse(value[0]), parse(value[1])
    if not low < high:
        raise ValueError("takes the lower end first, such as [0, 1023]")
    return low, high


# Additional options of all kinds that have a table per channel. The node sends the limits; server.quality checks them.
LIMITS = (
    Option("low", number(-1e15, 1e15), None, "quality limit: a value below this is out of range"),
    Option("high", number(-1e15, 1e15), None, "quality limit: a value above this is out of range"),
    Option("jump", number(1e-9, 1e15), None, "quality limit: largest change per second"),
    Option(
        "stuck", number(1, 864_000), None, "quality limit: seconds without any change, after which the sensor is stuck"
    ),
    Option("rail", pair, None, "quality limit: the ends of the sensor's scale, [low, high], before calibration"),
    Option("raw", switch, False, "add a channel NAME_raw with the value before calibration"),
)
_SENT = ("low", "high", "jump", "stuck")
# With `raw` these options are not passed to the kind, so that it reads the raw value in its default unit.
_CALIBRATING = (*CALIBRATION, Option("unit", matching(UNIT, "a text up to 32 characters"), None, "of the value"))


class WithRaw(SensorSource):
    """Source that adds a raw channel to some channels of another source.

    The other source reads these channels without calibration, and this source calibrates them.

    Args:
        source: The other source.
        chosen: Options of each channel that gets a raw channel, by channel name.
    """

    def __init__(self, source: SensorSource, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        self._source, self._calibrate = source, chosen
        self.calibrations = source.calibrations
        self.channels = [made for channel in source.channels for made in self._channels(channel)]

    def _channels(self, channel: Channel) -> Iterator[Channel]:
        chosen = self._calibrate.get(channel.name)
        if chosen is None:
            yield channel
            return
        limits = dict(channel.limits)
        if "rail" in limits and not chosen["rail"]:  # set by the driver
            limits["rail"] = sorted(_calibrated(end, chosen) for end in limits["rail"])
        possible = channel.possible
        if possible is not None:  # sorted, because a negative gain exchanges the two ends
            low, high = sorted(_calibrated(end, chosen) for end in possible)
            possible = (low, high)
        unit = channel.unit if chosen["unit"] is None else chosen["unit"]
        yield channel._replace(limits=limits, unit=unit, possible=possible)
        yield Channel(f"{channel.name}_raw", channel.unit, channel.simulated, possible=channel.possible)

    def start(self, data: str) -> None:
        self._source.start(data)

    def read(self) -> Readings:
        readings: dict[str, Number | SensorError] = {}
        self._source.patience_s = self.patience_s
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
    """Return the source for a [[sensor]] table, with the limits and the raw channels in the table.

    Args:
        table: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.
        make: Function that creates the source from the table without limits and raw channels.

    Raises:
        SettingsError: A setting is invalid.
    """
    entries = table.get("channels")
    if not isinstance(entries, dict):
        return make(table)  # the kind needs no channels, or reports the error
    keys, plain, chosen = {option.key for option in LIMITS}, dict(entries), {}
    for name, entry in entries.items():
        if isinstance(entry, dict) and not keys.isdisjoint(entry):
            chosen[name] = _limits(entry, name, f"{where}: channels.{name}")
            removed = keys | {option.key for option in _CALIBRATING if chosen[name]["raw"]}
            plain[name] = {key: value for key, value in entry.items() if key not in removed}
    source = make({**table, "channels": plain})
    source.calibrations = {
        name: (entry.get("gain", 1), entry.get("offset", 0))
        for name, entry in entries.items()
        if isinstance(entry, dict)
    }
    if not chosen:
        return source
    source.channels = [_limited(channel, chosen.get(channel.name)) for channel in source.channels]
    with_raw = {name: options for name, options in chosen.items() if options["raw"]}
    if with_raw and isinstance(source, DerivedSource):
        raise SettingsError(f"{where}: channels.{min(with_raw)}: raw is not possible for a calculated channel")
    return WithRaw(source, with_raw) if with_raw else source


def _limited(channel: Channel, chosen: Mapping[str, Any] | None) -> Channel:
    if chosen is None:
        return channel
    limits = {**channel.limits, **{key: chosen[key] for key in _SENT if chosen[key] is not None}}
    if chosen["rail"]:  # sorted, because a negative gain exchanges the two ends
        limits["rail"] = sorted(_calibrated(end, chosen) for end in chosen["rail"])
    return channel._replace(limits=limits)


def _limits(entry: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    options = (*LIMITS, *_CALIBRATING)
    keys = {option.key for option in options}
    chosen = read_options({key: value for key, value in entry.items() if key in keys}, options, where)
    chosen["calibrates"] = "gain" in entry or "offset" in entry
    if None not in (chosen["low"], chosen["high"]) and chosen["low"] > chosen["high"]:
        raise SettingsError(f"{where}: low must not be above high")
    if chosen["raw"] and not SENSOR_NAME(f"{name}_raw"):
        raise SettingsError(f"{where}: the name is too long: with raw = true, {name}_raw must be {SENSOR_NAME_TAKES}")
    return chosen


def _calibrated(value: Number, chosen: Mapping[str, Any]) -> Number:
    return calibrated(value, chosen) if chosen["calibrates"] else value  # so that integers stay integers
