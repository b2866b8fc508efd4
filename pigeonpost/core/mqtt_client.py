"""A connection to an MQTT broker that is kept up together with its subscriptions, on top of paho-mqtt.

paho-mqtt 1.6 (Debian 12) and 2.x are supported. It is imported when a connection is made, so that a program without
MQTT does not pay for it.

Callbacks run in paho's own thread; `publish` may be called from any thread.
Errors: MissingLibrary without paho-mqtt; SettingsError for a CA file without certificates. A broker that cannot be
reached is logged once, and paho tries again after 1 s, doubling to 60 s.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

from pigeonpost.core.addresses import join_address
from pigeonpost.core.errors import MissingLibrary, SettingsError
from pigeonpost.core.light_typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

KEEPALIVE_S = 60
LARGEST_BYTES = 1 << 20  # of a payload that is taken
QOS = 1
_RETRY_S = 1, 60  # the first pause before connecting again, and the longest
_PLAIN_PORT, _TLS_PORT = 1883, 8883
_MQTT_5, _MQTT_3 = 5, 4  # as paho and the packets number them; the latter is MQTT 3.1.1
_CONNECT = 1  # the packet that the properties belong to: MQTT 5.0, 2.1.2

# Why a broker refuses, where it says so with a number only (MQTT 3.1.1, table 3.1).
_REFUSALS = {
    1: "it does not speak MQTT 3.1.1", 2: "it does not like the client's name", 3: "it is not ready",
    4: "user or password is wrong", 5: "user or password is wrong, or not enough",
}  # fmt: skip


class MqttSettings(Protocol):
    """Settings of a broker: ["mqtt", KEY] of host, port (0: the default one), user, password, tls, ca.
    The program's Settings have this form, and so has a dict with such pairs as keys."""

    def __getitem__(self, key: tuple[str, str], /) -> Any: ...


class MqttConnection:
    """A connection to the broker that is kept up, together with its subscriptions.

    connected  it is there, and lets this user read
    trouble    why it is not; empty when it is
    """

    def __init__(
        self, settings: MqttSettings, name: str, topics: Sequence[str], heard: Callable[[str, bytes], Any],
        changed: Callable[[], Any] = lambda: None, *, kept: Callable[[str, bytes], Any] | None = None,
        old: bool = False, keepalive_s: int = KEEPALIVE_S, where: str = "[mqtt]",
    ) -> None:  # fmt: skip
        """
        name     by which the broker knows this client, with something random after it
        topics   that are subscribed to
        heard    gets topic and payload of each message, in paho's thread
        changed  called when `connected` has changed
        kept     gets in its place what the broker had retained, whose age nobody knows
        old      MQTT 3.1.1, which every broker speaks, instead of 5
        where    what an error about the settings begins with
        """
        self.connected = False
        self._address = broker_address(settings)
        self.place = join_address(*self._address)
        self._topics = [(topic, QOS) for topic in topics]
        self._heard, self._kept, self._changed = heard, kept or heard, changed
        self._old, self._keepalive_s, self._where = old, keepalive_s, where
        self.trouble = "not connected yet"
        self._paho, self._client = _client(settings, f"{name}-{os.urandom(4).hex()}", old, where)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def start(self) -> None:
        """Begin to connect. A broker that is not there is no reason not to start."""
        more = {}
        if not self._old:
            most = self._paho.Properties(_CONNECT)
            most.MaximumPacketSize = LARGEST_BYTES + 1024  # a longer one the broker keeps to itself
            more = {"clean_start": True, "properties": most}
        try:
            self._client.connect_async(*self._address, self._keepalive_s, **more)
        except ValueError as error:
            raise SettingsError(f"{self._where} host {self._address[0]!r}: {error}") from None
        self._client.loop_start()

    def stop(self, limit_s: float) -> str | None:
        """Send what is due within `limit_s` seconds, and disconnect."""
        self.connected = False  # on purpose: nothing to be told
        self._client.disconnect()
        ending = threading.Thread(target=self._client.loop_stop, name="mqtt ends", daemon=True)
        ending.start()
        ending.join(limit_s)
        return f"the broker at {self.place} takes nothing" if ending.is_alive() else None

    def publish(self, topic: str, payload: bytes) -> None:
        """Leave it to paho's thread; from any thread, returns at once."""
        self._client.publish(topic, payload, QOS)

    # Called by paho. Its two interfaces, and the two versions of MQTT, give more or fewer arguments, and a reason as a
    # number or as an object that has one; what is used of them stands at the same place in all.

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, *more: Any) -> None:
        if getattr(reason, "value", reason) != 0:
            self._note(f"the broker refuses: {_REFUSALS.get(reason, reason) if type(reason) is int else reason}")
            return
        self._client.subscribe(self._topics)

    def _on_subscribe(self, client: Any, userdata: Any, message_id: Any, granted: Sequence[Any], *more: Any) -> None:
        refused = [topic for (topic, _), code in zip(self._topics, granted) if getattr(code, "value", code) >= 0x80]
        if refused:  # MQTT 5.0, 3.9.3
            self._note(f"the broker does not let this user read {', '.join(refused)}"[:300])
            return
        self._note("")
        self.connected = True
        self._changed()

    def _on_disconnect(self, *more: Any) -> None:
        if self.connected:
            self.connected = False
            self._note("the connection to the broker is lost")
            self._changed()

    def _on_connect_fail(self, *more: Any) -> None:
        self._note("no connection to the broker")

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        if len(message.payload) <= LARGEST_BYTES:
            (self._kept if message.retain else self._heard)(topic, message.payload)

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                log.warning("MQTT %s: %s; it is tried again", self.place, trouble)
            else:
                log.info("MQTT %s: connected", self.place)


def broker_address(settings: MqttSettings) -> tuple[str, int]:
    """Return host and port of the broker."""
    port: int = settings["mqtt", "port"] or (_TLS_PORT if settings["mqtt", "tls"] else _PLAIN_PORT)
    return settings["mqtt", "host"], port


def _client(settings: MqttSettings, name: str, old: bool, where: str) -> tuple[Any, Any]:
    """paho, and a client of it that is not connected yet. Its callbacks are the newest that it has."""
    try:
        import paho.mqtt.client as paho
    except ImportError:
        text = f"{where}: the Python module paho is missing: sudo apt install python3-paho-mqtt"
        raise MissingLibrary(text) from None
    newest = getattr(paho, "CallbackAPIVersion", None)  # from 2.0 on the version has to be named
    first = (newest.VERSION2,) if newest else ()
    # MQTT 5, which has shared subscriptions, and tells the broker how much this client takes at once.
    client = paho.Client(*first, client_id=name, protocol=_MQTT_3 if old else _MQTT_5)
    client.reconnect_delay_set(*_RETRY_S)
    if settings["mqtt", "user"]:
        client.username_pw_set(settings["mqtt", "user"], settings["mqtt", "password"])
    if settings["mqtt", "tls"]:
        ca = settings["mqtt", "ca"]
        try:
            client.tls_set(ca_certs=ca or None)
        except OSError as error:  # ssl.SSLError is one
            raise SettingsError(f"{where} ca {ca!r}: {error.strerror or error}") from None
    elif settings["mqtt", "ca"]:
        raise SettingsError(f"{where} ca is used with tls = true")
    return paho, client
