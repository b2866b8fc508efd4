"""Transport of the older system "pimonitor": a device posts readings to `/`, in °F and with its local wall clock.

    POST /  {"api_hash": "<sha256 hex of the api key>", "location": "Kitchen", "timestamp": "11/20/2026 15:36:10",
             "sensors": [{"sensorType": "DHT22", "temperature": 71.6, "humidity": 40.1}]}
    ->  [11/20/2026 15:36:10] Successfully received and inserted into database.

Readings are stored in °C and UTC; unit and time zone of a location are settings (docs/coming-from-pimonitor.md).

Runs in the threads of the web server. `_lock` guards the names given to sensors, and is held while a new one is
written. Errors: answered with a line of text, in the words of the original. "Successfully received" is sent only for
what is stored.
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
from pigeonpost.server.unnumbered_sources import Claim, ExternalReading
from pigeonpost.transports.contract import PassiveTransport
from protocol import LARGEST_INTEGER, NODE_NAME, NODE_NAME_TAKES, Number

if TYPE_CHECKING:
    from pigeonpost.core.config import Settings
    from pigeonpost.transports.contract import ServerContext

log = logging.getLogger(__name__)

STORED = "[{}] Successfully received and inserted into database."
NOT_JSON = "An unexpected error occured.  Try again."  # spelled as its clients know it
_BODY_BYTES = 64 << 10
_MOST_SENSORS, _MOST_VALUES = 64, 64  # of one report, and of one sensor in it
_MOST_NAMES = 1000  # of one location, ever
_RETRY_S = 10

_TIMESTAMP = re.compile(r"[0-9]{2}/[0-9]{2}/[0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2}").fullmatch
_TAKES_TIMESTAMP = "timestamp takes MM/DD/YYYY HH:MM:SS, from 1970 on"
_LAST_MS = 253_402_300_800_000  # the year 10000, in milliseconds since 1970
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?").fullmatch
_TYPE_KEYS = ("sensorType", "sensortype", "type")
_NAME_KEYS = ("sensorName", "name", "id")
_UNITS = {"humidity": "%", "pressure": "hPa"}
_TEMPERATURE = re.compile(r"(?:.*_)?(?:temperature|temp|dew_?point|heat_?index)[0-9]*(?:_.*?)??(?:_([cf]))?").fullmatch

LOCATION = (
    Option("name", text, None, "as the device says it"),
    Option("node", matching(NODE_NAME, NODE_NAME_TAKES), None, "under which name it is kept (made of the location's)"),
    Option("unit", one_of("F", "C"), None, "of its temperatures (as [pimonitor] unit)"),
    Option("zone", text, None, 'its time zone, as "Europe/Berlin" (as [pimonitor] zone)'),
)


class BadDeviceReport(ValueError):
    """An invalid request: the text of the response, and its HTTP status."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Location(NamedTuple):
    """The settings of a location. zone: None is that of this machine; is_listed: it has a [[location]] of its own."""

    node: str
    unit: str
    zone: tzinfo | None
    is_listed: bool = False


class DeviceReading(NamedTuple):
    """One value: the type and the place of its sensor, its kind (`temperature`), and the value itself.

    value  as it is stored: temperatures in °C; None: the sensor failed
    """

    sensor: str
    kind: str
    value: Number | None
    unit: str


# --------------------------------------------------------------------------------------------------- what was said


