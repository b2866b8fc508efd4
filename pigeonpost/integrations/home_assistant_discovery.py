"""Home Assistant by MQTT discovery: all nodes and sensors appear there with their current values.

The messages are described in home_assistant_messages. Only current values are published, because Home Assistant gives a
state the time of its arrival: samples that arrive late go to home_assistant_statistics.

Which discovery messages the broker keeps is recorded in the data folder (home_assistant.json), before they are
published. So the message of a node that was renamed or retired is removed, also if this server or the broker was away.

Threads: `on_commit` runs in the Ingestor's writer thread and only marks nodes; the callbacks of the broker run in
paho's thread; one own thread publishes, at most once per second; another one waits for nodes that are switched.
`_lock` guards the set of marked nodes, and is held for one change.
Errors: faults of the broker and of the file are this part's fault; the file is written again later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pigeonpost.core.data_folder import HOME_ASSISTANT
from pigeonpost.core.errors import DamagedFile, DiskError, NotStored, SettingsError
from pigeonpost.core.json_file import JsonFile
from pigeonpost.core.mqtt_client import NOT_YET, MqttConnection
from pigeonpost.core.strict_json import write_json
from pigeonpost.integrations.home_assistant_messages import (
    OFF,
    OFFLINE,
    ON,
    ONLINE,
    Config,
    NodeFacts,
    SensorFacts,
    Topics,
    node_config,
    platforms,
    server_config,
)
from pigeonpost.integrations.home_assistant_nodes import KnownNode, NodeReader
from pigeonpost.server.node_status import NodeLink
from pigeonpost.storage.models import EpochCommit
from pigeonpost.transports.contract import IntegrationStatus, ServerContext, Transport
from protocol import IMPORTED

log = logging.getLogger(__name__)

EVERY_S = 1.0  # shortest interval between two states of a node
LOOK_S = 5.0  # interval between two checks of the nodes
AGAIN_S = 10.0  # time after which states are repeated: Home Assistant first has to set up new entities
EXPIRE_S = 60.0  # the same for a node that is not published yet
_MOST_ACKNOWLEDGED = 1_000  # numbers of acknowledged messages that are kept until the next look, at most a second
_MOST_COMMANDS = 100
_STATES_QOS = 0  # a state that waited for the broker would not be current any more


class Published:
    """One discovery message that the broker keeps.

    Attributes:
        node: Name of the node; empty for the server's own message.
        components: Platforms of its components.
        sensors: Units of the sensors of the node.
    """

    def __init__(self, node: str, components: Mapping[str, str], sensors: Mapping[str, str]) -> None:
        self.node, self.components, self.sensors = node, dict(components), dict(sensors)

    @classmethod
    def read(cls, entry: Any) -> Published:
        """Return the message that `entry` of the file describes. Raise TypeError, KeyError or AttributeError."""
        return cls(entry["node"], entry["components"], entry["sensors"])

    def written(self) -> dict[str, Any]:
        """Return the entry for the file."""
        return {"node": self.node, "components": self.components, "sensors": self.sensors}


class HomeAssistantDiscovery(Transport):
    """Publishes nodes, sensors and their current values for Home Assistant.

    Args:
        context: The server's components.

    Raises:
        MissingLibrary: paho-mqtt is not installed.
        SettingsError: The settings are invalid.

    Attributes:
        is_home_assistant_on: False after Home Assistant has reported that it ends.
        on_lost: Called when the connection to the broker is lost, and when Home Assistant ends. Both may be back before
            the next commit.
        on_unseen: Called with a time in ms since 1970 (UTC) if Home Assistant may not have seen the values since then.
    """

    def __init__(self, context: ServerContext) -> None:
        settings = context.settings
        if not settings["mqtt", "host"]:
            raise SettingsError("[home_assistant] discovery requires [mqtt] host")
        self._context = context
        self._controls: bool = settings["home_assistant", "controls"]
        prefix: str = settings["home_assistant", "prefix"]
        self._topics = Topics(prefix, context.name)
        self._birth = f"{prefix}/status"
        commands = [self._topics.of("+", "set")] if self._controls else []
        self._broker = MqttConnection(
            settings, f"pigeonpost-ha-{context.name}", [self._birth, self._topics.online, *commands],
            self._on_message, self._on_change,
            on_retained=self._on_retained, will=(self._topics.online, OFFLINE),
            on_published=self._on_published,
        )  # fmt: skip
        self._nodes = NodeReader(context)
        self._file = JsonFile(
            os.path.join(context.data, HOME_ASSISTANT),
            "a list of discovery messages",
            Published.read,
            auto_restore=True,
        )
        self._published: dict[str, Published] = {}
        self._configs: dict[str, Config] = {}  # as published to the broker since the last connection
        self._removed: dict[str, int] = {}  # removed messages that the broker has not acknowledged, with their numbers
        self._acknowledged: deque[int] = deque(maxlen=_MOST_ACKNOWLEDGED)
        self._shown: dict[str, bytes] = {}  # last payload of each retained topic and each status
        self._again_s: dict[str, float] = {}
        self._lock = threading.Lock()
        self._marked: set[str] = set()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._commands: queue.Queue[tuple[str, bool] | None] = queue.Queue(_MOST_COMMANDS)
        self._threads: list[threading.Thread] = []
        self._is_new = False  # True after connecting, and after Home Assistant has started
        self._is_reconnected = False  # True after connecting: the broker may have lost its retained messages
        self._is_read = False
        self._is_replaced = False  # True if another client has published to the topic `online` of this server
        self._looked_s = -LOOK_S
        self._done, self._success_ms = 0, None  # type: tuple[int, int | None]
        self._file_fault = self._refusal = self._internal_fault = ""
        self._warned: set[str] = set()
        self.is_home_assistant_on = True  # until it reports that it ends
        self._is_heard = False  # True once Home Assistant has reported its state since the last connection
        self._connected_ms = context.clock.wall_ms()
        self.on_unseen: Callable[[int], object] = lambda since_ms: None
        self.on_lost: Callable[[], object] = lambda: None

    @property
    def is_live(self) -> bool:
        """True if the broker is connected and Home Assistant has not reported that it ends."""
        return self._broker.connected and self.is_home_assistant_on

    def start(self) -> None:
        self._broker.start()
        self._threads = [threading.Thread(target=self._run, name="home assistant", daemon=True)]
        if self._controls:
            self._threads.append(threading.Thread(target=self._switch, name="home assistant commands", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self, limit_s: float) -> str | None:
        if self._stopping.is_set():
            return None
        self._stopping.set()
        self._wake.set()
        with contextlib.suppress(queue.Full):
            self._commands.put_nowait(None)
        if self._threads:  # it must not publish "online" after this
            self._threads[0].join(limit_s / 2)
        if self._broker.connected:
            self._broker.publish(self._topics.online, OFFLINE, is_retained=True)
        return self._broker.stop(limit_s)

    def statuses(self) -> Sequence[IntegrationStatus]:
        return [IntegrationStatus(
            "home assistant", "home_assistant", "both" if self._controls else "out", self._broker.place,
            self._success_ms, None, "states", self._done, 0, self.fault,
        )]  # fmt: skip

    @property
    def fault(self) -> str:  # type: ignore[override]
        """The fault of the broker, of this part or of the file, or an empty string."""
        broker = "" if self._broker.fault == NOT_YET else self._broker.fault
        return broker or self._internal_fault or self._refusal or self._file_fault

    def expire_s(self, node: str) -> float:
        """Return the seconds after which a value of `node` is no longer current in Home Assistant."""
        known = self._nodes.by_name.get(node)
        return known.expire_s if known is not None else EXPIRE_S

    def offset_ms(self, node: str) -> int:
        """Return the clock of `node` minus the clock of this server, in ms; 0 if it is unknown."""
        known = self._nodes.by_name.get(node)
        return (known.offset_ms or 0) if known is not None else 0

    def sensors(self, node: str) -> Mapping[str, SensorFacts]:
        """Return the sensors of `node` that are published, by name; empty if it is not published."""
        known = self._nodes.by_name.get(node)
        return known.sensors if known is not None else {}

    def on_commit(self, commits: Sequence[EpochCommit]) -> None:
        """Mark the nodes of `commits`. Called with each commit (see Ingestor.subscribe)."""
        with self._lock:
            self._marked.update(commit.node for commit in commits if commit.outbox != IMPORTED)
        self._wake.set()

    # ------------------------------------------------------------------------------------------ callbacks of paho

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic == self._birth:
            if not self._is_heard and payload != OFFLINE:  # it was away before, and this server could not know it
                self.on_unseen(self._connected_ms)
            self._on_birth(payload)
        elif topic == self._topics.online:
            self._on_online(payload)
        elif payload in (b"ON", b"OFF"):
            try:
                self._commands.put_nowait((topic, payload == b"ON"))
            except queue.Full:
                self._warn_once("there are too many commands; some are not executed")
        else:
            self._warn_once("a command that is neither ON nor OFF is not executed")

    def _warn_once(self, text: str) -> None:
        """Log a fault of commands. Others may send thousands of them, so only the first one is logged."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning("Home Assistant: %s; this is not logged again", text)

    def _on_published(self, number: int, refusal: str) -> None:
        if not refusal:
            self._acknowledged.append(number)
            self._done += 1
            self._success_ms = self._context.clock.wall_ms()
        elif not self._refusal:
            self._refusal = (
                f"the broker refused a message: {refusal}; allow this user to publish to"
                f" {self._topics.all}, then restart the broker"
            )
            log.warning("Home Assistant: %s", self._refusal)

    def _on_retained(self, topic: str, payload: bytes) -> None:
        if topic == self._birth:  # a retained command is old, so it is not executed
            self._on_birth(payload)
        elif topic == self._topics.online:
            self._on_online(payload)

    def _on_online(self, payload: bytes) -> None:
        """Let ONLINE be published again if another client has replaced it.

        That is the broker if a former connection of this server was lost, for example in a power cut: it publishes the
        will of that connection up to 90 s later (MQTT 5.0, section 3.1.2.10), when this one is established already.
        """
        if payload != ONLINE:
            self._is_replaced = True
            self._wake.set()

    def _on_birth(self, payload: bytes) -> None:
        self.is_home_assistant_on, self._is_heard = payload != OFFLINE, True
        if self.is_home_assistant_on:
            self._is_new = True
            self._wake.set()
        else:
            self.on_lost()

    def _on_change(self) -> None:
        if self._broker.connected:
            self._is_new = self._is_reconnected = True
            self._refusal = ""
            # It may have ended or started while this server was not connected.
            self.is_home_assistant_on, self._is_heard = True, False
            self._connected_ms = self._context.clock.wall_ms()
        else:
            self.on_lost()
        self._wake.set()

    # ---------------------------------------------------------------------------------------------- own threads

    def _run(self) -> None:
        clock = self._context.clock
        while not self._stopping.is_set():
            self._wake.wait(EVERY_S)
            self._wake.clear()
            if self._broker.connected:
                self._try_to_work(clock.monotonic())
            self._stopping.wait(EVERY_S)

    def _try_to_work(self, now_s: float) -> None:
        """Publish all that has changed. An error does not end this part: everything is published again."""
        try:
            self._work(now_s)
        except (NotStored, DiskError) as error:
            self._is_new = True
            log.debug("Home Assistant: %s; trying again", error)
        except Exception as error:
            self._is_new = True
            text = f"internal error, see the log: {type(error).__name__}: {error}"
            if text != self._internal_fault:
                log.exception("Home Assistant: internal error; trying again")
            self._internal_fault = text
        else:
            self._internal_fault = ""

    def _work(self, now_s: float) -> None:
        """Publish all that has changed."""
        is_new, self._is_new = self._is_new, False
        if not self._is_read:
            self._published, self._is_read = self._read(), True
        if self._is_reconnected:
            self._is_reconnected, self._configs = False, {}
        if is_new:
            self._shown = {}
            self._again_s[""] = now_s + AGAIN_S  # the server's own status
        if is_new or now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._look(now_s)
        with self._lock:
            marked, self._marked = self._marked, set()
        due = {node for node, due_s in self._again_s.items() if due_s <= now_s}
        for node in due:
            del self._again_s[node]
        if "" in due:
            self._shown.pop(self._topics.status, None)
            self._show(self._topics.status, write_json(self._server_status()).encode())
        nodes = self._nodes.by_name
        for name in nodes if is_new else (marked | due) & nodes.keys():
            self._publish_state(nodes[name], is_repeated=name in due or is_new)
            if is_new:
                self._again_s[name] = now_s + AGAIN_S
        self._forget_removed()

    def _read(self) -> dict[str, Published]:
        try:
            return dict(self._file.now())
        except DamagedFile as error:  # it is written again
            self._file_fault = str(error)
            return {}

    def _look(self, now_s: float) -> None:
        """Publish the discovery messages, the availability and the status of all nodes, if they have changed."""
        known = {entry.node: entry.sensors for entry in self._published.values() if entry.node}
        self._nodes.read(known)
        page = self._context.settings["alerts", "url"].rstrip("/")
        wanted = {self._topics.config: (server_config(self._topics, self._context.name, page), Published("", {}, {}))}
        for node in self._nodes.by_name.values():
            wanted[self._topics.config_of(node.name)] = self._wanted(node, page)
        self._record(wanted)
        for topic, (config, entry) in wanted.items():
            if self._configs.get(topic) != config:
                self._publish(topic, write_json(config).encode(), retain=True)
                self._configs[topic] = config
                if entry.node:
                    self._again_s[entry.node] = now_s + AGAIN_S
        for topic in self._published.keys() - wanted.keys() - self._removed.keys():
            self._removed[topic] = self._remove(topic)
        if self._is_replaced:
            self._is_replaced = False
            self._shown.pop(self._topics.online, None)
        self._show(self._topics.online, ONLINE, retain=True)
        self._show(self._topics.status, write_json(self._server_status()).encode())
        for node in self._nodes.by_name.values():
            self._show(self._topics.of(node.name, "online"), ONLINE if node.is_online else OFFLINE, retain=True)
            self._show(self._topics.of(node.name, "status"), write_json(node.status()).encode())

    def _wanted(self, node: KnownNode, page: str) -> tuple[Config, Published]:
        topic = self._topics.config_of(node.name)
        facts = NodeFacts(
            node.name, node.sensors, node.expire_s, node.version, f"{page}/nodes/{node.name}" if page else "",
            self._controls and node.has_switch,
        )  # fmt: skip
        config = node_config(facts, self._topics, self._context.name, {})
        present, before = platforms(config), self._published.get(topic)
        gone = {name: kind for name, kind in before.components.items() if name not in present} if before else {}
        if gone:
            config = node_config(facts, self._topics, self._context.name, gone)
        units = {name: sensor.unit for name, sensor in node.sensors.items()}
        return config, Published(node.name, {**gone, **present}, units)

    def _record(self, wanted: Mapping[str, tuple[Config, Published]]) -> None:
        """Write the file before messages are published that it does not contain."""
        entries = {**self._published, **{topic: entry for topic, (_, entry) in wanted.items()}}
        self._write(entries)

    def _write(self, entries: dict[str, Published]) -> None:
        content = {topic: entry.written() for topic, entry in entries.items()}
        if content != {topic: entry.written() for topic, entry in self._published.items()} or self._file_fault:
            try:
                self._file.write(content)
                self._file_fault = ""
            except DiskError as error:
                self._file_fault = f"{error}; the discovery messages of removed nodes may remain at the broker"
        self._published = entries

    def _remove(self, topic: str) -> int:
        """Delete the retained messages of a node that is renamed or retired."""
        node = self._published[topic].node
        self._configs.pop(topic, None)
        self._shown.pop(self._topics.of(node, "online"), None)
        self._publish(self._topics.of(node, "online"), b"", retain=True)
        return self._publish(topic, b"", retain=True)

    def _forget_removed(self) -> None:
        acknowledged = set(self._acknowledged) if self._removed else ()
        done = [topic for topic, number in self._removed.items() if number in acknowledged]
        for topic in done:
            del self._removed[topic]
        done = [topic for topic in done if topic not in self._configs]  # otherwise the node exists again
        if done:
            self._write({topic: entry for topic, entry in self._published.items() if topic not in done})

    def _publish_state(self, node: KnownNode, is_repeated: bool) -> None:
        values = self._nodes.current_values(node)
        if values is not None:
            self._publish(self._topics.of(node.name, "state"), write_json(values).encode(), qos=_STATES_QOS)
        if is_repeated:
            self._shown.pop(self._topics.of(node.name, "status"), None)
            self._show(self._topics.of(node.name, "status"), write_json(node.status()).encode())

    def _show(self, topic: str, payload: bytes, retain: bool = False) -> None:
        if self._shown.get(topic) != payload:
            self._publish(topic, payload, retain=retain)
            self._shown[topic] = payload

    def _publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> int:
        return self._broker.publish(topic, payload, is_retained=retain, qos=qos)

    def _server_status(self) -> Mapping[str, Any]:
        context = self._context
        texts = [*context.faults.present().values(), *([context.ingestor.fault] if context.ingestor.fault else [])]
        waiting = [node.waiting for node in self._nodes.by_name.values() if node.waiting is not None]
        return {
            "problem": ON if texts else OFF, "faults": len(texts), "texts": {"faults": texts[:20]},
            "stored": context.ingestor.stored, "waiting": sum(waiting),
            "disk_free": (shutil.disk_usage(context.data).free >> 24) << 4,  # in steps of 16 MiB
        }  # fmt: skip

    def _switch(self) -> None:
        """Execute commands: each waits until the node has answered."""
        while (command := self._commands.get()) is not None and not self._stopping.is_set():
            topic, on = command
            links = {link.state.name: link for link in list(self._context.links) if link.state.name}
            node = self._topics.node_of(topic, [*links])
            if node is None:
                continue
            try:
                is_done = _best(self._context.links, node).ask("SEND", on)
            except Exception:  # a fault of one command must not end this thread
                log.exception("Home Assistant: %s is not switched", node)
                continue
            log.info("Home Assistant: %s is%s switched %s", node, "" if is_done else " not", "on" if on else "off")
            self._looked_s = -LOOK_S
            self._wake.set()


def _best(links: Sequence[NodeLink], node: str) -> NodeLink:
    """Return the link to `node` that can ask it: a connected one if possible."""
    of_node = [link for link in list(links) if link.state.name == node]
    return max(of_node, key=lambda link: (link.state.connected, not link.state.calls_in))


def make(context: ServerContext) -> HomeAssistantDiscovery:
    """Return the part for `context`, which receives all commits.

    Raises:
        MissingLibrary: paho-mqtt is not installed.
        SettingsError: The settings are invalid.
    """
    part = HomeAssistantDiscovery(context)
    context.ingestor.subscribe(part.on_commit)
    return part
