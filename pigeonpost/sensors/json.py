"""Sensor kind "json": values in a JSON document, fetched over HTTP or read from a file.

    url = "http://192.168.1.20/status"      URL of the document; each channel has a path into it:
    path = "emeters.0.power"                keys and list indices (-1: the last), separated by dots
    path = 'data."room.temp"'               a key that contains a dot is in quotes

    preset = "nest"         a thermostat, through Google's Smart Device Management
    preset = "dwarfpool"    a mining pool whose responses have Dwarfpool's format

Each reading is a whole answer: a value that is null, missing, or not a number (nan, "unavailable") is null in the
sample. The other values of the document count (tolerant_json).

Errors: SensorError with the HTTP status and the server's message, or with the part of the document that was found
instead of the value.
Sources: developers.google.com/nest/device-access (traits, limits, authorize); RFC 6749, section 6 (refreshing a token).
The format of Dwarfpool's responses is from its documentation, which is still available although the pool has closed.
"""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.config import Option, a_table, matching, number, one_of, read_options, text
from pigeonpost.core.errors import SensorError, SettingsError
from pigeonpost.core.http_client import split_url
from pigeonpost.core.json_fetch import LONGEST_ANSWER, HttpStatusError, JsonFetcher, decoded
from pigeonpost.sensors.chips import described
from pigeonpost.sensors.contract import (
    CALIBRATION,
    Channel,
    Readings,
    SensorSource,
    at_path,
    calibrated,
    channel_tables,
    dotted_path,
    shown_json,
)
from protocol import UNIT, Number

_EARLY_S = 60.0  # a token is no longer used in the last 60 s before it expires
_SLACK_S = 0.05  # tolerance for the interval `every`, because slots are not exactly equidistant

_NEST_URL = "https://smartdevicemanagement.googleapis.com/v1"
_TOKEN_URL = "https://www.googleapis.com/oauth2/v4/token"


# -------------------------------------------------------------------------------------------------------- options


def secret(value: Any) -> str:
    """Return the secret that `value` contains or refers to.

    `env:NAME` refers to an environment variable, `file:PATH` to the first line of a file; variables such as
    $CREDENTIALS_DIRECTORY in PATH are expanded. Every other text is the secret itself.

    Raises:
        ValueError: The variable or the file does not exist, or the secret contains invalid characters.
    """
    found = text(value)
    where, _, name = found.partition(":")
    if where == "env":
        if not os.environ.get(name):
            raise ValueError(f"refers to the variable {name}, which is not set")
        found = os.environ[name]
    elif where == "file":
        try:
            with open(os.path.expandvars(name), encoding="utf-8") as file:
                found = file.readline(65_536).strip()
        except (OSError, ValueError) as error:
            raise ValueError(f"refers to a file that cannot be read ({error})") from None
    if not re.fullmatch(r"[ -~]+", found):
        raise ValueError("takes a string of ASCII characters, env:NAME or file:PATH")
    return found


def _headers(value: Any) -> dict[str, str]:
    found = {name: secret(entry) for name, entry in a_table(value).items()}
    for name in found:
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise ValueError(f"takes names of HTTP headers as keys, and {name!r} is not a valid name")
    return found


def _words(value: Any) -> dict[str, float]:
    return {word: number(-1e15, 1e15)(entry) for word, entry in a_table(value).items()}


OPTIONS = (
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("url", text, None, "URL of the document: http://... or https://..."),
    Option("file", text, None, "file to read, instead of a URL"),
    Option("headers", _headers, {}, "additional HTTP headers, such as {Authorization = 'Bearer ...'}"),
    Option("timeout", number(0.1, 300), 10.0, "time limit for a request, in seconds"),
    Option("every", number(0, 86_400), None, "seconds between two requests; in between, the last response is used"),
    Option("ca", text, None, "file with trusted certificates, for a device with a self-signed certificate"),
    Option("preset", one_of("nest", "dwarfpool"), None, "service whose paths are predefined"),
    Option("project", text, None, "nest: project of Device Access"),
    Option("device", text, None, "nest: device in the project"),
    Option("client_id", secret, None, "nest: OAuth client id"),
    Option("client_secret", secret, None, "nest: OAuth client secret"),
    Option("refresh_token", secret, None, "nest: OAuth refresh token"),
    Option("token_url", text, _TOKEN_URL, "nest: URL that issues access tokens"),
)
CHANNEL_OPTIONS = (
    Option("path", dotted_path, None, "path of the value in the document, such as result.0.value"),
    Option("words", _words, {}, "numbers for texts, such as {ON = 1, OFF = 0}"),
    Option("value", text, None, "name of a value of the preset (default: the name of the channel)"),
    Option("worker", text, None, "dwarfpool: worker whose value is read, instead of the total"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), None, "unit of the value"),
    *CALIBRATION,
)


