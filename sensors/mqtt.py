"""What others publish on an MQTT broker: Zigbee2MQTT, Z-Wave JS UI, Tasmota, or any program, a topic for each channel.

Runs on: node.  Reached from: node.py (kind = "mqtt"), sampler.  Hands on to: a broker, by way of paho-mqtt (both its
  1.6, as Debian 12 has it, and 2.x), which is imported when the source is made.
Threads: paho's own, which keeps the connection up and leaves each message in `_heard`, whole, in one assignment; the
  source's thread reads it there. `_news` (an Event) tells the first reading that something has come.
Errors: SensorError for a channel of which nothing was heard for too long, with what is wrong with the broker; or whose
  last message holds no number.

    topic = "zigbee2mqtt/kitchen"    {"temperature": 21.4, "humidity": 48, "linkquality": 120}
    path = "temperature"
    topic = "zwave/cellar/49/0/Air_temperature"    {"time": 1795188970123, "value": 9.5}
    path = "value"

A broker that is not there is no reason not to start: paho tries again and again, from one second apart up to a minute.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any, NamedTuple

from base.config import Option, a_table, matching, number, read_options, switch, text
from base.errors import BadArgument, SensorError, SettingsError
from protocol import UNIT, Number, read_json
from sensors import CALIBRATION, Channel, Readings, Source, at_path, calibrated, channel_tables, dotted_path

log = logging.getLogger(__name__)

LONGEST_PAYLOAD = 65_536  # bytes; of a longer one only its length is kept
FIRST_WAIT_S = 3.0  # the first reading waits so long for what the broker has retained
_PLAIN_PORT, _TLS_PORT = 1883, 8883
_RETRY_S = 1, 60  # the first pause before connecting again, and the longest
_WORDS = {"true": 1, "on": 1, "open": 1, "false": 0, "off": 0, "closed": 0}


def _topic(value: Any) -> str:
    # A topic filter with wildcards would let several devices speak for one channel (MQTT 3.1.1, 4.7).
    if not isinstance(value, str) or not 0 < len(value.encode()) < 65_536 or set("+#\0") & set(value):
        raise ValueError("takes one topic, without the wildcards + and #")
    return value


OPTIONS = (
    Option("channels", a_table, None, "a table for each channel, by its name"),
    Option("host", text, "127.0.0.1", "the broker's name or address"),
    Option("port", number(1, 65_535, whole=True), None, "its port (1883, with TLS 8883)"),
    Option("user", text, "", "a user of the broker"),
    Option("password", text, "", "and the password"),
    Option("tls", switch, False, "whether the connection is encrypted, and the broker has to prove who it is"),
    Option("ca", text, "", "the file of the authority that signed its certificate; without it the machine's own list"),
    Option("keepalive", number(5, 3600, whole=True), 60, "seconds of silence after which the connection is tried"),
    Option("client_id", text, "", "by which the broker knows this client; without it a random one"),
)
CHANNEL_OPTIONS = (
    Option("topic", _topic, None, "what is subscribed to"),
    Option("path", dotted_path, (), "where the number stands in a JSON payload; without it the payload is the number"),
    Option("fresh", number(1, 864_000), 3600.0, "seconds for which a value counts; then the channel is stale"),
    Option("unit", matching(UNIT, "a text up to 32 characters"), "", "of the value"),
    *CALIBRATION,
)


class Heard(NamedTuple):
    """The last message of a topic. `payload` is None when it was too long."""

    payload: bytes | None
    at_s: float


class MqttSource(Source):
    """One connection to a broker, and the last message of each topic."""

    def __init__(self, options: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """chosen: of each channel its options. Raises SettingsError without paho-mqtt, or with a CA that is none."""
        self.channels = [Channel(name, its["unit"]) for name, its in chosen.items()]
        self._chosen = chosen
        self._topics = sorted({its["topic"] for its in chosen.values()})
        self._heard: dict[str, Heard] = {}
        self._news = Event()
        self._address = options["host"], options["port"] or (_TLS_PORT if options["tls"] else _PLAIN_PORT)
        self._keepalive_s = options["keepalive"]
        self._trouble = "not connected yet"  # empty while the broker is there
        self._started = False
        self._client = _client(options, where)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_message = self._on_message

    def read(self) -> Readings:
        if not self._started:
            self._start()
        now_s = time.monotonic()
        readings: dict[str, Number | SensorError] = {}
        for name, chosen in self._chosen.items():
            try:
                readings[name] = self._value(chosen, now_s)
            except SensorError as error:
                readings[name] = error
        return readings

    def close(self) -> None:
        if self._started:
            self._started = False
            self._trouble = "closed"
            self._client.disconnect()
            self._client.loop_stop()

    def _start(self) -> None:
        """Connect, and give what is retained on the broker a moment to come: then the first sample has it already."""
        self._started = True
        try:
            self._client.connect_async(*self._address, self._keepalive_s)
        except ValueError as error:  # a host name that is none
            self._trouble = str(error)
            return
        self._client.loop_start()
        give_up_s = time.monotonic() + FIRST_WAIT_S
        while len(self._heard) < len(self._topics) and self._news.wait(max(0.0, give_up_s - time.monotonic())):
            self._news.clear()

    def _value(self, chosen: Mapping[str, Any], now_s: float) -> Number:
        topic, heard = chosen["topic"], self._heard.get(chosen["topic"])
        why = f" ({self._trouble})" if self._trouble else ""
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

    # ----------------------------------------------------------------------------- called by paho, in its thread
    #
    # Version 1 of its callbacks gives a plain number as the reason, version 2 an object, and more arguments; what is
    # read of them here stands at the same place in both. Refusals are told by the number: MQTT 3.1.1, table 3.1.

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, *more: Any) -> None:
        code = getattr(reason, "value", reason)
        if code != 0:
            self._note(f"the broker refuses: {_REFUSALS.get(code, reason)}")
            return
        # At each connection, since the broker forgets what a client without a session had subscribed to.
        self._note("")
        client.subscribe([(topic, 0) for topic in self._topics])

    def _on_disconnect(self, client: Any, userdata: Any, *more: Any) -> None:
        if not self._trouble:  # else it is told already, and better
            self._note("the connection to the broker is lost")

    def _on_connect_fail(self, *more: Any) -> None:
        self._note(f"no connection to the broker at {self._address[0]}:{self._address[1]}")

    def _on_subscribe(self, client: Any, userdata: Any, message_id: Any, granted: Sequence[Any], *more: Any) -> None:
        refused = [topic for topic, code in zip(self._topics, granted) if getattr(code, "value", code) >= 0x80]
        if refused:  # MQTT 3.1.1, 3.9.3
            self._note(f"the broker does not let this user read {', '.join(refused)}"[:200])

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        if topic not in self._topics:  # nobody asked for it, and it would stay in memory
            return
        payload = message.payload if len(message.payload) <= LONGEST_PAYLOAD else None
        before = self._heard.get(topic)
        # What the broker had kept says nothing new after a reconnection: else a device that died would seem alive.
        if message.retain and before is not None and before.payload == payload:
            return
        self._heard[topic] = Heard(payload, time.monotonic())
        self._news.set()

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            place = "{}:{}".format(*self._address)
            if trouble:
                log.warning("MQTT %s: %s; it is tried again", place, trouble)
            else:
                log.info("MQTT %s: connected", place)
            self._trouble = trouble


_REFUSALS = {
    1: "it does not speak MQTT 3.1.1", 2: "it does not like the client_id", 3: "it is not ready",
    4: "user or password is wrong", 5: "user or password is wrong, or not enough",
    134: "user or password is wrong", 135: "user or password is wrong, or not enough",
}  # fmt: skip


def value_in(payload: bytes, path: Sequence[str]) -> float:
    """The number that a message holds: alone, or at `path` in JSON; true and on are 1, false and off 0.

    Raises SensorError for a payload, from whomever, that holds none.
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
        raise SensorError(f"{_shown(payload)} does not read: {error}") from None
    except (ValueError, OverflowError):
        at = f" at {'.'.join(path)!r}" if path else ""
        raise SensorError(f"no number{at}: {_shown(payload)}") from None
    if value - value != 0:
        raise SensorError(f"no number: {_shown(payload)}")
    return value


