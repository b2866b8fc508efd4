"""Strict model of Home Assistant's MQTT discovery and WebSocket commands, by tests/data/home_assistant.json.

Unlike Home Assistant, it accepts no unknown key and no abbreviation, and it raises AssertionError instead of logging.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

FACTS: dict[str, Any] = {}
with open(os.path.join(os.path.dirname(__file__), "..", "data", "home_assistant.json"), encoding="utf-8") as file:
    FACTS.update(json.load(file))

_TEMPLATE = re.compile(r"\{\{ value_json\['([a-z_]+)'\](?: \| tojson)? \}\}").fullmatch
_DISCOVERY_TOPIC = re.compile(r"device/(?:[a-zA-Z0-9_-]+/)?([a-zA-Z0-9_-]+)/config").fullmatch
_DATETIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)").fullmatch
_ENTITY_ID = re.compile(r"[a-z_]+\.(?!_)[a-z0-9_]+(?<!_)").fullmatch


def check(condition: object, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def check_keys(value: Any, keys: dict[str, Any], where: str) -> None:
    """Check an object by the description of its keys."""
    check(type(value) is dict, f"{where}: not an object")
    for key, about in keys.items():
        check(not about["required"] or key in value, f"{where}: {key} is missing")
    for key, one in value.items():
        check(key in keys, f"{where}: unknown key {key}")
        check_value(one, keys[key]["value"], f"{where}.{key}")


def check_value(value: Any, about: Any, where: str) -> None:
    """Check a value by the description of its schema."""
    if isinstance(about, dict):
        if "keys" in about:
            check_keys(value, about["keys"], where)
        elif "list" in about:
            check(type(value) is list, f"{where}: not a list")
            for n, one in enumerate(value):
                check_value(one, about["list"], f"{where}[{n}]")
        elif "all" in about:
            for part in about["all"]:
                check_value(value, part, where)
        elif "any" in about:
            check(any(_fits(value, part, where) for part in about["any"]), f"{where}: {value!r} is not valid")
        elif "in" in about:
            check(value in about["in"], f"{where}: {value!r} is not one of {about['in']}")
        elif "is" in about:
            check(value == about["is"] and type(value) is type(about["is"]), f"{where}: {value!r}")
        return
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,), "string": (str,), "bool": (bool,), "boolean": (bool,), "int": (int,), "float": (float, int),
        "template": (str,), "valid_subscribe_topic": (str,), "valid_publish_topic": (str,), "datetime": (str,),
        "configuration_url": (str,), "positive_int": (int,),
    }  # fmt: skip
    if about in kinds:
        check(type(value) in kinds[about], f"{where}: {value!r} is not a {about}")
    if about in ("valid_subscribe_topic", "valid_publish_topic"):
        check(value and not re.search(r"[+#\0]", value) and len(value.encode()) < 65_536, f"{where}: {value!r}")
    if about == "configuration_url":
        check(re.match(r"(https?|homeassistant)://[^/]", value), f"{where}: {value!r}")
    if about == "template":
        check(_TEMPLATE(value), f"{where}: the checker does not know the template {value!r}")
    if about == "datetime":
        check(_DATETIME(value), f"{where}: {value!r} is not a time with its zone")


def _fits(value: Any, about: Any, where: str) -> bool:
    try:
        check_value(value, about, where)
    except AssertionError:
        return False
    return True


class Entity:
    """One entity.

    Attributes:
        config: Its component, with the keys that it inherits.
        state: Its state; None if it is unknown.
        expires_s: Time at which it becomes unavailable; infinite if it does not expire.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.state: str | None = None
        self.expires_s = math.inf if not config.get("expire_after") else -math.inf


