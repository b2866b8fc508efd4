"""Decoder of one MQTT message, whose content is untrusted: numbers, words, times and availability.

Errors: NoValue if the message contains no value for a channel, SensorError if it contains something else instead.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.core.errors import BadArgument, SensorError
from pigeonpost.core.tolerant_json import FAILURE_WORDS, SPACE, read_tolerant_json
from pigeonpost.core.units import conversion
from pigeonpost.sensors.contract import at_path, shown_json
from pigeonpost.sensors.mqtt_presets import NOT_A_SENSOR, ONLINE_WORDS, UNIT_WORDS, WORDS, Place

_LATEST_NUMBER = 1e14  # a time: the year 5138 in ms
_WORD_BYTES = 100  # bytes of an availability message that are read


class NoValue(SensorError):
    """A message has no value for a channel: it is of another kind, or its field is missing or null."""


class Message:
    """Content of a message, which is untrusted. It is decoded at most once.

    Args:
        payload: The message.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._document: Any = None  # the decoded JSON, or the BadArgument that it caused
        self._is_decoded = False

    def value_in(self, places: Sequence[Place], unit_key: str = "", unit: str = "") -> float:
        """Return the number at the first of `places` that has one, converted to the unit of the channel.

        Args:
            places: The places in the messages of this topic; at least one.
            unit_key: Key in the message that contains the unit of the number, or an empty string.
            unit: Unit of the channel, to which the number is converted if the message contains another one.

        Raises:
            NoValue: The message is of another kind, or the field is missing, null or an empty text at all places.
            SensorError: The content is not a number, or several sensors in the message have such a field.
        """
        for place in places[:-1]:
            with contextlib.suppress(NoValue):
                return self._converted(place, unit_key, unit)
        return self._converted(places[-1], unit_key, unit)

    def _converted(self, place: Place, unit_key: str, unit: str) -> float:
        path = self._nested(place.path) if place.is_nested else place.path
        value = self.value_at(path) * place.factor
        given = self._field(unit_key) if unit_key else None
        measured = UNIT_WORDS.get(given, unit) if isinstance(given, str) else unit
        return conversion(measured, {measured: unit}).value(value)

    def _field(self, key: str) -> Any:
        document = self._decoded()
        return document.get(key) if isinstance(document, dict) else None

    def _nested(self, path: Sequence[str]) -> Sequence[str]:
        """Return the path in the only sensor of the message that has the field `path`."""
        document = self._decoded()
        sensors = document.items() if isinstance(document, dict) else ()
        found = [
            (name, *path)
            for name, content in sensors
            if isinstance(content, dict) and path[0] in content and name not in NOT_A_SENSOR
        ]
        if len(found) > 1:
            names = " and ".join(f"{'.'.join(keys)!r:.60}" for keys in found[:4])
            raise SensorError(f"several sensors have a value {path[0]!r:.60}: set `path` to {names}")
        if not found:
            raise NoValue(f"no sensor in the message has {path[0]!r:.60}; found: {shown_json(document)}")
        return found[0]

    def time_ms(self, path: Sequence[str], unit_ms: int = 1) -> int | None:
        """Return the time in the message, in ms since 1970 (UTC), or None if it contains none at `path`.

        Args:
            path: Path of the time: a text with a zone, or a number.
            unit_ms: Unit of a number, in ms.
        """
        try:
            found = at_path(self._decoded(), path)
            if isinstance(found, str):
                return parse_rfc3339(found)
        except (SensorError, ValueError):
            return None
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        return int(found * unit_ms) if is_number and abs(found) < _LATEST_NUMBER else None

    def availability(self) -> bool | None:
        """Return True if the message reports that a device is online, False if offline, None if it reports neither."""
        try:
            found = self._field("state")
        except NoValue:  # a text, such as Offline
            found = None
        if found is None:
            found = self._payload[:_WORD_BYTES].decode(errors="replace").strip(SPACE)
        return ONLINE_WORDS.get(found.lower()) if isinstance(found, str) else None

    def value_at(self, path: Sequence[str]) -> float:
        """Return a number in the message, or the number of a word: see mqtt_presets.WORDS.

        Args:
            path: Path of the number in a JSON message; empty if the complete message is the number.

        Raises:
            NoValue: The message is of another kind, or its field is missing, null or an empty text.
            SensorError: The content is not a number.
        """
        if not path:
            return self._whole()
        try:
            found = at_path(self._decoded(), path)
        except SensorError as error:
            raise NoValue(str(error)) from None
        value = _as_number(found)
        if value is not None:
            return value
        is_empty = found is None or (isinstance(found, str) and not found.strip())
        raise (NoValue if is_empty else SensorError)(f"not a number at {shown_path(path)}: {shown_json(found)}")

    def _whole(self) -> float:
        try:
            content = self._payload.decode().strip(SPACE)
        except UnicodeDecodeError as error:
            raise NoValue(f"{self._preview()} cannot be read: {error}") from None
        if len(content) > 1 and content[0] == content[-1] == '"':  # a text in JSON, as for a channel with a path
            content = content[1:-1].strip(SPACE)
        value = _as_number(content)
        if value is not None:
            return value
        is_failure = content.lower() in FAILURE_WORDS or _is_too_large(content)
        raise (SensorError if is_failure else NoValue)(
            f"not a number: {self._preview()}{'; set `path`' if content.startswith(('{', '[')) else ''}"
        )

    def _decoded(self) -> Any:
        if not self._is_decoded:
            self._is_decoded = True
            try:
                self._document = read_tolerant_json(self._payload)
            except BadArgument as error:
                self._document = error
        if isinstance(self._document, BadArgument):
            raise NoValue(f"{self._preview()} cannot be read: {self._document}")
        return self._document

    def _preview(self) -> str:
        return repr(self._payload[:60].decode(errors="replace")) + ("..." if len(self._payload) > 60 else "")


def shown_path(path: Sequence[str]) -> str:
    """Return the keys of a `path` for an error message."""
    return f"{'.'.join(path)!r:.60}"


def _as_number(found: Any) -> float | None:
    """Return the finite number in decoded JSON or a text, or None."""
    if isinstance(found, str):
        found = found.strip()
        if found.lower() in WORDS:
            return WORDS[found.lower()]
        if "_" in found or not found.isascii():  # Python accepts underscores, and digits of all scripts
            return None
    elif not isinstance(found, int | float):
        return None
    try:
        value = float(found)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _is_too_large(content: str) -> bool:
    """Return True for the text of a number beyond the range of a float, such as 1e999."""
    try:
        return not math.isfinite(float(content))
    except ValueError:
        return False
