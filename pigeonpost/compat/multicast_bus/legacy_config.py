"""Reader of the JSON configuration of the older multi-sensor system: multicast groups and components.

    {"Multicast": {"Control-Channel": {"Address": "226.0.0.221", "Port": 7001}, "Data-Channel": {...}},
     "Sensors": [{"Codifier": "C4", "ShortName": "pimon Temp", "Type": "TempLinux", "Sensor": {"Pipe": ...}}, ...]}

Errors: SettingsError, which contains the file, the sensor (its index and codifier), the key, the invalid value and the
accepted values. Unknown keys are ignored, as in the older programs, because users write comments in them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pigeonpost.compat.multicast_bus.packets import codifier as read_codifier
from pigeonpost.core.addresses import is_group
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.http_client import AnswerTooLong, HttpError, HttpFetcher

FILE_BYTES = 4 << 20
MOST_SENSORS = 8836  # number of possible codifiers: 94 visible ASCII characters, squared
ANSWER_S = 10.0  # timeout for downloading the configuration
DATA_TYPES = ("float", "integer", "bool")


class Unreachable(SettingsError):
    """The configuration cannot be downloaded at present."""


class OldSensor(NamedTuple):
    """Entry of `Sensors`. A missing key has the default of the older programs.

    Attributes:
        codifier: Codifier, the two-character id of the component.
        short_name: ShortName, from which the names of the node and the channel are derived.
        name: Name, the description for people.
        symbol: Symbol, the unit.
        kind: Type. In the oldest files, it is in `Sensor`.
        data_type: DataType: one of DATA_TYPES.
        active: Active: True if the component sends readings from its start on.
        control: True if Control is `enabled`: commands can change the value.
        alive_s: KeepAliveInterval in seconds.
        every_s: SensorInterval in seconds.
        timeout_s: TimeoutWarning in seconds.
        about: Content of `Sensor`, which depends on the kind.
        proxies: Entries of the Proxy list, by codifier.
        parent: Codifier of the sensor that reads a proxy; an empty string for other kinds.
    """

    codifier: str
    short_name: str
    name: str
    symbol: str
    kind: str
    data_type: str
    active: bool
    control: bool
    alive_s: float
    every_s: float
    timeout_s: float
    about: Mapping[str, Any]
    proxies: Mapping[str, Mapping[str, Any]]
    parent: str


class OldConfig(NamedTuple):
    """Content of the configuration.

    Attributes:
        source: Path or URL of the file.
        control: Group of the control channel, or None if it is missing.
        data: Group of the data channel, or None if it is missing.
        sensors: Sensors by codifier.
    """

    source: str
    control: tuple[str, int] | None
    data: tuple[str, int] | None
    sensors: Mapping[str, OldSensor]


def source_of(setting: str) -> str:
    """Return the path or URL of the configuration: `setting`, or the variable JPH_CONFIG of the older programs.

    Return an empty string if neither is set.
    """
    return setting or os.environ.get("JPH_CONFIG", "")


def load(source: str) -> OldConfig:
    """Read and return a configuration. Raise SettingsError if it is invalid or cannot be read.

    Args:
        source: Path, or URL (http, https, or `file:` with a path, which may be relative).
    """
    return parse(_fetch(source), source)


def parse(data: bytes, source: str) -> OldConfig:
    """Return the configuration in the JSON text `data`.

    Args:
        data: The text.
        source: Path or URL, with which error messages begin.

    Raises:
        SettingsError: The configuration is invalid.
    """
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # rejects half of a surrogate pair, which cannot be stored
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{source}: not JSON: {error or 'nested too deeply'}") from None
    if not isinstance(found, dict) or not isinstance(found.get("Sensors"), list):
        raise SettingsError(f'{source}: the file must contain an object with a list "Sensors"')
    if len(found["Sensors"]) > MOST_SENSORS:
        raise SettingsError(f"{source}: {len(found['Sensors'])} sensors, but there are only {MOST_SENSORS} codifiers")
    sensors: dict[str, OldSensor] = {}
    indexes: dict[str, int] = {}
    for index, entry in enumerate(found["Sensors"]):
        sensor = _sensor(entry, f"{source}: Sensors[{index}]")
        if sensor.codifier in sensors:
            raise SettingsError(
                f"{source}: Sensors[{index}]: the Codifier {sensor.codifier} is also in Sensors"
                f"[{indexes[sensor.codifier]}]"
            )
        sensors[sensor.codifier], indexes[sensor.codifier] = sensor, index
    for code, sensor in sensors.items():
        for used in (*sensor.proxies, *([sensor.parent] if sensor.parent else [])):
            if used not in sensors:
                key = "Proxy" if used in sensor.proxies else "Codifier"
                where = f"{source}: Sensors[{indexes[code]}] ({code}): Sensor.{key}"
                raise SettingsError(f"{where}: there is no sensor with the Codifier {used}")
    groups = _groups(found.get("Multicast"), source)
    return OldConfig(source, groups.get("Control-Channel"), groups.get("Data-Channel"), sensors)


def slug(text: str, most: int = 32) -> str:
    """Return `text` as a channel name of at most `most` characters: lower-case letters, digits and `_`.

    Return an empty string if no character of `text` is valid.
    """
    found = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    found = found if not found or found[0].isalpha() else f"s_{found}"
    return found[:most].rstrip("_")


def node_name(text: str, most: int = 63) -> str:
    """Return `text` as a node name of at most `most` characters, or an empty string if no character is valid."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:most].rstrip("._-")


