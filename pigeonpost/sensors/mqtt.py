"""Sensor kind "mqtt": values that other programs publish through an MQTT broker, with one topic per channel.

    topic = "zigbee2mqtt/kitchen"    {"temperature": 21.4, "humidity": 48, "linkquality": 120}
    path = "temperature"
    topic = "zwave/cellar/49/0/Air_temperature"    {"time": 1795188970123, "value": 9.5}
    path = "value"

The publisher can be Zigbee2MQTT, Z-Wave JS UI, Tasmota or any other program. mqtt_client, which uses paho-mqtt, is
imported when the source is created. If paho-mqtt is missing, the import is tried again at each reading.

Each channel has the last value that a message contained for it, for the time `fresh`. A message without a value for the
channel (another kind of message, a field that is missing or null) changes nothing: devices publish what they measured
last, in several messages. A field whose content is not a number, such as nan or "unavailable", means that the device
cannot measure at the moment: the channel fails until the next value. The other fields of the message count.

The thread of paho-mqtt evaluates each message, and stores the results with one assignment per channel in `_last` and
`_without_value`, then one per topic in `_received_s`. The thread of the source reads them. The event `_news` is set for
each message; the first reading waits for it.

Errors: SensorError for a channel without a value for too long, with the reason and the fault of the connection. A
broker that cannot be reached does not prevent the start. The connection is tried again after 1 s; this time doubles
with each attempt, up to 60 s.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.config import Option, a_table, matching, number, read_options, switch, text
from pigeonpost.core.errors import BadArgument, MissingLibrary, SensorError, SettingsError
from pigeonpost.core.tolerant_json import FAILURE_WORDS, SPACE, read_tolerant_json
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

if TYPE_CHECKING:
    from pigeonpost.core.mqtt_client import MqttConnection

LONGEST_PAYLOAD = 65_536  # bytes; longer messages are not evaluated
_STOP_S = 2.0
FIRST_WAIT_S = 3.0  # maximum time for which the first reading waits for retained messages
_REMEMBERED = 64  # payloads per topic by which a retained message that is sent again is recognised
_WORDS = {"true": 1, "on": 1, "open": 1, "false": 0, "off": 0, "closed": 0}


def _topic(value: Any) -> str:
    # With wildcards (MQTT 3.1.1, section 4.7) several devices could send values for one channel.
    if not isinstance(value, str) or set("+#\0") & set(value):
        raise ValueError("takes one topic, without the wildcards + and #")
    if not 0 < len(value.encode()) < 65_536:
        raise ValueError("takes a text of up to 65535 bytes")
    return value


OPTIONS = (
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("host", text, "127.0.0.1", "host name or address of the broker"),
    Option("port", number(0, 65_535, whole=True), 0, "port of the broker; 0: 1883, or 8883 with TLS"),
    Option("user", text, "", "user name for the broker"),
    Option("password", text, "", "password for the broker"),
    Option("tls", switch, False, "encrypt the connection and verify the certificate of the broker"),
    Option(
        "ca", text, "", "PEM file of the authority that signed the broker's certificate (default: those of this system)"
    ),
    Option("keepalive", number(5, 3600, whole=True), 60, "seconds without data after which the connection is checked"),
)
CHANNEL_OPTIONS = (
    Option("topic", _topic, None, "topic to which the node subscribes"),
    Option(
        "path", dotted_path, (), "path of the number in a JSON message; without it, the complete message is the number"
    ),
    Option("fresh", number(1, 864_000), 3600.0, "seconds for which a value is used; after that, the channel is stale"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), "", "unit of the value"),
    *CALIBRATION,
)


class NoValue(SensorError):
    """A message has no value for a channel: it is of another kind, or its field is missing or null."""


class LastValue(NamedTuple):
    """Last value of a channel, with the time of its arrival (time.monotonic).

    Attributes:
        value: The value after calibration; None if the message contained something else instead of a number.
        fault: What it contained instead; empty if there is a value.
        at_s: Time of arrival.
    """

    value: Number | None
    fault: str
    at_s: float


class MqttSource(SensorSource):
    """Source with one connection to a broker, and the last value of each channel."""

    def __init__(self, options: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """Create the source without connecting.

        Args:
            options: Options of the source.
            chosen: Options of each channel, by channel name.
            where: File and table, with which each error message begins.

        Raises:
            SettingsError: The file in the option `ca` does not contain a certificate.
        """
        self.channels = [
            Channel(
                name,
                entry["unit"],
                possible=described(name, entry["unit"], (*entry["topic"].split("/"), *entry["path"])),
            )
            for name, entry in chosen.items()
        ]
        self._chosen = chosen
        self._topics = sorted({entry["topic"] for entry in chosen.values()})
        self._received_s: dict[str, float] = {}  # arrival of the last message of each topic (time.monotonic)
        self._last: dict[str, LastValue] = {}
        self._without_value: dict[str, str] = {}  # why the last message without a value for the channel had none
        # Used only in the thread of paho-mqtt: hashes of the last payloads, and of the retained payload, of each topic.
        self._known: dict[str, deque[int]] = {topic: deque(maxlen=_REMEMBERED) for topic in self._topics}
        self._retained: dict[str, int] = {}
        self._news = Event()
        self._options, self._where = options, where
        self._started = False
        try:
            self._broker: MqttConnection | None = self._connection()
        except MissingLibrary:  # not an error of the settings: the readings report it, and other sources continue
            self._broker = None

    def _connection(self) -> MqttConnection:
        """Return a connection that is not open yet."""
        from pigeonpost.core.mqtt_client import MqttConnection  # imported only if needed, because it uses much memory

        access = {("mqtt", key): self._options[key] for key in ("host", "port", "user", "password", "tls", "ca")}
        return MqttConnection(
            access, "pigeonpost-sensors", self._topics, self._on_message, on_retained=self._on_retained, is_mqtt_3=True,
            keepalive_s=self._options["keepalive"], where=f'{self._where}: kind = "mqtt"',
        )  # fmt: skip

    def read(self) -> Readings:
        if self._broker is None:
            try:
                self._broker = self._connection()
            except MissingLibrary as error:
                raise SensorError(str(error)) from None
        if not self._started:
            self._start(self._broker)
        now_s = time.monotonic()
        readings: dict[str, Number | SensorError] = {}
        for name, chosen in self._chosen.items():
            try:
                readings[name] = self._value(name, chosen, now_s, self._broker)
            except SensorError as error:
                readings[name] = error
        return readings

    def close(self) -> None:
        if self._started and self._broker is not None:
            self._started = False
            self._broker.stop(_STOP_S)

    def _start(self, broker: MqttConnection) -> None:
        """Connect, and wait a short time for retained messages, so that the first sample contains their values."""
        self._started = True
        broker.start()
        give_up_s = time.monotonic() + FIRST_WAIT_S
        while len(self._received_s) < len(self._topics) and self._news.wait(max(0.0, give_up_s - time.monotonic())):
            self._news.clear()

    def _value(self, name: str, chosen: Mapping[str, Any], now_s: float, broker: MqttConnection) -> Number:
        topic, received_s = chosen["topic"], self._received_s.get(chosen["topic"])
        why = f" (MQTT {broker.place}: {broker.fault})" if broker.fault else ""
        if received_s is None:
            raise SensorError(f"stale: no message on {topic} yet{why}")
        if now_s - received_s > chosen["fresh"]:
            raise SensorError(f"stale: no message on {topic} for {now_s - received_s:.0f} s{why}")
        last = self._last.get(name)
        if last is not None and now_s - last.at_s <= chosen["fresh"]:
            if last.value is None:
                raise SensorError(f"{topic}: {last.fault}")
            return last.value
        reason = self._without_value.get(name, "")
        if last is None:
            raise SensorError(f"{topic}: {reason}")
        field = f"a value at {_shown_path(chosen['path'])}" if chosen["path"] else "a number"
        raise SensorError(
            f"stale: the last message with {field} on {topic} is {now_s - last.at_s:.0f} s old; in later ones: {reason}"
        )

    # The following methods are called in the thread of paho-mqtt.

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic not in self._known:  # a message for any other topic would stay in memory permanently
            return
        self._known[topic].append(hash(payload))
        at_s = time.monotonic()
        if len(payload) <= LONGEST_PAYLOAD:
            self._evaluate(topic, payload, at_s)
        else:
            for name in self._names_of(topic):
                self._without_value[name] = f"the message is longer than {LONGEST_PAYLOAD} bytes"
        self._received_s[topic] = at_s
        self._news.set()

    def _on_retained(self, topic: str, payload: bytes) -> None:
        """Evaluate a retained message, unless its payload is already known.

        After a reconnection the broker sends retained messages again, also those of devices that are no longer active,
        and also if later messages of the topic were not retained.
        """
        if topic not in self._known:
            return
        is_known = hash(payload) == self._retained.get(topic) or hash(payload) in self._known[topic]
        self._retained[topic] = hash(payload)
        if not is_known:
            self._on_message(topic, payload)

    def _names_of(self, topic: str) -> list[str]:
        return [name for name, chosen in self._chosen.items() if chosen["topic"] == topic]

    def _evaluate(self, topic: str, payload: bytes, at_s: float) -> None:
        message = Message(payload)
        for name in self._names_of(topic):
            chosen = self._chosen[name]
            try:
                value = calibrated(message.value_at(chosen["path"]), chosen)
                if math.isfinite(value):
                    self._last[name] = LastValue(value, "", at_s)
                else:
                    self._last[name] = LastValue(None, "the value is too large after calibration", at_s)
            except NoValue as error:
                self._without_value[name] = str(error)
            except SensorError as error:
                self._last[name] = LastValue(None, str(error), at_s)


class Message:
    """Content of a message, which is untrusted. It is decoded at most once.

    Args:
        payload: The message.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._document: Any = None  # the decoded JSON, or the BadArgument that it caused
        self._is_decoded = False

    def value_at(self, path: Sequence[str]) -> float:
        """Return a number in the message. The texts true, on and open are 1; false, off and closed are 0.

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
        raise (NoValue if is_empty else SensorError)(f"not a number at {_shown_path(path)}: {shown_json(found)}")

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


def _shown_path(path: Sequence[str]) -> str:
    return f"{'.'.join(path)!r:.60}"


def _as_number(found: Any) -> float | None:
    """Return the finite number in decoded JSON or a text, or None."""
    if isinstance(found, str):
        found = found.strip()
        if found.lower() in _WORDS:
            return _WORDS[found.lower()]
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


def make(settings: Mapping[str, Any], where: str) -> MqttSource:
    """Return the source for a [[sensor]] table with kind = "mqtt". It connects at the first reading.

    Args:
        settings: The keys and values of the table, without `kind`.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid. A broker that cannot be reached is not an error here.
    """
    options = read_options(settings, OPTIONS, where)
    if not options["host"]:
        raise SettingsError(f"{where}: host is missing: the host name or address of the broker")
    if options["password"] and not options["user"]:
        raise SettingsError(f"{where}: password requires a user")
    if options["ca"] and not options["tls"]:
        raise SettingsError(f"{where}: ca requires tls = true")
    if options["ca"] and not os.path.exists(options["ca"]):
        raise SettingsError(f"{where}: ca: {options['ca']}: No such file or directory")
    chosen = {}
    example = 'kitchen = {topic = "zigbee2mqtt/kitchen", path = "temperature"}'
    for name, entry, channel_where in channel_tables(options["channels"], CHANNEL_OPTIONS, OPTIONS, where, example):
        if entry["topic"] is None:
            raise SettingsError(f"{channel_where}: topic is missing: the topic on which the device publishes")
        chosen[name] = entry
    return MqttSource(options, chosen, where)
