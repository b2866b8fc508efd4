"""Sensor kind "mqtt": values that other programs publish through an MQTT broker, with one topic per channel.

    topic = "zigbee2mqtt/kitchen"    {"temperature": 21.4, "humidity": 48, "linkquality": 120}
    path = "temperature"
    topic = "zwave/cellar/49/0/Air_temperature"    {"time": 1795188970123, "value": 9.5}
    path = "value"
    preset = "tasmota"                             topics, paths and units of a known firmware: see mqtt_presets
    device = "kitchen"

The publisher can be Zigbee2MQTT, Z-Wave JS UI, Tasmota or any other program. mqtt_client, which uses paho-mqtt, is
imported when the source is created. If paho-mqtt is missing, the import is tried again at each reading.

Each channel has the last value that a message contained for it, for the time `fresh`. A message without a value for the
channel (another kind of message, a field that is missing or null) changes nothing: devices publish what they measured
last, in several messages. A field whose content is not a number, such as nan or "unavailable", means that the device
cannot measure at the moment: the channel fails until the next value. The other fields of the message count.

The thread of paho-mqtt evaluates each message, and stores the results with one assignment per channel in `_last` and
`_without_value`, then one per topic in `_received_s`; availability messages set `_offline`. The thread of the source
reads them. The event `_news` is set for
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

from pigeonpost.core.config import Option, a_table, matching, number, one_of, read_options, text
from pigeonpost.core.errors import MissingLibrary, SensorError, SettingsError
from pigeonpost.core.mqtt_options import BROKER_OPTIONS
from pigeonpost.sensors.chips import described
from pigeonpost.sensors.contract import (
    CALIBRATION,
    Channel,
    Readings,
    SensorSource,
    calibrated,
    channel_tables,
    dotted_path,
)
from pigeonpost.sensors.mqtt_message import Message, NoValue, shown_path
from pigeonpost.sensors.mqtt_presets import PRESETS, Place, PresetValue, availability_topics, filled, preset_value
from protocol import UNIT, Number

if TYPE_CHECKING:
    from pigeonpost.core.mqtt_client import MqttConnection

LONGEST_PAYLOAD = 65_536  # bytes; longer messages are not evaluated
_STOP_S = 2.0
FIRST_WAIT_S = 3.0  # maximum time for which the first reading waits for retained messages
_REMEMBERED = 64  # payloads per topic by which a retained message that is sent again is recognised


def one_topic(value: Any) -> str:
    """Return `value`, a topic without wildcards from the settings. Raise ValueError if it is invalid."""
    # With wildcards (MQTT 3.1.1, section 4.7) several devices could send values for one channel.
    if not isinstance(value, str) or set("+#\0") & set(value):
        raise ValueError("takes one topic, without the wildcards + and #")
    if not 0 < len(value.encode()) < 65_536:
        raise ValueError("takes a text of up to 65535 bytes")
    return value


OPTIONS = (
    Option("channels", a_table, None, "one table per channel, by channel name"),
    Option("host", text, "127.0.0.1", "host name or address of the broker"),
    *BROKER_OPTIONS,
    Option("keepalive", number(5, 3600, whole=True), 60, "seconds without data after which the connection is checked"),
    Option("preset", one_of(*PRESETS), None, "program or firmware whose topics, paths and units are predefined"),
    Option("device", one_topic, None, "name of the device in the topics of the preset"),
)
CHANNEL_OPTIONS = (
    Option("topic", one_topic, None, "topic to which the node subscribes"),
    Option("value", text, None, "name of a value of the preset (default: the name of the channel)"),
    Option(
        "path", dotted_path, (), "path of the number in a JSON message; without it, the complete message is the number"
    ),
    Option("fresh", number(1, 864_000), 3600.0, "seconds for which a value is used; after that, the channel is stale"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), None, "unit of the value"),
    *CALIBRATION,
)


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
            chosen: Options of each channel, by channel name, as `read_channels` returns them.
            where: File and table, with which each error message begins.

        Raises:
            SettingsError: The file in the option `ca` does not contain a certificate.
        """
        self.channels = [
            Channel(
                name,
                entry["unit"],
                possible=described(name, entry["unit"], _parts(entry["places"][0])),
            )
            for name, entry in chosen.items()
        ]
        self._chosen = chosen
        self._topics = sorted({place.topic for entry in chosen.values() for place in entry["places"]})
        preset = PRESETS[options["preset"]] if options["preset"] else None
        availability = availability_topics(preset, options["device"]) if preset else []
        self._offline = dict.fromkeys(availability, False)  # by topic
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
            access, "pigeonpost-sensors", [*self._topics, *self._offline], self._on_message,
            on_retained=self._on_retained, is_mqtt_3=True, keepalive_s=self._options["keepalive"],
            where=f'{self._where}: kind = "mqtt"',
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
        while not self._is_complete() and self._news.wait(max(0.0, give_up_s - time.monotonic())):
            self._news.clear()

    def _is_complete(self) -> bool:
        return all(self._last_topic(entry) in self._received_s for entry in self._chosen.values())

    def _last_topic(self, chosen: Mapping[str, Any]) -> str:
        """Return the topic of a channel whose message is the last one; the first topic if there is no message yet."""
        topics: list[str] = [place.topic for place in chosen["places"]]
        return max(topics, key=lambda topic: self._received_s.get(topic, -math.inf))

    def _value(self, name: str, chosen: Mapping[str, Any], now_s: float, broker: MqttConnection) -> Number:
        topic = self._last_topic(chosen)
        received_s = self._received_s.get(topic)
        offline = next((topic for topic, is_offline in self._offline.items() if is_offline), "")
        if offline and not chosen["sleeps"]:
            raise SensorError(f"the device is offline, according to {offline}")
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
        path = next(place.path for place in chosen["places"] if place.topic == topic)
        field = f"a value at {shown_path(path)}" if path else "a number"
        raise SensorError(
            f"stale: the last message with {field} on {topic} is {now_s - last.at_s:.0f} s old; in later ones: {reason}"
        )

    # The following methods are called in the thread of paho-mqtt.

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic in self._offline:
            is_online = Message(payload).availability()
            if is_online is not None:
                self._offline[topic] = not is_online
            return
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
            self._on_message(topic, payload)
            return
        is_known = hash(payload) == self._retained.get(topic) or hash(payload) in self._known[topic]
        self._retained[topic] = hash(payload)
        if not is_known:
            self._on_message(topic, payload)

    def _names_of(self, topic: str) -> list[str]:
        return [
            name for name, chosen in self._chosen.items() if any(place.topic == topic for place in chosen["places"])
        ]

    def _evaluate(self, topic: str, payload: bytes, at_s: float) -> None:
        message = Message(payload)
        for name in self._names_of(topic):
            chosen = self._chosen[name]
            try:
                value = calibrated(value_of(message, topic, chosen), chosen)
                if math.isfinite(value):
                    self._last[name] = LastValue(value, "", at_s)
                else:
                    self._last[name] = LastValue(None, "the value is too large after calibration", at_s)
            except NoValue as error:
                self._without_value[name] = str(error)
            except SensorError as error:
                self._last[name] = LastValue(None, str(error), at_s)


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
    return MqttSource(options, read_channels(options, CHANNEL_OPTIONS, OPTIONS, where), where)


