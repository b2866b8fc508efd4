"""MQTT messages for Home Assistant: topics, discovery messages, and states. No input or output.

    <prefix>/device/pigeonpost_<node>/config          description of a node and its sensors, retained
    <prefix>/device/pigeonpost-server_<server>/config description of this server, retained
    pigeonpost/ha/<server>/online                     "online" or "offline", retained; the broker sets "offline" (will);
                                                      the server reads it too
    pigeonpost/ha/<server>/status                     state of this server
    pigeonpost/ha/<server>/<node>/online              "online" or "offline", retained
    pigeonpost/ha/<server>/<node>/state               current values, by sensor; null for a sensor without one
    pigeonpost/ha/<server>/<node>/status              facts about the node
    pigeonpost/ha/<server>/<node>/set                 "ON" or "OFF" from Home Assistant, only with `controls`

States are not retained: Home Assistant would take a retained value for a current one after its restart. <node> and
<server> are names in which `node_key` has replaced the dots.
Source: homeassistant 2026.2, components/mqtt (schemas.py, discovery.py, entity.py); tests/data/home_assistant.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.version import VERSION
from pigeonpost.integrations.home_assistant_units import TOTAL, EntityUnit, entity_unit

Config = dict[str, Any]

UNIQUE_PREFIX = "pigeonpost:"  # of the ids of all entities
ONLINE, OFFLINE = b"online", b"offline"
ON, OFF = "ON", "OFF"
_PRECISION = {"°C": 1, "°F": 1, "%": 1, "hPa": 1, "mbar": 1, "V": 3, "A": 3, "W": 1, "lx": 0, "rpm": 0}
_DIAGNOSTIC = {"entity_category": "diagnostic"}


def node_key(name: str) -> str:
    """Return the name of a node or server with the characters that discovery topics accept: [a-zA-Z0-9_-].

    Two names never have the same key: a dot becomes `_2e`, and a `_` that such a code would follow becomes `_5f`.
    """
    return re.sub(r"_(?=2e|5f)", "_5f", name).replace(".", "_2e")


def slug(*parts: str) -> str:
    """Return an entity id without its domain, in the characters that Home Assistant accepts: [a-z0-9_]."""
    return re.sub(r"[^a-z0-9]+", "_", "_".join(parts).lower()).strip("_")


class Topics:
    """Topics of one server.

    Args:
        prefix: First part of the discovery topics.
        server: Name of the server.

    Attributes:
        online: Availability of the server.
        status: State of the server.
        config: Discovery topic of the server.
        all: All topics to which it publishes, for a person who allows that at the broker.
    """

    def __init__(self, prefix: str, server: str) -> None:
        self._prefix, self._root = prefix, f"pigeonpost/ha/{node_key(server)}"
        self.online, self.status = f"{self._root}/online", f"{self._root}/status"
        self.config = f"{prefix}/device/pigeonpost-server_{node_key(server)}/config"
        self.all = f"{prefix}/device/# and {self._root}/#"

    def config_of(self, node: str) -> str:
        """Return the discovery topic of `node`."""
        return f"{self._prefix}/device/pigeonpost_{node_key(node)}/config"

    def of(self, node: str, word: str) -> str:
        """Return the topic `word` (online, state, status or set) of `node`; the node `+` selects all of them."""
        return f"{self._root}/{node_key(node)}/{word}"

    def node_of(self, topic: str, nodes: Sequence[str]) -> str | None:
        """Return the one of `nodes` to which the command topic belongs, or None."""
        return next((node for node in nodes if self.of(node, "set") == topic), None)


class SensorFacts(NamedTuple):
    """Facts about one sensor for its entity.

    Attributes:
        unit: Unit.
        label: Name that is displayed.
        is_total: True for a total that never decreases.
    """

    unit: str
    label: str
    is_total: bool

    def entity(self, sensor: str) -> EntityUnit:
        """Return unit and classes of the entity of `sensor`."""
        return entity_unit(sensor, self.unit, self.is_total)


class NodeFacts(NamedTuple):
    """Facts about one node for its discovery message.

    Attributes:
        name: Name.
        sensors: Its sensors, by name.
        expire_s: Seconds after which a value is no longer current.
        version: Version of its program; empty if it is unknown.
        page: Address of its page; empty if the server does not know its own address.
        has_switch: True if Home Assistant may switch its sampling on and off.
    """

    name: str
    sensors: Mapping[str, SensorFacts]
    expire_s: int
    version: str
    page: str
    has_switch: bool


def unique_id(node: str, sensor: str) -> str:
    """Return the id of the entity of `sensor` of `node`. It stays the same when the user renames the entity."""
    return f"{UNIQUE_PREFIX}{node}:{sensor}"


def node_config(facts: NodeFacts, topics: Topics, server: str, gone: Mapping[str, str]) -> Config:
    """Return the discovery message of a node.

    Args:
        facts: The node.
        topics: Topics of this server.
        server: Name of this server.
        gone: Components that the node no longer has, with their platforms. Home Assistant removes them.
    """
    node, version = facts.name, {"sw_version": facts.version} if facts.version else {}
    device = {
        "identifiers": [f"pigeonpost:node:{node}"], "name": node, "manufacturer": "Pigeonpost", "model": "Node",
        "via_device": f"pigeonpost:server:{server}", **version, **_page(facts.page),
    }  # fmt: skip
    server_only = [{"topic": topics.online}]
    components = {name: _sensor(node, name, sensor, facts.expire_s) for name, sensor in facts.sensors.items()}
    components |= _node_diagnostics(facts, topics, server_only)
    return {
        "device": device, "origin": _origin(), "state_topic": topics.of(node, "state"), "availability_mode": "all",
        "availability": [*server_only, {"topic": topics.of(node, "online")}],
        "components": {**{name: {"platform": platform} for name, platform in gone.items()}, **components},
    }  # fmt: skip


def server_config(topics: Topics, server: str, page: str) -> Config:
    """Return the discovery message of `server` with its `topics` and the address of its `page`, which may be empty."""
    own = {"state_topic": topics.status}

    def part(name: str, platform: str, label: str, **more: Any) -> Config:
        return own | _part(f"pigeonpost:server:{server}:{name}", platform, label, slug(server, name), name) | more

    texts = {"json_attributes_topic": topics.status, "json_attributes_template": "{{ value_json['texts'] | tojson }}"}
    count = {"unit_of_measurement": "samples"}
    return {
        "device": {
            "identifiers": [f"pigeonpost:server:{server}"], "name": f"Pigeonpost {server}",
            "manufacturer": "Pigeonpost", "model": "Server", "sw_version": VERSION, **_page(page),
        },
        "origin": _origin(), "availability": [{"topic": topics.online}],
        "components": {
            "problem": part("problem", "binary_sensor", "Problem", device_class="problem", **_DIAGNOSTIC, **texts),
            "faults": part("faults", "sensor", "Faults", state_class="measurement", **_DIAGNOSTIC),
            "stored": part("stored", "sensor", "Samples stored", state_class=TOTAL, **count, **_DIAGNOSTIC),
            "waiting": part("waiting", "sensor", "Samples waiting on nodes", state_class="measurement", **count,
                            **_DIAGNOSTIC),
            "disk_free": part("disk_free", "sensor", "Free disk space", device_class="data_size",
                              unit_of_measurement="MiB", state_class="measurement", **_DIAGNOSTIC),
        },
    }  # fmt: skip


def platforms(config: Config) -> dict[str, str]:
    """Return the platforms of all components of the discovery message `config` that it does not remove."""
    return {name: part["platform"] for name, part in config["components"].items() if len(part) > 1}


def _sensor(node: str, name: str, facts: SensorFacts, expire_s: int) -> Config:
    unit, device_class, state_class = facts.entity(name)
    component = _part(unique_id(node, name), "sensor", facts.label or name, slug(node, name), name)
    component |= {"state_class": state_class, "expire_after": expire_s}
    if unit:
        component["unit_of_measurement"] = unit
    if device_class:
        component["device_class"] = device_class
    if unit in _PRECISION:
        component["suggested_display_precision"] = _PRECISION[unit]
    return component


def _node_diagnostics(facts: NodeFacts, topics: Topics, availability: Sequence[Mapping[str, str]]) -> Config:
    """Return the components that stay available while the node is offline. Names of sensors never begin with `_`."""
    node = facts.name
    own = {"state_topic": topics.of(node, "status"), "availability": availability}

    def part(name: str, platform: str, label: str, **more: Any) -> Config:
        return own | _part(unique_id(node, f"_{name}"), platform, label, slug(node, name), name) | more

    count = {"unit_of_measurement": "samples", "state_class": "measurement", **_DIAGNOSTIC}
    rare = {"enabled_by_default": False, **_DIAGNOSTIC}
    in_ms = {"device_class": "duration", "unit_of_measurement": "ms", "state_class": "measurement", **rare}
    found = {
        "_connection": part("connection", "binary_sensor", "Connection", device_class="connectivity", **_DIAGNOSTIC),
        "_waiting": part("waiting", "sensor", "Samples waiting", **count),
        "_missing": part("missing", "sensor", "Samples lost", **count),
        "_last_sample": part("last_sample", "sensor", "Last sample", device_class="timestamp", **rare),
        "_clock_offset": part("clock_offset", "sensor", "Clock offset", **in_ms),
        "_round_trip": part("round_trip", "sensor", "Round trip", **in_ms),
    }
    if facts.has_switch:
        command = {"command_topic": topics.of(node, "set"), "payload_on": ON, "payload_off": OFF}
        shared = {"default_entity_id": f"switch.{slug(node, 'sampling')}", "value_template": _value("sampling")}
        found["_switch"] = part("switch", "switch", "Sampling", entity_category="config", **command, **shared)
    else:
        found["_sampling"] = part("sampling", "binary_sensor", "Sampling", device_class="running", **_DIAGNOSTIC)
    return found


def _part(one: str, platform: str, label: str, entity: str, key: str) -> Config:
    return {
        "platform": platform, "unique_id": one, "name": label, "default_entity_id": f"{platform}.{entity}",
        "value_template": _value(key),
    }  # fmt: skip


def _value(key: str) -> str:
    return f"{{{{ value_json['{key}'] }}}}"  # a subscript, because `value_json.items` is a method


def _origin() -> Config:
    return {"name": "pigeonpost", "sw_version": VERSION}


def _page(page: str) -> Config:
    return {"configuration_url": page} if page else {}
