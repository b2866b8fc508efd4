"""Permanent connection to an MQTT broker, with its subscriptions, based on paho-mqtt.

paho-mqtt 1.6 (Debian 12) and 2.x are supported. It is imported when a connection is created, so that a program without
MQTT does not need its memory.

Callbacks run in paho's own thread. Any thread may call `publish`.

Errors: MissingLibrary without paho-mqtt; SettingsError for a CA file without certificates. If a broker cannot be
reached, this is logged once. paho then tries again after 1 s, and doubles the pause after each attempt, up to 60 s.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence

from pigeonpost.core.addresses import check_host, join_address
from pigeonpost.core.errors import MissingLibrary, SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

KEEPALIVE_S = 60
NOT_YET = "not connected yet"  # fault before the end of the first attempt
_NO_ANSWER = "the connection was closed before the broker accepted it: check host, port and tls"
LARGEST_BYTES = 1 << 20  # maximum size of a received payload
QOS = 1
_RETRY_S = 1, 60  # first and longest pause before a new attempt to connect
_PLAIN_PORT, _TLS_PORT = 1883, 8883
_MQTT_5, _MQTT_3 = 5, 4  # protocol levels in paho and in packets; 4 is MQTT 3.1.1
_CONNECT = 1  # type of the packet CONNECT, for its properties (MQTT 5.0, 2.1.2)

# Texts of the return codes of a broker that speaks MQTT 3.1.1 (table 3.1).
_REFUSALS = {
    1: "it does not support MQTT 3.1.1", 2: "the client's name is not accepted", 3: "it is not ready",
    4: "user or password is wrong", 5: "user or password is wrong, or has no permission",
}  # fmt: skip


class MqttSettings(Protocol):
    """Settings of a broker, read as `settings["mqtt", KEY]`: host, port (0 for the default), user, password, tls, ca.

    The Settings of a program can be passed, or a dictionary whose keys are such pairs.
    """

    def __getitem__(self, key: tuple[str, str], /) -> Any: ...


class MqttConnection:
    """Permanent connection to a broker, with its subscriptions.

    Args:
        settings: Settings of the broker.
        name: Name of this client at the broker; random digits are appended.
        topics: Topics to subscribe to; may be empty.
        on_message: Called in paho's thread with topic and payload of each message.
        on_change: Called when `connected` has changed.
        on_retained: Called instead of `on_message` for retained messages, whose age is unknown.
        is_mqtt_3: True for MQTT 3.1.1, which every broker supports, instead of MQTT 5.
        keepalive_s: MQTT keep-alive interval in seconds.
        session: Name of this client, instead of `name` and random digits: the broker keeps its subscriptions, and the
            messages with QoS 1 that arrive while it is not connected (MQTT 3.1.1, section 3.1.2.4). Only with
            `is_mqtt_3`.
        will: Topic and payload of a retained message that the broker publishes when this connection is lost.
        where: Beginning of error texts about the settings.
        on_published: Called in paho's thread when the broker has answered a published message, with the number of the
            message and the reason why the broker refused it, which is empty if it accepted it. Only paho 2 with MQTT 5
            reports a refusal.

    Attributes:
        connected: True while the connection is established and its subscriptions are accepted.
        fault: Reason why `connected` is False, or an empty string.
        place: Address of the broker, HOST:PORT.
        stopping: Set once `stop` is called. A message whose callback returns later is not acknowledged.

    Raises:
        MissingLibrary: paho-mqtt is not installed.
        SettingsError: The settings are invalid.
    """

    def __init__(
        self, settings: MqttSettings, name: str, topics: Sequence[str], on_message: Callable[[str, bytes], Any],
        on_change: Callable[[], Any] = lambda: None, *, on_retained: Callable[[str, bytes], Any] | None = None,
        is_mqtt_3: bool = False, keepalive_s: int = KEEPALIVE_S, session: str = "", where: str = "[mqtt]",
        will: tuple[str, bytes] | None = None, on_published: Callable[[int, str], Any] | None = None,
    ) -> None:  # fmt: skip
        self.connected = False
        self._address = broker_address(settings)
        self._hint = ""
        try:
            check_host(self._address[0])
        except ValueError as error:  # not refused: the rest of the program works, as it did in earlier versions
            self._hint = f"; host {error}"
        self.place = join_address(*self._address)
        self._topics = [(topic, QOS) for topic in topics]
        self._on_received, self._on_retained, self._on_change = on_message, on_retained or on_message, on_change
        self._is_mqtt_3, self._keepalive_s, self._where = is_mqtt_3, keepalive_s, where
        self.fault = NOT_YET
        self._end_fault = _NO_ANSWER  # fault if the connection ends now; empty if `fault` explains that already
        self.stopping = threading.Event()
        client_name = session or f"{name}-{os.urandom(4).hex()}"
        self._paho, self._client = _client(settings, client_name, is_mqtt_3, bool(session), where)
        if will is not None:
            self._client.will_set(*will, QOS, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._on_answered = on_published
        if on_published is not None:
            self._client.on_publish = self._on_publish

    def start(self) -> None:
        """Start to connect, in paho's thread. A broker that cannot be reached is not an error.

        Raises:
            SettingsError: The name of the host is invalid.
        """
        more = {}
        if not self._is_mqtt_3:
            properties = self._paho.Properties(_CONNECT)
            properties.MaximumPacketSize = LARGEST_BYTES + 1024  # the broker then does not send larger packets
            more = {"clean_start": True, "properties": properties}
        try:
            self._client.connect_async(*self._address, self._keepalive_s, **more)
        except ValueError as error:
            raise SettingsError(f"{self._where} host {self._address[0]!r}: {error}") from None
        self._client.loop_start()

    def stop(self, limit_s: float) -> str | None:
        """Send the queued messages, for at most `limit_s` seconds, and disconnect.

        Without a connection nothing can be sent, so this method does not wait for paho's thread, which may be in its
        pause before the next attempt. Return an error text, or None on success.
        """
        # Set first, so that _on_disconnect reports no error.
        was_connected, self.connected, self._end_fault = self.connected, False, ""
        self._client.disconnect()
        self.stopping.set()  # after the packet is queued: a later acknowledgement is not sent
        ending = threading.Thread(target=self._client.loop_stop, name="mqtt ends", daemon=True)
        ending.start()
        if not was_connected:
            return None
        ending.join(limit_s)
        return f"the broker at {self.place} does not accept data" if ending.is_alive() else None

    def publish(self, topic: str, payload: bytes, *, is_retained: bool = False, qos: int = QOS) -> int:
        """Queue `payload` for `topic`. paho's thread sends it. Any thread may call this; it does not block.

        Args:
            topic: The topic.
            payload: The payload.
            is_retained: True if the broker keeps the message for later subscribers. An empty payload deletes it.
            qos: 1 to send it again after the connection was lost, until the broker acknowledges it; 0 to lose it then.

        Returns:
            The number of the message, for `on_published`, which may be called before this method returns.
        """
        number: int = self._client.publish(topic, payload, qos, is_retained).mid
        return number

    # Callbacks of paho. The number of arguments depends on the callback interface of paho and on the version of MQTT. A
    # reason is a number or an object that contains a number. The arguments used here always have the same position.

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, *more: Any) -> None:
        if getattr(reason, "value", reason) != 0:
            self._end_fault = ""
            self._set_fault(
                f"the broker refused the connection: {_REFUSALS.get(reason, reason) if type(reason) is int else reason}"
            )
            return
        if self._topics:
            self._client.subscribe(self._topics)
        else:
            self._on_ready()

    def _on_subscribe(self, client: Any, userdata: Any, message_id: Any, granted: Sequence[Any], *more: Any) -> None:
        refused = [topic for (topic, _), code in zip(self._topics, granted) if getattr(code, "value", code) >= 0x80]
        if refused:  # MQTT 5.0, 3.9.3
            self._end_fault = ""
            self._set_fault(f"the broker does not allow this user to read {', '.join(refused)}"[:300])
            return
        self._on_ready()

    def _on_ready(self) -> None:
        self._set_fault("")
        self.connected, self._end_fault = True, "the connection to the broker is lost"
        self._on_change()

    def _on_publish(self, client: Any, userdata: Any, number: int, reason: Any = 0, *more: Any) -> None:
        if self._on_answered is not None:
            is_refused = getattr(reason, "value", reason) >= 0x80  # MQTT 5.0, 3.4.2.1
            self._on_answered(number, str(reason) if is_refused else "")

    def _on_disconnect(self, *more: Any) -> None:
        was_connected, self.connected = self.connected, False
        fault, self._end_fault = self._end_fault, _NO_ANSWER
        if fault:
            self._set_fault(fault)
        if was_connected:
            self._on_change()

    def _on_connect_fail(self, *more: Any) -> None:
        error = sys.exception()  # paho calls this while it handles the error, but does not pass it
        reason = getattr(error, "strerror", None) or str(error or "")
        self._set_fault(f"no connection to the broker{reason and f': {reason}'}{self._hint}")

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        if len(message.payload) <= LARGEST_BYTES:
            (self._on_retained if message.retain else self._on_received)(topic, message.payload)

    def _set_fault(self, fault: str) -> None:
        """Store the fault, or an empty string when the connection works, and log each change."""
        if fault != self.fault:
            self.fault = fault
            if fault:
                log.warning("MQTT %s: %s; trying again", self.place, fault)
            else:
                log.info("MQTT %s: connected", self.place)


def broker_address(settings: MqttSettings) -> tuple[str, int]:
    """Return host and port of the broker in `settings`, with the default port if none is set."""
    port: int = settings["mqtt", "port"] or (_TLS_PORT if settings["mqtt", "tls"] else _PLAIN_PORT)
    return settings["mqtt", "host"], port


def _client(settings: MqttSettings, name: str, is_mqtt_3: bool, is_persistent: bool, where: str) -> tuple[Any, Any]:
    """Return the module paho and a new client, which is not connected, with the newest callback interface."""
    try:
        import paho.mqtt.client as paho
    except ImportError:
        text = f"{where}: the Python module paho is missing: sudo apt install python3-paho-mqtt"
        raise MissingLibrary(text) from None
    newest = getattr(paho, "CallbackAPIVersion", None)  # required from paho 2.0 on
    first = (newest.VERSION2,) if newest else ()
    # MQTT 5 has shared subscriptions, and the client can limit the size of packets.
    more = {"clean_session": False} if is_persistent else {}
    client = paho.Client(*first, client_id=name, protocol=_MQTT_3 if is_mqtt_3 else _MQTT_5, **more)
    client.reconnect_delay_set(*_RETRY_S)
    if settings["mqtt", "user"]:
        client.username_pw_set(settings["mqtt", "user"], settings["mqtt", "password"])
    if settings["mqtt", "tls"]:
        ca = settings["mqtt", "ca"]
        try:
            client.tls_set(ca_certs=ca or None)
        except OSError as error:  # ssl.SSLError is a subclass
            raise SettingsError(f"{where} ca {ca!r}: {error.strerror or error}") from None
    elif settings["mqtt", "ca"]:
        raise SettingsError(f"{where} ca requires tls = true")
    return paho, client