def read_report(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body. Raises BadDeviceReport, in the words of the original."""
    try:
        said = read_json(body.decode("utf-8").strip())
    except (UnicodeDecodeError, BadArgument):
        raise BadDeviceReport(NOT_JSON) from None
    if type(said) is not dict:
        raise BadDeviceReport(NOT_JSON)
    return said


def read_text(said: Mapping[str, Any], key: str) -> str:
    """Return a required text of at most 200 letters. Raises BadDeviceReport."""
    value = said.get(key)
    if type(value) is not str or not value.strip() or len(value) > 200:
        raise BadDeviceReport(f"{key} is a text, and has to be there")
    return value.strip()


def read_timestamp(stamp: str, zone: tzinfo | None, now_ms: int) -> int:
    """Return a device's wall clock time in milliseconds since 1970.

    zone    of the device; None: this machine's own
    now_ms  decides for the hour that comes twice when summer time ends: the one that is nearer to now. A time that was
            skipped when summer time began is of a clock that was not set forward, and is converted accordingly.
    """
    try:
        if not _TIMESTAMP(stamp):
            raise ValueError
        moment = datetime.strptime(stamp, "%m/%d/%Y %H:%M:%S")
        moments = [_utc_ms(moment.replace(fold=fold), zone) for fold in (0, 1)]
        if not all(0 <= time_ms < _LAST_MS for time_ms in moments):
            raise ValueError
    except (ValueError, OverflowError, OSError):
        raise BadDeviceReport(_TAKES_TIMESTAMP) from None
    earlier, later = moments
    if earlier > later:  # it was skipped: with the offset that held before
        return earlier
    return min(moments, key=lambda time_ms: abs(now_ms - time_ms))


def _utc_ms(moment: datetime, zone: tzinfo | None) -> int:
    # Not by astimezone(), which for a skipped hour of this machine's zone takes the other offset.
    return round((moment if zone is None else moment.replace(tzinfo=zone)).timestamp() * 1000)


def read_sensors(sensors: Any, unit: str) -> list[DeviceReading]:
    """Return every value of every sensor. Raises BadDeviceReport, which names the fault."""
    if type(sensors) is not list or not 0 < len(sensors) <= _MOST_SENSORS:
        raise BadDeviceReport(f"sensors is a list of 1 to {_MOST_SENSORS} sensors")
    readings: list[DeviceReading] = []
    seen: dict[str, int] = {}
    for number, sensor in enumerate(sensors, 1):
        if type(sensor) is not dict or len(sensor) > _MOST_VALUES:
            raise BadDeviceReport(f"sensor {number} is an object with a sensorType and its values")
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
    """Return what identifies a sensor of a device: its type and, where it has one, its name."""
    said = [str(sensor[key]) for key in (*_TYPE_KEYS, *_NAME_KEYS) if type(sensor.get(key)) in (str, int)]
    return snake("_".join(said)[:100])[:20].strip("_") or "sensor"


def _reading(sensor: str, key: str, value: Any, unit: str, number: int) -> DeviceReading:
    kind = snake(key[:100])[:30].strip("_")
    if not kind:
        raise BadDeviceReport(f"sensor {number}: a value's name has letters")
    if type(value) is str and _NUMBER(value.strip()):
        value = float(value)
    is_number = type(value) is float or (type(value) is int and abs(value) <= LARGEST_INTEGER)
    if value is not None and not is_number:
        raise BadDeviceReport(f"sensor {number}: {kind} is a number, or null")
    temperature = _TEMPERATURE(kind)
    if temperature:  # one that says its own unit, as `temp_c`, is believed
        if value is not None and (temperature[1] or unit).upper() == "F":
            value = round((value - 32) / 1.8, 3)
        return DeviceReading(sensor, kind, value, "°C")
    return DeviceReading(sensor, kind, value, _UNITS.get(kind, ""))


def snake(text: str) -> str:
    """Return `heatIndex`, `Heat Index` and `heat-index` as `heat_index`: a valid name of a sensor."""
    spread = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text)
    plain = re.sub(r"[^a-z0-9]+", "_", spread.lower()).strip("_")
    return f"n{plain}" if plain[:1].isdigit() else plain


def node_name(location: str) -> str:
    """Return the name of the node for a location: `Living room` becomes `Living-room`."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", location).strip("._-")
    if not plain:
        raise BadDeviceReport(
            "location has no letter or digit that a node's name could be made of; [[location]] can give one"
        )
    return plain[:63].strip("._-")


# -------------------------------------------------------------------------------------------------------- names


class Names:
    """Permanent names for the values of a location's sensors: given once, and never changed.

    The first sensor that brings a temperature has `temperature`, and any other has its type in front,
    `bmp280_temperature`. So a device with one sensor has plain names; and when the first one of two fails and is left
    out of a report, the other does not take its place, also not after a restart: what was given is kept in a file.
    """

    def __init__(self, path: str, faults: Faults) -> None:
        """path: of the file."""
        self._lock = threading.Lock()
        self._file = JsonFile(path, "the names of sensors", _texts, faults, is_mended=True)

    def of(self, node: str, readings: Sequence[DeviceReading]) -> list[str]:
        """Return the names of these readings, in their order.

        Raises DamagedFile when the file cannot be read: with other names, values would go into other sensors' rows.
        Raises DiskError when new names cannot be saved.
        """
        keys = [f"{reading.sensor}/{reading.kind}" for reading in readings]
        with self._lock:
            known = self._file.now()
            names = known.get(node, {})
            new = dict(names)
            for key, reading in zip(keys, readings, strict=True):
                if key not in new:
                    new[key] = _free_name(reading, set(new.values()))
            if len(new) > _MOST_NAMES:
                raise BadDeviceReport(
                    f"{node} has had {_MOST_NAMES} different values; that is as many as are kept apart"
                )
            if len(new) != len(names):
                self._file.write({**known, node: new})
        return [new[key] for key in keys]


def _texts(entry: Any) -> dict[str, str]:
    return {key: str(name) for key, name in entry.items()}


def _free_name(reading: DeviceReading, taken: set[str]) -> str:
    wanted = reading.kind
    if wanted not in taken:
        return wanted
    wanted = stem = f"{reading.sensor}_{reading.kind}"[:32].strip("_")
    number = 1
    while wanted in taken:
        number += 1
        wanted = f"{stem[:28]}_{number}"
    return wanted


