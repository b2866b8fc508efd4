"""Devices that publish over MQTT and are nodes of this server without a node program: the [[device]] tables.

    [[device]]
    name = "kitchen"           name of the node
    preset = "zigbee2mqtt"     topics, paths and units: see sensors.mqtt_presets
    device = "kitchen"         name of the device in its topics; default: the name of the node

Each message is one sample. It is acknowledged to the broker once it is durable, and the session of this server at the
broker is persistent: what a device publishes with QoS 1 is stored at least once, also if this server is killed. A
message is stored twice if this server ends between the commit and the acknowledgement, because a repeated message
cannot be distinguished from a new one with the same content (MQTT 3.1.1, 4.3.2). With QoS 0, the broker discards the
messages that are published while this server is not connected.

The time of a sample is the time in the message if there is one with a zone (see mqtt_presets), otherwise its arrival.
A message that the broker retained is not a new reading and only counts for the availability.

Threads: paho's thread of a broker decodes and stores the messages of its devices, one after the other; until a message
is durable, the next ones stay at the broker. Any thread may read `statuses` and `fault`.
Errors: a message that is rejected is counted, and is the fault of its device until the next message is stored.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.config import Option, a_table, matching, one_of, read_options, text
from pigeonpost.core.errors import NeverStored, NotStored, SensorError, SettingsError, WireError
from pigeonpost.core.mqtt_client import MqttConnection
from pigeonpost.core.mqtt_options import BROKER_OPTIONS
from pigeonpost.core.rare_log import RareLog
from pigeonpost.sensors.contract import CALIBRATION, calibrated, dotted_path, name_of
from pigeonpost.sensors.mqtt import LONGEST_PAYLOAD, one_topic, read_channels, value_of
from pigeonpost.sensors.mqtt_message import Message, NoValue
from pigeonpost.sensors.mqtt_presets import PRESETS, Place, availability_topics, filled
from pigeonpost.server.unnumbered_sources import Claim, ExternalReading
from pigeonpost.transports.contract import IntegrationStatus, ServerContext, Transport
from protocol import NODE_NAME, NODE_NAME_TAKES, SENSOR_NAME, UNIT

log = logging.getLogger(__name__)

MOST_VALUES = 64  # names of values of a device that its messages define
RETRY_S = 1.0  # pause after an attempt to store a message
OLDEST_MS = 7 * 86_400_000  # greatest age of a time in a message that is used
AHEAD_MS = 60_000  # how far a time in a message may be in the future

OPTIONS = (
    Option("name", matching(NODE_NAME, NODE_NAME_TAKES), None, "name of the node"),
    Option("preset", one_of(*PRESETS), None, "program or firmware whose topics, paths and units are predefined"),
    Option("device", one_topic, None, "name of the device in the topics of the preset (default: the name of the node)"),
    Option("channels", a_table, None, "one table per channel, by channel name; without it: all values of the preset"),
    Option("host", text, "", "host name or address of the broker (default: the broker of [mqtt])"),
    *BROKER_OPTIONS,
)
CHANNEL_OPTIONS = (
    Option("topic", one_topic, None, "topic to which the server subscribes"),
    Option("value", text, None, "name of a value of the preset (default: the name of the channel)"),
    Option("path", dotted_path, (), "path of the number in a JSON message; without it, the message is the number"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), None, "unit of the value"),
    *CALIBRATION,
)
_BROKER_KEYS = ("host", "port", "user", "password", "tls", "ca")


class _Found(NamedTuple):
    """Values of one message: numbers, None with an error for a failed sensor, and units; by name."""

    values: dict[str, float | None]
    errors: dict[str, str]
    units: dict[str, str]


class MqttDevice:
    """Device of one [[device]] table: its topics, and the values in its messages.

    One thread uses `read` and the counters; any thread may read the counters.

    Args:
        options: Options of the table.
        where: File and table, with which each error message begins.

    Attributes:
        name: Name of the node.
        kind: Name of the preset, or "mqtt".
        topics: Topics of its values, which may contain +.
        availability: Topics that report if it is online.
        stored: Number of messages stored in this run.
        refused: Number of messages that were rejected in this run.
        success_ms: Time of the last stored message, or None.
        fault: The present fault, or an empty string.
    """

    def __init__(self, options: Mapping[str, Any], where: str) -> None:
        self.name: str = options["name"]
        self.kind: str = options["preset"] or "mqtt"
        self._preset = PRESETS[options["preset"]] if options["preset"] else None
        self._is_open = self._preset is not None and not options["channels"]
        device: str = options["device"] or ("" if self._preset is None else self.name)
        channels = options["channels"]
        if self._preset is not None and not channels:
            channels = {name: {} for name in self._preset.values}
        used = {**options, "channels": channels, "device": device or None}
        self._chosen = read_channels(used, CHANNEL_OPTIONS, OPTIONS, where)
        self._names: dict[str, list[str]] = {}  # names of values by topic
        for name, entry in self._chosen.items():
            for topic in dict.fromkeys(place.topic for place in entry["places"]):
                self._names.setdefault(topic, []).append(name)
        self._wild = [filled(topic, device) for topic in self._preset.wild] if self._preset and self._is_open else []
        self.topics = [*self._names, *self._wild]
        self.availability = availability_topics(self._preset, device) if self._preset else []
        self._last: dict[str, tuple[int, int | None]] = {}  # hash and time of the last message with a time, by topic
        self._offline: dict[str, bool] = {}  # by availability topic
        self._is_awake = not any(entry["sleeps"] for entry in self._chosen.values())
        self.stored = self.refused = 0
        self.success_ms: int | None = None
        self.fault = ""

    def uses(self, topic: str) -> bool:
        """Return True if messages on `topic` contain values of this device."""
        return topic in self._names or any(_component(wild, topic) for wild in self._wild)

    def record_availability(self, topic: str, payload: bytes) -> str | None:
        """Record an availability message, and return the topic that reports the device as offline, or an empty string.

        The result is None if the message changes nothing. Devices with a battery are offline between two messages, so
        `offline` is ignored until a value has arrived that only devices with a permanent connection publish.

        Args:
            topic: Topic of the message, one of `availability`.
            payload: The message.
        """
        is_online = Message(payload).availability()
        if is_online is None or not (is_online or self._is_awake):
            return None
        self._offline[topic] = not is_online
        return next((one for one, is_offline in self._offline.items() if is_offline), "")

    def read(self, topic: str, payload: bytes, now_ms: int) -> ExternalReading | None:
        """Return the reading in a message, or None if it contains no value or repeats the last message with its time.

        Args:
            topic: Topic of the message.
            payload: The message.
            now_ms: Current time, in ms since 1970 (UTC).
        """
        message = Message(payload)
        time_ms = None
        if self._preset is not None and self._preset.time_path:
            time_ms = message.time_ms(self._preset.time_path, self._preset.time_unit_ms)
            if time_ms is not None and not now_ms - OLDEST_MS <= time_ms <= now_ms + AHEAD_MS:
                time_ms = None
        mark = hash(payload), time_ms
        if time_ms is not None and self._last.get(topic) == mark:
            return None
        found = _Found({}, {}, {})
        if topic not in self._names:
            self._add_component(topic)
        for name in self._names.get(topic, ()):
            self._find(name, self._chosen[name], topic, message, found)
        if not found.values:
            return None
        if time_ms is not None:
            self._last[topic] = mark
        return ExternalReading(
            Claim(self.name, "mqtt", is_listed=True), found.values, found.units, time_ms, found.errors
        )

    def _find(self, name: str, chosen: Mapping[str, Any], topic: str, message: Message, found: _Found) -> None:
        try:
            value = calibrated(value_of(message, topic, chosen), chosen)
            if not math.isfinite(value):
                raise SensorError("the value is too large after calibration")
            found.values[name] = value
        except NoValue:
            return
        except SensorError as error:
            found.values[name], found.errors[name] = None, str(error)
        found.units[name] = chosen["unit"]
        self._is_awake = self._is_awake or not chosen["sleeps"]

    def _add_component(self, topic: str) -> None:
        """Add the value of a component that the preset does not name, such as DEVICE/binary_sensor/motion/state."""
        for wild in self._wild:
            component = _component(wild, topic)
            if component:
                kind = wild.split("/")[-3]
                plain = component if SENSOR_NAME(component) else name_of(component)
                name = plain if kind == "sensor" else name_of(kind, component)
                entry = {"places": (Place(topic),), "unit_key": "", "unit": "", "gain": 1.0, "offset": 0.0}
                if name not in self._chosen and len(self._chosen) < MOST_VALUES:
                    self._chosen[name] = {**entry, "sleeps": False}
                    self._names[topic] = [name]
                return


def _disjoint(topics: Iterable[str]) -> list[str]:
    """Return `topics` without those that another one with + contains.

    A broker may deliver a message once for each subscription that it matches (MQTT 3.1.1, 3.3.5).
    """
    unique = list(dict.fromkeys(topics))
    wild = [topic for topic in unique if "+" in topic]
    return [topic for topic in unique if not any(topic != one and _component(one, topic) for one in wild)]


def _component(wild: str, topic: str) -> str:
    """Return the part of `topic` at the + of `wild`, or an empty string if the topic does not match."""
    first, last = wild.split("+")
    part = topic[len(first) : len(topic) - len(last)]
    return part if topic == f"{first}{part}{last}" and "/" not in part else ""


class MqttDevicesTransport(Transport):
    """Connection to one broker, with the devices that publish there.

    Args:
        context: The server's components.
        options: Options of the broker.
        devices: The devices.
        where: Beginning of error texts about the settings of the broker.

    Raises:
        MissingLibrary: paho-mqtt is not installed.
        SettingsError: A setting of the broker is invalid.
    """

    def __init__(
        self, context: ServerContext, options: Mapping[str, Any], devices: Sequence[MqttDevice], where: str
    ) -> None:
        self._context, self._devices = context, devices
        self._rare_log = RareLog(log, context.clock)
        self._waiting = ""  # why a message cannot be stored now
        access = {("mqtt", key): options[key] for key in _BROKER_KEYS}
        topics = _disjoint(topic for device in devices for topic in (*device.topics, *device.availability))
        broker = f"{options['user']}@{options['host']}:{options['port']}"
        self._broker = MqttConnection(
            access, "", topics, self._on_message, on_retained=self._on_retained, is_mqtt_3=True, where=where,
            session=f"pigeonpost-{context.ingestor.identity}-{zlib.crc32(broker.encode()):08x}",
        )  # fmt: skip

    @property
    def fault(self) -> str:  # type: ignore[override]  # calculated when it is read
        """The fault of the broker, of the store or of a device, or an empty string."""
        if self._broker.fault:
            return f"MQTT {self._broker.place}: {self._broker.fault}"
        return self._waiting or next((f"{one.name}: {one.fault}" for one in self._devices if one.fault), "")

    def start(self) -> None:
        for device in self._devices:
            try:  # so that the pages show it before its first message
                self._context.unnumbered_sources.caller(Claim(device.name, "mqtt", is_listed=True))
            except (WireError, NotStored) as error:
                device.fault = str(error)
        self._broker.start()

    def stop(self, limit_s: float) -> str | None:
        return self._broker.stop(limit_s)

    def statuses(self) -> list[IntegrationStatus]:
        fault = f"MQTT {self._broker.place}: {self._broker.fault}" if self._broker.fault else self._waiting
        return [
            IntegrationStatus(
                f"device {one.name}", one.kind, "in", self._broker.place, one.success_ms, None, "messages",
                one.stored, one.refused, fault or one.fault,
            )
            for one in self._devices
        ]  # fmt: skip

    # The following methods are called in the thread of paho-mqtt.

    def _on_message(self, topic: str, payload: bytes) -> None:
        for device in self._devices:
            try:
                if topic in device.availability:
                    self._record_availability(device, topic, payload)
                elif device.uses(topic):
                    self._take(device, topic, payload)
            except Exception as error:  # an internal error must not end the thread of paho
                self._refuse(device, f"internal error: {type(error).__name__}: {error}", is_traceback=True)

    def _on_retained(self, topic: str, payload: bytes) -> None:
        """Use a retained message only for the availability: the time of its values is unknown."""
        if any(topic in device.availability for device in self._devices):
            self._on_message(topic, payload)

    def _record_availability(self, device: MqttDevice, topic: str, payload: bytes) -> None:
        offline = device.record_availability(topic, payload)
        state, clock = self._context.unnumbered_sources.find(device.name), self._context.clock
        if state is None or offline is None:
            return
        if offline:
            if state.connected:
                state.since_ms = clock.wall_ms()
            state.connected, state.fault = False, f"the device is offline, according to {offline}"
        else:
            state.record_contact(clock.wall_ms(), clock.monotonic())

    def _take(self, device: MqttDevice, topic: str, payload: bytes) -> None:
        if len(payload) > LONGEST_PAYLOAD:
            self._refuse(device, f"{topic}: the message is longer than {LONGEST_PAYLOAD} bytes")
            return
        reading = device.read(topic, payload, self._context.clock.wall_ms())
        if reading is None:
            return
        try:
            if not self._store(reading):
                return
        except (WireError, NeverStored) as error:
            self._refuse(device, str(error))
            return
        device.stored += 1
        device.success_ms, device.fault = self._context.clock.wall_ms(), ""

    def _store(self, reading: ExternalReading) -> bool:
        """Make a reading durable, and return False if this server stops before. No other message is read meanwhile."""
        while True:
            try:
                self._context.unnumbered_sources.store(reading)
            except NeverStored:
                raise
            except NotStored as error:
                self._waiting = f"a message of {reading.claim.node} waits: {error}"
                if self._broker.stopping.wait(RETRY_S):
                    return False
            else:
                self._waiting = ""
                return True

    def _refuse(self, device: MqttDevice, text: str, is_traceback: bool = False) -> None:
        device.refused += 1
        device.fault = text
        self._rare_log.log(
            logging.WARNING, "refused", f"MQTT {self._broker.place}: {device.name}: {text}", is_traceback
        )


def make_devices(context: ServerContext) -> dict[str, Transport]:
    """Return one transport per broker of the [[device]] tables, by name.

    Args:
        context: The server's components and settings.

    Raises:
        MissingLibrary: paho-mqtt is not installed.
        SettingsError: A setting is invalid.
    """
    brokers: dict[tuple[Any, ...], tuple[str, list[MqttDevice]]] = {}
    for device, broker, where in _read_tables(context):
        brokers.setdefault(broker, (where, []))[1].append(device)
    return {
        f"devices {number}" if number > 1 else "devices": MqttDevicesTransport(
            context, dict(zip(_BROKER_KEYS, broker, strict=True)), devices, where
        )
        for number, (broker, (where, devices)) in enumerate(brokers.items(), 1)
    }


def _read_tables(context: ServerContext) -> Iterator[tuple[MqttDevice, tuple[Any, ...], str]]:
    """Yield each device with its broker, and the text with which error messages about it begin."""
    settings = context.settings
    names: set[str] = set()
    for count, table in enumerate(settings.tables.get("device", ()), 1):
        where = f"{settings.file}: [[device]] {count}"
        options = read_options(table, OPTIONS, where)
        name: str | None = options["name"]
        if name is None:
            raise SettingsError(f'{where}: the name is missing, for example name = "kitchen"')
        if name in names:
            raise SettingsError(f"{where}: a table for {name} exists already; put both into one")
        if any(link.state.name == name and not link.state.calls_in for link in context.links):
            raise SettingsError(f"{where}: {name} is the name of another node; choose a different name")
        names.add(name)
        if not options["host"]:
            for key in _BROKER_KEYS[1:]:
                if key in table:
                    raise SettingsError(f"{where}: {key} requires host")
            if not settings["mqtt", "host"]:
                raise SettingsError(f"{where}: host is missing: set [mqtt] host, or host here")
            options.update({key: settings["mqtt", key] for key in _BROKER_KEYS})
        yield MqttDevice(options, where), tuple(options[key] for key in _BROKER_KEYS), where
