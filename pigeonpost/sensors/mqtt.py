"""Sensor kind "mqtt": values that other programs publish on an MQTT broker, one topic for each channel.

    topic = "zigbee2mqtt/kitchen"    {"temperature": 21.4, "humidity": 48, "linkquality": 120}
    path = "temperature"
    topic = "zwave/cellar/49/0/Air_temperature"    {"time": 1795188970123, "value": 9.5}
    path = "value"

Zigbee2MQTT, Z-Wave JS UI, Tasmota and any other program can be the publisher. mqtt_client, and with it paho-mqtt, is
imported when the source is made; where paho-mqtt is missing, again whenever the source is read.

paho's thread stores each message in `_heard`, whole, in one assignment; the source's thread reads it there. `_news`
(an Event) tells the first reading that something has arrived.
Errors: SensorError for a channel without a message for too long, with the fault of the broker, and for a last message
without a number. A broker that cannot be reached does not prevent the start: it is tried again after 1 s, doubling to
60 s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

from pigeonpost.core.config import Option, a_table, matching, number, read_options, switch, text
from pigeonpost.core.errors import BadArgument, MissingLibrary, SensorError, SettingsError
from pigeonpost.core.strict_json import read_json
from pigeonpost.sensors.contract import (
    CALIBRATION,
    Channel,
    Readings,
    SensorSource,
    at_path,
    calibrated,
    channel_tables,
    dotted_path,
)
from protocol import UNIT, Number

if TYPE_CHECKING:
    from pigeonpost.core.mqtt_client import MqttConnection

LONGEST_PAYLOAD = 65_536  # bytes; of a longer one only its length is kept
_STOP_S = 2.0
FIRST_WAIT_S = 3.0  # the first reading waits so long for what the broker has retained
_WORDS = {"true": 1, "on": 1, "open": 1, "false": 0, "off": 0, "closed": 0}


def _topic(value: Any) -> str:
    # A topic filter with wildcards would let several devices speak for one channel (MQTT 3.1.1, 4.7).
    if not isinstance(value, str) or not 0 < len(value.encode()) < 65_536 or set("+#\0") & set(value):
        raise ValueError("takes one topic, without the wildcards + and #")
    return value


OPTIONS = (
    Option("channels", a_table, None, "a table for each channel, by its name"),
    Option("host", text, "127.0.0.1", "the broker's name or address"),
    Option("port", number(0, 65_535, whole=True), 0, "its port; 0: 1883, with TLS 8883"),
    Option("user", text, "", "a user of the broker"),
    Option("password", text, "", "and the password"),
    Option("tls", switch, False, "whether the connection is encrypted, and the broker has to prove who it is"),
    Option("ca", text, "", "the file of the authority that signed its certificate; without it the machine's own list"),
    Option("keepalive", number(5, 3600, whole=True), 60, "seconds of silence after which the connection is tried"),
)
CHANNEL_OPTIONS = (
    Option("topic", _topic, None, "what is subscribed to"),
    Option("path", dotted_path, (), "where the number stands in a JSON payload; without it the payload is the number"),
    Option("fresh", number(1, 864_000), 3600.0, "seconds for which a value counts; then the channel is stale"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), "", "of the value"),
    *CALIBRATION,
)


class ReceivedMessage(NamedTuple):
    """The last message of a topic. `payload` is None when it was too long."""

    payload: bytes | None
    at_s: float


class MqttSource(SensorSource):
    """One connection to a broker, and the last message of each topic."""

    def __init__(self, options: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """chosen: of each channel its options. Raises SettingsError with a CA that is none."""
        self.channels = [Channel(name, its["unit"]) for name, its in chosen.items()]
        self._chosen = chosen
        self._topics = sorted({its["topic"] for its in chosen.values()})
        self._heard: dict[str, ReceivedMessage] = {}
        self._news = Event()
        self._options, self._where = options, where
        self._started = False
        try:
            self._broker: MqttConnection | None = self._connection()
        except MissingLibrary:  # it stops this source, not the node: the first reading shows it
            self._broker = None

    def _connection(self) -> MqttConnection:
        """Make a connection that is not open yet. Raises MissingLibrary, SettingsError."""
        from pigeonpost.core.mqtt_client import MqttConnection  # which costs what a node without it need not pay

        access = {("mqtt", key): self._options[key] for key in ("host", "port", "user", "password", "tls", "ca")}
        return MqttConnection(
            access, "pigeonpost-sensors", self._topics, self._on_message, kept=self._hear_kept, old=True,
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
                readings[name] = self._value(chosen, now_s, self._broker)
            except SensorError as error:
                readings[name] = error
        return readings

    def close(self) -> None:
        if self._started and self._broker is not None:
            self._started = False
            self._broker.stop(_STOP_S)

    def _start(self, broker: MqttConnection) -> None:
        """Connect, and wait a moment for retained messages, so that the first sample has their values."""
        self._started = True
        broker.start()
        give_up_s = time.monotonic() + FIRST_WAIT_S
        while len(self._heard) < len(self._topics) and self._news.wait(max(0.0, give_up_s - time.monotonic())):
            self._news.clear()

    def _value(self, chosen: Mapping[str, Any], now_s: float, broker: MqttConnection) -> Number:
        topic, heard = chosen["topic"], self._heard.get(chosen["topic"])
        why = f" (MQTT {broker.place}: {broker.trouble})" if broker.trouble else ""
        if heard is None:
            raise SensorError(f"stale: nothing on {topic} yet{why}")
        if now_s - heard.at_s > chosen["fresh"]:
            raise SensorError(f"stale: nothing on {topic} for {now_s - heard.at_s:.0f} s{why}")
        if heard.payload is None:
            raise SensorError(f"{topic}: its message is longer than {LONGEST_PAYLOAD} bytes")
        try:
            return calibrated(value_in(heard.payload, chosen["path"]), chosen)
        except SensorError as error:
            raise SensorError(f"{topic}: {error}") from None

    # Called by the broker's thread.

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic in self._topics:  # else nobody asked for it, and it would stay in memory
            self._heard[topic] = ReceivedMessage(payload if len(payload) <= LONGEST_PAYLOAD else None, time.monotonic())
            self._news.set()

    def _hear_kept(self, topic: str, payload: bytes) -> None:
        """Take a retained message, unless it is known: after a reconnection a device that died would seem alive."""
        before = self._heard.get(topic)
        if before is None or before.payload != payload:
            self._on_message(topic, payload)


def value_in(payload: bytes, path: Sequence[str]) -> float:
    """Return the number in a message: alone, or at `path` in JSON; true and on are 1, false and off 0.

    The payload is untrusted. Raises SensorError when it has no number.
    """
    try:
        said = payload.decode()
        if path:
            found = at_path(read_json(said.strip()), path)
        else:
            found = said.strip()
        if isinstance(found, str) and found.lower() in _WORDS:
            return _WORDS[found.lower()]
        if not isinstance(found, str | int | float):
            raise ValueError
        if "_" in str(found):  # which Python reads in numbers
            raise ValueError
        value = float(found)
    except (UnicodeDecodeError, BadArgument) as error:
        raise SensorError(f"{_preview(payload)} does not read: {error}") from None
    except (ValueError, OverflowError):
        at = f" at {'.'.join(path)!r}" if path else ""
        raise SensorError(f"no number{at}: {_preview(payload)}") from None
    if value - value != 0:
        raise SensorError(f"no number: {_preview(payload)}")
    return value


def _preview(payload: bytes) -> str:
    return repr(payload[:60].decode(errors="replace")) + ("..." if len(payload) > 60 else "")


def make(settings: Mapping[str, Any], where: str) -> MqttSource:
    """The source that a [[sensor]] table with kind = "mqtt" describes; connects when it is first read.

    Raises SettingsError, which begins with `where`; not for a broker that is not there.
    """
    options = read_options(settings, OPTIONS, where)
    if not options["host"]:
        raise SettingsError(f"{where}: host is missing: where is the broker?")
    if options["password"] and not options["user"]:
        raise SettingsError(f"{where}: a password goes with a user")
    if options["tls"] and options["ca"] and not os.path.exists(options["ca"]):
        raise SettingsError(f"{where}: ca: {options['ca']}: No such file or directory")
    chosen = {}
    example = 'kitchen = {topic = "zigbee2mqtt/kitchen", path = "temperature"}'
    for name, its, here in channel_tables(options["channels"], CHANNEL_OPTIONS, where, example):
        if its["topic"] is None:
            raise SettingsError(f"{here}: topic is missing: what does the device publish on?")
        chosen[name] = its
    return MqttSource(options, chosen, where)