# ----------------------------------------------------------------------------------------------------------- the end


class PiMonitorTransport(PassiveTransport):
    """`POST /` and `GET /index`."""

    def __init__(self, context: ServerContext) -> None:
        """Raises SettingsError for a location or a time zone that does not fit."""
        settings = context.settings
        self._context = context
        self._hash = hashlib.sha256(settings["pimonitor", "api_key"].encode()).hexdigest()
        where = settings.origin("pimonitor", "zone")
        self._usual = Location("", settings["pimonitor", "unit"], _zone(settings["pimonitor", "zone"], where))
        self._locations = _locations(settings, self._usual)
        self._names = Names(os.path.join(context.data, PIMONITOR), context.faults)
        self.endpoints: Sequence[Endpoint] = [
            Endpoint("POST", "/", self.answer, _BODY_BYTES),
            Endpoint("GET", "/index", lambda request: _answer("pimonitor: readings are posted to /")),
        ]

    def answer(self, request: Request) -> Response:
        """Store what a device reports. Returns the response."""
        stamp = ""
        try:
            said = read_report(request.body)
            self._check_key(said.get("api_hash"), request.peer)
            place, stamp = read_text(said, "location"), read_text(said, "timestamp")
            at = self._locations.get(place) or self._usual._replace(node=node_name(place))
            time_ms = read_timestamp(stamp, at.zone, self._context.clock.wall_ms())
            readings = read_sensors(said.get("sensors"), at.unit)
            self._store(Claim(at.node, "pimonitor", is_listed=at.is_listed), readings, time_ms)
        except BadDeviceReport as error:
            return _answer(str(error), error.status)
        except AuthFailed as error:
            return _answer(f"[{stamp}] Not stored: {error}. Give the location another name.", 403)
        except (NotStored, DiskError, DamagedFile) as error:
            answer = _answer(f"[{stamp}] Not stored, try again later: {error}", 503)
            return answer._replace(headers={"Retry-After": str(_RETRY_S)})
        return _answer(STORED.format(stamp))

    def _check_key(self, said: Any, peer: str) -> None:
        throttle = self._context.throttle
        delay_s, retry_after_s = throttle.begin(peer)  # before the look: people choose this key, so it can be guessed
        right = type(said) is str and hmac.compare_digest(said.strip().lower().encode(), self._hash.encode())
        if right and not retry_after_s:
            throttle.succeeded(peer)
        else:
            text = f"a pimonitor report with {'another' if said else 'no'} api_hash, or after many such"
            wrong_secrets.wait(self._context, log, peer, text, LONGEST_DELAY_S if retry_after_s else delay_s)
            raise BadDeviceReport("api_hash is not the SHA-256 of this server's api key ([pimonitor] api_key).", 401)

    def _store(self, claim: Claim, readings: Sequence[DeviceReading], time_ms: int) -> None:
        self._context.unnumbered_sources.caller(claim)  # before names are kept for a node that is not taken
        names = self._names.of(claim.node, readings)
        values = {name: reading.value for name, reading in zip(names, readings, strict=True)}
        units = {name: reading.unit for name, reading in zip(names, readings, strict=True)}
        errors = {name: "the device sent no value" for name, value in values.items() if value is None}
        self._context.unnumbered_sources.store(ExternalReading(claim, values, units, time_ms, errors))


def _answer(said: str, status: int = 200) -> Response:
    return Response(said.encode(), TEXT, status, {"Cache-Control": "no-store"})


def _locations(settings: Settings, usual: Location) -> dict[str, Location]:
    """Return the [[location]] tables, by the name that devices send."""
    found: dict[str, Location] = {}
    for number, table in enumerate(settings.tables.get("location", []), 1):
        where = f"{settings.file}: [[location]] {number}"
        options = read_options(table, LOCATION, where)
        name = options["name"]
        if not name or name in found:
            raise SettingsError(f"{where}: name {'stands twice' if name else 'is missing'}; each location has its own")
        try:
            node = options["node"] or node_name(name)
        except BadDeviceReport as error:
            raise SettingsError(f"{where}: {error}") from None
        zone = usual.zone if options["zone"] is None else _zone(options["zone"], where)
        found[name] = Location(node, options["unit"] or usual.unit, zone, is_listed=True)
    return found


def _zone(name: str, where: str) -> tzinfo | None:
    """Return the time zone of that name; None: this machine's own."""
    if not name:
        return None
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (OSError, ValueError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise SettingsError(f"{where}: zone {name!r} does not read: {error}") from None
    except KeyError:
        raise SettingsError(
            f'{where}: there is no time zone {name!r} here; it takes one like "Europe/Berlin", and the package tzdata'
        ) from None
