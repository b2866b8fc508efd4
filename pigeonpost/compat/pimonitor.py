"""Transport of the older system "pimonitor": a device posts readings to `/`, in °F and in its local time.

    POST /  {"api_hash": "<sha256 hex of the api key>", "location": "Kitchen", "timestamp": "11/20/2026 15:36:10",
             "sensors": [{"sensorType": "DHT22", "temperature": 71.6, "humidity": 40.1}]}
    ->  [11/20/2026 15:36:10] Successfully received and inserted into database.

Readings are stored in °C and UTC. The unit and the time zone of a location are settings
(docs/coming-from-pimonitor.md).

The functions run in the threads of the web server. `Names._lock` guards the channel names and is held while a new name
is written to the disk. Errors are answered with a line of text, in the wording of the original system.
"Successfully received" is sent only after the readings have been stored.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.auth.throttle import LONGEST_DELAY_S
from pigeonpost.compat import wrong_secrets
from pigeonpost.core.config import Option, matching, one_of, read_options, text
from pigeonpost.core.data_folder import PIMONITOR
from pigeonpost.core.errors import AuthFailed, BadArgument, DamagedFile, DiskError, NotStored, SettingsError
from pigeonpost.core.faults import Faults
from pigeonpost.core.json_file import JsonFile
from pigeonpost.core.strict_json import read_json
from pigeonpost.http.message import TEXT, Endpoint, Request, Response
from pigeonpost.sensors.chips import described
from pigeonpost.sensors.ranges import ImpossibleValue, Range
from pigeonpost.server.unnumbered_sources import Claim, ExternalReading
from pigeonpost.transports.contract import PassiveTransport
from protocol import LARGEST_INTEGER, NODE_NAME, NODE_NAME_TAKES, Number

if TYPE_CHECKING:
    from pigeonpost.core.config import Settings
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

STORED = "[{}] Successfully received and inserted into database."
NOT_JSON = "An unexpected error occured.  Try again."  # spelled as in the original, which clients may compare
_BODY_BYTES = 64 << 10
_MOST_SENSORS, _MOST_VALUES = 64, 64  # sensors per report, values per sensor
_MOST_NAMES = 1000  # names per location; they are permanent
_RETRY_S = 10

_TIMESTAMP = re.compile(r"[0-9]{2}/[0-9]{2}/[0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2}").fullmatch
_BAD_TIMESTAMP = "timestamp must be MM/DD/YYYY HH:MM:SS, from 1970 on"
_LAST_MS = 253_402_300_800_000  # the year 10000, in milliseconds since 1970
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?").fullmatch
_TYPE_KEYS = ("sensorType", "sensortype", "type")
_NAME_KEYS = ("sensorName", "name", "id")
_UNITS = {"humidity": "%", "pressure": "hPa"}
_TEMPERATURE = re.compile(r"(?:.*_)?(?:temperature|temp|dew_?point|heat_?index)[0-9]*(?:_.*?)??(?:_([cf]))?").fullmatch

LOCATION = (
    Option("name", text, None, "name of the location, as sent by the device"),
    Option("node", matching(NODE_NAME, NODE_NAME_TAKES), None, "name of the node (default: made from `name`)"),
    Option("unit", one_of("F", "C"), None, "unit of the temperatures (default: [pimonitor] unit)"),
    Option("zone", text, None, 'time zone, such as "Europe/Berlin" (default: [pimonitor] zone)'),
)


class BadDeviceReport(ValueError):
    """Invalid request.

    Args:
        text: Text of the response.
        status: HTTP status of the response.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Location(NamedTuple):
    """Settings of a location.

    Attributes:
        node: Name of the node.
        unit: Unit of temperatures: `F` or `C`.
        zone: Time zone, or None for the local time of this machine.
        is_listed: True if the location has a [[location]] table in the settings.
    """

    node: str
    unit: str
    zone: tzinfo | None
    is_listed: bool = False


class DeviceReading(NamedTuple):
    """Reading in a report.

    Attributes:
        sensor: Type of the sensor and, if it has one, its name.
        kind: Quantity, such as `temperature`.
        value: Value as it is stored, with temperatures in °C; None if the sensor failed.
        unit: Unit as it is stored.
    """

    sensor: str
    kind: str
    value: Number | None
    unit: str


# --------------------------------------------------------------------------------------------------------- reports


