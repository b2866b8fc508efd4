"""Sensor kind "json": values in a JSON document, fetched over HTTP or read from a file.

    url = "http://192.168.1.20/status"      and for each channel a path into the document:
    path = "emeters.0.power"                keys and list indices (-1: the last), separated by dots;
    path = 'data."room.temp"'               in quotes where a key contains a dot

    preset = "nest"         a thermostat, through Google's Smart Device Management
    preset = "dwarfpool"    a mining pool whose responses have Dwarfpool's format

Errors: SensorError with the HTTP status and the server's message, or with what the document has in place of the value.
Sources: developers.google.com/nest/device-access (traits, limits, authorize); RFC 6749, section 6 (refreshing a token).
The format of Dwarfpool's responses is from its own description, which outlived the pool.
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

_EARLY_S = 60.0  # before it expires a token is no longer used
_SLACK_S = 0.05  # by which one slot may be earlier than the one before

_NEST_URL = "https://smartdevicemanagement.googleapis.com/v1"
_TOKEN_URL = "https://www.googleapis.com/oauth2/v4/token"


# -------------------------------------------------------------------------------------------------------- its options


def secret(value: Any) -> str:
    """Parser for a text, or its place: `env:NAME` (a variable), `file:PATH` (its first line; expands $VARIABLES)."""
    found = text(value)
    where, _, name = found.partition(":")
    if where == "env":
        if not os.environ.get(name):
            raise ValueError(f"is to be found in the variable {name}, which is not set")
        found = os.environ[name]
    elif where == "file":
        try:
            with open(os.path.expandvars(name), encoding="utf-8") as file:
                found = file.readline(65_536).strip()
        except (OSError, ValueError) as error:
            raise ValueError(f"is to be found in a file that does not read ({error})") from None
    if not re.fullmatch(r"[ -~]+", found):
        raise ValueError("takes a text of plain characters, env:NAME or file:PATH")
    return found


def _headers(value: Any) -> dict[str, str]:
    found = {name: secret(entry) for name, entry in a_table(value).items()}
    for name in found:
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise ValueError(f"takes names of HTTP headers as keys, which {name!r} is not")
    return found


def _words(value: Any) -> dict[str, float]:
    return {word: number(-1e15, 1e15)(entry) for word, entry in a_table(value).items()}


OPTIONS = (
    Option("channels", a_table, None, "a table for each channel, by its name"),
    Option("url", text, None, "what is asked: http://... or https://..."),
    Option("file", text, None, "instead of a url: a file to read"),
    Option("headers", _headers, {}, "what is sent along, as {Authorization = 'Bearer ...'}"),
    Option("timeout", number(0.1, 300), 10.0, "seconds for the whole of it"),
    Option("every", number(0, 86_400), None, "seconds between two requests; in between the last answer counts"),
    Option("ca", text, None, "a file with the certificates to trust, for a device that has made its own"),
    Option("preset", one_of("nest", "dwarfpool"), None, "whose answers they are: the paths are known then"),
    Option("project", text, None, "of nest: the project of Device Access"),
    Option("device", text, None, "of nest: the device"),
    Option("client_id", secret, None, "of nest: OAuth client id"),
    Option("client_secret", secret, None, "of nest: OAuth client secret"),
    Option("refresh_token", secret, None, "of nest: OAuth refresh token"),
    Option("token_url", text, _TOKEN_URL, "of nest: where access tokens are had"),
)
CHANNEL_OPTIONS = (
    Option("path", dotted_path, None, "where the value stands in the answer, as result.0.value"),
    Option("words", _words, {}, "what texts stand for, as {ON = 1, OFF = 0}"),
    Option("value", text, None, "of a preset: which of its values; without it the channel's own name"),
    Option("worker", text, None, "of dwarfpool: of which worker, instead of all"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), None, "of the value"),
    *CALIBRATION,
)


class Known(NamedTuple):
    """A value of a preset."""

    path: str
    unit: str = ""
    words: Mapping[str, float] = {}


def _trait(name: str) -> str:
    trait, _, field = name.partition(".")
    return f'traits."sdm.devices.traits.{trait}".{field}'


NEST = {
    "temperature": Known(_trait("Temperature.ambientTemperatureCelsius"), "°C"),
    "humidity": Known(_trait("Humidity.ambientHumidityPercent"), "%"),
    "heat_setpoint": Known(_trait("ThermostatTemperatureSetpoint.heatCelsius"), "°C"),
    "cool_setpoint": Known(_trait("ThermostatTemperatureSetpoint.coolCelsius"), "°C"),
    "heating": Known(_trait("ThermostatHvac.status"), words={"HEATING": 1, "COOLING": 0, "OFF": 0}),
    "cooling": Known(_trait("ThermostatHvac.status"), words={"COOLING": 1, "HEATING": 0, "OFF": 0}),
    "eco": Known(_trait("ThermostatEco.mode"), words={"MANUAL_ECO": 1, "OFF": 0}),
    "fan": Known(_trait("Fan.timerMode"), words={"ON": 1, "OFF": 0}),
    "online": Known(_trait("Connectivity.status"), words={"ONLINE": 1, "OFFLINE": 0}),
}
POOL = {
    "hashrate": Known("total_hashrate", "MH/s"), "hashrate_calculated": Known("total_hashrate_calculated", "MH/s"),
    "balance": Known("wallet_balance"), "earning_24_hours": Known("earning_24_hours"),
    "immature_earning": Known("immature_earning"), "last_payment": Known("last_payment_amount"),
}  # fmt: skip
WORKER = {
    "hashrate": Known("hashrate", "MH/s"), "hashrate_calculated": Known("hashrate_calculated", "MH/s"),
    "alive": Known("alive"), "below_threshold": Known("hashrate_below_threshold"),
    "since_submit": Known("second_since_submit", "s"),
}  # fmt: skip
# What a preset gives when no channels are said; others come and go with the thermostat's mode.
_USUAL = {"nest": ("temperature", "humidity"), "dwarfpool": ("hashrate", "balance")}
# Google allows ten requests a minute; a pool counts its shares over half an hour.
_USUAL_EVERY_S = {"nest": 60.0, "dwarfpool": 60.0, None: 0.0}


# -------------------------------------------------------------------------------------------------------- the source


class JsonSource(SensorSource):
    """One JSON document, with a number for each channel."""

    def __init__(
        self,
        channels: Sequence[Channel],
        ask: Callable[[], Any],
        find: Mapping[str, Callable[[Any], Number]],
        every_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.channels = channels
        self._ask, self._find, self._every_s, self._now = ask, find, every_s, now
        self._answer: Any = None
        self._next_s = -math.inf

    def read(self) -> Readings:
        if self._now() >= self._next_s:
            self._next_s = self._now() + self._every_s - _SLACK_S
            try:
                self._answer = self._ask()
            except SensorError as error:
                self._answer = SensorError(str(error))  # without all that its traceback holds
        if isinstance(self._answer, SensorError):
            raise SensorError(str(self._answer))
        readings: dict[str, Number | SensorError] = {}
        for channel in self.channels:
            try:
                readings[channel.name] = self._find[channel.name](self._answer)
            except SensorError as error:
                readings[channel.name] = error
        return readings


def find(path: Sequence[str], words: Mapping[str, float], answer: Any) -> float:
    """Return the number in `answer` at a path. Raises SensorError, which says what is there instead."""
    there = at_path(answer, path)
    if isinstance(there, str) and there in words:
        return words[there]
    is_number = isinstance(there, int | float) or (isinstance(there, str) and _NUMBER(there.strip()))
    try:
        value = float(there) if is_number else math.nan
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        hint = "; words says what texts stand for" if isinstance(there, str) else ""
        raise SensorError(f"no number at {'.'.join(path)!r:.60}: there is {shown_json(there)}{hint}")
    return value


# Possessive: a long text that is no number after all would take its length squared (a fuzz test found it).
_NUMBER = re.compile(r"[-+]?([0-9]++(?:\.[0-9]*+)?|\.[0-9]++)([eE][-+]?[0-9]++)?").fullmatch


def _calibrated_at(keys: Sequence[str], words: Mapping[str, float], chosen: Mapping[str, Any], answer: Any) -> float:
    value = calibrated(find(keys, words, answer), chosen)
    if not math.isfinite(value):
        raise SensorError("it is too large after gain and offset")
    return value


def read_file(name: str) -> Any:
    """Return the JSON document in a file. Raises SensorError."""
    try:
        with open(name, "rb") as file:
            return decoded(file.read(LONGEST_ANSWER + 1), name)
    except SensorError:
        raise
    except OSError as error:
        raise SensorError(f"{name}: {error.strerror}") from error


# ------------------------------------------------------------------------------------------------ what presets ask


class AccessToken:
    """An OAuth access token, fetched with the refresh token, and kept until shortly before it expires."""

    def __init__(self, web: JsonFetcher, url: str, form: str, now: Callable[[], float] = time.monotonic) -> None:
        self._web, self._url, self._form, self._now = web, url, form, now
        self._token, self._until_s = "", 0.0

    def get(self) -> str:
        """Return the token. Raises SensorError when it cannot be fetched."""
        if not self._token or self._now() >= self._until_s:
            self.forget()
            try:
                answer = self._web.ask(self._url, form=self._form)
            except HttpStatusError as error:
                raise SensorError(f"{error}: no access token; docs/sensors.md: how a refresh token is made") from None
            token = answer.get("access_token") if isinstance(answer, dict) else None
            if not isinstance(token, str) or not re.fullmatch("[!-~]+", token):
                raise SensorError(f"{split_url(self._url).shown}: answers without an access_token")
            lasts_s = answer.get("expires_in", 3600)
            lasts_s = float(lasts_s) if isinstance(lasts_s, int | float) and 0 < lasts_s < 1e9 else 3600.0
            self._token, self._until_s = token, self._now() + max(lasts_s - _EARLY_S, lasts_s / 2)
        return self._token

    def forget(self) -> None:
        """Discard the token, which was rejected."""
        self._token = ""


def ask_with(token: AccessToken, web: JsonFetcher, url: str) -> Any:
    """Fetch `url` with the token; a token that is rejected is fetched again, once."""
    for again in (True, False):
        try:
            return web.ask(url, {"Authorization": f"Bearer {token.get()}"})
        except HttpStatusError as error:
            if error.status != 401 or not again:
                raise
            token.forget()
    raise AssertionError


def pools_answer(ask: Callable[[], Any]) -> Any:
    """Return the pool's response. Raises SensorError for its own errors, which have HTTP status 200."""
    answer = ask()
    if isinstance(answer, dict) and answer.get("error"):
        raise SensorError(f"the pool says {answer.get('error_code')!r:.80}")
    return answer