class PresetValue(NamedTuple):
    """A predefined value: its path, its unit and the numbers for its texts."""

    path: str
    unit: str = ""
    words: Mapping[str, float] = {}


def _trait(name: str) -> str:
    trait, _, field = name.partition(".")
    return f'traits."sdm.devices.traits.{trait}".{field}'


NEST = {
    "temperature": PresetValue(_trait("Temperature.ambientTemperatureCelsius"), "°C"),
    "humidity": PresetValue(_trait("Humidity.ambientHumidityPercent"), "%"),
    "heat_setpoint": PresetValue(_trait("ThermostatTemperatureSetpoint.heatCelsius"), "°C"),
    "cool_setpoint": PresetValue(_trait("ThermostatTemperatureSetpoint.coolCelsius"), "°C"),
    "heating": PresetValue(_trait("ThermostatHvac.status"), words={"HEATING": 1, "COOLING": 0, "OFF": 0}),
    "cooling": PresetValue(_trait("ThermostatHvac.status"), words={"COOLING": 1, "HEATING": 0, "OFF": 0}),
    "eco": PresetValue(_trait("ThermostatEco.mode"), words={"MANUAL_ECO": 1, "OFF": 0}),
    "fan": PresetValue(_trait("Fan.timerMode"), words={"ON": 1, "OFF": 0}),
    "online": PresetValue(_trait("Connectivity.status"), words={"ONLINE": 1, "OFFLINE": 0}),
}
POOL = {
    "hashrate": PresetValue("total_hashrate", "MH/s"),
    "hashrate_calculated": PresetValue("total_hashrate_calculated", "MH/s"),
    "balance": PresetValue("wallet_balance"), "earning_24_hours": PresetValue("earning_24_hours"),
    "immature_earning": PresetValue("immature_earning"), "last_payment": PresetValue("last_payment_amount"),
}  # fmt: skip
WORKER = {
    "hashrate": PresetValue("hashrate", "MH/s"),
    "hashrate_calculated": PresetValue("hashrate_calculated", "MH/s"),
    "alive": PresetValue("alive"), "below_threshold": PresetValue("hashrate_below_threshold"),
    "since_submit": PresetValue("second_since_submit", "s"),
}  # fmt: skip
# Default channels of a preset. The other values of a thermostat exist only in some of its modes.
_USUAL = {"nest": ("temperature", "humidity"), "dwarfpool": ("hashrate", "balance")}
# Google allows ten requests per minute; a pool calculates its values over half an hour.
_USUAL_EVERY_S = {"nest": 60.0, "dwarfpool": 60.0, None: 0.0}


# -------------------------------------------------------------------------------------------------------- the source