def read_report(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`. Raise BadDeviceReport with the text of the original system if it is invalid."""
    try:
        report = read_json(body.decode("utf-8").strip())
    except (UnicodeDecodeError, BadArgument):
        raise BadDeviceReport(NOT_JSON) from None
    if type(report) is not dict:
        raise BadDeviceReport(NOT_JSON)
    return report


def read_text(report: Mapping[str, Any], key: str) -> str:
    """Return the required string `key` in `report`. Raise BadDeviceReport if it is missing or too long."""
    value = report.get(key)
    if type(value) is not str or not value.strip() or len(value) > 200:
        raise BadDeviceReport(f"{key} must be a string of 1 to 200 characters")
    return value.strip()


def read_timestamp(stamp: str, zone: tzinfo | None, now_ms: int) -> int:
    """Convert the local time of a device.

    When summer time ends, one hour occurs twice. Of the two possible times, the one closer to `now_ms` is used. When
    summer time begins, one hour is skipped. A time in this hour comes from a clock that was not set forward, so it is
    converted with the offset before the change.

    Args:
        stamp: Time in the format MM/DD/YYYY HH:MM:SS.
        zone: Time zone of the device, or None for that of this machine.
        now_ms: Present time in milliseconds since 1970 (UTC).

    Returns:
        The time in milliseconds since 1970 (UTC).

    Raises:
        BadDeviceReport: The time is invalid, or strptime raises ValueError for it.
    """
    try:
        if not _TIMESTAMP(stamp):
            raise ValueError
        moment = datetime.strptime(stamp, "%m/%d/%Y %H:%M:%S")
        moments = [_utc_ms(moment.replace(fold=fold), zone) for fold in (0, 1)]
        if not all(0 <= time_ms < _LAST_MS for time_ms in moments):
            raise ValueError
    except (ValueError, OverflowError, OSError):
        raise BadDeviceReport(_BAD_TIMESTAMP) from None
    earlier, later = moments
    if earlier > later:  # a skipped time: use the offset that was valid before the change
        return earlier
    return min(moments, key=lambda time_ms: abs(now_ms - time_ms))


def _utc_ms(moment: datetime, zone: tzinfo | None) -> int:
    # astimezone() cannot be used: for a skipped hour in the zone of this machine it uses the other offset.
    return round((moment if zone is None else moment.replace(tzinfo=zone)).timestamp() * 1000)


def read_sensors(sensors: Any, unit: str) -> list[DeviceReading]:
    """Return the readings of all sensors in a report.

    Args:
        sensors: The value of `sensors` in the report.
        unit: Unit of temperatures whose name does not contain it: `F` or `C`.

    Returns:
        The readings, in the order of the report.

    Raises:
        BadDeviceReport: The value is invalid.
    """
    if type(sensors) is not list or not 0 < len(sensors) <= _MOST_SENSORS:
        raise BadDeviceReport(f"sensors must be a list of 1 to {_MOST_SENSORS} sensors")
    readings: list[DeviceReading] = []
    seen: dict[str, int] = {}
    for number, sensor in enumerate(sensors, 1):
        if type(sensor) is not dict or len(sensor) > _MOST_VALUES:
            raise BadDeviceReport(
                f"sensor {number} must be an object with a sensorType and at most {_MOST_VALUES} values"
            )
        name = _sensor_name(sensor)
        seen[name] = seen.get(name, 0) + 1
        name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        found = [
            _reading(name, key, value, unit, number)
            for key, value in sensor.items()
            if key not in _TYPE_KEYS and key not in _NAME_KEYS
        ]
        if not found:
            raise BadDeviceReport(f"sensor {number} has no value")
        readings += found
    return readings


def _sensor_name(sensor: Mapping[str, Any]) -> str:
    """Return the identifier of a sensor: its type and, if it has one, its name."""
    parts = [str(sensor[key]) for key in (*_TYPE_KEYS, *_NAME_KEYS) if type(sensor.get(key)) in (str, int)]
    return snake("_".join(parts)[:100])[:20].strip("_") or "sensor"


def _reading(sensor: str, key: str, value: Any, unit: str, number: int) -> DeviceReading:
    kind = snake(key[:100])[:30].strip("_")
    if not kind:
        raise BadDeviceReport(f"sensor {number}: the name of each value must contain a letter or a digit")
    if type(value) is str and _NUMBER(value.strip()):
        value = float(value)
    is_number = type(value) is float or (type(value) is int and abs(value) <= LARGEST_INTEGER)
    if value is not None and not is_number:
        raise BadDeviceReport(f"sensor {number}: {kind} must be a number or null")
    temperature = _TEMPERATURE(kind)
    if temperature:  # a unit in the name, such as `temp_c`, overrides the setting
        if value is not None and (temperature[1] or unit).upper() == "F":
            value = round((value - 32) / 1.8, 3)
        return DeviceReading(sensor, kind, value, "°C")
    return DeviceReading(sensor, kind, value, _UNITS.get(kind, ""))


def snake(text: str) -> str:
    """Return `text` as a valid channel name: `heat_index` for `heatIndex`, `Heat Index` or `heat-index`."""
    spread = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text)
    plain = re.sub(r"[^a-z0-9]+", "_", spread.lower()).strip("_")
    return f"n{plain}" if plain[:1].isdigit() else plain


def node_name(location: str) -> str:
    """Return the name of the node for `location`: `Living room` becomes `Living-room`.

    Raises:
        BadDeviceReport: The location contains no letter or digit.
    """
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", location).strip("._-")
    if not plain:
        raise BadDeviceReport(
            "location has no letter or digit for the name of a node; set the name in a [[location]] table"
        )
    return plain[:63].strip("._-")


# -------------------------------------------------------------------------------------------------------- names


class Names:
    """Permanent channel names for the values of the sensors of each location.

    The temperature of the first sensor is called `temperature`. That of any other sensor has the sensor type as a
    prefix: `bmp280_temperature`. A device with one sensor therefore has short names. The names are stored in a file and
    never change. If the first of two sensors fails and is missing from a report, the other therefore keeps its name.

    Args:
        path: Path of the file.
        faults: Faults of the server, to which JsonFile adds errors of the file.
    """

    def __init__(self, path: str, faults: Faults) -> None:
        self._lock = threading.Lock()
        self._file = JsonFile(path, "the names of sensors", _read_names, faults, auto_restore=True)

    def of(self, node: str, readings: Sequence[DeviceReading]) -> list[str]:
        """Return the channel names of readings, in their order.

        Args:
            node: Name of the node.
            readings: Readings of one report.

        Raises:
            BadDeviceReport: There are too many names.
            DamagedFile: The file cannot be read. With new names, values could be stored under the name of another
                sensor.
            DiskError: New names cannot be saved.
        """
        keys = [f"{reading.sensor}/{reading.kind}" for reading in readings]
        with self._lock:
            all_names = self._file.now()
            node_names = all_names.get(node, {})
            channel_names = dict(node_names)
            for key, reading in zip(keys, readings, strict=True):
                if key not in channel_names:
                    channel_names[key] = _free_name(reading, set(channel_names.values()))
            if len(channel_names) > _MOST_NAMES:
                raise BadDeviceReport(f"{node} would have more than {_MOST_NAMES} channels, the maximum")
            if len(channel_names) != len(node_names):
                self._file.write({**all_names, node: channel_names})
        return [channel_names[key] for key in keys]


def _read_names(entry: Any) -> dict[str, str]:
    return {key: str(name) for key, name in entry.items()}


def _free_name(reading: DeviceReading, taken: set[str]) -> str:
    name = reading.kind
    if name not in taken:
        return name
    name = stem = f"{reading.sensor}_{reading.kind}"[:32].strip("_")
    number = 1
    while name in taken:
        number += 1
        name = f"{stem[:28]}_{number}"
    return name


# ------------------------------------------------------------------------------------------------------- transport


class PiMonitorTransport(PassiveTransport):
    """Transport with the endpoints `POST /` and `GET /index`.

    Args:
        context: Context of the server.

    Raises:
        SettingsError: A location or a time zone in the settings is invalid.
    """

    def __init__(self, context: ServerContext) -> None:
        settings = context.settings
        self._context = context
        self._hash = hashlib.sha256(settings["pimonitor", "api_key"].encode()).hexdigest()
        where = settings.origin("pimonitor", "zone")
        self._default = Location("", settings["pimonitor", "unit"], _zone(settings["pimonitor", "zone"], where))
        self._locations = _locations(settings, self._default)
        self._names = Names(os.path.join(context.data, PIMONITOR), context.faults)
        self.endpoints: Sequence[Endpoint] = [
            Endpoint("POST", "/", self.answer, _BODY_BYTES),
            Endpoint("GET", "/index", lambda request: _answer("pimonitor: readings are posted to /")),
        ]

    def answer(self, request: Request) -> Response:
        """Store the report in `request` and return the response."""
        stamp = ""
        try:
            report = read_report(request.body)
            self._check_key(report.get("api_hash"), request.peer)
            name, stamp = read_text(report, "location"), read_text(report, "timestamp")
            location = self._locations.get(name) or self._default._replace(node=node_name(name))
            time_ms = read_timestamp(stamp, location.zone, self._context.clock.wall_ms())
            readings = read_sensors(report.get("sensors"), location.unit)
            self._store(Claim(location.node, "pimonitor", is_listed=location.is_listed), readings, time_ms)
        except BadDeviceReport as error:
            return _answer(str(error), error.status)
        except AuthFailed as error:
            return _answer(f"[{stamp}] Not stored: {error}. Give the location another name.", 403)
        except (NotStored, DiskError, DamagedFile) as error:
            response = _answer(f"[{stamp}] Not stored, try again later: {error}", 503)
            return response._replace(headers={"Retry-After": str(_RETRY_S)})
        return _answer(STORED.format(stamp))

    def _check_key(self, api_hash: Any, peer: str) -> None:
        throttle = self._context.throttle
        # The attempt is counted before the comparison: users choose this key, so it may be possible to guess it.
        delay_s, retry_after_s = throttle.begin(peer)
        is_correct = type(api_hash) is str and hmac.compare_digest(
            api_hash.strip().lower().encode(), self._hash.encode()
        )
        if is_correct and not retry_after_s:
            throttle.succeeded(peer)
        else:
            text = (
                f"a pimonitor report with {'a wrong' if api_hash else 'no'} api_hash, or after too many failed attempts"
            )
            wrong_secrets.wait(self._context, log, peer, text, LONGEST_DELAY_S if retry_after_s else delay_s)
            raise BadDeviceReport("api_hash is not the SHA-256 of this server's api key ([pimonitor] api_key).", 401)

    def _store(self, claim: Claim, readings: Sequence[DeviceReading], time_ms: int) -> None:
        self._context.unnumbered_sources.caller(claim)  # raises an error before names are stored for a refused node
        names = self._names.of(claim.node, readings)
        units = {name: reading.unit for name, reading in zip(names, readings, strict=True)}
        faults = {name: _fault(reading) for name, reading in zip(names, readings, strict=True)}
        errors = {name: fault for name, fault in faults.items() if fault}
        values = {
            name: None if name in errors else reading.value for name, reading in zip(names, readings, strict=True)
        }
        self._context.unnumbered_sources.store(ExternalReading(claim, values, units, time_ms, errors))


def _fault(reading: DeviceReading) -> str:
    """Return why `reading` has no value, or an empty text: the chip that its sensorType names can limit it."""
    if reading.value is None:
        return "the device sent no value"
    limits = described(reading.kind, reading.unit, (reading.sensor, reading.kind))
    try:
        if limits is not None:
            Range(*limits, reading.sensor).check(reading.value, reading.unit)
    except ImpossibleValue as error:
        return str(error)
    return ""


def _answer(text: str, status: int = 200) -> Response:
    return Response(text.encode(), TEXT, status, {"Cache-Control": "no-store"})


def _locations(settings: Settings, default: Location) -> dict[str, Location]:
    """Return the locations in the [[location]] tables by the name that devices send."""
    found: dict[str, Location] = {}
    for number, table in enumerate(settings.tables.get("location", []), 1):
        where = f"{settings.file}: [[location]] {number}"
        options = read_options(table, LOCATION, where)
        name = options["name"]
        if not name or name in found:
            raise SettingsError(
                f"{where}: name {'occurs twice' if name else 'is missing'}; each location must have its own name"
            )
        try:
            node = options["node"] or node_name(name)
        except BadDeviceReport as error:
            raise SettingsError(f"{where}: {error}") from None
        zone = default.zone if options["zone"] is None else _zone(options["zone"], where)
        found[name] = Location(node, options["unit"] or default.unit, zone, is_listed=True)
    return found


def _zone(name: str, where: str) -> tzinfo | None:
    """Return the time zone with this name, or None (the zone of this machine) if the name is empty."""
    if not name:
        return None
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (OSError, ValueError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise SettingsError(f"{where}: zone {name!r} cannot be read: {error}") from None
    except KeyError:
        raise SettingsError(
            f"{where}: there is no time zone {name!r} on this machine; use a name such as"
            ' "Europe/Berlin", and install the package tzdata'
        ) from None