# ------------------------------------------------------------------------------------------------------ from settings


def make(settings: Mapping[str, Any], where: str) -> JsonSource:
    """The source that a [[sensor]] table with kind = "json" describes.

    Raises SettingsError, which begins with `where`.
    """
    options = read_options(settings, OPTIONS, where)
    preset = options["preset"]
    for key in _OF_NEST:
        if key in settings and preset != "nest":
            raise SettingsError(f'{where}: {key} is for preset = "nest"')
    if preset == "nest" and options["file"] is not None:
        raise SettingsError(f'{where}: preset = "nest" takes no file')
    if preset != "nest" and (options["url"] is None) == (options["file"] is None):
        raise SettingsError(f"{where}: takes either a url or a file")
    if not options["channels"] and preset:
        options["channels"] = {name: {} for name in _USUAL[preset]}
    finders: dict[str, Callable[[Any], Number]] = {}
    channels = []
    example = 'power = {path = "emeters.0.power"}'
    for name, chosen, here in channel_tables(options["channels"], CHANNEL_OPTIONS, where, example):
        keys, known = _place(name, chosen, preset, here)
        words = {**known.words, **chosen["words"]}
        finders[name] = functools.partial(_calibrated_at, keys, words, chosen)
        channels.append(Channel(name, known.unit if chosen["unit"] is None else chosen["unit"]))
    every_s = _USUAL_EVERY_S[preset] if options["every"] is None else options["every"]
    return JsonSource(channels, _asker(options, where), finders, every_s)


