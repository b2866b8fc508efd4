"""MQTT transport, node side: publishes what the outbox holds.

Threads: one of its own, to which the conversation belongs. paho's thread leaves what comes in a deque, and sets an
  Event; so do the outbox and a change of the connection.
Errors: of the broker, or of an answer: logged once, and tried again; the outbox keeps the samples meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from pigeonpost.core.clock import Clock
from pigeonpost.core.light_typing import TYPE_CHECKING
from pigeonpost.core.mqtt_client import MqttConnection
from pigeonpost.transports.contract import Transport
from pigeonpost.transports.mqtt_conversation import MOST_ANSWERS, Conversation
from pigeonpost.transports.mqtt_topics import ROOT

if TYPE_CHECKING:
    from pigeonpost.core.config import Settings
    from pigeonpost.node.node_info import NodeInfo
    from pigeonpost.node.outbox import Outbox

log = logging.getLogger(__name__)


class MqttNodeTransport(Transport):
    """A connection to the broker, and the thread that leads the conversation on it."""

    def __init__(self, settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        topic = f"{ROOT}/{info.name}/ack"
        self._broker = MqttConnection(settings, f"pigeonpost-{info.name}", [topic], self._on_message, self._turn)
        self.conversation = Conversation(
            self._broker, info, outbox, clock, info.key if settings["mqtt", "signed"] else None
        )
        self._heard: deque[bytes] = deque(maxlen=MOST_ANSWERS)
        self._turned = False  # the connection came or went
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> None:
        self._outbox.watch(self._woken.set)
        self._broker.start()
        self._thread.start()

    def stop(self, limit_s: float) -> str | None:
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is None:
            return None
        self._outbox.unwatch(self._woken.set)
        self._thread.join(limit_s / 2)
        return self._broker.stop(limit_s / 2)

    def _on_message(self, topic: str, payload: bytes) -> None:
        self._heard.append(payload)
        self._woken.set()

    def _turn(self) -> None:
        self._turned = True
        self._woken.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            if self._turned:
                self._turned = False
                self.conversation.reconnect()
            while self._heard:
                self.conversation.take(self._heard.popleft())
            self._woken.wait(self.conversation.go_on() if self._broker.connected else None)
