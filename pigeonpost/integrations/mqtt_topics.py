"""Forward target "mqtt": one topic per sensor of a node, for Node-RED and other programs without a database.

    pigeonpost/basement/temperature    {"value":23.4,"unit":"°C","time":"2026-11-20T15:36:10.123Z"}

All messages have QoS 1. `send` returns when the broker has acknowledged each of them. After a lost connection, queued
messages are dropped: the forwarder sends the samples again over a new connection, so a subscriber can receive some of
them twice, with the same time. Failed readings are not sent.

One thread calls `send`. `_changed` guards the acknowledgements and the state of the connection, which paho's thread
and `close` change. Errors: NotDelivered. MissingLibrary, if paho-mqtt is missing, and SettingsError at the start.
Source: MQTT 5.0 (OASIS), sections 3.3 and 3.4.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.config import Option, matching, one_of, switch, text
from pigeonpost.core.errors import SettingsError
from pigeonpost.core.mqtt_client import MqttConnection
from pigeonpost.core.mqtt_options import BROKER_OPTIONS
from pigeonpost.core.strict_json import write_json
from pigeonpost.integrations.contract import ForwardBatch, ForwardTarget, NotDelivered
from pigeonpost.integrations.forward_settings import own_keys
from pigeonpost.transports.contract import ServerContext

CONNECT_S = 10.0  # time limit for the connection to the broker
ANSWER_S = 30.0  # time limit for the next acknowledgement
_MOST_TOPICS = 20_000  # topics whose newest time is kept in memory
_is_topic = re.compile(r"(?!\$)(?:[^\x00-\x20+#{}]|\{node\})*\{sensor\}[^\x00-\x20+#{}]*").fullmatch


def _version(value: Any) -> int:
    if type(value) is not int or value not in (3, 5):
        raise ValueError("takes 3 or 5")
    return value


OPTIONS = (
    Option("host", text, "localhost", "host of the MQTT broker"),
    *BROKER_OPTIONS,
    Option("version", _version, 5, "version of MQTT: 5, or 3 for MQTT 3.1.1"),
    Option("topic", matching(_is_topic, "a topic with {sensor}, and {node} before it, such as home/{node}/{sensor}"),
           "pigeonpost/{node}/{sensor}", "topic of a sensor"),
    Option("payload", one_of("json", "number"), "json", "json: value, unit and time; number: only the value"),
    Option("retain", switch, False, "the broker keeps the newest value of each sensor for new subscribers"),
)  # fmt: skip


def make(table: Mapping[str, Any], where: str, context: ServerContext) -> ForwardTarget:
    """Return the target of a [[forward]] table.

    Args:
        table: The table.
        where: File and table, for errors.
        context: Context of the server.

    Raises:
        SettingsError: A key is unknown, or a value is invalid.
        MissingLibrary: paho-mqtt is not installed.
    """
    found = own_keys(table, OPTIONS, where)
    if "{node}" not in found["topic"] and not table.get("nodes"):
        raise SettingsError(f"{where}: topic needs {{node}}, unless nodes is set")
    return MqttTarget(found, where)


class MqttTarget(ForwardTarget):
    """MQTT broker. It may lose what it has acknowledged when it is killed, so the last minute is sent again."""

    again_s = 60.0
    most = 1_000

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """Initialise the target, and check that paho-mqtt is there.

        Args:
            values: Values of OPTIONS.
            where: Beginning of error texts about the settings.

        Raises:
            SettingsError: The file `ca` cannot be read.
            MissingLibrary: paho-mqtt is not installed.
        """
        self._access = {("mqtt", key): values[key] for key in ("host", "port", "user", "password", "tls", "ca")}
        self._is_mqtt_3, self._where = values["version"] == 3, where
        before, _, self._topic_end = values["topic"].partition("{sensor}")
        self._topic_start = before
        self._is_json, self._is_retained = values["payload"] == "json", values["retain"]
        self._changed = threading.Condition()
        self._connection: MqttConnection | None = None
        self._has_connected = False
        self._waiting: set[int] = set()  # numbers of messages that are not acknowledged yet
        self._answered: set[int] = set()  # those that were acknowledged before `publish` returned
        self._refused = ""
        self._is_closed = False
        self._newest: dict[str, int] = {}  # time in ms of the last retained value by topic
        self.place = f"mqtt{'s' * values['tls']}://{self._connect().place}"
        self._connection = None

    def send(self, batches: Sequence[ForwardBatch]) -> None:
        connection = self._connected()
        try:
            for topic, payload, is_retained in self._messages(batches):
                self._publish(connection, topic, payload, is_retained)
            self._wait(lambda: not self._waiting, ANSWER_S, "the broker has not acknowledged all samples")
        except NotDelivered:
            self._drop()
            raise

    def check(self) -> None:
        with self._changed:
            connection = self._connection
            is_lost = connection is not None and self._has_connected and not connection.connected
        if connection is not None and is_lost:
            self._drop()
            raise NotDelivered(connection.fault)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._drop()

    # ----------------------------------------------------------------------------------------------- connection

    def _connect(self) -> MqttConnection:
        return MqttConnection(
            self._access, "pigeonpost-forward", (), lambda topic, payload: None, self._on_change,
            is_mqtt_3=self._is_mqtt_3, where=self._where, on_published=self._on_published,
        )  # fmt: skip

    def _connected(self) -> MqttConnection:
        """Return the connection, which is open. Raise NotDelivered if it was lost, or cannot be opened."""
        with self._changed:
            connection = self._connection
        if connection is None:
            connection = self._connect()
            with self._changed:
                self._connection, self._has_connected = connection, False
                self._waiting.clear()
                self._answered.clear()
                self._refused = ""
            try:
                connection.start()
            except SettingsError as error:  # the host name is invalid
                self._drop()
                raise NotDelivered(str(error)) from None
        try:
            self._wait(lambda: connection.connected, CONNECT_S, "no connection to the broker")
        except NotDelivered:
            self._drop()
            raise
        return connection

    def _drop(self) -> None:
        """Close the connection, with the messages that are queued in it."""
        with self._changed:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.stop(1.0)

    def _wait(self, condition: Callable[[], bool], limit_s: float, text: str) -> None:
        """Wait until `condition` is true. Raise NotDelivered if nothing changes for `limit_s`, or by a fault."""
        with self._changed:
            while not self._is_closed:
                connection = self._connection
                if connection is None or (self._has_connected and not connection.connected):
                    raise NotDelivered(connection.fault if connection else "the connection is closed")
                if self._refused:
                    raise NotDelivered(
                        f"the broker refused a message: {self._refused}; allow this user to publish to"
                        f" {self._topic_start}"
                    )
                if condition():
                    return
                if not self._changed.wait(limit_s):
                    why = "" if connection.connected else f": {connection.fault}"
                    raise NotDelivered(f"{text} within {limit_s:g} s{why}")
            raise NotDelivered("the connection is closed")

    def _on_change(self) -> None:  # in paho's thread
        with self._changed:
            if self._connection is not None and self._connection.connected:
                self._has_connected = True
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------- messages

    def _publish(self, connection: MqttConnection, topic: str, payload: str, is_retained: bool) -> None:
        try:
            number = connection.publish(topic, payload.encode(), is_retained=is_retained)
        except ValueError as error:  # paho: the topic is too long
            raise NotDelivered(f"topic: {error}") from None
        with self._changed:
            if number in self._answered:
                self._answered.discard(number)
            else:
                self._waiting.add(number)

    def _on_published(self, number: int, refusal: str) -> None:  # in paho's thread
        with self._changed:
            self._refused = self._refused or refusal
            if number in self._waiting:
                self._waiting.discard(number)
            else:
                self._answered.add(number)
            self._changed.notify_all()

    def _messages(self, batches: Sequence[ForwardBatch]) -> Iterator[tuple[str, str, bool]]:
        """Yield topic, payload and True if the message is to be retained, sample by sample."""
        newest = self._newest_times(batches) if self._is_retained else {}
        for batch in batches:
            start, samples = self._topic_start.replace("{node}", batch.node), batch.samples
            columns = [
                (f"{start}{name}{self._topic_end}", texts, f',"unit":{write_json(batch.units.get(name, ""))}')
                for name, texts in zip(samples.values, samples.texts, strict=True)
            ]
            for index, time_ms in enumerate(samples.times):
                end = f',"time":"{rfc3339(time_ms)}"}}'
                for topic, texts, unit in columns:
                    if texts[index] != "None":
                        payload = f'{{"value":{texts[index]}{unit}{end}' if self._is_json else texts[index]
                        yield topic, payload, newest.get(topic) == time_ms

    def _newest_times(self, batches: Sequence[ForwardBatch]) -> dict[str, int]:
        """Return the newest time by topic, for topics with a newer value than the one that was retained last."""
        found: dict[str, int] = {}
        for batch in batches:
            start = self._topic_start.replace("{node}", batch.node)
            for name, column in batch.samples.values.items():
                topic, pairs = f"{start}{name}{self._topic_end}", zip(batch.samples.times, column, strict=True)
                times = [time_ms for time_ms, value in pairs if value is not None]
                before = found.get(topic) or self._newest.get(topic)
                if times and (before is None or max(times) >= before):
                    found[topic] = max(times)
        if len(self._newest) + len(found) > _MOST_TOPICS:
            self._newest.clear()
        self._newest.update(found)
        return found