class JsonSource(SensorSource):
    """Source that finds a number for each channel in one JSON document."""

    def __init__(
        self,
        channels: Sequence[Channel],
        fetch: Callable[[], Any],
        find: Mapping[str, Callable[[Any], Number]],
        every_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the source without reading.

        Args:
            channels: The channels.
            fetch: Function that returns the decoded document.
            find: For each channel, the function that finds its number in the document.
            every_s: Time in seconds for which a document is used before it is read again.
            now: Clock that returns seconds.
        """
        self.channels = channels
        self._fetch, self._find, self._every_s, self._now = fetch, find, every_s, now
        self._document: Any = None
        self._next_s = -math.inf

    def read(self) -> Readings:
        if self._now() >= self._next_s:
            self._next_s = self._now() + self._every_s - _SLACK_S
            try:
                self._document = self._fetch()
            except SensorError as error:
                # A new exception, because the traceback of the old one would keep objects alive.
                self._document = SensorError(str(error))
        if isinstance(self._document, SensorError):
            raise SensorError(str(self._document))
        readings: dict[str, Number | SensorError] = {}
        for channel in self.channels:
            try:
                readings[channel.name] = self._find[channel.name](self._document)
            except SensorError as error:
                readings[channel.name] = error
        return readings


def find(path: Sequence[str], words: Mapping[str, float], answer: Any) -> float:
    """Return the number at a path of a document.

    Args:
        path: Keys and list indices.
        words: Numbers for texts.
        answer: The decoded document.

    Raises:
        SensorError: There is no number; the message contains what was found instead.
    """
    content = at_path(answer, path)
    if isinstance(content, str) and content in words:
        return words[content]
    is_number = isinstance(content, int | float) or (isinstance(content, str) and _NUMBER(content.strip()))
    try:
        value = float(content) if is_number else math.nan
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        is_word = isinstance(content, str) and not is_number and not _IS_NOT_FINITE(content)
        hint = "; set `words` to convert texts" if is_word else ""
        raise SensorError(f"no number at {'.'.join(path)!r:.60}, found: {shown_json(content)}{hint}")
    return value


# The quantifiers are possessive. Otherwise the time for a text that is not a number would be quadratic in its length.
_NUMBER = re.compile(r"[-+]?([0-9]++(?:\.[0-9]*+)?|\.[0-9]++)([eE][-+]?[0-9]++)?").fullmatch

_IS_NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE).fullmatch


def _calibrated_at(keys: Sequence[str], words: Mapping[str, float], chosen: Mapping[str, Any], answer: Any) -> float:
    value = calibrated(find(keys, words, answer), chosen)
    if not math.isfinite(value):
        raise SensorError("the value is too large after calibration")
    return value


def read_file(name: str) -> Any:
    """Return the decoded JSON document in the file `name`.

    Raises:
        SensorError: The file cannot be read, or is not valid JSON.
    """
    try:
        with open(name, "rb") as file:
            return decoded(file.read(LONGEST_ANSWER + 1), name)
    except SensorError:
        raise
    except OSError as error:
        raise SensorError(f"{name}: {error.strerror}") from error


# ------------------------------------------------------------------------------------------------ presets


class AccessToken:
    """OAuth access token, which is fetched with a refresh token and used until shortly before it expires."""

    def __init__(self, web: JsonFetcher, url: str, form: str, now: Callable[[], float] = time.monotonic) -> None:
        """Create the token without fetching it.

        Args:
            web: HTTP client.
            url: URL that issues access tokens.
            form: Form with the refresh token, which is sent to the URL.
            now: Clock that returns seconds.
        """
        self._web, self._url, self._form, self._now = web, url, form, now
        self._token, self._until_s = "", 0.0

    def get(self) -> str:
        """Return the token, and fetch it first if necessary.

        Raises:
            SensorError: The token cannot be fetched.
        """
        if not self._token or self._now() >= self._until_s:
            self.forget()
            try:
                answer = self._web.ask(self._url, form=self._form)
            except HttpStatusError as error:
                raise SensorError(
                    f"{error}: no access token; docs/sensors.md describes how to create a refresh token"
                ) from None
            token = answer.get("access_token") if isinstance(answer, dict) else None
            if not isinstance(token, str) or not re.fullmatch("[!-~]+", token):
                raise SensorError(f"{split_url(self._url).shown}: the response contains no access_token")
            life_s = answer.get("expires_in", 3600)
            life_s = float(life_s) if isinstance(life_s, int | float) and 0 < life_s < 1e9 else 3600.0
            self._token, self._until_s = token, self._now() + max(life_s - _EARLY_S, life_s / 2)
        return self._token

    def forget(self) -> None:
        """Discard the token after it was rejected."""
        self._token = ""


def fetch_with_token(token: AccessToken, web: JsonFetcher, url: str) -> Any:
    """Return the document at `url`, fetched with an access token.

    If the token is rejected, it is fetched again, but only once.

    Args:
        token: The access token.
        web: HTTP client.
        url: URL of the document.

    Raises:
        SensorError: The document or the token cannot be fetched.
    """
    for again in (True, False):
        try:
            return web.ask(url, {"Authorization": f"Bearer {token.get()}"})
        except HttpStatusError as error:
            if error.status != 401 or not again:
                raise
            token.forget()
    raise AssertionError


def fetch_from_pool(fetch: Callable[[], Any]) -> Any:
    """Return the response of a pool, which the function `fetch` fetches.

    Raises:
        SensorError: The response contains an error. A pool sends errors with the HTTP status 200.
    """
    answer = fetch()
    if isinstance(answer, dict) and answer.get("error"):
        raise SensorError(f"the pool reports the error {answer.get('error_code')!r:.80}")
    return answer


# ------------------------------------------------------------------------------------------------------ settings


def make(settings: Mapping[str, Any], where: str) -> JsonSource:
    """Return the source for a [[sensor]] table with kind = "json".

    Args:
        settings: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid.
    """
    options = read_options(settings, OPTIONS, where)
    preset = options["preset"]
    for key in _OF_NEST:
        if key in settings and preset != "nest":
            raise SettingsError(f'{where}: {key} is only for preset = "nest"')
    if preset == "nest" and options["file"] is not None:
        raise SettingsError(f'{where}: preset = "nest" cannot have a `file`')
    if preset != "nest" and (options["url"] is None) == (options["file"] is None):
        raise SettingsError(f"{where}: must have either `url` or `file`")
    if not options["channels"] and preset:
        options["channels"] = {name: {} for name in _USUAL[preset]}
    finders: dict[str, Callable[[Any], Number]] = {}
    channels = []
    example = 'power = {path = "emeters.0.power"}'
    for name, chosen, channel_where in channel_tables(options["channels"], CHANNEL_OPTIONS, OPTIONS, where, example):
        keys, preset_value = _locate(name, chosen, preset, channel_where)
        words = {**preset_value.words, **chosen["words"]}
        finders[name] = functools.partial(_calibrated_at, keys, words, chosen)
        unit = preset_value.unit if chosen["unit"] is None else chosen["unit"]
        channels.append(Channel(name, unit, possible=described(name, unit, keys)))
    every_s = _USUAL_EVERY_S[preset] if options["every"] is None else options["every"]
    return JsonSource(channels, _make_fetch(options, where), finders, every_s)


_OF_NEST = ("project", "device", "client_id", "client_secret", "refresh_token", "token_url")


def _locate(
    name: str, chosen: Mapping[str, Any], preset: str | None, where: str
) -> tuple[tuple[str, ...], PresetValue]:
    """Return the path of a channel's value, and the preset's entry for it (empty if the channel has its own path)."""
    worker, value = chosen["worker"], chosen["value"]
    if worker is not None and preset != "dwarfpool":
        raise SettingsError(f'{where}: worker is only for preset = "dwarfpool"')
    if chosen["path"] is not None:
        if worker is not None or value is not None:
            raise SettingsError(f"{where}: must have either `path` or `value`, not both")
        return chosen["path"], PresetValue("")
    if preset is None:
        raise SettingsError(f'{where}: path is missing; for example: path = "result.0.value"')
    table = NEST if preset == "nest" else POOL if worker is None else WORKER
    preset_value = table.get(value or name)
    if preset_value is None:
        raise SettingsError(f"{where}: value must be one of {', '.join(table)}, not {value or name!r}; or set `path`")
    return (*(() if worker is None else ("workers", worker)), *dotted_path(preset_value.path)), preset_value


def _make_fetch(options: Mapping[str, Any], where: str) -> Callable[[], Any]:
    """Return the function that fetches or reads the document."""
    if options["file"] is not None:
        fetch: Callable[[], Any] = functools.partial(read_file, options["file"])
    else:
        for key in ("url", "token_url"):
            try:
                has_user = split_url(options[key] or _NEST_URL).has_user
            except ValueError as error:
                raise SettingsError(f"{where}: {key} {error}") from None
            if has_user:
                hint = "use headers = {Authorization = 'Basic ...'}"
                raise SettingsError(f"{where}: {key} must not contain a user and a password; {hint}")
        try:
            web = JsonFetcher(options["timeout"], options["ca"], options["headers"])
        except SettingsError as error:
            raise SettingsError(f"{where}: {error}") from None
        if options["preset"] == "nest":
            return _make_nest_fetch(options, web, where)
        fetch = functools.partial(web.ask, options["url"])
    return functools.partial(fetch_from_pool, fetch) if options["preset"] == "dwarfpool" else fetch


def _make_nest_fetch(options: Mapping[str, Any], web: JsonFetcher, where: str) -> Callable[[], Any]:
    from urllib.parse import quote, urlencode

    for key in _OF_NEST:
        if not options[key]:
            raise SettingsError(f'{where}: preset = "nest" requires {key}; see docs/sensors.md')
    project, device = (quote(options[key].rpartition("/")[2]) for key in ("project", "device"))
    url = f"{(options['url'] or _NEST_URL).rstrip('/')}/enterprises/{project}/devices/{device}"
    fields = {key: options[key] for key in ("client_id", "client_secret", "refresh_token")}
    token = AccessToken(web, options["token_url"], urlencode({**fields, "grant_type": "refresh_token"}))
    return functools.partial(fetch_with_token, token, web, url)