_OF_NEST = ("project", "device", "client_id", "client_secret", "refresh_token", "token_url")


def _place(name: str, chosen: Mapping[str, Any], preset: str | None, where: str) -> tuple[tuple[str, ...], Known]:
    """Return the path of a channel's value, and the preset's facts about it."""
    worker, value = chosen["worker"], chosen["value"]
    if worker is not None and preset != "dwarfpool":
        raise SettingsError(f'{where}: worker is for preset = "dwarfpool"')
    if chosen["path"] is not None:
        if worker is not None or value is not None:
            raise SettingsError(f"{where}: takes either a path, or a value of the preset")
        return chosen["path"], Known("")
    if preset is None:
        raise SettingsError(f'{where}: path is missing, as in path = "result.0.value"')
    table = NEST if preset == "nest" else POOL if worker is None else WORKER
    known = table.get(value or name)
    if known is None:
        raise SettingsError(f"{where}: value takes {', '.join(table)}, not {value or name!r}; or path says where it is")
    return (*(() if worker is None else ("workers", worker)), *dotted_path(known.path)), known


def _asker(options: Mapping[str, Any], where: str) -> Callable[[], Any]:
    """Return the function that fetches or reads the document."""
    if options["file"] is not None:
        ask: Callable[[], Any] = functools.partial(read_file, options["file"])
    else:
        for key in ("url", "token_url"):
            try:
                has_user = split_url(options[key] or _NEST_URL).has_user
            except ValueError as error:
                raise SettingsError(f"{where}: {key} {error}") from None
            if has_user:
                hint = "give them as headers = {Authorization = 'Basic ...'}"
                raise SettingsError(f"{where}: {key} takes no user and password; {hint}")
        try:
            web = JsonFetcher(options["timeout"], options["ca"], options["headers"])
        except SettingsError as error:
            raise SettingsError(f"{where}: {error}") from None
        if options["preset"] == "nest":
            return _nest_asker(options, web, where)
        ask = functools.partial(web.ask, options["url"])
    return functools.partial(pools_answer, ask) if options["preset"] == "dwarfpool" else ask


def _nest_asker(options: Mapping[str, Any], web: JsonFetcher, where: str) -> Callable[[], Any]:
    from urllib.parse import quote, urlencode

    for key in _OF_NEST:
        if not options[key]:
            raise SettingsError(f'{where}: preset = "nest" needs {key}; docs/sensors.md: where it is had')
    project, device = (quote(options[key].rpartition("/")[2]) for key in ("project", "device"))
    url = f"{(options['url'] or _NEST_URL).rstrip('/')}/enterprises/{project}/devices/{device}"
    fields = {key: options[key] for key in ("client_id", "client_secret", "refresh_token")}
    token = AccessToken(web, options["token_url"], urlencode({**fields, "grant_type": "refresh_token"}))
    return functools.partial(ask_with, token, web, url)