class FakeHomeAssistant:
    """Entities of a Home Assistant that receives MQTT messages.

    Attributes:
        entities: Entities by unique id.
        devices: Discovery messages by topic, checked.
    """

    def __init__(self, prefix: str = "homeassistant") -> None:
        self.prefix = prefix
        self.entities: dict[str, Entity] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.retained: dict[str, str] = {}
        self.removed: set[str] = set()

    def receive(self, topic: str, payload: bytes, now_s: float = 0.0, retain: bool = False) -> None:
        """Process a message as Home Assistant does."""
        if topic.startswith(f"{self.prefix}/") and topic.endswith("/config"):
            self._discover(topic, payload)
            return
        text = payload.decode()
        if topic.endswith("/online"):
            check(text in ("online", "offline", ""), f"{topic}: {text!r}")
            self.retained[topic] = text
            return
        check(not retain, f"{topic}: a state is retained")
        for entity in self.entities.values():
            if entity.config.get("state_topic") == topic:
                self._update(entity, text, now_s)

    def _discover(self, topic: str, payload: bytes) -> None:
        match = _DISCOVERY_TOPIC(topic.removeprefix(f"{self.prefix}/"))
        check(match, f"illegal discovery topic {topic}")
        before = self.devices.pop(topic, None)
        if not payload:
            for part in (before or {"components": {}})["components"].values():
                self.entities.pop(part.get("unique_id", ""), None)
            self.removed.add(topic)
            return
        message = json.loads(payload)
        check_message(message)
        self.devices[topic] = message
        for name, part in message["components"].items():
            if len(part) == 1:  # removed
                old = (before or {"components": {}})["components"].get(name, {})
                self.entities.pop(old.get("unique_id", ""), None)
                continue
            shared = {key: message[key] for key in FACTS["shared"] if key in message}
            config = {**shared, **part}
            old_entity = self.entities.get(part["unique_id"])
            if old_entity is not None and old_entity.config == config:
                continue
            self.entities[part["unique_id"]] = Entity(config)

    def _update(self, entity: Entity, text: str, now_s: float) -> None:
        if entity.config.get("expire_after"):
            entity.expires_s = now_s + entity.config["expire_after"]
        template = _TEMPLATE(entity.config["value_template"])
        assert template
        values = json.loads(text)
        check(template[1] in values, f"{entity.config['unique_id']}: no {template[1]} in {text}")
        value = values[template[1]]
        platform, device_class = entity.config["platform"], entity.config.get("device_class")
        if value is None:
            entity.state = None
        elif platform in ("binary_sensor", "switch"):
            check(value in ("ON", "OFF"), f"{entity.config['unique_id']}: {value!r}")
            entity.state = value
        elif device_class == "timestamp":
            check(_DATETIME(value), f"{value!r}")
            entity.state = value
        else:
            check(type(value) in (int, float) and math.isfinite(value), f"{entity.config['unique_id']}: {value!r}")
            entity.state = str(value)

    def is_available(self, unique_id: str, now_s: float = 0.0) -> bool:
        """Return True if the entity is available: by its availability topics, and not expired."""
        entity = self.entities[unique_id]
        topics = [one["topic"] for one in entity.config["availability"]]
        mode = entity.config.get("availability_mode", "latest")
        check(mode == "all" or len(topics) == 1, f"{unique_id}: the mode of several topics is {mode}")
        return all(self.retained.get(topic) == "online" for topic in topics) and now_s < entity.expires_s

    def state(self, unique_id: str, now_s: float = 0.0) -> str | None:
        """Return the state that Home Assistant shows: None if it is unknown or unavailable."""
        return self.entities[unique_id].state if self.is_available(unique_id, now_s) else None


def check_message(message: Any) -> None:
    """Check a discovery message of a device."""
    check_keys(message, FACTS["message"] | {"components": {"required": True, "value": "dict"}}, "message")
    check(message["device"].get("identifiers") or message["device"].get("connections"), "device without identifier")
    ids: set[str] = set()
    for name, part in message["components"].items():
        platform = part.get("platform")
        check(platform in FACTS["platforms"], f"{name}: platform {platform!r}")
        if len(part) == 1:
            continue
        own = {key: value for key, value in part.items() if key != "platform"}
        check("unique_id" in part and part["unique_id"] not in ids, f"{name}: unique_id")
        ids.add(part["unique_id"])
        shared = {
            key: message[key] for key in FACTS["shared"] if key in message and key in FACTS["platforms"][platform]
        }
        check_keys({**shared, **own}, FACTS["platforms"][platform], name)
        check(_ENTITY_ID(part["default_entity_id"]), f"{name}: {part['default_entity_id']}")
        check(part["default_entity_id"].startswith(f"{platform}."), f"{name}: {part['default_entity_id']}")
        if platform == "sensor":
            _check_sensor(name, part)
        if platform == "binary_sensor" and "device_class" in part:
            check(part["device_class"] in FACTS["binary_sensor_classes"], f"{name}: {part['device_class']}")


def _check_sensor(name: str, part: dict[str, Any]) -> None:
    unit, device_class = part.get("unit_of_measurement"), part.get("device_class")
    unit = FACTS["ambiguous_units"].get(unit, unit)
    state_class = part.get("state_class")
    if state_class in FACTS["state_class_units"]:
        check(unit in FACTS["state_class_units"][state_class], f"{name}: {state_class} with {unit}")
    if device_class is None:
        return
    about = FACTS["device_classes"][device_class]
    if about["units"] is not None:
        check(unit in about["units"], f"{name}: {device_class} with {unit}")
    if state_class is not None:
        check(state_class in about["state_classes"], f"{name}: {device_class} with {state_class}")


def check_command(message: dict[str, Any]) -> None:
    """Check a WebSocket command by its schema."""
    keys = FACTS["commands"].get(message.get("type", ""))
    check(keys is not None, f"unknown command {message.get('type')}")
    plain = {"id": {"required": True, "value": "int"}, "type": {"required": True, "value": "str"}}
    check_keys(message, keys or plain, message["type"])
    if message["type"] == "recorder/import_statistics":
        _check_import(message)


def _check_import(message: dict[str, Any]) -> None:
    metadata = message["metadata"]
    check("mean_type" in metadata and "unit_class" in metadata, "both become compulsory in 2026.11")
    check("has_mean" not in metadata, "has_mean is replaced by mean_type")
    check(metadata["source"] == "recorder" and _ENTITY_ID(metadata["statistic_id"]), "source of an entity")
    if metadata["unit_class"] is not None:
        units = FACTS["unit_classes"][metadata["unit_class"]]
        check(metadata["unit_of_measurement"] in units, f"{metadata['unit_class']}: {metadata['unit_of_measurement']}")
    wanted = {"start", "state", "sum"} if metadata["has_sum"] else {"start", "mean", "min", "max"}
    for row in message["stats"]:
        check(row["start"][13:] == ":00:00+00:00", f"{row['start']} is not the top of an hour")
        check(row.keys() == wanted, f"{sorted(row)}")
        check(metadata["has_sum"] or row["min"] <= row["mean"] <= row["max"], f"{row}")
    check(metadata["has_sum"] == (metadata["mean_type"] == 0), "mean_type")