def _fetch(source: str) -> bytes:
    if re.match(r"https?://", source):
        return _download(source)
    try:
        with open(re.sub(r"^file:(//(?=/))?", "", source), "rb") as file:
            data = file.read(FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{source}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > FILE_BYTES:
        raise _too_long(source)
    return data


def _download(url: str) -> bytes:
    try:
        response = HttpFetcher(ANSWER_S, FILE_BYTES).fetch(url).response
    except AnswerTooLong:
        raise _too_long(url) from None
    except (HttpError, ValueError) as error:
        raise Unreachable(f"{url}: {error}") from None
    if not 200 <= response.status <= 299:
        raise Unreachable(f"{url}: {response.reason or response.status}")
    return response.body


def _too_long(source: str) -> SettingsError:
    return SettingsError(f"{source}: longer than {FILE_BYTES >> 20} MiB")


def _groups(entry: Any, source: str) -> dict[str, tuple[str, int]]:
    where = f"{source}: Multicast"
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise SettingsError(f"{where} must be an object with Control-Channel and Data-Channel")
    found = {}
    for channel in ("Control-Channel", "Data-Channel"):
        about = entry.get(channel)
        if about is None:
            continue
        channel_where = f"{where}: {channel}"
        if not isinstance(about, dict):
            raise SettingsError(f"{channel_where} must be an object with Address and Port")
        port = about.get("Port")
        if isinstance(port, str) and port.isascii() and port.isdigit() and len(port) < 6:
            port = int(port)  # the old programs accepted strings too
        if type(port) is not int or not 0 < port < 65_536:
            raise SettingsError(
                f"{channel_where}: Port must be a number from 1 to 65535, not {about.get('Port')!r:.40}"
            )
        address = about.get("Address")
        if not isinstance(address, str) or not is_group((address, port)):
            raise SettingsError(
                f"{channel_where}: Address must be a multicast group, such as 226.0.0.221, not {address!r:.40}"
            )
        found[channel] = address, port
    return found


def _sensor(entry: Any, where: str) -> OldSensor:
    if not isinstance(entry, dict):
        raise SettingsError(f"{where} must be an object with a Codifier")
    code = _code(entry.get("Codifier"), f"{where}: Codifier")
    where = f"{where} ({code})"
    about = entry.get("Sensor", {})
    if not isinstance(about, dict):
        raise SettingsError(f"{where}: Sensor must be an object")
    kind = _text(about if "Type" in about else entry, "Type", where)
    data_type = entry.get("DataType", entry.get("Type") if entry.get("Type") in DATA_TYPES else "float")
    if data_type not in DATA_TYPES:
        raise SettingsError(f"{where}: DataType must be one of {', '.join(DATA_TYPES)}, not {data_type!r:.40}")
    control = entry.get("Control", "")
    if not isinstance(control, str):
        raise SettingsError(f'{where}: Control must be a string, such as "enabled", not {control!r:.40}')
    active = entry.get("Active", True)
    if not isinstance(active, bool):
        raise SettingsError(f"{where}: Active must be true or false, not {active!r:.40}")
    parent = ""
    if kind == "Proxy":
        parent = _code(about.get("Codifier"), f"{where}: Sensor.Codifier")
    return OldSensor(
        code, _text(entry, "ShortName", where), _text(entry, "Name", where), _text(entry, "Symbol", where).strip(),
        kind, data_type, active, control.lower() == "enabled", _seconds(entry, "KeepAliveInterval", where),
        _seconds(entry, "SensorInterval", where), _seconds(entry, "TimeoutWarning", where), about,
        _proxies(about.get("Proxy", []), where), parent,
    )  # fmt: skip


def _proxies(entries: Any, where: str) -> dict[str, Mapping[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SettingsError(f"{where}: Sensor.Proxy must be a list of objects, each with a Codifier")
    return {
        _code(entry.get("Codifier"), f"{where}: Sensor.Proxy[{index}].Codifier"): entry
        for index, entry in enumerate(entries)
    }


def _code(value: Any, where: str) -> str:
    try:
        return read_codifier(value)
    except (ValueError, TypeError):
        raise SettingsError(f"{where} must be two visible ASCII characters, such as C4, not {value!r:.40}") from None


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise SettingsError(f"{where}: {key} must be a string, not {value!r:.40}")
    return value


def _seconds(entry: Mapping[str, Any], key: str, where: str) -> float:
    value = entry.get(key, 60)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= 1e9
        or not math.isfinite(value)
    ):
        raise SettingsError(f"{where}: {key} must be a number of seconds above 0, not {value!r:.40}")
    return float(value)
