"""Reader of the JSON configuration of the older multi-sensor system: the groups, and the components on the bus.

    {"Multicast": {"Control-Channel": {"Address": "226.0.0.221", "Port": 7001}, "Data-Channel": {...}},
     "Sensors": [{"Codifier": "C4", "ShortName": "pimon Temp", "Type": "TempLinux", "Sensor": {"Pipe": ...}}, ...]}

Errors: SettingsError, which names the file, the sensor (its place and codifier), the key, its value and what it takes.
Unknown keys are ignored: the older programs did so, and people keep comments in them.
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
MOST_SENSORS = 8836  # as many codifiers as there can be
ANSWER_S = 10.0  # for a URL
DATA_TYPES = ("float", "integer", "bool")


class Unreachable(SettingsError):
    """The configuration is at a URL that does not answer at present."""


class OldSensor(NamedTuple):
    """One entry of `Sensors`, under the names that it has there; a missing key has its former default.

    kind     its Type, or the Type within its Sensor, as the oldest files have it
    about    its Sensor: what belongs to its kind alone
    proxies  the codifiers of its Proxy list, with what stands beside each
    parent   of a proxy: the codifier that reads for it; else empty
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
    """The whole file. Groups are None where it names none."""

    source: str
    control: tuple[str, int] | None
    data: tuple[str, int] | None
    sensors: Mapping[str, OldSensor]


def source_of(setting: str) -> str:
    """Where the configuration is: as set, else where the old programs looked (JPH_CONFIG); empty: nowhere."""
    return setting or os.environ.get("JPH_CONFIG", "")


def load(source: str) -> OldConfig:
    """Read a file, or a URL (http, https, or `file:` and a path, which may be relative)."""
    return parse(_fetch(source), source)


def parse(data: bytes, source: str) -> OldConfig:
    """Read the configuration's text; `source` is what errors begin with."""
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair could not be printed or stored
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{source}: not JSON: {error or 'nested too deeply'}") from None
    if not isinstance(found, dict) or not isinstance(found.get("Sensors"), list):
        raise SettingsError(f'{source}: takes an object with a list "Sensors"')
    if len(found["Sensors"]) > MOST_SENSORS:
        raise SettingsError(f"{source}: {len(found['Sensors'])} sensors; there are {MOST_SENSORS} codifiers")
    sensors: dict[str, OldSensor] = {}
    places: dict[str, int] = {}
    for place, entry in enumerate(found["Sensors"]):
        sensor = _sensor(entry, f"{source}: Sensors[{place}]")
        if sensor.codifier in sensors:
            raise SettingsError(
                f"{source}: Sensors[{place}]: the Codifier {sensor.codifier} stands in Sensors"
                f"[{places[sensor.codifier]}] too"
            )
        sensors[sensor.codifier], places[sensor.codifier] = sensor, place
    for code, sensor in sensors.items():
        for wanted in (*sensor.proxies, *([sensor.parent] if sensor.parent else [])):
            if wanted not in sensors:
                key = "Proxy" if wanted in sensor.proxies else "Codifier"
                where = f"{source}: Sensors[{places[code]}] ({code}): Sensor.{key}"
                raise SettingsError(f"{where}: there is no sensor with the Codifier {wanted}")
    groups = _groups(found.get("Multicast"), source)
    return OldConfig(source, groups.get("Control-Channel"), groups.get("Data-Channel"), sensors)


def slug(text: str, most: int = 32) -> str:
    """`text` as a sensor's name here: small letters, digits and _; empty where nothing of it can be kept."""
    found = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    found = found if not found or found[0].isalpha() else f"s_{found}"
    return found[:most].rstrip("_")


def node_name(text: str, most: int = 63) -> str:
    """`text` as a node's name here; empty where nothing of it can be kept."""
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
        raise SettingsError(f"{where}: takes an object with Control-Channel and Data-Channel")
    found = {}
    for channel in ("Control-Channel", "Data-Channel"):
        about = entry.get(channel)
        if about is None:
            continue
        here = f"{where}: {channel}"
        if not isinstance(about, dict):
            raise SettingsError(f"{here}: takes an object with Address and Port")
        port = about.get("Port")
        if isinstance(port, str) and port.isascii() and port.isdigit() and len(port) < 6:
            port = int(port)  # the old programs took texts too
        if type(port) is not int or not 0 < port < 65_536:
            raise SettingsError(f"{here}: Port takes a port, 1 to 65535, not {about.get('Port')!r:.40}")
        address = about.get("Address")
        if not isinstance(address, str) or not is_group((address, port)):
            raise SettingsError(f"{here}: Address takes a multicast group, as 226.0.0.221, not {address!r:.40}")
        found[channel] = address, port
    return found


def _sensor(entry: Any, where: str) -> OldSensor:
    if not isinstance(entry, dict):
        raise SettingsError(f"{where}: takes an object with a Codifier")
    code = _code(entry.get("Codifier"), f"{where}: Codifier")
    where = f"{where} ({code})"
    about = entry.get("Sensor", {})
    if not isinstance(about, dict):
        raise SettingsError(f"{where}: Sensor takes an object")
    kind = _text(about if "Type" in about else entry, "Type", where)
    data_type = entry.get("DataType", entry.get("Type") if entry.get("Type") in DATA_TYPES else "float")
    if data_type not in DATA_TYPES:
        raise SettingsError(f"{where}: DataType takes {', '.join(DATA_TYPES)}, not {data_type!r:.40}")
    control = entry.get("Control", "")
    if not isinstance(control, str):
        raise SettingsError(f'{where}: Control takes "enabled", not {control!r:.40}')
    active = entry.get("Active", True)
    if not isinstance(active, bool):
        raise SettingsError(f"{where}: Active takes true or false, not {active!r:.40}")
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
        raise SettingsError(f"{where}: Sensor.Proxy takes a list of objects, each with a Codifier")
    return {
        _code(entry.get("Codifier"), f"{where}: Sensor.Proxy[{place}].Codifier"): entry
        for place, entry in enumerate(entries)
    }


def _code(value: Any, where: str) -> str:
    try:
        return read_codifier(value)
    except (ValueError, TypeError):
        raise SettingsError(f"{where} takes two characters, as C4, not {value!r:.40}") from None


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise SettingsError(f"{where}: {key} takes a text, not {value!r:.40}")
    return value


def _seconds(entry: Mapping[str, Any], key: str, where: str) -> float:
    value = entry.get(key, 60)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= 1e9
        or not math.isfinite(value)
    ):
        raise SettingsError(f"{where}: {key} takes seconds, a number above 0, not {value!r:.40}")
    return float(value)