def _shown(payload: bytes) -> str:
    return repr(payload[:60].decode(errors="replace")) + ("..." if len(payload) > 60 else "")


def _client(options: Mapping[str, Any], where: str) -> Any:
    """A client of paho that is not connected yet. Its callbacks are the newest that it has."""
    try:
        import paho.mqtt.client as paho
    except ImportError:
        raise SettingsError(f"{where}: the Python module paho is missing: sudo apt install python3-paho-mqtt") from None
    newest = getattr(paho, "CallbackAPIVersion", None)  # from 2.0 on the version has to be named
    name = options["client_id"]
    client = paho.Client(newest.VERSION2, client_id=name) if newest else paho.Client(client_id=name)
    client.reconnect_delay_set(*_RETRY_S)
    if options["user"]:
        client.username_pw_set(options["user"], options["password"])
    if options["tls"]:
        try:
            client.tls_set(ca_certs=options["ca"] or None)
        except OSError as error:  # ssl.SSLError is one
            raise SettingsError(f"{where}: ca: {options['ca']}: {error.strerror or error}") from None
    return client


def make(settings: Mapping[str, Any], where: str) -> MqttSource:
    """The source that a [[sensor]] table with kind = "mqtt" describes; connects when it is first read.

    Raises SettingsError, which begins with `where`; not for a broker that is not there.
    """
    options = read_options(settings, OPTIONS, where)
    if options["ca"] and not options["tls"]:
        raise SettingsError(f"{where}: ca is used with tls = true")
    if options["password"] and not options["user"]:
        raise SettingsError(f"{where}: a password goes with a user")
    if options["ca"] and not os.path.exists(options["ca"]):
        raise SettingsError(f"{where}: ca: {options['ca']}: No such file or directory")
    chosen = {}
    example = 'kitchen = {topic = "zigbee2mqtt/kitchen", path = "temperature"}'
    for name, its, here in channel_tables(options["channels"], CHANNEL_OPTIONS, where, example):
        if its["topic"] is None:
            raise SettingsError(f"{here}: topic is missing: what does the device publish on?")
        chosen[name] = its
    return MqttSource(options, chosen, where)
