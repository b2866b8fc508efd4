"""MQTT transport, node side: publishes the samples of the outbox.

Threads: the transport's own thread runs the conversation. The thread of the MQTT library (paho) appends received
messages to a deque and sets an Event. New samples and a change of the connection set the same Event.
Errors: faults of the broker and invalid answers are logged once. The samples stay in the outbox and are sent again.
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
    """A connection to the broker, and the thread that runs the conversation on it.

    Args:
        settings: The node's settings.
        info: Name, token and sensors of the node.
        outbox: The node's outbox.
        clock: Clock for timeouts and timestamps.
    """

    def __init__(self, settings: Settings, info: NodeInfo, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        topic = f"{ROOT}/{info.name}/ack"
        self._broker = MqttConnection(
            settings, f"pigeonpost-{info.name}", [topic], self._on_message, self._on_connection_change
        )
        self.conversation = Conversation(
            self._broker, info, outbox, clock, info.key if settings["mqtt", "signed"] else None
        )
        self._received: deque[bytes] = deque(maxlen=MOST_ANSWERS)
        self._is_connection_changed = False  # the connection was established or lost
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
        self._received.append(payload)
        self._woken.set()

    def _on_connection_change(self) -> None:
        self._is_connection_changed = True
        self._woken.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            if self._is_connection_changed:
                self._is_connection_changed = False
                self.conversation.reconnect()
            while self._received:
                self.conversation.receive(self._received.popleft())
            self._woken.wait(self.conversation.publish_due() if self._broker.connected else None)