def read_channels(
    options: Mapping[str, Any], channel_options: Sequence[Option], table_options: Sequence[Option], where: str
) -> dict[str, dict[str, Any]]:
    """Return the options of each channel by its name, with the keys `places`, `unit_key` and `sleeps` of its value.

    Args:
        options: Options of the source: `channels`, `preset` and `device`.
        channel_options: Options of a channel.
        table_options: Options of the table.
        where: File and table, with which each error message begins.

    Raises:
        SettingsError: A setting is invalid.
    """
    preset = PRESETS[options["preset"]] if options["preset"] else None
    if (preset is None) != (options["device"] is None):
        raise SettingsError(f"{where}: preset and device must be set together")
    tables = options["channels"]
    if not tables and preset:
        tables = {name: {} for name in preset.usual}
    example = 'kitchen = {topic = "zigbee2mqtt/kitchen", path = "temperature"}'
    chosen = {}
    for name, entry, channel_where in channel_tables(tables, channel_options, table_options, where, example):
        found = _locate(name, entry, options, channel_where)
        unit = found.unit if entry["unit"] is None else entry["unit"]
        more = {"places": found.places, "unit_key": found.unit_key, "sleeps": found.sleeps, "unit": unit}
        chosen[name] = {**entry, **more}
    return chosen


def _locate(name: str, chosen: Mapping[str, Any], options: Mapping[str, Any], where: str) -> PresetValue:
    """Return the value of a channel: the place in its own options, or a value of the preset."""
    preset, device, topic, path = options["preset"], options["device"], chosen["topic"], chosen["path"]
    if chosen["value"] is not None and (topic or path or not preset):
        raise SettingsError(f"{where}: value is only for a preset, without topic and path")
    if preset and path and not topic:
        topic = filled(PRESETS[preset].main, device)
    if topic:
        return PresetValue("", (Place(topic, path),))
    if not preset or path:
        raise SettingsError(f"{where}: topic is missing: the topic on which the device publishes")
    value = chosen["value"] or name
    found = preset_value(PRESETS[preset], device, value)
    if found is None:
        known = ", ".join(PRESETS[preset].values)
        raise SettingsError(f"{where}: value must be one of {known}, not {value!r}; or set topic and path")
    return found


def value_of(message: Message, topic: str, chosen: Mapping[str, Any]) -> float:
    """Return the number that a message contains for a channel, before calibration.

    Args:
        message: The message.
        topic: Its topic.
        chosen: Options of the channel, as `read_channels` returns them.

    Raises:
        NoValue: The message contains no value for the channel.
        SensorError: It contains something else instead of a number.
    """
    places = [place for place in chosen["places"] if place.topic == topic]
    return message.value_in(places, chosen["unit_key"], chosen["unit"])


def _parts(place: Place) -> tuple[str, ...]:
    return (*place.topic.split("/"), *place.path)
